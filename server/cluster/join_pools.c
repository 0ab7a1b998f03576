/* Storage pools of a joiner: what it has, what the cluster wants it to have. Pools are made on this host before the database is exchanged; those that were
 * not there before are removed again when the join fails. */
#include "join.h"

#include "covey/v1/storage.pb-c.h"
#include "server/events/events.h"
#include "server/pools/rules.h"
#include <string.h>

typedef Covey__Internal__V1__PoolSpec PoolSpec;
typedef Covey__Internal__V1__PoolSpec__ConfigEntry ConfigEntry;

/* ---- what this server has ---- */

static ConfigEntry *config_entry(struct arena *arena, const char *key, const char *value)
{
    ConfigEntry *entry = arena_alloc(arena, sizeof *entry);
    covey__internal__v1__pool_spec__config_entry__init(entry);
    entry->key = arena_strdup(arena, key);
    entry->value = arena_strdup(arena, value);
    return entry;
}

static int read_own_pools(struct sql *sql, void *ud, struct error *err)
{
    struct join *join = ud;
    bool more = false;
    join->own_count = 0;
    join->own = arena_alloc(&join->arena, JOIN_POOLS_MAX * sizeof *join->own);
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, driver FROM storage_pools WHERE state = 1 ORDER BY name", "");
    while (!more && sql_next(s)) {
        if (join->own_count == JOIN_POOLS_MAX) {
            more = true;
            break;
        }
        PoolSpec *pool = arena_alloc(&join->arena, sizeof *pool);
        covey__internal__v1__pool_spec__init(pool);
        pool->name = arena_strdup(&join->arena, sql_text(s, 1));
        pool->driver = arena_strdup(&join->arena, sql_text(s, 2));
        pool->config = arena_alloc(&join->arena, POOL_KEYS_MAX * sizeof *pool->config);
        struct sql_stmt *c = sql_query(sql, "SELECT key, value FROM storage_pools_config WHERE storage_pool_id = ?1 ORDER BY key", "i", sql_int(s, 0));
        while (!more && sql_next(c)) {
            if (pool->n_config == POOL_KEYS_MAX) {
                more = true;
                break;
            }
            pool->config[pool->n_config++] = config_entry(&join->arena, sql_text(c, 0), sql_text(c, 1));
        }
        if (sql_done(c, err) != STATUS_OK) {
            sql_done(s, NULL);
            return err->code;
        }
        join->own[join->own_count++] = pool;
    }
    int status = sql_done(s, err);
    return status == STATUS_OK && more ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d storage pools, or %d keys of one", JOIN_POOLS_MAX, POOL_KEYS_MAX) : status;
}

int join__load_own_pools(struct daemon *daemon, struct join *join, struct error *err)
{
    return daemon_read(daemon, DB_LOCAL, read_own_pools, join, NULL, err);
}

static const PoolSpec *own_pool(const struct join *join, const char *name)
{
    for (size_t i = 0; i < join->own_count; i++) {
        if (strcmp(join->own[i]->name, name) == 0) {
            return join->own[i];
        }
    }
    return NULL;
}

#define POOLS_PREFIX "Failed to initialize member: Failed to initialize storage pools and networks"

int join__check_pools(struct daemon *daemon, struct join *join, struct error *err)
{
    if (join->own_count == 0) {
        return STATUS_OK;
    }
    Covey__V1__ListStoragePoolsRequest request = COVEY__V1__LIST_STORAGE_POOLS_REQUEST__INIT;
    request.recursion = 1;
    ProtobufCMessage *response = NULL;
    int status = join__call(daemon, join, "covey.v1.StoragePools", "ListStoragePools", &request.base, &response, JOIN_STEP_MS, err);
    if (status != STATUS_OK) {
        return error_prefix(err, POOLS_PREFIX);
    }
    const Covey__V1__ListStoragePoolsResponse *list = (const Covey__V1__ListStoragePoolsResponse *)response;
    for (size_t i = 0; i < list->n_pools; i++) {
        const PoolSpec *own = own_pool(join, list->pools[i]->name);
        if (own != NULL && strcmp(own->driver, list->pools[i]->driver) != 0 && strcmp(list->pools[i]->status, "Created") == 0) {
            return error_set(err, STATUS_FAILED_PRECONDITION, POOLS_PREFIX ": Storage pool \"%s\" is of type \"%s\" instead of \"%s\"", own->name, own->driver,
                list->pools[i]->driver);
        }
    }
    return STATUS_OK;
}

/* ---- making ---- */

static void set_text(json_t *object, const char *key, const char *value)
{
    json_object_set_new(object, key, json_string(value));
}

/* One pool as it shall be here: the cluster's keys, ours of a pool that we have, and what the administrator chose. */
static int plan_pool(struct join *join, const PoolSpec *pool, const Covey__V1__UpdateClusterRequest *request, struct error *err)
{
    const PoolSpec *own = own_pool(join, pool->name);
    json_t *config = json_object();
    for (size_t k = 0; k < pool->n_config; k++) {
        set_text(config, pool->config[k]->key, pool->config[k]->value);
    }
    for (size_t k = 0; own != NULL && k < own->n_config; k++) {
        if (pool_key_member(own->config[k]->key)) {
            set_text(config, own->config[k]->key, own->config[k]->value);
        }
    }
    for (size_t k = 0; k < request->n_member_config; k++) {
        const Covey__V1__MemberConfigKey *given = request->member_config[k];
        if (strcmp(given->entity, "storage-pool") != 0 || strcmp(given->name, pool->name) != 0 || str_empty(given->value)) {
            continue;
        }
        if (!pool_key_member(given->key)) {
            log_warn("join.member_config", "pool=%s key=%s text=\"not a member-specific key: ignored\"", pool->name, given->key);
            continue;
        }
        const char *now = json_string_value(json_object_get(config, given->key));
        if (own != NULL && strcmp(given->key, "source") == 0 && !str_eq(now, given->value)) {
            json_decref(config);
            return error_set(err, STATUS_FAILED_PRECONDITION, POOLS_PREFIX ": Failed to update storage pool \"%s\": Pool source cannot be changed when not in pending state",
                pool->name);
        }
        set_text(config, given->key, given->value);
        if (own == NULL && strcmp(given->key, "source") == 0) {
            set_text(config, "volatile.initial_source", given->value);
        }
    }
    json_array_append_new(join->pools, json_pack("{s:s, s:s, s:o, s:b}", "name", pool->name, "driver", pool->driver, "config", config, "made", (int)(own == NULL)));
    return STATUS_OK;
}

static PoolSpec *pool_message(struct arena *arena, json_t *object)
{
    const char *key;
    json_t *config = json_object_get(object, "config"), *value;
    PoolSpec *pool = arena_alloc(arena, sizeof *pool);
    covey__internal__v1__pool_spec__init(pool);
    pool->name = arena_strdup(arena, json_string_value(json_object_get(object, "name")));
    pool->driver = arena_strdup(arena, json_string_value(json_object_get(object, "driver")));
    pool->config = arena_alloc(arena, (json_object_size(config) + 1) * sizeof *pool->config);
    json_object_foreach(config, key, value) {
        pool->config[pool->n_config++] = config_entry(arena, key, json_string_value(value));
    }
    return pool;
}

static int agent_self(struct daemon *daemon, const char *method, const PoolSpec *pool, struct arena *arena, ProtobufCMessage **response, struct error *err)
{
    struct rpc_channel *self = member_channel(daemon, daemon_id(daemon), err);
    if (self == NULL) {
        return err->code;
    }
    struct rpc_options options = {.timeout_ms = JOIN_STEP_MS};
    int status = rpc_unary(self, "covey.internal.v1.Agent", method, &pool->base, response, arena, &options, err);
    rpc_channel_unref(self);
    return status;
}

int join__make_pools(struct daemon *daemon, struct join *join, const Covey__Internal__V1__AcceptResponse *accepted, const Covey__V1__UpdateClusterRequest *request,
                     struct error *err)
{
    json_t *object;
    size_t i;
    int status = STATUS_OK;
    json_decref(join->pools);
    join->pools = json_array();
    for (i = 0; i < accepted->n_pools && status == STATUS_OK; i++) {
        status = plan_pool(join, accepted->pools[i], request, err);
    }
    status = status == STATUS_OK ? join__save(daemon, join, "making", err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    json_array_foreach(join->pools, i, object) {
        ProtobufCMessage *response = NULL;
        status = agent_self(daemon, "CreatePool", pool_message(&join->arena, object), &join->arena, &response, err);
        if (status != STATUS_OK) {
            return error_prefix(err, POOLS_PREFIX);
        }
        const Covey__Internal__V1__PoolResponse *made = (const Covey__Internal__V1__PoolResponse *)response;
        for (size_t k = 0; k < made->n_config; k++) {
            set_text(json_object_get(object, "config"), made->config[k]->key, made->config[k]->value);
        }
        if (json_is_true(json_object_get(object, "made"))) {
            char *source = arena_printf(&join->arena, "/1.0/storage-pools/%s", json_string_value(json_object_get(object, "name")));
            events_lifecycle("storage-pool-created", source, NULL, join->requestor, NULL, NULL);
        }
        crash_point("join:making");
    }
    return STATUS_OK;
}

void join__unmake_pools(struct daemon *daemon, struct join *join)
{
    json_t *object;
    size_t i;
    json_array_foreach(join->pools, i, object) {
        struct error err = ERROR_INIT;
        ProtobufCMessage *response = NULL;
        if (json_is_true(json_object_get(object, "made")) &&
            agent_self(daemon, "DeletePool", pool_message(&join->arena, object), &join->arena, &response, &err) != STATUS_OK) {
            log_warn("join.pool", "pool=%s error=\"%s\"", json_string_value(json_object_get(object, "name")), err.text);
        }
    }
}

PoolSpec **join__pools_message(struct join *join, size_t *count)
{
    json_t *object;
    size_t i;
    PoolSpec **pools = arena_alloc(&join->arena, (json_array_size(join->pools) + 1) * sizeof *pools);
    json_array_foreach(join->pools, i, object) {
        pools[i] = pool_message(&join->arena, object);
    }
    *count = json_array_size(join->pools);
    return pools;
}
