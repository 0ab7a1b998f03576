/* admin … (and lxd …): waitready, shutdown, sql, the cluster's database; becoming the daemon. Local socket only. */
#include "recover.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { READY_INTERVAL_MS = 500, READY_CALL_MS = 5 * 1000, SHUTDOWN_CALL_MS = 30 * 1000, SQL_TIMEOUT_MS = 10 * 60 * 1000 };

static void pause_ms(int64_t ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* The deadline of -t; no flag or 0 = none. */
static int deadline_of(struct cli *cli, int64_t *seconds, int64_t *deadline, struct error *err)
{
    const char *text = cli_flag(cli, "timeout-t");
    *seconds = 0;
    if (text && parse_i64(text, 0, INT32_MAX, seconds))
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid argument \"%s\" for \"-t, --timeout\"", text);
    *deadline = *seconds ? time_mono_ms() + *seconds * 1000 : INT64_MAX;
    return STATUS_OK;
}

int run_admin_waitready(struct cli *cli, struct error *err)
{
    int64_t seconds, deadline;
    int status = deadline_of(cli, &seconds, &deadline, err);
    if (status)
        return status;
    for (;;) {
        struct error last = ERROR_INIT;
        struct covey_client *client;
        int64_t left = deadline - time_mono_ms();
        struct covey_options options = {.timeout_ms = left < READY_CALL_MS ? (left > 1 ? left : 1) : READY_CALL_MS};
        if (!cli_local(cli, &client, &last) && !client_call_options(client, "Admin/Ready", NULL, NULL, NULL, &options, &last))
            return STATUS_OK;
        if (last.code == STATUS_PERMISSION_DENIED || last.code == STATUS_UNIMPLEMENTED) {
            *err = last; /* waiting will not help */
            return (int)last.code;
        }
        if (time_mono_ms() + READY_INTERVAL_MS >= deadline)
            return error_set(err, STATUS_DEADLINE_EXCEEDED, "LXD still not running after %llds timeout (%s)", (long long)seconds, last.text);
        pause_ms(READY_INTERVAL_MS);
    }
}

/* Gone = the process has ended (or never was ours to see: then the socket refuses). */
/* A process that its parent has not waited for yet has ended all the same. */
static bool process_ended(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return kill(pid, 0) < 0 && errno == ESRCH;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *name_end = strrchr(text, ')'); /* "pid (name) state …" */
    return name_end != NULL && (name_end[2] == 'Z' || name_end[2] == 'X');
}

static bool daemon_gone(struct cli *cli, pid_t pid)
{
    if (pid > 0)
        return process_ended(pid);
    struct covey_client *client;
    if (client_connect_local(cli_state_dir(cli), &client, NULL))
        return true;
    covey_close(client);
    return false;
}

int run_admin_shutdown(struct cli *cli, struct error *err)
{
    int64_t seconds, deadline;
    struct covey_client *client;
    json_t *reply;
    int status = deadline_of(cli, &seconds, &deadline, err);
    if (!status)
        status = cli_local(cli, &client, err);
    const struct covey_options options = {.timeout_ms = SHUTDOWN_CALL_MS};
    if (!status)
        status = client_call_options(client, "Admin/Shutdown", json_pack("{s:b}", "force", cli_switch(cli, "force")), &reply, NULL, &options, err);
    if (status)
        return status;
    pid_t pid = (pid_t)json_integer_value(json_object_get(reply, "pid"));
    json_decref(reply);
    while (!daemon_gone(cli, pid)) {
        if (time_mono_ms() >= deadline)
            return error_set(err, STATUS_DEADLINE_EXCEEDED, "LXD still running after %llds timeout", (long long)seconds);
        pause_ms(100);
    }
    return STATUS_OK;
}

int run_admin_sql(struct cli *cli, struct error *err)
{
    if (cli->argc < 2) {
        command_help(cli, cli->command->path, cli->argc ? stderr : stdout);
        return cli->argc ? error_set(err, STATUS_INVALID_ARGUMENT, "Missing required arguments") : STATUS_OK;
    }
    bool global = strcmp(cli->argv[0], "global") == 0;
    if (!global && strcmp(cli->argv[0], "local") != 0) {
        command_help(cli, cli->command->path, stderr);
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid database type");
    }
    struct buf query = {0}, out = {0};
    struct covey_client *client;
    json_t *reply = NULL;
    int status = STATUS_OK;
    if (strcmp(cli->argv[1], "-") == 0)
        status = cli_read_all(cli->in, &query, err);
    else
        buf_puts(&query, cli->argv[1]);
    if (!status && (!query.data || strspn(query.data, " \t\r\n;") == query.len))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "No query provided");
    if (!status && !utf8_valid(query.data, query.len))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "The query is not UTF-8 text");
    if (!status)
        status = cli_local(cli, &client, err);
    const struct covey_options options = {.timeout_ms = SQL_TIMEOUT_MS};
    if (!status)
        status = client_call_options(client, global ? "Admin/SqlGlobal" : "Admin/SqlLocal", json_pack("{s:s}", "query", query.data), &reply, NULL, &options, err);
    if (!status) {
        sql_render(reply, &out);
        if (out.len && fwrite(out.data, 1, out.len, stdout) != out.len)
            status = error_set(err, STATUS_INTERNAL, "cannot write to standard output");
    }
    json_decref(reply);
    buf_free(&out);
    buf_free(&query);
    return status;
}

/* ---- the cluster's database ---- */

/* The raft rows: from the daemon, or from the file of a stopped one. */
static int raft_rows(struct cli *cli, json_t **rows, struct error *err)
{
    static const char *const query = "SELECT id, name, address, role FROM raft_nodes ORDER BY id";
    struct covey_client *client;
    json_t *reply = NULL;
    struct error e = ERROR_INIT;
    const struct covey_options options = {.timeout_ms = READY_CALL_MS};
    int status = cli_local(cli, &client, &e);
    if (!status)
        status = client_call_options(client, "Admin/SqlLocal", json_pack("{s:s}", "query", query), &reply, NULL, &options, err);
    else if (status == STATUS_UNAVAILABLE)
        status = local_database_query(cli_state_dir(cli), query, &reply, err);
    else
        *err = e;
    *rows = NULL;
    if (!status) {
        const json_t *result = json_array_get(json_object_get(reply, "results"), 0);
        *rows = json_array();
        size_t index;
        const json_t *row;
        json_array_foreach(json_object_get(result, "rows"), index, row) json_array_append(*rows, json_object_get(row, "values"));
    }
    json_decref(reply);
    return status;
}

int run_admin_cluster_list_database(struct cli *cli, struct error *err)
{
    static const char *const headers[] = {"ADDRESS"};
    json_t *rows;
    int status = cli_check_format(cli, err);
    if (!status)
        status = raft_rows(cli, &rows, err);
    if (status)
        return status;
    struct table table;
    table_init(&table, headers, 1);
    json_t *raw = json_array(), *row;
    size_t index;
    json_array_foreach(rows, index, row)
    {
        const char *address = json_text(json_array_get(row, 2), "text");
        if (json_integer_value(json_object_get(json_array_get(row, 3), "integer")) != 0)
            continue; /* not a voter */
        table_add(&table, address);
        json_array_append_new(raw, json_string(address));
    }
    status = cli_print(cli, &table, raw, err);
    table_free(&table);
    json_decref(raw);
    json_decref(rows);
    return status;
}

/* The last raft index, as the daemon knows it, or the log of a stopped one; NULL when there is none. */
static char *last_segment(struct cli *cli)
{
    static const char *const verb[] = {"show", NULL};
    struct covey_client *client;
    struct error e = ERROR_INIT;
    json_t *reply = NULL;
    const struct covey_options options = {.timeout_ms = READY_CALL_MS};
    int status = cli_local(cli, &client, &e);
    if (!status)
        status = client_call_options(client, "Admin/Status", NULL, &reply, NULL, &options, &e);
    else
        status = offline_run(cli, verb, NULL, &reply, NULL, &e);
    int64_t last = json_integer_value(json_object_get(reply, "last_index"));
    json_decref(reply);
    return status || !last ? NULL : xasprintf("%lld", (long long)last);
}

int raft_document(struct cli *cli, struct buf *out, struct error *err)
{
    static const char *const roles[] = {"voter", "stand-by", "spare"};
    json_t *rows, *row;
    int status = raft_rows(cli, &rows, err);
    if (status)
        return status;
    json_t *members = json_array();
    size_t index;
    json_array_foreach(rows, index, row)
    {
        int64_t role = json_integer_value(json_object_get(json_array_get(row, 3), "integer"));
        json_array_append_new(members, json_pack("{s:I,s:s,s:s,s:s}", "id", json_integer_value(json_object_get(json_array_get(row, 0), "integer")), "name",
                                                 json_text(json_array_get(row, 1), "text"), "address", json_text(json_array_get(row, 2), "text"), "role",
                                                 role >= 0 && role <= 2 ? roles[role] : "unknown"));
    }
    if (json_array_size(members)) {
        char *segment = last_segment(cli);
        buf_printf(out, "# Latest dqlite segment ID: %s\n\n", segment ? segment : "none");
        free(segment);
    }
    json_t *shown = json_pack("{s:o}", "members", members);
    yaml_write(shown, out);
    json_decref(shown);
    json_decref(rows);
    return STATUS_OK;
}

int run_admin_cluster_show(struct cli *cli, struct error *err)
{
    struct buf out = {0};
    int status = raft_document(cli, &out, err);
    if (!status && out.len && fwrite(out.data, 1, out.len, stdout) != out.len)
        status = error_set(err, STATUS_INTERNAL, "cannot write to standard output");
    buf_free(&out);
    return status;
}

/* ---- lxd without a command: the daemon ---- */

/* coveyd stands in bin, beside the real covey; we may have been called through a link in lib/covey/compat. */
char *daemon_path(void)
{
    char self[4096];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (len <= 0)
        return NULL;
    self[len] = 0;
    char *slash = strrchr(self, '/');
    if (!slash)
        return NULL;
    *slash = 0;
    static const char *const places[] = {"coveyd", "../sbin/coveyd", "../server/coveyd" /* the build tree */};
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        char *path = xasprintf("%s/%s", self, places[i]);
        if (access(path, X_OK) == 0)
            return path;
        free(path);
    }
    return NULL;
}

int run_daemon(struct cli *cli, struct error *err)
{
    char *path = daemon_path();
    if (!path)
        return error_set(err, STATUS_NOT_FOUND, "cannot find coveyd beside this program");
    const char *argv[12];
    int argc = 0;
    argv[argc++] = path;
    argv[argc++] = "--dir";
    argv[argc++] = cli_state_dir(cli);
    if (cli_flag(cli, "logfile")) {
        argv[argc++] = "--logfile";
        argv[argc++] = cli_flag(cli, "logfile");
    }
    if (cli_flag(cli, "daemon-group")) {
        argv[argc++] = "--group";
        argv[argc++] = cli_flag(cli, "daemon-group");
    }
    if (cli_switch(cli, "debug"))
        argv[argc++] = "--debug";
    if (cli_switch(cli, "verbose"))
        argv[argc++] = "--verbose";
    argv[argc] = NULL;
    unsetenv("GRPC_VERBOSITY");
    execv(path, (char *const *)argv);
    int status = error_errno(err, errno, "cannot start %s", path);
    free(path);
    return status;
}
