/* What the gateway's tests share: a fake daemon (real gRPC server, handlers that do as the request says), the gateway in the same process, and a small
 * raw HTTP client. Included once by each test program. */
#ifndef COVEY_TESTS_GATEWAY_WORLD_H
#define COVEY_TESTS_GATEWAY_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "covey/v1/certificate.pb-c.h"
#include "covey/v1/event.pb-c.h"
#include "covey/v1/image.pb-c.h"
#include "covey/v1/instance.pb-c.h"
#include "covey/v1/operation.pb-c.h"
#include "covey/v1/profile.pb-c.h"
#include "covey/v1/server.pb-c.h"
#include "gateway/gateway.h"

#define OK(expr) do { if ((expr) != STATUS_OK) fail_msg("%s: %s: %s", #expr, status_name(err.code), err.text); } while (0)
enum { WAIT_MS_MAX = 40000 }; /* generous: instrumented, on a busy machine */
#define WAIT_FOR(cond) do { \
        int64_t wait_until_ = time_mono_ms() + WAIT_MS_MAX; \
        while (!(cond)) { \
            if (time_mono_ms() > wait_until_) \
                fail_msg("timeout waiting for %s", #cond); \
            usleep(1000); \
        } \
    } while (0)

static struct {
    char dir[64];
    struct rpc_server *server;
    pthread_mutex_t lock; /* protects the following up to the blank line */
    struct caller caller; /* of the last call that looks */
    char request_id[37], cert[16384], seen[8192]; /* seen: the last request as JSON, or what a stream got */

    atomic_int calls, cancelled, watches, streams;
    _Atomic(struct rpc_call *) slow, watch, stream; /* kept calls, one reference each */
    atomic_llong uploaded, uploaded_rootfs;
    atomic_bool upload_hold; /* the upload handler does not read while it is set */
} w = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void world_note(struct rpc_call *call, const ProtobufCMessage *request)
{
    struct buf json = {0};
    if (request != NULL)
        codec_to_json(request, &json);
    pthread_mutex_lock(&w.lock);
    w.caller = *rpc_caller(call);
    snprintf(w.request_id, sizeof(w.request_id), "%s", rpc_request_id(call) != NULL ? rpc_request_id(call) : "");
    snprintf(w.cert, sizeof(w.cert), "%s", rpc_caller(call)->cert_pem != NULL ? rpc_caller(call)->cert_pem : "");
    snprintf(w.seen, sizeof(w.seen), "%s", json.data != NULL ? json.data : "");
    pthread_mutex_unlock(&w.lock);
    buf_free(&json);
    atomic_fetch_add(&w.calls, 1);
}

/* What the daemon saw last, as JSON; borrowed until the next call. */
static __attribute__((unused)) const char *world_seen(void)
{
    static char copy[sizeof(w.seen)];
    pthread_mutex_lock(&w.lock);
    memcpy(copy, w.seen, sizeof(copy));
    pthread_mutex_unlock(&w.lock);
    return copy;
}

static int on_versions(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__V1__ListVersionsResponse *out = arena_alloc(rpc_arena(call), sizeof(*out));
    covey__v1__list_versions_response__init(out);
    out->n_urls = 1;
    out->urls = arena_alloc(rpc_arena(call), sizeof(char *));
    out->urls[0] = "/1.0";
    *response = &out->base;
    return STATUS_OK;
}

static int on_server(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__V1__ServerInfo *out = arena_alloc(rpc_arena(call), sizeof(*out));
    world_note(call, request);
    covey__v1__server_info__init(out);
    out->api_version = "1.0";
    out->api_status = "stable";
    out->auth = rpc_caller(call)->class == CALLER_NONE ? "untrusted" : "trusted";
    out->etag = "abc";
    *response = &out->base;
    return STATUS_OK;
}

static int on_server_update(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateServerRequest *in = (const Covey__V1__UpdateServerRequest *)request;
    char text[sizeof(w.seen)];
    size_t n = 0;
    world_note(call, request);
    text[0] = '\0';
    if (in->update_mask != NULL)
        for (size_t i = 0; i < in->update_mask->n_paths; i++)
            n += (size_t)snprintf(text + n, sizeof(text) - n, "%s;", in->update_mask->paths[i]);
    pthread_mutex_lock(&w.lock);
    strncat(w.seen, in->update_mask != NULL ? "|mask=" : "|", sizeof(w.seen) - strlen(w.seen) - 1);
    strncat(w.seen, text, sizeof(w.seen) - strlen(w.seen) - 1);
    pthread_mutex_unlock(&w.lock);
    if (!str_empty(in->if_match) && strcmp(in->if_match, "abc") != 0)
        return error_set(err, STATUS_ABORTED, "ETag doesn't match: abc vs %s", in->if_match);
    return STATUS_OK;
}

static int on_profile(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetProfileRequest *in = (const Covey__V1__GetProfileRequest *)request;
    Covey__V1__Profile *out = arena_alloc(rpc_arena(call), sizeof(*out));
    world_note(call, request);
    if (strcmp(in->name, "missing") == 0)
        return error_set(err, STATUS_NOT_FOUND, "Fetch profile: Profile not found");
    if (strcmp(in->name, "secret") == 0)
        return error_set(err, STATUS_UNAUTHENTICATED, "not authorized");
    if (strcmp(in->name, "down") == 0)
        return error_set(err, STATUS_UNAVAILABLE, "LXD daemon setup in progress");
    covey__v1__profile__init(out);
    out->name = in->name;
    out->etag = "p1";
    *response = &out->base;
    return STATUS_OK;
}

static int on_created(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    world_note(call, request);
    return STATUS_OK;
}

static int on_instances(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__V1__ListInstancesResponse *out = arena_alloc(rpc_arena(call), sizeof(*out));
    world_note(call, request);
    covey__v1__list_instances_response__init(out);
    out->n_urls = 1;
    out->urls = arena_alloc(rpc_arena(call), sizeof(char *));
    out->urls[0] = "/1.0/instances/c1";
    *response = &out->base;
    return STATUS_OK;
}

static int on_operation(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__V1__Operation *out = arena_alloc(rpc_arena(call), sizeof(*out));
    world_note(call, request);
    covey__v1__operation__init(out);
    out->id = "e6175a87-4e0f-4f78-93f4-77ce290da06e";
    out->class_ = "task";
    *response = &out->base;
    return STATUS_OK;
}

static int on_instance_update(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateInstanceRequest *in = (const Covey__V1__UpdateInstanceRequest *)request;
    Covey__V1__UpdateInstanceResponse *out = arena_alloc(rpc_arena(call), sizeof(*out));
    covey__v1__update_instance_response__init(out);
    *response = &out->base;
    if (in->update_mask != NULL) {
        world_note(call, request);
        return STATUS_OK;
    }
    return on_operation(call, request, (ProtobufCMessage **)&out->operation, err, ud);
}

static void on_slow_done(struct rpc_call *call, void *ud)
{
    if (rpc_call_cancelled(call))
        atomic_fetch_add(&w.cancelled, 1);
}

/* Kept until a test answers it (world_answer_slow) or the client leaves. */
static int on_wait(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    world_note(call, request);
    rpc_call_on_done(call, on_slow_done, NULL);
    atomic_store(&w.slow, call);
    return RPC_LATER;
}

static __attribute__((unused)) void world_answer_slow(void)
{
    Covey__V1__Operation out = COVEY__V1__OPERATION__INIT;
    struct rpc_call *call = atomic_exchange(&w.slow, NULL);
    out.id = "slow";
    rpc_finish(call, &out.base, STATUS_OK, NULL);
    rpc_call_unref(call);
}

static int on_certificate(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__CreateCertificateRequest *in = (const Covey__V1__CreateCertificateRequest *)request;
    Covey__V1__CreateCertificateResponse *out = arena_alloc(rpc_arena(call), sizeof(*out));
    covey__v1__create_certificate_response__init(out);
    *response = &out->base;
    if (in->token)
        return on_operation(call, request, (ProtobufCMessage **)&out->operation, err, ud);
    world_note(call, request);
    out->location = "/1.0/certificates/00ff";
    return STATUS_OK;
}

static void send_event(struct rpc_call *call, const char *type, const char *location)
{
    Covey__V1__Event event = COVEY__V1__EVENT__INIT;
    event.type = (char *)type;
    event.location = (char *)location;
    event.number = 7;
    if (rpc_try_send(call, &event.base, NULL) != STATUS_OK)
        fprintf(stderr, "event not sent\n");
}

static void on_watch_done(struct rpc_call *call, void *ud)
{
    atomic_fetch_sub(&w.watches, 1);
}

static int on_watch(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__WatchRequest *in = (const Covey__V1__WatchRequest *)request;
    world_note(call, request);
    if (strcmp(in->type, "nonsense") == 0)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown event type \"nonsense\"");
    atomic_fetch_add(&w.watches, 1);
    rpc_call_on_done(call, on_watch_done, NULL);
    send_event(call, "", "");
    send_event(call, "lifecycle", "node1"); /* right behind: must not be lost */
    if (strcmp(in->type, "once") == 0)
        return STATUS_OK;
    atomic_store(&w.watch, call);
    return RPC_LATER;
}

/* Echoes: data comes back, control comes back in data, end comes back as end and ends the stream. */
static int on_connect(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    ProtobufCMessage *message;
    struct arena arena;
    arena_init(&arena);
    int rc = rpc_recv(call, &message, &arena, err);
    Covey__V1__StreamFrame *first = (Covey__V1__StreamFrame *)message;
    if (rc == STATUS_OK && strcmp(first->secret, "s3cret") != 0)
        rc = error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
    if (rc == STATUS_OK) {
        Covey__V1__StreamFrame hello = COVEY__V1__STREAM_FRAME__INIT;
        atomic_fetch_add(&w.streams, 1);
        rc = rpc_send(call, &hello.base, err);
    }
    bool attached = rc == STATUS_OK;
    while (rc == STATUS_OK) {
        arena_clear(&arena);
        rc = rpc_recv(call, &message, &arena, err);
        if (rc != STATUS_OK)
            break;
        Covey__V1__StreamFrame *in = (Covey__V1__StreamFrame *)message;
        Covey__V1__StreamFrame out = COVEY__V1__STREAM_FRAME__INIT;
        out.data = in->data;
        out.end = in->end;
        if (!str_empty(in->control))
            out.control = in->control;
        rc = rpc_send(call, &out.base, err);
        if (in->end)
            break;
    }
    if (attached)
        atomic_fetch_sub(&w.streams, 1);
    arena_clear(&arena);
    return rc == STATUS_OUT_OF_RANGE ? STATUS_OK : rc;
}

static int on_upload(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    ProtobufCMessage *message;
    struct arena arena;
    int rc;
    arena_init(&arena);
    atomic_store(&w.uploaded, 0);
    atomic_store(&w.uploaded_rootfs, 0);
    while (atomic_load(&w.upload_hold))
        usleep(1000);
    while ((rc = rpc_recv(call, &message, &arena, err)) == STATUS_OK) {
        const Covey__V1__UploadImageRequest *in = (const Covey__V1__UploadImageRequest *)message;
        if (in->header != NULL) {
            world_note(call, &in->header->base);
            if (strcmp(in->header->filename, "refused") == 0) {
                arena_clear(&arena);
                return error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
            }
        }
        for (size_t i = 0; i < in->data.len; i++)
            if (in->data.data[i] != (uint8_t)('a' + (atomic_load(&w.uploaded) + atomic_load(&w.uploaded_rootfs) + (long long)i) % 26))
                rc = error_set(err, STATUS_DATA_LOSS, "the data is not what was sent");
        atomic_fetch_add(in->rootfs ? &w.uploaded_rootfs : &w.uploaded, (long long)in->data.len);
        arena_clear(&arena);
        if (rc != STATUS_OK)
            return rc;
    }
    arena_clear(&arena);
    if (rc != STATUS_OUT_OF_RANGE) {
        atomic_fetch_add(&w.cancelled, 1);
        return rc;
    }
    Covey__V1__Operation *out = arena_alloc(rpc_arena(call), sizeof(*out));
    covey__v1__operation__init(out);
    out->id = "up";
    *response = &out->base;
    return STATUS_OK;
}

enum { EXPORT_BIG = 3 << 20, EXPORT_CHUNK = 64 << 10 };

/* one: EXPORT_BIG bytes; two: "meta" and "rootfs-data"; short: announces more than it sends. */
static int on_export(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ExportImageRequest *in = (const Covey__V1__ExportImageRequest *)request;
    Covey__V1__ExportImageResponse out = COVEY__V1__EXPORT_IMAGE_RESPONSE__INIT;
    Covey__V1__ExportFile files[2] = {COVEY__V1__EXPORT_FILE__INIT, COVEY__V1__EXPORT_FILE__INIT}, *list[2] = {&files[0], &files[1]};
    static uint8_t chunk[EXPORT_CHUNK];
    bool two = strcmp(in->fingerprint, "two") == 0;
    world_note(call, request);
    if (strcmp(in->fingerprint, "missing") == 0)
        return error_set(err, STATUS_NOT_FOUND, "Image not found");
    files[0].name = two ? "meta-f.tar.gz" : "f.tar.gz";
    files[0].size = two ? 4 : EXPORT_BIG;
    files[1].name = "f.squashfs";
    files[1].size = 11;
    out.files = list;
    out.n_files = two ? 2 : 1;
    int rc = rpc_send(call, &out.base, err);
    out.files = NULL;
    out.n_files = 0;
    if (two) {
        out.data = (ProtobufCBinaryData){4, (uint8_t *)"meta"};
        rc = rc != STATUS_OK ? rc : rpc_send(call, &out.base, err);
        out.data = (ProtobufCBinaryData){11, (uint8_t *)"rootfs-data"};
        out.file = 1;
        return rc != STATUS_OK ? rc : rpc_send(call, &out.base, err);
    }
    memset(chunk, 'x', sizeof(chunk));
    size_t count = strcmp(in->fingerprint, "short") == 0 ? 3 : EXPORT_BIG / EXPORT_CHUNK;
    for (size_t i = 0; i < count && rc == STATUS_OK; i++) {
        out.data = (ProtobufCBinaryData){sizeof(chunk), chunk};
        rc = rpc_send(call, &out.base, err);
    }
    return rc;
}

static const struct rpc_binding server_bindings[] = {{"ListVersions", on_versions}, {"GetServer", on_server}, {"UpdateServer", on_server_update}};
static const struct rpc_binding profile_bindings[] = {
    {"GetProfile", on_profile}, {"CreateProfile", on_created}, {"UpdateProfile", on_created}, {"RenameProfile", on_created}};
static const struct rpc_binding instance_bindings[] = {
    {"ListInstances", on_instances}, {"CreateInstance", on_operation}, {"UpdateInstance", on_instance_update}};
static const struct rpc_binding operation_bindings[] = {{"WaitOperation", on_wait}, {"Connect", on_connect}};
static const struct rpc_binding certificate_bindings[] = {{"CreateCertificate", on_certificate}};
static const struct rpc_binding event_bindings[] = {{"Watch", on_watch}};
static const struct rpc_binding image_bindings[] = {
    {"UploadImage", on_upload}, {"ExportImage", on_export}, {"GetImageAlias", on_created}, {"CreateImageAlias", on_created}, {"GetImage", on_created}};
#define BIND(service, bindings) rpc_bind("covey.v1." service, bindings, sizeof(bindings) / sizeof(bindings[0]), NULL)

/* Whoever shows a certificate is trusted. */
static void world_classify(void *ud, struct caller *caller)
{
    if (caller->fingerprint[0] != '\0')
        caller->class = CALLER_CLIENT;
}

static int world_setup(void **state)
{
    static const struct rpc_policy policy = {.classify = world_classify};
    struct error err = ERROR_INIT;
    signal(SIGPIPE, SIG_IGN);
    registry_init();
    rpc_init();
    rpc_set_policy(&policy);
    snprintf(w.dir, sizeof(w.dir), "/tmp/covey-gateway-XXXXXX");
    if (mkdtemp(w.dir) == NULL)
        return -1;
    BIND("Server", server_bindings);
    BIND("Profiles", profile_bindings);
    BIND("Instances", instance_bindings);
    BIND("Operations", operation_bindings);
    BIND("Certificates", certificate_bindings);
    BIND("Events", event_bindings);
    BIND("Images", image_bindings);
    char *path = xasprintf("%s/grpc.socket", w.dir);
    w.server = rpc_server_listen_unix(path, -1, &err);
    free(path);
    struct gateway_options options = {w.dir, -1};
    if (w.server == NULL || gateway_start(&options, &err) != STATUS_OK) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    return 0;
}

static int world_teardown(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_call *left[] = {atomic_exchange(&w.slow, NULL), atomic_exchange(&w.watch, NULL)};
    bool stopped = gateway_stop();
    for (size_t i = 0; i < 2; i++)
        rpc_call_unref(left[i]);
    rpc_server_destroy(w.server, 1000);
    rpc_shutdown();
    if (dir_remove_all(w.dir, &err) != STATUS_OK)
        fprintf(stderr, "%s\n", err.text);
    return stopped ? 0 : -1;
}

/* ---- the client ---- */

static int client_connect(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/unix.socket", w.dir);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

/* All of it, or false when the other side closed. */
static bool client_write(int fd, const void *data, size_t len)
{
    const char *p = data;
    while (len > 0) {
        struct pollfd pfd = {fd, POLLOUT, 0};
        if (poll(&pfd, 1, WAIT_MS_MAX) != 1)
            fail_msg("the gateway does not read");
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN)
            continue;
        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static __attribute__((unused)) bool client_puts(int fd, const char *text) { return client_write(fd, text, strlen(text)); }

/* At least one byte more; false at the end. */
static bool client_more(int fd, struct buf *in)
{
    struct pollfd pfd = {fd, POLLIN, 0};
    char data[65536];
    if (poll(&pfd, 1, WAIT_MS_MAX) != 1)
        fail_msg("no answer in time; so far: %s", in->data != NULL ? in->data : "");
    ssize_t n = recv(fd, data, sizeof(data), 0);
    if (n <= 0)
        return false;
    buf_add(in, data, (size_t)n);
    return true;
}

struct answer {
    int code; /* 0: no answer, the connection was closed */
    char *head, *body;
    size_t body_len;
};

static void answer_free(struct answer *answer)
{
    free(answer->head);
    free(answer->body);
    memset(answer, 0, sizeof(*answer));
}

static const char *answer_header(const struct answer *answer, const char *name)
{
    static char value[4096];
    size_t n = strlen(name);
    for (const char *line = answer->head; line != NULL && *line != '\0'; line = strstr(line, "\r\n") != NULL ? strstr(line, "\r\n") + 2 : NULL) {
        if (strncasecmp(line, name, n) != 0 || line[n] != ':')
            continue;
        line += n + 1 + strspn(line + n + 1, " ");
        snprintf(value, sizeof(value), "%.*s", (int)strcspn(line, "\r"), line);
        return value;
    }
    return NULL;
}

/* Reads one answer; what follows stays in `in`. */
static struct answer client_read(int fd, struct buf *in)
{
    struct answer answer = {0};
    while (in->len == 0 || strstr(in->data, "\r\n\r\n") == NULL)
        if (!client_more(fd, in))
            return answer;
    size_t head = (size_t)(strstr(in->data, "\r\n\r\n") - in->data) + 4;
    answer.head = xasprintf("%.*s", (int)head - 2, in->data);
    answer.code = atoi(in->data + 9);
    const char *text = answer_header(&answer, "Content-Length");
    size_t length = text != NULL ? (size_t)atoll(text) : 0;
    while (in->len < head + length)
        if (!client_more(fd, in))
            break;
    answer.body_len = in->len - head < length ? in->len - head : length;
    answer.body = xmalloc(answer.body_len + 1);
    memcpy(answer.body, in->data + head, answer.body_len);
    answer.body[answer.body_len] = '\0';
    size_t used = head + answer.body_len;
    memmove(in->data, in->data + used, in->len - used);
    in->len -= used;
    in->data[in->len] = '\0';
    return answer;
}

/* One request on a connection of its own. `head` = more header lines, each with \r\n; body may be NULL. */
static __attribute__((unused)) struct answer ask(const char *verb, const char *url, const char *head, const char *body)
{
    struct buf in = {0}, out = {0};
    int fd = client_connect();
    buf_printf(&out, "%s %s HTTP/1.1\r\nHost: x\r\n%s", verb, url, head != NULL ? head : "");
    if (body != NULL)
        buf_printf(&out, "Content-Length: %zu\r\n", strlen(body));
    buf_printf(&out, "\r\n%s", body != NULL ? body : "");
    client_write(fd, out.data, out.len);
    struct answer answer = client_read(fd, &in);
    close(fd);
    buf_free(&in);
    buf_free(&out);
    return answer;
}

/* text may be NULL: any. */
static __attribute__((unused)) void expect(const char *verb, const char *url, const char *head, const char *body, int http, const char *text)
{
    struct answer answer = ask(verb, url, head, body);
    if (answer.code != http || (text != NULL && strcmp(answer.body, text) != 0))
        fail_msg("%s %.200s gave %d %s", verb, url, answer.code, answer.body != NULL ? answer.body : "nothing");
    answer_free(&answer);
}
#define EXPECT expect
#define ERROR_BODY(code, text) "{\"type\":\"error\",\"status\":\"\",\"status_code\":0,\"operation\":\"\",\"error_code\":" #code ",\"error\":\"" text "\",\"metadata\":null}\n"
#define SYNC_BODY(metadata) "{\"type\":\"sync\",\"status\":\"Success\",\"status_code\":200,\"operation\":\"\",\"error_code\":0,\"error\":\"\",\"metadata\":" metadata "}\n"

#define EXPECT_SEEN(part) do { if (strstr(world_seen(), part) == NULL) fail_msg("the daemon saw %s, not %s", world_seen(), part); } while (0)

#endif
