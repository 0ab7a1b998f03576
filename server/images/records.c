/* Rows of images: finding, loading, storing parts. Everything runs inside the caller's transaction. */
#include "images.h"

#include "server/daemon/etag.h"
#include <stdlib.h>
#include <string.h>

enum { NS_PER_S = 1000000000 };

int image_project(struct sql *sql, const char *project, int64_t *id, struct error *err)
{
    char *value = NULL;
    bool own = true;
    int status = project_id(sql, project, id, err);
    if (status == STATUS_OK) {
        status = sql_get_text(sql, &value, err, "SELECT value FROM projects_config WHERE project_id = ?1 AND key = 'features.images'", "i", *id);
        status = status == STATUS_NOT_FOUND ? STATUS_OK : status;
    }
    if (status == STATUS_OK && value != NULL && parse_bool(value, &own) == 0 && !own) {
        status = project_id(sql, "default", id, err);
    }
    free(value);
    return status;
}

int image_row_find(struct sql *sql, int64_t project, const char *prefix, bool public_only, int64_t *id, struct error *err)
{
    size_t len = strlen(prefix), found = 0;
    bool exact = false;
    if (len == 0 || len > 64 || strspn(prefix, "0123456789abcdef") != len) {
        return error_set(err, STATUS_NOT_FOUND, "Image not found");
    }
    struct sql_stmt *s = sql_query(sql, "SELECT id FROM images WHERE project_id = ?1 AND substr(fingerprint, 1, ?2) = ?3 AND (?4 = 0 OR public = 1) LIMIT 2", "iiso", project,
        (int64_t)len, prefix, public_only);
    while (sql_next(s)) {
        *id = sql_int(s, 0);
        found++;
    }
    exact = found == 1;
    if (sql_done(s, err) != STATUS_OK) {
        return err != NULL ? (int)err->code : STATUS_INTERNAL;
    }
    return exact        ? STATUS_OK
           : found == 0 ? error_set(err, STATUS_NOT_FOUND, "Image not found")
                        : error_set(err, STATUS_INVALID_ARGUMENT, "Partial fingerprint \"%s\" matches more than one image", prefix);
}

Google__Protobuf__Timestamp *image_timestamp(int64_t ns, struct arena *arena)
{
    if (ns == 0) {
        return NULL;
    }
    Google__Protobuf__Timestamp *time = arena_alloc(arena, sizeof *time);
    google__protobuf__timestamp__init(time);
    time->seconds = ns / NS_PER_S - (ns % NS_PER_S < 0);
    time->nanos = (int32_t)(ns - time->seconds * NS_PER_S);
    return time;
}

int image_time(const Google__Protobuf__Timestamp *time, const char *field, int64_t *ns, struct error *err)
{
    *ns = 0;
    if (time == NULL) {
        return STATUS_OK;
    }
    if (time->seconds < 0 || time->seconds >= INT64_MAX / NS_PER_S || time->nanos < 0 || time->nanos >= NS_PER_S) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "%s must be between the years 1970 and 2261", field);
    }
    *ns = time->seconds * NS_PER_S + time->nanos;
    return STATUS_OK;
}

int image_properties_check(const char *key, const char *value, struct error *err)
{
    if (key[0] == '\0' || strlen(key) > IMAGE_ALIAS_BYTES_MAX || strlen(value) > IMAGE_TEXT_BYTES_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid image property \"%.64s\": a key of 1 to %d bytes, a value of at most %d", key, IMAGE_ALIAS_BYTES_MAX,
            IMAGE_TEXT_BYTES_MAX);
    }
    return STATUS_OK;
}

int image_store_property(struct sql *sql, int64_t image, const char *key, const char *value, struct error *err)
{
    if (str_empty(value)) {
        return sql_exec(sql, err, "DELETE FROM images_properties WHERE image_id = ?1 AND key = ?2", "is", image, key);
    }
    return sql_exec(sql, err, "INSERT INTO images_properties (image_id, key, value) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
        "iss", image, key, value);
}

int image_alias_check(const char *name, const char *description, struct error *err)
{
    if (name[0] == '\0') {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No name provided");
    }
    if (strlen(name) > IMAGE_ALIAS_BYTES_MAX || strlen(description) > IMAGE_TEXT_BYTES_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid alias \"%.64s\": a name of at most %d bytes, a description of at most %d", name, IMAGE_ALIAS_BYTES_MAX,
            IMAGE_TEXT_BYTES_MAX);
    }
    return STATUS_OK;
}

int image_alias_insert(struct sql *sql, int64_t project, int64_t image, const char *name, const char *description, struct error *err)
{
    int status = sql_exec(sql, err, "INSERT INTO images_aliases (project_id, name, image_id, description) VALUES (?1, ?2, ?3, ?4)", "isis", project, name, image, description);
    return status == STATUS_ALREADY_EXISTS ? error_set(err, STATUS_ALREADY_EXISTS, "Alias \"%s\" already exists", name) : status;
}

/* ---- loading ---- */

static int load_properties(struct sql *sql, int64_t id, Covey__V1__Image *image, struct arena *arena, struct error *err)
{
    int64_t count = 0;
    if (sql_get_int(sql, &count, err, "SELECT count(*) FROM images_properties WHERE image_id = ?1", "i", id) != STATUS_OK) {
        return err != NULL ? (int)err->code : STATUS_INTERNAL;
    }
    image->properties = arena_alloc(arena, ((size_t)count + 1) * sizeof *image->properties);
    struct sql_stmt *s = sql_query(sql, "SELECT key, value FROM images_properties WHERE image_id = ?1 ORDER BY key", "i", id);
    while (sql_next(s) && image->n_properties < (size_t)count) {
        Covey__V1__Image__PropertiesEntry *entry = arena_alloc(arena, sizeof *entry);
        covey__v1__image__properties_entry__init(entry);
        entry->key = arena_strdup(arena, sql_text(s, 0));
        entry->value = arena_strdup(arena, sql_text(s, 1));
        image->properties[image->n_properties++] = entry;
    }
    return sql_done(s, err);
}

static int load_aliases(struct sql *sql, int64_t id, Covey__V1__Image *image, struct arena *arena, struct error *err)
{
    int64_t count = 0;
    if (sql_get_int(sql, &count, err, "SELECT count(*) FROM images_aliases WHERE image_id = ?1", "i", id) != STATUS_OK) {
        return err != NULL ? (int)err->code : STATUS_INTERNAL;
    }
    image->aliases = arena_alloc(arena, ((size_t)count + 1) * sizeof *image->aliases);
    struct sql_stmt *s = sql_query(sql, "SELECT name, description FROM images_aliases WHERE image_id = ?1 ORDER BY name", "i", id);
    while (sql_next(s) && image->n_aliases < (size_t)count) {
        Covey__V1__ImageAlias *alias = arena_alloc(arena, sizeof *alias);
        covey__v1__image_alias__init(alias);
        alias->name = arena_strdup(arena, sql_text(s, 0));
        alias->description = arena_strdup(arena, sql_text(s, 1));
        image->aliases[image->n_aliases++] = alias;
    }
    return sql_done(s, err);
}

static int load_profiles(struct sql *sql, int64_t id, Covey__V1__Image *image, struct arena *arena, struct error *err)
{
    int64_t count = 0;
    if (sql_get_int(sql, &count, err, "SELECT count(*) FROM images_profiles WHERE image_id = ?1", "i", id) != STATUS_OK) {
        return err != NULL ? (int)err->code : STATUS_INTERNAL;
    }
    image->profiles = arena_alloc(arena, ((size_t)count + 1) * sizeof *image->profiles);
    struct sql_stmt *s = sql_query(sql, "SELECT name FROM images_profiles JOIN profiles ON profiles.id = profile_id WHERE image_id = ?1 ORDER BY images_profiles.rowid", "i", id);
    while (sql_next(s) && image->n_profiles < (size_t)count) {
        image->profiles[image->n_profiles++] = arena_strdup(arena, sql_text(s, 0));
    }
    return sql_done(s, err);
}

int image_load(struct sql *sql, int64_t id, Covey__V1__Image **out, struct arena *arena, struct error *err)
{
    Covey__V1__Image *image = arena_alloc(arena, sizeof *image);
    covey__v1__image__init(image);
    struct sql_stmt *s = sql_query(sql,
        "SELECT fingerprint, filename, size, public, auto_update, cached, architecture, creation_date, expiry_date, upload_date, last_use_date FROM images WHERE id = ?1", "i", id);
    bool found = sql_next(s);
    if (found) {
        image->fingerprint = arena_strdup(arena, sql_text(s, 0));
        image->filename = arena_strdup(arena, sql_text(s, 1));
        image->size = sql_int(s, 2);
        image->public_ = sql_int(s, 3) != 0;
        image->auto_update = sql_int(s, 4) != 0;
        image->cached = sql_int(s, 5) != 0;
        image->architecture = arena_strdup(arena, sql_text(s, 6));
        image->type = arena_strdup(arena, "container");
        image->created_at = image_timestamp(sql_int(s, 7), arena);
        image->expires_at = image_timestamp(sql_int(s, 8), arena);
        image->uploaded_at = image_timestamp(sql_int(s, 9), arena);
        image->last_used_at = image_timestamp(sql_int(s, 10), arena);
    }
    int status = sql_done(s, err);
    status = status == STATUS_OK && !found ? error_set(err, STATUS_NOT_FOUND, "Image not found") : status;
    status = status == STATUS_OK ? load_properties(sql, id, image, arena, err) : status;
    status = status == STATUS_OK ? load_aliases(sql, id, image, arena, err) : status;
    status = status == STATUS_OK ? load_profiles(sql, id, image, arena, err) : status;
    image->etag = etag_make(arena, &image->base, "auto_update,properties,public,expires_at,profiles");
    *out = image;
    return status;
}
