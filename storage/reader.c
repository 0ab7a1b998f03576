/* Reads: a pool of read connections, and the confirmation that this member still leads. Thread: the callers'. */
#include "db_private.h"

#include <errno.h>
#include <string.h>

bool db__enter(struct db *db, struct error *err)
{
    pthread_mutex_lock(&db->lock);
    bool open = !db->closing;
    db->users += open;
    pthread_mutex_unlock(&db->lock);
    if (!open)
        error_set(err, STATUS_UNAVAILABLE, "The database is closing");
    return open;
}

void db__leave(struct db *db)
{
    pthread_mutex_lock(&db->lock);
    if (--db->users == 0 && db->closing)
        pthread_cond_broadcast(&db->changed);
    pthread_mutex_unlock(&db->lock);
}

/* ---- the leader, confirmed ---- */
struct confirm { pthread_mutex_t lock; pthread_cond_t cond; int refs; bool done; int status; struct error err; };

static void confirm_release(struct confirm *confirm) /* lock held; releases it */
{
    bool last = --confirm->refs == 0;
    pthread_mutex_unlock(&confirm->lock);
    if (!last)
        return;
    pthread_cond_destroy(&confirm->cond);
    pthread_mutex_destroy(&confirm->lock);
    free(confirm);
}

static void confirmed(void *ud, int status, const struct error *err)
{
    struct confirm *confirm = ud;
    pthread_mutex_lock(&confirm->lock);
    confirm->done = true;
    confirm->status = status;
    if (err)
        confirm->err = *err;
    pthread_cond_signal(&confirm->cond);
    confirm_release(confirm);
}

int db__confirm(struct db *db, struct error *err)
{
    struct confirm *confirm = xcalloc(1, sizeof *confirm);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&confirm->lock, NULL);
    pthread_cond_init(&confirm->cond, &attr);
    pthread_condattr_destroy(&attr);
    confirm->refs = 2;
    int64_t end = time_mono_ms() + DB_CONFIRM_TIMEOUT_MS;
    raft_node_confirm_leader(db->raft, confirmed, confirm);
    pthread_mutex_lock(&confirm->lock);
    bool closing = false;
    while (!confirm->done && !closing && time_mono_ms() < end) {
        struct timespec slice;
        time_deadline(&slice, DB_STOP_POLL_MS);
        if (pthread_cond_timedwait(&confirm->cond, &confirm->lock, &slice) != ETIMEDOUT || confirm->done)
            continue;
        pthread_mutex_unlock(&confirm->lock); /* never two locks at once */
        pthread_mutex_lock(&db->lock);
        closing = db->closing;
        pthread_mutex_unlock(&db->lock);
        pthread_mutex_lock(&confirm->lock);
    }
    int status = confirm->status;
    if (!confirm->done && closing)
        status = error_set(err, STATUS_UNAVAILABLE, "The database is closing");
    else if (!confirm->done)
        status = error_set(err, STATUS_UNAVAILABLE, "The leader was not confirmed within %d ms", DB_CONFIRM_TIMEOUT_MS);
    else if (status != STATUS_OK && err)
        *err = confirm->err;
    confirm_release(confirm);
    return status;
}

/* ---- connections ---- */
static int reader_open(struct db *db, struct reader **out, struct error *err)
{
    struct reader *reader = xcalloc(1, sizeof *reader);
    int status = sql_open(db->path, SQL_READONLY, &reader->sql, err);
    if (status != STATUS_OK) {
        free(reader);
        reader = NULL;
    }
    *out = reader;
    return status;
}

/* Waits for the schema and for a free connection. */
static int reader_take(struct db *db, enum db_consistency consistency, struct reader **out, struct error *err)
{
    struct timespec deadline;
    int status = STATUS_OK;
    *out = NULL;
    time_deadline(&deadline, DB_WRITE_TIMEOUT_MS);
    pthread_mutex_lock(&db->lock);
    for (;;) {
        bool schema = db->schema_version >= (consistency == DB_LOCAL || db->schema_allowed < 1 ? 1 : db->schema_allowed);
        if (db->closing)
            status = error_set(err, STATUS_UNAVAILABLE, "The database is closing");
        else if (consistency == DB_LINEARIZABLE && !db->leader)
            status = error_not_leader(err, db->leader_id);
        if (status != STATUS_OK || (schema && !db->gate && (db->idle_readers || db->readers_open < DB_READERS_MAX)))
            break;
        if (pthread_cond_timedwait(&db->changed, &db->lock, &deadline) == ETIMEDOUT) {
            status = error_set(err, STATUS_UNAVAILABLE, schema ? "No read connection was free within %d ms"
                               : "The database had no complete schema within %d ms", DB_WRITE_TIMEOUT_MS);
            break;
        }
    }
    bool open = false;
    if (status == STATUS_OK) {
        db->readers_busy++;
        *out = db->idle_readers;
        open = !*out;
        if (open)
            db->readers_open++;
        else
            db->idle_readers = (*out)->next;
    }
    pthread_mutex_unlock(&db->lock);
    if (open && (status = reader_open(db, out, err)) != STATUS_OK) {
        pthread_mutex_lock(&db->lock);
        db->readers_open--;
        db->readers_busy--;
        pthread_cond_broadcast(&db->changed);
        pthread_mutex_unlock(&db->lock);
    }
    return status;
}

static void reader_give(struct db *db, struct reader *reader)
{
    pthread_mutex_lock(&db->lock);
    bool waiting = db->idle_readers == NULL || db->gate;
    reader->next = db->idle_readers;
    db->idle_readers = reader;
    db->readers_busy--;
    if (waiting) /* somebody may wait only while none was idle, or for the gate */
        pthread_cond_broadcast(&db->changed);
    pthread_mutex_unlock(&db->lock);
}

void readers_close(struct db *db)
{
    while (db->idle_readers) {
        struct reader *reader = db->idle_readers;
        db->idle_readers = reader->next;
        sql_close(reader->sql);
        free(reader);
    }
}

/* One read transaction with the revision that it sees. */
static int read_run(struct db *db, struct reader *reader, db_read_fn fn, void *ud, uint64_t *revision, struct error *err)
{
    struct error rollback = ERROR_INIT;
    uint64_t seen = 0;
    int status = sql__control(reader->sql, SQL_BEGIN_READ, err);
    if (status != STATUS_OK)
        return status;
    status = applied_get(reader->sql, &seen, err);
    if (status == STATUS_OK)
        status = fn(reader->sql, ud, err);
    if (sql__reset(reader->sql))
        log_warn("db.read", "a read left statements open");
    if (!sqlite3_get_autocommit(sql_handle(reader->sql)))
        db__must(sql__control(reader->sql, SQL_ROLLBACK, &rollback), &rollback);
    if (revision)
        *revision = seen;
    return status;
}

static _Thread_local bool thread_confirmed;

void db_thread_confirmed(bool confirmed)
{
    thread_confirmed = confirmed;
}

int db_read(struct db *db, enum db_consistency consistency, db_read_fn fn, void *ud, uint64_t *revision, struct error *err)
{
    struct reader *reader = NULL;
    if (revision)
        *revision = 0;
    if (!db__enter(db, err))
        return STATUS_UNAVAILABLE;
    int status = STATUS_OK;
    if (consistency == DB_LINEARIZABLE) {
        pthread_mutex_lock(&db->lock);
        if (!db->leader)
            status = error_not_leader(err, db->leader_id);
        pthread_mutex_unlock(&db->lock);
        /* reader_take looks at `leader` again: confirmed, and everything before its term applied */
        if (status == STATUS_OK && !thread_confirmed)
            status = db__confirm(db, err);
    }
    if (status == STATUS_OK)
        status = reader_take(db, consistency, &reader, err);
    if (status == STATUS_OK) {
        status = read_run(db, reader, fn, ud, revision, err);
        reader_give(db, reader);
    }
    db__leave(db);
    return status;
}

static int read_digest(struct sql *sql, void *ud, struct error *err)
{
    return digest_compute(sql, ud, err);
}

int db_digest(struct db *db, char out[65], uint64_t *revision, struct error *err)
{
    out[0] = '\0';
    return db_read(db, DB_LOCAL, read_digest, out, revision, err);
}

static int read_dump(struct sql *sql, void *ud, struct error *err)
{
    sqlite3_int64 size = 0;
    unsigned char *pages = sqlite3_serialize(sql_handle(sql), "main", &size, 0);
    if (!pages || size < 100) {
        sqlite3_free(pages);
        return error_set(err, STATUS_INTERNAL, "Cannot copy the database: %s", sqlite3_errmsg(sql_handle(sql)));
    }
    pages[18] = pages[19] = 1; /* a plain file, not WAL */
    int status = file_write_atomic(ud, pages, (size_t)size, 0600, err);
    sqlite3_free(pages);
    return status;
}

int db_dump_file(struct db *db, const char *path, struct error *err)
{
    return db_read(db, DB_LOCAL, read_dump, (void *)(uintptr_t)path, NULL, err);
}

int db_digest_round(struct db *db, uint64_t *revision, struct error *err)
{
    struct timespec deadline;
    struct entry entry = {.kind = ENTRY_DIGEST, .time_ns = time_unix_ns(), .body = (const uint8_t *)""};
    struct buf data = {0};
    if (revision)
        *revision = 0;
    if (!db__enter(db, err))
        return STATUS_UNAVAILABLE;
    entry_encode(&entry, &data);
    struct proposal *proposal = proposal_create(ENTRY_DIGEST, 2);
    raft_node_propose(db->raft, data.data, data.len, proposal);
    buf_free(&data);
    time_deadline(&deadline, DB_WRITE_TIMEOUT_MS);
    pthread_mutex_lock(&db->lock);
    while (!proposal->done && !db->closing && pthread_cond_timedwait(&db->changed, &db->lock, &deadline) != ETIMEDOUT)
        ;
    int status = proposal->status;
    if (!proposal->done)
        status = error_set(err, STATUS_UNKNOWN, db->closing ? "The database is closing" : "The digest was not ordered in time");
    else if (status != STATUS_OK && err)
        *err = proposal->error;
    else if (revision)
        *revision = proposal->revision;
    proposal_release(proposal);
    pthread_mutex_unlock(&db->lock);
    db__leave(db);
    return status;
}
