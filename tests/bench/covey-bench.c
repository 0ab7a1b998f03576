/* Load generator for tests/bench/run: one HTTP request again and again over N keep-alive TLS connections, in one thread with epoll and OpenSSL,
 * so that on a small machine the client costs little beside the servers. Prints one line of JSON: requests, errors, seconds, rate, latencies.
 *
 *   covey-bench --address H:P[,H:P…] --cert BASE --method M --path P [--body TEXT] [--connections N] [--seconds S]
 *
 * BASE.crt and BASE.key are the client's certificate. In path and body every `%N` becomes the number of the request, so that each write
 * differs. The server's certificate is not verified: this is for loopback only. A reply other than 2xx, or a broken connection (which is opened
 * again), counts as an error; more than ERRORS_MAX end the run. Exit 0 when at least one request succeeded. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTIONS_MAX = 1024,
    ADDRESSES_MAX = 16,
    ERRORS_MAX = 1000,
    REQUEST_BYTES_MAX = 16 << 10,
    REPLY_BYTES_MAX = 64 << 20,
    SAMPLES_MAX = 8 << 20,
    STALL_MS_MAX = 30000, /* no progress on any connection for so long ends the run */
};

struct connection {
    int fd;
    SSL *ssl;
    const struct sockaddr_in *address;
    char request[REQUEST_BYTES_MAX];
    size_t request_bytes, sent_bytes;
    char *reply;
    size_t reply_bytes, reply_room;
    int64_t started_ns;
    uint32_t events; /* what epoll waits for */
};

static struct {
    SSL_CTX *tls;
    int epoll_fd;
    const char *method, *path, *body;
    struct sockaddr_in addresses[ADDRESSES_MAX];
    int address_count, connection_count;
    double seconds;
    int64_t requests, errors, number;
    uint32_t *latency_us;
    int64_t samples;
    char last_error[256];
} bench = {.method = "GET", .body = "", .connection_count = 1, .seconds = 5};

static int64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "covey-bench: %s\n", what);
    exit(2);
}

static void note_error(const char *text)
{
    bench.errors++;
    snprintf(bench.last_error, sizeof bench.last_error, "%s", text);
}

/* Copies `from` with every %N replaced; returns the length or -1 when it does not fit. */
static int expand(char *to, size_t room, const char *from, int64_t number)
{
    size_t used = 0;
    for (const char *at = from; *at;) {
        int wrote;
        if (at[0] == '%' && at[1] == 'N') {
            wrote = snprintf(to + used, room - used, "%lld", (long long)number);
            at += 2;
        } else {
            wrote = snprintf(to + used, room - used, "%c", *at++);
        }
        if (wrote < 0 || used + (size_t)wrote >= room)
            return -1;
        used += (size_t)wrote;
    }
    to[used] = 0;
    return (int)used;
}

static void make_request(struct connection *connection)
{
    char path[2048], body[8192];
    int64_t number = ++bench.number;
    int body_bytes = expand(body, sizeof body, bench.body, number);
    if (expand(path, sizeof path, bench.path, number) < 0 || body_bytes < 0)
        die("path or body too long");
    int bytes = snprintf(connection->request, sizeof connection->request,
                         "%s %s HTTP/1.1\r\nHost: covey\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", bench.method, path, body_bytes, body);
    if (bytes < 0 || (size_t)bytes >= sizeof connection->request)
        die("request too long");
    connection->request_bytes = (size_t)bytes;
    connection->sent_bytes = connection->reply_bytes = 0;
    connection->started_ns = now_ns();
}

/* Connects and shakes hands, blocking: happens outside of the measured time except after errors. */
static bool open_connection(struct connection *connection)
{
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connection->fd < 0)
        die("socket");
    struct timeval limit = {.tv_sec = 10};
    int one = 1;
    setsockopt(connection->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(connection->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(connection->fd, (const struct sockaddr *)connection->address, sizeof *connection->address)) {
        close(connection->fd);
        return false;
    }
    connection->ssl = SSL_new(bench.tls);
    if (!connection->ssl || !SSL_set_fd(connection->ssl, connection->fd))
        die("SSL_new");
    if (SSL_connect(connection->ssl) != 1) {
        SSL_free(connection->ssl);
        close(connection->fd);
        ERR_clear_error();
        return false;
    }
    if (fcntl(connection->fd, F_SETFL, O_NONBLOCK))
        die("fcntl");
    connection->events = EPOLLIN | EPOLLOUT;
    struct epoll_event event = {.events = connection->events, .data.ptr = connection};
    if (epoll_ctl(bench.epoll_fd, EPOLL_CTL_ADD, connection->fd, &event))
        die("epoll_ctl");
    make_request(connection);
    return true;
}

static void reopen(struct connection *connection)
{
    SSL_free(connection->ssl);
    close(connection->fd); /* leaves the epoll set, too */
    while (!open_connection(connection)) {
        note_error("cannot connect");
        if (bench.errors > ERRORS_MAX)
            die("too many errors: cannot connect");
        struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
        nanosleep(&pause, NULL);
    }
}

static void watch(struct connection *connection, uint32_t events)
{
    if (events == connection->events)
        return;
    connection->events = events;
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(bench.epoll_fd, EPOLL_CTL_MOD, connection->fd, &event))
        die("epoll_ctl");
}

/* 1 when a chunked body ends exactly at `end`, 0 when more must come, -1 when it is malformed. */
static int chunked_complete(const char *at, const char *end)
{
    for (;;) {
        const char *line = memmem(at, (size_t)(end - at), "\r\n", 2);
        if (!line)
            return 0;
        char *after;
        unsigned long long size = strtoull(at, &after, 16);
        if (after == at || size > REPLY_BYTES_MAX)
            return -1;
        if ((unsigned long long)(end - line) < size + 4)
            return 0;
        if (!size)
            return 1;
        at = line + 2 + size + 2;
    }
}

/* 1 when the whole reply is here, 0 when not yet, -1 when it makes no sense. */
static int reply_complete(const struct connection *connection)
{
    const char *head_end = memmem(connection->reply, connection->reply_bytes, "\r\n\r\n", 4);
    if (!head_end)
        return 0;
    const char *body = head_end + 4, *end = connection->reply + connection->reply_bytes;
    for (const char *line = connection->reply; line < head_end;) {
        const char *next = memmem(line, (size_t)(body - line), "\r\n", 2);
        if (!strncasecmp(line, "content-length:", 15))
            return end - body >= strtoll(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26))
            return chunked_complete(body, end);
        line = next + 2;
    }
    return -1;
}

static void finish_request(struct connection *connection)
{
    bool good = connection->reply_bytes > 12 && connection->reply[9] == '2';
    if (good) {
        bench.requests++;
        if (bench.samples < SAMPLES_MAX)
            bench.latency_us[bench.samples++] = (uint32_t)((now_ns() - connection->started_ns) / 1000);
    } else {
        const char *body = strstr(connection->reply, "\r\n\r\n");
        note_error(body ? body + 4 : connection->reply);
    }
    make_request(connection);
    watch(connection, EPOLLIN | EPOLLOUT);
}

/* false: the connection is broken. */
static bool send_some(struct connection *connection)
{
    while (connection->sent_bytes < connection->request_bytes) {
        int wrote = SSL_write(connection->ssl, connection->request + connection->sent_bytes, (int)(connection->request_bytes - connection->sent_bytes));
        if (wrote <= 0) {
            int why = SSL_get_error(connection->ssl, wrote);
            return why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ;
        }
        connection->sent_bytes += (size_t)wrote;
    }
    watch(connection, EPOLLIN);
    return true;
}

static bool receive_some(struct connection *connection)
{
    for (;;) {
        if (connection->reply_room - connection->reply_bytes < 16 << 10) {
            size_t room = connection->reply_room ? connection->reply_room * 2 : 64 << 10;
            char *grown = room > REPLY_BYTES_MAX ? NULL : realloc(connection->reply, room);
            if (!grown)
                die("reply too long");
            connection->reply = grown;
            connection->reply_room = room;
        }
        size_t room = connection->reply_room - connection->reply_bytes - 1;
        int got = SSL_read(connection->ssl, connection->reply + connection->reply_bytes, (int)room);
        if (got <= 0) {
            int why = SSL_get_error(connection->ssl, got);
            return why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE;
        }
        connection->reply_bytes += (size_t)got;
        connection->reply[connection->reply_bytes] = 0;
        int complete = reply_complete(connection);
        if (complete < 0)
            return false;
        if (complete > 0)
            finish_request(connection);
    }
}

static int compare(const void *a, const void *b)
{
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static double percentile_ms(double share)
{
    if (!bench.samples)
        return 0;
    return bench.latency_us[(int64_t)((double)(bench.samples - 1) * share)] / 1000.0;
}

static void run(void)
{
    struct connection *connections = calloc((size_t)bench.connection_count, sizeof *connections);
    if (!connections)
        die("out of memory");
    for (int i = 0; i < bench.connection_count; i++) {
        connections[i].address = &bench.addresses[i % bench.address_count];
        if (!open_connection(&connections[i]))
            die("cannot connect, or the server refused the handshake");
    }
    int64_t started = now_ns(), end = started + (int64_t)(bench.seconds * 1e9);
    for (int i = 0; i < bench.connection_count; i++)
        connections[i].started_ns = started;
    while (now_ns() < end && bench.errors <= ERRORS_MAX) {
        struct epoll_event events[64];
        int count = epoll_wait(bench.epoll_fd, events, 64, STALL_MS_MAX);
        if (count == 0)
            die("no answer at all");
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            ERR_clear_error();
            if (!send_some(connection) || !receive_some(connection)) {
                note_error("connection broken");
                reopen(connection);
            }
        }
    }
    double seconds = (double)(now_ns() - started) / 1e9;
    for (int i = 0; i < bench.connection_count; i++) {
        SSL_free(connections[i].ssl);
        close(connections[i].fd);
        free(connections[i].reply);
    }
    free(connections);
    qsort(bench.latency_us, (size_t)bench.samples, sizeof *bench.latency_us, compare);
    printf("{\"requests\": %lld, \"errors\": %lld, \"seconds\": %.2f, \"per_second\": %.1f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"max_ms\": %.3f}\n",
           (long long)bench.requests, (long long)bench.errors, seconds, (double)bench.requests / seconds, percentile_ms(0.5), percentile_ms(0.99),
           percentile_ms(1));
    if (bench.errors)
        fprintf(stderr, "covey-bench: %lld errors, last: %s\n", (long long)bench.errors, bench.last_error);
}

static void parse_addresses(char *list)
{
    for (char *rest = list, *one; (one = strsep(&rest, ","));) {
        char *colon = strrchr(one, ':');
        if (!colon || bench.address_count == ADDRESSES_MAX)
            die("--address H:P[,H:P...], at most 16");
        *colon = 0;
        struct sockaddr_in *address = &bench.addresses[bench.address_count++];
        long port = strtol(colon + 1, NULL, 10);
        if (port < 1 || port > 65535 || inet_pton(AF_INET, one, &address->sin_addr) != 1)
            die("--address needs IPv4 addresses with ports");
        address->sin_family = AF_INET;
        address->sin_port = htons((uint16_t)port);
    }
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"address", 1, NULL, 'a'}, {"cert", 1, NULL, 'c'}, {"method", 1, NULL, 'm'}, {"path", 1, NULL, 'p'},
                                            {"body", 1, NULL, 'b'}, {"connections", 1, NULL, 'n'}, {"seconds", 1, NULL, 's'}, {NULL, 0, NULL, 0}};
    const char *cert = NULL;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'a': parse_addresses(optarg); break;
        case 'c': cert = optarg; break;
        case 'm': bench.method = optarg; break;
        case 'p': bench.path = optarg; break;
        case 'b': bench.body = optarg; break;
        case 'n': bench.connection_count = (int)strtol(optarg, NULL, 10); break;
        case 's': bench.seconds = strtod(optarg, NULL); break;
        default: return 2;
        }
    }
    if (!bench.address_count || !bench.path || !cert || bench.connection_count < 1 || bench.connection_count > CONNECTIONS_MAX || bench.seconds <= 0)
        die("--address, --cert, --path are needed; 1 to 1024 connections; seconds above 0");
    signal(SIGPIPE, SIG_IGN);
    char file[4096];
    bench.tls = SSL_CTX_new(TLS_client_method());
    snprintf(file, sizeof file, "%s.crt", cert);
    if (!bench.tls || SSL_CTX_use_certificate_file(bench.tls, file, SSL_FILETYPE_PEM) != 1)
        die("cannot load the certificate");
    snprintf(file, sizeof file, "%s.key", cert);
    if (SSL_CTX_use_PrivateKey_file(bench.tls, file, SSL_FILETYPE_PEM) != 1)
        die("cannot load the key");
    SSL_CTX_set_mode(bench.tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    bench.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    bench.latency_us = malloc(SAMPLES_MAX * sizeof *bench.latency_us);
    if (bench.epoll_fd < 0 || !bench.latency_us)
        die("out of resources");
    run();
    free(bench.latency_us);
    SSL_CTX_free(bench.tls);
    close(bench.epoll_fd);
    return bench.requests ? 0 : 1;
}
