/* The dispatcher's policy: where a call runs and whether this member takes it at the moment. Runs on worker threads; route_now and
 * confirm_call on queue threads, without waiting. */
#include "route.h"

#include "server/cluster/cluster.h"
#include "server/operations/operations.h"
#include "state.h"
#include "stopping.h"
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static atomic_int phase = DAEMON_STARTING;

void daemon_set_phase(enum daemon_phase next)
{
    atomic_store(&phase, (int)next);
    rpc_health_set(next == DAEMON_READY);
}

enum daemon_phase daemon_phase(void)
{
    return (enum daemon_phase)atomic_load(&phase);
}

/* Whether this member takes the call at the moment. A call that another member passed on may find a better one: it is told so, and asks again. */
static int gate(struct rpc_call *call, struct error *err)
{
    static const char *const always[] = {"covey.v1.Operations", "covey.v1.Events", "covey.v1.Server"};
    const struct method *method = rpc_call_method(call);
    enum daemon_phase now = daemon_phase();
    bool public = strncmp(method->service, "covey.v1.", 9) == 0;
    int status = STATUS_OK;
    if (now == DAEMON_STARTING && public) {
        status = error_set(err, STATUS_UNAVAILABLE, "LXD daemon setup in progress");
    } else if (now == DAEMON_BLOCKED && (public || strcmp(method->service, "covey.internal.v1.Agent") == 0)) {
        status = error_set(err, STATUS_UNAVAILABLE, DAEMON_BLOCKED_TEXT);
    } else if (now == DAEMON_STOPPING && public && method->write) {
        bool taken = false;
        for (size_t i = 0; i < sizeof always / sizeof *always; i++) {
            taken = taken || strcmp(method->service, always[i]) == 0;
        }
        status = taken ? STATUS_OK : error_set(err, STATUS_UNAVAILABLE, "LXD is shutting down");
    }
    if (status != STATUS_OK && err != NULL) {
        err->not_leader = rpc_call_forwarded(call) > 0 && method->route == RPC_ROUTE_LEADER;
    }
    return status;
}

/* Waits until somebody is known to lead: this member (0), or another one's id. `last` is what the member that was asked before said. */
static int wait_leader(struct daemon *daemon, struct rpc_call *call, const struct error *last, uint64_t *leader, struct error *err)
{
    const struct method *method = rpc_call_method(call);
    if (rpc_call_forwarded(call) > 0 && !method->client_streaming && !method->server_streaming && !daemon_leads(daemon)) {
        /* The member that got the call first does the searching and can wait through an election; members that pass it round to each other cannot. */
        return error_not_leader(err, daemon_leader_id(daemon));
    }
    int64_t left = rpc_call_search_left_ms(call), end = time_mono_ms() + (left < LEADER_WAIT_MS ? left : LEADER_WAIT_MS); /* all attempts together */
    uint64_t self = daemon_id(daemon);
    for (unsigned seen = 0; !rpc_call_cancelled(call);) {
        if (daemon_leads(daemon)) {
            *leader = 0;
            return STATUS_OK;
        }
        uint64_t id = daemon_leader_id(daemon);
        if (id == 0) { /* no replica: hearsay, the newest first */
            id = last != NULL && last->not_leader && last->leader != 0 ? last->leader : attach_known_leader();
        }
        if (id != 0 && id != self) {
            *leader = id;
            return STATUS_OK;
        }
        int64_t rest = end - time_mono_ms();
        if (rest <= 0) {
            break;
        }
        seen = state_wait_change(seen, rest < 50 ? rest : 50);
    }
    return error_set(err, STATUS_UNAVAILABLE, "no available leader: the database has no majority of its voters");
}

/* The member that `target` names; 0 = here. */
static int route_target(struct daemon *daemon, const ProtobufCMessage *request, uint64_t *member, struct error *err)
{
    int status = target_resolve(daemon, request != NULL ? codec_get_string(request, "target") : "", member, err);
    if (status == STATUS_OK && *member != 0 && !member_online(daemon, *member)) {
        status = error_set(err, STATUS_UNAVAILABLE, "Cluster member %s is offline", codec_get_string(request, "target"));
    }
    return status;
}

int route_call(void *ud, struct rpc_call *call, const ProtobufCMessage *request, unsigned attempt, const struct error *last, struct rpc_channel **channel,
               struct error *err)
{
    struct daemon *daemon = ud;
    const struct method *method = rpc_call_method(call);
    uint64_t member = 0;
    int status = STATUS_OK;
    *channel = NULL;
    if (attempt == 0 && gate(call, err) != STATUS_OK) { /* before anybody is waited for */
        return err->code;
    }
    switch (method->route) {
    case RPC_ROUTE_LOCAL: return STATUS_OK;
    case RPC_ROUTE_TARGET: status = route_target(daemon, request, &member, err); break;
    case RPC_ROUTE_OPERATION:
    case RPC_ROUTE_LEADER:
        if (attempt == 0 && strcmp(method->name, "RemoveMember") == 0) {
            leave_after_answer(call); /* it may be this member that goes */
        }
        if (strcmp(method->service, "covey.v1.Operations") == 0 && request != NULL && op_is_local(codec_get_string(request, "id"))) {
            return STATUS_OK;
        }
        status = wait_leader(daemon, call, last, &member, err);
        break;
    }
    if (status != STATUS_OK || member == 0 || member == daemon_id(daemon)) {
        return status;
    }
    *channel = member_channel(daemon, member, err);
    return *channel != NULL ? STATUS_OK : (int)err->code;
}

struct rpc_channel *route_now(void *ud, struct rpc_call *call)
{
    struct daemon *daemon = ud;
    if (daemon_phase() != DAEMON_READY || daemon_leads(daemon) || rpc_call_forwarded(call) > 0) { /* route_call() asks gate(), and tells who passed the call on */
        return NULL;
    }
    uint64_t leader = daemon_leader_id(daemon);
    leader = leader != 0 ? leader : attach_known_leader();
    /* Operations of this member alone are told apart by their id, which only route_call() can read. */
    if (leader == 0 || leader == daemon_id(daemon) || strcmp(rpc_call_method(call)->service, "covey.v1.Operations") == 0) {
        return NULL;
    }
    return member_channel(daemon, leader, NULL);
}

struct confirming {
    struct rpc_call *call;
    void (*done)(struct rpc_call *call, bool confirmed);
};

static void on_confirmed(void *ud, int status, const struct error *err)
{
    struct confirming confirming = *(struct confirming *)ud;
    free(ud);
    confirming.done(confirming.call, status == STATUS_OK);
}

static int confirm_leader(struct raft_node *raft, void *ud, struct error *err)
{
    raft_node_confirm_leader(raft, on_confirmed, ud);
    return STATUS_OK;
}

bool confirm_call(void *ud, struct rpc_call *call, void (*done)(struct rpc_call *call, bool confirmed))
{
    if (!daemon_leads(ud)) {
        return false;
    }
    struct confirming *confirming = xmalloc(sizeof *confirming);
    *confirming = (struct confirming){call, done};
    if (state_with_raft(ud, confirm_leader, confirming, NULL) != STATUS_OK) {
        free(confirming);
        return false;
    }
    return true;
}

int admit_call(void *ud, struct rpc_call *call, struct error *err)
{
    db_thread_confirmed(rpc_call_confirmed(call));
    int status = gate(call, err);
    if (status == STATUS_OK) {
        stop_count(call);
    }
    return status;
}
