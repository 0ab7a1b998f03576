/* Warnings in the database. Functions with `sql` run within a write (on the executor's thread) or a read. */
#include "warnings.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The columns of an identity; 0 and "" where it has none. */
struct key {
    int64_t node, project;
    const char *type, *entity;
    char number[24];
};

static int key_of(struct sql *sql, const struct warning *warning, struct key *out, struct error *err)
{
    *out = (struct key){.node = (int64_t)warning->member, .type = "", .entity = ""};
    if (warning->entity_member != 0) {
        snprintf(out->number, sizeof out->number, "%" PRIu64, warning->entity_member);
        out->type = "cluster-member";
        out->entity = out->number;
    } else if (warning->entity_url != NULL) {
        out->type = "url";
        out->entity = warning->entity_url;
    }
    int status = warning->project != NULL ? sql_get_int(sql, &out->project, err, "SELECT id FROM projects WHERE name = ?1", "s", warning->project) : STATUS_OK;
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* 0 = none. */
static int find(struct sql *sql, const struct warning *warning, const struct key *key, int64_t *id, struct error *err)
{
    *id = 0;
    int status = sql_get_int(sql, id, err,
        "SELECT id FROM warnings WHERE type_code = ?1 AND coalesce(node_id, 0) = ?2 AND coalesce(project_id, 0) = ?3 AND entity_type = ?4 AND entity = ?5", "iiiss",
        (int64_t)warning->kind, key->node, key->project, key->type, key->entity);
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

int warning_raise(struct sql *sql, const struct warning *warning, int64_t now_ns, struct error *err)
{
    struct key key;
    int64_t id = 0;
    const char *message = warning->message != NULL ? warning->message : "";
    int status = key_of(sql, warning, &key, err);
    status = status == STATUS_OK ? find(sql, warning, &key, &id, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    if (id != 0) {
        return sql_exec(sql, err,
            "UPDATE warnings SET count = count + 1, last_seen_date = ?2, last_message = ?3, status = CASE status WHEN ?4 THEN ?5 ELSE status END WHERE id = ?1", "iisii", id,
            now_ns, message, (int64_t)WARNING_RESOLVED, (int64_t)WARNING_NEW);
    }
    char uuid[37];
    uuid_new(uuid);
    return sql_exec(sql, err,
        "INSERT INTO warnings (uuid, node_id, project_id, type_code, status, entity_type, entity, first_seen_date, last_seen_date, last_message, count)"
        " VALUES (?1, nullif(?2, 0), nullif(?3, 0), ?4, ?5, ?6, ?7, ?8, ?8, ?9, 1)", "siiiissis", uuid, key.node, key.project, (int64_t)warning->kind, (int64_t)WARNING_NEW,
        key.type, key.entity, now_ns, message);
}

int warning_resolve(struct sql *sql, const struct warning *warning, int64_t now_ns, struct error *err)
{
    struct key key;
    int64_t id = 0;
    int status = key_of(sql, warning, &key, err);
    status = status == STATUS_OK ? find(sql, warning, &key, &id, err) : status;
    return status == STATUS_OK && id != 0 ? sql_exec(sql, err, "UPDATE warnings SET status = ?2, last_seen_date = ?3 WHERE id = ?1 AND status <> ?2", "iii", id,
                                                (int64_t)WARNING_RESOLVED, now_ns)
                                          : status;
}

int warning_active(struct sql *sql, const struct warning *warning, bool *active, struct error *err)
{
    struct key key;
    int64_t id = 0, state = WARNING_RESOLVED;
    int status = key_of(sql, warning, &key, err);
    status = status == STATUS_OK ? find(sql, warning, &key, &id, err) : status;
    status = status == STATUS_OK && id != 0 ? sql_get_int(sql, &state, err, "SELECT status FROM warnings WHERE id = ?1", "i", id) : status;
    *active = status == STATUS_OK && state != WARNING_RESOLVED;
    return status;
}

static int raise_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return warning_raise(sql, ud, time_unix_ns(), err);
}

static int resolve_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return warning_resolve(sql, ud, time_unix_ns(), err);
}

static void write_one(struct daemon *daemon, const struct warning *warning, db_write_fn fn)
{
    struct error err = ERROR_INIT;
    if (daemon_write(daemon, NULL, fn, (void *)warning, NULL, NULL, NULL, &err) != STATUS_OK) {
        log_warn("warnings", "kind=\"%s\" error=\"%s\"", warning_kind_name(warning->kind), err.text);
    }
}

void warnings_raise(struct daemon *daemon, const struct warning *warning)
{
    write_one(daemon, warning, raise_write);
}

void warnings_resolve(struct daemon *daemon, const struct warning *warning)
{
    write_one(daemon, warning, resolve_write);
}
