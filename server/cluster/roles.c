/* The role planner: which member should hold which database role next (spec/cluster.md 5.2-5.4, spec/placement.md 10, with their [OWN] rules). Pure:
 * members in, one change out; the caller repeats until nothing is left. Deterministic: the lower id is promoted first and demoted last.
 *
 * Two things differ from the order of 5.4, with the same end: absent voters go before superfluous present ones, because the other way round could take
 * away the majority; and domains are evened out when nothing else is left (placement.md 10, step 2). */
#include "cluster.h"

struct plan {
    const struct role_member *members;
    size_t count;
};

static const struct role_change nothing = {0, ROLE_SPARE};

static unsigned count_role(const struct plan *plan, enum member_role role, bool online)
{
    unsigned found = 0;
    for (size_t i = 0; i < plan->count; i++) {
        found += plan->members[i].role == role && plan->members[i].online == online;
    }
    return found;
}

/* Present holders of a role in a failure domain. */
static unsigned in_domain(const struct plan *plan, enum member_role role, int64_t domain)
{
    unsigned found = 0;
    for (size_t i = 0; i < plan->count; i++) {
        found += plan->members[i].role == role && plan->members[i].online && plan->members[i].domain == domain;
    }
    return found;
}

/* The member that should become `to`: one whose domain has none of them first, then a stand-by before a spare, then the lower id. NULL = nobody can. */
static const struct role_member *candidate(const struct plan *plan, enum member_role to, bool *fresh_domain)
{
    const struct role_member *best = NULL;
    *fresh_domain = false;
    for (size_t i = 0; i < plan->count; i++) {
        const struct role_member *m = &plan->members[i];
        if (m->role <= to || !m->online || !m->ready) {
            continue;
        }
        bool fresh = in_domain(plan, to, m->domain) == 0;
        bool better = best == NULL || (fresh != *fresh_domain ? fresh : m->role != best->role ? m->role < best->role : m->id < best->id);
        if (better) {
            best = m;
            *fresh_domain = fresh;
        }
    }
    return best;
}

static struct role_change promote(const struct plan *plan, enum member_role to)
{
    bool fresh;
    const struct role_member *chosen = candidate(plan, to, &fresh);
    return chosen != NULL ? (struct role_change){chosen->id, to} : nothing;
}

/* The holder of a role to become a spare: of the domain that has most of them, then the highest id; never the leader. */
static struct role_change demote(const struct plan *plan, enum member_role role, bool online)
{
    const struct role_member *chosen = NULL;
    for (size_t i = 0; i < plan->count; i++) {
        const struct role_member *m = &plan->members[i];
        if (m->role != role || m->online != online || m->leader) {
            continue;
        }
        unsigned here = in_domain(plan, role, m->domain), there = chosen != NULL ? in_domain(plan, role, chosen->domain) : 0;
        if (chosen == NULL || here > there || (here == there && m->id > chosen->id)) {
            chosen = m;
        }
    }
    return chosen != NULL ? (struct role_change){chosen->id, ROLE_SPARE} : nothing;
}

/* Two members: one voter, the leader. The other replicates without a vote, so that its loss never stops the leader. */
static struct role_change plan_two(const struct plan *plan, unsigned max_standby)
{
    for (size_t i = 0; i < plan->count; i++) {
        const struct role_member *m = &plan->members[i];
        bool standby = max_standby > 0 && m->online;
        if (m->leader) {
            continue;
        }
        if (m->role == ROLE_VOTER) {
            return (struct role_change){m->id, standby ? ROLE_STANDBY : ROLE_SPARE};
        }
        if (m->role == ROLE_SPARE && standby && m->ready) {
            return (struct role_change){m->id, ROLE_STANDBY};
        }
        if (m->role == ROLE_STANDBY && max_standby == 0) {
            return (struct role_change){m->id, ROLE_SPARE};
        }
    }
    return nothing;
}

/* A domain without a voter gets one when another has two: the next round then takes one from there. */
static struct role_change spread(const struct plan *plan)
{
    bool fresh, crowded = false;
    const struct role_member *chosen = candidate(plan, ROLE_VOTER, &fresh);
    for (size_t i = 0; i < plan->count; i++) {
        const struct role_member *m = &plan->members[i];
        crowded = crowded || (m->role == ROLE_VOTER && m->online && in_domain(plan, ROLE_VOTER, m->domain) > 1);
    }
    return chosen != NULL && fresh && crowded ? (struct role_change){chosen->id, ROLE_VOTER} : nothing;
}

struct role_change roles_plan(const struct role_member *members, size_t count, unsigned max_voters, unsigned max_standby)
{
    const struct plan plan = {members, count};
    struct role_change change = nothing;
    if (count <= 1) {
        return nothing;
    }
    if (count == 2) {
        return plan_two(&plan, max_standby);
    }
    unsigned voters = count_role(&plan, ROLE_VOTER, true), absent_voters = count_role(&plan, ROLE_VOTER, false);
    if (voters < max_voters) {
        change = promote(&plan, ROLE_VOTER);
        if (change.id != 0 || absent_voters > 0) {
            return change; /* an absent voter without replacement keeps its vote */
        }
    } else if (absent_voters > 0) {
        return demote(&plan, ROLE_VOTER, false);
    }
    if (voters > max_voters) {
        return demote(&plan, ROLE_VOTER, true);
    }
    unsigned standbys = count_role(&plan, ROLE_STANDBY, true);
    if (standbys < max_standby) {
        change = promote(&plan, ROLE_STANDBY);
    } else if (standbys > max_standby) {
        change = demote(&plan, ROLE_STANDBY, true);
    } else if (count_role(&plan, ROLE_STANDBY, false) > 0) {
        change = demote(&plan, ROLE_STANDBY, false);
    }
    return change.id == 0 && voters == max_voters ? spread(&plan) : change;
}
