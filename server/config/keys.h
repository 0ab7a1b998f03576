/* Configuration keys as data: one table for the server's keys (spec/api.md 17, cluster.md 2). Pure; thread: any. */
#ifndef COVEY_SERVER_CONFIG_KEYS_H
#define COVEY_SERVER_CONFIG_KEYS_H

#include "proto/core/core.h"

enum key_type { KEY_STRING, KEY_BOOL, KEY_INT, KEY_ADDRESS, KEY_EXPIRY };

struct config_key {
    const char *name;
    bool local;  /* per member, in local.db; else global */
    bool hidden; /* shows as true; stored hashed */
    enum key_type type;
    const char *fallback; /* default, "" = empty */
    int (*check)(const char *value, struct error *err); /* err->text = the bare reason */
    const char *doc;
};
const struct config_key *config_key_find(const char *name); /* user.* gives a generic entry; NULL = unknown */
size_t config_key_count(void);
const struct config_key *config_key_at(size_t index);
/* Type and value check; the reason alone in err->text. */
int config_key_check(const struct config_key *key, const char *value, struct error *err);
/* Value of a global key from the view, its default when unset; never NULL, static or in buf. */
int64_t config_int(const char *key);
void config_text(const char *key, char *out, size_t size);
/* Canonical "host:port" (spec/cluster.md 1.5): default port 8443, brackets. STATUS_INVALID_ARGUMENT otherwise. */
int address_canonical(const char *text, char *out, size_t size, struct error *err);
bool address_wildcard(const char *canonical);
/* INVALID_ARGUMENT when the host of a canonical, concrete address has no address; may block. */
int address_resolves(const char *canonical, struct error *err);
/* a is covered by b. */
bool address_covered(const char *a, const char *b);
/* Adds an expiry expression ("3H", "1d 2H") to a time; 0 or -1. */
int expiry_add(const char *expression, int64_t from_ns, int64_t *out_ns);

#endif
