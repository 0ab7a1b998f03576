/* Which RPC a path and verb mean: built once from the contract's google.api.http rules. Immutable after routes_init; thread: any. */
#ifndef COVEY_GATEWAY_ROUTE_H
#define COVEY_GATEWAY_ROUTE_H

#include "gateway.h"

struct param {
    const char *name, *value; /* decoded */
};

struct route { /* one rule: how a path's segments fill fields */
    const struct method *method;
    const struct http_rule *rule;
    const char *fields[GATEWAY_SEGMENTS_MAX]; /* by segment; NULL = literal */
};

struct route_match {
    const struct route *routes; /* all verbs of the resource */
    size_t route_count;
    const struct route *route; /* the one that was chosen by verb; NULL: none */
    bool containers;           /* asked for as /1.0/containers */
    size_t segment_count;
    const char *segments[GATEWAY_SEGMENTS_MAX]; /* decoded */
};

void routes_init(void);
/* `path` as sent, without query. STATUS_NOT_FOUND: no such resource. STATUS_INVALID_ARGUMENT: malformed escapes. */
int route_find(const char *path, size_t len, struct arena *arena, struct route_match *out, struct error *err);
/* Chooses out->route by verb; false if the resource has no such verb. */
bool route_verb(struct route_match *match, const char *verb);

#endif
