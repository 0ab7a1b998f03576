/* Calls on one server: unary, the streaming kinds, limits, deadlines, cancellation, who calls. */
#include "world.h"
#include <sys/stat.h>

static void unary_answers(void **state)
{
    struct error err = ERROR_INIT;
    const char *const metadata[] = {"x-note", "hello", NULL};
    struct rpc_options options = {.metadata = metadata};
    char description[64];
    OK(get(w.to_local, "web", &options, description, &err));
    assert_string_equal(description, "hello");
}

static void error_carries_text_and_facts(void **state)
{
    struct error err = ERROR_INIT;
    assert_int_equal(get(w.to_local, "missing", NULL, NULL, &err), STATUS_NOT_FOUND);
    assert_int_equal(err.code, STATUS_NOT_FOUND);
    assert_string_equal(err.text, "Profile not found: \xc3\xa4 100%");
    assert_int_equal(err.retry_ms, 70);
    assert_int_equal(err.leader, 7);
    assert_false(err.not_leader);
}

static void missing_handler_is_unimplemented(void **state)
{
    struct error err = ERROR_INIT;
    Covey__V1__DeleteProfileRequest request = COVEY__V1__DELETE_PROFILE_REQUEST__INIT;
    ProtobufCMessage *response;
    struct arena arena;
    arena_init(&arena);
    assert_int_equal(rpc_unary(w.to_local, "covey.v1.Profiles", "DeleteProfile", &request.base, &response, &arena, NULL, &err), STATUS_UNIMPLEMENTED);
    assert_string_equal(err.text, "not implemented");
    /* a service that nobody bound */
    assert_int_equal(rpc_unary(w.to_local, "covey.v1.Projects", "ListProjects", NULL, &response, &arena, NULL, &err), STATUS_UNIMPLEMENTED);
    assert_string_equal(err.text, "not implemented");
    arena_clear(&arena);
}

static void request_id_is_passed_and_checked(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_options options = {.request_id = "5a7e2b1c-3d4e-4f60-8a9b-0c1d2e3f4a5b"};
    OK(create(w.to_local, &options, &err));
    assert_string_equal(w.seen_id, options.request_id);
    OK(create(w.to_local, NULL, &err));
    assert_true(uuid_valid(w.seen_id));
    assert_string_not_equal(w.seen_id, options.request_id);
    options.request_id = "nonsense";
    assert_int_equal(create(w.to_local, &options, &err), STATUS_INVALID_ARGUMENT);
}

struct async { atomic_int done; int status; char name[32]; };

static void on_async(int status, const ProtobufCMessage *response, const struct error *err, void *ud)
{
    struct async *async = ud;
    async->status = status;
    if (response != NULL)
        snprintf(async->name, sizeof(async->name), "%s", ((const Covey__V1__Profile *)response)->name);
    atomic_fetch_add(&async->done, 1);
}

static void async_answers(void **state)
{
    Covey__V1__GetProfileRequest request = COVEY__V1__GET_PROFILE_REQUEST__INIT;
    struct async async = {0};
    request.name = "later";
    rpc_unary_async(w.to_local, registry_method_by_name("covey.v1.Profiles", "GetProfile"), &request.base, NULL, on_async, &async);
    WAIT_FOR(atomic_load(&async.done) == 1);
    assert_int_equal(async.status, STATUS_OK);
    assert_string_equal(async.name, "later");
}

static void deadline_ends_call_and_handler(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_options options = {.timeout_ms = 50};
    int before = atomic_load(&w.cancelled_seen);
    assert_int_equal(get(w.to_local, "wait", &options, NULL, &err), STATUS_DEADLINE_EXCEEDED);
    WAIT_FOR(atomic_load(&w.cancelled_seen) == before + 1);
}

static void oversize_is_refused_both_ways(void **state)
{
    struct error err = ERROR_INIT;
    char *name = xmalloc(CODEC_MESSAGE_MAX + 10);
    memset(name, 'n', CODEC_MESSAGE_MAX + 9);
    name[CODEC_MESSAGE_MAX + 9] = '\0';
    assert_int_equal(get(w.to_local, name, NULL, NULL, &err), STATUS_RESOURCE_EXHAUSTED);
    free(name);
    assert_int_equal(get(w.to_local, "huge", NULL, NULL, &err), STATUS_RESOURCE_EXHAUSTED);
    assert_non_null(strstr(err.text, "larger than the limit"));
    OK(get(w.to_local, "after", NULL, NULL, &err)); /* the connection survived */
}

static void unreachable_is_unavailable(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_channel *channel = rpc_channel_unix("/nonexistent/socket");
    assert_int_equal(get(channel, "x", NULL, NULL, &err), STATUS_UNAVAILABLE);
    struct rpc_call *call = open_watch(channel, "1", false, NULL);
    assert_int_equal(rpc_status(call, &err), STATUS_UNAVAILABLE);
    rpc_call_unref(call);
    rpc_channel_unref(channel);
}

/* ---- streams ---- */

static void server_stream_in_order_then_status(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_call *call = open_watch(w.to_local, "300", true, NULL);
    for (int i = 1; i <= 300; i++) {
        ProtobufCMessage *message;
        struct arena arena;
        arena_init(&arena);
        OK(rpc_recv(call, &message, &arena, &err));
        assert_int_equal(((Covey__V1__Event *)message)->number, i);
        arena_clear(&arena);
    }
    ProtobufCMessage *message;
    struct arena arena;
    arena_init(&arena);
    assert_int_equal(rpc_recv(call, &message, &arena, &err), STATUS_NOT_FOUND);
    assert_string_equal(err.text, "after 300 events");
    assert_int_equal(rpc_status(call, &err), STATUS_NOT_FOUND);
    rpc_call_unref(call);
    call = open_watch(w.to_local, "0", false, NULL);
    assert_int_equal(rpc_recv(call, &message, &arena, &err), STATUS_OUT_OF_RANGE);
    OK(rpc_status(call, &err));
    rpc_call_unref(call);
    arena_clear(&arena);
}

static void client_stream_is_counted(void **state)
{
    struct error err = ERROR_INIT;
    uint8_t data[1000] = {1};
    struct rpc_call *call = rpc_open(w.to_local, "covey.v1.Images", "UploadImage", NULL, NULL, &err);
    assert_non_null(call);
    size_t expected = 0;
    for (int i = 0; i < 200; i++) {
        Covey__V1__UploadImageRequest request = COVEY__V1__UPLOAD_IMAGE_REQUEST__INIT;
        request.data.data = data;
        request.data.len = sizeof(data);
        OK(rpc_send(call, &request.base, &err));
        expected += protobuf_c_message_get_packed_size(&request.base);
    }
    rpc_half_close(call);
    ProtobufCMessage *message;
    struct arena arena;
    arena_init(&arena);
    OK(rpc_recv(call, &message, &arena, &err));
    assert_int_equal(atoi(((Covey__V1__Operation *)message)->id), expected);
    assert_int_equal(rpc_recv(call, &message, &arena, &err), STATUS_OUT_OF_RANGE);
    arena_clear(&arena);
    rpc_call_unref(call);
}

static void echo_rounds(struct rpc_channel *channel, int rounds)
{
    struct error err = ERROR_INIT;
    struct rpc_call *call = rpc_open(channel, "covey.v1.Operations", "Connect", NULL, NULL, &err);
    assert_non_null(call);
    ProtobufCMessage *message;
    struct arena arena;
    arena_init(&arena);
    for (int i = 0; i < rounds; i++) {
        Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
        char id[16];
        snprintf(id, sizeof(id), "%d", i);
        frame.id = id;
        OK(rpc_send(call, &frame.base, &err));
        OK(rpc_recv(call, &message, &arena, &err));
        assert_string_equal(((Covey__V1__StreamFrame *)message)->id, id);
    }
    rpc_half_close(call);
    assert_int_equal(rpc_recv(call, &message, &arena, &err), STATUS_ABORTED);
    assert_string_equal(err.text, "bye");
    arena_clear(&arena);
    rpc_call_unref(call);
}

static void bidi_echoes(void **state)
{
    echo_rounds(w.to_local, 50);
}

static void malformed_message_ends_stream(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_call *call = rpc_open(w.to_local, "covey.v1.Operations", "Connect", NULL, NULL, &err);
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    frame.id = "\xff\xfe"; /* not UTF-8 */
    OK(rpc_send(call, &frame.base, &err));
    assert_int_equal(rpc_status(call, &err), STATUS_INVALID_ARGUMENT);
    rpc_call_unref(call);
}

static void count_done(struct rpc_call *call, void *ud)
{
    atomic_fetch_add((atomic_int *)ud, 1);
}

static void cancel_reaches_handler_and_hooks(void **state)
{
    struct error err = ERROR_INIT;
    atomic_int done = 0;
    int before = atomic_load(&w.cancelled_seen);
    struct rpc_call *call = rpc_open(w.to_local, "covey.v1.Operations", "Connect", NULL, NULL, &err);
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    ProtobufCMessage *message;
    struct arena arena;
    arena_init(&arena);
    rpc_call_on_done(call, count_done, &done);
    OK(rpc_send(call, &frame.base, &err));
    OK(rpc_recv(call, &message, &arena, &err));
    rpc_cancel(call);
    assert_int_equal(rpc_status(call, &err), STATUS_CANCELLED);
    assert_int_equal(rpc_send(call, &frame.base, &err), STATUS_CANCELLED);
    WAIT_FOR(atomic_load(&done) == 1);
    rpc_call_on_done(call, count_done, &done); /* afterwards: at once */
    assert_int_equal(atomic_load(&done), 2);
    rpc_call_unref(call);
    WAIT_FOR(atomic_load(&w.cancelled_seen) == before + 1);
    /* a call that is only forgotten ends as well */
    call = rpc_open(w.to_local, "covey.v1.Operations", "Connect", NULL, NULL, &err);
    OK(rpc_send(call, &frame.base, &err));
    OK(rpc_recv(call, &message, &arena, &err));
    arena_clear(&arena);
    rpc_call_unref(call);
    WAIT_FOR(atomic_load(&w.cancelled_seen) == before + 2);
}

static void slow_reader_holds_writer_back(void **state)
{
    struct error err = ERROR_INIT;
    atomic_store(&w.sent, 0);
    int ended = atomic_load(&w.watches_ended);
    struct rpc_call *call = open_watch(w.to_local, "40000", false, NULL); /* 40 MB */
    WAIT_FOR(atomic_load(&w.sent) > RPC_STREAM_QUEUE_BYTES_MAX / 1100);
    long long stuck;
    do { /* until it stands still */
        stuck = atomic_load(&w.sent);
        usleep(100 * 1000);
    } while (atomic_load(&w.sent) != stuck);
    assert_true(stuck < 40000);
    assert_int_equal(atomic_load(&w.watches_ended), ended);
    struct arena arena;
    arena_init(&arena);
    int received = 0;
    for (;;) {
        ProtobufCMessage *message;
        int rc = rpc_recv(call, &message, &arena, &err);
        if (rc == STATUS_OUT_OF_RANGE)
            break;
        OK(rc);
        assert_int_equal(((Covey__V1__Event *)message)->number, ++received);
        arena_clear(&arena);
    }
    arena_clear(&arena);
    assert_int_equal(received, 40000);
    rpc_call_unref(call);
    /* and a writer that is held back hears of the cancellation */
    call = open_watch(w.to_local, "40000", false, NULL);
    usleep(50 * 1000);
    rpc_cancel(call);
    rpc_call_unref(call);
    WAIT_FOR(atomic_load(&w.watches_ended) == ended + 2);
}

struct reader { atomic_int seen, ended, pause_at; };

static bool on_event(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct reader *reader = ud;
    if (message == NULL) {
        atomic_fetch_add(&reader->ended, 1);
        return true;
    }
    return atomic_fetch_add(&reader->seen, 1) + 1 != atomic_load(&reader->pause_at);
}

static void callback_pauses_and_resumes(void **state)
{
    struct error err = ERROR_INIT;
    struct reader reader = {.pause_at = 5};
    struct rpc_call *call = open_watch(w.to_local, "10", false, NULL);
    rpc_on_message(call, on_event, &reader);
    WAIT_FOR(atomic_load(&reader.seen) == 5);
    usleep(50 * 1000);
    assert_int_equal(atomic_load(&reader.seen), 5);
    assert_int_equal(atomic_load(&reader.ended), 0);
    rpc_read_resume(call);
    WAIT_FOR(atomic_load(&reader.ended) == 1);
    assert_int_equal(atomic_load(&reader.seen), 10);
    OK(rpc_status(call, &err));
    rpc_call_unref(call);
}

/* ---- who calls ---- */

static void local_peer_is_admin(void **state)
{
    struct error err = ERROR_INIT;
    struct stat st;
    OK(get(w.to_local, "x", NULL, NULL, &err));
    assert_int_equal(w.seen.class, CALLER_LOCAL_ADMIN);
    assert_string_equal(w.seen.protocol, "unix");
    assert_string_equal(w.seen.address, "@");
    if (geteuid() == 0)
        assert_string_equal(w.seen.username, "root");
    assert_int_equal(stat(w.socket, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0660);
}

static void gateway_speaks_for_clients(void **state)
{
    struct error err = ERROR_INIT;
    const char *const user[] = {"covey-caller-protocol", "unix", "covey-caller-user", "alice", NULL};
    struct rpc_options options = {.metadata = user};
    OK(get(w.to_local, "x", &options, NULL, &err));
    assert_int_equal(w.seen.class, CALLER_LOCAL_ADMIN);
    assert_string_equal(w.seen.username, "alice");

    char *base64 = cert_pem_to_base64_der(w.client_id.cert_pem);
    const char *const client[] = {"covey-caller-protocol", "tls", "covey-caller-cert", base64, "covey-caller-address", "10.0.0.9:1", NULL};
    options.metadata = client;
    OK(get(w.to_local, "x", &options, NULL, &err));
    assert_int_equal(w.seen.class, CALLER_CLIENT);
    assert_true(w.seen.restricted);
    assert_string_equal(w.seen.fingerprint, w.client_id.fingerprint);
    assert_string_equal(w.seen.address, "10.0.0.9:1");
    char fingerprint[FINGERPRINT_SIZE];
    OK(cert_fingerprint(w.seen_cert, fingerprint, &err));
    assert_string_equal(fingerprint, w.client_id.fingerprint);

    const char *const mixed[] = {"covey-caller-protocol", "tls", "covey-caller-cert", base64, "covey-caller-fingerprint", w.member_id.fingerprint, NULL};
    options.metadata = mixed;
    assert_int_equal(get(w.to_local, "x", &options, NULL, &err), STATUS_INVALID_ARGUMENT);
    free(base64);

    const char *const stranger[] = {"covey-caller-protocol", "tls", "covey-caller-fingerprint", w.stranger_id.fingerprint, NULL};
    options.metadata = stranger;
    assert_int_equal(get(w.to_local, "x", &options, NULL, &err), STATUS_PERMISSION_DENIED);
    assert_string_equal(err.text, "not authorized");
    const char *const nobody[] = {"covey-caller-protocol", "tls", NULL};
    options.metadata = nobody;
    assert_int_equal(get(w.to_local, "x", &options, NULL, &err), STATUS_PERMISSION_DENIED);
    const char *const odd[] = {"covey-caller-protocol", "carrier-pigeon", NULL};
    options.metadata = odd;
    assert_int_equal(get(w.to_local, "x", &options, NULL, &err), STATUS_INVALID_ARGUMENT);
}

/* ---- health ---- */

static int next_health(struct rpc_call *call)
{
    struct error err = ERROR_INIT;
    ProtobufCMessage *message;
    struct arena arena;
    arena_init(&arena);
    OK(rpc_recv(call, &message, &arena, &err));
    int status = (int)((Grpc__Health__V1__HealthCheckResponse *)message)->status;
    arena_clear(&arena);
    return status;
}

static void health_is_checked_and_watched(void **state)
{
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    struct error err = ERROR_INIT;
    ProtobufCMessage *response;
    struct arena arena;
    arena_init(&arena);
    OK(rpc_unary(w.to_local, "grpc.health.v1.Health", "Check", &request.base, &response, &arena, NULL, &err));
    assert_int_equal(((Grpc__Health__V1__HealthCheckResponse *)response)->status, 2);
    struct rpc_call *call = rpc_open(w.to_local, "grpc.health.v1.Health", "Watch", &request.base, NULL, &err);
    assert_non_null(call);
    assert_int_equal(next_health(call), 2);
    rpc_health_set(true);
    assert_int_equal(next_health(call), 1);
    rpc_health_set(false);
    assert_int_equal(next_health(call), 2);
    rpc_call_unref(call);
    request.service = "no.such.Service";
    assert_int_equal(rpc_unary(w.to_local, "grpc.health.v1.Health", "Check", &request.base, &response, &arena, NULL, &err), STATUS_NOT_FOUND);
    call = rpc_open(w.to_local, "grpc.health.v1.Health", "Watch", &request.base, NULL, &err);
    assert_int_equal(next_health(call), 3);
    rpc_call_unref(call);
    arena_clear(&arena);
}

/* ---- the end of a server ---- */

static void *get_until_refused(void *arg)
{
    struct rpc_channel *channel = arg;
    struct error err = ERROR_INIT;
    int64_t until = time_mono_ms() + WAIT_MS_MAX;
    while (get(channel, "x", NULL, NULL, &err) == STATUS_OK && time_mono_ms() < until)
        ;
    return NULL;
}

static void shutdown_with_calls_in_flight(void **state)
{
    struct error err = ERROR_INIT;
    char path[128];
    pthread_t threads[4];
    snprintf(path, sizeof(path), "%s/t", w.dir);
    struct rpc_server *server = rpc_server_listen_unix(path, -1, &err);
    assert_non_null(server);
    assert_null(rpc_server_listen_unix(path, -1, &err)); /* in use */
    assert_int_equal(err.code, STATUS_FAILED_PRECONDITION);
    struct rpc_channel *channel = rpc_channel_unix(path);
    OK(get(channel, "x", NULL, NULL, &err));
    int ended = atomic_load(&w.watches_ended);
    struct rpc_call *watch = open_watch(channel, "100000", false, NULL);
    struct rpc_call *echo = rpc_open(channel, "covey.v1.Operations", "Connect", NULL, NULL, &err);
    struct async async = {0};
    Covey__V1__GetProfileRequest request = COVEY__V1__GET_PROFILE_REQUEST__INIT;
    request.name = "wait";
    rpc_unary_async(channel, registry_method_by_name("covey.v1.Profiles", "GetProfile"), &request.base, NULL, on_async, &async);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, get_until_refused, channel), 0);
    usleep(50 * 1000);
    rpc_server_destroy(server, 50);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    WAIT_FOR(atomic_load(&async.done) == 1);
    assert_int_not_equal(async.status, STATUS_OK);
    assert_int_not_equal(rpc_status(watch, &err), STATUS_OK);
    assert_int_not_equal(rpc_status(echo, &err), STATUS_OK);
    assert_int_equal(atomic_load(&w.watches_ended), ended + 1);
    assert_int_equal(access(path, F_OK), -1);
    rpc_call_unref(watch);
    rpc_call_unref(echo);
    rpc_channel_unref(channel);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unary_answers),
        cmocka_unit_test(error_carries_text_and_facts),
        cmocka_unit_test(missing_handler_is_unimplemented),
        cmocka_unit_test(request_id_is_passed_and_checked),
        cmocka_unit_test(async_answers),
        cmocka_unit_test(deadline_ends_call_and_handler),
        cmocka_unit_test(oversize_is_refused_both_ways),
        cmocka_unit_test(unreachable_is_unavailable),
        cmocka_unit_test(server_stream_in_order_then_status),
        cmocka_unit_test(client_stream_is_counted),
        cmocka_unit_test(bidi_echoes),
        cmocka_unit_test(malformed_message_ends_stream),
        cmocka_unit_test(cancel_reaches_handler_and_hooks),
        cmocka_unit_test(slow_reader_holds_writer_back),
        cmocka_unit_test(callback_pauses_and_resumes),
        cmocka_unit_test(local_peer_is_admin),
        cmocka_unit_test(gateway_speaks_for_clients),
        cmocka_unit_test(health_is_checked_and_watched),
        cmocka_unit_test(shutdown_with_calls_in_flight),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
