/* Leaving the cluster, the side of the member that goes (spec/cluster.md 8.5, 3.6): it becomes a standalone server with an empty database and keeps its
 * addresses and its server certificate.
 *
 * The decision is one key of the local database ("leave", the packed request), written before anything else. Then the daemon stops as it does on a signal and
 * executes itself in place, so that it keeps its process id; every start carries out what the key says before anything of the former cluster is read, and removes the
 * key last. So a crash at any point ends in the same state.
 *
 * The answer to a request that made this member leave (its own removal, most of all) goes out first: such requests are counted, the restart waits for them.
 *
 * Here is also what a member notices that was removed by force: everybody refuses it. It goes on asking, rarely, and its log says what to do. */
#include "cluster.h"

#include "covey/internal/v1/departure.pb-c.h"
#include "server/daemon/identity.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LEAVE_ANSWERS_MS = 10000,   /* the restart waits so long for answers that are still to be given … */
    LEAVE_SETTLE_MS = 100,      /* … and then for their last bytes */
    LEAVE_POLL_MS = 10,
    REFUSED_NOTICE_MS = 3000,   /* refused for so long: not a view that is on its way */
    REFUSED_LOG_MS = 60000,
};

static struct {
    pthread_mutex_t lock;
    bool begun;
    unsigned answers; /* requests in flight that may be what makes this member leave */
    int64_t refused_since_ms, refused_logged_ms; /* 0 = not refused */
} leaving = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* ---- the request ---- */

static void on_answered(struct rpc_call *call, void *ud)
{
    pthread_mutex_lock(&leaving.lock);
    leaving.answers--;
    pthread_mutex_unlock(&leaving.lock);
}

void leave_after_answer(struct rpc_call *call)
{
    pthread_mutex_lock(&leaving.lock);
    leaving.answers++;
    pthread_mutex_unlock(&leaving.lock);
    rpc_call_on_done(call, on_answered, NULL);
}

static bool answered(void)
{
    pthread_mutex_lock(&leaving.lock);
    bool all = leaving.answers == 0;
    pthread_mutex_unlock(&leaving.lock);
    return all;
}

static void *restart_main(void *ud)
{
    for (int64_t end = time_mono_ms() + LEAVE_ANSWERS_MS; !answered() && time_mono_ms() < end;) {
        usleep(LEAVE_POLL_MS * 1000);
    }
    usleep(LEAVE_SETTLE_MS * 1000);
    kill(getpid(), DAEMON_RESTART_SIGNAL); /* main waits for it */
    return NULL;
}

/* Decides: from here on this server will be standalone. */
static int leave_begin(struct daemon *daemon, const Covey__Internal__V1__LeaveRequest *request, const struct caller *caller, struct error *err)
{
    size_t len = covey__internal__v1__leave_request__get_packed_size(request);
    uint8_t *bytes = xmalloc(len + 1);
    covey__internal__v1__leave_request__pack(request, bytes);
    char *text = base64_encode(bytes, len), name[128], source[160];
    pthread_mutex_lock(&leaving.lock);
    bool again = leaving.begun;
    int status = again ? STATUS_OK : local_state_set(daemon->local, "leave", text, err);
    leaving.begun = leaving.begun || status == STATUS_OK;
    pthread_mutex_unlock(&leaving.lock);
    free(text);
    free(bytes);
    if (status != STATUS_OK || again) {
        return status;
    }
    daemon_name(daemon, name, sizeof name);
    log_info("leave.begin", "member=%s id=%" PRIu64, name, request->id);
    snprintf(source, sizeof source, "/1.0/cluster/%s", name);
    events_lifecycle("cluster-disabled", source, "default", caller, NULL, NULL);
    pthread_t thread;
    if (pthread_create(&thread, NULL, restart_main, NULL) == 0) {
        pthread_detach(thread);
    } else {
        kill(getpid(), DAEMON_RESTART_SIGNAL);
    }
    return STATUS_OK;
}

static int leave(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct daemon *daemon = the_daemon;
    const Covey__Internal__V1__LeaveRequest *request = (const Covey__Internal__V1__LeaveRequest *)message;
    char *cluster = local_state_get(daemon->local, "cluster_id");
    bool meant = daemon_clustered(daemon) && request->id == daemon_id(daemon) && cluster != NULL && strcmp(cluster, request->cluster_id) == 0;
    free(cluster);
    return meant ? leave_begin(daemon, request, rpc_caller(call), err) : error_set(err, STATUS_FAILED_PRECONDITION, "This is not the member that is to leave");
}

void leave_bind(void)
{
    static const struct rpc_binding bindings[] = {{"Leave", leave}};
    rpc_bind("covey.internal.v1.Departure", bindings, sizeof bindings / sizeof *bindings, NULL);
}

int cluster_disable(struct rpc_call *call, struct error *err)
{
    struct daemon *daemon = the_daemon;
    if (!daemon_clustered(daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "This server is not clustered");
    }
    const struct view *view = view_get();
    size_t members = 0;
    for (size_t i = 0; i < view->message->n_members; i++) {
        members += view->message->members[i]->state != 1;
    }
    view_unref(view);
    if (members > 1 && rpc_caller(call)->class != CALLER_MEMBER) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "This server is a member of a cluster of %zu: remove it from the cluster instead", members);
    }
    if (forming_begin(err) != STATUS_OK) { /* a bootstrap under way */
        return err->code;
    }
    forming_end();
    if (server_idle_check(daemon, "Cannot leave a cluster while instances are running", err) != STATUS_OK) {
        return err->code;
    }
    Covey__Internal__V1__LeaveRequest request = COVEY__INTERNAL__V1__LEAVE_REQUEST__INIT;
    char *cluster = local_state_get(daemon->local, "cluster_id");
    request.id = daemon_id(daemon);
    request.cluster_id = cluster != NULL ? cluster : (char *)"";
    leave_after_answer(call);
    int status = leave_begin(daemon, &request, rpc_caller(call), err);
    free(cluster);
    return status;
}

/* ---- at start ---- */

static Covey__Internal__V1__LeaveRequest *pending(struct daemon *daemon, struct arena *arena, bool *any)
{
    char *text = local_state_get(daemon->local, "leave");
    size_t len = 0;
    uint8_t *bytes = text != NULL ? base64_decode(text, &len) : NULL;
    struct error err = ERROR_INIT;
    ProtobufCMessage *message = bytes != NULL ? codec_unpack(&covey__internal__v1__leave_request__descriptor, bytes, len, arena, &err) : NULL;
    *any = text != NULL;
    if (*any && message == NULL) {
        log_error("leave.request", "error=\"%s\"", err.text); /* the decision stands, what to clear is not known */
    }
    free(bytes);
    free(text);
    return (Covey__Internal__V1__LeaveRequest *)message;
}

static int remove_folder(struct daemon *daemon, const char *name, struct error *err)
{
    char *path = xasprintf("%s/database/%s", daemon->dir, name);
    int status = access(path, F_OK) == 0 ? dir_remove_all(path, err) : STATUS_OK;
    free(path);
    return status;
}

int leave_resume(struct daemon *daemon, struct error *err)
{
    struct arena arena;
    bool any = false;
    arena_init(&arena);
    const Covey__Internal__V1__LeaveRequest *request = pending(daemon, &arena, &any);
    uint64_t former = request != NULL ? request->id : 0;
    arena_clear(&arena);
    if (!any) {
        return STATUS_OK;
    }
    identity_drop_cluster(daemon);
    int status = remove_folder(daemon, "global", err);
    status = status == STATUS_OK ? remove_folder(daemon, "global.before", err) : status;
    status = status == STATUS_OK ? cluster_local_state(daemon, NULL, NULL, 0, 1, err) : status;
    status = status == STATUS_OK ? local_raft_nodes_replace(daemon->local, NULL, 0, err) : status;
    status = status == STATUS_OK ? local_certificates_replace(daemon->local, NULL, 0, err) : status;
    static const char *const keys[] = {"view", "join"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys && status == STATUS_OK; i++) {
        status = local_state_set(daemon->local, keys[i], NULL, err);
    }
    log_info("leave.resume", "former_id=%" PRIu64 " status=%s", former, status_name(status));
    return status;
}

int leave_finish(struct daemon *daemon, struct error *err)
{
    struct arena arena;
    bool any = false;
    arena_init(&arena);
    const Covey__Internal__V1__LeaveRequest *request = pending(daemon, &arena, &any);
    if (request != NULL && request->clear_host) {
        host_clear(daemon->host, request->pools, request->n_pools); /* what cannot be removed is logged and stays: the server must be usable */
    }
    arena_clear(&arena);
    if (!any) {
        return STATUS_OK;
    }
    log_info("leave.done", "text=\"this server is standalone now\"");
    return local_state_set(daemon->local, "leave", NULL, err);
}

/* ---- refused by everybody ---- */

static bool refused_locked(int64_t now)
{
    return leaving.refused_since_ms != 0 && now - leaving.refused_since_ms >= REFUSED_NOTICE_MS && !leaving.begun;
}

bool leave_is_refused(void)
{
    pthread_mutex_lock(&leaving.lock);
    bool refused = refused_locked(time_mono_ms());
    pthread_mutex_unlock(&leaving.lock);
    return refused;
}

void leave_note_answer(bool refused)
{
    int64_t now = time_mono_ms();
    pthread_mutex_lock(&leaving.lock);
    leaving.refused_since_ms = !refused ? 0 : leaving.refused_since_ms != 0 ? leaving.refused_since_ms : now;
    bool log = refused && refused_locked(now) && (leaving.refused_logged_ms == 0 || now - leaving.refused_logged_ms >= REFUSED_LOG_MS);
    leaving.refused_logged_ms = log ? now : leaving.refused_logged_ms;
    pthread_mutex_unlock(&leaving.lock);
    if (log) {
        log_error("member.removed",
            "dir=%s text=\"the cluster refuses this server: it was removed from it. It takes no part any more and will not become ready. To use it again, stop it, remove "
            "the contents of this directory (instances, images and pools on it are lost to the cluster), start it and join again\"",
            the_daemon->dir);
    }
}
