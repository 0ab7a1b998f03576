/* Log files of a container: what liblxc and recorded commands left in logs/KEY. Thread: any; may block on the disk. */
#include "host_private.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LOGS_MAX = 10000 }; /* files of one container in a list; beyond: RESOURCE_EXHAUSTED */

static bool recorded(const char *name)
{
    const char *end = strrchr(name, '.');
    return str_prefix(name, "exec_") && end && (str_eq(end, ".stdout") || str_eq(end, ".stderr"));
}

/* Only what is meant for users; "lxc.log.old" is the previous start's. */
static bool known(const char *name)
{
    static const char *const names[] = {"lxc.log", "lxc.log.old", "lxc.conf", "console.log"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (str_eq(name, names[i]))
            return true;
    return recorded(name) && !strchr(name, '/');
}

static char *folder(struct host *host, const InstanceSpec *spec)
{
    char *key = instances__key(spec->project, spec->name), *path = xasprintf("%s/logs/%s", host->state_dir, key);
    free(key);
    return path;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int logs__list(struct host *host, const InstanceSpec *spec, struct arena *arena, char ***names, size_t *count, struct error *err)
{
    int rc = instances__check_spec(spec, err);
    *names = NULL;
    *count = 0;
    if (rc)
        return rc;
    char *path = folder(host, spec);
    DIR *dir = opendir(path);
    free(path);
    if (!dir)
        return errno == ENOENT ? STATUS_OK : error_errno(err, errno, "Failed to read the log folder");
    size_t room = 0;
    char **found = NULL;
    for (struct dirent *entry; !rc && (entry = readdir(dir));) {
        if (!known(entry->d_name))
            continue;
        if (*count == LOGS_MAX) {
            rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "Instance has more than %d log files", LOGS_MAX);
            break;
        }
        if (*count == room)
            found = xrealloc(found, (room = room ? 2 * room : 16) * sizeof(*found));
        found[(*count)++] = arena_strdup(arena, entry->d_name);
    }
    closedir(dir);
    if (!rc && *count) {
        *names = arena_alloc(arena, *count * sizeof(**names));
        memcpy(*names, found, *count * sizeof(**names));
        qsort(*names, *count, sizeof(**names), by_name);
    }
    free(found);
    return rc;
}

int logs__read(struct host *host, const InstanceSpec *spec, const char *name, int64_t offset, struct arena *arena, ProtobufCBinaryData *data, int64_t *size,
               struct error *err)
{
    struct stat info;
    int rc = instances__check_spec(spec, err);
    if (rc)
        return rc;
    if (!known(name))
        return error_set(err, STATUS_NOT_FOUND, "Log file not found");
    char *dir = folder(host, spec), *path = xasprintf("%s/%s", dir, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    int failed = fd < 0 ? errno : 0;
    free(dir);
    free(path);
    if (failed)
        return failed == ENOENT ? error_set(err, STATUS_NOT_FOUND, "Log file not found") : error_errno(err, failed, "Failed to open the log file");
    if (fstat(fd, &info) < 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return error_set(err, STATUS_NOT_FOUND, "Log file not found");
    }
    *size = info.st_size;
    data->data = arena_alloc(arena, LOG_READ_BYTES);
    ssize_t n;
    do {
        n = pread(fd, data->data, LOG_READ_BYTES, offset < 0 ? 0 : offset);
    } while (n < 0 && errno == EINTR);
    failed = errno;
    close(fd);
    data->len = n > 0 ? (size_t)n : 0;
    return n < 0 ? error_errno(err, failed, "Failed to read the log file") : STATUS_OK;
}

int logs__delete(struct host *host, const InstanceSpec *spec, const char *name, struct error *err)
{
    int rc = instances__check_spec(spec, err);
    if (rc)
        return rc;
    if (!known(name))
        return error_set(err, STATUS_NOT_FOUND, "Log file not found");
    if (!recorded(name))
        return error_set(err, STATUS_INVALID_ARGUMENT, "lxc.log and lxc.conf may not be deleted");
    char *dir = folder(host, spec), *path = xasprintf("%s/%s", dir, name);
    int failed = unlink(path) < 0 ? errno : 0;
    free(dir);
    free(path);
    if (failed == ENOENT)
        return error_set(err, STATUS_NOT_FOUND, "Log file not found");
    return failed ? error_errno(err, failed, "Failed to delete the log file") : STATUS_OK;
}
