/* Configuration keys, addresses, expiry expressions, and what a request of PUT /1.0 asks for. */
#include "server/config/keys.h"
#include "server/config/server.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void check_canonical(const char *text, const char *expected)
{
    char out[300];
    struct error err = ERROR_INIT;
    int status = address_canonical(text, out, sizeof out, &err);
    if (expected == NULL) {
        assert_int_equal(status, STATUS_INVALID_ARGUMENT);
        return;
    }
    assert_int_equal(status, STATUS_OK);
    assert_string_equal(out, expected);
}

static void addresses_become_canonical(void **state)
{
    check_canonical("10.0.0.1", "10.0.0.1:8443");
    check_canonical("10.0.0.1:", "10.0.0.1:8443");
    check_canonical("10.0.0.1:443", "10.0.0.1:443");
    check_canonical(":443", ":443");
    check_canonical("host.example", "host.example:8443");
    check_canonical("fe80::1", "[fe80::1]:8443");
    check_canonical("[fe80::1]", "[fe80::1]:8443");
    check_canonical("[::]:9000", "[::]:9000");
    check_canonical("::", "[::]:8443");
    check_canonical("", NULL);
    check_canonical("a b", NULL);
    check_canonical("host:0", NULL);
    check_canonical("host:65536", NULL);
    check_canonical("host:x", NULL);
    check_canonical("[fe80::1", NULL);
    check_canonical("[fe80::1]x", NULL);
    check_canonical("[host]:1", NULL);
    check_canonical("1:2:3", NULL);
}

static void wildcards_cover_their_port(void **state)
{
    assert_true(address_wildcard(":8443"));
    assert_true(address_wildcard("0.0.0.0:1"));
    assert_true(address_wildcard("[::]:8443"));
    assert_true(address_wildcard("[0:0::0]:8443"));
    assert_false(address_wildcard("[::1]:8443"));
    assert_false(address_wildcard("10.0.0.1:8443"));
    assert_true(address_covered("10.0.0.1:8443", "10.0.0.1:8443"));
    assert_true(address_covered("10.0.0.1:8443", ":8443"));
    assert_true(address_covered("[::1]:8443", "[::]:8443"));
    assert_false(address_covered("10.0.0.1:8443", ":8444"));
    assert_false(address_covered("10.0.0.1:8443", "10.0.0.2:8443"));
    assert_true(address_covered("[::1]:5", "[0:0:0:0:0:0:0:1]:5"));
    assert_false(address_covered("", ":8443"));
}

static void check_expiry(const char *expression, const char *from, const char *expected)
{
    int64_t start = 0, want = 0, out = 0;
    assert_int_equal(time_parse_rfc3339(from, &start), 0);
    if (expected == NULL) {
        assert_int_equal(expiry_add(expression, start, &out), -1);
        return;
    }
    assert_int_equal(time_parse_rfc3339(expected, &want), 0);
    assert_int_equal(expiry_add(expression, start, &out), 0);
    assert_int_equal(out, want);
}

static void expiry_by_the_calendar(void **state)
{
    check_expiry("3H", "2026-11-21T22:00:00.5Z", "2026-11-22T01:00:00.5Z");
    check_expiry("1d 2H", "2026-02-28T00:00:00Z", "2026-03-01T02:00:00Z");
    check_expiry("2w", "2026-12-25T00:00:00Z", "2027-01-08T00:00:00Z");
    check_expiry("1m", "2026-11-21T00:00:00Z", "2026-12-21T00:00:00Z");
    check_expiry("1y", "2028-02-29T00:00:00Z", "2029-03-01T00:00:00Z");
    check_expiry("90S 1M", "2026-01-01T00:00:00Z", "2026-01-01T00:02:30Z");
    static const char *const wrong[] = {"", " ", "5", "H", "5H30M", "5h", "1H 1H", "-1H", "1H,2M", "999y", "1234567H"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        check_expiry(wrong[i], "2026-01-01T00:00:00Z", NULL);
    }
}

static void check_value(const char *key, const char *value, const char *reason)
{
    struct error err = ERROR_INIT;
    int status = config_key_check(config_key_find(key), value, &err);
    assert_int_equal(status, reason == NULL ? STATUS_OK : STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, reason != NULL ? reason : "");
}

static void values_are_checked(void **state)
{
    check_value("cluster.offline_threshold", "10", NULL);
    check_value("cluster.offline_threshold", "9", "Value must be greater than '10'");
    check_value("cluster.offline_threshold", "x", "invalid integer");
    check_value("cluster.max_voters", "5", NULL);
    check_value("cluster.max_voters", "4", "Value must be an odd number equal to or higher than 3");
    check_value("cluster.max_voters", "1", "Value must be an odd number equal to or higher than 3");
    check_value("cluster.max_voters", "1025", "Value must not be greater than '1023'");
    check_value("cluster.offline_threshold", "99999999999", "Value must not be greater than '2147483647'");
    check_value("cluster.max_standby", "6", "Value must be between 0 and 5");
    check_value("cluster.max_standby", "-1", "Value must be between 0 and 5");
    check_value("cluster.images_minimal_replica", "-1", NULL);
    check_value("cluster.images_minimal_replica", "0", "Invalid value for image replica count");
    check_value("cluster.join_token_expiry", "5H30M", "Invalid expiry expression");
    check_value("images.auto_update_cached", "maybe", "invalid boolean");
    check_value("cluster.https_address", ":8443", "Wildcard addresses aren't allowed");
    check_value("core.https_address", ":8443", NULL);
    check_value("core.https_address", "", NULL);
    assert_null(config_key_find("no.such.key"));
    assert_null(config_key_find("user."));
    assert_non_null(config_key_find("user.anything"));
}

static void every_default_is_valid(void **state)
{
    for (size_t i = 0; i < config_key_count(); i++) {
        struct error err = ERROR_INIT;
        const struct config_key *key = config_key_at(i);
        assert_int_equal(config_key_check(key, key->fallback, &err), STATUS_OK);
        assert_ptr_equal(config_key_find(key->name), key);
        assert_true(i == 0 || strcmp(config_key_at(i - 1)->name, key->name) < 0);
    }
}

static int read_change(const char *json, struct config_change *change, struct error *err)
{
    struct arena arena;
    arena_init(&arena);
    Google__Protobuf__Struct *config = codec_struct_from_json(json, &arena, err);
    assert_non_null(config);
    int status = config_change_read(config, true, change, err);
    arena_clear(&arena);
    return status;
}

static void changes_are_sorted_by_scope(void **state)
{
    struct config_change change;
    struct error err = ERROR_INIT;
    assert_int_equal(read_change("{\"core.https_address\":\"10.0.0.1\",\"core.trust_password\":true,\"images.auto_update_cached\":false,\"user.a\":\"\",\"user.b\":null}",
                         &change, &err), STATUS_OK);
    assert_string_equal(json_string_value(json_object_get(change.local, "core.https_address")), "10.0.0.1:8443");
    assert_int_equal(json_array_size(change.keep), 1);
    assert_string_equal(json_string_value(json_object_get(change.global, "images.auto_update_cached")), "false");
    assert_string_equal(json_string_value(json_object_get(change.global, "user.a")), "");
    assert_string_equal(json_string_value(json_object_get(change.global, "user.b")), "");
    config_change_clear(&change);
}

static void booleans_have_one_spelling(void **state)
{
    static const char *const yes[] = {"true", "yes", "On", "1"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        struct config_change change;
        struct error err = ERROR_INIT;
        char text[64];
        snprintf(text, sizeof text, "{\"images.auto_update_cached\":\"%s\"}", yes[i]);
        assert_int_equal(read_change(text, &change, &err), STATUS_OK);
        assert_string_equal(json_string_value(json_object_get(change.global, "images.auto_update_cached")), "true");
        config_change_clear(&change);
    }
}

static void refusals_name_key_and_rule(void **state)
{
    static const struct {
        const char *json, *text;
    } cases[] = {
        {"{\"a.b\":\"c\"}", "cannot set 'a.b' to 'c': unknown key"},
        {"{\"cluster.max_voters\":3}", "cannot set 'cluster.max_voters': invalid type float64"},
        {"{\"cluster.max_voters\":true}", "cannot set 'cluster.max_voters': invalid type bool"},
        {"{\"user.x\":{}}", "cannot set 'user.x': invalid type map"},
        {"{\"user.x\":[]}", "cannot set 'user.x': invalid type slice"},
        {"{\"z.z\":\"1\",\"cluster.max_standby\":\"9\",\"b.b\":\"2\"}", "cannot set 'b.b' to '2': unknown key (and 2 more errors)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct config_change change;
        struct error err = ERROR_INIT;
        assert_int_equal(read_change(cases[i].json, &change, &err), STATUS_INVALID_ARGUMENT);
        assert_string_equal(err.text, cases[i].text);
        config_change_clear(&change);
    }
}

static void defaults_are_not_shown(void **state)
{
    json_t *global = json_pack("{s:s, s:s, s:s, s:s}", "cluster.max_voters", "3", "cluster.max_standby", "1", "core.trust_password", "scrypt$1$2", "user.a", "");
    json_t *local = json_pack("{s:s}", "core.https_address", ":8443");
    json_t *visible = server__visible_config(global, local);
    char *text = json_dumps(visible, JSON_COMPACT | JSON_SORT_KEYS);
    assert_string_equal(text, "{\"cluster.max_standby\":\"1\",\"core.https_address\":\":8443\",\"core.trust_password\":true}");
    free(text);
    json_decref(visible);
    json_decref(global);
    json_decref(local);
}

int main(void)
{
    registry_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_become_canonical), cmocka_unit_test(wildcards_cover_their_port), cmocka_unit_test(expiry_by_the_calendar),
        cmocka_unit_test(values_are_checked),         cmocka_unit_test(every_default_is_valid),     cmocka_unit_test(changes_are_sorted_by_scope),
        cmocka_unit_test(refusals_name_key_and_rule), cmocka_unit_test(defaults_are_not_shown),
        cmocka_unit_test(booleans_have_one_spelling),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
