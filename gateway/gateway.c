/* Start, stop, and the watch over requests that wait for the daemon: libmicrohttpd does not look at a suspended connection, so the hub asks from time
 * to time whether its client is still there, and cancels the call if not. */
#include "http.h"
#include "hub.h"
#include "request.h"
#include "websocket.h"
#include <malloc.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

static struct rpc_channel *channel;
static pthread_mutex_t watch_lock = PTHREAD_MUTEX_INITIALIZER; /* protects the next four, and watched/call_over/gone/next/prev of requests */
static struct request *watched;
static size_t watched_count;
static bool ticking, added_since_tick;
static bool trim_posted; /* hub thread */

struct rpc_channel *gateway_channel(void)
{
    return channel;
}

/* ---- the watch ---- */

/* A local client is gone when it closed both directions; a TLS client that ends its own direction has left. */
static bool client_left(const struct request *r, short revents)
{
    return (revents & (POLLHUP | POLLERR)) != 0 || (r->peer->tls && (revents & POLLRDHUP) != 0);
}

static void watch_look(void)
{
    struct pollfd *fds = xcalloc(watched_count + 1, sizeof(*fds));
    size_t n = 0;
    for (struct request *r = watched; r != NULL; r = r->next)
        fds[n++] = (struct pollfd){.fd = r->fd, .events = POLLRDHUP};
    if (poll(fds, n, 0) > 0) {
        n = 0;
        for (struct request *r = watched; r != NULL; r = r->next, n++)
            if (client_left(r, fds[n].revents))
                r->gone(r);
    }
    free(fds);
}

/* After a burst: what the heap holds for nothing goes back to the system. */
static void trim(void *unused)
{
    (void)unused;
    trim_posted = false;
    malloc_trim(0);
}

static void watch_tick(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&watch_lock);
    if (watched_count > 0)
        watch_look();
    bool again = (watched_count > 0 || added_since_tick) && !hub_stopping();
    ticking = again;
    added_since_tick = false;
    if (again)
        hub_post(GATEWAY_GONE_CHECK_MS, watch_tick, NULL);
    pthread_mutex_unlock(&watch_lock);
    if (!again && !trim_posted && !hub_stopping()) {
        trim_posted = true;
        hub_post(GATEWAY_TRIM_MS, trim, NULL);
    }
}

void watch_add(struct request *r, void (*gone)(struct request *r))
{
    pthread_mutex_lock(&watch_lock);
    if (!r->call_over) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(r->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        r->fd = info->connect_fd;
        r->gone = gone;
        r->watched = true;
        r->prev = NULL;
        r->next = watched;
        if (watched != NULL)
            watched->prev = r;
        watched = r;
        watched_count++;
        added_since_tick = true;
        if (!ticking) {
            ticking = true;
            hub_post(GATEWAY_GONE_CHECK_MS, watch_tick, NULL);
        }
    }
    pthread_mutex_unlock(&watch_lock);
}

void watch_remove(struct request *r)
{
    pthread_mutex_lock(&watch_lock);
    r->call_over = true;
    if (r->watched) {
        r->watched = false;
        if (r->prev != NULL)
            r->prev->next = r->next;
        else
            watched = r->next;
        if (r->next != NULL)
            r->next->prev = r->prev;
        watched_count--;
    }
    pthread_mutex_unlock(&watch_lock);
}

static void watch_cancel_all(void)
{
    pthread_mutex_lock(&watch_lock);
    for (struct request *r = watched; r != NULL; r = r->next)
        r->gone(r);
    pthread_mutex_unlock(&watch_lock);
}

/* ---- start and stop ---- */

int gateway_start(const struct gateway_options *options, struct error *err)
{
    struct sockaddr_un addr;
    char *daemon = xasprintf("%s/grpc.socket", options->dir);
    if (strlen(options->dir) + sizeof("/gateway.socket") > sizeof(addr.sun_path)) {
        free(daemon);
        return error_set(err, STATUS_INVALID_ARGUMENT, "the path of the state directory is too long: %s", options->dir);
    }
    routes_init();
    channel = rpc_channel_unix(daemon);
    free(daemon);
    hub_start();
    if (http_start(options, err) != STATUS_OK) {
        hub_stop();
        rpc_channel_unref(channel);
        channel = NULL;
        return err->code;
    }
    feed_start(options->dir);
    return STATUS_OK;
}

bool gateway_stop(void)
{
    feed_stop();
    http_quiesce();
    websocket_close_all();
    bool idle = http_wait_idle(GATEWAY_DRAIN_MS);
    if (!idle) {
        watch_cancel_all();
        idle = http_wait_idle(GATEWAY_CANCEL_MS);
    }
    if (!idle)
        return false;
    http_stop();
    hub_stop();
    rpc_channel_unref(channel);
    channel = NULL;
    return true;
}
