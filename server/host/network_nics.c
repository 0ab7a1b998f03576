/* What the DHCP servers of managed bridges know of instances: a file for each NIC in <network>/dnsmasq.hosts, written when the instance starts and removed with
 * it. The servers read them on SIGHUP. Any thread. */
#include "network_private.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Files are <instance key>.<device>; a key may hold dots, a device name here may not. */
static bool forget_in(const struct network *network, const char *key, const char *device)
{
    char *hosts = xasprintf("%s/dnsmasq.hosts", network->dir), *prefix = xasprintf("%s.", key);
    bool any = false;
    DIR *dir = opendir(hosts);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        const char *rest = str_prefix(entry->d_name, prefix) ? entry->d_name + strlen(prefix) : NULL;
        if (rest && !strchr(rest, '.') && (!device || str_eq(rest, device)))
            any = unlinkat(dirfd(dir), entry->d_name, 0) == 0 || any;
    }
    if (dir)
        closedir(dir);
    free(prefix);
    free(hosts);
    return any;
}

void networks__forget_nic(struct host *host, const char *key, const char *device)
{
    struct network *network, *next;
    pthread_mutex_lock(&host->networks->lock);
    HASH_ITER(hh, host->networks->all, network, next)
        if (forget_in(network, key, device))
            dns__reload(network);
    pthread_mutex_unlock(&host->networks->lock);
}

static int remember(const struct network *network, const InstanceSpec *spec, const char *key, const struct device *device, const char *hwaddr, struct error *err)
{
    char *hosts = xasprintf("%s/dnsmasq.hosts", network->dir), *path = xasprintf("%s/%s.%s", hosts, key, device->name);
    const char *ipv4 = device_get(device, "ipv4.address"), *ipv6 = device_get(device, "ipv6.address");
    struct buf line = {0};
    struct stat st;
    int rc = STATUS_OK;
    buf_puts(&line, hwaddr);
    if (ipv4)
        buf_printf(&line, ",%s", ipv4);
    if (ipv6)
        buf_printf(&line, ",[%s]", ipv6);
    if (!str_eq(network__get(network, "dns.mode"), "none"))
        buf_printf(&line, ",%s", spec->name);
    buf_puts(&line, "\n");
    if (stat(hosts, &st) == 0) { /* else the network has no server */
        rc = file_write_atomic(path, line.data, line.len, 0644, err);
        dns__reload(network);
    }
    buf_free(&line);
    free(path);
    free(hosts);
    return rc;
}

static const char *hwaddr_of(const InstanceSpec *spec, const struct device *device, const struct volatile_key *keys, size_t key_count, struct arena *arena)
{
    const char *name = arena_printf(arena, "volatile.%s.hwaddr", device->name), *own = device_get(device, "hwaddr");
    if (!own)
        own = config__get(spec, name);
    for (size_t i = 0; !own && i < key_count; i++)
        if (str_eq(keys[i].key, name))
            own = keys[i].value;
    return own;
}

int networks__remember_nics(struct host *host, const InstanceSpec *spec, const char *key, const struct volatile_key *keys, size_t key_count, struct error *err)
{
    struct arena arena;
    size_t count;
    int rc = STATUS_OK;
    arena_init(&arena);
    struct device *devices = config__devices(spec, &arena, &count);
    for (size_t i = 0; i < count && !rc; i++) {
        const char *name = device_get(&devices[i], "network"), *hwaddr = hwaddr_of(spec, &devices[i], keys, key_count, &arena);
        bool by_parent = !name && str_eq(device_get(&devices[i], "nictype"), "bridged"); /* clients also name a managed bridge so */
        if (by_parent)
            name = device_get(&devices[i], "parent");
        if (!str_eq(device_get(&devices[i], "type"), "nic") || !name || !hwaddr)
            continue;
        if (strchr(devices[i].name, '.') && by_parent)
            continue;
        if (strchr(devices[i].name, '.')) {
            rc = error_set(err, STATUS_INVALID_ARGUMENT, "Invalid device name \"%.64s\": a device with \"network\" may not have a \".\" in its name", devices[i].name);
            break;
        }
        networks__forget_nic(host, key, devices[i].name); /* it may have been in another network */
        pthread_mutex_lock(&host->networks->lock);
        struct network *network = NULL;
        HASH_FIND_STR(host->networks->all, name, network);
        if (network && network->type == NETWORK_BRIDGE)
            rc = remember(network, spec, key, &devices[i], hwaddr, err);
        pthread_mutex_unlock(&host->networks->lock);
    }
    arena_clear(&arena);
    return rc;
}
