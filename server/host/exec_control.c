/* The control stream's commands as clients send them (spec/api.md 6.1). Pure; thread: any. */
#include "exec_private.h"
#include <jansson.h>
#include <string.h>

enum { SIGNAL_MAX = 64 };

bool exec__control_parse(const char *text, struct exec_control *out)
{
    json_error_t why;
    size_t len = strlen(text);
    json_t *root = len <= EXEC_CONTROL_LINE_MAX ? json_loadb(text, len, 0, &why) : NULL;
    const char *command = json_string_value(json_object_get(root, "command"));
    *out = (struct exec_control){0};
    if (str_eq(command, "window-resize")) {
        const json_t *args = json_object_get(root, "args");
        const char *w = json_string_value(json_object_get(args, "width")), *h = json_string_value(json_object_get(args, "height"));
        int64_t width = 0, height = 0;
        if (w && h && parse_i64(w, 1, UINT16_MAX, &width) == 0 && parse_i64(h, 1, UINT16_MAX, &height) == 0)
            *out = (struct exec_control){.width = (int)width, .height = (int)height};
    } else if (str_eq(command, "signal")) {
        json_int_t signo = json_integer_value(json_object_get(root, "signal"));
        if (signo > 0 && signo <= SIGNAL_MAX)
            out->signal = (int)signo;
    }
    json_decref(root);
    return out->width > 0 || out->signal > 0;
}
