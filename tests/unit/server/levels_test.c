/* Levels of members: who serves, waits, is behind or inconsistent, and how each is shown (spec/cluster.md 13). */
#include "server/cluster/levels.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

struct daemon *the_daemon;

enum { MEMBERS_MAX = 4, PENDING = 1, EVACUATED = 2 };

static Covey__Internal__V1__ViewMember members[MEMBERS_MAX];
static Covey__Internal__V1__ViewMember *pointers[MEMBERS_MAX];
static Covey__Internal__V1__View view;

static void set(size_t i, int64_t schema, int64_t api, int64_t schema_floor, int64_t api_floor)
{
    members[i].schema = schema;
    members[i].api_extensions = api;
    members[i].schema_floor = schema_floor;
    members[i].api_floor = api_floor;
}

static void make(size_t count)
{
    covey__internal__v1__view__init(&view);
    for (size_t i = 0; i < count; i++) {
        covey__internal__v1__view_member__init(&members[i]);
        members[i].id = i + 1;
        pointers[i] = &members[i];
        set(i, 1, 1, 1, 1);
    }
    view.members = pointers;
    view.n_members = count;
}

static enum level_verdict judge(size_t i)
{
    return level_judge(&view, members[i].id, level_claim_of(&members[i]));
}

static void order(void **state)
{
    assert_int_equal(level_compare((struct level){1, 1}, (struct level){1, 1}), LEVEL_EQUAL);
    assert_int_equal(level_compare((struct level){2, 1}, (struct level){1, 1}), LEVEL_HIGHER);
    assert_int_equal(level_compare((struct level){2, 2}, (struct level){1, 1}), LEVEL_HIGHER);
    assert_int_equal(level_compare((struct level){1, 1}, (struct level){1, 2}), LEVEL_LOWER);
    assert_int_equal(level_compare((struct level){2, 1}, (struct level){1, 2}), LEVEL_MIXED);
}

/* Every roll of three members over every order and every kind of change: the oldest serve at each point, an incompatible one waits until the last, and
 * then all serve. */
static void rolls(void **state)
{
    static const size_t orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (size_t o = 0; o < 6; o++) {
        for (int kind = 0; kind < 4; kind++) { /* bit 0: API instead of schema, bit 1: incompatible */
            make(3);
            view.schema = view.api_extensions = 1;
            for (size_t step = 0; step < 3; step++) {
                int64_t schema = kind & 1 ? 1 : 2, api = kind & 1 ? 2 : 1;
                bool incompatible = kind & 2;
                set(orders[o][step], schema, api, incompatible ? schema : 1, incompatible ? api : 1);
                for (size_t i = 0; i < 3; i++) {
                    bool newer = members[i].schema + members[i].api_extensions > 2, last = step == 2;
                    assert_int_equal(judge(i), newer && incompatible && !last ? LEVEL_WAIT : LEVEL_SERVE);
                    struct level_display show = level_show(&view, i + 1);
                    assert_int_equal(show.blocked, newer && incompatible && !last);
                    if (last) {
                        assert_null(show.message);
                    } else {
                        assert_string_equal(show.message, newer ? "LXD version is newer than other members" : "LXD version is older than other members");
                    }
                }
            }
        }
    }
}

static void gone_on(void **state)
{
    make(2);
    set(0, 2, 1, 2, 1);
    set(1, 2, 1, 2, 1);
    view.schema = 2;
    view.api_extensions = 1;
    const struct level_claim old = {{1, 1}, {1, 1}};
    assert_int_equal(level_judge(&view, 2, old), LEVEL_BEHIND);
    view.schema = 1; /* not reached together: it may come back */
    assert_int_equal(level_judge(&view, 2, old), LEVEL_SERVE);
}

static void mixed(void **state)
{
    make(3);
    set(0, 2, 1, 1, 1);
    const struct level_claim claim = {{1, 2}, {1, 2}};
    assert_int_equal(level_judge(&view, 2, claim), LEVEL_INCONSISTENT);
}

static void who_counts(void **state)
{
    make(2);
    set(0, 1, 2, 1, 2);
    members[1].state = PENDING;
    assert_int_equal(judge(0), LEVEL_SERVE);
    assert_null(level_show(&view, 1).message);
    members[1].state = EVACUATED;
    assert_int_equal(judge(0), LEVEL_WAIT);
    assert_true(level_show(&view, 1).blocked);
    assert_false(level_show(&view, 2).blocked);
    assert_null(level_show(&view, 9).message);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order), cmocka_unit_test(rolls), cmocka_unit_test(gone_on), cmocka_unit_test(mixed), cmocka_unit_test(who_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
