/* A daemon that answers from a table: method -> JSON reply (or status and text), and keeps every request as "Method {json}" for the test to read.
 * Exec is played: standard input comes back on standard output with "out:" before it, "err" goes to standard error, the code is 7.
 * Handlers run on worker threads; `fake.lock` guards what they share. */
#ifndef COVEY_TESTS_FAKE_DAEMON_H
#define COVEY_TESTS_FAKE_DAEMON_H

#include "client/cli/cli.h"
#include "covey/v1/operation.pb-c.h"
#include "covey/v1/image.pb-c.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

struct answer {
    char *method, *json;
    int status;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct answer answers[128];
    size_t answer_count;
    struct buf log;
    char dir[64];
    char trusted[FINGERPRINT_SIZE]; /* fingerprint that classify accepts */
    struct buf controls;            /* what came over the control stream */
    bool exec_done, interactive;
    size_t uploaded;
    int waits; /* WaitOperation calls answered as running before the final one */
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

/* The next calls of the method get this; status != 0: the error with `json` as text. */
static void fake_set(const char *method, int status, const char *json)
{
    pthread_mutex_lock(&fake.lock);
    struct answer *answer = NULL;
    for (size_t i = 0; i < fake.answer_count; i++)
        if (strcmp(fake.answers[i].method, method) == 0)
            answer = &fake.answers[i];
    if (!answer) {
        assert_true(fake.answer_count < 128);
        answer = &fake.answers[fake.answer_count++];
        answer->method = xstrdup(method);
    }
    free(answer->json);
    answer->json = xstrdup(json);
    answer->status = status;
    pthread_mutex_unlock(&fake.lock);
}

/* What was called since the last look; the caller frees. */
__attribute__((unused)) static char *fake_log(void)
{
    pthread_mutex_lock(&fake.lock);
    char *text = buf_take(&fake.log);
    pthread_mutex_unlock(&fake.lock);
    return text;
}

static inline void fake_wait_times(int times)
{
    pthread_mutex_lock(&fake.lock);
    fake.waits = times;
    pthread_mutex_unlock(&fake.lock);
}

static inline long long fake_uploaded(void)
{
    pthread_mutex_lock(&fake.lock);
    long long total = (long long)fake.uploaded;
    pthread_mutex_unlock(&fake.lock);
    return total;
}

static int fake_answer(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    const struct method *method = rpc_call_method(call);
    struct buf json = {0};
    codec_to_json(request, &json);
    pthread_mutex_lock(&fake.lock);
    buf_printf(&fake.log, "%s %s\n", method->name, json.data);
    buf_free(&json);
    char *text = NULL;
    int status = STATUS_OK;
    for (size_t i = 0; i < fake.answer_count; i++)
        if (strcmp(fake.answers[i].method, method->name) == 0) {
            text = xstrdup(fake.answers[i].json);
            status = fake.answers[i].status;
        }
    if (strcmp(method->name, "WaitOperation") == 0 && fake.waits > 0) {
        fake.waits--;
        free(text);
        text = xstrdup("{\"id\":\"op1\",\"status_code\":103,\"metadata\":{\"x_progress\":\"half\"}}");
        status = STATUS_OK;
    }
    if (strcmp(method->name, "CreateCertificate") == 0 && !status)
        snprintf(fake.trusted, sizeof(fake.trusted), "%s", rpc_caller(call)->fingerprint);
    if (strcmp(method->name, "GetServer") == 0 && rpc_caller(call)->class == CALLER_NONE) {
        free(text);
        text = xstrdup("{\"auth\":\"untrusted\"}");
    }
    pthread_mutex_unlock(&fake.lock);
    if (status || !text) {
        status = error_set(err, status ? status : STATUS_UNIMPLEMENTED, "%s", text ? text : "no answer set");
        free(text);
        return status;
    }
    json_t *object = json_loads(text, 0, NULL);
    assert_non_null(object);
    *response = codec_from_json(method->output, object, rpc_arena(call), err);
    json_decref(object);
    free(text);
    return *response ? STATUS_OK : (int)err->code;
}

/* ---- exec ---- */

static int frame(struct rpc_call *call, const char *data, bool end)
{
    Covey__V1__StreamFrame out = COVEY__V1__STREAM_FRAME__INIT;
    out.data.data = (uint8_t *)data;
    out.data.len = data ? strlen(data) : 0;
    out.end = end;
    return rpc_send(call, &out.base, NULL);
}

static void exec_finish(void)
{
    pthread_mutex_lock(&fake.lock);
    fake.exec_done = true;
    pthread_cond_broadcast(&fake.changed);
    pthread_mutex_unlock(&fake.lock);
    fake_set("WaitOperation", 0, "{\"id\":\"exec1\",\"status\":\"Success\",\"status_code\":200,\"metadata\":{\"return\":7}}");
}

static int serve_input(struct rpc_call *call, struct error *err)
{
    for (;;) {
        ProtobufCMessage *message;
        int status = rpc_recv(call, &message, rpc_arena(call), err);
        const Covey__V1__StreamFrame *in = (const Covey__V1__StreamFrame *)message;
        if (status || (in->end && !in->data.len) || (fake.interactive && memchr(in->data.data, 'q', in->data.len)))
            break;
        pthread_mutex_lock(&fake.lock);
        buf_add(&fake.controls, in->data.data, in->data.len);
        pthread_mutex_unlock(&fake.lock);
        if (fake.interactive)
            (void)frame(call, "pty:echo\r\n", false);
    }
    if (fake.interactive)
        (void)frame(call, NULL, true);
    exec_finish();
    return STATUS_OK;
}

static int serve_output(struct rpc_call *call, const char *which)
{
    pthread_mutex_lock(&fake.lock);
    while (!fake.exec_done)
        pthread_cond_wait(&fake.changed, &fake.lock);
    char *text = strcmp(which, "s1") == 0 ? xasprintf("out:%s", fake.controls.data ? fake.controls.data : "") : xstrdup("err\n");
    pthread_mutex_unlock(&fake.lock);
    (void)frame(call, text, false);
    (void)frame(call, NULL, true);
    free(text);
    return STATUS_OK;
}

static int fake_connect(struct rpc_call *call, const ProtobufCMessage *none, ProtobufCMessage **response, struct error *err, void *ud)
{
    ProtobufCMessage *message;
    int status = rpc_recv(call, &message, rpc_arena(call), err);
    if (status)
        return status;
    const Covey__V1__StreamFrame *hello = (const Covey__V1__StreamFrame *)message;
    if (strcmp(hello->id, "exec1") != 0)
        return error_set(err, STATUS_PERMISSION_DENIED, "wrong operation");
    const char *secret = hello->secret;
    if (secret[0] != 's' || !strchr("012c", secret[1]))
        return error_set(err, STATUS_PERMISSION_DENIED, "wrong secret");
    (void)frame(call, NULL, false);
    if (strcmp(secret, "s0") == 0)
        return serve_input(call, err);
    if (strcmp(secret, "s1") == 0 || strcmp(secret, "s2") == 0)
        return serve_output(call, secret);
    while (!rpc_recv(call, &message, rpc_arena(call), err)) {
        pthread_mutex_lock(&fake.lock);
        buf_puts(&fake.log, "control ");
        buf_puts(&fake.log, ((const Covey__V1__StreamFrame *)message)->control);
        buf_puts(&fake.log, "\n");
        pthread_cond_broadcast(&fake.changed);
        pthread_mutex_unlock(&fake.lock);
    }
    return STATUS_OK;
}

static int fake_exec(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    pthread_mutex_lock(&fake.lock);
    fake.exec_done = false;
    fake.interactive = codec_get_int(request, "interactive") != 0;
    buf_free(&fake.controls);
    pthread_mutex_unlock(&fake.lock);
    fake_set("WaitOperation", 0, "{\"id\":\"exec1\",\"status_code\":103}");
    fake_set("ExecInstance", 0, "{\"id\":\"exec1\",\"status_code\":103,\"metadata\":{\"fds\":{\"0\":\"s0\",\"1\":\"s1\",\"2\":\"s2\",\"control\":\"sc\"}}}");
    return fake_answer(call, request, response, err, ud);
}

/* ---- images ---- */

static int fake_upload(struct rpc_call *call, const ProtobufCMessage *none, ProtobufCMessage **response, struct error *err, void *ud)
{
    ProtobufCMessage *message;
    int status;
    size_t total = 0;
    while (!(status = rpc_recv(call, &message, rpc_arena(call), err))) {
        const Covey__V1__UploadImageRequest *part = (const Covey__V1__UploadImageRequest *)message;
        total += part->data.len;
        if (part->header && strcmp(part->header->filename, "refused.tar") == 0)
            return error_set(err, STATUS_INVALID_ARGUMENT, "Image refused");
    }
    if (status != STATUS_OUT_OF_RANGE)
        return status;
    pthread_mutex_lock(&fake.lock);
    fake.uploaded = total;
    pthread_mutex_unlock(&fake.lock);
    json_t *operation = json_pack("{s:s,s:i}", "id", "op1", "status_code", 103);
    *response = codec_from_json(rpc_call_method(call)->output, operation, rpc_arena(call), err);
    json_decref(operation);
    return *response ? STATUS_OK : (int)err->code;
}

static int fake_export(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__V1__ExportFile file = COVEY__V1__EXPORT_FILE__INIT, *files[] = {&file};
    Covey__V1__ExportImageResponse part = COVEY__V1__EXPORT_IMAGE_RESPONSE__INIT;
    file.name = strcmp(codec_get_string(request, "fingerprint"), "evil") == 0 ? "../evil" : "image.tar.xz";
    file.size = 5;
    part.n_files = 1;
    part.files = files;
    int status = rpc_send(call, &part.base, err);
    Covey__V1__ExportImageResponse data = COVEY__V1__EXPORT_IMAGE_RESPONSE__INIT;
    data.data.data = (uint8_t *)"bytes";
    data.data.len = strcmp(codec_get_string(request, "fingerprint"), "short") == 0 ? 3 : 5;
    return status ? status : rpc_send(call, &data.base, err);
}

/* ---- start ---- */

static int fake_watch(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct arena *arena = rpc_arena(call);
    json_t *event = json_pack("{s:s,s:{s:s},s:s}", "type", "lifecycle", "metadata", "action", "instance-started", "location", "node1");
    ProtobufCMessage *message = codec_from_json(rpc_call_method(call)->output, event, arena, err);
    json_decref(event);
    int status = message ? rpc_send(call, message, err) : (int)err->code;
    return status ? status : error_set(err, STATUS_OUT_OF_RANGE, "events were lost");
}

/* Every method of the contract answers from the table, but for the ones played above. */
static void fake_bind(void)
{
    static struct rpc_binding bindings[256];
    size_t used = 0;
    for (size_t s = 0; s < registry_service_count(); s++) {
        const char *service = registry_service_name(s);
        if (!str_prefix(service, "covey."))
            continue;
        size_t first = used;
        for (unsigned i = 0; i < registry_method_count(); i++) {
            const struct method *method = registry_method(i);
            if (strcmp(method->service, service) != 0)
                continue;
            rpc_handler handler = method->client_streaming || method->server_streaming ? NULL : fake_answer;
            if (strcmp(method->name, "Connect") == 0)
                handler = fake_connect;
            else if (strcmp(method->name, "ExecInstance") == 0)
                handler = fake_exec;
            else if (strcmp(method->name, "UploadImage") == 0)
                handler = fake_upload;
            else if (strcmp(method->name, "ExportImage") == 0)
                handler = fake_export;
            else if (strcmp(method->path, "/covey.v1.Events/Watch") == 0)
                handler = fake_watch;
            if (handler) {
                assert_true(used < 256);
                bindings[used++] = (struct rpc_binding){method->name, handler};
            }
        }
        rpc_bind(service, bindings + first, used - first, NULL);
    }
}

static void fake_classify(void *ud, struct caller *caller)
{
    pthread_mutex_lock(&fake.lock);
    if (*fake.trusted && strcmp(caller->fingerprint, fake.trusted) == 0)
        caller->class = CALLER_CLIENT;
    pthread_mutex_unlock(&fake.lock);
}

static struct rpc_server *fake_start(void)
{
    static const struct rpc_policy policy = {.classify = fake_classify};
    struct error err = ERROR_INIT;
    registry_init();
    covey_init();
    fake_bind();
    rpc_set_policy(&policy);
    snprintf(fake.dir, sizeof(fake.dir), "/tmp/covey-cli-XXXXXX");
    assert_non_null(mkdtemp(fake.dir));
    char *path = xasprintf("%s/grpc.socket", fake.dir);
    struct rpc_server *server = rpc_server_listen_unix(path, -1, &err);
    if (!server)
        fail_msg("%s", err.text);
    free(path);
    return server;
}

#endif
