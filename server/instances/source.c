/* Image records for new instances, and names for those that come without. */
#include "source.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

bool source_is_image(const Covey__V1__InstanceSource *source)
{
    return strcmp(source->type, "image") == 0;
}

int source_check(const Covey__V1__InstanceSource *source, struct error *err)
{
    if (source == NULL || str_empty(source->type)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown source type ");
    }
    if (strcmp(source->type, "none") == 0) {
        return STATUS_OK;
    }
    if (strcmp(source->type, "copy") == 0 || strcmp(source->type, "migration") == 0) {
        return error_set(err, STATUS_UNIMPLEMENTED, "not implemented: source type \"%s\"", source->type);
    }
    if (!source_is_image(source)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown source type %.64s", source->type);
    }
    if (!str_empty(source->server)) {
        return error_set(err, STATUS_UNIMPLEMENTED, "not implemented: images of another server (copy the image first)");
    }
    return STATUS_OK;
}

static int by_alias(struct sql *sql, int64_t project, const char *alias, int64_t *id, struct error *err)
{
    int status = sql_get_int(sql, id, err, "SELECT image_id FROM images_aliases WHERE project_id = ?1 AND name = ?2", "is", project, alias);
    return status == STATUS_NOT_FOUND ? error_set(err, STATUS_NOT_FOUND, "Image alias not found") : status;
}

static int by_fingerprint(struct sql *sql, int64_t project, const char *given, int64_t *id, struct error *err)
{
    char prefix[65];
    size_t len = strlen(given);
    bool hex = len <= 64;
    for (size_t i = 0; i < len && hex; i++) {
        hex = isxdigit((unsigned char)given[i]) != 0;
        prefix[i] = (char)tolower((unsigned char)given[i]);
    }
    if (!hex) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Image not provided for instance creation");
    }
    prefix[len] = '\0';
    int64_t found = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id FROM images WHERE project_id = ?1 AND fingerprint >= ?2 AND substr(fingerprint, 1, ?3) = ?2 ORDER BY fingerprint LIMIT 2",
        "isi", project, prefix, (int64_t)len);
    while (sql_next(s)) {
        *id = sql_int(s, 0);
        found++;
    }
    int status = sql_done(s, err);
    if (status == STATUS_OK && found == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Image not provided for instance creation");
    }
    return status == STATUS_OK && found > 1 ? error_set(err, STATUS_INVALID_ARGUMENT, "Image fingerprint prefix matches more than one image") : status;
}

/* The newest image that has all of them. */
static int by_properties(struct sql *sql, int64_t project, const Covey__V1__InstanceSource *source, int64_t *id, struct error *err)
{
    int status = STATUS_OK;
    *id = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id FROM images WHERE project_id = ?1 ORDER BY creation_date DESC, id DESC", "i", project);
    while (*id == 0 && status == STATUS_OK && sql_next(s)) {
        bool all = true;
        for (size_t i = 0; i < source->n_properties && all && status == STATUS_OK; i++) {
            int64_t n = 0;
            status = sql_get_int(sql, &n, err, "SELECT count(*) FROM images_properties WHERE image_id = ?1 AND key = ?2 AND value = ?3", "iss", sql_int(s, 0),
                source->properties[i]->key, source->properties[i]->value);
            all = n > 0;
        }
        *id = all && status == STATUS_OK ? sql_int(s, 0) : 0;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    status = status == STATUS_OK ? done : status;
    return status == STATUS_OK && *id == 0 ? error_set(err, STATUS_NOT_FOUND, "Image not found") : status;
}

static int read_record(struct sql *sql, int64_t id, struct arena *arena, struct image_record *out, struct error *err)
{
    int64_t type = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT fingerprint, architecture, type FROM images WHERE id = ?1", "i", id);
    while (sql_next(s)) {
        snprintf(out->fingerprint, sizeof out->fingerprint, "%s", sql_text(s, 0));
        out->architecture = arena_strdup(arena, sql_text(s, 1));
        type = sql_int(s, 2);
    }
    int status = sql_done(s, err);
    if (status == STATUS_OK && type != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Requested image's type \"virtual-machine\" doesn't match instance type \"container\"");
    }
    if (status != STATUS_OK) {
        return status;
    }
    s = sql_query(sql, "SELECT key, value FROM images_properties WHERE image_id = ?1 ORDER BY key", "i", id);
    while (sql_next(s)) {
        settings_set(&out->properties, sql_text(s, 0), sql_text(s, 1), arena);
    }
    status = sql_done(s, err);
    if (status != STATUS_OK) {
        return status;
    }
    out->profile_ids = arena_alloc(arena, INSTANCE_PROFILES_MAX * sizeof *out->profile_ids);
    s = sql_query(sql, "SELECT profile_id FROM images_profiles JOIN profiles ON profiles.id = profile_id WHERE image_id = ?1 ORDER BY name LIMIT 64", "i", id);
    while (sql_next(s) && out->profile_count < INSTANCE_PROFILES_MAX) {
        out->profile_ids[out->profile_count++] = sql_int(s, 0);
    }
    return sql_done(s, err);
}

int image_find(struct sql *sql, int64_t project, const Covey__V1__InstanceSource *source, struct arena *arena, struct image_record *out, struct error *err)
{
    int status;
    *out = (struct image_record){0};
    project = project_of_feature(sql, project, "features.images");
    if (!str_empty(source->alias)) {
        status = by_alias(sql, project, source->alias, &out->id, err);
    } else if (!str_empty(source->fingerprint)) {
        status = by_fingerprint(sql, project, source->fingerprint, &out->id, err);
    } else if (source->n_properties > 0) {
        status = by_properties(sql, project, source, &out->id, err);
    } else {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Must specify one of alias, fingerprint or properties for init from image");
    }
    return status == STATUS_OK ? read_record(sql, out->id, arena, out, err) : status;
}

void name_make(char *out, size_t size)
{
    static const char *const first[] = {"amber", "ample", "apt", "brave", "brief", "bright", "calm", "clear", "clever", "cosy", "crisp", "deft", "dusty", "eager",
        "early", "fair", "fleet", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "hardy", "humble", "keen", "kind", "lively", "loyal", "lucky", "mellow",
        "merry", "mild", "misty", "modest", "neat", "nimble", "noble", "patient", "plain", "polite", "prime", "proud", "quick", "quiet", "rapid", "ready", "rosy",
        "round", "sharp", "silent", "smart", "snug", "solid", "steady", "sunny", "swift", "tidy", "tough", "vivid", "warm", "wise", "young"};
    static const char *const second[] = {"adder", "badger", "beaver", "bittern", "bream", "buzzard", "carp", "chough", "cod", "coot", "crane", "cuckoo", "curlew", "dace",
        "deer", "dipper", "dove", "duck", "dunlin", "eagle", "eel", "egret", "falcon", "ferret", "finch", "fox", "frog", "gannet", "goose", "gull", "hare", "hawk", "heron",
        "hobby", "hornet", "jay", "kestrel", "kite", "lark", "linnet", "lynx", "magpie", "marten", "merlin", "mole", "moth", "newt", "osprey", "otter", "owl", "perch", "pike",
        "plover", "raven", "robin", "rook", "shrike", "snipe", "stoat", "swan", "teal", "tern", "vole", "wren"};
    uint8_t random[2];
    random_bytes(random, sizeof random);
    snprintf(out, size, "%s-%s", first[random[0] % (sizeof first / sizeof *first)], second[random[1] % (sizeof second / sizeof *second)]);
}
