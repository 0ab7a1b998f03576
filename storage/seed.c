/* Whole states from and to outside: a consistent image of the database, and a Raft folder that begins with one. */
#include "db_private.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

struct image { struct buf *out; uint64_t revision; };

static int read_image(struct sql *sql, void *ud, struct error *err)
{
    struct image *image = ud;
    sqlite3_int64 size = 0;
    int status = applied_get(sql, &image->revision, err); /* fixes the state */
    uint8_t *pages = status == STATUS_OK ? sqlite3_serialize(sql_handle(sql), "main", &size, 0) : NULL;
    if (status == STATUS_OK && (!pages || size < 100))
        status = error_set(err, STATUS_INTERNAL, "Cannot copy the database: %s", sqlite3_errmsg(sql_handle(sql)));
    if (status == STATUS_OK) {
        pages[18] = pages[19] = 1; /* not WAL: an image in memory does not open otherwise */
        buf_add(image->out, pages, (size_t)size);
    }
    sqlite3_free(pages);
    return status;
}

int db_image(struct db *db, enum db_consistency consistency, struct buf *out, uint64_t *revision, struct error *err)
{
    struct image image = {.out = out};
    int status = db_read(db, consistency, read_image, &image, NULL, err);
    *revision = image.revision;
    return status;
}

/* ---- a new Raft folder ---- */

/* A node whose snapshot is the image: libraft itself writes the files. */
struct seed {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    const void *image;
    size_t len;
    bool leader;
    unsigned ended; /* proposals */
};

static void seed_apply(void *ud, uint64_t index, uint64_t term, const void *data, size_t len, void *proposal)
{
    struct seed *seed = ud;
    pthread_mutex_lock(&seed->lock);
    seed->ended += proposal != NULL;
    pthread_cond_broadcast(&seed->changed);
    pthread_mutex_unlock(&seed->lock);
}

static void seed_abandoned(void *ud, void *proposal, bool refused, const struct error *err)
{
    seed_apply(ud, 0, 0, NULL, 0, proposal);
}

static int seed_begin(void *ud, void **snapshot, struct error *err)
{
    *snapshot = ud;
    return STATUS_OK;
}

static int seed_write(void *ud, void *snapshot, void **data, size_t *len, struct error *err)
{
    struct seed *seed = ud;
    snapshot_pack(seed->image, seed->len, data, len);
    return STATUS_OK;
}

static int seed_restore(void *ud, const void *data, size_t len, uint64_t index, struct error *err)
{
    return STATUS_OK;
}

static void seed_changed(void *ud, const struct raft_node_status *status)
{
    struct seed *seed = ud;
    pthread_mutex_lock(&seed->lock);
    seed->leader = status->leader;
    pthread_cond_broadcast(&seed->changed);
    pthread_mutex_unlock(&seed->lock);
}

static void seed_send(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
}

/* Entries without effect until the node has taken its snapshot. */
static int seed_run(struct seed *seed, struct raft_node *node, struct error *err)
{
    enum { SEED_STEPS_MAX = 200, SEED_STEP_MS = 100 };
    struct entry entry = {.kind = ENTRY_DIGEST, .time_ns = time_unix_ns(), .body = (const uint8_t *)""};
    struct buf data = {0};
    struct raft_node_status status = {0};
    unsigned proposed = 0;
    entry_encode(&entry, &data);
    for (int step = 0; step < SEED_STEPS_MAX && status.snapshot_index == 0; step++) {
        struct timespec deadline;
        time_deadline(&deadline, SEED_STEP_MS);
        pthread_mutex_lock(&seed->lock);
        bool propose = seed->leader && seed->ended == proposed;
        pthread_mutex_unlock(&seed->lock);
        if (propose) {
            proposed++;
            raft_node_propose(node, data.data, data.len, seed);
        }
        pthread_mutex_lock(&seed->lock);
        while ((propose ? seed->ended < proposed : !seed->leader) && pthread_cond_timedwait(&seed->changed, &seed->lock, &deadline) == 0)
            ;
        if (propose) /* the snapshot is written on another thread */
            pthread_cond_timedwait(&seed->changed, &seed->lock, &deadline);
        pthread_mutex_unlock(&seed->lock);
        raft_node_status_free(&status);
        raft_node_status(node, &status, NULL);
    }
    buf_free(&data);
    bool done = status.snapshot_index > 0;
    raft_node_status_free(&status);
    return done ? STATUS_OK : error_set(err, STATUS_INTERNAL, "The database was not written in time");
}

/* The entries that led to the snapshot do not make its state: whoever has no copy must get the snapshot and never them. */
static int segments_remove(const char *raft_dir, struct error *err)
{
    DIR *stream = opendir(raft_dir);
    int status = stream ? STATUS_OK : error_errno(err, errno, "%s", raft_dir);
    for (struct dirent *entry; status == STATUS_OK && (entry = readdir(stream));) {
        bool keep = entry->d_name[0] == '.' || str_prefix(entry->d_name, "metadata") || str_prefix(entry->d_name, "snapshot-");
        if (!keep && unlinkat(dirfd(stream), entry->d_name, 0) != 0)
            status = error_errno(err, errno, "%s/%s", raft_dir, entry->d_name);
    }
    if (status == STATUS_OK && syncfs(dirfd(stream)) != 0)
        status = error_errno(err, errno, "%s", raft_dir);
    if (stream)
        closedir(stream);
    return status;
}

int db_seed(const char *raft_dir, uint64_t id, const void *image, size_t len, struct error *err)
{
    struct seed seed = {.image = image, .len = len};
    struct raft_node *node = NULL;
    struct raft_node_config config = {
        .dir = raft_dir, .id = id, .snapshot_entries = 1,
        .callbacks = {.ud = &seed, .apply = seed_apply, .abandoned = seed_abandoned, .snapshot_begin = seed_begin, .snapshot_write = seed_write,
                      .restore = seed_restore, .changed = seed_changed, .send = seed_send},
    };
    pthread_condattr_t attr;
    pthread_mutex_init(&seed.lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&seed.changed, &attr);
    pthread_condattr_destroy(&attr);
    int status = raft_node_bootstrap(raft_dir, id, err);
    if (status == STATUS_OK)
        status = raft_node_start(&config, &node, err);
    if (status == STATUS_OK)
        status = seed_run(&seed, node, err);
    raft_node_stop(node);
    if (status == STATUS_OK)
        status = segments_remove(raft_dir, err);
    pthread_cond_destroy(&seed.changed);
    pthread_mutex_destroy(&seed.lock);
    return status;
}
