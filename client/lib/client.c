/* Connections and unary calls. Any thread. Fails with the server's status and text, or UNAVAILABLE when it cannot be reached. */
#include "client.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static pthread_once_t started = PTHREAD_ONCE_INIT;

static void start(void)
{
    registry_init();
    rpc_init();
}

void covey_init(void) { pthread_once(&started, start); }

void covey_end(void) { rpc_shutdown(); }

void covey_free(void *p) { free(p); }

int covey__result(int status, const struct error *from, struct covey_error *to)
{
    if (!to)
        return status;
    to->code = status;
    snprintf(to->text, sizeof(to->text), "%s", status == STATUS_OK ? "" : from->text);
    return status;
}

const char *json_text(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

/* gRPC reports a missing socket late and in its own words: try it first. */
static int probe(const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path))
        return error_set(err, STATUS_INVALID_ARGUMENT, "socket path \"%s\" is longer than %zu bytes", path, sizeof(address.sun_path) - 1);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, errno, "cannot make a socket");
    int failed = connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno != EAGAIN && errno != EINPROGRESS ? errno : 0;
    close(fd);
    if (!failed)
        return STATUS_OK;
    error_set(err, failed == EACCES || failed == EPERM ? STATUS_PERMISSION_DENIED : STATUS_UNAVAILABLE, "Cannot connect to the daemon at %s: %s%s", path,
              strerror(failed), failed == ENOENT || failed == ECONNREFUSED ? " (is it running?)" : "");
    return err ? (int)err->code : STATUS_UNAVAILABLE;
}

int client_connect_local(const char *dir, struct covey_client **client, struct error *err)
{
    *client = NULL;
    if (str_empty(dir))
        dir = getenv("COVEY_DIR");
    if (str_empty(dir))
        dir = "/var/lib/covey";
    char *path = xasprintf("%s/grpc.socket", dir);
    int status = probe(path, err);
    if (status) {
        free(path);
        return status;
    }
    covey_init();
    *client = xcalloc(1, sizeof(**client));
    (*client)->channel = rpc_channel_unix(path);
    (*client)->name = path;
    return STATUS_OK;
}

int covey_connect_local(const char *dir, struct covey_client **client, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    return covey__result(client_connect_local(dir, client, &e), &e, err);
}

struct covey_client *client_connect_tls(const char *address, const char *fingerprint, const struct identity *identity)
{
    covey_init();
    struct covey_client *client = xcalloc(1, sizeof(*client));
    client->channel = rpc_channel_tls(address, fingerprint, NULL, identity);
    client->name = xstrdup(address);
    return client;
}

int covey_connect_remote(const struct covey_remote *remote, struct covey_client **client, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    *client = NULL;
    if (str_empty(remote->address) || str_empty(remote->fingerprint) || strlen(remote->fingerprint) != FINGERPRINT_SIZE - 1)
        return covey__result(error_set(&e, STATUS_INVALID_ARGUMENT, "a remote needs an address and the fingerprint of its certificate"), &e, err);
    struct identity identity = {0};
    bool own = remote->cert_pem && remote->key_pem;
    if (own && identity_from_pem(remote->cert_pem, remote->key_pem, &identity, &e))
        return covey__result((int)e.code, &e, err);
    *client = client_connect_tls(remote->address, remote->fingerprint, own ? &identity : NULL);
    identity_free(&identity);
    return covey__result(STATUS_OK, &e, err);
}

void covey_close(struct covey_client *client)
{
    if (!client)
        return;
    rpc_channel_unref(client->channel);
    free(client->name);
    free(client);
}

int client_server_certificate(const char *address, int64_t timeout_ms, char **pem, char fingerprint[FINGERPRINT_SIZE], struct error *err)
{
    enum { TRIES = 6, PAUSE_MS = 200 }; /* the core gives a handshake a fraction of a second at first: too little for a busy server */
    *pem = NULL;
    struct covey_client *client = client_connect_tls(address, "", NULL);
    int64_t end = time_mono_ms() + (timeout_ms > 0 ? timeout_ms : CLIENT_TIMEOUT_MS);
    int status = STATUS_UNAVAILABLE;
    for (int i = 0; i < TRIES && !*pem && status == STATUS_UNAVAILABLE && time_mono_ms() < end; i++) {
        if (i)
            usleep(PAUSE_MS * 1000);
        struct covey_options options = {.timeout_ms = end - time_mono_ms()};
        status = client_call_options(client, "Server/GetServer", NULL, NULL, NULL, &options, err);
        *pem = rpc_channel_server_cert(client->channel);
    }
    covey_close(client);
    if (!*pem)
        return status ? status : error_set(err, STATUS_UNAVAILABLE, "the server presented no certificate");
    /* A refusal is no matter: the handshake has shown the certificate. */
    status = cert_fingerprint(*pem, fingerprint, err);
    if (status) {
        free(*pem);
        *pem = NULL;
    }
    return status;
}

int covey_server_certificate(const char *address, int64_t timeout_ms, char **pem, char fingerprint[COVEY_FINGERPRINT_SIZE], struct covey_error *err)
{
    struct error e = ERROR_INIT;
    return covey__result(client_server_certificate(address, timeout_ms, pem, fingerprint, &e), &e, err);
}

const struct method *client_method(const char *name, struct error *err)
{
    covey_init();
    if (*name == '/')
        name++;
    const char *split = strrchr(name, '/');
    if (!split)
        split = strrchr(name, '.');
    if (!split || split == name || !split[1]) {
        error_set(err, STATUS_INVALID_ARGUMENT, "\"%s\" is not SERVICE/METHOD", name);
        return NULL;
    }
    char *service = xasprintf("%.*s", (int)(split - name), name);
    const struct method *method = registry_method_by_name(service, split + 1);
    static const char *const packages[] = {"covey.v1", "covey.internal.v1"};
    for (size_t i = 0; !method && i < sizeof(packages) / sizeof(*packages); i++) {
        char *full = xasprintf("%s.%s", packages[i], service);
        method = registry_method_by_name(full, split + 1);
        free(full);
    }
    free(service);
    if (!method)
        error_set(err, STATUS_NOT_FOUND, "There is no method \"%s\"", name);
    return method;
}

/* The comma list (or JSON list) of field names of update_mask. */
static int set_mask(ProtobufCMessage *message, const json_t *mask, struct arena *arena, struct error *err)
{
    const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field_by_name(message->descriptor, "update_mask");
    if (!field)
        return error_set(err, STATUS_INVALID_ARGUMENT, "this method has no update_mask");
    json_t *paths = json_array();
    size_t index;
    const json_t *item;
    json_array_foreach(mask, index, item) json_array_append(paths, (json_t *)item);
    const char *text = json_string_value(mask);
    while (text && *text) {
        size_t len = strcspn(text, ",");
        json_array_append_new(paths, json_stringn(text, len));
        text += len + (text[len] == ',');
    }
    const ProtobufCMessageDescriptor *type = field->descriptor;
    ProtobufCMessage *value = arena_alloc(arena, type->sizeof_message);
    protobuf_c_message_init(type, value);
    const ProtobufCFieldDescriptor *list = protobuf_c_message_descriptor_get_field_by_name(type, "paths");
    size_t count = json_array_size(paths);
    char **out = arena_alloc(arena, (count + 1) * sizeof(*out));
    int status = STATUS_OK;
    for (size_t i = 0; i < count && !status; i++) {
        const char *path = json_string_value(json_array_get(paths, i));
        if (str_empty(path) || !codec_has_field(message->descriptor, path))
            status = error_set(err, STATUS_INVALID_ARGUMENT, "update_mask: there is no field \"%s\"", path ? path : "");
        out[i] = arena_strdup(arena, path);
    }
    json_decref(paths);
    if (status)
        return status;
    *(size_t *)((char *)value + list->quantifier_offset) = count;
    *(char ***)((char *)value + list->offset) = out;
    *(ProtobufCMessage **)((char *)message + field->offset) = value;
    return STATUS_OK;
}

ProtobufCMessage *client_message(const struct method *method, const json_t *request, struct arena *arena, struct error *err)
{
    json_t *empty = request ? NULL : json_object();
    ProtobufCMessage *message = codec_from_json(method->input, request ? request : empty, arena, err);
    json_decref(empty);
    if (!message || !request)
        return message;
    const json_t *mask = json_object_get(request, "update_mask");
    if (mask && set_mask(message, mask, arena, err))
        return NULL;
    const char *match = json_string_value(json_object_get(request, "if_match"));
    if (match && codec_has_field(method->input, "if_match") && codec_set_text(message, "if_match", match, arena, err))
        return NULL;
    return message;
}

json_t *client_json(const ProtobufCMessage *message, struct error *err)
{
    struct buf text = {0};
    codec_to_json(message, &text);
    json_error_t where;
    json_t *json = json_loadb(text.data ? text.data : "", text.len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &where);
    buf_free(&text);
    if (!json)
        error_set(err, STATUS_INTERNAL, "cannot read the answer as JSON: %s", where.text);
    return json;
}

static int call_message(struct covey_client *client, const struct method *method, const ProtobufCMessage *request, ProtobufCMessage **response,
                        struct arena *arena, const struct covey_options *options, struct error *err)
{
    if (method->client_streaming || method->server_streaming)
        return error_set(err, STATUS_INVALID_ARGUMENT, "%s/%s is a streaming method", method->service, method->name);
    struct rpc_options rpc = {.timeout_ms = method->is_long ? CLIENT_LONG_TIMEOUT_MS : CLIENT_TIMEOUT_MS};
    if (options && options->timeout_ms > 0)
        rpc.timeout_ms = options->timeout_ms;
    if (options)
        rpc.request_id = options->request_id;
    return rpc_unary(client->channel, method->service, method->name, request, response, arena, &rpc, err);
}

int client_call_options(struct covey_client *client, const char *name, json_t *request, json_t **response, char **etag,
                        const struct covey_options *options, struct error *err)
{
    struct arena arena;
    arena_init(&arena);
    struct error local = ERROR_INIT;
    if (!err)
        err = &local;
    if (response)
        *response = NULL;
    if (etag)
        *etag = NULL;
    int status = STATUS_OK;
    ProtobufCMessage *in = NULL, *out = NULL;
    const struct method *method = client_method(name, err);
    if (method)
        in = client_message(method, request, &arena, err);
    if (!in)
        status = (int)err->code;
    if (!status)
        status = call_message(client, method, in, &out, &arena, options, err);
    if (!status && response) {
        *response = client_json(out, err);
        status = *response ? STATUS_OK : (int)err->code;
    }
    if (!status && etag && !str_empty(codec_get_string(out, "etag")))
        *etag = xstrdup(codec_get_string(out, "etag"));
    json_decref(request);
    arena_clear(&arena);
    return status;
}

int client_call_etag(struct covey_client *client, const char *method, json_t *request, json_t **response, char **etag, struct error *err)
{
    return client_call_options(client, method, request, response, etag, NULL, err);
}

int client_call(struct covey_client *client, const char *method, json_t *request, json_t **response, struct error *err)
{
    return client_call_options(client, method, request, response, NULL, NULL, err);
}

int covey_call(struct covey_client *client, const char *method, const char *request, char **response, const struct covey_options *options,
               struct covey_error *err)
{
    struct error e = ERROR_INIT;
    if (response)
        *response = NULL;
    json_error_t where;
    json_t *in = NULL, *out = NULL;
    if (request && !(in = json_loads(request, 0, &where)))
        return covey__result(error_set(&e, STATUS_INVALID_ARGUMENT, "the request is not JSON: %s (line %d)", where.text, where.line), &e, err);
    int status = client_call_options(client, method, in, &out, NULL, options, &e);
    if (!status && response)
        *response = json_dumps(out, JSON_COMPACT | JSON_ENCODE_ANY);
    json_decref(out);
    return covey__result(status, &e, err);
}

int covey_call_message(struct covey_client *client, const char *name, const ProtobufCMessage *request, ProtobufCMessage **response,
                       const struct covey_options *options, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    *response = NULL;
    struct arena arena;
    arena_init(&arena);
    ProtobufCMessage *out = NULL;
    const struct method *method = client_method(name, &e);
    int status = method ? STATUS_OK : (int)e.code;
    if (method && request->descriptor != method->input)
        status = error_set(&e, STATUS_INVALID_ARGUMENT, "%s wants a %s, not a %s", name, method->input->name, request->descriptor->name);
    if (!status)
        status = call_message(client, method, request, &out, &arena, options, &e);
    if (!status) { /* out of the arena, into malloc'ed memory */
        size_t len = protobuf_c_message_get_packed_size(out);
        uint8_t *bytes = xmalloc(len + 1);
        protobuf_c_message_pack(out, bytes);
        *response = protobuf_c_message_unpack(method->output, NULL, len, bytes);
        free(bytes);
        if (!*response)
            status = error_set(&e, STATUS_INTERNAL, "cannot copy the answer");
    }
    arena_clear(&arena);
    return covey__result(status, &e, err);
}

void covey_message_free(ProtobufCMessage *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
}
