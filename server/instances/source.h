/* Where a new instance comes from: finding an image record. Inside a transaction. */
#ifndef COVEY_SERVER_INSTANCES_SOURCE_H
#define COVEY_SERVER_INSTANCES_SOURCE_H

#include "instance.h"

struct image_record {
    int64_t id;
    char fingerprint[65];
    const char *architecture;
    struct settings properties;
    int64_t *profile_ids;
    size_t profile_count;
};
/* By alias, fingerprint (prefix) or properties; texts of spec/api.md 7.4. `project` is the instance's. */
int image_find(struct sql *sql, int64_t project, const Covey__V1__InstanceSource *source, struct arena *arena, struct image_record *out, struct error *err);
/* Checks that the source is of a kind that is built. */
int source_check(const Covey__V1__InstanceSource *source, struct error *err);
bool source_is_image(const Covey__V1__InstanceSource *source);
/* A made-up name: two words and "-". */
void name_make(char *out, size_t size);

#endif
