/* Remotes: ~/.config/covey/config.yml (or $COVEY_CONF, as lxc also $LXD_CONF), the servers' pinned certificates in servercerts/<name>.crt, the own
 * client certificate in client.crt and client.key, made when first needed. Connections are opened once per command and remote. */
#include "cli.h"
#include <errno.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CONFIG_BYTES_MAX = 1 << 20, CERTIFICATE_TIMEOUT_MS = 10 * 1000 };

static char *config_path(const char *file)
{
    const char *dir = getenv("COVEY_CONF");
    if (!str_empty(dir))
        return xasprintf("%s/%s", dir, file);
    const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    if (!str_empty(base))
        return xasprintf("%s/covey/%s", base, file);
    const struct passwd *user = str_empty(home) ? getpwuid(getuid()) : NULL;
    if (user)
        home = user->pw_dir;
    return xasprintf("%s/.config/covey/%s", home ? home : "/root", file);
}

static int make_config_dir(struct error *err)
{
    char *dir = config_path("servercerts");
    int status = dir_make(dir, 0700, err);
    free(dir);
    return status;
}

static int load(struct cli *cli, struct error *err)
{
    if (cli->remotes)
        return STATUS_OK;
    char *path = config_path("config.yml");
    struct buf text = {0};
    int status = file_read(path, CONFIG_BYTES_MAX, &text, err);
    if (status == STATUS_NOT_FOUND) {
        cli->remotes = json_pack("{s:s,s:{}}", "default-remote", "local", "remotes");
        status = STATUS_OK;
    } else if (!status) {
        cli->remotes = yaml_parse(text.data ? text.data : "", text.len, err);
        if (!json_is_object(cli->remotes) || !json_is_object(json_object_get(cli->remotes, "remotes"))) {
            json_decref(cli->remotes);
            cli->remotes = NULL;
            status = error_set(err, STATUS_INVALID_ARGUMENT, "%s: expected the keys default-remote and remotes", path);
        }
    }
    buf_free(&text);
    free(path);
    return status;
}

static int save(struct cli *cli, struct error *err)
{
    int status = make_config_dir(err);
    if (status)
        return status;
    struct buf text = {0};
    yaml_write(cli->remotes, &text);
    char *path = config_path("config.yml");
    status = file_write_atomic(path, text.data, text.len, 0600, err);
    free(path);
    buf_free(&text);
    return status;
}

int remote_identity(struct identity *identity, struct error *err)
{
    int status = make_config_dir(err);
    if (status)
        return status;
    char *cert = config_path("client.crt"), *key = config_path("client.key");
    char host[256] = "";
    (void)gethostname(host, sizeof(host) - 1); /* only a label */
    const struct passwd *user = getpwuid(getuid());
    char *name = xasprintf("%s@%s", user ? user->pw_name : "client", host);
    status = identity_load_or_create(cert, key, name, identity, err);
    free(name);
    free(cert);
    free(key);
    return status;
}

const char *cli_state_dir(const struct cli *cli)
{
    const char *dir = cli_flag(cli, "dir");
    bool other_name = strcmp(cli->program, "covey") != 0;
    if (str_empty(dir) && other_name)
        dir = getenv("LXD_DIR");
    if (str_empty(dir) && other_name)
        dir = getenv("INCUS_DIR");
    if (str_empty(dir))
        dir = getenv("COVEY_DIR");
    return str_empty(dir) ? "/var/lib/covey" : dir;
}

static int connect_remote(struct cli *cli, const char *name, struct covey_client **client, struct error *err)
{
    const json_t *remote = json_object_get(json_object_get(cli->remotes, "remotes"), name);
    if (!remote)
        return error_set(err, STATUS_NOT_FOUND, "The remote \"%s\" doesn't exist", name);
    struct identity identity = {0};
    int status = remote_identity(&identity, err);
    if (status)
        return status;
    char *file = xasprintf("servercerts/%s.crt", name);
    char *path = config_path(file);
    struct buf pem = {0};
    char fingerprint[FINGERPRINT_SIZE];
    status = file_read(path, CONFIG_BYTES_MAX, &pem, err);
    if (!status)
        status = cert_fingerprint(pem.data ? pem.data : "", fingerprint, err);
    if (!status)
        *client = client_connect_tls(json_text(remote, "addr"), fingerprint, &identity);
    buf_free(&pem);
    free(path);
    free(file);
    identity_free(&identity);
    return status;
}

int cli_connect(struct cli *cli, const char *remote, struct covey_client **client, struct error *err)
{
    *client = NULL;
    int status = load(cli, err);
    if (status)
        return status;
    if (str_empty(remote))
        remote = json_text(cli->remotes, "default-remote");
    if (cli_switch(cli, "force-local") || str_empty(remote))
        remote = "local";
    for (size_t i = 0; i < cli->connection_count; i++)
        if (strcmp(cli->connections[i].remote, remote) == 0) {
            *client = cli->connections[i].client;
            return STATUS_OK;
        }
    if (cli->connection_count == CLI_REMOTES_MAX)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d remotes in one command", CLI_REMOTES_MAX);
    status = strcmp(remote, "local") == 0 ? client_connect_local(cli_state_dir(cli), client, err) : connect_remote(cli, remote, client, err);
    if (status)
        return status;
    cli->connections[cli->connection_count++] = (struct cli_connection){xstrdup(remote), *client};
    return STATUS_OK;
}

int cli_local(struct cli *cli, struct covey_client **client, struct error *err) { return cli_connect(cli, "local", client, err); }

int cli_resolve(struct cli *cli, const char *arg, struct covey_client **client, char **name, struct error *err)
{
    if (name)
        *name = NULL;
    const char *colon = arg ? strchr(arg, ':') : NULL;
    char *remote = colon ? xasprintf("%.*s", (int)(colon - arg), arg) : NULL;
    int status = cli_connect(cli, remote, client, err);
    free(remote);
    if (!status && name)
        *name = xstrdup(colon ? colon + 1 : arg ? arg : "");
    return status;
}

/* For texts: the remote that `arg` names. Valid as long as the configuration is. */
const char *cli_remote_name(struct cli *cli, const char *arg)
{
    const char *colon = arg ? strchr(arg, ':') : NULL;
    for (size_t i = 0; colon && i < cli->connection_count; i++)
        if (strlen(cli->connections[i].remote) == (size_t)(colon - arg) && strncmp(cli->connections[i].remote, arg, (size_t)(colon - arg)) == 0)
            return cli->connections[i].remote;
    const char *name = json_text(cli->remotes, "default-remote");
    return *name ? name : "local";
}

void cli_close(struct cli *cli)
{
    for (size_t i = 0; i < cli->connection_count; i++) {
        covey_close(cli->connections[i].client);
        free(cli->connections[i].remote);
    }
    cli->connection_count = 0;
    json_decref(cli->remotes);
    cli->remotes = NULL;
    free(cli->flags);
    free(cli->argv);
    cli->flags = NULL;
    cli->argv = NULL;
}

json_t *remote_names(struct cli *cli)
{
    json_t *names = json_array();
    struct error e = ERROR_INIT;
    json_array_append_new(names, json_string("local"));
    const char *name;
    json_t *remote;
    if (!load(cli, &e))
        json_object_foreach(json_object_get(cli->remotes, "remotes"), name, remote) json_array_append_new(names, json_string(name));
    return names;
}

/* ---- remote add ---- */

static bool remote_name_valid(const char *name)
{
    for (const char *c = name; *c; c++)
        if (*c == ':' || *c == '/' || *c <= ' ')
            return false;
    return *name && strcmp(name, "local") != 0 && name[0] != '.';
}

/* Decides whether the certificate that the server shows is the right one. */
static int accept_certificate(struct cli *cli, const char *address, const char *fingerprint, const json_t *token, struct error *err)
{
    if (token) {
        if (strcmp(json_text(token, "fingerprint"), fingerprint) != 0)
            return error_set(err, STATUS_FAILED_PRECONDITION, "Certificate fingerprint mismatch between certificate token and server \"%s\"", address);
        return STATUS_OK;
    }
    printf("Certificate fingerprint: %s\n", fingerprint);
    if (cli_switch(cli, "accept-certificate"))
        return STATUS_OK;
    char *answer;
    int status = cli_ask(cli, "ok (y/n/[fingerprint])? ", NULL, &answer, err);
    if (status)
        return status;
    bool yes = false;
    if (parse_bool(answer, &yes))
        yes = strcmp(answer, "y") == 0 || strcmp(answer, "Y") == 0 || strcmp(answer, fingerprint) == 0;
    free(answer);
    return yes ? STATUS_OK : error_set(err, STATUS_CANCELLED, "Server certificate NACKed by user");
}

/* Makes the server trust our certificate, unless it does already. */
static int log_in(struct cli *cli, struct covey_client *client, const char *secret, struct error *err)
{
    json_t *server;
    int status = client_call(client, "Server/GetServer", NULL, &server, err);
    if (status)
        return status;
    bool trusted = strcmp(json_text(server, "auth"), "trusted") == 0;
    json_decref(server);
    if (trusted)
        return STATUS_OK;
    char *asked = NULL;
    if (str_empty(secret)) {
        status = cli_ask_password(cli, "Trust password (or token): ", &asked, err);
        if (status)
            return status;
        secret = asked;
    }
    json_t *token = token_decode_trust(secret);
    status = client_call(client, "Certificates/CreateCertificate", json_pack("{s:s,s:s}", "type", token ? "" : "client", "password", secret), NULL, err);
    json_decref(token);
    free(asked);
    if (status == STATUS_ALREADY_EXISTS)
        status = STATUS_OK;
    if (!status)
        status = client_call(client, "Server/GetServer", NULL, &server, err);
    if (status)
        return status;
    trusted = strcmp(json_text(server, "auth"), "trusted") == 0;
    json_decref(server);
    return trusted ? STATUS_OK : error_set(err, STATUS_PERMISSION_DENIED, "Server doesn't trust us after authentication");
}

/* Tries one address; on success the certificate is pinned and the remote saved. */
static int add_address(struct cli *cli, const char *name, const char *address, const char *secret, const json_t *token, struct error *err)
{
    char *pem;
    char fingerprint[FINGERPRINT_SIZE];
    int status = client_server_certificate(address, CERTIFICATE_TIMEOUT_MS, &pem, fingerprint, err);
    if (status)
        return status;
    status = accept_certificate(cli, address, fingerprint, token, err);
    struct identity identity = {0};
    if (!status)
        status = remote_identity(&identity, err);
    if (!status) {
        struct covey_client *client = client_connect_tls(address, fingerprint, &identity);
        status = log_in(cli, client, secret, err);
        covey_close(client);
    }
    if (!status) {
        char *file = xasprintf("servercerts/%s.crt", name);
        char *path = config_path(file);
        status = file_write_atomic(path, pem, strlen(pem), 0600, err);
        free(path);
        free(file);
    }
    if (!status) {
        json_object_set_new(json_object_get(cli->remotes, "remotes"), name, json_pack("{s:s,s:s}", "addr", address, "protocol", "grpc"));
        status = save(cli, err);
    }
    identity_free(&identity);
    free(pem);
    return status;
}

int run_remote_add(struct cli *cli, struct error *err)
{
    int status = load(cli, err);
    if (status)
        return status;
    const char *name = cli->argv[0], *where = cli->argc > 1 ? cli->argv[1] : NULL;
    const char *secret = cli_flag(cli, "token") ? cli_flag(cli, "token") : cli_flag(cli, "password");
    if (!remote_name_valid(name))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid remote name \"%s\"", name);
    if (json_object_get(json_object_get(cli->remotes, "remotes"), name))
        return error_set(err, STATUS_ALREADY_EXISTS, "Remote %s already exists", name);
    json_t *token = where ? token_decode_trust(where) : NULL;
    if (token) {
        secret = where;
        where = NULL;
    } else if (cli_flag(cli, "token") && !(token = token_decode_trust(cli_flag(cli, "token")))) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid certificate add token");
    }
    if (where || !token) {
        char *address = address_canonical(where ? where : name);
        status = add_address(cli, name, address, secret, token, err);
        free(address);
    } else {
        size_t index;
        const json_t *address;
        status = STATUS_UNAVAILABLE;
        json_array_foreach(json_object_get(token, "addresses"), index, address)
        {
            if (status == STATUS_UNAVAILABLE || status == STATUS_DEADLINE_EXCEEDED)
                status = add_address(cli, name, json_string_value(address), secret, token, err);
        }
    }
    json_decref(token);
    if (!status)
        cli_say(cli, "Client certificate now trusted by server: %s\n", name);
    return status;
}

int run_remote_list(struct cli *cli, struct error *err)
{
    int status = load(cli, err);
    if (status)
        return status;
    static const char *const headers[] = {"NAME", "URL", "PROTOCOL", "AUTH TYPE"};
    struct table table;
    table_init(&table, headers, 4);
    const char *chosen = json_text(cli->remotes, "default-remote"), *name;
    json_t *remote;
    char *unix_url = xasprintf("unix://%s/grpc.socket", cli_state_dir(cli));
    table_add(&table, strcmp(chosen, "local") == 0 ? "local (current)" : "local", unix_url, "grpc", "file access");
    free(unix_url);
    json_object_foreach(json_object_get(cli->remotes, "remotes"), name, remote)
    {
        char *shown = xasprintf("%s%s", name, strcmp(name, chosen) == 0 ? " (current)" : "");
        table_add(&table, shown, json_text(remote, "addr"), "grpc", "tls");
        free(shown);
    }
    table_sort(&table);
    status = cli_print(cli, &table, cli->remotes, err);
    table_free(&table);
    return status;
}

int run_remote_remove(struct cli *cli, struct error *err)
{
    int status = load(cli, err);
    if (status)
        return status;
    const char *name = cli->argv[0];
    if (strcmp(name, "local") == 0)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Remote local is static and cannot be modified");
    if (strcmp(json_text(cli->remotes, "default-remote"), name) == 0)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Can't remove the default remote");
    if (json_object_del(json_object_get(cli->remotes, "remotes"), name))
        return error_set(err, STATUS_NOT_FOUND, "Remote %s doesn't exist", name);
    char *file = xasprintf("servercerts/%s.crt", name);
    char *path = config_path(file);
    if (unlink(path) && errno != ENOENT)
        status = error_errno(err, errno, "cannot remove %s", path);
    free(path);
    free(file);
    return status ? status : save(cli, err);
}

int run_remote_set_default(struct cli *cli, struct error *err)
{
    int status = load(cli, err);
    if (status)
        return status;
    const char *name = cli->argv[0];
    if (strcmp(name, "local") != 0 && !json_object_get(json_object_get(cli->remotes, "remotes"), name))
        return error_set(err, STATUS_NOT_FOUND, "Remote %s doesn't exist", name);
    json_object_set_new(cli->remotes, "default-remote", json_string(name));
    return save(cli, err);
}
