/* Shared by the codec's files: where protobuf-c keeps a field's value, count and presence. */
#ifndef COVEY_RPC_CODEC_PRIVATE_H
#define COVEY_RPC_CODEC_PRIVATE_H

#include "codec.h"

static inline void *field_at(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    return (char *)message + field->offset;
}

static inline size_t *field_count(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    return (size_t *)((char *)message + field->quantifier_offset);
}

static inline bool field_is_oneof(const ProtobufCFieldDescriptor *field) { return field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF; }

/* Whether a singular field has been set; a proto3 scalar without presence always counts as set. */
static inline bool field_is_set(const ProtobufCMessage *message, const ProtobufCFieldDescriptor *field)
{
    if (field_is_oneof(field))
        return *(const uint32_t *)((const char *)message + field->quantifier_offset) == field->id;
    if (field->type == PROTOBUF_C_TYPE_MESSAGE)
        return *(ProtobufCMessage **)field_at(message, field) != NULL;
    if (field->label != PROTOBUF_C_LABEL_OPTIONAL)
        return true;
    if (field->type == PROTOBUF_C_TYPE_STRING) /* proto2 */
        return *(char **)field_at(message, field) != field->default_value && *(char **)field_at(message, field);
    return *(const protobuf_c_boolean *)((const char *)message + field->quantifier_offset);
}

/* Bytes of one value (of one element of a repeated field). */
size_t codec__size(ProtobufCType type);
/* Makes an initialised message. */
ProtobufCMessage *codec__new(const ProtobufCMessageDescriptor *descriptor, struct arena *arena);
/* Marks a singular field as set and gives the place for its value; another member of the same oneof is dropped. */
void *codec__prepare(ProtobufCMessage *message, const ProtobufCFieldDescriptor *field);
/* Writes the value of one field as JSON, whatever its presence. */
void codec__write_field(const ProtobufCMessage *message, const struct field_info *info, struct buf *out);
/* Sorts entries of a map by key; with equal keys the one that stood last is last. `entries` is changed. */
void codec__sort_entries(const struct message_info *entry, ProtobufCMessage **entries, size_t count);
int codec__compare_keys(const struct message_info *entry, const ProtobufCMessage *a, const ProtobufCMessage *b);

#endif
