/* Fields by name: for URL parameters, routing and locations. Names are dotted paths of declared or JSON names. Pure; thread: any. */
#include "codec_private.h"
#include "google/protobuf/timestamp.pb-c.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct field_info *field_find(const struct message_info *info, const char *name, size_t len)
{
    for (unsigned i = 0; i < info->descriptor->n_fields; i++) {
        const struct field_info *field = &info->fields[i];
        if ((strncmp(field->field->name, name, len) == 0 && !field->field->name[len]) ||
            (strncmp(field->json_name, name, len) == 0 && !field->json_name[len]))
            return field;
    }
    return NULL;
}

static bool is_singular_message(const struct field_info *field)
{
    return field->message && field->field->label != PROTOBUF_C_LABEL_REPEATED;
}

/* The field that the last part of `name` means, and in *holder the message that holds it; with an arena, messages on the way are made.
 * NULL if there is no such field; *holder NULL if a message on the way is unset. */
static const struct field_info *path_find(ProtobufCMessage *message, const char *name, struct arena *arena, ProtobufCMessage **holder)
{
    const struct message_info *info = registry_message(message->descriptor);
    for (;;) {
        size_t len = strcspn(name, ".");
        const struct field_info *field = field_find(info, name, len);
        if (!field || !name[len]) {
            *holder = message;
            return field;
        }
        if (!is_singular_message(field))
            return NULL;
        if (message) {
            ProtobufCMessage *below = field_is_set(message, field->field) ? *(ProtobufCMessage **)field_at(message, field->field) : NULL;
            if (!below && arena) {
                below = codec__new(field->message->descriptor, arena);
                *(ProtobufCMessage **)codec__prepare(message, field->field) = below;
            }
            message = below;
        }
        info = field->message;
        name += len + 1;
    }
}

static const struct field_info *path_find_const(const ProtobufCMessage *message, const char *name, const ProtobufCMessage **holder)
{
    ProtobufCMessage *found = NULL;
    const struct field_info *field = path_find((ProtobufCMessage *)message, name, NULL, &found); /* without an arena nothing is changed */
    *holder = found;
    return field;
}

bool codec_has_field(const ProtobufCMessageDescriptor *descriptor, const char *name)
{
    const struct message_info *info = registry_message(descriptor);
    for (;;) {
        size_t len = strcspn(name, ".");
        const struct field_info *field = field_find(info, name, len);
        if (!field || !name[len])
            return field != NULL;
        if (!is_singular_message(field))
            return false;
        info = field->message;
        name += len + 1;
    }
}

const char *codec_get_string(const ProtobufCMessage *message, const char *name)
{
    const ProtobufCMessage *holder = NULL;
    const struct field_info *info = path_find_const(message, name, &holder);
    if (!info || !holder || info->field->type != PROTOBUF_C_TYPE_STRING || info->field->label == PROTOBUF_C_LABEL_REPEATED ||
        !field_is_set(holder, info->field))
        return "";
    const char *text = *(char *const *)field_at(holder, info->field);
    return text ? text : "";
}

int64_t codec_get_int(const ProtobufCMessage *message, const char *name)
{
    const ProtobufCMessage *holder = NULL;
    const struct field_info *info = path_find_const(message, name, &holder);
    if (!info || !holder || info->field->label == PROTOBUF_C_LABEL_REPEATED || !field_is_set(holder, info->field))
        return 0;
    const void *at = field_at(holder, info->field);
    switch (info->field->type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return *(const int64_t *)at;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return *(const uint32_t *)at;
    case PROTOBUF_C_TYPE_BOOL:
        return *(const protobuf_c_boolean *)at != 0;
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_ENUM:
        return *(const int32_t *)at;
    default:
        return 0;
    }
}

size_t codec_repeated_count(const ProtobufCMessage *message, const char *name)
{
    const ProtobufCMessage *holder = NULL;
    const struct field_info *info = path_find_const(message, name, &holder);
    return info && holder && info->field->label == PROTOBUF_C_LABEL_REPEATED ? *field_count(holder, info->field) : 0;
}

void codec_field_to_json(const ProtobufCMessage *message, const char *field, struct buf *out)
{
    if (str_empty(field)) {
        codec_to_json(message, out);
        return;
    }
    const ProtobufCMessage *holder = NULL;
    const struct field_info *info = path_find_const(message, field, &holder);
    if (info && holder)
        codec__write_field(holder, info, out);
    else
        buf_add(out, "null", 4);
}

/* ---- text to a scalar ---- */

static int refuse(struct error *err, const char *name, const char *rule)
{
    return error_set(err, STATUS_INVALID_ARGUMENT, "invalid value for \"%s\": %s", name, rule);
}

static int parse_u64(const char *text, uint64_t *out)
{
    if (!*text || text[strspn(text, "0123456789")])
        return -1;
    errno = 0;
    *out = strtoull(text, NULL, 10);
    return errno ? -1 : 0;
}

static int parse_real(const char *text, double *out)
{
    char *end;
    if (!*text || text[strspn(text, "0123456789+-.eE")])
        return -1;
    *out = strtod(text, &end);
    return *end || !isfinite(*out) ? -1 : 0;
}

static int set_enum(const ProtobufCFieldDescriptor *field, const char *text, int64_t *out)
{
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value_by_name(field->descriptor, text);
    if (!value)
        return parse_i64(text, INT32_MIN, INT32_MAX, out);
    *out = value->value;
    return 0;
}

static int set_bytes(ProtobufCBinaryData *at, const char *name, const char *text, struct arena *arena, struct error *err)
{
    size_t len;
    uint8_t *data = base64_decode(text, &len);
    if (!data)
        return refuse(err, name, "expected base64 text");
    at->data = arena_memdup(arena, data, len);
    at->len = len;
    free(data);
    return STATUS_OK;
}

static int set_scalar(const ProtobufCFieldDescriptor *field, void *at, const char *name, const char *text, struct arena *arena, struct error *err)
{
    int64_t number = 0;
    uint64_t natural = 0;
    double real;
    bool truth;
    switch (field->type) {
    case PROTOBUF_C_TYPE_STRING:
        if (!utf8_valid(text, strlen(text)))
            return refuse(err, name, "text that is not valid UTF-8");
        *(char **)at = arena_strdup(arena, text);
        return STATUS_OK;
    case PROTOBUF_C_TYPE_BYTES:
        return set_bytes(at, name, text, arena, err);
    case PROTOBUF_C_TYPE_BOOL:
        if (parse_bool(text, &truth) < 0)
            return refuse(err, name, "expected boolean");
        *(protobuf_c_boolean *)at = truth;
        return STATUS_OK;
    case PROTOBUF_C_TYPE_DOUBLE:
    case PROTOBUF_C_TYPE_FLOAT:
        if (parse_real(text, &real) < 0)
            return refuse(err, name, "expected number");
        if (field->type == PROTOBUF_C_TYPE_DOUBLE)
            *(double *)at = real;
        else
            *(float *)at = (float)real;
        return STATUS_OK;
    case PROTOBUF_C_TYPE_ENUM:
        if (set_enum(field, text, &number) < 0)
            return refuse(err, name, "unknown name");
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        if (parse_u64(text, &natural) < 0)
            return refuse(err, name, "expected integer");
        *(uint64_t *)at = natural;
        return STATUS_OK;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        if (parse_i64(text, INT64_MIN, INT64_MAX, (int64_t *)at) < 0)
            return refuse(err, name, "expected integer");
        return STATUS_OK;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        if (parse_i64(text, 0, UINT32_MAX, &number) < 0)
            return refuse(err, name, "expected integer");
        break;
    default:
        if (parse_i64(text, INT32_MIN, INT32_MAX, &number) < 0)
            return refuse(err, name, "expected integer");
    }
    *(uint32_t *)at = (uint32_t)number;
    return STATUS_OK;
}

static int set_timestamp(ProtobufCMessage *holder, const ProtobufCFieldDescriptor *field, const char *name, const char *text, struct arena *arena,
                         struct error *err)
{
    int64_t seconds;
    int32_t nanos;
    if (time_parse_rfc3339_parts(text, &seconds, &nanos) < 0)
        return refuse(err, name, "expected RFC 3339 time");
    Google__Protobuf__Timestamp *time = (Google__Protobuf__Timestamp *)codec__new(&google__protobuf__timestamp__descriptor, arena);
    time->seconds = seconds;
    time->nanos = nanos;
    *(Google__Protobuf__Timestamp **)codec__prepare(holder, field) = time;
    return STATUS_OK;
}

int codec_set_text(ProtobufCMessage *message, const char *name, const char *text, struct arena *arena, struct error *err)
{
    if (!codec_has_field(message->descriptor, name)) /* asked first: nothing is made for a path that leads nowhere */
        return error_set(err, STATUS_NOT_FOUND, "unknown field \"%s\"", name);
    ProtobufCMessage *holder = NULL;
    const struct field_info *info = path_find(message, name, arena, &holder);
    covey_assert(info && holder);
    const ProtobufCFieldDescriptor *field = info->field;
    bool repeated = field->label == PROTOBUF_C_LABEL_REPEATED;
    if (info->message && info->message->kind == MESSAGE_TIMESTAMP && !repeated)
        return set_timestamp(holder, field, name, text, arena, err);
    if (info->message)
        return refuse(err, name, "cannot be set from text");
    uint64_t space[2] = {0}; /* any scalar; the message changes only when the value is good */
    int status = set_scalar(field, space, name, text, arena, err);
    if (status != STATUS_OK)
        return status;
    size_t size = codec__size(field->type);
    if (!repeated) {
        memcpy(codec__prepare(holder, field), space, size);
        return STATUS_OK;
    }
    size_t count = *field_count(holder, field); /* a URL has few of them: the array is made anew each time */
    char **data = field_at(holder, field), *grown = arena_alloc(arena, (count + 1) * size);
    if (count)
        memcpy(grown, *data, count * size);
    memcpy(grown + count * size, space, size);
    *data = grown;
    *field_count(holder, field) = count + 1;
    return STATUS_OK;
}
