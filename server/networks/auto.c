/* Subnets for addresses "auto": random ones that nobody uses, as far as the online members and the database tell. Blocks on agents. */
#include "networks.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct taken {
    struct arena *arena;
    struct subnet *items;
    size_t count, capacity;
};

static void add(struct taken *taken, const char *text)
{
    struct subnet subnet;
    if (subnet_parse(text, &subnet) != 0) {
        return;
    }
    if (taken->count == taken->capacity) {
        taken->capacity = taken->capacity > 0 ? taken->capacity * 2 : 64;
        struct subnet *grown = arena_alloc(taken->arena, taken->capacity * sizeof *grown);
        if (taken->count > 0) {
            memcpy(grown, taken->items, taken->count * sizeof *grown);
        }
        taken->items = grown;
    }
    taken->items[taken->count++] = subnet;
}

static int read_addresses(struct sql *sql, void *ud, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT value FROM networks_config WHERE key IN ('ipv4.address', 'ipv6.address')", "");
    while (sql_next(s)) {
        add(ud, sql_text(s, 0));
    }
    return sql_done(s, err);
}

static void ask_members(struct taken *taken)
{
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_members; i++) {
        uint64_t member = view->message->members[i]->id;
        Covey__Internal__V1__ListHostNetworksRequest request = COVEY__INTERNAL__V1__LIST_HOST_NETWORKS_REQUEST__INIT;
        request.subnets = true;
        ProtobufCMessage *response = NULL;
        struct error err = ERROR_INIT;
        if (!member_online(the_daemon, member)) {
            continue;
        }
        if (agent_call(the_daemon, member, "ListHostNetworks", &request.base, &response, taken->arena, 0, &err) != STATUS_OK) {
            log_warn("network.auto", "member=%s error=\"%s\"", view->message->members[i]->name, err.text); /* a clash there shows when it is made */
            continue;
        }
        const Covey__Internal__V1__HostNetworks *host = (const Covey__Internal__V1__HostNetworks *)response;
        for (size_t k = 0; k < host->n_subnets; k++) {
            add(taken, host->subnets[k]);
        }
    }
    view_unref(view);
}

static bool is_free(const struct taken *taken, const struct subnet *subnet)
{
    for (size_t i = 0; i < taken->count; i++) {
        if (subnet_overlaps(&taken->items[i], subnet)) {
            return false;
        }
    }
    return true;
}

/* Random bytes after the fixed first ones; the bridge has the first address. */
static bool pick(const struct taken *taken, int family, char out[SUBNET_TEXT_MAX])
{
    struct subnet subnet = {.family = family, .prefix = family == AF_INET ? 24 : 64};
    for (int i = 0; i < NETWORK_SUBNET_TRIES_MAX; i++) {
        if (family == AF_INET) {
            random_bytes(subnet.address + 1, 2);
            subnet.address[0] = 10;
            subnet.address[3] = 1;
        } else {
            random_bytes(subnet.address + 2, 6);
            subnet.address[0] = 0xfd;
            subnet.address[1] = 0x42;
            subnet.address[15] = 1;
        }
        if (is_free(taken, &subnet)) {
            subnet_text(&subnet, true, out);
            return true;
        }
    }
    return false;
}

int network_auto_pick(struct network_auto *out, struct arena *arena, struct error *err)
{
    struct taken taken = {.arena = arena};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_addresses, &taken, NULL, err);
    if (status != STATUS_OK) {
        return status;
    }
    ask_members(&taken);
    if (!pick(&taken, AF_INET, out->ipv4) || !pick(&taken, AF_INET6, out->ipv6)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Failed to find a free subnet in %d tries", NETWORK_SUBNET_TRIES_MAX);
    }
    return STATUS_OK;
}

void network_auto_fill(const struct network_auto *found, int64_t type, bool creating, struct settings *config, struct arena *arena)
{
    static const char *const families[] = {"ipv4", "ipv6"};
    for (size_t i = 0; type == NETWORK_BRIDGE && i < 2; i++) {
        char *address = arena_printf(arena, "%s.address", families[i]), *nat = arena_printf(arena, "%s.nat", families[i]);
        const char *value = settings_get(config, address);
        if (!str_eq(value, "auto") && !(creating && value == NULL)) {
            continue;
        }
        settings_set(config, address, i == 0 ? found->ipv4 : found->ipv6, arena);
        if (settings_get(config, nat) == NULL) {
            settings_set(config, nat, "true", arena);
        }
    }
}
