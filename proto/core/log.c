/* Logging: one line, one write(2), so that lines of several threads and processes never mix. Thread: any, after log_init. */
#include "core.h"
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { LOG_LINE_MAX = 4096 }; /* bytes; longer lines are cut and end in "…" */

static const char *const level_names[] = {"DEBUG", "INFO", "WARN", "ERROR"};
static char program_name[32] = "covey";
static atomic_int level_min = LOG_LEVEL_INFO;
static atomic_int log_fd = STDERR_FILENO;

void log_init(const char *program, enum log_level min)
{
    snprintf(program_name, sizeof(program_name), "%s", program);
    const char *wanted = getenv("COVEY_LOG");
    for (int i = 0; wanted && i < 4; i++)
        if (strcasecmp(wanted, level_names[i]) == 0)
            min = (enum log_level)i;
    atomic_store(&level_min, (int)min);
}

void log_to_file(const char *path)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
    if (fd < 0) {
        char reason[128];
        log_error("log.open", "path=%s error=\"%s\"", path, strerror_r(errno, reason, sizeof(reason)));
        return; /* lines keep going to stderr */
    }
    int old = atomic_load(&log_fd);
    if (old == STDERR_FILENO) {
        atomic_store(&log_fd, fd);
    } else { /* another thread may be writing: keep the number, exchange what it stands for */
        if (dup3(fd, old, O_CLOEXEC) < 0)
            log_error("log.open", "path=%s error=dup", path);
        close(fd);
    }
}

bool log_on(enum log_level level) { return (int)level >= atomic_load_explicit(&level_min, memory_order_relaxed); }

static void log_line(enum log_level level, const char *event, const char *fmt, va_list args)
{
    int saved_errno = errno;
    char line[LOG_LINE_MAX], when[40];
    time_rfc3339(time_unix_ns() / 1000 * 1000, when, sizeof(when));
    int head = snprintf(line, sizeof(line), "%s %s %s ", when, level_names[level], event);
    size_t at = head > 0 && (size_t)head < sizeof(line) - 8 ? (size_t)head : 0;
    int n = vsnprintf(line + at, sizeof(line) - at, fmt, args);
    size_t len = at + (n > 0 ? (size_t)n : 0);
    if (len > sizeof(line) - 2) {
        len = sizeof(line) - 2;
        memcpy(line + len - 3, "\xe2\x80\xa6", 3);
    }
    for (size_t i = 0; i < len; i++) /* texts from elsewhere must not forge lines */
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = ' ';
    line[len++] = '\n';
    ssize_t ignored = write(atomic_load(&log_fd), line, len); /* there is nowhere to report it to */
    (void)ignored;
    errno = saved_errno;
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    if (!log_on(level))
        return;
    va_list args;
    va_start(args, fmt);
    log_line(level, event, fmt, args);
    va_end(args);
}

void core_panic(const char *file, int line, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    log_event(LOG_LEVEL_ERROR, "panic", "program=%s at=%s:%d text=\"%s\"", program_name, file, line, text);
    abort();
}
