/* covey.v1.StoragePools: reading, changing keys, usage of the disk; create.c makes and removes. All handlers run on the leader, on worker threads. */
#include "pools.h"

#include "server/daemon/mask.h"
#include "server/events/events.h"
#include "server/services.h"
#include <stdlib.h>
#include <string.h>

struct lookup {
    struct arena *arena;
    const struct caller *caller;
    const char *name; /* NULL = all */
    uint64_t target;  /* 0 = the cluster's view of it */
    bool full;
    Covey__V1__StoragePool **pools;
    size_t count;
};

void pool_lifecycle(struct rpc_call *call, const char *action, const char *name)
{
    char *source = xasprintf("/1.0/storage-pools/%s", name);
    events_lifecycle(action, source, NULL, rpc_caller(call), NULL, NULL);
    free(source);
}

static int fill_locations(struct sql *sql, struct arena *arena, const struct pool_row *row, uint64_t target, Covey__V1__StoragePool *pool, struct error *err)
{
    int64_t state = row->state;
    int status = STATUS_OK;
    pool->locations = arena_alloc(arena, POOL_MEMBERS_MAX * sizeof *pool->locations);
    struct sql_stmt *s = sql_query(sql,
        "SELECT nodes.name, nodes.id, storage_pools_nodes.state FROM storage_pools_nodes JOIN nodes ON nodes.id = node_id WHERE storage_pool_id = ?1 ORDER BY nodes.name", "i",
        row->id);
    bool here = target == 0;
    while (status == STATUS_OK && sql_next(s)) {
        if (pool->n_locations == POOL_MEMBERS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members", POOL_MEMBERS_MAX);
            break;
        }
        pool->locations[pool->n_locations++] = arena_strdup(arena, sql_text(s, 0));
        if ((uint64_t)sql_int(s, 1) == target) {
            here = true;
            state = sql_int(s, 2);
        }
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    pool->status = arena_strdup(arena, here ? pool_state_text(state) : "Unknown");
    return status == STATUS_OK ? done : status;
}

static int fill_pool(struct sql *sql, struct lookup *in, const struct pool_row *row, Covey__V1__StoragePool *pool, struct error *err)
{
    struct settings config = {0};
    int status = fill_locations(sql, in->arena, row, in->target, pool, err);
    bool secret = in->caller->restricted; /* keys may say where data is and how to get there */
    uint64_t member = in->target != 0 ? in->target : daemon_clustered(the_daemon) ? 0 : daemon_id(the_daemon);
    if (status == STATUS_OK && !secret) {
        status = pool_load_config(sql, row->id, 0, &config, in->arena, err);
    }
    if (status == STATUS_OK && !secret && member != 0) {
        status = pool_load_config(sql, row->id, (int64_t)member, &config, in->arena, err);
    }
    pool->config = settings_to_map(&config, &covey__v1__storage_pool__config_entry__descriptor, &pool->n_config, in->arena);
    return status == STATUS_OK ? pool_used_by(sql, row, (int64_t)in->target, in->caller, in->arena, &pool->used_by, &pool->n_used_by, err) : status;
}

static int read_pools(struct sql *sql, void *ud, struct error *err)
{
    struct lookup *in = ud;
    int status = STATUS_OK;
    in->count = 0;
    in->pools = arena_alloc(in->arena, (in->name != NULL ? 1 : POOLS_MAX) * sizeof *in->pools);
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, driver, description, state FROM storage_pools WHERE ?1 IS NULL OR name = ?1 ORDER BY name", "s", in->name);
    while (status == STATUS_OK && sql_next(s)) {
        if (in->count == POOLS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d storage pools", POOLS_MAX);
            break;
        }
        Covey__V1__StoragePool *pool = arena_alloc(in->arena, sizeof *pool);
        covey__v1__storage_pool__init(pool);
        pool->name = arena_strdup(in->arena, sql_text(s, 1));
        pool->driver = arena_strdup(in->arena, sql_text(s, 2));
        pool->description = arena_strdup(in->arena, sql_text(s, 3));
        struct pool_row row = {.id = sql_int(s, 0), .name = pool->name, .driver = pool->driver, .description = pool->description, .state = sql_int(s, 4)};
        status = in->full ? fill_pool(sql, in, &row, pool, err) : STATUS_OK;
        in->pools[in->count++] = pool;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

static int list_pools(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListStoragePoolsRequest *request = (const Covey__V1__ListStoragePoolsRequest *)message;
    struct lookup in = {.arena = rpc_arena(call), .caller = rpc_caller(call), .full = request->recursion > 0};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_pools, &in, NULL, err);
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListStoragePoolsResponse *out = arena_alloc(in.arena, sizeof *out);
    covey__v1__list_storage_pools_response__init(out);
    if (in.full) {
        out->pools = in.pools;
        out->n_pools = in.count;
    } else {
        out->urls = arena_alloc(in.arena, (in.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < in.count; i++) {
            out->urls[out->n_urls++] = arena_printf(in.arena, "/1.0/storage-pools/%s", in.pools[i]->name);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int get_pool(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetStoragePoolRequest *request = (const Covey__V1__GetStoragePoolRequest *)message;
    struct lookup in = {.arena = rpc_arena(call), .caller = rpc_caller(call), .name = request->name, .full = true};
    if (target_resolve(the_daemon, request->target, &in.target, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_pools, &in, NULL, err);
    if (status == STATUS_OK && in.count == 0) {
        status = error_set(err, STATUS_NOT_FOUND, "Storage pool not found");
    }
    if (status == STATUS_OK) {
        *response = &in.pools[0]->base;
    }
    return status;
}

/* ---- update ---- */

struct update {
    const Covey__V1__UpdateStoragePoolRequest *request;
    struct arena *arena;
    uint64_t target;
    bool patch, has_config, has_description;
    struct pool_row row;
    int64_t local_state;
    struct error down; /* a member is missing; found out before, since the transaction may not ask */
    struct settings shared, local; /* as they are */
};

static const char *wanted(const struct update *in, const char *key, bool *given)
{
    for (size_t i = 0; i < in->request->n_config; i++) {
        if (strcmp(in->request->config[i]->key, key) == 0) {
            *given = true;
            return in->request->config[i]->value;
        }
    }
    *given = false;
    return "";
}

/* What may be changed here, key by key (spec/api.md 9.3, last paragraph). */
static int check_keys(const struct update *in, uint64_t member, struct error *err)
{
    bool standalone = !daemon_clustered(the_daemon);
    for (size_t i = 0; i < in->request->n_config; i++) {
        const char *key = in->request->config[i]->key, *value = in->request->config[i]->value;
        bool local = pool_key_member(key), same = str_eq(settings_get(local ? &in->local : &in->shared, key), value);
        if (pool_key_check(in->row.driver, key, value, err) != STATUS_OK) {
            return err->code;
        }
        if (local && member == 0) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%s\" is cluster member specific", key);
        }
        if (!local && !standalone && member != 0 && !same) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%s\" may not be used as cluster member specific key", key);
        }
        bool pending = in->row.state == POOL_PENDING && in->local_state == 0;
        if (!same && !pending && (strcmp(key, "source") == 0 || strcmp(key, "volatile.initial_source") == 0)) {
            return error_set(err, STATUS_FAILED_PRECONDITION, "Pool source cannot be changed when not in pending state");
        }
    }
    return STATUS_OK;
}

/* PUT removes what is not named; source and volatile keys are the server's to keep. */
static int store_level(struct sql *sql, const struct update *in, uint64_t member, struct error *err)
{
    const struct settings *now = member != 0 ? &in->local : &in->shared;
    int status = STATUS_OK;
    for (size_t i = 0; i < now->count && !in->patch && status == STATUS_OK; i++) {
        bool given, kept = strcmp(now->items[i].key, "source") == 0 || str_prefix(now->items[i].key, "volatile.");
        wanted(in, now->items[i].key, &given);
        status = given || kept ? STATUS_OK : pool_store_key(sql, in->row.id, (int64_t)member, now->items[i].key, NULL, err);
    }
    for (size_t i = 0; i < in->request->n_config && status == STATUS_OK; i++) {
        const char *key = in->request->config[i]->key, *value = in->request->config[i]->value;
        if (pool_key_member(key) == (member != 0) && !str_eq(settings_get(now, key), value)) {
            status = pool_store_key(sql, in->row.id, (int64_t)member, key, value, err);
        }
    }
    return status;
}

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct update *in = ud;
    bool standalone = !daemon_clustered(the_daemon);
    uint64_t member = in->target != 0 ? in->target : standalone ? daemon_id(the_daemon) : 0;
    int status = pool_load(sql, in->request->name, &in->row, in->arena, err);
    if (status == STATUS_OK && in->target == 0 && in->row.state != POOL_CREATED) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Cannot update storage pool global config when not in created state");
    }
    if (status == STATUS_OK && in->target == 0 && in->down.code != STATUS_OK) {
        *err = in->down;
        return err->code;
    }
    status = status == STATUS_OK ? pool_load_config(sql, in->row.id, 0, &in->shared, in->arena, err) : status;
    if (status == STATUS_OK && member != 0) {
        status = sql_get_int(sql, &in->local_state, err, "SELECT state FROM storage_pools_nodes WHERE storage_pool_id = ?1 AND node_id = ?2", "ii", in->row.id, member);
        if (status == STATUS_NOT_FOUND) {
            return error_set(err, STATUS_NOT_FOUND, "Storage pool is not defined on this member");
        }
        status = status == STATUS_OK ? pool_load_config(sql, in->row.id, (int64_t)member, &in->local, in->arena, err) : status;
    }
    if (status == STATUS_OK && in->has_config) {
        status = check_keys(in, member, err);
        status = status == STATUS_OK && in->target == 0 ? store_level(sql, in, 0, err) : status;
        status = status == STATUS_OK && member != 0 ? store_level(sql, in, member, err) : status;
    }
    if (status == STATUS_OK && in->has_description && in->target == 0) {
        status = sql_exec(sql, err, "UPDATE storage_pools SET description = ?2 WHERE id = ?1 AND description <> ?2", "is", in->row.id, in->request->description);
    }
    return status;
}

int pool_update(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateStoragePoolRequest *request = (const Covey__V1__UpdateStoragePoolRequest *)message;
    struct update in = {.request = request, .arena = rpc_arena(call), .patch = request->update_mask != NULL, .has_config = mask_has(request->update_mask, "config"),
        .has_description = mask_has(request->update_mask, "description")};
    if (target_resolve(the_daemon, request->target, &in.target, err) != STATUS_OK) {
        return err->code;
    }
    members_all_up(&in.down);
    int status = daemon_write_call(call, "update", update_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        pool_lifecycle(call, "storage-pool-updated", request->name);
    }
    return status;
}

/* ---- resources ---- */

struct usage {
    struct arena *arena;
    const char *name;
    uint64_t member;
    struct pool_row row;
    Covey__Internal__V1__PoolSpec spec;
};

static int read_usage(struct sql *sql, void *ud, struct error *err)
{
    struct usage *in = ud;
    struct settings config = {0};
    int64_t state = POOL_PENDING;
    int status = pool_load(sql, in->name, &in->row, in->arena, err);
    if (status == STATUS_OK) {
        status = sql_get_int(sql, &state, err, "SELECT state FROM storage_pools_nodes WHERE storage_pool_id = ?1 AND node_id = ?2", "ii", in->row.id, in->member);
    }
    if ((status == STATUS_NOT_FOUND && in->row.id != 0) || (status == STATUS_OK && state != POOL_CREATED)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Storage pool \"%s\" is not created on this member", in->name);
    }
    status = status == STATUS_OK ? pool_load_config(sql, in->row.id, 0, &config, in->arena, err) : status;
    status = status == STATUS_OK ? pool_load_config(sql, in->row.id, (int64_t)in->member, &config, in->arena, err) : status;
    covey__internal__v1__pool_spec__init(&in->spec);
    in->spec.name = (char *)in->row.name;
    in->spec.driver = (char *)in->row.driver;
    in->spec.config = settings_to_map(&config, &covey__internal__v1__pool_spec__config_entry__descriptor, &in->spec.n_config, in->arena);
    return status;
}

static int get_resources(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetStoragePoolResourcesRequest *request = (const Covey__V1__GetStoragePoolResourcesRequest *)message;
    struct usage in = {.arena = rpc_arena(call), .name = request->name};
    if (target_resolve(the_daemon, request->target, &in.member, err) != STATUS_OK) {
        return err->code;
    }
    in.member = in.member != 0 ? in.member : daemon_id(the_daemon);
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_usage, &in, NULL, err);
    return status == STATUS_OK ? agent_call(the_daemon, in.member, "GetPoolResources", &in.spec.base, response, in.arena, 0, err) : status;
}

static const struct rpc_binding bindings[] = {
    {"ListStoragePools", list_pools},   {"GetStoragePool", get_pool},       {"CreateStoragePool", pool_create},
    {"UpdateStoragePool", pool_update}, {"DeleteStoragePool", pool_delete}, {"GetStoragePoolResources", get_resources},
};

void pools_bind(void)
{
    rpc_bind("covey.v1.StoragePools", bindings, sizeof bindings / sizeof *bindings, NULL);
}
