/* Rows of storage pools, and work on many members at once. SQL functions run inside the caller's transaction; the rest blocks on agents. */
#include "pools.h"

#include <stdlib.h>
#include <string.h>

int pool_load(struct sql *sql, const char *name, struct pool_row *row, struct arena *arena, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, driver, description, state FROM storage_pools WHERE name = ?1", "s", name);
    bool found = sql_next(s);
    if (found) {
        *row = (struct pool_row){.id = sql_int(s, 0), .name = arena_strdup(arena, sql_text(s, 1)), .driver = arena_strdup(arena, sql_text(s, 2)),
            .description = arena_strdup(arena, sql_text(s, 3)), .state = sql_int(s, 4)};
    }
    int status = sql_done(s, err);
    return status == STATUS_OK && !found ? error_set(err, STATUS_NOT_FOUND, "Storage pool not found") : status;
}

int pool_load_config(struct sql *sql, int64_t pool, int64_t member, struct settings *config, struct arena *arena, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT key, value FROM storage_pools_config WHERE storage_pool_id = ?1 AND coalesce(node_id, 0) = ?2 ORDER BY key", "ii", pool, member);
    while (sql_next(s)) {
        settings_set(config, sql_text(s, 0), sql_text(s, 1), arena);
    }
    return sql_done(s, err);
}

int pool_store_key(struct sql *sql, int64_t pool, int64_t member, const char *key, const char *value, struct error *err)
{
    /* UNIQUE does not see NULL members as equal: replace by hand. */
    int64_t keys = 0;
    int status = sql_exec(sql, err, "DELETE FROM storage_pools_config WHERE storage_pool_id = ?1 AND coalesce(node_id, 0) = ?2 AND key = ?3", "iis", pool, member, key);
    if (status != STATUS_OK || str_empty(value)) {
        return status;
    }
    status = sql_get_int(sql, &keys, err, "SELECT count(*) FROM storage_pools_config WHERE storage_pool_id = ?1 AND coalesce(node_id, 0) = ?2", "ii", pool, member);
    if (status == STATUS_OK && keys >= POOL_KEYS_MAX) {
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d config keys of a storage pool", POOL_KEYS_MAX);
    }
    return status == STATUS_OK ? sql_exec(sql, err, "INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES (?1, nullif(?2, 0), ?3, ?4)", "iiss", pool,
                                     member, key, value)
                               : status;
}

#define PROFILE_USERS                                                                                                                                          \
    " FROM profiles_devices_config AS c JOIN profiles_devices ON profiles_devices.id = c.profile_device_id JOIN profiles ON profiles.id = profile_id"          \
    " JOIN projects ON projects.id = profiles.project_id WHERE c.key = 'pool' AND c.value = ?1"

int pool_unused_check(struct sql *sql, const struct pool_row *row, struct error *err)
{
    int64_t users = 0;
    int status = sql_get_int(sql, &users, err,
        "SELECT (SELECT count(*) FROM instances WHERE storage_pool_id = ?2) + (SELECT count(*) FROM storage_volumes WHERE storage_pool_id = ?2)"
        " + (SELECT count(*)" PROFILE_USERS ")",
        "si", row->name, row->id);
    return status == STATUS_OK && users > 0 ? error_set(err, STATUS_FAILED_PRECONDITION, "The storage pool is currently in use") : status;
}

static bool visible(const struct caller *caller, const char *project)
{
    if (caller == NULL || !caller->restricted) {
        return true;
    }
    for (size_t i = 0; caller->projects != NULL && caller->projects[i] != NULL; i++) {
        if (strcmp(caller->projects[i], project) == 0) {
            return true;
        }
    }
    return false;
}

struct url_list {
    struct arena *arena;
    char **urls;
    size_t count, capacity;
};

static int add_url(struct url_list *list, const char *path, const char *project, const char *member, struct error *err)
{
    if (list->count == POOL_USERS_MAX) {
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d users of a storage pool", POOL_USERS_MAX);
    }
    if (list->count == list->capacity) {
        list->capacity = list->capacity > 0 ? list->capacity * 2 : 16;
        char **grown = arena_alloc(list->arena, list->capacity * sizeof *grown);
        if (list->count > 0) {
            memcpy(grown, list->urls, list->count * sizeof *grown);
        }
        list->urls = grown;
    }
    bool other = strcmp(project, "default") != 0;
    list->urls[list->count++] = arena_printf(list->arena, "%s%s%s%s%s", path, other ? "?project=" : "", other ? project : "",
        str_empty(member) ? "" : other ? "&target=" : "?target=", str_empty(member) ? "" : member);
    return STATUS_OK;
}

int pool_used_by(struct sql *sql, const struct pool_row *row, int64_t member, const struct caller *caller, struct arena *arena, char ***urls, size_t *count,
                 struct error *err)
{
    struct url_list list = {.arena = arena};
    bool clustered = daemon_clustered(the_daemon);
    struct sql_stmt *s = sql_query(sql,
        "SELECT '/1.0/instances/' || instances.name AS url, projects.name, '' FROM instances JOIN projects ON projects.id = project_id"
        " WHERE storage_pool_id = ?2 AND (?3 = 0 OR node_id = ?3)"
        " UNION SELECT '/1.0/profiles/' || profiles.name, projects.name, ''" PROFILE_USERS
        " UNION SELECT CASE v.type WHEN 1 THEN '/1.0/images/' || v.name ELSE '/1.0/storage-pools/' || ?1 || '/volumes/custom/' || v.name END, projects.name,"
        "  CASE v.type WHEN 1 THEN '' ELSE coalesce(nodes.name, '') END"
        "  FROM storage_volumes AS v JOIN projects ON projects.id = v.project_id LEFT JOIN nodes ON nodes.id = v.node_id"
        "  WHERE v.storage_pool_id = ?2 AND v.type IN (1, 2) AND (?3 = 0 OR v.node_id IS NULL OR v.node_id = ?3)"
        " ORDER BY 1, 2, 3",
        "sii", row->name, row->id, member);
    int status = STATUS_OK;
    while (status == STATUS_OK && sql_next(s)) {
        if (visible(caller, sql_text(s, 1))) {
            status = add_url(&list, sql_text(s, 0), sql_text(s, 1), clustered ? sql_text(s, 2) : "", err);
        }
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    *urls = list.urls;
    *count = list.count;
    return status == STATUS_OK ? done : status;
}

/* ---- members ---- */

int pool_tasks_load(struct sql *sql, const struct pool_row *row, int64_t state, struct pool_task **tasks, size_t *count, struct arena *arena, struct error *err)
{
    *tasks = arena_alloc(arena, POOL_MEMBERS_MAX * sizeof **tasks);
    *count = 0;
    struct sql_stmt *s = sql_query(sql,
        "SELECT nodes.id, nodes.name, storage_pools_nodes.state FROM storage_pools_nodes JOIN nodes ON nodes.id = node_id WHERE storage_pool_id = ?1 AND (?2 < 0 OR storage_pools_nodes.state = ?2)"
        " ORDER BY nodes.id", "ii", row->id, state);
    int status = STATUS_OK;
    while (status == STATUS_OK && sql_next(s)) {
        if (*count == POOL_MEMBERS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members", POOL_MEMBERS_MAX);
            break;
        }
        struct pool_task *task = &(*tasks)[(*count)++];
        task->member = (uint64_t)sql_int(s, 0);
        task->name = arena_strdup(arena, sql_text(s, 1));
        task->made = sql_int(s, 2) == POOL_CREATED;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    status = status == STATUS_OK ? done : status;
    for (size_t i = 0; i < *count && status == STATUS_OK; i++) {
        struct settings config = {0};
        struct pool_task *task = &(*tasks)[i];
        status = pool_load_config(sql, row->id, 0, &config, arena, err);
        status = status == STATUS_OK ? pool_load_config(sql, row->id, (int64_t)task->member, &config, arena, err) : status;
        covey__internal__v1__pool_spec__init(&task->spec);
        task->spec.name = arena_strdup(arena, row->name);
        task->spec.driver = arena_strdup(arena, row->driver);
        task->spec.config = settings_to_map(&config, &covey__internal__v1__pool_spec__config_entry__descriptor, &task->spec.n_config, arena);
    }
    return status;
}

struct batch {
    struct pool_task *tasks;
    int (*work)(struct pool_task *task, struct arena *arena, struct error *err);
};

static void run_task(void *ud, size_t index, struct arena *arena)
{
    struct batch *batch = ud;
    struct pool_task *task = &batch->tasks[index];
    task->status = batch->work(task, arena, &task->err);
}

int pool_tasks_run(struct pool_task *tasks, size_t count, int (*work)(struct pool_task *task, struct arena *arena, struct error *err), struct error *err)
{
    struct batch batch = {tasks, work};
    members_each(count, run_task, &batch);
    for (size_t i = 0; i < count; i++) {
        if (tasks[i].status != STATUS_OK) {
            if (err != NULL) {
                *err = tasks[i].err;
            }
            return daemon_clustered(the_daemon) ? error_prefix(err, "Member \"%s\"", tasks[i].name) : tasks[i].status;
        }
    }
    return STATUS_OK;
}
