/* Rules of storage pools as tables and pure functions. Any thread. */
#include "rules.h"

#include "proto/core/core.h"
#include <ctype.h>
#include <stdio.h>
#include <string.h>

const char *pool_state_text(int64_t state)
{
    return state == POOL_PENDING ? "Pending" : state == POOL_CREATED ? "Created" : state == POOL_ERRORED ? "Errored" : "Unknown";
}

int pool_name_check(const char *name, struct error *err)
{
    if (name[0] == '\0') {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No name provided");
    }
    bool good = strlen(name) <= POOL_NAME_BYTES_MAX && name[0] != '.' && name[0] != '-';
    for (const char *c = name; *c != '\0' && good; c++) {
        good = isalnum((unsigned char)*c) || strchr("-_.", *c) != NULL;
    }
    return good ? STATUS_OK
                : error_set(err, STATUS_INVALID_ARGUMENT,
                      "Invalid storage pool name \"%.128s\": at most %d letters, digits, \"-\", \"_\" and \".\", not first \"-\" or \".\"", name, POOL_NAME_BYTES_MAX);
}

int pool_driver_check(const char *driver, struct error *err)
{
    static const char *const known[] = {"dir", "btrfs", "lvm", "zfs", "ceph", "cephfs"};
    if (driver[0] == '\0') {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No driver provided");
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i], driver) == 0) {
            return STATUS_OK;
        }
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown driver");
}

bool pool_key_member(const char *key)
{
    static const char *const keys[] = {"size", "source", "volatile.initial_source", "zfs.pool_name", "lvm.thinpool_name", "lvm.vg_name"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (strcmp(keys[i], key) == 0) {
            return true;
        }
    }
    return false;
}

enum value_kind { ANY, BOOL, SIZE, INTEGER };
struct pool_key {
    const char *drivers; /* "" = all; else names between blanks */
    const char *key;     /* a last "." = prefix */
    enum value_kind kind;
};

static const struct pool_key pool_keys[] = {
    {"", "source", ANY},
    {"", "volatile.initial_source", ANY},
    {"", "user.", ANY},
    {" dir btrfs lvm zfs ", "size", SIZE},
    {" dir btrfs lvm zfs ", "rsync.bwlimit", ANY},
    {" dir btrfs lvm zfs ", "rsync.compression", BOOL},
    {"", "volume.size", SIZE},
    {"", "volume.block.filesystem", ANY},
    {"", "volume.block.mount_options", ANY},
    {"", "volume.snapshots.expiry", ANY},
    {"", "volume.snapshots.pattern", ANY},
    {"", "volume.snapshots.schedule", ANY},
    {"", "volume.security.shifted", BOOL},
    {"", "volume.security.unmapped", BOOL},
    {" btrfs ", "btrfs.mount_options", ANY},
    {" lvm ", "lvm.vg_name", ANY},
    {" lvm ", "lvm.thinpool_name", ANY},
    {" lvm ", "lvm.thinpool_metadata_size", SIZE},
    {" lvm ", "lvm.use_thinpool", BOOL},
    {" lvm ", "lvm.vg.force_reuse", BOOL},
    {" lvm ", "volume.lvm.stripes", INTEGER},
    {" lvm ", "volume.lvm.stripes.size", SIZE},
    {" zfs ", "zfs.pool_name", ANY},
    {" zfs ", "zfs.clone_copy", ANY},
    {" zfs ", "zfs.export", BOOL},
    {" zfs ", "volume.zfs.blocksize", SIZE},
    {" zfs ", "volume.zfs.remove_snapshots", BOOL},
    {" zfs ", "volume.zfs.use_refquota", BOOL},
    {" zfs ", "volume.zfs.reserve_space", BOOL},
    {" ceph ", "ceph.cluster_name", ANY},
    {" ceph ", "ceph.osd.", ANY},
    {" ceph ", "ceph.user.name", ANY},
    {" ceph ", "ceph.rbd.", ANY},
    {" cephfs ", "cephfs.", ANY},
};

static bool size_valid(const char *text)
{
    static const char *const units[] = {"", "B", "kB", "MB", "GB", "TB", "PB", "EB", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t digits = strspn(text, "0123456789");
    for (size_t i = 0; digits > 0 && digits <= 18 && i < sizeof units / sizeof *units; i++) {
        if (strcmp(text + digits, units[i]) == 0) {
            return true;
        }
    }
    return false;
}

static int value_check(enum value_kind kind, const char *key, const char *value, struct error *err)
{
    bool flag;
    int64_t number;
    if (strlen(value) > POOL_VALUE_BYTES_MAX) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for storage pool config key \"%s\": more than %d bytes", key, POOL_VALUE_BYTES_MAX);
    }
    if (value[0] == '\0') {
        return STATUS_OK; /* removes the key */
    }
    const char *why = kind == BOOL && parse_bool(value, &flag) != 0                               ? "not a boolean"
                      : kind == SIZE && !size_valid(value)                                        ? "not a size"
                      : kind == INTEGER && parse_i64(value, 0, INT64_C(1) << 32, &number) != 0 ? "not a number"
                                                                                                  : NULL;
    return why == NULL ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for storage pool config key \"%s\": %s: \"%.64s\"", key, why, value);
}

int pool_key_check(const char *driver, const char *key, const char *value, struct error *err)
{
    char name[40];
    snprintf(name, sizeof name, " %.30s ", driver);
    for (size_t i = 0; i < sizeof pool_keys / sizeof *pool_keys; i++) {
        const struct pool_key *rule = &pool_keys[i];
        size_t len = strlen(rule->key);
        bool prefix = rule->key[len - 1] == '.';
        bool match = prefix ? str_prefix(key, rule->key) && key[len] != '\0' && strlen(key) <= 255 : strcmp(key, rule->key) == 0;
        if (match && (rule->drivers[0] == '\0' || strstr(rule->drivers, name) != NULL)) {
            return value_check(rule->kind, key, value, err);
        }
    }
    return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid storage pool config key \"%.200s\"", key);
}

int pool_phase2_check(const struct pool_facts *facts, const char *driver, bool has_config, struct error *err)
{
    if (!facts->exists) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Pool not pending on any node (use --target <node> first)");
    }
    if (!str_empty(facts->undefined)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Pool not defined on nodes: %s", facts->undefined);
    }
    if (strcmp(facts->driver, driver) != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Requested storage pool driver \"%.30s\" doesn't match driver in existing database record \"%s\"", driver, facts->driver);
    }
    if (facts->state == POOL_CREATED) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "The storage pool is already created");
    }
    if (facts->started && has_config) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Storage pool already partially created. Please do not specify any global config when re-running create");
    }
    return STATUS_OK;
}
