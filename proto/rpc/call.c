/* The call object of both sides: references, the write queue, reading, the end.
 *
 * Threads: any; each call has one lock, never held while foreign code runs. A reference is held for every batch in flight, so tags stay valid.
 * gRPC allows one write and one read at a time per call: writes queue here (bounded by RPC_STREAM_QUEUE_BYTES_MAX for rpc_send). */
#include "rpc_private.h"
#include <stdlib.h>
#include <string.h>

static void on_recv(struct tag *tag, bool ok);
static void on_send(struct tag *tag, bool ok);

#define CALL_OF(tag_pointer, member) ((struct rpc_call *)((char *)(tag_pointer) - offsetof(struct rpc_call, member)))

struct rpc_call *call__new(bool is_server, const struct method *method)
{
    struct rpc_call *call = xcalloc(1, sizeof(*call));
    atomic_init(&call->refs, 1);
    atomic_init(&call->users, 1);
    call->is_server = is_server;
    call->method = method;
    call->deadline_ms = INT64_MAX;
    call->recv_tag.fn = on_recv;
    call->send_tag.fn = on_send;
    call->out_tail = &call->out_head;
    call->status_details = grpc_empty_slice();
    grpc_metadata_array_init(&call->metadata);
    grpc_metadata_array_init(&call->trailing);
    arena_init(&call->arena);
    pthread_mutex_init(&call->lock, NULL);
    rpc__cond_init(&call->changed);
    return call;
}

static void call_free(struct rpc_call *call)
{
    covey_assert(call->out_head == NULL && call->hooks == NULL);
    if (call->auth != NULL)
        grpc_auth_context_release(call->auth);
    if (call->payload != NULL)
        grpc_byte_buffer_destroy(call->payload);
    if (call->unread != NULL)
        grpc_byte_buffer_destroy(call->unread);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_metadata_array_destroy(&call->trailing);
    grpc_slice_unref(call->status_details);
    if (call->call != NULL)
        grpc_call_unref(call->call);
    rpc_channel_unref(call->channel);
    free(call->last_error);
    free(call->finish_error);
    arena_clear(&call->arena);
    pthread_mutex_destroy(&call->lock);
    pthread_cond_destroy(&call->changed);
    free(call);
}

void call__hold(struct rpc_call *call)
{
    atomic_fetch_add_explicit(&call->refs, 1, memory_order_relaxed);
}

void call__drop(struct rpc_call *call)
{
    if (atomic_fetch_sub_explicit(&call->refs, 1, memory_order_acq_rel) == 1)
        call_free(call);
}

struct rpc_call *rpc_call_ref(struct rpc_call *call)
{
    atomic_fetch_add(&call->users, 1);
    call__hold(call);
    return call;
}

void rpc_call_unref(struct rpc_call *call)
{
    if (call == NULL)
        return;
    if (atomic_fetch_sub(&call->users, 1) == 1) {
        /* Nobody can end it any more: a forgotten call must not live on. */
        if (call->is_server) {
            struct error err;
            error_set(&err, STATUS_UNKNOWN, "the call was given up without an answer");
            server__finish_raw(call, NULL, err.code, &err); /* ignored after rpc_finish, as usual */
        } else {
            rpc_cancel(call);
        }
    }
    call__drop(call);
}

const struct method *rpc_call_method(const struct rpc_call *call)
{
    return call->method;
}

int64_t rpc_call_deadline_left_ms(const struct rpc_call *call)
{
    if (call->deadline_ms == INT64_MAX)
        return INT64_MAX;
    int64_t left = call->deadline_ms - time_mono_ms();
    return left > 0 ? left : 0;
}

bool rpc_call_cancelled(const struct rpc_call *call)
{
    struct rpc_call *c = (struct rpc_call *)call; /* the lock only */
    pthread_mutex_lock(&c->lock);
    bool cancelled = c->read_failed || (c->done && (c->is_server ? c->cancelled != 0 : c->status == GRPC_STATUS_CANCELLED));
    pthread_mutex_unlock(&c->lock);
    return cancelled;
}

/* ---- the end ---- */

void rpc_call_on_done(struct rpc_call *call, void (*fn)(struct rpc_call *call, void *ud), void *ud)
{
    struct done_hook *hook = xcalloc(1, sizeof(*hook));
    hook->fn = fn;
    hook->ud = ud;
    pthread_mutex_lock(&call->lock);
    bool now = call->done;
    if (!now) {
        hook->next = call->hooks;
        call->hooks = hook;
    }
    pthread_mutex_unlock(&call->lock);
    if (now) {
        fn(call, ud);
        free(hook);
    }
}

/* No more can be written: connection gone, cancelled, status or half close already on their way. */
static bool broken_locked(const struct rpc_call *call)
{
    return call->send_broken || call->finish_sent || call->closed || (call->done && (!call->is_server || call->cancelled != 0));
}

/* Unlocks; if the call is broken, first takes what waits and reports it as dropped. */
static void unlock_and_drop(struct rpc_call *call)
{
    struct outgoing *list = NULL;
    if (broken_locked(call)) {
        list = call->out_head;
        call->out_head = NULL;
        call->out_tail = &call->out_head;
        call->out_bytes = call->out_active != NULL ? call->out_active->size : 0;
    }
    pthread_mutex_unlock(&call->lock);
    while (list != NULL) {
        struct outgoing *next = list->next;
        if (list->done != NULL)
            list->done(list->ud, false);
        grpc_byte_buffer_destroy(list->buffer);
        free(list);
        list = next;
    }
}

void call__ended(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    call->done = true;
    struct done_hook *hooks = call->hooks;
    call->hooks = NULL;
    pthread_cond_broadcast(&call->changed);
    unlock_and_drop(call);
    while (hooks != NULL) {
        struct done_hook *next = hooks->next;
        hooks->fn(call, hooks->ud);
        free(hooks);
        hooks = next;
    }
}

/* ---- writing ---- */

void call__send_locked(struct rpc_call *call)
{
    if (call->sending || broken_locked(call))
        return;
    struct outgoing *out = call->out_head;
    bool last = out == NULL || out->next == NULL;
    bool finish = call->is_server && call->finish_wanted && !call->finish_sent && last;
    bool close = !call->is_server && call->close_wanted && !call->closed && last;
    if (out == NULL && !finish && !close)
        return;

    grpc_op ops[3];
    size_t n = 0;
    struct md_list trailing = {0};
    grpc_slice details = grpc_empty_slice();
    memset(ops, 0, sizeof(ops));
    if (call->is_server && !call->initial_sent) {
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
        call->initial_sent = true;
    }
    if (out != NULL) {
        call->out_head = out->next;
        if (call->out_head == NULL)
            call->out_tail = &call->out_head;
        call->out_active = out;
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = out->buffer;
    }
    if (finish) {
        call->finish_sent = true;
        if (call->finish_status != STATUS_OK)
            rpc__error_to_md(call->finish_error, &trailing);
        if (call->finish_error != NULL)
            details = grpc_slice_from_copied_string(call->finish_error->text);
        ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n].data.send_status_from_server.status = (grpc_status_code)call->finish_status;
        ops[n].data.send_status_from_server.status_details = &details;
        ops[n].data.send_status_from_server.trailing_metadata = trailing.items;
        ops[n++].data.send_status_from_server.trailing_metadata_count = trailing.count;
    }
    if (close) {
        call->closed = true;
        ops[n++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    }
    call->sending = true;
    call__hold(call);
    grpc_call_error rc = grpc_call_start_batch(call->call, ops, n, tag_post(&call->send_tag), NULL);
    if (rc != GRPC_CALL_OK)
        core_panic(__FILE__, __LINE__, "write batch of %s refused: %s", call->method->path, grpc_call_error_to_string(rc));
    md_free(&trailing);
    grpc_slice_unref(details);
}

static void on_send(struct tag *tag, bool ok)
{
    struct rpc_call *call = CALL_OF(tag, send_tag);

    pthread_mutex_lock(&call->lock);
    struct outgoing *out = call->out_active;
    call->out_active = NULL;
    call->sending = false;
    if (out != NULL)
        call->out_bytes -= out->size;
    if (!ok)
        call->send_broken = true;
    pthread_cond_broadcast(&call->changed);
    call__send_locked(call);
    unlock_and_drop(call);
    if (out != NULL) {
        if (out->done != NULL)
            out->done(out->ud, ok);
        grpc_byte_buffer_destroy(out->buffer);
        free(out);
    }
    call__drop(call);
}

static void push_locked(struct rpc_call *call, grpc_byte_buffer *buffer, void (*done)(void *ud, bool ok), void *ud)
{
    struct outgoing *out = xcalloc(1, sizeof(*out));
    out->buffer = buffer;
    out->size = grpc_byte_buffer_length(buffer) + sizeof(*out);
    out->done = done;
    out->ud = ud;
    *call->out_tail = out;
    call->out_tail = &out->next;
    call->out_bytes += out->size;
}

void call__send_raw(struct rpc_call *call, grpc_byte_buffer *buffer, void (*done)(void *ud, bool ok), void *ud)
{
    pthread_mutex_lock(&call->lock);
    push_locked(call, buffer, done, ud);
    call__send_locked(call);
    unlock_and_drop(call);
}

/* Why nothing can be sent any more. */
static int refuse_send(struct rpc_call *call, struct error *err)
{
    if (!call->is_server) {
        pthread_mutex_lock(&call->lock);
        bool done = call->done;
        pthread_mutex_unlock(&call->lock);
        if (done) {
            struct error status = ERROR_INIT;
            call__client_status(call, &status);
            if (status.code != STATUS_OK) {
                if (err != NULL)
                    *err = status;
                return status.code;
            }
        }
    }
    return error_set(err, STATUS_CANCELLED, "the call has ended");
}

static int send_message(struct rpc_call *call, const ProtobufCMessage *message, bool wait, struct error *err)
{
    grpc_byte_buffer *buffer = rpc__pack(message, err);
    if (buffer == NULL)
        return STATUS_RESOURCE_EXHAUSTED;
    size_t size = grpc_byte_buffer_length(buffer);
    int64_t until = call->deadline_ms == INT64_MAX ? INT64_MAX : call->deadline_ms + RPC_WAIT_SLACK_MS;
    int rc = STATUS_OK;
    pthread_mutex_lock(&call->lock);
    for (;;) {
        if (broken_locked(call) || call->done || call->finish_wanted || call->close_wanted) {
            rc = STATUS_CANCELLED;
            break;
        }
        if (call->out_bytes == 0 || call->out_bytes + size <= RPC_STREAM_QUEUE_BYTES_MAX)
            break;
        if (!wait) {
            rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "the peer reads too slowly: %zu bytes wait in the stream", call->out_bytes);
            break;
        }
        covey_assert(!rpc__on_queue_thread);
        if (!rpc__cond_wait(&call->changed, &call->lock, until)) {
            rc = error_set(err, STATUS_DEADLINE_EXCEEDED, "the peer did not read in time");
            break;
        }
    }
    if (rc == STATUS_OK) {
        push_locked(call, buffer, NULL, NULL);
        buffer = NULL;
        call__send_locked(call);
    }
    unlock_and_drop(call);
    if (buffer != NULL)
        grpc_byte_buffer_destroy(buffer);
    return rc == STATUS_CANCELLED ? refuse_send(call, err) : rc;
}

int rpc_send(struct rpc_call *call, const ProtobufCMessage *message, struct error *err)
{
    return send_message(call, message, true, err);
}

int rpc_try_send(struct rpc_call *call, const ProtobufCMessage *message, struct error *err)
{
    return send_message(call, message, false, err);
}

int rpc_half_close(struct rpc_call *call)
{
    covey_assert(!call->is_server);
    pthread_mutex_lock(&call->lock);
    call->close_wanted = true;
    call__send_locked(call);
    unlock_and_drop(call);
    return STATUS_OK;
}

void server__finish_raw(struct rpc_call *call, grpc_byte_buffer *buffer, int status, const struct error *err)
{
    covey_assert(call->is_server);
    pthread_mutex_lock(&call->lock);
    if (!call->finish_wanted) {
        call->finish_wanted = true;
        call->finish_status = status;
        if (status != STATUS_OK && err != NULL) {
            call->finish_error = xmalloc(sizeof(*err));
            *call->finish_error = *err;
        }
        if (buffer != NULL && status == STATUS_OK) {
            push_locked(call, buffer, NULL, NULL);
            buffer = NULL;
        }
        call__send_locked(call);
        pthread_cond_broadcast(&call->changed);
    }
    unlock_and_drop(call);
    if (buffer != NULL)
        grpc_byte_buffer_destroy(buffer);
}

/* ---- reading ---- */

void call__read_locked(struct rpc_call *call)
{
    if (call->reading || call->read_end)
        return;
    grpc_op op;
    memset(&op, 0, sizeof(op));
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &call->incoming;
    call->reading = true;
    call__hold(call);
    grpc_call_error rc = grpc_call_start_batch(call->call, &op, 1, tag_post(&call->recv_tag), NULL);
    if (rc != GRPC_CALL_OK)
        core_panic(__FILE__, __LINE__, "read batch of %s refused: %s", call->method->path, grpc_call_error_to_string(rc));
}

static const ProtobufCMessageDescriptor *incoming_type(const struct rpc_call *call)
{
    return call->is_server ? call->method->input : call->method->output;
}

/* A message that cannot be believed ends the call. */
static void refuse_message(struct rpc_call *call, const struct error *err)
{
    if (call->is_server)
        rpc_finish(call, NULL, err->code, err);
    else
        grpc_call_cancel_with_status(call->call, GRPC_STATUS_INTERNAL, err->text, NULL);
}

/* Gives one message, or the end (NULL), to the callback; true: read on. */
static bool deliver(struct rpc_call *call, grpc_byte_buffer *buffer)
{
    if (call->on_raw != NULL)
        return call->on_raw(call, buffer, call->on_message_ud);
    if (buffer == NULL)
        return call->on_message(call, NULL, call->on_message_ud);
    struct arena arena;
    struct error err = ERROR_INIT;
    arena_init(&arena);
    ProtobufCMessage *message = rpc__unpack(incoming_type(call), buffer, &arena, &err);
    grpc_byte_buffer_destroy(buffer);
    bool more = true;
    if (message != NULL)
        more = call->on_message(call, message, call->on_message_ud);
    else
        refuse_message(call, &err); /* the next read gives the end */
    arena_clear(&arena);
    return more;
}

/* Called with the lock, returns without it. */
static void deliver_and_go_on(struct rpc_call *call, grpc_byte_buffer *buffer)
{
    bool end = buffer == NULL;
    if (end && call->end_told) {
        pthread_mutex_unlock(&call->lock);
        return;
    }
    call->end_told = end;
    call->in_callback = true;
    call->resume_wanted = false;
    pthread_mutex_unlock(&call->lock);
    bool more = deliver(call, buffer);
    pthread_mutex_lock(&call->lock);
    call->in_callback = false;
    if (more || call->resume_wanted)
        call__read_locked(call);
    else
        call->read_paused = !end;
    pthread_mutex_unlock(&call->lock);
}

static void on_recv(struct tag *tag, bool ok)
{
    struct rpc_call *call = CALL_OF(tag, recv_tag);

    pthread_mutex_lock(&call->lock);
    grpc_byte_buffer *buffer = call->incoming;
    call->incoming = NULL;
    call->reading = false;
    if (!ok && buffer != NULL) {
        grpc_byte_buffer_destroy(buffer);
        buffer = NULL;
    }
    if (buffer == NULL) {
        call->read_end = true;
        /* A cancellation shows here perhaps before the close does: the end must not look like the peer's half close. */
        call->read_failed = call->is_server && (!ok || grpc_call_failed_before_recv_message(call->call) != 0);
    }
    if (call->on_message != NULL || call->on_raw != NULL) {
        deliver_and_go_on(call, buffer);
    } else {
        call->unread = buffer;
        pthread_cond_broadcast(&call->changed);
        pthread_mutex_unlock(&call->lock);
    }
    call__drop(call);
}

static void start_callbacks_locked(struct rpc_call *call)
{
    grpc_byte_buffer *buffer = call->unread;
    call->unread = NULL;
    if (buffer != NULL || (call->read_end && !call->reading)) {
        deliver_and_go_on(call, buffer);
        return;
    }
    call__read_locked(call);
    pthread_mutex_unlock(&call->lock);
}

void rpc_on_message(struct rpc_call *call, bool (*fn)(struct rpc_call *call, const ProtobufCMessage *message, void *ud), void *ud)
{
    pthread_mutex_lock(&call->lock);
    call->on_message = fn;
    call->on_message_ud = ud;
    start_callbacks_locked(call);
}

void call__on_raw(struct rpc_call *call, bool (*fn)(struct rpc_call *call, grpc_byte_buffer *buffer, void *ud), void *ud)
{
    pthread_mutex_lock(&call->lock);
    call->on_raw = fn;
    call->on_message_ud = ud;
    start_callbacks_locked(call);
}

void rpc_read_resume(struct rpc_call *call)
{
    pthread_mutex_lock(&call->lock);
    if (call->read_paused) {
        call->read_paused = false;
        call__read_locked(call);
    } else if (call->in_callback) {
        call->resume_wanted = true;
    }
    pthread_mutex_unlock(&call->lock);
}

/* Why nothing more comes: the status of a client call, the end of the peer's messages of a server call. */
static int end_of_messages(struct rpc_call *call, struct error *err)
{
    if (!call->is_server) {
        int rc = rpc_status(call, err);
        return rc != STATUS_OK ? rc : error_set(err, STATUS_OUT_OF_RANGE, "end of the stream");
    }
    if (rpc_call_cancelled(call))
        return error_set(err, STATUS_CANCELLED, "the call was cancelled");
    return error_set(err, STATUS_OUT_OF_RANGE, "end of the stream");
}

int rpc_recv(struct rpc_call *call, ProtobufCMessage **message, struct arena *arena, struct error *err)
{
    covey_assert(!rpc__on_queue_thread);
    int64_t until = call->deadline_ms == INT64_MAX ? INT64_MAX : call->deadline_ms + RPC_WAIT_SLACK_MS;
    *message = NULL;
    pthread_mutex_lock(&call->lock);
    covey_assert(call->on_message == NULL && call->on_raw == NULL);
    bool in_time = true;
    while (call->unread == NULL && !call->read_end && in_time) {
        call__read_locked(call);
        in_time = rpc__cond_wait(&call->changed, &call->lock, until);
    }
    grpc_byte_buffer *buffer = call->unread;
    call->unread = NULL;
    bool end = call->read_end;
    pthread_mutex_unlock(&call->lock);
    if (buffer == NULL)
        return end ? end_of_messages(call, err) : error_set(err, STATUS_DEADLINE_EXCEEDED, "no message came in time");
    struct error local = ERROR_INIT;
    *message = rpc__unpack(incoming_type(call), buffer, arena, &local);
    grpc_byte_buffer_destroy(buffer);
    if (*message != NULL)
        return STATUS_OK;
    refuse_message(call, &local);
    if (err != NULL)
        *err = local;
    return local.code;
}

int rpc_status(struct rpc_call *call, struct error *err)
{
    covey_assert(!call->is_server);
    int64_t until = call->deadline_ms == INT64_MAX ? INT64_MAX : call->deadline_ms + RPC_WAIT_SLACK_MS;
    pthread_mutex_lock(&call->lock);
    bool callbacks = call->on_message != NULL || call->on_raw != NULL;
    bool in_time = true;
    while (!call->done && in_time) {
        if (!callbacks) { /* unread messages would hold the status back */
            if (call->unread != NULL)
                grpc_byte_buffer_destroy(call->unread);
            call->unread = NULL;
            call__read_locked(call);
        }
        covey_assert(!rpc__on_queue_thread);
        in_time = rpc__cond_wait(&call->changed, &call->lock, until);
    }
    bool done = call->done;
    pthread_mutex_unlock(&call->lock);
    if (!done) {
        rpc_cancel(call);
        return error_set(err, STATUS_DEADLINE_EXCEEDED, "the call did not end in time");
    }
    struct error local = ERROR_INIT;
    call__client_status(call, &local);
    if (err != NULL)
        *err = local;
    return local.code;
}
