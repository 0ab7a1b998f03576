/* What happens without a request: starting instances when a member starts, stopping them when it stops, and the leader's sweep that removes what
 * interrupted deletions and creations left and ephemeral instances that stopped by themselves. Threads of its own. */
#include "instance.h"

#include "server/cluster/cluster.h"
#include "server/services.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    AUTOSTART_WAIT_MS = 300000,  /* for a leader and for this member to count as online */
    AUTOSTART_RETRY_MS = 1000,
    AUTOSTART_ONE_MS = 180000,   /* for one start */
    AUTOSTART_DELAY_MAX_S = 3600,
    STOP_DEFAULT_S = 30,         /* boot.host_shutdown_timeout */
    STOP_MAX_S = 3600,
    STOP_PARALLEL = 32,
    SWEEP_MAX = 256,             /* instances in one round */
};

/* ---- autostart ---- */

static const char *config_of(const Covey__V1__Instance *instance, const char *key)
{
    for (size_t i = 0; i < instance->n_expanded_config; i++) {
        if (strcmp(instance->expanded_config[i]->key, key) == 0) {
            return instance->expanded_config[i]->value;
        }
    }
    return NULL;
}

static int64_t number_of(const Covey__V1__Instance *instance, const char *key)
{
    int64_t number = 0;
    const char *value = config_of(instance, key);
    return value != NULL && parse_i64(value, 0, INT64_MAX, &number) == 0 ? number : 0;
}

static bool wants_start(const Covey__V1__Instance *instance)
{
    const char *autostart = config_of(instance, "boot.autostart");
    bool flag = false;
    if (instance->status_code != CODE_STOPPED || instance->n_profiles + instance->n_config == 0) {
        return false;
    }
    if (autostart != NULL && parse_bool(autostart, &flag) == 0) {
        return flag;
    }
    return str_eq(config_of(instance, "volatile.last_state.power"), "RUNNING");
}

static int by_priority(const void *a, const void *b)
{
    const Covey__V1__Instance *x = *(Covey__V1__Instance *const *)a, *y = *(Covey__V1__Instance *const *)b;
    int64_t p = number_of(x, "boot.autostart.priority"), q = number_of(y, "boot.autostart.priority");
    return p != q ? (p > q ? -1 : 1) : strcmp(x->name, y->name);
}

static int call_self(struct daemon *daemon, const char *service, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response,
                     struct arena *arena, int64_t timeout_ms, struct error *err)
{
    struct rpc_channel *self = member_channel(daemon, daemon_id(daemon), err);
    struct rpc_options options = {.timeout_ms = timeout_ms};
    if (self == NULL) {
        return err->code;
    }
    int status = rpc_unary(self, service, method, request, response, arena, &options, err);
    rpc_channel_unref(self);
    return status;
}

/* Whether the error that a list shows of an own instance is the host's finding, and not the leader's ignorance. */
static bool in_error_here(struct daemon *daemon, const Covey__V1__Instance *instance, struct arena *arena)
{
    Covey__Internal__V1__InstanceStatus **own = NULL;
    size_t count = 0;
    host_instances(daemon->host, arena, &own, &count);
    for (size_t i = 0; i < count; i++) {
        if (own[i]->status_code == CODE_ERROR && str_eq(own[i]->name, instance->name) && str_eq(own[i]->project, instance->project)) {
            return true;
        }
    }
    return false;
}

/* The instances of this member that are to be started, when everything that counts is known: true. */
static bool autostart_list(struct daemon *daemon, struct arena *arena, Covey__V1__Instance ***out, size_t *count)
{
    Covey__V1__ListInstancesRequest request = COVEY__V1__LIST_INSTANCES_REQUEST__INIT;
    ProtobufCMessage *answer = NULL;
    struct error err = ERROR_INIT;
    char location[256];
    request.all_projects = true;
    request.recursion = 1;
    daemon_location(daemon, location, sizeof location);
    if (call_self(daemon, "covey.v1.Instances", "ListInstances", &request.base, &answer, arena, 0, &err) != STATUS_OK) {
        log_info("instances.autostart", "error=\"%s\"", err.text);
        return false;
    }
    Covey__V1__ListInstancesResponse *list = (Covey__V1__ListInstancesResponse *)answer;
    *out = list->instances;
    *count = 0;
    for (size_t i = 0; i < list->n_instances; i++) {
        Covey__V1__Instance *one = list->instances[i];
        if (strcmp(one->location, location) == 0 && one->status_code == CODE_ERROR && !in_error_here(daemon, one, arena)) {
            return false; /* the leader has not heard from this member yet */
        }
        if (strcmp(one->location, location) == 0 && wants_start(one)) {
            (*out)[(*count)++] = one;
        }
    }
    if (*count > 1) {
        qsort(*out, *count, sizeof **out, by_priority);
    }
    return true;
}

static void autostart_one(struct daemon *daemon, const Covey__V1__Instance *instance)
{
    struct arena arena;
    struct error err = ERROR_INIT;
    ProtobufCMessage *answer = NULL;
    Covey__V1__UpdateInstanceStateRequest request = COVEY__V1__UPDATE_INSTANCE_STATE_REQUEST__INIT;
    arena_init(&arena);
    request.name = instance->name;
    request.project = instance->project;
    request.action = "start";
    int status = call_self(daemon, "covey.v1.Instances", "UpdateInstanceState", &request.base, &answer, &arena, 0, &err);
    if (status == STATUS_OK) {
        Covey__V1__WaitOperationRequest wait = COVEY__V1__WAIT_OPERATION_REQUEST__INIT;
        wait.id = ((Covey__V1__Operation *)answer)->id;
        status = call_self(daemon, "covey.v1.Operations", "WaitOperation", &wait.base, &answer, &arena, AUTOSTART_ONE_MS, &err);
    }
    const char *failure = status != STATUS_OK ? err.text : ((Covey__V1__Operation *)answer)->err;
    if (!str_empty(failure)) {
        log_warn("instances.autostart", "instance=%s project=%s error=\"%s\"", instance->name, instance->project, failure);
    } else {
        log_info("instances.autostart", "instance=%s project=%s", instance->name, instance->project);
    }
    arena_clear(&arena);
}

static void *autostart_main(void *ud)
{
    struct daemon *daemon = ud;
    struct arena arena;
    Covey__V1__Instance **list = NULL;
    size_t count = 0;
    int64_t until = time_mono_ms() + AUTOSTART_WAIT_MS;
    arena_init(&arena);
    while (!autostart_list(daemon, &arena, &list, &count)) {
        arena_clear(&arena);
        count = 0;
        if (time_mono_ms() >= until) {
            log_error("instances.autostart", "error=\"given up: no answer of a leader\"");
            break;
        }
        if (!background_pause(AUTOSTART_RETRY_MS)) {
            break;
        }
    }
    for (size_t i = 0; i < count && background_pause(0); i++) {
        autostart_one(daemon, list[i]);
        int64_t delay = number_of(list[i], "boot.autostart.delay");
        background_pause((delay < AUTOSTART_DELAY_MAX_S ? delay : AUTOSTART_DELAY_MAX_S) * 1000);
    }
    arena_clear(&arena);
    return NULL;
}

void instances_autostart(struct daemon *daemon)
{
    background_start("autostart", autostart_main, daemon);
    instances_sweep_start(daemon);
}

/* ---- stopping all ---- */

struct stopping {
    struct daemon *daemon;
    Covey__Internal__V1__InstanceStatus **list;
    int64_t *timeout_s;
    size_t count, next;
    pthread_mutex_t lock; /* protects next */
};

static int read_timeouts(struct sql *sql, void *ud, struct error *err)
{
    struct stopping *in = ud;
    struct arena arena;
    int status = STATUS_OK;
    arena_init(&arena);
    for (size_t i = 0; i < in->count && status == STATUS_OK; i++) {
        struct instance *instance = NULL;
        status = instance_load(sql, in->list[i]->project, in->list[i]->name, &arena, &instance, err);
        const char *value = status == STATUS_OK ? settings_get(&instance->expanded.config, "boot.host_shutdown_timeout") : NULL;
        if (value != NULL && parse_i64(value, 0, STOP_MAX_S, &in->timeout_s[i]) != 0) {
            in->timeout_s[i] = STOP_MAX_S; /* longer is not waited for */
        }
        status = status == STATUS_NOT_FOUND ? STATUS_OK : status;
        arena_clear(&arena);
    }
    return status;
}

static void *stop_worker(void *ud)
{
    struct stopping *in = ud;
    for (;;) {
        pthread_mutex_lock(&in->lock);
        size_t i = in->next < in->count ? in->next++ : in->count;
        pthread_mutex_unlock(&in->lock);
        if (i == in->count) {
            return NULL;
        }
        struct arena arena;
        struct error err = ERROR_INIT;
        ProtobufCMessage *answer = NULL;
        Covey__Internal__V1__InstanceSpec spec = COVEY__INTERNAL__V1__INSTANCE_SPEC__INIT;
        Covey__Internal__V1__StopInstanceRequest request = COVEY__INTERNAL__V1__STOP_INSTANCE_REQUEST__INIT;
        arena_init(&arena);
        spec.project = in->list[i]->project;
        spec.name = in->list[i]->name;
        request.spec = &spec;
        request.force = in->timeout_s[i] == 0 || in->list[i]->status_code == CODE_FROZEN;
        request.timeout_ms = in->timeout_s[i] * 1000;
        uint64_t self = daemon_id(in->daemon);
        int status = agent_call(in->daemon, self, "StopInstance", &request.base, &answer, &arena, request.timeout_ms + INSTANCE_STOP_SLACK_MS, &err);
        if (status != STATUS_OK && !request.force) {
            log_info("instances.stop", "instance=%s project=%s error=\"%s\"", spec.name, spec.project, err.text);
            request.force = true;
            status = agent_call(in->daemon, self, "StopInstance", &request.base, &answer, &arena, INSTANCE_STOP_SLACK_MS, &err);
        }
        if (status != STATUS_OK) {
            log_error("instances.stop", "instance=%s project=%s error=\"%s\"", spec.name, spec.project, err.text);
        }
        arena_clear(&arena);
    }
}

void instances_stop_all(struct daemon *daemon)
{
    struct arena arena;
    struct error err = ERROR_INIT;
    struct stopping in = {.daemon = daemon, .lock = PTHREAD_MUTEX_INITIALIZER};
    Covey__Internal__V1__InstanceStatus **all = NULL;
    size_t count = 0, threads = 0;
    pthread_t ids[STOP_PARALLEL];
    arena_init(&arena);
    host_instances(daemon->host, &arena, &all, &count);
    in.list = arena_alloc(&arena, (count + 1) * sizeof *in.list);
    in.timeout_s = arena_alloc(&arena, (count + 1) * sizeof *in.timeout_s);
    for (size_t i = 0; i < count; i++) {
        if (code_alive(all[i]->status_code)) {
            in.timeout_s[in.count] = STOP_DEFAULT_S;
            in.list[in.count++] = all[i];
        }
    }
    if (daemon_read(daemon, DB_LOCAL, read_timeouts, &in, NULL, &err) != STATUS_OK) {
        log_info("instances.stop", "error=\"%s\"", err.text); /* the default timeout counts: a leader is not needed */
    }
    while (threads < STOP_PARALLEL && threads < in.count && pthread_create(&ids[threads], NULL, stop_worker, &in) == 0) {
        threads++;
    }
    if (threads == 0) {
        stop_worker(&in);
    }
    for (size_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
    }
    arena_clear(&arena);
}

/* ---- the leader's sweep ---- */

struct leftover {
    int64_t id;
    char project[256], name[64];
    bool marked; /* phase 2 without an operation: to be removed; else: ephemeral, was running */
};
struct sweep {
    struct leftover list[SWEEP_MAX];
    size_t count;
    int64_t last[SWEEP_MAX]; /* ids that looked stopped in the round before */
    size_t last_count;
    int64_t id; /* for mark() */
    bool orphans;
};

static int look(struct sql *sql, void *ud, struct error *err)
{
    struct sweep *sweep = ud;
    int64_t orphans = 0;
    sweep->count = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT i.id, p.name, i.name, i.phase FROM instances i JOIN projects p ON p.id = i.project_id WHERE (i.phase = 2 AND i.operation = '')"
                                        " OR (i.phase = 0 AND i.ephemeral = 1 AND EXISTS (SELECT 1 FROM instances_config c WHERE c.instance_id = i.id"
                                        " AND c.key = 'volatile.last_state.power' AND c.value = 'RUNNING')) ORDER BY i.id", "");
    while (sweep->count < SWEEP_MAX && sql_next(s)) { /* the others in a later round */
        struct leftover *one = &sweep->list[sweep->count++];
        one->id = sql_int(s, 0);
        snprintf(one->project, sizeof one->project, "%s", sql_text(s, 1));
        snprintf(one->name, sizeof one->name, "%s", sql_text(s, 2));
        one->marked = sql_int(s, 3) == PHASE_DELETING;
    }
    int status = sql_done(s, err);
    status = status == STATUS_OK ? sql_get_int(sql, &orphans, err, "SELECT count(*) FROM instances WHERE phase <> 0 AND operation <> ''"
                                                                    " AND operation NOT IN (SELECT uuid FROM operations)", "") : status;
    sweep->orphans = orphans > 0;
    return status;
}

/* The operation has ended and could not write its last step: a creation is removed, a deletion is taken back. */
static int settle_orphans(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    int status = sql_exec(sql, err, "UPDATE instances SET phase = 0, operation = '' WHERE phase = 2 AND operation <> '' AND operation NOT IN (SELECT uuid FROM operations)", "");
    return status == STATUS_OK
        ? sql_exec(sql, err, "UPDATE instances SET phase = 2, operation = '' WHERE phase = 1 AND operation <> '' AND operation NOT IN (SELECT uuid FROM operations)", "")
        : status;
}

static int mark(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct sweep *sweep = ud;
    int status = sql_exec(sql, err, "UPDATE instances SET phase = 2, operation = '' WHERE id = ?1 AND phase = 0 AND ephemeral = 1", "i", sweep->id);
    return status;
}

static void sweep_one(struct sweep *sweep, const struct leftover *one, int64_t *stopped, size_t *stopped_count)
{
    struct arena arena;
    struct error err = ERROR_INIT;
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    arena_init(&arena);
    int status = instance_find(one->project, one->name, &arena, &instance, &spec, &err);
    if (status != STATUS_OK || instance->id != one->id || !member_online(the_daemon, instance->member) || instance_busy(one->id)) {
        arena_clear(&arena);
        return;
    }
    bool remove = one->marked;
    if (!remove && instance_live_status(instance, spec, &arena) == CODE_STOPPED) {
        bool before = false;
        for (size_t i = 0; i < sweep->last_count; i++) {
            before = before || sweep->last[i] == one->id;
        }
        stopped[(*stopped_count)++] = one->id;
        sweep->id = one->id;
        remove = before && daemon_write(the_daemon, NULL, mark, sweep, NULL, NULL, NULL, &err) == STATUS_OK;
    }
    if (remove && instance_enter(one->id, "delete", false, &err) == STATUS_OK) {
        status = instance_remove(instance, spec, NULL, &err);
        if (status == STATUS_OK && instance->ephemeral) {
            instance_event("instance-deleted", instance, NULL, NULL);
        } else if (status != STATUS_OK) {
            log_warn("instances.sweep", "instance=%s project=%s error=\"%s\"", one->name, one->project, err.text);
        }
        instance_leave(one->id);
    }
    arena_clear(&arena);
}

/* ---- instances that stopped by themselves ---- */

static int write_halted(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "UPDATE instances_config SET value = 'STOPPED' WHERE instance_id = ?1 AND key = 'volatile.last_state.power' AND value = 'RUNNING'", "i",
                    *(const int64_t *)ud);
}

/* It stays stopped when its daemon starts again. What an operation or a stopping member does is told by that one; a reboot from within runs again by now. */
static void settle_halted(struct attach_halted *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct arena arena;
        struct error err = ERROR_INIT;
        struct instance *instance = NULL;
        Covey__Internal__V1__InstanceSpec *spec = NULL;
        arena_init(&arena);
        int status = instance_find(list[i].project, list[i].name, &arena, &instance, &spec, &err);
        if (status == STATUS_OK && instance->phase == PHASE_CREATED && member_online(the_daemon, instance->member) && !instance_busy(instance->id) &&
            !attach_member_stopping(instance->member) && instance_live_status(instance, spec, &arena) == CODE_STOPPED) {
            status = daemon_write(the_daemon, NULL, write_halted, &instance->id, NULL, NULL, NULL, &err);
            log_info("instance.halted", "instance=%s project=%s", list[i].name, list[i].project);
        }
        if (status != STATUS_OK && status != STATUS_NOT_FOUND) {
            log_warn("instance.halted", "instance=%s project=%s error=\"%s\"", list[i].name, list[i].project, err.text);
        }
        arena_clear(&arena);
    }
}

static void *sweep_main(void *ud)
{
    struct daemon *daemon = ud;
    struct sweep *sweep = xcalloc(1, sizeof *sweep);
    int64_t *stopped = xcalloc(SWEEP_MAX, sizeof *stopped);
    struct attach_halted *halted = xcalloc(ATTACH_HALTED_MAX, sizeof *halted);
    while (background_pause(INSTANCE_SWEEP_MS)) {
        struct error err = ERROR_INIT;
        size_t count = 0;
        if (!daemon_leads(daemon) || daemon_read(daemon, DB_LINEARIZABLE, look, sweep, NULL, &err) != STATUS_OK) {
            sweep->last_count = 0;
            continue;
        }
        settle_halted(halted, attach_take_halted(halted));
        if (sweep->orphans && daemon_write(daemon, NULL, settle_orphans, NULL, NULL, NULL, NULL, &err) != STATUS_OK) {
            log_info("instances.sweep", "error=\"%s\"", err.text);
        }
        for (size_t i = 0; i < sweep->count; i++) {
            sweep_one(sweep, &sweep->list[i], stopped, &count);
        }
        memcpy(sweep->last, stopped, count * sizeof *stopped);
        sweep->last_count = count;
    }
    free(halted);
    free(stopped);
    free(sweep);
    return NULL;
}

void instances_sweep_start(struct daemon *daemon)
{
    background_start("sweep", sweep_main, daemon);
}
