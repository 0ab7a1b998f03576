/* The filter grammar of lists (spec/api.md 1.7) over JSON objects. Pure. */
#ifndef COVEY_SERVER_INSTANCES_FILTER_H
#define COVEY_SERVER_INSTANCES_FILTER_H

#include "proto/core/error.h"
#include <jansson.h>

enum { FILTER_CLAUSES_MAX = 64, FILTER_BYTES_MAX = 4096 };

struct filter;
/* INVALID_ARGUMENT `Invalid filter: <reason>`. The caller frees with filter_free (NULL is fine). */
int filter_parse(const char *text, struct filter **out, struct error *err);
bool filter_match(const struct filter *filter, const json_t *object);
void filter_free(struct filter *filter);

#endif
