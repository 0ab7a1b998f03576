/* What a server is: the `environment` of GET /1.0. Facts that cannot change while the daemon runs are read once. Thread: any. */
#include "keys.h"
#include "server.h"

#include "server/daemon/identity.h"
#include "server/daemon/listener.h"
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

enum { HELPER_TIMEOUT_MS = 5000, OS_RELEASE_MAX = 64 << 10 };

#define SERVER_VERSION "5.0.2" /* whose /1.0 this is: clients decide by it */

static struct {
    struct utsname uname;
    char os_name[128], os_version[64], driver_version[64];
    bool nft, cgroup2, pidfd;
} facts;

/* Value of KEY=value or KEY="value" in os-release. */
static void os_value(const char *text, const char *key, char *out, size_t size)
{
    size_t key_len = strlen(key);
    out[0] = '\0';
    for (const char *line = text; line != NULL; line = strchr(line, '\n') != NULL ? strchr(line, '\n') + 1 : NULL) {
        if (strncmp(line, key, key_len) == 0 && line[key_len] == '=') {
            const char *value = line + key_len + 1;
            value += *value == '"';
            snprintf(out, size, "%.*s", (int)strcspn(value, "\"\n"), value);
            return;
        }
    }
}

/* liblxc is not linked here (it forks): the helper tells its version. */
static void ask_helper(void)
{
    const char *const argv[] = {host_helper_path(the_daemon->host), "version", NULL};
    struct process_result result = {0};
    struct error err = ERROR_INIT;
    if (argv[0] == NULL || process_run(argv, NULL, "{}", 4096, HELPER_TIMEOUT_MS, &result, &err) != STATUS_OK) {
        log_warn("server.driver", "error=\"%s\"", err.text);
        return;
    }
    json_t *answer = result.out.data != NULL ? json_loads(result.out.data, 0, NULL) : NULL;
    const char *version = json_string_value(json_object_get(answer, "lxc"));
    snprintf(facts.driver_version, sizeof facts.driver_version, "%s", version != NULL ? version : "");
    json_decref(answer);
    process_result_free(&result);
}

static bool has_pidfd(void)
{
    int fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

static void learn(void)
{
    static const char *const nft[] = {"/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"};
    struct buf text = {0};
    uname(&facts.uname);
    if (file_read("/etc/os-release", OS_RELEASE_MAX, &text, NULL) == STATUS_OK && text.data != NULL) {
        os_value(text.data, "NAME", facts.os_name, sizeof facts.os_name);
        os_value(text.data, "VERSION_ID", facts.os_version, sizeof facts.os_version);
    }
    buf_free(&text);
    for (size_t i = 0; i < sizeof nft / sizeof *nft; i++) {
        facts.nft = facts.nft || access(nft[i], X_OK) == 0;
    }
    facts.cgroup2 = access("/sys/fs/cgroup/cgroup.controllers", F_OK) == 0;
    facts.pidfd = has_pidfd();
    ask_helper();
}
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- addresses ---- */

static void add_interfaces(json_t *out, const char *port, bool v4, bool v6)
{
    struct ifaddrs *list = NULL;
    if (getifaddrs(&list) != 0) {
        log_warn("server.addresses", "error=\"%s\"", strerror(errno));
        return;
    }
    for (const struct ifaddrs *i = list; i != NULL; i = i->ifa_next) {
        char text[INET6_ADDRSTRLEN], address[INET6_ADDRSTRLEN + 16];
        if (i->ifa_addr == NULL || (i->ifa_flags & IFF_LOOPBACK) || !(i->ifa_flags & IFF_UP)) {
            continue;
        }
        if (i->ifa_addr->sa_family == AF_INET && v4) {
            const struct in_addr *in = &((const struct sockaddr_in *)i->ifa_addr)->sin_addr;
            bool link_local = (ntohl(in->s_addr) >> 16) == 0xa9fe;
            if (!link_local && inet_ntop(AF_INET, in, text, sizeof text) != NULL) {
                snprintf(address, sizeof address, "%s:%s", text, port);
                json_array_append_new(out, json_string(address));
            }
        } else if (i->ifa_addr->sa_family == AF_INET6 && v6) {
            const struct in6_addr *in = &((const struct sockaddr_in6 *)i->ifa_addr)->sin6_addr;
            if (!IN6_IS_ADDR_LINKLOCAL(in) && inet_ntop(AF_INET6, in, text, sizeof text) != NULL) {
                snprintf(address, sizeof address, "[%s]:%s", text, port);
                json_array_append_new(out, json_string(address));
            }
        }
    }
    freeifaddrs(list);
}

json_t *server_addresses(void)
{
    char core[300], cluster[300];
    json_t *out = json_array();
    listener_get(core, sizeof core, cluster, sizeof cluster);
    if (core[0] == '\0') {
        return out;
    }
    if (!address_wildcard(core)) {
        json_array_append_new(out, json_string(core));
        return out;
    }
    const char *port = strrchr(core, ':');
    covey_assert(port != NULL);
    add_interfaces(out, port + 1, true, !str_prefix(core, "0.0.0.0:"));
    return out;
}

/* ---- the message ---- */

static void add_feature(struct arena *arena, Covey__V1__Environment *out, const char *name, bool value)
{
    enum { FEATURES_MAX = 8 };
    if (out->kernel_features == NULL) {
        out->kernel_features = arena_alloc(arena, FEATURES_MAX * sizeof *out->kernel_features);
    }
    covey_assert(out->n_kernel_features < FEATURES_MAX);
    Covey__V1__Environment__KernelFeaturesEntry *entry = arena_alloc(arena, sizeof *entry);
    covey__v1__environment__kernel_features_entry__init(entry);
    entry->key = (char *)name;
    entry->value = (char *)(value ? "true" : "false");
    out->kernel_features[out->n_kernel_features++] = entry;
}

static void fill_storage(struct arena *arena, Covey__V1__Environment *out)
{
    static const char dir_version[] = "1";
    struct buf used = {0}, versions = {0};
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_storage_drivers_in_use; i++) {
        const char *driver = view->message->storage_drivers_in_use[i];
        buf_printf(&used, "%s%s", i > 0 ? " | " : "", driver);
        buf_printf(&versions, "%s%s", i > 0 ? " | " : "", strcmp(driver, "dir") == 0 ? dir_version : "");
    }
    view_unref(view);
    out->storage = arena_strdup(arena, used.data != NULL ? used.data : "");
    out->storage_version = arena_strdup(arena, versions.data != NULL ? versions.data : "");
    buf_free(&used);
    buf_free(&versions);
    Covey__V1__StorageDriver *dir = arena_alloc(arena, sizeof *dir);
    covey__v1__storage_driver__init(dir);
    dir->name = (char *)"dir";
    dir->version = (char *)dir_version;
    out->storage_supported_drivers = arena_alloc(arena, sizeof *out->storage_supported_drivers);
    out->storage_supported_drivers[out->n_storage_supported_drivers++] = dir;
}

/* How a LXD client understands the flow of events (spec/placement.md 11); ours is the same in all modes: every event comes once to everybody. */
static const char *event_mode(void)
{
    enum { HUBS_MIN = 2 };
    unsigned hubs = 0;
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_members; i++) {
        hubs += view->message->members[i]->event_hub;
    }
    const Covey__Internal__V1__ViewMember *self = view_member_by_id(view, daemon_id(the_daemon));
    bool hub = self != NULL && self->event_hub;
    view_unref(view);
    return hubs < HUBS_MIN ? "full-mesh" : hub ? "hub-server" : "hub-client";
}

Covey__V1__Environment *server__environment(struct arena *arena, const char *project)
{
    char fingerprint[FINGERPRINT_SIZE], name[256];
    pthread_once(&once, learn);
    Covey__V1__Environment *out = arena_alloc(arena, sizeof *out);
    covey__v1__environment__init(out);
    json_t *addresses = server_addresses();
    out->addresses = arena_alloc(arena, (json_array_size(addresses) + 1) * sizeof *out->addresses);
    for (size_t i = 0; i < json_array_size(addresses); i++) {
        out->addresses[out->n_addresses++] = arena_strdup(arena, json_string_value(json_array_get(addresses, i)));
    }
    json_decref(addresses);
    bool x86_64 = strcmp(facts.uname.machine, "x86_64") == 0;
    out->architectures = arena_alloc(arena, 2 * sizeof *out->architectures);
    out->architectures[out->n_architectures++] = facts.uname.machine;
    if (x86_64) {
        out->architectures[out->n_architectures++] = (char *)"i686";
    }
    char *pem = identity_presented(fingerprint);
    out->certificate = arena_strdup(arena, pem);
    out->certificate_fingerprint = arena_strdup(arena, fingerprint);
    free(pem);
    out->driver = (char *)"lxc";
    out->driver_version = facts.driver_version;
    out->firewall = (char *)(facts.nft ? "nftables" : "none");
    out->kernel = facts.uname.sysname;
    out->kernel_architecture = facts.uname.machine;
    out->kernel_version = facts.uname.release;
    add_feature(arena, out, "cgroup2", facts.cgroup2);
    add_feature(arena, out, "pidfd", facts.pidfd);
    out->os_name = facts.os_name;
    out->os_version = facts.os_version;
    out->project = arena_strdup(arena, project_or_default(project));
    out->server = (char *)"lxd";
    out->server_clustered = daemon_clustered(the_daemon);
    out->server_event_mode = (char *)event_mode();
    daemon_name(the_daemon, name, sizeof name);
    out->server_name = arena_strdup(arena, name);
    out->server_pid = getpid();
    out->server_version = (char *)SERVER_VERSION;
    fill_storage(arena, out);
    return out;
}
