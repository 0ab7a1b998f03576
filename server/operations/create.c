/* Birth and death of operations: the row with its reservations in one transaction, taking over as a new leader, forgetting after the keep time.
 *
 * A request creates at most one operation: the insert has the key "<request id>/op" and gives the uuid as its result, also when it is repeated at
 * another leader. The timer thread starts delayed runs, ends waiters whose time is over and forgets finished operations. */
#include "operations_private.h"

#include "server/events/events.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- creating ---- */

struct create {
    const struct op_spec *spec;
    const struct op *op;
    char *requestor;
};

static int insert_row(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct create *in = ud;
    const struct op *op = in->op;
    int64_t project = 0;
    const char *name = str_empty(op->project) ? NULL : op->project;
    if (name != NULL && project_id(sql, name, &project, err) != STATUS_OK) {
        return err->code;
    }
    const struct op_spec *spec = in->spec;
    int status = sql_exec(sql, err,
        "INSERT INTO operations (uuid, node_id, project_id, type, class, status, created_at, updated_at, resources, metadata, may_cancel, requestor, request)"
        " VALUES (?1, ?2, (SELECT id FROM projects WHERE name = ?3), ?4, ?5, ?6, ?7, ?7, ?8, ?9, ?10, ?11, ?12)",
        "sisiiiissisb", op->uuid, (int64_t)op->member, name, (int64_t)op->kind->type, (int64_t)op->kind->class, (int64_t)OP_RUNNING, op->created_ns,
        spec->resources_json != NULL ? spec->resources_json : "", spec->metadata_json != NULL ? spec->metadata_json : "", (int64_t)op->kind->may_cancel, in->requestor,
        op->request != NULL ? op->request : (const uint8_t *)"", op->request_len);
    if (status == STATUS_OK && spec->prepare != NULL) {
        status = spec->prepare(sql, spec->ud, op->uuid, err);
    }
    if (status == STATUS_OK) {
        buf_puts(result, op->uuid);
    }
    return status;
}

/* Who asked, without what lives only as long as the call. */
static void copy_requestor(struct caller *out, const struct caller *caller)
{
    memset(out, 0, sizeof *out);
    snprintf(out->protocol, sizeof out->protocol, "%s", caller->protocol);
    snprintf(out->username, sizeof out->username, "%s", caller->username);
    snprintf(out->address, sizeof out->address, "%s", caller->address);
}

static char *requestor_text(const struct caller *caller)
{
    json_t *object = json_pack("{s:s, s:s, s:s}", "username", caller->username, "protocol", caller->protocol, "address", caller->address);
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    return text != NULL ? text : xstrdup("");
}

static json_t *load_object(const char *text)
{
    json_t *object = !str_empty(text) ? json_loads(text, 0, NULL) : NULL;
    if (object != NULL && !json_is_object(object)) {
        json_decref(object);
        object = NULL;
    }
    return object;
}

static struct op *make(struct rpc_call *call, const struct op_spec *spec)
{
    char uuid[37];
    uuid_new(uuid);
    struct op *op = op__new(uuid, spec->kind, spec->project);
    op->member = spec->member != 0 ? spec->member : daemon_id(ops.daemon);
    op->created_ns = op->updated_ns = time_unix_ns();
    op->resources = load_object(spec->resources_json);
    op->metadata = load_object(spec->metadata_json);
    copy_requestor(&op->requestor, rpc_caller(call));
    if (spec->request != NULL) {
        op->request_len = protobuf_c_message_get_packed_size(spec->request);
        op->request = xmalloc(op->request_len + 1);
        protobuf_c_message_pack(spec->request, op->request);
    }
    return op;
}

/* Lists and starts a new operation, answers with its state. Takes the reference. */
static void launch(struct rpc_call *call, struct op *op, Covey__V1__Operation **out)
{
    bool token = op->kind->class == OP_TOKEN;
    op__emit(op); /* Pending */
    pthread_mutex_lock(&ops.lock);
    if (token) {
        op->status = OP_RUNNING;
    } else if (!op->running && !op->stale && !op_final(op)) {
        op__start_locked(op);
        op->status = OP_RUNNING; /* the answer shows it so, unless all workers are busy */
        if (ops.threads >= OPERATION_RUNNING_MAX && ops.idle == 0) {
            op->status = OP_PENDING;
        }
    }
    *out = op__render_locked(op, rpc_arena(call));
    pthread_mutex_unlock(&ops.lock);
    if (token) {
        op__emit(op);
    }
    op__unref(op);
}

/* The operation that an earlier try of the same request created. */
static int replay(struct rpc_call *call, const char *uuid, Covey__V1__Operation **out, struct error *err)
{
    int64_t until = time_mono_ms() + OPERATION_REPLAY_WAIT_MS;
    bool timeout = false;
    struct op *op = NULL;
    pthread_mutex_lock(&ops.lock);
    int status = op__ready_locked(err);
    while (status == STATUS_OK && (op = op__find_locked(uuid)) == NULL && !timeout) {
        op__wait_locked(&ops.changed, until, &timeout);
    }
    if (op != NULL) {
        *out = op__render_locked(op, rpc_arena(call));
    } else if (status == STATUS_OK) {
        status = error_set(err, STATUS_NOT_FOUND, "Operation not found");
    }
    pthread_mutex_unlock(&ops.lock);
    return status;
}

static size_t sessions_locked(void)
{
    size_t count = 0;
    for (const struct op *op = ops.table; op != NULL; op = op->hh.next) {
        count += op->kind != NULL && op->kind->session && !op_final(op);
    }
    return count;
}

int op_create(struct rpc_call *call, const struct op_spec *spec, Covey__V1__Operation **out, struct error *err)
{
    *out = NULL;
    pthread_mutex_lock(&ops.lock);
    int status = op__ready_locked(err);
    if (status == STATUS_OK && HASH_COUNT(ops.table) >= OPERATION_LIVE_MAX) {
        status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d operations", OPERATION_LIVE_MAX);
    }
    if (status == STATUS_OK && spec->kind->session && sessions_locked() >= OPERATION_SESSIONS_MAX) {
        status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d commands and stops without a time limit are under way", OPERATION_SESSIONS_MAX);
    }
    pthread_mutex_unlock(&ops.lock);
    if (status != STATUS_OK) {
        return status;
    }
    struct op *op = make(call, spec);
    struct create create = {.spec = spec, .op = op, .requestor = requestor_text(&op->requestor)};
    struct buf uuid = {0};
    bool replayed = false;
    status = daemon_write_call(call, "op", insert_row, &create, &uuid, &replayed, err);
    free(create.requestor);
    if (spec->member != 0) {
        op->member = spec->member; /* prepare may have chosen it */
    }
    if (status != STATUS_OK) {
        op__unref(op);
    } else if (replayed) {
        op__unref(op);
        status = replay(call, uuid.data != NULL ? uuid.data : "", out, err);
    } else {
        pthread_mutex_lock(&ops.lock);
        bool leading = ops.leading;
        struct op *loaded = op__find_locked(op->uuid); /* leadership went and came in between */
        if (leading && loaded == NULL) {
            op__list_locked(op);
        }
        pthread_mutex_unlock(&ops.lock);
        if (!leading || loaded != NULL) {
            op__unref(op);
            status = leading ? replay(call, uuid.data, out, err) : error_not_leader(err, daemon_leader_id(ops.daemon));
        } else {
            launch(call, op, out);
        }
    }
    buf_free(&uuid);
    return status;
}

int op_create_local(struct rpc_call *call, const struct op_spec *spec, Covey__V1__Operation **out, struct error *err)
{
    *out = NULL;
    struct op *op = make(call, spec), *first = NULL;
    op->local = true;
    snprintf(op->request_id, sizeof op->request_id, "%s", rpc_request_id(call));
    pthread_mutex_lock(&ops.lock);
    for (struct op *other = ops.table; other != NULL && first == NULL; other = other->hh.next) {
        first = other->local && strcmp(other->request_id, op->request_id) == 0 ? other : NULL;
    }
    bool full = first == NULL && HASH_COUNT(ops.table) >= OPERATION_LIVE_MAX;
    if (first != NULL) {
        *out = op__render_locked(first, rpc_arena(call));
    } else if (!full) {
        op__list_locked(op);
    }
    pthread_mutex_unlock(&ops.lock);
    if (first != NULL || full) {
        op__unref(op);
        return full ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d operations", OPERATION_LIVE_MAX) : STATUS_OK;
    }
    if (spec->prepare != NULL) {
        log_warn("operation.local", "operation=%s error=\"a local operation has no transaction\"", op->uuid);
    }
    launch(call, op, out);
    return STATUS_OK;
}

bool op_is_local(const char *uuid)
{
    pthread_mutex_lock(&ops.lock);
    const struct op *op = op__find_locked(uuid);
    bool local = op != NULL && op->local;
    pthread_mutex_unlock(&ops.lock);
    return local;
}

void op_token_ended(const char *uuid, enum op_status status)
{
    struct waiter *waiters = NULL;
    pthread_mutex_lock(&ops.lock);
    struct op *op = op__find_locked(uuid);
    if (op != NULL && !op_final(op)) {
        op__ref_locked(op);
        waiters = op__end_locked(op, status, "", 0);
    } else {
        op = NULL;
    }
    pthread_mutex_unlock(&ops.lock);
    if (op != NULL) {
        op__emit(op);
        op__answer(waiters, op, NULL);
        op__unref(op);
    }
}

void operations_member_left(uint64_t member)
{
    uint64_t self = daemon_id(ops.daemon);
    pthread_mutex_lock(&ops.lock);
    for (struct op *op = ops.table; op != NULL; op = op->hh.next) {
        if (op->member == member && op->kind != NULL && op->kind->class == OP_TOKEN) {
            op->member = self;
        }
    }
    pthread_mutex_unlock(&ops.lock);
}

/* ---- leadership ---- */

struct load {
    struct op **list;
    size_t count, capacity;
};

static void load_requestor(struct caller *out, const char *text)
{
    json_t *object = load_object(text);
    snprintf(out->username, sizeof out->username, "%s", json_string_value(json_object_get(object, "username")) ?: "");
    snprintf(out->protocol, sizeof out->protocol, "%s", json_string_value(json_object_get(object, "protocol")) ?: "");
    snprintf(out->address, sizeof out->address, "%s", json_string_value(json_object_get(object, "address")) ?: "");
    json_decref(object);
}

static int read_rows(struct sql *sql, void *ud, struct error *err)
{
    struct load *load = ud;
    struct sql_stmt *s = sql_query(sql,
        "SELECT uuid, coalesce(node_id, 0), coalesce(projects.name, ''), type, status, created_at, updated_at, resources, metadata, err, err_code, requestor, request"
        " FROM operations LEFT JOIN projects ON projects.id = project_id ORDER BY operations.id", "");
    while (sql_next(s)) {
        struct op *op = op__new(sql_text(s, 0), op__kind((int)sql_int(s, 3)), sql_text(s, 2));
        op->member = (uint64_t)sql_int(s, 1);
        op->status = (enum op_status)sql_int(s, 4);
        op->created_ns = sql_int(s, 5);
        op->updated_ns = sql_int(s, 6);
        op->resources = load_object(sql_text(s, 7));
        op->metadata = load_object(sql_text(s, 8));
        op->err = xstrdup(sql_text(s, 9));
        op->err_code = (int)sql_int(s, 10);
        load_requestor(&op->requestor, sql_text(s, 11));
        size_t len = 0;
        const void *blob = sql_blob(s, 12, &len);
        if (blob != NULL && !sql_null(s, 12)) {
            op->request = xmalloc(len + 1);
            memcpy(op->request, blob, len);
            op->request_len = len;
        }
        if (load->count == load->capacity) {
            load->capacity = load->capacity != 0 ? 2 * load->capacity : 64;
            load->list = xrealloc(load->list, load->capacity * sizeof *load->list);
        }
        load->list[load->count++] = op;
    }
    return sql_done(s, err);
}

static bool is_running_stale_locked(const char *uuid)
{
    for (const struct op *op = ops.stale; op != NULL; op = op->stale_next) {
        if (strcmp(op->uuid, uuid) == 0) {
            return true;
        }
    }
    return false;
}

static void take_up_locked(struct op *op)
{
    op__list_locked(op);
    if (op_final(op)) {
        op->due_ms = time_mono_ms() + OPERATION_KEEP_MS;
        op__timer_wake_locked(op->due_ms);
    } else if (op->kind != NULL && op->kind->class == OP_TOKEN) {
        op->status = OP_RUNNING; /* ends when used, cancelled or expired */
    } else if (is_running_stale_locked(op->uuid)) {
        op->deferred = true; /* this member's own worker of an earlier term is still at it */
    } else {
        op__start_locked(op);
    }
}

static void take_up(void)
{
    struct load load = {0};
    struct error err = ERROR_INIT;
    int status = daemon_read(ops.daemon, DB_LINEARIZABLE, read_rows, &load, NULL, &err);
    if (status != STATUS_OK) {
        log_warn("operations.load", "error=\"%s\"", err.text); /* leadership is lost again, or the timer tries once more */
    }
    pthread_mutex_lock(&ops.lock);
    bool use = status == STATUS_OK && !ops.leading;
    for (size_t i = 0; i < load.count && use; i++) {
        take_up_locked(load.list[i]);
    }
    ops.leading = ops.leading || use;
    ops.load_wanted = !ops.leading;
    op__timer_wake_locked(ops.load_wanted ? time_mono_ms() + OPERATION_RETRY_MS : INT64_MAX);
    pthread_cond_broadcast(&ops.changed);
    pthread_mutex_unlock(&ops.lock);
    for (size_t i = 0; i < load.count; i++) {
        if (use) {
            op__emit(load.list[i]);
        }
        op__unref(load.list[i]);
    }
    free(load.list);
    log_info("operations.lead", "operations=%zu", load.count);
}

/* Everything but local operations is the next leader's now. */
static void let_go(void)
{
    struct error gone = ERROR_INIT;
    error_not_leader(&gone, daemon_leader_id(ops.daemon));
    struct op *left = NULL, *op, *next;
    pthread_mutex_lock(&ops.lock);
    ops.leading = ops.load_wanted = false;
    HASH_ITER(hh, ops.table, op, next) {
        if (op->local) {
            continue;
        }
        op->stale = true;
        op->deferred = false;
        op__ref_locked(op);
        op__unlist_locked(op);
        if (op->running) {
            op->stale_next = ops.stale;
            ops.stale = op;
        }
        op->left_next = left;
        left = op;
    }
    pthread_cond_broadcast(&ops.changed);
    pthread_mutex_unlock(&ops.lock);
    for (op = left; op != NULL; op = next) {
        next = op->left_next;
        pthread_mutex_lock(&ops.lock);
        struct waiter *waiters = op->waiters;
        op->waiters = NULL;
        pthread_mutex_unlock(&ops.lock);
        op__answer(waiters, op, &gone); /* asked again at the new leader */
        op__unref(op);
    }
}

void operations_lead(bool leader)
{
    if (leader) {
        take_up();
    } else {
        let_go();
    }
}

/* ---- the timer ---- */

void op__timer_wake_locked(int64_t due_ms)
{
    if (due_ms < ops.timer_due_ms) {
        ops.timer_due_ms = due_ms;
        pthread_cond_signal(&ops.timer);
    }
}

struct forget {
    char uuids[OPERATION_SWEEP_MAX][37];
    size_t count;
};

static int delete_rows(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct forget *forget = ud;
    int status = STATUS_OK;
    for (size_t i = 0; i < forget->count && status == STATUS_OK; i++) {
        status = sql_exec(sql, err, "DELETE FROM operations WHERE uuid = ?1", "s", forget->uuids[i]);
    }
    return status;
}

/* Forgets and starts what is due; the time of the next look. */
static int64_t look(int64_t now_ms)
{
    static struct forget forget; /* of the timer thread alone */
    int64_t next_ms = INT64_MAX;
    struct op *op, *next;
    forget.count = 0;
    pthread_mutex_lock(&ops.lock);
    HASH_ITER(hh, ops.table, op, next) {
        if (op->due_ms == 0) {
            continue;
        }
        if (op->due_ms > now_ms || (op_final(op) && forget.count == OPERATION_SWEEP_MAX)) {
            next_ms = op->due_ms < next_ms ? op->due_ms : next_ms;
        } else if (!op_final(op)) {
            if (!op->running) {
                op__start_locked(op);
            } else { /* its worker is just letting go, or there is no thread yet */
                op->due_ms = now_ms + OPERATION_RETRY_MS;
                next_ms = op->due_ms < next_ms ? op->due_ms : next_ms;
                op__respawn_locked();
            }
        } else {
            if (!op->local) {
                memcpy(forget.uuids[forget.count++], op->uuid, sizeof op->uuid);
            }
            op__unlist_locked(op);
        }
    }
    bool load = ops.load_wanted;
    pthread_mutex_unlock(&ops.lock);
    if (forget.count > 0) {
        struct error err = ERROR_INIT;
        if (daemon_write(ops.daemon, NULL, delete_rows, &forget, NULL, NULL, NULL, &err) != STATUS_OK) {
            log_info("operations.sweep", "error=\"%s\"", err.text); /* the next leader finds the rows and does it */
        }
    }
    if (load && daemon_leads(ops.daemon)) {
        take_up();
    }
    return next_ms;
}

static void *timer_main(void *ud)
{
    for (;;) {
        int64_t now = time_mono_ms();
        pthread_mutex_lock(&ops.lock);
        bool timeout = false;
        while (ops.timer_due_ms > now) {
            int64_t until = ops.timer_due_ms < now + 60000 ? ops.timer_due_ms : now + 60000;
            op__wait_locked(&ops.timer, until, &timeout);
            now = time_mono_ms();
        }
        ops.timer_due_ms = INT64_MAX;
        pthread_mutex_unlock(&ops.lock);
        int64_t next = look(now), waiters = op__waiters_due(now), connects = op__connects_due(now);
        next = waiters < next ? waiters : next;
        next = connects < next ? connects : next;
        int64_t earliest = time_mono_ms() + OPERATION_TIMER_PAUSE_MS;
        pthread_mutex_lock(&ops.lock);
        op__timer_wake_locked(next < earliest ? earliest : next);
        pthread_mutex_unlock(&ops.lock);
        struct timespec pause = {.tv_nsec = OPERATION_TIMER_PAUSE_MS * 1000000};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

void operations_init(struct daemon *daemon)
{
    pthread_t thread;
    ops.daemon = daemon;
    ops.timer_due_ms = INT64_MAX;
    op__init_workers();
    op__bind();
    covey_assert(pthread_create(&thread, NULL, timer_main, NULL) == 0);
    pthread_detach(thread);
}
