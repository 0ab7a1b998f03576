/* Other programs, by posix_spawn (a process with gRPC threads must not fork). Blocking: the caller is a worker thread; every wait is bounded. */
#include "core.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

enum {
    STDERR_BYTES_MAX = 16 * 1024, /* the tail is kept: reasons stand at the end */
    KILL_WAIT_MS = 5000,          /* for a killed process to be gone; only one stuck in the kernel takes longer */
    POLL_MS_MAX = 1000,           /* when the exit of the child can be polled */
    POLL_MS_NO_PIDFD = 10,        /* when it cannot */
    DRAIN_ROUNDS_MAX = 64,        /* after the exit: more than a pipe holds, in case a grandchild goes on writing */
};

enum { IN, OUT, ERR, PIPES };

struct run {
    int ours[PIPES], theirs[PIPES];
    int pidfd;
    pid_t pid;
    bool exited;
    int wait_status;
    const char *input;
    size_t input_left;
    size_t out_max;
    struct process_result *result;
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Standard descriptors may be closed in our process: pipes must not take their numbers, or the child's would be mixed up. */
static int above_standard(int fd)
{
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(fd);
    return moved;
}

static int pipes_make(struct run *run)
{
    for (int i = 0; i < PIPES; i++) {
        int ends[2];
        if (i == IN && !run->input) {
            run->theirs[IN] = above_standard(open("/dev/null", O_RDONLY | O_CLOEXEC));
            if (run->theirs[IN] < 0)
                return -1;
            continue;
        }
        if (pipe2(ends, O_CLOEXEC) < 0)
            return -1;
        run->ours[i] = above_standard(ends[i == IN]);
        run->theirs[i] = above_standard(ends[i != IN]);
        if (run->ours[i] < 0 || run->theirs[i] < 0 || fcntl(run->ours[i], F_SETFL, O_NONBLOCK) < 0)
            return -1;
    }
    return 0;
}

/* 0 or an errno value. The child gets its own process group and the default signals. */
static int spawn(struct run *run, const char *const argv[], const char *const envp[])
{
    posix_spawnattr_t attr;
    posix_spawn_file_actions_t actions;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int rc = posix_spawnattr_init(&attr);
    if (rc)
        return rc;
    rc = posix_spawn_file_actions_init(&actions);
    if (rc) {
        posix_spawnattr_destroy(&attr);
        return rc;
    }
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    for (int i = 0; i < PIPES && !rc; i++)
        rc = posix_spawn_file_actions_adddup2(&actions, run->theirs[i], i);
    if (!rc)
        rc = posix_spawnp(&run->pid, argv[0], &actions, &attr, (char *const *)argv, envp ? (char *const *)envp : environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    return rc;
}

static void keep_output(struct run *run, int which, const char *data, size_t len)
{
    if (which == OUT) {
        size_t room = run->out_max - run->result->out.len;
        buf_add(&run->result->out, data, len < room ? len : room);
        return;
    }
    struct buf *err = &run->result->err;
    buf_add(err, data, len);
    if (err->len > STDERR_BYTES_MAX) {
        memmove(err->data, err->data + err->len - STDERR_BYTES_MAX, STDERR_BYTES_MAX);
        err->len = STDERR_BYTES_MAX;
        err->data[err->len] = 0;
    }
}

/* Reads what is there now; closes the pipe at its end. */
static void drain(struct run *run, int which)
{
    char chunk[16384];
    for (int round = 0; run->ours[which] >= 0 && round < DRAIN_ROUNDS_MAX; round++) {
        ssize_t n = read(run->ours[which], chunk, sizeof(chunk));
        if (n > 0) {
            keep_output(run, which, chunk, (size_t)n);
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            close_fd(&run->ours[which]);
        } else if (errno == EAGAIN) {
            return;
        }
        if (!run->exited)
            return; /* one piece a round, so that a child that writes without end cannot pass the deadline */
    }
}

/* SIGPIPE of a child that does not read its input is held back and taken away again. */
static void feed(struct run *run)
{
    sigset_t pipe_only, before, pending;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    ssize_t n = run->input_left ? write(run->ours[IN], run->input, run->input_left) : 0;
    int write_errno = errno;
    if (n < 0 && write_errno == EPIPE && !sigismember(&pending, SIGPIPE)) {
        struct timespec now = {0};
        sigtimedwait(&pipe_only, NULL, &now);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (n > 0) {
        run->input += n;
        run->input_left -= (size_t)n;
    }
    if (!run->input_left || (n < 0 && write_errno != EAGAIN && write_errno != EINTR))
        close_fd(&run->ours[IN]);
}

/* True once the child is gone (or can never be waited for). */
static bool reap(struct run *run)
{
    if (run->exited)
        return true;
    int status = 0;
    pid_t pid = waitpid(run->pid, &status, WNOHANG);
    if (pid == run->pid || (pid < 0 && errno == ECHILD)) {
        run->exited = true;
        run->wait_status = pid < 0 ? 255 << 8 : status;
    }
    return run->exited;
}

/* Until the child has ended (what its own children still hold open is not waited for) or the time is up. */
static bool pump(struct run *run, int64_t deadline_ms)
{
    while (!reap(run)) {
        int64_t left = deadline_ms - time_mono_ms(), longest = run->pidfd < 0 ? POLL_MS_NO_PIDFD : POLL_MS_MAX;
        if (left <= 0)
            return false;
        struct pollfd fds[] = {
            {run->ours[IN], POLLOUT, 0}, {run->ours[OUT], POLLIN, 0}, {run->ours[ERR], POLLIN, 0}, {run->pidfd, POLLIN, 0}};
        if (poll(fds, 4, (int)(left < longest ? left : longest)) < 0 && errno != EINTR)
            core_panic(__FILE__, __LINE__, "poll failed: errno %d", errno);
        if (fds[IN].revents && run->ours[IN] >= 0)
            feed(run);
        for (int i = OUT; i <= ERR; i++)
            if (fds[i].revents && run->ours[i] >= 0)
                drain(run, i);
    }
    drain(run, OUT);
    drain(run, ERR);
    return true;
}

static void kill_group(struct run *run)
{
    kill(-run->pid, SIGKILL);
    int64_t until = time_mono_ms() + KILL_WAIT_MS;
    while (!reap(run) && time_mono_ms() < until) {
        struct pollfd fd = {run->pidfd, POLLIN, 0};
        poll(&fd, 1, run->pidfd < 0 ? POLL_MS_NO_PIDFD : 100);
    }
    if (!run->exited)
        log_warn("process.stuck", "pid=%d text=\"killed but not gone\"", (int)run->pid);
}

int process_run(const char *const argv[], const char *const envp[], const char *input, size_t out_max, int64_t timeout_ms,
                struct process_result *result, struct error *err)
{
    *result = (struct process_result){0};
    struct run run = {{-1, -1, -1}, {-1, -1, -1}, .pidfd = -1, .input = input, .input_left = input ? strlen(input) : 0, .out_max = out_max, .result = result};
    int64_t deadline = time_mono_ms() + (timeout_ms > 0 ? timeout_ms : 0);
    int status = STATUS_OK, rc = pipes_make(&run) < 0 ? errno : spawn(&run, argv, envp);
    for (int i = 0; i < PIPES; i++)
        close_fd(&run.theirs[i]);
    if (rc) {
        status = error_errno(err, rc, "cannot run %s", argv[0]);
    } else {
        run.pidfd = pidfd_open(run.pid, 0);
        if (!pump(&run, deadline)) {
            kill_group(&run);
            drain(&run, OUT);
            drain(&run, ERR);
            status = error_set(err, STATUS_DEADLINE_EXCEEDED, "%s did not end within %lld ms", argv[0], (long long)timeout_ms);
        }
        result->exit_code = WIFEXITED(run.wait_status) ? WEXITSTATUS(run.wait_status) : 128 + WTERMSIG(run.wait_status);
    }
    close_fd(&run.pidfd);
    for (int i = 0; i < PIPES; i++)
        close_fd(&run.ours[i]);
    buf_add(&result->out, "", 0); /* texts even when empty */
    buf_add(&result->err, "", 0);
    return status;
}

void process_result_free(struct process_result *result)
{
    buf_free(&result->out);
    buf_free(&result->err);
}
