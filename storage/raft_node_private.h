/* The inside of raft_node.h, shared by raft_node*.c. Everything is touched by the loop thread only unless it says otherwise. */
#ifndef COVEY_STORAGE_RAFT_NODE_PRIVATE_H
#define COVEY_STORAGE_RAFT_NODE_PRIVATE_H

#include "raft_node.h"
#include "raft_shim.h"
#include <pthread.h>
#include <raft/uv.h>

enum {
    NODE_PROPOSALS_MAX = 8192,                /* in flight or held back; beyond: refused */
    NODE_INBOUND_BYTES_MAX = 64 << 20,        /* received and not yet handled; beyond: dropped (Raft repeats) */
    NODE_CONFIRM_TIMEOUT_MS = RAFT_ELECTION_TIMEOUT_MS * 2, /* a leader without a majority steps down after one */
    NODE_TICK_MS = 50,                        /* deadlines and retries, while there are any */
    NODE_ROUND_BUSY = 4,                      /* a round that proved leadership to so many reads at once … */
    NODE_ROUND_MS_MIN = 2,                    /* … is followed by the next no sooner than this after its start: more share it */
    NODE_BEAT_MS_MIN = 5,                     /* libraft is not ticked more often */
    NODE_CONFIRMS_MAX = 65536,                /* waiting readers; beyond: refused */
    NODE_TRANSFER_ATTEMPTS_MAX = 3,
    NODE_SNAPSHOT_BYTES_DEFAULT = 16 << 20,
    NODE_SNAPSHOT_ENTRIES_DEFAULT = 8192,
    NODE_LEADER_SILENT_MS = 3 * RAFT_ELECTION_TIMEOUT_MS, /* a follower that heard nothing for so long knows no leader */
    NODE_DISK_RETRY_MS = 300,                 /* raft_uv: after a full disk */
    NODE_START_ATTEMPTS_MAX = 2,              /* raft.md G13 */
};

struct node_post {
    struct node_post *next;
    void (*fn)(struct raft_node *node, void *arg); /* runs on the loop; owns arg; must cope with node->stopping */
    void *arg;
};

struct node_proposal {
    struct raft_apply request; /* data = this */
    struct node_proposal *prev, *next;
    struct raft_node *node;
    uint64_t index, term;
    void *handle;
    bool settled; /* apply or abandoned was called */
    size_t len;
    uint8_t data[];
};

struct node_proposals { struct node_proposal *head, *tail; size_t count; };

enum node_change_kind { NODE_ADD, NODE_ASSIGN, NODE_REMOVE, NODE_TRANSFER };

struct node_change { /* a membership change or transfer; waited for by its caller */
    enum node_change_kind kind;
    uint64_t id;
    enum raft_node_role role;
    struct raft_node *node;
    uint64_t deadline_ms; /* loop time */
    bool submitted;       /* libraft holds a request of it */
    int attempts;
    union { struct raft_change change; struct raft_transfer transfer; };
    int refs; /* under node->mutex */
    bool done; /* under node->mutex; with status and err */
    int status;
    struct error err;
};

struct node_confirm {
    struct node_confirm *next;
    void (*fn)(void *ud, int status, const struct error *err);
    void *ud;
    uint64_t deadline_ms;
};

struct node_confirms { struct node_confirm *head, *tail; };

struct raft_node {
    struct raft_node_config config;
    char *dir;
    char address[32];
    pthread_t thread;
    uv_loop_t loop;
    uv_async_t async;
    uv_prepare_t prepare;
    uv_timer_t pace;   /* snapshot transfers */
    uv_timer_t ticker; /* deadlines, retries; runs while there are any */
    uv_timer_t rounds; /* start of the next confirmation round, when it was put off */
    uv_timer_t beat;   /* libraft's time: heartbeats, elections; armed for the next one only */
    uint64_t beat_due, beat_armed; /* loop time: of the next heartbeat; of the timer */
    raft_index beat_commit; /* at the last heartbeat */
    struct raft raft;
    struct raft_io io;
    struct raft_fsm fsm;
    struct raft_uv_transport transport;
    struct raft_shim shim;
    bool running, stopping;
    uint64_t heard_ms; /* loop time of the last message that a leader sent */
    bool told_spare;   /* raft_node_told_spare */

    pthread_mutex_t mutex; /* posts, post_tail, inbound_bytes, started, start_status, start_err, changes' refs/done, status, closed */
    pthread_cond_t cond;   /* CLOCK_MONOTONIC: start, changes */
    struct node_post *posts, *posts_tail;
    size_t inbound_bytes;
    bool started, closed;
    int start_status;
    struct error start_err;
    struct raft_node_status status;
    raft_index status_configuration_index;

    struct node_proposals pending; /* in libraft, by index */
    struct node_proposals held;    /* while leadership is being transferred */
    raft_term barrier_term;        /* a barrier of this term was submitted … */
    raft_term ready_term;          /* … and applied */
    struct raft_barrier barrier;
    bool barrier_pending;
    bool was_leader, was_ready;
    uint64_t was_term, was_leader_id;

    pthread_mutex_t change_mutex; /* one change at a time; taken before `mutex` */
    struct node_change *change;
    bool transferring;

    struct node_confirms confirm_next, confirm_now; /* waiting for the next round, in the one under way */
    size_t confirm_count;
    uint64_t round;
    raft_term round_term;
    uint64_t round_sent_ms, round_began_ns;
    size_t round_reads; /* that waited for the last round */
    bool round_running;
    uint64_t *round_acks;
    size_t round_ack_count, round_ack_cap;
    bool pace_running;
};

uint64_t node__now(struct raft_node *node);
/* Any thread. */
void node__post(struct raft_node *node, void (*fn)(struct raft_node *node, void *arg), void *arg);
bool node__ready(const struct raft_node *node); /* leads and has applied its barrier */
uint64_t node__leader_id(struct raft_node *node);
int node__not_leader(struct raft_node *node, struct error *err);
void node__submit_held(struct raft_node *node);

void node__change_run(struct raft_node *node); /* at each tick and whenever something may have moved on */
void node__change_stop(struct raft_node *node);

void node__confirm_round(uv_timer_t *timer); /* the round that was put off */
void node__confirm_run(struct raft_node *node); /* tick: deadlines, repeated probes */
void node__confirm_leadership(struct raft_node *node); /* leadership or readiness changed */
void node__confirm_stop(struct raft_node *node);
void node__probe(struct raft_node *node, uint64_t peer, uint64_t term, uint64_t round);
void node__probe_result(struct raft_node *node, uint64_t peer, uint64_t term, uint64_t round, bool ok);

/* raft_uv over a transport that moves nothing: messages go through the shim. */
void node__null_transport(struct raft_uv_transport *transport);
void node__address(uint64_t id, char out[32]);

#endif
