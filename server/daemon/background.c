/* The daemon's own threads for what happens beside requests: starting instances, sweeps, farewells, an interrupted join. They end by themselves or at their
 * next pause once the daemon stops, before what they use is gone. */
#include "daemon.h"

#include <string.h>

enum { END_MS = 5000 }; /* a call that hangs longer than the stop may wait ends with the process */

static struct thread_group threads = THREAD_GROUP_INIT;
static struct {
    pthread_mutex_t lock; /* protects the rest */
    pthread_cond_t changed;
    bool stopping;
} background = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

int background_start(const char *name, void *(*run)(void *ud), void *ud)
{
    int rc = thread_group_start(&threads, name, 0, run, ud);
    if (rc != 0) {
        log_error("background.start", "name=%s error=\"%s\"", name, strerror(rc));
    }
    return rc;
}

bool background_pause(int64_t ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&background.lock);
    while (!background.stopping && pthread_cond_clockwait(&background.changed, &background.lock, CLOCK_MONOTONIC, &until) == 0) {
    }
    bool stopping = background.stopping;
    pthread_mutex_unlock(&background.lock);
    return !stopping;
}

void background_end(void)
{
    pthread_mutex_lock(&background.lock);
    background.stopping = true;
    pthread_cond_broadcast(&background.changed);
    pthread_mutex_unlock(&background.lock);
}

void background_join(void)
{
    if (!thread_group_join(&threads, END_MS)) {
        log_warn("background.join", "text=\"not waiting any longer\"");
    }
}
