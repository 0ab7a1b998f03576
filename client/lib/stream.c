/* Streams: any streaming method by JSON, and the data streams of operations. One sender and one receiver at a time; cancel from any thread.
 * A broken connection shows as UNAVAILABLE at the next receive. */
#include "client.h"
#include "covey/v1/operation.pb-c.h"
#include <stdlib.h>
#include <string.h>

int client_stream_open(struct covey_client *client, const char *name, json_t *request, int64_t timeout_ms, struct covey_stream **stream,
                       struct error *err)
{
    *stream = NULL;
    struct arena arena;
    arena_init(&arena);
    ProtobufCMessage *in = NULL;
    struct rpc_call *call = NULL;
    const struct method *method = client_method(name, err);
    if (method && !method->client_streaming && !method->server_streaming) {
        error_set(err, STATUS_INVALID_ARGUMENT, "%s is not a streaming method", name);
        method = NULL;
    }
    bool ready = method != NULL;
    if (method && !method->client_streaming)
        ready = (in = client_message(method, request, &arena, err)) != NULL;
    if (ready) {
        struct rpc_options options = {.timeout_ms = timeout_ms};
        call = rpc_open(client->channel, method->service, method->name, in, &options, err);
    }
    json_decref(request);
    arena_clear(&arena);
    if (!call)
        return (int)err->code;
    *stream = xcalloc(1, sizeof(**stream));
    (*stream)->call = call;
    (*stream)->method = method;
    arena_init(&(*stream)->arena);
    return STATUS_OK;
}

int client_stream_send(struct covey_stream *stream, json_t *message, struct error *err)
{
    struct arena arena;
    arena_init(&arena);
    ProtobufCMessage *in = client_message(stream->method, message, &arena, err);
    int status = in ? rpc_send(stream->call, in, err) : (int)err->code;
    json_decref(message);
    arena_clear(&arena);
    return status;
}

int client_stream_receive(struct covey_stream *stream, ProtobufCMessage **message, struct error *err)
{
    *message = NULL;
    arena_clear(&stream->arena);
    return rpc_recv(stream->call, message, &stream->arena, err);
}

void covey_stream_cancel(struct covey_stream *stream) { rpc_cancel(stream->call); }

void covey_stream_free(struct covey_stream *stream)
{
    if (!stream)
        return;
    rpc_cancel(stream->call); /* nothing happens to a call that has ended */
    rpc_call_unref(stream->call);
    arena_clear(&stream->arena);
    free(stream);
}

int covey_stream_open(struct covey_client *client, const char *method, const char *request, struct covey_stream **stream, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    *stream = NULL;
    json_error_t where;
    json_t *in = NULL;
    if (request && !(in = json_loads(request, 0, &where)))
        return covey__result(error_set(&e, STATUS_INVALID_ARGUMENT, "the request is not JSON: %s", where.text), &e, err);
    return covey__result(client_stream_open(client, method, in, -1, stream, &e), &e, err);
}

int covey_stream_send(struct covey_stream *stream, const char *message, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    json_error_t where;
    json_t *in = json_loads(message, 0, &where);
    if (!in)
        return covey__result(error_set(&e, STATUS_INVALID_ARGUMENT, "the message is not JSON: %s", where.text), &e, err);
    return covey__result(client_stream_send(stream, in, &e), &e, err);
}

int covey_stream_close_send(struct covey_stream *stream) { return rpc_half_close(stream->call); }

int covey_stream_receive(struct covey_stream *stream, char **message, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    *message = NULL;
    ProtobufCMessage *out;
    int status = client_stream_receive(stream, &out, &e);
    if (!status) {
        struct buf text = {0};
        codec_to_json(out, &text);
        *message = buf_take(&text);
    }
    return covey__result(status, &e, err);
}

int covey_stream_status(struct covey_stream *stream, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    return covey__result(rpc_status(stream->call, &e), &e, err);
}

/* ---- data streams ---- */

static int send_frame(struct covey_stream *stream, Covey__V1__StreamFrame *frame, struct error *err)
{
    return rpc_send(stream->call, &frame->base, err);
}

int client_attach(struct covey_client *client, const char *operation, const char *secret, struct covey_stream **stream, struct error *err)
{
    int status = client_stream_open(client, "Operations/Connect", NULL, -1, stream, err);
    if (status)
        return status;
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    frame.id = (char *)operation;
    frame.secret = (char *)secret;
    status = send_frame(*stream, &frame, err);
    ProtobufCMessage *hello;
    if (!status)
        status = client_stream_receive(*stream, &hello, err);
    if (status == STATUS_OUT_OF_RANGE) { /* ended before the hello: the final status says why */
        status = rpc_status((*stream)->call, err);
        if (!status)
            status = error_set(err, STATUS_UNAVAILABLE, "the server closed the stream before confirming it");
    }
    if (status) {
        covey_stream_free(*stream);
        *stream = NULL;
    }
    return status;
}

int client_attach_write(struct covey_stream *stream, const void *data, size_t len, struct error *err)
{
    const uint8_t *at = data;
    int status = STATUS_OK;
    while (len && !status) {
        size_t part = len < CLIENT_CHUNK_BYTES ? len : CLIENT_CHUNK_BYTES;
        Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
        frame.data.data = (uint8_t *)at;
        frame.data.len = part;
        status = send_frame(stream, &frame, err);
        at += part;
        len -= part;
    }
    return status;
}

int client_attach_end(struct covey_stream *stream, struct error *err)
{
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    frame.end = true;
    return send_frame(stream, &frame, err);
}

int client_attach_control(struct covey_stream *stream, const char *command, struct error *err)
{
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    frame.control = (char *)command;
    return send_frame(stream, &frame, err);
}

int client_attach_read(struct covey_stream *stream, const uint8_t **data, size_t *len, struct error *err)
{
    *data = NULL;
    *len = 0;
    for (;;) {
        if (stream->ended)
            return error_set(err, STATUS_OUT_OF_RANGE, "end of data");
        ProtobufCMessage *message;
        int status = client_stream_receive(stream, &message, err);
        if (status)
            return status;
        const Covey__V1__StreamFrame *frame = (const Covey__V1__StreamFrame *)message;
        stream->ended = frame->end;
        if (frame->data.len) {
            *data = frame->data.data;
            *len = frame->data.len;
            return STATUS_OK;
        }
    }
}

int covey_attach(struct covey_client *client, const char *operation, const char *secret, struct covey_stream **stream, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    return covey__result(client_attach(client, operation, secret, stream, &e), &e, err);
}

int covey_attach_write(struct covey_stream *stream, const void *data, size_t len, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    return covey__result(client_attach_write(stream, data, len, &e), &e, err);
}

int covey_attach_end(struct covey_stream *stream, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    return covey__result(client_attach_end(stream, &e), &e, err);
}

int covey_attach_control(struct covey_stream *stream, const char *command, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    return covey__result(client_attach_control(stream, command, &e), &e, err);
}

int covey_attach_read(struct covey_stream *stream, void **data, size_t *len, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    const uint8_t *bytes;
    *data = NULL;
    int status = client_attach_read(stream, &bytes, len, &e);
    if (!status) {
        *data = xmalloc(*len);
        memcpy(*data, bytes, *len);
    }
    return covey__result(status, &e, err);
}
