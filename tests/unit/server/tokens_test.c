/* Tokens in a database of the real schema, and their text. */
#include "server/auth/tokens.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

struct daemon *the_daemon; /* main.c is not linked */
static struct sql *sql;
static char path[64];
static const char *const uuid_a = "11111111-1111-4111-8111-111111111111", *const uuid_b = "22222222-2222-4222-8222-222222222222";

static int open_database(void **state)
{
    struct error err = ERROR_INIT;
    struct buf schema = {0};
    snprintf(path, sizeof path, "/tmp/covey-tokens-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(file_read(COVEY_SOURCE "/storage/schema/001_base.sql", 1 << 20, &schema, &err), STATUS_OK);
    assert_int_equal(sql_open(path, SQL_CREATE | SQL_SYNC_OFF, &sql, &err), STATUS_OK);
    assert_int_equal(sql_script(sql, schema.data, &err), STATUS_OK);
    buf_free(&schema);
    return 0;
}

static int close_database(void **state)
{
    char other[80];
    sql_close(sql);
    unlink(path);
    snprintf(other, sizeof other, "%s-wal", path);
    unlink(other);
    snprintf(other, sizeof other, "%s-shm", path);
    unlink(other);
    return 0;
}

static int64_t tokens_left(void)
{
    int64_t count = -1;
    assert_int_equal(sql_get_int(sql, &count, NULL, "SELECT count(*) FROM tokens", ""), STATUS_OK);
    return count;
}

static void a_token_works_once(void **state)
{
    char uuid[37], *request = NULL;
    struct error err = ERROR_INIT;
    assert_int_equal(token_insert(sql, uuid_a, TOKEN_JOIN, "n2", "secret", 100, "{}", NULL, &err), STATUS_OK);
    assert_int_equal(token_take(sql, TOKEN_JOIN, "n3", "secret", 50, uuid, NULL, &err), STATUS_NOT_FOUND);
    assert_int_equal(token_take(sql, TOKEN_JOIN, "n2", "wrong", 50, uuid, NULL, &err), STATUS_NOT_FOUND);
    assert_int_equal(token_take(sql, TOKEN_CLIENT, "n2", "secret", 50, uuid, NULL, &err), STATUS_NOT_FOUND);
    assert_int_equal(token_take(sql, TOKEN_JOIN, "n2", "", 50, uuid, NULL, &err), STATUS_NOT_FOUND);
    assert_int_equal(tokens_left(), 1);
    assert_int_equal(token_take(sql, TOKEN_JOIN, "n2", "secret", 50, uuid, &request, &err), STATUS_OK);
    assert_string_equal(uuid, uuid_a);
    assert_string_equal(request, "{}");
    free(request);
    assert_int_equal(token_take(sql, TOKEN_JOIN, "n2", "secret", 50, uuid, NULL, &err), STATUS_NOT_FOUND);
}

static void an_expired_token_is_used_up(void **state)
{
    char uuid[37];
    struct error err = ERROR_INIT;
    assert_int_equal(token_insert(sql, uuid_a, TOKEN_CLIENT, "c", "secret", 100, NULL, NULL, &err), STATUS_OK);
    assert_int_equal(token_take(sql, TOKEN_CLIENT, NULL, "secret", 100, uuid, NULL, &err), STATUS_FAILED_PRECONDITION);
    assert_string_equal(err.text, "Token has expired");
    assert_int_equal(tokens_left(), 0);
}

static void a_new_join_token_replaces_the_old(void **state)
{
    char uuid[37];
    struct error err = ERROR_INIT;
    struct buf replaced = {0};
    assert_int_equal(token_insert(sql, uuid_a, TOKEN_JOIN, "n2", "one", 0, NULL, &replaced, &err), STATUS_OK);
    assert_int_equal(replaced.len, 0);
    assert_int_equal(token_insert(sql, uuid_b, TOKEN_JOIN, "n2", "two", 0, NULL, &replaced, &err), STATUS_OK);
    assert_int_equal(replaced.len, 37);
    assert_string_equal(replaced.data, uuid_a);
    assert_int_equal(token_take(sql, TOKEN_JOIN, "n2", "one", 1, uuid, NULL, &err), STATUS_NOT_FOUND);
    assert_int_equal(token_take(sql, TOKEN_JOIN, "n2", "two", INT64_MAX, uuid, NULL, &err), STATUS_OK); /* 0 = never expires */
    buf_free(&replaced);
}

static bool decodes(const char *json, struct token_text *out)
{
    char *text = base64_encode(json, strlen(json));
    bool ok = token_decode(text, out);
    free(text);
    return ok;
}

static void token_texts_are_decoded(void **state)
{
    struct token_text token;
    assert_true(decodes("{\"server_name\":\"n2\",\"fingerprint\":\"ab\",\"addresses\":[\"a:1\",\"b:2\"],\"secret\":\"s\",\"expires_at\":\"x\"}", &token));
    assert_true(token.join);
    assert_string_equal(token.name, "n2");
    assert_string_equal(token.secret, "s");
    assert_string_equal(token.addresses[1], "b:2");
    assert_null(token.addresses[2]);
    token_text_free(&token);
    assert_true(decodes("{\"client_name\":\"me\",\"fingerprint\":\"ab\",\"addresses\":[],\"secret\":\"s\"}", &token));
    assert_false(token.join);
    token_text_free(&token);
    assert_false(decodes("{\"server_name\":\"n2\",\"secret\":\"\"}", &token));
    assert_false(decodes("[]", &token));
    assert_false(decodes("{\"secret\":\"s\"}", &token));
    assert_false(token_decode("not base64!", &token));
    assert_false(token_decode("hunter2", &token));
    assert_false(token_decode(NULL, &token));
    token_text_free(&token);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_token_works_once, open_database, close_database),
        cmocka_unit_test_setup_teardown(an_expired_token_is_used_up, open_database, close_database),
        cmocka_unit_test_setup_teardown(a_new_join_token_replaces_the_old, open_database, close_database),
        cmocka_unit_test(token_texts_are_decoded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
