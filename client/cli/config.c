/* config …: keys of servers and instances, and the trust store. */
#include "noun.h"
#include <stdlib.h>
#include <string.h>

enum { CERTIFICATE_BYTES_MAX = 1 << 20 };

/* Server keys always hold a dot, instance names never. "remote:" alone means the server there. The value in key=value may hold colons. */
static bool names_instance(const char *arg)
{
    const char *colon = strchr(arg, ':');
    if (colon && memchr(arg, '=', (size_t)(colon - arg)))
        return false;
    const char *name = colon ? colon + 1 : arg;
    return *name && !strchr(name, '.') && !strchr(name, '=');
}

static int get_server_config(struct cli *cli, struct covey_client *client, json_t **config, struct error *err)
{
    json_t *server;
    *config = NULL;
    int status = cli_call(cli, client, "Server/GetServer", NULL, &server, err);
    if (status)
        return status;
    json_t *found = json_object_get(server, "config");
    *config = json_is_object(found) ? json_incref(found) : json_object();
    json_decref(server);
    return STATUS_OK;
}

static int get_instance(struct cli *cli, struct covey_client *client, const char *name, json_t **instance, char **etag, struct error *err)
{
    return cli_call_etag(cli, client, "Instances/GetInstance", json_pack("{s:s}", "name", name), instance, etag, err);
}

static void print_value(const json_t *value)
{
    if (json_is_string(value))
        printf("%s\n", json_string_value(value));
    else
        printf("%s\n", json_is_true(value) ? "true" : "");
}

/* The remote and instance argument, if the first argument is one; *rest = index of what follows. */
static int split_target(struct cli *cli, bool target_given, struct covey_client **client, char **instance, int *rest, struct error *err)
{
    *rest = target_given ? 1 : 0;
    *instance = NULL;
    char *name;
    int status = cli_resolve(cli, target_given ? cli->argv[0] : NULL, client, &name, err);
    if (status)
        return status;
    if (*name)
        *instance = name;
    else
        free(name);
    return STATUS_OK;
}

int run_config_get(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int rest;
    int status = split_target(cli, cli->argc > 1, &client, &name, &rest, err);
    if (status)
        return status;
    json_t *config = NULL, *instance = NULL;
    const char *key = cli->argv[rest];
    if (name) {
        status = get_instance(cli, client, name, &instance, NULL, err);
        config = json_incref(json_object_get(instance, cli_switch(cli, "expanded") ? "expanded_config" : "config"));
    } else {
        status = get_server_config(cli, client, &config, err);
    }
    if (!status)
        print_value(json_object_get(config, key));
    json_decref(config);
    json_decref(instance);
    free(name);
    return status;
}

/* Changes an instance's config: texts are set, null removes. */
static int change_instance(struct cli *cli, struct covey_client *client, const char *name, const json_t *changes, struct error *err)
{
    json_t *instance;
    char *etag;
    int status = get_instance(cli, client, name, &instance, &etag, err);
    if (status)
        return status;
    json_t *config = json_object_get(instance, "config"), *value;
    const char *key;
    json_object_foreach((json_t *)changes, key, value)
    {
        if (!json_is_null(value))
            json_object_set(config, key, value);
        else if (json_object_del(config, key))
            status = error_set(err, STATUS_NOT_FOUND, "Can't unset key '%s', it's not currently set", key);
    }
    if (etag)
        json_object_set_new(instance, "if_match", json_string(etag));
    free(etag);
    if (!status)
        return cli_call_wait(cli, client, "Instances/UpdateInstance", instance, NULL, err);
    json_decref(instance);
    return status;
}

static int change_server(struct cli *cli, struct covey_client *client, const json_t *changes, struct error *err)
{
    json_t *config = json_object(), *value;
    const char *key;
    json_object_foreach((json_t *)changes, key, value) json_object_set_new(config, key, json_string(json_is_null(value) ? "" : json_string_value(value)));
    return cli_call(cli, client, "Server/UpdateServer", json_pack("{s:o,s:s}", "config", config, "update_mask", "config"), NULL, err);
}

int run_config_set(struct cli *cli, struct error *err)
{
    bool first_is_target = names_instance(cli->argv[0]) || (strchr(cli->argv[0], ':') && !strchr(cli->argv[0], '=') && !strchr(cli->argv[0], '.'));
    struct covey_client *client;
    char *name;
    int rest;
    int status = split_target(cli, first_is_target, &client, &name, &rest, err);
    if (status)
        return status;
    json_t *changes = json_object();
    int left = cli->argc - rest;
    if (left == 0)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Missing key=value");
    else if (left == 2 && !strchr(cli->argv[rest], '=')) /* the older form: key value */
        json_object_set_new(changes, cli->argv[rest], json_string(cli->argv[rest + 1]));
    else
        for (int i = rest; i < cli->argc && !status; i++)
            status = cli_pair(changes, cli->argv[i], err);
    if (!status)
        status = name ? change_instance(cli, client, name, changes, err) : change_server(cli, client, changes, err);
    json_decref(changes);
    free(name);
    return status;
}

int run_config_unset(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int rest;
    int status = split_target(cli, cli->argc > 1, &client, &name, &rest, err);
    if (status)
        return status;
    json_t *changes = json_pack("{s:n}", cli->argv[rest]);
    status = name ? change_instance(cli, client, name, changes, err) : change_server(cli, client, changes, err);
    json_decref(changes);
    free(name);
    return status;
}

int run_config_show(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int rest;
    int status = split_target(cli, cli->argc > 0, &client, &name, &rest, err);
    if (status)
        return status;
    json_t *shown = NULL, *instance = NULL;
    if (name) {
        bool expanded = cli_switch(cli, "expanded");
        status = get_instance(cli, client, name, &instance, NULL, err);
        if (!status)
            shown = json_pack("{s:O?,s:O?,s:O?,s:O?,s:O?,s:O?,s:O?}", "architecture", json_object_get(instance, "architecture"), "config",
                              json_object_get(instance, expanded ? "expanded_config" : "config"), "devices",
                              json_object_get(instance, expanded ? "expanded_devices" : "devices"), "ephemeral", json_object_get(instance, "ephemeral"),
                              "profiles", json_object_get(instance, "profiles"), "stateful", json_object_get(instance, "stateful"), "description",
                              json_object_get(instance, "description"));
    } else {
        json_t *config;
        status = get_server_config(cli, client, &config, err);
        if (!status)
            shown = json_pack("{s:o}", "config", config);
    }
    if (!status)
        status = cli_print_yaml(shown);
    json_decref(shown);
    json_decref(instance);
    free(name);
    return status;
}

/* ---- trust ---- */

static json_t *split_list(const char *text)
{
    json_t *list = json_array();
    while (text && *text) {
        size_t len = strcspn(text, ",");
        if (len)
            json_array_append_new(list, json_stringn(text, len));
        text += len + (text[len] == ',');
    }
    return list;
}

static int add_token(struct cli *cli, struct covey_client *client, json_t *request, struct error *err)
{
    json_t *reply, *operation;
    char *token = NULL, *name = NULL;
    if (!*json_text(request, "name")) {
        int status = cli_ask(cli, "Please provide client name: ", NULL, &name, err);
        if (status) {
            json_decref(request);
            return status;
        }
        json_object_set_new(request, "name", json_string(name));
    }
    free(name);
    name = xstrdup(json_text(request, "name"));
    json_object_set_new(request, "token", json_true());
    int status = cli_call(cli, client, "Certificates/CreateCertificate", request, &reply, err);
    if (!status) {
        operation = json_object_get(reply, "operation");
        status = token_encode_trust(operation, &token, err);
        json_decref(reply);
    }
    if (!status) {
        cli_say(cli, "Client %s certificate add token:\n", name);
        printf("%s\n", token);
    }
    free(token);
    free(name);
    return status;
}

int run_trust_add(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    const char *file = NULL, *remote = NULL;
    for (int i = 0; i < cli->argc; i++) {
        size_t len = strlen(cli->argv[i]);
        if (len && cli->argv[i][len - 1] == ':')
            remote = cli->argv[i];
        else
            file = cli->argv[i];
    }
    int status = cli_resolve(cli, remote, &client, NULL, err);
    if (status)
        return status;
    const char *type = cli_flag(cli, "certificate-type"), *name = cli_flag(cli, "name");
    json_t *request = json_pack("{s:s,s:s,s:b,s:o}", "type", type ? type : "client", "name", name ? name : "", "restricted",
                                cli_switch(cli, "restricted"), "projects", split_list(cli_flag(cli, "projects")));
    if (!file)
        return add_token(cli, client, request, err);
    struct buf pem = {0};
    char *der = NULL, fingerprint[FINGERPRINT_SIZE];
    status = file_read(file, CERTIFICATE_BYTES_MAX, &pem, err);
    if (!status)
        status = cert_check_pem(pem.data ? pem.data : "", fingerprint, NULL, err);
    if (!status && !(der = cert_pem_to_base64_der(pem.data)))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "%s is not a PEM certificate", file);
    buf_free(&pem);
    if (status) {
        json_decref(request);
        return status;
    }
    const char *slash = strrchr(file, '/');
    if (!name)
        json_object_set_new(request, "name", json_string(slash ? slash + 1 : file));
    json_object_set_new(request, "certificate", json_string(der));
    free(der);
    return cli_call(cli, client, "Certificates/CreateCertificate", request, NULL, err);
}

int run_trust_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cli_call(cli, client, "Certificates/ListCertificates", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"TYPE", "NAME", "FINGERPRINT", "RESTRICTED", "PROJECTS"};
    struct table table;
    table_init(&table, headers, 5);
    const json_t *list = json_object_get(reply, "certificates"), *item;
    size_t index;
    json_array_foreach(list, index, item)
    {
        char *print = xasprintf("%.12s", json_text(item, "fingerprint"));
        struct buf projects = {0};
        size_t n;
        const json_t *project;
        json_array_foreach(json_object_get(item, "projects"), n, project) buf_printf(&projects, "%s%s", n ? "\n" : "", json_string_value(project));
        table_add(&table, json_text(item, "type"), json_text(item, "name"), print, json_is_true(json_object_get(item, "restricted")) ? "yes" : "no",
                  projects.data ? projects.data : "");
        buf_free(&projects);
        free(print);
    }
    table_sort(&table);
    status = cli_print(cli, &table, list, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

static const struct noun certificates = {.service = "Certificates", .type = "Certificate", .key = "fingerprint", .label = "Certificate"};

int run_trust_show(struct cli *cli, struct error *err) { return noun_show(cli, &certificates, err); }

int run_trust_remove(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *print;
    int status = cli_resolve(cli, cli->argv[0], &client, &print, err);
    if (status)
        return status;
    const char *wanted = cli->argc > 1 ? cli->argv[1] : print;
    status = cli_call(cli, client, "Certificates/DeleteCertificate", json_pack("{s:s}", "fingerprint", wanted), NULL, err);
    free(print);
    return status;
}

/* The running operations that are client certificate tokens. */
static int trust_tokens(struct cli *cli, struct covey_client *client, json_t **tokens, struct error *err)
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
        if (strcmp(json_text(operation, "class"), "token") == 0 && json_is_object(json_object_get(json_object_get(operation, "metadata"), "request")))
            json_array_append(*tokens, operation);
    }
    json_decref(reply);
    return STATUS_OK;
}

int run_trust_list_tokens(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *tokens = NULL;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = trust_tokens(cli, client, &tokens, err);
    static const char *const headers[] = {"NAME", "TOKEN", "EXPIRES AT"};
    struct table table;
    table_init(&table, headers, 3);
    json_t *raw = json_array();
    size_t index;
    const json_t *operation;
    json_array_foreach(tokens, index, operation)
    {
        const json_t *metadata = json_object_get(operation, "metadata");
        const char *name = json_text(json_object_get(metadata, "request"), "name"), *expires = json_text(metadata, "expiresAt");
        char *token;
        if (token_encode_trust(operation, &token, NULL))
            continue; /* nobody could use it */
        table_add(&table, name, token, expires);
        json_array_append_new(raw, json_pack("{s:s,s:s,s:s}", "ClientName", name, "Token", token, "ExpiresAt", expires));
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

int run_trust_revoke_token(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *tokens = NULL;
    char *name = NULL;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = trust_tokens(cli, client, &tokens, err);
    bool found = false;
    size_t index;
    const json_t *operation;
    json_array_foreach(tokens, index, operation)
    {
        if (status || found || strcmp(json_text(json_object_get(json_object_get(operation, "metadata"), "request"), "name"), name) != 0)
            continue;
        found = true;
        status = client_cancel(client, json_text(operation, "id"), err);
    }
    if (!status && !found)
        status = error_set(err, STATUS_NOT_FOUND, "No certificate add token for client %s on remote: %s", name, cli_remote_name(cli, cli->argv[0]));
    if (!status)
        cli_say(cli, "Certificate add token for %s deleted\n", name);
    json_decref(tokens);
    free(name);
    return status;
}
