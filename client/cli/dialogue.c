/* The dialogue of admin init (spec/cluster.md 3.4). It only gathers a preseed, which is then applied like one that was read; but for a join the cluster
 * is made to trust this server before its member-specific keys are asked, and that trust is taken back when the join does not come about. New bridges are
 * offered when the server can make them; Fan networks need another kernel and are not asked for. Main thread. */
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
#include <sys/statvfs.h>
#include <unistd.h>

enum { INIT_CONNECT_MS = 10 * 1000 };
static const char sorry[] = "Invalid input: %s\n\n", again[] = "Invalid input, try again.\n\n";

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
            fprintf(stderr, "%s", again);
        }
    }
    free(full);
    return status;
}

static int ask_new_password(struct cli *cli, const char *question, json_t *config, struct error *err)
{
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        char *first, *second;
        ASK(cli_ask_password(cli, question, &first, err));
        int status = cli_ask_password(cli, "Again: ", &second, err);
        bool same = !status && *first && strcmp(first, second) == 0;
        if (same)
            json_object_set_new(config, "core.trust_password", json_string(first));
        free(first);
        if (!status)
            free(second);
        if (status || same)
            return status;
        fprintf(stderr, "%s", again);
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

void preseed_add_pool(json_t *preseed, const char *name, const char *driver, json_t *config)
{
    json_t *pool = json_pack("{s:s,s:s,s:o}", "name", name, "driver", driver, "config", config ? config : json_object());
    json_array_append_new(json_object_get(preseed, "storage_pools"), pool);
    json_object_set_new(json_object_get(default_profile(preseed), "devices"), "root", json_pack("{s:s,s:s,s:s}", "type", "disk", "path", "/", "pool", name));
}

/* Names of the drivers that this server has, as "btrfs, dir": only those that keep data on remote hosts, or only the others, or (NULL) all. */
char *driver_list(const json_t *server, const bool *remote)
{
    struct buf list = {0};
    size_t index;
    const json_t *driver;
    json_array_foreach(json_object_get(json_object_get(server, "environment"), "storage_supported_drivers"), index, driver)
    {
        if (!remote || json_is_true(json_object_get(driver, "Remote")) == *remote)
            buf_printf(&list, "%s%s", list.len ? ", " : "", json_text(driver, "Name"));
    }
    if (!list.len && (!remote || !*remote))
        buf_puts(&list, "dir");
    return buf_take(&list);
}

bool driver_known(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = list; (at = strstr(at, name)); at++)
        if (len && (at == list || at[-1] == ' ') && (at[len] == ',' || !at[len]))
            return true;
    return false;
}

static int ask_driver(struct cli *cli, char *list, char **driver, struct error *err)
{
    *driver = NULL;
    if (!strchr(list, ',')) {
        *driver = xstrdup(list);
        return STATUS_OK;
    }
    char *question = xasprintf("Name of the storage backend to use (%s)", list), *first = xasprintf("%.*s", (int)strcspn(list, ","), list);
    int status = STATUS_OK;
    for (int tries = 0; !status && tries < CLI_QUESTION_TRIES_MAX; tries++) {
        status = ask_text(cli, question, driver_known(list, "dir") ? "dir" : first, driver, err);
        if (!status && driver_known(list, *driver))
            break;
        if (!status)
            fprintf(stderr, "%s", again);
        free(*driver);
        *driver = NULL;
    }
    free(first);
    free(question);
    return *driver ? STATUS_OK : status ? status : error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

/* A fifth of the disk that the server is on, 5 to 30 GiB. */
static int loop_size_gib(const struct cli *cli)
{
    struct statvfs disk;
    uint64_t size = statvfs(cli_state_dir(cli), &disk) ? 0 : (uint64_t)disk.f_blocks * disk.f_frsize / (1u << 30) / 5;
    return size < 5 ? 5 : size > 30 ? 30 : (int)size;
}

/* "30GiB", or a plain number of GiB; at least one. */
static int ask_loop_size(struct cli *cli, json_t *config, struct error *err)
{
    char preset[16];
    snprintf(preset, sizeof(preset), "%dGiB", loop_size_gib(cli));
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        char *answer;
        int64_t size;
        ASK(ask_text(cli, "Size in GiB of the new loop device (1GiB minimum)", preset, &answer, err));
        size_t digits = strspn(answer, "0123456789");
        bool unit = !answer[digits] || strcmp(answer + digits, "GiB") == 0;
        answer[digits] = 0;
        bool good = unit && !parse_i64(answer, 1, INT32_MAX, &size);
        if (good)
            json_object_set_new(config, "size", json_sprintf("%sGiB", answer));
        free(answer);
        if (good)
            return STATUS_OK;
        fprintf(stderr, sorry, "Must be at least 1GiB");
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

static int ask_block_device(struct cli *cli, json_t *config, struct error *err)
{
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        char *path;
        struct stat info;
        ASK(ask_text(cli, "Path to the existing block device: ", NULL, &path, err));
        bool good = stat(path, &info) == 0 && S_ISBLK(info.st_mode);
        if (good)
            json_object_set_new(config, "source", json_string(path));
        else
            fprintf(stderr, "Invalid input: %s is not a block device\n\n", path);
        free(path);
        if (good)
            return STATUS_OK;
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

/* Where a pool of this driver lives. */
static int ask_driver_keys(struct cli *cli, const char *driver, json_t *config, struct error *err)
{
    bool yes;
    char upper[32], *question, *answer;
    if (strcmp(driver, "dir") == 0)
        return STATUS_OK;
    snprintf(upper, sizeof(upper), "%s", driver);
    for (char *c = upper; *c; c++)
        *c = *c >= 'a' && *c <= 'z' ? (char)(*c - 'a' + 'A') : *c;
    question = xasprintf("Create a new %s pool? (yes/no) [default=yes]: ", upper);
    int status = cli_ask_bool(cli, question, "yes", &yes, err);
    free(question);
    if (status)
        return status;
    if (!yes) {
        question = xasprintf("Name of the existing %s pool or dataset: ", upper);
        status = ask_text(cli, question, NULL, &answer, err);
        free(question);
        if (!status) {
            json_object_set_new(config, "source", json_string(answer));
            free(answer);
        }
        return status;
    }
    ASK(cli_ask_bool(cli, "Would you like to use an existing empty block device (e.g. a disk or partition)? (yes/no) [default=no]: ", "no", &yes, err));
    return yes ? ask_block_device(cli, config, err) : ask_loop_size(cli, config, err);
}

/* Which pools are meant: those of a single server, or a cluster's local or remote one, which have fixed names. */
enum pool_kind { POOL_ANY, POOL_LOCAL, POOL_REMOTE };

static int ask_pool(struct cli *cli, const json_t *server, enum pool_kind kind, json_t *preseed, struct error *err)
{
    static const char *const questions[] = {"Do you want to configure a new storage pool? (yes/no) [default=yes]: ",
                                            "Do you want to configure a new local storage pool? (yes/no) [default=yes]: ",
                                            "Do you want to configure a new remote storage pool? (yes/no) [default=no]: "};
    bool yes, remote = kind == POOL_REMOTE;
    char *driver = NULL, *name = NULL;
    ASK(cli_ask_bool(cli, questions[kind], remote ? "no" : "yes", &yes, err));
    if (!yes)
        return STATUS_OK;
    char *list = driver_list(server, kind == POOL_ANY ? NULL : &remote);
    json_t *config = json_object();
    int status = *list ? STATUS_OK : error_set(err, STATUS_FAILED_PRECONDITION, "No remote storage backends available");
    if (!status && kind == POOL_ANY)
        status = ask_text(cli, "Name of the new storage pool", "default", &name, err);
    if (!status)
        status = ask_driver(cli, list, &driver, err);
    if (!status)
        status = ask_driver_keys(cli, driver, config, err);
    if (!status)
        preseed_add_pool(preseed, name ? name : remote ? "remote" : "local", driver, json_incref(config));
    json_decref(config);
    free(list);
    free(driver);
    free(name);
    return status;
}

static int ask_maas(struct cli *cli, struct error *err)
{
    bool yes;
    ASK(cli_ask_bool(cli, "Would you like to connect to a MAAS server? (yes/no) [default=no]: ", "no", &yes, err));
    if (yes)
        printf("MAAS servers are not supported: going on without.\n");
    return STATUS_OK;
}

/* ---- networks ---- */

static bool has_extension(const json_t *server, const char *name)
{
    size_t index;
    const json_t *item;
    json_array_foreach(json_object_get(server, "api_extensions"), index, item)
    {
        if (strcmp(json_string_value(item), name) == 0)
            return true;
    }
    return false;
}

/* "auto", "none", or the bridge's own address with the length of its prefix. */
static int ask_subnet(struct cli *cli, int family, json_t *config, struct error *err)
{
    const char *version = family == AF_INET ? "4" : "6";
    char *question = xasprintf("What IPv%s address should be used? (CIDR subnet notation, “auto” or “none”)", version), *answer = NULL;
    int status = STATUS_OK;
    bool cidr = false;
    for (int tries = 0; !status; tries++) {
        uint8_t bytes[16];
        int64_t bits;
        status = tries < CLI_QUESTION_TRIES_MAX ? ask_text(cli, question, "auto", &answer, err) : error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
        if (status || strcmp(answer, "auto") == 0 || strcmp(answer, "none") == 0)
            break;
        char *slash = strchr(answer, '/'), *host = xasprintf("%.*s", slash ? (int)(slash - answer) : 0, answer);
        cidr = slash && inet_pton(family, host, bytes) == 1 && !parse_i64(slash + 1, 0, family == AF_INET ? 32 : 128, &bits);
        free(host);
        if (cidr)
            break;
        fprintf(stderr, "Invalid input: \"%s\" is not an IPv%s address with its prefix\n\n", answer, version);
        free(answer);
        answer = NULL;
    }
    free(question);
    char key[16];
    snprintf(key, sizeof(key), "ipv%s.address", version);
    if (!status)
        json_object_set_new(config, key, json_string(answer));
    free(answer);
    if (status || !cidr)
        return status;
    bool nat;
    question = xasprintf("Would you like LXD to NAT IPv%s traffic on your bridge? [default=yes]: ", version);
    status = cli_ask_bool(cli, question, "yes", &nat, err);
    free(question);
    snprintf(key, sizeof(key), "ipv%s.nat", version);
    if (!status)
        json_object_set_new(config, key, json_string(nat ? "true" : "false"));
    return status;
}

/* *made: the server gets a bridge of its own, and no more is to be asked about networks. */
static int ask_bridge(struct cli *cli, json_t *preseed, bool *made, struct error *err)
{
    char *name;
    ASK(cli_ask_bool(cli, "Would you like to create a new local network bridge? (yes/no) [default=yes]: ", "yes", made, err));
    if (!*made)
        return STATUS_OK;
    ASK(ask_text(cli, "What should the new bridge be called?", "lxdbr0", &name, err));
    json_t *config = json_object();
    int status = ask_subnet(cli, AF_INET, config, err);
    if (!status)
        status = ask_subnet(cli, AF_INET6, config, err);
    if (!status) {
        json_array_append_new(json_object_get(preseed, "networks"),
                              json_pack("{s:s,s:s,s:s,s:O}", "name", name, "type", "bridge", "project", "default", "config", config));
        json_object_set_new(json_object_get(default_profile(preseed), "devices"), "eth0",
                            json_pack("{s:s,s:s,s:s}", "type", "nic", "name", "eth0", "network", name));
    }
    json_decref(config);
    free(name);
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
    ASK(ask_pool(cli, server, POOL_LOCAL, preseed, err));
    ASK(ask_pool(cli, server, POOL_REMOTE, preseed, err));
    ASK(ask_maas(cli, err));
    ASK(ask_nic(cli, preseed, err));
    return ask_images(cli, config, err);
}

static bool is_token(const char *text, struct error *err)
{
    json_t *decoded = token_decode(text, err);
    json_decref(decoded);
    return decoded != NULL;
}

static int ask_for_token(struct cli *cli, char **token, struct error *err)
{
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        struct error why = ERROR_INIT;
        ASK(ask_text(cli, "Please provide join token: ", NULL, token, err));
        if (is_token(*token, &why))
            return STATUS_OK;
        free(*token);
        *token = NULL;
        fprintf(stderr, sorry, why.text);
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

/* NULL = there is none. */
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
            return ask_for_token(cli, token, err);
        }
        if (no) {
            free(answer);
            return STATUS_OK;
        }
        if (is_token(answer, NULL)) {
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
    printf("Cluster fingerprint: %s\nCompare it with the certificate fingerprint that \"lxc info\" shows on a member.\n", fingerprint);
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        char *answer;
        ASK(cli_ask(cli, "Is this the correct fingerprint? (yes/no/[fingerprint]) [default=no]: ", "no", &answer, err));
        bool yes = strcasecmp(answer, "yes") == 0 || strcasecmp(answer, "y") == 0 || strcasecmp(answer, fingerprint) == 0;
        bool no = strcasecmp(answer, "no") == 0 || strcasecmp(answer, "n") == 0;
        free(answer);
        if (yes || no)
            return yes ? STATUS_OK : aborted(err);
        fprintf(stderr, sorry, "Not yes/no or fingerprint");
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
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
    for (int tries = 0; tries < CLI_QUESTION_TRIES_MAX; tries++) {
        ASK(cli_ask_password(cli, "Cluster trust password: ", &text, err));
        bool given = *text != 0;
        json_object_set_new(cluster, "cluster_password", json_string(text));
        free(text);
        if (given)
            return STATUS_OK;
        fprintf(stderr, "%s", again);
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "no valid answer");
}

/* A connection to the cluster as this server; its fingerprint in own. */
static int connect_as_server(struct cli *cli, const json_t *cluster, struct identity *identity, struct covey_client **client, struct error *err)
{
    char *cert = xasprintf("%s/server.crt", cli_state_dir(cli)), *key = xasprintf("%s/server.key", cli_state_dir(cli));
    char fingerprint[FINGERPRINT_SIZE];
    int status = identity_load(cert, key, identity, err);
    free(cert);
    free(key);
    if (!status && (status = cert_fingerprint(json_text(cluster, "cluster_certificate"), fingerprint, err)))
        identity_free(identity);
    if (!status)
        *client = client_connect_tls(json_text(cluster, "cluster_address"), fingerprint, identity);
    return status;
}

/* Makes the cluster trust this server's certificate, so that it tells its member-specific keys. *added: it did not before. */
static int trust_and_read(struct cli *cli, json_t *cluster, bool *added, json_t **remote, struct error *err)
{
    struct identity identity = {0};
    struct covey_client *client;
    int status = connect_as_server(cli, cluster, &identity, &client, err);
    if (status)
        return status;
    char *der = cert_pem_to_base64_der(identity.cert_pem);
    status = client_call(client, "Certificates/CreateCertificate",
                         json_pack("{s:s,s:s,s:s,s:s}", "type", "server", "name", json_text(cluster, "server_name"), "certificate", der ? der : "", "password",
                                   json_text(cluster, "cluster_password")),
                         NULL, err);
    *added = !status;
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

/* The join has not come about: the cluster shall not know us under this name. */
static void take_trust_back(struct cli *cli, const json_t *cluster)
{
    struct identity identity = {0};
    struct covey_client *client;
    struct error err = ERROR_INIT;
    int status = connect_as_server(cli, cluster, &identity, &client, &err);
    if (!status) {
        status = client_call(client, "Certificates/DeleteCertificate", json_pack("{s:s}", "fingerprint", identity.fingerprint), NULL, &err);
        covey_close(client);
        identity_free(&identity);
    }
    if (status)
        fprintf(stderr, "The certificate of this server may have stayed in the cluster's trust store: %s\n", err.text);
}

static int ask_join(struct cli *cli, json_t *cluster, bool *trusted, struct error *err)
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
    ASK(trust_and_read(cli, cluster, trusted, &remote, err));
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
    bool yes, bridge = false;
    char *host, *port;
    json_t *config = json_object_get(preseed, "config");
    ASK(ask_pool(cli, server, POOL_ANY, preseed, err));
    ASK(ask_maas(cli, err));
    if (has_extension(server, "network"))
        ASK(ask_bridge(cli, preseed, &bridge, err));
    if (!bridge)
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

json_t *preseed_empty(void)
{
    return json_pack("{s:{},s:[],s:[],s:[],s:[]}", "config", "networks", "storage_pools", "profiles", "projects");
}

static int ask_all(struct cli *cli, const json_t *server, json_t *preseed, bool *trusted, struct error *err)
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
            ASK(ask_join(cli, cluster, trusted, err));
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
    json_t *preseed = preseed_empty();
    bool trusted = false;
    status = ask_all(cli, server, preseed, &trusted, err);
    if (!status)
        status = preseed_apply(cli, client, preseed, err);
    if (status && trusted)
        take_trust_back(cli, json_object_get(preseed, "cluster"));
    json_decref(preseed);
    json_decref(server);
    return status;
}
