/* storage … and project …. */
#include "noun.h"
#include <stdlib.h>
#include <string.h>

static char *upper(const char *text)
{
    char *copy = xstrdup(text);
    for (char *c = copy; *c; c++)
        *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
    return copy;
}

int run_storage_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply, *server = NULL;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cli_call(cli, client, "Server/GetServer", NULL, &server, err);
    if (!status)
        status = cli_call(cli, client, "StoragePools/ListStoragePools", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status) {
        json_decref(server);
        return status;
    }
    bool clustered = json_is_true(json_object_get(json_object_get(server, "environment"), "server_clustered"));
    json_decref(server);
    static const char *const alone[] = {"NAME", "DRIVER", "SOURCE", "DESCRIPTION", "USED BY", "STATE"};
    static const char *const together[] = {"NAME", "DRIVER", "DESCRIPTION", "USED BY", "STATE"};
    struct table table;
    table_init(&table, clustered ? together : alone, clustered ? 5 : 6);
    const json_t *pools = json_object_get(reply, "pools"), *pool;
    size_t index;
    json_array_foreach(pools, index, pool)
    {
        char *used = xasprintf("%zu", json_array_size(json_object_get(pool, "used_by")));
        char *state = upper(json_text(pool, "status"));
        const char *name = json_text(pool, "name"), *driver = json_text(pool, "driver"), *description = json_text(pool, "description");
        if (clustered)
            table_add(&table, name, driver, description, used, state);
        else
            table_add(&table, name, driver, json_text(json_object_get(pool, "config"), "source"), description, used, state);
        free(state);
        free(used);
    }
    table_sort(&table);
    status = cli_print(cli, &table, pools, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

int run_storage_create(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    const char *description = cli_flag(cli, "description");
    json_t *config = cli_pairs(cli->argv + 2, cli->argc - 2, err);
    if (!config)
        return (int)err->code;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (status) {
        json_decref(config);
        return status;
    }
    status = cli_call(cli, client, "StoragePools/CreateStoragePool",
                      json_pack("{s:s,s:s,s:s,s:o}", "name", name, "driver", cli->argv[1], "description", description ? description : "", "config", config),
                      NULL, err);
    if (!status && cli_flag(cli, "target"))
        cli_say(cli, "Storage pool %s pending on member %s\n", name, cli_flag(cli, "target"));
    else if (!status)
        cli_say(cli, "Storage pool %s created\n", name);
    free(name);
    return status;
}

static const struct noun pools = {.service = "StoragePools", .type = "StoragePool", .key = "name", .label = "Storage pool"};

int run_storage_show(struct cli *cli, struct error *err) { return noun_show(cli, &pools, err); }
int run_storage_delete(struct cli *cli, struct error *err) { return noun_delete(cli, &pools, err); }

/* "12.34GiB"; plain bytes with --bytes. */
static json_t *size_text(struct cli *cli, const json_t *value)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double number = json_number_value(value);
    char text[48];
    size_t unit = 0;
    while (!cli_switch(cli, "bytes") && number >= 1024 && unit < 6) {
        number /= 1024;
        unit++;
    }
    snprintf(text, sizeof(text), unit ? "%.2f%s" : "%.0f%s", number, cli_switch(cli, "bytes") ? "" : units[unit]);
    return json_string(text);
}

int run_storage_info(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    json_t *pool = NULL, *resources = NULL;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "StoragePools/GetStoragePool", json_pack("{s:s}", "name", name), &pool, err);
    if (!status)
        status = cli_call(cli, client, "StoragePools/GetStoragePoolResources", json_pack("{s:s}", "name", name), &resources, err);
    if (!status) {
        const json_t *space = json_object_get(resources, "space");
        json_t *used = json_pack("{s:[]}", "instances"), *url;
        size_t index;
        json_array_foreach(json_object_get(pool, "used_by"), index, url)
        {
            char kind[64] = "";
            const char *last = strrchr(json_string_value(url), '/');
            if (sscanf(json_string_value(url), "/1.0/%63[^/]", kind) != 1 || !last)
                continue;
            if (!json_object_get(used, kind))
                json_object_set_new(used, kind, json_array());
            json_array_append_new(json_object_get(used, kind), json_string(last + 1));
        }
        if (!json_array_size(json_object_get(used, "instances")))
            json_object_del(used, "instances");
        json_t *shown = json_pack("{s:{s:s,s:s,s:s,s:o,s:o},s:o}", "info", "description", json_text(pool, "description"), "driver", json_text(pool, "driver"),
                                  "name", json_text(pool, "name"), "space used", size_text(cli, json_object_get(space, "used")), "total space",
                                  size_text(cli, json_object_get(space, "total")), "used by", used);
        status = cli_print_yaml(shown);
        json_decref(shown);
    }
    json_decref(resources);
    json_decref(pool);
    free(name);
    return status;
}

/* ---- projects ---- */

int run_project_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cli_call(cli, client, "Projects/ListProjects", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"NAME", "IMAGES", "PROFILES", "STORAGE VOLUMES", "STORAGE BUCKETS", "NETWORKS", "DESCRIPTION", "USED BY"};
    static const char *const features[] = {"features.images", "features.profiles", "features.storage.volumes", "features.storage.buckets",
                                           "features.networks"};
    struct table table;
    table_init(&table, headers, 8);
    const char *current = cli_flag(cli, "project") ? cli_flag(cli, "project") : "default";
    const json_t *projects = json_object_get(reply, "projects"), *project;
    size_t index;
    json_array_foreach(projects, index, project)
    {
        const char *has[5];
        for (size_t i = 0; i < 5; i++)
            has[i] = strcmp(json_text(json_object_get(project, "config"), features[i]), "true") == 0 ? "YES" : "NO";
        const char *name = json_text(project, "name");
        char *shown = xasprintf("%s%s", name, strcmp(name, current) == 0 ? " (current)" : "");
        char *used = xasprintf("%zu", json_array_size(json_object_get(project, "used_by")));
        table_add(&table, shown, has[0], has[1], has[2], has[3], has[4], json_text(project, "description"), used);
        free(used);
        free(shown);
    }
    table_sort(&table);
    status = cli_print(cli, &table, projects, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

static const struct noun projects = {.service = "Projects", .type = "Project", .key = "name", .label = "Project"};

int run_project_show(struct cli *cli, struct error *err) { return noun_show(cli, &projects, err); }
