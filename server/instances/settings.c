/* Settings in memory, messages and rows; see settings.h. */
#include "settings.h"

#include "server/host/device_rules.h"
#include <stdlib.h>
#include <string.h>

/* ---- sorted arrays ---- */

static size_t settings_at(const struct settings *settings, const char *key, bool *found)
{
    size_t low = 0, high = settings->count;
    *found = false;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strcmp(settings->items[middle].key, key);
        if (order == 0) {
            *found = true;
            return middle;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

const char *settings_get(const struct settings *settings, const char *key)
{
    bool found;
    size_t at = settings_at(settings, key, &found);
    return found ? settings->items[at].value : NULL;
}

static void *grow(void *items, size_t count, size_t *capacity, size_t size, struct arena *arena)
{
    if (count < *capacity) {
        return items;
    }
    *capacity = *capacity > 0 ? *capacity * 2 : 8;
    void *copy = arena_alloc(arena, *capacity * size);
    if (count > 0) {
        memcpy(copy, items, count * size);
    }
    return copy;
}

void settings_set(struct settings *settings, const char *key, const char *value, struct arena *arena)
{
    bool found;
    size_t at = settings_at(settings, key, &found);
    if (str_empty(value)) {
        if (found) {
            memmove(&settings->items[at], &settings->items[at + 1], (settings->count - at - 1) * sizeof *settings->items);
            settings->count--;
        }
        return;
    }
    if (!found) {
        settings->items = grow(settings->items, settings->count, &settings->capacity, sizeof *settings->items, arena);
        memmove(&settings->items[at + 1], &settings->items[at], (settings->count - at) * sizeof *settings->items);
        settings->items[at].key = arena_strdup(arena, key);
        settings->count++;
    }
    settings->items[at].value = arena_strdup(arena, value);
}

struct device_settings *devices_find(const struct device_set *devices, const char *name)
{
    for (size_t i = 0; i < devices->count; i++) {
        if (strcmp(devices->items[i].name, name) == 0) {
            return &devices->items[i];
        }
    }
    return NULL;
}

struct device_settings *devices_add(struct device_set *devices, const char *name, struct arena *arena)
{
    size_t at = 0;
    while (at < devices->count && strcmp(devices->items[at].name, name) < 0) {
        at++;
    }
    if (at < devices->count && strcmp(devices->items[at].name, name) == 0) {
        return &devices->items[at];
    }
    devices->items = grow(devices->items, devices->count, &devices->capacity, sizeof *devices->items, arena);
    memmove(&devices->items[at + 1], &devices->items[at], (devices->count - at) * sizeof *devices->items);
    devices->items[at] = (struct device_settings){.name = arena_strdup(arena, name)};
    devices->count++;
    return &devices->items[at];
}

void devices_remove(struct device_set *devices, const char *name)
{
    struct device_settings *device = devices_find(devices, name);
    if (device != NULL) {
        size_t at = (size_t)(device - devices->items);
        memmove(device, device + 1, (devices->count - at - 1) * sizeof *device);
        devices->count--;
    }
}

void spec_overlay(struct spec *to, const struct spec *from, struct arena *arena)
{
    for (size_t i = 0; i < from->config.count; i++) {
        settings_set(&to->config, from->config.items[i].key, from->config.items[i].value, arena);
    }
    for (size_t i = 0; i < from->devices.count; i++) {
        struct device_settings *device = devices_add(&to->devices, from->devices.items[i].name, arena);
        memset(&device->options, 0, sizeof device->options);
        for (size_t k = 0; k < from->devices.items[i].options.count; k++) {
            const struct setting *option = &from->devices.items[i].options.items[k];
            settings_set(&device->options, option->key, option->value, arena);
        }
    }
}

void spec_finish_expansion(struct spec *spec)
{
    for (size_t i = spec->devices.count; i-- > 0;) {
        if (str_eq(settings_get(&spec->devices.items[i].options, "type"), "none")) {
            devices_remove(&spec->devices, spec->devices.items[i].name);
        }
    }
}

/* ---- messages: every generated map entry has this shape ---- */

struct text_entry {
    ProtobufCMessage base;
    char *key, *value;
};
struct device_entry {
    ProtobufCMessage base;
    char *key;
    struct device_message *value;
};
struct device_message { /* covey.v1.Device */
    ProtobufCMessage base;
    size_t n_options;
    struct text_entry **options;
};

void settings_from_map(struct settings *settings, void *entries, size_t count, struct arena *arena)
{
    struct text_entry **map = entries;
    for (size_t i = 0; i < count; i++) {
        settings_set(settings, map[i]->key, map[i]->value, arena);
    }
}

void devices_from_map(struct device_set *devices, void *entries, size_t count, struct arena *arena)
{
    struct device_entry **map = entries;
    for (size_t i = 0; i < count; i++) {
        struct device_settings *device = devices_add(devices, map[i]->key, arena);
        memset(&device->options, 0, sizeof device->options);
        if (map[i]->value != NULL) {
            settings_from_map(&device->options, map[i]->value->options, map[i]->value->n_options, arena);
        }
    }
}

void *settings_to_map(const struct settings *settings, const ProtobufCMessageDescriptor *entry, size_t *count, struct arena *arena)
{
    struct text_entry **map = arena_alloc(arena, (settings->count + 1) * sizeof *map);
    covey_assert(entry->sizeof_message == sizeof **map);
    for (size_t i = 0; i < settings->count; i++) {
        map[i] = arena_alloc(arena, sizeof **map);
        entry->message_init(&map[i]->base);
        map[i]->key = (char *)settings->items[i].key;
        map[i]->value = (char *)settings->items[i].value;
    }
    *count = settings->count;
    return map;
}

void *devices_to_map(const struct device_set *devices, const ProtobufCMessageDescriptor *entry, size_t *count, struct arena *arena)
{
    struct device_entry **map = arena_alloc(arena, (devices->count + 1) * sizeof *map);
    const ProtobufCMessageDescriptor *device = protobuf_c_message_descriptor_get_field_by_name(entry, "value")->descriptor;
    const ProtobufCMessageDescriptor *option = protobuf_c_message_descriptor_get_field_by_name(device, "options")->descriptor;
    covey_assert(entry->sizeof_message == sizeof **map && device->sizeof_message == sizeof(struct device_message));
    for (size_t i = 0; i < devices->count; i++) {
        map[i] = arena_alloc(arena, sizeof **map);
        entry->message_init(&map[i]->base);
        map[i]->key = (char *)devices->items[i].name;
        map[i]->value = arena_alloc(arena, sizeof *map[i]->value);
        device->message_init(&map[i]->value->base);
        map[i]->value->options = settings_to_map(&devices->items[i].options, option, &map[i]->value->n_options, arena);
    }
    *count = devices->count;
    return map;
}

/* ---- rows ---- */

static int load_settings(struct sql *sql, const char *query, int64_t id, struct settings *settings, struct arena *arena, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, query, "i", id);
    while (sql_next(s)) {
        settings_set(settings, sql_text(s, 0), sql_text(s, 1), arena);
    }
    return sql_done(s, err);
}

int spec_load(struct sql *sql, const char *noun, int64_t id, struct spec *spec, struct arena *arena, struct error *err)
{
    bool profile = strcmp(noun, "profile") == 0;
    int status = load_settings(sql,
        profile ? "SELECT key, value FROM profiles_config WHERE profile_id = ?1" : "SELECT key, value FROM instances_config WHERE instance_id = ?1", id, &spec->config,
        arena, err);
    if (status != STATUS_OK) {
        return status;
    }
    struct sql_stmt *s = sql_query(sql,
        profile ? "SELECT name, key, value FROM profiles_devices LEFT JOIN profiles_devices_config ON profile_device_id = profiles_devices.id WHERE profile_id = ?1 ORDER BY name"
                : "SELECT name, key, value FROM instances_devices LEFT JOIN instances_devices_config ON instance_device_id = instances_devices.id WHERE instance_id = ?1 ORDER BY name",
        "i", id);
    while (sql_next(s)) {
        struct device_settings *device = devices_add(&spec->devices, sql_text(s, 0), arena);
        if (!sql_null(s, 1)) {
            settings_set(&device->options, sql_text(s, 1), sql_text(s, 2), arena);
        }
    }
    return sql_done(s, err);
}

static bool settings_equal(const struct settings *a, const struct settings *b)
{
    bool equal = a->count == b->count;
    for (size_t i = 0; i < a->count && equal; i++) {
        equal = strcmp(a->items[i].key, b->items[i].key) == 0 && strcmp(a->items[i].value, b->items[i].value) == 0;
    }
    return equal;
}

static int store_config(struct sql *sql, bool profile, int64_t id, const struct settings *old, const struct settings *now, struct error *err)
{
    int status = STATUS_OK;
    for (size_t i = 0; i < old->count && status == STATUS_OK; i++) {
        if (settings_get(now, old->items[i].key) == NULL) {
            status = sql_exec(sql, err, profile ? "DELETE FROM profiles_config WHERE profile_id = ?1 AND key = ?2" : "DELETE FROM instances_config WHERE instance_id = ?1 AND key = ?2",
                "is", id, old->items[i].key);
        }
    }
    for (size_t i = 0; i < now->count && status == STATUS_OK; i++) {
        const char *before = settings_get(old, now->items[i].key);
        if (before == NULL) {
            status = sql_exec(sql, err, profile ? "INSERT INTO profiles_config (profile_id, key, value) VALUES (?1, ?2, ?3)"
                                                : "INSERT INTO instances_config (instance_id, key, value) VALUES (?1, ?2, ?3)",
                "iss", id, now->items[i].key, now->items[i].value);
        } else if (strcmp(before, now->items[i].value) != 0) {
            status = sql_exec(sql, err, profile ? "UPDATE profiles_config SET value = ?3 WHERE profile_id = ?1 AND key = ?2"
                                                : "UPDATE instances_config SET value = ?3 WHERE instance_id = ?1 AND key = ?2",
                "iss", id, now->items[i].key, now->items[i].value);
        }
    }
    return status;
}

static int store_device(struct sql *sql, bool profile, int64_t id, const struct device_settings *device, struct error *err)
{
    int status = sql_exec(sql, err, profile ? "INSERT INTO profiles_devices (profile_id, name) VALUES (?1, ?2)" : "INSERT INTO instances_devices (instance_id, name) VALUES (?1, ?2)",
        "is", id, device->name);
    int64_t row = sql_last_id(sql);
    for (size_t k = 0; k < device->options.count && status == STATUS_OK; k++) {
        status = sql_exec(sql, err, profile ? "INSERT INTO profiles_devices_config (profile_device_id, key, value) VALUES (?1, ?2, ?3)"
                                            : "INSERT INTO instances_devices_config (instance_device_id, key, value) VALUES (?1, ?2, ?3)",
            "iss", row, device->options.items[k].key, device->options.items[k].value);
    }
    return status;
}

int spec_store(struct sql *sql, const char *noun, int64_t id, const struct spec *spec, struct arena *arena, struct error *err)
{
    bool profile = strcmp(noun, "profile") == 0;
    struct spec old = {0};
    int status = spec_load(sql, noun, id, &old, arena, err);
    if (status == STATUS_OK) {
        status = store_config(sql, profile, id, &old.config, &spec->config, err);
    }
    for (size_t i = 0; i < old.devices.count && status == STATUS_OK; i++) {
        const struct device_settings *before = &old.devices.items[i], *now = devices_find(&spec->devices, before->name);
        if (now == NULL || !settings_equal(&before->options, &now->options)) {
            status = sql_exec(sql, err, profile ? "DELETE FROM profiles_devices WHERE profile_id = ?1 AND name = ?2"
                                                : "DELETE FROM instances_devices WHERE instance_id = ?1 AND name = ?2",
                "is", id, before->name);
        }
    }
    for (size_t i = 0; i < spec->devices.count && status == STATUS_OK; i++) {
        const struct device_settings *now = &spec->devices.items[i], *before = devices_find(&old.devices, now->name);
        if (before == NULL || !settings_equal(&before->options, &now->options)) {
            status = store_device(sql, profile, id, now, err);
        }
    }
    return status;
}
