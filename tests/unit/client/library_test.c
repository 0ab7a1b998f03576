/* The public interface of libcovey against the fake daemon. */
#include "fake_daemon.h"

static struct rpc_server *server;
static struct covey_client *client;

static void calls(void **state)
{
    struct covey_error err;
    char *reply;
    fake_set("GetProfile", 0, "{\"name\":\"default\",\"config\":{\"a\":\"1\"}}");
    assert_int_equal(covey_call(client, "Profiles/GetProfile", "{\"name\":\"default\"}", &reply, NULL, &err), 0);
    assert_non_null(strstr(reply, "\"name\":\"default\""));
    covey_free(reply);
    fake_set("GetProfile", STATUS_NOT_FOUND, "Profile not found");
    assert_int_equal(covey_call(client, "covey.v1.Profiles/GetProfile", "{}", &reply, NULL, &err), COVEY_NOT_FOUND);
    assert_string_equal(err.text, "Profile not found");
    assert_null(reply);
    assert_int_equal(covey_call(client, "Profiles/Nothing", "{}", &reply, NULL, &err), COVEY_NOT_FOUND);
    assert_int_equal(covey_call(client, "Profiles/GetProfile", "{\"name\":3}", &reply, NULL, &err), COVEY_INVALID_ARGUMENT);
    assert_non_null(strstr(err.text, "name"));
    assert_int_equal(covey_call(client, "Profiles/GetProfile", "nonsense", &reply, NULL, &err), COVEY_INVALID_ARGUMENT);
    assert_int_equal(covey_call(client, "Events/Watch", "{}", &reply, NULL, &err), COVEY_INVALID_ARGUMENT);
    assert_int_equal(covey_call(client, "Profiles/UpdateProfile", "{\"update_mask\":\"confg\"}", &reply, NULL, &err), COVEY_INVALID_ARGUMENT);
    assert_int_equal(covey_call(client, "Profiles/GetProfile", "{\"update_mask\":\"name\"}", &reply, NULL, &err), COVEY_INVALID_ARGUMENT);
}

static void messages(void **state)
{
    struct covey_error err;
    ProtobufCMessage *reply;
    Covey__V1__GetOperationRequest request = COVEY__V1__GET_OPERATION_REQUEST__INIT;
    request.id = "op1";
    fake_set("GetOperation", 0, "{\"id\":\"op1\",\"status_code\":103}");
    assert_int_equal(covey_call_message(client, "Operations/GetOperation", &request.base, &reply, NULL, &err), 0);
    assert_int_equal(((Covey__V1__Operation *)reply)->status_code, 103);
    covey_message_free(reply);
    assert_int_equal(covey_call_message(client, "Profiles/GetProfile", &request.base, &reply, NULL, &err), COVEY_INVALID_ARGUMENT);
}

static bool count(const char *operation, void *ud)
{
    ++*(int *)ud;
    return true;
}

static bool stop_waiting(const char *operation, void *ud) { return false; }

static void waits(void **state)
{
    struct covey_error err;
    char *operation;
    int seen = 0;
    fake_set("WaitOperation", 0, "{\"id\":\"op1\",\"status_code\":400,\"err\":\"broken\"}");
    fake_wait_times(2);
    assert_int_equal(covey_wait(client, "op1", 0, count, &seen, &operation, &err), COVEY_FAILED_PRECONDITION);
    assert_string_equal(err.text, "broken");
    assert_int_equal(seen, 3);
    assert_non_null(strstr(operation, "broken"));
    covey_free(operation);
    fake_wait_times(1000000);
    assert_int_equal(covey_wait(client, "op1", 20, NULL, NULL, NULL, &err), COVEY_DEADLINE_EXCEEDED);
    assert_int_equal(covey_wait(client, "op1", 0, stop_waiting, NULL, NULL, &err), COVEY_CANCELLED);
    fake_wait_times(0);
}

struct collected {
    pthread_mutex_t lock;
    struct buf text[3];
};

static bool collect(int fd, const void *data, size_t len, void *ud)
{
    struct collected *collected = ud;
    pthread_mutex_lock(&collected->lock);
    buf_add(&collected->text[fd], data, len);
    pthread_mutex_unlock(&collected->lock);
    return true;
}

static void runs(void **state)
{
    struct covey_error err;
    struct collected collected = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const char *const command[] = {"cat", NULL}, *const environment[] = {"A=b", NULL};
    struct covey_exec exec = {.instance = "c1", .command = command, .environment = environment, .input = "hi", .input_len = 2, .output = collect, .ud = &collected};
    int code = -1;
    assert_int_equal(covey_exec(client, &exec, &code, &err), 0);
    assert_int_equal(code, 7);
    assert_string_equal(collected.text[1].data, "out:hi");
    assert_string_equal(collected.text[2].data, "err\n");
    buf_free(&collected.text[1]);
    buf_free(&collected.text[2]);
    struct covey_stream *stream;
    assert_int_equal(covey_attach(client, "exec1", "wrong", &stream, &err), COVEY_PERMISSION_DENIED);
    assert_null(stream);
    assert_string_equal(err.text, "wrong secret");
}

static bool one_event(const char *event, uint64_t number, void *ud)
{
    *(bool *)ud = strstr(event, "instance-started") != NULL;
    return false;
}

static void events_and_streams(void **state)
{
    struct covey_error err;
    struct covey_stream *stream;
    bool seen = false;
    char *message;
    assert_int_equal(covey_watch(client, NULL, NULL, 0, one_event, &seen, &err), 0);
    assert_true(seen);
    assert_int_equal(covey_stream_open(client, "Events/Watch", "{}", &stream, &err), 0);
    assert_int_equal(covey_stream_receive(stream, &message, &err), 0);
    covey_free(message);
    assert_int_not_equal(covey_stream_receive(stream, &message, &err), 0);
    assert_null(message);
    assert_int_equal(covey_stream_status(stream, &err), COVEY_OUT_OF_RANGE);
    assert_string_equal(err.text, "events were lost");
    covey_stream_free(stream);
}

static void connections(void **state)
{
    struct covey_error err;
    struct covey_client *none;
    assert_int_equal(covey_connect_local("/nonexistent", &none, &err), COVEY_UNAVAILABLE);
    assert_null(none);
    struct covey_remote remote = {.address = "127.0.0.1:1", .fingerprint = ""};
    assert_int_equal(covey_connect_remote(&remote, &none, &err), COVEY_INVALID_ARGUMENT);
    /* another server behind the address than the one pinned */
    struct identity identity;
    struct error e = ERROR_INIT;
    assert_int_equal(identity_create("x", &identity, &e), 0);
    struct rpc_server *tls = rpc_server_listen_tls("127.0.0.1:0", &identity, &e);
    char *address = xasprintf("127.0.0.1:%d", rpc_server_port(tls)), *pem, fingerprint[65], *reply;
    fake_set("GetServer", 0, "{\"auth\":\"untrusted\"}");
    assert_int_equal(covey_server_certificate(address, 5000, &pem, fingerprint, &err), 0);
    assert_string_equal(fingerprint, identity.fingerprint);
    covey_free(pem);
    remote.address = address;
    remote.fingerprint = fingerprint;
    assert_int_equal(covey_connect_remote(&remote, &none, &err), 0);
    assert_int_equal(covey_call(none, "Server/GetServer", NULL, &reply, NULL, &err), 0);
    covey_free(reply);
    covey_close(none);
    memset(fingerprint, 'a', 64);
    assert_int_equal(covey_connect_remote(&remote, &none, &err), 0);
    assert_int_equal(covey_call(none, "Server/GetServer", NULL, &reply, NULL, &err), COVEY_UNAVAILABLE);
    covey_close(none);
    rpc_server_destroy(tls, 0);
    free(address);
    identity_free(&identity);
}

static int start(void **state)
{
    struct covey_error err;
    server = fake_start();
    return covey_connect_local(fake.dir, &client, &err);
}

static int stop(void **state)
{
    struct error err = ERROR_INIT;
    covey_close(client);
    rpc_server_destroy(server, 0);
    covey_end();
    return dir_remove_all(fake.dir, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(calls), cmocka_unit_test(messages), cmocka_unit_test(waits), cmocka_unit_test(runs),
                                       cmocka_unit_test(events_and_streams), cmocka_unit_test(connections)};
    return cmocka_run_group_tests(tests, start, stop);
}
