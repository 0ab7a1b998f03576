/* The kinds of warnings. Pure. */
#include "warnings.h"

#include <string.h>

static const struct {
    enum warning_kind kind;
    enum warning_severity severity;
    const char *name;
} kinds[] = {
    {WARNING_OFFLINE_MEMBER, WARNING_LOW, "Offline cluster member"},
    {WARNING_TIME_SKEW, WARNING_MODERATE, "Time skew detected between leader and local"},
    {WARNING_AUTOSTART, WARNING_MODERATE, "Failed to autostart instance"},
    {WARNING_NETWORK_UNAVAILABLE, WARNING_HIGH, "Network unavailable"},
    {WARNING_POOL_UNAVAILABLE, WARNING_HIGH, "Storage pool unavailable"},
    {WARNING_INSTANCE_TYPE, WARNING_MODERATE, "Instance type not operational"},
};

const char *warning_kind_name(enum warning_kind kind)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (kinds[i].kind == kind) {
            return kinds[i].name;
        }
    }
    return "";
}

enum warning_severity warning_severity(enum warning_kind kind)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (kinds[i].kind == kind) {
            return kinds[i].severity;
        }
    }
    return WARNING_LOW;
}

const char *warning_severity_name(enum warning_severity severity)
{
    static const char *const names[] = {[WARNING_LOW] = "low", [WARNING_MODERATE] = "moderate", [WARNING_HIGH] = "high"};
    return names[severity];
}

static const char *const statuses[] = {[WARNING_NEW] = "new", [WARNING_ACKNOWLEDGED] = "acknowledged", [WARNING_RESOLVED] = "resolved"};

const char *warning_status_name(enum warning_status status)
{
    return status >= WARNING_NEW && status <= WARNING_RESOLVED ? statuses[status] : "";
}

int warning_status_parse(const char *text, enum warning_status *out)
{
    for (enum warning_status status = WARNING_NEW; status <= WARNING_RESOLVED; status++) {
        if (strcmp(statuses[status], text) == 0) {
            *out = status;
            return 0;
        }
    }
    return -1;
}
