/* The SQLite helper: binding, results, errors, cache. */
#include "storage/db_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define ok(expr) do { if ((expr) != STATUS_OK) fail_msg("%s: %s", #expr, err.text); } while (0)

static int setup(void **state)
{
    struct sql *sql;
    struct error err = ERROR_INIT;
    if (sql_open(":memory:", SQL_CREATE, &sql, &err) != STATUS_OK
        || sql_script(sql, "CREATE TABLE p (id INTEGER PRIMARY KEY); CREATE TABLE t (id INTEGER PRIMARY KEY, s TEXT UNIQUE, d REAL, b BLOB, p REFERENCES p,"
                      " n INT NOT NULL DEFAULT 0); -- end\n", &err) != STATUS_OK)
        return -1;
    *state = sql;
    return 0;
}

static int teardown(void **state)
{
    sql_close(*state);
    return 0;
}

static void types(void **state)
{
    struct sql *sql = *state;
    struct error err = ERROR_INIT;
    size_t len;
    ok(sql_exec(sql, &err, "INSERT INTO t (id, s, d, b, n) VALUES (?1, ?2, ?3, ?4, ?5)", "isdbo", (int64_t)7, "seven", 7.5, "\0x", (size_t)2, 5));
    assert_int_equal(sql_last_id(sql), 7);
    ok(sql_exec(sql, &err, "INSERT INTO t (id, s, d, b) VALUES (8, ?1, ?2, ?3)", "snb", NULL, "", (size_t)0));
    struct sql_stmt *stmt = sql_query(sql, "SELECT id, s, d, b, n FROM t ORDER BY id", "");
    assert_int_equal(sql_columns(stmt), 5);
    assert_true(sql_next(stmt));
    assert_int_equal(sql_int(stmt, 0), 7);
    assert_string_equal(sql_text(stmt, 1), "seven");
    assert_true(sql_double(stmt, 2) == 7.5);
    assert_memory_equal(sql_blob(stmt, 3, &len), "\0x", 2);
    assert_int_equal(len, 2);
    assert_int_equal(sql_int(stmt, 4), 1);
    assert_true(sql_next(stmt));
    assert_true(sql_null(stmt, 1) && sql_null(stmt, 2) && !sql_null(stmt, 3));
    assert_string_equal(sql_text(stmt, 1), "");
    assert_false(sql_next(stmt));
    ok(sql_done(stmt, &err));
    int64_t n;
    char *text;
    ok(sql_get_int(sql, &n, &err, "SELECT count(*) FROM t", ""));
    assert_int_equal(n, 2);
    assert_int_equal(sql_get_int(sql, &n, &err, "SELECT id FROM t WHERE id = ?1", "i", (int64_t)99), STATUS_NOT_FOUND);
    ok(sql_get_text(sql, &text, &err, "SELECT s FROM t WHERE id = 7", ""));
    assert_string_equal(text, "seven");
    free(text);
    ok(sql_exec(sql, &err, "UPDATE t SET n = 3", ""));
    assert_int_equal(sql_changes(sql), 2);
}

static void errors(void **state)
{
    struct sql *sql = *state;
    struct error err = ERROR_INIT;
    ok(sql_exec(sql, &err, "INSERT INTO t (id, s) VALUES (1, 'a')", ""));
    assert_int_equal(sql_exec(sql, &err, "INSERT INTO t (id) VALUES (1)", ""), STATUS_ALREADY_EXISTS);
    assert_int_equal(sql_exec(sql, &err, "INSERT INTO t (s) VALUES ('a')", ""), STATUS_ALREADY_EXISTS);
    assert_non_null(strstr(err.text, "t.s"));
    assert_int_equal(sql_exec(sql, &err, "INSERT INTO t (p) VALUES (9)", ""), STATUS_FAILED_PRECONDITION);
    assert_int_equal(sql_exec(sql, &err, "INSERT INTO t (n) VALUES (NULL)", ""), STATUS_FAILED_PRECONDITION);
    assert_int_equal(sql_exec(sql, &err, "SELEC 1", ""), STATUS_INTERNAL);
    assert_int_equal(sql_exec(sql, &err, "", ""), STATUS_INTERNAL);
    assert_int_equal(sql_exec(sql, &err, "SELECT 1; SELECT 2", ""), STATUS_INTERNAL);
    assert_int_equal(sql_exec(sql, &err, "SELECT ?1", ""), STATUS_INTERNAL);
    assert_int_equal(sql_exec(sql, &err, "SELECT ?1", "ii", (int64_t)1, (int64_t)2), STATUS_INTERNAL);
    assert_int_equal(sql_script(sql, "SELECT 1; NONSENSE", &err), STATUS_INTERNAL);
    struct sql_stmt *stmt = sql_query(sql, "SELECT * FROM nowhere", "");
    assert_non_null(stmt);
    assert_false(sql_next(stmt));
    assert_int_equal(sql_columns(stmt), 0);
    assert_int_equal(sql_done(stmt, &err), STATUS_INTERNAL);
    assert_non_null(strstr(err.text, "nowhere"));
    struct sql *none;
    assert_int_equal(sql_open("/nonexistent/x", SQL_CREATE, &none, &err), STATUS_INTERNAL);
    assert_null(none);
}

static void nested_and_cached(void **state)
{
    struct sql *sql = *state;
    struct error err = ERROR_INIT;
    const char *text = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < ?1) SELECT x FROM c";
    struct sql_stmt *outer = sql_query(sql, text, "i", (int64_t)3);
    int rows = 0;
    while (sql_next(outer)) { /* the same text while it runs */
        struct sql_stmt *inner = sql_query(sql, text, "i", (int64_t)2);
        while (sql_next(inner))
            rows++;
        ok(sql_done(inner, &err));
    }
    ok(sql_done(outer, &err));
    assert_int_equal(rows, 6);
    for (int i = 0; i < 1000; i++) { /* more texts than the cache holds */
        char query[64];
        int64_t n;
        snprintf(query, sizeof query, "SELECT %d + ?1", i);
        ok(sql_get_int(sql, &n, &err, query, "i", (int64_t)1));
        assert_int_equal(n, i + 1);
    }
    struct sql_stmt *left = sql_query(sql, text, "i", (int64_t)3);
    assert_true(sql_next(left));
    assert_int_equal(sql__reset(sql), 1);
    assert_int_equal(sql__reset(sql), 0);
}

static void read_only(void **state)
{
    struct error err = ERROR_INIT;
    struct sql *writer, *reader;
    int64_t n;
    char dir[] = "/tmp/covey-sql-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *path = xasprintf("%s/x", dir);
    ok(sql_open(path, SQL_CREATE | SQL_SYNC_OFF, &writer, &err));
    ok(sql_exec(writer, &err, "CREATE TABLE t (a)", ""));
    ok(sql_open(path, SQL_READONLY, &reader, &err));
    assert_int_not_equal(sql_exec(reader, &err, "INSERT INTO t VALUES (1)", ""), STATUS_OK);
    ok(sql__control(reader, SQL_BEGIN_READ, &err));
    ok(sql_get_int(reader, &n, &err, "SELECT count(*) FROM t", ""));
    ok(sql_exec(writer, &err, "INSERT INTO t VALUES (1)", ""));
    ok(sql_get_int(reader, &n, &err, "SELECT count(*) FROM t", ""));
    assert_int_equal(n, 0); /* its own state */
    ok(sql__control(reader, SQL_ROLLBACK, &err));
    ok(sql_get_int(reader, &n, &err, "SELECT count(*) FROM t", ""));
    assert_int_equal(n, 1);
    sql_close(reader);
    sql_close(writer);
    free(path);
    ok(dir_remove_all(dir, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(types, setup, teardown), cmocka_unit_test_setup_teardown(errors, setup, teardown),
        cmocka_unit_test_setup_teardown(nested_and_cached, setup, teardown), cmocka_unit_test(read_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
