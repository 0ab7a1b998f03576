/* Log files of an instance, read from the member that it is on. The leader finds the instance and asks that member piece by piece. */
#include "instance.h"

#include <string.h>

static int find(struct rpc_call *call, const char *project, const char *name, struct instance **instance, Covey__Internal__V1__LogRequest *log, struct error *err)
{
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    project = project_or_default(project);
    int status = instance_allowed(call, project, err);
    status = status == STATUS_OK ? instance_find(project, name, rpc_arena(call), instance, &spec, err) : status;
    status = status == STATUS_OK ? instance_reachable(*instance, err) : status;
    log->spec = spec;
    return status;
}

int list_instance_logs(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListInstanceLogsRequest *request = (const Covey__V1__ListInstanceLogsRequest *)message;
    Covey__Internal__V1__LogRequest log = COVEY__INTERNAL__V1__LOG_REQUEST__INIT;
    struct arena *arena = rpc_arena(call);
    struct instance *instance = NULL;
    ProtobufCMessage *answer = NULL;
    int status = find(call, request->project, request->name, &instance, &log, err);
    status = status == STATUS_OK ? agent_call(the_daemon, instance->member, "ListLogs", &log.base, &answer, arena, 0, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    const Covey__Internal__V1__ListLogsResponse *list = (const Covey__Internal__V1__ListLogsResponse *)answer;
    Covey__V1__ListInstanceLogsResponse *out = arena_alloc(arena, sizeof *out);
    covey__v1__list_instance_logs_response__init(out);
    out->urls = arena_alloc(arena, (list->n_names + 1) * sizeof *out->urls);
    for (size_t i = 0; i < list->n_names; i++) {
        out->urls[out->n_urls++] = arena_printf(arena, "/1.0/instances/%s/logs/%s", instance->name, list->names[i]);
    }
    *response = &out->base;
    return STATUS_OK;
}

/* One piece of at most one agent answer; the memory is given back with `arena`. */
static int send_piece(struct rpc_call *call, const struct instance *instance, Covey__Internal__V1__LogRequest *log, int64_t *left, struct arena *arena, struct error *err)
{
    Covey__V1__ExportImageResponse part = COVEY__V1__EXPORT_IMAGE_RESPONSE__INIT;
    Covey__V1__ExportFile file = COVEY__V1__EXPORT_FILE__INIT, *files = &file;
    ProtobufCMessage *answer = NULL;
    if (agent_call(the_daemon, instance->member, "ReadLog", &log->base, &answer, arena, 0, err) != STATUS_OK) {
        return err->code;
    }
    const Covey__Internal__V1__ReadLogResponse *in = (const Covey__Internal__V1__ReadLogResponse *)answer;
    if (log->offset == 0) { /* what is appended meanwhile is left out: the length is announced once */
        *left = in->size;
        file.name = log->file;
        file.size = in->size;
        part.files = &files;
        part.n_files = 1;
    }
    part.data = in->data;
    part.data.len = (int64_t)in->data.len < *left ? in->data.len : (size_t)*left;
    if (part.data.len == 0 && *left > 0) {
        return error_set(err, STATUS_DATA_LOSS, "Log file is shorter than it was");
    }
    *left -= (int64_t)part.data.len;
    log->offset += (int64_t)part.data.len;
    return rpc_send(call, &part.base, err);
}

int get_instance_log(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__InstanceLogRequest *request = (const Covey__V1__InstanceLogRequest *)message;
    Covey__Internal__V1__LogRequest log = COVEY__INTERNAL__V1__LOG_REQUEST__INIT;
    struct instance *instance = NULL;
    struct arena arena;
    int64_t left = 0;
    int status = find(call, request->project, request->name, &instance, &log, err);
    log.file = request->file;
    arena_init(&arena);
    do {
        if (status == STATUS_OK) {
            status = send_piece(call, instance, &log, &left, &arena, err);
        }
        arena_clear(&arena);
    } while (status == STATUS_OK && left > 0);
    return status;
}

int delete_instance_log(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__InstanceLogRequest *request = (const Covey__V1__InstanceLogRequest *)message;
    Covey__Internal__V1__LogRequest log = COVEY__INTERNAL__V1__LOG_REQUEST__INIT;
    struct instance *instance = NULL;
    ProtobufCMessage *answer = NULL;
    int status = find(call, request->project, request->name, &instance, &log, err);
    log.file = request->file;
    status = status == STATUS_OK ? agent_call(the_daemon, instance->member, "DeleteLog", &log.base, &answer, rpc_arena(call), 0, err) : status;
    if (status == STATUS_OK) {
        instance_event("instance-log-deleted", instance, rpc_caller(call), NULL);
    }
    return status;
}
