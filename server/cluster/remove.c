/* Removal of members (spec/cluster.md 8), the leader's side.
 *
 * One transaction decides: before it the member is fully in, after it fully out. What comes before may be done again or be given up at any step (copies of images,
 * the vote handed to others, leadership handed over); what comes after is repeated until it is done, by this leader or the next one: the Raft entry
 * goes by the controller's reconciliation, the farewell (covey.internal.v1.Departure.Leave) by the row in `departures`. A repeated request finds the transaction
 * by its request key.
 *
 * A leader that shall go makes another member a voter if there is none, hands over and answers "not leader": the member that got the request asks the new one.
 *
 * Threads: the handler's worker; removal_round on the controller's thread starts a short-lived one for farewells that are still owed. */
#include "cluster.h"

#include "covey/internal/v1/departure.pb-c.h"
#include "server/daemon/identity.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/images/images.h"
#include "server/operations/operations.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PROBE_MS = 5000,               /* a member that does not answer within this time counts as unreachable */
    VOTER_PROBE_MS = 2000,         /* the same for those whose votes are counted on */
    FAREWELL_CALL_MS = 5000,
    FAREWELL_WAIT_MS = 10000,      /* the request waits so long for the member to take its farewell; then the controller goes on */
    FAREWELL_PAUSE_MS = 200,
    FAREWELL_BACKOFF_MS_MAX = 60000,
    FAREWELLS_PER_ROUND = 64,
    ROLE_SETTLE_MS = 1000,         /* Raft's status follows a change */
    REMOVAL_SERVERS_MAX = 1024,
    REMOVAL_POOLS_MAX = 1024,
    NAMES_LISTED_MAX = 1000,       /* in a refusal */
};
static const int64_t farewell_keep_ns = INT64_C(7) * 24 * 3600 * 1000000000; /* a member that is away longer must be wiped by hand */

struct removal {
    const char *name;
    bool force;
    bool spare_images; /* do not refuse for images yet: they are copied next */
    struct arena *arena;
    uint64_t id;
    char *address, *fingerprint;
};

/* ---- what is checked ---- */

static int find(struct sql *sql, struct removal *in, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT id, address, fingerprint FROM nodes WHERE name = ?1 AND state <> 1", "s", in->name);
    bool found = sql_next(s);
    if (found) {
        in->id = (uint64_t)sql_int(s, 0);
        in->address = arena_strdup(in->arena, sql_text(s, 1));
        in->fingerprint = arena_strdup(in->arena, sql_text(s, 2));
    }
    int status = sql_done(s, err);
    return status == STATUS_OK && !found ? error_set(err, STATUS_NOT_FOUND, "Cluster member not found") : status;
}

/* Refuses with `text` and the names that the query gives. */
static int refuse_rows(struct sql *sql, const char *query, uint64_t id, const char *text, struct error *err)
{
    struct buf names = {0};
    size_t count = 0;
    struct sql_stmt *s = sql_query(sql, query, "i", (int64_t)id);
    for (; sql_next(s); count++) {
        if (count < NAMES_LISTED_MAX) {
            buf_printf(&names, "%s%s", count > 0 ? ", " : "", sql_text(s, 0));
        }
    }
    int status = sql_done(s, err);
    if (status == STATUS_OK && count > NAMES_LISTED_MAX) {
        buf_printf(&names, " and %zu more", count - NAMES_LISTED_MAX);
    }
    if (status == STATUS_OK && count > 0) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "%s: %s", text, names.data);
    }
    buf_free(&names);
    return status;
}

#define ONLY_HOLDER                                                                                                                                      \
    "SELECT DISTINCT i.fingerprint FROM images AS i JOIN images_nodes AS n ON n.image_id = i.id WHERE n.node_id = ?1 AND NOT EXISTS"                      \
    " (SELECT 1 FROM images AS j JOIN images_nodes AS m ON m.image_id = j.id WHERE j.fingerprint = i.fingerprint AND m.node_id <> ?1) ORDER BY 1"

static int refuse_last(struct sql *sql, struct error *err)
{
    int64_t members = 0;
    int status = sql_get_int(sql, &members, err, "SELECT count(*) FROM nodes WHERE state <> 1", "");
    return status == STATUS_OK && members <= 1 ? error_set(err, STATUS_FAILED_PRECONDITION, "Member is the only member in the cluster") : status;
}

/* The refusals of 8.2 in their order. */
static int check(struct sql *sql, const struct removal *in, struct error *err)
{
    int64_t images = 0;
    if (in->force) {
        return refuse_last(sql, err);
    }
    int status = refuse_rows(sql, "SELECT name FROM instances WHERE node_id = ?1 ORDER BY name", in->id, "Node still has the following containers", err);
    if (status == STATUS_OK && in->spare_images) {
        status = sql_get_int(sql, &images, err, "SELECT count(*) FROM (" ONLY_HOLDER ")", "i", (int64_t)in->id);
    } else if (status == STATUS_OK) {
        status = refuse_rows(sql, ONLY_HOLDER, in->id, "Node still has the following images", err);
    }
    if (status == STATUS_OK && images == 0) {
        status = refuse_rows(sql, "SELECT name FROM storage_volumes WHERE node_id = ?1 AND type = 2 ORDER BY name", in->id,
            "Node still has the following custom volumes", err);
    }
    return status == STATUS_OK ? refuse_last(sql, err) : status;
}

static int check_read(struct sql *sql, void *ud, struct error *err)
{
    int status = find(sql, ud, err);
    return status == STATUS_OK ? check(sql, ud, err) : status;
}

static int find_read(struct sql *sql, void *ud, struct error *err)
{
    return find(sql, ud, err);
}

/* Whether the member answers now: liveness alone says so only after the offline threshold, and every member is given that time after a change of leader. */
static int ask(struct daemon *daemon, uint64_t id, int64_t timeout_ms, struct error *err)
{
    if (id == daemon_id(daemon)) {
        return STATUS_OK;
    }
    struct rpc_channel *channel = member_channel(daemon, id, err);
    if (channel == NULL) {
        return err->code;
    }
    struct arena arena;
    arena_init(&arena);
    Covey__V1__Empty request = COVEY__V1__EMPTY__INIT;
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.timeout_ms = timeout_ms};
    int status = rpc_unary(channel, "covey.internal.v1.Membership", "WhoLeads", &request.base, &response, &arena, &options, err);
    rpc_channel_unref(channel);
    arena_clear(&arena);
    return status;
}

static bool answers(struct daemon *daemon, uint64_t id)
{
    struct error err = ERROR_INIT;
    return member_online(daemon, id) && !attach_member_stopping(id) && ask(daemon, id, VOTER_PROBE_MS, &err) == STATUS_OK;
}

static int probe(struct daemon *daemon, const struct removal *in, struct error *err)
{
    struct error why = ERROR_INIT;
    if (!member_online(daemon, in->id)) {
        return error_set(err, STATUS_UNAVAILABLE, "Cluster member %s is offline", in->name);
    }
    int status = ask(daemon, in->id, PROBE_MS, &why);
    return status == STATUS_OK ? STATUS_OK : error_set(err, STATUS_UNAVAILABLE, "Cluster member %s cannot be reached: %s", in->name, why.text);
}

/* ---- the vote ---- */

struct assign {
    uint64_t id;
    enum raft_node_role role;
};

static int assign_server(struct raft_node *raft, void *ud, struct error *err)
{
    const struct assign *assign = ud;
    return raft_node_assign(raft, assign->id, assign->role, err);
}

static int remove_server(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_remove(raft, *(uint64_t *)ud, err);
}

static int transfer_server(struct raft_node *raft, void *ud, struct error *err)
{
    return raft_node_transfer(raft, *(uint64_t *)ud, err);
}

/* Raft's entry of a member that is out; absent is fine. */
static int drop_server(struct daemon *daemon, uint64_t id, struct error *err)
{
    return state_raft_role(id) < 0 ? STATUS_OK : state_with_raft(daemon, remove_server, &id, err);
}

static int assign_role(struct daemon *daemon, uint64_t id, enum raft_node_role role, int spec_role, struct error *err)
{
    struct assign assign = {id, role};
    log_info("remove.role", "member=%" PRIu64 " role=%s", id, role == RAFT_NODE_VOTER ? "voter" : "spare");
    int status = state_with_raft(daemon, assign_server, &assign, err);
    int64_t end = time_mono_ms() + ROLE_SETTLE_MS;
    for (unsigned seen = 0; status == STATUS_OK && state_raft_role(id) != spec_role && time_mono_ms() < end;) {
        seen = state_wait_change(seen, 20);
    }
    return status;
}

/* Who can lead instead of this member: a voter, else the member to become one. 0 = nobody. */
static uint64_t find_successor(struct daemon *daemon, bool *votes)
{
    static const enum raft_node_role order[] = {RAFT_NODE_VOTER, RAFT_NODE_STANDBY, RAFT_NODE_SPARE};
    struct raft_node_server servers[REMOVAL_SERVERS_MAX];
    size_t count = state_raft_servers(servers, REMOVAL_SERVERS_MAX);
    for (size_t o = 0; o < sizeof order / sizeof *order; o++) {
        for (size_t i = 0; i < count; i++) {
            if (servers[i].role == order[o] && servers[i].id != daemon_id(daemon) && answers(daemon, servers[i].id)) {
                *votes = order[o] == RAFT_NODE_VOTER;
                return servers[i].id;
            }
        }
    }
    return 0;
}

/* This leader goes: another one takes over and finishes the removal. */
static int hand_over(struct daemon *daemon, struct error *err)
{
    bool votes = false;
    uint64_t successor = find_successor(daemon, &votes);
    if (successor == 0) {
        return error_set(err, STATUS_UNAVAILABLE, "No other online member can take over the database");
    }
    int status = votes ? STATUS_OK : assign_role(daemon, successor, RAFT_NODE_VOTER, ROLE_VOTER, err);
    if (status == STATUS_OK) {
        status = state_with_raft(daemon, transfer_server, &successor, err);
    }
    if (status != STATUS_OK) {
        return status;
    }
    log_info("remove.handover", "leader=%" PRIu64, successor);
    return error_not_leader(err, successor);
}

/* Takes the vote from the member: somebody else gets it first, if there is anybody, and those who stay have a majority that is alive. */
static int take_vote(struct daemon *daemon, uint64_t leaver, struct error *err)
{
    if (state_raft_role(leaver) == ROLE_VOTER && attach_note_stopping(leaver) && controller_rebalance(daemon, err) != STATUS_OK) {
        return err->code;
    }
    struct raft_node_server servers[REMOVAL_SERVERS_MAX];
    uint64_t dead[REMOVAL_SERVERS_MAX];
    size_t count = state_raft_servers(servers, REMOVAL_SERVERS_MAX), alive = 0, dead_count = 0;
    int status = STATUS_OK;
    if (state_raft_role(leaver) != ROLE_VOTER) {
        return STATUS_OK;
    }
    for (size_t i = 0; i < count; i++) {
        if (servers[i].role == RAFT_NODE_VOTER && servers[i].id != leaver) {
            if (answers(daemon, servers[i].id)) {
                alive++;
            } else {
                dead[dead_count++] = servers[i].id;
            }
        }
    }
    while (status == STATUS_OK && dead_count > 0 && alive <= dead_count) {
        status = assign_role(daemon, dead[--dead_count], RAFT_NODE_SPARE, ROLE_SPARE, err);
    }
    return status == STATUS_OK ? assign_role(daemon, leaver, RAFT_NODE_SPARE, ROLE_SPARE, err) : status;
}

/* ---- the transaction ---- */

struct pool_rows {
    Covey__Internal__V1__PoolSpec **pools;
    size_t count;
};

static int read_pool_config(struct sql *sql, struct arena *arena, int64_t pool, uint64_t member, Covey__Internal__V1__PoolSpec *spec, struct error *err)
{
    static const char query[] = "SELECT key, value FROM storage_pools_config WHERE storage_pool_id = ?1 AND (node_id IS NULL OR node_id = ?2) ORDER BY key";
    size_t room = 0;
    struct sql_stmt *s = sql_query(sql, query, "ii", pool, (int64_t)member);
    while (sql_next(s)) {
        if (spec->n_config == room) {
            Covey__Internal__V1__PoolSpec__ConfigEntry **grown = arena_alloc(arena, (2 * room + 16) * sizeof *grown);
            if (room > 0) {
                memcpy(grown, spec->config, room * sizeof *grown);
            }
            spec->config = grown;
            room = 2 * room + 16;
        }
        Covey__Internal__V1__PoolSpec__ConfigEntry *entry = arena_alloc(arena, sizeof *entry);
        covey__internal__v1__pool_spec__config_entry__init(entry);
        entry->key = arena_strdup(arena, sql_text(s, 0));
        entry->value = arena_strdup(arena, sql_text(s, 1));
        spec->config[spec->n_config++] = entry;
    }
    return sql_done(s, err);
}

static int read_pools(struct sql *sql, const struct removal *in, struct pool_rows *out, struct error *err)
{
    int status = STATUS_OK;
    out->pools = arena_alloc(in->arena, REMOVAL_POOLS_MAX * sizeof *out->pools);
    struct sql_stmt *s = sql_query(sql,
        "SELECT p.id, p.name, p.driver FROM storage_pools AS p JOIN storage_pools_nodes AS n ON n.storage_pool_id = p.id WHERE n.node_id = ?1 AND n.state <> 0 ORDER BY p.name", "i",
        (int64_t)in->id);
    while (status == STATUS_OK && sql_next(s)) {
        if (out->count == REMOVAL_POOLS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d storage pools", REMOVAL_POOLS_MAX);
            break;
        }
        Covey__Internal__V1__PoolSpec *spec = arena_alloc(in->arena, sizeof *spec);
        covey__internal__v1__pool_spec__init(spec);
        spec->name = arena_strdup(in->arena, sql_text(s, 1));
        spec->driver = arena_strdup(in->arena, sql_text(s, 2));
        status = read_pool_config(sql, in->arena, sql_int(s, 0), in->id, spec, err);
        out->pools[out->count++] = spec;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

/* What the member is told afterwards; its own rows are still there. */
static int owe_farewell(struct sql *sql, const struct removal *in, struct error *err)
{
    Covey__Internal__V1__LeaveRequest request = COVEY__INTERNAL__V1__LEAVE_REQUEST__INIT;
    struct pool_rows pools = {0};
    char *cluster_id = NULL;
    int status = sql_get_text(sql, &cluster_id, err, "SELECT uuid FROM cluster WHERE id = 1", "");
    status = status == STATUS_OK ? read_pools(sql, in, &pools, err) : status;
    if (status == STATUS_OK) {
        request.id = in->id;
        request.cluster_id = cluster_id;
        request.pools = pools.pools;
        request.n_pools = pools.count;
        request.clear_host = true;
        size_t len = covey__internal__v1__leave_request__get_packed_size(&request);
        uint8_t *bytes = arena_alloc(in->arena, len + 1);
        covey__internal__v1__leave_request__pack(&request, bytes);
        status = sql_exec(sql, err, "INSERT OR REPLACE INTO departures (node_id, name, address, fingerprint, removed_at, request) VALUES (?1, ?2, ?3, ?4, ?5, ?6)", "isssib",
            (int64_t)in->id, in->name, in->address, in->fingerprint, time_unix_ns(), bytes, len);
    }
    free(cluster_id);
    return status;
}

/* Result: the member's id, then the tokens that ended, each followed by a blank. */
static int remove_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct removal *in = ud;
    int status = check_read(sql, in, err);
    int64_t id = (int64_t)in->id;
    if (status == STATUS_OK && !in->force) {
        status = owe_farewell(sql, in, err);
    }
    if (status != STATUS_OK) {
        return status;
    }
    buf_printf(result, "%" PRIu64 " ", in->id);
    struct sql_stmt *s = sql_query(sql, "SELECT uuid FROM tokens WHERE kind = 1 AND name = ?1", "s", in->name);
    while (sql_next(s)) {
        buf_printf(result, "%s ", sql_text(s, 0));
    }
    status = sql_done(s, err);
    const struct {
        const char *text, *types;
    } member_steps[] = {
        /* Tokens that it issued stay valid: they move to the leader. */
        {"UPDATE operations SET node_id = ?2 WHERE node_id = ?1 AND class = 3", "ii"},
        {"DELETE FROM images_nodes WHERE node_id = ?1", "i"},
        {"DELETE FROM instances WHERE node_id = ?1", "i"},
    };
    for (size_t i = 0; i < sizeof member_steps / sizeof *member_steps && status == STATUS_OK; i++) {
        status = sql_exec(sql, err, member_steps[i].text, member_steps[i].types, id, (int64_t)daemon_id(the_daemon));
    }
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "DELETE FROM operations WHERE uuid IN (SELECT uuid FROM tokens WHERE kind = 1 AND name = ?1)", "s", in->name);
    }
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "DELETE FROM tokens WHERE kind = 1 AND name = ?1", "s", in->name);
    }
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "DELETE FROM images WHERE id NOT IN (SELECT image_id FROM images_nodes)", "");
    }
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "DELETE FROM certificates WHERE type = 2 AND fingerprint = ?1", "s", in->fingerprint);
    }
    return status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM nodes WHERE id = ?1", "i", id) : status;
}

/* ---- the farewell ---- */

struct departure {
    uint64_t id;
    char *name, *address, *fingerprint;
    Covey__Internal__V1__LeaveRequest *request;
};

struct departures {
    struct arena arena;
    uint64_t only; /* 0 = all */
    struct departure rows[FAREWELLS_PER_ROUND];
    size_t count;
};

static int read_departures(struct sql *sql, void *ud, struct error *err)
{
    struct departures *out = ud;
    int status = STATUS_OK;
    struct sql_stmt *s = sql_query(sql, "SELECT node_id, name, address, fingerprint, request FROM departures WHERE ?1 = 0 OR node_id = ?1 ORDER BY node_id", "i", (int64_t)out->only);
    while (status == STATUS_OK && out->count < FAREWELLS_PER_ROUND && sql_next(s)) { /* the others come in the next round */
        size_t len = 0;
        const void *bytes = sql_blob(s, 4, &len);
        struct departure *row = &out->rows[out->count++];
        *row = (struct departure){.id = (uint64_t)sql_int(s, 0), .name = arena_strdup(&out->arena, sql_text(s, 1)), .address = arena_strdup(&out->arena, sql_text(s, 2)),
            .fingerprint = arena_strdup(&out->arena, sql_text(s, 3))};
        row->request = (Covey__Internal__V1__LeaveRequest *)codec_unpack(&covey__internal__v1__leave_request__descriptor, bytes, len, &out->arena, err);
        status = row->request != NULL ? STATUS_OK : (int)err->code;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

static int forget_departure(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "DELETE FROM departures WHERE node_id = ?1", "i", *(int64_t *)ud);
}

/* Those that are members again, or away for too long. */
static int drop_departures(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "DELETE FROM departures WHERE removed_at < ?1 OR fingerprint IN (SELECT fingerprint FROM nodes) OR address IN (SELECT address FROM nodes)", "i",
        time_unix_ns() - farewell_keep_ns);
}

static int leave_call(struct daemon *daemon, struct departure *row, const char *fingerprint, struct arena *arena, struct error *err)
{
    ProtobufCMessage *response = NULL;
    struct rpc_channel *channel = rpc_channel_tls(row->address, fingerprint, NULL, &daemon->server);
    struct rpc_options options = {.timeout_ms = FAREWELL_CALL_MS};
    int status = rpc_unary(channel, "covey.internal.v1.Departure", "Leave", &row->request->base, &response, arena, &options, err);
    rpc_channel_unref(channel);
    return status;
}

/* One try. True: nothing is owed any more. */
static bool say_farewell(struct daemon *daemon, struct departure *row, struct arena *arena)
{
    char fingerprint[FINGERPRINT_SIZE] = "";
    struct error err = ERROR_INIT, own = ERROR_INIT;
    if (!identity_cluster_fingerprint(fingerprint)) {
        return false;
    }
    int status = leave_call(daemon, row, fingerprint, arena, &err);
    bool over = status == STATUS_OK || status == STATUS_FAILED_PRECONDITION;
    if (!over) {
        /* A server that presents its own certificate there, and not the cluster's, has left already: its answer was lost. It trusts us no more. */
        int alone = leave_call(daemon, row, row->fingerprint, arena, &own);
        over = alone == STATUS_OK || alone == STATUS_PERMISSION_DENIED || alone == STATUS_FAILED_PRECONDITION;
    }
    if (!over) {
        log_info("remove.farewell", "member=%s error=\"%s\"", row->name, err.text);
        return false;
    }
    int64_t id = (int64_t)row->id;
    log_info("remove.left", "member=%s id=%" PRIu64, row->name, row->id);
    if (daemon_write(daemon, NULL, forget_departure, &id, NULL, NULL, NULL, &err) != STATUS_OK) {
        log_warn("remove.left", "member=%s error=\"%s\"", row->name, err.text); /* asked once more by the next round */
        return false;
    }
    return true;
}

static struct {
    atomic_bool owed, running;
    atomic_llong due_ms;
    int64_t backoff_ms; /* of the running thread */
    uint64_t term;      /* of the controller's thread */
} rounds;

/* The member is told at once; what does not succeed in time the controller goes on with. */
static void farewell(struct daemon *daemon, uint64_t id)
{
    struct departures *all = xcalloc(1, sizeof *all);
    struct error err = ERROR_INIT;
    arena_init(&all->arena);
    all->only = id;
    bool done = daemon_read(daemon, DB_LOCAL, read_departures, all, NULL, &err) == STATUS_OK && all->count == 0;
    int64_t end = time_mono_ms() + FAREWELL_WAIT_MS;
    while (!done && all->count > 0) {
        done = say_farewell(daemon, &all->rows[0], &all->arena);
        if (done || time_mono_ms() >= end || !daemon_leads(daemon)) {
            break;
        }
        usleep(FAREWELL_PAUSE_MS * 1000);
    }
    if (!done) {
        atomic_store(&rounds.due_ms, 0);
        atomic_store(&rounds.owed, true);
    }
    arena_clear(&all->arena);
    free(all);
}

static void *round_main(void *ud)
{
    struct daemon *daemon = ud;
    struct departures *all = xcalloc(1, sizeof *all);
    struct error err = ERROR_INIT;
    arena_init(&all->arena);
    size_t left = 0;
    atomic_store(&rounds.owed, false);
    int status = daemon_read(daemon, DB_LOCAL, read_departures, all, NULL, &err);
    if (status == STATUS_OK && all->count > 0) {
        status = daemon_write(daemon, NULL, drop_departures, NULL, NULL, NULL, NULL, &err);
        arena_clear(&all->arena);
        all->count = 0;
        status = status == STATUS_OK ? daemon_read(daemon, DB_LOCAL, read_departures, all, NULL, &err) : status;
    }
    for (size_t i = 0; i < all->count && status == STATUS_OK && daemon_leads(daemon); i++) {
        membership_lock();
        status = drop_server(daemon, all->rows[i].id, &err);
        membership_unlock();
        left += !say_farewell(daemon, &all->rows[i], &all->arena);
    }
    if (status != STATUS_OK || left > 0 || all->count == FAREWELLS_PER_ROUND) {
        int64_t twice = 2 * rounds.backoff_ms;
        rounds.backoff_ms = twice < FAREWELL_BACKOFF_MS_MAX ? twice : FAREWELL_BACKOFF_MS_MAX;
        atomic_store(&rounds.due_ms, time_mono_ms() + rounds.backoff_ms);
        atomic_store(&rounds.owed, true);
    }
    arena_clear(&all->arena);
    free(all);
    atomic_store(&rounds.running, false);
    return NULL;
}

void removal_round(struct daemon *daemon)
{
    uint64_t term = daemon_term(daemon);
    if (term != rounds.term) { /* a new leader looks once what the former one owed */
        rounds.term = term;
        atomic_store(&rounds.owed, true);
        atomic_store(&rounds.due_ms, 0);
    }
    if (!atomic_load(&rounds.owed) || time_mono_ms() < atomic_load(&rounds.due_ms) || atomic_exchange(&rounds.running, true)) {
        return;
    }
    if (atomic_load(&rounds.due_ms) == 0) {
        rounds.backoff_ms = FAREWELL_PAUSE_MS;
    }
    if (background_start("farewells", round_main, daemon) != 0) {
        atomic_store(&rounds.running, false);
    }
}

/* ---- the request ---- */

/* Up to and with the transaction. *replayed: an earlier try of this request has done it. */
static int decide(struct rpc_call *call, struct removal *in, struct buf *result, bool *replayed, struct error *err)
{
    struct daemon *daemon = the_daemon;
    int status = daemon_read(daemon, DB_LINEARIZABLE, find_read, in, NULL, err);
    if (status == STATUS_NOT_FOUND) { /* unless this request itself has removed it */
        return daemon_write_call(call, "remove", remove_write, in, result, replayed, err);
    }
    if (status == STATUS_OK && !in->force) {
        status = probe(daemon, in, err);
    }
    if (status == STATUS_OK) {
        in->spare_images = true;
        status = daemon_read(daemon, DB_LINEARIZABLE, check_read, in, NULL, err);
        in->spare_images = false;
    }
    if (status == STATUS_OK && in->id == daemon_id(daemon)) {
        membership_lock();
        status = hand_over(daemon, err);
        membership_unlock();
        return status;
    }
    if (status == STATUS_OK) {
        struct error copy = ERROR_INIT;
        if (images_secure(daemon, in->id, &copy) != STATUS_OK) {
            if (!in->force) {
                error_set(err, copy.code, "%s", copy.text);
                err->not_leader = copy.not_leader;
                return copy.not_leader ? (int)err->code : error_prefix(err, "Failed to sync images");
            }
            log_warn("remove.images", "member=%s error=\"%s\"", in->name, copy.text);
        }
        status = daemon_read(daemon, DB_LINEARIZABLE, check_read, in, NULL, err); /* before roles change */
    }
    if (status != STATUS_OK) {
        return status;
    }
    membership_lock();
    status = take_vote(daemon, in->id, err);
    if (status == STATUS_OK) {
        status = daemon_write_call(call, "remove", remove_write, in, result, replayed, err);
    }
    if (status == STATUS_OK) {
        struct error later = ERROR_INIT;
        controller_refresh_view(daemon);
        attach_forget(in->id);
        if (drop_server(daemon, in->id, &later) != STATUS_OK || controller_rebalance(daemon, &later) != STATUS_OK) {
            log_warn("remove.roles", "member=%s error=\"%s\"", in->name, later.text); /* the controller tries again */
        }
    }
    membership_unlock();
    return status;
}

int member_remove(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__RemoveMemberRequest *request = (const Covey__V1__RemoveMemberRequest *)message;
    struct removal in = {.name = request->name, .force = request->force, .arena = rpc_arena(call)};
    struct buf result = {0};
    bool replayed = false;
    if (!daemon_clustered(the_daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Server is not clustered");
    }
    int status = decide(call, &in, &result, &replayed, err);
    if (status == STATUS_OK) {
        char *rest = result.data;
        in.id = strtoull(rest, &rest, 10);
        for (char *uuid = strtok_r(rest, " ", &rest); uuid != NULL; uuid = strtok_r(NULL, " ", &rest)) {
            op_token_ended(uuid, OP_CANCELLED);
        }
        operations_member_left(in.id);
        attach_forget(in.id);
        view_propagate(the_daemon);
        if (!replayed) {
            char source[128];
            snprintf(source, sizeof source, "/1.0/cluster/members/%s", in.name);
            events_lifecycle("cluster-member-removed", source, "default", rpc_caller(call), NULL, NULL);
        }
        if (!in.force) {
            farewell(the_daemon, in.id);
        }
        log_info("remove.done", "member=%s id=%" PRIu64 " force=%d", in.name, in.id, in.force);
    }
    buf_free(&result);
    return status;
}
