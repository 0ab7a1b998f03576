/* Records every row change of the executing connection, in order, through sqlite3_preupdate_hook. The hook runs inside
 * the statement and may not use the connection, so the catalog is loaded beforehand.
 *
 * AUTOINCREMENT counters: SQLite does not report changes of sqlite_sequence, and a replica that inserts the captured
 * rowids does not always reach the same counter (INSERT OR IGNORE and ON CONFLICT DO UPDATE use up a number without
 * inserting a row). So the counters that moved are recorded as operations of their own, and belong to the digest.
 * Thread: the executor; init and reload with the turn. */
#include "rowlog.h"

#include <string.h>

static void doom(struct capture *capture, const char *why)
{
    if (!capture->doomed[0])
        snprintf(capture->doomed, sizeof capture->doomed, "%s", why);
}

static struct table *find_table(struct capture *capture, const char *name)
{
    if (capture->last && strcmp(capture->last->name, name) == 0)
        return capture->last;
    return capture->last = catalog_find(&capture->catalog, name, strlen(name));
}

/* Starts an operation: op and the table's number in the dictionary. */
static void put_op(struct capture *capture, struct table *table, enum row_op op)
{
    if (table->slot < 0) {
        if (capture->used_count == capture->used_cap) {
            capture->used_cap = capture->used_cap ? capture->used_cap * 2 : 16;
            capture->used = xrealloc(capture->used, capture->used_cap * sizeof *capture->used);
        }
        table->slot = (int)capture->used_count;
        capture->used[capture->used_count++] = table;
    }
    uint8_t byte = (uint8_t)op;
    buf_add(&capture->ops, &byte, 1);
    rowlog_put_number(&capture->ops, (uint64_t)table->slot);
    capture->count++;
}

static void on_change(void *ud, sqlite3 *db, int op, const char *schema, const char *name, sqlite3_int64 old_rowid,
                      sqlite3_int64 new_rowid)
{
    struct capture *capture = ud;
    if (!capture->on || strcmp(schema, "main") != 0 || strncmp(name, "sqlite_", 7) == 0)
        return;
    struct table *table = find_table(capture, name);
    if (!table || capture->used_count >= DB_TABLES_MAX) {
        doom(capture, table ? "too many tables in one batch" : "a change of an unknown table");
        return;
    }
    if (sqlite3_preupdate_blobwrite(db) >= 0) {
        doom(capture, "incremental blob writes are not replicated");
        return;
    }
    bool rowid = !table->without_rowid;
    bool moved = op == SQLITE_UPDATE && rowid && (old_rowid != new_rowid || table->value_count == 0);
    put_op(capture, table, op == SQLITE_INSERT ? ROW_INSERT : op == SQLITE_DELETE ? ROW_DELETE : moved ? ROW_MOVE : ROW_UPDATE);
    sqlite3_value *value = NULL;
    if (rowid)
        rowlog_put_signed(&capture->ops, op == SQLITE_INSERT ? new_rowid : old_rowid);
    else if (op != SQLITE_INSERT)
        for (size_t i = 0; i < table->key_count; i++) {
            if (sqlite3_preupdate_old(db, table->key_columns[i], &value) != SQLITE_OK)
                doom(capture, "SQLite did not tell an old value");
            else
                rowlog_put_value(&capture->ops, value);
        }
    if (moved)
        rowlog_put_signed(&capture->ops, new_rowid);
    /* The index of a new value counts all columns for an INSERT into a table without rowid, stored ones otherwise. */
    const int *columns = table->without_rowid && op == SQLITE_INSERT ? table->value_columns : table->value_storage;
    for (size_t i = 0; op != SQLITE_DELETE && i < table->value_count; i++) {
        if (sqlite3_preupdate_new(db, columns[i], &value) != SQLITE_OK)
            doom(capture, "SQLite did not tell a new value");
        else
            rowlog_put_value(&capture->ops, value);
    }
}

static void on_statement(void *ud)
{
    struct capture *capture = ud;
    capture->statement = capture_mark(capture);
}

static void on_failure(void *ud, bool partial)
{
    struct capture *capture = ud;
    if (partial)
        doom(capture, "a statement failed half-way and kept some of its changes");
    else
        capture_cut(capture, capture->statement);
}

int capture_init(struct capture *capture, struct sql *sql, struct error *err)
{
    memset(capture, 0, sizeof *capture);
    sqlite3_preupdate_hook(sql_handle(sql), on_change, capture);
    capture->observer = (struct sql_observer){capture, on_statement, on_failure};
    sql__observe(sql, &capture->observer);
    return catalog_load(sql, &capture->catalog, err);
}

static void sequences_free(struct sequence *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(list[i].name);
    free(list);
}

static void reset(struct capture *capture)
{
    capture_cut(capture, (struct capture_mark){0});
    capture->doomed[0] = '\0';
    capture->last = NULL;
}

int capture_reload(struct capture *capture, struct sql *sql, struct error *err)
{
    reset(capture);
    catalog_free(&capture->catalog);
    capture->sequences_known = false;
    return catalog_load(sql, &capture->catalog, err);
}

void capture_free(struct capture *capture)
{
    reset(capture);
    catalog_free(&capture->catalog);
    sequences_free(capture->sequences, capture->sequence_count);
    buf_free(&capture->ops);
    free(capture->used);
    memset(capture, 0, sizeof *capture);
}

struct capture_mark capture_mark(const struct capture *capture)
{
    return (struct capture_mark){capture->ops.len, capture->count, capture->used_count};
}

void capture_cut(struct capture *capture, struct capture_mark mark)
{
    capture->ops.len = mark.len;
    capture->count = mark.count;
    while (capture->used_count > mark.used)
        capture->used[--capture->used_count]->slot = -1;
}

static int sequences_load(struct sql *sql, struct sequence **out, size_t *count, struct error *err)
{
    struct sequence *list = NULL;
    size_t n = 0;
    struct sql_stmt *stmt = sql_query(sql, "SELECT name, seq FROM sqlite_sequence ORDER BY rowid", "");
    while (sql_next(stmt)) {
        if ((n & 15) == 0)
            list = xrealloc(list, (n + 16) * sizeof *list);
        list[n++] = (struct sequence){xstrdup(sql_text(stmt, 0)), sql_int(stmt, 1)};
    }
    *out = list;
    *count = n;
    return sql_done(stmt, err);
}

static bool has_sequences(struct sql *sql)
{
    return sqlite3_table_column_metadata(sql_handle(sql), "main", "sqlite_sequence", NULL, NULL, NULL, NULL, NULL, NULL) == SQLITE_OK;
}

int capture_begin(struct capture *capture, struct error *err)
{
    reset(capture);
    if (capture->sequences_known)
        return STATUS_OK;
    sequences_free(capture->sequences, capture->sequence_count);
    capture->sequences = NULL;
    capture->sequence_count = 0;
    if (has_sequences(capture->catalog.sql)) {
        int status = sequences_load(capture->catalog.sql, &capture->sequences, &capture->sequence_count, err);
        if (status != STATUS_OK)
            return status;
    }
    capture->sequences_known = true;
    return STATUS_OK;
}

/* Rows of sqlite_sequence are never removed but by DROP TABLE, so new ones come last and old ones keep their place. */
int capture_finish(struct capture *capture, struct error *err)
{
    struct sequence *now = NULL;
    size_t count = 0;
    if (!has_sequences(capture->catalog.sql))
        return STATUS_OK;
    int status = sequences_load(capture->catalog.sql, &now, &count, err);
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        bool known = i < capture->sequence_count && strcmp(capture->sequences[i].name, now[i].name) == 0;
        if (known && capture->sequences[i].seq == now[i].seq)
            continue;
        struct table *table = catalog_find(&capture->catalog, now[i].name, strlen(now[i].name));
        if (!table) /* left behind by a table that was renamed or dropped */
            continue;
        put_op(capture, table, ROW_SEQUENCE);
        rowlog_put_signed(&capture->ops, now[i].seq);
    }
    sequences_free(capture->sequences, capture->sequence_count);
    capture->sequences = now;
    capture->sequence_count = count;
    capture->sequences_known = false; /* until committed */
    return status;
}

void capture_committed(struct capture *capture, bool committed)
{
    capture->sequences_known = committed;
}

void capture_encode(const struct capture *capture, uint64_t base, uint32_t schema_version, struct buf *out)
{
    struct buf body = {0};
    for (size_t i = 0; i < capture->used_count; i++) {
        size_t len = strlen(capture->used[i]->name);
        rowlog_put_number(&body, len);
        buf_add(&body, capture->used[i]->name, len);
    }
    buf_add(&body, capture->ops.data, capture->ops.len);
    struct entry entry = {
        .kind = ENTRY_ROWS, .base = base, .schema_version = schema_version, .count = capture->count,
        .tables = (uint32_t)capture->used_count, .time_ns = time_unix_ns(), .body = (const uint8_t *)body.data, .body_len = body.len,
    };
    entry_encode(&entry, out);
    buf_free(&body);
}
