/* covey.internal.v1.Admin: readiness, shutdown, SQL, status, for administrators of this member. */
#include "route.h"

#include "server/cluster/cluster.h"
#include "state.h"
#include "stopping.h"
#include "covey/internal/v1/admin.pb-c.h"
#include <ctype.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SQL_ROWS_MAX = 100000, SQL_STATEMENTS_MAX = 1000 };

static int ready(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    static const char *const texts[] = {[DAEMON_STARTING] = "LXD daemon not ready yet", [DAEMON_BLOCKED] = DAEMON_BLOCKED_TEXT, [DAEMON_STOPPING] = "LXD is shutting down"};
    enum daemon_phase now = daemon_phase();
    return now == DAEMON_READY ? STATUS_OK : error_set(err, STATUS_UNAVAILABLE, "%s", texts[now]);
}

static int shutdown_daemon(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__ShutdownRequest *request = (const Covey__Internal__V1__ShutdownRequest *)message;
    if (stop_ask(request->force, request->keep_instances, err) != STATUS_OK) {
        return err->code;
    }
    Covey__Internal__V1__ShutdownResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
    covey__internal__v1__shutdown_response__init(out);
    out->pid = getpid();
    *response = &out->base;
    kill(getpid(), SIGTERM); /* main waits for it */
    return STATUS_OK;
}

struct gathered {
    struct raft_node_status status;
    bool want_digest;
    char digest[65];
    uint64_t digest_revision;
};

static int gather(struct db *db, void *ud, struct error *err)
{
    struct gathered *g = ud;
    int status = raft_node_status(db_raft(db), &g->status, err);
    return status == STATUS_OK && g->want_digest ? db_digest(db, g->digest, &g->digest_revision, err) : status;
}

static int get_status(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    static const char *const names[] = {[RAFT_NODE_STANDBY] = "stand-by", [RAFT_NODE_VOTER] = "voter", [RAFT_NODE_SPARE] = "spare"};
    struct arena *arena = rpc_arena(call);
    int role = state_raft_role(daemon_id(the_daemon));
    bool replica = role == ROLE_VOTER || role == ROLE_STANDBY; /* a spare has no state to digest */
    struct gathered g = {.want_digest = replica && ((const Covey__Internal__V1__StatusRequest *)message)->digest};
    if (state_with_db(the_daemon, gather, &g, err) != STATUS_OK) {
        raft_node_status_free(&g.status);
        return err->code;
    }
    Covey__Internal__V1__StatusResponse *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__status_response__init(out);
    out->id = daemon_id(the_daemon);
    out->term = g.status.term;
    out->leader_id = g.status.leader_id;
    out->leader = g.status.leader;
    out->last_index = g.status.last_index;
    out->commit_index = g.status.commit_index;
    out->applied_index = g.status.applied_index;
    out->snapshot_index = g.status.snapshot_index;
    out->log_bytes = g.status.log_bytes;
    out->digest = arena_strdup(arena, g.digest);
    out->digest_revision = g.digest_revision;
    out->servers = arena_alloc(arena, (g.status.server_count + 1) * sizeof *out->servers);
    for (size_t i = 0; i < g.status.server_count; i++) {
        Covey__Internal__V1__RaftServer *server = arena_alloc(arena, sizeof *server);
        covey__internal__v1__raft_server__init(server);
        server->id = g.status.servers[i].id;
        server->role = (char *)names[g.status.servers[i].role];
        out->servers[out->n_servers++] = server;
    }
    raft_node_status_free(&g.status);
    *response = &out->base;
    return STATUS_OK;
}

/* ---- SQL ---- */

struct sql_work {
    struct arena *arena;
    const char *statement; /* one */
    Covey__Internal__V1__SqlResult *result;
    Covey__Internal__V1__SqlResponse *dump;
    bool schema_only;
};

static Covey__Internal__V1__SqlValue *value_of(struct arena *arena, sqlite3_stmt *stmt, int column)
{
    Covey__Internal__V1__SqlValue *value = arena_alloc(arena, sizeof *value);
    covey__internal__v1__sql_value__init(value);
    switch (sqlite3_column_type(stmt, column)) {
    case SQLITE_INTEGER:
        value->kind_case = COVEY__INTERNAL__V1__SQL_VALUE__KIND_INTEGER;
        value->integer = sqlite3_column_int64(stmt, column);
        break;
    case SQLITE_FLOAT:
        value->kind_case = COVEY__INTERNAL__V1__SQL_VALUE__KIND_REAL;
        value->real = sqlite3_column_double(stmt, column);
        break;
    case SQLITE_TEXT:
        value->kind_case = COVEY__INTERNAL__V1__SQL_VALUE__KIND_TEXT;
        value->text = arena_strdup(arena, (const char *)sqlite3_column_text(stmt, column));
        break;
    case SQLITE_BLOB:
        value->kind_case = COVEY__INTERNAL__V1__SQL_VALUE__KIND_BLOB;
        value->blob.len = (size_t)sqlite3_column_bytes(stmt, column);
        value->blob.data = arena_memdup(arena, sqlite3_column_blob(stmt, column), value->blob.len);
        break;
    default:
        value->kind_case = COVEY__INTERNAL__V1__SQL_VALUE__KIND_NULL;
        value->null = true;
        break;
    }
    return value;
}

static bool is_select(const char *text)
{
    text += strspn(text, " \t\r\n");
    return strncasecmp(text, "select", 6) == 0;
}

static int fetch_rows(sqlite3 *db, sqlite3_stmt *stmt, struct sql_work *work, struct error *err)
{
    Covey__Internal__V1__SqlResult *result = work->result;
    int columns = sqlite3_column_count(stmt), rc;
    size_t capacity = 0;
    result->type = "select";
    result->columns = arena_alloc(work->arena, ((size_t)columns + 1) * sizeof *result->columns);
    for (int i = 0; i < columns; i++) {
        result->columns[result->n_columns++] = arena_strdup(work->arena, sqlite3_column_name(stmt, i));
    }
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        if (result->n_rows == SQL_ROWS_MAX) {
            return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d rows", SQL_ROWS_MAX);
        }
        if (result->n_rows == capacity) {
            capacity = capacity > 0 ? capacity * 2 : 64;
            Covey__Internal__V1__SqlRow **grown = arena_alloc(work->arena, capacity * sizeof *grown);
            if (result->n_rows > 0) {
                memcpy(grown, result->rows, result->n_rows * sizeof *grown);
            }
            result->rows = grown;
        }
        Covey__Internal__V1__SqlRow *row = arena_alloc(work->arena, sizeof *row);
        covey__internal__v1__sql_row__init(row);
        row->values = arena_alloc(work->arena, ((size_t)columns + 1) * sizeof *row->values);
        for (int i = 0; i < columns; i++) {
            row->values[row->n_values++] = value_of(work->arena, stmt, i);
        }
        result->rows[result->n_rows++] = row;
    }
    return rc == SQLITE_DONE ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Failed to execute query: %s", sqlite3_errmsg(db));
}

static const char *skip_comments(const char *text)
{
    for (;;) {
        text += strspn(text, " \t\r\n\f;");
        if (strncmp(text, "--", 2) == 0) {
            text += strcspn(text, "\n");
        } else if (strncmp(text, "/*", 2) == 0) {
            const char *end = strstr(text + 2, "*/");
            text = end != NULL ? end + 2 : text + strlen(text);
        } else {
            return text;
        }
    }
}

/* Transactions are ours: a statement that begins or ends one would break the state machine's. */
static bool touches_transaction(sqlite3_stmt *stmt)
{
    static const char *const words[] = {"begin", "commit", "end", "rollback", "savepoint", "release", "attach", "detach", "vacuum"};
    const char *text = skip_comments(sqlite3_sql(stmt));
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i]);
        if (strncasecmp(text, words[i], n) == 0 && !isalnum((unsigned char)text[n])) {
            return true;
        }
    }
    return false;
}

static int run_statement(struct sql *sql, void *ud, struct error *err)
{
    struct sql_work *work = ud;
    sqlite3 *db = sql_handle(sql);
    sqlite3_stmt *stmt = NULL;
    bool select = is_select(work->statement);
    const char *what = select ? "Failed to execute query" : "Failed to exec query";
    if (sqlite3_prepare_v2(db, work->statement, -1, &stmt, NULL) != SQLITE_OK) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "%s: %s", what, sqlite3_errmsg(db));
    }
    int status = STATUS_OK;
    if (touches_transaction(stmt)) {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "%s: each statement is a transaction of its own", what);
    } else if (select) {
        status = fetch_rows(db, stmt, work, err);
    } else {
        int before = sqlite3_total_changes(db), rc;
        while ((rc = sqlite3_step(stmt)) == SQLITE_ROW) {
        }
        work->result->type = "exec";
        work->result->rows_affected = sqlite3_total_changes(db) - before > 0 ? sqlite3_changes(db) : 0;
        if (rc != SQLITE_DONE) {
            status = error_set(err, STATUS_INVALID_ARGUMENT, "%s: %s", what, sqlite3_errmsg(db));
        }
    }
    sqlite3_finalize(stmt);
    return status;
}

static int run_statement_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return run_statement(sql, ud, err);
}

static void dump_value(sqlite3_stmt *rows, int column, int type, struct buf *text)
{
    if (type == SQLITE_NULL) {
        buf_puts(text, "NULL");
    } else if (type == SQLITE_BLOB) {
        size_t len = (size_t)sqlite3_column_bytes(rows, column);
        char *hex = xmalloc(2 * len + 1);
        hex_encode(sqlite3_column_blob(rows, column), len, hex);
        buf_printf(text, "X'%s'", len > 0 ? hex : "");
        free(hex);
    } else {
        char *quoted = sqlite3_mprintf(type == SQLITE_TEXT ? "%Q" : "%s", sqlite3_column_text(rows, column));
        buf_puts(text, quoted != NULL ? quoted : "NULL");
        sqlite3_free(quoted);
    }
}

static int dump_others(struct sql *sql, struct buf *text, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT sql FROM sqlite_master WHERE type <> 'table' AND sql IS NOT NULL ORDER BY rowid", "");
    while (sql_next(s)) {
        buf_printf(text, "%s;\n", sql_text(s, 0));
    }
    return sql_done(s, err);
}

static int dump_tables(struct sql *sql, void *ud, struct error *err)
{
    struct sql_work *work = ud;
    struct buf text = {0};
    struct error failed = ERROR_INIT;
    buf_puts(&text, "PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n");
    struct sql_stmt *s = sql_query(sql, "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid", "");
    while (sql_next(s)) {
        buf_printf(&text, "%s;\n", sql_text(s, 1));
        if (work->schema_only) {
            continue;
        }
        sqlite3_stmt *rows = NULL;
        char *query = xasprintf("SELECT * FROM \"%s\"", sql_text(s, 0));
        int rc = sqlite3_prepare_v2(sql_handle(sql), query, -1, &rows, NULL);
        if (rc == SQLITE_OK) {
            while ((rc = sqlite3_step(rows)) == SQLITE_ROW) {
                buf_printf(&text, "INSERT INTO %s VALUES(", sql_text(s, 0));
                for (int i = 0; i < sqlite3_column_count(rows); i++) {
                    int type = sqlite3_column_type(rows, i);
                    buf_puts(&text, i > 0 ? "," : "");
                    dump_value(rows, i, type, &text);
                }
                buf_puts(&text, ");\n");
            }
        }
        if (rc != SQLITE_DONE && failed.code == STATUS_OK) {
            error_set(&failed, STATUS_INTERNAL, "Cannot dump table %s: %s", sql_text(s, 0), sqlite3_errmsg(sql_handle(sql)));
        }
        sqlite3_finalize(rows);
        free(query);
    }
    int status = sql_done(s, err);
    if (status == STATUS_OK && failed.code != STATUS_OK) { /* a part of a dump is none */
        status = error_set(err, failed.code, "%s", failed.text);
    }
    status = status == STATUS_OK ? dump_others(sql, &text, err) : status;
    buf_puts(&text, "COMMIT;\n");
    work->dump->text = arena_strdup(work->arena, text.data);
    buf_free(&text);
    return status;
}

static int sync_dump(struct db *db, void *ud, struct error *err)
{
    char *path = xasprintf("%s/database/global/db.bin", the_daemon->dir);
    int status = db_dump_file(db, path, err);
    free(path);
    return status;
}

static int one_statement(struct rpc_call *call, bool global, unsigned number, struct sql_work *work, struct error *err)
{
    char step[24];
    snprintf(step, sizeof step, "sql%u", number);
    if (!global) {
        return local_db_with(the_daemon->local, run_statement, work, err);
    }
    if (is_select(work->statement)) {
        return daemon_read(the_daemon, DB_LINEARIZABLE, run_statement, work, NULL, err);
    }
    int status = daemon_write_call(call, step, run_statement_write, work, NULL, NULL, err);
    controller_wake(true);
    return status;
}

static int run_sql(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    bool global = strcmp(rpc_call_method(call)->name, "SqlGlobal") == 0;
    struct arena *arena = rpc_arena(call);
    char *query = arena_strdup(arena, ((const Covey__Internal__V1__SqlRequest *)message)->query);
    Covey__Internal__V1__SqlResponse *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__sql_response__init(out);
    *response = &out->base;
    query += strspn(query, " \t\r\n;");
    struct sql_work work = {.arena = arena, .dump = out, .schema_only = strcmp(query, ".schema") == 0};
    if (*query == '\0') {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No query provided");
    }
    if (work.schema_only || strcmp(query, ".dump") == 0) {
        return global ? daemon_read(the_daemon, DB_LINEARIZABLE, dump_tables, &work, NULL, err) : local_db_with(the_daemon->local, dump_tables, &work, err);
    }
    if (strcmp(query, ".sync") == 0) {
        return global ? state_with_db(the_daemon, sync_dump, NULL, err) : error_set(err, STATUS_INVALID_ARGUMENT, "Nothing to sync in the local database");
    }
    out->results = arena_alloc(arena, SQL_STATEMENTS_MAX * sizeof *out->results);
    for (char *at = query; *at != '\0'; at += strspn(at, " \t\r\n;")) {
        if (out->n_results == SQL_STATEMENTS_MAX) {
            return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d statements", SQL_STATEMENTS_MAX);
        }
        /* SQLite's own lexer says where a statement ends: grow to each ';' until it is complete. */
        char *end = at, *statement = NULL;
        do {
            end = strchr(end, ';');
            end = end != NULL ? end + 1 : at + strlen(at);
            statement = arena_strndup(arena, at, (size_t)(end - at));
        } while (*end != '\0' && !sqlite3_complete(statement));
        work.statement = statement;
        work.result = arena_alloc(arena, sizeof *work.result);
        covey__internal__v1__sql_result__init(work.result);
        out->results[out->n_results] = work.result;
        if (one_statement(call, global, (unsigned)out->n_results, &work, err) != STATUS_OK) {
            return err->code;
        }
        out->n_results++;
        at = end;
        if (*at == '\0') {
            break;
        }
    }
    return STATUS_OK;
}

/* ---- the REST face ---- */

/* Runs a query as the local or global method does, wherever that is. */
static int plain_sql(struct rpc_call *call, const char *database, const char *query, Covey__Internal__V1__SqlResponse **out, struct error *err)
{
    enum caller_class class = rpc_caller(call)->class;
    bool global = str_eq(database, "global");
    if (class != CALLER_LOCAL_ADMIN && class != CALLER_MEMBER) {
        return error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
    }
    if (!global && !str_eq(database, "local")) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid database");
    }
    struct rpc_channel *channel = member_channel(the_daemon, daemon_id(the_daemon), err);
    if (channel == NULL) {
        return err->code;
    }
    Covey__Internal__V1__SqlRequest request = COVEY__INTERNAL__V1__SQL_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.on_behalf_of = call, .request_id = rpc_request_id(call)};
    request.query = (char *)query;
    int status = rpc_unary(channel, "covey.internal.v1.Admin", global ? "SqlGlobal" : "SqlLocal", &request.base, &response, rpc_arena(call), &options, err);
    rpc_channel_unref(channel);
    *out = (Covey__Internal__V1__SqlResponse *)response;
    return status;
}

static int get_sql(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__GetSqlRequest *request = (const Covey__Internal__V1__GetSqlRequest *)message;
    Covey__Internal__V1__SqlResponse *answer = NULL;
    int status = plain_sql(call, request->database, request->schema != 0 ? ".schema" : ".dump", &answer, err);
    if (status == STATUS_OK) {
        Covey__Internal__V1__GetSqlResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
        covey__internal__v1__get_sql_response__init(out);
        out->text = answer->text;
        *response = &out->base;
    }
    return status;
}

static Google__Protobuf__Value *plain_value(struct arena *arena, const Covey__Internal__V1__SqlValue *from)
{
    Google__Protobuf__Value *value = arena_alloc(arena, sizeof *value);
    google__protobuf__value__init(value);
    switch (from->kind_case) {
    case COVEY__INTERNAL__V1__SQL_VALUE__KIND_INTEGER:
    case COVEY__INTERNAL__V1__SQL_VALUE__KIND_REAL:
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NUMBER_VALUE;
        value->number_value = from->kind_case == COVEY__INTERNAL__V1__SQL_VALUE__KIND_REAL ? from->real : (double)from->integer;
        break;
    case COVEY__INTERNAL__V1__SQL_VALUE__KIND_TEXT:
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
        value->string_value = from->text;
        break;
    case COVEY__INTERNAL__V1__SQL_VALUE__KIND_BLOB: {
        char *text = base64_encode(from->blob.data, from->blob.len);
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE;
        value->string_value = arena_strdup(arena, text);
        free(text);
        break;
    }
    default:
        value->kind_case = GOOGLE__PROTOBUF__VALUE__KIND_NULL_VALUE;
    }
    return value;
}

static Covey__Internal__V1__PlainResult *plain_result(struct arena *arena, const Covey__Internal__V1__SqlResult *from)
{
    Covey__Internal__V1__PlainResult *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__plain_result__init(out);
    out->type = from->type;
    out->rows_affected = from->rows_affected;
    if (strcmp(from->type, "select") != 0) {
        return out;
    }
    out->columns = arena_alloc(arena, sizeof *out->columns);
    covey__internal__v1__plain_columns__init(out->columns);
    out->columns->names = from->columns;
    out->columns->n_names = from->n_columns;
    out->rows = arena_alloc(arena, sizeof *out->rows);
    covey__internal__v1__plain_rows__init(out->rows);
    out->rows->rows = arena_alloc(arena, (from->n_rows + 1) * sizeof *out->rows->rows);
    for (size_t i = 0; i < from->n_rows; i++) {
        Google__Protobuf__ListValue *row = arena_alloc(arena, sizeof *row);
        google__protobuf__list_value__init(row);
        row->values = arena_alloc(arena, (from->rows[i]->n_values + 1) * sizeof *row->values);
        for (size_t k = 0; k < from->rows[i]->n_values; k++) {
            row->values[row->n_values++] = plain_value(arena, from->rows[i]->values[k]);
        }
        out->rows->rows[out->rows->n_rows++] = row;
    }
    return out;
}

static int post_sql(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__PostSqlRequest *request = (const Covey__Internal__V1__PostSqlRequest *)message;
    Covey__Internal__V1__SqlResponse *answer = NULL;
    struct arena *arena = rpc_arena(call);
    bool dot = request->query[strspn(request->query, " \t\r\n;")] == '.' && strstr(request->query, ".sync") == NULL;
    int status = dot ? error_set(err, STATUS_INVALID_ARGUMENT, "No query provided") : plain_sql(call, request->database, request->query, &answer, err);
    if (status == STATUS_OK) {
        Covey__Internal__V1__PostSqlResponse *out = arena_alloc(arena, sizeof *out);
        covey__internal__v1__post_sql_response__init(out);
        out->results = arena_alloc(arena, (answer->n_results + 1) * sizeof *out->results);
        for (size_t i = 0; i < answer->n_results; i++) {
            out->results[out->n_results++] = plain_result(arena, answer->results[i]);
        }
        *response = &out->base;
    }
    return status;
}

static const struct rpc_binding bindings[] = {
    {"Ready", ready}, {"Shutdown", shutdown_daemon}, {"SqlLocal", run_sql}, {"SqlGlobal", run_sql}, {"GetSql", get_sql}, {"PostSql", post_sql}, {"Status", get_status},
};

void admin_bind(void)
{
    rpc_bind("covey.internal.v1.Admin", bindings, sizeof bindings / sizeof *bindings, NULL);
}
