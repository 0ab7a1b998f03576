/* RFC 3339 both ways, over every day of many years and at the edges. */
#include "proto/core/core.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

static void check(int64_t seconds, int32_t nanos, const char *wanted)
{
    char text[40];
    int64_t back;
    int32_t back_nanos;
    time_rfc3339_parts(seconds, nanos, text, sizeof(text));
    assert_string_equal(text, wanted);
    assert_int_equal(time_parse_rfc3339_parts(text, &back, &back_nanos), 0);
    assert_int_equal(back, seconds);
    assert_int_equal(back_nanos, nanos);
}

static void test_known(void **state)
{
    check(0, 0, "1970-01-01T00:00:00Z");
    check(0, 1, "1970-01-01T00:00:00.000000001Z");
    check(-62135596800, 0, "0001-01-01T00:00:00Z");
    check(253402300799, 999999999, "9999-12-31T23:59:59.999999999Z");
    check(951782400, 990000000, "2000-02-29T00:00:00.99Z");
    check(-1, 500000000, "1969-12-31T23:59:59.5Z");
}

static void test_against_libc(void **state)
{
    for (int64_t day = -200000; day < 200000; day += 7) {
        time_t when = (time_t)(day * 86400 + 86399);
        struct tm tm;
        char text[40], wanted[64];
        assert_non_null(gmtime_r(&when, &tm));
        snprintf(wanted, sizeof(wanted), "%04d-%02d-%02dT%02d:%02d:%02dZ", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min,
                 tm.tm_sec);
        time_rfc3339_parts(when, 0, text, sizeof(text));
        assert_string_equal(text, wanted);
    }
}

static void test_zones(void **state)
{
    int64_t ns;
    assert_int_equal(time_parse_rfc3339("1970-01-01T02:00:00.25+01:30", &ns), 0);
    assert_int_equal(ns, 1800250000000);
    assert_int_equal(time_parse_rfc3339("1969-12-31T23:00:00-01:00", &ns), 0);
    assert_int_equal(ns, 0);
    char text[40];
    time_rfc3339(-1, text, sizeof(text));
    assert_string_equal(text, "1969-12-31T23:59:59.999999999Z");
}

static void test_refused(void **state)
{
    const char *bad[] = {"", "1970-01-01", "1970-01-01T00:00:00", "1970-13-01T00:00:00Z", "1970-02-29T00:00:00Z", "1970-01-01T24:00:00Z",
                         "1970-01-01T00:60:00Z", "1970-01-01T00:00:00.Z", "1970-01-01T00:00:00Zx", "1970-01-01T00:00:00+0100", "0000-01-01T00:00:00Z",
                         "1970-1-01T00:00:00Z", "2500-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        int64_t ns;
        assert_int_equal(time_parse_rfc3339(bad[i], &ns), -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known), cmocka_unit_test(test_against_libc), cmocka_unit_test(test_zones),
                                       cmocka_unit_test(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
