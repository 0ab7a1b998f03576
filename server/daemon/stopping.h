/* How a daemon stops (spec/cluster.md 10). Private to server/daemon. */
#ifndef COVEY_SERVER_DAEMON_STOPPING_H
#define COVEY_SERVER_DAEMON_STOPPING_H

#include "daemon.h"

struct stop_manner {
    bool wait;      /* for work under way, at most core.shutdown_timeout minutes */
    bool instances; /* stop them, too */
};

/* What a signal asks for (0 or another one: nothing but the end), and what a client that asked for shutdown wants besides. */
struct stop_manner stop_manner(int signal);
/* A client asks for the end, once: FAILED_PRECONDITION `Shutdown already in progress`. The caller raises SIGTERM afterwards. */
int stop_ask(bool force, bool keep_instances, struct error *err);

/* Counts a call that works on this host until it has ended. Called by the dispatcher's policy for every call that runs here. */
void stop_count(struct rpc_call *call);
/* Waits until nothing works on this host for the cluster and no operation runs here. */
void stop_wait(struct daemon *daemon);

#endif
