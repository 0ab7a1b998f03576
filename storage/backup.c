/* The format of backup files: see backup.h. */
#include "backup.h"

#include <endian.h>
#include <openssl/sha.h>
#include <string.h>

enum { FORMAT_AT = 8, SCHEMA_AT = 12, EPOCH_AT = 16, REVISION_AT = 24, TIME_AT = 32, CLUSTER_AT = 40, CLUSTER_BYTES = 40, LENGTH_AT = 80, IMAGE_AT = 88,
       SQLITE_HEADER_BYTES = 100 };

static const char magic[8] = {'C', 'V', 'Y', 'B', 'A', 'C', 'K', 'P'};

static void put32(uint8_t *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof value);
}

static uint32_t get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return le32toh(value);
}

static uint64_t get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return le64toh(value);
}

int backup_encode(const struct backup_info *info, const void *image, size_t len, struct buf *out, struct error *err)
{
    if (len > BACKUP_BYTES_MAX)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "The database of %zu bytes is larger than a backup may be (%zu)", len, BACKUP_BYTES_MAX);
    size_t total = IMAGE_AT + len;
    uint8_t *at = (uint8_t *)buf_grow(out, total + SHA256_DIGEST_LENGTH);
    memset(at, 0, IMAGE_AT);
    memcpy(at, magic, sizeof magic);
    put32(at + FORMAT_AT, BACKUP_FORMAT);
    put32(at + SCHEMA_AT, info->schema);
    put64(at + EPOCH_AT, info->epoch);
    put64(at + REVISION_AT, info->revision);
    put64(at + TIME_AT, (uint64_t)info->time_ns);
    memcpy(at + CLUSTER_AT, info->cluster_id, strnlen(info->cluster_id, sizeof info->cluster_id - 1));
    put64(at + LENGTH_AT, len);
    memcpy(at + IMAGE_AT, image, len);
    SHA256(at, total, at + total);
    return STATUS_OK;
}

int backup_decode(const void *data, size_t len, struct backup_info *info, const uint8_t **image, size_t *image_len, struct error *err)
{
    const uint8_t *at = data;
    uint8_t hash[SHA256_DIGEST_LENGTH];
    *image = NULL;
    *image_len = 0;
    if (len < sizeof magic || memcmp(at, magic, sizeof magic) != 0)
        return error_set(err, STATUS_INVALID_ARGUMENT, "This is not a backup of a cluster");
    if (len < IMAGE_AT + SQLITE_HEADER_BYTES + SHA256_DIGEST_LENGTH)
        return error_set(err, STATUS_DATA_LOSS, "The backup is truncated: %zu bytes are too few for any", len);
    uint32_t format = get32(at + FORMAT_AT);
    if (format != BACKUP_FORMAT)
        return error_set(err, STATUS_INVALID_ARGUMENT, "The backup has format version %u; this program reads %d", format, BACKUP_FORMAT);
    uint64_t size = get64(at + LENGTH_AT), expected = IMAGE_AT + size + SHA256_DIGEST_LENGTH;
    if (size > BACKUP_BYTES_MAX || size < SQLITE_HEADER_BYTES)
        return error_set(err, STATUS_DATA_LOSS, "The backup is damaged: it claims a database of %llu bytes", (unsigned long long)size);
    if (len != expected)
        return error_set(err, STATUS_DATA_LOSS, "The backup is %s: it has %zu bytes and should have %llu", len < expected ? "truncated" : "damaged", len,
                         (unsigned long long)expected);
    SHA256(at, len - sizeof hash, hash);
    if (memcmp(hash, at + len - sizeof hash, sizeof hash) != 0)
        return error_set(err, STATUS_DATA_LOSS, "The backup does not match its checksum");
    if (memchr(at + CLUSTER_AT, 0, sizeof info->cluster_id) == NULL || !utf8_valid((const char *)at + CLUSTER_AT, strlen((const char *)at + CLUSTER_AT)))
        return error_set(err, STATUS_DATA_LOSS, "The backup is damaged: its cluster id cannot be read");
    *info = (struct backup_info){.epoch = get64(at + EPOCH_AT), .revision = get64(at + REVISION_AT), .time_ns = (int64_t)get64(at + TIME_AT), .schema = get32(at + SCHEMA_AT)};
    memcpy(info->cluster_id, at + CLUSTER_AT, strlen((const char *)at + CLUSTER_AT) + 1);
    *image = at + IMAGE_AT;
    *image_len = (size_t)size;
    return STATUS_OK;
}
