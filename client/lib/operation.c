/* Waiting for operations, watching events, and exec without a terminal. Blocking, any thread. A failed operation is an error with its own text. */
#include "client.h"
#include "covey/v1/event.pb-c.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STATUS_CODE_FINAL = 200 }; /* codes from here on are final: 200 success, 400 failure, 401 cancelled */

static void pause_ms(int64_t ms)
{
    struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static int final_status(const json_t *operation, struct error *err)
{
    int64_t code = json_integer_value(json_object_get(operation, "status_code"));
    if (code == STATUS_CODE_FINAL)
        return STATUS_OK;
    const char *text = json_text(operation, "err");
    if (code == 401)
        return error_set(err, STATUS_CANCELLED, "%s", *text ? text : "Operation cancelled");
    return error_set(err, STATUS_FAILED_PRECONDITION, "%s", *text ? text : "The operation failed without saying why");
}

bool client_final(const json_t *operation, int *status, struct error *err)
{
    if (json_integer_value(json_object_get(operation, "status_code")) < STATUS_CODE_FINAL)
        return false;
    *status = final_status(operation, err);
    return true;
}

int client_wait(struct covey_client *client, const char *id, int64_t timeout_ms, client_progress progress, void *ud, json_t **operation,
                struct error *err)
{
    if (operation)
        *operation = NULL;
    int64_t deadline = timeout_ms > 0 ? time_mono_ms() + timeout_ms : INT64_MAX;
    char slice[16];
    snprintf(slice, sizeof(slice), "%d", CLIENT_WAIT_SLICE_S);
    const struct covey_options options = {.timeout_ms = CLIENT_WAIT_SLICE_S * 1000 + CLIENT_WAIT_GRACE_MS};
    for (int failures = 0;;) {
        json_t *now = NULL;
        int status = client_call_options(client, "Operations/WaitOperation", json_pack("{s:s,s:s}", "id", id, "timeout", slice), &now, NULL, &options, err);
        if (status == STATUS_UNAVAILABLE && ++failures <= CLIENT_WAIT_RETRIES_MAX && time_mono_ms() < deadline) {
            pause_ms(250); /* the member may be between two lives of its listener (bootstrap, join) */
            continue;
        }
        if (status)
            return status;
        failures = 0;
        bool final = json_integer_value(json_object_get(now, "status_code")) >= STATUS_CODE_FINAL;
        bool go_on = !progress || progress(now, ud);
        if (final)
            status = final_status(now, err);
        else if (!go_on)
            status = error_set(err, STATUS_CANCELLED, "No longer waiting for the operation");
        else if (time_mono_ms() >= deadline)
            status = error_set(err, STATUS_DEADLINE_EXCEEDED, "The operation is still running");
        bool done = final || status;
        if (done && operation)
            *operation = now;
        else
            json_decref(now);
        if (done)
            return status;
    }
}

int client_cancel(struct covey_client *client, const char *id, struct error *err)
{
    return client_call(client, "Operations/CancelOperation", json_pack("{s:s}", "id", id), NULL, err);
}

int covey_cancel(struct covey_client *client, const char *id, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    return covey__result(client_cancel(client, id, &e), &e, err);
}

struct progress_text {
    covey_progress fn;
    void *ud;
};

static bool progress_as_text(const json_t *operation, void *ud)
{
    const struct progress_text *progress = ud;
    char *text = json_dumps(operation, JSON_COMPACT);
    bool go_on = progress->fn(text, progress->ud);
    free(text);
    return go_on;
}

int covey_wait(struct covey_client *client, const char *id, int64_t timeout_ms, covey_progress progress, void *ud, char **operation,
               struct covey_error *err)
{
    struct error e = ERROR_INIT;
    struct progress_text text = {progress, ud};
    json_t *last = NULL;
    int status = client_wait(client, id, timeout_ms, progress ? progress_as_text : NULL, &text, &last, &e);
    if (operation)
        *operation = last ? json_dumps(last, JSON_COMPACT) : NULL;
    json_decref(last);
    return covey__result(status, &e, err);
}

int covey_watch(struct covey_client *client, const char *types, const char *project, uint64_t from,
                bool (*fn)(const char *event, uint64_t number, void *ud), void *ud, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    struct covey_stream *stream;
    json_t *request = json_pack("{s:s,s:s,s:I}", "type", types ? types : "", "project", project ? project : "", "from", (json_int_t)from);
    int status = client_stream_open(client, "Events/Watch", request, -1, &stream, &e);
    bool go_on = true;
    while (!status && go_on) {
        ProtobufCMessage *message;
        status = client_stream_receive(stream, &message, &e);
        if (status == STATUS_OUT_OF_RANGE) { /* the server never ends a watch without a reason */
            status = rpc_status(stream->call, &e);
            if (!status)
                status = error_set(&e, STATUS_UNAVAILABLE, "the event stream ended");
        }
        if (status)
            break;
        struct buf text = {0};
        codec_to_json(message, &text);
        go_on = fn(text.data, ((const Covey__V1__Event *)message)->number, ud);
        buf_free(&text);
    }
    covey_stream_free(stream);
    return covey__result(status, &e, err);
}

/* ---- exec ---- */

struct exec_output {
    const struct covey_exec *exec;
    struct covey_stream *stream;
    int fd;
};

static void *copy_output(void *ud)
{
    struct exec_output *out = ud;
    struct error e = ERROR_INIT;
    const uint8_t *data;
    size_t len;
    bool wanted = out->exec->output != NULL;
    while (!client_attach_read(out->stream, &data, &len, &e)) /* how it ends is told by the operation */
        wanted = wanted && out->exec->output(out->fd, data, len, out->exec->ud);
    return NULL;
}

static json_t *exec_request(const struct covey_exec *exec)
{
    json_t *command = json_array(), *environment = json_object();
    for (const char *const *word = exec->command; word && *word; word++)
        json_array_append_new(command, json_string(*word));
    for (const char *const *item = exec->environment; item && *item; item++) {
        const char *equal = strchr(*item, '=');
        char *key = equal ? xasprintf("%.*s", (int)(equal - *item), *item) : xstrdup(*item);
        json_object_set_new(environment, key, json_string(equal ? equal + 1 : ""));
        free(key);
    }
    return json_pack("{s:s,s:s,s:o,s:o,s:b,s:b,s:I,s:I,s:s}", "name", exec->instance ? exec->instance : "", "project",
                     exec->project ? exec->project : "", "command", command, "environment", environment, "wait-for-websocket", 1, "interactive", 0,
                     "user", (json_int_t)exec->user, "group", (json_int_t)exec->group, "cwd", exec->cwd ? exec->cwd : "");
}

static int exec_streams(struct covey_client *client, const struct covey_exec *exec, const json_t *operation, int *exit_code, struct error *err)
{
    const char *id = json_text(operation, "id");
    const json_t *secrets = json_object_get(json_object_get(operation, "metadata"), "fds");
    struct covey_stream *in = NULL;
    struct exec_output outputs[2] = {{exec, NULL, 1}, {exec, NULL, 2}};
    pthread_t threads[2];
    int running = 0;
    int status = client_attach(client, id, json_text(secrets, "0"), &in, err);
    if (!status)
        status = client_attach(client, id, json_text(secrets, "1"), &outputs[0].stream, err);
    if (!status)
        status = client_attach(client, id, json_text(secrets, "2"), &outputs[1].stream, err);
    while (!status && running < 2) {
        if (pthread_create(&threads[running], NULL, copy_output, &outputs[running]))
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "cannot start a thread");
        else
            running++;
    }
    if (!status && exec->input_len)
        (void)client_attach_write(in, exec->input, exec->input_len, NULL); /* a command that reads nothing may be gone already */
    if (!status)
        (void)client_attach_end(in, NULL);
    json_t *last = NULL;
    if (!status)
        status = client_wait(client, id, 0, NULL, NULL, &last, err);
    for (int i = 0; i < running; i++) {
        if (status)
            covey_stream_cancel(outputs[i].stream);
        pthread_join(threads[i], NULL);
    }
    const json_t *code = json_object_get(json_object_get(last, "metadata"), "return");
    if (!status && !json_is_number(code))
        status = error_set(err, STATUS_INTERNAL, "the operation ended without an exit code");
    if (!status)
        *exit_code = (int)json_number_value(code);
    json_decref(last);
    covey_stream_free(in);
    covey_stream_free(outputs[0].stream);
    covey_stream_free(outputs[1].stream);
    return status;
}

int covey_exec(struct covey_client *client, const struct covey_exec *exec, int *exit_code, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    json_t *operation = NULL;
    int status = client_call(client, "Instances/ExecInstance", exec_request(exec), &operation, &e);
    if (!status)
        status = exec_streams(client, exec, operation, exit_code, &e);
    json_decref(operation);
    return covey__result(status, &e, err);
}
