/* Output of `sql`, as spec/cluster.md 12.3 shows it, and reading the local database of a stopped member. */
#include "cli.h"
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

static char *value_text(const json_t *value)
{
    const json_t *item;
    if ((item = json_object_get(value, "integer")))
        return xasprintf("%lld", (long long)json_integer_value(item));
    if ((item = json_object_get(value, "real"))) {
        char text[40];
        for (int digits = 1; digits <= 17; digits++) { /* the shortest text that reads back the same */
            snprintf(text, sizeof(text), "%.*g", digits, json_number_value(item));
            if (strtod(text, NULL) == json_number_value(item))
                break;
        }
        return xstrdup(text);
    }
    if ((item = json_object_get(value, "text")))
        return xstrdup(json_string_value(item));
    if ((item = json_object_get(value, "blob"))) {
        size_t len;
        uint8_t *bytes = base64_decode(json_string_value(item), &len);
        char *text = xmalloc(len * 2 + 3);
        memcpy(text, "0x", 3);
        if (bytes)
            hex_encode(bytes, len, text + 2);
        free(bytes);
        return text;
    }
    return xstrdup("<nil>");
}

static void render_select(const json_t *result, struct buf *out)
{
    const json_t *columns = json_object_get(result, "columns");
    size_t count = json_array_size(columns);
    const char **headers = xcalloc(count + 1, sizeof(*headers));
    const char **cells = xcalloc(count + 1, sizeof(*cells));
    for (size_t i = 0; i < count; i++)
        headers[i] = json_string_value(json_array_get(columns, i));
    struct table table;
    table_init(&table, headers, count);
    table.row_lines = false;
    size_t index;
    const json_t *row;
    json_array_foreach(json_object_get(result, "rows"), index, row)
    {
        const json_t *values = json_object_get(row, "values");
        for (size_t i = 0; i < count; i++)
            cells[i] = value_text(json_array_get(values, i));
        table_add_row(&table, cells);
        for (size_t i = 0; i < count; i++)
            free((char *)cells[i]);
    }
    if (count)
        table_render(&table, out);
    table_free(&table);
    free(headers);
    free(cells);
}

void sql_render(const json_t *reply, struct buf *out)
{
    const char *text = json_text(reply, "text");
    if (*text) {
        buf_printf(out, "%s%s", text, text[strlen(text) - 1] == '\n' ? "" : "\n");
        return;
    }
    const json_t *results = json_object_get(reply, "results"), *result;
    size_t index, count = json_array_size(results);
    json_array_foreach(results, index, result)
    {
        if (count > 1)
            buf_printf(out, "=> Query %zu:\n\n", index);
        if (strcmp(json_text(result, "type"), "select") == 0)
            render_select(result, out);
        else
            buf_printf(out, "Rows affected: %lld\n", (long long)json_integer_value(json_object_get(result, "rows_affected")));
        if (count > 1)
            buf_puts(out, "\n");
    }
}

static json_t *sqlite_value(sqlite3_stmt *statement, int column)
{
    switch (sqlite3_column_type(statement, column)) {
    case SQLITE_INTEGER:
        return json_pack("{s:I}", "integer", (json_int_t)sqlite3_column_int64(statement, column));
    case SQLITE_FLOAT:
        return json_pack("{s:f}", "real", sqlite3_column_double(statement, column));
    case SQLITE_NULL:
        return json_pack("{s:b}", "null", 1);
    default:
        return json_pack("{s:s}", "text", (const char *)sqlite3_column_text(statement, column));
    }
}

int local_database_query(const char *dir, const char *query, json_t **reply, struct error *err)
{
    return stopped_database_query(dir, "local.db", query, reply, err);
}

int stopped_database_query(const char *dir, const char *file, const char *query, json_t **reply, struct error *err)
{
    *reply = NULL;
    char *path = xasprintf("%s/database/%s", dir, file);
    sqlite3 *db = NULL;
    sqlite3_stmt *statement = NULL;
    int code = sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL);
    if (code == SQLITE_OK)
        code = sqlite3_prepare_v2(db, query, -1, &statement, NULL);
    json_t *columns = json_array(), *rows = json_array();
    for (int i = 0; statement && i < sqlite3_column_count(statement); i++)
        json_array_append_new(columns, json_string(sqlite3_column_name(statement, i)));
    while (code == SQLITE_OK || code == SQLITE_ROW) {
        code = sqlite3_step(statement);
        if (code != SQLITE_ROW)
            break;
        json_t *values = json_array();
        for (int i = 0; i < sqlite3_column_count(statement); i++)
            json_array_append_new(values, sqlite_value(statement, i));
        json_array_append_new(rows, json_pack("{s:o}", "values", values));
    }
    int status = STATUS_OK;
    if (code == SQLITE_DONE)
        *reply = json_pack("{s:[{s:s,s:O,s:O}]}", "results", "type", "select", "columns", columns, "rows", rows);
    else
        status = error_set(err, STATUS_INTERNAL, "cannot read %s: %s", path, db ? sqlite3_errmsg(db) : "out of memory");
    json_decref(columns);
    json_decref(rows);
    sqlite3_finalize(statement);
    sqlite3_close(db);
    free(path);
    return status;
}
