/* Backup files: as they come, and with the checksum put right, so that the checks behind it are reached. */
#include "fuzz.h"
#include "storage/backup.h"
#include <openssl/sha.h>

static void decode(const uint8_t *data, size_t len)
{
    struct backup_info info;
    const uint8_t *image;
    size_t image_len;
    struct error err = ERROR_INIT;
    int status = backup_decode(data, len, &info, &image, &image_len, &err);
    if (status != STATUS_OK) {
        must(image == NULL && image_len == 0 && err.text[0] != '\0');
        return;
    }
    must(image > data && image + image_len + SHA256_DIGEST_LENGTH == data + len && strlen(info.cluster_id) <= 36);
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < image_len; i++) { /* readable to its end */
        sum = (uint8_t)(sum + image[i]);
    }
    struct buf again = {0};
    must(backup_encode(&info, image, image_len, &again, &err) == STATUS_OK && again.len == len);
    struct backup_info info2;
    must(backup_decode(again.data, again.len, &info2, &image, &image_len, &err) == STATUS_OK && info.epoch == info2.epoch && info.revision == info2.revision &&
         info.time_ns == info2.time_ns && info.schema == info2.schema && strcmp(info.cluster_id, info2.cluster_id) == 0);
    buf_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    decode(data, len);
    if (len > SHA256_DIGEST_LENGTH) {
        uint8_t *right = xmalloc(len);
        memcpy(right, data, len);
        SHA256(right, len - SHA256_DIGEST_LENGTH, right + len - SHA256_DIGEST_LENGTH);
        decode(right, len);
        free(right);
    }
    return 0;
}
