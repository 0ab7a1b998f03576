/* The Linux bridge of a network: link, addresses, routes, ports, packet filter. Every step looks at what is there and changes the difference, so that
 * it may be repeated at any time (a daemon's start, a new configuration). Blocks on ip and nft. Under networks->lock. */
#include "network_private.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- link ---- */

static int link_make(const struct network *now, struct error *err)
{
    const char *mac = network__get(now, "bridge.hwaddr"), *name = now->name;
    int rc = STATUS_OK;
    if (!tool__interface(name))
        rc = TOOL(err, "ip", "link", "add", "name", name, "type", "bridge");
    if (!rc)
        rc = TOOL(err, "ip", "link", "set", "dev", name, "address", mac ? mac : now->hwaddr);
    if (!rc)
        rc = TOOL(err, "ip", "link", "set", "dev", name, "mtu", network__get(now, "bridge.mtu"));
    return rc;
}

/* The host's own router advertisements would be ignored once it forwards; 2 means: take them all the same. */
static void keep_advertisements(void)
{
    DIR *dir = opendir("/proc/sys/net/ipv6/conf");
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char *path = xasprintf("/proc/sys/net/ipv6/conf/%s/accept_ra", entry->d_name);
        struct buf text = {0};
        if (entry->d_name[0] != '.' && file_read(path, 16, &text, NULL) == STATUS_OK && text.data[0] == '1') {
            struct error err = ERROR_INIT;
            char *key = xasprintf("ipv6/conf/%s/accept_ra", entry->d_name);
            if (tool__sysctl(key, "2", true, &err))
                log_warn("network.accept_ra", "interface=%s text=\"%s\"", entry->d_name, err.text);
            free(key);
        }
        buf_free(&text);
        free(path);
    }
    if (dir)
        closedir(dir);
}

static int switches(const struct network *now, struct error *err)
{
    struct subnet subnet;
    int rc = STATUS_OK;
    static const char *const own[] = {"autoconf", "accept_ra", "accept_dad"}; /* its addresses are ours to choose, and nobody else has them */
    for (size_t i = 0; i < sizeof(own) / sizeof(own[0]) && !rc; i++) {
        char *path = xasprintf("ipv6/conf/%s/%s", now->name, own[i]);
        rc = tool__sysctl(path, "0", true, err);
        free(path);
    }
    if (!rc && network__subnet(now, "ipv4", &subnet) && network__bool(now, "ipv4.routing"))
        rc = tool__sysctl("ipv4/ip_forward", "1", false, err);
    if (!rc && network__subnet(now, "ipv6", &subnet) && network__bool(now, "ipv6.routing")) {
        keep_advertisements();
        rc = tool__sysctl("ipv6/conf/all/forwarding", "1", false, err);
    }
    return rc;
}

/* ---- addresses and routes ---- */

static int address_set(const struct network *now, const char *family, json_t *there, struct error *err)
{
    struct subnet subnet;
    char wanted[SUBNET_TEXT_MAX] = "";
    bool v6 = str_eq(family, "ipv6"), found = false;
    int rc = STATUS_OK;
    if (network__subnet(now, family, &subnet))
        subnet_text(&subnet, true, wanted);
    size_t index;
    json_t *item;
    json_array_foreach(json_object_get(json_array_get(there, 0), "addr_info"), index, item)
    {
        const char *of = json_string_value(json_object_get(item, "family")), *scope = json_string_value(json_object_get(item, "scope"));
        if (rc || !str_eq(of, v6 ? "inet6" : "inet") || !str_eq(scope, "global"))
            continue;
        char *text = xasprintf("%s/%lld", json_string_value(json_object_get(item, "local")), (long long)json_integer_value(json_object_get(item, "prefixlen")));
        if (str_eq(text, wanted))
            found = true;
        else
            rc = TOOL(err, "ip", "addr", "del", text, "dev", now->name);
        free(text);
    }
    if (!rc && wanted[0] && !found && v6)
        rc = TOOL(err, "ip", "-6", "addr", "add", wanted, "dev", now->name, "nodad");
    else if (!rc && wanted[0] && !found)
        rc = TOOL(err, "ip", "-4", "addr", "add", wanted, "dev", now->name);
    return rc;
}

static int addresses(const struct network *now, struct error *err)
{
    json_t *there = tool__json((const char *const[]){"ip", "-j", "addr", "show", "dev", now->name, NULL}, err);
    if (!there)
        return err->code;
    int rc = address_set(now, "ipv4", there, err);
    if (!rc)
        rc = address_set(now, "ipv6", there, err);
    json_decref(there);
    return rc;
}

/* Our routes are those of protocol static on the bridge. */
static int routes(const struct network *now, const char *family, struct error *err)
{
    const char *flag = str_eq(family, "ipv4") ? "-4" : "-6", *at;
    char key[32], item[SUBNET_TEXT_MAX];
    snprintf(key, sizeof(key), "%s.routes", family);
    json_t *there = tool__json((const char *const[]){"ip", "-j", flag, "route", "show", "dev", now->name, "proto", "static", NULL}, err), *route;
    if (!there)
        return err->code;
    int rc = STATUS_OK;
    size_t index;
    json_array_foreach(there, index, route)
    {
        const char *to = json_string_value(json_object_get(route, "dst"));
        bool wanted = false;
        for (at = network__get(now, key); network__item(&at, item, sizeof(item));)
            wanted = wanted || str_eq(item, to);
        if (!rc && to && !wanted)
            rc = TOOL(err, "ip", flag, "route", "del", to, "dev", now->name, "proto", "static");
    }
    json_decref(there);
    for (at = network__get(now, key); !rc && network__item(&at, item, sizeof(item));)
        rc = TOOL(err, "ip", flag, "route", "replace", item, "dev", now->name, "proto", "static");
    return rc;
}

/* ---- ports ---- */

/* The bridge that an interface is a port of, "" if of none. */
static void master_of(const char *name, char out[64])
{
    json_t *links = tool__json((const char *const[]){"ip", "-j", "link", "show", "dev", name, NULL}, NULL);
    const char *master = json_string_value(json_object_get(json_array_get(links, 0), "master"));
    snprintf(out, 64, "%s", master ? master : "");
    json_decref(links);
}

static bool has_address(const char *name)
{
    json_t *there = tool__json((const char *const[]){"ip", "-j", "addr", "show", "dev", name, "scope", "global", NULL}, NULL), *item;
    bool any = false;
    size_t index;
    json_array_foreach(json_object_get(json_array_get(there, 0), "addr_info"), index, item)
        any = true;
    json_decref(there);
    return any;
}

static int attach(const struct network *now, const char *name, struct error *err)
{
    char master[64];
    if (!tool__interface(name)) {
        log_warn("network.external_interface", "network=%s interface=%s text=\"Skipping attaching missing external interface\"", now->name, name);
        return STATUS_OK;
    }
    master_of(name, master);
    if (str_eq(master, now->name))
        return STATUS_OK;
    if (master[0])
        return error_set(err, STATUS_FAILED_PRECONDITION, "Interface \"%s\" is a port of \"%s\" already", name, master);
    if (has_address(name))
        return error_set(err, STATUS_FAILED_PRECONDITION, "Only unconfigured network interfaces can be bridged: \"%s\" has an address", name);
    int rc = TOOL(err, "ip", "link", "set", "dev", name, "master", now->name);
    return rc ? rc : TOOL(err, "ip", "link", "set", "dev", name, "up");
}

static bool listed(const struct network *network, const char *name)
{
    char item[64];
    for (const char *at = network__get(network, "bridge.external_interfaces"); network__item(&at, item, sizeof(item));)
        if (str_eq(item, name))
            return true;
    return false;
}

/* Gives up those of `before` that `now` (NULL = none) does not have. */
static int detach(const struct network *now, const struct network *before, struct error *err)
{
    char item[64], master[64];
    int rc = STATUS_OK;
    for (const char *at = network__get(before, "bridge.external_interfaces"); !rc && network__item(&at, item, sizeof(item));) {
        if ((now && listed(now, item)) || !tool__interface(item))
            continue;
        master_of(item, master);
        if (str_eq(master, before->name))
            rc = TOOL(err, "ip", "link", "set", "dev", item, "nomaster");
    }
    return rc;
}

static int ports(const struct network *now, const struct network *before, struct error *err)
{
    char item[64];
    int rc = before ? detach(now, before, err) : STATUS_OK;
    for (const char *at = network__get(now, "bridge.external_interfaces"); !rc && network__item(&at, item, sizeof(item));)
        rc = attach(now, item, err);
    return rc;
}

/* ---- packet filter: one table of our own per network, replaced as a whole ---- */

static void nat_rule(const struct network *now, const char *family, struct buf *out)
{
    struct subnet subnet, network;
    char text[SUBNET_TEXT_MAX], key[40];
    const char *word = str_eq(family, "ipv4") ? "ip" : "ip6";
    snprintf(key, sizeof(key), "%s.nat", family);
    if (!network__subnet(now, family, &subnet) || !network__bool(now, key))
        return;
    snprintf(key, sizeof(key), "%s.nat.address", family);
    const char *as = network__get(now, key);
    subnet_network(&subnet, &network);
    subnet_text(&network, true, text);
    if (as)
        buf_printf(out, "    %s saddr %s %s daddr != %s snat %s to %s\n", word, text, word, text, word, as);
    else
        buf_printf(out, "    %s saddr %s %s daddr != %s masquerade\n", word, text, word, text);
}

static void filter_rules(const struct network *now, const char *family, struct buf *input, struct buf *forward)
{
    struct subnet subnet;
    char key[40];
    const char *protocol = str_eq(family, "ipv4") ? "ipv4" : "ipv6", *name = now->name;
    bool own = network__subnet(now, family, &subnet);
    snprintf(key, sizeof(key), "%s.firewall", family);
    if (!own || !network__bool(now, key))
        return;
    snprintf(key, sizeof(key), "%s.dhcp", family);
    bool v4 = str_eq(family, "ipv4");
    buf_printf(input, "    iifname \"%s\" meta nfproto %s tcp dport 53 accept\n    iifname \"%s\" meta nfproto %s udp dport 53 accept\n", name, protocol, name, protocol);
    if (network__bool(now, key))
        buf_printf(input, "    iifname \"%s\" meta nfproto %s udp dport %s accept\n", name, protocol, v4 ? "67" : "547");
    if (!v4)
        buf_printf(input, "    iifname \"%s\" icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept\n", name);
    snprintf(key, sizeof(key), "%s.routing", family);
    const char *verdict = network__bool(now, key) ? "accept" : "reject";
    buf_printf(forward, "    iifname \"%s\" oifname \"%s\" accept\n", name, name);
    buf_printf(forward, "    iifname \"%s\" meta nfproto %s %s\n    oifname \"%s\" meta nfproto %s %s\n", name, protocol, verdict, name, protocol, verdict);
}

static int filter(const struct network *now, struct error *err)
{
    struct buf script = {0}, nat = {0}, input = {0}, forward = {0};
    nat_rule(now, "ipv4", &nat);
    nat_rule(now, "ipv6", &nat);
    filter_rules(now, "ipv4", &input, &forward);
    filter_rules(now, "ipv6", &input, &forward);
    buf_printf(&script, "add table inet covey_%s\ndelete table inet covey_%s\n", now->name, now->name); /* one transaction: never without rules */
    if (nat.len || input.len)
        buf_printf(&script, "table inet covey_%s {\n", now->name);
    if (nat.len)
        buf_printf(&script, "  chain nat {\n    type nat hook postrouting priority srcnat; policy accept;\n%s  }\n", nat.data);
    if (input.len)
        buf_printf(&script,
                   "  chain input {\n    type filter hook input priority filter; policy accept;\n%s  }\n"
                   "  chain forward {\n    type filter hook forward priority filter; policy accept;\n%s  }\n",
                   input.data, forward.data);
    if (nat.len || input.len)
        buf_puts(&script, "}\n");
    int rc = tool__run((const char *const[]){"nft", "-f", "-", NULL}, script.data, NULL, err);
    buf_free(&script);
    buf_free(&nat);
    buf_free(&input);
    buf_free(&forward);
    return rc;
}

/* ---- all of it ---- */

int bridge__apply(const struct network *now, const struct network *before, struct error *err)
{
    int rc = link_make(now, err);
    if (!rc)
        rc = switches(now, err);
    if (!rc)
        rc = filter(now, err); /* before the first packet */
    if (!rc)
        rc = TOOL(err, "ip", "link", "set", "dev", now->name, "up");
    if (!rc)
        rc = addresses(now, err);
    if (!rc)
        rc = routes(now, "ipv4", err);
    if (!rc)
        rc = routes(now, "ipv6", err);
    return rc ? rc : ports(now, before, err);
}

int bridge__remove(const struct network *network, struct error *err)
{
    int rc = detach(NULL, network, err);
    if (!rc && tool__interface(network->name))
        rc = TOOL(err, "ip", "link", "del", "dev", network->name);
    if (rc)
        return rc;
    char *script = xasprintf("add table inet covey_%s\ndelete table inet covey_%s\n", network->name, network->name);
    rc = tool__run((const char *const[]){"nft", "-f", "-", NULL}, script, NULL, err);
    free(script);
    return rc;
}
