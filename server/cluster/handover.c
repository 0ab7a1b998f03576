/* Clean shutdown: leadership goes to another voter first, so that writers notice nothing. Roles are refilled by the new leader, which is told that this member is
 * stopping by its last report. */
#include "cluster.h"

#include "server/daemon/state.h"
#include "server/services.h"
#include <inttypes.h>

static int transfer(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_transfer(raft, *(uint64_t *)ud, err);
}

void handover(struct daemon *daemon)
{
    struct raft_node_server servers[64];
    size_t count = state_raft_servers(servers, sizeof servers / sizeof *servers);
    if (!daemon_leads(daemon)) {
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t id = servers[i].id;
        struct error err = ERROR_INIT;
        if (id == daemon_id(daemon) || servers[i].role != RAFT_NODE_VOTER || !member_online(daemon, id)) {
            continue;
        }
        if (state_with_raft(daemon, transfer, &id, &err) == STATUS_OK) {
            log_info("handover", "leader=%" PRIu64, id);
            return;
        }
        log_warn("handover", "member=%" PRIu64 " error=\"%s\"", id, err.text);
    }
    if (count > 1) {
        log_warn("handover", "error=\"No online voter found\"");
    }
}
