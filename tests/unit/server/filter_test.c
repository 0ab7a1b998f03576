/* The filter grammar of spec/api.md 1.7. */
#include "server/daemon/daemon.h"
#include "server/daemon/filter.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

struct daemon *the_daemon;

static json_t *object;

static bool matches(const char *text)
{
    struct filter *filter = NULL;
    struct error err = ERROR_INIT;
    assert_int_equal(filter_parse(text, &filter, &err), STATUS_OK);
    bool match = filter_match(filter, object);
    filter_free(filter);
    return match;
}

static void clauses(void **state)
{
    assert_true(matches("name eq c1"));
    assert_true(matches("name eq C.*"));
    assert_false(matches("name eq c"));
    assert_true(matches("name eq ^c"));
    assert_true(matches("name ne c2"));
    assert_true(matches("not name eq c2"));
    assert_true(matches("config.image.os eq busybox"));
    assert_true(matches("devices.eth0.network eq br0"));
    assert_true(matches("description eq \"two words\""));
    assert_true(matches("status_code eq 103"));
    assert_true(matches("ephemeral eq false"));
    assert_false(matches("config.absent eq x"));
    assert_true(matches("name eq c2 and name eq c3 or name eq c1")); /* from left to right */
    assert_false(matches("name eq c1 or name eq c2 and name eq c3"));
}

static void refused(void **state)
{
    static const char *const bad[] = {"name", "name eq", "name is c1", "name eq c1 name eq c2", "name eq c1 and", "name eq \"c1", "  "};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct filter *filter = NULL;
        struct error err = ERROR_INIT;
        assert_int_equal(filter_parse(bad[i], &filter, &err), STATUS_INVALID_ARGUMENT);
        assert_non_null(strstr(err.text, "Invalid filter: "));
        assert_null(filter);
    }
}

/* Expressions that cost a backtracking matcher, or one that copies what is repeated, all memory or time. */
static void expensive(void **state)
{
    assert_false(matches("name eq (((C+++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++++"));
    assert_false(matches("name eq ((((C{1,1000}){1,1000}){1,1000}){1,1000})"));
    assert_false(matches("config.long eq (a+)+b"));
    assert_true(matches("config.long eq a+"));
}

int main(void)
{
    object = json_loads("{\"name\":\"c1\",\"status_code\":103,\"ephemeral\":false,\"description\":\"two words\",\"config\":{\"image.os\":\"BusyBox\",\"long\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"},"
                        "\"devices\":{\"eth0\":{\"network\":\"br0\"}}}", 0, NULL);
    const struct CMUnitTest tests[] = {cmocka_unit_test(clauses), cmocka_unit_test(refused), cmocka_unit_test(expensive)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(object);
    return failed;
}
