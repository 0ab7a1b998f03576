/* The hub: an epoll loop with a job list. Sources are touched on its own thread only; jobs come from anywhere, under one lock. Sleeps without
 * limit when there is nothing to do. */
#include "hub.h"
#include "proto/core/core.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { HUB_EVENTS = 64, HUB_STACK_BYTES = 256 << 10 };

struct job {
    struct job *next;
    int64_t due_ms;
    void (*fn)(void *ud);
    void *ud;
};

static pthread_t thread;
static int epoll_fd = -1, wake_fd = -1;
static atomic_bool stopping;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects the next two */
static struct job *jobs, **jobs_tail = &jobs;
static bool sleeping; /* the thread must be woken for a new job */
static struct epoll_event events[HUB_EVENTS]; /* hub thread */
static int event_count;

bool hub_stopping(void)
{
    return atomic_load(&stopping);
}

static void wake(void)
{
    uint64_t one = 1;
    if (write(wake_fd, &one, sizeof(one)) != (ssize_t)sizeof(one) && errno != EAGAIN)
        core_panic(__FILE__, __LINE__, "eventfd: %s", strerror(errno));
}

void hub_post(int64_t delay_ms, void (*fn)(void *ud), void *ud)
{
    struct job *job = xcalloc(1, sizeof(*job));
    job->due_ms = time_mono_ms() + delay_ms;
    job->fn = fn;
    job->ud = ud;
    pthread_mutex_lock(&lock);
    *jobs_tail = job;
    jobs_tail = &job->next;
    if (sleeping && wake_fd >= 0) /* with the lock: hub_stop() closes it, and calls may end after that */
        wake();
    sleeping = false;
    pthread_mutex_unlock(&lock);
}

void hub_add(int fd, struct hub_source *source, uint32_t bits)
{
    struct epoll_event event = {.events = bits, .data.ptr = source};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        core_panic(__FILE__, __LINE__, "epoll add: %s", strerror(errno));
}

void hub_change(int fd, struct hub_source *source, uint32_t bits)
{
    struct epoll_event event = {.events = bits, .data.ptr = source};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event) != 0)
        core_panic(__FILE__, __LINE__, "epoll change: %s", strerror(errno));
}

void hub_remove(int fd, struct hub_source *source)
{
    if (epoll_ctl(epoll_fd, EPOLL_CTL_DEL, fd, NULL) != 0)
        log_warn("gateway.epoll", "remove: %s", strerror(errno));
    for (int i = 0; i < event_count; i++) /* events of this round that were not delivered yet */
        if (events[i].data.ptr == source)
            events[i].data.ptr = NULL;
}

/* Takes the jobs that are due; *timeout_ms: how long the loop may sleep. */
static struct job *jobs_take(int64_t now, int *timeout_ms)
{
    struct job *due = NULL, **due_tail = &due;
    int64_t next = INT64_MAX;
    pthread_mutex_lock(&lock);
    for (struct job **link = &jobs; *link != NULL;) {
        struct job *job = *link;
        if (job->due_ms > now && !hub_stopping()) {
            next = job->due_ms < next ? job->due_ms : next;
            link = &job->next;
            continue;
        }
        *link = job->next;
        job->next = NULL;
        *due_tail = job;
        due_tail = &job->next;
    }
    jobs_tail = &jobs;
    while (*jobs_tail != NULL)
        jobs_tail = &(*jobs_tail)->next;
    sleeping = due == NULL;
    pthread_mutex_unlock(&lock);
    *timeout_ms = due != NULL ? 0 : next == INT64_MAX ? -1 : (int)(next - now);
    return due;
}

static void *run(void *unused)
{
    (void)unused;
    pthread_setname_np(pthread_self(), "hub");
    for (;;) {
        int timeout_ms;
        struct job *due = jobs_take(time_mono_ms(), &timeout_ms);
        if (due == NULL && hub_stopping())
            return NULL;
        event_count = epoll_wait(epoll_fd, events, HUB_EVENTS, timeout_ms);
        if (event_count < 0 && errno != EINTR)
            core_panic(__FILE__, __LINE__, "epoll: %s", strerror(errno));
        for (int i = 0; i < event_count; i++) {
            struct hub_source *source = events[i].data.ptr;
            uint64_t count;
            if (source != NULL)
                source->ready(source, events[i].events);
            else if (read(wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
                core_panic(__FILE__, __LINE__, "eventfd: %s", strerror(errno));
        }
        event_count = 0;
        while (due != NULL) {
            struct job *next = due->next;
            due->fn(due->ud);
            free(due);
            due = next;
        }
    }
}

void hub_start(void)
{
    pthread_attr_t attr;
    atomic_store(&stopping, false);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_fd < 0 || wake_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wake_fd, &event) != 0)
        core_panic(__FILE__, __LINE__, "epoll: %s", strerror(errno));
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, HUB_STACK_BYTES);
    int rc = pthread_create(&thread, &attr, run, NULL);
    if (rc != 0)
        core_panic(__FILE__, __LINE__, "thread: %s", strerror(rc));
    pthread_attr_destroy(&attr);
}

void hub_stop(void)
{
    atomic_store(&stopping, true);
    wake();
    pthread_join(thread, NULL);
    pthread_mutex_lock(&lock);
    close(epoll_fd);
    close(wake_fd);
    epoll_fd = wake_fd = -1;
    pthread_mutex_unlock(&lock);
}
