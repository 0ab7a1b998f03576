/* Reading image archives: the filters and formats that images may have (spec/api.md 8.3), checked entry names, and the command `metadata`, which finds
 * metadata.yaml. Runs on hostile input: in this process, never in the daemon. */
#include "helper.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum {
    METADATA_BYTES_MAX = 1 << 20,
    METADATA_ENTRIES_MAX = 4 << 20, /* entries looked at before metadata.yaml must have come */
    ARCHIVE_BLOCK_BYTES = 64 << 10,
};

struct archive *helper__archive_open(int fd, struct error *err)
{
    struct archive *a = archive_read_new();
    if (!a)
        core_oom();
    int rc = archive_read_support_format_tar(a) | archive_read_support_filter_gzip(a) | archive_read_support_filter_bzip2(a) |
             archive_read_support_filter_xz(a) | archive_read_support_filter_lzma(a) | archive_read_support_filter_zstd(a);
    if (rc != ARCHIVE_OK) {
        /* A filter without its library would start a program of that name: not here. */
        error_set(err, STATUS_INTERNAL, "The archive library lacks a compression format: %s", archive_error_string(a));
        archive_read_free(a);
        return NULL;
    }
    if (archive_read_open_fd(a, fd, ARCHIVE_BLOCK_BYTES) != ARCHIVE_OK) {
        error_set(err, STATUS_INVALID_ARGUMENT, "Image is not a readable archive: %s", archive_error_string(a));
        archive_read_free(a);
        return NULL;
    }
    return a;
}

const char *helper__entry_path(const char *path, char *out, size_t size, struct error *err)
{
    if (!path) {
        error_set(err, STATUS_INVALID_ARGUMENT, "Image has an entry without a usable name");
        return NULL;
    }
    if (path[0] == '/') {
        error_set(err, STATUS_INVALID_ARGUMENT, "Image has an absolute path: \"%.200s\"", path);
        return NULL;
    }
    size_t len = 0;
    for (const char *part = path; *part;) {
        size_t n = strcspn(part, "/");
        if (n == 2 && part[0] == '.' && part[1] == '.') {
            error_set(err, STATUS_INVALID_ARGUMENT, "Image has a path with \"..\": \"%.200s\"", path);
            return NULL;
        }
        if (n && !(n == 1 && part[0] == '.')) {
            if (len + n + 2 > size) {
                error_set(err, STATUS_INVALID_ARGUMENT, "Image has a path longer than %zu bytes", size);
                return NULL;
            }
            if (len)
                out[len++] = '/';
            memcpy(out + len, part, n);
            len += n;
        }
        part += n + (part[n] == '/');
    }
    out[len] = 0;
    return out;
}

static int read_text(struct archive *a, struct archive_entry *entry, struct buf *text, struct error *err)
{
    if (archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry))
        return error_set(err, STATUS_INVALID_ARGUMENT, "metadata.yaml is not a regular file");
    if (archive_entry_size(entry) > METADATA_BYTES_MAX)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "metadata.yaml is larger than %d bytes", METADATA_BYTES_MAX);
    for (;;) {
        char chunk[16384];
        la_ssize_t n = archive_read_data(a, chunk, sizeof(chunk));
        if (n < 0)
            return error_set(err, STATUS_INVALID_ARGUMENT, "Failed to read metadata.yaml: %s", archive_error_string(a));
        if (n == 0)
            return STATUS_OK;
        if (text->len + (size_t)n > METADATA_BYTES_MAX)
            return error_set(err, STATUS_RESOURCE_EXHAUSTED, "metadata.yaml is larger than %d bytes", METADATA_BYTES_MAX);
        buf_add(text, chunk, (size_t)n);
    }
}

static int find_metadata(struct archive *a, struct buf *text, struct error *err)
{
    struct archive_entry *entry;
    char path[4096];
    for (int64_t count = 0;; count++) {
        int rc = archive_read_next_header(a, &entry);
        if (rc == ARCHIVE_EOF)
            return error_set(err, STATUS_INVALID_ARGUMENT, "Metadata tarball is missing metadata.yaml");
        if (rc < ARCHIVE_WARN)
            return error_set(err, STATUS_INVALID_ARGUMENT, "Image is not a readable archive: %s", archive_error_string(a));
        if (count >= METADATA_ENTRIES_MAX)
            return error_set(err, STATUS_RESOURCE_EXHAUSTED, "Image has more than %d entries", METADATA_ENTRIES_MAX);
        if (!helper__entry_path(archive_entry_pathname(entry), path, sizeof(path), err))
            return err->code;
        if (str_eq(path, "metadata.yaml"))
            return read_text(a, entry, text, err);
    }
}

/* "path" of the archive -> "metadata", the text of metadata.yaml. */
int helper__metadata(const json_t *in, json_t *out, struct error *err)
{
    int fd = open(helper__text(in, "path"), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return error_errno(err, errno, "Failed to open the image");
    struct archive *a = helper__archive_open(fd, err);
    int rc = a ? STATUS_OK : (int)err->code;
    struct buf text = {0};
    if (!rc)
        rc = find_metadata(a, &text, err);
    if (!rc && !utf8_valid(text.data ? text.data : "", text.len))
        rc = error_set(err, STATUS_INVALID_ARGUMENT, "metadata.yaml is not valid UTF-8");
    if (!rc)
        json_object_set_new(out, "metadata", json_stringn(text.data ? text.data : "", text.len));
    buf_free(&text);
    archive_read_free(a);
    close(fd);
    return rc;
}
