/* `exec`: one command inside a container. Descriptors 0, 1, 2 are its streams (unless a pty is asked for), descriptor 3 is a stream socket to the daemon
 * that carries lines of JSON:
 *   daemon: {"lxcpath","name","command":[…],"environment":[…],"uid","gid","cwd","pty","width","height","base_uid","base_gid"}, later {"signal":N}
 *   helper: {"pty":true} with the pty's master as SCM_RIGHTS, {"started":PID}, at last {"return":N} or {"return":N,"error":"text"}
 * The end of the socket (the daemon died or gave up) kills the command. The command dies with this process. */
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <lxc/attach_options.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum {
    EXIT_NOT_FOUND = 127,
    EXIT_NOT_EXECUTABLE = 126,
    GID_TTY = 5,
    DEVPTS_MAGIC = 0x1cd1,
    FIRST_LINE_WAIT_MS = 10000,
};

struct session {
    const json_t *in;
    char **argv, **envp;
    bool pty;
    int status[2]; /* close-on-exec: the errno of a failed exec, or end of file once the command runs */
    int slave;
    struct buf input;
};

static int tell(json_t *line, int fd)
{
    char *text = json_dumps(line, JSON_COMPACT);
    json_decref(line);
    if (!text)
        core_oom();
    char *whole = xasprintf("%s\n", text);
    free(text);
    struct iovec iov = {whole, strlen(whole)};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.space;
        message.msg_controllen = sizeof(control.space);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof(fd));
    }
    ssize_t n = sendmsg(HELPER_CONTROL_FD, &message, MSG_NOSIGNAL); /* short lines into an empty socket: never partial */
    int rc = n == (ssize_t)iov.iov_len ? 0 : -1;
    free(whole);
    return rc;
}

static int finish(int code, const char *error)
{
    json_t *line = json_pack("{s:i}", "return", code);
    if (error)
        json_object_set_new(line, "error", json_string(error));
    return tell(line, -1) ? 1 : 0;
}

/* Next line of the daemon, NULL when none is complete yet; *end when there will be no more. */
static json_t *next_line(struct session *s, bool *end)
{
    char *newline = s->input.len ? memchr(s->input.data, '\n', s->input.len) : NULL;
    if (!newline) {
        char chunk[16384];
        ssize_t n = recv(HELPER_CONTROL_FD, chunk, sizeof(chunk), MSG_DONTWAIT);
        if (n > 0)
            buf_add(&s->input, chunk, (size_t)n);
        else if (n == 0 || (errno != EAGAIN && errno != EINTR))
            *end = true;
        if (s->input.len > HELPER_INPUT_BYTES_MAX)
            *end = true;
        newline = s->input.len ? memchr(s->input.data, '\n', s->input.len) : NULL;
        if (!newline)
            return NULL;
    }
    size_t len = (size_t)(newline - s->input.data);
    json_error_t why;
    json_t *line = json_loadb(s->input.data, len, JSON_REJECT_DUPLICATES, &why);
    memmove(s->input.data, newline + 1, s->input.len - len - 1);
    s->input.len -= len + 1;
    if (!line)
        *end = true;
    return line;
}

static char **texts(const json_t *list)
{
    char **out = xcalloc(json_array_size(list) + 1, sizeof(*out));
    size_t i;
    const json_t *text;
    json_array_foreach(list, i, text) out[i] = xstrdup(json_string_value(text) ? json_string_value(text) : "");
    return out;
}

/* Runs inside the container, with its ids and folder. */
static int run_inside(void *ud)
{
    struct session *s = ud;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || setsid() < 0)
        goto failed;
    if (s->pty && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
        goto failed;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int signo = 1; signo < NSIG; signo++)
        signal(signo, SIG_DFL);
    environ = s->envp; /* execvp searches its PATH */
    execvp(s->argv[0], s->argv);
failed:;
    int reason = errno;
    if (write(s->status[1], &reason, sizeof(reason)) < 0)
        _exit(EXIT_NOT_EXECUTABLE);
    _exit(reason == ENOENT || reason == ENOTDIR ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE);
}

/* A pty of the container's own devpts; the kernel gives the other side by the master, no path of the container is followed for it. */
static int make_pty(struct session *s, struct lxc_container *c, struct error *err)
{
    int devpts = c->devpts_fd ? c->devpts_fd(c) : -1;
    if (devpts < 0) {
        char path[64];
        snprintf(path, sizeof(path), "/proc/%d/root/dev/pts", (int)c->init_pid(c));
        devpts = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    }
    struct statfs fs;
    if (devpts < 0 || fstatfs(devpts, &fs) < 0 || fs.f_type != DEVPTS_MAGIC) {
        if (devpts >= 0)
            close(devpts);
        return error_set(err, STATUS_FAILED_PRECONDITION, "The container has no devpts");
    }
    int unlock = 0, master = openat(devpts, "ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NOFOLLOW);
    close(devpts);
    if (master < 0)
        return error_errno(err, errno, "Failed to open a terminal in the container");
    int rc = STATUS_OK;
    struct winsize size = {.ws_col = (unsigned short)helper__number(s->in, "width", 0), .ws_row = (unsigned short)helper__number(s->in, "height", 0)};
    if (ioctl(master, TIOCSPTLCK, &unlock) < 0 || (s->slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0)
        rc = error_errno(err, errno, "Failed to open the container's side of the terminal");
    else if (size.ws_col > 0 && size.ws_row > 0 && ioctl(master, TIOCSWINSZ, &size) < 0)
        rc = error_errno(err, errno, "Failed to set the terminal's size");
    uid_t uid = (uid_t)(helper__number(s->in, "base_uid", 0) + helper__number(s->in, "uid", 0));
    gid_t gid = (gid_t)(helper__number(s->in, "base_gid", 0) + GID_TTY);
    if (!rc && (fchown(s->slave, uid, gid) < 0 || fchmod(s->slave, 0620) < 0))
        rc = error_errno(err, errno, "Failed to give the terminal to the container");
    if (!rc && tell(json_pack("{s:b}", "pty", 1), master) < 0)
        rc = error_set(err, STATUS_UNAVAILABLE, "Failed to hand over the terminal");
    close(master);
    return rc;
}

static int attach(struct session *s, struct lxc_container *c, pid_t *pid, struct error *err)
{
    lxc_attach_options_t options = LXC_ATTACH_OPTIONS_DEFAULT;
    options.env_policy = LXC_ATTACH_CLEAR_ENV;
    options.uid = (uid_t)helper__number(s->in, "uid", 0);
    options.gid = (gid_t)helper__number(s->in, "gid", 0);
    options.initial_cwd = (char *)(uintptr_t)helper__text(s->in, "cwd");
    if (!*options.initial_cwd)
        options.initial_cwd = (char *)(uintptr_t) "/";
    if (s->pty) {
        if (make_pty(s, c, err))
            return err->code;
        if (dup2(s->slave, 0) < 0 || dup2(s->slave, 1) < 0 || dup2(s->slave, 2) < 0)
            return error_errno(err, errno, "Failed to use the terminal");
        close(s->slave);
    }
    if (pipe2(s->status, O_CLOEXEC) < 0)
        return error_errno(err, errno, "Failed to make a pipe");
    int rc = c->attach(c, run_inside, s, &options, pid);
    close(s->status[1]);
    /* The command has its own copies; ours would keep the streams open after its end. */
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(null, 2) < 0)
        return error_errno(err, errno, "Failed to let go of the streams");
    close(null);
    if (rc < 0 || *pid <= 0)
        return error_set(err, STATUS_INTERNAL, "Failed to attach to the container");
    return STATUS_OK;
}

/* Waits for the command; passes signals on. The pid stays ours until waitpid, so a signal cannot reach another process. */
static int supervise(struct session *s, pid_t pid)
{
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), reason = 0;
    bool starting = true, lost = false;
    if (pidfd < 0)
        kill(pid, SIGKILL);
    while (pidfd >= 0) {
        struct pollfd fds[] = {{pidfd, POLLIN, 0}, {lost ? -1 : HELPER_CONTROL_FD, POLLIN, 0}, {starting ? s->status[0] : -1, POLLIN, 0}};
        if (poll(fds, 3, -1) < 0 && errno != EINTR)
            break;
        if (fds[2].revents) {
            if (read(s->status[0], &reason, sizeof(reason)) != (ssize_t)sizeof(reason))
                reason = 0;
            starting = false;
            if (!reason && tell(json_pack("{s:i}", "started", (int)pid), -1) < 0)
                lost = true;
        }
        if (fds[0].revents)
            break;
        json_t *line = NULL;
        while (fds[1].revents && (line = next_line(s, &lost))) {
            int64_t signo = helper__number(line, "signal", 0);
            json_decref(line);
            if (signo > 0 && signo < NSIG)
                kill(pid, (int)signo);
        }
        if (lost)
            kill(pid, SIGKILL);
    }
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (starting && read(s->status[0], &reason, sizeof(reason)) != (ssize_t)sizeof(reason))
        reason = 0;
    if (reason == ENOENT || reason == ENOTDIR)
        return finish(EXIT_NOT_FOUND, "Command not found");
    if (reason)
        return finish(EXIT_NOT_EXECUTABLE, "Command not executable");
    return finish(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), NULL);
}

int helper__exec(void)
{
    struct session s = {.slave = -1};
    bool end = false;
    int64_t limit = time_mono_ms() + FIRST_LINE_WAIT_MS;
    json_t *in = NULL;
    while (!in && !end && time_mono_ms() < limit) {
        struct pollfd fd = {HELPER_CONTROL_FD, POLLIN, 0};
        poll(&fd, 1, FIRST_LINE_WAIT_MS);
        in = next_line(&s, &end);
    }
    if (!in)
        return 1;
    struct error err = ERROR_INIT;
    s.in = in;
    s.argv = texts(json_object_get(in, "command"));
    s.envp = texts(json_object_get(in, "environment"));
    s.pty = json_is_true(json_object_get(in, "pty"));
    if (!s.argv[0])
        return finish(EXIT_NOT_EXECUTABLE, "Command is empty");
    struct lxc_container *c = helper__container(in, &err);
    pid_t pid = -1;
    if (!c || !c->is_running(c))
        return finish(-1, c ? "Instance is not running" : err.text);
    if (attach(&s, c, &pid, &err))
        return finish(-1, err.text);
    return supervise(&s, pid);
}
