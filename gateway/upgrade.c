/* The HTTP half of WebSockets: checks the request, opens the gRPC stream, waits until the daemon has attached it (its first message, which says
 * nothing), and only then answers 101, so that nothing is missed in between. Errors before that are ordinary envelopes. */
#include "websocket.h"
#include "covey/v1/event.pb-c.h"
#include <fcntl.h>
#include <gnutls/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char ws_guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; /* RFC 6455 */
enum { WS_KEY_LENGTH = 24 };

static bool has_token(const char *list, const char *token)
{
    size_t n = strlen(token);
    while (list != NULL && *list != '\0') {
        list += strspn(list, " \t,");
        size_t len = strcspn(list, " \t,");
        if (len == n && strncasecmp(list, token, n) == 0)
            return true;
        list += len;
    }
    return false;
}

static bool wants_upgrade(const struct request *r)
{
    const char *key = request_header(r, "Sec-WebSocket-Key");
    return has_token(request_header(r, "Connection"), "upgrade") && has_token(request_header(r, "Upgrade"), "websocket") && key != NULL &&
           strlen(key) == WS_KEY_LENGTH && str_eq(request_header(r, "Sec-WebSocket-Version"), "13");
}

static char *accept_value(const struct request *r)
{
    uint8_t digest[20];
    char text[WS_KEY_LENGTH + sizeof(ws_guid)];
    snprintf(text, sizeof(text), "%s%s", request_header(r, "Sec-WebSocket-Key"), ws_guid);
    int rc = gnutls_hash_fast(GNUTLS_DIG_SHA1, text, strlen(text), digest);
    covey_assert(rc == 0);
    return base64_encode(digest, sizeof(digest));
}

/* ---- the call ---- */

static void wake_locked(struct websocket *ws)
{
    if (ws->request != NULL)
        request_wake(ws->request);
    else
        websocket_pump_locked(ws);
}

/* The first message tells that we are attached; it is passed on only if it says something. */
static bool is_hello(struct websocket *ws, bool says_nothing, bool *stop)
{
    pthread_mutex_lock(&ws->lock);
    bool first = !ws->hello;
    if (first) {
        ws->hello = true;
        ws->paused = true; /* until the socket is ours */
        wake_locked(ws);
    }
    *stop = first;
    pthread_mutex_unlock(&ws->lock);
    return first && says_nothing;
}

static bool last_message(struct websocket *ws)
{
    pthread_mutex_lock(&ws->lock);
    ws->messages_done = true;
    wake_locked(ws);
    pthread_mutex_unlock(&ws->lock);
    websocket_unref(ws);
    return false;
}

static bool on_event(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct websocket *ws = ud;
    const Covey__V1__Event *event = (const Covey__V1__Event *)message;
    struct buf json = {0};
    bool stop;
    (void)call;
    if (event == NULL)
        return last_message(ws);
    if (is_hello(ws, str_empty(event->type), &stop))
        return false;
    codec_to_json(message, &json);
    return websocket_queue(ws, WSLAY_TEXT_FRAME, &json) && !stop;
}

static bool on_frame(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct websocket *ws = ud;
    const Covey__V1__StreamFrame *frame = (const Covey__V1__StreamFrame *)message;
    struct buf data = {0};
    bool stop, more = true;
    (void)call;
    if (frame == NULL)
        return last_message(ws);
    if (is_hello(ws, frame->data.len == 0 && !frame->end && str_empty(frame->control), &stop))
        return false;
    if (frame->data.len > 0) {
        buf_add(&data, frame->data.data, frame->data.len);
        more = websocket_queue(ws, WSLAY_BINARY_FRAME, &data);
    }
    if (!str_empty(frame->control)) {
        buf_puts(&data, frame->control);
        more = websocket_queue(ws, WSLAY_TEXT_FRAME, &data);
    }
    if (frame->end)
        more = websocket_queue(ws, WSLAY_TEXT_FRAME, &data);
    return more && !stop;
}

static void on_done(struct rpc_call *call, void *ud)
{
    struct websocket *ws = ud;
    struct error err = ERROR_INIT;
    if (rpc_status(call, &err) != STATUS_OK)
        log_debug("gateway.websocket", "the call ended: %s", err.text);
    pthread_mutex_lock(&ws->lock);
    ws->call_done = true;
    wake_locked(ws);
    pthread_mutex_unlock(&ws->lock);
    websocket_unref(ws);
}

/* ---- the request ---- */

static void on_gone(struct request *r)
{
    struct websocket *ws = r->state;
    rpc_cancel(ws->call);
}

static int send_first(struct request *r, struct rpc_call *call, struct error *err)
{
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    frame.id = (char *)r->match.segments[2]; /* /1.0/operations/{id}/websocket */
    frame.secret = (char *)request_param(r, "secret");
    return rpc_try_send(call, &frame.base, err);
}

static int open_call(struct request *r, bool stream, struct error *err)
{
    const struct method *method = r->match.route->method;
    ProtobufCMessage *message = NULL;
    struct call_metadata metadata;
    struct rpc_options options = request_options(r, &metadata);
    options.timeout_ms = -1;
    if (!stream && bind_message(r, &message, err) != STATUS_OK)
        return err->code;
    struct rpc_call *call = rpc_open(gateway_channel(), method->service, method->name, message, &options, err);
    if (call == NULL)
        return err->code;
    struct websocket *ws = xcalloc(1, sizeof(*ws));
    atomic_init(&ws->refs, 3); /* the request, the call's end, its messages */
    ws->stream = stream;
    ws->call = call;
    ws->out_tail = &ws->out_head;
    ws->request = r;
    ws->fd = ws->tcp_fd = -1;
    pthread_mutex_init(&ws->lock, NULL);
    r->state = ws;
    watch_add(r, on_gone);
    rpc_on_message(call, stream ? on_frame : on_event, ws);
    rpc_call_on_done(call, on_done, ws);
    if (stream && send_first(r, call, err) != STATUS_OK)
        rpc_cancel(call); /* its status says why */
    return STATUS_OK;
}

static void on_upgrade(void *cls, struct MHD_Connection *connection, void *context, const char *early, size_t early_len, MHD_socket fd,
                       struct MHD_UpgradeResponseHandle *upgrade)
{
    struct websocket *ws = cls;
    const struct request *r = context;
    (void)connection;
    ws->fd = fd;
    if (r->peer->tls) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        ws->tcp_fd = fcntl(info->connect_fd, F_DUPFD_CLOEXEC, 0);
    }
    ws->upgrade = upgrade;
    if (early_len > 0)
        buf_add(&ws->early, early, early_len);
    pthread_mutex_lock(&ws->lock);
    ws->request = NULL;
    ws->upgraded = true;
    ws->paused = false;
    pthread_mutex_unlock(&ws->lock);
    hub_post(0, websocket_open, websocket_ref(ws));
}

static enum MHD_Result upgrade(struct request *r, struct websocket *ws)
{
    struct MHD_Response *response = MHD_create_response_for_upgrade(on_upgrade, ws);
    if (response == NULL)
        core_oom();
    char *accept = accept_value(r);
    bool ok = MHD_add_response_header(response, "Upgrade", "websocket") == MHD_YES &&
              MHD_add_response_header(response, "Sec-WebSocket-Accept", accept) == MHD_YES;
    free(accept);
    enum MHD_Result rc = ok ? MHD_queue_response(r->connection, MHD_HTTP_SWITCHING_PROTOCOLS, response) : MHD_NO;
    MHD_destroy_response(response);
    return rc;
}

static enum MHD_Result run(struct request *r, bool stream)
{
    struct error err = ERROR_INIT;
    struct websocket *ws = r->state;
    if (ws == NULL) {
        if (stream && str_empty(request_param(r, "secret")))
            answer_error(r, 400, "missing secret");
        else if (!wants_upgrade(r))
            answer_error(r, 400, "this is a WebSocket: the request needs the headers of an upgrade");
        else if (open_call(r, stream, &err) != STATUS_OK)
            answer_status(r, &err);
        if (r->http != 0)
            return answer_send(r);
        request_suspend(r);
        return MHD_YES;
    }
    pthread_mutex_lock(&ws->lock);
    bool hello = ws->hello, done = ws->call_done;
    pthread_mutex_unlock(&ws->lock);
    if (!hello && !done) {
        request_suspend(r);
        return MHD_YES;
    }
    watch_remove(r);
    if (hello)
        return upgrade(r, ws);
    if (rpc_status(ws->call, &err) == STATUS_OK)
        answer_error(r, 500, "the stream ended before it began");
    else
        answer_status(r, &err);
    return answer_send(r);
}

static enum MHD_Result run_events(struct request *r)
{
    return run(r, false);
}

static enum MHD_Result run_stream(struct request *r)
{
    return run(r, true);
}

static void end(struct request *r)
{
    struct websocket *ws = r->state;
    if (ws == NULL)
        return;
    r->state = NULL;
    watch_remove(r);
    pthread_mutex_lock(&ws->lock);
    ws->request = NULL;
    bool upgraded = ws->upgraded;
    if (!upgraded) {
        ws->closed = true;
        ws->paused = false;
    }
    pthread_mutex_unlock(&ws->lock);
    if (!upgraded) {
        rpc_cancel(ws->call);
        rpc_read_resume(ws->call);
    }
    websocket_unref(ws);
}

const struct handler handler_events = {.name = "events-websocket", .run = run_events, .close = end};
const struct handler handler_stream = {.name = "operation-websocket", .run = run_stream, .close = end};
