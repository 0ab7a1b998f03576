/* Raft frames of another member: protobuf, then raft_wire's checks; what passes is sent on and must pass again. libraft itself is not instrumented: entries with a
 * configuration are put right before an unreadable page. */
#include "fuzz.h"
#include "proto/rpc/codec.h"
#include "storage/raft_wire.h"
#include <sys/mman.h>
#include <unistd.h>

enum { PEER = 7, GUARDED_BYTES = 64 << 10 };
static uint8_t *guarded_end;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    registry_init();
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *map = mmap(NULL, GUARDED_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(map != MAP_FAILED && mprotect(map + GUARDED_BYTES, page, PROT_NONE) == 0);
    guarded_end = map + GUARDED_BYTES;
    return 0;
}

static void again(const struct raft_wire_in *in)
{
    struct raft_wire_out out;
    struct raft_wire_in second;
    struct error err = ERROR_INIT;
    struct arena arena;
    raft_wire_out_set(&out, &in->message);
    size_t size = covey__internal__v1__raft_frame__get_packed_size(&out.frame);
    uint8_t *packed = xmalloc(size + 1);
    covey__internal__v1__raft_frame__pack(&out.frame, packed);
    raft_wire_out_clear(&out);
    arena_init(&arena);
    void *frame = codec_unpack(&covey__internal__v1__raft_frame__descriptor, packed, size, &arena, &err);
    must(frame != NULL && raft_wire_in_set(&second, PEER, frame, &err) == STATUS_OK);
    must(second.bytes == in->bytes && second.message.type == in->message.type);
    raft_wire_in_clear(&second);
    arena_clear(&arena);
    free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct arena arena;
    struct error err = ERROR_INIT;
    struct raft_wire_in in;
    arena_init(&arena);
    Covey__Internal__V1__RaftFrame *frame = (void *)codec_unpack(&covey__internal__v1__raft_frame__descriptor, data, len, &arena, &err);
    if (frame != NULL) {
        if (frame->kind_case == COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES && frame->append_entries->n_entries > 0) {
            ProtobufCBinaryData *first = &frame->append_entries->entries[0]->data;
            if (first->len > 0 && first->len <= GUARDED_BYTES) {
                first->data = memcpy(guarded_end - first->len, first->data, first->len);
            }
        }
        if (raft_wire_in_set(&in, PEER, frame, &err) != STATUS_OK) {
            must_tell(err);
        } else {
            if (in.kind == RAFT_WIRE_MESSAGE) {
                again(&in);
            }
            raft_wire_in_clear(&in);
        }
    } else {
        must_tell(err);
    }
    arena_clear(&arena);
    return 0;
}
