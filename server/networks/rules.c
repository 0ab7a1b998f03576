/* Rules of a network's creation as pure functions. Any thread. */
#include "rules.h"

#include "proto/core/core.h"
#include "server/host/network_rules.h"

const char *network_state_text(int64_t state)
{
    return state == NETWORK_PENDING ? "Pending" : state == NETWORK_CREATED ? "Created" : state == NETWORK_ERRORED ? "Errored" : "Unknown";
}

int network_phase2_check(const struct network_facts *facts, int64_t type, bool has_config, struct error *err)
{
    if (!facts->exists) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Network not pending on any node (use --target <node> first)");
    }
    if (!str_empty(facts->undefined)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Network not defined on nodes: %s", facts->undefined);
    }
    if (facts->type != type) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Requested network type \"%s\" doesn't match type in existing database record \"%s\"", network_type_name(type),
            network_type_name(facts->type));
    }
    if (facts->state == NETWORK_CREATED) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "The network is already created");
    }
    if (facts->state == NETWORK_ERRORED && has_config) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Network already partially created. Please do not specify any global config when re-running create");
    }
    return STATUS_OK;
}
