/* Reading preseeds: both ways to write a certificate, unknown keys, wrong types, limits of the YAML reader. */
#include "client/cli/cli.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define CERTIFICATE "-----BEGIN CERTIFICATE-----\nMIIB\nabc=\n-----END CERTIFICATE-----\n"

static json_t *good(const char *text)
{
    struct error err = ERROR_INIT;
    json_t *preseed = preseed_parse(text, strlen(text), &err);
    if (!preseed)
        fail_msg("%s", err.text);
    return preseed;
}

static void bad(const char *text, const char *expected)
{
    struct error err = ERROR_INIT;
    json_t *preseed = preseed_parse(text, strlen(text), &err);
    assert_null(preseed);
    if (!strstr(err.text, expected) || !str_prefix(err.text, "Failed to parse the preseed: yaml: "))
        fail_msg("\"%s\" lacks \"%s\"", err.text, expected);
}

static void certificate_idioms(void **state)
{
    static const char *const texts[] = {
        "cluster:\n  enabled: true\n  cluster_certificate: \"-----BEGIN CERTIFICATE-----\n\n    MIIB\n\n    abc=\n\n    -----END CERTIFICATE-----\n\n    \"\n",
        "cluster:\n  enabled: true\n  cluster_certificate: |\n    -----BEGIN CERTIFICATE-----\n    MIIB\n    abc=\n    -----END CERTIFICATE-----\n",
    };
    for (size_t i = 0; i < 2; i++) {
        json_t *preseed = good(texts[i]);
        assert_string_equal(json_text(json_object_get(preseed, "cluster"), "cluster_certificate"), CERTIFICATE);
        json_decref(preseed);
    }
}

static void scalars(void **state)
{
    json_t *preseed = good("config:\n  core.https_address: 10.0.0.1:8443\n  images.auto_update_interval: 15\n  a.b: true\n  c.d: \"0123\"\n  e.f: 1.5\n"
                           "storage_pools:\n- name: data\n  driver: dir\n  config: {size: 10}\nprofiles:\n- name: default\n  devices:\n    root: {path: /, pool: data, type: disk}\n"
                           "cluster: null\nnetworks:\n");
    const json_t *config = json_object_get(preseed, "config");
    assert_string_equal(json_text(config, "images.auto_update_interval"), "15");
    assert_string_equal(json_text(config, "a.b"), "true");
    assert_string_equal(json_text(config, "c.d"), "0123");
    assert_string_equal(json_text(config, "e.f"), "1.5");
    const json_t *pool = json_array_get(json_object_get(preseed, "storage_pools"), 0);
    assert_string_equal(json_text(json_object_get(pool, "config"), "size"), "10");
    assert_int_equal(json_array_size(json_object_get(preseed, "networks")), 0);
    json_decref(preseed);
    preseed = good("");
    assert_int_equal(json_object_size(preseed), 0);
    json_decref(preseed);
}

static void refusals(void **state)
{
    bad("confg: {}", "field confg not found");
    bad("storage_pools:\n- nme: x\n", "field nme not found in storage_pools[0]");
    bad("cluster:\n  server_nam: x\n", "field server_nam not found in cluster");
    bad("cluster:\n  member_config:\n  - entty: x\n", "field entty not found in cluster.member_config[0]");
    bad("cluster:\n  enabled: maybe\n", "cluster.enabled: expected true or false");
    bad("cluster: [1]", "cannot unmarshal cluster: expected a map");
    bad("config: [a]", "config: expected a map");
    bad("config:\n  a: [1]\n", "config.a: expected a scalar");
    bad("storage_pools: x", "storage_pools: expected a list");
    bad("storage_pools:\n- x\n", "cannot unmarshal storage_pools[0]: expected a map");
    bad("profiles:\n- name: a\n  devices: {root: 1}\n", "expected a map");
    bad("- a", "the document: expected a map");
    bad("config: {a: 1, a: 2}", "key \"a\" already set in map");
    bad("config: {", "line");
    bad("? [a]\n: b\n", "a key must be a scalar");
    bad("config: {a: \"x\\0y\"}", "line 1: invalid text");
    bad("config: {\"a\\0b\": x}", "line 1: invalid key");
}

static void bounds(void **state)
{
    struct buf text = {0};
    buf_puts(&text, "a: &a [x, x, x, x, x, x, x, x, x, x]\n");
    for (char c = 'b'; c < 'j'; c++) /* each ten times the one before */
        buf_printf(&text, "%c: &%c [*%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c, *%c]\n", c, c, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1, c - 1);
    bad(text.data, "more than");
    buf_free(&text);
    for (int i = 0; i < 200; i++)
        buf_puts(&text, "[");
    for (int i = 0; i < 200; i++)
        buf_puts(&text, "]");
    bad(text.data, "more than");
    buf_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(certificate_idioms), cmocka_unit_test(scalars), cmocka_unit_test(refusals),
                                       cmocka_unit_test(bounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
