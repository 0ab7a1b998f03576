/* UpdateMember: the user's part of a member's record (spec/cluster.md 9.2). One transaction on the leader. PATCH is a true merge: absent fields stay. */
#include "cluster.h"

#include "server/daemon/etag.h"
#include "server/daemon/mask.h"
#include "server/events/events.h"
#include <stdlib.h>
#include <string.h>

enum { MANUAL_ROLES = 2 }; /* event-hub, ovn-chassis */

struct update {
    struct arena *arena;
    const Covey__V1__UpdateMemberRequest *request;
    const Covey__V1__Member *now;
};

static int role_code(const char *role)
{
    return strcmp(role, "event-hub") == 0 ? 1 : strcmp(role, "ovn-chassis") == 0 ? 2 : 0;
}

static bool automatic(const char *role)
{
    return strcmp(role, "database") == 0 || strcmp(role, "database-leader") == 0 || strcmp(role, "database-standby") == 0;
}

/* Those that stay keep their place: roles are shown in the order in which they were given. */
static int set_roles(struct sql *sql, int64_t node, const struct update *in, struct error *err)
{
    int status = STATUS_OK;
    for (int64_t role = 1; role <= MANUAL_ROLES && status == STATUS_OK; role++) {
        bool kept = false;
        for (size_t i = 0; i < in->request->n_roles && !kept; i++) {
            kept = role_code(in->request->roles[i]) == role;
        }
        status = kept ? STATUS_OK : sql_exec(sql, err, "DELETE FROM nodes_roles WHERE node_id = ?1 AND role = ?2", "ii", node, role);
    }
    for (size_t i = 0; i < in->request->n_roles && status == STATUS_OK; i++) {
        if (!automatic(in->request->roles[i])) {
            status = sql_exec(sql, err, "INSERT OR IGNORE INTO nodes_roles (node_id, role) VALUES (?1, ?2)", "ii", node, (int64_t)role_code(in->request->roles[i]));
        }
    }
    return status;
}

static int set_groups(struct sql *sql, int64_t node, const struct update *in, struct error *err)
{
    int status = sql_exec(sql, err, "DELETE FROM nodes_cluster_groups WHERE node_id = ?1", "i", node);
    for (size_t i = 0; i < in->request->n_groups && status == STATUS_OK; i++) {
        int64_t group = 0;
        status = sql_get_int(sql, &group, err, "SELECT id FROM cluster_groups WHERE name = ?1", "s", in->request->groups[i]);
        if (status == STATUS_NOT_FOUND) {
            return error_set(err, STATUS_NOT_FOUND,
                "Update cluster groups: Failed to add member to cluster group: Failed to get cluster group ID: Cluster group not found");
        }
        if (status == STATUS_OK) {
            status = sql_exec(sql, err, "INSERT OR IGNORE INTO nodes_cluster_groups (node_id, group_id) VALUES (?1, ?2)", "ii", node, group);
        }
    }
    return status;
}

static int set_domain(struct sql *sql, int64_t node, const char *name, struct error *err)
{
    if (strcmp(name, "default") == 0) {
        return sql_exec(sql, err, "UPDATE nodes SET failure_domain_id = NULL WHERE id = ?1", "i", node);
    }
    int status = sql_exec(sql, err, "INSERT OR IGNORE INTO nodes_failure_domains (name) VALUES (?1)", "s", name);
    return status != STATUS_OK ? status
                               : sql_exec(sql, err, "UPDATE nodes SET failure_domain_id = (SELECT id FROM nodes_failure_domains WHERE name = ?2) WHERE id = ?1", "is", node, name);
}

static int set_config(struct sql *sql, int64_t node, const struct update *in, struct error *err)
{
    int status = in->request->update_mask == NULL ? sql_exec(sql, err, "DELETE FROM nodes_config WHERE node_id = ?1", "i", node) : STATUS_OK;
    for (size_t i = 0; i < in->request->n_config && status == STATUS_OK; i++) {
        const char *key = in->request->config[i]->key, *value = in->request->config[i]->value;
        status = str_empty(value) ? sql_exec(sql, err, "DELETE FROM nodes_config WHERE node_id = ?1 AND key = ?2", "is", node, key)
                                  : sql_exec(sql, err, "INSERT INTO nodes_config (node_id, key, value) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = excluded.value",
                                        "iss", node, key, value);
    }
    return status;
}

static int check_counts(struct sql *sql, int64_t node, struct error *err)
{
    int64_t keys = 0, groups = 0;
    int status = sql_get_int(sql, &keys, err, "SELECT count(*) FROM nodes_config WHERE node_id = ?1", "i", node);
    status = status == STATUS_OK ? sql_get_int(sql, &groups, err, "SELECT count(*) FROM nodes_cluster_groups WHERE node_id = ?1", "i", node) : status;
    return status == STATUS_OK && (keys > MEMBER_KEYS_MAX || groups > MEMBER_GROUPS_MAX)
               ? error_set(err, STATUS_INVALID_ARGUMENT, "more than %d configuration keys or %d groups of a member", MEMBER_KEYS_MAX, MEMBER_GROUPS_MAX)
               : status;
}

/* The ETag once more where nobody can change the record any more. What Raft and liveness say is taken as the caller was shown it: the transaction's thread
 * may not ask for it. */
static int check_etag(struct sql *sql, int64_t node, const struct update *in, struct error *err)
{
    Covey__V1__Member stored = COVEY__V1__MEMBER__INIT;
    char *description = NULL, *domain = NULL;
    int status = sql_get_text(sql, &description, err, "SELECT description FROM nodes WHERE id = ?1", "i", node);
    status = status == STATUS_OK ? sql_get_text(sql, &domain, err,
                                       "SELECT coalesce((SELECT name FROM nodes_failure_domains WHERE id = failure_domain_id), 'default') FROM nodes WHERE id = ?1", "i", node)
                                 : status;
    status = status == STATUS_OK ? member_stored(sql, in->arena, node, &stored, err) : status;
    if (status == STATUS_OK) {
        char **roles = arena_alloc(in->arena, (stored.n_roles + in->now->n_roles + 1) * sizeof *roles);
        size_t count = 0;
        for (size_t i = 0; i < stored.n_roles; i++) {
            roles[count++] = stored.roles[i];
        }
        for (size_t i = 0; i < in->now->n_roles; i++) {
            if (automatic(in->now->roles[i])) {
                roles[count++] = in->now->roles[i];
            }
        }
        stored.roles = roles;
        stored.n_roles = count;
        stored.description = description;
        stored.failure_domain = domain;
        status = etag_check(in->request->if_match, etag_make(in->arena, &stored.base, MEMBER_ETAG_FIELDS), err);
    }
    free(description);
    free(domain);
    return status;
}

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct update *in = ud;
    const Covey__V1__UpdateMemberRequest *request = in->request;
    int64_t node = 0;
    int status = sql_get_int(sql, &node, err, "SELECT id FROM nodes WHERE name = ?1 AND state <> 1", "s", request->name);
    if (status == STATUS_NOT_FOUND) {
        return error_set(err, STATUS_NOT_FOUND, "Cluster member not found");
    }
    if (status == STATUS_OK && !str_empty(request->if_match)) {
        status = check_etag(sql, node, in, err);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "roles")) {
        status = set_roles(sql, node, in, err);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "failure_domain")) {
        status = set_domain(sql, node, request->failure_domain, err);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "description")) {
        status = sql_exec(sql, err, "UPDATE nodes SET description = ?2 WHERE id = ?1", "is", node, request->description);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "config")) {
        status = set_config(sql, node, in, err);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "groups")) {
        status = set_groups(sql, node, in, err);
    }
    return status == STATUS_OK ? check_counts(sql, node, err) : status;
}

static bool has_role(char *const *roles, size_t count, const char *role)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(roles[i], role) == 0) {
            return true;
        }
    }
    return false;
}

/* The checks of 9.2 in order, after the ETag. */
static int check(const struct update *in, struct error *err)
{
    const Covey__V1__UpdateMemberRequest *request = in->request;
    if (mask_has(request->update_mask, "roles")) {
        bool has = has_role(in->now->roles, in->now->n_roles, "database"), wants = has_role(request->roles, request->n_roles, "database");
        if (has && !wants) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "The \"database\" role cannot be dropped at this time");
        }
        if (!has && wants) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "The \"database\" role cannot be added at this time");
        }
    }
    if (mask_has(request->update_mask, "groups") && request->n_groups == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Cluster members need to belong to at least one group");
    }
    for (size_t i = 0; i < request->n_config; i++) {
        const char *key = request->config[i]->key, *value = request->config[i]->value;
        if (strcmp(key, "scheduler.instance") != 0 && (!str_prefix(key, "user.") || key[5] == '\0')) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid cluster configuration key \"%s\"", key);
        }
        if (strcmp(key, "scheduler.instance") == 0 && !str_empty(value) && strcmp(value, "all") != 0 && strcmp(value, "group") != 0 && strcmp(value, "manual") != 0) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid cluster configuration key \"scheduler.instance\" value");
        }
    }
    for (size_t i = 0; mask_has(request->update_mask, "roles") && i < request->n_roles; i++) {
        if (!automatic(request->roles[i]) && role_code(request->roles[i]) == 0) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Update roles: Invalid cluster role \"%s\"", request->roles[i]);
        }
    }
    if (mask_has(request->update_mask, "failure_domain") && str_empty(request->failure_domain)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Update failure domain: Failure domain name can't be empty");
    }
    return STATUS_OK;
}

int member_update(struct rpc_call *call, const ProtobufCMessage *message, const Covey__V1__Member *now, struct error *err)
{
    struct update in = {.arena = rpc_arena(call), .request = (const Covey__V1__UpdateMemberRequest *)message, .now = now};
    if (etag_check(in.request->if_match, now->etag, err) != STATUS_OK || check(&in, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_write_call(call, "update", update_write, &in, NULL, NULL, err);
    if (status == STATUS_OK) {
        char source[MEMBER_NAME_MAX + 32];
        view_propagate(the_daemon); /* changed roles act at once, everywhere */
        snprintf(source, sizeof source, "/1.0/cluster/members/%s", in.request->name);
        events_lifecycle("cluster-member-updated", source, "default", rpc_caller(call), NULL, NULL);
    }
    return status;
}
