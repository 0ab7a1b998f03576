/* covey.v1.Cluster: the cluster as clients see it. Members and tokens are read and written on the leader; GetCluster and UpdateCluster concern the server
 * that was asked. Methods without a binding answer "not implemented". */
#include "cluster.h"

#include "levels.h"
#include "server/auth/tokens.h"
#include "server/config/keys.h"
#include "server/daemon/etag.h"
#include "server/daemon/filter.h"
#include "server/daemon/identity.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/operations/operations.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MEMBERS_MAX = 1024 };

static int get_cluster(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct arena *arena = rpc_arena(call);
    const struct view *view = view_get();
    Covey__V1__ClusterInfo *out = arena_alloc(arena, sizeof *out);
    covey__v1__cluster_info__init(out);
    out->enabled = daemon_clustered(the_daemon);
    if (out->enabled) {
        char name[128];
        daemon_name(the_daemon, name, sizeof name);
        out->server_name = arena_strdup(arena, name);
    }
    out->n_member_config = view->message->n_member_config;
    out->member_config = arena_alloc(arena, (out->n_member_config + 1) * sizeof *out->member_config);
    for (size_t i = 0; i < out->n_member_config; i++) {
        out->member_config[i] = (Covey__V1__MemberConfigKey *)codec_copy(&view->message->member_config[i]->base, arena);
    }
    view_unref(view);
    out->etag = etag_make(arena, &out->base, "server_name,enabled,member_config");
    *response = &out->base;
    return STATUS_OK;
}

/* Which kind of change the request asks for, with the checks that come before any operation (spec/cluster.md 3.1, 3.6, 4.1). */
static int update_cluster(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateClusterRequest *request = (const Covey__V1__UpdateClusterRequest *)message;
    Covey__V1__UpdateClusterResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
    covey__v1__update_cluster_response__init(out);
    if (!request->enabled) {
        *response = &out->base;
        return str_empty(request->server_name)
                   ? cluster_disable(call, err)
                   : error_set(err, STATUS_INVALID_ARGUMENT, "ServerName must be empty when disabling clustering");
    }
    if (str_empty(request->server_name)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "ServerName is required when enabling clustering");
    }
    if (request->server_name[0] == '@') {
        return error_set(err, STATUS_INVALID_ARGUMENT, "ServerName may not start with \"@\"");
    }
    if (strcmp(request->server_name, "none") == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "ServerName cannot be \"none\"");
    }
    if (member_name_check(request->server_name, err) != STATUS_OK) {
        return err->code;
    }
    if (daemon_clustered(the_daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "This server is already clustered");
    }
    int status = str_empty(request->cluster_address) ? bootstrap_start(call, request->server_name, &out->operation, err)
                                                     : join_start(call, message, &out->operation, err);
    *response = &out->base;
    return status;
}

/* ---- members ---- */

struct list {
    struct arena *arena;
    const char *only; /* NULL = all */
    Covey__V1__Member **members;
    size_t count;
};

static const char *manual_role(int64_t role)
{
    return role == 1 ? "event-hub" : role == 2 ? "ovn-chassis" : NULL;
}

static void add_role(struct arena *arena, Covey__V1__Member *member, const char *role)
{
    enum { ROLES_MAX = 8 };
    if (member->roles == NULL) {
        member->roles = arena_alloc(arena, ROLES_MAX * sizeof *member->roles);
    }
    if (role != NULL && member->n_roles < ROLES_MAX) {
        member->roles[member->n_roles++] = arena_strdup(arena, role);
    }
}

int member_stored(struct sql *sql, struct arena *arena, int64_t id, Covey__V1__Member *member, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT role FROM nodes_roles WHERE node_id = ?1 ORDER BY rowid", "i", id);
    while (sql_next(s)) {
        add_role(arena, member, manual_role(sql_int(s, 0)));
    }
    if (sql_done(s, err) != STATUS_OK) {
        return err->code;
    }
    s = sql_query(sql, "SELECT name FROM cluster_groups JOIN nodes_cluster_groups ON group_id = cluster_groups.id WHERE node_id = ?1 ORDER BY name", "i", id);
    while (member->n_groups < MEMBER_GROUPS_MAX && sql_next(s)) { /* no more can be stored: update.c */
        if (member->groups == NULL) {
            member->groups = arena_alloc(arena, MEMBER_GROUPS_MAX * sizeof *member->groups);
        }
        member->groups[member->n_groups++] = arena_strdup(arena, sql_text(s, 0));
    }
    if (sql_done(s, err) != STATUS_OK) {
        return err->code;
    }
    s = sql_query(sql, "SELECT key, value FROM nodes_config WHERE node_id = ?1 ORDER BY key", "i", id);
    while (member->n_config < MEMBER_KEYS_MAX && sql_next(s)) {
        if (member->config == NULL) {
            member->config = arena_alloc(arena, MEMBER_KEYS_MAX * sizeof *member->config);
        }
        Covey__V1__Member__ConfigEntry *entry = arena_alloc(arena, sizeof *entry);
        covey__v1__member__config_entry__init(entry);
        entry->key = arena_strdup(arena, sql_text(s, 0));
        entry->value = arena_strdup(arena, sql_text(s, 1));
        member->config[member->n_config++] = entry;
    }
    return sql_done(s, err);
}

/* Roles from Raft, status from liveness (spec/cluster.md 5.1, 7.3). */
static void member_live(struct arena *arena, uint64_t id, int64_t state, Covey__V1__Member *member)
{
    enum { EVACUATED = 2 };
    int role = state_raft_role(id);
    bool leader = id == daemon_id(the_daemon);
    if (leader) {
        add_role(arena, member, "database-leader");
    }
    add_role(arena, member, role == ROLE_VOTER ? "database" : role == ROLE_STANDBY ? "database-standby" : NULL);
    member->database = leader || role == ROLE_VOTER || role == ROLE_STANDBY;
    if (state == EVACUATED) {
        member->status = arena_strdup(arena, "Evacuated");
        member->message = arena_strdup(arena, "Unavailable due to maintenance");
    } else if (!member_online(the_daemon, id)) {
        char duration[64], when[48];
        int64_t seen_ns = 0, silence = attach_silence_ms(id, &seen_ns);
        duration_text(silence * 1000000, duration, sizeof duration);
        time_rfc3339(seen_ns, when, sizeof when);
        for (char *c = when; *c != '\0'; c++) { /* "2026-11-21 08:45:54.17 +0000 UTC" */
            *c = *c == 'T' ? ' ' : *c;
        }
        when[strcspn(when, "Z")] = '\0';
        member->status = arena_strdup(arena, "Offline");
        member->message = arena_printf(arena, "No heartbeat for %s (%s +0000 UTC)", duration, when);
    } else {
        const struct view *view = view_get();
        struct level_display show = level_show(view->message, id);
        view_unref(view);
        member->status = arena_strdup(arena, show.blocked ? "Blocked" : "Online");
        member->message = arena_strdup(arena, show.message != NULL ? show.message : "Fully operational");
    }
}

static int read_members(struct sql *sql, void *ud, struct error *err)
{
    struct list *list = ud;
    list->members = arena_alloc(list->arena, MEMBERS_MAX * sizeof *list->members);
    struct sql_stmt *s = sql_query(sql,
        "SELECT nodes.id, nodes.name, nodes.description, address, state, arch, coalesce(nodes_failure_domains.name, 'default') FROM nodes"
        " LEFT JOIN nodes_failure_domains ON nodes_failure_domains.id = failure_domain_id WHERE state <> 1 AND (?1 IS NULL OR nodes.name = ?1) ORDER BY nodes.id",
        "s", list->only);
    int status = STATUS_OK;
    while (status == STATUS_OK && sql_next(s)) {
        if (list->count == MEMBERS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members", MEMBERS_MAX);
            break;
        }
        Covey__V1__Member *member = arena_alloc(list->arena, sizeof *member);
        covey__v1__member__init(member);
        member->server_name = arena_strdup(list->arena, sql_text(s, 1));
        member->description = arena_strdup(list->arena, sql_text(s, 2));
        member->url = arena_printf(list->arena, "https://%s", sql_text(s, 3));
        member->architecture = arena_strdup(list->arena, architecture_name((int)sql_int(s, 5)));
        member->failure_domain = arena_strdup(list->arena, sql_text(s, 6));
        status = member_stored(sql, list->arena, sql_int(s, 0), member, err);
        member_live(list->arena, (uint64_t)sql_int(s, 0), sql_int(s, 4), member);
        if (list->only != NULL) { /* a header of the single object */
            member->etag = etag_make(list->arena, &member->base, MEMBER_ETAG_FIELDS);
        }
        list->members[list->count++] = member;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

static int need_cluster(struct error *err)
{
    return daemon_clustered(the_daemon) ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Server is not clustered");
}

/* Keeps what matches. */
static int apply_filter(const char *text, struct list *list, struct error *err)
{
    struct filter *filter = NULL;
    size_t kept = 0;
    int status = filter_parse(text, &filter, err);
    for (size_t i = 0; i < list->count && status == STATUS_OK; i++) {
        if (filter_match_message(filter, &list->members[i]->base)) {
            list->members[kept++] = list->members[i];
        }
    }
    list->count = kept;
    filter_free(filter);
    return status;
}

static int list_members(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListMembersRequest *request = (const Covey__V1__ListMembersRequest *)message;
    struct list list = {.arena = rpc_arena(call)};
    if (need_cluster(err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_members, &list, NULL, err);
    status = status == STATUS_OK && !str_empty(request->filter) ? apply_filter(request->filter, &list, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListMembersResponse *out = arena_alloc(list.arena, sizeof *out);
    covey__v1__list_members_response__init(out);
    if (request->recursion > 0) {
        out->members = list.members;
        out->n_members = list.count;
    } else {
        out->urls = arena_alloc(list.arena, (list.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < list.count; i++) {
            out->urls[out->n_urls++] = arena_printf(list.arena, "/1.0/cluster/members/%s", list.members[i]->server_name);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int get_member(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetMemberRequest *request = (const Covey__V1__GetMemberRequest *)message;
    struct list list = {.arena = rpc_arena(call), .only = request->name};
    if (need_cluster(err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_members, &list, NULL, err);
    if (status == STATUS_OK && list.count == 0) {
        status = error_set(err, STATUS_NOT_FOUND, "Cluster member not found");
    }
    if (status == STATUS_OK) {
        *response = &list.members[0]->base;
    }
    return status;
}

static int update_member(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateMemberRequest *request = (const Covey__V1__UpdateMemberRequest *)message;
    struct list list = {.arena = rpc_arena(call), .only = request->name};
    if (need_cluster(err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_members, &list, NULL, err);
    if (status == STATUS_OK && list.count == 0) {
        status = error_set(err, STATUS_NOT_FOUND, "Cluster member not found");
    }
    return status == STATUS_OK ? member_update(call, message, list.members[0], err) : status;
}

/* ---- join tokens ---- */

static const struct op_kind token_kind = {.type = 3, .description = "Executing operation", .class = OP_TOKEN, .may_cancel = true};

struct issue {
    const char *name, *secret;
    int64_t expires_ns;
    struct buf replaced;
};

static int insert_token(struct sql *sql, void *ud, const char *uuid, struct error *err)
{
    struct issue *issue = ud;
    int64_t taken = 0;
    int status = sql_get_int(sql, &taken, err, "SELECT count(*) FROM nodes WHERE name = ?1", "s", issue->name);
    if (status == STATUS_OK && taken > 0) {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "The cluster already has a member with name: %s", issue->name);
    }
    return status == STATUS_OK ? token_insert(sql, uuid, TOKEN_JOIN, issue->name, issue->secret, issue->expires_ns, NULL, &issue->replaced, err) : status;
}

static json_t *online_addresses(void)
{
    enum { EVACUATED = 2, PENDING = 1 };
    json_t *addresses = json_array();
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_members; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        if (member->state != PENDING && member->state != EVACUATED && member_online(the_daemon, member->id)) {
            json_array_append_new(addresses, json_string(member->address));
        }
    }
    view_unref(view);
    return addresses;
}

static int create_token(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__CreateJoinTokenRequest *request = (const Covey__V1__CreateJoinTokenRequest *)message;
    char secret[2 * TOKEN_SECRET_BYTES + 1], fingerprint[FINGERPRINT_SIZE], expiry[64], when[48];
    if (!daemon_clustered(the_daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "This server is not clustered");
    }
    if (strcmp(request->server_name, "none") == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Join token name cannot be \"none\"");
    }
    if (member_name_check(request->server_name, err) != STATUS_OK) {
        return err->code;
    }
    struct issue issue = {.name = request->server_name, .secret = secret};
    random_hex(secret, TOKEN_SECRET_BYTES);
    config_text("cluster.join_token_expiry", expiry, sizeof expiry);
    if (expiry_add(expiry, time_unix_ns(), &issue.expires_ns) != 0 || !identity_cluster_fingerprint(fingerprint)) {
        return error_set(err, STATUS_INTERNAL, "Invalid expiry expression or no cluster certificate");
    }
    time_rfc3339(issue.expires_ns, when, sizeof when);
    json_t *addresses = online_addresses();
    if (json_array_size(addresses) == 0) {
        json_decref(addresses);
        return error_set(err, STATUS_INTERNAL, "There are no online cluster members");
    }
    json_t *metadata = json_pack("{s:s, s:s, s:s, s:o, s:s}", "serverName", request->server_name, "secret", secret, "fingerprint", fingerprint, "addresses", addresses,
        "expiresAt", when);
    char *text = json_dumps(metadata, JSON_COMPACT);
    struct op_spec spec = {.kind = &token_kind, .project = "default", .resources_json = "{\"cluster\":null}", .metadata_json = text, .prepare = insert_token, .ud = &issue};
    Covey__V1__Operation *operation = NULL;
    int status = op_create(call, &spec, &operation, err);
    free(text);
    json_decref(metadata);
    for (size_t at = 0; status == STATUS_OK && at < issue.replaced.len; at += strlen(issue.replaced.data + at) + 1) {
        op_token_ended(issue.replaced.data + at, OP_CANCELLED);
    }
    buf_free(&issue.replaced);
    if (status == STATUS_OK) {
        events_lifecycle("cluster-token-created", "/1.0/cluster/members", "default", rpc_caller(call), NULL, NULL);
        *response = &operation->base;
    }
    return status;
}

static struct rpc_binding bindings[] = {
    {"UpdateClusterCertificate", NULL},
    {"GetCluster", get_cluster},   {"UpdateCluster", update_cluster},  {"ListMembers", list_members},
    {"GetMember", get_member},     {"CreateJoinToken", create_token}, {"UpdateMember", update_member},
    {"RemoveMember", member_remove}, {"RenameMember", member_rename},
};

void cluster_service_bind(void)
{
    op_register(&token_kind);
    leave_bind();
    bindings[0].handler = certificate_update_handler();
    rpc_bind("covey.v1.Cluster", bindings, sizeof bindings / sizeof *bindings, NULL);
}
