/* One daemon per state directory: a lock that ends with the process. */
#include "route.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

int daemon_lock(struct daemon *daemon, struct error *err)
{
    char *path = xasprintf("%s/coveyd.lock", daemon->dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    free(path);
    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) != 0) {
        error_set(err, STATUS_FAILED_PRECONDITION, "another coveyd runs on %s (%s)", daemon->dir, strerrordesc_np(errno));
        if (fd >= 0) {
            close(fd);
        }
        return err->code;
    }
    return STATUS_OK;
}
