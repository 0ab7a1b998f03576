/* The daemon of one member: what its parts share. One object for the process; created by main, passed to every module's init.
 *
 * Threads: the database's loop thread, the RPC threads, the controller thread (server/cluster/controller.c), operation workers. Fields are set before
 * threads start unless a lock is named. */
#ifndef COVEY_SERVER_DAEMON_H
#define COVEY_SERVER_DAEMON_H

#include "covey/internal/v1/membership.pb-c.h"
#include "proto/rpc/rpc.h"
#include "server/host/host.h"
#include "storage/db.h"
#include "storage/local.h"
#include <signal.h>

enum {
    COVEY_API_LEVEL = 1, /* grows with every change of how members talk; docs/design/upgrade.md */
    COVEY_API_FLOOR = 1, /* the oldest level that can serve beside this one: raised to the level of an incompatible change */
    LEADER_WAIT_MS = 10000, /* how long a call waits for a leader before it fails */
    AGENT_TIMEOUT_MS = 30000,
    VIEW_PROPAGATION_MS = 3000, /* a write that changes trust or configuration waits this long for live members to know */
};

struct daemon {
    char *dir;            /* state directory, absolute */
    char *group;          /* NULL = root only */
    char hostname[256];
    struct host *host;
    struct local_db *local;
    struct identity server; /* server.crt: who this member is towards other members */
    int64_t started_ms;
};

/* Sent by the process to itself: main stops everything and executes the program again, in the same process (server/cluster/leave.c). */
#define DAEMON_RESTART_SIGNAL SIGUSR1

extern struct daemon *the_daemon; /* for RPC handlers; set once in main */

/* ---- threads beside requests (server/daemon/background.c) ---- */

/* A thread that ends by itself; the stop waits for it, bounded. name: at most 15 bytes. 0, or the error number (logged): no thread was started then. */
int background_start(const char *name, void *(*run)(void *ud), void *ud);
/* Sleeps. False at once when the daemon stops: the caller is to end. */
bool background_pause(int64_t ms);
void background_end(void);  /* pauses end from now on */
void background_join(void); /* after background_end(): waits for the threads */

/* ---- identity and database (server/daemon/state.c) ---- */

/* The id of this member: 1 on a standalone server. Changes once, at a join. */
uint64_t daemon_id(struct daemon *daemon);
bool daemon_clustered(struct daemon *daemon);
/* Copies of the member name (host name when not clustered) and of this member's location text ("none" when not clustered). */
void daemon_name(struct daemon *daemon, char *out, size_t size);
void daemon_location(struct daemon *daemon, char *out, size_t size);

/* Wrappers of db_write/db_read that hold the database against a join's exchange of it. See storage/db.h. */
int daemon_write(struct daemon *daemon, const char *key, db_write_fn fn, void *ud, struct buf *result, bool *replayed, uint64_t *revision, struct error *err);
int daemon_read(struct daemon *daemon, enum db_consistency consistency, db_read_fn fn, void *ud, uint64_t *revision, struct error *err);
/* For handlers: the key is the call's request id plus "/" and `step`; so a repeated call does each step once. */
int daemon_write_call(struct rpc_call *call, const char *step, db_write_fn fn, void *ud, struct buf *result, bool *replayed, struct error *err);
bool daemon_leads(struct daemon *daemon);       /* leads and may serve */
uint64_t daemon_leader_id(struct daemon *daemon); /* 0 = unknown */
uint64_t daemon_term(struct daemon *daemon);

/* ---- the view: members, trust, global configuration (server/cluster/view.c) ---- */

/* The current view, immutable, with a reference; release with view_unref. Never NULL (empty before the first one). */
struct view { Covey__Internal__V1__View *message; /* read-only */ };
const struct view *view_get(void);
void view_unref(const struct view *view);
const Covey__Internal__V1__ViewMember *view_member_by_id(const struct view *view, uint64_t id);
const Covey__Internal__V1__ViewMember *view_member_by_name(const struct view *view, const char *name);
const char *view_config(const struct view *view, const char *key); /* NULL when unset */
/* On the leader, after a write that changed members, certificates or configuration: waits until this member and every live member act by it,
 * at most VIEW_PROPAGATION_MS. */
void view_propagate(struct daemon *daemon);

/* ---- members (server/cluster/) ---- */

/* A channel to a member's daemon (itself included), with a reference; NULL with `Cluster member not found` or no address. */
struct rpc_channel *member_channel(struct daemon *daemon, uint64_t id, struct error *err);
/* Whether the leader has heard from the member within the offline threshold (on the leader; elsewhere: as the view says). */
bool member_online(struct daemon *daemon, uint64_t id);
/* For what every member must take part in: UNAVAILABLE `peer node ADDR is down` for the first one that is offline (spec/cluster.md 6.3). */
int members_all_up(struct error *err);
/* Runs `work` for 0 ≤ index < count, at most MEMBERS_PARALLEL_MAX at a time, each with an arena of its own; returns when all have ended. Thread: may block. */
enum { MEMBERS_PARALLEL_MAX = 16 };
void members_each(size_t count, void (*work)(void *ud, size_t index, struct arena *arena), void *ud);
/* Calls a covey.internal.v1.Agent method on a member; UNAVAILABLE when it is offline. timeout_ms 0 = AGENT_TIMEOUT_MS, -1 = none. */
int agent_call(struct daemon *daemon, uint64_t member, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response, struct arena *arena,
               int64_t timeout_ms, struct error *err);
/* Live status of an instance as its member reported it (leader only): code of spec/api.md 1.3; 112 (Error) when the member is offline or
 * has not yet reported to this leader, 102 when its report does not name the instance. */
int64_t instance_status(struct daemon *daemon, uint64_t member, const char *project, const char *name, int64_t *pid);
/* What an agent has just answered about an instance, ahead of its member's next report: whoever asks after an operation must not see an older state. */
void instance_status_note(struct daemon *daemon, uint64_t member, const char *project, const char *name, int64_t status_code);
/* Resolves a `target` parameter: "" = 0; member name -> id; STATUS_NOT_FOUND `Cluster member not found`; on a standalone server
 * STATUS_INVALID_ARGUMENT `Target only allowed when clustered`. */
int target_resolve(struct daemon *daemon, const char *target, uint64_t *member, struct error *err);

/* ---- SQL helpers for controllers ---- */
/* Project id by name ("" = default); STATUS_NOT_FOUND `Project not found`. */
int project_id(struct sql *sql, const char *project, int64_t *id, struct error *err);
const char *project_or_default(const char *project);

#endif
