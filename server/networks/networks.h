/* Shared by the files of this folder: a network as loaded from its rows, and what changes it. Names, types and keys: server/host/network_rules.h. */
#ifndef COVEY_SERVER_NETWORKS_NETWORKS_H
#define COVEY_SERVER_NETWORKS_NETWORKS_H

#include "covey/v1/network.pb-c.h"
#include "rules.h"
#include "server/daemon/daemon.h"
#include "server/host/network_rules.h"
#include "server/instances/settings.h"

enum {
    NETWORKS_MAX = 1000,
    NETWORK_MEMBERS_MAX = 1024,
    NETWORK_USERS_MAX = 1000000,
    NETWORK_AGENT_TIMEOUT_MS = 3 * 60 * 1000, /* a dozen runs of ip, nft and dnsmasq on a loaded host */
    NETWORK_SUBNET_TRIES_MAX = 1000,          /* random subnets looked at for "auto" */
};
#define NETWORK_LOCK_NOUN "Network"

struct network_row {
    int64_t id, state, type;
    const char *name, *description;
};
/* Networks of a project are those of `default` unless it has its own (which are not built: it has none then). NOT_FOUND `Project not found`. */
int network_project(struct sql *sql, const char *project, bool *own, struct error *err);
/* STATUS_NOT_FOUND `Network not found`. Texts live in arena. */
int network_load(struct sql *sql, const char *name, struct network_row *row, struct arena *arena, struct error *err);
/* Keys of all members (member 0) or of one member; added to what is there. */
int network_load_config(struct sql *sql, int64_t network, int64_t member, struct settings *config, struct arena *arena, struct error *err);
/* Sets (value NULL or "" removes) one key; member 0 = for all. */
int network_store_key(struct sql *sql, int64_t network, int64_t member, const char *key, const char *value, struct error *err);
/* Whether somebody uses it; 400 `The network is currently in use`. */
int network_unused_check(struct sql *sql, const char *name, struct error *err);
/* URLs in arena; only projects that the caller may see (NULL = all). */
int network_used_by(struct sql *sql, const char *name, const struct caller *caller, struct arena *arena, char ***urls, size_t *count, struct error *err);
/* The keys as one message for its agent. */
void network_spec_fill(Covey__Internal__V1__NetworkSpec *spec, const struct network_row *row, const struct settings *config, struct arena *arena);
/* Keys against each other; `complete`: with a member's keys. */
int network_settings_check(int64_t type, const struct settings *config, bool complete, struct error *err);

/* One member's part, done on it by its agent and recorded. */
struct network_task {
    uint64_t member;
    char *name; /* of the member, for errors */
    Covey__Internal__V1__NetworkSpec spec;
    struct settings local; /* this member's own keys */
    int status;
    struct error err;
};
typedef int (*network_work)(struct network_task *task, struct arena *arena, struct error *err);
/* Tasks for the members of the network whose local state is `state` (-1 = any). */
int network_tasks_load(struct sql *sql, const struct network_row *row, int64_t state, struct network_task **tasks, size_t *count, struct arena *arena, struct error *err);
/* Runs `work` for every task, at most MEMBERS_PARALLEL_MAX at a time; each fills its status. Returns the first failure in order of members. */
int network_tasks_run(struct network_task *tasks, size_t count, network_work work, struct error *err);
int network_apply_on_member(struct network_task *task, struct arena *arena, struct error *err);  /* a network_work */
int network_remove_on_member(struct network_task *task, struct arena *arena, struct error *err); /* a network_work; records it */

/* ---- auto.c: free subnets ---- */
struct network_auto {
    char ipv4[SUBNET_TEXT_MAX], ipv6[SUBNET_TEXT_MAX];
};
/* Subnets that no online member and no network uses. Asks the members: call it outside of transactions. */
int network_auto_pick(struct network_auto *out, struct arena *arena, struct error *err);
/* "auto" becomes an address, with NAT unless that is said; with `creating` a bridge without a word about an address gets one. */
void network_auto_fill(const struct network_auto *pick, int64_t type, bool creating, struct settings *config, struct arena *arena);

typedef int network_handler(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud);
network_handler network_create, network_delete, network_update, network_rename;
/* source: its name; old_name NULL unless it was renamed. */
void network_lifecycle(struct rpc_call *call, const char *action, const char *name, const char *old_name);

#endif
