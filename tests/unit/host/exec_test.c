/* Exec through the agent's RPCs: the matrix of spec/api.md 6.1 against one running container. */
#include "world.h"
#include "server/host/host_limits.h"
#include <pthread.h>

static Spec *box;

struct session {
    Covey__Internal__V1__ExecRequest request;
    pthread_t thread;
    int status;
    int64_t result;
    char error[256];
    struct rpc_call *stream[4]; /* 0, 1, 2, control */
    char secret[4][65];
    struct buf out[3];
    bool ended[3];
};
static const char *const names[4] = {"0", "1", "2", "control"};

static void *exec_main(void *ud)
{
    struct session *s = ud;
    struct arena arena;
    struct error err = ERROR_INIT;
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.timeout_ms = 60000, .wait_for_ready = true};
    arena_init(&arena);
    s->status = rpc_unary(w.channel, AGENT, "Exec", &s->request.base, &response, &arena, &options, &err);
    if (!s->status) {
        s->result = ((Covey__Internal__V1__ExecResponse *)response)->return_;
        snprintf(s->error, sizeof(s->error), "%s", ((Covey__Internal__V1__ExecResponse *)response)->error);
    } else {
        snprintf(s->error, sizeof(s->error), "%.255s", err.text);
    }
    arena_clear(&arena);
    return NULL;
}

static void add_env(Covey__Internal__V1__ExecRequest *request, const char *key, const char *value)
{
    Covey__Internal__V1__ExecRequest__EnvironmentEntry *entry = arena_alloc(&w.arena, sizeof(*entry));
    covey__internal__v1__exec_request__environment_entry__init(entry);
    entry->key = (char *)(uintptr_t)key;
    entry->value = (char *)(uintptr_t)value;
    request->environment[request->n_environment++] = entry;
}

static struct session *session_new(bool interactive, bool wait, const char *const command[])
{
    struct session *s = arena_alloc(&w.arena, sizeof(*s));
    char uuid[37];
    covey__internal__v1__exec_request__init(&s->request);
    uuid_new(uuid);
    s->request.spec = box;
    s->request.operation = arena_strdup(&w.arena, uuid);
    s->request.command = (char **)(uintptr_t)command;
    while (command[s->request.n_command])
        s->request.n_command++;
    s->request.environment = arena_alloc(&w.arena, 8 * sizeof(void *));
    add_env(&s->request, "PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    add_env(&s->request, "HOME", "/root");
    s->request.interactive = interactive;
    s->request.wait_for_streams = wait;
    s->request.secrets = arena_alloc(&w.arena, 4 * sizeof(void *));
    for (int i = 0; i < 4 && wait; i++) {
        if (interactive && (i == 1 || i == 2))
            continue;
        Covey__Internal__V1__ExecRequest__SecretsEntry *entry = arena_alloc(&w.arena, sizeof(*entry));
        covey__internal__v1__exec_request__secrets_entry__init(entry);
        random_hex(s->secret[i], 32);
        entry->key = (char *)(uintptr_t)names[i];
        entry->value = s->secret[i];
        s->request.secrets[s->request.n_secrets++] = entry;
    }
    return s;
}

static int send_frame(struct rpc_call *call, const char *id, const char *secret, const void *data, size_t len, bool end, const char *control)
{
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    frame.id = (char *)(uintptr_t)(id ? id : "");
    frame.secret = (char *)(uintptr_t)(secret ? secret : "");
    frame.data.data = (uint8_t *)(uintptr_t)data;
    frame.data.len = len;
    frame.end = end;
    frame.control = (char *)(uintptr_t)(control ? control : "");
    return rpc_send(call, &frame.base, &w.err);
}

static struct rpc_call *open_stream(const char *id, const char *secret, int *status)
{
    struct rpc_options options = {.timeout_ms = 60000, .wait_for_ready = true};
    struct rpc_call *call = rpc_open(w.channel, AGENT, "Connect", NULL, &options, &w.err);
    struct arena arena;
    ProtobufCMessage *hello = NULL;
    assert_non_null(call);
    OK(send_frame(call, id, secret, NULL, 0, false, NULL));
    arena_init(&arena);
    *status = rpc_recv(call, &hello, &arena, &w.err);
    arena_clear(&arena);
    return call;
}

static void connect_one(struct session *s, int i)
{
    int status = -1;
    s->stream[i] = open_stream(s->request.operation, s->secret[i], &status);
    if (status)
        fail_msg("stream %s: %s", names[i], w.err.text);
}

static void begin(struct session *s)
{
    assert_int_equal(pthread_create(&s->thread, NULL, exec_main, s), 0);
}

/* The session is known to the agent once its control stream can be connected; before, the secret is refused. early_control goes out before the command starts. */
static void begin_connected_with(struct session *s, bool control, const char *early_control)
{
    begin(s);
    int first = control ? 3 : 0, status;
    int64_t until = time_mono_ms() + WAIT_MS_MAX;
    while (true) {
        s->stream[first] = open_stream(s->request.operation, s->secret[first], &status);
        if (!status)
            break;
        assert_true(time_mono_ms() < until);
        rpc_call_unref(s->stream[first]);
        usleep(2000);
    }
    if (early_control)
        OK(send_frame(s->stream[3], NULL, NULL, NULL, 0, false, early_control));
    for (int i = 0; i < 3; i++)
        if (i != first && s->secret[i][0])
            connect_one(s, i);
}

static void begin_connected(struct session *s, bool control)
{
    begin_connected_with(s, control, NULL);
}

/* Reads a stream to its end. */
static void read_all(struct session *s, int i)
{
    struct arena arena;
    arena_init(&arena);
    for (;;) {
        ProtobufCMessage *message = NULL;
        int rc = rpc_recv(s->stream[i], &message, &arena, &w.err);
        if (rc) {
            assert_int_equal(rc, STATUS_OUT_OF_RANGE);
            break;
        }
        const Covey__V1__StreamFrame *frame = (const void *)message;
        buf_add(&s->out[i], frame->data.data ? (const void *)frame->data.data : "", frame->data.len);
        s->ended[i] = s->ended[i] || frame->end;
        arena_clear(&arena);
    }
    arena_clear(&arena);
}

static void finish(struct session *s)
{
    assert_int_equal(pthread_join(s->thread, NULL), 0);
    for (int i = 0; i < 4; i++)
        if (s->stream[i]) {
            rpc_cancel(s->stream[i]);
            rpc_call_unref(s->stream[i]);
        }
    for (int i = 0; i < 3; i++)
        buf_free(&s->out[i]);
}

static const char *text(struct buf *buf)
{
    return buf->data ? buf->data : "";
}

static int exec_setup(void **state)
{
    if (world_setup(state))
        return -1;
    if (geteuid() != 0)
        return 0;
    box = spec_of("default", "c1");
    if (create(box, w.image) || start(box, NULL))
        return -1;
    return 0;
}

static void test_streams(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"sh", "-c", "cat; echo to-err >&2; echo $HOME:$PWD:$(id -u); exit 7", NULL};
    struct session *s = session_new(false, true, command);
    begin_connected(s, true);
    OK(send_frame(s->stream[0], NULL, NULL, "hello\n", 6, false, NULL));
    OK(send_frame(s->stream[0], NULL, NULL, "again\n", 6, true, NULL));
    read_all(s, 1);
    read_all(s, 2);
    assert_string_equal(text(&s->out[1]), "hello\nagain\n/root:/root:0\n");
    assert_string_equal(text(&s->out[2]), "to-err\n");
    assert_true(s->ended[1] && s->ended[2]);
    finish(s);
    struct session again = *s; /* the same operation asked again gives the same result */
    assert_int_equal(s->status, STATUS_OK);
    assert_int_equal(s->result, 7);
    assert_string_equal(s->error, "");
    exec_main(&again);
    assert_int_equal(again.status, STATUS_OK);
    assert_int_equal(again.result, 7);
}

static void test_start_failures(void **state)
{
    NEEDS_ROOT();
    static const char *const missing[] = {"nosuch", NULL}, *const bad[] = {"/etc/passwd", NULL}, *const itself[] = {"sh", "-c", "exit 127", NULL};
    static const struct {
        const char *const *command;
        int result;
        const char *error;
    } cases[] = {{missing, 127, "Command not found"}, {bad, 126, "Command not executable"}, {itself, 127, ""}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct session *s = session_new(false, true, cases[i].command);
        begin_connected(s, false); /* without a control stream */
        read_all(s, 1);
        assert_true(s->ended[1]);
        finish(s);
        assert_int_equal(s->result, cases[i].result);
        assert_string_equal(s->error, cases[i].error);
    }
}

static void test_signals(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"sh", "-c", "echo ready; exec sleep 100", NULL};
    for (int lost = 0; lost < 3; lost++) { /* a signal, loss of control, loss of stdout without control */
        struct session *s = session_new(false, true, command);
        struct arena arena;
        ProtobufCMessage *message;
        begin_connected(s, lost != 2);
        arena_init(&arena);
        OK(rpc_recv(s->stream[1], &message, &arena, &w.err)); /* it runs */
        arena_clear(&arena);
        if (lost == 0)
            OK(send_frame(s->stream[3], NULL, NULL, NULL, 0, false, "{\"command\":\"signal\",\"args\":null,\"signal\":15}"));
        else
            rpc_cancel(s->stream[lost == 1 ? 3 : 1]);
        finish(s);
        assert_int_equal(s->result, lost ? 137 : 143);
        assert_string_equal(s->error, "");
    }
}

/* A signal that comes while the command is being started reaches it. */
static void test_early_signal(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"sleep", "100", NULL};
    struct session *s = session_new(false, true, command);
    begin_connected_with(s, true, "{\"command\":\"signal\",\"args\":null,\"signal\":15}");
    finish(s);
    assert_int_equal(s->result, 143);
}

static void *feed_main(void *ud)
{
    struct session *s = ud;
    struct error err = ERROR_INIT;
    enum { PIECE = 16384 };
    for (size_t done = 0; done < s->out[0].len; done += PIECE) {
        Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
        frame.data.data = (uint8_t *)s->out[0].data + done;
        frame.data.len = s->out[0].len - done < PIECE ? s->out[0].len - done : PIECE;
        frame.end = done + PIECE >= s->out[0].len;
        if (rpc_send(s->stream[0], &frame.base, &err))
            return NULL;
    }
    return NULL;
}

static void test_round_trip(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"cat", NULL};
    struct session *s = session_new(false, true, command);
    pthread_t feeder;
    random_bytes(buf_grow(&s->out[0], 1 << 20), 1 << 20);
    begin_connected(s, true);
    assert_int_equal(pthread_create(&feeder, NULL, feed_main, s), 0);
    read_all(s, 1);
    read_all(s, 2);
    pthread_join(feeder, NULL);
    assert_int_equal(s->out[1].len, s->out[0].len);
    assert_memory_equal(s->out[1].data, s->out[0].data, s->out[0].len);
    finish(s);
    assert_int_equal(s->result, 0);
}

static long resident_kib(void)
{
    char line[256];
    long kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof(line), file))
        if (strncmp(line, "VmRSS:", 6) == 0)
            kib = strtol(line + 6, NULL, 10);
    if (file)
        fclose(file);
    return kib;
}

/* A client that does not read: the command is held up, this process does not grow. */
static void test_slow_reader(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"sh", "-c", "echo begin; exec cat /dev/zero", NULL};
    struct session *s = session_new(false, true, command);
    begin_connected(s, true);
    long before = resident_kib();
    for (int i = 0; i < 20; i++)
        usleep(100 * 1000); /* nothing to wait for: that nothing happens is the point */
    assert_true(resident_kib() - before < 64 * 1024);
    OK(send_frame(s->stream[3], NULL, NULL, NULL, 0, false, "{\"command\":\"signal\",\"signal\":9}"));
    rpc_cancel(s->stream[1]);
    finish(s);
    assert_int_equal(s->result, 137);
}

static void wait_text(struct session *s, int i, const char *wanted)
{
    struct arena arena;
    arena_init(&arena);
    while (!strstr(text(&s->out[i]), wanted)) {
        ProtobufCMessage *message;
        int rc = rpc_recv(s->stream[i], &message, &arena, &w.err);
        if (rc)
            fail_msg("stream ended without \"%s\": \"%s\"", wanted, text(&s->out[i]));
        const Covey__V1__StreamFrame *frame = (const void *)message;
        buf_add(&s->out[i], frame->data.data ? (const void *)frame->data.data : "", frame->data.len);
    }
    arena_clear(&arena);
}

static void test_terminal(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"sh", "-c", "trap 'stty size; echo changed' WINCH; tty; stty size; until read x; do :; done; echo got:$x; exit 3", NULL};
    struct session *s = session_new(true, true, command);
    s->request.width = 91;
    s->request.height = 27;
    add_env(&s->request, "TERM", "xterm");
    begin_connected(s, true);
    wait_text(s, 0, "27 91");
    assert_non_null(strstr(text(&s->out[0]), "/dev/pts/"));
    OK(send_frame(s->stream[3], NULL, NULL, NULL, 0, false, "{\"command\":\"window-resize\",\"args\":{\"width\":\"100\",\"height\":\"30\"},\"signal\":0}"));
    wait_text(s, 0, "30 100");
    OK(send_frame(s->stream[0], NULL, NULL, "word\n", 5, false, NULL));
    read_all(s, 0);
    assert_non_null(strstr(text(&s->out[0]), "got:word"));
    assert_true(s->ended[0]);
    finish(s);
    assert_int_equal(s->result, 3);
}

static void test_secrets_and_timeout(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"true", NULL};
    struct session *s = session_new(false, true, command);
    int64_t began = time_mono_ms();
    int status = -1;
    begin(s);
    struct rpc_call *wrong = open_stream(s->request.operation, "wrong", &status);
    assert_int_equal(rpc_status(wrong, &w.err), STATUS_PERMISSION_DENIED);
    assert_string_equal(w.err.text, "not authorized");
    rpc_call_unref(wrong);
    int64_t until = time_mono_ms() + WAIT_MS_MAX;
    for (status = -1; status && time_mono_ms() < until; usleep(2000)) {
        if (s->stream[1])
            rpc_call_unref(s->stream[1]);
        s->stream[1] = open_stream(s->request.operation, s->secret[1], &status);
    }
    assert_int_equal(status, STATUS_OK);
    struct rpc_call *twice = open_stream(s->request.operation, s->secret[1], &status);
    assert_int_equal(rpc_status(twice, &w.err), STATUS_PERMISSION_DENIED);
    rpc_call_unref(twice);
    finish(s); /* 0 and 2 never come */
    assert_string_equal(s->error, "Timed out waiting for websockets to connect");
    assert_in_range(time_mono_ms() - began, 4500, 9000);
}

static void test_without_streams(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"sh", "-c", "echo out; echo err >&2; exit 4", NULL};
    struct session *s = session_new(false, false, command);
    struct buf log = {0};
    s->request.record_output = true;
    begin(s);
    finish(s);
    assert_int_equal(s->result, 4);
    OK(file_read(arena_printf(&w.arena, "%s/logs/c1/exec_%s.stdout", w.dir, s->request.operation), 1000, &log, &w.err));
    assert_string_equal(log.data, "out\n");
    buf_free(&log);
    OK(file_read(arena_printf(&w.arena, "%s/logs/c1/exec_%s.stderr", w.dir, s->request.operation), 1000, &log, &w.err));
    assert_string_equal(log.data, "err\n");
    buf_free(&log);
    static const char *const as_user[] = {"sh", "-c", "[ $(id -u):$(id -g):$(pwd) = 1000:100:/tmp ]", NULL};
    s = session_new(false, false, as_user);
    s->request.user = 1000;
    s->request.group = 100;
    s->request.cwd = (char *)(uintptr_t) "/tmp";
    begin(s);
    finish(s);
    assert_int_equal(s->result, 0);
    static const char *const endless[] = {"sleep", "100", NULL};
    s = session_new(false, false, endless);
    Covey__Internal__V1__CancelExecRequest cancel = COVEY__INTERNAL__V1__CANCEL_EXEC_REQUEST__INIT;
    cancel.operation = s->request.operation;
    begin(s);
    usleep(300 * 1000); /* a cancel before the request arrived would find nothing */
    OK(world_call("CancelExec", &cancel.base, NULL));
    finish(s);
    assert_int_equal(s->result, 137);
    Spec *spec = box;
    box = spec_of("default", "other");
    s = session_new(false, false, command);
    begin(s);
    finish(s);
    box = spec;
    assert_int_equal(s->status, STATUS_FAILED_PRECONDITION);
    assert_string_equal(s->error, "Instance is not running");
}

/* Ended commands, whose results are kept for a minute, take no place from new ones. */
static void test_many_in_turn(void **state)
{
    NEEDS_ROOT();
    static const char *const command[] = {"true", NULL};
    for (int i = 0; i <= EXEC_SESSIONS_MAX; i++) {
        struct session *s = session_new(false, false, command);
        begin(s);
        finish(s);
        if (s->status || s->result)
            fail_msg("command %d: result %d, status %d %s", i, (int)s->result, s->status, s->error);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams), cmocka_unit_test(test_start_failures), cmocka_unit_test(test_signals), cmocka_unit_test(test_early_signal), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_slow_reader), cmocka_unit_test(test_terminal), cmocka_unit_test(test_secrets_and_timeout),
        cmocka_unit_test(test_without_streams), cmocka_unit_test(test_many_in_turn),
    };
    return cmocka_run_group_tests(tests, exec_setup, world_teardown);
}
