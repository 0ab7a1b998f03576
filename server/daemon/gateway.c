/* Supervises covey-gateway: starts it, starts it again when it ends (after a short pause), ends it with the daemon. Its stdin is a pipe whose other end
 * only this process holds, so that it ends however the daemon dies. One thread. */
#include "route.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RESTART_PAUSE_MS = 200, STOP_WAIT_MS = 3000 };

extern char **environ;

static struct {
    struct daemon *daemon;
    pthread_t thread;
    bool started;
    atomic_bool stop;
    atomic_int pid;
    char path[PATH_MAX];
} gateway;

/* Installed below libexec/covey or beside this program; in the build tree in the gateway's folder. */
static int find_program(char *out, size_t size, struct error *err)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) {
        return error_set(err, STATUS_INTERNAL, "cannot read /proc/self/exe");
    }
    self[n] = '\0';
    const char *folder = dirname(self);
    static const char *const places[] = {"covey-gateway", "../libexec/covey/covey-gateway", "../gateway/covey-gateway"};
    const char *libexec = getenv("COVEY_LIBEXEC");
    if (!str_empty(libexec)) {
        snprintf(out, size, "%s/covey-gateway", libexec);
        if (access(out, X_OK) == 0) {
            return STATUS_OK;
        }
    }
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        snprintf(out, size, "%s/%s", folder, places[i]);
        if (access(out, X_OK) == 0) {
            return STATUS_OK;
        }
    }
    return error_set(err, STATUS_NOT_FOUND, "covey-gateway not found beside coveyd (%s) nor in ../libexec/covey", folder);
}

static pid_t spawn(int *keep)
{
    int ends[2];
    pid_t pid = -1;
    if (pipe2(ends, O_CLOEXEC) != 0) {
        return -1;
    }
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attr;
    sigset_t none;
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[0], STDIN_FILENO);
    posix_spawnattr_init(&attr);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
    char *argv[7] = {gateway.path, "--dir", gateway.daemon->dir, "--supervised", NULL};
    if (gateway.daemon->group != NULL) {
        argv[4] = "--group";
        argv[5] = gateway.daemon->group;
    }
    int rc = posix_spawn(&pid, gateway.path, &actions, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    close(ends[0]);
    if (rc != 0) {
        close(ends[1]);
        errno = rc;
        return -1;
    }
    *keep = ends[1];
    return pid;
}

static void *gateway_main(void *ud)
{
    while (!atomic_load(&gateway.stop)) {
        int keep = -1, status = 0;
        pid_t pid = spawn(&keep);
        if (pid > 0) {
            atomic_store(&gateway.pid, pid);
            log_info("gateway.started", "pid=%d", (int)pid);
            while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
            }
            atomic_store(&gateway.pid, 0);
            close(keep);
            if (!atomic_load(&gateway.stop)) {
                log_warn("gateway.ended", "pid=%d status=%d", (int)pid, status);
            }
        } else {
            log_error("gateway.spawn", "error=\"%s\"", strerrordesc_np(errno));
        }
        if (!atomic_load(&gateway.stop)) {
            usleep(RESTART_PAUSE_MS * 1000);
        }
    }
    return NULL;
}

int gateway_start(struct daemon *daemon, struct error *err)
{
    gateway.daemon = daemon;
    if (find_program(gateway.path, sizeof gateway.path, err) != STATUS_OK) {
        return err->code;
    }
    if (pthread_create(&gateway.thread, NULL, gateway_main, NULL) != 0) {
        return error_set(err, STATUS_INTERNAL, "cannot start a thread");
    }
    gateway.started = true;
    return STATUS_OK;
}

void gateway_stop(void)
{
    if (!gateway.started) {
        return;
    }
    atomic_store(&gateway.stop, true);
    int64_t end = time_mono_ms() + STOP_WAIT_MS;
    bool asked = false;
    for (int pid; (pid = atomic_load(&gateway.pid)) > 0; usleep(10000)) {
        kill(pid, !asked ? SIGTERM : time_mono_ms() > end ? SIGKILL : 0);
        asked = true;
    }
    pthread_join(gateway.thread, NULL);
    gateway.started = false;
}
