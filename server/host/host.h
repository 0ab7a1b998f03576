/* The host of one member: containers, image files, storage pools. What touches the machine is here; nothing here knows the database, every request
 * says all. The controllers reach it by RPC (covey.internal.v1.Agent, which host_bind registers), the receiving member's upload code by the image
 * functions below.
 *
 * Threads: every function may be called from any thread and blocks for at most the named limits of host_limits.h, unless said otherwise. A container
 * outlives the daemon: host_stop leaves all of them running, host_start finds them again. */
#ifndef COVEY_SERVER_HOST_H
#define COVEY_SERVER_HOST_H

#include "proto/core/error.h"
#include "proto/core/core.h"
#include "covey/internal/v1/agent.pb-c.h"
#include <stddef.h>
#include <stdint.h>

struct host;
struct rpc_channel;

struct host_config {
    const char *state_dir;   /* absolute; every folder from / to it needs the x bit for the containers' mapped root */
    const char *helper_path; /* the covey-instance binary; NULL = $COVEY_LIBEXEC/covey-instance, else beside the program: ../libexec/covey/ (installed) or the build tree */
    /* A channel to another member by its cluster address, with a reference for the caller; NULL = not reachable. Used by PullImage. */
    struct rpc_channel *(*channel)(void *ud, const char *address);
    void *ud;
    /* A container's status changed (also by itself: it died, rebooted). Called without locks from any thread; must not block for long. May be NULL. */
    void (*status_changed)(void *ud, const Covey__Internal__V1__InstanceStatus *status);
};

/* Makes the folders, removes what an interrupted run left half done, finds the running containers. The strings of config are copied.
 * FAILED_PRECONDITION without a usable helper. */
int host_start(const struct host_config *config, struct host **out, struct error *err);
/* Ends exec sessions and threads of this module, leaves containers alone. All servers that serve the agent must be destroyed before. NULL is fine. */
void host_stop(struct host *host);
/* Path of the covey-instance binary in use; lives as long as the host. */
const char *host_helper_path(const struct host *host);
/* Registers covey.internal.v1.Agent with this host. After host_stop a new host may be bound in its place. */
void host_bind(struct host *host);

/* Statuses of all containers that the host knows, in `arena`. Never blocks on helpers. */
void host_instances(struct host *host, struct arena *arena, Covey__Internal__V1__InstanceStatus ***out, size_t *count);

/* ---- interfaces of this host ---- */

/* Names of all interfaces but ends of container pairs (veth…), with their kinds (physical, bridge, bond, vlan, loopback, unknown), sorted by name. */
struct host_interface {
    char *name;
    const char *kind;
};
int host_interfaces(struct arena *arena, struct host_interface **out, size_t *count, struct error *err);
/* NOT_FOUND `Network interface not found`. */
int host_interface_state(const char *name, struct arena *arena, Covey__V1__NetworkInterfaceState **out, struct error *err);
/* The interface that a network of this host stands on: its parent, or itself; in arena. */
char *host_network_interface(struct host *host, const char *network, struct arena *arena);

/* Removes all image files, all networks and the local parts of these pools; what cannot be removed is logged. At start only, before the agent is served. */
void host_clear(struct host *host, Covey__Internal__V1__PoolSpec *const *pools, size_t count);

/* ---- image files ---- */

enum { HOST_FINGERPRINT_SIZE = 65 };

struct host_property {
    char *key;
    char *value;
};

struct host_image_info { /* owned; free with host_image_info_free */
    char fingerprint[HOST_FINGERPRINT_SIZE];
    int64_t size;                     /* both files together */
    bool split;
    char *architecture;               /* canonical name, e.g. "x86_64" */
    int64_t creation_date;            /* epoch seconds */
    int64_t expiry_date;              /* epoch seconds, 0 = none */
    struct host_property *properties; /* of metadata.yaml, in its order, keys unique */
    size_t property_count;
    char *filename;                   /* hint for the object's `filename`: "<fingerprint>.tar.gz"-like, by compression of the (metadata) file */
    char *rootfs_filename;            /* split only, else NULL */
};
void host_image_info_free(struct host_image_info *info);

enum host_image_file { HOST_IMAGE_METADATA = 0 /* or the whole unified image */, HOST_IMAGE_ROOTFS = 1 };

struct host_image_upload;

/* Receives an image. The metadata file must be written completely before the rootfs file (the fingerprint covers them in this order). One thread at a
 * time per upload. finish and abort both end the upload; finish verifies `expected_fingerprint` (NULL or "" = none; `fingerprints don't match, got X
 * expected Y`), compression and metadata.yaml, and stores it under its fingerprint: durable and complete, or not at all. An image that is already held
 * is not an error (same content). */
int host_image_begin(struct host *host, bool split, struct host_image_upload **out, struct error *err);
int host_image_write(struct host_image_upload *upload, enum host_image_file file, const void *data, size_t len, struct error *err);
int host_image_finish(struct host_image_upload *upload, const char *expected_fingerprint, struct host_image_info *out, struct error *err);
void host_image_abort(struct host_image_upload *upload); /* NULL is fine */

bool host_image_has(struct host *host, const char *fingerprint);
/* Opens the files for reading (export). fd[1] and size[1] are -1 and 0 for a unified image; the caller closes. NOT_FOUND `Image not found`. */
int host_image_open(struct host *host, const char *fingerprint, int fd[2], int64_t size[2], struct error *err);
/* What host_image_finish told, again. */
int host_image_read_info(struct host *host, const char *fingerprint, struct host_image_info *out, struct error *err);
/* Absent is fine. Refused (FAILED_PRECONDITION) never: open files stay readable. */
int host_image_delete(struct host *host, const char *fingerprint, struct error *err);

#endif
