/* Image bodies: upload of one and of two files with back-pressure, refusals, export. The bytes sent are 'a'…'z' over and over, checked by the daemon. */
#include "world.h"

enum { BIG = 40 << 20 }; /* more than all queues on the way */

static void fill(char *data, size_t len, size_t from)
{
    for (size_t i = 0; i < len; i++)
        data[i] = (char)('a' + (from + i) % 26);
}

static void small_upload(void **state)
{
    struct answer answer = ask("POST", "/1.0/images?project=p", "Content-Type: application/octet-stream\r\nX-Lxd-Filename: uni.tar.gz\r\nX-LXD-public: true\r\n"
        "X-LXD-properties: os=b%20x&release=1\r\nX-LXD-fingerprint: ff\r\n", "abcdef");
    assert_int_equal(answer.code, 202);
    assert_string_equal(answer_header(&answer, "Location"), "/1.0/operations/up");
    answer_free(&answer);
    assert_int_equal(atomic_load(&w.uploaded), 6);
    EXPECT_SEEN("\"project\":\"p\",\"filename\":\"uni.tar.gz\",\"public\":true");
    EXPECT_SEEN("\"properties\":{\"os\":\"b x\",\"release\":\"1\"},\"fingerprint\":\"ff\",\"split\":false");
    /* no content type is the same; an empty body too */
    EXPECT("POST", "/1.0/images", NULL, "abc", 202, NULL);
    EXPECT("POST", "/1.0/images", NULL, NULL, 202, NULL);
    assert_int_equal(atomic_load(&w.uploaded), 0);
}

static void json_forms_are_not_there_yet(void **state)
{
    EXPECT("POST", "/1.0/images", "Content-Type: application/json\r\n", "{\"source\":{}}", 501, ERROR_BODY(501, "not implemented"));
}

static void bad_headers(void **state)
{
    EXPECT("POST", "/1.0/images", "X-LXD-properties: a=%zz\r\n", "abc", 400, NULL);
    EXPECT("POST", "/1.0/images", "X-LXD-public: perhaps\r\n", "abc", 400, NULL);
    EXPECT("POST", "/1.0/images", "X-LXD-filename: \xff\r\n", "abc", 400, ERROR_BODY(400, "header X-LXD-filename is not valid UTF-8"));
}

struct big {
    int fd;
    atomic_llong sent;
    const char *failure;
};

/* Chunked, as lxc sends it. */
static void *big_writer(void *ud)
{
    struct big *big = ud;
    static char block[256 << 10];
    char size[32];
    snprintf(size, sizeof(size), "%zx\r\n", sizeof(block));
    while (atomic_load(&big->sent) < BIG) {
        fill(block, sizeof(block), (size_t)atomic_load(&big->sent));
        if (!client_puts(big->fd, size) || !client_write(big->fd, block, sizeof(block)) || !client_puts(big->fd, "\r\n"))
            return "write failed";
        atomic_fetch_add(&big->sent, sizeof(block));
    }
    return client_puts(big->fd, "0\r\n\r\n") ? NULL : "write failed";
}

/* A daemon that does not read stops the client; nothing is lost when it goes on. */
static void slow_daemon(void **state)
{
    struct big big = {.fd = client_connect()};
    struct buf in = {0};
    pthread_t thread;
    void *failure;
    atomic_store(&w.upload_hold, true);
    client_puts(big.fd, "POST /1.0/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    pthread_create(&thread, NULL, big_writer, &big);
    long long last = -1;
    int same = 0;
    while (same < 50) { /* half a second without progress */
        long long now = atomic_load(&big.sent);
        same = now == last ? same + 1 : 0;
        last = now;
        usleep(10000);
    }
    assert_in_range(last, 1 << 20, 24 << 20);
    EXPECT("GET", "/1.0/profiles/p", NULL, NULL, 200, NULL); /* nobody else waits */
    atomic_store(&w.upload_hold, false);
    struct answer answer = client_read(big.fd, &in);
    assert_int_equal(answer.code, 202);
    pthread_join(thread, &failure);
    assert_null(failure);
    assert_int_equal(atomic_load(&w.uploaded), BIG);
    answer_free(&answer);
    close(big.fd);
    buf_free(&in);
}

static void leaving_cancels_the_upload(void **state)
{
    int before = atomic_load(&w.cancelled);
    atomic_store(&w.uploaded, -1);
    int fd = client_connect();
    client_puts(fd, "POST /1.0/images HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc");
    EXPECT("GET", "/1.0/profiles/p", NULL, NULL, 200, NULL);
    WAIT_FOR(atomic_load(&w.uploaded) >= 0); /* the call has reached the daemon: one that is cancelled before does not */
    close(fd);
    WAIT_FOR(atomic_load(&w.cancelled) == before + 1);
}

/* The daemon says no at once: the client sends on and hears it at the end. */
static void refused_upload(void **state)
{
    char *data = xmalloc((2 << 20) + 1);
    fill(data, 2 << 20, 0);
    data[2 << 20] = '\0';
    EXPECT("POST", "/1.0/images", "X-LXD-filename: refused\r\n", data, 403, ERROR_BODY(403, "not authorized"));
    free(data);
}

static struct buf form(const char *first, size_t first_len, const char *second, size_t second_len)
{
    struct buf out = {0};
    buf_printf(&out, "--bnd\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"meta\"\r\nContent-Type: application/octet-stream\r\n\r\n", first);
    fill(buf_grow(&out, first_len), first_len, 0);
    if (second != NULL) {
        buf_printf(&out, "\r\n--bnd\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"root\"\r\nContent-Type: application/octet-stream\r\n\r\n", second);
        fill(buf_grow(&out, second_len), second_len, first_len);
    }
    buf_puts(&out, "\r\n--bnd--\r\n");
    return out;
}

#define FORM "Content-Type: multipart/form-data; boundary=bnd\r\n"

static void split_upload(void **state)
{
    struct buf body = form("metadata", 700, "rootfs", 3 << 20);
    EXPECT("POST", "/1.0/images", FORM, body.data, 202, NULL);
    EXPECT_SEEN("\"split\":true");
    assert_int_equal(atomic_load(&w.uploaded), 700);
    assert_int_equal(atomic_load(&w.uploaded_rootfs), 3 << 20);
    buf_free(&body);
    body = form("metadata", 1 << 20, "rootfs", 1);
    EXPECT("POST", "/1.0/images", FORM, body.data, 202, NULL);
    assert_int_equal(atomic_load(&w.uploaded), 1 << 20);
    assert_int_equal(atomic_load(&w.uploaded_rootfs), 1);
    buf_free(&body);
}

static void bad_forms(void **state)
{
    static const char *const pairs[][2] = {{"metadata", "rootfs.img"}, {"rootfs", "metadata"}, {"other", "rootfs"}, {"metadata", "metadata"}, {"metadata", NULL}};
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        struct buf body = form(pairs[i][0], 100, pairs[i][1], 100000);
        EXPECT("POST", "/1.0/images", FORM, body.data, 400, ERROR_BODY(400, "Invalid multipart image"));
        buf_free(&body);
    }
    EXPECT("POST", "/1.0/images", FORM, "no form at all", 400, ERROR_BODY(400, "Invalid multipart image"));
    EXPECT("POST", "/1.0/images", "Content-Type: multipart/form-data\r\n", "x", 400, ERROR_BODY(400, "Invalid multipart image"));
    EXPECT("GET", "/1.0/profiles/p", NULL, NULL, 200, NULL);
}

static void export_one_file(void **state)
{
    struct answer answer = ask("GET", "/1.0/images/one/export", NULL, NULL);
    assert_int_equal(answer.code, 200);
    assert_string_equal(answer_header(&answer, "Content-Disposition"), "inline;filename=f.tar.gz");
    assert_string_equal(answer_header(&answer, "Content-Type"), "application/octet-stream");
    assert_int_equal(answer.body_len, EXPORT_BIG);
    for (size_t i = 0; i < answer.body_len; i++)
        if (answer.body[i] != 'x')
            fail_msg("wrong byte at %zu", i);
    answer_free(&answer);
    EXPECT("GET", "/1.0/images/missing/export", NULL, NULL, 404, ERROR_BODY(404, "Image not found"));
}

static void export_two_files(void **state)
{
    struct answer answer = ask("GET", "/1.0/images/two/export", NULL, NULL);
    assert_int_equal(answer.code, 200);
    const char *type = answer_header(&answer, "Content-Type");
    assert_int_equal(strncmp(type, "multipart/form-data; boundary=", 30), 0);
    char *boundary = xstrdup(type + 30);
    char *wanted = xasprintf("--%s\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"meta-f.tar.gz\"\r\nContent-Type: application/octet-stream\r\n\r\nmeta"
        "\r\n--%s\r\nContent-Disposition: form-data; name=\"rootfs\"; filename=\"f.squashfs\"\r\nContent-Type: application/octet-stream\r\n\r\nrootfs-data"
        "\r\n--%s--\r\n", boundary, boundary, boundary);
    assert_string_equal(answer.body, wanted);
    free(wanted);
    free(boundary);
    answer_free(&answer);
}

/* A stream that ends too early never looks complete. */
static void export_breaks(void **state)
{
    struct answer answer = ask("GET", "/1.0/images/short/export", NULL, NULL);
    assert_string_equal(answer_header(&answer, "Content-Length"), "3145728");
    assert_int_equal(answer.body_len, 3 * EXPORT_CHUNK);
    answer_free(&answer);
}

/* A client that does not read, and one that leaves. */
static void slow_reader(void **state)
{
    struct buf in = {0};
    int fd = client_connect(), gone = client_connect();
    client_puts(gone, "GET /1.0/images/one/export HTTP/1.1\r\nHost: x\r\n\r\n");
    client_puts(fd, "GET /1.0/images/one/export HTTP/1.1\r\nHost: x\r\n\r\n");
    struct pollfd pfd = {gone, POLLIN, 0};
    assert_int_equal(poll(&pfd, 1, WAIT_MS_MAX), 1);
    close(gone);
    EXPECT("GET", "/1.0/profiles/p", NULL, NULL, 200, NULL);
    struct answer answer = client_read(fd, &in);
    assert_int_equal(answer.body_len, EXPORT_BIG);
    answer_free(&answer);
    client_puts(fd, "GET /1.0 HTTP/1.1\r\nHost: x\r\n\r\n"); /* the connection is still good */
    answer = client_read(fd, &in);
    assert_int_equal(answer.code, 200);
    answer_free(&answer);
    buf_free(&in);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_upload),
        cmocka_unit_test(json_forms_are_not_there_yet),
        cmocka_unit_test(bad_headers),
        cmocka_unit_test(slow_daemon),
        cmocka_unit_test(leaving_cancels_the_upload),
        cmocka_unit_test(refused_upload),
        cmocka_unit_test(split_upload),
        cmocka_unit_test(bad_forms),
        cmocka_unit_test(export_one_file),
        cmocka_unit_test(export_two_files),
        cmocka_unit_test(export_breaks),
        cmocka_unit_test(slow_reader),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
