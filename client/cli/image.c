/* image …: uploads, downloads, aliases. */
#include "cli.h"
#include "covey/v1/image.pb-c.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { IMAGE_CHUNK_BYTES = 256 * 1024 };

/* An alias or a fingerprint (prefix) -> the fingerprint to ask for. */
static int find_image(struct cli *cli, struct covey_client *client, const char *name, char **fingerprint, struct error *err)
{
    *fingerprint = NULL;
    if (!*name)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Image identifier missing");
    json_t *alias;
    int status = cli_call(cli, client, "Images/GetImageAlias", json_pack("{s:s}", "name", name), &alias, err);
    if (status == STATUS_NOT_FOUND) {
        *fingerprint = xstrdup(name);
        return STATUS_OK;
    }
    if (status)
        return status;
    *fingerprint = xstrdup(json_text(alias, "target"));
    json_decref(alias);
    return STATUS_OK;
}

static int get_image(struct cli *cli, const char *arg, struct covey_client **client, json_t **image, struct error *err)
{
    char *name, *fingerprint = NULL;
    *image = NULL;
    int status = cli_resolve(cli, arg, client, &name, err);
    if (status)
        return status;
    status = find_image(cli, *client, name, &fingerprint, err);
    if (!status)
        status = cli_call(cli, *client, "Images/GetImage", json_pack("{s:s}", "fingerprint", fingerprint), image, err);
    free(fingerprint);
    free(name);
    return status;
}

int run_image_show(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *image;
    int status = get_image(cli, cli->argv[0], &client, &image, err);
    if (status)
        return status;
    json_t *shown = json_pack("{s:O?,s:O?,s:O?,s:O?,s:O?}", "auto_update", json_object_get(image, "auto_update"), "properties",
                              json_object_get(image, "properties"), "public", json_object_get(image, "public"), "expires_at",
                              json_object_get(image, "expires_at"), "profiles", json_object_get(image, "profiles"));
    status = cli_print_yaml(shown);
    json_decref(shown);
    json_decref(image);
    return status;
}

int run_image_info(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *image, *value;
    int status = get_image(cli, cli->argv[0], &client, &image, err);
    if (status)
        return status;
    const char *key;
    size_t index;
    printf("Fingerprint: %s\nSize: %.2fMB\nArchitecture: %s\nType: %s\nPublic: %s\nTimestamps:\n", json_text(image, "fingerprint"),
           json_number_value(json_object_get(image, "size")) / 1000000, json_text(image, "architecture"), json_text(image, "type"),
           json_is_true(json_object_get(image, "public")) ? "yes" : "no");
    printf("    Created: %s\n    Uploaded: %s\n    Expires: %s\n    Last used: %s\nProperties:\n", json_text(image, "created_at"),
           json_text(image, "uploaded_at"), str_prefix(json_text(image, "expires_at"), "0001") ? "never" : json_text(image, "expires_at"),
           str_prefix(json_text(image, "last_used_at"), "0001") ? "never" : json_text(image, "last_used_at"));
    json_object_foreach(json_object_get(image, "properties"), key, value) printf("    %s: %s\n", key, json_string_value(value));
    printf("Aliases:\n");
    json_array_foreach(json_object_get(image, "aliases"), index, value) printf("    - %s\n", json_text(value, "name"));
    printf("Cached: %s\nAuto update: %s\nProfiles:\n", json_is_true(json_object_get(image, "cached")) ? "yes" : "no",
           json_is_true(json_object_get(image, "auto_update")) ? "enabled" : "disabled");
    json_array_foreach(json_object_get(image, "profiles"), index, value) printf("    - %s\n", json_string_value(value));
    json_decref(image);
    return STATUS_OK;
}

static bool image_matches(const json_t *image, char **filters, int count)
{
    for (int i = 0; i < count; i++) {
        const char *filter = filters[i], *equal = strchr(filter, '=');
        bool match = false;
        if (equal) {
            char *key = xasprintf("%.*s", (int)(equal - filter), filter);
            match = strcmp(json_text(json_object_get(image, "properties"), key), equal + 1) == 0 || strcmp(json_text(image, key), equal + 1) == 0;
            free(key);
        } else {
            size_t index;
            const json_t *alias;
            match = str_prefix(json_text(image, "fingerprint"), filter);
            json_array_foreach(json_object_get(image, "aliases"), index, alias) match = match || strstr(json_text(alias, "name"), filter);
        }
        if (!match)
            return false;
    }
    return true;
}

/* The arguments of a list: an optional "remote:" first, then filters. */
static int list_start(struct cli *cli, struct covey_client **client, int *filters, struct error *err)
{
    int status = cli_check_format(cli, err);
    size_t len = cli->argc ? strlen(cli->argv[0]) : 0;
    bool remote = len && strchr(cli->argv[0], ':') == cli->argv[0] + len - 1;
    *filters = remote ? 1 : 0;
    return status ? status : cli_resolve(cli, remote ? cli->argv[0] : NULL, client, NULL, err);
}

int run_image_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply;
    int first;
    int status = list_start(cli, &client, &first, err);
    if (!status)
        status = cli_call(cli, client, "Images/ListImages", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"ALIAS", "FINGERPRINT", "PUBLIC", "DESCRIPTION", "ARCHITECTURE", "TYPE", "SIZE", "UPLOAD DATE"};
    struct table table;
    table_init(&table, headers, 8);
    json_t *raw = json_array(), *image;
    size_t index;
    json_array_foreach(json_object_get(reply, "images"), index, image)
    {
        if (!image_matches(image, cli->argv + first, cli->argc - first))
            continue;
        const json_t *aliases = json_object_get(image, "aliases");
        const char *name = json_text(json_array_get(aliases, 0), "name");
        char *alias = json_array_size(aliases) > 1 ? xasprintf("%s (%zu more)", name, json_array_size(aliases) - 1) : xstrdup(name);
        char *print = xasprintf("%.12s", json_text(image, "fingerprint"));
        char *size = xasprintf("%.2fMB", json_number_value(json_object_get(image, "size")) / 1000000);
        char uploaded[CLI_SHORT_TIME_SIZE];
        cli_short_time(json_text(image, "uploaded_at"), uploaded);
        char *type = xstrdup(json_text(image, "type"));
        for (char *c = type; *c; c++)
            *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
        table_add(&table, alias, print, json_is_true(json_object_get(image, "public")) ? "yes" : "no",
                  json_text(json_object_get(image, "properties"), "description"), json_text(image, "architecture"), type, size, uploaded);
        json_array_append(raw, image);
        free(type);
        free(size);
        free(print);
        free(alias);
    }
    table_sort(&table);
    status = cli_print(cli, &table, raw, err);
    table_free(&table);
    json_decref(raw);
    json_decref(reply);
    return status;
}

int run_image_delete(struct cli *cli, struct error *err)
{
    int status = STATUS_OK;
    for (int i = 0; i < cli->argc && !status; i++) {
        struct covey_client *client;
        char *name, *fingerprint = NULL;
        status = cli_resolve(cli, cli->argv[i], &client, &name, err);
        if (!status)
            status = find_image(cli, client, name, &fingerprint, err);
        if (!status)
            status = cli_call_wait(cli, client, "Images/DeleteImage", json_pack("{s:s}", "fingerprint", fingerprint), NULL, err);
        free(fingerprint);
        free(name);
    }
    return status;
}

/* ---- import ---- */

static int send_file(struct cli *cli, struct covey_stream *stream, const char *path, bool rootfs, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, errno, "%s", path);
    struct stat info;
    int status = fstat(fd, &info) ? error_errno(err, errno, "%s", path) : STATUS_OK;
    bool terminal = !cli->quiet && isatty(STDOUT_FILENO);
    uint8_t *data = xmalloc(IMAGE_CHUNK_BYTES);
    int64_t sent = 0, shown = -1;
    while (!status) {
        ssize_t len = read(fd, data, IMAGE_CHUNK_BYTES);
        if (len < 0 && errno == EINTR)
            continue;
        if (len < 0)
            status = error_errno(err, errno, "%s", path);
        if (len <= 0)
            break;
        Covey__V1__UploadImageRequest part = COVEY__V1__UPLOAD_IMAGE_REQUEST__INIT;
        part.data.data = data;
        part.data.len = (size_t)len;
        part.rootfs = rootfs;
        status = rpc_send(stream->call, &part.base, err);
        sent += len;
        int64_t percent = info.st_size > 0 ? sent * 100 / info.st_size : 0;
        if (terminal && percent != shown) {
            printf("\rTransferring image: %lld%%", (long long)percent);
            fflush(stdout);
            shown = percent;
        }
    }
    if (terminal && shown >= 0)
        printf("\r%40s\r", "");
    free(data);
    close(fd);
    return status;
}

static int upload(struct cli *cli, struct covey_client *client, json_t *header, const char *meta, const char *rootfs, json_t **operation,
                  struct error *err)
{
    struct covey_stream *stream;
    *operation = NULL;
    int status = client_stream_open(client, "Images/UploadImage", NULL, -1, &stream, err);
    if (status) {
        json_decref(header);
        return status;
    }
    struct error sending = ERROR_INIT;
    status = client_stream_send(stream, json_pack("{s:o}", "header", header), &sending);
    if (!status)
        status = send_file(cli, stream, meta, false, &sending);
    if (!status && rootfs)
        status = send_file(cli, stream, rootfs, true, &sending);
    if (!status)
        status = rpc_half_close(stream->call);
    ProtobufCMessage *reply;
    if (!status)
        status = client_stream_receive(stream, &reply, &sending);
    if (!status)
        *operation = client_json(reply, &sending);
    /* A refusal ends the call while we still send: its reason is the call's status, not our failure to write. */
    int final = *operation ? STATUS_OK : status == STATUS_NOT_FOUND || status == STATUS_PERMISSION_DENIED ? status : rpc_status(stream->call, err);
    if (!*operation && (final == STATUS_OK || *err->text == 0))
        *err = sending;
    covey_stream_free(stream);
    return *operation ? STATUS_OK : (int)err->code;
}

static int add_alias(struct cli *cli, struct covey_client *client, const char *name, const char *fingerprint, struct error *err)
{
    json_t *old;
    int status = cli_call(cli, client, "Images/GetImageAlias", json_pack("{s:s}", "name", name), &old, err);
    if (!status) { /* as lxc does: the alias moves to the new image */
        json_decref(old);
        status = cli_call(cli, client, "Images/DeleteImageAlias", json_pack("{s:s}", "name", name), NULL, err);
    } else if (status == STATUS_NOT_FOUND) {
        status = STATUS_OK;
    }
    if (!status)
        status = cli_call(cli, client, "Images/CreateImageAlias", json_pack("{s:s,s:s}", "name", name, "target", fingerprint), NULL, err);
    return status;
}

int run_image_import(struct cli *cli, struct error *err)
{
    const char *meta = cli->argv[0], *rootfs = NULL, *remote = NULL;
    json_t *properties = json_object();
    int status = STATUS_OK;
    for (int i = 1; i < cli->argc && !status; i++) {
        const char *arg = cli->argv[i];
        size_t len = strlen(arg);
        if (strchr(arg, '=') && access(arg, F_OK))
            status = cli_pair(properties, arg, err);
        else if (len && arg[len - 1] == ':')
            remote = arg;
        else if (!rootfs)
            rootfs = arg;
        else
            status = error_set(err, STATUS_INVALID_ARGUMENT, "Unexpected argument: %s", arg);
    }
    const char *const files[] = {meta, rootfs};
    for (int i = 0; i < 2 && !status; i++) {
        struct stat info;
        if (files[i] && stat(files[i], &info))
            status = error_errno(err, errno, "%s", files[i]);
        else if (files[i] && !S_ISREG(info.st_mode))
            status = error_set(err, STATUS_INVALID_ARGUMENT, "%s is not a file", files[i]);
    }
    struct covey_client *client;
    if (!status)
        status = cli_resolve(cli, remote, &client, NULL, err);
    if (status) {
        json_decref(properties);
        return status;
    }
    const char *project = cli_flag(cli, "project"), *slash = strrchr(meta, '/');
    json_t *operation, *final = NULL;
    json_t *header = json_pack("{s:s,s:s,s:b,s:o,s:b}", "project", project ? project : "", "filename", slash ? slash + 1 : meta, "public",
                               cli_switch(cli, "public"), "properties", properties, "split", rootfs != NULL);
    status = upload(cli, client, header, meta, rootfs, &operation, err);
    if (!status)
        status = cli_wait(cli, client, operation, &final, err);
    const char *fingerprint = json_text(json_object_get(final, "metadata"), "fingerprint");
    if (!status)
        cli_say(cli, "Image imported with fingerprint: %s\n", fingerprint);
    const char *aliases[64];
    size_t count = cli_flag_list(cli, "alias", aliases, sizeof(aliases) / sizeof(*aliases));
    for (size_t i = 0; i < count && !status; i++)
        status = add_alias(cli, client, aliases[i], fingerprint, err);
    json_decref(operation);
    json_decref(final);
    return status;
}

/* ---- export ---- */

static bool file_name_safe(const char *name) { return *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0; }

static int open_export(const char *where, const char *name, size_t files, size_t index, int *fd, char **path, struct error *err)
{
    struct stat info;
    if (!file_name_safe(name))
        return error_set(err, STATUS_INTERNAL, "the server sent a file name that is no name");
    const char *dot = strchr(name, '.');
    if (!where || (stat(where, &info) == 0 && S_ISDIR(info.st_mode)))
        *path = xasprintf("%s/%s", where ? where : ".", name);
    else if (files == 1)
        *path = xasprintf("%s%s", where, dot ? dot : "");
    else
        *path = xasprintf("%s%s%s", where, index ? ".root" : "", dot ? dot : "");
    *fd = open(*path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return *fd < 0 ? error_errno(err, errno, "cannot write %s", *path) : STATUS_OK;
}

static int write_all(int fd, const uint8_t *data, size_t len, struct error *err)
{
    while (len) {
        ssize_t done = write(fd, data, len);
        if (done < 0 && errno != EINTR)
            return error_errno(err, errno, "cannot write the image");
        if (done > 0) {
            data += done;
            len -= (size_t)done;
        }
    }
    return STATUS_OK;
}

static int download(struct covey_stream *stream, const char *where, struct error *err)
{
    int fds[2] = {-1, -1};
    char *paths[2] = {NULL, NULL};
    uint64_t left[2] = {0, 0};
    size_t files = 0;
    int status;
    ProtobufCMessage *message;
    while (!(status = client_stream_receive(stream, &message, err))) {
        const Covey__V1__ExportImageResponse *part = (const Covey__V1__ExportImageResponse *)message;
        if (!files && (!part->n_files || part->n_files > 2))
            status = error_set(err, STATUS_INTERNAL, "the server sent %zu files", part->n_files);
        for (size_t i = 0; !files && !status && i < part->n_files; i++) {
            status = open_export(where, part->files[i]->name, part->n_files, i, &fds[i], &paths[i], err);
            left[i] = (uint64_t)part->files[i]->size;
        }
        if (!files)
            files = part->n_files;
        if (!status && part->data.len) {
            if (part->file >= files || part->data.len > left[part->file])
                status = error_set(err, STATUS_INTERNAL, "the server sent more data than announced");
            else if (!(status = write_all(fds[part->file], part->data.data, part->data.len, err)))
                left[part->file] -= part->data.len;
        }
        if (status)
            break;
    }
    if (status == STATUS_OUT_OF_RANGE) {
        status = rpc_status(stream->call, err);
        if (!status && (!files || left[0] || left[1]))
            status = error_set(err, STATUS_DATA_LOSS, "the image ended before its announced size");
    }
    for (size_t i = 0; i < 2; i++) {
        if (fds[i] >= 0 && close(fds[i]) && !status)
            status = error_errno(err, errno, "cannot write %s", paths[i]);
        if (status && paths[i])
            (void)unlink(paths[i]); /* half a file is worth nothing */
        free(paths[i]);
    }
    return status;
}

int run_image_export(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name, *fingerprint = NULL;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = find_image(cli, client, name, &fingerprint, err);
    struct covey_stream *stream = NULL;
    const char *project = cli_flag(cli, "project");
    if (!status)
        status = client_stream_open(client, "Images/ExportImage", json_pack("{s:s,s:s}", "fingerprint", fingerprint, "project", project ? project : ""), -1,
                                    &stream, err);
    if (!status)
        status = download(stream, cli->argc > 1 ? cli->argv[1] : NULL, err);
    if (!status)
        cli_say(cli, "Image exported successfully!\n");
    covey_stream_free(stream);
    free(fingerprint);
    free(name);
    return status;
}

/* ---- aliases ---- */

int run_image_alias_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply, *alias;
    int first;
    int status = list_start(cli, &client, &first, err);
    if (!status)
        status = cli_call(cli, client, "Images/ListImageAliases", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"ALIAS", "FINGERPRINT", "TYPE", "DESCRIPTION"};
    struct table table;
    table_init(&table, headers, 4);
    json_t *raw = json_array();
    size_t index;
    json_array_foreach(json_object_get(reply, "aliases"), index, alias)
    {
        bool match = true;
        for (int i = first; i < cli->argc; i++)
            match = match && (strstr(json_text(alias, "name"), cli->argv[i]) || str_prefix(json_text(alias, "target"), cli->argv[i]));
        if (!match)
            continue;
        char *print = xasprintf("%.12s", json_text(alias, "target"));
        char *type = xstrdup(*json_text(alias, "type") ? json_text(alias, "type") : "container");
        for (char *c = type; *c; c++)
            *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
        table_add(&table, json_text(alias, "name"), print, type, json_text(alias, "description"));
        json_array_append(raw, alias);
        free(type);
        free(print);
    }
    table_sort(&table);
    status = cli_print(cli, &table, raw, err);
    table_free(&table);
    json_decref(raw);
    json_decref(reply);
    return status;
}

int run_image_alias_create(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    const char *description = cli_flag(cli, "description");
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "Images/CreateImageAlias",
                          json_pack("{s:s,s:s,s:s}", "name", name, "target", cli->argv[1], "description", description ? description : ""), NULL, err);
    free(name);
    return status;
}

int run_image_alias_delete(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "Images/DeleteImageAlias", json_pack("{s:s}", "name", name), NULL, err);
    free(name);
    return status;
}

int run_image_alias_rename(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    int status = cli_resolve(cli, cli->argv[0], &client, &name, err);
    if (!status)
        status = cli_call(cli, client, "Images/RenameImageAlias", json_pack("{s:s,s:s}", "old_name", name, "name", cli->argv[1]), NULL, err);
    free(name);
    return status;
}
