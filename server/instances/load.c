/* Instances from the database: one ordered query per table, merged by id, so that a list costs the same number of queries as one instance.
 * Thread: any, inside a transaction. */
#include "instance.h"

#include <stdlib.h>
#include <string.h>

struct loading {
    struct sql *sql;
    struct arena *arena;
    struct instance *items; /* by id */
    size_t count, capacity;
    int64_t single; /* the id, when there is only one to load */
};

static int load_rows(struct loading *in, const struct instance_filter *filter, int64_t project, struct error *err)
{
    static const char base[] = "SELECT i.id, i.project_id, coalesce(i.storage_pool_id, 0), i.node_id, n.name, n.state, p.name, i.name, i.description, i.operation, i.architecture,"
                               " i.creation_date, i.last_use_date, i.phase, i.ephemeral, i.stateful FROM instances i JOIN nodes n ON n.id = i.node_id"
                               " JOIN projects p ON p.id = i.project_id";
    char *text = arena_printf(in->arena, "%s%s ORDER BY i.id LIMIT %d", base,
        filter->name != NULL ? " WHERE i.project_id = ?1 AND i.name = ?2" : project != 0 ? " WHERE i.project_id = ?1" : "", INSTANCES_MAX + 1);
    struct sql_stmt *s = filter->name != NULL ? sql_query(in->sql, text, "is", project, filter->name)
        : project != 0                        ? sql_query(in->sql, text, "i", project)
                                              : sql_query(in->sql, text, "");
    while (sql_next(s)) {
        if (in->count == in->capacity) {
            in->capacity = in->capacity > 0 ? 2 * in->capacity : 64;
            struct instance *grown = arena_alloc(in->arena, in->capacity * sizeof *grown);
            if (in->count > 0) {
                memcpy(grown, in->items, in->count * sizeof *grown);
            }
            in->items = grown;
        }
        struct instance *one = &in->items[in->count++];
        *one = (struct instance){.id = sql_int(s, 0), .project_id = sql_int(s, 1), .pool_id = sql_int(s, 2), .member = (uint64_t)sql_int(s, 3),
            .member_name = arena_strdup(in->arena, sql_text(s, 4)), .member_state = sql_int(s, 5), .project = arena_strdup(in->arena, sql_text(s, 6)),
            .name = arena_strdup(in->arena, sql_text(s, 7)), .description = arena_strdup(in->arena, sql_text(s, 8)),
            .operation = arena_strdup(in->arena, sql_text(s, 9)), .architecture = sql_int(s, 10), .created_ns = sql_int(s, 11), .used_ns = sql_int(s, 12),
            .phase = sql_int(s, 13), .ephemeral = sql_int(s, 14) != 0, .stateful = sql_int(s, 15) != 0};
    }
    int status = sql_done(s, err);
    return status == STATUS_OK && in->count > INSTANCES_MAX ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d instances", INSTANCES_MAX) : status;
}

/* Starts the query of a table whose first column is the instance's id; `text` ends before WHERE. */
static struct sql_stmt *rows_of(struct loading *in, const char *text, const char *column, const char *order)
{
    char *query = arena_printf(in->arena, in->single != 0 ? "%s WHERE %s = ?1 ORDER BY %s, %s" : "%s%.0s ORDER BY %s, %s", text, column, column, order);
    return in->single != 0 ? sql_query(in->sql, query, "i", in->single) : sql_query(in->sql, query, "");
}

/* The instance of a row; rows come in order of ids. NULL: not one of ours. */
static struct instance *next_of(struct loading *in, size_t *at, int64_t id)
{
    while (*at < in->count && in->items[*at].id < id) {
        ++*at;
    }
    return *at < in->count && in->items[*at].id == id ? &in->items[*at] : NULL;
}

static int load_settings(struct loading *in, struct error *err)
{
    size_t at = 0;
    struct sql_stmt *s = rows_of(in, "SELECT instance_id, key, value FROM instances_config", "instance_id", "key");
    while (sql_next(s)) {
        struct instance *one = next_of(in, &at, sql_int(s, 0));
        if (one != NULL) {
            settings_set(&one->own.config, sql_text(s, 1), sql_text(s, 2), in->arena);
        }
    }
    int status = sql_done(s, err);
    if (status != STATUS_OK) {
        return status;
    }
    at = 0;
    s = rows_of(in, "SELECT instance_id, name, key, value FROM instances_devices LEFT JOIN instances_devices_config ON instance_device_id = instances_devices.id",
        "instance_id", "name, key");
    while (sql_next(s)) {
        struct instance *one = next_of(in, &at, sql_int(s, 0));
        if (one != NULL) {
            struct device_settings *device = devices_add(&one->own.devices, sql_text(s, 1), in->arena);
            if (!sql_null(s, 2)) {
                settings_set(&device->options, sql_text(s, 2), sql_text(s, 3), in->arena);
            }
        }
    }
    return sql_done(s, err);
}

static int load_profiles(struct loading *in, struct error *err)
{
    size_t at = 0;
    struct sql_stmt *s = rows_of(in, "SELECT instance_id, profile_id, profiles.name FROM instances_profiles JOIN profiles ON profiles.id = profile_id", "instance_id",
        "apply_order, instances_profiles.id");
    while (sql_next(s)) {
        struct instance *one = next_of(in, &at, sql_int(s, 0));
        if (one == NULL || one->profile_count == INSTANCE_PROFILES_MAX) {
            continue;
        }
        if ((one->profile_count & (one->profile_count - 1)) == 0) { /* a power of two: full */
            size_t capacity = one->profile_count > 0 ? 2 * one->profile_count : 1;
            char **names = arena_alloc(in->arena, capacity * sizeof *names);
            int64_t *ids = arena_alloc(in->arena, capacity * sizeof *ids);
            for (size_t i = 0; i < one->profile_count; i++) {
                names[i] = one->profiles[i];
                ids[i] = one->profile_ids[i];
            }
            one->profiles = names;
            one->profile_ids = ids;
        }
        one->profile_ids[one->profile_count] = sql_int(s, 1);
        one->profiles[one->profile_count++] = arena_strdup(in->arena, sql_text(s, 2));
    }
    return sql_done(s, err);
}

struct known_profile {
    int64_t id;
    struct spec spec;
    struct known_profile *next;
};

static const struct spec *profile_spec(struct sql *sql, struct known_profile **known, int64_t id, struct arena *arena, struct error *err)
{
    for (struct known_profile *one = *known; one != NULL; one = one->next) {
        if (one->id == id) {
            return &one->spec;
        }
    }
    struct known_profile *one = arena_alloc(arena, sizeof *one);
    one->id = id;
    if (spec_load(sql, "profile", id, &one->spec, arena, err) != STATUS_OK) {
        return NULL;
    }
    one->next = *known;
    *known = one;
    return &one->spec;
}

static int expand(struct sql *sql, struct known_profile **known, const int64_t *ids, size_t count, const struct spec *own, struct spec *expanded, struct arena *arena,
                  struct error *err)
{
    for (size_t i = 0; i < count; i++) {
        const struct spec *profile = profile_spec(sql, known, ids[i], arena, err);
        if (profile == NULL) {
            return err != NULL ? (int)err->code : STATUS_INTERNAL;
        }
        spec_overlay(expanded, profile, arena);
    }
    spec_overlay(expanded, own, arena);
    spec_finish_expansion(expanded);
    return STATUS_OK;
}

int instance_expand(struct sql *sql, const int64_t *profile_ids, size_t count, const struct spec *own, struct spec *expanded, struct arena *arena, struct error *err)
{
    struct known_profile *known = NULL;
    return expand(sql, &known, profile_ids, count, own, expanded, arena, err);
}

static int by_name(const void *a, const void *b)
{
    const struct instance *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : strcmp(x->project, y->project);
}

int instances_load(struct sql *sql, const struct instance_filter *filter, bool specs, struct arena *arena, struct instance **out, size_t *count, struct error *err)
{
    struct loading in = {.sql = sql, .arena = arena};
    struct known_profile *known = NULL;
    int64_t project = 0;
    struct error own = ERROR_INIT;
    err = err != NULL ? err : &own;
    *out = NULL;
    *count = 0;
    int status = filter->project != NULL ? project_id(sql, filter->project, &project, err) : STATUS_OK;
    status = status == STATUS_OK ? load_rows(&in, filter, project, err) : status;
    if (specs && status == STATUS_OK && in.count > 0) {
        in.single = in.count == 1 ? in.items[0].id : 0;
        status = load_settings(&in, err);
        status = status == STATUS_OK ? load_profiles(&in, err) : status;
        for (size_t i = 0; i < in.count && status == STATUS_OK; i++) {
            struct instance *one = &in.items[i];
            status = expand(sql, &known, one->profile_ids, one->profile_count, &one->own, &one->expanded, arena, err);
        }
    }
    if (status == STATUS_OK) {
        if (in.count > 1) {
            qsort(in.items, in.count, sizeof *in.items, by_name);
        }
        *out = in.items;
        *count = in.count;
    }
    return status;
}

int instance_load(struct sql *sql, const char *project, const char *name, struct arena *arena, struct instance **out, struct error *err)
{
    size_t count = 0;
    struct instance_filter filter = {.project = project_or_default(project), .name = name};
    int status = instances_load(sql, &filter, true, arena, out, &count, err);
    return status == STATUS_OK && count == 0 ? error_set(err, STATUS_NOT_FOUND, "Instance not found") : status;
}

const struct device_settings *root_device(const struct device_set *devices)
{
    for (size_t i = 0; i < devices->count; i++) {
        const struct settings *options = &devices->items[i].options;
        if (str_eq(settings_get(options, "type"), "disk") && str_eq(settings_get(options, "path"), "/") && settings_get(options, "source") == NULL) {
            return &devices->items[i];
        }
    }
    return NULL;
}

static int load_pool(struct sql *sql, const struct instance *instance, struct arena *arena, Covey__Internal__V1__PoolSpec *pool, struct error *err)
{
    struct settings config = {0};
    struct sql_stmt *s = sql_query(sql, "SELECT name, driver FROM storage_pools WHERE id = ?1", "i", instance->pool_id);
    while (sql_next(s)) {
        pool->name = arena_strdup(arena, sql_text(s, 0));
        pool->driver = arena_strdup(arena, sql_text(s, 1));
    }
    int status = sql_done(s, err);
    if (status != STATUS_OK) {
        return status;
    }
    s = sql_query(sql, "SELECT key, value FROM storage_pools_config WHERE storage_pool_id = ?1 AND (node_id IS NULL OR node_id = ?2)", "ii", instance->pool_id,
        (int64_t)instance->member);
    while (sql_next(s)) {
        settings_set(&config, sql_text(s, 0), sql_text(s, 1), arena);
    }
    pool->config = settings_to_map(&config, &covey__internal__v1__pool_spec__config_entry__descriptor, &pool->n_config, arena);
    return sql_done(s, err);
}

int instance_agent_spec(struct sql *sql, const struct instance *instance, struct arena *arena, Covey__Internal__V1__InstanceSpec **out, struct error *err)
{
    Covey__Internal__V1__InstanceSpec *spec = arena_alloc(arena, sizeof *spec);
    covey__internal__v1__instance_spec__init(spec);
    spec->project = (char *)instance->project;
    spec->name = (char *)instance->name;
    spec->config = settings_to_map(&instance->expanded.config, &covey__internal__v1__instance_spec__config_entry__descriptor, &spec->n_config, arena);
    spec->devices = devices_to_map(&instance->expanded.devices, &covey__internal__v1__instance_spec__devices_entry__descriptor, &spec->n_devices, arena);
    const char *uuid = settings_get(&instance->own.config, "volatile.uuid");
    spec->uuid = (char *)(uuid != NULL ? uuid : "");
    spec->ephemeral = instance->ephemeral;
    *out = spec;
    if (instance->pool_id == 0) {
        return STATUS_OK;
    }
    spec->pool = arena_alloc(arena, sizeof *spec->pool);
    covey__internal__v1__pool_spec__init(spec->pool);
    return load_pool(sql, instance, arena, spec->pool, err);
}

struct finding {
    const char *project, *name;
    struct arena *arena;
    struct instance **out;
    Covey__Internal__V1__InstanceSpec **spec;
};

static int find(struct sql *sql, void *ud, struct error *err)
{
    struct finding *in = ud;
    int status = instance_load(sql, in->project, in->name, in->arena, in->out, err);
    return status == STATUS_OK && in->spec != NULL ? instance_agent_spec(sql, *in->out, in->arena, in->spec, err) : status;
}

int instance_find(const char *project, const char *name, struct arena *arena, struct instance **out, Covey__Internal__V1__InstanceSpec **spec, struct error *err)
{
    struct finding in = {project, name, arena, out, spec};
    return daemon_read(the_daemon, DB_LINEARIZABLE, find, &in, NULL, err);
}

int64_t project_of_feature(struct sql *sql, int64_t project, const char *feature)
{
    char *value = NULL;
    bool on = true;
    if (sql_get_text(sql, &value, NULL, "SELECT value FROM projects_config WHERE project_id = ?1 AND key = ?2", "is", project, feature) == STATUS_OK) {
        on = parse_bool(value, &on) == 0 ? on : true;
    }
    free(value);
    return on ? project : 1;
}

int profiles_resolve(struct sql *sql, int64_t project, char *const *names, size_t count, int64_t *ids, struct error *err)
{
    if (count > INSTANCE_PROFILES_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Too many profiles (at most %d)", INSTANCE_PROFILES_MAX);
    }
    project = project_of_feature(sql, project, "features.profiles");
    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < i; k++) {
            if (strcmp(names[i], names[k]) == 0) {
                return error_set(err, STATUS_INVALID_ARGUMENT, "Duplicate profile \"%.128s\" found in request", names[i]);
            }
        }
        int status = sql_get_int(sql, &ids[i], err, "SELECT id FROM profiles WHERE project_id = ?1 AND name = ?2", "is", project, names[i]);
        if (status == STATUS_NOT_FOUND) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Requested profile \"%.128s\" doesn't exist", names[i]);
        }
        if (status != STATUS_OK) {
            return status;
        }
    }
    return STATUS_OK;
}

int config_put(struct sql *sql, int64_t instance, const char *key, const char *value, struct error *err)
{
    if (str_empty(value)) {
        return sql_exec(sql, err, "DELETE FROM instances_config WHERE instance_id = ?1 AND key = ?2", "is", instance, key);
    }
    int status = sql_exec(sql, err, "UPDATE instances_config SET value = ?3 WHERE instance_id = ?1 AND key = ?2", "iss", instance, key, value);
    if (status == STATUS_OK && sql_changes(sql) == 0) {
        status = sql_exec(sql, err, "INSERT INTO instances_config (instance_id, key, value) SELECT id, ?2, ?3 FROM instances WHERE id = ?1", "iss", instance, key, value);
    }
    return status;
}

int config_flag(const struct settings *config, const char *key, bool fallback)
{
    const char *value = settings_get(config, key);
    bool flag = fallback;
    return value != NULL && parse_bool(value, &flag) == 0 ? flag : fallback;
}
