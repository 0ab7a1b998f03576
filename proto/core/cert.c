/* X.509 identities and password hashes, by OpenSSL 3. Thread: any. OpenSSL's per-thread error queue is left empty: gRPC reads it too. */
#include "cert.h"
#include "core.h"
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    CERT_FILE_BYTES_MAX = 1 << 20,
    CERT_DAYS = 3652,               /* ten years */
    CERT_BACKDATE_S = 3600,         /* members' clocks may differ a little */
    NAME_BYTES_MAX = 64,            /* of a common name (X.520) */
    SALT_BYTES = 16,
    HASH_BYTES = 32,
    SCRYPT_N = 1 << 14,
    SCRYPT_R = 8,
    SCRYPT_P = 1,
    SCRYPT_BYTES_MAX = 64 << 20,
};

static const char pem_begin[] = "-----BEGIN CERTIFICATE-----";
static const char pem_end[] = "-----END CERTIFICATE-----";

static int openssl_error(struct error *err, const char *what)
{
    char reason[256] = "unknown reason";
    unsigned long code = ERR_peek_last_error();
    if (code)
        ERR_error_string_n(code, reason, sizeof(reason));
    ERR_clear_error();
    return error_set(err, STATUS_INTERNAL, "%s: %s", what, reason);
}

/* Without it OpenSSL would ask on the terminal. */
static int no_passphrase(char *buf, int size, int writing, void *ud) { return -1; }

static X509 *read_cert(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    if (!bio)
        core_oom();
    X509 *cert = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL);
    BIO_free(bio);
    ERR_clear_error();
    return cert;
}

static EVP_PKEY *read_key(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    if (!bio)
        core_oom();
    EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    BIO_free(bio);
    ERR_clear_error();
    return key;
}

static char *bio_text(BIO *bio)
{
    char *data = NULL;
    long len = BIO_get_mem_data(bio, &data);
    char *text = xmalloc((size_t)len + 1);
    memcpy(text, data, (size_t)len);
    text[len] = 0;
    return text;
}

char *pem_tidy(const char *pem)
{
    struct buf out = {0};
    bool inside = false;
    while (*pem != '\0') {
        size_t line = strcspn(pem, "\r\n"), from = strspn(pem, " \t"), to = line, ending = strspn(pem + line, "\r") + (pem[line + strspn(pem + line, "\r")] == '\n');
        while (to > from && (pem[to - 1] == ' ' || pem[to - 1] == '\t'))
            to--;
        inside = inside || (from < line && str_prefix(pem + from, "-----BEGIN "));
        if (!inside)
            buf_add(&out, pem, line + ending);
        else if (to > from)
            buf_printf(&out, "%.*s%s", (int)(to - from), pem + from, ending > 0 ? "\n" : "");
        inside = inside && !(from < line && str_prefix(pem + from, "-----END "));
        pem += line + ending;
    }
    return buf_take(&out);
}

int cert_check_strength(const char *pem, struct error *err)
{
    enum { BITS_MIN = 112 };
    X509 *cert = read_cert(pem);
    int bits = cert ? EVP_PKEY_get_security_bits(X509_get0_pubkey(cert)) : 0;
    X509_free(cert);
    ERR_clear_error();
    return bits >= BITS_MIN ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "The certificate's key is too weak for TLS");
}

int key_sign(const char *key_pem, const char *text, uint8_t **signature, size_t *len, struct error *err)
{
    EVP_PKEY *key = read_key(key_pem);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int status = STATUS_OK;
    *signature = NULL;
    *len = 0;
    if (!key || !ctx || EVP_DigestSignInit(ctx, NULL, EVP_sha256(), NULL, key) != 1 ||
        EVP_DigestSign(ctx, NULL, len, (const unsigned char *)text, strlen(text)) != 1) {
        status = openssl_error(err, "cannot sign");
    } else {
        *signature = xmalloc(*len);
        if (EVP_DigestSign(ctx, *signature, len, (const unsigned char *)text, strlen(text)) != 1)
            status = openssl_error(err, "cannot sign");
    }
    if (status != STATUS_OK) {
        free(*signature);
        *signature = NULL;
    }
    EVP_MD_CTX_free(ctx);
    EVP_PKEY_free(key);
    ERR_clear_error();
    return status;
}

bool cert_verify(const char *cert_pem, const char *text, const uint8_t *signature, size_t len)
{
    X509 *cert = read_cert(cert_pem);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool good = cert && ctx && EVP_DigestVerifyInit(ctx, NULL, EVP_sha256(), NULL, X509_get0_pubkey(cert)) == 1 &&
                EVP_DigestVerify(ctx, signature, len, (const unsigned char *)text, strlen(text)) == 1;
    EVP_MD_CTX_free(ctx);
    X509_free(cert);
    ERR_clear_error();
    return good;
}

/* ---- DER within PEM ---- */

/* The DER of the first certificate; *rest = what follows it. NULL if there is none. Caller frees. */
static uint8_t *pem_der(const char *pem, size_t *len, const char **rest)
{
    const char *begin = strstr(pem, pem_begin);
    if (!begin)
        return NULL;
    begin += sizeof(pem_begin) - 1;
    const char *end = strstr(begin, pem_end);
    if (!end)
        return NULL;
    *rest = end + sizeof(pem_end) - 1;
    size_t size = (size_t)(end - begin);
    char *body = xmalloc(size + 1);
    memcpy(body, begin, size);
    body[size] = 0;
    uint8_t *der = base64_decode(body, len);
    free(body);
    if (der && !*len) {
        free(der);
        return NULL;
    }
    return der;
}

int cert_fingerprint(const char *pem, char out[FINGERPRINT_SIZE], struct error *err)
{
    size_t len;
    const char *rest;
    uint8_t *der = pem_der(pem, &len, &rest);
    *out = 0;
    if (!der)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Certificate must be base64 encoded PEM certificate");
    sha256_hex(der, len, out);
    free(der);
    return STATUS_OK;
}

char *cert_pem_to_base64_der(const char *pem)
{
    size_t len;
    const char *rest;
    uint8_t *der = pem_der(pem, &len, &rest);
    char *text = der ? base64_encode(der, len) : NULL;
    free(der);
    return text;
}

/* The common name as UTF-8, "" if there is none; caller frees. */
static char *common_name_of(const X509 *cert)
{
    const X509_NAME *subject = X509_get_subject_name(cert);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    unsigned char *utf8 = NULL;
    int len = at < 0 ? -1 : ASN1_STRING_to_UTF8(&utf8, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at)));
    char *name = len >= 0 && utf8_valid((const char *)utf8, (size_t)len) ? xstrdup((const char *)utf8) : xstrdup("");
    OPENSSL_free(utf8);
    ERR_clear_error();
    return name;
}

int cert_from_base64_der(const char *base64, char **pem, char fingerprint[FINGERPRINT_SIZE], char **common_name, struct error *err)
{
    size_t len;
    uint8_t *der = base64_decode(base64, &len);
    *pem = NULL;
    if (common_name)
        *common_name = NULL;
    *fingerprint = 0;
    if (!der)
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid certificate: not base64 text");
    const uint8_t *at = der;
    X509 *cert = d2i_X509(NULL, &at, (long)len);
    ERR_clear_error();
    if (!cert || at != der + len) {
        X509_free(cert);
        free(der);
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid certificate: not one X.509 certificate in DER form");
    }
    sha256_hex(der, len, fingerprint);
    free(der);
    BIO *bio = BIO_new(BIO_s_mem());
    if (!bio || PEM_write_bio_X509(bio, cert) != 1)
        core_oom();
    *pem = bio_text(bio);
    BIO_free(bio);
    if (common_name)
        *common_name = common_name_of(cert);
    X509_free(cert);
    return STATUS_OK;
}

int cert_check_pem(const char *pem, char fingerprint[FINGERPRINT_SIZE], char **common_name, struct error *err)
{
    static const char blank[] = " \t\r\n";
    if (common_name)
        *common_name = NULL;
    size_t len;
    const char *rest, *start = pem + strspn(pem, blank);
    uint8_t *der = str_prefix(start, pem_begin) ? pem_der(start, &len, &rest) : NULL;
    const uint8_t *at = der;
    X509 *cert = der ? d2i_X509(NULL, &at, (long)len) : NULL;
    ERR_clear_error();
    bool good = cert && at == der + len;
    if (good)
        sha256_hex(der, len, fingerprint);
    else
        *fingerprint = 0;
    free(der);
    int status = STATUS_OK;
    if (!good)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Certificate must be base64 encoded PEM certificate");
    else if (rest[strspn(rest, blank)])
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Certificate must be exactly one PEM certificate");
    else if (common_name)
        *common_name = common_name_of(cert);
    X509_free(cert);
    return status;
}

static int64_t unix_time(const ASN1_TIME *time)
{
    struct tm tm;
    return ASN1_TIME_to_tm(time, &tm) == 1 ? (int64_t)timegm(&tm) : -1;
}

int cert_dates(const char *pem, int64_t *from, int64_t *until, struct error *err)
{
    X509 *cert = read_cert(pem);
    if (!cert)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Certificate must be base64 encoded PEM certificate");
    *from = unix_time(X509_get0_notBefore(cert));
    *until = unix_time(X509_get0_notAfter(cert));
    X509_free(cert);
    ERR_clear_error();
    return *from < 0 || *until < 0 ? error_set(err, STATUS_INVALID_ARGUMENT, "certificate has invalid dates") : STATUS_OK;
}

int cert_check_dates(const char *pem, struct error *err)
{
    int64_t from, until, now = time_unix_ns() / 1000000000;
    if (cert_dates(pem, &from, &until, err) != STATUS_OK)
        return STATUS_INVALID_ARGUMENT;
    if (now < from)
        return error_set(err, STATUS_UNAUTHENTICATED, "certificate is not valid yet");
    if (now > until)
        return error_set(err, STATUS_UNAUTHENTICATED, "certificate has expired");
    return STATUS_OK;
}

/* ---- identities ---- */

/* SAN: DNS name, 127.0.0.1, ::1. Built by hand: the textual form would let a name bring its own entries. */
static bool add_names(X509 *cert, const char *name)
{
    static const uint8_t loopback4[] = {127, 0, 0, 1}, loopback6[16] = {[15] = 1};
    const struct {
        int type;
        const void *data;
        int len;
    } wanted[] = {{GEN_DNS, name, (int)strlen(name)}, {GEN_IPADD, loopback4, sizeof(loopback4)}, {GEN_IPADD, loopback6, sizeof(loopback6)}};
    GENERAL_NAMES *names = GENERAL_NAMES_new();
    bool good = names != NULL;
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]) && good; i++) {
        GENERAL_NAME *entry = GENERAL_NAME_new();
        ASN1_STRING *value = wanted[i].type == GEN_DNS ? ASN1_IA5STRING_new() : ASN1_OCTET_STRING_new();
        good = entry && value && ASN1_STRING_set(value, wanted[i].data, wanted[i].len) == 1;
        if (!good) {
            ASN1_STRING_free(value);
            GENERAL_NAME_free(entry);
            break;
        }
        GENERAL_NAME_set0_value(entry, wanted[i].type, value);
        good = sk_GENERAL_NAME_push(names, entry) > 0;
        if (!good)
            GENERAL_NAME_free(entry);
    }
    good = good && X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0, X509V3_ADD_DEFAULT) == 1;
    GENERAL_NAMES_free(names);
    return good;
}

static bool add_extension(X509 *cert, int nid, const char *value)
{
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, value);
    bool good = extension && X509_add_ext(cert, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return good;
}

static bool set_serial(X509 *cert)
{
    uint8_t bytes[16];
    random_bytes(bytes, sizeof(bytes));
    bytes[0] = (uint8_t)((bytes[0] & 0x7f) | 0x40); /* positive, not zero */
    BIGNUM *number = BN_bin2bn(bytes, sizeof(bytes), NULL);
    bool good = number && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert));
    BN_free(number);
    return good;
}

static bool fill_and_sign(X509 *cert, EVP_PKEY *key, const char *name)
{
    X509_NAME *subject = X509_get_subject_name(cert);
    return X509_set_version(cert, 2) == 1 && set_serial(cert) && X509_gmtime_adj(X509_getm_notBefore(cert), -CERT_BACKDATE_S) &&
           X509_time_adj_ex(X509_getm_notAfter(cert), CERT_DAYS, 0, NULL) && X509_set_pubkey(cert, key) == 1 &&
           X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_UTF8, (const unsigned char *)"covey", -1, -1, 0) == 1 &&
           X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)name, -1, -1, 0) == 1 &&
           X509_set_issuer_name(cert, subject) == 1 && add_extension(cert, NID_basic_constraints, "critical,CA:FALSE") &&
           add_extension(cert, NID_key_usage, "critical,digitalSignature,keyEncipherment") &&
           add_extension(cert, NID_ext_key_usage, "serverAuth,clientAuth") && add_names(cert, name) && X509_sign(cert, key, EVP_sha384()) > 0;
}

static bool is_plain_name(const char *name)
{
    size_t len = strlen(name);
    for (size_t i = 0; i < len; i++)
        if (name[i] <= 0x20 || name[i] >= 0x7f)
            return false;
    return len > 0 && len <= NAME_BYTES_MAX;
}

int identity_create(const char *name, struct identity *out, struct error *err)
{
    *out = (struct identity){0};
    if (!is_plain_name(name))
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid certificate name \"%s\": expected 1 to %d visible ASCII characters", name,
                         NAME_BYTES_MAX);
    EVP_PKEY *key = EVP_EC_gen("P-384");
    X509 *cert = X509_new();
    BIO *cert_bio = BIO_new(BIO_s_mem()), *key_bio = BIO_new(BIO_s_secmem());
    int status;
    if (key && cert && cert_bio && key_bio && fill_and_sign(cert, key, name) && PEM_write_bio_X509(cert_bio, cert) == 1 &&
        PEM_write_bio_PrivateKey(key_bio, key, NULL, NULL, 0, NULL, NULL) == 1) {
        out->cert_pem = bio_text(cert_bio);
        out->key_pem = bio_text(key_bio);
        status = cert_fingerprint(out->cert_pem, out->fingerprint, err);
    } else {
        status = openssl_error(err, "cannot make a certificate");
    }
    BIO_free(key_bio);
    BIO_free(cert_bio);
    X509_free(cert);
    EVP_PKEY_free(key);
    return status;
}

int identity_from_pem(const char *cert_pem, const char *key_pem, struct identity *out, struct error *err)
{
    *out = (struct identity){0};
    X509 *cert = read_cert(cert_pem);
    EVP_PKEY *key = cert ? read_key(key_pem) : NULL;
    int status;
    if (!cert)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Certificate must be base64 encoded PEM certificate");
    else if (!key)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Private key must be base64 encoded PEM key");
    else if (X509_check_private_key(cert, key) != 1)
        status = error_set(err, STATUS_INVALID_ARGUMENT, "The private key does not belong to the certificate");
    else
        status = cert_fingerprint(cert_pem, out->fingerprint, err);
    ERR_clear_error();
    X509_free(cert);
    EVP_PKEY_free(key);
    if (status == STATUS_OK) {
        out->cert_pem = xstrdup(cert_pem);
        out->key_pem = xstrdup(key_pem);
    }
    return status;
}

/* For buffers and texts that held a private key. */
static void free_secret(char *text)
{
    if (text)
        OPENSSL_cleanse(text, strlen(text));
    free(text);
}

int identity_load(const char *cert_path, const char *key_path, struct identity *out, struct error *err)
{
    *out = (struct identity){0};
    struct buf cert = {0}, key = {0};
    int status = file_read(cert_path, CERT_FILE_BYTES_MAX, &cert, err);
    if (status == STATUS_OK)
        status = file_read(key_path, CERT_FILE_BYTES_MAX, &key, err);
    if (status == STATUS_OK) {
        status = identity_from_pem(cert.data, key.data, out, err);
        if (status != STATUS_OK)
            error_prefix(err, "%s, %s", cert_path, key_path);
    }
    buf_free(&cert);
    free_secret(buf_take(&key));
    return status;
}

int identity_save(const struct identity *identity, const char *cert_path, const char *key_path, struct error *err)
{
    int status = file_write_atomic(key_path, identity->key_pem, strlen(identity->key_pem), 0600, err);
    if (status == STATUS_OK)
        status = file_write_atomic(cert_path, identity->cert_pem, strlen(identity->cert_pem), 0644, err);
    return status;
}

int identity_load_or_create(const char *cert_path, const char *key_path, const char *name, struct identity *out, struct error *err)
{
    if (access(cert_path, F_OK) == 0 || access(key_path, F_OK) == 0)
        return identity_load(cert_path, key_path, out, err);
    int status = identity_create(name, out, err);
    if (status == STATUS_OK)
        status = identity_save(out, cert_path, key_path, err);
    if (status != STATUS_OK)
        identity_free(out);
    return status;
}

void identity_free(struct identity *identity)
{
    if (!identity)
        return;
    free(identity->cert_pem);
    free_secret(identity->key_pem);
    *identity = (struct identity){0};
}

/* ---- passwords ---- */

static bool scrypt(const char *password, const uint8_t salt[SALT_BYTES], uint8_t out[HASH_BYTES])
{
    bool good = EVP_PBE_scrypt(password, strlen(password), salt, SALT_BYTES, SCRYPT_N, SCRYPT_R, SCRYPT_P, SCRYPT_BYTES_MAX, out, HASH_BYTES) == 1;
    ERR_clear_error();
    return good;
}

char *password_hash(const char *password)
{
    uint8_t salt[SALT_BYTES], hash[HASH_BYTES];
    char salt_hex[2 * SALT_BYTES + 1], hash_hex[2 * HASH_BYTES + 1];
    random_bytes(salt, sizeof(salt));
    if (!scrypt(password, salt, hash))
        core_oom(); /* fixed parameters: only memory can lack */
    hex_encode(salt, sizeof(salt), salt_hex);
    hex_encode(hash, sizeof(hash), hash_hex);
    return xasprintf("scrypt$%s$%s", salt_hex, hash_hex);
}

bool password_verify(const char *password, const char *hash)
{
    static const char scheme[] = "scrypt$";
    enum { SALT_AT = sizeof(scheme) - 1, HASH_AT = SALT_AT + 2 * SALT_BYTES + 1, HASH_END = HASH_AT + 2 * HASH_BYTES };
    uint8_t salt[SALT_BYTES], wanted[HASH_BYTES], got[HASH_BYTES];
    char salt_hex[2 * SALT_BYTES + 1];
    if (!password || !hash || !str_prefix(hash, scheme) || strlen(hash) != HASH_END || hash[HASH_AT - 1] != '$')
        return false;
    memcpy(salt_hex, hash + SALT_AT, 2 * SALT_BYTES);
    salt_hex[2 * SALT_BYTES] = 0;
    if (hex_decode(salt_hex, salt, sizeof(salt)) < 0 || hex_decode(hash + HASH_AT, wanted, sizeof(wanted)) < 0)
        return false;
    return scrypt(password, salt, got) && CRYPTO_memcmp(wanted, got, sizeof(got)) == 0;
}
