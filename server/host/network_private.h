/* What the files about networks of this folder share: one network as this host keeps it, and the tools that make it. */
#ifndef COVEY_SERVER_HOST_NETWORK_PRIVATE_H
#define COVEY_SERVER_HOST_NETWORK_PRIVATE_H

#include "host_private.h"
#include "network_rules.h"

enum {
    HOST_NETWORKS_MAX = 1000,
    NETWORK_TOOL_MS_MAX = 30 * 1000,       /* one run of ip or nft */
    NETWORK_TOOL_BYTES_MAX = 4 << 20,      /* of its answer */
    NETWORK_DNS_START_MS_MAX = 15 * 1000,  /* dnsmasq from exec to ready */
    NETWORK_DNS_STOP_MS_MAX = 3 * 1000,    /* from SIGTERM to gone; then SIGKILL */
    NETWORK_DNS_AGAIN_MS = 5 * 1000,       /* between two starts of a server that ended by itself */
    NETWORK_RECORD_BYTES_MAX = 1 << 20,
    NETWORK_LEASE_FILE_BYTES_MAX = 16 << 20,
    NETWORK_LEASES_MAX = 100000,
};

struct network {
    char *name;
    int64_t type;
    struct device_option *config; /* owned texts */
    size_t count;
    char hwaddr[18];     /* of the bridge while bridge.hwaddr is not set: made once, so that containers see the same gateway after a restart */
    char *dir;           /* <state>/networks/<name> */
    int dns_pid, dns_fd; /* the running dnsmasq and its pidfd; 0 and -1 */
    int64_t dns_started; /* monotonic ms of the last start */
    bool up;             /* the host was brought to what stands here */
    UT_hash_handle hh;
};

struct networks {
    pthread_mutex_t lock; /* every change of a network, from its first tool to the record; and the list */
    struct network *all;
    int wake_fd;          /* the watcher looks at the list again */
    bool stopping;        /* under lock */
    pthread_t watcher;
};

const char *network__get(const struct network *network, const char *key);
bool network__bool(const struct network *network, const char *key);
/* The bridge's own address in a family ("ipv4", "ipv6"); false when it has none. */
bool network__subnet(const struct network *network, const char *family, struct subnet *out);
/* Items of a comma list, one after another; false at its end. *at starts as the list (may be NULL). */
bool network__item(const char **at, char *out, size_t size);

/* ---- network_tool.c ---- */
/* Runs a program to its end; a bad exit is an error with what it said. input and out may be NULL. */
int tool__run(const char *const argv[], const char *input, struct buf *out, struct error *err);
#define TOOL(err, ...) tool__run((const char *const[]){__VA_ARGS__, NULL}, NULL, NULL, err)
/* JSON answer of ip; NULL on error. */
json_t *tool__json(const char *const argv[], struct error *err);
/* /proc/sys/net/<path>, one value; absent is fine when `optional`. */
int tool__sysctl(const char *path, const char *value, bool optional, struct error *err);
bool tool__interface(const char *name);

/* ---- network_bridge.c ---- */
/* Brings the bridge to what `now` says; `before` is what it was (NULL = nothing of ours). */
int bridge__apply(const struct network *now, const struct network *before, struct error *err);
int bridge__remove(const struct network *network, struct error *err);

/* ---- network_dns.c ---- */
/* Has the right server run, or none: takes over one that runs with the same arguments, replaces any other. */
int dns__apply(struct network *network, struct error *err);
void dns__stop(struct network *network);
void dns__forget(struct network *network); /* lets it run, closes what we hold of it */
void dns__reload(const struct network *network);
int dns__leases(const struct network *network, struct arena *arena, Covey__V1__ListNetworkLeasesResponse *out, struct error *err);

#endif
