/* grpc.health.v1.Health: whether this process serves, asked once or watched.
 *
 * Thread: any. A watcher costs no thread. What may fail: Check of an unknown service (NOT_FOUND). */
#include "rpc_private.h"
#include "grpc/health.pb-c.h"
#include <stdlib.h>

typedef Grpc__Health__V1__HealthCheckRequest request_t;
typedef Grpc__Health__V1__HealthCheckResponse response_t;

struct watcher {
    struct watcher *next;
    struct rpc_call *call;
    bool unknown; /* the service is none of ours */
};

static struct {
    pthread_mutex_t lock; /* protects the rest */
    bool serving;
    struct watcher *watchers;
} health = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool service_known(const char *name)
{
    if (name[0] == '\0')
        return true;
    for (unsigned i = 0; i < registry_method_count(); i++) {
        const struct method *method = registry_method(i);
        if (str_eq(method->service, name) && rpc__binding(method)->bound)
            return true;
    }
    return false;
}

static void set_status(response_t *response, bool unknown)
{
    grpc__health__v1__health_check_response__init(response);
    if (unknown)
        response->status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN;
    else if (health.serving)
        response->status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    else
        response->status = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
}

static int check(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const request_t *req = (const request_t *)request;
    response_t *res = arena_alloc(rpc_arena(call), sizeof(*res));
    (void)ud;

    if (!service_known(req->service))
        return error_set(err, STATUS_NOT_FOUND, "unknown service \"%s\"", req->service);
    pthread_mutex_lock(&health.lock);
    set_status(res, false);
    pthread_mutex_unlock(&health.lock);
    *response = &res->base;
    return STATUS_OK;
}

/* A watcher that does not read its few bytes loses old states only when the stream's queue is full: the next change tells the newest. */
static void tell_locked(struct watcher *watcher)
{
    response_t response;
    set_status(&response, watcher->unknown);
    if (rpc_try_send(watcher->call, &response.base, NULL) != STATUS_OK)
        log_debug("rpc.health", "text=\"a watcher does not read\"");
}

static void watcher_gone(struct rpc_call *call, void *ud)
{
    struct watcher *watcher = ud;
    struct error err;

    pthread_mutex_lock(&health.lock);
    for (struct watcher **at = &health.watchers; *at != NULL; at = &(*at)->next) {
        if (*at == watcher) {
            *at = watcher->next;
            break;
        }
    }
    pthread_mutex_unlock(&health.lock);
    error_set(&err, STATUS_CANCELLED, "the watch has ended");
    rpc_finish(call, NULL, err.code, &err);
    rpc_call_unref(call);
    free(watcher);
}

static int watch(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const request_t *req = (const request_t *)request;
    struct watcher *watcher = xcalloc(1, sizeof(*watcher));
    (void)response;
    (void)err;
    (void)ud;

    watcher->call = call;
    watcher->unknown = !service_known(req->service);
    pthread_mutex_lock(&health.lock);
    watcher->next = health.watchers;
    health.watchers = watcher;
    tell_locked(watcher);
    pthread_mutex_unlock(&health.lock);
    rpc_call_on_done(call, watcher_gone, watcher);
    return RPC_LATER;
}

void rpc_health_set(bool serving)
{
    pthread_mutex_lock(&health.lock);
    bool changed = health.serving != serving;
    health.serving = serving;
    for (struct watcher *watcher = health.watchers; changed && watcher != NULL; watcher = watcher->next) {
        if (!watcher->unknown)
            tell_locked(watcher);
    }
    pthread_mutex_unlock(&health.lock);
}

void health__init(void)
{
    static const struct rpc_binding bindings[] = {{"Check", check}, {"Watch", watch}};
    rpc_bind("grpc.health.v1.Health", bindings, sizeof(bindings) / sizeof(bindings[0]), NULL);
}

void health__shutdown(void)
{
    pthread_mutex_lock(&health.lock);
    health.serving = false;
    covey_assert(health.watchers == NULL); /* every server is destroyed by now */
    pthread_mutex_unlock(&health.lock);
}
