/* Makes events from what happened and publishes them. Thread: any. */
#include "events_private.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static void publish(const char *type, json_t *metadata, const char *location, const char *project)
{
    struct arena arena;
    arena_init(&arena);
    Covey__V1__Event event = COVEY__V1__EVENT__INIT, *list = &event;
    Google__Protobuf__Timestamp at = GOOGLE__PROTOBUF__TIMESTAMP__INIT;
    int64_t now = time_unix_ns();
    struct error err = ERROR_INIT;
    char *text = json_dumps(metadata, JSON_COMPACT);
    at.seconds = now / 1000000000;
    at.nanos = (int32_t)(now % 1000000000);
    event.type = (char *)type;
    event.timestamp = &at;
    event.metadata = text != NULL ? codec_struct_from_json(text, &arena, &err) : NULL;
    event.location = (char *)location;
    event.project = (char *)project;
    if (event.metadata == NULL) {
        log_error("events.build", "type=%s error=\"%s\"", type, err.text); /* text that is no UTF-8: our own mistake */
    } else {
        events_publish(&list, 1);
    }
    free(text);
    arena_clear(&arena);
}

void events_lifecycle(const char *action, const char *source, const char *project, const struct caller *requestor, const char *context_json, const char *location)
{
    char here[256];
    if (location == NULL) {
        daemon_location(the_daemon, here, sizeof here);
        location = here;
    }
    json_t *metadata = json_pack("{s:s, s:s}", "action", action, "source", source);
    json_t *context = context_json != NULL ? json_loads(context_json, 0, NULL) : NULL;
    if (json_object_size(context) > 0) {
        json_object_set(metadata, "context", context);
    }
    json_decref(context);
    if (requestor != NULL && requestor->protocol[0] != '\0') {
        json_object_set_new(metadata, "requestor",
            json_pack("{s:s, s:s, s:s}", "username", requestor->username, "protocol", requestor->protocol, "address", requestor->address));
    }
    publish("lifecycle", metadata, location, project != NULL ? project : "");
    json_decref(metadata);
}

void events_operation(const Covey__V1__Operation *operation, const char *project)
{
    struct buf text = {0};
    codec_to_json(&operation->base, &text);
    json_error_t where;
    json_t *metadata = json_loads(text.data, 0, &where);
    if (metadata == NULL) {
        log_error("events.build", "operation=%s error=\"%s\"", operation->id, where.text);
    } else {
        publish("operation", metadata, operation->location, project != NULL ? project : "");
    }
    json_decref(metadata);
    buf_free(&text);
}
