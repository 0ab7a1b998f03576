/* What the daemon is at the moment: its database, its place in the cluster. Private to server/daemon and server/cluster. */
#ifndef COVEY_SERVER_DAEMON_STATE_H
#define COVEY_SERVER_DAEMON_STATE_H

#include "daemon.h"
#include "storage/raft_transport.h"

/* Opens the database with this member's id (from local state) and, when clustered, the Raft transport. */
int state_open_database(struct daemon *daemon, struct error *err);
/* Closes the database: waiting calls fail with UNAVAILABLE, users leave first. */
void state_close_database(struct daemon *daemon);
/* The Raft transport, NULL on a standalone server. Borrowed. */
struct raft_transport *state_transport(void);
/* Until then (monotonic ms) no Raft frame goes in or out: a rescue is deciding. 0 = at once again. */
void state_hold(int64_t until_ms);
/* Waits until the database has taken in every frame that came before. */
void state_settle(struct daemon *daemon);
/* The epoch in which the transport speaks; 0 without one. */
uint64_t state_epoch(void);
/* Starts the transport for a cluster (id and epoch from local state). */
int state_start_transport(struct daemon *daemon, struct error *err);

void state_set_identity(struct daemon *daemon, uint64_t id, bool clustered, const char *name);
/* Runs fn with the Raft node while the database cannot be exchanged; UNAVAILABLE when there is none. */
int state_with_raft(struct daemon *daemon, int (*fn)(struct raft_node *raft, void *ud, struct error *err), void *ud, struct error *err);
int state_with_db(struct daemon *daemon, int (*fn)(struct db *db, void *ud, struct error *err), void *ud, struct error *err);
/* Raft configuration as last reported: role by spec numbering (0 voter, 1 stand-by, 2 spare), -1 = not in it. */
int state_raft_role(uint64_t id);
size_t state_raft_servers(struct raft_node_server *out, size_t max);
/* Waits until the status changed or `ms` passed; returns a counter to pass as `seen` next time. */
unsigned state_wait_change(unsigned seen, int64_t ms);
void state_poke(void); /* ends such waits */
/* Digest last computed here. */
void state_digest(uint64_t *revision, char out[65]);
/* Registers a function that runs (on the loop thread, must not block) when status or tables changed. */
void state_on_change(void (*fn)(bool tables));

#endif
