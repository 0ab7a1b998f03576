/* The executor: one thread on which all writes of the leader run, batch by batch (db_private.h tells who owns what).
 *
 * A batch takes up to DB_BATCH_REQUESTS_MAX waiting requests into one transaction, each in its own savepoint, and proposes
 * their rows as one entry; the loop commits (apply.c). A batch without any change (all refused or replayed) is rolled
 * back and answered as a read: after a majority confirmed the leader. It also proposes missing schema steps and empties a
 * WAL that readers kept from being reused. */
#include "db_private.h"

#include <errno.h>
#include <string.h>
#include <utlist.h>

/* ---- requests and proposals; lock held ---- */
void request_release(struct db *db, struct request *request)
{
    if (--request->refs > 0)
        return;
    pthread_cond_destroy(&request->cond);
    buf_free(&request->result);
    free(request);
}

void requests_finish(struct db *db, struct request *list)
{
    struct request *request, *tmp;
    DL_FOREACH_SAFE(list, request, tmp) {
        DL_DELETE(list, request);
        request->state = REQUEST_DONE;
        pthread_cond_signal(&request->cond);
        request_release(db, request);
    }
}

static void request_set(struct request *request, int status, const struct error *err)
{
    request->status = status;
    request->error = *err;
    request->replayed = false;
    request->revision = 0;
    buf_free(&request->result);
}

void requests_fail(struct db *db, struct request *list, int status, const struct error *err)
{
    struct request *request;
    DL_FOREACH(list, request)
        request_set(request, status, err);
    requests_finish(db, list);
}

/* What changed nothing needs no "unknown": it can be asked again. */
void requests_unknown(struct db *db, struct proposal *proposal)
{
    struct request *request;
    struct error unknown = ERROR_INIT, nothing = ERROR_INIT;
    error_set(&unknown, STATUS_UNKNOWN, "%s while the write was in flight; it may or may not have been done",
              db->closing ? "The database was closed" : "Leadership was lost");
    unknown.not_leader = true;
    unknown.leader = db->leader_id;
    error_not_leader(&nothing, db->leader_id);
    DL_FOREACH(proposal->requests, request) {
        const struct error *err = request->changed ? &unknown : &nothing;
        request_set(request, err->code, err);
    }
    requests_finish(db, proposal->requests);
    proposal->requests = NULL;
}

void queue_fail(struct db *db, const struct error *err)
{
    struct request *list = db->queue;
    db->queue = NULL;
    db->queued = 0;
    requests_fail(db, list, err->code, err);
}

struct proposal *proposal_create(enum entry_kind kind, int refs)
{
    struct proposal *proposal = xcalloc(1, sizeof *proposal);
    proposal->kind = kind;
    proposal->refs = refs;
    return proposal;
}

void proposal_release(struct proposal *proposal)
{
    if (--proposal->refs == 0)
        free(proposal);
}

static void turn_set(struct db *db, enum turn turn)
{
    db->turn = turn;
    pthread_cond_broadcast(&db->turned);
}

/* ---- what a request may do ---- */
int executor_authorize(void *ud, int action, const char *a, const char *b, const char *c, const char *d)
{
    static const char *const pragmas[] = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo",
                                          "foreign_key_list", "foreign_key_check", "data_version", NULL};
    const struct db *db = ud;
    if (!db->in_request)
        return SQLITE_OK;
    switch (action) {
    case SQLITE_SELECT: case SQLITE_READ: case SQLITE_FUNCTION: case SQLITE_RECURSIVE:
        return SQLITE_OK;
    case SQLITE_INSERT: case SQLITE_UPDATE: case SQLITE_DELETE: /* our own books are written by entries alone */
        return strncmp(a, "sqlite_", 7) == 0 || strcmp(a, "applied") == 0 || strcmp(a, "schema") == 0 ? SQLITE_DENY : SQLITE_OK;
    case SQLITE_PRAGMA:
        for (size_t i = 0; pragmas[i]; i++)
            if (strcmp(a, pragmas[i]) == 0)
                return SQLITE_OK;
        return SQLITE_DENY;
    default: /* transactions, savepoints, DDL, ATTACH, ANALYZE, …: cannot be captured */
        return SQLITE_DENY;
    }
}

static int key_lookup(struct db *db, struct request *request, bool *found, struct error *err)
{
    struct sql_stmt *stmt = sql_query(db->exec, "SELECT result FROM requests WHERE key = ?1", "s", request->key);
    *found = sql_next(stmt);
    if (*found) {
        size_t len;
        const void *result = sql_blob(stmt, 0, &len);
        buf_add(&request->result, result, len);
    }
    return sql_done(stmt, err);
}

/* The time of request keys. It never runs faster than real time, whoever leads and however wrong the wall clocks are, so that no key is purged early: a
 * new leader goes on from the newest row, by the monotonic clock. */
static int64_t request_clock(struct db *db)
{
    struct error err = ERROR_INIT;
    int64_t now_ms = time_mono_ms(), newest = 0;
    pthread_mutex_lock(&db->lock);
    uint64_t term = db->term;
    pthread_mutex_unlock(&db->lock);
    if (term != db->clock_term) {
        db__must(sql_get_int(db->exec, &newest, &err, "SELECT coalesce(max(done_at), 0) FROM requests", ""), &err);
        db->clock_ns = newest > 0 ? newest : time_unix_ns();
        db->clock_ms = now_ms;
        db->clock_term = term;
    }
    return db->clock_ns + (now_ms - db->clock_ms) * 1000000;
}

/* fn and everything that can refuse its work afterwards. */
static int request_execute(struct db *db, struct request *request, struct capture_mark mark, struct error *err)
{
    bool found = false;
    int status = STATUS_OK;
    if (request->key[0]) {
        status = key_lookup(db, request, &found, err);
        if (status != STATUS_OK || found) {
            request->replayed = found;
            return status;
        }
    }
    db->capture.doomed[0] = '\0';
    db->in_request = true;
    status = request->fn(db->exec, request->ud, &request->result, err);
    db->in_request = false;
    if (sql__reset(db->exec))
        log_warn("db.write", "a request left statements open");
    if (sqlite3_get_autocommit(sql_handle(db->exec)))
        return status;
    int pending = 0, high = 0;
    sqlite3_db_status(sql_handle(db->exec), SQLITE_DBSTATUS_DEFERRED_FKS, &pending, &high, 0);
    if (status == STATUS_OK && db->capture.doomed[0])
        status = error_set(err, STATUS_INTERNAL, "The write cannot be replicated: %s", db->capture.doomed);
    if (status == STATUS_OK && pending)
        status = error_set(err, STATUS_FAILED_PRECONDITION, "FOREIGN KEY constraint failed");
    if (status == STATUS_OK && request->key[0] && request->result.len > DB_REQUEST_RESULT_BYTES_MAX)
        status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "The result of a write has %zu bytes, more than the limit of %d",
                           request->result.len, DB_REQUEST_RESULT_BYTES_MAX);
    if (status == STATUS_OK && request->key[0])
        status = sql_exec(db->exec, err, "INSERT INTO requests (key, done_at, result) VALUES (?1, ?2, ?3)", "sib", request->key,
                          request_clock(db), request->result.data, request->result.len);
    if (status == STATUS_OK && db->capture.ops.len - mark.len > DB_REQUEST_BYTES_MAX)
        status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "The write changes %zu bytes of rows, more than the limit of %d",
                           db->capture.ops.len - mark.len, DB_REQUEST_BYTES_MAX);
    return status;
}

/* Runs one request; false when SQLite gave up the whole transaction (disk full, I/O error): then nothing was done. */
static bool request_run(struct db *db, struct request *request)
{
    struct error err = ERROR_INIT;
    struct capture_mark mark = capture_mark(&db->capture);
    db__must(sql__control(db->exec, SQL_SAVEPOINT, &err), &err);
    db->capture.on = true;
    request->status = request_execute(db, request, mark, &request->error);
    db->capture.on = false;
    if (sqlite3_get_autocommit(sql_handle(db->exec))) {
        if (request->status == STATUS_OK)
            core_panic(__FILE__, __LINE__, "database: a write ended the transaction of its batch");
        return false;
    }
    if (request->status != STATUS_OK) {
        if (request->error.code == STATUS_OK) /* fn gave no text */
            error_set(&request->error, (enum status)request->status, "%s", status_name((enum status)request->status));
        db__must(sql__control(db->exec, SQL_ROLLBACK_TO, &err), &err);
        capture_cut(&db->capture, mark);
        buf_free(&request->result);
    }
    db__must(sql__control(db->exec, SQL_RELEASE, &err), &err);
    request->changed = db->capture.count > mark.count;
    return true;
}

/* Forgets old request keys, along with other work only: an idle cluster writes nothing. */
static void purge(struct db *db)
{
    struct error err = ERROR_INIT;
    int64_t now = time_mono_ms();
    if (now < db->purge_ms)
        return;
    struct capture_mark mark = capture_mark(&db->capture);
    db__must(sql__control(db->exec, SQL_SAVEPOINT, &err), &err);
    db->capture.doomed[0] = '\0';
    db->capture.on = true;
    int status = sql_exec(db->exec, &err, "DELETE FROM requests WHERE key IN"
                          " (SELECT key FROM requests WHERE done_at < ?1 ORDER BY done_at LIMIT ?2)", "ii",
                          request_clock(db) - (int64_t)DB_REQUEST_KEEP_S * 1000000000, (int64_t)DB_PURGE_ROWS_MAX);
    db->capture.on = false;
    db->purge_ms = now + (sql_changes(db->exec) == DB_PURGE_ROWS_MAX ? 0 : DB_PURGE_INTERVAL_MS);
    if (status != STATUS_OK || db->capture.doomed[0]) {
        log_error("db.purge", "error=\"%s\"", err.text);
        db__must(sql__control(db->exec, SQL_ROLLBACK_TO, &err), &err);
        capture_cut(&db->capture, mark);
    }
    db__must(sql__control(db->exec, SQL_RELEASE, &err), &err);
}

/* ---- batches ---- */
struct unchanged { struct db *db; struct request *list; };

static void unchanged_confirmed(void *ud, int status, const struct error *err)
{
    struct unchanged *unchanged = ud;
    struct db *db = unchanged->db;
    pthread_mutex_lock(&db->lock);
    if (status == STATUS_OK)
        requests_finish(db, unchanged->list);
    else
        requests_fail(db, unchanged->list, status, err);
    pthread_mutex_unlock(&db->lock);
    free(unchanged);
}

static int batch_open(struct db *db, struct error *err)
{
    int status = STATUS_OK;
    pthread_mutex_lock(&db->lock);
    bool stale = db->catalog_stale;
    db->catalog_stale = false;
    pthread_mutex_unlock(&db->lock);
    if (stale)
        status = capture_reload(&db->capture, db->exec, err);
    if (status == STATUS_OK)
        status = sql__control(db->exec, SQL_BEGIN_WRITE, err);
    if (status == STATUS_OK)
        status = capture_begin(&db->capture, err);
    if (status != STATUS_OK) { /* nothing was done; the next batch tries again */
        if (!sqlite3_get_autocommit(sql_handle(db->exec)))
            db__must(sql__control(db->exec, SQL_ROLLBACK, err), err);
        pthread_mutex_lock(&db->lock);
        db->catalog_stale |= stale;
        pthread_mutex_unlock(&db->lock);
        error_prefix(err, "Cannot start a transaction");
        err->code = STATUS_UNAVAILABLE;
    }
    return status == STATUS_OK ? STATUS_OK : STATUS_UNAVAILABLE;
}

/* Lock held. Takes the first requests of the queue. */
static struct request *batch_take(struct db *db)
{
    struct request *list = NULL, *request;
    for (int i = 0; i < DB_BATCH_REQUESTS_MAX && db->queue; i++) {
        request = db->queue;
        DL_DELETE(db->queue, request);
        db->queued--;
        request->state = REQUEST_RUNNING;
        DL_APPEND(list, request);
    }
    return list;
}

/* Runs what fits; the rest goes back to the head of the queue. */
static bool batch_execute(struct db *db, struct request **list)
{
    struct request *request = *list, *rest = NULL;
    bool alive = true, waits = false;
    while (request && alive && !waits && db->capture.ops.len < DB_BATCH_BYTES_MAX) {
        alive = request_run(db, request);
        request = request->next;
        pthread_mutex_lock(&db->lock);
        waits = db->loop_waits;
        pthread_mutex_unlock(&db->lock);
    }
    pthread_mutex_lock(&db->lock);
    while (request) {
        struct request *next = request->next;
        DL_DELETE(*list, request);
        request->state = REQUEST_QUEUED;
        DL_APPEND(rest, request);
        db->queued++;
        request = next;
    }
    DL_CONCAT(rest, db->queue);
    db->queue = rest;
    pthread_mutex_unlock(&db->lock);
    return alive;
}

/* Rolls back and answers: `err` NULL = each request its own outcome, once the leader is confirmed. Lock held afterwards. */
static void batch_drop(struct db *db, struct request *list, const struct error *err)
{
    struct error rollback = ERROR_INIT;
    if (!sqlite3_get_autocommit(sql_handle(db->exec)))
        db__must(sql__control(db->exec, SQL_ROLLBACK, &rollback), &rollback);
    capture_committed(&db->capture, false);
    pthread_mutex_lock(&db->lock);
    turn_set(db, TURN_FREE);
    if (err) {
        requests_fail(db, list, err->code, err);
        return;
    }
    struct request *request;
    DL_FOREACH(list, request) {
        request->revision = db->revision;
        request->state = REQUEST_PENDING;
    }
    struct unchanged *unchanged = xmalloc(sizeof *unchanged);
    *unchanged = (struct unchanged){db, list};
    pthread_mutex_unlock(&db->lock);
    raft_node_confirm_leader(db->raft, unchanged_confirmed, unchanged);
    pthread_mutex_lock(&db->lock);
}

/* Lock held at entry and at return. */
static void batch_run(struct db *db)
{
    struct error err = ERROR_INIT;
    struct request *list = batch_take(db), *request;
    turn_set(db, TURN_EXECUTOR);
    uint64_t base = db->revision;
    uint32_t version = (uint32_t)db->schema_version;
    pthread_mutex_unlock(&db->lock);
    if (batch_open(db, &err) != STATUS_OK) {
        log_error("db.batch", "error=\"%s\"", err.text);
        batch_drop(db, list, &err);
        return;
    }
    if (!batch_execute(db, &list)) {
        error_set(&err, STATUS_UNAVAILABLE, "The database could not write: %s", sqlite3_errmsg(sql_handle(db->exec)));
        log_error("db.batch", "error=\"%s\"", err.text);
        batch_drop(db, list, &err);
        return;
    }
    if (db->capture.count == 0) {
        batch_drop(db, list, NULL);
        return;
    }
    purge(db);
    db__must(capture_finish(&db->capture, &err), &err);
    struct buf entry = {0};
    capture_encode(&db->capture, base, version, &entry);
    pthread_mutex_lock(&db->lock);
    if (db->loop_waits) { /* the state is about to move on: the entry would be void */
        pthread_mutex_unlock(&db->lock);
        buf_free(&entry);
        error_set(&err, STATUS_UNAVAILABLE, "The leader changed before the write was proposed");
        batch_drop(db, list, &err);
        return;
    }
    struct proposal *proposal = proposal_create(ENTRY_ROWS, 1);
    proposal->requests = list;
    DL_FOREACH(list, request)
        request->state = REQUEST_PENDING;
    db->pending = proposal;
    turn_set(db, TURN_PENDING); /* from here on the transaction belongs to the loop */
    pthread_mutex_unlock(&db->lock);
    raft_node_propose(db->raft, entry.data, entry.len, proposal);
    buf_free(&entry);
    pthread_mutex_lock(&db->lock);
}

/* ---- schema ---- */
/* Lock held at entry and at return. Tries the next step on the replay connection (the turn is ours), then proposes it. */
static bool schema_propose(struct db *db)
{
    struct error err = ERROR_INIT, rollback = ERROR_INIT;
    int version = db->schema_version + 1;
    const struct schema_step step = schema_step(version);
    struct entry entry = {.kind = ENTRY_SCHEMA, .base = db->revision, .schema_version = (uint32_t)version, .time_ns = time_unix_ns(),
                          .body = (const uint8_t *)step.text, .body_len = strlen(step.text)};
    turn_set(db, TURN_EXECUTOR);
    pthread_mutex_unlock(&db->lock);
    int status = sql__control(db->replay, SQL_BEGIN_WRITE, &err);
    if (status == STATUS_OK)
        status = schema_run(db->replay, version, step.text, entry.body_len, entry.time_ns, &err);
    if (!sqlite3_get_autocommit(sql_handle(db->replay)))
        db__must(sql__control(db->replay, SQL_ROLLBACK, &rollback), &rollback);
    pthread_mutex_lock(&db->lock);
    turn_set(db, TURN_FREE);
    if (status != STATUS_OK) {
        log_error("db.schema", "step=%s error=\"%s\"", step.name, err.text);
        return false;
    }
    struct proposal *proposal = proposal_create(ENTRY_SCHEMA, 1);
    db->pending = proposal;
    pthread_mutex_unlock(&db->lock);
    struct buf data = {0};
    entry_encode(&entry, &data);
    raft_node_propose(db->raft, data.data, data.len, proposal);
    buf_free(&data);
    pthread_mutex_lock(&db->lock);
    return true;
}

/* ---- the WAL ---- */
/* Lock held. Readers that overlap keep SQLite from reusing the WAL; hold new ones back until the last has ended. */
static void wal_drain(struct db *db)
{
    struct timespec deadline;
    time_deadline(&deadline, DB_DRAIN_TIMEOUT_MS);
    db->gate = true;
    while (!db->closing && (db->readers_busy || db->turn != TURN_FREE)) {
        pthread_cond_t *cond = db->readers_busy ? &db->changed : &db->turned;
        if (pthread_cond_timedwait(cond, &db->lock, &deadline) == ETIMEDOUT)
            break;
    }
    db->drain_ms = time_mono_ms() + DB_DRAIN_RETRY_MS;
    if (!db->readers_busy && db->turn == TURN_FREE && !db->closing) {
        turn_set(db, TURN_EXECUTOR);
        pthread_mutex_unlock(&db->lock);
        int frames = 0, copied = 0;
        int rc = sqlite3_wal_checkpoint_v2(sql_handle(db->exec), "main", SQLITE_CHECKPOINT_TRUNCATE, &frames, &copied);
        pthread_mutex_lock(&db->lock);
        if (rc == SQLITE_OK)
            db->wal_pages = 0;
        else
            log_warn("db.checkpoint", "error=\"%s\"", sqlite3_errstr(rc)); /* a snapshot or digest is being read */
        turn_set(db, TURN_FREE);
    }
    db->gate = false;
    pthread_cond_broadcast(&db->changed);
}

/* Lock held. The first step makes the tables that tell what all members know; the others wait for db_schema_allow. */
static bool schema_due(const struct db *db)
{
    return db->schema_version == 0 || db->schema_version < db->schema_allowed;
}

static void *executor_main(void *arg)
{
    struct db *db = arg;
    pthread_mutex_lock(&db->lock);
    while (!db->closing) {
        bool drain = db->wal_pages > DB_WAL_PAGES_MAX, schema_failed = false;
        if (drain && time_mono_ms() >= db->drain_ms) {
            wal_drain(db);
            continue;
        }
        if (db->leader && db->turn == TURN_FREE && !db->pending && !db->loop_waits) {
            if (schema_due(db)) {
                if (schema_propose(db))
                    continue;
                schema_failed = true;
            } else if (db->queue) {
                batch_run(db);
                continue;
            }
        }
        if (drain || schema_failed) {
            struct timespec deadline;
            time_deadline(&deadline, DB_DRAIN_RETRY_MS);
            pthread_cond_timedwait(&db->work, &db->lock, &deadline);
        } else {
            pthread_cond_wait(&db->work, &db->lock); /* ended by a request, the loop or executor_stop */
        }
    }
    pthread_mutex_unlock(&db->lock);
    return NULL;
}

int executor_start(struct db *db, struct error *err)
{
    if (pthread_create(&db->executor, NULL, executor_main, db) != 0)
        return error_set(err, STATUS_INTERNAL, "Cannot start the database thread: %s", strerror(errno));
    db->executor_running = true;
    return STATUS_OK;
}

void executor_stop(struct db *db)
{
    if (!db->executor_running)
        return;
    pthread_mutex_lock(&db->lock);
    pthread_cond_broadcast(&db->work);
    pthread_mutex_unlock(&db->lock);
    pthread_join(db->executor, NULL);
    db->executor_running = false;
}

/* ---- callers ---- */
/* Lock held. Waits until the request is answered; a request that was not started in time leaves the queue. */
static void request_wait(struct db *db, struct request *request)
{
    struct timespec deadline;
    time_deadline(&deadline, DB_WRITE_TIMEOUT_MS);
    while (request->state != REQUEST_DONE) {
        if (pthread_cond_timedwait(&request->cond, &db->lock, &deadline) != ETIMEDOUT || request->state == REQUEST_DONE)
            continue;
        if (request->state == REQUEST_RUNNING) { /* its fn uses the caller's memory; the batch ends soon */
            time_deadline(&deadline, DB_WRITE_TIMEOUT_MS);
            continue;
        }
        struct error err = ERROR_INIT;
        if (request->state == REQUEST_QUEUED) {
            error_set(&err, STATUS_UNAVAILABLE, "The database did not take the write within %d ms", DB_WRITE_TIMEOUT_MS);
            DL_DELETE(db->queue, request);
            db->queued--;
            request->refs--;
        } else if (request->changed) {
            error_set(&err, STATUS_UNKNOWN, "The write was not committed within %d ms; it may still be", DB_WRITE_TIMEOUT_MS);
        } else {
            error_set(&err, STATUS_UNAVAILABLE, "The leader was not confirmed within %d ms", DB_WRITE_TIMEOUT_MS);
        }
        /* The batch may still answer the request later; it holds a reference of its own. */
        request_set(request, err.code, &err);
        return;
    }
}

int db_write(struct db *db, const char *key, db_write_fn fn, void *ud, struct buf *result, bool *replayed, uint64_t *revision, struct error *err)
{
    if (replayed)
        *replayed = false;
    if (revision)
        *revision = 0;
    if (key && strlen(key) > DB_KEY_BYTES_MAX)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Request key has %zu bytes, more than the limit of %d", strlen(key), DB_KEY_BYTES_MAX);
    if (!db__enter(db, err))
        return STATUS_UNAVAILABLE;
    struct request *request = xcalloc(1, sizeof *request);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&request->cond, &attr);
    pthread_condattr_destroy(&attr);
    *request = (struct request){.fn = fn, .ud = ud, .refs = 1, .cond = request->cond};
    snprintf(request->key, sizeof request->key, "%s", key ? key : "");
    pthread_mutex_lock(&db->lock);
    if (db->closing) {
        request->status = error_set(&request->error, STATUS_UNAVAILABLE, "The database is closing");
    } else if (!db->leader) {
        request->status = error_not_leader(&request->error, db->leader_id);
    } else if (db->queued >= DB_QUEUE_REQUESTS_MAX) {
        request->status = error_set(&request->error, STATUS_RESOURCE_EXHAUSTED, "%d writes are waiting", DB_QUEUE_REQUESTS_MAX);
    } else {
        request->refs++;
        DL_APPEND(db->queue, request);
        if (db->queued++ == 0)
            pthread_cond_signal(&db->work);
        request_wait(db, request);
    }
    int status = request->status;
    if (status != STATUS_OK && err)
        *err = request->error;
    if (replayed)
        *replayed = request->replayed;
    if (revision)
        *revision = request->revision;
    if (result && status == STATUS_OK) {
        buf_free(result);
        *result = request->result;
        request->result = (struct buf){0};
    }
    request_release(db, request);
    pthread_mutex_unlock(&db->lock);
    db__leave(db);
    return status;
}
