/* Network listeners and the split between REST and gRPC on one port; see listener.h. One thread with one epoll set.
 *
 * A new connection is peeked at (MSG_PEEK, SO_RCVLOWAT so that a level-triggered wait does not spin) until its ClientHello is whole; then it is either passed
 * to the gateway or given to the gRPC server. */
#include "listener.h"

#include "client_hello.h"
#include "server/config/keys.h"
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <utlist.h>

enum {
    EVENTS = 64,
    BIND_TRIES = 10, /* over one second (spec/cluster.md 1.5) */
    BACKLOG = 512,
};

enum kind { LISTEN, HELLO, GATEWAY_LISTEN, WAKE };

struct watched {
    enum kind kind;
    int fd;
};

struct listening {
    struct watched watched; /* first */
    char address[300];
    struct listening *next; /* retired ones */
};

struct hello {
    struct watched watched; /* first */
    int64_t deadline_ms;
    char peer[80];
    struct hello *prev, *next;
};

static struct {
    struct daemon *daemon;
    struct rpc_server *grpc;  /* takes the connections that speak it */
    pthread_mutex_t changing; /* one listener_set at a time; taken before lock */
    pthread_mutex_t lock;     /* listening, retired, core, cluster; the thread has it while it handles events, so it is never held over a bind */
    pthread_t thread;
    bool started, stop;
    int epoll, gateway; /* gateway: the connected gateway's control socket, -1 = none; written by the thread only */
    struct watched wake, gateway_listen;
    struct listening *listening[2];
    struct listening *retired; /* closed, but perhaps in the events that the thread just got: it frees them */
    char core[300], cluster[300];
    struct hello *hellos;
    unsigned hello_count;
} listener = {.changing = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .epoll = -1, .gateway = -1};

/* ---- epoll helpers ---- */

static bool watch(struct watched *w, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = w};
    return epoll_ctl(listener.epoll, EPOLL_CTL_ADD, w->fd, &event) == 0;
}

/* ---- REST: passing sockets ---- */

static void pass_to_gateway(int fd, const char *peer)
{
    char text[128];
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec iov = {text, (size_t)snprintf(text, sizeof text, "tcp %s", peer)};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.space};
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    if (listener.gateway >= 0 && sendmsg(listener.gateway, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN) {
        close(listener.gateway);
        listener.gateway = -1;
    }
    close(fd); /* without a gateway the client sees the connection end and may come again */
}

static void gateway_accept(void)
{
    int fd = accept4(listener.gateway_listen.fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) {
        if (listener.gateway >= 0) {
            close(listener.gateway); /* the newest one serves */
        }
        listener.gateway = fd;
        log_info("gateway.attached", "fd=%d", fd);
    }
}

/* ---- new connections ---- */

static void peer_text(const struct sockaddr_storage *peer, char *out, size_t size)
{
    char host[INET6_ADDRSTRLEN] = "";
    if (peer->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)peer;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        snprintf(out, size, "[%s]:%u", host, ntohs(in6->sin6_port));
    } else {
        const struct sockaddr_in *in4 = (const struct sockaddr_in *)peer;
        inet_ntop(AF_INET, &in4->sin_addr, host, sizeof host);
        snprintf(out, size, "%s:%u", host, ntohs(in4->sin_port));
    }
}

static void hello_end(struct hello *hello)
{
    epoll_ctl(listener.epoll, EPOLL_CTL_DEL, hello->watched.fd, NULL);
    DL_DELETE(listener.hellos, hello);
    listener.hello_count--;
    free(hello);
}

static void hello_run(struct hello *hello)
{
    static uint8_t data[CLIENT_HELLO_BYTES_MAX]; /* this thread only */
    int fd = hello->watched.fd, one = 1;
    ssize_t n = recv(fd, data, sizeof data, MSG_PEEK | MSG_DONTWAIT);
    if (n <= 0) {
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            hello_end(hello);
            close(fd);
        }
        return;
    }
    size_t wanted = client_hello_wanted(data, (size_t)n);
    if (wanted > (size_t)n) {
        int low = (int)wanted;
        setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &low, sizeof low);
        return;
    }
    char peer[sizeof hello->peer];
    memcpy(peer, hello->peer, sizeof peer);
    bool grpc = client_hello_is_grpc(data, (size_t)n);
    hello_end(hello);
    setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
    if (grpc) {
        rpc_server_take(listener.grpc, fd);
    } else {
        pass_to_gateway(fd, peer);
    }
}

static void accept_one(struct listening *listening)
{
    struct sockaddr_storage peer;
    socklen_t size = sizeof peer;
    int fd = accept4(listening->watched.fd, (struct sockaddr *)&peer, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        return;
    }
    struct hello *hello = xcalloc(1, sizeof *hello);
    hello->watched = (struct watched){HELLO, fd};
    hello->deadline_ms = time_mono_ms() + LISTENER_HELLO_TIMEOUT_MS;
    peer_text(&peer, hello->peer, sizeof hello->peer);
    if (!watch(&hello->watched, EPOLLIN)) {
        close(fd);
        free(hello);
        return;
    }
    if (listener.hello_count >= LISTENER_PENDING_MAX) { /* who has said nothing for longest makes room, after this batch of events */
        struct hello *oldest = listener.hellos;
        while (oldest != NULL && oldest->deadline_ms == 0) {
            oldest = oldest->next;
        }
        if (oldest != NULL) {
            oldest->deadline_ms = 0;
        }
    }
    DL_APPEND(listener.hellos, hello);
    listener.hello_count++;
}

static void expire_hellos(void)
{
    struct hello *hello, *next;
    int64_t now = time_mono_ms();
    DL_FOREACH_SAFE(listener.hellos, hello, next) {
        if (hello->deadline_ms > now) {
            break; /* in order of arrival */
        }
        int fd = hello->watched.fd;
        hello_end(hello);
        close(fd);
    }
}

/* After a batch of events: no later one can name them. */
static void retired_free(void)
{
    while (listener.retired != NULL) {
        struct listening *next = listener.retired->next;
        free(listener.retired);
        listener.retired = next;
    }
}

static void *listener_main(void *ud)
{
    struct epoll_event events[EVENTS];
    while (!__atomic_load_n(&listener.stop, __ATOMIC_ACQUIRE)) {
        int n = epoll_wait(listener.epoll, events, EVENTS, listener.hellos != NULL ? 1000 : -1);
        pthread_mutex_lock(&listener.lock); /* listening sockets may be exchanged meanwhile */
        for (int i = 0; i < n; i++) {
            struct watched *w = events[i].data.ptr;
            uint64_t drop;
            switch (w->kind) {
            case LISTEN:
                if ((struct listening *)w == listener.listening[0] || (struct listening *)w == listener.listening[1]) {
                    accept_one((struct listening *)w);
                }
                break;
            case HELLO: hello_run((struct hello *)w); break;
            case GATEWAY_LISTEN: gateway_accept(); break;
            case WAKE:
                if (read(w->fd, &drop, sizeof drop) < 0) {
                    continue;
                }
                break;
            }
        }
        retired_free();
        expire_hellos();
        pthread_mutex_unlock(&listener.lock);
    }
    return NULL;
}

/* ---- configuration ---- */

struct binding {
    struct addrinfo *found; /* what a name resolves to */
    const char *address;
    char reason[400];
    bool in_use;
};

static int resolve(const char *address, struct addrinfo **out)
{
    char host[300];
    snprintf(host, sizeof host, "%s", address);
    char *port = strrchr(host, ':');
    *port++ = '\0';
    char *name = host;
    if (*name == '[') {
        name++;
        name[strcspn(name, "]")] = '\0';
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    return getaddrinfo(*name != '\0' ? name : NULL, port, &hints, out);
}

static int bind_one(const struct addrinfo *to, struct binding *binding)
{
    int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1, zero = 0;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (to->ai_family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero); /* [::] takes IPv4 too */
    }
    if (fd < 0 || bind(fd, to->ai_addr, to->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0) {
        const char *why = strerrordesc_np(errno);
        snprintf(binding->reason, sizeof binding->reason, "listen tcp %s: bind: %c%s", binding->address, tolower((unsigned char)why[0]), why + 1);
        binding->in_use = binding->in_use || errno == EADDRINUSE;
        if (fd >= 0) {
            close(fd);
        }
        fd = -1;
    }
    return fd;
}

static bool same_address(const struct addrinfo *a, const struct addrinfo *list)
{
    for (; list != NULL; list = list->ai_next) {
        if (a->ai_addrlen == list->ai_addrlen && memcmp(a->ai_addr, list->ai_addr, a->ai_addrlen) == 0) {
            return true;
        }
    }
    return false;
}

/* Binds what `address` resolves to: a name may stand for several members, so the first that is this host's; before others one that `covering` resolves to,
 * since a socket that is to serve two addresses must be at both. -1 and a reason in binding. */
static int bind_any(const char *address, const char *covering, struct binding *binding)
{
    struct addrinfo *found = NULL, *wanted = NULL;
    *binding = (struct binding){.address = address};
    int rc = resolve(address, &found), fd = -1;
    if (rc != 0) {
        snprintf(binding->reason, sizeof binding->reason, "listen tcp: lookup %s: %s", address, gai_strerror(rc));
        return -1;
    }
    if (covering[0] != '\0' && resolve(covering, &wanted) != 0) {
        wanted = NULL;
    }
    for (int pass = 0; pass < 2 && fd < 0; pass++) {
        for (const struct addrinfo *one = found; one != NULL && fd < 0; one = one->ai_next) {
            if (same_address(one, wanted) == (pass == 0)) {
                fd = bind_one(one, binding);
            }
        }
    }
    freeaddrinfo(found);
    if (wanted != NULL) {
        freeaddrinfo(wanted);
    }
    return fd;
}

/* *in_use (may be NULL): somebody has the address, perhaps a socket of our own that is to be replaced. */
static struct listening *listening_open(const char *address, const char *covering, const char *what, int tries, bool *in_use, struct error *err)
{
    struct binding binding = {0};
    int fd = bind_any(address, covering, &binding);
    for (int i = 1; fd < 0 && i < tries; i++) {
        usleep(100000);
        fd = bind_any(address, covering, &binding);
    }
    if (in_use != NULL) {
        *in_use = fd < 0 && binding.in_use;
    }
    if (fd < 0) {
        error_set(err, STATUS_INTERNAL, "Cannot listen on %s HTTPS socket \"%s\": %s", what, address, binding.reason);
        return NULL;
    }
    struct listening *listening = xcalloc(1, sizeof *listening);
    listening->watched = (struct watched){LISTEN, fd};
    snprintf(listening->address, sizeof listening->address, "%s", address);
    return listening;
}

/* With the lock. */
static void listening_close(struct listening *listening)
{
    if (listening != NULL) {
        epoll_ctl(listener.epoll, EPOLL_CTL_DEL, listening->watched.fd, NULL);
        close(listening->watched.fd);
        listening->next = listener.retired;
        listener.retired = listening;
    }
}

/* Puts bound sockets in the places of the present ones and into the epoll set. A present socket that is in `made` too, in whatever place, goes on. */
static int listening_install(struct listening *const made[2], struct error *err)
{
    bool ok = true;
    pthread_mutex_lock(&listener.lock);
    for (int i = 0; i < 2; i++) {
        struct listening *now = listener.listening[i];
        if (now != NULL && now != made[0] && now != made[1]) {
            listening_close(now);
        }
    }
    for (int i = 0; i < 2; i++) {
        bool fresh = made[i] != NULL && made[i] != listener.listening[0] && made[i] != listener.listening[1];
        ok = ok && (!fresh || watch(&made[i]->watched, EPOLLIN));
    }
    memcpy(listener.listening, made, sizeof listener.listening);
    pthread_mutex_unlock(&listener.lock);
    return ok ? STATUS_OK : error_set(err, STATUS_INTERNAL, "cannot watch a listening socket: %s", strerrordesc_np(errno));
}

/* The port is the text after the last colon. */
static bool same_port(const char *a, const char *b)
{
    return strcmp(strrchr(a, ':'), strrchr(b, ':')) == 0;
}

/* Closes present sockets that are not wanted and stand in the way of `address`. */
static void make_way(const char *const wanted[2], const char *address)
{
    struct listening *kept[2] = {listener.listening[0], listener.listening[1]};
    bool any = false;
    for (int i = 0; i < 2; i++) {
        if (kept[i] != NULL && strcmp(kept[i]->address, wanted[0]) != 0 && strcmp(kept[i]->address, wanted[1]) != 0 && same_port(kept[i]->address, address)) {
            kept[i] = NULL;
            any = true;
        }
    }
    if (any) {
        struct error err = ERROR_INIT;
        covey_assert(listening_install(kept, &err) == STATUS_OK); /* nothing new is watched */
    }
}

/* Binds what is wanted and not there yet, then closes the rest. Present sockets stay until the new ones are bound, but one in whose place a new one comes
 * (a wildcard on its port). With `changing`. */
static int listening_exchange(const char *const wanted[2], const char *cluster, struct error *err)
{
    static const char *const what[2] = {"network", "cluster"};
    struct listening *made[2] = {NULL, NULL};
    int status = STATUS_OK;
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2 && made[i] == NULL && wanted[i][0] != '\0'; j++) {
            struct listening *now = listener.listening[j];
            made[i] = now != NULL && strcmp(now->address, wanted[i]) == 0 && (i == 0 || now != made[0]) ? now : NULL;
        }
    }
    for (int i = 0; i < 2 && status == STATUS_OK; i++) {
        if (wanted[i][0] == '\0' || made[i] != NULL) {
            continue;
        }
        bool in_use = false;
        made[i] = listening_open(wanted[i], cluster, what[i], 1, &in_use, err);
        if (made[i] == NULL) {
            if (in_use) {
                make_way(wanted, wanted[i]);
            }
            made[i] = listening_open(wanted[i], cluster, what[i], BIND_TRIES, NULL, err);
        }
        status = made[i] != NULL ? STATUS_OK : (int)err->code;
    }
    if (status == STATUS_OK) {
        return listening_install(made, err);
    }
    for (int i = 0; i < 2; i++) {
        if (made[i] != NULL && made[i] != listener.listening[0] && made[i] != listener.listening[1]) {
            close(made[i]->watched.fd);
            free(made[i]);
        }
    }
    return status;
}

int listener_set(struct daemon *daemon, const char *core, const char *cluster, struct error *err)
{
    /* At most two sockets: core, and cluster unless core covers it. */
    const char *wanted[2] = {core, cluster[0] != '\0' && core[0] != '\0' && address_covered(cluster, core) ? "" : cluster};
    char before[2][300] = {"", ""}, before_cluster[300];
    struct error local = ERROR_INIT;
    err = err != NULL ? err : &local;
    pthread_mutex_lock(&listener.changing);
    for (int i = 0; i < 2; i++) { /* written with `changing` only */
        if (listener.listening[i] != NULL) {
            snprintf(before[i], sizeof before[i], "%s", listener.listening[i]->address);
        }
    }
    snprintf(before_cluster, sizeof before_cluster, "%s", listener.cluster);
    int status = listening_exchange(wanted, cluster, err);
    if (status == STATUS_OK) {
        pthread_mutex_lock(&listener.lock);
        snprintf(listener.core, sizeof listener.core, "%s", core);
        snprintf(listener.cluster, sizeof listener.cluster, "%s", cluster);
        pthread_mutex_unlock(&listener.lock);
    } else { /* put the former ones back */
        const char *former[2] = {before[0], before[1]};
        struct error again = ERROR_INIT;
        if (listening_exchange(former, before_cluster, &again) != STATUS_OK) {
            log_error("listener.restore", "error=\"%s\"", again.text);
        }
    }
    pthread_mutex_unlock(&listener.changing);
    return status;
}

void listener_get(char *core, size_t core_size, char *cluster, size_t cluster_size)
{
    pthread_mutex_lock(&listener.lock);
    snprintf(core, core_size, "%s", listener.core);
    snprintf(cluster, cluster_size, "%s", listener.cluster);
    pthread_mutex_unlock(&listener.lock);
}

int listener_start(struct daemon *daemon, struct rpc_server *grpc, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    listener.daemon = daemon;
    listener.grpc = grpc;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/gateway.socket", daemon->dir);
    unlink(address.sun_path);
    listener.epoll = epoll_create1(EPOLL_CLOEXEC);
    listener.wake = (struct watched){WAKE, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    listener.gateway_listen = (struct watched){GATEWAY_LISTEN, socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    mode_t mask = umask(0177);
    int rc = bind(listener.gateway_listen.fd, (struct sockaddr *)&address, sizeof address);
    umask(mask);
    if (rc != 0 || listen(listener.gateway_listen.fd, 4) != 0 || !watch(&listener.wake, EPOLLIN) || !watch(&listener.gateway_listen, EPOLLIN)) {
        return error_set(err, STATUS_INTERNAL, "cannot listen on %s: %s", address.sun_path, strerrordesc_np(errno));
    }
    if (pthread_create(&listener.thread, NULL, listener_main, NULL) != 0) {
        return error_set(err, STATUS_INTERNAL, "cannot start a thread");
    }
    listener.started = true;
    return STATUS_OK;
}

void listener_stop(void)
{
    if (!listener.started) {
        return;
    }
    uint64_t one = 1;
    __atomic_store_n(&listener.stop, true, __ATOMIC_RELEASE);
    if (write(listener.wake.fd, &one, sizeof one) == sizeof one) {
        pthread_join(listener.thread, NULL);
    }
    listening_close(listener.listening[0]);
    listening_close(listener.listening[1]);
    retired_free();
    while (listener.hellos != NULL) {
        int fd = listener.hellos->watched.fd;
        hello_end(listener.hellos);
        close(fd);
    }
    if (listener.gateway >= 0) {
        close(listener.gateway);
    }
    close(listener.gateway_listen.fd);
    close(listener.wake.fd);
    close(listener.epoll);
    listener.started = false;
}
