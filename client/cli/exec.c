/* exec: streams between this terminal and a command. Threads: main waits for the operation; one reads standard input, one for each output stream,
 * the signal thread sends window sizes and signals over the control stream (rpc_send has one caller on each stream). Exit code: the command's. */
#include "cli.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { DRAIN_S = 60 }; /* to write out what a command left behind */

struct output {
    struct covey_stream *stream;
    int fd;
    pthread_t thread;
    bool running;
    int write_error; /* errno of our own side */
};

struct session {
    struct cli *cli;
    struct covey_client *client;
    bool interactive;
    const char *id;
    struct covey_stream *control, *in;
    struct output outputs[2]; /* interactive: only the first, whose stream is `in` too */
    pthread_t reader;
    bool reading;
    int stop_fd; /* ends the reader */
    int in_fd;
    struct termios before;
    bool raw;
};

static bool choose_interactive(struct cli *cli, bool *interactive, struct error *err)
{
    const char *mode = cli_flag(cli, "mode");
    if (cli_switch(cli, "tty") && cli_switch(cli, "no-tty")) {
        error_set(err, STATUS_INVALID_ARGUMENT, "You can't pass -t and -T at the same time");
        return false;
    }
    if (mode && (cli_switch(cli, "tty") || cli_switch(cli, "no-tty"))) {
        error_set(err, STATUS_INVALID_ARGUMENT, "You can't pass -t or -T at the same time as --mode");
        return false;
    }
    *interactive = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && !cli_switch(cli, "disable-stdin");
    if (cli_switch(cli, "tty") || str_eq(mode, "interactive"))
        *interactive = true;
    else if (cli_switch(cli, "no-tty") || str_eq(mode, "non-interactive"))
        *interactive = false;
    else if (mode && strcmp(mode, "auto") != 0) {
        error_set(err, STATUS_INVALID_ARGUMENT, "Invalid mode \"%s\": expected auto, interactive or non-interactive", mode);
        return false;
    }
    return true;
}

static int number_flag(struct cli *cli, const char *id, int64_t *value, struct error *err)
{
    const char *text = cli_flag(cli, id);
    *value = 0;
    if (text && parse_i64(text, 0, UINT32_MAX, value))
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid argument \"%s\" for \"--%s\"", text, id);
    return STATUS_OK;
}

static json_t *exec_request(struct cli *cli, const char *name, bool interactive, struct error *err)
{
    const char *values[CLI_FLAGS_MAX], *term = getenv("TERM"), *cwd = cli_flag(cli, "cwd");
    int64_t user, group;
    if (number_flag(cli, "user", &user, err) || number_flag(cli, "group", &group, err))
        return NULL;
    size_t count = cli_flag_list(cli, "env", values, CLI_FLAGS_MAX);
    json_t *environment = json_object();
    if (interactive && !str_empty(term))
        json_object_set_new(environment, "TERM", json_string(term));
    for (size_t i = 0; i < count; i++) {
        const char *equal = strchr(values[i], '=');
        if (equal == values[i]) {
            error_set(err, STATUS_INVALID_ARGUMENT, "Invalid environment variable: %s", values[i]);
            json_decref(environment);
            return NULL;
        }
        char *key = equal ? xasprintf("%.*s", (int)(equal - values[i]), values[i]) : xstrdup(values[i]);
        json_object_set_new(environment, key, json_string(equal ? equal + 1 : ""));
        free(key);
    }
    json_t *command = json_array();
    for (int i = 1; i < cli->argc; i++)
        json_array_append_new(command, json_string(cli->argv[i]));
    struct winsize size = {0};
    if (interactive && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0)
        memset(&size, 0, sizeof(size)); /* not a terminal: the server's default */
    return json_pack("{s:s,s:o,s:b,s:b,s:o,s:i,s:i,s:I,s:I,s:s}", "name", name, "command", command, "wait-for-websocket", 1, "interactive", interactive,
                     "environment", environment, "width", size.ws_col, "height", size.ws_row, "user", (json_int_t)user, "group", (json_int_t)group, "cwd",
                     cwd ? cwd : "");
}

/* ---- threads ---- */

static void *copy_output(void *ud)
{
    struct output *out = ud;
    struct error e = ERROR_INIT;
    const uint8_t *data;
    size_t len;
    while (!client_attach_read(out->stream, &data, &len, &e)) { /* how it ended is told by the operation */
        while (len && !out->write_error) {
            ssize_t done = write(out->fd, data, len);
            if (done < 0 && errno == EAGAIN) {
                struct pollfd wait = {.fd = out->fd, .events = POLLOUT};
                (void)poll(&wait, 1, -1); /* write tells what is wrong */
                continue;
            }
            if (done < 0 && errno != EINTR)
                out->write_error = errno;
            if (done > 0) {
                data += done;
                len -= (size_t)done;
            }
        }
    }
    return NULL;
}

static void *copy_input(void *ud)
{
    struct session *session = ud;
    uint8_t data[CLIENT_CHUNK_BYTES];
    struct error e = ERROR_INIT;
    for (;;) {
        struct pollfd fds[2] = {{.fd = session->in_fd, .events = POLLIN}, {.fd = session->stop_fd, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            break;
        }
        if (fds[1].revents)
            return NULL;
        ssize_t len = read(session->in_fd, data, sizeof(data));
        if (len < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (len <= 0)
            break;
        if (client_attach_write(session->in, data, (size_t)len, &e))
            return NULL; /* the command is gone */
    }
    (void)client_attach_end(session->in, &e); /* the same */
    return NULL;
}

static void on_signal(int number, void *ud)
{
    struct session *session = ud;
    char text[128];
    struct winsize size;
    if (number == SIGWINCH) {
        if (!session->interactive || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0)
            return;
        snprintf(text, sizeof(text), "{\"command\":\"window-resize\",\"args\":{\"width\":\"%d\",\"height\":\"%d\"}}", size.ws_col, size.ws_row);
    } else {
        snprintf(text, sizeof(text), "{\"command\":\"signal\",\"signal\":%d}", number);
    }
    (void)client_attach_control(session->control, text, NULL); /* too late when it fails */
}

/* ---- the session ---- */

static int attach(struct session *session, const json_t *operation, struct error *err)
{
    const json_t *secrets = json_object_get(json_object_get(operation, "metadata"), "fds");
    int status = client_attach(session->client, session->id, json_text(secrets, "control"), &session->control, err);
    if (!status)
        status = client_attach(session->client, session->id, json_text(secrets, "0"), &session->in, err);
    if (session->interactive) {
        session->outputs[0] = (struct output){.stream = session->in, .fd = STDOUT_FILENO};
        return status;
    }
    static const char *const names[] = {"1", "2"};
    for (int i = 0; i < 2 && !status; i++) {
        session->outputs[i].fd = i + 1;
        status = client_attach(session->client, session->id, json_text(secrets, names[i]), &session->outputs[i].stream, err);
    }
    return status;
}

static int start_threads(struct session *session, struct error *err)
{
    for (int i = 0; i < 2; i++) {
        struct output *out = &session->outputs[i];
        if (!out->stream)
            continue;
        if (pthread_create(&out->thread, NULL, copy_output, out))
            return error_set(err, STATUS_RESOURCE_EXHAUSTED, "cannot start a thread");
        out->running = true;
    }
    if (pthread_create(&session->reader, NULL, copy_input, session))
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "cannot start a thread");
    session->reading = true;
    return STATUS_OK;
}

static void go_raw(struct session *session)
{
    if (!session->interactive || tcgetattr(STDIN_FILENO, &session->before) < 0)
        return; /* -t without a terminal here: nothing to switch */
    struct termios raw = session->before;
    cfmakeraw(&raw);
    signals_save_terminal(STDIN_FILENO, &session->before);
    session->raw = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
}

static int stop_threads(struct session *session, bool failed, struct error *err)
{
    int status = STATUS_OK;
    uint64_t one = 1;
    covey_assert(write(session->stop_fd, &one, sizeof(one)) == sizeof(one));
    for (int i = 0; i < 2; i++) {
        struct output *out = &session->outputs[i];
        if (!out->running)
            continue;
        if (failed)
            covey_stream_cancel(out->stream);
        struct timespec limit;
        clock_gettime(CLOCK_REALTIME, &limit);
        limit.tv_sec += DRAIN_S;
        if (pthread_timedjoin_np(out->thread, NULL, &limit)) { /* the barrier should be here before or soon after the operation's end */
            covey_stream_cancel(out->stream);
            pthread_join(out->thread, NULL);
        }
        if (out->write_error && out->write_error != EPIPE && !failed)
            status = error_errno(err, out->write_error, "cannot write the command's output");
    }
    if (session->reading)
        pthread_join(session->reader, NULL);
    return status;
}

static int run_session(struct session *session, const json_t *operation, struct error *err)
{
    json_t *final = NULL;
    session->id = json_text(operation, "id");
    session->stop_fd = eventfd(0, EFD_CLOEXEC);
    session->in_fd = cli_switch(session->cli, "disable-stdin") ? open("/dev/null", O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (session->stop_fd < 0 || session->in_fd < 0)
        return error_errno(err, errno, "cannot prepare the streams");
    int status = attach(session, operation, err);
    if (!status) {
        go_raw(session);
        signals_handle(on_signal, session);
        status = start_threads(session, err);
        if (!status)
            status = client_wait(session->client, session->id, 0, NULL, NULL, &final, err);
        int stopped = stop_threads(session, status != STATUS_OK, err);
        status = status ? status : stopped;
        signals_handle(NULL, NULL);
    }
    if (session->raw)
        tcsetattr(STDIN_FILENO, TCSANOW, &session->before);
    signals_save_terminal(-1, NULL);
    if (!session->interactive)
        for (int i = 0; i < 2; i++)
            covey_stream_free(session->outputs[i].stream);
    covey_stream_free(session->in);
    covey_stream_free(session->control);
    close(session->stop_fd);
    if (session->in_fd != STDIN_FILENO)
        close(session->in_fd);
    const json_t *code = json_object_get(json_object_get(final, "metadata"), "return");
    if (json_is_number(code)) /* "Command not found" is a failure with a code */
        session->cli->exit_code = (int)json_number_value(code);
    else if (!status)
        status = error_set(err, STATUS_INTERNAL, "the operation ended without an exit code");
    json_decref(final);
    return status;
}

int run_exec(struct cli *cli, struct error *err)
{
    struct session session = {.cli = cli};
    char *name;
    json_t *operation = NULL;
    if (!choose_interactive(cli, &session.interactive, err))
        return (int)err->code;
    int status = cli_resolve(cli, cli->argv[0], &session.client, &name, err);
    json_t *request = status ? NULL : exec_request(cli, name, session.interactive, err);
    free(name);
    if (!request)
        return (int)err->code;
    status = cli_call(cli, session.client, "Instances/ExecInstance", request, &operation, err);
    if (!status)
        status = run_session(&session, operation, err);
    json_decref(operation);
    if (status && cli->exit_code) { /* keep 126 and 127 as the exit code */
        fprintf(stderr, "Error: %s\n", err->text);
        status = STATUS_OK;
    }
    return status;
}
