/* Changing and renaming networks. The members are brought to the new configuration first, then it is stored; when one of them fails the others are brought
 * back. Repeating is harmless: members take the same configuration twice. On the leader, one thread per network name. */
#include "networks.h"

#include "server/daemon/etag.h"
#include "server/daemon/mask.h"
#include "server/images/names.h"
#include <string.h>

struct update {
    const Covey__V1__UpdateNetworkRequest *request;
    struct arena *arena;
    const struct caller *caller;
    uint64_t target, member; /* member: whose own keys are changed, 0 = nobody's */
    bool patch, has_config, has_description;
    struct network_row row;
    int64_t local_state;
    struct settings shared, local;           /* as they are */
    struct settings next_shared, next_local; /* as they will be */
    struct network_task *tasks;
    size_t count;
};

static void copy(struct settings *to, const struct settings *from, struct arena *arena)
{
    for (size_t i = 0; i < from->count; i++) {
        settings_set(to, from->items[i].key, from->items[i].value, arena);
    }
}

static bool same(const struct settings *a, const struct settings *b)
{
    bool equal = a->count == b->count;
    for (size_t i = 0; i < a->count && equal; i++) {
        equal = strcmp(a->items[i].key, b->items[i].key) == 0 && strcmp(a->items[i].value, b->items[i].value) == 0;
    }
    return equal;
}

/* What may be changed here, key by key (spec/api.md 9.3, last paragraph), and what comes out. */
static int compose(struct update *in, struct error *err)
{
    bool standalone = !daemon_clustered(the_daemon);
    bool shared_too = in->target == 0, local_too = in->member != 0;
    if (in->patch || !shared_too) {
        copy(&in->next_shared, &in->shared, in->arena);
    }
    if (in->patch || !local_too) {
        copy(&in->next_local, &in->local, in->arena);
    }
    for (size_t i = 0; i < in->request->n_config; i++) {
        const char *key = in->request->config[i]->key, *value = in->request->config[i]->value;
        bool local = network_key_member(key);
        if (network_key_check(in->row.type, in->row.name, key, value, err) != STATUS_OK) {
            return err->code;
        }
        if (local && !local_too) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%s\" is cluster member specific", key);
        }
        if (!local && !shared_too && !standalone && !str_eq(settings_get(&in->shared, key), value)) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%s\" may not be used as cluster member specific key", key);
        }
        settings_set(local ? &in->next_local : &in->next_shared, key, value, in->arena);
    }
    return STATUS_OK;
}

static char *etag_now(const struct update *in)
{
    Covey__V1__Network network = COVEY__V1__NETWORK__INIT;
    struct settings shown = {0};
    copy(&shown, &in->shared, in->arena);
    if (in->member != 0) {
        copy(&shown, &in->local, in->arena);
    }
    network.description = (char *)in->row.description;
    network.config = settings_to_map(&shown, &covey__v1__network__config_entry__descriptor, &network.n_config, in->arena);
    return etag_make(in->arena, &network.base, "config,description");
}

static int load(struct sql *sql, void *ud, struct error *err)
{
    struct update *in = ud;
    bool own;
    int status = network_project(sql, in->request->project, &own, err);
    if (status == STATUS_OK && own) {
        return error_set(err, STATUS_NOT_FOUND, "Network not found");
    }
    status = status == STATUS_OK ? network_load(sql, in->request->name, &in->row, in->arena, err) : status;
    if (status == STATUS_OK && in->target == 0 && in->row.state != NETWORK_CREATED) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Cannot update network global config when not in created state");
    }
    status = status == STATUS_OK ? network_load_config(sql, in->row.id, 0, &in->shared, in->arena, err) : status;
    if (status == STATUS_OK && in->member != 0) {
        status = sql_get_int(sql, &in->local_state, err, "SELECT state FROM networks_nodes WHERE network_id = ?1 AND node_id = ?2", "ii", in->row.id, (int64_t)in->member);
        if (status == STATUS_NOT_FOUND) {
            return error_set(err, STATUS_NOT_FOUND, "Network is not defined on this member");
        }
        status = status == STATUS_OK ? network_load_config(sql, in->row.id, (int64_t)in->member, &in->local, in->arena, err) : status;
    }
    return status == STATUS_OK ? network_tasks_load(sql, &in->row, NETWORK_CREATED, &in->tasks, &in->count, in->arena, err) : status;
}

/* A step of its own, so that a repeated call whose first try came through is not measured by what that one changed. */
static int match_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct update seen = *(struct update *)ud;
    int status = load(sql, &seen, err);
    return status == STATUS_OK ? etag_check(seen.request->if_match, etag_now(&seen), err) : status;
}

/* Stores the differences of one level. */
static int store_level(struct sql *sql, const struct update *in, uint64_t member, struct error *err)
{
    const struct settings *now = member != 0 ? &in->local : &in->shared, *next = member != 0 ? &in->next_local : &in->next_shared;
    int status = STATUS_OK;
    for (size_t i = 0; i < now->count && status == STATUS_OK; i++) {
        if (settings_get(next, now->items[i].key) == NULL) {
            status = network_store_key(sql, in->row.id, (int64_t)member, now->items[i].key, NULL, err);
        }
    }
    for (size_t i = 0; i < next->count && status == STATUS_OK; i++) {
        if (!str_eq(settings_get(now, next->items[i].key), next->items[i].value)) {
            status = network_store_key(sql, in->row.id, (int64_t)member, next->items[i].key, next->items[i].value, err);
        }
    }
    return status;
}

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct update *in = ud;
    int status = in->target == 0 ? store_level(sql, in, 0, err) : STATUS_OK;
    status = status == STATUS_OK && in->member != 0 ? store_level(sql, in, in->member, err) : status;
    if (status == STATUS_OK && in->has_description && in->target == 0) {
        status = sql_exec(sql, err, "UPDATE networks SET description = ?2 WHERE id = ?1 AND description <> ?2", "is", in->row.id, in->request->description);
    }
    return status;
}

/* Each member's task with the new keys; the tasks with the old ones stay in `before`. Members that are not concerned are left out. */
static int plan(struct update *in, struct network_task **before, struct error *err)
{
    struct network_task *old = arena_alloc(in->arena, (in->count + 1) * sizeof *old);
    size_t kept = 0;
    for (size_t i = 0; i < in->count; i++) {
        struct network_task task = in->tasks[i];
        struct settings next = {0};
        if (in->target != 0 && task.member != in->target) {
            continue;
        }
        copy(&next, &in->next_shared, in->arena);
        copy(&next, task.member == in->member ? &in->next_local : &task.local, in->arena);
        if (network_settings_check(in->row.type, &next, true, err) != STATUS_OK) {
            return err->code;
        }
        old[kept] = task;
        network_spec_fill(&task.spec, &in->row, &next, in->arena);
        in->tasks[kept++] = task;
    }
    in->count = kept;
    *before = old;
    return STATUS_OK;
}

static void take_back(const struct update *in, struct network_task *before)
{
    struct error err = ERROR_INIT;
    size_t count = 0;
    for (size_t i = 0; i < in->count; i++) {
        if (in->tasks[i].status == STATUS_OK) {
            before[count++] = before[i];
        }
    }
    if (network_tasks_run(before, count, network_apply_on_member, &err) != STATUS_OK) {
        log_warn("network.take_back", "network=%s error=\"%s\"", in->row.name, err.text); /* its next start, or the next update, mends it */
    }
}

static int update_locked(struct rpc_call *call, struct update *in, struct error *err)
{
    struct network_auto pick;
    struct network_task *before = NULL;
    int status = !str_empty(in->request->if_match) ? daemon_write_call(call, "match", match_write, in, NULL, NULL, err) : STATUS_OK;
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, load, in, NULL, err) : status;
    if (status == STATUS_OK && in->has_config) {
        status = compose(in, err);
    } else if (status == STATUS_OK) {
        copy(&in->next_shared, &in->shared, in->arena);
        copy(&in->next_local, &in->local, in->arena);
    }
    if (status == STATUS_OK && (str_eq(settings_get(&in->next_shared, "ipv4.address"), "auto") || str_eq(settings_get(&in->next_shared, "ipv6.address"), "auto"))) {
        status = network_auto_pick(&pick, in->arena, err);
        network_auto_fill(&pick, in->row.type, false, &in->next_shared, in->arena);
    }
    status = status == STATUS_OK ? plan(in, &before, err) : status;
    status = status == STATUS_OK && in->target == 0 ? members_all_up(err) : status;
    bool changed = !same(&in->shared, &in->next_shared) || !same(&in->local, &in->next_local);
    if (status == STATUS_OK && changed && (status = network_tasks_run(in->tasks, in->count, network_apply_on_member, err)) != STATUS_OK) {
        take_back(in, before);
    }
    crash_point("network:changed");
    return status == STATUS_OK ? daemon_write_call(call, "update", update_write, in, NULL, NULL, err) : status;
}

int network_update(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateNetworkRequest *request = (const Covey__V1__UpdateNetworkRequest *)message;
    struct update in = {.request = request, .arena = rpc_arena(call), .caller = rpc_caller(call), .patch = request->update_mask != NULL,
        .has_config = mask_has(request->update_mask, "config"), .has_description = mask_has(request->update_mask, "description")};
    if (target_resolve(the_daemon, request->target, &in.target, err) != STATUS_OK || name_lock(NETWORK_LOCK_NOUN, request->name, err) != STATUS_OK) {
        return err->code;
    }
    in.member = in.target != 0 ? in.target : daemon_clustered(the_daemon) ? 0 : daemon_id(the_daemon);
    int status = update_locked(call, &in, err);
    name_unlock(NETWORK_LOCK_NOUN, request->name);
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        network_lifecycle(call, "network-updated", request->name, NULL);
    }
    return status;
}

/* ---- rename ---- */

struct renaming {
    struct arena *arena;
    const Covey__V1__RenameNetworkRequest *request;
    struct network_row row;
    struct network_task *tasks;
    size_t count;
};

static int rename_load(struct sql *sql, void *ud, struct error *err)
{
    struct renaming *in = ud;
    int64_t taken = 0;
    int status = network_load(sql, in->request->old_name, &in->row, in->arena, err);
    if (status == STATUS_OK && in->row.state != NETWORK_CREATED) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Cannot rename network when not in created state");
    }
    status = status == STATUS_OK ? network_unused_check(sql, in->row.name, err) : status;
    status = status == STATUS_OK ? sql_get_int(sql, &taken, err, "SELECT count(*) FROM networks WHERE name = ?1", "s", in->request->name) : status;
    if (status == STATUS_OK && taken > 0) {
        return error_set(err, STATUS_ALREADY_EXISTS, "Network \"%s\" already exists", in->request->name);
    }
    return status == STATUS_OK ? network_tasks_load(sql, &in->row, NETWORK_CREATED, &in->tasks, &in->count, in->arena, err) : status;
}

static int rename_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct renaming *in = ud;
    int status = network_unused_check(sql, in->row.name, err);
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE networks SET name = ?2 WHERE id = ?1", "is", in->row.id, in->request->name) : status;
}

static int remove_old(struct network_task *task, struct arena *arena, struct error *err)
{
    ProtobufCMessage *response = NULL;
    return agent_call(the_daemon, task->member, "RemoveNetwork", &task->spec.base, &response, arena, NETWORK_AGENT_TIMEOUT_MS, err);
}

/* The old one goes before the new one comes, as both have the same addresses. A daemon that dies in between makes what the database says at its next start. */
static int rename_locked(struct rpc_call *call, struct renaming *in, struct error *err)
{
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, rename_load, in, NULL, err);
    status = status == STATUS_OK ? network_tasks_run(in->tasks, in->count, remove_old, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    struct network_task *renamed = arena_alloc(in->arena, (in->count + 1) * sizeof *renamed);
    for (size_t i = 0; i < in->count; i++) {
        renamed[i] = in->tasks[i];
        renamed[i].spec.name = in->request->name;
    }
    status = network_tasks_run(renamed, in->count, network_apply_on_member, err);
    status = status == STATUS_OK ? daemon_write_call(call, "rename", rename_write, in, NULL, NULL, err) : status;
    if (status != STATUS_OK && status != STATUS_UNKNOWN) {
        struct error back = ERROR_INIT;
        if (network_tasks_run(renamed, in->count, remove_old, &back) != STATUS_OK || network_tasks_run(in->tasks, in->count, network_apply_on_member, &back) != STATUS_OK) {
            log_warn("network.rename", "network=%s error=\"%s\"", in->row.name, back.text);
        }
    }
    return status;
}

int network_rename(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct renaming in = {.arena = rpc_arena(call), .request = (const Covey__V1__RenameNetworkRequest *)message};
    if (daemon_clustered(the_daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Renaming clustered network not supported");
    }
    if (network_name_check(in.request->name, err) != STATUS_OK || name_lock(NETWORK_LOCK_NOUN, in.request->old_name, err) != STATUS_OK) {
        return err->code;
    }
    int status = rename_locked(call, &in, err);
    name_unlock(NETWORK_LOCK_NOUN, in.request->old_name);
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        network_lifecycle(call, "network-renamed", in.request->name, in.request->old_name);
    }
    return status;
}
