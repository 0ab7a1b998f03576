/* The loop's side of the database: entries as they commit, proposals given up, snapshots, leadership. Everything here runs
 * on the loop thread. Any SQLite error or malformed entry ends the process: a wrong replica is worse than a dead one. */
#include "db_private.h"

#include <inttypes.h>
#include <string.h>
#include <utlist.h>

static void turn_set(struct db *db, enum turn turn)
{
    db->turn = turn;
    pthread_cond_broadcast(&db->turned);
    pthread_cond_signal(&db->work);
}

/* Lock held. Ends the transaction that waits for its entry, because the state moves on without it. */
static void pending_rollback(struct db *db)
{
    struct error err = ERROR_INIT;
    db__must(sql__control(db->exec, SQL_ROLLBACK, &err), &err);
    capture_committed(&db->capture, false);
    db->pending->lost = true;
    turn_set(db, TURN_FREE);
}

/* Takes the turn for the loop. The executor ends its batch first: it waits for nothing. */
static void turn_take(struct db *db)
{
    pthread_mutex_lock(&db->lock);
    db->loop_waits = true;
    while (db->turn == TURN_EXECUTOR)
        pthread_cond_wait(&db->turned, &db->lock); /* bounded by one batch */
    if (db->turn == TURN_PENDING)
        pending_rollback(db);
    db->loop_waits = false;
    turn_set(db, TURN_LOOP);
    pthread_mutex_unlock(&db->lock);
}

/* Gives it back, with the state's new place in the log. */
static void turn_give(struct db *db, uint64_t revision, int schema_version, bool stale)
{
    pthread_mutex_lock(&db->lock);
    db->revision = revision;
    db->schema_version = schema_version;
    db->catalog_stale |= stale;
    db->capture.sequences_known = false;
    turn_set(db, TURN_FREE);
    pthread_cond_broadcast(&db->changed);
    pthread_mutex_unlock(&db->lock);
}

/* Lock held. The proposal's callers get their answer. */
static void proposal_finish(struct db *db, struct proposal *proposal, int status, const struct error *err, uint64_t revision)
{
    if (db->pending == proposal) {
        db->pending = NULL;
        pthread_cond_signal(&db->work);
    }
    struct request *request;
    DL_FOREACH(proposal->requests, request)
        request->revision = revision;
    if (status == STATUS_OK)
        requests_finish(db, proposal->requests);
    else if (proposal->requests)
        requests_fail(db, proposal->requests, status, err);
    proposal->requests = NULL;
    proposal->done = true;
    proposal->status = status;
    proposal->revision = revision;
    if (err)
        proposal->error = *err;
    pthread_cond_broadcast(&db->changed);
    proposal_release(proposal);
}

static void finish(struct db *db, struct proposal *proposal, int status, const struct error *err, uint64_t revision)
{
    if (!proposal)
        return;
    pthread_mutex_lock(&db->lock);
    proposal_finish(db, proposal, status, err, revision);
    pthread_mutex_unlock(&db->lock);
}

static void tell_applied(struct db *db, uint64_t revision, const struct entry *entry)
{
    if (!db->callbacks.applied)
        return;
    size_t count = 0;
    char **tables = entry ? rowlog_tables(entry, &count) : NULL;
    db->callbacks.applied(db->callbacks.ud, revision, (const char *const *)tables, count);
    free(tables);
}

/* The own batch: its transaction is open and holds exactly the entry's rows. */
static void apply_own(struct db *db, uint64_t index, const struct entry *entry, struct proposal *proposal)
{
    struct error err = ERROR_INIT;
    db__must(applied_set(db->exec, index, &err), &err);
    db__must(sql__control(db->exec, SQL_COMMIT, &err), &err);
    capture_committed(&db->capture, true);
    tell_applied(db, index, entry);
    pthread_mutex_lock(&db->lock);
    db->revision = index;
    turn_set(db, TURN_FREE);
    proposal_finish(db, proposal, STATUS_OK, NULL, index);
    pthread_mutex_unlock(&db->lock);
}

static void catalog_refresh(struct db *db)
{
    struct error err = ERROR_INIT;
    if (!db->replay_stale)
        return;
    catalog_free(&db->catalog);
    db__must(catalog_load(db->replay, &db->catalog, &err), &err);
    db->replay_stale = false;
}

static void apply_rows(struct db *db, uint64_t index, const struct entry *entry)
{
    struct error err = ERROR_INIT;
    if (entry->schema_version != (uint32_t)db->schema_version)
        core_panic(__FILE__, __LINE__, "database: entry %" PRIu64 " is for schema %u, the database has %d", index, entry->schema_version,
                   db->schema_version);
    turn_take(db);
    catalog_refresh(db);
    db__must(sql__control(db->replay, SQL_BEGIN_WRITE, &err), &err);
    db__must(rowlog_replay(&db->catalog, entry, &err), &err);
    db__must(applied_set(db->replay, index, &err), &err);
    db__must(sql__control(db->replay, SQL_COMMIT, &err), &err);
    turn_give(db, index, db->schema_version, false);
    tell_applied(db, index, entry);
}

static void apply_schema(struct db *db, uint64_t index, const struct entry *entry)
{
    struct error err = ERROR_INIT;
    int version = (int)entry->schema_version;
    turn_take(db);
    catalog_free(&db->catalog); /* its statements would hold the old schema */
    db->replay_stale = true;
    db__must(sql__control(db->replay, SQL_BEGIN_WRITE, &err), &err);
    db__must(schema_run(db->replay, version, (const char *)entry->body, entry->body_len, entry->time_ns, &err), &err);
    db__must(applied_set(db->replay, index, &err), &err);
    db__must(sql__control(db->replay, SQL_COMMIT, &err), &err);
    turn_give(db, index, version, true);
    log_info("db.schema", "version=%d revision=%" PRIu64, version, index);
    tell_applied(db, index, NULL);
}

void db__apply(void *ud, uint64_t index, uint64_t term, const void *data, size_t len, void *handle)
{
    struct db *db = ud;
    struct proposal *proposal = handle;
    struct entry entry;
    struct error err = ERROR_INIT;
    db__must(entry_decode(data, len, &entry, &err), &err);
    if (entry.kind == ENTRY_DIGEST) {
        pthread_mutex_lock(&db->lock);
        bool opened = db->opened; /* those of the past are not repeated at each start */
        pthread_mutex_unlock(&db->lock);
        if (opened)
            digester_add(db, index);
        finish(db, proposal, STATUS_OK, NULL, index);
        return;
    }
    /* Executed on another state than this one: void, on every replica alike. */
    if (entry.base != db->revision || (entry.kind == ENTRY_SCHEMA && entry.schema_version != (uint32_t)db->schema_version + 1)) {
        log_info("db.void", "index=%" PRIu64 " base=%" PRIu64 " revision=%" PRIu64, index, entry.base, db->revision);
        error_set(&err, STATUS_UNAVAILABLE, "The leader changed while the write was in flight; nothing was done");
        if (proposal && proposal->kind == ENTRY_ROWS && !proposal->lost)
            core_panic(__FILE__, __LINE__, "database: own entry %" PRIu64 " is void", index);
        finish(db, proposal, STATUS_UNAVAILABLE, &err, 0);
        return;
    }
    if (proposal && proposal->kind == ENTRY_ROWS) {
        covey_assert(!proposal->lost && db->pending == proposal && db->turn == TURN_PENDING);
        apply_own(db, index, &entry, proposal);
        return;
    }
    if (entry.kind == ENTRY_ROWS)
        apply_rows(db, index, &entry);
    else
        apply_schema(db, index, &entry);
    finish(db, proposal, STATUS_OK, NULL, index);
}

void db__abandoned(void *ud, void *handle, bool refused, const struct error *err)
{
    struct db *db = ud;
    struct proposal *proposal = handle;
    struct error rollback = ERROR_INIT, reason = err ? *err : rollback;
    pthread_mutex_lock(&db->lock);
    if (proposal == db->pending && db->turn == TURN_PENDING) {
        db__must(sql__control(db->exec, SQL_ROLLBACK, &rollback), &rollback);
        capture_committed(&db->capture, false);
        turn_set(db, TURN_FREE);
    }
    if (reason.code == STATUS_OK)
        error_not_leader(&reason, db->leader_id);
    if (!refused && proposal->kind == ENTRY_ROWS)
        requests_unknown(db, proposal);
    proposal_finish(db, proposal, refused ? (int)reason.code : STATUS_UNKNOWN, &reason, 0);
    pthread_mutex_unlock(&db->lock);
}

int db__restore(void *ud, const void *data, size_t len, uint64_t index, struct error *err)
{
    struct db *db = ud;
    uint64_t revision = 0;
    int version = 0;
    turn_take(db);
    catalog_free(&db->catalog);
    db->replay_stale = true;
    int status = snapshot_restore(db->replay, data, len, err);
    if (status == STATUS_OK)
        status = applied_get(db->replay, &revision, err);
    if (status == STATUS_OK)
        status = schema_current(db->replay, &version, err);
    if (status == STATUS_OK && revision > index)
        status = error_set(err, STATUS_DATA_LOSS, "Snapshot of index %" PRIu64 " holds revision %" PRIu64, index, revision);
    if (status != STATUS_OK)
        return status; /* the caller ends the process */
    turn_give(db, revision, version, true);
    log_info("db.restored", "revision=%" PRIu64 " bytes=%zu", revision, len);
    tell_applied(db, revision, NULL);
    return STATUS_OK;
}

void db__changed(void *ud, const struct raft_node_status *status)
{
    struct db *db = ud;
    pthread_mutex_lock(&db->lock);
    db->leader = status->leader;
    db->leader_id = status->leader_id;
    db->term = status->term;
    if (!db->leader) {
        struct error err = ERROR_INIT;
        error_not_leader(&err, db->leader_id);
        queue_fail(db, &err);
    }
    pthread_cond_signal(&db->work);
    pthread_cond_broadcast(&db->changed);
    pthread_mutex_unlock(&db->lock);
    if (db->callbacks.status)
        db->callbacks.status(db->callbacks.ud, status);
}

/* After each commit: copies frames back once there are enough of them, and lets the executor know when readers keep the
 * WAL from shrinking. */
int db__wal_hook(void *ud, sqlite3 *handle, const char *name, int pages)
{
    struct db *db = ud;
    if (pages >= DB_CHECKPOINT_PAGES) {
        int rc = sqlite3_wal_checkpoint_v2(handle, name, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
        if (rc != SQLITE_OK && rc != SQLITE_BUSY && rc != SQLITE_LOCKED)
            core_panic(__FILE__, __LINE__, "database: checkpoint: %s", sqlite3_errstr(rc));
    }
    pthread_mutex_lock(&db->lock);
    bool wake = pages > DB_WAL_PAGES_MAX && db->wal_pages <= DB_WAL_PAGES_MAX;
    db->wal_pages = pages;
    if (wake)
        pthread_cond_signal(&db->work);
    pthread_mutex_unlock(&db->lock);
    return SQLITE_OK;
}
