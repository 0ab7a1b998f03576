/* Settings in memory: sorted sets, expansion by profiles, removal by empty values. */
#include "server/daemon/daemon.h"
#include "server/instances/settings.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

struct daemon *the_daemon;

static void sorted_and_unique(void **state)
{
    struct arena arena;
    struct settings s = {0};
    arena_init(&arena);
    for (int i = 99; i >= 0; i--) {
        settings_set(&s, arena_printf(&arena, "user.%02d", i), "a", &arena);
    }
    settings_set(&s, "user.50", "b", &arena);
    assert_int_equal(s.count, 100);
    for (size_t i = 1; i < s.count; i++) {
        assert_true(strcmp(s.items[i - 1].key, s.items[i].key) < 0);
    }
    assert_string_equal(settings_get(&s, "user.50"), "b");
    settings_set(&s, "user.50", "", &arena);
    settings_set(&s, "user.51", NULL, &arena);
    settings_set(&s, "user.absent", "", &arena);
    assert_int_equal(s.count, 98);
    assert_null(settings_get(&s, "user.50"));
    arena_clear(&arena);
}

static void device(struct spec *spec, const char *name, const char *type, const char *path, struct arena *arena)
{
    struct device_settings *one = devices_add(&spec->devices, name, arena);
    memset(&one->options, 0, sizeof one->options);
    settings_set(&one->options, "type", type, arena);
    settings_set(&one->options, "path", path, arena);
}

/* Later wins; configuration key by key, devices whole; type none hides. */
static void expansion(void **state)
{
    struct arena arena;
    struct spec first = {0}, second = {0}, own = {0}, all = {0};
    arena_init(&arena);
    settings_set(&first.config, "limits.cpu", "1", &arena);
    settings_set(&first.config, "user.a", "first", &arena);
    device(&first, "root", "disk", "/", &arena);
    device(&first, "eth0", "nic", NULL, &arena);
    settings_set(&devices_find(&first.devices, "root")->options, "size", "1GiB", &arena);
    settings_set(&second.config, "user.a", "second", &arena);
    device(&second, "root", "disk", "/", &arena);
    settings_set(&own.config, "limits.cpu", "4", &arena);
    device(&own, "eth0", "none", NULL, &arena);
    spec_overlay(&all, &first, &arena);
    spec_overlay(&all, &second, &arena);
    spec_overlay(&all, &own, &arena);
    spec_finish_expansion(&all);
    assert_string_equal(settings_get(&all.config, "limits.cpu"), "4");
    assert_string_equal(settings_get(&all.config, "user.a"), "second");
    assert_int_equal(all.devices.count, 1);
    assert_null(settings_get(&all.devices.items[0].options, "size"));
    assert_string_equal(settings_get(&first.config, "limits.cpu"), "1"); /* the profile itself is as it was */
    arena_clear(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sorted_and_unique), cmocka_unit_test(expansion)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
