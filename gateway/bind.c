/* From URL, headers and body to the request message. Precedence: path, then the URL's project and target, then the body, then the other query
 * parameters. Pure but for the request's arena; runs on the connection's thread. Errors are the client's: INVALID_ARGUMENT with a reason. */
#include "request.h"
#include "google/protobuf/field_mask.pb-c.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* ---- text ---- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

char *text_decode(struct arena *arena, const char *text, size_t len, bool plus)
{
    char *out = arena_alloc(arena, len + 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '%') {
            int high = i + 2 < len ? hex_digit(text[i + 1]) : -1, low = i + 2 < len ? hex_digit(text[i + 2]) : -1;
            if (high < 0 || low < 0)
                return NULL;
            out[n++] = (char)(high << 4 | low);
            i += 2;
        } else {
            out[n++] = plus && text[i] == '+' ? ' ' : text[i];
        }
    }
    out[n] = '\0';
    return utf8_valid(out, n) ? out : NULL;
}

void text_encode_segment(struct buf *out, const char *text)
{
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (isalnum(c) || strchr("-_.~", c) != NULL)
            buf_add(out, text, 1);
        else
            buf_printf(out, "%%%02X", c);
    }
}

int params_parse(struct arena *arena, const char *text, struct param *out, size_t max, size_t *count, struct error *err)
{
    *count = 0;
    while (*text != '\0') {
        size_t len = strcspn(text, "&");
        if (len > 0) {
            const char *equals = memchr(text, '=', len);
            size_t name_len = equals != NULL ? (size_t)(equals - text) : len;
            if (*count == max)
                return error_set(err, STATUS_INVALID_ARGUMENT, "more than %zu parameters", max);
            struct param *param = &out[*count];
            param->name = text_decode(arena, text, name_len, true);
            if (param->name == NULL)
                return error_set(err, STATUS_INVALID_ARGUMENT, "a parameter's name is not valid");
            param->value = equals != NULL ? text_decode(arena, equals + 1, len - name_len - 1, true) : "";
            if (param->value == NULL)
                return error_set(err, STATUS_INVALID_ARGUMENT, "the value of parameter \"%s\" is not valid", param->name);
            (*count)++;
        }
        text += len;
        if (*text == '&')
            text++;
    }
    return STATUS_OK;
}

/* ---- fields ---- */

/* The scalar field that a query parameter means. Fields that come from headers, messages and bytes are out of reach. */
static const struct field_info *query_field(const struct message_info *info, const char *name)
{
    for (unsigned i = 0; i < info->descriptor->n_fields; i++) {
        const struct field_info *field = &info->fields[i];
        if (strcmp(field->json_name, name) != 0 && strcmp(field->field->name, name) != 0)
            continue;
        bool scalar = field->field->type != PROTOBUF_C_TYPE_MESSAGE && field->field->type != PROTOBUF_C_TYPE_BYTES;
        return scalar && *field->header == '\0' ? field : NULL;
    }
    return NULL;
}

/* Clients append target=MEMBER to every request of a command run with --target. An image alias has a field of that name which means the image's
 * fingerprint: there the parameter must be ignored. */
static bool is_member_target(const struct method *method)
{
    return strcmp(method->service, "covey.v1.Images") != 0;
}

static bool is_url_only(const struct method *method, const char *name)
{
    return strcmp(name, "project") == 0 || (strcmp(name, "target") == 0 && is_member_target(method));
}

static int set_query(struct request *r, const struct message_info *info, ProtobufCMessage *message, struct error *err)
{
    const struct method *method = r->match.route->method;
    uint64_t seen = 0;
    for (size_t i = 0; i < r->param_count; i++) {
        const struct param *param = &r->params[i];
        const struct field_info *field = query_field(info, param->name);
        if (field == NULL || (strcmp(param->name, "target") == 0 && !is_member_target(method)))
            continue;
        size_t index = (size_t)(field - info->fields);
        bool single = field->field->label != PROTOBUF_C_LABEL_REPEATED;
        if (single && index < 64 && (seen & UINT64_C(1) << index) != 0)
            continue; /* the first one counts */
        seen |= index < 64 ? UINT64_C(1) << index : 0;
        int64_t number;
        if (*param->value == '\0')
            continue; /* e.g. "filter=": as if absent */
        if (strcmp(param->name, "recursion") == 0 && parse_i64(param->value, INT32_MIN, INT32_MAX, &number) != 0)
            continue; /* not a number: 0 */
        if (codec_set_text(message, field->field->name, param->value, &r->arena, err) != STATUS_OK)
            return err->code;
    }
    return STATUS_OK;
}

/* project and target are believed from the URL only: an object sent back as it was read must not move. */
static int reset_url_only(struct request *r, const struct message_info *info, ProtobufCMessage *message, struct error *err)
{
    static const char *const names[] = {"project", "target"};
    for (size_t i = 0; i < 2; i++) {
        const struct field_info *field = query_field(info, names[i]);
        if (field == NULL || !is_url_only(r->match.route->method, names[i]))
            continue;
        const char *value = request_param(r, names[i]);
        if (codec_set_text(message, field->field->name, value != NULL ? value : "", &r->arena, err) != STATUS_OK)
            return err->code;
    }
    return STATUS_OK;
}

static int set_headers(struct request *r, const struct message_info *info, ProtobufCMessage *message, struct error *err)
{
    for (unsigned i = 0; i < info->descriptor->n_fields; i++) {
        const struct field_info *field = &info->fields[i];
        if (*field->header == '\0')
            continue;
        const char *value = request_header(r, field->header);
        if (value == NULL || *value == '\0')
            continue;
        size_t len = strlen(value);
        if (!utf8_valid(value, len))
            return error_set(err, STATUS_INVALID_ARGUMENT, "header %s is not valid UTF-8", field->header);
        if (len >= 2 && value[0] == '"' && value[len - 1] == '"') /* answers quote them: the daemon sees what it gave */
            value = arena_strndup(&r->arena, value + 1, len - 2);
        if (codec_set_text(message, field->field->name, value, &r->arena, err) != STATUS_OK)
            return err->code;
    }
    return STATUS_OK;
}

/* ---- the body ---- */

static void set_mask(struct request *r, ProtobufCMessage *message, const json_t *object)
{
    const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field_by_name(message->descriptor, "update_mask");
    if (field == NULL || field->type != PROTOBUF_C_TYPE_MESSAGE || field->descriptor != &google__protobuf__field_mask__descriptor)
        return;
    Google__Protobuf__FieldMask *mask = NULL;
    if (strcmp(r->verb, "PATCH") == 0) {
        mask = arena_alloc(&r->arena, sizeof(*mask));
        google__protobuf__field_mask__init(mask);
        codec_present_keys(object, &r->arena, &mask->paths, &mask->n_paths);
    }
    *(Google__Protobuf__FieldMask **)((char *)message + field->offset) = mask; /* whatever the body said */
}

static bool is_blank(const struct buf *body)
{
    for (size_t i = 0; i < body->len; i++)
        if (strchr(" \t\r\n", body->data[i]) == NULL || body->data[i] == '\0')
            return false;
    return true;
}

/* A POST may come without a body (actions without arguments). A change without one is a request that lost it: taken as {} it would empty what it names. */
static bool body_needed(const struct request *r) { return strcmp(r->verb, "PUT") == 0 || strcmp(r->verb, "PATCH") == 0; }

static int set_body(struct request *r, ProtobufCMessage *message, struct error *err)
{
    json_error_t where;
    json_t *object = NULL;
    int rc = STATUS_OK;

    if (is_blank(&r->body) && body_needed(r))
        return error_set(err, STATUS_INVALID_ARGUMENT, "the request body is missing");
    if (!is_blank(&r->body)) {
        object = json_loadb(r->body.data, r->body.len, JSON_DECODE_ANY, &where);
        if (object == NULL)
            return error_set(err, STATUS_INVALID_ARGUMENT, "invalid JSON in line %d, column %d: %s", where.line, where.column, where.text);
        bool nothing = json_is_null(object) || (json_is_string(object) && json_string_length(object) == 0 && !body_needed(r));
        if (nothing) {
            json_decref(object);
            object = NULL;
        } else if (!json_is_object(object)) {
            json_decref(object);
            return error_set(err, STATUS_INVALID_ARGUMENT, "the request body must be a JSON object");
        }
    }
    if (object == NULL)
        object = json_object();
    rc = codec_merge_json(message, object, &r->arena, err);
    if (rc == STATUS_OK)
        set_mask(r, message, object);
    json_decref(object);
    return rc;
}

int bind_message(struct request *r, ProtobufCMessage **out, struct error *err)
{
    const struct route *route = r->match.route;
    const ProtobufCMessageDescriptor *input = route->method->input;
    const struct message_info *info = registry_message(input);
    ProtobufCMessage *message = arena_alloc(&r->arena, input->sizeof_message);

    protobuf_c_message_init(input, message);
    int rc = set_query(r, info, message, err);
    if (rc == STATUS_OK && route->rule->body) {
        rc = set_body(r, message, err);
        if (rc == STATUS_OK)
            rc = reset_url_only(r, info, message, err);
    }
    if (rc == STATUS_OK)
        rc = set_headers(r, info, message, err);
    for (size_t i = 0; rc == STATUS_OK && i < r->match.segment_count; i++)
        if (route->fields[i] != NULL)
            rc = codec_set_text(message, route->fields[i], r->match.segments[i], &r->arena, err);
    buf_free(&r->body);
    *out = rc == STATUS_OK ? message : NULL;
    return rc;
}
