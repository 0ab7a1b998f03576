/* Row log: statements run with capture on one database and are replayed on a second one; both must have one digest. */
#include "storage/rowlog.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct pair {
    char dir[32], *path[2];
    struct sql *exec, *replay;
    struct capture capture;
    struct catalog catalog;
};

#define ok(expr) do { struct error *e_ = &err; if ((expr) != STATUS_OK) fail_msg("%s: %s", #expr, e_->text); } while (0)

static void pair_open(struct pair *p, const char *schema)
{
    struct error err = ERROR_INIT;
    memset(p, 0, sizeof *p);
    strcpy(p->dir, "/tmp/covey-rowlog-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    p->path[0] = xasprintf("%s/a", p->dir);
    p->path[1] = xasprintf("%s/b", p->dir);
    ok(sql_open(p->path[0], SQL_CREATE | SQL_SYNC_OFF, &p->exec, &err));
    ok(sql_open(p->path[1], SQL_CREATE | SQL_SYNC_OFF, &p->replay, &err));
    ok(sql_script(p->exec, schema, &err));
    ok(sql_script(p->replay, schema, &err));
    ok(sql_exec(p->replay, &err, "PRAGMA foreign_keys=OFF", ""));
    sqlite3_db_config(sql_handle(p->replay), SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    ok(capture_init(&p->capture, p->exec, &err));
    ok(catalog_load(p->replay, &p->catalog, &err));
}

static void pair_close(struct pair *p)
{
    struct error err = ERROR_INIT;
    capture_free(&p->capture);
    catalog_free(&p->catalog);
    sql_close(p->exec);
    sql_close(p->replay);
    free(p->path[0]);
    free(p->path[1]);
    ok(dir_remove_all(p->dir, &err));
}

static void pair_same(struct pair *p)
{
    struct error err = ERROR_INIT;
    char a[65], b[65];
    ok(digest_compute(p->exec, a, &err));
    ok(digest_compute(p->replay, b, &err));
    if (strcmp(a, b) != 0)
        fail_msg("the databases %s and %s differ", p->path[0], p->path[1]); /* kept for a look */
}

static void begin(struct pair *p)
{
    struct error err = ERROR_INIT;
    ok(sql__control(p->exec, SQL_BEGIN_WRITE, &err));
    ok(capture_begin(&p->capture, &err));
    p->capture.on = true;
}

/* Commits on the one side, replays on the other; gives the number of operations. */
static uint32_t commit(struct pair *p)
{
    struct error err = ERROR_INIT;
    struct buf data = {0};
    struct entry entry;
    p->capture.on = false;
    assert_string_equal(p->capture.doomed, "");
    ok(capture_finish(&p->capture, &err));
    capture_encode(&p->capture, 7, 3, &data);
    ok(sql__control(p->exec, SQL_COMMIT, &err));
    capture_committed(&p->capture, true);
    assert_int_equal(data.len % 8, 0);
    ok(entry_decode(data.data, data.len, &entry, &err));
    assert_int_equal(entry.base, 7);
    assert_int_equal(entry.schema_version, 3);
    ok(sql__control(p->replay, SQL_BEGIN_WRITE, &err));
    ok(rowlog_replay(&p->catalog, &entry, &err));
    ok(sql__control(p->replay, SQL_COMMIT, &err));
    pair_same(p);
    uint32_t count = entry.count;
    buf_free(&data);
    return count;
}

static uint32_t run(struct pair *p, const char *script)
{
    struct error err = ERROR_INIT;
    begin(p);
    ok(sql_script(p->exec, script, &err));
    return commit(p);
}

static void simple_types(void **state)
{
    struct pair p;
    struct error err = ERROR_INIT;
    pair_open(&p, "CREATE TABLE t (id INTEGER PRIMARY KEY, a, b REAL, c TEXT, d BLOB, \"od\"\"d name\" INT)");
    begin(&p);
    ok(sql_exec(p.exec, &err, "INSERT INTO t VALUES (?1, ?2, ?3, ?4, ?5, ?6)", "iidsbn", (int64_t)INT64_MIN, (int64_t)INT64_MAX, 3.0, "x",
                "\0\1\2", (size_t)3));
    ok(sql_exec(p.exec, &err, "INSERT INTO t VALUES (?1, ?2, ?3, ?4, ?5, ?6)", "idisbi", (int64_t)-1, 1.5e300, (int64_t)4, "", "", (size_t)0, (int64_t)-5));
    ok(sql_exec(p.exec, &err, "INSERT INTO t(c, a) VALUES (?1, zeroblob(70000))", "s", "äöü"));
    assert_int_equal(commit(&p), 3);
    assert_int_equal(run(&p, "UPDATE t SET a = NULL, c = 'y' WHERE id < 0; DELETE FROM t WHERE id = -1"), 3);
    assert_int_equal(run(&p, "UPDATE t SET id = 12 WHERE id = -9223372036854775808"), 1);
    assert_int_equal(run(&p, "INSERT INTO t (a) SELECT id FROM t; DELETE FROM t"), 6);
    pair_close(&p);
}

static void unique_swap(void **state)
{
    struct pair p;
    pair_open(&p, "CREATE TABLE t (id INTEGER PRIMARY KEY, u TEXT UNIQUE)");
    run(&p, "INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    run(&p, "UPDATE t SET u = 'tmp' WHERE id = 1; UPDATE t SET u = 'a' WHERE id = 2; UPDATE t SET u = 'b' WHERE id = 1");
    run(&p, "REPLACE INTO t VALUES (3, 'a'); REPLACE INTO t VALUES (1, 'a'); UPDATE OR REPLACE t SET u = 'a' WHERE id = 2");
    run(&p, "INSERT INTO t VALUES (5, 'e'); INSERT INTO t VALUES (9, 'e') ON CONFLICT (u) DO UPDATE SET u = 'f', id = 10");
    pair_close(&p);
}

static void cascades(void **state)
{
    struct pair p;
    pair_open(&p, "CREATE TABLE p (id INTEGER PRIMARY KEY); "
              "CREATE TABLE c (id INTEGER PRIMARY KEY, p INT REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE);"
              "CREATE TABLE n (id INTEGER PRIMARY KEY, c INT REFERENCES c ON DELETE SET NULL);"
              "CREATE TABLE log (what TEXT); CREATE TRIGGER tr AFTER DELETE ON c BEGIN INSERT INTO log VALUES ('gone ' || old.id); END;"
              "CREATE TRIGGER tu BEFORE UPDATE ON c BEGIN INSERT INTO log VALUES ('up ' || old.p || new.p); END");
    run(&p, "INSERT INTO p VALUES (1), (2); INSERT INTO c VALUES (1, 1), (2, 1), (3, 2); INSERT INTO n VALUES (1, 1), (2, 3)");
    run(&p, "UPDATE p SET id = 7 WHERE id = 1");
    run(&p, "DELETE FROM p WHERE id = 7");
    run(&p, "DELETE FROM p");
    pair_close(&p);
}

static void odd_tables(void **state)
{
    struct pair p;
    pair_open(&p, "CREATE TABLE nopk (a, b); CREATE TABLE dup (rowid TEXT, oid INT);"
              "CREATE TABLE only (id INTEGER PRIMARY KEY);"
              "CREATE TABLE descpk (id INTEGER PRIMARY KEY DESC, v);"
              "CREATE TABLE wr (x TEXT, y INT, z, v TEXT COLLATE NOCASE, PRIMARY KEY (v, y)) WITHOUT ROWID;"
              "CREATE TABLE gen (g2 TEXT AS (b || 'x') STORED, id INTEGER PRIMARY KEY, g1 INT GENERATED ALWAYS AS (a * 2) VIRTUAL, a INT, b TEXT, c REAL);"
              "CREATE TABLE gen2 (g1 INT AS (a * 2) VIRTUAL, a INT, b TEXT);"
              "CREATE TABLE wrgen (g INT AS (k + 1) VIRTUAL, k INT, s INT AS (k * 3) STORED, v, PRIMARY KEY (k)) WITHOUT ROWID");
    run(&p, "INSERT INTO nopk VALUES (1, 2), (1, 2), (NULL, NULL); INSERT INTO dup VALUES ('r', 1), ('s', 2); INSERT INTO only VALUES (NULL), (9)");
    run(&p, "DELETE FROM nopk WHERE _rowid_ = 2; UPDATE nopk SET b = 5 WHERE a IS NULL; UPDATE dup SET rowid = 'q'; UPDATE only SET id = id + 100;"
            "UPDATE nopk SET rowid = rowid + 50");
    run(&p, "INSERT INTO descpk VALUES (5, 'a'), (3, 'b'); UPDATE descpk SET id = id + 1; DELETE FROM descpk WHERE id = 4");
    run(&p, "INSERT INTO wr VALUES ('x1', 1, 1.5, 'Key'), ('x2', 2, x'00ff', 'key'), ('x3', 3, NULL, '')");
    run(&p, "UPDATE wr SET y = y + 10, x = 'm' WHERE v = 'KEY'; UPDATE wr SET z = 'same' WHERE y = 3; REPLACE INTO wr VALUES ('n', 3, 0, ''); DELETE FROM wr WHERE y = 11");
    run(&p, "INSERT INTO gen (a, b, c) VALUES (1, 'one', 1), (2, 'two', 2.5); UPDATE gen SET a = 7, b = 'sev' WHERE id = 1; UPDATE gen SET id = 40 WHERE id = 2; UPDATE gen SET c = 9");
    run(&p, "INSERT INTO gen2 (a, b) VALUES (1, 'x'), (2, 'y'); UPDATE gen2 SET a = 5 WHERE g1 = 2; UPDATE gen2 SET b = 'z'; DELETE FROM gen2 WHERE a = 2");
    run(&p, "INSERT INTO wrgen (k, v) VALUES (1, 'a'), (2, 'b'); UPDATE wrgen SET v = 'c' WHERE k = 1; UPDATE wrgen SET k = 9 WHERE k = 2; DELETE FROM wrgen WHERE g = 2");
    pair_close(&p);
}

static void sequences(void **state)
{
    struct pair p;
    pair_open(&p, "CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT, u TEXT UNIQUE); CREATE TABLE b (id INTEGER PRIMARY KEY AUTOINCREMENT)");
    run(&p, "INSERT INTO a (u) VALUES ('x'), ('y'); DELETE FROM a WHERE u = 'y'");
    run(&p, "INSERT OR IGNORE INTO a (u) VALUES ('x'); INSERT INTO a (u) VALUES ('x') ON CONFLICT (u) DO UPDATE SET u = 'z'");
    run(&p, "INSERT INTO b VALUES (500); INSERT INTO a (u) VALUES ('w'); DELETE FROM b; UPDATE a SET id = 4000 WHERE u = 'w'");
    run(&p, "INSERT INTO b VALUES (NULL); INSERT INTO a (u) VALUES ('v')");
    struct error err = ERROR_INIT;
    int64_t id;
    ok(sql_get_int(p.replay, &id, &err, "SELECT max(id) FROM b", ""));
    assert_int_equal(id, 501);
    pair_close(&p);
}

/* What a failed statement recorded is cut off; what failed half-way dooms the request. */
static void failures(void **state)
{
    struct pair p;
    struct error err = ERROR_INIT;
    pair_open(&p, "CREATE TABLE t (id INTEGER PRIMARY KEY, u UNIQUE, p INT REFERENCES t)");
    begin(&p);
    ok(sql_exec(p.exec, &err, "INSERT INTO t VALUES (1, 1, NULL)", ""));
    assert_int_equal(sql_exec(p.exec, &err, "INSERT INTO t VALUES (2, 2, NULL), (3, 1, NULL)", ""), STATUS_ALREADY_EXISTS);
    assert_int_equal(sql_exec(p.exec, &err, "INSERT INTO t VALUES (4, 4, 99)", ""), STATUS_FAILED_PRECONDITION);
    assert_int_equal(p.capture.count, 1);
    struct capture_mark mark = capture_mark(&p.capture);
    ok(sql__control(p.exec, SQL_SAVEPOINT, &err));
    ok(sql_exec(p.exec, &err, "INSERT INTO t VALUES (5, 5, NULL)", ""));
    ok(sql__control(p.exec, SQL_ROLLBACK_TO, &err));
    ok(sql__control(p.exec, SQL_RELEASE, &err));
    capture_cut(&p.capture, mark);
    assert_int_equal(commit(&p), 1);
    begin(&p);
    assert_int_equal(sql_exec(p.exec, &err, "INSERT OR FAIL INTO t VALUES (6, 6, NULL), (7, 1, NULL)", ""), STATUS_ALREADY_EXISTS);
    assert_string_not_equal(p.capture.doomed, "");
    ok(sql__control(p.exec, SQL_ROLLBACK, &err));
    pair_close(&p);
}

/* Entries that lie in any byte are refused, never followed. */
static void bad_entries(void **state)
{
    struct pair p;
    struct error err = ERROR_INIT;
    struct buf data = {0};
    struct entry entry;
    pair_open(&p, "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)");
    begin(&p);
    ok(sql_exec(p.exec, &err, "INSERT INTO t VALUES (1, 'abc'), (2, NULL)", ""));
    ok(sql_exec(p.exec, &err, "UPDATE t SET a = 'longer text' WHERE id = 2", ""));
    capture_encode(&p.capture, 0, 1, &data);
    p.capture.on = false;
    ok(sql__control(p.exec, SQL_ROLLBACK, &err));
    for (size_t len = 0; len < data.len; len++)
        assert_int_not_equal(entry_decode(data.data, len, &entry, &err), STATUS_OK);
    char *copy = xmalloc(data.len);
    for (size_t i = 0; i < data.len; i++)
        for (int bit = 0; bit < 8; bit++) { /* no crash; some changes are valid entries */
            memcpy(copy, data.data, data.len);
            copy[i] ^= (char)(1 << bit);
            if (entry_decode(copy, data.len, &entry, &err) != STATUS_OK)
                continue;
            ok(sql__control(p.replay, SQL_BEGIN_WRITE, &err));
            rowlog_replay(&p.catalog, &entry, &err);
            ok(sql__control(p.replay, SQL_ROLLBACK, &err));
        }
    ok(entry_decode(data.data, data.len, &entry, &err));
    ok(sql__control(p.replay, SQL_BEGIN_WRITE, &err));
    ok(rowlog_replay(&p.catalog, &entry, &err));
    assert_int_not_equal(rowlog_replay(&p.catalog, &entry, &err), STATUS_OK); /* the rows are there already */
    ok(sql__control(p.replay, SQL_ROLLBACK, &err));
    entry.body_len--;
    ok(sql__control(p.replay, SQL_BEGIN_WRITE, &err));
    assert_int_equal(rowlog_replay(&p.catalog, &entry, &err), STATUS_DATA_LOSS);
    ok(sql__control(p.replay, SQL_ROLLBACK, &err));
    free(copy);
    buf_free(&data);
    pair_close(&p);
}

static uint64_t next(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    return *seed ^= *seed << 17;
}

static void random_statement(struct pair *p, uint64_t *seed)
{
    static const char *const texts[] = {
        "INSERT OR IGNORE INTO a (u, v) VALUES (?1, ?2)", "REPLACE INTO a (id, u, v) VALUES (?1, ?2, 'r')", "UPDATE OR REPLACE a SET u = ?1 WHERE id % 7 = ?2 % 7",
        "DELETE FROM a WHERE id = ?1 + 0 * ?2", "INSERT INTO a (u, v) VALUES (?1, ?2) ON CONFLICT (u) DO UPDATE SET v = v || 'c'",
        "INSERT INTO b (a, t) SELECT id, ?1 FROM a WHERE id % 5 = ?2 % 5", "UPDATE b SET rowid = rowid + 1000 WHERE t = ?1 + 0 * ?2",
        "REPLACE INTO w VALUES (?1, ?2, randomblob(9))", "UPDATE OR IGNORE w SET k = k + ?1 WHERE l < ?2", "UPDATE w SET d = NULL WHERE k = ?1 OR l = ?2",
        "DELETE FROM w WHERE k > ?1 AND l > ?2", "INSERT INTO a (id, u) VALUES (?1, ?2)",
    };
    struct error err = ERROR_INIT; /* constraint violations are part of it */
    sql_exec(p->exec, &err, texts[next(seed) % (sizeof texts / sizeof *texts)], "ii", (int64_t)(next(seed) % 40), (int64_t)(next(seed) % 40));
}

static void random_runs(void **state)
{
    static const uint64_t seeds[] = {1, 7, 42, 1234567, 0xdeadbeef, 987654321, 0x5eed, 77777};
    for (size_t s = 0; s < sizeof seeds / sizeof *seeds; s++) {
        struct pair p;
        struct error err = ERROR_INIT;
        uint64_t seed = seeds[s];
        pair_open(&p, "CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT, u INT UNIQUE, v TEXT);"
                  "CREATE TABLE b (a INT REFERENCES a ON DELETE CASCADE ON UPDATE SET NULL, t); CREATE INDEX bt ON b (t);"
                  "CREATE TABLE w (k INT, l INT, d BLOB, PRIMARY KEY (k, l)) WITHOUT ROWID; CREATE TABLE log (x);"
                  "CREATE TRIGGER ta AFTER UPDATE ON a BEGIN INSERT INTO log VALUES (new.id); DELETE FROM log WHERE rowid < new.id; END");
        for (int batch = 0; batch < 60; batch++) {
            begin(&p);
            for (int request = 0; request < 4; request++) {
                struct capture_mark mark = capture_mark(&p.capture);
                ok(sql__control(p.exec, SQL_SAVEPOINT, &err));
                for (int i = 0; i < 4; i++)
                    random_statement(&p, &seed);
                if (p.capture.doomed[0] || next(&seed) % 4 == 0) {
                    p.capture.doomed[0] = '\0';
                    ok(sql__control(p.exec, SQL_ROLLBACK_TO, &err));
                    capture_cut(&p.capture, mark);
                }
                ok(sql__control(p.exec, SQL_RELEASE, &err));
            }
            commit(&p);
        }
        int64_t rows;
        ok(sql_get_int(p.exec, &rows, &err, "SELECT (SELECT count(*) FROM a) + (SELECT count(*) FROM b) + (SELECT count(*) FROM w)", ""));
        assert_true(rows > 10);
        pair_close(&p);
    }
}

/* SQLite reports wrong values for such a table. */
static void refused_table(void **state)
{
    struct sql *sql;
    struct catalog catalog;
    struct error err = ERROR_INIT;
    ok(sql_open(":memory:", 0, &sql, &err));
    ok(sql_script(sql, "CREATE TABLE t (g INT AS (a) VIRTUAL, a INT, id INTEGER PRIMARY KEY, c REAL)", &err));
    assert_int_equal(catalog_load(sql, &catalog, &err), STATUS_FAILED_PRECONDITION);
    sql_close(sql);
}

/* The digest sees a value's type, a rowid, a counter and the schema. */
static void digest_differs(void **state)
{
    static const char *const changes[] = {"UPDATE t SET a = '1'", "UPDATE t SET a = 1.0", "UPDATE t SET rowid = 5", "INSERT INTO s VALUES (1); DELETE FROM s",
                                          "CREATE INDEX i ON t (a)", "UPDATE t SET a = x'31'"};
    struct pair p;
    struct error err = ERROR_INIT;
    pair_open(&p, "CREATE TABLE t (a); CREATE TABLE s (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO t VALUES (1)");
    pair_same(&p);
    char before[65], after[65];
    ok(digest_compute(p.exec, before, &err));
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        ok(sql__control(p.exec, SQL_BEGIN_WRITE, &err));
        ok(sql_script(p.exec, changes[i], &err));
        ok(digest_compute(p.exec, after, &err));
        assert_string_not_equal(before, after);
        ok(sql__control(p.exec, SQL_ROLLBACK, &err));
    }
    pair_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(simple_types), cmocka_unit_test(unique_swap), cmocka_unit_test(cascades), cmocka_unit_test(odd_tables),
        cmocka_unit_test(sequences), cmocka_unit_test(failures), cmocka_unit_test(bad_entries), cmocka_unit_test(random_runs),
        cmocka_unit_test(digest_differs), cmocka_unit_test(refused_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
