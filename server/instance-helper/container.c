/* Commands on one container by liblxc: start, stop, halt, freeze, unfreeze, list, settle. liblxc forks its monitor from here; the monitor is a session
 * of its own with /dev/null as its standard descriptors, so it neither dies with the daemon nor keeps the daemon's pipes open. */
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    STOP_WAIT_S = 30,         /* for a killed container to be gone */
    SETTLE_MS_MAX = 20000,    /* for a container whose init died to be stopped or rebooted */
    SETTLE_POLL_MS = 50,
    LOG_TAIL_BYTES = 64 << 10,
    LOG_LINES_TOLD = 6,       /* error lines of lxc.log that a failed start tells */
};

struct lxc_container *helper__container(const json_t *in, struct error *err)
{
    const char *name = helper__text(in, "name"), *path = helper__text(in, "lxcpath");
    if (!*name || !*path) {
        error_set(err, STATUS_INVALID_ARGUMENT, "Command lacks name or lxcpath");
        return NULL;
    }
    struct lxc_container *c = lxc_container_new(name, path);
    if (!c)
        error_set(err, STATUS_INTERNAL, "Failed to load the container's configuration");
    return c;
}

/* "lxc NAME DATE LEVEL FILE - FILE.c:function:LINE - text" -> text. */
static const char *log_text(const char *line)
{
    const char *text = line;
    for (int i = 0; i < 2; i++) {
        const char *dash = strstr(text, " - ");
        if (!dash)
            return line;
        text = dash + 3;
    }
    return text;
}

/* The last error lines of the container's log, in order. */
static void log_tail(const char *path, struct buf *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return;
    struct stat st;
    off_t start = fstat(fd, &st) == 0 && st.st_size > LOG_TAIL_BYTES ? st.st_size - LOG_TAIL_BYTES : 0;
    char *text = xcalloc(1, LOG_TAIL_BYTES + 1);
    ssize_t len = pread(fd, text, LOG_TAIL_BYTES, start);
    close(fd);
    const char *lines[LOG_LINES_TOLD];
    size_t count = 0;
    char *save = NULL;
    for (char *line = len > 0 ? strtok_r(text, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save)) {
        if (!strstr(line, " ERROR "))
            continue;
        if (count < LOG_LINES_TOLD) { /* the first ones name the cause, later ones follow from it */
            lines[count++] = log_text(line);
        }
    }
    for (size_t i = 0; i < count; i++)
        buf_printf(out, "%s%s", i ? "; " : "", lines[i]);
    free(text);
}

int helper__start(const json_t *in, json_t *out, struct error *err)
{
    /* liblxc insists on newuidmap, and with it on entries of root in /etc/subuid, wherever PATH shows it; as root it can map by itself. */
    if (json_is_true(json_object_get(in, "without_uidmap_tools")) && setenv("PATH", "/nonexistent", 1) < 0)
        return error_errno(err, errno, "Failed to set PATH");
    struct lxc_container *c = helper__container(in, err);
    if (!c)
        return err->code;
    if (!c->is_defined(c)) {
        lxc_container_put(c);
        return error_set(err, STATUS_INVALID_ARGUMENT, "Failed to load the container's configuration");
    }
    int rc = STATUS_OK;
    c->clear_config_item(c, "lxc.ephemeral");
    if (c->is_running(c)) {
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "The instance is already running");
    } else if (!c->want_daemonize(c, true) || !c->want_close_all_fds(c, true)) {
        rc = error_set(err, STATUS_INTERNAL, "Failed to prepare the container's monitor");
    } else if (!c->start(c, 0, NULL)) {
        struct buf why = {0};
        log_tail(helper__text(in, "log"), &why);
        rc = error_set(err, STATUS_INTERNAL, "Failed to run the container%s%s", why.len ? ": " : "", why.len ? why.data : "");
        buf_free(&why);
        c->stop(c); /* of whatever got half way; nothing to tell when nothing runs */
    } else {
        json_object_set_new(out, "pid", json_integer(c->init_pid(c)));
        json_object_set_new(out, "state", json_string(c->state(c)));
    }
    lxc_container_put(c);
    return rc;
}

int helper__stop(const json_t *in, json_t *out, struct error *err)
{
    struct lxc_container *c = helper__container(in, err);
    if (!c)
        return err->code;
    int rc = STATUS_OK;
    if (c->is_running(c)) {
        bool stopped = c->stop(c);
        if (!c->wait(c, "STOPPED", STOP_WAIT_S))
            rc = error_set(err, STATUS_INTERNAL, "Failed to stop the container%s", stopped ? ": it is still there" : "");
    }
    lxc_container_put(c);
    return rc;
}

/* Whether bit `signo` of the mask named `field` in /proc/PID/status is set. */
static bool signal_in_mask(pid_t pid, const char *field, int signo)
{
    char path[64], line[256];
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool found = false;
    size_t len = strlen(field);
    while (fgets(line, sizeof(line), file))
        if (strncmp(line, field, len) == 0 && line[len] == ':')
            found = (strtoull(line + len + 1, NULL, 16) >> (signo - 1)) & 1;
    fclose(file);
    return found;
}

/* The signal that asks this init to halt: the configured one; SIGRTMIN+3 for an init that waits for it by signalfd (systemd), SIGPWR for one that
 * handles that, SIGUSR2 for one that handles only this (busybox: power off). An init that handles none gets SIGPWR, which then does nothing. */
static int halt_signal(struct lxc_container *c, pid_t pid)
{
    char text[32] = "";
    int64_t configured;
    if (c->get_config_item(c, "lxc.signal.halt", text, sizeof(text)) > 0 && parse_i64(text, 1, SIGRTMAX, &configured) == 0)
        return (int)configured;
    if (signal_in_mask(pid, "SigBlk", SIGRTMIN + 3) || signal_in_mask(pid, "SigCgt", SIGRTMIN + 3))
        return SIGRTMIN + 3;
    if (signal_in_mask(pid, "SigCgt", SIGPWR) || signal_in_mask(pid, "SigBlk", SIGPWR))
        return SIGPWR;
    if (signal_in_mask(pid, "SigCgt", SIGUSR2) || signal_in_mask(pid, "SigBlk", SIGUSR2))
        return SIGUSR2;
    return SIGPWR;
}

/* Asks the init to halt; whoever called waits for the end. */
int helper__halt(const json_t *in, json_t *out, struct error *err)
{
    struct lxc_container *c = helper__container(in, err);
    if (!c)
        return err->code;
    int rc = STATUS_OK;
    pid_t pid = c->init_pid(c);
    int pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
    if (pidfd >= 0 && c->init_pid(c) == pid) { /* still the same process: the descriptor is the init's */
        int signo = halt_signal(c, pid);
        if (syscall(SYS_pidfd_send_signal, pidfd, signo, NULL, 0) < 0 && errno != ESRCH)
            rc = error_errno(err, errno, "Failed to signal the container's init");
        json_object_set_new(out, "signal", json_integer(signo));
    }
    if (pidfd >= 0)
        close(pidfd);
    lxc_container_put(c);
    return rc;
}

static int freezer(const json_t *in, bool freeze, struct error *err)
{
    struct lxc_container *c = helper__container(in, err);
    if (!c)
        return err->code;
    int rc = STATUS_OK;
    if (!c->is_running(c))
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "The container isn't running");
    else if (!(freeze ? c->freeze(c) : c->unfreeze(c)))
        rc = error_set(err, STATUS_INTERNAL, "Failed to %s the container", freeze ? "freeze" : "unfreeze");
    lxc_container_put(c);
    return rc;
}

int helper__freeze(const json_t *in, json_t *out, struct error *err)
{
    return freezer(in, true, err);
}

int helper__unfreeze(const json_t *in, json_t *out, struct error *err)
{
    return freezer(in, false, err);
}

/* State and init of every container of "names". */
int helper__list(const json_t *in, json_t *out, struct error *err)
{
    json_t *list = json_array();
    size_t i;
    const json_t *name;
    json_array_foreach(json_object_get(in, "names"), i, name)
    {
        struct lxc_container *c = lxc_container_new(json_string_value(name), helper__text(in, "lxcpath"));
        const char *state = c ? c->state(c) : NULL;
        json_t *one = json_object();
        json_object_set_new(one, "name", json_string(json_string_value(name)));
        json_object_set_new(one, "state", json_string(state ? state : "STOPPED"));
        json_object_set_new(one, "pid", json_integer(c ? c->init_pid(c) : -1));
        json_array_append_new(list, one);
        if (c)
            lxc_container_put(c);
    }
    json_object_set_new(out, "containers", list);
    return STATUS_OK;
}

/* After the init "pid" died: waits until the container is stopped, or runs again with another init (a reboot from inside). */
int helper__settle(const json_t *in, json_t *out, struct error *err)
{
    struct lxc_container *c = helper__container(in, err);
    if (!c)
        return err->code;
    int64_t end = time_mono_ms() + SETTLE_MS_MAX, old = helper__number(in, "pid", -1);
    const char *state = "STOPPED";
    pid_t pid = -1;
    for (;;) {
        const char *now = c->state(c);
        state = now ? now : "STOPPED";
        pid = c->init_pid(c);
        bool running = (str_eq(state, "RUNNING") || str_eq(state, "FROZEN")) && pid > 0 && pid != old;
        if (running || str_eq(state, "STOPPED") || time_mono_ms() > end)
            break;
        poll(NULL, 0, SETTLE_POLL_MS);
    }
    json_object_set_new(out, "state", json_string(state));
    json_object_set_new(out, "pid", json_integer(pid));
    lxc_container_put(c);
    return STATUS_OK;
}

int helper__remove_tree(const json_t *in, json_t *out, struct error *err)
{
    const char *path = helper__text(in, "path");
    if (path[0] != '/')
        return error_set(err, STATUS_INVALID_ARGUMENT, "Command lacks an absolute path");
    return dir_remove_all(path, err);
}
