/* Servers: listening sockets, requested calls, and the way of a call to its handler.
 *
 * Threads: queue threads take new calls in (caller, access) and hand them to a pool; one accept thread per local socket. What may fail:
 * listening; a call, by its status. */
#include "rpc_private.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <grpc/grpc_posix.h>
#include <limits.h>
#include <poll.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { GROUPS_MAX = 1024, LISTEN_BACKLOG = 512, ACCEPT_PAUSE_MS = 100, SHUTDOWN_WARN_MS = 10 * 1000 };

#define CALL_OF(tag_pointer, member) ((struct rpc_call *)((char *)(tag_pointer) - offsetof(struct rpc_call, member)))

struct rpc_server {
    pthread_mutex_t lock; /* protects endpoints and their `stopped` */
    pthread_cond_t changed;
    struct endpoint *endpoints;
    unsigned endpoint_count;
    struct tls_server *tls;
    int port;
    struct handover *handover; /* NULL: it listens itself */
    /* local socket */
    char *path;
    int64_t group;
    int listen_fd, stop_fd;
    pthread_t accept_thread;
    grpc_server_credentials *insecure;
};

/* ---- handlers ---- */

void server__fail(struct rpc_call *call, int status, const struct error *err)
{
    server__finish_raw(call, NULL, status, err);
    rpc_call_unref(call);
}

void rpc_finish(struct rpc_call *call, const ProtobufCMessage *response, int status, const struct error *err)
{
    struct error local = ERROR_INIT;
    grpc_byte_buffer *buffer = NULL;

    if (status != STATUS_OK) {
        if (err != NULL && err->code == (enum status)status)
            local = *err;
        else
            error_set(&local, (enum status)status, "%s", err != NULL && err->text[0] != '\0' ? err->text : status_name((enum status)status));
        if (forward__retry(call, status, &local, true))
            return;
    } else if (response != NULL || !call->method->server_streaming) {
        buffer = rpc__pack(response, &local);
        if (buffer == NULL)
            status = local.code;
    }
    server__finish_raw(call, buffer, status, &local);
}

void server__run_local(struct rpc_call *call)
{
    const struct binding *binding = rpc__binding(call->method);
    struct error err = ERROR_INIT;
    ProtobufCMessage *response = NULL;
    int rc;

    if (rpc_call_cancelled(call)) {
        error_set(&err, STATUS_CANCELLED, "the call was cancelled");
        server__fail(call, err.code, &err);
        return;
    }
    if (rpc__policy.admit != NULL && !rpc__is_grpc_service(call->method)) {
        rc = rpc__policy.admit(rpc__policy.ud, call, &err);
        if (rc != STATUS_OK) {
            rpc_finish(call, NULL, rc, &err);
            rpc_call_unref(call);
            return;
        }
    }
    if (binding->handler == NULL) {
        error_set(&err, STATUS_UNIMPLEMENTED, "not implemented");
        server__fail(call, err.code, &err);
        return;
    }
    rc = binding->handler(call, call->request, &response, &err, binding->ud);
    if (rc == RPC_LATER)
        return;
    rpc_finish(call, response, rc, &err);
    rpc_call_unref(call);
}

void server__dispatch(struct rpc_call *call)
{
    struct error err = ERROR_INIT;

    if (!call->method->client_streaming && call->request == NULL) {
        if (call->payload == NULL)
            error_set(&err, STATUS_INVALID_ARGUMENT, "the request message is missing");
        else
            call->request = rpc__unpack(call->method->input, call->payload, &call->arena, &err);
        if (call->request == NULL) {
            server__fail(call, err.code, &err);
            return;
        }
    }
    forward__dispatch(call);
}

static void run_call(struct task *task)
{
    server__dispatch(CALL_OF(task, task));
}

/* ---- new calls ---- */

struct slot { /* one requested call */
    struct tag tag;
    struct endpoint *endpoint;
    const struct method *method; /* NULL: any other path */
    unsigned queue;
    grpc_call *call;
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_byte_buffer *payload;
    grpc_call_details details;
};

static const struct method unknown_method = {.path = "(unknown)", .service = "", .name = ""};

static unsigned *slot_count(struct endpoint *endpoint, const struct method *method)
{
    return &endpoint->slots[method != NULL ? method->index : registry_method_count()];
}

static void slot_request(struct slot *slot)
{
    struct endpoint *endpoint = slot->endpoint;
    grpc_completion_queue *queue = rpc__queue(slot->queue);
    grpc_call_error rc;

    slot->call = NULL;
    slot->payload = NULL;
    grpc_metadata_array_init(&slot->metadata);
    if (slot->method == NULL) {
        grpc_call_details_init(&slot->details);
        rc = grpc_server_request_call(endpoint->server, &slot->call, &slot->details, &slot->metadata, queue, queue, tag_post(&slot->tag));
    } else {
        rc = grpc_server_request_registered_call(endpoint->server, endpoint->methods[slot->method->index], &slot->call, &slot->deadline,
                                                 &slot->metadata, slot->method->client_streaming ? NULL : &slot->payload, queue, queue, tag_post(&slot->tag));
    }
    if (rc != GRPC_CALL_OK)
        core_panic(__FILE__, __LINE__, "cannot request calls: %s", grpc_call_error_to_string(rc));
}

static void on_new_call(struct tag *tag, bool ok);

static void slot_new(struct endpoint *endpoint, const struct method *method, unsigned queue)
{
    struct slot *slot = xcalloc(1, sizeof(*slot));
    slot->tag.fn = on_new_call;
    slot->endpoint = endpoint;
    slot->method = method;
    slot->queue = queue;
    pthread_mutex_lock(&endpoint->lock);
    ++*slot_count(endpoint, method);
    endpoint->pending++;
    pthread_mutex_unlock(&endpoint->lock);
    slot_request(slot);
}

static void slot_free(struct slot *slot)
{
    struct endpoint *endpoint = slot->endpoint;
    struct rpc_server *server = endpoint->owner;

    grpc_metadata_array_destroy(&slot->metadata);
    if (slot->method == NULL)
        grpc_call_details_destroy(&slot->details);
    /* The server's lock all the way: once it sees the last one gone, rpc_server_destroy() frees both objects. */
    pthread_mutex_lock(&server->lock);
    pthread_mutex_lock(&endpoint->lock);
    --*slot_count(endpoint, slot->method);
    endpoint->pending--;
    pthread_mutex_unlock(&endpoint->lock);
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
    free(slot);
}

static void on_close(struct tag *tag, bool ok)
{
    struct rpc_call *call = CALL_OF(tag, end_tag);
    (void)ok;
    call__ended(call);
    call__drop(call);
}

static void submit_call(struct rpc_call *call, bool confirmed)
{
    struct error err = ERROR_INIT;

    call->confirmed = confirmed;
    call->task.run = run_call;
    if (pool__submit(rpc__pool_of(call->method), &call->task))
        return;
    error_set(&err, STATUS_RESOURCE_EXHAUSTED, "too many calls are waiting");
    server__fail(call, err.code, &err);
}

static bool confirms(const struct method *method)
{
    return method->route == RPC_ROUTE_LEADER && !method->write && !method->client_streaming && rpc__policy.confirm != NULL && !rpc__is_grpc_service(method);
}

int64_t rpc_call_search_left_ms(const struct rpc_call *call)
{
    int64_t left = call->route_until_ms - time_mono_ms();
    return left > 0 ? left : 0;
}

unsigned rpc_call_forwarded(const struct rpc_call *call) { return call->forwarded; }
bool rpc_call_confirmed(const struct rpc_call *call) { return call->confirmed; }

static void accept_call(struct rpc_call *call)
{
    struct error err = ERROR_INIT;
    grpc_op op;

    memset(&op, 0, sizeof(op));
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &call->cancelled;
    call->end_tag.fn = on_close;
    call__hold(call);
    grpc_call_error rc = grpc_call_start_batch(call->call, &op, 1, tag_post(&call->end_tag), NULL);
    covey_assert(rc == GRPC_CALL_OK);
    if (call->method == &unknown_method)
        error_set(&err, STATUS_UNIMPLEMENTED, "not implemented");
    else if (caller__build(call, &err) == STATUS_OK && !caller__may(call))
        error_set(&err, STATUS_PERMISSION_DENIED, "not authorized");
    if (err.code != STATUS_OK)
        server__fail(call, err.code, &err);
    else if (forward__at_once(call))
        return;
    else if (!confirms(call->method) || !rpc__policy.confirm(rpc__policy.ud, call, submit_call))
        submit_call(call, false);
}

static void on_new_call(struct tag *tag, bool ok)
{
    struct slot *slot = (struct slot *)tag;

    if (!ok) { /* the server stops */
        slot_free(slot);
        return;
    }
    const struct method *method = slot->method;
    struct rpc_call *call = call__new(true, method != NULL ? method : &unknown_method);
    call->endpoint = slot->endpoint;
    call->call = slot->call;
    grpc_metadata_array_destroy(&call->metadata);
    call->metadata = slot->metadata;
    call->payload = slot->payload;
    if (method != NULL) {
        call->deadline_ms = rpc__mono_ms(slot->deadline);
        if (call->deadline_ms == INT64_MAX && !rpc__method_long(method))
            call->deadline_ms = time_mono_ms() + RPC_DEADLINE_MS_DEFAULT;
    } else {
        grpc_call_details_destroy(&slot->details);
    }
    /* The open call keeps the server from being destroyed, so ask for the next one first. A busy method asks for more each time. */
    struct endpoint *endpoint = slot->endpoint;
    unsigned queue = slot->queue;
    bool stream = method != NULL && (method->client_streaming || method->server_streaming);
    pthread_mutex_lock(&endpoint->lock);
    bool more = *slot_count(endpoint, method) < (method == NULL || stream ? RPC_STREAM_SLOTS_MAX : RPC_UNARY_SLOTS_MAX);
    pthread_mutex_unlock(&endpoint->lock);
    slot_request(slot);
    if (more)
        slot_new(endpoint, method, queue + 1);
    accept_call(call);
}

/* ---- endpoints ---- */

static void on_shutdown(struct tag *tag, bool ok)
{
    struct endpoint *endpoint = (struct endpoint *)((char *)tag - offsetof(struct endpoint, shutdown_tag));
    struct rpc_server *server = endpoint->owner;
    (void)ok;
    pthread_mutex_lock(&server->lock);
    endpoint->stopped = true;
    pthread_cond_broadcast(&server->changed);
    pthread_mutex_unlock(&server->lock);
}

static grpc_arg arg_int(const char *key, int value)
{
    grpc_arg arg;
    memset(&arg, 0, sizeof(arg));
    arg.type = GRPC_ARG_INTEGER;
    arg.key = (char *)key;
    arg.value.integer = value;
    return arg;
}

static struct endpoint *endpoint_new(struct rpc_server *server, bool is_unix)
{
    grpc_arg args[] = {
        arg_int(GRPC_ARG_ALLOW_REUSEPORT, 0), /* else two daemons bind one port without an error */
        arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, CODEC_MESSAGE_MAX),
        arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, CODEC_MESSAGE_MAX),
        arg_int(GRPC_ARG_MAX_METADATA_SIZE, RPC_METADATA_BYTES_MAX),
        arg_int(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000),
        arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, is_unix ? INT_MAX : 10000),
        arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000),
        arg_int(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
        {0}, /* the handover's */
    };
    grpc_channel_args list = {sizeof(args) / sizeof(args[0]) - 1, args};
    if (server->handover != NULL)
        args[list.num_args++] = handover__arg(server->handover);
    struct endpoint *endpoint = xcalloc(1, sizeof(*endpoint));
    size_t count = registry_method_count();

    endpoint->owner = server;
    endpoint->is_unix = is_unix;
    endpoint->shutdown_tag.fn = on_shutdown;
    pthread_mutex_init(&endpoint->lock, NULL);
    endpoint->server = grpc_server_create(&list, NULL);
    endpoint->methods = xcalloc(count + 1, sizeof(*endpoint->methods));
    endpoint->slots = xcalloc(count + 1, sizeof(*endpoint->slots));
    for (unsigned i = 0; i < rpc__queue_count(); i++)
        grpc_server_register_completion_queue(endpoint->server, rpc__queue(i), NULL);
    for (unsigned i = 0; i < count; i++) {
        const struct method *method = registry_method(i);
        if (rpc__binding(method)->bound) {
            endpoint->methods[i] = grpc_server_register_method(endpoint->server, method->path, NULL,
                method->client_streaming ? GRPC_SRM_PAYLOAD_NONE : GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
            covey_assert(endpoint->methods[i] != NULL);
        }
    }
    return endpoint;
}

static void endpoint_start(struct endpoint *endpoint)
{
    grpc_server_start(endpoint->server);
    for (unsigned i = 0; i < RPC_SLOTS_MIN; i++) {
        for (unsigned m = 0; m < registry_method_count(); m++) {
            if (endpoint->methods[m] != NULL)
                slot_new(endpoint, registry_method(m), i);
        }
        slot_new(endpoint, NULL, i);
    }
}

/* ---- TLS ---- */

static struct rpc_server *server_new(void)
{
    struct rpc_server *server = xcalloc(1, sizeof(*server));
    pthread_mutex_init(&server->lock, NULL);
    rpc__cond_init(&server->changed);
    server->listen_fd = server->stop_fd = -1;
    return server;
}

/* Adds the TLS endpoint and its port; the server is not started yet. */
static void add_tls_port(struct rpc_server *server, const char *target, const struct identity *identity)
{
    struct endpoint *endpoint = endpoint_new(server, false);

    server->endpoints = endpoint;
    server->endpoint_count = 1;
    server->tls = tls_server_create(identity);
    grpc_server_credentials *credentials = tls_server_credentials(server->tls);
    if (credentials != NULL) {
        server->port = grpc_server_add_http2_port(endpoint->server, target, credentials);
        grpc_server_credentials_release(credentials);
    }
}

struct rpc_server *rpc_server_listen_tls(const char *address, const struct identity *identity, struct error *err)
{
    struct rpc_server *server = server_new();
    char *target = address[0] == ':' ? xasprintf("[::]%s", address) : xstrdup(address);

    add_tls_port(server, target, identity);
    free(target);
    if (server->port == 0) {
        error_set(err, STATUS_UNAVAILABLE, "cannot listen on %s: the address is in use or not of this host, or the certificate is not usable", address);
        grpc_server_start(server->endpoints->server); /* gRPC shuts down only what was started */
        rpc_server_destroy(server, 0);
        return NULL;
    }
    endpoint_start(server->endpoints);
    return server;
}

struct rpc_server *rpc_server_tls(const struct identity *identity, struct error *err)
{
    if (!handover__supported(err))
        return NULL;
    struct rpc_server *server = server_new();
    server->handover = handover__create();
    add_tls_port(server, HANDOVER_TARGET, identity);
    if (!handover__ready(server->handover)) {
        error_set(err, STATUS_INTERNAL, "gRPC takes no connections from outside, or the certificate is not usable");
        grpc_server_start(server->endpoints->server);
        rpc_server_destroy(server, 0);
        return NULL;
    }
    endpoint_start(server->endpoints);
    return server;
}

void rpc_server_take(struct rpc_server *server, int fd)
{
    handover__take(server->handover, fd);
}

void rpc_server_set_identity(struct rpc_server *server, const struct identity *identity)
{
    covey_assert(server->tls != NULL);
    tls_server_set(server->tls, identity);
}

int rpc_server_port(const struct rpc_server *server)
{
    return server->port;
}

/* ---- local socket ---- */

static bool user_name(uid_t uid, gid_t *gid, char *name, size_t size)
{
    struct passwd entry, *found = NULL;
    char text[8192];
    if (getpwuid_r(uid, &entry, text, sizeof(text), &found) != 0 || found == NULL)
        return false;
    *gid = entry.pw_gid;
    snprintf(name, size, "%s", entry.pw_name);
    return true;
}

/* Root, the daemon's own user, and members of the socket's group. */
static bool peer_allowed(const struct rpc_server *server, const struct ucred *peer, char *name, size_t size)
{
    gid_t gid = peer->gid;
    bool known = user_name(peer->uid, &gid, name, size);
    if (!known)
        snprintf(name, size, "uid-%u", (unsigned)peer->uid);
    if (peer->uid == 0 || peer->uid == geteuid())
        return true;
    if (server->group < 0)
        return false;
    if ((int64_t)peer->gid == server->group)
        return true;
    if (!known)
        return false;
    int count = GROUPS_MAX;
    gid_t *groups = xcalloc(GROUPS_MAX, sizeof(*groups));
    bool member = false;
    if (getgrouplist(name, gid, groups, &count) >= 0) {
        for (int i = 0; i < count; i++)
            member = member || (int64_t)groups[i] == server->group;
    } else {
        log_warn("rpc.peer", "user=%s text=\"in more than %d groups: refused\"", name, GROUPS_MAX);
    }
    free(groups);
    return member;
}

/* A call cannot be traced to its connection, so every user has a grpc_server of its own: the object says who calls. */
static struct endpoint *endpoint_of(struct rpc_server *server, uid_t uid, const char *name)
{
    pthread_mutex_lock(&server->lock);
    bool shared = false;
    struct endpoint *endpoint = server->endpoints;
    while (endpoint != NULL && (endpoint->shared || endpoint->uid != uid))
        endpoint = endpoint->next;
    if (endpoint == NULL && server->endpoint_count >= RPC_UNIX_USERS_MAX) {
        shared = true;
        for (endpoint = server->endpoints; endpoint != NULL && !endpoint->shared;)
            endpoint = endpoint->next;
    }
    pthread_mutex_unlock(&server->lock);
    if (endpoint != NULL)
        return endpoint;
    endpoint = endpoint_new(server, true); /* only this thread adds */
    endpoint->uid = uid;
    endpoint->shared = shared;
    snprintf(endpoint->username, sizeof(endpoint->username), "%s", shared ? "uid-many" : name);
    endpoint_start(endpoint);
    pthread_mutex_lock(&server->lock);
    endpoint->next = server->endpoints;
    server->endpoints = endpoint;
    server->endpoint_count++;
    pthread_mutex_unlock(&server->lock);
    return endpoint;
}

static void accept_one(struct rpc_server *server)
{
    int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct ucred peer;
    socklen_t size = sizeof(peer);
    char name[FINGERPRINT_SIZE];

    if (fd < 0) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            log_warn("rpc.accept", "path=%s error=\"%m\"", server->path);
            struct pollfd stop = {server->stop_fd, POLLIN, 0};
            poll(&stop, 1, ACCEPT_PAUSE_MS); /* the connection still waits: do not spin on it */
        }
        return;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || !peer_allowed(server, &peer, name, sizeof(name))) {
        log_info("rpc.refused", "path=%s uid=%u", server->path, (unsigned)peer.uid);
        close(fd);
        return;
    }
    grpc_server_add_channel_from_fd(endpoint_of(server, peer.uid, name)->server, fd, server->insecure); /* takes fd */
}

static void *accept_main(void *arg)
{
    struct rpc_server *server = arg;
    struct pollfd fds[2] = {{server->listen_fd, POLLIN, 0}, {server->stop_fd, POLLIN, 0}};

    for (;;) {
        int n = poll(fds, 2, -1);
        if (n < 0 && errno != EINTR)
            core_panic(__FILE__, __LINE__, "poll: %m");
        if (n > 0 && fds[1].revents != 0)
            return NULL;
        if (n > 0 && fds[0].revents != 0)
            accept_one(server);
    }
}

static int bind_local(const char *path, int64_t group, int *out, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(err, STATUS_INVALID_ARGUMENT, "socket path %s is longer than %zu bytes", path, sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(err, STATUS_INTERNAL, "socket: %m");
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 || errno == EAGAIN) {
        close(fd);
        return error_set(err, STATUS_FAILED_PRECONDITION, "%s is in use by another process", path);
    }
    close(fd);
    if (unlink(path) != 0 && errno != ENOENT)
        return error_set(err, STATUS_INTERNAL, "cannot remove the stale socket %s: %m", path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_set(err, STATUS_INTERNAL, "socket: %m");
    /* The mode of the socket before bind becomes the file's: it is never open to others, not even for a moment. */
    if (fchmod(fd, 0600) != 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 ||
        (group >= 0 && chown(path, (uid_t)-1, (gid_t)group) != 0) || chmod(path, 0660) != 0 || listen(fd, LISTEN_BACKLOG) != 0) {
        error_set(err, STATUS_INTERNAL, "cannot listen on %s: %m", path);
        close(fd);
        return STATUS_INTERNAL;
    }
    *out = fd;
    return STATUS_OK;
}

struct rpc_server *rpc_server_listen_unix(const char *path, int64_t group, struct error *err)
{
    struct rpc_server *server = server_new();

    server->listen_fd = inherited_socket(path);
    if (server->listen_fd < 0) {
        if (bind_local(path, group, &server->listen_fd, err) != STATUS_OK) {
            rpc_server_destroy(server, 0);
            return NULL;
        }
        server->path = xstrdup(path);
    }
    server->group = group;
    server->insecure = grpc_insecure_server_credentials_create();
    server->stop_fd = eventfd(0, EFD_CLOEXEC);
    if (server->stop_fd < 0 || pthread_create(&server->accept_thread, NULL, accept_main, server) != 0) {
        error_set(err, STATUS_INTERNAL, "cannot start the accept thread: %m");
        if (server->stop_fd >= 0)
            close(server->stop_fd);
        server->stop_fd = -1;
        rpc_server_destroy(server, 0);
        return NULL;
    }
    pthread_setname_np(server->accept_thread, "rpc-accept");
    return server;
}

/* ---- the end ---- */

static void stop_accepting(struct rpc_server *server)
{
    if (server->stop_fd >= 0) {
        uint64_t one = 1;
        covey_assert(write(server->stop_fd, &one, sizeof(one)) == sizeof(one));
        pthread_join(server->accept_thread, NULL);
        close(server->stop_fd);
    }
    if (server->listen_fd >= 0)
        close(server->listen_fd);
    if (server->path != NULL)
        unlink(server->path); /* gone already is fine */
}

static bool all_stopped_locked(struct rpc_server *server)
{
    for (struct endpoint *endpoint = server->endpoints; endpoint != NULL; endpoint = endpoint->next) {
        pthread_mutex_lock(&endpoint->lock);
        bool busy = !endpoint->stopped || endpoint->pending > 0;
        pthread_mutex_unlock(&endpoint->lock);
        if (busy)
            return false;
    }
    return true;
}

void rpc_server_destroy(struct rpc_server *server, int64_t grace_ms)
{
    if (server == NULL)
        return;
    stop_accepting(server);
    for (struct endpoint *endpoint = server->endpoints; endpoint != NULL; endpoint = endpoint->next)
        grpc_server_shutdown_and_notify(endpoint->server, rpc__queue(0), tag_post(&endpoint->shutdown_tag));
    int64_t until = time_mono_ms() + grace_ms;
    pthread_mutex_lock(&server->lock);
    while (!all_stopped_locked(server) && rpc__cond_wait(&server->changed, &server->lock, until))
        ;
    if (!all_stopped_locked(server)) {
        pthread_mutex_unlock(&server->lock);
        for (struct endpoint *endpoint = server->endpoints; endpoint != NULL; endpoint = endpoint->next)
            grpc_server_cancel_all_calls(endpoint->server);
        pthread_mutex_lock(&server->lock);
    }
    while (!all_stopped_locked(server)) { /* handlers see the cancellation and must end: their calls belong to the server */
        if (!rpc__cond_wait(&server->changed, &server->lock, time_mono_ms() + SHUTDOWN_WARN_MS))
            log_warn("rpc.server.wait", "text=\"handlers of cancelled calls still run\"");
    }
    pthread_mutex_unlock(&server->lock);
    while (server->endpoints != NULL) {
        struct endpoint *endpoint = server->endpoints;
        server->endpoints = endpoint->next;
        grpc_server_destroy(endpoint->server);
        pthread_mutex_destroy(&endpoint->lock);
        free(endpoint->methods);
        free(endpoint->slots);
        free(endpoint);
    }
    if (server->insecure != NULL)
        grpc_server_credentials_release(server->insecure);
    tls_server_destroy(server->tls);
    handover__destroy(server->handover);
    pthread_mutex_destroy(&server->lock);
    pthread_cond_destroy(&server->changed);
    free(server->path);
    free(server);
}
