/* covey.v1.Projects: what the database holds. Creating, changing and deleting projects is not built: these methods have no binding and answer
 * "not implemented". Runs on the leader. Restricted clients see their projects only. */
#include "covey/v1/project.pb-c.h"
#include "server/daemon/daemon.h"
#include "server/daemon/etag.h"
#include "server/services.h"

#include <string.h>

struct read {
    struct arena *arena;
    const struct caller *caller;
    const char *only; /* NULL = all */
    Covey__V1__Project **list;
    size_t count, capacity;
};

static bool visible(const struct caller *caller, const char *name)
{
    bool listed = !caller->restricted;
    for (char **project = caller->projects; caller->restricted && project != NULL && *project != NULL && !listed; project++) {
        listed = strcmp(*project, name) == 0;
    }
    return listed;
}

static int read_config(struct sql *sql, struct arena *arena, int64_t id, Covey__V1__Project *out, struct error *err)
{
    int64_t count = 0;
    if (sql_get_int(sql, &count, err, "SELECT count(*) FROM projects_config WHERE project_id = ?1", "i", id) != STATUS_OK) {
        return err->code;
    }
    out->config = arena_alloc(arena, ((size_t)count + 1) * sizeof *out->config);
    struct sql_stmt *s = sql_query(sql, "SELECT key, value FROM projects_config WHERE project_id = ?1 ORDER BY key", "i", id);
    while (sql_next(s) && out->n_config < (size_t)count) {
        Covey__V1__Project__ConfigEntry *entry = arena_alloc(arena, sizeof *entry);
        covey__v1__project__config_entry__init(entry);
        entry->key = arena_strdup(arena, sql_text(s, 0));
        entry->value = arena_strdup(arena, sql_text(s, 1));
        out->config[out->n_config++] = entry;
    }
    return sql_done(s, err);
}

static int read_used_by(struct sql *sql, struct arena *arena, int64_t id, Covey__V1__Project *out, struct error *err)
{
    static const char users[] = "SELECT '/1.0/images/' || fingerprint AS url FROM images WHERE project_id = ?1 UNION ALL"
                                " SELECT '/1.0/instances/' || name FROM instances WHERE project_id = ?1 UNION ALL"
                                " SELECT '/1.0/profiles/' || name FROM profiles WHERE project_id = ?1 ORDER BY url";
    int64_t count = 0;
    if (sql_get_int(sql, &count, err,
            "SELECT (SELECT count(*) FROM images WHERE project_id = ?1) + (SELECT count(*) FROM instances WHERE project_id = ?1)"
            " + (SELECT count(*) FROM profiles WHERE project_id = ?1)", "i", id) != STATUS_OK) {
        return err->code;
    }
    out->used_by = arena_alloc(arena, ((size_t)count + 1) * sizeof *out->used_by);
    const char *suffix = strcmp(out->name, "default") == 0 ? "" : arena_printf(arena, "?project=%s", out->name);
    struct sql_stmt *s = sql_query(sql, users, "i", id);
    while (sql_next(s) && out->n_used_by < (size_t)count) {
        out->used_by[out->n_used_by++] = arena_printf(arena, "%s%s", sql_text(s, 0), suffix);
    }
    return sql_done(s, err);
}

static void append(struct read *read, Covey__V1__Project *project)
{
    if (read->count == read->capacity) {
        size_t grown = read->capacity != 0 ? 2 * read->capacity : 16;
        Covey__V1__Project **list = arena_alloc(read->arena, grown * sizeof *list);
        if (read->count > 0) {
            memcpy(list, read->list, read->count * sizeof *list);
        }
        read->list = list;
        read->capacity = grown;
    }
    read->list[read->count++] = project;
}

static int read_projects(struct sql *sql, void *ud, struct error *err)
{
    struct read *read = ud;
    int status = STATUS_OK;
    read->count = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, description FROM projects WHERE ?1 IS NULL OR name = ?1 ORDER BY name", "s", read->only);
    while (status == STATUS_OK && sql_next(s)) {
        if (!visible(read->caller, sql_text(s, 1))) {
            continue;
        }
        Covey__V1__Project *out = arena_alloc(read->arena, sizeof *out);
        covey__v1__project__init(out);
        out->name = arena_strdup(read->arena, sql_text(s, 1));
        out->description = arena_strdup(read->arena, sql_text(s, 2));
        status = read_config(sql, read->arena, sql_int(s, 0), out, err);
        status = status == STATUS_OK ? read_used_by(sql, read->arena, sql_int(s, 0), out, err) : status;
        out->etag = etag_make(read->arena, &out->base, "description,config");
        append(read, out);
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

static int list(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListProjectsRequest *request = (const Covey__V1__ListProjectsRequest *)message;
    struct read read = {.arena = rpc_arena(call), .caller = rpc_caller(call)};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_projects, &read, NULL, err);
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListProjectsResponse *out = arena_alloc(read.arena, sizeof *out);
    covey__v1__list_projects_response__init(out);
    if (request->recursion > 0) {
        out->projects = read.list;
        out->n_projects = read.count;
    } else {
        out->urls = arena_alloc(read.arena, (read.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < read.count; i++) {
            out->urls[out->n_urls++] = arena_printf(read.arena, "/1.0/projects/%s", read.list[i]->name);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int get(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetProjectRequest *request = (const Covey__V1__GetProjectRequest *)message;
    struct read read = {.arena = rpc_arena(call), .caller = rpc_caller(call), .only = request->name};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_projects, &read, NULL, err);
    if (status == STATUS_OK && read.count == 0) {
        status = error_set(err, STATUS_NOT_FOUND, "Project not found");
    }
    if (status == STATUS_OK) {
        *response = &read.list[0]->base;
    }
    return status;
}

static const struct rpc_binding bindings[] = {{"ListProjects", list}, {"GetProject", get}};

void projects_bind(void)
{
    rpc_bind("covey.v1.Projects", bindings, sizeof bindings / sizeof *bindings, NULL);
}
