/* See levels.h. */
#include "levels.h"

enum { STATE_PENDING = 1 };

enum level_order level_compare(struct level a, struct level b)
{
    bool greater = a.schema > b.schema || a.api > b.api, smaller = a.schema < b.schema || a.api < b.api;
    return greater && smaller ? LEVEL_MIXED : greater ? LEVEL_HIGHER : smaller ? LEVEL_LOWER : LEVEL_EQUAL;
}

struct level_claim level_claim_of(const Covey__Internal__V1__ViewMember *member)
{
    return (struct level_claim){{member->schema, member->api_extensions}, {member->schema_floor, member->api_floor}};
}

bool level_claim_equal(struct level_claim a, struct level_claim b)
{
    return level_compare(a.level, b.level) == LEVEL_EQUAL && level_compare(a.floor, b.floor) == LEVEL_EQUAL;
}

static bool below(struct level a, struct level floor)
{
    return a.schema < floor.schema || a.api < floor.api;
}

enum level_verdict level_judge(const Covey__Internal__V1__View *view, uint64_t id, struct level_claim claim)
{
    const struct level reached = {view->schema, view->api_extensions};
    enum level_verdict verdict = LEVEL_SERVE;
    if (below(claim.level, reached)) {
        return LEVEL_BEHIND;
    }
    for (size_t i = 0; i < view->n_members; i++) {
        const Covey__Internal__V1__ViewMember *other = view->members[i];
        if (other->id == id || other->state == STATE_PENDING) {
            continue;
        }
        struct level level = level_claim_of(other).level;
        if (level_compare(claim.level, level) == LEVEL_MIXED) {
            return LEVEL_INCONSISTENT;
        }
        if (below(level, claim.floor)) {
            verdict = LEVEL_WAIT;
        }
    }
    return verdict;
}

struct level_display level_show(const Covey__Internal__V1__View *view, uint64_t id)
{
    struct level_display show = {false, NULL};
    const Covey__Internal__V1__ViewMember *member = NULL;
    for (size_t i = 0; i < view->n_members; i++) {
        member = view->members[i]->id == id ? view->members[i] : member;
    }
    if (member == NULL) {
        return show;
    }
    struct level_claim claim = level_claim_of(member);
    show.blocked = level_judge(view, id, claim) == LEVEL_WAIT;
    bool newer = show.blocked, older = false;
    for (size_t i = 0; i < view->n_members; i++) {
        if (view->members[i]->state == STATE_PENDING) {
            continue;
        }
        enum level_order order = level_compare(claim.level, level_claim_of(view->members[i]).level);
        newer = newer || order == LEVEL_HIGHER;
        older = older || order == LEVEL_LOWER;
    }
    /* Between two others: what keeps it from serving counts first, then that it is still to be upgraded. */
    show.message = show.blocked || (newer && !older) ? "LXD version is newer than other members" : older ? "LXD version is older than other members" : NULL;
    return show;
}
