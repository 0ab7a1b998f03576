/* Certificates of this member: server.crt (who it is to other members) and cluster.crt (what its listeners present; same on all members). */
#ifndef COVEY_SERVER_DAEMON_IDENTITY_H
#define COVEY_SERVER_DAEMON_IDENTITY_H

#include "daemon.h"

enum {
    CERTIFICATE_GRACE_MS = 60000, /* how long a staged or a former cluster certificate is accepted from peers */
};

/* Loads server.crt/.key (made at first start) and, on a clustered server, cluster.crt/.key; elsewhere those are another cluster's leftovers. Finishes an
 * exchange of the latter that was interrupted. Needs local.db. */
int identity_init(struct daemon *daemon, struct error *err);
/* Installs a cluster certificate: files, then the listeners. After a crash at any point the files hold the former or the new pair. */
int identity_set_cluster(struct daemon *daemon, const char *cert_pem, const char *key_pem, struct error *err);
/* Removes the cluster certificate again (a failed bootstrap or join): listeners present server.crt. */
void identity_drop_cluster(struct daemon *daemon);

/* ---- exchange of the cluster certificate (server/cluster/certificate.c) ---- */

/* Checks a pair and keeps it beside the one in use, on disk too; peers that present it already are accepted for CERTIFICATE_GRACE_MS. */
int identity_stage_cluster(struct daemon *daemon, const char *cert_pem, const char *key_pem, struct error *err);
void identity_drop_staged(struct daemon *daemon);
/* Puts the staged pair in use if it has this fingerprint; STATUS_NOT_FOUND otherwise. */
int identity_install_staged(struct daemon *daemon, const char *fingerprint, struct error *err);
/* What the cluster's certificate should be, from the view or proven by a peer; remembered unless something newer is known. */
void identity_expect_cluster(const char *fingerprint, uint64_t generation);
void identity_expect_nothing(void); /* left the cluster */
/* The expected fingerprint and its generation ("" and 0 = none); true when the pair in use is another one. */
bool identity_cluster_differs(char expected[FINGERPRINT_SIZE], uint64_t *generation);
/* Whether a peer that presents this certificate may be a member: rpc_channel_peer's accept. */
bool identity_cluster_accepts(void *unused, const char *fingerprint);

bool identity_cluster_fingerprint(char out[FINGERPRINT_SIZE]); /* false when not clustered */
/* Certificate presented to clients: PEM (caller frees) and fingerprint. */
char *identity_presented(char fingerprint[FINGERPRINT_SIZE]);
/* The presented identity, with its key: caller frees by identity_free. */
int identity_copy(struct identity *out);
/* The TLS gRPC server that presents the identity from now on (NULL = none). */
void identity_serve(struct rpc_server *grpc);

#endif
