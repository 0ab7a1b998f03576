/* Membership: who belongs to the cluster, who is alive, who holds the database, how servers come in. Shared by the files of this folder and server/daemon.
 *
 * The leader decides (controller.c, membership.c); members report on one Attach stream each (attach_member.c, attach.c); everybody acts by the view (view.c). */
#ifndef COVEY_SERVER_CLUSTER_H
#define COVEY_SERVER_CLUSTER_H

#include "covey/v1/cluster.pb-c.h"
#include "covey/v1/operation.pb-c.h"
#include "server/daemon/daemon.h"
#include "server/warnings/warnings.h"

enum {
    REPORT_PARTS = 10,               /* members report this often in cluster.offline_threshold, */
    REPORT_INTERVAL_MS_MIN = 1000,
    REPORT_INTERVAL_MS_MAX = 2000,   /* but at least this often */
    REPORT_FRESH_MS = 5000,          /* a member that has reported within this time is there */
    MEMBER_KEYS_MAX = 256,           /* configuration of one member */
    MEMBER_GROUPS_MAX = 256,         /* of one member */
    PENDING_MEMBER_KEEP_S = 600,     /* an accepted join that was never completed is forgotten */
    TOKEN_SWEEP_MS = 60000,
    MEMBER_NAME_MAX = 63,
    ADDRESS_MAX = 300,               /* bytes of a canonical address, with its end */
};

#define MEMBER_ETAG_FIELDS "roles,failure_domain,description,config,groups" /* the writable ones, in this order */

/* ---- view.c ---- */
/* Makes a view from the database (leader). The message lives in arena. */
int view_build(struct sql *sql, struct daemon *daemon, struct arena *arena, Covey__Internal__V1__View **out, struct error *err);
/* Takes a copy of a view as the current one if it is newer (term, then revision); persists members and certificates when they changed. */
void view_install(struct daemon *daemon, const Covey__Internal__V1__View *message);
/* Loads the view of the last run. */
void view_load(struct daemon *daemon);
void view_rebase(struct daemon *daemon); /* any leader's view counts as newer from now on: the terms of another epoch mean nothing */
void view_forget(struct daemon *daemon); /* back to an empty one (left the cluster) */
/* rpc_policy.classify */
void view_classify(void *ud, struct caller *caller);
void view_persist(struct daemon *daemon); /* writes the current view to the local database if it changed; may block */

/* ---- address.c: members that were moved ---- */
void address_load(struct daemon *daemon);       /* at start */
void address_pending(char out[ADDRESS_MAX]);    /* where this member is reached now, "" once the leader knows */
void address_settle(struct daemon *daemon);     /* forgets that when a leader's view says it */
void address_refuse(const struct error *why);   /* the leader refused it: this member cannot start */
bool address_refused(struct error *err);
/* ALREADY_EXISTS when another member of the view has this address. */
int address_check(const struct view *view, uint64_t member, const char *text, struct error *err);
void address_record(struct daemon *daemon);     /* leader's controller thread: writes what members told */

/* ---- members.c ---- */
struct rpc_channel *member_channel_by_address(struct daemon *daemon, const char *address); /* NULL = not clustered */
void members_forget_channels(void);
/* A member proved who it is and says where it is reached: used for it at once, until a view has another address than before. Ignored unless it is a
 * concrete address and nobody else's. */
void member_located(struct daemon *daemon, uint64_t id, const char *address);
void member_moved(uint64_t id); /* the view has another address than before */

/* ---- attach.c, attach_member.c: liveness, instance statuses, distribution of view and events. Thread: any, unless said ---- */
void attach_init(struct daemon *daemon);
rpc_handler attach_handler(void);    /* Membership.Attach */
uint64_t attach_known_leader(void);  /* of a member that is no replica: the leader that it found by asking; 0 = none */
void attach_start(struct daemon *daemon); /* the member's side: a thread that keeps a stream to the leader */
void attach_stop(void);
/* On the leader: forget everything and give each member of the view a full threshold of grace; or end all streams. */
void attach_lead(struct daemon *daemon, bool leader);
void attach_view_changed(void);
/* Milliseconds since a member was heard, and the wall clock's time of that; -1 if never in this term. */
int64_t attach_silence_ms(uint64_t member, int64_t *last_seen_unix_ns);
/* Waits until every live attached member acts by a view of at least `revision`. */
void attach_wait_view(uint64_t revision, int64_t ms);
void attach_expect(uint64_t member); /* a member that is new here: it has one threshold of grace to be heard */
void attach_forget(uint64_t member);
/* host.status_changed */
void attach_instance_changed(void *ud, const Covey__Internal__V1__InstanceStatus *status);
/* Instances that stopped while they were watched, since the last time; on the leader. Those of a member that is stopping itself are none. */
enum { ATTACH_HALTED_MAX = 256 };
struct attach_halted {
    char project[256], name[64];
};
size_t attach_take_halted(struct attach_halted *out); /* room for ATTACH_HALTED_MAX */
bool attach_member_stopping(uint64_t member);
bool attach_heard(uint64_t member); /* it reported to this leadership: more than the grace that every member has at first */
struct level_claim;
bool attach_claim(uint64_t member, struct level_claim *out); /* what an attached member announces (leader) */
void attach_address(uint64_t member, char out[ADDRESS_MAX]); /* where an attached member says that it was moved to, "" = nothing (leader) */
bool attach_told(uint64_t member); /* it has reported to this leadership */
bool attach_note_stopping(uint64_t member); /* until its next stream; false when this member does not lead yet */
/* Whether the member talks to this leader at the moment: its stream is open and fresh, and it is not stopping. */
bool attach_member_ready(uint64_t member);

/* ---- certificate.c: the certificate that all members present ---- */
rpc_handler certificate_update_handler(void); /* covey.v1.Cluster.UpdateClusterCertificate */
void certificate_membership_handlers(struct rpc_binding out[3]);
/* How often the certificate was changed, from 1; 0 while members that know nothing of it keep the column away. */
int certificate_generation(struct sql *sql, int64_t *out, struct error *err);
/* On the leader: takes the pair from the database if it is not the one in use. May block on disk. */
void certificate_lead(struct daemon *daemon);
/* On another member: puts in use what the view names, from what was staged or from the leader behind `channel`. May block for a moment. */
void certificate_follow(struct daemon *daemon, struct rpc_channel *channel);
/* When no leader can be reached: looks for peers that present an unknown certificate and takes it if they prove that it is the cluster's newer one. */
void certificate_seek(struct daemon *daemon);

/* Members whose clock was found to be right or wrong and for whom this is not written down yet; a copy of at most max. */
struct attach_clock {
    uint64_t member;
    enum skew_verdict verdict;
    int64_t lead_ns; /* over this member's clock */
};
size_t attach_clocks(struct attach_clock *out, size_t max);
void attach_clock_written(uint64_t member, enum skew_verdict verdict);

/* ---- liveness.c: on the controller thread ---- */
void liveness_check(struct daemon *daemon); /* writes who came and went */
void clocks_check(struct daemon *daemon);   /* raises and resolves warnings of clocks */
void joins_sweep(struct daemon *daemon);    /* forgets joins that were never completed */

/* ---- controller.c ---- */
enum member_role { ROLE_VOTER = 0, ROLE_STANDBY = 1, ROLE_SPARE = 2 }; /* spec numbering */
void controller_start(struct daemon *daemon);
void controller_stop(void);
void controller_wake(bool view_dirty);
/* Brings roles to what roles_plan says, one change after another; holds the membership lock. Leader only. */
int controller_rebalance(struct daemon *daemon, struct error *err);
/* Whether a member that is not missed yet, but cannot take a role at the moment, could take this one. */
bool controller_awaits_candidate(struct daemon *daemon, enum member_role role);
/* Waits until the view of this leader holds everything committed so far. */
uint64_t controller_refresh_view(struct daemon *daemon);
void membership_lock(void);
void membership_unlock(void);

/* ---- roles.c: pure ---- */
struct role_member {
    uint64_t id;
    enum member_role role;
    bool online;    /* not missed yet; an absent member's role is given to another one */
    bool ready;     /* can take a role now; implies online */
    bool leader;
    int64_t domain; /* failure domain, 0 = default */
};
struct role_change {
    uint64_t id; /* 0 = nothing to do */
    enum member_role role;
};
/* Next change by spec/cluster.md 5.4 with its [OWN] rules; deterministic (lower id first). */
struct role_change roles_plan(const struct role_member *members, size_t count, unsigned max_voters, unsigned max_standby);

/* ---- rules.c: pure ---- */
int member_name_check(const char *name, struct error *err); /* spec/cluster.md 9.1 */
/* A duration like Go's: "20.746432787s", "1m50.4s", "1h2m3.5s". */
void duration_text(int64_t ns, char *out, size_t size);
int group_name_check(const char *name, struct error *err); /* groups.c; spec/placement.md 2.2 */
int architecture_id(const char *name); /* 2 = x86_64 …; 0 = unknown */
const char *architecture_name(int id);

/* ---- remove.c (leader's side of a removal), leave.c (the member's that goes), rename.c ---- */
int member_remove(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
/* On the leader's controller thread, each tick: goes on with farewells that are owed. Never blocks. */
void removal_round(struct daemon *daemon);
int member_rename(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
void leave_bind(void); /* covey.internal.v1.Departure */
int cluster_disable(struct rpc_call *call, struct error *err); /* PUT /1.0/cluster with enabled = false (spec/cluster.md 3.6) */
/* This member's restart after leaving waits until the call has been answered. */
void leave_after_answer(struct rpc_call *call);
/* At start, when the member left: before its place in the cluster is read, and once the host runs. */
int leave_resume(struct daemon *daemon, struct error *err);
int leave_finish(struct daemon *daemon, struct error *err);
/* The cluster answered this member, or refused it as a stranger: then the log says what to do. */
void leave_note_answer(bool refused);
bool leave_is_refused(void); /* for so long that it is a member no more */
/* INVALID_ARGUMENT `text` while containers run on this server. */
int server_idle_check(struct daemon *daemon, const char *text, struct error *err);

/* ---- membership.c, introduce.c (leader's side of joining), join.c (the joiner's), service.c (covey.v1.Cluster) ---- */
/* Membership.HandOver */
int handover_serve(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
void membership_bind(void);
rpc_handler introduce_handler(void);
rpc_handler abandon_handler(void);
void cluster_service_bind(void);
/* Manual roles, groups and configuration of a member, into a message that has none yet. */
int member_stored(struct sql *sql, struct arena *arena, int64_t id, Covey__V1__Member *member, struct error *err);
void groups_bind(void); /* groups.c: covey.v1.ClusterGroups */
/* update.c: `now` is the member as the caller sees it. */
int member_update(struct rpc_call *call, const ProtobufCMessage *request, const Covey__V1__Member *now, struct error *err);
/* Writes this member's place to local.db, all of it or nothing; name NULL = standalone. */
int cluster_local_state(struct daemon *daemon, const char *name, const char *cluster_id, uint64_t epoch, uint64_t id, struct error *err);
/* At start, before anything looks for the database: a join that ended in the middle of the exchange gets the former database back. */
int join_prepare(struct daemon *daemon, struct error *err);
/* Whether a join is between two databases: the view need not know this member. */
bool join_exchanging(void);
/* At start: goes on with a join that was interrupted. */
int join_resume(struct daemon *daemon, struct error *err);
int join_start(struct rpc_call *call, const ProtobufCMessage *request, Covey__V1__Operation **operation, struct error *err);
void join_register(void);
/* From standalone to a cluster (bootstrap, join, an interrupted join) goes one at a time; refuses when one is under way. Thread: any. */
int forming_begin(struct error *err);
void forming_end(void);
int bootstrap_start(struct rpc_call *call, const char *name, Covey__V1__Operation **operation, struct error *err);
void bootstrap_register(void);

#endif
