/* Entries of the replicated log. The first byte chooses: a whole entry as it stands, or a body to which a valid header is made (byte 2: tables, bytes 3 and 4:
 * operations), so that the bodies are reached. Rows are replayed into a scratch database and rolled back. */
#include "fuzz.h"
#include "storage/rowlog.h"
#include <unistd.h>

static struct sql *sql;
static struct catalog catalog;
static char dir[] = "/tmp/covey-fuzz-rowlog-XXXXXX";

static void clean_up(void)
{
    struct error err = ERROR_INIT;
    catalog_free(&catalog);
    sql_close(sql);
    dir_remove_all(dir, &err);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    struct error err = ERROR_INIT;
    must(mkdtemp(dir) != NULL);
    char *path = xasprintf("%s/db", dir);
    must(sql_open(path, SQL_CREATE | SQL_SYNC_OFF, &sql, &err) == STATUS_OK);
    free(path);
    must(sql_script(sql,
                    "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a, b REAL, c TEXT UNIQUE, d BLOB, e GENERATED ALWAYS AS (a || c) VIRTUAL);"
                    "CREATE TABLE w (k TEXT, n INT, v, PRIMARY KEY (k, n)) WITHOUT ROWID;"
                    "CREATE TABLE p (a TEXT PRIMARY KEY, b INT NOT NULL CHECK (b > 0));"
                    "CREATE TABLE k (k TEXT PRIMARY KEY) WITHOUT ROWID;"
                    "INSERT INTO t (id, a, c) VALUES (1, 1, 'x'), (2, 2, 'y'); INSERT INTO w VALUES ('a', 1, 'v'); INSERT INTO p VALUES ('a', 1); INSERT INTO k VALUES ('a')",
                    &err) == STATUS_OK);
    must(sql_exec(sql, &err, "PRAGMA foreign_keys=OFF", "") == STATUS_OK);
    sqlite3_db_config(sql_handle(sql), SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, NULL);
    must(catalog_load(sql, &catalog, &err) == STATUS_OK);
    atexit(clean_up);
    return 0;
}

static void replay(const struct entry *entry)
{
    struct error err = ERROR_INIT, ignored = ERROR_INIT;
    must(sql__control(sql, SQL_BEGIN_WRITE, &err) == STATUS_OK);
    if (rowlog_replay(&catalog, entry, &err) != STATUS_OK) {
        must_tell(err);
    }
    size_t count = 0;
    char **tables = rowlog_tables(entry, &count);
    for (size_t i = 0; i < count; i++) {
        must(strlen(tables[i]) <= entry->body_len);
    }
    free(tables);
    must(sql__reset(sql) == 0);
    must(sql__control(sql, SQL_ROLLBACK, &ignored) == STATUS_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct entry entry;
    struct error err = ERROR_INIT;
    struct buf made = {0};
    if (len < 4) {
        return 0;
    }
    if (data[0] % 2 == 1) {
        entry = (struct entry){.kind = ENTRY_ROWS, .base = 1, .schema_version = 1, .tables = data[1], .count = (uint32_t)(data[2] | data[3] << 8),
                               .body = data + 4, .body_len = len - 4};
        entry_encode(&entry, &made);
    } else {
        buf_add(&made, data + 1, len - 1);
    }
    uint8_t *exact = xmalloc(made.len); /* no byte behind it */
    memcpy(exact, made.data, made.len);
    if (entry_decode(exact, made.len, &entry, &err) != STATUS_OK) {
        must_tell(err);
    } else {
        struct buf again = {0};
        entry_encode(&entry, &again);
        must(again.len == made.len);
        buf_free(&again);
        if (entry.kind == ENTRY_ROWS) {
            replay(&entry);
        }
    }
    free(exact);
    buf_free(&made);
    return 0;
}
