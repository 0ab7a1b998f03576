/* admin init: its modes but the dialogue (dialogue.c): a preseed that is read, one that flags describe, the one that would make this server. Main thread. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

/* ---- without questions ---- */

/* The pool's keys from the flags that say where it is. */
static int pool_place(struct cli *cli, const char *driver, json_t *config, struct error *err)
{
    const char *device = cli_flag(cli, "storage-create-device"), *loop = cli_flag(cli, "storage-create-loop"), *pool = cli_flag(cli, "storage-pool");
    int64_t size;
    if (strcmp(driver, "dir") == 0 && (device || loop || pool))
        return error_set(err, STATUS_INVALID_ARGUMENT, "None of --storage-pool, --storage-create-device or --storage-create-loop may be used with the 'dir' backend");
    if (device && loop)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Only one of --storage-create-device or --storage-create-loop can be specified");
    if (loop && parse_i64(loop, 1, INT32_MAX, &size))
        return error_set(err, STATUS_INVALID_ARGUMENT, "--storage-create-loop: \"%s\" is not a number of GiB", loop);
    if (device || pool)
        json_object_set_new(config, "source", json_string(device ? device : pool));
    if (loop)
        json_object_set_new(config, "size", json_sprintf("%sGiB", loop));
    return STATUS_OK;
}

static int init_auto(struct cli *cli, struct covey_client *client, struct error *err)
{
    json_t *server, *pools = NULL;
    int status = client_call(client, "Server/GetServer", NULL, &server, err);
    if (!status)
        status = client_call(client, "StoragePools/ListStoragePools", json_pack("{s:i}", "recursion", 1), &pools, err);
    const char *driver = cli_flag(cli, "storage-backend") ? cli_flag(cli, "storage-backend") : "dir";
    char *known = driver_list(server, NULL);
    if (!status && !driver_known(known, driver))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "The requested backend '%s' isn't available on your system (missing tools)", driver);
    json_t *place = json_object();
    if (!status)
        status = pool_place(cli, driver, place, err);
    json_t *preseed = preseed_empty(), *config = json_object_get(preseed, "config");
    const char *address = cli_flag(cli, "network-address"), *port = cli_flag(cli, "network-port");
    if (!status && !address && (port || cli_flag(cli, "trust-password")))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "--network-port and --trust-password need --network-address");
    if (address) {
        const char *shown = strcmp(address, "all") == 0 ? "[::]" : address;
        bool brackets = strchr(shown, ':') && shown[0] != '[';
        json_object_set_new(config, "core.https_address", json_sprintf("%s%s%s:%s", brackets ? "[" : "", shown, brackets ? "]" : "", port ? port : "8443"));
    }
    if (cli_flag(cli, "trust-password"))
        json_object_set_new(config, "core.trust_password", json_string(cli_flag(cli, "trust-password")));
    if (!json_array_size(json_object_get(pools, "pools")))
        preseed_add_pool(preseed, "default", driver, json_incref(place));
    if (!status)
        status = preseed_add_bridge(client, preseed, err);
    if (!status)
        status = preseed_apply(cli, client, preseed, err);
    free(known);
    json_decref(place);
    json_decref(preseed);
    json_decref(pools);
    json_decref(server);
    return status;
}

static int init_preseed(struct cli *cli, struct covey_client *client, struct error *err)
{
    struct buf text = {0};
    int status = cli_read_all(cli->in, &text, err);
    json_t *preseed = status ? NULL : preseed_parse(text.data, text.len, err);
    if (!status)
        status = preseed ? preseed_apply(cli, client, preseed, err) : (int)err->code;
    json_decref(preseed);
    buf_free(&text);
    return status;
}

static int check_modes(struct cli *cli, struct error *err)
{
    static const char *const details[] = {"network-address", "network-port", "storage-backend", "storage-create-device", "storage-create-loop", "storage-pool", "trust-password"};
    bool automatic = cli_switch(cli, "auto"), minimal = cli_switch(cli, "minimal"), preseed = cli_switch(cli, "preseed"), detailed = false;
    for (size_t i = 0; i < sizeof(details) / sizeof(*details); i++)
        detailed = detailed || cli_flag(cli, details[i]);
    const char *text = NULL;
    if (automatic && preseed)
        text = "Can't use --auto and --preseed together";
    else if (minimal && preseed)
        text = "Can't use --minimal and --preseed together";
    else if (minimal && automatic)
        text = "Can't use --minimal and --auto together";
    else if (!automatic && detailed)
        text = "Configuration flags require --auto";
    else if (cli_switch(cli, "dump") && (automatic || minimal || preseed || detailed))
        text = "Can't use --dump with other flags";
    return text ? error_set(err, STATUS_INVALID_ARGUMENT, "%s", text) : STATUS_OK;
}

int run_admin_init(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    int status = check_modes(cli, err);
    if (!status)
        status = cli_local(cli, &client, err);
    if (status)
        return status;
    if (cli_switch(cli, "dump")) {
        json_t *preseed;
        status = preseed_dump(cli, client, &preseed, err);
        if (!status)
            status = cli_print_yaml(preseed);
        json_decref(preseed);
        return status;
    }
    if (cli_switch(cli, "preseed"))
        return init_preseed(cli, client, err);
    if (cli_switch(cli, "auto") || cli_switch(cli, "minimal"))
        return init_auto(cli, client, err);
    return init_interactive(cli, client, err);
}
