/* Networks as membership needs them: what a joiner must have, what a member keeps. What one leaves behind: host_clear (server/host/host.h). */
#ifndef COVEY_SERVER_NETWORKS_MEMBER_H
#define COVEY_SERVER_NETWORKS_MEMBER_H

#include "covey/v1/cluster.pb-c.h"
#include "server/daemon/daemon.h"
#include "storage/sql.h"

/* Created networks with their global keys (member 0), or with those of one member too; in arena. */
int networks_read_specs(struct sql *sql, int64_t member, Covey__Internal__V1__NetworkSpec ***out, size_t *count, struct arena *arena, struct error *err);
/* The checks of spec/cluster.md 4.4: networks that a joiner has under a name of ours must fit; those that it lacks it makes from what it is told. Pure. */
int networks_check_joiner(Covey__Internal__V1__NetworkSpec *const *ours, size_t our_count, Covey__Internal__V1__NetworkSpec *const *theirs, size_t their_count,
                          struct error *err);
/* The cluster's networks with the keys that the joiner was given for itself, to be made on its host; in arena. Keys that are not a member's are left out with a
 * warning. Pure. */
Covey__Internal__V1__NetworkSpec **networks_for_joiner(Covey__Internal__V1__NetworkSpec *const *ours, size_t count, Covey__V1__MemberConfigKey *const *given, size_t given_count,
                                                       struct arena *arena);
/* In the transaction that completes a join: the member's rows. `Joining member has no config for network N`. */
int networks_complete_join(struct sql *sql, int64_t member, Covey__Internal__V1__NetworkSpec *const *specs, size_t count, struct error *err);
/* The handler of Membership.SyncNetworks. */
int network_sync(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
/* On a member, after its start, after a join and whenever another member leads (the former leader may have died between two members): a thread has the leader bring this host's networks to what the database says, until that worked. */
void networks_sync(struct daemon *daemon);
/* At the daemon's stop, after its servers: no call is under way any more when it returns. */
void networks_sync_stop(void);

#endif
