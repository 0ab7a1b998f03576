/* covey.v1.Server on the member that is meant: GET /1.0 and the local half of PUT and PATCH. The global half is the leader's (control.c).
 *
 * An update validates everything, moves the listeners, writes the global keys, then stores the local ones; a failure of the global write moves the
 * listeners back. One update at a time on a member. */
#include "keys.h"
#include "server.h"

#include "covey/internal/v1/control.pb-c.h"
#include "server/daemon/etag.h"
#include "server/daemon/listener.h"
#include "server/daemon/mask.h"
#include "server/services.h"
#include <netdb.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_mutex_t updating = PTHREAD_MUTEX_INITIALIZER;

json_t *server__local_config(void)
{
    json_t *out = json_object();
    for (size_t i = 0; i < config_key_count(); i++) {
        const struct config_key *key = config_key_at(i);
        char *value = key->local ? local_config_get(the_daemon->local, key->name) : NULL;
        if (value != NULL && value[0] != '\0') {
            json_object_set_new(out, key->name, json_string(value));
        }
        free(value);
    }
    return out;
}

static json_t *visible_config(void)
{
    json_t *global = json_object(), *local = server__local_config();
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_config; i++) {
        json_object_set_new(global, view->message->config[i]->key, json_string(view->message->config[i]->value));
    }
    view_unref(view);
    json_t *out = server__visible_config(global, local);
    json_decref(global);
    json_decref(local);
    return out;
}

static int list_versions(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__V1__ListVersionsResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
    covey__v1__list_versions_response__init(out);
    out->urls = arena_alloc(rpc_arena(call), sizeof *out->urls);
    out->urls[out->n_urls++] = (char *)"/1.0";
    *response = &out->base;
    return STATUS_OK;
}

static int get_server(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    static char *auth_methods[] = {(char *)"tls"};
    const Covey__V1__GetServerRequest *request = (const Covey__V1__GetServerRequest *)message;
    const struct caller *caller = rpc_caller(call);
    struct arena *arena = rpc_arena(call);
    Covey__V1__ServerInfo *out = arena_alloc(arena, sizeof *out);
    covey__v1__server_info__init(out);
    out->api_extensions = (char **)api_extensions(&out->n_api_extensions);
    out->api_status = (char *)"stable";
    out->api_version = (char *)"1.0";
    out->auth_methods = auth_methods;
    out->n_auth_methods = 1;
    out->auth = (char *)(caller->class == CALLER_NONE ? "untrusted" : "trusted");
    if (caller->class != CALLER_NONE) {
        out->environment = server__environment(arena, request->project);
    }
    if (caller->class != CALLER_NONE && !caller->restricted) {
        json_t *config = visible_config();
        out->config = server__struct(config, arena);
        out->etag = server__config_etag(arena, config);
        json_decref(config);
    }
    *response = &out->base;
    return STATUS_OK;
}

/* ---- update ---- */

/* Value of a local key after the change; stored value in `local`. */
static const char *after(const struct config_change *change, const json_t *local, const char *key)
{
    const json_t *set = json_object_get(change->local, key);
    const char *value = set != NULL ? json_string_value(set) : change->replace ? NULL : json_string_value(json_object_get(local, key));
    return value != NULL ? value : "";
}

static const char *before(const json_t *local, const char *key)
{
    const char *value = json_string_value(json_object_get(local, key));
    return value != NULL ? value : "";
}

/* A host name of a listen address must resolve. */
static int check_resolves(const struct config_change *change, const char *key, const char *address, struct error *err)
{
    const char *written = json_string_value(json_object_get(change->written, key));
    int status = address_resolves(address, err);
    return status == STATUS_OK ? STATUS_OK : error_prefix(err, "cannot set '%s' to '%s'", key, written != NULL ? written : address);
}

static int check_addresses(const struct config_change *change, const json_t *local, struct error *err)
{
    const char *core = after(change, local, "core.https_address"), *cluster = after(change, local, "cluster.https_address");
    if (daemon_clustered(the_daemon) && strcmp(cluster, before(local, "cluster.https_address")) != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Changing cluster.https_address is currently not supported");
    }
    int status = check_resolves(change, "cluster.https_address", cluster, err);
    return status == STATUS_OK ? check_resolves(change, "core.https_address", core, err) : status;
}

static int set_global(struct rpc_call *call, const struct config_change *change, const json_t *local, const char *if_match, struct error *err)
{
    struct arena *arena = rpc_arena(call);
    char location[256];
    Covey__Internal__V1__SetConfigRequest request = COVEY__INTERNAL__V1__SET_CONFIG_REQUEST__INIT;
    const char *name;
    json_t *value;
    request.config = arena_alloc(arena, (json_object_size(change->global) + 1) * sizeof *request.config);
    json_object_foreach(change->global, name, value) {
        Covey__Internal__V1__SetConfigRequest__ConfigEntry *entry = arena_alloc(arena, sizeof *entry);
        covey__internal__v1__set_config_request__config_entry__init(entry);
        entry->key = (char *)name;
        entry->value = (char *)json_string_value(value);
        request.config[request.n_config++] = entry;
    }
    request.local = arena_alloc(arena, (json_object_size(local) + 1) * sizeof *request.local);
    json_object_foreach((json_t *)local, name, value) {
        Covey__Internal__V1__SetConfigRequest__LocalEntry *entry = arena_alloc(arena, sizeof *entry);
        covey__internal__v1__set_config_request__local_entry__init(entry);
        entry->key = (char *)name;
        entry->value = (char *)json_string_value(value);
        request.local[request.n_local++] = entry;
    }
    request.keep = arena_alloc(arena, (json_array_size(change->keep) + 1) * sizeof *request.keep);
    for (size_t i = 0; i < json_array_size(change->keep); i++) {
        request.keep[request.n_keep++] = (char *)json_string_value(json_array_get(change->keep, i));
    }
    daemon_location(the_daemon, location, sizeof location);
    request.replace = change->replace;
    request.if_match = (char *)if_match;
    request.location = location;
    struct rpc_channel *self = member_channel(the_daemon, daemon_id(the_daemon), err);
    if (self == NULL) {
        return err->code;
    }
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.request_id = rpc_request_id(call), .on_behalf_of = call};
    int status = rpc_unary(self, "covey.internal.v1.Control", "SetConfig", &request.base, &response, arena, &options, err);
    rpc_channel_unref(self);
    return status;
}

static int store_local(const struct config_change *change, const json_t *local, struct error *err)
{
    for (size_t i = 0; i < config_key_count(); i++) {
        const char *key = config_key_at(i)->name;
        if (config_key_at(i)->local && strcmp(after(change, local, key), before(local, key)) != 0 &&
            local_config_set(the_daemon->local, key, after(change, local, key), err) != STATUS_OK) {
            return err->code;
        }
    }
    return STATUS_OK;
}

static int apply(struct rpc_call *call, const struct config_change *change, const char *if_match, struct error *err)
{
    json_t *local = server__local_config();
    char old_core[300], old_cluster[300];
    const char *core = after(change, local, "core.https_address"), *cluster = after(change, local, "cluster.https_address");
    int status = check_addresses(change, local, err);
    bool moved = status == STATUS_OK && (strcmp(core, before(local, "core.https_address")) != 0 || strcmp(cluster, before(local, "cluster.https_address")) != 0);
    if (moved) {
        listener_get(old_core, sizeof old_core, old_cluster, sizeof old_cluster);
        status = listener_set(the_daemon, core, cluster, err);
        moved = status == STATUS_OK;
    }
    status = status == STATUS_OK ? set_global(call, change, local, if_match, err) : status;
    status = status == STATUS_OK ? store_local(change, local, err) : status;
    if (status != STATUS_OK && moved) {
        struct error undo = ERROR_INIT;
        if (listener_set(the_daemon, old_core, old_cluster, &undo) != STATUS_OK) {
            log_error("server.listeners", "error=\"%s\"", undo.text);
        }
    }
    json_decref(local);
    return status;
}

static int update_server(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateServerRequest *request = (const Covey__V1__UpdateServerRequest *)message;
    struct config_change change;
    if (!mask_has(request->update_mask, "config")) {
        return STATUS_OK;
    }
    int status = config_change_read(request->config, request->update_mask == NULL, &change, err);
    if (status == STATUS_OK) {
        pthread_mutex_lock(&updating);
        json_t *now = visible_config();
        status = etag_check(request->if_match, server__config_etag(rpc_arena(call), now), err); /* the leader looks again at the global keys */
        json_decref(now);
        status = status == STATUS_OK ? apply(call, &change, request->if_match, err) : status;
        pthread_mutex_unlock(&updating);
    }
    config_change_clear(&change);
    return status;
}

static const struct rpc_binding bindings[] = {{"ListVersions", list_versions}, {"GetServer", get_server}, {"UpdateServer", update_server}};

void server_service_bind(void)
{
    rpc_bind("covey.v1.Server", bindings, sizeof bindings / sizeof *bindings, NULL);
    control__bind();
}
