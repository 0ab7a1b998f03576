/* Levels: how members of different age find out whether they can serve together (docs/design/upgrade.md, spec/cluster.md 13). Pure. */
#ifndef COVEY_SERVER_CLUSTER_LEVELS_H
#define COVEY_SERVER_CLUSTER_LEVELS_H

#include "covey/internal/v1/membership.pb-c.h"
#include <stdbool.h>

struct level {
    int64_t schema; /* last schema step known */
    int64_t api;    /* COVEY_API_LEVEL */
};

struct level_claim { /* what a member announces */
    struct level level;
    struct level floor; /* the lowest level of another member beside which it can serve */
};

enum level_order { LEVEL_EQUAL, LEVEL_LOWER, LEVEL_HIGHER, LEVEL_MIXED };
/* How a stands to b: higher if no number is smaller and one is greater. */
enum level_order level_compare(struct level a, struct level b);

enum level_verdict {
    LEVEL_SERVE,        /* nobody stands in the way */
    LEVEL_WAIT,         /* a member is too old for it: blocked until that one is upgraded */
    LEVEL_BEHIND,       /* the whole cluster has gone beyond it: must not run */
    LEVEL_INCONSISTENT, /* newer than a member in one number and older in the other */
};
/* What becomes of member `id` with `claim`, by the other members of the view that are not pending (offline and evacuated ones count). */
enum level_verdict level_judge(const Covey__Internal__V1__View *view, uint64_t id, struct level_claim claim);

struct level_claim level_claim_of(const Covey__Internal__V1__ViewMember *member);
bool level_claim_equal(struct level_claim a, struct level_claim b);

struct level_display {
    bool blocked;        /* waits for others */
    const char *message; /* NULL = as old as the others */
};
/* How a member is shown (spec/cluster.md 13.3). */
struct level_display level_show(const Covey__Internal__V1__View *view, uint64_t id);

#endif
