/* JSON as any client may send it in a body: read into a message, written, packed, unpacked, written: the same text. */
#include "fuzz.h"
#include "proto/rpc/codec.h"
#include "types.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    registry_init();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len == 0) {
        return 0;
    }
    struct arena arena;
    struct error err = ERROR_INIT;
    const ProtobufCMessageDescriptor *type = fuzz_types[data[0] % FUZZ_TYPES];
    json_t *object = json_loadb((const char *)data + 1, len - 1, JSON_DECODE_ANY, NULL);
    if (object == NULL) {
        return 0;
    }
    arena_init(&arena);
    ProtobufCMessage *message = codec_from_json(type, object, &arena, &err);
    if (message == NULL) {
        must_tell(err);
    } else {
        struct buf json = {0}, again = {0};
        char **paths = NULL;
        size_t count = 0;
        codec_to_json(message, &json);
        size_t size = protobuf_c_message_get_packed_size(message);
        uint8_t *packed = xmalloc(size + 1);
        must(protobuf_c_message_pack(message, packed) == size);
        ProtobufCMessage *second = codec_unpack(type, packed, size, &arena, &err);
        if (second == NULL) {
            must_tell(err); /* deeper as a message than as JSON */
        } else {
            codec_to_json(second, &again);
            must(json.len == again.len && memcmp(json.data, again.data, json.len) == 0);
        }
        if (json_is_object(object)) {
            codec_present_keys(object, &arena, &paths, &count);
            if (codec_merge_json(message, object, &arena, &err) != STATUS_OK) {
                must_tell(err);
            }
        }
        free(packed);
        buf_free(&json);
        buf_free(&again);
    }
    json_decref(object);
    arena_clear(&arena);
    return 0;
}
