/* grpc.reflection.v1alpha.ServerReflection: lets clients without our .proto files find services and types, from the embedded descriptor set.
 *
 * Thread: queue threads; a stream costs no worker. What may fail: unknown names are answered with an error response, as the protocol says. */
#include "rpc_private.h"
#include "grpc/reflection.pb-c.h"
#include <stdlib.h>

enum { FILES_MAX = 256 }; /* files of one answer; the contract has far fewer */

typedef Grpc__Reflection__V1alpha__ServerReflectionRequest request_t;
typedef Grpc__Reflection__V1alpha__ServerReflectionResponse response_t;

static void answer_error(response_t *response, int code, const char *text, struct arena *arena)
{
    Grpc__Reflection__V1alpha__ErrorResponse *error = arena_alloc(arena, sizeof(*error));
    grpc__reflection__v1alpha__error_response__init(error);
    error->error_code = code;
    error->error_message = (char *)text;
    response->message_response_case = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    response->error_response = error;
}

static void answer_file(response_t *response, const char *name, struct arena *arena)
{
    const char **names = arena_alloc(arena, FILES_MAX * sizeof(*names));
    size_t count = name != NULL ? registry_file_dependencies(name, names, FILES_MAX) : 0;
    if (count == 0) {
        answer_error(response, STATUS_NOT_FOUND, "not found", arena);
        return;
    }
    Grpc__Reflection__V1alpha__FileDescriptorResponse *files = arena_alloc(arena, sizeof(*files));
    grpc__reflection__v1alpha__file_descriptor_response__init(files);
    files->file_descriptor_proto = arena_alloc(arena, count * sizeof(*files->file_descriptor_proto));
    for (size_t i = 0; i < count; i++) {
        ProtobufCBinaryData *data = &files->file_descriptor_proto[files->n_file_descriptor_proto];
        data->data = (uint8_t *)registry_file(names[i], &data->len);
        if (data->data != NULL)
            files->n_file_descriptor_proto++;
    }
    response->message_response_case = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    response->file_descriptor_response = files;
}

/* The registry knows the bytes of a symbol's file; its name is their field 1. */
static void answer_symbol(response_t *response, const char *symbol, struct arena *arena)
{
    size_t len = 0;
    const uint8_t *data = registry_file_of_symbol(symbol, &len);
    const char *name = NULL;
    if (data != NULL && len > 2 && data[0] == 0x0a && data[1] < 0x80 && (size_t)data[1] + 2 <= len)
        name = arena_strndup(arena, (const char *)data + 2, data[1]);
    answer_file(response, name, arena);
}

static void answer_services(response_t *response, struct arena *arena)
{
    Grpc__Reflection__V1alpha__ListServiceResponse *list = arena_alloc(arena, sizeof(*list));
    size_t count = registry_service_count();
    grpc__reflection__v1alpha__list_service_response__init(list);
    list->service = arena_alloc(arena, (count + 1) * sizeof(*list->service));
    for (size_t i = 0; i < count; i++) {
        Grpc__Reflection__V1alpha__ServiceResponse *service = arena_alloc(arena, sizeof(*service));
        grpc__reflection__v1alpha__service_response__init(service);
        service->name = (char *)registry_service_name(i);
        list->service[list->n_service++] = service;
    }
    response->message_response_case = GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    response->list_services_response = list;
}

static bool on_request(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    const request_t *request = (const request_t *)message;
    struct error err = ERROR_INIT;
    struct arena arena;
    response_t response;
    (void)ud;

    if (request == NULL) {
        rpc_finish(call, NULL, STATUS_OK, NULL);
        rpc_call_unref(call);
        return true;
    }
    arena_init(&arena);
    grpc__reflection__v1alpha__server_reflection_response__init(&response);
    response.valid_host = request->host;
    response.original_request = (request_t *)request;
    switch ((int)request->message_request_case) {
    case GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        answer_file(&response, request->file_by_filename, &arena);
        break;
    case GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        answer_symbol(&response, request->file_containing_symbol, &arena);
        break;
    case GRPC__REFLECTION__V1ALPHA__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        answer_services(&response, &arena);
        break;
    default: /* extensions: the contract's own are of no use to callers */
        answer_error(&response, STATUS_UNIMPLEMENTED, "not implemented", &arena);
        break;
    }
    if (rpc_try_send(call, &response.base, &err) != STATUS_OK)
        rpc_finish(call, NULL, err.code, &err);
    arena_clear(&arena);
    return true;
}

static int info(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    (void)request;
    (void)response;
    (void)err;
    (void)ud;
    rpc_on_message(call, on_request, NULL);
    return RPC_LATER;
}

void reflection__init(void)
{
    static const struct rpc_binding bindings[] = {{"ServerReflectionInfo", info}};
    rpc_bind("grpc.reflection.v1alpha.ServerReflection", bindings, sizeof(bindings) / sizeof(bindings[0]), NULL);
}
