/* Who gets which event. Pure. */
#include "events_private.h"

#include <string.h>

static unsigned type_of(const char *name, size_t len)
{
    static const struct {
        const char *name;
        unsigned type;
    } types[] = {{"operation", EVENT_OPERATION}, {"logging", EVENT_LOGGING}, {"lifecycle", EVENT_LIFECYCLE}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strlen(types[i].name) == len && memcmp(types[i].name, name, len) == 0) {
            return types[i].type;
        }
    }
    return 0;
}

int event_types_parse(const char *text, unsigned *types, struct error *err)
{
    *types = 0;
    for (const char *at = text != NULL ? text : ""; *at != '\0';) {
        size_t len = strcspn(at, ",");
        unsigned type = type_of(at, len);
        if (type == 0) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "\"%.*s\" isn't a supported event type", (int)(len < 100 ? len : 100), at);
        }
        *types |= type;
        at += len + (at[len] == ',');
    }
    *types = *types != 0 ? *types : EVENT_ALL;
    return STATUS_OK;
}

/* Token operations carry their secret. */
static bool is_token(const Covey__V1__Event *event)
{
    for (size_t i = 0; event->metadata != NULL && i < event->metadata->n_fields; i++) {
        const Google__Protobuf__Struct__FieldsEntry *field = event->metadata->fields[i];
        if (strcmp(field->key, "class") == 0 && field->value != NULL && field->value->kind_case == GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE) {
            return strcmp(field->value->string_value, "token") == 0;
        }
    }
    return false;
}

bool event_matches(const struct event_filter *filter, const Covey__V1__Event *event)
{
    unsigned type = type_of(event->type, strlen(event->type));
    if ((type & filter->types) == 0) {
        return false;
    }
    if (!filter->admin && (type == EVENT_LOGGING || (type == EVENT_OPERATION && is_token(event)))) {
        return false;
    }
    if (filter->projects != NULL) { /* restricted: never what belongs to no project */
        bool listed = false;
        for (char *const *project = filter->projects; *project != NULL && !listed; project++) {
            listed = strcmp(*project, event->project) == 0;
        }
        if (!listed) {
            return false;
        }
    }
    return filter->all_projects || event->project[0] == '\0' || strcmp(event->project, filter->project) == 0;
}
