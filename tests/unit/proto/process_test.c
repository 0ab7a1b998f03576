/* Running other programs: output, input, exit codes, and that nothing outlasts its time. */
#include "proto/core/core.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static int sh(const char *script, const char *input, size_t out_max, int64_t timeout_ms, struct process_result *result, struct error *err)
{
    const char *argv[] = {"sh", "-c", script, NULL};
    return process_run(argv, NULL, input, out_max, timeout_ms, result, err);
}

static void test_output(void **state)
{
    struct process_result result;
    struct error err;
    assert_int_equal(sh("echo out; echo err >&2; exit 3", NULL, 100, 10000, &result, &err), STATUS_OK);
    assert_int_equal(result.exit_code, 3);
    assert_string_equal(result.out.data, "out\n");
    assert_string_equal(result.err.data, "err\n");
    process_result_free(&result);
    assert_int_equal(sh("kill -TERM $$", NULL, 100, 10000, &result, &err), STATUS_OK);
    assert_int_equal(result.exit_code, 128 + SIGTERM);
    process_result_free(&result);
    const char *envp[] = {"A=b", NULL}, *argv[] = {"/bin/sh", "-c", "echo $A", NULL};
    assert_int_equal(process_run(argv, envp, NULL, 100, 10000, &result, &err), STATUS_OK);
    assert_string_equal(result.out.data, "b\n");
    process_result_free(&result);
}

static void test_input(void **state)
{
    struct process_result result;
    struct error err;
    size_t size = 1 << 20; /* more than any pipe holds, both ways */
    char *big = xmalloc(size + 1);
    memset(big, 'x', size);
    big[size] = 0;
    assert_int_equal(sh("cat", big, size, 20000, &result, &err), STATUS_OK);
    assert_int_equal(result.out.len, size);
    process_result_free(&result);
    assert_int_equal(sh("exit 0", big, size, 20000, &result, &err), STATUS_OK); /* does not read: no SIGPIPE for us */
    assert_int_equal(result.exit_code, 0);
    process_result_free(&result);
    assert_int_equal(sh("cat; echo end", NULL, 100, 20000, &result, &err), STATUS_OK); /* no input = end of file */
    assert_string_equal(result.out.data, "end\n");
    process_result_free(&result);
    free(big);
}

static void test_limits(void **state)
{
    struct process_result result;
    struct error err;
    assert_int_equal(sh("printf 0123456789", NULL, 4, 10000, &result, &err), STATUS_OK);
    assert_string_equal(result.out.data, "0123");
    process_result_free(&result);
    assert_int_equal(sh("head -c 100000 /dev/zero | tr '\\0' a >&2; echo last >&2", NULL, 4, 10000, &result, &err), STATUS_OK);
    assert_int_equal(result.err.len, 16 * 1024);
    assert_string_equal(result.err.data + result.err.len - 5, "last\n");
    process_result_free(&result);
}

static void test_timeout(void **state)
{
    struct process_result result;
    struct error err;
    int64_t start = time_mono_ms();
    assert_int_equal(sh("echo $$; sleep 60 & sleep 60", NULL, 100, 300, &result, &err), STATUS_DEADLINE_EXCEEDED);
    assert_true(time_mono_ms() - start < 10000);
    assert_int_equal(result.exit_code, 128 + SIGKILL);
    int64_t group;
    result.out.data[strcspn(result.out.data, "\n")] = 0;
    assert_int_equal(parse_i64(result.out.data, 2, INT32_MAX, &group), 0);
    int64_t until = time_mono_ms() + 5000;
    while (kill((pid_t)-group, 0) == 0 && time_mono_ms() < until) /* its children were killed with it; init may take a moment to reap */
        sched_yield();
    process_result_free(&result);
}

static void test_grandchild_is_not_waited_for(void **state)
{
    struct process_result result;
    struct error err;
    int64_t start = time_mono_ms();
    assert_int_equal(sh("echo started; sleep 20 & echo $!", NULL, 100, 15000, &result, &err), STATUS_OK);
    assert_true(time_mono_ms() - start < 10000);
    int64_t pid;
    char *second = strchr(result.out.data, '\n') + 1;
    second[strcspn(second, "\n")] = 0;
    assert_int_equal(parse_i64(second, 2, INT32_MAX, &pid), 0);
    assert_int_equal(kill((pid_t)pid, SIGKILL), 0);
    process_result_free(&result);
}

static void test_missing_program(void **state)
{
    const char *argv[] = {"/no/such/program", NULL};
    struct process_result result;
    struct error err;
    assert_int_equal(process_run(argv, NULL, NULL, 10, 1000, &result, &err), STATUS_NOT_FOUND);
    assert_string_equal(err.text, "cannot run /no/such/program: No such file or directory");
    process_result_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_output),  cmocka_unit_test(test_input),
                                       cmocka_unit_test(test_limits),  cmocka_unit_test(test_timeout),
                                       cmocka_unit_test(test_grandchild_is_not_waited_for), cmocka_unit_test(test_missing_program)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
