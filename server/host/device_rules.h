/* Rules for devices of containers (spec/api.md 7.14): pure, no I/O; controllers use them before they store, the agent before it starts.
 * Texts are those of the spec, without the prefix `Invalid devices: `, which the caller adds. Thread: any. */
#ifndef COVEY_SERVER_DEVICE_RULES_H
#define COVEY_SERVER_DEVICE_RULES_H

#include "proto/core/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct device_option {
    const char *key, *value;
};
struct device { /* borrowed */
    const char *name;
    const struct device_option *options;
    size_t option_count;
};

enum { DEVICE_NAME_MAX = 64, DEVICE_OPTIONS_MAX = 64, DEVICES_MAX = 128, DEVICE_VALUE_MAX = 4096 };

/* The value, or NULL. An empty value counts as absent. */
const char *device_get(const struct device *device, const char *key);
/* One device by itself: type, options, values. `Invalid device type x`, `Device validation failed for "NAME": <why>`. */
int device_check(const struct device *device, struct error *err);
/* A complete (expanded) set: each by itself, then names, equal disk paths, equal NIC names; with need_root exactly one root disk
 * (`Failed getting root disk: No root device could be found`). */
int devices_check(const struct device *devices, size_t count, bool need_root, struct error *err);
/* The root disk (type disk, path "/", no source), NULL if none. */
const struct device *devices_root(const struct device *devices, size_t count);
/* What this version's agent can start: `Unsupported device type …`, `Unsupported device option …`. Supposes devices_check. */
int device_supported(const struct device *device, struct error *err);

/* "512MiB", "1GB", "2048" -> bytes; -1 if invalid. */
int size_parse(const char *text, int64_t *bytes);
/* "2" or "0-3,5": *count > 0 for a number of CPUs, else 0 and a set. `Invalid CPU limit syntax`. */
int cpu_limit_parse(const char *text, int64_t *count, struct error *err);

#endif
