/* Candidates and choice of a member (spec/placement.md 4). */
#include "server/daemon/daemon.h"
#include "server/instances/placement.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

struct daemon *the_daemon;

static struct placement_member member(uint64_t id, int64_t instances)
{
    return (struct placement_member){.id = id, .online = true, .project_may = true, .architecture = "x86_64", .instances = instances};
}

static void fewest_then_lower_id(void **state)
{
    struct placement_member list[] = {member(3, 2), member(2, 1), member(1, 1), member(4, 5)};
    assert_int_equal(placement_choose(list, 4, false, NULL), 1);
    list[2].instances = 2;
    assert_int_equal(placement_choose(list, 4, false, ""), 2);
    assert_int_equal(placement_choose(list, 0, false, NULL), 0);
}

static void who_is_no_candidate(void **state)
{
    struct placement_member list[] = {member(1, 0), member(2, 9)};
    list[0].online = false;
    assert_int_equal(placement_choose(list, 2, false, NULL), 2);
    list[0] = member(1, 0);
    for (int64_t s = 1; s <= 2; s++) {
        list[0].state = s;
        assert_int_equal(placement_choose(list, 2, false, NULL), 2);
    }
    list[0] = member(1, 0);
    list[0].project_may = false;
    assert_int_equal(placement_choose(list, 2, false, NULL), 2);
    list[1].online = false;
    assert_int_equal(placement_choose(list, 2, false, NULL), 0);
}

/* The table of spec/placement.md 4.3. */
static void scheduler_modes(void **state)
{
    static const struct {
        const char *mode;
        bool none, in_group, other_group;
    } table[] = {{"all", true, true, false}, {"", true, true, false}, {"group", false, true, false}, {"manual", false, false, false}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct placement_member one = member(7, 0);
        assert_int_equal(placement_mode_parse(table[i].mode, &one.mode), 0);
        assert_int_equal(placement_choose(&one, 1, false, NULL), table[i].none ? 7 : 0);
        assert_int_equal(placement_choose(&one, 1, true, NULL), table[i].other_group ? 7 : 0);
        one.in_group = true;
        assert_int_equal(placement_choose(&one, 1, true, NULL), table[i].in_group ? 7 : 0);
    }
    enum placement_mode mode;
    assert_int_equal(placement_mode_parse("none", &mode), -1);
    assert_int_equal(mode, PLACEMENT_MANUAL); /* an unknown word must not attract instances */
}

static void architectures(void **state)
{
    struct placement_member list[] = {member(1, 0), member(2, 3)};
    list[0].architecture = "aarch64";
    assert_int_equal(placement_choose(list, 2, false, "x86_64"), 2);
    assert_int_equal(placement_choose(list, 2, false, "i686"), 2);
    assert_int_equal(placement_choose(list, 2, false, "armv7l"), 1);
    assert_int_equal(placement_choose(list, 2, false, "s390x"), 0);
    assert_false(architecture_runs("i686", "x86_64"));
}

/* Twelve creations, each counted before the next: 4/4/4. */
static void creations_spread(void **state)
{
    struct placement_member list[] = {member(1, 0), member(2, 0), member(3, 0)};
    for (int i = 0; i < 12; i++) {
        uint64_t id = placement_choose(list, 3, false, "x86_64");
        assert_true(id >= 1 && id <= 3);
        list[id - 1].instances++;
    }
    for (int i = 0; i < 3; i++) {
        assert_int_equal(list[i].instances, 4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fewest_then_lower_id), cmocka_unit_test(who_is_no_candidate), cmocka_unit_test(scheduler_modes),
        cmocka_unit_test(architectures), cmocka_unit_test(creations_spread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
