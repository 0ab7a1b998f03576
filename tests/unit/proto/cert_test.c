/* Identities: made, kept, loaded, refused when they do not fit; passwords. */
#include "proto/core/cert.h"
#include "proto/core/core.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char root[64], cert_path[96], key_path[96];

static int setup(void **state)
{
    strcpy(root, "/tmp/covey-cert-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    snprintf(cert_path, sizeof(cert_path), "%s/server.crt", root);
    snprintf(key_path, sizeof(key_path), "%s/server.key", root);
    return 0;
}

static int teardown(void **state)
{
    assert_int_equal(ERR_peek_error(), 0); /* gRPC would trip over it */
    return dir_remove_all(root, NULL);
}

static void test_content(void **state)
{
    struct identity id;
    struct error err;
    assert_int_equal(identity_create("node1", &id, &err), STATUS_OK);
    assert_int_equal(identity_save(&id, cert_path, key_path, &err), STATUS_OK);
    struct stat st;
    assert_int_equal(stat(key_path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    const char *argv[] = {"openssl", "x509", "-noout", "-text", "-in", cert_path, NULL};
    struct process_result out;
    assert_int_equal(process_run(argv, NULL, NULL, 65536, 20000, &out, &err), STATUS_OK);
    const char *wanted[] = {"P-384", "CN = node1", "DNS:node1, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1", "CA:FALSE",
                            "Digital Signature, Key Encipherment", "TLS Web Server Authentication, TLS Web Client Authentication",
                            "Version: 3", "ecdsa-with-SHA384"};
    for (size_t i = 0; i < sizeof(wanted) / sizeof(*wanted); i++)
        if (!strstr(out.out.data, wanted[i]))
            fail_msg("%s is missing in %s", wanted[i], out.out.data);
    process_result_free(&out);
    assert_int_equal(cert_check_dates(id.cert_pem, &err), STATUS_OK);
    identity_free(&id);
    assert_int_equal(identity_create("", &id, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(identity_create("a b", &id, &err), STATUS_INVALID_ARGUMENT);
}

static void test_load(void **state)
{
    struct identity id, again, other;
    struct error err;
    assert_int_equal(identity_load_or_create(cert_path, key_path, "node1", &id, &err), STATUS_OK);
    assert_int_equal(identity_load_or_create(cert_path, key_path, "node1", &again, &err), STATUS_OK);
    assert_string_equal(id.fingerprint, again.fingerprint);
    assert_string_equal(id.key_pem, again.key_pem);
    identity_free(&again);
    assert_int_equal(identity_create("node2", &other, &err), STATUS_OK);
    assert_string_not_equal(id.fingerprint, other.fingerprint);
    assert_int_equal(identity_from_pem(id.cert_pem, other.key_pem, &again, &err), STATUS_INVALID_ARGUMENT);
    assert_non_null(strstr(err.text, "does not belong"));
    assert_int_equal(identity_from_pem("x", other.key_pem, &again, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "Certificate must be base64 encoded PEM certificate");
    assert_int_equal(identity_from_pem(id.cert_pem, "x", &again, &err), STATUS_INVALID_ARGUMENT);
    assert_string_equal(err.text, "Private key must be base64 encoded PEM key");
    assert_int_equal(unlink(key_path), 0);
    assert_int_equal(identity_load_or_create(cert_path, key_path, "node1", &again, &err), STATUS_NOT_FOUND);
    identity_free(&id);
    identity_free(&other);
}

static void test_der(void **state)
{
    struct identity id;
    struct error err;
    char print[FINGERPRINT_SIZE], *pem, *name, *der;
    assert_int_equal(identity_create("node1", &id, &err), STATUS_OK);
    assert_int_equal(cert_fingerprint(id.cert_pem, print, &err), STATUS_OK);
    assert_string_equal(print, id.fingerprint);
    der = cert_pem_to_base64_der(id.cert_pem);
    assert_non_null(der);
    assert_int_equal(cert_from_base64_der(der, &pem, print, &name, &err), STATUS_OK);
    assert_string_equal(print, id.fingerprint);
    assert_string_equal(name, "node1");
    assert_string_equal(pem, id.cert_pem);
    free(name);
    free(pem);
    assert_int_equal(cert_from_base64_der("AAAA", &pem, print, &name, &err), STATUS_INVALID_ARGUMENT);
    assert_null(pem);
    assert_int_equal(cert_from_base64_der("?", &pem, print, NULL, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(cert_check_pem(id.cert_pem, print, &name, &err), STATUS_OK);
    assert_string_equal(name, "node1");
    free(name);
    char *two = xasprintf("%s%s", id.cert_pem, id.cert_pem), *noise = xasprintf("x%s", id.cert_pem);
    assert_int_equal(cert_check_pem(two, print, NULL, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(cert_check_pem(noise, print, NULL, &err), STATUS_INVALID_ARGUMENT);
    assert_int_equal(cert_fingerprint("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", print, &err), STATUS_INVALID_ARGUMENT);
    assert_null(cert_pem_to_base64_der("nothing"));
    free(two);
    free(noise);
    free(der);
    identity_free(&id);
}

static void test_tidy(void **state)
{
    struct error err = ERROR_INIT;
    struct identity id = {0}, again = {0};
    struct buf wide = {0};
    assert_int_equal(identity_create("node1", &id, &err), STATUS_OK);
    for (const char *c = id.cert_pem; *c; c++)
        buf_puts(&wide, *c == '\n' ? " \r\n\n\t" : (char[]){*c, 0});
    assert_int_equal(identity_from_pem(wide.data, id.key_pem, &again, &err), STATUS_INVALID_ARGUMENT);
    char *tidy = pem_tidy(wide.data), *same = pem_tidy(id.cert_pem), *text = xasprintf("Certificate:\n  Data:\n\n%s\nend", id.cert_pem), *kept = pem_tidy(text);
    assert_memory_equal(tidy, id.cert_pem, strlen(id.cert_pem));
    assert_string_equal(same, id.cert_pem); /* users compare the files */
    assert_string_equal(kept, text);
    free(same);
    free(kept);
    free(text);
    assert_int_equal(identity_from_pem(tidy, id.key_pem, &again, &err), STATUS_OK);
    assert_string_equal(again.fingerprint, id.fingerprint);
    assert_int_equal(cert_check_strength(tidy, &err), STATUS_OK);
    free(tidy);
    tidy = pem_tidy("");
    assert_string_equal(tidy, "");
    free(tidy);
    buf_free(&wide);
    identity_free(&again);
    identity_free(&id);
}

static void test_signature(void **state)
{
    struct error err = ERROR_INIT;
    struct identity id = {0}, other = {0};
    uint8_t *signature = NULL;
    size_t len = 0;
    assert_int_equal(identity_create("node1", &id, &err), STATUS_OK);
    assert_int_equal(identity_create("node1", &other, &err), STATUS_OK);
    assert_int_equal(key_sign(id.key_pem, "text", &signature, &len, &err), STATUS_OK);
    assert_true(cert_verify(id.cert_pem, "text", signature, len));
    assert_false(cert_verify(id.cert_pem, "Text", signature, len));
    assert_false(cert_verify(other.cert_pem, "text", signature, len));
    assert_false(cert_verify(id.cert_pem, "text", signature, len - 1));
    assert_false(cert_verify(id.cert_pem, "text", NULL, 0));
    free(signature);
    assert_int_not_equal(key_sign("no key", "text", &signature, &len, &err), STATUS_OK);
    assert_null(signature);
    identity_free(&other);
    identity_free(&id);
}

static void test_passwords(void **state)
{
    char *a = password_hash("secret"), *b = password_hash("secret");
    assert_string_not_equal(a, b);
    assert_true(str_prefix(a, "scrypt$"));
    assert_true(password_verify("secret", a));
    assert_false(password_verify("Secret", a));
    assert_false(password_verify("", a));
    assert_false(password_verify("secret", "scrypt$00$00"));
    assert_false(password_verify("secret", NULL));
    a[10] = 'x'; /* not a hex digit */
    assert_false(password_verify("secret", a));
    free(a);
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_content, setup, teardown), cmocka_unit_test_setup_teardown(test_load, setup, teardown),
        cmocka_unit_test_setup_teardown(test_der, setup, teardown), cmocka_unit_test_setup_teardown(test_passwords, setup, teardown),
        cmocka_unit_test(test_tidy), cmocka_unit_test(test_signature)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
