/* Changing configuration, devices, profiles and description. The whole change is one transaction: for a full update (PUT) the one that inserts its
 * operation, so that refusals come at once; for a merge (PATCH) a plain one. Nothing is applied to a running container yet: what the next start reads is
 * accepted, what users would expect to act at once is refused. */
#include "instance.h"

#include "server/cluster/cluster.h"
#include "server/daemon/etag.h"
#include "server/daemon/mask.h"
#include "server/networks/devices.h"
#include <string.h>

enum { DESCRIPTION_BYTES_MAX = 64 * 1024 };

struct work {
    struct arena *arena;
    const Covey__V1__UpdateInstanceRequest *request;
    const char *project;
    bool running;
};

/* The identity and addresses of a container are not the user's to lose. */
static int keep_volatile(const struct settings *old, struct settings *next, struct arena *arena, struct error *err)
{
    for (size_t i = 0; i < old->count; i++) {
        const char *key = old->items[i].key;
        bool idmap = str_prefix(key, "volatile.idmap.") || strcmp(key, "volatile.last_state.idmap") == 0;
        if (idmap && settings_get(next, key) == NULL) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Volatile idmap keys can't be deleted by the user");
        }
        if (strcmp(key, "volatile.uuid") == 0) {
            settings_set(next, key, old->items[i].value, arena);
        }
    }
    return STATUS_OK;
}

static int check_root(const struct spec *old, const struct spec *next, struct error *err)
{
    const struct device_settings *before = root_device(&old->devices), *after = root_device(&next->devices);
    const char *from = before != NULL ? settings_get(&before->options, "pool") : NULL, *to = after != NULL ? settings_get(&after->options, "pool") : NULL;
    return str_eq(from, to) ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Cannot update root disk device pool name to \"%.128s\"", to != NULL ? to : "");
}

static bool settings_same(const struct settings *a, const struct settings *b)
{
    bool same = a->count == b->count;
    for (size_t i = 0; i < a->count && same; i++) {
        same = strcmp(a->items[i].key, b->items[i].key) == 0 && strcmp(a->items[i].value, b->items[i].value) == 0;
    }
    return same;
}

static int not_live(const char *what, struct error *err)
{
    return error_set(err, STATUS_FAILED_PRECONDITION, "not implemented: changing %s of a running instance", what);
}

static int check_live_config(const struct settings *a, const struct settings *b, struct error *err)
{
    for (size_t i = 0; i < a->count; i++) {
        const char *key = a->items[i].key;
        if (str_prefix(key, "limits.") && !str_prefix(key, "limits.kernel.") && !str_eq(a->items[i].value, settings_get(b, key))) {
            return not_live(key, err);
        }
    }
    return STATUS_OK;
}

static int check_live(const struct spec *old, const struct spec *next, struct arena *arena, struct error *err)
{
    int status = check_live_config(&next->config, &old->config, err);
    status = status == STATUS_OK ? check_live_config(&old->config, &next->config, err) : status;
    for (size_t i = 0; i < next->devices.count && status == STATUS_OK; i++) {
        const struct device_settings *now = &next->devices.items[i], *before = devices_find(&old->devices, now->name);
        if (before == NULL || !settings_same(&before->options, &now->options)) {
            return not_live(arena_printf(arena, "device \"%s\"", now->name), err);
        }
    }
    for (size_t i = 0; i < old->devices.count && status == STATUS_OK; i++) {
        if (devices_find(&next->devices, old->devices.items[i].name) == NULL) {
            return not_live(arena_printf(arena, "device \"%s\"", old->devices.items[i].name), err);
        }
    }
    return status;
}

static int store_profiles(struct sql *sql, const struct instance *instance, const int64_t *ids, size_t count, struct error *err)
{
    if (count == instance->profile_count && (count == 0 || memcmp(ids, instance->profile_ids, count * sizeof *ids) == 0)) {
        return STATUS_OK;
    }
    int status = sql_exec(sql, err, "DELETE FROM instances_profiles WHERE instance_id = ?1", "i", instance->id);
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        status = sql_exec(sql, err, "INSERT INTO instances_profiles (instance_id, profile_id, apply_order) VALUES (?1, ?2, ?3)", "iii", instance->id, ids[i], (int64_t)i + 1);
    }
    return status;
}

static int store_row(struct sql *sql, const struct work *work, const struct instance *instance, struct error *err)
{
    const Covey__V1__UpdateInstanceRequest *request = work->request;
    const Google__Protobuf__FieldMask *mask = request->update_mask;
    int64_t architecture = instance->architecture;
    if (mask_has(mask, "architecture") && !str_empty(request->architecture) && (architecture = architecture_id(request->architecture)) == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Architecture isn't supported: \"%.64s\"", request->architecture);
    }
    const char *description = mask_has(mask, "description") ? request->description : instance->description;
    if (strlen(description) > DESCRIPTION_BYTES_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Description is longer than %d bytes", DESCRIPTION_BYTES_MAX);
    }
    return sql_exec(sql, err, "UPDATE instances SET description = ?2, ephemeral = ?3, architecture = ?4 WHERE id = ?1", "isii", instance->id, description,
        (int64_t)(mask_has(mask, "ephemeral") ? request->ephemeral : instance->ephemeral), architecture);
}

static int update(struct sql *sql, struct work *work, struct error *err)
{
    const Covey__V1__UpdateInstanceRequest *request = work->request;
    struct arena *arena = work->arena;
    struct instance *instance = NULL;
    int status = instance_load(sql, work->project, request->name, arena, &instance, err);
    if (status == STATUS_OK && instance->phase != PHASE_CREATED) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Instance is busy running a \"%s\" operation", instance->phase == PHASE_CREATING ? "create" : "delete");
    }
    status = status == STATUS_OK && !str_empty(request->if_match) ? etag_check(request->if_match, instance_etag(instance, arena), err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    struct spec next = {0}, expanded = {0};
    int64_t *ids = arena_alloc(arena, (INSTANCE_PROFILES_MAX + 1) * sizeof *ids);
    size_t count = instance->profile_count;
    if (request->update_mask != NULL) {
        spec_overlay(&next, &instance->own, arena);
    }
    settings_from_map(&next.config, request->config, request->n_config, arena);
    devices_from_map(&next.devices, request->devices, request->n_devices, arena);
    memcpy(ids, instance->profile_ids != NULL ? instance->profile_ids : ids, count * sizeof *ids);
    if (mask_has(request->update_mask, "profiles")) {
        count = request->n_profiles;
        status = profiles_resolve(sql, instance->project_id, request->profiles, count, ids, err);
    }
    status = status == STATUS_OK ? keep_volatile(&instance->own.config, &next.config, arena, err) : status;
    status = status == STATUS_OK ? config_check(&next.config, false, err) : status;
    status = status == STATUS_OK ? device_set_check(&next.devices, false, err) : status;
    status = status == STATUS_OK ? instance_expand(sql, ids, count, &next, &expanded, arena, err) : status;
    status = status == STATUS_OK ? device_set_check(&expanded.devices, true, err) : status;
    status = status == STATUS_OK ? networks_check_devices(sql, &expanded.devices, instance->id, err) : status;
    status = status == STATUS_OK ? check_root(&instance->expanded, &expanded, err) : status;
    status = status == STATUS_OK && work->running ? check_live(&instance->expanded, &expanded, arena, err) : status;
    status = status == STATUS_OK ? instance_fill_volatile(sql, &next, &expanded.devices, arena, err) : status;
    status = status == STATUS_OK ? store_row(sql, work, instance, err) : status;
    status = status == STATUS_OK ? store_profiles(sql, instance, ids, count, err) : status;
    return status == STATUS_OK ? spec_store(sql, "instance", instance->id, &next, arena, err) : status;
}

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return update(sql, ud, err);
}

static int update_prepare(struct sql *sql, void *ud, const char *uuid, struct error *err)
{
    return update(sql, ud, err);
}

static int update_run(struct op *op, struct error *err)
{
    const Covey__V1__UpdateInstanceRequest *request = (const Covey__V1__UpdateInstanceRequest *)op_request(op, &covey__v1__update_instance_request__descriptor, err);
    struct instance *instance = NULL;
    if (request == NULL) {
        return err->code;
    }
    int status = instance_find(request->project, request->name, op_arena(op), &instance, NULL, err);
    if (status == STATUS_OK) {
        instance_event("instance-updated", instance, op_requestor(op), NULL);
    }
    return status == STATUS_NOT_FOUND ? STATUS_OK : status; /* updated with the operation, deleted since */
}

static const struct op_kind update_kind = {.type = KIND_UPDATE, .description = "Updating instance", .class = OP_TASK, .run = update_run};

int update_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateInstanceRequest *request = (const Covey__V1__UpdateInstanceRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct work work = {.arena = arena, .request = request, .project = project_or_default(request->project)};
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    int status = instance_allowed(call, work.project, err);
    if (status == STATUS_OK && !str_empty(request->restore)) {
        status = error_set(err, STATUS_UNIMPLEMENTED, "not implemented: restore");
    }
    status = status == STATUS_OK ? instance_find(work.project, request->name, arena, &instance, &spec, err) : status;
    status = status == STATUS_OK ? instance_reachable(instance, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    work.running = code_alive(instance_live_status(instance, spec, arena));
    Covey__V1__UpdateInstanceResponse *out = arena_alloc(arena, sizeof *out);
    covey__v1__update_instance_response__init(out);
    if (request->update_mask != NULL) {
        status = daemon_write_call(call, "update", update_write, &work, NULL, NULL, err);
        if (status == STATUS_OK) {
            instance_event("instance-updated", instance, rpc_caller(call), NULL);
        }
    } else {
        Covey__V1__UpdateInstanceRequest stored = COVEY__V1__UPDATE_INSTANCE_REQUEST__INIT;
        stored.name = request->name;
        stored.project = (char *)work.project;
        struct op_spec op = {.kind = &update_kind, .project = work.project, .member = instance->member,
            .resources_json = instance_resources(arena, work.project, request->name), .request = &stored.base, .prepare = update_prepare, .ud = &work};
        status = op_create(call, &op, &out->operation, err);
    }
    *response = &out->base;
    return status;
}

void update_register(void)
{
    op_register(&update_kind);
}
