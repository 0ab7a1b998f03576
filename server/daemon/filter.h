/* The filter grammar of lists (spec/api.md 1.7) over JSON objects. Pure. */
#ifndef COVEY_SERVER_DAEMON_FILTER_H
#define COVEY_SERVER_DAEMON_FILTER_H

#include "proto/rpc/codec.h"

enum { FILTER_CLAUSES_MAX = 64, FILTER_BYTES_MAX = 4096 };

struct filter;
/* INVALID_ARGUMENT `Invalid filter: <reason>`. The caller frees with filter_free (NULL is fine). */
int filter_parse(const char *text, struct filter **out, struct error *err);
bool filter_match(const struct filter *filter, const json_t *object);
/* The same over the JSON of a message. */
bool filter_match_message(const struct filter *filter, const ProtobufCMessage *message);
void filter_free(struct filter *filter);

#endif
