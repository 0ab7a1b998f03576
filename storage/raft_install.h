/* Snapshot transfer between members in chunks: what leaves a leader for lagging peers, and what a follower puts together. Owned by the shim.
 * Thread: the loop. Bounds: one outgoing transfer per peer, RAFT_INSTALL_PEERS_MAX in all, one incoming; at most RAFT_INSTALL_AHEAD_CHUNKS of a transfer
 * wait in a peer's queue, so that heartbeats never wait behind a snapshot. */
#ifndef COVEY_STORAGE_RAFT_INSTALL_H
#define COVEY_STORAGE_RAFT_INSTALL_H

#include "raft_wire.h"

enum {
    RAFT_INSTALL_PEERS_MAX = 4,          /* transfers at a time; each holds one snapshot in memory */
    RAFT_INSTALL_AHEAD_CHUNKS = 4,       /* unsent chunks per peer */
    RAFT_INSTALL_PACE_MS = 10,           /* how often a transfer goes on */
    RAFT_INSTALL_STALL_MS = 10000,       /* nothing left the queue, or nothing arrived, for so long: give up */
    RAFT_INSTALL_QUIET_MS = 10000,       /* after the last chunk: time for the peer to install before the same snapshot is sent again */
};

struct raft_install_hooks {
    void *ud;
    void (*send)(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame);
    uint64_t (*queued)(void *ud, uint64_t peer); /* unsent bytes; NULL: one chunk per RAFT_INSTALL_PACE_MS */
    uint64_t (*now)(void *ud);                   /* ms */
};

struct raft_install_out { /* one slot per transfer, kept RAFT_INSTALL_QUIET_MS after its end */
    uint64_t peer;        /* 0 = free */
    uint64_t index;
    bool sending;
    uint64_t moved_ms; /* last progress; at the end: when it ended */
    uint64_t offset, last_term;
    const struct raft_message *message; /* libraft's, until done is called */
    struct raft_io_send *request;
    raft_io_send_cb done;
    void *digest; /* EVP_MD_CTX */
};

struct raft_install_in { /* data == NULL: nothing */
    uint64_t peer, term, last_index, last_term, size, offset, moved_ms;
    uint8_t *data;
    void *digest;
};

struct raft_install {
    struct raft_install_hooks hooks;
    struct raft_install_out out[RAFT_INSTALL_PEERS_MAX];
    struct raft_install_in in;
};

void raft_install_init(struct raft_install *install, const struct raft_install_hooks *hooks);
void raft_install_close(struct raft_install *install); /* ends every transfer: done with RAFT_CANCELED */
void raft_install_abort(struct raft_install *install); /* ends the outgoing ones */

/* Takes over a message from io.send; `done` follows now (refused: a transfer of this snapshot to this peer is under way or just ended) or later. */
void raft_install_send(struct raft_install *install, const struct raft_message *message, uint64_t last_term, struct raft_io_send *request,
                       raft_io_send_cb done);
/* Whether a transfer to the peer is under way or ended a moment ago without its confirmation. */
bool raft_install_busy(const struct raft_install *install, uint64_t peer);
/* The peer confirmed this index. */
void raft_install_confirmed(struct raft_install *install, uint64_t peer, uint64_t index);
/* Goes on with every transfer; returns whether one is still sending. To be called every RAFT_INSTALL_PACE_MS while it does, and at every tick. */
bool raft_install_run(struct raft_install *install);

/* Takes the chunk's data in. True: the snapshot is complete, *message has it (memory by raft_malloc, passes on). */
bool raft_install_receive(struct raft_install *install, uint64_t peer, struct raft_wire_chunk *chunk, struct raft_message *message);

#endif
