/* Arenas, buffers and the error value. */
#include "proto/core/core.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void test_arena(void **state)
{
    struct arena arena;
    arena_init(&arena);
    for (size_t size = 0; size < 20000; size = size * 2 + 1) {
        unsigned char *p = arena_alloc(&arena, size);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < size; i++)
            assert_int_equal(p[i], 0);
        memset(p, 0xee, size);
    }
    assert_true(arena.bytes > 30000);
    assert_string_equal(arena_strndup(&arena, "abcdef", 3), "abc");
    assert_null(arena_strdup(&arena, NULL));
    assert_string_equal(arena_printf(&arena, "%d-%s", 7, "x"), "7-x");
    void *p = arena.allocator.alloc(arena.allocator.allocator_data, 10);
    assert_non_null(p);
    arena.allocator.free(arena.allocator.allocator_data, p);
    arena_clear(&arena);
    assert_int_equal(arena.bytes, 0);
    assert_non_null(arena_alloc(&arena, 1));
    arena_clear(&arena);
}

static void test_buf(void **state)
{
    struct buf buf = {0};
    for (int i = 0; i < 1000; i++)
        buf_printf(&buf, "%d,", i);
    assert_int_equal(buf.len, strlen(buf.data));
    assert_true(str_prefix(buf.data, "0,1,2,"));
    char *text = buf_take(&buf);
    assert_string_equal(text + strlen(text) - 4, "999,");
    free(text);
    text = buf_take(&buf);
    assert_string_equal(text, "");
    free(text);
}

static void test_error(void **state)
{
    struct error err = ERROR_INIT;
    assert_int_equal(error_set(&err, STATUS_NOT_FOUND, "Profile %s", "x"), STATUS_NOT_FOUND);
    assert_int_equal(error_prefix(&err, "Fetch %d", 1), STATUS_NOT_FOUND);
    assert_string_equal(err.text, "Fetch 1: Profile x");
    assert_int_equal(error_set(&err, STATUS_ABORTED, "again: %s", err.text), STATUS_ABORTED); /* its own text as argument */
    assert_string_equal(err.text, "again: Fetch 1: Profile x");
    assert_int_equal(error_not_leader(&err, 7), STATUS_UNAVAILABLE);
    assert_true(err.not_leader);
    assert_int_equal(err.leader, 7);
    assert_int_equal(error_set(NULL, STATUS_INTERNAL, "x"), STATUS_INTERNAL);
    assert_false(error_set(&err, STATUS_OK, "%s", "") || err.not_leader);
    char longer[3000];
    memset(longer, 'a', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = 0;
    error_set(&err, STATUS_INTERNAL, "%s", longer);
    error_prefix(&err, "%s", longer);
    assert_int_equal(strlen(err.text), ERROR_TEXT_MAX - 1);
    assert_int_equal(error_errno(&err, 2, "open %s", "f"), STATUS_NOT_FOUND);
    assert_string_equal(err.text, "open f: No such file or directory");
    assert_string_equal(status_name(STATUS_DATA_LOSS), "DATA_LOSS");
    assert_string_equal(status_name((enum status)99), "UNKNOWN");
    assert_int_equal(status_http(STATUS_ABORTED), 412);
    assert_int_equal(status_http(STATUS_CANCELLED), 503);
    assert_int_equal(status_http(STATUS_UNAUTHENTICATED), 403);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_arena), cmocka_unit_test(test_buf), cmocka_unit_test(test_error)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
