/* Several Raft participants in one process over a network in memory that can lose frames and be cut: elections, restarts, snapshots to members that
 * lag, membership, transfer, proof of leadership. What was acknowledged must be there, once, in the same order everywhere. */
#include "storage/raft_node.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

enum { NODES_MAX = 4, WAIT_MS = 20000, ENTRY_BYTES = 24 };

/* ---- network ---- */

struct net_frame { struct net_frame *next; uint64_t from, to; size_t len; uint8_t data[]; };

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    pthread_t thread;
    struct net_frame *head, **tail;
    bool stop;
    atomic_bool cut[NODES_MAX + 1]; /* nothing from or to it */
    atomic_uint loss_percent;
    atomic_uint chunks; /* InstallSnapshot frames seen */
    unsigned seed;
} net = {.mutex = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

/* ---- members ---- */

struct member {
    uint64_t id;
    char *dir;
    pthread_mutex_t mutex;
    struct buf state;
    uint64_t applied_index;
    /* atomic: writers and tests look while the member runs, stops and starts */
    atomic_bool leader;
    _Atomic uint64_t leader_id;
    atomic_uint restored;
    pthread_rwlock_t alive; /* the network reads, start and stop write */
    _Atomic(struct raft_node *) node;
    unsigned snapshot_entries;
};

static struct member members[NODES_MAX + 1];
static char *root;

struct ticket { atomic_int outcome; uint64_t number; }; /* 0 pending, 1 applied, 2 refused, 3 unknown */

static void on_apply(void *ud, uint64_t index, uint64_t term, const void *data, size_t len, void *proposal)
{
    struct member *m = ud;
    pthread_mutex_lock(&m->mutex);
    covey_assert(index > m->applied_index && len == ENTRY_BYTES);
    m->applied_index = index;
    buf_add(&m->state, data, len);
    pthread_mutex_unlock(&m->mutex);
    if (proposal != NULL) {
        struct ticket *ticket = proposal;
        uint64_t number;
        memcpy(&number, data, sizeof number);
        covey_assert(number == ticket->number); /* the handle belongs to this very entry */
        int pending = 0;
        bool first = atomic_compare_exchange_strong(&ticket->outcome, &pending, 1);
        covey_assert(first);
    }
}

static void on_abandoned(void *ud, void *proposal, bool refused, const struct error *err)
{
    struct ticket *ticket = proposal;
    int pending = 0;
    bool first = atomic_compare_exchange_strong(&ticket->outcome, &pending, refused ? 2 : 3);
    covey_assert(first);
}

static int on_snapshot_begin(void *ud, void **snapshot, struct error *err)
{
    struct member *m = ud;
    struct buf *copy = xcalloc(1, sizeof *copy);
    pthread_mutex_lock(&m->mutex);
    buf_add(copy, m->state.data, m->state.len);
    pthread_mutex_unlock(&m->mutex);
    *snapshot = copy;
    return STATUS_OK;
}

static int on_snapshot_write(void *ud, void *snapshot, void **data, size_t *len, struct error *err)
{
    struct buf *copy = snapshot;
    *len = copy->len;
    *data = buf_take(copy);
    free(copy);
    return STATUS_OK;
}

static int on_restore(void *ud, const void *data, size_t len, uint64_t index, struct error *err)
{
    struct member *m = ud;
    pthread_mutex_lock(&m->mutex);
    buf_free(&m->state);
    memset(&m->state, 0, sizeof m->state);
    buf_add(&m->state, data, len);
    covey_assert(index > m->applied_index);
    m->applied_index = index;
    m->restored++;
    pthread_mutex_unlock(&m->mutex);
    return STATUS_OK;
}

static void on_changed(void *ud, const struct raft_node_status *status)
{
    struct member *m = ud;
    pthread_mutex_lock(&m->mutex);
    m->leader = status->leader;
    m->leader_id = status->leader_id;
    pthread_mutex_unlock(&m->mutex);
}

static void on_send(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    struct member *m = ud;
    size_t len = covey__internal__v1__raft_frame__get_packed_size(frame);
    struct net_frame *f = xmalloc(sizeof *f + len);
    f->next = NULL;
    f->from = m->id;
    f->to = peer;
    f->len = len;
    covey__internal__v1__raft_frame__pack(frame, f->data);
    pthread_mutex_lock(&net.mutex);
    if (frame->kind_case == COVEY__INTERNAL__V1__RAFT_FRAME__KIND_INSTALL_SNAPSHOT) {
        net.chunks++;
    }
    *net.tail = f;
    net.tail = &f->next;
    pthread_cond_signal(&net.cond);
    pthread_mutex_unlock(&net.mutex);
}

static void deliver(struct net_frame *f)
{
    struct member *m = f->to <= NODES_MAX ? &members[f->to] : NULL;
    if (m == NULL) {
        return;
    }
    Covey__Internal__V1__RaftFrame *frame = covey__internal__v1__raft_frame__unpack(NULL, f->len, f->data);
    covey_assert(frame != NULL);
    pthread_rwlock_rdlock(&m->alive);
    if (m->node != NULL) {
        raft_node_receive(m->node, f->from, frame);
    }
    pthread_rwlock_unlock(&m->alive);
    covey__internal__v1__raft_frame__free_unpacked(frame, NULL);
}

static void *net_run(void *arg)
{
    pthread_mutex_lock(&net.mutex);
    while (!net.stop) {
        struct net_frame *f = net.head;
        if (f == NULL) {
            pthread_cond_wait(&net.cond, &net.mutex);
            continue;
        }
        net.head = f->next;
        if (net.head == NULL) {
            net.tail = &net.head;
        }
        bool lost = net.cut[f->from] || (f->to <= NODES_MAX && net.cut[f->to]) || (unsigned)rand_r(&net.seed) % 100 < net.loss_percent;
        pthread_mutex_unlock(&net.mutex);
        if (!lost) {
            deliver(f);
        }
        free(f);
        pthread_mutex_lock(&net.mutex);
    }
    while (net.head != NULL) {
        struct net_frame *f = net.head;
        net.head = f->next;
        free(f);
    }
    pthread_mutex_unlock(&net.mutex);
    return NULL;
}

static void net_cut(uint64_t id, bool cut)
{
    pthread_mutex_lock(&net.mutex);
    net.cut[id] = cut;
    pthread_mutex_unlock(&net.mutex);
}

static void member_start(uint64_t id)
{
    struct member *m = &members[id];
    struct error err = ERROR_INIT;
    struct raft_node *node;
    struct raft_node_config config = {
        .dir = m->dir, .id = id, .snapshot_entries = m->snapshot_entries,
        .callbacks = {.ud = m, .apply = on_apply, .abandoned = on_abandoned, .snapshot_begin = on_snapshot_begin,
                      .snapshot_write = on_snapshot_write, .restore = on_restore, .changed = on_changed, .send = on_send}};
    buf_free(&m->state); /* rebuilt from snapshot and log */
    memset(&m->state, 0, sizeof m->state);
    m->applied_index = 0;
    m->leader = false;
    m->leader_id = 0;
    m->restored = 0;
    if (raft_node_start(&config, &node, &err) != STATUS_OK) {
        fail_msg("start %d: %s", (int)id, err.text);
    }
    pthread_rwlock_wrlock(&m->alive);
    m->node = node;
    pthread_rwlock_unlock(&m->alive);
}

static void member_stop(uint64_t id)
{
    struct member *m = &members[id];
    pthread_rwlock_wrlock(&m->alive);
    struct raft_node *node = m->node;
    m->node = NULL;
    pthread_rwlock_unlock(&m->alive);
    raft_node_stop(node);
    m->leader = false;
}

/* The member that leads and may serve, or 0. */
static uint64_t leader_now(void)
{
    for (uint64_t id = 1; id <= NODES_MAX; id++) {
        pthread_mutex_lock(&members[id].mutex);
        bool leads = members[id].node != NULL && members[id].leader && !net.cut[id];
        pthread_mutex_unlock(&members[id].mutex);
        if (leads) {
            return id;
        }
    }
    return 0;
}

#define WAIT(cond)                                                             \
    do {                                                                       \
        int64_t until_ = time_mono_ms() + WAIT_MS;                             \
        while (!(cond) && time_mono_ms() < until_) {                           \
            usleep(2000);                                                      \
        }                                                                      \
        if (!(cond)) {                                                         \
            fail_msg("not within %d ms: %s", WAIT_MS, #cond);                  \
        }                                                                      \
    } while (0)

static atomic_ulong numbers;

static void entry_fill(uint8_t entry[ENTRY_BYTES], struct ticket *ticket)
{
    ticket->number = atomic_fetch_add(&numbers, 1) + 1;
    memset(entry, 0x5a, ENTRY_BYTES);
    memcpy(entry, &ticket->number, sizeof ticket->number);
}

/* Proposes on a member and waits for the outcome. */
static int write_on(uint64_t id, uint64_t *number)
{
    struct ticket ticket = {.outcome = 0};
    uint8_t entry[ENTRY_BYTES];
    struct member *m = &members[id];
    int outcome = 2;
    entry_fill(entry, &ticket);
    *number = ticket.number;
    pthread_rwlock_rdlock(&m->alive);
    bool alive = m->node != NULL;
    if (alive) {
        raft_node_propose(m->node, entry, sizeof entry, &ticket);
    }
    pthread_rwlock_unlock(&m->alive);
    if (alive) {
        WAIT(atomic_load(&ticket.outcome) != 0);
        outcome = atomic_load(&ticket.outcome);
    }
    return outcome;
}

/* Many writes at once, all must succeed. */
static void write_many(unsigned count)
{
    uint64_t id = 0;
    WAIT((id = leader_now()) != 0);
    struct ticket *tickets = xcalloc(count, sizeof *tickets);
    for (unsigned i = 0; i < count; i++) {
        uint8_t entry[ENTRY_BYTES];
        entry_fill(entry, &tickets[i]);
        raft_node_propose(members[id].node, entry, sizeof entry, &tickets[i]);
        if (i % 1000 == 999) {
            WAIT(atomic_load(&tickets[i].outcome) != 0);
        }
    }
    for (unsigned i = 0; i < count; i++) {
        WAIT(atomic_load(&tickets[i].outcome) != 0);
        assert_int_equal(atomic_load(&tickets[i].outcome), 1);
    }
    free(tickets);
}

static size_t state_len(uint64_t id)
{
    pthread_mutex_lock(&members[id].mutex);
    size_t len = members[id].state.len;
    pthread_mutex_unlock(&members[id].mutex);
    return len;
}

static bool same_state(uint64_t a, uint64_t b)
{
    pthread_mutex_lock(&members[a].mutex);
    pthread_mutex_lock(&members[b].mutex);
    bool same = members[a].state.len == members[b].state.len &&
                (members[a].state.len == 0 || memcmp(members[a].state.data, members[b].state.data, members[a].state.len) == 0);
    pthread_mutex_unlock(&members[b].mutex);
    pthread_mutex_unlock(&members[a].mutex);
    return same;
}

static size_t occurrences(uint64_t id, uint64_t number)
{
    size_t count = 0;
    pthread_mutex_lock(&members[id].mutex);
    for (size_t i = 0; i < members[id].state.len; i += ENTRY_BYTES) {
        count += memcmp(members[id].state.data + i, &number, sizeof number) == 0;
    }
    pthread_mutex_unlock(&members[id].mutex);
    return count;
}

/* ---- set-up ---- */

static int setup(void **state)
{
    root = xstrdup("/tmp/raft_cluster_test-XXXXXX");
    assert_non_null(mkdtemp(root));
    net.head = NULL;
    net.tail = &net.head;
    net.stop = false;
    net.loss_percent = net.chunks = 0;
    net.seed = 1;
    memset(net.cut, 0, sizeof net.cut);
    for (uint64_t id = 1; id <= NODES_MAX; id++) {
        memset(&members[id], 0, sizeof members[id]);
        members[id].id = id;
        members[id].dir = xasprintf("%s/%d", root, (int)id);
        pthread_mutex_init(&members[id].mutex, NULL);
        pthread_rwlock_init(&members[id].alive, NULL);
    }
    return pthread_create(&net.thread, NULL, net_run, NULL);
}

static int teardown(void **state)
{
    struct error err = ERROR_INIT;
    for (uint64_t id = 1; id <= NODES_MAX; id++) {
        if (members[id].node != NULL) {
            member_stop(id);
        }
        buf_free(&members[id].state);
        free(members[id].dir);
    }
    pthread_mutex_lock(&net.mutex);
    net.stop = true;
    pthread_cond_signal(&net.cond);
    pthread_mutex_unlock(&net.mutex);
    pthread_join(net.thread, NULL);
    int rc = dir_remove_all(root, &err);
    free(root);
    return rc;
}

static void must(int status, const struct error *err)
{
    if (status != STATUS_OK) {
        fail_msg("%s", err->text);
    }
}

/* Members 1..count, all voters, led by 1. */
static void form(unsigned count, unsigned snapshot_entries)
{
    struct error err = ERROR_INIT;
    must(raft_node_bootstrap(members[1].dir, 1, &err), &err);
    for (uint64_t id = 1; id <= count; id++) {
        members[id].snapshot_entries = snapshot_entries;
        member_start(id);
    }
    WAIT(leader_now() == 1);
    for (uint64_t id = 2; id <= count; id++) {
        must(raft_node_add(members[1].node, id, &err), &err);
        must(raft_node_assign(members[1].node, id, RAFT_NODE_VOTER, &err), &err);
    }
}

static void converge(unsigned count)
{
    for (uint64_t id = 2; id <= count; id++) {
        WAIT(same_state(1, id));
    }
}

/* ---- tests ---- */

static void test_replicates(void **state)
{
    form(3, 0);
    write_many(5000);
    converge(3);
    assert_int_equal(state_len(1), 5000 * ENTRY_BYTES);
}

struct writer { pthread_t thread; atomic_bool *stop; uint64_t *acked; size_t count, cap; size_t unknown; };

static void *writer_run(void *arg)
{
    struct writer *w = arg;
    while (!atomic_load(w->stop)) {
        uint64_t id = leader_now(), number;
        int outcome = id != 0 ? write_on(id, &number) : 2;
        if (outcome == 1) {
            if (w->count == w->cap) {
                w->cap = w->cap == 0 ? 1024 : w->cap * 2;
                w->acked = xrealloc(w->acked, w->cap * sizeof *w->acked);
            }
            w->acked[w->count++] = number;
        } else {
            w->unknown += outcome == 3;
            usleep(2000);
        }
    }
    return NULL;
}

/* Four writers while members are stopped, started and cut off, and frames get lost: nothing acknowledged is lost or doubled. */
static void test_keeps_what_it_acknowledged(void **state)
{
    atomic_bool stop = false;
    struct writer writers[4] = {{0}};
    size_t acked = 0, unknown = 0;
    unsigned seed = 7;
    form(3, 300);
    net.loss_percent = 3;
    for (int i = 0; i < 4; i++) {
        writers[i].stop = &stop;
        assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_run, &writers[i]), 0);
    }
    for (unsigned round = 0; round < 8; round++) {
        uint64_t id = 1 + (uint64_t)rand_r(&seed) % 3;
        if (round % 2 == 0 && leader_now() != 0) {
            id = leader_now();
        }
        usleep(300000);
        if (round % 3 == 2) {
            net_cut(id, true);
            usleep(900000);
            net_cut(id, false);
        } else {
            member_stop(id);
            usleep(round % 4 == 1 ? 900000 : 100000);
            member_start(id);
        }
        WAIT(leader_now() != 0);
    }
    usleep(300000);
    atomic_store(&stop, true);
    for (int i = 0; i < 4; i++) {
        pthread_join(writers[i].thread, NULL);
    }
    net.loss_percent = 0;
    write_many(10);
    converge(3);
    for (int i = 0; i < 4; i++) {
        for (size_t j = 0; j < writers[i].count; j++) {
            assert_int_equal(occurrences(1, writers[i].acked[j]), 1);
        }
        acked += writers[i].count;
        unknown += writers[i].unknown;
        free(writers[i].acked);
    }
    print_message("acknowledged %zu, unknown %zu, present %zu\n", acked, unknown, state_len(1) / ENTRY_BYTES);
    assert_true(acked > 100);
}

/* A member that missed more than the log keeps gets the snapshot in chunks, once, and goes on from there. */
static void test_snapshot_to_lagging_member(void **state)
{
    form(3, 500);
    net_cut(3, true);
    write_many(60000); /* 1.4 MB: three chunks */
    write_many(3000);
    assert_true(state_len(3) < state_len(1));
    unsigned vain = net.chunks; /* sent before its silence was noticed: one transfer per snapshot taken meanwhile */
    net_cut(3, false);
    WAIT(same_state(1, 3));
    assert_true(members[3].restored >= 1);
    assert_true(net.chunks - vain >= 3 && net.chunks - vain <= 9); /* N8: no storm */
    write_many(100);
    converge(3);
    member_stop(3);
    member_start(3); /* from its own disk */
    WAIT(same_state(1, 3));
}

static void test_snapshot_survives_loss(void **state)
{
    form(3, 500);
    member_stop(3);
    write_many(60000);
    net.loss_percent = 10;
    member_start(3);
    usleep(500000);
    net.loss_percent = 0;
    WAIT(same_state(1, 3));
}

static void test_membership(void **state)
{
    struct error err = ERROR_INIT;
    struct raft_node_status status;
    form(3, 0);
    write_many(200);
    member_start(4);
    must(raft_node_add(members[1].node, 4, &err), &err);
    must(raft_node_assign(members[1].node, 4, RAFT_NODE_STANDBY, &err), &err);
    WAIT(same_state(1, 4));
    must(raft_node_assign(members[1].node, 4, RAFT_NODE_VOTER, &err), &err);
    must(raft_node_assign(members[1].node, 4, RAFT_NODE_VOTER, &err), &err);
    must(raft_node_assign(members[1].node, 3, RAFT_NODE_SPARE, &err), &err);
    must(raft_node_assign(members[1].node, 3, RAFT_NODE_STANDBY, &err), &err);
    must(raft_node_remove(members[1].node, 3, &err), &err);
    assert_int_equal(raft_node_assign(members[1].node, 3, RAFT_NODE_VOTER, &err), STATUS_NOT_FOUND);
    assert_int_equal(raft_node_add(members[2].node, 3, &err), STATUS_UNAVAILABLE);
    assert_true(err.not_leader);
    assert_int_equal(err.leader, 1);
    member_stop(3);
    write_many(200);
    assert_int_equal(raft_node_status(members[1].node, &status, &err), STATUS_OK);
    assert_int_equal(status.server_count, 3);
    raft_node_status_free(&status);
    member_stop(1); /* 2 and 4 go on */
    WAIT(leader_now() != 0);
    write_many(200);
    WAIT(same_state(2, 4));
}

static uint64_t leader_of(uint64_t id)
{
    struct error err = ERROR_INIT;
    struct raft_node_status status;
    must(raft_node_status(members[id].node, &status, &err), &err);
    uint64_t leader = status.leader_id;
    raft_node_status_free(&status);
    return leader;
}

/* A stand-by never starts an election; still it must not name a leader for ever that it hears no more. */
static void test_standby_forgets_silent_leader(void **state)
{
    struct error err = ERROR_INIT;
    form(3, 0);
    member_start(4);
    must(raft_node_add(members[1].node, 4, &err), &err);
    must(raft_node_assign(members[1].node, 4, RAFT_NODE_STANDBY, &err), &err);
    write_many(50);
    WAIT(leader_of(4) == 1);
    net_cut(4, true);
    WAIT(leader_of(4) == 0);
    net_cut(4, false);
    WAIT(leader_of(4) != 0);
}

/* N1: a member that was away while the configuration changed gets change and entries together, and must know the change when it leads. */
static void test_change_missed_by_a_member(void **state)
{
    struct error err = ERROR_INIT;
    form(3, 0);
    member_stop(2);
    write_many(50);
    member_start(4);
    must(raft_node_add(members[1].node, 4, &err), &err);
    write_many(50);
    member_start(2);
    WAIT(same_state(1, 2));
    for (int i = 0; i < 50 && raft_node_transfer(members[1].node, 2, &err) != STATUS_OK; i++) {
        usleep(100000);
    }
    WAIT(leader_now() == 2);
    must(raft_node_assign(members[2].node, 4, RAFT_NODE_STANDBY, &err), &err); /* CANTCHANGE for ever without the guard */
    must(raft_node_remove(members[2].node, 4, &err), &err);
}

/* N11: under load too, and no write gets lost or refused without need. */
static void test_transfer_under_load(void **state)
{
    struct error err = ERROR_INIT;
    atomic_bool stop = false;
    struct writer writers[2] = {{0}};
    form(3, 0);
    for (int i = 0; i < 2; i++) {
        writers[i].stop = &stop;
        assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_run, &writers[i]), 0);
    }
    for (unsigned i = 0; i < 10; i++) {
        uint64_t from = 0, to;
        WAIT((from = leader_now()) != 0);
        to = from % 3 + 1;
        must(raft_node_transfer(members[from].node, to, &err), &err);
        WAIT(leader_now() == to);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) {
        pthread_join(writers[i].thread, NULL);
        assert_int_equal(writers[i].unknown, 0);
        free(writers[i].acked);
    }
    write_many(1);
    converge(3);
}

static void on_confirm(void *ud, int status, const struct error *err)
{
    atomic_store((atomic_int *)ud, status);
}

static int confirm(uint64_t id)
{
    atomic_int result = -1;
    raft_node_confirm_leader(members[id].node, on_confirm, &result);
    WAIT(atomic_load(&result) != -1);
    return atomic_load(&result);
}

static void test_confirm_leader(void **state)
{
    atomic_int results[200];
    form(3, 0);
    assert_int_equal(confirm(1), STATUS_OK);
    assert_int_equal(confirm(2), STATUS_UNAVAILABLE);
    for (int i = 0; i < 200; i++) { /* shared rounds */
        results[i] = -1;
        raft_node_confirm_leader(members[1].node, on_confirm, &results[i]);
    }
    for (int i = 0; i < 200; i++) {
        WAIT(atomic_load(&results[i]) == STATUS_OK);
    }
    net_cut(1, true); /* it still believes that it leads */
    assert_int_equal(confirm(1), STATUS_UNAVAILABLE);
    WAIT(leader_now() > 1);
    assert_int_equal(confirm(leader_now()), STATUS_OK);
    net_cut(1, false);
    WAIT(members[1].leader_id > 1);
    assert_int_equal(confirm(1), STATUS_UNAVAILABLE);
}

/* Own proposals of a leader that lost its place end as unknown, and the others' entries come without a handle. */
static void test_cut_leader_gives_up_its_proposals(void **state)
{
    uint64_t number;
    struct ticket lost[20];
    form(3, 0);
    write_many(10);
    net_cut(1, true);
    for (int i = 0; i < 20; i++) {
        uint8_t entry[ENTRY_BYTES];
        memset(&lost[i], 0, sizeof lost[i]);
        entry_fill(entry, &lost[i]);
        raft_node_propose(members[1].node, entry, sizeof entry, &lost[i]);
    }
    WAIT(leader_now() > 1);
    assert_int_equal(write_on(leader_now(), &number), 1);
    write_many(50);
    net_cut(1, false);
    converge(3);
    for (int i = 0; i < 20; i++) {
        WAIT(atomic_load(&lost[i].outcome) != 0);
        assert_int_not_equal(atomic_load(&lost[i].outcome), 1);
        assert_int_equal(occurrences(1, lost[i].number), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
        TEST(test_replicates), TEST(test_confirm_leader), TEST(test_cut_leader_gives_up_its_proposals), TEST(test_membership),
        TEST(test_change_missed_by_a_member), TEST(test_standby_forgets_silent_leader), TEST(test_transfer_under_load), TEST(test_snapshot_to_lagging_member),
        TEST(test_snapshot_survives_loss), TEST(test_keeps_what_it_acknowledged),
    };
    log_init("raft_cluster_test", LOG_LEVEL_INFO);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
