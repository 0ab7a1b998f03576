/* Membership changes and leadership transfer: one at a time, waited for by the caller, driven on the loop by node__change_run until done or too late.
 * A change that libraft still holds when its caller gives up keeps its memory until libraft lets go; the next one waits for that. */
#include "raft_node_private.h"
#include <errno.h>
#include <stdlib.h>
#include <time.h>

enum { CHANGE_GRACE_MS = 2000 }; /* the loop ends a change at its deadline; its caller waits a little longer for that */

static void change_unref(struct raft_node *node, struct node_change *change)
{
    pthread_mutex_lock(&node->mutex);
    int refs = --change->refs;
    pthread_mutex_unlock(&node->mutex);
    if (refs == 0) {
        free(change);
    }
}

/* Tells the caller. The loop's own reference goes when libraft holds nothing. */
static void change_end(struct raft_node *node, struct node_change *change, int status, const struct error *err)
{
    pthread_mutex_lock(&node->mutex);
    if (!change->done) {
        change->done = true;
        change->status = status;
        change->err = *err;
        pthread_cond_broadcast(&node->cond);
    }
    pthread_mutex_unlock(&node->mutex);
    if (node->change == change) {
        node->change = NULL;
        if (change->kind == NODE_TRANSFER) {
            node->transferring = false;
            if (!node->stopping) {
                node__submit_held(node);
            }
        }
    }
    if (!change->submitted) {
        change_unref(node, change);
    }
}

static void change_ok(struct raft_node *node, struct node_change *change)
{
    struct error err = ERROR_INIT;
    change_end(node, change, STATUS_OK, &err);
}

static int change_error(struct node_change *change, int rv, struct error *err)
{
    switch (rv) {
    case RAFT_NOTLEADER:
    case RAFT_LEADERSHIPLOST:
    case RAFT_SHUTDOWN: return node__not_leader(change->node, err);
    case RAFT_NOSPACE: return error_set(err, STATUS_RESOURCE_EXHAUSTED, "no space left on the disks of a majority of the database members");
    case RAFT_NOCONNECTION:
        return error_set(err, STATUS_UNAVAILABLE, "member %llu does not catch up with the database log", (unsigned long long)change->id);
    case RAFT_NOTFOUND: return error_set(err, STATUS_NOT_FOUND, "member %llu is not part of the database cluster", (unsigned long long)change->id);
    case RAFT_BADID: return error_set(err, STATUS_FAILED_PRECONDITION, "member %llu is not a voter", (unsigned long long)change->id);
    default: return error_set(err, STATUS_INTERNAL, "raft: %s", raft_strerror(rv));
    }
}

static void change_fail(struct raft_node *node, struct node_change *change, int rv)
{
    struct error err = ERROR_INIT;
    change_error(change, rv, &err);
    change_end(node, change, err.code, &err);
}

static void change_done(struct raft_change *request, int status)
{
    struct node_change *change = request->data;
    struct raft_node *node = change->node;
    bool waited = node->change == change;
    change->submitted = false;
    if (!waited) { /* its caller gave up */
        change_unref(node, change);
    } else if (status == 0) {
        change_ok(node, change);
    } else {
        change_fail(node, change, status);
    }
}

static void transfer_done(struct raft_transfer *request)
{
    struct node_change *change = request->data;
    struct raft_node *node = change->node;
    struct error err = ERROR_INIT;
    bool waited = node->change == change;
    change->submitted = false;
    if (!waited) {
        change_unref(node, change);
        return;
    }
    if (node__leader_id(node) == change->id) {
        change_ok(node, change);
    } else if (node->raft.state != RAFT_LEADER || change->attempts >= NODE_TRANSFER_ATTEMPTS_MAX) {
        error_set(&err, STATUS_UNAVAILABLE, "leadership was not taken over by member %llu", (unsigned long long)change->id);
        change_end(node, change, err.code, &err);
    } /* else: again, from node__change_run */
}

static const struct raft_server *server_of(const struct raft_node *node, uint64_t id)
{
    for (unsigned i = 0; i < node->raft.configuration.n; i++) {
        if (node->raft.configuration.servers[i].id == id) {
            return &node->raft.configuration.servers[i];
        }
    }
    return NULL;
}

/* N11: libraft sends TimeoutNow before the target has everything and does not repeat it. So new proposals are held back, those in flight end, and the
 * target must have the whole log first. */
static void transfer_run(struct raft_node *node, struct node_change *change)
{
    const struct raft_server *server = server_of(node, change->id);
    raft_index match = 0;
    if (change->id == node->config.id) {
        change_ok(node, change);
        return;
    }
    if (server == NULL || server->role != RAFT_VOTER) {
        change_fail(node, change, server == NULL ? RAFT_NOTFOUND : RAFT_BADID);
        return;
    }
    node->transferring = true;
    if (node->pending.count > 0 || node->barrier_pending || node->raft.legacy.change != NULL || node->raft.transfer != NULL ||
        raft_match_index(&node->raft, change->id, &match) != 0 || match != raft_shim_last_index(&node->raft) || !node__ready(node)) {
        return; /* drains */
    }
    change->attempts++;
    change->transfer.data = change;
    change->submitted = true;
    int rv = raft_transfer(&node->raft, &change->transfer, change->id, transfer_done);
    if (rv != 0) {
        change->submitted = false;
        change_fail(node, change, rv);
    }
}

static void membership_run(struct raft_node *node, struct node_change *change)
{
    const struct raft_server *server = server_of(node, change->id);
    struct error err = ERROR_INIT;
    char address[32];
    int rv;
    if (node->raft.legacy.change != NULL || node->raft.configuration_uncommitted_index != 0) {
        return; /* an earlier change is under way */
    }
    if (change->kind == NODE_ADD ? server != NULL
                                 : change->kind == NODE_REMOVE ? server == NULL : server != NULL && server->role == (int)change->role) {
        change_ok(node, change); /* so already */
        return;
    }
    if (change->id == node->config.id) {
        error_set(&err, STATUS_FAILED_PRECONDITION, "the leader of the database cannot change its own role; transfer leadership first");
        change_end(node, change, err.code, &err);
        return;
    }
    change->change.data = change;
    change->submitted = true;
    switch (change->kind) {
    case NODE_ADD:
        node__address(change->id, address);
        rv = raft_shim_add(&node->raft, &change->change, change->id, address, change_done);
        break;
    case NODE_ASSIGN: rv = raft_shim_assign(&node->raft, &change->change, change->id, (int)change->role, change_done); break;
    case NODE_REMOVE: rv = raft_shim_remove(&node->raft, &change->change, change->id, change_done); break;
    case NODE_TRANSFER:
    default: core_panic(__FILE__, __LINE__, "change kind %d", (int)change->kind);
    }
    if (rv != 0) {
        change->submitted = false;
        if (rv != RAFT_CANTCHANGE) { /* that one: tried again until the deadline */
            change_fail(node, change, rv);
        }
    }
}

void node__change_run(struct raft_node *node)
{
    struct node_change *change = node->change;
    struct error err = ERROR_INIT;
    if (change == NULL) {
        return;
    }
    if (node__now(node) >= change->deadline_ms) {
        error_set(&err, STATUS_DEADLINE_EXCEEDED, "the change of the database members was not done within %d s",
                  (change->kind == NODE_TRANSFER ? RAFT_TRANSFER_TIMEOUT_MS : RAFT_CHANGE_TIMEOUT_MS) / 1000);
        change_end(node, change, err.code, &err);
    } else if (change->submitted) {
        return;
    } else if (node->raft.state != RAFT_LEADER) {
        change_fail(node, change, RAFT_NOTLEADER);
    } else if (change->kind == NODE_TRANSFER) {
        transfer_run(node, change);
    } else if (node__ready(node)) {
        membership_run(node, change);
    }
}

void node__change_stop(struct raft_node *node)
{
    if (node->change != NULL) {
        struct error err = ERROR_INIT;
        error_not_leader(&err, 0);
        change_end(node, node->change, err.code, &err);
    }
}

static void change_post(struct raft_node *node, void *arg)
{
    struct node_change *change = arg;
    if (!node->running || node->stopping) {
        change_fail(node, change, RAFT_SHUTDOWN);
        return;
    }
    covey_assert(node->change == NULL); /* change_mutex */
    node->change = change;
    node__change_run(node);
}

static struct timespec after_ms(int64_t ms, clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    at.tv_sec += ms / 1000;
    at.tv_nsec += (ms % 1000) * 1000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

static int change_do(struct raft_node *node, enum node_change_kind kind, uint64_t id, enum raft_node_role role, struct error *err)
{
    int64_t bound = kind == NODE_TRANSFER ? RAFT_TRANSFER_TIMEOUT_MS : RAFT_CHANGE_TIMEOUT_MS, start = time_mono_ms();
    struct timespec at = after_ms(bound, CLOCK_MONOTONIC);
    if (id == 0 || id >= RAFT_WIRE_NUMBER_MAX || (role != RAFT_NODE_STANDBY && role != RAFT_NODE_VOTER && role != RAFT_NODE_SPARE)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "raft: member id %llu or role %d is out of range", (unsigned long long)id, (int)role);
    }
    if (pthread_mutex_clocklock(&node->change_mutex, CLOCK_MONOTONIC, &at) != 0) {
        return error_set(err, STATUS_DEADLINE_EXCEEDED, "another change of the database members takes too long");
    }
    struct node_change *change = xcalloc(1, sizeof *change);
    int64_t left = bound - (time_mono_ms() - start);
    change->kind = kind;
    change->id = id;
    change->role = role;
    change->node = node;
    change->refs = 2;
    change->deadline_ms = uv_hrtime() / 1000000 + (uint64_t)(left > 0 ? left : 0); /* the loop's clock */
    node__post(node, change_post, change);
    at = after_ms(left + CHANGE_GRACE_MS, CLOCK_MONOTONIC);
    pthread_mutex_lock(&node->mutex);
    int rc = 0;
    while (!change->done && rc != ETIMEDOUT) {
        rc = pthread_cond_timedwait(&node->cond, &node->mutex, &at);
    }
    bool done = change->done;
    int status = change->status;
    if (done && err != NULL) {
        *err = change->err;
    }
    pthread_mutex_unlock(&node->mutex);
    if (!done) { /* the loop is stuck: it will find the change, but nobody waits */
        core_panic(__FILE__, __LINE__, "the raft loop did not answer for %d ms", (int)bound + CHANGE_GRACE_MS);
    }
    change_unref(node, change);
    pthread_mutex_unlock(&node->change_mutex);
    return status;
}

int raft_node_add(struct raft_node *node, uint64_t id, struct error *err)
{
    return change_do(node, NODE_ADD, id, RAFT_NODE_SPARE, err);
}

int raft_node_assign(struct raft_node *node, uint64_t id, enum raft_node_role role, struct error *err)
{
    return change_do(node, NODE_ASSIGN, id, role, err);
}

int raft_node_remove(struct raft_node *node, uint64_t id, struct error *err)
{
    return change_do(node, NODE_REMOVE, id, RAFT_NODE_SPARE, err);
}

int raft_node_transfer(struct raft_node *node, uint64_t id, struct error *err)
{
    return change_do(node, NODE_TRANSFER, id, RAFT_NODE_VOTER, err);
}
