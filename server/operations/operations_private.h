/* Between the files of this folder: the table of operations of this member.
 *
 * `ops.lock` guards everything of struct op but what is fixed at creation (uuid, kind, project, member, requestor, request, created_ns, local) and the
 * arena, which is the worker's. Lock order: ops.emit, ops.lock, then locks of other modules; never the other way round. */
#ifndef COVEY_SERVER_OPERATIONS_PRIVATE_H
#define COVEY_SERVER_OPERATIONS_PRIVATE_H

#include "operations.h"

#include <pthread.h>
#include <uthash.h>

enum {
    OPERATION_KINDS_MAX = 128,
    OPERATION_WAITERS_MAX = 20000,
    OPERATION_SWEEP_MAX = 256,         /* rows deleted in one transaction */
    OPERATION_RETRY_MS = 500,          /* between attempts after an unclear end while this member still leads */
    OPERATION_END_WRITE_MS = 60000,    /* how long the final write is tried */
    OPERATION_LOAD_WAIT_MS = 5000,     /* how long a call waits for a new leader to load the records */
    OPERATION_REPLAY_WAIT_MS = 1000,   /* a repeated request waits so long for the first one's record */
    OPERATION_KEEP_ROUND_MS = 1000,    /* ends of one second are forgotten together, by one write */
    OPERATION_TIMER_PAUSE_MS = 50,     /* between two looks of the timer */
    OPERATION_THREAD_IDLE_MS = 10000,
    OPERATION_THREAD_STACK_BYTES = 1 << 20,
    CONNECT_FIRST_FRAME_MS = 10000,
    CONNECT_OPENING_MAX = 256,         /* streams being attached at one time, a short-lived thread each */
};

struct waiter;

struct op {
    char uuid[37];
    const struct op_kind *kind; /* NULL: a number that this version does not know */
    char *project;
    uint64_t member;
    bool local;
    char request_id[64]; /* of local operations */
    struct caller requestor;
    uint8_t *request;
    size_t request_len;
    struct arena arena;
    int64_t created_ns;

    unsigned references;   /* table, queue or worker, users outside the lock */
    bool listed;           /* in the table */
    bool stale;            /* of a leadership that is over: no more writes, no more events */
    bool running;          /* a worker has it, or it is queued */
    bool deferred;         /* starts when the stale worker of the same uuid has ended */
    bool cancelled;
    enum op_status status;
    int64_t updated_ns;
    int64_t due_ms;        /* monotonic: 0, or when to start again / to forget it (final) */
    json_t *metadata, *resources;
    char *err;
    int err_code;
    void (*on_cancel)(struct op *op, void *ud);
    void *on_cancel_ud;
    struct waiter *waiters;
    struct op *next; /* queue */
    struct op *stale_next; /* list of stale ones that still run */
    struct op *left_next;  /* while leadership is let go */
    UT_hash_handle hh;
};

struct ops {
    struct daemon *daemon;
    pthread_mutex_t lock, emit;
    pthread_cond_t work, changed, timer;
    const struct op_kind *kinds[OPERATION_KINDS_MAX];
    size_t kind_count;
    bool leading;     /* and the records are loaded */
    bool load_wanted; /* leads, but loading failed: the timer tries again */
    struct op *table;
    struct op *stale; /* running ones of former leaderships */
    struct op *queue, **queue_tail;
    unsigned threads, idle, waiter_count;
    int64_t timer_due_ms; /* when the timer thread looks next */
};
extern struct ops ops;

/* table.c */
static inline bool op_final(const struct op *op) { return op->status >= OP_SUCCESS; }
const char *op_status_name(enum op_status status);
const struct op_kind *op__kind(int type);
struct op *op__new(const char *uuid, const struct op_kind *kind, const char *project);
struct op *op__find_locked(const char *uuid);
void op__ref_locked(struct op *op);
void op__unref_locked(struct op *op);
void op__unref(struct op *op);
void op__list_locked(struct op *op);
void op__unlist_locked(struct op *op);
/* The operation as clients see it, in arena. */
Covey__V1__Operation *op__render_locked(const struct op *op, struct arena *arena);
/* Sends an event with the state that the operation has now. Without locks. */
void op__emit(struct op *op);
/* Waits until this leader has loaded the records; UNAVAILABLE otherwise. */
int op__ready_locked(struct error *err);
void op__wait_locked(pthread_cond_t *cond, int64_t until_ms, bool *timeout);

/* worker.c */
void op__start_locked(struct op *op);
/* Ends the operation in memory: state, waiters; the event is the caller's. Returns waiters to answer by op__answer(). */
struct waiter *op__end_locked(struct op *op, enum op_status status, const char *text, int code);
void op__init_workers(void);
/* A queued operation without any thread: tries to make one. */
void op__respawn_locked(void);

/* wait.c */
void op__answer(struct waiter *waiters, struct op *op, const struct error *err); /* err NULL: with the operation's state */
int op__wait(struct rpc_call *call, const Covey__V1__WaitOperationRequest *request, struct error *err);
/* Runs every waiter that is due; returns when the next one is (monotonic ms), or INT64_MAX. */
int64_t op__waiters_due(int64_t now_ms);
/* The timer must look again at `due_ms` at the latest. */
void op__timer_wake_locked(int64_t due_ms);
bool op__secret_matches_locked(const struct op *op, const char *secret);
/* Parses the `timeout` parameter: seconds; "" or negative = -1. */
int op_timeout_parse(const char *text, int64_t *ms, struct error *err);

/* service.c, connect.c */
bool op__visible_locked(const struct op *op, const struct caller *caller);
void op__bind(void);
int64_t op__connects_due(int64_t now_ms); /* ends streams whose first frame does not come; when to look next */
int op__connect(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud);

#endif
