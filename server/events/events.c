/* The ring of kept events, their numbers, and the watchers of this member.
 *
 * A number is (term << 40 | sequence), given on the leader; so it grows in the whole cluster, across leaders too. What a member gets again after a new
 * Attach is known by its number. One mutex holds ring and watchers; sending to a watcher never blocks (a full queue ends the watch), hooks and
 * rpc_finish run without the mutex. Events of a member that does not lead (a join's operation) go to its own watchers only, without a number. */
#include "events_private.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { HOOKS_MAX = 8, SEQUENCE_BITS = 40, PACKED_BYTES_MAX = 32 << 20 };

struct kept {
    uint64_t number;
    uint8_t *data;
    size_t len;
};

struct watcher { /* one reference of the list, one of the call's done hook */
    atomic_int references;
    struct rpc_call *call;
    struct event_filter filter;
    char *project;
    char **projects;
    bool listed;
    struct watcher *prev, *next;
};

static struct {
    struct daemon *daemon;
    pthread_mutex_t lock;
    struct kept ring[EVENTS_KEPT_MAX];
    size_t first, count, bytes;
    uint64_t last;     /* number delivered last */
    uint64_t dropped;  /* the highest number that the ring no longer holds */
    bool clustered;    /* the numbers are the cluster's */
    struct watcher *watchers;
    size_t watcher_count;
    struct {
        void (*fn)(void *ud);
        void *ud;
    } hooks[HOOKS_MAX];
    size_t hook_count;
} events = {.lock = PTHREAD_MUTEX_INITIALIZER};

void events_on_publish(void (*fn)(void *ud), void *ud)
{
    covey_assert(events.hook_count < HOOKS_MAX);
    events.hooks[events.hook_count].fn = fn;
    events.hooks[events.hook_count].ud = ud;
    events.hook_count++;
}

/* ---- the ring ---- */

static void drop_oldest_locked(void)
{
    struct kept *kept = &events.ring[events.first];
    events.dropped = kept->number;
    events.bytes -= kept->len;
    free(kept->data);
    *kept = (struct kept){0};
    events.first = (events.first + 1) % EVENTS_KEPT_MAX;
    events.count--;
}

/* Numbers of a standalone server mean nothing in the cluster that it joins. */
static void check_cluster_locked(bool clustered, bool leads)
{
    if (clustered == events.clustered) {
        return;
    }
    events.clustered = clustered;
    if (!leads) {
        while (events.count > 0) {
            drop_oldest_locked();
        }
        events.last = events.dropped = 0;
    }
}

static void keep_locked(const Covey__V1__Event *event)
{
    size_t len = covey__v1__event__get_packed_size(event);
    while (events.count == EVENTS_KEPT_MAX || (events.count > 0 && events.bytes + len > PACKED_BYTES_MAX)) {
        drop_oldest_locked();
    }
    struct kept *kept = &events.ring[(events.first + events.count) % EVENTS_KEPT_MAX];
    *kept = (struct kept){.number = event->number, .data = xmalloc(len + 1), .len = len};
    covey__v1__event__pack(event, kept->data);
    events.count++;
    events.bytes += len;
    events.last = event->number;
}

/* ---- watchers ---- */

static void watcher_unref(struct watcher *watcher)
{
    if (atomic_fetch_sub(&watcher->references, 1) != 1) {
        return;
    }
    for (char **project = watcher->projects; project != NULL && *project != NULL; project++) {
        free(*project);
    }
    free(watcher->projects);
    free(watcher->project);
    rpc_call_unref(watcher->call);
    free(watcher);
}

static void watcher_remove_locked(struct watcher *watcher)
{
    if (watcher->prev != NULL) {
        watcher->prev->next = watcher->next;
    } else {
        events.watchers = watcher->next;
    }
    if (watcher->next != NULL) {
        watcher->next->prev = watcher->prev;
    }
    watcher->listed = false;
    events.watcher_count--;
}

static void on_watch_done(struct rpc_call *call, void *ud)
{
    struct watcher *watcher = ud;
    pthread_mutex_lock(&events.lock);
    bool listed = watcher->listed;
    if (listed) {
        watcher_remove_locked(watcher);
    }
    pthread_mutex_unlock(&events.lock);
    if (listed) {
        rpc_finish(call, NULL, STATUS_CANCELLED, NULL);
        watcher_unref(watcher);
    }
    watcher_unref(watcher);
}

/* Sends to all; those that cannot keep up leave the list and are chained by `next` for end_slow(). */
static struct watcher *deliver_locked(const Covey__V1__Event *event)
{
    struct watcher *slow = NULL, *next;
    for (struct watcher *watcher = events.watchers; watcher != NULL; watcher = next) {
        next = watcher->next;
        struct error err = ERROR_INIT;
        if (event_matches(&watcher->filter, event) && rpc_try_send(watcher->call, &event->base, &err) != STATUS_OK) {
            watcher_remove_locked(watcher);
            watcher->next = slow;
            slow = watcher;
        }
    }
    return slow;
}

static void end_slow(struct watcher *slow)
{
    while (slow != NULL) {
        struct watcher *next = slow->next;
        struct error err = ERROR_INIT;
        error_set(&err, STATUS_RESOURCE_EXHAUSTED, "the watcher cannot keep up with the events");
        log_warn("events.slow", "user=%s", rpc_caller(slow->call)->username);
        rpc_finish(slow->call, NULL, err.code, &err);
        watcher_unref(slow);
        slow = next;
    }
}

/* ---- publishing ---- */

static struct watcher *chain(struct watcher *a, struct watcher *b)
{
    struct watcher **end = &a;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = b;
    return a;
}

void events_publish(Covey__V1__Event *const *list, size_t count)
{
    bool leads = daemon_leads(events.daemon), clustered = daemon_clustered(events.daemon);
    uint64_t term = daemon_term(events.daemon);
    struct watcher *slow = NULL;
    pthread_mutex_lock(&events.lock);
    check_cluster_locked(clustered, leads);
    for (size_t i = 0; i < count; i++) {
        Covey__V1__Event *event = list[i];
        if (event->number == 0 && leads) {
            uint64_t base = term << SEQUENCE_BITS;
            event->number = (events.last > base ? events.last : base) + 1;
        } else if (event->number != 0 && event->number <= events.last) {
            continue; /* delivered before */
        }
        if (event->number != 0) {
            keep_locked(event);
        }
        slow = chain(deliver_locked(event), slow);
    }
    pthread_mutex_unlock(&events.lock);
    end_slow(slow);
    for (size_t i = 0; i < events.hook_count; i++) {
        events.hooks[i].fn(events.hooks[i].ud);
    }
}

uint64_t events_last(void)
{
    bool leads = daemon_leads(events.daemon), clustered = daemon_clustered(events.daemon);
    pthread_mutex_lock(&events.lock);
    check_cluster_locked(clustered, leads);
    uint64_t last = events.last;
    pthread_mutex_unlock(&events.lock);
    return last;
}

static bool after_locked(uint64_t number, struct arena *arena, Covey__V1__Event ***out, size_t *count)
{
    *count = 0;
    *out = NULL;
    if (number < events.dropped) {
        return false;
    }
    Covey__V1__Event **list = arena_alloc(arena, (events.count + 1) * sizeof *list);
    for (size_t i = 0; i < events.count; i++) {
        const struct kept *kept = &events.ring[(events.first + i) % EVENTS_KEPT_MAX];
        if (kept->number > number) {
            Covey__V1__Event *event = covey__v1__event__unpack(&arena->allocator, kept->len, kept->data);
            covey_assert(event != NULL);
            list[(*count)++] = event;
        }
    }
    *out = list;
    return true;
}

bool events_after(uint64_t number, struct arena *arena, Covey__V1__Event ***out, size_t *count)
{
    pthread_mutex_lock(&events.lock);
    bool complete = after_locked(number, arena, out, count);
    pthread_mutex_unlock(&events.lock);
    return complete;
}

void events_gap(void)
{
    struct error err = ERROR_INIT;
    error_set(&err, STATUS_RESOURCE_EXHAUSTED, "events were missed: this member could not keep up");
    pthread_mutex_lock(&events.lock);
    struct watcher *all = events.watchers;
    for (struct watcher *watcher = all; watcher != NULL; watcher = watcher->next) {
        watcher->listed = false;
    }
    events.watchers = NULL;
    events.watcher_count = 0;
    while (events.count > 0) {
        drop_oldest_locked();
    }
    events.last = 0;
    pthread_mutex_unlock(&events.lock);
    while (all != NULL) {
        struct watcher *next = all->next;
        rpc_finish(all->call, NULL, err.code, &err);
        watcher_unref(all);
        all = next;
    }
}

/* ---- covey.v1.Events ---- */

static struct watcher *watcher_make(struct rpc_call *call, const Covey__V1__WatchRequest *request, unsigned types)
{
    const struct caller *caller = rpc_caller(call);
    struct watcher *watcher = xcalloc(1, sizeof *watcher);
    atomic_init(&watcher->references, 2);
    watcher->call = call;
    watcher->project = xstrdup(project_or_default(request->project));
    if (caller->restricted) {
        size_t count = 0;
        while (caller->projects != NULL && caller->projects[count] != NULL) {
            count++;
        }
        watcher->projects = xcalloc(count + 1, sizeof *watcher->projects);
        for (size_t i = 0; i < count; i++) {
            watcher->projects[i] = xstrdup(caller->projects[i]);
        }
    }
    watcher->filter = (struct event_filter){.types = types, .admin = !caller->restricted && caller->class != CALLER_NONE, .all_projects = request->all_projects,
        .project = watcher->project, .projects = watcher->projects};
    return watcher;
}

/* The first message, then kept events after `from`, in one go with the registration, so that nothing lies between. */
static int start_locked(struct watcher *watcher, uint64_t from, struct error *err)
{
    struct arena arena;
    Covey__V1__Event hello = COVEY__V1__EVENT__INIT, **list = NULL;
    size_t count = 0;
    if (events.watcher_count >= EVENTS_WATCHERS_MAX) {
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d event watchers", EVENTS_WATCHERS_MAX);
    }
    arena_init(&arena);
    hello.number = events.last;
    int status = STATUS_OK;
    if (from != 0 && !after_locked(from, &arena, &list, &count)) {
        status = error_set(err, STATUS_OUT_OF_RANGE, "events after number %" PRIu64 " are not kept any more", from);
    }
    if (status == STATUS_OK) {
        status = rpc_try_send(watcher->call, &hello.base, err);
    }
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        status = event_matches(&watcher->filter, list[i]) ? rpc_try_send(watcher->call, &list[i]->base, err) : STATUS_OK;
    }
    arena_clear(&arena);
    if (status == STATUS_OK) {
        watcher->next = events.watchers;
        if (watcher->next != NULL) {
            watcher->next->prev = watcher;
        }
        events.watchers = watcher;
        events.watcher_count++;
        watcher->listed = true;
    }
    return status;
}

static int watch(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__WatchRequest *request = (const Covey__V1__WatchRequest *)message;
    unsigned types = 0;
    if (event_types_parse(request->type, &types, err) != STATUS_OK) {
        return err->code;
    }
    if (request->all_projects && !str_empty(request->project)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Cannot specify a project when requesting all projects");
    }
    struct watcher *watcher = watcher_make(call, request, types);
    pthread_mutex_lock(&events.lock);
    int status = start_locked(watcher, request->from, err);
    pthread_mutex_unlock(&events.lock);
    if (status != STATUS_OK) {
        watcher->call = rpc_call_ref(call); /* the caller keeps its own */
        watcher_unref(watcher);
        watcher_unref(watcher);
        return status;
    }
    rpc_call_on_done(call, on_watch_done, watcher);
    return RPC_LATER;
}

static const struct rpc_binding bindings[] = {{"Watch", watch}};

void events_init(struct daemon *daemon)
{
    events.daemon = daemon;
    events.clustered = daemon_clustered(daemon);
    rpc_bind("covey.v1.Events", bindings, sizeof bindings / sizeof *bindings, NULL);
}
