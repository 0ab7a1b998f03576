/* One operation at a time on an instance. In memory of the leader: a new leader takes operations up one by one again, and every step of them is
 * idempotent. Thread: any. */
#include "instance.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

struct busy {
    int64_t id;
    char action[24];
    unsigned count; /* a stop and forced ones that joined it */
    UT_hash_handle hh;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct busy *by_id;
} table = {.lock = PTHREAD_MUTEX_INITIALIZER};

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init(void)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&table.changed, &attr);
    pthread_condattr_destroy(&attr);
}

static struct busy *find_locked(int64_t id)
{
    struct busy *busy = NULL;
    HASH_FIND(hh, table.by_id, &id, sizeof id, busy);
    return busy;
}

static bool may_join(const struct busy *busy, bool forced_stop)
{
    return forced_stop && strcmp(busy->action, "stop") == 0;
}

int instance_enter(int64_t id, const char *action, bool forced_stop, struct error *err)
{
    int64_t until_ms = time_mono_ms() + INSTANCE_BUSY_WAIT_MS;
    struct timespec until = {.tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000};
    int status = STATUS_OK;
    pthread_once(&once, init);
    pthread_mutex_lock(&table.lock);
    struct busy *busy;
    while ((busy = find_locked(id)) != NULL && !may_join(busy, forced_stop) && status == STATUS_OK) {
        if (pthread_cond_timedwait(&table.changed, &table.lock, &until) != 0 && (busy = find_locked(id)) != NULL && !may_join(busy, forced_stop)) {
            status = error_set(err, STATUS_FAILED_PRECONDITION, "Instance is busy running a \"%s\" operation", busy->action);
        }
    }
    if (status == STATUS_OK && busy == NULL) {
        busy = xcalloc(1, sizeof *busy);
        busy->id = id;
        snprintf(busy->action, sizeof busy->action, "%s", action);
        HASH_ADD(hh, table.by_id, id, sizeof busy->id, busy);
    }
    if (status == STATUS_OK) {
        busy->count++;
    }
    pthread_mutex_unlock(&table.lock);
    return status;
}

void instance_leave(int64_t id)
{
    pthread_mutex_lock(&table.lock);
    struct busy *busy = find_locked(id);
    covey_assert(busy != NULL && busy->count > 0);
    if (--busy->count == 0) {
        HASH_DEL(table.by_id, busy);
        free(busy);
        pthread_cond_broadcast(&table.changed);
    }
    pthread_mutex_unlock(&table.lock);
}

bool instance_busy(int64_t id)
{
    pthread_mutex_lock(&table.lock);
    bool is = find_locked(id) != NULL;
    pthread_mutex_unlock(&table.lock);
    return is;
}
