/* Where a call runs: here, or on the member that policy.route() names, and again elsewhere when that one no longer leads.
 *
 * Bytes are passed on undecoded. A stream is a pump: in each direction the next message is read only after the last one was written, so a slow
 * reader slows its writer across members. Threads: dispatch on a worker, unless the way is known at once; the rest on queue threads, never waiting. Only
 * unary calls are repeated: reads freely, writes with their request id. What may fail: every hop; the last status goes back to the caller. */
#include "rpc_private.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL_OF(tag_pointer, member) ((struct rpc_call *)((char *)(tag_pointer) - offsetof(struct rpc_call, member)))

/* ---- metadata of the next hop ---- */

/* Headers of the connection itself, and those that the next hop gets from us. */
static bool key_is_ours(const char *key, size_t len)
{
    static const char *const exact[] = {"user-agent", "content-type", "te", "host", "accept-encoding", "covey-forwarded", "covey-request-id"};
    for (size_t i = 0; i < sizeof(exact) / sizeof(exact[0]); i++) {
        if (strlen(exact[i]) == len && memcmp(exact[i], key, len) == 0)
            return true;
    }
    return (len > 0 && key[0] == ':') || (len > 5 && memcmp(key, "grpc-", 5) == 0) || (len > 13 && memcmp(key, "covey-caller-", 13) == 0);
}

static int build_metadata(const struct rpc_call *call, struct md_list *list, struct error *err)
{
    char count[16];
    bool trusted = call->from_unix || call->peer_member;

    list->count = 0;
    caller__to_md(call, list);
    snprintf(count, sizeof(count), "%u", call->forwarded + 1);
    covey_assert(md_add(list, "covey-forwarded", count));
    if (call->request_id[0] != '\0')
        covey_assert(md_add(list, "covey-request-id", call->request_id));
    for (size_t i = 0; i < call->metadata.count; i++) {
        const grpc_metadata *item = &call->metadata.metadata[i];
        const char *key = (const char *)GRPC_SLICE_START_PTR(item->key);
        size_t len = GRPC_SLICE_LENGTH(item->key);
        if (key_is_ours(key, len) || (!trusted && len > 6 && memcmp(key, "covey-", 6) == 0))
            continue;
        if (!md_add_slices(list, item->key, item->value))
            return error_set(err, STATUS_INVALID_ARGUMENT, "more than %d headers", RPC_METADATA_MAX);
    }
    return STATUS_OK;
}

/* ---- streams ---- */

struct pump {
    atomic_int refs;        /* the ends below, and every message on its way */
    atomic_int client_left; /* of the client side: the last message and the status; both over = the server side may be finished */
    struct rpc_call *server, *client;
};

static void pump_release(struct pump *pump)
{
    if (atomic_fetch_sub(&pump->refs, 1) != 1)
        return;
    rpc_call_unref(pump->server);
    rpc_call_unref(pump->client);
    free(pump);
}

static void client_part_over(struct pump *pump)
{
    if (atomic_fetch_sub(&pump->client_left, 1) == 1) {
        struct error err = ERROR_INIT;
        call__client_status(pump->client, &err);
        server__finish_raw(pump->server, NULL, err.code, &err);
    }
    pump_release(pump);
}

static void sent_to_client(void *ud, bool ok)
{
    struct pump *pump = ud;
    (void)ok; /* if it was dropped the call ends; reading on finds the end */
    rpc_read_resume(pump->server);
    pump_release(pump);
}

static void sent_to_server(void *ud, bool ok)
{
    struct pump *pump = ud;
    (void)ok;
    rpc_read_resume(pump->client);
    pump_release(pump);
}

static bool from_server(struct rpc_call *call, grpc_byte_buffer *buffer, void *ud)
{
    struct pump *pump = ud;
    (void)call;
    if (buffer == NULL) {
        rpc_half_close(pump->client);
        pump_release(pump);
        return true;
    }
    atomic_fetch_add(&pump->refs, 1);
    call__send_raw(pump->client, buffer, sent_to_client, pump);
    return false;
}

static bool from_client(struct rpc_call *call, grpc_byte_buffer *buffer, void *ud)
{
    struct pump *pump = ud;
    (void)call;
    if (buffer == NULL) {
        client_part_over(pump);
        return true;
    }
    atomic_fetch_add(&pump->refs, 1);
    call__send_raw(pump->server, buffer, sent_to_server, pump);
    return false;
}

static void client_done(struct rpc_call *call, void *ud)
{
    (void)call;
    client_part_over(ud);
}

static void server_done(struct rpc_call *call, void *ud)
{
    struct pump *pump = ud;
    (void)call;
    rpc_cancel(pump->client); /* nothing happens if it is over */
    pump_release(pump);
}

/* Starts both directions. Each part's callback releases one reference, perhaps before the next part is started: keeps both calls until all are. */
static void join(struct pump *pump, bool reads)
{
    struct rpc_call *call = rpc_call_ref(pump->server), *client = rpc_call_ref(pump->client);
    if (reads)
        call__on_raw(call, from_server, pump);
    call__on_raw(client, from_client, pump);
    rpc_call_on_done(client, client_done, pump);
    rpc_call_on_done(call, server_done, pump);
    rpc_call_unref(client);
    rpc_call_unref(call);
}

/* Takes the handler's reference. */
static void forward_stream(struct rpc_call *call, struct rpc_channel *channel, const struct md_list *metadata)
{
    struct pump *pump = xcalloc(1, sizeof(*pump));
    bool reads = call->method->client_streaming;

    atomic_init(&pump->refs, reads ? 4 : 3); /* client's status, client's last message, server's end, server's last message */
    atomic_init(&pump->client_left, 2);
    pump->server = call;
    pump->client = client__open_raw(channel, call->method, reads ? NULL : call->payload, metadata, call, call->deadline_ms, false);
    join(pump, reads);
}

void rpc_join(struct rpc_call *call, struct rpc_call *client)
{
    covey_assert(call->is_server && !client->is_server && call->method->input == client->method->input && call->method->output == client->method->output);
    struct pump *pump = xcalloc(1, sizeof(*pump));
    atomic_init(&pump->refs, 4);
    atomic_init(&pump->client_left, 2);
    pump->server = call;
    pump->client = client;
    join(pump, true);
}

/* ---- unary ---- */

static void run_again(struct task *task)
{
    server__dispatch(CALL_OF(task, task));
}

static void no_leader(struct rpc_call *call, const struct error *last)
{
    struct error err;
    const char *text = strncmp(last->text, "no available leader: ", 21) == 0 ? last->text + 21 : last->text;

    if (call->maybe_done)
        error_set(&err, STATUS_UNKNOWN, "no available leader, and whether the request was carried out is not known: %s", text);
    else
        error_set(&err, STATUS_UNAVAILABLE, "no available leader: %s", text);
    err.not_leader = last->not_leader;
    err.leader = last->leader;
    server__finish_raw(call, NULL, err.code, &err);
}

bool forward__retry(struct rpc_call *call, int status, const struct error *err, bool answered)
{
    const struct method *method = call->method;
    bool leader = method->route == RPC_ROUTE_LEADER;
    bool broken = !answered && (status == STATUS_UNAVAILABLE || status == STATUS_UNKNOWN);
    bool unknown = answered && status == STATUS_UNKNOWN && leader;

    /* The first member that got the call does the searching: another one in between gives its answer back. */
    if (!call->routed || call->forwarded > 0 || method->client_streaming || method->server_streaming)
        return false;
    if (!err->not_leader && !broken && !unknown)
        return false;
    bool moved = err->not_leader && method->route == RPC_ROUTE_OPERATION; /* nothing was done */
    if (!leader && !moved && (method->write || call->attempt > 0)) /* an agent does not remember request ids; and its member is where it is */
        return false;
    pthread_mutex_lock(&call->lock);
    bool over = call->finish_wanted || call->done;
    pthread_mutex_unlock(&call->lock);
    if (over)
        return false;
    if (method->write && (unknown || (broken && !client__never_sent(err))))
        call->maybe_done = true;
    int64_t pause = call->attempt < 4 ? RPC_RETRY_PAUSE_MS_MIN << call->attempt : RPC_RETRY_PAUSE_MS_MAX;
    if (pause > RPC_RETRY_PAUSE_MS_MAX)
        pause = RPC_RETRY_PAUSE_MS_MAX;
    if (time_mono_ms() + pause >= call->route_until_ms) {
        if (!leader)
            return false;
        no_leader(call, err);
        return true;
    }
    if (call->last_error == NULL)
        call->last_error = xmalloc(sizeof(*err));
    *call->last_error = *err;
    call->attempt++;
    log_debug("rpc.retry", "method=%s request=%s attempt=%u error=\"%s\"", method->path, call->request_id, call->attempt, err->text);
    rpc_call_ref(call);
    call->task.run = run_again;
    pool_submit_later(rpc__pool_of(method), &call->task, pause);
    return true;
}

static void on_forwarded(void *ud, int status, grpc_byte_buffer *response, const struct error *err, bool answered)
{
    struct rpc_call *call = ud;

    if (status == STATUS_OK || !forward__retry(call, status, err, answered))
        server__finish_raw(call, response, status, err);
    rpc_call_unref(call);
}

/* ---- routing ---- */

/* Sends the call to `channel`; takes the handler's reference unless it fails. */
static int forward(struct rpc_call *call, struct rpc_channel *channel, struct error *err)
{
    struct md_list metadata = {0};
    int rc;

    if (call->forwarded >= RPC_FORWARDS_MAX)
        return error_set(err, STATUS_UNAVAILABLE, "the call was forwarded %u times: the members disagree about where it runs", call->forwarded);
    rc = build_metadata(call, &metadata, err);
    if (rc == STATUS_OK) {
        if (call->method->client_streaming || call->method->server_streaming)
            forward_stream(call, channel, &metadata);
        else
            client__unary_raw(channel, call->method, call->payload, &metadata, call, call->deadline_ms, false, on_forwarded, call);
    }
    md_free(&metadata);
    return rc;
}

int rpc_forward(struct rpc_call *call, struct rpc_channel *channel, struct error *err)
{
    int rc = forward(call, channel, err);
    return rc == STATUS_OK ? RPC_LATER : rc;
}

static void start_routing(struct rpc_call *call)
{
    if (call->route_until_ms == 0) {
        call->route_until_ms = time_mono_ms() + RPC_RETRY_MS_MAX;
        if (call->deadline_ms < call->route_until_ms)
            call->route_until_ms = call->deadline_ms;
    }
    call->routed = true;
}

bool forward__at_once(struct rpc_call *call)
{
    const struct method *method = call->method;
    struct error err = ERROR_INIT;

    if (method->route != RPC_ROUTE_LEADER || method->client_streaming || method->server_streaming || call->payload == NULL || rpc__policy.route_now == NULL ||
        rpc__is_grpc_service(method))
        return false;
    struct rpc_channel *channel = rpc__policy.route_now(rpc__policy.ud, call);
    if (channel == NULL)
        return false;
    start_routing(call);
    if (forward(call, channel, &err) != STATUS_OK)
        server__fail(call, err.code, &err);
    rpc_channel_unref(channel);
    return true;
}

void forward__dispatch(struct rpc_call *call)
{
    struct rpc_channel *channel = NULL;
    struct error err = ERROR_INIT;

    if (call->method->route == RPC_ROUTE_LOCAL || rpc__policy.route == NULL || rpc__is_grpc_service(call->method)) {
        server__run_local(call);
        return;
    }
    if (rpc_call_cancelled(call)) { /* while it waited for a worker or for its next attempt */
        error_set(&err, STATUS_CANCELLED, "the call was cancelled");
        server__fail(call, err.code, &err);
        return;
    }
    start_routing(call);
    int rc = rpc__policy.route(rpc__policy.ud, call, call->request, call->attempt, call->last_error, &channel, &err);
    if (rc == STATUS_UNAVAILABLE && call->maybe_done) {
        no_leader(call, &err);
        rpc_call_unref(call);
        return;
    }
    if (rc != STATUS_OK) {
        server__fail(call, rc, &err);
        return;
    }
    if (channel == NULL) {
        server__run_local(call);
        return;
    }
    if (forward(call, channel, &err) != STATUS_OK)
        server__fail(call, err.code, &err);
    rpc_channel_unref(channel);
}
