/* admin cluster rescue, backup, restore. */
#include "recover.h"
#include "covey/internal/v1/recovery.pb-c.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RESCUE_MS = 5 * 60 * 1000, SURVEY_MS = 30 * 1000, BACKUP_MS = 60 * 60 * 1000 };

/* ---- rescue ---- */

static int ask_member(struct cli *cli, bool rescue, json_t **reply, struct error *err)
{
    bool accept = cli_switch(cli, "accept-loss");
    struct covey_client *client;
    if (!cli_local(cli, &client, NULL)) {
        const struct covey_options options = {.timeout_ms = rescue ? RESCUE_MS : SURVEY_MS};
        return client_call_options(client, rescue ? "Recovery/Rescue" : "Recovery/Survey", rescue ? json_pack("{s:b}", "accept_loss", accept) : NULL, reply, NULL,
                                   &options, err);
    }
    const char *const arguments[] = {rescue ? "rescue" : "survey", rescue && accept ? "accept-loss" : NULL, NULL};
    return offline_run(cli, arguments, NULL, reply, NULL, err);
}

static void print_survey(const json_t *survey)
{
    static const char *const headers[] = {"MEMBER", "ADDRESS", "ROLE", "COPY", "STATE"};
    int64_t best = 0;
    size_t index;
    const json_t *member;
    json_array_foreach(json_object_get(survey, "members"), index, member)
        if (json_is_true(json_object_get(member, "chosen")))
            best = json_integer_value(json_object_get(json_object_get(member, "position"), "last_index"));
    struct table table;
    table_init(&table, headers, 5);
    json_array_foreach(json_object_get(survey, "members"), index, member)
    {
        const json_t *position = json_object_get(member, "position");
        int64_t last = json_integer_value(json_object_get(position, "last_index"));
        bool reachable = json_is_true(json_object_get(member, "reachable"));
        bool same = json_integer_value(json_object_get(position, "epoch")) == json_integer_value(json_object_get(survey, "epoch"));
        char *copy = !reachable || !last ? xstrdup("-")
                     : xasprintf("%lld.%lld", (long long)json_integer_value(json_object_get(position, "last_term")), (long long)last);
        char *state = !reachable ? xasprintf("unreachable: %.60s", json_text(member, "error"))
                      : json_is_true(json_object_get(member, "chosen")) ? xstrdup("newest copy")
                      : !same && json_integer_value(json_object_get(position, "leader_id")) ? xstrdup("works in an earlier epoch, does not follow")
                      : !same ? xstrdup("of an earlier epoch, will take a fresh copy")
                      : !last ? xstrdup("no copy")
                      : best > last ? xasprintf("%lld entries behind", (long long)(best - last)) : xstrdup("equal copy");
        table_add(&table, json_text(member, "name"), json_text(member, "address"), json_text(member, "role"), copy, state);
        free(copy);
        free(state);
    }
    struct buf out = {0};
    table_render(&table, &out);
    if (out.data)
        printf("%s", out.data);
    buf_free(&out);
    table_free(&table);
    const json_t *warning;
    json_array_foreach(json_object_get(survey, "warnings"), index, warning) printf("Warning: %s.\n", json_string_value(warning));
}

static const char *chosen_name(const json_t *survey)
{
    size_t index;
    const json_t *member;
    json_array_foreach(json_object_get(survey, "members"), index, member)
        if (json_is_true(json_object_get(member, "chosen")))
            return json_text(member, "name");
    return "";
}

int run_admin_cluster_rescue(struct cli *cli, struct error *err)
{
    json_t *survey = NULL, *done = NULL;
    int status = ask_member(cli, false, &survey, err);
    if (status)
        return status;
    print_survey(survey);
    const char *refusal = json_text(survey, "refusal");
    bool by_loss = json_is_true(json_object_get(survey, "refusal_by_loss"));
    if (*refusal && !(by_loss && cli_switch(cli, "accept-loss")))
        status = error_set(err, STATUS_FAILED_PRECONDITION, "%s%s", refusal, by_loss ? " (--accept-loss goes on without them)" : "");
    if (!status && !cli_switch(cli, "quiet") && !json_is_true(json_object_get(survey, "done"))) {
        printf("\n%s becomes the only database member; the other reachable members take fresh copies from it. Members that cannot be reached must\n"
               "be lost for good: if a majority of them still works somewhere, there will be two clusters.\n\n", chosen_name(survey));
        status = ask_yes(cli, "Do you want to proceed? (yes/no): ", "Rescue aborted", err);
    }
    if (!status)
        status = ask_member(cli, true, &done, err);
    if (!status) {
        struct covey_client *client;
        if (!cli_switch(cli, "quiet") && cli_local(cli, &client, NULL))
            printf("%s is the only database member now. Start the daemon of this member.\n", chosen_name(done));
        else if (!cli_switch(cli, "quiet"))
            printf("%s is the leader; all reachable members follow it.\n", chosen_name(done));
    }
    json_decref(survey);
    json_decref(done);
    return status;
}

/* ---- backup ---- */

static int write_all(int fd, const uint8_t *data, size_t len, const char *path, struct error *err)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_errno(err, n < 0 ? errno : EIO, "cannot write %s", path);
        data += n;
        len -= (size_t)n;
    }
    return STATUS_OK;
}

/* Beside the file first: what is under its name is whole. */
static int receive_file(struct covey_stream *stream, const char *path, int64_t *bytes, struct error *err)
{
    char *part = xasprintf("%s.part", path);
    int fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600); /* it holds the cluster's key */
    int status = fd < 0 ? error_errno(err, errno, "cannot write %s", part) : STATUS_OK;
    *bytes = 0;
    while (!status) {
        ProtobufCMessage *message;
        status = client_stream_receive(stream, &message, err);
        if (status == STATUS_OUT_OF_RANGE) { /* the end of the messages: the call's own outcome decides */
            status = rpc_status(stream->call, err);
            break;
        }
        if (!status) {
            const Covey__Internal__V1__BackupChunk *chunk = (const Covey__Internal__V1__BackupChunk *)message;
            status = write_all(fd, chunk->data.data, chunk->data.len, part, err);
            *bytes += (int64_t)chunk->data.len;
        }
    }
    if (!status && fsync(fd) < 0)
        status = error_errno(err, errno, "cannot write %s", part);
    if (fd >= 0)
        close(fd);
    if (!status && rename(part, path) < 0)
        status = error_errno(err, errno, "cannot rename %s to %s", part, path);
    if (status && fd >= 0)
        unlink(part);
    free(part);
    return status;
}

int run_admin_cluster_backup(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    struct covey_stream *stream;
    int64_t bytes;
    int status = cli_local(cli, &client, err);
    if (!status)
        status = client_stream_open(client, cli_switch(cli, "local-copy") ? "Recovery/BackupLocal" : "Recovery/Backup", NULL, BACKUP_MS, &stream, err);
    if (status)
        return status;
    status = receive_file(stream, cli->argv[0], &bytes, err);
    covey_stream_free(stream);
    if (!status)
        cli_say(cli, "Backup of %lld bytes written to %s. It holds the cluster's private key: keep it as safe as that.\n", (long long)bytes, cli->argv[0]);
    return status;
}

/* ---- restore ---- */

int run_admin_cluster_restore(struct cli *cli, struct error *err)
{
    char path[PATH_MAX];
    if (!realpath(cli->argv[0], path))
        return error_errno(err, errno, "%s", cli->argv[0]);
    const char *member = cli_flag(cli, "member"), *address = cli_flag(cli, "address");
    const char *arguments[] = {"restore-check", path, member ? member : "", address ? address : "", NULL};
    json_t *about = NULL, *done = NULL;
    int status = offline_run(cli, arguments, NULL, &about, NULL, err);
    if (status)
        return status;
    if (!cli_switch(cli, "quiet")) {
        printf("Backup of cluster %s, made %s at revision %lld.\n\n"
               "This server becomes member %s at %s and the only database member, with the state of the backup. What was written since is gone;\n"
               "what this server's database holds now is set aside. The other members must be stopped; when they start again, they set their copies\n"
               "aside, too, and take fresh ones. Instances and their disks are not part of a backup.\n\n",
               json_text(about, "cluster_id"), json_text(about, "time"), (long long)json_integer_value(json_object_get(about, "revision")), json_text(about, "member"),
               json_text(about, "address"));
        status = ask_yes(cli, "Do you want to proceed? (yes/no): ", "Restore aborted", err);
    }
    arguments[0] = "restore";
    if (!status)
        status = offline_run(cli, arguments, NULL, &done, NULL, err);
    if (!status)
        cli_say(cli, "Restored. Start the daemon of this member, then the others.\n");
    json_decref(about);
    json_decref(done);
    return status;
}
