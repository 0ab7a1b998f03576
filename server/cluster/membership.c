/* The leader's side of joining (covey.internal.v1.Membership): accept and complete; introduce.c has the other two steps. Every step may be repeated with the
 * same join id and ends in the same state, so that a joiner or a leader that dies half-way leaves either a member or nothing. Handlers run on agent worker
 * threads. */
#include "cluster.h"

#include "join.h"
#include "upgrade.h"
#include "server/config/keys.h"
#include "server/daemon/identity.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/networks/networks_member.h"
#include "server/pools/rules.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- Accept ---- */

struct accept {
    const Covey__Internal__V1__AcceptRequest *request;
    const char *fingerprint;
    int64_t now_ns;
    uint64_t id;
    struct arena *arena;
    Covey__Internal__V1__AcceptResponse *out;
};

/* The newcomer must be as old as every member; while they differ among themselves none can be. The number told is a member's that it is not. */
static int check_versions(struct sql *sql, int64_t schema, int64_t api, struct error *err)
{
    static const struct {
        const char *query, *what;
    } rules[] = {{"SELECT schema FROM nodes WHERE state <> 1 AND schema <> ?1 ORDER BY schema DESC LIMIT 1", "DB schema"},
                 {"SELECT api_extensions FROM nodes WHERE state <> 1 AND api_extensions <> ?1 ORDER BY api_extensions DESC LIMIT 1", "API count"}};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        int64_t expected = 0;
        struct error failed = ERROR_INIT;
        int status = sql_get_int(sql, &expected, &failed, rules[i].query, "i", i == 0 ? schema : api);
        if (status == STATUS_OK) {
            return error_set(err, STATUS_FAILED_PRECONDITION, "The joining server version doesn't match (expected %s with %s %" PRId64 ")", COVEY_VERSION, rules[i].what, expected);
        }
        if (status != STATUS_NOT_FOUND) {
            return error_set(err, failed.code, "%s", failed.text);
        }
    }
    return STATUS_OK;
}

static int cmp_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static const char *pool_option(const Covey__Internal__V1__PoolSpec *pool, const char *key)
{
    for (size_t i = 0; i < pool->n_config; i++) {
        if (strcmp(pool->config[i]->key, key) == 0) {
            return pool->config[i]->value;
        }
    }
    return NULL;
}

static int read_pool_keys(struct sql *sql, struct arena *arena, int64_t id, Covey__Internal__V1__PoolSpec *pool, struct error *err)
{
    bool more = false;
    pool->config = arena_alloc(arena, POOL_KEYS_MAX * sizeof *pool->config);
    struct sql_stmt *s = sql_query(sql, "SELECT key, value FROM storage_pools_config WHERE storage_pool_id = ?1 AND node_id IS NULL ORDER BY key", "i", id);
    while (!more && sql_next(s)) {
        more = pool->n_config == POOL_KEYS_MAX;
        if (!more) {
            Covey__Internal__V1__PoolSpec__ConfigEntry *entry = arena_alloc(arena, sizeof *entry);
            covey__internal__v1__pool_spec__config_entry__init(entry);
            entry->key = arena_strdup(arena, sql_text(s, 0));
            entry->value = arena_strdup(arena, sql_text(s, 1));
            pool->config[pool->n_config++] = entry;
        }
    }
    int status = sql_done(s, err);
    return status == STATUS_OK && more ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "storage pool %s has more than %d keys", pool->name, POOL_KEYS_MAX) : status;
}

static int read_pools(struct sql *sql, struct accept *in, struct error *err)
{
    bool more = false;
    int status = STATUS_OK;
    Covey__Internal__V1__AcceptResponse *out = in->out;
    out->pools = arena_alloc(in->arena, JOIN_POOLS_MAX * sizeof *out->pools);
    struct sql_stmt *s = sql_query(sql, "SELECT id, name, driver FROM storage_pools WHERE state = 1 ORDER BY name", "");
    while (status == STATUS_OK && !more && sql_next(s)) {
        more = out->n_pools == JOIN_POOLS_MAX;
        if (!more) {
            Covey__Internal__V1__PoolSpec *pool = arena_alloc(in->arena, sizeof *pool);
            covey__internal__v1__pool_spec__init(pool);
            pool->name = arena_strdup(in->arena, sql_text(s, 1));
            pool->driver = arena_strdup(in->arena, sql_text(s, 2));
            out->pools[out->n_pools++] = pool;
            status = read_pool_keys(sql, in->arena, sql_int(s, 0), pool, err);
        }
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    status = status == STATUS_OK ? done : status;
    return status == STATUS_OK && more ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d storage pools", JOIN_POOLS_MAX) : status;
}

/* The joiner's pool against the cluster's of the same name. */
static int check_pool(const Covey__Internal__V1__PoolSpec *have, const Covey__Internal__V1__PoolSpec *wanted, struct arena *arena, struct error *err)
{
    if (strcmp(have->driver, wanted->driver) != 0) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Mismatching driver for storage pool %s", have->name);
    }
    char **differ = arena_alloc(arena, (wanted->n_config + have->n_config + 1) * sizeof *differ);
    size_t count = 0;
    for (size_t k = 0; k < wanted->n_config; k++) {
        char *key = wanted->config[k]->key;
        if (!pool_key_member(key) && !str_eq(pool_option(have, key), wanted->config[k]->value)) {
            differ[count++] = key;
        }
    }
    for (size_t k = 0; k < have->n_config; k++) {
        char *key = have->config[k]->key;
        if (!pool_key_member(key) && !str_empty(have->config[k]->value) && pool_option(wanted, key) == NULL) {
            differ[count++] = key;
        }
    }
    if (count == 0) {
        return STATUS_OK;
    }
    struct buf list = {0};
    qsort(differ, count, sizeof *differ, cmp_text);
    for (size_t k = 0; k < count; k++) {
        buf_printf(&list, "%s%s", k > 0 ? ", " : "", differ[k]);
    }
    error_set(err, STATUS_FAILED_PRECONDITION, "Mismatching config for storage pool %s: different values for keys: %s", have->name, list.data);
    buf_free(&list);
    return err->code;
}

/* Pools that the joiner has under the same name must fit; the others it makes from what it is told. */
static int check_pools(struct sql *sql, struct accept *in, struct error *err)
{
    int status = read_pools(sql, in, err);
    for (size_t i = 0; i < in->out->n_pools && status == STATUS_OK; i++) {
        for (size_t j = 0; j < in->request->n_pools && status == STATUS_OK; j++) {
            if (strcmp(in->request->pools[j]->name, in->out->pools[i]->name) == 0) {
                status = check_pool(in->request->pools[j], in->out->pools[i], in->arena, err);
            }
        }
    }
    return status;
}

/* A server joins under the name for which it was trusted: a token for one name is none for another. */
static int check_introduced(struct sql *sql, const char *name, const char *fingerprint, struct error *err)
{
    char *known = NULL;
    int status = sql_get_text(sql, &known, err, "SELECT name FROM certificates WHERE fingerprint = ?1 AND type = 2", "s", fingerprint);
    if (status == STATUS_NOT_FOUND) {
        status = error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
    } else if (status == STATUS_OK && strcmp(known, name) != 0) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Existing server certificate with different name \"%s\" already in trust store", known);
    }
    free(known);
    return status;
}

static int accept_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct accept *in = ud;
    const Covey__Internal__V1__AcceptRequest *request = in->request;
    int64_t id = 0;
    int status = sql_get_int(sql, &id, err, "SELECT id FROM nodes WHERE join_id = ?1 AND join_id <> ''", "s", request->join_id);
    if (status == STATUS_NOT_FOUND) {
        /* An attempt of the same server that it gave up without telling us must not block the name. */
        status = sql_exec(sql, err, "DELETE FROM nodes WHERE state = 1 AND fingerprint = ?1", "s", in->fingerprint);
        int64_t count = 0;
        if (status == STATUS_OK) {
            status = check_introduced(sql, request->name, in->fingerprint, err);
        }
        if (status == STATUS_OK) {
            status = sql_get_int(sql, &count, err, "SELECT count(*) FROM nodes WHERE name = ?1", "s", request->name);
        }
        if (status == STATUS_OK && count > 0) {
            status = error_set(err, STATUS_FAILED_PRECONDITION, "The cluster already has a member with name: %s", request->name);
        }
        if (status == STATUS_OK) {
            status = sql_get_int(sql, &count, err, "SELECT count(*) FROM nodes WHERE address = ?1", "s", request->address);
        }
        if (status == STATUS_OK && count > 0) {
            status = error_set(err, STATUS_FAILED_PRECONDITION, "The cluster already has a member with address: %s", request->address);
        }
        if (status == STATUS_OK) {
            status = check_versions(sql, request->schema, request->api_extensions, err);
        }
        if (status == STATUS_OK) {
            struct level_claim claim = upgrade_claim(); /* equal levels have equal floors */
            status = sql_exec(sql, err,
                "INSERT INTO nodes (name, address, schema, api_extensions, schema_floor, api_floor, state, arch, fingerprint, join_id, created_at, heartbeat)"
                " VALUES (?1, ?2, ?3, ?4, ?5, ?6, 1, ?7, ?8, ?9, ?10, ?10)",
                "ssiiiiissi", request->name, request->address, request->schema, request->api_extensions, claim.floor.schema, claim.floor.api,
                (int64_t)architecture_id(request->architecture), in->fingerprint, request->join_id, in->now_ns);
            id = sql_last_id(sql);
        }
    }
    in->id = (uint64_t)id;
    return status;
}

static int check_read(struct sql *sql, void *ud, struct error *err)
{
    int64_t clustered = 0;
    int status = sql_get_int(sql, &clustered, err, "SELECT count(*) FROM cluster", "");
    if (status == STATUS_OK && clustered == 0) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Clustering isn't enabled");
    }
    struct accept *in = ud;
    Covey__Internal__V1__AcceptResponse *out = in->out;
    status = status == STATUS_OK ? check_pools(sql, in, err) : status;
    status = status == STATUS_OK ? networks_read_specs(sql, 0, &out->networks, &out->n_networks, in->arena, err) : status;
    return status == STATUS_OK ? networks_check_joiner(out->networks, out->n_networks, in->request->networks, in->request->n_networks, err) : status;
}

static int accept_read(struct sql *sql, void *ud, struct error *err)
{
    struct accept *in = ud;
    char *uuid = NULL, *cert = NULL, *key = NULL;
    int64_t epoch = 1, id = 0;
    int status = sql_get_text(sql, &uuid, err, "SELECT uuid FROM cluster WHERE id = 1", "");
    if (status == STATUS_OK) {
        status = sql_get_text(sql, &cert, err, "SELECT certificate FROM cluster WHERE id = 1", "");
    }
    if (status == STATUS_OK) {
        status = sql_get_text(sql, &key, err, "SELECT key FROM cluster WHERE id = 1", "");
    }
    if (status == STATUS_OK) {
        status = sql_get_int(sql, &epoch, err, "SELECT epoch FROM cluster WHERE id = 1", "");
    }
    if (status == STATUS_OK && in->id == 0) { /* a repeated call whose write is replayed */
        status = sql_get_int(sql, &id, err, "SELECT id FROM nodes WHERE join_id = ?1", "s", in->request->join_id);
        in->id = (uint64_t)id;
    }
    if (status == STATUS_OK) {
        in->out->cluster_id = arena_strdup(in->arena, uuid);
        in->out->epoch = (uint64_t)epoch;
        in->out->cluster_certificate = arena_strdup(in->arena, cert);
        in->out->cluster_key = arena_strdup(in->arena, key);
    }
    free(uuid);
    free(cert);
    free(key);
    return status;
}

static int accept_join(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__AcceptRequest *request = (const Covey__Internal__V1__AcceptRequest *)message;
    struct arena *arena = rpc_arena(call);
    char canonical[300];
    if (request->name[0] == '\0') {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No name provided");
    }
    if (member_name_check(request->name, err) != STATUS_OK || address_canonical(request->address, canonical, sizeof canonical, err) != STATUS_OK) {
        return err->code;
    }
    if (address_wildcard(canonical)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Wildcard addresses aren't allowed");
    }
    if (architecture_id(request->architecture) == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown architecture \"%s\"", request->architecture);
    }
    if (!uuid_valid(request->join_id)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid join_id");
    }
    Covey__Internal__V1__AcceptResponse *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__accept_response__init(out);
    struct accept in = {.request = request, .fingerprint = rpc_caller(call)->fingerprint, .now_ns = time_unix_ns(), .arena = arena, .out = out};
    membership_lock();
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, check_read, &in, NULL, err); /* refusals leave no trace */
    if (status == STATUS_OK) {
        status = daemon_write_call(call, "accept", accept_write, &in, NULL, NULL, err);
        crash_point("lead:accepted");
    }
    if (status == STATUS_OK) {
        status = daemon_read(the_daemon, DB_LINEARIZABLE, accept_read, &in, NULL, err);
    }
    membership_unlock();
    if (status == STATUS_OK) {
        view_propagate(the_daemon); /* members must know the newcomer before it speaks Raft to them */
        const struct view *view = view_get();
        out->id = in.id;
        out->view = (Covey__Internal__V1__View *)codec_copy(&view->message->base, arena);
        view_unref(view);
        *response = &out->base;
    }
    return status;
}

/* ---- Complete ---- */

struct complete {
    const Covey__Internal__V1__CompleteRequest *request;
    int64_t now_ns;
    char name[MEMBER_NAME_MAX + 1];
};

static int find_pending(struct sql *sql, void *ud, struct error *err)
{
    struct complete *in = ud;
    char *name = NULL;
    int status = sql_get_text(sql, &name, err, "SELECT name FROM nodes WHERE id = ?1 AND join_id = ?2", "is", (int64_t)in->request->id, in->request->join_id);
    if (status == STATUS_NOT_FOUND) {
        status = error_set(err, STATUS_NOT_FOUND, "No pending join with this id");
    } else if (status == STATUS_OK) {
        snprintf(in->name, sizeof in->name, "%s", name);
    }
    free(name);
    return status;
}

static int complete_pool(struct sql *sql, int64_t node, const Covey__Internal__V1__PoolSpec *spec, struct error *err)
{
    int64_t pool = 0;
    int status = sql_get_int(sql, &pool, err, "SELECT id FROM storage_pools WHERE name = ?1", "s", spec->name);
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "INSERT INTO storage_pools_nodes (storage_pool_id, node_id, state) VALUES (?1, ?2, 1) ON CONFLICT DO UPDATE SET state = 1", "ii", pool, node);
    }
    for (size_t i = 0; i < spec->n_config && status == STATUS_OK; i++) {
        if (pool_key_member(spec->config[i]->key)) {
            status = sql_exec(sql, err,
                "INSERT INTO storage_pools_config (storage_pool_id, node_id, key, value) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET value = excluded.value",
                "iiss", pool, node, spec->config[i]->key, spec->config[i]->value);
        }
    }
    return status;
}

static int complete_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct complete *in = ud;
    int64_t node = (int64_t)in->request->id, missing = 0;
    int64_t schema = 0, api = 0;
    int status = find_pending(sql, in, err);
    if (status == STATUS_OK) { /* the members may have been upgraded since it was accepted */
        status = sql_get_int(sql, &schema, err, "SELECT schema FROM nodes WHERE id = ?1", "i", node);
        status = status == STATUS_OK ? sql_get_int(sql, &api, err, "SELECT api_extensions FROM nodes WHERE id = ?1", "i", node) : status;
        status = status == STATUS_OK ? check_versions(sql, schema, api, err) : status;
    }
    for (size_t i = 0; i < in->request->n_pools && status == STATUS_OK; i++) {
        status = complete_pool(sql, node, in->request->pools[i], err);
    }
    if (status == STATUS_OK) {
        char *pool = NULL;
        missing = sql_get_text(sql, &pool, NULL,
            "SELECT name FROM storage_pools WHERE state = 1 AND id NOT IN (SELECT storage_pool_id FROM storage_pools_nodes WHERE node_id = ?1)", "i", node);
        if (missing == STATUS_OK) { /* made while the join was under way */
            status = error_set(err, STATUS_FAILED_PRECONDITION, "Joining member has no config for pool %s", pool);
        }
        free(pool);
    }
    status = status == STATUS_OK ? networks_complete_join(sql, node, in->request->networks, in->request->n_networks, err) : status;
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "UPDATE nodes SET state = 0, online = 1, heartbeat = ?2 WHERE id = ?1 AND state = 1", "ii", node, in->now_ns);
    }
    return status != STATUS_OK ? status : sql_exec(sql, err, "INSERT OR IGNORE INTO nodes_cluster_groups (node_id, group_id) VALUES (?1, 1)", "i", node);
}

static int raft_add(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_add(raft, *(uint64_t *)ud, err);
}

/* A newcomer that reports gets the event of its own coming; one that does not (yet) is a member all the same. */
static void wait_attached(uint64_t id)
{
    enum { ATTACH_WAIT_MS = 3000, ATTACH_POLL_MS = 10 };
    int64_t end = time_mono_ms() + ATTACH_WAIT_MS;
    while (!attach_told(id) && daemon_leads(the_daemon) && time_mono_ms() < end) {
        usleep(ATTACH_POLL_MS * 1000);
    }
}

static int complete_join(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__CompleteRequest *request = (const Covey__Internal__V1__CompleteRequest *)message;
    struct complete in = {.request = request, .now_ns = time_unix_ns()};
    bool replayed = false;
    membership_lock();
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, find_pending, &in, NULL, err);
    uint64_t id = request->id;
    if (status == STATUS_OK) {
        status = state_with_raft(the_daemon, raft_add, &id, err);
        crash_point("lead:added");
    }
    if (status == STATUS_OK) {
        attach_expect(id); /* not missed before its first report */
        status = daemon_write_call(call, "complete", complete_write, &in, NULL, &replayed, err);
        crash_point("lead:completed");
    }
    if (status == STATUS_OK) {
        struct error later = ERROR_INIT;
        controller_refresh_view(the_daemon);
        if (controller_rebalance(the_daemon, &later) != STATUS_OK) {
            log_warn("join.roles", "member=%s error=\"%s\"", in.name, later.text); /* the controller tries again */
        }
    }
    membership_unlock();
    if (status == STATUS_OK) {
        crash_point("lead:roles");
        wait_attached(id);
        view_propagate(the_daemon);
        const struct view *view = view_get();
        Covey__Internal__V1__CompleteResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
        covey__internal__v1__complete_response__init(out);
        out->view = (Covey__Internal__V1__View *)codec_copy(&view->message->base, rpc_arena(call));
        view_unref(view);
        *response = &out->base;
        if (!replayed) {
            char source[128];
            snprintf(source, sizeof source, "/1.0/cluster/members/%s", in.name);
            events_lifecycle("cluster-member-added", source, "default", NULL, NULL, in.name);
        }
    }
    return status;
}

static int who_leads(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__Internal__V1__WhoLeadsResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
    covey__internal__v1__who_leads_response__init(out);
    out->id = daemon_leads(the_daemon) ? daemon_id(the_daemon) : daemon_leader_id(the_daemon);
    out->epoch = state_epoch();
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, out->id);
    if (member != NULL) {
        out->address = arena_strdup(rpc_arena(call), member->address);
    }
    view_unref(view);
    *response = &out->base;
    return STATUS_OK;
}

static struct rpc_binding bindings[] = {
    {"Accept", accept_join}, {"Complete", complete_join}, {"WhoLeads", who_leads}, {"Attach", NULL}, {"Introduce", NULL}, {"Abandon", NULL}, {NULL}, {NULL}, {NULL},
    {"HandOver", handover_serve},
    {"SyncNetworks", network_sync},
};

void membership_bind(void)
{
    bindings[3].handler = attach_handler();
    bindings[4].handler = introduce_handler();
    bindings[5].handler = abandon_handler();
    certificate_membership_handlers(&bindings[6]);
    rpc_bind("covey.internal.v1.Membership", bindings, sizeof bindings / sizeof *bindings, NULL);
}
