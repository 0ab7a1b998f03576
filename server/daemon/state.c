/* The daemon's database and place in the cluster, behind one mutex. A join exchanges the database while calls are served: users hold a count, the
 * exchange waits for them after db_stop() has answered them. Status arrives on the database's loop thread. */
#include "state.h"

#include "server/cluster/cluster.h"
#include "server/config/keys.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { SERVERS_MAX = 1024 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct db *db;
    unsigned users;
    struct raft_transport *transport;
    uint64_t epoch; /* the transport's */
    uint64_t id;
    bool clustered;
    char name[128];
    /* from Raft */
    unsigned generation;
    bool leader;
    uint64_t leader_id, term;
    struct raft_node_server *servers;
    size_t server_count;
    uint64_t digest_revision;
    char digest[65];
    void (*on_change)(bool tables);
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void state_init_once(void)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&state.changed, &attr);
    pthread_condattr_destroy(&attr);
}
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void lock(void)
{
    pthread_once(&once, state_init_once);
    pthread_mutex_lock(&state.lock);
}

static void unlock(void)
{
    pthread_mutex_unlock(&state.lock);
}

uint64_t daemon_id(struct daemon *daemon)
{
    lock();
    uint64_t id = state.id;
    unlock();
    return id;
}

bool daemon_clustered(struct daemon *daemon)
{
    lock();
    bool clustered = state.clustered;
    unlock();
    return clustered;
}

void daemon_name(struct daemon *daemon, char *out, size_t size)
{
    lock();
    snprintf(out, size, "%s", state.clustered ? state.name : daemon->hostname);
    unlock();
}

void daemon_location(struct daemon *daemon, char *out, size_t size)
{
    lock();
    snprintf(out, size, "%s", state.clustered ? state.name : "none");
    unlock();
}

void state_set_identity(struct daemon *daemon, uint64_t id, bool clustered, const char *name)
{
    lock();
    state.id = id;
    state.clustered = clustered;
    snprintf(state.name, sizeof state.name, "%s", name);
    state.generation++;
    pthread_cond_broadcast(&state.changed);
    unlock();
}

void state_poke(void)
{
    lock();
    state.generation++;
    pthread_cond_broadcast(&state.changed);
    unlock();
}

bool daemon_leads(struct daemon *daemon)
{
    lock();
    bool leads = state.db != NULL && state.leader;
    unlock();
    return leads;
}

uint64_t daemon_leader_id(struct daemon *daemon)
{
    lock();
    uint64_t id = state.leader_id;
    unlock();
    return id;
}

uint64_t daemon_term(struct daemon *daemon)
{
    lock();
    uint64_t term = state.term;
    unlock();
    return term;
}

int state_raft_role(uint64_t id)
{
    static const int spec_role[] = {[RAFT_NODE_STANDBY] = 1, [RAFT_NODE_VOTER] = 0, [RAFT_NODE_SPARE] = 2};
    int role = -1;
    lock();
    for (size_t i = 0; i < state.server_count; i++) {
        if (state.servers[i].id == id) {
            role = spec_role[state.servers[i].role];
        }
    }
    unlock();
    return role;
}

size_t state_raft_servers(struct raft_node_server *out, size_t max)
{
    lock();
    size_t count = state.server_count < max ? state.server_count : max;
    if (count > 0) {
        memcpy(out, state.servers, count * sizeof *out);
    }
    unlock();
    return count;
}

unsigned state_wait_change(unsigned seen, int64_t ms)
{
    struct timespec until;
    time_deadline(&until, ms);
    lock();
    while (state.generation == seen && pthread_cond_timedwait(&state.changed, &state.lock, &until) == 0) {
    }
    seen = state.generation;
    unlock();
    return seen;
}

void state_digest(uint64_t *revision, char out[65])
{
    lock();
    *revision = state.digest_revision;
    memcpy(out, state.digest, sizeof state.digest);
    unlock();
}

void state_on_change(void (*fn)(bool tables))
{
    state.on_change = fn;
}

/* ---- callbacks of the database ---- */

static void on_status(void *ud, const struct raft_node_status *status)
{
    size_t count = status->server_count < SERVERS_MAX ? status->server_count : SERVERS_MAX;
    lock();
    state.leader = status->leader;
    state.leader_id = status->leader_id;
    state.term = status->term;
    free(state.servers);
    state.servers = xcalloc(count + 1, sizeof *state.servers);
    if (count > 0) {
        memcpy(state.servers, status->servers, count * sizeof *state.servers);
    }
    state.server_count = count;
    state.generation++;
    pthread_cond_broadcast(&state.changed);
    unlock();
    if (state.on_change != NULL) {
        state.on_change(false);
    }
}

static void on_applied(void *ud, uint64_t revision, const char *const *tables, size_t count)
{
    static const char *const watched[] = {"nodes", "nodes_roles", "certificates", "certificates_projects", "config", "storage_pools", "cluster"};
    bool hit = count == 0;
    for (size_t i = 0; i < count && !hit; i++) {
        for (size_t j = 0; j < sizeof watched / sizeof *watched && !hit; j++) {
            hit = strcmp(tables[i], watched[j]) == 0;
        }
    }
    if (hit && state.on_change != NULL) {
        state.on_change(true);
    }
}

static void on_digest(void *ud, uint64_t revision, const char *digest)
{
    lock();
    state.digest_revision = revision;
    snprintf(state.digest, sizeof state.digest, "%s", digest);
    unlock();
}

static atomic_int_least64_t held_until_ms;

void state_hold(int64_t until_ms)
{
    atomic_store(&held_until_ms, until_ms);
}

static bool is_held(void)
{
    int64_t until = atomic_load_explicit(&held_until_ms, memory_order_relaxed);
    return until != 0 && time_mono_ms() < until;
}

static void on_send(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    if (is_held()) {
        return;
    }
    lock();
    struct raft_transport *transport = state.transport;
    unlock();
    if (transport != NULL) {
        raft_transport_send(transport, peer, frame);
    }
}

static uint64_t on_queued(void *ud, uint64_t peer)
{
    lock();
    struct raft_transport *transport = state.transport;
    unlock();
    return transport != NULL ? raft_transport_queued(transport, peer) : 0;
}

/* ---- the transport ---- */

static struct rpc_channel *transport_channel(void *ud, uint64_t peer)
{
    return member_channel(ud, peer, NULL);
}

static int receive_frame(struct db *db, void *ud, struct error *err)
{
    const struct {
        uint64_t peer;
        const Covey__Internal__V1__RaftFrame *frame;
    } *args = ud;
    raft_node_receive(db_raft(db), args->peer, args->frame);
    return STATUS_OK;
}

static void transport_receive(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    struct {
        uint64_t peer;
        const Covey__Internal__V1__RaftFrame *frame;
    } args = {peer, frame};
    if (is_held()) {
        return;
    }
    state_with_db(ud, receive_frame, &args, NULL); /* no database at the moment: Raft repeats what matters */
}

static int peer_lost(struct db *db, void *ud, struct error *err)
{
    raft_node_lost(db_raft(db), *(const uint64_t *)ud);
    return STATUS_OK;
}

static void transport_lost(void *ud, uint64_t peer)
{
    state_with_db(ud, peer_lost, &peer, NULL); /* without a database there is nobody to elect */
}

static bool transport_is_peer(void *ud, const struct caller *caller, uint64_t peer)
{
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, peer);
    bool ok = member != NULL && caller->fingerprint[0] != '\0' && strcmp(member->fingerprint, caller->fingerprint) == 0;
    view_unref(view);
    return ok;
}

static void transport_located(void *ud, uint64_t peer, const char *address)
{
    member_located(ud, peer, address);
}

struct raft_transport *state_transport(void)
{
    lock();
    struct raft_transport *transport = state.transport;
    unlock();
    return transport;
}

int state_start_transport(struct daemon *daemon, struct error *err)
{
    char *cluster_id = local_state_get(daemon->local, "cluster_id");
    char *epoch = local_state_get(daemon->local, "epoch");
    if (cluster_id == NULL) {
        free(epoch);
        return error_set(err, STATUS_INTERNAL, "local state has no cluster_id");
    }
    struct raft_transport_config config = {
        .id = daemon_id(daemon),
        .cluster_id = cluster_id,
        .epoch = epoch != NULL ? strtoull(epoch, NULL, 10) : 1,
        .ud = daemon,
        .channel = transport_channel,
        .receive = transport_receive,
        .lost = transport_lost,
        .is_peer = transport_is_peer,
        .located = transport_located,
    };
    char *address = local_config_get(daemon->local, "cluster.https_address");
    config.address = str_empty(address) || address_wildcard(address) ? NULL : address;
    struct raft_transport *transport = raft_transport_create(&config);
    free(address);
    free(cluster_id);
    free(epoch);
    lock();
    state.transport = transport;
    state.epoch = config.epoch;
    unlock();
    return STATUS_OK;
}

struct settling {
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool passed;
};

/* [loop] */
static void settle_pass(void *ud)
{
    struct settling *settling = ud;
    pthread_mutex_lock(&settling->lock);
    settling->passed = true;
    pthread_cond_signal(&settling->done);
    pthread_mutex_unlock(&settling->lock);
}

static int settle(struct raft_node *raft, void *ud, struct error *err)
{
    for (int round = 0; round < 2; round++) { /* the status that is shown follows one turn of the loop later */
        struct settling settling = {.lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};
        raft_node_post(raft, settle_pass, &settling);
        pthread_mutex_lock(&settling.lock);
        while (!settling.passed) {
            pthread_cond_wait(&settling.done, &settling.lock);
        }
        pthread_mutex_unlock(&settling.lock);
    }
    return STATUS_OK;
}

void state_settle(struct daemon *daemon)
{
    state_with_raft(daemon, settle, NULL, NULL);
}

uint64_t state_epoch(void)
{
    lock();
    uint64_t epoch = state.transport != NULL ? state.epoch : 0;
    unlock();
    return epoch;
}

/* ---- the database ---- */

int state_open_database(struct daemon *daemon, struct error *err)
{
    if (daemon_clustered(daemon) && state_transport() == NULL && state_start_transport(daemon, err) != STATUS_OK) {
        return err->code;
    }
    char *dir = xasprintf("%s/database", daemon->dir);
    struct db_config config = {
        .dir = dir,
        .id = daemon_id(daemon),
        .callbacks = {.ud = daemon, .status = on_status, .applied = on_applied, .digest = on_digest, .send = on_send, .queued = on_queued},
    };
    struct db *db = NULL;
    int status = db_open(&config, &db, err);
    free(dir);
    if (status == STATUS_OK && (status = db_schema_check(db, err)) != STATUS_OK) {
        db_close(db);
    }
    if (status == STATUS_OK) {
        lock();
        state.db = db;
        state.generation++;
        pthread_cond_broadcast(&state.changed);
        unlock();
        if (state.on_change != NULL) { /* an only voter may lead before the database is here: nobody else tells the controller again */
            state.on_change(true);
        }
    }
    return status;
}

void state_close_database(struct daemon *daemon)
{
    lock();
    struct db *db = state.db;
    struct raft_transport *transport = state.transport;
    state.db = NULL;
    unlock();
    if (db != NULL) {
        db_stop(db);
        lock();
        while (state.users > 0) {
            pthread_cond_wait(&state.changed, &state.lock);
        }
        state.leader = false;
        state.leader_id = 0;
        state.server_count = 0;
        state.generation++;
        unlock();
        db_close(db);
    }
    lock();
    state.transport = NULL;
    unlock();
    if (transport != NULL) {
        raft_transport_destroy(transport);
    }
    if (state.on_change != NULL) {
        state.on_change(false);
    }
}

static struct db *enter(void)
{
    lock();
    struct db *db = state.db;
    if (db != NULL) {
        state.users++;
    }
    unlock();
    return db;
}

static void leave(void)
{
    lock();
    if (--state.users == 0 && state.db == NULL) { /* only who closes it waits for that */
        pthread_cond_broadcast(&state.changed);
    }
    unlock();
}

static int no_database(struct error *err)
{
    return error_set(err, STATUS_UNAVAILABLE, "LXD daemon setup in progress");
}

int state_with_db(struct daemon *daemon, int (*fn)(struct db *db, void *ud, struct error *err), void *ud, struct error *err)
{
    struct db *db = enter();
    if (db == NULL) {
        return no_database(err);
    }
    int status = fn(db, ud, err);
    leave();
    return status;
}

struct raft_call {
    int (*fn)(struct raft_node *raft, void *ud, struct error *err);
    void *ud;
};

static int with_raft(struct db *db, void *ud, struct error *err)
{
    struct raft_call *call = ud;
    return call->fn(db_raft(db), call->ud, err);
}

int state_with_raft(struct daemon *daemon, int (*fn)(struct raft_node *raft, void *ud, struct error *err), void *ud, struct error *err)
{
    struct raft_call call = {fn, ud};
    return state_with_db(daemon, with_raft, &call, err);
}

int daemon_write(struct daemon *daemon, const char *key, db_write_fn fn, void *ud, struct buf *result, bool *replayed, uint64_t *revision, struct error *err)
{
    struct db *db = enter();
    if (db == NULL) {
        return no_database(err);
    }
    int status = db_write(db, key, fn, ud, result, replayed, revision, err);
    leave();
    return status;
}

int daemon_read(struct daemon *daemon, enum db_consistency consistency, db_read_fn fn, void *ud, uint64_t *revision, struct error *err)
{
    struct db *db = enter();
    if (db == NULL) {
        return no_database(err);
    }
    int status = db_read(db, consistency, fn, ud, revision, err);
    leave();
    return status;
}

int daemon_write_call(struct rpc_call *call, const char *step, db_write_fn fn, void *ud, struct buf *result, bool *replayed, struct error *err)
{
    char key[100];
    snprintf(key, sizeof key, "%s/%s", rpc_request_id(call), step);
    return daemon_write(the_daemon, key, fn, ud, result, replayed, NULL, err);
}
