/* JSON both ways and fields by name, on messages of the contract. */
#include "proto/rpc/codec.h"
#include "covey/v1/event.pb-c.h"
#include "covey/v1/instance.pb-c.h"
#include "covey/v1/operation.pb-c.h"
#include "covey/v1/profile.pb-c.h"
#include "google/protobuf/descriptor.pb-c.h"
#include "google/protobuf/duration.pb-c.h"
#include "google/protobuf/struct.pb-c.h"
#include "google/protobuf/timestamp.pb-c.h"
#include "google/protobuf/wrappers.pb-c.h"
#include "grpc/reflection.pb-c.h"
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

static ProtobufCMessage *from(const ProtobufCMessageDescriptor *descriptor, const char *text)
{
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(json);
    ProtobufCMessage *message = codec_from_json(descriptor, json, &arena, &err);
    json_decref(json);
    return message;
}

static void expect_json(const ProtobufCMessage *message, const char *wanted)
{
    struct buf out = {0};
    assert_non_null(message);
    codec_to_json(message, &out);
    assert_string_equal(out.data, wanted);
    buf_free(&out);
}

static void expect_refusal(const ProtobufCMessageDescriptor *descriptor, const char *text, const char *wanted)
{
    assert_null(from(descriptor, text));
    assert_int_equal(err.code, STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, wanted);
}

/* Through JSON, the wire and JSON again. */
static void expect_round_trip(const ProtobufCMessageDescriptor *descriptor, const char *text)
{
    ProtobufCMessage *message = from(descriptor, text);
    if (!message)
        fail_msg("%s", err.text);
    expect_json(message, text);
    expect_json(codec_copy(message, &arena), text);
}

static void test_profile(void **state)
{
    expect_json(from(&covey__v1__profile__descriptor, "{}"), "{\"config\":{},\"description\":\"\",\"devices\":{},\"name\":\"\",\"used_by\":[]}");
    expect_round_trip(&covey__v1__profile__descriptor,
                      "{\"config\":{\"a\":\"1\",\"b\":\"\"},\"description\":\"gr\xc3\xbc\xc3\x9f/<&>\\n\",\"devices\":{\"eth0\":{\"network\":\"n\",\"type\":"
                      "\"nic\"},\"root\":{}},\"name\":\"x\",\"used_by\":[\"/1.0/a\",\"/1.0/b\"]}");
    /* sorted maps, unknown keys and headers ignored, null = unset */
    expect_json(from(&covey__v1__profile__descriptor,
                     "{\"config\":{\"z\":\"1\",\"a\":\"2\",\"m\":null},\"description\":null,\"devices\":null,\"name\":\"n\",\"etag\":\"x\",\"other\":[1]}"),
                "{\"config\":{\"a\":\"2\",\"m\":\"\",\"z\":\"1\"},\"description\":\"\",\"devices\":{},\"name\":\"n\",\"used_by\":[]}");
}

static void test_big_map_is_sorted(void **state)
{
    Covey__V1__Profile *profile = arena_alloc(&arena, sizeof(*profile));
    covey__v1__profile__init(profile);
    profile->n_config = 1000;
    profile->config = arena_alloc(&arena, 1000 * sizeof(*profile->config));
    for (int i = 0; i < 1000; i++) {
        profile->config[i] = arena_alloc(&arena, sizeof(**profile->config));
        covey__v1__profile__config_entry__init(profile->config[i]);
        profile->config[i]->key = arena_printf(&arena, "%03d", (i * 617) % 500); /* every key twice */
        profile->config[i]->value = arena_printf(&arena, "%d", i);
    }
    struct buf out = {0};
    codec_field_to_json(&profile->base, "config", &out);
    json_t *json = json_loads(out.data, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    assert_int_equal(json_object_size(json), 500);
    int n = 0, k;
    const char *key;
    json_t *value;
    json_object_foreach(json, key, value)
    {
        k = atoi(key);
        assert_int_equal(k, n++); /* jansson keeps the order of the text */
        int i = atoi(json_string_value(value));
        assert_true(i >= 500); /* the last of the two */
        assert_int_equal((i * 617) % 500, k);
    }
    json_decref(json);
    buf_free(&out);
}

static void test_wrong_types(void **state)
{
    const ProtobufCMessageDescriptor *profile = &covey__v1__profile__descriptor, *change = &covey__v1__update_instance_state_request__descriptor;
    expect_refusal(profile, "{\"config\":{\"x\":1}}", "invalid value for \"config.x\": expected string");
    expect_refusal(profile, "{\"config\":[]}", "invalid value for \"config\": expected object");
    expect_refusal(profile, "{\"devices\":{\"eth0\":{\"type\":true}}}", "invalid value for \"devices.eth0.type\": expected string");
    expect_refusal(profile, "{\"used_by\":[\"a\",2]}", "invalid value for \"used_by[1]\": expected string");
    expect_refusal(profile, "{\"used_by\":\"a\"}", "invalid value for \"used_by\": expected list");
    expect_refusal(profile, "[]", "invalid value: expected object");
    expect_refusal(change, "{\"timeout\":\"1\"}", "invalid value for \"timeout\": expected integer");
    expect_refusal(change, "{\"timeout\":1.5}", "invalid value for \"timeout\": expected integer");
    expect_refusal(change, "{\"force\":\"true\"}", "invalid value for \"force\": expected boolean");
    expect_refusal(change, "{\"force\":1}", "invalid value for \"force\": expected boolean");
    expect_refusal(&google__protobuf__int32_value__descriptor, "2147483648", "invalid value: number out of range");
    expect_refusal(&google__protobuf__uint32_value__descriptor, "-1", "invalid value: number out of range");
    expect_refusal(&google__protobuf__bytes_value__descriptor, "\"?\"", "invalid value: expected base64 text");
    expect_refusal(&covey__v1__event__descriptor, "{\"timestamp\":\"yesterday\"}", "invalid value for \"timestamp\": expected RFC 3339 time");
}

static void test_presence(void **state)
{
    const ProtobufCMessageDescriptor *change = &covey__v1__update_instance_state_request__descriptor;
    const char *unset = "{\"name\":\"\",\"project\":\"\",\"action\":\"\",\"force\":false,\"stateful\":false}";
    expect_round_trip(change, unset);
    expect_round_trip(change, "{\"name\":\"\",\"project\":\"\",\"action\":\"stop\",\"timeout\":0,\"force\":true,\"stateful\":false}");
    expect_json(from(change, "{\"timeout\":null}"), unset);
    ProtobufCMessage *message = from(change, "{}");
    assert_int_equal(codec_set_text(message, "timeout", "-1", &arena, &err), STATUS_OK);
    assert_int_equal(codec_get_int(message, "timeout"), -1);
    expect_round_trip(&grpc__reflection__v1alpha__server_reflection_request__descriptor, "{\"host\":\"h\",\"list_services\":\"\"}");
    expect_round_trip(&grpc__reflection__v1alpha__server_reflection_request__descriptor,
                      "{\"host\":\"\",\"file_containing_extension\":{\"containing_type\":\"t\",\"extension_number\":-5}}");
}

static void test_scalars(void **state)
{
    expect_round_trip(&google__protobuf__int64_value__descriptor, "-9223372036854775808");
    expect_round_trip(&google__protobuf__int64_value__descriptor, "9223372036854775807");
    expect_round_trip(&google__protobuf__int32_value__descriptor, "-2147483648");
    expect_round_trip(&google__protobuf__uint32_value__descriptor, "4294967295");
    expect_round_trip(&google__protobuf__bool_value__descriptor, "true");
    expect_round_trip(&google__protobuf__double_value__descriptor, "0.1");
    expect_round_trip(&google__protobuf__double_value__descriptor, "-12345678");
    expect_round_trip(&google__protobuf__double_value__descriptor, "1e+300");
    expect_round_trip(&google__protobuf__float_value__descriptor, "0.1");
    expect_round_trip(&google__protobuf__bytes_value__descriptor, "\"AP8=\"");
    expect_round_trip(&google__protobuf__duration__descriptor, "\"-1.5s\"");
    expect_round_trip(&google__protobuf__duration__descriptor, "\"3600s\"");
    Google__Protobuf__UInt64Value big = GOOGLE__PROTOBUF__UINT64_VALUE__INIT;
    big.value = UINT64_MAX;
    expect_json(&big.base, "18446744073709551615");
    Google__Protobuf__DoubleValue none = GOOGLE__PROTOBUF__DOUBLE_VALUE__INIT;
    none.value = strtod("inf", NULL);
    expect_json(&none.base, "null");
    /* enums: numbers out, number or name in (proto2: only what is set has presence, too) */
    const ProtobufCMessageDescriptor *field = &google__protobuf__field_descriptor_proto__descriptor;
    ProtobufCMessage *message = from(field, "{\"type\":\"TYPE_STRING\",\"label\":3}");
    assert_non_null(message);
    assert_int_equal(codec_get_int(message, "type"), 9);
    assert_int_equal(codec_get_int(message, "label"), 3);
    expect_refusal(field, "{\"type\":\"TYPE_X\"}", "invalid value for \"type\": unknown name");
}

static void test_timestamps(void **state)
{
    const ProtobufCMessageDescriptor *event = &covey__v1__event__descriptor;
    expect_round_trip(event, "{\"type\":\"t\",\"timestamp\":\"2026-11-21T08:41:04.990000001Z\",\"metadata\":null}");
    const char *unset = "{\"type\":\"\",\"timestamp\":\"0001-01-01T00:00:00Z\",\"metadata\":null}";
    expect_json(from(event, "{}"), unset);
    const char *zero[] = {"{\"timestamp\":\"\"}", "{\"timestamp\":null}", "{\"timestamp\":\"0001-01-01T00:00:00Z\"}"};
    for (size_t i = 0; i < 3; i++) {
        Covey__V1__Event *message = (Covey__V1__Event *)from(event, zero[i]);
        assert_non_null(message);
        assert_null(message->timestamp);
        expect_json(&message->base, unset);
    }
    Covey__V1__Event *epoch = (Covey__V1__Event *)from(event, "{\"timestamp\":\"1970-01-01T01:00:00+01:00\"}");
    assert_non_null(epoch->timestamp);
    expect_json(&epoch->base, "{\"type\":\"\",\"timestamp\":\"1970-01-01T00:00:00Z\",\"metadata\":null}");
}

static void test_struct(void **state)
{
    const char *text = "{\"a\":[1,2.5,\"x\",true,null,{},[]],\"b\":{\"c\":{\"d\":-0.001}},\"e\":null,\"f\":9007199254740991}";
    Google__Protobuf__Struct *value = codec_struct_from_json(text, &arena, &err);
    assert_non_null(value);
    expect_json(&value->base, text);
    expect_json(codec_copy(&value->base, &arena), text);
    assert_null(codec_struct_from_json("", &arena, &err));
    assert_null(codec_struct_from_json(NULL, &arena, &err));
    assert_int_equal(err.code, STATUS_OK);
    assert_null(codec_struct_from_json("{", &arena, &err));
    assert_int_equal(err.code, STATUS_INVALID_ARGUMENT);
    assert_null(codec_struct_from_json("[]", &arena, &err));
    expect_round_trip(&covey__v1__event__descriptor, "{\"type\":\"\",\"timestamp\":\"0001-01-01T00:00:00Z\",\"metadata\":{},\"location\":\"n1\"}");
    /* what is read can also be sent: the deepest text accepted passes the wire's own limit */
    struct buf deep = {0};
    size_t levels = 0;
    for (size_t n = 1; n < 40; n++) {
        deep.len = 0;
        for (size_t i = 0; i < n; i++)
            buf_puts(&deep, "{\"k\":");
        buf_puts(&deep, "1");
        for (size_t i = 0; i < n; i++)
            buf_puts(&deep, "}");
        Google__Protobuf__Struct *nested = codec_struct_from_json(deep.data, &arena, &err);
        if (!nested)
            break;
        uint8_t packed[4096];
        size_t len = protobuf_c_message_pack(&nested->base, packed);
        assert_non_null(codec_unpack(&google__protobuf__struct__descriptor, packed, len, &arena, &err));
        expect_json(&nested->base, deep.data);
        levels = n;
    }
    assert_true(levels >= 8 && levels < 39);
    assert_non_null(strstr(err.text, "nested too deeply"));
    buf_free(&deep);
}

static void test_lists(void **state)
{
    const ProtobufCMessageDescriptor *operation = &covey__v1__operation__descriptor;
    ProtobufCMessage *message = from(operation, "{\"resources\":{\"instances\":[\"/1.0/instances/a\"],\"none\":[],\"null\":null}}");
    assert_non_null(message);
    struct buf out = {0};
    codec_field_to_json(message, "resources", &out);
    assert_string_equal(out.data, "{\"instances\":[\"/1.0/instances/a\"],\"none\":[],\"null\":[]}");
    buf_free(&out);
    /* a json_list that is not set is null, an empty one is empty */
    expect_json(from(&covey__v1__instance_state__descriptor, "{\"network\":null}"),
                "{\"status\":\"\",\"status_code\":0,\"disk\":{},\"memory\":null,\"network\":null,\"pid\":0,\"processes\":0,\"cpu\":null}");
    codec_field_to_json(from(&covey__v1__instance_state__descriptor, "{\"network\":{}}"), "network", &out);
    assert_string_equal(out.data, "{}");
    buf_free(&out);
}

static void test_flatten(void **state)
{
    ProtobufCMessage *plain = from(&covey__v1__instance__descriptor, "{\"name\":\"c1\"}");
    assert_null(((Covey__V1__Instance *)plain)->full);
    struct buf out = {0};
    codec_to_json(plain, &out);
    assert_null(strstr(out.data, "snapshots"));
    assert_null(strstr(out.data, "full"));
    buf_free(&out);
    Covey__V1__Instance *full = (Covey__V1__Instance *)from(&covey__v1__instance__descriptor, "{\"name\":\"c1\",\"state\":{\"pid\":1}}");
    assert_null(full->full); /* output only */
    assert_int_equal(codec_set_text(&full->base, "full.state.pid", "7", &arena, &err), STATUS_OK);
    codec_to_json(&full->base, &out);
    json_t *json = json_loads(out.data, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(json);
    assert_int_equal(json_array_size(json_object_get(json, "snapshots")), 0);
    assert_true(json_is_array(json_object_get(json, "backups")));
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json, "state"), "pid")), 7);
    json_decref(json);
    buf_free(&out);
}

static void test_merge(void **state)
{
    const ProtobufCMessageDescriptor *update = &covey__v1__update_profile_request__descriptor;
    ProtobufCMessage *message = from(update, "{\"name\":\"path\",\"config\":{\"old\":\"1\"}}");
    json_t *body = json_loads("{\"description\":\"d\",\"config\":{\"new\":\"2\"},\"name\":null,\"update_mask\":\"x\"}", 0, NULL);
    assert_int_equal(codec_merge_json(message, body, &arena, &err), STATUS_OK);
    expect_json(message, "{\"name\":\"path\",\"project\":\"\",\"description\":\"d\",\"config\":{\"new\":\"2\"},\"devices\":{}}");
    char **keys;
    size_t count;
    codec_present_keys(body, &arena, &keys, &count);
    assert_int_equal(count, 3); /* name is null */
    assert_string_equal(keys[0], "description");
    json_decref(body);
    codec_present_keys(NULL, &arena, &keys, &count);
    assert_int_equal(count, 0);
}

static void test_by_name(void **state)
{
    const ProtobufCMessageDescriptor *list = &covey__v1__list_operations_request__descriptor;
    ProtobufCMessage *message = from(list, "{}");
    assert_int_equal(codec_set_text(message, "all-projects", "true", &arena, &err), STATUS_OK);
    assert_int_equal(codec_set_text(message, "recursion", "2", &arena, &err), STATUS_OK);
    assert_int_equal(codec_set_text(message, "project", "p", &arena, &err), STATUS_OK);
    expect_json(message, "{\"project\":\"p\",\"all-projects\":true,\"recursion\":2}");
    assert_int_equal(codec_get_int(message, "all_projects"), 1);
    assert_string_equal(codec_get_string(message, "project"), "p");
    assert_string_equal(codec_get_string(message, "recursion"), "");
    assert_string_equal(codec_get_string(message, "nothing"), "");
    assert_int_equal(codec_set_text(message, "recursion", "x", &arena, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "invalid value for \"recursion\": expected integer");
    assert_int_equal(codec_set_text(message, "project", "\xff", &arena, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(codec_set_text(message, "nothing", "x", &arena, &err), STATUS_NOT_FOUND);
    assert_int_equal(codec_set_text(message, "project.x", "x", &arena, &err), STATUS_NOT_FOUND);
    assert_true(codec_has_field(&covey__v1__instance__descriptor, "full.state.pid"));
    assert_false(codec_has_field(&covey__v1__instance__descriptor, "full.state.nothing"));
    ProtobufCMessage *instance = from(&covey__v1__instance__descriptor, "{}");
    struct buf out = {0};
    assert_int_equal(codec_get_int(instance, "full.state.pid"), 0);
    codec_field_to_json(instance, "full.state.pid", &out);
    codec_field_to_json(instance, "no.such", &out);
    assert_string_equal(out.data, "nullnull");
    buf_free(&out);
    assert_int_equal(codec_set_text(instance, "full.state.pid", "42", &arena, &err), STATUS_OK);
    assert_int_equal(codec_get_int(instance, "full.state.pid"), 42);
    assert_int_equal(codec_set_text(instance, "profiles", "a", &arena, &err), STATUS_OK);
    assert_int_equal(codec_set_text(instance, "profiles", "b", &arena, &err), STATUS_OK);
    assert_int_equal(codec_repeated_count(instance, "profiles"), 2);
    assert_int_equal(codec_set_text(instance, "config", "b", &arena, &err), STATUS_INVALID_ARGUMENT);
    codec_field_to_json(instance, "profiles", &out);
    assert_string_equal(out.data, "[\"a\",\"b\"]");
    buf_free(&out);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
int main(void)
{
    registry_init();
    const struct CMUnitTest tests[] = {TEST(test_profile),  TEST(test_big_map_is_sorted), TEST(test_wrong_types), TEST(test_presence),
                                       TEST(test_scalars),  TEST(test_timestamps),        TEST(test_struct),      TEST(test_lists),
                                       TEST(test_flatten),  TEST(test_merge),             TEST(test_by_name)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
