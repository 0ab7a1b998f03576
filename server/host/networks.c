/* Managed networks of this host: what each is to be stands in a record (<state>/networks/<name>/network.json), written before the first tool runs and
 * removed after the last, so that whatever an interrupted change left is finished or removed by the next one. They are restored at the daemon's start
 * and left alone at its stop. A thread starts DHCP servers that ended by themselves again. Any thread; changes go one at a time and block on tools. */
#include "network_private.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

const char *network__get(const struct network *network, const char *key)
{
    return network_get(network->config, network->count, key);
}

bool network__bool(const struct network *network, const char *key)
{
    return network_get_bool(network->config, network->count, key);
}

bool network__subnet(const struct network *network, const char *family, struct subnet *out)
{
    const char *value = network__get(network, str_eq(family, "ipv4") ? "ipv4.address" : "ipv6.address");
    return value && subnet_parse(value, out) == 0;
}

bool network__item(const char **at, char *out, size_t size)
{
    if (!*at)
        return false;
    *at += strspn(*at, ", ");
    size_t len = strcspn(*at, ", ");
    if (!len)
        return false;
    snprintf(out, size, "%.*s", (int)len, *at);
    *at += len;
    return true;
}

/* ---- one network in memory ---- */

static void network_free(struct network *network)
{
    if (!network)
        return;
    for (size_t i = 0; i < network->count; i++) {
        free((char *)network->config[i].key);
        free((char *)network->config[i].value);
    }
    free(network->config);
    free(network->name);
    free(network->dir);
    free(network);
}

static struct network *network_new(struct host *host, const char *name, int64_t type, size_t count)
{
    struct network *network = xcalloc(1, sizeof(*network));
    network->name = xstrdup(name);
    network->type = type;
    network->dir = xasprintf("%s/networks/%s", host->state_dir, name);
    network->config = xcalloc(count + 1, sizeof(*network->config));
    network->dns_fd = -1;
    return network;
}

static void config_add(struct network *network, const char *key, const char *value)
{
    if (!str_empty(value))
        network->config[network->count++] = (struct device_option){xstrdup(key), xstrdup(value)};
}

/* What came from elsewhere, checked as the leader checked it: this ends in command lines. */
static int network_check(const struct network *network, struct error *err)
{
    if (network_name_check(network->name, err))
        return err->code;
    for (size_t i = 0; i < network->count; i++)
        if (network_key_check(network->type, network->name, network->config[i].key, network->config[i].value, err))
            return err->code;
    return network_config_check(network->type, network->config, network->count, true, err);
}

static struct network *network_of_spec(struct host *host, const NetworkSpec *spec, struct error *err)
{
    int64_t type;
    if (network_type_parse(spec->type, &type, err) || network_name_check(spec->name, err))
        return NULL;
    struct network *network = network_new(host, spec->name, type, spec->n_config);
    for (size_t i = 0; i < spec->n_config; i++)
        config_add(network, spec->config[i]->key, spec->config[i]->value);
    if (!network_check(network, err))
        return network;
    network_free(network);
    return NULL;
}

/* ---- records ---- */

static int record_write(const struct network *network, struct error *err)
{
    json_t *config = json_object();
    for (size_t i = 0; i < network->count; i++)
        json_object_set_new(config, network->config[i].key, json_string(network->config[i].value));
    json_t *record = json_pack("{s:s, s:s, s:o}", "type", network_type_name(network->type), "hwaddr", network->hwaddr, "config", config);
    char *text = record ? json_dumps(record, JSON_INDENT(1)) : NULL, *path = xasprintf("%s/network.json", network->dir);
    int rc = text ? dir_make(network->dir, 0711, err) : error_set(err, STATUS_INVALID_ARGUMENT, "A value of network \"%s\" is not UTF-8", network->name);
    if (!rc)
        rc = file_write_atomic(path, text, strlen(text), 0600, err);
    free(path);
    free(text);
    json_decref(record);
    return rc;
}

static struct network *record_read(struct host *host, const char *name, struct error *err)
{
    char *path = xasprintf("%s/networks/%s/network.json", host->state_dir, name);
    struct buf text = {0};
    struct network *network = NULL;
    int64_t type;
    if (file_read(path, NETWORK_RECORD_BYTES_MAX, &text, err) == STATUS_OK) {
        json_t *record = json_loads(text.data, 0, NULL), *config = json_object_get(record, "config"), *value;
        const char *key, *hwaddr = json_string_value(json_object_get(record, "hwaddr"));
        if (!record) {
            error_set(err, STATUS_INTERNAL, "%s cannot be read", path);
        } else if (!network_type_parse(json_string_value(json_object_get(record, "type")), &type, err)) {
            network = network_new(host, name, type, json_object_size(config));
            snprintf(network->hwaddr, sizeof(network->hwaddr), "%s", hwaddr ? hwaddr : "");
            json_object_foreach(config, key, value)
                config_add(network, key, json_string_value(value));
        }
        json_decref(record);
    }
    buf_free(&text);
    free(path);
    return network;
}

/* ---- making, changing, removing (lock held) ---- */

static void wake_watcher(struct networks *all)
{
    uint64_t one = 1;
    if (write(all->wake_fd, &one, sizeof(one)) < 0 && errno != EAGAIN)
        log_warn("network.wake", "errno=%d", errno);
}

static int parent_check(const struct network *network, struct error *err)
{
    const char *parent = network__get(network, "parent");
    if (network->type == NETWORK_BRIDGE || tool__interface(parent))
        return STATUS_OK;
    return error_set(err, STATUS_FAILED_PRECONDITION, "Parent interface \"%s\" not found", parent);
}

/* Has the host be as `now` says. */
static int bring_up(struct network *now, const struct network *before, struct error *err)
{
    if (now->type != NETWORK_BRIDGE)
        return parent_check(now, err);
    if (!now->hwaddr[0]) {
        uint8_t tail[3];
        random_bytes(tail, sizeof(tail));
        snprintf(now->hwaddr, sizeof(now->hwaddr), "00:16:3e:%02x:%02x:%02x", tail[0], tail[1], tail[2]);
    }
    int rc = record_write(now, err);
    if (!rc)
        rc = bridge__apply(now, before, err);
    if (!rc)
        rc = dns__apply(now, err);
    now->up = !rc;
    return rc;
}

static bool same_config(const struct network *a, const struct network *b)
{
    for (size_t i = 0; i < a->count; i++)
        if (!str_eq(network_get(b->config, b->count, a->config[i].key), a->config[i].value))
            return false;
    return a->type == b->type && a->count == b->count;
}

/* Nothing to do: what most calls find that only make sure. */
static bool stands(const struct network *there, const struct network *wanted)
{
    return there->up && same_config(wanted, there) && tool__interface(there->name);
}

static int take_down(struct network *network, struct error *err)
{
    dns__stop(network);
    int rc = network->type == NETWORK_BRIDGE ? bridge__remove(network, err) : STATUS_OK;
    return rc ? rc : dir_remove_all(network->dir, err);
}

static int make_new(struct networks *all, struct network *network, struct error *err)
{
    if (HASH_COUNT(all->all) >= HOST_NETWORKS_MAX)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "More than %d networks on this member", HOST_NETWORKS_MAX);
    if (network->type == NETWORK_BRIDGE && tool__interface(network->name))
        return error_set(err, STATUS_ALREADY_EXISTS, "Network interface \"%s\" already exists", network->name);
    int rc = parent_check(network, err);
    if (!rc)
        rc = record_write(network, err);
    crash_point("host:network_record");
    if (!rc)
        rc = bring_up(network, NULL, err);
    struct error undo = ERROR_INIT;
    if (rc && take_down(network, &undo))
        log_warn("network.undo", "network=%s text=\"%s\"", network->name, undo.text);
    return rc;
}

static int change(struct networks *all, struct network *now, struct network *before, struct error *err)
{
    if (now->type != before->type)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Network \"%s\" is of type \"%s\" instead of \"%s\" on this member", now->name, network_type_name(before->type),
                         network_type_name(now->type));
    memcpy(now->hwaddr, before->hwaddr, sizeof(now->hwaddr));
    now->dns_fd = before->dns_fd;
    now->dns_pid = before->dns_pid;
    before->dns_fd = -1;
    before->dns_pid = 0;
    int rc = bring_up(now, before, err);
    if (!rc && now->type != NETWORK_BRIDGE)
        rc = record_write(now, err);
    if (!rc)
        return rc;
    struct error undo = ERROR_INIT;
    before->dns_fd = now->dns_fd;
    before->dns_pid = now->dns_pid;
    now->dns_fd = -1;
    if (bring_up(before, now, &undo))
        log_warn("network.undo", "network=%s text=\"%s\"", now->name, undo.text);
    return rc;
}

int networks__apply(struct host *host, const NetworkSpec *spec, struct error *err)
{
    struct error local = ERROR_INIT;
    struct networks *all = host->networks;
    struct network *now = network_of_spec(host, spec, &local), *before = NULL;
    int rc = now ? STATUS_OK : (int)local.code;
    if (now) {
        pthread_mutex_lock(&all->lock);
        HASH_FIND_STR(all->all, spec->name, before);
        if (before && stands(before, now)) {
            network_free(now);
            pthread_mutex_unlock(&all->lock);
            return STATUS_OK;
        }
        rc = before ? change(all, now, before, &local) : make_new(all, now, &local);
        struct network *gone = rc ? now : before;
        if (!rc && before)
            HASH_DEL(all->all, before);
        if (!rc)
            HASH_ADD_KEYPTR(hh, all->all, now->name, strlen(now->name), now);
        network_free(gone);
        wake_watcher(all);
        pthread_mutex_unlock(&all->lock);
    }
    if (rc && err)
        *err = local;
    return rc;
}

int networks__remove(struct host *host, const NetworkSpec *spec, struct error *err)
{
    struct networks *all = host->networks;
    struct network *network = NULL;
    int rc = network_name_check(spec->name, err);
    if (rc)
        return rc;
    pthread_mutex_lock(&all->lock);
    HASH_FIND_STR(all->all, spec->name, network);
    if (network && (rc = take_down(network, err)) == STATUS_OK) {
        HASH_DEL(all->all, network);
        network_free(network);
    }
    wake_watcher(all);
    pthread_mutex_unlock(&all->lock);
    return rc;
}

/* ---- what others ask ---- */

int networks__nic(struct host *host, const char *name, struct network_nic *out, struct error *err)
{
    struct network *network = NULL;
    pthread_mutex_lock(&host->networks->lock);
    HASH_FIND_STR(host->networks->all, name, network);
    if (network) {
        bool bridge = network->type == NETWORK_BRIDGE;
        const char *parent = bridge ? network->name : network__get(network, "parent"), *mtu = network__get(network, bridge ? "bridge.mtu" : "mtu");
        *out = (struct network_nic){.kind = bridge ? "bridged" : network->type == NETWORK_MACVLAN ? "macvlan" : "physical"};
        snprintf(out->parent, sizeof(out->parent), "%s", parent ? parent : "");
        snprintf(out->mtu, sizeof(out->mtu), "%s", mtu ? mtu : "");
    }
    pthread_mutex_unlock(&host->networks->lock);
    return network ? STATUS_OK : error_set(err, STATUS_FAILED_PRECONDITION, "Network \"%.64s\" is not there on this member", name);
}

int networks__leases(struct host *host, const NetworkSpec *spec, struct arena *arena, Covey__V1__ListNetworkLeasesResponse **out, struct error *err)
{
    struct network *network = NULL;
    *out = arena_alloc(arena, sizeof(**out));
    covey__v1__list_network_leases_response__init(*out);
    pthread_mutex_lock(&host->networks->lock);
    HASH_FIND_STR(host->networks->all, spec->name, network);
    int rc = network && network->type == NETWORK_BRIDGE ? dns__leases(network, arena, *out, err) : STATUS_OK;
    pthread_mutex_unlock(&host->networks->lock);
    return rc;
}

void networks__list(struct host *host, struct arena *arena, Covey__Internal__V1__HostNetworks *out)
{
    struct network *network, *next;
    pthread_mutex_lock(&host->networks->lock);
    out->networks = arena_alloc(arena, (HASH_COUNT(host->networks->all) + 1) * sizeof(*out->networks));
    HASH_ITER(hh, host->networks->all, network, next)
    {
        NetworkSpec *spec = out->networks[out->n_networks++] = arena_alloc(arena, sizeof(*spec));
        covey__internal__v1__network_spec__init(spec);
        spec->name = arena_strdup(arena, network->name);
        spec->type = arena_strdup(arena, network_type_name(network->type));
    }
    pthread_mutex_unlock(&host->networks->lock);
}

/* ---- start, stop, servers that end by themselves ---- */

/* Ended servers are started again, not more often than NETWORK_DNS_AGAIN_MS; returns when to look again (-1 = when one ends). */
static int64_t mend(struct networks *all)
{
    struct network *network, *next;
    int64_t wait = -1, now = time_mono_ms();
    HASH_ITER(hh, all->all, network, next)
    {
        struct pollfd fd = {network->dns_fd, POLLIN, 0};
        struct subnet subnet;
        bool wanted = network->type == NETWORK_BRIDGE && (network__subnet(network, "ipv4", &subnet) || network__subnet(network, "ipv6", &subnet));
        if (!wanted || (network->dns_fd >= 0 && poll(&fd, 1, 0) == 0))
            continue;
        int64_t left = network->dns_started ? network->dns_started + NETWORK_DNS_AGAIN_MS - now : 0;
        if (left > 0) {
            wait = wait < 0 || left < wait ? left : wait;
            dns__forget(network);
            continue;
        }
        struct error err = ERROR_INIT;
        log_warn("network.dns_ended", "network=%s", network->name);
        network->dns_started = now;
        if (dns__apply(network, &err)) {
            log_warn("network.dns_ended", "network=%s text=\"%s\"", network->name, err.text);
            wait = wait < 0 || NETWORK_DNS_AGAIN_MS < wait ? NETWORK_DNS_AGAIN_MS : wait;
        }
    }
    return wait;
}

static void *watcher_main(void *ud)
{
    struct networks *all = ud;
    struct pollfd *fds = xcalloc(HOST_NETWORKS_MAX + 1, sizeof(*fds));
    for (;;) {
        struct network *network, *next;
        nfds_t count = 1;
        pthread_mutex_lock(&all->lock);
        if (all->stopping) {
            pthread_mutex_unlock(&all->lock);
            break;
        }
        int64_t wait = mend(all);
        fds[0] = (struct pollfd){all->wake_fd, POLLIN, 0};
        HASH_ITER(hh, all->all, network, next)
            if (network->dns_fd >= 0 && count <= HOST_NETWORKS_MAX)
                fds[count++] = (struct pollfd){fcntl(network->dns_fd, F_DUPFD_CLOEXEC, 0), POLLIN, 0}; /* our own, as a change may close the other */
        pthread_mutex_unlock(&all->lock);
        if (poll(fds, count, (int)wait) < 0 && errno != EINTR)
            core_panic(__FILE__, __LINE__, "poll failed: errno %d", errno);
        for (nfds_t i = 1; i < count; i++)
            if (fds[i].fd >= 0)
                close(fds[i].fd);
        uint64_t told;
        if (fds[0].revents && read(all->wake_fd, &told, sizeof(told)) < 0 && errno != EAGAIN)
            log_warn("network.wake", "errno=%d", errno);
    }
    free(fds);
    return NULL;
}

/* A network whose record can be read is kept even when it cannot be brought up now: the leader's next word, or the next start, tries again. */
static void restore(struct host *host, const char *name)
{
    struct error err = ERROR_INIT;
    struct network *network = record_read(host, name, &err);
    int rc = network ? network_check(network, &err) : (int)err.code;
    if (!rc)
        rc = bring_up(network, network, &err);
    if (rc)
        log_warn("network.restore", "network=%s text=\"%s\"", name, err.text);
    if (network)
        HASH_ADD_KEYPTR(hh, host->networks->all, network->name, strlen(network->name), network);
}

int networks__start(struct host *host, struct error *err)
{
    struct networks *all = host->networks = xcalloc(1, sizeof(*all));
    pthread_mutex_init(&all->lock, NULL);
    all->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    char *path = xasprintf("%s/networks", host->state_dir);
    int rc = all->wake_fd < 0 ? error_errno(err, errno, "Failed to watch networks") : dir_make(path, 0711, err);
    DIR *dir = rc ? NULL : opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char *record = xasprintf("%s/%s/network.json", path, entry->d_name);
        if (entry->d_name[0] != '.' && access(record, F_OK) == 0 && network_name_check(entry->d_name, NULL) == STATUS_OK)
            restore(host, entry->d_name);
        free(record);
    }
    if (dir)
        closedir(dir);
    free(path);
    if (!rc && pthread_create(&all->watcher, NULL, watcher_main, all) != 0)
        rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "Failed to start a thread");
    if (rc) {
        all->stopping = true;
        networks__stop(host);
    }
    return rc;
}

void networks__stop(struct host *host)
{
    struct networks *all = host->networks;
    struct network *network, *next;
    if (!all)
        return;
    pthread_mutex_lock(&all->lock);
    bool started = !all->stopping;
    all->stopping = true;
    pthread_mutex_unlock(&all->lock);
    if (started) {
        wake_watcher(all);
        pthread_join(all->watcher, NULL);
    }
    HASH_ITER(hh, all->all, network, next)
    {
        HASH_DEL(all->all, network);
        dns__forget(network);
        network_free(network);
    }
    if (all->wake_fd >= 0)
        close(all->wake_fd);
    pthread_mutex_destroy(&all->lock);
    free(all);
    host->networks = NULL;
}
