/* admin init: its modes, and the dialogue. The dialogue only gathers a preseed, which is then applied like one that was read. Questions about
 * things that covey lacks (MAAS, Fan, new bridges) are not asked. Main thread. */
#include "cli.h"
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { INIT_CONNECT_MS = 10 * 1000 };
static const char *const sorry = "Invalid input: %s\n\n";

#define ASK(call) do { int ask_status = (call); if (ask_status) return ask_status; } while (0)

/* ---- small questions ---- */

static int ask_text(struct cli *cli, const char *question, const char *preset, char **answer, struct error *err)
{
    char *full = preset ? xasprintf("%s [default=%s]: ", question, preset) : xstrdup(question);
    int status = STATUS_OK;
    for (int tries = 0; !status; tries++) {
        status = tries < CLI_QUESTION_TRIES_MAX ? cli_ask(cli, full, preset, answer, err) : error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
        if (!status && **answer)
            break;
        if (!status) {
            free(*answer);
            *answer = NULL;
            fprintf(stderr, "Invalid input, try again.\n\n");
        }
    }
    free(full);
    return status;
}

static int ask_new_password(struct cli *cli, const char *question, json_t *config, struct error *err)
{
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        char *first, *again;
        ASK(cli_ask_password(cli, question, &first, err));
        int status = cli_ask_password(cli, "Again: ", &again, err);
        bool same = !status && *first && strcmp(first, again) == 0;
        if (same)
            json_object_set_new(config, "core.trust_password", json_string(first));
        free(first);
        if (!status)
            free(again);
        if (status || same)
            return status;
        fprintf(stderr, "Invalid input, try again.\n\n");
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

/* The first global unicast address of this machine, or 127.0.0.1. */
static void first_address(char *out, size_t size)
{
    struct ifaddrs *list = NULL;
    snprintf(out, size, "127.0.0.1");
    if (getifaddrs(&list))
        return;
    bool found = false;
    for (const struct ifaddrs *item = list; item && !found; item = item->ifa_next) {
        if (!item->ifa_addr || item->ifa_addr->sa_family != AF_INET || item->ifa_flags & IFF_LOOPBACK)
            continue;
        const struct sockaddr_in *address = (const struct sockaddr_in *)item->ifa_addr;
        if ((ntohl(address->sin_addr.s_addr) >> 16) == 0xa9fe) /* link-local */
            continue;
        found = inet_ntop(AF_INET, &address->sin_addr, out, (socklen_t)size) != NULL;
    }
    freeifaddrs(list);
}

static bool is_wildcard(const char *host) { return !*host || strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0 || strcmp(host, "[::]") == 0; }

/* Whether something may listen there; the reason in err. */
static int try_bind(const char *address, struct error *err)
{
    char *host = xstrdup(address), *port = strrchr(host, ':');
    int status = STATUS_OK;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    *port++ = 0;
    size_t len = strlen(host);
    char *bare = host[0] == '[' && len > 2 ? xasprintf("%.*s", (int)len - 2, host + 1) : xstrdup(host);
    int failed = getaddrinfo(bare, port, &hints, &found);
    if (failed) {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Can't bind address \"%s\": %s", address, gai_strerror(failed));
    } else {
        int one = 1, fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) || bind(fd, found->ai_addr, found->ai_addrlen))
            status = error_set(err, STATUS_INVALID_ARGUMENT, "Can't bind address \"%s\": %s", address, strerror(errno));
        if (fd >= 0)
            close(fd);
        freeaddrinfo(found);
    }
    free(bare);
    free(host);
    return status;
}

static int ask_own_address(struct cli *cli, const json_t *server, char **address, struct error *err)
{
    char preset[64];
    first_address(preset, sizeof(preset));
    const json_t *config = json_object_get(server, "config");
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        char *answer;
        struct error why = ERROR_INIT;
        ASK(ask_text(cli, "What IP address or DNS name should be used to reach this server?", preset, &answer, err));
        if (is_wildcard(answer)) {
            error_set(&why, STATUS_INVALID_ARGUMENT, "Invalid IP address or DNS name");
        } else {
            *address = address_canonical(answer);
            bool ours = strcmp(*address, json_text(config, "core.https_address")) == 0 || strcmp(*address, json_text(config, "cluster.https_address")) == 0;
            if (ours || !try_bind(*address, &why)) {
                free(answer);
                return STATUS_OK;
            }
            free(*address);
        }
        free(answer);
        fprintf(stderr, sorry, why.text);
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

static int ask_member_name(struct cli *cli, char **name, struct error *err)
{
    char host[256] = "";
    if (gethostname(host, sizeof(host) - 1))
        snprintf(host, sizeof(host), "node1");
    return ask_text(cli, "What member name should be used to identify this server in the cluster?", host, name, err);
}

/* ---- parts of a new server ---- */

static json_t *default_profile(json_t *preseed)
{
    json_t *profiles = json_object_get(preseed, "profiles");
    if (!json_array_size(profiles))
        json_array_append_new(profiles, json_pack("{s:s,s:{},s:{}}", "name", "default", "config", "devices"));
    return json_array_get(profiles, 0);
}

static void add_pool(json_t *preseed, const char *name, const char *driver, const char *source)
{
    json_t *pool = json_pack("{s:s,s:s,s:{}}", "name", name, "driver", driver, "config");
    if (!str_empty(source))
        json_object_set_new(json_object_get(pool, "config"), "source", json_string(source));
    json_array_append_new(json_object_get(preseed, "storage_pools"), pool);
    json_object_set_new(json_object_get(default_profile(preseed), "devices"), "root", json_pack("{s:s,s:s,s:s}", "type", "disk", "path", "/", "pool", name));
}

/* Names of the drivers that this server has, as "btrfs, dir"; dir when it does not say. */
static char *driver_list(const json_t *server)
{
    struct buf list = {0};
    size_t index;
    const json_t *driver;
    json_array_foreach(json_object_get(json_object_get(server, "environment"), "storage_supported_drivers"), index, driver)
        buf_printf(&list, "%s%s", list.len ? ", " : "", json_text(driver, "Name"));
    if (!list.len)
        buf_puts(&list, "dir");
    return buf_take(&list);
}

static bool driver_known(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at++)
        if (len && (at == list || at[-1] == ' ') && (at[len] == ',' || !at[len]))
            return true;
    return false;
}

static int ask_driver(struct cli *cli, const json_t *server, char **driver, struct error *err)
{
    char *list = driver_list(server);
    *driver = NULL;
    if (!strchr(list, ',')) {
        *driver = list;
        return STATUS_OK;
    }
    char *question = xasprintf("Name of the storage backend to use (%s)", list);
    int status = STATUS_OK;
    for (int tries = 0; !status && tries < CLI_QUESTION_TRIES_MAX; tries++) {
        status = ask_text(cli, question, driver_known(list, "dir") ? "dir" : NULL, driver, err);
        if (!status && driver_known(list, *driver))
            break;
        if (!status)
            fprintf(stderr, "Invalid input, try again.\n\n");
        free(*driver);
        *driver = NULL;
    }
    free(question);
    free(list);
    return *driver ? STATUS_OK : status ? status : error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

static int ask_pool(struct cli *cli, const json_t *server, const char *question, const char *name, json_t *preseed, struct error *err)
{
    bool yes;
    char *driver, *asked = NULL, *source = NULL;
    ASK(cli_ask_bool(cli, question, "yes", &yes, err));
    if (!yes)
        return STATUS_OK;
    if (!name)
        ASK(ask_text(cli, "Name of the new storage pool", "default", &asked, err));
    int status = ask_driver(cli, server, &driver, err);
    if (!status && strcmp(driver, "dir") != 0) {
        char *text = xasprintf("Name of the existing %s pool or dataset (empty for a new one): ", driver);
        status = cli_ask(cli, text, NULL, &source, err);
        free(text);
    }
    if (!status)
        add_pool(preseed, name ? name : asked, driver, source);
    free(driver);
    free(source);
    free(asked);
    return status;
}

static int ask_nic(struct cli *cli, json_t *preseed, struct error *err)
{
    bool yes;
    ASK(cli_ask_bool(cli, "Would you like to configure LXD to use an existing bridge or host interface? (yes/no) [default=no]: ", "no", &yes, err));
    for (int tries = 0; yes && tries < CLI_QUESTION_TRIES_MAX; tries++) {
        char *name, *path;
        ASK(ask_text(cli, "Name of the existing bridge or host interface: ", NULL, &name, err));
        if (if_nametoindex(name)) {
            struct stat info;
            path = xasprintf("/sys/class/net/%s/bridge", name);
            const char *type = stat(path, &info) ? "macvlan" : "bridged";
            json_object_set_new(json_object_get(default_profile(preseed), "devices"), "eth0",
                                json_pack("{s:s,s:s,s:s,s:s}", "type", "nic", "nictype", type, "parent", name, "name", "eth0"));
            free(path);
            free(name);
            return STATUS_OK;
        }
        free(name);
        printf("The requested interface doesn't exist. Please choose another one.\n");
    }
    return yes ? error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer") : STATUS_OK;
}

static int ask_images(struct cli *cli, json_t *config, struct error *err)
{
    bool yes;
    ASK(cli_ask_bool(cli, "Would you like stale cached images to be updated automatically? (yes/no) [default=yes]: ", "yes", &yes, err));
    if (!yes)
        json_object_set_new(config, "images.auto_update_interval", json_string("0"));
    return STATUS_OK;
}

/* ---- the three ways ---- */

static int ask_new_cluster(struct cli *cli, const json_t *server, json_t *preseed, json_t *cluster, struct error *err)
{
    bool yes;
    char *name;
    json_t *config = json_object_get(preseed, "config");
    ASK(ask_member_name(cli, &name, err));
    json_object_set_new(cluster, "server_name", json_string(name));
    free(name);
    ASK(cli_ask_bool(cli, "Setup password authentication on the cluster? (yes/no) [default=no]: ", "no", &yes, err));
    if (yes)
        ASK(ask_new_password(cli, "Trust password for new clients: ", config, err));
    ASK(ask_pool(cli, server, "Do you want to configure a new local storage pool? (yes/no) [default=yes]: ", "local", preseed, err));
    ASK(ask_nic(cli, preseed, err));
    return ask_images(cli, config, err);
}

static int ask_token(struct cli *cli, char **token, struct error *err)
{
    char *answer;
    *token = NULL;
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        ASK(cli_ask(cli, "Do you have a join token? (yes/no/[token]) [default=no]: ", "no", &answer, err));
        bool yes = strcasecmp(answer, "yes") == 0 || strcasecmp(answer, "y") == 0;
        bool no = strcasecmp(answer, "no") == 0 || strcasecmp(answer, "n") == 0;
        if (yes) {
            free(answer);
            return cli_ask(cli, "Please provide join token: ", NULL, token, err);
        }
        if (no) {
            free(answer);
            return STATUS_OK;
        }
        json_t *decoded = token_decode(answer, NULL);
        if (decoded) {
            json_decref(decoded);
            *token = answer;
            return STATUS_OK;
        }
        free(answer);
        fprintf(stderr, sorry, "Not yes/no, or invalid join token");
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

static int aborted(struct error *err) { return error_set(err, STATUS_CANCELLED, "User aborted configuration"); }

/* Shows the fingerprint of the cluster's certificate and asks whether it is the right one. */
static int ask_fingerprint(struct cli *cli, const char *fingerprint, struct error *err)
{
    char *answer;
    printf("Cluster fingerprint: %s\nYou can validate this fingerprint by running \"lxc info\" locally on an existing cluster member.\n", fingerprint);
    ASK(cli_ask(cli, "Is this the correct fingerprint? (yes/no/[fingerprint]) [default=no]: ", "no", &answer, err));
    bool yes = strcasecmp(answer, "yes") == 0 || strcasecmp(answer, "y") == 0 || strcasecmp(answer, fingerprint) == 0;
    free(answer);
    return yes ? STATUS_OK : aborted(err);
}

static int ask_join_by_password(struct cli *cli, json_t *cluster, struct error *err)
{
    char *text, *pem = NULL, fingerprint[FINGERPRINT_SIZE];
    ASK(ask_member_name(cli, &text, err));
    json_object_set_new(cluster, "server_name", json_string(text));
    free(text);
    for (int tries = 0; !pem; tries++) {
        if (tries == CLI_QUESTION_TRIES_MAX)
            return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
        ASK(ask_text(cli, "IP address or FQDN of an existing cluster member (may include port): ", NULL, &text, err));
        char *address = address_canonical(text);
        struct error e = ERROR_INIT;
        if (client_server_certificate(address, INIT_CONNECT_MS, &pem, fingerprint, &e))
            printf("Error connecting to existing cluster member \"%s\": %s\n", text, e.text);
        else
            json_object_set_new(cluster, "cluster_address", json_string(address));
        free(address);
        free(text);
    }
    json_object_set_new(cluster, "cluster_certificate", json_string(pem));
    free(pem);
    ASK(ask_fingerprint(cli, fingerprint, err));
    ASK(cli_ask_password(cli, "Cluster trust password: ", &text, err));
    json_object_set_new(cluster, "cluster_password", json_string(text));
    free(text);
    return STATUS_OK;
}

/* Makes the cluster trust this server's certificate, so that it tells its member-specific keys. */
static int trust_and_read(struct cli *cli, json_t *cluster, json_t **remote, struct error *err)
{
    char *cert = xasprintf("%s/server.crt", cli_state_dir(cli)), *key = xasprintf("%s/server.key", cli_state_dir(cli));
    struct identity identity = {0};
    char fingerprint[FINGERPRINT_SIZE];
    int status = identity_load(cert, key, &identity, err);
    free(cert);
    free(key);
    if (!status)
        status = cert_fingerprint(json_text(cluster, "cluster_certificate"), fingerprint, err);
    if (status)
        return status;
    struct covey_client *client = client_connect_tls(json_text(cluster, "cluster_address"), fingerprint, &identity);
    char *der = cert_pem_to_base64_der(identity.cert_pem);
    status = client_call(client, "Certificates/CreateCertificate",
                         json_pack("{s:s,s:s,s:s,s:s}", "type", "server", "name", json_text(cluster, "server_name"), "certificate", der ? der : "", "password",
                                   json_text(cluster, "cluster_password")),
                         NULL, err);
    if (!status || status == STATUS_ALREADY_EXISTS) {
        json_object_set_new(cluster, "cluster_password", json_string("")); /* a token works only once, and trust is there now */
        json_object_del(cluster, "cluster_token");
        status = STATUS_OK;
    } else {
        error_prefix(err, "Failed to setup trust relationship with cluster");
    }
    if (!status)
        status = client_call(client, "Cluster/GetCluster", NULL, remote, err);
    free(der);
    covey_close(client);
    identity_free(&identity);
    return status;
}

static int ask_join(struct cli *cli, json_t *cluster, struct error *err)
{
    char *token;
    bool yes;
    if (geteuid() != 0)
        return error_set(err, STATUS_PERMISSION_DENIED, "Joining an existing cluster requires root privileges");
    ASK(ask_token(cli, &token, err));
    if (token) {
        json_object_set_new(cluster, "cluster_token", json_string(token));
        free(token);
        ASK(join_complete(cluster, err));
        json_object_del(cluster, "cluster_token"); /* it is the password now */
    } else {
        ASK(ask_join_by_password(cli, cluster, err));
    }
    ASK(cli_ask_bool(cli, "All existing data is lost when joining a cluster, continue? (yes/no) [default=no] ", "no", &yes, err));
    if (!yes)
        return aborted(err);
    json_t *remote, *key;
    ASK(trust_and_read(cli, cluster, &remote, err));
    json_t *answers = json_array();
    size_t index;
    int status = STATUS_OK;
    json_array_foreach(json_object_get(remote, "member_config"), index, key)
    {
        char *question = xasprintf("Choose %s: ", json_text(key, "description")), *answer;
        if (!status && !(status = cli_ask(cli, question, NULL, &answer, err))) {
            json_t *filled = json_deep_copy(key);
            json_object_set_new(filled, "value", json_string(answer));
            json_array_append_new(answers, filled);
            free(answer);
        }
        free(question);
    }
    json_object_set_new(cluster, "member_config", answers);
    json_decref(remote);
    return status;
}

static int ask_standalone(struct cli *cli, const json_t *server, json_t *preseed, struct error *err)
{
    bool yes;
    char *host, *port;
    json_t *config = json_object_get(preseed, "config");
    ASK(ask_pool(cli, server, "Do you want to configure a new storage pool? (yes/no) [default=yes]: ", NULL, preseed, err));
    ASK(ask_nic(cli, preseed, err));
    ASK(cli_ask_bool(cli, "Would you like the LXD server to be available over the network? (yes/no) [default=no]: ", "no", &yes, err));
    if (yes) {
        ASK(ask_text(cli, "Address to bind LXD to (not including port)", "all", &host, err));
        int status = ask_text(cli, "Port to bind LXD to", "8443", &port, err);
        if (status) {
            free(host);
            return status;
        }
        const char *shown = strcmp(host, "all") == 0 ? "[::]" : host;
        bool brackets = strchr(shown, ':') && shown[0] != '[';
        json_object_set_new(config, "core.https_address", json_sprintf("%s%s%s:%s", brackets ? "[" : "", shown, brackets ? "]" : "", port));
        free(host);
        free(port);
        ASK(ask_new_password(cli, "Trust password for new clients: ", config, err));
    }
    return ask_images(cli, config, err);
}

static json_t *empty_preseed(void)
{
    return json_pack("{s:{},s:[],s:[],s:[],s:[]}", "config", "networks", "storage_pools", "profiles", "projects");
}

static int ask_all(struct cli *cli, const json_t *server, json_t *preseed, struct error *err)
{
    bool clustered, joining = false, print;
    char *address;
    ASK(cli_ask_bool(cli, "Would you like to use LXD clustering? (yes/no) [default=no]: ", "no", &clustered, err));
    if (!clustered) {
        ASK(ask_standalone(cli, server, preseed, err));
    } else {
        ASK(ask_own_address(cli, server, &address, err));
        json_t *cluster = json_pack("{s:b,s:s}", "enabled", 1, "server_address", address);
        json_object_set_new(preseed, "cluster", cluster);
        json_object_set_new(json_object_get(preseed, "config"), "core.https_address", json_string(address));
        free(address);
        ASK(cli_ask_bool(cli, "Are you joining an existing cluster? (yes/no) [default=no]: ", "no", &joining, err));
        if (joining)
            ASK(ask_join(cli, cluster, err));
        else
            ASK(ask_new_cluster(cli, server, preseed, cluster, err));
    }
    ASK(cli_ask_bool(cli, "Would you like a YAML \"lxd init\" preseed to be printed? (yes/no) [default=no]: ", "no", &print, err));
    if (!print)
        return STATUS_OK;
    json_t *shown = joining ? json_pack("{s:O}", "cluster", json_object_get(preseed, "cluster")) : json_incref(preseed);
    json_t *copy = json_deep_copy(shown);
    if (joining) {
        json_object_set_new(json_object_get(copy, "cluster"), "cluster_password", json_string(""));
        json_object_del(json_object_get(copy, "cluster"), "cluster_token");
    }
    int status = cli_print_yaml(copy);
    json_decref(copy);
    json_decref(shown);
    return status;
}

int init_interactive(struct cli *cli, struct covey_client *client, struct error *err)
{
    json_t *server;
    int status = client_call(client, "Server/GetServer", NULL, &server, err);
    if (status)
        return status;
    json_t *preseed = empty_preseed();
    status = ask_all(cli, server, preseed, err);
    if (!status)
        status = preseed_apply(cli, client, preseed, err);
    json_decref(preseed);
    json_decref(server);
    return status;
}

/* ---- without questions ---- */

static int init_auto(struct cli *cli, struct covey_client *client, struct error *err)
{
    json_t *server, *pools = NULL;
    int status = client_call(client, "Server/GetServer", NULL, &server, err);
    if (!status)
        status = client_call(client, "StoragePools/ListStoragePools", json_pack("{s:i}", "recursion", 1), &pools, err);
    const char *driver = cli_flag(cli, "storage-backend") ? cli_flag(cli, "storage-backend") : "dir";
    char *known = driver_list(server);
    if (!status && !driver_known(known, driver))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "The requested backend '%s' isn't available on your system (missing tools)", driver);
    if (!status && (cli_flag(cli, "storage-create-device") || cli_flag(cli, "storage-create-loop")))
        status = error_set(err, STATUS_UNIMPLEMENTED, "not implemented: --storage-create-device and --storage-create-loop");
    if (!status && strcmp(driver, "dir") == 0 && cli_flag(cli, "storage-pool"))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "None of --storage-pool, --storage-create-device or --storage-create-loop may be used with the 'dir' backend");
    json_t *preseed = empty_preseed(), *config = json_object_get(preseed, "config");
    const char *address = cli_flag(cli, "network-address"), *port = cli_flag(cli, "network-port");
    if (!status && !address && (port || cli_flag(cli, "trust-password")))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "--network-port and --trust-password need --network-address");
    if (address) {
        const char *shown = strcmp(address, "all") == 0 ? "[::]" : address;
        bool brackets = strchr(shown, ':') && shown[0] != '[';
        json_object_set_new(config, "core.https_address", json_sprintf("%s%s%s:%s", brackets ? "[" : "", shown, brackets ? "]" : "", port ? port : "8443"));
    }
    if (cli_flag(cli, "trust-password"))
        json_object_set_new(config, "core.trust_password", json_string(cli_flag(cli, "trust-password")));
    if (!json_array_size(json_object_get(pools, "pools")))
        add_pool(preseed, "default", driver, cli_flag(cli, "storage-pool"));
    if (!status)
        status = preseed_apply(cli, client, preseed, err);
    free(known);
    json_decref(preseed);
    json_decref(pools);
    json_decref(server);
    return status;
}

static int init_preseed(struct cli *cli, struct covey_client *client, struct error *err)
{
    struct buf text = {0};
    int status = cli_read_all(cli->in, &text, err);
    json_t *preseed = status ? NULL : preseed_parse(text.data, text.len, err);
    if (!status)
        status = preseed ? preseed_apply(cli, client, preseed, err) : (int)err->code;
    json_decref(preseed);
    buf_free(&text);
    return status;
}

static int check_modes(struct cli *cli, struct error *err)
{
    static const char *const details[] = {"network-address", "network-port", "storage-backend", "storage-create-device", "storage-create-loop", "storage-pool", "trust-password"};
    bool automatic = cli_switch(cli, "auto"), minimal = cli_switch(cli, "minimal"), preseed = cli_switch(cli, "preseed"), detailed = false;
    for (size_t i = 0; i < sizeof(details) / sizeof(*details); i++)
        detailed = detailed || cli_flag(cli, details[i]);
    const char *text = NULL;
    if (automatic && preseed)
        text = "Can't use --auto and --preseed together";
    else if (minimal && preseed)
        text = "Can't use --minimal and --preseed together";
    else if (minimal && automatic)
        text = "Can't use --minimal and --auto together";
    else if (!automatic && detailed)
        text = "Configuration flags require --auto";
    else if (cli_switch(cli, "dump") && (automatic || minimal || preseed || detailed))
        text = "Can't use --dump with other flags";
    return text ? error_set(err, STATUS_INVALID_ARGUMENT, "%s", text) : STATUS_OK;
}

int run_admin_init(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    int status = check_modes(cli, err);
    if (!status)
        status = cli_local(cli, &client, err);
    if (status)
        return status;
    if (cli_switch(cli, "dump")) {
        json_t *preseed;
        status = preseed_dump(cli, client, &preseed, err);
        if (!status)
            status = cli_print_yaml(preseed);
        json_decref(preseed);
        return status;
    }
    if (cli_switch(cli, "preseed"))
        return init_preseed(cli, client, err);
    if (cli_switch(cli, "auto") || cli_switch(cli, "minimal"))
        return init_auto(cli, client, err);
    return init_interactive(cli, client, err);
}
