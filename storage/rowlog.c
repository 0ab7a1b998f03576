/* Entries of the replicated log, and replay of the row changes in them. Little endian, padded to 8:
 *
 *   0 magic u32   4 kind u8, format u8, zero u16   8 base u64   16 schema version u32   20 operations u32
 *   24 tables u32   28 body length u32   32 time i64   40 body
 *   body of ROWS:   tables: (length, name)…, then operations: op u8, table, what identifies the row, new values
 *   body of SCHEMA: SQL text   body of DIGEST: empty
 *
 * Numbers inside the body are base-128; signed ones zigzag. Decoding checks every bound. capture.c writes the operations.
 * Thread: any; replay needs the connection. */
#include "rowlog.h"

#include <endian.h>
#include <string.h>

enum { ENTRY_MAGIC = 0x31765943, ENTRY_FORMAT = 1, ENTRY_HEADER_BYTES = 40 };

void rowlog_put_number(struct buf *out, uint64_t value)
{
    uint8_t bytes[10];
    size_t n = 0;
    do {
        bytes[n] = (uint8_t)(value & 0x7f);
        value >>= 7;
        bytes[n++] |= value ? 0x80 : 0;
    } while (value);
    buf_add(out, bytes, n);
}

void rowlog_put_signed(struct buf *out, int64_t value)
{
    rowlog_put_number(out, ((uint64_t)value << 1) ^ (uint64_t)(value >> 63));
}

void rowlog_put_value(struct buf *out, sqlite3_value *value)
{
    uint8_t type = (uint8_t)sqlite3_value_type(value); /* SQLite's numbers: 1 integer, 2 float, 3 text, 4 blob, 5 NULL */
    buf_add(out, &type, 1);
    switch (type) {
    case SQLITE_INTEGER: rowlog_put_signed(out, sqlite3_value_int64(value)); break;
    case SQLITE_FLOAT: {
        double number = sqlite3_value_double(value);
        uint64_t bits;
        memcpy(&bits, &number, sizeof bits);
        bits = htole64(bits);
        buf_add(out, &bits, sizeof bits);
        break;
    }
    case SQLITE_TEXT:
    case SQLITE_BLOB: {
        const void *data = type == SQLITE_TEXT ? (const void *)sqlite3_value_text(value) : sqlite3_value_blob(value);
        size_t len = (size_t)sqlite3_value_bytes(value);
        rowlog_put_number(out, len);
        if (len)
            buf_add(out, data, len);
        break;
    }
    default: break;
    }
}

/* ---- header ---- */
static void put_u32(uint8_t *out, uint32_t value) { value = htole32(value); memcpy(out, &value, 4); }
static void put_u64(uint8_t *out, uint64_t value) { value = htole64(value); memcpy(out, &value, 8); }
static uint32_t get_u32(const uint8_t *in) { uint32_t value; memcpy(&value, in, 4); return le32toh(value); }
static uint64_t get_u64(const uint8_t *in) { uint64_t value; memcpy(&value, in, 8); return le64toh(value); }

void entry_encode(const struct entry *entry, struct buf *out)
{
    static const uint8_t zeros[8];
    uint8_t header[ENTRY_HEADER_BYTES] = {0};
    put_u32(header, ENTRY_MAGIC);
    header[4] = (uint8_t)entry->kind;
    header[5] = ENTRY_FORMAT;
    put_u64(header + 8, entry->base);
    put_u32(header + 16, entry->schema_version);
    put_u32(header + 20, entry->count);
    put_u32(header + 24, entry->tables);
    put_u32(header + 28, (uint32_t)entry->body_len);
    put_u64(header + 32, (uint64_t)entry->time_ns);
    buf_add(out, header, sizeof header);
    buf_add(out, entry->body, entry->body_len);
    buf_add(out, zeros, (8 - entry->body_len % 8) % 8);
}

int entry_decode(const void *data, size_t len, struct entry *out, struct error *err)
{
    const uint8_t *in = data;
    *out = (struct entry){0};
    if (len < ENTRY_HEADER_BYTES || len % 8 || get_u32(in) != ENTRY_MAGIC)
        return error_set(err, STATUS_DATA_LOSS, "Entry of %zu bytes has no valid header", len);
    if (in[5] != ENTRY_FORMAT || in[4] < ENTRY_ROWS || in[4] > ENTRY_DIGEST)
        return error_set(err, STATUS_DATA_LOSS, "Entry of unknown format %u, kind %u", in[5], in[4]);
    uint64_t body_len = get_u32(in + 28);
    if (ENTRY_HEADER_BYTES + (body_len + 7) / 8 * 8 != len)
        return error_set(err, STATUS_DATA_LOSS, "Entry of %zu bytes claims a body of %llu", len, (unsigned long long)body_len);
    *out = (struct entry){
        .kind = in[4], .base = get_u64(in + 8), .schema_version = get_u32(in + 16), .count = get_u32(in + 20),
        .tables = get_u32(in + 24), .time_ns = (int64_t)get_u64(in + 32), .body = in + ENTRY_HEADER_BYTES, .body_len = body_len,
    };
    if (out->tables > DB_TABLES_MAX || out->count > body_len)
        return error_set(err, STATUS_DATA_LOSS, "Entry claims %u tables and %u operations", out->tables, out->count);
    return STATUS_OK;
}

/* ---- reading the body ---- */
struct cursor { const uint8_t *p, *end; bool bad; };

static uint8_t get_byte(struct cursor *c)
{
    if (c->p < c->end)
        return *c->p++;
    c->bad = true;
    return 0;
}

static uint64_t get_number(struct cursor *c)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t byte = get_byte(c);
        if (shift == 63 && byte > 1)
            c->bad = true;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return value;
    }
    c->bad = true;
    return 0;
}

static int64_t get_signed(struct cursor *c)
{
    uint64_t value = get_number(c);
    return (int64_t)(value >> 1) ^ -(int64_t)(value & 1);
}

static const uint8_t *get_bytes(struct cursor *c, size_t *len)
{
    uint64_t n = get_number(c);
    if (c->bad || n > (uint64_t)(c->end - c->p) || n > INT32_MAX) {
        c->bad = true;
        *len = 0;
        return NULL;
    }
    const uint8_t *bytes = c->p;
    c->p += n;
    *len = (size_t)n;
    return bytes;
}

/* Binds the next value; values stay borrowed from the entry, which outlives the step. */
static int bind_value(struct cursor *c, sqlite3_stmt *stmt, int parameter)
{
    size_t len;
    switch (get_byte(c)) {
    case SQLITE_INTEGER: return sqlite3_bind_int64(stmt, parameter, get_signed(c));
    case SQLITE_FLOAT: {
        if (c->end - c->p < 8)
            break;
        uint64_t bits = get_u64(c->p);
        double number;
        c->p += 8;
        memcpy(&number, &bits, sizeof number);
        return sqlite3_bind_double(stmt, parameter, number);
    }
    case SQLITE_TEXT: {
        const uint8_t *text = get_bytes(c, &len);
        return c->bad ? SQLITE_CORRUPT : sqlite3_bind_text(stmt, parameter, (const char *)text, (int)len, SQLITE_STATIC);
    }
    case SQLITE_BLOB: {
        const uint8_t *blob = get_bytes(c, &len);
        return c->bad ? SQLITE_CORRUPT : sqlite3_bind_blob(stmt, parameter, len ? (const void *)blob : "", (int)len, SQLITE_STATIC);
    }
    case SQLITE_NULL: return sqlite3_bind_null(stmt, parameter);
    default: break;
    }
    c->bad = true;
    return SQLITE_CORRUPT;
}

/* ---- replay ---- */
static void put_where(struct buf *text, const struct table *table, int parameter)
{
    buf_puts(text, " WHERE ");
    if (!table->without_rowid)
        buf_printf(text, "%s = ?%d", table->rowid, parameter);
    for (size_t i = 0; i < table->key_count; i++) {
        buf_puts(text, i ? " AND " : "");
        sql_quote(text, table->key_names[i]);
        buf_printf(text, " = ?%d", parameter + (int)i);
    }
}

/* Parameters: INSERT: rowid (rowid tables), values. UPDATE and DELETE: what identifies the row, [new rowid,] values. */
static char *statement_text(const struct table *table, uint8_t op)
{
    struct buf text = {0};
    int keys = table->without_rowid ? (int)table->key_count : 1;
    buf_puts(&text, op == ROW_INSERT ? "INSERT INTO " : op == ROW_DELETE ? "DELETE FROM " : "UPDATE ");
    sql_quote(&text, table->name);
    if (op == ROW_INSERT) {
        int n = (int)table->value_count + !table->without_rowid;
        buf_printf(&text, " (%s", table->without_rowid ? "" : table->rowid);
        for (size_t i = 0; i < table->value_count; i++) {
            buf_puts(&text, i || !table->without_rowid ? ", " : "");
            sql_quote(&text, table->value_names[i]);
        }
        buf_puts(&text, ") VALUES (");
        for (int i = 1; i <= n; i++)
            buf_printf(&text, "%s?%d", i > 1 ? ", " : "", i);
        buf_puts(&text, ")");
        return buf_take(&text);
    }
    if (op != ROW_DELETE) {
        int parameter = keys;
        buf_puts(&text, " SET ");
        if (op == ROW_MOVE)
            buf_printf(&text, "%s = ?%d", table->rowid, ++parameter);
        for (size_t i = 0; i < table->value_count; i++) {
            buf_puts(&text, i || op == ROW_MOVE ? ", " : "");
            sql_quote(&text, table->value_names[i]);
            buf_printf(&text, " = ?%d", ++parameter);
        }
    }
    put_where(&text, table, 1);
    return buf_take(&text);
}

static int statement_get(struct catalog *catalog, struct table *table, uint8_t op, sqlite3_stmt **out, struct error *err)
{
    sqlite3_stmt **slot = op == ROW_INSERT ? &table->insert : op == ROW_UPDATE ? &table->update
                        : op == ROW_MOVE ? &table->move : &table->remove;
    if (!*slot) {
        char *text = statement_text(table, op);
        int rc = sqlite3_prepare_v3(sql_handle(catalog->sql), text, -1, SQLITE_PREPARE_PERSISTENT, slot, NULL);
        free(text);
        if (rc != SQLITE_OK)
            return sql__error(catalog->sql, rc, err);
    }
    *out = *slot;
    return STATUS_OK;
}

static int replay_sequence(struct catalog *catalog, const struct table *table, int64_t seq, struct error *err)
{
    int status = sql_exec(catalog->sql, err, "UPDATE sqlite_sequence SET seq = ?2 WHERE name = ?1", "si", table->name, seq);
    if (status == STATUS_OK && sql_changes(catalog->sql) == 0)
        status = sql_exec(catalog->sql, err, "INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)", "si", table->name, seq);
    return status;
}

static int replay_row(struct catalog *catalog, struct table *table, uint8_t op, struct cursor *c, struct error *err)
{
    sqlite3_stmt *stmt = NULL;
    if ((op == ROW_MOVE && table->without_rowid) || (op == ROW_UPDATE && table->value_count == 0))
        return error_set(err, STATUS_DATA_LOSS, "Operation %u does not suit table \"%s\"", op, table->name);
    int status = statement_get(catalog, table, op, &stmt, err);
    if (status != STATUS_OK)
        return status;
    int parameter = 0, rc = SQLITE_OK;
    if (!table->without_rowid)
        rc = sqlite3_bind_int64(stmt, ++parameter, get_signed(c));
    else if (op != ROW_INSERT)
        for (size_t i = 0; i < table->key_count && rc == SQLITE_OK; i++)
            rc = bind_value(c, stmt, ++parameter);
    if (op == ROW_MOVE && rc == SQLITE_OK)
        rc = sqlite3_bind_int64(stmt, ++parameter, get_signed(c));
    if (op != ROW_DELETE)
        for (size_t i = 0; i < table->value_count && rc == SQLITE_OK; i++)
            rc = bind_value(c, stmt, ++parameter);
    if (c->bad)
        status = error_set(err, STATUS_DATA_LOSS, "Row of table \"%s\" is cut off or malformed", table->name);
    else if (rc != SQLITE_OK || (rc = sqlite3_step(stmt)) != SQLITE_DONE)
        status = sql__error(catalog->sql, rc, err);
    else if (sqlite3_changes64(sql_handle(catalog->sql)) != 1)
        status = error_set(err, STATUS_DATA_LOSS, "Operation %u on table \"%s\" changed %lld rows instead of one", op, table->name,
                           (long long)sqlite3_changes64(sql_handle(catalog->sql)));
    sqlite3_reset(stmt);
    sqlite3_clear_bindings(stmt);
    return status;
}

int rowlog_replay(struct catalog *catalog, const struct entry *entry, struct error *err)
{
    struct cursor c = {entry->body, entry->body + entry->body_len, false};
    struct table **tables = xcalloc(entry->tables + 1, sizeof *tables);
    int status = STATUS_OK;
    for (uint32_t i = 0; i < entry->tables && status == STATUS_OK; i++) {
        size_t len;
        const uint8_t *name = get_bytes(&c, &len);
        tables[i] = name ? catalog_find(catalog, (const char *)name, len) : NULL;
        if (!tables[i])
            status = error_set(err, STATUS_DATA_LOSS, "Entry names the unknown table \"%.*s\"", (int)len, name ? (const char *)name : "");
    }
    for (uint32_t i = 0; i < entry->count && status == STATUS_OK; i++) {
        uint8_t op = get_byte(&c);
        uint64_t slot = get_number(&c);
        if (c.bad || op < ROW_INSERT || op > ROW_SEQUENCE || slot >= entry->tables) {
            status = error_set(err, STATUS_DATA_LOSS, "Operation %u of %u is malformed", i, entry->count);
        } else if (op == ROW_SEQUENCE) {
            int64_t seq = get_signed(&c);
            status = c.bad ? error_set(err, STATUS_DATA_LOSS, "Operation %u of %u is malformed", i, entry->count)
                           : replay_sequence(catalog, tables[slot], seq, err);
        } else {
            status = replay_row(catalog, tables[slot], op, &c, err);
        }
    }
    free(tables);
    if (status == STATUS_OK && c.p != c.end)
        status = error_set(err, STATUS_DATA_LOSS, "Entry has %zu bytes behind its last operation", (size_t)(c.end - c.p));
    return status;
}

char **rowlog_tables(const struct entry *entry, size_t *count)
{
    struct cursor c = {entry->body, entry->body + entry->body_len, false};
    char **names = xmalloc((entry->tables + 1) * sizeof *names + entry->body_len + entry->tables);
    char *text = (char *)(names + entry->tables + 1);
    *count = 0;
    for (uint32_t i = 0; i < entry->tables; i++) {
        size_t len;
        const uint8_t *name = get_bytes(&c, &len);
        if (c.bad)
            break;
        memcpy(text, name, len);
        text[len] = '\0';
        names[(*count)++] = text;
        text += len + 1;
    }
    return names;
}
