/* covey.internal.v1.Control on the leader: writes the global keys, tells all members, then the event. Also finds operations for the others. */
#include "keys.h"
#include "server.h"

#include "covey/internal/v1/control.pb-c.h"
#include "server/daemon/etag.h"
#include "server/events/events.h"
#include "server/operations/operations.h"
#include <stdlib.h>
#include <string.h>

struct set {
    const Covey__Internal__V1__SetConfigRequest *request;
    struct arena *arena;
};

static json_t *read_global(struct sql *sql, struct error *err)
{
    json_t *out = json_object();
    struct sql_stmt *s = sql_query(sql, "SELECT key, value FROM config ORDER BY key", "");
    while (sql_next(s)) {
        json_object_set_new(out, sql_text(s, 0), json_string(sql_text(s, 1)));
    }
    if (sql_done(s, err) != STATUS_OK) {
        json_decref(out);
        out = NULL;
    }
    return out;
}

static int check_etag(const struct set *in, const json_t *now, struct error *err)
{
    if (str_empty(in->request->if_match)) {
        return STATUS_OK;
    }
    json_t *local = json_object();
    for (size_t i = 0; i < in->request->n_local; i++) {
        json_object_set_new(local, in->request->local[i]->key, json_string(in->request->local[i]->value));
    }
    json_t *visible = server__visible_config(now, local);
    int status = etag_check(in->request->if_match, server__config_etag(in->arena, visible), err);
    json_decref(visible);
    json_decref(local);
    return status;
}

static bool is_named(const Covey__Internal__V1__SetConfigRequest *request, const char *key)
{
    for (size_t i = 0; i < request->n_config; i++) {
        if (strcmp(request->config[i]->key, key) == 0) {
            return true;
        }
    }
    for (size_t i = 0; i < request->n_keep; i++) {
        if (strcmp(request->keep[i], key) == 0) {
            return true;
        }
    }
    return false;
}

static int set_one(struct sql *sql, const json_t *now, const char *key, const char *value, struct error *err)
{
    const char *old = json_string_value(json_object_get(now, key));
    if (str_eq(old, value)) {
        return STATUS_OK;
    }
    if (str_empty(value)) {
        return sql_exec(sql, err, "DELETE FROM config WHERE key = ?1", "s", key);
    }
    return old != NULL ? sql_exec(sql, err, "UPDATE config SET value = ?2 WHERE key = ?1", "ss", key, value)
                       : sql_exec(sql, err, "INSERT INTO config (key, value) VALUES (?1, ?2)", "ss", key, value);
}

static int set_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct set *in = ud;
    json_t *now = read_global(sql, err);
    if (now == NULL) {
        return err->code;
    }
    int status = check_etag(in, now, err);
    for (size_t i = 0; i < in->request->n_config && status == STATUS_OK; i++) {
        status = set_one(sql, now, in->request->config[i]->key, in->request->config[i]->value, err);
    }
    const char *key;
    json_t *value;
    json_object_foreach(now, key, value) {
        if (status == STATUS_OK && in->request->replace && !is_named(in->request, key)) {
            status = sql_exec(sql, err, "DELETE FROM config WHERE key = ?1", "s", key);
        }
    }
    json_decref(now);
    return status;
}

/* Checks again, since the request may come from anybody who may change configuration; hashes what is hidden. */
static int check_request(Covey__Internal__V1__SetConfigRequest *request, struct arena *arena, struct error *err)
{
    for (size_t i = 0; i < request->n_config; i++) {
        Covey__Internal__V1__SetConfigRequest__ConfigEntry *entry = request->config[i];
        const struct config_key *key = config_key_find(entry->key);
        struct error reason = ERROR_INIT;
        if (key == NULL || key->local) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "cannot set '%s' to '%s': unknown key", entry->key, entry->value);
        }
        if (config_key_check(key, entry->value, &reason) != STATUS_OK) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "cannot set '%s' to '%s': %s", entry->key, key->hidden ? "..." : entry->value, reason.text);
        }
        if (key->hidden && entry->value[0] != '\0') {
            char *hash = password_hash(entry->value);
            entry->value = arena_strdup(arena, hash);
            free(hash);
        }
    }
    return STATUS_OK;
}

static int set_config(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct arena *arena = rpc_arena(call);
    Covey__Internal__V1__SetConfigRequest *request = (Covey__Internal__V1__SetConfigRequest *)codec_copy(message, arena);
    int status = check_request(request, arena, err);
    struct set set = {.request = request, .arena = arena};
    status = status == STATUS_OK ? daemon_write_call(call, "config", set_write, &set, NULL, NULL, err) : status;
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        events_lifecycle("config-updated", "/1.0", "", rpc_caller(call), NULL, str_empty(request->location) ? NULL : request->location);
    }
    return status;
}

static int locate_operation(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__LocateOperationRequest *request = (const Covey__Internal__V1__LocateOperationRequest *)message;
    Covey__Internal__V1__LocateOperationResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
    covey__internal__v1__locate_operation_response__init(out);
    int status = op_locate(request->id, &out->member, err);
    *response = status == STATUS_OK ? &out->base : NULL;
    return status;
}

static const struct rpc_binding bindings[] = {{"SetConfig", set_config}, {"LocateOperation", locate_operation}};

void control__bind(void)
{
    rpc_bind("covey.internal.v1.Control", bindings, sizeof bindings / sizeof *bindings, NULL);
}
