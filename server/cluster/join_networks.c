/* Networks of a joiner: made on this host before the database is exchanged, as the cluster has them; those that were not there before are removed again when
 * the join fails. What this server had alone goes after the join (networks_sync). */
#include "join.h"

#include "server/networks/networks_member.h"
#include <string.h>

typedef Covey__Internal__V1__NetworkSpec NetworkSpec;
typedef Covey__Internal__V1__NetworkSpec__ConfigEntry ConfigEntry;

static int read_own(struct sql *sql, void *ud, struct error *err)
{
    struct join *join = ud;
    return networks_read_specs(sql, (int64_t)daemon_id(the_daemon), &join->own_networks, &join->own_network_count, &join->arena, err);
}

int join__load_own_networks(struct daemon *daemon, struct join *join, struct error *err)
{
    return daemon_read(daemon, DB_LOCAL, read_own, join, NULL, err);
}

static bool is_own(const struct join *join, const char *name)
{
    for (size_t i = 0; i < join->own_network_count; i++) {
        if (strcmp(join->own_networks[i]->name, name) == 0) {
            return true;
        }
    }
    return false;
}

static NetworkSpec *message(struct arena *arena, json_t *object)
{
    const char *key;
    json_t *config = json_object_get(object, "config"), *value;
    NetworkSpec *network = arena_alloc(arena, sizeof *network);
    covey__internal__v1__network_spec__init(network);
    network->name = arena_strdup(arena, json_string_value(json_object_get(object, "name")));
    network->type = arena_strdup(arena, json_string_value(json_object_get(object, "type")));
    network->config = arena_alloc(arena, (json_object_size(config) + 1) * sizeof *network->config);
    json_object_foreach(config, key, value) {
        ConfigEntry *entry = network->config[network->n_config++] = arena_alloc(arena, sizeof *entry);
        covey__internal__v1__network_spec__config_entry__init(entry);
        entry->key = arena_strdup(arena, key);
        entry->value = arena_strdup(arena, json_string_value(value));
    }
    return network;
}

static int agent_self(struct daemon *daemon, const char *method, const NetworkSpec *network, struct arena *arena, struct error *err)
{
    ProtobufCMessage *response = NULL;
    struct rpc_channel *self = member_channel(daemon, daemon_id(daemon), err);
    if (self == NULL) {
        return err->code;
    }
    struct rpc_options options = {.timeout_ms = JOIN_STEP_MS};
    int status = rpc_unary(self, "covey.internal.v1.Agent", method, &network->base, &response, arena, &options, err);
    rpc_channel_unref(self);
    return status;
}

int join__make_networks(struct daemon *daemon, struct join *join, const Covey__Internal__V1__AcceptResponse *accepted, const Covey__V1__UpdateClusterRequest *request,
                        struct error *err)
{
    json_t *object;
    size_t i;
    NetworkSpec **specs = networks_for_joiner(accepted->networks, accepted->n_networks, request->member_config, request->n_member_config, &join->arena);
    json_decref(join->networks);
    join->networks = json_array();
    for (i = 0; i < accepted->n_networks; i++) {
        json_t *config = json_object();
        for (size_t k = 0; k < specs[i]->n_config; k++) {
            json_object_set_new(config, specs[i]->config[k]->key, json_string(specs[i]->config[k]->value));
        }
        json_array_append_new(join->networks, json_pack("{s:s, s:s, s:o, s:b}", "name", specs[i]->name, "type", specs[i]->type, "config", config, "made",
                                                  (int)!is_own(join, specs[i]->name)));
    }
    int status = accepted->n_networks > 0 ? join__save(daemon, join, "making", err) : STATUS_OK;
    if (status != STATUS_OK) {
        return status;
    }
    json_array_foreach(join->networks, i, object) {
        status = agent_self(daemon, "ApplyNetwork", message(&join->arena, object), &join->arena, err);
        if (status != STATUS_OK) {
            bool there = status == STATUS_ALREADY_EXISTS || !json_is_true(json_object_get(object, "made"));
            error_prefix(err, "Failed to %s local member network \"%s\" in project \"default\"", there ? "update" : "create", json_string_value(json_object_get(object, "name")));
            return error_prefix(err, "Failed to initialize member: Failed to initialize storage pools and networks");
        }
        crash_point("join:networks");
    }
    return STATUS_OK;
}

void join__unmake_networks(struct daemon *daemon, struct join *join)
{
    json_t *object;
    size_t i;
    struct error read = ERROR_INIT;
    if (json_array_size(join->networks) == 0) {
        return;
    }
    /* Since an earlier attempt this server may have made one of the name for itself. */
    bool known = join__load_own_networks(daemon, join, &read) == STATUS_OK;
    json_array_foreach(join->networks, i, object) {
        struct error err = ERROR_INIT;
        bool ours = !known || is_own(join, json_string_value(json_object_get(object, "name"))) || !json_is_true(json_object_get(object, "made"));
        if (!ours && agent_self(daemon, "RemoveNetwork", message(&join->arena, object), &join->arena, &err) != STATUS_OK) {
            log_warn("join.network", "network=%s error=\"%s\"", json_string_value(json_object_get(object, "name")), err.text);
        }
    }
    networks_sync(daemon); /* those of our own that were changed for the join, and what could not be done now */
}

NetworkSpec **join__networks_message(struct join *join, size_t *count)
{
    json_t *object;
    size_t i;
    NetworkSpec **networks = arena_alloc(&join->arena, (json_array_size(join->networks) + 1) * sizeof *networks);
    json_array_foreach(join->networks, i, object) {
        networks[i] = message(&join->arena, object);
    }
    *count = json_array_size(join->networks);
    return networks;
}
