/* The role planner over every state of up to seven members, and the table of spec/cluster.md 5.2 while a cluster grows. */
#include "server/cluster/cluster.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
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

static unsigned present(const struct role_member *members, size_t n)
{
    unsigned found = 0;
    for (size_t i = 0; i < n; i++) {
        found += members[i].online;
    }
    return found;
}

static bool has_quorum(const struct role_member *members, size_t n)
{
    return count(members, n, ROLE_VOTER, 1) > count(members, n, ROLE_VOTER, -1) / 2;
}

static unsigned voter_domains(const struct role_member *members, size_t n)
{
    unsigned found = 0;
    for (size_t i = 0; i < n; i++) {
        bool first = members[i].role == ROLE_VOTER && members[i].online;
        for (size_t j = 0; j < i && first; j++) {
            first = members[j].role != ROLE_VOTER || !members[j].online || members[j].domain != members[i].domain;
        }
        found += first;
    }
    return found;
}

/* Runs the planner to its end and checks each step. */
static void settle(struct role_member *members, size_t n, unsigned voters, unsigned standbys)
{
    unsigned steps = 0;
    for (;; steps++) {
        struct role_change change = roles_plan(members, n, voters, standbys);
        bool quorum = has_quorum(members, n);
        if (change.id == 0) {
            break;
        }
        assert_true(steps < STEPS_MAX);
        for (size_t i = 0; i < n; i++) {
            if (members[i].id == change.id) {
                assert_false(members[i].leader && change.role != ROLE_VOTER); /* the leader keeps its vote */
                assert_true(members[i].role != change.role);
                assert_true(members[i].ready || change.role > members[i].role); /* nobody absent is promoted */
            }
        }
        apply(members, n, change);
        assert_true(count(members, n, ROLE_VOTER, 1) >= 1);
        assert_true(!quorum || has_quorum(members, n)); /* no step takes the majority away */
    }
}

static struct role_member leader_of(int64_t domain)
{
    return (struct role_member){.id = 1, .role = ROLE_VOTER, .online = true, .ready = true, .leader = true, .domain = domain};
}

static void growing(void **state)
{
    static const unsigned want[MEMBERS_MAX + 1][3] = {{0}, {1, 0, 0}, {1, 1, 0}, {3, 0, 0}, {3, 1, 0}, {3, 2, 0}, {3, 2, 1}, {3, 2, 2}};
    struct role_member members[MEMBERS_MAX] = {leader_of(0)};
    for (size_t n = 1; n <= MEMBERS_MAX; n++) {
        members[n - 1] = n == 1 ? members[0] : (struct role_member){.id = n, .role = ROLE_SPARE, .online = true, .ready = true};
        settle(members, n, 3, 2);
        assert_int_equal(count(members, n, ROLE_VOTER, -1), want[n][0]);
        assert_int_equal(count(members, n, ROLE_STANDBY, -1), want[n][1]);
        assert_int_equal(count(members, n, ROLE_SPARE, -1), want[n][2]);
        for (size_t i = 0; i < n && n > 2; i++) { /* the lower ids have the higher roles */
            assert_int_equal(members[i].role, i < want[n][0] ? ROLE_VOTER : i < want[n][0] + want[n][1] ? ROLE_STANDBY : ROLE_SPARE);
        }
    }
}

static unsigned at_most(unsigned value, unsigned limit)
{
    return value < limit ? value : limit;
}

/* The end of a state in which everybody present can take a role. */
static void check_end(const struct role_member *members, size_t n, unsigned max_voters, unsigned max_standby)
{
    unsigned online = present(members, n), voters = at_most(online, max_voters);
    if (n == 2) {
        assert_true(members[1].role != ROLE_VOTER);
        assert_true(!members[1].online || (members[1].role == ROLE_STANDBY) == (max_standby > 0));
    }
    if (n < 3) {
        return;
    }
    assert_int_equal(count(members, n, ROLE_VOTER, 1), voters);
    if (voters == max_voters || count(members, n, ROLE_VOTER, 0) == 0) {
        assert_int_equal(count(members, n, ROLE_VOTER, 0), 0); /* every absent voter was replaced */
        assert_int_equal(count(members, n, ROLE_STANDBY, 1), at_most(online - voters, max_standby));
        assert_true(online - voters < max_standby || count(members, n, ROLE_STANDBY, 0) == 0);
    }
    if (voters == max_voters) { /* as many domains as can be: none is without a voter while another one has two */
        unsigned domains = 0;
        for (int64_t domain = 0; domain < MEMBERS_MAX; domain++) {
            bool there = false;
            for (size_t i = 0; i < n; i++) {
                there = there || (members[i].online && members[i].domain == domain);
            }
            domains += there;
        }
        assert_int_equal(voter_domains(members, n), at_most(domains, voters));
    }
}

static void every_state(void **state)
{
    static const int64_t domains[][MEMBERS_MAX] = {{0}, {0, 1, 2, 0, 1, 2, 0}, {0, 0, 0, 1, 1, 2, 3}};
    for (size_t n = 1; n <= MEMBERS_MAX; n++) {
        unsigned long states = 1;
        for (size_t i = 1; i < n; i++) {
            states *= 6;
        }
        for (unsigned long code = 0; code < states * 3 * 3 * 6; code++) {
            const int64_t *domain = domains[code / states % 3];
            unsigned max_voters = 3 + 2 * (unsigned)(code / states / 3 % 3), max_standby = (unsigned)(code / states / 9);
            struct role_member members[MEMBERS_MAX] = {leader_of(domain[0])};
            unsigned long rest = code % states;
            for (size_t i = 1; i < n; i++, rest /= 6) {
                bool online = rest % 6 >= 3;
                members[i] = (struct role_member){.id = i + 1, .role = (enum member_role)(rest % 3), .online = online, .ready = online, .domain = domain[i]};
            }
            settle(members, n, max_voters, max_standby);
            check_end(members, n, max_voters, max_standby);
        }
    }
}

/* With members that are not missed yet but cannot take a role now: nobody of them is promoted (settle), nothing loops, and they lose nothing. */
static void every_state_with_the_unready(void **state)
{
    for (size_t n = 1; n <= MEMBERS_MAX; n++) {
        unsigned long states = 1;
        for (size_t i = 1; i < n; i++) {
            states *= 9;
        }
        for (unsigned long code = 0; code < states; code++) {
            struct role_member members[MEMBERS_MAX] = {leader_of(0)}, before[MEMBERS_MAX];
            unsigned long rest = code;
            for (size_t i = 1; i < n; i++, rest /= 9) {
                unsigned there = rest % 9 / 3;
                members[i] = (struct role_member){.id = i + 1, .role = (enum member_role)(rest % 3), .online = there > 0, .ready = there > 1, .domain = (int64_t)(i % 3)};
            }
            memcpy(before, members, sizeof before);
            settle(members, n, 3, 2);
            for (size_t i = 1; i < n && n > 2 && count(before, n, ROLE_VOTER, 1) <= 3; i++) {
                bool even = voter_domains(before, n) < voter_domains(members, n);
                assert_true(before[i].role != ROLE_VOTER || !before[i].online || members[i].role == ROLE_VOTER || even);
            }
        }
    }
}

static void shrunk_to_two(void **state)
{
    struct role_member members[2] = {leader_of(0), {.id = 3, .role = ROLE_VOTER, .online = true, .ready = true}};
    settle(members, 2, 3, 2);
    assert_int_equal(members[1].role, ROLE_STANDBY);
    members[1].role = ROLE_SPARE;
    settle(members, 2, 3, 2);
    assert_int_equal(members[1].role, ROLE_STANDBY);
    assert_int_equal(roles_plan(members, 1, 3, 2).id, 0);
}

static void limits_lowered(void **state)
{
    struct role_member members[7] = {leader_of(0)};
    for (size_t i = 1; i < 7; i++) {
        members[i] = (struct role_member){.id = i + 1, .role = ROLE_SPARE, .online = true, .ready = true};
    }
    settle(members, 7, 7, 0);
    assert_int_equal(count(members, 7, ROLE_VOTER, 1), 7);
    members[1].online = members[2].online = members[3].online = members[1].ready = members[2].ready = members[3].ready = false;
    settle(members, 7, 3, 2); /* the absent go first: at no step may four of seven become three of six (checked by settle) */
    assert_int_equal(count(members, 7, ROLE_VOTER, -1), 3);
    assert_int_equal(members[6].role, ROLE_STANDBY); /* the highest id went */
    settle(members, 7, 3, 0);
    assert_int_equal(count(members, 7, ROLE_STANDBY, -1), 0);
}

static void domains_come_first(void **state)
{
    struct role_member members[4] = {leader_of(1), {.id = 2, .role = ROLE_STANDBY, .online = true, .ready = true, .domain = 1},
        {.id = 3, .role = ROLE_SPARE, .online = true, .ready = true, .domain = 2}, {.id = 4, .role = ROLE_SPARE, .online = true, .ready = true, .domain = 3}};
    struct role_change change = roles_plan(members, 4, 3, 2);
    assert_int_equal(change.id, 3);
    assert_int_equal(change.role, ROLE_VOTER);
    members[2].ready = false; /* cannot take it now: the next domain */
    assert_int_equal(roles_plan(members, 4, 3, 2).id, 4);
}

/* spec/placement.md 10: six members in three domains; the one of the leaver's domain follows it. */
static void successor_of_the_same_domain(void **state)
{
    struct role_member members[6];
    for (size_t i = 0; i < 6; i++) {
        members[i] = (struct role_member){.id = i + 1, .online = true, .ready = true, .leader = i == 0, .domain = (int64_t)(i % 3 + 1),
            .role = i < 3 ? ROLE_VOTER : i < 5 ? ROLE_STANDBY : ROLE_SPARE};
    }
    members[1].online = members[1].ready = false;
    struct role_change change = roles_plan(members, 6, 3, 2);
    assert_int_equal(change.id, 5);
    assert_int_equal(change.role, ROLE_VOTER);
    apply(members, 6, change);
    change = roles_plan(members, 6, 3, 2);
    assert_int_equal(change.id, 2);
    assert_int_equal(change.role, ROLE_SPARE);
    members[2].online = members[2].ready = false; /* the domain outranks stand-by before spare */
    apply(members, 6, change);
    assert_int_equal(roles_plan(members, 6, 3, 2).id, 6);
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(growing), cmocka_unit_test(every_state), cmocka_unit_test(every_state_with_the_unready), cmocka_unit_test(shrunk_to_two),
        cmocka_unit_test(limits_lowered), cmocka_unit_test(domains_come_first), cmocka_unit_test(successor_of_the_same_domain), cmocka_unit_test(names), cmocka_unit_test(durations)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
