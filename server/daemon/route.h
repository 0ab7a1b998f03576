/* Where calls run, and the phases of a daemon's life. Private to server/daemon. */
#ifndef COVEY_SERVER_DAEMON_ROUTE_H
#define COVEY_SERVER_DAEMON_ROUTE_H

#include "daemon.h"

enum daemon_phase {
    DAEMON_STARTING,
    DAEMON_BLOCKED, /* runs, and waits for older members (docs/design/upgrade.md) */
    DAEMON_READY,
    DAEMON_STOPPING,
};

#define DAEMON_BLOCKED_TEXT "Wait for other cluster nodes to upgrade their versions, cluster not started yet"

void daemon_set_phase(enum daemon_phase next);
enum daemon_phase daemon_phase(void);
/* rpc_policy.route, .route_now, .confirm and .admit */
int route_call(void *ud, struct rpc_call *call, const ProtobufCMessage *request, unsigned attempt, const struct error *last, struct rpc_channel **channel,
               struct error *err);
struct rpc_channel *route_now(void *ud, struct rpc_call *call);
bool confirm_call(void *ud, struct rpc_call *call, void (*done)(struct rpc_call *call, bool confirmed));
int admit_call(void *ud, struct rpc_call *call, struct error *err);

/* lock.c: one daemon (or offline command) per state directory, until the process ends; FAILED_PRECONDITION when another has it. Never waits. */
int daemon_lock(struct daemon *daemon, struct error *err);

/* admin.c */
void admin_bind(void);

/* gateway.c: the supervised gateway process */
int gateway_start(struct daemon *daemon, struct error *err);
void gateway_stop(void);

#endif
