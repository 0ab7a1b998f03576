/* Shared by the files of this folder: a pool as loaded from its rows, and what changes them. */
#ifndef COVEY_SERVER_POOLS_POOLS_H
#define COVEY_SERVER_POOLS_POOLS_H

#include "covey/v1/storage.pb-c.h"
#include "rules.h"
#include "server/daemon/daemon.h"
#include "server/instances/settings.h"

enum {
    POOLS_MAX = 1000,
    POOL_MEMBERS_MAX = 1024,
    POOL_USERS_MAX = 1000000,
    POOL_AGENT_TIMEOUT_MS = 10 * 60 * 1000, /* making or removing a pool on one member: formatting a device takes its time */
};

struct pool_row {
    int64_t id, state;
    const char *name, *driver, *description;
};
/* STATUS_NOT_FOUND `Storage pool not found`. Texts live in arena. */
int pool_load(struct sql *sql, const char *name, struct pool_row *row, struct arena *arena, struct error *err);
/* Keys of all members (member 0) or of one member; added to what is there. */
int pool_load_config(struct sql *sql, int64_t pool, int64_t member, struct settings *config, struct arena *arena, struct error *err);
/* Sets (value NULL or "" removes) one key; member 0 = for all. */
int pool_store_key(struct sql *sql, int64_t pool, int64_t member, const char *key, const char *value, struct error *err);
/* Whether somebody uses it; 400 `The storage pool is currently in use`. */
int pool_unused_check(struct sql *sql, const struct pool_row *row, struct error *err);
/* URLs in arena; member 0 = of all members; only projects that the caller may see (NULL = all). */
int pool_used_by(struct sql *sql, const struct pool_row *row, int64_t member, const struct caller *caller, struct arena *arena, char ***urls, size_t *count,
                 struct error *err);

/* One member's part, done on it by its agent and recorded. */
struct pool_task {
    uint64_t member;
    char *name; /* of the member, for errors */
    bool made;  /* recorded as made there */
    Covey__Internal__V1__PoolSpec spec;
    int status;
    struct error err;
};
/* Runs `work` for every task, at most MEMBERS_PARALLEL_MAX at a time; each fills its status. Returns the first failure in order of members. */
int pool_tasks_run(struct pool_task *tasks, size_t count, int (*work)(struct pool_task *task, struct arena *arena, struct error *err), struct error *err);
/* Tasks for the members of the pool whose local state is `state` (-1 = any). */
int pool_tasks_load(struct sql *sql, const struct pool_row *row, int64_t state, struct pool_task **tasks, size_t *count, struct arena *arena, struct error *err);

int pool_create(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int pool_delete(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
int pool_update(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
void pool_lifecycle(struct rpc_call *call, const char *action, const char *name);

#endif
