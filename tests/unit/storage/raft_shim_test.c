/* The guards around libraft, each provoked with a fake raft_io: nothing touches a disk or a network, time is a variable. */
#include "storage/raft_shim.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

enum { FRAMES_MAX = 256, PENDING_MAX = 64 };

static struct fake {
    uv_loop_t loop;
    struct raft raft;
    struct raft_io io;
    struct raft_fsm fsm;
    struct raft_shim shim;
    raft_time now;
    raft_io_tick_cb tick;
    /* what load gives */
    raft_term term;
    struct raft_configuration configuration;
    unsigned entries; /* after the configuration */
    /* what was called */
    unsigned set_terms, puts, installs, gets, applied, restored, worker_runs;
    raft_index next_index;
    int append_error, put_error;
    struct { struct raft_io_append *req; raft_io_append_cb cb; raft_index index; } appends[PENDING_MAX];
    unsigned append_count;
    struct { struct raft_io_snapshot_put *req; raft_io_snapshot_put_cb cb; } put;
    struct { struct raft_io_snapshot_get *req; raft_io_snapshot_get_cb cb; } get;
    raft_index snapshot_index;
    raft_term snapshot_term;
    /* what was sent */
    struct { uint64_t peer; Covey__Internal__V1__RaftFrame *frame; } frames[FRAMES_MAX];
    unsigned frame_count;
} f;

static int io_init(struct raft_io *io, raft_id id, const char *address) { return 0; }
static void io_close(struct raft_io *io, raft_io_close_cb cb) { cb(io); }

static int io_load(struct raft_io *io, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot, raft_index *start,
                   struct raft_entry *entries[], size_t *n)
{
    *term = f.term;
    *voted_for = 0;
    *snapshot = NULL;
    *start = 1;
    *entries = NULL;
    *n = f.configuration.n > 0 ? 1 + f.entries : 0;
    if (*n > 0) {
        struct raft_buffer buf;
        *entries = raft_calloc(*n, sizeof **entries);
        assert_int_equal(raft_configuration_encode(&f.configuration, &buf), 0);
        (*entries)[0] = (struct raft_entry){.term = 1, .type = RAFT_CHANGE, .buf = buf, .batch = buf.base};
        for (size_t i = 1; i < *n; i++) {
            void *data = raft_calloc(1, 8);
            (*entries)[i] = (struct raft_entry){.term = f.term, .type = RAFT_COMMAND, .buf = {data, 8}, .batch = data};
        }
    }
    f.next_index = 1 + *n;
    return 0;
}

static int io_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv) { f.tick = tick; return 0; }
static int io_set_term(struct raft_io *io, raft_term term) { f.set_terms++; f.term = term; return 0; }
static int io_set_vote(struct raft_io *io, raft_id id) { return 0; }
static int io_truncate(struct raft_io *io, raft_index index) { f.next_index = index; return 0; }
static raft_time io_time(struct raft_io *io) { return f.now; }
static int io_random(struct raft_io *io, int min, int max) { return min; }

static int io_append(struct raft_io *io, struct raft_io_append *req, const struct raft_entry entries[], unsigned n, raft_io_append_cb cb)
{
    if (f.append_error != 0) {
        return f.append_error;
    }
    assert_true(f.append_count < PENDING_MAX);
    f.next_index += n;
    f.appends[f.append_count].req = req;
    f.appends[f.append_count].cb = cb;
    f.appends[f.append_count++].index = f.next_index - 1;
    return 0;
}

static int io_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *req, const struct raft_snapshot *snapshot,
                           raft_io_snapshot_put_cb cb)
{
    assert_null(f.put.req);
    if (trailing == 0) {
        f.installs++;
    } else {
        f.puts++;
        assert_true(snapshot->bufs[0].len == 16);
    }
    f.put.req = req;
    f.put.cb = cb;
    f.snapshot_index = snapshot->index;
    f.snapshot_term = snapshot->term;
    return f.put_error;
}

static int io_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *req, raft_io_snapshot_get_cb cb)
{
    f.gets++;
    f.get.req = req;
    f.get.cb = cb;
    return 0;
}

static int fsm_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result) { f.applied++; *result = NULL; return 0; }
static int fsm_restore(struct raft_fsm *fsm, struct raft_buffer *buf) { f.restored++; raft_free(buf->base); return 0; }

static int fsm_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n)
{
    raft_shim_snapshot(&f.shim, &f, bufs, n);
    return 0;
}

static int hook_write(void *ud, void *snapshot, void **data, size_t *len, struct error *err)
{
    f.worker_runs++;
    *data = xcalloc(1, 16);
    *len = 16;
    return STATUS_OK;
}

static void hook_send(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    size_t len = covey__internal__v1__raft_frame__get_packed_size(frame);
    uint8_t *packed = xmalloc(len + 1);
    covey__internal__v1__raft_frame__pack(frame, packed);
    assert_true(f.frame_count < FRAMES_MAX);
    f.frames[f.frame_count].peer = peer;
    f.frames[f.frame_count++].frame = covey__internal__v1__raft_frame__unpack(NULL, len, packed);
    free(packed);
}

static void frames_clear(void)
{
    for (unsigned i = 0; i < f.frame_count; i++) {
        covey__internal__v1__raft_frame__free_unpacked(f.frames[i].frame, NULL);
    }
    f.frame_count = 0;
}

/* Member 1 with these voters (bits), its log in term `term` with `entries` commands. */
static void up(unsigned voters, unsigned standbys, raft_term term, unsigned entries)
{
    struct raft_shim_hooks hooks = {.ud = &f, .send = hook_send, .snapshot_write = hook_write};
    memset(&f, 0, sizeof f);
    uv_loop_init(&f.loop);
    f.now = 1000;
    f.term = term;
    f.entries = entries;
    raft_configuration_init(&f.configuration);
    for (unsigned id = 1; id <= 8; id++) {
        char address[32];
        snprintf(address, sizeof address, "member-%u", id);
        if ((voters | standbys) & (1u << id)) {
            assert_int_equal(raft_configuration_add(&f.configuration, id, address, voters & (1u << id) ? RAFT_VOTER : RAFT_STANDBY), 0);
        }
    }
    f.io = (struct raft_io){.version = 2, .capacity = 16384, .init = io_init, .close = io_close, .load = io_load, .start = io_start,
                            .set_term = io_set_term, .set_vote = io_set_vote, .append = io_append, .truncate = io_truncate,
                            .snapshot_put = io_snapshot_put, .snapshot_get = io_snapshot_get, .time = io_time, .random = io_random};
    f.fsm = (struct raft_fsm){.version = 1, .apply = fsm_apply, .snapshot = fsm_snapshot, .restore = fsm_restore};
    raft_shim_attach(&f.shim, &f.raft, &f.io, &f.loop, &hooks, 1 << 20, 10);
    assert_int_equal(raft_init(&f.raft, &f.io, &f.fsm, 1, "member-1"), 0);
    raft_shim_configure(&f.shim);
    assert_int_equal(raft_start(&f.raft), 0);
}

static void stopped(void *ud) { *(bool *)ud = true; }

static void down(void)
{
    bool done = false;
    raft_shim_stop(&f.shim, stopped, &done);
    while (!done) {
        uv_run(&f.loop, UV_RUN_ONCE);
    }
    f.raft.legacy.closing = true;
    for (unsigned i = 0; i < f.append_count; i++) {
        f.appends[i].cb(f.appends[i].req, RAFT_CANCELED);
    }
    raft_close(&f.raft, NULL);
    raft_shim_free(&f.shim);
    frames_clear();
    raft_configuration_close(&f.configuration);
    uv_run(&f.loop, UV_RUN_DEFAULT);
    uv_loop_close(&f.loop);
}

static void persist(void)
{
    unsigned count = f.append_count;
    for (unsigned i = 0; i < count; i++) {
        f.appends[i].cb(f.appends[i].req, 0);
    }
    memmove(f.appends, f.appends + count, (f.append_count - count) * sizeof f.appends[0]);
    f.append_count -= count;
}

static int receive(uint64_t peer, Covey__Internal__V1__RaftFrame *frame)
{
    struct raft_wire_in in;
    struct error err = ERROR_INIT;
    int rc = raft_wire_in_set(&in, peer, frame, &err);
    if (rc == STATUS_OK) {
        raft_shim_receive(&f.shim, peer, &in);
    }
    return rc;
}

/* Entries of `types` ('c' command, 'h' change) after prev. */
static int receive_entries(uint64_t peer, uint64_t term, uint64_t prev, uint64_t prev_term, uint64_t commit, const char *types, size_t len)
{
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__AppendEntries body = COVEY__INTERNAL__V1__APPEND_ENTRIES__INIT;
    Covey__Internal__V1__Entry entries[32], *pointers[32];
    struct raft_buffer configuration = {NULL, 0};
    static uint8_t data[64];
    assert_int_equal(raft_configuration_encode(&f.configuration, &configuration), 0);
    body.n_entries = strlen(types);
    body.entries = pointers;
    for (size_t i = 0; i < body.n_entries; i++) {
        covey__internal__v1__entry__init(&entries[i]);
        entries[i].term = term;
        entries[i].type = types[i] == 'h' ? RAFT_CHANGE : RAFT_COMMAND;
        entries[i].data.data = types[i] == 'h' ? configuration.base : data;
        entries[i].data.len = types[i] == 'h' ? configuration.len : len;
        pointers[i] = &entries[i];
    }
    body.term = term;
    body.prev_log_index = prev;
    body.prev_log_term = prev_term;
    body.leader_commit = commit;
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES;
    frame.append_entries = &body;
    int rc = receive(peer, &frame);
    raft_free(configuration.base);
    return rc;
}

static int receive_snapshot(uint64_t peer, uint64_t term, uint64_t index)
{
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__InstallSnapshot body = COVEY__INTERNAL__V1__INSTALL_SNAPSHOT__INIT;
    Covey__Internal__V1__Server server = COVEY__INTERNAL__V1__SERVER__INIT, *servers[] = {&server};
    uint8_t data[8] = {0}, sha256[32];
    char hex[65];
    sha256_hex(data, sizeof data, hex);
    assert_int_equal(hex_decode(hex, sha256, 32), 0);
    server.id = peer;
    server.address = "member";
    server.role = RAFT_VOTER;
    body.term = term;
    body.last_index = index;
    body.last_term = term;
    body.configuration_index = 1;
    body.size = body.data.len = sizeof data;
    body.data.data = data;
    body.sha256.data = sha256;
    body.sha256.len = 32;
    body.n_configuration = 1;
    body.configuration = servers;
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_INSTALL_SNAPSHOT;
    frame.install_snapshot = &body;
    return receive(peer, &frame);
}

static int receive_result(uint64_t peer, uint64_t term, uint64_t rejected, uint64_t last)
{
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__AppendEntriesResult body = COVEY__INTERNAL__V1__APPEND_ENTRIES_RESULT__INIT;
    body.version = 1;
    body.term = term;
    body.rejected = rejected;
    body.last_log_index = last;
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES_RESULT;
    frame.append_entries_result = &body;
    return receive(peer, &frame);
}

static void tick(unsigned ms)
{
    f.now += ms;
    f.tick(&f.io);
    raft_shim_poll(&f.shim);
}

/* ---- tests ---- */

static void apply_done(struct raft_apply *req, int status, void *result) { }

static void no_done(struct raft_io_send *req, int status) { }

/* Its voters do not wait for the timeout, the lowest id goes first; who is no leader is not missed. */
static void test_lost_leader_is_replaced_soon(void **state)
{
    up(1 << 1 | 1 << 2 | 1 << 3, 0, 1, 1);
    assert_int_equal(f.raft.state, RAFT_FOLLOWER);
    assert_int_equal(receive_entries(3, 2, 1, 1, 1, "", 8), STATUS_OK);
    raft_shim_poll(&f.shim);
    assert_int_equal(f.raft.follower_state.current_leader.id, 3);
    assert_true(raft_shim_due(&f.shim) >= f.now + RAFT_ELECTION_TIMEOUT_MS);
    assert_true(raft_shim_due(&f.shim) <= f.now + RAFT_ELECTION_TIMEOUT_MS * 3 / 2);
    raft_shim_lost(&f.shim, 2);
    assert_int_equal(f.raft.follower_state.current_leader.id, 3);
    raft_shim_lost(&f.shim, 3);
    assert_int_equal(f.raft.follower_state.current_leader.id, 0);
    assert_int_equal(raft_shim_due(&f.shim), f.now + RAFT_LOST_DELAY_MS);
    tick(RAFT_LOST_DELAY_MS - 1);
    assert_int_equal(f.raft.state, RAFT_FOLLOWER);
    assert_int_equal(receive_entries(2, 3, 1, 1, 1, "", 8), STATUS_OK); /* another one was elected: no hurry any more */
    raft_shim_poll(&f.shim);
    assert_true(raft_shim_due(&f.shim) >= f.now + RAFT_ELECTION_TIMEOUT_MS);
    raft_shim_lost(&f.shim, 2);
    tick(RAFT_LOST_DELAY_MS);
    assert_int_equal(f.raft.state, RAFT_CANDIDATE);
    assert_true(f.raft.candidate_state.in_pre_vote);
    down();
}

static void test_n1_change_starts_its_message(void **state)
{
    static uint8_t big[RAFT_MESSAGE_BYTES_MAX * 2 / 3 / 8 * 8];
    struct raft_entry entries[5] = {{3, RAFT_COMMAND, {big, 8}, NULL}, {3, RAFT_CHANGE, {big, 8}, NULL}, {4, RAFT_COMMAND, {big, 8}, NULL},
                                    {4, RAFT_COMMAND, {big, sizeof big}, NULL}, {5, RAFT_COMMAND, {big, sizeof big}, NULL}};
    struct raft_message message = {.type = RAFT_APPEND_ENTRIES, .server_id = 2};
    struct raft_io_send req;
    static const struct { uint64_t prev, term; size_t n; } expected[] = {{10, 2, 1}, {11, 3, 3}, {14, 4, 1}};
    up(1 << 1, 0, 1, 0);
    frames_clear();
    message.append_entries = (struct raft_append_entries){.term = 5, .prev_log_index = 10, .prev_log_term = 2, .entries = entries, .n_entries = 5};
    assert_int_equal(f.io.send(&f.io, &req, &message, no_done), 0);
    assert_int_equal(f.frame_count, 3);
    for (unsigned i = 0; i < 3; i++) {
        const Covey__Internal__V1__AppendEntries *part = f.frames[i].frame->append_entries;
        assert_int_equal(part->prev_log_index, expected[i].prev);
        assert_int_equal(part->prev_log_term, expected[i].term);
        assert_int_equal(part->n_entries, expected[i].n);
    }
    down();
}

static void test_n1_change_elsewhere_is_refused(void **state)
{
    up(1 << 1 | 1 << 2, 0, 1, 0);
    assert_int_equal(receive_entries(2, 1, 1, 1, 0, "ch", 8), STATUS_INVALID_ARGUMENT);
    assert_int_equal(receive_entries(2, 1, 1, 1, 0, "hc", 8), STATUS_OK);
    assert_int_equal(f.append_count, 1);
    assert_int_equal(f.raft.configuration_uncommitted_index, 2); /* the index of the change */
    down();
}

static void test_n2_install_waits_for_own_snapshot(void **state)
{
    up(1 << 1 | 1 << 2, 0, 1, 0);
    assert_int_equal(receive_entries(2, 1, 1, 1, 0, "cccccccccccc", 8), STATUS_OK);
    persist();
    assert_int_equal(receive_entries(2, 1, 13, 1, 13, "", 8), STATUS_OK);
    assert_int_equal(f.applied, 12);
    raft_shim_poll(&f.shim);
    tick(RAFT_HEARTBEAT_MS);
    assert_true(f.raft.legacy.snapshot_taking);
    assert_int_equal(receive_snapshot(2, 1, 40), STATUS_OK); /* while the worker writes */
    raft_shim_poll(&f.shim);
    assert_int_equal(f.installs, 0);
    uv_run(&f.loop, UV_RUN_DEFAULT);
    assert_int_equal(f.puts, 1);
    assert_int_equal(receive_snapshot(2, 1, 41), STATUS_OK); /* and while the disk does: the last one counts */
    raft_shim_poll(&f.shim);
    assert_int_equal(f.installs, 0);
    struct raft_io_snapshot_put *req = f.put.req;
    f.put.req = NULL;
    f.put.cb(req, 0);
    raft_shim_poll(&f.shim);
    assert_int_equal(f.installs, 1);
    assert_int_equal(f.snapshot_index, 41);
    assert_int_equal(receive_snapshot(2, 1, 41), STATUS_OK); /* N8: again, while it is installed */
    assert_false(f.shim.deferred);
    req = f.put.req;
    f.put.req = NULL;
    f.put.cb(req, 0);
    assert_int_equal(f.restored, 1);
    assert_int_equal(f.shim.restore_index, 41);
    assert_int_equal(raft_last_applied(&f.raft), 41);
    assert_int_equal(raft_shim_last_index(&f.raft), 41);
    down();
}

static void test_n3_older_term_is_answered_here(void **state)
{
    up(1 << 1 | 1 << 2, 0, 5, 3);
    frames_clear();
    assert_int_equal(receive_entries(2, 3, 2, 3, 0, "c", 8), STATUS_OK);
    assert_int_equal(receive_entries(2, 3, 0, 0, 0, "", 8), STATUS_OK);
    assert_int_equal(receive_snapshot(2, 3, 30), STATUS_OK);
    assert_int_equal(f.frame_count, 3);
    static const uint64_t rejected[] = {2, 1, 30};
    for (unsigned i = 0; i < 3; i++) {
        const Covey__Internal__V1__AppendEntriesResult *result = f.frames[i].frame->append_entries_result;
        assert_int_equal(f.frames[i].peer, 2);
        assert_int_equal(f.frames[i].frame->kind_case, COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES_RESULT);
        assert_int_equal(result->term, 5);
        assert_int_equal(result->rejected, rejected[i]);
        assert_int_equal(result->last_log_index, 0);
    }
    assert_int_equal(f.append_count, 0);
    down();
}

static void test_n13_commit_does_not_go_back(void **state)
{
    up(1 << 1 | 1 << 2, 0, 1, 0);
    assert_int_equal(receive_entries(2, 1, 1, 1, 0, "cccccc", 8), STATUS_OK);
    persist();
    assert_int_equal(receive_entries(2, 1, 7, 1, 7, "", 8), STATUS_OK);
    assert_int_equal(f.raft.commit_index, 7);
    assert_int_equal(receive_entries(2, 1, 3, 1, 9, "", 8), STATUS_OK); /* a leader that probes from further back */
    assert_int_equal(receive_entries(2, 1, 3, 1, 9, "cc", 8), STATUS_OK);
    assert_int_equal(f.raft.commit_index, 7);
    assert_int_equal(receive_entries(2, 1, 7, 1, 9, "cc", 8), STATUS_OK);
    assert_int_equal(f.raft.commit_index, 9);
    down();
}

static void test_n14_late_rejection_is_ignored(void **state)
{
    static struct raft_apply reqs[3];
    raft_index match = 0;
    up(1 << 1, 1 << 2, 1, 0);
    persist();
    raft_term term = f.raft.current_term;
    assert_int_equal(receive_result(2, term, 1, 0), STATUS_OK); /* has nothing: gets all */
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(raft_shim_apply(&f.raft, &reqs[i], "12345678", 8, apply_done), 0);
    }
    persist();
    assert_int_equal(receive_result(2, term, 0, 2), STATUS_OK);
    assert_int_equal(raft_match_index(&f.raft, 2, &match), 0);
    assert_int_equal(match, 2);
    tick(RAFT_ELECTION_TIMEOUT_MS + 50); /* not heard of: probes from 2 */
    tick(RAFT_HEARTBEAT_MS);
    assert_int_equal(receive_result(2, term, 2, 1), STATUS_OK); /* sent before it confirmed 2 */
    frames_clear();
    tick(RAFT_HEARTBEAT_MS);
    assert_int_equal(receive_result(2, term, 0, 1), STATUS_OK); /* what it would answer to a probe from 1 */
    tick(RAFT_HEARTBEAT_MS);
    bool entries = false;
    for (unsigned i = 0; i < f.frame_count; i++) {
        const Covey__Internal__V1__AppendEntries *body = f.frames[i].frame->append_entries;
        entries |= f.frames[i].peer == 2 && body->n_entries == 2 && body->prev_log_index == 2;
    }
    assert_true(entries);
    down();
}

static void test_r4_second_leader_is_dropped(void **state)
{
    up(1 << 1, 1 << 2, 1, 0);
    persist();
    assert_int_equal(f.raft.state, RAFT_LEADER);
    assert_int_equal(receive_entries(2, f.raft.current_term, 1, 1, 0, "", 8), STATUS_OK);
    assert_int_equal(receive_snapshot(2, f.raft.current_term, 20), STATUS_OK);
    assert_int_equal(f.raft.state, RAFT_LEADER);
    assert_int_equal(f.raft.leader_state.promotee_id, 0);
    tick(RAFT_HEARTBEAT_MS);
    down();
}



static void test_r5_lengths(void **state)
{
    struct raft_apply req;
    up(1 << 1, 0, 1, 0);
    persist();
    unsigned before = f.append_count;
    assert_int_equal(raft_shim_apply(&f.raft, &req, "0123456789abc", 13, apply_done), RAFT_INVALID);
    assert_int_equal(raft_shim_apply(&f.raft, &req, "", 0, apply_done), RAFT_INVALID);
    assert_int_equal(f.append_count, before);
    down();
    up(1 << 1 | 1 << 2, 0, 1, 0);
    assert_int_equal(receive_entries(2, 1, 1, 1, 0, "c", 13), STATUS_INVALID_ARGUMENT);
    assert_int_equal(receive_entries(2, 1, 1, 1, 0, "cc", 0), STATUS_INVALID_ARGUMENT);
    assert_int_equal(f.append_count, 0);
    down();
}

/* A leader with a snapshot; its stand-by 2 has nothing. */
static void lead_with_snapshot(void)
{
    static struct raft_apply reqs[20];
    up(1 << 1, 1 << 2, 1, 0);
    persist();
    for (unsigned i = 0; i < 20; i++) {
        assert_int_equal(raft_shim_apply(&f.raft, &reqs[i], "12345678", 8, apply_done), 0);
    }
    persist();
    raft_shim_poll(&f.shim);
    raft_set_snapshot_trailing(&f.raft, 1);
    tick(RAFT_HEARTBEAT_MS);
    uv_run(&f.loop, UV_RUN_DEFAULT);
    assert_int_equal(f.puts, 1);
    struct raft_io_snapshot_put *req = f.put.req;
    f.put.req = NULL;
    f.put.cb(req, 0);
    assert_true(f.raft.trail.snapshot.index >= 20);
}

static void snapshot_loaded(void)
{
    struct raft_snapshot *snapshot = raft_calloc(1, sizeof *snapshot);
    snapshot->index = f.snapshot_index;
    snapshot->term = f.snapshot_term;
    snapshot->configuration_index = 1;
    raft_configuration_init(&snapshot->configuration);
    raft_configuration_add(&snapshot->configuration, 1, "member-1", RAFT_VOTER);
    snapshot->bufs = raft_calloc(1, sizeof *snapshot->bufs);
    snapshot->bufs[0].base = raft_calloc(1, 16);
    snapshot->bufs[0].len = 16;
    snapshot->n_bufs = 1;
    f.get.cb(f.get.req, snapshot, 0);
}

static unsigned chunks(void)
{
    unsigned count = 0;
    for (unsigned i = 0; i < f.frame_count; i++) {
        count += f.frames[i].frame->kind_case == COVEY__INTERNAL__V1__RAFT_FRAME__KIND_INSTALL_SNAPSHOT;
    }
    return count;
}

static void test_n8_rejections_do_not_repeat_a_snapshot(void **state)
{
    lead_with_snapshot();
    raft_index index = f.raft.trail.snapshot.index;
    raft_term term = f.raft.current_term;
    frames_clear();
    for (unsigned i = 0; i < 5 && f.gets == 0; i++) { /* until the leader knows that it needs the snapshot */
        for (unsigned prev = (unsigned)raft_shim_last_index(&f.raft); prev >= 1 && f.gets == 0; prev--) {
            assert_int_equal(receive_result(2, term, prev, 0), STATUS_OK);
        }
    }
    assert_int_equal(f.gets, 1);
    for (unsigned i = 0; i < 5; i++) { /* heartbeats overtake: while loading … */
        assert_int_equal(receive_result(2, term, index, 0), STATUS_OK);
        tick(RAFT_HEARTBEAT_MS);
    }
    assert_int_equal(f.gets, 1);
    snapshot_loaded();
    for (unsigned i = 0; i < 20; i++) { /* … sending, and installing */
        raft_shim_transfer(&f.shim);
        assert_int_equal(receive_result(2, term, index, 0), STATUS_OK);
        tick(RAFT_HEARTBEAT_MS);
    }
    assert_int_equal(f.gets, 1);
    assert_int_equal(chunks(), 1);
    assert_int_equal(receive_result(2, term, 0, index), STATUS_OK);
    assert_false(raft_install_busy(&f.shim.install, 2));
    down();
}

/* N7: what is on disk may be newer than what libraft asked for; its term must go with it. A load that fails is swallowed. */
static void test_n7_loaded_snapshot(void **state)
{
    lead_with_snapshot();
    raft_term term = f.raft.current_term;
    for (unsigned prev = (unsigned)raft_shim_last_index(&f.raft); prev >= 1 && f.gets == 0; prev--) {
        assert_int_equal(receive_result(2, term, prev, 0), STATUS_OK);
    }
    assert_int_equal(f.gets, 1);
    struct raft_snapshot garbage;
    memset(&garbage, 0xa5, sizeof garbage);
    f.get.cb(f.get.req, &garbage, RAFT_IOERR);
    assert_int_equal(f.shim.loads, 0);
    struct raft_message message = {.type = RAFT_INSTALL_SNAPSHOT, .server_id = 3};
    uint64_t data[2] = {1, 2};
    struct raft_server server = {1, (char *)"member-1", RAFT_VOTER};
    struct raft_io_send send;
    message.install_snapshot = (struct raft_install_snapshot){.term = term, .last_index = 90, .last_term = 1, .conf = {&server, 1}, .conf_index = 1,
                                                              .data = {data, sizeof data}};
    f.shim.loaded_index = 90;
    f.shim.loaded_term = 2;
    frames_clear();
    assert_int_equal(f.io.send(&f.io, &send, &message, no_done), 0);
    raft_shim_transfer(&f.shim);
    assert_int_equal(chunks(), 1);
    assert_int_equal(f.frames[0].frame->install_snapshot->last_term, 2);
    down();
}

static void test_n9_leader_tick(void **state)
{
    up(1 << 1, 1 << 2, 1, 0);
    persist();
    tick(RAFT_HEARTBEAT_MS);
    assert_int_equal(f.raft.state, RAFT_LEADER);
    assert_int_equal(f.raft.election_timer_start, f.now - RAFT_ELECTION_TIMEOUT_MS / 2);
    down();
}

static void change_done(struct raft_change *req, int status) { fail_msg("a change that was refused is completed"); }

static void test_n10_refused_change_is_forgotten(void **state)
{
    struct raft_change req;
    up(1 << 1, 1 << 2, 1, 0);
    persist();
    tick(RAFT_HEARTBEAT_MS);
    f.io.capacity = 0; /* NOSPACE comes after libraft has booked the request */
    assert_int_equal(raft_shim_assign(&f.raft, &req, 2, RAFT_SPARE, change_done), RAFT_NOSPACE);
    assert_null(f.raft.legacy.change);
    assert_int_equal(raft_shim_assign(&f.raft, &req, 9, RAFT_SPARE, change_done), RAFT_NOTFOUND);
    assert_null(f.raft.legacy.change);
    down();
}

static void test_g7_term_is_written_once(void **state)
{
    up(1 << 1 | 1 << 2, 0, 4, 0);
    unsigned before = f.set_terms;
    assert_int_equal(f.io.set_term(&f.io, 4), 0);
    assert_int_equal(f.set_terms, before);
    assert_int_equal(f.io.set_term(&f.io, 5), 0);
    assert_int_equal(f.io.set_term(&f.io, 5), 0);
    assert_int_equal(f.set_terms, before + 1);
    down();
}

static void test_g11_only_voter_starts_a_new_term(void **state)
{
    up(1 << 1, 1 << 2, 4, 2);
    assert_int_equal(f.raft.current_term, 5);
    assert_int_equal(f.term, 5); /* on disk before anything else */
    down();
    up(1 << 1 | 1 << 2, 0, 4, 2);
    assert_int_equal(f.raft.current_term, 4);
    down();
}

static void test_terms_of_entries(void **state)
{
    up(1 << 1 | 1 << 2, 0, 1, 3);
    assert_int_equal(receive_entries(2, 2, 4, 1, 0, "cc", 8), STATUS_OK);
    assert_int_equal(receive_entries(2, 6, 6, 2, 0, "c", 8), STATUS_OK);
    static const raft_term terms[] = {0, 1, 1, 1, 1, 2, 2, 6, 0};
    for (raft_index i = 0; i < 9; i++) {
        assert_int_equal(raft_shim_term_of(&f.raft, i), terms[i]);
    }
    assert_int_equal(raft_shim_last_index(&f.raft), raft_last_index(&f.raft));
    assert_int_equal(receive_entries(3, 7, 5, 2, 0, "c", 8), STATUS_OK); /* replaces 6 and 7 */
    assert_int_equal(raft_shim_term_of(&f.raft, 6), 7);
    assert_int_equal(raft_shim_term_of(&f.raft, 7), 0);
    assert_int_equal(f.shim.sizes.first + f.shim.sizes.count, 7);
    down();
}

/* ---- what must end the process ---- */

static void dies(void (*fn)(void))
{
    int status;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        fn();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void append_fails(void)
{
    up(1 << 1 | 1 << 2, 0, 1, 0);
    f.append_error = RAFT_IOERR;
    receive_entries(2, 1, 1, 1, 0, "c", 8);
}

static void write_fails(void)
{
    up(1 << 1 | 1 << 2, 0, 1, 0);
    receive_entries(2, 1, 1, 1, 0, "c", 8);
    f.appends[0].cb(f.appends[0].req, RAFT_IOERR);
}

static void install_fails(void)
{
    up(1 << 1 | 1 << 2, 0, 1, 0);
    receive_snapshot(2, 1, 40);
    f.put.cb(f.put.req, RAFT_IOERR);
}

static void conflicts(void)
{
    up(1 << 1 | 1 << 2, 0, 1, 3);
    receive_entries(2, 1, 4, 1, 4, "", 8); /* commits 2-4 */
    receive_entries(2, 3, 2, 1, 4, "c", 8); /* another entry 3 */
}

static void uv_retries(void)
{
    up(1 << 1 | 1 << 2, 0, 1, 0);
    struct raft_tracer_info info = {.version = 1, .diagnostic = {.level = 5, .message = "retry failed write (EIO)"}};
    f.shim.uv_tracer.emit(&f.shim.uv_tracer, RAFT_TRACER_DIAGNOSTIC, &info);
}

static void test_n4_n5_n6_end_the_process(void **state)
{
    dies(append_fails);
    dies(write_fails);
    dies(install_fails);
    dies(conflicts);
    dies(uv_retries);
}

/* libraft itself loses 136 bytes of a snapshot request whose load failed (N7) and 48 of a refused change (N10). */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:raft_assign\nleak:test_n7_loaded_snapshot\n";
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lost_leader_is_replaced_soon), cmocka_unit_test(test_n1_change_starts_its_message), cmocka_unit_test(test_n1_change_elsewhere_is_refused),
        cmocka_unit_test(test_n2_install_waits_for_own_snapshot), cmocka_unit_test(test_n3_older_term_is_answered_here),
        cmocka_unit_test(test_n4_n5_n6_end_the_process), cmocka_unit_test(test_n7_loaded_snapshot),
        cmocka_unit_test(test_n8_rejections_do_not_repeat_a_snapshot), cmocka_unit_test(test_n9_leader_tick),
        cmocka_unit_test(test_n10_refused_change_is_forgotten), cmocka_unit_test(test_n13_commit_does_not_go_back), cmocka_unit_test(test_n14_late_rejection_is_ignored),
        cmocka_unit_test(test_r4_second_leader_is_dropped),
        cmocka_unit_test(test_r5_lengths), cmocka_unit_test(test_g7_term_is_written_once),
        cmocka_unit_test(test_g11_only_voter_starts_a_new_term), cmocka_unit_test(test_terms_of_entries),
    };
    log_init("raft_shim_test", LOG_LEVEL_INFO);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
