/* Workers: threads made on demand that run operations, and how an operation ends.
 *
 * At the end one UPDATE stores state, metadata and error; then the state in memory changes, the event goes out and waiters are answered. When the outcome
 * of a run is unclear (leadership lost, or a write with unknown result), the record stays as it is: the next leader runs it again, or this one if it still leads. */
#include "operations_private.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void *worker_main(void *ud);

void op__init_workers(void)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&ops.work, &attr);
    pthread_cond_init(&ops.changed, &attr);
    pthread_cond_init(&ops.timer, &attr);
    pthread_condattr_destroy(&attr);
    ops.queue_tail = &ops.queue;
}

static bool spawn_locked(void)
{
    pthread_t thread;
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, OPERATION_THREAD_STACK_BYTES);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int rc = pthread_create(&thread, &attr, worker_main, NULL);
    pthread_attr_destroy(&attr);
    if (rc == 0) {
        pthread_setname_np(thread, "operation");
        ops.threads++;
    } else {
        log_warn("operation.thread", "error=\"%s\"", strerror(rc));
    }
    return rc == 0;
}

void op__respawn_locked(void)
{
    if (ops.queue != NULL && ops.threads == 0 && !spawn_locked()) {
        ops.queue->due_ms = time_mono_ms() + OPERATION_RETRY_MS;
        op__timer_wake_locked(ops.queue->due_ms);
    }
}

void op__start_locked(struct op *op)
{
    covey_assert(!op->running && !op_final(op));
    op__ref_locked(op);
    op->running = true;
    op->due_ms = 0;
    op->next = NULL;
    *ops.queue_tail = op;
    ops.queue_tail = &op->next;
    unsigned waiting = 0;
    for (struct op *queued = ops.queue; queued != NULL && waiting <= ops.idle; queued = queued->next) {
        waiting++;
    }
    if (waiting > ops.idle && ops.threads < OPERATION_RUNNING_MAX && !spawn_locked()) {
        if (ops.threads == 0) { /* nobody would ever take it: try again later */
            op->due_ms = time_mono_ms() + OPERATION_RETRY_MS;
            op__timer_wake_locked(op->due_ms);
        }
    }
    pthread_cond_signal(&ops.work);
}

/* ---- the end ---- */

struct end {
    const struct op *op;
    enum op_status status;
    const char *err;
    int err_code;
    char *metadata, *resources;
};

static int write_end(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct end *end = ud;
    return sql_exec(sql, err,
        "UPDATE operations SET status = ?2, updated_at = ?3, metadata = ?4, resources = ?5, err = ?6, err_code = ?7 WHERE uuid = ?1", "siisssi", end->op->uuid,
        (int64_t)end->status, time_unix_ns(), end->metadata, end->resources, end->err, (int64_t)end->err_code);
}

static bool unclear(int status, const struct error *err)
{
    return status == STATUS_UNKNOWN || (status == STATUS_UNAVAILABLE && err->not_leader);
}

static bool is_stale(struct op *op)
{
    pthread_mutex_lock(&ops.lock);
    bool stale = op->stale;
    pthread_mutex_unlock(&ops.lock);
    return stale;
}

/* Stores the end; false when the leadership went away. */
static bool store_end(struct op *op, enum op_status status, const char *text, int code)
{
    struct end end = {.op = op, .status = status, .err = text, .err_code = code};
    struct error err = ERROR_INIT;
    int64_t until = time_mono_ms() + OPERATION_END_WRITE_MS;
    pthread_mutex_lock(&ops.lock);
    end.metadata = op->metadata != NULL ? json_dumps(op->metadata, JSON_COMPACT) : xstrdup("");
    end.resources = op->resources != NULL ? json_dumps(op->resources, JSON_COMPACT) : xstrdup("");
    pthread_mutex_unlock(&ops.lock);
    bool stale = is_stale(op);
    int written = STATUS_UNAVAILABLE;
    while (!stale && (written = op_write(op, "end", write_end, &end, NULL, &err)) != STATUS_OK && time_mono_ms() < until) {
        usleep(OPERATION_RETRY_MS * 1000);
        stale = is_stale(op);
    }
    if (!stale && written != STATUS_OK) {
        log_error("operation.end", "operation=%s error=\"%s\"", op->uuid, err.text);
    }
    free(end.metadata);
    free(end.resources);
    return !stale;
}

struct waiter *op__end_locked(struct op *op, enum op_status status, const char *text, int code)
{
    struct waiter *waiters = op->waiters;
    op->status = status;
    op->updated_ns = time_unix_ns();
    free(op->err);
    op->err = xstrdup(text);
    op->err_code = code;
    op->due_ms = time_mono_ms() + OPERATION_KEEP_MS;
    op->due_ms += OPERATION_KEEP_ROUND_MS - op->due_ms % OPERATION_KEEP_ROUND_MS;
    op->waiters = NULL;
    op->on_cancel = NULL;
    op__timer_wake_locked(op->due_ms);
    pthread_cond_broadcast(&ops.changed);
    return waiters;
}

/* The worker lets go of it. */
static void release(struct op *op)
{
    pthread_mutex_lock(&ops.lock);
    op->running = false;
    if (op->stale) {
        for (struct op **at = &ops.stale; *at != NULL; at = &(*at)->stale_next) {
            if (*at == op) {
                *at = op->stale_next;
                break;
            }
        }
        struct op *again = op__find_locked(op->uuid);
        if (again != NULL && again->deferred) {
            again->deferred = false;
            op__start_locked(again);
        }
    }
    op__unref_locked(op);
    pthread_mutex_unlock(&ops.lock);
}

static void run_one(struct op *op)
{
    struct error err = ERROR_INIT;
    pthread_mutex_lock(&ops.lock);
    if (op->status == OP_PENDING) {
        op->status = OP_RUNNING;
        op->updated_ns = time_unix_ns();
    }
    op->due_ms = 0;
    bool stale = op->stale;
    pthread_mutex_unlock(&ops.lock);
    if (stale) {
        release(op);
        return;
    }
    op__emit(op);
    int status = op->kind != NULL ? op->kind->run(op, &err) : error_set(&err, STATUS_UNIMPLEMENTED, "this version does not know this operation");
    bool cancelled = status != STATUS_OK && op_cancelled(op);
    enum op_status final = status == STATUS_OK ? OP_SUCCESS : cancelled ? OP_CANCELLED : OP_FAILURE;
    const char *text = final == OP_FAILURE ? err.text : "";
    bool again = status != STATUS_OK && !cancelled && !op->local && unclear(status, &err);
    if (again || (!op->local && !store_end(op, final, text, status))) {
        pthread_mutex_lock(&ops.lock);
        if (!op->stale) { /* still leading: from the start after a pause */
            op->due_ms = time_mono_ms() + OPERATION_RETRY_MS;
            op__timer_wake_locked(op->due_ms);
        }
        pthread_mutex_unlock(&ops.lock);
        log_info("operation.left", "operation=%s error=\"%s\"", op->uuid, err.text);
        release(op);
        return;
    }
    if (final == OP_FAILURE) {
        log_info("operation.failed", "operation=%s description=\"%s\" error=\"%s\"", op->uuid, op->kind != NULL ? op->kind->description : "", text);
    }
    pthread_mutex_lock(&ops.lock);
    struct waiter *waiters = op__end_locked(op, final, text, status);
    pthread_mutex_unlock(&ops.lock);
    op__emit(op);
    op__answer(waiters, op, NULL);
    release(op);
}

static void *worker_main(void *ud)
{
    pthread_mutex_lock(&ops.lock);
    for (;;) {
        bool timeout = false;
        int64_t until = time_mono_ms() + OPERATION_THREAD_IDLE_MS;
        ops.idle++;
        while (ops.queue == NULL && !timeout) {
            op__wait_locked(&ops.work, until, &timeout);
        }
        ops.idle--;
        struct op *op = ops.queue;
        if (op == NULL) {
            break;
        }
        ops.queue = op->next;
        if (ops.queue == NULL) {
            ops.queue_tail = &ops.queue;
        }
        pthread_mutex_unlock(&ops.lock);
        run_one(op);
        pthread_mutex_lock(&ops.lock);
    }
    ops.threads--;
    pthread_mutex_unlock(&ops.lock);
    return NULL;
}
