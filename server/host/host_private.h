/* What the files of server/host share. Functions with double underscores are for this folder only. */
#ifndef COVEY_SERVER_HOST_PRIVATE_H
#define COVEY_SERVER_HOST_PRIVATE_H

#include "device_rules.h"
#include "host.h"
#include "host_limits.h"
#include "proto/core/core.h"
#include "proto/rpc/rpc.h"
#include <jansson.h>
#include <pthread.h>
#include <uthash.h>

typedef Covey__Internal__V1__InstanceSpec InstanceSpec;
typedef Covey__Internal__V1__PoolSpec PoolSpec;
typedef Covey__Internal__V1__NetworkSpec NetworkSpec;
typedef Covey__Internal__V1__InstanceStatus InstanceStatus;

enum instance_status { /* spec/api.md 1.3 */
    INSTANCE_STOPPED = 102,
    INSTANCE_RUNNING = 103,
    INSTANCE_STARTING = 106,
    INSTANCE_STOPPING = 107,
    INSTANCE_FREEZING = 109,
    INSTANCE_FROZEN = 110,
    INSTANCE_ERROR = 112,
};
const char *instance__status_name(int status);

struct idmap {
    int64_t uid, gid, size;
    bool root_entry; /* from an entry of root, so that newuidmap agrees */
};

struct volatile_key {
    char *key, *value;
};

/* One container that the host knows. Protected by host->lock; removed only while not busy. */
struct instance {
    char *key; /* <name> or <project>_<name>: names of folders and of the liblxc container */
    char *project, *name;
    int status;
    int64_t pid;
    int pidfd;           /* of the init, watched; -1 */
    int64_t changed_at;
    uint64_t generation; /* counts changes of status */
    bool unsettled;      /* what it does must be asked: an init that could not be watched, or a question without an answer */
    int64_t settle_at;   /* not before (monotonic ms) */
    bool busy;           /* an operation works on it */
    char operation[64];  /* of the last start */
    struct volatile_key *started; /* what that start answered */
    size_t started_count;
    UT_hash_handle hh;
};

struct status_event { /* waiting to be told */
    struct status_event *next;
    char *project, *name;
    int64_t status, pid, changed_at;
};

struct watch { /* a WatchInstances stream */
    struct watch *next;
    struct rpc_call *call;
    bool fresh, gone;
};

struct exec_session;
struct exec_attempt;

struct host {
    char *state_dir, *helper;
    struct host_config config;
    struct idmap map;
    bool cgroup2, apparmor;
    pthread_mutex_t lock; /* everything below */
    pthread_cond_t changed; /* status, busy, sessions, threads; CLOCK_MONOTONIC */
    struct instance *instances;
    struct status_event *events, **events_tail;
    struct watch *watches;
    struct exec_session *sessions;
    struct exec_attempt *attempts; /* Connect calls that have not told their secret */
    unsigned uploads, threads;
    struct thread_group group; /* of `threads`; has a lock of its own */
    bool stopping;
    int epoll_fd, wake_fd;
    pthread_t watcher;
    struct networks *networks; /* with a lock of its own; never taken while `lock` is held */
};

/* ---- host.c ---- */
/* Runs a command of covey-instance. *out (may be NULL) is the caller's. `in` is taken. */
int host__helper(struct host *host, const char *command, json_t *in, int64_t timeout_ms, json_t **out, struct error *err);
/* Starts a detached thread that host_stop waits for; run gets `arg`. RESOURCE_EXHAUSTED if there cannot be one more. */
int host__thread(struct host *host, void (*run)(struct host *host, void *arg), void *arg, struct error *err);
void host__wait(struct host *host, int64_t ms); /* on host->changed, host->lock held */
int host__find_idmap(const char *subuid, const char *subgid, struct idmap *map);
bool host__name_ok(const char *name); /* usable as one component of a path: letters, digits, - _ . */
int host__sync_dir(const char *path, struct error *err);

/* ---- instances.c ---- */
int instances__load(struct host *host, struct error *err);
void instances__clear(struct host *host);
void *instances__watcher(void *host);
int instances__check_spec(const InstanceSpec *spec, struct error *err);
char *instances__key(const char *project, const char *name);
int instances__create(struct host *host, const Covey__Internal__V1__CreateInstanceRequest *request, struct error *err);
int instances__delete(struct host *host, const InstanceSpec *spec, struct error *err);
int instances__start(struct host *host, const InstanceSpec *spec, struct arena *arena, Covey__Internal__V1__StartInstanceResponse **out, struct error *err);
/* `call` (may be NULL): a wait ends when it is cancelled. */
int instances__stop(struct host *host, const Covey__Internal__V1__StopInstanceRequest *request, struct rpc_call *call, struct error *err);
int instances__freeze(struct host *host, const InstanceSpec *spec, bool unfreeze, struct error *err);
int instances__status(struct host *host, const InstanceSpec *spec, int64_t *pid);

/* ---- state.c ---- */
int state__get(struct host *host, const InstanceSpec *spec, struct arena *arena, Covey__V1__InstanceState **out, struct error *err);

/* ---- config.c ---- */
struct config_paths {
    const char *rootfs, *log_dir, *seccomp;
};
/* The text of the container's liblxc configuration and the volatile keys that this start decided. */
int config__build(struct host *host, const InstanceSpec *spec, const struct config_paths *paths, struct buf *text, struct volatile_key **keys,
                  size_t *key_count, struct error *err);
const char *config__get(const InstanceSpec *spec, const char *key); /* NULL if absent or empty */
bool config__bool(const InstanceSpec *spec, const char *key);
struct device *config__devices(const InstanceSpec *spec, struct arena *arena, size_t *count);

/* ---- pools.c ---- */
void pools__clean(struct host *host); /* at start: volumes half made or half removed */
int pools__create(struct host *host, const PoolSpec *pool, struct arena *arena, Covey__Internal__V1__PoolResponse **out, struct error *err);
int pools__delete(struct host *host, const PoolSpec *pool, struct error *err);
int pools__resources(struct host *host, const PoolSpec *pool, struct arena *arena, Covey__V1__StoragePoolResources **out, struct error *err);
/* Where the volume of a container is or will be (caller frees). */
int pools__volume(struct host *host, const PoolSpec *pool, const char *key, char **path, struct error *err);
/* Makes the volume from image files ("" for none), all or nothing. ALREADY_EXISTS if there is one of another uuid. */
int pools__volume_create(struct host *host, const PoolSpec *pool, const char *key, const char *uuid, const char *image, const char *rootfs,
                         bool privileged, struct error *err);
int pools__volume_delete(struct host *host, const PoolSpec *pool, const char *key, struct error *err);

/* ---- networks.c: managed networks ---- */
struct network_nic { /* how a NIC attaches to a managed network here */
    const char *kind; /* "bridged", "macvlan", "physical" */
    char parent[64], mtu[8];
};
int networks__start(struct host *host, struct error *err);
void networks__stop(struct host *host); /* leaves bridges and servers alone */
int networks__apply(struct host *host, const NetworkSpec *spec, struct error *err);
int networks__remove(struct host *host, const NetworkSpec *spec, struct error *err);
int networks__leases(struct host *host, const NetworkSpec *spec, struct arena *arena, Covey__V1__ListNetworkLeasesResponse **out, struct error *err);
void networks__list(struct host *host, struct arena *arena, Covey__Internal__V1__HostNetworks *out);
/* FAILED_PRECONDITION when this member does not have it. */
int networks__nic(struct host *host, const char *name, struct network_nic *out, struct error *err);
/* Tells the DHCP servers of managed bridges about the NICs of an instance that starts: names and fixed addresses. `keys`: what its start made up. */
int networks__remember_nics(struct host *host, const InstanceSpec *spec, const char *key, const struct volatile_key *keys, size_t key_count, struct error *err);
void networks__forget_nic(struct host *host, const char *key, const char *device); /* device NULL = all of the instance */

/* ---- network_state.c: interfaces as the kernel tells ---- */
int interfaces__subnets(struct arena *arena, char ***out, size_t *count, struct error *err);

/* ---- images.c, metadata.c ---- */
int images__clean(struct host *host, struct error *err);
bool images__fingerprint_ok(const char *fingerprint);
/* Paths of a held image ("" for no rootfs file); caller frees both. */
int images__paths(struct host *host, const char *fingerprint, char **image, char **rootfs, struct error *err);
int images__pull(struct host *host, const Covey__Internal__V1__PullImageRequest *request, struct rpc_call *call, struct error *err);
int images__fetch(struct host *host, const char *fingerprint, struct rpc_call *call, struct error *err);
/* metadata.yaml -> architecture, dates, properties. */
int metadata__parse(const char *yaml, size_t len, struct host_image_info *out, struct error *err);

/* ---- exec.c, stream.c ---- */
int exec__handle(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *host);
int exec__connect(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *host);
int exec__cancel(struct host *host, const char *operation, struct error *err);
void exec__tick(struct host *host); /* about every second, on the watcher thread: forgets old results and silent connections */
void exec__stop_all(struct host *host);

/* ---- logs.c ---- */
/* Names of the log files, sorted, in the arena. */
int logs__list(struct host *host, const InstanceSpec *spec, struct arena *arena, char ***names, size_t *count, struct error *err);
/* At most LOG_READ_BYTES from offset on; *size: of the whole file. NOT_FOUND for names that are no log files, too. */
int logs__read(struct host *host, const InstanceSpec *spec, const char *name, int64_t offset, struct arena *arena, ProtobufCBinaryData *data, int64_t *size,
               struct error *err);
int logs__delete(struct host *host, const InstanceSpec *spec, const char *name, struct error *err);

/* ---- service.c ---- */
void service__tell(struct host *host, const struct status_event *event); /* watcher thread */
void service__end_watches(struct host *host);

#endif
