/* Field masks of updates. */
#include "mask.h"

#include <string.h>

bool mask_has(const Google__Protobuf__FieldMask *mask, const char *field)
{
    for (size_t i = 0; mask != NULL && i < mask->n_paths; i++) {
        if (strcmp(mask->paths[i], field) == 0) {
            return true;
        }
    }
    return mask == NULL;
}
