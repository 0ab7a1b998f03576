/* Tables as lxc draws them, csv, compact (libsmartcols), JSON and YAML. Rendering is pure; printing fails only where standard output does. */
#include "cli.h"
#include <libsmartcols.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

void cli_short_time(const char *rfc3339, char out[CLI_SHORT_TIME_SIZE])
{
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    unsigned year, month, day, hour, minute;
    out[0] = 0;
    if (sscanf(rfc3339, "%4u-%2u-%2uT%2u:%2u", &year, &month, &day, &hour, &minute) == 5 && month >= 1 && month <= 12 && year <= 9999 && day <= 31 && hour <= 23 && minute <= 59)
        snprintf(out, CLI_SHORT_TIME_SIZE, "%s %u, %u at %u:%02u%s (UTC)", months[month - 1], day, year, (hour + 11) % 12 + 1, minute, hour < 12 ? "am" : "pm");
}

void cli_minute_time(const char *rfc3339, char out[CLI_SHORT_TIME_SIZE])
{
    bool known = strlen(rfc3339) >= 16 && !str_prefix(rfc3339, "0001") && !str_prefix(rfc3339, "1970");
    out[0] = 0;
    if (known)
        snprintf(out, CLI_SHORT_TIME_SIZE, "%.4s/%.2s/%.2s %.5s UTC", rfc3339, rfc3339 + 5, rfc3339 + 8, rfc3339 + 11);
}

void table_init(struct table *table, const char *const *headers, size_t columns)
{
    *table = (struct table){.columns = columns, .headers = headers, .row_lines = true};
}

void table_add_row(struct table *table, const char *const *cells)
{
    table->cells = xrealloc(table->cells, (table->rows + 1) * table->columns * sizeof(*table->cells));
    for (size_t i = 0; i < table->columns; i++)
        table->cells[table->rows * table->columns + i] = xstrdup(cells[i] ? cells[i] : "");
    table->rows++;
}

void table_add(struct table *table, ...)
{
    const char **cells = xcalloc(table->columns, sizeof(*cells));
    va_list args;
    va_start(args, table);
    for (size_t i = 0; i < table->columns; i++)
        cells[i] = va_arg(args, const char *);
    va_end(args);
    table_add_row(table, cells);
    free(cells);
}

static int compare_rows(const void *a, const void *b, void *ud)
{
    const struct table *table = ud;
    for (size_t i = 0; i < table->columns; i++) {
        int order = strcmp(((char *const *)a)[i], ((char *const *)b)[i]);
        if (order)
            return order;
    }
    return 0;
}

void table_sort(struct table *table)
{
    if (table->rows)
        qsort_r(table->cells, table->rows, table->columns * sizeof(*table->cells), compare_rows, table);
}

void table_free(struct table *table)
{
    for (size_t i = 0; i < table->rows * table->columns; i++)
        free(table->cells[i]);
    free(table->cells);
    table->cells = NULL;
    table->rows = 0;
}

/* Columns on a terminal of the first `len` bytes. */
static size_t text_width(const char *text, size_t len)
{
    size_t width = 0;
    mbstate_t state = {0};
    for (size_t at = 0; at < len;) {
        wchar_t c;
        size_t step = mbrtowc(&c, text + at, len - at, &state);
        if (step == 0 || step == (size_t)-1 || step == (size_t)-2) { /* not text in this locale: one column each byte */
            memset(&state, 0, sizeof(state));
            width++;
            at++;
            continue;
        }
        int columns = wcwidth(c);
        width += columns > 0 ? (size_t)columns : 0;
        at += step;
    }
    return width;
}

static size_t widest_line(const char *text)
{
    size_t widest = 0;
    for (;;) {
        size_t len = strcspn(text, "\n"), width = text_width(text, len);
        widest = width > widest ? width : widest;
        if (!text[len])
            return widest;
        text += len + 1;
    }
}

static void spaces(struct buf *out, size_t count)
{
    while (count--)
        buf_puts(out, " ");
}

static void border(const size_t *widths, size_t columns, struct buf *out)
{
    for (size_t i = 0; i < columns; i++) {
        buf_puts(out, "+");
        for (size_t n = 0; n < widths[i] + 2; n++)
            buf_puts(out, "-");
    }
    buf_puts(out, "+\n");
}

static void render_row(const struct table *table, char *const *cells, const size_t *widths, struct buf *out)
{
    const char **rest = xcalloc(table->columns, sizeof(*rest));
    for (size_t i = 0; i < table->columns; i++)
        rest[i] = cells[i];
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < table->columns; i++) {
            size_t len = rest[i] ? strcspn(rest[i], "\n") : 0;
            buf_puts(out, "| ");
            if (len)
                buf_add(out, rest[i], len);
            spaces(out, widths[i] - text_width(rest[i] ? rest[i] : "", len) + 1);
            if (rest[i])
                rest[i] = rest[i][len] ? rest[i] + len + 1 : NULL;
            more = more || rest[i];
        }
        buf_puts(out, "|\n");
    }
    free(rest);
}

void table_render(const struct table *table, struct buf *out)
{
    covey_assert(table->columns);
    size_t *widths = xcalloc(table->columns, sizeof(*widths));
    for (size_t i = 0; i < table->columns; i++) {
        widths[i] = widest_line(table->headers[i]);
        for (size_t row = 0; row < table->rows; row++) {
            size_t width = widest_line(table->cells[row * table->columns + i]);
            widths[i] = width > widths[i] ? width : widths[i];
        }
    }
    border(widths, table->columns, out);
    for (size_t i = 0; i < table->columns; i++) {
        size_t gap = widths[i] - widest_line(table->headers[i]);
        buf_puts(out, "| ");
        spaces(out, gap / 2);
        buf_puts(out, table->headers[i]);
        spaces(out, gap - gap / 2 + 1);
    }
    buf_puts(out, "|\n");
    border(widths, table->columns, out);
    for (size_t row = 0; row < table->rows; row++) {
        render_row(table, &table->cells[row * table->columns], widths, out);
        if (table->row_lines)
            border(widths, table->columns, out);
    }
    if (!table->row_lines)
        border(widths, table->columns, out);
    free(widths);
}

void table_render_csv(const struct table *table, struct buf *out)
{
    for (size_t i = 0; i < table->rows * table->columns; i++) {
        const char *cell = table->cells[i];
        bool quote = strpbrk(cell, ",\"\r\n") || *cell == ' ' || *cell == '\t' || strcmp(cell, "\\.") == 0;
        if (quote)
            buf_puts(out, "\"");
        for (const char *c = cell; *c; c++) {
            if (*c == '"')
                buf_puts(out, "\"");
            buf_add(out, c, 1);
        }
        buf_puts(out, quote ? "\"" : "");
        buf_puts(out, (i + 1) % table->columns ? "," : "\n");
    }
}

int table_render_compact(const struct table *table, struct buf *out, struct error *err)
{
    struct libscols_table *scols = scols_new_table();
    char *text = NULL;
    bool ok = scols && !scols_table_set_column_separator(scols, "  ") && !scols_table_enable_nowrap(scols, 1);
    for (size_t i = 0; ok && i < table->columns; i++) {
        struct libscols_column *column = scols_table_new_column(scols, table->headers[i], 0, SCOLS_FL_WRAP);
        ok = column && !scols_column_set_safechars(column, "\n") &&
             !scols_column_set_wrapfunc(column, scols_wrapnl_chunksize, scols_wrapnl_nextchunk, NULL);
    }
    for (size_t row = 0; ok && row < table->rows; row++) {
        struct libscols_line *line = scols_table_new_line(scols, NULL);
        ok = line != NULL;
        for (size_t i = 0; ok && i < table->columns; i++)
            ok = !scols_line_set_data(line, i, table->cells[row * table->columns + i]);
    }
    if (ok && !table->rows) { /* libsmartcols prints no header then */
        for (size_t i = 0; i < table->columns; i++)
            buf_printf(out, "%s%s", i ? "  " : "", table->headers[i]);
        buf_puts(out, "\n");
    } else if (ok) {
        ok = !scols_print_table_to_string(scols, &text);
        if (ok)
            buf_printf(out, "%s\n", text); /* libsmartcols leaves out the last line's end */
    }
    free(text);
    scols_unref_table(scols);
    return ok ? STATUS_OK : error_set(err, STATUS_INTERNAL, "cannot render the table");
}

int cli_check_format(const struct cli *cli, struct error *err)
{
    static const char *const formats[] = {"table", "csv", "json", "yaml", "compact"};
    const char *format = cli_flag(cli, "format");
    for (size_t i = 0; format && i < sizeof(formats) / sizeof(*formats); i++)
        if (strcmp(format, formats[i]) == 0)
            return STATUS_OK;
    return format ? error_set(err, STATUS_INVALID_ARGUMENT, "Invalid format \"%s\"", format) : STATUS_OK;
}

static int print_buf(struct buf *out, struct error *err)
{
    bool ok = !out->len || fwrite(out->data, 1, out->len, stdout) == out->len;
    buf_free(out);
    return ok ? STATUS_OK : error_set(err, STATUS_INTERNAL, "cannot write to standard output");
}

int cli_print_yaml(const json_t *value)
{
    struct buf out = {0};
    yaml_write(value, &out);
    return print_buf(&out, NULL);
}

int cli_print(struct cli *cli, const struct table *table, const json_t *raw, struct error *err)
{
    int status = cli_check_format(cli, err);
    const char *format = cli_flag(cli, "format");
    struct buf out = {0};
    if (status)
        return status;
    if (!format || strcmp(format, "table") == 0) {
        table_render(table, &out);
    } else if (strcmp(format, "csv") == 0) {
        table_render_csv(table, &out);
    } else if (strcmp(format, "compact") == 0) {
        status = table_render_compact(table, &out, err);
    } else if (strcmp(format, "json") == 0) {
        char *text = json_dumps(raw, JSON_COMPACT | JSON_ENCODE_ANY);
        buf_printf(&out, "%s\n", text ? text : "null");
        free(text);
    } else {
        yaml_write(raw, &out);
    }
    int printed = print_buf(&out, err);
    return status ? status : printed;
}

char *text_upper(const char *text)
{
    char *copy = xstrdup(text);
    for (char *c = copy; *c; c++)
        if (*c >= 'a' && *c <= 'z')
            *c = (char)(*c - 'a' + 'A');
    return copy;
}
