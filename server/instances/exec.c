/* Running a command inside. The operation's metadata tells clients the secrets of the streams; the stored request is what the member's agent gets, so that
 * a new leader asks for the same session again and finds its result. */
#include "instance.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { SECRET_BYTES = 32, COMMAND_WORDS_MAX = 4096, SESSION_ERROR_MAX = 512 };

/* ---- the run ---- */

static void on_cancel(struct op *op, void *ud)
{
    struct arena arena;
    struct error err = ERROR_INIT;
    ProtobufCMessage *answer = NULL;
    Covey__Internal__V1__CancelExecRequest request = COVEY__INTERNAL__V1__CANCEL_EXEC_REQUEST__INIT;
    const uint64_t *member = ud;
    request.operation = (char *)op_uuid(op);
    arena_init(&arena);
    if (agent_call(the_daemon, *member, "CancelExec", &request.base, &answer, &arena, 0, &err) != STATUS_OK) {
        log_warn("instance.exec", "operation=%s error=\"cancelling: %s\"", op_uuid(op), err.text);
    }
    arena_clear(&arena);
}

static char *command_context(const Covey__Internal__V1__ExecRequest *request, struct arena *arena)
{
    struct buf text = {0};
    buf_puts(&text, "{\"command\":[");
    for (size_t i = 0; i < request->n_command; i++) {
        buf_puts(&text, i > 0 ? "," : "");
        buf_json_string(&text, request->command[i]);
    }
    buf_puts(&text, "]}");
    char *out = arena_strdup(arena, text.data);
    buf_free(&text);
    return out;
}

static void tell_output(struct op *op, const struct instance *instance)
{
    static const char *const ends[] = {"stdout", "stderr"};
    json_t *output = json_object();
    for (size_t i = 0; i < 2; i++) {
        char number[2] = {(char)('1' + i), '\0'};
        char *path = arena_printf(op_arena(op), "/1.0/instances/%s/logs/exec_%s.%s", instance->name, op_uuid(op), ends[i]);
        json_object_set_new(output, number, json_string(path));
    }
    op_set_metadata(op, "output", output);
}

static int exec_run(struct op *op, struct error *err)
{
    Covey__Internal__V1__ExecRequest *request = (Covey__Internal__V1__ExecRequest *)op_request(op, &covey__internal__v1__exec_request__descriptor, err);
    struct arena *arena = op_arena(op);
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    if (request == NULL) {
        return err->code;
    }
    if (request->spec == NULL) {
        return error_set(err, STATUS_INTERNAL, "stored request of a command has no instance");
    }
    int status = instance_find(request->spec->project, request->spec->name, arena, &instance, &spec, err);
    if (status != STATUS_OK) {
        return status;
    }
    request->spec = spec;
    request->operation = (char *)op_uuid(op);
    uint64_t *member = arena_alloc(arena, sizeof *member);
    *member = instance->member;
    op_on_cancel(op, on_cancel, member);
    instance_event("instance-exec", instance, op_requestor(op), command_context(request, arena));
    ProtobufCMessage *answer = NULL;
    status = agent_call(the_daemon, instance->member, "Exec", &request->base, &answer, arena, -1, err);
    if (op_cancelled(op)) {
        return error_set(err, STATUS_CANCELLED, "The command was cancelled");
    }
    if (status != STATUS_OK) {
        return status;
    }
    const Covey__Internal__V1__ExecResponse *out = (const Covey__Internal__V1__ExecResponse *)answer;
    if (out->return_ >= 0) {
        op_set_metadata(op, "return", json_integer(out->return_));
    }
    if (request->record_output && !request->wait_for_streams) {
        tell_output(op, instance);
    }
    return str_empty(out->error) ? STATUS_OK : error_set(err, STATUS_FAILED_PRECONDITION, "%.*s", SESSION_ERROR_MAX, out->error);
}

static const struct op_kind stream_kind = {.type = KIND_EXEC, .description = "Executing command", .class = OP_WEBSOCKET, .may_cancel = true, .session = true, .run = exec_run};
static const struct op_kind task_kind = {.type = KIND_EXEC_TASK, .description = "Executing command", .class = OP_TASK, .may_cancel = true, .session = true, .run = exec_run};

/* ---- the request ---- */

/* spec/api.md 6.1: what the request says, then the instance's environment.* keys, then the defaults. */
static struct settings environment_of(const Covey__V1__ExecInstanceRequest *request, const struct settings *config, struct arena *arena)
{
    static const char prefix[] = "environment.";
    struct settings out = {0};
    settings_set(&out, "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", arena);
    settings_set(&out, "LANG", "C.UTF-8", arena);
    if (request->user == 0) {
        settings_set(&out, "HOME", "/root", arena);
        settings_set(&out, "USER", "root", arena);
    }
    for (size_t i = 0; i < config->count; i++) {
        if (str_prefix(config->items[i].key, prefix)) {
            settings_set(&out, config->items[i].key + sizeof prefix - 1, config->items[i].value, arena);
        }
    }
    settings_from_map(&out, request->environment, request->n_environment, arena);
    return out;
}

static char *metadata_of(const Covey__Internal__V1__ExecRequest *request, const struct settings *environment, const struct settings *secrets, struct arena *arena)
{
    json_t *command = json_array(), *variables = json_object(), *fds = json_object();
    for (size_t i = 0; i < request->n_command; i++) {
        json_array_append_new(command, json_string(request->command[i]));
    }
    for (size_t i = 0; i < environment->count; i++) {
        json_object_set_new(variables, environment->items[i].key, json_string(environment->items[i].value));
    }
    for (size_t i = 0; i < secrets->count; i++) {
        json_object_set_new(fds, secrets->items[i].key, json_string(secrets->items[i].value));
    }
    json_t *all = json_pack("{s:o, s:o, s:b, s:o}", "command", command, "environment", variables, "interactive", (int)request->interactive, "fds", fds);
    char *text = all != NULL ? json_dumps(all, JSON_COMPACT) : NULL, *out = arena_strdup(arena, text);
    free(text);
    json_decref(all);
    return out;
}

static void make_secrets(struct settings *out, bool interactive, struct arena *arena)
{
    static const char *const streams[] = {"0", "control", "1", "2"};
    for (size_t i = 0; i < (interactive ? 2 : 4); i++) {
        char secret[2 * SECRET_BYTES + 1];
        random_hex(secret, SECRET_BYTES);
        settings_set(out, streams[i], secret, arena);
    }
}

static int check(const Covey__V1__ExecInstanceRequest *request, struct error *err)
{
    if (request->n_command == 0 || str_empty(request->command[0])) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No command specified");
    }
    if (request->n_command > COMMAND_WORDS_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Command has more than %d words", COMMAND_WORDS_MAX);
    }
    if (request->user < 0 || request->user > UINT32_MAX || request->group < 0 || request->group > UINT32_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid user or group id");
    }
    for (size_t i = 0; i < request->n_environment; i++) {
        if (str_empty(request->environment[i]->key) || strchr(request->environment[i]->key, '=') != NULL) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid environment variable name");
        }
    }
    return STATUS_OK;
}

static int check_running(const struct instance *instance, const Covey__Internal__V1__InstanceSpec *spec, struct arena *arena, struct error *err)
{
    int64_t code = instance_live_status(instance, spec, arena);
    if (code == CODE_FROZEN) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Instance is frozen");
    }
    if (code == CODE_ERROR) { /* it may well run */
        return error_set(err, STATUS_UNAVAILABLE, "The state of the instance is not known: see cluster member %s", instance->member_name);
    }
    return code_alive(code) ? STATUS_OK : error_set(err, STATUS_FAILED_PRECONDITION, "Instance is not running");
}

int exec_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ExecInstanceRequest *request = (const Covey__V1__ExecInstanceRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct instance *instance = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL, short_spec = COVEY__INTERNAL__V1__INSTANCE_SPEC__INIT;
    Covey__Internal__V1__ExecRequest stored = COVEY__INTERNAL__V1__EXEC_REQUEST__INIT;
    Covey__V1__Operation *operation = NULL;
    const char *project = project_or_default(request->project);
    int status = instance_allowed(call, project, err);
    status = status == STATUS_OK ? check(request, err) : status;
    status = status == STATUS_OK ? instance_find(project, request->name, arena, &instance, &spec, err) : status;
    status = status == STATUS_OK ? instance_reachable(instance, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    int checks = check_running(instance, spec, arena, err);
    struct settings environment = environment_of(request, &instance->expanded.config, arena), secrets = {0};
    const char *home = settings_get(&environment, "HOME");
    short_spec.project = (char *)project;
    short_spec.name = request->name;
    stored.spec = &short_spec;
    stored.command = request->command;
    stored.n_command = request->n_command;
    stored.interactive = request->interactive;
    stored.wait_for_streams = request->wait_for_websocket;
    stored.record_output = request->record_output && !request->wait_for_websocket;
    stored.width = request->width;
    stored.height = request->height;
    stored.user = request->user;
    stored.group = request->group;
    stored.cwd = !str_empty(request->cwd) ? request->cwd : (char *)(home != NULL ? home : "/");
    if (request->wait_for_websocket) {
        make_secrets(&secrets, request->interactive, arena);
    }
    stored.environment = settings_to_map(&environment, &covey__internal__v1__exec_request__environment_entry__descriptor, &stored.n_environment, arena);
    stored.secrets = settings_to_map(&secrets, &covey__internal__v1__exec_request__secrets_entry__descriptor, &stored.n_secrets, arena);
    struct op_spec op = {.kind = request->wait_for_websocket ? &stream_kind : &task_kind, .project = project, .member = instance->member,
        .resources_json = instance_resources(arena, project, request->name), .request = &stored.base,
        .metadata_json = request->wait_for_websocket ? metadata_of(&stored, &environment, &secrets, arena) : NULL};
    status = instance_op(call, &op, checks, &operation, err);
    *response = operation != NULL ? &operation->base : NULL;
    return status;
}

void exec_register(void)
{
    op_register(&stream_kind);
    op_register(&task_kind);
}
