/* Wire bytes to messages. protobuf-c believes too much (nesting without limit, invalid UTF-8, NUL inside strings, duplicate map keys), so
 * the bytes are walked and judged before it sees them. Pure; thread: any. Recursion is bounded by CODEC_DEPTH_MAX. */
#include "codec_private.h"
#include <stdlib.h>
#include <string.h>

enum {
    WIRE_VARINT = 0,
    WIRE_64 = 1,
    WIRE_LEN = 2,
    WIRE_32 = 5,
    MEMORY_MAX = 4 * CODEC_MESSAGE_MAX, /* of an unpacked message: two bytes on the wire can become hundreds */
    FIELD_OVERHEAD = 64,                /* protobuf-c's notes about one field occurrence, rounded up */
    SEEN_WORDS = 8,                     /* singular message fields of one message that are watched: 64 each */
};

size_t codec__size(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return 8;
    default:
        return 4;
    }
}

ProtobufCMessage *codec__new(const ProtobufCMessageDescriptor *descriptor, struct arena *arena)
{
    ProtobufCMessage *message = arena_alloc(arena, descriptor->sizeof_message);
    protobuf_c_message_init(descriptor, message);
    return message;
}

struct scan {
    uint64_t memory; /* estimate of the unpacked size */
    struct error *err;
};

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (*at == end)
            return false;
        uint8_t byte = *(*at)++;
        if (shift == 63 && byte > 1)
            return false;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

static int malformed(const struct scan *scan, const ProtobufCMessageDescriptor *descriptor)
{
    return error_set(scan->err, STATUS_INVALID_ARGUMENT, "malformed message %s", descriptor->name);
}

static int scan_message(struct scan *scan, const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t len, unsigned depth);

/* A length-delimited field: a message is walked, a string checked. */
static int scan_payload(struct scan *scan, const ProtobufCMessageDescriptor *descriptor, const ProtobufCFieldDescriptor *field,
                        uint64_t seen[SEEN_WORDS], const uint8_t *data, size_t len, unsigned depth)
{
    scan->memory += len + 1;
    if (!field)
        return STATUS_OK;
    if (field->type == PROTOBUF_C_TYPE_STRING) {
        if (!utf8_valid((const char *)data, len))
            return error_set(scan->err, STATUS_INVALID_ARGUMENT, "invalid value for \"%s\": %s", field->name,
                             memchr(data, 0, len) ? "text with a NUL byte" : "text that is not valid UTF-8");
        return STATUS_OK;
    }
    if (field->type == PROTOBUF_C_TYPE_BYTES)
        return STATUS_OK;
    if (field->type != PROTOBUF_C_TYPE_MESSAGE) { /* packed: up to 8 bytes for each byte */
        scan->memory += (uint64_t)len * codec__size(field->type);
        return STATUS_OK;
    }
    if (field->label != PROTOBUF_C_LABEL_REPEATED) {
        /* Legal, but nobody writes it, and merging again and again costs quadratic time and memory. */
        size_t index = (size_t)(field - descriptor->fields);
        if (index / 64 < SEEN_WORDS) {
            if (seen[index / 64] & UINT64_C(1) << index % 64)
                return error_set(scan->err, STATUS_INVALID_ARGUMENT, "field \"%s\" of %s is given twice", field->name, descriptor->name);
            seen[index / 64] |= UINT64_C(1) << index % 64;
        }
    }
    return scan_message(scan, field->descriptor, data, len, depth + 1);
}

static int scan_message(struct scan *scan, const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t len, unsigned depth)
{
    if (depth > CODEC_DEPTH_MAX)
        return error_set(scan->err, STATUS_INVALID_ARGUMENT, "message is nested deeper than %d levels", CODEC_DEPTH_MAX);
    uint64_t seen[SEEN_WORDS] = {0};
    const uint8_t *at = data, *end = data + len;
    const ProtobufCFieldDescriptor *field = NULL;
    scan->memory += descriptor->sizeof_message + sizeof(void *);
    while (at < end) {
        uint64_t tag, value;
        if (!read_varint(&at, end, &tag) || tag > UINT32_MAX || tag < 8)
            return malformed(scan, descriptor);
        if (!field || field->id != tag >> 3) /* elements of a list follow each other */
            field = protobuf_c_message_descriptor_get_field(descriptor, (unsigned)(tag >> 3));
        scan->memory += FIELD_OVERHEAD;
        if (scan->memory > MEMORY_MAX)
            return error_set(scan->err, STATUS_INVALID_ARGUMENT, "message %s needs more than %d bytes", descriptor->name, MEMORY_MAX);
        size_t size = 0;
        switch (tag & 7) {
        case WIRE_VARINT:
            if (!read_varint(&at, end, &value))
                return malformed(scan, descriptor);
            break;
        case WIRE_64:
            size = 8;
            break;
        case WIRE_32:
            size = 4;
            break;
        case WIRE_LEN: {
            if (!read_varint(&at, end, &value) || value > (uint64_t)(end - at))
                return malformed(scan, descriptor);
            size = (size_t)value;
            int status = scan_payload(scan, descriptor, field, seen, at, size, depth);
            if (status != STATUS_OK)
                return status;
            break;
        }
        default: /* groups: not in proto3 */
            return malformed(scan, descriptor);
        }
        if (size > (size_t)(end - at))
            return malformed(scan, descriptor);
        at += size;
    }
    return STATUS_OK;
}

/* ---- maps ---- */

static void settle(const struct message_info *info, ProtobufCMessage *message, struct arena *arena);

/* Of entries with the same key the last one stays, in its place. */
static void map_dedup(const struct message_info *entry, ProtobufCMessage **entries, size_t *count, struct arena *arena)
{
    ProtobufCMessage **sorted = arena_memdup(arena, entries, *count * sizeof(*entries));
    codec__sort_entries(entry, sorted, *count);
    size_t dropped = 0;
    for (size_t i = 0; i + 1 < *count; i++)
        if (codec__compare_keys(entry, sorted[i], sorted[i + 1]) == 0) {
            sorted[i]->descriptor = NULL; /* mark: the entry is in this arena and nobody has seen it yet */
            dropped++;
        }
    if (!dropped)
        return;
    size_t kept = 0;
    for (size_t i = 0; i < *count; i++)
        if (entries[i]->descriptor)
            entries[kept++] = entries[i];
    *count = kept;
}

/* An absent list differs from an empty one (null and [] in JSON); an object, such as a device without options, does not. */
static bool may_be_absent(const struct message_info *info)
{
    return info->json_list && !info->fields[0].is_map;
}

static void settle_map(const struct field_info *info, ProtobufCMessage *message, struct arena *arena)
{
    const struct message_info *entry = info->message;
    const ProtobufCFieldDescriptor *value = &entry->descriptor->fields[1];
    ProtobufCMessage **entries = *(ProtobufCMessage ***)field_at(message, info->field);
    size_t *count = field_count(message, info->field);
    if (*count > 1)
        map_dedup(entry, entries, count, arena);
    const struct message_info *inner = entry->fields[1].message;
    for (size_t i = 0; i < *count && value->type == PROTOBUF_C_TYPE_MESSAGE; i++) {
        ProtobufCMessage **at = field_at(entries[i], value);
        if (!*at && !may_be_absent(inner)) /* an empty entry means an empty value, which protobuf-c leaves out */
            *at = codec__new(value->descriptor, arena);
        if (*at && inner->has_maps)
            settle(inner, *at, arena);
    }
}

/* Puts every map below the message into the state that its users expect. */
static void settle(const struct message_info *info, ProtobufCMessage *message, struct arena *arena)
{
    for (unsigned i = 0; i < info->descriptor->n_fields; i++) {
        const struct field_info *field = &info->fields[i];
        if (field->is_map) {
            settle_map(field, message, arena);
        } else if (field->message && field->message->has_maps) {
            if (field->field->label == PROTOBUF_C_LABEL_REPEATED) {
                ProtobufCMessage **list = *(ProtobufCMessage ***)field_at(message, field->field);
                for (size_t k = 0; k < *field_count(message, field->field); k++)
                    settle(field->message, list[k], arena);
            } else if (field_is_set(message, field->field)) {
                settle(field->message, *(ProtobufCMessage **)field_at(message, field->field), arena);
            }
        }
    }
}

/* ---- public ---- */

ProtobufCMessage *codec_unpack(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t len, struct arena *arena, struct error *err)
{
    const struct message_info *info = registry_message(descriptor);
    if (len > CODEC_MESSAGE_MAX) {
        error_set(err, STATUS_INVALID_ARGUMENT, "message %s is larger than %d bytes", descriptor->name, CODEC_MESSAGE_MAX);
        return NULL;
    }
    static const uint8_t nothing[1];
    if (!data)
        data = nothing;
    struct scan scan = {.err = err};
    if (scan_message(&scan, descriptor, data, len, 1) != STATUS_OK)
        return NULL;
    ProtobufCMessage *message = protobuf_c_message_unpack(descriptor, &arena->allocator, len, data);
    if (!message) {
        malformed(&scan, descriptor);
        return NULL;
    }
    if (info->has_maps)
        settle(info, message, arena);
    return message;
}

ProtobufCMessage *codec_copy(const ProtobufCMessage *message, struct arena *arena)
{
    size_t size = protobuf_c_message_get_packed_size(message);
    uint8_t *packed = xmalloc(size);
    protobuf_c_message_pack(message, packed);
    ProtobufCMessage *copy = protobuf_c_message_unpack(message->descriptor, &arena->allocator, size, packed);
    free(packed);
    covey_assert(copy);
    const struct message_info *info = registry_message(message->descriptor);
    if (info->has_maps)
        settle(info, copy, arena);
    return copy;
}
