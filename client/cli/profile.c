/* profile …: lists, creation, devices; the rest is as for every noun. */
#include "noun.h"
#include <stdlib.h>
#include <string.h>

int run_profile_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cli_call(cli, client, "Profiles/ListProfiles", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"NAME", "DESCRIPTION", "USED BY"};
    struct table table;
    table_init(&table, headers, 3);
    const json_t *list = json_object_get(reply, "profiles"), *profile;
    size_t index;
    json_array_foreach(list, index, profile)
    {
        char *used = xasprintf("%zu", json_array_size(json_object_get(profile, "used_by")));
        table_add(&table, json_text(profile, "name"), json_text(profile, "description"), used);
        free(used);
    }
    table_sort(&table);
    status = cli_print(cli, &table, list, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

const struct noun profiles = {.service = "Profiles", .type = "Profile", .key = "name", .label = "Profile"};

int run_profile_show(struct cli *cli, struct error *err) { return noun_show(cli, &profiles, err); }

int run_profile_create(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    const char *description = cli_flag(cli, "description"), *pairs[CLI_FLAGS_MAX];
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (status)
        return status;
    size_t count = cli_flag_list(cli, "config", pairs, CLI_FLAGS_MAX);
    json_t *config = cli_pairs((char **)pairs, (int)count, err);
    if (!config) {
        free(name);
        return (int)err->code;
    }
    json_t *request = json_pack("{s:s,s:s,s:o}", "name", name, "description", description ? description : "", "config", config);
    if (!cli_stdin_is_terminal(cli) && !count) { /* as lxc: the content may come by pipe */
        struct buf text = {0};
        status = cli_read_all(cli->in, &text, err);
        json_t *given = status || !text.len ? NULL : yaml_parse(text.data, text.len, err);
        if (!status && text.len && !given)
            status = (int)err->code;
        static const char *const keys[] = {"config", "devices", "description"};
        for (size_t i = 0; i < 3 && given; i++)
            if (json_object_get(given, keys[i]))
                json_object_set(request, keys[i], json_object_get(given, keys[i]));
        json_decref(given);
        buf_free(&text);
    }
    if (!status)
        status = cli_call(cli, client, "Profiles/CreateProfile", request, NULL, err);
    else
        json_decref(request);
    if (!status)
        cli_say(cli, "Profile %s created\n", name);
    free(name);
    return status;
}

int run_profile_delete(struct cli *cli, struct error *err) { return noun_delete(cli, &profiles, err); }
int run_profile_rename(struct cli *cli, struct error *err) { return noun_rename(cli, &profiles, err); }
int run_profile_get(struct cli *cli, struct error *err) { return noun_get_key(cli, &profiles, err); }
int run_profile_set(struct cli *cli, struct error *err) { return noun_set_keys(cli, &profiles, err); }
int run_profile_unset(struct cli *cli, struct error *err) { return noun_unset_key(cli, &profiles, err); }
int run_profile_edit(struct cli *cli, struct error *err) { return noun_edit(cli, &profiles, NULL, err); }

/* ---- devices ---- */

int run_profile_device_add(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile, *device = cli_pairs(cli->argv + 3, cli->argc - 3, err);
    char *etag;
    if (!device)
        return (int)err->code;
    int status = noun_get(cli, &profiles, &client, &profile, &etag, err);
    if (status) {
        json_decref(device);
        return status;
    }
    json_object_set_new(device, "type", json_string(cli->argv[2]));
    json_t *devices = json_object_get(profile, "devices");
    if (json_object_get(devices, cli->argv[1])) {
        free(etag);
        json_decref(device);
        json_decref(profile);
        return error_set(err, STATUS_ALREADY_EXISTS, "The device already exists");
    }
    json_object_set_new(devices, cli->argv[1], device);
    status = noun_put(cli, &profiles, client, profile, etag, err);
    if (!status)
        cli_say(cli, "Device %s added to %s\n", cli->argv[1], cli->argv[0]);
    return status;
}

int run_profile_device_remove(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile;
    char *etag;
    int status = noun_get(cli, &profiles, &client, &profile, &etag, err);
    if (status)
        return status;
    for (int i = 1; i < cli->argc && !status; i++)
        if (json_object_del(json_object_get(profile, "devices"), cli->argv[i]))
            status = error_set(err, STATUS_NOT_FOUND, "The device doesn't exist: %s", cli->argv[i]);
    if (status) {
        free(etag);
        json_decref(profile);
        return status;
    }
    status = noun_put(cli, &profiles, client, profile, etag, err);
    for (int i = 1; i < cli->argc && !status; i++)
        cli_say(cli, "Device %s removed from %s\n", cli->argv[i], cli->argv[0]);
    return status;
}

int run_profile_device_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile, *device;
    int status = noun_get(cli, &profiles, &client, &profile, NULL, err);
    const char *name;
    if (!status)
        json_object_foreach(json_object_get(profile, "devices"), name, device) printf("%s\n", name);
    json_decref(profile);
    return status;
}

int run_profile_device_show(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile;
    int status = noun_get(cli, &profiles, &client, &profile, NULL, err);
    if (!status)
        status = cli_print_yaml(json_object_get(profile, "devices"));
    json_decref(profile);
    return status;
}
