/* The schema of the replicated database: its steps, their book (`schema`) and the place in the log (`applied`).
 *
 * `applied` has one row, the revision; it is written with every transaction that an entry makes, never by rows. Because
 * void and digest entries do not touch it, it is the same on every replica in the same state and belongs to the digest.
 * Steps run on the replay connection of every replica alike: foreign keys and triggers off, as SQLite advises for
 * rebuilding tables; afterwards the keys are checked. Thread: the one that has the connection. */
#include "db_private.h"

enum { SCHEMA_BUMP_MAX = 100 };

/* Steps of tests, beyond the real ones. */
static int bump(void)
{
    int64_t count = 0;
    const char *text = getenv("COVEY_TEST_SCHEMA_LEVEL_BUMP");
    return text && parse_i64(text, 0, SCHEMA_BUMP_MAX, &count) == 0 ? (int)count : 0;
}

struct schema_step schema_step(int version)
{
    static _Thread_local char text[80];
    covey_assert(version >= 1 && version <= db_schema_version());
    if (version <= (int)schema__step_count)
        return schema__steps[version - 1];
    snprintf(text, sizeof text, "CREATE TABLE test_level_%d (id INTEGER PRIMARY KEY NOT NULL)", version);
    return (struct schema_step){"test", getenv("COVEY_TEST_SCHEMA_INCOMPATIBLE") == NULL, text};
}

int db_schema_version(void)
{
    return (int)schema__step_count + bump();
}

int db_schema_floor(void)
{
    int version = db_schema_version();
    while (version > 1 && schema_step(version).additive)
        version--;
    return version;
}

void db_schema_allow(struct db *db, int version)
{
    pthread_mutex_lock(&db->lock);
    int known = db_schema_version();
    db->schema_allowed = version < known ? version : known;
    pthread_cond_signal(&db->work);
    pthread_mutex_unlock(&db->lock);
}

int db_schema_check(struct db *db, struct error *err)
{
    pthread_mutex_lock(&db->lock);
    int version = db->schema_version, known = db_schema_version();
    pthread_mutex_unlock(&db->lock);
    return version <= known ? STATUS_OK
                            : error_set(err, STATUS_FAILED_PRECONDITION, "schema version '%d' is more recent than expected '%d'", version, known);
}

int schema_create(struct sql *sql, struct error *err)
{
    return sql_script(sql,
        "BEGIN IMMEDIATE;"
        "CREATE TABLE applied (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL);"
        "INSERT INTO applied (id, revision) VALUES (1, 0);"
        "CREATE TABLE schema (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, version INTEGER NOT NULL UNIQUE,"
        " updated_at INTEGER NOT NULL);"
        "COMMIT", err);
}

int schema_current(struct sql *sql, int *version, struct error *err)
{
    int64_t value = 0;
    int status = sql_get_int(sql, &value, err, "SELECT coalesce(max(version), 0) FROM schema", "");
    *version = (int)value;
    return status;
}

int schema_run(struct sql *sql, int version, const char *text, size_t len, int64_t time_ns, struct error *err)
{
    struct buf script = {0};
    buf_add(&script, text, len); /* the buffer ends it with NUL */
    int status = sql_script(sql, script.data ? script.data : "", err);
    buf_free(&script);
    if (status == STATUS_OK && sqlite3_get_autocommit(sql_handle(sql)))
        status = error_set(err, STATUS_INTERNAL, "it ends the transaction");
    if (status == STATUS_OK)
        status = sql_exec(sql, err, "INSERT INTO schema (version, updated_at) VALUES (?1, ?2)", "ii", (int64_t)version, time_ns);
    if (status == STATUS_OK) {
        struct sql_stmt *stmt = sql_query(sql, "SELECT \"table\", parent FROM pragma_foreign_key_check", "");
        if (sql_next(stmt))
            status = error_set(err, STATUS_FAILED_PRECONDITION, "a row of table \"%s\" refers to nothing in \"%s\"",
                               sql_text(stmt, 0), sql_text(stmt, 1));
        int done = sql_done(stmt, status == STATUS_OK ? err : NULL);
        status = status == STATUS_OK ? done : status;
    }
    if (status == STATUS_OK) { /* every table must be one that can be captured */
        struct catalog catalog;
        status = catalog_load(sql, &catalog, err);
        if (status == STATUS_OK)
            catalog_free(&catalog);
    }
    if (status != STATUS_OK)
        error_prefix(err, "Schema step %d", version);
    return status;
}

int applied_get(struct sql *sql, uint64_t *revision, struct error *err)
{
    int64_t value = 0;
    int status = sql_get_int(sql, &value, err, "SELECT revision FROM applied", "");
    *revision = (uint64_t)value;
    return status;
}

int applied_set(struct sql *sql, uint64_t revision, struct error *err)
{
    return sql_exec(sql, err, "UPDATE applied SET revision = ?1", "i", (int64_t)revision);
}
