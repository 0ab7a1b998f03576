/* Running ip and nft, and the kernel's switches. Programs are spawned (never forked: this process runs gRPC) and waited for with a limit. Any thread. */
#include "network_private.h"
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TOOL_TEXT_MAX = 300 };

int tool__run(const char *const argv[], const char *input, struct buf *out, struct error *err)
{
    static const char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", NULL};
    struct process_result result;
    int rc = process_run(argv, env, input, NETWORK_TOOL_BYTES_MAX, NETWORK_TOOL_MS_MAX, &result, err);
    if (!rc && result.exit_code) {
        struct buf command = {0};
        for (size_t i = 0; argv[i] && command.len < TOOL_TEXT_MAX; i++)
            buf_printf(&command, "%s%s", i ? " " : "", argv[i]);
        size_t len = strcspn(result.err.data, "\n");
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "Failed to run: %s: %.*s", command.data, (int)(len < TOOL_TEXT_MAX ? len : TOOL_TEXT_MAX), result.err.data);
        buf_free(&command);
    }
    if (!rc && out)
        buf_add(out, result.out.data, result.out.len);
    process_result_free(&result);
    return rc;
}

json_t *tool__json(const char *const argv[], struct error *err)
{
    struct buf out = {0};
    json_t *value = NULL;
    if (tool__run(argv, NULL, &out, err) == STATUS_OK) {
        value = out.len ? json_loadb(out.data, out.len, 0, NULL) : json_array(); /* nothing found is no text at all */
        if (!json_is_array(value)) {
            json_decref(value);
            value = NULL;
            error_set(err, STATUS_INTERNAL, "%s gave no list", argv[0]);
        }
    }
    buf_free(&out);
    return value;
}

int tool__sysctl(const char *path, const char *value, bool optional, struct error *err)
{
    char *file = xasprintf("/proc/sys/net/%s", path), now[32] = "";
    int rc = STATUS_OK, fd = open(file, O_RDWR | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, now, sizeof(now) - 1) : -1;
    if (fd < 0 && errno == ENOENT && optional) {
        rc = STATUS_OK;
    } else if (n < 0) {
        rc = error_errno(err, errno, "Failed to open %s", file);
    } else {
        now[strcspn(now, "\n")] = 0;
        if (!str_eq(now, value) && pwrite(fd, value, strlen(value), 0) < 0)
            rc = error_errno(err, errno, "Failed to write %s to %s", value, file);
    }
    if (fd >= 0)
        close(fd);
    free(file);
    return rc;
}

bool tool__interface(const char *name)
{
    return strlen(name) < IF_NAMESIZE && if_nametoindex(name) > 0;
}
