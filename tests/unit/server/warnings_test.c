/* The comparison of clocks, and the names of warnings. */
#include "server/warnings/warnings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

struct daemon *the_daemon;

static const int64_t second = 1000000000, start_ns = 1700000000 * (int64_t)1000000000;

/* One question: the member's clock leads by `lead` seconds, the way there and back takes so many. True = a question was needed. */
static bool exchange(struct skew *skew, double lead, double there, double back)
{
    static int64_t now_ms = 1000;
    now_ms += 60000;
    int64_t now_ns = start_ns + now_ms * 1000000, lead_ns = (int64_t)(lead * 1e9);
    int64_t report_delay = (int64_t)(back * 1e9);
    if (!skew_report(skew, now_ns - report_delay + lead_ns, now_ns, now_ms)) {
        return false;
    }
    uint64_t number = skew_ask(skew, now_ns, now_ms);
    int64_t read_ns = now_ns + (int64_t)(there * 1e9), arrived_ns = read_ns + report_delay;
    skew_answer(skew, number, read_ns + lead_ns, arrived_ns, now_ms + (arrived_ns - now_ns) / 1000000);
    return true;
}

static void verdicts(void **state)
{
    struct skew skew = {0};
    assert_false(exchange(&skew, 0, 0.1, 0.1));
    assert_int_equal(skew.verdict, SKEW_NONE);
    assert_false(exchange(&skew, 4.8, 0, 0));
    assert_true(exchange(&skew, 5.5, 0.01, 0.01));
    assert_int_equal(skew.verdict, SKEW_PROVEN);
    assert_false(exchange(&skew, 3600, 0.01, 0.01)); /* known: nothing to ask */
    assert_int_equal(skew.verdict, SKEW_PROVEN);
    assert_true(exchange(&skew, -1, 0.01, 0.01));
    assert_int_equal(skew.verdict, SKEW_NONE);
    assert_true(exchange(&skew, -5.5, 0.01, 0.01));
    assert_int_equal(skew.verdict, SKEW_PROVEN);
}

static void delays_do_not_fool(void **state)
{
    struct skew skew = {0};
    assert_true(exchange(&skew, 0, 0, 30)); /* looks 30 s behind: was long on its way */
    assert_int_equal(skew.verdict, SKEW_UNKNOWN);
    assert_true(exchange(&skew, 0, 30, 30));
    assert_int_equal(skew.verdict, SKEW_UNKNOWN);
    assert_false(exchange(&skew, 0, 0, 0.1));
    assert_int_equal(skew.verdict, SKEW_NONE);
    assert_true(exchange(&skew, 2, 0, 20));
    assert_int_equal(skew.verdict, SKEW_NONE);
    assert_true(exchange(&skew, 60, 20, 20)); /* far ahead in spite of the delay */
    assert_int_equal(skew.verdict, SKEW_PROVEN);
    assert_true(exchange(&skew, 60, 0, 58)); /* looks right: is not */
    assert_int_equal(skew.verdict, SKEW_PROVEN);
}

static void own_steps_and_strange_answers(void **state)
{
    struct skew skew = {0};
    int64_t now = start_ns;
    assert_true(skew_report(&skew, now - 3600 * second, now, 1000));
    uint64_t number = skew_ask(&skew, now, 1000);
    assert_false(skew_report(&skew, now - 3600 * second, now, 2000));  /* one question at a time … */
    assert_true(skew_report(&skew, now - 3600 * second, now, 6000)); /* … and again when it is not answered */
    skew_answer(&skew, number + 1, now - 3600 * second, now, 1100);
    assert_int_equal(skew.verdict, SKEW_UNKNOWN);
    skew_answer(&skew, number, now, now + 3600 * second, 1100); /* our own clock was set between asking and the answer */
    assert_int_equal(skew.verdict, SKEW_UNKNOWN);
    skew_answer(&skew, number, now - 3600 * second, now, 1100); /* answered already */
    assert_int_equal(skew.verdict, SKEW_UNKNOWN);
    number = skew_ask(&skew, now, 1000);
    skew_answer(&skew, number, now - 3600 * second, now + second / 10, 1100);
    assert_int_equal(skew.verdict, SKEW_PROVEN);
}

static void names(void **state)
{
    enum warning_status status;
    assert_string_equal(warning_kind_name(WARNING_OFFLINE_MEMBER), "Offline cluster member");
    assert_string_equal(warning_kind_name((enum warning_kind)999), "");
    assert_string_equal(warning_severity_name(warning_severity(WARNING_OFFLINE_MEMBER)), "low");
    assert_int_equal(warning_status_parse("acknowledged", &status), 0);
    assert_int_equal(status, WARNING_ACKNOWLEDGED);
    assert_int_equal(warning_status_parse("acknowledge", &status), -1);
    assert_string_equal(warning_status_name(WARNING_RESOLVED), "resolved");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(verdicts), cmocka_unit_test(delays_do_not_fool), cmocka_unit_test(own_steps_and_strange_answers), cmocka_unit_test(names)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
