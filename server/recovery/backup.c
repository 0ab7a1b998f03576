/* Backups: one checksummed file of the whole database from any member, and its way back onto a stopped server, in a new epoch, so that no member's former log can
 * meet it. Restore prepares database/global.restored beside what is there and changes nothing else until everything was checked. Thread: handlers; offline.c's. */
#include "recovery.h"

#include "server/config/keys.h"
#include "server/daemon/state.h"
#include "storage/backup.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK_BYTES = 512 << 10 };

/* ---- making one ---- */

struct making { enum db_consistency consistency; struct buf image; uint64_t revision; };

static int make_image(struct db *db, void *ud, struct error *err)
{
    struct making *making = ud;
    return db_image(db, making->consistency, &making->image, &making->revision, err);
}

int backup_send(struct rpc_call *call, struct error *err)
{
    struct daemon *daemon = the_daemon;
    bool local = strcmp(rpc_call_method(call)->name, "BackupLocal") == 0;
    struct making making = {.consistency = local ? DB_LOCAL : DB_LINEARIZABLE};
    struct backup_info info = {.epoch = recovery_epoch(daemon), .time_ns = time_unix_ns(), .schema = (uint32_t)db_schema_version()};
    struct buf file = {0};
    char *cluster = local_state_get(daemon->local, "cluster_id");
    snprintf(info.cluster_id, sizeof info.cluster_id, "%s", cluster != NULL ? cluster : "");
    free(cluster);
    int role = state_raft_role(daemon_id(daemon));
    int status = local && role != ROLE_VOTER && role != ROLE_STANDBY ? error_set(err, STATUS_FAILED_PRECONDITION, "This LXD instance has no database role")
                                                                     : state_with_db(daemon, make_image, &making, err);
    info.revision = making.revision;
    status = status == STATUS_OK ? backup_encode(&info, making.image.data, making.image.len, &file, err) : status;
    buf_free(&making.image);
    for (size_t at = 0; status == STATUS_OK && at < file.len; at += CHUNK_BYTES) {
        Covey__Internal__V1__BackupChunk chunk = COVEY__INTERNAL__V1__BACKUP_CHUNK__INIT;
        chunk.data.data = (uint8_t *)file.data + at;
        chunk.data.len = file.len - at < CHUNK_BYTES ? file.len - at : CHUNK_BYTES;
        status = rpc_send(call, &chunk.base, err);
    }
    buf_free(&file);
    return status;
}

/* ---- putting one back ---- */

struct restore {
    struct daemon *daemon;
    struct backup_info info;
    sqlite3 *db; /* the image, in memory, ours to change */
    uint64_t id, epoch;
    char *name, *address, *certificate, *key;
};

static int sqlite_failed(sqlite3 *db, struct error *err)
{
    return error_set(err, STATUS_DATA_LOSS, "The backup's database cannot be used: %s", sqlite3_errmsg(db));
}

static char *ask_text(sqlite3 *db, const char *query, const char *argument)
{
    sqlite3_stmt *stmt = NULL;
    char *text = NULL;
    if (sqlite3_prepare_v2(db, query, -1, &stmt, NULL) == SQLITE_OK) {
        if (argument != NULL) {
            sqlite3_bind_text(stmt, 1, argument, -1, SQLITE_TRANSIENT);
        }
        if (sqlite3_step(stmt) == SQLITE_ROW && sqlite3_column_text(stmt, 0) != NULL) {
            text = xstrdup((const char *)sqlite3_column_text(stmt, 0));
        }
    }
    sqlite3_finalize(stmt);
    return text;
}

/* One statement with up to three texts bound. */
static int run(sqlite3 *db, struct error *err, const char *statement, const char *a, const char *b, const char *c)
{
    sqlite3_stmt *stmt = NULL;
    const char *const texts[] = {a, b, c};
    int rc = sqlite3_prepare_v2(db, statement, -1, &stmt, NULL);
    for (int i = 0; rc == SQLITE_OK && i < 3 && texts[i] != NULL; i++) {
        rc = sqlite3_bind_text(stmt, i + 1, texts[i], -1, SQLITE_TRANSIENT);
    }
    rc = rc == SQLITE_OK ? sqlite3_step(stmt) : rc;
    sqlite3_finalize(stmt);
    return rc == SQLITE_DONE || rc == SQLITE_ROW ? STATUS_OK : sqlite_failed(db, err);
}

static int open_image(struct restore *in, const uint8_t *image, size_t len, struct error *err)
{
    if (sqlite3_open_v2(":memory:", &in->db, SQLITE_OPEN_READWRITE, NULL) != SQLITE_OK) {
        return sqlite_failed(in->db, err);
    }
    sqlite3_db_config(in->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    sqlite3_db_config(in->db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL);
    unsigned char *copy = sqlite3_malloc64(len);
    if (copy == NULL) {
        core_oom();
    }
    memcpy(copy, image, len);
    if (sqlite3_deserialize(in->db, "main", copy, (sqlite3_int64)len, (sqlite3_int64)len, SQLITE_DESERIALIZE_FREEONCLOSE | SQLITE_DESERIALIZE_RESIZEABLE) != SQLITE_OK) {
        return sqlite_failed(in->db, err);
    }
    char *check = ask_text(in->db, "PRAGMA integrity_check(1)", NULL);
    char *orphan = ask_text(in->db, "SELECT \"table\" FROM pragma_foreign_key_check LIMIT 1", NULL);
    char *schema = ask_text(in->db, "SELECT max(version) FROM schema", NULL), *applied = ask_text(in->db, "SELECT revision FROM applied WHERE id = 1", NULL);
    char *cluster = ask_text(in->db, "SELECT uuid FROM cluster WHERE id = 1", NULL);
    int64_t version = schema != NULL ? strtoll(schema, NULL, 10) : 0;
    int status = STATUS_OK;
    if (!str_eq(check, "ok") || orphan != NULL) {
        status = error_set(err, STATUS_DATA_LOSS, "The backup's database is damaged: %s", orphan != NULL ? orphan : check != NULL ? check : "it cannot be read");
    } else if (version < 1 || applied == NULL) {
        status = error_set(err, STATUS_DATA_LOSS, "The backup's database is none of a cluster");
    } else if (version > db_schema_version()) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "schema version '%" PRId64 "' is more recent than expected '%d'", version, db_schema_version());
    } else if (!str_eq(cluster, in->info.cluster_id)) {
        status = error_set(err, STATUS_DATA_LOSS, "The backup's header and its database name different clusters");
    } else if (str_empty(cluster)) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "The backup is of a server that was in no cluster");
    }
    free(check);
    free(orphan);
    free(schema);
    free(applied);
    free(cluster);
    return status;
}

/* As which member this server goes on. */
static int choose_member(struct restore *in, const char *member, struct error *err)
{
    char *cluster = local_state_get(in->daemon->local, "cluster_id"), *self = NULL, id[24];
    bool clustered = daemon_clustered(in->daemon);
    int status = STATUS_OK;
    snprintf(id, sizeof id, "%" PRIu64, daemon_id(in->daemon));
    if (clustered && !str_eq(cluster, in->info.cluster_id)) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "The backup is of another cluster than this server's");
    } else if (clustered) {
        in->name = ask_text(in->db, "SELECT name FROM nodes WHERE id = ?1 AND state <> 1", id);
        if (in->name == NULL || (!str_empty(member) && strcmp(member, in->name) != 0)) {
            status = error_set(err, STATUS_FAILED_PRECONDITION, in->name == NULL ? "The backup does not know this member" : "This server is member %s of the backup",
                               in->name);
        }
    } else if (!str_empty(member)) {
        in->name = ask_text(in->db, "SELECT name FROM nodes WHERE name = ?1 AND state <> 1", member);
        status = in->name != NULL ? STATUS_OK : error_set(err, STATUS_NOT_FOUND, "The backup has no member \"%s\"", member);
    } else {
        in->name = ask_text(in->db, "SELECT min(name) FROM nodes WHERE state <> 1 HAVING count(*) = 1", NULL);
        char *all = in->name == NULL ? ask_text(in->db, "SELECT group_concat(name, ', ') FROM nodes WHERE state <> 1", NULL) : NULL;
        status = in->name != NULL ? STATUS_OK
            : error_set(err, STATUS_INVALID_ARGUMENT, "This server is in no cluster: name the member whose place it takes by --member (%s)", all != NULL ? all : "none");
        free(all);
    }
    self = in->name != NULL ? ask_text(in->db, "SELECT id FROM nodes WHERE name = ?1", in->name) : NULL;
    in->id = self != NULL ? strtoull(self, NULL, 10) : 0;
    free(self);
    free(cluster);
    return status;
}

static int choose_address(struct restore *in, const char *address, struct error *err)
{
    char canonical[300];
    if (str_empty(address)) {
        in->address = ask_text(in->db, "SELECT address FROM nodes WHERE name = ?1", in->name);
        return in->address != NULL ? STATUS_OK : sqlite_failed(in->db, err);
    }
    if (address_canonical(address, canonical, sizeof canonical, err) != STATUS_OK) {
        return err->code;
    }
    if (address_wildcard(canonical)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Wildcard addresses aren't allowed");
    }
    in->address = xstrdup(canonical);
    return STATUS_OK;
}

/* The rows that say who this server is, and where the log begins anew. */
static int change_rows(struct restore *in, struct error *err)
{
    const struct identity *own = &in->daemon->server;
    char epoch[24];
    snprintf(epoch, sizeof epoch, "%" PRIu64, in->epoch);
    int status = run(in->db, err, "UPDATE applied SET revision = 0", NULL, NULL, NULL);
    status = status == STATUS_OK ? run(in->db, err, "UPDATE cluster SET epoch = CAST(?1 AS INTEGER)", epoch, NULL, NULL) : status;
    if (status == STATUS_OK) {
        status = run(in->db, err, "DELETE FROM certificates WHERE type = 2 AND fingerprint IN (SELECT fingerprint FROM nodes WHERE name = ?1) AND fingerprint <> ?2",
                     in->name, own->fingerprint, NULL);
    }
    if (status == STATUS_OK) {
        status = run(in->db, err, "INSERT INTO certificates (fingerprint, type, name, certificate) VALUES (?2, 2, ?1, ?3)"
                     " ON CONFLICT (fingerprint) DO UPDATE SET type = 2, name = ?1, restricted = 0", in->name, own->fingerprint, own->cert_pem);
    }
    return status == STATUS_OK ? run(in->db, err, "UPDATE nodes SET fingerprint = ?2, address = ?3 WHERE name = ?1", in->name, own->fingerprint, in->address) : status;
}

static int build(struct restore *in, struct error *err)
{
    char *made = xasprintf("%s/database/global.restored", in->daemon->dir);
    sqlite3_int64 size = 0;
    int status = dir_remove_all(made, err); /* of an attempt that was killed */
    unsigned char *image = status == STATUS_OK ? sqlite3_serialize(in->db, "main", &size, 0) : NULL;
    if (status == STATUS_OK) {
        status = image != NULL ? db_seed(made, in->id, image, (size_t)size, err) : sqlite_failed(in->db, err);
    }
    if (status != STATUS_OK) {
        dir_remove_all(made, NULL);
    }
    sqlite3_free(image);
    free(made);
    return status;
}

/* What intent.c then does in any case, however often it is killed. */
static char *intent_of(const struct restore *in)
{
    char id[24];
    snprintf(id, sizeof id, "%" PRIu64, in->id);
    char *core = local_config_get(in->daemon->local, "core.https_address");
    json_t *intent = json_pack("{s:s, s:I, s:I, s:s, s:s, s:{s:s, s:s, s:s, s:s, s:s, s:s}, s:{s:s}, s:{s:s, s:s}}", "kind", "install", "epoch", (json_int_t)in->epoch,
        "id", (json_int_t)in->id, "certificate", in->certificate, "key", in->key,
        "state", "cluster_id", in->info.cluster_id, "member_id", id, "name", in->name, "clustered", "1", "view", "", "join", "",
        "config", "cluster.https_address", in->address, "self", "address", in->address, "name", in->name);
    if (intent != NULL && core == NULL) {
        json_object_set_new(json_object_get(intent, "config"), "core.https_address", json_string(in->address));
    }
    char *text = intent != NULL ? json_dumps(intent, JSON_COMPACT) : NULL;
    json_decref(intent);
    free(core);
    return text;
}

/* A cluster that works without this member must not be doubled. */
int recovery_check_alone(struct daemon *daemon, struct error *err)
{
    struct arena arena;
    struct peer_position *peers;
    uint64_t own = recovery_epoch(daemon);
    arena_init(&arena);
    int status = STATUS_OK;
    size_t count = daemon_clustered(daemon) ? positions_ask(daemon, NULL, 0, &arena, &peers) : 0;
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        if (peers[i].position != NULL && peers[i].position->leader_id != 0 && peers[i].position->epoch >= own) {
            status = error_set(err, STATUS_FAILED_PRECONDITION, "The cluster works without this member (%s knows a leader): stop the other members first", peers[i].name);
        }
    }
    arena_clear(&arena);
    return status;
}

static void describe(const struct restore *in, struct buf *about)
{
    char when[64];
    time_rfc3339(in->info.time_ns, when, sizeof when);
    json_t *object = json_pack("{s:s, s:I, s:I, s:s, s:s, s:s, s:i}", "cluster_id", in->info.cluster_id, "epoch", (json_int_t)in->info.epoch, "revision",
        (json_int_t)in->info.revision, "time", when, "member", in->name, "address", in->address, "schema", (int)in->info.schema);
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    buf_puts(about, text != NULL ? text : "{}");
    free(text);
    json_decref(object);
}

int backup_restore(struct daemon *daemon, const char *path, const char *member, const char *address, bool check_only, struct buf *about, struct error *err)
{
    struct restore in = {.daemon = daemon};
    struct buf file = {0};
    const uint8_t *image = NULL;
    size_t len = 0;
    int status = file_read(path, BACKUP_BYTES_MAX + (1 << 20), &file, err);
    status = status == STATUS_OK ? backup_decode(file.data, file.len, &in.info, &image, &len, err) : status;
    status = status == STATUS_OK ? open_image(&in, image, len, err) : status;
    buf_free(&file);
    status = status == STATUS_OK ? choose_member(&in, member, err) : status;
    status = status == STATUS_OK ? choose_address(&in, address, err) : status;
    status = status == STATUS_OK ? recovery_check_alone(daemon, err) : status;
    if (status == STATUS_OK) {
        uint64_t own = recovery_epoch(daemon);
        in.epoch = recovery_new_epoch(own > in.info.epoch ? own : in.info.epoch);
        in.certificate = ask_text(in.db, "SELECT certificate FROM cluster WHERE id = 1", NULL);
        in.key = ask_text(in.db, "SELECT key FROM cluster WHERE id = 1", NULL);
        describe(&in, about);
    }
    if (status == STATUS_OK && (str_empty(in.certificate) || str_empty(in.key))) {
        status = error_set(err, STATUS_DATA_LOSS, "The backup has no cluster certificate");
    }
    if (status == STATUS_OK && !check_only) {
        status = change_rows(&in, err);
        status = status == STATUS_OK ? build(&in, err) : status;
        char *intent = status == STATUS_OK ? intent_of(&in) : NULL;
        if (status == STATUS_OK) {
            status = intent != NULL ? recovery_install(daemon, intent, err) : error_set(err, STATUS_INTERNAL, "cannot encode the intention");
        }
        free(intent);
    }
    sqlite3_close(in.db);
    free(in.name);
    free(in.address);
    free(in.certificate);
    free(in.key);
    return status;
}
