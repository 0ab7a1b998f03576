/* Storage pools of this host: a table of drivers, each a struct of functions. `dir` keeps volumes as folders; the others are known by name and refused,
 * never faked. A volume is made beside its place and renamed into it: it is there completely or not at all. Any thread; blocks on the disk. */
#include "host_private.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { MARK_BYTES_MAX = 4096 };
#define POOL_MARK ".covey-pool"     /* in a pool's folder: the pool's name; says that the folder is ours */
#define VOLUME_MARK "instance.uuid" /* in a volume: whose it is */
#define UNFINISHED ".tmp-"          /* prefix of volumes being made or removed */

struct pool_driver {
    const char *name;
    int (*create)(struct host *host, const PoolSpec *pool, struct error *err); /* NULL: not supported yet */
    int (*delete)(struct host *host, const PoolSpec *pool, struct error *err);
    int (*resources)(struct host *host, const PoolSpec *pool, struct statvfs *out, struct error *err);
};

static const char *pool_key(const PoolSpec *pool, const char *key)
{
    for (size_t i = 0; i < pool->n_config; i++)
        if (str_eq(pool->config[i]->key, key))
            return str_empty(pool->config[i]->value) ? NULL : pool->config[i]->value;
    return NULL;
}

/* Where the pool is on this host; caller frees. */
static char *dir_path(struct host *host, const PoolSpec *pool)
{
    const char *source = pool_key(pool, "source");
    char *path = source ? xstrdup(source) : xasprintf("%s/storage-pools/%s", host->state_dir, pool->name);
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/')
        path[--len] = 0;
    return path;
}

static bool dir_is_default(struct host *host, const PoolSpec *pool, const char *path)
{
    char *own = xasprintf("%s/storage-pools/%s", host->state_dir, pool->name);
    bool same = str_eq(own, path);
    free(own);
    return same;
}

static int dir_empty(const char *path, bool *empty, struct error *err)
{
    DIR *dir = opendir(path);
    if (!dir)
        return error_errno(err, errno, "Failed to list %s", path);
    *empty = true;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (!str_eq(entry->d_name, ".") && !str_eq(entry->d_name, "..") && !str_eq(entry->d_name, "lost+found"))
            *empty = false;
    closedir(dir);
    return STATUS_OK;
}

/* A source that the administrator gave: an existing folder outside of ours. */
static int dir_check_source(struct host *host, const char *path, struct error *err)
{
    char real[PATH_MAX], state[PATH_MAX];
    struct stat st;
    if (path[0] != '/')
        return error_set(err, STATUS_INVALID_ARGUMENT, "Source path must be absolute: \"%.200s\"", path);
    if (stat(path, &st) < 0 || !realpath(path, real) || !realpath(host->state_dir, state))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Source path \"%.200s\" doesn't exist", path);
    if (!S_ISDIR(st.st_mode))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Source path \"%.200s\" isn't a directory", path);
    size_t len = strlen(state);
    if (str_prefix(real, state) && (real[len] == '/' || real[len] == 0))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Source path \"%.200s\" is inside of the server's state directory", path);
    return STATUS_OK;
}

/* STATUS_OK when the folder carries this pool's mark, NOT_FOUND without a mark, ALREADY_EXISTS with another one's. */
static int dir_mark_read(const char *path, const char *name, struct error *err)
{
    char *file = xasprintf("%s/" POOL_MARK, path);
    struct buf text = {0};
    int rc = file_read(file, MARK_BYTES_MAX, &text, err);
    if (!rc && !str_eq(text.data, name))
        rc = error_set(err, STATUS_ALREADY_EXISTS, "Source path \"%.200s\" is used by storage pool \"%.64s\"", path, text.data ? text.data : "");
    buf_free(&text);
    free(file);
    return rc;
}

/* Leftovers of interrupted work. */
static void dir_clean(const char *containers)
{
    DIR *dir = opendir(containers);
    if (!dir)
        return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        struct error err = ERROR_INIT;
        if (!str_prefix(entry->d_name, UNFINISHED))
            continue;
        char *path = xasprintf("%s/%s", containers, entry->d_name);
        if (dir_remove_all(path, &err))
            log_warn("pool.clean", "path=%s text=\"%s\"", path, err.text);
        free(path);
    }
    closedir(dir);
}

/* A pool elsewhere gets a link among ours, so that the next start finds and cleans it. */
static int dir_link(struct host *host, const PoolSpec *pool, const char *path, struct error *err)
{
    char *link = xasprintf("%s/storage-pools/%s", host->state_dir, pool->name);
    int rc = STATUS_OK;
    if (unlink(link) < 0 && errno != ENOENT)
        rc = error_errno(err, errno, "Failed to replace %s", link);
    else if (path && symlink(path, link) < 0)
        rc = error_errno(err, errno, "Failed to make %s", link);
    free(link);
    return rc;
}

void pools__clean(struct host *host)
{
    char *pools = xasprintf("%s/storage-pools", host->state_dir);
    DIR *dir = opendir(pools);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        if (!host__name_ok(entry->d_name))
            continue;
        char *containers = xasprintf("%s/%s/containers", pools, entry->d_name);
        dir_clean(containers);
        free(containers);
    }
    if (dir)
        closedir(dir);
    free(pools);
}

static int dir_create(struct host *host, const PoolSpec *pool, struct error *err)
{
    char *path = dir_path(host, pool), *containers = xasprintf("%s/containers", path), *mark = xasprintf("%s/" POOL_MARK, path);
    struct error mark_err = ERROR_INIT;
    bool own = dir_is_default(host, pool, path), empty = true;
    int rc = own ? dir_make(path, 0711, err) : dir_check_source(host, path, err);
    if (!rc) {
        rc = dir_mark_read(path, pool->name, &mark_err);
        if (rc == STATUS_NOT_FOUND && (rc = dir_empty(path, &empty, err)) == STATUS_OK && !empty)
            rc = error_set(err, STATUS_FAILED_PRECONDITION, "Source path \"%.200s\" isn't empty", path);
        else if (rc && mark_err.code == (enum status)rc && err)
            *err = mark_err;
    }
    if (!rc && chmod(path, 0711) < 0)
        rc = error_errno(err, errno, "Failed to set the mode of %s", path);
    if (!rc)
        rc = file_write_atomic(mark, pool->name, strlen(pool->name), 0600, err);
    if (!rc)
        rc = dir_make(containers, 0711, err);
    if (!rc && !own)
        rc = dir_link(host, pool, path, err);
    free(path);
    free(containers);
    free(mark);
    return rc;
}

static int dir_delete(struct host *host, const PoolSpec *pool, struct error *err)
{
    char *path = dir_path(host, pool), *containers = xasprintf("%s/containers", path), *mark = xasprintf("%s/" POOL_MARK, path);
    struct error probe = ERROR_INIT;
    struct stat st;
    int rc = STATUS_OK;
    bool empty = true, ours = lstat(path, &st) == 0 && dir_mark_read(path, pool->name, &probe) == STATUS_OK;
    if (ours) {
        dir_clean(containers);
        if (access(containers, F_OK) == 0)
            rc = dir_empty(containers, &empty, err);
        if (!rc && !empty)
            rc = error_set(err, STATUS_FAILED_PRECONDITION, "Storage pool \"%s\" still has volumes on this member", pool->name);
        if (!rc && dir_is_default(host, pool, path))
            rc = dir_remove_all(path, err);
        else if (!rc) {
            rc = dir_remove_all(containers, err);
            if (!rc)
                rc = dir_link(host, pool, NULL, err);
            if (!rc && unlink(mark) < 0)
                rc = error_errno(err, errno, "Failed to give up %s", path);
        }
    }
    free(path);
    free(containers);
    free(mark);
    return rc;
}

static int dir_resources(struct host *host, const PoolSpec *pool, struct statvfs *out, struct error *err)
{
    char *path = dir_path(host, pool);
    int rc = statvfs(path, out) < 0 ? error_errno(err, errno, "Failed to look at storage pool \"%s\"", pool->name) : STATUS_OK;
    free(path);
    return rc;
}

static const struct pool_driver drivers[] = {
    {"dir", dir_create, dir_delete, dir_resources},
    {"btrfs", NULL, NULL, NULL},
    {"lvm", NULL, NULL, NULL},
    {"zfs", NULL, NULL, NULL},
    {"ceph", NULL, NULL, NULL},
    {"cephfs", NULL, NULL, NULL},
};

static const struct pool_driver *driver_of(const PoolSpec *pool, struct error *err)
{
    if (!pool || !host__name_ok(pool->name)) {
        error_set(err, STATUS_INVALID_ARGUMENT, "Invalid storage pool name");
        return NULL;
    }
    for (size_t i = 0; i < sizeof(drivers) / sizeof(drivers[0]); i++) {
        if (!str_eq(drivers[i].name, pool->driver))
            continue;
        if (drivers[i].create)
            return &drivers[i];
        error_set(err, STATUS_FAILED_PRECONDITION, "Storage driver \"%s\" is not supported yet", pool->driver);
        return NULL;
    }
    error_set(err, STATUS_INVALID_ARGUMENT, "Unknown driver");
    return NULL;
}

int pools__create(struct host *host, const PoolSpec *pool, struct arena *arena, Covey__Internal__V1__PoolResponse **out, struct error *err)
{
    const struct pool_driver *driver = driver_of(pool, err);
    if (!driver)
        return err->code;
    int rc = driver->create(host, pool, err);
    if (rc)
        return rc;
    Covey__Internal__V1__PoolResponse *response = arena_alloc(arena, sizeof(*response));
    Covey__Internal__V1__PoolResponse__ConfigEntry *entry = arena_alloc(arena, sizeof(*entry));
    covey__internal__v1__pool_response__init(response);
    covey__internal__v1__pool_response__config_entry__init(entry);
    char *path = dir_path(host, pool);
    entry->key = arena_strdup(arena, "source");
    entry->value = arena_strdup(arena, path);
    free(path);
    response->config = arena_memdup(arena, &entry, sizeof(entry));
    response->n_config = 1;
    *out = response;
    return STATUS_OK;
}

int pools__delete(struct host *host, const PoolSpec *pool, struct error *err)
{
    const struct pool_driver *driver = driver_of(pool, err);
    return driver ? driver->delete(host, pool, err) : (int)err->code;
}

int pools__resources(struct host *host, const PoolSpec *pool, struct arena *arena, Covey__V1__StoragePoolResources **out, struct error *err)
{
    const struct pool_driver *driver = driver_of(pool, err);
    struct statvfs fs;
    if (!driver || driver->resources(host, pool, &fs, err))
        return err->code;
    Covey__V1__StoragePoolResources *resources = arena_alloc(arena, sizeof(*resources));
    covey__v1__storage_pool_resources__init(resources);
    resources->space = arena_alloc(arena, sizeof(*resources->space));
    resources->inodes = arena_alloc(arena, sizeof(*resources->inodes));
    covey__v1__usage__init(resources->space);
    covey__v1__usage__init(resources->inodes);
    resources->space->total = (uint64_t)fs.f_blocks * fs.f_frsize;
    resources->space->used = (uint64_t)(fs.f_blocks - fs.f_bfree) * fs.f_frsize;
    resources->inodes->total = fs.f_files;
    resources->inodes->used = fs.f_files - fs.f_ffree;
    *out = resources;
    return STATUS_OK;
}

/* ---- volumes of containers ---- */

int pools__volume(struct host *host, const PoolSpec *pool, const char *key, char **path, struct error *err)
{
    *path = NULL;
    if (!driver_of(pool, err))
        return err->code;
    char *root = dir_path(host, pool);
    *path = xasprintf("%s/containers/%s", root, key);
    free(root);
    return STATUS_OK;
}

/* A volume is there already: ours from an earlier try of the same instance, or somebody else's. */
static int volume_existing(const char *path, const char *uuid, const char *key, struct error *err)
{
    char *mark = xasprintf("%s/" VOLUME_MARK, path);
    struct buf text = {0};
    bool same = !str_empty(uuid) && file_read(mark, MARK_BYTES_MAX, &text, NULL) == STATUS_OK && str_eq(text.data, uuid);
    buf_free(&text);
    free(mark);
    return same ? STATUS_OK : error_set(err, STATUS_ALREADY_EXISTS, "A volume of instance \"%s\" already exists on this member", key);
}

/* Fills the folder `temp` and makes it the volume. */
static int volume_fill(struct host *host, const char *temp, const char *path, const char *uuid, const char *image, const char *rootfs, bool privileged,
                       struct error *err)
{
    const struct idmap *map = &host->map;
    json_t *in = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I}", "image", image, "rootfs", rootfs, "target", temp, "uid",
                           (json_int_t)(privileged ? -1 : map->uid), "gid", (json_int_t)(privileged ? -1 : map->gid), "size", (json_int_t)map->size);
    if (!in)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Path is not UTF-8: %s", temp);
    int rc = host__helper(host, "unpack", in, HELPER_UNPACK_MS_MAX, NULL, err);
    char *mark = xasprintf("%s/" VOLUME_MARK, temp), *parent = xstrdup(path);
    *strrchr(parent, '/') = 0;
    if (!rc && !str_empty(uuid))
        rc = file_write_atomic(mark, uuid, strlen(uuid), 0600, err);
    /* Only the container's root may pass: set-id programs inside are out of reach of other users of the host. */
    if (!rc && chmod(temp, 0100) < 0)
        rc = error_errno(err, errno, "Failed to set the mode of %s", temp);
    if (!rc && rename(temp, path) < 0)
        rc = error_errno(err, errno, "Failed to put the volume into place");
    if (!rc)
        rc = host__sync_dir(parent, err);
    free(mark);
    free(parent);
    return rc;
}

int pools__volume_create(struct host *host, const PoolSpec *pool, const char *key, const char *uuid, const char *image, const char *rootfs,
                         bool privileged, struct error *err)
{
    char *path = NULL, hex[17];
    int rc = pools__volume(host, pool, key, &path, err);
    if (rc)
        return rc;
    char *root = dir_path(host, pool);
    struct error mark = ERROR_INIT;
    random_hex(hex, 8);
    char *temp = xasprintf("%s/containers/" UNFINISHED "%s", root, hex);
    if (dir_mark_read(root, pool->name, &mark))
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "Storage pool \"%s\" is not there on this member", pool->name);
    else if (access(path, F_OK) == 0)
        rc = volume_existing(path, uuid, key, err);
    else if (mkdir(temp, 0700) < 0)
        rc = error_errno(err, errno, "Failed to make the volume");
    else if ((rc = volume_fill(host, temp, path, uuid, image, rootfs, privileged, err)) != STATUS_OK) {
        struct error remove_err = ERROR_INIT;
        if (dir_remove_all(temp, &remove_err))
            log_warn("pool.clean", "path=%s text=\"%s\"", temp, remove_err.text);
    }
    free(temp);
    free(root);
    free(path);
    return rc;
}

int pools__volume_delete(struct host *host, const PoolSpec *pool, const char *key, struct error *err)
{
    char *path = NULL, hex[17];
    int rc = pools__volume(host, pool, key, &path, err);
    if (rc)
        return rc;
    char *root = dir_path(host, pool);
    random_hex(hex, 8);
    char *temp = xasprintf("%s/containers/" UNFINISHED "%s", root, hex);
    if (rename(path, temp) == 0)
        rc = host__helper(host, "remove-tree", json_pack("{s:s}", "path", temp), HELPER_REMOVE_MS_MAX, NULL, err);
    else if (errno != ENOENT)
        rc = error_errno(err, errno, "Failed to remove the volume");
    free(temp);
    free(root);
    free(path);
    return rc;
}
