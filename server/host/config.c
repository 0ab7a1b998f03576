/* The liblxc configuration of a container from its expanded config and devices. Reads the host a little (CPUs, memory, bridges, bind sources), writes
 * nothing. What this version cannot apply is refused by name, never left out. Values go into a file of lines, so line breaks are refused. */
#include "host_private.h"
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum { CPU_PERIOD_US = 100000, CPU_SHARES_DEFAULT = 1024, CPU_WEIGHT_DEFAULT = 100, CPU_PRIORITY_MAX = 10, RAW_LXC_BYTES_MAX = 64 << 10 };

struct builder {
    struct host *host;
    const InstanceSpec *spec;
    const struct config_paths *paths;
    struct buf *out;
    struct arena *arena;
    struct volatile_key *keys;
    size_t key_count;
    unsigned nics;
    bool privileged, nesting;
};

const char *config__get(const InstanceSpec *spec, const char *key)
{
    for (size_t i = 0; i < spec->n_config; i++)
        if (str_eq(spec->config[i]->key, key))
            return str_empty(spec->config[i]->value) ? NULL : spec->config[i]->value;
    return NULL;
}

bool config__bool(const InstanceSpec *spec, const char *key)
{
    bool value = false;
    const char *text = config__get(spec, key);
    return text && parse_bool(text, &value) == 0 && value;
}

struct device *config__devices(const InstanceSpec *spec, struct arena *arena, size_t *count)
{
    struct device *devices = arena_alloc(arena, (spec->n_devices + 1) * sizeof(*devices));
    *count = spec->n_devices;
    for (size_t i = 0; i < spec->n_devices; i++) {
        const Covey__V1__Device *from = spec->devices[i]->value;
        struct device_option *options = arena_alloc(arena, (from->n_options + 1) * sizeof(*options));
        for (size_t k = 0; k < from->n_options; k++)
            options[k] = (struct device_option){from->options[k]->key, from->options[k]->value};
        devices[i] = (struct device){spec->devices[i]->key, options, from->n_options};
    }
    return devices;
}

static int line(struct builder *b, const char *what, struct error *err, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* Adds one line; `what` names the origin of its value for the error. */
static int line(struct builder *b, const char *what, struct error *err, const char *fmt, ...)
{
    va_list args;
    char *text = NULL;
    va_start(args, fmt);
    int n = vasprintf(&text, fmt, args);
    va_end(args);
    if (n < 0)
        core_oom();
    bool bad = n > HOST_CONFIG_VALUE_MAX || strpbrk(text, "\r\n");
    if (!bad)
        buf_printf(b->out, "%s\n", text);
    free(text);
    return bad ? error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for \"%s\": it is too long or has line breaks", what) : STATUS_OK;
}

#define LINE(what, ...) do { if (line(b, what, err, __VA_ARGS__)) return err->code; } while (0)

static void remember(struct builder *b, const char *key, const char *value)
{
    b->keys = xrealloc(b->keys, (b->key_count + 1) * sizeof(*b->keys));
    b->keys[b->key_count++] = (struct volatile_key){xstrdup(key), xstrdup(value)};
}

/* ---- limits ---- */

static int memory_bytes(const char *text, int64_t *bytes)
{
    size_t len = strlen(text);
    int64_t percent;
    char digits[8];
    if (len > 1 && len < sizeof(digits) && text[len - 1] == '%') {
        struct sysinfo info;
        snprintf(digits, sizeof(digits), "%.*s", (int)len - 1, text);
        if (parse_i64(digits, 1, 100, &percent) || sysinfo(&info) < 0)
            return -1;
        *bytes = (int64_t)info.totalram * info.mem_unit / 100 * percent;
        return 0;
    }
    return size_parse(text, bytes) || *bytes <= 0 ? -1 : 0;
}

static int memory(struct builder *b, struct error *err)
{
    const char *limit = config__get(b->spec, "limits.memory"), *enforce = config__get(b->spec, "limits.memory.enforce");
    const char *swap = config__get(b->spec, "limits.memory.swap");
    bool soft = str_eq(enforce, "soft"), swapping = true, v2 = b->host->cgroup2;
    int64_t bytes = 0;
    if (enforce && !soft && !str_eq(enforce, "hard"))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value: %s", enforce);
    if (limit && memory_bytes(limit, &bytes))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value: %s", limit);
    if (limit && v2)
        LINE("limits.memory", "lxc.cgroup2.%s = %lld", soft ? "memory.high" : "memory.max", (long long)bytes);
    else if (limit)
        LINE("limits.memory", "lxc.cgroup.%s = %lld", soft ? "memory.soft_limit_in_bytes" : "memory.limit_in_bytes", (long long)bytes);
    if (swap && parse_bool(swap, &swapping))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for a boolean \"%s\"", swap);
    if (!swapping && v2)
        LINE("limits.memory.swap", "lxc.cgroup2.memory.swap.max = 0");
    else if (!swapping)
        LINE("limits.memory.swap", "lxc.cgroup.memory.swappiness = 0");
    return STATUS_OK;
}

/* `count` of the CPUs that this process may use; containers start at different ones by their names. */
static char *pick_cpus(struct builder *b, int64_t count)
{
    cpu_set_t set;
    struct buf text = {0};
    if (sched_getaffinity(0, sizeof(set), &set) < 0 || CPU_COUNT(&set) <= count)
        return NULL; /* no more than there are: no limit */
    unsigned start = 0;
    for (const char *c = b->spec->name; *c; c++)
        start = start * 31 + (unsigned char)*c;
    int total = CPU_COUNT(&set), first = (int)(start % (unsigned)total);
    for (int cpu = 0, nth = 0; cpu < CPU_SETSIZE && nth < total; cpu++) {
        if (!CPU_ISSET(cpu, &set))
            continue;
        int position = (nth++ - first + total) % total;
        if (position < count)
            buf_printf(&text, "%s%d", text.len ? "," : "", cpu);
    }
    return buf_take(&text);
}

static int cpu_set(struct builder *b, struct error *err)
{
    const char *limit = config__get(b->spec, "limits.cpu");
    int64_t count;
    if (!limit)
        return STATUS_OK;
    if (cpu_limit_parse(limit, &count, err))
        return err->code;
    char *picked = count > 0 ? pick_cpus(b, count) : xstrdup(limit);
    int rc = picked ? line(b, "limits.cpu", err, "lxc.%s.cpuset.cpus = %s", b->host->cgroup2 ? "cgroup2" : "cgroup", picked) : STATUS_OK;
    free(picked);
    return rc;
}

/* "50%" (a soft share) or "25ms/100ms" (a hard one), and the priority. */
static int cpu_share(struct builder *b, struct error *err)
{
    const char *allowance = config__get(b->spec, "limits.cpu.allowance"), *priority = config__get(b->spec, "limits.cpu.priority");
    long long run_ms, of_ms;
    int64_t percent = 100, level = CPU_PRIORITY_MAX;
    char end = 0, unit[3] = "";
    if (priority && parse_i64(priority, 0, CPU_PRIORITY_MAX, &level))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for limits.cpu.priority: %s", priority);
    bool hard = allowance && sscanf(allowance, "%lldms/%lldm%1[s]%c", &run_ms, &of_ms, unit, &end) == 3 && run_ms > 0 && of_ms > 0 && of_ms <= 1000 &&
                run_ms <= 1000 * of_ms;
    if (hard && b->host->cgroup2)
        LINE("limits.cpu.allowance", "lxc.cgroup2.cpu.max = %lld %lld", run_ms * 1000, of_ms * 1000);
    if (hard && !b->host->cgroup2) {
        LINE("limits.cpu.allowance", "lxc.cgroup.cpu.cfs_period_us = %lld", of_ms * 1000);
        LINE("limits.cpu.allowance", "lxc.cgroup.cpu.cfs_quota_us = %lld", run_ms * 1000);
    }
    if (allowance && !hard) {
        char digits[8];
        size_t len = strlen(allowance);
        if (len < 2 || len >= sizeof(digits) || allowance[len - 1] != '%')
            return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for limits.cpu.allowance: %s", allowance);
        snprintf(digits, sizeof(digits), "%.*s", (int)len - 1, allowance);
        if (parse_i64(digits, 1, 100, &percent))
            return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for limits.cpu.allowance: %s", allowance);
    }
    if (percent == 100 && level == CPU_PRIORITY_MAX)
        return STATUS_OK;
    /* The priority only breaks ties between equal shares. */
    int64_t base = b->host->cgroup2 ? CPU_WEIGHT_DEFAULT : CPU_SHARES_DEFAULT, share = base * percent / 100 - (CPU_PRIORITY_MAX - level);
    if (share < 2)
        share = 2;
    LINE("limits.cpu.allowance", "lxc.%s = %lld", b->host->cgroup2 ? "cgroup2.cpu.weight" : "cgroup.cpu.shares", (long long)share);
    return STATUS_OK;
}

static int limits(struct builder *b, struct error *err)
{
    const char *processes = config__get(b->spec, "limits.processes");
    int64_t count;
    if (processes && parse_i64(processes, 1, INT32_MAX, &count))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for an integer \"%s\"", processes);
    if (processes)
        LINE("limits.processes", "lxc.%s.pids.max = %s", b->host->cgroup2 ? "cgroup2" : "cgroup", processes);
    if (memory(b, err) || cpu_set(b, err) || cpu_share(b, err))
        return err->code;
    return STATUS_OK;
}

/* ---- the other keys ---- */

/* Keys that change nothing in the container's configuration, or that are handled elsewhere in this file. */
static bool known_key(const char *key)
{
    static const char *const prefixes[] = {"boot.", "environment.", "user.", "image.", "volatile.", "snapshots.", "cloud-init.", "limits.kernel.",
                                           "linux.sysctl.", "migration.incremental."};
    static const char *const keys[] = {
        "limits.cpu", "limits.cpu.allowance", "limits.cpu.priority", "limits.memory", "limits.memory.enforce", "limits.memory.swap", "limits.processes",
        "security.privileged", "security.nesting", "security.protection.delete", "raw.lxc", "cluster.evacuate",
    };
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
        if (str_prefix(key, prefixes[i]))
            return true;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (str_eq(key, keys[i]))
            return true;
    return false;
}

/* Switches whose "false" is what we do anyway. */
static bool off_by_default(const char *key, const char *value)
{
    static const char *const keys[] = {"security.devlxd.images", "security.protection.shift", "security.idmap.isolated", "security.devlxd",
                                       "security.syscalls.deny_compat", "nvidia.runtime"};
    bool on = true;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (str_eq(key, keys[i]))
            return parse_bool(value, &on) == 0 && !on;
    return false;
}

static int resource_limit(struct builder *b, const char *key, const char *value, struct error *err)
{
    static const char *const names[] = {"as", "core", "cpu", "data", "fsize", "locks", "memlock", "nice", "nofile", "nproc", "rtprio", "sigpending"};
    const char *name = key + strlen("limits.kernel.");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (str_eq(name, names[i]) && value[strspn(value, "0123456789:unlimted")] == 0)
            return line(b, key, err, "lxc.prlimit.%s = %s", name, value);
    return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for \"%s\": %s", key, value);
}

static int raw_lines(struct builder *b, const char *text, struct error *err)
{
    static const char *const refused[] = {"lxc.net", "lxc.log", "lxc.console", "lxc.rootfs.path", "lxc.idmap", "lxc.uts.name"};
    if (strlen(text) > RAW_LXC_BYTES_MAX)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid value for \"raw.lxc\": longer than %d bytes", RAW_LXC_BYTES_MAX);
    char *copy = arena_strdup(b->arena, text), *save = NULL;
    for (char *one = strtok_r(copy, "\r\n", &save); one; one = strtok_r(NULL, "\r\n", &save)) {
        one += strspn(one, " \t");
        if (!*one || *one == '#')
            continue;
        size_t n = strcspn(one, " \t=");
        if (!str_prefix(one, "lxc.") || one[n + strspn(one + n, " \t")] != '=')
            return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid raw.lxc line: %.200s", one);
        for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
            if (str_prefix(one, refused[i]))
                return error_set(err, STATUS_INVALID_ARGUMENT, "Setting %.*s is not allowed in raw.lxc", (int)n, one);
        buf_printf(b->out, "%s\n", one);
    }
    return STATUS_OK;
}

static int other_keys(struct builder *b, struct error *err)
{
    for (size_t i = 0; i < b->spec->n_config; i++) {
        const char *key = b->spec->config[i]->key, *value = b->spec->config[i]->value;
        if (str_empty(value))
            continue;
        if (!known_key(key) && !off_by_default(key, value))
            return error_set(err, STATUS_FAILED_PRECONDITION, "Unsupported configuration key \"%.100s\"", key);
        if (str_prefix(key, "environment."))
            LINE(key, "lxc.environment = %s=%s", key + strlen("environment."), value);
        if (str_prefix(key, "linux.sysctl."))
            LINE(key, "lxc.sysctl.%s = %s", key + strlen("linux.sysctl."), value);
        if (str_prefix(key, "limits.kernel.") && resource_limit(b, key, value, err))
            return err->code;
    }
    return STATUS_OK;
}

/* ---- devices ---- */

static const char *volatile_of(struct builder *b, const char *device, const char *suffix)
{
    return config__get(b->spec, arena_printf(b->arena, "volatile.%s.%s", device, suffix));
}

static bool nic_name_used(const struct device *devices, size_t count, struct builder *b, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        const char *used = device_get(&devices[i], "name");
        if (!used)
            used = volatile_of(b, devices[i].name, "name");
        if (str_eq(device_get(&devices[i], "type"), "nic") && used && str_eq(used, name))
            return true;
    }
    return false;
}

/* Where a NIC attaches: by its own options, or as the managed network that it names says. */
static int nic_parent(struct builder *b, const struct device *device, struct network_nic *out, struct error *err)
{
    const char *network = device_get(device, "network"), *nictype = device_get(device, "nictype"), *parent = device_get(device, "parent"), *mtu = device_get(device, "mtu");
    if (network && networks__nic(b->host, network, out, err))
        return error_prefix(err, "Failed to start device \"%s\"", device->name);
    if (!network) {
        *out = (struct network_nic){.kind = nictype};
        snprintf(out->parent, sizeof(out->parent), "%s", parent);
        snprintf(out->mtu, sizeof(out->mtu), "%s", mtu ? mtu : "");
    }
    if (strlen(out->parent) >= IF_NAMESIZE || access(arena_printf(b->arena, "/sys/class/net/%s", out->parent), F_OK) < 0)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Failed to start device \"%s\": Parent device \"%.32s\" doesn't exist", device->name, out->parent);
    if (str_eq(out->kind, "bridged") && access(arena_printf(b->arena, "/sys/class/net/%s/bridge", out->parent), F_OK) < 0)
        return error_set(err, STATUS_FAILED_PRECONDITION, "Failed to start device \"%s\": Parent device \"%s\" is not a bridge", device->name, out->parent);
    return STATUS_OK;
}

static int nic(struct builder *b, const struct device *devices, size_t count, const struct device *device, struct error *err)
{
    struct network_nic at;
    const char *name = device_get(device, "name"), *mac = device_get(device, "hwaddr"), *host_name = device_get(device, "host_name");
    unsigned n = b->nics++;
    if (nic_parent(b, device, &at, err))
        return err->code;
    bool bridged = str_eq(at.kind, "bridged"), physical = str_eq(at.kind, "physical");
    if (!name && !(name = volatile_of(b, device->name, "name"))) {
        unsigned i = 0;
        do
            name = arena_printf(b->arena, "eth%u", i++);
        while (nic_name_used(devices, count, b, name));
        remember(b, arena_printf(b->arena, "volatile.%s.name", device->name), name);
    }
    if (!mac && !physical) /* that one has an address of its own */
        mac = volatile_of(b, device->name, "hwaddr");
    if (!mac && !physical) {
        uint8_t tail[3];
        random_bytes(tail, sizeof(tail));
        mac = arena_printf(b->arena, "00:16:3e:%02x:%02x:%02x", tail[0], tail[1], tail[2]);
        remember(b, arena_printf(b->arena, "volatile.%s.hwaddr", device->name), mac);
    }
    if (!host_name && bridged) {
        char hex[9];
        random_hex(hex, 4);
        host_name = arena_printf(b->arena, "veth%s", hex);
    }
    remember(b, arena_printf(b->arena, "volatile.%s.host_name", device->name), bridged ? host_name : at.parent);
    LINE(device->name, "lxc.net.%u.type = %s", n, bridged ? "veth" : physical ? "phys" : "macvlan");
    if (str_eq(at.kind, "macvlan"))
        LINE(device->name, "lxc.net.%u.macvlan.mode = bridge", n);
    LINE(device->name, "lxc.net.%u.flags = up", n);
    LINE(device->name, "lxc.net.%u.link = %s", n, at.parent);
    LINE(device->name, "lxc.net.%u.name = %s", n, name);
    if (mac)
        LINE(device->name, "lxc.net.%u.hwaddr = %s", n, mac);
    if (bridged)
        LINE(device->name, "lxc.net.%u.veth.pair = %s", n, host_name);
    if (at.mtu[0])
        LINE(device->name, "lxc.net.%u.mtu = %s", n, at.mtu);
    return STATUS_OK;
}

/* Paths in mount entries separate fields by blanks. */
static char *mount_escape(struct arena *arena, const char *path)
{
    struct buf out = {0};
    for (const char *c = path; *c; c++) {
        if (*c == ' ' || *c == '\t' || *c == '\\')
            buf_printf(&out, "\\%03o", (unsigned char)*c);
        else
            buf_add(&out, c, 1);
    }
    char *text = buf_take(&out), *copy = arena_strdup(arena, text);
    free(text);
    return copy;
}

static int bind_disk(struct builder *b, const struct device *device, struct error *err)
{
    const char *source = device_get(device, "source"), *path = device_get(device, "path"), *text;
    bool optional = false, required = true, recursive = false, readonly = false;
    if ((text = device_get(device, "required")) && parse_bool(text, &required))
        required = true;
    if ((text = device_get(device, "optional")) && parse_bool(text, &optional) == 0 && optional)
        required = false;
    if ((text = device_get(device, "recursive")) && parse_bool(text, &recursive))
        recursive = false;
    if ((text = device_get(device, "readonly")) && parse_bool(text, &readonly))
        readonly = false;
    struct stat st;
    if (stat(source, &st) < 0) {
        if (!required && errno == ENOENT)
            return STATUS_OK;
        return error_set(err, STATUS_FAILED_PRECONDITION, "Missing source path \"%.200s\" for disk \"%s\"", source, device->name);
    }
    while (*path == '/')
        path++;
    LINE(device->name, "lxc.mount.entry = %s %s none %s,create=%s%s 0 0", mount_escape(b->arena, source), mount_escape(b->arena, path),
         recursive ? "rbind" : "bind", S_ISDIR(st.st_mode) ? "dir" : "file", readonly ? ",ro" : "");
    return STATUS_OK;
}

static int devices_lines(struct builder *b, struct error *err)
{
    size_t count;
    struct device *devices = config__devices(b->spec, b->arena, &count);
    if (devices_check(devices, count, true, err)) {
        if (!str_prefix(err->text, "Failed getting"))
            error_prefix(err, "Invalid devices");
        return err->code;
    }
    for (size_t i = 0; i < count; i++) {
        const char *type = device_get(&devices[i], "type");
        if (device_supported(&devices[i], err))
            return err->code;
        if (str_eq(type, "nic") && nic(b, devices, count, &devices[i], err))
            return err->code;
        if (str_eq(type, "disk") && device_get(&devices[i], "source") && bind_disk(b, &devices[i], err))
            return err->code;
    }
    if (!b->nics) /* without any entry it would share the host's network */
        LINE("devices", "lxc.net.0.type = empty");
    return STATUS_OK;
}

/* ---- all of it ---- */

static int basics(struct builder *b, struct error *err)
{
    const struct idmap *map = &b->host->map;
    LINE("name", "lxc.uts.name = %s", b->spec->name);
    LINE("pool", "lxc.rootfs.path = dir:%s", b->paths->rootfs);
    LINE("name", "lxc.log.file = %s/lxc.log", b->paths->log_dir);
    LINE("name", "lxc.log.level = WARN");
    LINE("name", "lxc.console.logfile = %s/console.log", b->paths->log_dir);
    LINE("name", "lxc.console.buffer.size = auto");
    LINE("name", "lxc.tty.max = 0");
    LINE("name", "lxc.pty.max = 1024");
    LINE("name", "lxc.autodev = 1");
    LINE("name", "lxc.init.cmd = /sbin/init");
    LINE("name", "lxc.seccomp.profile = %s", b->paths->seccomp);
    LINE("name", "lxc.mount.auto = %s cgroup:mixed", b->nesting ? "proc:rw sys:rw" : "proc:mixed sys:mixed");
    if (b->privileged) {
        LINE("name", "lxc.cap.drop = sys_time sys_module sys_rawio mac_admin mac_override");
    } else {
        LINE("name", "lxc.idmap = u 0 %lld %lld", (long long)map->uid, (long long)map->size);
        LINE("name", "lxc.idmap = g 0 %lld %lld", (long long)map->gid, (long long)map->size);
    }
    if (b->host->apparmor && (!b->privileged || b->nesting))
        LINE("name", "lxc.apparmor.profile = unconfined");
    if (b->nesting) { /* the kernel lets a nested user namespace mount proc and sysfs only where a full one is visible */
        LINE("name", "lxc.mount.entry = proc dev/.lxc/proc proc create=dir,optional 0 0");
        LINE("name", "lxc.mount.entry = sys dev/.lxc/sys sysfs create=dir,optional 0 0");
    }
    return STATUS_OK;
}

int config__build(struct host *host, const InstanceSpec *spec, const struct config_paths *paths, struct buf *text, struct volatile_key **keys,
                  size_t *key_count, struct error *err)
{
    struct arena arena;
    struct error local = ERROR_INIT;
    arena_init(&arena);
    struct builder b = {.host = host, .spec = spec, .paths = paths, .out = text, .arena = &arena,
                        .privileged = config__bool(spec, "security.privileged"), .nesting = config__bool(spec, "security.nesting")};
    const char *raw = config__get(spec, "raw.lxc");
    int rc = basics(&b, &local);
    if (!rc)
        rc = limits(&b, &local);
    if (!rc)
        rc = other_keys(&b, &local);
    if (!rc)
        rc = devices_lines(&b, &local);
    if (!rc && raw)
        rc = raw_lines(&b, raw, &local);
    *keys = b.keys;
    *key_count = b.key_count;
    arena_clear(&arena);
    if (rc && err)
        *err = local;
    return rc;
}
