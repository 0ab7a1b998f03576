/* Tokens in the database (functions with `sql` run in a write transaction), and their text. */
#include "tokens.h"

#include "server/operations/operations.h"
#include <stdlib.h>
#include <string.h>

enum { SWEEP_MAX = 256, ADDRESSES_MAX = 1024 };

static int drop(struct sql *sql, const char *uuid, struct error *err)
{
    int status = sql_exec(sql, err, "DELETE FROM tokens WHERE uuid = ?1", "s", uuid);
    return status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM operations WHERE uuid = ?1", "s", uuid) : status;
}

int token_insert(struct sql *sql, const char *uuid, enum token_kind kind, const char *name, const char *secret, int64_t expires_at_ns, const char *request_json,
                 struct buf *replaced, struct error *err)
{
    char hash[65];
    sha256_hex(secret, strlen(secret), hash);
    if (kind == TOKEN_JOIN) {
        char *old = NULL;
        int status;
        while ((status = sql_get_text(sql, &old, err, "SELECT uuid FROM tokens WHERE kind = ?1 AND name = ?2", "is", (int64_t)kind, name)) == STATUS_OK) {
            if (replaced != NULL) {
                buf_add(replaced, old, strlen(old) + 1);
            }
            status = drop(sql, old, err);
            free(old);
            if (status != STATUS_OK) {
                return status;
            }
        }
        if (status != STATUS_NOT_FOUND) {
            return status;
        }
    }
    return sql_exec(sql, err, "INSERT INTO tokens (uuid, kind, name, secret_sha256, expires_at, request) VALUES (?1, ?2, ?3, ?4, ?5, ?6)", "sissis", uuid, (int64_t)kind,
        name, hash, expires_at_ns, request_json != NULL ? request_json : "");
}

int token_take(struct sql *sql, enum token_kind kind, const char *name, const char *secret, int64_t now_ns, char uuid[37], char **request_json, struct error *err)
{
    char hash[65];
    int64_t expires_ns = 0;
    bool found = false;
    uuid[0] = '\0';
    if (request_json != NULL) {
        *request_json = NULL;
    }
    if (str_empty(secret)) {
        return error_set(err, STATUS_NOT_FOUND, "no such token");
    }
    sha256_hex(secret, strlen(secret), hash); /* compared as hashes: timing tells nothing of the secret */
    struct sql_stmt *s = sql_query(sql, "SELECT uuid, expires_at, request FROM tokens WHERE kind = ?1 AND secret_sha256 = ?2 AND (?3 IS NULL OR name = ?3)", "iss",
        (int64_t)kind, hash, name);
    if (sql_next(s)) {
        found = true;
        snprintf(uuid, 37, "%s", sql_text(s, 0));
        expires_ns = sql_int(s, 1);
        if (request_json != NULL) {
            *request_json = xstrdup(sql_text(s, 2));
        }
    }
    int status = sql_done(s, err);
    if (status == STATUS_OK && !found) {
        return error_set(err, STATUS_NOT_FOUND, "no such token");
    }
    if (status == STATUS_OK) {
        status = drop(sql, uuid, err);
    }
    if (status == STATUS_OK && expires_ns != 0 && expires_ns <= now_ns) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Token has expired");
    }
    return status;
}

/* ---- expiry ---- */

struct sweep {
    char uuids[SWEEP_MAX][37];
    size_t count;
    int64_t now_ns;
};

static int find_expired(struct sql *sql, void *ud, struct error *err)
{
    struct sweep *sweep = ud;
    sweep->count = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT uuid FROM tokens WHERE expires_at <> 0 AND expires_at <= ?1 LIMIT 256", "i", sweep->now_ns);
    while (sql_next(s) && sweep->count < SWEEP_MAX) {
        snprintf(sweep->uuids[sweep->count++], 37, "%s", sql_text(s, 0));
    }
    return sql_done(s, err);
}

static int drop_expired(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct sweep *sweep = ud;
    int status = STATUS_OK;
    for (size_t i = 0; i < sweep->count && status == STATUS_OK; i++) {
        status = drop(sql, sweep->uuids[i], err);
    }
    return status;
}

void tokens_sweep(struct daemon *daemon)
{
    struct sweep *sweep = xcalloc(1, sizeof *sweep);
    struct error err = ERROR_INIT;
    sweep->now_ns = time_unix_ns();
    int status = daemon_read(daemon, DB_LOCAL, find_expired, sweep, NULL, &err);
    if (status == STATUS_OK && sweep->count > 0) { /* an idle cluster writes nothing; more than SWEEP_MAX wait for the next sweep */
        status = daemon_write(daemon, NULL, drop_expired, sweep, NULL, NULL, NULL, &err);
        for (size_t i = 0; i < sweep->count && status == STATUS_OK; i++) {
            op_token_ended(sweep->uuids[i], OP_CANCELLED);
        }
    }
    if (status != STATUS_OK) {
        log_info("tokens.sweep", "error=\"%s\"", err.text);
    }
    free(sweep);
}

/* ---- text ---- */

static char *member_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return xstrdup(text != NULL ? text : "");
}

bool token_decode(const char *text, struct token_text *out)
{
    size_t len = 0;
    memset(out, 0, sizeof *out);
    uint8_t *bytes = !str_empty(text) ? base64_decode(text, &len) : NULL;
    json_t *object = bytes != NULL ? json_loadb((const char *)bytes, len, 0, NULL) : NULL;
    const json_t *addresses = json_object_get(object, "addresses");
    bool join = json_is_string(json_object_get(object, "server_name")), client = json_is_string(json_object_get(object, "client_name"));
    bool ok = json_is_object(object) && (join || client) && json_is_string(json_object_get(object, "secret")) && json_array_size(addresses) <= ADDRESSES_MAX;
    if (ok) {
        out->join = join;
        out->name = member_text(object, join ? "server_name" : "client_name");
        out->fingerprint = member_text(object, "fingerprint");
        out->secret = member_text(object, "secret");
        out->addresses = xcalloc(json_array_size(addresses) + 1, sizeof *out->addresses);
        size_t count = 0;
        for (size_t i = 0; i < json_array_size(addresses); i++) {
            const char *address = json_string_value(json_array_get(addresses, i));
            if (address != NULL) {
                out->addresses[count++] = xstrdup(address);
            }
        }
        ok = out->secret[0] != '\0' && (!join || out->name[0] != '\0');
    }
    json_decref(object);
    free(bytes);
    if (!ok) {
        token_text_free(out);
    }
    return ok;
}

void token_text_free(struct token_text *token)
{
    for (char **address = token->addresses; address != NULL && *address != NULL; address++) {
        free(*address);
    }
    free(token->addresses);
    free(token->name);
    free(token->fingerprint);
    free(token->secret);
    memset(token, 0, sizeof *token);
}
