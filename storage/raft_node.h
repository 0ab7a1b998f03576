/* One Raft participant on its own libuv loop thread: libraft 0.22.1 (legacy API over raft_uv) behind the guards of raft.md section 6 (raft_shim.c).
 *
 * Callbacks marked [loop] run on the loop thread and must not block longer than one SQLite transaction. Any internal error of Raft, its disk or the
 * state machine ends the process (core_panic): a wrong replica is worse than a dead one. Peers are known by id; the address inside the Raft
 * configuration is only "member-<id>". */
#ifndef COVEY_STORAGE_RAFT_NODE_H
#define COVEY_STORAGE_RAFT_NODE_H

#include "covey/internal/v1/raft.pb-c.h"
#include "proto/core/core.h"

enum {
    RAFT_HEARTBEAT_MS = 50,         /* while something is going on: followers learn soon what is committed */
    RAFT_IDLE_HEARTBEAT_MS = 250,   /* otherwise; every one wakes several threads on both sides */
    RAFT_ELECTION_TIMEOUT_MS = 750, /* a silent leader is replaced after 1 to 1.5 times this, … */
    RAFT_LOST_DELAY_MS = 20,        /* … one whose connection broke after this, time for the other voters to notice, too, … */
    RAFT_LOST_STAGGER_MS = 100,     /* … plus this for each voter with a lower id, so that they do not split the vote */
    RAFT_MESSAGE_BYTES_MAX = 1 << 20,        /* AppendEntries are split here */
    RAFT_SNAPSHOT_CHUNK_BYTES = 512 << 10,
    RAFT_PEER_QUEUE_BYTES_MAX = 64 << 20,    /* unsent bytes per peer; beyond, messages are dropped (Raft repeats them) */
    RAFT_INFLIGHT_ENTRIES_MAX = 256,
    RAFT_ENTRY_BYTES_MAX = 12 << 20,         /* one proposal */
    RAFT_TRANSFER_TIMEOUT_MS = 3000,         /* of leadership: a member that stops must not wait for one that stops, too */
    RAFT_CHANGE_TIMEOUT_MS = 20000,          /* membership changes (promotion includes catching up) */
};

enum raft_node_role { RAFT_NODE_STANDBY = 0, RAFT_NODE_VOTER = 1, RAFT_NODE_SPARE = 2 }; /* libraft's RAFT_STANDBY/VOTER/SPARE values */

struct raft_node_server { uint64_t id; enum raft_node_role role; };

struct raft_node_status {
    bool leader;              /* leads and has applied everything from before its term: may serve */
    uint64_t term, leader_id; /* leader_id 0 = unknown */
    uint64_t last_index, commit_index, applied_index, snapshot_index;
    uint64_t last_term;       /* of the entry at last_index */
    uint64_t heard_commit;    /* highest commit index that a leader ever told this node: what it lacks below is known to exist */
    uint64_t log_bytes;       /* in memory since the last snapshot minus trailing */
    struct raft_node_server *servers; /* current configuration; freed by raft_node_status_free */
    size_t server_count;
};

struct raft_node_callbacks {
    void *ud;
    /* [loop] A committed entry. `proposal` is the handle given to raft_node_propose when the entry is this node's own pending proposal, else NULL. */
    void (*apply)(void *ud, uint64_t index, uint64_t term, const void *data, size_t len, void *proposal);
    /* [loop] A proposal that will not be applied by this node as its own: it lost leadership or is shutting down (outcome unknown), or it was refused
     * before anything was written (refused = true: RAFT_NOSPACE, not leader). */
    void (*abandoned)(void *ud, void *proposal, bool refused, const struct error *err);
    /* [loop] Start a snapshot of the state after the last applied entry: open what is needed to read it consistently. *snapshot is handed on. */
    int (*snapshot_begin)(void *ud, void **snapshot, struct error *err);
    /* [any thread] Write it out into one malloc'ed buffer (*len a multiple of 8); frees *snapshot's resources whatever happens. */
    int (*snapshot_write)(void *ud, void *snapshot, void **data, size_t *len, struct error *err);
    /* [loop] Replace the whole state by the snapshot's. `data` is borrowed. */
    int (*restore)(void *ud, const void *data, size_t len, uint64_t index, struct error *err);
    /* [loop] Leadership, leader, term or configuration changed. */
    void (*changed)(void *ud, const struct raft_node_status *status);
    /* [loop] Send a frame to a peer; never fails: what cannot be sent is dropped. The frame is borrowed. */
    void (*send)(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame);
    /* [loop] Bytes sent to the peer that have not left the queue; paces snapshots. May be NULL: then they are paced by time. */
    uint64_t (*queued)(void *ud, uint64_t peer);
};

struct raft_node;

struct raft_node_config {
    const char *dir; /* database/global */
    uint64_t id;
    struct raft_node_callbacks callbacks;
    uint64_t snapshot_bytes; /* take a snapshot after this many log bytes (0 = 16 MiB) … */
    unsigned snapshot_entries; /* … or entries (0 = 8192) */
};

/* Offline: writes the first configuration: this member as the only voter. Refuses a folder that has a log. */
int raft_node_bootstrap(const char *dir, uint64_t id, struct error *err);
/* Offline: makes this member the only voter with a higher term (recovery from quorum loss). */
int raft_node_recover(const char *dir, uint64_t id, struct error *err);
/* Offline: term and last index of a folder without changing it. */
int raft_node_peek(const char *dir, uint64_t *term, uint64_t *last_index, uint64_t *snapshot_index, struct error *err);
/* Where a log ends: of two logs of one cluster and epoch, the one with the higher (last_term, last_index) holds all that was ever committed in the other. */
struct raft_node_position { uint64_t term, last_term, last_index, snapshot_index; };
/* Offline: the position of a folder without changing it; all zero when it holds no log. */
int raft_node_examine(const char *dir, struct raft_node_position *out, struct error *err);
/* Offline: replaces the configuration. The same servers must be given on every member while all are stopped; the logs may differ in length. All or
 * nothing, also when it is killed. STATUS_FAILED_PRECONDITION for a folder without a log. */
int raft_node_reconfigure(const char *dir, uint64_t id, const struct raft_node_server *servers, size_t count, struct error *err);

/* Starts the thread: replays snapshot and log through restore/apply before it returns. A folder without configuration waits to be added by a leader. */
int raft_node_start(const struct raft_node_config *config, struct raft_node **out, struct error *err);
void raft_node_stop(struct raft_node *node); /* joins the thread; NULL is fine */

/* Any thread. Proposes an entry (copied; padded to a multiple of 8 by the caller). Ends in apply (with `proposal`) or abandoned, exactly once. */
void raft_node_propose(struct raft_node *node, const void *data, size_t len, void *proposal);
/* Any thread. Confirms that this node still leads: fn runs on the loop thread after a majority of voters confirmed its term (one shared round for all
 * that wait, no disk write); at once when it is the only voter. status STATUS_UNAVAILABLE + not_leader when it does not lead, or not confirmed
 * within NODE_CONFIRM_TIMEOUT_MS. */
void raft_node_confirm_leader(struct raft_node *node, void (*fn)(void *ud, int status, const struct error *err), void *ud);
/* Any thread: a frame from a peer (copied). */
void raft_node_receive(struct raft_node *node, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame);
/* Any thread: the peer's stream to this member broke. If it is the leader, voters elect another one soon. A hint only: a leader that is still heard by
 * others stays (pre-vote). */
void raft_node_lost(struct raft_node *node, uint64_t peer);
/* Any thread: whether the leader, to which this member has a living connection, says that it is a spare. A spare that Raft's leader is silent to, as it always is, asks for
 * no votes and counts itself as spare whatever the configuration says that it knows. To be taken back as soon as the connection to the leader is lost. */
void raft_node_told_spare(struct raft_node *node, bool spare);
/* Any thread but the loop: runs fn on the loop thread (fire and forget). */
void raft_node_post(struct raft_node *node, void (*fn)(void *ud), void *ud);

/* Membership, on the leader; blocking, bounded by RAFT_CHANGE_TIMEOUT_MS; one change at a time (others wait). Idempotent: what is so already is OK. */
int raft_node_add(struct raft_node *node, uint64_t id, struct error *err); /* as spare */
int raft_node_assign(struct raft_node *node, uint64_t id, enum raft_node_role role, struct error *err);
int raft_node_remove(struct raft_node *node, uint64_t id, struct error *err);
/* Hands leadership to a voter: stops new proposals, drains, transfers (raft.md N11). */
int raft_node_transfer(struct raft_node *node, uint64_t id, struct error *err);

int raft_node_status(struct raft_node *node, struct raft_node_status *out, struct error *err);
void raft_node_status_free(struct raft_node_status *status);

#endif
