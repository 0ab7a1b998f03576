/* POST /1.0/images with a file as body: streamed into Images.UploadImage as it comes, one file or (multipart) two, without a temporary file. When the
 * stream is full the connection is suspended and tried again; the answer is given when the whole body was received. A JSON body is another kind of
 * request, which is not implemented.
 *
 * Threads: the connection's, except for the call's two callbacks; what they share is under the upload's lock. */
#include "hub.h"
#include "request.h"
#include "covey/v1/image.pb-c.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { UPLOAD_FORM_BUFFER = 32 << 10, UPLOAD_PROPERTIES_MAX = 256 };

struct chunk {
    struct chunk *next;
    bool rootfs;
    struct buf data;
};

struct upload {
    atomic_int refs; /* the request, the call's end, its messages */
    struct rpc_call *call;
    struct MHD_PostProcessor *form; /* NULL: one file */
    const char *form_error;         /* the rest of the body is thrown away */
    int part;                       /* of the form: 0 = none yet, 1 = metadata, 2 = rootfs */
    uint64_t part_bytes;
    struct chunk *head, **tail;
    size_t pending;
    bool sent_all;

    pthread_mutex_t lock; /* protects the following */
    struct request *request; /* NULL when it is over */
    bool done;
    struct buf operation;    /* the response, packed */
};

static void upload_unref(struct upload *u)
{
    if (atomic_fetch_sub(&u->refs, 1) != 1)
        return;
    while (u->head != NULL) {
        struct chunk *next = u->head->next;
        buf_free(&u->head->data);
        free(u->head);
        u->head = next;
    }
    rpc_call_unref(u->call);
    buf_free(&u->operation);
    pthread_mutex_destroy(&u->lock);
    free(u);
}

/* ---- the call ---- */

static bool on_message(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct upload *u = ud;
    (void)call;
    if (message == NULL) {
        upload_unref(u);
        return false;
    }
    pthread_mutex_lock(&u->lock);
    if (u->operation.len == 0)
        protobuf_c_message_pack(message, (uint8_t *)buf_grow(&u->operation, protobuf_c_message_get_packed_size(message)));
    pthread_mutex_unlock(&u->lock);
    return true;
}

static void on_done(struct rpc_call *call, void *ud)
{
    struct upload *u = ud;
    (void)call;
    pthread_mutex_lock(&u->lock);
    u->done = true;
    if (u->request != NULL)
        request_wake(u->request);
    pthread_mutex_unlock(&u->lock);
    upload_unref(u);
}

static bool is_done(struct upload *u)
{
    pthread_mutex_lock(&u->lock);
    bool done = u->done;
    pthread_mutex_unlock(&u->lock);
    return done;
}

/* ---- the header ---- */

static int read_properties(struct request *r, Covey__V1__UploadImageHeader *header, struct error *err)
{
    const char *text = request_header(r, GATEWAY_HEADER_PREFIX "properties");
    struct param *params = arena_alloc(&r->arena, UPLOAD_PROPERTIES_MAX * sizeof(*params));
    size_t count;
    if (str_empty(text))
        return STATUS_OK;
    if (params_parse(&r->arena, text, params, UPLOAD_PROPERTIES_MAX, &count, err) != STATUS_OK)
        return error_prefix(err, GATEWAY_HEADER_PREFIX "properties");
    header->properties = arena_alloc(&r->arena, (count + 1) * sizeof(*header->properties));
    for (size_t i = 0; i < count; i++) {
        Covey__V1__UploadImageHeader__PropertiesEntry *entry = arena_alloc(&r->arena, sizeof(*entry));
        covey__v1__upload_image_header__properties_entry__init(entry);
        entry->key = (char *)params[i].name;
        entry->value = (char *)params[i].value;
        header->properties[header->n_properties++] = entry;
    }
    return STATUS_OK;
}

static int read_text(struct request *r, const char *name, char **out, struct error *err)
{
    const char *value = request_header(r, name);
    if (value == NULL)
        return STATUS_OK;
    if (!utf8_valid(value, strlen(value)))
        return error_set(err, STATUS_INVALID_ARGUMENT, "header %s is not valid UTF-8", name);
    *out = (char *)value;
    return STATUS_OK;
}

static int send_header(struct request *r, struct upload *u, bool split, struct error *err)
{
    Covey__V1__UploadImageHeader header = COVEY__V1__UPLOAD_IMAGE_HEADER__INIT;
    Covey__V1__UploadImageRequest message = COVEY__V1__UPLOAD_IMAGE_REQUEST__INIT;
    const char *project = request_param(r, "project"), *public = request_header(r, GATEWAY_HEADER_PREFIX "public");
    bool is_public = false;

    if (read_text(r, GATEWAY_HEADER_PREFIX "filename", &header.filename, err) != STATUS_OK ||
        read_text(r, GATEWAY_HEADER_PREFIX "fingerprint", &header.fingerprint, err) != STATUS_OK || read_properties(r, &header, err) != STATUS_OK)
        return err->code;
    if (!str_empty(public) && parse_bool(public, &is_public) != 0)
        return error_set(err, STATUS_INVALID_ARGUMENT, "header " GATEWAY_HEADER_PREFIX "public must be true or false");
    header.public_ = is_public;
    header.split = split;
    if (project != NULL)
        header.project = (char *)project;
    message.header = &header;
    return rpc_try_send(u->call, &message.base, err);
}

/* ---- data ---- */

static void retry_job(void *ud)
{
    struct upload *u = ud;
    pthread_mutex_lock(&u->lock);
    if (u->request != NULL)
        request_wake(u->request);
    pthread_mutex_unlock(&u->lock);
    upload_unref(u);
}

/* Sends full chunks (all: also the last one). False: the stream is full. */
static bool flush(struct upload *u, bool all)
{
    while (u->head != NULL && (all || u->head->next != NULL || u->head->data.len >= GATEWAY_UPLOAD_CHUNK_BYTES)) {
        Covey__V1__UploadImageRequest message = COVEY__V1__UPLOAD_IMAGE_REQUEST__INIT;
        struct chunk *chunk = u->head;
        message.data = (ProtobufCBinaryData){chunk->data.len, (uint8_t *)chunk->data.data};
        message.rootfs = chunk->rootfs;
        if (rpc_try_send(u->call, &message.base, NULL) == STATUS_RESOURCE_EXHAUSTED)
            return false;
        u->pending -= chunk->data.len; /* sent, or the call is over and nobody wants it */
        u->head = chunk->next;
        if (u->head == NULL)
            u->tail = &u->head;
        buf_free(&chunk->data);
        free(chunk);
    }
    return true;
}

/* Suspends until there may be room. */
static void wait_for_room(struct request *r, struct upload *u)
{
    atomic_fetch_add(&u->refs, 1);
    hub_post(GATEWAY_RETRY_MS, retry_job, u);
    request_suspend(r);
}

static void append(struct upload *u, bool rootfs, const char *data, size_t len)
{
    struct chunk *last = NULL;
    for (struct chunk *c = u->head; c != NULL; c = c->next)
        last = c;
    if (last == NULL || last->rootfs != rootfs || last->data.len >= GATEWAY_UPLOAD_CHUNK_BYTES) {
        last = xcalloc(1, sizeof(*last));
        last->rootfs = rootfs;
        *u->tail = last;
        u->tail = &last->next;
    }
    buf_add(&last->data, data, len);
    u->pending += len;
}

static const char *const part_names[] = {"", "metadata", "rootfs"};

static enum MHD_Result on_form(void *cls, enum MHD_ValueKind kind, const char *key, const char *filename, const char *type, const char *encoding,
                               const char *data, uint64_t off, size_t size)
{
    struct upload *u = cls;
    (void)kind;
    (void)filename;
    (void)type;
    (void)encoding;
    if (off == 0 && (u->part_bytes > 0 || !str_eq(key, part_names[u->part]))) {
        u->part++;
        u->part_bytes = 0;
        if (u->part > 2 || !str_eq(key, part_names[u->part])) {
            u->form_error = "Invalid multipart image";
            return MHD_NO;
        }
    }
    u->part_bytes += size;
    append(u, u->part == 2, data, size);
    return MHD_YES;
}

static size_t body(struct request *r, const char *data, size_t len)
{
    struct upload *u = r->state;
    if (u->form_error != NULL || is_done(u)) /* refused: the rest is read, so that the client gets its answer */
        return len;
    if (u->pending >= GATEWAY_UPLOAD_CHUNK_BYTES && !flush(u, false) && u->pending >= GATEWAY_UPLOAD_PENDING_MAX) {
        wait_for_room(r, u);
        return 0;
    }
    if (u->form == NULL)
        append(u, false, data, len);
    else if (MHD_post_process(u->form, data, len) != MHD_YES && u->form_error == NULL)
        u->form_error = "Invalid multipart image";
    if (u->form_error != NULL)
        rpc_cancel(u->call);
    return len;
}

/* ---- the request ---- */

static void on_gone(struct request *r)
{
    struct upload *u = r->state;
    rpc_cancel(u->call);
}

static bool is_type(const char *type, const char *wanted)
{
    size_t n = strlen(wanted);
    return type != NULL && strncasecmp(type, wanted, n) == 0 && (type[n] == '\0' || strchr("; \t", type[n]) != NULL);
}

static bool begin(struct request *r)
{
    struct error err = ERROR_INIT;
    const char *type = request_header(r, "Content-Type");
    bool split = is_type(type, "multipart/form-data");
    if (is_type(type, "application/json")) {
        answer_error(r, 501, "not implemented");
        return false;
    }
    struct call_metadata metadata;
    struct rpc_options options = request_options(r, &metadata);
    options.timeout_ms = -1;
    const struct method *method = r->match.route->method;
    struct MHD_PostProcessor *form = NULL;
    struct upload *u = xcalloc(1, sizeof(*u));
    if (split) {
        form = MHD_create_post_processor(r->connection, UPLOAD_FORM_BUFFER, on_form, u);
        if (form == NULL) {
            free(u);
            answer_error(r, 400, "Invalid multipart image");
            return true;
        }
    }
    u->form = form;
    u->call = rpc_open(gateway_channel(), method->service, method->name, NULL, &options, &err);
    if (u->call == NULL) {
        if (form != NULL)
            MHD_destroy_post_processor(form);
        free(u);
        answer_status(r, &err);
        return true;
    }
    atomic_init(&u->refs, 3);
    u->tail = &u->head;
    u->request = r;
    pthread_mutex_init(&u->lock, NULL);
    r->state = u;
    rpc_on_message(u->call, on_message, u);
    rpc_call_on_done(u->call, on_done, u);
    if (send_header(r, u, split, &err) != STATUS_OK) {
        rpc_cancel(u->call);
        if (err.code == STATUS_INVALID_ARGUMENT) /* ours; others are the call's, which says them at its end */
            answer_status(r, &err);
    }
    return true;
}

/* The body is over: what is left of it, then the daemon's answer. */
static enum MHD_Result run(struct request *r)
{
    struct upload *u = r->state;
    struct error err = ERROR_INIT;
    if (u->form != NULL && !r->started) {
        if (MHD_destroy_post_processor(u->form) != MHD_YES || u->part != 2)
            u->form_error = u->form_error != NULL ? u->form_error : "Invalid multipart image";
        u->form = NULL;
    }
    r->started = true;
    if (u->form_error != NULL) {
        rpc_cancel(u->call);
        answer_error(r, 400, u->form_error);
        return answer_send(r);
    }
    if (!u->sent_all) {
        if (!flush(u, true)) {
            wait_for_room(r, u);
            return MHD_YES;
        }
        rpc_half_close(u->call);
        u->sent_all = true;
        watch_add(r, on_gone);
    }
    if (!is_done(u)) {
        request_suspend(r);
        return MHD_YES;
    }
    watch_remove(r);
    if (rpc_status(u->call, &err) != STATUS_OK) {
        answer_status(r, &err);
        return answer_send(r);
    }
    ProtobufCMessage *operation = codec_unpack(r->match.route->method->output, (uint8_t *)u->operation.data, u->operation.len, &r->arena, &err);
    if (operation != NULL)
        answer_operation(r, operation);
    else
        answer_error(r, 500, "the daemon gave no answer");
    return answer_send(r);
}

static void end(struct request *r)
{
    struct upload *u = r->state;
    if (u == NULL)
        return;
    r->state = NULL;
    watch_remove(r);
    if (u->form != NULL)
        MHD_destroy_post_processor(u->form);
    pthread_mutex_lock(&u->lock);
    u->request = NULL;
    pthread_mutex_unlock(&u->lock);
    rpc_cancel(u->call); /* nothing happens when it has ended */
    upload_unref(u);
}

const struct handler handler_upload = {.name = "image-upload", .begin = begin, .body = body, .run = run, .close = end};
