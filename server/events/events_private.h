/* Between the files of this folder. */
#ifndef COVEY_SERVER_EVENTS_PRIVATE_H
#define COVEY_SERVER_EVENTS_PRIVATE_H

#include "events.h"

enum event_type { EVENT_OPERATION = 1, EVENT_LOGGING = 2, EVENT_LIFECYCLE = 4, EVENT_ALL = 7 };

struct event_filter {
    unsigned types;      /* of enum event_type */
    bool admin;          /* may see logging events and token operations */
    bool all_projects;   /* else: `project` and events without project */
    const char *project;
    char *const *projects; /* NULL-terminated list of a restricted caller, NULL = any */
};

/* Pure (filter.c). Comma list to types, "" = all; INVALID_ARGUMENT names the unknown one. */
int event_types_parse(const char *text, unsigned *types, struct error *err);
/* Whether a watcher with this filter gets the event. */
bool event_matches(const struct event_filter *filter, const Covey__V1__Event *event);

#endif
