/* covey.v1.Networks: reading. Lists and objects are made on the member that was asked: the managed part comes from the leader (by an internal call that is
 * routed there), the interfaces from its own host. create.c and update.c change networks. Handlers run on worker threads. */
#include "networks.h"

#include "server/daemon/etag.h"
#include "server/events/events.h"
#include "server/services.h"
#include <stdlib.h>
#include <string.h>

struct lookup {
    struct arena *arena;
    const struct caller *caller;
    const char *name; /* NULL = all */
    const char *project;
    uint64_t target; /* 0 = the cluster's view of it */
    bool full;
    Covey__V1__Network **networks;
    size_t count;
};

void network_lifecycle(struct rpc_call *call, const char *action, const char *name, const char *old_name)
{
    char *source = xasprintf("/1.0/networks/%s", name);
    struct buf context = {0};
    if (old_name != NULL) {
        buf_puts(&context, "{\"old_name\":");
        buf_json_string(&context, old_name);
        buf_puts(&context, "}");
    }
    events_lifecycle(action, source, "default", rpc_caller(call), old_name != NULL ? context.data : NULL, NULL);
    buf_free(&context);
    free(source);
}

/* ---- the managed part, on the leader ---- */

static int fill_locations(struct sql *sql, const struct lookup *in, const struct network_row *row, Covey__V1__Network *network, struct error *err)
{
    int64_t state = row->state;
    int status = STATUS_OK;
    bool here = in->target == 0;
    network->locations = arena_alloc(in->arena, NETWORK_MEMBERS_MAX * sizeof *network->locations);
    struct sql_stmt *s = sql_query(sql,
        "SELECT nodes.name, nodes.id, networks_nodes.state FROM networks_nodes JOIN nodes ON nodes.id = node_id WHERE network_id = ?1 ORDER BY nodes.name", "i", row->id);
    while (status == STATUS_OK && sql_next(s)) {
        if (network->n_locations == NETWORK_MEMBERS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members", NETWORK_MEMBERS_MAX);
            break;
        }
        network->locations[network->n_locations++] = arena_strdup(in->arena, sql_text(s, 0));
        if ((uint64_t)sql_int(s, 1) == in->target) {
            here = true;
            state = sql_int(s, 2);
        }
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    network->status = arena_strdup(in->arena, here ? network_state_text(state) : "Unknown");
    return status == STATUS_OK ? done : status;
}

static int fill_network(struct sql *sql, struct lookup *in, const struct network_row *row, Covey__V1__Network *network, struct error *err)
{
    struct settings config = {0};
    int status = fill_locations(sql, in, row, network, err);
    bool secret = in->caller->restricted; /* addresses of the infrastructure are not a project's business */
    uint64_t member = in->target != 0 ? in->target : daemon_clustered(the_daemon) ? 0 : daemon_id(the_daemon);
    if (status == STATUS_OK && !secret) {
        status = network_load_config(sql, row->id, 0, &config, in->arena, err);
    }
    if (status == STATUS_OK && !secret && member != 0) {
        status = network_load_config(sql, row->id, (int64_t)member, &config, in->arena, err);
    }
    network->config = settings_to_map(&config, &covey__v1__network__config_entry__descriptor, &network->n_config, in->arena);
    network->etag = etag_make(in->arena, &network->base, "config,description");
    return status == STATUS_OK ? network_used_by(sql, row->name, in->caller, in->arena, &network->used_by, &network->n_used_by, err) : status;
}

static int read_networks(struct sql *sql, void *ud, struct error *err)
{
    struct lookup *in = ud;
    bool own;
    int status = network_project(sql, in->project, &own, err);
    in->count = 0;
    in->networks = arena_alloc(in->arena, (in->name != NULL ? 1 : NETWORKS_MAX) * sizeof *in->networks);
    if (status != STATUS_OK || own) {
        return status;
    }
    struct sql_stmt *s =
        sql_query(sql, "SELECT id, name, type, description, state FROM networks WHERE project_id = 1 AND (?1 IS NULL OR name = ?1) ORDER BY name", "s", in->name);
    while (status == STATUS_OK && sql_next(s)) {
        if (in->count == NETWORKS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d networks", NETWORKS_MAX);
            break;
        }
        Covey__V1__Network *network = arena_alloc(in->arena, sizeof *network);
        covey__v1__network__init(network);
        network->name = arena_strdup(in->arena, sql_text(s, 1));
        network->type = arena_strdup(in->arena, network_type_name(sql_int(s, 2)));
        network->description = arena_strdup(in->arena, sql_text(s, 3));
        network->managed = true;
        struct network_row row = {.id = sql_int(s, 0), .name = network->name, .type = sql_int(s, 2), .description = network->description, .state = sql_int(s, 4)};
        status = in->full ? fill_network(sql, in, &row, network, err) : STATUS_OK;
        in->networks[in->count++] = network;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

/* For members, on behalf of their callers: the managed networks as the database has them. */
static int read_managed(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ReadNetworksRequest *request = (const Covey__V1__ReadNetworksRequest *)message;
    struct lookup in = {.arena = rpc_arena(call), .caller = rpc_caller(call), .name = str_empty(request->name) ? NULL : request->name, .project = request->project,
        .full = request->recursion > 0};
    Covey__V1__ListNetworksResponse *out = arena_alloc(in.arena, sizeof *out);
    covey__v1__list_networks_response__init(out);
    int status = target_resolve(the_daemon, request->target, &in.target, err);
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_networks, &in, NULL, err) : status;
    out->networks = in.networks;
    out->n_networks = in.count;
    *response = &out->base;
    return status;
}

static int ask_leader(struct rpc_call *call, const char *name, const char *project, const char *target, int64_t recursion, Covey__V1__ListNetworksResponse **out,
                      struct error *err)
{
    Covey__V1__ReadNetworksRequest request = COVEY__V1__READ_NETWORKS_REQUEST__INIT;
    struct rpc_options options = {.on_behalf_of = call};
    ProtobufCMessage *response = NULL;
    request.name = (char *)name;
    request.project = (char *)project;
    request.target = (char *)target;
    request.recursion = recursion;
    struct rpc_channel *self = member_channel(the_daemon, daemon_id(the_daemon), err); /* goes on to whoever leads */
    if (self == NULL) {
        return err->code;
    }
    int status = rpc_unary(self, "covey.v1.Networks", "ReadNetworks", &request.base, &response, rpc_arena(call), &options, err);
    rpc_channel_unref(self);
    *out = (Covey__V1__ListNetworksResponse *)response;
    return status;
}

/* ---- lists and objects, on the member that was asked ---- */

static Covey__V1__Network *unmanaged(struct arena *arena, const struct host_interface *interface)
{
    Covey__V1__Network *network = arena_alloc(arena, sizeof *network);
    covey__v1__network__init(network);
    network->name = interface->name;
    network->type = (char *)interface->kind;
    network->etag = etag_make(arena, &network->base, "config,description");
    return network;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(Covey__V1__Network *const *)a)->name, (*(Covey__V1__Network *const *)b)->name);
}

static int list_networks(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListNetworksRequest *request = (const Covey__V1__ListNetworksRequest *)message;
    struct arena *arena = rpc_arena(call);
    Covey__V1__ListNetworksResponse *managed = NULL;
    struct host_interface *interfaces = NULL;
    size_t count = 0;
    const char *project = project_or_default(request->project);
    bool other = strcmp(project, "default") != 0;
    int status = ask_leader(call, "", project, "", request->recursion, &managed, err);
    if (status == STATUS_OK && !other && !rpc_caller(call)->restricted) {
        status = host_interfaces(arena, &interfaces, &count, err);
    }
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__Network **all = arena_alloc(arena, (managed->n_networks + count + 1) * sizeof *all);
    size_t total = 0;
    for (size_t i = 0; i < managed->n_networks; i++) {
        all[total++] = managed->networks[i];
    }
    for (size_t i = 0; i < count; i++) {
        bool known = false;
        for (size_t k = 0; k < managed->n_networks && !known; k++) {
            known = strcmp(managed->networks[k]->name, interfaces[i].name) == 0;
        }
        if (!known) {
            all[total++] = unmanaged(arena, &interfaces[i]);
        }
    }
    qsort(all, total, sizeof *all, by_name);
    Covey__V1__ListNetworksResponse *out = arena_alloc(arena, sizeof *out);
    covey__v1__list_networks_response__init(out);
    if (request->recursion > 0) {
        out->networks = all;
        out->n_networks = total;
    } else {
        out->urls = arena_alloc(arena, (total + 1) * sizeof *out->urls);
        for (size_t i = 0; i < total; i++) {
            out->urls[out->n_urls++] = arena_printf(arena, "/1.0/networks/%s%s%s", all[i]->name, other ? "?project=" : "", other ? project : "");
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int get_network(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetNetworkRequest *request = (const Covey__V1__GetNetworkRequest *)message;
    Covey__V1__ListNetworksResponse *managed = NULL;
    struct host_interface *interfaces = NULL;
    size_t count = 0;
    const char *project = project_or_default(request->project);
    int status = ask_leader(call, request->name, project, request->target, 1, &managed, err);
    if (status != STATUS_OK) {
        return status;
    }
    if (managed->n_networks > 0) {
        *response = &managed->networks[0]->base;
        return STATUS_OK;
    }
    if (strcmp(project, "default") == 0 && !rpc_caller(call)->restricted) {
        status = host_interfaces(rpc_arena(call), &interfaces, &count, err);
    }
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        if (strcmp(interfaces[i].name, request->name) == 0) {
            *response = &unmanaged(rpc_arena(call), &interfaces[i])->base;
            return STATUS_OK;
        }
    }
    return status == STATUS_OK ? error_set(err, STATUS_NOT_FOUND, "Network not found") : status;
}

static int get_state(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetNetworkStateRequest *request = (const Covey__V1__GetNetworkStateRequest *)message;
    struct arena *arena = rpc_arena(call);
    Covey__V1__NetworkInterfaceState *state = NULL;
    if (rpc_caller(call)->restricted) { /* the networks of its instances only: a managed one, not the host's own interfaces */
        Covey__V1__ListNetworksResponse *managed = NULL;
        int status = ask_leader(call, request->name, project_or_default(request->project), "", 0, &managed, err);
        if (status != STATUS_OK || managed->n_networks == 0) {
            return status != STATUS_OK ? status : error_set(err, STATUS_NOT_FOUND, "Network not found");
        }
    }
    int status = host_interface_state(host_network_interface(the_daemon->host, request->name, arena), arena, &state, err);
    *response = state != NULL ? &state->base : NULL;
    return status;
}

/* ---- leases ---- */

struct leases {
    struct arena *arena;
    const char *name, *project;
    const struct caller *caller;
    struct network_row row;
    struct settings config;
    struct network_task *tasks;
    size_t count;
    Covey__V1__ListNetworkLeasesResponse *out;
    size_t capacity;
};

static int lease_add(struct leases *in, const char *hostname, const char *hwaddr, const char *address, const char *type, const char *location, struct error *err)
{
    enum { LEASES_MAX = 1000000 };
    Covey__V1__ListNetworkLeasesResponse *out = in->out;
    if (out->n_leases == LEASES_MAX) {
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d leases", LEASES_MAX);
    }
    if (out->n_leases == in->capacity) {
        in->capacity = in->capacity > 0 ? in->capacity * 2 : 64;
        Covey__V1__NetworkLease **grown = arena_alloc(in->arena, in->capacity * sizeof *grown);
        if (out->n_leases > 0) {
            memcpy(grown, out->leases, out->n_leases * sizeof *grown);
        }
        out->leases = grown;
    }
    Covey__V1__NetworkLease *lease = out->leases[out->n_leases++] = arena_alloc(in->arena, sizeof *lease);
    covey__v1__network_lease__init(lease);
    lease->hostname = arena_strdup(in->arena, hostname);
    lease->hwaddr = arena_strdup(in->arena, hwaddr);
    lease->address = arena_strdup(in->arena, address);
    lease->type = arena_strdup(in->arena, type);
    lease->location = arena_strdup(in->arena, location);
    return STATUS_OK;
}

static int add_gateways(struct leases *in, struct error *err)
{
    static const char *const keys[] = {"ipv4.address", "ipv6.address"};
    int status = STATUS_OK;
    char *hostname = arena_printf(in->arena, "%s.gw", in->name);
    for (size_t i = 0; i < 2 && status == STATUS_OK; i++) {
        struct subnet subnet;
        char text[SUBNET_TEXT_MAX];
        const char *value = settings_get(&in->config, keys[i]);
        if (value != NULL && subnet_parse(value, &subnet) == 0) {
            subnet_text(&subnet, false, text);
            status = lease_add(in, hostname, "", text, "gateway", "", err);
        }
    }
    return status;
}

/* Fixed addresses of the NICs of instances, their own ones only: a profile's would be everybody's. */
static int add_static(struct sql *sql, struct leases *in, struct error *err)
{
    bool clustered = daemon_clustered(the_daemon);
    int status = STATUS_OK;
    struct sql_stmt *s = sql_query(sql,
        "SELECT instances.name, coalesce(own.value, made.value, ''), address.value, nodes.name FROM instances_devices_config AS c"
        " JOIN instances_devices AS d ON d.id = c.instance_device_id JOIN instances ON instances.id = d.instance_id JOIN nodes ON nodes.id = instances.node_id"
        " JOIN instances_devices_config AS address ON address.instance_device_id = d.id AND address.key IN ('ipv4.address', 'ipv6.address')"
        " LEFT JOIN instances_devices_config AS own ON own.instance_device_id = d.id AND own.key = 'hwaddr'"
        " LEFT JOIN instances_config AS made ON made.instance_id = instances.id AND made.key = 'volatile.' || d.name || '.hwaddr'"
        " JOIN projects ON projects.id = instances.project_id WHERE c.key = 'network' AND c.value = ?1 AND projects.name = ?2 ORDER BY 1, 3",
        "ss", in->name, in->project);
    while (status == STATUS_OK && sql_next(s)) {
        status = lease_add(in, sql_text(s, 0), sql_text(s, 1), sql_text(s, 2), "static", clustered ? sql_text(s, 3) : "none", err);
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

static int read_leases(struct sql *sql, void *ud, struct error *err)
{
    struct leases *in = ud;
    bool own;
    in->out->n_leases = 0;
    int status = network_project(sql, in->project, &own, err);
    if (status == STATUS_OK && own) {
        return error_set(err, STATUS_NOT_FOUND, "Network not found");
    }
    status = status == STATUS_OK ? network_load(sql, in->name, &in->row, in->arena, err) : status;
    status = status == STATUS_OK ? network_load_config(sql, in->row.id, 0, &in->config, in->arena, err) : status;
    status = status == STATUS_OK ? network_tasks_load(sql, &in->row, NETWORK_CREATED, &in->tasks, &in->count, in->arena, err) : status;
    status = status == STATUS_OK && !in->caller->restricted ? add_gateways(in, err) : status;
    return status == STATUS_OK ? add_static(sql, in, err) : status;
}

/* What members gave out, without what stands there as static already. A member that is away has its leases left out. */
static int add_dynamic(struct leases *in, struct error *err)
{
    bool clustered = daemon_clustered(the_daemon);
    int status = STATUS_OK;
    size_t fixed = in->out->n_leases;
    for (size_t i = 0; i < in->count && status == STATUS_OK; i++) {
        ProtobufCMessage *response = NULL;
        struct error asked = ERROR_INIT;
        if (!member_online(the_daemon, in->tasks[i].member)) {
            continue;
        }
        if (agent_call(the_daemon, in->tasks[i].member, "GetNetworkLeases", &in->tasks[i].spec.base, &response, in->arena, 0, &asked) != STATUS_OK) {
            log_warn("network.leases", "network=%s member=%s error=\"%s\"", in->name, in->tasks[i].name, asked.text);
            continue;
        }
        const Covey__V1__ListNetworkLeasesResponse *found = (const Covey__V1__ListNetworkLeasesResponse *)response;
        for (size_t k = 0; k < found->n_leases && status == STATUS_OK; k++) {
            bool known = false;
            for (size_t f = 0; f < fixed && !known; f++) {
                known = strcmp(in->out->leases[f]->address, found->leases[k]->address) == 0;
            }
            if (!known) {
                status = lease_add(in, found->leases[k]->hostname, found->leases[k]->hwaddr, found->leases[k]->address, "dynamic", clustered ? in->tasks[i].name : "none", err);
            }
        }
    }
    return status;
}

static int list_leases(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListNetworkLeasesRequest *request = (const Covey__V1__ListNetworkLeasesRequest *)message;
    struct leases in = {.arena = rpc_arena(call), .name = request->name, .project = project_or_default(request->project), .caller = rpc_caller(call)};
    in.out = arena_alloc(in.arena, sizeof *in.out);
    covey__v1__list_network_leases_response__init(in.out);
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_leases, &in, NULL, err);
    /* A restricted client sees the addresses of its own instances; leases do not tell whose they are. */
    status = status == STATUS_OK && !in.caller->restricted ? add_dynamic(&in, err) : status;
    *response = &in.out->base;
    return status;
}

static const struct rpc_binding bindings[] = {
    {"ListNetworks", list_networks},   {"GetNetwork", get_network},       {"CreateNetwork", network_create}, {"UpdateNetwork", network_update},
    {"RenameNetwork", network_rename}, {"DeleteNetwork", network_delete}, {"GetNetworkState", get_state},    {"ListNetworkLeases", list_leases},
    {"ReadNetworks", read_managed},
};

void networks_bind(void)
{
    rpc_bind("covey.v1.Networks", bindings, sizeof bindings / sizeof *bindings, NULL);
}
