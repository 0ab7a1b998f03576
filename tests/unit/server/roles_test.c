/* The role planner over every state of up to seven members, and the table of spec/cluster.md 5.2 while a cluster grows. */
#include "server/cluster/cluster.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

struct daemon *the_daemon;

enum { MEMBERS_MAX = 7, STEPS_MAX = 32 };

static void apply(struct role_member *members, size_t count, struct role_change change)
{
    for (size_t i = 0; i < count; i++) {
        if (members[i].id == change.id) {
            members[i].role = change.role;
        }
    }
}

static unsigned count(const struct role_member *members, size_t n, enum member_role role, int online)
{
    unsigned found = 0;
    for (size_t i = 0; i < n; i++) {
        found += members[i].role == role && (online < 0 || members[i].online == (online == 1));
    }
    return found;
}

/* Runs the planner to its end and checks each step. */
static void settle(struct role_member *members, size_t n, unsigned voters, unsigned standbys)
{
    unsigned steps = 0;
    for (;; steps++) {
        struct role_change change = roles_plan(members, n, voters, standbys);
        if (change.id == 0) {
            break;
        }
        assert_true(steps < STEPS_MAX);
        for (size_t i = 0; i < n; i++) {
            if (members[i].id == change.id) {
                assert_false(members[i].leader && change.role != ROLE_VOTER); /* the leader keeps its vote */
                assert_true(members[i].role != change.role);
                assert_true(members[i].online || change.role == ROLE_SPARE); /* nobody absent is promoted */
            }
        }
        apply(members, n, change);
        assert_true(count(members, n, ROLE_VOTER, 1) >= 1);
    }
}

static void growing(void **state)
{
    static const unsigned want[MEMBERS_MAX + 1][3] = {{0}, {1, 0, 0}, {1, 1, 0}, {3, 0, 0}, {3, 1, 0}, {3, 2, 0}, {3, 2, 1}, {3, 2, 2}};
    struct role_member members[MEMBERS_MAX] = {{.id = 1, .role = ROLE_VOTER, .online = true, .leader = true}};
    for (size_t n = 1; n <= MEMBERS_MAX; n++) {
        members[n - 1] = n == 1 ? members[0] : (struct role_member){.id = n, .role = ROLE_SPARE, .online = true};
        settle(members, n, 3, 2);
        assert_int_equal(count(members, n, ROLE_VOTER, -1), want[n][0]);
        assert_int_equal(count(members, n, ROLE_STANDBY, -1), want[n][1]);
        assert_int_equal(count(members, n, ROLE_SPARE, -1), want[n][2]);
    }
}

static void every_state(void **state)
{
    for (size_t n = 1; n <= MEMBERS_MAX; n++) {
        unsigned long states = 1;
        for (size_t i = 1; i < n; i++) {
            states *= 6;
        }
        for (unsigned long code = 0; code < states; code++) {
            struct role_member members[MEMBERS_MAX] = {{.id = 1, .role = ROLE_VOTER, .online = true, .leader = true}};
            unsigned long rest = code;
            for (size_t i = 1; i < n; i++, rest /= 6) {
                members[i] = (struct role_member){.id = i + 1, .role = (enum member_role)(rest % 3), .online = rest % 6 >= 3, .domain = (int64_t)(i % 3)};
            }
            settle(members, n, 3, 2);
            unsigned online = 0;
            for (size_t i = 0; i < n; i++) {
                online += members[i].online;
            }
            if (n >= 3) {
                assert_int_equal(count(members, n, ROLE_VOTER, 1), online < 3 ? online : 3);
                if (online >= 3) {
                    assert_int_equal(count(members, n, ROLE_VOTER, 0), 0); /* every absent voter was replaced */
                }
            }
        }
    }
}

static void shrunk_to_two(void **state)
{
    struct role_member members[2] = {{.id = 1, .role = ROLE_VOTER, .online = true, .leader = true}, {.id = 3, .role = ROLE_VOTER, .online = true}};
    settle(members, 2, 3, 2);
    assert_int_equal(members[1].role, ROLE_STANDBY);
}

static void domains_come_first(void **state)
{
    struct role_member members[4] = {{.id = 1, .role = ROLE_VOTER, .online = true, .leader = true, .domain = 1}, {.id = 2, .role = ROLE_STANDBY, .online = true, .domain = 1},
        {.id = 3, .role = ROLE_SPARE, .online = true, .domain = 2}, {.id = 4, .role = ROLE_SPARE, .online = true, .domain = 3}};
    struct role_change change = roles_plan(members, 4, 3, 2);
    assert_int_equal(change.id, 3);
    assert_int_equal(change.role, ROLE_VOTER);
}

static void names(void **state)
{
    struct error err = ERROR_INIT;
    static const char *const good[] = {"node1", "a", "n_1.x-y"};
    static const char *const bad[] = {"", "none", "@x", "-x", ".x", "a b", "a/b", "a@b", "\xc3\xa9", "0123456789012345678901234567890123456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_int_equal(member_name_check(good[i], &err), STATUS_OK);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(member_name_check(bad[i], &err), STATUS_INVALID_ARGUMENT);
        assert_true(str_prefix(err.text, "Invalid cluster member name: "));
    }
}

static void durations(void **state)
{
    char text[64];
    duration_text(20746432787, text, sizeof text);
    assert_string_equal(text, "20.746432787s");
    duration_text(110442323466, text, sizeof text);
    assert_string_equal(text, "1m50.442323466s");
    duration_text(3723500000000, text, sizeof text);
    assert_string_equal(text, "1h2m3.5s");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(growing), cmocka_unit_test(every_state), cmocka_unit_test(shrunk_to_two), cmocka_unit_test(domains_come_first),
        cmocka_unit_test(names), cmocka_unit_test(durations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
