/* The table of operations, what run functions see of theirs, and their form for clients. */
#include "operations_private.h"

#include "server/events/events.h"
#include <stdlib.h>
#include <string.h>

struct ops ops = {.lock = PTHREAD_MUTEX_INITIALIZER, .emit = PTHREAD_MUTEX_INITIALIZER};

const char *op_status_name(enum op_status status)
{
    switch (status) {
    case OP_PENDING:
        return "Pending";
    case OP_RUNNING:
        return "Running";
    case OP_CANCELLING:
        return "Cancelling";
    case OP_SUCCESS:
        return "Success";
    case OP_FAILURE:
        return "Failure";
    case OP_CANCELLED:
        return "Cancelled";
    }
    return "";
}

/* ---- kinds ---- */

void op_register(const struct op_kind *kind)
{
    covey_assert(ops.kind_count < OPERATION_KINDS_MAX && op__kind(kind->type) == NULL);
    ops.kinds[ops.kind_count++] = kind;
}

const struct op_kind *op__kind(int type)
{
    for (size_t i = 0; i < ops.kind_count; i++) {
        if (ops.kinds[i]->type == type) {
            return ops.kinds[i];
        }
    }
    return NULL;
}

/* ---- objects ---- */

struct op *op__new(const char *uuid, const struct op_kind *kind, const char *project)
{
    struct op *op = xcalloc(1, sizeof *op);
    snprintf(op->uuid, sizeof op->uuid, "%s", uuid);
    op->kind = kind;
    op->project = xstrdup(project != NULL ? project : "");
    op->status = OP_PENDING;
    op->references = 1;
    arena_init(&op->arena);
    return op;
}

struct op *op__find_locked(const char *uuid)
{
    struct op *op = NULL;
    HASH_FIND_STR(ops.table, uuid, op);
    return op;
}

void op__ref_locked(struct op *op)
{
    op->references++;
}

void op__unref_locked(struct op *op)
{
    covey_assert(op->references > 0);
    if (--op->references > 0) {
        return;
    }
    covey_assert(op->waiters == NULL && !op->listed);
    json_decref(op->metadata);
    json_decref(op->resources);
    arena_clear(&op->arena);
    free(op->project);
    free(op->request);
    free(op->err);
    free(op);
}

void op__unref(struct op *op)
{
    pthread_mutex_lock(&ops.lock);
    op__unref_locked(op);
    pthread_mutex_unlock(&ops.lock);
}

void op__list_locked(struct op *op)
{
    covey_assert(!op->listed);
    HASH_ADD_STR(ops.table, uuid, op);
    op->listed = true;
    op__ref_locked(op);
    pthread_cond_broadcast(&ops.changed);
}

void op__unlist_locked(struct op *op)
{
    if (op->listed) {
        HASH_DEL(ops.table, op);
        op->listed = false;
        op__unref_locked(op);
    }
}

void op__wait_locked(pthread_cond_t *cond, int64_t until_ms, bool *timeout)
{
    struct timespec ts = {.tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000};
    *timeout = pthread_cond_timedwait(cond, &ops.lock, &ts) != 0;
}

int op__ready_locked(struct error *err)
{
    int64_t until = time_mono_ms() + OPERATION_LOAD_WAIT_MS;
    bool timeout = false;
    while (!ops.leading && !timeout && daemon_leads(ops.daemon)) {
        op__wait_locked(&ops.changed, until, &timeout);
    }
    return ops.leading ? STATUS_OK : error_not_leader(err, daemon_leads(ops.daemon) ? 0 : daemon_leader_id(ops.daemon));
}

size_t operations_running(void)
{
    size_t count = 0;
    struct op *op, *next;
    pthread_mutex_lock(&ops.lock);
    HASH_ITER(hh, ops.table, op, next) {
        count += op->running;
    }
    pthread_mutex_unlock(&ops.lock);
    return count;
}

/* ---- for clients ---- */

static Google__Protobuf__Timestamp *timestamp(struct arena *arena, int64_t ns)
{
    Google__Protobuf__Timestamp *out = arena_alloc(arena, sizeof *out);
    google__protobuf__timestamp__init(out);
    out->seconds = ns / 1000000000;
    out->nanos = (int32_t)(ns % 1000000000);
    return out;
}

static void render_resources(const struct op *op, struct arena *arena, Covey__V1__Operation *out)
{
    const char *key;
    json_t *list;
    out->resources = arena_alloc(arena, (json_object_size(op->resources) + 1) * sizeof *out->resources);
    json_object_foreach(op->resources, key, list) {
        Covey__V1__Operation__ResourcesEntry *entry = arena_alloc(arena, sizeof *entry);
        covey__v1__operation__resources_entry__init(entry);
        entry->key = arena_strdup(arena, key);
        if (json_is_array(list)) {
            entry->value = arena_alloc(arena, sizeof *entry->value);
            covey__v1__string_list__init(entry->value);
            entry->value->values = arena_alloc(arena, (json_array_size(list) + 1) * sizeof *entry->value->values);
            for (size_t i = 0; i < json_array_size(list); i++) {
                const char *url = json_string_value(json_array_get(list, i));
                entry->value->values[entry->value->n_values++] = arena_strdup(arena, url != NULL ? url : "");
            }
        }
        out->resources[out->n_resources++] = entry;
    }
}

static char *location_of(const struct op *op, struct arena *arena)
{
    char here[256];
    if (!daemon_clustered(ops.daemon) || op->local || op->member == 0) {
        daemon_location(ops.daemon, here, sizeof here);
        return arena_strdup(arena, here);
    }
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, op->member);
    char *name = arena_strdup(arena, member != NULL ? member->name : "");
    view_unref(view);
    return name;
}

Covey__V1__Operation *op__render_locked(const struct op *op, struct arena *arena)
{
    static const char *const classes[] = {"", "task", "websocket", "token"};
    Covey__V1__Operation *out = arena_alloc(arena, sizeof *out);
    covey__v1__operation__init(out);
    out->id = arena_strdup(arena, op->uuid);
    out->class_ = (char *)classes[op->kind != NULL ? op->kind->class : OP_TASK];
    out->description = (char *)(op->kind != NULL ? op->kind->description : "Executing operation");
    out->created_at = timestamp(arena, op->created_ns);
    out->updated_at = timestamp(arena, op->updated_ns);
    out->status = (char *)op_status_name(op->status);
    out->status_code = op->status;
    out->may_cancel = op->kind != NULL && op->kind->may_cancel;
    out->err = arena_strdup(arena, op->err != NULL ? op->err : "");
    out->location = location_of(op, arena);
    render_resources(op, arena, out);
    if (op->metadata != NULL) {
        char *text = json_dumps(op->metadata, JSON_COMPACT);
        struct error err = ERROR_INIT;
        out->metadata = codec_struct_from_json(text, arena, &err);
        if (out->metadata == NULL) {
            log_error("operation.metadata", "operation=%s error=\"%s\"", op->uuid, err.text);
        }
        free(text);
    }
    return out;
}

void op__emit(struct op *op)
{
    struct arena arena;
    arena_init(&arena);
    pthread_mutex_lock(&ops.emit); /* so that an older state never follows a newer one */
    pthread_mutex_lock(&ops.lock);
    Covey__V1__Operation *operation = op->stale ? NULL : op__render_locked(op, &arena);
    pthread_mutex_unlock(&ops.lock);
    if (operation != NULL) {
        events_operation(operation, op->project);
    }
    pthread_mutex_unlock(&ops.emit);
    arena_clear(&arena);
}

/* ---- for run functions ---- */

const char *op_uuid(const struct op *op)
{
    return op->uuid;
}

const char *op_project(const struct op *op)
{
    return op->project;
}

uint64_t op_member(const struct op *op)
{
    return op->member;
}

const struct caller *op_requestor(const struct op *op)
{
    return &op->requestor;
}

struct arena *op_arena(struct op *op)
{
    return &op->arena;
}

ProtobufCMessage *op_request(struct op *op, const ProtobufCMessageDescriptor *descriptor, struct error *err)
{
    return codec_unpack(descriptor, op->request != NULL ? op->request : (const uint8_t *)"", op->request_len, &op->arena, err); /* none = all defaults */
}

bool op_cancelled(const struct op *op)
{
    pthread_mutex_lock(&ops.lock);
    bool cancelled = op->cancelled;
    pthread_mutex_unlock(&ops.lock);
    return cancelled;
}

void op_on_cancel(struct op *op, void (*fn)(struct op *op, void *ud), void *ud)
{
    pthread_mutex_lock(&ops.lock);
    bool now = op->cancelled && fn != NULL;
    op->on_cancel = now ? NULL : fn;
    op->on_cancel_ud = ud;
    pthread_mutex_unlock(&ops.lock);
    if (now) {
        fn(op, ud);
    }
}

void op_set_metadata(struct op *op, const char *key, json_t *value)
{
    pthread_mutex_lock(&ops.lock);
    if (op->metadata == NULL) {
        op->metadata = json_object();
    }
    if (json_object_set_new(op->metadata, key, value) != 0) {
        log_error("operation.metadata", "operation=%s key=%s error=\"not valid JSON\"", op->uuid, key);
    }
    op->updated_ns = time_unix_ns();
    pthread_mutex_unlock(&ops.lock);
    op__emit(op);
}

void op_set_resources(struct op *op, const char *resources_json)
{
    json_t *resources = json_loads(resources_json, 0, NULL);
    covey_assert(resources == NULL || json_is_object(resources));
    pthread_mutex_lock(&ops.lock);
    json_decref(op->resources);
    op->resources = resources;
    op->updated_ns = time_unix_ns();
    pthread_mutex_unlock(&ops.lock);
    op__emit(op);
}

int op_write(struct op *op, const char *step, db_write_fn fn, void *ud, struct buf *result, struct error *err)
{
    char key[100];
    pthread_mutex_lock(&ops.lock);
    bool stale = op->stale;
    pthread_mutex_unlock(&ops.lock);
    if (stale) {
        return error_not_leader(err, daemon_leader_id(ops.daemon));
    }
    int len = snprintf(key, sizeof key, "op/%s/%s", op->uuid, step);
    covey_assert(len > 0 && (size_t)len < sizeof key);
    return daemon_write(ops.daemon, key, fn, ud, result, NULL, NULL, err);
}
