/* Shared by the files of the joiner's side of a join: its state, and calls to the cluster. One thread at a time works on a join (forming_begin). */
#ifndef COVEY_SERVER_CLUSTER_JOIN_H
#define COVEY_SERVER_CLUSTER_JOIN_H

#include "cluster.h"
#include <jansson.h>

enum {
    JOIN_STEP_MS = 60000,        /* bound of one step towards the cluster */
    JOIN_COMPLETE_MS = 300000,   /* Complete is repeated this long while nobody answers */
    JOIN_ABANDON_MS = 5000,      /* one attempt to tell the cluster that the join is off */
    JOIN_CALL_MS = 25000,
    JOIN_PAUSE_MS = 200,
    JOIN_TRUST_MS = 5000,        /* a member may take this long to know that we are trusted */
    JOIN_FORMING_WAIT_MS = 10000, /* for another join or bootstrap to end */
    JOIN_ADDRESSES_MAX = 64,
    JOIN_POOLS_MAX = 1024,       /* of the cluster or of the joiner */
};

struct join {
    char name[MEMBER_NAME_MAX + 1], address[300], join_id[37];
    char fingerprint[FINGERPRINT_SIZE]; /* of the cluster certificate */
    char *addresses[JOIN_ADDRESSES_MAX];
    size_t address_count;
    struct arena arena;
    bool introduced;       /* we are trusted … */
    int64_t known_by_ms;   /* … and every member should know it by then (monotonic) */
    int64_t former_type; /* from Introduce, for Abandon */
    const char *former_name;
    const struct caller *requestor; /* for events; NULL = unknown */
    Covey__Internal__V1__PoolSpec **own; /* pools that this server had before */
    size_t own_count;
    Covey__Internal__V1__NetworkSpec **own_networks;
    size_t own_network_count;
    /* from Accept */
    uint64_t id, epoch;
    const char *cluster_id, *cluster_cert, *cluster_key;
    Covey__Internal__V1__View *view;
    json_t *pools; /* [{name, driver, config, made}]: made = not there before this join */
    json_t *networks; /* [{name, type, config, made}] */
};

/* Calls "service.method" through any member until one answers, at most total_ms. */
int join__call(struct daemon *daemon, struct join *join, const char *service, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response,
               int64_t total_ms, struct error *err);
void join__add_address(struct join *join, const char *address); /* of a member, canonical; copied. More than JOIN_ADDRESSES_MAX are not needed */

/* ---- join_exchange.c: the state, and the exchange of the database ---- */
/* Writes the join's state to the local database under this phase; before the step that it names. */
int join__save(struct daemon *daemon, struct join *join, const char *phase, struct error *err);
json_t *join__load_object(struct daemon *daemon); /* the state, the caller's; NULL = there is no join */
bool join__in_phase(const json_t *object, const char *phase);
/* Fills join from the state, whose texts it borrows. */
void join__load(struct join *join, json_t *object);
void join__forget(struct daemon *daemon); /* there is no join any more; a failure is logged */
/* Into the cluster; and back to what the server was. Both may be repeated, also after a restart. */
int join__switch_over(struct daemon *daemon, struct join *join, struct error *err);
int join__switch_back(struct daemon *daemon, struct error *err);
/* Removes the former database, which is nobody's any more; only then the state goes, so that no later join takes it for its own. */
int join__drop_former(struct daemon *daemon, struct error *err);

/* ---- join_pools.c ---- */
int join__load_own_pools(struct daemon *daemon, struct join *join, struct error *err);
/* Refuses what the cluster has under a name of ours with another driver. */
int join__check_pools(struct daemon *daemon, struct join *join, struct error *err);
/* Makes the cluster's pools on this host, with the member-specific keys that the administrator gave. */
int join__make_pools(struct daemon *daemon, struct join *join, const Covey__Internal__V1__AcceptResponse *accepted, const Covey__V1__UpdateClusterRequest *request,
                     struct error *err);
/* Removes those that this join made. */
void join__unmake_pools(struct daemon *daemon, struct join *join);
Covey__Internal__V1__PoolSpec **join__pools_message(struct join *join, size_t *count);

/* ---- join_networks.c: the same for networks ---- */
int join__load_own_networks(struct daemon *daemon, struct join *join, struct error *err);
/* `Failed to update local member network "N" …` when an interface of that name is there that is not ours. */
int join__make_networks(struct daemon *daemon, struct join *join, const Covey__Internal__V1__AcceptResponse *accepted, const Covey__V1__UpdateClusterRequest *request,
                        struct error *err);
void join__unmake_networks(struct daemon *daemon, struct join *join);
Covey__Internal__V1__NetworkSpec **join__networks_message(struct join *join, size_t *count);

#endif
