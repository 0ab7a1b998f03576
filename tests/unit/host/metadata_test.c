/* metadata.yaml of an image: what must be there, and keys that occur twice. */
#include "server/host/host_private.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static void good(const char *text, const char *architecture, int64_t created)
{
    struct host_image_info info = {0};
    struct error err = ERROR_INIT;
    if (metadata__parse(text, strlen(text), &info, &err) != STATUS_OK) {
        fail_msg("%s", err.text);
    }
    assert_string_equal(info.architecture, architecture);
    assert_int_equal(info.creation_date, created);
    host_image_info_free(&info);
}

static void bad(const char *text, const char *expected)
{
    struct host_image_info info = {0};
    struct error err = ERROR_INIT;
    assert_int_not_equal(metadata__parse(text, strlen(text), &info, &err), STATUS_OK);
    if (strstr(err.text, expected) == NULL) {
        fail_msg("\"%s\" lacks \"%s\"", err.text, expected);
    }
    host_image_info_free(&info);
}

static void required(void **state)
{
    good("architecture: amd64\ncreation_date: 5\n", "x86_64", 5);
    bad("creation_date: 5\n", "Missing architecture");
    bad("architecture: amd64\n", "Missing creation date");
    bad("architecture: amd64\ncreation_date: 0\n", "Missing creation date");
    bad("architecture: \"amd64\\0\"\ncreation_date: 5\n", "not UTF-8");
    bad("", "Missing architecture");
}

static void the_last_one_counts(void **state)
{
    good("architecture: i386\ncreation_date: 0\narchitecture: arm64\ncreation_date: 5\n", "aarch64", 5);
    bad("architecture: amd64\ncreation_date: 5\ncreation_date: 0\n", "Missing creation date");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(required), cmocka_unit_test(the_last_one_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
