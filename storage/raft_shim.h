/* What libraft 0.22.1 needs guarded from outside: one layer between libraft's core and its raft_io. The numbers in raft_shim.c (S1-S6, N1-N12, R4, R5,
 * G7, G13 …) are those of docs/design/raft-guards.md; each has a regression test in tests/unit/storage/raft_shim_test.c.
 *
 * The shim patches a raft_io in place (libraft calls back through it) and works over any: raft_uv in the product, a fake one in tests.
 * Thread: the loop that runs the raft_io. Errors that would leave libraft in a wrong state end the process (core_panic). */
#ifndef COVEY_STORAGE_RAFT_SHIM_H
#define COVEY_STORAGE_RAFT_SHIM_H

#include "raft_install.h"
#include <uv.h>

enum {
    RAFT_SHIM_TRAILING_MAX = 1024,         /* entries kept in the log after a snapshot, so that a short lag needs no snapshot … */
    RAFT_SHIM_TICK_MS = 3600 * 1000,       /* of the raft_io itself: it would wake an idle member for nothing */
    RAFT_SHIM_REST_MS = 1000,              /* longest time between two ticks */
    RAFT_SHIM_SNAPSHOT_RETRY_MS = 10000,   /* after a snapshot that failed */
};

struct raft_shim_hooks {
    void *ud;
    void (*send)(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame);
    uint64_t (*queued)(void *ud, uint64_t peer);                                                            /* may be NULL */
    int (*snapshot_write)(void *ud, void *snapshot, void **data, size_t *len, struct error *err);          /* worker thread */
    void (*snapshot_done)(void *ud, bool ok);                                                              /* loop; may be NULL */
};

/* Bytes of each entry in the in-memory log: libraft counts entries, memory is bytes. */
struct raft_shim_sizes {
    uint32_t *bytes; /* ring */
    size_t front, count, cap;
    uint64_t first; /* index of the front */
    uint64_t total;
};

struct raft_shim {
    struct raft *raft;
    struct raft_io *io;
    uv_loop_t *loop;
    struct raft_shim_hooks hooks;
    struct raft_io original; /* the functions below the shim */
    struct raft_tracer core_tracer, uv_tracer;
    raft_io_tick_cb tick;
    raft_io_recv_cb recv; /* NULL until started */
    unsigned timeout_seen; /* the random election timeout after its spread was halved */
    bool closing;         /* stop(): nothing goes in or out any more */
    raft_term disk_term;  /* G7 */
    bool disk_term_known;
    raft_index heard_commit; /* see raft_node_status */
    struct raft_shim_sizes sizes;
    struct { raft_index since, index; uint64_t bytes; } applied; /* bytes in (since, index], since = last snapshot */
    uint64_t snapshot_bytes, last_snapshot_bytes;
    unsigned snapshot_entries;
    uint64_t snapshot_retry_at; /* ms; 0 = now */
    struct {                    /* the snapshot that is being taken */
        bool active;            /* worker or raft_uv's write in progress */
        bool writing;           /* worker in progress */
        struct raft_buffer *bufs;
        void *snapshot;
        uv_work_t work;
        unsigned trailing;
        raft_index index;
        struct raft_io_snapshot_put *request;
        raft_io_snapshot_put_cb done;
        struct raft_io_snapshot_put put;
        const struct raft_snapshot *target;
        struct error err;
        int status;
    } taking;
    struct { /* the snapshot that is being installed */
        struct raft_io_snapshot_put *request;
        raft_io_snapshot_put_cb done;
        struct raft_io_snapshot_put put;
    } installing;
    unsigned loads;          /* N7, N8: snapshot_get in flight */
    raft_index restore_index; /* of the snapshot that the state machine gets next */
    raft_index loaded_index; /* of the last one loaded */
    raft_term loaded_term;
    struct raft_install install;
    bool deferred; /* N2 */
    struct raft_message deferred_message;
    void (*stopped)(void *ud);
    void *stopped_ud;
};

/* Before raft_init, after the raft_io was set up. */
void raft_shim_attach(struct raft_shim *shim, struct raft *raft, struct raft_io *io, uv_loop_t *loop, const struct raft_shim_hooks *hooks,
                      uint64_t snapshot_bytes, unsigned snapshot_entries);
/* After raft_init: settings and the core tracer. */
void raft_shim_configure(struct raft_shim *shim);
/* A received frame, consumed. Probes are not for the shim. */
void raft_shim_receive(struct raft_shim *shim, uint64_t peer, struct raft_wire_in *in);
/* Libraft's timer is not run by the raft_io (RAFT_SHIM_TICK_MS): its owner ticks when raft_shim_due() says so, the loop's time. A leader's heartbeats are at
 * least heartbeat_ms apart from now on. */
void raft_shim_tick(struct raft_shim *shim, unsigned heartbeat_ms);
uint64_t raft_shim_due(const struct raft_shim *shim);
/* The connection to a peer broke: if it is the leader, the election is brought forward. */
void raft_shim_lost(struct raft_shim *shim, uint64_t peer);
/* To be called in each loop iteration: deferred installs, snapshot decision. */
void raft_shim_poll(struct raft_shim *shim);
/* Goes on with snapshot transfers; true while one is sending. */
bool raft_shim_transfer(struct raft_shim *shim);
/* Ends everything of the shim's own; calls fn (perhaps at once) when raft_close may be called. */
void raft_shim_stop(struct raft_shim *shim, void (*fn)(void *ud), void *ud);
void raft_shim_free(struct raft_shim *shim); /* after raft_close is through */

/* For raft_fsm.snapshot: hands a snapshot handle on to the worker. */
void raft_shim_snapshot(struct raft_shim *shim, void *snapshot, struct raft_buffer *bufs[], unsigned *n_bufs);
void raft_shim_snapshot_failed(struct raft_shim *shim); /* … or tells that there is none now */

raft_term raft_shim_term_of(const struct raft *raft, raft_index index); /* 0 = not in the log */
raft_index raft_shim_last_index(const struct raft *raft);

/* S2: submit with the guards R5 and N10. */
int raft_shim_apply(struct raft *raft, struct raft_apply *request, const void *data, size_t len, raft_apply_cb done);
int raft_shim_add(struct raft *raft, struct raft_change *request, raft_id id, const char *address, raft_change_cb done);
int raft_shim_assign(struct raft *raft, struct raft_change *request, raft_id id, int role, raft_change_cb done);
int raft_shim_remove(struct raft *raft, struct raft_change *request, raft_id id, raft_change_cb done);

#endif
