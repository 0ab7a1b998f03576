/* Rules of devices: pure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <string.h>

#include "server/host/device_rules.h"

static struct error err;

/* Up to eight options as key, value, … */
static struct device device_of(const char *name, struct device_option options[8], const char *const texts[])
{
    struct device device = {name, options, 0};
    for (; texts[0]; texts += 2)
        options[device.option_count++] = (struct device_option){texts[0], texts[1]};
    return device;
}

struct rule_case {
    const char *why; /* "" = valid */
    const char *options[17];
};

static const struct rule_case cases[] = {
    {"", {"type", "disk", "path", "/", "pool", "default", "size", "10GiB"}},
    {"", {"type", "none"}},
    {"", {"type", "nic", "nictype", "bridged", "parent", "br0", "hwaddr", "00:16:3e:aa:bb:cc", "mtu", "1500"}},
    {"", {"type", "nic", "network", "lxdbr0", "name", "eth0"}},
    {"", {"type", "disk", "source", "/srv", "path", "mnt/x", "readonly", "true"}},
    {"", {"type", "gpu", "whatever", "1"}},
    {"Missing device type", {"path", "/"}},
    {"Invalid device type foo", {"type", "foo"}},
    {"Device validation failed for \"d\": Invalid device option \"foo\"", {"type", "disk", "foo", "1"}},
    {"Device validation failed for \"d\": Disk entry is missing the required \"source\" or \"path\" property", {"type", "disk", "path", "/mnt"}},
    {"Root disk entry may not have a \"source\" property set", {"type", "disk", "path", "/", "source", "/srv", "pool", "p"}},
    {"Root disk entry must have a \"pool\" property set", {"type", "disk", "path", "/"}},
    {"Only the root disk may have a size quota", {"type", "disk", "path", "/mnt", "source", "/srv", "size", "1GB"}},
    {"Must be an absolute path", {"type", "disk", "path", "/mnt", "source", "srv"}},
    {"Invalid value for device option \"path\"", {"type", "disk", "path", "/mnt/../../etc", "source", "/srv"}},
    {"Invalid value for device option \"readonly\"", {"type", "disk", "path", "/mnt", "source", "/srv", "readonly", "maybe"}},
    {"Invalid value for device option \"nictype\": Required value", {"type", "nic", "parent", "br0"}},
    {"Invalid value for device option \"parent\": Required value", {"type", "nic", "nictype", "bridged"}},
    {"Cannot use \"nictype\" property in conjunction with \"network\" property", {"type", "nic", "network", "n", "nictype", "bridged"}},
    {"Invalid value for device option \"hwaddr\"", {"type", "nic", "network", "n", "hwaddr", "00:16"}},
    {"Invalid value for device option \"name\"", {"type", "nic", "network", "n", "name", "a/b"}},
    {"Invalid value for device option \"host_name\"", {"type", "nic", "network", "n", "host_name", "sixteen-letters-"}},
    {"Invalid value for device option \"mtu\"", {"type", "nic", "nictype", "bridged", "parent", "b", "mtu", "12"}},
};

static void test_each(void **state)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct device_option options[8];
        struct device device = device_of("d", options, cases[i].options);
        err = (struct error)ERROR_INIT;
        int rc = device_check(&device, &err);
        if (!*cases[i].why && rc)
            fail_msg("case %zu: %s", i, err.text);
        if (*cases[i].why && (rc != STATUS_INVALID_ARGUMENT || !strstr(err.text, cases[i].why)))
            fail_msg("case %zu: %d \"%s\" lacks \"%s\"", i, rc, err.text, cases[i].why);
    }
    struct device_option none[] = {{"type", "none"}};
    struct device bad = {"a/b", none, 1};
    assert_int_equal(device_check(&bad, &err), STATUS_INVALID_ARGUMENT);
}

static void test_sets(void **state)
{
    struct device_option root[] = {{"type", "disk"}, {"path", "/"}, {"pool", "p"}};
    struct device_option nic_a[] = {{"type", "nic"}, {"network", "n"}, {"name", "eth0"}};
    struct device_option disk_a[] = {{"type", "disk"}, {"path", "/m"}, {"source", "/a"}};
    struct device devices[] = {{"root", root, 3}, {"a", nic_a, 3}, {"b", nic_a, 3}, {"c", disk_a, 3}, {"d", disk_a, 3}, {"root2", root, 3}};
    assert_int_equal(devices_check(devices, 2, true, &err), STATUS_OK);
    assert_ptr_equal(devices_root(devices, 2), &devices[0]);
    assert_int_equal(devices_check(devices, 3, true, &err), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(err.text, "eth0"));
    assert_int_equal(devices_check(devices + 3, 2, false, &err), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(err.text, "same path"));
    struct device two_roots[] = {devices[0], devices[5]};
    assert_int_equal(devices_check(two_roots, 2, true, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(devices_check(devices + 1, 1, true, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "Failed getting root disk: No root device could be found");
    assert_int_equal(devices_check(devices + 1, 1, false, &err), STATUS_OK);
}

static void test_supported(void **state)
{
    static const struct rule_case support[] = {
        {"", {"type", "disk", "path", "/", "pool", "p"}},
        {"", {"type", "disk", "path", "/m", "source", "/a", "shift", "false"}},
        {"Unsupported device option \"shift\"", {"type", "disk", "path", "/m", "source", "/a", "shift", "true"}},
        {"with a custom volume", {"type", "disk", "path", "/m", "source", "vol", "pool", "p"}},
        {"", {"type", "nic", "nictype", "macvlan", "parent", "e"}},
        {"", {"type", "nic", "network", "n", "ipv4.address", "10.0.0.2"}},
        {"Unsupported device type \"nic\" with nictype \"p2p\"", {"type", "nic", "nictype", "p2p"}},
        {"Unsupported device option \"ipv4.address\"", {"type", "nic", "nictype", "bridged", "parent", "b", "ipv4.address", "10.0.0.2"}},
        {"Unsupported device option \"ipv4.routes\"", {"type", "nic", "network", "n", "ipv4.routes", "10.0.0.0/24"}},
        {"Unsupported device type \"gpu\"", {"type", "gpu"}},
    };
    for (size_t i = 0; i < sizeof(support) / sizeof(support[0]); i++) {
        struct device_option options[8];
        struct device device = device_of("d", options, support[i].options);
        err = (struct error)ERROR_INIT;
        int rc = device_supported(&device, &err);
        if (*support[i].why ? rc != STATUS_FAILED_PRECONDITION || !strstr(err.text, support[i].why) : rc != STATUS_OK)
            fail_msg("case %zu: %d \"%s\"", i, rc, err.text);
    }
}

static void test_values(void **state)
{
    int64_t n;
    assert_int_equal(size_parse("512MiB", &n), 0);
    assert_int_equal(n, 512 << 20);
    assert_int_equal(size_parse("1GB", &n), 0);
    assert_int_equal(n, 1000000000);
    assert_int_equal(size_parse("2048", &n), 0);
    assert_int_equal(size_parse("9EiB", &n), -1);
    assert_int_equal(size_parse("1gb", &n), -1);
    assert_int_equal(size_parse("", &n), -1);
    assert_int_equal(size_parse("-1", &n), -1);
    assert_int_equal(cpu_limit_parse("3", &n, &err), 0);
    assert_int_equal(n, 3);
    assert_int_equal(cpu_limit_parse("0-3,5", &n, &err), 0);
    assert_int_equal(n, 0);
    assert_int_equal(cpu_limit_parse("0-0", &n, &err), 0);
    const char *const bad[] = {"", "0x", "3-1", "1,", "a", "1-", "1--2", "-1", "1-2-3"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(cpu_limit_parse(bad[i], &n, &err), STATUS_INVALID_ARGUMENT);
        assert_string_equal(err.text, "Invalid CPU limit syntax");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each), cmocka_unit_test(test_sets), cmocka_unit_test(test_supported),
                                       cmocka_unit_test(test_values)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
