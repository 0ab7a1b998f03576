/* Who gets which event. */
#include "server/events/events_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static bool gets(const struct event_filter *filter, const char *type, const char *project, const char *metadata)
{
    struct arena arena;
    struct error err = ERROR_INIT;
    arena_init(&arena);
    Covey__V1__Event event = COVEY__V1__EVENT__INIT;
    event.type = (char *)type;
    event.project = (char *)project;
    event.metadata = codec_struct_from_json(metadata, &arena, &err);
    bool match = event_matches(filter, &event);
    arena_clear(&arena);
    return match;
}

static void types_are_parsed(void **state)
{
    unsigned types = 0;
    struct error err = ERROR_INIT;
    assert_int_equal(event_types_parse("", &types, &err), STATUS_OK);
    assert_int_equal(types, EVENT_ALL);
    assert_int_equal(event_types_parse("operation,lifecycle", &types, &err), STATUS_OK);
    assert_int_equal(types, EVENT_OPERATION | EVENT_LIFECYCLE);
    assert_int_equal(event_types_parse("operation,foo", &types, &err), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(err.text, "foo"));
}

static void a_project_gets_its_own_and_common_ones(void **state)
{
    struct event_filter filter = {.types = EVENT_ALL, .admin = true, .project = "p"};
    assert_true(gets(&filter, "lifecycle", "p", "{}"));
    assert_true(gets(&filter, "lifecycle", "", "{}"));
    assert_false(gets(&filter, "lifecycle", "q", "{}"));
    filter.all_projects = true;
    assert_true(gets(&filter, "lifecycle", "q", "{}"));
    filter.types = EVENT_OPERATION;
    assert_false(gets(&filter, "lifecycle", "q", "{}"));
    assert_false(gets(&filter, "", "q", "{}"));
}

static void restricted_callers_see_no_secrets(void **state)
{
    char *projects[] = {(char *)"p", NULL};
    struct event_filter filter = {.types = EVENT_ALL, .all_projects = true, .project = "p", .projects = projects};
    assert_true(gets(&filter, "operation", "p", "{\"class\":\"task\"}"));
    assert_false(gets(&filter, "operation", "p", "{\"class\":\"token\",\"metadata\":{\"secret\":\"x\"}}"));
    assert_false(gets(&filter, "operation", "", "{\"class\":\"task\"}"));
    assert_false(gets(&filter, "lifecycle", "q", "{}"));
    assert_false(gets(&filter, "logging", "p", "{}"));
    filter.admin = true;
    filter.projects = NULL;
    assert_true(gets(&filter, "operation", "p", "{\"class\":\"token\"}"));
    assert_true(gets(&filter, "logging", "", "{}"));
}

int main(void)
{
    registry_init();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_are_parsed),
        cmocka_unit_test(a_project_gets_its_own_and_common_ones),
        cmocka_unit_test(restricted_callers_see_no_secrets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
