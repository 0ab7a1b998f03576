/* Threads that end by themselves, but not after the program: a detached thread that is still ending while main() returns loses what libraries keep for it,
 * or meets their clean-up. The group belongs to the caller and must outlive its threads. */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

struct start {
    struct thread_group *group;
    void *(*run)(void *ud);
    void *ud;
};

static void *thread_main(void *arg)
{
    struct start start = *(struct start *)arg;
    free(arg);
    start.run(start.ud);
    pthread_mutex_lock(&start.group->lock);
    pthread_t before = start.group->last;
    bool any = start.group->any_ended;
    start.group->last = pthread_self();
    start.group->any_ended = true;
    start.group->running--;
    pthread_cond_broadcast(&start.group->ended);
    pthread_mutex_unlock(&start.group->lock);
    if (any)
        pthread_join(before, NULL);
    return NULL;
}

int thread_group_start(struct thread_group *group, const char *name, size_t stack_bytes, void *(*run)(void *ud), void *ud)
{
    pthread_attr_t attr;
    pthread_t thread;
    struct start *start = xmalloc(sizeof(*start));
    *start = (struct start){group, run, ud};
    pthread_attr_init(&attr);
    if (stack_bytes)
        pthread_attr_setstacksize(&attr, stack_bytes);
    pthread_mutex_lock(&group->lock); /* it cannot end, and be joined, before it has its name */
    int rc = pthread_create(&thread, &attr, thread_main, start);
    if (rc == 0) {
        pthread_setname_np(thread, name);
        group->running++;
    }
    pthread_mutex_unlock(&group->lock);
    pthread_attr_destroy(&attr);
    if (rc != 0)
        free(start);
    return rc;
}

bool thread_group_join(struct thread_group *group, int64_t timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    if (timeout_ms > 0) {
        until.tv_sec += timeout_ms / 1000;
        until.tv_nsec += timeout_ms % 1000 * 1000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
    }
    pthread_mutex_lock(&group->lock);
    for (int rc = 0; group->running > 0 && rc != ETIMEDOUT;)
        rc = timeout_ms < 0 ? pthread_cond_wait(&group->ended, &group->lock)
                            : pthread_cond_clockwait(&group->ended, &group->lock, CLOCK_MONOTONIC, &until);
    bool all = group->running == 0, any = group->any_ended;
    pthread_t last = group->last;
    group->any_ended = false;
    pthread_mutex_unlock(&group->lock);
    if (any)
        pthread_join(last, NULL);
    return all;
}
