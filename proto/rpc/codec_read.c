/* JSON (jansson values) to messages in an arena. Every refusal names the field. Pure; thread: any. Recursion is bounded by
 * CODEC_DEPTH_MAX, counted as the wire does (map entries too), so that what is read here can also be sent. */
#include "codec_private.h"
#include "google/protobuf/duration.pb-c.h"
#include "google/protobuf/struct.pb-c.h"
#include "google/protobuf/timestamp.pb-c.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct path { /* where we are, for error texts; lives on the stack */
    const struct path *up;
    const char *name; /* NULL: an element of a list */
    size_t index;
};

struct reader {
    struct arena *arena;
    struct error *err;
};

static int read_body(struct reader *reader, const struct message_info *info, ProtobufCMessage *message, const json_t *json, const struct path *path,
                     unsigned depth);

static void path_text(const struct path *path, struct buf *out)
{
    if (path->up)
        path_text(path->up, out);
    if (!path->name)
        buf_printf(out, "[%zu]", path->index);
    else
        buf_printf(out, "%s%s", out->len ? "." : "", path->name);
}

static int refuse(struct reader *reader, const struct path *path, const char *rule)
{
    if (!path)
        return error_set(reader->err, STATUS_INVALID_ARGUMENT, "invalid value: %s", rule);
    struct buf text = {0};
    path_text(path, &text);
    error_set(reader->err, STATUS_INVALID_ARGUMENT, "invalid value for \"%s\": %s", text.data, rule);
    buf_free(&text);
    return STATUS_INVALID_ARGUMENT;
}

void *codec__prepare(ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    void *at = field_at(message, field);
    if (field_is_oneof(field)) {
        uint32_t *which = (uint32_t *)((char *)message + field->quantifier_offset);
        if (*which != field->id)
            memset(at, 0, codec__size(field->type));
        *which = field->id;
    } else if (field->label == PROTOBUF_C_LABEL_OPTIONAL && field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE) {
        *(protobuf_c_boolean *)((char *)message + field->quantifier_offset) = true;
    }
    return at;
}

/* ---- scalars ---- */

static int read_string(struct reader *reader, char **at, const json_t *json, const struct path *path)
{
    if (!json_is_string(json))
        return refuse(reader, path, "expected string");
    const char *text = json_string_value(json);
    size_t len = json_string_length(json);
    if (strlen(text) != len)
        return refuse(reader, path, "text with a NUL byte");
    *at = arena_memdup(reader->arena, text, len + 1);
    return STATUS_OK;
}

static int read_bytes(struct reader *reader, ProtobufCBinaryData *at, const json_t *json, const struct path *path)
{
    size_t len = 0;
    uint8_t *data = json_is_string(json) ? base64_decode(json_string_value(json), &len) : NULL;
    if (!data)
        return refuse(reader, path, "expected base64 text");
    at->data = arena_memdup(reader->arena, data, len);
    at->len = len;
    free(data);
    return STATUS_OK;
}

static int read_integer(struct reader *reader, const json_t *json, int64_t min, int64_t max, int64_t *out, const struct path *path)
{
    if (json_is_real(json)) {
        double value = json_real_value(json);
        if (value != trunc(value))
            return refuse(reader, path, "expected integer");
        if (fabs(value) >= 9007199254740992.0 || value < (double)min || value > (double)max)
            return refuse(reader, path, "number out of range");
        *out = (int64_t)value;
        return STATUS_OK;
    }
    if (!json_is_integer(json))
        return refuse(reader, path, "expected integer");
    *out = json_integer_value(json);
    return *out < min || *out > max ? refuse(reader, path, "number out of range") : STATUS_OK;
}

static int read_enum(struct reader *reader, const ProtobufCEnumDescriptor *descriptor, const json_t *json, int64_t *out, const struct path *path)
{
    if (!json_is_string(json))
        return read_integer(reader, json, INT32_MIN, INT32_MAX, out, path);
    const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value_by_name(descriptor, json_string_value(json));
    if (!value)
        return refuse(reader, path, "unknown name");
    *out = value->value;
    return STATUS_OK;
}

/* `at` is written only on success. */
static int read_scalar(struct reader *reader, const ProtobufCFieldDescriptor *field, void *at, const json_t *json, const struct path *path)
{
    int64_t value = 0;
    int status = STATUS_OK;
    switch (field->type) {
    case PROTOBUF_C_TYPE_STRING:
        return read_string(reader, at, json, path);
    case PROTOBUF_C_TYPE_BYTES:
        return read_bytes(reader, at, json, path);
    case PROTOBUF_C_TYPE_BOOL:
        if (!json_is_boolean(json))
            return refuse(reader, path, "expected boolean");
        *(protobuf_c_boolean *)at = json_is_true(json);
        return STATUS_OK;
    case PROTOBUF_C_TYPE_DOUBLE:
    case PROTOBUF_C_TYPE_FLOAT:
        if (!json_is_number(json))
            return refuse(reader, path, "expected number");
        if (field->type == PROTOBUF_C_TYPE_DOUBLE)
            *(double *)at = json_number_value(json);
        else
            *(float *)at = (float)json_number_value(json);
        return STATUS_OK;
    case PROTOBUF_C_TYPE_ENUM:
        status = read_enum(reader, field->descriptor, json, &value, path);
        break;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        status = read_integer(reader, json, 0, UINT32_MAX, &value, path);
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        status = read_integer(reader, json, 0, INT64_MAX, &value, path);
        break;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        status = read_integer(reader, json, INT64_MIN, INT64_MAX, &value, path);
        break;
    default:
        status = read_integer(reader, json, INT32_MIN, INT32_MAX, &value, path);
    }
    if (status != STATUS_OK)
        return status;
    if (codec__size(field->type) == 8)
        *(int64_t *)at = value;
    else
        *(uint32_t *)at = (uint32_t)value; /* the low 32 bits are the value for signed types too */
    return STATUS_OK;
}

/* ---- lists and maps ---- */

/* An element of a list or a map's value; null stands for the type's zero value. */
static int read_element(struct reader *reader, const ProtobufCFieldDescriptor *field, const struct message_info *info, void *at, const json_t *json,
                        const struct path *path, unsigned depth)
{
    bool null = json_is_null(json);
    if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        ProtobufCMessage *message = codec__new(info->descriptor, reader->arena);
        *(ProtobufCMessage **)at = message;
        return null && info->kind != MESSAGE_VALUE ? STATUS_OK : read_body(reader, info, message, json, path, depth + 1);
    }
    if (!null)
        return read_scalar(reader, field, at, json, path);
    if (field->type == PROTOBUF_C_TYPE_STRING)
        *(char **)at = (char *)protobuf_c_empty_string;
    return STATUS_OK;
}

static int read_list(struct reader *reader, const struct field_info *info, ProtobufCMessage *message, const json_t *json, const struct path *path,
                     unsigned depth)
{
    if (!json_is_array(json))
        return refuse(reader, path, "expected list");
    size_t count = json_array_size(json), step = codec__size(info->field->type);
    char *data = count ? arena_alloc(reader->arena, count * step) : NULL;
    for (size_t i = 0; i < count; i++) {
        struct path here = {path, NULL, i};
        int status = read_element(reader, info->field, info->message, data + i * step, json_array_get(json, i), &here, depth);
        if (status != STATUS_OK)
            return status;
    }
    *(char **)field_at(message, info->field) = data;
    *field_count(message, info->field) = count;
    return STATUS_OK;
}

static int read_key(struct reader *reader, const ProtobufCFieldDescriptor *field, void *at, const char *key, const struct path *path)
{
    if (field->type == PROTOBUF_C_TYPE_STRING) {
        *(char **)at = arena_strdup(reader->arena, key);
        return STATUS_OK;
    }
    if (field->type == PROTOBUF_C_TYPE_BOOL) {
        if (strcmp(key, "true") != 0 && strcmp(key, "false") != 0)
            return refuse(reader, path, "expected true or false as key");
        *(protobuf_c_boolean *)at = *key == 't';
        return STATUS_OK;
    }
    int64_t number;
    if (parse_i64(key, INT64_MIN, INT64_MAX, &number) < 0)
        return refuse(reader, path, "expected integer as key");
    json_t *json = json_integer(number);
    if (!json)
        core_oom();
    int status = read_scalar(reader, field, at, json, path);
    json_decref(json);
    return status;
}

static int read_map(struct reader *reader, const struct field_info *info, ProtobufCMessage *message, const json_t *json, const struct path *path,
                    unsigned depth)
{
    if (!json_is_object(json))
        return refuse(reader, path, "expected object");
    const ProtobufCMessageDescriptor *entry = info->message->descriptor;
    const ProtobufCFieldDescriptor *fields = entry->fields;
    size_t count = json_object_size(json), n = 0;
    ProtobufCMessage **entries = count ? arena_alloc(reader->arena, count * sizeof(*entries)) : NULL;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)json, key, value)
    {
        struct path here = {path, key, 0};
        entries[n] = codec__new(entry, reader->arena);
        int status = read_key(reader, &fields[0], field_at(entries[n], &fields[0]), key, &here);
        if (status == STATUS_OK)
            status = read_element(reader, &fields[1], info->message->fields[1].message, field_at(entries[n], &fields[1]), value, &here, depth + 1);
        if (status != STATUS_OK)
            return status;
        n++;
    }
    *(ProtobufCMessage ***)field_at(message, info->field) = entries;
    *field_count(message, info->field) = n;
    return STATUS_OK;
}

/* ---- messages ---- */

static int read_timestamp(struct reader *reader, Google__Protobuf__Timestamp *time, const json_t *json, const struct path *path)
{
    int64_t seconds;
    int32_t nanos;
    if (!json_is_string(json) || time_parse_rfc3339_parts(json_string_value(json), &seconds, &nanos) < 0)
        return refuse(reader, path, "expected RFC 3339 time");
    time->seconds = seconds;
    time->nanos = nanos;
    return STATUS_OK;
}

/* What reads as "no time": "" and the zero time. */
static bool is_zero_time(const json_t *json)
{
    const char *text = json_string_value(json);
    return text && (!*text || strcmp(text, "0001-01-01T00:00:00Z") == 0);
}

/* "1.5s", as the standard mapping of protobuf to JSON has it. */
static int read_duration(struct reader *reader, Google__Protobuf__Duration *duration, const json_t *json, const struct path *path)
{
    static const int64_t seconds_max = 315576000000; /* google.protobuf.Duration's own range */
    static const char rule[] = "expected seconds like \"1.5s\"";
    const char *text = json_string_value(json);
    if (!text)
        return refuse(reader, path, rule);
    bool negative = *text == '-';
    text += negative;
    size_t digits = strspn(text, "0123456789");
    char whole[16];
    if (!digits || digits >= sizeof(whole))
        return refuse(reader, path, rule);
    memcpy(whole, text, digits);
    whole[digits] = 0;
    int64_t seconds;
    if (parse_i64(whole, 0, seconds_max, &seconds) < 0)
        return refuse(reader, path, "number out of range");
    text += digits;
    int32_t nanos = 0, unit = 100000000;
    if (*text == '.') {
        for (text++; *text >= '0' && *text <= '9'; text++, unit /= 10)
            nanos += unit * (*text - '0');
    }
    if (strcmp(text, "s") != 0)
        return refuse(reader, path, rule);
    duration->seconds = negative ? -seconds : seconds;
    duration->nanos = negative ? -nanos : nanos;
    return STATUS_OK;
}

static int read_value(struct reader *reader, Google__Protobuf__Value *value, const json_t *json, const struct path *path, unsigned depth)
{
    switch (json_typeof(json)) {
    case JSON_NULL:
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NULL_VALUE;
        value->null_value = 0;
        return STATUS_OK;
    case JSON_TRUE:
    case JSON_FALSE:
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE;
        value->bool_value = json_is_true(json);
        return STATUS_OK;
    case JSON_INTEGER:
    case JSON_REAL:
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NUMBER_VALUE;
        value->number_value = json_number_value(json);
        return STATUS_OK;
    case JSON_STRING:
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
        return read_string(reader, &value->string_value, json, path);
    case JSON_OBJECT:
    case JSON_ARRAY:
        break;
    }
    bool list = json_is_array(json);
    const struct message_info *info =
        registry_message(list ? &google__protobuf__list_value__descriptor : &google__protobuf__struct__descriptor);
    ProtobufCMessage *below = codec__new(info->descriptor, reader->arena);
    if (list) {
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_LIST_VALUE;
        value->list_value = (Google__Protobuf__ListValue *)below;
    } else {
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRUCT_VALUE;
        value->struct_value = (Google__Protobuf__Struct *)below;
    }
    return read_body(reader, info, below, json, path, depth + 1);
}

/* Reads one field, not null, into the message. */
static int read_field(struct reader *reader, const struct field_info *info, ProtobufCMessage *message, const json_t *json, const struct path *path,
                      unsigned depth)
{
    const ProtobufCFieldDescriptor *field = info->field;
    if (info->is_map)
        return read_map(reader, info, message, json, path, depth);
    if (field->label == PROTOBUF_C_LABEL_REPEATED)
        return read_list(reader, info, message, json, path, depth);
    if (field->type != PROTOBUF_C_TYPE_MESSAGE) {
        uint64_t space[2] = {0}; /* any scalar; the message changes only when the value is good */
        int status = read_scalar(reader, field, space, json, path);
        if (status == STATUS_OK)
            memcpy(codec__prepare(message, field), space, codec__size(field->type));
        return status;
    }
    ProtobufCMessage **slot = field_at(message, field);
    if (info->message->kind == MESSAGE_TIMESTAMP && is_zero_time(json)) {
        if (field_is_set(message, field))
            *slot = NULL;
        if (field_is_oneof(field) && *(uint32_t *)((char *)message + field->quantifier_offset) == field->id)
            *(uint32_t *)((char *)message + field->quantifier_offset) = 0;
        return STATUS_OK;
    }
    /* Into a copy of nothing or into what is there: a body is merged on top of path and query fields. */
    ProtobufCMessage *below = field_is_set(message, field) ? *slot : NULL;
    if (!below)
        below = codec__new(info->message->descriptor, reader->arena);
    int status = read_body(reader, info->message, below, json, path, depth + 1);
    if (status == STATUS_OK)
        *(ProtobufCMessage **)codec__prepare(message, field) = below;
    return status;
}

static int read_object(struct reader *reader, const struct message_info *info, ProtobufCMessage *message, const json_t *json, const struct path *path,
                       unsigned depth)
{
    if (!json_is_object(json))
        return refuse(reader, path, "expected object");
    for (unsigned i = 0; i < info->descriptor->n_fields; i++) {
        const struct field_info *field = &info->fields[i];
        if (*field->header || (field->message && field->message->kind == MESSAGE_FIELD_MASK))
            continue;
        if (field->message && field->message->json_flatten)
            continue; /* output only */
        const json_t *value = json_object_get(json, field->json_name);
        if (!value || json_is_null(value))
            continue;
        struct path here = {path, field->json_name, 0};
        int status = read_field(reader, field, message, value, &here, depth);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

/* Fills an existing message. `depth` counts messages from 1. */
static int read_body(struct reader *reader, const struct message_info *info, ProtobufCMessage *message, const json_t *json, const struct path *path,
                     unsigned depth)
{
    if (depth > CODEC_DEPTH_MAX)
        return refuse(reader, path, "nested too deeply");
    switch (info->kind) {
    case MESSAGE_TIMESTAMP:
        return read_timestamp(reader, (Google__Protobuf__Timestamp *)message, json, path);
    case MESSAGE_DURATION:
        return read_duration(reader, (Google__Protobuf__Duration *)message, json, path);
    case MESSAGE_VALUE:
        return read_value(reader, (Google__Protobuf__Value *)message, json, path, depth);
    case MESSAGE_STRUCT:
    case MESSAGE_LIST_VALUE:
    case MESSAGE_WRAPPER:
        return read_field(reader, &info->fields[0], message, json, path, depth);
    case MESSAGE_FIELD_MASK:
        return STATUS_OK;
    case MESSAGE_PLAIN:
        break;
    }
    if (info->json_list)
        return read_field(reader, &info->fields[0], message, json, path, depth);
    return read_object(reader, info, message, json, path, depth);
}

/* ---- public ---- */

int codec_merge_json(ProtobufCMessage *message, const json_t *object, struct arena *arena, struct error *err)
{
    struct reader reader = {arena, err};
    if (!object)
        return refuse(&reader, NULL, "expected object");
    return read_body(&reader, registry_message(message->descriptor), message, object, NULL, 1);
}

ProtobufCMessage *codec_from_json(const ProtobufCMessageDescriptor *descriptor, const json_t *object, struct arena *arena, struct error *err)
{
    ProtobufCMessage *message = codec__new(descriptor, arena);
    return codec_merge_json(message, object, arena, err) == STATUS_OK ? message : NULL;
}

void codec_present_keys(const json_t *object, struct arena *arena, char ***paths, size_t *count)
{
    size_t max = json_is_object(object) ? json_object_size(object) : 0, n = 0;
    *paths = max ? arena_alloc(arena, max * sizeof(**paths)) : NULL;
    const char *key;
    json_t *value;
    if (max) {
        json_object_foreach((json_t *)object, key, value)
        {
            if (!json_is_null(value))
                (*paths)[n++] = arena_strdup(arena, key);
        }
    }
    *count = n;
}

Google__Protobuf__Struct *codec_struct_from_json(const char *json_text, struct arena *arena, struct error *err)
{
    if (str_empty(json_text))
        return NULL;
    json_error_t problem;
    json_t *json = json_loads(json_text, 0, &problem);
    if (!json) {
        error_set(err, STATUS_INVALID_ARGUMENT, "invalid JSON: %s at line %d", problem.text, problem.line);
        return NULL;
    }
    ProtobufCMessage *message = codec_from_json(&google__protobuf__struct__descriptor, json, arena, err);
    json_decref(json);
    return (Google__Protobuf__Struct *)message;
}
