/* Names, configuration keys and devices: the texts of spec/api.md 7.3, 7.13, 7.14. */
#include "server/daemon/daemon.h"
#include "server/instances/rules.h"
#include "server/instances/settings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

struct daemon *the_daemon;

static void names(void **state)
{
    static const struct {
        const char *name, *why;
    } bad[] = {{"", "Name must be 1-63 characters long"}, {"1a", "Name must not start with a number"}, {"-a", "Name must not start with \"-\" character"},
        {"a-", "Name must not end with \"-\" character"}, {"a_b", "Name can only contain alphanumeric and hyphen characters"},
        {"a b", "Name can only contain alphanumeric and hyphen characters"}, {"a/b", "The character \"/\" is reserved for snapshots"},
        {"..", "Name can only contain alphanumeric and hyphen characters"}, {"\xc3\xa4", "Name can only contain alphanumeric and hyphen characters"}};
    char text[128], name[66];
    struct error err = ERROR_INIT;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, "Invalid instance name: %s", bad[i].why);
        assert_int_equal(instance_name_check(bad[i].name, &err), STATUS_INVALID_ARGUMENT);
        assert_string_equal(err.text, text);
    }
    memset(name, 'a', sizeof name);
    name[64] = '\0';
    assert_int_equal(instance_name_check(name, &err), STATUS_INVALID_ARGUMENT);
    name[63] = '\0';
    assert_int_equal(instance_name_check(name, &err), STATUS_OK);
    assert_int_equal(instance_name_check("c1", &err), STATUS_OK);
}

static int check_one(const char *key, const char *value, bool profile, struct error *err)
{
    struct arena arena;
    struct settings config = {0};
    arena_init(&arena);
    settings_set(&config, key, value, &arena);
    int status = config_check(&config, profile, err);
    arena_clear(&arena);
    return status;
}

static void configuration(void **state)
{
    struct error err = ERROR_INIT;
    assert_int_equal(check_one("limits.cpu", "2", false, &err), STATUS_OK);
    assert_int_equal(check_one("limits.cpu", "0-3,5", false, &err), STATUS_OK);
    assert_int_equal(check_one("limits.memory", "256MiB", true, &err), STATUS_OK);
    assert_int_equal(check_one("limits.memory", "0", false, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(check_one("limits.cpu", "x", false, &err), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(err.text, "Invalid CPU limit syntax"));
    assert_int_equal(check_one("boot.autostart", "maybe", false, &err), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(err.text, "Invalid value for a boolean \"maybe\""));
    assert_int_equal(check_one("security.secureboot", "true", false, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "Unknown configuration key: security.secureboot");
    assert_int_equal(check_one("user.", "x", false, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(check_one("volatile.uuid", "x", false, &err), STATUS_OK);
    assert_int_equal(check_one("volatile.uuid", "x", true, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(check_one("image.os", "x", true, &err), STATUS_INVALID_ARGUMENT);
}

static void roots(void **state)
{
    struct arena arena;
    struct device_set devices = {0};
    struct error err = ERROR_INIT;
    arena_init(&arena);
    assert_int_equal(device_set_check(&devices, false, &err), STATUS_OK);
    assert_int_equal(device_set_check(&devices, true, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "Failed getting root disk: No root device could be found");
    struct device_settings *root = devices_add(&devices, "root", &arena);
    settings_set(&root->options, "type", "disk", &arena);
    settings_set(&root->options, "path", "/", &arena);
    assert_int_not_equal(device_set_check(&devices, true, &err), STATUS_OK);
    settings_set(&root->options, "pool", "local", &arena);
    assert_int_equal(device_set_check(&devices, true, &err), STATUS_OK);
    struct device_settings *other = devices_add(&devices, "other", &arena);
    settings_set(&other->options, "type", "disk", &arena);
    settings_set(&other->options, "path", "/", &arena);
    settings_set(&other->options, "pool", "local", &arena);
    assert_int_not_equal(device_set_check(&devices, true, &err), STATUS_OK);
    arena_clear(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(names), cmocka_unit_test(configuration), cmocka_unit_test(roots)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
