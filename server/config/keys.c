/* The table of server keys and the checks of their values. Pure but for `tool_exists`, which looks into PATH. Thread: any. */
#include "keys.h"

#include "server/cluster/cluster.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    VOTERS_MAX = 1023,      /* as many as there may be members */
    NUMBER_MAX = INT32_MAX, /* of seconds, days and so on: sums of them stay far from the end of an int64 in nanoseconds */
};

/* `reason` is for what is below `min`. */
static int check_int(const char *value, int64_t min, int64_t max, const char *reason, int64_t *out, struct error *err)
{
    if (parse_i64(value, INT64_MIN, INT64_MAX, out) != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid integer");
    }
    if (*out > max) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Value must not be greater than '%" PRId64 "'", max);
    }
    return *out >= min ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "%s", reason);
}

static int check_threshold(const char *value, struct error *err)
{
    int64_t n = 0;
    return check_int(value, 10, NUMBER_MAX, "Value must be greater than '10'", &n, err);
}

static int check_replica(const char *value, struct error *err)
{
    int64_t n = 0;
    int status = check_int(value, -1, NUMBER_MAX, "Invalid value for image replica count", &n, err);
    return status == STATUS_OK && n == 0 ? error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for image replica count") : status;
}

static int check_voters(const char *value, struct error *err)
{
    static const char reason[] = "Value must be an odd number equal to or higher than 3";
    int64_t n = 0;
    int status = check_int(value, 3, VOTERS_MAX, reason, &n, err);
    return status == STATUS_OK && n % 2 == 0 ? error_set(err, STATUS_INVALID_ARGUMENT, "%s", reason) : status;
}

static int check_standby(const char *value, struct error *err)
{
    static const char reason[] = "Value must be between 0 and 5";
    int64_t n = 0;
    int status = check_int(value, 0, NUMBER_MAX, reason, &n, err);
    return status == STATUS_OK && n > 5 ? error_set(err, STATUS_INVALID_ARGUMENT, "%s", reason) : status;
}

static int check_not_negative(const char *value, struct error *err)
{
    int64_t n = 0;
    return check_int(value, 0, NUMBER_MAX, "Value must not be negative", &n, err);
}

static bool tool_exists(const char *tool)
{
    const char *path = getenv("PATH");
    char *copy = xstrdup(path != NULL ? path : "/usr/bin:/bin"), *save = NULL;
    bool found = false;
    for (char *dir = strtok_r(copy, ":", &save); dir != NULL && !found; dir = strtok_r(NULL, ":", &save)) {
        char *file = xasprintf("%s/%s", dir, tool);
        found = access(file, X_OK) == 0;
        free(file);
    }
    free(copy);
    return found;
}

static int check_compression(const char *value, struct error *err)
{
    static const char *const known[] = {"bzip2", "gzip", "lz4", "lzma", "lzop", "xz", "zstd", "pigz", "squashfs", "tar2sqfs"};
    char tool[32];
    size_t len = strcspn(value, " ");
    if (strcmp(value, "none") == 0) {
        return STATUS_OK;
    }
    bool ok = false;
    snprintf(tool, sizeof tool, "%.*s", (int)(len < sizeof tool ? len : sizeof tool - 1), value);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        ok = ok || (strlen(known[i]) == len && strcmp(known[i], tool) == 0);
    }
    if (!ok) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Compression algorithm \"%s\" isn't currently supported", tool);
    }
    const char *program = strcmp(tool, "squashfs") == 0 ? "tar2sqfs" : tool;
    return tool_exists(program) ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "exec: \"%s\": executable file not found in $PATH", program);
}

static int check_architecture(const char *value, struct error *err)
{
    return architecture_id(value) != 0 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Architecture isn't supported: %s", value);
}

static int check_concrete(const char *value, struct error *err)
{
    char canonical[300];
    if (address_canonical(value, canonical, sizeof canonical, err) != STATUS_OK) {
        return err->code;
    }
    return address_wildcard(canonical) ? error_set(err, STATUS_INVALID_ARGUMENT, "Wildcard addresses aren't allowed") : STATUS_OK;
}

static const struct config_key keys[] = { /* sorted by name */
    {"backups.compression_algorithm", false, false, KEY_STRING, "gzip", check_compression, "Compression of new backups"},
    {"cluster.https_address", true, false, KEY_ADDRESS, "", check_concrete, "Where members connect; fixed once clustered"},
    {"cluster.images_minimal_replica", false, false, KEY_INT, "3", check_replica, "Members that hold a copy of each image; -1 = all"},
    {"cluster.join_token_expiry", false, false, KEY_EXPIRY, "3H", NULL, "Life of a join token"},
    {"cluster.max_standby", false, false, KEY_INT, "2", check_standby, "Database stand-by members"},
    {"cluster.max_voters", false, false, KEY_INT, "3", check_voters, "Database voters"},
    {"cluster.offline_threshold", false, false, KEY_INT, "20", check_threshold, "Seconds of silence after which a member is offline"},
    {"core.https_address", true, false, KEY_ADDRESS, "", NULL, "Where clients connect"},
    {"core.remote_token_expiry", false, false, KEY_EXPIRY, "", NULL, "Life of a client certificate token; empty = for ever"},
    {"core.shutdown_timeout", false, false, KEY_INT, "5", check_not_negative, "Minutes to wait for operations at shutdown"},
    {"core.trust_password", false, true, KEY_STRING, "", NULL, "Password for clients to establish trust; stored hashed"},
    {"images.auto_update_cached", false, false, KEY_BOOL, "true", NULL, "Update cached images"},
    {"images.auto_update_interval", false, false, KEY_INT, "6", check_not_negative, "Hours between image updates; 0 = off"},
    {"images.compression_algorithm", false, false, KEY_STRING, "gzip", check_compression, "Compression of new images"},
    {"images.default_architecture", false, false, KEY_STRING, "", check_architecture, "Architecture preferred for images"},
    {"images.remote_cache_expiry", false, false, KEY_INT, "10", check_not_negative, "Days until an unused cached image goes"},
    {"maas.api.key", false, false, KEY_STRING, "", NULL, "Stored only"},
    {"maas.api.url", false, false, KEY_STRING, "", NULL, "Stored only"},
    {"maas.machine", true, false, KEY_STRING, "", NULL, "Stored only"},
};
static const struct config_key user_key = {"user.*", false, false, KEY_STRING, "", NULL, "Free"};

const struct config_key *config_key_find(const char *name)
{
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(keys[i].name, name) == 0) {
            return &keys[i];
        }
    }
    return str_prefix(name, "user.") && name[5] != '\0' ? &user_key : NULL;
}

size_t config_key_count(void)
{
    return sizeof keys / sizeof *keys;
}

const struct config_key *config_key_at(size_t index)
{
    covey_assert(index < config_key_count());
    return &keys[index];
}

static int check_type(const struct config_key *key, const char *value, struct error *err)
{
    int64_t n = 0;
    bool flag = false;
    char canonical[300];
    switch (key->type) {
    case KEY_STRING:
        return STATUS_OK;
    case KEY_BOOL:
        return parse_bool(value, &flag) == 0 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "invalid boolean");
    case KEY_INT:
        return parse_i64(value, INT64_MIN, INT64_MAX, &n) == 0 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "invalid integer");
    case KEY_ADDRESS:
        return address_canonical(value, canonical, sizeof canonical, err);
    case KEY_EXPIRY:
        return expiry_add(value, time_unix_ns(), &n) == 0 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid expiry expression");
    }
    return STATUS_OK;
}

int config_key_check(const struct config_key *key, const char *value, struct error *err)
{
    struct error local = ERROR_INIT;
    err = err != NULL ? err : &local;
    if (str_empty(value)) {
        return STATUS_OK; /* unset */
    }
    int status = check_type(key, value, err);
    return status == STATUS_OK && key->check != NULL ? key->check(value, err) : status;
}
