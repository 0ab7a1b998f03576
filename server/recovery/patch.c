/* Patch files (spec/cluster.md 12.4): SQL that runs once at the next start and vanishes. "Once" holds through kills: the local file's identity is recorded in
 * the transaction that runs it; the global one gets an id that is recorded in the replicated write that runs it.
 *
 * Thread: main; patch_global also the controller's, one at a time. */
#include "recovery.h"

#include "server/daemon/state.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const local_name = "patch.local.sql", *const global_name = "patch.global.sql";

struct file {
    char *path;
    struct buf text;
    char identity[160]; /* of this very file: content, inode, time */
};

static void file_free(struct file *file)
{
    free(file->path);
    buf_free(&file->text);
}

/* STATUS_NOT_FOUND: there is none. */
static int file_load(struct daemon *daemon, const char *name, struct file *file, struct error *err)
{
    struct stat st;
    char sha[65];
    *file = (struct file){.path = xasprintf("%s/database/%s", daemon->dir, name)};
    if (lstat(file->path, &st) != 0) {
        return errno == ENOENT ? STATUS_NOT_FOUND : error_errno(err, errno, "%s", file->path);
    }
    if (file_read(file->path, RECOVERY_PATCH_BYTES_MAX, &file->text, err) != STATUS_OK) {
        return error_prefix(err, "failed to execute queries from %s", file->path);
    }
    if (file->text.len > 0 && !utf8_valid(file->text.data, file->text.len)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "failed to execute queries from %s: it is not UTF-8 text", file->path);
    }
    sha256_hex(file->text.data != NULL ? file->text.data : "", file->text.len, sha);
    snprintf(file->identity, sizeof file->identity, "%s %llu %lld.%09ld", sha, (unsigned long long)st.st_ino, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
    return STATUS_OK;
}

static int file_remove(const struct file *file, struct error *err)
{
    return unlink(file->path) == 0 || errno == ENOENT ? STATUS_OK : error_errno(err, errno, "cannot remove %s", file->path);
}

/* ---- local ---- */

/* The statements run in our transaction: they may not end it. */
static int refuse_transactions(void *ud, int action, const char *a, const char *b, const char *c, const char *d)
{
    return action == SQLITE_TRANSACTION || action == SQLITE_SAVEPOINT || action == SQLITE_ATTACH || action == SQLITE_DETACH ? SQLITE_DENY : SQLITE_OK;
}

static int run_local(struct sql *sql, void *ud, struct error *err)
{
    const struct file *file = ud;
    sqlite3_set_authorizer(sql_handle(sql), refuse_transactions, NULL);
    int status = sql_script(sql, file->text.data != NULL ? file->text.data : "", err);
    sqlite3_set_authorizer(sql_handle(sql), NULL, NULL);
    return status == STATUS_OK ? local_state_put(sql, "patch_local", file->identity, err) : status;
}

static int copy_local(struct sql *sql, void *ud, struct error *err)
{
    return sql_exec(sql, err, "VACUUM INTO ?1", "s", (const char *)ud);
}

int patch_local(struct daemon *daemon, struct error *err)
{
    struct file file;
    int status = file_load(daemon, local_name, &file, err);
    if (status == STATUS_OK) {
        char *done = local_state_get(daemon->local, "patch_local");
        bool again = str_eq(done, file.identity); /* killed before the file was removed */
        free(done);
        if (!again) {
            char *copy = xasprintf("%s/database/local.db.bak", daemon->dir);
            status = unlink(copy) == 0 || errno == ENOENT ? STATUS_OK : error_errno(err, errno, "cannot remove %s", copy);
            status = status == STATUS_OK ? local_db_with(daemon->local, copy_local, copy, err) : status;
            free(copy);
            if (status == STATUS_OK && (status = local_db_transaction(daemon->local, run_local, &file, err)) != STATUS_OK) {
                error_prefix(err, "failed to execute queries from %s", file.path);
            }
        }
        status = status == STATUS_OK ? file_remove(&file, err) : status;
        if (status == STATUS_OK) {
            log_info("patch.local", "file=%s repeated=%d", file.path, again);
            local_state_set(daemon->local, "patch_local", NULL, NULL);
        }
    } else if (status == STATUS_NOT_FOUND) {
        status = STATUS_OK;
    }
    file_free(&file);
    return status;
}

/* ---- global ---- */

/* The id of this file, made once. */
static int file_id(struct daemon *daemon, const struct file *file, char id[37], struct error *err)
{
    char *known = local_state_get(daemon->local, "patch_global");
    int status = STATUS_OK;
    if (known != NULL && strlen(known) > 37 && strcmp(known + 37, file->identity) == 0) {
        memcpy(id, known, 36);
        id[36] = '\0';
    } else {
        uuid_new(id);
        char *text = xasprintf("%s %s", id, file->identity);
        status = local_state_set(daemon->local, "patch_global", text, err);
        free(text);
    }
    free(known);
    return status;
}

static int dump(struct db *db, void *ud, struct error *err)
{
    return db_dump_file(db, ud, err);
}

static int copy_global(struct daemon *daemon, struct error *err)
{
    int role = state_raft_role(daemon_id(daemon));
    if (role != ROLE_VOTER && role != ROLE_STANDBY) {
        return STATUS_OK; /* no copy here; the leader's is elsewhere */
    }
    char *folder = xasprintf("%s/database/global.bak", daemon->dir), *path = xasprintf("%s/db.bin", folder);
    int status = dir_make(folder, 0700, err);
    status = status == STATUS_OK ? state_with_db(daemon, dump, path, err) : status;
    free(path);
    free(folder);
    return status;
}

static int apply(struct daemon *daemon, const char *id, const struct file *file, struct error *err)
{
    Covey__Internal__V1__ApplyPatchRequest request = COVEY__INTERNAL__V1__APPLY_PATCH_REQUEST__INIT;
    request.id = (char *)id;
    request.sql = file->text.data != NULL ? file->text.data : "";
    request.file = file->path;
    if (daemon_leads(daemon)) {
        return patch_execute(daemon, &request, err);
    }
    uint64_t leader = daemon_leader_id(daemon);
    leader = leader != 0 ? leader : attach_known_leader();
    struct rpc_channel *channel = leader != 0 && leader != daemon_id(daemon) ? member_channel(daemon, leader, err) : NULL;
    if (channel == NULL) {
        return error_set(err, STATUS_UNAVAILABLE, "no available leader");
    }
    struct arena arena;
    arena_init(&arena);
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.timeout_ms = DB_WRITE_TIMEOUT_MS};
    int status = rpc_unary(channel, "covey.internal.v1.Recovery", "ApplyPatch", &request.base, &response, &arena, &options, err);
    arena_clear(&arena);
    rpc_channel_unref(channel);
    return status;
}

int patch_global(struct daemon *daemon, struct error *err)
{
    static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
    struct file file;
    char id[37];
    pthread_mutex_lock(&one);
    int status = file_load(daemon, global_name, &file, err);
    if (status == STATUS_OK) {
        status = file_id(daemon, &file, id, err);
        status = status == STATUS_OK ? copy_global(daemon, err) : status;
        status = status == STATUS_OK ? apply(daemon, id, &file, err) : status;
        status = status == STATUS_OK ? file_remove(&file, err) : status;
        if (status == STATUS_OK) {
            log_info("patch.global", "file=%s id=%s", file.path, id);
            local_state_set(daemon->local, "patch_global", NULL, NULL);
        }
    } else if (status == STATUS_NOT_FOUND) {
        status = STATUS_OK;
    }
    file_free(&file);
    pthread_mutex_unlock(&one);
    return status;
}

/* ---- on the leader ---- */

/* A request key is forgotten after ten minutes; a member may be away for longer between the write and the removal of its file. */
enum { DONE_KEEP_S = 10 * 365 * 24 * 3600 };

struct execute { const char *key, *sql; };

static int execute(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct execute *in = ud;
    int64_t done = 0;
    int status = sql_get_int(sql, &done, err, "SELECT count(*) FROM requests WHERE key = ?1", "s", in->key);
    if (status != STATUS_OK || done > 0) {
        return status;
    }
    status = sql_script(sql, in->sql, err);
    if (status != STATUS_OK) {
        err->code = STATUS_INVALID_ARGUMENT; /* its own fault, whatever SQLite calls it */
        return err->code;
    }
    return sql_exec(sql, err, "INSERT INTO requests (key, done_at, result) VALUES (?1, ?2, NULL)", "si", in->key,
                    time_unix_ns() + (int64_t)DONE_KEEP_S * 1000000000);
}

int patch_execute(struct daemon *daemon, const Covey__Internal__V1__ApplyPatchRequest *request, struct error *err)
{
    char key[80];
    if (!uuid_valid(request->id)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid id of a patch file");
    }
    snprintf(key, sizeof key, "patch-file/%s", request->id);
    struct execute in = {key, request->sql};
    int status = daemon_write(daemon, NULL, execute, &in, NULL, NULL, NULL, err);
    if (status == STATUS_OK) {
        controller_wake(true);
    } else if (status == STATUS_INVALID_ARGUMENT || status == STATUS_FAILED_PRECONDITION) {
        error_prefix(err, "failed to execute queries from %s", request->file);
    }
    return status;
}
