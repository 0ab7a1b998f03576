/* The rules of editing a stopped cluster's configuration, and what a survey of the survivors means. Pure. */
#include "recovery.h"

#include "server/config/keys.h"
#include <inttypes.h>
#include <string.h>

static const char *const role_names[] = {[ROLE_VOTER] = "voter", [ROLE_STANDBY] = "stand-by", [ROLE_SPARE] = "spare"};

const char *raft_role_name(int role)
{
    return role >= 0 && role <= ROLE_SPARE ? role_names[role] : "";
}

int edit_role(const char *text)
{
    for (int role = 0; role <= ROLE_SPARE; role++) {
        if (str_eq(text, role_names[role])) {
            return role;
        }
    }
    return -1;
}

static int check_addresses(const struct edit_member *members, size_t count, struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        char canonical[300];
        if (str_empty(members[i].address) || address_canonical(members[i].address, canonical, sizeof canonical, err) != STATUS_OK) {
            return str_empty(members[i].address) ? error_set(err, STATUS_INVALID_ARGUMENT, "Member %" PRIu64 " has no address", members[i].id) : (int)err->code;
        }
        if (address_wildcard(canonical)) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Wildcard addresses aren't allowed");
        }
        for (size_t j = 0; j < i; j++) {
            if (strcmp(members[j].address, members[i].address) == 0) {
                return error_set(err, STATUS_INVALID_ARGUMENT, "Two members have the address \"%s\"", members[i].address);
            }
        }
    }
    return STATUS_OK;
}

int edit_check(const struct edit_member *before, size_t before_count, const struct edit_member *after, size_t after_count, struct error *err)
{
    size_t voters = 0;
    for (size_t i = 0; i < after_count; i++) {
        if (edit_role(after[i].role) < 0) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "unknown raft role: \"%s\"", after[i].role != NULL ? after[i].role : "");
        }
    }
    if (after_count != before_count) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "%s cluster members is not supported", after_count < before_count ? "Removing" : "Adding");
    }
    for (size_t i = 0; i < after_count; i++) {
        if (after[i].id != before[i].id) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Changing cluster member ID is not supported");
        }
        if (!str_empty(before[i].name) && !str_empty(after[i].name) && strcmp(before[i].name, after[i].name) != 0) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Changing cluster member name is not supported");
        }
        int role = edit_role(after[i].role);
        if (edit_role(before[i].role) == ROLE_SPARE && role == ROLE_VOTER) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "A \"spare\" cluster member cannot become a \"voter\"");
        }
        voters += role == ROLE_VOTER;
    }
    if (after_count > 2 && voters < 2) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Number of \"voter\" must be 2 or more");
    }
    if (voters < 1) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "At least one member must be a \"voter\"");
    }
    return check_addresses(after, after_count, err);
}

/* ---- epochs ---- */

void epoch_judge(struct epoch_finding *finding, uint64_t own, const char *cluster, const struct peer_position *peers, size_t count)
{
    finding->silent = 0;
    for (size_t i = 0; i < count; i++) {
        const Covey__Internal__V1__PositionResponse *position = peers[i].position;
        if (position == NULL || !str_eq(position->cluster_id, cluster)) {
            finding->silent += position == NULL && peers[i].silent;
            continue;
        }
        if (position->epoch > own && position->epoch > finding->newest && position->replica) {
            finding->newest = position->epoch;
        }
        if (position->epoch == own && position->leader_id != 0) {
            finding->leader = position->leader_id;
        }
    }
}

/* ---- what a survey means ---- */

typedef Covey__Internal__V1__SurveyResponse survey_t;
typedef Covey__Internal__V1__SurveyMember member_t;

static bool usable(const member_t *member, uint64_t epoch)
{
    return member->reachable && member->position->replica && member->position->last_index > 0 && member->position->epoch == epoch;
}

static bool further(const Covey__Internal__V1__PositionResponse *a, const Covey__Internal__V1__PositionResponse *b)
{
    return a->last_term != b->last_term ? a->last_term > b->last_term : a->last_index > b->last_index; /* equal: the lower id, which comes first */
}

static void warn(survey_t *survey, struct arena *arena, char *text)
{
    char **grown = arena_alloc(arena, (survey->n_warnings + 1) * sizeof *grown);
    if (survey->n_warnings > 0) {
        memcpy(grown, survey->warnings, survey->n_warnings * sizeof *grown);
    }
    grown[survey->n_warnings++] = text;
    survey->warnings = grown;
}

static const member_t *find(const survey_t *survey, uint64_t id)
{
    for (size_t i = 0; i < survey->n_members; i++) {
        if (survey->members[i]->id == id) {
            return survey->members[i];
        }
    }
    return NULL;
}

/* What the loss of the others may cost, from the chosen copy's own list of voters. */
static void judge_loss(survey_t *survey, const member_t *chosen, struct arena *arena)
{
    size_t voters = chosen->position->n_voters, gone = 0;
    struct buf names = {0};
    for (size_t i = 0; i < voters; i++) {
        const member_t *voter = find(survey, chosen->position->voters[i]);
        if (voter == NULL || !usable(voter, survey->epoch)) {
            if (voter != NULL) {
                buf_printf(&names, "%s%s", gone > 0 ? ", " : "", voter->name);
            } else {
                buf_printf(&names, "%smember %" PRIu64, gone > 0 ? ", " : "", chosen->position->voters[i]);
            }
            gone++;
        }
    }
    size_t majority = voters / 2 + 1;
    if (voters - gone >= majority) {
        survey->refusal = arena_printf(arena, "%zu of %zu voters can be reached: that is a majority, which recovers by itself", voters - gone, voters);
    } else if (gone >= majority) { /* what was acknowledged last may be on those alone */
        warn(survey, arena, arena_printf(arena, "%zu of %zu voters cannot be asked (%s): what was acknowledged by them alone, shortly before they were lost, will be missing",
            gone, voters, names.data != NULL ? names.data : ""));
    }
    buf_free(&names);
    if (!str_eq(chosen->position->role, "voter")) {
        warn(survey, arena, arena_printf(arena, "%s is no voter (%s): its copy may be behind by any number of writes", chosen->name,
            str_empty(chosen->position->role) ? "no role" : chosen->position->role));
    }
    uint64_t heard = 0;
    for (size_t i = 0; i < survey->n_members; i++) {
        const member_t *member = survey->members[i];
        if (member->reachable && member->position->epoch == survey->epoch && member->position->heard_commit > heard) {
            heard = member->position->heard_commit;
        }
    }
    if (str_empty(survey->refusal) && heard > chosen->position->last_index) {
        survey->refusal = arena_printf(arena, "a more advanced member cannot be reached: entries up to %" PRIu64 " are known to be acknowledged, the best copy that can be"
            " reached (%s) ends at %" PRIu64, heard, chosen->name, chosen->position->last_index);
        survey->refusal_by_loss = true;
    }
}

void survey_judge(survey_t *survey, struct arena *arena)
{
    member_t *chosen = NULL, *leads = NULL;
    survey->epoch = 0;
    survey->refusal = "";
    for (size_t i = 0; i < survey->n_members; i++) {
        const member_t *member = survey->members[i];
        if (member->reachable && member->position->epoch > survey->epoch) {
            survey->epoch = member->position->epoch;
        }
    }
    for (size_t i = 0; i < survey->n_members; i++) {
        member_t *member = survey->members[i];
        if (member->reachable && member->position->leader_id != 0 && member->position->epoch == survey->epoch) {
            leads = member;
        }
        if (usable(member, survey->epoch) && (chosen == NULL || further(member->position, chosen->position))) {
            chosen = member;
        }
    }
    bool older = false;
    for (size_t i = 0; i < survey->n_members; i++) {
        older = older || (survey->members[i]->reachable && survey->members[i]->position->epoch < survey->epoch);
    }
    if (chosen == NULL) {
        survey->refusal = "no member with a copy of the database can be reached";
        return;
    }
    chosen->chosen = true;
    survey->chosen_id = chosen->id;
    bool sole = chosen->position->n_voters == 1 && chosen->position->voters[0] == chosen->id;
    if (leads != NULL && (older || sole)) { /* an earlier rescue came this far */
        survey->done = true;
    } else if (leads != NULL) {
        survey->refusal = arena_printf(arena, "%s knows a leader: a majority of the voters works", leads->name);
    } else if (sole) {
        survey->done = true; /* it is about to lead */
    } else {
        judge_loss(survey, chosen, arena);
    }
}
