/* What the files of the replicated database share; nobody outside storage/ (and its unit tests) includes it.
 *
 * Who may write to global.sqlite is one value, db->turn, guarded by db->lock:
 *   TURN_FREE      nobody; no write transaction is open
 *   TURN_EXECUTOR  the executor thread runs a batch on `exec` (or tries a schema step on `replay`)
 *   TURN_PENDING   `exec` has an open transaction whose entry was proposed; it belongs to the loop, which commits it
 *                  (own entry applied) or rolls it back (abandoned, or another entry changed the state first)
 *   TURN_LOOP      the loop applies an entry or a snapshot on `replay`
 * Two connections, because execution wants foreign keys, triggers, an authorizer and the capture hook, and replay none of
 * them: each keeps its settings and its prepared statements for life, and nothing is toggled between transactions.
 *
 * Every entry that changes the state carries `base`, the revision (index of the last entry with effect) that it was
 * made on. An entry whose base is not the current revision is void on every replica alike. So an entry can never be
 * applied to another state than the one it was executed on, whatever happened to leadership in between. */
#ifndef COVEY_STORAGE_DB_PRIVATE_H
#define COVEY_STORAGE_DB_PRIVATE_H

#include "db.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <uthash.h>

enum {
    DB_KEY_BYTES_MAX = 100,
    DB_REQUEST_BYTES_MAX = 7 << 20,   /* rows of one request; with DB_BATCH_BYTES_MAX below RAFT_ENTRY_BYTES_MAX */
    DB_CHECKPOINT_PAGES = 1000,       /* WAL frames after which a commit copies them back */
    DB_WAL_PAGES_MAX = 16384,         /* WAL frames (64 MiB) after which readers are held back until it is empty */
    DB_DRAIN_TIMEOUT_MS = 1000,       /* how long readers are held back at most */
    DB_DRAIN_RETRY_MS = 1000,
    DB_PURGE_INTERVAL_MS = 1000,
    DB_PURGE_ROWS_MAX = 4096,         /* old request keys removed within one batch */
    DB_DIGESTS_QUEUED_MAX = 4,
    DB_TABLES_MAX = 4096,             /* distinct tables in one entry */
    DB_COLUMNS_MAX = 2000,            /* SQLite's own limit */
    DB_STOP_POLL_MS = 100,            /* how soon a reader that waits for the confirmation sees db_stop */
    DB_CONFIRM_TIMEOUT_MS = RAFT_ELECTION_TIMEOUT_MS * 4, /* twice of what raft_node promises */
};

/* ---- sql.c ---- */
enum sql_control { SQL_BEGIN_WRITE, SQL_BEGIN_READ, SQL_COMMIT, SQL_ROLLBACK, SQL_SAVEPOINT, SQL_RELEASE, SQL_ROLLBACK_TO, SQL_CONTROLS };
/* Transaction statements, apart from the cache, so that no caller's text can reach them. */
int sql__control(struct sql *sql, enum sql_control control, struct error *err);
/* Resets statements that were not given back by sql_done; returns how many were still running. */
int sql__reset(struct sql *sql);
int sql__error(struct sql *sql, int rc, struct error *err); /* SQLite's code and text as ours */
struct sql_observer { /* told about each statement that may write */
    void *ud;
    void (*begin)(void *ud);              /* before its first step */
    void (*fail)(void *ud, bool partial); /* after an error; partial: some of its changes may have stayed */
};
void sql__observe(struct sql *sql, const struct sql_observer *observer); /* borrowed; NULL = none */

/* ---- catalog.c: the tables of a connection's database, as capture, replay and digest need them ---- */
struct table {
    char *name;
    bool without_rowid;
    const char *rowid;             /* a name by which its rowid can be reached (rowid tables) */
    size_t value_count;            /* columns that are stored as given: no generated ones, no alias of the rowid */
    char **value_names;
    int *value_columns;            /* their number among all columns … */
    int *value_storage;            /* … and among the stored ones: SQLite's hooks use either */
    size_t key_count;              /* WITHOUT ROWID: primary key, in its order */
    char **key_names;
    int *key_columns;
    sqlite3_stmt *insert, *update, *move, *remove; /* replay, prepared on demand */
    int slot;                      /* number in the dictionary of the batch being captured, -1 = none */
    UT_hash_handle hh;
};
struct catalog {
    struct sql *sql;
    struct table *tables; /* by name */
};
int catalog_load(struct sql *sql, struct catalog *out, struct error *err);
void catalog_free(struct catalog *catalog);
struct table *catalog_find(struct catalog *catalog, const char *name, size_t len);
void sql_quote(struct buf *out, const char *name); /* as an SQL identifier */

/* ---- schema.c ---- */
struct schema_step {
    const char *name;
    bool additive; /* code that knows it may serve before it was applied */
    const char *text;
};
extern const struct schema_step schema__steps[]; /* generated from storage/schema/NNN_*.sql */
extern const size_t schema__step_count;
extern const char *const schema__local; /* storage/schema/local.sql */
/* The step that leads to `version` (1 … db_schema_version()); its text is valid until the next call of this thread. */
struct schema_step schema_step(int version);
int schema_create(struct sql *sql, struct error *err);   /* tables `applied` and `schema` of an empty database */
int schema_current(struct sql *sql, int *version, struct error *err);
/* Runs a step in the open transaction and books it; checks foreign keys. */
int schema_run(struct sql *sql, int version, const char *text, size_t len, int64_t time_ns, struct error *err);
int applied_get(struct sql *sql, uint64_t *revision, struct error *err);
int applied_set(struct sql *sql, uint64_t revision, struct error *err);

/* ---- rowlog.c: entries ---- */
enum entry_kind { ENTRY_ROWS = 1, ENTRY_SCHEMA = 2, ENTRY_DIGEST = 3 };
struct entry {
    enum entry_kind kind;
    uint64_t base;
    uint32_t schema_version; /* ROWS: of the state; SCHEMA: the version it leads to */
    uint32_t count, tables;  /* ROWS: operations, dictionary entries */
    int64_t time_ns;
    const uint8_t *body;
    size_t body_len;
};
int entry_decode(const void *data, size_t len, struct entry *out, struct error *err);
void entry_encode(const struct entry *entry, struct buf *out); /* appends; padded to 8 */

struct capture_mark { size_t len; uint32_t count; size_t used; };
struct sequence { char *name; int64_t seq; };
struct capture {
    struct catalog catalog;
    struct buf ops;
    uint32_t count;
    struct table **used; /* the dictionary */
    size_t used_count, used_cap;
    struct capture_mark statement; /* where the running statement began */
    bool on;
    char doomed[160]; /* why the running request cannot be replicated; "" = it can */
    struct sequence *sequences; /* sqlite_sequence as of the last commit */
    size_t sequence_count;
    bool sequences_known;
    struct sql_observer observer;
    struct table *last;
};
int capture_init(struct capture *capture, struct sql *sql, struct error *err); /* installs the hook; loads the catalog */
int capture_reload(struct capture *capture, struct sql *sql, struct error *err); /* after a change of the schema or a restore */
void capture_free(struct capture *capture);
int capture_begin(struct capture *capture, struct error *err); /* a batch, after BEGIN */
struct capture_mark capture_mark(const struct capture *capture);
void capture_cut(struct capture *capture, struct capture_mark mark);
int capture_finish(struct capture *capture, struct error *err); /* adds the AUTOINCREMENT counters that changed */
void capture_committed(struct capture *capture, bool committed);
void capture_encode(const struct capture *capture, uint64_t base, uint32_t schema_version, struct buf *out);

/* Repeats the rows of an entry on `catalog`'s connection, inside the open transaction. */
int rowlog_replay(struct catalog *catalog, const struct entry *entry, struct error *err);
/* The names of its tables, in one allocation to free(); NULL-safe only for a decoded ROWS entry that was replayed. */
char **rowlog_tables(const struct entry *entry, size_t *count);
void rowlog_put_value(struct buf *out, sqlite3_value *value);

/* ---- digest.c ---- */
int digest_compute(struct sql *sql, char out[65], struct error *err); /* inside a read transaction */
struct digester;
struct digester *digester_start(struct db *db);
void digester_stop(struct digester *digester); /* finishes what is queued */
void digester_add(struct db *db, uint64_t revision); /* [loop] opens the read transaction */

/* ---- snapshot.c ---- */
int snapshot_begin(void *ud, void **snapshot, struct error *err);
int snapshot_write(void *ud, void *snapshot, void **data, size_t *len, struct error *err);
/* A snapshot of these pages, malloc'ed. */
void snapshot_pack(const void *pages, size_t size, void **data, size_t *len);
/* Checks a snapshot and copies it over the database of `sql`, in one transaction. */
int snapshot_restore(struct sql *sql, const void *data, size_t len, struct error *err);

/* ---- db.c and the threads ---- */
enum turn { TURN_FREE, TURN_EXECUTOR, TURN_PENDING, TURN_LOOP };
enum request_state { REQUEST_QUEUED, REQUEST_RUNNING, REQUEST_PENDING, REQUEST_DONE };

struct request {
    struct request *next, *prev;
    enum request_state state; /* lock */
    int refs;                 /* lock */
    char key[DB_KEY_BYTES_MAX + 1];
    db_write_fn fn;
    void *ud;
    struct buf result;
    bool replayed, changed;
    int status;
    struct error error;
    uint64_t revision;
    pthread_cond_t cond;
};

/* What is given to raft_node_propose. */
struct proposal {
    enum entry_kind kind;
    int refs;       /* lock; waiters of SCHEMA and DIGEST */
    bool done;      /* lock */
    int status;
    struct error error;
    uint64_t revision;
    /* ROWS */
    struct request *requests; /* list, owned */
    bool lost;                /* its transaction was rolled back because the state moved on */
};

struct reader { struct reader *next; struct sql *sql; };

struct db {
    char *dir, *path, *raft_dir;
    uint64_t id;
    struct db_callbacks callbacks;
    struct raft_node *raft; /* set before the executor starts */

    pthread_mutex_t lock;
    pthread_cond_t work;    /* the executor's */
    pthread_cond_t turned;  /* turn changed */
    pthread_cond_t changed; /* leader, schema, readers, users, proposals */
    /* guarded by lock */
    enum turn turn;
    bool loop_waits;      /* the loop wants the turn: the executor's batch cannot succeed any more */
    bool closing, opened;
    bool leader;
    uint64_t leader_id, term;
    uint64_t revision;    /* written by the loop only */
    int schema_version;   /* written by the loop only */
    int schema_allowed;   /* steps up to here may be proposed */
    bool catalog_stale;   /* exec's */
    struct request *queue;
    size_t queued;
    struct proposal *pending; /* with TURN_PENDING or lost */
    size_t users;             /* calls inside db_write, db_read, … */
    struct reader *idle_readers;
    size_t readers_open, readers_busy;
    bool gate;                /* readers are held back */
    int wal_pages;
    struct digester *digester;

    struct sql *exec;       /* by turn */
    struct capture capture; /* exec's */
    struct sql *replay;     /* by turn */
    struct catalog catalog; /* replay's; loop */
    bool replay_stale;      /* loop */
    bool in_request;        /* executor: the authorizer is on */
    int64_t purge_ms, drain_ms;
    uint64_t clock_term;    /* of request_clock; executor */
    int64_t clock_ns, clock_ms;
    pthread_t executor;
    bool executor_running;
};

/* executor.c */
int executor_start(struct db *db, struct error *err);
void executor_stop(struct db *db); /* joins */
int executor_authorize(void *ud, int action, const char *a, const char *b, const char *c, const char *d);
void request_release(struct db *db, struct request *request);       /* lock held */
void requests_finish(struct db *db, struct request *list);          /* answers all with what they hold; lock held */
void requests_fail(struct db *db, struct request *list, int status, const struct error *err); /* lock held; replaces their outcome */
void requests_unknown(struct db *db, struct proposal *proposal);    /* lock held; answers its callers, nobody knows the outcome */
void queue_fail(struct db *db, const struct error *err);            /* lock held */
void proposal_release(struct proposal *proposal);                   /* lock held */
struct proposal *proposal_create(enum entry_kind kind, int refs);

/* apply.c: raft_node's callbacks, on the loop */
void db__apply(void *ud, uint64_t index, uint64_t term, const void *data, size_t len, void *proposal);
void db__abandoned(void *ud, void *proposal, bool refused, const struct error *err);
int db__restore(void *ud, const void *data, size_t len, uint64_t index, struct error *err);
void db__changed(void *ud, const struct raft_node_status *status);
int db__wal_hook(void *ud, sqlite3 *handle, const char *name, int pages);

/* reader.c */
void readers_close(struct db *db);
bool db__enter(struct db *db, struct error *err); /* counts a caller in; false when closing */
void db__leave(struct db *db);
int db__confirm(struct db *db, struct error *err);   /* blocking raft_node_confirm_leader; lock not held */

#define db__must(expr, err) do { if ((expr) != STATUS_OK) core_panic(__FILE__, __LINE__, "database: %s", (err)->text); } while (0)

#endif
