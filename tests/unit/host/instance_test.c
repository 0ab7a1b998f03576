/* Containers, for real, through the RPC handlers: create, start, state, stop, delete; what survives the daemon; devices; limits. */
#include "world.h"
#include <net/if.h>

static int status_code(const char *name)
{
    ProtobufCMessage *response = NULL;
    Covey__Internal__V1__ListInstancesRequest request = COVEY__INTERNAL__V1__LIST_INSTANCES_REQUEST__INIT;
    OK(world_call("ListInstances", &request.base, &response));
    Covey__Internal__V1__ListInstancesResponse *list = (void *)response;
    for (size_t i = 0; i < list->n_instances; i++)
        if (strcmp(list->instances[i]->name, name) == 0)
            return (int)list->instances[i]->status_code;
    return 0;
}

static void test_life(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("default", "c1");
    int64_t pid = 0, again = 0;
    OK(create(spec, w.image));
    OK(create(spec, w.image)); /* the same instance again */
    Spec *other = spec_of("default", "c1");
    FAILS(STATUS_ALREADY_EXISTS, "already exists", create(other, w.image));
    assert_int_equal(status_code("c1"), 102);
    Covey__V1__InstanceState *s = state_of(spec);
    assert_string_equal(s->status, "Stopped");
    assert_null(s->network);
    OK(start(spec, &pid));
    assert_true(pid > 0);
    OK(start(spec, &again)); /* the same operation again */
    assert_int_equal(pid, again);
    FAILS(STATUS_FAILED_PRECONDITION, "The instance is already running", start(other, NULL));
    FAILS(STATUS_FAILED_PRECONDITION, "Instance is running", world_call("DeleteInstance", &spec->base, NULL));
    struct stat st;
    assert_int_equal(stat(arena_printf(&w.arena, "/proc/%lld", (long long)pid), &st), 0);
    assert_true(st.st_uid >= 100000); /* not the host's root */
    s = state_of(spec);
    assert_string_equal(s->status, "Running");
    assert_int_equal(s->pid, pid);
    assert_true(s->processes >= 1);
    assert_true(s->memory->usage > 0);
    assert_true(s->cpu->usage > 0);
    assert_non_null(s->network);
    WAIT_FOR(atomic_load(&w.last_status) == 103);
    OK(stop(spec, true, -1));
    OK(stop(spec, true, -1));
    WAIT_FOR(atomic_load(&w.last_status) == 102);
    assert_int_equal(kill((pid_t)pid, 0), -1);
    OK(world_call("DeleteInstance", &spec->base, NULL));
    OK(world_call("DeleteInstance", &spec->base, NULL));
    assert_int_equal(status_code("c1"), 0);
    assert_int_equal(access(arena_printf(&w.arena, "%s/storage-pools/default/containers/c1", w.dir), F_OK), -1);
    assert_int_equal(access(arena_printf(&w.arena, "%s/containers/c1", w.dir), F_OK), -1);
    assert_int_equal(access(arena_printf(&w.arena, "%s/logs/c1", w.dir), F_OK), -1);
}

static void test_survives_daemon(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("prj", "c1");
    int64_t pid = 0, again = 0;
    OK(create(spec, w.image));
    OK(start(spec, &pid));
    world_down();
    assert_int_equal(kill((pid_t)pid, 0), 0);
    world_up();
    assert_int_equal(status_code("c1"), 103);
    Covey__V1__InstanceState *s = state_of(spec);
    assert_int_equal(s->pid, pid);
    OK(start(spec, &again)); /* still known as done by this operation */
    assert_int_equal(pid, again);
    kill((pid_t)pid, SIGKILL); /* an init that dies by itself is noticed */
    WAIT_FOR(status_code("c1") == 102);
    WAIT_FOR(atomic_load(&w.last_status) == 102);
    OK(world_call("DeleteInstance", &spec->base, NULL));
}

static pid_t parent_of(int64_t pid)
{
    char line[256] = "";
    FILE *file = fopen(arena_printf(&w.arena, "/proc/%lld/status", (long long)pid), "re");
    int parent = 0;
    assert_non_null(file);
    while (fgets(line, sizeof line, file) && sscanf(line, "PPid: %d", &parent) != 1)
        ;
    fclose(file);
    return parent;
}

/* A monitor that hangs keeps neither the member from starting nor its volume from being kept; it is asked again until it answers. */
static void test_hanging_monitor(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("default", "c1");
    int64_t pid = 0;
    OK(create(spec, w.image));
    OK(start(spec, &pid));
    pid_t monitor = parent_of(pid);
    assert_true(monitor > 1 && monitor != getpid());
    world_down();
    assert_int_equal(kill(monitor, SIGSTOP), 0);
    world_up();
    assert_int_equal(status_code("c1"), 112);
    FAILS(STATUS_FAILED_PRECONDITION, "stop it by force first", world_call("DeleteInstance", &spec->base, NULL));
    assert_int_equal(kill(monitor, SIGCONT), 0);
    WAIT_FOR(status_code("c1") == 103);
    assert_int_equal(state_of(spec)->pid, pid);
    OK(stop(spec, true, -1));
    OK(world_call("DeleteInstance", &spec->base, NULL));
}

static void test_clean_stop_and_reboot(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("default", "c1");
    int64_t pid = 0;
    OK(create(spec, w.image));
    OK(start(spec, &pid));
    /* busybox's init reboots, once it is far enough to have a handler: before, the kernel drops the signal */
    int64_t until = time_mono_ms() + WAIT_MS_MAX, now;
    while ((now = state_of(spec)->pid) <= 0 || now == pid) {
        assert_true(time_mono_ms() < until);
        if (now == pid)
            kill((pid_t)pid, SIGTERM);
        usleep(200 * 1000);
    }
    WAIT_FOR(status_code("c1") == 103);
    OK(stop(spec, false, 15000));
    assert_int_equal(status_code("c1"), 102);
    spec_config(spec, "raw.lxc", "lxc.signal.halt = 28"); /* SIGWINCH: nothing happens */
    spec->operation = (char *)(uintptr_t) "another";
    OK(start(spec, &pid));
    FAILS(STATUS_DEADLINE_EXCEEDED, "Failed shutting down instance", stop(spec, false, 300));
    assert_int_equal(status_code("c1"), 103);
    OK(stop(spec, false, 0));
    OK(world_call("DeleteInstance", &spec->base, NULL));
}

static void test_freeze(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("default", "c1");
    Covey__Internal__V1__FreezeInstanceRequest request = COVEY__INTERNAL__V1__FREEZE_INSTANCE_REQUEST__INIT;
    request.spec = spec;
    OK(create(spec, w.image));
    FAILS(STATUS_FAILED_PRECONDITION, "The container isn't running", world_call("FreezeInstance", &request.base, NULL));
    OK(start(spec, NULL));
    OK(world_call("FreezeInstance", &request.base, NULL));
    OK(world_call("FreezeInstance", &request.base, NULL));
    assert_int_equal(status_code("c1"), 110);
    world_down();
    world_up();
    assert_int_equal(status_code("c1"), 110);
    request.unfreeze = true;
    OK(world_call("FreezeInstance", &request.base, NULL));
    assert_int_equal(status_code("c1"), 103);
    request.unfreeze = false;
    OK(world_call("FreezeInstance", &request.base, NULL));
    OK(stop(spec, true, -1)); /* also a frozen one */
    OK(world_call("DeleteInstance", &spec->base, NULL));
}

static void test_refused(void **state)
{
    NEEDS_ROOT();
    FAILS(STATUS_INVALID_ARGUMENT, "Invalid instance name: Name must be 1-63", create(spec_of("default", ""), w.image));
    FAILS(STATUS_INVALID_ARGUMENT, "Invalid instance name: The character \"/\"", create(spec_of("default", "../x"), w.image));
    FAILS(STATUS_INVALID_ARGUMENT, "Invalid instance name: Name can only", create(spec_of("default", "a.b"), w.image));
    FAILS(STATUS_INVALID_ARGUMENT, "Invalid project name", create(spec_of("..", "c1"), w.image));
    FAILS(STATUS_INVALID_ARGUMENT, "Invalid project name", create(spec_of("a/b", "c1"), w.image));
    FAILS(STATUS_NOT_FOUND, "Image not found", create(spec_of("default", "c1"), "1234"));
    Spec *spec = spec_of("default", "c1");
    spec->pool = pool_spec("gone", "dir", NULL);
    FAILS(STATUS_FAILED_PRECONDITION, "Storage pool \"gone\" is not there", create(spec, w.image));
    assert_int_equal(status_code("c1"), 0);
    spec = spec_of("default", "c1");
    OK(create(spec, ""));
    FAILS(STATUS_INTERNAL, "Failed to run the container", start(spec, NULL)); /* an empty root has no init */
    assert_int_equal(status_code("c1"), 102);
    spec_device(spec, "p", "type=proxy,listen=tcp:1,connect=tcp:2");
    FAILS(STATUS_FAILED_PRECONDITION, "Unsupported device type \"proxy\"", start(spec, NULL));
    spec->n_devices = 1;
    spec_device(spec, "d", "type=disk,source=/nonexistent,path=/mnt");
    FAILS(STATUS_FAILED_PRECONDITION, "Missing source path \"/nonexistent\" for disk \"d\"", start(spec, NULL));
    spec->n_devices = 1;
    spec_config(spec, "environment.A", "x\nlxc.hook.start = /bin/false");
    FAILS(STATUS_INVALID_ARGUMENT, "line breaks", start(spec, NULL));
    spec->n_config = 0;
    spec_config(spec, "limits.disk.priority", "5");
    FAILS(STATUS_FAILED_PRECONDITION, "Unsupported configuration key \"limits.disk.priority\"", start(spec, NULL));
    OK(world_call("DeleteInstance", &spec->base, NULL));
}

/* Waits for a status of "c1" on a stream. */
static void watch_for(struct rpc_call *stream, int64_t code)
{
    struct arena arena;
    arena_init(&arena);
    for (bool found = false; !found;) {
        ProtobufCMessage *message = NULL;
        OK(rpc_recv(stream, &message, &arena, &w.err));
        const Covey__Internal__V1__ListInstancesResponse *list = (const void *)message;
        for (size_t i = 0; i < list->n_instances; i++)
            found = found || (strcmp(list->instances[i]->name, "c1") == 0 && list->instances[i]->status_code == code);
    }
    arena_clear(&arena);
}

static void test_watch(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("default", "c1");
    Covey__Internal__V1__ListInstancesRequest request = COVEY__INTERNAL__V1__LIST_INSTANCES_REQUEST__INIT;
    struct rpc_options options = {.timeout_ms = 20000, .wait_for_ready = true};
    OK(create(spec, w.image));
    struct rpc_call *stream = rpc_open(w.channel, AGENT, "WatchInstances", &request.base, &options, &w.err);
    watch_for(stream, 102); /* all of them first */
    OK(start(spec, NULL));
    watch_for(stream, 106);
    watch_for(stream, 103);
    OK(stop(spec, true, -1));
    watch_for(stream, 107);
    watch_for(stream, 102);
    OK(world_call("DeleteInstance", &spec->base, NULL));
    rpc_cancel(stream);
    rpc_call_unref(stream);
}

/* What an interrupted run left is gone after the next start. */
static void test_leftovers(void **state)
{
    NEEDS_ROOT();
    const char *volume = arena_printf(&w.arena, "%s/storage-pools/default/containers/.tmp-1234", w.dir);
    const char *image = arena_printf(&w.arena, "%s/images/.upload-1234", w.dir);
    const char *rest = arena_printf(&w.arena, "%s/images/%064d.rootfs", w.dir, 7);
    OK(dir_make(arena_printf(&w.arena, "%s/rootfs/x", volume), 0700, &w.err));
    OK(file_write_atomic(image, "x", 1, 0600, &w.err));
    OK(file_write_atomic(rest, "x", 1, 0600, &w.err));
    world_down();
    world_up();
    assert_int_equal(access(volume, F_OK), -1);
    assert_int_equal(access(image, F_OK), -1);
    assert_int_equal(access(rest, F_OK), -1);
    assert_true(host_image_has(w.host, w.image));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life), cmocka_unit_test(test_survives_daemon), cmocka_unit_test(test_hanging_monitor),
        cmocka_unit_test(test_clean_stop_and_reboot), cmocka_unit_test(test_freeze), cmocka_unit_test(test_refused), cmocka_unit_test(test_watch), cmocka_unit_test(test_leftovers),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
