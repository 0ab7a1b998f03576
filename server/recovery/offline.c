/* `coveyd offline VERB …`: what the command line does to a stopped member. Takes the daemon's lock within LOCK_WAIT_MS or fails; reads standard input where a verb needs it,
 * prints one JSON object (or nothing) on standard output, errors as one line on standard error.
 *
 * Exit: 0 done, 1 failed, OFFLINE_RUNNING the daemon runs, OFFLINE_INVALID the input of `edit` breaks a rule. One thread. */
#include "offline.h"

#include "recovery.h"
#include "server/daemon/identity.h"
#include "server/daemon/route.h"
#include "server/daemon/state.h"
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INPUT_BYTES_MAX = 4 << 20, LOCK_WAIT_MS = 5000, LOCK_POLL_MS = 20 };

struct verb {
    const char *name;
    int (*run)(struct daemon *daemon, int argc, char **argv, struct error *err); /* status; exit code in the_exit when that is another */
};

static int the_exit = 1;

static int print_json(json_t *value, struct error *err)
{
    char *text = json_dumps(value, JSON_COMPACT);
    int status = text == NULL || puts(text) < 0 || fflush(stdout) != 0 ? error_set(err, STATUS_INTERNAL, "cannot write to standard output") : STATUS_OK;
    free(text);
    json_decref(value);
    return status;
}

static int show(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    struct arena arena;
    Covey__Internal__V1__PositionResponse *position = NULL;
    arena_init(&arena);
    int status = position_own(daemon, &arena, &position, err);
    if (status == STATUS_OK) {
        status = print_json(json_pack("{s:I,s:I,s:I,s:b}", "last_index", (json_int_t)position->last_index, "last_term", (json_int_t)position->last_term, "epoch",
            (json_int_t)position->epoch, "clustered", daemon_clustered(daemon)), err);
    }
    arena_clear(&arena);
    return status;
}

/* Whether this member can be recovered; changes nothing. */
static int recoverable(struct daemon *daemon, struct error *err)
{
    struct arena arena;
    Covey__Internal__V1__PositionResponse *position = NULL;
    arena_init(&arena);
    int status = STATUS_OK;
    if (!daemon_clustered(daemon)) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "This LXD instance is not clustered");
    } else {
        status = position_own(daemon, &arena, &position, err);
        if (status == STATUS_OK && !position->replica) {
            status = error_set(err, STATUS_FAILED_PRECONDITION, "This LXD instance has no database role");
        }
    }
    status = status == STATUS_OK ? recovery_check_alone(daemon, err) : status;
    arena_clear(&arena);
    return status;
}

static int recover_check(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    return recoverable(daemon, err);
}

static int recover(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    int status = recoverable(daemon, err);
    return status == STATUS_OK ? recovery_sole_voter(daemon, recovery_new_epoch(recovery_epoch(daemon)), err) : status;
}

static int edit_start(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    return daemon_clustered(daemon) ? STATUS_OK
        : error_set(err, STATUS_FAILED_PRECONDITION, "Can't edit cluster configuration as server isn't clustered (missing \"cluster.https_address\" config)");
}

static int edit(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    struct buf input = {0};
    bool invalid = false;
    size_t n;
    do {
        n = fread(buf_grow(&input, 65536), 1, 65536, stdin);
        input.len -= 65536 - n;
    } while (n > 0 && input.len <= INPUT_BYTES_MAX);
    int status = input.len > INPUT_BYTES_MAX ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d bytes of input", INPUT_BYTES_MAX)
                                             : edit_apply(daemon, input.data, input.len, &invalid, err);
    the_exit = invalid ? OFFLINE_INVALID : 1;
    buf_free(&input);
    return status;
}

static int set_address(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    return argc < 1 ? error_set(err, STATUS_INVALID_ARGUMENT, "Missing address") : edit_move(daemon, argv[0], err);
}

static int print_survey(int status, const Covey__Internal__V1__SurveyResponse *survey, struct error *err)
{
    struct buf text = {0};
    if (status == STATUS_OK) {
        codec_to_json(&survey->base, &text);
        status = puts(text.data) < 0 || fflush(stdout) != 0 ? error_set(err, STATUS_INTERNAL, "cannot write to standard output") : STATUS_OK;
    }
    buf_free(&text);
    return status;
}

static int survey(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    struct arena arena;
    Covey__Internal__V1__SurveyResponse *out = NULL;
    arena_init(&arena);
    int status = rescue_survey(daemon, &arena, &out, err);
    status = print_survey(status, out, err);
    arena_clear(&arena);
    return status;
}

static int rescue(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    struct arena arena;
    Covey__Internal__V1__SurveyResponse *out = NULL;
    arena_init(&arena);
    int status = rescue_run(daemon, true, argc > 0 && strcmp(argv[0], "accept-loss") == 0, &arena, &out, err);
    status = print_survey(status, out, err);
    arena_clear(&arena);
    return status;
}

static int restore_with(struct daemon *daemon, int argc, char **argv, bool check_only, struct error *err)
{
    struct buf about = {0};
    int status = argc < 1 ? error_set(err, STATUS_INVALID_ARGUMENT, "Missing file") : STATUS_OK;
    if (status == STATUS_OK) {
        status = backup_restore(daemon, argv[0], argc > 1 ? argv[1] : "", argc > 2 ? argv[2] : "", check_only, &about, err);
    }
    if (status == STATUS_OK && (puts(about.data) < 0 || fflush(stdout) != 0)) {
        status = error_set(err, STATUS_INTERNAL, "cannot write to standard output");
    }
    buf_free(&about);
    return status;
}

static int restore_check(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    return restore_with(daemon, argc, argv, true, err);
}

static int restore(struct daemon *daemon, int argc, char **argv, struct error *err)
{
    return restore_with(daemon, argc, argv, false, err);
}

static const struct verb verbs[] = {
    {"survey", survey}, {"rescue", rescue}, {"restore-check", restore_check}, {"restore", restore},
    {"show", show}, {"recover-check", recover_check}, {"recover", recover}, {"edit-check", edit_start}, {"edit", edit},
    {"set-address", set_address},
};

/* The lock may be held for a moment by a command of the same pipe (`… show | … edit`). Whether a daemon listens was asked before. */
static int lock_soon(struct daemon *daemon, struct error *err)
{
    int64_t until = time_mono_ms() + LOCK_WAIT_MS;
    int status;
    while ((status = daemon_lock(daemon, err)) != STATUS_OK && time_mono_ms() < until) {
        usleep(LOCK_POLL_MS * 1000);
    }
    return status;
}

/* As much of a start as the verbs need: no listener, no database. */
static int prepare(struct daemon *daemon, struct error *err)
{
    char *database = xasprintf("%s/database", daemon->dir);
    int status = dir_make(database, 0700, err);
    if (status == STATUS_OK && (status = lock_soon(daemon, err)) != STATUS_OK) {
        error_set(err, STATUS_FAILED_PRECONDITION, "The LXD daemon is running, please stop it first.");
        the_exit = OFFLINE_RUNNING;
    }
    status = status == STATUS_OK ? local_db_open(database, &daemon->local, err) : status;
    status = status == STATUS_OK ? identity_init(daemon, err) : status;
    status = status == STATUS_OK ? recovery_resume(daemon, err) : status;
    free(database);
    if (status != STATUS_OK) {
        return status;
    }
    char *id = local_state_get(daemon->local, "member_id"), *clustered = local_state_get(daemon->local, "clustered"), *name = local_state_get(daemon->local, "name");
    state_set_identity(daemon, id != NULL ? strtoull(id, NULL, 10) : 1, clustered != NULL, name != NULL ? name : "");
    free(id);
    free(clustered);
    free(name);
    view_load(daemon);
    return STATUS_OK;
}

int offline_main(int argc, char **argv)
{
    struct daemon *daemon = the_daemon;
    struct error err = ERROR_INIT;
    char dir[PATH_MAX];
    const char *given = getenv("COVEY_DIR");
    static const struct option options[] = {{"dir", required_argument, NULL, 'D'}, {0}};
    for (int c; (c = getopt_long(argc, argv, "+D:", options, NULL)) != -1;) {
        if (c != 'D') {
            return 2;
        }
        given = optarg;
    }
    const struct verb *verb = NULL;
    for (size_t i = 0; optind < argc && i < sizeof verbs / sizeof *verbs; i++) {
        verb = strcmp(argv[optind], verbs[i].name) == 0 ? &verbs[i] : verb;
    }
    if (verb == NULL) {
        fprintf(stderr, "usage: coveyd offline [--dir DIR] VERB (used by `covey admin cluster`)\n");
        return 2;
    }
    log_init("coveyd", LOG_LEVEL_ERROR);
    if (realpath(given != NULL ? given : "/var/lib/covey", dir) == NULL) {
        fprintf(stderr, "%s: %s\n", given != NULL ? given : "/var/lib/covey", strerror(errno));
        return 1;
    }
    daemon->dir = xstrdup(dir);
    gethostname(daemon->hostname, sizeof daemon->hostname - 1);
    registry_init();
    rpc_init();
    int status = prepare(daemon, &err);
    status = status == STATUS_OK ? verb->run(daemon, argc - optind - 1, argv + optind + 1, &err) : status;
    if (status != STATUS_OK) {
        fprintf(stderr, "%s\n", err.text);
    }
    members_forget_channels();
    local_db_close(daemon->local);
    rpc_shutdown();
    return status == STATUS_OK ? 0 : the_exit;
}
