/* Image aliases: names (with "/" if wanted) of images of a project. All handlers run on the leader, on worker threads. */
#include "images.h"

#include "server/daemon/etag.h"
#include "server/daemon/mask.h"
#include "server/events/events.h"
#include <stdlib.h>
#include <string.h>

struct alias_work {
    struct arena *arena;
    const char *project, *name, *new_name, *target, *description, *if_match; /* target, description NULL = keep */
    bool public_only;
    Covey__V1__ImageAliasEntry **aliases;
    size_t count, capacity;
};

static int read_aliases(struct sql *sql, void *ud, struct error *err)
{
    struct alias_work *in = ud;
    int64_t project = 0, count = 0;
    int status = image_project(sql, in->project, &project, err);
    status = status == STATUS_OK ? sql_get_int(sql, &count, err, "SELECT count(*) FROM images_aliases WHERE project_id = ?1 AND (?2 IS NULL OR name = ?2)", "is", project, in->name)
                                 : status;
    if (status != STATUS_OK) {
        return status;
    }
    in->count = 0;
    in->aliases = arena_alloc(in->arena, ((size_t)count + 1) * sizeof *in->aliases);
    struct sql_stmt *s = sql_query(sql,
        "SELECT images_aliases.name, description, fingerprint FROM images_aliases JOIN images ON images.id = image_id"
        " WHERE images_aliases.project_id = ?1 AND (?2 IS NULL OR images_aliases.name = ?2) AND (?3 = 0 OR public = 1) ORDER BY 1",
        "iso", project, in->name, in->public_only);
    while (sql_next(s) && in->count < (size_t)count) {
        Covey__V1__ImageAliasEntry *alias = arena_alloc(in->arena, sizeof *alias);
        covey__v1__image_alias_entry__init(alias);
        alias->name = arena_strdup(in->arena, sql_text(s, 0));
        alias->description = arena_strdup(in->arena, sql_text(s, 1));
        alias->target = arena_strdup(in->arena, sql_text(s, 2));
        alias->type = arena_strdup(in->arena, "container");
        alias->etag = etag_make(in->arena, &alias->base, "description,target");
        in->aliases[in->count++] = alias;
    }
    return sql_done(s, err);
}

int alias_list(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListImageAliasesRequest *request = (const Covey__V1__ListImageAliasesRequest *)message;
    struct alias_work in = {.arena = rpc_arena(call), .project = project_or_default(request->project)};
    in.public_only = image_public_only(call, in.project);
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_aliases, &in, NULL, err);
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListImageAliasesResponse *out = arena_alloc(in.arena, sizeof *out);
    covey__v1__list_image_aliases_response__init(out);
    if (request->recursion > 0) {
        out->aliases = in.aliases;
        out->n_aliases = in.count;
    } else {
        out->urls = arena_alloc(in.arena, (in.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < in.count; i++) {
            out->urls[out->n_urls++] = image_url(in.arena, "images/aliases", in.aliases[i]->name, in.project);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int alias_missing(struct error *err)
{
    return error_set(err, STATUS_NOT_FOUND, "Image alias not found");
}

int alias_get(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetImageAliasRequest *request = (const Covey__V1__GetImageAliasRequest *)message;
    struct alias_work in = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->name};
    in.public_only = image_public_only(call, in.project);
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_aliases, &in, NULL, err);
    if (status == STATUS_OK && in.count == 0) {
        status = alias_missing(err);
    }
    if (status == STATUS_OK) {
        *response = &in.aliases[0]->base;
    }
    return status;
}

/* ---- writes ---- */

static void lifecycle(struct rpc_call *call, const char *action, const struct alias_work *in, const char *name, json_t *context)
{
    char *text = context != NULL ? json_dumps(context, JSON_COMPACT) : NULL;
    events_lifecycle(action, image_url(in->arena, "images/aliases", name, in->project), in->project, rpc_caller(call), text, NULL);
    free(text);
    json_decref(context);
}

static int create_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct alias_work *in = ud;
    int64_t project = 0, image = 0, taken = 0;
    int status = image_project(sql, in->project, &project, err);
    status = status == STATUS_OK ? sql_get_int(sql, &taken, err, "SELECT count(*) FROM images_aliases WHERE project_id = ?1 AND name = ?2", "is", project, in->name) : status;
    if (status == STATUS_OK && taken > 0) {
        return error_set(err, STATUS_ALREADY_EXISTS, "Alias \"%s\" already exists", in->name);
    }
    status = status == STATUS_OK ? image_row_find(sql, project, in->target, false, &image, err) : status;
    return status == STATUS_OK ? image_alias_insert(sql, project, image, in->name, in->description, err) : status;
}

int alias_create(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__CreateImageAliasRequest *request = (const Covey__V1__CreateImageAliasRequest *)message;
    struct alias_work in = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->name, .target = request->target,
        .description = request->description};
    if (image_allowed(call, in.project, err) != STATUS_OK || image_alias_check(in.name, in.description, err) != STATUS_OK) {
        return err->code;
    }
    if (str_empty(in.target)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No target provided");
    }
    if (!str_empty(request->type) && strcmp(request->type, "container") != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid image type \"%.32s\": only \"container\" is supported", request->type);
    }
    int status = daemon_write_call(call, "create", create_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "image-alias-created", &in, in.name, json_pack("{s:s}", "target", in.target));
    }
    return status;
}

static int find_alias(struct sql *sql, struct alias_work *in, int64_t *project, int64_t *id, struct error *err)
{
    int status = image_project(sql, in->project, project, err);
    if (status != STATUS_OK) {
        return status;
    }
    status = sql_get_int(sql, id, err, "SELECT id FROM images_aliases WHERE project_id = ?1 AND name = ?2", "is", *project, in->name);
    return status == STATUS_NOT_FOUND ? alias_missing(err) : status;
}

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct alias_work *in = ud;
    int64_t project = 0, id = 0, image = 0;
    int status = find_alias(sql, in, &project, &id, err);
    if (status == STATUS_OK && !str_empty(in->if_match)) {
        status = read_aliases(sql, in, err);
        status = status == STATUS_OK && in->count == 1 ? etag_check(in->if_match, in->aliases[0]->etag, err) : status;
    }
    if (status == STATUS_OK && in->target != NULL) {
        status = image_row_find(sql, project, in->target, false, &image, err);
        status = status == STATUS_OK ? sql_exec(sql, err, "UPDATE images_aliases SET image_id = ?2 WHERE id = ?1", "ii", id, image) : status;
    }
    return status == STATUS_OK && in->description != NULL ? sql_exec(sql, err, "UPDATE images_aliases SET description = ?2 WHERE id = ?1", "is", id, in->description) : status;
}

int alias_update(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateImageAliasRequest *request = (const Covey__V1__UpdateImageAliasRequest *)message;
    struct alias_work in = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->name, .if_match = request->if_match,
        .target = mask_has(request->update_mask, "target") ? request->target : NULL,
        .description = mask_has(request->update_mask, "description") ? request->description : NULL};
    if (image_allowed(call, in.project, err) != STATUS_OK || (in.description != NULL && image_alias_check("x", in.description, err) != STATUS_OK)) {
        return err->code;
    }
    if (in.target != NULL && in.target[0] == '\0') {
        return error_set(err, STATUS_INVALID_ARGUMENT, "The target field is required");
    }
    int status = daemon_write_call(call, "update", update_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "image-alias-updated", &in, in.name, NULL);
    }
    return status;
}

static int rename_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct alias_work *in = ud;
    int64_t project = 0, id = 0;
    int status = find_alias(sql, in, &project, &id, err);
    status = status == STATUS_OK ? sql_exec(sql, err, "UPDATE images_aliases SET name = ?2 WHERE id = ?1", "is", id, in->new_name) : status;
    return status == STATUS_ALREADY_EXISTS ? error_set(err, STATUS_ALREADY_EXISTS, "Alias \"%s\" already exists", in->new_name) : status;
}

int alias_rename(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__RenameImageAliasRequest *request = (const Covey__V1__RenameImageAliasRequest *)message;
    struct alias_work in = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->old_name, .new_name = request->name};
    if (image_allowed(call, in.project, err) != STATUS_OK || image_alias_check(in.new_name, "", err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_write_call(call, "rename", rename_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "image-alias-renamed", &in, in.new_name, json_pack("{s:s}", "old_name", in.name));
    }
    return status;
}

static int delete_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct alias_work *in = ud;
    int64_t project = 0, id = 0;
    int status = find_alias(sql, in, &project, &id, err);
    return status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM images_aliases WHERE id = ?1", "i", id) : status;
}

int alias_delete(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__DeleteImageAliasRequest *request = (const Covey__V1__DeleteImageAliasRequest *)message;
    struct alias_work in = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->name};
    if (image_allowed(call, in.project, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_write_call(call, "delete", delete_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "image-alias-deleted", &in, in.name, NULL);
    }
    return status;
}
