/* Starting, stopping, restarting, freezing, deleting. Handlers and runs on the leader; the member does the work. Every run may begin again at a new leader:
 * what the agent repeats harmlessly is repeated, what must be judged once (was it stopped when the request came?) is stored in the request. */
#include "instance.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ARG_PROJECT, ARG_NAME, ARG_ACTION, ARG_FORCE, ARG_TIMEOUT, ARG_WAS, ARG_COUNT };
static const char *const actions[] = {"start", "stop", "restart", "freeze", "unfreeze"};
enum { ACTION_COUNT = sizeof actions / sizeof *actions };

struct change { /* one state change; stored as a list of texts */
    const char *project, *name;
    const char *action;
    bool force;
    int64_t timeout_s; /* -1 = no limit */
    int64_t was;       /* live status when the request came; 0 = unknown, an operation was under way */
};

struct steps { /* what database steps need */
    const struct instance *instance;
    const Covey__Internal__V1__StartInstanceResponse *started;
};

static int write_started(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct steps *in = ud;
    int status = config_put(sql, in->instance->id, "volatile.last_state.power", "RUNNING", err);
    for (size_t i = 0; status == STATUS_OK && in->started != NULL && i < in->started->n_volatile_; i++) {
        const char *key = in->started->volatile_[i]->key;
        if (str_prefix(key, "volatile.") && strlen(key) <= SETTING_KEY_MAX && strlen(in->started->volatile_[i]->value) <= SETTING_VALUE_MAX) {
            status = config_put(sql, in->instance->id, key, in->started->volatile_[i]->value, err);
        }
    }
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE instances SET last_use_date = ?2 WHERE id = ?1", "ii", in->instance->id, time_unix_ns()) : status;
}

static int write_stopped(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct steps *in = ud;
    int status = config_put(sql, in->instance->id, "volatile.last_state.power", "STOPPED", err);
    if (status == STATUS_OK && in->instance->ephemeral) {
        status = sql_exec(sql, err, "UPDATE instances SET phase = 2, operation = '' WHERE id = ?1", "i", in->instance->id);
    }
    return status;
}

static int step(struct op *op, const char *what, db_write_fn fn, void *ud, int64_t id, struct error *err)
{
    char name[48];
    snprintf(name, sizeof name, "%s-%" PRId64, what, id);
    return op != NULL ? op_write(op, name, fn, ud, NULL, err) : daemon_write(the_daemon, NULL, fn, ud, NULL, NULL, NULL, err);
}

static int write_removed(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct steps *in = ud;
    return sql_exec(sql, err, "DELETE FROM instances WHERE id = ?1 AND phase <> 0", "i", in->instance->id);
}

int instance_remove(const struct instance *instance, const Covey__Internal__V1__InstanceSpec *spec, struct op *op, struct error *err)
{
    struct arena arena;
    ProtobufCMessage *answer = NULL;
    struct steps in = {.instance = instance};
    arena_init(&arena);
    int status = agent_call(the_daemon, instance->member, "DeleteInstance", &spec->base, &answer, &arena, INSTANCE_DELETE_MS, err);
    arena_clear(&arena);
    return status == STATUS_OK ? step(op, "remove", write_removed, &in, instance->id, err) : status;
}

/* ---- one change ---- */

static int do_start(struct op *op, const struct instance *instance, const Covey__Internal__V1__InstanceSpec *spec, struct arena *arena, struct error *err)
{
    ProtobufCMessage *answer = NULL;
    struct steps in = {.instance = instance};
    int status = agent_call(the_daemon, instance->member, "StartInstance", &spec->base, &answer, arena, INSTANCE_START_MS, err);
    in.started = (const Covey__Internal__V1__StartInstanceResponse *)answer;
    if (status == STATUS_OK) {
        instance_status_note(the_daemon, instance->member, instance->project, instance->name, CODE_RUNNING);
    }
    return status == STATUS_OK ? step(op, "started", write_started, &in, instance->id, err) : status;
}

/* Without a time limit: until the instance is gone, somebody cancels, or another member leads and does this again. */
static int wait_patiently(struct op *op, const struct instance *instance, int64_t first_pid, struct error *err)
{
    for (;;) {
        int64_t pid = 0, code = instance_status(the_daemon, instance->member, instance->project, instance->name, &pid);
        if (op_cancelled(op)) {
            return error_set(err, STATUS_CANCELLED, "The stop was cancelled");
        }
        if (!daemon_leads(the_daemon)) {
            return error_not_leader(err, daemon_leader_id(the_daemon));
        }
        if (code == CODE_STOPPED) {
            return STATUS_OK;
        }
        if (pid > 0 && first_pid > 0 && pid != first_pid) {
            return error_set(err, STATUS_FAILED_PRECONDITION, "The instance restarted instead of stopping");
        }
        usleep(INSTANCE_PATIENT_POLL_MS * 1000);
    }
}

static bool is_patient(const struct change *change)
{
    return !change->force && change->timeout_s < 0 && (strcmp(change->action, "stop") == 0 || strcmp(change->action, "restart") == 0);
}

static int do_stop(struct op *op, const struct change *change, const struct instance *instance, Covey__Internal__V1__InstanceSpec *spec, struct arena *arena, struct error *err)
{
    if (change->was == CODE_STOPPED && instance_live_status(instance, spec, arena) == CODE_STOPPED) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "The instance is already stopped");
    }
    Covey__Internal__V1__StopInstanceRequest request = COVEY__INTERNAL__V1__STOP_INSTANCE_REQUEST__INIT;
    ProtobufCMessage *answer = NULL;
    request.spec = spec;
    request.force = change->force || change->timeout_s == 0;
    request.timeout_ms = is_patient(change) ? INSTANCE_PATIENT_MS : change->timeout_s * 1000;
    int64_t wait_ms = request.force ? INSTANCE_STOP_SLACK_MS : request.timeout_ms + INSTANCE_STOP_SLACK_MS, pid = 0;
    instance_status(the_daemon, instance->member, instance->project, instance->name, &pid);
    int status = agent_call(the_daemon, instance->member, "StopInstance", &request.base, &answer, arena, wait_ms, err);
    if (status == STATUS_DEADLINE_EXCEEDED && is_patient(change)) {
        status = wait_patiently(op, instance, pid, err);
    }
    if (status == STATUS_OK) {
        instance_status_note(the_daemon, instance->member, instance->project, instance->name, CODE_STOPPED);
    }
    return status;
}

static int do_freeze(const struct change *change, const struct instance *instance, Covey__Internal__V1__InstanceSpec *spec, struct arena *arena, struct error *err)
{
    bool unfreeze = strcmp(change->action, "unfreeze") == 0;
    if (!unfreeze && change->was == CODE_FROZEN) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "The container is already frozen");
    }
    Covey__Internal__V1__FreezeInstanceRequest request = COVEY__INTERNAL__V1__FREEZE_INSTANCE_REQUEST__INIT;
    ProtobufCMessage *answer = NULL;
    request.spec = spec;
    request.unfreeze = unfreeze;
    int status = agent_call(the_daemon, instance->member, "FreezeInstance", &request.base, &answer, arena, 0, err);
    if (status == STATUS_OK) {
        instance_status_note(the_daemon, instance->member, instance->project, instance->name, unfreeze ? CODE_RUNNING : CODE_FROZEN);
    }
    return status == STATUS_NOT_FOUND ? error_set(err, STATUS_FAILED_PRECONDITION, "The container isn't running") : status;
}

static int stop_and_tell(struct op *op, const struct change *change, const struct instance *instance, Covey__Internal__V1__InstanceSpec *spec, struct arena *arena,
                         struct error *err)
{
    struct steps in = {.instance = instance};
    int status = do_stop(op, change, instance, spec, arena, err);
    status = status == STATUS_OK ? step(op, "stopped", write_stopped, &in, instance->id, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    instance_event(change->force || change->timeout_s == 0 ? "instance-stopped" : "instance-shutdown", instance, op_requestor(op), NULL);
    if (instance->ephemeral) {
        status = instance_remove(instance, spec, op, err);
        if (status == STATUS_OK) {
            instance_event("instance-deleted", instance, op_requestor(op), NULL);
        }
    }
    return status;
}

static int apply(struct op *op, const struct change *change, const struct instance *instance, Covey__Internal__V1__InstanceSpec *spec, struct arena *arena,
                 struct error *err)
{
    const char *event = NULL;
    int status = STATUS_OK;
    if (strcmp(change->action, "start") == 0) {
        status = do_start(op, instance, spec, arena, err);
        event = "instance-started";
    } else if (strcmp(change->action, "stop") == 0) {
        return stop_and_tell(op, change, instance, spec, arena, err);
    } else if (strcmp(change->action, "restart") == 0) {
        status = do_stop(op, change, instance, spec, arena, err);
        status = status == STATUS_OK ? do_start(op, instance, spec, arena, err) : status;
        event = "instance-restarted";
    } else {
        status = do_freeze(change, instance, spec, arena, err);
        event = strcmp(change->action, "freeze") == 0 ? "instance-paused" : "instance-resumed";
    }
    if (status == STATUS_OK) {
        instance_event(event, instance, op_requestor(op), NULL);
    }
    return status;
}

static int refuse_phase(const struct instance *instance, struct error *err)
{
    return instance->phase == PHASE_CREATED ? STATUS_OK
                                            : error_set(err, STATUS_FAILED_PRECONDITION, "Instance is busy running a \"%s\" operation",
                                                  instance->phase == PHASE_CREATING ? "create" : "delete");
}

static int change_run(struct op *op, const struct change *change, struct arena *arena, struct error *err)
{
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    int status = instance_find(change->project, change->name, arena, &instance, &spec, err);
    if (status != STATUS_OK || (status = instance_enter(instance->id, change->action, change->force || change->timeout_s == 0, err)) != STATUS_OK) {
        return status;
    }
    int64_t id = instance->id;
    status = instance_find(change->project, change->name, arena, &instance, &spec, err); /* what the one before has changed */
    if (status == STATUS_OK && instance->id != id) {
        status = error_set(err, STATUS_NOT_FOUND, "Instance not found");
    }
    bool leaving = status == STATUS_OK && instance->ephemeral && instance->phase == PHASE_DELETING && strcmp(change->action, "stop") == 0; /* this stop, again */
    if (status == STATUS_OK && !leaving) {
        status = refuse_phase(instance, err);
    }
    if (status == STATUS_OK) {
        spec->operation = (char *)op_uuid(op);
        status = apply(op, change, instance, spec, arena, err);
    }
    instance_leave(id);
    return status;
}

/* ---- the operation of one instance ---- */

static Covey__V1__StringList *change_pack(const struct change *change, struct arena *arena)
{
    Covey__V1__StringList *out = arena_alloc(arena, sizeof *out);
    covey__v1__string_list__init(out);
    out->values = arena_alloc(arena, ARG_COUNT * sizeof *out->values);
    out->n_values = ARG_COUNT;
    out->values[ARG_PROJECT] = (char *)change->project;
    out->values[ARG_NAME] = (char *)change->name;
    out->values[ARG_ACTION] = (char *)change->action;
    out->values[ARG_FORCE] = change->force ? "1" : "0";
    out->values[ARG_TIMEOUT] = arena_printf(arena, "%" PRId64, change->timeout_s);
    out->values[ARG_WAS] = arena_printf(arena, "%" PRId64, change->was);
    return out;
}

static int change_unpack(struct op *op, struct change *out, struct error *err)
{
    const Covey__V1__StringList *list = (const Covey__V1__StringList *)op_request(op, &covey__v1__string_list__descriptor, err);
    if (list == NULL) {
        return err->code;
    }
    if (list->n_values != ARG_COUNT || parse_i64(list->values[ARG_TIMEOUT], -1, INT64_MAX / 2000, &out->timeout_s) != 0 ||
        parse_i64(list->values[ARG_WAS], 0, 1000, &out->was) != 0) {
        return error_set(err, STATUS_INTERNAL, "stored request of a state change is not valid");
    }
    out->project = list->values[ARG_PROJECT];
    out->name = list->values[ARG_NAME];
    out->action = list->values[ARG_ACTION];
    out->force = strcmp(list->values[ARG_FORCE], "1") == 0;
    return STATUS_OK;
}

static int one_run(struct op *op, struct error *err)
{
    struct change change;
    int status = change_unpack(op, &change, err);
    return status == STATUS_OK ? change_run(op, &change, op_arena(op), err) : status;
}

/* ---- of all instances of a project ---- */

struct all {
    struct op *op;
    const struct change *change;
    struct instance *items;
    size_t count, next, failed;
    pthread_mutex_t lock; /* protects next, failed, first */
    struct error first;
};

static int read_all(struct sql *sql, void *ud, struct error *err)
{
    struct all *all = ud;
    struct instance_filter filter = {.project = all->change->project};
    return instances_load(sql, &filter, false, op_arena(all->op), &all->items, &all->count, err);
}

/* Those already in the wanted state are left alone. */
static bool wanted(const char *action, int64_t code)
{
    if (strcmp(action, "start") == 0) {
        return code == CODE_STOPPED;
    }
    if (strcmp(action, "unfreeze") == 0) {
        return code == CODE_FROZEN;
    }
    return strcmp(action, "stop") == 0 ? code_alive(code) : code == CODE_RUNNING;
}

static void *all_worker(void *ud)
{
    struct all *all = ud;
    for (;;) {
        pthread_mutex_lock(&all->lock);
        const struct instance *one = all->next < all->count ? &all->items[all->next++] : NULL;
        pthread_mutex_unlock(&all->lock);
        if (one == NULL) {
            return NULL;
        }
        if (one->phase != PHASE_CREATED || !wanted(all->change->action, instance_status(the_daemon, one->member, one->project, one->name, NULL))) {
            continue;
        }
        struct arena arena;
        struct error err = ERROR_INIT;
        struct change change = *all->change;
        change.name = one->name;
        arena_init(&arena);
        if (change_run(all->op, &change, &arena, &err) != STATUS_OK) {
            pthread_mutex_lock(&all->lock);
            if (all->failed++ == 0) {
                all->first = err;
                error_prefix(&all->first, "Instance \"%s\"", one->name);
            }
            pthread_mutex_unlock(&all->lock);
        }
        arena_clear(&arena);
    }
}

static int all_run(struct op *op, struct error *err)
{
    struct change change;
    struct all all = {.op = op, .change = &change, .lock = PTHREAD_MUTEX_INITIALIZER, .first = ERROR_INIT};
    int status = change_unpack(op, &change, err);
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_all, &all, NULL, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    pthread_t threads[INSTANCE_BULK_PARALLEL];
    size_t count = 0;
    while (count < INSTANCE_BULK_PARALLEL - 1 && count + 1 < all.count && pthread_create(&threads[count], NULL, all_worker, &all) == 0) {
        count++;
    }
    all_worker(&all);
    for (size_t i = 0; i < count; i++) {
        pthread_join(threads[i], NULL);
    }
    if (all.failed > 0 && err != NULL) {
        *err = all.first;
        if (all.failed > 1) {
            error_prefix(err, "%zu instances failed, the first", all.failed);
        }
    }
    return all.failed > 0 ? (int)all.first.code : STATUS_OK;
}

static const struct op_kind one_kinds[ACTION_COUNT] = {
    {.type = KIND_START, .description = "Starting instance", .class = OP_TASK, .run = one_run},
    {.type = KIND_STOP, .description = "Stopping instance", .class = OP_TASK, .run = one_run},
    {.type = KIND_RESTART, .description = "Restarting instance", .class = OP_TASK, .run = one_run},
    {.type = KIND_FREEZE, .description = "Freezing instance", .class = OP_TASK, .run = one_run},
    {.type = KIND_UNFREEZE, .description = "Unfreezing instance", .class = OP_TASK, .run = one_run},
};
static const struct op_kind all_kinds[ACTION_COUNT] = {
    {.type = KIND_ALL_START, .description = "Starting instance", .class = OP_TASK, .run = all_run},
    {.type = KIND_ALL_STOP, .description = "Stopping instance", .class = OP_TASK, .run = all_run},
    {.type = KIND_ALL_RESTART, .description = "Restarting instance", .class = OP_TASK, .run = all_run},
    {.type = KIND_ALL_FREEZE, .description = "Freezing instance", .class = OP_TASK, .run = all_run},
    {.type = KIND_ALL_UNFREEZE, .description = "Unfreezing instance", .class = OP_TASK, .run = all_run},
};

/* Those without a time limit run until a user ends them: so many at most that others find a worker, and they can be cancelled. */
static const struct op_kind patient_kinds[] = {
    {.type = KIND_STOP_PATIENT, .description = "Stopping instance", .class = OP_TASK, .may_cancel = true, .session = true, .run = one_run},
    {.type = KIND_RESTART_PATIENT, .description = "Restarting instance", .class = OP_TASK, .may_cancel = true, .session = true, .run = one_run},
    {.type = KIND_ALL_STOP_PATIENT, .description = "Stopping instance", .class = OP_TASK, .may_cancel = true, .session = true, .run = all_run},
    {.type = KIND_ALL_RESTART_PATIENT, .description = "Restarting instance", .class = OP_TASK, .may_cancel = true, .session = true, .run = all_run},
};

static const struct op_kind *kind_of(const struct change *change, size_t action, bool all)
{
    size_t restart = strcmp(change->action, "restart") == 0;
    return is_patient(change) ? &patient_kinds[restart + (all ? 2 : 0)] : all ? &all_kinds[action] : &one_kinds[action];
}

/* ---- handlers ---- */

static int change_read(const Covey__V1__UpdateInstanceStateRequest *request, struct change *out, size_t *action, struct error *err)
{
    *action = 0;
    while (*action < ACTION_COUNT && !str_eq(actions[*action], request->action)) {
        ++*action;
    }
    if (*action == ACTION_COUNT) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown action: '%.64s'", request->action);
    }
    if (request->stateful) {
        return error_set(err, STATUS_UNIMPLEMENTED, "not implemented: stateful");
    }
    bool given = request->_timeout_case != COVEY__V1__UPDATE_INSTANCE_STATE_REQUEST___TIMEOUT__NOT_SET;
    out->action = actions[*action];
    out->force = request->force;
    out->timeout_s = given && request->timeout >= 0 ? request->timeout : -1;
    return out->timeout_s <= INT64_MAX / 2000 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid timeout");
}

int update_instance_state(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateInstanceStateRequest *request = (const Covey__V1__UpdateInstanceStateRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct change change = {.project = project_or_default(request->project), .name = request->name};
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    Covey__V1__Operation *operation = NULL;
    size_t action = 0;
    int status = instance_allowed(call, change.project, err);
    status = status == STATUS_OK ? change_read(request, &change, &action, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    int checks = instance_find(change.project, change.name, arena, &instance, &spec, err);
    checks = checks == STATUS_OK ? instance_reachable(instance, err) : checks;
    if (checks == STATUS_OK && instance->member_state == 2 && strcmp(change.action, "stop") != 0) {
        checks = error_set(err, STATUS_PERMISSION_DENIED, "Cluster member is evacuated");
    }
    if (checks == STATUS_OK && !instance_busy(instance->id)) {
        change.was = instance_live_status(instance, spec, arena);
    }
    struct op_spec op = {.kind = kind_of(&change, action, false), .project = change.project, .member = instance != NULL ? instance->member : 0,
        .resources_json = instance_resources(arena, change.project, change.name), .request = &change_pack(&change, arena)->base};
    status = instance_op(call, &op, checks, &operation, err);
    *response = operation != NULL ? &operation->base : NULL;
    return status;
}

int update_instances_state(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateInstancesStateRequest *request = (const Covey__V1__UpdateInstancesStateRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct change change = {.project = project_or_default(request->project), .name = ""};
    Covey__V1__Operation *operation = NULL;
    size_t action = 0;
    if (request->state == NULL) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No state provided");
    }
    int status = instance_allowed(call, change.project, err);
    status = status == STATUS_OK ? change_read(request->state, &change, &action, err) : status;
    if (status == STATUS_OK) {
        struct op_spec op = {.kind = kind_of(&change, action, true), .project = change.project, .request = &change_pack(&change, arena)->base};
        status = op_create(call, &op, &operation, err);
    }
    *response = operation != NULL ? &operation->base : NULL;
    return status;
}

/* ---- delete ---- */

struct deletion {
    int64_t id;
    const char *uuid;
};

static int delete_prepare(struct sql *sql, void *ud, const char *uuid, struct error *err)
{
    const struct deletion *in = ud;
    int64_t phase = 0;
    int status = sql_get_int(sql, &phase, err, "SELECT phase FROM instances WHERE id = ?1", "i", in->id);
    if (status == STATUS_NOT_FOUND) {
        return error_set(err, STATUS_NOT_FOUND, "Instance not found");
    }
    if (status == STATUS_OK && phase != PHASE_CREATED) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Instance is busy running a \"%s\" operation", phase == PHASE_CREATING ? "create" : "delete");
    }
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE instances SET phase = 2, operation = ?2 WHERE id = ?1", "is", in->id, uuid) : status;
}

static int delete_undo(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct deletion *in = ud;
    return sql_exec(sql, err, "UPDATE instances SET phase = 0, operation = '' WHERE id = ?1 AND operation = ?2", "is", in->id, in->uuid);
}

static int delete_run(struct op *op, struct error *err)
{
    const Covey__V1__DeleteInstanceRequest *request = (const Covey__V1__DeleteInstanceRequest *)op_request(op, &covey__v1__delete_instance_request__descriptor, err);
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    if (request == NULL) {
        return err->code;
    }
    int status = instance_find(request->project, request->name, op_arena(op), &instance, &spec, err);
    if (status == STATUS_NOT_FOUND || (status == STATUS_OK && strcmp(instance->operation, op_uuid(op)) != 0)) {
        return STATUS_OK; /* done by an earlier run of this operation */
    }
    if (status != STATUS_OK) {
        return status;
    }
    spec->operation = (char *)op_uuid(op);
    status = instance_enter(instance->id, "delete", false, err);
    if (status == STATUS_OK) {
        status = instance_remove(instance, spec, op, err);
        instance_leave(instance->id);
    }
    if (status == STATUS_OK) {
        instance_event("instance-deleted", instance, op_requestor(op), NULL);
    } else if (status != STATUS_UNKNOWN && !err->not_leader) {
        struct deletion undo = {.id = instance->id, .uuid = op_uuid(op)};
        struct error undone = ERROR_INIT;
        if (op_write(op, "undo", delete_undo, &undo, NULL, &undone) != STATUS_OK) {
            log_warn("instance.delete", "instance=%s error=\"%s\"", instance->name, undone.text); /* the sweep does it later */
        }
    }
    return status;
}

static const struct op_kind delete_kind = {.type = KIND_DELETE, .description = "Deleting instance", .class = OP_TASK, .run = delete_run};

int delete_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__DeleteInstanceRequest *request = (const Covey__V1__DeleteInstanceRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    Covey__V1__Operation *operation = NULL;
    struct deletion in = {0};
    const char *project = project_or_default(request->project);
    int status = instance_allowed(call, project, err);
    if (status != STATUS_OK) {
        return status;
    }
    int checks = instance_find(project, request->name, arena, &instance, &spec, err);
    checks = checks == STATUS_OK ? instance_reachable(instance, err) : checks;
    if (checks == STATUS_OK && code_alive(instance_live_status(instance, spec, arena))) {
        checks = error_set(err, STATUS_FAILED_PRECONDITION, "Instance is running");
    }
    if (checks == STATUS_OK && config_flag(&instance->expanded.config, "security.protection.delete", false)) {
        checks = error_set(err, STATUS_FAILED_PRECONDITION, "Container is protected");
    }
    in.id = instance != NULL ? instance->id : 0;
    struct op_spec op = {.kind = &delete_kind, .project = project, .member = instance != NULL ? instance->member : 0,
        .resources_json = instance_resources(arena, project, request->name), .request = &request->base, .prepare = delete_prepare, .ud = &in};
    status = instance_op(call, &op, checks, &operation, err);
    *response = operation != NULL ? &operation->base : NULL;
    return status;
}

void lifecycle_register(void)
{
    for (size_t i = 0; i < ACTION_COUNT; i++) {
        op_register(&one_kinds[i]);
        op_register(&all_kinds[i]);
    }
    for (size_t i = 0; i < sizeof patient_kinds / sizeof *patient_kinds; i++) {
        op_register(&patient_kinds[i]);
    }
    op_register(&delete_kind);
}
