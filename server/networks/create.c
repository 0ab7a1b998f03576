/* Making and removing networks (spec/api.md 10.3). A cluster of one makes a network with one call; a bigger one in two phases: each member's keys are recorded
 * first, then the network is made everywhere. All on the leader, on worker threads that may block on agents; one thread per network name. Every step may be
 * repeated: what a dead leader left behind is an Errored network, which the next call finishes or removes. */
#include "networks.h"

#include "server/images/names.h"
#include <string.h>

struct create {
    const Covey__V1__CreateNetworkRequest *request;
    struct arena *arena;
    int64_t type;
    uint64_t target;
    struct settings shared, local; /* as asked for */
    struct network_auto pick;
    struct network_row row;
    struct network_task *tasks;
    size_t count;
};

static int project_check(struct sql *sql, const char *project, struct error *err)
{
    bool own;
    int status = network_project(sql, project, &own, err);
    return status == STATUS_OK && own ? error_set(err, STATUS_UNIMPLEMENTED, "not implemented: networks of a project") : status;
}

static int insert_network(struct sql *sql, struct create *in, int64_t state, struct error *err)
{
    int64_t count = 0;
    int status = sql_get_int(sql, &count, err, "SELECT count(*) FROM networks", "");
    if (status == STATUS_OK && count >= NETWORKS_MAX) {
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d networks", NETWORKS_MAX);
    }
    status = status == STATUS_OK ? sql_exec(sql, err, "INSERT INTO networks (project_id, name, type, description, state) VALUES (1, ?1, ?2, ?3, ?4)", "sisi", in->request->name,
                                       in->type, in->request->description, state)
                                 : status;
    return status == STATUS_OK ? network_load(sql, in->request->name, &in->row, in->arena, err) : status;
}

static int store_settings(struct sql *sql, const struct create *in, int64_t member, const struct settings *config, struct error *err)
{
    int status = STATUS_OK;
    for (size_t i = 0; i < config->count && status == STATUS_OK; i++) {
        status = network_store_key(sql, in->row.id, member, config->items[i].key, config->items[i].value, err);
    }
    return status;
}

/* The network on one member, not made yet, with that member's keys. */
static int define_member(struct sql *sql, struct create *in, int64_t member, struct error *err)
{
    int status = sql_exec(sql, err, "INSERT INTO networks_nodes (network_id, node_id, state) VALUES (?1, ?2, 0)", "ii", in->row.id, member);
    return status == STATUS_OK ? store_settings(sql, in, member, &in->local, err) : status;
}

/* ---- phase 1 ---- */

static int phase1_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct create *in = ud;
    int64_t defined = 0, members = 0;
    int status = project_check(sql, in->request->project, err);
    status = status == STATUS_OK ? sql_get_int(sql, &members, err, "SELECT count(*) FROM nodes WHERE id = ?1 AND state <> 1", "i", (int64_t)in->target) : status;
    if (status == STATUS_OK && members == 0) {
        return error_set(err, STATUS_NOT_FOUND, "Cluster member not found");
    }
    if (status != STATUS_OK) {
        return status;
    }
    status = network_load(sql, in->request->name, &in->row, in->arena, err);
    if (status == STATUS_NOT_FOUND) {
        status = insert_network(sql, in, NETWORK_PENDING, err);
    } else if (status == STATUS_OK) {
        status = sql_get_int(sql, &defined, err, "SELECT count(*) FROM networks_nodes WHERE network_id = ?1 AND node_id = ?2", "ii", in->row.id, (int64_t)in->target);
        if (status == STATUS_OK && defined > 0) {
            return error_set(err, STATUS_FAILED_PRECONDITION, "The network is already defined on member \"%s\"", in->request->target);
        }
        if (status == STATUS_OK && in->row.type != in->type) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Requested network type \"%s\" doesn't match type in existing database record \"%s\"", network_type_name(in->type),
                network_type_name(in->row.type));
        }
    }
    return status == STATUS_OK ? define_member(sql, in, (int64_t)in->target, err) : status;
}

static int phase1(struct rpc_call *call, struct create *in, struct error *err)
{
    if (in->shared.count > 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%.200s\" may not be used as member-specific key", in->shared.items[0].key);
    }
    return daemon_write_call(call, "define", phase1_write, in, NULL, NULL, err);
}

/* ---- phase 2 ---- */

static int undefined_members(struct sql *sql, int64_t network, struct buf *out, struct error *err)
{
    struct sql_stmt *s =
        sql_query(sql, "SELECT name FROM nodes WHERE state <> 1 AND id NOT IN (SELECT node_id FROM networks_nodes WHERE network_id = ?1) ORDER BY name", "i", network);
    while (sql_next(s)) {
        buf_printf(out, "%s%s", out->len > 0 ? ", " : "", sql_text(s, 0));
    }
    return sql_done(s, err);
}

/* The first time: the global keys with what was left to us. */
static int store_shared(struct sql *sql, struct create *in, struct error *err)
{
    network_auto_fill(&in->pick, in->type, true, &in->shared, in->arena);
    int status = network_settings_check(in->type, &in->shared, false, err);
    return status == STATUS_OK ? store_settings(sql, in, 0, &in->shared, err) : status;
}

static int check_and_begin(struct sql *sql, struct create *in, bool exists, struct error *err)
{
    struct buf undefined = {0};
    if (in->local.count > 0 && !(exists && in->row.state == NETWORK_CREATED)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%.200s\" is cluster member specific", in->local.items[0].key);
    }
    int status = exists ? undefined_members(sql, in->row.id, &undefined, err) : STATUS_OK;
    struct network_facts facts = {.exists = exists, .state = in->row.state, .type = in->row.type, .undefined = undefined.data};
    status = status == STATUS_OK ? network_phase2_check(&facts, in->type, in->shared.count > 0, err) : status;
    buf_free(&undefined);
    status = status == STATUS_OK && in->row.state == NETWORK_PENDING ? store_shared(sql, in, err) : status;
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE networks SET state = ?2, description = CASE ?3 WHEN '' THEN description ELSE ?3 END WHERE id = ?1", "iis", in->row.id,
                                     (int64_t)NETWORK_ERRORED, in->request->description)
                               : status;
}

/* Errored until it is made everywhere. The result is "1" for a network that this call brought into being: a repeated call must know it too. */
static int phase2_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct create *in = ud;
    int64_t members = 0, only = 0;
    int status = project_check(sql, in->request->project, err);
    status = status == STATUS_OK ? sql_get_int(sql, &members, err, "SELECT count(*) FROM nodes WHERE state <> 1", "") : status;
    if (status != STATUS_OK) {
        return status;
    }
    status = network_load(sql, in->request->name, &in->row, in->arena, err);
    if (status != STATUS_NOT_FOUND || members != 1) {
        return status == STATUS_OK || status == STATUS_NOT_FOUND ? check_and_begin(sql, in, status == STATUS_OK, err) : status;
    }
    status = sql_get_int(sql, &only, err, "SELECT id FROM nodes WHERE state <> 1", "");
    status = status == STATUS_OK ? insert_network(sql, in, NETWORK_ERRORED, err) : status;
    status = status == STATUS_OK ? define_member(sql, in, only, err) : status;
    status = status == STATUS_OK ? store_shared(sql, in, err) : status;
    buf_puts(result, "1");
    return status;
}

static int read_missing(struct sql *sql, void *ud, struct error *err)
{
    struct create *in = ud;
    int status = network_load(sql, in->request->name, &in->row, in->arena, err);
    return status == STATUS_OK ? network_tasks_load(sql, &in->row, NETWORK_PENDING, &in->tasks, &in->count, in->arena, err) : status;
}

static int made_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct network_task *task = ud;
    return sql_exec(sql, err, "UPDATE networks_nodes SET state = 1 WHERE node_id = ?2 AND network_id = (SELECT id FROM networks WHERE name = ?1)", "si", task->spec.name,
        (int64_t)task->member);
}

static int make_on_member(struct network_task *task, struct arena *arena, struct error *err)
{
    int status = network_apply_on_member(task, arena, err);
    return status == STATUS_OK ? daemon_write(the_daemon, NULL, made_write, task, NULL, NULL, NULL, err) : status; /* may be done twice without harm */
}

static int finish_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct create *in = ud;
    return sql_exec(sql, err, "UPDATE networks SET state = 1 WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM networks_nodes WHERE network_id = ?1 AND state <> 1)", "i", in->row.id);
}

static int forget_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "DELETE FROM networks WHERE id = ?1", "i", *(const int64_t *)ud);
}

/* A network of one call that failed: as before. What is on the host goes first, so that nothing is forgotten that is there. */
static void forget(struct create *in)
{
    struct error err = ERROR_INIT;
    int status = network_tasks_run(in->tasks, in->count, network_remove_on_member, &err);
    status = status == STATUS_OK ? daemon_write(the_daemon, NULL, forget_write, &in->row.id, NULL, NULL, NULL, &err) : status;
    if (status != STATUS_OK) { /* stays as Errored: can be created again or deleted */
        log_warn("network.forget", "name=%s error=\"%s\"", in->row.name, err.text);
    }
}

static int phase2(struct rpc_call *call, struct create *in, struct error *err)
{
    struct buf result = {0};
    int status = in->type == NETWORK_BRIDGE ? network_auto_pick(&in->pick, in->arena, err) : STATUS_OK;
    status = status == STATUS_OK ? daemon_write_call(call, "begin", phase2_write, in, &result, NULL, err) : status;
    bool one_call = result.len > 0;
    buf_free(&result);
    crash_point("network:begun");
    status = status == STATUS_OK ? members_all_up(err) : status;
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_missing, in, NULL, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    status = network_tasks_run(in->tasks, in->count, make_on_member, err);
    if (status != STATUS_OK && one_call && status != STATUS_UNKNOWN && !err->not_leader) {
        forget(in);
    }
    crash_point("network:made");
    return status == STATUS_OK ? daemon_write_call(call, "finish", finish_write, in, NULL, NULL, err) : status;
}

int network_create(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct create in = {.request = (const Covey__V1__CreateNetworkRequest *)message, .arena = rpc_arena(call)};
    if (network_name_check(in.request->name, err) != STATUS_OK || network_type_parse(in.request->type, &in.type, err) != STATUS_OK ||
        target_resolve(the_daemon, in.request->target, &in.target, err) != STATUS_OK) {
        return err->code;
    }
    for (size_t i = 0; i < in.request->n_config; i++) {
        const char *key = in.request->config[i]->key, *value = in.request->config[i]->value;
        if (network_key_check(in.type, in.request->name, key, value, err) != STATUS_OK) {
            return err->code;
        }
        settings_set(network_key_member(key) ? &in.local : &in.shared, key, value, in.arena);
    }
    if (name_lock(NETWORK_LOCK_NOUN, in.request->name, err) != STATUS_OK) {
        return err->code;
    }
    int status = in.target != 0 ? phase1(call, &in, err) : phase2(call, &in, err);
    name_unlock(NETWORK_LOCK_NOUN, in.request->name);
    if (status == STATUS_OK && in.target == 0) {
        view_propagate(the_daemon); /* joiners are asked for its keys from now on */
        network_lifecycle(call, "network-created", in.request->name, NULL);
    }
    return status;
}

/* ---- delete ---- */

struct removal {
    struct arena *arena;
    const char *name, *project;
    struct network_row row;
    struct network_task *tasks;
    size_t count;
};

static int removal_check(struct sql *sql, struct removal *in, struct error *err)
{
    bool own;
    int status = network_project(sql, in->project, &own, err);
    if (status == STATUS_OK && own) {
        return error_set(err, STATUS_NOT_FOUND, "Network not found");
    }
    status = status == STATUS_OK ? network_load(sql, in->name, &in->row, in->arena, err) : status;
    return status == STATUS_OK ? network_unused_check(sql, in->row.name, err) : status;
}

static int removal_load(struct sql *sql, void *ud, struct error *err)
{
    struct removal *in = ud;
    int status = removal_check(sql, in, err);
    /* A network that is only defined touched no host anywhere. */
    return status == STATUS_OK && in->row.state != NETWORK_PENDING ? network_tasks_load(sql, &in->row, -1, &in->tasks, &in->count, in->arena, err) : status;
}

/* From here on nobody can begin to use it. */
static int removal_begin(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct removal *in = ud;
    int status = removal_check(sql, in, err);
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE networks SET state = 2 WHERE id = ?1 AND state = 1", "i", in->row.id) : status;
}

static int delete_locked(struct rpc_call *call, struct removal *in, struct error *err)
{
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, removal_load, in, NULL, err);
    status = status == STATUS_OK && in->count > 0 ? members_all_up(err) : status;
    status = status == STATUS_OK ? daemon_write_call(call, "begin", removal_begin, in, NULL, NULL, err) : status;
    status = status == STATUS_OK ? network_tasks_run(in->tasks, in->count, network_remove_on_member, err) : status;
    crash_point("network:removed");
    return status == STATUS_OK ? daemon_write_call(call, "delete", forget_write, &in->row.id, NULL, NULL, err) : status;
}

static int done_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return error_set(err, STATUS_NOT_FOUND, "Network not found");
}

int network_delete(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__DeleteNetworkRequest *request = (const Covey__V1__DeleteNetworkRequest *)message;
    struct removal in = {.arena = rpc_arena(call), .name = request->name, .project = request->project};
    if (name_lock(NETWORK_LOCK_NOUN, in.name, err) != STATUS_OK) {
        return err->code;
    }
    int status = delete_locked(call, &in, err);
    name_unlock(NETWORK_LOCK_NOUN, in.name);
    if (status == STATUS_NOT_FOUND && str_prefix(err->text, "Network")) { /* a repeated call whose first try came through */
        status = daemon_write_call(call, "delete", done_write, NULL, NULL, NULL, err);
    }
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        network_lifecycle(call, "network-deleted", in.name, NULL);
    }
    return status;
}
