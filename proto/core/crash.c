/* Places where tests end a process: see crash_point in core.h. Thread: any. */
#include "core.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CRASH_POINT_BYTES_MAX = 256 };

static const char *wanted; /* NULL = never; written once */

static void read_environment(void)
{
    wanted = getenv("COVEY_TEST_CRASH_AT");
}

void crash_point(const char *point)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, read_environment);
    if (wanted == NULL) {
        return;
    }
    bool hit = strcmp(wanted, point) == 0;
    if (wanted[0] == '@') {
        struct buf text = {0};
        hit = file_read(wanted + 1, CRASH_POINT_BYTES_MAX, &text, NULL) == STATUS_OK && text.len > 0;
        if (hit) {
            text.data[strcspn(text.data, "\n")] = '\0';
            hit = strcmp(text.data, point) == 0 && unlink(wanted + 1) == 0;
        }
        buf_free(&text);
    }
    if (hit) {
        log_warn("crash.point", "point=%s", point);
        kill(getpid(), SIGKILL);
    }
}
