/* REST to gRPC and back: envelopes, routing, fields from path, query, body and headers, connections, limits. */
#include "world.h"

static void versions_and_server(void **state)
{
    EXPECT("GET", "/", NULL, NULL, 200, SYNC_BODY("[\"/1.0\"]"));
    EXPECT("GET", "/?recursion=1", NULL, NULL, 200, SYNC_BODY("[\"/1.0\"]"));
    struct answer answer = ask("GET", "/1.0", NULL, NULL);
    assert_int_equal(answer.code, 200);
    assert_string_equal(answer_header(&answer, "ETag"), "\"abc\"");
    assert_string_equal(answer_header(&answer, "Content-Type"), "application/json");
    assert_non_null(strstr(answer.body, "\"auth\":\"trusted\""));
    assert_null(strstr(answer.body, "etag"));
    answer_free(&answer);
    pthread_mutex_lock(&w.lock);
    assert_string_equal(w.caller.protocol, "unix");
    assert_string_equal(w.caller.username, "root");
    assert_string_equal(w.caller.address, "@");
    pthread_mutex_unlock(&w.lock);
}

static void unknown_things(void **state)
{
    EXPECT("GET", "/1.0/", NULL, NULL, 404, ERROR_BODY(404, "not found"));
    EXPECT("GET", "/1.0/nothing", NULL, NULL, 404, ERROR_BODY(404, "not found"));
    EXPECT("GET", "/1.0/profiles/", NULL, NULL, 404, ERROR_BODY(404, "not found"));
    EXPECT("GET", "/1.0/profiles/a/b", NULL, NULL, 404, ERROR_BODY(404, "not found"));
    EXPECT("GET", "/2.0", NULL, NULL, 404, ERROR_BODY(404, "not found"));
    EXPECT("FOO", "/1.0", NULL, NULL, 404, ERROR_BODY(404, "Method \\\"FOO\\\" not found"));
    EXPECT("DELETE", "/1.0", NULL, NULL, 501, ERROR_BODY(501, "not implemented"));
    EXPECT("DELETE", "/1.0/profiles/x", NULL, NULL, 501, ERROR_BODY(501, "not implemented")); /* the daemon has no handler */
    EXPECT("GET", "/1.0/profiles/%zz", NULL, NULL, 400, ERROR_BODY(400, "invalid escape in the path"));
    EXPECT("GET", "/1.0/profiles/%ff", NULL, NULL, 400, ERROR_BODY(400, "invalid escape in the path"));
    EXPECT("GET", "/1.0/profiles/a%00b", NULL, NULL, 400, ERROR_BODY(400, "invalid escape in the path"));
    EXPECT("OPTIONS", "/1.0/anything", NULL, NULL, 200, "");
    struct answer answer = ask("GET", "/nothing", NULL, NULL);
    assert_string_equal(answer_header(&answer, "X-Content-Type-Options"), "nosniff");
    answer_free(&answer);
}

static void statuses_become_http_codes(void **state)
{
    EXPECT("GET", "/1.0/profiles/missing", NULL, NULL, 404, ERROR_BODY(404, "Fetch profile: Profile not found"));
    EXPECT("GET", "/1.0/profiles/secret", NULL, NULL, 403, ERROR_BODY(403, "not authorized"));
    EXPECT("GET", "/1.0/profiles/down", NULL, NULL, 503, ERROR_BODY(503, "LXD daemon setup in progress"));
}

static void kinds_of_answers(void **state)
{
    struct answer answer = ask("POST", "/1.0/profiles", NULL, "{\"name\":\"a/b \xc3\xa4\"}");
    assert_int_equal(answer.code, 201);
    assert_string_equal(answer.body, SYNC_BODY("null"));
    assert_string_equal(answer_header(&answer, "Location"), "/1.0/profiles/a%2Fb%20%C3%A4");
    answer_free(&answer);
    EXPECT("PUT", "/1.0/profiles/x", NULL, "{}", 200, SYNC_BODY("{}"));
    answer = ask("POST", "/1.0/instances", NULL, "{\"name\":\"c1\"}");
    assert_int_equal(answer.code, 202);
    assert_string_equal(answer_header(&answer, "Location"), "/1.0/operations/e6175a87-4e0f-4f78-93f4-77ce290da06e");
    static const char async[] =
        "{\"type\":\"async\",\"status\":\"Operation created\",\"status_code\":100,\"operation\":\"/1.0/operations/"
        "e6175a87-4e0f-4f78-93f4-77ce290da06e\",\"error_code\":0,\"error\":\"\",\"metadata\":{\"id\":\"e6175a87";
    assert_memory_equal(answer.body, async, sizeof(async) - 1);
    answer_free(&answer);
    EXPECT("PATCH", "/1.0/instances/c1", NULL, "{\"description\":\"x\"}", 200, SYNC_BODY("{}"));
    answer = ask("PUT", "/1.0/instances/c1", NULL, "{}");
    assert_int_equal(answer.code, 202);
    answer_free(&answer);
    answer = ask("POST", "/1.0/certificates", NULL, "{\"type\":\"client\"}");
    assert_int_equal(answer.code, 201);
    assert_string_equal(answer_header(&answer, "Location"), "/1.0/certificates/00ff");
    assert_string_equal(answer.body, SYNC_BODY("null"));
    answer_free(&answer);
    answer = ask("POST", "/1.0/certificates", NULL, "{\"token\":true}");
    assert_int_equal(answer.code, 202);
    answer_free(&answer);
}

static void literals_win_over_variables(void **state)
{
    EXPECT("GET", "/1.0/images/aliases/tiny%2F1", NULL, NULL, 200, NULL);
    EXPECT_SEEN("\"name\":\"tiny/1\"");
    EXPECT("GET", "/1.0/images/aliases/export", NULL, NULL, 200, NULL);
    EXPECT_SEEN("\"name\":\"export\"");
    EXPECT("GET", "/1.0/images/abc", NULL, NULL, 200, NULL);
    EXPECT_SEEN("\"fingerprint\":\"abc\"");
    EXPECT("PUT", "/1.0/images/aliases", NULL, "{}", 501, ERROR_BODY(501, "not implemented"));
}

static void containers_alias(void **state)
{
    EXPECT("GET", "/1.0/instances", NULL, NULL, 200, SYNC_BODY("[\"/1.0/instances/c1\"]"));
    EXPECT("GET", "/1.0/containers", NULL, NULL, 200, SYNC_BODY("[\"/1.0/containers/c1\"]"));
    EXPECT("GET", "/1.0/containers?recursion=1", NULL, NULL, 200, SYNC_BODY("[]"));
}

static void query_fills_fields(void **state)
{
    EXPECT("GET", "/1.0/instances?filter=&recursion=2&all-projects=true&instance-type=container&unknown=1&target=%40gpu", NULL, NULL, 200, NULL);
    EXPECT_SEEN("{\"project\":\"\",\"all-projects\":true,\"recursion\":2,\"filter\":\"\",\"instance-type\":\"container\"}");
    EXPECT("GET", "/1.0/instances?recursion=abc&project=a+b%2Bc&project=second", NULL, NULL, 200, NULL);
    EXPECT_SEEN("\"project\":\"a b+c\",\"all-projects\":false,\"recursion\":0");
    EXPECT("GET", "/1.0?target=node2", NULL, NULL, 200, NULL);
    EXPECT_SEEN("\"target\":\"node2\"");
    EXPECT("GET", "/1.0?target=%zz", NULL, NULL, 400, ERROR_BODY(400, "the value of parameter \\\"target\\\" is not valid"));
    /* the path wins over the query */
    EXPECT("GET", "/1.0/profiles/right?name=wrong", NULL, NULL, 200, NULL);
    EXPECT_SEEN("\"name\":\"right\"");
    EXPECT("PUT", "/1.0/instances?", NULL, "{}", 501, NULL);
}

static void body_fills_fields(void **state)
{
    EXPECT("PUT", "/1.0/profiles/right?project=p1", NULL, "{\"name\":\"wrong\",\"project\":\"wrong\",\"description\":\"d\",\"x\":1}", 200, NULL);
    EXPECT_SEEN("{\"name\":\"right\",\"project\":\"p1\",\"description\":\"d\"");
    EXPECT("PUT", "/1.0/profiles/right", NULL, "{\"project\":\"wrong\"}", 200, NULL);
    EXPECT_SEEN("\"project\":\"\"");
    EXPECT("POST", "/1.0/instances?target=node2", NULL, "{\"name\":\"c\",\"target\":\"node9\"}", 202, NULL);
    EXPECT_SEEN("\"target\":\"node2\"");
    /* an alias has a target of its own */
    EXPECT("POST", "/1.0/images/aliases?target=node2", NULL, "{\"name\":\"a\",\"target\":\"f00d\"}", 201, NULL);
    EXPECT_SEEN("\"target\":\"f00d\"");
    const char *const nothing[] = {"", "null", "\"\"", " \n", "{}"};
    for (size_t i = 0; i < sizeof(nothing) / sizeof(nothing[0]); i++) {
        EXPECT("POST", "/1.0/instances?target=node2", NULL, nothing[i], 202, NULL);
        EXPECT_SEEN("\"target\":\"node2\"");
    }
    EXPECT("PUT", "/1.0/profiles/right", NULL, "null", 200, SYNC_BODY("{}"));
    EXPECT_SEEN("\"name\":\"right\"");
    EXPECT("GET", "/1.0/profiles/right", NULL, "\"\"", 200, NULL);
    EXPECT("GET", "/1.0/profiles/right", NULL, "null", 200, NULL);
    EXPECT("GET", "/1.0/profiles/right", NULL, "{broken", 200, NULL);
}

static void bad_bodies_are_refused(void **state)
{
    int calls = atomic_load(&w.calls);
    EXPECT("PUT", "/1.0/profiles/x", NULL, "", 400, ERROR_BODY(400, "the request body is missing"));
    EXPECT("PATCH", "/1.0/profiles/x", NULL, " \n", 400, ERROR_BODY(400, "the request body is missing"));
    EXPECT("PUT", "/1.0/profiles/x", NULL, "\"\"", 400, ERROR_BODY(400, "the request body must be a JSON object"));
    EXPECT("PUT", "/1.0/profiles/x", NULL, "{broken", 400, NULL);
    EXPECT("PUT", "/1.0/profiles/x", NULL, "{}{}", 400, NULL);
    EXPECT("PUT", "/1.0/profiles/x", NULL, "[1]", 400, ERROR_BODY(400, "the request body must be a JSON object"));
    EXPECT("PUT", "/1.0/profiles/x", NULL, "\"text\"", 400, ERROR_BODY(400, "the request body must be a JSON object"));
    EXPECT("PUT", "/1.0/profiles/x", NULL, "{\"description\":\"\xff\"}", 400, NULL);
    EXPECT("PUT", "/1.0/profiles/x", NULL, "{\"description\":\"\\u0000\"}", 400, NULL);
    EXPECT("PUT", "/1.0/profiles/x", NULL, "{\"config\":{\"k\":1}}", 400, NULL);
    struct buf deep = {0};
    for (int i = 0; i < 5000; i++)
        buf_puts(&deep, "{\"config\":");
    EXPECT("PUT", "/1.0/profiles/x", NULL, deep.data, 400, NULL);
    buf_free(&deep);
    assert_int_equal(atomic_load(&w.calls), calls);
}

static void patch_has_a_mask_and_put_has_none(void **state)
{
    EXPECT("PATCH", "/1.0", NULL, "{\"config\":{\"user.a\":\"1\"},\"other\":null}", 200, SYNC_BODY("{}"));
    EXPECT_SEEN("|mask=config;");
    EXPECT("PUT", "/1.0", NULL, "{\"config\":{},\"update_mask\":\"config\"}", 200, NULL);
    assert_null(strstr(world_seen(), "mask="));
}

static void etags_travel(void **state)
{
    EXPECT("PUT", "/1.0", "If-Match: \"abc\"\r\n", "{}", 200, NULL);
    EXPECT("PUT", "/1.0", "If-Match: \"bad\"\r\n", "{}", 412, ERROR_BODY(412, "ETag doesn't match: abc vs bad"));
    EXPECT("PUT", "/1.0?if_match=bad", NULL, "{\"if_match\":\"bad\"}", 200, NULL);
}

static void writes_have_a_request_id(void **state)
{
    EXPECT("PUT", "/1.0/profiles/x", NULL, "{}", 200, NULL);
    pthread_mutex_lock(&w.lock);
    bool valid = uuid_valid(w.request_id);
    pthread_mutex_unlock(&w.lock);
    assert_true(valid);
}

static void connections_are_kept(void **state)
{
    struct buf in = {0};
    int fd = client_connect(), other = client_connect();
    for (int i = 0; i < 3; i++) {
        client_puts(fd, "GET /1.0/profiles/p HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nnull");
        struct answer answer = client_read(fd, &in);
        assert_int_equal(answer.code, 200);
        answer_free(&answer);
    }
    /* two requests at once on each of two connections */
    const char twice[] = "PUT /1.0/profiles/p HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}GET /1.0 HTTP/1.1\r\nHost: x\r\n\r\n";
    client_puts(fd, twice);
    client_puts(other, twice);
    const int fds[] = {fd, other};
    for (int i = 0; i < 2; i++) {
        struct answer first = client_read(fds[i], &in), second = client_read(fds[i], &in);
        assert_string_equal(first.body, SYNC_BODY("{}"));
        assert_non_null(strstr(second.body, "\"api_version\":\"1.0\""));
        answer_free(&first);
        answer_free(&second);
        close(fds[i]);
    }
    buf_free(&in);
}

static void chunked_bodies(void **state)
{
    struct buf in = {0};
    int fd = client_connect();
    client_puts(fd, "PUT /1.0/profiles/p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"descrip\r\n");
    client_puts(fd, "b\r\ntion\":\"ch\"}\r\n0\r\n\r\n");
    struct answer answer = client_read(fd, &in);
    assert_int_equal(answer.code, 200);
    EXPECT_SEEN("\"description\":\"ch\"");
    answer_free(&answer);
    close(fd);
    buf_free(&in);
}

static void large_bodies(void **state)
{
    struct buf body = {0};
    buf_puts(&body, "{\"x\":\"");
    memset(buf_grow(&body, GATEWAY_BODY_BYTES_MAX), 'a', GATEWAY_BODY_BYTES_MAX);
    buf_puts(&body, "\"}");
    EXPECT("PUT", "/1.0/profiles/x", NULL, body.data, 413, ERROR_BODY(413, "the request body is too large"));
    EXPECT("PUT", "/1.0/nothing", NULL, body.data, 404, ERROR_BODY(404, "not found"));
    struct answer answer = ask("PUT", "/1.0/profiles/x", "Expect: 100-continue\r\nContent-Length: 99999999\r\n", NULL);
    assert_int_equal(answer.code, 413);
    answer_free(&answer);
    /* chunked: the length shows only as it comes */
    struct buf in = {0};
    char size[32];
    int fd = client_connect();
    client_puts(fd, "PUT /1.0/profiles/p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    snprintf(size, sizeof(size), "%zx\r\n", body.len);
    client_puts(fd, size);
    client_write(fd, body.data, body.len);
    client_puts(fd, "\r\n0\r\n\r\n");
    answer = client_read(fd, &in);
    assert_int_equal(answer.code, 413);
    answer_free(&answer);
    close(fd);
    buf_free(&in);
    body.data[body.len - 4] = '\0'; /* just under the limit */
    struct buf small = {0};
    buf_puts(&small, body.data);
    small.len -= 8;
    small.data[small.len] = '\0';
    buf_puts(&small, "\"}");
    EXPECT("PUT", "/1.0/profiles/x", NULL, small.data, 200, NULL);
    buf_free(&small);
    buf_free(&body);
}

static void huge_heads_are_refused(void **state)
{
    struct buf head = {0};
    buf_puts(&head, "X-Long: ");
    memset(buf_grow(&head, GATEWAY_CONNECTION_BYTES), 'a', GATEWAY_CONNECTION_BYTES);
    buf_puts(&head, "\r\n");
    struct answer answer = ask("GET", "/1.0", head.data, NULL);
    assert_int_equal(answer.code, 431);
    answer_free(&answer);
    buf_free(&head);
    struct buf url = {0};
    buf_puts(&url, "/1.0?a=");
    for (int i = 0; i < 100; i++)
        buf_puts(&url, "&a=b");
    EXPECT("GET", url.data, NULL, NULL, 400, ERROR_BODY(400, "more than 64 parameters"));
    buf_free(&url);
    answer = ask("GET", "nonsense", NULL, NULL);
    assert_int_equal(answer.code, 404);
    answer_free(&answer);
}

static void slow_calls_do_not_block_others(void **state)
{
    struct buf in = {0};
    int fd = client_connect();
    client_puts(fd, "GET /1.0/operations/x/wait?timeout=10 HTTP/1.1\r\nHost: x\r\n\r\n");
    WAIT_FOR(atomic_load(&w.slow) != NULL);
    EXPECT_SEEN("\"timeout\":\"10\"");
    EXPECT("GET", "/1.0/profiles/p", NULL, NULL, 200, NULL);
    world_answer_slow();
    struct answer answer = client_read(fd, &in);
    assert_int_equal(answer.code, 200);
    assert_non_null(strstr(answer.body, "\"id\":\"slow\""));
    answer_free(&answer);
    close(fd);
    buf_free(&in);
}

static void leaving_cancels_the_call(void **state)
{
    int before = atomic_load(&w.cancelled);
    int fd = client_connect();
    client_puts(fd, "GET /1.0/operations/x/wait HTTP/1.1\r\nHost: x\r\n\r\n");
    WAIT_FOR(atomic_load(&w.slow) != NULL);
    close(fd);
    WAIT_FOR(atomic_load(&w.cancelled) == before + 1);
    rpc_call_unref(atomic_exchange(&w.slow, NULL));
}

static void socket_has_its_mode(void **state)
{
    struct stat st;
    char path[128];
    snprintf(path, sizeof(path), "%s/unix.socket", w.dir);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0660);
    struct error err = ERROR_INIT;
    struct gateway_options options = {"/tmp/a-path-that-is-much-too-long-for-a-socket-address-because-it-has-more-than-one-hundred-and-eight-characters", -1};
    assert_int_equal(gateway_start(&options, &err), STATUS_INVALID_ARGUMENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(versions_and_server),
        cmocka_unit_test(unknown_things),
        cmocka_unit_test(statuses_become_http_codes),
        cmocka_unit_test(kinds_of_answers),
        cmocka_unit_test(literals_win_over_variables),
        cmocka_unit_test(containers_alias),
        cmocka_unit_test(query_fills_fields),
        cmocka_unit_test(body_fills_fields),
        cmocka_unit_test(bad_bodies_are_refused),
        cmocka_unit_test(patch_has_a_mask_and_put_has_none),
        cmocka_unit_test(etags_travel),
        cmocka_unit_test(writes_have_a_request_id),
        cmocka_unit_test(connections_are_kept),
        cmocka_unit_test(chunked_bodies),
        cmocka_unit_test(large_bodies),
        cmocka_unit_test(huge_heads_are_refused),
        cmocka_unit_test(slow_calls_do_not_block_others),
        cmocka_unit_test(leaving_cancels_the_call),
        cmocka_unit_test(socket_has_its_mode),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
