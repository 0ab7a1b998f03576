/* covey.v1.ClusterGroups: named sets of members (spec/placement.md 2). All handlers run on the leader, on worker threads; every check that concerns
 * membership is made in the transaction that changes it, so that no member is ever left without a group. */
#include "cluster.h"

#include "covey/v1/cluster_group.pb-c.h"
#include "server/daemon/etag.h"
#include "server/daemon/mask.h"
#include "server/events/events.h"
#include <stdlib.h>
#include <string.h>

enum { GROUPS_MAX = 4096, GROUP_MEMBERS_MAX = 4096, GROUP_NAME_MAX = 255 };

static int need_cluster(struct error *err)
{
    return daemon_clustered(the_daemon) ? STATUS_OK : error_set(err, STATUS_FAILED_PRECONDITION, "This server is not clustered");
}

int group_name_check(const char *name, struct error *err)
{
    static const struct {
        const char *bytes, *what;
    } refused[] = {{"/", "slashes"}, {" ", "spaces"}, {"_", "underscores"}, {"'\"", "quotes"}};
    if (str_empty(name)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No name provided");
    }
    if (strlen(name) > GROUP_NAME_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Cluster group names may not be longer than %d bytes", GROUP_NAME_MAX);
    }
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (strpbrk(name, refused[i].bytes) != NULL) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Cluster group names may not contain %s", refused[i].what);
        }
    }
    if (strcmp(name, "*") == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Reserved cluster group name");
    }
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid cluster group name \"%s\"", name);
    }
    return STATUS_OK;
}

/* ---- reading ---- */

struct read {
    struct arena *arena;
    const char *only; /* NULL = all */
    Covey__V1__ClusterGroup **groups;
    size_t count;
};

static int read_group_members(struct sql *sql, struct arena *arena, int64_t id, Covey__V1__ClusterGroup *group, struct error *err)
{
    int64_t count = 0;
    int status = sql_get_int(sql, &count, err, "SELECT count(*) FROM nodes_cluster_groups WHERE group_id = ?1", "i", id);
    if (status != STATUS_OK) {
        return status;
    }
    group->members = arena_alloc(arena, ((size_t)count + 1) * sizeof *group->members);
    struct sql_stmt *s = sql_query(sql, "SELECT nodes.name FROM nodes_cluster_groups JOIN nodes ON nodes.id = node_id WHERE group_id = ?1 ORDER BY nodes.name", "i", id);
    while (group->n_members < (size_t)count && sql_next(s)) {
        group->members[group->n_members++] = arena_strdup(arena, sql_text(s, 0));
    }
    return sql_done(s, err);
}

static int read_groups(struct sql *sql, void *ud, struct error *err)
{
    struct read *read = ud;
    int status = STATUS_OK;
    read->count = 0;
    read->groups = arena_alloc(read->arena, (read->only != NULL ? 1 : GROUPS_MAX) * sizeof *read->groups);
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, description FROM cluster_groups WHERE ?1 IS NULL OR name = ?1 ORDER BY name", "s", read->only);
    while (status == STATUS_OK && read->count < GROUPS_MAX && sql_next(s)) { /* no more can be made: create_write */
        Covey__V1__ClusterGroup *group = arena_alloc(read->arena, sizeof *group);
        covey__v1__cluster_group__init(group);
        group->name = arena_strdup(read->arena, sql_text(s, 1));
        group->description = arena_strdup(read->arena, sql_text(s, 2));
        status = read_group_members(sql, read->arena, sql_int(s, 0), group, err);
        group->etag = etag_make(read->arena, &group->base, "description,members");
        read->groups[read->count++] = group;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

static int list_groups(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListClusterGroupsRequest *request = (const Covey__V1__ListClusterGroupsRequest *)message;
    struct read read = {.arena = rpc_arena(call)};
    int status = need_cluster(err);
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_groups, &read, NULL, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListClusterGroupsResponse *out = arena_alloc(read.arena, sizeof *out);
    covey__v1__list_cluster_groups_response__init(out);
    if (request->recursion > 0) {
        out->groups = read.groups;
        out->n_groups = read.count;
    } else {
        out->urls = arena_alloc(read.arena, (read.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < read.count; i++) {
            out->urls[out->n_urls++] = arena_printf(read.arena, "/1.0/cluster/groups/%s", read.groups[i]->name);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int not_found(struct error *err)
{
    return error_set(err, STATUS_NOT_FOUND, "Cluster group not found");
}

static int get_group(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetClusterGroupRequest *request = (const Covey__V1__GetClusterGroupRequest *)message;
    struct read read = {.arena = rpc_arena(call), .only = request->name};
    int status = need_cluster(err);
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_groups, &read, NULL, err) : status;
    if (status == STATUS_OK && read.count == 0) {
        status = not_found(err);
    }
    if (status == STATUS_OK) {
        *response = &read.groups[0]->base;
    }
    return status;
}

/* ---- writing ---- */

struct change {
    struct arena *arena;
    const char *name, *new_name, *if_match;
    const char *description; /* NULL = keep */
    bool set_members;        /* false = keep */
    char *const *members;
    size_t n_members;
};

static int find_group(struct sql *sql, const char *name, int64_t *id, struct error *err)
{
    int status = sql_get_int(sql, id, err, "SELECT id FROM cluster_groups WHERE name = ?1", "s", name);
    return status == STATUS_NOT_FOUND ? not_found(err) : status;
}

static int add_member(struct sql *sql, int64_t group, const char *name, struct error *err)
{
    int64_t node = 0, groups = 0;
    int status = sql_get_int(sql, &node, err, "SELECT id FROM nodes WHERE name = ?1 AND state <> 1", "s", name);
    if (status == STATUS_NOT_FOUND) {
        return error_set(err, STATUS_NOT_FOUND, "Failed to add member to cluster group: Failed to get cluster member: Cluster member not found");
    }
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "INSERT OR IGNORE INTO nodes_cluster_groups (node_id, group_id) VALUES (?1, ?2)", "ii", node, group);
    }
    status = status == STATUS_OK ? sql_get_int(sql, &groups, err, "SELECT count(*) FROM nodes_cluster_groups WHERE node_id = ?1", "i", node) : status;
    return status == STATUS_OK && groups > MEMBER_GROUPS_MAX ? error_set(err, STATUS_INVALID_ARGUMENT, "more than %d groups of a member", MEMBER_GROUPS_MAX) : status;
}

static bool is_named(const struct change *in, const char *name)
{
    for (size_t i = 0; i < in->n_members; i++) {
        if (strcmp(in->members[i], name) == 0) {
            return true;
        }
    }
    return false;
}

/* Those who are not named leave, if they have another group to be in. */
static int drop_others(struct sql *sql, int64_t id, const struct change *in, struct error *err)
{
    Covey__V1__ClusterGroup now = COVEY__V1__CLUSTER_GROUP__INIT;
    int status = read_group_members(sql, in->arena, id, &now, err);
    for (size_t i = 0; i < now.n_members && status == STATUS_OK; i++) {
        int64_t groups = 0, node = 0;
        if (is_named(in, now.members[i])) {
            continue;
        }
        status = sql_get_int(sql, &node, err, "SELECT id FROM nodes WHERE name = ?1", "s", now.members[i]);
        status = status == STATUS_OK ? sql_get_int(sql, &groups, err, "SELECT count(*) FROM nodes_cluster_groups WHERE node_id = ?1", "i", node) : status;
        if (status == STATUS_OK && groups <= 1) {
            return error_set(err, STATUS_FAILED_PRECONDITION, "Cannot remove %s from group as member needs to belong to at least one group", now.members[i]);
        }
        status = status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM nodes_cluster_groups WHERE node_id = ?1 AND group_id = ?2", "ii", node, id) : status;
    }
    return status;
}

static int set_members(struct sql *sql, int64_t id, const struct change *in, struct error *err)
{
    int status = STATUS_OK;
    for (size_t i = 0; i < in->n_members && status == STATUS_OK; i++) {
        status = add_member(sql, id, in->members[i], err);
    }
    return status == STATUS_OK ? drop_others(sql, id, in, err) : status;
}

static int create_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct change *in = ud;
    int64_t count = 0;
    int status = sql_exec(sql, err, "INSERT INTO cluster_groups (name, description) VALUES (?1, ?2)", "ss", in->name, in->description);
    if (status == STATUS_ALREADY_EXISTS) {
        return error_set(err, STATUS_ALREADY_EXISTS, "This cluster group already exists");
    }
    int64_t id = status == STATUS_OK ? sql_last_id(sql) : 0;
    status = status == STATUS_OK ? sql_get_int(sql, &count, err, "SELECT count(*) FROM cluster_groups", "") : status;
    if (status == STATUS_OK && count > GROUPS_MAX) {
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d cluster groups", GROUPS_MAX);
    }
    return status == STATUS_OK ? set_members(sql, id, in, err) : status;
}

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct change *in = ud;
    int64_t id = 0;
    int status = find_group(sql, in->name, &id, err);
    if (status == STATUS_OK && !str_empty(in->if_match)) {
        struct read now = {.arena = in->arena, .only = in->name};
        status = read_groups(sql, &now, err);
        status = status == STATUS_OK ? etag_check(in->if_match, now.groups[0]->etag, err) : status;
    }
    if (status == STATUS_OK && in->description != NULL) {
        status = sql_exec(sql, err, "UPDATE cluster_groups SET description = ?2 WHERE id = ?1 AND description <> ?2", "is", id, in->description);
    }
    return status == STATUS_OK && in->set_members ? set_members(sql, id, in, err) : status;
}

static int rename_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct change *in = ud;
    int64_t id = 0, taken = 0;
    int status = find_group(sql, in->name, &id, err);
    status = status == STATUS_OK ? sql_get_int(sql, &taken, err, "SELECT count(*) FROM cluster_groups WHERE name = ?1", "s", in->new_name) : status;
    if (status == STATUS_OK && taken > 0) {
        return error_set(err, STATUS_ALREADY_EXISTS, "Name \"%s\" already in use", in->new_name);
    }
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE cluster_groups SET name = ?2 WHERE id = ?1", "is", id, in->new_name) : status;
}

static int delete_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct change *in = ud;
    int64_t id = 0, members = 0;
    int status = find_group(sql, in->name, &id, err);
    status = status == STATUS_OK ? sql_get_int(sql, &members, err, "SELECT count(*) FROM nodes_cluster_groups WHERE group_id = ?1", "i", id) : status;
    if (status == STATUS_OK && members > 0) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Only empty cluster groups can be removed");
    }
    return status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM cluster_groups WHERE id = ?1", "i", id) : status;
}

static void lifecycle(struct rpc_call *call, const char *action, const char *name, json_t *context)
{
    char *source = xasprintf("/1.0/cluster/groups/%s", name), *text = context != NULL ? json_dumps(context, JSON_COMPACT) : NULL;
    events_lifecycle(action, source, "default", rpc_caller(call), text, NULL);
    json_decref(context);
    free(source);
    free(text);
}

/* ---- handlers ---- */

static int check_members(const struct change *in, struct error *err)
{
    return in->n_members <= GROUP_MEMBERS_MAX ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "members: more than %d", GROUP_MEMBERS_MAX);
}

static int create_group(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__CreateClusterGroupRequest *request = (const Covey__V1__CreateClusterGroupRequest *)message;
    struct change in = {.arena = rpc_arena(call), .name = request->name, .description = request->description, .set_members = true, .members = request->members,
        .n_members = request->n_members};
    if (need_cluster(err) != STATUS_OK || group_name_check(request->name, err) != STATUS_OK || check_members(&in, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_write_call(call, "create", create_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "cluster-group-created", request->name, NULL);
    }
    return status;
}

static int update_group(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateClusterGroupRequest *request = (const Covey__V1__UpdateClusterGroupRequest *)message;
    struct change in = {.arena = rpc_arena(call), .name = request->name, .if_match = request->if_match,
        .description = mask_has(request->update_mask, "description") ? request->description : NULL, .set_members = mask_has(request->update_mask, "members"),
        .members = request->members, .n_members = request->n_members};
    if (need_cluster(err) != STATUS_OK || check_members(&in, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_write_call(call, "update", update_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        json_t *context = json_object();
        if (in.description != NULL) {
            json_object_set_new(context, "description", json_string(in.description));
        }
        json_t *members = in.set_members ? json_array() : NULL;
        for (size_t i = 0; i < in.n_members && members != NULL; i++) {
            json_array_append_new(members, json_string(in.members[i]));
        }
        if (members != NULL) {
            json_object_set_new(context, "members", members);
        }
        lifecycle(call, "cluster-group-updated", request->name, context);
    }
    return status;
}

static int rename_group(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__RenameClusterGroupRequest *request = (const Covey__V1__RenameClusterGroupRequest *)message;
    struct change in = {.arena = rpc_arena(call), .name = request->old_name, .new_name = request->name};
    if (need_cluster(err) != STATUS_OK) {
        return err->code;
    }
    if (strcmp(request->old_name, "default") == 0) {
        return error_set(err, STATUS_PERMISSION_DENIED, "The \"default\" group cannot be renamed");
    }
    int status = group_name_check(request->name, err);
    status = status == STATUS_OK ? daemon_write_call(call, "rename", rename_write, &in, NULL, NULL, err) : status;
    if (status == STATUS_OK) {
        lifecycle(call, "cluster-group-renamed", request->name, json_pack("{s:s}", "old_name", request->old_name));
    }
    return status;
}

static int delete_group(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__DeleteClusterGroupRequest *request = (const Covey__V1__DeleteClusterGroupRequest *)message;
    struct change in = {.arena = rpc_arena(call), .name = request->name};
    if (need_cluster(err) != STATUS_OK) {
        return err->code;
    }
    if (strcmp(request->name, "default") == 0) {
        return error_set(err, STATUS_PERMISSION_DENIED, "The 'default' cluster group cannot be deleted");
    }
    int status = daemon_write_call(call, "delete", delete_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        lifecycle(call, "cluster-group-deleted", request->name, NULL);
    }
    return status;
}

static const struct rpc_binding bindings[] = {
    {"ListClusterGroups", list_groups},   {"GetClusterGroup", get_group},       {"CreateClusterGroup", create_group},
    {"UpdateClusterGroup", update_group}, {"RenameClusterGroup", rename_group}, {"DeleteClusterGroup", delete_group},
};

void groups_bind(void)
{
    rpc_bind("covey.v1.ClusterGroups", bindings, sizeof bindings / sizeof *bindings, NULL);
}
