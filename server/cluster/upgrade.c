/* See upgrade.h. The levels travel: member's report -> leader's row -> view -> everybody's judgement. So all members judge by the same rows, and a member
 * serves only after its own level stands in the database. */
#include "upgrade.h"

#include "server/daemon/state.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum {
    LEVEL_BUMP_MAX = 1000,
    REFUSED_MS = 5000,        /* so long a leader that knows no row: this server is no member any more */
    HOOK_WAIT_MAX_S = 30,     /* members of one cluster do not all load the new version at once */
    HOOK_POLL_MS = 500,
    STATE_PENDING = 1,
    RECORDED_MAX = 1024,
};

extern char **environ;

static atomic_bool view_seen;
static atomic_llong refused_since_ms; /* 0 = not refused */

struct level_claim upgrade_claim(void)
{
    static const char *const names[] = {"COVEY_TEST_API_LEVEL_BUMP", "LXD_ARTIFICIALLY_BUMP_API_EXTENSIONS"};
    struct level_claim claim = {{db_schema_version(), COVEY_API_LEVEL}, {db_schema_floor(), COVEY_API_FLOOR}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *text = getenv(names[i]);
        int64_t more = 0;
        if (text != NULL && parse_i64(text, 1, LEVEL_BUMP_MAX, &more) == 0) {
            claim.level.api += more;
            claim.floor.api = claim.level.api;
        }
    }
    return claim;
}

void upgrade_view_seen(void)
{
    atomic_store(&refused_since_ms, 0);
    atomic_store(&view_seen, true);
}

void upgrade_refused(void)
{
    long long none = 0;
    atomic_compare_exchange_strong(&refused_since_ms, &none, (long long)time_mono_ms());
}

static enum upgrade_state not_registered(struct daemon *daemon, struct error *err)
{
    char *address = local_config_get(daemon->local, "cluster.https_address");
    error_set(err, STATUS_FAILED_PRECONDITION, "No node registered with address %s", address != NULL ? address : "(none)");
    free(address);
    return UPGRADE_FATAL;
}

static enum upgrade_state judge_member(const struct view *view, const Covey__Internal__V1__ViewMember *self, struct error *err)
{
    struct level_claim claim = upgrade_claim();
    switch (level_judge(view->message, self->id, claim)) {
    case LEVEL_BEHIND:
        error_set(err, STATUS_FAILED_PRECONDITION, "failed to ensure schema: this node's version is behind, please upgrade");
        return UPGRADE_FATAL;
    case LEVEL_INCONSISTENT:
        error_set(err, STATUS_FAILED_PRECONDITION, "failed to ensure schema: nodes have inconsistent versions");
        return UPGRADE_FATAL;
    case LEVEL_WAIT:
        return UPGRADE_BLOCKED;
    case LEVEL_SERVE:
        break;
    }
    if (self->state == STATE_PENDING || !level_claim_equal(claim, level_claim_of(self))) {
        return UPGRADE_UNKNOWN;
    }
    return view->message->schema_applied < claim.floor.schema ? UPGRADE_BLOCKED : UPGRADE_SERVE;
}

enum upgrade_state upgrade_judge(struct daemon *daemon, struct error *err)
{
    const struct view *view = view_get();
    uint64_t id = daemon_id(daemon);
    const Covey__Internal__V1__ViewMember *self = view_member_by_id(view, id);
    enum upgrade_state state = self != NULL ? judge_member(view, self, err) : UPGRADE_UNKNOWN;
    if (!atomic_load(&view_seen)) {
        /* What all members have reached is never taken back, so an old view is enough to say that this code is behind; for nothing else. */
        long long since = atomic_load(&refused_since_ms);
        bool behind = state == UPGRADE_FATAL && level_judge(view->message, id, upgrade_claim()) == LEVEL_BEHIND;
        state = behind ? UPGRADE_FATAL : since != 0 && time_mono_ms() - since > REFUSED_MS ? not_registered(daemon, err) : UPGRADE_UNKNOWN;
    } else if (self == NULL && view->message->n_members > 0) {
        state = not_registered(daemon, err);
    }
    view_unref(view);
    return state == UPGRADE_FATAL && join_exchanging() ? UPGRADE_UNKNOWN : state; /* the join ends in a database that fits */
}

/* ---- the leader's part ---- */

struct recording {
    struct arena arena;
    struct claimed {
        uint64_t id;
        struct level_claim claim;
    } claims[RECORDED_MAX];
    size_t count;
};

/* The rows as a view, so that one rule judges both. */
static int read_levels(struct sql *sql, struct arena *arena, Covey__Internal__V1__View *out, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT id, state, schema, api_extensions, schema_floor, api_floor FROM nodes ORDER BY id", "");
    int status = STATUS_OK;
    out->members = arena_alloc(arena, RECORDED_MAX * sizeof *out->members);
    while (status == STATUS_OK && sql_next(s)) {
        if (out->n_members == RECORDED_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members", RECORDED_MAX);
            break;
        }
        Covey__Internal__V1__ViewMember *member = arena_alloc(arena, sizeof *member);
        covey__internal__v1__view_member__init(member);
        member->id = (uint64_t)sql_int(s, 0);
        member->state = sql_int(s, 1);
        member->schema = sql_int(s, 2);
        member->api_extensions = sql_int(s, 3);
        member->schema_floor = sql_int(s, 4);
        member->api_floor = sql_int(s, 5);
        out->members[out->n_members++] = member;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    status = status == STATUS_OK ? done : status;
    if (status == STATUS_OK) {
        s = sql_query(sql, "SELECT schema, api_extensions FROM cluster WHERE id = 1", "");
        if (sql_next(s)) {
            out->schema = sql_int(s, 0);
            out->api_extensions = sql_int(s, 1);
        }
        status = sql_done(s, err);
    }
    return status;
}

static Covey__Internal__V1__ViewMember *find(const Covey__Internal__V1__View *view, uint64_t id)
{
    for (size_t i = 0; i < view->n_members; i++) {
        if (view->members[i]->id == id) {
            return view->members[i];
        }
    }
    return NULL;
}

/* Whether an announcement is to be written down: one that is behind or inconsistent will end, and its row stays as it was. */
static bool wanted(const Covey__Internal__V1__View *view, const struct claimed *claimed)
{
    const Covey__Internal__V1__ViewMember *member = find(view, claimed->id);
    if (member == NULL || member->state == STATE_PENDING || level_claim_equal(level_claim_of(member), claimed->claim)) {
        return false;
    }
    enum level_verdict verdict = level_judge(view, claimed->id, claimed->claim);
    return verdict == LEVEL_SERVE || verdict == LEVEL_WAIT;
}

/* The level that all members have reached together, if the cluster does not know it yet. */
static bool reached_together(const Covey__Internal__V1__View *view, struct level *out)
{
    bool any = false;
    for (size_t i = 0; i < view->n_members; i++) {
        struct level level = level_claim_of(view->members[i]).level;
        if (view->members[i]->state == STATE_PENDING) {
            continue;
        }
        if (any && level_compare(level, *out) != LEVEL_EQUAL) {
            return false;
        }
        *out = level;
        any = true;
    }
    return any && level_compare(*out, (struct level){view->schema, view->api_extensions}) == LEVEL_HIGHER;
}

static int record_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct recording *in = ud;
    Covey__Internal__V1__View now = COVEY__INTERNAL__V1__VIEW__INIT;
    struct level reached = {0, 0};
    int status = read_levels(sql, &in->arena, &now, err);
    for (size_t i = 0; i < in->count && status == STATUS_OK; i++) {
        const struct level_claim *claim = &in->claims[i].claim;
        if (!wanted(&now, &in->claims[i])) {
            continue;
        }
        status = sql_exec(sql, err, "UPDATE nodes SET schema = ?2, api_extensions = ?3, schema_floor = ?4, api_floor = ?5 WHERE id = ?1", "iiiii",
                          (int64_t)in->claims[i].id, claim->level.schema, claim->level.api, claim->floor.schema, claim->floor.api);
        Covey__Internal__V1__ViewMember *member = find(&now, in->claims[i].id);
        member->schema = claim->level.schema;
        member->api_extensions = claim->level.api;
        member->schema_floor = claim->floor.schema;
        member->api_floor = claim->floor.api;
        log_info("upgrade.level", "member=%" PRIu64 " schema=%" PRId64 " api=%" PRId64, in->claims[i].id, claim->level.schema, claim->level.api);
    }
    if (status == STATUS_OK && reached_together(&now, &reached)) { /* in the same transaction: nobody may go back once the others go on */
        status = sql_exec(sql, err, "UPDATE cluster SET schema = ?1, api_extensions = ?2 WHERE id = 1", "ii", reached.schema, reached.api);
    }
    return status;
}

static int allow_schema(struct db *db, void *ud, struct error *err)
{
    db_schema_allow(db, *(int *)ud);
    return STATUS_OK;
}

void upgrade_record(struct daemon *daemon)
{
    struct recording *in = xcalloc(1, sizeof *in);
    const struct view *view = view_get();
    struct level reached = {0, 0};
    bool due = daemon_clustered(daemon) && reached_together(view->message, &reached);
    int64_t lowest = db_schema_version();
    arena_init(&in->arena);
    for (size_t i = 0; i < view->message->n_members && in->count < RECORDED_MAX; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        struct claimed claimed = {.id = member->id};
        bool known = member->id == daemon_id(daemon) || attach_claim(member->id, &claimed.claim);
        if (member->id == daemon_id(daemon)) {
            claimed.claim = upgrade_claim();
        }
        if (known && wanted(view->message, &claimed)) {
            in->claims[in->count++] = claimed;
        }
    }
    view_unref(view);
    struct error err = ERROR_INIT;
    if ((in->count > 0 || due) && daemon_write(daemon, NULL, record_write, in, NULL, NULL, NULL, &err) != STATUS_OK) {
        log_warn("upgrade.record", "error=\"%s\"", err.text); /* tried again at the next tick */
    } else if (in->count > 0 || due) {
        controller_refresh_view(daemon);
    }
    view = view_get();
    for (size_t i = 0; i < view->message->n_members; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        lowest = member->state != STATE_PENDING && member->schema < lowest ? member->schema : lowest;
    }
    view_unref(view);
    int version = (int)lowest;
    state_with_db(daemon, allow_schema, &version, NULL);
    arena_clear(&in->arena);
    free(in);
}

struct successor {
    uint64_t id;
    bool voter;
};

static int hand_over(struct raft_node *raft, void *ud, struct error *err)
{
    const struct successor *to = ud;
    int status = to->voter ? STATUS_OK : raft_node_assign(raft, to->id, RAFT_NODE_VOTER, err);
    return status == STATUS_OK ? raft_node_transfer(raft, to->id, err) : status;
}

void upgrade_yield(struct daemon *daemon)
{
    struct successor best = {0, false};
    const struct view *view = view_get();
    bool waits = level_judge(view->message, daemon_id(daemon), upgrade_claim()) == LEVEL_WAIT; /* and not only for its own schema step */
    for (size_t i = 0; i < view->message->n_members && waits; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        int role = state_raft_role(member->id);
        bool serves = member->id != daemon_id(daemon) && member->state != STATE_PENDING && role >= 0 && member_online(daemon, member->id) &&
                      !attach_member_stopping(member->id) && level_judge(view->message, member->id, level_claim_of(member)) == LEVEL_SERVE;
        if (serves && (best.id == 0 || (!best.voter && role == ROLE_VOTER))) {
            best = (struct successor){member->id, role == ROLE_VOTER};
        }
    }
    view_unref(view);
    if (best.id == 0) {
        return; /* nobody serves: as good here as anywhere */
    }
    struct error err = ERROR_INIT;
    membership_lock();
    int status = state_with_raft(daemon, hand_over, &best, &err);
    membership_unlock();
    if (status == STATUS_OK) {
        log_info("upgrade.yield", "leader=%" PRIu64, best.id);
    } else {
        log_warn("upgrade.yield", "member=%" PRIu64 " error=\"%s\"", best.id, err.text);
    }
}

/* ---- the update hook (spec/cluster.md 13.4) ---- */

static struct {
    struct daemon *daemon;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool started, stop, dirty;
} hook = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Sleeps until something changed or `ms` passed (0 = no limit); false when stopping. */
static bool pause_hook(int64_t ms, bool for_views)
{
    struct timespec until;
    time_deadline(&until, ms);
    pthread_mutex_lock(&hook.lock);
    while (!hook.stop && !(for_views && hook.dirty) &&
           (ms == 0 ? pthread_cond_wait(&hook.changed, &hook.lock) : pthread_cond_timedwait(&hook.changed, &hook.lock, &until)) == 0) {
    }
    hook.dirty = hook.dirty && !for_views;
    bool go_on = !hook.stop;
    pthread_mutex_unlock(&hook.lock);
    return go_on;
}

static bool others_are_newer(struct daemon *daemon)
{
    bool newer = false;
    const struct view *view = view_get();
    struct level own = upgrade_claim().level;
    for (size_t i = 0; i < view->message->n_members; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        newer = newer || (member->id != daemon_id(daemon) && member->state != STATE_PENDING &&
                          level_compare(level_claim_of(member).level, own) == LEVEL_HIGHER);
    }
    view_unref(view);
    return newer;
}

static void run_program(const char *program)
{
    char *argv[] = {(char *)program, NULL};
    posix_spawnattr_t attr;
    sigset_t none;
    pid_t pid = 0;
    int status = 0;
    sigemptyset(&none);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID); /* it will end this daemon, and must not end with it */
    int rc = posix_spawnp(&pid, program, NULL, &attr, argv, environ);
    posix_spawnattr_destroy(&attr);
    if (rc != 0) {
        log_error("upgrade.hook", "program=%s error=\"%s\"", program, strerrordesc_np(rc));
        return;
    }
    log_info("upgrade.hook", "program=%s pid=%d", program, (int)pid);
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (!pause_hook(HOOK_POLL_MS, false)) {
            return;
        }
    }
    log_info("upgrade.hook", "program=%s status=%d", program, status);
}

static void *hook_main(void *ud)
{
    struct daemon *daemon = ud;
    const char *program = getenv("COVEY_CLUSTER_UPDATE");
    program = str_empty(program) ? getenv("LXD_CLUSTER_UPDATE") : program;
    while (!others_are_newer(daemon)) {
        if (!pause_hook(0, true)) {
            return NULL;
        }
    }
    log_warn("upgrade.behind", "text=\"other members are newer than this one, please upgrade\"");
    uint8_t random = 0;
    random_bytes(&random, sizeof random);
    if (!str_empty(program) && pause_hook((int64_t)(random % HOOK_WAIT_MAX_S) * 1000 + 1, false)) {
        run_program(program);
    }
    return NULL;
}

void upgrade_view_changed(void)
{
    pthread_mutex_lock(&hook.lock);
    if (hook.started) {
        hook.dirty = true;
        pthread_cond_signal(&hook.changed);
    }
    pthread_mutex_unlock(&hook.lock);
}

void upgrade_start(struct daemon *daemon)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_lock(&hook.lock);
    pthread_cond_init(&hook.changed, &attr);
    hook.started = true;
    pthread_mutex_unlock(&hook.lock);
    pthread_condattr_destroy(&attr);
    covey_assert(pthread_create(&hook.thread, NULL, hook_main, daemon) == 0);
}

void upgrade_stop(void)
{
    pthread_mutex_lock(&hook.lock);
    bool started = hook.started;
    hook.stop = true;
    if (started) {
        pthread_cond_signal(&hook.changed);
    }
    pthread_mutex_unlock(&hook.lock);
    if (started) {
        pthread_join(hook.thread, NULL);
    }
}
