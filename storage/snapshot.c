/* Snapshots of the state: a header and the pages of the database as one buffer.
 *
 *   0 magic "CVYSNAP1"   8 length of the pages u64   16 SHA-256 of the pages   48 pages, padded to 8
 *
 * begin opens a read transaction on a connection of its own (loop, cheap); write copies the pages (any thread; the buffer
 * exists twice for a moment). restore copies the pages over the live database by SQLite's backup in one transaction, so
 * that open connections stay valid and readers go on reading the old state until they end. */
#include "db_private.h"

#include <endian.h>
#include <openssl/sha.h>
#include <string.h>

enum { SNAPSHOT_HEADER_BYTES = 48, SQLITE_HEADER_BYTES = 100 };
static const char magic[8] = {'C', 'V', 'Y', 'S', 'N', 'A', 'P', '1'};

int snapshot_begin(void *ud, void **snapshot, struct error *err)
{
    struct db *db = ud;
    struct sql *sql = NULL;
    uint64_t revision;
    *snapshot = NULL;
    int status = sql_open(db->path, SQL_READONLY, &sql, err);
    if (status == STATUS_OK)
        status = sql__control(sql, SQL_BEGIN_READ, err);
    if (status == STATUS_OK)
        status = applied_get(sql, &revision, err); /* the first read fixes the state */
    if (status != STATUS_OK) {
        sql_close(sql);
        return status;
    }
    *snapshot = sql;
    return STATUS_OK;
}

void snapshot_pack(const void *pages, size_t size, void **data, size_t *len)
{
    size_t total = SNAPSHOT_HEADER_BYTES + (size + 7) / 8 * 8;
    uint8_t *out = xcalloc(1, total);
    uint64_t length = htole64((uint64_t)size);
    memcpy(out, magic, sizeof magic);
    memcpy(out + 8, &length, sizeof length);
    SHA256(pages, size, out + 16);
    memcpy(out + SNAPSHOT_HEADER_BYTES, pages, size);
    *data = out;
    *len = total;
}

int snapshot_write(void *ud, void *snapshot, void **data, size_t *len, struct error *err)
{
    struct sql *sql = snapshot;
    sqlite3_int64 size = 0;
    *data = NULL;
    *len = 0;
    uint8_t *pages = sqlite3_serialize(sql_handle(sql), "main", &size, 0);
    int status = STATUS_OK;
    if (!pages || size < SQLITE_HEADER_BYTES) {
        status = error_set(err, STATUS_INTERNAL, "Cannot copy the database: %s", sqlite3_errmsg(sql_handle(sql)));
    } else {
        pages[18] = pages[19] = 1; /* not WAL: an image in memory does not open otherwise */
        snapshot_pack(pages, (size_t)size, data, len);
    }
    sqlite3_free(pages);
    struct error rollback = ERROR_INIT;
    if (sql__control(sql, SQL_ROLLBACK, &rollback) != STATUS_OK)
        log_warn("db.snapshot", "error=\"%s\"", rollback.text);
    sql_close(sql);
    return status;
}

static int check(const uint8_t *in, size_t len, uint64_t *size, struct error *err)
{
    uint8_t hash[SHA256_DIGEST_LENGTH];
    if (len < SNAPSHOT_HEADER_BYTES + SQLITE_HEADER_BYTES || memcmp(in, magic, sizeof magic) != 0)
        return error_set(err, STATUS_DATA_LOSS, "Snapshot of %zu bytes has no valid header", len);
    memcpy(size, in + 8, sizeof *size);
    *size = le64toh(*size);
    if (*size < SQLITE_HEADER_BYTES || *size > len - SNAPSHOT_HEADER_BYTES || SNAPSHOT_HEADER_BYTES + (*size + 7) / 8 * 8 != len)
        return error_set(err, STATUS_DATA_LOSS, "Snapshot of %zu bytes claims %llu", len, (unsigned long long)*size);
    SHA256(in + SNAPSHOT_HEADER_BYTES, *size, hash);
    if (memcmp(hash, in + 16, sizeof hash) != 0)
        return error_set(err, STATUS_DATA_LOSS, "Snapshot does not match its checksum");
    return STATUS_OK;
}

int snapshot_restore(struct sql *sql, const void *data, size_t len, struct error *err)
{
    uint64_t size = 0;
    struct sql *image = NULL;
    int status = check(data, len, &size, err);
    if (status == STATUS_OK)
        status = sql_open(":memory:", 0, &image, err);
    if (status != STATUS_OK)
        return status;
    unsigned char *pages = (unsigned char *)(uintptr_t)((const uint8_t *)data + SNAPSHOT_HEADER_BYTES); /* read only */
    int rc = sqlite3_deserialize(sql_handle(image), "main", pages, (sqlite3_int64)size, (sqlite3_int64)size, SQLITE_DESERIALIZE_READONLY);
    sqlite3_backup *backup = rc == SQLITE_OK ? sqlite3_backup_init(sql_handle(sql), "main", sql_handle(image), "main") : NULL;
    if (backup) {
        sqlite3_backup_step(backup, -1);
        rc = sqlite3_backup_finish(backup); /* the step's error, too */
    } else if (rc == SQLITE_OK) {
        rc = sqlite3_errcode(sql_handle(sql));
    }
    if (rc != SQLITE_OK)
        status = error_set(err, STATUS_INTERNAL, "Cannot restore the snapshot: %s", sqlite3_errstr(rc));
    sql_close(image);
    return status;
}
