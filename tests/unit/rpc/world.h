/* What the tests of the gRPC runtime share: a policy whose answers are variables, handlers that do as the request says, two kinds of server.
 * Included once by each test program. */
#ifndef COVEY_TESTS_RPC_WORLD_H
#define COVEY_TESTS_RPC_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "covey/v1/event.pb-c.h"
#include "covey/v1/image.pb-c.h"
#include "covey/v1/operation.pb-c.h"
#include "covey/v1/profile.pb-c.h"
#include "grpc/health.pb-c.h"
#include "proto/rpc/rpc.h"

#define OK(expr) do { if ((expr) != STATUS_OK) fail_msg("%s: %s: %s", #expr, status_name(err.code), err.text); } while (0)
enum { WAIT_MS_MAX = 10000 };
/* Waits for a condition that other threads make true. */
#define WAIT_FOR(cond) do { \
        int64_t wait_until_ = time_mono_ms() + WAIT_MS_MAX; \
        while (!(cond)) { \
            if (time_mono_ms() > wait_until_) \
                fail_msg("timeout waiting for %s", #cond); \
            usleep(1000); \
        } \
    } while (0)

static struct {
    char dir[64], socket[128];
    struct identity server_id, second_id, client_id, member_id, stranger_id;
    struct rpc_server *local, *tls;
    struct rpc_channel *to_local;
    /* what the policy answers */
    _Atomic(struct rpc_channel *) route_to; /* for calls that were not forwarded yet */
    atomic_bool route_on, always_forward;
    atomic_int route_calls, not_leader_left;
    struct caller seen; /* of the last Profiles call; read after the call has ended */
    char seen_id[37], seen_cert[2048];
    atomic_int seen_count, creates, cancelled_seen, watches_ended;
    atomic_llong sent; /* messages that Watch could send */
    char first_id[37];
    struct error err;
} w;

static void world_classify(void *ud, struct caller *caller)
{
    static char *projects[] = {"a,b", "c%d", NULL};
    if (strcmp(caller->fingerprint, w.member_id.fingerprint) == 0) {
        caller->class = CALLER_MEMBER;
    } else if (strcmp(caller->fingerprint, w.client_id.fingerprint) == 0) {
        caller->class = CALLER_CLIENT;
        caller->restricted = true;
        caller->projects = projects;
    }
}

static int world_route(void *ud, struct rpc_call *call, const ProtobufCMessage *request, unsigned attempt, const struct error *last,
                       struct rpc_channel **channel, struct error *err)
{
    atomic_fetch_add(&w.route_calls, 1);
    struct rpc_channel *to = atomic_load(&w.route_to);
    bool fresh = rpc_metadata(call, "covey-forwarded") == NULL;
    if (to != NULL && (fresh || atomic_load(&w.always_forward)))
        *channel = rpc_channel_ref(to);
    return STATUS_OK;
}

static void world_see(struct rpc_call *call)
{
    atomic_load(&w.seen_count);
    w.seen = *rpc_caller(call);
    snprintf(w.seen_cert, sizeof(w.seen_cert), "%s", w.seen.cert_pem != NULL ? w.seen.cert_pem : "");
    snprintf(w.seen_id, sizeof(w.seen_id), "%s", rpc_request_id(call));
    atomic_fetch_add(&w.seen_count, 1); /* publishes: the answer's way over the socket orders nothing for race detectors */
}

static int get_profile(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetProfileRequest *req = (const Covey__V1__GetProfileRequest *)request;
    world_see(call);
    if (strcmp(req->name, "missing") == 0) {
        error_set(err, STATUS_NOT_FOUND, "Profile not found: \xc3\xa4 100%%");
        err->retry_ms = 70;
        err->leader = 7;
        return STATUS_NOT_FOUND;
    }
    if (strcmp(req->name, "not-leader") == 0 && atomic_fetch_sub(&w.not_leader_left, 1) > 0)
        return error_not_leader(err, 3);
    if (strcmp(req->name, "wait") == 0) {
        WAIT_FOR(rpc_call_cancelled(call));
        atomic_fetch_add(&w.cancelled_seen, 1);
        return error_set(err, STATUS_CANCELLED, "seen");
    }
    Covey__V1__Profile *profile = arena_alloc(rpc_arena(call), sizeof(*profile));
    covey__v1__profile__init(profile);
    profile->name = req->name;
    profile->description = (char *)(rpc_metadata(call, "x-note") ?: "");
    if (strcmp(req->name, "huge") == 0) {
        profile->description = arena_alloc(rpc_arena(call), CODEC_MESSAGE_MAX + 100);
        memset(profile->description, 'x', CODEC_MESSAGE_MAX + 99);
    }
    *response = &profile->base;
    return STATUS_OK;
}

static int create_profile(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    world_see(call);
    if (atomic_fetch_add(&w.creates, 1) == 0)
        snprintf(w.first_id, sizeof(w.first_id), "%s", rpc_request_id(call));
    if (atomic_fetch_sub(&w.not_leader_left, 1) > 0)
        return error_not_leader(err, 0);
    return STATUS_OK;
}

static int list_profiles(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    return error_set(err, STATUS_UNAVAILABLE, "the answer of a handler");
}

static _Atomic(struct rpc_channel *) connect_to; /* the streaming handlers pass their call on to it */

static bool pass_on(struct rpc_call *call, struct error *err, int *rc)
{
    struct rpc_channel *to = atomic_load(&connect_to);
    if (to == NULL || rpc_metadata(call, "covey-forwarded") != NULL)
        return false;
    *rc = rpc_forward(call, to, err);
    return true;
}

/* Sends as many events as `project` says, each with a text of 1000 bytes; then ends with NOT_FOUND when `type` is given. */
static int watch_events(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__WatchRequest *req = (const Covey__V1__WatchRequest *)request;
    char text[1001];
    int rc = STATUS_OK;
    if (pass_on(call, err, &rc))
        return rc;
    memset(text, 'e', 1000);
    text[1000] = '\0';
    for (int i = 1; i <= atoi(req->project) && rc == STATUS_OK; i++) {
        Covey__V1__Event event = COVEY__V1__EVENT__INIT;
        event.number = (uint64_t)i;
        event.location = text;
        rc = rpc_send(call, &event.base, err);
        if (rc == STATUS_OK)
            atomic_fetch_add(&w.sent, 1);
    }
    atomic_fetch_add(&w.watches_ended, 1);
    if (rc == STATUS_OK && req->type[0] != 0)
        return error_set(err, STATUS_NOT_FOUND, "after %s events", req->project);
    return rc;
}

/* Counts the bytes; answers an operation whose id is their number. */
static int upload_image(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    size_t bytes = 0;
    int passed;
    if (pass_on(call, err, &passed))
        return passed;
    for (;;) {
        ProtobufCMessage *message;
        struct arena arena;
        arena_init(&arena);
        int rc = rpc_recv(call, &message, &arena, err);
        if (rc == STATUS_OK)
            bytes += protobuf_c_message_get_packed_size(message);
        arena_clear(&arena);
        if (rc == STATUS_OUT_OF_RANGE)
            break;
        if (rc != STATUS_OK)
            return rc;
    }
    Covey__V1__Operation *operation = arena_alloc(rpc_arena(call), sizeof(*operation));
    covey__v1__operation__init(operation);
    operation->id = arena_printf(rpc_arena(call), "%zu", bytes);
    *response = &operation->base;
    return STATUS_OK;
}

static bool echo_frame(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct error err = ERROR_INIT;
    if (message == NULL) {
        if (rpc_call_cancelled(call))
            atomic_fetch_add(&w.cancelled_seen, 1);
        error_set(&err, STATUS_ABORTED, "bye");
        rpc_finish(call, NULL, err.code, &err);
        rpc_call_unref(call);
        return true;
    }
    if (rpc_try_send(call, message, &err) != STATUS_OK)
        rpc_finish(call, NULL, err.code, &err);
    return true;
}

static int connect_operation(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    int rc;
    if (pass_on(call, err, &rc))
        return rc;
    rpc_on_message(call, echo_frame, NULL);
    return RPC_LATER;
}

static struct rpc_policy world_policy = {.classify = world_classify, .route = world_route};

static int world_setup(void **state)
{
    static const struct rpc_binding profiles[] = {
        {"GetProfile", get_profile}, {"CreateProfile", create_profile}, {"ListProfiles", list_profiles}};
    static const struct rpc_binding events[] = {{"Watch", watch_events}};
    static const struct rpc_binding images[] = {{"UploadImage", upload_image}};
    static const struct rpc_binding operations[] = {{"Connect", connect_operation}};
    struct error err = ERROR_INIT;

    log_init("test", LOG_LEVEL_WARN);
    registry_init();
    rpc_init();
    rpc_set_policy(&world_policy);
    rpc_bind("covey.v1.Profiles", profiles, 3, NULL);
    rpc_bind("covey.v1.Events", events, 1, NULL);
    rpc_bind("covey.v1.Images", images, 1, NULL);
    rpc_bind("covey.v1.Operations", operations, 1, NULL);
    rpc_bind("covey.internal.v1.Membership", NULL, 0, NULL);
    rpc_bind("covey.internal.v1.Admin", NULL, 0, NULL);
    strcpy(w.dir, "/tmp/covey-rpc-XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    snprintf(w.socket, sizeof(w.socket), "%s/s", w.dir);
    OK(identity_create("server", &w.server_id, &err));
    OK(identity_create("second", &w.second_id, &err));
    OK(identity_create("client", &w.client_id, &err));
    OK(identity_create("member", &w.member_id, &err));
    OK(identity_create("stranger", &w.stranger_id, &err));
    w.local = rpc_server_listen_unix(w.socket, -1, &err);
    if (w.local == NULL)
        fail_msg("%s", err.text);
    w.tls = rpc_server_listen_tls("127.0.0.1:0", &w.server_id, &err);
    if (w.tls == NULL)
        fail_msg("%s", err.text);
    w.to_local = rpc_channel_unix(w.socket);
    return 0;
}

static __attribute__((unused)) struct rpc_channel *world_tls(const struct identity *identity)
{
    char address[64];
    snprintf(address, sizeof(address), "127.0.0.1:%d", rpc_server_port(w.tls));
    return rpc_channel_tls(address, w.server_id.fingerprint, NULL, identity);
}

static int world_teardown(void **state)
{
    rpc_channel_unref(w.to_local);
    rpc_server_destroy(w.local, 1000);
    rpc_server_destroy(w.tls, 1000);
    rpc_shutdown();
    identity_free(&w.server_id);
    identity_free(&w.second_id);
    identity_free(&w.client_id);
    identity_free(&w.member_id);
    identity_free(&w.stranger_id);
    rmdir(w.dir);
    return 0;
}

static __attribute__((unused)) int get(struct rpc_channel *channel, const char *name, const struct rpc_options *options, char *description, struct error *err)
{
    Covey__V1__GetProfileRequest request = COVEY__V1__GET_PROFILE_REQUEST__INIT;
    ProtobufCMessage *response;
    struct arena arena;
    arena_init(&arena);
    request.name = (char *)name;
    atomic_fetch_add(&w.seen_count, 1);
    int rc = rpc_unary(channel, "covey.v1.Profiles", "GetProfile", &request.base, &response, &arena, options, err);
    atomic_load(&w.seen_count);
    if (rc == STATUS_OK) {
        assert_string_equal(((Covey__V1__Profile *)response)->name, name);
        if (description != NULL)
            strcpy(description, ((Covey__V1__Profile *)response)->description);
    } else {
        assert_null(response);
    }
    arena_clear(&arena);
    return rc;
}

static __attribute__((unused)) int create(struct rpc_channel *channel, const struct rpc_options *options, struct error *err)
{
    Covey__V1__CreateProfileRequest request = COVEY__V1__CREATE_PROFILE_REQUEST__INIT;
    ProtobufCMessage *response;
    struct arena arena;
    arena_init(&arena);
    request.name = "new";
    atomic_fetch_add(&w.seen_count, 1);
    int rc = rpc_unary(channel, "covey.v1.Profiles", "CreateProfile", &request.base, &response, &arena, options, err);
    atomic_load(&w.seen_count);
    arena_clear(&arena);
    return rc;
}

static __attribute__((unused)) struct rpc_call *open_watch(struct rpc_channel *channel, const char *count, bool fails, const struct rpc_options *options)
{
    Covey__V1__WatchRequest request = COVEY__V1__WATCH_REQUEST__INIT;
    struct error err = ERROR_INIT;
    request.project = (char *)count;
    request.type = fails ? "fails" : "";
    struct rpc_call *call = rpc_open(channel, "covey.v1.Events", "Watch", &request.base, options, &err);
    if (call == NULL)
        fail_msg("%s", err.text);
    return call;
}

#endif
