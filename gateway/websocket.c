/* The socket half of a WebSocket: hub thread, wslay, queues in both directions. See websocket.h for the life of the object; the HTTP half is
 * upgrade.c. Input of clients is checked by wslay (masks, UTF-8, fragments, size); whatever it refuses ends the socket with a close code. */
#include "websocket.h"
#include "hub.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { WS_BATCH_BYTES = 128 << 10 }; /* handed to wslay at a time, so that it copies little */

static struct websocket *open_list; /* hub thread */

static void ws_drop(struct websocket *ws);

void websocket_unref(struct websocket *ws)
{
    if (atomic_fetch_sub(&ws->refs, 1) != 1)
        return;
    covey_assert(ws->wslay == NULL && ws->request == NULL);
    while (ws->out_head != NULL) {
        struct ws_message *next = ws->out_head->next;
        buf_free(&ws->out_head->data);
        free(ws->out_head);
        ws->out_head = next;
    }
    rpc_call_unref(ws->call);
    buf_free(&ws->early);
    buf_free(&ws->pending);
    pthread_mutex_destroy(&ws->lock);
    free(ws);
}

struct websocket *websocket_ref(struct websocket *ws)
{
    atomic_fetch_add(&ws->refs, 1);
    return ws;
}

/* ---- towards the client ---- */

static void ws_pump(struct websocket *ws);

static void pump_job(void *ud)
{
    struct websocket *ws = ud;
    pthread_mutex_lock(&ws->lock);
    ws->pump_posted = false;
    pthread_mutex_unlock(&ws->lock);
    if (ws->wslay != NULL)
        ws_pump(ws);
    websocket_unref(ws);
}

void websocket_pump_locked(struct websocket *ws)
{
    if (ws->pump_posted || !ws->upgraded)
        return;
    ws->pump_posted = true;
    hub_post(0, pump_job, websocket_ref(ws));
}

bool websocket_queue(struct websocket *ws, uint8_t opcode, struct buf *data)
{
    struct ws_message *message = xcalloc(1, sizeof(*message));
    message->opcode = opcode;
    message->data = *data;
    memset(data, 0, sizeof(*data));
    pthread_mutex_lock(&ws->lock);
    bool more = true;
    if (ws->closed) {
        pthread_mutex_unlock(&ws->lock);
        buf_free(&message->data);
        free(message);
        return true; /* nobody listens: read on, to the end */
    }
    *ws->out_tail = message;
    ws->out_tail = &message->next;
    ws->out_bytes += message->data.len + sizeof(*message);
    if (ws->out_bytes > GATEWAY_WS_OUT_BYTES_HIGH) {
        ws->paused = true;
        more = false;
    }
    websocket_pump_locked(ws);
    pthread_mutex_unlock(&ws->lock);
    return more;
}

/* Gives queued messages to wslay; *finished: the call is over and nothing is left. Resumes the stream when there is room. */
static bool fill(struct websocket *ws, bool *finished)
{
    bool ok = true;
    for (;;) {
        pthread_mutex_lock(&ws->lock);
        struct ws_message *message = ws->out_head;
        bool room = wslay_event_get_queued_msg_length(ws->wslay) < WS_BATCH_BYTES;
        if (message == NULL || !room) {
            *finished = message == NULL && ws->call_done && ws->messages_done;
            bool resume = ws->paused && ws->out_bytes < GATEWAY_WS_OUT_BYTES_LOW;
            if (resume)
                ws->paused = false;
            pthread_mutex_unlock(&ws->lock);
            if (resume)
                rpc_read_resume(ws->call);
            return ok;
        }
        ws->out_head = message->next;
        if (ws->out_head == NULL)
            ws->out_tail = &ws->out_head;
        ws->out_bytes -= message->data.len + sizeof(*message);
        pthread_mutex_unlock(&ws->lock);
        struct wslay_event_msg msg = {message->opcode, (const uint8_t *)(message->data.data != NULL ? message->data.data : ""), message->data.len};
        int rc = wslay_event_queue_msg(ws->wslay, &msg);
        ok = ok && (rc == 0 || rc == WSLAY_ERR_NO_MORE_MSG); /* the latter: a close is on its way */
        buf_free(&message->data);
        free(message);
    }
}

static void close_late_job(void *ud)
{
    struct websocket *ws = ud;
    if (ws->wslay != NULL)
        ws_drop(ws);
    websocket_unref(ws);
}

/* Says goodbye; the socket is closed when the other side answered or GATEWAY_WS_CLOSE_MS later. */
static void ws_close(struct websocket *ws, uint16_t code)
{
    if (ws->closing)
        return;
    ws->closing = true;
    if (wslay_event_queue_close(ws->wslay, code, NULL, 0) != 0)
        log_debug("gateway.websocket", "close could not be queued");
    hub_post(GATEWAY_WS_CLOSE_MS, close_late_job, websocket_ref(ws));
}

static void ws_pump(struct websocket *ws)
{
    for (bool more = true; more;) {
        bool finished = false;
        if (!fill(ws, &finished) || wslay_event_send(ws->wslay) != 0) {
            ws_drop(ws);
            return;
        }
        /* Not while messages wait inside wslay: it sends control frames first, and nothing after a close. */
        if (finished && !ws->closing && wslay_event_get_queued_msg_count(ws->wslay) == 0) {
            ws_close(ws, WSLAY_CODE_NORMAL_CLOSURE);
            continue;
        }
        pthread_mutex_lock(&ws->lock);
        more = ws->out_head != NULL && wslay_event_get_queued_msg_length(ws->wslay) == 0; /* else EPOLLOUT calls us */
        pthread_mutex_unlock(&ws->lock);
    }
    bool read = wslay_event_want_read(ws->wslay), write = wslay_event_want_write(ws->wslay);
    if (!read && !write) {
        ws_drop(ws);
        return;
    }
    uint32_t bits = (read && ws->pending.len == 0 && !ws->pending_end ? EPOLLIN : 0) | (write ? EPOLLOUT : 0);
    if (bits != ws->bits) {
        ws->bits = bits;
        hub_change(ws->fd, &ws->source, bits);
    }
}

/* ---- towards the daemon (data streams) ---- */

static void retry_job(void *ud);
static bool ws_read(struct websocket *ws);

static int send_frame(struct websocket *ws, Covey__V1__StreamFrame *frame)
{
    struct error err = ERROR_INIT;
    int rc = rpc_try_send(ws->call, &frame->base, &err);
    if (rc == STATUS_RESOURCE_EXHAUSTED && !ws->retry_posted) {
        ws->retry_posted = true;
        hub_post(GATEWAY_RETRY_MS, retry_job, websocket_ref(ws));
    }
    return rc;
}

/* Sends what waits; true when nothing waits any more (also when the call is over and nobody wants it). */
static bool flush_pending(struct websocket *ws)
{
    size_t sent = 0;
    int rc = STATUS_OK;
    while (sent < ws->pending.len && rc == STATUS_OK) {
        Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
        size_t left = ws->pending.len - sent;
        frame.data.len = left < GATEWAY_WS_FRAME_DATA_BYTES ? left : GATEWAY_WS_FRAME_DATA_BYTES;
        frame.data.data = (uint8_t *)ws->pending.data + sent;
        rc = send_frame(ws, &frame);
        if (rc == STATUS_OK)
            sent += frame.data.len;
    }
    if (rc == STATUS_RESOURCE_EXHAUSTED) {
        memmove(ws->pending.data, ws->pending.data + sent, ws->pending.len - sent);
        ws->pending.len -= sent;
        return false;
    }
    buf_free(&ws->pending);
    if (ws->pending_end) {
        Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
        frame.end = true;
        if (send_frame(ws, &frame) == STATUS_RESOURCE_EXHAUSTED)
            return false;
        ws->pending_end = false;
    }
    return true;
}

static void cancel_job(void *ud)
{
    struct websocket *ws = ud;
    rpc_cancel(ws->call);
    websocket_unref(ws);
}

/* The client is gone: the daemon hears the end of its data, after the data; a call that does not end by that is cancelled. */
static void finish_call(struct websocket *ws)
{
    if (!ws->stream) {
        rpc_cancel(ws->call);
        return;
    }
    rpc_half_close(ws->call);
    hub_post(GATEWAY_WS_CLOSE_MS, cancel_job, websocket_ref(ws));
}

static void retry_job(void *ud)
{
    struct websocket *ws = ud;
    ws->retry_posted = false;
    if (hub_stopping()) {
        buf_free(&ws->pending);
        ws->pending_end = false;
    }
    if (flush_pending(ws)) {
        if (ws->wslay == NULL)
            finish_call(ws);
        else if (!ws_read(ws)) /* what wslay had read already */
            ws_drop(ws);
        else
            ws_pump(ws);
    }
    websocket_unref(ws);
}

static void take_message(struct websocket *ws, const struct wslay_event_on_msg_recv_arg *arg)
{
    if (arg->opcode == WSLAY_BINARY_FRAME) {
        buf_add(&ws->pending, arg->msg, arg->msg_length);
        flush_pending(ws);
    } else if (arg->msg_length == 0) {
        ws->pending_end = true;
        flush_pending(ws);
    } else if (memchr(arg->msg, 0, arg->msg_length) != NULL) {
        ws_close(ws, WSLAY_CODE_POLICY_VIOLATION);
    } else {
        Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
        char *text = xasprintf("%.*s", (int)arg->msg_length, (const char *)arg->msg);
        frame.control = text;
        /* A control stream carries some hundred bytes: 8 MiB of unread commands is a client gone mad. */
        if (rpc_try_send(ws->call, &frame.base, NULL) == STATUS_RESOURCE_EXHAUSTED)
            ws_close(ws, WSLAY_CODE_POLICY_VIOLATION);
        free(text);
    }
}

/* ---- wslay ---- */

/* Follows the frames' heads through the bytes: a client must mask every frame, which wslay does not insist on. False: one is not masked. */
static bool all_masked(struct websocket *ws, const uint8_t *data, size_t len)
{
    for (size_t i = 0; i < len;) {
        if (ws->head_len < 2 || ws->head_len < ws->head_size) {
            uint8_t byte = data[i++];
            if (ws->head_len == 1) {
                if ((byte & 0x80) == 0)
                    return false;
                byte &= 0x7f;
                ws->head_size = 2 + (byte == 126 ? 2 : byte == 127 ? 8 : 0) + 4;
                ws->payload_left = byte < 126 ? byte : 0;
            } else if (ws->head_len >= 2 && ws->head_len < ws->head_size - 4) {
                ws->payload_left = ws->payload_left << 8 | byte;
            }
            ws->head_len++;
        } else {
            size_t n = ws->payload_left < len - i ? (size_t)ws->payload_left : len - i;
            ws->payload_left -= n;
            i += n;
        }
        if (ws->head_len >= 2 && ws->head_len == ws->head_size && ws->payload_left == 0)
            ws->head_len = ws->head_size = 0;
    }
    return true;
}

static ssize_t on_recv(wslay_event_context_ptr ctx, uint8_t *data, size_t len, int flags, void *ud)
{
    struct websocket *ws = ud;
    (void)flags;
    if (ws->pending.len > 0 || ws->pending_end) { /* the stream is full: the client waits */
        wslay_event_set_error(ctx, WSLAY_ERR_WOULDBLOCK);
        return -1;
    }
    ssize_t n;
    if (ws->early_taken < ws->early.len) {
        size_t left = ws->early.len - ws->early_taken;
        n = (ssize_t)(left < len ? left : len);
        memcpy(data, ws->early.data + ws->early_taken, (size_t)n);
        ws->early_taken += (size_t)n;
    } else {
        do
            n = recv(ws->fd, data, len, MSG_DONTWAIT);
        while (n < 0 && errno == EINTR);
    }
    if (n > 0) {
        ws->heard_ms = time_mono_ms();
        ws->unmasked = !all_masked(ws, data, (size_t)n);
        if (!ws->unmasked)
            return n;
    }
    bool later = ws->unmasked || (n < 0 && errno == EAGAIN);
    wslay_event_set_error(ctx, later ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
    return -1;
}

static ssize_t on_send(wslay_event_context_ptr ctx, const uint8_t *data, size_t len, int flags, void *ud)
{
    struct websocket *ws = ud;
    ssize_t n;
    do
        n = send(ws->fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL | ((flags & WSLAY_MSG_MORE) != 0 ? MSG_MORE : 0));
    while (n < 0 && errno == EINTR);
    if (n >= 0)
        return n;
    wslay_event_set_error(ctx, errno == EAGAIN ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
    return -1;
}

static void on_message(wslay_event_context_ptr ctx, const struct wslay_event_on_msg_recv_arg *arg, void *ud)
{
    struct websocket *ws = ud;
    (void)ctx;
    if (ws->stream && (arg->opcode == WSLAY_BINARY_FRAME || arg->opcode == WSLAY_TEXT_FRAME))
        take_message(ws, arg);
}

/* Reads what there is; false: the socket is of no use any more. */
static bool ws_read(struct websocket *ws)
{
    if (wslay_event_recv(ws->wslay) != 0)
        return false;
    if (ws->unmasked && !ws->closing) {
        wslay_event_shutdown_read(ws->wslay);
        ws_close(ws, WSLAY_CODE_PROTOCOL_ERROR);
    }
    return true;
}

static void on_ready(struct hub_source *source, uint32_t events)
{
    struct websocket *ws = (struct websocket *)((char *)source - offsetof(struct websocket, source));
    websocket_ref(ws);
    bool ok = true;
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0)
        ok = ws_read(ws);
    bool stuck = (events & (EPOLLHUP | EPOLLERR)) != 0 && (ws->bits & EPOLLIN) == 0; /* would be reported for ever */
    if (!ok || stuck)
        ws_drop(ws);
    else
        ws_pump(ws);
    websocket_unref(ws);
}

/* ---- life on the hub ---- */

static void ping(struct websocket *ws)
{
    static const char text[] = "keepalive";
    struct wslay_event_msg msg = {WSLAY_PING, (const uint8_t *)text, sizeof(text) - 1};
    if (wslay_event_queue_msg(ws->wslay, &msg) != 0)
        log_debug("gateway.websocket", "ping could not be queued");
}

static void ping_job(void *ud)
{
    struct websocket *ws = ud;
    if (ws->wslay == NULL || hub_stopping()) {
        websocket_unref(ws);
        return;
    }
    hub_post(GATEWAY_WS_PING_MS, ping_job, ws); /* our reference goes on */
    /* Clients need not read a data stream that gives them nothing (lxc does not read its control stream): only listeners must answer. */
    if (!ws->stream && time_mono_ms() - ws->heard_ms > GATEWAY_WS_SILENCE_MS) {
        ws_drop(ws);
        return;
    }
    if (!ws->closing)
        ping(ws);
    ws_pump(ws);
}

/* libmicrohttpd ends a TLS socket when both sides of its pipe have ended, but may look at the pipe's end before it has noted that we closed, and then
 * never again. Ending the connection's input afterwards makes it look. The duplicate keeps the number from being reused meanwhile. */
static void ws_release(struct websocket *ws)
{
    if (MHD_upgrade_action(ws->upgrade, MHD_UPGRADE_ACTION_CLOSE) != MHD_YES)
        log_warn("gateway.websocket", "the socket could not be closed");
    if (ws->tcp_fd >= 0) {
        shutdown(ws->tcp_fd, SHUT_RD); /* fails if the client is gone already */
        close(ws->tcp_fd);
        ws->tcp_fd = -1;
    }
}

static void ws_drop(struct websocket *ws)
{
    wslay_event_context_free(ws->wslay);
    ws->wslay = NULL;
    hub_remove(ws->fd, &ws->source);
    if (ws->prev != NULL)
        ws->prev->next = ws->next;
    else
        open_list = ws->next;
    if (ws->next != NULL)
        ws->next->prev = ws->prev;
    pthread_mutex_lock(&ws->lock);
    ws->closed = true;
    ws->paused = false;
    pthread_mutex_unlock(&ws->lock);
    rpc_read_resume(ws->call); /* what still comes is thrown away, up to the end */
    if (ws->pending.len == 0 && !ws->pending_end)
        finish_call(ws);
    ws_release(ws);
    websocket_unref(ws);
}

void websocket_open(void *ud)
{
    static const struct wslay_event_callbacks callbacks = {.recv_callback = on_recv, .send_callback = on_send, .on_msg_recv_callback = on_message};
    struct websocket *ws = ud;
    int flags = fcntl(ws->fd, F_GETFL);
    if (flags < 0 || fcntl(ws->fd, F_SETFL, flags | O_NONBLOCK) != 0)
        log_warn("gateway.websocket", "fcntl: %s", strerror(errno));
    if (wslay_event_context_server_init(&ws->wslay, &callbacks, ws) != 0)
        core_oom();
    wslay_event_config_set_max_recv_msg_length(ws->wslay, GATEWAY_WS_MESSAGE_BYTES_MAX);
    ws->source.ready = on_ready;
    ws->bits = EPOLLIN;
    ws->heard_ms = time_mono_ms();
    hub_add(ws->fd, &ws->source, ws->bits);
    ws->next = open_list;
    if (open_list != NULL)
        open_list->prev = ws;
    open_list = ws;
    hub_post(GATEWAY_WS_PING_MS, ping_job, websocket_ref(ws));
    if (!ws->stream)
        ping(ws);
    websocket_ref(ws);
    if (gateway_draining())
        ws_close(ws, WSLAY_CODE_GOING_AWAY);
    if (!ws_read(ws)) /* what came with the request */
        ws_drop(ws);
    else
        ws_pump(ws);
    websocket_unref(ws);
    rpc_read_resume(ws->call);
}

static void close_all_job(void *unused)
{
    (void)unused;
    while (open_list != NULL) {
        struct websocket *ws = websocket_ref(open_list);
        ws_close(ws, WSLAY_CODE_GOING_AWAY);
        if (wslay_event_send(ws->wslay) != 0)
            log_debug("gateway.websocket", "close could not be sent");
        ws_drop(ws);
        rpc_cancel(ws->call);
        websocket_unref(ws);
    }
}

void websocket_close_all(void)
{
    hub_post(0, close_all_job, NULL);
}
