/* Rows of networks, and work on many members at once. SQL functions run inside the caller's transaction; the rest blocks on agents. */
#include "networks.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_PROJECT = 1 };

int network_project(struct sql *sql, const char *project, bool *own, struct error *err)
{
    int64_t id = 0;
    char *feature = NULL;
    *own = false;
    int status = project_id(sql, project, &id, err);
    if (status != STATUS_OK || id == DEFAULT_PROJECT) {
        return status;
    }
    status = sql_get_text(sql, &feature, err, "SELECT value FROM projects_config WHERE project_id = ?1 AND key = 'features.networks'", "i", id);
    *own = status == STATUS_OK && str_eq(feature, "true");
    free(feature);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

int network_load(struct sql *sql, const char *name, struct network_row *row, struct arena *arena, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, type, description, state FROM networks WHERE project_id = ?1 AND name = ?2", "is", (int64_t)DEFAULT_PROJECT, name);
    bool found = sql_next(s);
    if (found) {
        *row = (struct network_row){.id = sql_int(s, 0), .name = arena_strdup(arena, sql_text(s, 1)), .type = sql_int(s, 2), .description = arena_strdup(arena, sql_text(s, 3)),
            .state = sql_int(s, 4)};
    }
    int status = sql_done(s, err);
    return status == STATUS_OK && !found ? error_set(err, STATUS_NOT_FOUND, "Network not found") : status;
}

int network_load_config(struct sql *sql, int64_t network, int64_t member, struct settings *config, struct arena *arena, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT key, value FROM networks_config WHERE network_id = ?1 AND coalesce(node_id, 0) = ?2 ORDER BY key", "ii", network, member);
    while (sql_next(s)) {
        settings_set(config, sql_text(s, 0), sql_text(s, 1), arena);
    }
    return sql_done(s, err);
}

int network_store_key(struct sql *sql, int64_t network, int64_t member, const char *key, const char *value, struct error *err)
{
    /* UNIQUE does not see NULL members as equal: replace by hand. */
    int64_t keys = 0;
    int status = sql_exec(sql, err, "DELETE FROM networks_config WHERE network_id = ?1 AND coalesce(node_id, 0) = ?2 AND key = ?3", "iis", network, member, key);
    if (status != STATUS_OK || str_empty(value)) {
        return status;
    }
    status = sql_get_int(sql, &keys, err, "SELECT count(*) FROM networks_config WHERE network_id = ?1 AND coalesce(node_id, 0) = ?2", "ii", network, member);
    if (status == STATUS_OK && keys >= NETWORK_KEYS_MAX) {
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d config keys of a network", NETWORK_KEYS_MAX);
    }
    return status == STATUS_OK ? sql_exec(sql, err, "INSERT INTO networks_config (network_id, node_id, key, value) VALUES (?1, nullif(?2, 0), ?3, ?4)", "iiss", network, member, key,
                                     value)
                               : status;
}

/* Devices that name the network ?1, by themselves or as the parent interface. */
#define NAMES_IT " c.key IN ('network', 'parent') AND c.value = ?1"
#define USERS                                                                                                                                              \
    "SELECT '/1.0/profiles/' || profiles.name AS url, projects.name AS project, 0 AS kind FROM profiles_devices_config AS c"                              \
    " JOIN profiles_devices ON profiles_devices.id = c.profile_device_id JOIN profiles ON profiles.id = profile_id"                                       \
    " JOIN projects ON projects.id = profiles.project_id WHERE" NAMES_IT                                                                                  \
    " UNION SELECT '/1.0/instances/' || instances.name, projects.name, 1 FROM instances_devices_config AS c"                                              \
    " JOIN instances_devices ON instances_devices.id = c.instance_device_id JOIN instances ON instances.id = instance_id"                                 \
    " JOIN projects ON projects.id = instances.project_id WHERE" NAMES_IT                                                                                 \
    " UNION SELECT '/1.0/instances/' || instances.name, projects.name, 1 FROM profiles_devices_config AS c"                                               \
    " JOIN profiles_devices ON profiles_devices.id = c.profile_device_id JOIN instances_profiles ON instances_profiles.profile_id = profiles_devices.profile_id" \
    " JOIN instances ON instances.id = instances_profiles.instance_id JOIN projects ON projects.id = instances.project_id"                                \
    " WHERE" NAMES_IT " AND NOT EXISTS (SELECT 1 FROM instances_devices WHERE instance_id = instances.id AND name = profiles_devices.name)"

int network_unused_check(struct sql *sql, const char *name, struct error *err)
{
    int64_t users = 0;
    int status = sql_get_int(sql, &users, err, "SELECT count(*) FROM (" USERS ")", "s", name);
    return status == STATUS_OK && users > 0 ? error_set(err, STATUS_FAILED_PRECONDITION, "The network is currently in use") : status;
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

int network_used_by(struct sql *sql, const char *name, const struct caller *caller, struct arena *arena, char ***urls, size_t *count, struct error *err)
{
    size_t capacity = 0;
    int status = STATUS_OK;
    *urls = NULL;
    *count = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT url, project FROM (" USERS ") ORDER BY kind, project, url", "s", name);
    while (status == STATUS_OK && sql_next(s)) {
        if (!visible(caller, sql_text(s, 1))) {
            continue;
        }
        if (*count == NETWORK_USERS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d users of a network", NETWORK_USERS_MAX);
            break;
        }
        if (*count == capacity) {
            capacity = capacity > 0 ? capacity * 2 : 16;
            char **grown = arena_alloc(arena, capacity * sizeof *grown);
            if (*count > 0) {
                memcpy(grown, *urls, *count * sizeof *grown);
            }
            *urls = grown;
        }
        bool other = strcmp(sql_text(s, 1), "default") != 0;
        (*urls)[(*count)++] = arena_printf(arena, "%s%s%s", sql_text(s, 0), other ? "?project=" : "", other ? sql_text(s, 1) : "");
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

void network_spec_fill(Covey__Internal__V1__NetworkSpec *spec, const struct network_row *row, const struct settings *config, struct arena *arena)
{
    covey__internal__v1__network_spec__init(spec);
    spec->name = arena_strdup(arena, row->name);
    spec->type = arena_strdup(arena, network_type_name(row->type));
    spec->config = settings_to_map(config, &covey__internal__v1__network_spec__config_entry__descriptor, &spec->n_config, arena);
}

int network_settings_check(int64_t type, const struct settings *config, bool complete, struct error *err)
{
    _Static_assert(sizeof(struct setting) == sizeof(struct device_option), "settings are passed as device options");
    return network_config_check(type, (const struct device_option *)config->items, config->count, complete, err);
}

/* ---- members ---- */

int network_tasks_load(struct sql *sql, const struct network_row *row, int64_t state, struct network_task **tasks, size_t *count, struct arena *arena, struct error *err)
{
    *tasks = arena_alloc(arena, NETWORK_MEMBERS_MAX * sizeof **tasks);
    *count = 0;
    struct sql_stmt *s = sql_query(sql,
        "SELECT nodes.id, nodes.name FROM networks_nodes JOIN nodes ON nodes.id = node_id WHERE network_id = ?1 AND (?2 < 0 OR networks_nodes.state = ?2) ORDER BY nodes.id", "ii",
        row->id, state);
    int status = STATUS_OK;
    while (status == STATUS_OK && sql_next(s)) {
        if (*count == NETWORK_MEMBERS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members", NETWORK_MEMBERS_MAX);
            break;
        }
        struct network_task *task = &(*tasks)[(*count)++];
        task->member = (uint64_t)sql_int(s, 0);
        task->name = arena_strdup(arena, sql_text(s, 1));
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    status = status == STATUS_OK ? done : status;
    for (size_t i = 0; i < *count && status == STATUS_OK; i++) {
        struct settings config = {0};
        struct network_task *task = &(*tasks)[i];
        status = network_load_config(sql, row->id, 0, &config, arena, err);
        status = status == STATUS_OK ? network_load_config(sql, row->id, (int64_t)task->member, &task->local, arena, err) : status;
        for (size_t k = 0; k < task->local.count; k++) {
            settings_set(&config, task->local.items[k].key, task->local.items[k].value, arena);
        }
        network_spec_fill(&task->spec, row, &config, arena);
    }
    return status;
}

int network_apply_on_member(struct network_task *task, struct arena *arena, struct error *err)
{
    ProtobufCMessage *response = NULL;
    return agent_call(the_daemon, task->member, "ApplyNetwork", &task->spec.base, &response, arena, NETWORK_AGENT_TIMEOUT_MS, err);
}

static int removed_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct network_task *task = ud;
    return sql_exec(sql, err, "UPDATE networks_nodes SET state = 0 WHERE node_id = ?2 AND network_id = (SELECT id FROM networks WHERE name = ?1)", "si", task->spec.name,
        (int64_t)task->member);
}

int network_remove_on_member(struct network_task *task, struct arena *arena, struct error *err)
{
    ProtobufCMessage *response = NULL;
    int status = agent_call(the_daemon, task->member, "RemoveNetwork", &task->spec.base, &response, arena, NETWORK_AGENT_TIMEOUT_MS, err);
    return status == STATUS_OK ? daemon_write(the_daemon, NULL, removed_write, task, NULL, NULL, NULL, err) : status;
}

struct batch {
    struct network_task *tasks;
    network_work work;
};

static void run_task(void *ud, size_t index, struct arena *arena)
{
    struct batch *batch = ud;
    struct network_task *task = &batch->tasks[index];
    task->status = batch->work(task, arena, &task->err);
}

int network_tasks_run(struct network_task *tasks, size_t count, network_work work, struct error *err)
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
