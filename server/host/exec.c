/* Exec sessions on this member (spec/api.md 6.1). A session waits for its streams, spawns `covey-instance exec`, moves bytes between the command's
 * descriptors and the streams until the command ended and its output was sent, and keeps the result for a while, so that a new leader that asks again
 * for the same operation gets the same answer. If the daemon dies, the helper sees its socket end and kills the command. */
#include "exec_private.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { SPAWN_FD_MIN = 10, HELPER_LINE_MAX = 64 << 10, HELPER_EXIT_MS = 5000, LOOP_MS = 1000, OUTPUTS = 2 };

static const char *const stream_names[EXEC_STREAMS] = {"0", "1", "2", "control"};

struct output {
    int fd, stream;      /* stream -1: into a file or nowhere */
    int file;
    int64_t file_bytes;
    char *chunk;         /* EXEC_CHUNK_BYTES; what could not be sent yet */
    size_t len;
    bool eof, ended;     /* nothing more to read; nothing more to send */
};

/* The thread's own state. */
struct run {
    struct exec_session *s;
    pid_t pid;
    int control, input, master;
    struct output out[OUTPUTS];
    struct buf line;
    bool started, returned, killed;
    int64_t start_until, quiet_since;
};

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* ---- sessions ---- */

void exec__unref(struct exec_session *s)
{
    if (atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    for (int i = 0; i < EXEC_STREAMS; i++)
        free(s->streams[i].secret);
    buf_free(&s->in);
    close_fd(&s->event_fd);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s->operation);
    free(s->key);
    free(s->line);
    free(s);
}

void exec__ring(struct exec_session *s)
{
    uint64_t one = 1;
    if (write(s->event_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        log_warn("exec.ring", "errno=%d", errno);
}

/* host->lock held */
static struct exec_session *find_locked(struct host *host, const char *operation)
{
    for (struct exec_session *s = host->sessions; s; s = s->next)
        if (str_eq(s->operation, operation)) {
            atomic_fetch_add(&s->refs, 1);
            return s;
        }
    return NULL;
}

struct exec_session *exec__find(struct host *host, const char *operation)
{
    pthread_mutex_lock(&host->lock);
    struct exec_session *s = find_locked(host, operation);
    pthread_mutex_unlock(&host->lock);
    return s;
}

/* The first line for the helper. */
static char *helper_line(struct host *host, const Covey__Internal__V1__ExecRequest *request, const char *key)
{
    json_t *command = json_array(), *environment = json_array();
    const char *cwd = request->cwd;
    bool privileged = config__bool(request->spec, "security.privileged");
    for (size_t i = 0; i < request->n_command; i++)
        json_array_append_new(command, json_string(request->command[i]));
    for (size_t i = 0; i < request->n_environment; i++) {
        char *pair = xasprintf("%s=%s", request->environment[i]->key, request->environment[i]->value);
        json_array_append_new(environment, json_string(pair));
        free(pair);
        if (str_empty(cwd) && str_eq(request->environment[i]->key, "HOME"))
            cwd = request->environment[i]->value;
    }
    char *path = xasprintf("%s/containers", host->state_dir);
    json_t *root = json_pack("{s:s, s:s, s:o, s:o, s:I, s:I, s:s, s:b, s:I, s:I, s:I, s:I}", "lxcpath", path, "name", key, "command", command,
                             "environment", environment, "uid", (json_int_t)request->user, "gid", (json_int_t)request->group, "cwd",
                             str_empty(cwd) ? "/" : cwd, "pty", request->interactive ? 1 : 0, "width", (json_int_t)request->width, "height",
                             (json_int_t)request->height, "base_uid", (json_int_t)(privileged ? 0 : host->map.uid), "base_gid",
                             (json_int_t)(privileged ? 0 : host->map.gid));
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL, *line = text ? xasprintf("%s\n", text) : NULL;
    json_decref(root);
    free(text);
    free(path);
    return line;
}

static int check_request(struct host *host, const Covey__Internal__V1__ExecRequest *request, struct error *err)
{
    size_t bytes = 0;
    if (instances__check_spec(request->spec, err))
        return err->code;
    if (!host__name_ok(request->operation))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid operation id");
    if (!request->n_command || str_empty(request->command[0]))
        return error_set(err, STATUS_INVALID_ARGUMENT, "No command specified");
    for (size_t i = 0; i < request->n_command; i++)
        bytes += strlen(request->command[i]) + 1;
    for (size_t i = 0; i < request->n_environment; i++) {
        bytes += strlen(request->environment[i]->key) + strlen(request->environment[i]->value) + 2;
        if (str_empty(request->environment[i]->key) || strchr(request->environment[i]->key, '='))
            return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid environment variable name");
    }
    if (bytes > EXEC_COMMAND_BYTES_MAX)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Command and environment are longer than %d bytes", EXEC_COMMAND_BYTES_MAX);
    if (request->user < 0 || request->group < 0 || request->user >= UINT32_MAX || request->group >= UINT32_MAX)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid user or group id");
    if (request->width < 0 || request->height < 0 || request->width > UINT16_MAX || request->height > UINT16_MAX)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid width or height");
    int status = instances__status(host, request->spec, NULL);
    if (status == INSTANCE_FROZEN || status == INSTANCE_FREEZING)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Instance is frozen");
    if (status != INSTANCE_RUNNING && status != INSTANCE_STOPPING)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Instance is not running");
    return STATUS_OK;
}

static struct exec_session *session_new(struct host *host, const Covey__Internal__V1__ExecRequest *request, struct error *err)
{
    char *key = instances__key(request->spec->project, request->spec->name), *line = helper_line(host, request, key);
    int event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!line || event_fd < 0) {
        if (line)
            error_errno(err, errno, "Failed to prepare the session");
        else
            error_set(err, STATUS_INVALID_ARGUMENT, "Command or environment is not UTF-8");
        close_fd(&event_fd);
        free(key);
        free(line);
        return NULL;
    }
    struct exec_session *s = xcalloc(1, sizeof(*s));
    s->host = host;
    s->operation = xstrdup(request->operation);
    s->key = key;
    s->line = line;
    s->interactive = request->interactive;
    s->wait = request->wait_for_streams;
    s->record = request->record_output && !request->wait_for_streams;
    s->event_fd = event_fd;
    atomic_init(&s->refs, 2); /* table, thread */
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    for (size_t i = 0; i < request->n_secrets; i++)
        for (int k = 0; k < EXEC_STREAMS; k++)
            if (str_eq(request->secrets[i]->key, stream_names[k]) && !s->streams[k].secret && !(s->interactive && (k == EXEC_STDOUT || k == EXEC_STDERR)))
                s->streams[k].secret = xstrdup(request->secrets[i]->value);
    return s;
}

/* ---- waiting for streams ---- */

static bool streams_ready(const struct exec_session *s)
{
    if (s->interactive)
        return s->streams[EXEC_STDIN].link && s->streams[EXEC_CONTROL].link;
    return s->streams[EXEC_STDIN].link && s->streams[EXEC_STDOUT].link && s->streams[EXEC_STDERR].link;
}

static int wait_streams(struct exec_session *s, struct error *err)
{
    struct timespec until;
    int rc = 0;
    time_deadline(&until, EXEC_STREAMS_WAIT_MS);
    pthread_mutex_lock(&s->lock);
    while (s->wait && !streams_ready(s) && !s->cancelled && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&s->changed, &s->lock, &until);
    bool ready = !s->wait || streams_ready(s), cancelled = s->cancelled;
    pthread_mutex_unlock(&s->lock);
    if (cancelled)
        return error_set(err, STATUS_CANCELLED, "The command was cancelled");
    return ready ? STATUS_OK : error_set(err, STATUS_DEADLINE_EXCEEDED, "Timed out waiting for websockets to connect");
}

/* ---- spawning ---- */

static int above(int fd)
{
    int moved = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, SPAWN_FD_MIN);
    if (fd >= 0)
        close(fd);
    return moved;
}

static int log_file(struct exec_session *s, const char *end)
{
    char *path = xasprintf("%s/logs/%s/exec_%s.%s", s->host->state_dir, s->key, s->operation, end);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    free(path);
    return fd;
}

/* The command's descriptors (theirs[0..2]) and our ends. */
static int make_streams(struct run *run, int theirs[4])
{
    struct exec_session *s = run->s;
    int pair[2], ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    run->control = above(pair[0]);
    theirs[3] = above(pair[1]);
    bool piped = s->wait && !s->interactive;
    if (piped) {
        if (pipe2(ends, O_CLOEXEC) < 0)
            return -1;
        theirs[0] = above(ends[0]);
        run->input = above(ends[1]);
    } else {
        theirs[0] = above(open("/dev/null", O_RDWR | O_CLOEXEC));
    }
    for (int i = 0; i < OUTPUTS; i++) {
        struct output *out = &run->out[i];
        if (piped || s->record) {
            if (pipe2(ends, O_CLOEXEC) < 0)
                return -1;
            out->fd = above(ends[0]);
            theirs[1 + i] = above(ends[1]);
            out->stream = piped ? EXEC_STDOUT + i : -1;
            out->file = s->record ? log_file(s, i ? "stderr" : "stdout") : -1;
            if (out->fd < 0 || fcntl(out->fd, F_SETFL, O_NONBLOCK) < 0 || (s->record && out->file < 0))
                return -1;
        } else {
            theirs[1 + i] = above(open("/dev/null", O_RDWR | O_CLOEXEC));
            out->eof = out->ended = !s->interactive || i; /* of a pty the first output becomes the master */
        }
    }
    if (run->input >= 0 && fcntl(run->input, F_SETFL, O_NONBLOCK) < 0)
        return -1;
    return run->control < 0 || theirs[0] < 0 || theirs[1] < 0 || theirs[2] < 0 || theirs[3] < 0 ? -1 : 0;
}

static int spawn(struct run *run, const int theirs[4])
{
    static const char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", NULL};
    const char *argv[] = {run->s->host->helper, "exec", NULL};
    posix_spawnattr_t attr;
    posix_spawn_file_actions_t actions;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    if (posix_spawnattr_init(&attr))
        return ENOMEM;
    if (posix_spawn_file_actions_init(&actions)) {
        posix_spawnattr_destroy(&attr);
        return ENOMEM;
    }
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    int rc = 0;
    for (int i = 0; i < 4 && !rc; i++)
        rc = posix_spawn_file_actions_adddup2(&actions, theirs[i], i);
    if (!rc)
        rc = posix_spawn(&run->pid, argv[0], &actions, &attr, (char *const *)(uintptr_t)argv, (char *const *)(uintptr_t)env);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attr);
    return rc;
}

static int send_all(int fd, const char *text, int64_t until_ms)
{
    size_t len = strlen(text);
    while (len) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0) {
            text += n;
            len -= (size_t)n;
            continue;
        }
        struct pollfd wait = {fd, POLLOUT, 0};
        int64_t left = until_ms - time_mono_ms();
        if ((errno != EAGAIN && errno != EINTR) || left <= 0 || poll(&wait, 1, (int)left) < 0)
            return -1;
    }
    return 0;
}

static int begin(struct run *run, struct error *err)
{
    int theirs[4] = {-1, -1, -1, -1};
    int rc = make_streams(run, theirs) < 0 ? errno : spawn(run, theirs);
    for (int i = 0; i < 4; i++)
        close_fd(&theirs[i]);
    if (rc) {
        run->pid = -1;
        return error_errno(err, rc, "Failed to start the command");
    }
    run->start_until = time_mono_ms() + EXEC_START_MS_MAX;
    if (send_all(run->control, run->s->line, run->start_until) < 0)
        return error_set(err, STATUS_INTERNAL, "Failed to hand the command to its helper");
    return STATUS_OK;
}

/* ---- the loop ---- */

static void signal_command(struct run *run, int signo)
{
    char text[32];
    snprintf(text, sizeof(text), "{\"signal\":%d}\n", signo);
    if (!run->returned && run->control >= 0 && send_all(run->control, text, time_mono_ms() + LOOP_MS) < 0)
        log_debug("exec.signal", "operation=%s text=\"helper is gone\"", run->s->operation);
}

/* What the callbacks asked for. */
static void take_requests(struct run *run)
{
    struct exec_session *s = run->s;
    int signals[sizeof(s->signals) / sizeof(s->signals[0])];
    uint64_t rings;
    if (read(s->event_fd, &rings, sizeof(rings)) < 0 && errno != EAGAIN)
        log_warn("exec.ring", "errno=%d", errno);
    pthread_mutex_lock(&s->lock);
    /* Nothing before it runs: a signal that the helper gets earlier finds no command. The wait is bounded by start_until. */
    unsigned count = run->started ? s->signal_count : 0;
    memcpy(signals, s->signals, sizeof(signals));
    s->signal_count -= count;
    struct winsize size = {.ws_col = (unsigned short)s->width, .ws_row = (unsigned short)s->height};
    if (run->master >= 0)
        s->width = s->height = 0;
    const struct exec_stream *control = &s->streams[EXEC_CONTROL], *main_out = &s->streams[s->interactive ? EXEC_STDIN : EXEC_STDOUT];
    bool lost = s->wait && (control->used ? control->lost : main_out->lost);
    bool kill_it = (s->kill || s->cancelled || lost) && run->started && !run->killed;
    pthread_mutex_unlock(&s->lock);
    if (run->master >= 0 && size.ws_col && ioctl(run->master, TIOCSWINSZ, &size) < 0)
        log_debug("exec.resize", "operation=%s errno=%d", s->operation, errno);
    for (unsigned i = 0; i < count; i++)
        signal_command(run, signals[i]);
    if (kill_it) {
        run->killed = true;
        signal_command(run, SIGKILL);
    }
}

/* Client to command. */
static void feed(struct run *run)
{
    struct exec_session *s = run->s;
    int fd = s->interactive ? run->master : run->input;
    bool resume = false;
    pthread_mutex_lock(&s->lock);
    while (s->in.len) {
        ssize_t n = fd >= 0 ? write(fd, s->in.data, s->in.len) : fd;
        if (n < 0 && fd >= 0 && errno == EINTR)
            continue;
        if (n < 0 && ((fd >= 0 && errno == EAGAIN) || (fd < 0 && s->interactive && !run->returned)))
            break;
        size_t used = n < 0 ? s->in.len : (size_t)n; /* nobody reads any more: dropped */
        memmove(s->in.data, s->in.data + used, s->in.len - used);
        s->in.len -= used;
    }
    if (s->in_paused && s->in.len < EXEC_STDIN_QUEUE_MAX / 2) {
        s->in_paused = false;
        resume = true;
    }
    bool end = s->in_end && !s->in.len;
    pthread_mutex_unlock(&s->lock);
    if (end && !s->interactive)
        close_fd(&run->input);
    if (resume)
        stream__resume(s, EXEC_STDIN);
}

static void sink(struct output *out)
{
    int64_t room = EXEC_LOG_BYTES_MAX - out->file_bytes;
    size_t len = (int64_t)out->len < room ? out->len : (size_t)(room > 0 ? room : 0);
    static const char cut[] = "\n[output beyond the limit was dropped]\n";
    if (out->file >= 0 && len && write(out->file, out->chunk, len) < 0)
        log_warn("exec.record", "errno=%d", errno);
    if (out->file >= 0 && room > 0 && (int64_t)out->len >= room && write(out->file, cut, sizeof(cut) - 1) < 0)
        log_warn("exec.record", "errno=%d", errno);
    out->file_bytes += (int64_t)out->len;
    out->len = 0;
}

/* Command to client: what is held first, then one more piece. True when something moved. */
static bool drain(struct run *run, struct output *out)
{
    bool moved = false;
    for (int pieces = 0; pieces < 16 && !out->ended; pieces++) {
        if (out->len || out->eof) {
            if (out->stream < 0) {
                sink(out);
            } else {
                int rc = stream__send(run->s, out->stream, out->chunk, out->len, !out->len && out->eof);
                if (rc == STATUS_RESOURCE_EXHAUSTED)
                    return moved;
                if (rc) { /* lost: what comes is read and dropped, so that the command does not hang */
                    log_debug("exec.lost", "operation=%s stream=%d status=%d", run->s->operation, out->stream, rc);
                    out->stream = -1;
                }
            }
            out->ended = !out->len && out->eof;
            out->len = 0;
            moved = true;
            continue;
        }
        ssize_t n = out->fd < 0 ? -1 : read(out->fd, out->chunk, EXEC_CHUNK_BYTES);
        if (n < 0 && (out->fd < 0 || errno == EAGAIN || errno == EINTR))
            return moved;
        if (n > 0)
            out->len = (size_t)n;
        else
            out->eof = true; /* also EIO of a pty whose other side is closed */
        moved = true;
    }
    return moved;
}

static void helper_said(struct run *run, const char *text, size_t len)
{
    struct exec_session *s = run->s;
    json_error_t why;
    json_t *root = json_loadb(text, len, 0, &why);
    const char *error = json_string_value(json_object_get(root, "error"));
    if (json_object_get(root, "started"))
        run->started = true;
    if (json_object_get(root, "return")) {
        run->returned = true;
        run->quiet_since = time_mono_ms();
        pthread_mutex_lock(&s->lock);
        s->result = json_integer_value(json_object_get(root, "return"));
        snprintf(s->error, sizeof(s->error), "%s", error ? error : "");
        pthread_mutex_unlock(&s->lock);
    }
    json_decref(root);
}

/* Takes a passed terminal. */
static void take_master(struct run *run, struct msghdr *message)
{
    for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS || head->cmsg_len != CMSG_LEN(sizeof(int)))
            continue;
        int fd;
        memcpy(&fd, CMSG_DATA(head), sizeof(fd));
        if (run->master >= 0 || !run->s->interactive || fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
            close(fd);
            continue;
        }
        run->master = fd;
        run->out[0].fd = fd;
        run->out[0].stream = run->s->wait ? EXEC_STDIN : -1;
        run->out[0].eof = run->out[0].ended = false;
    }
}

static void listen_helper(struct run *run)
{
    char chunk[4096];
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {chunk, sizeof(chunk)};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space)};
    ssize_t n = recvmsg(run->control, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 || run->line.len + (size_t)n > HELPER_LINE_MAX) {
        close_fd(&run->control);
        if (!run->returned)
            helper_said(run, "{\"return\":-1,\"error\":\"The command's helper ended unexpectedly\"}",
                        strlen("{\"return\":-1,\"error\":\"The command's helper ended unexpectedly\"}"));
        return;
    }
    take_master(run, &message);
    buf_add(&run->line, chunk, (size_t)n);
    for (char *newline; run->line.len && (newline = memchr(run->line.data, '\n', run->line.len));) {
        size_t len = (size_t)(newline - run->line.data);
        helper_said(run, run->line.data, len);
        memmove(run->line.data, newline + 1, run->line.len - len - 1);
        run->line.len -= len + 1;
    }
}

static void loop_once(struct run *run)
{
    struct exec_session *s = run->s;
    pthread_mutex_lock(&s->lock);
    bool input_waits = s->in.len > 0;
    pthread_mutex_unlock(&s->lock);
    int in_fd = s->interactive ? run->master : run->input;
    struct pollfd fds[5] = {{s->event_fd, POLLIN, 0}, {run->control, POLLIN, 0}, {input_waits ? in_fd : -1, POLLOUT, 0}};
    int wait = run->returned ? EXEC_DRAIN_QUIET_MS : LOOP_MS;
    for (int i = 0; i < OUTPUTS; i++) {
        struct output *out = &run->out[i];
        bool held = out->len || (out->eof && !out->ended);
        fds[3 + i] = (struct pollfd){held || out->ended ? -1 : out->fd, POLLIN, 0};
        if (held)
            wait = EXEC_RETRY_MS;
    }
    if (poll(fds, 5, wait) < 0 && errno != EINTR)
        core_panic(__FILE__, __LINE__, "poll failed: errno %d", errno);
    if (fds[1].revents)
        listen_helper(run);
    take_requests(run);
    feed(run);
    bool moved = false, held = false;
    for (int i = 0; i < OUTPUTS; i++) {
        moved = drain(run, &run->out[i]) || moved;
        held = held || run->out[i].len > 0;
    }
    int64_t now = time_mono_ms();
    if (moved || held)
        run->quiet_since = now;
    pthread_mutex_lock(&s->lock);
    bool cancelled = s->cancelled;
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < OUTPUTS && run->returned && cancelled; i++)
        run->out[i].stream = -1; /* nobody waits for a reader that may never read */
    if (run->returned && now - run->quiet_since >= EXEC_DRAIN_QUIET_MS) /* children of the command keep it open */
        for (int i = 0; i < OUTPUTS; i++)
            run->out[i].eof = true;
    if (!run->started && !run->returned && now > run->start_until) {
        kill(-run->pid, SIGKILL);
        close_fd(&run->control);
        helper_said(run, "{\"return\":-1,\"error\":\"The command did not start in time\"}",
                    strlen("{\"return\":-1,\"error\":\"The command did not start in time\"}"));
    }
}

static bool loop_done(const struct run *run)
{
    return run->returned && run->out[0].ended && run->out[1].ended;
}

static void reap(struct run *run)
{
    int64_t until = time_mono_ms() + HELPER_EXIT_MS;
    close_fd(&run->control); /* ends a helper that still waits for us */
    bool killed = false;
    while (run->pid > 0) {
        pid_t rc = waitpid(run->pid, NULL, WNOHANG);
        if (rc == run->pid || (rc < 0 && errno == ECHILD))
            break;
        if (time_mono_ms() > until && !killed) {
            kill(-run->pid, SIGKILL);
            killed = true;
        }
        if (time_mono_ms() > until + HELPER_EXIT_MS) {
            log_warn("exec.stuck", "pid=%d", (int)run->pid);
            break;
        }
        poll(NULL, 0, EXEC_RETRY_MS);
    }
}

/* ---- result ---- */

static void answer(struct rpc_call *call, int64_t result, const char *error)
{
    Covey__Internal__V1__ExecResponse response = COVEY__INTERNAL__V1__EXEC_RESPONSE__INIT;
    response.return_ = result;
    response.error = (char *)(uintptr_t)error;
    rpc_finish(call, &response.base, STATUS_OK, NULL);
    rpc_call_unref(call);
}

static void session_finish(struct exec_session *s)
{
    stream__finish_all(s);
    pthread_mutex_lock(&s->lock);
    s->finished = true;
    s->finished_ms = time_mono_ms();
    struct exec_waiter *waiters = s->waiters;
    s->waiters = NULL;
    pthread_mutex_unlock(&s->lock);
    stream__finish_all(s); /* of a stream that came in between */
    while (waiters) {
        struct exec_waiter *one = waiters;
        waiters = one->next;
        answer(one->call, s->result, s->error); /* final: no writer after `finished` */
        free(one);
    }
}

static void session_run(struct host *host, void *arg)
{
    struct exec_session *s = arg;
    struct run run = {.s = s, .pid = -1, .control = -1, .input = -1, .master = -1};
    struct error err = ERROR_INIT;
    sigset_t pipe_only;
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE); /* of a command that does not read its input */
    pthread_sigmask(SIG_BLOCK, &pipe_only, NULL);
    for (int i = 0; i < OUTPUTS; i++)
        run.out[i] = (struct output){.fd = -1, .file = -1, .stream = -1, .chunk = xmalloc(EXEC_CHUNK_BYTES)};
    int rc = wait_streams(s, &err);
    if (!rc)
        rc = begin(&run, &err);
    if (rc) {
        pthread_mutex_lock(&s->lock);
        s->result = -1;
        snprintf(s->error, sizeof(s->error), "%s", err.text);
        pthread_mutex_unlock(&s->lock);
    }
    while (!rc && !loop_done(&run)) {
        loop_once(&run);
        if (run.returned && run.master < 0 && s->interactive && !run.out[0].ended)
            run.out[0].eof = true; /* it failed before there was a terminal */
    }
    reap(&run);
    close_fd(&run.input);
    for (int i = 0; i < OUTPUTS; i++) {
        close_fd(&run.out[i].fd);
        close_fd(&run.out[i].file);
        free(run.out[i].chunk);
    }
    buf_free(&run.line);
    session_finish(s);
    exec__unref(s);
}

/* ---- calls ---- */

static void waiter_gone(struct rpc_call *call, void *ud)
{
    struct exec_session *s = ud;
    struct exec_waiter *found = NULL;
    pthread_mutex_lock(&s->lock);
    for (struct exec_waiter **at = &s->waiters; *at; at = &(*at)->next) {
        if ((*at)->call != call)
            continue;
        found = *at;
        *at = found->next;
        break;
    }
    pthread_mutex_unlock(&s->lock);
    if (found) { /* the session goes on; who asks again finds it */
        rpc_finish(call, NULL, STATUS_CANCELLED, NULL);
        rpc_call_unref(call);
        free(found);
    }
    exec__unref(s);
}

/* Joins the call to the session or answers it from its result. Takes the reference of `s`. */
static int join(struct exec_session *s, struct rpc_call *call, ProtobufCMessage **response)
{
    pthread_mutex_lock(&s->lock);
    if (s->finished) {
        Covey__Internal__V1__ExecResponse *out = arena_alloc(rpc_arena(call), sizeof(*out));
        covey__internal__v1__exec_response__init(out);
        out->return_ = s->result;
        out->error = arena_strdup(rpc_arena(call), s->error);
        *response = &out->base;
        pthread_mutex_unlock(&s->lock);
        exec__unref(s);
        return STATUS_OK;
    }
    struct exec_waiter *waiter = xcalloc(1, sizeof(*waiter));
    *waiter = (struct exec_waiter){s->waiters, call};
    s->waiters = waiter;
    rpc_call_ref(call); /* for the line below: the session may finish at once */
    pthread_mutex_unlock(&s->lock);
    rpc_call_on_done(call, waiter_gone, s);
    rpc_call_unref(call);
    return RPC_LATER;
}

/* host->lock held. How many run; the oldest of too many ended ones is taken out (*old, the caller's reference). */
static unsigned count_running(struct host *host, struct exec_session **old)
{
    unsigned running = 0, ended = 0;
    struct exec_session **oldest = NULL; /* new ones stand in front */
    for (struct exec_session **at = &host->sessions; *at; at = &(*at)->next) {
        pthread_mutex_lock(&(*at)->lock);
        bool finished = (*at)->finished;
        pthread_mutex_unlock(&(*at)->lock);
        running += !finished;
        ended += finished;
        oldest = finished ? at : oldest;
    }
    *old = NULL;
    if (ended >= EXEC_REMEMBERED_MAX) {
        *old = *oldest;
        *oldest = (*old)->next;
    }
    return running;
}

int exec__handle(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct host *host = ud;
    const Covey__Internal__V1__ExecRequest *request = (const void *)message;
    struct exec_session *s = exec__find(host, request->operation);
    if (s)
        return join(s, call, response);
    if (check_request(host, request, err))
        return err->code;
    struct exec_session *mine = session_new(host, request, err);
    if (!mine)
        return err->code;
    int rc = STATUS_OK;
    struct exec_session *old;
    pthread_mutex_lock(&host->lock);
    s = find_locked(host, request->operation); /* a repetition may have come meanwhile */
    unsigned count = count_running(host, &old);
    if (!s && (count >= EXEC_SESSIONS_MAX || host->stopping))
        rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "More than %d commands on this member", EXEC_SESSIONS_MAX);
    if (!s && !rc) {
        mine->next = host->sessions;
        host->sessions = mine;
        atomic_fetch_add(&mine->refs, 1);
    }
    pthread_mutex_unlock(&host->lock);
    if (old)
        exec__unref(old);
    if (s || rc) {
        exec__unref(mine);
        exec__unref(mine);
        return s ? join(s, call, response) : rc;
    }
    stream__offer(host, request->operation);
    rc = host__thread(host, session_run, mine, err);
    if (rc) { /* nobody runs it: its result is the failure */
        snprintf(mine->error, sizeof(mine->error), "%s", err->text);
        mine->result = -1;
        session_finish(mine);
        exec__unref(mine);
    }
    return join(mine, call, response);
}

int exec__cancel(struct host *host, const char *operation, struct error *err)
{
    struct exec_session *s = exec__find(host, operation);
    if (!s)
        return STATUS_OK; /* ended long ago, or never began: nothing runs */
    pthread_mutex_lock(&s->lock);
    s->cancelled = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    exec__ring(s);
    exec__unref(s);
    return STATUS_OK;
}

void exec__tick(struct host *host)
{
    int64_t now = time_mono_ms();
    struct exec_session *old = NULL;
    pthread_mutex_lock(&host->lock);
    for (struct exec_session **at = &host->sessions; *at;) {
        struct exec_session *s = *at;
        pthread_mutex_lock(&s->lock);
        bool forget = s->finished && (host->stopping || now - s->finished_ms >= EXEC_RESULT_KEPT_MS);
        pthread_mutex_unlock(&s->lock);
        if (!forget) {
            at = &s->next;
            continue;
        }
        *at = s->next;
        s->next = old;
        old = s;
    }
    pthread_mutex_unlock(&host->lock);
    while (old) {
        struct exec_session *next = old->next;
        exec__unref(old);
        old = next;
    }
    stream__tick(host, false);
}

/* Kills every command; their threads end soon, host_stop waits for them. */
void exec__stop_all(struct host *host)
{
    pthread_mutex_lock(&host->lock);
    for (struct exec_session *s = host->sessions; s; s = s->next) {
        pthread_mutex_lock(&s->lock);
        s->cancelled = true;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        exec__ring(s);
    }
    pthread_mutex_unlock(&host->lock);
    stream__tick(host, true);
}
