/* The Raft participant: its thread, hand-over from other threads, proposals and their outcome, status. See raft_node.h and raft_node_private.h.
 *
 * Own entries are known by (index, term): libraft tells a request's index at once, and entries are applied in order, so the first pending proposal is
 * compared with each entry that is applied. Whatever cannot become true any more is abandoned before a foreign entry is applied. */
#include "raft_node_private.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

uint64_t node__now(struct raft_node *node)
{
    return uv_now(&node->loop);
}

void node__address(uint64_t id, char out[32])
{
    snprintf(out, 32, "member-%llu", (unsigned long long)id);
}

/* ---- hand-over ---- */

void node__post(struct raft_node *node, void (*fn)(struct raft_node *node, void *arg), void *arg)
{
    struct node_post *post = xcalloc(1, sizeof *post);
    post->fn = fn;
    post->arg = arg;
    pthread_mutex_lock(&node->mutex);
    bool was_empty = node->posts == NULL;
    if (was_empty) {
        node->posts = post;
    } else {
        node->posts_tail->next = post;
    }
    node->posts_tail = post;
    if (was_empty && !node->closed) {
        uv_async_send(&node->async);
    }
    pthread_mutex_unlock(&node->mutex);
}

static void run_posts(struct raft_node *node)
{
    pthread_mutex_lock(&node->mutex);
    struct node_post *post = node->posts;
    node->posts = node->posts_tail = NULL;
    pthread_mutex_unlock(&node->mutex);
    while (post != NULL) {
        struct node_post *next = post->next;
        post->fn(node, post->arg);
        free(post);
        post = next;
    }
}

static void async_cb(uv_async_t *async)
{
    run_posts(async->data);
}

/* ---- leadership ---- */

bool node__ready(const struct raft_node *node)
{
    return !node->stopping && node->running && node->raft.state == RAFT_LEADER && node->ready_term != 0 &&
           node->ready_term == node->raft.current_term;
}

static bool silent(struct raft_node *node)
{
    return node__now(node) - node->heard_ms > NODE_LEADER_SILENT_MS;
}

uint64_t node__leader_id(struct raft_node *node)
{
    raft_id id = 0;
    const char *address;
    if (node->running && !node->stopping) {
        raft_leader(&node->raft, &id, &address);
    }
    /* A stand-by never starts an election and so never notices that its leader is gone; nobody tells a spare that was one. */
    return id != node->config.id && silent(node) ? 0 : id;
}

/* What leaders alone send. */
static bool is_from_leader(const struct raft_wire_in *in)
{
    return in->kind == RAFT_WIRE_PROBE || in->kind == RAFT_WIRE_CHUNK ||
           (in->kind == RAFT_WIRE_MESSAGE && (in->message.type == RAFT_APPEND_ENTRIES || in->message.type == RAFT_INSTALL_SNAPSHOT));
}

/* A member that lost its role is sent nothing any more, not even the entry that says so: it would ask for votes for ever. */
static bool rests(struct raft_node *node)
{
    return node->told_spare && node->raft.state != RAFT_LEADER && silent(node);
}

static void told_spare_post(struct raft_node *node, void *arg)
{
    node->told_spare = *(bool *)arg;
    free(arg);
}

void raft_node_told_spare(struct raft_node *node, bool spare)
{
    bool *arg = xmalloc(sizeof *arg);
    *arg = spare;
    node__post(node, told_spare_post, arg);
}

int node__not_leader(struct raft_node *node, struct error *err)
{
    uint64_t leader = node__leader_id(node);
    return error_not_leader(err, leader == node->config.id ? 0 : leader);
}

static void barrier_done(struct raft_barrier *barrier, int status)
{
    struct raft_node *node = barrier->data;
    node->barrier_pending = false;
    if (status == 0 && node->raft.state == RAFT_LEADER && node->raft.current_term == node->barrier_term) {
        node->ready_term = node->barrier_term;
    } else {
        node->barrier_term = 0; /* tried again while it leads */
    }
}

/* A new leader may only serve when it has applied everything from before its term. */
static void barrier_submit(struct raft_node *node)
{
    if (node->stopping || node->raft.state != RAFT_LEADER || node->barrier_pending || node->barrier_term == node->raft.current_term) {
        return;
    }
    node->barrier.data = node;
    node->barrier_term = node->raft.current_term;
    node->barrier_pending = true;
    int rv = raft_barrier(&node->raft, &node->barrier, barrier_done);
    if (rv != 0) { /* no space, or leadership is being handed over: again with the next tick */
        node->barrier_pending = false;
        node->barrier_term = 0;
        log_debug("raft.barrier", "error=\"%s\"", raft_strerror(rv));
    }
}

/* ---- proposals ---- */

static void proposals_push(struct node_proposals *list, struct node_proposal *proposal)
{
    proposal->next = NULL;
    proposal->prev = list->tail;
    if (list->tail != NULL) {
        list->tail->next = proposal;
    } else {
        list->head = proposal;
    }
    list->tail = proposal;
    list->count++;
}

static void proposals_remove(struct node_proposals *list, struct node_proposal *proposal)
{
    *(proposal->prev != NULL ? &proposal->prev->next : &list->head) = proposal->next;
    *(proposal->next != NULL ? &proposal->next->prev : &list->tail) = proposal->prev;
    list->count--;
}

static void proposal_abandon(struct raft_node *node, struct node_proposal *proposal, bool refused, const struct error *err)
{
    if (!proposal->settled) {
        proposal->settled = true;
        node->config.callbacks.abandoned(node->config.callbacks.ud, proposal->handle, refused, err);
    }
}

static void proposal_refuse(struct raft_node *node, struct node_proposal *proposal, const struct error *err)
{
    proposal_abandon(node, proposal, true, err);
    free(proposal);
}

static void proposal_unknown(struct raft_node *node, struct node_proposal *proposal)
{
    struct error err = ERROR_INIT;
    error_set(&err, STATUS_UNKNOWN, "leadership was lost while the write was in flight; it may or may not be done");
    proposal_abandon(node, proposal, false, &err);
}

static void apply_done(struct raft_apply *request, int status, void *result)
{
    struct node_proposal *proposal = request->data;
    struct raft_node *node = proposal->node;
    if (!proposal->settled) {
        if (status == 0) {
            core_panic(__FILE__, __LINE__, "entry %llu was completed but not applied", (unsigned long long)proposal->index);
        }
        proposal_unknown(node, proposal);
    }
    proposals_remove(&node->pending, proposal);
    free(proposal);
}

static void proposal_submit(struct raft_node *node, struct node_proposal *proposal)
{
    struct error err = ERROR_INIT;
    if (!node__ready(node)) {
        node__not_leader(node, &err);
        proposal_refuse(node, proposal, &err);
        return;
    }
    proposal->request.data = proposal;
    proposal->node = node;
    int rv = raft_shim_apply(&node->raft, &proposal->request, proposal->data, proposal->len, apply_done);
    if (rv == 0) {
        proposal->index = proposal->request.index;
        proposal->term = node->raft.current_term;
        proposals_push(&node->pending, proposal);
        return;
    }
    switch (rv) {
    case RAFT_NOTLEADER: node__not_leader(node, &err); break;
    case RAFT_NOSPACE: error_set(&err, STATUS_RESOURCE_EXHAUSTED, "no space left on the disks of a majority of the database members"); break;
    case RAFT_INVALID:
        error_set(&err, STATUS_INVALID_ARGUMENT, "entry of %zu bytes: must be a positive multiple of 8, at most %d", proposal->len,
                  (int)RAFT_ENTRY_BYTES_MAX);
        break;
    default: error_set(&err, STATUS_INTERNAL, "raft: %s", raft_strerror(rv)); break;
    }
    proposal_refuse(node, proposal, &err);
}

void node__submit_held(struct raft_node *node)
{
    while (node->held.head != NULL && !node->transferring) {
        struct node_proposal *proposal = node->held.head;
        proposals_remove(&node->held, proposal);
        proposal_submit(node, proposal);
    }
}

static void propose_post(struct raft_node *node, void *arg)
{
    struct node_proposal *proposal = arg;
    if (!node->stopping && node->pending.count + node->held.count >= NODE_PROPOSALS_MAX) {
        struct error err = ERROR_INIT;
        error_set(&err, STATUS_RESOURCE_EXHAUSTED, "too many writes in flight (limit %d)", (int)NODE_PROPOSALS_MAX);
        proposal_refuse(node, proposal, &err);
    } else if (!node->stopping && node->transferring) {
        proposals_push(&node->held, proposal); /* N11: until the transfer ends, one way or the other */
    } else {
        proposal_submit(node, proposal);
    }
}

void raft_node_propose(struct raft_node *node, const void *data, size_t len, void *handle)
{
    bool fits = len <= RAFT_ENTRY_BYTES_MAX; /* else only the length goes on, to be refused */
    struct node_proposal *proposal = xcalloc(1, sizeof *proposal + (fits ? len : 0));
    proposal->handle = handle;
    proposal->len = len;
    if (fits) {
        memcpy(proposal->data, data, len);
    }
    node__post(node, propose_post, proposal);
}

/* ---- state machine ---- */

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    struct raft_node *node = fsm->data;
    uint64_t index = node->raft.last_applied + 1;
    uint64_t term = raft_shim_term_of(&node->raft, index);
    void *handle = NULL;
    struct node_proposal *head = node->pending.head;
    while (head != NULL && head->settled) { /* waits for its callback only */
        head = head->next;
    }
    if (head != NULL && head->index == index && head->term == term) {
        handle = head->handle;
        head->settled = true;
    } else if (head != NULL && (head->index <= index || node->raft.state != RAFT_LEADER)) {
        for (; head != NULL; head = head->next) {
            proposal_unknown(node, head);
        }
    }
    *result = NULL;
    covey_assert(term != 0);
    node->config.callbacks.apply(node->config.callbacks.ud, index, term, buf->base, buf->len, handle);
    return 0;
}

static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    struct raft_node *node = fsm->data;
    struct error err = ERROR_INIT;
    void *snapshot = NULL;
    int rc = node->config.callbacks.snapshot_begin(node->config.callbacks.ud, &snapshot, &err);
    if (rc != STATUS_OK) {
        log_error("raft.snapshot.begin", "error=\"%s\"", err.text);
        raft_shim_snapshot_failed(&node->shim);
        return RAFT_BUSY;
    }
    raft_shim_snapshot(&node->shim, snapshot, bufs, n_bufs);
    return 0;
}

static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    struct raft_node *node = fsm->data;
    struct error err = ERROR_INIT;
    uint64_t index = node->shim.restore_index;
    for (struct node_proposal *p = node->pending.head; p != NULL; p = p->next) {
        proposal_unknown(node, p); /* their place is taken by what the snapshot holds */
    }
    int rc = node->config.callbacks.restore(node->config.callbacks.ud, buf->base, buf->len, index, &err);
    if (rc != STATUS_OK) { /* N12: libraft would go on without the state */
        core_panic(__FILE__, __LINE__, "snapshot at index %llu cannot be restored: %s", (unsigned long long)index, err.text);
    }
    raft_free(buf->base); /* ours by libraft's contract */
    return 0;
}

static int hook_snapshot_write(void *ud, void *snapshot, void **data, size_t *len, struct error *err)
{
    struct raft_node *node = ud;
    return node->config.callbacks.snapshot_write(node->config.callbacks.ud, snapshot, data, len, err);
}

static void pace_cb(uv_timer_t *timer)
{
    struct raft_node *node = timer->data;
    if (!raft_shim_transfer(&node->shim)) {
        uv_timer_stop(timer);
        node->pace_running = false;
    }
}

static void hook_send(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    struct raft_node *node = ud;
    node->config.callbacks.send(node->config.callbacks.ud, peer, frame);
}

static uint64_t hook_queued(void *ud, uint64_t peer)
{
    struct raft_node *node = ud;
    return node->config.callbacks.queued(node->config.callbacks.ud, peer);
}

/* ---- status ---- */

static enum raft_node_role role_of(struct raft_node *node, const struct raft_server *server)
{
    return server->id == node->config.id && rests(node) ? RAFT_NODE_SPARE : (enum raft_node_role)server->role;
}

static bool status_servers(struct raft_node *node)
{
    const struct raft_configuration *configuration = &node->raft.configuration;
    bool same = node->status.server_count == configuration->n;
    for (unsigned i = 0; same && i < configuration->n; i++) {
        same = node->status.servers[i].id == configuration->servers[i].id && node->status.servers[i].role == role_of(node, &configuration->servers[i]);
    }
    if (same) {
        return false;
    }
    free(node->status.servers);
    node->status.servers = xcalloc(configuration->n + 1, sizeof *node->status.servers);
    node->status.server_count = configuration->n;
    for (unsigned i = 0; i < configuration->n; i++) {
        node->status.servers[i].id = configuration->servers[i].id;
        node->status.servers[i].role = role_of(node, &configuration->servers[i]);
    }
    return true;
}

/* Whether the configuration changed. */
static bool status_update(struct raft_node *node)
{
    pthread_mutex_lock(&node->mutex);
    node->status.leader = node__ready(node);
    node->status.term = node->raft.current_term;
    node->status.leader_id = node__leader_id(node);
    node->status.last_index = raft_shim_last_index(&node->raft);
    node->status.last_term = raft_shim_term_of(&node->raft, node->status.last_index);
    node->status.commit_index = node->raft.commit_index;
    node->status.heard_commit = node->shim.heard_commit;
    node->status.applied_index = node->raft.last_applied;
    node->status.snapshot_index = node->raft.trail.snapshot.index;
    node->status.log_bytes = node->shim.sizes.total;
    bool moved = status_servers(node);
    pthread_mutex_unlock(&node->mutex);
    return moved;
}

static void status_copy(const struct raft_node_status *from, struct raft_node_status *to)
{
    *to = *from;
    to->servers = xcalloc(from->server_count + 1, sizeof *to->servers);
    if (from->server_count > 0) {
        memcpy(to->servers, from->servers, from->server_count * sizeof *to->servers);
    }
}

int raft_node_status(struct raft_node *node, struct raft_node_status *out, struct error *err)
{
    pthread_mutex_lock(&node->mutex);
    status_copy(&node->status, out);
    pthread_mutex_unlock(&node->mutex);
    return STATUS_OK;
}

void raft_node_status_free(struct raft_node_status *status)
{
    free(status->servers);
    memset(status, 0, sizeof *status);
}

/* After whatever happened in this loop iteration: new leadership, callbacks, work that may go on. */
static void node_poll(struct raft_node *node)
{
    if (!node->running || node->stopping) {
        return;
    }
    barrier_submit(node);
    raft_shim_poll(&node->shim);
    node__change_run(node);
    bool moved = status_update(node);
    bool leader = node->raft.state == RAFT_LEADER, ready = node__ready(node);
    uint64_t term = node->raft.current_term, leader_id = node__leader_id(node);
    if (moved || leader != node->was_leader || ready != node->was_ready || term != node->was_term || leader_id != node->was_leader_id) {
        if (leader_id != node->was_leader_id || term != node->was_term) {
            log_info("raft.leader", "member=%llu term=%llu leader=%llu", (unsigned long long)node->config.id, (unsigned long long)term,
                     (unsigned long long)leader_id);
        }
        node->was_leader = leader;
        node->was_ready = ready;
        node->was_term = term;
        node->was_leader_id = leader_id;
        node__confirm_leadership(node);
        if (node->config.callbacks.changed != NULL) {
            node->config.callbacks.changed(node->config.callbacks.ud, &node->status); /* only this thread writes it */
        }
    }
    if (!node->pace_running && raft_shim_transfer(&node->shim)) {
        node->pace_running = true;
        uv_timer_start(&node->pace, pace_cb, RAFT_INSTALL_PACE_MS, RAFT_INSTALL_PACE_MS);
    }
}

static void ticker_cb(uv_timer_t *timer)
{
    struct raft_node *node = timer->data;
    if (node->running && !node->stopping) {
        node__confirm_run(node);
        node__change_run(node);
    }
}

/* Whether followers have something to learn: then they hear from the leader often. */
static bool is_busy(const struct raft_node *node)
{
    return node->raft.commit_index != node->beat_commit || raft_shim_last_index(&node->raft) != node->raft.commit_index || node->change != NULL ||
           node->pace_running || !node__ready(node);
}

static void beat_cb(uv_timer_t *timer)
{
    struct raft_node *node = timer->data;
    if (node->running && !node->stopping) {
        unsigned interval_ms = is_busy(node) ? RAFT_HEARTBEAT_MS : RAFT_IDLE_HEARTBEAT_MS;
        node->beat_commit = node->raft.commit_index;
        node->beat_due = node__now(node) + interval_ms;
        if (!rests(node)) {
            raft_shim_tick(&node->shim, interval_ms);
        }
    }
}

/* Timers run only while somebody waits for them: each wake-up of an idle member costs. */
static void timers_arm(struct raft_node *node)
{
    uint64_t now = node__now(node);
    if (node->confirm_count > 0 || node->change != NULL) {
        if (!uv_is_active((uv_handle_t *)&node->ticker)) {
            uv_timer_start(&node->ticker, ticker_cb, NODE_TICK_MS, NODE_TICK_MS);
        }
    } else {
        uv_timer_stop(&node->ticker);
    }
    uint64_t due = rests(node) ? now + RAFT_SHIM_REST_MS : raft_shim_due(&node->shim);
    if (node->raft.state == RAFT_LEADER) {
        uint64_t soon = now + (is_busy(node) ? RAFT_HEARTBEAT_MS : RAFT_IDLE_HEARTBEAT_MS);
        due = node->beat_due < soon ? node->beat_due : soon;
    }
    if (!uv_is_active((uv_handle_t *)&node->beat) || due < node->beat_armed) {
        node->beat_armed = due;
        uv_timer_start(&node->beat, beat_cb, due > now + NODE_BEAT_MS_MIN ? due - now : NODE_BEAT_MS_MIN, 0);
    }
}

static void prepare_cb(uv_prepare_t *prepare)
{
    struct raft_node *node = prepare->data;
    node_poll(node);
    if (node->running && !node->stopping) {
        timers_arm(node);
    }
}

/* ---- frames ---- */

struct inbound { uint64_t peer; size_t bytes; struct raft_wire_in in; };

static void receive_post(struct raft_node *node, void *arg)
{
    struct inbound *inbound = arg;
    pthread_mutex_lock(&node->mutex);
    node->inbound_bytes -= inbound->bytes;
    pthread_mutex_unlock(&node->mutex);
    if (is_from_leader(&inbound->in)) {
        node->heard_ms = node__now(node);
    }
    if (!node->running || node->stopping) {
        raft_wire_in_clear(&inbound->in);
    } else if (inbound->in.kind == RAFT_WIRE_PROBE) {
        node__probe(node, inbound->peer, inbound->in.probe.term, inbound->in.probe.round);
    } else if (inbound->in.kind == RAFT_WIRE_PROBE_RESULT) {
        node__probe_result(node, inbound->peer, inbound->in.probe.term, inbound->in.probe.round, inbound->in.probe.ok);
    } else {
        raft_shim_receive(&node->shim, inbound->peer, &inbound->in);
    }
    free(inbound);
}

void raft_node_receive(struct raft_node *node, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    struct inbound *inbound = xcalloc(1, sizeof *inbound);
    struct error err = ERROR_INIT;
    if (raft_wire_in_set(&inbound->in, peer, frame, &err) != STATUS_OK) {
        log_warn("raft.frame.bad", "peer=%llu error=\"%s\"", (unsigned long long)peer, err.text);
        free(inbound);
        return;
    }
    inbound->peer = peer;
    inbound->bytes = inbound->in.bytes;
    pthread_mutex_lock(&node->mutex);
    bool full = node->inbound_bytes + inbound->bytes > NODE_INBOUND_BYTES_MAX;
    if (!full) {
        node->inbound_bytes += inbound->bytes;
    }
    pthread_mutex_unlock(&node->mutex);
    if (full) {
        log_warn("raft.frame.dropped", "peer=%llu limit=%d", (unsigned long long)peer, (int)NODE_INBOUND_BYTES_MAX);
        raft_wire_in_clear(&inbound->in);
        free(inbound);
        return;
    }
    node__post(node, receive_post, inbound);
}

struct lost_post { uint64_t peer; };

static void lost_post_run(struct raft_node *node, void *arg)
{
    struct lost_post *post = arg;
    if (node->running && !node->stopping) {
        raft_shim_lost(&node->shim, post->peer);
    }
    free(post);
}

void raft_node_lost(struct raft_node *node, uint64_t peer)
{
    struct lost_post *post = xcalloc(1, sizeof *post);
    post->peer = peer;
    node__post(node, lost_post_run, post);
}

struct plain_post { void (*fn)(void *ud); void *ud; };

static void plain_post_run(struct raft_node *node, void *arg)
{
    struct plain_post *post = arg;
    post->fn(post->ud);
    free(post);
}

void raft_node_post(struct raft_node *node, void (*fn)(void *ud), void *ud)
{
    struct plain_post *post = xcalloc(1, sizeof *post);
    post->fn = fn;
    post->ud = ud;
    node__post(node, plain_post_run, post);
}

/* ---- life ---- */

static void closed_cb(struct raft *raft)
{
    struct raft_shim *shim = raft->data;
    struct raft_node *node = shim->hooks.ud;
    node->running = false;
}

/* Ends libraft and raft_uv; the loop runs until that is through. */
static void raft_down(struct raft_node *node)
{
    raft_close(&node->raft, closed_cb);
    while (node->running) {
        uv_run(&node->loop, UV_RUN_ONCE);
    }
    raft_uv_close(&node->io);
    raft_shim_free(&node->shim);
}

static int raft_up(struct raft_node *node, int *rv, struct error *err)
{
    struct raft_shim_hooks hooks = {.ud = node, .send = hook_send, .snapshot_write = hook_snapshot_write,
                                    .queued = node->config.callbacks.queued != NULL ? hook_queued : NULL};
    memset(&node->raft, 0, sizeof node->raft);
    memset(&node->io, 0, sizeof node->io);
    node__null_transport(&node->transport);
    *rv = raft_uv_init(&node->io, &node->loop, node->dir, &node->transport);
    if (*rv != 0) {
        return error_set(err, STATUS_INTERNAL, "raft folder %s: %s: %s", node->dir, raft_strerror(*rv), node->io.errmsg);
    }
    raft_shim_attach(&node->shim, &node->raft, &node->io, &node->loop, &hooks,
                     node->config.snapshot_bytes != 0 ? node->config.snapshot_bytes : NODE_SNAPSHOT_BYTES_DEFAULT,
                     node->config.snapshot_entries != 0 ? node->config.snapshot_entries : NODE_SNAPSHOT_ENTRIES_DEFAULT);
    raft_uv_set_auto_recovery(&node->io, false); /* G14: a corrupt segment is not to be forgotten silently */
    raft_uv_set_disk_retry(&node->io, NODE_DISK_RETRY_MS);
    raft_uv_set_tracer(&node->io, &node->shim.uv_tracer);
    node->fsm = (struct raft_fsm){.version = 1, .data = node, .apply = fsm_apply, .snapshot = fsm_snapshot, .restore = fsm_restore};
    *rv = raft_init(&node->raft, &node->io, &node->fsm, node->config.id, node->address);
    if (*rv != 0) {
        int rc = error_set(err, STATUS_INTERNAL, "raft folder %s: %s: %s", node->dir, raft_strerror(*rv), node->raft.errmsg);
        raft_uv_close(&node->io);
        raft_shim_free(&node->shim);
        return rc;
    }
    raft_shim_configure(&node->shim);
    node->running = true;
    *rv = raft_start(&node->raft);
    if (*rv != 0) {
        int rc = error_set(err, *rv == RAFT_CORRUPT ? STATUS_DATA_LOSS : STATUS_INTERNAL, "raft log in %s: %s: %s", node->dir,
                           raft_strerror(*rv), node->raft.errmsg);
        node->shim.closing = true;
        raft_down(node);
        return rc;
    }
    return STATUS_OK;
}

static void handle_closed(uv_handle_t *handle)
{
}

static void handles_close(struct raft_node *node)
{
    uv_close((uv_handle_t *)&node->async, handle_closed);
    uv_close((uv_handle_t *)&node->prepare, handle_closed);
    uv_close((uv_handle_t *)&node->pace, handle_closed);
    uv_close((uv_handle_t *)&node->ticker, handle_closed);
    uv_close((uv_handle_t *)&node->beat, handle_closed);
    uv_close((uv_handle_t *)&node->rounds, handle_closed);
}

static void stop_shim_done(void *ud)
{
    struct raft_node *node = ud;
    uv_stop(&node->loop);
}

static void stop_post(struct raft_node *node, void *arg)
{
    struct error err = ERROR_INIT;
    node->stopping = true;
    node->transferring = false;
    node__change_stop(node);
    node__confirm_stop(node);
    error_set(&err, STATUS_UNAVAILABLE, "the database is shutting down");
    while (node->held.head != NULL) {
        struct node_proposal *proposal = node->held.head;
        proposals_remove(&node->held, proposal);
        proposal_refuse(node, proposal, &err);
    }
    raft_shim_stop(&node->shim, stop_shim_done, node);
}

static void started_set(struct raft_node *node, int status, const struct error *err)
{
    pthread_mutex_lock(&node->mutex);
    node->start_status = status;
    node->start_err = *err;
    node->started = true;
    pthread_cond_broadcast(&node->cond);
    pthread_mutex_unlock(&node->mutex);
}

static void *node_thread(void *arg)
{
    struct raft_node *node = arg;
    struct error err = ERROR_INIT;
    int status = STATUS_OK, rv = 0;
    pthread_setname_np(pthread_self(), "raft");
    for (int attempt = 0; attempt < NODE_START_ATTEMPTS_MAX; attempt++) {
        status = raft_up(node, &rv, &err);
        if (status == STATUS_OK || rv != RAFT_CORRUPT) {
            break; /* G13: a crash between an install and the removal of old segments looks corrupt once */
        }
        log_warn("raft.corrupt", "attempt=%d error=\"%s\"", attempt + 1, err.text);
    }
    if (status == STATUS_OK) {
        uv_prepare_start(&node->prepare, prepare_cb);
        status_update(node);
    }
    started_set(node, status, &err);
    if (status == STATUS_OK) {
        uv_run(&node->loop, UV_RUN_DEFAULT); /* until stop */
        raft_down(node);
    }
    pthread_mutex_lock(&node->mutex);
    node->closed = true;
    pthread_mutex_unlock(&node->mutex);
    node->stopping = true;
    run_posts(node);
    handles_close(node);
    while (uv_run(&node->loop, UV_RUN_DEFAULT) != 0) {
    }
    run_posts(node);
    int closed = uv_loop_close(&node->loop);
    covey_assert(closed == 0);
    return NULL;
}

static void node_free(struct raft_node *node)
{
    pthread_mutex_destroy(&node->mutex);
    pthread_mutex_destroy(&node->change_mutex);
    pthread_cond_destroy(&node->cond);
    free(node->status.servers);
    free(node->round_acks);
    free(node->dir);
    free(node);
}

static struct raft_node *node_new(const struct raft_node_config *config)
{
    struct raft_node *node = xcalloc(1, sizeof *node);
    pthread_condattr_t attr;
    node->config = *config;
    node->dir = xstrdup(config->dir);
    node->config.dir = node->dir;
    node__address(config->id, node->address);
    pthread_mutex_init(&node->mutex, NULL);
    pthread_mutex_init(&node->change_mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&node->cond, &attr);
    pthread_condattr_destroy(&attr);
    if (uv_loop_init(&node->loop) != 0 || uv_async_init(&node->loop, &node->async, async_cb) != 0) {
        core_oom(); /* descriptors or memory: nothing works without */
    }
    uv_prepare_init(&node->loop, &node->prepare);
    uv_timer_init(&node->loop, &node->pace);
    uv_timer_init(&node->loop, &node->ticker);
    uv_timer_init(&node->loop, &node->beat);
    uv_timer_init(&node->loop, &node->rounds);
    node->async.data = node->prepare.data = node->pace.data = node->ticker.data = node->beat.data = node->rounds.data = node;
    return node;
}

int raft_node_start(const struct raft_node_config *config, struct raft_node **out, struct error *err)
{
    *out = NULL;
    if (config->id == 0 || config->id >= RAFT_WIRE_NUMBER_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "raft: member id %llu is out of range", (unsigned long long)config->id);
    }
    int rc = dir_make(config->dir, 0700, err);
    if (rc != STATUS_OK) {
        return rc;
    }
    struct raft_node *node = node_new(config);
    *out = node; /* callbacks of the replay may want it */
    if (pthread_create(&node->thread, NULL, node_thread, node) != 0) {
        core_oom();
    }
    pthread_mutex_lock(&node->mutex);
    while (!node->started) {
        pthread_cond_wait(&node->cond, &node->mutex);
    }
    int status = node->start_status;
    if (status != STATUS_OK && err != NULL) {
        *err = node->start_err;
    }
    pthread_mutex_unlock(&node->mutex);
    if (status != STATUS_OK) {
        pthread_join(node->thread, NULL);
        node_free(node);
        *out = NULL;
    }
    return status;
}

void raft_node_stop(struct raft_node *node)
{
    if (node == NULL) {
        return;
    }
    node__post(node, stop_post, NULL);
    pthread_join(node->thread, NULL);
    node_free(node);
}
