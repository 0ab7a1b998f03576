/* Image files: images/<fingerprint>, and images/<fingerprint>.rootfs for a split image. What is received is written under a temporary name while its
 * SHA-256 is computed, checked, synced, and renamed: the rootfs first, so that the main name's presence means a complete image. Leftovers are removed at
 * start. Uploads have one user thread each; everything else from any thread. */
#include "host_private.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAGIC_BYTES = 262 };
#define TEMPORARY ".upload-"

struct host_image_upload {
    struct host *host;
    bool split;
    char *path[2];
    int fd[2];
    int64_t size[2];
    EVP_MD_CTX *digest;
};

/* ---- compression by magic ---- */

static const struct {
    const char *extension;
    size_t offset, len;
    const char *magic;
} compressions[] = {
    {".tar.gz", 0, 2, "\x1f\x8b"},       {".tar.bz2", 0, 2, "BZ"},     {".tar.xz", 0, 5, "\xfd" "7zXZ"}, {".tar.lzma", 0, 3, "\x5d\x00\x00"},
    {".tar.zst", 0, 4, "\x28\xb5\x2f\xfd"}, {".tar", 257, 5, "ustar"}, {".squashfs", 0, 4, "hsqs"},
};

/* The file name's end by the first bytes, NULL if not known. */
static const char *extension_of(int fd)
{
    char head[MAGIC_BYTES] = {0};
    ssize_t n = pread(fd, head, sizeof(head), 0);
    for (size_t i = 0; i < sizeof(compressions) / sizeof(compressions[0]); i++)
        if (n >= (ssize_t)(compressions[i].offset + compressions[i].len) &&
            memcmp(head + compressions[i].offset, compressions[i].magic, compressions[i].len) == 0)
            return compressions[i].extension;
    return NULL;
}

/* ---- receiving ---- */

void host_image_abort(struct host_image_upload *upload)
{
    if (!upload)
        return;
    for (int i = 0; i < 2; i++) {
        if (upload->fd[i] >= 0)
            close(upload->fd[i]);
        if (upload->path[i] && unlink(upload->path[i]) < 0 && errno != ENOENT)
            log_warn("image.clean", "path=%s errno=%d", upload->path[i], errno);
        free(upload->path[i]);
    }
    EVP_MD_CTX_free(upload->digest);
    pthread_mutex_lock(&upload->host->lock);
    upload->host->uploads--;
    pthread_mutex_unlock(&upload->host->lock);
    free(upload);
}

int host_image_begin(struct host *host, bool split, struct host_image_upload **out, struct error *err)
{
    *out = NULL;
    pthread_mutex_lock(&host->lock);
    bool room = host->uploads < IMAGE_UPLOADS_MAX;
    host->uploads += room;
    pthread_mutex_unlock(&host->lock);
    if (!room)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "More than %d image uploads at a time", IMAGE_UPLOADS_MAX);
    struct host_image_upload *upload = xcalloc(1, sizeof(*upload));
    *upload = (struct host_image_upload){.host = host, .split = split, .fd = {-1, -1}, .digest = EVP_MD_CTX_new()};
    int rc = STATUS_OK;
    char hex[17];
    random_hex(hex, 8);
    if (!upload->digest || EVP_DigestInit_ex(upload->digest, EVP_sha256(), NULL) != 1)
        rc = error_set(err, STATUS_INTERNAL, "Failed to start the fingerprint");
    for (int i = 0; i < (split ? 2 : 1) && !rc; i++) {
        upload->path[i] = xasprintf("%s/images/" TEMPORARY "%s%s", host->state_dir, hex, i ? ".rootfs" : "");
        /* Readable for all inside a folder that is not: the container's mapped root reads a squashfs by descriptor. */
        upload->fd[i] = open(upload->path[i], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (upload->fd[i] < 0)
            rc = error_errno(err, errno, "Failed to make an image file");
        else if (fchmod(upload->fd[i], 0644) < 0)
            rc = error_errno(err, errno, "Failed to set the mode of an image file");
    }
    if (rc)
        host_image_abort(upload);
    else
        *out = upload;
    return rc;
}

int host_image_write(struct host_image_upload *upload, enum host_image_file file, const void *data, size_t len, struct error *err)
{
    int i = file == HOST_IMAGE_ROOTFS;
    if (i && !upload->split)
        return error_set(err, STATUS_INVALID_ARGUMENT, "A unified image has no rootfs file");
    if (!i && upload->size[1])
        return error_set(err, STATUS_INVALID_ARGUMENT, "The metadata file of an image comes before its rootfs file");
    if ((int64_t)len > IMAGE_BYTES_MAX - upload->size[i])
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "Image file is larger than %lld bytes", (long long)IMAGE_BYTES_MAX);
    for (size_t done = 0; done < len;) {
        ssize_t n = write(upload->fd[i], (const char *)data + done, len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(err, errno, "Failed to write the image");
        done += (size_t)n;
    }
    upload->size[i] += (int64_t)len;
    if (EVP_DigestUpdate(upload->digest, data, len) != 1)
        return error_set(err, STATUS_INTERNAL, "Failed to compute the fingerprint");
    return STATUS_OK;
}

/* Everything of `out` but fingerprint, from open files. */
static int read_info(struct host *host, const char *path, int fd[2], const int64_t size[2], bool split, struct host_image_info *out, struct error *err)
{
    const char *extension[2] = {extension_of(fd[0]), split ? extension_of(fd[1]) : ""};
    if (!extension[0] || !extension[1])
        return error_set(err, STATUS_INVALID_ARGUMENT, "Unsupported compression");
    if (str_eq(extension[0], ".squashfs"))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Metadata tarball is missing metadata.yaml");
    json_t *answer = NULL, *in = json_pack("{s:s}", "path", path);
    int rc = host__helper(host, "metadata", in, HELPER_METADATA_MS_MAX, &answer, err);
    if (rc)
        return rc;
    const json_t *text = json_object_get(answer, "metadata");
    rc = metadata__parse(json_string_value(text) ? json_string_value(text) : "", json_string_length(text), out, err);
    json_decref(answer);
    out->split = split;
    out->size = size[0] + size[1];
    out->filename = xasprintf("%s%s", out->fingerprint, extension[0]);
    out->rootfs_filename = split ? xasprintf("%s%s", out->fingerprint, extension[1]) : NULL;
    return rc;
}

static char *image_path(struct host *host, const char *fingerprint, bool rootfs)
{
    return xasprintf("%s/images/%s%s", host->state_dir, fingerprint, rootfs ? ".rootfs" : "");
}

/* Renames the checked files to their final names. */
static int keep_files(struct host_image_upload *upload, const char *fingerprint, struct error *err)
{
    int rc = STATUS_OK;
    for (int i = 1; i >= 0 && !rc; i--) {
        if (!upload->path[i])
            continue;
        char *final = image_path(upload->host, fingerprint, i);
        if (fsync(upload->fd[i]) < 0 || rename(upload->path[i], final) < 0)
            rc = error_errno(err, errno, "Failed to store the image");
        if (!rc) {
            free(upload->path[i]);
            upload->path[i] = NULL;
        }
        free(final);
    }
    char *dir = xasprintf("%s/images", upload->host->state_dir);
    if (!rc)
        rc = host__sync_dir(dir, err);
    free(dir);
    return rc;
}

int host_image_finish(struct host_image_upload *upload, const char *expected_fingerprint, struct host_image_info *out, struct error *err)
{
    struct error local = ERROR_INIT;
    uint8_t hash[EVP_MAX_MD_SIZE];
    unsigned len = 0;
    int rc = STATUS_OK;
    *out = (struct host_image_info){0};
    if (EVP_DigestFinal_ex(upload->digest, hash, &len) != 1 || len != 32)
        rc = error_set(&local, STATUS_INTERNAL, "Failed to compute the fingerprint");
    else
        hex_encode(hash, len, out->fingerprint);
    if (!rc && !str_empty(expected_fingerprint) && !str_eq(expected_fingerprint, out->fingerprint))
        rc = error_set(&local, STATUS_INVALID_ARGUMENT, "fingerprints don't match, got %s expected %.80s", out->fingerprint, expected_fingerprint);
    if (!rc)
        rc = read_info(upload->host, upload->path[0], upload->fd, upload->size, upload->split, out, &local);
    if (!rc)
        rc = keep_files(upload, out->fingerprint, &local);
    host_image_abort(upload); /* what was kept is not its own any more */
    if (rc) {
        host_image_info_free(out);
        if (err)
            *err = local;
    }
    return rc;
}

void host_image_info_free(struct host_image_info *info)
{
    if (!info)
        return;
    for (size_t i = 0; i < info->property_count; i++) {
        free(info->properties[i].key);
        free(info->properties[i].value);
    }
    free(info->properties);
    free(info->architecture);
    free(info->filename);
    free(info->rootfs_filename);
    *info = (struct host_image_info){0};
}

/* ---- what is held ---- */

bool images__fingerprint_ok(const char *fingerprint)
{
    return fingerprint && strlen(fingerprint) == HOST_FINGERPRINT_SIZE - 1 && strspn(fingerprint, "0123456789abcdef") == HOST_FINGERPRINT_SIZE - 1;
}

bool host_image_has(struct host *host, const char *fingerprint)
{
    if (!images__fingerprint_ok(fingerprint))
        return false;
    char *path = image_path(host, fingerprint, false);
    bool has = access(path, F_OK) == 0;
    free(path);
    return has;
}

int images__paths(struct host *host, const char *fingerprint, char **image, char **rootfs, struct error *err)
{
    *image = *rootfs = NULL;
    if (!host_image_has(host, fingerprint))
        return error_set(err, STATUS_NOT_FOUND, "Image not found");
    *image = image_path(host, fingerprint, false);
    *rootfs = image_path(host, fingerprint, true);
    if (access(*rootfs, F_OK) < 0)
        **rootfs = 0;
    return STATUS_OK;
}

int host_image_open(struct host *host, const char *fingerprint, int fd[2], int64_t size[2], struct error *err)
{
    char *path[2];
    fd[0] = fd[1] = -1;
    size[0] = size[1] = 0;
    int rc = images__paths(host, fingerprint, &path[0], &path[1], err);
    for (int i = 0; i < 2 && !rc; i++) {
        struct stat st;
        if (!*path[i])
            continue;
        fd[i] = open(path[i], O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fd[i] < 0 || fstat(fd[i], &st) < 0)
            rc = error_errno(err, errno, "Failed to open the image");
        else
            size[i] = st.st_size;
    }
    free(path[0]);
    free(path[1]);
    for (int i = 0; i < 2 && rc; i++) {
        if (fd[i] >= 0)
            close(fd[i]);
        fd[i] = -1;
    }
    return rc;
}

int host_image_read_info(struct host *host, const char *fingerprint, struct host_image_info *out, struct error *err)
{
    int fd[2];
    int64_t size[2];
    *out = (struct host_image_info){0};
    int rc = host_image_open(host, fingerprint, fd, size, err);
    if (rc)
        return rc;
    char *path = image_path(host, fingerprint, false);
    snprintf(out->fingerprint, sizeof(out->fingerprint), "%s", fingerprint);
    rc = read_info(host, path, fd, size, fd[1] >= 0, out, err);
    if (rc)
        host_image_info_free(out);
    free(path);
    close(fd[0]);
    if (fd[1] >= 0)
        close(fd[1]);
    return rc;
}

int host_image_delete(struct host *host, const char *fingerprint, struct error *err)
{
    if (!images__fingerprint_ok(fingerprint))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid fingerprint");
    int rc = STATUS_OK;
    for (int i = 0; i < 2 && !rc; i++) { /* the main name first: a rest without it is nothing */
        char *path = image_path(host, fingerprint, i);
        if (unlink(path) < 0 && errno != ENOENT)
            rc = error_errno(err, errno, "Failed to remove the image");
        free(path);
    }
    return rc;
}

/* At start: interrupted uploads, and rootfs files without their image. */
int images__clean(struct host *host, struct error *err)
{
    char *dir_name = xasprintf("%s/images", host->state_dir);
    DIR *dir = opendir(dir_name);
    int rc = dir ? STATUS_OK : error_errno(err, errno, "Failed to list %s", dir_name);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char fingerprint[HOST_FINGERPRINT_SIZE];
        snprintf(fingerprint, sizeof(fingerprint), "%.64s", entry->d_name);
        const char *end = strrchr(entry->d_name, '.');
        bool rest = str_prefix(entry->d_name, TEMPORARY) || (end && str_eq(end, ".rootfs") && !host_image_has(host, fingerprint));
        if (rest && unlinkat(dirfd(dir), entry->d_name, 0) < 0)
            log_warn("image.clean", "file=%s errno=%d", entry->d_name, errno);
    }
    if (dir)
        closedir(dir);
    free(dir_name);
    return rc;
}

/* ---- between members ---- */

static int send_file(struct rpc_call *call, int fd, uint32_t file, struct error *err)
{
    char *data = xmalloc(IMAGE_CHUNK_BYTES);
    int rc = STATUS_OK;
    for (;;) {
        Covey__Internal__V1__ImageChunk chunk = COVEY__INTERNAL__V1__IMAGE_CHUNK__INIT;
        ssize_t n = read(fd, data, IMAGE_CHUNK_BYTES);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = error_errno(err, errno, "Failed to read the image");
        if (n <= 0 || rc)
            break;
        chunk.file = file;
        chunk.data.data = (uint8_t *)data;
        chunk.data.len = (size_t)n;
        if ((rc = rpc_send(call, &chunk.base, err)) != STATUS_OK)
            break;
    }
    free(data);
    return rc;
}

int images__fetch(struct host *host, const char *fingerprint, struct rpc_call *call, struct error *err)
{
    static const char *const names[2] = {"metadata", "rootfs"};
    int fd[2];
    int64_t size[2];
    int rc = host_image_open(host, fingerprint, fd, size, err);
    if (rc)
        return rc;
    Covey__Internal__V1__ImageFile files[2] = {COVEY__INTERNAL__V1__IMAGE_FILE__INIT, COVEY__INTERNAL__V1__IMAGE_FILE__INIT}, *list[2];
    Covey__Internal__V1__ImageChunk head = COVEY__INTERNAL__V1__IMAGE_CHUNK__INIT;
    head.files = list;
    for (int i = 0; i < 2; i++) {
        files[i].name = (char *)(uintptr_t)names[i];
        files[i].size = size[i];
        list[i] = &files[i];
        head.n_files += fd[i] >= 0;
    }
    rc = rpc_send(call, &head.base, err);
    for (int i = 0; i < 2; i++) {
        if (fd[i] < 0)
            continue;
        if (!rc)
            rc = send_file(call, fd[i], (uint32_t)i, err);
        close(fd[i]);
    }
    return rc;
}

/* Receives one image from an open stream. */
static int receive(struct host *host, struct rpc_call *stream, const struct rpc_call *call, const char *fingerprint, struct error *err)
{
    struct host_image_upload *upload = NULL;
    struct arena arena;
    int64_t want[2] = {0, 0}, got[2] = {0, 0};
    int rc = STATUS_OK;
    arena_init(&arena);
    while (!rc) {
        ProtobufCMessage *message = NULL;
        rc = rpc_recv(stream, &message, &arena, err);
        if (rc)
            break;
        const Covey__Internal__V1__ImageChunk *chunk = (const void *)message;
        if (call && rpc_call_cancelled(call))
            rc = error_set(err, STATUS_CANCELLED, "The transfer was cancelled");
        if (!rc && !upload && (chunk->n_files < 1 || chunk->n_files > 2))
            rc = error_set(err, STATUS_INVALID_ARGUMENT, "Image stream does not begin with its files");
        for (size_t i = 0; !rc && !upload && i < chunk->n_files; i++)
            want[i] = chunk->files[i]->size;
        if (!rc && !upload)
            rc = host_image_begin(host, chunk->n_files == 2, &upload, err);
        if (!rc && chunk->data.len && chunk->file > 1)
            rc = error_set(err, STATUS_INVALID_ARGUMENT, "Image stream has a file that it did not name");
        if (!rc && chunk->data.len) {
            got[chunk->file] += (int64_t)chunk->data.len;
            rc = host_image_write(upload, (enum host_image_file)chunk->file, chunk->data.data, chunk->data.len, err);
        }
        arena_clear(&arena);
    }
    arena_clear(&arena);
    if (rc == STATUS_OUT_OF_RANGE && (rc = rpc_status(stream, err)) == STATUS_OK && (!upload || got[0] != want[0] || got[1] != want[1]))
        rc = error_set(err, STATUS_DATA_LOSS, "Image stream ended early");
    if (rc) {
        host_image_abort(upload);
        return rc;
    }
    struct host_image_info info;
    rc = host_image_finish(upload, fingerprint, &info, err);
    if (!rc)
        host_image_info_free(&info);
    return rc;
}

int images__pull(struct host *host, const Covey__Internal__V1__PullImageRequest *request, struct rpc_call *call, struct error *err)
{
    if (!images__fingerprint_ok(request->fingerprint))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid fingerprint");
    if (host_image_has(host, request->fingerprint))
        return STATUS_OK;
    int rc = error_set(err, STATUS_NOT_FOUND, "Image not available on any online node");
    for (size_t i = 0; i < request->n_addresses && rc && !(call && rpc_call_cancelled(call)); i++) {
        struct rpc_channel *channel = host->config.channel ? host->config.channel(host->config.ud, request->addresses[i]) : NULL;
        if (!channel)
            continue;
        Covey__Internal__V1__FetchImageRequest fetch = COVEY__INTERNAL__V1__FETCH_IMAGE_REQUEST__INIT;
        fetch.fingerprint = request->fingerprint;
        struct rpc_options options = {.timeout_ms = IMAGE_PULL_MS_MAX};
        struct error one = ERROR_INIT;
        struct rpc_call *stream = rpc_open(channel, "covey.internal.v1.Agent", "FetchImage", &fetch.base, &options, &one);
        int status = stream ? receive(host, stream, call, request->fingerprint, &one) : (int)one.code;
        if (status) {
            log_warn("image.pull", "fingerprint=%.12s address=%s text=\"%s\"", request->fingerprint, request->addresses[i], one.text);
            if (stream)
                rpc_cancel(stream);
            if (err)
                *err = one;
        }
        rc = status;
        if (stream)
            rpc_call_unref(stream);
        rpc_channel_unref(channel);
    }
    return rc;
}
