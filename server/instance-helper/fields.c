/* Fields of a command's input. Pure. */
#include "helper.h"

const char *helper__text(const json_t *in, const char *key)
{
    const char *text = json_string_value(json_object_get(in, key));
    return text ? text : "";
}

int64_t helper__number(const json_t *in, const char *key, int64_t otherwise)
{
    const json_t *value = json_object_get(in, key);
    return json_is_integer(value) ? (int64_t)json_integer_value(value) : otherwise;
}
