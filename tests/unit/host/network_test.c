/* Bridged NICs, bind mounts, limits and environment of a real container. The bridge is made here, in this machine's network, and taken away again. */
#include "world.h"
#include <net/if.h>

static char bridge[IF_NAMESIZE];

static int network_setup(void **state)
{
    char hex[7];
    if (world_setup(state))
        return -1;
    if (geteuid() != 0)
        return 0;
    random_hex(hex, 3);
    snprintf(bridge, sizeof(bridge), "cvt%s", hex);
    shell(arena_printf(&w.arena, "ip link add %s type bridge && ip addr add 198.51.100.1/24 dev %s && ip link set %s up", bridge, bridge, bridge));
    return 0;
}

static int network_teardown(void **state)
{
    int rc = world_teardown(state);
    if (bridge[0]) {
        struct process_result result;
        const char *argv[] = {"ip", "link", "del", bridge, NULL};
        if (process_run(argv, NULL, NULL, 1000, 10000, &result, NULL) || result.exit_code)
            rc = -1;
        process_result_free(&result);
    }
    return rc;
}

static int run_inside(Spec *spec, const char *script)
{
    Covey__Internal__V1__ExecRequest request = COVEY__INTERNAL__V1__EXEC_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    char uuid[37], *command[] = {(char *)(uintptr_t) "/bin/sh", (char *)(uintptr_t) "-c", (char *)(uintptr_t)script};
    uuid_new(uuid);
    request.spec = spec;
    request.operation = uuid;
    request.command = command;
    request.n_command = 3;
    OK(world_call("Exec", &request.base, &response));
    return (int)((Covey__Internal__V1__ExecResponse *)response)->return_;
}

static const Covey__V1__NetworkState *interface(const Covey__V1__InstanceState *state, const char *name)
{
    for (size_t i = 0; state->network && i < state->network->n_interfaces; i++)
        if (strcmp(state->network->interfaces[i]->key, name) == 0)
            return state->network->interfaces[i]->value;
    return NULL;
}

static const char *answered(const Covey__Internal__V1__StartInstanceResponse *response, const char *key)
{
    for (size_t i = 0; i < response->n_volatile_; i++)
        if (strcmp(response->volatile_[i]->key, key) == 0)
            return response->volatile_[i]->value;
    return NULL;
}

static void test_bridged(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("default", "n1");
    ProtobufCMessage *message = NULL;
    spec_device(spec, "eth0", "type=nic,nictype=bridged,parent=cvtmissing0");
    OK(create(spec, w.image));
    FAILS(STATUS_FAILED_PRECONDITION, "Parent device \"cvtmissing0\" doesn't exist", start(spec, NULL));
    spec->n_devices = 1;
    spec_device(spec, "eth0", "type=nic,nictype=bridged,parent=lo");
    FAILS(STATUS_FAILED_PRECONDITION, "is not a bridge", start(spec, NULL));
    spec->n_devices = 1;
    spec_device(spec, "nic", arena_printf(&w.arena, "type=nic,nictype=bridged,parent=%s,mtu=1400", bridge));
    spec_config(spec, "volatile.nic.hwaddr", "00:16:3e:01:02:03");
    spec_config(spec, "environment.GREETING", "hello world");
    spec_config(spec, "limits.memory", "64MiB");
    spec_config(spec, "limits.processes", "40");
    spec_config(spec, "limits.cpu", "1");
    spec_config(spec, "limits.cpu.allowance", "20ms/100ms");
    spec_config(spec, "user.anything", "a\nb");
    OK(world_call("StartInstance", &spec->base, &message));
    const Covey__Internal__V1__StartInstanceResponse *started = (const void *)message;
    const char *host_name = answered(started, "volatile.nic.host_name");
    assert_non_null(host_name);
    assert_int_equal(strlen(host_name), 12);
    assert_string_equal(answered(started, "volatile.nic.name"), "eth0");
    assert_null(answered(started, "volatile.nic.hwaddr")); /* was given */
    assert_int_equal(access(arena_printf(&w.arena, "/sys/class/net/%s/brif/%s", bridge, host_name), F_OK), 0);
    assert_int_equal(run_inside(spec, "ip addr add 198.51.100.2/24 dev eth0 && ping -c 1 -W 5 198.51.100.1 >/dev/null"), 0);
    const Covey__V1__InstanceState *s = state_of(spec);
    const Covey__V1__NetworkState *eth0 = interface(s, "eth0"), *lo = interface(s, "lo");
    assert_non_null(eth0);
    assert_string_equal(eth0->hwaddr, "00:16:3e:01:02:03");
    assert_string_equal(eth0->host_name, host_name);
    assert_int_equal(eth0->mtu, 1400);
    assert_string_equal(eth0->state, "up");
    assert_string_equal(eth0->type, "broadcast");
    assert_true(eth0->counters->bytes_received > 0);
    bool found = false;
    for (size_t i = 0; i < eth0->n_addresses; i++)
        found = found || (strcmp(eth0->addresses[i]->address, "198.51.100.2") == 0 && strcmp(eth0->addresses[i]->netmask, "24") == 0 &&
                          strcmp(eth0->addresses[i]->scope, "global") == 0 && strcmp(eth0->addresses[i]->family, "inet") == 0);
    assert_true(found);
    assert_string_equal(lo->type, "loopback");
    assert_int_equal(run_inside(spec, "tr '\\0' '\\n' </proc/1/environ | grep -qx 'GREETING=hello world'"), 0);
    assert_int_equal(run_inside(spec, "[ $(hostname) = n1 ] && [ $(nproc) = 1 ]"), 0);
    /* the process limit holds: a hundred children cannot all be there */
    assert_int_not_equal(run_inside(spec, "i=0; while [ $i -lt 100 ]; do sleep 5 & i=$((i+1)); done; [ $(ls -d /proc/[0-9]* | wc -l) -gt 60 ]"), 0);
    OK(stop(spec, true, -1));
    assert_int_equal(access(arena_printf(&w.arena, "/sys/class/net/%s", host_name), F_OK), -1);
    OK(world_call("DeleteInstance", &spec->base, NULL));
}

static void test_binds(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("default", "n2");
    char *dir = arena_printf(&w.arena, "%s/a b", w.dir);
    OK(dir_make(dir, 0755, &w.err));
    OK(file_write_atomic(arena_printf(&w.arena, "%s/file", dir), "x", 1, 0644, &w.err));
    spec_device(spec, "ro", arena_printf(&w.arena, "type=disk,source=%s,path=/mnt/with blank,readonly=true", dir));
    spec_device(spec, "gone", "type=disk,source=/nonexistent,path=/mnt/gone,required=false");
    spec_device(spec, "hidden", "type=none");
    OK(create(spec, w.image));
    OK(start(spec, NULL));
    assert_int_equal(run_inside(spec, "[ $(cat '/mnt/with blank/file') = x ] && ! touch '/mnt/with blank/y' && [ ! -e /mnt/gone ]"), 0);
    assert_int_equal(run_inside(spec, "[ $(ls /sys/class/net | wc -l) = 1 ]"), 0); /* lo: never the host's network */
    OK(stop(spec, true, -1));
    OK(world_call("DeleteInstance", &spec->base, NULL));
}

static void test_privileged(void **state)
{
    NEEDS_ROOT();
    Spec *spec = spec_of("default", "n3");
    struct stat st;
    int64_t pid = 0;
    spec_config(spec, "security.privileged", "true");
    spec_config(spec, "security.nesting", "true");
    OK(create(spec, w.image));
    OK(start(spec, &pid));
    assert_int_equal(stat(arena_printf(&w.arena, "/proc/%lld", (long long)pid), &st), 0);
    assert_int_equal(st.st_uid, 0);
    assert_int_equal(run_inside(spec, "[ $(awk '{print $3}' /proc/self/uid_map) = 4294967295 ]"), 0);
    OK(stop(spec, true, -1));
    OK(world_call("DeleteInstance", &spec->base, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bridged), cmocka_unit_test(test_binds), cmocka_unit_test(test_privileged)};
    return cmocka_run_group_tests(tests, network_setup, network_teardown);
}
