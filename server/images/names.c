/* A small set of held names under one mutex. Any thread; waits bounded. */
#include "names.h"

#include "proto/core/core.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <uthash.h>

struct held {
    char name[NAME_LOCK_BYTES_MAX];
    UT_hash_handle hh;
};

static struct {
    pthread_mutex_t lock; /* protects set */
    pthread_cond_t changed;
    struct held *set;
} names = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void names_init(void)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&names.changed, &attr);
    pthread_condattr_destroy(&attr);
}
static pthread_once_t once = PTHREAD_ONCE_INIT;

int name_lock(const char *what, const char *name, struct error *err)
{
    char key[NAME_LOCK_BYTES_MAX];
    struct held *held = NULL;
    struct timespec until;
    int rc = 0;
    pthread_once(&once, names_init);
    snprintf(key, sizeof key, "%s %s", what, name); /* a name that is cut shares its lock: no harm */
    time_deadline(&until, NAME_LOCK_WAIT_MS);
    pthread_mutex_lock(&names.lock);
    for (;;) {
        HASH_FIND_STR(names.set, key, held);
        if (held == NULL || rc != 0) {
            break;
        }
        rc = pthread_cond_timedwait(&names.changed, &names.lock, &until);
    }
    if (held == NULL) {
        struct held *made = xcalloc(1, sizeof *made);
        memcpy(made->name, key, sizeof key);
        HASH_ADD_STR(names.set, name, made);
    }
    pthread_mutex_unlock(&names.lock);
    return held == NULL ? STATUS_OK : error_set(err, STATUS_UNAVAILABLE, "%s \"%.80s\" is busy", what, name);
}

void name_unlock(const char *what, const char *name)
{
    char key[NAME_LOCK_BYTES_MAX];
    struct held *held = NULL;
    snprintf(key, sizeof key, "%s %s", what, name);
    pthread_mutex_lock(&names.lock);
    HASH_FIND_STR(names.set, key, held);
    covey_assert(held != NULL);
    HASH_DEL(names.set, held);
    free(held);
    pthread_cond_broadcast(&names.changed);
    pthread_mutex_unlock(&names.lock);
}
