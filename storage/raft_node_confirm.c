/* Proof of leadership for linearizable reads, without a disk write: a majority of voters says, after the read arrived, that it knows no newer term.
 * One round serves all that wait when it starts; who comes later waits for the next round, which starts when this one ends. Under load it starts a little
 * later, so that more reads share it: a round costs every voter the same, whatever it serves. Thread: the loop. */
#include "raft_node_private.h"
#include <stdlib.h>

struct confirm_post { void (*fn)(void *ud, int status, const struct error *err); void *ud; };

static void confirms_push(struct node_confirms *list, struct node_confirm *confirm)
{
    confirm->next = NULL;
    if (list->tail != NULL) {
        list->tail->next = confirm;
    } else {
        list->head = confirm;
    }
    list->tail = confirm;
}

static size_t confirms_count(const struct node_confirms *list)
{
    size_t count = 0;
    for (const struct node_confirm *confirm = list->head; confirm != NULL; confirm = confirm->next) {
        count++;
    }
    return count;
}

static void confirms_end(struct raft_node *node, struct node_confirms *list, int status, const struct error *err)
{
    struct node_confirm *confirm = list->head;
    list->head = list->tail = NULL;
    while (confirm != NULL) {
        struct node_confirm *next = confirm->next;
        node->confirm_count--;
        confirm->fn(confirm->ud, status, err);
        free(confirm);
        confirm = next;
    }
}

static void confirms_expire(struct raft_node *node, struct node_confirms *list)
{
    uint64_t now = node__now(node);
    struct node_confirms late = {NULL, NULL};
    while (list->head != NULL && list->head->deadline_ms <= now) { /* deadlines come in order */
        struct node_confirm *confirm = list->head;
        list->head = confirm->next;
        if (list->head == NULL) {
            list->tail = NULL;
        }
        confirms_push(&late, confirm);
    }
    if (late.head != NULL) {
        struct error err = ERROR_INIT;
        node__not_leader(node, &err);
        confirms_end(node, &late, err.code, &err);
    }
}

static size_t voters(const struct raft_node *node)
{
    size_t count = 0;
    for (unsigned i = 0; i < node->raft.configuration.n; i++) {
        count += node->raft.configuration.servers[i].role == RAFT_VOTER;
    }
    return count;
}

static bool acked(const struct raft_node *node, uint64_t id)
{
    for (size_t i = 0; i < node->round_ack_count; i++) {
        if (node->round_acks[i] == id) {
            return true;
        }
    }
    return false;
}

static bool round_won(const struct raft_node *node)
{
    size_t yes = 0;
    for (unsigned i = 0; i < node->raft.configuration.n; i++) {
        const struct raft_server *server = &node->raft.configuration.servers[i];
        yes += server->role == RAFT_VOTER && (server->id == node->config.id || acked(node, server->id));
    }
    return yes > voters(node) / 2;
}

static void probes_send(struct raft_node *node)
{
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__ReadProbe probe = COVEY__INTERNAL__V1__READ_PROBE__INIT;
    probe.term = node->round_term;
    probe.round = node->round;
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_READ_PROBE;
    frame.read_probe = &probe;
    node->round_sent_ms = node__now(node);
    for (unsigned i = 0; i < node->raft.configuration.n; i++) {
        const struct raft_server *server = &node->raft.configuration.servers[i];
        if (server->role == RAFT_VOTER && server->id != node->config.id && !acked(node, server->id)) {
            node->config.callbacks.send(node->config.callbacks.ud, server->id, &frame);
        }
    }
}

/* True: the next round begins later, by the timer. */
static bool round_put_off(struct raft_node *node)
{
    uint64_t since_ms = (uv_hrtime() - node->round_began_ns) / 1000000;
    if (node->round_reads < NODE_ROUND_BUSY || since_ms >= NODE_ROUND_MS_MIN) {
        return false;
    }
    if (!uv_is_active((uv_handle_t *)&node->rounds)) {
        uv_timer_start(&node->rounds, node__confirm_round, NODE_ROUND_MS_MIN - since_ms, 0);
    }
    return true;
}

static void round_start(struct raft_node *node)
{
    while (!node->round_running && node->confirm_next.head != NULL && node__ready(node) && !round_put_off(node)) {
        node->confirm_now = node->confirm_next;
        node->confirm_next = (struct node_confirms){NULL, NULL};
        node->round++;
        node->round_began_ns = uv_hrtime();
        node->round_reads = confirms_count(&node->confirm_now);
        node->round_term = node->raft.current_term;
        node->round_ack_count = 0;
        if (round_won(node)) { /* the only voter */
            struct error err = ERROR_INIT;
            confirms_end(node, &node->confirm_now, STATUS_OK, &err);
        } else {
            node->round_running = true;
            probes_send(node);
        }
    }
}

static void confirm_post(struct raft_node *node, void *arg)
{
    struct confirm_post *post = arg;
    struct error err = ERROR_INIT;
    if (!node->running || node->stopping || node->raft.state != RAFT_LEADER) {
        node__not_leader(node, &err);
        post->fn(post->ud, err.code, &err);
    } else if (node->confirm_count >= NODE_CONFIRMS_MAX) {
        error_set(&err, STATUS_RESOURCE_EXHAUSTED, "too many reads wait (limit %d)", (int)NODE_CONFIRMS_MAX);
        post->fn(post->ud, err.code, &err);
    } else {
        struct node_confirm *confirm = xcalloc(1, sizeof *confirm);
        confirm->fn = post->fn;
        confirm->ud = post->ud;
        confirm->deadline_ms = node__now(node) + NODE_CONFIRM_TIMEOUT_MS;
        node->confirm_count++;
        confirms_push(&node->confirm_next, confirm);
        round_start(node);
    }
    free(post);
}

void raft_node_confirm_leader(struct raft_node *node, void (*fn)(void *ud, int status, const struct error *err), void *ud)
{
    struct confirm_post *post = xcalloc(1, sizeof *post);
    post->fn = fn;
    post->ud = ud;
    node__post(node, confirm_post, post);
}

void node__probe(struct raft_node *node, uint64_t peer, uint64_t term, uint64_t round)
{
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__ReadProbeResult result = COVEY__INTERNAL__V1__READ_PROBE_RESULT__INIT;
    result.term = node->raft.current_term;
    result.round = round;
    result.ok = node->raft.current_term <= term;
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_READ_PROBE_RESULT;
    frame.read_probe_result = &result;
    node->config.callbacks.send(node->config.callbacks.ud, peer, &frame);
}

void node__probe_result(struct raft_node *node, uint64_t peer, uint64_t term, uint64_t round, bool ok)
{
    if (!node->round_running || !node__ready(node) || !ok || term != node->round_term || term != node->raft.current_term || round != node->round ||
        acked(node, peer)) {
        return;
    }
    if (node->round_ack_count == node->round_ack_cap) {
        node->round_ack_cap = node->round_ack_cap == 0 ? 8 : node->round_ack_cap * 2;
        node->round_acks = xrealloc(node->round_acks, node->round_ack_cap * sizeof *node->round_acks);
    }
    for (unsigned i = 0; i < node->raft.configuration.n; i++) { /* only members count, which bounds the list */
        if (node->raft.configuration.servers[i].id == peer) {
            node->round_acks[node->round_ack_count++] = peer;
            break;
        }
    }
    if (round_won(node)) {
        struct error err = ERROR_INIT;
        node->round_running = false;
        confirms_end(node, &node->confirm_now, STATUS_OK, &err);
        round_start(node);
    }
}

void node__confirm_round(uv_timer_t *timer)
{
    struct raft_node *node = timer->data;
    if (node->running && !node->stopping) {
        node->round_reads = 0;
        round_start(node);
    }
}

void node__confirm_run(struct raft_node *node)
{
    confirms_expire(node, &node->confirm_now);
    confirms_expire(node, &node->confirm_next);
    if (node->round_running && node->confirm_now.head == NULL) {
        node->round_running = false; /* nobody waits any more */
    }
    if (node->round_running && node__now(node) - node->round_sent_ms >= NODE_TICK_MS) {
        probes_send(node); /* a probe or its answer was lost */
    }
    round_start(node);
}

void node__confirm_leadership(struct raft_node *node)
{
    if (node->round_running && (node->raft.state != RAFT_LEADER || node->raft.current_term != node->round_term)) {
        struct error err = ERROR_INIT;
        node__not_leader(node, &err);
        node->round_running = false;
        confirms_end(node, &node->confirm_now, err.code, &err);
    }
    if (node->raft.state != RAFT_LEADER) {
        struct error err = ERROR_INIT;
        node__not_leader(node, &err);
        confirms_end(node, &node->confirm_next, err.code, &err);
    }
    round_start(node);
}

void node__confirm_stop(struct raft_node *node)
{
    struct error err = ERROR_INIT;
    error_not_leader(&err, 0);
    node->round_running = false;
    confirms_end(node, &node->confirm_now, err.code, &err);
    confirms_end(node, &node->confirm_next, err.code, &err);
}
