/* Clean shutdown (spec/cluster.md 5.5): leadership goes to another voter first, so that writers notice nothing; then the leader is asked to give the role
 * to somebody else, so that the cluster has all its voters again before this member is gone. Failures are only logged.
 *
 * Also the leader's side: Membership.HandOver. */
#include "cluster.h"

#include "server/daemon/state.h"
#include "server/services.h"
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    HAND_OVER_MS = 5000,      /* the whole call */
    CANDIDATES_MS = 2000,     /* after a change of leader the members need a moment to find the new one */
    NEW_LEADER_MS = 2000,
    POLL_MS = 20,
    LEADERSHIPS_MAX = 4,      /* several members may stop at once, and leadership may come back to one of them */
    SERVERS_MAX = 1024,
};

static int transfer(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_transfer(raft, *(uint64_t *)ud, err);
}

/* True when another voter leads now. */
static bool give_leadership(struct daemon *daemon)
{
    struct raft_node_server *servers = xcalloc(SERVERS_MAX, sizeof *servers);
    size_t count = state_raft_servers(servers, SERVERS_MAX);
    bool given = false;
    for (size_t i = 0; i < count && !given; i++) {
        uint64_t id = servers[i].id;
        struct error err = ERROR_INIT;
        if (id == daemon_id(daemon) || servers[i].role != RAFT_NODE_VOTER || !attach_member_ready(id)) {
            continue;
        }
        given = state_with_raft(daemon, transfer, &id, &err) == STATUS_OK;
        if (given) {
            log_info("handover.leader", "member=%" PRIu64, id);
        } else {
            log_warn("handover.leader", "member=%" PRIu64 " error=\"%s\"", id, err.text);
        }
    }
    if (!given && count > 1) {
        log_warn("handover.leader", "error=\"No online voter found\"");
    }
    free(servers);
    return given;
}

/* The role: answered once somebody else has it, or nobody can. */
static int give_role(struct daemon *daemon, uint64_t leader, struct error *err)
{
    Covey__Internal__V1__HandOverRequest request = COVEY__INTERNAL__V1__HAND_OVER_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.timeout_ms = HAND_OVER_MS};
    struct rpc_channel *channel = member_channel(daemon, leader, err);
    if (channel == NULL) {
        return err->code;
    }
    struct arena arena;
    arena_init(&arena);
    request.id = daemon_id(daemon);
    int status = rpc_unary(channel, "covey.internal.v1.Membership", "HandOver", &request.base, &response, &arena, &options, err);
    arena_clear(&arena);
    rpc_channel_unref(channel);
    return status;
}

/* Another member that leads; 0 = none is known in time. */
static uint64_t other_leader(struct daemon *daemon)
{
    for (int64_t end = time_mono_ms() + NEW_LEADER_MS; time_mono_ms() < end; usleep(POLL_MS * 1000)) {
        uint64_t leader = daemon_leader_id(daemon);
        if (leader != 0 && leader != daemon_id(daemon)) {
            return leader;
        }
    }
    return 0;
}

static void give_all(struct daemon *daemon)
{
    struct error err = ERROR_INIT;
    if (daemon_leads(daemon) && !give_leadership(daemon)) {
        return;
    }
    uint64_t leader = other_leader(daemon);
    if (leader == 0) {
        log_warn("handover.role", "error=\"no leader is known\"");
    } else if (give_role(daemon, leader, &err) != STATUS_OK) {
        log_warn("handover.role", "leader=%" PRIu64 " error=\"%s\"", leader, err.text);
    } else {
        log_info("handover.role", "leader=%" PRIu64, leader);
    }
}

void handover(struct daemon *daemon)
{
    int role = state_raft_role(daemon_id(daemon));
    if (!daemon_clustered(daemon) || (role != ROLE_VOTER && role != ROLE_STANDBY)) {
        return;
    }
    unsigned tries = 0;
    do {
        give_all(daemon);
    } while (daemon_leads(daemon) && ++tries < LEADERSHIPS_MAX);
}

/* ---- the leader's side ---- */

int handover_serve(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__HandOverRequest *request = (const Covey__Internal__V1__HandOverRequest *)message;
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, request->id);
    bool itself = member != NULL && str_eq(member->fingerprint, rpc_caller(call)->fingerprint);
    view_unref(view);
    if (!itself) {
        return error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
    }
    for (int64_t end = time_mono_ms() + CANDIDATES_MS;; usleep(POLL_MS * 1000)) {
        int status = STATUS_OK;
        bool known = attach_note_stopping(request->id);
        if (known) {
            membership_lock();
            status = controller_rebalance(the_daemon, err);
            membership_unlock();
        }
        int role = state_raft_role(request->id);
        bool keeps = role == ROLE_VOTER || role == ROLE_STANDBY;
        if (status != STATUS_OK || !daemon_leads(the_daemon) || time_mono_ms() >= end || (known && (!keeps || !controller_awaits_candidate(the_daemon, (enum member_role)role)))) {
            return status;
        }
    }
}
