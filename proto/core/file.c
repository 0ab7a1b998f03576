/* Files and folders: whole reads, atomic writes, removal of trees that somebody else may have filled. Blocking; thread: any. */
#include "core.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_read(const char *path, size_t max, struct buf *out, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return error_errno(err, errno, "open %s", path);
    size_t start = out->len;
    int status = STATUS_OK;
    for (;;) {
        char chunk[16384];
        ssize_t n = read(fd, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = error_errno(err, errno, "read %s", path);
        else if (out->len - start + (size_t)n > max)
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "%s is larger than %zu bytes", path, max);
        if (n <= 0 || status != STATUS_OK)
            break;
        buf_add(out, chunk, (size_t)n);
    }
    if (status == STATUS_OK)
        buf_add(out, "", 0); /* so that data is text even when the file is empty */
    close(fd);
    return status;
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

/* The folder that holds `path`; caller frees. */
static char *parent_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return xstrdup(".");
    return slash == path ? xstrdup("/") : xasprintf("%.*s", (int)(slash - path), path);
}

int file_sync_parent(const char *path, struct error *err)
{
    char *parent = parent_of(path);
    int status = STATUS_OK, fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        status = error_errno(err, errno, "sync %s", parent);
    if (fd >= 0)
        close(fd);
    free(parent);
    return status;
}

int file_write_atomic(const char *path, const void *data, size_t len, mode_t mode, struct error *err)
{
    char *tmp = xasprintf("%s.tmp", path);
    int status = STATUS_OK;
    if (unlink(tmp) < 0 && errno != ENOENT) { /* left by a crash; made anew, so that its mode and owner are ours */
        status = error_errno(err, errno, "remove %s", tmp);
        free(tmp);
        return status;
    }
    int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0) {
        status = error_errno(err, errno, "create %s", tmp);
        free(tmp);
        return status;
    }
    if (fchmod(fd, mode) < 0 || write_all(fd, data, len) < 0 || fsync(fd) < 0)
        status = error_errno(err, errno, "write %s", tmp);
    if (close(fd) < 0 && status == STATUS_OK)
        status = error_errno(err, errno, "close %s", tmp);
    if (status == STATUS_OK && rename(tmp, path) < 0)
        status = error_errno(err, errno, "rename %s to %s", tmp, path);
    if (status != STATUS_OK)
        unlink(tmp); /* the first error is the one to tell */
    else
        status = file_sync_parent(path, err);
    free(tmp);
    return status;
}

int dir_make(const char *path, mode_t mode, struct error *err)
{
    char *copy = xstrdup(path);
    int status = STATUS_OK;
    for (char *p = copy; *p && status == STATUS_OK;) {
        p += strspn(p, "/");
        p += strcspn(p, "/");
        char kept = *p;
        *p = 0;
        struct stat st;
        if (*copy && mkdir(copy, mode) < 0) {
            if (errno != EEXIST)
                status = error_errno(err, errno, "create folder %s", copy);
            else if (stat(copy, &st) < 0)
                status = error_errno(err, errno, "look at %s", copy);
            else if (!S_ISDIR(st.st_mode))
                status = error_errno(err, ENOTDIR, "create folder %s", copy);
        }
        *p = kept;
    }
    free(copy);
    return status;
}

/* ---- removal of a tree ----
 * Every step goes through a descriptor of the folder and never follows a link, so that a tree whose owner changes it meanwhile cannot lead
 * outside. Depth costs descriptors: below REMOVE_DEPTH_MAX a folder is first moved up to the top of the tree. */

enum {
    REMOVE_DEPTH_MAX = 64,
    REMOVE_ROUNDS_MAX = 1000000, /* folders moved up; somebody who adds faster than we remove is refused at last */
};

struct removal {
    const char *path; /* the tree, for error texts */
    int top;          /* descriptor of the tree's first folder */
    unsigned moved;   /* folders moved up to it */
    struct error *err;
};

/* Device and mount of what an open descriptor stands for. The mount number also tells bind mounts of the same file system. */
static int mount_of(int fd, struct statx *out) { return statx(fd, "", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, STATX_TYPE | STATX_MNT_ID, out); }

static bool same_mount(const struct statx *a, const struct statx *b)
{
    if ((a->stx_mask & STATX_MNT_ID) && (b->stx_mask & STATX_MNT_ID) && a->stx_mnt_id != b->stx_mnt_id)
        return false;
    return a->stx_dev_major == b->stx_dev_major && a->stx_dev_minor == b->stx_dev_minor;
}

static int remove_entry(struct removal *removal, int parent, const char *name, int depth);

static int remove_content(struct removal *removal, DIR *dir, int depth)
{
    const struct dirent *entry;
    int status = STATUS_OK;
    while (status == STATUS_OK && (errno = 0, entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = remove_entry(removal, dirfd(dir), entry->d_name, depth);
    if (status == STATUS_OK && errno)
        status = error_errno(removal->err, errno, "list a folder in %s", removal->path);
    return status;
}

static int move_up(struct removal *removal, int parent, const char *name)
{
    char to[64], hex[17];
    random_hex(hex, 8);
    snprintf(to, sizeof(to), ".remove-%s", hex);
    if (++removal->moved > REMOVE_ROUNDS_MAX)
        return error_set(removal->err, STATUS_RESOURCE_EXHAUSTED, "%s has too many deep folders", removal->path);
    if (renameat(parent, name, removal->top, to) < 0 && errno != ENOENT)
        return error_errno(removal->err, errno, "move %s up in %s", name, removal->path);
    return STATUS_OK;
}

/* Opens the folder `name`, empties it and removes it. */
static int remove_folder(struct removal *removal, int parent, const char *name, int depth)
{
    struct statx above, here;
    if (depth >= REMOVE_DEPTH_MAX)
        return move_up(removal, parent, name);
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? STATUS_OK : error_errno(removal->err, errno, "open %s in %s", name, removal->path);
    if (mount_of(parent, &above) < 0 || mount_of(fd, &here) < 0) {
        int status = error_errno(removal->err, errno, "look at %s in %s", name, removal->path);
        close(fd);
        return status;
    }
    if (!same_mount(&above, &here)) {
        close(fd);
        return error_set(removal->err, STATUS_FAILED_PRECONDITION, "cannot remove %s: %s is a mount point", removal->path, name);
    }
    DIR *dir = fdopendir(fd);
    if (!dir) {
        int status = error_errno(removal->err, errno, "open %s in %s", name, removal->path);
        close(fd);
        return status;
    }
    if (depth == 0)
        removal->top = fd;
    int status = remove_content(removal, dir, depth + 1);
    while (depth == 0 && status == STATUS_OK && removal->moved) { /* what was moved here may have come after the listing */
        removal->moved = 0;
        rewinddir(dir);
        status = remove_content(removal, dir, 1);
    }
    closedir(dir);
    if (status == STATUS_OK && unlinkat(parent, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        status = error_errno(removal->err, errno, "remove %s in %s", name, removal->path);
    return status;
}

static int remove_entry(struct removal *removal, int parent, const char *name, int depth)
{
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT)
        return STATUS_OK;
    if (errno != EISDIR && errno != EPERM)
        return error_errno(removal->err, errno, "remove %s in %s", name, removal->path);
    int unlink_errno = errno;
    struct stat st;
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? STATUS_OK : error_errno(removal->err, errno, "look at %s in %s", name, removal->path);
    if (!S_ISDIR(st.st_mode))
        return error_errno(removal->err, unlink_errno, "remove %s in %s", name, removal->path);
    return remove_folder(removal, parent, name, depth);
}

int dir_remove_all(const char *path, struct error *err)
{
    char *copy = xstrdup(path);
    for (size_t len = strlen(copy); len > 1 && copy[len - 1] == '/'; len--)
        copy[len - 1] = 0;
    const char *slash = strrchr(copy, '/'), *name = slash ? slash + 1 : copy;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        free(copy);
        return error_set(err, STATUS_INVALID_ARGUMENT, "cannot remove \"%s\": not the name of a folder", path);
    }
    char *parent = parent_of(copy);
    int status = STATUS_OK, fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        struct removal removal = {.path = path, .top = -1, .err = err};
        status = remove_entry(&removal, fd, name, 0);
        close(fd);
    } else if (errno != ENOENT) {
        status = error_errno(err, errno, "open %s", parent);
    }
    free(parent);
    free(copy);
    return status;
}
