/* `unpack`: an image's files into an instance's folder. A child does the work: in a user namespace with the container's id map (so that what it writes
 * belongs to the mapped ids, set-id bits and capabilities mean nothing outside, and no device node can be made), with the folder as its root. For a
 * privileged container there is no map; then the child keeps only the capabilities that ownership and nodes need. Hostile archives thus reach nothing
 * outside the folder; paths that try are refused with a text besides. The caller removes the folder after a failure. */
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    UNPACK_ENTRIES_MAX = 4 << 20,
    UNPACK_PATH_MAX = 4096,
    UNPACK_MEMORY_BYTES_MAX = 1 << 30, /* address space of the child: no decompressor may take the host's memory */
};
#define UNPACK_BYTES_MAX (INT64_C(256) << 30)      /* sum of the files' sizes, holes included */
#define UNPACK_FREE_BYTES_MIN (INT64_C(128) << 20) /* left on the file system */
#define FREE_CHECK_BYTES (INT64_C(32) << 20)

struct unpack {
    int64_t base_uid, base_gid, map_size; /* base_uid < 0: privileged */
    int64_t entries, entries_max, bytes, bytes_max, bytes_checked;
    bool whole; /* unified: only metadata.yaml, templates/ and rootfs/ count */
    bool rootfs_seen;
    int target, image;
};

static int write_text(const char *path, const char *text, struct error *err)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
        error_errno(err, errno, "Failed to write %s", path);
        if (fd >= 0)
            close(fd);
        return err->code;
    }
    close(fd);
    return STATUS_OK;
}

/* Whether an entry of a unified or metadata tarball belongs into the instance's folder. */
static bool wanted(const char *path)
{
    return str_eq(path, "metadata.yaml") || str_eq(path, "templates") || str_prefix(path, "templates/") || str_eq(path, "rootfs") ||
           str_prefix(path, "rootfs/");
}

static int check_entry(struct unpack *u, struct archive_entry *entry, const char *path, struct error *err)
{
    int64_t size = archive_entry_size_is_set(entry) ? archive_entry_size(entry) : 0;
    if (++u->entries > u->entries_max)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "Image has more than %lld entries", (long long)u->entries_max);
    if (size < 0 || size > u->bytes_max - u->bytes)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "Image is larger than %lld bytes when unpacked", (long long)u->bytes_max);
    u->bytes += size;
    int64_t uid = archive_entry_uid(entry), gid = archive_entry_gid(entry);
    if (u->base_uid >= 0 && (uid < 0 || gid < 0 || uid >= u->map_size || gid >= u->map_size))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Image has an owner %lld:%lld outside of the id map for \"%.200s\"", (long long)uid,
                         (long long)gid, path);
    return STATUS_OK;
}

static int check_space(struct unpack *u, int64_t written, struct error *err)
{
    u->bytes_checked += written;
    if (u->bytes_checked < FREE_CHECK_BYTES)
        return STATUS_OK;
    u->bytes_checked = 0;
    struct statvfs fs;
    if (statvfs("/", &fs) == 0 && (int64_t)fs.f_bavail * (int64_t)fs.f_frsize < UNPACK_FREE_BYTES_MIN)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "No space left for the image");
    return STATUS_OK;
}

static int copy_data(struct unpack *u, struct archive *in, struct archive *disk, const char *path, struct error *err)
{
    int64_t total = 0;
    for (;;) {
        const void *block;
        size_t len;
        la_int64_t offset;
        int rc = archive_read_data_block(in, &block, &len, &offset);
        if (rc == ARCHIVE_EOF)
            return STATUS_OK;
        if (rc < ARCHIVE_WARN)
            return error_set(err, STATUS_INVALID_ARGUMENT, "Image is damaged at \"%.200s\": %s", path, archive_error_string(in));
        total += (int64_t)len;
        if (total > u->bytes_max)
            return error_set(err, STATUS_RESOURCE_EXHAUSTED, "Image is larger than %lld bytes when unpacked", (long long)u->bytes_max);
        if (archive_write_data_block(disk, block, len, offset) < ARCHIVE_WARN)
            return error_set(err, archive_errno(disk) == ENOSPC ? STATUS_RESOURCE_EXHAUSTED : STATUS_INTERNAL, "Failed to write \"%.200s\": %s",
                             path, archive_error_string(disk));
        if (check_space(u, (int64_t)len, err))
            return err->code;
    }
}

/* One entry, renamed to `path`. */
static int write_entry(struct unpack *u, struct archive *in, struct archive *disk, struct archive_entry *entry, const char *path, struct error *err)
{
    char link[UNPACK_PATH_MAX];
    const char *target = archive_entry_hardlink(entry);
    if (target) {
        if (!helper__entry_path(target, link, sizeof(link), err))
            return err->code;
        if (u->whole && !wanted(link))
            return error_set(err, STATUS_INVALID_ARGUMENT, "Image has a link to a file outside of it: \"%.200s\"", target);
        archive_entry_set_hardlink(entry, link);
    }
    archive_entry_set_pathname(entry, path);
    unsigned type = archive_entry_filetype(entry);
    if (!target && (type == AE_IFSOCK || ((type == AE_IFCHR || type == AE_IFBLK) && u->base_uid >= 0)))
        return STATUS_OK; /* sockets mean nothing in an image, nodes nothing in an unprivileged container */
    if (check_entry(u, entry, path, err))
        return err->code;
    int rc = archive_write_header(disk, entry);
    if (rc < ARCHIVE_WARN)
        return error_set(err, archive_errno(disk) == ENOSPC ? STATUS_RESOURCE_EXHAUSTED : STATUS_INVALID_ARGUMENT,
                         "Failed to unpack \"%.200s\": %s", path, archive_error_string(disk));
    if (archive_entry_size(entry) > 0 && copy_data(u, in, disk, path, err))
        return err->code;
    /* A warning is an attribute that the file system or the map does not know. */
    if (archive_write_finish_entry(disk) < ARCHIVE_WARN)
        return error_set(err, STATUS_INTERNAL, "Failed to unpack \"%.200s\": %s", path, archive_error_string(disk));
    return STATUS_OK;
}

static int extract(struct unpack *u, struct error *err)
{
    struct archive *in = helper__archive_open(u->image, err);
    if (!in)
        return err->code;
    struct archive *disk = archive_write_disk_new();
    if (!disk)
        core_oom();
    archive_write_disk_set_options(disk, ARCHIVE_EXTRACT_OWNER | ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_ACL |
                                             ARCHIVE_EXTRACT_XATTR | ARCHIVE_EXTRACT_SECURE_SYMLINKS | ARCHIVE_EXTRACT_SECURE_NODOTDOT |
                                             ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS);
    int status = STATUS_OK;
    while (!status) {
        struct archive_entry *entry;
        char path[UNPACK_PATH_MAX];
        int rc = archive_read_next_header(in, &entry);
        if (rc == ARCHIVE_EOF)
            break;
        if (rc < ARCHIVE_WARN) {
            status = error_set(err, STATUS_INVALID_ARGUMENT, "Image is not a readable archive: %s", archive_error_string(in));
            break;
        }
        if (!helper__entry_path(archive_entry_pathname(entry), path, sizeof(path), err)) {
            status = err->code;
            break;
        }
        if (!u->whole && !*path) { /* the root folder itself */
            archive_entry_set_hardlink(entry, NULL);
            snprintf(path, sizeof(path), ".");
            if (archive_entry_filetype(entry) != AE_IFDIR)
                continue;
        }
        if (u->whole && !wanted(path)) {
            status = ++u->entries > u->entries_max ? error_set(err, STATUS_RESOURCE_EXHAUSTED, "Image has more than %lld entries",
                                                               (long long)u->entries_max) : STATUS_OK;
            continue;
        }
        u->rootfs_seen = u->rootfs_seen || str_prefix(path, "rootfs");
        status = write_entry(u, in, disk, entry, path, err);
    }
    if (archive_write_close(disk) < ARCHIVE_WARN && !status)
        status = error_set(err, STATUS_INTERNAL, "Failed to unpack the image: %s", archive_error_string(disk));
    archive_write_free(disk);
    archive_read_free(in);
    return status;
}

static int keep_capabilities(void)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    uint32_t keep = 1u << CAP_CHOWN | 1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER | 1u << CAP_FSETID | 1u << CAP_MKNOD;
    struct __user_cap_data_struct data[2] = {{keep, keep, 0}, {0, 0, 0}};
    data[0].effective = data[0].permitted = keep | 1u << CAP_DAC_READ_SEARCH;
    uint32_t high = 1u << (CAP_SETFCAP - 32 < 32 && CAP_SETFCAP >= 32 ? CAP_SETFCAP - 32 : 0);
    if (CAP_SETFCAP < 32)
        data[0].effective = data[0].permitted |= 1u << CAP_SETFCAP;
    else
        data[1].effective = data[1].permitted = high;
    return (int)syscall(SYS_capset, &head, data);
}

static bool is_squashfs(int fd)
{
    char magic[4];
    return pread(fd, magic, sizeof(magic), 0) == (ssize_t)sizeof(magic) && memcmp(magic, "hsqs", 4) == 0;
}

/* In the child, inside the namespace, in the target folder. Not in a chroot (the program and its libraries are outside), but with no rights but those
 * of the mapped root. Only returns on failure. */
static int exec_unsquashfs(struct unpack *u, struct error *err)
{
    char source[64];
    snprintf(source, sizeof(source), "/proc/self/fd/%d", u->image);
    if (fcntl(u->image, F_SETFD, 0) < 0)
        return error_errno(err, errno, "Failed to hand over the image");
    int null = open("/dev/null", O_RDWR);
    if (null >= 0) {
        dup2(null, STDOUT_FILENO);
        close(null);
    }
    execlp("unsquashfs", "unsquashfs", "-no-progress", "-f", "-d", ".", source, (char *)NULL);
    if (errno == ENOENT)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Image's root is a squashfs and unsquashfs (squashfs-tools) is not installed on this member");
    return error_errno(err, errno, "Failed to run unsquashfs");
}

/* The child: told by `go` that its map is written. */
static int child_work(struct unpack *u, int ready, int go, struct error *err)
{
    char byte = 0;
    struct rlimit core = {0, 0}, memory = {UNPACK_MEMORY_BYTES_MAX, UNPACK_MEMORY_BYTES_MAX};
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    memory.rlim_cur = memory.rlim_max = RLIM_INFINITY; /* shadow memory takes terabytes of address space */
#endif
    if (setrlimit(RLIMIT_CORE, &core) < 0 || setrlimit(RLIMIT_AS, &memory) < 0 || prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 ||
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return error_errno(err, errno, "Failed to limit the unpacking process");
    if (fchdir(u->target) < 0)
        return error_errno(err, errno, "Failed to enter the target folder");
    if (unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | (u->base_uid >= 0 ? CLONE_NEWUSER : 0)) < 0)
        return error_errno(err, errno, "Failed to make a namespace");
    if (write(ready, "r", 1) != 1 || read(go, &byte, 1) != 1)
        return error_set(err, STATUS_INTERNAL, "Failed to synchronise the unpacking process");
    if (u->base_uid >= 0 && (setresgid(0, 0, 0) < 0 || setgroups(0, NULL) < 0 || setresuid(0, 0, 0) < 0))
        return error_errno(err, errno, "Failed to become the mapped root");
    umask(0);
    if (is_squashfs(u->image))
        return exec_unsquashfs(u, err);
    if (chroot(".") < 0 || chdir("/") < 0)
        return error_errno(err, errno, "Failed to enter the target folder");
    if (u->base_uid < 0 && keep_capabilities() < 0)
        return error_errno(err, errno, "Failed to drop capabilities");
    int status = extract(u, err);
    if (!status && u->whole && u->rootfs_seen)
        return STATUS_OK;
    if (!status && u->whole)
        err->retry_ms = 1; /* carries "no rootfs" to the parent */
    return status;
}

static int write_maps(struct unpack *u, pid_t pid, struct error *err)
{
    char path[64], map[96];
    if (u->base_uid < 0)
        return STATUS_OK;
    snprintf(path, sizeof(path), "/proc/%d/uid_map", (int)pid);
    snprintf(map, sizeof(map), "0 %lld %lld\n", (long long)u->base_uid, (long long)u->map_size);
    if (write_text(path, map, err))
        return err->code;
    snprintf(path, sizeof(path), "/proc/%d/gid_map", (int)pid);
    snprintf(map, sizeof(map), "0 %lld %lld\n", (long long)u->base_gid, (long long)u->map_size);
    return write_text(path, map, err);
}

/* Runs one archive into u->target in a child. */
static int in_child(struct unpack *u, struct error *err)
{
    int ready[2], go[2], result[2];
    if (pipe2(ready, O_CLOEXEC) < 0 || pipe2(go, O_CLOEXEC) < 0 || pipe2(result, O_CLOEXEC) < 0)
        return error_errno(err, errno, "Failed to make a pipe");
    pid_t pid = fork();
    if (pid < 0)
        return error_errno(err, errno, "Failed to fork");
    if (pid == 0) {
        struct error mine = ERROR_INIT;
        int status = child_work(u, ready[1], go[0], &mine);
        mine.code = (enum status)status;
        _exit(write(result[1], &mine, sizeof(mine)) == (ssize_t)sizeof(mine) ? 0 : 1);
    }
    close(ready[1]);
    close(go[0]);
    close(result[1]);
    char byte;
    struct error told = ERROR_INIT, map_error = ERROR_INIT;
    bool is_ready = read(ready[0], &byte, 1) == 1;
    int mapped = is_ready ? write_maps(u, pid, &map_error) : STATUS_OK;
    if (is_ready && !mapped && write(go[1], "g", 1) != 1)
        mapped = error_errno(&map_error, errno, "Failed to synchronise the unpacking process");
    close(ready[0]);
    close(go[1]);
    ssize_t n = read(result[0], &told, sizeof(told));
    close(result[0]);
    int wait_status = 0;
    while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR)
        ;
    if (mapped) {
        *err = map_error;
        return mapped;
    }
    if (n == (ssize_t)sizeof(told)) {
        u->rootfs_seen = told.code == STATUS_OK && !told.retry_ms;
        if (told.code != STATUS_OK)
            *err = told;
        return told.code;
    }
    if (n == 0 && WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0) { /* unsquashfs */
        u->rootfs_seen = true;
        return STATUS_OK;
    }
    if (WIFSIGNALED(wait_status))
        return error_set(err, STATUS_INTERNAL, "The unpacking process was killed by signal %d", WTERMSIG(wait_status));
    return error_set(err, STATUS_INVALID_ARGUMENT, "Failed to unpack the image (exit code %d)", WEXITSTATUS(wait_status));
}

static int unpack_file(struct unpack *u, const char *path, struct error *err)
{
    u->image = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (u->image < 0)
        return error_errno(err, errno, "Failed to open the image");
    int status = in_child(u, err);
    close(u->image);
    return status;
}

static int make_rootfs(struct unpack *u, struct error *err)
{
    if (mkdirat(u->target, "rootfs", 0755) < 0 && errno != EEXIST)
        return error_errno(err, errno, "Failed to make the root folder");
    int fd = openat(u->target, "rootfs", O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_errno(err, errno, "Failed to open the root folder");
    if (u->base_uid >= 0 && fchown(fd, (uid_t)u->base_uid, (gid_t)u->base_gid) < 0) {
        error_errno(err, errno, "Failed to give the root folder to the container");
        close(fd);
        return err->code;
    }
    close(u->target);
    u->target = fd;
    return STATUS_OK;
}

/* "image" (unified or metadata), "rootfs" (or ""), "target" (an existing empty folder), "uid"/"gid"/"size" of the map (uid -1: privileged). An empty
 * "image" makes an empty root. */
int helper__unpack(const json_t *in, json_t *out, struct error *err)
{
    struct unpack u = {
        .base_uid = helper__number(in, "uid", -1), .base_gid = helper__number(in, "gid", -1), .map_size = helper__number(in, "size", 0),
        .entries_max = helper__number(in, "entries_max", UNPACK_ENTRIES_MAX), .bytes_max = helper__number(in, "bytes_max", UNPACK_BYTES_MAX),
        .whole = true,
    };
    const char *image = helper__text(in, "image"), *rootfs = helper__text(in, "rootfs");
    u.target = open(helper__text(in, "target"), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (u.target < 0)
        return error_errno(err, errno, "Failed to open the target folder");
    int status = STATUS_OK;
    if (u.base_uid >= 0 && fchown(u.target, (uid_t)u.base_uid, (gid_t)u.base_gid) < 0)
        status = error_errno(err, errno, "Failed to give the folder to the container");
    if (!status && *image)
        status = unpack_file(&u, image, err);
    if (!status && *image && !*rootfs && !u.rootfs_seen)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Image has no rootfs folder");
    if (!status)
        status = make_rootfs(&u, err);
    if (!status && *rootfs) {
        u.whole = false;
        status = unpack_file(&u, rootfs, err);
    }
    if (!status && syncfs(u.target) < 0)
        status = error_errno(err, errno, "Failed to write the root folder to disk");
    close(u.target);
    return status;
}
