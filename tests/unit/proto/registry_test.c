/* The registry joins the embedded descriptor set with the linked code. */
#include "proto/rpc/registry.h"
#include "covey/v1/certificate.pb-c.h"
#include "covey/v1/instance.pb-c.h"
#include "covey/v1/operation.pb-c.h"
#include "covey/v1/profile.pb-c.h"
#include "google/protobuf/descriptor.pb-c.h"
#include "google/protobuf/timestamp.pb-c.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static const struct field_info *field(const ProtobufCMessageDescriptor *descriptor, const char *name)
{
    const struct message_info *info = registry_message(descriptor);
    for (unsigned i = 0; i < descriptor->n_fields; i++)
        if (strcmp(info->fields[i].field->name, name) == 0)
            return &info->fields[i];
    fail_msg("%s has no field %s", descriptor->name, name);
    return NULL;
}

static void test_methods(void **state)
{
    const struct method *m = registry_method_by_name("covey.v1.Profiles", "UpdateProfile");
    assert_non_null(m);
    assert_string_equal(m->path, "/covey.v1.Profiles/UpdateProfile");
    assert_ptr_equal(m, registry_method_by_path(m->path));
    assert_ptr_equal(m, registry_method(m->index));
    assert_ptr_equal(m->input, &covey__v1__update_profile_request__descriptor);
    assert_int_equal(m->route, RPC_ROUTE_LEADER);
    assert_int_equal(m->access, RPC_ACCESS_AUTHENTICATED);
    assert_true(m->write);
    assert_int_equal(m->reply, RPC_REPLY_EMPTY);
    assert_int_equal(m->rule_count, 2);
    assert_string_equal(m->rules[0].verb, "PUT");
    assert_string_equal(m->rules[0].path, "/1.0/profiles/{name}");
    assert_true(m->rules[0].body);
    assert_string_equal(m->rules[1].verb, "PATCH");
    m = registry_method_by_name("covey.v1.Profiles", "ListProfiles");
    assert_false(m->write || m->rules[0].body || m->client_streaming || m->server_streaming);
    assert_string_equal(m->metadata_field, "profiles");
    assert_int_equal(m->reply, RPC_REPLY_LIST);
    m = registry_method_by_name("covey.v1.Profiles", "CreateProfile");
    assert_string_equal(m->location, "/1.0/profiles/{name}");
    m = registry_method_by_name("covey.v1.Operations", "Connect");
    assert_true(m->client_streaming && m->server_streaming && m->is_long);
    assert_string_equal(m->special, "operation-websocket");
    m = registry_method_by_name("grpc.health.v1.Health", "Watch");
    assert_true(m->server_streaming && !m->client_streaming);
    assert_int_equal(m->access, RPC_ACCESS_ANYONE);
    assert_non_null(strstr(m->comment, "after each change"));
    assert_null(registry_method_by_name("covey.v1.Profiles", "Nothing"));
    assert_null(registry_method_by_path("covey.v1.Profiles/ListProfiles"));
    for (unsigned i = 0; i < registry_method_count(); i++)
        assert_int_equal(registry_method(i)->index, i);
}

static void test_every_public_method_says_who_may_call(void **state)
{
    for (unsigned i = 0; i < registry_method_count(); i++)
        if (registry_method(i)->access == RPC_ACCESS_CLOSED)
            fail_msg("%s is closed for everybody", registry_method(i)->path);
}

static void test_fields(void **state)
{
    const struct field_info *f = field(&covey__v1__profile__descriptor, "etag");
    assert_string_equal(f->header, "ETag");
    f = field(&covey__v1__profile__descriptor, "used_by"); /* no explicit json_name: as declared */
    assert_string_equal(f->json_name, "used_by");
    f = field(&covey__v1__list_operations_request__descriptor, "all_projects");
    assert_string_equal(f->json_name, "all-projects");
    f = field(&covey__v1__wait_operation_request__descriptor, "secret");
    assert_true(f->secret);
    f = field(&covey__v1__update_instance_state_request__descriptor, "timeout");
    assert_true(f->explicit_presence);
    assert_false(field(&covey__v1__update_instance_state_request__descriptor, "force")->explicit_presence);
    f = field(&covey__v1__profile__descriptor, "devices");
    assert_true(f->is_map);
    assert_true(f->message->map_entry);
    assert_true(registry_message(&covey__v1__profile__descriptor)->has_maps);
    assert_true(registry_message(&covey__v1__list_profiles_response__descriptor)->has_maps);
    assert_false(registry_message(&covey__v1__get_profile_request__descriptor)->has_maps);
    const struct message_info *info = registry_message_by_name("covey.v1.Device");
    assert_true(info->json_list);
    assert_non_null(strstr(info->comment, "Options of a device"));
    assert_int_equal(registry_message(&google__protobuf__timestamp__descriptor)->kind, MESSAGE_TIMESTAMP);
    assert_null(registry_message_by_name("covey.v1.Nothing"));
}

static void test_files(void **state)
{
    size_t len = 0, other = 0;
    const uint8_t *data = registry_file("covey/v1/profile.proto", &len);
    assert_non_null(data);
    Google__Protobuf__FileDescriptorProto *file = google__protobuf__file_descriptor_proto__unpack(NULL, len, data);
    assert_non_null(file);
    assert_string_equal(file->package, "covey.v1");
    google__protobuf__file_descriptor_proto__free_unpacked(file, NULL);
    const char *symbols[] = {"covey.v1.Profile", "covey.v1.Profiles", "covey.v1.Profiles.GetProfile", "covey.v1.Profile.ConfigEntry"};
    for (size_t i = 0; i < sizeof(symbols) / sizeof(*symbols); i++)
        assert_ptr_equal(registry_file_of_symbol(symbols[i], &other), data);
    assert_null(registry_file("nothing.proto", &len));
    assert_null(registry_file_of_symbol("covey.v1", &len));
    const char *names[64];
    size_t count = registry_file_dependencies("covey/v1/profile.proto", names, 64), seen = 0;
    assert_string_equal(names[0], "covey/v1/profile.proto");
    for (size_t i = 0; i < count; i++)
        seen += strcmp(names[i], "google/protobuf/descriptor.proto") == 0; /* two steps away, by several ways */
    assert_int_equal(seen, 1);
    assert_int_equal(registry_file_dependencies("nothing.proto", names, 64), 0);
    seen = 0;
    for (size_t i = 0; i < registry_service_count(); i++)
        seen += strcmp(registry_service_name(i), "grpc.health.v1.Health") == 0;
    assert_int_equal(seen, 1);
}

int main(void)
{
    registry_init();
    registry_init(); /* harmless */
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_methods), cmocka_unit_test(test_every_public_method_says_who_may_call),
                                       cmocka_unit_test(test_fields), cmocka_unit_test(test_files)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
