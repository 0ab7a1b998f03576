/* Steps of a recovery that survive being killed: the intention is one row of local.db (state "recovery"), written before the first step and removed in the
 * transaction of the last; every step may be repeated. Thread: main before the database is open, or whoever has closed it. */
#include "recovery.h"

#include "server/daemon/identity.h"
#include "server/daemon/state.h"
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *recovery_raft_dir(struct daemon *daemon)
{
    return xasprintf("%s/database/global", daemon->dir);
}

uint64_t recovery_epoch(struct daemon *daemon)
{
    char *text = local_state_get(daemon->local, "epoch");
    uint64_t epoch = text != NULL ? strtoull(text, NULL, 10) : 1;
    free(text);
    return epoch;
}

/* Time makes it unique: two survivors that are recovered separately must not take each other for the same cluster. */
uint64_t recovery_new_epoch(uint64_t than)
{
    uint64_t now = (uint64_t)time_unix_ns();
    return now > than ? now : than + 1;
}

static int exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static int move_dir(const char *from, const char *to, struct error *err)
{
    if (!exists(from)) {
        return STATUS_OK; /* moved before the kill */
    }
    if (dir_remove_all(to, err) != STATUS_OK) {
        return err->code;
    }
    return rename(from, to) == 0 ? STATUS_OK : error_set(err, STATUS_INTERNAL, "cannot rename %s to %s: %s", from, to, strerrordesc_np(errno));
}

/* ---- last transactions ---- */

struct last {
    uint64_t epoch, id;
    const json_t *intent;
    bool sole;
    char *view; /* base64, NULL = none */
};

static char *view_with_sole_voter(struct daemon *daemon, uint64_t id)
{
    char *text = local_state_get(daemon->local, "view"), *made = NULL;
    size_t len = 0;
    uint8_t *bytes = text != NULL ? base64_decode(text, &len) : NULL;
    struct arena arena;
    arena_init(&arena);
    Covey__Internal__V1__View *view = bytes != NULL ? (Covey__Internal__V1__View *)codec_unpack(&covey__internal__v1__view__descriptor, bytes, len, &arena, NULL) : NULL;
    if (view != NULL) {
        for (size_t i = 0; i < view->n_members; i++) {
            view->members[i]->raft_role = view->members[i]->id == id ? 0 : -1;
        }
        size_t size = covey__internal__v1__view__get_packed_size(view);
        uint8_t *packed = arena_alloc(&arena, size + 1);
        covey__internal__v1__view__pack(view, packed);
        made = base64_encode(packed, size);
    }
    arena_clear(&arena);
    free(bytes);
    free(text);
    return made;
}

static int write_last(struct sql *sql, void *ud, struct error *err)
{
    struct last *last = ud;
    char epoch[24];
    snprintf(epoch, sizeof epoch, "%" PRIu64, last->epoch);
    int status = local_state_put(sql, "epoch", epoch, err);
    if (status == STATUS_OK && last->sole) {
        struct sql_stmt *s = sql_query(sql, "SELECT address, name FROM raft_nodes WHERE id = ?1", "i", (int64_t)last->id);
        struct local_raft_node self = {.id = last->id};
        if (sql_next(s)) {
            self.address = xstrdup(sql_text(s, 0));
            self.name = xstrdup(sql_text(s, 1));
        }
        status = sql_done(s, err);
        if (status == STATUS_OK && self.address == NULL) {
            sql_get_text(sql, &self.address, NULL, "SELECT value FROM config WHERE key = 'cluster.https_address'", "");
        }
        status = status == STATUS_OK && self.address != NULL ? local_raft_nodes_put(sql, &self, 1, err) : status;
        free(self.address);
        free(self.name);
    }
    if (status == STATUS_OK && last->view != NULL) {
        status = local_state_put(sql, "view", last->view, err);
    }
    const char *key;
    const json_t *value;
    json_object_foreach((json_t *)json_object_get(last->intent, "state"), key, value) {
        status = status == STATUS_OK ? local_state_put(sql, key, json_string_value(value), err) : status;
    }
    json_object_foreach((json_t *)json_object_get(last->intent, "config"), key, value) {
        status = status != STATUS_OK ? status
            : sql_exec(sql, err, "INSERT INTO config (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2", "ss", key, json_string_value(value));
    }
    const json_t *self = json_object_get(last->intent, "self");
    if (status == STATUS_OK && self != NULL) {
        struct local_raft_node node = {.id = last->id, .address = (char *)json_string_value(json_object_get(self, "address")),
                                       .name = (char *)json_string_value(json_object_get(self, "name"))};
        status = local_raft_nodes_put(sql, &node, 1, err);
        status = status == STATUS_OK ? local_state_put(sql, "moved", NULL, err) : status;
    }
    return status == STATUS_OK ? local_state_put(sql, "recovery", NULL, err) : status;
}

/* ---- the three kinds ---- */

static uint64_t own_id(struct daemon *daemon)
{
    char *text = local_state_get(daemon->local, "member_id");
    uint64_t id = text != NULL ? strtoull(text, NULL, 10) : 1;
    free(text);
    return id;
}

static int finish_sole(struct daemon *daemon, const json_t *intent, struct error *err)
{
    char *global = recovery_raft_dir(daemon);
    struct last last = {.epoch = (uint64_t)json_integer_value(json_object_get(intent, "epoch")), .id = own_id(daemon), .intent = intent, .sole = true};
    int status = raft_node_recover(global, last.id, err);
    if (status == STATUS_OK) {
        last.view = view_with_sole_voter(daemon, last.id);
        status = local_db_transaction(daemon->local, write_last, &last, err);
    }
    free(last.view);
    free(global);
    return status;
}

static int finish_discard(struct daemon *daemon, const json_t *intent, struct error *err)
{
    char *global = recovery_raft_dir(daemon), *away = xasprintf("%s/database/global.discarded", daemon->dir);
    struct last last = {.epoch = (uint64_t)json_integer_value(json_object_get(intent, "epoch")), .id = own_id(daemon), .intent = intent};
    int status = move_dir(global, away, err);
    status = status == STATUS_OK ? local_db_transaction(daemon->local, write_last, &last, err) : status;
    free(away);
    free(global);
    return status;
}

static int finish_install(struct daemon *daemon, const json_t *intent, struct error *err)
{
    char *global = recovery_raft_dir(daemon), *made = xasprintf("%s/database/global.restored", daemon->dir);
    char *away = xasprintf("%s/database/global.before-restore", daemon->dir);
    struct last last = {.epoch = (uint64_t)json_integer_value(json_object_get(intent, "epoch")),
                        .id = (uint64_t)json_integer_value(json_object_get(intent, "id")), .intent = intent};
    int status = identity_set_cluster(daemon, json_string_value(json_object_get(intent, "certificate")), json_string_value(json_object_get(intent, "key")), err);
    if (status == STATUS_OK && exists(made)) {
        status = move_dir(global, away, err);
        status = status == STATUS_OK ? move_dir(made, global, err) : status;
    }
    status = status == STATUS_OK ? local_db_transaction(daemon->local, write_last, &last, err) : status;
    free(away);
    free(made);
    free(global);
    return status;
}

static const struct {
    const char *kind;
    int (*finish)(struct daemon *daemon, const json_t *intent, struct error *err);
} kinds[] = {{"sole", finish_sole}, {"discard", finish_discard}, {"install", finish_install}};

int recovery_resume(struct daemon *daemon, struct error *err)
{
    char *text = local_state_get(daemon->local, "recovery");
    if (text == NULL) {
        return STATUS_OK;
    }
    json_t *intent = json_loads(text, 0, NULL);
    const char *kind = json_string_value(json_object_get(intent, "kind"));
    size_t i = 0, count = sizeof kinds / sizeof *kinds;
    while (i < count && !str_eq(kind, kinds[i].kind)) {
        i++;
    }
    int status;
    if (i == count) {
        status = error_set(err, STATUS_DATA_LOSS, "local state \"recovery\" cannot be read");
    } else {
        log_info("recovery.finish", "kind=%s epoch=%lld", kind, (long long)json_integer_value(json_object_get(intent, "epoch")));
        status = kinds[i].finish(daemon, intent, err);
    }
    if (status == STATUS_FAILED_PRECONDITION) { /* it can never be finished: nothing was changed */
        local_state_set(daemon->local, "recovery", NULL, NULL);
    }
    json_decref(intent);
    free(text);
    return status;
}

static int begin(struct daemon *daemon, const char *kind, uint64_t epoch, struct error *err)
{
    char *text = xasprintf("{\"kind\": \"%s\", \"epoch\": %" PRIu64 "}", kind, epoch);
    int status = local_state_set(daemon->local, "recovery", text, err);
    free(text);
    return status == STATUS_OK ? recovery_resume(daemon, err) : status;
}

int recovery_sole_voter(struct daemon *daemon, uint64_t epoch, struct error *err)
{
    return begin(daemon, "sole", epoch, err);
}

int recovery_discard(struct daemon *daemon, uint64_t epoch, struct error *err)
{
    return begin(daemon, "discard", epoch, err);
}

int recovery_install(struct daemon *daemon, const char *intent_json, struct error *err)
{
    int status = local_state_set(daemon->local, "recovery", intent_json, err);
    return status == STATUS_OK ? recovery_resume(daemon, err) : status;
}
