/* Rules of networks (spec/api.md 10): types, names, keys, subnets. Pure; controllers use them before they store, the agent before it acts. Thread: any. */
#ifndef COVEY_SERVER_NETWORK_RULES_H
#define COVEY_SERVER_NETWORK_RULES_H

#include "device_rules.h"

enum network_type { NETWORK_BRIDGE = 0, NETWORK_MACVLAN = 1, NETWORK_SRIOV = 2, NETWORK_OVN = 3, NETWORK_PHYSICAL = 4 }; /* stored */
enum { NETWORK_NAME_MAX = 15, NETWORK_VALUE_BYTES_MAX = 4096, NETWORK_KEYS_MAX = 256, NETWORK_LIST_MAX = 64, SUBNET_TEXT_MAX = 64 };

const char *network_type_name(int64_t type);
/* "" = bridge. UNIMPLEMENTED for types that are known and not built. */
int network_type_parse(const char *name, int64_t *type, struct error *err);
/* 2 to 15 of [-_a-zA-Z0-9.], not first "-" or "."; `Network interface is too long (maximum 15 characters)`. */
int network_name_check(const char *name, struct error *err);
bool network_key_member(const char *key); /* may differ per member (spec/cluster.md 4.6) */
/* One key by itself; "" (removes it) is always fine for a known key. Keys that promise what is not built are refused by name. */
int network_key_check(int64_t type, const char *network, const char *key, const char *value, struct error *err);
/* Keys against each other, each checked before; `complete`: with the member's keys. */
int network_config_check(int64_t type, const struct device_option *config, size_t count, bool complete, struct error *err);

/* The value of a key, or what holds without it; NULL when there is none. */
const char *network_get(const struct device_option *config, size_t count, const char *key);
bool network_get_bool(const struct device_option *config, size_t count, const char *key);

/* An address with the length of its network's prefix. */
struct subnet {
    int family; /* AF_INET, AF_INET6 */
    uint8_t address[16];
    unsigned prefix;
};
int subnet_parse(const char *text, struct subnet *out); /* "10.0.0.1/24"; 0 or -1 */
int address_parse(const char *text, struct subnet *out); /* "10.0.0.1": a subnet of one */
bool subnet_contains(const struct subnet *subnet, const struct subnet *other);
bool subnet_overlaps(const struct subnet *a, const struct subnet *b);
void subnet_network(const struct subnet *subnet, struct subnet *out); /* host part zero */
void subnet_text(const struct subnet *subnet, bool with_prefix, char out[SUBNET_TEXT_MAX]);
/* The n-th address of the network (from its end when negative: -1 is the last one). */
void subnet_nth(const struct subnet *subnet, int64_t n, struct subnet *out);
/* "10.0.0.5-10.0.0.9"; 0 or -1. */
int range_parse(const char *text, struct subnet *first, struct subnet *last);

#endif
