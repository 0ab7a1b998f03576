/* Worker pools: threads made on demand, gone after RPC_THREAD_IDLE_MS without work; and one timer thread for delayed tasks.
 *
 * The thread that went idle last is woken first: it is still warm, and those below it reach their end. Only one thread is on its way to the queue at a time; it
 * wakes the next when it finds more than it can take. So short tasks run one after another on few threads, and each one that blocks makes room for the next.
 *
 * A pool owns nothing but the order of its tasks. Thread: any may submit. What may fail: a full queue, refused by pool__submit(). */
#include "rpc_private.h"
#include <stdlib.h>
#include <string.h>

/* Small stacks: hundreds of threads may exist. Sanitizers need several times as much. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { STACK_BYTES = 2 * 1024 * 1024 };
#else
enum { STACK_BYTES = 256 * 1024 };
#endif

struct worker { /* an idle thread, on its own stack */
    struct worker *below;
    pthread_cond_t wake;
    bool called;
};

struct pool {
    const char *name;
    unsigned threads_max, queue_max;
    struct thread_group group;
    pthread_mutex_t lock; /* protects the rest */
    pthread_cond_t ended;
    struct task *head, **tail;
    struct worker *idle_top;
    unsigned queued, threads, idle;
    bool coming; /* a thread was woken or started and has not looked at the queue yet */
    bool stopping;
};

static bool thread_start(struct pool *pool);

/* Sees to it that somebody comes for the queue; false when nobody can be found. A pool without a queue needs a thread for every task at once. */
static bool call_locked(struct pool *pool)
{
    struct worker *worker = pool->idle_top;
    if (pool->coming && pool->queue_max > 0)
        return true;
    if (worker != NULL) {
        pool->idle_top = worker->below;
        pool->idle--;
        worker->called = true;
        pthread_cond_signal(&worker->wake);
    } else if (pool->threads < pool->threads_max && thread_start(pool)) {
        pool->threads++;
    } else {
        return false;
    }
    pool->coming = true;
    return true;
}

/* Until called (true), or for RPC_THREAD_IDLE_MS. */
static bool wait_locked(struct pool *pool, struct worker *self)
{
    int64_t until = time_mono_ms() + RPC_THREAD_IDLE_MS;
    self->called = false;
    self->below = pool->idle_top;
    pool->idle_top = self;
    pool->idle++;
    while (!self->called && !pool->stopping && rpc__cond_wait(&self->wake, &pool->lock, until))
        ;
    if (self->called) {
        pool->coming = false;
        return true;
    }
    struct worker **at = &pool->idle_top;
    while (*at != self)
        at = &(*at)->below;
    *at = self->below;
    pool->idle--;
    return false;
}

static void *worker_main(void *arg)
{
    struct pool *pool = arg;
    struct worker self = {0};

    rpc__cond_init(&self.wake);
    pthread_mutex_lock(&pool->lock);
    pool->coming = false;
    for (;;) {
        while (pool->head == NULL && !pool->stopping && wait_locked(pool, &self))
            ; /* called for a task that somebody else has taken: that is no reason to end */
        struct task *task = pool->head;
        if (task == NULL)
            break;
        pool->head = task->next;
        if (pool->head == NULL)
            pool->tail = &pool->head;
        else
            (void)call_locked(pool); /* nobody left: those who are busy come back */
        pool->queued--;
        pthread_mutex_unlock(&pool->lock);
        task->run(task);
        pthread_mutex_lock(&pool->lock);
    }
    pool->threads--;
    pthread_cond_broadcast(&pool->ended);
    pthread_mutex_unlock(&pool->lock);
    pthread_cond_destroy(&self.wake);
    return NULL;
}

static bool thread_start(struct pool *pool)
{
    return thread_group_start(&pool->group, pool->name, STACK_BYTES, worker_main, pool) == 0;
}

struct pool *pool__create(const char *name, unsigned threads_max, unsigned queue_max)
{
    struct pool *pool = xcalloc(1, sizeof(*pool));
    pool->name = name;
    pool->threads_max = threads_max;
    pool->queue_max = queue_max;
    pool->tail = &pool->head;
    pool->group = (struct thread_group)THREAD_GROUP_INIT;
    pthread_mutex_init(&pool->lock, NULL);
    rpc__cond_init(&pool->ended);
    return pool;
}

void pool__destroy(struct pool *pool)
{
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    for (struct worker *worker = pool->idle_top; worker != NULL; worker = worker->below)
        pthread_cond_signal(&worker->wake);
    while (pool->threads > 0) {
        if (!rpc__cond_wait(&pool->ended, &pool->lock, time_mono_ms() + RPC_THREAD_IDLE_MS) && pool->threads > 0)
            log_warn("rpc.pool.wait", "pool=%s threads=%u", pool->name, pool->threads);
    }
    covey_assert(pool->head == NULL);
    pthread_mutex_unlock(&pool->lock);
    thread_group_join(&pool->group, -1); /* they have left the loop */
    pthread_mutex_destroy(&pool->lock);
    pthread_cond_destroy(&pool->ended);
    free(pool);
}

bool pool__submit(struct pool *pool, struct task *task)
{
    pthread_mutex_lock(&pool->lock);
    unsigned can_come = pool->idle + (pool->threads_max - pool->threads) + (pool->coming && pool->queue_max > 0);
    bool full = pool->queued >= can_come && pool->queued - can_come >= pool->queue_max && pool->queue_max > 0;
    if (!full && !call_locked(pool) && (pool->threads == 0 || pool->queue_max == 0))
        full = true;
    if (!full) {
        task->next = NULL;
        *pool->tail = task;
        pool->tail = &task->next;
        pool->queued++;
    }
    pthread_mutex_unlock(&pool->lock);
    return !full;
}

/* ---- delayed tasks ---- */

struct later { /* sorted by due time */
    struct later *next;
    struct pool *pool;
    struct task *task;
    int64_t due_ms;
};

static struct {
    pthread_mutex_t lock; /* protects the rest */
    pthread_cond_t changed;
    pthread_once_t once;
    struct later *head;
    pthread_t thread;
    bool running, stopping;
} timer = {.lock = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

static void timer_init(void)
{
    rpc__cond_init(&timer.changed);
}

static void later_insert_locked(struct later *item)
{
    struct later **at = &timer.head;
    while (*at != NULL && (*at)->due_ms <= item->due_ms)
        at = &(*at)->next;
    item->next = *at;
    *at = item;
}

static void *timer_main(void *arg)
{
    pthread_mutex_lock(&timer.lock);
    while (!timer.stopping || timer.head != NULL) {
        struct later *item = timer.head;
        int64_t now = time_mono_ms();
        if (item == NULL || (item->due_ms > now && !timer.stopping)) {
            rpc__cond_wait(&timer.changed, &timer.lock, item == NULL ? now + RPC_THREAD_IDLE_MS : item->due_ms);
            continue;
        }
        timer.head = item->next;
        pthread_mutex_unlock(&timer.lock);
        bool taken = pool__submit(item->pool, item->task);
        pthread_mutex_lock(&timer.lock);
        if (taken) {
            free(item);
        } else { /* full: the work is owed, so ask again */
            item->due_ms = time_mono_ms() + RPC_RETRY_PAUSE_MS_MIN;
            later_insert_locked(item);
            rpc__cond_wait(&timer.changed, &timer.lock, item->due_ms);
        }
    }
    pthread_mutex_unlock(&timer.lock);
    return NULL;
}

void pool_submit_later(struct pool *pool, struct task *task, int64_t delay_ms)
{
    struct later *item = xcalloc(1, sizeof(*item));
    item->pool = pool;
    item->task = task;
    item->due_ms = time_mono_ms() + delay_ms;
    pthread_once(&timer.once, timer_init);
    pthread_mutex_lock(&timer.lock);
    if (!timer.running) {
        if (pthread_create(&timer.thread, NULL, timer_main, NULL) != 0)
            core_panic(__FILE__, __LINE__, "cannot start the timer thread");
        pthread_setname_np(timer.thread, "rpc-timer");
        timer.running = true;
    }
    later_insert_locked(item);
    pthread_cond_signal(&timer.changed);
    pthread_mutex_unlock(&timer.lock);
}

void pool_timer_stop(void)
{
    pthread_once(&timer.once, timer_init);
    pthread_mutex_lock(&timer.lock);
    bool running = timer.running;
    timer.stopping = true;
    pthread_cond_signal(&timer.changed);
    pthread_mutex_unlock(&timer.lock);
    if (running)
        pthread_join(timer.thread, NULL);
    pthread_mutex_lock(&timer.lock);
    timer.running = timer.stopping = false;
    pthread_mutex_unlock(&timer.lock);
}
