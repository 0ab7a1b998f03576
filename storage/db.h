/* The replicated database: SQLite as the state machine of Raft, by an ordered log of row changes (DESIGN section 4).
 *
 * Writes run on the leader's executor thread as ordinary SQL, up to DB_BATCH_REQUESTS_MAX requests in one Raft entry; each is answered after its entry
 * is committed. Reads are linearizable (leader confirmed by a majority) or local. Any SQLite error while applying ends the process. */
#ifndef COVEY_STORAGE_DB_H
#define COVEY_STORAGE_DB_H

#include "raft_node.h"
#include "sql.h"

enum {
    DB_BATCH_REQUESTS_MAX = 256,
    DB_BATCH_BYTES_MAX = 4 << 20,
    DB_QUEUE_REQUESTS_MAX = 8192,       /* waiting writes; beyond: RESOURCE_EXHAUSTED */
    DB_READERS_MAX = 16,                /* read connections, opened on demand */
    DB_REQUEST_KEEP_S = 600,            /* how long a request id and its result are remembered */
    DB_REQUEST_RESULT_BYTES_MAX = 64 << 10,
    DB_WRITE_TIMEOUT_MS = 10000,
    DB_DIGEST_INTERVAL_S = 300,
};

struct db;

struct db_callbacks {
    void *ud;
    /* [loop] Raft status changed. Must not block; take what you need. */
    void (*status)(void *ud, const struct raft_node_status *status);
    /* [loop] An entry was applied: `tables` are the distinct tables it changed (all tables after a snapshot: count 0). Must not block. */
    void (*applied)(void *ud, uint64_t revision, const char *const *tables, size_t count);
    /* Any thread: the digest of the state right after `revision`, hex SHA-256; every replica reports it for the same revisions. */
    void (*digest)(void *ud, uint64_t revision, const char *digest);
    void (*send)(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame); /* see raft_node.h */
    uint64_t (*queued)(void *ud, uint64_t peer);                                        /* see raft_node.h; may be NULL */
};

struct db_config {
    const char *dir; /* <state>/database: holds global/ (Raft), global.sqlite (a cache, rebuilt at start) */
    uint64_t id;
    struct db_callbacks callbacks;
};

/* Offline: first member of a new cluster: Raft configuration with this member as the only voter. The schema is written as the first entries once it
 * leads. Nothing if the folder has a log already. */
int db_bootstrap(const char *dir, uint64_t id, struct error *err);
bool db_exists(const char *dir); /* has Raft data */
/* Offline: removes Raft data and cache. */
int db_wipe(const char *dir, struct error *err);

int db_open(const struct db_config *config, struct db **out, struct error *err);
/* Answers every waiting call with STATUS_UNAVAILABLE and refuses new ones; the handle stays valid until db_close. */
void db_stop(struct db *db);
void db_close(struct db *db); /* db_stop, then frees: no call may be inside any more; NULL is fine */
struct raft_node *db_raft(struct db *db);

/* The last schema step that this code knows (length of the list in storage/schema), and the lowest version that it can serve on: that of its last
 * incompatible step (docs/design/upgrade.md). The environment variable COVEY_TEST_SCHEMA_LEVEL_BUMP=<n> adds n steps that make one empty table each,
 * additive ones unless COVEY_TEST_SCHEMA_INCOMPATIBLE is set. */
int db_schema_version(void);
int db_schema_floor(void);
/* Lets the leader apply steps up to `version`, because every member knows them. Until it is called only the first step is applied, to a new database. */
void db_schema_allow(struct db *db, int version);
/* STATUS_FAILED_PRECONDITION `schema version '<a>' is more recent than expected '<b>'` when newer code has changed the schema of this replica. */
int db_schema_check(struct db *db, struct error *err);

/* A write. fn runs on the executor thread, at most once per call, within a savepoint: it may only use `sql` (no waiting, no other locks), may put bytes
 * into `result`, and returns a status; anything but STATUS_OK rolls back and is returned with its error. `key` (at most 100 bytes; NULL = none) makes the write
 * happen once: if a write with this key was done before, fn is not run, its recorded result is returned and *replayed is true.
 * Blocking until committed, refused or unknown: STATUS_UNAVAILABLE with not_leader (nothing was done), STATUS_UNKNOWN (leadership lost in flight: retry with the
 * same key), STATUS_RESOURCE_EXHAUSTED. `result`, `replayed`, `revision` may be NULL. Not from the loop or executor thread. */
typedef int (*db_write_fn)(struct sql *sql, void *ud, struct buf *result, struct error *err);
int db_write(struct db *db, const char *key, db_write_fn fn, void *ud, struct buf *result, bool *replayed, uint64_t *revision, struct error *err);

/* A read. fn runs on the calling thread with a read connection inside one read transaction. */
enum db_consistency {
    DB_LINEARIZABLE, /* on the leader only; STATUS_UNAVAILABLE with not_leader elsewhere */
    DB_LOCAL,        /* this member's replica, possibly stale */
};
typedef int (*db_read_fn)(struct sql *sql, void *ud, struct error *err);
int db_read(struct db *db, enum db_consistency consistency, db_read_fn fn, void *ud, uint64_t *revision, struct error *err);

/* For callers that proved leadership for the request at hand already (raft_node_confirm_leader after it arrived): linearizable reads of this thread do not ask again
 * until it is set to false. */
void db_thread_confirmed(bool confirmed);

/* Digest of the whole state now (all tables, in order), hex; for tests and `covey admin sql`. */
int db_digest(struct db *db, char out[65], uint64_t *revision, struct error *err);
/* On the leader: every replica computes its digest at one revision (an entry of its own) and reports it through callbacks.digest. */
int db_digest_round(struct db *db, uint64_t *revision, struct error *err);
/* Writes a consistent copy of the database as a plain SQLite file. */
int db_dump_file(struct db *db, const char *path, struct error *err);

/* Appends the whole state as the pages of an SQLite file. Blocking. */
int db_image(struct db *db, enum db_consistency consistency, struct buf *out, uint64_t *revision, struct error *err);
/* Offline: makes a Raft folder (none may be there) with member `id` as the only voter, whose state is the image. Its `applied` revision must be 0. */
int db_seed(const char *raft_dir, uint64_t id, const void *image, size_t len, struct error *err);

#endif
