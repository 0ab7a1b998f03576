/* Join and trust tokens, both ways; canonical addresses. */
#include "client/cli/cli.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void join_round_trip(void **state)
{
    json_t *operation = json_loads("{\"metadata\":{\"serverName\":\"node2\",\"secret\":\"ab\",\"fingerprint\":\"cd\",\"addresses\":[\"10.0.0.1:8443\"],"
                                   "\"expiresAt\":\"2026-11-21T11:42:00.5Z\"}}", 0, NULL);
    struct error err = ERROR_INIT;
    char *token;
    assert_int_equal(token_encode(operation, &token, &err), 0);
    size_t len;
    uint8_t *bytes = base64_decode(token, &len);
    static const char expected[] =
        "{\"server_name\":\"node2\",\"fingerprint\":\"cd\",\"addresses\":[\"10.0.0.1:8443\"],\"secret\":\"ab\",\"expires_at\":\"2026-11-21T11:42:00.5Z\"}";
    assert_int_equal(len, strlen(expected));
    assert_memory_equal(bytes, expected, len);
    json_t *decoded = token_decode(token, &err);
    assert_string_equal(json_text(decoded, "server_name"), "node2");
    json_decref(decoded);
    free(bytes);
    free(token);
    json_object_del(json_object_get(operation, "metadata"), "secret");
    assert_int_not_equal(token_encode(operation, &token, &err), 0);
    assert_null(token);
    assert_true(str_prefix(err.text, "Failed converting token operation to join token: "));
    json_decref(operation);
}

static void refused(const char *json, const char *text)
{
    struct error err = ERROR_INIT;
    char *token = base64_encode(json, strlen(json));
    assert_null(token_decode(token, &err));
    char *expected = xasprintf("Invalid cluster join token: %s", text);
    assert_string_equal(err.text, expected);
    free(expected);
    free(token);
}

static void decode_errors(void **state)
{
    struct error err = ERROR_INIT;
    assert_null(token_decode("***", &err));
    assert_string_equal(err.text, "Invalid cluster join token: illegal base64 data");
    refused("nonsense", "not a JSON object");
    refused("[1]", "not a JSON object");
    refused("{\"addresses\":[\"a\"],\"secret\":\"s\",\"fingerprint\":\"f\"}", "No server name in join token");
    refused("{\"server_name\":\"n\",\"addresses\":[],\"secret\":\"s\",\"fingerprint\":\"f\"}", "No cluster member addresses in join token");
    refused("{\"server_name\":\"n\",\"addresses\":[3],\"secret\":\"s\",\"fingerprint\":\"f\"}", "No cluster member addresses in join token");
    refused("{\"server_name\":\"n\",\"addresses\":[\"a\"],\"fingerprint\":\"f\"}", "No secret in join token");
    refused("{\"server_name\":\"n\",\"addresses\":[\"a\"],\"secret\":\"s\"}", "No certificate fingerprint in join token");
}

static void trust(void **state)
{
    json_t *operation = json_loads("{\"metadata\":{\"secret\":\"ab\",\"fingerprint\":\"cd\",\"addresses\":[\"a:1\"],\"request\":{\"name\":\"me\"}}}", 0, NULL);
    struct error err = ERROR_INIT;
    char *token;
    assert_int_equal(token_encode_trust(operation, &token, &err), 0);
    json_t *decoded = token_decode_trust(token);
    assert_string_equal(json_text(decoded, "client_name"), "me");
    assert_null(token_decode(token, &err)); /* not a join token */
    assert_null(token_decode_trust("password"));
    json_decref(decoded);
    json_decref(operation);
    free(token);
}

static void addresses(void **state)
{
    static const char *const cases[][2] = {{"10.0.0.1", "10.0.0.1:8443"}, {"host", "host:8443"}, {"host:1", "host:1"}, {"host:", "host:8443"},
                                           {"fe80::1", "[fe80::1]:8443"}, {"[::1]", "[::1]:8443"}, {"[::1]:9", "[::1]:9"}, {"", ""}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char *address = address_canonical(cases[i][0]);
        assert_string_equal(address, cases[i][1]);
        free(address);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(join_round_trip), cmocka_unit_test(decode_errors), cmocka_unit_test(trust),
                                       cmocka_unit_test(addresses)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
