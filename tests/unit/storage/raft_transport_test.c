/* Raft frames between two processes over TLS: order, acknowledgement, a peer that dies and comes back, another epoch. The peer is this program again. */
#include "storage/raft_transport.h"
#include <arpa/inet.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

enum { WAIT_MS = 15000, CHUNKS = 40 };

extern char **environ;

static struct world {
    char dir[64], self[512];
    struct identity identity;
    unsigned port[3]; /* by member */
    uint64_t id;
    _Atomic(struct raft_transport *) transport; /* frames may come before serve() has it */
    atomic_uint received, disorder;
    atomic_ulong last;
    int feed; /* the peer ends when this is closed */
    pid_t pid;
} w;

#define WAIT(cond)                                                             \
    do {                                                                       \
        int64_t until_ = time_mono_ms() + WAIT_MS;                             \
        while (!(cond) && time_mono_ms() < until_) {                           \
            usleep(2000);                                                      \
        }                                                                      \
        if (!(cond)) {                                                         \
            fail_msg("not within %d ms: %s", WAIT_MS, #cond);                  \
        }                                                                      \
    } while (0)

static void classify(void *ud, struct caller *caller)
{
    if (strcmp(caller->fingerprint, w.identity.fingerprint) == 0) {
        caller->class = CALLER_MEMBER;
    }
}

static int route(void *ud, struct rpc_call *call, const ProtobufCMessage *request, unsigned attempt, const struct error *last,
                 struct rpc_channel **channel, struct error *err)
{
    return STATUS_OK;
}

static struct rpc_channel *channel(void *ud, uint64_t peer)
{
    char address[32];
    snprintf(address, sizeof address, "127.0.0.1:%u", w.port[peer]);
    return rpc_channel_tls(address, w.identity.fingerprint, NULL, &w.identity);
}

static bool is_peer(void *ud, const struct caller *caller, uint64_t peer)
{
    return caller->class == CALLER_MEMBER && peer <= 2;
}

static void receive(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    if (frame->kind_case == COVEY__INTERNAL__V1__RAFT_FRAME__KIND_READ_PROBE) { /* the peer answers */
        Covey__Internal__V1__RaftFrame answer = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
        Covey__Internal__V1__ReadProbeResult result = COVEY__INTERNAL__V1__READ_PROBE_RESULT__INIT;
        result.round = frame->read_probe->round;
        answer.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_READ_PROBE_RESULT;
        answer.read_probe_result = &result;
        struct raft_transport *transport = atomic_load(&w.transport);
        if (transport != NULL) { /* a lost answer: the prober asks again */
            raft_transport_send(transport, peer, &answer);
        }
    } else if (frame->kind_case == COVEY__INTERNAL__V1__RAFT_FRAME__KIND_READ_PROBE_RESULT) {
        uint64_t round = frame->read_probe_result->round;
        if (round <= atomic_load(&w.last)) {
            atomic_fetch_add(&w.disorder, 1);
        }
        atomic_store(&w.last, round);
        atomic_fetch_add(&w.received, 1);
    }
}

static struct rpc_server *serve(uint64_t id, uint64_t epoch)
{
    static const struct rpc_policy policy = {.classify = classify, .route = route};
    struct raft_transport_config config = {.id = id, .cluster_id = "test", .epoch = epoch, .channel = channel, .receive = receive, .is_peer = is_peer};
    struct error err = ERROR_INIT;
    char address[32];
    w.id = id;
    registry_init();
    rpc_init();
    rpc_set_policy(&policy);
    raft_transport_bind();
    snprintf(address, sizeof address, "127.0.0.1:%u", w.port[id]);
    struct rpc_server *server = rpc_server_listen_tls(address, &w.identity, &err);
    if (server == NULL) {
        fprintf(stderr, "listen: %s\n", err.text);
        exit(1);
    }
    w.transport = raft_transport_create(&config);
    return server;
}

static void load_identity(void)
{
    struct error err = ERROR_INIT;
    char cert[128], key[128];
    snprintf(cert, sizeof cert, "%s/cert", w.dir);
    snprintf(key, sizeof key, "%s/key", w.dir);
    if (identity_load(cert, key, &w.identity, &err) != STATUS_OK) {
        fprintf(stderr, "identity: %s\n", err.text);
        exit(1);
    }
}

/* raft_transport_test --peer DIR PORT1 PORT2 EPOCH */
static int peer_main(char **argv)
{
    char byte;
    snprintf(w.dir, sizeof w.dir, "%s", argv[2]);
    w.port[1] = (unsigned)atoi(argv[3]);
    w.port[2] = (unsigned)atoi(argv[4]);
    load_identity();
    struct rpc_server *server = serve(2, (uint64_t)atoi(argv[5]));
    while (read(0, &byte, 1) > 0) {
    }
    raft_transport_destroy(w.transport);
    rpc_server_destroy(server, 100);
    rpc_shutdown();
    return 0;
}

static void peer_start(const char *epoch)
{
    char port1[16], port2[16];
    int fds[2];
    posix_spawn_file_actions_t actions;
    snprintf(port1, sizeof port1, "%u", w.port[1]);
    snprintf(port2, sizeof port2, "%u", w.port[2]);
    char *argv[] = {w.self, "--peer", w.dir, port1, port2, (char *)epoch, NULL};
    assert_int_equal(pipe(fds), 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[0], 0);
    posix_spawn_file_actions_addclose(&actions, fds[1]);
    assert_int_equal(posix_spawn(&w.pid, w.self, &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(fds[0]);
    w.feed = fds[1];
}

static void peer_stop(int signal)
{
    int status;
    if (signal != 0) {
        kill(w.pid, signal);
    }
    close(w.feed);
    assert_int_equal(waitpid(w.pid, &status, 0), w.pid);
    if (signal == 0) {
        assert_int_equal(status, 0); /* ends cleanly */
    }
}

static void probe(uint64_t round)
{
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__ReadProbe body = COVEY__INTERNAL__V1__READ_PROBE__INIT;
    body.round = round;
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_READ_PROBE;
    frame.read_probe = &body;
    raft_transport_send(w.transport, 2, &frame);
}

/* Until both directions work. */
static uint64_t connect_peer(uint64_t round)
{
    unsigned before = atomic_load(&w.received);
    for (int64_t until = time_mono_ms() + WAIT_MS; atomic_load(&w.received) == before; usleep(20000)) {
        assert_true(time_mono_ms() < until);
        probe(round++);
    }
    usleep(300000); /* the rest of those may still come */
    return round;
}

static void test_frames_arrive_in_order(void **state)
{
    peer_start("1");
    uint64_t round = connect_peer(1), last = round + 1999;
    for (; round <= last; round++) {
        probe(round);
    }
    WAIT(atomic_load(&w.last) == last);
    assert_int_equal(atomic_load(&w.disorder), 0);
    assert_true(atomic_load(&w.received) >= 2000);
    peer_stop(0);
}

static void test_what_is_taken_is_known(void **state)
{
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__InstallSnapshot body = COVEY__INTERNAL__V1__INSTALL_SNAPSHOT__INIT;
    peer_start("1");
    uint64_t round = connect_peer(atomic_load(&w.last) + 1);
    body.data.len = RAFT_SNAPSHOT_CHUNK_BYTES;
    body.data.data = xcalloc(1, body.data.len);
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_INSTALL_SNAPSHOT;
    frame.install_snapshot = &body;
    for (int i = 0; i < CHUNKS; i++) { /* more than a stream's own queue takes */
        raft_transport_send(w.transport, 2, &frame);
    }
    assert_true(raft_transport_queued(w.transport, 2) > 0);
    WAIT(raft_transport_queued(w.transport, 2) < RAFT_SNAPSHOT_CHUNK_BYTES);
    probe(round); /* behind all of it */
    WAIT(atomic_load(&w.last) == round);
    free(body.data.data);
    peer_stop(0);
}

static void test_reopens(void **state)
{
    peer_start("1");
    connect_peer(atomic_load(&w.last) + 1);
    peer_stop(SIGKILL);
    for (int i = 0; i < 100; i++) { /* must not block nor pile up */
        probe(atomic_load(&w.last) + 1);
        usleep(2000);
    }
    assert_true(raft_transport_queued(w.transport, 2) < 65536);
    peer_start("1");
    connect_peer(atomic_load(&w.last) + 1);
    raft_transport_reset(w.transport, 2);
    connect_peer(atomic_load(&w.last) + 1);
    peer_stop(0);
}

static void test_other_epoch_is_refused(void **state)
{
    peer_start("2");
    unsigned before = atomic_load(&w.received);
    for (int i = 0; i < 40; i++) {
        probe(atomic_load(&w.last) + 1);
        usleep(20000);
    }
    assert_int_equal(atomic_load(&w.received), before);
    peer_stop(0);
}

static unsigned free_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, len) != 0 || getsockname(fd, (struct sockaddr *)&address, &len) != 0) {
        exit(1);
    }
    close(fd);
    return ntohs(address.sin_port);
}

static struct rpc_server *server;

static int setup(void **state)
{
    struct error err = ERROR_INIT;
    char path[128];
    strcpy(w.dir, "/tmp/raft_transport_test-XXXXXX");
    assert_non_null(mkdtemp(w.dir));
    assert_int_equal(identity_create("member", &w.identity, &err), STATUS_OK);
    snprintf(path, sizeof path, "%s/cert", w.dir);
    assert_int_equal(file_write_atomic(path, w.identity.cert_pem, strlen(w.identity.cert_pem), 0600, &err), STATUS_OK);
    snprintf(path, sizeof path, "%s/key", w.dir);
    assert_int_equal(file_write_atomic(path, w.identity.key_pem, strlen(w.identity.key_pem), 0600, &err), STATUS_OK);
    w.port[1] = free_port();
    w.port[2] = free_port();
    server = serve(1, 1);
    return 0;
}

static int teardown(void **state)
{
    struct error err = ERROR_INIT;
    raft_transport_destroy(w.transport);
    rpc_server_destroy(server, 100);
    rpc_shutdown();
    return dir_remove_all(w.dir, &err);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_frames_arrive_in_order), cmocka_unit_test(test_what_is_taken_is_known),
                                       cmocka_unit_test(test_reopens), cmocka_unit_test(test_other_epoch_is_refused)};
    log_init("raft_transport_test", LOG_LEVEL_WARN);
    if (argc == 6 && strcmp(argv[1], "--peer") == 0) {
        return peer_main(argv);
    }
    ssize_t n = readlink("/proc/self/exe", w.self, sizeof w.self - 1);
    return n <= 0 ? 1 : cmocka_run_group_tests(tests, setup, teardown);
}
