/* Image files of the member that a client talks to: receiving one, sending one. Handlers block on their own threads (the methods are long streams); the file
 * is this member's business, the record the leader's. An upload that fails before its record was asked for leaves nothing behind. */
#include "images.h"

#include "server/cluster/cluster.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { QUESTION_MS = 20000, REGISTER_WAIT_MS = 30000, REGISTER_PAUSE_MS = 200, FORWARDS_MAX = 1 };

/* Calls a method through this member's own dispatcher, which finds the leader. `behalf` NULL = as this member. */
static int ask(struct rpc_call *behalf, const char *service, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response, struct arena *arena,
               struct error *err)
{
    struct rpc_channel *channel = member_channel(the_daemon, daemon_id(the_daemon), err);
    if (channel == NULL) {
        return err->code;
    }
    struct rpc_options options = {.timeout_ms = QUESTION_MS, .on_behalf_of = behalf};
    int status = rpc_unary(channel, service, method, request, response, arena, &options, err);
    rpc_channel_unref(channel);
    return status;
}

static int locate(const char *fingerprint, Covey__Internal__V1__LocateImageResponse **out, struct arena *arena, struct error *err)
{
    Covey__Internal__V1__LocateImageRequest request = COVEY__INTERNAL__V1__LOCATE_IMAGE_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    request.fingerprint = (char *)fingerprint;
    int status = ask(NULL, "covey.internal.v1.Images", "LocateImage", &request.base, &response, arena, err);
    *out = (Covey__Internal__V1__LocateImageResponse *)response;
    return status;
}

/* ---- upload ---- */

static int check_header(struct rpc_call *call, const Covey__V1__UploadImageHeader *header, int64_t *expires_ns, struct error *err)
{
    Covey__Internal__V1__CheckUploadRequest request = COVEY__INTERNAL__V1__CHECK_UPLOAD_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    request.project = (char *)project_or_default(header->project);
    if (image_allowed(call, request.project, err) != STATUS_OK || image_time(header->expires_at, "expires_at", expires_ns, err) != STATUS_OK) {
        return err->code;
    }
    if (header->n_properties > IMAGE_PROPERTIES_COUNT_MAX || header->n_aliases > IMAGE_ALIASES_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "more than %d properties or %d aliases of an image", IMAGE_PROPERTIES_COUNT_MAX, IMAGE_ALIASES_MAX);
    }
    if (strlen(header->filename) > IMAGE_ALIAS_BYTES_MAX || strchr(header->filename, '/') != NULL) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid image filename: at most %d bytes without \"/\"", IMAGE_ALIAS_BYTES_MAX);
    }
    for (size_t i = 0; i < header->n_properties; i++) {
        if (image_properties_check(header->properties[i]->key, header->properties[i]->value, err) != STATUS_OK) {
            return err->code;
        }
    }
    for (size_t i = 0; i < header->n_aliases; i++) {
        if (image_alias_check(header->aliases[i]->name, header->aliases[i]->description, err) != STATUS_OK) {
            return err->code;
        }
    }
    return ask(NULL, "covey.internal.v1.Images", "CheckUpload", &request.base, &response, rpc_arena(call), err);
}

/* All chunks into the file; consumes the upload. */
static int receive(struct rpc_call *call, const Covey__V1__UploadImageHeader *header, struct host_image_info *info, struct error *err)
{
    struct host_image_upload *upload = NULL;
    struct arena arena;
    int status = host_image_begin(the_daemon->host, header->split, &upload, err);
    arena_init(&arena);
    while (status == STATUS_OK) {
        ProtobufCMessage *message = NULL;
        status = rpc_recv(call, &message, &arena, err);
        if (status != STATUS_OK) {
            break;
        }
        const Covey__V1__UploadImageRequest *chunk = (const Covey__V1__UploadImageRequest *)message;
        if (chunk->header != NULL) {
            status = error_set(err, STATUS_INVALID_ARGUMENT, "header is for the first message of an upload only");
        } else if (chunk->data.len > IMAGE_CHUNK_BYTES_MAX) {
            status = error_set(err, STATUS_INVALID_ARGUMENT, "data is more than %d bytes", IMAGE_CHUNK_BYTES_MAX);
        } else if (chunk->data.len > 0) {
            status = host_image_write(upload, chunk->rootfs ? HOST_IMAGE_ROOTFS : HOST_IMAGE_METADATA, chunk->data.data, chunk->data.len, err);
        }
        arena_clear(&arena);
    }
    arena_clear(&arena);
    if (status != STATUS_OUT_OF_RANGE || rpc_call_cancelled(call)) { /* a broken connection is no end of the file */
        if (upload != NULL) {
            host_image_abort(upload);
        }
        return status != STATUS_OUT_OF_RANGE ? status : error_set(err, STATUS_CANCELLED, "the upload was broken off");
    }
    return host_image_finish(upload, header->fingerprint, info, err);
}

static bool header_has(const Covey__V1__UploadImageHeader *header, const char *key)
{
    for (size_t i = 0; i < header->n_properties; i++) {
        if (strcmp(header->properties[i]->key, key) == 0) {
            return true;
        }
    }
    return false;
}

static Covey__Internal__V1__RegisterImageRequest__PropertiesEntry *property(struct arena *arena, const char *key, const char *value)
{
    Covey__Internal__V1__RegisterImageRequest__PropertiesEntry *entry = arena_alloc(arena, sizeof *entry);
    covey__internal__v1__register_image_request__properties_entry__init(entry);
    entry->key = arena_strdup(arena, key);
    entry->value = arena_strdup(arena, value);
    return entry;
}

static int build_request(struct rpc_call *call, const Covey__V1__UploadImageHeader *header, const struct host_image_info *info, int64_t expires_ns,
                         Covey__Internal__V1__RegisterImageRequest *out, struct error *err)
{
    struct arena *arena = rpc_arena(call);
    const int64_t second = 1000000000;
    covey__internal__v1__register_image_request__init(out);
    if (info->creation_date < 0 || info->creation_date >= INT64_MAX / second || info->expiry_date < 0 || info->expiry_date >= INT64_MAX / second) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "creation_date and expiry_date of metadata.yaml must be between the years 1970 and 2261");
    }
    out->project = (char *)project_or_default(header->project);
    out->member = daemon_id(the_daemon);
    out->fingerprint = arena_strdup(arena, info->fingerprint);
    out->size = info->size;
    out->architecture = arena_strdup(arena, info->architecture);
    out->filename = arena_strdup(arena, str_empty(header->filename) ? info->filename : header->filename);
    out->public_ = header->public_;
    out->auto_update = header->auto_update;
    out->created_at = info->creation_date * second;
    out->expires_at = header->expires_at != NULL ? expires_ns : info->expiry_date * second;
    out->aliases = header->aliases;
    out->n_aliases = header->n_aliases;
    out->properties = arena_alloc(arena, (info->property_count + header->n_properties + 1) * sizeof *out->properties);
    for (size_t i = 0; i < info->property_count; i++) {
        if (image_properties_check(info->properties[i].key, info->properties[i].value, err) != STATUS_OK) {
            return err->code;
        }
        if (!header_has(header, info->properties[i].key)) {
            out->properties[out->n_properties++] = property(arena, info->properties[i].key, info->properties[i].value);
        }
    }
    for (size_t i = 0; i < header->n_properties; i++) {
        out->properties[out->n_properties++] = property(arena, header->properties[i]->key, header->properties[i]->value);
    }
    return out->n_properties <= IMAGE_PROPERTIES_COUNT_MAX ? STATUS_OK
                                                           : error_set(err, STATUS_INVALID_ARGUMENT, "more than %d properties of an image", IMAGE_PROPERTIES_COUNT_MAX);
}

/* Once, whoever leads: here directly, so that the operation knows its requestor, elsewhere on behalf of the call. Repeated with the same request id. */
static int register_once(struct rpc_call *call, const Covey__Internal__V1__RegisterImageRequest *request, Covey__V1__Operation **out, struct error *err)
{
    if (daemon_leads(the_daemon)) {
        return image_register(call, request, out, err);
    }
    uint64_t leader = daemon_leader_id(the_daemon);
    leader = leader != 0 ? leader : attach_known_leader();
    if (leader == 0 || leader == daemon_id(the_daemon)) {
        return error_set(err, STATUS_UNAVAILABLE, "no available leader: the database has no majority of its voters");
    }
    struct rpc_channel *channel = member_channel(the_daemon, leader, err);
    if (channel == NULL) {
        return err->code;
    }
    ProtobufCMessage *response = NULL;
    struct rpc_options options = {.timeout_ms = QUESTION_MS, .on_behalf_of = call, .request_id = rpc_request_id(call)};
    int status = rpc_unary(channel, "covey.internal.v1.Images", "RegisterImage", &request->base, &response, rpc_arena(call), &options, err);
    rpc_channel_unref(channel);
    *out = (Covey__V1__Operation *)response;
    return status;
}

static int register_image(struct rpc_call *call, const Covey__Internal__V1__RegisterImageRequest *request, Covey__V1__Operation **out, struct error *err)
{
    int64_t end = time_mono_ms() + REGISTER_WAIT_MS;
    for (;;) {
        int status = register_once(call, request, out, err);
        bool again = status == STATUS_UNAVAILABLE || status == STATUS_UNKNOWN;
        if (!again || rpc_call_cancelled(call) || time_mono_ms() >= end) {
            return status;
        }
        usleep(REGISTER_PAUSE_MS * 1000); /* bounded by `end`; a new leader is being found */
    }
}

/* The record was refused: the file goes unless some project has it. When that cannot be learnt it stays; a later upload of the same image uses it. */
static void drop(const char *fingerprint)
{
    struct error err = ERROR_INIT;
    struct arena arena;
    Covey__Internal__V1__LocateImageResponse *known = NULL;
    arena_init(&arena);
    int status = locate(fingerprint, &known, &arena, &err);
    if (status == STATUS_OK && known->records == 0) {
        status = host_image_delete(the_daemon->host, fingerprint, &err);
    }
    arena_clear(&arena);
    if (status != STATUS_OK) {
        log_warn("image.orphan", "fingerprint=%.12s error=\"%s\"", fingerprint, err.text);
    }
}

static int upload_image(struct rpc_call *call, const ProtobufCMessage *unused, ProtobufCMessage **response, struct error *err, void *ud)
{
    ProtobufCMessage *first = NULL;
    int64_t expires_ns = 0;
    int status = rpc_recv(call, &first, rpc_arena(call), err);
    const Covey__V1__UploadImageHeader *header = status == STATUS_OK ? ((const Covey__V1__UploadImageRequest *)first)->header : NULL;
    if (header == NULL) {
        return status == STATUS_OK || status == STATUS_OUT_OF_RANGE ? error_set(err, STATUS_INVALID_ARGUMENT, "the first message of an upload must be its header") : status;
    }
    if (((const Covey__V1__UploadImageRequest *)first)->data.len > 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "the first message of an upload has no data");
    }
    struct host_image_info info = {0};
    status = check_header(call, header, &expires_ns, err);
    status = status == STATUS_OK ? receive(call, header, &info, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    Covey__Internal__V1__RegisterImageRequest request;
    Covey__V1__Operation *operation = NULL;
    status = build_request(call, header, &info, expires_ns, &request, err);
    status = status == STATUS_OK ? register_image(call, &request, &operation, err) : status;
    if (status != STATUS_OK && status != STATUS_UNKNOWN && status != STATUS_DEADLINE_EXCEEDED) {
        drop(info.fingerprint);
    }
    host_image_info_free(&info);
    *response = operation != NULL ? &operation->base : NULL;
    return status;
}

/* ---- export ---- */

static int send_data(struct rpc_call *call, const int fd[2], const int64_t size[2], struct error *err)
{
    uint8_t *data = xmalloc(IMAGE_CHUNK_BYTES_MAX);
    int status = STATUS_OK;
    for (uint32_t file = 0; file < 2 && fd[file] >= 0; file++) {
        for (int64_t left = size[file]; left > 0 && status == STATUS_OK;) {
            ssize_t n = read(fd[file], data, left < IMAGE_CHUNK_BYTES_MAX ? (size_t)left : IMAGE_CHUNK_BYTES_MAX);
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n <= 0) {
                status = n < 0 ? error_errno(err, errno, "Failed to read the image") : error_set(err, STATUS_DATA_LOSS, "Image file is shorter than it was");
                break;
            }
            Covey__V1__ExportImageResponse chunk = COVEY__V1__EXPORT_IMAGE_RESPONSE__INIT;
            chunk.file = file;
            chunk.data.data = data;
            chunk.data.len = (size_t)n;
            status = rpc_send(call, &chunk.base, err);
            left -= n;
        }
    }
    free(data);
    return status;
}

static int send_files(struct rpc_call *call, const char *fingerprint, struct error *err)
{
    int fd[2];
    int64_t size[2];
    struct host_image_info info = {0};
    if (host_image_open(the_daemon->host, fingerprint, fd, size, err) != STATUS_OK) {
        return err->code;
    }
    int status = host_image_read_info(the_daemon->host, fingerprint, &info, err);
    if (status == STATUS_OK) {
        struct arena *arena = rpc_arena(call);
        Covey__V1__ExportImageResponse head = COVEY__V1__EXPORT_IMAGE_RESPONSE__INIT;
        Covey__V1__ExportFile files[2] = {COVEY__V1__EXPORT_FILE__INIT, COVEY__V1__EXPORT_FILE__INIT}, *list[2] = {&files[0], &files[1]};
        bool split = fd[1] >= 0, named = str_prefix(info.filename, "meta-");
        files[0].name = split && !named ? arena_printf(arena, "meta-%s", info.filename) : info.filename;
        files[0].size = size[0];
        files[1].name = info.rootfs_filename;
        files[1].size = size[1];
        head.files = list;
        head.n_files = split ? 2 : 1;
        status = rpc_send(call, &head.base, err);
    }
    status = status == STATUS_OK ? send_data(call, fd, size, err) : status;
    host_image_info_free(&info);
    for (int i = 0; i < 2; i++) {
        if (fd[i] >= 0) {
            close(fd[i]);
        }
    }
    return status;
}

/* To a member that has the file; that one checks again and names the files. */
static int forward(struct rpc_call *call, const char *fingerprint, struct error *err)
{
    const char *text = rpc_metadata(call, "covey-forwarded");
    int64_t forwarded = 0;
    if (text != NULL && (parse_i64(text, 0, INT32_MAX, &forwarded) != 0 || forwarded >= FORWARDS_MAX)) {
        return error_set(err, STATUS_UNAVAILABLE, "Image not available on any online node"); /* recorded here, but not on the disk */
    }
    Covey__Internal__V1__LocateImageResponse *known = NULL;
    int status = locate(fingerprint, &known, rpc_arena(call), err);
    for (size_t i = 0; status == STATUS_OK && i < known->n_members; i++) {
        struct rpc_channel *channel = known->members[i] != daemon_id(the_daemon) ? member_channel(the_daemon, known->members[i], err) : NULL;
        if (channel != NULL) {
            status = rpc_forward(call, channel, err);
            rpc_channel_unref(channel);
            return status;
        }
    }
    return status == STATUS_OK ? error_set(err, STATUS_UNAVAILABLE, "Image not available on any online node") : status;
}

static int export_image(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ExportImageRequest *request = (const Covey__V1__ExportImageRequest *)message;
    Covey__V1__GetImageRequest get = COVEY__V1__GET_IMAGE_REQUEST__INIT;
    ProtobufCMessage *image = NULL;
    get.fingerprint = request->fingerprint;
    get.project = request->project;
    get.secret = request->secret;
    int status = ask(call, "covey.v1.Images", "GetImage", &get.base, &image, rpc_arena(call), err);
    if (status != STATUS_OK) {
        return status;
    }
    const char *fingerprint = ((const Covey__V1__Image *)image)->fingerprint;
    return host_image_has(the_daemon->host, fingerprint) ? send_files(call, fingerprint, err) : forward(call, fingerprint, err);
}

rpc_handler image_upload_handler(void)
{
    return upload_image;
}

rpc_handler image_export_handler(void)
{
    return export_image;
}
