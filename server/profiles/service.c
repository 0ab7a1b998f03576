/* covey.v1.Profiles: named sets of configuration and devices. All handlers run on the leader, on worker threads. */
#include "covey/v1/profile.pb-c.h"
#include "server/daemon/etag.h"
#include "server/daemon/mask.h"
#include "server/events/events.h"
#include "server/instances/rules.h"
#include "server/instances/settings.h"
#include "server/networks/devices.h"
#include "server/services.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { PROFILES_MAX = 10000 };

struct work {
    struct arena *arena;
    const char *project, *name, *new_name, *if_match;
    const char *description; /* NULL = keep */
    bool patch;
    struct spec spec;
    bool full; /* objects, not only names */
    Covey__V1__Profile **profiles;
    size_t count;
};

static void profile_url(struct buf *out, const char *noun, const char *name, const char *project)
{
    buf_printf(out, "/1.0/%s/%s", noun, name);
    if (strcmp(project, "default") != 0) {
        buf_printf(out, "?project=%s", project);
    }
}

static int fill_used_by(struct sql *sql, struct arena *arena, int64_t id, Covey__V1__Profile *profile, struct error *err)
{
    size_t capacity = 0;
    struct sql_stmt *s = sql_query(sql,
        "SELECT instances.name, projects.name FROM instances_profiles JOIN instances ON instances.id = instance_id JOIN projects ON projects.id = project_id"
        " WHERE profile_id = ?1 ORDER BY 2, 1", "i", id);
    while (sql_next(s)) {
        if (profile->n_used_by == capacity) {
            capacity = capacity > 0 ? capacity * 2 : 16;
            char **grown = arena_alloc(arena, capacity * sizeof *grown);
            if (profile->n_used_by > 0) {
                memcpy(grown, profile->used_by, profile->n_used_by * sizeof *grown);
            }
            profile->used_by = grown;
        }
        struct buf url = {0};
        profile_url(&url, "instances", sql_text(s, 0), sql_text(s, 1));
        profile->used_by[profile->n_used_by++] = arena_strdup(arena, url.data);
        buf_free(&url);
    }
    return sql_done(s, err);
}

static int fill_profile(struct sql *sql, struct arena *arena, int64_t id, Covey__V1__Profile *profile, struct error *err)
{
    struct spec spec = {0};
    int status = spec_load(sql, "profile", id, &spec, arena, err);
    profile->config = settings_to_map(&spec.config, &covey__v1__profile__config_entry__descriptor, &profile->n_config, arena);
    profile->devices = devices_to_map(&spec.devices, &covey__v1__profile__devices_entry__descriptor, &profile->n_devices, arena);
    status = status == STATUS_OK ? fill_used_by(sql, arena, id, profile, err) : status;
    profile->etag = etag_make(arena, &profile->base, "config,description,devices");
    return status;
}

static int read_profiles(struct sql *sql, void *ud, struct error *err)
{
    struct work *work = ud;
    int64_t project = 0;
    int status = project_id(sql, work->project, &project, err);
    if (status != STATUS_OK) {
        return status;
    }
    work->profiles = arena_alloc(work->arena, (work->name != NULL ? 1 : PROFILES_MAX) * sizeof *work->profiles);
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, description FROM profiles WHERE project_id = ?1 AND (?2 IS NULL OR name = ?2) ORDER BY name LIMIT 10001", "is", project,
        work->name);
    while (status == STATUS_OK && sql_next(s)) {
        if (work->count == PROFILES_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d profiles", PROFILES_MAX);
            break;
        }
        Covey__V1__Profile *profile = arena_alloc(work->arena, sizeof *profile);
        covey__v1__profile__init(profile);
        profile->name = arena_strdup(work->arena, sql_text(s, 1));
        profile->description = arena_strdup(work->arena, sql_text(s, 2));
        if (work->full) {
            status = fill_profile(sql, work->arena, sql_int(s, 0), profile, err);
        }
        work->profiles[work->count++] = profile;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

static int allowed(struct rpc_call *call, const char *project, struct error *err)
{
    const struct caller *caller = rpc_caller(call);
    for (size_t i = 0; caller->restricted && caller->projects != NULL && caller->projects[i] != NULL; i++) {
        if (strcmp(caller->projects[i], project) == 0) {
            return STATUS_OK;
        }
    }
    return caller->restricted ? error_set(err, STATUS_PERMISSION_DENIED, "not authorized") : STATUS_OK;
}

static int list_profiles(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListProfilesRequest *request = (const Covey__V1__ListProfilesRequest *)message;
    struct work work = {.arena = rpc_arena(call), .project = project_or_default(request->project), .full = request->recursion > 0};
    int status = allowed(call, work.project, err);
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_profiles, &work, NULL, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListProfilesResponse *out = arena_alloc(work.arena, sizeof *out);
    covey__v1__list_profiles_response__init(out);
    if (work.full) {
        out->profiles = work.profiles;
        out->n_profiles = work.count;
    } else {
        out->urls = arena_alloc(work.arena, (work.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < work.count; i++) {
            struct buf url = {0};
            profile_url(&url, "profiles", work.profiles[i]->name, work.project);
            out->urls[out->n_urls++] = arena_strdup(work.arena, url.data);
            buf_free(&url);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int not_found(struct error *err)
{
    return error_set(err, STATUS_NOT_FOUND, "Fetch profile: Profile not found");
}

static int get_profile(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetProfileRequest *request = (const Covey__V1__GetProfileRequest *)message;
    struct work work = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->name, .full = true};
    int status = allowed(call, work.project, err);
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_profiles, &work, NULL, err) : status;
    if (status == STATUS_OK && work.count == 0) {
        status = not_found(err);
    }
    if (status == STATUS_OK) {
        *response = &work.profiles[0]->base;
    }
    return status;
}

/* ---- writes ---- */

static int find_profile(struct sql *sql, struct work *work, int64_t *id, struct error *err)
{
    int64_t project = 0;
    int status = project_id(sql, work->project, &project, err);
    if (status == STATUS_OK) {
        status = sql_get_int(sql, id, err, "SELECT id FROM profiles WHERE project_id = ?1 AND name = ?2", "is", project, work->name);
    }
    return status == STATUS_NOT_FOUND && str_prefix(err->text, "Project") == false ? not_found(err) : status;
}

static int create_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct work *work = ud;
    int64_t project = 0;
    int status = project_id(sql, work->project, &project, err);
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "INSERT INTO profiles (project_id, name, description) VALUES (?1, ?2, ?3)", "iss", project, work->name, work->description);
    }
    if (status == STATUS_ALREADY_EXISTS) {
        return error_set(err, STATUS_ALREADY_EXISTS, "Error inserting \"%s\" into database: The profile already exists", work->name);
    }
    int64_t id = status == STATUS_OK ? sql_last_id(sql) : 0;
    status = status == STATUS_OK ? networks_check_devices(sql, &work->spec.devices, 0, err) : status;
    return status == STATUS_OK ? spec_store(sql, "profile", id, &work->spec, work->arena, err) : status;
}

static void lifecycle(struct rpc_call *call, const char *action, const struct work *work, const char *name, const char *context)
{
    struct buf source = {0};
    profile_url(&source, "profiles", name, work->project);
    events_lifecycle(action, source.data, work->project, rpc_caller(call), context, NULL);
    buf_free(&source);
}

static int create_profile(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__CreateProfileRequest *request = (const Covey__V1__CreateProfileRequest *)message;
    struct work work = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->name, .description = request->description};
    settings_from_map(&work.spec.config, request->config, request->n_config, work.arena);
    devices_from_map(&work.spec.devices, request->devices, request->n_devices, work.arena);
    if (allowed(call, work.project, err) != STATUS_OK || object_name_check("profile", work.name, err) != STATUS_OK || config_check(&work.spec.config, true, err) != STATUS_OK ||
        device_set_check(&work.spec.devices, false, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_write_call(call, "create", create_write, &work, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "profile-created", &work, work.name, NULL);
    }
    return status;
}

/* The profile as it will be: checked against what its instances need. */
static int check_users(struct sql *sql, int64_t id, const struct spec *next, struct error *err)
{
    int64_t users = 0;
    struct arena arena;
    struct spec now = {0};
    arena_init(&arena);
    int status = sql_get_int(sql, &users, err, "SELECT count(*) FROM instances_profiles WHERE profile_id = ?1", "i", id);
    if (status == STATUS_OK && users > 0) {
        status = spec_load(sql, "profile", id, &now, &arena, err);
    }
    for (size_t i = 0; i < now.devices.count && status == STATUS_OK; i++) {
        const struct settings *old = &now.devices.items[i].options;
        if (!str_eq(settings_get(old, "type"), "disk") || !str_eq(settings_get(old, "path"), "/")) {
            continue;
        }
        const struct device_settings *device = devices_find(&next->devices, now.devices.items[i].name);
        if (device == NULL || !str_eq(settings_get(&device->options, "pool"), settings_get(old, "pool"))) {
            status = error_set(err, STATUS_FAILED_PRECONDITION, "At least one instance relies on this profile's root disk device");
        }
    }
    arena_clear(&arena);
    return status;
}

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct work *work = ud;
    int64_t id = 0;
    int status = find_profile(sql, work, &id, err);
    if (status != STATUS_OK) {
        return status;
    }
    if (!str_empty(work->if_match)) {
        struct work current = {.arena = work->arena, .project = work->project, .name = work->name, .full = true};
        status = read_profiles(sql, &current, err);
        status = status == STATUS_OK ? etag_check(work->if_match, current.profiles[0]->etag, err) : status;
    }
    struct spec next = {0};
    if (status == STATUS_OK && work->patch) {
        status = spec_load(sql, "profile", id, &next, work->arena, err);
    }
    if (status == STATUS_OK) {
        spec_overlay(&next, &work->spec, work->arena);
        status = check_users(sql, id, &next, err);
        status = status == STATUS_OK ? networks_check_devices(sql, &work->spec.devices, 0, err) : status;
    }
    if (status == STATUS_OK && work->description != NULL) {
        status = sql_exec(sql, err, "UPDATE profiles SET description = ?2 WHERE id = ?1 AND description <> ?2", "is", id, work->description);
    }
    return status == STATUS_OK ? spec_store(sql, "profile", id, &next, work->arena, err) : status;
}

static int update_profile(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateProfileRequest *request = (const Covey__V1__UpdateProfileRequest *)message;
    struct work work = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->name, .if_match = request->if_match,
        .patch = request->update_mask != NULL, .description = mask_has(request->update_mask, "description") ? request->description : NULL};
    settings_from_map(&work.spec.config, request->config, request->n_config, work.arena);
    devices_from_map(&work.spec.devices, request->devices, request->n_devices, work.arena);
    if (allowed(call, work.project, err) != STATUS_OK || config_check(&work.spec.config, true, err) != STATUS_OK || device_set_check(&work.spec.devices, false, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_write_call(call, "update", update_write, &work, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "profile-updated", &work, work.name, NULL);
    }
    return status;
}

static int rename_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct work *work = ud;
    int64_t id = 0;
    int status = find_profile(sql, work, &id, err);
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "UPDATE profiles SET name = ?2 WHERE id = ?1", "is", id, work->new_name);
    }
    return status == STATUS_ALREADY_EXISTS ? error_set(err, STATUS_ALREADY_EXISTS, "Name \"%s\" already in use", work->new_name) : status;
}

static int rename_profile(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__RenameProfileRequest *request = (const Covey__V1__RenameProfileRequest *)message;
    struct work work = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->old_name, .new_name = request->name};
    if (allowed(call, work.project, err) != STATUS_OK || object_name_check("profile", work.new_name, err) != STATUS_OK) {
        return err->code;
    }
    if (strcmp(work.name, "default") == 0) {
        return error_set(err, STATUS_PERMISSION_DENIED, "The \"default\" profile cannot be renamed");
    }
    int status = daemon_write_call(call, "rename", rename_write, &work, NULL, NULL, err);
    if (status == STATUS_OK) {
        struct buf context = {0};
        buf_puts(&context, "{\"old_name\":");
        buf_json_string(&context, work.name);
        buf_puts(&context, "}");
        lifecycle(call, "profile-renamed", &work, work.new_name, context.data);
        buf_free(&context);
    }
    return status;
}

static int delete_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct work *work = ud;
    int64_t id = 0, users = 0;
    int status = find_profile(sql, work, &id, err);
    if (status == STATUS_OK) {
        status = sql_get_int(sql, &users, err, "SELECT count(*) FROM instances_profiles WHERE profile_id = ?1", "i", id);
    }
    if (status == STATUS_OK && users > 0) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Profile is currently in use");
    }
    return status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM profiles WHERE id = ?1", "i", id) : status;
}

static int delete_profile(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__DeleteProfileRequest *request = (const Covey__V1__DeleteProfileRequest *)message;
    struct work work = {.arena = rpc_arena(call), .project = project_or_default(request->project), .name = request->name};
    if (allowed(call, work.project, err) != STATUS_OK) {
        return err->code;
    }
    if (strcmp(work.name, "default") == 0) {
        return error_set(err, STATUS_PERMISSION_DENIED, "The \"default\" profile cannot be deleted");
    }
    int status = daemon_write_call(call, "delete", delete_write, &work, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "profile-deleted", &work, work.name, NULL);
    }
    return status;
}

static const struct rpc_binding bindings[] = {
    {"ListProfiles", list_profiles},   {"GetProfile", get_profile},       {"CreateProfile", create_profile},
    {"UpdateProfile", update_profile}, {"RenameProfile", rename_profile}, {"DeleteProfile", delete_profile},
};

void profiles_bind(void)
{
    rpc_bind("covey.v1.Profiles", bindings, sizeof bindings / sizeof *bindings, NULL);
}
