/* Rules of networks as tables and pure functions; see network_rules.h. */
#include "network_rules.h"
#include "proto/core/core.h"
#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { MTU_MIN = 68, MTU_MAX = 65535, MTU_IPV6_MIN = 1280, DOMAIN_BYTES_MAX = 253 };

/* ---- subnets ---- */

static unsigned bits_of(int family)
{
    return family == AF_INET ? 32 : 128;
}

int address_parse(const char *text, struct subnet *out)
{
    *out = (struct subnet){.family = strchr(text, ':') ? AF_INET6 : AF_INET};
    out->prefix = bits_of(out->family);
    return inet_pton(out->family, text, out->address) == 1 ? 0 : -1;
}

int subnet_parse(const char *text, struct subnet *out)
{
    char address[INET6_ADDRSTRLEN];
    const char *slash = strchr(text, '/');
    int64_t prefix;
    if (!slash || (size_t)(slash - text) >= sizeof(address))
        return -1;
    memcpy(address, text, (size_t)(slash - text));
    address[slash - text] = 0;
    if (address_parse(address, out) || strlen(slash + 1) > 3 || parse_i64(slash + 1, 1, bits_of(out->family), &prefix))
        return -1;
    out->prefix = (unsigned)prefix;
    return 0;
}

static bool same_bits(const uint8_t *a, const uint8_t *b, unsigned bits)
{
    unsigned bytes = bits / 8, rest = bits % 8;
    return memcmp(a, b, bytes) == 0 && (!rest || ((a[bytes] ^ b[bytes]) >> (8 - rest)) == 0);
}

bool subnet_contains(const struct subnet *subnet, const struct subnet *other)
{
    return subnet->family == other->family && other->prefix >= subnet->prefix && same_bits(subnet->address, other->address, subnet->prefix);
}

bool subnet_overlaps(const struct subnet *a, const struct subnet *b)
{
    return subnet_contains(a, b) || subnet_contains(b, a);
}

void subnet_network(const struct subnet *subnet, struct subnet *out)
{
    *out = *subnet;
    for (unsigned bit = subnet->prefix; bit < bits_of(subnet->family); bit++)
        out->address[bit / 8] &= (uint8_t)~(0x80 >> bit % 8);
}

void subnet_text(const struct subnet *subnet, bool with_prefix, char out[SUBNET_TEXT_MAX])
{
    inet_ntop(subnet->family, subnet->address, out, SUBNET_TEXT_MAX);
    if (with_prefix)
        snprintf(out + strlen(out), SUBNET_TEXT_MAX - strlen(out), "/%u", subnet->prefix);
}

void subnet_nth(const struct subnet *subnet, int64_t n, struct subnet *out)
{
    unsigned bytes = bits_of(subnet->family) / 8;
    subnet_network(subnet, out);
    if (n < 0)
        for (unsigned bit = subnet->prefix; bit < bytes * 8; bit++)
            out->address[bit / 8] |= (uint8_t)(0x80 >> bit % 8);
    int64_t carry = n < 0 ? n + 1 : n;
    for (unsigned i = bytes; i-- > 0 && carry;) {
        carry += out->address[i];
        out->address[i] = (uint8_t)(carry & 0xff);
        carry >>= 8;
    }
    out->prefix = bits_of(subnet->family);
}

int range_parse(const char *text, struct subnet *first, struct subnet *last)
{
    char copy[2 * INET6_ADDRSTRLEN + 2], *dash;
    if (strlen(text) >= sizeof(copy))
        return -1;
    strcpy(copy, text);
    dash = strchr(copy, '-');
    if (!dash)
        return -1;
    *dash++ = 0;
    if (address_parse(copy, first) || address_parse(dash, last) || first->family != last->family)
        return -1;
    return memcmp(first->address, last->address, sizeof(first->address)) <= 0 ? 0 : -1;
}

/* ---- types and names ---- */

static const struct {
    int64_t type;
    const char *name;
    bool built;
} types[] = {
    {NETWORK_BRIDGE, "bridge", true}, {NETWORK_MACVLAN, "macvlan", true}, {NETWORK_SRIOV, "sriov", false},
    {NETWORK_OVN, "ovn", false},      {NETWORK_PHYSICAL, "physical", true},
};

const char *network_type_name(int64_t type)
{
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (types[i].type == type)
            return types[i].name;
    return "unknown";
}

int network_type_parse(const char *name, int64_t *type, struct error *err)
{
    *type = NETWORK_BRIDGE;
    if (str_empty(name))
        return STATUS_OK;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        if (!str_eq(types[i].name, name))
            continue;
        *type = types[i].type;
        return types[i].built ? STATUS_OK : error_set(err, STATUS_UNIMPLEMENTED, "not implemented: networks of type \"%s\"", name);
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "Unrecognised network type \"%.64s\"", name);
}

static bool interface_chars(const char *name)
{
    for (const char *c = name; *c; c++)
        if (!isascii((unsigned char)*c) || (!isalnum((unsigned char)*c) && !strchr("-_.", *c)))
            return false;
    return name[0] != '-' && name[0] != '.';
}

int network_name_check(const char *name, struct error *err)
{
    size_t len = strlen(name);
    if (!len)
        return error_set(err, STATUS_INVALID_ARGUMENT, "No name provided");
    if (len < 2)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Network interface is too short (minimum 2 characters)");
    if (len > NETWORK_NAME_MAX)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Network interface is too long (maximum 15 characters)");
    if (!interface_chars(name) || str_eq(name, "all") || str_eq(name, "default")) /* the last two mean every interface to the kernel */
        return error_set(err, STATUS_INVALID_ARGUMENT, "Network interface contains invalid characters");
    return STATUS_OK;
}

/* ---- values ---- */

static bool is_bool(const char *value)
{
    bool flag;
    return parse_bool(value, &flag) == 0;
}

static bool is_mtu(const char *value)
{
    int64_t number;
    return parse_i64(value, MTU_MIN, MTU_MAX, &number) == 0;
}

static bool is_interface(const char *value)
{
    size_t len = strlen(value);
    return len >= 1 && len <= NETWORK_NAME_MAX && interface_chars(value);
}

static bool is_mac(const char *value)
{
    unsigned part[6];
    int end = 0;
    if (strlen(value) != 17 || sscanf(value, "%2x:%2x:%2x:%2x:%2x:%2x%n", &part[0], &part[1], &part[2], &part[3], &part[4], &part[5], &end) != 6 || end != 17)
        return false;
    return (part[0] & 1) == 0; /* a group address is nobody's own */
}

static bool is_address(const char *value, int family)
{
    struct subnet subnet;
    return address_parse(value, &subnet) == 0 && subnet.family == family;
}

static bool is_ipv4(const char *value) { return is_address(value, AF_INET); }
static bool is_ipv6(const char *value) { return is_address(value, AF_INET6); }

/* Of the bridge itself: never the network's or the broadcast address. */
static bool is_own_cidr(const char *value, int family)
{
    struct subnet subnet, edge;
    if (str_eq(value, "none") || str_eq(value, "auto"))
        return true;
    if (subnet_parse(value, &subnet) || subnet.family != family)
        return false;
    subnet_nth(&subnet, 0, &edge);
    if (subnet.prefix < bits_of(family) - 1 && memcmp(edge.address, subnet.address, sizeof(edge.address)) == 0)
        return false;
    subnet_nth(&subnet, -1, &edge);
    return family == AF_INET6 || subnet.prefix >= 31 || memcmp(edge.address, subnet.address, sizeof(edge.address)) != 0;
}

static bool is_cidr4(const char *value) { return is_own_cidr(value, AF_INET); }
static bool is_cidr6(const char *value) { return is_own_cidr(value, AF_INET6); }

/* Every item of a comma list; blanks around items are fine. */
static bool each(const char *value, bool (*check)(const char *item))
{
    size_t count = 0;
    for (const char *at = value;; at++) {
        char item[128];
        at += strspn(at, " ");
        size_t len = strcspn(at, ","), bare = len;
        while (bare && at[bare - 1] == ' ')
            bare--;
        if (bare >= sizeof(item) || ++count > NETWORK_LIST_MAX)
            return false;
        memcpy(item, at, bare);
        item[bare] = 0;
        if (!check(item))
            return false;
        at += len;
        if (!*at)
            return true;
    }
}

static bool is_network(const char *value, int family)
{
    struct subnet subnet, network;
    if (subnet_parse(value, &subnet) || subnet.family != family)
        return false;
    subnet_network(&subnet, &network);
    return memcmp(subnet.address, network.address, sizeof(subnet.address)) == 0;
}

static bool is_network4(const char *value) { return is_network(value, AF_INET); }
static bool is_network6(const char *value) { return is_network(value, AF_INET6); }
static bool are_networks4(const char *value) { return each(value, is_network4); }
static bool are_networks6(const char *value) { return each(value, is_network6); }
static bool are_interfaces(const char *value) { return each(value, is_interface); }

static bool is_range(const char *value, int family)
{
    struct subnet first, last;
    return range_parse(value, &first, &last) == 0 && first.family == family;
}

static bool is_range4(const char *value) { return is_range(value, AF_INET); }
static bool is_range6(const char *value) { return is_range(value, AF_INET6); }
static bool are_ranges4(const char *value) { return each(value, is_range4); }
static bool are_ranges6(const char *value) { return each(value, is_range6); }

/* As dnsmasq takes them: seconds, or a number with m, h, d or w; "infinite". */
static bool is_expiry(const char *value)
{
    size_t digits = strspn(value, "0123456789");
    return str_eq(value, "infinite") || (digits && digits <= 9 && (!value[digits] || (strchr("smhdw", value[digits]) && !value[digits + 1])));
}

static bool is_domain(const char *value)
{
    size_t len = strlen(value);
    if (!len || len > DOMAIN_BYTES_MAX || value[0] == '.' || value[0] == '-')
        return false;
    for (const char *c = value; *c; c++)
        if (!isascii((unsigned char)*c) || (!isalnum((unsigned char)*c) && *c != '-' && *c != '.' && *c != '_'))
            return false;
    return true;
}

static bool are_domains(const char *value) { return each(value, is_domain); }
static bool is_native(const char *value) { return str_eq(value, "native"); }
static bool is_standard(const char *value) { return str_eq(value, "standard"); }
static bool is_dns_mode(const char *value) { return str_eq(value, "managed") || str_eq(value, "dynamic") || str_eq(value, "none"); }

/* ---- keys ---- */

struct network_key {
    int64_t type; /* -1 = every type */
    const char *key;
    bool (*check)(const char *value); /* NULL = any text */
    const char *preset;               /* what holds without it */
};

static const struct network_key keys[] = {
    {-1, "user.*", NULL, NULL},
    {NETWORK_BRIDGE, "bridge.driver", is_native, "native"},
    {NETWORK_BRIDGE, "bridge.mode", is_standard, "standard"},
    {NETWORK_BRIDGE, "bridge.external_interfaces", are_interfaces, NULL},
    {NETWORK_BRIDGE, "bridge.hwaddr", is_mac, NULL},
    {NETWORK_BRIDGE, "bridge.mtu", is_mtu, "1500"},
    {NETWORK_BRIDGE, "ipv4.address", is_cidr4, NULL},
    {NETWORK_BRIDGE, "ipv4.nat", is_bool, "false"},
    {NETWORK_BRIDGE, "ipv4.nat.address", is_ipv4, NULL},
    {NETWORK_BRIDGE, "ipv4.dhcp", is_bool, "true"},
    {NETWORK_BRIDGE, "ipv4.dhcp.ranges", are_ranges4, NULL},
    {NETWORK_BRIDGE, "ipv4.dhcp.expiry", is_expiry, "1h"},
    {NETWORK_BRIDGE, "ipv4.dhcp.gateway", is_ipv4, NULL},
    {NETWORK_BRIDGE, "ipv4.firewall", is_bool, "true"},
    {NETWORK_BRIDGE, "ipv4.routing", is_bool, "true"},
    {NETWORK_BRIDGE, "ipv4.routes", are_networks4, NULL},
    {NETWORK_BRIDGE, "ipv6.address", is_cidr6, NULL},
    {NETWORK_BRIDGE, "ipv6.nat", is_bool, "false"},
    {NETWORK_BRIDGE, "ipv6.nat.address", is_ipv6, NULL},
    {NETWORK_BRIDGE, "ipv6.dhcp", is_bool, "true"},
    {NETWORK_BRIDGE, "ipv6.dhcp.stateful", is_bool, "false"},
    {NETWORK_BRIDGE, "ipv6.dhcp.ranges", are_ranges6, NULL},
    {NETWORK_BRIDGE, "ipv6.dhcp.expiry", is_expiry, "1h"},
    {NETWORK_BRIDGE, "ipv6.firewall", is_bool, "true"},
    {NETWORK_BRIDGE, "ipv6.routing", is_bool, "true"},
    {NETWORK_BRIDGE, "ipv6.routes", are_networks6, NULL},
    {NETWORK_BRIDGE, "dns.mode", is_dns_mode, "managed"},
    {NETWORK_BRIDGE, "dns.domain", is_domain, "lxd"},
    {NETWORK_BRIDGE, "dns.search", are_domains, NULL},
    {NETWORK_MACVLAN, "parent", is_interface, NULL},
    {NETWORK_MACVLAN, "mtu", is_mtu, NULL},
    {NETWORK_PHYSICAL, "parent", is_interface, NULL},
    {NETWORK_PHYSICAL, "mtu", is_mtu, NULL},
};

/* Known, not built: refused, so that nobody relies on them. */
static const char *const unbuilt[] = {"ipv4.nat.order", "ipv6.nat.order", "raw.dnsmasq", "tunnel.*", "fan.*", "security.acls*", "bgp.*", "maas.*", "vlan", "gvrp",
                                      "ipv4.gateway", "ipv6.gateway", "dns.nameservers", "ipv4.ovn.ranges", "ipv6.ovn.ranges", "ovn.*", "dns.zone.*"};

static bool key_matches(const char *pattern, const char *key)
{
    size_t n = strlen(pattern);
    return pattern[n - 1] == '*' ? strncmp(pattern, key, n - 1) == 0 && strlen(key) <= 255 && (key[n - 1] || pattern[n - 2] != '.') : str_eq(pattern, key);
}

bool network_key_member(const char *key)
{
    static const char *const list[] = {"bridge.external_interfaces", "parent", "bgp.ipv4.nexthop", "bgp.ipv6.nexthop"};
    for (size_t i = 0; i < sizeof(list) / sizeof(list[0]); i++)
        if (str_eq(list[i], key))
            return true;
    return false;
}

static bool plain_text(const char *value)
{
    for (const char *c = value; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return false;
    return true;
}

int network_key_check(int64_t type, const char *network, const char *key, const char *value, struct error *err)
{
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if ((keys[i].type != -1 && keys[i].type != type) || !key_matches(keys[i].key, key))
            continue;
        if (str_empty(value))
            return STATUS_OK;
        bool good = strlen(value) <= NETWORK_VALUE_BYTES_MAX && (keys[i].check == NULL || (plain_text(value) && keys[i].check(value)));
        return good ? STATUS_OK
                    : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for network \"%s\" option \"%s\": Invalid value \"%.64s\"", network, key, value);
    }
    for (size_t i = 0; i < sizeof(unbuilt) / sizeof(unbuilt[0]); i++)
        if (key_matches(unbuilt[i], key))
            return str_empty(value) ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%.100s\" of network \"%s\" is not supported", key, network);
    return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid option for network \"%s\" option \"%.100s\"", network, key);
}

const char *network_get(const struct device_option *config, size_t count, const char *key)
{
    for (size_t i = 0; i < count; i++)
        if (str_eq(config[i].key, key) && !str_empty(config[i].value))
            return config[i].value;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (str_eq(keys[i].key, key) && keys[i].preset)
            return keys[i].preset;
    return NULL;
}

bool network_get_bool(const struct device_option *config, size_t count, const char *key)
{
    bool flag = false;
    const char *value = network_get(config, count, key);
    return value && parse_bool(value, &flag) == 0 && flag;
}

/* Whether the bridge has an address of its own in this family. */
static bool own_subnet(const struct device_option *config, size_t count, const char *family, struct subnet *out)
{
    char key[32];
    snprintf(key, sizeof(key), "%s.address", family);
    const char *value = network_get(config, count, key);
    return value && subnet_parse(value, out) == 0;
}

static int family_check(const struct device_option *config, size_t count, const char *family, struct error *err)
{
    static const char *const need_address[] = {"dhcp.ranges", "dhcp.gateway"};
    struct subnet subnet, first, last;
    char key[40];
    snprintf(key, sizeof(key), "%s.address", family);
    const char *address = network_get(config, count, key);
    bool later = address && str_eq(address, "auto"), own = own_subnet(config, count, family, &subnet);
    for (size_t i = 0; i < sizeof(need_address) / sizeof(need_address[0]); i++) {
        snprintf(key, sizeof(key), "%s.%s", family, need_address[i]);
        if (!own && !later && network_get(config, count, key))
            return error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"%s\" needs an address in \"%s.address\"", key, family);
    }
    snprintf(key, sizeof(key), "%s.dhcp.ranges", family);
    const char *ranges = network_get(config, count, key);
    for (const char *at = ranges; own && at && *at; at += strcspn(at, ","), at += *at == ',') {
        char item[128];
        at += strspn(at, " ");
        snprintf(item, sizeof(item), "%.*s", (int)strcspn(at, ", "), at);
        if (range_parse(item, &first, &last) || !subnet_contains(&subnet, &first) || !subnet_contains(&subnet, &last))
            return error_set(err, STATUS_INVALID_ARGUMENT, "IP range \"%s\" of \"%s\" does not fall within any of the allowed networks", item, key);
    }
    return STATUS_OK;
}

int network_config_check(int64_t type, const struct device_option *config, size_t count, bool complete, struct error *err)
{
    if (count > NETWORK_KEYS_MAX)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d config keys of a network", NETWORK_KEYS_MAX);
    if (type != NETWORK_BRIDGE) {
        bool missing = complete && !network_get(config, count, "parent");
        return missing ? error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"parent\" is required for networks of type \"%s\"", network_type_name(type)) : STATUS_OK;
    }
    struct subnet subnet;
    int64_t mtu = 0;
    int rc = family_check(config, count, "ipv4", err);
    if (!rc)
        rc = family_check(config, count, "ipv6", err);
    if (!rc && own_subnet(config, count, "ipv6", &subnet) && parse_i64(network_get(config, count, "bridge.mtu"), 0, MTU_MAX, &mtu) == 0 && mtu < MTU_IPV6_MIN)
        rc = error_set(err, STATUS_INVALID_ARGUMENT, "The minimum MTU for an interface with an IPv6 address is %d", MTU_IPV6_MIN);
    if (!rc && network_get(config, count, "ipv6.dhcp.ranges") && !network_get_bool(config, count, "ipv6.dhcp.stateful"))
        rc = error_set(err, STATUS_INVALID_ARGUMENT, "Config key \"ipv6.dhcp.ranges\" needs \"ipv6.dhcp.stateful\"");
    return rc;
}
