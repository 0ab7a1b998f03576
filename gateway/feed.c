/* Connections that the daemon accepted: STATE_DIR/gateway.socket (the daemon listens), one packet "tcp <address:port>" with one descriptor each.
 * Lives on the hub thread; reconnects for ever, every GATEWAY_FEED_RECONNECT_MS. */
#include "http.h"
#include "hub.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { FEED_TEXT_BYTES = 128 };

static char *feed_path;
static int feed_fd = -1;
static bool feed_wanted, feed_job; /* hub thread */

static void on_ready(struct hub_source *source, uint32_t events);
static struct hub_source feed_source = {on_ready};

static void feed_connect(void *unused)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    (void)unused;
    feed_job = false;
    if (!feed_wanted || hub_stopping() || feed_fd >= 0)
        return;
    memcpy(addr.sun_path, feed_path, strlen(feed_path) + 1);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0) {
        feed_fd = fd;
        hub_add(fd, &feed_source, EPOLLIN);
        log_debug("gateway.feed", "connected");
        return;
    }
    if (fd >= 0)
        close(fd);
    feed_job = true;
    hub_post(GATEWAY_FEED_RECONNECT_MS, feed_connect, NULL);
}

static void feed_lost(void)
{
    hub_remove(feed_fd, &feed_source);
    close(feed_fd);
    feed_fd = -1;
    log_debug("gateway.feed", "lost");
    if (feed_wanted && !feed_job) {
        feed_job = true;
        hub_post(GATEWAY_FEED_RECONNECT_MS, feed_connect, NULL);
    }
}

/* One packet; false when there is none (or no connection) any more. */
static bool feed_take(void)
{
    char text[FEED_TEXT_BYTES + 1], control[CMSG_SPACE(4 * sizeof(int))];
    struct iovec iov = {text, FEED_TEXT_BYTES};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(feed_fd, &msg, MSG_CMSG_CLOEXEC);
    int fds[4];
    size_t count = 0;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n <= 0) {
        feed_lost();
        return false;
    }
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        count = count > 4 ? 4 : count;
        memcpy(fds, CMSG_DATA(c), count * sizeof(int));
    }
    text[n] = '\0';
    if (count == 1 && strncmp(text, "tcp ", 4) == 0) {
        http_take_tls(fds[0], text + 4);
        return true;
    }
    log_warn("gateway.feed", "unknown packet with %zu descriptors", count);
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
    return true;
}

static void on_ready(struct hub_source *source, uint32_t events)
{
    (void)source;
    (void)events;
    for (int i = 0; i < GATEWAY_FEED_BURST && feed_fd >= 0; i++)
        if (!feed_take())
            return;
}

void feed_start(const char *dir)
{
    feed_path = xasprintf("%s/gateway.socket", dir); /* gateway_start checked its length */
    feed_wanted = true;
    hub_post(0, feed_connect, NULL);
}

static void feed_close(void *unused)
{
    (void)unused;
    feed_wanted = false;
    if (feed_fd >= 0)
        feed_lost();
    free(feed_path);
    feed_path = NULL;
}

void feed_stop(void)
{
    hub_post(0, feed_close, NULL);
}
