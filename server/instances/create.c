/* Creating an instance. Everything that can be judged is judged in the transaction that inserts the operation and the row (phase 1), the choice of the member
 * too: so concurrent requests see each other and spread. The run then fetches the image, lets the member make the volume and sets phase 0; when a step
 * fails, volume and row go again. Each step may be repeated by a new leader. */
#include "instance.h"

#include "placement.h"
#include "rules.h"
#include "server/cluster/levels.h"
#include "server/cluster/cluster.h"
#include "server/networks/devices.h"
#include "source.h"
#include <stdlib.h>
#include <string.h>

enum { MEMBERS_MAX = 4096, ADDRESSES_MAX = 64 };

struct work {
    struct arena *arena;
    const Covey__V1__CreateInstanceRequest *request;
    const char *project;
    char name[64];
    bool name_taken;
    bool clustered, admin;
    const char *group;      /* of "@group", NULL = none */
    uint64_t target;        /* 0 = automatic */
    const char *default_architecture;
    uint64_t *online;
    size_t online_count;
    bool target_blocked; /* by an upgrade */
    struct op_spec *op;     /* its member is set when it is chosen */

    /* found in the transaction */
    int64_t project_id, pool_id;
    struct image_record image;
    const char *architecture; /* NULL = the member's */
    int64_t *profile_ids;
    size_t profile_count;
    struct spec own, expanded;
    uint64_t member;
    int64_t member_architecture;
};

static bool is_online(const struct work *work, uint64_t id)
{
    for (size_t i = 0; i < work->online_count; i++) {
        if (work->online[i] == id) {
            return true;
        }
    }
    return false;
}

/* ---- placement ---- */

struct restriction { /* of the project */
    bool restricted;
    char *groups; /* comma list, NULL = none */
    char *target;
};

static int read_restriction(struct sql *sql, struct work *work, struct restriction *out, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT key, value FROM projects_config WHERE project_id = ?1 AND key IN ('restricted', 'restricted.cluster.groups', 'restricted.cluster.target')",
        "i", work->project_id);
    while (sql_next(s)) {
        if (strcmp(sql_text(s, 0), "restricted") == 0) {
            out->restricted = parse_bool(sql_text(s, 1), &out->restricted) == 0 && out->restricted;
        } else if (strcmp(sql_text(s, 0), "restricted.cluster.groups") == 0) {
            out->groups = arena_strdup(work->arena, sql_text(s, 1));
        } else {
            out->target = arena_strdup(work->arena, sql_text(s, 1));
        }
    }
    return sql_done(s, err);
}

static bool listed(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = list; at != NULL && *at != '\0';) {
        const char *end = strchrnul(at, ',');
        const char *from = at + strspn(at, " ");
        size_t n = (size_t)(end - from);
        while (n > 0 && from[n - 1] == ' ') {
            n--;
        }
        if (n == len && strncmp(from, name, n) == 0) {
            return true;
        }
        at = *end == ',' ? end + 1 : end;
    }
    return false;
}

static int read_members(struct sql *sql, struct work *work, const struct restriction *limits, struct placement_member **out, size_t *count, struct error *err)
{
    struct placement_member *list = arena_alloc(work->arena, MEMBERS_MAX * sizeof *list);
    size_t n = 0, at = 0;
    bool by_groups = limits->restricted && !str_empty(limits->groups);
    struct sql_stmt *s = sql_query(sql,
        "SELECT n.id, n.state, n.arch, (SELECT value FROM nodes_config c WHERE c.node_id = n.id AND c.key = 'scheduler.instance'),"
        " (SELECT count(*) FROM instances i WHERE i.node_id = n.id) FROM nodes n ORDER BY n.id LIMIT 4096", "");
    while (sql_next(s) && n < MEMBERS_MAX) {
        list[n] = (struct placement_member){.id = (uint64_t)sql_int(s, 0), .state = sql_int(s, 1), .architecture = architecture_name((int)sql_int(s, 2)),
            .online = is_online(work, (uint64_t)sql_int(s, 0)), .instances = sql_int(s, 4), .project_may = !by_groups};
        placement_mode_parse(sql_text(s, 3), &list[n].mode);
        n++;
    }
    int status = sql_done(s, err);
    if (status != STATUS_OK) {
        return status;
    }
    s = sql_query(sql, "SELECT node_id, name FROM nodes_cluster_groups JOIN cluster_groups ON cluster_groups.id = group_id ORDER BY node_id", "");
    while (sql_next(s)) {
        while (at < n && list[at].id < (uint64_t)sql_int(s, 0)) {
            at++;
        }
        if (at < n && list[at].id == (uint64_t)sql_int(s, 0)) {
            list[at].in_group = list[at].in_group || (work->group != NULL && strcmp(sql_text(s, 1), work->group) == 0);
            list[at].project_may = list[at].project_may || listed(limits->groups, sql_text(s, 1));
        }
    }
    *out = list;
    *count = n;
    return sql_done(s, err);
}

static int check_target(struct sql *sql, const struct work *work, const struct restriction *limits, struct error *err)
{
    if ((work->group != NULL || work->target != 0) && limits->restricted && !work->admin && (str_empty(limits->target) || strcmp(limits->target, "block") == 0)) {
        return error_set(err, STATUS_PERMISSION_DENIED, "This project doesn't allow cluster member targeting");
    }
    if (work->group == NULL) {
        return STATUS_OK;
    }
    if (limits->restricted && !str_empty(limits->groups) && !listed(limits->groups, work->group)) {
        return error_set(err, STATUS_PERMISSION_DENIED, "Project isn't allowed to use this cluster group: \"%.128s\"", work->group);
    }
    int64_t id = 0;
    int status = sql_get_int(sql, &id, err, "SELECT id FROM cluster_groups WHERE name = ?1", "s", work->group);
    return status == STATUS_NOT_FOUND ? error_set(err, STATUS_INVALID_ARGUMENT, "Cluster group \"%.128s\" doesn't exist", work->group) : status;
}

static int place(struct sql *sql, struct work *work, struct error *err)
{
    struct restriction limits = {0};
    struct placement_member *members = NULL, *chosen = NULL;
    size_t count = 0;
    int status = read_restriction(sql, work, &limits, err);
    status = status == STATUS_OK ? check_target(sql, work, &limits, err) : status;
    status = status == STATUS_OK ? read_members(sql, work, &limits, &members, &count, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    const char *wanted = !str_empty(work->architecture) ? work->architecture : work->default_architecture;
    work->member = work->target != 0 ? work->target : placement_choose(members, count, work->group != NULL, wanted);
    for (size_t i = 0; i < count; i++) {
        chosen = members[i].id == work->member ? &members[i] : chosen;
    }
    if (work->target != 0 && (chosen == NULL || chosen->state == 1)) {
        return error_set(err, STATUS_NOT_FOUND, "Cluster member not found");
    }
    if (chosen == NULL) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "No suitable cluster member could be found");
    }
    if (chosen->state == 2) {
        return error_set(err, STATUS_PERMISSION_DENIED, "Cluster member is evacuated");
    }
    if (!chosen->online) {
        return error_set(err, STATUS_FAILED_PRECONDITION, work->target_blocked ? "Target cluster member waits for other members to be upgraded"
                                                                               : "Target cluster member is offline");
    }
    if (!chosen->project_may) {
        return error_set(err, STATUS_PERMISSION_DENIED, "Project isn't allowed to use this cluster member: \"%.128s\"", work->request->target);
    }
    work->member_architecture = architecture_id(chosen->architecture);
    return STATUS_OK;
}

/* ---- what it will be ---- */

static int resolve(struct sql *sql, struct work *work, struct error *err)
{
    const Covey__V1__CreateInstanceRequest *request = work->request;
    bool from_image = source_is_image(request->source);
    int status = from_image ? image_find(sql, work->project_id, request->source, work->arena, &work->image, err) : STATUS_OK;
    if (status != STATUS_OK) {
        return status;
    }
    work->architecture = from_image ? work->image.architecture : request->architecture;
    work->profile_ids = arena_alloc(work->arena, (INSTANCE_PROFILES_MAX + 1) * sizeof *work->profile_ids);
    if (request->profiles == NULL && from_image && work->image.profile_count > 0) {
        work->profile_ids = work->image.profile_ids;
        work->profile_count = work->image.profile_count;
        return STATUS_OK;
    }
    char *fallback[] = {"default"};
    char **names = request->profiles != NULL ? request->profiles->values : fallback;
    work->profile_count = request->profiles != NULL ? request->profiles->n_values : 1;
    return profiles_resolve(sql, work->project_id, names, work->profile_count, work->profile_ids, err);
}

static int find_pool(struct sql *sql, struct work *work, struct error *err)
{
    const struct device_settings *root = root_device(&work->expanded.devices);
    const char *pool = root != NULL ? settings_get(&root->options, "pool") : NULL;
    int64_t state = 0;
    if (pool == NULL) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Failed initialising instance: Failed getting root disk: No root device could be found");
    }
    int status = sql_get_int(sql, &work->pool_id, err, "SELECT id FROM storage_pools WHERE name = ?1", "s", pool);
    if (status == STATUS_NOT_FOUND) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Failed loading storage pool: Storage pool not found");
    }
    status = status == STATUS_OK ? sql_get_int(sql, &state, err, "SELECT state FROM storage_pools WHERE id = ?1", "i", work->pool_id) : status;
    return status == STATUS_OK && state != 1 ? error_set(err, STATUS_FAILED_PRECONDITION, "Storage pool \"%.128s\" is not created", pool) : status;
}

static bool hwaddr_taken(struct sql *sql, const char *address)
{
    int64_t count = 1;
    int status = sql_get_int(sql, &count, NULL, "SELECT count(*) FROM instances_config WHERE value = ?1 AND key LIKE 'volatile.%.hwaddr'", "s", address);
    return status != STATUS_OK || count > 0;
}

int instance_fill_volatile(struct sql *sql, struct spec *own, const struct device_set *expanded, struct arena *arena, struct error *err)
{
    for (size_t i = 0; i < expanded->count; i++) {
        const struct device_settings *device = &expanded->items[i];
        char *key = arena_printf(arena, "volatile.%s.hwaddr", device->name), address[18] = "";
        if (!str_eq(settings_get(&device->options, "type"), "nic") || settings_get(&device->options, "hwaddr") != NULL || settings_get(&own->config, key) != NULL) {
            continue;
        }
        unsigned tries = 0;
        do {
            uint8_t random[3];
            random_bytes(random, sizeof random);
            snprintf(address, sizeof address, "00:16:3e:%02x:%02x:%02x", random[0], random[1], random[2]);
        } while (hwaddr_taken(sql, address) && ++tries < NAME_TRIES_MAX);
        if (tries == NAME_TRIES_MAX) {
            return error_set(err, STATUS_INTERNAL, "No free MAC address was found in %d tries", NAME_TRIES_MAX);
        }
        settings_set(&own->config, key, address, arena);
    }
    if (settings_get(&own->config, "volatile.uuid") == NULL) {
        char uuid[37];
        uuid_new(uuid);
        settings_set(&own->config, "volatile.uuid", uuid, arena);
    }
    return STATUS_OK;
}

static int compose(struct sql *sql, struct work *work, struct error *err)
{
    const Covey__V1__CreateInstanceRequest *request = work->request;
    struct arena *arena = work->arena;
    work->own = (struct spec){0};
    work->expanded = (struct spec){0};
    for (size_t i = 0; i < work->image.properties.count; i++) {
        const struct setting *property = &work->image.properties.items[i];
        char *key = arena_printf(arena, "image.%s", property->key);
        if (strlen(key) <= SETTING_KEY_MAX) {
            settings_set(&work->own.config, key, property->value, arena);
        }
    }
    settings_from_map(&work->own.config, request->config, request->n_config, arena);
    devices_from_map(&work->own.devices, request->devices, request->n_devices, arena);
    int status = config_check(&work->own.config, false, err);
    status = status == STATUS_OK ? device_set_check(&work->own.devices, false, err) : status;
    status = status == STATUS_OK ? instance_expand(sql, work->profile_ids, work->profile_count, &work->own, &work->expanded, arena, err) : status;
    if (status == STATUS_OK && (status = device_set_check(&work->expanded.devices, true, err)) != STATUS_OK && str_prefix(err->text, "Failed getting root disk")) {
        return error_prefix(err, "Failed initialising instance");
    }
    status = status == STATUS_OK ? networks_check_devices(sql, &work->expanded.devices, 0, err) : status;
    status = status == STATUS_OK ? find_pool(sql, work, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    settings_set(&work->own.config, "volatile.uuid", NULL, arena);
    settings_set(&work->own.config, "volatile.base_image", work->image.fingerprint, arena);
    settings_set(&work->own.config, "volatile.last_state.power", "STOPPED", arena);
    settings_set(&work->own.config, "volatile.apply_template", "create", arena);
    return instance_fill_volatile(sql, &work->own, &work->expanded.devices, arena, err);
}

static int insert(struct sql *sql, struct work *work, const char *uuid, struct error *err)
{
    int64_t architecture = !str_empty(work->architecture) ? architecture_id(work->architecture) : work->member_architecture;
    int status = sql_exec(sql, err,
        "INSERT INTO instances (node_id, project_id, name, architecture, ephemeral, creation_date, description, storage_pool_id, phase, operation)"
        " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 1, ?9)", "iisiiisis", (int64_t)work->member, work->project_id, work->name, architecture,
        (int64_t)work->request->ephemeral, time_unix_ns(), work->request->description, work->pool_id, uuid);
    if (status == STATUS_ALREADY_EXISTS) {
        return error_set(err, STATUS_ALREADY_EXISTS, "Instance \"%s\" already exists", work->name);
    }
    int64_t id = status == STATUS_OK ? sql_last_id(sql) : 0;
    for (size_t i = 0; i < work->profile_count && status == STATUS_OK; i++) {
        status = sql_exec(sql, err, "INSERT INTO instances_profiles (instance_id, profile_id, apply_order) VALUES (?1, ?2, ?3)", "iii", id, work->profile_ids[i],
            (int64_t)i + 1);
    }
    status = status == STATUS_OK ? spec_store(sql, "instance", id, &work->own, work->arena, err) : status;
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE operations SET node_id = ?2 WHERE uuid = ?1", "si", uuid, (int64_t)work->member) : status;
}

static int create_prepare(struct sql *sql, void *ud, const char *uuid, struct error *err)
{
    struct work *work = ud;
    int status = project_id(sql, work->project, &work->project_id, err);
    status = status == STATUS_OK ? resolve(sql, work, err) : status;
    status = status == STATUS_OK ? compose(sql, work, err) : status;
    status = status == STATUS_OK ? place(sql, work, err) : status;
    status = status == STATUS_OK ? insert(sql, work, uuid, err) : status;
    if (status == STATUS_OK) {
        work->op->member = work->member;
    }
    return status;
}

/* ---- the run ---- */

struct holders {
    const struct instance *instance;
    const char *fingerprint;
    bool here;
    char *addresses[ADDRESSES_MAX];
    size_t count;
    struct arena *arena;
};

static int read_holders(struct sql *sql, void *ud, struct error *err)
{
    struct holders *in = ud;
    in->count = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT DISTINCT nodes.id, nodes.address FROM images_nodes JOIN images ON images.id = image_id JOIN nodes ON nodes.id = node_id"
                                        " WHERE images.fingerprint = ?1 ORDER BY nodes.id", "s", in->fingerprint);
    while (sql_next(s)) {
        if ((uint64_t)sql_int(s, 0) == in->instance->member) {
            in->here = true;
        } else if (in->count < ADDRESSES_MAX && member_online(the_daemon, (uint64_t)sql_int(s, 0))) {
            in->addresses[in->count++] = arena_strdup(in->arena, sql_text(s, 1));
        }
    }
    return sql_done(s, err);
}

static int write_holder(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct holders *in = ud;
    return sql_exec(sql, err, "INSERT INTO images_nodes (image_id, node_id) SELECT id, ?2 FROM images WHERE fingerprint = ?1"
                              " AND NOT EXISTS (SELECT 1 FROM images_nodes WHERE image_id = images.id AND node_id = ?2)", "si", in->fingerprint, (int64_t)in->instance->member);
}

static int fetch_image(struct op *op, const struct instance *instance, const char *fingerprint, struct error *err)
{
    struct holders in = {.instance = instance, .fingerprint = fingerprint, .arena = op_arena(op)};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_holders, &in, NULL, err);
    if (status != STATUS_OK || in.here) {
        return status;
    }
    if (in.count == 0) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Image not available on any online node");
    }
    Covey__Internal__V1__PullImageRequest request = COVEY__INTERNAL__V1__PULL_IMAGE_REQUEST__INIT;
    ProtobufCMessage *answer = NULL;
    request.fingerprint = (char *)fingerprint;
    request.addresses = in.addresses;
    request.n_addresses = in.count;
    status = agent_call(the_daemon, instance->member, "PullImage", &request.base, &answer, op_arena(op), INSTANCE_CREATE_MS, err);
    return status == STATUS_OK ? op_write(op, "image", write_holder, &in, NULL, err) : status;
}

static int write_created(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct instance *instance = ud;
    const char *image = settings_get(&instance->own.config, "volatile.base_image");
    int status = sql_exec(sql, err, "UPDATE instances SET phase = 0, operation = '' WHERE id = ?1 AND phase = 1", "i", instance->id);
    if (status == STATUS_OK && image != NULL) {
        status = sql_exec(sql, err, "UPDATE images SET last_use_date = ?2 WHERE fingerprint = ?1", "si", image, time_unix_ns());
    }
    return status;
}

static int write_failed(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct instance *instance = ud;
    return sql_exec(sql, err, "UPDATE instances SET phase = 2, operation = '' WHERE id = ?1 AND phase = 1", "i", instance->id);
}

/* Nothing may stay: marked first, so that the sweep goes on when the member cannot be reached now. */
static void clean_up(struct op *op, const struct instance *instance, const Covey__Internal__V1__InstanceSpec *spec)
{
    struct error err = ERROR_INIT;
    if (op_write(op, "failed", write_failed, (void *)instance, NULL, &err) != STATUS_OK || instance_remove(instance, spec, op, &err) != STATUS_OK) {
        log_warn("instance.create", "instance=%s error=\"cleaning up: %s\"", instance->name, err.text);
    }
}

static int create_run(struct op *op, struct error *err)
{
    const Covey__V1__CreateInstanceRequest *request = (const Covey__V1__CreateInstanceRequest *)op_request(op, &covey__v1__create_instance_request__descriptor, err);
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    if (request == NULL) {
        return err->code;
    }
    int status = instance_find(request->project, request->name, op_arena(op), &instance, &spec, err);
    if (status == STATUS_OK && instance->phase == PHASE_CREATED) {
        return STATUS_OK; /* an earlier run came this far */
    }
    if (status == STATUS_OK && strcmp(instance->operation, op_uuid(op)) != 0) {
        status = error_set(err, STATUS_ABORTED, "Failed creating instance"); /* an earlier run failed and cleaned up */
    }
    if (status != STATUS_OK || (status = instance_enter(instance->id, "create", false, err)) != STATUS_OK) {
        return status;
    }
    const char *image = source_is_image(request->source) ? settings_get(&instance->own.config, "volatile.base_image") : NULL;
    spec->operation = (char *)op_uuid(op);
    status = image != NULL ? fetch_image(op, instance, image, err) : STATUS_OK;
    if (status == STATUS_OK) {
        Covey__Internal__V1__CreateInstanceRequest create = COVEY__INTERNAL__V1__CREATE_INSTANCE_REQUEST__INIT;
        ProtobufCMessage *answer = NULL;
        create.spec = spec;
        create.image = (char *)(image != NULL ? image : "");
        status = agent_call(the_daemon, instance->member, "CreateInstance", &create.base, &answer, op_arena(op), INSTANCE_CREATE_MS, err);
    }
    status = status == STATUS_OK ? op_write(op, "created", write_created, instance, NULL, err) : status;
    if (status == STATUS_OK) {
        instance_event("instance-created", instance, op_requestor(op), "{\"type\":\"container\"}");
    } else if (status != STATUS_UNKNOWN && !err->not_leader) {
        clean_up(op, instance, spec);
    }
    instance_leave(instance->id);
    return status;
}

static const struct op_kind create_kind = {.type = KIND_CREATE, .description = "Creating instance", .class = OP_TASK, .run = create_run};

/* ---- the handler ---- */

static int read_taken(struct sql *sql, void *ud, struct error *err)
{
    struct work *work = ud;
    int64_t count = 0;
    int status = sql_get_int(sql, &count, err, "SELECT count(*) FROM instances WHERE name = ?1", "s", work->name);
    work->name_taken = count > 0;
    return status;
}

static int pick_name(struct work *work, struct error *err)
{
    if (!str_empty(work->request->name)) {
        int status = instance_name_check(work->request->name, err);
        if (status == STATUS_OK) {
            snprintf(work->name, sizeof work->name, "%s", work->request->name);
        }
        return status;
    }
    int status = STATUS_OK;
    unsigned tries = 0;
    do {
        name_make(work->name, sizeof work->name);
        status = daemon_read(the_daemon, DB_LINEARIZABLE, read_taken, work, NULL, err);
    } while (status == STATUS_OK && work->name_taken && ++tries < NAME_TRIES_MAX);
    return status == STATUS_OK && work->name_taken ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "No free name was found in %d tries", NAME_TRIES_MAX) : status;
}

static int check_request(const Covey__V1__CreateInstanceRequest *request, struct error *err)
{
    if (!str_empty(request->type) && strcmp(request->type, "container") != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid instance type");
    }
    if (request->stateful || !str_empty(request->instance_type)) {
        return error_set(err, STATUS_UNIMPLEMENTED, "not implemented: %s", request->stateful ? "stateful" : "instance_type");
    }
    if (!str_empty(request->architecture) && architecture_id(request->architecture) == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Architecture isn't supported: \"%.64s\"", request->architecture);
    }
    return source_check(request->source, err);
}

/* Who is online (and not blocked by an upgrade) cannot be asked inside the transaction (its thread takes no locks): a moment earlier. */
static void note_online(struct work *work)
{
    const struct view *view = view_get();
    size_t n = view->message->n_members;
    work->online = arena_alloc(work->arena, (n + 1) * sizeof *work->online);
    work->online[work->online_count++] = daemon_id(the_daemon);
    for (size_t i = 0; i < n; i++) {
        uint64_t id = view->message->members[i]->id;
        bool blocked = level_show(view->message, id).blocked;
        if (id != work->online[0] && member_online(the_daemon, id) && !blocked) {
            work->online[work->online_count++] = id;
        }
        work->target_blocked = work->target_blocked || (blocked && id == work->target);
    }
    const char *architecture = view_config(view, "images.default_architecture");
    work->default_architecture = arena_strdup(work->arena, architecture != NULL ? architecture : "");
    view_unref(view);
}

int create_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__CreateInstanceRequest *request = (const Covey__V1__CreateInstanceRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct work work = {.arena = arena, .request = request, .project = project_or_default(request->project), .clustered = daemon_clustered(the_daemon),
        .admin = !rpc_caller(call)->restricted};
    int status = instance_allowed(call, work.project, err);
    status = status == STATUS_OK ? check_request(request, err) : status;
    status = status == STATUS_OK ? pick_name(&work, err) : status;
    if (status == STATUS_OK && !str_empty(request->target) && !work.clustered) {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Target only allowed when clustered");
    }
    if (status == STATUS_OK && request->target[0] == '@') {
        work.group = request->target + 1;
    } else if (status == STATUS_OK) {
        status = target_resolve(the_daemon, request->target, &work.target, err);
    }
    if (status != STATUS_OK) {
        return status;
    }
    note_online(&work);
    Covey__V1__InstanceSource source = COVEY__V1__INSTANCE_SOURCE__INIT;
    Covey__V1__CreateInstanceRequest stored = COVEY__V1__CREATE_INSTANCE_REQUEST__INIT;
    Covey__V1__Operation *operation = NULL;
    source.type = request->source->type;
    stored.name = work.name;
    stored.project = (char *)work.project;
    stored.source = &source;
    struct op_spec op = {.kind = &create_kind, .project = work.project, .member = work.target, .resources_json = instance_resources(arena, work.project, work.name),
        .request = &stored.base, .prepare = create_prepare, .ud = &work};
    work.op = &op;
    status = op_create(call, &op, &operation, err);
    *response = operation != NULL ? &operation->base : NULL;
    return status;
}

void create_register(void)
{
    op_register(&create_kind);
}
