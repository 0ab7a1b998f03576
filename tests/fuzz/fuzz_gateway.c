/* Bytes of a client on the gateway's socket: HTTP, JSON and multipart bodies, and after an upgrade WebSocket frames. The whole gateway runs in this process
 * against the fake daemon of its unit tests; a byte 0xff in the input splits it into writes of their own. Every connection must end in bounded time and what
 * comes back must be an HTTP answer. */
#include "fuzz.h"
#include "tests/unit/gateway/world.h"

enum { ANSWER_MS_MAX = 8000, SETTLE_MS = 2 };

static void leave(void) { world_teardown(NULL); }

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    must(world_setup(NULL) == 0);
    atexit(leave);
    return 0;
}

/* Until the gateway closes or stays silent for `ms`; false in the latter case. */
static bool drain(int fd, struct buf *in, int ms)
{
    for (;;) {
        struct pollfd pfd = {fd, POLLIN, 0};
        char data[65536];
        if (poll(&pfd, 1, ms) != 1)
            return false;
        ssize_t n = recv(fd, data, sizeof(data), 0);
        if (n <= 0)
            return true;
        if (in->len < sizeof(data))
            buf_add(in, data, (size_t)n);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct buf in = {0};
    int fd = client_connect();
    for (size_t at = 0; at < len;) {
        const uint8_t *split = memchr(data + at, 0xff, len - at);
        size_t n = split != NULL ? (size_t)(split - data) - at : len - at;
        if (!client_write(fd, data + at, n))
            break;
        at += n + 1;
        drain(fd, &in, SETTLE_MS);
    }
    /* Behind the data and not with it: libmicrohttpd misses the end of an unfinished request when both come at once, until the idle timeout. */
    shutdown(fd, SHUT_WR);
    bool ended = drain(fd, &in, ANSWER_MS_MAX);
    must(ended);
    must(in.len == 0 || (in.len >= 9 && memcmp(in.data, "HTTP/1.", 7) == 0));
    close(fd);
    buf_free(&in);
    rpc_call_unref(atomic_exchange(&w.slow, NULL));
    rpc_call_unref(atomic_exchange(&w.watch, NULL));
    return 0;
}
