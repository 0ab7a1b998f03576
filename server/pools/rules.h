/* Rules of storage pools: drivers, keys, the two phases of creation (spec/api.md 9.2, 9.3). Pure. */
#ifndef COVEY_SERVER_POOLS_RULES_H
#define COVEY_SERVER_POOLS_RULES_H

#include "proto/core/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pool_state { POOL_PENDING = 0, POOL_CREATED = 1, POOL_ERRORED = 2 }; /* stored */
enum { POOL_VALUE_BYTES_MAX = 4096, POOL_KEYS_MAX = 256, POOL_NAME_BYTES_MAX = 63 };

const char *pool_state_text(int64_t state);
int pool_name_check(const char *name, struct error *err);
int pool_driver_check(const char *driver, struct error *err); /* `Unknown driver`; known ones that a host lacks are refused by its agent */
bool pool_key_member(const char *key);                        /* may differ per member */
int pool_key_check(const char *driver, const char *key, const char *value, struct error *err);

/* Phase 2, before anything is stored: what the record says against what is asked. */
struct pool_facts {
    bool exists;
    int64_t state;
    const char *driver;    /* of the record */
    const char *undefined; /* names of members without the pool, "n2, n4"; NULL or "" = none */
    bool started;          /* a phase 2 began already */
};
int pool_phase2_check(const struct pool_facts *facts, const char *driver, bool has_config, struct error *err);

#endif
