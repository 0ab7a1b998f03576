/* Which configuration keys containers have and what their values may be (spec/api.md 7.13). One table; pure. Keys that promise behaviour which is not built are
 * unknown, so that nobody relies on them in vain. */
#include "rules.h"

#include "server/host/device_rules.h"
#include "settings.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum value_type { ANY, BOOLEAN, INTEGER, SIZE, CPU, CHOICE, ALLOWANCE };

static const struct {
    const char *key; /* a trailing '*' matches any rest */
    enum value_type type;
    const char *choices; /* CHOICE: "|a|b|" */
    bool profile_too;
} keys[] = {
    {"limits.cpu", CPU, NULL, true},
    {"limits.cpu.allowance", ALLOWANCE, NULL, true},
    {"limits.memory", SIZE, NULL, true},
    {"limits.processes", INTEGER, NULL, true},
    {"boot.autostart", BOOLEAN, NULL, true},
    {"boot.autostart.delay", INTEGER, NULL, true},
    {"boot.autostart.priority", INTEGER, NULL, true},
    {"boot.stop.priority", INTEGER, NULL, true},
    {"boot.host_shutdown_timeout", INTEGER, NULL, true},
    {"security.privileged", BOOLEAN, NULL, true},
    {"security.nesting", BOOLEAN, NULL, true},
    {"security.protection.delete", BOOLEAN, NULL, true},
    {"cluster.evacuate", CHOICE, "|auto|migrate|live-migrate|stop|", true},
    {"raw.lxc", ANY, NULL, true},
    {"environment.*", ANY, NULL, true},
    {"user.*", ANY, NULL, true},
    {"cloud-init.user-data", ANY, NULL, true},
    {"cloud-init.vendor-data", ANY, NULL, true},
    {"cloud-init.network-config", ANY, NULL, true},
    {"image.*", ANY, NULL, false},
    {"volatile.*", ANY, NULL, false},
};

static bool key_matches(const char *pattern, const char *key)
{
    size_t n = strlen(pattern);
    return pattern[n - 1] == '*' ? strncmp(pattern, key, n - 1) == 0 && key[n - 1] != '\0' : strcmp(pattern, key) == 0;
}

static bool percent_or_size(const char *value)
{
    size_t n = strlen(value);
    int64_t number;
    if (n > 1 && value[n - 1] == '%') {
        char digits[16];
        snprintf(digits, sizeof digits, "%.*s", (int)(n - 1 < 15 ? n - 1 : 15), value);
        return parse_i64(digits, 1, 100, &number) == 0;
    }
    return size_parse(value, &number) == 0 && number > 0;
}

static bool allowance_ok(const char *value)
{
    unsigned a = 0, b = 0;
    int end = 0;
    if (sscanf(value, "%u%%%n", &a, &end) == 1 && end > 0 && value[end] == '\0') {
        return a >= 1;
    }
    end = 0;
    return sscanf(value, "%ums/%ums%n", &a, &b, &end) == 2 && end > 0 && value[end] == '\0' && a > 0 && b > 0;
}

static int value_check(enum value_type type, const char *choices, const char *value, struct error *err)
{
    int64_t number;
    bool flag;
    char wrapped[64] = "";
    switch (type) {
    case ANY: return STATUS_OK;
    case BOOLEAN:
        return parse_bool(value, &flag) == 0 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for a boolean \"%s\"", value);
    case INTEGER:
        return parse_i64(value, 0, INT64_MAX, &number) == 0 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for an integer \"%s\"", value);
    case SIZE: return percent_or_size(value) ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value: %s", value);
    case CPU: return cpu_limit_parse(value, &number, err);
    case ALLOWANCE: return allowance_ok(value) ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid allowance: %s", value);
    case CHOICE:
        if (strlen(value) < sizeof wrapped - 3) {
            sprintf(wrapped, "|%s|", value);
        }
        return wrapped[0] != '\0' && strstr(choices, wrapped) != NULL ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value: %s", value);
    }
    return STATUS_OK;
}

int config_check(const struct settings *config, bool profile, struct error *err)
{
    if (config->count > SETTINGS_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Too many configuration keys (at most %d)", SETTINGS_MAX);
    }
    for (size_t i = 0; i < config->count; i++) {
        const struct setting *setting = &config->items[i];
        size_t k = 0, n = sizeof keys / sizeof *keys;
        while (k < n && (!key_matches(keys[k].key, setting->key) || (profile && !keys[k].profile_too))) {
            k++;
        }
        if (k == n || strlen(setting->key) > SETTING_KEY_MAX) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown configuration key: %.*s", SETTING_KEY_MAX, setting->key);
        }
        if (strlen(setting->value) > SETTING_VALUE_MAX) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Value of %s is longer than %d bytes", setting->key, SETTING_VALUE_MAX);
        }
        if (value_check(keys[k].type, keys[k].choices, setting->value, err) != STATUS_OK) {
            return error_prefix(err, "Invalid config: %s", setting->key);
        }
    }
    return STATUS_OK;
}

int device_set_check(const struct device_set *devices, bool need_root, struct error *err)
{
    if (devices->count > DEVICES_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Too many devices (at most %d)", DEVICES_MAX);
    }
    struct device list[DEVICES_MAX];
    for (size_t i = 0; i < devices->count; i++) { /* struct setting and struct device_option have the same shape */
        _Static_assert(sizeof(struct setting) == sizeof(struct device_option), "settings are passed as device options");
        list[i] = (struct device){devices->items[i].name, (const struct device_option *)devices->items[i].options.items, devices->items[i].options.count};
    }
    int status = STATUS_OK;
    if (need_root) {
        status = devices_check(list, devices->count, true, err);
    } else {
        for (size_t i = 0; i < devices->count && status == STATUS_OK; i++) {
            status = device_check(&list[i], err);
        }
    }
    return status == STATUS_OK || str_prefix(err->text, "Failed getting root disk") ? status : error_prefix(err, "Invalid devices");
}

int instance_name_check(const char *name, struct error *err)
{
    const char *why = NULL;
    size_t n = strlen(name);
    if (n < 1 || n > 63) {
        why = "Name must be 1-63 characters long";
    } else if (strchr(name, '/') != NULL) {
        why = "The character \"/\" is reserved for snapshots";
    } else if (isdigit((unsigned char)name[0])) {
        why = "Name must not start with a number";
    } else if (name[0] == '-') {
        why = "Name must not start with \"-\" character";
    } else if (name[n - 1] == '-') {
        why = "Name must not end with \"-\" character";
    }
    for (size_t i = 0; i < n && why == NULL; i++) {
        unsigned char c = (unsigned char)name[i];
        if (c >= 128 || (!isalnum(c) && c != '-')) {
            why = "Name can only contain alphanumeric and hyphen characters";
        }
    }
    return why == NULL ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid instance name: %s", why);
}

int object_name_check(const char *what, const char *name, struct error *err)
{
    if (name[0] == '\0') {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No name provided");
    }
    if (strchr(name, '/') != NULL) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "%c%s names may not contain slashes", toupper((unsigned char)what[0]), what + 1);
    }
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strlen(name) > 128) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid %s name \"%.128s\"", what, name);
    }
    return STATUS_OK;
}
