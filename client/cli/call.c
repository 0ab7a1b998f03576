/* Calls with the common flags, waiting for operations, questions, small input helpers. Main thread; the watcher of ^C is a thread of its own while
 * an operation is waited for. */
#include "cli.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

extern char **environ;

static void add_common(const struct cli *cli, const char *name, json_t *request)
{
    const struct method *method = client_method(name, NULL);
    const char *project = cli_flag(cli, "project"), *target = cli_flag(cli, "target");
    if (!method)
        return; /* the call will say so */
    if (project && codec_has_field(method->input, "project"))
        json_object_set_new(request, "project", json_string(project));
    if (target && codec_has_field(method->input, "target"))
        json_object_set_new(request, "target", json_string(target));
    if (cli_switch(cli, "all-projects") && codec_has_field(method->input, "all_projects"))
        json_object_set_new(request, "all-projects", json_true());
}

int cli_call_etag(struct cli *cli, struct covey_client *client, const char *method, json_t *request, json_t **response, char **etag,
                  struct error *err)
{
    if (!request)
        request = json_object();
    add_common(cli, method, request);
    return client_call_etag(client, method, request, response, etag, err);
}

int cli_call(struct cli *cli, struct covey_client *client, const char *method, json_t *request, json_t **response, struct error *err)
{
    return cli_call_etag(cli, client, method, request, response, NULL, err);
}

/* ---- operations ---- */

struct waiting {
    struct covey_client *client;
    const char *id;
    int seen; /* interrupts */
    bool terminal;
    size_t shown; /* columns of the progress line on the screen */
    volatile sig_atomic_t cancelled;
};

/* Signal thread: the first interrupt asks the server to cancel, the second gives up. */
static void interrupted(int signal_number, void *ud)
{
    struct waiting *waiting = ud;
    if (signal_number != SIGINT && signal_number != SIGTERM && signal_number != SIGHUP && signal_number != SIGQUIT)
        return;
    if (++waiting->seen > 1)
        _exit(128 + signal_number); /* the user insists; the operation goes on without us */
    struct error e = ERROR_INIT;
    if (client_cancel(waiting->client, waiting->id, &e))
        fprintf(stderr, "\n%s (interrupt again to leave it running)\n", e.text);
    else
        waiting->cancelled = 1;
}

static bool show_progress(const json_t *operation, void *ud)
{
    struct waiting *waiting = ud;
    if (!waiting->terminal)
        return true;
    const json_t *metadata = json_object_get(operation, "metadata");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)metadata, key, value)
    {
        size_t len = strlen(key);
        if (len < 9 || strcmp(key + len - 9, "_progress") != 0 || !json_is_string(value))
            continue;
        const char *text = json_string_value(value);
        printf("\r%-*s", (int)waiting->shown, text);
        waiting->shown = strlen(text);
        fflush(stdout);
    }
    return true;
}

int cli_wait(struct cli *cli, struct covey_client *client, const json_t *operation, json_t **final, struct error *err)
{
    struct waiting waiting = {.client = client, .id = json_text(operation, "id"), .terminal = !cli->quiet && isatty(STDOUT_FILENO)};
    if (!*waiting.id)
        return error_set(err, STATUS_INTERNAL, "the server answered without an operation");
    int done;
    if (client_final(operation, &done, err)) { /* finished before it was answered: nothing to wait for */
        if (final)
            *final = json_incref((json_t *)operation);
        return done;
    }
    signals_handle(interrupted, &waiting);
    int status = client_wait(client, waiting.id, 0, show_progress, &waiting, final, err);
    signals_handle(NULL, NULL);
    if (waiting.shown)
        printf("\r%*s\r", (int)waiting.shown, "");
    if (status && waiting.cancelled)
        error_set(err, STATUS_CANCELLED, "Remote operation canceled by user");
    return status;
}

int cli_call_wait(struct cli *cli, struct covey_client *client, const char *method, json_t *request, json_t **final, struct error *err)
{
    json_t *operation;
    if (final)
        *final = NULL;
    int status = cli_call(cli, client, method, request, &operation, err);
    if (status)
        return status;
    const json_t *wrapped = json_object_get(operation, "operation"); /* UpdateInstanceResponse, UpdateClusterResponse */
    if (!wrapped)
        status = cli_wait(cli, client, operation, final, err);
    else if (json_is_object(wrapped))
        status = cli_wait(cli, client, wrapped, final, err);
    json_decref(operation);
    return status;
}

void cli_say(const struct cli *cli, const char *fmt, ...)
{
    if (cli->quiet)
        return;
    va_list args;
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    fflush(stdout);
}

/* ---- questions ---- */

bool cli_stdin_is_terminal(const struct cli *cli) { return isatty(fileno(cli->in)); }

static int read_line(struct cli *cli, char **line, struct error *err)
{
    size_t size = 0;
    *line = NULL;
    ssize_t len = getline(line, &size, cli->in);
    if (len < 0) {
        free(*line);
        *line = NULL;
        return error_set(err, STATUS_INVALID_ARGUMENT, "EOF");
    }
    while (len && ((*line)[len - 1] == '\n' || (*line)[len - 1] == '\r' || (*line)[len - 1] == ' '))
        (*line)[--len] = 0;
    return STATUS_OK;
}

int cli_ask(struct cli *cli, const char *question, const char *default_answer, char **answer, struct error *err)
{
    printf("%s", question);
    fflush(stdout);
    int status = read_line(cli, answer, err);
    if (!status && !**answer && default_answer) {
        free(*answer);
        *answer = xstrdup(default_answer);
    }
    return status;
}

int cli_ask_bool(struct cli *cli, const char *question, const char *default_answer, bool *value, struct error *err)
{
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        char *answer;
        int status = cli_ask(cli, question, default_answer, &answer, err);
        if (status)
            return status;
        bool yes = strcasecmp(answer, "yes") == 0 || strcasecmp(answer, "y") == 0;
        bool no = strcasecmp(answer, "no") == 0 || strcasecmp(answer, "n") == 0;
        free(answer);
        *value = yes;
        if (yes || no)
            return STATUS_OK;
        fprintf(stderr, "Invalid input, try again.\n\n");
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

int cli_ask_password(struct cli *cli, const char *question, char **answer, struct error *err)
{
    struct termios before, quiet;
    int fd = fileno(cli->in);
    bool terminal = isatty(fd) && tcgetattr(fd, &before) == 0;
    if (terminal) {
        quiet = before;
        quiet.c_lflag &= ~(tcflag_t)ECHO;
        signals_save_terminal(fd, &before);
        tcsetattr(fd, TCSAFLUSH, &quiet);
    }
    int status = cli_ask(cli, question, NULL, answer, err);
    if (terminal) {
        tcsetattr(fd, TCSAFLUSH, &before);
        signals_save_terminal(-1, NULL);
        printf("\n");
    }
    return status;
}

int cli_read_all(FILE *in, struct buf *out, struct error *err)
{
    char part[8192];
    size_t len;
    while ((len = fread(part, 1, sizeof(part), in)) > 0) {
        buf_add(out, part, len);
        if (out->len > CLI_INPUT_BYTES_MAX)
            return error_set(err, STATUS_INVALID_ARGUMENT, "the input is longer than %d bytes", CLI_INPUT_BYTES_MAX);
    }
    if (ferror(in))
        return error_errno(err, errno, "cannot read standard input");
    if (!out->data)
        buf_puts(out, "");
    return STATUS_OK;
}

int cli_pair(json_t *object, const char *text, struct error *err)
{
    const char *equal = strchr(text, '=');
    if (!equal || equal == text)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid key=value configuration: %s", text);
    char *key = xasprintf("%.*s", (int)(equal - text), text);
    struct buf value = {0};
    int status = STATUS_OK;
    if (strcmp(equal + 1, "-") == 0) /* the value is on standard input */
        status = cli_read_all(stdin, &value, err);
    else
        buf_puts(&value, equal + 1);
    if (!status && json_object_set_new(object, key, json_string(value.data ? value.data : "")))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Invalid key=value configuration: %s (not UTF-8)", key);
    buf_free(&value);
    free(key);
    return status;
}

json_t *cli_pairs(char **words, int count, struct error *err)
{
    json_t *object = json_object();
    for (int i = 0; i < count; i++)
        if (cli_pair(object, words[i], err)) {
            json_decref(object);
            return NULL;
        }
    return object;
}

/* ---- editor ---- */

static int run_editor(const char *path, struct error *err)
{
    const char *editor = getenv("VISUAL");
    if (str_empty(editor))
        editor = getenv("EDITOR");
    if (str_empty(editor))
        editor = "vi";
    char *command = xasprintf("%s \"$0\"", editor); /* the variable may hold arguments: the shell splits it */
    const char *const argv[] = {"sh", "-c", command, path, NULL};
    pid_t pid;
    posix_spawnattr_t attributes;
    sigset_t none;
    sigemptyset(&none); /* ours are blocked */
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    int failed = posix_spawnp(&pid, "sh", NULL, &attributes, (char *const *)argv, environ);
    int state = 0;
    while (!failed && waitpid(pid, &state, 0) < 0 && errno == EINTR)
        ;
    posix_spawnattr_destroy(&attributes);
    free(command);
    if (failed)
        return error_errno(err, failed, "cannot start the editor");
    return WIFEXITED(state) && WEXITSTATUS(state) == 0 ? STATUS_OK : error_set(err, STATUS_CANCELLED, "the editor %s failed", editor);
}

int cli_edit(struct cli *cli, const char *initial, char **edited, struct error *err)
{
    *edited = NULL;
    struct buf text = {0};
    if (!cli_stdin_is_terminal(cli)) {
        int status = cli_read_all(cli->in, &text, err);
        if (!status)
            *edited = buf_take(&text);
        buf_free(&text);
        return status;
    }
    char path[] = "/tmp/covey_editor_XXXXXX.yaml";
    int fd = mkstemps(path, 5);
    if (fd < 0)
        return error_errno(err, errno, "cannot make a temporary file");
    size_t len = strlen(initial);
    int status = write(fd, initial, len) == (ssize_t)len ? STATUS_OK : error_errno(err, errno, "cannot write %s", path);
    close(fd);
    if (!status)
        status = run_editor(path, err);
    if (!status)
        status = file_read(path, CLI_INPUT_BYTES_MAX, &text, err);
    if (!status)
        *edited = buf_take(&text);
    buf_free(&text);
    (void)unlink(path); /* only a left-over if it fails */
    return status;
}
