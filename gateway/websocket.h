/* WebSockets over gRPC streams: one object that is the HTTP request's state until the upgrade (upgrade.c), then a socket on the hub thread
 * (websocket.c), and all the time the reader of a gRPC call. Two handlers use it: events and data streams (exec, console).
 *
 * References: the HTTP request, the call's end, the call's messages, the hub (from upgrade to close), and every posted job. */
#ifndef COVEY_GATEWAY_WEBSOCKET_H
#define COVEY_GATEWAY_WEBSOCKET_H

#include "hub.h"
#include "request.h"
#include "covey/v1/operation.pb-c.h"
#include <wslay/wslay.h>

struct ws_message {
    struct ws_message *next;
    uint8_t opcode;
    struct buf data;
};

struct websocket {
    atomic_int refs;
    bool stream; /* exec or console; else events */
    struct rpc_call *call;

    pthread_mutex_t lock; /* protects the following up to the blank line */
    struct request *request; /* to wake; NULL after the upgrade or the end of the request */
    bool hello;              /* the daemon has attached us */
    bool call_done, messages_done, upgraded; /* the call's status may be known before its last messages have been read */
    bool closed;             /* the client is gone: messages are thrown away */
    bool paused;             /* the call's messages wait for room */
    bool pump_posted;
    struct ws_message *out_head, **out_tail;
    size_t out_bytes;

    /* hub thread, set at the upgrade */
    struct websocket *next, *prev;
    struct hub_source source;
    int fd;
    int tcp_fd; /* TLS: a duplicate of the connection's own socket, see ws_release; else -1 */
    struct MHD_UpgradeResponseHandle *upgrade;
    struct wslay_event_context *wslay; /* NULL when closed */
    uint32_t bits;
    struct buf early; /* came with the request's headers */
    size_t early_taken;
    struct buf pending; /* of the client, not yet taken by the call */
    bool pending_end, retry_posted, closing;
    bool unmasked;           /* the client broke the protocol: it must mask */
    unsigned head_len, head_size; /* where in the client's frames we are */
    uint64_t payload_left;
    int64_t heard_ms;
};

struct websocket *websocket_ref(struct websocket *ws);
void websocket_unref(struct websocket *ws);
/* Queues a message (data is taken) for the client; false: no more until rpc_read_resume. Any thread. */
bool websocket_queue(struct websocket *ws, uint8_t opcode, struct buf *data);
/* Lets the hub look at the socket's queue. With the lock held. */
void websocket_pump_locked(struct websocket *ws);
/* Hub job: the socket is ours now; takes the hub's reference. */
void websocket_open(void *ws);
/* Closes all with code 1001 at shutdown. Any thread. */
void websocket_close_all(void);

#endif
