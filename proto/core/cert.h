/* X.509 identities: self-signed ECDSA P-384 certificates, PEM/DER, SHA-256 fingerprints. OpenSSL. Thread: any. */
#ifndef COVEY_CORE_CERT_H
#define COVEY_CORE_CERT_H

#include "error.h"
#include <stddef.h>
#include <stdint.h>

enum { FINGERPRINT_SIZE = 65 }; /* 64 lower-case hex digits and NUL: SHA-256 of the DER */

struct identity { /* a certificate with its key, both PEM; owned */
    char *cert_pem;
    char *key_pem;
    char fingerprint[FINGERPRINT_SIZE];
};

/* Makes a self-signed P-384 certificate for ten years: digitalSignature + keyEncipherment, serverAuth and clientAuth, not a CA, CN `name`,
 * SAN DNS `name` plus 127.0.0.1 and ::1 (spec/api.md 1.1). */
int identity_create(const char *name, struct identity *out, struct error *err);
/* Loads both files; the key must belong to the certificate. */
int identity_load(const char *cert_path, const char *key_path, struct identity *out, struct error *err);
/* From PEM texts; checks that both parse and belong together. Texts: "Certificate must be base64 encoded PEM certificate",
 * "Private key must be base64 encoded PEM key". */
int identity_from_pem(const char *cert_pem, const char *key_pem, struct identity *out, struct error *err);
int identity_save(const struct identity *identity, const char *cert_path, const char *key_path, struct error *err); /* key mode 0600 */
/* Loads, or creates and saves when neither file exists. */
int identity_load_or_create(const char *cert_path, const char *key_path, const char *name, struct identity *out, struct error *err);
void identity_free(struct identity *identity);

/* The same PEM with no empty lines, carriage returns and blanks around lines within its blocks: certificates that went through YAML or a web form have them. What
 * has none is not changed. Caller frees. */
char *pem_tidy(const char *pem);
/* Whether TLS libraries accept the certificate's key: at least 112 bits of security (RSA 2048, EC 224). */
int cert_check_strength(const char *pem, struct error *err);
/* Signature over `text` by a private key in PEM, and its check with the certificate of the signer. Caller frees *signature. */
int key_sign(const char *key_pem, const char *text, uint8_t **signature, size_t *len, struct error *err);
bool cert_verify(const char *cert_pem, const char *text, const uint8_t *signature, size_t len);

/* Fingerprint of the first certificate of a PEM text (about 2 us: base64 body, no X.509 parsing). */
int cert_fingerprint(const char *pem, char out[FINGERPRINT_SIZE], struct error *err);
/* Parses DER (given in base64, without armour) fully and gives PEM + fingerprint + common name (each malloc'ed / buffer). */
int cert_from_base64_der(const char *base64, char **pem, char fingerprint[FINGERPRINT_SIZE], char **common_name, struct error *err);
/* Parses a PEM text fully; gives fingerprint and common name (only the latter pointer may be NULL). Rejects text that is not exactly one certificate. */
int cert_check_pem(const char *pem, char fingerprint[FINGERPRINT_SIZE], char **common_name, struct error *err);
/* Validity dates, unix seconds. Parses X.509 (about 100 us): not for every call. */
int cert_dates(const char *pem, int64_t *from, int64_t *until, struct error *err);
/* STATUS_OK when now lies within the validity dates. */
int cert_check_dates(const char *pem, struct error *err);
/* PEM to base64 DER (malloc'ed). */
char *cert_pem_to_base64_der(const char *pem);

/* Passwords: salted scrypt (N=2^14 r=8 p=1), text "scrypt$<salt hex>$<hash hex>"; verification in constant time. */
char *password_hash(const char *password);
bool password_verify(const char *password, const char *hash);

#endif
