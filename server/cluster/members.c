/* Reaching members: channels by id, which accept the cluster certificate of the day; calls to agents; names to ids. Thread: any. */
#include "cluster.h"

#include "server/config/keys.h"
#include "server/daemon/state.h"
#include "server/daemon/identity.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uthash.h>

enum { AGENT_RECONNECT_MS = 2000, AGENT_RETRY_MS = 100 };

struct cached {
    uint64_t id;
    char address[ADDRESS_MAX], name[128];
    struct rpc_channel *channel;
    UT_hash_handle hh;
};

struct located { /* what a member said itself, where that is not what the view says */
    uint64_t id;
    char address[ADDRESS_MAX];
    UT_hash_handle hh;
};

static struct {
    pthread_mutex_t lock;
    struct cached *by_id;
    struct located *located;
    struct rpc_channel *self;
} channels = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct rpc_channel *self_channel(struct daemon *daemon)
{
    pthread_mutex_lock(&channels.lock);
    if (channels.self == NULL) {
        char *path = xasprintf("%s/grpc.socket", daemon->dir);
        channels.self = rpc_channel_unix(path);
        free(path);
    }
    struct rpc_channel *channel = rpc_channel_ref(channels.self);
    pthread_mutex_unlock(&channels.lock);
    return channel;
}

struct rpc_channel *member_channel(struct daemon *daemon, uint64_t id, struct error *err)
{
    if (id == daemon_id(daemon)) {
        return self_channel(daemon);
    }
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, id);
    struct rpc_channel *channel = NULL;
    if (member == NULL) {
        error_set(err, STATUS_NOT_FOUND, "Cluster member not found");
    } else {
        pthread_mutex_lock(&channels.lock);
        struct cached *cached = NULL;
        HASH_FIND(hh, channels.by_id, &id, sizeof id, cached);
        struct located *located = NULL;
        HASH_FIND(hh, channels.located, &id, sizeof id, located);
        const char *address = located != NULL ? located->address : member->address;
        if (cached != NULL && (strcmp(cached->address, address) != 0 || strcmp(cached->name, member->name) != 0)) {
            HASH_DEL(channels.by_id, cached);
            rpc_channel_unref(cached->channel);
            free(cached);
            cached = NULL;
        }
        if (cached == NULL) {
            cached = xcalloc(1, sizeof *cached);
            cached->id = id;
            snprintf(cached->address, sizeof cached->address, "%s", address);
            snprintf(cached->name, sizeof cached->name, "%s", member->name);
            char *who = xasprintf("cluster member %s", member->name);
            cached->channel = rpc_channel_peer(address, who, identity_cluster_accepts, NULL, &daemon->server);
            free(who);
            HASH_ADD(hh, channels.by_id, id, sizeof cached->id, cached);
        }
        channel = rpc_channel_ref(cached->channel);
        pthread_mutex_unlock(&channels.lock);
    }
    view_unref(view);
    return channel;
}

static void locate(uint64_t id, const char *address)
{
    pthread_mutex_lock(&channels.lock);
    struct located *located = NULL;
    HASH_FIND(hh, channels.located, &id, sizeof id, located);
    if (located == NULL && address != NULL) {
        located = xcalloc(1, sizeof *located);
        located->id = id;
        HASH_ADD(hh, channels.located, id, sizeof located->id, located);
    }
    if (address != NULL) {
        snprintf(located->address, sizeof located->address, "%s", address);
    } else if (located != NULL) {
        HASH_DEL(channels.located, located);
        free(located);
    }
    pthread_mutex_unlock(&channels.lock);
}

void member_located(struct daemon *daemon, uint64_t id, const char *address)
{
    char canonical[ADDRESS_MAX];
    if (id == daemon_id(daemon) || address_canonical(address, canonical, sizeof canonical, NULL) != STATUS_OK || strcmp(canonical, address) != 0 || address_wildcard(address)) {
        return;
    }
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, id);
    bool usual = member != NULL && strcmp(member->address, address) == 0, known = member != NULL && address_check(view, id, address, NULL) == STATUS_OK;
    view_unref(view);
    pthread_mutex_lock(&channels.lock);
    struct located *located = NULL;
    HASH_FIND(hh, channels.located, &id, sizeof id, located);
    bool news = located != NULL ? strcmp(located->address, address) != 0 : !usual;
    pthread_mutex_unlock(&channels.lock);
    if (known && news) {
        log_info("member.located", "member=%" PRIu64 " address=%s", id, address);
        locate(id, usual ? NULL : address);
        raft_transport_moved(id);
    }
}

void member_moved(uint64_t id)
{
    locate(id, NULL);
    raft_transport_moved(id);
}

struct rpc_channel *member_channel_by_address(struct daemon *daemon, const char *address)
{
    const struct view *view = view_get();
    uint64_t id = 0;
    for (size_t i = 0; i < view->message->n_members; i++) {
        if (strcmp(view->message->members[i]->address, address) == 0) {
            id = view->message->members[i]->id;
        }
    }
    view_unref(view);
    if (id != 0) {
        return member_channel(daemon, id, NULL);
    }
    return daemon_clustered(daemon) ? rpc_channel_peer(address, "a member", identity_cluster_accepts, NULL, &daemon->server) : NULL;
}

void members_forget_channels(void)
{
    pthread_mutex_lock(&channels.lock);
    struct cached *cached, *next;
    HASH_ITER(hh, channels.by_id, cached, next) {
        HASH_DEL(channels.by_id, cached);
        rpc_channel_unref(cached->channel);
        free(cached);
    }
    struct located *located, *after;
    HASH_ITER(hh, channels.located, located, after) {
        HASH_DEL(channels.located, located);
        free(located);
    }
    if (channels.self != NULL) {
        rpc_channel_unref(channels.self);
        channels.self = NULL;
    }
    pthread_mutex_unlock(&channels.lock);
}

int agent_call(struct daemon *daemon, uint64_t member, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response, struct arena *arena,
               int64_t timeout_ms, struct error *err)
{
    *response = NULL;
    if (!member_online(daemon, member)) {
        const struct view *view = view_get();
        const Covey__Internal__V1__ViewMember *m = view_member_by_id(view, member);
        int status = error_set(err, STATUS_UNAVAILABLE, "Cluster member %s is offline", m != NULL ? m->name : "(unknown)");
        view_unref(view);
        return status;
    }
    struct rpc_channel *channel = member_channel(daemon, member, err);
    if (channel == NULL) {
        return err != NULL ? (int)err->code : STATUS_NOT_FOUND;
    }
    struct rpc_options options = {.timeout_ms = timeout_ms == 0 ? AGENT_TIMEOUT_MS : timeout_ms};
    int64_t end = time_mono_ms() + AGENT_RECONNECT_MS;
    int status;
    for (;;) { /* agent calls may be repeated; a member that has just come back may not be connected again yet */
        status = rpc_unary(channel, "covey.internal.v1.Agent", method, request, response, arena, &options, err);
        if (status != STATUS_UNAVAILABLE || time_mono_ms() >= end || !member_online(daemon, member)) {
            break;
        }
        usleep(AGENT_RETRY_MS * 1000);
    }
    rpc_channel_unref(channel);
    return status;
}

int target_resolve(struct daemon *daemon, const char *target, uint64_t *member, struct error *err)
{
    *member = 0;
    if (str_empty(target)) {
        return STATUS_OK;
    }
    if (!daemon_clustered(daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Target only allowed when clustered");
    }
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *m = view_member_by_name(view, target);
    if (m != NULL && m->state != 1) {
        *member = m->id;
    }
    view_unref(view);
    return *member != 0 ? STATUS_OK : error_set(err, STATUS_NOT_FOUND, "Cluster member not found");
}

const char *project_or_default(const char *project)
{
    return str_empty(project) ? "default" : project;
}

int project_id(struct sql *sql, const char *project, int64_t *id, struct error *err)
{
    int status = sql_get_int(sql, id, err, "SELECT id FROM projects WHERE name = ?1", "s", project_or_default(project));
    return status == STATUS_NOT_FOUND ? error_set(err, STATUS_NOT_FOUND, "Project not found") : status;
}

int members_all_up(struct error *err)
{
    enum { PENDING = 1 };
    const struct view *view = view_get();
    int status = STATUS_OK;
    for (size_t i = 0; i < view->message->n_members && status == STATUS_OK; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        if (member->state != PENDING && !member_online(the_daemon, member->id)) {
            status = error_set(err, STATUS_UNAVAILABLE, "peer node %s is down", member->address);
        }
    }
    view_unref(view);
    return status;
}

struct each {
    void (*work)(void *ud, size_t index, struct arena *arena);
    void *ud;
    size_t index;
};

static void *run_each(void *ud)
{
    struct each *each = ud;
    struct arena arena;
    arena_init(&arena);
    each->work(each->ud, each->index, &arena);
    arena_clear(&arena);
    return NULL;
}

void members_each(size_t count, void (*work)(void *ud, size_t index, struct arena *arena), void *ud)
{
    for (size_t first = 0; first < count; first += MEMBERS_PARALLEL_MAX) {
        pthread_t threads[MEMBERS_PARALLEL_MAX];
        struct each each[MEMBERS_PARALLEL_MAX];
        bool started[MEMBERS_PARALLEL_MAX];
        size_t n = count - first < MEMBERS_PARALLEL_MAX ? count - first : MEMBERS_PARALLEL_MAX;
        for (size_t i = 0; i < n; i++) {
            each[i] = (struct each){work, ud, first + i};
            started[i] = n > 1 && pthread_create(&threads[i], NULL, run_each, &each[i]) == 0;
            if (!started[i]) { /* no thread to be had, or no need of one */
                run_each(&each[i]);
            }
        }
        for (size_t i = 0; i < n; i++) {
            if (started[i]) {
                pthread_join(threads[i], NULL);
            }
        }
    }
}
