/* Envelopes (the seven keys in their fixed order) and their HTTP codes and headers. The JSON of a response is written straight into the buffer
 * that is sent. Runs where the call ended (queue thread) or on the connection's thread; see request.h. Cannot fail. */
#include "request.h"
#include <stdlib.h>
#include <string.h>

static const char sync_head[] = "{\"type\":\"sync\",\"status\":\"Success\",\"status_code\":200,\"operation\":\"\",\"error_code\":0,\"error\":\"\",\"metadata\":";

static void answer_begin(struct request *r, int http)
{
    covey_assert(r->http == 0);
    r->http = http;
    buf_free(&r->out);
}

static void answer_end(struct request *r)
{
    buf_add(&r->out, "}\n", 2);
}

void answer_error(struct request *r, int http, const char *text)
{
    answer_begin(r, http);
    buf_printf(&r->out, "{\"type\":\"error\",\"status\":\"\",\"status_code\":0,\"operation\":\"\",\"error_code\":%d,\"error\":", http);
    buf_json_string(&r->out, text);
    buf_puts(&r->out, ",\"metadata\":null");
    answer_end(r);
}

void answer_status(struct request *r, const struct error *err)
{
    if (err->code == STATUS_OK)
        answer_error(r, 500, "the daemon gave no answer");
    else if (err->code == STATUS_CANCELLED && err->text[0] == '\0')
        answer_error(r, status_http(err->code), "the daemon stopped before it answered");
    else
        answer_error(r, status_http(err->code), err->text[0] != '\0' ? err->text : status_name(err->code));
}

void answer_empty(struct request *r)
{
    answer_begin(r, 200);
    buf_add(&r->out, sync_head, sizeof(sync_head) - 1);
    buf_add(&r->out, "{}", 2);
    answer_end(r);
}

/* A URL is shown under the name that was asked for. */
static void url_begin(const struct request *r, const char **url, const char **prefix)
{
    static const char instances[] = "/1.0/instances";
    size_t n = sizeof(instances) - 1;
    *prefix = "";
    if (r->match.containers && strncmp(*url, instances, n) == 0 && (*url)[n] == '/') {
        *prefix = "/1.0/containers";
        *url += n;
    }
}

void answer_created(struct request *r, const char *location)
{
    const char *prefix;
    answer_begin(r, 201);
    url_begin(r, &location, &prefix);
    r->location = arena_printf(&r->arena, "%s%s", prefix, location);
    buf_add(&r->out, sync_head, sizeof(sync_head) - 1);
    buf_add(&r->out, "null", 4);
    answer_end(r);
}

void answer_operation(struct request *r, const ProtobufCMessage *operation)
{
    answer_begin(r, 202);
    r->location = arena_printf(&r->arena, "/1.0/operations/%s", codec_get_string(operation, "id"));
    buf_puts(&r->out, "{\"type\":\"async\",\"status\":\"Operation created\",\"status_code\":100,\"operation\":");
    buf_json_string(&r->out, r->location);
    buf_puts(&r->out, ",\"error_code\":0,\"error\":\"\",\"metadata\":");
    codec_to_json(operation, &r->out);
    answer_end(r);
}

static void answer_urls(struct request *r, const ProtobufCMessage *response)
{
    const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field_by_name(response->descriptor, "urls");
    covey_assert(field != NULL && field->label == PROTOBUF_C_LABEL_REPEATED && field->type == PROTOBUF_C_TYPE_STRING);
    size_t count = *(const size_t *)((const char *)response + field->quantifier_offset);
    char *const *urls = *(char *const *const *)((const char *)response + field->offset);

    buf_add(&r->out, "[", 1);
    for (size_t i = 0; i < count; i++) {
        const char *url = urls[i], *prefix;
        if (i > 0)
            buf_add(&r->out, ",", 1);
        url_begin(r, &url, &prefix);
        if (*prefix == '\0') {
            buf_json_string(&r->out, url);
        } else {
            char *whole = arena_printf(&r->arena, "%s%s", prefix, url);
            buf_json_string(&r->out, whole);
        }
    }
    buf_add(&r->out, "]", 1);
}

/* Fields that are HTTP headers: the ETag, quoted. */
static void take_headers(struct request *r, const ProtobufCMessage *response)
{
    const struct message_info *info = registry_message(response->descriptor);
    for (unsigned i = 0; i < info->descriptor->n_fields; i++) {
        const struct field_info *field = &info->fields[i];
        if (*field->header == '\0' || field->field->type != PROTOBUF_C_TYPE_STRING || strcmp(field->header, "ETag") != 0)
            continue;
        const char *value = *(char *const *)((const char *)response + field->field->offset);
        if (!str_empty(value) && strpbrk(value, "\r\n\"") == NULL)
            r->etag = arena_printf(&r->arena, "\"%s\"", value);
    }
}

/* "/1.0/profiles/{name}" with the request's fields. */
static char *location_of(struct request *r, const ProtobufCMessage *request, const char *template)
{
    struct buf out = {0};
    for (const char *p = template; *p != '\0';) {
        if (*p != '{') {
            buf_add(&out, p++, 1);
            continue;
        }
        size_t len = strcspn(p, "}");
        char *field = arena_strndup(&r->arena, p + 1, len - 1);
        text_encode_segment(&out, codec_get_string(request, field));
        p += len + (p[len] == '}');
    }
    char *location = arena_strdup(&r->arena, out.data != NULL ? out.data : "");
    buf_free(&out);
    return location;
}

static const ProtobufCMessage *operation_of(const ProtobufCMessage *response)
{
    const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field_by_name(response->descriptor, "operation");
    if (field == NULL || field->type != PROTOBUF_C_TYPE_MESSAGE || field->label == PROTOBUF_C_LABEL_REPEATED)
        return NULL;
    return *(ProtobufCMessage *const *)((const char *)response + field->offset);
}

static void answer_data(struct request *r, const ProtobufCMessage *response)
{
    const struct method *method = r->match.route->method;
    bool list = method->reply == RPC_REPLY_LIST;
    const ProtobufCMessage *request = r->state; /* unary.c keeps it there */

    answer_begin(r, 200);
    take_headers(r, response);
    buf_add(&r->out, sync_head, sizeof(sync_head) - 1);
    if (list && (codec_get_int(request, "recursion") == 0 || *method->metadata_field == '\0'))
        answer_urls(r, response);
    else if (*method->metadata_field != '\0')
        codec_field_to_json(response, method->metadata_field, &r->out);
    else
        codec_to_json(response, &r->out);
    answer_end(r);
}

void answer_message(struct request *r, const ProtobufCMessage *response)
{
    const struct method *method = r->match.route->method;
    const ProtobufCMessage *operation;
    switch (r->handler == &handler_create_certificate ? RPC_REPLY_AUTO : method->reply) {
    case RPC_REPLY_SYNC:
    case RPC_REPLY_LIST:
        answer_data(r, response);
        break;
    case RPC_REPLY_EMPTY:
        answer_empty(r);
        break;
    case RPC_REPLY_CREATED:
        answer_created(r, location_of(r, r->state, method->location));
        break;
    case RPC_REPLY_ASYNC:
        answer_operation(r, response);
        break;
    case RPC_REPLY_AUTO:
        operation = operation_of(response);
        if (operation != NULL)
            answer_operation(r, operation);
        else
            answer_empty(r);
        break;
    }
}

enum MHD_Result answer_send(struct request *r)
{
    covey_assert(r->http != 0);
    size_t len = r->out.len;
    r->peer->hold_next = r->peer->tls && len > 0 && strcmp(r->verb, "HEAD") != 0; /* libmicrohttpd sends the header by itself */
    struct MHD_Response *response = MHD_create_response_from_buffer(len, buf_take(&r->out), MHD_RESPMEM_MUST_FREE);
    if (response == NULL)
        core_oom();
    bool ok = MHD_add_response_header(response, "Content-Type", "application/json") == MHD_YES;
    if (r->http >= 400)
        ok = ok && MHD_add_response_header(response, "X-Content-Type-Options", "nosniff") == MHD_YES;
    if (r->location != NULL)
        ok = ok && MHD_add_response_header(response, "Location", r->location) == MHD_YES;
    if (r->etag != NULL)
        ok = ok && MHD_add_response_header(response, "ETag", r->etag) == MHD_YES;
    if (r->close_after || gateway_draining())
        ok = ok && MHD_add_response_header(response, "Connection", "close") == MHD_YES;
    if (!ok)
        log_warn("gateway.header", "http=%d a header of the answer was refused", r->http);
    enum MHD_Result rc = MHD_queue_response(r->connection, (unsigned)r->http, response);
    MHD_destroy_response(response);
    return rc;
}
