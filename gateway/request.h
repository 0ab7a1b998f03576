/* What the files of gateway/ share: the request, its answer, and the life of both.
 *
 * A request belongs to its HTTP connection's thread, except while the connection is suspended: then whoever finishes the call (a gRPC queue
 * thread) may write the answer, and request_wake() gives it back. Two references: the connection's and the running call's. */
#ifndef COVEY_GATEWAY_REQUEST_H
#define COVEY_GATEWAY_REQUEST_H

#include "gateway.h"
#include "route.h"
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#define GATEWAY_HEADER_PREFIX "X-LXD-" /* of the image headers: the one place where the product's name enters REST headers */

struct peer { /* one per connection */
    bool tls;
    bool cert_checked, cert_too_large;
    char user[FINGERPRINT_SIZE];
    char address[64];
    char fingerprint[FINGERPRINT_SIZE];
    char *cert_base64; /* DER; NULL = none given */
    /* TLS: what was encrypted and waits for the next part, so that both leave in one packet; tls.c */
    int fd;
    bool hold_next;
    struct buf held;
};

struct request;

/* How a method is served. Every function runs on the connection's thread. */
struct handler {
    const char *name;                 /* covey.v1.Rpc.special; "" = the generic one */
    bool (*begin)(struct request *r); /* may be NULL; headers are there. True: `body` gets the body; false: it is collected for `run` */
    size_t (*body)(struct request *r, const char *data, size_t len); /* returns how much was taken; may suspend */
    /* The whole request is there, or it was woken. Queues an answer, or suspends. */
    enum MHD_Result (*run)(struct request *r);
    void (*close)(struct request *r); /* may be NULL; the HTTP request is over, answered or not */
};

struct request {
    atomic_int refs;
    struct MHD_Connection *connection;
    struct peer *peer;
    struct arena arena;
    char *uri; /* as sent */
    const char *verb;
    struct route_match match;
    struct param params[GATEWAY_PARAMS_MAX];
    size_t param_count;
    const struct handler *handler;
    char request_id[37];
    bool begun, started, streamed_body, discard;
    struct buf body;
    size_t body_bytes;
    void *state; /* the handler's */

    /* the answer */
    int http; /* 0 = not yet */
    struct buf out;
    char *location, *etag; /* in arena */
    bool close_after;

    pthread_mutex_t lock; /* protects the next two */
    bool suspended;
    bool woken; /* wake came before suspend */

    /* in the list of requests whose client is watched (gateway.c) */
    struct request *next, *prev;
    bool watched, call_over;
    int fd;
    void (*gone)(struct request *r); /* the client left: cancel the call. Hub thread; must not block or wake */
    struct rpc_unary *call;          /* for gone; released with the request */
};

struct request *request_ref(struct request *r);
void request_unref(struct request *r);
/* Suspends the connection until request_wake. Connection's thread only. */
void request_suspend(struct request *r);
/* Any thread. Safe when not suspended (then nothing happens but that the next suspend returns at once). */
void request_wake(struct request *r);
const char *request_header(const struct request *r, const char *name); /* NULL if absent */
const char *request_param(const struct request *r, const char *name);  /* the first of that name, NULL if absent */

/* ---- bind.c: the request message ---- */
/* Builds the message from query, headers, body and path; the message lives in the request's arena. */
int bind_message(struct request *r, ProtobufCMessage **out, struct error *err);
/* Decodes %XX (and '+' if `plus`); NULL when it is malformed or not UTF-8. */
char *text_decode(struct arena *arena, const char *text, size_t len, bool plus);
/* "a=b&c=d" into decoded pairs. STATUS_INVALID_ARGUMENT when malformed or more than max. */
int params_parse(struct arena *arena, const char *text, struct param *out, size_t max, size_t *count, struct error *err);
/* Appends text percent-encoded as one path segment. */
void text_encode_segment(struct buf *out, const char *text);

/* ---- answer.c: envelopes, into r->out ---- */
void answer_error(struct request *r, int http, const char *text);
void answer_status(struct request *r, const struct error *err);
void answer_empty(struct request *r);
void answer_created(struct request *r, const char *location); /* copied */
void answer_operation(struct request *r, const ProtobufCMessage *operation);
/* By the method's reply kind. */
void answer_message(struct request *r, const ProtobufCMessage *response);
/* Sends what one of the above made. */
enum MHD_Result answer_send(struct request *r);

/* ---- http.c: what the daemon is told about the caller ---- */
enum { CALL_METADATA_MAX = 12 };
struct call_metadata {
    const char *items[CALL_METADATA_MAX];
};
struct rpc_options request_options(struct request *r, struct call_metadata *metadata);
struct rpc_channel *gateway_channel(void);
bool gateway_draining(void);

/* ---- gateway.c: requests that wait ---- */
void watch_add(struct request *r, void (*gone)(struct request *r));
void watch_remove(struct request *r); /* after it returns `gone` does not run any more */

/* ---- handlers ---- */
extern const struct handler handler_generic, handler_create_certificate, handler_events, handler_stream, handler_upload, handler_export;
const struct handler *handler_find(const struct method *method); /* NULL: not implemented */

#endif
