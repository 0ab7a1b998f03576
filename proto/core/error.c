/* Status names, HTTP codes and the error value. Pure; thread: any; nothing here can fail. */
#include "error.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

int error_vset(struct error *err, enum status code, const char *fmt, va_list args)
{
    if (err) {
        err->code = code;
        err->not_leader = false;
        err->leader = 0;
        err->retry_ms = 0;
        char text[sizeof(err->text)]; /* the arguments may point into err->text */
        vsnprintf(text, sizeof(text), fmt, args);
        memcpy(err->text, text, strlen(text) + 1);
    }
    return code;
}

int error_set(struct error *err, enum status code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    error_vset(err, code, fmt, args);
    va_end(args);
    return code;
}

int error_prefix(struct error *err, const char *fmt, ...)
{
    if (!err)
        return STATUS_UNKNOWN;
    char prefix[ERROR_TEXT_MAX], text[ERROR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(prefix, sizeof(prefix), fmt, args);
    va_end(args);
    memcpy(text, err->text, sizeof(text));
    size_t len = strlen(prefix);
    if (len > sizeof(err->text) - 3)
        len = sizeof(err->text) - 3;
    memcpy(err->text, prefix, len);
    memcpy(err->text + len, ": ", 2);
    size_t room = sizeof(err->text) - len - 2;
    size_t rest = strnlen(text, sizeof(text) - 1);
    if (rest > room - 1)
        rest = room - 1;
    memcpy(err->text + len + 2, text, rest);
    err->text[len + 2 + rest] = 0;
    return err->code;
}

static enum status errno_status(int errnum)
{
    switch (errnum) {
    case ENOENT:
        return STATUS_NOT_FOUND;
    case EEXIST:
        return STATUS_ALREADY_EXISTS;
    case EACCES:
    case EPERM:
    case EROFS:
        return STATUS_PERMISSION_DENIED;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case EAGAIN:
        return STATUS_RESOURCE_EXHAUSTED;
    case ENAMETOOLONG:
    case EINVAL:
        return STATUS_INVALID_ARGUMENT;
    default:
        return STATUS_INTERNAL;
    }
}

int error_errno(struct error *err, int errnum, const char *fmt, ...)
{
    char text[ERROR_TEXT_MAX], reason[128];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    const char *said = strerror_r(errnum, reason, sizeof(reason)); /* the GNU form: returns the text, thread-safe */
    return error_set(err, errno_status(errnum), "%s: %s", text, said);
}

int error_not_leader(struct error *err, uint64_t leader)
{
    error_set(err, STATUS_UNAVAILABLE, leader ? "this member is not the leader" : "no leader is known");
    if (err) {
        err->not_leader = true;
        err->leader = leader;
    }
    return STATUS_UNAVAILABLE;
}

static const struct {
    const char *name;
    int http;
} statuses[] = {
    [STATUS_OK] = {"OK", 200},
    [STATUS_CANCELLED] = {"CANCELLED", 503}, /* who still waits for the answer did not cancel: the server stops */
    [STATUS_UNKNOWN] = {"UNKNOWN", 503},
    [STATUS_INVALID_ARGUMENT] = {"INVALID_ARGUMENT", 400},
    [STATUS_DEADLINE_EXCEEDED] = {"DEADLINE_EXCEEDED", 503},
    [STATUS_NOT_FOUND] = {"NOT_FOUND", 404},
    [STATUS_ALREADY_EXISTS] = {"ALREADY_EXISTS", 409},
    [STATUS_PERMISSION_DENIED] = {"PERMISSION_DENIED", 403},
    [STATUS_RESOURCE_EXHAUSTED] = {"RESOURCE_EXHAUSTED", 503},
    [STATUS_FAILED_PRECONDITION] = {"FAILED_PRECONDITION", 400},
    [STATUS_ABORTED] = {"ABORTED", 412},
    [STATUS_OUT_OF_RANGE] = {"OUT_OF_RANGE", 400},
    [STATUS_UNIMPLEMENTED] = {"UNIMPLEMENTED", 501},
    [STATUS_INTERNAL] = {"INTERNAL", 500},
    [STATUS_UNAVAILABLE] = {"UNAVAILABLE", 503},
    [STATUS_DATA_LOSS] = {"DATA_LOSS", 500},
    [STATUS_UNAUTHENTICATED] = {"UNAUTHENTICATED", 403},
};

const char *status_name(enum status code)
{
    if ((unsigned)code >= sizeof(statuses) / sizeof(statuses[0]))
        return "UNKNOWN";
    return statuses[code].name;
}

int status_http(enum status code)
{
    if ((unsigned)code >= sizeof(statuses) / sizeof(statuses[0]))
        return 500;
    return statuses[code].http;
}
