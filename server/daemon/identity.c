/* The member's certificates on disk and in memory. Thread: any; one mutex. */
#include "identity.h"

#include "state.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    pthread_mutex_t lock;
    struct identity cluster; /* empty when not clustered */
    struct identity *server; /* the daemon's */
    struct rpc_server *grpc; /* the TLS gRPC server that presents it */
} identities = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct paths {
    char *cert, *key;
};

static struct paths paths_of(const struct daemon *daemon, const char *base)
{
    return (struct paths){xasprintf("%s/%s.crt", daemon->dir, base), xasprintf("%s/%s.key", daemon->dir, base)};
}

static void paths_free(struct paths *paths)
{
    free(paths->cert);
    free(paths->key);
}

int identity_init(struct daemon *daemon, struct error *err)
{
    struct paths server = paths_of(daemon, "server"), cluster = paths_of(daemon, "cluster");
    int status = identity_load_or_create(server.cert, server.key, daemon->hostname, &daemon->server, err);
    if (status == STATUS_OK && access(cluster.cert, F_OK) == 0) {
        status = identity_load(cluster.cert, cluster.key, &identities.cluster, err);
    }
    identities.server = &daemon->server;
    paths_free(&server);
    paths_free(&cluster);
    return status;
}

static const struct identity *presented(void)
{
    return identities.cluster.cert_pem != NULL ? &identities.cluster : identities.server;
}

void identity_serve(struct rpc_server *grpc)
{
    pthread_mutex_lock(&identities.lock);
    identities.grpc = grpc;
    pthread_mutex_unlock(&identities.lock);
}

int identity_set_cluster(struct daemon *daemon, const char *cert_pem, const char *key_pem, struct error *err)
{
    struct identity made = {0};
    struct paths paths = paths_of(daemon, "cluster");
    int status = identity_from_pem(cert_pem, key_pem, &made, err);
    if (status == STATUS_OK) {
        status = identity_save(&made, paths.cert, paths.key, err);
    }
    if (status == STATUS_OK) {
        pthread_mutex_lock(&identities.lock);
        identity_free(&identities.cluster);
        identities.cluster = made;
        if (identities.grpc != NULL) {
            rpc_server_set_identity(identities.grpc, presented());
        }
        pthread_mutex_unlock(&identities.lock);
    } else {
        identity_free(&made);
    }
    paths_free(&paths);
    return status;
}

void identity_drop_cluster(struct daemon *daemon)
{
    struct paths paths = paths_of(daemon, "cluster");
    unlink(paths.cert);
    unlink(paths.key);
    paths_free(&paths);
    pthread_mutex_lock(&identities.lock);
    identity_free(&identities.cluster);
    memset(&identities.cluster, 0, sizeof identities.cluster);
    if (identities.grpc != NULL) {
        rpc_server_set_identity(identities.grpc, presented());
    }
    pthread_mutex_unlock(&identities.lock);
}

bool identity_cluster_fingerprint(char out[FINGERPRINT_SIZE])
{
    pthread_mutex_lock(&identities.lock);
    bool any = identities.cluster.cert_pem != NULL;
    if (any) {
        memcpy(out, identities.cluster.fingerprint, FINGERPRINT_SIZE);
    }
    pthread_mutex_unlock(&identities.lock);
    return any;
}

char *identity_presented(char fingerprint[FINGERPRINT_SIZE])
{
    pthread_mutex_lock(&identities.lock);
    const struct identity *identity = presented();
    char *pem = xstrdup(identity->cert_pem);
    memcpy(fingerprint, identity->fingerprint, FINGERPRINT_SIZE);
    pthread_mutex_unlock(&identities.lock);
    return pem;
}

int identity_copy(struct identity *out)
{
    pthread_mutex_lock(&identities.lock);
    const struct identity *identity = presented();
    *out = (struct identity){.cert_pem = xstrdup(identity->cert_pem), .key_pem = xstrdup(identity->key_pem)};
    memcpy(out->fingerprint, identity->fingerprint, FINGERPRINT_SIZE);
    pthread_mutex_unlock(&identities.lock);
    return STATUS_OK;
}
