/* The certificate that every member presents (spec/cluster.md 1.4, 3.7): its change, and how a member that was away comes to it.
 *
 * A change has two halves. First every member checks the new pair and writes it beside the one in use; if any cannot, all forget it again and nothing has
 * changed. Then one row of the database is changed: from there on the new pair is the cluster's, whoever dies. The view names it, and each member puts it in
 * use before it says that it acts by that view; who has not staged it asks the leader. A member that missed the view meets peers with a certificate that it
 * does not know: they prove by their server keys, which it does know, that it is the cluster's, with a generation, so that it never takes an older one. */
#include "cluster.h"

#include "server/daemon/identity.h"
#include "server/events/events.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    STAGE_MS = 10000,       /* one member's answer to the first half */
    FETCH_MS = 2000,        /* one question of a member that lacks the pair; it reports its liveness on the same thread */
    SEEK_PAUSE_MS = 1000,
    NONCE_BYTES = 32,
    MEMBERS_MAX = 1024,
};

static const char service[] = "covey.internal.v1.Membership";

/* ---- the change ---- */

struct change {
    struct arena *arena;
    char *cert, *key;
    /* from the database */
    char *present;
    uint64_t ids[MEMBERS_MAX];
    char *names[MEMBERS_MAX], *addresses[MEMBERS_MAX];
    size_t count;
};

static int read_change(struct sql *sql, void *ud, struct error *err)
{
    struct change *change = ud;
    char *present = NULL;
    int status = sql_get_text(sql, &present, err, "SELECT certificate FROM cluster WHERE id = 1", "");
    if (status != STATUS_OK) {
        return status;
    }
    change->present = arena_strdup(change->arena, present);
    change->count = 0;
    free(present);
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, address, state FROM nodes ORDER BY id", "");
    while (status == STATUS_OK && sql_next(s)) {
        if (sql_int(s, 3) == 1) { /* it was given the former pair and reaches the cluster by that */
            status = error_set(err, STATUS_FAILED_PRECONDITION, "The server %s is joining the cluster, try again later", sql_text(s, 1));
        } else if (change->count == MEMBERS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members", MEMBERS_MAX);
        } else {
            change->ids[change->count] = (uint64_t)sql_int(s, 0);
            change->names[change->count] = arena_strdup(change->arena, sql_text(s, 1));
            change->addresses[change->count++] = arena_strdup(change->arena, sql_text(s, 2));
        }
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

int certificate_generation(struct sql *sql, int64_t *out, struct error *err)
{
    enum { STEP = 2 }; /* storage/schema/002_certificate_generation.sql */
    int64_t version = 0;
    *out = 0;
    int status = sql_get_int(sql, &version, err, "SELECT coalesce(max(version), 0) FROM schema", "");
    return status != STATUS_OK || version < STEP ? status : sql_get_int(sql, out, err, "SELECT certificate_generation FROM cluster WHERE id = 1", "");
}

static int commit_change(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct change *change = ud;
    int64_t pending = 0, generation = 0;
    int status = certificate_generation(sql, &generation, err);
    if (status == STATUS_OK && generation == 0) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Wait for other cluster nodes to upgrade their versions");
    }
    status = status == STATUS_OK ? sql_get_int(sql, &pending, err, "SELECT count(*) FROM nodes WHERE state = 1", "") : status;
    if (status == STATUS_OK && pending > 0) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "A server is joining the cluster, try again later");
    }
    return status != STATUS_OK ? status
                               : sql_exec(sql, err, "UPDATE cluster SET certificate = ?1, key = ?2, certificate_generation = certificate_generation + 1 WHERE id = 1",
                                     "ss", change->cert, change->key);
}

static int stage_on(uint64_t member, const char *cert, const char *key, struct arena *arena, struct error *err)
{
    Covey__Internal__V1__StageCertificateRequest request = COVEY__INTERNAL__V1__STAGE_CERTIFICATE_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    request.certificate = (char *)cert;
    request.key = (char *)key;
    struct rpc_channel *channel = member_channel(the_daemon, member, err);
    if (channel == NULL) {
        return err != NULL ? (int)err->code : STATUS_NOT_FOUND;
    }
    struct rpc_options options = {.timeout_ms = STAGE_MS};
    int status = rpc_unary(channel, service, "StageCertificate", &request.base, &response, arena, &options, err);
    rpc_channel_unref(channel);
    return status;
}

static void forget_staged(const struct change *change, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct error err = ERROR_INIT;
        if (stage_on(change->ids[i], "", "", change->arena, &err) != STATUS_OK) { /* it forgets by itself after a while */
            log_warn("certificate.forget", "member=%s error=\"%s\"", change->names[i], err.text);
        }
    }
}

static int stage_everywhere(const struct change *change, struct error *err)
{
    for (size_t i = 0; i < change->count; i++) {
        if (!member_online(the_daemon, change->ids[i])) {
            return error_set(err, STATUS_UNAVAILABLE, "peer node %s is down", change->addresses[i]);
        }
    }
    for (size_t i = 0; i < change->count; i++) {
        int status = stage_on(change->ids[i], change->cert, change->key, change->arena, err);
        if (status != STATUS_OK) {
            forget_staged(change, i + 1);
            if (status == STATUS_UNAVAILABLE || status == STATUS_DEADLINE_EXCEEDED || status == STATUS_UNKNOWN) {
                return error_set(err, STATUS_UNAVAILABLE, "peer node %s is down", change->addresses[i]);
            }
            return error_prefix(err, "Cluster member %s cannot take the certificate", change->names[i]);
        }
    }
    return STATUS_OK;
}

static int check_pair(struct change *change, char fingerprint[FINGERPRINT_SIZE], struct error *err)
{
    struct identity pair = {0};
    int status = identity_from_pem(change->cert, change->key, &pair, err);
    status = status == STATUS_OK ? cert_check_dates(change->cert, err) : status;
    status = status == STATUS_OK ? cert_check_strength(change->cert, err) : status;
    memcpy(fingerprint, pair.fingerprint, FINGERPRINT_SIZE);
    identity_free(&pair);
    return status == STATUS_OK ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "%s", err->text);
}

static char *tidy(struct arena *arena, const char *pem)
{
    char *text = pem_tidy(pem != NULL ? pem : ""), *out = arena_strdup(arena, text);
    free(text);
    return out;
}

static int update_certificate(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    static pthread_mutex_t changing = PTHREAD_MUTEX_INITIALIZER; /* one change at a time; each is bounded by its members' answers */
    const Covey__V1__UpdateClusterCertificateRequest *request = (const Covey__V1__UpdateClusterCertificateRequest *)message;
    struct arena *arena = rpc_arena(call);
    char fingerprint[FINGERPRINT_SIZE], present[FINGERPRINT_SIZE];
    if (!daemon_clustered(the_daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "This server is not clustered");
    }
    struct change *change = arena_alloc(arena, sizeof *change);
    *change = (struct change){.arena = arena, .cert = tidy(arena, request->cluster_certificate), .key = tidy(arena, request->cluster_certificate_key)};
    if (check_pair(change, fingerprint, err) != STATUS_OK) {
        return err->code;
    }
    pthread_mutex_lock(&changing);
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_change, change, NULL, err);
    status = status == STATUS_OK ? cert_fingerprint(change->present, present, err) : status;
    bool same = status == STATUS_OK && strcmp(fingerprint, present) == 0; /* also: the reply to this request was lost, and it is asked again */
    if (status == STATUS_OK && !same) {
        status = stage_everywhere(change, err);
        if (status == STATUS_OK) {
            status = daemon_write_call(call, "certificate", commit_change, change, NULL, NULL, err);
            if (status != STATUS_OK && status != STATUS_UNKNOWN) {
                forget_staged(change, change->count);
            }
        }
    }
    pthread_mutex_unlock(&changing);
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
    }
    if (status == STATUS_OK && !same) {
        log_info("certificate.changed", "fingerprint=%s", fingerprint);
        events_lifecycle("cluster-certificate-updated", "/1.0/cluster/certificate", "default", rpc_caller(call), NULL, NULL);
    }
    return status;
}

rpc_handler certificate_update_handler(void)
{
    return update_certificate;
}

/* ---- each member's half ---- */

static int stage(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__StageCertificateRequest *request = (const Covey__Internal__V1__StageCertificateRequest *)message;
    if (!daemon_clustered(the_daemon)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "This server is not clustered");
    }
    if (str_empty(request->certificate)) {
        identity_drop_staged(the_daemon);
        return STATUS_OK;
    }
    return identity_stage_cluster(the_daemon, request->certificate, request->key, err);
}

static int get(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct identity pair = {0};
    if (!daemon_clustered(the_daemon)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "This server is not clustered");
    }
    identity_copy(&pair);
    Covey__Internal__V1__GetCertificateResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
    covey__internal__v1__get_certificate_response__init(out);
    out->certificate = arena_strdup(rpc_arena(call), pair.cert_pem);
    out->key = arena_strdup(rpc_arena(call), pair.key_pem);
    identity_free(&pair);
    *response = &out->base;
    return STATUS_OK;
}

/* What a member signs; the first words keep the signature from meaning anything elsewhere. */
static char *statement(struct arena *arena, const char *nonce, const char *fingerprint, uint64_t generation)
{
    char *cluster = local_state_get(the_daemon->local, "cluster_id");
    char *text = arena_printf(arena, "covey cluster certificate\n%s\n%s\n%" PRIu64 "\n%s\n", nonce, fingerprint, generation, cluster != NULL ? cluster : "");
    free(cluster);
    return text;
}

static int prove(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__ProveCertificateRequest *request = (const Covey__Internal__V1__ProveCertificateRequest *)message;
    struct arena *arena = rpc_arena(call);
    char expected[FINGERPRINT_SIZE];
    Covey__Internal__V1__ProveCertificateResponse *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__prove_certificate_response__init(out);
    if (strlen(request->nonce) != 2 * NONCE_BYTES || strspn(request->nonce, "0123456789abcdef") != 2 * NONCE_BYTES) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "nonce must be %d hex digits", 2 * NONCE_BYTES);
    }
    if (!daemon_clustered(the_daemon) || identity_cluster_differs(expected, &out->generation) || expected[0] == '\0') {
        return error_set(err, STATUS_UNAVAILABLE, "this member does not know the cluster's certificate itself");
    }
    uint8_t *signature = NULL;
    int status = key_sign(the_daemon->server.key_pem, statement(arena, request->nonce, expected, out->generation), &signature, &out->signature.len, err);
    if (status == STATUS_OK) {
        out->signature.data = arena_alloc(arena, out->signature.len);
        memcpy(out->signature.data, signature, out->signature.len);
        out->id = daemon_id(the_daemon);
        out->fingerprint = arena_strdup(arena, expected);
        *response = &out->base;
    }
    free(signature);
    return status;
}

void certificate_membership_handlers(struct rpc_binding out[3])
{
    out[0] = (struct rpc_binding){"StageCertificate", stage};
    out[1] = (struct rpc_binding){"GetCertificate", get};
    out[2] = (struct rpc_binding){"ProveCertificate", prove};
}

/* ---- coming to the present one ---- */

struct pair {
    char *cert, *key;
};

static int read_pair(struct sql *sql, void *ud, struct error *err)
{
    struct pair *pair = ud;
    int status = sql_get_text(sql, &pair->cert, err, "SELECT certificate FROM cluster WHERE id = 1", "");
    return status == STATUS_OK ? sql_get_text(sql, &pair->key, err, "SELECT key FROM cluster WHERE id = 1", "") : status;
}

void certificate_lead(struct daemon *daemon)
{
    char expected[FINGERPRINT_SIZE];
    uint64_t generation;
    if (!daemon_clustered(daemon) || !identity_cluster_differs(expected, &generation)) {
        return;
    }
    struct error err = ERROR_INIT;
    struct pair pair = {NULL, NULL};
    int status = identity_install_staged(daemon, expected, &err);
    if (status != STATUS_OK) {
        status = daemon_read(daemon, DB_LOCAL, read_pair, &pair, NULL, &err);
        status = status == STATUS_OK ? identity_set_cluster(daemon, pair.cert, pair.key, &err) : status;
    }
    if (status != STATUS_OK) {
        log_warn("certificate.install", "error=\"%s\"", err.text);
    }
    free(pair.cert);
    free(pair.key);
}

/* Asks the member behind `channel` for its pair and puts it in use if it is the expected one. */
static int fetch(struct daemon *daemon, struct rpc_channel *channel, const char *expected, struct error *err)
{
    struct arena arena;
    arena_init(&arena);
    Covey__V1__Empty request = COVEY__V1__EMPTY__INIT;
    ProtobufCMessage *response = NULL;
    char fingerprint[FINGERPRINT_SIZE];
    struct rpc_options options = {.timeout_ms = FETCH_MS};
    int status = rpc_unary(channel, service, "GetCertificate", &request.base, &response, &arena, &options, err);
    if (status == STATUS_OK) {
        const Covey__Internal__V1__GetCertificateResponse *pair = (const Covey__Internal__V1__GetCertificateResponse *)response;
        status = cert_fingerprint(pair->certificate, fingerprint, err);
        if (status == STATUS_OK && strcmp(fingerprint, expected) != 0) {
            status = error_set(err, STATUS_UNAVAILABLE, "the member that was asked has another certificate");
        }
        status = status == STATUS_OK ? identity_set_cluster(daemon, pair->certificate, pair->key, err) : status;
    }
    arena_clear(&arena);
    return status;
}

void certificate_follow(struct daemon *daemon, struct rpc_channel *channel)
{
    char expected[FINGERPRINT_SIZE];
    uint64_t generation;
    struct error err = ERROR_INIT;
    if (!identity_cluster_differs(expected, &generation) || !daemon_clustered(daemon) || identity_install_staged(daemon, expected, &err) == STATUS_OK) {
        return;
    }
    if (fetch(daemon, channel, expected, &err) != STATUS_OK) {
        log_warn("certificate.follow", "error=\"%s\"", err.text); /* again at the next report */
    }
}

/* The certificate that a peer showed last, if it is not one that is accepted. */
static bool shows_unknown(struct daemon *daemon, uint64_t id)
{
    struct rpc_channel *channel = member_channel(daemon, id, NULL);
    char fingerprint[FINGERPRINT_SIZE], *pem = channel != NULL ? rpc_channel_server_cert(channel) : NULL;
    bool unknown = pem != NULL && cert_fingerprint(pem, fingerprint, NULL) == STATUS_OK && !identity_cluster_accepts(NULL, fingerprint);
    free(pem);
    rpc_channel_unref(channel);
    return unknown;
}

/* The server certificate of a member, as the view has it. */
static const char *server_certificate(const struct view *view, const char *fingerprint)
{
    for (size_t i = 0; i < view->message->n_certificates; i++) {
        if (view->message->certificates[i]->type == 2 && strcmp(view->message->certificates[i]->fingerprint, fingerprint) == 0) {
            return view->message->certificates[i]->certificate;
        }
    }
    return NULL;
}

/* One peer's proof. Nothing secret goes over this connection: whom it reaches is not known before the answer is checked. */
static bool ask_proof(struct daemon *daemon, const struct view *view, const Covey__Internal__V1__ViewMember *member, char out[FINGERPRINT_SIZE], uint64_t *generation)
{
    struct arena arena;
    struct error err = ERROR_INIT;
    char nonce[2 * NONCE_BYTES + 1];
    arena_init(&arena);
    random_hex(nonce, NONCE_BYTES);
    Covey__Internal__V1__ProveCertificateRequest request = COVEY__INTERNAL__V1__PROVE_CERTIFICATE_REQUEST__INIT;
    request.nonce = nonce;
    ProtobufCMessage *response = NULL;
    struct rpc_channel *channel = rpc_channel_tls(member->address, "", NULL, &daemon->server);
    struct rpc_options options = {.timeout_ms = FETCH_MS};
    int status = rpc_unary(channel, service, "ProveCertificate", &request.base, &response, &arena, &options, &err);
    rpc_channel_unref(channel);
    bool good = false;
    if (status == STATUS_OK) {
        const Covey__Internal__V1__ProveCertificateResponse *proof = (const Covey__Internal__V1__ProveCertificateResponse *)response;
        const char *signer = server_certificate(view, member->fingerprint);
        good = signer != NULL && strlen(proof->fingerprint) == FINGERPRINT_SIZE - 1 &&
               cert_verify(signer, statement(&arena, nonce, proof->fingerprint, proof->generation), proof->signature.data, proof->signature.len);
        if (good) {
            memcpy(out, proof->fingerprint, FINGERPRINT_SIZE);
            *generation = proof->generation;
        }
    }
    log_info("certificate.proof", "member=%s good=%d error=\"%s\"", member->name, good, err.text);
    arena_clear(&arena);
    return good;
}

void certificate_seek(struct daemon *daemon)
{
    static int64_t not_before_ms; /* the reporter thread only */
    if (!daemon_clustered(daemon) || time_mono_ms() < not_before_ms) {
        return;
    }
    not_before_ms = time_mono_ms() + SEEK_PAUSE_MS;
    const struct view *view = view_get();
    uint64_t self = daemon_id(daemon);
    for (size_t i = 0; i < view->message->n_members; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        char fingerprint[FINGERPRINT_SIZE], expected[FINGERPRINT_SIZE];
        uint64_t proven = 0, known = 0;
        if (member->id == self || member->state == 1 || !shows_unknown(daemon, member->id) || !ask_proof(daemon, view, member, fingerprint, &proven)) {
            continue;
        }
        identity_cluster_differs(expected, &known);
        if (proven <= known) {
            continue;
        }
        struct error err = ERROR_INIT;
        identity_expect_cluster(fingerprint, proven);
        struct rpc_channel *channel = rpc_channel_tls(member->address, fingerprint, NULL, &daemon->server);
        if (fetch(daemon, channel, fingerprint, &err) != STATUS_OK) {
            log_warn("certificate.seek", "member=%s error=\"%s\"", member->name, err.text); /* now that it is accepted, the leader can be reached and tells it */
        }
        rpc_channel_unref(channel);
        break;
    }
    view_unref(view);
}
