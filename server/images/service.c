/* covey.v1.Images: records as clients see them. Handlers run on the leader, on worker threads; upload.c has those of the receiving member, copies.c the
 * operations, aliases.c the aliases. */
#include "images.h"

#include "server/daemon/etag.h"
#include "server/daemon/filter.h"
#include "server/daemon/mask.h"
#include "server/events/events.h"
#include "server/services.h"
#include <stdlib.h>
#include <string.h>

char *image_url(struct arena *arena, const char *noun, const char *name, const char *project)
{
    struct buf url = {0};
    buf_printf(&url, "/1.0/%s/", noun);
    for (const char *c = name; *c != '\0'; c++) {
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || strchr("-_.~", *c) != NULL;
        buf_printf(&url, plain ? "%c" : "%%%02X", (unsigned char)*c);
    }
    if (strcmp(project, "default") != 0) {
        buf_printf(&url, "?project=%s", project);
    }
    char *copy = arena_strdup(arena, url.data);
    buf_free(&url);
    return copy;
}

static bool in_project(const struct caller *caller, const char *project)
{
    for (size_t i = 0; caller->restricted && caller->projects != NULL && caller->projects[i] != NULL; i++) {
        if (strcmp(caller->projects[i], project) == 0) {
            return true;
        }
    }
    return !caller->restricted;
}

int image_allowed(struct rpc_call *call, const char *project, struct error *err)
{
    return in_project(rpc_caller(call), project) ? STATUS_OK : error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
}

bool image_public_only(struct rpc_call *call, const char *project)
{
    const struct caller *caller = rpc_caller(call);
    return caller->class == CALLER_NONE || !in_project(caller, project);
}

/* ---- reading ---- */

struct lookup {
    struct arena *arena;
    const char *project;
    const char *prefix; /* one image */
    bool public_only, full;
    Covey__V1__Image **images;
    size_t count;
};

static int read_one(struct sql *sql, void *ud, struct error *err)
{
    struct lookup *in = ud;
    int64_t project = 0, id = 0;
    int status = image_project(sql, in->project, &project, err);
    in->images = arena_alloc(in->arena, sizeof *in->images);
    status = status == STATUS_OK ? image_row_find(sql, project, in->prefix, in->public_only, &id, err) : status;
    return status == STATUS_OK ? image_load(sql, id, &in->images[0], in->arena, err) : status;
}

static int read_all(struct sql *sql, void *ud, struct error *err)
{
    struct lookup *in = ud;
    int64_t project = 0, count = 0;
    int status = image_project(sql, in->project, &project, err);
    status = status == STATUS_OK ? sql_get_int(sql, &count, err, "SELECT count(*) FROM images WHERE project_id = ?1", "i", project) : status;
    if (status == STATUS_OK && count > IMAGES_MAX) {
        status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d images", IMAGES_MAX);
    }
    if (status != STATUS_OK) {
        return status;
    }
    in->images = arena_alloc(in->arena, ((size_t)count + 1) * sizeof *in->images);
    struct sql_stmt *s = sql_query(sql, "SELECT id, fingerprint FROM images WHERE project_id = ?1 AND (?2 = 0 OR public = 1) ORDER BY fingerprint", "io", project, in->public_only);
    while (status == STATUS_OK && sql_next(s) && in->count < (size_t)count) {
        if (in->full) {
            status = image_load(sql, sql_int(s, 0), &in->images[in->count], in->arena, err);
        } else {
            in->images[in->count] = arena_alloc(in->arena, sizeof **in->images);
            covey__v1__image__init(in->images[in->count]);
            in->images[in->count]->fingerprint = arena_strdup(in->arena, sql_text(s, 1));
        }
        in->count++;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

/* Keeps what matches; the images are loaded in full. */
static int apply_filter(const char *text, struct lookup *in, struct error *err)
{
    struct filter *filter = NULL;
    size_t kept = 0;
    int status = filter_parse(text, &filter, err);
    for (size_t i = 0; i < in->count && status == STATUS_OK; i++) {
        if (filter_match_message(filter, &in->images[i]->base)) {
            in->images[kept++] = in->images[i];
        }
    }
    in->count = kept;
    filter_free(filter);
    return status;
}

static int list_images(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListImagesRequest *request = (const Covey__V1__ListImagesRequest *)message;
    struct lookup in = {.arena = rpc_arena(call), .project = project_or_default(request->project), .full = request->recursion > 0 || !str_empty(request->filter)};
    in.public_only = image_public_only(call, in.project);
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_all, &in, NULL, err);
    status = status == STATUS_OK && !str_empty(request->filter) ? apply_filter(request->filter, &in, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListImagesResponse *out = arena_alloc(in.arena, sizeof *out);
    covey__v1__list_images_response__init(out);
    if (request->recursion > 0) {
        out->images = in.images;
        out->n_images = in.count;
    } else {
        out->urls = arena_alloc(in.arena, (in.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < in.count; i++) {
            out->urls[out->n_urls++] = image_url(in.arena, "images", in.images[i]->fingerprint, in.project);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int get_image(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetImageRequest *request = (const Covey__V1__GetImageRequest *)message;
    struct lookup in = {.arena = rpc_arena(call), .project = project_or_default(request->project), .prefix = request->fingerprint};
    in.public_only = image_public_only(call, in.project);
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_one, &in, NULL, err);
    if (status == STATUS_OK) {
        *response = &in.images[0]->base;
    }
    return status;
}

/* ---- update ---- */

struct update {
    const Covey__V1__UpdateImageRequest *request;
    struct arena *arena;
    const char *project;
    bool patch;
    int64_t expires_ns;
    char *fingerprint; /* out: in full */
};

/* PUT: exactly these; PATCH: on top of what is there. */
static int store_properties(struct sql *sql, const struct update *in, int64_t id, const Covey__V1__Image *now, struct error *err)
{
    const Covey__V1__UpdateImageRequest *request = in->request;
    int64_t count = 0;
    int status = STATUS_OK;
    for (size_t i = 0; i < now->n_properties && !in->patch && status == STATUS_OK; i++) {
        bool kept = false;
        for (size_t k = 0; k < request->n_properties && !kept; k++) {
            kept = strcmp(request->properties[k]->key, now->properties[i]->key) == 0;
        }
        status = kept ? STATUS_OK : image_store_property(sql, id, now->properties[i]->key, NULL, err);
    }
    for (size_t k = 0; k < request->n_properties && status == STATUS_OK; k++) {
        status = image_store_property(sql, id, request->properties[k]->key, request->properties[k]->value, err);
    }
    status = status == STATUS_OK ? sql_get_int(sql, &count, err, "SELECT count(*) FROM images_properties WHERE image_id = ?1", "i", id) : status;
    return status == STATUS_OK && count > IMAGE_PROPERTIES_COUNT_MAX
               ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d properties of an image", IMAGE_PROPERTIES_COUNT_MAX)
               : status;
}

static int store_profiles(struct sql *sql, const struct update *in, int64_t id, struct error *err)
{
    int64_t project = 0;
    int status = project_id(sql, in->project, &project, err);
    status = status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM images_profiles WHERE image_id = ?1", "i", id) : status;
    for (size_t i = 0; i < in->request->n_profiles && status == STATUS_OK; i++) {
        int64_t profile = 0;
        status = sql_get_int(sql, &profile, err, "SELECT id FROM profiles WHERE project_id = ?1 AND name = ?2", "is", project, in->request->profiles[i]);
        if (status == STATUS_NOT_FOUND) {
            return error_set(err, STATUS_NOT_FOUND, "Fetch profile: Profile not found");
        }
        status = status == STATUS_OK ? sql_exec(sql, err, "INSERT OR IGNORE INTO images_profiles (image_id, profile_id) VALUES (?1, ?2)", "ii", id, profile) : status;
    }
    return status;
}

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct update *in = ud;
    const Covey__V1__UpdateImageRequest *request = in->request;
    int64_t project = 0, id = 0;
    Covey__V1__Image *now = NULL;
    int status = image_project(sql, in->project, &project, err);
    status = status == STATUS_OK ? image_row_find(sql, project, request->fingerprint, false, &id, err) : status;
    status = status == STATUS_OK ? image_load(sql, id, &now, in->arena, err) : status;
    status = status == STATUS_OK ? etag_check(request->if_match, now->etag, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    buf_puts(result, now->fingerprint);
    if (mask_has(request->update_mask, "auto_update")) {
        status = sql_exec(sql, err, "UPDATE images SET auto_update = ?2 WHERE id = ?1", "io", id, request->auto_update);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "public")) {
        status = sql_exec(sql, err, "UPDATE images SET public = ?2 WHERE id = ?1", "io", id, request->public_);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "expires_at")) {
        status = sql_exec(sql, err, "UPDATE images SET expiry_date = ?2 WHERE id = ?1", "ii", id, in->expires_ns);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "properties")) {
        status = store_properties(sql, in, id, now, err);
    }
    return status == STATUS_OK && mask_has(request->update_mask, "profiles") ? store_profiles(sql, in, id, err) : status;
}

static int update_image(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateImageRequest *request = (const Covey__V1__UpdateImageRequest *)message;
    struct update in = {.request = request, .arena = rpc_arena(call), .project = project_or_default(request->project), .patch = request->update_mask != NULL};
    if (image_allowed(call, in.project, err) != STATUS_OK || image_time(request->expires_at, "expires_at", &in.expires_ns, err) != STATUS_OK) {
        return err->code;
    }
    for (size_t i = 0; i < request->n_properties; i++) {
        if (image_properties_check(request->properties[i]->key, request->properties[i]->value, err) != STATUS_OK) {
            return err->code;
        }
    }
    struct buf fingerprint = {0};
    int status = daemon_write_call(call, "update", update_write, &in, &fingerprint, NULL, err);
    if (status == STATUS_OK) {
        events_lifecycle("image-updated", image_url(in.arena, "images", fingerprint.len > 0 ? fingerprint.data : request->fingerprint, in.project), in.project,
            rpc_caller(call), NULL, NULL);
    }
    buf_free(&fingerprint);
    return status;
}

static struct rpc_binding bindings[] = {
    {"ListImages", list_images},       {"GetImage", get_image},           {"UploadImage", NULL},
    {"UpdateImage", update_image},     {"DeleteImage", image_delete},     {"ExportImage", NULL},
    {"ListImageAliases", alias_list},  {"GetImageAlias", alias_get},      {"CreateImageAlias", alias_create},
    {"UpdateImageAlias", alias_update}, {"RenameImageAlias", alias_rename}, {"DeleteImageAlias", alias_delete},
};

void images_bind(void)
{
    enum { UPLOAD = 2, EXPORT = 5 };
    bindings[UPLOAD].handler = image_upload_handler();
    bindings[EXPORT].handler = image_export_handler();
    rpc_bind("covey.v1.Images", bindings, sizeof bindings / sizeof *bindings, NULL);
    image_copies_bind();
}
