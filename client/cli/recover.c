/* admin cluster edit, recover-from-quorum-loss, remove-raft-node: what changes the cluster's database from outside. A stopped member is changed by its own
 * program (`coveyd offline …`, which holds the daemon's lock meanwhile); nothing here waits for a daemon that does not answer. */
#include "recover.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* server/recovery/offline.h */
enum { OFFLINE_RUNNING = 3, OFFLINE_INVALID = 4, OFFLINE_OUTPUT_MAX = 4 << 20, OFFLINE_MS = 60 * 60 * 1000, CALL_MS = 120 * 1000 };

static const char running_text[] = "The LXD daemon is running, please stop it first.";

int offline_run(struct cli *cli, const char *const *arguments, const char *input, json_t **reply, bool *invalid, struct error *err)
{
    const char *argv[16] = {NULL};
    size_t count = 0;
    char *path = daemon_path();
    struct covey_client *client;
    if (reply)
        *reply = NULL;
    if (invalid)
        *invalid = false;
    if (!path)
        return error_set(err, STATUS_NOT_FOUND, "cannot find coveyd beside this program");
    if (!cli_local(cli, &client, NULL)) { /* somebody listens; whether it answers does not matter */
        free(path);
        return error_set(err, STATUS_FAILED_PRECONDITION, running_text);
    }
    argv[count++] = path;
    argv[count++] = "offline";
    argv[count++] = "--dir";
    argv[count++] = cli_state_dir(cli);
    for (; *arguments && count + 1 < sizeof(argv) / sizeof(*argv); arguments++)
        argv[count++] = *arguments;
    struct process_result result;
    int status = process_run(argv, NULL, input, OFFLINE_OUTPUT_MAX, OFFLINE_MS, &result, err);
    free(path);
    if (status)
        return status;
    if (result.exit_code) {
        while (result.err.len && result.err.data[result.err.len - 1] == '\n')
            result.err.data[--result.err.len] = 0;
        if (invalid)
            *invalid = result.exit_code == OFFLINE_INVALID;
        status = error_set(err, STATUS_FAILED_PRECONDITION, "%s", result.err.len ? result.err.data : "coveyd failed");
    } else if (reply) {
        *reply = json_loadb(result.out.data ? result.out.data : "", result.out.len, 0, NULL);
        if (!*reply)
            status = error_set(err, STATUS_INTERNAL, "coveyd answered nonsense");
    }
    process_result_free(&result);
    return status;
}

/* Anything but "yes" is no. */
int ask_yes(struct cli *cli, const char *question, const char *aborted, struct error *err)
{
    char *answer;
    int status = cli_ask(cli, question, NULL, &answer, err);
    if (status)
        return error_set(err, STATUS_CANCELLED, "%s", aborted);
    if (strcmp(answer, "yes") != 0)
        status = error_set(err, STATUS_CANCELLED, "%s", aborted);
    free(answer);
    return status;
}

/* ---- edit ---- */

static const char edit_comment[] = "# Other addresses or roles for the members of this cluster; ids and names stay.\n"
                                   "# Stop all members, make the same edit on each of them, then start them again in any order. The own address alone may be changed here only.\n"
                                   "# role is voter, stand-by or spare; at least two voters (one in a cluster of two).\n\n";

static int edit_once(struct cli *cli, const char *text, bool *invalid, struct error *err)
{
    static const char *const verb[] = {"edit", NULL};
    json_t *document = yaml_parse(text, strlen(text), err);
    *invalid = !document;
    if (!document)
        return (int)err->code;
    char *json = json_dumps(document, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(document);
    if (!json)
        return error_set(err, STATUS_INVALID_ARGUMENT, "cannot encode the document");
    int status = offline_run(cli, verb, json, NULL, invalid, err);
    free(json);
    return status;
}

int run_admin_cluster_edit(struct cli *cli, struct error *err)
{
    static const char *const check[] = {"edit-check", NULL};
    struct buf text = {0};
    int status = offline_run(cli, check, NULL, NULL, NULL, err);
    if (!status && cli_stdin_is_terminal(cli)) {
        buf_puts(&text, edit_comment);
        status = raft_document(cli, &text, err);
    }
    for (bool again = !status; again;) {
        char *edited;
        bool invalid = false;
        again = false;
        status = cli_edit(cli, text.data ? text.data : "", &edited, err);
        if (status)
            break;
        status = edit_once(cli, edited, &invalid, err);
        if (status && invalid) {
            char *line = NULL;
            fprintf(stderr, "Config validation error: %s\n", err->text);
            status = cli_ask(cli, "Press enter to open the editor again or ctrl+c to abort change\n", NULL, &line, err); /* EOF when input was piped */
            free(line);
            again = !status;
            buf_free(&text);
            buf_puts(&text, edited);
        }
        free(edited);
    }
    buf_free(&text);
    return status;
}

/* ---- one member moves ---- */

int run_admin_cluster_set_address(struct cli *cli, struct error *err)
{
    const char *const verb[] = {"set-address", cli->argv[0], NULL};
    int status = offline_run(cli, verb, NULL, NULL, NULL, err);
    if (!status)
        cli_say(cli, "Start the daemon of this member: it tells the others where it is.\n");
    return status;
}

/* ---- recovery from loss of quorum ---- */

static const char recover_warning[] =
    "Use this only when a majority of the database members is lost for good and cannot be started again.\n"
    "\n"
    "This server becomes the only database member of the cluster, with the copy that it has. What was written shortly before the loss\n"
    "and had not reached this server is gone, so choose a member that \"list-database\" names; \"covey admin cluster rescue\" finds the\n"
    "one that has most. Members declared lost stay listed until they are removed by force. Should one of them be started again, its\n"
    "copy of the database is set aside and made anew from this one.\n"
    "\n";

int run_admin_cluster_recover(struct cli *cli, struct error *err)
{
    static const char *const check[] = {"recover-check", NULL}, *const verb[] = {"recover", NULL};
    int status = offline_run(cli, check, NULL, NULL, NULL, err);
    if (!status && !cli_switch(cli, "quiet")) {
        printf("%s", recover_warning);
        status = ask_yes(cli, "Do you want to proceed? (yes/no): ", "Recover operation aborted", err);
    }
    return status ? status : offline_run(cli, verb, NULL, NULL, NULL, err);
}

/* ---- stale Raft entries ---- */

int run_admin_cluster_remove_raft_node(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    if (!cli->argc) {
        command_help(cli, cli->command->path, stderr);
        return error_set(err, STATUS_INVALID_ARGUMENT, "Missing required arguments");
    }
    int status = STATUS_OK;
    if (!cli_switch(cli, "quiet")) {
        printf("Use this only for a member that is in no list any more while the database still counts it (see \"list-database\").\n"
               "A member that is listed is removed by \"cluster remove\" instead.\n\n");
        status = ask_yes(cli, "Do you want to proceed? (yes/no): ", "Remove raft node operation aborted", err);
    }
    const struct covey_options options = {.timeout_ms = CALL_MS};
    if (!status)
        status = cli_local(cli, &client, err);
    return status ? status : client_call_options(client, "Recovery/RemoveRaftNode", json_pack("{s:s}", "address", cli->argv[0]), NULL, NULL, &options, err);
}
