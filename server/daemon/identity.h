/* Certificates of this member: server.crt (who it is to other members) and cluster.crt (what its listeners present; same on all members). */
#ifndef COVEY_SERVER_DAEMON_IDENTITY_H
#define COVEY_SERVER_DAEMON_IDENTITY_H

#include "daemon.h"

/* Loads server.crt/.key (made at first start) and cluster.crt/.key if they exist. */
int identity_init(struct daemon *daemon, struct error *err);
/* Installs a cluster certificate: files, then the listeners. */
int identity_set_cluster(struct daemon *daemon, const char *cert_pem, const char *key_pem, struct error *err);
/* Removes the cluster certificate again (a failed bootstrap or join): listeners present server.crt. */
void identity_drop_cluster(struct daemon *daemon);
bool identity_cluster_fingerprint(char out[FINGERPRINT_SIZE]); /* false when not clustered */
/* Certificate presented to clients: PEM (caller frees) and fingerprint. */
char *identity_presented(char fingerprint[FINGERPRINT_SIZE]);
/* The presented identity, with its key: caller frees by identity_free. */
int identity_copy(struct identity *out);
/* The TLS gRPC server that presents the identity from now on (NULL = none). */
void identity_serve(struct rpc_server *grpc);

#endif
