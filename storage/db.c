/* Opening and closing the replicated database. global.sqlite is a cache of the log: it is removed and rebuilt here, and
 * raft_node_start replays snapshot and log into it before it returns. */
#include "db_private.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool db_exists(const char *dir)
{
    char *path = xasprintf("%s/global", dir);
    DIR *stream = opendir(path);
    bool found = false;
    free(path);
    for (struct dirent *entry; stream && (entry = readdir(stream));)
        found |= str_prefix(entry->d_name, "metadata");
    if (stream)
        closedir(stream);
    return found;
}

int db_bootstrap(const char *dir, uint64_t id, struct error *err)
{
    char *raft_dir = xasprintf("%s/global", dir);
    uint64_t term = 0, last = 0, snapshot = 0;
    int status = dir_make(raft_dir, 0700, err);
    if (status == STATUS_OK && db_exists(dir))
        status = raft_node_peek(raft_dir, &term, &last, &snapshot, err);
    if (status == STATUS_OK && last == 0 && snapshot == 0)
        status = raft_node_bootstrap(raft_dir, id, err);
    free(raft_dir);
    return status;
}

static int cache_remove(const char *dir, struct error *err)
{
    static const char *const suffixes[] = {"", "-wal", "-shm", "-journal"};
    for (size_t i = 0; i < 4; i++) {
        char *path = xasprintf("%s/global.sqlite%s", dir, suffixes[i]);
        int rc = unlink(path), saved = errno;
        int status = rc == 0 || saved == ENOENT ? STATUS_OK : error_set(err, STATUS_INTERNAL, "Cannot remove \"%s\": %s", path, strerror(saved));
        free(path);
        if (status != STATUS_OK)
            return status;
    }
    return STATUS_OK;
}

int db_wipe(const char *dir, struct error *err)
{
    char *path = xasprintf("%s/global", dir);
    int status = dir_remove_all(path, err);
    free(path);
    return status == STATUS_OK ? cache_remove(dir, err) : status;
}

/* Both writing connections, on an empty database with our two books. */
static int connections_open(struct db *db, struct error *err)
{
    int status = cache_remove(db->dir, err);
    if (status == STATUS_OK)
        status = sql_open(db->path, SQL_CREATE | SQL_SYNC_OFF, &db->exec, err);
    if (status == STATUS_OK)
        status = schema_create(db->exec, err);
    if (status == STATUS_OK)
        status = sql_open(db->path, SQL_SYNC_OFF, &db->replay, err);
    if (status == STATUS_OK) /* rows were checked when they were executed, and triggers' rows are in the log themselves */
        status = sql_exec(db->replay, err, "PRAGMA foreign_keys=OFF", "");
    if (status == STATUS_OK)
        status = capture_init(&db->capture, db->exec, err);
    if (status != STATUS_OK)
        return status;
    sqlite3_db_config(sql_handle(db->replay), SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    sqlite3_set_authorizer(sql_handle(db->exec), executor_authorize, db);
    sqlite3_wal_hook(sql_handle(db->exec), db__wal_hook, db);
    sqlite3_wal_hook(sql_handle(db->replay), db__wal_hook, db);
    db->replay_stale = true;
    return STATUS_OK;
}

static void db_free(struct db *db)
{
    digester_stop(db->digester);
    readers_close(db);
    capture_free(&db->capture);
    catalog_free(&db->catalog);
    sql_close(db->exec);
    sql_close(db->replay);
    pthread_cond_destroy(&db->work);
    pthread_cond_destroy(&db->turned);
    pthread_cond_destroy(&db->changed);
    pthread_mutex_destroy(&db->lock);
    free(db->dir);
    free(db->path);
    free(db->raft_dir);
    free(db);
}

static struct db *db_create(const struct db_config *config)
{
    struct db *db = xcalloc(1, sizeof *db);
    pthread_condattr_t attr;
    db->dir = xstrdup(config->dir);
    db->path = xasprintf("%s/global.sqlite", config->dir);
    db->raft_dir = xasprintf("%s/global", config->dir);
    db->id = config->id;
    db->callbacks = config->callbacks;
    pthread_mutex_init(&db->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&db->work, &attr);
    pthread_cond_init(&db->turned, &attr);
    pthread_cond_init(&db->changed, &attr);
    pthread_condattr_destroy(&attr);
    return db;
}

static void send_frame(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    struct db *db = ud;
    if (db->callbacks.send)
        db->callbacks.send(db->callbacks.ud, peer, frame);
}

static uint64_t queued_bytes(void *ud, uint64_t peer)
{
    struct db *db = ud;
    return db->callbacks.queued(db->callbacks.ud, peer);
}

int db_open(const struct db_config *config, struct db **out, struct error *err)
{
    *out = NULL;
    struct db *db = db_create(config);
    int status = dir_make(db->raft_dir, 0700, err);
    if (status == STATUS_OK)
        status = connections_open(db, err);
    if (status == STATUS_OK)
        db->digester = digester_start(db);
    struct raft_node_config node = {
        .dir = db->raft_dir, .id = db->id,
        .callbacks = {.ud = db, .apply = db__apply, .abandoned = db__abandoned, .snapshot_begin = snapshot_begin,
                      .snapshot_write = snapshot_write, .restore = db__restore, .changed = db__changed, .send = send_frame,
                      .queued = config->callbacks.queued != NULL ? queued_bytes : NULL},
    };
    if (status == STATUS_OK)
        status = raft_node_start(&node, &db->raft, err);
    if (status == STATUS_OK) {
        pthread_mutex_lock(&db->lock);
        db->opened = true;
        pthread_mutex_unlock(&db->lock);
        status = executor_start(db, err);
    }
    if (status != STATUS_OK) {
        raft_node_stop(db->raft);
        db_free(db);
        return status;
    }
    *out = db;
    return STATUS_OK;
}

/* The node goes on until db_close, so that frames may still be handed to it; nobody waits for it any more. */
void db_stop(struct db *db)
{
    struct error err = ERROR_INIT;
    error_set(&err, STATUS_UNAVAILABLE, "The database is closing");
    pthread_mutex_lock(&db->lock);
    db->closing = true;
    pthread_cond_broadcast(&db->work);
    pthread_cond_broadcast(&db->turned);
    pthread_cond_broadcast(&db->changed);
    queue_fail(db, &err);
    pthread_mutex_unlock(&db->lock);
    executor_stop(db);
    pthread_mutex_lock(&db->lock);
    queue_fail(db, &err); /* put back by the last batch */
    if (db->pending)
        requests_unknown(db, db->pending);
    pthread_mutex_unlock(&db->lock);
}

void db_close(struct db *db)
{
    if (!db)
        return;
    db_stop(db);
    raft_node_stop(db->raft);
    pthread_mutex_lock(&db->lock);
    while (db->users)
        pthread_cond_wait(&db->changed, &db->lock); /* every wait of a caller is bounded */
    pthread_mutex_unlock(&db->lock);
    db_free(db);
}

struct raft_node *db_raft(struct db *db)
{
    return db->raft;
}
