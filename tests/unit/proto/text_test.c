/* Text helpers: what they accept, what they refuse, and that both directions agree. */
#include "proto/core/core.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void test_hex(void **state)
{
    uint8_t bytes[] = {0, 0x7f, 0xff, 0x1a}, back[4];
    char text[9];
    hex_encode(bytes, 4, text);
    assert_string_equal(text, "007fff1a");
    assert_int_equal(hex_decode("007FFF1a", back, 4), 0);
    assert_memory_equal(bytes, back, 4);
    assert_int_equal(hex_decode("007fff1", back, 4), -1);
    assert_int_equal(hex_decode("007fff1a00", back, 4), -1);
    assert_int_equal(hex_decode("007fff1g", back, 4), -1);
}

static void check_base64(const char *plain, const char *coded)
{
    size_t len = 99;
    char *text = base64_encode(plain, strlen(plain));
    assert_string_equal(text, coded);
    uint8_t *back = base64_decode(coded, &len);
    assert_non_null(back);
    assert_int_equal(len, strlen(plain));
    assert_memory_equal(back, plain, len);
    free(back);
    free(text);
}

static void test_base64(void **state)
{
    check_base64("", "");
    check_base64("f", "Zg==");
    check_base64("fo", "Zm8=");
    check_base64("foo", "Zm9v");
    check_base64("foobar", "Zm9vYmFy");
    size_t len;
    uint8_t *spaced = base64_decode(" Zm\n9v \r\n", &len);
    assert_non_null(spaced);
    assert_int_equal(len, 3);
    free(spaced);
    const char *bad[] = {"Z", "Zg=", "Zg", "Zg==Zg==", "Z===", "=Zg=", "Zm9*", "Zg=v"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_null(base64_decode(bad[i], &len));
}

static void test_utf8(void **state)
{
    const char *good[] = {"", "abc", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf"};
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++)
        assert_true(utf8_valid(good[i], strlen(good[i])));
    const char *bad[] = {"\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xe0\x80\x80", "\xed\xa0\x80", "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xe2\x82"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_false(utf8_valid(bad[i], strlen(bad[i])));
    assert_false(utf8_valid("a\0b", 3));
}

static void check_json(const char *text, const char *wanted)
{
    struct buf buf = {0};
    buf_json_string(&buf, text);
    assert_string_equal(buf.data, wanted);
    buf_free(&buf);
}

static void test_json_string(void **state)
{
    check_json("", "\"\"");
    check_json("a/b<c>&d", "\"a/b<c>&d\"");
    check_json("\"\\\n\r\t\b\f\x01\x1f", "\"\\\"\\\\\\n\\r\\t\\b\\f\\u0001\\u001f\"");
    check_json("gr\xc3\xbc\xc3\x9f", "\"gr\xc3\xbc\xc3\x9f\"");
    check_json("a\xff" "b", "\"a\xef\xbf\xbd" "b\"");
}

static void test_numbers(void **state)
{
    int64_t n;
    bool b;
    assert_int_equal(parse_i64("-42", -100, 100, &n), 0);
    assert_int_equal(n, -42);
    assert_int_equal(parse_i64("9223372036854775807", INT64_MIN, INT64_MAX, &n), 0);
    const char *bad[] = {"", " 1", "1 ", "1x", "0x1", "-", "9223372036854775808", "101", "--1"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_int_equal(parse_i64(bad[i], -100, strlen(bad[i]) > 10 ? INT64_MAX : 100, &n), -1);
    assert_int_equal(parse_bool("YES", &b), 0);
    assert_true(b);
    assert_int_equal(parse_bool("off", &b), 0);
    assert_false(b);
    assert_int_equal(parse_bool("2", &b), -1);
    assert_int_equal(parse_bool(NULL, &b), -1);
}

static void test_ids(void **state)
{
    char a[37], b[37], sum[65];
    uuid_new(a);
    uuid_new(b);
    assert_true(uuid_valid(a));
    assert_int_equal(a[14], '4');
    assert_string_not_equal(a, b);
    assert_false(uuid_valid("0123"));
    assert_false(uuid_valid("zzzzzzzz-zzzz-4zzz-8zzz-zzzzzzzzzzzz"));
    sha256_hex("abc", 3, sum);
    assert_string_equal(sum, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hex),  cmocka_unit_test(test_base64),  cmocka_unit_test(test_utf8), cmocka_unit_test(test_json_string),
        cmocka_unit_test(test_numbers), cmocka_unit_test(test_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
