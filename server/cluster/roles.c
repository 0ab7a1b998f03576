/* The role planner: which member should hold which database role next (spec/cluster.md 5.2-5.4 with its [OWN] rules). Pure: members in, one change
 * out; the caller repeats until nothing is left. Deterministic: the lower id first. */
#include "cluster.h"

struct tally {
    unsigned online, offline;
};

static struct tally count_role(const struct role_member *members, size_t count, enum member_role role)
{
    struct tally tally = {0, 0};
    for (size_t i = 0; i < count; i++) {
        if (members[i].role == role) {
            members[i].online ? tally.online++ : tally.offline++;
        }
    }
    return tally;
}

static bool domain_taken(const struct role_member *members, size_t count, enum member_role role, int64_t domain)
{
    for (size_t i = 0; i < count; i++) {
        if (members[i].role == role && members[i].online && members[i].domain == domain) {
            return true;
        }
    }
    return false;
}

/* Best online member of role `from` to become `to`: a domain without an online holder of `to` first, then the lower id. */
static const struct role_member *candidate(const struct role_member *members, size_t count, enum member_role from, enum member_role to, bool *fresh_domain)
{
    const struct role_member *best = NULL;
    bool best_fresh = false;
    for (size_t i = 0; i < count; i++) {
        const struct role_member *m = &members[i];
        if (m->role != from || !m->online) {
            continue;
        }
        bool fresh = !domain_taken(members, count, to, m->domain);
        if (best == NULL || (fresh && !best_fresh) || (fresh == best_fresh && m->id < best->id)) {
            best = m;
            best_fresh = fresh;
        }
    }
    *fresh_domain = best_fresh;
    return best;
}

static struct role_change promote_to_voter(const struct role_member *members, size_t count)
{
    bool standby_fresh, spare_fresh;
    const struct role_member *standby = candidate(members, count, ROLE_STANDBY, ROLE_VOTER, &standby_fresh);
    const struct role_member *spare = candidate(members, count, ROLE_SPARE, ROLE_VOTER, &spare_fresh);
    const struct role_member *chosen = standby;
    if (standby == NULL || (spare != NULL && spare_fresh && !standby_fresh)) {
        chosen = spare; /* the domain outranks stand-by-before-spare */
    }
    return chosen != NULL ? (struct role_change){chosen->id, ROLE_VOTER} : (struct role_change){0, ROLE_SPARE};
}

/* The member of `role` to demote: the highest id, never the leader. */
static uint64_t last_of(const struct role_member *members, size_t count, enum member_role role, bool online)
{
    uint64_t id = 0;
    for (size_t i = 0; i < count; i++) {
        if (members[i].role == role && members[i].online == online && !members[i].leader && members[i].id > id) {
            id = members[i].id;
        }
    }
    return id;
}

struct role_change roles_plan(const struct role_member *members, size_t count, unsigned max_voters, unsigned max_standby)
{
    const struct role_change nothing = {0, ROLE_SPARE};
    struct tally voters = count_role(members, count, ROLE_VOTER);
    struct tally standbys = count_role(members, count, ROLE_STANDBY);
    if (count <= 1) {
        return nothing;
    }
    if (count == 2) { /* the other one replicates without a vote, so that its loss never stops the leader */
        for (size_t i = 0; i < count; i++) {
            if (!members[i].leader && members[i].role == ROLE_VOTER) {
                return (struct role_change){members[i].id, members[i].online ? ROLE_STANDBY : ROLE_SPARE};
            }
            if (!members[i].leader && members[i].role == ROLE_SPARE && members[i].online && max_standby > 0) {
                return (struct role_change){members[i].id, ROLE_STANDBY};
            }
        }
        return nothing;
    }
    if (voters.online < max_voters) {
        struct role_change change = promote_to_voter(members, count);
        if (change.id != 0) {
            return change;
        }
        if (voters.offline > 0) {
            return nothing; /* an offline voter without replacement keeps its vote */
        }
    }
    if (voters.online > max_voters) {
        return (struct role_change){last_of(members, count, ROLE_VOTER, true), ROLE_SPARE};
    }
    if (voters.offline > 0) {
        return (struct role_change){last_of(members, count, ROLE_VOTER, false), ROLE_SPARE};
    }
    if (standbys.online < max_standby) {
        bool fresh;
        const struct role_member *spare = candidate(members, count, ROLE_SPARE, ROLE_STANDBY, &fresh);
        if (spare != NULL) {
            return (struct role_change){spare->id, ROLE_STANDBY};
        }
    }
    if (standbys.online > max_standby) {
        return (struct role_change){last_of(members, count, ROLE_STANDBY, true), ROLE_SPARE};
    }
    if (standbys.offline > 0 && standbys.online >= max_standby) {
        return (struct role_change){last_of(members, count, ROLE_STANDBY, false), ROLE_SPARE};
    }
    return nothing;
}
