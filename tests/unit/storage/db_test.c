/* The replicated database through real Raft nodes: one member, and three members in one process joined by a small network
 * of queues. Every wait is a condition with a limit. */
#include "storage/rowlog.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define ok(expr) do { if ((expr) != STATUS_OK) fail_msg("%s: %s", #expr, err.text); } while (0)

enum { WAIT_MS = 20000, MEMBERS = 3 };

struct member {
    struct world *world;
    uint64_t id;
    char *dir;
    _Atomic(struct db *) db; /* NULL while closed */
    atomic_int users;        /* calls that use db */
    atomic_bool cut;         /* no traffic from or to it */
};

struct digests { uint64_t revision; char digest[65]; uint64_t member; };

struct world {
    char dir[32];
    struct member members[MEMBERS + 1];
    pthread_mutex_t digest_lock;
    struct digests digests[64];
    size_t digest_count;
};

static void nap(void)
{
    usleep(2000);
}

static struct db *member_use(struct member *member)
{
    atomic_fetch_add(&member->users, 1);
    struct db *db = atomic_load(&member->db);
    if (!db)
        atomic_fetch_sub(&member->users, 1);
    return db;
}

static void member_leave(struct member *member)
{
    atomic_fetch_sub(&member->users, 1);
}

/* ---- network: frames are handed over on the sender's loop; raft_node_receive copies and queues them ---- */
static void on_send(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    struct member *from = ud;
    struct member *to = peer >= 1 && peer <= MEMBERS ? &from->world->members[peer] : NULL;
    struct db *db = to && !atomic_load(&to->cut) && !atomic_load(&from->cut) ? member_use(to) : NULL;
    if (!db)
        return;
    raft_node_receive(db_raft(db), from->id, frame);
    member_leave(to);
}

static void on_digest(void *ud, uint64_t revision, const char *digest)
{
    struct member *member = ud;
    struct world *world = member->world;
    pthread_mutex_lock(&world->digest_lock);
    if (world->digest_count < 64) {
        struct digests *d = &world->digests[world->digest_count++];
        d->revision = revision;
        d->member = member->id;
        snprintf(d->digest, sizeof d->digest, "%s", digest);
    }
    pthread_mutex_unlock(&world->digest_lock);
}

static void member_open(struct world *world, uint64_t id)
{
    struct error err = ERROR_INIT;
    struct member *member = &world->members[id];
    struct db *db = NULL;
    struct db_config config = {.dir = member->dir, .id = id, .callbacks = {.ud = member, .send = on_send, .digest = on_digest}};
    ok(db_open(&config, &db, &err));
    atomic_store(&member->db, db);
}

static void member_close(struct world *world, uint64_t id)
{
    struct member *member = &world->members[id];
    struct db *db = atomic_exchange(&member->db, NULL);
    int64_t end = time_mono_ms() + WAIT_MS;
    db_stop(db);
    while (atomic_load(&member->users) && time_mono_ms() < end)
        nap();
    assert_int_equal(atomic_load(&member->users), 0);
    db_close(db);
}

static struct world *world_open(void)
{
    struct error err = ERROR_INIT;
    struct world *world = xcalloc(1, sizeof *world);
    strcpy(world->dir, "/tmp/covey-db-XXXXXX");
    assert_non_null(mkdtemp(world->dir));
    pthread_mutex_init(&world->digest_lock, NULL);
    for (uint64_t id = 1; id <= MEMBERS; id++) {
        struct member *member = &world->members[id];
        member->world = world;
        member->id = id;
        member->dir = xasprintf("%s/%d", world->dir, (int)id);
    }
    ok(db_bootstrap(world->members[1].dir, 1, &err));
    ok(db_bootstrap(world->members[1].dir, 1, &err)); /* again: nothing */
    assert_true(db_exists(world->members[1].dir));
    assert_false(db_exists(world->members[2].dir));
    member_open(world, 1);
    return world;
}

static void world_close(struct world *world)
{
    struct error err = ERROR_INIT;
    for (uint64_t id = 1; id <= MEMBERS; id++) {
        if (world->members[id].db)
            member_close(world, id);
        free(world->members[id].dir);
    }
    ok(dir_remove_all(world->dir, &err));
    pthread_mutex_destroy(&world->digest_lock);
    free(world);
}

/* ---- writes and reads ---- */
static int set_key(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    int status = sql_exec(sql, err, "INSERT INTO config (key, value) VALUES (?1, 'v')", "s", (const char *)ud);
    if (status == STATUS_OK)
        buf_printf(result, "%s=%lld", (const char *)ud, (long long)sql_last_id(sql));
    return status;
}

static int count_config(struct sql *sql, void *ud, struct error *err)
{
    return sql_get_int(sql, ud, err, "SELECT count(*) FROM config", "");
}

static int64_t config_rows(struct db *db, enum db_consistency consistency)
{
    struct error err = ERROR_INIT;
    int64_t count = -1;
    ok(db_read(db, consistency, count_config, &count, NULL, &err));
    return count;
}

/* Writes until it is known to be done, on whoever leads; the key makes it happen once. */
static int write_surely(struct world *world, const char *key, db_write_fn fn, void *ud, bool *unknown)
{
    int64_t end = time_mono_ms() + WAIT_MS;
    int status = STATUS_UNAVAILABLE;
    struct error err = ERROR_INIT;
    for (uint64_t id = 1; time_mono_ms() < end; id = id % MEMBERS + 1) {
        struct db *db = atomic_load(&world->members[id].cut) ? NULL : member_use(&world->members[id]);
        status = STATUS_UNAVAILABLE;
        if (db) {
            status = db_write(db, key, fn, ud, NULL, NULL, NULL, &err);
            member_leave(&world->members[id]);
        }
        if (status == STATUS_OK)
            return status;
        if (unknown && status == STATUS_UNKNOWN)
            *unknown = true;
        if (status != STATUS_UNAVAILABLE && status != STATUS_UNKNOWN)
            break;
        nap();
    }
    fprintf(stderr, "write %s: %s\n", key, err.text);
    return status;
}

static uint64_t leader_of(struct world *world)
{
    int64_t end = time_mono_ms() + WAIT_MS, count;
    while (time_mono_ms() < end) {
        for (uint64_t id = 1; id <= MEMBERS; id++)
            if (world->members[id].db && !atomic_load(&world->members[id].cut)
                && db_read(world->members[id].db, DB_LINEARIZABLE, count_config, &count, NULL, NULL) == STATUS_OK)
                return id;
        nap();
    }
    fail_msg("no leader");
    return 0;
}

static void wait_revision(struct db *db, uint64_t revision)
{
    int64_t end = time_mono_ms() + WAIT_MS, count;
    uint64_t seen = 0;
    while (time_mono_ms() < end) {
        if (db_read(db, DB_LOCAL, count_config, &count, &seen, NULL) == STATUS_OK && seen >= revision)
            return;
        nap();
    }
    fail_msg("revision %llu is not reached, it is %llu", (unsigned long long)revision, (unsigned long long)seen);
}

static void all_equal(struct world *world)
{
    struct error err = ERROR_INIT;
    char first[65], other[65];
    uint64_t revision, leader = leader_of(world);
    ok(db_digest(world->members[leader].db, first, &revision, &err));
    for (uint64_t id = 1; id <= MEMBERS; id++) {
        if (!world->members[id].db || atomic_load(&world->members[id].cut))
            continue;
        wait_revision(world->members[id].db, revision);
        ok(db_digest(world->members[id].db, other, NULL, &err));
        assert_string_equal(first, other);
    }
}

/* ---- one member ---- */
static void write_read_reopen(void **state)
{
    struct error err = ERROR_INIT;
    struct world *world = world_open();
    struct buf result = {0};
    bool replayed = true;
    uint64_t revision = 0, seen = 0;
    int64_t count;
    assert_int_equal(write_surely(world, NULL, set_key, "first", NULL), STATUS_OK);
    struct db *db = world->members[1].db;
    ok(db_write(db, "k1", set_key, "second", &result, &replayed, &revision, &err));
    assert_false(replayed);
    assert_string_equal(result.data, "second=2");
    buf_free(&result);
    ok(db_write(db, "k1", set_key, "other", &result, &replayed, &seen, &err)); /* the same key: not done again */
    assert_true(replayed);
    assert_string_equal(result.data, "second=2");
    assert_int_equal(seen, revision);
    buf_free(&result);
    assert_int_equal(db_write(db, "k2", set_key, "second", NULL, NULL, NULL, &err), STATUS_ALREADY_EXISTS);
    ok(db_read(db, DB_LINEARIZABLE, count_config, &count, &seen, &err));
    assert_int_equal(count, 2);
    assert_int_equal(seen, revision);
    char before[65], after[65], key[102];
    memset(key, 'k', 101);
    key[101] = '\0';
    assert_int_equal(db_write(db, key, set_key, "x", NULL, NULL, NULL, &err), STATUS_INVALID_ARGUMENT);
    ok(db_digest(db, before, NULL, &err));
    char *dump = xasprintf("%s/dump", world->dir);
    ok(db_dump_file(db, dump, &err));
    struct sql *copy;
    ok(sql_open(dump, SQL_READONLY, &copy, &err));
    ok(digest_compute(copy, after, &err));
    sql_close(copy);
    free(dump);
    assert_string_equal(before, after);
    for (int i = 0; i < 3; i++) {
        member_close(world, 1);
        member_open(world, 1);
        assert_int_equal(leader_of(world), 1);
        ok(db_digest(world->members[1].db, after, &seen, &err));
        assert_string_equal(before, after);
        assert_int_equal(seen, revision);
    }
    ok(db_write(world->members[1].db, "k1", set_key, "second", &result, &replayed, NULL, &err)); /* remembered over restarts */
    assert_true(replayed);
    buf_free(&result);
    world_close(world);
}

static int deferred_violation(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_script(sql, "INSERT INTO config (key, value) VALUES ('deferred', 'x'); INSERT INTO later (p) VALUES (99)", err);
}

static int deferred_mended(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_script(sql, "INSERT INTO later (p) VALUES (99); INSERT INTO later (id, p) VALUES (99, NULL)", err);
}

/* A schema step as a newer leader would send it. */
static void extend_schema(struct db *db, const char *text)
{
    struct buf data = {0};
    int64_t end = time_mono_ms() + WAIT_MS;
    bool done = false;
    pthread_mutex_lock(&db->lock);
    struct entry entry = {.kind = ENTRY_SCHEMA, .base = db->revision, .schema_version = (uint32_t)db->schema_version + 1,
                          .body = (const uint8_t *)text, .body_len = strlen(text)};
    pthread_mutex_unlock(&db->lock);
    struct proposal *proposal = proposal_create(ENTRY_SCHEMA, 2);
    entry_encode(&entry, &data);
    raft_node_propose(db_raft(db), data.data, data.len, proposal);
    buf_free(&data);
    while (!done && time_mono_ms() < end) {
        nap();
        pthread_mutex_lock(&db->lock);
        done = proposal->done;
        pthread_mutex_unlock(&db->lock);
    }
    assert_true(done);
    assert_int_equal(proposal->status, STATUS_OK);
    pthread_mutex_lock(&db->lock);
    proposal_release(proposal);
    pthread_mutex_unlock(&db->lock);
}

static int caught_error(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct error inner = ERROR_INIT;
    if (sql_exec(sql, &inner, "INSERT INTO config (key, value) VALUES ('new', 'x'), ('first', 'x')", "") != STATUS_ALREADY_EXISTS)
        return error_set(err, STATUS_INTERNAL, "the row should exist");
    return sql_exec(sql, err, "INSERT INTO config (key, value) VALUES ('caught', 'x')", "");
}

static int forbidden(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_script(sql, ud, err);
}

static int leaves_open(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct sql_stmt *stmt = sql_query(sql, "SELECT 1 UNION SELECT 2", "");
    return sql_next(stmt) ? sql_exec(sql, err, "INSERT INTO config (key, value) VALUES ('open', 'x')", "") : STATUS_INTERNAL;
}

static int big_result(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    char chunk[4096] = {0};
    for (int i = 0; i < 17; i++)
        buf_add(result, chunk, sizeof chunk);
    return set_key(sql, "big", result, err);
}

static int big_rows(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "INSERT INTO operations (uuid, type, class, status, created_at, updated_at, request) VALUES ('b', 0, 1, 0, 0, 0, zeroblob(8000000))", "");
}

static int not_null_foreign(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "INSERT INTO nodes_roles (node_id, role) VALUES (77, 1)", "");
}

static void refusals(void **state)
{
    static const char *const texts[] = {"CREATE TABLE x (a)", "COMMIT", "BEGIN", "SAVEPOINT s", "DROP TABLE config", "DELETE FROM sqlite_sequence",
                                        "UPDATE applied SET revision = 9", "PRAGMA foreign_keys=OFF", "ATTACH ':memory:' AS m", "CREATE TEMP TABLE t (a)",
                                        "ANALYZE", "DELETE FROM schema", "ROLLBACK"};
    struct error err = ERROR_INIT;
    struct world *world = world_open();
    assert_int_equal(write_surely(world, NULL, set_key, "first", NULL), STATUS_OK);
    struct db *db = world->members[1].db;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        err = (struct error)ERROR_INIT;
        if (db_write(db, NULL, forbidden, (void *)(uintptr_t)texts[i], NULL, NULL, NULL, &err) != STATUS_FAILED_PRECONDITION)
            fail_msg("%s: %d %s", texts[i], err.code, err.text);
    }
    ok(db_write(db, NULL, caught_error, NULL, NULL, NULL, NULL, &err));
    ok(db_write(db, NULL, leaves_open, NULL, NULL, NULL, NULL, &err));
    assert_int_equal(db_write(db, NULL, not_null_foreign, NULL, NULL, NULL, NULL, &err), STATUS_FAILED_PRECONDITION);
    assert_int_equal(db_write(db, "big", big_result, NULL, NULL, NULL, NULL, &err), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(db_write(db, NULL, big_rows, NULL, NULL, NULL, NULL, &err), STATUS_RESOURCE_EXHAUSTED);
    assert_int_equal(db_write(db, NULL, deferred_violation, NULL, NULL, NULL, NULL, &err), STATUS_INTERNAL); /* no such table: rolled back */
    extend_schema(db, "CREATE TABLE later (id INTEGER PRIMARY KEY, p INT REFERENCES later DEFERRABLE INITIALLY DEFERRED)");
    assert_int_equal(db_write(db, NULL, deferred_violation, NULL, NULL, NULL, NULL, &err), STATUS_FAILED_PRECONDITION);
    ok(db_write(db, NULL, deferred_mended, NULL, NULL, NULL, NULL, &err));
    assert_int_equal(config_rows(db, DB_LINEARIZABLE), 3);
    char before[65], after[65];
    ok(db_digest(db, before, NULL, &err));
    member_close(world, 1);
    member_open(world, 1);
    leader_of(world);
    ok(db_digest(world->members[1].db, after, NULL, &err));
    assert_string_equal(before, after);
    world_close(world);
}

/* ---- many callers ---- */
struct writer { struct world *world; int number, writes; bool plain; pthread_t thread; int failed, good; bool unknown; };

static void *writer_main(void *arg)
{
    struct writer *writer = arg;
    for (int i = 0; i < writer->writes; i++) {
        char name[64];
        snprintf(name, sizeof name, "w%d-%d", writer->number, i);
        if (!writer->plain && i % 10 == 9) { /* an error among the others */
            struct error err = ERROR_INIT;
            struct db *db = writer->world->members[1].db;
            writer->failed += db_write(db, NULL, set_key, "first", NULL, NULL, NULL, &err) == STATUS_ALREADY_EXISTS;
        } else {
            writer->good += write_surely(writer->world, name, set_key, name, &writer->unknown) == STATUS_OK;
        }
    }
    return NULL;
}

static void many_writers(void **state)
{
    struct error err = ERROR_INIT;
    struct world *world = world_open();
    struct writer writers[64];
    assert_int_equal(write_surely(world, NULL, set_key, "first", NULL), STATUS_OK);
    for (int i = 0; i < 64; i++) {
        writers[i] = (struct writer){.world = world, .number = i, .writes = 20};
        assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_main, &writers[i]), 0);
    }
    for (int i = 0; i < 64; i++) {
        pthread_join(writers[i].thread, NULL);
        assert_int_equal(writers[i].good, 18);
        assert_int_equal(writers[i].failed, 2);
    }
    assert_int_equal(config_rows(world->members[1].db, DB_LINEARIZABLE), 64 * 18 + 1);
    char before[65], after[65];
    ok(db_digest(world->members[1].db, before, NULL, &err));
    member_close(world, 1);
    member_open(world, 1);
    leader_of(world);
    ok(db_digest(world->members[1].db, after, NULL, &err));
    assert_string_equal(before, after);
    world_close(world);
}

/* An entry made on another state than the current one is void, now and at every replay. */
static void void_entry(void **state)
{
    struct error err = ERROR_INIT;
    struct world *world = world_open();
    assert_int_equal(write_surely(world, NULL, set_key, "first", NULL), STATUS_OK);
    struct db *db = world->members[1].db;
    struct buf body = {0}, data = {0};
    rowlog_put_number(&body, 6);
    buf_puts(&body, "config");
    buf_add(&body, "\4\0\2", 3); /* DELETE FROM config WHERE rowid = 1 */
    pthread_mutex_lock(&db->lock);
    struct entry entry = {.kind = ENTRY_ROWS, .base = db->revision - 1, .schema_version = (uint32_t)db->schema_version, .count = 1, .tables = 1,
                          .body = (const uint8_t *)body.data, .body_len = body.len};
    pthread_mutex_unlock(&db->lock);
    char digests[3][65];
    for (int i = 0; i < 2; i++, entry.base++) { /* then once more on the current state: the entry itself is good */
        struct proposal *proposal = proposal_create(ENTRY_DIGEST, 2);
        int64_t end = time_mono_ms() + WAIT_MS;
        bool done = false;
        data.len = 0;
        entry_encode(&entry, &data);
        raft_node_propose(db_raft(db), data.data, data.len, proposal);
        while (!done && time_mono_ms() < end) {
            nap();
            pthread_mutex_lock(&db->lock);
            done = proposal->done;
            pthread_mutex_unlock(&db->lock);
        }
        assert_true(done);
        assert_int_equal(proposal->status, i == 0 ? STATUS_UNAVAILABLE : STATUS_OK);
        pthread_mutex_lock(&db->lock);
        proposal_release(proposal);
        pthread_mutex_unlock(&db->lock);
        assert_int_equal(config_rows(db, DB_LOCAL), i == 0 ? 1 : 0);
        ok(db_digest(db, digests[i], NULL, &err));
    }
    member_close(world, 1);
    member_open(world, 1);
    leader_of(world);
    ok(db_digest(world->members[1].db, digests[2], NULL, &err));
    assert_string_not_equal(digests[0], digests[1]);
    assert_string_equal(digests[1], digests[2]);
    buf_free(&body);
    buf_free(&data);
    world_close(world);
}

static int old_keys(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_script(sql, "INSERT INTO requests (key, done_at, result) VALUES ('old1', 1, x''), ('old2', 2, NULL)", err);
}

static int count_old(struct sql *sql, void *ud, struct error *err)
{
    return sql_get_int(sql, ud, err, "SELECT count(*) FROM requests WHERE key LIKE 'old%'", "");
}

static int no_text(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return STATUS_ABORTED;
}

static void old_requests(void **state)
{
    struct error err = ERROR_INIT;
    struct world *world = world_open();
    int64_t end = time_mono_ms() + WAIT_MS, count = 2;
    char digests[2][65];
    assert_int_equal(write_surely(world, "first", set_key, "first", NULL), STATUS_OK); /* the clock of keys goes on from the newest one */
    assert_int_equal(write_surely(world, "young", old_keys, NULL, NULL), STATUS_OK);
    struct db *db = world->members[1].db;
    assert_int_equal(db_write(db, NULL, no_text, NULL, NULL, NULL, NULL, &err), STATUS_ABORTED);
    assert_int_equal(err.code, STATUS_ABORTED);
    for (int i = 0; count && time_mono_ms() < end; i++) {
        char name[32];
        snprintf(name, sizeof name, "n%d", i);
        ok(db_write(db, name, set_key, name, NULL, NULL, NULL, &err));
        ok(db_read(db, DB_LOCAL, count_old, &count, NULL, &err));
        nap();
    }
    assert_int_equal(count, 0);
    bool replayed = false;
    ok(db_write(db, "young", old_keys, NULL, NULL, &replayed, NULL, &err));
    assert_true(replayed);
    ok(db_digest(db, digests[0], NULL, &err));
    member_close(world, 1);
    member_open(world, 1);
    leader_of(world);
    ok(db_digest(world->members[1].db, digests[1], NULL, &err));
    assert_string_equal(digests[0], digests[1]);
    world_close(world);
}

static int big_blob(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "INSERT INTO operations (uuid, type, class, status, created_at, updated_at, request)"
                    " VALUES (?1, 0, 1, 0, 0, 0, randomblob(3000000))", "s", (const char *)ud);
}

/* SQLite runs out of space while executing: the write is refused, nothing is left of it, and the next one works. */
static void full_while_executing(void **state)
{
    struct error err = ERROR_INIT;
    struct world *world = world_open();
    char digests[3][65];
    assert_int_equal(write_surely(world, NULL, set_key, "first", NULL), STATUS_OK);
    struct db *db = world->members[1].db;
    ok(db_digest(db, digests[0], NULL, &err));
    assert_int_equal(sqlite3_exec(sql_handle(db->exec), "PRAGMA max_page_count=1", NULL, NULL, NULL), SQLITE_OK); /* = no growth */
    assert_int_not_equal(db_write(db, "b", big_blob, "b", NULL, NULL, NULL, &err), STATUS_OK);
    assert_int_equal(sqlite3_exec(sql_handle(db->exec), "PRAGMA max_page_count=1000000", NULL, NULL, NULL), SQLITE_OK);
    ok(db_digest(db, digests[1], NULL, &err));
    assert_string_equal(digests[0], digests[1]);
    ok(db_write(db, "b", big_blob, "b", NULL, NULL, NULL, &err));
    ok(db_digest(db, digests[1], NULL, &err));
    member_close(world, 1);
    member_open(world, 1);
    leader_of(world);
    ok(db_digest(world->members[1].db, digests[2], NULL, &err));
    assert_string_equal(digests[1], digests[2]);
    world_close(world);
}

static void *waiting_reader(void *arg)
{
    int64_t count;
    struct member *member = arg;
    struct error err = ERROR_INIT;
    struct db *db = member_use(member);
    int status = db_read(db, DB_LOCAL, count_config, &count, NULL, &err);
    member_leave(member);
    return (void *)(intptr_t)status;
}

static int newest_step(struct sql *sql, void *ud, struct error *err)
{
    return sql_get_int(sql, ud, err, "SELECT max(version) * 100 + count(*) FROM schema", "");
}

static int use_step(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    char text[80];
    snprintf(text, sizeof text, "INSERT INTO test_level_%d (id) VALUES (1)", db_schema_version());
    return sql_exec(sql, err, text, "");
}

/* A step waits until all members know it, and is then applied once, before any write that waited; code that does not know it is told so. */
static void schema_gate(void **state)
{
    struct error err = ERROR_INIT;
    int64_t step = 0;
    setenv("COVEY_TEST_SCHEMA_LEVEL_BUMP", "1", 1);
    assert_int_equal(db_schema_floor(), db_schema_version() - 1);
    setenv("COVEY_TEST_SCHEMA_INCOMPATIBLE", "1", 1);
    assert_int_equal(db_schema_floor(), db_schema_version());
    struct world *world = world_open();
    assert_int_equal(write_surely(world, NULL, set_key, "first", NULL), STATUS_OK);
    struct db *db = world->members[1].db;
    ok(db_read(db, DB_LINEARIZABLE, newest_step, &step, NULL, &err));
    assert_int_equal(step, 101);
    assert_int_not_equal(db_write(db, NULL, use_step, NULL, NULL, NULL, NULL, NULL), STATUS_OK);
    db_schema_allow(db, db_schema_version());
    db_schema_allow(db, db_schema_version() + 5); /* more than it knows */
    ok(db_write(db, NULL, use_step, NULL, NULL, NULL, NULL, &err));
    ok(db_read(db, DB_LINEARIZABLE, newest_step, &step, NULL, &err));
    assert_int_equal(step, 101 * db_schema_version());
    ok(db_schema_check(db, &err));
    unsetenv("COVEY_TEST_SCHEMA_LEVEL_BUMP");
    unsetenv("COVEY_TEST_SCHEMA_INCOMPATIBLE");
    assert_int_equal(db_schema_check(db, &err), STATUS_FAILED_PRECONDITION);
    char text[80];
    snprintf(text, sizeof text, "schema version '%d' is more recent than expected '%d'", db_schema_version() + 1, db_schema_version());
    assert_string_equal(err.text, text);
    world_close(world);
}

/* db_stop answers who waits for a schema that does not come, long before the time is up. */
static void stop_answers(void **state)
{
    struct world *world = world_open();
    pthread_t thread;
    void *status = NULL;
    bool waits = false;
    member_open(world, 2); /* belongs to no cluster */
    struct db *db = world->members[2].db;
    assert_int_equal(db_write(db, NULL, set_key, "x", NULL, NULL, NULL, NULL), STATUS_UNAVAILABLE);
    int64_t start = time_mono_ms();
    assert_int_equal(pthread_create(&thread, NULL, waiting_reader, &world->members[2]), 0);
    while (!waits && time_mono_ms() < start + WAIT_MS) {
        nap();
        pthread_mutex_lock(&db->lock);
        waits = db->users > 0;
        pthread_mutex_unlock(&db->lock);
    }
    member_close(world, 2);
    pthread_join(thread, &status);
    assert_int_equal((intptr_t)status, STATUS_UNAVAILABLE);
    assert_true(time_mono_ms() - start < DB_WRITE_TIMEOUT_MS / 2);
    world_close(world);
}

struct slow_reader { struct db *db; pthread_t thread; atomic_bool stop; int reads; };

static int slow_read(struct sql *sql, void *ud, struct error *err)
{
    for (int i = 0; i < 15; i++)
        nap();
    return STATUS_OK;
}

static void *slow_reader_main(void *arg)
{
    struct slow_reader *reader = arg;
    while (!atomic_load(&reader->stop))
        reader->reads += db_read(reader->db, DB_LOCAL, slow_read, NULL, NULL, NULL) == STATUS_OK;
    return NULL;
}

static int blob(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "INSERT INTO cluster (id, uuid, certificate) VALUES (1, '', hex(randomblob(1500000)))"
                    " ON CONFLICT (id) DO UPDATE SET certificate = hex(randomblob(1500000))", "");
}

/* Reads that overlap all the time would let the WAL grow for ever. */
static void wal_is_bounded(void **state)
{
    struct error err = ERROR_INIT;
    struct world *world = world_open();
    struct slow_reader readers[3] = {0};
    assert_int_equal(write_surely(world, NULL, set_key, "first", NULL), STATUS_OK);
    struct db *db = world->members[1].db;
    for (int i = 0; i < 3; i++) {
        readers[i].db = db;
        assert_int_equal(pthread_create(&readers[i].thread, NULL, slow_reader_main, &readers[i]), 0);
        usleep(10000); /* out of step */
    }
    int high = 0, low = 0;
    int64_t end = time_mono_ms() + WAIT_MS;
    for (int i = 0; !low && time_mono_ms() < end; i++) {
        if (high <= DB_WAL_PAGES_MAX)
            ok(db_write(db, NULL, blob, NULL, NULL, NULL, NULL, &err));
        pthread_mutex_lock(&db->lock);
        high = db->wal_pages > high ? db->wal_pages : high;
        low = high > DB_WAL_PAGES_MAX && db->wal_pages == 0;
        pthread_mutex_unlock(&db->lock);
        nap();
    }
    assert_true(high > DB_WAL_PAGES_MAX);
    assert_true(low);
    for (int i = 0; i < 3; i++) {
        atomic_store(&readers[i].stop, true);
        pthread_join(readers[i].thread, NULL);
        assert_true(readers[i].reads > 0);
    }
    world_close(world);
}

/* ---- three members ---- */
static void form_three(struct world *world)
{
    struct error err = ERROR_INIT;
    assert_int_equal(write_surely(world, NULL, set_key, "first", NULL), STATUS_OK);
    for (uint64_t id = 2; id <= MEMBERS; id++) {
        member_open(world, id);
        ok(raft_node_add(db_raft(world->members[1].db), id, &err));
        ok(raft_node_assign(db_raft(world->members[1].db), id, RAFT_NODE_VOTER, &err));
    }
}

static void digest_round(struct world *world)
{
    struct error err = ERROR_INIT;
    uint64_t revision = 0;
    int64_t end = time_mono_ms() + WAIT_MS;
    size_t same = 0;
    ok(db_digest_round(world->members[leader_of(world)].db, &revision, &err));
    assert_true(revision > 0);
    while (same < MEMBERS && time_mono_ms() < end) {
        nap();
        same = 0;
        pthread_mutex_lock(&world->digest_lock);
        const char *first = NULL;
        for (size_t i = 0; i < world->digest_count; i++) {
            if (world->digests[i].revision != revision)
                continue;
            first = first ? first : world->digests[i].digest;
            assert_string_equal(first, world->digests[i].digest);
            same++;
        }
        pthread_mutex_unlock(&world->digest_lock);
    }
    assert_int_equal(same, MEMBERS);
}

static void leader_lost(void **state)
{
    struct world *world = world_open();
    struct writer writers[24];
    struct error err = ERROR_INIT;
    bool unknown = false;
    form_three(world);
    digest_round(world);
    assert_int_equal(db_write(world->members[2].db, NULL, set_key, "follower", NULL, NULL, NULL, &err), STATUS_UNAVAILABLE);
    assert_true(err.not_leader);
    assert_int_equal(err.leader, 1);
    for (int i = 0; i < 24; i++) {
        writers[i] = (struct writer){.world = world, .number = i, .writes = 60, .plain = true};
        assert_int_equal(pthread_create(&writers[i].thread, NULL, writer_main, &writers[i]), 0);
    }
    for (int round = 0; round < 2; round++) { /* first without network, then stopped */
        for (int64_t rows = 0, start = config_rows(world->members[3 - round].db, DB_LOCAL); rows < start + 150; nap())
            rows = config_rows(world->members[3 - round].db, DB_LOCAL);
        uint64_t leader = leader_of(world);
        if (round == 0) {
            atomic_store(&world->members[leader].cut, true);
            leader_of(world);
            atomic_store(&world->members[leader].cut, false);
        } else {
            member_close(world, leader);
            leader_of(world);
            member_open(world, leader);
        }
    }
    for (int i = 0; i < 24; i++) {
        pthread_join(writers[i].thread, NULL);
        assert_int_equal(writers[i].good, 60);
        unknown |= writers[i].unknown;
    }
    assert_true(unknown); /* the case was met, */
    assert_int_equal(config_rows(world->members[leader_of(world)].db, DB_LINEARIZABLE), 24 * 60 + 1); /* and nothing doubled */
    all_equal(world);
    digest_round(world);
    world_close(world);
}

static void lagging_member(void **state)
{
    struct world *world = world_open();
    struct error err = ERROR_INIT;
    form_three(world);
    leader_of(world);
    member_close(world, 3);
    for (int i = 0; i < 12; i++) {
        char name[16];
        snprintf(name, sizeof name, "big%d", i);
        assert_int_equal(write_surely(world, name, big_blob, name, NULL), STATUS_OK);
    }
    member_open(world, 3);
    assert_int_equal(write_surely(world, "after", set_key, "after", NULL), STATUS_OK);
    all_equal(world);
    struct raft_node_status status;
    ok(raft_node_status(db_raft(world->members[3].db), &status, &err));
    assert_true(status.snapshot_index > 0);
    raft_node_status_free(&status);
    for (uint64_t id = 1; id <= MEMBERS; id++) /* all start again, from snapshot and log */
        member_close(world, id);
    for (uint64_t id = 1; id <= MEMBERS; id++)
        member_open(world, id);
    all_equal(world);
    world_close(world);
}

int main(void)
{
    log_init("db_test", LOG_LEVEL_WARN);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_read_reopen), cmocka_unit_test(refusals), cmocka_unit_test(many_writers),
        cmocka_unit_test(void_entry), cmocka_unit_test(old_requests), cmocka_unit_test(wal_is_bounded), cmocka_unit_test(full_while_executing),
        cmocka_unit_test(schema_gate), cmocka_unit_test(stop_answers),
        cmocka_unit_test(leader_lost), cmocka_unit_test(lagging_member),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
