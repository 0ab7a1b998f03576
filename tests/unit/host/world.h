/* What the tests of the host agent share: a state directory, a host bound on a local socket, an image made by deploy/make-busybox-image, requests with
 * texts. Real containers need root; without it the tests are skipped. Included once by each test program. */
#ifndef COVEY_TESTS_HOST_WORLD_H
#define COVEY_TESTS_HOST_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/rpc/rpc.h"
#include "server/host/host.h"

typedef Covey__Internal__V1__InstanceSpec Spec;
#define AGENT "covey.internal.v1.Agent"
enum { WAIT_MS_MAX = 20000 };
#define WAIT_FOR(cond) do { \
        int64_t wait_until_ = time_mono_ms() + WAIT_MS_MAX; \
        while (!(cond)) { \
            if (time_mono_ms() > wait_until_) \
                fail_msg("timeout waiting for %s", #cond); \
            usleep(5000); \
        } \
    } while (0)
#define OK(expr) do { w.err = (struct error)ERROR_INIT; if ((expr) != STATUS_OK) fail_msg("%s: %s: %s", #expr, status_name(w.err.code), w.err.text); } while (0)
#define FAILS(code_, text_, expr) do { \
        w.err = (struct error)ERROR_INIT; \
        assert_int_equal(expr, code_); \
        if (!strstr(w.err.text, text_)) \
            fail_msg("%s: \"%s\" lacks \"%s\"", #expr, w.err.text, text_); \
    } while (0)

static struct {
    char dir[64], socket[96], image[FINGERPRINT_SIZE], image_file[96], split_meta[96], split_root[96];
    struct host *host;
    struct rpc_server *server;
    struct rpc_channel *channel;
    struct arena arena;
    struct error err;
    atomic_int last_status; /* of the instance named "c1" */
    atomic_int changes;
} w;

static void world_status(void *ud, const Covey__Internal__V1__InstanceStatus *status)
{
    if (strcmp(status->name, "c1") == 0)
        atomic_store(&w.last_status, (int)status->status_code);
    atomic_fetch_add(&w.changes, 1);
}

static struct rpc_channel *world_channel(void *ud, const char *address)
{
    return strcmp(address, "self") == 0 ? rpc_channel_ref(w.channel) : NULL;
}

static void world_up(void)
{
    struct host_config config = {.state_dir = w.dir, .status_changed = world_status, .channel = world_channel};
    OK(host_start(&config, &w.host, &w.err));
    host_bind(w.host);
    w.server = rpc_server_listen_unix(w.socket, -1, &w.err);
    if (!w.server)
        fail_msg("%s", w.err.text);
    w.channel = rpc_channel_unix(w.socket);
}

static void world_down(void)
{
    if (w.channel)
        rpc_channel_unref(w.channel);
    rpc_server_destroy(w.server, 1000);
    host_stop(w.host);
    w.channel = NULL;
    w.server = NULL;
    w.host = NULL;
}

static int world_call(const char *method, const ProtobufCMessage *request, ProtobufCMessage **response)
{
    ProtobufCMessage *ignored;
    struct rpc_options options = {.timeout_ms = 60000, .wait_for_ready = true};
    return rpc_unary(w.channel, AGENT, method, request, response ? response : &ignored, &w.arena, &options, &w.err);
}

/* ---- requests from texts; everything lives in the arena ---- */

__attribute__((unused)) static void spec_config(Spec *spec, const char *key, const char *value)
{
    Covey__Internal__V1__InstanceSpec__ConfigEntry *entry = arena_alloc(&w.arena, sizeof(*entry)), **list;
    covey__internal__v1__instance_spec__config_entry__init(entry);
    entry->key = arena_strdup(&w.arena, key);
    entry->value = arena_strdup(&w.arena, value);
    list = arena_alloc(&w.arena, (spec->n_config + 1) * sizeof(*list));
    if (spec->n_config)
        memcpy(list, spec->config, spec->n_config * sizeof(*list));
    list[spec->n_config++] = entry;
    spec->config = list;
}

/* "type=disk,path=/,pool=p" */
__attribute__((unused)) static void spec_device(Spec *spec, const char *name, const char *options)
{
    Covey__Internal__V1__InstanceSpec__DevicesEntry *entry = arena_alloc(&w.arena, sizeof(*entry)), **list;
    Covey__V1__Device *device = arena_alloc(&w.arena, sizeof(*device));
    covey__internal__v1__instance_spec__devices_entry__init(entry);
    covey__v1__device__init(device);
    device->options = arena_alloc(&w.arena, 32 * sizeof(*device->options));
    char *text = arena_strdup(&w.arena, options), *save = NULL;
    for (char *pair = strtok_r(text, ",", &save); pair; pair = strtok_r(NULL, ",", &save)) {
        Covey__V1__Device__OptionsEntry *option = arena_alloc(&w.arena, sizeof(*option));
        covey__v1__device__options_entry__init(option);
        char *equal = strchr(pair, '=');
        *equal = 0;
        option->key = pair;
        option->value = equal + 1;
        device->options[device->n_options++] = option;
    }
    entry->key = arena_strdup(&w.arena, name);
    entry->value = device;
    list = arena_alloc(&w.arena, (spec->n_devices + 1) * sizeof(*list));
    if (spec->n_devices)
        memcpy(list, spec->devices, spec->n_devices * sizeof(*list));
    list[spec->n_devices++] = entry;
    spec->devices = list;
}

static Covey__Internal__V1__PoolSpec *pool_spec(const char *name, const char *driver, const char *source)
{
    Covey__Internal__V1__PoolSpec *pool = arena_alloc(&w.arena, sizeof(*pool));
    covey__internal__v1__pool_spec__init(pool);
    pool->name = arena_strdup(&w.arena, name);
    pool->driver = arena_strdup(&w.arena, driver);
    if (source) {
        Covey__Internal__V1__PoolSpec__ConfigEntry *entry = arena_alloc(&w.arena, sizeof(*entry));
        covey__internal__v1__pool_spec__config_entry__init(entry);
        entry->key = arena_strdup(&w.arena, "source");
        entry->value = arena_strdup(&w.arena, source);
        pool->config = arena_memdup(&w.arena, &entry, sizeof(entry));
        pool->n_config = 1;
    }
    return pool;
}

__attribute__((unused)) static Spec *spec_of(const char *project, const char *name)
{
    Spec *spec = arena_alloc(&w.arena, sizeof(*spec));
    char uuid[37];
    covey__internal__v1__instance_spec__init(spec);
    spec->project = arena_strdup(&w.arena, project);
    spec->name = arena_strdup(&w.arena, name);
    uuid_new(uuid);
    spec->uuid = arena_strdup(&w.arena, uuid);
    uuid_new(uuid);
    spec->operation = arena_strdup(&w.arena, uuid);
    spec->pool = pool_spec("default", "dir", NULL);
    spec_device(spec, "root", "type=disk,path=/,pool=default");
    return spec;
}

__attribute__((unused)) static int create(Spec *spec, const char *image)
{
    Covey__Internal__V1__CreateInstanceRequest request = COVEY__INTERNAL__V1__CREATE_INSTANCE_REQUEST__INIT;
    request.spec = spec;
    request.image = (char *)(uintptr_t)image;
    return world_call("CreateInstance", &request.base, NULL);
}

__attribute__((unused)) static int start(Spec *spec, int64_t *pid)
{
    ProtobufCMessage *response = NULL;
    int rc = world_call("StartInstance", &spec->base, &response);
    if (!rc && pid)
        *pid = ((Covey__Internal__V1__StartInstanceResponse *)response)->pid;
    return rc;
}

__attribute__((unused)) static int stop(Spec *spec, bool force, int64_t timeout_ms)
{
    Covey__Internal__V1__StopInstanceRequest request = COVEY__INTERNAL__V1__STOP_INSTANCE_REQUEST__INIT;
    request.spec = spec;
    request.force = force;
    request.timeout_ms = timeout_ms;
    return world_call("StopInstance", &request.base, NULL);
}

__attribute__((unused)) static Covey__V1__InstanceState *state_of(Spec *spec)
{
    ProtobufCMessage *response = NULL;
    OK(world_call("GetInstanceState", &spec->base, &response));
    return (Covey__V1__InstanceState *)response;
}

/* Uploads files as an image. */
__attribute__((unused)) static int upload(const char *file, const char *rootfs, const char *expected, struct host_image_info *info)
{
    struct host_image_upload *to = NULL;
    int rc = host_image_begin(w.host, rootfs != NULL, &to, &w.err);
    for (int i = 0; i < (rootfs ? 2 : 1) && !rc; i++) {
        struct buf data = {0};
        OK(file_read(i ? rootfs : file, 256 << 20, &data, &w.err));
        rc = host_image_write(to, (enum host_image_file)i, data.data, data.len, &w.err);
        buf_free(&data);
    }
    if (rc) {
        host_image_abort(to);
        return rc;
    }
    return host_image_finish(to, expected, info, &w.err);
}

/* ---- set-up ---- */

static void run_script(const char *const argv[])
{
    struct process_result result;
    OK(process_run(argv, NULL, NULL, 1 << 20, 60000, &result, &w.err));
    if (result.exit_code)
        fail_msg("%s: exit code %d: %s%s", argv[0], result.exit_code, result.out.data, result.err.data);
    process_result_free(&result);
}

__attribute__((unused)) static void shell(const char *text)
{
    const char *argv[] = {"/bin/sh", "-c", text, NULL};
    run_script(argv);
}

static int world_setup(void **state)
{
    log_init("test", LOG_LEVEL_ERROR);
    registry_init();
    rpc_init();
    arena_init(&w.arena);
    snprintf(w.dir, sizeof(w.dir), "/tmp/covey-host-test-XXXXXX");
    if (!mkdtemp(w.dir) || chmod(w.dir, 0711) < 0)
        return -1;
    snprintf(w.socket, sizeof(w.socket), "%s/grpc.socket", w.dir);
    snprintf(w.image_file, sizeof(w.image_file), "%s/u.tar.gz", w.dir);
    snprintf(w.split_meta, sizeof(w.split_meta), "%s/m.tar.gz", w.dir);
    snprintf(w.split_root, sizeof(w.split_root), "%s/r.tar.gz", w.dir);
    if (geteuid() != 0)
        return 0;
    const char *script = arena_printf(&w.arena, "%s/deploy/make-busybox-image", COVEY_SOURCE);
    const char *unified[] = {script, w.image_file, NULL}, *split[] = {script, "--split", w.split_meta, w.split_root, NULL};
    run_script(unified);
    run_script(split);
    world_up();
    struct host_image_info info;
    OK(upload(w.image_file, NULL, NULL, &info));
    snprintf(w.image, sizeof(w.image), "%s", info.fingerprint);
    host_image_info_free(&info);
    Covey__Internal__V1__PoolSpec *pool = pool_spec("default", "dir", NULL);
    OK(world_call("CreatePool", &pool->base, NULL));
    return 0;
}

/* Containers must not outlive the tests, whatever failed. */
static void kill_containers(void)
{
    Covey__Internal__V1__InstanceStatus **list;
    size_t count;
    host_instances(w.host, &w.arena, &list, &count);
    for (size_t i = 0; i < count; i++)
        if (list[i]->pid > 0)
            kill((pid_t)list[i]->pid, SIGKILL);
    for (size_t i = 0; i < count; i++) {
        int64_t until = time_mono_ms() + WAIT_MS_MAX;
        while (list[i]->pid > 0 && kill((pid_t)list[i]->pid, 0) == 0 && time_mono_ms() < until)
            usleep(5000);
    }
}

static int world_teardown(void **state)
{
    if (!w.host && geteuid() == 0)
        world_up();
    if (w.host) {
        kill_containers();
        world_down();
    }
    arena_clear(&w.arena);
    rpc_shutdown();
    return dir_remove_all(w.dir, &w.err) ? -1 : 0;
}

#define NEEDS_ROOT() do { if (geteuid() != 0) skip(); } while (0)

#endif
