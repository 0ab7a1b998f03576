/* Protobuf bytes as any peer may send them: unpack, JSON, pack, unpack again: the same JSON, and jansson can read it. */
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
    arena_init(&arena);
    ProtobufCMessage *message = codec_unpack(type, data + 1, len - 1, &arena, &err);
    if (message == NULL) {
        must_tell(err);
    } else {
        struct buf json = {0}, again = {0};
        codec_to_json(message, &json);
        json_t *parsed = json_loadb(json.data, json.len, JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
        must(parsed != NULL);
        if (json_is_object(parsed)) {
            struct error refused = ERROR_INIT; /* e.g. a Timestamp beyond what the text form can say */
            must(codec_from_json(type, parsed, &arena, &refused) != NULL || refused.text[0] != '\0');
        }
        json_decref(parsed);
        size_t size = protobuf_c_message_get_packed_size(message);
        uint8_t *packed = xmalloc(size + 1);
        must(protobuf_c_message_pack(message, packed) == size);
        ProtobufCMessage *second = codec_unpack(type, packed, size, &arena, &err);
        must(second != NULL);
        codec_to_json(second, &again);
        must(json.len == again.len && memcmp(json.data, again.data, json.len) == 0);
        free(packed);
        buf_free(&json);
        buf_free(&again);
    }
    arena_clear(&arena);
    return 0;
}
