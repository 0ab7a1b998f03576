/* Preseed YAML; what is read can be written and gives the same when read again. */
#include "client/cli/cli.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct error err = ERROR_INIT;
    json_t *preseed = preseed_parse((const char *)data, len, &err);
    if (preseed == NULL) {
        must_tell(err);
    }
    json_decref(preseed);
    struct error refused = ERROR_INIT, lost = ERROR_INIT;
    json_t *value = yaml_parse((const char *)data, len, &refused);
    if (value == NULL) {
        must_tell(refused);
        return 0;
    }
    struct buf text = {0};
    yaml_write(value, &text);
    json_t *again = yaml_parse(text.data != NULL ? text.data : "", text.len, &lost);
    if (again == NULL || !json_equal(value, again)) {
        fprintf(stderr, "written as:\n%s\n%s\n", text.data != NULL ? text.data : "", lost.text);
        must(!"reads back as it was written");
    }
    json_decref(again);
    json_decref(value);
    buf_free(&text);
    return 0;
}
