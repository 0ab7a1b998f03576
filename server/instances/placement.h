/* Which member a new instance goes to (spec/placement.md 4). Pure. */
#ifndef COVEY_SERVER_INSTANCES_PLACEMENT_H
#define COVEY_SERVER_INSTANCES_PLACEMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum placement_mode { PLACEMENT_ALL, PLACEMENT_GROUP, PLACEMENT_MANUAL }; /* scheduler.instance */

struct placement_member {
    uint64_t id;
    int64_t state;          /* 0 created, 1 pending, 2 evacuated */
    bool online;
    enum placement_mode mode;
    bool in_group;          /* of the requested group, if there is one */
    bool project_may;       /* the project's restrictions allow it */
    const char *architecture;
    int64_t instances;      /* rows on it, those being created included */
};

/* Which architectures a member of this one runs (spec/placement.md 4.5). */
bool architecture_runs(const char *member, const char *wanted);
/* "" or NULL: mode "all"; -1 when the value is none of the three. */
int placement_mode_parse(const char *text, enum placement_mode *out);
/* The candidate with the fewest instances, the lower id among equals; 0 = none. `wanted` NULL or "": any architecture. */
uint64_t placement_choose(const struct placement_member *members, size_t count, bool group_requested, const char *wanted);

#endif
