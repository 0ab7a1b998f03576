/* WaitOperation without a thread per waiter: waiters hang on their operation, one timer thread (create.c) ends those whose time is over. */
#include "operations_private.h"

#include <openssl/crypto.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct waiter { /* one reference of the list, one of the call's done hook */
    atomic_int references;
    struct rpc_call *call;
    struct op *op; /* with a reference while listed */
    int64_t due_ms; /* INT64_MAX = for ever */
    bool listed;
    struct waiter *next;
};

static void waiter_unref(struct waiter *waiter)
{
    if (atomic_fetch_sub(&waiter->references, 1) == 1) {
        rpc_call_unref(waiter->call);
        free(waiter);
    }
}

void op__answer(struct waiter *waiters, struct op *op, const struct error *err)
{
    struct arena arena;
    arena_init(&arena);
    Covey__V1__Operation *state = NULL;
    if (waiters != NULL) {
        pthread_mutex_lock(&ops.lock);
        for (struct waiter *waiter = waiters; waiter != NULL; waiter = waiter->next) {
            waiter->listed = false;
            ops.waiter_count--;
        }
        state = op__render_locked(op, &arena);
        pthread_mutex_unlock(&ops.lock);
    }
    while (waiters != NULL) {
        struct waiter *next = waiters->next;
        if (err != NULL) {
            rpc_finish(waiters->call, NULL, err->code, err);
        } else {
            rpc_finish(waiters->call, &state->base, STATUS_OK, NULL);
        }
        op__unref(waiters->op);
        waiter_unref(waiters);
        waiters = next;
    }
    arena_clear(&arena);
}

static bool unhang_locked(struct waiter *waiter)
{
    for (struct waiter **at = &waiter->op->waiters; *at != NULL; at = &(*at)->next) {
        if (*at == waiter) {
            *at = waiter->next;
            waiter->next = NULL;
            return true;
        }
    }
    return false; /* being answered */
}

static void on_wait_done(struct rpc_call *call, void *ud)
{
    struct waiter *waiter = ud;
    pthread_mutex_lock(&ops.lock);
    bool mine = waiter->listed && unhang_locked(waiter);
    if (mine) {
        waiter->listed = false;
        ops.waiter_count--;
        op__unref_locked(waiter->op);
    }
    pthread_mutex_unlock(&ops.lock);
    if (mine) {
        rpc_finish(call, NULL, STATUS_CANCELLED, NULL);
        waiter_unref(waiter);
    }
    waiter_unref(waiter);
}

int64_t op__waiters_due(int64_t now_ms)
{
    int64_t next_ms = INT64_MAX;
    struct op *due_ops[64];
    struct waiter *due[64];
    size_t count = 0;
    pthread_mutex_lock(&ops.lock);
    for (struct op *op = ops.table; op != NULL && count < 64; op = op->hh.next) {
        struct waiter *list = NULL;
        for (struct waiter **at = &op->waiters; *at != NULL;) {
            struct waiter *waiter = *at;
            if (waiter->due_ms <= now_ms) {
                *at = waiter->next;
                waiter->next = list;
                list = waiter;
            } else {
                next_ms = waiter->due_ms < next_ms ? waiter->due_ms : next_ms;
                at = &waiter->next;
            }
        }
        if (list != NULL) {
            op__ref_locked(op);
            due_ops[count] = op;
            due[count++] = list;
        }
    }
    pthread_mutex_unlock(&ops.lock);
    for (size_t i = 0; i < count; i++) {
        op__answer(due[i], due_ops[i], NULL);
        op__unref(due_ops[i]);
    }
    return count == 64 ? now_ms : next_ms;
}

int op_timeout_parse(const char *text, int64_t *ms, struct error *err)
{
    enum { SECONDS_MAX = 1000000000 };
    int64_t seconds = -1;
    if (!str_empty(text) && parse_i64(text, -SECONDS_MAX, SECONDS_MAX, &seconds) != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid timeout \"%.40s\"", text);
    }
    *ms = seconds < 0 ? -1 : seconds * 1000;
    return STATUS_OK;
}

/* The secret of one of the streams of an exec or console. */
bool op__secret_matches_locked(const struct op *op, const char *secret)
{
    const char *key;
    json_t *value;
    bool match = false;
    if (str_empty(secret)) {
        return false;
    }
    json_object_foreach(json_object_get(op->metadata, "fds"), key, value) {
        const char *own = json_string_value(value);
        match = match || (own != NULL && strlen(own) == strlen(secret) && CRYPTO_memcmp(own, secret, strlen(secret)) == 0);
    }
    return match;
}

static int check_caller_locked(const struct op *op, const struct caller *caller, const char *secret, struct error *err)
{
    if (caller->class == CALLER_NONE) {
        return op != NULL && op__secret_matches_locked(op, secret) ? STATUS_OK : error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
    }
    return op != NULL && op__visible_locked(op, caller) ? STATUS_OK : error_set(err, STATUS_NOT_FOUND, "Operation not found");
}

int op__wait(struct rpc_call *call, const Covey__V1__WaitOperationRequest *request, struct error *err)
{
    int64_t ms = 0;
    if (op_timeout_parse(request->timeout, &ms, err) != STATUS_OK) {
        return err->code;
    }
    struct waiter *waiter = xcalloc(1, sizeof *waiter);
    pthread_mutex_lock(&ops.lock);
    struct op *op = op__find_locked(request->id);
    int status = op == NULL || !op->local ? op__ready_locked(err) : STATUS_OK;
    op = status == STATUS_OK ? op__find_locked(request->id) : NULL;
    if (status == STATUS_OK) {
        status = check_caller_locked(op, rpc_caller(call), request->secret, err);
    }
    if (status == STATUS_OK && ops.waiter_count >= OPERATION_WAITERS_MAX) {
        status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d callers wait for operations", OPERATION_WAITERS_MAX);
    }
    if (status != STATUS_OK) {
        pthread_mutex_unlock(&ops.lock);
        free(waiter);
        return status;
    }
    atomic_init(&waiter->references, 2);
    waiter->call = call;
    waiter->op = op;
    waiter->due_ms = ms < 0 ? INT64_MAX : time_mono_ms() + ms;
    waiter->listed = true;
    op__ref_locked(op);
    ops.waiter_count++;
    bool now = op_final(op) || ms == 0;
    if (!now) {
        waiter->next = op->waiters;
        op->waiters = waiter;
        op__timer_wake_locked(waiter->due_ms);
    }
    pthread_mutex_unlock(&ops.lock);
    rpc_call_on_done(call, on_wait_done, waiter);
    if (now) {
        op__answer(waiter, op, NULL);
    }
    return RPC_LATER;
}
