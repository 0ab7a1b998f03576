/* One Raft participant alone: first configuration, proposals, restart, snapshots, recovery. */
#include "storage/raft_node.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

enum { WAIT_MS = 10000 };

struct app { /* a state machine that keeps its entries' text */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    struct buf state;
    uint64_t applied_index, restored_index;
    unsigned applied, own, refused, unknown, begins;
    bool leader;
    int confirm; /* -1 = pending */
    unsigned snapshot_ms; /* how long writing one takes */
    bool snapshot_fails;
};

static void app_init(struct app *app)
{
    memset(app, 0, sizeof *app);
    pthread_mutex_init(&app->mutex, NULL);
    pthread_cond_init(&app->cond, NULL);
}

static void app_free(struct app *app)
{
    buf_free(&app->state);
}

#define WAIT(app, cond)                                                        \
    do {                                                                       \
        int64_t until_ = time_mono_ms() + WAIT_MS;                             \
        bool ok_ = false;                                                      \
        pthread_mutex_lock(&(app)->mutex);                                     \
        while (!(ok_ = (cond)) && time_mono_ms() < until_) {                   \
            pthread_mutex_unlock(&(app)->mutex);                               \
            usleep(2000);                                                      \
            pthread_mutex_lock(&(app)->mutex);                                 \
        }                                                                      \
        pthread_mutex_unlock(&(app)->mutex);                                   \
        if (!ok_) {                                                            \
            fail_msg("not within %d ms: %s", WAIT_MS, #cond);                  \
        }                                                                      \
    } while (0)

static void on_apply(void *ud, uint64_t index, uint64_t term, const void *data, size_t len, void *proposal)
{
    struct app *app = ud;
    pthread_mutex_lock(&app->mutex);
    covey_assert(index > app->applied_index);
    covey_assert(term > 0);
    app->applied_index = index;
    app->applied++;
    app->own += proposal != NULL;
    buf_add(&app->state, data, len);
    pthread_mutex_unlock(&app->mutex);
}

static void on_abandoned(void *ud, void *proposal, bool refused, const struct error *err)
{
    struct app *app = ud;
    pthread_mutex_lock(&app->mutex);
    *(refused ? &app->refused : &app->unknown) += 1;
    pthread_mutex_unlock(&app->mutex);
}

static int on_snapshot_begin(void *ud, void **snapshot, struct error *err)
{
    struct app *app = ud;
    struct buf *copy = xcalloc(1, sizeof *copy);
    pthread_mutex_lock(&app->mutex);
    buf_add(copy, app->state.data, app->state.len);
    app->begins++;
    pthread_mutex_unlock(&app->mutex);
    *snapshot = copy;
    return STATUS_OK;
}

static int on_snapshot_write(void *ud, void *snapshot, void **data, size_t *len, struct error *err)
{
    struct app *app = ud;
    struct buf *copy = snapshot;
    struct timespec pause = {0, (long)app->snapshot_ms * 1000000};
    nanosleep(&pause, NULL);
    *len = copy->len;
    *data = buf_take(copy);
    free(copy);
    if (app->snapshot_fails) {
        free(*data);
        return error_set(err, STATUS_INTERNAL, "test: no snapshot");
    }
    return STATUS_OK;
}

static int on_restore(void *ud, const void *data, size_t len, uint64_t index, struct error *err)
{
    struct app *app = ud;
    pthread_mutex_lock(&app->mutex);
    buf_free(&app->state);
    memset(&app->state, 0, sizeof app->state);
    buf_add(&app->state, data, len);
    app->applied_index = app->restored_index = index;
    pthread_mutex_unlock(&app->mutex);
    return STATUS_OK;
}

static void on_changed(void *ud, const struct raft_node_status *status)
{
    struct app *app = ud;
    pthread_mutex_lock(&app->mutex);
    app->leader = status->leader;
    pthread_mutex_unlock(&app->mutex);
}

static void on_send(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
}

static void on_confirm(void *ud, int status, const struct error *err)
{
    struct app *app = ud;
    pthread_mutex_lock(&app->mutex);
    app->confirm = status;
    pthread_mutex_unlock(&app->mutex);
}

static struct raft_node *start(const char *dir, struct app *app, unsigned snapshot_entries)
{
    struct raft_node_config config = {
        .dir = dir, .id = 7, .snapshot_entries = snapshot_entries,
        .callbacks = {.ud = app, .apply = on_apply, .abandoned = on_abandoned, .snapshot_begin = on_snapshot_begin,
                      .snapshot_write = on_snapshot_write, .restore = on_restore, .changed = on_changed, .send = on_send}};
    struct raft_node *node;
    struct error err = ERROR_INIT;
    if (raft_node_start(&config, &node, &err) != STATUS_OK) {
        fail_msg("start: %s", err.text);
    }
    return node;
}

static int setup(void **state)
{
    char *dir = xstrdup("/tmp/raft_node_test-XXXXXX");
    assert_non_null(mkdtemp(dir));
    *state = dir;
    return 0;
}

static int teardown(void **state)
{
    struct error err = ERROR_INIT;
    assert_int_equal(dir_remove_all(*state, &err), STATUS_OK);
    free(*state);
    return 0;
}

static void propose(struct raft_node *node, unsigned from, unsigned to)
{
    for (unsigned i = from; i < to; i++) {
        char text[17];
        snprintf(text, sizeof text, "%016u", i);
        raft_node_propose(node, text, 16, node);
    }
}

static void expect(struct app *app, unsigned count)
{
    assert_int_equal(app->state.len, (size_t)count * 16);
    for (unsigned i = 0; i < count; i++) {
        char text[17];
        snprintf(text, sizeof text, "%016u", i);
        assert_memory_equal(app->state.data + i * 16, text, 16);
    }
}

static void bootstrap(const char *dir)
{
    struct error err = ERROR_INIT;
    assert_int_equal(raft_node_bootstrap(dir, 7, &err), STATUS_OK);
}

static void test_bootstrap_twice_is_refused(void **state)
{
    struct error err = ERROR_INIT;
    bootstrap(*state);
    assert_int_equal(raft_node_bootstrap(*state, 7, &err), STATUS_FAILED_PRECONDITION);
}

static void test_propose_and_restart(void **state)
{
    struct app app;
    bootstrap(*state);
    for (unsigned round = 0; round < 3; round++) {
        app_init(&app);
        struct raft_node *node = start(*state, &app, 0);
        struct raft_node_status status;
        WAIT(&app, app.leader);
        assert_int_equal(app.applied, round * 100); /* all of the log, before it serves */
        assert_int_equal(raft_node_status(node, &status, NULL), STATUS_OK);
        assert_int_equal(status.term, 2 + round); /* G11: never the same term twice */
        raft_node_status_free(&status);
        propose(node, round * 100, round * 100 + 100);
        WAIT(&app, app.applied == round * 100 + 100);
        assert_int_equal(app.own, 100);
        raft_node_stop(node);
        assert_int_equal(app.refused + app.unknown, 0);
        expect(&app, round * 100 + 100);
        app_free(&app);
    }
}

static void test_every_proposal_ends_once_at_stop(void **state)
{
    struct app app;
    bootstrap(*state);
    app_init(&app);
    struct raft_node *node = start(*state, &app, 0);
    WAIT(&app, app.leader);
    propose(node, 0, 2000);
    raft_node_stop(node);
    assert_int_equal(app.own + app.refused + app.unknown, 2000);
    app_free(&app);
}

static void test_bad_lengths_are_refused(void **state)
{
    struct app app;
    bootstrap(*state);
    app_init(&app);
    struct raft_node *node = start(*state, &app, 0);
    char *big = xcalloc(1, RAFT_ENTRY_BYTES_MAX + 8);
    WAIT(&app, app.leader);
    raft_node_propose(node, "0123456789abc", 13, node); /* R5 */
    raft_node_propose(node, "", 0, node);
    raft_node_propose(node, big, RAFT_ENTRY_BYTES_MAX + 8, node);
    propose(node, 0, 1);
    WAIT(&app, app.applied == 1);
    assert_int_equal(app.refused, 3);
    raft_node_stop(node);
    free(big);
    app_free(&app);
}

static void snapshots(void **state, unsigned snapshot_ms)
{
    struct app app;
    struct raft_node_status status;
    bootstrap(*state);
    app_init(&app);
    app.snapshot_ms = snapshot_ms;
    struct raft_node *node = start(*state, &app, 200);
    WAIT(&app, app.leader);
    for (unsigned i = 0; i < 20; i++) {
        propose(node, i * 100, i * 100 + 100);
        WAIT(&app, app.applied == i * 100 + 100);
    }
    WAIT(&app, app.begins >= 1);
    for (int64_t until = time_mono_ms() + WAIT_MS;; usleep(5000)) {
        assert_int_equal(raft_node_status(node, &status, NULL), STATUS_OK);
        uint64_t index = status.snapshot_index;
        raft_node_status_free(&status);
        if (index > 200) {
            break;
        }
        assert_true(time_mono_ms() < until);
    }
    raft_node_stop(node);
    expect(&app, 2000);
    app_free(&app);
    app_init(&app);
    node = start(*state, &app, 200);
    assert_true(app.restored_index > 200);
    WAIT(&app, app.leader);
    raft_node_stop(node);
    expect(&app, 2000);
    app_free(&app);
}

static void test_snapshot(void **state)
{
    snapshots(state, 0);
}

/* Entries go on while the worker writes; what it writes is the state of the beginning. */
static void test_snapshot_with_slow_worker(void **state)
{
    snapshots(state, 100);
}

static void test_stop_while_worker_writes(void **state)
{
    struct app app;
    bootstrap(*state);
    app_init(&app);
    app.snapshot_ms = 300;
    struct raft_node *node = start(*state, &app, 50);
    WAIT(&app, app.leader);
    propose(node, 0, 100);
    WAIT(&app, app.begins == 1);
    raft_node_stop(node);
    app_free(&app);
    app_init(&app);
    node = start(*state, &app, 0);
    WAIT(&app, app.leader);
    raft_node_stop(node);
    expect(&app, 100);
    app_free(&app);
}

static void test_failed_snapshot_changes_nothing(void **state)
{
    struct app app;
    bootstrap(*state);
    app_init(&app);
    app.snapshot_fails = true;
    struct raft_node *node = start(*state, &app, 50);
    WAIT(&app, app.leader);
    propose(node, 0, 300);
    WAIT(&app, app.applied == 300);
    WAIT(&app, app.begins == 1); /* no storm of attempts */
    propose(node, 300, 301);
    WAIT(&app, app.applied == 301);
    assert_int_equal(app.begins, 1);
    raft_node_stop(node);
    app_free(&app);
}

static void test_confirm_leader(void **state)
{
    struct app app;
    struct error err = ERROR_INIT;
    app_init(&app);
    struct raft_node *node = start(*state, &app, 0); /* no configuration: never leads */
    app.confirm = -1;
    raft_node_confirm_leader(node, on_confirm, &app);
    WAIT(&app, app.confirm == STATUS_UNAVAILABLE);
    assert_int_equal(raft_node_add(node, 8, &err), STATUS_UNAVAILABLE);
    assert_true(err.not_leader);
    propose(node, 0, 1);
    WAIT(&app, app.refused == 1);
    raft_node_stop(node);
    bootstrap(*state);
    node = start(*state, &app, 0);
    WAIT(&app, app.leader);
    app.confirm = -1;
    raft_node_confirm_leader(node, on_confirm, &app);
    WAIT(&app, app.confirm == STATUS_OK);
    raft_node_stop(node);
    app_free(&app);
}

/* G11: the recovered member is alone and its term is beyond any that a lost leader had. */
static void test_recover(void **state)
{
    struct app app;
    struct error err = ERROR_INIT;
    uint64_t term, index, snapshot, term_after, index_after;
    struct raft_node_status status;
    bootstrap(*state);
    app_init(&app);
    struct raft_node *node = start(*state, &app, 0);
    WAIT(&app, app.leader);
    propose(node, 0, 10);
    WAIT(&app, app.applied == 10);
    assert_int_equal(raft_node_add(node, 8, &err), STATUS_OK);
    assert_int_equal(raft_node_add(node, 8, &err), STATUS_OK);
    assert_int_equal(raft_node_add(node, 9, &err), STATUS_OK);
    assert_int_equal(raft_node_remove(node, 9, &err), STATUS_OK);
    assert_int_equal(raft_node_remove(node, 9, &err), STATUS_OK);
    assert_int_equal(raft_node_remove(node, 7, &err), STATUS_FAILED_PRECONDITION);
    assert_int_equal(raft_node_transfer(node, 7, &err), STATUS_OK);
    assert_int_equal(raft_node_transfer(node, 8, &err), STATUS_FAILED_PRECONDITION);
    assert_int_equal(raft_node_status(node, &status, &err), STATUS_OK);
    assert_int_equal(status.server_count, 2);
    raft_node_status_free(&status);
    raft_node_stop(node);
    app_free(&app);
    assert_int_equal(raft_node_peek(*state, &term, &index, &snapshot, &err), STATUS_OK);
    assert_true(term >= 1 && index >= 11 && snapshot == 0);
    assert_int_equal(raft_node_peek(*state, &term_after, &index_after, &snapshot, &err), STATUS_OK);
    assert_true(term == term_after && index == index_after);
    assert_int_equal(raft_node_recover(*state, 7, &err), STATUS_OK);
    assert_int_equal(raft_node_peek(*state, &term_after, &index_after, &snapshot, &err), STATUS_OK);
    assert_true(term_after > term);
    assert_int_equal(index_after, index + 1);
    app_init(&app);
    node = start(*state, &app, 0);
    WAIT(&app, app.leader);
    assert_int_equal(raft_node_status(node, &status, &err), STATUS_OK);
    assert_int_equal(status.server_count, 1);
    assert_true(status.term > term);
    raft_node_status_free(&status);
    raft_node_stop(node);
    expect(&app, 10);
    app_free(&app);
}

/* Another configuration makes one entry of a term that no other entry has, and keeps the rest. */
static void test_reconfigure(void **state)
{
    struct error err = ERROR_INIT;
    struct raft_node_position before, after, again;
    const struct raft_node_server servers[] = {{7, RAFT_NODE_VOTER}, {8, RAFT_NODE_VOTER}, {9, RAFT_NODE_SPARE}};
    assert_int_equal(raft_node_reconfigure(*state, 7, servers, 3, &err), STATUS_FAILED_PRECONDITION);
    assert_int_equal(raft_node_bootstrap(*state, 7, &err), STATUS_OK);
    assert_int_equal(raft_node_examine(*state, &before, &err), STATUS_OK);
    assert_int_equal(raft_node_reconfigure(*state, 7, servers, 3, &err), STATUS_OK);
    assert_int_equal(raft_node_examine(*state, &after, &err), STATUS_OK);
    assert_int_equal(after.last_index, before.last_index + 1);
    assert_int_equal(after.last_term, 1 << 20);
    assert_int_equal(after.term, 1 << 20);
    assert_int_equal(raft_node_reconfigure(*state, 7, servers, 3, &err), STATUS_OK);
    assert_int_equal(raft_node_examine(*state, &again, &err), STATUS_OK);
    assert_int_equal(again.last_term, 2 << 20);
    struct app app;
    app_init(&app);
    struct raft_node *node = start(*state, &app, 0);
    struct raft_node_status status;
    assert_int_equal(raft_node_status(node, &status, &err), STATUS_OK);
    assert_int_equal(status.server_count, 3);
    assert_int_equal(status.last_term, 2 << 20);
    assert_int_equal(status.last_index, again.last_index);
    raft_node_status_free(&status);
    raft_node_stop(node);
    app_free(&app);
}

static void test_peek_of_empty_folder(void **state)
{
    struct error err = ERROR_INIT;
    uint64_t term, index, snapshot;
    assert_int_equal(raft_node_peek(*state, &term, &index, &snapshot, &err), STATUS_OK);
    assert_true(term == 0 && index == 0 && snapshot == 0);
    assert_int_equal(raft_node_recover(*state, 7, &err), STATUS_FAILED_PRECONDITION);
    assert_int_not_equal(raft_node_peek("/tmp/raft_node_test-absent", &term, &index, &snapshot, &err), STATUS_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
        TEST(test_bootstrap_twice_is_refused), TEST(test_propose_and_restart), TEST(test_every_proposal_ends_once_at_stop),
        TEST(test_bad_lengths_are_refused), TEST(test_snapshot), TEST(test_snapshot_with_slow_worker), TEST(test_stop_while_worker_writes),
        TEST(test_failed_snapshot_changes_nothing), TEST(test_confirm_leader), TEST(test_recover), TEST(test_reconfigure), TEST(test_peek_of_empty_folder),
    };
    log_init("raft_node_test", LOG_LEVEL_INFO);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
