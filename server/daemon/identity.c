/* The member's certificates on disk and in memory. Thread: any; one mutex.
 *
 * A new cluster pair is written as cluster.key.staged and cluster.crt.staged, then renamed, the key first: whoever finds a key that does not belong to the
 * certificate beside it finds the certificate to it still staged. */
#include "identity.h"

#include "state.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    pthread_mutex_t lock;
    struct identity cluster; /* empty when not clustered */
    struct identity *server; /* the daemon's */
    struct rpc_server *grpc; /* the TLS gRPC server that presents it */
    struct identity staged;
    int64_t staged_until_ms;
    char former[FINGERPRINT_SIZE];
    int64_t former_until_ms;
    char expected[FINGERPRINT_SIZE];
    uint64_t expected_generation;
} identities = {.lock = PTHREAD_MUTEX_INITIALIZER};

static pthread_mutex_t installing = PTHREAD_MUTEX_INITIALIZER; /* one exchange of files at a time; taken before the lock above */

struct paths {
    char *cert, *key;
};

static struct paths paths_of(const struct daemon *daemon, const char *base, const char *ending)
{
    return (struct paths){xasprintf("%s/%s.crt%s", daemon->dir, base, ending), xasprintf("%s/%s.key%s", daemon->dir, base, ending)};
}

static void paths_free(struct paths *paths)
{
    free(paths->cert);
    free(paths->key);
}

static void paths_unlink(const struct paths *paths)
{
    unlink(paths->cert);
    unlink(paths->key);
}

static int move(const char *from, const char *to, struct error *err)
{
    return rename(from, to) == 0 ? STATUS_OK : error_errno(err, errno, "rename %s to %s", from, to);
}

static int load_cluster(const struct paths *cluster, const struct paths *staged, struct error *err)
{
    int status = identity_load(cluster->cert, cluster->key, &identities.cluster, err);
    if (status != STATUS_OK && access(staged->cert, F_OK) == 0 && identity_load(staged->cert, cluster->key, &identities.cluster, NULL) == STATUS_OK) {
        log_info("identity.exchange", "fingerprint=%s reason=\"it was interrupted\"", identities.cluster.fingerprint);
        status = move(staged->cert, cluster->cert, err);
    }
    return status;
}

int identity_init(struct daemon *daemon, struct error *err)
{
    struct paths server = paths_of(daemon, "server", ""), cluster = paths_of(daemon, "cluster", ""), staged = paths_of(daemon, "cluster", ".staged");
    int status = identity_load_or_create(server.cert, server.key, daemon->hostname, &daemon->server, err);
    char *clustered = local_state_get(daemon->local, "clustered");
    if (status == STATUS_OK && clustered != NULL && access(cluster.cert, F_OK) == 0) {
        status = load_cluster(&cluster, &staged, err);
    }
    if (status == STATUS_OK) {
        paths_unlink(&staged);
    }
    free(clustered);
    identities.server = &daemon->server;
    paths_free(&server);
    paths_free(&cluster);
    paths_free(&staged);
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

/* With the lock: new connections see what is presented now. */
static void present(void)
{
    if (identities.grpc != NULL) {
        rpc_server_set_identity(identities.grpc, presented());
    }
}

/* ---- exchange ---- */

/* With `installing`: files beside those in use. */
static int stage_files(struct daemon *daemon, const struct identity *made, struct error *err)
{
    struct paths staged = paths_of(daemon, "cluster", ".staged");
    int status = identity_save(made, staged.cert, staged.key, err);
    if (status != STATUS_OK) {
        paths_unlink(&staged);
    }
    paths_free(&staged);
    return status;
}

/* With `installing`: staged files and `made` (taken on success) come into use. */
static int install(struct daemon *daemon, struct identity *made, struct error *err)
{
    struct paths staged = paths_of(daemon, "cluster", ".staged"), cluster = paths_of(daemon, "cluster", "");
    int status = move(staged.key, cluster.key, err);
    status = status == STATUS_OK ? move(staged.cert, cluster.cert, err) : status;
    status = status == STATUS_OK ? file_sync_parent(cluster.cert, err) : status;
    if (status == STATUS_OK) {
        pthread_mutex_lock(&identities.lock);
        if (identities.cluster.cert_pem != NULL) {
            memcpy(identities.former, identities.cluster.fingerprint, FINGERPRINT_SIZE);
            identities.former_until_ms = time_mono_ms() + CERTIFICATE_GRACE_MS;
        }
        identity_free(&identities.cluster);
        identity_free(&identities.staged);
        identities.cluster = *made;
        present();
        pthread_mutex_unlock(&identities.lock);
        log_info("identity.cluster", "fingerprint=%s", made->fingerprint);
        *made = (struct identity){0};
    }
    paths_free(&staged);
    paths_free(&cluster);
    return status;
}

int identity_set_cluster(struct daemon *daemon, const char *cert_pem, const char *key_pem, struct error *err)
{
    struct identity made = {0};
    int status = identity_from_pem(cert_pem, key_pem, &made, err);
    pthread_mutex_lock(&installing);
    status = status == STATUS_OK ? stage_files(daemon, &made, err) : status;
    status = status == STATUS_OK ? install(daemon, &made, err) : status;
    pthread_mutex_unlock(&installing);
    identity_free(&made);
    return status;
}

int identity_stage_cluster(struct daemon *daemon, const char *cert_pem, const char *key_pem, struct error *err)
{
    struct identity made = {0};
    int status = identity_from_pem(cert_pem, key_pem, &made, err);
    pthread_mutex_lock(&installing);
    status = status == STATUS_OK ? stage_files(daemon, &made, err) : status;
    if (status == STATUS_OK) {
        pthread_mutex_lock(&identities.lock);
        identity_free(&identities.staged);
        identities.staged = made;
        identities.staged_until_ms = time_mono_ms() + CERTIFICATE_GRACE_MS;
        pthread_mutex_unlock(&identities.lock);
        made = (struct identity){0};
    }
    pthread_mutex_unlock(&installing);
    identity_free(&made);
    return status;
}

void identity_drop_staged(struct daemon *daemon)
{
    struct paths staged = paths_of(daemon, "cluster", ".staged");
    pthread_mutex_lock(&installing);
    pthread_mutex_lock(&identities.lock);
    identity_free(&identities.staged);
    pthread_mutex_unlock(&identities.lock);
    paths_unlink(&staged);
    pthread_mutex_unlock(&installing);
    paths_free(&staged);
}

int identity_install_staged(struct daemon *daemon, const char *fingerprint, struct error *err)
{
    struct identity made = {0};
    pthread_mutex_lock(&installing);
    pthread_mutex_lock(&identities.lock);
    if (identities.staged.cert_pem != NULL && strcmp(identities.staged.fingerprint, fingerprint) == 0) {
        made = identities.staged;
        identities.staged = (struct identity){0};
    }
    pthread_mutex_unlock(&identities.lock);
    int status = made.cert_pem != NULL ? install(daemon, &made, err) : error_set(err, STATUS_NOT_FOUND, "this certificate was not staged");
    pthread_mutex_unlock(&installing);
    identity_free(&made);
    return status;
}

void identity_drop_cluster(struct daemon *daemon)
{
    struct paths paths = paths_of(daemon, "cluster", "");
    identity_drop_staged(daemon);
    pthread_mutex_lock(&installing);
    paths_unlink(&paths);
    pthread_mutex_lock(&identities.lock);
    identity_free(&identities.cluster);
    present();
    pthread_mutex_unlock(&identities.lock);
    pthread_mutex_unlock(&installing);
    paths_free(&paths);
}

/* ---- what is expected ---- */

void identity_expect_cluster(const char *fingerprint, uint64_t generation)
{
    if (str_empty(fingerprint)) {
        return;
    }
    pthread_mutex_lock(&identities.lock);
    if (generation >= identities.expected_generation) {
        snprintf(identities.expected, sizeof identities.expected, "%s", fingerprint);
        identities.expected_generation = generation;
    }
    pthread_mutex_unlock(&identities.lock);
}

void identity_expect_nothing(void)
{
    pthread_mutex_lock(&identities.lock);
    identities.expected[0] = identities.former[0] = '\0';
    identities.expected_generation = 0;
    pthread_mutex_unlock(&identities.lock);
}

bool identity_cluster_differs(char expected[FINGERPRINT_SIZE], uint64_t *generation)
{
    pthread_mutex_lock(&identities.lock);
    memcpy(expected, identities.expected, FINGERPRINT_SIZE);
    *generation = identities.expected_generation;
    bool differs = identities.expected[0] != '\0' && strcmp(identities.expected, identities.cluster.fingerprint) != 0;
    pthread_mutex_unlock(&identities.lock);
    return differs;
}

bool identity_cluster_accepts(void *unused, const char *fingerprint)
{
    int64_t now = time_mono_ms();
    pthread_mutex_lock(&identities.lock);
    bool good = (identities.cluster.cert_pem != NULL && strcmp(fingerprint, identities.cluster.fingerprint) == 0) || strcmp(fingerprint, identities.expected) == 0 ||
                (now < identities.staged_until_ms && identities.staged.cert_pem != NULL && strcmp(fingerprint, identities.staged.fingerprint) == 0) ||
                (now < identities.former_until_ms && strcmp(fingerprint, identities.former) == 0);
    pthread_mutex_unlock(&identities.lock);
    return good;
}

/* ---- reading ---- */

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
