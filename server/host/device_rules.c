/* Rules of devices (see device_rules.h): tables of the options that each type knows, and which of them this agent can apply. Pure. */
#include "device_rules.h"
#include "proto/core/core.h"
#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum { MAC_TEXT_LEN = 17, INTERFACE_NAME_MAX = 15, MTU_MIN = 68, MTU_MAX = 65535, CPU_NUMBER_MAX = 65535 };

typedef bool (*value_check)(const char *value);

struct option_rule {
    const char *key;
    value_check check; /* NULL: any text */
    bool supported;    /* by this version's agent */
};
struct type_rule {
    const char *type;
    const struct option_rule *options; /* ends with a NULL key */
    bool supported;
};

static bool is_bool(const char *value)
{
    bool out;
    return parse_bool(value, &out) == 0;
}

static bool is_number(const char *value)
{
    int64_t out;
    return parse_i64(value, 0, INT64_MAX, &out) == 0;
}

static bool is_mtu(const char *value)
{
    int64_t out;
    return parse_i64(value, MTU_MIN, MTU_MAX, &out) == 0;
}

static bool is_size(const char *value)
{
    int64_t out;
    return size_parse(value, &out) == 0;
}

static bool is_interface(const char *value)
{
    size_t len = strlen(value);
    if (!len || len > INTERFACE_NAME_MAX || str_eq(value, ".") || str_eq(value, ".."))
        return false;
    for (const char *c = value; *c; c++)
        if (isspace((unsigned char)*c) || *c == '/' || *c == ':' || (unsigned char)*c < 0x21 || (unsigned char)*c > 0x7e)
            return false;
    return true;
}

static bool is_mac(const char *value)
{
    if (strlen(value) != MAC_TEXT_LEN)
        return false;
    for (int i = 0; i < MAC_TEXT_LEN; i++)
        if (i % 3 == 2 ? value[i] != ':' : !isxdigit((unsigned char)value[i]))
            return false;
    return true;
}

static bool is_ipv4(const char *value)
{
    struct in_addr address;
    return inet_pton(AF_INET, value, &address) == 1;
}

static bool is_ipv6(const char *value)
{
    struct in6_addr address;
    return inet_pton(AF_INET6, value, &address) == 1;
}

/* Of a mount inside: no way up, no control characters. */
static bool is_path(const char *value)
{
    if (!*value)
        return false;
    for (const char *part = value; *part;) {
        size_t n = strcspn(part, "/");
        if (n == 2 && part[0] == '.' && part[1] == '.')
            return false;
        part += n + (part[n] == '/');
    }
    for (const char *c = value; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            return false;
    return true;
}

static bool is_nictype(const char *value)
{
    static const char *const known[] = {"bridged", "macvlan", "physical", "p2p", "ipvlan", "routed", "sriov", "ovn"};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (str_eq(value, known[i]))
            return true;
    return false;
}

static const struct option_rule none_options[] = {{"type", NULL, true}, {NULL, NULL, false}};
static const struct option_rule disk_options[] = {
    {"type", NULL, true}, {"path", is_path, true}, {"source", is_path, true}, {"pool", NULL, true}, {"size", is_size, true},
    {"size.state", is_size, false}, {"limits.read", NULL, false}, {"limits.write", NULL, false}, {"limits.max", NULL, false},
    {"boot.priority", is_number, true}, {"readonly", is_bool, true}, {"required", is_bool, true}, {"optional", is_bool, true},
    {"recursive", is_bool, true}, {"shift", is_bool, false}, {"propagation", NULL, false}, {"raw.mount.options", NULL, false}, {NULL, NULL, false},
};
static const struct option_rule nic_options[] = {
    {"type", NULL, true}, {"network", NULL, true}, {"nictype", is_nictype, true}, {"parent", is_interface, true}, {"name", is_interface, true},
    {"hwaddr", is_mac, true}, {"host_name", is_interface, true}, {"mtu", is_mtu, true}, {"boot.priority", is_number, true},
    {"ipv4.address", is_ipv4, true}, {"ipv6.address", is_ipv6, true}, {"ipv4.routes", NULL, false}, {"ipv6.routes", NULL, false},
    {"limits.ingress", NULL, false}, {"limits.egress", NULL, false}, {"limits.max", NULL, false}, {"security.mac_filtering", is_bool, false},
    {"security.ipv4_filtering", is_bool, false}, {"security.ipv6_filtering", is_bool, false}, {"security.port_isolation", is_bool, false},
    {"vlan", NULL, false}, {"vlan.tagged", NULL, false}, {NULL, NULL, false},
};
static const struct option_rule proxy_options[] = {
    {"type", NULL, true}, {"listen", NULL, false}, {"connect", NULL, false}, {"bind", NULL, false}, {"nat", is_bool, false}, {"mode", NULL, false},
    {"uid", is_number, false}, {"gid", is_number, false}, {"security.uid", is_number, false}, {"security.gid", is_number, false},
    {"proxy_protocol", is_bool, false}, {NULL, NULL, false},
};
static const struct option_rule unix_options[] = {
    {"type", NULL, true}, {"source", NULL, false}, {"path", NULL, false}, {"major", is_number, false}, {"minor", is_number, false},
    {"uid", is_number, false}, {"gid", is_number, false}, {"mode", NULL, false}, {"required", is_bool, false}, {NULL, NULL, false},
};

/* Types without a table are known by name only: nothing about them is checked, nothing is started. */
static const struct type_rule types[] = {
    {"none", none_options, true}, {"disk", disk_options, true}, {"nic", nic_options, true}, {"proxy", proxy_options, false},
    {"unix-char", unix_options, false}, {"unix-block", unix_options, false}, {"unix-hotplug", NULL, false}, {"usb", NULL, false},
    {"gpu", NULL, false}, {"infiniband", NULL, false}, {"tpm", NULL, false}, {"pci", NULL, false},
};

static const struct type_rule *find_type(const char *name)
{
    for (size_t i = 0; name && i < sizeof(types) / sizeof(types[0]); i++)
        if (str_eq(types[i].type, name))
            return &types[i];
    return NULL;
}

static const struct option_rule *find_option(const struct type_rule *type, const char *key)
{
    for (const struct option_rule *rule = type->options; rule->key; rule++)
        if (str_eq(rule->key, key))
            return rule;
    return NULL;
}

const char *device_get(const struct device *device, const char *key)
{
    for (size_t i = 0; i < device->option_count; i++)
        if (str_eq(device->options[i].key, key))
            return str_empty(device->options[i].value) ? NULL : device->options[i].value;
    return NULL;
}

static int invalid(const struct device *device, struct error *err, const char *fmt, const char *a)
{
    char why[256];
    snprintf(why, sizeof(why), fmt, a);
    return error_set(err, STATUS_INVALID_ARGUMENT, "Device validation failed for \"%.64s\": %s", device->name, why);
}

static int check_disk(const struct device *device, struct error *err)
{
    const char *path = device_get(device, "path"), *source = device_get(device, "source"), *pool = device_get(device, "pool");
    if (path && str_eq(path, "/")) {
        if (source)
            return invalid(device, err, "Root disk entry may not have a \"source\" property set%s", "");
        return pool ? STATUS_OK : invalid(device, err, "Root disk entry must have a \"pool\" property set%s", "");
    }
    if (!path || !source)
        return invalid(device, err, "Disk entry is missing the required \"source\" or \"path\" property%s", "");
    if (device_get(device, "size") || device_get(device, "size.state"))
        return invalid(device, err, "Only the root disk may have a size quota%s", "");
    if (!pool && source[0] != '/')
        return invalid(device, err, "Invalid value for device option \"source\": %s", "Must be an absolute path");
    return STATUS_OK;
}

static int check_nic(const struct device *device, struct error *err)
{
    static const char *const excluded[] = {"nictype", "parent", "mtu"};
    const char *network = device_get(device, "network"), *nictype = device_get(device, "nictype");
    for (size_t i = 0; network && i < sizeof(excluded) / sizeof(excluded[0]); i++)
        if (device_get(device, excluded[i]))
            return invalid(device, err, "Cannot use \"%s\" property in conjunction with \"network\" property", excluded[i]);
    if (!network && !nictype)
        return invalid(device, err, "Invalid value for device option \"nictype\": %s", "Required value");
    if (!network && !str_eq(nictype, "p2p") && !device_get(device, "parent") && !str_eq(nictype, "routed"))
        return invalid(device, err, "Invalid value for device option \"parent\": %s", "Required value");
    return STATUS_OK;
}

int device_check(const struct device *device, struct error *err)
{
    const char *type_name = device_get(device, "type");
    if (str_empty(device->name) || strlen(device->name) > DEVICE_NAME_MAX || strpbrk(device->name, "/\n \t") || device->name[0] == '.')
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid device name \"%.64s\"", device->name ? device->name : "");
    if (device->option_count > DEVICE_OPTIONS_MAX)
        return invalid(device, err, "Too many options%s", "");
    if (!type_name)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Missing device type for device \"%s\"", device->name);
    const struct type_rule *type = find_type(type_name);
    if (!type)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid device type %.64s", type_name);
    for (size_t i = 0; type->options && i < device->option_count; i++) {
        const struct device_option *option = &device->options[i];
        const struct option_rule *rule = find_option(type, option->key);
        char text[160];
        if (!rule && str_prefix(option->key, "user."))
            continue;
        if (!rule)
            return invalid(device, err, "Invalid device option \"%.64s\"", option->key);
        if (str_empty(option->value))
            continue;
        if (strlen(option->value) > DEVICE_VALUE_MAX || (rule->check && !rule->check(option->value))) {
            snprintf(text, sizeof(text), "Invalid value for device option \"%.32s\": Invalid value \"%.64s\"", option->key, option->value);
            return invalid(device, err, "%s", text);
        }
    }
    if (str_eq(type_name, "disk"))
        return check_disk(device, err);
    return str_eq(type_name, "nic") ? check_nic(device, err) : STATUS_OK;
}

/* Whether two devices of the same type claim the same place. */
static int check_pair(const struct device *a, const struct device *b, struct error *err)
{
    const char *type = device_get(a, "type");
    if (str_eq(a->name, b->name))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Device \"%s\" is given twice", a->name);
    if (!str_eq(type, device_get(b, "type")))
        return STATUS_OK;
    const char *key = str_eq(type, "disk") ? "path" : str_eq(type, "nic") ? "name" : NULL;
    const char *left = key ? device_get(a, key) : NULL, *right = key ? device_get(b, key) : NULL;
    if (!left || !right || !str_eq(left, right))
        return STATUS_OK;
    if (str_eq(key, "path"))
        return error_set(err, STATUS_INVALID_ARGUMENT, "More than one disk device uses the same path \"%.200s\"", left);
    return error_set(err, STATUS_INVALID_ARGUMENT, "Duplicate network device name \"%.64s\" used by both \"%s\" and \"%s\"", left, a->name, b->name);
}

const struct device *devices_root(const struct device *devices, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *path = device_get(&devices[i], "path");
        if (str_eq(device_get(&devices[i], "type"), "disk") && path && str_eq(path, "/") && !device_get(&devices[i], "source"))
            return &devices[i];
    }
    return NULL;
}

int devices_check(const struct device *devices, size_t count, bool need_root, struct error *err)
{
    if (count > DEVICES_MAX)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "More than %d devices", DEVICES_MAX);
    for (size_t i = 0; i < count; i++) {
        if (device_check(&devices[i], err))
            return err ? (int)err->code : STATUS_INVALID_ARGUMENT;
        for (size_t k = 0; k < i; k++)
            if (check_pair(&devices[k], &devices[i], err))
                return err ? (int)err->code : STATUS_INVALID_ARGUMENT;
    }
    if (need_root && !devices_root(devices, count))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Failed getting root disk: No root device could be found");
    return STATUS_OK;
}

int device_supported(const struct device *device, struct error *err)
{
    const struct type_rule *type = find_type(device_get(device, "type"));
    const char *nictype = device_get(device, "nictype"), *path = device_get(device, "path");
    if (!type || !type->supported)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Unsupported device type \"%s\" of device \"%s\"", type ? type->type : "", device->name);
    static const char *const fixed[] = {"ipv4.address", "ipv6.address"};
    for (size_t i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++) /* given out by the DHCP server of a managed network only */
        if (str_eq(type->type, "nic") && device_get(device, fixed[i]) && !device_get(device, "network"))
            return error_set(err, STATUS_FAILED_PRECONDITION, "Unsupported device option \"%s\" of device \"%s\" without \"network\"", fixed[i], device->name);
    bool known = !nictype || str_eq(nictype, "bridged") || str_eq(nictype, "macvlan") || str_eq(nictype, "physical");
    if (str_eq(type->type, "nic") && !known)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Unsupported device type \"nic\" with nictype \"%s\" of device \"%s\"", nictype, device->name);
    if (str_eq(type->type, "disk") && device_get(device, "pool") && !(path && str_eq(path, "/")))
        return error_set(err, STATUS_FAILED_PRECONDITION, "Unsupported device type \"disk\" with a custom volume of device \"%s\"", device->name);
    for (size_t i = 0; i < device->option_count; i++) {
        const struct option_rule *rule = find_option(type, device->options[i].key);
        bool off = false;
        if (!rule || rule->supported || str_empty(device->options[i].value))
            continue;
        if (rule->check == is_bool && parse_bool(device->options[i].value, &off) == 0 && !off)
            continue; /* switched off is what we do anyway */
        return error_set(err, STATUS_FAILED_PRECONDITION, "Unsupported device option \"%s\" of device \"%s\"", rule->key, device->name);
    }
    return STATUS_OK;
}

int size_parse(const char *text, int64_t *bytes)
{
    static const struct {
        const char *unit;
        int64_t factor;
    } units[] = {
        {"", 1}, {"B", 1}, {"kB", 1000}, {"MB", 1000000}, {"GB", 1000000000}, {"TB", 1000000000000}, {"PB", 1000000000000000},
        {"EB", 1000000000000000000}, {"KiB", INT64_C(1) << 10}, {"MiB", INT64_C(1) << 20}, {"GiB", INT64_C(1) << 30}, {"TiB", INT64_C(1) << 40},
        {"PiB", INT64_C(1) << 50}, {"EiB", INT64_C(1) << 60},
    };
    char digits[24];
    size_t n = text ? strspn(text, "0123456789") : 0;
    int64_t number;
    if (!n || n >= sizeof(digits))
        return -1;
    memcpy(digits, text, n);
    digits[n] = 0;
    if (parse_i64(digits, 0, INT64_MAX, &number))
        return -1;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (!str_eq(text + n, units[i].unit))
            continue;
        if (number > INT64_MAX / units[i].factor)
            return -1;
        *bytes = number * units[i].factor;
        return 0;
    }
    return -1;
}

int cpu_limit_parse(const char *text, int64_t *count, struct error *err)
{
    int64_t first = -1, last;
    *count = 0;
    if (text && parse_i64(text, 1, CPU_NUMBER_MAX, count) == 0)
        return STATUS_OK;
    *count = 0;
    const char *rest = text ? text : "";
    for (bool more = true; more;) { /* N or N-M, with commas between */
        char number[12];
        for (int end = 0; end < 2; end++) {
            size_t n = strspn(rest, "0123456789");
            if (!n || n >= sizeof(number))
                return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid CPU limit syntax");
            memcpy(number, rest, n);
            number[n] = 0;
            if (parse_i64(number, 0, CPU_NUMBER_MAX, end ? &last : &first))
                return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid CPU limit syntax");
            rest += n;
            if (end == 0 && *rest != '-')
                break;
            if (end == 0)
                rest++;
            else if (last < first)
                return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid CPU limit syntax");
        }
        more = *rest == ',';
        if (more)
            rest++;
    }
    return *rest ? error_set(err, STATUS_INVALID_ARGUMENT, "Invalid CPU limit syntax") : STATUS_OK;
}
