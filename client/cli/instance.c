/* launch, init, start, stop, restart, pause, delete, rename, info. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

/* ---- creation ---- */

/* "eth0,type=nic,nictype=bridged": into devices, over what stands there. */
static int add_device(json_t *devices, const char *text, struct error *err)
{
    size_t len = strcspn(text, ",");
    char *name = xasprintf("%.*s", (int)len, text);
    json_t *device = json_object_get(devices, name);
    if (!device) {
        device = json_object();
        json_object_set_new(devices, name, device);
    }
    int status = len && text[len] ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Bad device override syntax, expecting <device>,<key>=<value>: %s", text);
    free(name);
    while (!status && text[len]) {
        text += len + 1;
        len = strcspn(text, ",");
        char *pair = xasprintf("%.*s", (int)len, text);
        if (!strchr(pair, '=') || *pair == '=')
            status = error_set(err, STATUS_INVALID_ARGUMENT, "Bad device override syntax, expecting <device>,<key>=<value>: %s", pair);
        else
            status = cli_pair(device, pair, err);
        free(pair);
    }
    return status;
}

/* The profiles' device of that name, so that an override keeps its other keys. */
static int profile_device(struct cli *cli, struct covey_client *client, const json_t *profiles, const char *name, json_t *devices, struct error *err)
{
    size_t index;
    const json_t *profile_name;
    json_array_foreach(profiles, index, profile_name)
    {
        json_t *profile;
        int status = cli_call(cli, client, "Profiles/GetProfile", json_pack("{s:s}", "name", json_string_value(profile_name)), &profile, err);
        if (status)
            return error_prefix(err, "Failed loading profile \"%s\" for device override", json_string_value(profile_name));
        json_t *device = json_object_get(json_object_get(profile, "devices"), name);
        if (device)
            json_object_set(devices, name, device); /* the later profile wins */
        json_decref(profile);
    }
    return STATUS_OK;
}

static int set_devices(struct cli *cli, struct covey_client *client, json_t *request, struct error *err)
{
    const char *values[CLI_FLAGS_MAX], *network = cli_flag(cli, "network"), *pool = cli_flag(cli, "storage");
    json_t *devices = json_object_get(request, "devices");
    json_t *none = json_pack("[s]", "default");
    const json_t *profiles = json_is_array(json_object_get(request, "profiles")) ? json_object_get(request, "profiles") : none;
    int status = STATUS_OK;
    if (pool)
        json_object_set_new(devices, "root", json_pack("{s:s,s:s,s:s}", "type", "disk", "path", "/", "pool", pool));
    if (network) {
        json_t *nic;
        status = network_nic(cli, client, network, "eth0", &nic, err);
        if (!status)
            json_object_set_new(devices, "eth0", nic);
    }
    size_t count = cli_flag_list(cli, "device", values, CLI_FLAGS_MAX);
    for (size_t i = 0; i < count && !status; i++) {
        char *name = xasprintf("%.*s", (int)strcspn(values[i], ","), values[i]);
        if (!json_object_get(devices, name) && !strstr(values[i], ",type="))
            status = profile_device(cli, client, profiles, name, devices, err);
        if (!status)
            status = add_device(devices, values[i], err);
        free(name);
    }
    json_decref(none);
    return status;
}

static int set_source(struct cli *cli, struct covey_client *client, const char *image, json_t *request, struct error *err)
{
    if (cli_switch(cli, "empty")) {
        json_object_set_new(request, "source", json_pack("{s:s}", "type", "none"));
        return STATUS_OK;
    }
    json_t *alias;
    int status = cli_call(cli, client, "Images/GetImageAlias", json_pack("{s:s}", "name", image), &alias, err);
    if (!status) {
        json_object_set_new(request, "source", json_pack("{s:s,s:s}", "type", "image", "alias", image));
        json_decref(alias);
        return STATUS_OK;
    }
    if (status != STATUS_NOT_FOUND)
        return status;
    json_t *found; /* not an alias: a fingerprint, or its beginning */
    status = cli_call(cli, client, "Images/GetImage", json_pack("{s:s}", "fingerprint", image), &found, err);
    if (status)
        return status == STATUS_NOT_FOUND ? error_set(err, STATUS_NOT_FOUND, "Image \"%s\" not found", image) : status;
    json_object_set_new(request, "source", json_pack("{s:s,s:s}", "type", "image", "fingerprint", json_text(found, "fingerprint")));
    json_decref(found);
    return STATUS_OK;
}

static int creation_request(struct cli *cli, struct covey_client *client, const char *image, const char *name, json_t **request, struct error *err)
{
    const char *values[CLI_FLAGS_MAX], *description = cli_flag(cli, "description"), *type = cli_flag(cli, "type");
    *request = NULL;
    size_t count = cli_flag_list(cli, "config", values, CLI_FLAGS_MAX);
    json_t *config = cli_pairs((char **)values, (int)count, err);
    if (!config)
        return (int)err->code;
    json_t *made = json_pack("{s:s,s:o,s:{},s:b,s:s,s:s,s:s}", "name", name, "config", config, "devices", "ephemeral", cli_switch(cli, "ephemeral"),
                             "description", description ? description : "", "instance_type", type ? type : "", "type", cli_switch(cli, "vm") ? "virtual-machine" : "container");
    count = cli_flag_list(cli, "profile", values, CLI_FLAGS_MAX);
    if (count || cli_switch(cli, "no-profiles")) {
        json_t *profiles = json_array();
        for (size_t i = 0; i < count && !cli_switch(cli, "no-profiles"); i++)
            json_array_append_new(profiles, json_string(values[i]));
        json_object_set_new(made, "profiles", profiles);
    }
    int status = set_source(cli, client, image, made, err);
    if (!status)
        status = set_devices(cli, client, made, err);
    if (status) {
        json_decref(made);
        return status;
    }
    *request = made;
    return STATUS_OK;
}

/* The server's name for an instance created without one. */
static char *created_name(const json_t *operation, const char *name)
{
    const char *url = json_string_value(json_array_get(json_object_get(json_object_get(operation, "resources"), "instances"), 0));
    const char *last = url ? strrchr(url, '/') : NULL;
    if (*name || !last)
        return xstrdup(name);
    return xasprintf("%.*s", (int)strcspn(last + 1, "?"), last + 1);
}

static int create(struct cli *cli, bool start, struct error *err)
{
    bool empty = cli_switch(cli, "empty");
    int name_at = empty ? cli->argc - 1 : 1;
    if (!empty && !cli->argc)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Missing image name (or --empty)");
    if (empty && cli->argc > 1)
        return error_set(err, STATUS_INVALID_ARGUMENT, "--empty cannot be combined with an image name");
    struct covey_client *client, *image_client;
    char *image = NULL, *name = NULL;
    const char *name_arg = name_at >= 0 && cli->argc > name_at ? cli->argv[name_at] : NULL;
    int status = empty ? cli_resolve(cli, name_arg, &client, &name, err) : cli_resolve(cli, cli->argv[0], &image_client, &image, err);
    if (!status && !empty)
        status = cli_resolve(cli, name_arg ? name_arg : cli->argv[0], &client, &name, err);
    if (!status && !name_arg)
        name[0] = 0;
    if (!status && !empty && client != image_client)
        status = error_set(err, STATUS_UNIMPLEMENTED, "not implemented: an image on another remote than the instance");
    json_t *request, *operation = NULL, *final = NULL;
    if (!status)
        status = creation_request(cli, client, image, name, &request, err);
    if (!status) {
        if (*name)
            cli_say(cli, "Creating %s\n", name);
        else
            cli_say(cli, "Creating the instance\n");
        status = cli_call(cli, client, "Instances/CreateInstance", request, &operation, err);
    }
    if (!status)
        status = cli_wait(cli, client, operation, &final, err);
    char *made = operation ? created_name(operation, name) : NULL;
    if (!status && !*name)
        cli_say(cli, "Instance name is: %s\n", made);
    if (!status && start) {
        cli_say(cli, "Starting %s\n", made);
        status = cli_call_wait(cli, client, "Instances/UpdateInstanceState", json_pack("{s:s,s:s,s:i}", "name", made, "action", "start", "timeout", -1), NULL, err);
    }
    free(made);
    free(name);
    free(image);
    json_decref(operation);
    json_decref(final);
    return status;
}

int run_launch(struct cli *cli, struct error *err) { return create(cli, true, err); }
int run_init(struct cli *cli, struct error *err) { return create(cli, false, err); }

/* ---- state ---- */

static int timeout_of(struct cli *cli, int64_t *timeout, struct error *err)
{
    const char *text = cli_flag(cli, "timeout");
    *timeout = -1;
    if (text && parse_i64(text, -1, INT32_MAX, timeout))
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid argument \"%s\" for \"--timeout\"", text);
    return STATUS_OK;
}

static int change_one(struct cli *cli, const char *arg, const char *action, int64_t timeout, struct error *err)
{
    struct covey_client *client;
    char *name;
    int status = cli_resolve(cli, arg, &client, &name, err);
    if (!status && !*name)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Must supply instance name for: \"%s\"", arg);
    json_t *instance = NULL;
    if (!status && strcmp(action, "start") == 0) { /* a frozen one is woken up, as lxc does */
        status = cli_call(cli, client, "Instances/GetInstance", json_pack("{s:s}", "name", name), &instance, err);
        if (!status && json_integer_value(json_object_get(instance, "status_code")) == 110)
            action = "unfreeze";
        json_decref(instance);
    }
    if (!status)
        status = cli_call_wait(cli, client, "Instances/UpdateInstanceState",
                               json_pack("{s:s,s:s,s:I,s:b}", "name", name, "action", action, "timeout", (json_int_t)timeout, "force", cli_switch(cli, "force")),
                               NULL, err);
    free(name);
    return status;
}

static int change_all(struct cli *cli, const char *action, int64_t timeout, struct error *err)
{
    struct covey_client *client;
    size_t len = cli->argc ? strlen(cli->argv[0]) : 0;
    if (cli->argc > 1 || (len && cli->argv[0][len - 1] != ':'))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Both --all and instance name given");
    int status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (status)
        return status;
    return cli_call_wait(cli, client, "Instances/UpdateInstancesState",
                         json_pack("{s:{s:s,s:I,s:b}}", "state", "action", action, "timeout", (json_int_t)timeout, "force", cli_switch(cli, "force")), NULL, err);
}

static int change_state(struct cli *cli, const char *action, struct error *err)
{
    int64_t timeout;
    int status = timeout_of(cli, &timeout, err);
    if (status)
        return status;
    if (cli_switch(cli, "all"))
        return change_all(cli, action, timeout, err);
    if (!cli->argc)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Missing required arguments");
    int first = STATUS_OK;
    for (int i = 0; i < cli->argc; i++) { /* the others are tried even if one fails */
        struct error e = ERROR_INIT;
        if (!change_one(cli, cli->argv[i], action, timeout, &e))
            continue;
        if (cli->argc > 1)
            fprintf(stderr, "Error: %s: %s\n", cli->argv[i], e.text);
        if (!first) {
            first = (int)e.code;
            *err = e;
        }
    }
    if (first && cli->argc > 1)
        error_set(err, first, "Some instances failed to %s", action);
    return first;
}

int run_start(struct cli *cli, struct error *err) { return change_state(cli, "start", err); }
int run_stop(struct cli *cli, struct error *err) { return change_state(cli, "stop", err); }
int run_restart(struct cli *cli, struct error *err) { return change_state(cli, "restart", err); }
int run_pause(struct cli *cli, struct error *err) { return change_state(cli, "freeze", err); }

/* ---- delete, rename ---- */

static int delete_one(struct cli *cli, const char *arg, struct error *err)
{
    struct covey_client *client;
    char *name;
    json_t *instance = NULL;
    int status = cli_resolve(cli, arg, &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "Instances/GetInstance", json_pack("{s:s}", "name", name), &instance, err);
    int64_t code = json_integer_value(json_object_get(instance, "status_code"));
    bool running = code != 0 && code != 102 && code != 112;
    if (!status && running && !cli_switch(cli, "force"))
        status = error_set(err, STATUS_FAILED_PRECONDITION, "The instance is currently running, stop it first or pass --force");
    if (!status && running)
        status = cli_call_wait(cli, client, "Instances/UpdateInstanceState",
                               json_pack("{s:s,s:s,s:i,s:b}", "name", name, "action", "stop", "timeout", -1, "force", 1), NULL, err);
    if (!status && running && json_is_true(json_object_get(instance, "ephemeral"))) {
        json_decref(instance); /* gone by being stopped */
        free(name);
        return STATUS_OK;
    }
    if (!status)
        status = cli_call_wait(cli, client, "Instances/DeleteInstance", json_pack("{s:s}", "name", name), NULL, err);
    if (status)
        error_prefix(err, "Failed deleting instance \"%s\"", name ? name : arg);
    json_decref(instance);
    free(name);
    return status;
}

int run_delete(struct cli *cli, struct error *err)
{
    int status = STATUS_OK;
    for (int i = 0; i < cli->argc && !status; i++)
        status = delete_one(cli, cli->argv[i], err);
    return status;
}

int run_rename(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call_wait(cli, client, "Instances/RenameInstance", json_pack("{s:s,s:s}", "old_name", name, "name", cli->argv[1]), NULL, err);
    free(name);
    return status;
}

/* ---- info ---- */

static void print_bytes(const char *label, const json_t *value)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double number = json_number_value(value);
    size_t unit = 0;
    if (number <= 0)
        return;
    for (; number >= 1024 && unit < 4; unit++)
        number /= 1024;
    printf("    %s: %.2f%s\n", label, number, units[unit]);
}

static void print_network(const json_t *network)
{
    const char *name;
    json_t *nic, *address;
    size_t index;
    printf("  Network usage:\n");
    json_object_foreach((json_t *)network, name, nic)
    {
        const json_t *counters = json_object_get(nic, "counters");
        printf("    %s:\n      Type: %s\n      State: %s\n", name, json_text(nic, "type"), json_text(nic, "state"));
        if (*json_text(nic, "host_name"))
            printf("      Host interface: %s\n", json_text(nic, "host_name"));
        printf("      MAC address: %s\n      MTU: %lld\n", json_text(nic, "hwaddr"), (long long)json_integer_value(json_object_get(nic, "mtu")));
        printf("      Bytes received: %lld\n      Bytes sent: %lld\n", (long long)json_integer_value(json_object_get(counters, "bytes_received")),
               (long long)json_integer_value(json_object_get(counters, "bytes_sent")));
        printf("      IP addresses:\n");
        json_array_foreach(json_object_get(nic, "addresses"), index, address)
            printf("        %s:  %s/%s (%s)\n", json_text(address, "family"), json_text(address, "address"), json_text(address, "netmask"), json_text(address, "scope"));
    }
}

static void print_instance(const json_t *instance, const json_t *state)
{
    char *status = xstrdup(json_text(instance, "status"));
    for (char *c = status; *c; c++)
        *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
    printf("Name: %s\nStatus: %s\nType: %s%s\nArchitecture: %s\n", json_text(instance, "name"), status, json_text(instance, "type"),
           json_is_true(json_object_get(instance, "ephemeral")) ? " (ephemeral)" : "", json_text(instance, "architecture"));
    free(status);
    if (*json_text(instance, "location") && strcmp(json_text(instance, "location"), "none") != 0)
        printf("Location: %s\n", json_text(instance, "location"));
    if (json_integer_value(json_object_get(state, "pid")) > 0)
        printf("PID: %lld\n", (long long)json_integer_value(json_object_get(state, "pid")));
    char at[CLI_SHORT_TIME_SIZE];
    cli_minute_time(json_text(instance, "created_at"), at);
    printf("Created: %s\n", at);
    cli_minute_time(json_text(instance, "last_used_at"), at);
    if (*at)
        printf("Last Used: %s\n", at);
    if (json_integer_value(json_object_get(state, "pid")) <= 0)
        return;
    const json_t *memory = json_object_get(state, "memory");
    printf("\nResources:\n  Processes: %lld\n", (long long)json_integer_value(json_object_get(state, "processes")));
    printf("  CPU usage:\n    CPU usage (in seconds): %lld\n", (long long)(json_integer_value(json_object_get(json_object_get(state, "cpu"), "usage")) / 1000000000));
    printf("  Memory usage:\n");
    print_bytes("Memory (current)", json_object_get(memory, "usage"));
    print_bytes("Memory (peak)", json_object_get(memory, "usage_peak"));
    if (json_object_size(json_object_get(state, "network")))
        print_network(json_object_get(state, "network"));
}

int run_info(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    json_t *instance = NULL, *state = NULL;
    int status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, &name, err);
    if (status)
        return status;
    if (!*name) {
        status = cli_call(cli, client, "Server/GetServer", NULL, &instance, err);
        if (!status)
            status = cli_print_yaml(instance);
    } else {
        status = cli_call(cli, client, "Instances/GetInstance", json_pack("{s:s}", "name", name), &instance, err);
        if (!status)
            status = cli_call(cli, client, "Instances/GetInstanceState", json_pack("{s:s}", "name", name), &state, err);
        if (!status)
            print_instance(instance, state);
    }
    json_decref(instance);
    json_decref(state);
    free(name);
    return status;
}
