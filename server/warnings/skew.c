/* Whether a member's clock differs from this one's by more than SKEW_LIMIT_S, without being fooled by messages that were long on their way (a paused member,
 * a full queue). Pure; the caller has the clocks and the lock. */
#include "warnings.h"

#include <stdlib.h>

static const int64_t limit_ns = (int64_t)SKEW_LIMIT_S * SKEW_LIMIT_NS_PER_S;

bool skew_report(struct skew *skew, int64_t clock_ns, int64_t now_unix_ns, int64_t now_ms)
{
    skew->lead_ns = clock_ns - now_unix_ns;
    bool far = llabs(skew->lead_ns) > limit_ns;
    if (!far && skew->verdict == SKEW_UNKNOWN) {
        skew->verdict = SKEW_NONE;
    }
    bool doubtful = far != (skew->verdict == SKEW_PROVEN);
    return doubtful && (skew->number == 0 || now_ms - skew->asked_ms >= SKEW_PROBE_MS);
}

uint64_t skew_ask(struct skew *skew, int64_t now_unix_ns, int64_t now_ms)
{
    skew->number = ++skew->numbers;
    skew->asked_unix_ns = now_unix_ns;
    skew->asked_ms = now_ms;
    return skew->number;
}

void skew_answer(struct skew *skew, uint64_t number, int64_t clock_ns, int64_t now_unix_ns, int64_t now_ms)
{
    if (number == 0 || number != skew->number) {
        return;
    }
    skew->number = 0;
    int64_t passed_ns = (now_ms - skew->asked_ms) * 1000000;
    if (llabs(now_unix_ns - skew->asked_unix_ns - passed_ns) > SKEW_STEP_NS) {
        return; /* this clock was set meanwhile */
    }
    int64_t least = clock_ns - now_unix_ns, most = clock_ns - skew->asked_unix_ns; /* the true lead lies between */
    if (least > limit_ns || most < -limit_ns) {
        skew->verdict = SKEW_PROVEN;
    } else if (least >= -limit_ns && most <= limit_ns) {
        skew->verdict = SKEW_NONE;
    }
}
