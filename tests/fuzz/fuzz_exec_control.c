/* Commands of an exec's control stream. */
#include "fuzz.h"
#include "server/host/exec_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = xmalloc(len + 1);
    struct exec_control control;
    memcpy(text, data, len);
    text[len] = '\0';
    if (exec__control_parse(text, &control)) {
        must((control.signal > 0) != (control.width > 0));
        must(control.width == 0 || (control.width <= UINT16_MAX && control.height > 0 && control.height <= UINT16_MAX));
    }
    free(text);
    return 0;
}
