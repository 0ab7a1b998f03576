/* Rescue: after a majority of the voters is lost, finds the survivor whose copy holds most and makes it the only voter; the others follow by themselves (epoch.c).
 *
 * Steps: survey; hold (every survivor leaves Raft for a while, so that copies stay as they were seen and no leader can come up among them); survey again under
 * the hold; promote. Only the last changes anything, on one member, and that survives a kill; so the command may be run again after any interruption, and finds
 * a promotion that was done already by its epoch.
 *
 * Thread: any handler's, or offline.c's only one. */
#include "recovery.h"

#include "server/daemon/state.h"
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { HOLD_MS = 30000, HOLD_MS_MAX = 120000, PROMOTE_MS = 60000, FOLLOW_MS = 60000, FOLLOW_POLL_MS = 300, SETTLE_MS = 4 * RAFT_ELECTION_TIMEOUT_MS };

/* ---- holding ---- */

static struct {
    pthread_mutex_t lock;
    char id[37];
    int64_t until_ms;
} held = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool is_held(const char *hold_id)
{
    pthread_mutex_lock(&held.lock);
    bool yes = strcmp(held.id, hold_id) == 0 && time_mono_ms() < held.until_ms;
    pthread_mutex_unlock(&held.lock);
    return yes;
}

int rescue_hold(struct daemon *daemon, const char *hold_id, int64_t hold_ms, struct error *err)
{
    if (!uuid_valid(hold_id) || hold_ms < 0 || hold_ms > HOLD_MS_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "hold_id must be a UUID, hold_ms at most %d", HOLD_MS_MAX);
    }
    if (hold_ms > 0 && daemon_leader_id(daemon) != 0) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "this member knows a leader");
    }
    int64_t now = time_mono_ms();
    pthread_mutex_lock(&held.lock);
    int status = STATUS_OK;
    if (now < held.until_ms && strcmp(held.id, hold_id) != 0) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "another rescue is under way; try again in %lld s", (long long)(held.until_ms - now) / 1000 + 1);
    } else {
        snprintf(held.id, sizeof held.id, "%s", hold_id);
        held.until_ms = now + hold_ms;
        state_hold(held.until_ms);
    }
    pthread_mutex_unlock(&held.lock);
    if (status == STATUS_OK && hold_ms > 0) {
        state_settle(daemon); /* what came in before is in the log */
        log_info("rescue.hold", "id=%s ms=%lld", hold_id, (long long)hold_ms);
    }
    return status;
}

/* ---- promotion ---- */

int rescue_promote(struct daemon *daemon, const Covey__Internal__V1__PromoteRequest *request, struct error *err)
{
    uint64_t epoch = recovery_epoch(daemon);
    if (epoch == request->new_epoch) {
        return STATUS_OK;
    }
    if (epoch != request->epoch || request->new_epoch <= epoch) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "this member is in epoch %" PRIu64, epoch);
    }
    if (forming_begin(err) != STATUS_OK) {
        return err->code;
    }
    struct arena arena;
    Covey__Internal__V1__PositionResponse *own = NULL;
    arena_init(&arena);
    int status = is_held(request->hold_id) ? position_own(daemon, &arena, &own, err) : error_set(err, STATUS_FAILED_PRECONDITION, "the hold is over");
    if (status == STATUS_OK && (own->last_term != request->last_term || own->last_index != request->last_index || own->leader_id != 0)) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "the copy of this member changed meanwhile");
    }
    if (status == STATUS_OK) {
        log_warn("rescue.promote", "epoch=%" PRIu64 " new=%" PRIu64 " last_term=%" PRIu64 " last_index=%" PRIu64, epoch, request->new_epoch, own->last_term, own->last_index);
        state_close_database(daemon);
        members_forget_channels();
        status = recovery_sole_voter(daemon, request->new_epoch, err);
        view_rebase(daemon);
        status = status == STATUS_OK ? state_open_database(daemon, err) : status;
        if (status != STATUS_OK) {
            core_panic(__FILE__, __LINE__, "cannot become the only voter: %s", err->text); /* the next start goes on with it */
        }
        rescue_hold(daemon, request->hold_id, 0, NULL);
    }
    arena_clear(&arena);
    forming_end();
    return status;
}

/* ---- surveys ---- */

/* The best copy that any survey of this epoch has seen from here: when its member is gone at the next try, somebody must decide. */
static void remember_best(struct daemon *daemon, Covey__Internal__V1__SurveyResponse *survey, struct arena *arena)
{
    const Covey__Internal__V1__SurveyMember *chosen = NULL;
    char *text = local_state_get(daemon->local, "rescue_best");
    json_t *best = text != NULL ? json_loads(text, 0, NULL) : NULL;
    uint64_t epoch = (uint64_t)json_integer_value(json_object_get(best, "epoch")), term = (uint64_t)json_integer_value(json_object_get(best, "term"));
    uint64_t index = (uint64_t)json_integer_value(json_object_get(best, "index"));
    for (size_t i = 0; i < survey->n_members; i++) {
        chosen = survey->members[i]->chosen ? survey->members[i] : chosen;
    }
    if (chosen != NULL && epoch == survey->epoch && (term > chosen->position->last_term || (term == chosen->position->last_term && index > chosen->position->last_index))) {
        const char *name = json_string_value(json_object_get(best, "name"));
        if (str_empty(survey->refusal)) {
            survey->refusal = arena_printf(arena, "a more advanced member cannot be reached: %s had entries up to %" PRIu64 ", the best copy that can be reached (%s) ends at %" PRIu64,
                name != NULL ? name : "another one", index, chosen->name, chosen->position->last_index);
            survey->refusal_by_loss = true;
        }
    } else if (chosen != NULL && !survey->done) {
        json_t *made = json_pack("{s:I,s:I,s:I,s:s}", "epoch", (json_int_t)survey->epoch, "term", (json_int_t)chosen->position->last_term, "index",
            (json_int_t)chosen->position->last_index, "name", chosen->name);
        char *dump = made != NULL ? json_dumps(made, JSON_COMPACT) : NULL;
        if (dump != NULL && !str_eq(dump, text)) {
            local_state_set(daemon->local, "rescue_best", dump, NULL);
        }
        free(dump);
        json_decref(made);
    }
    json_decref(best);
    free(text);
}

static int survey_once(struct daemon *daemon, const char *hold_id, struct arena *arena, Covey__Internal__V1__SurveyResponse **result, struct error *err)
{
    struct peer_position *peers;
    Covey__Internal__V1__PositionResponse *own = NULL;
    Covey__Internal__V1__SurveyResponse *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__survey_response__init(out);
    *result = NULL;
    if (!daemon_clustered(daemon)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "This LXD instance is not clustered");
    }
    size_t count = positions_ask(daemon, hold_id, hold_id != NULL ? HOLD_MS : 0, arena, &peers);
    if (position_own(daemon, arena, &own, err) != STATUS_OK) {
        return err->code;
    }
    out->members = arena_alloc(arena, (count + 1) * sizeof *out->members);
    size_t at = 0;
    for (bool self_done = false; at < count || !self_done;) {
        Covey__Internal__V1__SurveyMember *member = arena_alloc(arena, sizeof *member);
        covey__internal__v1__survey_member__init(member);
        if (!self_done && (at == count || peers[at].id > own->id)) { /* by id */
            self_done = true;
            member->id = own->id;
            member->name = own->name;
            member->address = "";
            member->role = own->role;
            member->position = own;
            member->reachable = true;
        } else {
            const struct peer_position *peer = &peers[at++];
            member->id = peer->id;
            member->name = peer->name;
            member->address = peer->address;
            member->role = peer->role;
            member->position = peer->position;
            member->reachable = peer->position != NULL && strcmp(peer->position->cluster_id, own->cluster_id) == 0;
            member->error = member->reachable ? "" : arena_strdup(arena, peer->position != NULL ? "it belongs to another cluster" : peer->err.text);
        }
        out->members[out->n_members++] = member;
    }
    survey_judge(out, arena);
    remember_best(daemon, out, arena);
    *result = out;
    return STATUS_OK;
}

/* Those who have just lost their leader still believe in it for a moment. */
int rescue_survey(struct daemon *daemon, struct arena *arena, Covey__Internal__V1__SurveyResponse **out, struct error *err)
{
    int64_t until = time_mono_ms() + SETTLE_MS;
    for (;;) {
        int status = survey_once(daemon, NULL, arena, out, err);
        bool leaderless = true, leads = false;
        for (size_t i = 0; status == STATUS_OK && i < (*out)->n_members; i++) {
            const Covey__Internal__V1__PositionResponse *position = (*out)->members[i]->reachable ? (*out)->members[i]->position : NULL;
            leaderless = leaderless && (position == NULL || position->leader_id == 0);
            leads = leads || (position != NULL && position->leader_id == position->id);
        }
        if (status != STATUS_OK || leaderless || leads || time_mono_ms() >= until) {
            return status;
        }
        usleep(FOLLOW_POLL_MS * 1000);
    }
}

/* ---- the rescue ---- */

static int refuse(const Covey__Internal__V1__SurveyResponse *survey, bool accept_loss, struct error *err)
{
    bool over = str_empty(survey->refusal) || (survey->refusal_by_loss && accept_loss);
    return over ? STATUS_OK : error_set(err, STATUS_FAILED_PRECONDITION, "%s", survey->refusal);
}

static const Covey__Internal__V1__SurveyMember *chosen_of(const Covey__Internal__V1__SurveyResponse *survey)
{
    for (size_t i = 0; i < survey->n_members; i++) {
        if (survey->members[i]->chosen) {
            return survey->members[i];
        }
    }
    return NULL;
}

static int promote(struct daemon *daemon, bool stopped, const char *hold_id, const Covey__Internal__V1__SurveyResponse *survey, struct arena *arena, struct error *err)
{
    const Covey__Internal__V1__SurveyMember *chosen = chosen_of(survey);
    Covey__Internal__V1__PromoteRequest request = COVEY__INTERNAL__V1__PROMOTE_REQUEST__INIT;
    request.hold_id = (char *)hold_id;
    request.epoch = survey->epoch;
    request.new_epoch = recovery_new_epoch(survey->epoch);
    request.last_term = chosen->position->last_term;
    request.last_index = chosen->position->last_index;
    if (chosen->id == daemon_id(daemon)) {
        return stopped ? recovery_sole_voter(daemon, request.new_epoch, err) : rescue_promote(daemon, &request, err);
    }
    struct rpc_channel *channel = member_channel(daemon, chosen->id, err);
    if (channel == NULL) {
        return err->code;
    }
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.timeout_ms = PROMOTE_MS};
    int status = rpc_unary(channel, "covey.internal.v1.Recovery", "Promote", &request.base, &response, arena, &options, err);
    rpc_channel_unref(channel);
    return status;
}

/* Whether every reachable member is in the newest epoch, and one of them leads. A stopped one follows when it is started. */
static bool all_follow(const Covey__Internal__V1__SurveyResponse *survey, uint64_t stopped_id)
{
    bool leads = false;
    for (size_t i = 0; i < survey->n_members; i++) {
        const Covey__Internal__V1__SurveyMember *member = survey->members[i];
        if (member->reachable && member->id != stopped_id && member->position->epoch != survey->epoch) {
            return false;
        }
        leads = leads || (member->reachable && member->position->epoch == survey->epoch && member->position->leader_id != 0);
    }
    return leads;
}

int rescue_run(struct daemon *daemon, bool stopped, bool accept_loss, struct arena *arena, Covey__Internal__V1__SurveyResponse **out, struct error *err)
{
    char hold_id[37];
    uuid_new(hold_id);
    int status = rescue_survey(daemon, arena, out, err);
    if (status != STATUS_OK || (status = refuse(*out, accept_loss, err)) != STATUS_OK) {
        return status;
    }
    if (!(*out)->done) {
        status = stopped ? STATUS_OK : rescue_hold(daemon, hold_id, HOLD_MS, err);
        status = status == STATUS_OK ? survey_once(daemon, hold_id, arena, out, err) : status;
        status = status == STATUS_OK ? refuse(*out, accept_loss, err) : status;
        if (status == STATUS_OK && !(*out)->done) {
            status = promote(daemon, stopped, hold_id, *out, arena, err);
        }
        if (!stopped) {
            rescue_hold(daemon, hold_id, 0, NULL);
        }
        struct peer_position *ignored;
        positions_ask(daemon, hold_id, 0, arena, &ignored); /* releases them; else their holds end by themselves */
    }
    int64_t until = time_mono_ms() + FOLLOW_MS;
    bool here = stopped && (*out)->chosen_id == daemon_id(daemon); /* the others follow once this member is started */
    while (status == STATUS_OK && !here) {
        status = survey_once(daemon, NULL, arena, out, err);
        if (status != STATUS_OK || all_follow(*out, stopped ? daemon_id(daemon) : 0)) {
            break;
        }
        if (time_mono_ms() >= until) {
            status = error_set(err, STATUS_DEADLINE_EXCEEDED, "the new only voter is there, but other members did not follow within %d s; running the same command again shows which", FOLLOW_MS / 1000);
            break;
        }
        usleep(FOLLOW_POLL_MS * 1000);
    }
    return status;
}
