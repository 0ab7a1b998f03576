/* Small things that every program shares: logging, arenas, growing buffers, hex/base64, time text, files, random.
 * Everything here is thread-safe unless said otherwise. Out of memory ends the process through core_oom(): recovery from it cannot be tested
 * everywhere, and a restart is safe by design. */
#ifndef COVEY_CORE_CORE_H
#define COVEY_CORE_CORE_H

#include "error.h"
#include <protobuf-c/protobuf-c.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

/* ---- memory ---- */
void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *p, size_t size);
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void core_oom(void);

/* An arena: everything allocated from it is freed at once. Not thread-safe. Opaque blocks of 8 KiB, larger allocations on their own.
 * `allocator` is the protobuf-c view of it (free does nothing): pass &arena->allocator to ..._unpack(). */
struct arena {
    ProtobufCAllocator allocator;
    struct arena_block *blocks;
    size_t bytes; /* allocated in all, for limits */
};
void arena_init(struct arena *arena);
void arena_clear(struct arena *arena); /* frees everything; the arena can be used again */
void *arena_alloc(struct arena *arena, size_t size); /* zeroed, aligned to 16 */
char *arena_strdup(struct arena *arena, const char *s); /* NULL gives NULL */
char *arena_strndup(struct arena *arena, const char *s, size_t n);
char *arena_printf(struct arena *arena, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void *arena_memdup(struct arena *arena, const void *p, size_t size);

/* A growing byte buffer; data[len] is always 0 once something was added. Zero-initialise; free with buf_free. Not thread-safe. */
struct buf {
    char *data;
    size_t len, cap;
};
void buf_add(struct buf *buf, const void *data, size_t len);
void buf_puts(struct buf *buf, const char *s);
void buf_printf(struct buf *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_json_string(struct buf *buf, const char *s); /* quoted and escaped as JSON (not HTML-escaped); invalid UTF-8 becomes U+FFFD */
char *buf_grow(struct buf *buf, size_t len);          /* len more bytes, not initialised, counted as added; where to write them */
void buf_base64(struct buf *buf, const void *data, size_t len);
char *buf_take(struct buf *buf);                      /* the data ("" if empty) becomes the caller's, the buffer is empty again */
void buf_free(struct buf *buf);

/* ---- logging: one line on stderr: time level event key=value…; never secrets ---- */
enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };
void log_init(const char *program, enum log_level min); /* min may be overridden by $COVEY_LOG=debug|info|warn|error */
void log_to_file(const char *path);                     /* appends to path instead of stderr; kept open */
bool log_on(enum log_level level);
/* `event` is one name like "raft.leader"; fmt gives "key=value key=value" text. */
void log_event(enum log_level level, const char *event, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
#define log_debug(event, ...) do { if (log_on(LOG_LEVEL_DEBUG)) log_event(LOG_LEVEL_DEBUG, event, __VA_ARGS__); } while (0)
#define log_info(event, ...) log_event(LOG_LEVEL_INFO, event, __VA_ARGS__)
#define log_warn(event, ...) log_event(LOG_LEVEL_WARN, event, __VA_ARGS__)
#define log_error(event, ...) log_event(LOG_LEVEL_ERROR, event, __VA_ARGS__)

/* Logs and aborts. For our own mistakes and for states where going on would be worse than stopping; kept in release builds. */
_Noreturn void core_panic(const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
#define covey_assert(cond) do { if (!(cond)) core_panic(__FILE__, __LINE__, "assertion failed: %s", #cond); } while (0)

/* Ends the process as kill -9 does when the environment's COVEY_TEST_CRASH_AT is `point`, or "@FILE" and FILE's text is `point` (FILE is removed first, so
 * that it happens once). Marks the places where tests kill code that must survive it; compiled always, so that what is tested is what is delivered. */
void crash_point(const char *point);

/* ---- text ---- */
void hex_encode(const uint8_t *data, size_t len, char *out); /* out has 2*len+1 bytes; lower case */
int hex_decode(const char *hex, uint8_t *out, size_t len);   /* exactly len bytes; 0 or -1 */
char *base64_encode(const void *data, size_t len);           /* caller frees */
uint8_t *base64_decode(const char *text, size_t *len);       /* standard alphabet, white space ignored; NULL if invalid; caller frees */
bool utf8_valid(const char *data, size_t len);               /* also refuses NUL */
bool str_empty(const char *s);                               /* NULL or "" */
bool str_eq(const char *a, const char *b);                   /* NULL counts as "" */
bool str_prefix(const char *s, const char *prefix);
/* 0, or -1 unless the whole text is one decimal number within [min, max]. */
int parse_i64(const char *text, int64_t min, int64_t max, int64_t *out);
/* "true/false/yes/no/1/0/on/off" in any case; -1 otherwise, else 0 with *out. */
int parse_bool(const char *text, bool *out);

/* ---- time ---- */
int64_t time_unix_ns(void); /* wall clock: for records and display only; $COVEY_TEST_CLOCK_OFFSET_S shifts it (tests) */
int64_t time_mono_ms(void); /* monotonic: for every timeout and decision */
void time_deadline(struct timespec *out, int64_t ms); /* so long from now, for timed waits on conditions that go by the monotonic clock; less than 0 counts as 0 */
void time_rfc3339(int64_t unix_ns, char *out, size_t size);      /* UTC, nanoseconds without trailing zeros, "2026-11-21T08:41:04.99Z"; size >= 40 */
int time_parse_rfc3339(const char *text, int64_t *unix_ns);      /* 0 or -1 */
/* The same for every year from 1 to 9999 (64-bit nanoseconds hold 1677 to 2262 only). */
void time_rfc3339_parts(int64_t seconds, int32_t nanos, char *out, size_t size);
int time_parse_rfc3339_parts(const char *text, int64_t *seconds, int32_t *nanos);

/* ---- random, ids, hashes ---- */
void random_bytes(void *out, size_t len);
void random_hex(char *out, size_t bytes);                   /* out has 2*bytes+1 */
void uuid_new(char out[37]);                                /* version 4 */
bool uuid_valid(const char *text);
void sha256_hex(const void *data, size_t len, char out[65]);

/* ---- threads that end by themselves ---- */
/* A started thread that ends joins the one that ended before it, so one of a group at most waits to be joined. Unlike a detached thread it has ended whole, with
 * what libraries keep for it, once thread_group_join() has returned true: the program may end. Zero-initialize with THREAD_GROUP_INIT. Thread: any. */
struct thread_group {
    pthread_mutex_t lock; /* protects the rest */
    pthread_cond_t ended;
    pthread_t last; /* ended and not joined yet, when any_ended */
    unsigned running;
    bool any_ended;
};
#define THREAD_GROUP_INIT {.lock = PTHREAD_MUTEX_INITIALIZER, .ended = PTHREAD_COND_INITIALIZER}
/* name: at most 15 bytes; stack_bytes: 0 for the default. 0, or the error number: no thread was started then. */
int thread_group_start(struct thread_group *group, const char *name, size_t stack_bytes, void *(*run)(void *ud), void *ud);
/* Waits for all of the group, at most timeout_ms (-1: without limit); false when some still run. Nobody may start any meanwhile. */
bool thread_group_join(struct thread_group *group, int64_t timeout_ms);

/* ---- files ---- */
int file_read(const char *path, size_t max, struct buf *out, struct error *err);
/* Writes path.tmp, fsyncs, renames, fsyncs the folder: after a crash either the old or the new content is there. */
int file_write_atomic(const char *path, const void *data, size_t len, mode_t mode, struct error *err);
int file_sync_parent(const char *path, struct error *err);        /* fsyncs the folder: a rename in it lasts */
int dir_make(const char *path, mode_t mode, struct error *err); /* with parents; existing is fine */
int dir_remove_all(const char *path, struct error *err);        /* never follows links nor crosses mount points; absent is fine */

/* ---- processes ---- */
/* The listening local socket with this path that a service manager handed to this process, not blocking, not passed on; -1 = none. The file stays the
 * manager's: do not remove it. */
int inherited_socket(const char *path);
int inherited_count(void); /* how many sockets a service manager handed to this process */
struct process_result {
    int exit_code; /* 128+N when killed by signal N */
    struct buf out; /* stdout, at most out_max */
    struct buf err; /* stderr, at most 16 KiB, the tail is kept */
};
/* Runs argv by posix_spawn (never fork: gRPC threads), feeds `input` (may be NULL) to its stdin, waits at most timeout_ms (then SIGKILL to its
 * process group, STATUS_DEADLINE_EXCEEDED). A non-zero exit is not an error here. Blocking. Free with process_result_free. */
int process_run(const char *const argv[], const char *const envp[], const char *input, size_t out_max, int64_t timeout_ms,
                struct process_result *result, struct error *err);
void process_result_free(struct process_result *result);

#endif
