/* What capture.c, rowlog.c and digest.c share: the operations of an entry and how values are written. */
#ifndef COVEY_STORAGE_ROWLOG_H
#define COVEY_STORAGE_ROWLOG_H

#include "db_private.h"

enum row_op {
    ROW_INSERT = 1,   /* rowid tables: rowid; values */
    ROW_UPDATE = 2,   /* rowid or key; values */
    ROW_MOVE = 3,     /* rowid, new rowid, values (rowid tables) */
    ROW_DELETE = 4,   /* rowid or key */
    ROW_SEQUENCE = 5, /* the AUTOINCREMENT counter of the table */
};
void rowlog_put_number(struct buf *out, uint64_t value);
void rowlog_put_signed(struct buf *out, int64_t value);

#endif
