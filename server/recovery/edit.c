/* `cluster edit` and `cluster set-address` on a stopped member (spec/cluster.md 11): other addresses and roles of the members. Raft knows members by id, so new addresses go to the rows (by a
 * patch file that the first leader runs), to the local table and to the saved view, by which members find each other before there is a leader. Only roles go to
 * Raft's configuration. Thread: offline.c's only one. */
#include "recovery.h"

#include "server/config/keys.h"
#include "server/daemon/state.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct edit {
    struct daemon *daemon;
    struct arena arena;
    struct edit_member *before, *after;
    size_t count, after_count;
    uint64_t self;
    bool move;         /* nothing but the own address changes */
    const char *core;  /* core.https_address from now on, NULL = as it is */
    char *view; /* base64 */
};

static const char *text_of(struct arena *arena, const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return arena_strdup(arena, text != NULL ? text : "");
}

static int load_before(struct edit *edit, struct error *err)
{
    struct local_raft_node *nodes = NULL;
    if (local_raft_nodes_get(edit->daemon->local, &nodes, &edit->count, err) != STATUS_OK) {
        return err->code;
    }
    edit->before = arena_alloc(&edit->arena, (edit->count + 1) * sizeof *edit->before);
    for (size_t i = 0; i < edit->count; i++) {
        edit->before[i] = (struct edit_member){nodes[i].id, arena_strdup(&edit->arena, nodes[i].name), arena_strdup(&edit->arena, nodes[i].address),
                                               raft_role_name(nodes[i].role)};
    }
    local_raft_nodes_free(nodes, edit->count);
    return STATUS_OK;
}

static int load_after(struct edit *edit, const char *json, size_t len, struct error *err)
{
    json_error_t where;
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &where);
    const json_t *members = json_object_get(root, "members");
    int status = STATUS_OK;
    if (root == NULL) {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "%s", where.text);
    } /* no list is an empty one: all members are missing then */
    edit->after = arena_alloc(&edit->arena, (json_array_size(members) + 1) * sizeof *edit->after);
    size_t i;
    const json_t *member;
    json_array_foreach(members, i, member) {
        const json_t *id = json_object_get(member, "id");
        int64_t number = json_is_integer(id) ? json_integer_value(id) : 0;
        if (json_is_string(id) && parse_i64(json_string_value(id), 1, INT64_MAX, &number) != 0) {
            number = 0;
        }
        char canonical[300];
        const char *address = text_of(&edit->arena, member, "address");
        if (address_canonical(address, canonical, sizeof canonical, NULL) == STATUS_OK) {
            address = arena_strdup(&edit->arena, canonical);
        }
        edit->after[edit->after_count++] = (struct edit_member){(uint64_t)number, text_of(&edit->arena, member, "name"), address,
                                                               text_of(&edit->arena, member, "role")};
    }
    json_decref(root);
    return status;
}

/* ---- effects ---- */

static bool roles_differ(const struct edit *edit)
{
    bool differ = false;
    for (size_t i = 0; i < edit->count; i++) {
        differ = differ || strcmp(edit->before[i].role, edit->after[i].role) != 0;
    }
    return differ;
}

/* A member that moves alone tells the others itself (server/cluster/address.c): what it knows of their addresses may be old. */
static bool only_own_address(const struct edit *edit)
{
    bool moved = false;
    for (size_t i = 0; i < edit->count; i++) {
        bool differs = strcmp(edit->before[i].address, edit->after[i].address) != 0;
        if (differs && edit->after[i].id != edit->self) {
            return false;
        }
        moved = moved || differs;
    }
    return moved && !roles_differ(edit);
}

static int write_raft(struct edit *edit, struct error *err)
{
    static const enum raft_node_role roles[] = {[ROLE_VOTER] = RAFT_NODE_VOTER, [ROLE_STANDBY] = RAFT_NODE_STANDBY, [ROLE_SPARE] = RAFT_NODE_SPARE};
    char *database = xasprintf("%s/database", edit->daemon->dir), *global = recovery_raft_dir(edit->daemon);
    struct raft_node_server *servers = arena_alloc(&edit->arena, (edit->count + 1) * sizeof *servers);
    struct raft_node_position position = {0};
    for (size_t i = 0; i < edit->count; i++) {
        servers[i] = (struct raft_node_server){edit->after[i].id, roles[edit_role(edit->after[i].role)]};
    }
    int status = db_exists(database) ? raft_node_examine(global, &position, err) : STATUS_OK;
    if (status == STATUS_OK && position.last_index > 0) { /* a spare has no log: the leader tells it */
        status = raft_node_reconfigure(global, edit->self, servers, edit->count, err);
    }
    free(global);
    free(database);
    return status;
}

/* Appended: an earlier file that has not run yet stays. The detour over names that are no addresses lets members exchange theirs. */
static int write_patch(struct edit *edit, struct error *err)
{
    char *path = xasprintf("%s/database/patch.global.sql", edit->daemon->dir);
    struct buf text = {0};
    int status = file_read(path, RECOVERY_PATCH_BYTES_MAX, &text, err);
    status = status == STATUS_NOT_FOUND ? STATUS_OK : status;
    if (status == STATUS_OK) {
        if (text.len > 0 && text.data[text.len - 1] != '\n') {
            buf_puts(&text, "\n");
        }
        for (size_t i = 0; i < edit->count; i++) {
            buf_printf(&text, "UPDATE nodes SET address = 'edited:%" PRIu64 "' WHERE id = %" PRIu64 ";\n", edit->after[i].id, edit->after[i].id);
        }
        for (size_t i = 0; i < edit->count; i++) { /* canonical addresses hold no quotes */
            buf_printf(&text, "UPDATE nodes SET address = '%s' WHERE id = %" PRIu64 ";\n", edit->after[i].address, edit->after[i].id);
        }
        status = file_write_atomic(path, text.data, text.len, 0600, err);
    }
    buf_free(&text);
    free(path);
    return status;
}

static void edit_view(struct edit *edit)
{
    char *text = local_state_get(edit->daemon->local, "view");
    size_t len = 0;
    uint8_t *bytes = text != NULL ? base64_decode(text, &len) : NULL;
    Covey__Internal__V1__View *view =
        bytes != NULL ? (Covey__Internal__V1__View *)codec_unpack(&covey__internal__v1__view__descriptor, bytes, len, &edit->arena, NULL) : NULL;
    for (size_t i = 0; view != NULL && i < view->n_members; i++) {
        for (size_t j = 0; j < edit->count; j++) {
            if (edit->after[j].id == view->members[i]->id) {
                view->members[i]->address = (char *)edit->after[j].address;
                view->members[i]->raft_role = edit_role(edit->after[j].role);
            }
        }
    }
    if (view != NULL) {
        size_t size = covey__internal__v1__view__get_packed_size(view);
        uint8_t *packed = arena_alloc(&edit->arena, size + 1);
        covey__internal__v1__view__pack(view, packed);
        edit->view = base64_encode(packed, size);
    }
    free(bytes);
    free(text);
}

static int set_key(struct sql *sql, const char *key, const char *value, struct error *err)
{
    return sql_exec(sql, err, "INSERT INTO config (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2", "ss", key, value);
}

static int write_local(struct sql *sql, void *ud, struct error *err)
{
    struct edit *edit = ud;
    struct local_raft_node *nodes = arena_alloc(&edit->arena, (edit->count + 1) * sizeof *nodes);
    int status = STATUS_OK;
    for (size_t i = 0; i < edit->count; i++) {
        const struct edit_member *member = &edit->after[i];
        nodes[i] = (struct local_raft_node){member->id, (char *)member->address, edit_role(member->role),
                                            (char *)(str_empty(member->name) ? edit->before[i].name : member->name)};
        if (status == STATUS_OK && member->id == edit->self) {
            status = set_key(sql, "cluster.https_address", member->address, err);
            status = status == STATUS_OK && edit->core != NULL ? set_key(sql, "core.https_address", edit->core, err) : status;
            status = status == STATUS_OK ? local_state_put(sql, "moved", edit->move ? member->address : NULL, err) : status;
        }
    }
    status = status == STATUS_OK ? local_raft_nodes_put(sql, nodes, edit->count, err) : status;
    return status == STATUS_OK && edit->view != NULL ? local_state_put(sql, "view", edit->view, err) : status;
}

/* In this order, so that the same edit run again completes what a kill cut off: the local table, against which changes are recognised, is the last. */
static int apply(struct edit *edit, struct error *err)
{
    int status = roles_differ(edit) ? write_raft(edit, err) : STATUS_OK;
    status = status == STATUS_OK && !edit->move ? write_patch(edit, err) : status;
    if (status == STATUS_OK) {
        edit_view(edit);
        status = local_db_transaction(edit->daemon->local, write_local, edit, err);
    }
    return status;
}

int edit_move(struct daemon *daemon, const char *address, struct error *err)
{
    struct edit edit = {.daemon = daemon, .self = daemon_id(daemon), .move = true};
    char canonical[300];
    if (!daemon_clustered(daemon)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "This LXD instance is not clustered");
    }
    if (address_canonical(address, canonical, sizeof canonical, err) != STATUS_OK || address_resolves(canonical, err) != STATUS_OK) {
        return err->code;
    }
    char *core = local_config_get(daemon->local, "core.https_address"), *cluster = local_config_get(daemon->local, "cluster.https_address");
    arena_init(&edit.arena);
    int status = load_before(&edit, err);
    bool found = false;
    edit.after_count = edit.count;
    edit.after = arena_alloc(&edit.arena, (edit.count + 1) * sizeof *edit.after);
    for (size_t i = 0; status == STATUS_OK && i < edit.count; i++) {
        edit.after[i] = edit.before[i];
        if (edit.after[i].id == edit.self) {
            edit.after[i].address = canonical;
            found = true;
        } else if (strcmp(edit.after[i].address, canonical) == 0) {
            status = error_set(err, STATUS_ALREADY_EXISTS, "The address \"%s\" belongs to member \"%s\"", canonical, edit.after[i].name);
        }
    }
    if (status == STATUS_OK && !found) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "This member is not in its own list of members yet");
    }
    status = status == STATUS_OK && address_wildcard(canonical) ? error_set(err, STATUS_INVALID_ARGUMENT, "Wildcard addresses aren't allowed") : status;
    if (status == STATUS_OK && !str_eq(cluster, canonical)) {
        edit.core = str_eq(core, cluster) ? canonical : NULL; /* one listener for both: it goes along */
        status = apply(&edit, err);
    }
    free(edit.view);
    arena_clear(&edit.arena);
    free(cluster);
    free(core);
    return status;
}

int edit_apply(struct daemon *daemon, const char *json, size_t len, bool *invalid, struct error *err)
{
    struct edit edit = {.daemon = daemon, .self = daemon_id(daemon)};
    *invalid = false;
    if (!daemon_clustered(daemon)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Can't edit cluster configuration as server isn't clustered (missing \"cluster.https_address\" config)");
    }
    arena_init(&edit.arena);
    int status = load_before(&edit, err);
    if (status == STATUS_OK) {
        status = load_after(&edit, json, len, err);
        status = status == STATUS_OK ? edit_check(edit.before, edit.count, edit.after, edit.after_count, err) : status;
        *invalid = status != STATUS_OK;
    }
    edit.move = status == STATUS_OK && only_own_address(&edit);
    status = status == STATUS_OK ? apply(&edit, err) : status;
    free(edit.view);
    arena_clear(&edit.arena);
    return status;
}
