/* The local database: keys, known voters, certificates; all survive reopening. */
#include "storage/local.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define ok(expr) do { if ((expr) != STATUS_OK) fail_msg("%s: %s", #expr, err.text); } while (0)

static char dir[] = "/tmp/covey-local-XXXXXX";

static int setup(void **state)
{
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    int status = dir_remove_all(dir, NULL);
    strcpy(dir, "/tmp/covey-local-XXXXXX");
    return status;
}

static void keys(void **state)
{
    struct error err = ERROR_INIT;
    struct local_db *local;
    ok(local_db_open(dir, &local, &err));
    assert_null(local_config_get(local, "core.https_address"));
    ok(local_config_set(local, "core.https_address", "[::]:8443", &err));
    ok(local_config_set(local, "core.https_address", "127.0.0.1:8443", &err));
    ok(local_state_set(local, "member_id", "3", &err));
    ok(local_state_set(local, "gone", "x", &err));
    ok(local_state_set(local, "gone", NULL, &err));
    ok(local_state_set(local, "old", "x", &err));
    const struct local_key keys[] = {{"old", NULL}, {"member_id", "4"}, {"name", "m4"}};
    ok(local_state_set_all(local, keys, 3, &err));
    local_db_close(local);
    ok(local_db_open(dir, &local, &err));
    char *value = local_config_get(local, "core.https_address");
    assert_string_equal(value, "127.0.0.1:8443");
    free(value);
    value = local_state_get(local, "member_id");
    assert_string_equal(value, "4");
    free(value);
    value = local_state_get(local, "name");
    assert_string_equal(value, "m4");
    free(value);
    assert_null(local_state_get(local, "old"));
    assert_null(local_state_get(local, "gone"));
    assert_null(local_config_get(local, "member_id"));
    local_db_close(local);
}

static void lists(void **state)
{
    struct error err = ERROR_INIT;
    struct local_db *local;
    struct local_raft_node *nodes;
    struct local_certificate *certs, cert = {.name = "m1", .pem = "PEM"};
    size_t count;
    memset(cert.fingerprint, 'a', 64);
    struct local_raft_node in[] = {{2, "b:1", 1, "m2"}, {1, "a:1", 0, NULL}}, twice[] = {{1, "a:1", 0, NULL}, {5, "a:1", 0, NULL}};
    ok(local_db_open(dir, &local, &err));
    ok(local_raft_nodes_replace(local, in, 2, &err));
    assert_int_equal(local_raft_nodes_replace(local, twice, 2, &err), STATUS_ALREADY_EXISTS); /* and nothing is lost */
    ok(local_certificates_replace(local, &cert, 1, &err));
    local_db_close(local);
    ok(local_db_open(dir, &local, &err));
    ok(local_raft_nodes_get(local, &nodes, &count, &err));
    assert_int_equal(count, 2);
    assert_int_equal(nodes[0].id, 1);
    assert_string_equal(nodes[0].name, "");
    assert_int_equal(nodes[1].role, 1);
    assert_string_equal(nodes[1].address, "b:1");
    local_raft_nodes_free(nodes, count);
    ok(local_certificates_get(local, &certs, &count, &err));
    assert_int_equal(count, 1);
    assert_string_equal(certs[0].fingerprint, cert.fingerprint);
    assert_string_equal(certs[0].pem, "PEM");
    local_certificates_free(certs, count);
    ok(local_certificates_replace(local, NULL, 0, &err));
    ok(local_certificates_get(local, &certs, &count, &err));
    assert_int_equal(count, 0);
    local_db_close(local);
}

static int leave_open(struct sql *sql, void *ud, struct error *err)
{
    return sql_script(sql, "BEGIN; INSERT INTO patches (name, applied_at) VALUES ('p', 1)", err);
}

static int count_patches(struct sql *sql, void *ud, struct error *err)
{
    return sql_get_int(sql, ud, err, "SELECT count(*) FROM patches", "");
}

static void with(void **state)
{
    struct error err = ERROR_INIT;
    struct local_db *local;
    int64_t count = -1;
    ok(local_db_open(dir, &local, &err));
    assert_int_equal(local_db_with(local, leave_open, NULL, &err), STATUS_FAILED_PRECONDITION);
    ok(local_db_with(local, count_patches, &count, &err));
    assert_int_equal(count, 0);
    local_db_close(local);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(keys, setup, teardown), cmocka_unit_test_setup_teardown(lists, setup, teardown),
        cmocka_unit_test_setup_teardown(with, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
