/* Rules of networks: names, types, keys, subnets, and every refusal of phase 2 with its text (spec/api.md 10). */
#include "server/networks/rules.h"
#include "server/host/network_rules.h"
#include "proto/core/core.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <cmocka.h>

static void names(void **state)
{
    struct error err = ERROR_INIT;
    const char *const good[] = {"br0", "a1", "_x", "lxd-br.0", "fifteen-letters"}, *const bad[] = {"", "x", "sixteen-letters-", "a/b", "a b", ".a", "-a", "all", "default", "ä0"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(network_name_check(good[i], &err), STATUS_OK);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(network_name_check(bad[i], &err), STATUS_INVALID_ARGUMENT);
    }
    network_name_check("sixteen-letters-", &err);
    assert_string_equal(err.text, "Network interface is too long (maximum 15 characters)");
}

static void types(void **state)
{
    struct error err = ERROR_INIT;
    int64_t type = -1;
    assert_int_equal(network_type_parse("", &type, &err), STATUS_OK);
    assert_int_equal(type, NETWORK_BRIDGE);
    assert_int_equal(network_type_parse("macvlan", &type, &err), STATUS_OK);
    assert_int_equal(type, NETWORK_MACVLAN);
    assert_int_equal(network_type_parse("ovn", &type, &err), STATUS_UNIMPLEMENTED);
    assert_int_equal(network_type_parse("sriov", &type, &err), STATUS_UNIMPLEMENTED);
    assert_int_equal(network_type_parse("wire", &type, &err), STATUS_INVALID_ARGUMENT);
}

static void keys(void **state)
{
    static const struct {
        int64_t type;
        const char *key, *value;
        bool good;
    } cases[] = {
        {NETWORK_BRIDGE, "ipv4.address", "10.0.0.1/24", true}, {NETWORK_BRIDGE, "ipv4.address", "auto", true}, {NETWORK_BRIDGE, "ipv4.address", "none", true},
        {NETWORK_BRIDGE, "ipv4.address", "10.0.0.0/24", false}, {NETWORK_BRIDGE, "ipv4.address", "10.0.0.255/24", false}, {NETWORK_BRIDGE, "ipv4.address", "10.0.0.1", false},
        {NETWORK_BRIDGE, "ipv4.address", "fd42::1/64", false}, {NETWORK_BRIDGE, "ipv6.address", "fd42::1/64", true}, {NETWORK_BRIDGE, "ipv6.address", "10.0.0.1/24", false},
        {NETWORK_BRIDGE, "ipv4.dhcp.ranges", "10.0.0.2-10.0.0.9, 10.0.0.20-10.0.0.30", true}, {NETWORK_BRIDGE, "ipv4.dhcp.ranges", "10.0.0.9-10.0.0.2", false},
        {NETWORK_BRIDGE, "ipv4.dhcp.ranges", "10.0.0.2", false}, {NETWORK_BRIDGE, "ipv4.routes", "10.0.0.0/8,192.168.0.0/16", true},
        {NETWORK_BRIDGE, "ipv4.routes", "10.0.0.1/8", false}, {NETWORK_BRIDGE, "ipv4.dhcp.expiry", "2h", true}, {NETWORK_BRIDGE, "ipv4.dhcp.expiry", "2h --x", false},
        {NETWORK_BRIDGE, "dns.domain", "example.net", true}, {NETWORK_BRIDGE, "dns.domain", "a b", false}, {NETWORK_BRIDGE, "dns.domain", "a\nb", false},
        {NETWORK_BRIDGE, "bridge.external_interfaces", "eth1, eth2", true}, {NETWORK_BRIDGE, "bridge.external_interfaces", "eth1,,eth2", false},
        {NETWORK_BRIDGE, "bridge.driver", "openvswitch", false}, {NETWORK_BRIDGE, "bridge.mode", "fan", false}, {NETWORK_BRIDGE, "bridge.hwaddr", "00:16:3e:aa:bb:cc", true},
        {NETWORK_BRIDGE, "bridge.hwaddr", "01:16:3e:aa:bb:cc", false}, {NETWORK_BRIDGE, "user.note", "any\ntext", true}, {NETWORK_BRIDGE, "user.", "x", false},
        {NETWORK_BRIDGE, "parent", "eth0", false}, {NETWORK_BRIDGE, "bgp.peers.a.asn", "1", false}, {NETWORK_BRIDGE, "security.acls", "web", false},
        {NETWORK_MACVLAN, "parent", "eth0", true}, {NETWORK_MACVLAN, "vlan", "5", false}, {NETWORK_MACVLAN, "ipv4.address", "auto", false},
        {NETWORK_PHYSICAL, "mtu", "9000", true}, {NETWORK_PHYSICAL, "mtu", "9", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        int status = network_key_check(cases[i].type, "n", cases[i].key, cases[i].value, &err);
        if ((status == STATUS_OK) != cases[i].good || (!cases[i].good && strstr(err.text, cases[i].key) == NULL)) {
            fail_msg("%s = %s: %d %s", cases[i].key, cases[i].value, status, err.text);
        }
    }
    assert_true(network_key_member("parent"));
    assert_true(network_key_member("bridge.external_interfaces"));
    assert_false(network_key_member("ipv4.address"));
}

static void together(void **state)
{
    struct error err = ERROR_INIT;
    struct device_option outside[] = {{"ipv4.address", "10.0.0.1/24"}, {"ipv4.dhcp.ranges", "10.0.1.2-10.0.1.9"}}, bare[] = {{"ipv4.dhcp.ranges", "10.0.1.2-10.0.1.9"}},
                         later[] = {{"ipv4.address", "auto"}, {"ipv4.dhcp.ranges", "10.0.1.2-10.0.1.9"}}, small[] = {{"ipv6.address", "fd42::1/64"}, {"bridge.mtu", "1200"}},
                         none[] = {{"ipv4.address", "none"}};
    assert_int_equal(network_config_check(NETWORK_BRIDGE, outside, 2, true, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(network_config_check(NETWORK_BRIDGE, bare, 1, true, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(network_config_check(NETWORK_BRIDGE, later, 2, true, &err), STATUS_OK);
    assert_int_equal(network_config_check(NETWORK_BRIDGE, small, 2, true, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(network_config_check(NETWORK_BRIDGE, none, 1, true, &err), STATUS_OK);
    assert_int_equal(network_config_check(NETWORK_MACVLAN, NULL, 0, false, &err), STATUS_OK);
    assert_int_equal(network_config_check(NETWORK_MACVLAN, NULL, 0, true, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(network_get(none, 1, "dns.domain"), "lxd");
    assert_true(network_get_bool(none, 1, "ipv4.dhcp"));
    assert_false(network_get_bool(none, 1, "ipv4.nat"));
}

static void subnets(void **state)
{
    struct subnet a, b, out;
    char text[SUBNET_TEXT_MAX];
    assert_int_equal(subnet_parse("10.1.2.3/20", &a), 0);
    subnet_network(&a, &out);
    subnet_text(&out, true, text);
    assert_string_equal(text, "10.1.0.0/20");
    subnet_nth(&a, -2, &out);
    subnet_text(&out, false, text);
    assert_string_equal(text, "10.1.15.254");
    subnet_nth(&a, 300, &out);
    subnet_text(&out, false, text);
    assert_string_equal(text, "10.1.1.44");
    assert_int_equal(subnet_parse("10.1.0.0/16", &b), 0);
    assert_true(subnet_overlaps(&a, &b));
    assert_true(subnet_contains(&b, &a));
    assert_false(subnet_contains(&a, &b));
    assert_int_equal(subnet_parse("10.2.0.0/16", &b), 0);
    assert_false(subnet_overlaps(&a, &b));
    assert_int_equal(subnet_parse("fd42:1::1/64", &b), 0);
    assert_false(subnet_overlaps(&a, &b));
    subnet_nth(&b, -1, &out);
    subnet_text(&out, false, text);
    assert_string_equal(text, "fd42:1::ffff:ffff:ffff:ffff");
    const char *const bad[] = {"", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/0", "10.0.0.1/a", "300.0.0.1/8", "::1/129"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(subnet_parse(bad[i], &a), -1);
    }
}

static void phase2(void **state)
{
    static const struct {
        struct network_facts facts;
        int64_t type;
        bool has_config;
        const char *text; /* "" = fine */
    } cases[] = {
        {{.exists = false}, NETWORK_BRIDGE, false, "Network not pending on any node (use --target <node> first)"},
        {{.exists = true, .undefined = "n2, n4"}, NETWORK_BRIDGE, false, "Network not defined on nodes: n2, n4"},
        {{.exists = true, .type = NETWORK_MACVLAN}, NETWORK_BRIDGE, false, "Requested network type \"bridge\" doesn't match type in existing database record \"macvlan\""},
        {{.exists = true, .state = NETWORK_CREATED}, NETWORK_BRIDGE, true, "The network is already created"},
        {{.exists = true, .state = NETWORK_ERRORED}, NETWORK_BRIDGE, true,
            "Network already partially created. Please do not specify any global config when re-running create"},
        {{.exists = true, .state = NETWORK_ERRORED}, NETWORK_BRIDGE, false, ""},
        {{.exists = true, .state = NETWORK_PENDING}, NETWORK_BRIDGE, true, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        int status = network_phase2_check(&cases[i].facts, cases[i].type, cases[i].has_config, &err);
        assert_int_equal(status == STATUS_OK, cases[i].text[0] == '\0');
        if (status != STATUS_OK) {
            assert_string_equal(err.text, cases[i].text);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names),    cmocka_unit_test(types),   cmocka_unit_test(keys),
                                       cmocka_unit_test(together), cmocka_unit_test(subnets), cmocka_unit_test(phase2)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
