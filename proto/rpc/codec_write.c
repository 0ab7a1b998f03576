/* Messages to JSON text, straight into a buffer: no tree and no allocation per field, because every list answer passes here.
 * Cannot fail; pure; thread: any. */
#include "codec_private.h"
#include "google/protobuf/duration.pb-c.h"
#include "google/protobuf/struct.pb-c.h"
#include "google/protobuf/timestamp.pb-c.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WRITE_DEPTH_MAX = 4 * CODEC_DEPTH_MAX, /* deeper messages can only be our own mistake: what comes in is checked */
    MAP_SORTED_ON_STACK = 64,
};

static const char time_unset[] = "\"0001-01-01T00:00:00Z\"";

static void write_message(const struct message_info *info, const ProtobufCMessage *message, struct buf *out, int depth);
static void write_value(const Google__Protobuf__Value *value, struct buf *out, int depth);

#define PUT(out, literal) buf_add(out, literal, sizeof(literal) - 1)

static void write_unsigned(uint64_t value, bool negative, struct buf *out)
{
    char text[24], *p = text + sizeof(text);
    do
        *--p = (char)('0' + value % 10);
    while (value /= 10);
    if (negative)
        *--p = '-';
    buf_add(out, p, (size_t)(text + sizeof(text) - p));
}

static void write_signed(int64_t value, struct buf *out)
{
    write_unsigned(value < 0 ? -(uint64_t)value : (uint64_t)value, value < 0, out);
}

/* The shortest text that reads back as the same number; integral numbers without a fraction; null for what JSON cannot say. */
static void write_double(double value, bool is_float, struct buf *out)
{
    if (!isfinite(value)) {
        PUT(out, "null");
        return;
    }
    if (value == trunc(value) && fabs(value) < 9007199254740992.0) {
        write_signed((int64_t)value, out);
        return;
    }
    char text[40];
    for (int digits = is_float ? 6 : 15; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (is_float ? strtof(text, NULL) == (float)value : strtod(text, NULL) == value)
            break;
    }
    for (char *p = text; *p; p++) /* a locale may write a comma */
        if (*p == ',')
            *p = '.';
    buf_puts(out, text);
}

static void write_scalar(ProtobufCType type, const void *at, struct buf *out)
{
    switch (type) {
    case PROTOBUF_C_TYPE_STRING: {
        const char *text = *(char *const *)at;
        buf_json_string(out, text ? text : "");
        break;
    }
    case PROTOBUF_C_TYPE_BOOL:
        if (*(const protobuf_c_boolean *)at)
            PUT(out, "true");
        else
            PUT(out, "false");
        break;
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_ENUM:
        write_signed(*(const int32_t *)at, out);
        break;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        write_signed(*(const int64_t *)at, out);
        break;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        write_unsigned(*(const uint32_t *)at, false, out);
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        write_unsigned(*(const uint64_t *)at, false, out);
        break;
    case PROTOBUF_C_TYPE_DOUBLE:
        write_double(*(const double *)at, false, out);
        break;
    case PROTOBUF_C_TYPE_FLOAT:
        write_double((double)*(const float *)at, true, out);
        break;
    case PROTOBUF_C_TYPE_BYTES: {
        const ProtobufCBinaryData *bytes = at;
        PUT(out, "\"");
        buf_base64(out, bytes->data, bytes->len);
        PUT(out, "\"");
        break;
    }
    case PROTOBUF_C_TYPE_MESSAGE:
        core_panic(__FILE__, __LINE__, "a message is not a scalar");
    }
}

/* ---- maps ---- */

int codec__compare_keys(const struct message_info *entry, const ProtobufCMessage *a, const ProtobufCMessage *b)
{
    const ProtobufCFieldDescriptor *key = &entry->descriptor->fields[0];
    const void *x = field_at(a, key), *y = field_at(b, key);
    switch (key->type) {
    case PROTOBUF_C_TYPE_STRING: {
        const char *s = *(char *const *)x, *t = *(char *const *)y;
        return strcmp(s ? s : "", t ? t : "");
    }
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        return (*(const int64_t *)x > *(const int64_t *)y) - (*(const int64_t *)x < *(const int64_t *)y);
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        return (*(const uint64_t *)x > *(const uint64_t *)y) - (*(const uint64_t *)x < *(const uint64_t *)y);
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        return (*(const uint32_t *)x > *(const uint32_t *)y) - (*(const uint32_t *)x < *(const uint32_t *)y);
    default:
        return (*(const int32_t *)x > *(const int32_t *)y) - (*(const int32_t *)x < *(const int32_t *)y);
    }
}

/* Merge sort from the bottom up: stable, and linear on what is sorted already. */
void codec__sort_entries(const struct message_info *entry, ProtobufCMessage **entries, size_t count)
{
    bool sorted = true;
    for (size_t i = 1; i < count && sorted; i++)
        sorted = codec__compare_keys(entry, entries[i - 1], entries[i]) <= 0;
    if (sorted)
        return;
    ProtobufCMessage *stack[MAP_SORTED_ON_STACK], **from = entries;
    ProtobufCMessage **heap = count > MAP_SORTED_ON_STACK ? xmalloc(count * sizeof(*heap)) : NULL;
    ProtobufCMessage **to = heap ? heap : stack;
    for (size_t width = 1; width < count; width *= 2) {
        for (size_t low = 0; low < count; low += 2 * width) {
            size_t middle = low + width < count ? low + width : count, high = low + 2 * width < count ? low + 2 * width : count;
            for (size_t i = low, j = middle, k = low; k < high; k++) {
                bool left = i < middle && (j >= high || codec__compare_keys(entry, from[i], from[j]) <= 0);
                to[k] = from[left ? i++ : j++];
            }
        }
        ProtobufCMessage **swap = from;
        from = to;
        to = swap;
    }
    if (from != entries)
        memcpy(entries, from, count * sizeof(*entries));
    free(heap);
}

static void write_map(const struct message_info *entry, ProtobufCMessage *const *entries, size_t count, struct buf *out, int depth)
{
    ProtobufCMessage *stack[MAP_SORTED_ON_STACK], **sorted = count > MAP_SORTED_ON_STACK ? xmalloc(count * sizeof(*sorted)) : stack;
    if (count)
        memcpy(sorted, entries, count * sizeof(*sorted));
    codec__sort_entries(entry, sorted, count);
    const ProtobufCFieldDescriptor *key = &entry->descriptor->fields[0], *value = &entry->descriptor->fields[1];
    bool first = true;
    PUT(out, "{");
    for (size_t i = 0; i < count; i++) {
        if (i + 1 < count && codec__compare_keys(entry, sorted[i], sorted[i + 1]) == 0)
            continue; /* the last one wins */
        if (!first)
            PUT(out, ",");
        first = false;
        const void *at = field_at(sorted[i], key);
        if (key->type != PROTOBUF_C_TYPE_STRING)
            PUT(out, "\"");
        write_scalar(key->type, at, out);
        if (key->type != PROTOBUF_C_TYPE_STRING)
            PUT(out, "\"");
        PUT(out, ":");
        at = field_at(sorted[i], value);
        if (value->type == PROTOBUF_C_TYPE_MESSAGE)
            write_message(entry->fields[1].message, *(ProtobufCMessage *const *)at, out, depth + 1);
        else
            write_scalar(value->type, at, out);
    }
    PUT(out, "}");
    if (sorted != stack)
        free(sorted);
}

/* ---- well-known types ---- */

static void write_list_value(const Google__Protobuf__ListValue *list, struct buf *out, int depth)
{
    PUT(out, "[");
    for (size_t i = 0; i < list->n_values; i++) {
        if (i)
            PUT(out, ",");
        write_value(list->values[i], out, depth + 1);
    }
    PUT(out, "]");
}

static void write_value(const Google__Protobuf__Value *value, struct buf *out, int depth)
{
    switch (value ? (int)value->kind_case : 0) {
    case GOOGLE__PROTOBUF__VALUE__KIND_NUMBER_VALUE:
        write_double(value->number_value, false, out);
        break;
    case GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE:
        buf_json_string(out, value->string_value ? value->string_value : "");
        break;
    case GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE:
        if (value->bool_value)
            PUT(out, "true");
        else
            PUT(out, "false");
        break;
    case GOOGLE__PROTOBUF__VALUE__KIND_STRUCT_VALUE:
        write_message(registry_message(&google__protobuf__struct__descriptor), (const ProtobufCMessage *)value->struct_value, out, depth + 1);
        break;
    case GOOGLE__PROTOBUF__VALUE__KIND_LIST_VALUE:
        covey_assert(depth < WRITE_DEPTH_MAX);
        if (value->list_value)
            write_list_value(value->list_value, out, depth + 1);
        else
            PUT(out, "null");
        break;
    default:
        PUT(out, "null");
    }
}

static void write_timestamp(const Google__Protobuf__Timestamp *time, struct buf *out)
{
    char text[48];
    text[0] = '"';
    time_rfc3339_parts(time->seconds, time->nanos, text + 1, sizeof(text) - 2);
    size_t len = strlen(text);
    text[len] = '"';
    buf_add(out, text, len + 1);
}

static void write_duration(const Google__Protobuf__Duration *duration, struct buf *out)
{
    bool negative = duration->seconds < 0 || duration->nanos < 0;
    uint64_t seconds = duration->seconds < 0 ? -(uint64_t)duration->seconds : (uint64_t)duration->seconds;
    unsigned nanos = duration->nanos < 0 ? -(unsigned)duration->nanos : (unsigned)duration->nanos;
    PUT(out, "\"");
    write_unsigned(seconds, negative, out);
    if (nanos) {
        char text[16];
        int n = snprintf(text, sizeof(text), ".%09u", nanos);
        while (text[n - 1] == '0')
            n--;
        buf_add(out, text, (size_t)n);
    }
    PUT(out, "s\"");
}

/* ---- messages ---- */

static void write_repeated(const struct field_info *info, const ProtobufCMessage *message, struct buf *out, int depth)
{
    const ProtobufCFieldDescriptor *field = info->field;
    size_t count = *field_count(message, field);
    const char *data = *(char *const *)field_at(message, field);
    if (info->is_map) {
        write_map(info->message, (ProtobufCMessage *const *)data, count, out, depth);
        return;
    }
    size_t step = codec__size(field->type);
    PUT(out, "[");
    for (size_t i = 0; i < count; i++, data += step) {
        if (i)
            PUT(out, ",");
        if (field->type == PROTOBUF_C_TYPE_MESSAGE)
            write_message(info->message, *(ProtobufCMessage *const *)data, out, depth + 1);
        else
            write_scalar(field->type, data, out);
    }
    PUT(out, "]");
}

static void write_field(const ProtobufCMessage *message, const struct field_info *info, struct buf *out, int depth)
{
    const ProtobufCFieldDescriptor *field = info->field;
    if (field->label == PROTOBUF_C_LABEL_REPEATED) {
        write_repeated(info, message, out, depth);
    } else if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        if (field_is_set(message, field))
            write_message(info->message, *(ProtobufCMessage *const *)field_at(message, field), out, depth + 1);
        else
            write_message(info->message, NULL, out, depth + 1);
    } else if (field_is_set(message, field)) {
        write_scalar(field->type, field_at(message, field), out);
    } else {
        PUT(out, "null");
    }
}

void codec__write_field(const ProtobufCMessage *message, const struct field_info *info, struct buf *out) { write_field(message, info, out, 0); }

/* Whether a field without explicit presence holds its type's zero value. */
static bool is_empty(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    const void *at = field_at(message, field);
    if (field->label == PROTOBUF_C_LABEL_REPEATED)
        return !*field_count(message, field);
    switch (field->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        return !*(ProtobufCMessage *const *)at;
    case PROTOBUF_C_TYPE_STRING:
        return str_empty(*(char *const *)at);
    case PROTOBUF_C_TYPE_BYTES:
        return !((const ProtobufCBinaryData *)at)->len;
    case PROTOBUF_C_TYPE_DOUBLE:
        return *(const double *)at == 0;
    case PROTOBUF_C_TYPE_FLOAT:
        return *(const float *)at == 0;
    default:
        return codec__size(field->type) == 8 ? !*(const uint64_t *)at : !*(const uint32_t *)at;
    }
}

static bool is_written(const ProtobufCMessage *message, const struct field_info *info)
{
    const ProtobufCFieldDescriptor *field = info->field;
    if (*info->header || (info->message && info->message->kind == MESSAGE_FIELD_MASK))
        return false;
    if (info->explicit_presence)
        return field_is_set(message, field);
    return !info->omit_empty || !is_empty(message, field);
}

static void write_members(const struct message_info *info, const ProtobufCMessage *message, bool first, struct buf *out, int depth)
{
    covey_assert(depth < WRITE_DEPTH_MAX);
    for (unsigned i = 0; i < info->descriptor->n_fields; i++) {
        const struct field_info *field = &info->fields[i];
        if (!is_written(message, field))
            continue;
        if (field->message && field->message->json_flatten && field->field->label != PROTOBUF_C_LABEL_REPEATED) {
            size_t before = out->len;
            if (field_is_set(message, field->field))
                write_members(field->message, *(ProtobufCMessage *const *)field_at(message, field->field), first, out, depth + 1);
            first = first && out->len == before;
            continue;
        }
        size_t len = strlen(field->json_name); /* names are plain identifiers: nothing to escape */
        char *at = buf_grow(out, len + 3 + !first);
        if (!first)
            *at++ = ',';
        first = false;
        *at++ = '"';
        memcpy(at, field->json_name, len);
        memcpy(at + len, "\":", 2);
        write_field(message, field, out, depth);
    }
}

/* `message` NULL = unset. */
static void write_message(const struct message_info *info, const ProtobufCMessage *message, struct buf *out, int depth)
{
    covey_assert(depth < WRITE_DEPTH_MAX);
    if (!message) {
        if (info->kind == MESSAGE_TIMESTAMP)
            buf_add(out, time_unset, sizeof(time_unset) - 1);
        else
            PUT(out, "null");
        return;
    }
    switch (info->kind) {
    case MESSAGE_TIMESTAMP:
        write_timestamp((const Google__Protobuf__Timestamp *)message, out);
        return;
    case MESSAGE_DURATION:
        write_duration((const Google__Protobuf__Duration *)message, out);
        return;
    case MESSAGE_STRUCT:
    case MESSAGE_LIST_VALUE:
    case MESSAGE_WRAPPER: /* one field whose JSON form is the message's */
        write_field(message, &info->fields[0], out, depth);
        return;
    case MESSAGE_VALUE:
        write_value((const Google__Protobuf__Value *)message, out, depth);
        return;
    case MESSAGE_FIELD_MASK:
        PUT(out, "null");
        return;
    case MESSAGE_PLAIN:
        break;
    }
    if (info->json_list) {
        write_field(message, &info->fields[0], out, depth);
    } else {
        PUT(out, "{");
        write_members(info, message, true, out, depth);
        PUT(out, "}");
    }
}

void codec_to_json(const ProtobufCMessage *message, struct buf *out) { write_message(registry_message(message->descriptor), message, out, 0); }
