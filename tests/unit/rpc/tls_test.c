/* TLS: who is who by certificate, pinning, rotation, claims that must not be believed, reflection. */
#include "world.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include "covey/internal/v1/admin.pb-c.h"
#include "covey/internal/v1/membership.pb-c.h"
#include "grpc/reflection.pb-c.h"
#include "google/protobuf/descriptor.pb-c.h"

static int who_leads(struct rpc_channel *channel, const struct rpc_options *options, struct error *err)
{
    ProtobufCMessage *response;
    struct arena arena;
    arena_init(&arena);
    int rc = rpc_unary(channel, "covey.internal.v1.Membership", "WhoLeads", NULL, &response, &arena, options, err);
    arena_clear(&arena);
    return rc;
}

static void trusted_certificate_is_its_class(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_channel *channel = world_tls(&w.client_id);
    OK(get(channel, "x", NULL, NULL, &err));
    assert_int_equal(w.seen.class, CALLER_CLIENT);
    assert_true(w.seen.restricted);
    assert_string_equal(w.seen.projects[1], "c%d");
    assert_string_equal(w.seen.fingerprint, w.client_id.fingerprint);
    assert_string_equal(w.seen.username, w.client_id.fingerprint);
    assert_string_equal(w.seen.protocol, "tls");
    assert_memory_equal(w.seen.address, "127.0.0.1:", 10);
    char fingerprint[FINGERPRINT_SIZE];
    OK(cert_fingerprint(w.seen_cert, fingerprint, &err));
    assert_string_equal(fingerprint, w.client_id.fingerprint);
    char *pem = rpc_channel_server_cert(channel);
    OK(cert_fingerprint(pem, fingerprint, &err));
    assert_string_equal(fingerprint, w.server_id.fingerprint);
    free(pem);
    rpc_channel_unref(channel);

    channel = world_tls(&w.member_id);
    OK(get(channel, "x", NULL, NULL, &err));
    assert_int_equal(w.seen.class, CALLER_MEMBER);
    assert_string_equal(w.seen.protocol, "cluster");
    rpc_channel_unref(channel);
}

static void untrusted_and_missing_certificates_are_nobody(void **state)
{
    struct error err = ERROR_INIT;
    const struct identity *identities[] = {&w.stranger_id, NULL};
    for (int i = 0; i < 2; i++) {
        struct rpc_channel *channel = world_tls(identities[i]);
        assert_int_equal(get(channel, "x", NULL, NULL, &err), STATUS_PERMISSION_DENIED);
        assert_string_equal(err.text, "not authorized");
        ProtobufCMessage *response;
        struct arena arena;
        arena_init(&arena); /* open to anyone */
        OK(rpc_unary(channel, "grpc.health.v1.Health", "Check", NULL, &response, &arena, NULL, &err));
        arena_clear(&arena);
        rpc_channel_unref(channel);
    }
}

static void claims_of_clients_are_not_heard(void **state)
{
    struct error err = ERROR_INIT;
    const char *const claims[] = {"covey-caller-class", "local", "covey-caller-protocol", "unix", "covey-caller-user", "root", "covey-forwarded", "2", NULL};
    struct rpc_options options = {.metadata = claims};
    struct rpc_channel *channel = world_tls(&w.client_id);
    OK(get(channel, "x", &options, NULL, &err));
    assert_int_equal(w.seen.class, CALLER_CLIENT);
    assert_string_equal(w.seen.username, w.client_id.fingerprint);
    rpc_channel_unref(channel);
    channel = world_tls(NULL);
    assert_int_equal(get(channel, "x", &options, NULL, &err), STATUS_PERMISSION_DENIED);
    rpc_channel_unref(channel);
    channel = world_tls(&w.member_id);
    OK(get(channel, "x", &options, NULL, &err)); /* a member may */
    assert_int_equal(w.seen.class, CALLER_LOCAL_ADMIN);
    assert_string_equal(w.seen.username, "root");
    rpc_channel_unref(channel);
}

/* The column of the method table, by caller: STATUS_UNIMPLEMENTED means that the call got past it. */
static void access_column(void **state)
{
    struct error err = ERROR_INIT;
    struct rpc_channel *client = world_tls(&w.client_id), *member = world_tls(&w.member_id), *nobody = world_tls(NULL);
    const char *const gateway[] = {"covey-caller-protocol", "unix", NULL};
    struct rpc_options as_gateway = {.metadata = gateway};

    assert_int_equal(who_leads(member, NULL, &err), STATUS_UNIMPLEMENTED);
    assert_int_equal(who_leads(client, NULL, &err), STATUS_PERMISSION_DENIED);
    assert_int_equal(who_leads(nobody, NULL, &err), STATUS_PERMISSION_DENIED);
    assert_int_equal(who_leads(w.to_local, NULL, &err), STATUS_UNIMPLEMENTED); /* the daemon itself */
    assert_int_equal(who_leads(w.to_local, &as_gateway, &err), STATUS_PERMISSION_DENIED);

    ProtobufCMessage *response;
    struct arena arena;
    arena_init(&arena); /* ACCESS_ADMIN; the client is restricted */
    assert_int_equal(rpc_unary(client, "covey.internal.v1.Admin", "Ready", NULL, &response, &arena, NULL, &err), STATUS_PERMISSION_DENIED);
    assert_int_equal(rpc_unary(member, "covey.internal.v1.Admin", "Ready", NULL, &response, &arena, NULL, &err), STATUS_UNIMPLEMENTED);
    assert_int_equal(rpc_unary(w.to_local, "covey.internal.v1.Admin", "Ready", NULL, &response, &arena, NULL, &err), STATUS_UNIMPLEMENTED);
    arena_clear(&arena);
    rpc_channel_unref(client);
    rpc_channel_unref(member);
    rpc_channel_unref(nobody);
}

static bool accepts(void *ud, const char *fingerprint)
{
    return strcmp(atomic_load((const char *_Atomic *)ud), fingerprint) == 0;
}

/* A peer's certificate is asked for at every handshake; errors of its connection name it. */
static void peer_is_asked_for_and_named(void **state)
{
    struct error err = ERROR_INIT;
    char address[64];
    static const char *_Atomic good;
    atomic_store(&good, w.second_id.fingerprint);
    snprintf(address, sizeof(address), "127.0.0.1:%d", rpc_server_port(w.tls));
    struct rpc_channel *channel = rpc_channel_peer(address, "cluster member node2", accepts, (void *)&good, &w.member_id);
    assert_int_equal(get(channel, "x", NULL, NULL, &err), STATUS_UNAVAILABLE);
    char *text = xasprintf("failed to connect to cluster member node2 at %s: the server's certificate has fingerprint %s, not the pinned one", address,
        w.server_id.fingerprint);
    assert_string_equal(err.text, text);
    free(text);
    atomic_store(&good, w.server_id.fingerprint);
    WAIT_FOR(get(channel, "x", NULL, NULL, &err) == STATUS_OK); /* the same channel */
    rpc_channel_unref(channel);
    channel = rpc_channel_peer("127.0.0.1:1", "cluster member node3", accepts, (void *)&good, &w.member_id);
    assert_int_equal(get(channel, "x", NULL, NULL, &err), STATUS_UNAVAILABLE);
    assert_string_equal(err.text, "failed to connect to cluster member node3 at 127.0.0.1:1: Connection refused");
    rpc_channel_unref(channel);
}

static void wrong_pin_is_refused(void **state)
{
    struct error err = ERROR_INIT;
    char address[64];
    snprintf(address, sizeof(address), "127.0.0.1:%d", rpc_server_port(w.tls));
    struct rpc_channel *channel = rpc_channel_tls(address, w.second_id.fingerprint, NULL, &w.member_id);
    assert_int_equal(get(channel, "x", NULL, NULL, &err), STATUS_UNAVAILABLE);
    char *pem = rpc_channel_server_cert(channel);
    char fingerprint[FINGERPRINT_SIZE];
    OK(cert_fingerprint(pem, fingerprint, &err)); /* what it saw can be looked at */
    assert_string_equal(fingerprint, w.server_id.fingerprint);
    free(pem);
    rpc_channel_unref(channel);
    channel = rpc_channel_tls(address, w.second_id.fingerprint, w.server_id.fingerprint, &w.member_id);
    OK(get(channel, "x", NULL, NULL, &err));
    rpc_channel_unref(channel);
    channel = rpc_channel_tls(address, "", NULL, NULL); /* to learn the fingerprint */
    assert_null(rpc_channel_server_cert(channel));
    assert_int_equal(get(channel, "x", NULL, NULL, &err), STATUS_PERMISSION_DENIED);
    pem = rpc_channel_server_cert(channel);
    assert_non_null(pem);
    free(pem);
    rpc_channel_unref(channel);
}

static void identity_rotates_for_new_connections(void **state)
{
    struct error err = ERROR_INIT;
    char address[64];
    struct rpc_server *server = rpc_server_listen_tls("127.0.0.1:0", &w.server_id, &err);
    assert_non_null(server);
    snprintf(address, sizeof(address), "127.0.0.1:%d", rpc_server_port(server));
    assert_null(rpc_server_listen_tls(address, &w.server_id, &err)); /* in use */
    assert_int_equal(err.code, STATUS_UNAVAILABLE);
    struct rpc_channel *old = rpc_channel_tls(address, w.server_id.fingerprint, NULL, &w.member_id);
    OK(get(old, "x", NULL, NULL, &err));
    rpc_server_set_identity(server, &w.second_id);
    OK(get(old, "x", NULL, NULL, &err));
    struct rpc_channel *fresh = rpc_channel_tls(address, w.second_id.fingerprint, NULL, &w.member_id);
    OK(get(fresh, "x", NULL, NULL, &err));
    struct rpc_channel *late = rpc_channel_tls(address, w.server_id.fingerprint, NULL, &w.member_id);
    assert_int_equal(get(late, "x", NULL, NULL, &err), STATUS_UNAVAILABLE);
    rpc_channel_unref(old);
    rpc_channel_unref(fresh);
    rpc_channel_unref(late);
    rpc_server_destroy(server, 0);
}

static void reflection_answers(void **state)
{
    typedef Grpc__Reflection__V1alpha__ServerReflectionRequest request_t;
    typedef Grpc__Reflection__V1alpha__ServerReflectionResponse response_t;
    struct error err = ERROR_INIT;
    ProtobufCMessage *message;
    struct arena arena;
    struct rpc_channel *channel = world_tls(NULL);
    struct rpc_call *call = rpc_open(channel, "grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", NULL, NULL, &err);
    request_t request = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__INIT;
    arena_init(&arena);
    request.message_request_case = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES;
    request.list_services = "";
    OK(rpc_send(call, &request.base, &err));
    OK(rpc_recv(call, &message, &arena, &err));
    response_t *response = (response_t *)message;
    bool found = false;
    for (size_t i = 0; i < response->list_services_response->n_service; i++)
        found = found || strcmp(response->list_services_response->service[i]->name, "covey.v1.Profiles") == 0;
    assert_true(found);

    request.message_request_case = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL;
    request.file_containing_symbol = "covey.v1.Profiles";
    OK(rpc_send(call, &request.base, &err));
    OK(rpc_recv(call, &message, &arena, &err));
    response = (response_t *)message;
    assert_true(response->file_descriptor_response->n_file_descriptor_proto > 1);
    ProtobufCBinaryData *file = &response->file_descriptor_response->file_descriptor_proto[0];
    Google__Protobuf__FileDescriptorProto *parsed = google__protobuf__file_descriptor_proto__unpack(&arena.allocator, file->len, file->data);
    assert_non_null(parsed);
    assert_string_equal(parsed->name, "covey/v1/profile.proto");

    request.file_containing_symbol = "no.such.Thing";
    OK(rpc_send(call, &request.base, &err));
    OK(rpc_recv(call, &message, &arena, &err));
    assert_int_equal(((response_t *)message)->error_response->error_code, STATUS_NOT_FOUND);
    rpc_half_close(call);
    assert_int_equal(rpc_recv(call, &message, &arena, &err), STATUS_OUT_OF_RANGE);
    arena_clear(&arena);
    rpc_call_unref(call);
    rpc_channel_unref(channel);
}

struct waiting {
    struct rpc_channel *channel;
    int rc;
};

static void *get_in_thread(void *arg)
{
    struct waiting *waiting = arg;
    struct error err = ERROR_INIT;
    waiting->rc = get(waiting->channel, "x", NULL, NULL, &err);
    return NULL;
}

/* A server that is given its connections knows its peers like one that listens. */
static void connections_are_handed_over(void **state)
{
    struct error err = ERROR_INIT;
    char address[64];
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(in);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof(in)), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &size), 0);
    snprintf(address, sizeof(address), "127.0.0.1:%d", ntohs(in.sin_port));
    struct rpc_server *server = rpc_server_tls(&w.server_id, &err);
    assert_non_null(server);
    for (int i = 0; i < 2; i++) { /* a second one after the first was closed */
        struct rpc_channel *channel = rpc_channel_tls(address, w.server_id.fingerprint, NULL, &w.client_id);
        struct waiting waiting = {.channel = channel};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, get_in_thread, &waiting), 0);
        int taken = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        assert_true(taken >= 0);
        rpc_server_take(server, taken);
        pthread_join(thread, NULL);
        assert_int_equal(waiting.rc, STATUS_OK);
        assert_int_equal(w.seen.class, CALLER_CLIENT);
        assert_memory_equal(w.seen.address, "127.0.0.1:", 10);
        rpc_channel_unref(channel);
    }
    close(fd);
    rpc_server_destroy(server, 1000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trusted_certificate_is_its_class),
        cmocka_unit_test(untrusted_and_missing_certificates_are_nobody),
        cmocka_unit_test(claims_of_clients_are_not_heard),
        cmocka_unit_test(access_column),
        cmocka_unit_test(wrong_pin_is_refused),
        cmocka_unit_test(peer_is_asked_for_and_named),
        cmocka_unit_test(identity_rotates_for_new_connections),
        cmocka_unit_test(reflection_answers),
        cmocka_unit_test(connections_are_handed_over),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
