/* Where copies of the database end: this member's, and those of the others by asking all of them at once. Thread: any, blocking (bounded by RECOVERY_ASK_MS). */
#include "recovery.h"

#include "server/daemon/state.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* ---- own ---- */

static int read_status(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_status(raft, ud, err);
}

static void fill_servers(Covey__Internal__V1__PositionResponse *out, const struct raft_node_status *status, struct arena *arena)
{
    static const char *const names[] = {[RAFT_NODE_STANDBY] = "stand-by", [RAFT_NODE_VOTER] = "voter", [RAFT_NODE_SPARE] = "spare"};
    out->voters = arena_alloc(arena, (status->server_count + 1) * sizeof *out->voters);
    for (size_t i = 0; i < status->server_count; i++) {
        if (status->servers[i].role == RAFT_NODE_VOTER) {
            out->voters[out->n_voters++] = status->servers[i].id;
        }
        if (status->servers[i].id == out->id) {
            out->role = (char *)names[status->servers[i].role];
        }
    }
}

/* The local database's list stands in for the configuration of a stopped member. */
static int fill_from_disk(struct daemon *daemon, Covey__Internal__V1__PositionResponse *out, struct arena *arena, struct error *err)
{
    struct raft_node_position position = {0};
    struct local_raft_node *nodes = NULL;
    size_t count = 0;
    char *global = recovery_raft_dir(daemon), *database = xasprintf("%s/database", daemon->dir);
    int status = db_exists(database) ? raft_node_examine(global, &position, err) : STATUS_OK;
    status = status == STATUS_OK ? local_raft_nodes_get(daemon->local, &nodes, &count, err) : status;
    if (status == STATUS_OK) {
        out->term = position.term;
        out->last_term = position.last_term;
        out->last_index = position.last_index;
        out->voters = arena_alloc(arena, (count + 1) * sizeof *out->voters);
        for (size_t i = 0; i < count; i++) {
            if (nodes[i].role == ROLE_VOTER) {
                out->voters[out->n_voters++] = nodes[i].id;
            }
            if (nodes[i].id == out->id) {
                out->role = (char *)raft_role_name(nodes[i].role);
            }
        }
    }
    local_raft_nodes_free(nodes, count);
    free(database);
    free(global);
    return status;
}

int position_own(struct daemon *daemon, struct arena *arena, Covey__Internal__V1__PositionResponse **response, struct error *err)
{
    Covey__Internal__V1__PositionResponse *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__position_response__init(out);
    char name[128], *cluster = local_state_get(daemon->local, "cluster_id");
    struct raft_node_status raft = {0};
    daemon_name(daemon, name, sizeof name);
    out->id = daemon_id(daemon);
    out->name = arena_strdup(arena, name);
    out->cluster_id = arena_strdup(arena, cluster != NULL ? cluster : "");
    out->epoch = recovery_epoch(daemon);
    free(cluster);
    int status = STATUS_OK;
    struct error closed = ERROR_INIT;
    if (state_with_raft(daemon, read_status, &raft, &closed) == STATUS_OK) {
        out->term = raft.term;
        out->last_term = raft.last_term;
        out->last_index = raft.last_index;
        out->commit_index = raft.commit_index;
        out->heard_commit = raft.heard_commit;
        out->leader_id = raft.leader_id; /* what others say of it counts where they are asked */
        fill_servers(out, &raft, arena);
        raft_node_status_free(&raft);
    } else {
        status = fill_from_disk(daemon, out, arena, err);
    }
    out->replica = out->last_index > 0;
    *response = status == STATUS_OK ? out : NULL;
    return status;
}

/* ---- the others ---- */

struct round {
    pthread_mutex_t lock;
    pthread_cond_t done;
    size_t left;
    struct arena *arena;
};

struct question {
    struct round *round;
    struct peer_position *out;
};

/* [CQ] */
static void answered(int status, const ProtobufCMessage *response, const struct error *err, void *ud)
{
    struct question *question = ud;
    struct round *round = question->round;
    pthread_mutex_lock(&round->lock);
    question->out->status = status;
    if (status == STATUS_OK && response != NULL) {
        question->out->position = (Covey__Internal__V1__PositionResponse *)codec_copy(response, round->arena);
    } else if (err != NULL) {
        question->out->err = *err;
    }
    question->out->silent = status == STATUS_DEADLINE_EXCEEDED || (status == STATUS_UNAVAILABLE && err != NULL && !rpc_refused(err));
    if (--round->left == 0) {
        pthread_cond_signal(&round->done);
    }
    pthread_mutex_unlock(&round->lock);
}

size_t positions_ask(struct daemon *daemon, const char *hold_id, int64_t hold_ms, struct arena *arena, struct peer_position **result)
{
    struct error ignored = ERROR_INIT;
    const struct method *method = registry_method_by_name("covey.internal.v1.Recovery", hold_id != NULL ? "Hold" : "Position");
    Covey__Internal__V1__PositionRequest plain = COVEY__INTERNAL__V1__POSITION_REQUEST__INIT;
    Covey__Internal__V1__HoldRequest hold = COVEY__INTERNAL__V1__HOLD_REQUEST__INIT;
    hold.hold_id = (char *)hold_id;
    hold.hold_ms = hold_ms;
    struct rpc_options options = {.timeout_ms = RECOVERY_ASK_MS};
    const struct view *view = view_get();
    size_t members = view->message->n_members, count = 0;
    struct peer_position *out = arena_alloc(arena, (members + 1) * sizeof *out);
    struct question *questions = arena_alloc(arena, (members + 1) * sizeof *questions);
    struct round round = {.lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER, .arena = arena, .left = 1};
    for (size_t i = 0; i < members; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        if (member->id == daemon_id(daemon) || member->state == 1) {
            continue;
        }
        struct peer_position *peer = &out[count];
        pthread_mutex_lock(&round.lock); /* the arena is the callbacks', too */
        *peer = (struct peer_position){.id = member->id, .name = arena_strdup(arena, member->name), .address = arena_strdup(arena, member->address),
                                       .role = arena_strdup(arena, raft_role_name((int)member->raft_role)), .status = STATUS_UNAVAILABLE};
        questions[count] = (struct question){&round, peer};
        round.left++;
        pthread_mutex_unlock(&round.lock);
        struct rpc_channel *channel = member_channel(daemon, member->id, &peer->err);
        if (channel != NULL) {
            rpc_unary_async(channel, method, hold_id != NULL ? &hold.base : &plain.base, &options, answered, &questions[count]);
            rpc_channel_unref(channel);
        } else {
            ignored = peer->err;
            answered(STATUS_UNAVAILABLE, NULL, &ignored, &questions[count]);
        }
        count++;
    }
    view_unref(view);
    pthread_mutex_lock(&round.lock);
    round.left--;
    while (round.left > 0) { /* every call has its deadline */
        pthread_cond_wait(&round.done, &round.lock);
    }
    pthread_mutex_unlock(&round.lock);
    *result = out;
    return count;
}
