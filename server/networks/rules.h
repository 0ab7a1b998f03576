/* The two phases of a network's creation (spec/api.md 10.3). Pure. */
#ifndef COVEY_SERVER_NETWORKS_RULES_H
#define COVEY_SERVER_NETWORKS_RULES_H

#include "proto/core/error.h"
#include <stdbool.h>
#include <stdint.h>

enum network_state { NETWORK_PENDING = 0, NETWORK_CREATED = 1, NETWORK_ERRORED = 2 }; /* stored */

const char *network_state_text(int64_t state);

/* Phase 2, before anything is stored: what the record says against what is asked. */
struct network_facts {
    bool exists;
    int64_t state, type;
    const char *undefined; /* names of members without the network, "n2, n4"; NULL or "" = none */
};
int network_phase2_check(const struct network_facts *facts, int64_t type, bool has_config, struct error *err);

#endif
