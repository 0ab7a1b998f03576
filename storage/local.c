/* The local database of a member: see local.h. One connection behind one mutex; every write is durable when it returns.
 * Values of keys are remembered, because some are read with every request; any write forgets them all. Thread: any. */
#include "local.h"
#include "db_private.h"
#include <uthash.h>

struct known { /* a key that was read */
    char *key, *value; /* value NULL: not set */
    UT_hash_handle hh;
};

struct local_db {
    pthread_mutex_t lock; /* the rest */
    struct sql *sql;
    struct known *known[2]; /* by enum key_table */
};

static void known_forget(struct local_db *local)
{
    struct known *one, *next;
    for (size_t i = 0; i < sizeof local->known / sizeof *local->known; i++) {
        HASH_ITER(hh, local->known[i], one, next) {
            HASH_DEL(local->known[i], one);
            free(one->key);
            free(one->value);
            free(one);
        }
    }
}

int local_db_open(const char *dir, struct local_db **out, struct error *err)
{
    *out = NULL;
    struct sql *sql = NULL;
    char *path = xasprintf("%s/local.db", dir);
    int status = dir_make(dir, 0700, err);
    if (status == STATUS_OK)
        status = sql_open(path, SQL_CREATE, &sql, err);
    if (status == STATUS_OK)
        status = sql_exec(sql, err, "PRAGMA synchronous=FULL", "");
    if (status == STATUS_OK)
        status = sql__control(sql, SQL_BEGIN_WRITE, err);
    if (status == STATUS_OK)
        status = sql_script(sql, schema__local, err);
    if (status == STATUS_OK)
        status = sql__control(sql, SQL_COMMIT, err);
    if (status != STATUS_OK) {
        error_prefix(err, "Local database \"%s\"", path);
        sql_close(sql);
        free(path);
        return status;
    }
    free(path);
    struct local_db *local = xcalloc(1, sizeof *local);
    local->sql = sql;
    pthread_mutex_init(&local->lock, NULL);
    *out = local;
    return STATUS_OK;
}

void local_db_close(struct local_db *local)
{
    if (!local)
        return;
    known_forget(local);
    sql_close(local->sql);
    pthread_mutex_destroy(&local->lock);
    free(local);
}

/* The two key tables differ in their name only. */
enum key_table { KEY_CONFIG, KEY_STATE };

static char *key_get(struct local_db *local, enum key_table table, const char *key)
{
    static const char *const texts[] = {"SELECT value FROM config WHERE key = ?1", "SELECT value FROM state WHERE key = ?1"};
    struct error err = ERROR_INIT;
    struct known *known;
    int status = STATUS_OK;
    pthread_mutex_lock(&local->lock);
    HASH_FIND_STR(local->known[table], key, known);
    if (known == NULL) {
        char *value = NULL;
        status = sql_get_text(local->sql, &value, &err, texts[table], "s", key);
        if (status == STATUS_OK || status == STATUS_NOT_FOUND) {
            known = xcalloc(1, sizeof *known);
            known->key = xstrdup(key);
            known->value = value;
            HASH_ADD_KEYPTR(hh, local->known[table], known->key, strlen(known->key), known);
            status = STATUS_OK;
        }
    }
    char *copy = known != NULL && known->value != NULL ? xstrdup(known->value) : NULL;
    pthread_mutex_unlock(&local->lock);
    if (status != STATUS_OK)
        log_error("local.get", "key=%s error=\"%s\"", key, err.text);
    return copy;
}

static int key_set(struct local_db *local, enum key_table table, const char *key, const char *value, struct error *err)
{
    static const char *const removes[] = {"DELETE FROM config WHERE key = ?1", "DELETE FROM state WHERE key = ?1"};
    static const char *const sets[] = {
        "INSERT INTO config (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
        "INSERT INTO state (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
    };
    pthread_mutex_lock(&local->lock);
    known_forget(local);
    int status = str_empty(value) ? sql_exec(local->sql, err, removes[table], "s", key) : sql_exec(local->sql, err, sets[table], "ss", key, value);
    pthread_mutex_unlock(&local->lock);
    return status;
}

char *local_config_get(struct local_db *local, const char *key) { return key_get(local, KEY_CONFIG, key); }
char *local_state_get(struct local_db *local, const char *key) { return key_get(local, KEY_STATE, key); }

int local_config_set(struct local_db *local, const char *key, const char *value, struct error *err)
{
    return key_set(local, KEY_CONFIG, key, value, err);
}

int local_state_set(struct local_db *local, const char *key, const char *value, struct error *err)
{
    return key_set(local, KEY_STATE, key, value, err);
}

int local_state_put(struct sql *sql, const char *key, const char *value, struct error *err)
{
    return str_empty(value) ? sql_exec(sql, err, "DELETE FROM state WHERE key = ?1", "s", key)
                            : sql_exec(sql, err, "INSERT INTO state (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2", "ss", key, value);
}

int local_db_transaction(struct local_db *local, int (*fn)(struct sql *sql, void *ud, struct error *err), void *ud, struct error *err)
{
    struct error rollback = ERROR_INIT;
    pthread_mutex_lock(&local->lock);
    known_forget(local);
    int status = sql__control(local->sql, SQL_BEGIN_WRITE, err);
    if (status == STATUS_OK) {
        status = fn(local->sql, ud, err);
        if (status == STATUS_OK)
            status = sql__control(local->sql, SQL_COMMIT, err);
        if (!sqlite3_get_autocommit(sql_handle(local->sql)) && sql__control(local->sql, SQL_ROLLBACK, &rollback) != STATUS_OK)
            core_panic(__FILE__, __LINE__, "local database: %s", rollback.text);
    }
    pthread_mutex_unlock(&local->lock);
    return status;
}

struct list { const void *items; size_t count; };

static int keys_write(struct sql *sql, void *ud, struct error *err)
{
    const struct list *list = ud;
    const struct local_key *keys = list->items;
    int status = STATUS_OK;
    for (size_t i = 0; i < list->count && status == STATUS_OK; i++)
        status = str_empty(keys[i].value) ? sql_exec(sql, err, "DELETE FROM state WHERE key = ?1", "s", keys[i].key)
                                          : sql_exec(sql, err, "INSERT INTO state (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2", "ss",
                                                     keys[i].key, keys[i].value);
    return status;
}

int local_state_set_all(struct local_db *local, const struct local_key *keys, size_t count, struct error *err)
{
    struct list list = {keys, count};
    return local_db_transaction(local, keys_write, &list, err);
}

/* ---- raft_nodes ---- */
void local_raft_nodes_free(struct local_raft_node *nodes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(nodes[i].address);
        free(nodes[i].name);
    }
    free(nodes);
}

int local_raft_nodes_get(struct local_db *local, struct local_raft_node **nodes, size_t *count, struct error *err)
{
    *nodes = NULL;
    *count = 0;
    pthread_mutex_lock(&local->lock);
    struct sql_stmt *stmt = sql_query(local->sql, "SELECT id, address, role, name FROM raft_nodes ORDER BY id", "");
    while (sql_next(stmt)) {
        *nodes = xrealloc(*nodes, (*count + 1) * sizeof **nodes);
        (*nodes)[(*count)++] = (struct local_raft_node){.id = (uint64_t)sql_int(stmt, 0), .address = xstrdup(sql_text(stmt, 1)),
                                                        .role = (int)sql_int(stmt, 2), .name = xstrdup(sql_text(stmt, 3))};
    }
    int status = sql_done(stmt, err);
    pthread_mutex_unlock(&local->lock);
    if (status != STATUS_OK) {
        local_raft_nodes_free(*nodes, *count);
        *nodes = NULL;
        *count = 0;
    }
    return status;
}

static int raft_nodes_write(struct sql *sql, void *ud, struct error *err)
{
    const struct list *list = ud;
    const struct local_raft_node *nodes = list->items;
    int status = sql_exec(sql, err, "DELETE FROM raft_nodes", "");
    for (size_t i = 0; i < list->count && status == STATUS_OK; i++)
        status = sql_exec(sql, err, "INSERT INTO raft_nodes (id, address, role, name) VALUES (?1, ?2, ?3, ?4)", "isis", (int64_t)nodes[i].id,
                          nodes[i].address, (int64_t)nodes[i].role, nodes[i].name ? nodes[i].name : "");
    return status;
}

int local_raft_nodes_put(struct sql *sql, const struct local_raft_node *nodes, size_t count, struct error *err)
{
    struct list list = {nodes, count};
    return raft_nodes_write(sql, &list, err);
}

int local_raft_nodes_replace(struct local_db *local, const struct local_raft_node *nodes, size_t count, struct error *err)
{
    struct list list = {nodes, count};
    return local_db_transaction(local, raft_nodes_write, &list, err);
}

/* ---- certificates ---- */
void local_certificates_free(struct local_certificate *certs, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        free(certs[i].name);
        free(certs[i].pem);
    }
    free(certs);
}

int local_certificates_get(struct local_db *local, struct local_certificate **certs, size_t *count, struct error *err)
{
    *certs = NULL;
    *count = 0;
    pthread_mutex_lock(&local->lock);
    struct sql_stmt *stmt = sql_query(local->sql, "SELECT fingerprint, name, certificate FROM certificates WHERE type = 2 ORDER BY id", "");
    while (sql_next(stmt)) {
        *certs = xrealloc(*certs, (*count + 1) * sizeof **certs);
        struct local_certificate *cert = &(*certs)[(*count)++];
        *cert = (struct local_certificate){.name = xstrdup(sql_text(stmt, 1)), .pem = xstrdup(sql_text(stmt, 2))};
        snprintf(cert->fingerprint, sizeof cert->fingerprint, "%s", sql_text(stmt, 0));
    }
    int status = sql_done(stmt, err);
    pthread_mutex_unlock(&local->lock);
    if (status != STATUS_OK) {
        local_certificates_free(*certs, *count);
        *certs = NULL;
        *count = 0;
    }
    return status;
}

static int certificates_write(struct sql *sql, void *ud, struct error *err)
{
    const struct list *list = ud;
    const struct local_certificate *certs = list->items;
    int status = sql_exec(sql, err, "DELETE FROM certificates WHERE type = 2", "");
    for (size_t i = 0; i < list->count && status == STATUS_OK; i++)
        status = sql_exec(sql, err, "INSERT INTO certificates (fingerprint, type, name, certificate) VALUES (?1, 2, ?2, ?3)", "sss",
                          certs[i].fingerprint, certs[i].name, certs[i].pem);
    return status;
}

int local_certificates_replace(struct local_db *local, const struct local_certificate *certs, size_t count, struct error *err)
{
    struct list list = {certs, count};
    return local_db_transaction(local, certificates_write, &list, err);
}

/* fn may open a transaction; one that it leaves open is rolled back, for the next caller's sake. */
int local_db_with(struct local_db *local, int (*fn)(struct sql *sql, void *ud, struct error *err), void *ud, struct error *err)
{
    struct error rollback = ERROR_INIT;
    pthread_mutex_lock(&local->lock);
    known_forget(local);
    int status = fn(local->sql, ud, err);
    sql__reset(local->sql);
    if (!sqlite3_get_autocommit(sql_handle(local->sql))) {
        if (sql__control(local->sql, SQL_ROLLBACK, &rollback) != STATUS_OK)
            core_panic(__FILE__, __LINE__, "local database: %s", rollback.text);
        if (status == STATUS_OK)
            status = error_set(err, STATUS_FAILED_PRECONDITION, "The transaction was left open and is rolled back");
    }
    pthread_mutex_unlock(&local->lock);
    return status;
}
