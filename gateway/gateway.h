/* The gateway as a part that main() and the tests start: REST /1.0 on one side, gRPC to the daemon on the other.
 * One gateway per process (libmicrohttpd's panic hook and the route table are process-wide). registry_init() and rpc_init() come first. */
#ifndef COVEY_GATEWAY_GATEWAY_H
#define COVEY_GATEWAY_GATEWAY_H

#include "proto/rpc/rpc.h"

/* Limits, with what happens at each. */
enum {
    GATEWAY_BODY_BYTES_MAX = 16 << 20,     /* a JSON body; beyond: 413 */
    GATEWAY_BODY_DISCARD_MAX = 64 << 20,   /* of a refused body that is read so that the client gets its answer; beyond: the connection is cut */
    GATEWAY_CONNECTIONS_MAX = 1000,        /* per listener; beyond: refused at accept */
    GATEWAY_CONNECTION_BYTES = 32 << 10,   /* request line and headers of one connection; beyond: 414 or 431 */
    GATEWAY_IDLE_S = 300,                  /* a connection without any traffic is closed */
    GATEWAY_PARAMS_MAX = 64,               /* query parameters; beyond: 400 */
    GATEWAY_SEGMENTS_MAX = 12,             /* of a path; beyond: 404 */
    GATEWAY_CERT_DER_BYTES_MAX = 6000,     /* of a client certificate (it travels as call metadata); beyond: 400 */
    GATEWAY_GONE_CHECK_MS = 250,           /* how often waiting requests are checked for a client that left */
    GATEWAY_TRIM_MS = 5000,                /* after the last request, at most so often: free memory goes back to the system */
    GATEWAY_RETRY_MS = 5,                  /* a full gRPC stream is tried again after this */
    GATEWAY_FEED_RECONNECT_MS = 200,       /* gateway.socket of the daemon */
    GATEWAY_FEED_BURST = 64,               /* connections taken in one go from it */
    GATEWAY_DRAIN_MS = 2000,               /* requests in flight may end for so long at shutdown */
    GATEWAY_CANCEL_MS = 3000,              /* and cancelled ones so much longer */
    GATEWAY_UPLOAD_CHUNK_BYTES = 256 << 10, /* of an image in one gRPC message (contract: at most 1 MiB) */
    GATEWAY_UPLOAD_PENDING_MAX = 1 << 20,  /* received and not yet taken by the stream; beyond: the client waits */
    GATEWAY_EXPORT_PENDING_MAX = 1 << 20,  /* received from the daemon and not yet sent; beyond: the stream waits */
    GATEWAY_WS_MESSAGE_BYTES_MAX = 16 << 20, /* of a client, fragments together; beyond: close 1009 */
    GATEWAY_WS_FRAME_DATA_BYTES = 1 << 20, /* of a data stream in one gRPC message */
    GATEWAY_WS_OUT_BYTES_HIGH = 1 << 20,   /* unsent to one client; beyond: the stream waits */
    GATEWAY_WS_OUT_BYTES_LOW = 256 << 10,  /* below: it goes on */
    GATEWAY_WS_PING_MS = 10 * 1000,
    GATEWAY_WS_SILENCE_MS = 30 * 1000,     /* an event listener that does not answer pings so long is dropped */
    GATEWAY_WS_CLOSE_MS = 5 * 1000,        /* how long we wait for the other side's close */
};

struct gateway_options {
    const char *dir; /* the state directory */
    int64_t group;   /* gid that may use unix.socket besides root, -1 = none */
};

/* Opens unix.socket, connects to the daemon and serves in threads of its own. */
int gateway_start(const struct gateway_options *options, struct error *err);
/* Stops accepting, lets requests in flight end (GATEWAY_DRAIN_MS), cancels the rest, closes WebSockets, joins all threads. False: something
 * did not end in time, and the process should leave by _exit. */
bool gateway_stop(void);

#endif
