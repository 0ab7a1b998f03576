/* Between the files of this folder: an instance as the leader's controllers see it, the lock against two operations on one instance, and the steps of
 * operations. Everything loaded lives in the arena that was given. */
#ifndef COVEY_SERVER_INSTANCES_INSTANCE_H
#define COVEY_SERVER_INSTANCES_INSTANCE_H

#include "covey/internal/v1/agent.pb-c.h"
#include "covey/v1/instance.pb-c.h"
#include "server/daemon/daemon.h"
#include "server/events/events.h"
#include "server/operations/operations.h"
#include "settings.h"

enum {
    INSTANCES_MAX = 50000,           /* in one list */
    INSTANCE_PROFILES_MAX = 64,
    INSTANCE_BUSY_WAIT_MS = 10000,   /* how long an operation waits for another one on the same instance */
    INSTANCE_STATE_WAIT_MS = 3000,   /* for the live state, per member */
    INSTANCE_STATE_PARALLEL = 4,     /* questions to one member at a time */
    INSTANCE_START_MS = 180000,
    INSTANCE_STOP_SLACK_MS = 60000,  /* beyond the clean stop's own timeout */
    INSTANCE_CREATE_MS = 1800000,    /* unpacking, fetching an image */
    INSTANCE_DELETE_MS = 600000,
    INSTANCE_BULK_PARALLEL = 8,      /* state changes of one bulk operation at a time */
    INSTANCE_PATIENT_MS = 3000,      /* a stop without time limit is waited for on its member so long, then here, where it costs no worker of the agent */
    INSTANCE_PATIENT_POLL_MS = 200,
    INSTANCE_SWEEP_MS = 5000,
    NAME_TRIES_MAX = 32,             /* made-up names, MAC addresses */
};

enum instance_code { CODE_STOPPED = 102, CODE_RUNNING = 103, CODE_FROZEN = 110, CODE_ERROR = 112 };
enum instance_phase { PHASE_CREATED = 0, PHASE_CREATING = 1, PHASE_DELETING = 2 };

enum instance_kind { /* numbers of operation kinds: stored, never reused */
    KIND_CREATE = 20, KIND_START = 21, KIND_STOP = 22, KIND_RESTART = 23, KIND_FREEZE = 24, KIND_UNFREEZE = 25, KIND_UPDATE = 26, KIND_DELETE = 28,
    KIND_EXEC = 29, KIND_EXEC_TASK = 30, KIND_ALL_START = 31, KIND_ALL_STOP = 32, KIND_ALL_RESTART = 33, KIND_ALL_FREEZE = 34, KIND_ALL_UNFREEZE = 35,
    KIND_STOP_PATIENT = 60, KIND_RESTART_PATIENT = 61, KIND_ALL_STOP_PATIENT = 62, KIND_ALL_RESTART_PATIENT = 63,
};

struct instance {
    int64_t id, project_id, pool_id;
    uint64_t member;
    int64_t member_state; /* 2 = evacuated */
    const char *member_name, *project, *name, *description, *operation;
    int64_t architecture, created_ns, used_ns, phase;
    bool ephemeral, stateful;
    char **profiles;
    int64_t *profile_ids;
    size_t profile_count;
    struct spec own, expanded;
};

/* ---- load.c ---- */
struct instance_filter {
    const char *project; /* NULL = all */
    const char *name;    /* NULL = all; with a project only */
};
/* One pass per table. Sorted by name, then project. `specs`: configuration, devices and profiles too. */
int instances_load(struct sql *sql, const struct instance_filter *filter, bool specs, struct arena *arena, struct instance **out, size_t *count, struct error *err);
/* NOT_FOUND `Instance not found`; unknown project: `Project not found`. Inside a transaction. */
int instance_load(struct sql *sql, const char *project, const char *name, struct arena *arena, struct instance **out, struct error *err);
/* What the agent needs; inside a transaction. */
int instance_agent_spec(struct sql *sql, const struct instance *instance, struct arena *arena, Covey__Internal__V1__InstanceSpec **out, struct error *err);
/* Both, linearizable, for handlers and runs. `spec` may be NULL. */
int instance_find(const char *project, const char *name, struct arena *arena, struct instance **out, Covey__Internal__V1__InstanceSpec **spec, struct error *err);
/* Own settings on top of the profiles, in the given order. */
int instance_expand(struct sql *sql, const int64_t *profile_ids, size_t count, const struct spec *own, struct spec *expanded, struct arena *arena, struct error *err);
/* Profile ids by name, in order: `Requested profile "x" doesn't exist`. */
int profiles_resolve(struct sql *sql, int64_t project, char *const *names, size_t count, int64_t *ids, struct error *err);
int64_t project_of_feature(struct sql *sql, int64_t project, const char *feature); /* the default project when the feature is off */
int config_put(struct sql *sql, int64_t instance, const char *key, const char *value, struct error *err); /* NULL removes */
int config_flag(const struct settings *config, const char *key, bool fallback);
const struct device_settings *root_device(const struct device_set *devices);

/* ---- service.c: what handlers share ---- */
int instance_allowed(const struct rpc_call *call, const char *project, struct error *err);
bool caller_sees(const struct caller *caller, const char *project);
char *instance_url(struct arena *arena, const char *noun, const char *project, const char *name);
char *instance_resources(struct arena *arena, const char *project, const char *name); /* JSON */
/* UNAVAILABLE when the member is offline. */
int instance_reachable(const struct instance *instance, struct error *err);
/* The live status; what looks stopped is asked of the member itself, because a new leader has not heard of everything yet. */
int64_t instance_live_status(const struct instance *instance, const Covey__Internal__V1__InstanceSpec *spec, struct arena *arena);
bool code_alive(int64_t code);
/* op_create, unless `checks` failed and this request is no repetition of one that was accepted. */
int instance_op(struct rpc_call *call, const struct op_spec *spec, int checks, Covey__V1__Operation **out, struct error *err);
void instance_event(const char *action, const struct instance *instance, const struct caller *requestor, const char *context_json);

/* ---- busy.c: one operation at a time on an instance, on this leader ---- */
/* Waits at most INSTANCE_BUSY_WAIT_MS, then FAILED_PRECONDITION `Instance is busy running a "x" operation`. A forced stop may join a stop. */
int instance_enter(int64_t id, const char *action, bool forced_stop, struct error *err);
void instance_leave(int64_t id);
bool instance_busy(int64_t id);

/* ---- list.c, create.c, lifecycle.c, update.c, exec.c: handlers ---- */
int list_instances(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int get_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int get_instance_state(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int create_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int update_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int delete_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int update_instance_state(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int update_instances_state(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int exec_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
/* logs.c */
int list_instance_logs(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int get_instance_log(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int delete_instance_log(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
void create_register(void);
void update_register(void);
void lifecycle_register(void);
void exec_register(void);
char *instance_etag(const struct instance *instance, struct arena *arena);
/* MAC addresses for NICs without one, as volatile keys of `own`. Inside a transaction. */
int instance_fill_volatile(struct sql *sql, struct spec *own, const struct device_set *expanded, struct arena *arena, struct error *err);
/* Removes volume and row of an instance that is being deleted (phase 2). `op` NULL: by the sweep. */
int instance_remove(const struct instance *instance, const Covey__Internal__V1__InstanceSpec *spec, struct op *op, struct error *err);

/* ---- sweep.c ---- */
void instances_sweep_start(struct daemon *daemon);

#endif
