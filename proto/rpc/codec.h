/* One codec for every message: checks before a message is believed, JSON both ways, field access by name.
 *
 * JSON rules (spec/api.md 1.10): names are LXD's; 64-bit integers are JSON numbers; bytes are base64; enums are numbers out, number or name in;
 * Timestamp is RFC 3339 ("0001-01-01T00:00:00Z" when unset, and that text or null or "" reads as unset); Struct/Value/ListValue are plain JSON
 * (integral numbers are written without a fraction); maps are objects sorted by key; every field is written unless (covey.v1.field).omit_empty,
 * a json_list message (exactly one field, repeated or map) is that field's array or object itself; an unset message field is null, unset json_list is null, `optional` scalars that are not set are left out; a field with
 * (covey.v1.field).header is neither written nor read. Reading: unknown keys are ignored, null = unset for every type, a string where a
 * number is wanted is refused with the field's name, duplicate keys: the last wins. Thread: any. */
#ifndef COVEY_RPC_CODEC_H
#define COVEY_RPC_CODEC_H

#include "registry.h"
#include <jansson.h>

enum {
    CODEC_DEPTH_MAX = 32,             /* nested messages in one protobuf message, and levels of JSON */
    CODEC_MESSAGE_MAX = 16 * 1024 * 1024, /* bytes of one protobuf message */
};

/* Unpacks after checking size, depth, UTF-8 (no NUL) of every string, map keys (a duplicate: last wins) and empty map entries. The message
 * lives in `arena`. STATUS_INVALID_ARGUMENT names what is wrong. */
ProtobufCMessage *codec_unpack(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t len, struct arena *arena, struct error *err);

/* Appends the message as JSON text. */
void codec_to_json(const ProtobufCMessage *message, struct buf *out);
/* The same without the outer braces' fields being restricted; `field` is a dotted path below message ("" = whole). Unknown path: "null". */
void codec_field_to_json(const ProtobufCMessage *message, const char *field, struct buf *out);

/* Reads a JSON object (not stolen) into a new message in `arena`. Errors name the field: `invalid value for "config.x": expected string`. */
ProtobufCMessage *codec_from_json(const ProtobufCMessageDescriptor *descriptor, const json_t *object, struct arena *arena, struct error *err);
/* Merges a JSON object into an existing message (body on top of path and query fields). */
int codec_merge_json(ProtobufCMessage *message, const json_t *object, struct arena *arena, struct error *err);

/* Sets the singular scalar field `name` (dotted path; messages on the way are created) from text, as from a URL: numbers and booleans are
 * parsed ("1", "true" …). A repeated scalar: appended. STATUS_NOT_FOUND if there is no such field. */
int codec_set_text(ProtobufCMessage *message, const char *name, const char *text, struct arena *arena, struct error *err);
/* The string field `name` of a message, "" if it is unset, missing or not a string. Not owned. */
const char *codec_get_string(const ProtobufCMessage *message, const char *name);
int64_t codec_get_int(const ProtobufCMessage *message, const char *name); /* integers, enums, bools; 0 if missing */
bool codec_has_field(const ProtobufCMessageDescriptor *descriptor, const char *name);
/* For a repeated string/message field. */
size_t codec_repeated_count(const ProtobufCMessage *message, const char *name);

/* Top-level keys of a JSON object that are present and not null, as a repeated string list in arena: fills update_mask.paths (PATCH). */
void codec_present_keys(const json_t *object, struct arena *arena, char ***paths, size_t *count);

/* Deep copy through pack/unpack. */
ProtobufCMessage *codec_copy(const ProtobufCMessage *message, struct arena *arena);

/* google.protobuf.Struct <-> JSON text, for free-form metadata kept as text in the database. NULL/"" text gives NULL (unset). */
struct Google__Protobuf__Struct;
struct Google__Protobuf__Struct *codec_struct_from_json(const char *json_text, struct arena *arena, struct error *err);

#endif
