/* Errors: one status set (gRPC's) for every program, and a value that carries code, text and facts.
 *
 * A function that can fail returns an `enum status` (as int, 0 = success) and takes `struct error *err` as its last parameter; it sets
 * `err` whenever it does not return STATUS_OK. `err` may be NULL where the caller does not want the text. Thread: any. */
#ifndef COVEY_CORE_ERROR_H
#define COVEY_CORE_ERROR_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

enum status { /* values are gRPC's: https://grpc.io/docs/guides/status-codes/ */
    STATUS_OK = 0,
    STATUS_CANCELLED = 1,
    STATUS_UNKNOWN = 2,             /* HTTP 503; the outcome is not known: it may or may not have been done; retry with the same request id */
    STATUS_INVALID_ARGUMENT = 3,    /* HTTP 400 */
    STATUS_DEADLINE_EXCEEDED = 4,   /* HTTP 503 */
    STATUS_NOT_FOUND = 5,           /* HTTP 404 */
    STATUS_ALREADY_EXISTS = 6,      /* HTTP 409 */
    STATUS_PERMISSION_DENIED = 7,   /* HTTP 403 */
    STATUS_RESOURCE_EXHAUSTED = 8,  /* HTTP 503; a named limit was reached */
    STATUS_FAILED_PRECONDITION = 9, /* HTTP 400; the object is not in the state that the request needs */
    STATUS_ABORTED = 10,            /* HTTP 412; ETag mismatch */
    STATUS_OUT_OF_RANGE = 11,       /* HTTP 400 */
    STATUS_UNIMPLEMENTED = 12,      /* HTTP 501 */
    STATUS_INTERNAL = 13,           /* HTTP 500 */
    STATUS_UNAVAILABLE = 14,        /* HTTP 503; nothing was done; may be retried */
    STATUS_DATA_LOSS = 15,          /* HTTP 500 */
    STATUS_UNAUTHENTICATED = 16,    /* HTTP 403 (LXD never answers 401) */
};

enum { ERROR_TEXT_MAX = 1024 }; /* bytes with the NUL; longer texts are cut */

struct error {
    enum status code;
    char text[ERROR_TEXT_MAX];
    bool not_leader;   /* the member asked does not lead (any more); `leader` says who does, if known */
    uint64_t leader;   /* member id, 0 = unknown */
    uint32_t retry_ms; /* advice, 0 = none */
};

#define ERROR_INIT {STATUS_OK, "", false, 0, 0}

/* Sets code and text (facts are cleared) and returns the code. `err` may be NULL. */
int error_set(struct error *err, enum status code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
int error_vset(struct error *err, enum status code, const char *fmt, va_list args) __attribute__((format(printf, 3, 0)));

/* Sets "text: reason" for a system error: ENOENT gives STATUS_NOT_FOUND, EEXIST ALREADY_EXISTS, EACCES and kin PERMISSION_DENIED, lack of space or
 * descriptors RESOURCE_EXHAUSTED, others INTERNAL. */
int error_errno(struct error *err, int errnum, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text, keeps code and facts; returns the code. */
int error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Sets STATUS_UNAVAILABLE with the not_leader fact; leader = 0 when unknown. */
int error_not_leader(struct error *err, uint64_t leader);

/* The status's gRPC name, e.g. "NOT_FOUND"; never NULL. */
const char *status_name(enum status code);

/* The HTTP code of a status by the table above. */
int status_http(enum status code);

#endif
