/* What a new leader does before it makes its first view: its own patch file (it may hold the members' new addresses), and the epoch in the database, which
 * joiners are told. Thread: controller; recovery_failed: main. */
#include "recovery.h"

#include <pthread.h>

static struct {
    pthread_mutex_t lock;
    bool failed;
    struct error err;
} lead = {.lock = PTHREAD_MUTEX_INITIALIZER};

bool recovery_failed(struct error *err)
{
    pthread_mutex_lock(&lead.lock);
    bool failed = lead.failed;
    if (failed) {
        *err = lead.err;
    }
    pthread_mutex_unlock(&lead.lock);
    return failed;
}

static int read_epoch(struct sql *sql, void *ud, struct error *err)
{
    int status = sql_get_int(sql, ud, err, "SELECT epoch FROM cluster WHERE id = 1", "");
    return status == STATUS_NOT_FOUND ? STATUS_OK : status; /* standalone */
}

static int write_epoch(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "UPDATE cluster SET epoch = ?1 WHERE id = 1 AND epoch < ?1", "i", *(int64_t *)ud);
}

static bool passing(int status)
{
    return status == STATUS_UNAVAILABLE || status == STATUS_UNKNOWN || status == STATUS_DEADLINE_EXCEEDED || status == STATUS_RESOURCE_EXHAUSTED;
}

int recovery_lead(struct daemon *daemon, struct error *err)
{
    int status = patch_global(daemon, err);
    if (status != STATUS_OK) {
        if (!passing(status)) {
            pthread_mutex_lock(&lead.lock);
            lead.failed = true;
            lead.err = *err;
            pthread_mutex_unlock(&lead.lock);
        }
        return status;
    }
    if (!daemon_clustered(daemon)) {
        return STATUS_OK;
    }
    int64_t known = 0, epoch = (int64_t)recovery_epoch(daemon);
    status = daemon_read(daemon, DB_LOCAL, read_epoch, &known, NULL, err);
    if (status == STATUS_OK && known != 0 && known < epoch) {
        status = daemon_write(daemon, NULL, write_epoch, &epoch, NULL, NULL, NULL, err);
    }
    return status;
}
