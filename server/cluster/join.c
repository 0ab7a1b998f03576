/* The joiner's side (spec/cluster.md 4.3): introduce, be accepted, make the cluster's pools here, exchange the database, complete.
 *
 * The state of a join is one JSON object in the local database (key "join"), written before the step that it names. Up to "asked" the server is as before: a
 * restart forgets the join. From "switching" on a restart goes on until the cluster has it or says that it does not know the join; then everything is put back,
 * the former database too (kept as global.before until the join is complete). */
#include "cluster.h"

#include "upgrade.h"

#include "server/auth/tokens.h"
#include "server/config/keys.h"
#include "server/daemon/identity.h"
#include "server/daemon/listener.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/operations/operations.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

enum {
    JOIN_STEP_MS = 60000,            /* bound of one step towards the cluster */
    JOIN_COMPLETE_MS = 300000,       /* Complete is repeated this long while nobody answers */
    JOIN_CALL_MS = 25000,
    JOIN_PAUSE_MS = 200,
    JOIN_ADDRESSES_MAX = 64,
};

struct join {
    char name[MEMBER_NAME_MAX + 1], address[300], join_id[37];
    char fingerprint[FINGERPRINT_SIZE]; /* of the cluster certificate */
    char *addresses[JOIN_ADDRESSES_MAX];
    size_t address_count;
    struct arena arena;
    /* from Accept */
    uint64_t id, epoch;
    const char *cluster_id, *cluster_cert, *cluster_key;
    Covey__Internal__V1__View *view;
    json_t *pools; /* [{name, driver, config}] as made here */
};

static void join_clear(struct join *join)
{
    json_decref(join->pools);
    arena_clear(&join->arena);
}

static void add_address(struct join *join, const char *address)
{
    for (size_t i = 0; i < join->address_count; i++) {
        if (strcmp(join->addresses[i], address) == 0) {
            return;
        }
    }
    if (join->address_count < JOIN_ADDRESSES_MAX) {
        join->addresses[join->address_count++] = arena_strdup(&join->arena, address);
    }
}

/* ---- calls to the cluster ---- */

/* Whether trying again, also through another member, may help: nothing is wrong with the request itself. */
static bool worth_repeating(int status)
{
    return status == STATUS_UNAVAILABLE || status == STATUS_UNKNOWN || status == STATUS_DEADLINE_EXCEEDED || status == STATUS_CANCELLED ||
           status == STATUS_RESOURCE_EXHAUSTED;
}

/* Calls a Membership method through any member until one answers, at most total_ms. */
static int call_cluster(struct daemon *daemon, struct join *join, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response, int64_t total_ms,
                        struct error *err)
{
    char request_id[37];
    uuid_new(request_id);
    int64_t end = time_mono_ms() + total_ms;
    int status = error_set(err, STATUS_UNAVAILABLE, "no cluster member is known");
    for (size_t i = 0; join->address_count > 0; i = (i + 1) % join->address_count) {
        struct rpc_channel *channel = rpc_channel_tls(join->addresses[i], join->fingerprint, NULL, &daemon->server);
        struct rpc_options options = {.timeout_ms = JOIN_CALL_MS, .request_id = request_id};
        status = rpc_unary(channel, "covey.internal.v1.Membership", method, request, response, &join->arena, &options, err);
        rpc_channel_unref(channel);
        if (!worth_repeating(status) || time_mono_ms() >= end) {
            break;
        }
        usleep(JOIN_PAUSE_MS * 1000);
    }
    return status;
}

static int introduce_self(struct daemon *daemon, struct join *join, const char *password, struct error *err)
{
    Covey__Internal__V1__IntroduceRequest request = COVEY__INTERNAL__V1__INTRODUCE_REQUEST__INIT;
    struct token_text token = {0};
    bool is_token = token_decode(password, &token) && token.join;
    request.name = join->name;
    request.certificate = daemon->server.cert_pem;
    request.token_secret = is_token ? token.secret : (char *)"";
    request.password = is_token ? (char *)"" : (char *)password;
    ProtobufCMessage *response = NULL;
    int status = call_cluster(daemon, join, "Introduce", &request.base, &response, JOIN_CALL_MS, err);
    token_text_free(&token);
    if (status == STATUS_OK) {
        return status;
    }
    if (worth_repeating(status)) {
        return error_prefix(err, "Failed to setup cluster trust: Failed to connect to target cluster node \"%s\"", join->addresses[0]);
    }
    if (str_prefix(err->text, "Existing server certificate")) {
        return error_prefix(err, "Failed to update cluster trust");
    }
    return error_prefix(err, "Failed to setup cluster trust: Failed to add server cert to cluster");
}

/* ---- what this server has ---- */

struct own_pools {
    struct arena *arena;
    Covey__Internal__V1__PoolSpec **pools;
    size_t count;
};

static int read_own_pools(struct sql *sql, void *ud, struct error *err)
{
    enum { MAX = 64 };
    bool more = false;
    struct own_pools *own = ud;
    own->pools = arena_alloc(own->arena, MAX * sizeof *own->pools);
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, driver FROM storage_pools WHERE state = 1 ORDER BY name", "");
    while (!more && sql_next(s)) {
        if (own->count == MAX) {
            more = true;
            break;
        }
        Covey__Internal__V1__PoolSpec *pool = arena_alloc(own->arena, sizeof *pool);
        covey__internal__v1__pool_spec__init(pool);
        pool->name = arena_strdup(own->arena, sql_text(s, 1));
        pool->driver = arena_strdup(own->arena, sql_text(s, 2));
        pool->config = arena_alloc(own->arena, MAX * sizeof *pool->config);
        struct sql_stmt *c = sql_query(sql, "SELECT key, value FROM storage_pools_config WHERE storage_pool_id = ?1 ORDER BY key", "i", sql_int(s, 0));
        while (!more && sql_next(c)) {
            if (pool->n_config == MAX) {
                more = true;
                break;
            }
            Covey__Internal__V1__PoolSpec__ConfigEntry *entry = arena_alloc(own->arena, sizeof *entry);
            covey__internal__v1__pool_spec__config_entry__init(entry);
            entry->key = arena_strdup(own->arena, sql_text(c, 0));
            entry->value = arena_strdup(own->arena, sql_text(c, 1));
            pool->config[pool->n_config++] = entry;
        }
        if (sql_done(c, err) != STATUS_OK) {
            sql_done(s, NULL);
            return err->code;
        }
        own->pools[own->count++] = pool;
    }
    int status = sql_done(s, err);
    return status == STATUS_OK && more ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d storage pools, or keys of one", MAX) : status;
}

static int accept_self(struct daemon *daemon, struct join *join, Covey__Internal__V1__AcceptResponse **out, struct error *err)
{
    struct utsname host;
    uname(&host);
    struct own_pools own = {.arena = &join->arena};
    if (daemon_read(daemon, DB_LOCAL, read_own_pools, &own, NULL, err) != STATUS_OK) {
        return err->code;
    }
    Covey__Internal__V1__AcceptRequest request = COVEY__INTERNAL__V1__ACCEPT_REQUEST__INIT;
    request.name = join->name;
    request.address = join->address;
    request.schema = upgrade_claim().level.schema;
    request.api_extensions = upgrade_claim().level.api;
    request.architecture = host.machine;
    request.join_id = join->join_id;
    request.pools = own.pools;
    request.n_pools = own.count;
    ProtobufCMessage *response = NULL;
    int status = call_cluster(daemon, join, "Accept", &request.base, &response, JOIN_STEP_MS, err);
    if (status == STATUS_PERMISSION_DENIED) {
        return error_prefix(err, "Failed to update cluster trust: Failed getting existing certificate");
    }
    if (status == STATUS_FAILED_PRECONDITION && str_prefix(err->text, "Existing server certificate")) {
        return error_prefix(err, "Failed to update cluster trust");
    }
    if (status != STATUS_OK) {
        return error_prefix(err, "Failed request to add member");
    }
    *out = (Covey__Internal__V1__AcceptResponse *)response;
    return STATUS_OK;
}

static void abandon_self(struct daemon *daemon, struct join *join)
{
    Covey__Internal__V1__AbandonRequest request = COVEY__INTERNAL__V1__ABANDON_REQUEST__INIT;
    request.join_id = join->join_id;
    request.name = join->name;
    ProtobufCMessage *response = NULL;
    struct error err = ERROR_INIT;
    if (call_cluster(daemon, join, "Abandon", &request.base, &response, JOIN_CALL_MS, &err) != STATUS_OK) {
        log_warn("join.abandon", "error=\"%s\"", err.text); /* the leader forgets pending members by itself */
    }
}

/* ---- pools ---- */

/* Makes the cluster's pools on this host, with the member-specific keys that the administrator gave. */
static int make_pools(struct daemon *daemon, struct join *join, const Covey__Internal__V1__AcceptResponse *accepted,
                      const Covey__V1__UpdateClusterRequest *request, struct error *err)
{
    join->pools = json_array();
    for (size_t i = 0; i < accepted->n_pools; i++) {
        Covey__Internal__V1__PoolSpec *pool = accepted->pools[i];
        Covey__Internal__V1__PoolSpec spec = *pool;
        spec.config = arena_alloc(&join->arena, (pool->n_config + request->n_member_config + 1) * sizeof *spec.config);
        for (size_t k = 0; k < pool->n_config; k++) {
            spec.config[k] = pool->config[k];
        }
        for (size_t k = 0; k < request->n_member_config; k++) {
            const Covey__V1__MemberConfigKey *given = request->member_config[k];
            if (strcmp(given->entity, "storage-pool") == 0 && strcmp(given->name, pool->name) == 0 && !str_empty(given->value)) {
                Covey__Internal__V1__PoolSpec__ConfigEntry *entry = arena_alloc(&join->arena, sizeof *entry);
                covey__internal__v1__pool_spec__config_entry__init(entry);
                entry->key = given->key;
                entry->value = given->value;
                spec.config[spec.n_config++] = entry;
            }
        }
        struct rpc_channel *self = member_channel(daemon, daemon_id(daemon), err);
        ProtobufCMessage *response = NULL;
        struct rpc_options options = {.timeout_ms = JOIN_STEP_MS};
        int status = rpc_unary(self, "covey.internal.v1.Agent", "CreatePool", &spec.base, &response, &join->arena, &options, err);
        rpc_channel_unref(self);
        if (status != STATUS_OK) {
            return error_prefix(err, "Failed to initialize member: Failed to initialize storage pools and networks");
        }
        const Covey__Internal__V1__PoolResponse *made = (const Covey__Internal__V1__PoolResponse *)response;
        json_t *config = json_object();
        for (size_t k = 0; k < made->n_config; k++) {
            json_object_set_new(config, made->config[k]->key, json_string(made->config[k]->value));
        }
        json_array_append_new(join->pools, json_pack("{s:s, s:s, s:o}", "name", pool->name, "driver", pool->driver, "config", config));
    }
    return STATUS_OK;
}

static Covey__Internal__V1__PoolSpec **pools_message(struct join *join, size_t *count)
{
    size_t n = json_array_size(join->pools);
    Covey__Internal__V1__PoolSpec **pools = arena_alloc(&join->arena, (n + 1) * sizeof *pools);
    for (size_t i = 0; i < n; i++) {
        json_t *object = json_array_get(join->pools, i), *value;
        const char *key;
        Covey__Internal__V1__PoolSpec *pool = pools[i] = arena_alloc(&join->arena, sizeof *pool);
        covey__internal__v1__pool_spec__init(pool);
        pool->name = arena_strdup(&join->arena, json_string_value(json_object_get(object, "name")));
        pool->driver = arena_strdup(&join->arena, json_string_value(json_object_get(object, "driver")));
        json_t *config = json_object_get(object, "config");
        pool->config = arena_alloc(&join->arena, (json_object_size(config) + 1) * sizeof *pool->config);
        json_object_foreach(config, key, value) {
            Covey__Internal__V1__PoolSpec__ConfigEntry *entry = arena_alloc(&join->arena, sizeof *entry);
            covey__internal__v1__pool_spec__config_entry__init(entry);
            entry->key = arena_strdup(&join->arena, key);
            entry->value = arena_strdup(&join->arena, json_string_value(value));
            pool->config[pool->n_config++] = entry;
        }
    }
    *count = n;
    return pools;
}

/* ---- the state kept over restarts ---- */

static int save(struct daemon *daemon, struct join *join, const char *phase, struct error *err)
{
    json_t *addresses = json_array();
    for (size_t i = 0; i < join->address_count; i++) {
        json_array_append_new(addresses, json_string(join->addresses[i]));
    }
    json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:I, s:I, s:s*, s:s*, s:s*, s:O*}", "phase", phase, "name", join->name, "address", join->address,
        "join_id", join->join_id, "fingerprint", join->fingerprint, "addresses", addresses, "id", (json_int_t)join->id, "epoch", (json_int_t)join->epoch, "cluster_id",
        join->cluster_id, "cert", join->cluster_cert, "key", join->cluster_key, "pools", join->pools);
    char *text = json_dumps(object, JSON_COMPACT);
    int status = text != NULL ? local_state_set(daemon->local, "join", text, err) : error_set(err, STATUS_INTERNAL, "cannot encode the state of the join");
    free(text);
    json_decref(object);
    return status;
}

static void copy_text(char *out, size_t size, json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    snprintf(out, size, "%s", text != NULL ? text : "");
}

/* Phase of an interrupted join, NULL if there is none. Fills join; *keep owns the texts. */
static const char *load(struct daemon *daemon, struct join *join, json_t **keep)
{
    char *text = local_state_get(daemon->local, "join");
    *keep = text != NULL ? json_loads(text, 0, NULL) : NULL;
    free(text);
    if (*keep == NULL) {
        return NULL;
    }
    json_t *address;
    size_t i;
    copy_text(join->name, sizeof join->name, *keep, "name");
    copy_text(join->address, sizeof join->address, *keep, "address");
    copy_text(join->join_id, sizeof join->join_id, *keep, "join_id");
    copy_text(join->fingerprint, sizeof join->fingerprint, *keep, "fingerprint");
    json_array_foreach(json_object_get(*keep, "addresses"), i, address) {
        add_address(join, json_string_value(address));
    }
    join->id = (uint64_t)json_integer_value(json_object_get(*keep, "id"));
    join->epoch = (uint64_t)json_integer_value(json_object_get(*keep, "epoch"));
    join->cluster_id = json_string_value(json_object_get(*keep, "cluster_id"));
    join->cluster_cert = json_string_value(json_object_get(*keep, "cert"));
    join->cluster_key = json_string_value(json_object_get(*keep, "key"));
    join->pools = json_incref(json_object_get(*keep, "pools"));
    return json_string_value(json_object_get(*keep, "phase"));
}

/* ---- the exchange of the database ---- */

static int move(const char *from, const char *to, struct error *err)
{
    if (rename(from, to) != 0 && errno != ENOENT) {
        return error_set(err, STATUS_INTERNAL, "cannot rename %s to %s: %s", from, to, strerrordesc_np(errno));
    }
    return STATUS_OK;
}

/* Into the cluster: repeatable. */
static int switch_over(struct daemon *daemon, struct join *join, struct error *err)
{
    char *now = xasprintf("%s/database/global", daemon->dir), *before = xasprintf("%s/database/global.before", daemon->dir);
    int status = STATUS_OK;
    state_close_database(daemon);
    members_forget_channels();
    if (access(before, F_OK) != 0) { /* else `now` is what this join made already: a voter must never forget its log */
        status = move(now, before, err);
    }
    if (status == STATUS_OK) {
        status = identity_set_cluster(daemon, join->cluster_cert, join->cluster_key, err);
    }
    if (status == STATUS_OK) {
        status = cluster_local_state(daemon, join->name, join->cluster_id, join->epoch, join->id, err);
    }
    if (status == STATUS_OK) {
        state_set_identity(daemon, join->id, true, join->name);
        if (join->view != NULL) {
            view_forget(daemon); /* the standalone server's terms mean nothing here */
            view_install(daemon, join->view);
            view_persist(daemon);
        }
        status = state_open_database(daemon, err);
    }
    free(now);
    free(before);
    return status;
}

/* Back to what the server was. */
static int switch_back(struct daemon *daemon, struct join *join, struct error *err)
{
    char *now = xasprintf("%s/database/global", daemon->dir), *before = xasprintf("%s/database/global.before", daemon->dir);
    state_close_database(daemon);
    members_forget_channels();
    int status = STATUS_OK;
    if (access(before, F_OK) == 0) {
        status = dir_remove_all(now, err);
        status = status == STATUS_OK ? move(before, now, err) : status;
    }
    identity_drop_cluster(daemon);
    if (status == STATUS_OK) {
        status = cluster_local_state(daemon, NULL, NULL, 0, 1, err);
    }
    state_set_identity(daemon, 1, false, "");
    view_forget(daemon);
    if (status == STATUS_OK) {
        status = state_open_database(daemon, err);
    }
    free(now);
    free(before);
    return status;
}

/* From "switching" on: exchanges the database and completes, or puts everything back. */
static int finish(struct daemon *daemon, struct join *join, struct error *err)
{
    int status = switch_over(daemon, join, err);
    if (status == STATUS_OK) {
        Covey__Internal__V1__CompleteRequest request = COVEY__INTERNAL__V1__COMPLETE_REQUEST__INIT;
        ProtobufCMessage *response = NULL;
        request.id = join->id;
        request.join_id = join->join_id;
        request.pools = pools_message(join, &request.n_pools);
        status = call_cluster(daemon, join, "Complete", &request.base, &response, JOIN_COMPLETE_MS, err);
        if (status == STATUS_OK) {
            view_install(daemon, ((Covey__Internal__V1__CompleteResponse *)response)->view);
            view_persist(daemon);
            char *before = xasprintf("%s/database/global.before", daemon->dir);
            local_state_set(daemon->local, "join", NULL, err);
            dir_remove_all(before, err);
            free(before);
            log_info("join.done", "member=%s id=%" PRIu64, join->name, join->id);
            return STATUS_OK;
        }
        if (worth_repeating(status)) {
            return error_prefix(err, "Failed to connect to cluster leader"); /* unknown: the next start goes on */
        }
        error_prefix(err, "Failed to join cluster");
    }
    struct error back = ERROR_INIT;
    abandon_self(daemon, join);
    if (switch_back(daemon, join, &back) != STATUS_OK) {
        core_panic(__FILE__, __LINE__, "cannot return to the former database: %s", back.text); /* the next start tries again */
    }
    local_state_set(daemon->local, "join", NULL, &back);
    return status;
}

static int join_steps(struct daemon *daemon, struct join *join, const Covey__V1__UpdateClusterRequest *request, struct error *err)
{
    const char *password = !str_empty(request->cluster_token) ? request->cluster_token : request->cluster_password;
    if (save(daemon, join, "asked", err) != STATUS_OK) {
        return err->code;
    }
    bool introduced = false;
    int status = STATUS_OK;
    if (!str_empty(password)) {
        status = introduce_self(daemon, join, password, err);
        introduced = status == STATUS_OK;
    }
    Covey__Internal__V1__AcceptResponse *accepted = NULL;
    if (status == STATUS_OK) {
        status = accept_self(daemon, join, &accepted, err);
    }
    if (status == STATUS_OK) {
        introduced = true;
        status = make_pools(daemon, join, accepted, request, err);
    }
    if (status != STATUS_OK) {
        if (introduced) {
            abandon_self(daemon, join);
        }
        local_state_set(daemon->local, "join", NULL, NULL);
        return status;
    }
    join->id = accepted->id;
    join->epoch = accepted->epoch;
    join->cluster_id = accepted->cluster_id;
    join->cluster_cert = accepted->cluster_certificate;
    join->cluster_key = accepted->cluster_key;
    join->view = accepted->view;
    for (size_t i = 0; accepted->view != NULL && i < accepted->view->n_members; i++) {
        if (accepted->view->members[i]->state != 1) {
            add_address(join, accepted->view->members[i]->address);
        }
    }
    if (cert_fingerprint(join->cluster_cert, join->fingerprint, err) != STATUS_OK || save(daemon, join, "switching", err) != STATUS_OK) {
        return err->code;
    }
    return finish(daemon, join, err);
}

/* ---- the operation ---- */

static int join_run(struct op *op, struct error *err)
{
    struct daemon *daemon = the_daemon;
    const Covey__V1__UpdateClusterRequest *request =
        (const Covey__V1__UpdateClusterRequest *)op_request(op, &covey__v1__update_cluster_request__descriptor, err);
    if (request == NULL) {
        return err->code;
    }
    struct join join = {0};
    arena_init(&join.arena);
    uuid_new(join.join_id);
    snprintf(join.name, sizeof join.name, "%s", request->server_name);
    snprintf(join.address, sizeof join.address, "%s", request->server_address);
    add_address(&join, request->cluster_address);
    struct token_text token = {0};
    if (token_decode(request->cluster_password, &token) && token.join) {
        char canonical[300];
        for (size_t i = 0; token.addresses != NULL && token.addresses[i] != NULL; i++) {
            if (address_canonical(token.addresses[i], canonical, sizeof canonical, NULL) == STATUS_OK) {
                add_address(&join, canonical);
            }
        }
    }
    token_text_free(&token);
    int status = cert_fingerprint(request->cluster_certificate, join.fingerprint, err);
    status = status == STATUS_OK ? forming_begin(err) : status; /* two requests at once would exchange the database under each other */
    if (status == STATUS_OK) {
        status = daemon_clustered(daemon) ? error_set(err, STATUS_INVALID_ARGUMENT, "This server is already clustered") : join_steps(daemon, &join, request, err);
        forming_end();
        struct error later = ERROR_INIT;
        if (status != STATUS_OK && worth_repeating(status) && join_resume(daemon, &later) != STATUS_OK) { /* the outcome is open: goes on until it is known */
            log_error("join.resume", "error=\"%s\"", later.text);
        }
    }
    join_clear(&join);
    return status;
}

static const struct op_kind join_kind = {.type = 2, .description = "Joining cluster", .class = OP_TASK, .run = join_run};

void join_register(void)
{
    op_register(&join_kind);
}

static int check_idle(struct daemon *daemon, struct error *err)
{
    struct arena arena;
    arena_init(&arena);
    Covey__Internal__V1__InstanceStatus **instances = NULL;
    size_t count = 0, running = 0;
    host_instances(daemon->host, &arena, &instances, &count);
    for (size_t i = 0; i < count; i++) {
        running += instances[i]->status_code != 102;
    }
    arena_clear(&arena);
    return running == 0 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Cannot join a cluster while instances are running");
}

/* Opens the listener for `address` and stores what follows from it (spec/cluster.md 4.1). Kept when the join fails later. */
static int listen_on(struct daemon *daemon, const char *address, struct error *err)
{
    char core[300], cluster[300];
    listener_get(core, sizeof core, cluster, sizeof cluster);
    const char *set_core = core[0] != '\0' ? core : address;
    if (listener_set(daemon, set_core, address, err) != STATUS_OK) {
        return err->code;
    }
    int status = local_config_set(daemon->local, "core.https_address", set_core, err);
    return status == STATUS_OK ? local_config_set(daemon->local, "cluster.https_address", address, err) : status;
}

int join_start(struct rpc_call *call, const ProtobufCMessage *message, Covey__V1__Operation **operation, struct error *err)
{
    struct daemon *daemon = the_daemon;
    Covey__V1__UpdateClusterRequest request = *(const Covey__V1__UpdateClusterRequest *)message;
    char own[300], target[300];
    if (str_empty(request.cluster_certificate)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No target cluster member certificate provided");
    }
    if (daemon_clustered(daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "This server is already clustered");
    }
    if (str_empty(request.server_address)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No server address provided for this member");
    }
    if (cert_check_pem(request.cluster_certificate, (char[FINGERPRINT_SIZE]){0}, NULL, err) != STATUS_OK) {
        return error_prefix(err, "Invalid cluster_certificate");
    }
    if (address_canonical(request.server_address, own, sizeof own, err) != STATUS_OK) {
        return error_prefix(err, "Invalid server_address");
    }
    if (address_wildcard(own)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid server_address: Wildcard addresses aren't allowed");
    }
    if (address_canonical(request.cluster_address, target, sizeof target, err) != STATUS_OK) {
        return error_prefix(err, "Invalid cluster_address");
    }
    if (check_idle(daemon, err) != STATUS_OK || listen_on(daemon, own, err) != STATUS_OK) {
        return err->code;
    }
    request.server_address = own;
    request.cluster_address = target;
    struct op_spec spec = {.kind = &join_kind, .resources_json = "{\"cluster\":null}", .request = &request.base};
    return op_create_local(call, &spec, operation, err);
}

static bool resume_begun; /* set before the thread starts */

static void *resume_main(void *ud)
{
    struct daemon *daemon = ud;
    while (!resume_begun && forming_begin(NULL) != STATUS_OK) { /* an interrupted bootstrap that goes on, too: bounded */
        usleep(JOIN_PAUSE_MS * 1000);
    }
    struct join join = {0};
    json_t *keep = NULL;
    arena_init(&join.arena);
    const char *phase = load(daemon, &join, &keep);
    struct error err = ERROR_INIT;
    if (phase != NULL && strcmp(phase, "switching") == 0) {
        log_info("join.resume", "member=%s", join.name);
        while (worth_repeating(finish(daemon, &join, &err))) {
            log_warn("join.resume", "error=\"%s\"", err.text);
            sleep(1);
        }
    } else if (phase != NULL) {
        abandon_self(daemon, &join);
        local_state_set(daemon->local, "join", NULL, &err);
    }
    join_clear(&join);
    json_decref(keep);
    forming_end();
    return NULL;
}

int join_resume(struct daemon *daemon, struct error *err)
{
    char *text = local_state_get(daemon->local, "join");
    bool any = text != NULL;
    free(text);
    pthread_t thread;
    resume_begun = any && forming_begin(NULL) == STATUS_OK; /* before the first request can come */
    if (any && (pthread_create(&thread, NULL, resume_main, daemon) != 0 || pthread_detach(thread) != 0)) {
        return error_set(err, STATUS_INTERNAL, "cannot start a thread");
    }
    return STATUS_OK;
}
