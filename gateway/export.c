/* Files of the daemon (image exports, log files): a stream of ExportImageResponse as a raw body, or as multipart/form-data when there are two files. The
 * length is known from the first message and announced; a stream that ends early breaks the connection, so that no client takes a part for the whole.
 *
 * Threads: the connection's; the call's callbacks put bytes into a bounded queue under the lock. */
#include "request.h"
#include "covey/v1/image.pb-c.h"
#include <stdlib.h>
#include <string.h>

enum { EXPORT_FILES_MAX = 2, EXPORT_BLOCK_BYTES = 64 << 10 };

struct export {
    atomic_int refs; /* the request, the response, the call's end, its messages */
    struct rpc_call *call;

    pthread_mutex_t lock; /* protects the following */
    struct request *request;
    bool ready, paused, bad;
    bool ended, all_read, done; /* its status is here; its last message was given to us; both: the status may overtake messages */
    size_t file_count, file; /* which one is being received */
    char *names[EXPORT_FILES_MAX];
    uint64_t sizes[EXPORT_FILES_MAX], total; /* total: of the HTTP body */
    char boundary[49];
    struct buf data;
    size_t taken; /* of data */
};

static void export_unref(struct export *e)
{
    if (atomic_fetch_sub(&e->refs, 1) != 1)
        return;
    rpc_call_unref(e->call);
    for (size_t i = 0; i < EXPORT_FILES_MAX; i++)
        free(e->names[i]);
    buf_free(&e->data);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

static void part_head(const struct export *e, size_t file, struct buf *out)
{
    if (e->file_count == 2)
        buf_printf(out, "%s--%s\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"%s\"\r\nContent-Type: application/octet-stream\r\n\r\n",
                   file > 0 ? "\r\n" : "", e->boundary, file == 0 ? "metadata" : "rootfs", e->names[file]);
}

static void part_tail(const struct export *e, struct buf *out)
{
    if (e->file_count == 2)
        buf_printf(out, "\r\n--%s--\r\n", e->boundary);
}

static bool plain_name(const char *name)
{
    return !str_empty(name) && strpbrk(name, "\"\\\r\n/;") == NULL;
}

/* The first message: names and sizes. */
static void take_files(struct export *e, const Covey__V1__ExportImageResponse *message)
{
    struct buf framing = {0};
    e->bad = message->n_files < 1 || message->n_files > EXPORT_FILES_MAX;
    for (size_t i = 0; i < message->n_files && !e->bad; i++) {
        e->bad = !plain_name(message->files[i]->name) || message->files[i]->size < 0;
        e->names[i] = xstrdup(message->files[i]->name);
        e->sizes[i] = (uint64_t)message->files[i]->size;
        e->total += e->sizes[i];
    }
    if (e->bad)
        return;
    e->file_count = message->n_files;
    for (size_t i = 0; i < e->file_count; i++)
        part_head(e, i, &framing);
    part_tail(e, &framing);
    e->total += framing.len;
    buf_free(&framing);
    part_head(e, 0, &e->data);
}

static void take_data(struct export *e, const Covey__V1__ExportImageResponse *message)
{
    if (message->data.len == 0)
        return;
    if (message->file < e->file || message->file >= e->file_count) {
        e->bad = true;
        return;
    }
    while (e->file < message->file)
        part_head(e, ++e->file, &e->data);
    if (e->taken > 0) { /* what was sent makes room */
        memmove(e->data.data, e->data.data + e->taken, e->data.len - e->taken);
        e->data.len -= e->taken;
        e->taken = 0;
    }
    buf_add(&e->data, message->data.data, message->data.len);
}

static void wake_locked(struct export *e)
{
    if (e->request != NULL)
        request_wake(e->request);
}

/* Gives back the reference of that part of the call. */
static void part_over(struct export *e, bool *part)
{
    pthread_mutex_lock(&e->lock);
    *part = true;
    e->done = e->ended && e->all_read;
    wake_locked(e);
    pthread_mutex_unlock(&e->lock);
    export_unref(e);
}

static bool on_message(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct export *e = ud;
    const Covey__V1__ExportImageResponse *in = (const Covey__V1__ExportImageResponse *)message;
    (void)call;
    if (in == NULL) {
        part_over(e, &e->all_read);
        return false;
    }
    pthread_mutex_lock(&e->lock);
    if (e->request != NULL && !e->bad) {
        if (!e->ready)
            take_files(e, in);
        e->ready = true;
        if (!e->bad)
            take_data(e, in);
    }
    e->paused = e->request != NULL && e->data.len - e->taken > GATEWAY_EXPORT_PENDING_MAX;
    bool more = !e->paused;
    wake_locked(e);
    pthread_mutex_unlock(&e->lock);
    return more;
}

static void on_done(struct rpc_call *call, void *ud)
{
    struct export *e = ud;
    (void)call;
    part_over(e, &e->ended);
}

static void on_gone(struct request *r)
{
    struct export *e = r->state;
    rpc_cancel(e->call);
}

static int open_call(struct request *r, struct error *err)
{
    const struct method *method = r->match.route->method;
    ProtobufCMessage *message;
    struct call_metadata metadata;
    struct rpc_options options = request_options(r, &metadata);
    options.timeout_ms = -1;
    if (bind_message(r, &message, err) != STATUS_OK)
        return err->code;
    struct rpc_call *call = rpc_open(gateway_channel(), method->service, method->name, message, &options, err);
    if (call == NULL)
        return err->code;
    struct export *e = xcalloc(1, sizeof(*e));
    atomic_init(&e->refs, 3);
    e->call = call;
    e->request = r;
    random_hex(e->boundary, (sizeof(e->boundary) - 1) / 2);
    pthread_mutex_init(&e->lock, NULL);
    r->state = e;
    watch_add(r, on_gone);
    rpc_on_message(call, on_message, e);
    rpc_call_on_done(call, on_done, e);
    return STATUS_OK;
}

/* The rest of the framing, once the call has ended well. */
static bool finish_locked(struct export *e)
{
    while (e->file + 1 < e->file_count)
        part_head(e, ++e->file, &e->data);
    if (e->file_count == 2 && e->file == 1) {
        part_tail(e, &e->data);
        e->file++; /* once */
        return true;
    }
    return false;
}

static ssize_t on_read(void *cls, uint64_t pos, char *out, size_t max)
{
    struct export *e = cls;
    struct request *r = NULL;
    ssize_t n = 0;
    bool resume = false;
    (void)pos;
    pthread_mutex_lock(&e->lock);
    size_t have = e->data.len - e->taken;
    if (have == 0 && e->done && !e->bad && rpc_status(e->call, NULL) == STATUS_OK && finish_locked(e))
        have = e->data.len - e->taken;
    if (have > 0 && !e->bad) {
        n = (ssize_t)(have < max ? have : max);
        memcpy(out, e->data.data + e->taken, (size_t)n);
        e->taken += (size_t)n;
        if (e->taken == e->data.len)
            e->taken = e->data.len = 0;
    } else if (e->done || e->bad) {
        n = MHD_CONTENT_READER_END_WITH_ERROR; /* MHD stops asking when the announced length was sent: this is too early */
    } else {
        r = e->request;
    }
    resume = e->paused && e->data.len - e->taken < GATEWAY_EXPORT_PENDING_MAX / 2;
    if (resume)
        e->paused = false;
    pthread_mutex_unlock(&e->lock);
    if (resume)
        rpc_read_resume(e->call);
    if (r != NULL)
        request_suspend(r);
    return n;
}

static void on_free(void *cls)
{
    export_unref(cls);
}

static enum MHD_Result send_files(struct request *r, struct export *e)
{
    char type[96] = "application/octet-stream";
    atomic_fetch_add(&e->refs, 1);
    struct MHD_Response *response = MHD_create_response_from_callback(e->total, EXPORT_BLOCK_BYTES, on_read, e, on_free);
    if (response == NULL)
        core_oom();
    bool ok = true;
    if (e->file_count == 2) {
        snprintf(type, sizeof(type), "multipart/form-data; boundary=%s", e->boundary);
    } else {
        char *disposition = xasprintf("inline;filename=%s", e->names[0]);
        ok = MHD_add_response_header(response, "Content-Disposition", disposition) == MHD_YES;
        free(disposition);
    }
    ok = ok && MHD_add_response_header(response, "Content-Type", type) == MHD_YES;
    enum MHD_Result rc = ok ? MHD_queue_response(r->connection, 200, response) : MHD_NO;
    MHD_destroy_response(response);
    return rc;
}

static enum MHD_Result run(struct request *r)
{
    struct export *e = r->state;
    struct error err = ERROR_INIT;
    if (e == NULL) {
        if (open_call(r, &err) != STATUS_OK) {
            answer_status(r, &err);
            return answer_send(r);
        }
        request_suspend(r);
        return MHD_YES;
    }
    pthread_mutex_lock(&e->lock);
    bool ready = e->ready, done = e->done, bad = e->bad;
    pthread_mutex_unlock(&e->lock);
    if (!ready && !done) {
        request_suspend(r);
        return MHD_YES;
    }
    if (ready && !bad)
        return send_files(r, e);
    if (bad || rpc_status(e->call, &err) == STATUS_OK)
        answer_error(r, 500, "the daemon's answer makes no sense");
    else
        answer_status(r, &err);
    return answer_send(r);
}

static void end(struct request *r)
{
    struct export *e = r->state;
    if (e == NULL)
        return;
    watch_remove(r);
    r->state = NULL;
    pthread_mutex_lock(&e->lock);
    e->request = NULL;
    e->paused = false;
    pthread_mutex_unlock(&e->lock);
    rpc_cancel(e->call); /* nothing happens when it has ended */
    rpc_read_resume(e->call);
    export_unref(e);
}

const struct handler handler_export = {.name = "file-export", .run = run, .close = end};
