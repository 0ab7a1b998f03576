/* Raft messages on the wire: libraft's struct raft_message <-> covey.internal.v1.RaftFrame. Pure; thread: any.
 *
 * Outgoing frames borrow the message's memory. Incoming frames are checked here, once, before anything else looks at them: what passes keeps the
 * rules that libraft does not check itself (raft.md R5, N1): lengths that are multiples of 8, known types, sane terms and indexes, a configuration
 * change only as the first entry of its message. */
#ifndef COVEY_STORAGE_RAFT_WIRE_H
#define COVEY_STORAGE_RAFT_WIRE_H

#include "covey/internal/v1/raft.pb-c.h"
#include "proto/core/core.h"
#include "raft_node.h"
#include <raft.h>

#define RAFT_WIRE_NUMBER_MAX ((uint64_t)1 << 62)      /* terms, indexes, ids: far beyond reach, far from overflow */
#define RAFT_WIRE_SNAPSHOT_BYTES_MAX ((uint64_t)1 << 30) /* one snapshot, held in memory on both sides */
enum {
    RAFT_WIRE_ENTRIES_MAX = 4096,  /* in one message; the leader sends at most RAFT_INFLIGHT_ENTRIES_MAX */
    RAFT_WIRE_SERVERS_MAX = 10000, /* in one configuration */
    RAFT_WIRE_SHA256_BYTES = 32,
};

struct raft_wire_out { /* a frame with the parts that it points to; free with raft_wire_out_clear */
    Covey__Internal__V1__RaftFrame frame;
    union {
        Covey__Internal__V1__RequestVote request_vote;
        Covey__Internal__V1__RequestVoteResult request_vote_result;
        Covey__Internal__V1__AppendEntries append_entries;
        Covey__Internal__V1__AppendEntriesResult append_entries_result;
        Covey__Internal__V1__TimeoutNow timeout_now;
    } body;
    Covey__Internal__V1__Entry *entries;
    Covey__Internal__V1__Entry **entry_pointers;
};

/* Any message but InstallSnapshot (which travels in chunks). Borrows the entries' data. */
void raft_wire_out_set(struct raft_wire_out *out, const struct raft_message *message);
void raft_wire_out_clear(struct raft_wire_out *out);

struct raft_wire_chunk { /* one part of a snapshot */
    unsigned version;
    uint64_t term, last_index, last_term, configuration_index, offset, size;
    uint8_t *data; /* owned */
    size_t len;
    bool last; /* then sha256 and configuration (owned) are set */
    uint8_t sha256[RAFT_WIRE_SHA256_BYTES];
    struct raft_configuration configuration;
};

enum raft_wire_kind { RAFT_WIRE_MESSAGE, RAFT_WIRE_CHUNK, RAFT_WIRE_PROBE, RAFT_WIRE_PROBE_RESULT };

struct raft_wire_in { /* a checked copy of a received frame, independent of it */
    enum raft_wire_kind kind;
    size_t bytes; /* memory held, for limits */
    union {
        struct raft_message message; /* entries and batch by raft_malloc, as raft's recv wants them; server_address NULL */
        struct raft_wire_chunk chunk;
        struct { uint64_t term, round; bool ok; } probe;
    };
};

/* STATUS_INVALID_ARGUMENT names what is wrong; then nothing has to be freed. */
int raft_wire_in_set(struct raft_wire_in *in, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame, struct error *err);
void raft_wire_in_clear(struct raft_wire_in *in);

#endif
