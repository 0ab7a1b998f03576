/* SQLite with less ceremony: see sql.h. A connection keeps its prepared statements by their text, least recently used out
 * first. Thread: a connection and its statements belong to one thread at a time. Fails by status, never by abort. */
#include "db_private.h"
#include "sql.h"

#include <string.h>

enum { SQL_CACHE_MAX = 256, SQL_BUSY_TIMEOUT_MS = 5000 };

struct sql_stmt {
    struct sql *sql;
    sqlite3_stmt *stmt; /* NULL when the text could not be prepared */
    char *text;         /* cache key; NULL = not in the cache */
    bool busy, started;
    int rc;             /* first error, or SQLITE_OK */
    char *message;      /* of that error */
    UT_hash_handle hh;
};

struct sql {
    sqlite3 *db;
    struct sql_stmt *cache;
    struct sql_stmt **loose; /* running statements outside the cache */
    size_t loose_count, loose_cap;
    sqlite3_stmt *controls[SQL_CONTROLS];
    const struct sql_observer *observer;
};

static int status_of(int rc)
{
    if (rc == SQLITE_CONSTRAINT_UNIQUE || rc == SQLITE_CONSTRAINT_PRIMARYKEY || rc == SQLITE_CONSTRAINT_ROWID)
        return STATUS_ALREADY_EXISTS;
    if ((rc & 0xff) == SQLITE_CONSTRAINT || (rc & 0xff) == SQLITE_AUTH)
        return STATUS_FAILED_PRECONDITION;
    return STATUS_INTERNAL;
}

int sql__error(struct sql *sql, int rc, struct error *err)
{
    return error_set(err, status_of(rc), "%s", sqlite3_errmsg(sql->db));
}

static int pragma(struct sql *sql, const char *text, struct error *err)
{
    int rc = sqlite3_exec(sql->db, text, NULL, NULL, NULL);
    return rc == SQLITE_OK ? STATUS_OK : sql__error(sql, rc, err);
}

int sql_open(const char *path, unsigned flags, struct sql **out, struct error *err)
{
    *out = NULL;
    struct sql *sql = xcalloc(1, sizeof *sql);
    int mode = flags & SQL_READONLY ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
    if (flags & SQL_CREATE)
        mode |= SQLITE_OPEN_CREATE;
    int rc = sqlite3_open_v2(path, &sql->db, mode | SQLITE_OPEN_NOMUTEX, NULL);
    if (rc != SQLITE_OK) {
        error_set(err, STATUS_INTERNAL, "Cannot open database \"%s\": %s", path, sql->db ? sqlite3_errmsg(sql->db) : sqlite3_errstr(rc));
        sqlite3_close_v2(sql->db);
        free(sql);
        return STATUS_INTERNAL;
    }
    sqlite3_extended_result_codes(sql->db, 1);
    sqlite3_busy_timeout(sql->db, SQL_BUSY_TIMEOUT_MS);
    int status = pragma(sql, "PRAGMA foreign_keys=ON", err);
    if (status == STATUS_OK && !(flags & SQL_READONLY))
        status = pragma(sql, "PRAGMA journal_mode=WAL", err);
    if (status == STATUS_OK && (flags & SQL_SYNC_OFF))
        status = pragma(sql, "PRAGMA synchronous=OFF", err);
    if (status != STATUS_OK) {
        error_prefix(err, "Cannot open database \"%s\"", path);
        sql_close(sql);
        return status;
    }
    *out = sql;
    return STATUS_OK;
}

static void stmt_destroy(struct sql_stmt *stmt)
{
    sqlite3_finalize(stmt->stmt);
    free(stmt->text);
    free(stmt->message);
    free(stmt);
}

void sql_close(struct sql *sql)
{
    if (!sql)
        return;
    struct sql_stmt *stmt, *tmp;
    HASH_ITER(hh, sql->cache, stmt, tmp) {
        HASH_DEL(sql->cache, stmt);
        stmt_destroy(stmt);
    }
    for (size_t i = 0; i < sql->loose_count; i++)
        stmt_destroy(sql->loose[i]);
    free(sql->loose);
    for (int i = 0; i < SQL_CONTROLS; i++)
        sqlite3_finalize(sql->controls[i]);
    int rc = sqlite3_close(sql->db);
    if (rc != SQLITE_OK)
        core_panic(__FILE__, __LINE__, "closing a database: %s", sqlite3_errmsg(sql->db));
    free(sql);
}

sqlite3 *sql_handle(struct sql *sql)
{
    return sql->db;
}

void sql__observe(struct sql *sql, const struct sql_observer *observer)
{
    sql->observer = observer;
}

/* ---- statements ---- */
static void stmt_fail(struct sql_stmt *stmt, int rc, const char *message)
{
    if (stmt->rc != SQLITE_OK)
        return;
    stmt->rc = rc;
    free(stmt->message);
    stmt->message = xstrdup(message);
}

/* Only whole statements are accepted: text behind the first one is a mistake of the caller. */
static void stmt_prepare(struct sql_stmt *stmt, const char *text, unsigned flags)
{
    const char *tail = NULL;
    int rc = sqlite3_prepare_v3(stmt->sql->db, text, -1, flags, &stmt->stmt, &tail);
    if (rc != SQLITE_OK) {
        stmt_fail(stmt, rc, sqlite3_errmsg(stmt->sql->db));
        return;
    }
    if (!stmt->stmt) {
        stmt_fail(stmt, SQLITE_MISUSE, "empty statement");
        return;
    }
    while (tail && *tail && strchr(" \t\r\n;", *tail))
        tail++;
    if (tail && *tail)
        stmt_fail(stmt, SQLITE_MISUSE, "more than one statement");
}

static struct sql_stmt *stmt_loose(struct sql *sql, struct sql_stmt *stmt)
{
    if (sql->loose_count == sql->loose_cap) {
        sql->loose_cap = sql->loose_cap ? sql->loose_cap * 2 : 8;
        sql->loose = xrealloc(sql->loose, sql->loose_cap * sizeof *sql->loose);
    }
    sql->loose[sql->loose_count++] = stmt;
    stmt->busy = true;
    return stmt;
}

static void cache_trim(struct sql *sql)
{
    struct sql_stmt *stmt, *tmp;
    if (HASH_COUNT(sql->cache) <= SQL_CACHE_MAX)
        return;
    HASH_ITER(hh, sql->cache, stmt, tmp) { /* in order of use */
        if (!stmt->busy) {
            HASH_DEL(sql->cache, stmt);
            stmt_destroy(stmt);
            return;
        }
    }
}

static struct sql_stmt *stmt_get(struct sql *sql, const char *text)
{
    struct sql_stmt *stmt;
    HASH_FIND_STR(sql->cache, text, stmt);
    if (stmt && !stmt->busy) {
        HASH_DEL(sql->cache, stmt);
        HASH_ADD_KEYPTR(hh, sql->cache, stmt->text, strlen(stmt->text), stmt);
        stmt->busy = true;
        return stmt;
    }
    bool taken = stmt != NULL;
    stmt = xcalloc(1, sizeof *stmt);
    stmt->sql = sql;
    stmt_prepare(stmt, text, taken ? 0 : SQLITE_PREPARE_PERSISTENT);
    if (taken || stmt->rc != SQLITE_OK)
        return stmt_loose(sql, stmt);
    stmt->busy = true;
    stmt->text = xstrdup(text);
    HASH_ADD_KEYPTR(hh, sql->cache, stmt->text, strlen(stmt->text), stmt);
    cache_trim(sql);
    return stmt;
}

static void stmt_bind(struct sql_stmt *stmt, const char *types, va_list args)
{
    int column = 0;
    for (const char *type = types ? types : ""; *type; type++) {
        int rc = SQLITE_MISUSE;
        column++;
        switch (*type) {
        case 's': {
            const char *text = va_arg(args, const char *);
            rc = text ? sqlite3_bind_text(stmt->stmt, column, text, -1, SQLITE_TRANSIENT) : sqlite3_bind_null(stmt->stmt, column);
            break;
        }
        case 'i': rc = sqlite3_bind_int64(stmt->stmt, column, va_arg(args, int64_t)); break;
        case 'd': rc = sqlite3_bind_double(stmt->stmt, column, va_arg(args, double)); break;
        case 'o': rc = sqlite3_bind_int(stmt->stmt, column, va_arg(args, int) != 0); break;
        case 'n': rc = sqlite3_bind_null(stmt->stmt, column); break;
        case 'b': {
            const void *blob = va_arg(args, const void *);
            size_t len = va_arg(args, size_t);
            rc = sqlite3_bind_blob64(stmt->stmt, column, blob ? blob : "", len, SQLITE_TRANSIENT);
            break;
        }
        default: core_panic(__FILE__, __LINE__, "sql: unknown type '%c' in \"%s\"", *type, types);
        }
        if (rc != SQLITE_OK) {
            stmt_fail(stmt, rc, sqlite3_errmsg(stmt->sql->db));
            return;
        }
    }
    if (column != sqlite3_bind_parameter_count(stmt->stmt))
        stmt_fail(stmt, SQLITE_RANGE, "wrong number of parameters");
}

static struct sql_stmt *query(struct sql *sql, const char *text, const char *types, va_list args)
{
    struct sql_stmt *stmt = stmt_get(sql, text);
    if (stmt->rc == SQLITE_OK)
        stmt_bind(stmt, types, args);
    return stmt;
}

struct sql_stmt *sql_query(struct sql *sql, const char *text, const char *types, ...)
{
    va_list args;
    va_start(args, types);
    struct sql_stmt *stmt = query(sql, text, types, args);
    va_end(args);
    return stmt;
}

/* A writing statement does all its changes in its first step, so an error in that step tells which changes are undone:
 * all of them (abort), unless the count of changes grew (conflict rule FAIL, triggers), where some may have stayed. */
static int stmt_step(struct sql *sql, sqlite3_stmt *stmt, bool first)
{
    const struct sql_observer *observer = sql->observer;
    if (!observer || sqlite3_stmt_readonly(stmt))
        return sqlite3_step(stmt);
    int64_t changes = sqlite3_total_changes64(sql->db);
    if (first)
        observer->begin(observer->ud);
    int rc = sqlite3_step(stmt);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        observer->fail(observer->ud, !first || sqlite3_total_changes64(sql->db) != changes);
    return rc;
}

bool sql_next(struct sql_stmt *stmt)
{
    if (stmt->rc != SQLITE_OK)
        return false;
    int rc = stmt_step(stmt->sql, stmt->stmt, !stmt->started);
    stmt->started = true;
    if (rc == SQLITE_ROW)
        return true;
    if (rc != SQLITE_DONE)
        stmt_fail(stmt, rc, sqlite3_errmsg(stmt->sql->db));
    return false;
}

int64_t sql_int(struct sql_stmt *stmt, int column) { return sqlite3_column_int64(stmt->stmt, column); }
double sql_double(struct sql_stmt *stmt, int column) { return sqlite3_column_double(stmt->stmt, column); }
int sql_columns(struct sql_stmt *stmt) { return stmt->stmt ? sqlite3_column_count(stmt->stmt) : 0; }
bool sql_null(struct sql_stmt *stmt, int column) { return sqlite3_column_type(stmt->stmt, column) == SQLITE_NULL; }

const char *sql_text(struct sql_stmt *stmt, int column)
{
    const char *text = (const char *)sqlite3_column_text(stmt->stmt, column);
    return text ? text : "";
}

const void *sql_blob(struct sql_stmt *stmt, int column, size_t *len)
{
    const void *blob = sqlite3_column_blob(stmt->stmt, column);
    *len = (size_t)sqlite3_column_bytes(stmt->stmt, column);
    return blob ? blob : "";
}

static void stmt_give_back(struct sql_stmt *stmt)
{
    if (stmt->stmt) {
        sqlite3_reset(stmt->stmt); /* repeats the error that is known already */
        sqlite3_clear_bindings(stmt->stmt);
    }
    stmt->rc = SQLITE_OK;
    stmt->busy = stmt->started = false;
    free(stmt->message);
    stmt->message = NULL;
    if (stmt->text)
        return;
    struct sql *sql = stmt->sql;
    for (size_t i = 0; i < sql->loose_count; i++)
        if (sql->loose[i] == stmt) {
            sql->loose[i] = sql->loose[--sql->loose_count];
            break;
        }
    stmt_destroy(stmt);
}

int sql_done(struct sql_stmt *stmt, struct error *err)
{
    int status = STATUS_OK;
    if (stmt->rc != SQLITE_OK)
        status = error_set(err, status_of(stmt->rc), "%s", stmt->message);
    stmt_give_back(stmt);
    return status;
}

int sql__reset(struct sql *sql)
{
    int open = 0;
    struct sql_stmt *stmt, *tmp;
    HASH_ITER(hh, sql->cache, stmt, tmp) {
        if (stmt->busy) {
            open++;
            stmt_give_back(stmt);
        }
    }
    while (sql->loose_count) {
        open++;
        stmt_give_back(sql->loose[0]);
    }
    return open;
}

/* ---- shorthands ---- */
int sql_exec(struct sql *sql, struct error *err, const char *text, const char *types, ...)
{
    va_list args;
    va_start(args, types);
    struct sql_stmt *stmt = query(sql, text, types, args);
    va_end(args);
    while (sql_next(stmt)) /* a PRAGMA or RETURNING may give rows: not wanted here */
        ;
    return sql_done(stmt, err);
}

static int no_row(struct sql_stmt *stmt, struct error *err)
{
    int status = sql_done(stmt, err);
    return status == STATUS_OK ? error_set(err, STATUS_NOT_FOUND, "Not found") : status;
}

int sql_get_int(struct sql *sql, int64_t *out, struct error *err, const char *text, const char *types, ...)
{
    va_list args;
    va_start(args, types);
    struct sql_stmt *stmt = query(sql, text, types, args);
    va_end(args);
    *out = 0;
    if (!sql_next(stmt))
        return no_row(stmt, err);
    *out = sql_int(stmt, 0);
    return sql_done(stmt, err);
}

int sql_get_text(struct sql *sql, char **out, struct error *err, const char *text, const char *types, ...)
{
    va_list args;
    va_start(args, types);
    struct sql_stmt *stmt = query(sql, text, types, args);
    va_end(args);
    *out = NULL;
    if (!sql_next(stmt))
        return no_row(stmt, err);
    *out = xstrdup(sql_text(stmt, 0));
    return sql_done(stmt, err);
}

int sql_script(struct sql *sql, const char *script, struct error *err)
{
    while (script && *script) {
        sqlite3_stmt *stmt = NULL;
        const char *tail = NULL;
        int rc = sqlite3_prepare_v2(sql->db, script, -1, &stmt, &tail);
        if (rc != SQLITE_OK)
            return sql__error(sql, rc, err);
        bool first = true;
        while (stmt && (rc = stmt_step(sql, stmt, first)) == SQLITE_ROW)
            first = false;
        if (stmt && rc != SQLITE_DONE) {
            int status = sql__error(sql, rc, err);
            sqlite3_finalize(stmt);
            return status;
        }
        sqlite3_finalize(stmt);
        script = tail;
    }
    return STATUS_OK;
}

int64_t sql_last_id(struct sql *sql) { return sqlite3_last_insert_rowid(sql->db); }
int64_t sql_changes(struct sql *sql) { return sqlite3_changes64(sql->db); }

int sql__control(struct sql *sql, enum sql_control control, struct error *err)
{
    static const char *const texts[SQL_CONTROLS] = {
        [SQL_BEGIN_WRITE] = "BEGIN IMMEDIATE", [SQL_BEGIN_READ] = "BEGIN", [SQL_COMMIT] = "COMMIT", [SQL_ROLLBACK] = "ROLLBACK",
        [SQL_SAVEPOINT] = "SAVEPOINT request", [SQL_RELEASE] = "RELEASE request", [SQL_ROLLBACK_TO] = "ROLLBACK TO request",
    };
    sqlite3_stmt **stmt = &sql->controls[control];
    if (!*stmt) {
        int rc = sqlite3_prepare_v3(sql->db, texts[control], -1, SQLITE_PREPARE_PERSISTENT, stmt, NULL);
        if (rc != SQLITE_OK)
            return sql__error(sql, rc, err);
    }
    int rc = sqlite3_step(*stmt);
    if (rc == SQLITE_DONE) {
        sqlite3_reset(*stmt);
        return STATUS_OK;
    }
    int status = sql__error(sql, rc, err);
    sqlite3_reset(*stmt);
    error_prefix(err, "%s", texts[control]);
    return status;
}
