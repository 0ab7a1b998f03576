/* Connect: attaches a client's data stream to the session that runs on some member's agent.
 *
 * The first frame names operation and secret. It is read without a thread; then a short-lived thread finds the member, opens the agent's stream and joins
 * both (rpc_join pumps with back-pressure). Whether the secret is right is the agent's to say. A caller that sends no first frame is ended by the timer. */
#include "operations_private.h"

#include "covey/internal/v1/control.pb-c.h"
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct connect { /* references: list or thread, and the call's done hook */
    atomic_int references;
    struct rpc_call *call;
    bool waiting; /* for the first frame, in the list; connects.lock */
    int64_t due_ms;
    struct arena arena;
    Covey__V1__StreamFrame *first;
    struct connect *next;
};

static struct {
    pthread_mutex_t lock;
    struct connect *waiting;
    unsigned opening;
} connects = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void connect_unref(struct connect *connect)
{
    if (atomic_fetch_sub(&connect->references, 1) == 1) {
        arena_clear(&connect->arena);
        rpc_call_unref(connect->call);
        free(connect);
    }
}

/* True for the one who takes it out of the list. */
static bool take_locked(struct connect *connect)
{
    if (!connect->waiting) {
        return false;
    }
    for (struct connect **at = &connects.waiting; *at != NULL; at = &(*at)->next) {
        if (*at == connect) {
            *at = connect->next;
            break;
        }
    }
    connect->waiting = false;
    return true;
}

static bool take(struct connect *connect)
{
    pthread_mutex_lock(&connects.lock);
    bool mine = take_locked(connect);
    pthread_mutex_unlock(&connects.lock);
    return mine;
}

static void fail(struct connect *connect, int status, const char *text)
{
    struct error err = ERROR_INIT;
    error_set(&err, (enum status)status, "%s", text);
    rpc_finish(connect->call, NULL, status, &err);
}

/* ---- opening ---- */

static int locate(struct rpc_call *call, const char *id, uint64_t *member, struct error *err)
{
    if (op_is_local(id) || daemon_leads(ops.daemon)) {
        int status = op_locate(id, member, err);
        if (status == STATUS_OK || !err->not_leader) {
            return status;
        }
    }
    struct rpc_channel *self = member_channel(ops.daemon, daemon_id(ops.daemon), err);
    if (self == NULL) {
        return err->code;
    }
    struct arena arena;
    arena_init(&arena);
    Covey__Internal__V1__LocateOperationRequest request = COVEY__INTERNAL__V1__LOCATE_OPERATION_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.timeout_ms = LEADER_WAIT_MS};
    request.id = (char *)id;
    int status = rpc_unary(self, "covey.internal.v1.Control", "LocateOperation", &request.base, &response, &arena, &options, err);
    if (status == STATUS_OK) {
        *member = ((Covey__Internal__V1__LocateOperationResponse *)response)->member;
    }
    rpc_channel_unref(self);
    arena_clear(&arena);
    return status;
}

static int open_stream(struct connect *connect, struct rpc_call **out, struct error *err)
{
    uint64_t member = 0;
    if (locate(connect->call, connect->first->id, &member, err) != STATUS_OK) {
        return err->code;
    }
    struct rpc_channel *channel = member_channel(ops.daemon, member, err);
    if (channel == NULL) {
        return err->code;
    }
    struct rpc_options options = {.timeout_ms = -1};
    struct rpc_call *client = rpc_open(channel, "covey.internal.v1.Agent", "Connect", NULL, &options, err);
    rpc_channel_unref(channel);
    if (client == NULL) {
        return err->code;
    }
    int status = rpc_send(client, &connect->first->base, err);
    if (status != STATUS_OK) {
        rpc_cancel(client);
        rpc_call_unref(client);
        return status;
    }
    *out = client;
    return STATUS_OK;
}

static void *open_main(void *ud)
{
    struct connect *connect = ud;
    struct rpc_call *client = NULL;
    struct error err = ERROR_INIT;
    if (open_stream(connect, &client, &err) == STATUS_OK) {
        rpc_join(rpc_call_ref(connect->call), client);
    } else {
        rpc_finish(connect->call, NULL, err.code, &err);
    }
    connect_unref(connect);
    pthread_mutex_lock(&connects.lock);
    connects.opening--;
    pthread_mutex_unlock(&connects.lock);
    return NULL;
}

/* Starts the thread, which has the list's reference from now on. */
static void start_opening(struct connect *connect)
{
    pthread_mutex_lock(&connects.lock);
    bool room = connects.opening < CONNECT_OPENING_MAX;
    connects.opening += room;
    pthread_mutex_unlock(&connects.lock);
    if (room && background_start("connect", open_main, connect) == 0) {
        return;
    }
    if (room) {
        pthread_mutex_lock(&connects.lock);
        connects.opening--;
        pthread_mutex_unlock(&connects.lock);
    }
    fail(connect, STATUS_RESOURCE_EXHAUSTED, "too many streams are being attached");
    connect_unref(connect);
}

/* ---- the first frame ---- */

static bool on_first_frame(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct connect *connect = ud;
    if (!take(connect)) {
        return false; /* ended meanwhile */
    }
    const Covey__V1__StreamFrame *frame = (const Covey__V1__StreamFrame *)message;
    const char *wrong = frame == NULL ? "no first frame" : str_empty(frame->id) ? "missing operation id" : str_empty(frame->secret) ? "missing secret" : NULL;
    if (wrong != NULL) {
        fail(connect, STATUS_INVALID_ARGUMENT, wrong);
        connect_unref(connect);
        return false;
    }
    connect->first = (Covey__V1__StreamFrame *)codec_copy(message, &connect->arena);
    start_opening(connect);
    return false; /* rpc_join reads on */
}

static void on_done(struct rpc_call *call, void *ud)
{
    struct connect *connect = ud;
    if (take(connect)) {
        fail(connect, STATUS_CANCELLED, "cancelled");
        connect_unref(connect);
    }
    connect_unref(connect);
}

int64_t op__connects_due(int64_t now_ms)
{
    int64_t next_ms = INT64_MAX;
    struct connect *due = NULL, *next;
    pthread_mutex_lock(&connects.lock);
    for (struct connect *connect = connects.waiting; connect != NULL; connect = next) {
        next = connect->next;
        if (connect->due_ms <= now_ms) {
            take_locked(connect);
            connect->next = due;
            due = connect;
        } else {
            next_ms = connect->due_ms < next_ms ? connect->due_ms : next_ms;
        }
    }
    pthread_mutex_unlock(&connects.lock);
    while (due != NULL) {
        next = due->next;
        fail(due, STATUS_DEADLINE_EXCEEDED, "no first frame came in time");
        connect_unref(due);
        due = next;
    }
    return next_ms;
}

int op__connect(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct connect *connect = xcalloc(1, sizeof *connect);
    atomic_init(&connect->references, 3); /* list, done hook, this function */
    arena_init(&connect->arena);
    connect->call = call;
    connect->waiting = true;
    connect->due_ms = time_mono_ms() + CONNECT_FIRST_FRAME_MS;
    pthread_mutex_lock(&connects.lock);
    connect->next = connects.waiting;
    connects.waiting = connect;
    pthread_mutex_unlock(&connects.lock);
    pthread_mutex_lock(&ops.lock);
    op__timer_wake_locked(connect->due_ms);
    pthread_mutex_unlock(&ops.lock);
    rpc_call_on_done(call, on_done, connect);
    rpc_on_message(call, on_first_frame, connect);
    connect_unref(connect);
    return RPC_LATER;
}
