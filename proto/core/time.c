/* Clocks and RFC 3339 text (proleptic Gregorian, UTC out, any zone in). Thread: any. */
#include "core.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { NS_PER_S = 1000000000, CLOCK_OFFSET_S_MAX = 1000000 };

/* Test hook: a wall clock that is wrong by so many seconds, from the start on. CLOCK_REALTIME has no namespace, so a test cannot set it for one process. */
static int64_t test_offset_s;
static pthread_once_t test_once = PTHREAD_ONCE_INIT;

static void read_test_offset(void)
{
    const char *text = getenv("COVEY_TEST_CLOCK_OFFSET_S");
    if (text && parse_i64(text, -CLOCK_OFFSET_S_MAX, CLOCK_OFFSET_S_MAX, &test_offset_s))
        test_offset_s = 0;
}

int64_t time_unix_ns(void)
{
    struct timespec now;
    pthread_once(&test_once, read_test_offset);
    clock_gettime(CLOCK_REALTIME, &now);
    return ((int64_t)now.tv_sec + test_offset_s) * NS_PER_S + now.tv_nsec;
}

int64_t time_mono_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void time_deadline(struct timespec *out, int64_t ms)
{
    clock_gettime(CLOCK_MONOTONIC, out);
    ms = ms < 0 ? 0 : ms;
    out->tv_sec += ms / 1000;
    out->tv_nsec += ms % 1000 * 1000000;
    if (out->tv_nsec >= NS_PER_S) {
        out->tv_sec++;
        out->tv_nsec -= NS_PER_S;
    }
}

static bool is_leap(int64_t year) { return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0; }

/* Days from 1970-01-01 to the first of January of a year >= 1. */
static int64_t days_before_year(int64_t year)
{
    int64_t y = year - 1;
    return y * 365 + y / 4 - y / 100 + y / 400 - 719162;
}

static int month_days(int64_t year, int month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return days[month] + (month == 1 && is_leap(year));
}

static char *put_digits(char *out, int64_t value, int count)
{
    for (int i = count - 1; i >= 0; i--, value /= 10)
        out[i] = (char)('0' + value % 10);
    return out + count;
}

static const int64_t seconds_min = -62135596800, seconds_max = 253402300799; /* years 1 to 9999 */

void time_rfc3339_parts(int64_t seconds, int32_t nanos, char *out, size_t size)
{
    covey_assert(size >= 40);
    if (seconds < seconds_min || seconds > seconds_max || nanos < 0 || nanos >= NS_PER_S) {
        seconds = seconds_min; /* such a time cannot be written; the text for "unknown" is valid everywhere */
        nanos = 0;
    }
    int64_t days = seconds / 86400, rest = seconds % 86400;
    if (rest < 0) {
        rest += 86400;
        days--;
    }
    int64_t year = 1970 + days * 400 / 146097; /* right to within one */
    if (year < 1)
        year = 1;
    while (days_before_year(year) > days)
        year--;
    while (days_before_year(year + 1) <= days)
        year++;
    int day = (int)(days - days_before_year(year)), month = 0;
    for (; day >= month_days(year, month); month++)
        day -= month_days(year, month);
    char *p = put_digits(out, year, 4);
    *p++ = '-';
    p = put_digits(p, month + 1, 2);
    *p++ = '-';
    p = put_digits(p, day + 1, 2);
    *p++ = 'T';
    p = put_digits(p, rest / 3600, 2);
    *p++ = ':';
    p = put_digits(p, rest / 60 % 60, 2);
    *p++ = ':';
    p = put_digits(p, rest % 60, 2);
    if (nanos) {
        *p++ = '.';
        p = put_digits(p, nanos, 9);
        while (p[-1] == '0')
            p--;
    }
    *p++ = 'Z';
    *p = 0;
}

void time_rfc3339(int64_t unix_ns, char *out, size_t size)
{
    int64_t seconds = unix_ns / NS_PER_S, nanos = unix_ns % NS_PER_S;
    if (nanos < 0) {
        nanos += NS_PER_S;
        seconds--;
    }
    time_rfc3339_parts(seconds, (int32_t)nanos, out, size);
}

/* Reads exactly `count` digits; -1 if they are not there or the number lies outside min..max. */
static int get_digits(const char **text, int count, int min, int max)
{
    int value = 0;
    for (int i = 0; i < count; i++, (*text)++) {
        if (**text < '0' || **text > '9')
            return -1;
        value = value * 10 + (**text - '0');
    }
    return value < min || value > max ? -1 : value;
}

static bool skip(const char **text, char a, char b)
{
    if (**text != a && **text != b)
        return false;
    (*text)++;
    return true;
}

/* "Z" or "+hh:mm" to seconds east of UTC; nothing may follow. */
static int parse_zone(const char *p, int *offset)
{
    *offset = 0;
    if (skip(&p, 'Z', 'z'))
        return *p ? -1 : 0;
    int sign = *p == '-' ? -1 : 1;
    if (!skip(&p, '+', '-'))
        return -1;
    int hours = get_digits(&p, 2, 0, 23);
    if (hours < 0 || !skip(&p, ':', ':'))
        return -1;
    int minutes = get_digits(&p, 2, 0, 59);
    if (minutes < 0 || *p)
        return -1;
    *offset = sign * (hours * 3600 + minutes * 60);
    return 0;
}

int time_parse_rfc3339_parts(const char *text, int64_t *seconds, int32_t *nanos)
{
    const char *p = text;
    int year, month, day, hour, minute, second, offset;
    if (!p || (year = get_digits(&p, 4, 1, 9999)) < 0 || !skip(&p, '-', '-') || (month = get_digits(&p, 2, 1, 12)) < 0 || !skip(&p, '-', '-') ||
        (day = get_digits(&p, 2, 1, month_days(year, month - 1))) < 0 || !skip(&p, 'T', 't') || (hour = get_digits(&p, 2, 0, 23)) < 0 ||
        !skip(&p, ':', ':') || (minute = get_digits(&p, 2, 0, 59)) < 0 || !skip(&p, ':', ':') || (second = get_digits(&p, 2, 0, 60)) < 0)
        return -1;
    int32_t fraction = 0;
    if (skip(&p, '.', '.')) {
        int32_t unit = NS_PER_S / 10;
        if (*p < '0' || *p > '9')
            return -1;
        for (; *p >= '0' && *p <= '9'; p++, unit /= 10)
            fraction += unit * (*p - '0'); /* digits beyond nanoseconds are dropped */
    }
    if (parse_zone(p, &offset) < 0)
        return -1;
    int64_t days = days_before_year(year) + day - 1;
    for (int i = 0; i < month - 1; i++)
        days += month_days(year, i);
    int64_t value = days * 86400 + hour * 3600 + minute * 60 + second - offset;
    if (value < seconds_min || value > seconds_max)
        return -1;
    *seconds = value;
    *nanos = fraction;
    return 0;
}

int time_parse_rfc3339(const char *text, int64_t *unix_ns)
{
    int64_t seconds, value;
    int32_t nanos;
    if (time_parse_rfc3339_parts(text, &seconds, &nanos) < 0)
        return -1;
    if (__builtin_mul_overflow(seconds, (int64_t)NS_PER_S, &value) || __builtin_add_overflow(value, (int64_t)nanos, &value))
        return -1;
    *unix_ns = value;
    return 0;
}
