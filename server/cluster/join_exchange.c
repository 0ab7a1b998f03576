/* What a join leaves on this host and must survive its end at any step: its state, one JSON object in the local database, and the exchange of the replicated
 * database. The phases of the state are told in join.c. Everything here may be repeated. Thread: whoever has forming_begin, or the start of the daemon. */
#include "join.h"

#include "server/daemon/identity.h"
#include "server/daemon/state.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the state kept over restarts ---- */

int join__save(struct daemon *daemon, struct join *join, const char *phase, struct error *err)
{
    json_t *addresses = json_array();
    for (size_t i = 0; i < join->address_count; i++) {
        json_array_append_new(addresses, json_string(join->addresses[i]));
    }
    json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:b, s:I, s:s*, s:I, s:I, s:s*, s:s*, s:s*, s:O*, s:O*}", "phase", phase, "name", join->name, "address",
        join->address, "join_id", join->join_id, "fingerprint", join->fingerprint, "addresses", addresses, "introduced", (int)join->introduced, "former_type",
        (json_int_t)join->former_type, "former_name", join->former_name, "id", (json_int_t)join->id, "epoch", (json_int_t)join->epoch, "cluster_id", join->cluster_id,
        "cert", join->cluster_cert, "key", join->cluster_key, "pools", join->pools, "networks", join->networks);
    char *text = json_dumps(object, JSON_COMPACT);
    int status = text != NULL ? local_state_set(daemon->local, "join", text, err) : error_set(err, STATUS_INTERNAL, "cannot encode the state of the join");
    free(text);
    json_decref(object);
    return status;
}

static void copy_text(char *out, size_t size, json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    snprintf(out, size, "%s", text != NULL ? text : "");
}

json_t *join__load_object(struct daemon *daemon)
{
    char *text = local_state_get(daemon->local, "join");
    json_t *object = text != NULL ? json_loads(text, 0, NULL) : NULL;
    free(text);
    return object;
}

bool join__in_phase(const json_t *object, const char *phase)
{
    return str_eq(json_string_value(json_object_get(object, "phase")), phase);
}

void join__load(struct join *join, json_t *object)
{
    json_t *address;
    size_t i;
    copy_text(join->name, sizeof join->name, object, "name");
    copy_text(join->address, sizeof join->address, object, "address");
    copy_text(join->join_id, sizeof join->join_id, object, "join_id");
    copy_text(join->fingerprint, sizeof join->fingerprint, object, "fingerprint");
    json_array_foreach(json_object_get(object, "addresses"), i, address) {
        join__add_address(join, json_string_value(address));
    }
    join->introduced = json_is_true(json_object_get(object, "introduced"));
    join->known_by_ms = time_mono_ms() + JOIN_TRUST_MS;
    join->former_type = json_integer_value(json_object_get(object, "former_type"));
    join->former_name = json_string_value(json_object_get(object, "former_name"));
    join->id = (uint64_t)json_integer_value(json_object_get(object, "id"));
    join->epoch = (uint64_t)json_integer_value(json_object_get(object, "epoch"));
    join->cluster_id = json_string_value(json_object_get(object, "cluster_id"));
    join->cluster_cert = json_string_value(json_object_get(object, "cert"));
    join->cluster_key = json_string_value(json_object_get(object, "key"));
    join->pools = json_incref(json_object_get(object, "pools"));
    join->networks = json_incref(json_object_get(object, "networks"));
}

void join__forget(struct daemon *daemon)
{
    struct error err = ERROR_INIT;
    if (local_state_set(daemon->local, "join", NULL, &err) != STATUS_OK) {
        log_error("join.state", "error=\"%s\"", err.text);
    }
}

/* ---- the exchange of the database ---- */

static int move(const char *from, const char *to, struct error *err)
{
    if (rename(from, to) != 0 && errno != ENOENT) {
        return error_set(err, STATUS_INTERNAL, "cannot rename %s to %s: %s", from, to, strerrordesc_np(errno));
    }
    return STATUS_OK;
}

int join__switch_over(struct daemon *daemon, struct join *join, struct error *err)
{
    char *now = xasprintf("%s/database/global", daemon->dir), *before = xasprintf("%s/database/global.before", daemon->dir);
    int status = STATUS_OK;
    state_close_database(daemon);
    members_forget_channels();
    crash_point("join:closed");
    if (access(before, F_OK) != 0) { /* else `now` is what this join made already: a voter must never forget its log */
        status = move(now, before, err);
    }
    crash_point("join:moved");
    if (status == STATUS_OK) {
        status = identity_set_cluster(daemon, join->cluster_cert, join->cluster_key, err);
    }
    crash_point("join:identity");
    if (status == STATUS_OK) {
        status = cluster_local_state(daemon, join->name, join->cluster_id, join->epoch, join->id, err);
    }
    crash_point("join:placed");
    if (status == STATUS_OK) {
        state_set_identity(daemon, join->id, true, join->name);
        if (join->view != NULL) {
            view_forget(daemon); /* the standalone server's terms mean nothing here */
            view_install(daemon, join->view);
            view_persist(daemon);
        }
        crash_point("join:view");
        status = state_open_database(daemon, err);
    }
    free(now);
    free(before);
    return status;
}

int join__switch_back(struct daemon *daemon, struct error *err)
{
    char *now = xasprintf("%s/database/global", daemon->dir), *before = xasprintf("%s/database/global.before", daemon->dir);
    state_close_database(daemon);
    members_forget_channels();
    int status = STATUS_OK;
    if (access(before, F_OK) == 0) {
        status = dir_remove_all(now, err);
        crash_point("join:emptied");
        status = status == STATUS_OK ? move(before, now, err) : status;
    }
    crash_point("join:restored");
    if (status == STATUS_OK) {
        status = cluster_local_state(daemon, NULL, NULL, 0, 1, err);
    }
    identity_drop_cluster(daemon);
    state_set_identity(daemon, 1, false, "");
    view_forget(daemon);
    if (status == STATUS_OK) {
        status = state_open_database(daemon, err);
    }
    free(now);
    free(before);
    return status;
}

int join__drop_former(struct daemon *daemon, struct error *err)
{
    char *before = xasprintf("%s/database/global.before", daemon->dir);
    int status = dir_remove_all(before, err);
    free(before);
    crash_point("join:dropped");
    return status == STATUS_OK ? local_state_set(daemon->local, "join", NULL, err) : status;
}

int join_prepare(struct daemon *daemon, struct error *err)
{
    json_t *object = join__load_object(daemon);
    int status = STATUS_OK;
    if (join__in_phase(object, "joined")) {
        status = join__drop_former(daemon, err);
    } else if (join__in_phase(object, "switching") && !daemon_clustered(daemon)) { /* the exchange had only begun, or was undone */
        char *now = xasprintf("%s/database/global", daemon->dir), *before = xasprintf("%s/database/global.before", daemon->dir);
        if (access(before, F_OK) == 0) {
            status = dir_remove_all(now, err);
            status = status == STATUS_OK ? move(before, now, err) : status;
        }
        free(now);
        free(before);
    }
    json_decref(object);
    return status;
}
