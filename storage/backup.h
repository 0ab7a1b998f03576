/* Backups of the replicated database as one file. Numbers are little endian.
 *
 *   0 magic "CVYBACKP"     8 format version u32   12 schema version u32   16 epoch u64   24 revision u64   32 unix time ns i64
 *  40 cluster id, 36 characters and NUL, padded to 40   80 length of the image u64   88 the image (an SQLite file)   then SHA-256 over all before
 *
 * Nothing follows. Thread: any; pure. */
#ifndef COVEY_STORAGE_BACKUP_H
#define COVEY_STORAGE_BACKUP_H

#include "proto/core/core.h"

enum { BACKUP_FORMAT = 1 };
/* Larger databases are not backed up: the same limit as for Raft's snapshots. */
#define BACKUP_BYTES_MAX ((size_t)1 << 30)

struct backup_info {
    char cluster_id[37]; /* "" for a server that is in no cluster */
    uint64_t epoch, revision;
    int64_t time_ns;
    uint32_t schema;
};

/* Appends the file. RESOURCE_EXHAUSTED beyond BACKUP_BYTES_MAX. */
int backup_encode(const struct backup_info *info, const void *image, size_t len, struct buf *out, struct error *err);
/* Checks the whole file; *image points into `data`. STATUS_INVALID_ARGUMENT: no backup, or of a newer format; STATUS_DATA_LOSS: truncated or damaged. */
int backup_decode(const void *data, size_t len, struct backup_info *info, const uint8_t **image, size_t *image_len, struct error *err);

#endif
