/* The generic handler: one REST request is one unary call. Also the table of special handlers. Nothing here blocks: the call ends on a gRPC queue
 * thread, which writes the answer and wakes the connection. */
#include "request.h"
#include <string.h>

static const struct handler *const specials[] = {
    &handler_create_certificate, &handler_events, &handler_stream, &handler_upload, &handler_export,
};

const struct handler *handler_find(const struct method *method)
{
    for (size_t i = 0; i < sizeof(specials) / sizeof(specials[0]); i++)
        if (strcmp(specials[i]->name, method->special) == 0)
            return specials[i];
    bool plain = *method->special == '\0' && !method->client_streaming && !method->server_streaming;
    return plain ? &handler_generic : NULL;
}

static void on_done(int status, const ProtobufCMessage *response, const struct error *err, void *ud)
{
    struct request *r = ud;
    watch_remove(r);
    if (status != STATUS_OK)
        answer_status(r, err);
    else if (r->handler == &handler_create_certificate && *codec_get_string(response, "location") != '\0')
        answer_created(r, codec_get_string(response, "location"));
    else
        answer_message(r, response);
    request_wake(r);
    request_unref(r);
}

static void on_gone(struct request *r)
{
    rpc_unary_cancel(r->call);
}

static enum MHD_Result run(struct request *r)
{
    struct error err = ERROR_INIT;
    ProtobufCMessage *message;

    if (r->http != 0)
        return answer_send(r);
    if (r->started) { /* woken by somebody else */
        request_suspend(r);
        return MHD_YES;
    }
    if (bind_message(r, &message, &err) != STATUS_OK) {
        answer_status(r, &err);
        return answer_send(r);
    }
    r->started = true;
    r->state = message; /* the answer's location and recursion come from it */
    struct call_metadata metadata;
    struct rpc_options options = request_options(r, &metadata);
    request_ref(r); /* the call's */
    request_ref(r); /* ours, until the end of this function: the answer may overtake us */
    request_suspend(r);
    r->call = rpc_unary_start(gateway_channel(), r->match.route->method, message, &options, on_done, r);
    watch_add(r, on_gone);
    request_unref(r);
    return MHD_YES;
}

const struct handler handler_generic = {.name = "", .run = run};
const struct handler handler_create_certificate = {.name = "create-certificate", .run = run};
