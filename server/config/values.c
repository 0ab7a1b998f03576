/* Values of global keys as the view of this member has them. Thread: any. */
#include "keys.h"

#include "server/daemon/daemon.h"
#include <stdio.h>

void config_text(const char *name, char *out, size_t size)
{
    const struct config_key *key = config_key_find(name);
    covey_assert(key != NULL && !key->local && size > 0);
    const struct view *view = view_get();
    const char *value = view_config(view, name);
    snprintf(out, size, "%s", value != NULL ? value : key->fallback);
    view_unref(view);
}

int64_t config_int(const char *name)
{
    char text[64];
    int64_t n = 0;
    const struct config_key *key = config_key_find(name);
    covey_assert(key != NULL && key->type == KEY_INT);
    config_text(name, text, sizeof text);
    if (parse_i64(text, INT64_MIN, INT64_MAX, &n) != 0) { /* edited by hand in the database */
        log_warn("config.value", "key=%s value=\"%s\" error=\"not a number, the default counts\"", name, text);
        covey_assert(parse_i64(key->fallback, INT64_MIN, INT64_MAX, &n) == 0);
    }
    return n;
}
