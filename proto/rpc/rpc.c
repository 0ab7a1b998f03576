/* Start and end of the gRPC runtime, completion queue threads, bindings, and the helpers that both sides share.
 *
 * Threads: the queue threads run tag callbacks only; nothing here blocks on them. What may fail: packing and unpacking. */
#include "rpc_private.h"
#include <grpc/slice.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct rpc_policy rpc__policy;
_Thread_local bool rpc__on_queue_thread;
struct pool *rpc__pool_public, *rpc__pool_agent, *rpc__pool_long;

static struct {
    unsigned count;
    grpc_completion_queue *queues[RPC_CQ_THREADS_MAX];
    pthread_t threads[RPC_CQ_THREADS_MAX];
    atomic_uint next;
    struct binding *bindings; /* by method index; written before the first server listens */
    size_t method_count;
    bool running;
} rt;

/* gRPC reports as errors what is ordinary here (no name in a pinned certificate, peers that go away). */
static void log_from_grpc(gpr_log_func_args *args)
{
    log_debug("grpc.core", "severity=%s text=\"%s\"", gpr_log_severity_string(args->severity), args->message);
}

static void *queue_main(void *arg)
{
    grpc_completion_queue *queue = arg;

    rpc__on_queue_thread = true;
    for (;;) {
        grpc_event event = grpc_completion_queue_next(queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (event.type != GRPC_OP_COMPLETE)
            continue;
        struct tag *tag = event.tag;
        atomic_load_explicit(&tag->posted, memory_order_acquire);
        tag->fn(tag, event.success != 0);
    }
}

static void bindings_init(void)
{
    if (rt.bindings != NULL)
        return;
    rt.method_count = registry_method_count();
    rt.bindings = xcalloc(rt.method_count + 1, sizeof(*rt.bindings));
}

void rpc_init(void)
{
    covey_assert(!rt.running);
    gpr_set_log_function(log_from_grpc);
    gpr_set_log_verbosity(log_on(LOG_LEVEL_DEBUG) ? GPR_LOG_SEVERITY_DEBUG : GPR_LOG_SEVERITY_ERROR);
    tls_init();
    grpc_init();
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    rt.count = cores < 4 ? 1 : (unsigned)(cores / 2);
    if (rt.count > RPC_CQ_THREADS_MAX)
        rt.count = RPC_CQ_THREADS_MAX;
    for (unsigned i = 0; i < rt.count; i++) {
        rt.queues[i] = grpc_completion_queue_create_for_next(NULL);
        if (pthread_create(&rt.threads[i], NULL, queue_main, rt.queues[i]) != 0)
            core_panic(__FILE__, __LINE__, "cannot start a completion queue thread");
        pthread_setname_np(rt.threads[i], "rpc-queue");
    }
    rpc__pool_public = pool__create("rpc-public", RPC_WORKERS_MAX, RPC_QUEUED_CALLS_MAX);
    rpc__pool_agent = pool__create("rpc-agent", RPC_AGENT_WORKERS_MAX, RPC_QUEUED_CALLS_MAX);
    rpc__pool_long = pool__create("rpc-long", RPC_LONG_MAX, 0);
    bindings_init();
    health__init();
    reflection__init();
    rt.running = true;
}

void rpc_shutdown(void)
{
    if (!rt.running)
        return;
    health__shutdown();
    pool_timer_stop();
    pool__destroy(rpc__pool_public);
    pool__destroy(rpc__pool_agent);
    pool__destroy(rpc__pool_long);
    rpc__pool_public = rpc__pool_agent = rpc__pool_long = NULL;
    for (unsigned i = 0; i < rt.count; i++)
        grpc_completion_queue_shutdown(rt.queues[i]);
    for (unsigned i = 0; i < rt.count; i++) {
        pthread_join(rt.threads[i], NULL);
        grpc_completion_queue_destroy(rt.queues[i]);
    }
    free(rt.bindings);
    rt.bindings = NULL;
    rt.running = false;
    memset(&rpc__policy, 0, sizeof(rpc__policy));
    grpc_shutdown_blocking();
}

unsigned rpc__queue_count(void)
{
    return rt.count;
}

grpc_completion_queue *rpc__queue(unsigned index)
{
    return rt.queues[index % rt.count];
}

grpc_completion_queue *rpc__next_queue(void)
{
    return rpc__queue(atomic_fetch_add_explicit(&rt.next, 1, memory_order_relaxed));
}

void rpc_set_policy(const struct rpc_policy *policy)
{
    rpc__policy = *policy;
}

void rpc_bind(const char *service, const struct rpc_binding *bindings, size_t count, void *ud)
{
    bindings_init();
    for (size_t i = 0; i < rt.method_count; i++) {
        const struct method *method = registry_method((unsigned)i);
        if (strcmp(method->service, service) == 0)
            rt.bindings[method->index].bound = true;
    }
    for (size_t i = 0; i < count; i++) {
        const struct method *method = registry_method_by_name(service, bindings[i].method);
        if (method == NULL)
            core_panic(__FILE__, __LINE__, "no method %s/%s in the contract", service, bindings[i].method);
        rt.bindings[method->index].handler = bindings[i].handler;
        rt.bindings[method->index].ud = ud;
    }
}

const struct binding *rpc__binding(const struct method *method)
{
    return &rt.bindings[method->index];
}

bool rpc__is_grpc_service(const struct method *method)
{
    return str_prefix(method->service, "grpc.");
}

bool rpc__method_long(const struct method *method)
{
    return method->is_long || (rpc__is_grpc_service(method) && method->server_streaming);
}

struct pool *rpc__pool_of(const struct method *method)
{
    if (rpc__method_long(method) || method->client_streaming)
        return rpc__pool_long;
    if (str_prefix(method->service, "covey.internal.") || rpc__is_grpc_service(method))
        return rpc__pool_agent;
    return rpc__pool_public;
}

/* ---- time ---- */

gpr_timespec rpc__timespec(int64_t deadline_ms)
{
    if (deadline_ms == INT64_MAX)
        return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(deadline_ms - time_mono_ms(), GPR_TIMESPAN));
}

int64_t rpc__mono_ms(gpr_timespec deadline)
{
    gpr_timespec inf = gpr_inf_future(deadline.clock_type);
    if (gpr_time_cmp(deadline, inf) == 0)
        return INT64_MAX;
    gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
    if (left.tv_sec > INT_MAX) /* some eighty years: no limit */
        return INT64_MAX;
    return time_mono_ms() + left.tv_sec * 1000 + left.tv_nsec / 1000000;
}

void rpc__cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    covey_assert(pthread_cond_init(cond, &attr) == 0);
    pthread_condattr_destroy(&attr);
}

bool rpc__cond_wait(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t until_ms)
{
    if (until_ms == INT64_MAX)
        return pthread_cond_wait(cond, lock) == 0;
    int64_t left = until_ms - time_mono_ms();
    if (left <= 0)
        return false;
    struct timespec at;
    time_deadline(&at, left);
    return pthread_cond_timedwait(cond, lock, &at) == 0;
}

/* ---- messages ---- */

grpc_byte_buffer *rpc__pack(const ProtobufCMessage *message, struct error *err)
{
    size_t size = message != NULL ? protobuf_c_message_get_packed_size(message) : 0;

    if (size > CODEC_MESSAGE_MAX) {
        error_set(err, STATUS_RESOURCE_EXHAUSTED, "message of %zu bytes is larger than the limit of %d", size, CODEC_MESSAGE_MAX);
        return NULL;
    }
    grpc_slice slice = grpc_slice_malloc(size);
    if (size > 0)
        protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

ProtobufCMessage *rpc__unpack(const ProtobufCMessageDescriptor *descriptor, grpc_byte_buffer *buffer, struct arena *arena, struct error *err)
{
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, buffer)) {
        error_set(err, STATUS_INTERNAL, "cannot read a message of type %s", descriptor->name);
        return NULL;
    }
    ProtobufCMessage *message;
    grpc_slice *single, second;
    bool more = false;
    /* The usual message is one slice: read in place. Otherwise join them. */
    if (grpc_byte_buffer_length(buffer) == 0) {
        message = codec_unpack(descriptor, (const uint8_t *)"", 0, arena, err);
    } else if (buffer->type == GRPC_BB_RAW && buffer->data.raw.compression == GRPC_COMPRESS_NONE &&
               buffer->data.raw.slice_buffer.count == 1 && grpc_byte_buffer_reader_peek(&reader, &single)) {
        message = codec_unpack(descriptor, GRPC_SLICE_START_PTR(*single), GRPC_SLICE_LENGTH(*single), arena, err);
    } else {
        second = grpc_byte_buffer_reader_readall(&reader);
        more = true;
        message = codec_unpack(descriptor, GRPC_SLICE_START_PTR(second), GRPC_SLICE_LENGTH(second), arena, err);
    }
    if (more)
        grpc_slice_unref(second);
    grpc_byte_buffer_reader_destroy(&reader);
    return message;
}

/* ---- metadata ---- */

bool md_add_slices(struct md_list *list, grpc_slice key, grpc_slice value)
{
    if (list->count == RPC_METADATA_MAX)
        return false;
    memset(&list->items[list->count], 0, sizeof(list->items[0]));
    list->items[list->count].key = grpc_slice_ref(key);
    list->items[list->count].value = grpc_slice_ref(value);
    list->count++;
    return true;
}

bool md_add(struct md_list *list, const char *key, const char *value)
{
    grpc_slice key_slice = grpc_slice_from_copied_string(key);
    grpc_slice value_slice = grpc_slice_from_copied_string(value);
    bool ok = grpc_header_key_is_legal(key_slice) && grpc_header_nonbin_value_is_legal(value_slice) && md_add_slices(list, key_slice, value_slice);
    grpc_slice_unref(key_slice);
    grpc_slice_unref(value_slice);
    return ok;
}

void md_free(struct md_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        grpc_slice_unref(list->items[i].key);
        grpc_slice_unref(list->items[i].value);
    }
    list->count = 0;
}

static const grpc_metadata *md_find(const grpc_metadata_array *array, const char *key)
{
    size_t len = strlen(key);
    for (size_t i = 0; i < array->count; i++) {
        const grpc_slice *k = &array->metadata[i].key;
        if (GRPC_SLICE_LENGTH(*k) == len && memcmp(GRPC_SLICE_START_PTR(*k), key, len) == 0)
            return &array->metadata[i];
    }
    return NULL;
}

bool md_has(const grpc_metadata_array *array, const char *key)
{
    return md_find(array, key) != NULL;
}

bool md_get(const grpc_metadata_array *array, const char *key, char *out, size_t size)
{
    const grpc_metadata *item = md_find(array, key);
    if (item == NULL || GRPC_SLICE_LENGTH(item->value) >= size)
        return false;
    memcpy(out, GRPC_SLICE_START_PTR(item->value), GRPC_SLICE_LENGTH(item->value));
    out[GRPC_SLICE_LENGTH(item->value)] = '\0';
    return true;
}

void rpc__error_to_md(const struct error *err, struct md_list *list)
{
    char text[32];

    /* Tells a covey server's own answer from a status that the transport made up: only the latter means a broken connection. */
    md_add(list, "covey-answered", "1");
    if (err == NULL)
        return;
    if (err->not_leader)
        md_add(list, "covey-not-leader", "1");
    if (err->leader != 0) {
        snprintf(text, sizeof(text), "%llu", (unsigned long long)err->leader);
        md_add(list, "covey-leader", text);
    }
    if (err->retry_ms != 0) {
        snprintf(text, sizeof(text), "%u", (unsigned)err->retry_ms);
        md_add(list, "covey-retry-ms", text);
    }
}

void rpc__error_from_md(const grpc_metadata_array *array, struct error *err)
{
    char text[32];
    int64_t value;

    if (md_get(array, "covey-not-leader", text, sizeof(text)))
        err->not_leader = strcmp(text, "1") == 0;
    if (md_get(array, "covey-leader", text, sizeof(text)) && parse_i64(text, 0, INT64_MAX, &value) == 0)
        err->leader = (uint64_t)value;
    if (md_get(array, "covey-retry-ms", text, sizeof(text)) && parse_i64(text, 0, UINT32_MAX, &value) == 0)
        err->retry_ms = (uint32_t)value;
}
