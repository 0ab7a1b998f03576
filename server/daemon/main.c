/* coveyd: one member. Starts its parts in order, waits for a signal, stops them in reverse. Running containers are left alone unless a shutdown was asked for. */
#include "route.h"

#include "identity.h"
#include "listener.h"
#include "server/cluster/upgrade.h"
#include "server/events/events.h"
#include "server/networks/networks_member.h"
#include "server/operations/operations.h"
#include "server/recovery/offline.h"
#include "server/recovery/recovery.h"
#include "server/services.h"
#include "server/warnings/warnings.h"
#include "state.h"
#include "stopping.h"
#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <limits.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STOP_GRACE_MS = 2000, MALLOC_ARENAS = 2, START_POLL_MS = 20, BLOCKED_POLL_MS = 200 };

static struct daemon daemon_object;
struct daemon *the_daemon = &daemon_object;

static const char usage[] = "usage: coveyd [--dir DIR] [--group GROUP] [--logfile FILE] [--debug] [--verbose] [--no-gateway]\n"
                            "  --dir DIR       state directory (default $COVEY_DIR or /var/lib/covey)\n"
                            "  --group GROUP   members of this group may use the local sockets, besides root\n"
                            "  --logfile FILE  append the log to FILE instead of stderr\n"
                            "  --debug         log everything\n"
                            "  --no-gateway    do not start covey-gateway (it runs as a unit of its own)\n";

struct options {
    const char *dir, *group, *logfile;
    bool debug, no_gateway;
};

static int parse(int argc, char **argv, struct options *options)
{
    static const struct option table[] = {{"dir", required_argument, NULL, 'D'}, {"group", required_argument, NULL, 'g'}, {"logfile", required_argument, NULL, 'l'},
        {"debug", no_argument, NULL, 'd'}, {"verbose", no_argument, NULL, 'v'}, {"no-gateway", no_argument, NULL, 'n'}, {"help", no_argument, NULL, 'h'}, {0}};
    options->dir = getenv("COVEY_DIR");
    for (int c; (c = getopt_long(argc, argv, "D:g:l:dvnh", table, NULL)) != -1;) {
        switch (c) {
        case 'D': options->dir = optarg; break;
        case 'g': options->group = optarg; break;
        case 'l': options->logfile = optarg; break;
        case 'd': options->debug = true; break;
        case 'v': break;
        case 'n': options->no_gateway = true; break;
        case 'h': fputs(usage, stdout); exit(0);
        default: fputs(usage, stderr); return -1;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "coveyd: unexpected argument \"%s\"\n%s", argv[optind], usage);
        return -1;
    }
    options->dir = options->dir != NULL ? options->dir : "/var/lib/covey";
    return 0;
}

static struct rpc_channel *host_channel(void *ud, const char *address)
{
    return member_channel_by_address(ud, address);
}

static int load_identity(struct daemon *daemon, struct error *err)
{
    char *id = local_state_get(daemon->local, "member_id"), *clustered = local_state_get(daemon->local, "clustered"), *name = local_state_get(daemon->local, "name");
    state_set_identity(daemon, id != NULL ? strtoull(id, NULL, 10) : 1, clustered != NULL, name != NULL ? name : "");
    int status = join_prepare(daemon, err);
    char *database = xasprintf("%s/database", daemon->dir);
    if (status == STATUS_OK && clustered == NULL && !db_exists(database)) {
        status = db_bootstrap(database, 1, err); /* a standalone server is a cluster of one */
    }
    free(database);
    free(id);
    free(clustered);
    free(name);
    return status;
}

static void bind_services(struct daemon *daemon)
{
    host_bind(daemon->host);
    raft_transport_bind();
    admin_bind();
    membership_bind();
    cluster_service_bind();
    groups_bind();
    recovery_bind();
    bootstrap_register();
    join_register();
    events_init(daemon);
    operations_init(daemon);
    server_service_bind();
    certificates_bind();
    projects_bind();
    profiles_bind();
    pools_bind();
    networks_bind();
    warnings_bind();
    images_bind();
    instances_bind();
}

static struct rpc_server *grpc_local, *grpc_tls;

static int open_sockets(struct daemon *daemon, struct error *err)
{
    int64_t gid = -1;
    if (daemon->group != NULL) {
        struct group *group = getgrnam(daemon->group);
        if (group == NULL) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "no group named \"%s\"", daemon->group);
        }
        gid = group->gr_gid;
    }
    char *local = xasprintf("%s/grpc.socket", daemon->dir);
    struct identity identity = {0};
    identity_copy(&identity);
    grpc_tls = rpc_server_tls(&identity, err);
    if (grpc_tls != NULL) {
        identity_serve(grpc_tls);
        grpc_local = rpc_server_listen_unix(local, gid, err);
    }
    identity_free(&identity);
    free(local);
    return grpc_local != NULL ? STATUS_OK : (int)err->code;
}

static int open_listeners(struct daemon *daemon, struct error *err)
{
    char *core = local_config_get(daemon->local, "core.https_address"), *cluster = local_config_get(daemon->local, "cluster.https_address");
    int status = listener_start(daemon, grpc_tls, err);
    if (status == STATUS_OK) {
        status = listener_set(daemon, core != NULL ? core : "", cluster != NULL ? cluster : "", err);
    }
    free(core);
    free(cluster);
    return status;
}

/* Newer code has changed the database of a member of a cluster: the text that the others' levels would have given. */
static int open_database(struct daemon *daemon, struct error *err)
{
    int status = state_open_database(daemon, err);
    if (status == STATUS_FAILED_PRECONDITION && daemon_clustered(daemon)) {
        error_prefix(err, "failed to ensure schema: this node's version is behind, please upgrade");
    }
    return status;
}

static int start(struct daemon *daemon, const struct options *options, struct error *err)
{
    char *database = xasprintf("%s/database", daemon->dir);
    int status = dir_make(daemon->dir, 0711, err);
    status = status == STATUS_OK ? dir_make(database, 0700, err) : status;
    status = status == STATUS_OK ? daemon_lock(daemon, err) : status;
    status = status == STATUS_OK ? local_db_open(database, &daemon->local, err) : status;
    status = status == STATUS_OK ? patch_local(daemon, err) : status;
    status = status == STATUS_OK ? identity_init(daemon, err) : status;
    status = status == STATUS_OK ? recovery_resume(daemon, err) : status;
    free(database);
    if (status != STATUS_OK || leave_resume(daemon, err) != STATUS_OK || load_identity(daemon, err) != STATUS_OK) {
        return err->code;
    }
    view_load(daemon);
    address_load(daemon);
    struct host_config host = {.state_dir = daemon->dir, .channel = host_channel, .ud = daemon, .status_changed = attach_instance_changed};
    struct rpc_policy policy = {.ud = daemon, .classify = view_classify, .route = route_call, .route_now = route_now, .confirm = confirm_call, .admit = admit_call};
    attach_init(daemon); /* the host reports statuses from its start on */
    status = host_start(&host, &daemon->host, err);
    status = status == STATUS_OK ? leave_finish(daemon, err) : status;
    if (status == STATUS_OK) {
        bind_services(daemon);
        rpc_set_policy(&policy);
        controller_start(daemon);
        status = open_sockets(daemon, err);
    }
    status = status == STATUS_OK ? open_listeners(daemon, err) : status;
    if (status == STATUS_OK && !options->no_gateway) { /* before the database: who asks meanwhile is told to wait */
        status = gateway_start(daemon, err);
    }
    status = status == STATUS_OK ? epoch_check_start(daemon, err) : status;
    status = status == STATUS_OK ? open_database(daemon, err) : status;
    if (status == STATUS_OK) {
        attach_start(daemon);
        upgrade_start(daemon);
        status = join_resume(daemon, err);
    }
    return status;
}

enum patch_state { PATCH_DONE, PATCH_LATER, PATCH_FATAL };

/* The patch file for the replicated database; runs before anything is served. */
static enum patch_state patch_state(struct daemon *daemon, struct error *err)
{
    if (recovery_failed(err) || address_refused(err)) {
        return PATCH_FATAL;
    }
    int status = patch_global(daemon, err);
    bool later = status == STATUS_UNAVAILABLE || status == STATUS_UNKNOWN || status == STATUS_DEADLINE_EXCEEDED;
    return status == STATUS_OK ? PATCH_DONE : later ? PATCH_LATER : PATCH_FATAL;
}

/* Ready once a leader has told what the other members are, and all of them can serve together; until then clients get a clear refusal. Returns the
 * signal that ended the wait, 0 = ready, -1 = this member must not run. */
static int wait_ready(struct daemon *daemon, sigset_t *signals, struct error *err)
{
    for (unsigned seen = 0;;) {
        enum upgrade_state state = upgrade_judge(daemon, err);
        bool leader = daemon_leads(daemon) || daemon_leader_id(daemon) != 0 || attach_known_leader() != 0;
        enum patch_state patch = leader || recovery_failed(err) || address_refused(err) ? patch_state(daemon, err) : PATCH_LATER;
        if (patch == PATCH_FATAL || state == UPGRADE_FATAL || (state == UPGRADE_SERVE && patch == PATCH_DONE)) {
            return patch == PATCH_FATAL || state == UPGRADE_FATAL ? -1 : 0;
        }
        if (state == UPGRADE_BLOCKED && daemon_phase() == DAEMON_STARTING) {
            log_warn("daemon.blocked", "text=\"" DAEMON_BLOCKED_TEXT "\"");
            daemon_set_phase(DAEMON_BLOCKED);
        }
        seen = state_wait_change(seen, state == UPGRADE_BLOCKED ? BLOCKED_POLL_MS : START_POLL_MS);
        struct timespec now = {0, 0};
        int signal = sigtimedwait(signals, NULL, &now);
        if (signal > 0 && signal != SIGHUP) {
            return signal;
        }
    }
}

static void stop(struct daemon *daemon, int signal)
{
    struct stop_manner how = stop_manner(signal);
    daemon_set_phase(DAEMON_STOPPING);
    log_info("daemon.stopping", "instances=%s wait=%d", how.instances ? "stop" : "keep", how.wait);
    if (signal != DAEMON_RESTART_SIGNAL) { /* who has left has nothing to give */
        handover(daemon); /* first: stopping instances may take long */
    }
    if (how.wait) {
        stop_wait(daemon);
    }
    background_end();
    if (how.instances) {
        instances_stop_all(daemon);
    }
    gateway_stop();
    upgrade_stop();
    attach_stop();
    controller_stop();
    operations_lead(false);
    listener_stop();
    identity_serve(NULL);
    rpc_server_destroy(grpc_local, STOP_GRACE_MS);
    rpc_server_destroy(grpc_tls, STOP_GRACE_MS);
    networks_sync_stop();
    state_close_database(daemon);
    members_forget_channels();
    background_join();
    host_stop(daemon->host);
    local_db_close(daemon->local);
    rpc_shutdown();
    log_info("daemon.stopped", "dir=%s", daemon->dir);
}

/* The same program in the same process, as a new start. Returns only when somebody asked for the end meanwhile, or a service manager holds the sockets and starts
 * this program when it is needed (0), or it is not possible (1). */
static int restart_in_place(const char *program, char **argv)
{
    sigset_t waiting;
    if (inherited_count() > 0) {
        return 0;
    }
    sigpending(&waiting);
    for (int i = 0; i < 4; i++) {
        if (sigismember(&waiting, (int[]){SIGTERM, SIGINT, SIGQUIT, SIGPWR}[i])) {
            return 0;
        }
    }
    close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
    execv(program, argv);
    execv("/proc/self/exe", argv); /* replaced or removed since */
    fprintf(stderr, "coveyd: cannot restart: %s\n", strerrordesc_np(errno));
    return 1;
}

int main(int argc, char **argv)
{
    struct options options = {0};
    char dir[PATH_MAX], program[PATH_MAX] = "";
    if (argc > 1 && strcmp(argv[1], "offline") == 0) {
        return offline_main(argc - 1, argv + 1);
    }
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) {
        program[0] = '\0';
    }
    if (parse(argc, argv, &options) != 0) {
        return 2;
    }
    mallopt(M_ARENA_MAX, MALLOC_ARENAS);
    log_init("coveyd", options.debug ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO);
    if (options.logfile != NULL) {
        log_to_file(options.logfile);
    }
    struct rlimit files = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &files); /* best effort: a low limit shows up as failed accepts */
    sigset_t signals;
    sigemptyset(&signals);
    for (int i = 0; i < 6; i++) {
        sigaddset(&signals, (int[]){SIGTERM, SIGINT, SIGQUIT, SIGPWR, SIGHUP, DAEMON_RESTART_SIGNAL}[i]);
    }
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before any thread: main waits for them */
    signal(SIGPIPE, SIG_IGN);
    struct error err = ERROR_INIT;
    if (dir_make(options.dir, 0711, &err) != STATUS_OK || realpath(options.dir, dir) == NULL) {
        fprintf(stderr, "coveyd: %s: %s\n", options.dir, err.code != STATUS_OK ? err.text : strerrordesc_np(errno));
        return 1;
    }
    the_daemon->dir = xstrdup(dir);
    the_daemon->group = options.group != NULL ? xstrdup(options.group) : NULL;
    the_daemon->started_ms = time_mono_ms();
    gethostname(the_daemon->hostname, sizeof the_daemon->hostname - 1);
    registry_init();
    rpc_init();
    if (start(the_daemon, &options, &err) != STATUS_OK) {
        log_error("daemon.start", "error=\"%s\"", err.text);
        fprintf(stderr, "coveyd: %s\n", err.text);
        return 1;
    }
    int ended = wait_ready(the_daemon, &signals, &err);
    if (ended == 0) {
        daemon_set_phase(DAEMON_READY);
        log_info("daemon.ready", "id=%llu ms=%lld", (unsigned long long)daemon_id(the_daemon), (long long)(time_mono_ms() - the_daemon->started_ms));
        networks_sync(the_daemon);
        instances_autostart(the_daemon);
        for (ended = SIGHUP; ended == SIGHUP;) {
            if (sigwait(&signals, &ended) != 0) {
                break;
            }
        }
    }
    if (ended < 0) {
        log_error("daemon.start", "error=\"%s\"", err.text);
        fprintf(stderr, "coveyd: %s\n", err.text);
    }
    stop(the_daemon, ended);
    if (ended == DAEMON_RESTART_SIGNAL) {
        return restart_in_place(program, argv);
    }
    return ended < 0 ? 1 : 0;
}
