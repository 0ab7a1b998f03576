/* Which fields a change names. Pure. */
#ifndef COVEY_SERVER_DAEMON_MASK_H
#define COVEY_SERVER_DAEMON_MASK_H

#include "google/protobuf/field_mask.pb-c.h"
#include <stdbool.h>

/* Whether `field` is to be changed. No mask (a PUT) changes every field; an empty one none. */
bool mask_has(const Google__Protobuf__FieldMask *mask, const char *field);

#endif
