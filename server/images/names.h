/* Locks by name on one member: what concerns one image file or one pool is done by one thread at a time on the leader. They keep order inside a process
 * only; what must be true in the cluster is checked again in each transaction. Any thread. */
#ifndef COVEY_SERVER_IMAGES_NAMES_H
#define COVEY_SERVER_IMAGES_NAMES_H

#include "proto/core/error.h"

enum { NAME_LOCK_WAIT_MS = 60000, NAME_LOCK_BYTES_MAX = 160 };

/* Waits at most NAME_LOCK_WAIT_MS; STATUS_UNAVAILABLE `<what> "<name>" is busy`. */
int name_lock(const char *what, const char *name, struct error *err);
void name_unlock(const char *what, const char *name);

#endif
