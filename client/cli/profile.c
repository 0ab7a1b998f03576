/* profile …: reads, changes and writes back whole profiles, guarded by their ETag. */
#include "cli.h"
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
    const json_t *profiles = json_object_get(reply, "profiles"), *profile;
    size_t index;
    json_array_foreach(profiles, index, profile)
    {
        char *used = xasprintf("%zu", json_array_size(json_object_get(profile, "used_by")));
        table_add(&table, json_text(profile, "name"), json_text(profile, "description"), used);
        free(used);
    }
    table_sort(&table);
    status = cli_print(cli, &table, profiles, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

static int get_profile(struct cli *cli, struct covey_client **client, json_t **profile, char **etag, struct error *err)
{
    char *name;
    *profile = NULL;
    int status = cli_resolve(cli, cli->argv[0], client, &name, err);
    if (!status && !*name)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Missing profile name");
    if (!status)
        status = cli_call_etag(cli, *client, "Profiles/GetProfile", json_pack("{s:s}", "name", name), profile, etag, err);
    free(name);
    return status;
}

static int put_profile(struct cli *cli, struct covey_client *client, json_t *profile, char *etag, struct error *err)
{
    if (etag)
        json_object_set_new(profile, "if_match", json_string(etag));
    free(etag);
    return cli_call(cli, client, "Profiles/UpdateProfile", profile, NULL, err);
}

int run_profile_show(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile;
    int status = get_profile(cli, &client, &profile, NULL, err);
    if (!status)
        status = cli_print_yaml(profile);
    json_decref(profile);
    return status;
}

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

int run_profile_delete(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "Profiles/DeleteProfile", json_pack("{s:s}", "name", name), NULL, err);
    if (!status)
        cli_say(cli, "Profile %s deleted\n", name);
    free(name);
    return status;
}

int run_profile_rename(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "Profiles/RenameProfile", json_pack("{s:s,s:s}", "old_name", name, "name", cli->argv[1]), NULL, err);
    if (!status)
        cli_say(cli, "Profile %s renamed to %s\n", name, cli->argv[1]);
    free(name);
    return status;
}

int run_profile_get(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile;
    int status = get_profile(cli, &client, &profile, NULL, err);
    if (!status)
        printf("%s\n", json_text(json_object_get(profile, "config"), cli->argv[1]));
    json_decref(profile);
    return status;
}

int run_profile_set(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile, *changes;
    char *etag;
    if (cli->argc == 3 && !strchr(cli->argv[1], '='))
        changes = json_pack("{s:s}", cli->argv[1], cli->argv[2]);
    else
        changes = cli_pairs(cli->argv + 1, cli->argc - 1, err);
    if (!changes)
        return (int)err->code;
    int status = get_profile(cli, &client, &profile, &etag, err);
    if (!status) {
        json_object_update(json_object_get(profile, "config"), changes);
        status = put_profile(cli, client, profile, etag, err);
    }
    json_decref(changes);
    return status;
}

int run_profile_unset(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile;
    char *etag;
    int status = get_profile(cli, &client, &profile, &etag, err);
    if (status)
        return status;
    if (!json_object_del(json_object_get(profile, "config"), cli->argv[1]))
        return put_profile(cli, client, profile, etag, err);
    free(etag);
    json_decref(profile);
    return error_set(err, STATUS_NOT_FOUND, "Can't unset key '%s', it's not currently set", cli->argv[1]);
}

int run_profile_edit(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile;
    char *etag, *edited = NULL;
    int status = get_profile(cli, &client, &profile, &etag, err);
    if (status)
        return status;
    struct buf text = {0};
    yaml_write(profile, &text);
    status = cli_edit(cli, text.data, &edited, err);
    buf_free(&text);
    json_t *changed = status ? NULL : yaml_parse(edited, strlen(edited), err);
    free(edited);
    if (!status && !json_is_object(changed))
        status = changed ? error_set(err, STATUS_INVALID_ARGUMENT, "yaml: expected a map") : (int)err->code;
    if (status) {
        free(etag);
        json_decref(changed);
    } else {
        json_object_set_new(changed, "name", json_string(json_text(profile, "name")));
        if (!cli_stdin_is_terminal(cli)) { /* what comes by pipe replaces, whatever stands there */
            free(etag);
            etag = NULL;
        }
        status = put_profile(cli, client, changed, etag, err);
    }
    json_decref(profile);
    return status;
}

/* ---- devices ---- */

int run_profile_device_add(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile, *device = cli_pairs(cli->argv + 3, cli->argc - 3, err);
    char *etag;
    if (!device)
        return (int)err->code;
    int status = get_profile(cli, &client, &profile, &etag, err);
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
    status = put_profile(cli, client, profile, etag, err);
    if (!status)
        cli_say(cli, "Device %s added to %s\n", cli->argv[1], cli->argv[0]);
    return status;
}

int run_profile_device_remove(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile;
    char *etag;
    int status = get_profile(cli, &client, &profile, &etag, err);
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
    status = put_profile(cli, client, profile, etag, err);
    for (int i = 1; i < cli->argc && !status; i++)
        cli_say(cli, "Device %s removed from %s\n", cli->argv[i], cli->argv[0]);
    return status;
}

int run_profile_device_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *profile, *device;
    int status = get_profile(cli, &client, &profile, NULL, err);
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
    int status = get_profile(cli, &client, &profile, NULL, err);
    if (!status)
        status = cli_print_yaml(json_object_get(profile, "devices"));
    json_decref(profile);
    return status;
}
