/* The view: what every member knows in memory of members, trust and global configuration. Built by the leader from the database, distributed on the
 * Attach streams, kept in the local database so that a restarting member can find and trust its peers before it reaches a leader.
 *
 * A view is immutable and counted; readers take a reference under a mutex. Thread: any. */
#include "cluster.h"

#include "upgrade.h"
#include "server/config/keys.h"
#include "server/daemon/identity.h"
#include "server/daemon/state.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

enum { STALE_SERVERS_MAX = 256 }; /* of Raft's servers, looked at for rows that are gone */

struct trusted {
    const Covey__Internal__V1__ViewCertificate *certificate;
    int64_t until; /* end of validity, unix seconds, -1 = unreadable; parsed once */
    UT_hash_handle hh;
};

struct view_full {
    struct view pub; /* first: view_get hands out its address */
    atomic_uint references;
    struct arena arena;
    struct trusted *by_fingerprint;
    struct trusted *entries;
};

static struct {
    pthread_mutex_t lock;
    struct view_full *current;
    struct buf persisted; /* what the local database holds, to write changes only */
} views = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* End of validity, as the former view has it for the same certificate: parsing takes 0.1 ms, and a view comes with every change of a member. */
static int64_t valid_until(const Covey__Internal__V1__ViewCertificate *certificate, const struct view_full *former)
{
    struct trusted *known = NULL;
    int64_t from = 0, until = 0;
    if (former != NULL) {
        HASH_FIND_STR(former->by_fingerprint, certificate->fingerprint, known);
    }
    if (known != NULL && strcmp(known->certificate->certificate, certificate->certificate) == 0) {
        return known->until;
    }
    return cert_dates(certificate->certificate, &from, &until, NULL) == STATUS_OK ? until : -1; /* unreadable: never valid */
}

static struct view_full *view_make(const Covey__Internal__V1__View *message, const struct view_full *former)
{
    struct view_full *view = xcalloc(1, sizeof *view);
    arena_init(&view->arena);
    atomic_init(&view->references, 1);
    view->pub.message = (Covey__Internal__V1__View *)codec_copy(&message->base, &view->arena);
    covey_assert(view->pub.message != NULL);
    const Covey__Internal__V1__View *m = view->pub.message;
    view->entries = xcalloc(m->n_certificates + 1, sizeof *view->entries);
    for (size_t i = 0; i < m->n_certificates; i++) {
        struct trusted *entry = &view->entries[i];
        entry->certificate = m->certificates[i];
        entry->until = valid_until(entry->certificate, former);
        HASH_ADD_KEYPTR(hh, view->by_fingerprint, entry->certificate->fingerprint, strlen(entry->certificate->fingerprint), entry);
    }
    return view;
}

static void views_init(void)
{
    Covey__Internal__V1__View empty = COVEY__INTERNAL__V1__VIEW__INIT;
    views.current = view_make(&empty, NULL);
}
static pthread_once_t once = PTHREAD_ONCE_INIT;

const struct view *view_get(void)
{
    pthread_once(&once, views_init);
    pthread_mutex_lock(&views.lock);
    struct view_full *view = views.current;
    atomic_fetch_add(&view->references, 1);
    pthread_mutex_unlock(&views.lock);
    return &view->pub;
}

void view_unref(const struct view *pub)
{
    struct view_full *view = (struct view_full *)pub;
    if (view != NULL && atomic_fetch_sub(&view->references, 1) == 1) {
        HASH_CLEAR(hh, view->by_fingerprint);
        free(view->entries);
        arena_clear(&view->arena);
        free(view);
    }
}

const Covey__Internal__V1__ViewMember *view_member_by_id(const struct view *view, uint64_t id)
{
    for (size_t i = 0; i < view->message->n_members; i++) {
        if (view->message->members[i]->id == id) {
            return view->message->members[i];
        }
    }
    return NULL;
}

const Covey__Internal__V1__ViewMember *view_member_by_name(const struct view *view, const char *name)
{
    for (size_t i = 0; i < view->message->n_members; i++) {
        if (strcmp(view->message->members[i]->name, name) == 0) {
            return view->message->members[i];
        }
    }
    return NULL;
}

const char *view_config(const struct view *view, const char *key)
{
    for (size_t i = 0; i < view->message->n_config; i++) {
        if (strcmp(view->message->config[i]->key, key) == 0) {
            return view->message->config[i]->value;
        }
    }
    return NULL;
}

/* Members that are elsewhere now. */
static void follow_addresses(const Covey__Internal__V1__View *former, const struct view *view)
{
    for (size_t i = 0; i < former->n_members; i++) {
        const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, former->members[i]->id);
        if (member != NULL && strcmp(member->address, former->members[i]->address) != 0) {
            member_moved(member->id);
        }
    }
}

void view_install(struct daemon *daemon, const Covey__Internal__V1__View *message)
{
    const struct view *former = view_get();
    struct view_full *made = view_make(message, (const struct view_full *)former), *old = NULL;
    view_unref(former);
    pthread_mutex_lock(&views.lock);
    const Covey__Internal__V1__View *now = views.current->pub.message;
    bool newer = message->term > now->term || (message->term == now->term && message->revision >= now->revision);
    if (newer) {
        old = views.current;
        views.current = made;
        made = NULL;
    }
    pthread_mutex_unlock(&views.lock);
    if (old != NULL) {
        const struct view *view = view_get();
        follow_addresses(old->pub.message, view);
        view_unref(view);
    }
    view_unref(old != NULL ? &old->pub : NULL);
    view_unref(made != NULL ? &made->pub : NULL);
    upgrade_view_changed();
    if (newer) {
        identity_expect_cluster(message->cluster_certificate_fingerprint, message->cluster_certificate_generation);
    }
    if (newer && daemon_clustered(daemon)) { /* a renamed member follows at once */
        const struct view *view = view_get();
        uint64_t id = daemon_id(daemon);
        const Covey__Internal__V1__ViewMember *self = view_member_by_id(view, id);
        if (self != NULL && self->state != 1) {
            state_set_identity(daemon, id, true, self->name);
        }
        view_unref(view);
    }
}

void view_forget(struct daemon *daemon)
{
    pthread_once(&once, views_init);
    Covey__Internal__V1__View empty = COVEY__INTERNAL__V1__VIEW__INIT;
    struct view_full *made = view_make(&empty, NULL);
    pthread_mutex_lock(&views.lock);
    struct view_full *old = views.current;
    views.current = made;
    pthread_mutex_unlock(&views.lock);
    view_unref(&old->pub);
    identity_expect_nothing();
    view_persist(daemon);
}

void view_rebase(struct daemon *daemon)
{
    const struct view *view = view_get();
    Covey__Internal__V1__View old = *view->message;
    old.term = old.revision = old.leader_id = 0;
    struct view_full *made = view_make(&old, NULL);
    view_unref(view);
    pthread_mutex_lock(&views.lock);
    struct view_full *before = views.current;
    views.current = made;
    pthread_mutex_unlock(&views.lock);
    view_unref(&before->pub);
}

/* ---- persistence ---- */

static void persist_members(struct daemon *daemon, const Covey__Internal__V1__View *message)
{
    struct raft_node_server servers[STALE_SERVERS_MAX];
    size_t server_count = state_raft_servers(servers, STALE_SERVERS_MAX), count = 0, before_count = 0;
    struct local_raft_node *nodes = xcalloc(message->n_members + server_count + 1, sizeof *nodes), *before = NULL;
    for (size_t i = 0; i < message->n_members; i++) {
        const Covey__Internal__V1__ViewMember *member = message->members[i];
        if (daemon_clustered(daemon) && member->raft_role >= 0) {
            nodes[count++] = (struct local_raft_node){member->id, member->address, (int)member->raft_role, member->name};
        }
    }
    struct error err = ERROR_INIT;
    local_raft_nodes_get(daemon->local, &before, &before_count, NULL);
    for (size_t i = 0; i < before_count && daemon_clustered(daemon); i++) { /* Raft still has it though its row is gone: only here its address is known */
        bool in_raft = false, in_view = false;
        for (size_t j = 0; j < server_count; j++) {
            in_raft = in_raft || servers[j].id == before[i].id;
        }
        for (size_t j = 0; j < message->n_members; j++) {
            in_view = in_view || message->members[j]->id == before[i].id || strcmp(message->members[j]->address, before[i].address) == 0;
        }
        if (in_raft && !in_view) {
            nodes[count++] = before[i];
        }
    }
    if (local_raft_nodes_replace(daemon->local, nodes, count, &err) != STATUS_OK) {
        log_error("view.persist", "error=\"%s\"", err.text);
    }
    local_raft_nodes_free(before, before_count);
    free(nodes);
}

static void persist_certificates(struct daemon *daemon, const Covey__Internal__V1__View *message)
{
    struct local_certificate *certs = xcalloc(message->n_certificates + 1, sizeof *certs);
    size_t count = 0;
    for (size_t i = 0; i < message->n_certificates; i++) {
        const Covey__Internal__V1__ViewCertificate *certificate = message->certificates[i];
        if (certificate->type == 2) {
            snprintf(certs[count].fingerprint, sizeof certs[count].fingerprint, "%s", certificate->fingerprint);
            certs[count].name = certificate->name;
            certs[count].pem = certificate->certificate;
            count++;
        }
    }
    struct error err = ERROR_INIT;
    if (local_certificates_replace(daemon->local, certs, count, &err) != STATUS_OK) {
        log_error("view.persist", "error=\"%s\"", err.text);
    }
    free(certs);
}

void view_persist(struct daemon *daemon)
{
    static pthread_mutex_t writing = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&writing);
    const struct view *view = view_get();
    Covey__Internal__V1__View stable = *view->message;
    stable.revision = 0; /* not worth a disk write on their own */
    stable.leader_id = 0;
    stable.term = 0;
    struct buf packed = {0};
    size_t len = covey__internal__v1__view__get_packed_size(&stable);
    uint8_t *bytes = xmalloc(len + 1);
    covey__internal__v1__view__pack(&stable, bytes);
    buf_add(&packed, bytes, len);
    free(bytes);
    struct raft_node_server servers[STALE_SERVERS_MAX];
    size_t view_len = packed.len, server_count = state_raft_servers(servers, STALE_SERVERS_MAX);
    buf_add(&packed, daemon_clustered(daemon) ? "1" : "0", 1); /* the table is empty before */
    for (size_t i = 0; i < server_count; i++) { /* the table lists servers without a row, too */
        buf_add(&packed, &servers[i].id, sizeof servers[i].id);
    }
    if (packed.len != views.persisted.len || (packed.len > 0 && memcmp(packed.data, views.persisted.data, packed.len) != 0)) {
        persist_members(daemon, view->message);
        const Covey__Internal__V1__ViewMember *self = daemon_clustered(daemon) ? view_member_by_id(view, daemon_id(daemon)) : NULL;
        if (self != NULL && self->state != 1) { /* renamed, perhaps while it was away */
            local_state_set(daemon->local, "name", self->name, NULL);
        }
        persist_certificates(daemon, view->message);
        char *text = base64_encode(packed.data, view_len);
        struct error err = ERROR_INIT;
        if (local_state_set(daemon->local, "view", text, &err) != STATUS_OK) {
            log_error("view.persist", "error=\"%s\"", err.text);
        }
        free(text);
        buf_free(&views.persisted);
        views.persisted = packed;
    } else {
        buf_free(&packed);
    }
    view_unref(view);
    pthread_mutex_unlock(&writing);
}

void view_load(struct daemon *daemon)
{
    char *text = local_state_get(daemon->local, "view");
    size_t len = 0;
    uint8_t *bytes = text != NULL ? base64_decode(text, &len) : NULL;
    if (bytes != NULL) {
        struct arena arena;
        arena_init(&arena);
        struct error err = ERROR_INIT;
        ProtobufCMessage *message = codec_unpack(&covey__internal__v1__view__descriptor, bytes, len, &arena, &err);
        if (message != NULL) {
            view_install(daemon, (Covey__Internal__V1__View *)message);
        } else {
            log_warn("view.load", "error=\"%s\"", err.text); /* the leader sends a fresh one */
        }
        arena_clear(&arena);
    }
    free(bytes);
    free(text);
}

/* ---- building (leader) ---- */

#define APPEND(arena, array, count, capacity, value)                                                        \
    do {                                                                                                    \
        if ((count) == (capacity)) {                                                                        \
            size_t grown_ = (capacity) ? (capacity)*2 : 16;                                                 \
            void *copy_ = arena_alloc(arena, grown_ * sizeof *(array));                                     \
            if (count) {                                                                                    \
                memcpy(copy_, array, (count) * sizeof *(array));                                            \
            }                                                                                               \
            (array) = copy_;                                                                                \
            (capacity) = grown_;                                                                            \
        }                                                                                                   \
        (array)[(count)++] = (value);                                                                       \
    } while (0)

static int build_members(struct sql *sql, struct daemon *daemon, struct arena *arena, Covey__Internal__V1__View *view, struct error *err)
{
    size_t capacity = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, address, fingerprint, state, online, schema, api_extensions, schema_floor, api_floor,"
                                        " EXISTS (SELECT 1 FROM nodes_roles WHERE node_id = nodes.id AND role = 1), heartbeat"
                                        " FROM nodes ORDER BY id", "");
    while (sql_next(s)) {
        Covey__Internal__V1__ViewMember *member = arena_alloc(arena, sizeof *member);
        covey__internal__v1__view_member__init(member);
        member->id = (uint64_t)sql_int(s, 0);
        member->name = arena_strdup(arena, sql_text(s, 1));
        member->address = arena_strdup(arena, sql_text(s, 2));
        member->fingerprint = arena_strdup(arena, sql_text(s, 3));
        member->state = sql_int(s, 4);
        member->online = sql_int(s, 5) != 0;
        member->schema = sql_int(s, 6);
        member->api_extensions = sql_int(s, 7);
        member->schema_floor = sql_int(s, 8);
        member->api_floor = sql_int(s, 9);
        member->heartbeat_ns = sql_int(s, 11);
        member->event_hub = sql_int(s, 10) != 0;
        member->raft_role = state_raft_role(member->id);
        APPEND(arena, view->members, view->n_members, capacity, member);
    }
    return sql_done(s, err);
}

static int build_certificates(struct sql *sql, struct arena *arena, Covey__Internal__V1__View *view, struct error *err)
{
    size_t capacity = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id, fingerprint, type, name, restricted, certificate FROM certificates ORDER BY id", "");
    while (sql_next(s)) {
        Covey__Internal__V1__ViewCertificate *cert = arena_alloc(arena, sizeof *cert);
        covey__internal__v1__view_certificate__init(cert);
        cert->fingerprint = arena_strdup(arena, sql_text(s, 1));
        cert->type = sql_int(s, 2);
        cert->name = arena_strdup(arena, sql_text(s, 3));
        cert->restricted = sql_int(s, 4) != 0;
        cert->certificate = arena_strdup(arena, sql_text(s, 5));
        size_t projects = 0;
        struct sql_stmt *p = sql_query(sql,
            "SELECT projects.name FROM certificates_projects JOIN projects ON projects.id = project_id WHERE certificate_id = ?1 ORDER BY 1", "i",
            sql_int(s, 0));
        while (sql_next(p)) {
            APPEND(arena, cert->projects, cert->n_projects, projects, arena_strdup(arena, sql_text(p, 0)));
        }
        if (sql_done(p, err) != STATUS_OK) {
            sql_done(s, NULL);
            return err->code;
        }
        APPEND(arena, view->certificates, view->n_certificates, capacity, cert);
    }
    return sql_done(s, err);
}

static int build_config(struct sql *sql, struct arena *arena, Covey__Internal__V1__View *view, struct error *err)
{
    size_t capacity = 0, drivers = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT key, value FROM config ORDER BY key", "");
    while (sql_next(s)) {
        Covey__Internal__V1__View__ConfigEntry *entry = arena_alloc(arena, sizeof *entry);
        covey__internal__v1__view__config_entry__init(entry);
        const struct config_key *key = config_key_find(sql_text(s, 0));
        entry->key = arena_strdup(arena, sql_text(s, 0));
        entry->value = arena_strdup(arena, key != NULL && key->hidden ? "true" : sql_text(s, 1));
        APPEND(arena, view->config, view->n_config, capacity, entry);
    }
    if (sql_done(s, err) != STATUS_OK) {
        return err->code;
    }
    s = sql_query(sql, "SELECT DISTINCT driver FROM storage_pools ORDER BY 1", "");
    while (sql_next(s)) {
        APPEND(arena, view->storage_drivers_in_use, view->n_storage_drivers_in_use, drivers, arena_strdup(arena, sql_text(s, 0)));
    }
    if (sql_done(s, err) != STATUS_OK) {
        return err->code;
    }
    size_t questions = 0;
    s = sql_query(sql,
        "SELECT DISTINCT 'storage-pool', storage_pools.name, storage_pools_config.key, 'storage pool' FROM storage_pools_config JOIN storage_pools ON storage_pools.id = storage_pool_id"
        " WHERE node_id IS NOT NULL AND storage_pools.state = 1 AND storage_pools_config.key NOT LIKE 'volatile.%'"
        " UNION SELECT DISTINCT 'network', networks.name, networks_config.key, 'network' FROM networks_config JOIN networks ON networks.id = network_id"
        " WHERE node_id IS NOT NULL AND networks.state = 1 AND networks_config.key NOT LIKE 'volatile.%' ORDER BY 1, 2, 3", "");
    while (sql_next(s)) {
        Covey__V1__MemberConfigKey *key = arena_alloc(arena, sizeof *key);
        covey__v1__member_config_key__init(key);
        key->entity = arena_strdup(arena, sql_text(s, 0));
        key->name = arena_strdup(arena, sql_text(s, 1));
        key->key = arena_strdup(arena, sql_text(s, 2));
        key->description = arena_printf(arena, "\"%s\" property for %s \"%s\"", key->key, sql_text(s, 3), key->name);
        APPEND(arena, view->member_config, view->n_member_config, questions, key);
    }
    if (sql_done(s, err) != STATUS_OK) {
        return err->code;
    }
    char *pem = NULL;
    int status = sql_get_text(sql, &pem, err, "SELECT certificate FROM cluster WHERE id = 1", "");
    if (status == STATUS_OK && pem[0] != '\0') {
        char fingerprint[FINGERPRINT_SIZE];
        status = cert_fingerprint(pem, fingerprint, err);
        view->cluster_certificate_fingerprint = arena_strdup(arena, fingerprint);
        int64_t generation = 0;
        status = status == STATUS_OK ? certificate_generation(sql, &generation, err) : status;
        view->cluster_certificate_generation = (uint64_t)generation;
    } else if (status == STATUS_NOT_FOUND) {
        status = STATUS_OK; /* standalone */
    }
    free(pem);
    return status;
}

static int build_levels(struct sql *sql, Covey__Internal__V1__View *view, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT schema, api_extensions FROM cluster WHERE id = 1", "");
    if (sql_next(s)) {
        view->schema = sql_int(s, 0);
        view->api_extensions = sql_int(s, 1);
    }
    int status = sql_done(s, err);
    return status == STATUS_OK ? sql_get_int(sql, &view->schema_applied, err, "SELECT max(version) FROM schema", "") : status;
}

int view_build(struct sql *sql, struct daemon *daemon, struct arena *arena, Covey__Internal__V1__View **out, struct error *err)
{
    Covey__Internal__V1__View *view = arena_alloc(arena, sizeof *view);
    covey__internal__v1__view__init(view);
    view->term = daemon_term(daemon);
    view->leader_id = daemon_id(daemon);
    int status = build_members(sql, daemon, arena, view, err);
    if (status == STATUS_OK) {
        status = build_certificates(sql, arena, view, err);
    }
    if (status == STATUS_OK) {
        status = build_config(sql, arena, view, err);
    }
    if (status == STATUS_OK) {
        status = build_levels(sql, view, err);
    }
    *out = status == STATUS_OK ? view : NULL;
    return status;
}

/* ---- authorisation of TLS callers ---- */

void view_classify(void *ud, struct caller *caller)
{
    caller->class = CALLER_NONE;
    if (caller->fingerprint[0] == '\0') {
        return;
    }
    const struct view *view = view_get();
    struct trusted *entry = NULL;
    HASH_FIND_STR(((const struct view_full *)view)->by_fingerprint, caller->fingerprint, entry);
    int64_t now = time_unix_ns() / 1000000000;
    /* A member's certificate is pinned and ends with its row; a client's counts from when somebody trusted it. So a wrong clock shuts nobody out whom the
     * dates in the certificate, made by another clock, would call too early. */
    bool valid = entry != NULL && entry->until >= 0 && (entry->certificate->type == 2 || now <= entry->until);
    if (valid) {
        const Covey__Internal__V1__ViewCertificate *cert = entry->certificate;
        if (cert->type == 2) {
            caller->class = CALLER_MEMBER;
            snprintf(caller->protocol, sizeof caller->protocol, "cluster");
        } else if (cert->type == 1) {
            caller->class = CALLER_CLIENT;
            caller->restricted = cert->restricted;
            snprintf(caller->protocol, sizeof caller->protocol, "tls");
            if (cert->restricted) {
                caller->projects = arena_alloc(caller->arena, (cert->n_projects + 1) * sizeof *caller->projects);
                for (size_t i = 0; i < cert->n_projects; i++) {
                    caller->projects[i] = arena_strdup(caller->arena, cert->projects[i]);
                }
            }
        }
    }
    view_unref(view);
}
