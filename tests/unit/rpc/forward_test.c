/* Forwarding between two servers of one process: the local one passes on to the TLS one, as a member. */
#include "world.h"

static struct rpc_channel *as_member;

static int setup(void **state)
{
    if (world_setup(state) != 0)
        return -1;
    as_member = world_tls(&w.member_id);
    return 0;
}

static int teardown(void **state)
{
    rpc_channel_unref(as_member);
    return world_teardown(state);
}

static int reset(void **state)
{
    atomic_store(&w.route_to, NULL);
    atomic_store(&connect_to, NULL);
    atomic_store(&w.always_forward, false);
    atomic_store(&w.route_calls, 0);
    atomic_store(&w.not_leader_left, 0);
    atomic_store(&w.creates, 0);
    return 0;
}

static void unary_goes_with_its_caller(void **state)
{
    struct error err = ERROR_INIT;
    const char *const metadata[] = {"x-note", "kept", "covey-caller-protocol", "unix", "covey-caller-user", "alice", NULL};
    struct rpc_options options = {.metadata = metadata};
    char description[64];
    atomic_store(&w.route_to, as_member);
    OK(get(w.to_local, "x", &options, description, &err));
    assert_string_equal(description, "kept");
    assert_int_equal(w.seen.class, CALLER_LOCAL_ADMIN);
    assert_string_equal(w.seen.username, "alice");
    assert_int_equal(atomic_load(&w.route_calls), 2); /* here and there */
    assert_int_equal(get(w.to_local, "missing", NULL, NULL, &err), STATUS_NOT_FOUND);
    assert_string_equal(err.text, "Profile not found: \xc3\xa4 100%");
    assert_int_equal(err.retry_ms, 70);
    options = (struct rpc_options){.request_id = "5a7e2b1c-3d4e-4f60-8a9b-0c1d2e3f4a5b"};
    OK(create(w.to_local, &options, &err));
    assert_string_equal(w.seen_id, options.request_id);
}

static void restricted_client_stays_restricted(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_channel *client = world_tls(&w.client_id);
    atomic_store(&w.route_to, as_member);
    OK(get(client, "x", NULL, NULL, &err));
    assert_int_equal(w.seen.class, CALLER_CLIENT);
    assert_true(w.seen.restricted);
    assert_string_equal(w.seen.fingerprint, w.client_id.fingerprint);
    assert_string_equal(w.seen.protocol, "tls");
    assert_memory_equal(w.seen.address, "127.0.0.1:", 10);
    rpc_channel_unref(client);
}

static void cancel_and_deadline_travel(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_options options = {.timeout_ms = 100};
    int before = atomic_load(&w.cancelled_seen);
    atomic_store(&w.route_to, as_member);
    assert_int_equal(get(w.to_local, "wait", &options, NULL, &err), STATUS_DEADLINE_EXCEEDED);
    WAIT_FOR(atomic_load(&w.cancelled_seen) == before + 1);
}

static void loops_are_refused(void **state)
{
    struct error err = ERROR_INIT;
    atomic_store(&w.route_to, as_member);
    atomic_store(&w.always_forward, true);
    assert_int_equal(get(w.to_local, "x", NULL, NULL, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.text, "forwarded 3 times"));
    assert_int_equal(atomic_load(&w.route_calls), 4);
}

static void not_leader_is_asked_again(void **state)
{
    struct error err = ERROR_INIT;
    atomic_store(&w.not_leader_left, 3);
    OK(create(w.to_local, NULL, &err)); /* a handler of this member */
    assert_int_equal(atomic_load(&w.creates), 4);
    assert_int_equal(atomic_load(&w.route_calls), 4);
    assert_string_equal(w.first_id, w.seen_id); /* one request, one id */
    reset(NULL);
    atomic_store(&w.route_to, as_member); /* and of another */
    atomic_store(&w.not_leader_left, 3);
    OK(create(w.to_local, NULL, &err));
    assert_int_equal(atomic_load(&w.creates), 4);
    assert_string_equal(w.first_id, w.seen_id);
    reset(NULL);
    atomic_store(&w.not_leader_left, 1 << 20);
    struct rpc_options options = {.timeout_ms = 300};
    assert_int_equal(create(w.to_local, &options, &err), STATUS_UNAVAILABLE); /* in time for the caller to hear it */
    assert_non_null(strstr(err.text, "no available leader"));
}

static void without_leader_the_search_ends(void **state)
{
    struct error err = ERROR_INIT;
    atomic_store(&w.not_leader_left, 1 << 20);
    int64_t start = time_mono_ms();
    assert_int_equal(create(w.to_local, NULL, &err), STATUS_UNAVAILABLE);
    assert_non_null(strstr(err.text, "no available"));
    assert_non_null(strstr(err.text, "leader"));
    assert_in_range(time_mono_ms() - start, 9000, 11000);
}

static void *point_to_member(void *arg)
{
    usleep(300 * 1000);
    atomic_store(&w.route_to, as_member);
    return NULL;
}

static void broken_connection_is_tried_again(void **state)
{
    struct error err = ERROR_INIT;
    pthread_t thread;
    struct rpc_channel *dead = rpc_channel_tls("127.0.0.1:1", w.server_id.fingerprint, NULL, &w.member_id);
    atomic_store(&w.route_to, dead);
    assert_int_equal(pthread_create(&thread, NULL, point_to_member, NULL), 0);
    OK(create(w.to_local, NULL, &err));
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&w.creates), 1);
    assert_true(atomic_load(&w.route_calls) > 2);
    rpc_channel_unref(dead);
    reset(NULL);
    /* what a handler answers is not a broken connection */
    ProtobufCMessage *response;
    struct arena arena;
    arena_init(&arena);
    atomic_store(&w.route_to, as_member);
    assert_int_equal(rpc_unary(w.to_local, "covey.v1.Profiles", "ListProfiles", NULL, &response, &arena, NULL, &err), STATUS_UNAVAILABLE);
    assert_string_equal(err.text, "the answer of a handler");
    assert_int_equal(atomic_load(&w.route_calls), 2);
    arena_clear(&arena);
}

/* ---- streams ---- */

static void bidi_is_pumped(void **state)
{
    struct error err = ERROR_INIT;
    ProtobufCMessage *message;
    struct arena arena;
    atomic_store(&connect_to, as_member);
    struct rpc_call *call = rpc_open(w.to_local, "covey.v1.Operations", "Connect", NULL, NULL, &err);
    arena_init(&arena);
    for (int i = 0; i < 100; i++) {
        Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
        char id[16];
        snprintf(id, sizeof(id), "%d", i);
        frame.id = id;
        OK(rpc_send(call, &frame.base, &err));
        if (i % 10 < 5)
            continue; /* several on their way */
        for (int k = i % 10 == 5 ? 6 : 1; k > 0; k--) {
            OK(rpc_recv(call, &message, &arena, &err));
            snprintf(id, sizeof(id), "%d", i - k + 1);
            assert_string_equal(((Covey__V1__StreamFrame *)message)->id, id);
        }
    }
    rpc_half_close(call);
    assert_int_equal(rpc_recv(call, &message, &arena, &err), STATUS_ABORTED);
    assert_string_equal(err.text, "bye");
    rpc_call_unref(call);
    /* cancelled in the middle */
    int before = atomic_load(&w.cancelled_seen);
    call = rpc_open(w.to_local, "covey.v1.Operations", "Connect", NULL, NULL, &err);
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    OK(rpc_send(call, &frame.base, &err));
    OK(rpc_recv(call, &message, &arena, &err));
    rpc_cancel(call);
    rpc_call_unref(call);
    WAIT_FOR(atomic_load(&w.cancelled_seen) == before + 1);
    arena_clear(&arena);
}

static void server_stream_is_pumped_with_back_pressure(void **state)
{
    struct error err = ERROR_INIT;
    struct arena arena;
    ProtobufCMessage *message;
    atomic_store(&connect_to, as_member);
    atomic_store(&w.sent, 0);
    struct rpc_call *call = open_watch(w.to_local, "60000", true, NULL); /* 60 MB, three buffers on the way */
    WAIT_FOR(atomic_load(&w.sent) > RPC_STREAM_QUEUE_BYTES_MAX / 1100);
    long long stuck;
    do {
        stuck = atomic_load(&w.sent);
        usleep(100 * 1000);
    } while (atomic_load(&w.sent) != stuck);
    assert_true(stuck < 40000);
    arena_init(&arena);
    for (int i = 1; i <= 60000; i++) {
        OK(rpc_recv(call, &message, &arena, &err));
        assert_int_equal(((Covey__V1__Event *)message)->number, i);
        arena_clear(&arena);
    }
    assert_int_equal(rpc_recv(call, &message, &arena, &err), STATUS_NOT_FOUND);
    assert_string_equal(err.text, "after 60000 events");
    rpc_call_unref(call);
    arena_clear(&arena);
}

static void client_stream_is_pumped(void **state)
{
    struct error err = ERROR_INIT;
    uint8_t data[1000] = {1};
    ProtobufCMessage *message;
    struct arena arena;
    size_t expected = 0;
    atomic_store(&connect_to, as_member);
    struct rpc_call *call = rpc_open(w.to_local, "covey.v1.Images", "UploadImage", NULL, NULL, &err);
    for (int i = 0; i < 200; i++) {
        Covey__V1__UploadImageRequest request = COVEY__V1__UPLOAD_IMAGE_REQUEST__INIT;
        request.data.data = data;
        request.data.len = sizeof(data);
        OK(rpc_send(call, &request.base, &err));
        expected += protobuf_c_message_get_packed_size(&request.base);
    }
    rpc_half_close(call);
    arena_init(&arena);
    OK(rpc_recv(call, &message, &arena, &err));
    assert_int_equal(atoi(((Covey__V1__Operation *)message)->id), expected);
    arena_clear(&arena);
    OK(rpc_status(call, &err));
    rpc_call_unref(call);
}

static void stream_to_a_dead_member_fails(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_channel *dead = rpc_channel_tls("127.0.0.1:1", w.server_id.fingerprint, NULL, &w.member_id);
    atomic_store(&connect_to, dead);
    struct rpc_call *call = rpc_open(w.to_local, "covey.v1.Operations", "Connect", NULL, NULL, &err);
    assert_int_equal(rpc_status(call, &err), STATUS_UNAVAILABLE);
    rpc_call_unref(call);
    rpc_channel_unref(dead);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(unary_goes_with_its_caller, reset),
        cmocka_unit_test_setup(restricted_client_stays_restricted, reset),
        cmocka_unit_test_setup(cancel_and_deadline_travel, reset),
        cmocka_unit_test_setup(loops_are_refused, reset),
        cmocka_unit_test_setup(not_leader_is_asked_again, reset),
        cmocka_unit_test_setup(without_leader_the_search_ends, reset),
        cmocka_unit_test_setup(broken_connection_is_tried_again, reset),
        cmocka_unit_test_setup(bidi_is_pumped, reset),
        cmocka_unit_test_setup(server_stream_is_pumped_with_back_pressure, reset),
        cmocka_unit_test_setup(client_stream_is_pumped, reset),
        cmocka_unit_test_setup(stream_to_a_dead_member_fails, reset),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
