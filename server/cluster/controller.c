/* The controller thread: what only the leader does by itself. It follows leadership, keeps the view equal to the database, writes transitions of liveness,
 * brings database roles to plan, forgets abandoned joins and expired tokens. An idle cluster writes nothing.
 *
 * One thread; membership_lock() serialises every change of who is a member or holds which role. */
#include "cluster.h"

#include "upgrade.h"
#include "server/auth/tokens.h"
#include "server/config/keys.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/images/images.h"
#include "server/operations/operations.h"
#include "server/recovery/recovery.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

enum { STALE_ENTRY_KEEP_MS = 60000, STALE_ENTRIES_MAX = 64 };
enum { TICK_MS = 1000, ROLE_CHANGES_MAX = 16, ROLE_RETRY_MS = 5000 };

static struct {
    struct daemon *daemon;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool started, stop, wake, dirty;
    bool serving; /* leads and may do more than keep the cluster together: is not blocked (docs/design/upgrade.md) */
    uint64_t led_term; /* term in which this member took over, 0 = not leading */
    uint64_t revision; /* of the last view made here */
    pthread_mutex_t membership;
    pthread_mutex_t refresh;
} controller = {.lock = PTHREAD_MUTEX_INITIALIZER, .membership = PTHREAD_MUTEX_INITIALIZER, .refresh = PTHREAD_MUTEX_INITIALIZER};

void membership_lock(void)
{
    pthread_mutex_lock(&controller.membership);
}

void membership_unlock(void)
{
    pthread_mutex_unlock(&controller.membership);
}

void controller_wake(bool view_dirty)
{
    pthread_mutex_lock(&controller.lock);
    controller.wake = true;
    controller.dirty = controller.dirty || view_dirty;
    pthread_cond_signal(&controller.changed);
    pthread_mutex_unlock(&controller.lock);
}

/* ---- the view ---- */

struct build {
    struct daemon *daemon;
    struct arena arena;
    Covey__Internal__V1__View *view;
};

static int build_view(struct sql *sql, void *ud, struct error *err)
{
    struct build *build = ud;
    return view_build(sql, build->daemon, &build->arena, &build->view, err);
}

uint64_t controller_refresh_view(struct daemon *daemon)
{
    pthread_mutex_lock(&controller.refresh); /* so that an older reading never overtakes a newer one */
    struct build build = {.daemon = daemon};
    arena_init(&build.arena);
    struct error err = ERROR_INIT;
    uint64_t made = 0;
    if (daemon_leads(daemon) && daemon_read(daemon, DB_LOCAL, build_view, &build, NULL, &err) == STATUS_OK) {
        build.view->revision = ++controller.revision;
        made = controller.revision;
        view_install(daemon, build.view);
        certificate_lead(daemon); /* before the others: they may ask this member for it */
        view_persist(daemon);
        attach_view_changed();
    } else if (err.code != STATUS_OK) {
        log_warn("controller.view", "error=\"%s\"", err.text);
    }
    arena_clear(&build.arena);
    pthread_mutex_unlock(&controller.refresh);
    return made;
}

void view_propagate(struct daemon *daemon)
{
    uint64_t revision = controller_refresh_view(daemon);
    if (revision != 0) {
        attach_wait_view(revision, VIEW_PROPAGATION_MS);
    }
}

/* ---- roles ---- */

struct domain_row {
    uint64_t id;
    int64_t domain, state;
};
enum { PLANNED_MEMBERS_MAX = 1024 };
struct domain_rows {
    struct domain_row rows[PLANNED_MEMBERS_MAX];
    size_t count;
};

static int read_domains(struct sql *sql, void *ud, struct error *err)
{
    struct domain_rows *rows = ud;
    rows->count = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id, coalesce(failure_domain_id, 0), state FROM nodes ORDER BY id", "");
    bool more = false;
    while (!more && sql_next(s)) {
        more = rows->count == PLANNED_MEMBERS_MAX;
        if (!more) {
            rows->rows[rows->count++] = (struct domain_row){(uint64_t)sql_int(s, 0), sql_int(s, 1), sql_int(s, 2)};
        }
    }
    int status = sql_done(s, err);
    return status == STATUS_OK && more ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members", PLANNED_MEMBERS_MAX) : status;
}

struct assign {
    uint64_t id;
    enum raft_node_role role;
};

static int assign_role(struct raft_node *raft, void *ud, struct error *err)
{
    struct assign *assign = ud;
    return raft_node_assign(raft, assign->id, assign->role, err);
}

static int add_spare(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_add(raft, *(uint64_t *)ud, err);
}

static int remove_server(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_remove(raft, *(uint64_t *)ud, err);
}

/* Whether an entry has been without a member for STALE_ENTRY_KEEP_MS: until then `remove-raft-node` decides, or the removal that is under way. */
static bool long_unknown(uint64_t id)
{
    static struct { uint64_t id; int64_t since_ms; } seen[STALE_ENTRIES_MAX];
    static size_t next;
    int64_t now = time_mono_ms();
    for (size_t i = 0; i < STALE_ENTRIES_MAX; i++) {
        if (seen[i].id == id) {
            return now - seen[i].since_ms >= STALE_ENTRY_KEEP_MS;
        }
    }
    seen[next].id = id; /* ids are never reused */
    seen[next].since_ms = now;
    next = (next + 1) % STALE_ENTRIES_MAX;
    return false;
}

static bool has_row(const struct domain_rows *rows, uint64_t id)
{
    for (size_t i = 0; i < rows->count; i++) {
        if (rows->rows[i].id == id) {
            return true;
        }
    }
    return false;
}

/* Members without a Raft entry become spares, entries without a member go (spec/cluster.md 5.6). */
static int reconcile_servers(struct daemon *daemon, const struct domain_rows *rows, struct error *err)
{
    struct raft_node_server servers[PLANNED_MEMBERS_MAX];
    size_t count = state_raft_servers(servers, sizeof servers / sizeof *servers);
    int status = STATUS_OK;
    for (size_t i = 0; i < rows->count && status == STATUS_OK; i++) {
        uint64_t id = rows->rows[i].id;
        if (rows->rows[i].state != 1 && state_raft_role(id) < 0 && member_online(daemon, id) && attach_heard(id)) { /* after a recovery the others may be dead */
            log_info("roles.add", "member=%" PRIu64, id);
            status = state_with_raft(daemon, add_spare, &id, err);
        }
    }
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        if (!has_row(rows, servers[i].id) && servers[i].id != daemon_id(daemon) && long_unknown(servers[i].id)) {
            log_info("roles.remove", "member=%" PRIu64, servers[i].id);
            status = state_with_raft(daemon, remove_server, &servers[i].id, err);
        }
    }
    return status;
}

static struct role_change next_change(struct daemon *daemon, const struct domain_rows *rows)
{
    struct role_member members[PLANNED_MEMBERS_MAX];
    size_t count = 0;
    for (size_t i = 0; i < rows->count; i++) {
        int role = state_raft_role(rows->rows[i].id);
        if (role >= 0) {
            members[count++] = (struct role_member){
                .id = rows->rows[i].id,
                .role = (enum member_role)role,
                .online = rows->rows[i].state != 1 && member_online(daemon, rows->rows[i].id) && !attach_member_stopping(rows->rows[i].id),
                .ready = attach_member_ready(rows->rows[i].id),
                .leader = rows->rows[i].id == daemon_id(daemon),
                .domain = rows->rows[i].domain,
            };
        }
    }
    /* An entry whose member is gone still counts for the majority, until it is removed: with it out of the plan, three voters of which one is such an entry
     * would look like two members, and taking the vote of one of those would leave no majority. */
    struct raft_node_server servers[PLANNED_MEMBERS_MAX];
    size_t server_count = state_raft_servers(servers, sizeof servers / sizeof *servers);
    for (size_t i = 0; i < server_count && count < PLANNED_MEMBERS_MAX; i++) {
        if (!has_row(rows, servers[i].id)) {
            members[count++] = (struct role_member){.id = servers[i].id, .role = (enum member_role)state_raft_role(servers[i].id)};
        }
    }
    return roles_plan(members, count, (unsigned)config_int("cluster.max_voters"), (unsigned)config_int("cluster.max_standby"));
}

bool controller_awaits_candidate(struct daemon *daemon, enum member_role role)
{
    const struct view *view = view_get();
    bool found = false;
    for (size_t i = 0; i < view->message->n_members && !found; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        found = member->state != 1 && state_raft_role(member->id) > (int)role && member_online(daemon, member->id) && !attach_member_stopping(member->id) &&
                !attach_member_ready(member->id);
    }
    view_unref(view);
    return found;
}

int controller_rebalance(struct daemon *daemon, struct error *err)
{
    static const enum raft_node_role raft_role[] = {[ROLE_VOTER] = RAFT_NODE_VOTER, [ROLE_STANDBY] = RAFT_NODE_STANDBY, [ROLE_SPARE] = RAFT_NODE_SPARE};
    struct domain_rows *rows = xcalloc(1, sizeof *rows);
    int status = daemon_read(daemon, DB_LOCAL, read_domains, rows, NULL, err);
    if (status == STATUS_OK) {
        status = reconcile_servers(daemon, rows, err);
    }
    for (unsigned i = 0; i < ROLE_CHANGES_MAX && status == STATUS_OK && daemon_leads(daemon); i++) {
        struct role_change change = next_change(daemon, rows);
        if (change.id == 0) {
            break;
        }
        log_info("roles.assign", "member=%" PRIu64 " role=%s", change.id,
            change.role == ROLE_VOTER ? "voter" : change.role == ROLE_STANDBY ? "stand-by" : "spare");
        struct assign assign = {change.id, raft_role[change.role]};
        status = state_with_raft(daemon, assign_role, &assign, err);
        for (unsigned seen = 0, n = 0; status == STATUS_OK && state_raft_role(change.id) != (int)change.role && n < 50; n++) {
            seen = state_wait_change(seen, 20); /* the status callback follows the change */
        }
    }
    free(rows);
    return status;
}

/* ---- sweeps ---- */

static void sweep(struct daemon *daemon)
{
    joins_sweep(daemon);
    tokens_sweep(daemon);
}

/* ---- image copies ---- */

static atomic_bool synchronizing;

static void *synchronize_main(void *ud)
{
    struct error err = ERROR_INIT;
    if (images_synchronize(ud, &err) != STATUS_OK) {
        log_warn("images.synchronize", "error=\"%s\"", err.text);
    }
    atomic_store(&synchronizing, false);
    return NULL;
}

/* When members came or went, when more copies are wanted, and hourly. On a thread of its own: it may wait for other members. */
static void check_images(struct daemon *daemon)
{
    static size_t members;
    static int64_t copies, due_ms;
    const struct view *view = view_get();
    size_t now_members = view->message->n_members;
    view_unref(view);
    int64_t now_copies = config_int("cluster.images_minimal_replica"), now = time_mono_ms();
    bool wanted = now_members != members || now_copies != copies || now >= due_ms;
    if (!wanted || now_members < 2 || atomic_exchange(&synchronizing, true)) {
        return;
    }
    members = now_members;
    copies = now_copies;
    due_ms = now + (int64_t)IMAGES_SYNC_INTERVAL_S * 1000;
    if (background_start("image copies", synchronize_main, daemon) != 0) {
        atomic_store(&synchronizing, false);
    }
}

/* ---- digests ---- */

static int has_member(struct sql *sql, void *ud, struct error *err)
{
    return sql_get_int(sql, ud, err, "SELECT count(*) FROM nodes", "");
}

static int digest_round(struct db *db, void *ud, struct error *err)
{
    return db_digest_round(db, ud, err);
}

/* Now and then, but only when something was written since: an idle cluster writes nothing. */
static void check_digest(struct daemon *daemon)
{
    static int64_t due_ms;
    static uint64_t last;
    uint64_t revision = 0;
    int64_t now = time_mono_ms();
    if (now < due_ms) {
        return;
    }
    due_ms = now + (int64_t)DB_DIGEST_INTERVAL_S * 1000;
    struct error err = ERROR_INIT;
    int64_t ignored = 0;
    if (daemon_read(daemon, DB_LOCAL, has_member, &ignored, &revision, &err) != STATUS_OK || revision == last) {
        return;
    }
    if (state_with_db(daemon, digest_round, &last, &err) != STATUS_OK) {
        log_warn("digest", "error=\"%s\"", err.text);
    }
}

/* ---- first start ---- */

static int ensure_first_member(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct daemon *daemon = ud;
    int64_t count = 0;
    struct level_claim claim = upgrade_claim();
    struct utsname host;
    int status = sql_get_int(sql, &count, err, "SELECT count(*) FROM nodes", "");
    if (status != STATUS_OK || count > 0) {
        return status;
    }
    uname(&host);
    int architecture = architecture_id(host.machine);
    if (architecture == 0) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Unknown architecture \"%s\"", host.machine);
    }
    status = sql_exec(sql, err,
        "INSERT INTO nodes (id, name, address, schema, api_extensions, schema_floor, api_floor, arch, fingerprint, created_at)"
        " VALUES (1, 'none', '0.0.0.0', ?1, ?2, ?3, ?4, ?5, ?6, ?7)", "iiiiisi",
        claim.level.schema, claim.level.api, claim.floor.schema, claim.floor.api, (int64_t)architecture, daemon->server.fingerprint, time_unix_ns());
    return status != STATUS_OK ? status : sql_exec(sql, err, "INSERT INTO nodes_cluster_groups (node_id, group_id) VALUES (1, 1)", "");
}

/* ---- the thread ---- */

static int allow_all_steps(struct db *db, void *ud, struct error *err)
{
    db_schema_allow(db, db_schema_version());
    return STATUS_OK;
}

/* Operations run on a leader that serves; a blocked one keeps the members together and nothing else. */
static void follow_serving(struct daemon *daemon)
{
    struct error err = ERROR_INIT;
    bool leads = controller.led_term != 0;
    enum upgrade_state state = leads ? upgrade_judge(daemon, &err) : UPGRADE_UNKNOWN;
    bool serving = state == UPGRADE_SERVE;
    if (serving != controller.serving) {
        controller.serving = serving;
        operations_lead(serving);
    }
    if (leads && state == UPGRADE_BLOCKED) {
        upgrade_yield(daemon);
    }
}

/* Takes over or lets go; true while leading. */
static bool follow_leadership(struct daemon *daemon)
{
    bool leads = daemon_leads(daemon);
    uint64_t term = daemon_term(daemon);
    if (controller.led_term != 0 && (!leads || term != controller.led_term)) {
        log_info("leader.lost", "term=%" PRIu64, controller.led_term);
        controller.led_term = 0;
        follow_serving(daemon);
        attach_lead(daemon, false);
    }
    if (leads && controller.led_term == 0) {
        struct error err = ERROR_INIT;
        int64_t members = 0;
        int status = daemon_read(daemon, DB_LOCAL, has_member, &members, NULL, &err);
        if (status == STATUS_OK && members == 0) {
            state_with_db(daemon, allow_all_steps, NULL, NULL); /* nobody else has to know them */
            status = daemon_write(daemon, NULL, ensure_first_member, daemon, NULL, NULL, NULL, &err);
        }
        status = status == STATUS_OK ? recovery_lead(daemon, &err) : status;
        if (status != STATUS_OK) {
            log_warn("leader.start", "error=\"%s\"", err.text);
            return false; /* tried again at the next tick */
        }
        log_info("leader.start", "term=%" PRIu64, term);
        controller.led_term = term;
        controller_refresh_view(daemon);
        upgrade_view_seen();
        attach_lead(daemon, true);
    }
    return controller.led_term != 0;
}

static void *controller_main(void *ud)
{
    struct daemon *daemon = ud;
    int64_t roles_after = 0, sweep_after = 0, tick_after = 0;
    bool ticking = true;
    for (;;) {
        pthread_mutex_lock(&controller.lock);
        struct timespec ts;
        time_deadline(&ts, TICK_MS);
        while (!controller.wake && !controller.stop) {
            if (!ticking) { /* who does not lead waits to be woken */
                pthread_cond_wait(&controller.changed, &controller.lock);
            } else if (pthread_cond_timedwait(&controller.changed, &controller.lock, &ts) != 0) {
                break;
            }
        }
        bool dirty = controller.dirty, stop = controller.stop;
        controller.wake = controller.dirty = false;
        pthread_mutex_unlock(&controller.lock);
        if (stop) {
            return NULL;
        }
        bool leads = follow_leadership(daemon);
        ticking = leads || daemon_leads(daemon);
        if (!leads) {
            continue;
        }
        if (dirty) {
            controller_refresh_view(daemon);
        }
        upgrade_record(daemon);
        address_record(daemon);
        follow_serving(daemon);
        int64_t now = time_mono_ms();
        if (now >= tick_after) {
            tick_after = now + TICK_MS;
            liveness_check(daemon);
            clocks_check(daemon);
            certificate_lead(daemon); /* again, should the disk have refused it */
        }
        if (daemon_clustered(daemon) && controller.serving) {
            check_images(daemon);
            check_digest(daemon);
        }
        if (controller.serving) {
            removal_round(daemon);
        }
        if (now >= sweep_after && controller.serving) {
            sweep_after = now + TOKEN_SWEEP_MS;
            sweep(daemon);
        }
        if (daemon_clustered(daemon) && now >= roles_after) {
            struct error err = ERROR_INIT;
            membership_lock();
            int status = controller_rebalance(daemon, &err);
            membership_unlock();
            roles_after = time_mono_ms() + (status == STATUS_OK ? TICK_MS : ROLE_RETRY_MS);
            if (status != STATUS_OK) {
                log_warn("roles", "error=\"%s\"", err.text);
            }
        }
    }
}

static void on_state_change(bool tables)
{
    /* Roles in the view come from Raft's configuration: a status change makes the view stale, too. */
    controller_wake(true);
}

void controller_start(struct daemon *daemon)
{
    controller.daemon = daemon;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&controller.changed, &attr);
    pthread_condattr_destroy(&attr);
    state_on_change(on_state_change);
    covey_assert(pthread_create(&controller.thread, NULL, controller_main, daemon) == 0);
    controller.started = true;
}

void controller_stop(void)
{
    if (!controller.started) {
        return;
    }
    pthread_mutex_lock(&controller.lock);
    controller.stop = true;
    pthread_cond_signal(&controller.changed);
    pthread_mutex_unlock(&controller.lock);
    pthread_join(controller.thread, NULL);
    controller.started = false;
}
