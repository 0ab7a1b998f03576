/* covey.internal.v1.Recovery: thin handlers. */
#include "recovery.h"

#include "server/daemon/state.h"
#include "server/config/keys.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int position(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__Internal__V1__PositionResponse *out = NULL;
    int status = position_own(the_daemon, rpc_arena(call), &out, err);
    *response = status == STATUS_OK ? &out->base : NULL;
    return status;
}

static int hold(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__HoldRequest *request = (const Covey__Internal__V1__HoldRequest *)message;
    int status = rescue_hold(the_daemon, request->hold_id, request->hold_ms, err);
    return status == STATUS_OK ? position(call, message, response, err, ud) : status;
}

static int promote(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    int status = rescue_promote(the_daemon, (const Covey__Internal__V1__PromoteRequest *)message, err);
    return status == STATUS_OK ? position(call, message, response, err, ud) : status;
}

static int survey(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__Internal__V1__SurveyResponse *out = NULL;
    int status = rescue_survey(the_daemon, rpc_arena(call), &out, err);
    *response = status == STATUS_OK ? &out->base : NULL;
    return status;
}

static int rescue(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__Internal__V1__SurveyResponse *out = NULL;
    int status = rescue_run(the_daemon, false, ((const Covey__Internal__V1__RescueRequest *)message)->accept_loss, rpc_arena(call), &out, err);
    *response = status == STATUS_OK ? &out->base : NULL;
    return status;
}

static int backup(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    return backup_send(call, err);
}

static int apply_patch(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    return patch_execute(the_daemon, (const Covey__Internal__V1__ApplyPatchRequest *)message, err);
}

/* ---- stale Raft entries ---- */

static int remove_server(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_remove(raft, *(uint64_t *)ud, err);
}

/* Only the local table still knows addresses of servers whose row is gone (view.c keeps them there). */
static uint64_t server_by_address(struct daemon *daemon, const char *address, struct error *err)
{
    struct local_raft_node *nodes = NULL;
    size_t count = 0;
    uint64_t id = 0;
    if (local_raft_nodes_get(daemon->local, &nodes, &count, err) != STATUS_OK) {
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        if (strcmp(nodes[i].address, address) == 0) {
            id = nodes[i].id;
        }
    }
    local_raft_nodes_free(nodes, count);
    return id;
}

static int remove_raft_node(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    char address[300];
    if (address_canonical(((const Covey__Internal__V1__RemoveRaftNodeRequest *)message)->address, address, sizeof address, err) != STATUS_OK) {
        return err->code;
    }
    uint64_t id = server_by_address(the_daemon, address, err);
    if (id == 0 || state_raft_role(id) < 0) {
        return error_set(err, STATUS_NOT_FOUND, "No raft node with address \"%s\"", address);
    }
    if (id == daemon_id(the_daemon)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "The leader cannot remove itself from Raft");
    }
    membership_lock();
    log_info("recovery.remove-raft-node", "member=%" PRIu64 " address=%s", id, address);
    int status = state_with_raft(the_daemon, remove_server, &id, err);
    if (status == STATUS_OK) {
        struct error later = ERROR_INIT;
        if (controller_rebalance(the_daemon, &later) != STATUS_OK) { /* the controller goes on with it */
            log_warn("roles", "error=\"%s\"", later.text);
        }
    }
    membership_unlock();
    controller_wake(true);
    return status;
}

static const struct rpc_binding bindings[] = {
    {"Position", position}, {"Hold", hold}, {"Promote", promote}, {"Survey", survey}, {"Rescue", rescue},
    {"ApplyPatch", apply_patch}, {"RemoveRaftNode", remove_raft_node}, {"Backup", backup}, {"BackupLocal", backup},
};

void recovery_bind(void)
{
    rpc_bind("covey.internal.v1.Recovery", bindings, sizeof bindings / sizeof *bindings, NULL);
}
