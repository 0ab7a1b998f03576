/* Rules of storage pools: keys by driver and by level, and every refusal of phase 2 with its text, in the order of spec/api.md 9.3. */
#include "server/pools/rules.h"
#include "proto/core/core.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static void drivers(void **state)
{
    struct error err = ERROR_INIT;
    assert_int_equal(pool_driver_check("dir", &err), STATUS_OK);
    assert_int_equal(pool_driver_check("ceph", &err), STATUS_OK);
    assert_int_equal(pool_driver_check("floppy", &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "Unknown driver");
    assert_int_equal(pool_driver_check("", &err), STATUS_INVALID_ARGUMENT);
}

static void names(void **state)
{
    struct error err = ERROR_INIT;
    assert_int_equal(pool_name_check("data-1.a_b", &err), STATUS_OK);
    const char *const bad[] = {"", "a/b", "..", ".a", "-a", "a b", "a?b", "0123456789012345678901234567890123456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(pool_name_check(bad[i], &err), STATUS_INVALID_ARGUMENT);
    }
}

static void keys(void **state)
{
    struct error err = ERROR_INIT;
    assert_true(pool_key_member("source"));
    assert_true(pool_key_member("volatile.initial_source"));
    assert_false(pool_key_member("rsync.bwlimit"));
    assert_int_equal(pool_key_check("dir", "source", "/srv", &err), STATUS_OK);
    assert_int_equal(pool_key_check("dir", "user.a", "x", &err), STATUS_OK);
    assert_int_equal(pool_key_check("dir", "size", "5GiB", &err), STATUS_OK);
    assert_int_equal(pool_key_check("dir", "size", "", &err), STATUS_OK);
    assert_int_equal(pool_key_check("dir", "size", "5 apples", &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pool_key_check("dir", "rsync.compression", "perhaps", &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pool_key_check("zfs", "zfs.pool_name", "tank", &err), STATUS_OK);
    assert_int_equal(pool_key_check("dir", "zfs.pool_name", "tank", &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pool_key_check("cephfs", "ceph.user.name", "x", &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pool_key_check("dir", "user.", "x", &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(pool_key_check("dir", "foo", "x", &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "Invalid storage pool config key \"foo\"");
}

static void expect(struct pool_facts facts, const char *driver, bool config, const char *text)
{
    struct error err = ERROR_INIT;
    int status = pool_phase2_check(&facts, driver, config, &err);
    if (text == NULL) {
        assert_int_equal(status, STATUS_OK);
        return;
    }
    assert_int_not_equal(status, STATUS_OK);
    assert_int_equal(status_http(status), 400);
    assert_string_equal(err.text, text);
}

static void phase2(void **state)
{
    expect((struct pool_facts){.exists = false}, "dir", false, "Pool not pending on any node (use --target <node> first)");
    expect((struct pool_facts){.exists = true, .driver = "dir", .undefined = "n2, n4"}, "zfs", false, "Pool not defined on nodes: n2, n4");
    expect((struct pool_facts){.exists = true, .driver = "dir"}, "zfs", false, "Requested storage pool driver \"zfs\" doesn't match driver in existing database record \"dir\"");
    expect((struct pool_facts){.exists = true, .driver = "dir", .state = POOL_CREATED}, "dir", false, "The storage pool is already created");
    expect((struct pool_facts){.exists = true, .driver = "dir"}, "dir", true, NULL);
    struct pool_facts errored = {.exists = true, .driver = "dir", .state = POOL_ERRORED, .started = true};
    expect(errored, "dir", false, NULL);
    expect(errored, "dir", true, "Storage pool already partially created. Please do not specify any global config when re-running create");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(drivers), cmocka_unit_test(names), cmocka_unit_test(keys), cmocka_unit_test(phase2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
