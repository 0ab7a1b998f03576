/* The tables of a database as capture, replay and digest see them: which columns hold data, and what identifies a row.
 * Thread: the one that has the connection. Fails when a table cannot be described (all names of the rowid taken). */
#include "db_private.h"

#include <string.h>
#include <strings.h>

void sql_quote(struct buf *out, const char *name)
{
    buf_add(out, "\"", 1);
    for (; *name; name++)
        buf_add(out, *name == '"' ? "\"\"" : name, *name == '"' ? 2 : 1);
    buf_add(out, "\"", 1);
}

static void table_free(struct table *table)
{
    for (size_t i = 0; i < table->value_count; i++)
        free(table->value_names[i]);
    for (size_t i = 0; i < table->key_count; i++)
        free(table->key_names[i]);
    free(table->value_names);
    free(table->value_columns);
    free(table->value_storage);
    free(table->key_names);
    free(table->key_columns);
    sqlite3_finalize(table->insert);
    sqlite3_finalize(table->update);
    sqlite3_finalize(table->move);
    sqlite3_finalize(table->remove);
    free(table->name);
    free(table);
}

void catalog_free(struct catalog *catalog)
{
    struct table *table, *tmp;
    HASH_ITER(hh, catalog->tables, table, tmp) {
        HASH_DEL(catalog->tables, table);
        table_free(table);
    }
    catalog->tables = NULL;
}

struct table *catalog_find(struct catalog *catalog, const char *name, size_t len)
{
    struct table *table;
    HASH_FIND(hh, catalog->tables, name, len, table);
    return table;
}

/* A primary key without an index of its own is another name of the rowid (INTEGER PRIMARY KEY). */
static int has_key_index(struct sql *sql, const char *name, bool *out, struct error *err)
{
    *out = false;
    struct sql_stmt *stmt = sql_query(sql, "SELECT origin FROM pragma_index_list(?1)", "s", name);
    while (sql_next(stmt))
        *out |= str_eq(sql_text(stmt, 0), "pk");
    return sql_done(stmt, err);
}

struct column { char *name; int storage, pk; bool generated; };

static int columns_load(struct sql *sql, const char *name, struct column **out, size_t *count, struct error *err)
{
    struct column *columns = NULL;
    size_t n = 0;
    int stored = 0;
    struct sql_stmt *stmt = sql_query(sql, "SELECT name, pk, hidden FROM pragma_table_xinfo(?1) ORDER BY cid", "s", name);
    while (sql_next(stmt)) {
        columns = xrealloc(columns, (n + 1) * sizeof *columns);
        int hidden = (int)sql_int(stmt, 2); /* 2 virtual, 3 stored generated column */
        columns[n++] = (struct column){.name = xstrdup(sql_text(stmt, 0)), .pk = (int)sql_int(stmt, 1),
                                       .storage = hidden == 2 ? -1 : stored, .generated = hidden != 0};
        stored += hidden != 2;
    }
    *out = columns;
    *count = n;
    return sql_done(stmt, err);
}

static const char *rowid_name(const struct column *columns, size_t count)
{
    static const char *const names[] = {"rowid", "_rowid_", "oid"};
    for (size_t i = 0; i < 3; i++) {
        bool taken = false;
        for (size_t j = 0; j < count; j++)
            taken |= strcasecmp(columns[j].name, names[i]) == 0;
        if (!taken)
            return names[i];
    }
    return NULL;
}

/* SQLite's hook confuses the alias of the rowid (counted among all columns) with the stored column of that number, which
 * is another one when a virtual generated column comes before the alias. */
static bool capturable(const struct column *columns, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (columns[i].pk && columns[i].storage != (int)i)
            return false;
    return true;
}

static void table_fill(struct table *table, const struct column *columns, size_t count, bool rowid_alias)
{
    table->value_names = xcalloc(count + 1, sizeof *table->value_names);
    table->value_columns = xcalloc(count + 1, sizeof(int));
    table->value_storage = xcalloc(count + 1, sizeof(int));
    table->key_names = xcalloc(count + 1, sizeof *table->key_names);
    table->key_columns = xcalloc(count + 1, sizeof(int));
    for (size_t i = 0; i < count; i++) {
        if (columns[i].generated || (rowid_alias && columns[i].pk))
            continue;
        size_t n = table->value_count++;
        table->value_names[n] = xstrdup(columns[i].name);
        table->value_columns[n] = (int)i;
        table->value_storage[n] = columns[i].storage;
    }
    if (!table->without_rowid)
        return;
    for (int pk = 1; pk <= (int)count; pk++)
        for (size_t i = 0; i < count; i++)
            if (columns[i].pk == pk) {
                table->key_names[table->key_count] = xstrdup(columns[i].name);
                table->key_columns[table->key_count++] = (int)i;
            }
}

static int table_load(struct sql *sql, struct table *table, struct error *err)
{
    struct column *columns = NULL;
    size_t count = 0;
    bool key_index = false;
    int status = columns_load(sql, table->name, &columns, &count, err);
    if (status == STATUS_OK)
        status = has_key_index(sql, table->name, &key_index, err);
    if (status == STATUS_OK) {
        bool has_key = false;
        for (size_t i = 0; i < count; i++)
            has_key |= columns[i].pk > 0;
        if (!table->without_rowid) {
            table->rowid = rowid_name(columns, count);
            if (!table->rowid)
                status = error_set(err, STATUS_INTERNAL, "Table \"%s\" has no name left for its rowid", table->name);
        }
        bool alias = !table->without_rowid && has_key && !key_index;
        if (alias && !capturable(columns, count))
            status = error_set(err, STATUS_FAILED_PRECONDITION, "Table \"%s\" has a virtual generated column before its"
                               " INTEGER PRIMARY KEY and cannot be replicated", table->name);
        table_fill(table, columns, count, alias);
    }
    for (size_t i = 0; i < count; i++)
        free(columns[i].name);
    free(columns);
    return status;
}

int catalog_load(struct sql *sql, struct catalog *out, struct error *err)
{
    *out = (struct catalog){.sql = sql};
    struct sql_stmt *stmt = sql_query(sql,
        "SELECT l.name, l.wr FROM pragma_table_list l WHERE l.schema = 'main' AND"
        " l.type = 'table' AND l.name NOT LIKE 'sqlite\\_%' ESCAPE '\\'", "");
    while (sql_next(stmt)) {
        struct table *table = xcalloc(1, sizeof *table);
        table->name = xstrdup(sql_text(stmt, 0));
        table->without_rowid = sql_int(stmt, 1) != 0;
        table->slot = -1;
        HASH_ADD_KEYPTR(hh, out->tables, table->name, strlen(table->name), table);
    }
    int status = sql_done(stmt, err);
    struct table *table, *tmp;
    HASH_ITER(hh, out->tables, table, tmp) {
        if (status == STATUS_OK)
            status = table_load(sql, table, err);
    }
    if (status != STATUS_OK)
        catalog_free(out);
    return status;
}
