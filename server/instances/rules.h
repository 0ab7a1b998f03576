/* Pure rules: names. Configuration and devices: settings.h. */
#ifndef COVEY_SERVER_INSTANCES_RULES_H
#define COVEY_SERVER_INSTANCES_RULES_H

#include "proto/core/error.h"

int instance_name_check(const char *name, struct error *err); /* spec/api.md 7.3 */
/* Profiles, pools: not empty, no "/", not "." or "..", at most 128 bytes. */
int object_name_check(const char *what, const char *name, struct error *err);

#endif
