/* Configuration and devices of profiles and instances: in memory, in messages, in rows; expansion and validation. Pure but for load and store, which
 * run inside a transaction. Everything lives in the arena that was given. */
#ifndef COVEY_SERVER_INSTANCES_SETTINGS_H
#define COVEY_SERVER_INSTANCES_SETTINGS_H

#include "proto/rpc/codec.h"
#include "storage/sql.h"

enum { SETTINGS_MAX = 1024, SETTING_KEY_MAX = 255, SETTING_VALUE_MAX = 64 * 1024 };

struct setting {
    const char *key, *value;
};
struct settings { /* sorted by key, keys unique */
    struct setting *items;
    size_t count, capacity;
};
struct device_settings {
    const char *name;
    struct settings options;
};
struct device_set { /* sorted by name, names unique */
    struct device_settings *items;
    size_t count, capacity;
};
struct spec { /* what a profile or an instance says */
    struct settings config;
    struct device_set devices;
};

const char *settings_get(const struct settings *settings, const char *key); /* NULL when absent */
/* value NULL or "" removes. Text is copied. */
void settings_set(struct settings *settings, const char *key, const char *value, struct arena *arena);
struct device_settings *devices_find(const struct device_set *devices, const char *name);
struct device_settings *devices_add(struct device_set *devices, const char *name, struct arena *arena); /* or the existing one */
void devices_remove(struct device_set *devices, const char *name);
/* `from` on top of `to`: config key by key, devices whole (profile order, spec/api.md 7.1). */
void spec_overlay(struct spec *to, const struct spec *from, struct arena *arena);
/* Removes devices of type none. */
void spec_finish_expansion(struct spec *spec);

/* Messages: `entries` is the map field of a generated message (map<string,string>, or map<string, Device>). */
void settings_from_map(struct settings *settings, void *entries, size_t count, struct arena *arena);
void devices_from_map(struct device_set *devices, void *entries, size_t count, struct arena *arena);
void *settings_to_map(const struct settings *settings, const ProtobufCMessageDescriptor *entry, size_t *count, struct arena *arena);
void *devices_to_map(const struct device_set *devices, const ProtobufCMessageDescriptor *entry, size_t *count, struct arena *arena);

/* Rows: noun is "profile" or "instance" (tables <noun>s_config, <noun>s_devices, <noun>s_devices_config). store writes differences only. */
int spec_load(struct sql *sql, const char *noun, int64_t id, struct spec *spec, struct arena *arena, struct error *err);
int spec_store(struct sql *sql, const char *noun, int64_t id, const struct spec *spec, struct arena *arena, struct error *err);

/* Keys and values by spec/api.md 7.13 (profiles refuse volatile.* and image.*); devices by 7.14, with need_root for a complete set. Errors:
 * `Unknown configuration key: K`, `Invalid value for a boolean "x"`, `Invalid devices: Device validation failed for "NAME": …`. */
int config_check(const struct settings *config, bool profile, struct error *err);
int device_set_check(const struct device_set *devices, bool need_root, struct error *err);

#endif
