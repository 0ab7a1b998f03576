/* Making and removing storage pools (spec/api.md 9.3). A cluster of one makes a pool with one call; a bigger one in two phases: each member's keys are recorded
 * first, then the pool is made everywhere. All on the leader, on worker threads that may block on agents; one thread per pool name. Every step may be
 * repeated: what a dead leader left behind is an Errored pool, which the next call finishes or removes. */
#include "pools.h"

#include "server/events/events.h"
#include "server/images/names.h"
#include <string.h>

#define LOCK_NOUN "Storage pool"

struct create {
    const Covey__V1__CreateStoragePoolRequest *request;
    struct arena *arena;
    uint64_t target;
    struct pool_row row;
    struct pool_task *tasks;
    size_t count;
};

static bool has_config(const Covey__V1__CreateStoragePoolRequest *request)
{
    for (size_t i = 0; i < request->n_config; i++) {
        if (!str_empty(request->config[i]->value)) {
            return true;
        }
    }
    return false;
}

static int insert_pool(struct sql *sql, struct create *in, int64_t state, struct error *err)
{
    int status = sql_exec(sql, err, "INSERT INTO storage_pools (name, driver, description, state) VALUES (?1, ?2, ?3, ?4)", "sssi", in->request->name, in->request->driver,
        in->request->description, state);
    return status == STATUS_OK ? pool_load(sql, in->request->name, &in->row, in->arena, err) : status;
}

/* The pool on one member, not made yet, with that member's keys. */
static int define_member(struct sql *sql, struct create *in, int64_t member, struct error *err)
{
    int status = sql_exec(sql, err, "INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES (?1, ?2, 0)", "ii", in->row.id, member);
    for (size_t i = 0; i < in->request->n_config && status == STATUS_OK; i++) {
        const char *key = in->request->config[i]->key, *value = in->request->config[i]->value;
        if (pool_key_member(key)) {
            status = pool_store_key(sql, in->row.id, member, key, value, err);
        }
        if (status == STATUS_OK && strcmp(key, "source") == 0) {
            status = pool_store_key(sql, in->row.id, member, "volatile.initial_source", value, err);
        }
    }
    return status;
}

static int store_globals(struct sql *sql, struct create *in, struct error *err)
{
    int status = STATUS_OK;
    for (size_t i = 0; i < in->request->n_config && status == STATUS_OK; i++) {
        if (!pool_key_member(in->request->config[i]->key)) {
            status = pool_store_key(sql, in->row.id, 0, in->request->config[i]->key, in->request->config[i]->value, err);
        }
    }
    return status;
}

/* ---- phase 1 ---- */

static int phase1_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct create *in = ud;
    int64_t defined = 0, members = 0;
    int status = sql_get_int(sql, &members, err, "SELECT count(*) FROM nodes WHERE id = ?1 AND state <> 1", "i", in->target);
    if (status == STATUS_OK && members == 0) {
        return error_set(err, STATUS_NOT_FOUND, "Cluster member not found");
    }
    status = status == STATUS_OK ? pool_load(sql, in->request->name, &in->row, in->arena, err) : status;
    if (status == STATUS_NOT_FOUND) {
        status = insert_pool(sql, in, POOL_PENDING, err);
    } else if (status == STATUS_OK) {
        status = sql_get_int(sql, &defined, err, "SELECT count(*) FROM storage_pools_nodes WHERE storage_pool_id = ?1 AND node_id = ?2", "ii", in->row.id, in->target);
        if (status == STATUS_OK && defined > 0) {
            return error_set(err, STATUS_FAILED_PRECONDITION, "The storage pool already defined on member \"%s\"", in->request->target);
        }
        if (status == STATUS_OK && strcmp(in->row.driver, in->request->driver) != 0) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Requested storage pool driver \"%.30s\" doesn't match driver in existing database record \"%s\"",
                in->request->driver, in->row.driver);
        }
    }
    return status == STATUS_OK ? define_member(sql, in, (int64_t)in->target, err) : status;
}

static int phase1(struct rpc_call *call, struct create *in, struct error *err)
{
    for (size_t i = 0; i < in->request->n_config; i++) {
        if (!pool_key_member(in->request->config[i]->key)) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%.200s\" may not be used as member-specific key", in->request->config[i]->key);
        }
    }
    return daemon_write_call(call, "define", phase1_write, in, NULL, NULL, err);
}

/* ---- phase 2 ---- */

static int undefined_members(struct sql *sql, int64_t pool, struct buf *out, struct error *err)
{
    struct sql_stmt *s = sql_query(sql,
        "SELECT name FROM nodes WHERE state <> 1 AND id NOT IN (SELECT node_id FROM storage_pools_nodes WHERE storage_pool_id = ?1) ORDER BY name", "i", pool);
    while (sql_next(s)) {
        buf_printf(out, "%s%s", out->len > 0 ? ", " : "", sql_text(s, 0));
    }
    return sql_done(s, err);
}

static int check_and_begin(struct sql *sql, struct create *in, bool exists, struct error *err)
{
    struct buf undefined = {0};
    bool made = exists && in->row.state == POOL_CREATED; /* then its keys are not what is wrong */
    for (size_t i = 0; i < in->request->n_config && !made; i++) {
        if (pool_key_member(in->request->config[i]->key)) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%.200s\" is cluster member specific", in->request->config[i]->key);
        }
    }
    int status = exists ? undefined_members(sql, in->row.id, &undefined, err) : STATUS_OK;
    struct pool_facts facts = {.exists = exists, .state = in->row.state, .driver = in->row.driver, .undefined = undefined.data, .started = in->row.state == POOL_ERRORED};
    status = status == STATUS_OK ? pool_phase2_check(&facts, in->request->driver, has_config(in->request), err) : status;
    buf_free(&undefined);
    status = status == STATUS_OK ? store_globals(sql, in, err) : status;
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE storage_pools SET state = ?2, description = CASE ?3 WHEN '' THEN description ELSE ?3 END WHERE id = ?1", "iis",
                                     in->row.id, (int64_t)POOL_ERRORED, in->request->description)
                               : status;
}

/* Errored until it is made everywhere. The result is "1" for a pool that this call brought into being: a repeated call must know it too. */
static int phase2_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct create *in = ud;
    int64_t members = 0, only = 0;
    int status = sql_get_int(sql, &members, err, "SELECT count(*) FROM nodes WHERE state <> 1", "");
    status = status == STATUS_OK ? pool_load(sql, in->request->name, &in->row, in->arena, err) : status;
    if (status != STATUS_NOT_FOUND || members != 1) {
        return status == STATUS_OK || status == STATUS_NOT_FOUND ? check_and_begin(sql, in, status == STATUS_OK, err) : status;
    }
    status = sql_get_int(sql, &only, err, "SELECT id FROM nodes WHERE state <> 1", "");
    status = status == STATUS_OK ? insert_pool(sql, in, POOL_ERRORED, err) : status;
    status = status == STATUS_OK ? define_member(sql, in, only, err) : status;
    status = status == STATUS_OK ? store_globals(sql, in, err) : status;
    buf_puts(result, "1");
    return status;
}

static int read_missing(struct sql *sql, void *ud, struct error *err)
{
    struct create *in = ud;
    int status = pool_load(sql, in->request->name, &in->row, in->arena, err);
    return status == STATUS_OK ? pool_tasks_load(sql, &in->row, POOL_PENDING, &in->tasks, &in->count, in->arena, err) : status;
}

struct made {
    const struct pool_task *task;
    const Covey__Internal__V1__PoolResponse *response;
};

static int made_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct made *made = ud;
    int64_t pool = 0;
    int status = sql_get_int(sql, &pool, err, "SELECT id FROM storage_pools WHERE name = ?1", "s", made->task->spec.name);
    status = status == STATUS_OK
                 ? sql_exec(sql, err, "UPDATE storage_pools_nodes SET state = 1 WHERE storage_pool_id = ?1 AND node_id = ?2", "ii", pool, made->task->member)
                 : status;
    for (size_t i = 0; i < made->response->n_config && status == STATUS_OK; i++) {
        const char *key = made->response->config[i]->key;
        if (pool_key_member(key)) {
            status = pool_store_key(sql, pool, (int64_t)made->task->member, key, made->response->config[i]->value, err);
        }
    }
    return status;
}

static int make_on_member(struct pool_task *task, struct arena *arena, struct error *err)
{
    ProtobufCMessage *response = NULL;
    int status = agent_call(the_daemon, task->member, "CreatePool", &task->spec.base, &response, arena, POOL_AGENT_TIMEOUT_MS, err);
    if (status != STATUS_OK) {
        return status;
    }
    struct made made = {.task = task, .response = (const Covey__Internal__V1__PoolResponse *)response};
    return daemon_write(the_daemon, NULL, made_write, &made, NULL, NULL, NULL, err); /* may be done twice without harm */
}

static int finish_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct create *in = ud;
    return sql_exec(sql, err,
        "UPDATE storage_pools SET state = 1 WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM storage_pools_nodes WHERE storage_pool_id = ?1 AND state <> 1)", "i", in->row.id);
}

static int forget_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "DELETE FROM storage_pools WHERE id = ?1", "i", *(const int64_t *)ud);
}

static int unmake_on_member(struct pool_task *task, struct arena *arena, struct error *err)
{
    ProtobufCMessage *response = NULL;
    int status = agent_call(the_daemon, task->member, "DeletePool", &task->spec.base, &response, arena, POOL_AGENT_TIMEOUT_MS, err);
    bool refused = status == STATUS_FAILED_PRECONDITION || status == STATUS_INVALID_ARGUMENT || status == STATUS_UNIMPLEMENTED;
    if (!task->made && refused) { /* never made there, and its host could not have: e.g. a driver that it lacks */
        log_info("pool.unmake", "name=%s member=%s text=\"%s\"", task->spec.name, task->name, err->text);
        return STATUS_OK;
    }
    return status;
}

/* A pool of one call that failed: as before. What is on the disk goes first, so that nothing is forgotten that is there. */
static void forget(struct create *in)
{
    struct error err = ERROR_INIT;
    int status = pool_tasks_run(in->tasks, in->count, unmake_on_member, &err);
    status = status == STATUS_OK ? daemon_write(the_daemon, NULL, forget_write, &in->row.id, NULL, NULL, NULL, &err) : status;
    if (status != STATUS_OK) { /* stays as Errored: can be created again or deleted */
        log_warn("pool.forget", "name=%s error=\"%s\"", in->row.name, err.text);
    }
}

static int phase2(struct rpc_call *call, struct create *in, struct error *err)
{
    struct buf result = {0};
    int status = daemon_write_call(call, "begin", phase2_write, in, &result, NULL, err);
    bool one_call = result.len > 0;
    buf_free(&result);
    status = status == STATUS_OK ? members_all_up(err) : status;
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_missing, in, NULL, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    status = pool_tasks_run(in->tasks, in->count, make_on_member, err);
    if (status != STATUS_OK && one_call && status != STATUS_UNKNOWN && !err->not_leader) {
        forget(in);
    }
    return status == STATUS_OK ? daemon_write_call(call, "finish", finish_write, in, NULL, NULL, err) : status;
}

int pool_create(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct create in = {.request = (const Covey__V1__CreateStoragePoolRequest *)message, .arena = rpc_arena(call)};
    if (pool_name_check(in.request->name, err) != STATUS_OK || pool_driver_check(in.request->driver, err) != STATUS_OK ||
        target_resolve(the_daemon, in.request->target, &in.target, err) != STATUS_OK) {
        return err->code;
    }
    for (size_t i = 0; i < in.request->n_config; i++) {
        if (pool_key_check(in.request->driver, in.request->config[i]->key, in.request->config[i]->value, err) != STATUS_OK) {
            return err->code;
        }
    }
    if (name_lock(LOCK_NOUN, in.request->name, err) != STATUS_OK) {
        return err->code;
    }
    int status = in.target != 0 ? phase1(call, &in, err) : phase2(call, &in, err);
    name_unlock(LOCK_NOUN, in.request->name);
    if (status == STATUS_OK && in.target == 0) {
        view_propagate(the_daemon); /* joiners are asked for its keys from now on */
        pool_lifecycle(call, "storage-pool-created", in.request->name);
    }
    return status;
}

/* ---- delete ---- */

struct removal {
    struct arena *arena;
    const char *name;
    struct pool_row row;
    struct pool_task *tasks;
    size_t count;
};

static int removal_load(struct sql *sql, void *ud, struct error *err)
{
    struct removal *in = ud;
    int status = pool_load(sql, in->name, &in->row, in->arena, err);
    status = status == STATUS_OK ? pool_unused_check(sql, &in->row, err) : status;
    /* A pool that is only defined touched no disk anywhere. */
    return status == STATUS_OK && in->row.state != POOL_PENDING ? pool_tasks_load(sql, &in->row, -1, &in->tasks, &in->count, in->arena, err) : status;
}

/* From here on nobody can begin to use it. */
static int removal_begin(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct removal *in = ud;
    int status = pool_load(sql, in->name, &in->row, in->arena, err);
    status = status == STATUS_OK ? pool_unused_check(sql, &in->row, err) : status;
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE storage_pools SET state = 2 WHERE id = ?1 AND state = 1", "i", in->row.id) : status;
}

static int removed_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct pool_task *task = ud;
    return sql_exec(sql, err,
        "UPDATE storage_pools_nodes SET state = 0 WHERE node_id = ?2 AND storage_pool_id = (SELECT id FROM storage_pools WHERE name = ?1)", "si", task->spec.name, task->member);
}

static int remove_on_member(struct pool_task *task, struct arena *arena, struct error *err)
{
    int status = unmake_on_member(task, arena, err);
    return status == STATUS_OK ? daemon_write(the_daemon, NULL, removed_write, task, NULL, NULL, NULL, err) : status;
}

static int delete_locked(struct rpc_call *call, struct removal *in, struct error *err)
{
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, removal_load, in, NULL, err);
    status = status == STATUS_OK && in->count > 0 ? members_all_up(err) : status;
    status = status == STATUS_OK ? daemon_write_call(call, "begin", removal_begin, in, NULL, NULL, err) : status;
    status = status == STATUS_OK ? pool_tasks_run(in->tasks, in->count, remove_on_member, err) : status;
    return status == STATUS_OK ? daemon_write_call(call, "delete", forget_write, &in->row.id, NULL, NULL, err) : status;
}

static int done_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return error_set(err, STATUS_NOT_FOUND, "Storage pool not found");
}

int pool_delete(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct removal in = {.arena = rpc_arena(call), .name = ((const Covey__V1__DeleteStoragePoolRequest *)message)->name};
    if (name_lock(LOCK_NOUN, in.name, err) != STATUS_OK) {
        return err->code;
    }
    int status = delete_locked(call, &in, err);
    name_unlock(LOCK_NOUN, in.name);
    if (status == STATUS_NOT_FOUND) { /* a repeated call whose first try came through */
        status = daemon_write_call(call, "delete", done_write, NULL, NULL, NULL, err);
    }
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        pool_lifecycle(call, "storage-pool-deleted", in.name);
    }
    return status;
}
