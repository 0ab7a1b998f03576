/* Pure rules of membership: names, durations, architectures. */
#include "cluster.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int member_name_check(const char *name, struct error *err)
{
    const char *reason = NULL;
    size_t len = strlen(name);
    if (len == 0 || len > MEMBER_NAME_MAX) {
        reason = "Name must be 1-63 characters long";
    } else if (name[0] == '@' || name[0] == '-' || name[0] == '.') {
        reason = "Name must not start with \"@\", \"-\" or \".\"";
    } else if (strcmp(name, "none") == 0) {
        reason = "Name cannot be \"none\"";
    } else {
        for (size_t i = 0; i < len && reason == NULL; i++) {
            unsigned char c = (unsigned char)name[i];
            if (c >= 128 || (!isalnum(c) && c != '-' && c != '_' && c != '.')) {
                reason = "Name can only contain letters, digits, \"-\", \"_\" and \".\"";
            }
        }
    }
    return reason == NULL ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid cluster member name: %s", reason);
}

void duration_text(int64_t ns, char *out, size_t size)
{
    const int64_t second = 1000000000;
    int64_t total = ns / second, hours = total / 3600, minutes = total / 60 % 60, seconds = total % 60, fraction = ns % second;
    char tail[16] = "";
    if (fraction > 0) {
        snprintf(tail, sizeof tail, ".%09" PRId64, fraction);
        for (char *end = tail + strlen(tail) - 1; *end == '0'; end--) {
            *end = '\0';
        }
    }
    if (hours > 0) {
        snprintf(out, size, "%" PRId64 "h%" PRId64 "m%" PRId64 "%ss", hours, minutes, seconds, tail);
    } else if (minutes > 0) {
        snprintf(out, size, "%" PRId64 "m%" PRId64 "%ss", minutes, seconds, tail);
    } else {
        snprintf(out, size, "%" PRId64 "%ss", seconds, tail);
    }
}

static const struct {
    int id;
    const char *name;
} architectures[] = {{1, "i686"}, {2, "x86_64"}, {3, "armv7l"}, {4, "aarch64"}, {6, "ppc64"}, {7, "ppc64le"}, {8, "s390x"}, {9, "mips"}, {10, "mips64"},
    {11, "riscv32"}, {12, "riscv64"}};

int architecture_id(const char *name)
{
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (strcmp(architectures[i].name, name) == 0) {
            return architectures[i].id;
        }
    }
    return 0;
}

const char *architecture_name(int id)
{
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++) {
        if (architectures[i].id == id) {
            return architectures[i].name;
        }
    }
    return "unknown";
}
