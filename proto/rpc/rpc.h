/* gRPC over the C core: servers, clients, streams, forwarding. One object, `struct rpc_call`, stands for a call on either side.
 *
 * Threads: one completion-queue thread per two cores decodes, authorises and hands over. Handlers of unary and server-streaming methods run on a
 * pool of worker threads (RPC_WORKERS_MAX public, RPC_AGENT_WORKERS_MAX for covey.internal services, so that a member that waits for another one's
 * agent cannot starve it); handlers of client-streaming and bidi methods are started there too. A handler may block within its deadline, or keep
 * the call and finish it later from any thread.
 *
 * Every call has a deadline (RPC_DEADLINE_MS_DEFAULT unless the caller gave one or the method is `long`). */
#ifndef COVEY_RPC_RPC_H
#define COVEY_RPC_RPC_H

#include "../core/cert.h"
#include "codec.h"

enum {
    RPC_WORKERS_MAX = 64,
    RPC_AGENT_WORKERS_MAX = 128,
    RPC_QUEUED_CALLS_MAX = 4096,          /* waiting for a worker; beyond: RESOURCE_EXHAUSTED */
    RPC_DEADLINE_MS_DEFAULT = 60 * 1000,
    RPC_STREAM_QUEUE_BYTES_MAX = 8 << 20, /* unsent bytes of one stream; beyond: rpc_send blocks or, non-blocking, refuses */
    RPC_METADATA_BYTES_MAX = 16 << 10,
};

/* Starts gRPC, the completion queue threads and the worker pools. Once per process. */
void rpc_init(void);
void rpc_shutdown(void); /* all servers and channels must be destroyed before; joins every thread */

/* ---- callers ---- */

enum caller_class { /* how the call came in; the daemon decides rights from it (server/auth) */
    CALLER_NONE,        /* TLS, certificate absent or not trusted */
    CALLER_LOCAL_ADMIN, /* local socket, root or the socket's group */
    CALLER_CLIENT,      /* trusted certificate of type client */
    CALLER_MEMBER,      /* certificate of a member of this cluster, speaking for itself */
};

struct caller {
    enum caller_class class;
    bool restricted;             /* client limited to `projects` */
    char **projects;             /* NULL-terminated when restricted; lives as long as the call */
    struct arena *arena;         /* the call's: rpc_policy.classify allocates projects from it */
    char protocol[16];           /* "unix", "tls", "cluster": for requestor fields */
    char username[FINGERPRINT_SIZE]; /* system user, or certificate fingerprint */
    char address[64];            /* peer address, "@" for local sockets */
    char fingerprint[FINGERPRINT_SIZE]; /* "" without a certificate */
    const char *cert_pem;        /* the certificate presented, NULL if none; lives as long as the call */
};

/* ---- calls, both sides ---- */

struct rpc_call;
struct rpc_channel;

/* Reference counting: handlers and callers own one reference; rpc_call_unref when done with it (for server calls: after finish). */
struct rpc_call *rpc_call_ref(struct rpc_call *call);
void rpc_call_unref(struct rpc_call *call);
const struct method *rpc_call_method(const struct rpc_call *call);
int64_t rpc_call_deadline_left_ms(const struct rpc_call *call); /* INT64_MAX when none */
bool rpc_call_cancelled(const struct rpc_call *call);
int64_t rpc_call_search_left_ms(const struct rpc_call *call); /* what is left of the time for finding a leader; policy.route only */
unsigned rpc_call_forwarded(const struct rpc_call *call); /* how many members passed it on before this one */
bool rpc_call_confirmed(const struct rpc_call *call); /* policy.confirm proved leadership after this call arrived */
/* Runs once, on any thread, when the peer cancelled, the connection broke or the call ended; at once if that has happened. */
void rpc_call_on_done(struct rpc_call *call, void (*fn)(struct rpc_call *call, void *ud), void *ud);

/* Streams. send: packs and queues; waits while RPC_STREAM_QUEUE_BYTES_MAX is reached (bounded by the deadline); `try` refuses instead with
 * RESOURCE_EXHAUSTED. recv: next message, in `arena`; STATUS_OUT_OF_RANGE at the end of the peer's messages. Each side has one reader at a time. */
int rpc_send(struct rpc_call *call, const ProtobufCMessage *message, struct error *err);
int rpc_try_send(struct rpc_call *call, const ProtobufCMessage *message, struct error *err);
int rpc_recv(struct rpc_call *call, ProtobufCMessage **message, struct arena *arena, struct error *err);
/* Instead of rpc_recv: fn runs on a completion-queue thread for each message (must not block; the message is valid during the call) and once with
 * NULL at the end. The next message is read after fn returns true; after false only when rpc_read_resume is called. */
void rpc_on_message(struct rpc_call *call, bool (*fn)(struct rpc_call *call, const ProtobufCMessage *message, void *ud), void *ud);
void rpc_read_resume(struct rpc_call *call);

/* ---- server side ---- */

struct rpc_server;

const struct caller *rpc_caller(const struct rpc_call *call);
/* The request id of a write (36-character UUID, given by the caller in metadata "covey-request-id" or made here): same id = same request. */
const char *rpc_request_id(const struct rpc_call *call);
struct arena *rpc_arena(struct rpc_call *call); /* freed with the call */
/* Value of a metadata key sent by the peer, NULL if absent. Keys "covey-…" are believed only from members and from the gateway. */
const char *rpc_metadata(const struct rpc_call *call, const char *key);
/* Ends a server call: response (may be NULL on error or for streams) and status. Exactly once; later calls are ignored. The text travels as the
 * gRPC status message, facts as trailing metadata covey-leader, covey-not-leader, covey-retry-ms. */
void rpc_finish(struct rpc_call *call, const ProtobufCMessage *response, int status, const struct error *err);

/* A handler. `request` is NULL for client-streaming and bidi. Return RPC_LATER to keep the call (then rpc_finish it; the reference passes to the
 * handler), else the status; *response in rpc_arena(call) (NULL with STATUS_OK = an empty message). */
enum { RPC_LATER = -1 };
typedef int (*rpc_handler)(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud);

/* For a handler that finds out by itself where its call runs (ROUTE_LOCAL methods with a special rule): passes the call on as the dispatcher does,
 * streams too. Return its result: RPC_LATER, or an error. The channel stays the caller's. Before the first rpc_recv/rpc_send only. Not repeated. */
int rpc_forward(struct rpc_call *call, struct rpc_channel *channel, struct error *err);

/* Joins a server call and an open client stream of the same message types (perhaps of another method) from now on: messages pass both ways undecoded and
 * with back-pressure, the client's status ends the server call. Messages read or sent before are not repeated; no callback of rpc_on_message may be
 * about to ask for more. Takes one reference of each. */
void rpc_join(struct rpc_call *call, struct rpc_call *client);

struct rpc_binding { const char *method; rpc_handler handler; }; /* method = bare name, e.g. "GetProfile" */
/* Handlers are process-wide: every server serves every bound service. A method of a bound service without a binding answers UNIMPLEMENTED
 * `not implemented`. The array must be static. Asserts that the names exist. */
void rpc_bind(const char *service, const struct rpc_binding *bindings, size_t count, void *ud);

/* The dispatcher's policy, set once by the daemon; every hook may be called from any thread. */
struct rpc_policy {
    void *ud;
    /* Fills class/restricted/projects from fingerprint and cert_pem (TLS callers). */
    void (*classify)(void *ud, struct caller *caller);
    /* Chooses where a call runs: 0 and *channel = NULL for here, or a channel (borrowed with a reference, see rpc_channel_ref) to forward to.
     * May wait for a leader, at most the call's deadline; runs on a worker thread. For ROUTE_LEADER after a not_leader answer it is asked again with
     * attempt + 1 and the leader named in `last`. Error ends the call. `request` is the unpacked request, NULL for streams. */
    int (*route)(void *ud, struct rpc_call *call, const ProtobufCMessage *request, unsigned attempt, const struct error *last,
                 struct rpc_channel **channel, struct error *err);
    /* Where a unary ROUTE_LEADER call runs, if that is another member and known without waiting: spares a worker thread on the way. NULL: ask route(). The
     * channel comes with a reference. Must not block. May be NULL. */
    struct rpc_channel *(*route_now)(void *ud, struct rpc_call *call);
    /* Reads of the leader (ROUTE_LEADER, not `write`): proves leadership before a worker thread is taken, so that none has to wait for it. False: not now, the
     * handler confirms by itself. True: done runs once, on any thread; rpc_call_confirmed() then tells the handler's side. Must not block. May be NULL. */
    bool (*confirm)(void *ud, struct rpc_call *call, void (*done)(struct rpc_call *call, bool confirmed));
    /* Called before a local handler runs (shutdown, not ready, member-only …); non-zero ends the call. May be NULL. */
    int (*admit)(void *ud, struct rpc_call *call, struct error *err);
};
void rpc_set_policy(const struct rpc_policy *policy);

/* Local socket: accepts itself, reads SO_PEERCRED, so that every call knows its user. Root and members of `group` (gid, -1 = none) are
 * CALLER_LOCAL_ADMIN; others are refused at accept. Calls may carry caller metadata (the gateway speaks for its clients): covey-caller-fingerprint,
 * covey-caller-cert (base64 DER), covey-caller-address, covey-caller-protocol, covey-caller-user. Mode 0660. An existing stale socket is replaced. */
struct rpc_server *rpc_server_listen_unix(const char *path, int64_t group, struct error *err);
/* TLS 1.3 with client certificate requested but not verified; `identity` may be replaced later for new connections. Address "host:port". */
struct rpc_server *rpc_server_listen_tls(const char *address, const struct identity *identity, struct error *err);
/* The same without an address: its connections are given to it. */
struct rpc_server *rpc_server_tls(const struct identity *identity, struct error *err);
/* Gives it a connected TCP socket (nonblocking, close-on-exec), taken in any case, from which nothing was read. One thread at a time, not after
 * rpc_server_destroy() has begun. At most 4,096 are open at a time: more are closed. Blocks for no longer than a system call. */
void rpc_server_take(struct rpc_server *server, int fd);
void rpc_server_set_identity(struct rpc_server *server, const struct identity *identity);
int rpc_server_port(const struct rpc_server *server); /* the TCP port (that was chosen for port 0); 0 for local sockets */
/* Stops listening, cancels calls that do not end within grace_ms, waits for them. NULL is fine. */
void rpc_server_destroy(struct rpc_server *server, int64_t grace_ms);

/* The overall status of grpc.health.v1.Health; NOT_SERVING until set. Watchers hear of changes. */
void rpc_health_set(bool serving);

/* ---- client side ---- */

struct rpc_channel *rpc_channel_unix(const char *path);
/* TLS; pins the server's certificate by fingerprint, whatever its name ("" = accept any: only to learn a fingerprint). `alt_fingerprint` may be
 * NULL or a second accepted one. `identity` = client certificate, may be NULL. Connections that fail are told with the address. */
struct rpc_channel *rpc_channel_tls(const char *address, const char *fingerprint, const char *alt_fingerprint, const struct identity *identity);
/* The same towards a peer whose certificate may change: `accept` is asked at every handshake whether the certificate with this fingerprint is the peer's, on a
 * thread of gRPC's, so it must not block; `ud` must outlive the channel. `name` says who is at the other end ("cluster member node2"): connections that fail are
 * told with it instead of gRPC's own words. */
struct rpc_channel *rpc_channel_peer(const char *address, const char *name, bool (*accept)(void *ud, const char *fingerprint), void *ud,
                                     const struct identity *identity);
struct rpc_channel *rpc_channel_ref(struct rpc_channel *channel);
void rpc_channel_unref(struct rpc_channel *channel);
/* PEM of the certificate that the server presented at the last handshake, NULL if none yet; caller frees. */
char *rpc_channel_server_cert(struct rpc_channel *channel);

struct rpc_options {
    int64_t timeout_ms;          /* 0 = RPC_DEADLINE_MS_DEFAULT, -1 = none */
    const char *request_id;      /* for writes; NULL = a new one */
    const char *const *metadata; /* key, value, key, value, …, NULL */
    const struct rpc_call *on_behalf_of; /* a server call: its caller, deadline and cancellation are passed on */
    bool wait_for_ready;         /* wait for the connection within the deadline instead of failing at once */
};

/* Unary, blocking. The response lives in `arena`. */
int rpc_unary(struct rpc_channel *channel, const char *service, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response,
              struct arena *arena, const struct rpc_options *options, struct error *err);
/* Whether a call that ended UNAVAILABLE did so because nobody can be there: the address refused the connection, is not to be reached, or belongs to somebody with
 * another certificate. False: a connection was lost or did not come about in time. */
bool rpc_refused(const struct error *err);
/* Unary, asynchronous: `done` runs once on a completion-queue thread (must not block); response NULL on error, valid during the call only. */
void rpc_unary_async(struct rpc_channel *channel, const struct method *method, const ProtobufCMessage *request, const struct rpc_options *options,
                     void (*done)(int status, const ProtobufCMessage *response, const struct error *err, void *ud), void *ud);
/* The same with a handle, so that the call can be cancelled (`done` runs then too) from any thread, also after its end. The caller frees the handle.
 * NULL, after `done` ran, when the call could not be started. NULL is fine for both functions. */
struct rpc_unary;
struct rpc_unary *rpc_unary_start(struct rpc_channel *channel, const struct method *method, const ProtobufCMessage *request, const struct rpc_options *options,
                                  void (*done)(int status, const ProtobufCMessage *response, const struct error *err, void *ud), void *ud);
void rpc_unary_cancel(struct rpc_unary *unary);
void rpc_unary_free(struct rpc_unary *unary);
/* Opens a stream (any of the three streaming kinds; for server streaming `request` is sent and closed). NULL only for an unknown method. Failures
 * to connect show up at recv / on_done. */
struct rpc_call *rpc_open(struct rpc_channel *channel, const char *service, const char *method, const ProtobufCMessage *request,
                          const struct rpc_options *options, struct error *err);
int rpc_half_close(struct rpc_call *call); /* no more messages from this side */
/* Waits for the final status (drains unread messages); the code, and text and facts in err. */
int rpc_status(struct rpc_call *call, struct error *err);
void rpc_cancel(struct rpc_call *call);

#endif
