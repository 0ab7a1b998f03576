/* covey.v1.Operations: list, get, wait, cancel; on the leader, or here for local operations (the dispatcher's route decides by op_is_local). */
#include "operations_private.h"

#include "covey/internal/v1/control.pb-c.h"
#include "server/events/events.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* Restricted clients see the operations of their projects, never tokens: these show their secret. */
bool op__visible_locked(const struct op *op, const struct caller *caller)
{
    if (caller->class == CALLER_NONE) {
        return false;
    }
    if (!caller->restricted) {
        return true;
    }
    if (op->kind != NULL && op->kind->class == OP_TOKEN) {
        return false;
    }
    for (char **project = caller->projects; project != NULL && *project != NULL; project++) {
        if (op->project[0] != '\0' && strcmp(*project, op->project) == 0) {
            return true;
        }
    }
    return false;
}

/* The operation with a reference for the caller's critical section; waits for a new leader's records unless it is local. */
static int find_locked(const char *id, const struct caller *caller, struct op **out, struct error *err)
{
    *out = op__find_locked(id);
    if (*out == NULL || !(*out)->local) {
        if (op__ready_locked(err) != STATUS_OK) {
            return err->code;
        }
        *out = op__find_locked(id);
    }
    if (*out == NULL || !op__visible_locked(*out, caller)) {
        return error_set(err, STATUS_NOT_FOUND, "Operation not found");
    }
    return STATUS_OK;
}

static int get(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetOperationRequest *request = (const Covey__V1__GetOperationRequest *)message;
    struct op *op = NULL;
    pthread_mutex_lock(&ops.lock);
    int status = find_locked(request->id, rpc_caller(call), &op, err);
    if (status == STATUS_OK) {
        *response = &op__render_locked(op, rpc_arena(call))->base;
    }
    pthread_mutex_unlock(&ops.lock);
    return status;
}

/* ---- list ---- */

static int by_creation(const void *a, const void *b)
{
    const struct op *x = *(struct op *const *)a, *y = *(struct op *const *)b;
    return x->created_ns != y->created_ns ? (x->created_ns < y->created_ns ? -1 : 1) : strcmp(x->uuid, y->uuid);
}

static bool wanted(const struct op *op, const Covey__V1__ListOperationsRequest *request, const struct caller *caller)
{
    return op__visible_locked(op, caller) &&
           (request->all_projects || op->project[0] == '\0' || strcmp(op->project, project_or_default(request->project)) == 0);
}

static void add_entry(struct buf *out, const struct op *op, bool full)
{
    if (!full) {
        buf_printf(out, "\"/1.0/operations/%s\"", op->uuid);
        return;
    }
    struct arena arena;
    arena_init(&arena);
    codec_to_json(&op__render_locked(op, &arena)->base, out);
    arena_clear(&arena);
}

/* {"running":[…],"success":[…]} */
static void write_groups(struct op **list, size_t count, bool full, struct buf *out)
{
    static const enum op_status statuses[] = {OP_CANCELLED, OP_CANCELLING, OP_FAILURE, OP_PENDING, OP_RUNNING, OP_SUCCESS};
    bool first_group = true;
    buf_puts(out, "{");
    for (size_t g = 0; g < sizeof statuses / sizeof *statuses; g++) {
        bool first = true;
        for (size_t i = 0; i < count; i++) {
            if (list[i]->status != statuses[g]) {
                continue;
            }
            if (first) {
                char name[16];
                snprintf(name, sizeof name, "%s", op_status_name(statuses[g]));
                name[0] = (char)tolower((unsigned char)name[0]);
                buf_printf(out, "%s\"%s\":[", first_group ? "" : ",", name);
            } else {
                buf_puts(out, ",");
            }
            add_entry(out, list[i], full);
            first = first_group = false;
        }
        buf_puts(out, first ? "" : "]");
    }
    buf_puts(out, "}");
}

static int list(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListOperationsRequest *request = (const Covey__V1__ListOperationsRequest *)message;
    if (request->all_projects && !str_empty(request->project)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Cannot specify a project when requesting all projects");
    }
    struct buf text = {0};
    size_t count = 0;
    pthread_mutex_lock(&ops.lock);
    int status = op__ready_locked(err);
    if (status == STATUS_OK) {
        struct op **matching = xcalloc(HASH_COUNT(ops.table) + 1, sizeof *matching);
        for (struct op *op = ops.table; op != NULL; op = op->hh.next) {
            if (wanted(op, request, rpc_caller(call))) {
                matching[count++] = op;
            }
        }
        qsort(matching, count, sizeof *matching, by_creation);
        write_groups(matching, count, request->recursion > 0, &text);
        free(matching);
    }
    pthread_mutex_unlock(&ops.lock);
    if (status == STATUS_OK) {
        Covey__V1__ListOperationsResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
        covey__v1__list_operations_response__init(out);
        out->operations = codec_struct_from_json(text.data, rpc_arena(call), err);
        status = out->operations != NULL ? STATUS_OK : (int)err->code;
        *response = &out->base;
    }
    buf_free(&text);
    return status;
}

/* ---- wait and cancel ---- */

static int wait_handler(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    return op__wait(call, (const Covey__V1__WaitOperationRequest *)message, err);
}

static int delete_token(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    int status = sql_exec(sql, err, "DELETE FROM tokens WHERE uuid = ?1", "s", (const char *)ud);
    return status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM operations WHERE uuid = ?1", "s", (const char *)ud) : status;
}

static void cancelled_event(struct rpc_call *call, const char *uuid, const char *project)
{
    char source[64];
    snprintf(source, sizeof source, "/1.0/operations/%s", uuid);
    events_lifecycle("operation-cancelled", source, project, rpc_caller(call), NULL, NULL);
}

static int cancel_token(struct rpc_call *call, struct op *op, struct error *err)
{
    int status = daemon_write_call(call, "cancel", delete_token, op->uuid, NULL, NULL, err);
    if (status == STATUS_OK) {
        op_token_ended(op->uuid, OP_CANCELLED);
        cancelled_event(call, op->uuid, op->project);
    }
    return status;
}

static int cancel_task(struct rpc_call *call, struct op *op, struct error *err)
{
    pthread_mutex_lock(&ops.lock);
    bool first = !op->cancelled && !op_final(op);
    void (*fn)(struct op *, void *) = first ? op->on_cancel : NULL;
    void *fn_ud = op->on_cancel_ud;
    if (first) {
        op->cancelled = true;
        op->status = OP_CANCELLING;
        op->updated_ns = time_unix_ns();
        op->on_cancel = NULL;
    }
    pthread_mutex_unlock(&ops.lock);
    if (first) {
        op__emit(op);
        if (fn != NULL) {
            fn(op, fn_ud);
        }
        cancelled_event(call, op->uuid, op->project);
    }
    return STATUS_OK;
}

static int cancel(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__CancelOperationRequest *request = (const Covey__V1__CancelOperationRequest *)message;
    struct op *op = NULL;
    pthread_mutex_lock(&ops.lock);
    int status = find_locked(request->id, rpc_caller(call), &op, err);
    if (status == STATUS_OK && op_final(op)) {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Only running operations can be cancelled");
    } else if (status == STATUS_OK && (op->kind == NULL || !op->kind->may_cancel)) {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "This operation can't be cancelled");
    }
    if (status == STATUS_OK) {
        op__ref_locked(op);
    }
    pthread_mutex_unlock(&ops.lock);
    if (status == STATUS_OK) {
        status = op->kind->class == OP_TOKEN ? cancel_token(call, op, err) : cancel_task(call, op, err);
        op__unref(op);
    }
    return status;
}

/* ---- covey.internal.v1.Control/LocateOperation ---- */

int op_locate(const char *uuid, uint64_t *member, struct error *err)
{
    pthread_mutex_lock(&ops.lock);
    const struct op *op = op__find_locked(uuid);
    int status = op != NULL && op->local ? STATUS_OK : op__ready_locked(err);
    if (status == STATUS_OK) {
        op = op__find_locked(uuid);
        status = op != NULL ? STATUS_OK : error_set(err, STATUS_NOT_FOUND, "Operation not found");
    }
    *member = status != STATUS_OK ? 0 : op->member != 0 ? op->member : daemon_id(ops.daemon);
    pthread_mutex_unlock(&ops.lock);
    return status;
}

static const struct rpc_binding bindings[] = {
    {"ListOperations", list}, {"GetOperation", get}, {"WaitOperation", wait_handler}, {"CancelOperation", cancel}, {"Connect", op__connect},
};

void op__bind(void)
{
    rpc_bind("covey.v1.Operations", bindings, sizeof bindings / sizeof *bindings, NULL);
}
