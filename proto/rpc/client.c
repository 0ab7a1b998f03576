/* Channels and the client side of calls.
 *
 * Threads: any; blocking functions must not be called on a queue thread (asserted). What may fail: every call; the status says how. */
#include "rpc_private.h"
#include <errno.h>
#include <grpc/support/alloc.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL_OF(tag_pointer, member) ((struct rpc_call *)((char *)(tag_pointer) - offsetof(struct rpc_call, member)))

/* ---- channels ---- */

static grpc_arg arg_int(const char *key, int value)
{
    grpc_arg arg;
    memset(&arg, 0, sizeof(arg));
    arg.type = GRPC_ARG_INTEGER;
    arg.key = (char *)key;
    arg.value.integer = value;
    return arg;
}

static struct rpc_channel *channel_new(const char *target, grpc_channel_credentials *credentials, struct tls_pin *pin)
{
    grpc_arg args[] = {
        arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, CODEC_MESSAGE_MAX),
        arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, CODEC_MESSAGE_MAX),
        arg_int(GRPC_ARG_MAX_METADATA_SIZE, RPC_METADATA_BYTES_MAX),
        /* A member that comes back must be found at once: the default maximum is two minutes. */
        arg_int(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        arg_int(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 2000), /* this is the time that one attempt has, TLS handshake on a busy machine included */
        arg_int(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000),
        /* Retries are decided by forward.c; proxies and service configs from DNS have no place between members. */
        arg_int(GRPC_ARG_ENABLE_RETRIES, 0),
        arg_int(GRPC_ARG_MINIMAL_STACK, 1), /* without compression, idle timers and load reports; deadlines are kept */
        arg_int(GRPC_ARG_ENABLE_DEADLINE_CHECKS, 1),
        arg_int(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        arg_int(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
        arg_int(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, pin != NULL ? 10000 : INT_MAX),
        arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 3000), /* also how long TCP waits for an acknowledgement: a call to a member that was cut off is asked elsewhere then */
        arg_int(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
    };
    grpc_channel_args list = {sizeof(args) / sizeof(args[0]), args};
    struct rpc_channel *channel = xcalloc(1, sizeof(*channel));
    atomic_init(&channel->refs, 1);
    channel->pin = pin;
    channel->methods = xcalloc(registry_method_count() + 1, sizeof(*channel->methods));
    channel->channel = grpc_channel_create(target, credentials, &list);
    grpc_channel_credentials_release(credentials);
    return channel;
}

struct rpc_channel *rpc_channel_unix(const char *path)
{
    char *target = xasprintf("unix:%s", path);
    struct rpc_channel *channel = channel_new(target, grpc_insecure_credentials_create(), NULL);
    free(target);
    return channel;
}

struct rpc_channel *rpc_channel_tls(const char *address, const char *fingerprint, const char *alt_fingerprint, const struct identity *identity)
{
    char *target = xasprintf("dns:///%s", address);
    struct tls_pin *pin = tls_pin_create(fingerprint, alt_fingerprint);
    struct rpc_channel *channel = channel_new(target, tls_channel_credentials(pin, identity), pin);
    channel->peer = xstrdup(address);
    free(target);
    return channel;
}

struct rpc_channel *rpc_channel_peer(const char *address, const char *name, bool (*accept)(void *ud, const char *fingerprint), void *ud,
                                     const struct identity *identity)
{
    char *target = xasprintf("dns:///%s", address);
    struct tls_pin *pin = tls_pin_create_asking(accept, ud);
    struct rpc_channel *channel = channel_new(target, tls_channel_credentials(pin, identity), pin);
    channel->peer = xasprintf("%s at %s", name, address);
    free(target);
    return channel;
}

struct rpc_channel *rpc_channel_ref(struct rpc_channel *channel)
{
    atomic_fetch_add(&channel->refs, 1);
    return channel;
}

void rpc_channel_unref(struct rpc_channel *channel)
{
    if (channel == NULL || atomic_fetch_sub(&channel->refs, 1) != 1)
        return;
    grpc_channel_destroy(channel->channel);
    tls_pin_unref(channel->pin);
    free(channel->peer);
    free((void *)channel->methods);
    free(channel);
}

char *rpc_channel_server_cert(struct rpc_channel *channel)
{
    return channel->pin != NULL ? tls_pin_cert(channel->pin) : NULL;
}

static grpc_call *call_create(struct rpc_channel *channel, const struct method *method, const struct rpc_call *parent, int64_t deadline_ms)
{
    /* Registering twice gives the same handle, so a race is harmless. */
    void *handle = atomic_load_explicit(&channel->methods[method->index], memory_order_acquire);
    if (handle == NULL) {
        handle = grpc_channel_register_call(channel->channel, method->path, NULL, NULL);
        atomic_store_explicit(&channel->methods[method->index], handle, memory_order_release);
    }
    grpc_call *parent_call = parent != NULL && parent->is_server ? parent->call : NULL;
    uint32_t mask = parent_call != NULL ? GRPC_PROPAGATE_DEADLINE | GRPC_PROPAGATE_CANCELLATION : 0;
    return grpc_channel_create_registered_call(channel->channel, parent_call, mask, rpc__next_queue(), handle, rpc__timespec(deadline_ms), NULL);
}

/* A connection that was never made has carried nothing. */
bool client__never_sent(const struct error *err)
{
    return strstr(err->text, "failed to connect") != NULL || strstr(err->text, "Failed to connect") != NULL;
}

/* Who may be there all the same is told by what is missing: the system's reason or the verifier's. */
bool rpc_refused(const struct error *err)
{
    static const int reasons[] = {ECONNREFUSED, EHOSTUNREACH, ENETUNREACH};
    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++) {
        if (strstr(err->text, strerror(reasons[i])) != NULL)
            return true;
    }
    return strstr(err->text, "the server's certificate") != NULL;
}

/* What is of use to people in gRPC's words about a connection: the verifier's own text (tls.c), the system's reason. NULL = nothing. */
static const char *reason_of(const char *text)
{
    static const char refused[] = "remote host: ";
    const char *certificate = strstr(text, "the server's certificate"), *system = strstr(text, refused);
    return certificate != NULL ? certificate : system != NULL ? system + sizeof(refused) - 1 : NULL;
}

/* What gRPC says of a broken connection names neither the member nor a reason that its users know. */
static void name_peer(const struct rpc_channel *channel, struct error *err)
{
    if (channel->peer == NULL || (err->code != STATUS_UNAVAILABLE && err->code != STATUS_UNKNOWN))
        return;
    log_debug("rpc.connection", "peer=\"%s\" error=\"%s\"", channel->peer, err->text);
    struct error raw = *err;
    const char *why = reason_of(raw.text);
    error_set(err, err->code, "%s%s%s%s%s", client__never_sent(err) ? "failed to connect to " : "the connection to ", channel->peer,
              client__never_sent(err) ? "" : " broke", why != NULL ? ": " : "", why != NULL ? why : "");
}

static void status_to_error(const struct rpc_channel *channel, grpc_status_code status, grpc_slice details, const grpc_metadata_array *trailing,
                            struct error *err)
{
    int len = (int)GRPC_SLICE_LENGTH(details);
    if (status == GRPC_STATUS_OK) {
        *err = (struct error)ERROR_INIT;
        return;
    }
    error_set(err, status > GRPC_STATUS_UNAUTHENTICATED ? STATUS_UNKNOWN : (enum status)status, "%.*s", len,
              (const char *)GRPC_SLICE_START_PTR(details));
    if (!md_has(trailing, "covey-answered"))
        name_peer(channel, err);
    rpc__error_from_md(trailing, err);
}

/* ---- unary ---- */

struct unary {
    struct tag tag;
    grpc_call *call;
    struct rpc_channel *channel;
    struct rpc_call *parent; /* its grpc_call must outlive ours */
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *request, *response;
    grpc_status_code status;
    grpc_slice details;
    unary_done done;
    void *ud;
};

static void on_unary(struct tag *tag, bool ok)
{
    struct unary *unary = (struct unary *)tag;
    struct error err;
    (void)ok; /* always true with RECV_STATUS_ON_CLIENT: the status tells */

    if (unary->status == GRPC_STATUS_OK && unary->response == NULL) {
        error_set(&err, STATUS_INTERNAL, "the server sent no response");
    } else {
        status_to_error(unary->channel, unary->status, unary->details, &unary->trailing, &err);
    }
    if (err.code != STATUS_OK && unary->response != NULL) {
        grpc_byte_buffer_destroy(unary->response);
        unary->response = NULL;
    }
    unary->done(unary->ud, err.code, unary->response, &err, md_has(&unary->trailing, "covey-answered"));
    grpc_metadata_array_destroy(&unary->initial);
    grpc_metadata_array_destroy(&unary->trailing);
    grpc_slice_unref(unary->details);
    grpc_byte_buffer_destroy(unary->request);
    grpc_call_unref(unary->call);
    if (unary->parent != NULL)
        call__drop(unary->parent);
    rpc_channel_unref(unary->channel);
    free(unary);
}

/* keep: the call is returned with a reference (for rpc_unary_cancel), else NULL. */
static grpc_call *unary_start(struct rpc_channel *channel, const struct method *method, grpc_byte_buffer *request, const struct md_list *metadata,
                              struct rpc_call *parent, int64_t deadline_ms, bool wait_for_ready, unary_done done, void *ud, bool keep)
{
    struct unary *unary = xcalloc(1, sizeof(*unary));
    grpc_call *kept = NULL;
    grpc_op ops[6];

    unary->tag.fn = on_unary;
    unary->channel = rpc_channel_ref(channel);
    if (parent != NULL) {
        call__hold(parent);
        unary->parent = parent;
    }
    unary->call = call_create(channel, method, parent, deadline_ms);
    unary->request = grpc_byte_buffer_copy(request); /* shares the bytes */
    unary->done = done;
    unary->ud = ud;
    grpc_metadata_array_init(&unary->initial);
    grpc_metadata_array_init(&unary->trailing);
    memset(ops, 0, sizeof(ops));
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[0].flags = wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY | GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET : 0;
    ops[0].data.send_initial_metadata.count = metadata->count;
    ops[0].data.send_initial_metadata.metadata = (grpc_metadata *)metadata->items;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = unary->request;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &unary->initial;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &unary->response;
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &unary->trailing;
    ops[5].data.recv_status_on_client.status = &unary->status;
    ops[5].data.recv_status_on_client.status_details = &unary->details;
    if (keep) {
        kept = unary->call;
        grpc_call_ref(kept); /* before it can end */
    }
    grpc_call *call = unary->call; /* unary may be gone as soon as the batch runs */
    struct tag *tag = tag_post(&unary->tag);
    grpc_call_error rc = grpc_call_start_batch(call, ops, 6, tag, NULL);
    if (rc != GRPC_CALL_OK)
        core_panic(__FILE__, __LINE__, "call batch of %s refused: %s", method->path, grpc_call_error_to_string(rc));
    return kept;
}

void client__unary_raw(struct rpc_channel *channel, const struct method *method, grpc_byte_buffer *request, const struct md_list *metadata,
                       struct rpc_call *parent, int64_t deadline_ms, bool wait_for_ready, unary_done done, void *ud)
{
    (void)unary_start(channel, method, request, metadata, parent, deadline_ms, wait_for_ready, done, ud, false);
}

static int64_t deadline_of(const struct method *method, const struct rpc_options *options)
{
    int64_t timeout = options->timeout_ms;
    int64_t deadline;
    if (timeout < 0 || (timeout == 0 && rpc__method_long(method)))
        deadline = INT64_MAX;
    else
        deadline = time_mono_ms() + (timeout == 0 ? RPC_DEADLINE_MS_DEFAULT : timeout);
    if (options->on_behalf_of != NULL && options->on_behalf_of->deadline_ms < deadline)
        deadline = options->on_behalf_of->deadline_ms;
    return deadline;
}

static int build_metadata(const struct method *method, const struct rpc_options *options, struct md_list *list, struct error *err)
{
    char id[37];
    list->count = 0;
    if (options->on_behalf_of != NULL)
        caller__to_md(options->on_behalf_of, list);
    if (method->write) {
        const char *given = options->request_id;
        if (given == NULL)
            uuid_new(id);
        if (!md_add(list, "covey-request-id", given != NULL ? given : id))
            return error_set(err, STATUS_INVALID_ARGUMENT, "invalid request id");
    }
    for (size_t i = 0; options->metadata != NULL && options->metadata[i] != NULL && options->metadata[i + 1] != NULL; i += 2) {
        if (!md_add(list, options->metadata[i], options->metadata[i + 1])) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "metadata \"%s\" is not a legal header, or there are too many", options->metadata[i]);
        }
    }
    return STATUS_OK;
}

static const struct rpc_options no_options;

struct async {
    const struct method *method;
    void (*done)(int status, const ProtobufCMessage *response, const struct error *err, void *ud);
    void *ud;
};

static void on_async(void *ud, int status, grpc_byte_buffer *response, const struct error *err, bool answered)
{
    struct async *async = ud;
    struct error local = *err;
    struct arena arena;
    ProtobufCMessage *message = NULL;
    (void)answered;

    arena_init(&arena);
    if (response != NULL) {
        message = rpc__unpack(async->method->output, response, &arena, &local);
        grpc_byte_buffer_destroy(response);
        if (message == NULL)
            status = local.code = STATUS_INTERNAL;
    }
    async->done(status, message, &local, async->ud);
    arena_clear(&arena);
    free(async);
}

/* The handle of a unary call is the call itself. */
static struct rpc_unary *async_start(struct rpc_channel *channel, const struct method *method, const ProtobufCMessage *request,
                                     const struct rpc_options *options,
                                     void (*done)(int status, const ProtobufCMessage *response, const struct error *err, void *ud), void *ud, bool keep)
{
    struct error err = ERROR_INIT;
    struct md_list metadata = {0};
    if (options == NULL)
        options = &no_options;
    grpc_byte_buffer *buffer = rpc__pack(request, &err);
    if (buffer == NULL || build_metadata(method, options, &metadata, &err) != STATUS_OK) {
        if (buffer != NULL)
            grpc_byte_buffer_destroy(buffer);
        md_free(&metadata);
        done(err.code, NULL, &err, ud);
        return NULL;
    }
    struct async *async = xcalloc(1, sizeof(*async));
    async->method = method;
    async->done = done;
    async->ud = ud;
    grpc_call *kept = unary_start(channel, method, buffer, &metadata, (struct rpc_call *)options->on_behalf_of, deadline_of(method, options),
                                  options->wait_for_ready, on_async, async, keep);
    grpc_byte_buffer_destroy(buffer);
    md_free(&metadata);
    return (struct rpc_unary *)kept;
}

void rpc_unary_async(struct rpc_channel *channel, const struct method *method, const ProtobufCMessage *request, const struct rpc_options *options,
                     void (*done)(int status, const ProtobufCMessage *response, const struct error *err, void *ud), void *ud)
{
    (void)async_start(channel, method, request, options, done, ud, false);
}

struct rpc_unary *rpc_unary_start(struct rpc_channel *channel, const struct method *method, const ProtobufCMessage *request,
                                  const struct rpc_options *options,
                                  void (*done)(int status, const ProtobufCMessage *response, const struct error *err, void *ud), void *ud)
{
    return async_start(channel, method, request, options, done, ud, true);
}

void rpc_unary_cancel(struct rpc_unary *unary)
{
    if (unary != NULL)
        grpc_call_cancel((grpc_call *)unary, NULL);
}

void rpc_unary_free(struct rpc_unary *unary)
{
    if (unary != NULL)
        grpc_call_unref((grpc_call *)unary);
}

struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool over;
    grpc_byte_buffer *response;
    struct error err;
};

static void on_waited(void *ud, int status, grpc_byte_buffer *response, const struct error *err, bool answered)
{
    struct waiter *waiter = ud;
    (void)status;
    (void)answered;
    pthread_mutex_lock(&waiter->lock);
    waiter->response = response;
    waiter->err = *err;
    waiter->over = true;
    pthread_cond_signal(&waiter->changed);
    pthread_mutex_unlock(&waiter->lock);
}

int rpc_unary(struct rpc_channel *channel, const char *service, const char *name, const ProtobufCMessage *request, ProtobufCMessage **response,
              struct arena *arena, const struct rpc_options *options, struct error *err)
{
    const struct method *method = registry_method_by_name(service, name);
    struct md_list metadata = {0};

    covey_assert(!rpc__on_queue_thread);
    *response = NULL;
    if (options == NULL)
        options = &no_options;
    if (method == NULL || method->client_streaming || method->server_streaming)
        return error_set(err, STATUS_UNIMPLEMENTED, "no unary method %s/%s", service, name);
    grpc_byte_buffer *buffer = rpc__pack(request, err);
    if (buffer == NULL)
        return STATUS_RESOURCE_EXHAUSTED;
    int rc = build_metadata(method, options, &metadata, err);
    if (rc == STATUS_OK) {
        struct waiter waiter = {.lock = PTHREAD_MUTEX_INITIALIZER};
        rpc__cond_init(&waiter.changed);
        client__unary_raw(channel, method, buffer, &metadata, (struct rpc_call *)options->on_behalf_of, deadline_of(method, options),
                          options->wait_for_ready, on_waited, &waiter);
        pthread_mutex_lock(&waiter.lock);
        while (!waiter.over) /* gRPC ends the call at its deadline */
            pthread_cond_wait(&waiter.changed, &waiter.lock);
        pthread_mutex_unlock(&waiter.lock);
        pthread_cond_destroy(&waiter.changed);
        pthread_mutex_destroy(&waiter.lock);
        rc = waiter.err.code;
        if (waiter.response != NULL) {
            *response = rpc__unpack(method->output, waiter.response, arena, &waiter.err);
            grpc_byte_buffer_destroy(waiter.response);
            if (*response == NULL)
                rc = waiter.err.code = STATUS_INTERNAL;
        }
        if (err != NULL && rc != STATUS_OK)
            *err = waiter.err;
    }
    grpc_byte_buffer_destroy(buffer);
    md_free(&metadata);
    return rc;
}

/* ---- streams ---- */

static void on_end(struct tag *tag, bool ok)
{
    struct rpc_call *call = CALL_OF(tag, end_tag);
    (void)ok;
    call__ended(call);
    call__drop(call);
}

struct rpc_call *client__open_raw(struct rpc_channel *channel, const struct method *method, grpc_byte_buffer *request, const struct md_list *metadata,
                                  const struct rpc_call *parent, int64_t deadline_ms, bool wait_for_ready)
{
    struct rpc_call *call = call__new(false, method);
    grpc_op ops[3];
    size_t n = 0;

    call->channel = rpc_channel_ref(channel);
    call->deadline_ms = deadline_ms;
    call->end_tag.fn = on_end;
    call->call = call_create(channel, method, parent, deadline_ms);
    memset(ops, 0, sizeof(ops));
    ops[n].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[n++].data.recv_initial_metadata.recv_initial_metadata = &call->metadata;
    ops[n].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[n].data.recv_status_on_client.trailing_metadata = &call->trailing;
    ops[n].data.recv_status_on_client.status = &call->status;
    ops[n++].data.recv_status_on_client.status_details = &call->status_details;
    call__hold(call);
    grpc_call_error rc = grpc_call_start_batch(call->call, ops, n, tag_post(&call->end_tag), NULL);
    covey_assert(rc == GRPC_CALL_OK);

    memset(ops, 0, sizeof(ops));
    n = 0;
    ops[n].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[n].flags = wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY | GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET : 0;
    ops[n].data.send_initial_metadata.count = metadata->count;
    ops[n++].data.send_initial_metadata.metadata = (grpc_metadata *)metadata->items;
    pthread_mutex_lock(&call->lock);
    if (request != NULL) {
        struct outgoing *out = xcalloc(1, sizeof(*out));
        out->buffer = grpc_byte_buffer_copy(request);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = out->buffer;
        ops[n++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
        call->out_active = out; /* size 0: it never counted */
        call->close_wanted = call->closed = true;
    }
    call->sending = true;
    call__hold(call);
    rc = grpc_call_start_batch(call->call, ops, n, tag_post(&call->send_tag), NULL);
    covey_assert(rc == GRPC_CALL_OK);
    pthread_mutex_unlock(&call->lock);
    return call;
}

struct rpc_call *rpc_open(struct rpc_channel *channel, const char *service, const char *name, const ProtobufCMessage *request,
                          const struct rpc_options *options, struct error *err)
{
    const struct method *method = registry_method_by_name(service, name);
    struct md_list metadata = {0};
    grpc_byte_buffer *buffer = NULL;
    struct rpc_call *call = NULL;

    if (options == NULL)
        options = &no_options;
    if (method == NULL || !(method->client_streaming || method->server_streaming)) {
        error_set(err, STATUS_UNIMPLEMENTED, "no streaming method %s/%s", service, name);
        return NULL;
    }
    if (!method->client_streaming) {
        buffer = rpc__pack(request, err);
        if (buffer == NULL)
            return NULL;
    }
    if (build_metadata(method, options, &metadata, err) == STATUS_OK)
        call = client__open_raw(channel, method, buffer, &metadata, options->on_behalf_of, deadline_of(method, options), options->wait_for_ready);
    md_free(&metadata);
    if (buffer != NULL)
        grpc_byte_buffer_destroy(buffer);
    return call;
}

void call__client_status(struct rpc_call *call, struct error *err)
{
    status_to_error(call->channel, call->status, call->status_details, &call->trailing, err);
}

void rpc_cancel(struct rpc_call *call)
{
    if (call->is_server) {
        struct error err;
        error_set(&err, STATUS_CANCELLED, "the call was cancelled by the server");
        rpc_finish(call, NULL, err.code, &err);
        return;
    }
    grpc_call_cancel(call->call, NULL);
}
