/* NICs of managed networks; see devices.h. */
#include "devices.h"

#include "networks.h"
#include <string.h>

static int address_check(struct sql *sql, const struct device_settings *device, const struct network_row *row, const struct settings *config, const char *family, int64_t instance,
                         struct arena *arena, struct error *err)
{
    const struct device_option *options = (const struct device_option *)config->items;
    char *key = arena_printf(arena, "%s.address", family), *dhcp = arena_printf(arena, "%s.dhcp", family);
    const char *address = settings_get(&device->options, key), *own = network_get(options, config->count, key);
    struct subnet subnet, fixed;
    int64_t others = 0;
    if (address == NULL) {
        return STATUS_OK;
    }
    bool given_out = row->type == NETWORK_BRIDGE && own != NULL && subnet_parse(own, &subnet) == 0 && network_get_bool(options, config->count, dhcp) &&
                     (strcmp(family, "ipv4") == 0 || network_get_bool(options, config->count, "ipv6.dhcp.stateful"));
    if (!given_out) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Cannot specify \"%s\" when DHCP%s is disabled on network \"%s\"", key,
            strcmp(family, "ipv4") == 0 ? "" : " or \"ipv6.dhcp.stateful\"", row->name);
    }
    if (address_parse(address, &fixed) != 0 || !subnet_contains(&subnet, &fixed)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Device IP address \"%s\" not within network \"%s\" subnet", address, row->name);
    }
    if (memcmp(fixed.address, subnet.address, sizeof fixed.address) == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "IP address \"%s\" is that of the network \"%s\" itself", address, row->name);
    }
    int status = sql_get_int(sql, &others, err,
        "SELECT count(*) FROM instances_devices_config AS a JOIN instances_devices AS d ON d.id = a.instance_device_id"
        " JOIN instances_devices_config AS n ON n.instance_device_id = d.id AND n.key = 'network' AND n.value = ?2"
        " WHERE a.key = ?1 AND a.value = ?3 AND d.instance_id <> ?4", "sssi", key, row->name, address, instance);
    return status == STATUS_OK && others > 0 ? error_set(err, STATUS_INVALID_ARGUMENT, "IP address \"%s\" already defined on another NIC", address) : status;
}

static int nic_check(struct sql *sql, const struct device_settings *device, const char *name, int64_t instance, struct arena *arena, struct error *err)
{
    struct network_row row;
    struct settings config = {0};
    int status = network_load(sql, name, &row, arena, err);
    if (status == STATUS_NOT_FOUND) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Error loading network config for \"%.64s\": Network not found", name);
    }
    if (status == STATUS_OK && row.state != NETWORK_CREATED) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Specified network is not fully created");
    }
    status = status == STATUS_OK ? network_load_config(sql, row.id, 0, &config, arena, err) : status;
    status = status == STATUS_OK ? address_check(sql, device, &row, &config, "ipv4", instance, arena, err) : status;
    return status == STATUS_OK ? address_check(sql, device, &row, &config, "ipv6", instance, arena, err) : status;
}

int networks_check_devices(struct sql *sql, const struct device_set *devices, int64_t instance, struct error *err)
{
    struct arena arena;
    int status = STATUS_OK;
    arena_init(&arena);
    for (size_t i = 0; i < devices->count && status == STATUS_OK; i++) {
        const struct device_settings *device = &devices->items[i];
        const char *network = settings_get(&device->options, "network");
        if (network == NULL || !str_eq(settings_get(&device->options, "type"), "nic")) {
            continue;
        }
        status = nic_check(sql, device, network, instance, &arena, err);
        if (status != STATUS_OK) {
            error_prefix(err, "Invalid devices: Device validation failed for \"%s\"", device->name);
        }
    }
    arena_clear(&arena);
    return status;
}
