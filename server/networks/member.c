/* Networks and membership; see networks_member.h. */
#include "networks_member.h"

#include "networks.h"
#include "server/images/names.h"
#include "server/instances/settings.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SYNC_CALL_MS = 5 * 60 * 1000, SYNC_PAUSE_S = 2, SYNC_TRIES_MAX = 1800, DIFFERING_KEYS_MAX = 2 * NETWORK_KEYS_MAX };

typedef Covey__Internal__V1__NetworkSpec NetworkSpec;

int networks_read_specs(struct sql *sql, int64_t member, NetworkSpec ***out, size_t *count, struct arena *arena, struct error *err)
{
    struct network_row *rows = arena_alloc(arena, NETWORKS_MAX * sizeof *rows);
    int status = STATUS_OK;
    *count = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, type FROM networks WHERE state = 1 AND project_id = 1 ORDER BY name", "");
    while (status == STATUS_OK && sql_next(s)) {
        if (*count == NETWORKS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d networks", NETWORKS_MAX);
            break;
        }
        rows[(*count)++] = (struct network_row){.id = sql_int(s, 0), .name = arena_strdup(arena, sql_text(s, 1)), .type = sql_int(s, 2)};
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    status = status == STATUS_OK ? done : status;
    *out = arena_alloc(arena, (*count + 1) * sizeof **out);
    for (size_t i = 0; i < *count && status == STATUS_OK; i++) {
        struct settings config = {0};
        status = network_load_config(sql, rows[i].id, 0, &config, arena, err);
        status = status == STATUS_OK && member != 0 ? network_load_config(sql, rows[i].id, member, &config, arena, err) : status;
        (*out)[i] = arena_alloc(arena, sizeof ***out);
        network_spec_fill((*out)[i], &rows[i], &config, arena);
    }
    return status;
}

static const char *spec_get(const NetworkSpec *spec, const char *key)
{
    for (size_t i = 0; i < spec->n_config; i++) {
        if (strcmp(spec->config[i]->key, key) == 0) {
            return spec->config[i]->value;
        }
    }
    return NULL;
}

static const NetworkSpec *spec_find(NetworkSpec *const *specs, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(specs[i]->name, name) == 0) {
            return specs[i];
        }
    }
    return NULL;
}

static int cmp_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int check_one(const NetworkSpec *ours, const NetworkSpec *theirs, struct error *err)
{
    char *differ[DIFFERING_KEYS_MAX];
    size_t count = 0;
    if (strcmp(ours->type, theirs->type) != 0) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Mismatching type for network \"%s\" in project \"default\"", ours->name);
    }
    for (size_t i = 0; i < ours->n_config && count < DIFFERING_KEYS_MAX; i++) {
        if (!network_key_member(ours->config[i]->key) && !str_eq(spec_get(theirs, ours->config[i]->key), ours->config[i]->value)) {
            differ[count++] = ours->config[i]->key;
        }
    }
    for (size_t i = 0; i < theirs->n_config && count < DIFFERING_KEYS_MAX; i++) {
        if (!network_key_member(theirs->config[i]->key) && !str_empty(theirs->config[i]->value) && spec_get(ours, theirs->config[i]->key) == NULL) {
            differ[count++] = theirs->config[i]->key;
        }
    }
    if (count == 0) {
        return STATUS_OK;
    }
    struct buf list = {0};
    qsort(differ, count, sizeof *differ, cmp_text);
    for (size_t i = 0; i < count; i++) {
        buf_printf(&list, "%s%s", i > 0 ? ", " : "", differ[i]);
    }
    error_set(err, STATUS_FAILED_PRECONDITION, "Mismatching config for network \"%s\" in project \"default\": different values for keys: %s", ours->name, list.data);
    buf_free(&list);
    return err->code;
}

int networks_check_joiner(NetworkSpec *const *ours, size_t our_count, NetworkSpec *const *theirs, size_t their_count, struct error *err)
{
    int status = STATUS_OK;
    for (size_t i = 0; i < our_count && status == STATUS_OK; i++) {
        const NetworkSpec *have = spec_find(theirs, their_count, ours[i]->name);
        status = have != NULL ? check_one(ours[i], have, err) : STATUS_OK;
    }
    return status;
}

NetworkSpec **networks_for_joiner(NetworkSpec *const *ours, size_t count, Covey__V1__MemberConfigKey *const *given, size_t given_count, struct arena *arena)
{
    NetworkSpec **specs = arena_alloc(arena, (count + 1) * sizeof *specs);
    for (size_t i = 0; i < count; i++) {
        struct settings config = {0};
        settings_from_map(&config, ours[i]->config, ours[i]->n_config, arena);
        for (size_t k = 0; k < given_count; k++) {
            if (strcmp(given[k]->entity, "network") != 0 || strcmp(given[k]->name, ours[i]->name) != 0) {
                continue;
            }
            if (network_key_member(given[k]->key)) {
                settings_set(&config, given[k]->key, given[k]->value, arena);
            } else {
                log_warn("join.member_config", "network=%s key=%.100s text=\"not a member-specific key: ignored\"", ours[i]->name, given[k]->key);
            }
        }
        specs[i] = arena_alloc(arena, sizeof *specs[i]);
        *specs[i] = *ours[i];
        specs[i]->config = settings_to_map(&config, &covey__internal__v1__network_spec__config_entry__descriptor, &specs[i]->n_config, arena);
    }
    return specs;
}

int networks_complete_join(struct sql *sql, int64_t member, NetworkSpec *const *specs, size_t count, struct error *err)
{
    int status = STATUS_OK;
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        int64_t network = 0;
        status = sql_get_int(sql, &network, err, "SELECT id FROM networks WHERE project_id = 1 AND name = ?1", "s", specs[i]->name);
        if (status == STATUS_NOT_FOUND) { /* deleted while the join was under way: the joiner's sync removes it there */
            status = STATUS_OK;
            continue;
        }
        status = status == STATUS_OK ? sql_exec(sql, err,
                                           "INSERT INTO networks_nodes (network_id, node_id, state) VALUES (?1, ?2, 1) ON CONFLICT DO UPDATE SET state = 1", "ii", network, member)
                                     : status;
        for (size_t k = 0; k < specs[i]->n_config && status == STATUS_OK; k++) {
            if (network_key_member(specs[i]->config[k]->key)) {
                status = network_store_key(sql, network, member, specs[i]->config[k]->key, specs[i]->config[k]->value, err);
            }
        }
    }
    char *missing = NULL;
    if (status == STATUS_OK && sql_get_text(sql, &missing, NULL,
                                   "SELECT name FROM networks WHERE state = 1 AND id NOT IN (SELECT network_id FROM networks_nodes WHERE node_id = ?1)", "i", member) == STATUS_OK) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Joining member has no config for network %s", missing); /* made while the join was under way */
    }
    free(missing);
    return status;
}

/* ---- names on one member ---- */

struct defined {
    struct arena *arena;
    int64_t member;
    char **names;
    size_t count;
};

static int read_names(struct sql *sql, void *ud, struct error *err)
{
    struct defined *in = ud;
    int status = STATUS_OK;
    in->count = 0;
    in->names = arena_alloc(in->arena, NETWORKS_MAX * sizeof *in->names);
    struct sql_stmt *s = sql_query(sql, "SELECT name FROM networks JOIN networks_nodes ON network_id = networks.id WHERE node_id = ?1 ORDER BY name", "i", in->member);
    while (status == STATUS_OK && sql_next(s)) {
        if (in->count == NETWORKS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d networks", NETWORKS_MAX);
            break;
        }
        in->names[in->count++] = arena_strdup(in->arena, sql_text(s, 0));
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

/* ---- sync: the leader's side ---- */

struct sync {
    struct arena *arena;
    uint64_t member;
    const char *name;
    int64_t known, state; /* whether there is such a network; its state on the member, -1 = not defined there */
    struct network_row row;
    struct network_task *tasks;
    size_t count;
};

static int read_one(struct sql *sql, void *ud, struct error *err)
{
    struct sync *in = ud;
    in->known = 0;
    in->state = -1;
    int status = network_load(sql, in->name, &in->row, in->arena, err);
    if (status == STATUS_NOT_FOUND) {
        return STATUS_OK;
    }
    in->known = 1;
    status = status == STATUS_OK ? network_tasks_load(sql, &in->row, NETWORK_CREATED, &in->tasks, &in->count, in->arena, err) : status;
    for (size_t i = 0; i < in->count && status == STATUS_OK; i++) {
        if (in->tasks[i].member == in->member) {
            in->state = NETWORK_CREATED;
            in->tasks[0] = in->tasks[i];
        }
    }
    return status;
}

/* One network, in order with everything else that is done to it. */
static int sync_one(struct sync *in, struct error *err)
{
    ProtobufCMessage *response = NULL;
    int status = name_lock(NETWORK_LOCK_NOUN, in->name, err);
    if (status != STATUS_OK) {
        return status;
    }
    status = daemon_read(the_daemon, DB_LINEARIZABLE, read_one, in, NULL, err);
    if (status == STATUS_OK && in->known == 0) {
        NetworkSpec gone = COVEY__INTERNAL__V1__NETWORK_SPEC__INIT;
        gone.name = (char *)in->name;
        status = agent_call(the_daemon, in->member, "RemoveNetwork", &gone.base, &response, in->arena, NETWORK_AGENT_TIMEOUT_MS, err);
    } else if (status == STATUS_OK && in->state == NETWORK_CREATED) {
        status = agent_call(the_daemon, in->member, "ApplyNetwork", &in->tasks[0].spec.base, &response, in->arena, NETWORK_AGENT_TIMEOUT_MS, err);
    }
    name_unlock(NETWORK_LOCK_NOUN, in->name);
    return status;
}

int network_sync(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__SyncNetworksRequest *request = (const Covey__Internal__V1__SyncNetworksRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct defined defined = {.arena = arena, .member = (int64_t)request->member};
    Covey__Internal__V1__ListHostNetworksRequest list = COVEY__INTERNAL__V1__LIST_HOST_NETWORKS_REQUEST__INIT;
    ProtobufCMessage *answer = NULL;
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_names, &defined, NULL, err);
    status = status == STATUS_OK ? agent_call(the_daemon, request->member, "ListHostNetworks", &list.base, &answer, arena, 0, err) : status;
    const Covey__Internal__V1__HostNetworks *host = (const Covey__Internal__V1__HostNetworks *)answer;
    struct error first = ERROR_INIT;
    for (size_t i = 0; status == STATUS_OK && i < defined.count + host->n_networks; i++) {
        struct sync in = {.arena = arena, .member = request->member, .name = i < defined.count ? defined.names[i] : host->networks[i - defined.count]->name};
        struct error one = ERROR_INIT;
        bool twice = false;
        for (size_t k = 0; k < defined.count && i >= defined.count && !twice; k++) {
            twice = strcmp(defined.names[k], in.name) == 0;
        }
        if (!twice && sync_one(&in, &one) != STATUS_OK) { /* the others all the same */
            log_warn("network.sync", "network=%s member=%llu error=\"%s\"", in.name, (unsigned long long)request->member, one.text);
            first = first.code == STATUS_OK ? one : first;
        }
    }
    return status != STATUS_OK ? status : first.code == STATUS_OK ? STATUS_OK : error_set(err, first.code, "%s", first.text);
}

/* ---- sync: the member's side ---- */

static struct {
    pthread_mutex_t lock; /* all of it */
    pthread_cond_t changed;
    bool running, again, stopping;
} syncing = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int sync_now(struct daemon *daemon, struct error *err)
{
    struct arena arena;
    ProtobufCMessage *response = NULL;
    Covey__Internal__V1__SyncNetworksRequest request = COVEY__INTERNAL__V1__SYNC_NETWORKS_REQUEST__INIT;
    struct rpc_options options = {.timeout_ms = SYNC_CALL_MS};
    request.member = daemon_id(daemon);
    struct rpc_channel *self = member_channel(daemon, daemon_id(daemon), err);
    if (self == NULL) {
        return err->code;
    }
    arena_init(&arena);
    int status = rpc_unary(self, "covey.internal.v1.Membership", "SyncNetworks", &request.base, &response, &arena, &options, err);
    rpc_channel_unref(self);
    arena_clear(&arena);
    return status;
}

static void *sync_main(void *ud)
{
    pthread_mutex_lock(&syncing.lock);
    for (int tries = 0; syncing.again && !syncing.stopping && tries < SYNC_TRIES_MAX; tries++) {
        struct error err = ERROR_INIT;
        syncing.again = false;
        pthread_mutex_unlock(&syncing.lock);
        bool failed = sync_now(ud, &err) != STATUS_OK;
        pthread_mutex_lock(&syncing.lock);
        if (failed && !syncing.stopping) {
            struct timespec until;
            log_info("network.sync", "error=\"%s\"", err.text);
            syncing.again = true;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_sec += SYNC_PAUSE_S;
            pthread_cond_timedwait(&syncing.changed, &syncing.lock, &until);
        }
    }
    syncing.running = false;
    pthread_cond_broadcast(&syncing.changed);
    pthread_mutex_unlock(&syncing.lock);
    return NULL;
}

void networks_sync(struct daemon *daemon)
{
    pthread_mutex_lock(&syncing.lock);
    syncing.again = true;
    bool start = !syncing.running && !syncing.stopping;
    syncing.running = syncing.running || start;
    if (start && background_start("network sync", sync_main, daemon) != 0) {
        syncing.running = false;
    }
    pthread_mutex_unlock(&syncing.lock);
}

void networks_sync_stop(void)
{
    pthread_mutex_lock(&syncing.lock);
    syncing.stopping = true;
    pthread_cond_broadcast(&syncing.changed);
    while (syncing.running) { /* its call has ended with the servers */
        pthread_cond_wait(&syncing.changed, &syncing.lock);
    }
    pthread_mutex_unlock(&syncing.lock);
}
