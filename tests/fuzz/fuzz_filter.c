/* Filters of lists: the expression up to the first line break, the object to match behind it. */
#include "fuzz.h"
#include "server/daemon/filter.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct filter *filter = NULL;
    struct error err = ERROR_INIT;
    json_error_t why;
    char *text = xmalloc(len + 1);
    memcpy(text, data, len);
    text[len] = '\0';
    char *rest = strchr(text, '\n');
    if (rest != NULL)
        *rest++ = '\0';
    json_t *object = rest != NULL ? json_loads(rest, 0, &why) : NULL;
    if (filter_parse(text, &filter, &err) != STATUS_OK)
        must_tell(err);
    else if (json_is_object(object))
        must(filter_match(filter, object) == filter_match(filter, object));
    filter_free(filter);
    json_decref(object);
    free(text);
    return 0;
}
