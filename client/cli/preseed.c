/* Preseed: reading the YAML against a table of its keys, applying it step by step with undo, and dumping. Order, texts and rollback are
 * spec/cluster.md 3.3. A step that fails undoes the earlier ones in reverse; an undo that fails itself is reported and the others go on. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

enum { UNDO_MAX = 10000, BRIDGE_NAMES_MAX = 1000 };

/* ---- reading ---- */

enum kind { TEXT, BOOL, TEXT_MAP, DEVICE_MAP, LIST };

struct key {
    const char *name;
    enum kind kind;
    const struct key *items; /* LIST */
};

static const struct key pool_keys[] = {{"name", TEXT, NULL}, {"driver", TEXT, NULL}, {"description", TEXT, NULL}, {"config", TEXT_MAP, NULL}, {NULL, TEXT, NULL}};
static const struct key network_keys[] = {{"name", TEXT, NULL}, {"type", TEXT, NULL}, {"description", TEXT, NULL},
                                          {"config", TEXT_MAP, NULL}, {"project", TEXT, NULL}, {NULL, TEXT, NULL}};
static const struct key project_keys[] = {{"name", TEXT, NULL}, {"description", TEXT, NULL}, {"config", TEXT_MAP, NULL}, {NULL, TEXT, NULL}};
static const struct key profile_keys[] = {{"name", TEXT, NULL}, {"description", TEXT, NULL}, {"config", TEXT_MAP, NULL}, {"devices", DEVICE_MAP, NULL}, {NULL, TEXT, NULL}};
static const struct key member_keys[] = {{"entity", TEXT, NULL}, {"name", TEXT, NULL}, {"key", TEXT, NULL}, {"value", TEXT, NULL}, {"description", TEXT, NULL}, {NULL, TEXT, NULL}};
static const struct key cluster_keys[] = {{"enabled", BOOL, NULL}, {"server_name", TEXT, NULL}, {"server_address", TEXT, NULL}, {"cluster_address", TEXT, NULL},
                                          {"cluster_certificate", TEXT, NULL}, {"cluster_certificate_path", TEXT, NULL}, {"cluster_password", TEXT, NULL},
                                          {"cluster_token", TEXT, NULL}, {"member_config", LIST, member_keys}, {NULL, TEXT, NULL}};
static const struct key top_keys[] = {{"config", TEXT_MAP, NULL}, {"storage_pools", LIST, pool_keys}, {"networks", LIST, network_keys},
                                      {"projects", LIST, project_keys}, {"profiles", LIST, profile_keys}, {NULL, TEXT, NULL}};

#define PARSE_PREFIX "Failed to parse the preseed: yaml: unmarshal errors: "

static int wrong_type(struct error *err, const char *where, const char *key, const char *wanted)
{
    return error_set(err, STATUS_INVALID_ARGUMENT, PARSE_PREFIX "cannot unmarshal %s%s%s: expected %s", where, *where ? "." : "", key, wanted);
}

/* A scalar as text, NULL for maps and lists; null gives "". */
static json_t *scalar_text(const json_t *value)
{
    char number[24];
    if (json_is_string(value))
        return json_incref((json_t *)value);
    if (json_is_null(value))
        return json_string("");
    if (json_is_boolean(value))
        return json_string(json_is_true(value) ? "true" : "false");
    if (!json_is_integer(value))
        return NULL;
    snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(value));
    return json_string(number);
}

static json_t *text_map(const json_t *value, const char *where, const char *name, struct error *err)
{
    json_t *map = json_object(), *item;
    const char *key;
    if (!json_is_null(value) && !json_is_object(value)) {
        wrong_type(err, where, name, "a map");
        json_decref(map);
        return NULL;
    }
    json_object_foreach((json_t *)value, key, item)
    {
        json_t *text = scalar_text(item);
        if (!text) {
            char *inner = xasprintf("%s%s%s", where, *where ? "." : "", name);
            wrong_type(err, inner, key, "a scalar");
            free(inner);
            json_decref(map);
            return NULL;
        }
        json_object_set_new(map, key, text);
    }
    return map;
}

static json_t *read_keys(const json_t *value, const struct key *keys, const char *where, struct error *err);

static json_t *read_list(const json_t *value, const struct key *key, const char *where, struct error *err)
{
    if (!json_is_null(value) && !json_is_array(value)) {
        wrong_type(err, where, key->name, "a list");
        return NULL;
    }
    json_t *list = json_array(), *item;
    size_t index;
    json_array_foreach((json_t *)value, index, item)
    {
        char *inner = xasprintf("%s%s%s[%zu]", where, *where ? "." : "", key->name, index);
        json_t *object = read_keys(item, key->items, inner, err);
        free(inner);
        if (!object) {
            json_decref(list);
            return NULL;
        }
        json_array_append_new(list, object);
    }
    return list;
}

static json_t *read_devices(const json_t *value, const char *where, const char *name, struct error *err)
{
    json_t *devices = json_object(), *item;
    const char *device;
    if (!json_is_null(value) && !json_is_object(value)) {
        wrong_type(err, where, name, "a map of maps");
        json_decref(devices);
        return NULL;
    }
    json_object_foreach((json_t *)value, device, item)
    {
        json_t *options = text_map(item, where, device, err);
        if (!options) {
            json_decref(devices);
            return NULL;
        }
        json_object_set_new(devices, device, options);
    }
    return devices;
}

static json_t *read_value(const json_t *value, const struct key *key, const char *where, struct error *err)
{
    json_t *text;
    switch (key->kind) {
    case TEXT:
        text = scalar_text(value);
        if (!text)
            wrong_type(err, where, key->name, "a text");
        return text;
    case BOOL:
        if (!json_is_boolean(value) && !json_is_null(value)) {
            wrong_type(err, where, key->name, "true or false");
            return NULL;
        }
        return json_boolean(json_is_true(value));
    case TEXT_MAP:
        return text_map(value, where, key->name, err);
    case DEVICE_MAP:
        return read_devices(value, where, key->name, err);
    case LIST:
        return read_list(value, key, where, err);
    }
    return NULL;
}

static json_t *read_keys(const json_t *value, const struct key *keys, const char *where, struct error *err)
{
    if (!json_is_object(value)) {
        error_set(err, STATUS_INVALID_ARGUMENT, PARSE_PREFIX "cannot unmarshal %s: expected a map", *where ? where : "the document");
        return NULL;
    }
    json_t *object = json_object(), *item;
    const char *name;
    json_object_foreach((json_t *)value, name, item)
    {
        const struct key *key = keys;
        while (key->name && strcmp(key->name, name) != 0)
            key++;
        json_t *read = NULL;
        if (key->name)
            read = read_value(item, key, where, err);
        else if (keys == top_keys && strcmp(name, "cluster") == 0)
            read = json_is_null(item) ? json_null() : read_keys(item, cluster_keys, "cluster", err);
        else
            error_set(err, STATUS_INVALID_ARGUMENT, PARSE_PREFIX "field %s not found in %s", name, *where ? where : "preseed");
        if (!read) {
            json_decref(object);
            return NULL;
        }
        json_object_set_new(object, name, read);
    }
    return object;
}

json_t *preseed_parse(const char *text, size_t len, struct error *err)
{
    json_t *document = yaml_parse(text, len, err);
    if (!document) {
        error_prefix(err, "Failed to parse the preseed");
        return NULL;
    }
    json_t *empty = json_is_null(document) ? json_object() : NULL; /* an empty text changes nothing */
    json_t *preseed = read_keys(empty ? empty : document, top_keys, "", err);
    json_decref(empty);
    json_decref(document);
    return preseed;
}

/* ---- applying ---- */

struct apply {
    struct cli *cli;
    struct covey_client *client;
    json_t *undo; /* list of {method, request}, to be run from its end */
};

static void on_failure(struct apply *apply, const char *method, json_t *request)
{
    covey_assert(json_array_size(apply->undo) < UNDO_MAX);
    json_array_append_new(apply->undo, json_pack("{s:s,s:o}", "method", method, "request", request));
}

static void undo_all(struct apply *apply)
{
    for (size_t i = json_array_size(apply->undo); i-- > 0;) {
        const json_t *step = json_array_get(apply->undo, i);
        struct error e = ERROR_INIT;
        if (client_call(apply->client, json_text(step, "method"), json_deep_copy(json_object_get(step, "request")), NULL, &e))
            fprintf(stderr, "Cannot undo by %s: %s\n", json_text(step, "method"), e.text);
    }
}

static int apply_config(struct apply *apply, const json_t *config, struct error *err)
{
    json_t *server;
    if (!json_object_size(config))
        return STATUS_OK;
    int status = client_call(apply->client, "Server/GetServer", NULL, &server, err);
    if (status)
        return error_prefix(err, "Failed to retrieve current server configuration");
    json_t *before = json_object_get(server, "config");
    on_failure(apply, "Server/UpdateServer", json_pack("{s:o}", "config", before ? json_deep_copy(before) : json_object()));
    json_decref(server);
    status = client_call(apply->client, "Server/UpdateServer", json_pack("{s:O,s:s}", "config", (json_t *)config, "update_mask", "config"), NULL, err);
    return status ? error_prefix(err, "Failed to update server configuration") : STATUS_OK;
}

/* Puts description and config of the preseed over those of an existing object. */
static void overlay(json_t *object, const json_t *item)
{
    if (*json_text(item, "description"))
        json_object_set(object, "description", json_object_get(item, "description"));
    if (!json_is_object(json_object_get(object, "config")))
        json_object_set_new(object, "config", json_object());
    if (json_object_size(json_object_get(item, "config")))
        json_object_update(json_object_get(object, "config"), json_object_get(item, "config"));
    json_t *devices = json_object_get(object, "devices"), *device;
    const char *name;
    json_object_foreach(json_object_get(item, "devices"), name, device)
    {
        if (json_object_get(devices, name))
            json_object_update(json_object_get(devices, name), device);
        else
            json_object_set(devices, name, device);
    }
}

/* What the objects of a preseed share: found by name, then created or overlaid. */
struct noun {
    const char *get, *create, *update, *delete, *what;
};
static const struct noun pool_noun = {"StoragePools/GetStoragePool", "StoragePools/CreateStoragePool", "StoragePools/UpdateStoragePool",
                                      "StoragePools/DeleteStoragePool", "storage pool"};
static const struct noun project_noun = {"Projects/GetProject", "Projects/CreateProject", "Projects/UpdateProject", "Projects/DeleteProject",
                                         "local member project"};
static const struct noun profile_noun = {"Profiles/GetProfile", "Profiles/CreateProfile", "Profiles/UpdateProfile", "Profiles/DeleteProfile", "profile"};

static const struct noun network_noun = {"Networks/GetNetwork", "Networks/CreateNetwork", "Networks/UpdateNetwork", "Networks/DeleteNetwork",
                                         "local member network"};

static int apply_item(struct apply *apply, const struct noun *noun, const json_t *item, struct error *err)
{
    const char *name = json_text(item, "name");
    json_t *object;
    if (!*name)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Failed to create %s: it has no name", noun->what);
    int status = client_call(apply->client, noun->get, json_pack("{s:s}", "name", name), &object, err);
    if (status == STATUS_NOT_FOUND) {
        status = client_call(apply->client, noun->create, json_deep_copy(item), NULL, err);
        if (status)
            return error_prefix(err, "Failed to create %s \"%s\"", noun->what, name);
        on_failure(apply, noun->delete, json_pack("{s:s}", "name", name));
        return STATUS_OK;
    }
    if (status)
        return error_prefix(err, "Failed to retrieve %s \"%s\"", noun->what, name);
    const char *driver = json_text(item, "driver"), *is = json_text(object, "driver");
    if (noun == &pool_noun && strcmp(driver, is) != 0)
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Storage pool \"%s\" is of type \"%s\" instead of \"%s\"", name, is, driver);
    if (!status) {
        json_t *before = json_deep_copy(object);
        overlay(object, item);
        status = client_call(apply->client, noun->update, json_incref(object), NULL, err);
        if (status)
            error_prefix(err, "Failed to update %s \"%s\"", noun->what, name);
        else
            on_failure(apply, noun->update, json_incref(before));
        json_decref(before);
    }
    json_decref(object);
    return status;
}

static int apply_list(struct apply *apply, const struct noun *noun, const json_t *list, struct error *err)
{
    size_t index;
    const json_t *item;
    json_array_foreach(list, index, item)
    {
        int status = apply_item(apply, noun, item, err);
        if (status)
            return status;
    }
    return STATUS_OK;
}

/* Any interface of a network's name counts as an existing one. */
static int apply_network(struct apply *apply, const json_t *item, const char *project, struct error *err)
{
    const char *name = json_text(item, "name"), *type = *json_text(item, "type") ? json_text(item, "type") : "bridge";
    json_t *network, *wanted = json_deep_copy(item), *who = json_pack("{s:s,s:s}", "name", name, "project", project);
    json_object_set_new(wanted, "project", json_string(project));
    int status = client_call(apply->client, network_noun.get, json_deep_copy(who), &network, err);
    if (status == STATUS_NOT_FOUND) {
        status = client_call(apply->client, network_noun.create, wanted, NULL, err);
        if (status)
            error_prefix(err, "Failed to create local member network \"%s\" in project \"%s\"", name, project);
        else
            on_failure(apply, network_noun.delete, json_incref(who));
        json_decref(who);
        return status;
    }
    json_decref(wanted);
    json_decref(who);
    if (status)
        return error_prefix(err, "Failed to retrieve network \"%s\" in project \"%s\"", name, project);
    json_t *before = json_deep_copy(network);
    if (json_is_false(json_object_get(network, "managed")))
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Network interface \"%s\" is there already and is not managed", name);
    else if (strcmp(type, json_text(network, "type")) != 0)
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Network \"%s\" is of type \"%s\" instead of \"%s\"", name, json_text(network, "type"), type);
    overlay(network, item);
    if (!status)
        status = client_call(apply->client, network_noun.update, json_incref(network), NULL, err);
    if (status)
        error_prefix(err, "Failed to update local member network \"%s\" in project \"%s\"", name, project);
    else
        on_failure(apply, network_noun.update, json_incref(before));
    json_decref(before);
    json_decref(network);
    return status;
}

static int apply_networks(struct apply *apply, const json_t *list, bool default_project, struct error *err)
{
    size_t index;
    const json_t *item;
    int status = STATUS_OK;
    json_array_foreach(list, index, item)
    {
        const char *project = *json_text(item, "project") ? json_text(item, "project") : "default";
        if (!status && !*json_text(item, "name"))
            status = error_set(err, STATUS_INVALID_ARGUMENT, "Failed to create local member network: it has no name");
        if (!status && (strcmp(project, "default") == 0) == default_project)
            status = apply_network(apply, item, project, err);
    }
    return status;
}

static int apply_cluster(struct apply *apply, const json_t *cluster, struct error *err)
{
    json_t *now;
    int status = client_call(apply->client, "Cluster/GetCluster", NULL, &now, err);
    if (status)
        return error_prefix(err, "Failed to retrieve current cluster config");
    bool enabled = json_is_true(json_object_get(now, "enabled"));
    json_decref(now);
    if (enabled)
        return STATUS_OK; /* as the reference does: the section is skipped */
    status = cli_call_wait(apply->cli, apply->client, "Cluster/UpdateCluster",
                           json_pack("{s:s,s:b}", "server_name", json_text(cluster, "server_name"), "enabled", 1), NULL, err);
    return status ? error_prefix(err, "Failed to configure cluster") : STATUS_OK;
}

static int join(struct cli *cli, struct covey_client *client, const json_t *cluster, struct error *err)
{
    char *own = address_canonical(json_text(cluster, "server_address")), *other = address_canonical(json_text(cluster, "cluster_address"));
    json_t *member_config = json_object_get(cluster, "member_config");
    json_t *request = json_pack("{s:s,s:b,s:s,s:s,s:s,s:s}", "server_name", json_text(cluster, "server_name"), "enabled", 1, "server_address", own,
                                "cluster_address", other, "cluster_certificate", json_text(cluster, "cluster_certificate"), "cluster_password",
                                json_text(cluster, "cluster_password"));
    if (member_config)
        json_object_set(request, "member_config", member_config);
    free(own);
    free(other);
    int status = cli_call_wait(cli, client, "Cluster/UpdateCluster", request, NULL, err);
    return status ? error_prefix(err, "Failed to join cluster") : STATUS_OK;
}

static int apply_all(struct apply *apply, json_t *preseed, const json_t *cluster, struct error *err)
{
    json_t *config = json_object_get(preseed, "config");
    if (cluster && *json_text(config, "core.https_address") && !*json_text(config, "cluster.https_address"))
        json_object_set(config, "cluster.https_address", json_object_get(config, "core.https_address"));
    const json_t *networks = json_object_get(preseed, "networks");
    int status = apply_config(apply, config, err);
    if (!status)
        status = apply_list(apply, &pool_noun, json_object_get(preseed, "storage_pools"), err);
    if (!status)
        status = apply_networks(apply, networks, true, err);
    if (!status)
        status = apply_list(apply, &project_noun, json_object_get(preseed, "projects"), err);
    if (!status)
        status = apply_networks(apply, networks, false, err);
    if (!status)
        status = apply_list(apply, &profile_noun, json_object_get(preseed, "profiles"), err);
    if (!status && cluster)
        status = apply_cluster(apply, cluster, err);
    return status;
}

int preseed_apply(struct cli *cli, struct covey_client *client, json_t *preseed, struct error *err)
{
    json_t *cluster = json_object_get(preseed, "cluster");
    if (!json_is_true(json_object_get(cluster, "enabled")))
        cluster = NULL;
    int status = cluster ? join_complete(cluster, err) : STATUS_OK;
    if (status)
        return status;
    if (cluster && *json_text(cluster, "cluster_address")) {
        if (!*json_text(cluster, "server_address"))
            return error_set(err, STATUS_INVALID_ARGUMENT, "Failed to join cluster: No server address provided for this member");
        return join(cli, client, cluster, err);
    }
    struct apply apply = {cli, client, json_array()};
    status = apply_all(&apply, preseed, cluster, err);
    if (status)
        undo_all(&apply);
    json_decref(apply.undo);
    return status;
}

int preseed_add_bridge(struct covey_client *client, json_t *preseed, struct error *err)
{
    json_t *reply, *network, *profiles = json_object_get(preseed, "profiles");
    size_t index;
    bool managed = false;
    char name[16] = "";
    int status = client_call(client, "Networks/ListNetworks", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    for (int i = 0; i < BRIDGE_NAMES_MAX && !name[0]; i++) {
        snprintf(name, sizeof(name), "lxdbr%d", i);
        json_array_foreach(json_object_get(reply, "networks"), index, network)
        {
            managed = managed || json_is_true(json_object_get(network, "managed"));
            if (strcmp(json_text(network, "name"), name) == 0)
                name[0] = 0;
        }
    }
    json_decref(reply);
    if (managed || !name[0])
        return STATUS_OK;
    json_array_append_new(json_object_get(preseed, "networks"), json_pack("{s:s,s:s,s:s,s:{}}", "name", name, "type", "bridge", "project", "default", "config"));
    if (!json_array_size(profiles))
        json_array_append_new(profiles, json_pack("{s:s,s:{},s:{}}", "name", "default", "config", "devices"));
    json_object_set_new(json_object_get(json_array_get(profiles, 0), "devices"), "eth0", json_pack("{s:s,s:s,s:s}", "type", "nic", "name", "eth0", "network", name));
    return STATUS_OK;
}

/* ---- dumping ---- */

/* The objects of a list, each with only these keys. */
static json_t *dump_list(const json_t *list, const char *const *keys)
{
    json_t *out = json_array();
    size_t index;
    const json_t *item;
    json_array_foreach(list, index, item)
    {
        json_t *object = json_object();
        for (const char *const *key = keys; *key; key++)
            if (json_object_get(item, *key))
                json_object_set(object, *key, json_object_get(item, *key));
        json_array_append_new(out, object);
    }
    return out;
}

int preseed_dump(struct cli *cli, struct covey_client *client, json_t **preseed, struct error *err)
{
    static const char *const pool[] = {"config", "description", "name", "driver", NULL};
    static const char *const profile[] = {"config", "description", "devices", "name", NULL};
    static const char *const project[] = {"config", "description", "name", NULL};
    static const char *const network[] = {"config", "description", "name", "type", NULL};
    json_t *server = NULL, *networks = NULL, *pools = NULL, *profiles = NULL, *projects = NULL, *managed = json_array(), *one;
    size_t index;
    int status = client_call(client, "Server/GetServer", NULL, &server, err);
    if (!status)
        status = client_call(client, "StoragePools/ListStoragePools", json_pack("{s:i}", "recursion", 1), &pools, err);
    if (!status)
        status = client_call(client, "Networks/ListNetworks", json_pack("{s:i}", "recursion", 1), &networks, err);
    json_array_foreach(json_object_get(networks, "networks"), index, one)
        if (json_is_true(json_object_get(one, "managed")))
            json_array_append(managed, one);
    if (!status)
        status = client_call(client, "Profiles/ListProfiles", json_pack("{s:i}", "recursion", 1), &profiles, err);
    if (!status)
        status = client_call(client, "Projects/ListProjects", json_pack("{s:i}", "recursion", 1), &projects, err);
    json_t *config = json_object_get(server, "config");
    *preseed = NULL;
    if (!status)
        *preseed = json_pack("{s:O,s:o,s:o,s:o,s:o}", "config", config ? config : server, "networks", dump_list(managed, network), "storage_pools",
                             dump_list(json_object_get(pools, "pools"), pool), "profiles", dump_list(json_object_get(profiles, "profiles"), profile),
                             "projects", dump_list(json_object_get(projects, "projects"), project));
    if (!status && !config)
        json_object_set_new(*preseed, "config", json_object());
    json_decref(managed);
    json_decref(networks);
    json_decref(server);
    json_decref(pools);
    json_decref(profiles);
    json_decref(projects);
    return status;
}
