/* The member's network listeners. One port can carry both REST and gRPC: a connection whose TLS ClientHello offers ALPN h2 without http/1.1 is gRPC and is
 * given to the daemon's gRPC server, untouched; every other is REST and its socket is passed to the gateway (DIR/gateway.socket). So the rules
 * of spec/cluster.md 1.5 hold: core.https_address and cluster.https_address may be one address, or a wildcard may cover the other. */
#ifndef COVEY_SERVER_DAEMON_LISTENER_H
#define COVEY_SERVER_DAEMON_LISTENER_H

#include "daemon.h"

enum {
    LISTENER_HELLO_TIMEOUT_MS = 5000,
    LISTENER_PENDING_MAX = 1024, /* connections whose first bytes are awaited; beyond, the oldest is closed */
};

/* The thread and the gateway's control socket. `grpc` (rpc_server_tls) must live until listener_stop(). */
int listener_start(struct daemon *daemon, struct rpc_server *grpc, struct error *err);
/* Listens on exactly these canonical addresses ("" = none). Validates by binding first; on failure the former ones stay and *err says which:
 * `Cannot listen on network HTTPS socket "<a>": …` (core) or `Cannot listen on cluster HTTPS socket "<a>": …`. */
int listener_set(struct daemon *daemon, const char *core, const char *cluster, struct error *err);
/* Current addresses, copied. */
void listener_get(char *core, size_t core_size, char *cluster, size_t cluster_size);
void listener_stop(void);

#endif
