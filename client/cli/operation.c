/* operation …, monitor, rpc, version. */
#include "cli.h"
#include "covey/v1/event.pb-c.h"
#include <stdlib.h>
#include <string.h>

int run_operation_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply, *operation;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cli_call(cli, client, "Operations/ListOperations", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"ID", "TYPE", "DESCRIPTION", "STATUS", "CANCELABLE", "CREATED", "LOCATION"};
    bool clustered = false;
    json_t *raw = json_array(), *list;
    const char *state;
    size_t index;
    json_object_foreach(json_object_get(reply, "operations"), state, list)
    {
        json_array_foreach(list, index, operation)
        {
            clustered = clustered || (*json_text(operation, "location") && strcmp(json_text(operation, "location"), "none") != 0);
            json_array_append(raw, operation);
        }
    }
    struct table table;
    table_init(&table, headers, clustered ? 7 : 6);
    json_array_foreach(raw, index, operation)
    {
        char *class = xstrdup(json_text(operation, "class")), *status_text = xstrdup(json_text(operation, "status"));
        char created[CLI_SHORT_TIME_SIZE];
        for (char *c = class; *c; c++)
            *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
        for (char *c = status_text; *c; c++)
            *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
        cli_minute_time(json_text(operation, "created_at"), created);
        table_add(&table, json_text(operation, "id"), class, json_text(operation, "description"), status_text,
                  json_is_true(json_object_get(operation, "may_cancel")) ? "YES" : "NO", created, json_text(operation, "location"));
        free(status_text);
        free(class);
    }
    table_sort(&table);
    status = cli_print(cli, &table, raw, err);
    table_free(&table);
    json_decref(raw);
    json_decref(reply);
    return status;
}

int run_operation_show(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *id;
    json_t *operation = NULL;
    int status = cli_resolve(cli, cli->argv[0], &client, &id, err);
    if (!status)
        status = cli_call(cli, client, "Operations/GetOperation", json_pack("{s:s}", "id", id), &operation, err);
    if (!status)
        status = cli_print_yaml(operation);
    json_decref(operation);
    free(id);
    return status;
}

int run_operation_delete(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *id;
    int status = cli_resolve(cli, cli->argv[0], &client, &id, err);
    if (!status)
        status = client_cancel(client, id, err);
    if (!status)
        cli_say(cli, "Operation %s deleted\n", id);
    free(id);
    return status;
}

/* ---- monitor ---- */

static int print_event(const char *format, const json_t *event, struct error *err)
{
    char *text;
    const json_t *metadata = json_object_get(event, "metadata");
    if (strcmp(format, "json") == 0) {
        text = json_dumps(event, JSON_COMPACT);
    } else if (strcmp(format, "pretty") == 0) {
        const char *what = json_text(metadata, "action");
        what = *what ? what : *json_text(metadata, "message") ? json_text(metadata, "message") : json_text(metadata, "description");
        char *rest = json_dumps(metadata, JSON_COMPACT);
        text = xasprintf("%s %s [%s] %s %s", json_text(event, "timestamp"), json_text(event, "type"), json_text(event, "location"), what, rest);
        free(rest);
    } else {
        struct buf yaml = {0};
        yaml_write(event, &yaml);
        buf_puts(&yaml, "\n");
        text = buf_take(&yaml);
    }
    int status = puts(text) < 0 || fflush(stdout) ? error_set(err, STATUS_INTERNAL, "cannot write to standard output") : STATUS_OK;
    free(text);
    return status;
}

int run_monitor(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    const char *format = cli_switch(cli, "pretty") ? "pretty" : cli_flag(cli, "event-format") ? cli_flag(cli, "event-format") : "yaml", *types[16];
    if (strcmp(format, "json") != 0 && strcmp(format, "pretty") != 0 && strcmp(format, "yaml") != 0)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid format \"%s\"", format);
    struct buf type = {0};
    size_t count = cli_flag_list(cli, "event-type", types, 16);
    for (size_t i = 0; i < count; i++)
        buf_printf(&type, "%s%s", i ? "," : "", types[i]);
    int status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    struct covey_stream *stream = NULL;
    const char *project = cli_flag(cli, "project");
    if (!status)
        status = client_stream_open(client, "Events/Watch",
                                    json_pack("{s:s,s:s,s:b}", "type", type.data ? type.data : "", "project", project ? project : "", "all-projects",
                                              cli_switch(cli, "all-projects")),
                                    -1, &stream, err);
    buf_free(&type);
    ProtobufCMessage *message;
    while (!status && !(status = client_stream_receive(stream, &message, err))) {
        json_t *event = client_json(message, err);
        if (!event)
            status = (int)err->code;
        else if (*json_text(event, "type")) /* the first message only says that the watch has begun */
            status = print_event(format, event, err);
        json_decref(event);
    }
    if (status == STATUS_OUT_OF_RANGE && !(status = rpc_status(stream->call, err)))
        status = error_set(err, STATUS_UNAVAILABLE, "the event stream ended");
    covey_stream_free(stream);
    return status;
}

/* ---- rpc ---- */

static int list_methods(void)
{
    for (unsigned i = 0; i < registry_method_count(); i++) {
        const struct method *method = registry_method(i);
        printf("%s/%s (%s%s) returns (%s%s)\n", method->service, method->name, method->client_streaming ? "stream " : "", method->input->name,
               method->server_streaming ? "stream " : "", method->output->name);
    }
    return STATUS_OK;
}

static int read_request(struct cli *cli, const char *given, json_t **request, struct error *err)
{
    json_error_t where;
    struct buf text = {0};
    *request = NULL;
    if (!given) {
        *request = json_object();
        return STATUS_OK;
    }
    int status = strcmp(given, "-") == 0 ? cli_read_all(cli->in, &text, err) : STATUS_OK;
    if (!status && !(*request = json_loads(text.data ? text.data : given, 0, &where)))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "the request is not JSON: %s (line %d, column %d)", where.text, where.line, where.column);
    else if (!status && !json_is_object(*request)) {
        json_decref(*request);
        *request = NULL;
        status = error_set(err, STATUS_INVALID_ARGUMENT, "the request must be a JSON object");
    }
    buf_free(&text);
    return status;
}

static void print_json(const json_t *value, size_t flags)
{
    char *text = json_dumps(value, flags | JSON_ENCODE_ANY);
    puts(text ? text : "null");
    free(text);
}

/* One JSON message a line goes out, then the answers come in. */
static int run_stream(struct cli *cli, struct covey_client *client, const struct method *method, const char *name, json_t *request, struct error *err)
{
    struct covey_stream *stream;
    bool sends = method->client_streaming;
    int status = client_stream_open(client, name, sends ? NULL : request, -1, &stream, err);
    if (sends && status)
        json_decref(request);
    if (status)
        return status;
    if (sends && json_object_size(request))
        status = client_stream_send(stream, request, err);
    else if (sends)
        json_decref(request);
    char *line = NULL;
    size_t size = 0;
    while (sends && !status && cli_switch(cli, "stream") && getline(&line, &size, cli->in) >= 0) {
        json_error_t where;
        json_t *message = json_loads(line, 0, &where);
        status = message ? client_stream_send(stream, message, err) : error_set(err, STATUS_INVALID_ARGUMENT, "not JSON: %s", where.text);
    }
    free(line);
    if (sends && !status)
        (void)rpc_half_close(stream->call); /* the status tells */
    ProtobufCMessage *reply;
    while (!status && !(status = client_stream_receive(stream, &reply, err))) {
        json_t *json = client_json(reply, err);
        status = json ? STATUS_OK : (int)err->code;
        if (json)
            print_json(json, JSON_COMPACT);
        fflush(stdout);
        json_decref(json);
    }
    if (status == STATUS_OUT_OF_RANGE)
        status = rpc_status(stream->call, err);
    covey_stream_free(stream);
    return status;
}

int run_rpc(struct cli *cli, struct error *err)
{
    if (cli_switch(cli, "list-methods"))
        return list_methods();
    if (!cli->argc)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Missing required arguments");
    struct covey_client *client;
    char *name = NULL;
    json_t *request = NULL, *reply = NULL;
    const char *seconds = cli_flag(cli, "timeout");
    int64_t timeout = 0;
    int status = read_request(cli, cli->argc > 1 ? cli->argv[1] : NULL, &request, err);
    if (!status && seconds && parse_i64(seconds, 1, INT32_MAX, &timeout))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "invalid argument \"%s\" for \"--timeout\"", seconds);
    if (!status)
        status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    const struct method *method = status ? NULL : client_method(name, err);
    if (!method) {
        json_decref(request);
        free(name);
        return (int)err->code;
    }
    if (cli_flag(cli, "mask"))
        json_object_set_new(request, "update_mask", json_string(cli_flag(cli, "mask")));
    if (method->client_streaming || method->server_streaming) {
        status = run_stream(cli, client, method, name, request, err);
    } else {
        struct covey_options options = {.timeout_ms = timeout * 1000};
        status = client_call_options(client, name, request, &reply, NULL, &options, err);
        if (!status)
            print_json(reply, JSON_INDENT(2));
        json_decref(reply);
    }
    free(name);
    return status;
}

int run_version(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *server = NULL;
    if (cli->daemon_grammar) {
        printf("%s\n", COVEY_VERSION);
        return STATUS_OK;
    }
    struct error e = ERROR_INIT;
    int status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, &e);
    if (!status)
        status = cli_call(cli, client, "Server/GetServer", NULL, &server, &e);
    const char *version = json_text(json_object_get(server, "environment"), "server_version");
    printf("Client version: %s\nServer version: %s\n", COVEY_VERSION, status ? "unreachable" : *version ? version : "unknown");
    json_decref(server);
    return STATUS_OK;
}
