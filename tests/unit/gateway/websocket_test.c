/* WebSockets: upgrade, events, data streams, back-pressure, misbehaving clients. The client is raw: frames made by hand. */
#include "world.h"

#define UPGRADE "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
enum { OP_CONTINUE = 0, OP_TEXT = 1, OP_BINARY = 2, OP_CLOSE = 8, OP_PING = 9, OP_PONG = 10, FIN = 0x80 };

struct client {
    int fd;
    struct buf in;
};

static struct client ws_connect(const char *url, const char *extra)
{
    struct client c = {.fd = client_connect()};
    char *head = xasprintf("GET %s HTTP/1.1\r\nHost: x\r\n" UPGRADE "\r\n%s", url, extra);
    client_puts(c.fd, head);
    free(head);
    struct answer answer = client_read(c.fd, &c.in);
    if (answer.code != 101)
        fail_msg("%s gave %d %s", url, answer.code, answer.body);
    assert_string_equal(answer_header(&answer, "Sec-WebSocket-Accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    answer_free(&answer);
    return c;
}

static void ws_free(struct client *c)
{
    close(c->fd);
    buf_free(&c->in);
}

static bool ws_send(struct client *c, int first, const void *data, size_t len)
{
    uint8_t head[14] = {(uint8_t)first, 0};
    size_t n = 2;
    if (len < 126) {
        head[1] = (uint8_t)(0x80 | len);
    } else if (len < 65536) {
        head[1] = 0x80 | 126;
        head[n++] = (uint8_t)(len >> 8);
        head[n++] = (uint8_t)len;
    } else {
        head[1] = 0x80 | 127;
        for (int i = 7; i >= 0; i--)
            head[n++] = (uint8_t)((uint64_t)len >> (8 * i));
    }
    static const uint8_t mask[4] = {1, 2, 3, 4};
    memcpy(head + n, mask, 4);
    n += 4;
    uint8_t *masked = xmalloc(len + 1);
    for (size_t i = 0; i < len; i++)
        masked[i] = ((const uint8_t *)data)[i] ^ mask[i & 3];
    bool ok = client_write(c->fd, head, n) && client_write(c->fd, masked, len);
    free(masked);
    return ok;
}

struct frame {
    int op; /* -1: the connection ended */
    size_t len;
    char *data;
};

static bool ws_need(struct client *c, size_t len)
{
    while (c->in.len < len)
        if (!client_more(c->fd, &c->in))
            return false;
    return true;
}

/* The next frame; pings are skipped when skip_pings. The gateway never fragments small messages; the test asserts FIN. */
static struct frame ws_recv(struct client *c, bool skip_pings)
{
    for (;;) {
        struct frame frame = {-1, 0, NULL};
        if (!ws_need(c, 2))
            return frame;
        const uint8_t *p = (const uint8_t *)c->in.data;
        size_t n = 2, len = p[1] & 0x7f;
        assert_int_equal(p[1] & 0x80, 0);
        assert_int_equal(p[0] & FIN, FIN);
        size_t extra = len == 126 ? 2 : len == 127 ? 8 : 0;
        if (!ws_need(c, 2 + extra))
            return frame;
        p = (const uint8_t *)c->in.data;
        if (extra > 0)
            for (len = 0; n < 2 + extra; n++)
                len = len << 8 | p[n];
        if (!ws_need(c, n + len))
            return frame;
        frame.op = c->in.data[0] & 0x0f;
        frame.len = len;
        frame.data = xmalloc(len + 1);
        memcpy(frame.data, c->in.data + n, len);
        frame.data[len] = '\0';
        memmove(c->in.data, c->in.data + n + len, c->in.len - n - len);
        c->in.len -= n + len;
        if (frame.op != OP_PING || !skip_pings)
            return frame;
        free(frame.data);
    }
}

#define EXPECT_FRAME(c, wanted, text) do { \
        struct frame frame_ = ws_recv(c, true); \
        if (frame_.op != (wanted) || strcmp(frame_.data, text) != 0) \
            fail_msg("frame %d %s", frame_.op, frame_.data != NULL ? frame_.data : ""); \
        free(frame_.data); \
    } while (0)

static int close_code(struct client *c)
{
    for (;;) {
        struct frame frame = ws_recv(c, true);
        int op = frame.op, code = frame.len >= 2 ? (uint8_t)frame.data[0] << 8 | (uint8_t)frame.data[1] : 0;
        free(frame.data);
        if (op == OP_CLOSE || op == -1)
            return op == -1 ? -1 : code;
    }
}

static void bad_upgrades(void **state)
{
    EXPECT("GET", "/1.0/events", NULL, NULL, 400, NULL);
    EXPECT("GET", "/1.0/events", "Connection: Upgrade\r\nUpgrade: websocket\r\n", NULL, 400, NULL);
    EXPECT("GET", "/1.0/operations/x/websocket", UPGRADE, NULL, 400, ERROR_BODY(400, "missing secret"));
    EXPECT("GET", "/1.0/operations/x/websocket?secret=a", NULL, NULL, 400, NULL);
    EXPECT("GET", "/1.0/events?type=nonsense", UPGRADE, NULL, 400, ERROR_BODY(400, "Unknown event type \\\"nonsense\\\""));
    EXPECT("GET", "/1.0/operations/x/websocket?secret=wrong", UPGRADE, NULL, 403, ERROR_BODY(403, "not authorized"));
}

static void events(void **state)
{
    struct client c = ws_connect("/1.0/events?type=lifecycle&target=%40nogroup&project=p", "");
    EXPECT_SEEN("{\"type\":\"lifecycle\",\"project\":\"p\",\"all-projects\":false,\"from\":0}");
    struct frame ping = ws_recv(&c, false);
    static const char first[] = "{\"type\":\"lifecycle\",\"timestamp\":\"0001-01-01T00:00:00Z\",\"metadata\":null,\"location\":\"node1\"}";
    bool event_first = ping.op == OP_TEXT; /* either may come first */
    if (event_first)
        assert_string_equal(ping.data, first);
    else
        assert_string_equal(ping.data, "keepalive");
    free(ping.data);
    if (!event_first)
        EXPECT_FRAME(&c, OP_TEXT, first);
    WAIT_FOR(atomic_load(&w.watch) != NULL);
    struct rpc_call *watch = atomic_exchange(&w.watch, NULL);
    send_event(watch, "operation", "");
    EXPECT_FRAME(&c, OP_TEXT, "{\"type\":\"operation\",\"timestamp\":\"0001-01-01T00:00:00Z\",\"metadata\":null}");
    assert_true(ws_send(&c, FIN | OP_PING, "hi", 2));
    EXPECT_FRAME(&c, OP_PONG, "hi");
    /* the end of the stream closes the socket */
    struct error err = ERROR_INIT;
    error_set(&err, STATUS_UNAVAILABLE, "behind");
    rpc_finish(watch, NULL, err.code, &err);
    rpc_call_unref(watch);
    assert_int_equal(close_code(&c), 1000);
    ws_send(&c, FIN | OP_CLOSE, "\x03\xe8", 2);
    assert_int_equal(ws_recv(&c, true).op, -1);
    ws_free(&c);
}

static void leaving_ends_the_watch(void **state)
{
    WAIT_FOR(atomic_load(&w.watches) == 0);
    struct client c = ws_connect("/1.0/events", "");
    WAIT_FOR(atomic_load(&w.watch) != NULL);
    assert_int_equal(atomic_load(&w.watches), 1);
    close(c.fd);
    WAIT_FOR(atomic_load(&w.watches) == 0);
    rpc_call_unref(atomic_exchange(&w.watch, NULL));
    buf_free(&c.in);
}

/* A listener that does not read: the daemon's stream fills up, and nothing is lost when it reads again. */
static void slow_listeners(void **state)
{
    enum { EVENTS = 60000 };
    struct client c = ws_connect("/1.0/events", "");
    WAIT_FOR(atomic_load(&w.watch) != NULL);
    struct rpc_call *watch = atomic_exchange(&w.watch, NULL);
    Covey__V1__Event event = COVEY__V1__EVENT__INIT;
    char location[301];
    int sent = 0;
    memset(location, 'l', 300);
    location[300] = '\0';
    event.type = "operation";
    event.location = location;
    while (sent < EVENTS && rpc_try_send(watch, &event.base, NULL) == STATUS_OK)
        sent++;
    assert_true(sent < EVENTS); /* the queue has a limit, and it was reached */
    free(ws_recv(&c, true).data); /* the first one of every watch */
    for (int i = 0; i < sent; i++) {
        struct frame frame = ws_recv(&c, true);
        assert_int_equal(frame.op, OP_TEXT);
        free(frame.data);
    }
    rpc_finish(watch, NULL, STATUS_OK, NULL);
    rpc_call_unref(watch);
    assert_int_equal(close_code(&c), 1000);
    ws_free(&c);
}

static void data_streams(void **state)
{
    /* a frame right behind the headers is not lost */
    struct client c = ws_connect("/1.0/operations/x/websocket?secret=s3cret", "\x82\x82\x01\x02\x03\x04" "ik");
    EXPECT_FRAME(&c, OP_BINARY, "hi");
    ws_send(&c, OP_BINARY, "frag", 4);
    ws_send(&c, OP_CONTINUE, "men", 3);
    ws_send(&c, FIN | OP_CONTINUE, "ted", 3);
    EXPECT_FRAME(&c, OP_BINARY, "fragmented");
    ws_send(&c, FIN | OP_TEXT, "{\"command\":\"signal\"}", 20);
    EXPECT_FRAME(&c, OP_TEXT, "{\"command\":\"signal\"}");
    ws_send(&c, FIN | OP_TEXT, "", 0);
    EXPECT_FRAME(&c, OP_TEXT, ""); /* the barrier comes back */
    assert_int_equal(close_code(&c), 1000);
    ws_send(&c, FIN | OP_CLOSE, "\x03\xe8", 2);
    assert_int_equal(ws_recv(&c, true).op, -1);
    ws_free(&c);
    WAIT_FOR(atomic_load(&w.streams) == 0);
}

static void *writer(void *ud)
{
    struct client *c = ud;
    uint8_t block[64 << 10];
    for (int i = 0; i < 16 * 24; i++) {
        memset(block, i, sizeof(block));
        if (!ws_send(c, FIN | OP_BINARY, block, sizeof(block)))
            return "write failed";
    }
    return ws_send(c, FIN | OP_TEXT, "", 0) ? NULL : "write failed";
}

/* 24 MiB there and back: more than all queues together, so that both directions wait at times. */
static void much_data_comes_back_whole(void **state)
{
    struct client c = ws_connect("/1.0/operations/x/websocket?secret=s3cret", "");
    pthread_t thread;
    void *failure;
    size_t total = 0;
    pthread_create(&thread, NULL, writer, &c);
    for (;;) {
        struct frame frame = ws_recv(&c, true);
        if (frame.op != OP_BINARY) {
            assert_int_equal(frame.op, OP_TEXT);
            free(frame.data);
            break;
        }
        for (size_t i = 0; i < frame.len; i++)
            if ((uint8_t)frame.data[i] != (uint8_t)((total + i) / (64 << 10)))
                fail_msg("wrong byte at %zu", total + i);
        total += frame.len;
        free(frame.data);
    }
    pthread_join(thread, &failure);
    assert_null(failure);
    assert_int_equal(total, 24 << 20);
    ws_free(&c);
    WAIT_FOR(atomic_load(&w.streams) == 0);
}

static void leaving_ends_the_stream(void **state)
{
    struct client c = ws_connect("/1.0/operations/x/websocket?secret=s3cret", "");
    WAIT_FOR(atomic_load(&w.streams) == 1);
    close(c.fd);
    buf_free(&c.in);
    WAIT_FOR(atomic_load(&w.streams) == 0);
    c = ws_connect("/1.0/operations/x/websocket?secret=s3cret", "");
    WAIT_FOR(atomic_load(&w.streams) == 1);
    ws_send(&c, FIN | OP_CLOSE, "\x03\xe8", 2);
    WAIT_FOR(atomic_load(&w.streams) == 0);
    assert_int_equal(close_code(&c), 1000);
    assert_int_equal(ws_recv(&c, true).op, -1);
    ws_free(&c);
}

static void misbehaving_clients(void **state)
{
    struct client c = ws_connect("/1.0/operations/x/websocket?secret=s3cret", "");
    client_write(c.fd, "\x82\x02hi", 4); /* not masked */
    assert_int_equal(close_code(&c), 1002);
    ws_free(&c);
    c = ws_connect("/1.0/operations/x/websocket?secret=s3cret", "");
    ws_send(&c, FIN | OP_TEXT, "\xff", 1);
    assert_int_equal(close_code(&c), 1007);
    ws_free(&c);
    c = ws_connect("/1.0/operations/x/websocket?secret=s3cret", "");
    static const uint8_t large[] = {0x82, 0xff, 0, 0, 0, 0, 0x7f, 0, 0, 0, 1, 2, 3, 4, 9};
    client_write(c.fd, large, sizeof(large));
    assert_int_equal(close_code(&c), 1009);
    ws_free(&c);
    WAIT_FOR(atomic_load(&w.streams) == 0);
}

/* The last test: sockets that are open when the gateway stops get 1001 (teardown must succeed with them). */
static void left_open(void **state)
{
    static struct client a, b;
    a = ws_connect("/1.0/events", "");
    b = ws_connect("/1.0/operations/x/websocket?secret=s3cret", "");
    WAIT_FOR(atomic_load(&w.watch) != NULL);
    assert_true(a.fd >= 0 && b.fd >= 0);
    buf_free(&a.in);
    buf_free(&b.in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_upgrades),
        cmocka_unit_test(events),
        cmocka_unit_test(leaving_ends_the_watch),
        cmocka_unit_test(slow_listeners),
        cmocka_unit_test(data_streams),
        cmocka_unit_test(much_data_comes_back_whole),
        cmocka_unit_test(leaving_ends_the_stream),
        cmocka_unit_test(misbehaving_clients),
        cmocka_unit_test(left_open),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
