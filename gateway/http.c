/* HTTP: two libmicrohttpd servers (one epoll thread each), the peer of each connection, and the life of a request: line and headers, body, handler,
 * answer. Owns every struct request until its second reference is gone. What the client sends is refused with an envelope; what is not HTTP at all is
 * answered by libmicrohttpd itself. */
#include "http.h"
#include "request.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/tcp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { HTTP_BACKLOG = 512, HTTP_USER_NAME_BYTES = 4096 };
/* The deepest JSON that jansson takes needs 164 KiB. Sanitizers need several times as much. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { HTTP_STACK_BYTES = 2 << 20 };
#else
enum { HTTP_STACK_BYTES = 256 << 10 };
#endif

static struct MHD_Daemon *server_unix, *server_tls;
static char *socket_path;
static struct stat socket_stat;
static atomic_uint active;
static atomic_bool draining;
static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t idle_changed = PTHREAD_COND_INITIALIZER;

bool gateway_draining(void)
{
    return atomic_load_explicit(&draining, memory_order_relaxed);
}

/* ---- peers ---- */

static void peer_user(struct peer *peer, int fd)
{
    static _Thread_local uid_t last_uid; /* one name is enough: nearly always it is the same user */
    static _Thread_local char last_name[FINGERPRINT_SIZE];
    struct ucred cred;
    socklen_t len = sizeof(cred);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0) {
        snprintf(peer->user, sizeof(peer->user), "unknown");
        return;
    }
    if (last_name[0] == '\0' || last_uid != cred.uid) {
        struct passwd entry, *found = NULL;
        char text[HTTP_USER_NAME_BYTES];
        bool named = getpwuid_r(cred.uid, &entry, text, sizeof(text), &found) == 0 && found != NULL && strlen(found->pw_name) < sizeof(last_name);
        for (const char *p = named ? found->pw_name : ""; *p != '\0'; p++)
            named = named && *p > ' ' && *p < 0x7f; /* it travels as a header */
        if (named)
            snprintf(last_name, sizeof(last_name), "%s", found->pw_name);
        else
            snprintf(last_name, sizeof(last_name), "%u", (unsigned)cred.uid);
        last_uid = cred.uid;
    }
    memcpy(peer->user, last_name, sizeof(peer->user));
}

static void peer_address(struct peer *peer, const struct sockaddr *addr)
{
    char text[INET6_ADDRSTRLEN] = "";
    if (addr != NULL && addr->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)addr;
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof(text));
        snprintf(peer->address, sizeof(peer->address), "%s:%u", text, ntohs(in->sin_port));
    } else if (addr != NULL && addr->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)addr;
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof(text));
        snprintf(peer->address, sizeof(peer->address), "[%s]:%u", text, ntohs(in->sin6_port));
    }
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **context, enum MHD_ConnectionNotificationCode code)
{
    bool tls = cls != NULL;
    struct peer *peer = *context;
    if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
        if (peer != NULL) {
            free(peer->cert_base64);
            buf_free(&peer->held);
        }
        free(peer);
        *context = NULL;
        return;
    }
    peer = xcalloc(1, sizeof(*peer));
    peer->tls = tls;
    if (tls) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
        peer_address(peer, info != NULL ? info->client_addr : NULL);
        certificates_request(connection);
        tls_join_parts(connection, peer);
    } else {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        peer_user(peer, info->connect_fd);
        snprintf(peer->address, sizeof(peer->address), "@");
    }
    *context = peer;
}

struct rpc_options request_options(struct request *r, struct call_metadata *metadata)
{
    const struct peer *peer = r->peer;
    size_t n = 0;
    metadata->items[n++] = "covey-caller-protocol";
    metadata->items[n++] = peer->tls ? "tls" : "unix";
    metadata->items[n++] = "covey-caller-address";
    metadata->items[n++] = peer->address;
    if (peer->user[0] != '\0') {
        metadata->items[n++] = "covey-caller-user";
        metadata->items[n++] = peer->user;
    }
    if (peer->cert_base64 != NULL) {
        metadata->items[n++] = "covey-caller-fingerprint";
        metadata->items[n++] = peer->fingerprint;
        if (r->handler == &handler_create_certificate) { /* the only one that looks at it: spare the others a kilobyte */
            metadata->items[n++] = "covey-caller-cert";
            metadata->items[n++] = peer->cert_base64;
        }
    }
    metadata->items[n] = NULL;
    const struct method *method = r->match.route->method;
    if (method->write && r->request_id[0] == '\0')
        uuid_new(r->request_id);
    return (struct rpc_options){.request_id = method->write ? r->request_id : NULL, .metadata = metadata->items};
}

/* ---- requests ---- */

struct request *request_ref(struct request *r)
{
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
    return r;
}

void request_unref(struct request *r)
{
    if (atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
        return;
    rpc_unary_free(r->call);
    buf_free(&r->body);
    buf_free(&r->out);
    arena_clear(&r->arena);
    pthread_mutex_destroy(&r->lock);
    free(r);
    if (atomic_fetch_sub(&active, 1) == 1 && gateway_draining()) {
        pthread_mutex_lock(&idle_lock);
        pthread_cond_broadcast(&idle_changed);
        pthread_mutex_unlock(&idle_lock);
    }
}

void request_suspend(struct request *r)
{
    pthread_mutex_lock(&r->lock);
    /* Suspended even if the wake came already: the handler must be called again, and MHD does that only for resumed connections. */
    MHD_suspend_connection(r->connection);
    if (r->woken)
        MHD_resume_connection(r->connection);
    else
        r->suspended = true;
    r->woken = false;
    pthread_mutex_unlock(&r->lock);
}

void request_wake(struct request *r)
{
    pthread_mutex_lock(&r->lock);
    if (r->suspended)
        MHD_resume_connection(r->connection);
    else
        r->woken = true;
    r->suspended = false;
    pthread_mutex_unlock(&r->lock);
}

const char *request_header(const struct request *r, const char *name)
{
    return MHD_lookup_connection_value(r->connection, MHD_HEADER_KIND, name);
}

const char *request_param(const struct request *r, const char *name)
{
    for (size_t i = 0; i < r->param_count; i++)
        if (strcmp(r->params[i].name, name) == 0)
            return r->params[i].value;
    return NULL;
}

static void *on_uri(void *cls, const char *uri, struct MHD_Connection *connection)
{
    struct request *r = xcalloc(1, sizeof(*r));
    (void)cls;
    atomic_init(&r->refs, 1);
    atomic_fetch_add(&active, 1);
    r->connection = connection;
    arena_init(&r->arena);
    r->uri = arena_strdup(&r->arena, uri);
    pthread_mutex_init(&r->lock, NULL);
    return r;
}

static size_t on_unescape(void *cls, struct MHD_Connection *connection, char *text)
{
    (void)cls;
    (void)connection;
    return strlen(text); /* paths are routed as they were sent, and decoded by us */
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **context, enum MHD_RequestTerminationCode code)
{
    struct request *r = *context;
    (void)cls;
    (void)connection;
    (void)code;
    if (r == NULL)
        return;
    *context = NULL;
    if (r->handler != NULL && r->handler->close != NULL)
        r->handler->close(r);
    request_unref(r);
}

static bool is_known_verb(const char *verb)
{
    static const char *const verbs[] = {"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"};
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (strcmp(verbs[i], verb) == 0)
            return true;
    return false;
}

/* Line and headers are there: finds the handler, or makes the error that is sent when the body has been read. */
static void begin(struct request *r)
{
    struct error err = ERROR_INIT;
    const char *query = strchr(r->uri, '?');
    size_t path_len = query != NULL ? (size_t)(query - r->uri) : strlen(r->uri);

    r->discard = true;
    if (r->peer->tls && !r->peer->cert_checked)
        certificates_of_peer(r->connection, r->peer);
    if (r->peer->cert_too_large) {
        answer_error(r, 400, "the client certificate is too large");
        return;
    }
    if (strcmp(r->verb, "OPTIONS") == 0)
        return;
    if (route_find(r->uri, path_len, &r->arena, &r->match, &err) != STATUS_OK) {
        answer_status(r, &err);
        return;
    }
    if (!is_known_verb(r->verb)) {
        answer_error(r, 404, arena_printf(&r->arena, "Method \"%s\" not found", r->verb));
        return;
    }
    const struct handler *handler = NULL;
    if (route_verb(&r->match, r->verb))
        handler = handler_find(r->match.route->method);
    if (handler == NULL) {
        answer_error(r, 501, "not implemented");
        return;
    }
    if (params_parse(&r->arena, query != NULL ? query + 1 : "", r->params, GATEWAY_PARAMS_MAX, &r->param_count, &err) != STATUS_OK) {
        answer_status(r, &err);
        return;
    }
    r->handler = handler;
    r->streamed_body = handler->begin != NULL && handler->begin(r);
    r->discard = !r->match.route->rule->body || r->http != 0;
}

/* The announced length is over the limit: said at once to a client that waits for permission, or whose body we would not even read. */
static bool refuse_length(struct request *r)
{
    const char *text = request_header(r, "Content-Length");
    int64_t length;
    if (text == NULL || r->streamed_body || parse_i64(text, 0, INT64_MAX, &length) != 0 || length <= GATEWAY_BODY_BYTES_MAX)
        return false;
    if (r->http == 0)
        answer_error(r, 413, "the request body is too large");
    r->discard = true;
    if (length <= GATEWAY_BODY_DISCARD_MAX && request_header(r, "Expect") == NULL)
        return false;
    r->close_after = true;
    return true;
}

static enum MHD_Result take_body(struct request *r, const char *data, size_t *len)
{
    if (r->streamed_body && r->http == 0) {
        *len -= r->handler->body(r, data, *len);
        return MHD_YES;
    }
    r->body_bytes += *len;
    if (!r->discard && r->body_bytes > GATEWAY_BODY_BYTES_MAX) {
        buf_free(&r->body);
        answer_error(r, 413, "the request body is too large");
        r->discard = true;
    }
    if (r->discard && r->body_bytes > GATEWAY_BODY_DISCARD_MAX && !r->streamed_body)
        return MHD_NO;
    if (!r->discard)
        buf_add(&r->body, data, *len);
    *len = 0;
    return MHD_YES;
}

static enum MHD_Result send_options(struct request *r)
{
    struct MHD_Response *response = MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    if (response == NULL)
        core_oom();
    enum MHD_Result rc = MHD_queue_response(r->connection, 200, response);
    MHD_destroy_response(response);
    return rc;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method, const char *version,
                                  const char *data, size_t *len, void **context)
{
    struct request *r = *context;
    (void)cls;
    (void)url;
    (void)version;
    covey_assert(r != NULL);
    if (!r->begun) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        r->begun = true;
        r->peer = info->socket_context;
        r->verb = arena_strdup(&r->arena, method);
        begin(r);
        return refuse_length(r) ? answer_send(r) : MHD_YES;
    }
    if (*len > 0)
        return take_body(r, data, len);
    if (r->http != 0)
        return answer_send(r);
    return r->handler != NULL ? r->handler->run(r) : send_options(r);
}

/* ---- servers ---- */

static void on_log(void *cls, const char *fmt, va_list args)
{
    char text[512];
    (void)cls;
    if (!log_on(LOG_LEVEL_DEBUG))
        return;
    vsnprintf(text, sizeof(text), fmt, args);
    text[strcspn(text, "\r\n")] = '\0';
    log_debug("gateway.http", "text=\"%s\"", text);
}

_Noreturn static void on_panic(void *cls, const char *file, unsigned line, const char *reason)
{
    (void)cls;
    core_panic(file, (int)line, "libmicrohttpd: %s", reason != NULL ? reason : "?");
}

/* A socket left by a gateway that is gone is replaced; one that answers is not ours to take. */
static int listen_unix(const char *path, int64_t group, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int given = inherited_socket(path);
    if (given >= 0)
        return given; /* and its file is not ours to remove */
    if (strlen(path) >= sizeof(addr.sun_path)) {
        error_set(err, STATUS_INVALID_ARGUMENT, "the path of the socket is too long: %s", path);
        return -1;
    }
    memcpy(addr.sun_path, path, strlen(path) + 1);
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool in_use = probe >= 0 && connect(probe, (struct sockaddr *)&addr, sizeof(addr)) == 0;
    if (probe >= 0)
        close(probe);
    if (in_use) {
        error_set(err, STATUS_ALREADY_EXISTS, "another process serves %s", path);
        return -1;
    }
    if (unlink(path) != 0 && errno != ENOENT) {
        error_errno(err, errno, "%s", path);
        return -1;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t old = umask(0177); /* opened to the group when it is the right one */
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0;
    umask(old);
    ok = ok && (group < 0 || chown(path, (uid_t)-1, (gid_t)group) == 0) && chmod(path, 0660) == 0 && stat(path, &socket_stat) == 0 &&
         listen(fd, HTTP_BACKLOG) == 0;
    if (ok)
        return fd;
    error_errno(err, errno, "%s", path);
    if (fd >= 0)
        close(fd);
    return -1;
}

static struct MHD_Daemon *server_start(bool tls, int listen_fd)
{
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_UPGRADE | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG;
    struct MHD_OptionItem tls_options[] = {
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)"NORMAL:-VERS-ALL:+VERS-TLS1.3"},
        {MHD_OPTION_HTTPS_CERT_CALLBACK2, 0, (void *)certificates_callback},
        {MHD_OPTION_END, 0, NULL},
    };
    struct MHD_OptionItem unix_options[] = {
        {MHD_OPTION_LISTEN_SOCKET, listen_fd, NULL},
        {MHD_OPTION_END, 0, NULL},
    };
    flags |= tls ? MHD_USE_TLS | MHD_USE_NO_LISTEN_SOCKET : 0;
    return MHD_start_daemon(flags, 0, NULL, NULL, on_request, NULL, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, MHD_OPTION_ARRAY,
                            tls ? tls_options : unix_options, MHD_OPTION_URI_LOG_CALLBACK, on_uri, NULL, MHD_OPTION_UNESCAPE_CALLBACK, on_unescape,
                            NULL, MHD_OPTION_NOTIFY_CONNECTION, on_connection, tls ? &server_tls : NULL, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
                            NULL, MHD_OPTION_CONNECTION_LIMIT, (unsigned)GATEWAY_CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
                            (unsigned)GATEWAY_IDLE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)GATEWAY_CONNECTION_BYTES,
                            MHD_OPTION_THREAD_STACK_SIZE, (size_t)HTTP_STACK_BYTES, MHD_OPTION_END);
}

int http_start(const struct gateway_options *options, struct error *err)
{
    char *path = xasprintf("%s/unix.socket", options->dir);
    atomic_store(&draining, false);
    MHD_set_panic_func(on_panic, NULL);
    certificates_init(options->dir);
    int fd = listen_unix(path, options->group, err);
    if (fd < 0) {
        free(path);
        certificates_free();
        return err->code;
    }
    socket_path = path;
    server_tls = server_start(true, -1);
    server_unix = server_tls != NULL ? server_start(false, fd) : NULL;
    if (server_unix != NULL)
        return STATUS_OK;
    close(fd);
    http_quiesce();
    http_stop();
    return error_set(err, STATUS_INTERNAL, "the HTTP server could not be started");
}

/* "192.0.2.1:1234" or "[2001:db8::1]:1234". */
static bool parse_address(const char *text, struct sockaddr_storage *out, socklen_t *len)
{
    char host[INET6_ADDRSTRLEN + 2];
    const char *colon = strrchr(text, ':');
    int64_t port;
    memset(out, 0, sizeof(*out));
    if (colon == NULL || (size_t)(colon - text) >= sizeof(host) || parse_i64(colon + 1, 0, 65535, &port) != 0)
        return false;
    memcpy(host, text, (size_t)(colon - text));
    host[colon - text] = '\0';
    if (host[0] == '[' && colon[-1] == ']') {
        struct sockaddr_in6 *in = (struct sockaddr_in6 *)out;
        host[strlen(host) - 1] = '\0';
        in->sin6_family = AF_INET6;
        in->sin6_port = htons((uint16_t)port);
        *len = sizeof(*in);
        return inet_pton(AF_INET6, host + 1, &in->sin6_addr) == 1;
    }
    struct sockaddr_in *in = (struct sockaddr_in *)out;
    in->sin_family = AF_INET;
    in->sin_port = htons((uint16_t)port);
    *len = sizeof(*in);
    return inet_pton(AF_INET, host, &in->sin_addr) == 1;
}

void http_take_tls(int fd, const char *address)
{
    struct sockaddr_storage addr;
    socklen_t len;
    int one = 1;
    if (gateway_draining() || !parse_address(address, &addr, &len)) {
        log_warn("gateway.feed", "refused a connection from \"%.64s\"", address);
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); /* a hint: fails on what is not TCP */
    if (MHD_add_connection(server_tls, fd, (struct sockaddr *)&addr, len) != MHD_YES)
        log_warn("gateway.feed", "connection refused address=%s reason=\"%s\"", address, strerror(errno)); /* MHD closed it */
}

void http_quiesce(void)
{
    struct stat now;
    atomic_store(&draining, true);
    if (server_unix != NULL) {
        MHD_socket fd = MHD_quiesce_daemon(server_unix);
        if (fd != MHD_INVALID_SOCKET)
            close(fd);
    }
    /* Not the socket of a successor. */
    if (socket_path != NULL && stat(socket_path, &now) == 0 && now.st_ino == socket_stat.st_ino && now.st_dev == socket_stat.st_dev)
        unlink(socket_path);
    free(socket_path);
    socket_path = NULL;
}

bool http_wait_idle(int64_t timeout_ms)
{
    int64_t end = time_mono_ms() + timeout_ms;
    pthread_mutex_lock(&idle_lock);
    while (atomic_load(&active) > 0 && time_mono_ms() < end) {
        struct timespec step;
        clock_gettime(CLOCK_REALTIME, &step);
        step.tv_nsec += 20 * 1000 * 1000; /* a request may have ended between our look and the wait */
        if (step.tv_nsec >= 1000000000) {
            step.tv_sec++;
            step.tv_nsec -= 1000000000;
        }
        pthread_cond_timedwait(&idle_changed, &idle_lock, &step);
    }
    pthread_mutex_unlock(&idle_lock);
    return atomic_load(&active) == 0;
}

void http_stop(void)
{
    if (server_unix != NULL)
        MHD_stop_daemon(server_unix);
    if (server_tls != NULL)
        MHD_stop_daemon(server_tls);
    server_unix = server_tls = NULL;
    certificates_free();
}
