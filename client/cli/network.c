/* network …: lists, creation, state, leases, and attaching to profiles. */
#include "noun.h"
#include <stdlib.h>
#include <string.h>

int run_network_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cli_call(cli, client, "Networks/ListNetworks", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"NAME", "TYPE", "MANAGED", "IPV4", "IPV6", "DESCRIPTION", "USED BY", "STATE"};
    struct table table;
    table_init(&table, headers, 8);
    const json_t *list = json_object_get(reply, "networks"), *network;
    size_t index;
    json_array_foreach(list, index, network)
    {
        const char *type = json_text(network, "type");
        if (strcmp(type, "loopback") == 0 || strcmp(type, "unknown") == 0)
            continue;
        const json_t *config = json_object_get(network, "config");
        char *used = xasprintf("%zu", json_array_size(json_object_get(network, "used_by"))), *state = text_upper(json_text(network, "status"));
        table_add(&table, json_text(network, "name"), type, json_is_true(json_object_get(network, "managed")) ? "YES" : "NO", json_text(config, "ipv4.address"),
                  json_text(config, "ipv6.address"), json_text(network, "description"), used, state);
        free(state);
        free(used);
    }
    table_sort(&table);
    status = cli_print(cli, &table, list, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

static int managed_only(const json_t *network, struct error *err)
{
    return json_is_false(json_object_get(network, "managed")) ? error_set(err, STATUS_FAILED_PRECONDITION, "Only managed networks can be modified") : STATUS_OK;
}

static const struct noun networks = {.service = "Networks", .type = "Network", .key = "name", .label = "Network", .check = managed_only};

int run_network_show(struct cli *cli, struct error *err) { return noun_show(cli, &networks, err); }

int run_network_create(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    const char *description = cli_flag(cli, "description"), *type = cli_flag(cli, "network-type"), *target = cli_flag(cli, "target");
    json_t *config = cli_pairs(cli->argv + 1, cli->argc - 1, err);
    if (!config)
        return (int)err->code;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (status) {
        json_decref(config);
        return status;
    }
    status = cli_call(cli, client, "Networks/CreateNetwork",
                      json_pack("{s:s,s:s,s:s,s:o}", "name", name, "type", type ? type : "", "description", description ? description : "", "config", config), NULL, err);
    if (!status && target)
        cli_say(cli, "Network %s pending on member %s\n", name, target);
    else if (!status)
        cli_say(cli, "Network %s created\n", name);
    free(name);
    return status;
}

int run_network_delete(struct cli *cli, struct error *err) { return noun_delete(cli, &networks, err); }
int run_network_rename(struct cli *cli, struct error *err) { return noun_rename(cli, &networks, err); }
int run_network_get(struct cli *cli, struct error *err) { return noun_get_key(cli, &networks, err); }
int run_network_set(struct cli *cli, struct error *err) { return noun_set_keys(cli, &networks, err); }
int run_network_unset(struct cli *cli, struct error *err) { return noun_unset_key(cli, &networks, err); }
int run_network_edit(struct cli *cli, struct error *err) { return noun_edit(cli, &networks, NULL, err); }

/* ---- state and leases ---- */

static long long number(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

static void print_state(const char *name, const json_t *state)
{
    const json_t *counters = json_object_get(state, "counters"), *bridge = json_object_get(state, "bridge"), *address;
    size_t index;
    printf("Name: %s\nMAC address: %s\nMTU: %lld\nState: %s\nType: %s\n", name, json_text(state, "hwaddr"), number(state, "mtu"), json_text(state, "state"),
           json_text(state, "type"));
    if (json_array_size(json_object_get(state, "addresses")))
        printf("\nIP addresses:\n");
    json_array_foreach(json_object_get(state, "addresses"), index, address)
        printf("  %s\t%s/%s (%s)\n", json_text(address, "family"), json_text(address, "address"), json_text(address, "netmask"), json_text(address, "scope"));
    printf("\nNetwork usage:\n  Bytes received: %lld\n  Bytes sent: %lld\n  Packets received: %lld\n  Packets sent: %lld\n", number(counters, "bytes_received"),
           number(counters, "bytes_sent"), number(counters, "packets_received"), number(counters, "packets_sent"));
    if (!json_is_object(bridge))
        return;
    printf("\nBridge:\n  ID: %s\n  STP: %s\n  Forward delay: %lld\n  Default VLAN ID: %lld\n  VLAN filtering: %s\n  Upper devices: ", json_text(bridge, "id"),
           json_is_true(json_object_get(bridge, "stp")) ? "true" : "false", number(bridge, "forward_delay"), number(bridge, "vlan_default"),
           json_is_true(json_object_get(bridge, "vlan_filtering")) ? "true" : "false");
    const json_t *port;
    json_array_foreach(json_object_get(bridge, "upper_devices"), index, port)
        printf("%s%s", index ? ", " : "", json_string_value(port));
    printf("\n");
}

int run_network_info(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    json_t *state = NULL;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "Networks/GetNetworkState", json_pack("{s:s}", "name", name), &state, err);
    if (!status)
        print_state(name, state);
    json_decref(state);
    free(name);
    return status;
}

int run_network_list_leases(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    json_t *reply = NULL;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (status)
        return status;
    status = cli_call(cli, client, "Networks/ListNetworkLeases", json_pack("{s:s}", "name", name), &reply, err);
    free(name);
    if (status)
        return status;
    static const char *const headers[] = {"HOSTNAME", "MAC ADDRESS", "IP ADDRESS", "TYPE", "LOCATION"};
    struct table table;
    table_init(&table, headers, 5);
    const json_t *leases = json_object_get(reply, "leases"), *lease;
    size_t index;
    json_array_foreach(leases, index, lease)
    {
        char *type = text_upper(json_text(lease, "type"));
        table_add(&table, json_text(lease, "hostname"), json_text(lease, "hwaddr"), json_text(lease, "address"), type, json_text(lease, "location"));
        free(type);
    }
    table_sort(&table);
    status = cli_print(cli, &table, leases, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

/* ---- profiles ---- */

int network_nic(struct cli *cli, struct covey_client *client, const char *network, const char *name, json_t **device, struct error *err)
{
    json_t *found;
    *device = NULL;
    int status = cli_call(cli, client, "Networks/GetNetwork", json_pack("{s:s}", "name", network), &found, err);
    if (status)
        return status;
    if (json_is_true(json_object_get(found, "managed")))
        *device = json_pack("{s:s,s:s}", "type", "nic", "network", network);
    else
        *device = json_pack("{s:s,s:s,s:s}", "type", "nic", "nictype", strcmp(json_text(found, "type"), "bridge") == 0 ? "bridged" : "macvlan", "parent", network);
    if (name)
        json_object_set_new(*device, "name", json_string(name));
    json_decref(found);
    return STATUS_OK;
}

int run_network_attach_profile(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *device = NULL, *profile;
    char *network, *etag;
    int status = cli_resolve(cli, cli->argv[0], &client, &network, err);
    if (status)
        return status;
    const char *name = cli->argc > 2 ? cli->argv[2] : network, *interface = cli->argc > 3 ? cli->argv[3] : NULL;
    status = network_nic(cli, client, network, interface, &device, err);
    if (!status)
        status = cli_call_etag(cli, client, "Profiles/GetProfile", json_pack("{s:s}", "name", cli->argv[1]), &profile, &etag, err);
    if (!status && json_object_get(json_object_get(profile, "devices"), name)) {
        status = error_set(err, STATUS_ALREADY_EXISTS, "Device already exists: %s", name);
        free(etag);
        json_decref(profile);
    } else if (!status) {
        json_object_set(json_object_get(profile, "devices"), name, device);
        status = noun_put(cli, &profiles, client, profile, etag, err);
    }
    json_decref(device);
    free(network);
    return status;
}

/* The only NIC of the profile that is attached to the network. */
static const char *attached(const json_t *devices, const char *network, struct error *err)
{
    const char *name, *found = NULL;
    json_t *device;
    json_object_foreach((json_t *)devices, name, device)
    {
        bool matches = strcmp(json_text(device, "type"), "nic") == 0 &&
                       (strcmp(json_text(device, "network"), network) == 0 || strcmp(json_text(device, "parent"), network) == 0);
        if (matches && found) {
            error_set(err, STATUS_INVALID_ARGUMENT, "More than one device matches, specify the device name");
            return NULL;
        }
        found = matches ? name : found;
    }
    if (!found)
        error_set(err, STATUS_NOT_FOUND, "No device found for this network");
    return found;
}

int run_network_detach_profile(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile;
    char *network, *etag;
    int status = cli_resolve(cli, cli->argv[0], &client, &network, err);
    if (status)
        return status;
    status = cli_call_etag(cli, client, "Profiles/GetProfile", json_pack("{s:s}", "name", cli->argv[1]), &profile, &etag, err);
    if (!status) {
        json_t *devices = json_object_get(profile, "devices");
        const char *name = cli->argc > 2 ? cli->argv[2] : attached(devices, network, err);
        char *copy = name ? xstrdup(name) : NULL; /* it belongs to what is removed */
        if (!copy)
            status = (int)err->code;
        else if (json_object_del(devices, copy))
            status = error_set(err, STATUS_NOT_FOUND, "The specified device doesn't exist");
        free(copy);
        if (!status) {
            status = noun_put(cli, &profiles, client, profile, etag, err);
        } else {
            free(etag);
            json_decref(profile);
        }
    }
    free(network);
    return status;
}
