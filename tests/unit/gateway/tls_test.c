/* TLS connections that the daemon accepted and hands over: certificates of both sides, versions, the way of the descriptor, the process itself. */
#include "world.h"
#include <fcntl.h>
#include <sys/wait.h>

static struct identity server_id, cluster_id, client_id;
static int tcp_fd = -1, feed_listen = -1;
static pthread_mutex_t feed_lock = PTHREAD_MUTEX_INITIALIZER; /* feed_fd, last_peer: the acceptor uses them while a test runs */
static int feed_fd = -1;
static char url[64];
static pthread_t acceptor;
static atomic_bool stop;
static atomic_int handed;
static char last_peer[64];

static void pass(int socket_fd, int fd, const char *text)
{
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {(void *)text, strlen(text)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof(int));
    if (sendmsg(socket_fd, &msg, MSG_NOSIGNAL) < 0)
        perror("sendmsg");
}

/* The daemon's part: accepts on the public port and passes on. */
static void *accept_all(void *unused)
{
    while (!atomic_load(&stop)) {
        struct pollfd pfd = {tcp_fd, POLLIN, 0};
        struct sockaddr_in peer;
        socklen_t len = sizeof(peer);
        char text[96];
        if (poll(&pfd, 1, 50) != 1)
            continue;
        int fd = accept4(tcp_fd, (struct sockaddr *)&peer, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0)
            continue;
        pthread_mutex_lock(&feed_lock);
        snprintf(last_peer, sizeof(last_peer), "127.0.0.1:%u", ntohs(peer.sin_port));
        snprintf(text, sizeof(text), "tcp %s", last_peer);
        pass(feed_fd, fd, text);
        pthread_mutex_unlock(&feed_lock);
        close(fd);
        atomic_fetch_add(&handed, 1);
    }
    return NULL;
}

static void feed_open(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/gateway.socket", w.dir);
    unlink(addr.sun_path);
    feed_listen = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (bind(feed_listen, (struct sockaddr *)&addr, sizeof(addr)) != 0 || listen(feed_listen, 4) != 0)
        perror("gateway.socket");
    struct pollfd pfd = {feed_listen, POLLIN, 0};
    if (poll(&pfd, 1, WAIT_MS_MAX) == 1)
        feed_fd = accept4(feed_listen, NULL, NULL, SOCK_CLOEXEC);
}

static char *path_of(const char *name)
{
    static char path[4][128];
    static unsigned next;
    char *p = path[next++ % 4];
    snprintf(p, 128, "%s/%s", w.dir, name);
    return p;
}

static int setup(void **state)
{
    struct error err = ERROR_INIT;
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    if (world_setup(state) != 0 || identity_create("server", &server_id, &err) != STATUS_OK || identity_create("cluster", &cluster_id, &err) != STATUS_OK ||
        identity_create("client", &client_id, &err) != STATUS_OK ||
        identity_save(&server_id, path_of("server.crt"), path_of("server.key"), &err) != STATUS_OK ||
        identity_save(&client_id, path_of("client.crt"), path_of("client.key"), &err) != STATUS_OK)
        return -1;
    tcp_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(tcp_fd, (struct sockaddr *)&addr, sizeof(addr)) != 0 || listen(tcp_fd, 64) != 0 || getsockname(tcp_fd, (struct sockaddr *)&addr, &len) != 0)
        return -1;
    snprintf(url, sizeof(url), "https://127.0.0.1:%u/1.0", ntohs(addr.sin_port));
    feed_open();
    return feed_fd >= 0 && pthread_create(&acceptor, NULL, accept_all, NULL) == 0 ? 0 : -1;
}

static int teardown(void **state)
{
    atomic_store(&stop, true);
    pthread_join(acceptor, NULL);
    close(tcp_fd);
    close(feed_fd);
    close(feed_listen);
    identity_free(&server_id);
    identity_free(&cluster_id);
    identity_free(&client_id);
    return world_teardown(state);
}

/* curl's exit code; what it printed in *out. */
static int curl(const char *const *options, struct buf *out)
{
    const char *argv[24] = {"curl", "-s", "-S", "-k", "-m", "10"};
    struct process_result result = {0};
    struct error err = ERROR_INIT;
    size_t n = 6;
    while (*options != NULL)
        argv[n++] = *options++;
    argv[n++] = url;
    argv[n] = NULL;
    OK(process_run(argv, (const char *const[]){"PATH=/usr/bin:/bin", NULL}, NULL, 1 << 20, 20000, &result, &err));
    *out = result.out;
    memset(&result.out, 0, sizeof(result.out));
    int code = result.exit_code;
    process_result_free(&result);
    return code;
}

static void without_certificate(void **state)
{
    struct buf out = {0};
    assert_int_equal(curl((const char *const[]){NULL}, &out), 0);
    assert_non_null(strstr(out.data, "\"auth\":\"untrusted\""));
    buf_free(&out);
    pthread_mutex_lock(&w.lock);
    assert_string_equal(w.caller.protocol, "tls");
    assert_string_equal(w.caller.fingerprint, "");
    pthread_mutex_lock(&feed_lock);
    assert_string_equal(w.caller.address, last_peer);
    pthread_mutex_unlock(&feed_lock);
    pthread_mutex_unlock(&w.lock);
}

static void with_certificate(void **state)
{
    struct buf out = {0};
    assert_int_equal(curl((const char *const[]){"--cert", path_of("client.crt"), "--key", path_of("client.key"), NULL}, &out), 0);
    buf_free(&out);
    pthread_mutex_lock(&w.lock);
    assert_string_equal(w.caller.fingerprint, client_id.fingerprint);
    assert_string_equal(w.cert, ""); /* a kilobyte that only the next request needs */
    pthread_mutex_unlock(&w.lock);
    char *certificates = xasprintf("%s/certificates", url);
    assert_int_equal(curl((const char *const[]){"--cert", path_of("client.crt"), "--key", path_of("client.key"), "-d", "{\"type\":\"client\"}", certificates, NULL}, &out), 0);
    buf_free(&out);
    free(certificates);
    pthread_mutex_lock(&w.lock);
    char fingerprint[FINGERPRINT_SIZE] = "";
    cert_fingerprint(w.cert, fingerprint, NULL);
    pthread_mutex_unlock(&w.lock);
    assert_string_equal(fingerprint, client_id.fingerprint);
}

static void old_versions_are_refused(void **state)
{
    struct buf out = {0};
    assert_int_equal(curl((const char *const[]){"--tls-max", "1.2", NULL}, &out), 35);
    buf_free(&out);
    assert_int_equal(curl((const char *const[]){"--tlsv1.3", NULL}, &out), 0);
    buf_free(&out);
}

static void s_client_input(const char *input, struct buf *out)
{
    const char *address = url + strlen("https://");
    char *host = xasprintf("%.*s", (int)strcspn(address, "/"), address);
    struct process_result result = {0};
    struct error err = ERROR_INIT;
    OK(process_run((const char *const[]){"openssl", "s_client", "-connect", host, "-showcerts", *input != '\0' ? "-ign_eof" : NULL,
                    "-cert", path_of("client.crt"), "-key", path_of("client.key"), NULL},
                   (const char *const[]){"PATH=/usr/bin:/bin", NULL}, input, 1 << 20, 20000, &result, &err));
    *out = result.out;
    memset(&result.out, 0, sizeof(result.out));
    process_result_free(&result);
    free(host);
}

static void s_client(struct buf *out)
{
    s_client_input("", out);
}

static bool holds(const struct buf *in, const char *text)
{
    return memmem(in->data, in->len, text, strlen(text)) != NULL;
}

static void websocket_over_tls(void **state)
{
    struct buf out = {0};
    s_client_input("GET /1.0/events?type=once HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                   "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", &out);
    assert_true(holds(&out, "101 Switching Protocols"));
    assert_true(holds(&out, "keepalive"));
    assert_true(holds(&out, "{\"type\":\"lifecycle\",\"timestamp\":\"0001-01-01T00:00:00Z\",\"metadata\":null,\"location\":\"node1\"}\x88\x02\x03\xe8"));
    buf_free(&out);
}

/* The close must be seen every time, however the two threads that end the socket interleave. */
static void websockets_over_tls_end(void **state)
{
    for (int i = 0; i < 20; i++) {
        struct buf out = {0};
        s_client_input("GET /1.0/events?type=once HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                       "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x88\x82\x01\x02\x03\x04\x02\xea", &out);
        assert_true(holds(&out, "\x88\x02\x03\xe8"));
        buf_free(&out);
    }
}

static void bodies_over_tls(void **state)
{
    enum { SIZE = 12 << 20 };
    struct error err = ERROR_INIT;
    struct buf file = {0}, out = {0};
    char whole[32], *data = buf_grow(&file, SIZE);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (char)('a' + i % 26);
    OK(file_write_atomic(path_of("body"), file.data, file.len, 0600, &err));
    buf_free(&file);
    snprintf(whole, sizeof(whole), "%.*s", (int)sizeof(whole) - 1, url);
    snprintf(url, sizeof(url), "%s/images", whole);
    char *upload = xasprintf("@%s", path_of("body"));
    assert_int_equal(curl((const char *const[]){"-X", "POST", "-H", "Content-Type: application/octet-stream", "-H", "Transfer-Encoding: chunked",
                                            "--cert", path_of("client.crt"), "--key", path_of("client.key"), "--data-binary", upload, NULL}, &out), 0);
    if (!holds(&out, "\"operation\":\"/1.0/operations/up\""))
        fail_msg("%s", out.data);
    assert_int_equal(atomic_load(&w.uploaded), SIZE);
    free(upload);
    buf_free(&out);
    snprintf(url, sizeof(url), "%s/images/one/export", whole);
    assert_int_equal(curl((const char *const[]){"-o", path_of("export"), NULL}, &out), 0);
    struct stat st;
    assert_int_equal(stat(path_of("export"), &st), 0);
    assert_int_equal(st.st_size, EXPORT_BIG);
    buf_free(&out);
    snprintf(url, sizeof(url), "%s", whole);
}

static void asks_without_authorities(void **state)
{
    struct buf out = {0};
    s_client(&out);
    assert_non_null(strstr(out.data, "No client certificate CA names sent"));
    assert_non_null(strstr(out.data, "Requested Signature Algorithms")); /* it did ask */
    buf_free(&out);
}

static void certificate_is_looked_at_again(void **state)
{
    struct error err = ERROR_INIT;
    struct buf out = {0};
    s_client(&out);
    assert_non_null(strstr(out.data, "CN = server"));
    buf_free(&out);
    OK(identity_save(&cluster_id, path_of("cluster.crt"), path_of("cluster.key"), &err));
    s_client(&out);
    assert_non_null(strstr(out.data, "CN = cluster"));
    buf_free(&out);
    unlink(path_of("cluster.crt"));
    s_client(&out);
    assert_non_null(strstr(out.data, "CN = server"));
    buf_free(&out);
}

static void feed_is_found_again(void **state)
{
    struct buf out = {0};
    pthread_mutex_lock(&feed_lock);
    close(feed_fd);
    close(feed_listen);
    feed_fd = -1;
    feed_open();
    bool found = feed_fd >= 0;
    pthread_mutex_unlock(&feed_lock);
    assert_true(found);
    assert_int_equal(curl((const char *const[]){NULL}, &out), 0);
    buf_free(&out);
    /* packets that make no sense do no harm */
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    pthread_mutex_lock(&feed_lock);
    pass(feed_fd, pair[0], "tcp nonsense");
    pass(feed_fd, pair[0], "what?");
    pthread_mutex_unlock(&feed_lock);
    close(pair[0]);
    char byte;
    struct pollfd pfd = {pair[1], POLLIN, 0};
    assert_int_equal(poll(&pfd, 1, WAIT_MS_MAX), 1);
    assert_int_equal(read(pair[1], &byte, 1), 0); /* both were closed */
    close(pair[1]);
    assert_int_equal(curl((const char *const[]){NULL}, &out), 0);
    buf_free(&out);
}

static void plain_http_is_refused(void **state)
{
    struct buf in = {0};
    struct sockaddr_in addr;
    socklen_t len = sizeof(addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    getsockname(tcp_fd, (struct sockaddr *)&addr, &len);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    client_puts(fd, "GET /1.0 HTTP/1.1\r\nHost: x\r\n\r\n");
    while (client_more(fd, &in))
        ;
    assert_true(in.len == 0 || strncmp(in.data, "HTTP/1.1 200", 12) != 0);
    buf_free(&in);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_certificate),
        cmocka_unit_test(with_certificate),
        cmocka_unit_test(old_versions_are_refused),
        cmocka_unit_test(asks_without_authorities),
        cmocka_unit_test(certificate_is_looked_at_again),
        cmocka_unit_test(websocket_over_tls),
        cmocka_unit_test(websockets_over_tls_end),
        cmocka_unit_test(bodies_over_tls),
        cmocka_unit_test(feed_is_found_again),
        cmocka_unit_test(plain_http_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
