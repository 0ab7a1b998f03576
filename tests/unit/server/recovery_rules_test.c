/* Rules of `cluster edit` in their order, and what a survey of survivors means. */
#include "server/recovery/recovery.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

struct daemon *the_daemon;

static const struct edit_member three[] = {{1, "n1", "10.0.0.1:8443", "voter"}, {2, "n2", "10.0.0.2:8443", "voter"}, {3, "", "10.0.0.3:8443", "spare"}};

static void refused(const struct edit_member *after, size_t count, const char *text)
{
    struct error err = ERROR_INIT;
    assert_int_equal(edit_check(three, 3, after, count, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, text);
}

static void edit_rules(void **state)
{
    struct edit_member after[4];
    struct error err = ERROR_INIT;
#define FRESH memcpy(after, three, sizeof three); after[3] = (struct edit_member){4, "n4", "10.0.0.4:8443", "spare"}
    FRESH;
    assert_int_equal(edit_check(three, 3, after, 3, &err), STATUS_OK);
    refused(after, 2, "Removing cluster members is not supported");
    refused(after, 4, "Adding cluster members is not supported");
    after[1].role = "king";
    refused(after, 2, "unknown raft role: \"king\"");
    FRESH;
    after[0].id = 2;
    refused(after, 3, "Changing cluster member ID is not supported");
    FRESH;
    after[0].name = "x";
    refused(after, 3, "Changing cluster member name is not supported");
    FRESH;
    after[0].name = ""; /* unknown on either side: ignored */
    after[2].name = "n3";
    assert_int_equal(edit_check(three, 3, after, 3, &err), STATUS_OK);
    after[2].role = "voter";
    refused(after, 3, "A \"spare\" cluster member cannot become a \"voter\"");
    FRESH;
    after[0].role = "stand-by";
    refused(after, 3, "Number of \"voter\" must be 2 or more");
    FRESH;
    after[0].address = after[1].address;
    refused(after, 3, "Two members have the address \"10.0.0.2:8443\"");
    FRESH;
    after[0].role = after[1].role = "spare";
    assert_int_equal(edit_check(three, 2, after, 2, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "At least one member must be a \"voter\"");
}

/* ---- surveys ---- */

enum { MEMBERS = 5 };
static Covey__Internal__V1__SurveyMember members[MEMBERS], *list[MEMBERS];
static Covey__Internal__V1__PositionResponse positions[MEMBERS];
static uint64_t voters[] = {1, 2, 3, 4, 5};
static Covey__Internal__V1__SurveyResponse survey;
static struct arena arena;

/* Five voters of epoch 7, of which the first `reachable` answer; all copies end at (3, 100). */
static void setup_survey(size_t reachable)
{
    static char *const names[] = {"n1", "n2", "n3", "n4", "n5"};
    covey__internal__v1__survey_response__init(&survey);
    for (size_t i = 0; i < MEMBERS; i++) {
        covey__internal__v1__survey_member__init(&members[i]);
        covey__internal__v1__position_response__init(&positions[i]);
        members[i].id = positions[i].id = i + 1;
        members[i].name = names[i];
        members[i].reachable = i < reachable;
        members[i].position = i < reachable ? &positions[i] : NULL;
        positions[i].epoch = 7;
        positions[i].last_term = 3;
        positions[i].last_index = positions[i].heard_commit = 100;
        positions[i].replica = true;
        positions[i].role = "voter";
        positions[i].voters = voters;
        positions[i].n_voters = MEMBERS;
        list[i] = &members[i];
    }
    survey.members = list;
    survey.n_members = MEMBERS;
    arena_clear(&arena);
}

static void survey_chooses(void **state)
{
    setup_survey(2);
    survey_judge(&survey, &arena);
    assert_int_equal(survey.chosen_id, 1); /* equal copies: the lower id */
    assert_string_equal(survey.refusal, "");
    assert_int_equal(survey.n_warnings, 1); /* three unheard voters are a majority */
    setup_survey(2);
    positions[1].last_index = 101;
    survey_judge(&survey, &arena);
    assert_int_equal(survey.chosen_id, 2);
    setup_survey(2);
    positions[0].last_term = 4; /* the term counts first */
    positions[0].last_index = 90;
    positions[0].heard_commit = positions[1].heard_commit = 90;
    survey_judge(&survey, &arena);
    assert_int_equal(survey.chosen_id, 1);
    setup_survey(2);
    positions[0].replica = false; /* a spare */
    survey_judge(&survey, &arena);
    assert_int_equal(survey.chosen_id, 2);
}

static void survey_refuses(void **state)
{
    setup_survey(0);
    survey_judge(&survey, &arena);
    assert_int_equal(survey.chosen_id, 0);
    assert_string_not_equal(survey.refusal, "");
    setup_survey(3); /* a majority: it elects a leader by itself */
    survey_judge(&survey, &arena);
    assert_string_not_equal(survey.refusal, "");
    assert_false(survey.refusal_by_loss);
    setup_survey(2);
    positions[1].leader_id = 5;
    survey_judge(&survey, &arena);
    assert_string_not_equal(survey.refusal, "");
    setup_survey(2);
    positions[1].heard_commit = 140; /* somebody had more */
    survey_judge(&survey, &arena);
    assert_string_not_equal(survey.refusal, "");
    assert_true(survey.refusal_by_loss);
}

static void survey_goes_on(void **state)
{
    setup_survey(2); /* 2 was promoted; 1 has not followed yet */
    positions[1].epoch = 8;
    positions[1].voters = &voters[1];
    positions[1].n_voters = 1;
    positions[0].last_index = 500; /* of the former epoch: means nothing */
    survey_judge(&survey, &arena);
    assert_int_equal(survey.chosen_id, 2);
    assert_true(survey.done);
    assert_string_equal(survey.refusal, "");
}

/* ---- epochs ---- */

static struct peer_position peers[MEMBERS];

/* Five other members of epoch 7 of cluster "c", all of which answer. */
static void setup_peers(void)
{
    setup_survey(MEMBERS);
    memset(peers, 0, sizeof peers);
    for (size_t i = 0; i < MEMBERS; i++) {
        positions[i].cluster_id = "c";
        peers[i].position = &positions[i];
    }
}

static struct epoch_finding judge(void)
{
    struct epoch_finding finding = {0};
    epoch_judge(&finding, 7, "c", peers, MEMBERS);
    return finding;
}

static void epochs_judged(void **state)
{
    setup_peers();
    struct epoch_finding finding = judge();
    assert_true(finding.newest == 0 && finding.leader == 0 && finding.silent == 0);
    positions[1].epoch = 8;
    positions[2].epoch = 9;
    positions[3].epoch = 6;
    positions[3].leader_id = 4; /* of a former epoch */
    assert_int_equal(judge().newest, 9);
    assert_int_equal(judge().leader, 0);
    positions[2].replica = false; /* has nothing to copy from */
    assert_int_equal(judge().newest, 8);
    positions[1].cluster_id = "other";
    assert_int_equal(judge().newest, 0);
    positions[4].leader_id = 5;
    assert_int_equal(judge().leader, 5);
}

static void epochs_of_silent_members(void **state)
{
    setup_peers();
    positions[0].epoch = 8;
    peers[0].position = NULL; /* refused the connection */
    struct epoch_finding finding = judge();
    assert_true(finding.newest == 0 && finding.silent == 0);
    peers[0].silent = true;
    finding = judge();
    assert_true(finding.newest == 0 && finding.silent == 1);
    peers[0].position = &positions[0]; /* answers the next question */
    peers[0].silent = false;
    epoch_judge(&finding, 7, "c", peers, MEMBERS);
    assert_true(finding.newest == 8 && finding.silent == 0);
    peers[0].position = NULL; /* what was said once is not forgotten */
    epoch_judge(&finding, 7, "c", peers, MEMBERS);
    assert_true(finding.newest == 8 && finding.silent == 0);
}

int main(void)
{
    arena_init(&arena);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(edit_rules), cmocka_unit_test(survey_chooses), cmocka_unit_test(survey_refuses), cmocka_unit_test(survey_goes_on),
        cmocka_unit_test(epochs_judged), cmocka_unit_test(epochs_of_silent_members),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_clear(&arena);
    return failed;
}
