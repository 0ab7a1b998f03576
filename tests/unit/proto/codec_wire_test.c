/* What the wire may bring: broken, deep, huge and contradictory messages. */
#include "proto/rpc/codec.h"
#include "covey/v1/operation.pb-c.h"
#include "covey/v1/profile.pb-c.h"
#include "google/protobuf/struct.pb-c.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct arena arena;
static struct error err;

static int setup(void **state)
{
    arena_init(&arena);
    err = (struct error)ERROR_INIT;
    return 0;
}

static int teardown(void **state)
{
    arena_clear(&arena);
    return 0;
}

static ProtobufCMessage *unpack(const ProtobufCMessageDescriptor *descriptor, const void *data, size_t len)
{
    uint8_t *copy = xmalloc(len); /* of exactly this size, so that a sanitizer sees any read beyond */
    memcpy(copy, data, len);
    ProtobufCMessage *message = codec_unpack(descriptor, copy, len, &arena, &err);
    free(copy);
    return message;
}

static void expect_refusal(const ProtobufCMessageDescriptor *descriptor, const void *data, size_t len, const char *part)
{
    assert_null(unpack(descriptor, data, len));
    assert_int_equal(err.code, STATUS_INVALID_ARGUMENT);
    if (!strstr(err.text, part))
        fail_msg("\"%s\" does not say \"%s\"", err.text, part);
}

/* Field `tag` (one byte) with a payload. */
static void put(struct buf *out, int tag, const void *data, size_t len)
{
    char head[8] = {(char)tag};
    size_t n = 1, rest = len;
    for (; rest > 127; rest >>= 7)
        head[n++] = (char)(rest | 0x80);
    head[n++] = (char)rest;
    buf_add(out, head, n);
    buf_add(out, data, len);
}

static void wrap(struct buf *inner, int tag)
{
    struct buf outer = {0};
    put(&outer, tag, inner->data, inner->len);
    buf_free(inner);
    *inner = outer;
}

static void test_depth_bomb(void **state)
{
    struct buf bomb = {0};
    while (bomb.len < 46 * 1024) { /* Value.list_value = 6, ListValue.values = 1 */
        wrap(&bomb, 6 << 3 | 2);
        wrap(&bomb, 1 << 3 | 2);
    }
    expect_refusal(&google__protobuf__list_value__descriptor, bomb.data, bomb.len, "nested deeper than 32 levels");
    buf_free(&bomb);
    for (int depth = 31; depth <= 32; depth++) { /* the limit itself: the list and 31 below it */
        struct buf edge = {0};
        buf_add(&edge, "", 0);
        for (int i = depth; i >= 1; i--)
            wrap(&edge, i % 2 ? 1 << 3 | 2 : 6 << 3 | 2);
        assert_int_equal(unpack(&google__protobuf__list_value__descriptor, edge.data, edge.len) != NULL, depth == 31);
        buf_free(&edge);
    }
}

static void test_text(void **state)
{
    expect_refusal(&covey__v1__get_profile_request__descriptor, "\x0a\x02\xc3\x28", 4, "\"name\": text that is not valid UTF-8");
    expect_refusal(&covey__v1__get_profile_request__descriptor, "\x0a\x03" "a\0b", 5, "\"name\": text with a NUL byte");
    /* in a map's key */
    expect_refusal(&covey__v1__profile__descriptor, "\x0a\x04\x0a\x02\xff\xff", 6, "not valid UTF-8");
    Covey__V1__GetProfileRequest *good = (void *)unpack(&covey__v1__get_profile_request__descriptor, "\x0a\x02\xc3\xa9", 4);
    assert_non_null(good);
    assert_string_equal(good->name, "\xc3\xa9");
    assert_non_null(codec_unpack(&covey__v1__get_profile_request__descriptor, NULL, 0, &arena, &err));
}

static void test_malformed(void **state)
{
    static const struct {
        const char *data;
        size_t len;
    } bad[] = {
        {"\x0a", 1}, {"\x0a\x05" "ab", 4}, {"\x02\x00", 2}, {"\x0b", 1}, {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11},
        {"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11}, {"\x09" "1234567", 8}, {"\x0d" "123", 4}, {"\xff\xff\xff\xff\xff\x01", 6},
        {"\x08\x01", 2}, /* a string field as a number */
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        expect_refusal(&covey__v1__get_profile_request__descriptor, bad[i].data, bad[i].len, "malformed message covey.v1.GetProfileRequest");
}

static void test_duplicate_keys(void **state)
{
    struct buf data = {0};
    const char *entries[] = {"a1", "b2", "a3", "c4", "b5"};
    for (size_t i = 0; i < 5; i++) {
        char entry[6] = {0x0a, 1, entries[i][0], 0x12, 1, entries[i][1]};
        put(&data, 1 << 3 | 2, entry, 6);
    }
    Covey__V1__Profile *profile = (void *)unpack(&covey__v1__profile__descriptor, data.data, data.len);
    assert_non_null(profile);
    assert_int_equal(profile->n_config, 3);
    const char *wanted[] = {"a3", "c4", "b5"};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(profile->config[i]->key[0], wanted[i][0]);
        assert_int_equal(profile->config[i]->value[0], wanted[i][1]);
    }
    buf_free(&data);
}

static void test_empty_entries(void **state)
{
    /* devices = {"": {}} as an entry without any byte, and one with a key only */
    Covey__V1__Profile *profile = (void *)unpack(&covey__v1__profile__descriptor, "\x1a\x00\x1a\x03\x0a\x01x", 7);
    assert_non_null(profile);
    assert_int_equal(profile->n_devices, 2);
    assert_string_equal(profile->devices[0]->key, "");
    assert_non_null(profile->devices[0]->value);
    assert_non_null(profile->devices[1]->value);
    struct buf out = {0};
    codec_to_json(&profile->base, &out);
    assert_non_null(strstr(out.data, "\"devices\":{\"\":{},\"x\":{}}"));
    buf_free(&out);

    /* resources = {"x": null}: a list keeps the difference between absent and empty */
    Covey__V1__Operation *operation = (void *)unpack(&covey__v1__operation__descriptor, "\x42\x03\x0a\x01x", 5);
    assert_non_null(operation);
    assert_int_equal(operation->n_resources, 1);
    assert_null(operation->resources[0]->value);
    codec_to_json(&operation->base, &out);
    assert_non_null(strstr(out.data, "\"resources\":{\"x\":null}"));
    buf_free(&out);
}

static void test_limits(void **state)
{
    uint8_t *huge = xcalloc(1, CODEC_MESSAGE_MAX + 1);
    assert_null(codec_unpack(&covey__v1__profile__descriptor, huge, CODEC_MESSAGE_MAX + 1, &arena, &err));
    assert_non_null(strstr(err.text, "larger than"));
    for (size_t i = 0; i + 1 < CODEC_MESSAGE_MAX; i += 2) /* eight million empty profiles: a small message, much memory */
        huge[i] = 2 << 3 | 2;
    assert_null(codec_unpack(&covey__v1__list_profiles_response__descriptor, huge, CODEC_MESSAGE_MAX, &arena, &err));
    assert_non_null(strstr(err.text, "needs more than"));
    assert_int_equal(arena.bytes, 0); /* refused before anything was made */
    free(huge);
    /* Value{list_value:{} list_value:{}}: merging again and again */
    expect_refusal(&google__protobuf__value__descriptor, "\x32\x00\x32\x00", 4, "given twice");
}

/* Nothing that random bytes or bit flips bring may crash; run it under sanitizers. */
static void test_random(void **state)
{
    Google__Protobuf__Struct *value =
        codec_struct_from_json("{\"a\":[1,2.5,\"x\",true,null,{\"b\":{}}],\"c\":{\"d\":\"text\"},\"e\":{\"f\":[[[]]]}}", &arena, &err);
    assert_non_null(value);
    uint8_t packed[512], changed[512];
    size_t len = protobuf_c_message_pack(&value->base, packed);
    unsigned seed = 1, accepted = 0;
    for (int round = 0; round < 20000; round++) {
        memcpy(changed, packed, len);
        for (int flips = 1 + rand_r(&seed) % 4; flips; flips--)
            changed[(size_t)rand_r(&seed) % len] = (uint8_t)rand_r(&seed);
        struct arena own;
        arena_init(&own);
        ProtobufCMessage *message = codec_unpack(&google__protobuf__struct__descriptor, changed, len - (size_t)rand_r(&seed) % 3, &own, &err);
        if (message) {
            struct buf out = {0};
            codec_to_json(message, &out);
            json_t *json = json_loads(out.data, JSON_REJECT_DUPLICATES, NULL);
            assert_non_null(json);
            json_decref(json);
            buf_free(&out);
            accepted++;
        }
        arena_clear(&own);
    }
    assert_true(accepted > 100 && accepted < 20000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    registry_init();
    const struct CMUnitTest tests[] = {TEST(test_depth_bomb),    TEST(test_text),   TEST(test_malformed), TEST(test_duplicate_keys),
                                       TEST(test_empty_entries), TEST(test_limits), TEST(test_random)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
