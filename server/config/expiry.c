/* Expiry expressions (spec/cluster.md 2): "<number><unit>" separated by single or more spaces, each unit once; days and longer by the calendar. Pure. */
#include "keys.h"

#include <string.h>
#include <time.h>

enum { NUMBER_DIGITS_MAX = 6 };

/* One part; false if it is not one. */
static bool read_part(const char **at, int64_t *number, char *unit)
{
    size_t digits = strspn(*at, "0123456789");
    if (digits == 0 || digits > NUMBER_DIGITS_MAX) {
        return false;
    }
    *number = 0;
    for (size_t i = 0; i < digits; i++) {
        *number = *number * 10 + ((*at)[i] - '0');
    }
    *unit = (*at)[digits];
    *at += digits + (*unit != '\0');
    return *unit != '\0' && strchr("SMHdwmy", *unit) != NULL && (**at == ' ' || **at == '\0');
}

int expiry_add(const char *expression, int64_t from_ns, int64_t *out_ns)
{
    static const char units[] = "SMHdwmy";
    const int64_t second = 1000000000;
    int64_t amount[sizeof units - 1] = {0}, number = 0;
    bool seen[sizeof units - 1] = {false}, any = false;
    char unit;
    for (const char *at = expression; at != NULL && *at != '\0';) {
        if (*at == ' ') {
            at++;
            continue;
        }
        if (!read_part(&at, &number, &unit)) {
            return -1;
        }
        size_t i = (size_t)(strchr(units, unit) - units);
        if (seen[i]) {
            return -1;
        }
        seen[i] = any = true;
        amount[i] = number;
    }
    if (!any) {
        return -1;
    }
    time_t start = (time_t)(from_ns / second);
    struct tm tm;
    if (gmtime_r(&start, &tm) == NULL) {
        return -1;
    }
    tm.tm_mday += (int)(amount[3] + 7 * amount[4]);
    tm.tm_mon += (int)amount[5];
    tm.tm_year += (int)amount[6];
    int64_t end = (int64_t)timegm(&tm) + amount[0] + 60 * amount[1] + 3600 * amount[2];
    if (end < 0 || end > INT64_MAX / second - 1) { /* beyond 2262 */
        return -1;
    }
    *out_ns = end * second + from_ns % second;
    return 0;
}
