/* covey-instance: one command per run, JSON in on stdin, JSON out on stdout (see README.md). Runs as root, single-threaded, spawned by the daemon.
 * Nothing is printed on stdout but the answer. */
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int version(const json_t *in, json_t *out, struct error *err)
{
    json_object_set_new(out, "lxc", json_string(lxc_get_version()));
    return STATUS_OK;
}

static const struct {
    const char *name;
    helper_command run;
    bool alone_useless; /* dies with the daemon: a later one begins anew and cleans up */
} commands[] = {
    {"start", helper__start, false},       {"stop", helper__stop, false},         {"halt", helper__halt, false},
    {"freeze", helper__freeze, false},     {"unfreeze", helper__unfreeze, false}, {"list", helper__list, true},
    {"settle", helper__settle, true},      {"state", helper__state, true},        {"unpack", helper__unpack, true},
    {"metadata", helper__metadata, true},  {"remove-tree", helper__remove_tree, true}, {"version", version, true},
};

static json_t *read_input(struct error *err)
{
    struct buf text = {0};
    for (;;) {
        char chunk[65536];
        ssize_t n = read(STDIN_FILENO, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            error_errno(err, errno, "Failed to read the command");
            break;
        }
        if (n == 0)
            break;
        buf_add(&text, chunk, (size_t)n);
        if (text.len > HELPER_INPUT_BYTES_MAX) {
            error_set(err, STATUS_RESOURCE_EXHAUSTED, "Command is longer than %d bytes", HELPER_INPUT_BYTES_MAX);
            break;
        }
    }
    json_t *in = NULL;
    if (err->code == STATUS_OK) {
        json_error_t why;
        in = json_loadb(text.data ? text.data : "", text.len, JSON_REJECT_DUPLICATES, &why);
        if (!json_is_object(in)) {
            error_set(err, STATUS_INVALID_ARGUMENT, "Command is not a JSON object: %s", why.text);
            json_decref(in);
            in = NULL;
        }
    }
    buf_free(&text);
    return in;
}

static int answer(json_t *out)
{
    char *text = json_dumps(out, JSON_COMPACT);
    if (!text)
        core_oom();
    size_t len = strlen(text), done = 0;
    while (done < len) {
        ssize_t n = write(STDOUT_FILENO, text + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return 1;
        done += (size_t)n;
    }
    free(text);
    return 0;
}

static int run_command(helper_command run)
{
    struct error err = ERROR_INIT;
    json_t *in = read_input(&err);
    json_t *out = json_object();
    if (in && run(in, out, &err) == STATUS_OK) {
        json_object_set_new(out, "ok", json_true());
    } else {
        json_decref(out);
        out = json_object();
        json_t *text = json_string(err.text); /* NULL when it is not UTF-8: names of files may be anything */
        json_object_set_new(out, "error", text ? text : json_string("error with a text that is not UTF-8"));
        json_object_set_new(out, "code", json_integer(err.code ? err.code : STATUS_INTERNAL));
    }
    int rc = answer(out);
    json_decref(in);
    json_decref(out);
    return rc;
}

int main(int argc, char **argv)
{
    log_init("covey-instance", LOG_LEVEL_WARN);
    signal(SIGPIPE, SIG_IGN);
    umask(022);
    if (argc == 2 && str_eq(argv[1], "exec")) {
        if (close_range(HELPER_CONTROL_FD + 1, ~0U, 0) < 0 || fcntl(HELPER_CONTROL_FD, F_SETFD, FD_CLOEXEC) < 0)
            return 1;
        return helper__exec();
    }
    if (close_range(STDERR_FILENO + 1, ~0U, 0) < 0) {
        fprintf(stderr, "covey-instance: close_range: %s\n", strerror(errno));
        return 1;
    }
    for (size_t i = 0; argc == 2 && i < sizeof(commands) / sizeof(commands[0]); i++)
        if (str_eq(argv[1], commands[i].name)) {
            if (commands[i].alone_useless && prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
                return 1;
            return run_command(commands[i].run);
        }
    fprintf(stderr, "usage: covey-instance COMMAND <JSON; spawned by coveyd, see its README\n");
    return 2;
}

#ifdef __SANITIZE_ADDRESS__
/* The leak check at exit needs /proc, which a child in its chroot does not have. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}
#endif
