/* Rules of operations that need no database: timeouts, who sees what, secrets, the form for clients. */
#include "server/operations/operations_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

struct daemon *the_daemon; /* main.c is not linked */

static void timeouts_are_parsed(void **state)
{
    struct error err = ERROR_INIT;
    int64_t ms = 0;
    assert_int_equal(op_timeout_parse("", &ms, &err), STATUS_OK);
    assert_int_equal(ms, -1);
    assert_int_equal(op_timeout_parse("-1", &ms, &err), STATUS_OK);
    assert_int_equal(ms, -1);
    assert_int_equal(op_timeout_parse("0", &ms, &err), STATUS_OK);
    assert_int_equal(ms, 0);
    assert_int_equal(op_timeout_parse("5", &ms, &err), STATUS_OK);
    assert_int_equal(ms, 5000);
    assert_int_equal(op_timeout_parse("5s", &ms, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(op_timeout_parse("99999999999", &ms, &err), STATUS_INVALID_ARGUMENT);
}

static void visibility_follows_project_and_class(void **state)
{
    static const struct op_kind task = {.class = OP_TASK}, token = {.class = OP_TOKEN};
    char *projects[] = {(char *)"p", NULL};
    struct caller restricted = {.class = CALLER_CLIENT, .restricted = true, .projects = projects}, admin = {.class = CALLER_LOCAL_ADMIN}, none = {.class = CALLER_NONE};
    struct op op = {.kind = &task, .project = (char *)"p"};
    assert_true(op__visible_locked(&op, &restricted));
    assert_true(op__visible_locked(&op, &admin));
    assert_false(op__visible_locked(&op, &none));
    op.kind = &token; /* shows its secret */
    assert_false(op__visible_locked(&op, &restricted));
    assert_true(op__visible_locked(&op, &admin));
    op.kind = &task;
    op.project = (char *)"q";
    assert_false(op__visible_locked(&op, &restricted));
    op.project = (char *)"";
    assert_false(op__visible_locked(&op, &restricted));
}

static void only_stream_secrets_open_a_wait(void **state)
{
    struct op op = {.metadata = json_pack("{s:s, s:{s:s, s:s}}", "secret", "token", "fds", "0", "aaaa", "control", "bbbb")};
    assert_true(op__secret_matches_locked(&op, "aaaa"));
    assert_true(op__secret_matches_locked(&op, "bbbb"));
    assert_false(op__secret_matches_locked(&op, "aaa"));
    assert_false(op__secret_matches_locked(&op, "token"));
    assert_false(op__secret_matches_locked(&op, ""));
    json_decref(op.metadata);
    op.metadata = NULL;
    assert_false(op__secret_matches_locked(&op, "aaaa"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(timeouts_are_parsed),
        cmocka_unit_test(visibility_follows_project_and_class),
        cmocka_unit_test(only_stream_secrets_open_a_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
