/* SHA-256 over the whole state: the schema's SQL, then every table in name order, rows in the order of their keys, values
 * with their types; sqlite_sequence by name. Two replicas are equal when their digests at one revision are.
 * digest_compute runs on any thread inside a read transaction; the digester thread does so for digest entries. */
#include "rowlog.h"

#include <openssl/evp.h>
#include <string.h>

enum { DIGEST_CHUNK_BYTES = 64 << 10 };

struct hasher { EVP_MD_CTX *ctx; struct buf buf; };

static void flush(struct hasher *hasher)
{
    if (hasher->buf.len && EVP_DigestUpdate(hasher->ctx, hasher->buf.data, hasher->buf.len) != 1)
        core_panic(__FILE__, __LINE__, "digest: SHA-256 failed");
    hasher->buf.len = 0;
}

static int hash_query(struct hasher *hasher, struct sql *sql, const char *text, struct error *err)
{
    sqlite3_stmt *stmt = NULL;
    int rc = sqlite3_prepare_v2(sql_handle(sql), text, -1, &stmt, NULL);
    if (rc != SQLITE_OK)
        return sql__error(sql, rc, err);
    int columns = sqlite3_column_count(stmt);
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        buf_add(&hasher->buf, "r", 1);
        for (int i = 0; i < columns; i++)
            rowlog_put_value(&hasher->buf, sqlite3_column_value(stmt, i));
        if (hasher->buf.len >= DIGEST_CHUNK_BYTES)
            flush(hasher);
    }
    int status = rc == SQLITE_DONE ? STATUS_OK : sql__error(sql, rc, err);
    sqlite3_finalize(stmt);
    return status;
}

static int hash_table(struct hasher *hasher, struct sql *sql, const struct table *table, struct error *err)
{
    struct buf text = {0};
    rowlog_put_number(&hasher->buf, strlen(table->name));
    buf_puts(&hasher->buf, table->name);
    buf_printf(&text, "SELECT %s%s* FROM ", table->without_rowid ? "" : table->rowid, table->without_rowid ? "" : ", ");
    sql_quote(&text, table->name);
    buf_puts(&text, " ORDER BY ");
    if (!table->without_rowid)
        buf_puts(&text, table->rowid);
    for (size_t i = 0; i < table->key_count; i++) {
        buf_puts(&text, i ? ", " : "");
        sql_quote(&text, table->key_names[i]);
    }
    int status = hash_query(hasher, sql, text.data, err);
    buf_free(&text);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct table *const *)a)->name, (*(struct table *const *)b)->name);
}

static int hash_all(struct hasher *hasher, struct sql *sql, struct catalog *catalog, struct error *err)
{
    int status = hash_query(hasher, sql, "SELECT type, name, tbl_name, sql FROM sqlite_schema"
                            " WHERE name NOT LIKE 'sqlite\\_stat%' ESCAPE '\\' ORDER BY type, name", err);
    size_t count = HASH_COUNT(catalog->tables), n = 0;
    struct table **tables = xcalloc(count + 1, sizeof *tables);
    for (struct table *table = catalog->tables; table; table = table->hh.next)
        tables[n++] = table;
    qsort(tables, count, sizeof *tables, by_name);
    for (size_t i = 0; i < count && status == STATUS_OK; i++)
        status = hash_table(hasher, sql, tables[i], err);
    free(tables);
    int64_t counters = 0;
    if (status == STATUS_OK)
        status = sql_get_int(sql, &counters, err, "SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_sequence'", "");
    if (status == STATUS_OK && counters)
        status = hash_query(hasher, sql, "SELECT name, seq FROM sqlite_sequence ORDER BY name, seq", err);
    return status;
}

int digest_compute(struct sql *sql, char out[65], struct error *err)
{
    uint8_t hash[32];
    struct catalog catalog;
    out[0] = '\0';
    int status = catalog_load(sql, &catalog, err);
    if (status != STATUS_OK)
        return status;
    struct hasher hasher = {.ctx = EVP_MD_CTX_new()};
    if (!hasher.ctx || EVP_DigestInit_ex(hasher.ctx, EVP_sha256(), NULL) != 1)
        core_panic(__FILE__, __LINE__, "digest: SHA-256 is not available");
    status = hash_all(&hasher, sql, &catalog, err);
    flush(&hasher);
    if (EVP_DigestFinal_ex(hasher.ctx, hash, NULL) != 1)
        core_panic(__FILE__, __LINE__, "digest: SHA-256 failed");
    if (status == STATUS_OK)
        hex_encode(hash, sizeof hash, out);
    EVP_MD_CTX_free(hasher.ctx);
    buf_free(&hasher.buf);
    catalog_free(&catalog);
    return status;
}

/* ---- digests of digest entries, on a thread of their own ---- */
struct job { struct job *next; uint64_t revision; struct sql *sql; };

struct digester {
    struct db *db;
    pthread_t thread;
    pthread_mutex_t lock; /* the list, stop */
    pthread_cond_t cond;
    struct job *first, **last;
    size_t count;
    bool stop;
};

static void job_run(struct digester *digester, struct job *job)
{
    struct error err = ERROR_INIT;
    char digest[65];
    if (digest_compute(job->sql, digest, &err) != STATUS_OK)
        log_error("db.digest", "revision=%llu error=\"%s\"", (unsigned long long)job->revision, err.text);
    else if (digester->db->callbacks.digest)
        digester->db->callbacks.digest(digester->db->callbacks.ud, job->revision, digest);
    db__must(sql__control(job->sql, SQL_ROLLBACK, &err), &err);
    sql_close(job->sql);
    free(job);
}

static void *digester_main(void *arg)
{
    struct digester *digester = arg;
    pthread_mutex_lock(&digester->lock);
    while (digester->first || !digester->stop) {
        struct job *job = digester->first;
        if (!job) {
            pthread_cond_wait(&digester->cond, &digester->lock); /* ended by digester_stop */
            continue;
        }
        digester->first = job->next;
        if (!digester->first)
            digester->last = &digester->first;
        digester->count--;
        pthread_mutex_unlock(&digester->lock);
        job_run(digester, job);
        pthread_mutex_lock(&digester->lock);
    }
    pthread_mutex_unlock(&digester->lock);
    return NULL;
}

struct digester *digester_start(struct db *db)
{
    struct digester *digester = xcalloc(1, sizeof *digester);
    digester->db = db;
    digester->last = &digester->first;
    pthread_mutex_init(&digester->lock, NULL);
    pthread_cond_init(&digester->cond, NULL);
    if (pthread_create(&digester->thread, NULL, digester_main, digester) != 0)
        core_panic(__FILE__, __LINE__, "digest: cannot start a thread");
    return digester;
}

void digester_stop(struct digester *digester)
{
    if (!digester)
        return;
    pthread_mutex_lock(&digester->lock);
    digester->stop = true;
    pthread_cond_signal(&digester->cond);
    pthread_mutex_unlock(&digester->lock);
    pthread_join(digester->thread, NULL);
    pthread_cond_destroy(&digester->cond);
    pthread_mutex_destroy(&digester->lock);
    free(digester);
}

void digester_add(struct db *db, uint64_t revision)
{
    struct digester *digester = db->digester;
    struct error err = ERROR_INIT;
    struct sql *sql = NULL;
    uint64_t applied;
    pthread_mutex_lock(&digester->lock);
    bool full = digester->count >= DB_DIGESTS_QUEUED_MAX;
    pthread_mutex_unlock(&digester->lock);
    if (full) {
        log_warn("db.digest", "revision=%llu skipped, %d are waiting", (unsigned long long)revision, DB_DIGESTS_QUEUED_MAX);
        return;
    }
    db__must(sql_open(db->path, SQL_READONLY, &sql, &err), &err);
    db__must(sql__control(sql, SQL_BEGIN_READ, &err), &err);
    db__must(applied_get(sql, &applied, &err), &err); /* the first read fixes the state */
    struct job *job = xcalloc(1, sizeof *job);
    *job = (struct job){NULL, revision, sql};
    pthread_mutex_lock(&digester->lock);
    *digester->last = job;
    digester->last = &job->next;
    digester->count++;
    pthread_cond_signal(&digester->cond);
    pthread_mutex_unlock(&digester->lock);
}
