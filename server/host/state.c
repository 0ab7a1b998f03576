/* What a running container uses: the helper's answer as the API's message. */
#include "host_private.h"
#include <string.h>

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static int64_t number_of(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

static Covey__V1__NetworkAddress *address(const json_t *from, struct arena *arena)
{
    Covey__V1__NetworkAddress *out = arena_alloc(arena, sizeof(*out));
    covey__v1__network_address__init(out);
    out->family = arena_strdup(arena, text_of(from, "family"));
    out->address = arena_strdup(arena, text_of(from, "address"));
    out->netmask = arena_strdup(arena, text_of(from, "netmask"));
    out->scope = arena_strdup(arena, text_of(from, "scope"));
    return out;
}

static Covey__V1__NetworkState *interface(const json_t *from, struct arena *arena)
{
    Covey__V1__NetworkState *out = arena_alloc(arena, sizeof(*out));
    covey__v1__network_state__init(out);
    out->hwaddr = arena_strdup(arena, text_of(from, "hwaddr"));
    out->host_name = arena_strdup(arena, text_of(from, "host_name"));
    out->state = arena_strdup(arena, text_of(from, "state"));
    out->type = arena_strdup(arena, text_of(from, "type"));
    out->mtu = number_of(from, "mtu");
    Covey__V1__NetworkCounters *counters = arena_alloc(arena, sizeof(*counters));
    covey__v1__network_counters__init(counters);
    const json_t *c = json_object_get(from, "counters");
    counters->bytes_received = number_of(c, "bytes_received");
    counters->bytes_sent = number_of(c, "bytes_sent");
    counters->packets_received = number_of(c, "packets_received");
    counters->packets_sent = number_of(c, "packets_sent");
    counters->errors_received = number_of(c, "errors_received");
    counters->errors_sent = number_of(c, "errors_sent");
    counters->packets_dropped_outbound = number_of(c, "packets_dropped_outbound");
    counters->packets_dropped_inbound = number_of(c, "packets_dropped_inbound");
    out->counters = counters;
    const json_t *list = json_object_get(from, "addresses");
    out->addresses = arena_alloc(arena, (json_array_size(list) + 1) * sizeof(*out->addresses));
    for (size_t i = 0; i < json_array_size(list); i++)
        out->addresses[out->n_addresses++] = address(json_array_get(list, i), arena);
    return out;
}

static Covey__V1__NetworkStates *network(json_t *from, struct arena *arena)
{
    Covey__V1__NetworkStates *out = arena_alloc(arena, sizeof(*out));
    covey__v1__network_states__init(out);
    out->interfaces = arena_alloc(arena, (json_object_size(from) + 1) * sizeof(*out->interfaces));
    const char *name;
    json_t *one;
    json_object_foreach(from, name, one)
    {
        Covey__V1__NetworkStates__InterfacesEntry *entry = arena_alloc(arena, sizeof(*entry));
        covey__v1__network_states__interfaces_entry__init(entry);
        entry->key = arena_strdup(arena, name);
        entry->value = interface(one, arena);
        out->interfaces[out->n_interfaces++] = entry;
    }
    return out;
}

int state__get(struct host *host, const InstanceSpec *spec, struct arena *arena, Covey__V1__InstanceState **out, struct error *err)
{
    int rc = instances__check_spec(spec, err);
    if (rc)
        return rc;
    int64_t pid = 0;
    int status = instances__status(host, spec, &pid);
    Covey__V1__InstanceState *state = arena_alloc(arena, sizeof(*state));
    covey__v1__instance_state__init(state);
    state->status_code = status;
    state->status = arena_strdup(arena, instance__status_name(status));
    state->memory = arena_alloc(arena, sizeof(*state->memory));
    covey__v1__memory_state__init(state->memory);
    state->cpu = arena_alloc(arena, sizeof(*state->cpu));
    covey__v1__cpu_state__init(state->cpu);
    if (pid > 0) {
        char *key = instances__key(spec->project, spec->name), *path = xasprintf("%s/containers", host->state_dir);
        json_t *answer = NULL;
        struct error asked = ERROR_INIT;
        rc = host__helper(host, "state", json_pack("{s:s, s:s}", "name", key, "lxcpath", path), HELPER_QUICK_MS_MAX, &answer, &asked);
        free(key);
        free(path);
        if (rc && instances__status(host, spec, NULL) == status) {
            if (err)
                *err = asked;
            return rc;
        }
        if (number_of(answer, "pid") > 0) {
            state->pid = number_of(answer, "pid");
            state->processes = number_of(answer, "processes");
            state->cpu->usage = number_of(answer, "cpu");
            state->memory->usage = number_of(answer, "memory");
            state->memory->usage_peak = number_of(answer, "memory_peak");
            state->memory->swap_usage = number_of(answer, "swap");
            state->memory->swap_usage_peak = number_of(answer, "swap_peak");
            state->network = network(json_object_get(answer, "network"), arena);
        }
        json_decref(answer);
    }
    *out = state;
    return STATUS_OK;
}
