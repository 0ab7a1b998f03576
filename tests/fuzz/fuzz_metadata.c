/* metadata.yaml of an image that somebody uploads. */
#include "fuzz.h"
#include "server/host/host_private.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct host_image_info info = {0};
    struct error err = ERROR_INIT;
    if (metadata__parse((const char *)data, len, &info, &err) != STATUS_OK) {
        must_tell(err);
    } else {
        must(info.architecture != NULL && info.creation_date > 0 && info.expiry_date >= 0);
        for (size_t i = 0; i < info.property_count; i++) {
            must(utf8_valid(info.properties[i].key, strlen(info.properties[i].key)) && utf8_valid(info.properties[i].value, strlen(info.properties[i].value)));
        }
    }
    host_image_info_free(&info);
    return 0;
}
