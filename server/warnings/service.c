/* covey.v1.Warnings: reading, acknowledging and deleting. All handlers run on the leader, on worker threads. */
#include "warnings.h"

#include "covey/v1/warning.pb-c.h"
#include "server/daemon/etag.h"
#include "server/daemon/filter.h"
#include "server/events/events.h"
#include <stdlib.h>
#include <string.h>

enum { WARNINGS_MAX = 65536 };

struct read {
    struct arena *arena;
    const char *uuid, *project; /* NULL = all */
    Covey__V1__Warning **list;
    size_t count, capacity;
};

static Google__Protobuf__Timestamp *timestamp(struct arena *arena, int64_t unix_ns)
{
    Google__Protobuf__Timestamp *out = arena_alloc(arena, sizeof *out);
    google__protobuf__timestamp__init(out);
    out->seconds = unix_ns / 1000000000;
    out->nanos = (int32_t)(unix_ns % 1000000000);
    return out;
}

static void append(struct read *read, Covey__V1__Warning *warning)
{
    if (read->count == read->capacity) {
        size_t grown = read->capacity != 0 ? 2 * read->capacity : 16;
        Covey__V1__Warning **list = arena_alloc(read->arena, grown * sizeof *list);
        if (read->count > 0) {
            memcpy(list, read->list, read->count * sizeof *list);
        }
        read->list = list;
        read->capacity = grown;
    }
    read->list[read->count++] = warning;
}

static int read_warnings(struct sql *sql, void *ud, struct error *err)
{
    struct read *read = ud;
    struct arena *arena = read->arena;
    read->count = 0;
    struct sql_stmt *s = sql_query(sql,
        "SELECT uuid, status, type_code, count, first_seen_date, last_seen_date, last_message, coalesce(nodes.name, ''), coalesce(projects.name, ''),"
        " CASE entity_type WHEN 'cluster-member' THEN coalesce((SELECT '/1.0/cluster/members/' || name FROM nodes AS e WHERE e.id = CAST(entity AS INTEGER)), '')"
        " ELSE entity END"
        " FROM warnings LEFT JOIN nodes ON nodes.id = warnings.node_id LEFT JOIN projects ON projects.id = warnings.project_id"
        " WHERE (?1 IS NULL OR uuid = ?1) AND (?2 IS NULL OR projects.name = ?2) ORDER BY warnings.id LIMIT ?3", "ssi", read->uuid, read->project, (int64_t)WARNINGS_MAX);
    while (sql_next(s)) {
        Covey__V1__Warning *out = arena_alloc(arena, sizeof *out);
        enum warning_kind kind = (enum warning_kind)sql_int(s, 2);
        covey__v1__warning__init(out);
        out->uuid = arena_strdup(arena, sql_text(s, 0));
        out->status = arena_strdup(arena, warning_status_name((enum warning_status)sql_int(s, 1)));
        out->type = arena_strdup(arena, warning_kind_name(kind));
        out->count = sql_int(s, 3);
        out->first_seen_at = timestamp(arena, sql_int(s, 4));
        out->last_seen_at = timestamp(arena, sql_int(s, 5));
        out->last_message = arena_strdup(arena, sql_text(s, 6));
        out->location = arena_strdup(arena, sql_text(s, 7));
        out->project = arena_strdup(arena, sql_text(s, 8));
        out->entity_url = arena_strdup(arena, sql_text(s, 9));
        out->severity = arena_strdup(arena, warning_severity_name(warning_severity(kind)));
        out->etag = etag_make(arena, &out->base, "status");
        append(read, out);
    }
    return sql_done(s, err);
}

/* Keeps what matches. */
static int apply_filter(const char *text, struct read *read, struct error *err)
{
    struct filter *filter = NULL;
    size_t kept = 0;
    int status = filter_parse(text, &filter, err);
    for (size_t i = 0; i < read->count && status == STATUS_OK; i++) {
        if (filter_match_message(filter, &read->list[i]->base)) {
            read->list[kept++] = read->list[i];
        }
    }
    read->count = kept;
    filter_free(filter);
    return status;
}

static int list_warnings(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListWarningsRequest *request = (const Covey__V1__ListWarningsRequest *)message;
    struct read read = {.arena = rpc_arena(call), .project = str_empty(request->project) ? NULL : request->project};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_warnings, &read, NULL, err);
    status = status == STATUS_OK && !str_empty(request->filter) ? apply_filter(request->filter, &read, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListWarningsResponse *out = arena_alloc(read.arena, sizeof *out);
    covey__v1__list_warnings_response__init(out);
    if (request->recursion > 0) {
        out->warnings = read.list;
        out->n_warnings = read.count;
    } else {
        out->urls = arena_alloc(read.arena, (read.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < read.count; i++) {
            out->urls[out->n_urls++] = arena_printf(read.arena, "/1.0/warnings/%s", read.list[i]->uuid);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int not_found(struct error *err)
{
    return error_set(err, STATUS_NOT_FOUND, "Warning not found");
}

static int get_warning(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetWarningRequest *request = (const Covey__V1__GetWarningRequest *)message;
    struct read read = {.arena = rpc_arena(call), .uuid = request->uuid};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_warnings, &read, NULL, err);
    if (status == STATUS_OK && read.count == 0) {
        status = not_found(err);
    }
    if (status == STATUS_OK) {
        *response = &read.list[0]->base;
    }
    return status;
}

/* ---- writing ---- */

struct change {
    struct arena *arena;
    const char *uuid, *if_match;
    enum warning_status status;
};

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct change *in = ud;
    struct read now = {.arena = in->arena, .uuid = in->uuid};
    int status = read_warnings(sql, &now, err);
    if (status == STATUS_OK && now.count == 0) {
        return not_found(err);
    }
    status = status == STATUS_OK ? etag_check(in->if_match, now.list[0]->etag, err) : status;
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE warnings SET status = ?2 WHERE uuid = ?1 AND status <> ?2", "si", in->uuid, (int64_t)in->status) : status;
}

static int delete_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct change *in = ud;
    int64_t id = 0;
    int status = sql_get_int(sql, &id, err, "SELECT id FROM warnings WHERE uuid = ?1", "s", in->uuid);
    if (status == STATUS_NOT_FOUND) {
        return not_found(err);
    }
    return status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM warnings WHERE id = ?1", "i", id) : status;
}

static void lifecycle(struct rpc_call *call, const char *action, const char *uuid)
{
    char *source = xasprintf("/1.0/warnings/%s", uuid);
    events_lifecycle(action, source, "default", rpc_caller(call), NULL, NULL);
    free(source);
}

static int update_warning(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateWarningRequest *request = (const Covey__V1__UpdateWarningRequest *)message;
    struct change in = {.arena = rpc_arena(call), .uuid = request->uuid, .if_match = request->if_match};
    if (warning_status_parse(request->status, &in.status) != 0 || in.status == WARNING_RESOLVED) {
        return error_set(err, STATUS_PERMISSION_DENIED, "The status of a warning may only be set to \"acknowledged\" or \"new\"");
    }
    int status = daemon_write_call(call, "update", update_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, in.status == WARNING_NEW ? "warning-reset" : "warning-acknowledged", request->uuid);
    }
    return status;
}

static int delete_warning(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__DeleteWarningRequest *request = (const Covey__V1__DeleteWarningRequest *)message;
    struct change in = {.arena = rpc_arena(call), .uuid = request->uuid};
    int status = daemon_write_call(call, "delete", delete_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "warning-deleted", request->uuid);
    }
    return status;
}

static const struct rpc_binding bindings[] = {
    {"ListWarnings", list_warnings}, {"GetWarning", get_warning}, {"UpdateWarning", update_warning}, {"DeleteWarning", delete_warning},
};

void warnings_bind(void)
{
    rpc_bind("covey.v1.Warnings", bindings, sizeof bindings / sizeof *bindings, NULL);
}
