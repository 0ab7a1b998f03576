/* Interfaces of this host as the kernel tells: list, state, subnets in use. Names come from the kernel's own list, details from ip, kinds from /sys.
 * Nothing is kept. Any thread; blocks on ip. */
#include "network_private.h"
#include <dirent.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PORTS_MAX = 4096, SUBNETS_MAX = 10000, SYS_TEXT_BYTES_MAX = 4096 };

static bool sys_has(const char *interface, const char *what)
{
    char *path = xasprintf("/sys/class/net/%s/%s", interface, what);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

/* First line of /sys/class/net/<interface>/<what> in arena, "" if there is none. */
static char *sys_text(struct arena *arena, const char *interface, const char *what)
{
    char *path = xasprintf("/sys/class/net/%s/%s", interface, what);
    struct buf text = {0};
    char *out = arena_strdup(arena, "");
    if (file_read(path, SYS_TEXT_BYTES_MAX, &text, NULL) == STATUS_OK)
        out = arena_strndup(arena, text.data, strcspn(text.data, "\n"));
    buf_free(&text);
    free(path);
    return out;
}

static const char *kind_of(const char *name)
{
    char *vlan = xasprintf("/proc/net/vlan/%s", name);
    const char *kind = "unknown";
    if (str_eq(name, "lo"))
        kind = "loopback";
    else if (sys_has(name, "bridge"))
        kind = "bridge";
    else if (sys_has(name, "bonding"))
        kind = "bond";
    else if (access(vlan, F_OK) == 0)
        kind = "vlan";
    else if (sys_has(name, "device"))
        kind = "physical";
    free(vlan);
    return kind;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct host_interface *)a)->name, ((const struct host_interface *)b)->name);
}

int host_interfaces(struct arena *arena, struct host_interface **out, size_t *count, struct error *err)
{
    *count = 0;
    struct if_nameindex *all = if_nameindex();
    if (!all)
        return error_errno(err, errno, "Failed to list network interfaces");
    size_t total = 0;
    while (all[total].if_index)
        total++;
    *out = arena_alloc(arena, (total + 1) * sizeof(**out));
    for (size_t i = 0; i < total; i++)
        if (!str_prefix(all[i].if_name, "veth"))
            (*out)[(*count)++] = (struct host_interface){arena_strdup(arena, all[i].if_name), kind_of(all[i].if_name)};
    if_freenameindex(all);
    qsort(*out, *count, sizeof(**out), by_name);
    return STATUS_OK;
}

/* ---- state ---- */

static bool has_flag(const json_t *link, const char *flag)
{
    size_t index;
    const json_t *item;
    json_array_foreach(json_object_get(link, "flags"), index, item)
        if (str_eq(json_string_value(item), flag))
            return true;
    return false;
}

static char *text_of(struct arena *arena, const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return arena_strdup(arena, text ? text : "");
}

static void fill_addresses(const json_t *link, struct arena *arena, Covey__V1__NetworkInterfaceState *state)
{
    const json_t *list = json_object_get(link, "addr_info"), *item;
    size_t index;
    state->addresses = arena_alloc(arena, (json_array_size(list) + 1) * sizeof(*state->addresses));
    json_array_foreach(list, index, item)
    {
        Covey__V1__NetworkStateAddress *address = arena_alloc(arena, sizeof(*address));
        covey__v1__network_state_address__init(address);
        address->family = text_of(arena, item, "family");
        address->address = text_of(arena, item, "local");
        address->netmask = arena_printf(arena, "%lld", (long long)json_integer_value(json_object_get(item, "prefixlen")));
        const char *scope = json_string_value(json_object_get(item, "scope"));
        address->scope = arena_strdup(arena, str_eq(scope, "host") ? "local" : scope);
        if (address->address[0])
            state->addresses[state->n_addresses++] = address;
    }
}

static void fill_counters(const json_t *link, struct arena *arena, Covey__V1__NetworkInterfaceState *state)
{
    const json_t *stats = json_object_get(link, "stats64"), *in = json_object_get(stats, "rx"), *to = json_object_get(stats, "tx");
    state->counters = arena_alloc(arena, sizeof(*state->counters));
    covey__v1__network_state_counters__init(state->counters);
    state->counters->bytes_received = json_integer_value(json_object_get(in, "bytes"));
    state->counters->packets_received = json_integer_value(json_object_get(in, "packets"));
    state->counters->bytes_sent = json_integer_value(json_object_get(to, "bytes"));
    state->counters->packets_sent = json_integer_value(json_object_get(to, "packets"));
}

static int ports_of(const char *name, struct arena *arena, char ***out, size_t *count, struct error *err)
{
    char *path = xasprintf("/sys/class/net/%s/brif", name);
    DIR *dir = opendir(path);
    int rc = STATUS_OK;
    *out = arena_alloc(arena, PORTS_MAX * sizeof(**out));
    for (struct dirent *entry; dir && !rc && (entry = readdir(dir));) {
        if (entry->d_name[0] == '.')
            continue;
        if (*count == PORTS_MAX)
            rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "More than %d ports of bridge \"%s\"", PORTS_MAX, name);
        else
            (*out)[(*count)++] = arena_strdup(arena, entry->d_name);
    }
    if (dir)
        closedir(dir);
    free(path);
    return rc;
}

static int fill_bridge(const char *name, struct arena *arena, Covey__V1__NetworkInterfaceState *state, struct error *err)
{
    Covey__V1__NetworkStateBridge *bridge = state->bridge = arena_alloc(arena, sizeof(*bridge));
    covey__v1__network_state_bridge__init(bridge);
    bridge->id = sys_text(arena, name, "bridge/bridge_id");
    bridge->stp = !str_eq(sys_text(arena, name, "bridge/stp_state"), "0");
    bridge->forward_delay = strtoull(sys_text(arena, name, "bridge/forward_delay"), NULL, 10);
    bridge->vlan_default = strtoull(sys_text(arena, name, "bridge/default_pvid"), NULL, 10);
    bridge->vlan_filtering = str_eq(sys_text(arena, name, "bridge/vlan_filtering"), "1");
    return ports_of(name, arena, &bridge->upper_devices, &bridge->n_upper_devices, err);
}

static void fill_bond(const char *name, struct arena *arena, Covey__V1__NetworkInterfaceState *state)
{
    Covey__V1__NetworkStateBond *bond = state->bond = arena_alloc(arena, sizeof(*bond));
    covey__v1__network_state_bond__init(bond);
    char *mode = sys_text(arena, name, "bonding/mode"), *lower = sys_text(arena, name, "bonding/slaves"), *save = NULL;
    bond->mode = arena_strndup(arena, mode, strcspn(mode, " "));
    bond->lower_devices = arena_alloc(arena, (strlen(lower) / 2 + 1) * sizeof(*bond->lower_devices));
    for (char *one = strtok_r(lower, " ", &save); one; one = strtok_r(NULL, " ", &save))
        bond->lower_devices[bond->n_lower_devices++] = one;
}

static void fill_vlan(const json_t *link, struct arena *arena, Covey__V1__NetworkInterfaceState *state)
{
    state->vlan = arena_alloc(arena, sizeof(*state->vlan));
    covey__v1__network_state_vlan__init(state->vlan);
    state->vlan->lower_device = text_of(arena, link, "link");
    state->vlan->vid = (uint64_t)json_integer_value(json_object_get(json_object_get(json_object_get(link, "linkinfo"), "info_data"), "id"));
}

int host_interface_state(const char *name, struct arena *arena, Covey__V1__NetworkInterfaceState **out, struct error *err)
{
    if (str_empty(name) || !tool__interface(name))
        return error_set(err, STATUS_NOT_FOUND, "Network interface not found");
    json_t *list = tool__json((const char *const[]){"ip", "-j", "-s", "-d", "addr", "show", "dev", name, NULL}, err);
    if (!list)
        return err->code;
    const json_t *link = json_array_get(list, 0);
    const char *kind = kind_of(name);
    Covey__V1__NetworkInterfaceState *state = *out = arena_alloc(arena, sizeof(*state));
    covey__v1__network_interface_state__init(state);
    fill_addresses(link, arena, state);
    fill_counters(link, arena, state);
    state->hwaddr = has_flag(link, "LOOPBACK") ? arena_strdup(arena, "") : text_of(arena, link, "address");
    state->mtu = json_integer_value(json_object_get(link, "mtu"));
    state->state = arena_strdup(arena, has_flag(link, "UP") ? "up" : "down");
    state->type = arena_strdup(arena, has_flag(link, "LOOPBACK") ? "loopback" : has_flag(link, "POINTOPOINT") ? "point-to-point" : has_flag(link, "BROADCAST") ? "broadcast" : "unknown");
    int rc = str_eq(kind, "bridge") ? fill_bridge(name, arena, state, err) : STATUS_OK;
    if (str_eq(kind, "bond"))
        fill_bond(name, arena, state);
    if (str_eq(kind, "vlan"))
        fill_vlan(link, arena, state);
    json_decref(list);
    return rc;
}

char *host_network_interface(struct host *host, const char *network, struct arena *arena)
{
    struct network_nic nic;
    return arena_strdup(arena, networks__nic(host, network, &nic, NULL) == STATUS_OK ? nic.parent : network);
}

/* ---- subnets in use ---- */

int interfaces__subnets(struct arena *arena, char ***out, size_t *count, struct error *err)
{
    json_t *routes4 = tool__json((const char *const[]){"ip", "-j", "-4", "route", "show", NULL}, err), *routes6 = NULL, *item;
    *count = 0;
    if (!routes4)
        return err->code;
    routes6 = tool__json((const char *const[]){"ip", "-j", "-6", "route", "show", NULL}, NULL); /* a kernel without IPv6 has none */
    if (routes6)
        json_array_extend(routes4, routes6);
    json_decref(routes6);
    size_t index, total = json_array_size(routes4) < SUBNETS_MAX ? json_array_size(routes4) : SUBNETS_MAX;
    *out = arena_alloc(arena, (total + 1) * sizeof(**out));
    json_array_foreach(routes4, index, item)
    {
        const char *to = json_string_value(json_object_get(item, "dst"));
        struct subnet subnet;
        if (to && *count < total && strchr(to, '/') && subnet_parse(to, &subnet) == 0)
            (*out)[(*count)++] = arena_strdup(arena, to);
    }
    json_decref(routes4);
    return STATUS_OK;
}
