/* cluster …: members and join tokens. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

enum { CERTIFICATE_BYTES_MAX = 1 << 20 };

static char *join_texts(const json_t *list, const char *separator)
{
    struct buf text = {0};
    size_t index;
    const json_t *item;
    json_array_foreach(list, index, item) buf_printf(&text, "%s%s", index ? separator : "", json_string_value(item));
    return buf_take(&text);
}

int cluster_needed(struct cli *cli, struct covey_client *client, struct error *err)
{
    json_t *cluster;
    int status = cli_call(cli, client, "Cluster/GetCluster", NULL, &cluster, err);
    if (status)
        return status;
    bool enabled = json_is_true(json_object_get(cluster, "enabled"));
    json_decref(cluster);
    return enabled ? STATUS_OK : error_set(err, STATUS_FAILED_PRECONDITION, "LXD server isn't part of a cluster");
}

int run_cluster_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cluster_needed(cli, client, err);
    json_t *reply;
    if (!status)
        status = cli_call(cli, client, "Cluster/ListMembers", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"NAME", "URL", "ROLES", "ARCHITECTURE", "FAILURE DOMAIN", "DESCRIPTION", "STATE", "MESSAGE"};
    struct table table;
    table_init(&table, headers, 8);
    bool csv = str_eq(cli_flag(cli, "format"), "csv");
    const json_t *members = json_object_get(reply, "members"), *member;
    size_t index;
    json_array_foreach(members, index, member)
    {
        char *roles = join_texts(json_object_get(member, "roles"), csv ? "," : "\n");
        char *state = text_upper(json_text(member, "status"));
        table_add(&table, json_text(member, "server_name"), json_text(member, "url"), roles, json_text(member, "architecture"),
                  json_text(member, "failure_domain"), json_text(member, "description"), state, json_text(member, "message"));
        free(state);
        free(roles);
    }
    table_sort(&table);
    status = cli_print(cli, &table, members, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

int cluster_member_get(struct cli *cli, struct covey_client **client, json_t **member, char **etag, struct error *err)
{
    char *name;
    int status = cli_resolve(cli, cli->argv[0], client, &name, err);
    if (status)
        return status;
    if (!*name)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Missing cluster member name");
    else
        status = cli_call_etag(cli, *client, "Cluster/GetMember", json_pack("{s:s}", "name", name), member, etag, err);
    free(name);
    return status;
}

int run_cluster_show(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *member;
    int status = cluster_member_get(cli, &client, &member, NULL, err);
    if (status)
        return status;
    status = cli_print_yaml(member);
    json_decref(member);
    return status;
}

int run_cluster_get(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *member;
    int status = cluster_member_get(cli, &client, &member, NULL, err);
    if (status)
        return status;
    const json_t *config = json_object_get(member, "config");
    if (json_object_get(config, cli->argv[1]))
        printf("%s\n", json_text(config, cli->argv[1]));
    else
        status = error_set(err, STATUS_NOT_FOUND, "The key \"%s\" does not exist on cluster member \"%s\"", cli->argv[1], cli->argv[0]);
    json_decref(member);
    return status;
}

/* Writes the changed config of a member back; `changes` holds texts, null removes. Consumed. */
static int change_member(struct cli *cli, json_t *changes, struct error *err)
{
    struct covey_client *client;
    json_t *member;
    char *etag;
    int status = cluster_member_get(cli, &client, &member, &etag, err);
    if (status) {
        json_decref(changes);
        return status;
    }
    json_t *config = json_object_get(member, "config"), *value;
    const char *key;
    json_object_foreach(changes, key, value)
    {
        if (json_is_null(value) && !json_object_get(config, key))
            status = error_set(err, STATUS_NOT_FOUND, "The key \"%s\" does not exist on cluster member \"%s\"", key, cli->argv[0]);
        else if (json_is_null(value))
            json_object_del(config, key);
        else
            json_object_set(config, key, value);
    }
    json_object_set_new(member, "name", json_string(json_text(member, "server_name")));
    if (etag)
        json_object_set_new(member, "if_match", json_string(etag));
    if (status)
        json_decref(member);
    else
        status = cli_call(cli, client, "Cluster/UpdateMember", member, NULL, err);
    free(etag);
    json_decref(changes);
    return status;
}

int run_cluster_set(struct cli *cli, struct error *err)
{
    bool two_words = cli->argc == 3 && !strchr(cli->argv[1], '='); /* the old form: <key> <value> */
    json_t *changes = two_words ? json_pack("{s:s}", cli->argv[1], cli->argv[2]) : cli_pairs(cli->argv + 1, cli->argc - 1, err);
    return changes ? change_member(cli, changes, err) : (int)err->code;
}

int run_cluster_unset(struct cli *cli, struct error *err) { return change_member(cli, json_pack("{s:n}", cli->argv[1]), err); }

int run_cluster_add(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    const char *given = cli_flag(cli, "name");
    int status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, &name, err);
    if (status)
        return status;
    if (given && *name && strcmp(given, name) != 0)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Cluster member name was provided as both a flag and as an argument");
    if (!status && given) {
        free(name);
        name = xstrdup(given);
    }
    if (!status && !*name) {
        free(name);
        status = cli_ask(cli, "Please provide cluster member name: ", NULL, &name, err);
    }
    json_t *operation = NULL;
    char *token = NULL;
    if (!status)
        status = cli_call(cli, client, "Cluster/CreateJoinToken", json_pack("{s:s}", "server_name", name), &operation, err);
    if (!status)
        status = token_encode(operation, &token, err);
    if (!status) {
        cli_say(cli, "Member %s join token:\n", name);
        printf("%s\n", token);
    }
    free(token);
    free(name);
    json_decref(operation);
    return status;
}

/* The running join token operations, as a new list. */
static int join_tokens(struct cli *cli, struct covey_client *client, json_t **tokens, struct error *err)
{
    json_t *reply;
    *tokens = json_array();
    int status = cli_call(cli, client, "Operations/ListOperations", json_pack("{s:s,s:i}", "project", "default", "recursion", 1), &reply, err);
    if (status)
        return status;
    size_t index;
    json_t *operation;
    json_array_foreach(json_object_get(json_object_get(reply, "operations"), "running"), index, operation)
    {
        if (strcmp(json_text(operation, "class"), "token") == 0 && *json_text(json_object_get(operation, "metadata"), "serverName"))
            json_array_append(*tokens, operation);
    }
    json_decref(reply);
    return STATUS_OK;
}

int run_cluster_list_tokens(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *tokens = NULL;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cluster_needed(cli, client, err);
    if (!status)
        status = join_tokens(cli, client, &tokens, err);
    static const char *const headers[] = {"NAME", "TOKEN", "EXPIRES AT"};
    struct table table;
    table_init(&table, headers, 3);
    json_t *raw = json_array();
    bool yaml = str_eq(cli_flag(cli, "format"), "yaml");
    size_t index;
    const json_t *operation;
    json_array_foreach(tokens, index, operation)
    {
        const json_t *metadata = json_object_get(operation, "metadata");
        char *token, expires[CLI_SHORT_TIME_SIZE];
        if (token_encode(operation, &token, NULL))
            continue; /* not a token that anybody could use */
        cli_minute_time(json_text(metadata, "expiresAt"), expires);
        table_add(&table, json_text(metadata, "serverName"), token, expires);
        json_array_append_new(raw, json_pack("{s:s,s:s,s:s}", yaml ? "servername" : "ServerName", json_text(metadata, "serverName"),
                                             yaml ? "token" : "Token", token, yaml ? "expiresat" : "ExpiresAt", expires));
        free(token);
    }
    table_sort(&table);
    if (!status)
        status = cli_print(cli, &table, raw, err);
    table_free(&table);
    json_decref(raw);
    json_decref(tokens);
    return status;
}

int run_cluster_revoke_token(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *tokens = NULL;
    char *name = NULL, *id = NULL;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cluster_needed(cli, client, err);
    if (!status)
        status = join_tokens(cli, client, &tokens, err);
    size_t index;
    const json_t *operation;
    json_array_foreach(tokens, index, operation)
    {
        if (!id && strcmp(json_text(json_object_get(operation, "metadata"), "serverName"), name) == 0)
            id = xstrdup(json_text(operation, "id"));
    }
    const char *remote = cli_remote_name(cli, cli->argv[0]);
    if (!status && !id)
        status = error_set(err, STATUS_NOT_FOUND, "No cluster join token for member %s on remote: %s", name, remote);
    if (!status)
        status = client_cancel(client, id, err);
    if (!status)
        cli_say(cli, "Cluster join token for %s:%s deleted\n", remote, name);
    json_decref(tokens);
    free(id);
    free(name);
    return status;
}

int run_cluster_enable(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    const char *name = cli->argv[cli->argc - 1];
    int status = cli_resolve(cli, cli->argc > 1 ? cli->argv[0] : NULL, &client, NULL, err);
    json_t *cluster = NULL;
    if (!status)
        status = cli_call(cli, client, "Cluster/GetCluster", NULL, &cluster, err);
    if (status)
        return status;
    if (json_is_true(json_object_get(cluster, "enabled")))
        status = error_set(err, STATUS_FAILED_PRECONDITION, "This LXD server is already clustered");
    json_decref(cluster);
    if (status)
        return status;
    status = cli_call_wait(cli, client, "Cluster/UpdateCluster", json_pack("{s:s,s:b}", "server_name", name, "enabled", 1), NULL, err);
    if (status)
        return error_prefix(err, "Failed to configure cluster");
    cli_say(cli, "Clustering enabled\n");
    return STATUS_OK;
}

int run_cluster_remove(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    bool force = cli_switch(cli, "force"), sure = true;
    if (!status && force && !cli_switch(cli, "yes")) {
        char *question = xasprintf("Removal by force is for members that will not come back. The cluster forgets %s with all its instances,\n"
                                   "volumes and the images that only it holds; its own disk must be wiped before it can be used again.\n\n"
                                   "Remove %s by force? (yes/no): ", name, name);
        char *answer;
        status = cli_ask(cli, question, "no", &answer, err);
        free(question);
        sure = !status && strcasecmp(answer, "yes") == 0;
        if (!status)
            free(answer);
        if (!status && !sure)
            status = error_set(err, STATUS_CANCELLED, "User aborted delete operation");
    }
    if (!status)
        status = cli_call(cli, client, "Cluster/RemoveMember", json_pack("{s:s,s:b}", "name", name, "force", force), NULL, err);
    if (!status)
        cli_say(cli, "Member %s removed\n", name);
    free(name);
    return status;
}

int run_cluster_rename(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "Cluster/RenameMember", json_pack("{s:s,s:s}", "name", name, "server_name", cli->argv[1]), NULL, err);
    if (!status)
        cli_say(cli, "Member %s renamed to %s\n", name, cli->argv[1]);
    free(name);
    return status;
}

int run_cluster_update_certificate(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    const char *cert_path = cli->argv[cli->argc - 2], *key_path = cli->argv[cli->argc - 1];
    const char *remote = cli->argc > 2 ? cli->argv[0] : NULL;
    struct buf cert = {0}, key = {0};
    int status = cli_resolve(cli, remote, &client, NULL, err);
    if (!status && file_read(cert_path, CERTIFICATE_BYTES_MAX, &cert, NULL))
        status = error_set(err, STATUS_NOT_FOUND, "Could not find certificate file path: %s", cert_path);
    if (!status && file_read(key_path, CERTIFICATE_BYTES_MAX, &key, NULL))
        status = error_set(err, STATUS_NOT_FOUND, "Could not find certificate key file path: %s", key_path);
    if (!status)
        status = cli_call(cli, client, "Cluster/UpdateClusterCertificate",
                          json_pack("{s:s%,s:s%}", "cluster_certificate", cert.data ? cert.data : "", cert.len, "cluster_certificate_key",
                                    key.data ? key.data : "", key.len),
                          NULL, err);
    if (!status)
        cli_say(cli, "Successfully updated cluster certificates for remote %s\n", cli_remote_name(cli, remote));
    buf_free(&cert);
    buf_free(&key);
    return status;
}
