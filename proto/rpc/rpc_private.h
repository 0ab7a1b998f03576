/* What the files of this folder share: the call object, tags, worker pools, policy. Nobody outside proto/rpc includes it. */
#ifndef COVEY_RPC_PRIVATE_H
#define COVEY_RPC_PRIVATE_H

#include "rpc.h"
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <pthread.h>
#include <stdatomic.h>

enum {
    RPC_LONG_MAX = 512,              /* threads for streams and `long` methods; beyond: RESOURCE_EXHAUSTED */
    RPC_CQ_THREADS_MAX = 8,          /* one per two cores, at most */
    RPC_THREAD_IDLE_MS = 10 * 1000,  /* an idle worker ends after this */
    RPC_FORWARDS_MAX = 3,            /* a call that was forwarded so often is in a loop */
    RPC_RETRY_MS_MAX = 10 * 1000,    /* how long a call looks for a leader */
    RPC_RETRY_PAUSE_MS_MIN = 20,
    RPC_RETRY_PAUSE_MS_MAX = 200,
    RPC_UNARY_SLOTS_MAX = 64,        /* calls requested ahead per unary method, grown by use (idle methods keep few: memory) */
    RPC_STREAM_SLOTS_MAX = 8,
    RPC_SLOTS_MIN = 2,
    RPC_UNIX_USERS_MAX = 16,         /* server objects per local socket, one per user; later users share one */
    RPC_CONNECTIONS_MAX = 4096,      /* open at a time to a server that is given its connections */
    RPC_WAIT_SLACK_MS = 2000,        /* gRPC ends a call at its deadline; our own waits end this much later at the latest */
};

/* Everything given to a completion queue starts with this. */
struct tag {
    void (*fn)(struct tag *tag, bool ok);
    /* Hands what we wrote to the queue thread in a way that race detectors can see: gRPC's own hand-over is invisible to them. */
    atomic_uint posted;
};
static inline struct tag *tag_post(struct tag *tag)
{
    atomic_fetch_add_explicit(&tag->posted, 1, memory_order_release);
    return tag;
}

/* A message that waits to be written. `done` (may be NULL) runs once without locks held: written (ok) or dropped. */
struct outgoing {
    struct outgoing *next;
    grpc_byte_buffer *buffer;
    size_t size;
    void (*done)(void *ud, bool ok);
    void *ud;
};

struct done_hook {
    struct done_hook *next;
    void (*fn)(struct rpc_call *call, void *ud);
    void *ud;
};

struct task { /* work for a pool; owned by whoever embeds it */
    struct task *next;
    void (*run)(struct task *task);
};

struct rpc_call {
    atomic_int refs;  /* all references: users, batches, tasks */
    atomic_int users; /* those of rpc_call_ref; the last one gone ends the call */
    bool is_server;
    const struct method *method;
    grpc_call *call;
    int64_t deadline_ms; /* monotonic; INT64_MAX = none */
    struct tag recv_tag, send_tag, end_tag;

    /* server: set before the handler runs, constant afterwards */
    struct endpoint *endpoint;
    struct caller caller;
    bool peer_member, from_unix, claimed; /* the peer itself is a member; local socket; it spoke for somebody else */
    unsigned forwarded;
    char request_id[37];
    grpc_metadata_array metadata; /* received: initial (server), initial (client) */
    grpc_auth_context *auth;
    grpc_byte_buffer *payload; /* the single request, kept for forwarding */
    struct arena arena;
    const ProtobufCMessage *request;
    struct task task;
    bool confirmed; /* by policy.confirm, set before the task is submitted */
    /* server, unary, routed: the search for the leader; only one thread at a time is in it */
    unsigned attempt;
    int64_t route_until_ms;
    bool routed, maybe_done; /* went through policy.route; an earlier attempt may have been executed */
    struct error *last_error;

    pthread_mutex_t lock; /* protects everything below */
    pthread_cond_t changed;
    grpc_byte_buffer *incoming; /* target of the outstanding RECV_MESSAGE */
    grpc_byte_buffer *unread;   /* received, not taken */
    bool reading, read_end, read_failed, read_paused, in_callback, resume_wanted, end_told;
    bool (*on_message)(struct rpc_call *call, const ProtobufCMessage *message, void *ud);
    bool (*on_raw)(struct rpc_call *call, grpc_byte_buffer *buffer, void *ud); /* takes buffer; NULL at the end */
    void *on_message_ud;

    struct outgoing *out_head, **out_tail, *out_active;
    size_t out_bytes;
    bool sending, initial_sent, send_broken;
    bool close_wanted, closed; /* client: half close */

    bool finish_wanted, finish_sent; /* server: rpc_finish was called; its batch was started */
    int finish_status;
    struct error *finish_error;

    bool done;      /* the call ended (close on server, status on client) */
    int cancelled;  /* server: out value of RECV_CLOSE_ON_SERVER */
    struct done_hook *hooks;

    /* client */
    struct rpc_channel *channel;
    grpc_metadata_array trailing;
    grpc_status_code status;
    grpc_slice status_details;
};

struct rpc_channel {
    atomic_int refs;
    grpc_channel *channel;
    struct tls_pin *pin; /* NULL for local sockets */
    char *peer;          /* who is at the other end, for texts; NULL = unknown */
    _Atomic(void *) *methods; /* registered call handles by method index */
};

/* ---- rpc.c ---- */
extern struct rpc_policy rpc__policy; /* zero until rpc_set_policy */
extern _Thread_local bool rpc__on_queue_thread;
unsigned rpc__queue_count(void);
grpc_completion_queue *rpc__queue(unsigned index); /* modulo the count */
grpc_completion_queue *rpc__next_queue(void);      /* round robin */
struct binding { rpc_handler handler; void *ud; bool bound; /* the service is */ };
const struct binding *rpc__binding(const struct method *method);
bool rpc__is_grpc_service(const struct method *method);
bool rpc__method_long(const struct method *method);
gpr_timespec rpc__timespec(int64_t deadline_ms); /* monotonic ms to gRPC's form */
int64_t rpc__mono_ms(gpr_timespec deadline);
void rpc__cond_init(pthread_cond_t *cond); /* on the monotonic clock */
/* Waits for a signal until the monotonic time (INT64_MAX = no limit); false at the limit. */
bool rpc__cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t until_ms);
/* Packs a message (NULL: an empty one); NULL with an error when it is larger than CODEC_MESSAGE_MAX. */
grpc_byte_buffer *rpc__pack(const ProtobufCMessage *message, struct error *err);
ProtobufCMessage *rpc__unpack(const ProtobufCMessageDescriptor *descriptor, grpc_byte_buffer *buffer, struct arena *arena, struct error *err);

/* Metadata under construction: keys are constants, values are copied. Sized for what we send; asserts when full. */
enum { RPC_METADATA_MAX = 48 };
struct md_list {
    size_t count;
    grpc_metadata items[RPC_METADATA_MAX];
};
bool md_add_slices(struct md_list *list, grpc_slice key, grpc_slice value); /* takes new references; false when full */
bool md_add(struct md_list *list, const char *key, const char *value); /* false: not a legal key or value, or full */
void md_free(struct md_list *list);
/* Copies the value into out; false if absent or too long. */
bool md_get(const grpc_metadata_array *array, const char *key, char *out, size_t size);
bool md_has(const grpc_metadata_array *array, const char *key);
void rpc__error_to_md(const struct error *err, struct md_list *list);
void rpc__error_from_md(const grpc_metadata_array *array, struct error *err);

/* ---- pool.c ---- */
struct pool;
struct pool *pool__create(const char *name, unsigned threads_max, unsigned queue_max);
void pool__destroy(struct pool *pool); /* runs what is queued, then joins */
bool pool__submit(struct pool *pool, struct task *task); /* false: full */
/* Runs after delay_ms on `pool`; when that is full then, later. */
void pool_submit_later(struct pool *pool, struct task *task, int64_t delay_ms);
void pool_timer_stop(void); /* runs what waits at once, joins the timer thread */
extern struct pool *rpc__pool_public, *rpc__pool_agent, *rpc__pool_long;
struct pool *rpc__pool_of(const struct method *method);

/* ---- call.c ---- */
struct rpc_call *call__new(bool is_server, const struct method *method); /* one user reference */
void call__hold(struct rpc_call *call);
void call__drop(struct rpc_call *call);
void call__read_locked(struct rpc_call *call); /* starts RECV_MESSAGE unless one is outstanding or the end was reached */
void call__send_locked(struct rpc_call *call); /* starts the next write batch */
void call__ended(struct rpc_call *call);       /* sets done, wakes, drops what is queued, runs hooks */
/* Queues a buffer (taken). Never waits. `done` runs also when the call is over already. */
void call__send_raw(struct rpc_call *call, grpc_byte_buffer *buffer, void (*done)(void *ud, bool ok), void *ud);
void call__on_raw(struct rpc_call *call, bool (*fn)(struct rpc_call *call, grpc_byte_buffer *buffer, void *ud), void *ud);
void call__client_status(struct rpc_call *call, struct error *err); /* after done: status as an error value */

/* ---- server.c, caller.c ---- */
struct endpoint { /* one grpc_server with what its callers have in common */
    struct endpoint *next;
    struct rpc_server *owner;
    grpc_server *server;
    void **methods;      /* registered handles by method index */
    pthread_mutex_t lock; /* protects slots, pending */
    unsigned *slots;      /* requested calls by method index, the last for unknown paths */
    unsigned pending;     /* requested calls in all */
    bool is_unix, stopped;
    uint32_t uid;
    bool shared; /* the one for all users beyond RPC_UNIX_USERS_MAX */
    char username[FINGERPRINT_SIZE];
    struct tag shutdown_tag;
};
int caller__build(struct rpc_call *call, struct error *err);  /* fills caller, peer_member, forwarded, request id */
bool caller__may(const struct rpc_call *call);                /* the access column */
void caller__to_md(const struct rpc_call *call, struct md_list *list); /* for forwarding and on_behalf_of */
/* Sends the final batch of a unary call or marks the status of a stream; `buffer` (may be NULL) is taken. No retry logic. */
void server__finish_raw(struct rpc_call *call, grpc_byte_buffer *buffer, int status, const struct error *err);
void server__dispatch(struct rpc_call *call); /* worker thread: unpacks the request if that was not done, then forward__dispatch() */
void server__run_local(struct rpc_call *call); /* worker thread; takes the handler's reference */
void server__fail(struct rpc_call *call, int status, const struct error *err); /* finish without retry, gives the handler's reference back */

/* ---- handover.c ---- */
#define HANDOVER_TARGET "external:covey" /* what such a server "listens" on, and the argument's key */
struct handover;
bool handover__supported(struct error *err); /* by this libgrpc */
struct handover *handover__create(void);
grpc_arg handover__arg(struct handover *handover); /* for grpc_server_create; the object must outlive the server */
bool handover__ready(const struct handover *handover); /* after grpc_server_add_http2_port(HANDOVER_TARGET) */
void handover__take(struct handover *handover, int fd); /* after grpc_server_start; one thread at a time */
void handover__destroy(struct handover *handover);

/* ---- tls.c ---- */
void tls_init(void);
struct tls_server; /* the identity that new handshakes use */
struct tls_server *tls_server_create(const struct identity *identity);
void tls_server_set(struct tls_server *tls, const struct identity *identity);
void tls_server_destroy(struct tls_server *tls); /* after the grpc_server */
grpc_server_credentials *tls_server_credentials(struct tls_server *tls);
struct tls_pin *tls_pin_create(const char *fingerprint, const char *alt_fingerprint);
struct tls_pin *tls_pin_create_asking(bool (*accept)(void *ud, const char *fingerprint), void *ud);
void tls_pin_unref(struct tls_pin *pin);
char *tls_pin_cert(struct tls_pin *pin);
grpc_channel_credentials *tls_channel_credentials(struct tls_pin *pin, const struct identity *identity);

/* ---- client.c ---- */
/* One unary call with raw bytes. `done` runs once on a queue thread; response (NULL on error) is the callee's to destroy; answered = the
 * status came from a covey server, not from a broken connection. */
typedef void (*unary_done)(void *ud, int status, grpc_byte_buffer *response, const struct error *err, bool answered);
void client__unary_raw(struct rpc_channel *channel, const struct method *method, grpc_byte_buffer *request, const struct md_list *metadata,
                       struct rpc_call *parent, int64_t deadline_ms, bool wait_for_ready, unary_done done, void *ud);
/* Opens a stream; `request` (may be NULL) is sent and closed. Returns one user reference. */
struct rpc_call *client__open_raw(struct rpc_channel *channel, const struct method *method, grpc_byte_buffer *request, const struct md_list *metadata,
                                  const struct rpc_call *parent, int64_t deadline_ms, bool wait_for_ready);

bool client__never_sent(const struct error *err); /* the call failed before anything left this process */

/* ---- forward.c ---- */
void forward__dispatch(struct rpc_call *call); /* worker thread: routes, then forwards or runs here; takes the handler's reference */
/* Queue thread: forwards the call if the policy knows where to; takes the handler's reference then. */
bool forward__at_once(struct rpc_call *call);
/* True when the failed call will be tried again elsewhere (the dispatcher keeps its own reference then). */
bool forward__retry(struct rpc_call *call, int status, const struct error *err, bool answered);

/* ---- health.c, reflection.c ---- */
void health__init(void);
void health__shutdown(void);
void reflection__init(void);

#endif
