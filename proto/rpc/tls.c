/* TLS of both sides. Server: asks for the client's certificate without verifying it (possession of the key is proven; trust is decided per call
 * from the fingerprint). Client: pins the server's certificate by fingerprint, whatever name it carries.
 *
 * Threads: gRPC's own call the fetcher and the verifier; each object has its own lock. What may fail: nothing here; a bad certificate shows up
 * as a failed handshake. */
#include "rpc_private.h"
#include <grpc/support/alloc.h>
#include <grpc/support/string_util.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* TLS 1.3 only. libgrpc 1.51 has no C function for the lowest version, and its C++ one does not reach servers with a config fetcher (tried). But
 * the cipher list of TLS 1.2 can be set, TLS 1.3 has its own: a list that nobody can use (there are no pre-shared keys) leaves only TLS 1.3. Must
 * run before gRPC makes its first credentials, and while the process has one thread. */
void tls_init(void)
{
    if (setenv("GRPC_SSL_CIPHER_SUITES", "PSK-AES256-GCM-SHA384", 1) != 0)
        core_oom();
}

/* ---- server ---- */

struct tls_server {
    pthread_mutex_t lock; /* protects the rest */
    char *cert_pem, *key_pem;
    unsigned version, given; /* `given` = the version that gRPC has */
};

static grpc_ssl_certificate_config_reload_status fetch_config(void *user_data, grpc_ssl_server_certificate_config **config)
{
    struct tls_server *tls = user_data;
    grpc_ssl_certificate_config_reload_status status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;

    pthread_mutex_lock(&tls->lock);
    if (tls->given != tls->version) {
        grpc_ssl_pem_key_cert_pair pair = {tls->key_pem, tls->cert_pem};
        /* gRPC asserts that there is a root when it asks for certificates; any will do as nothing is verified. */
        *config = grpc_ssl_server_certificate_config_create(tls->cert_pem, &pair, 1);
        tls->given = tls->version;
        status = GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
    }
    pthread_mutex_unlock(&tls->lock);
    return status;
}

struct tls_server *tls_server_create(const struct identity *identity)
{
    struct tls_server *tls = xcalloc(1, sizeof(*tls));
    pthread_mutex_init(&tls->lock, NULL);
    tls_server_set(tls, identity);
    return tls;
}

void tls_server_set(struct tls_server *tls, const struct identity *identity)
{
    pthread_mutex_lock(&tls->lock);
    free(tls->cert_pem);
    free(tls->key_pem);
    tls->cert_pem = xstrdup(identity->cert_pem);
    tls->key_pem = xstrdup(identity->key_pem);
    tls->version++;
    pthread_mutex_unlock(&tls->lock);
}

void tls_server_destroy(struct tls_server *tls)
{
    if (tls == NULL)
        return;
    free(tls->cert_pem);
    free(tls->key_pem);
    pthread_mutex_destroy(&tls->lock);
    free(tls);
}

grpc_server_credentials *tls_server_credentials(struct tls_server *tls)
{
    grpc_ssl_server_credentials_options *options = grpc_ssl_server_credentials_create_options_using_config_fetcher(
        GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_BUT_DONT_VERIFY, fetch_config, tls);
    return grpc_ssl_server_credentials_create_with_options(options);
}

/* ---- client ---- */

struct tls_pin {
    atomic_int refs; /* the channel, and gRPC's verifier, which may outlive it */
    grpc_tls_certificate_verifier_external verifier;
    char fingerprint[FINGERPRINT_SIZE], alt[FINGERPRINT_SIZE];
    bool (*accept)(void *ud, const char *fingerprint); /* instead of the fixed ones; may be NULL */
    void *ud;
    pthread_mutex_t lock;
    char *seen_pem; /* under lock */
};

static void remember(struct tls_pin *pin, const char *pem)
{
    pthread_mutex_lock(&pin->lock);
    free(pin->seen_pem);
    pin->seen_pem = xstrdup(pem);
    pthread_mutex_unlock(&pin->lock);
}

static int verify(void *user_data, grpc_tls_custom_verification_check_request *request, grpc_tls_on_custom_verification_check_done_cb callback,
                  void *callback_arg, grpc_status_code *status, char **text)
{
    struct tls_pin *pin = user_data;
    char fingerprint[FINGERPRINT_SIZE];
    struct error err = ERROR_INIT;
    (void)callback;
    (void)callback_arg;

    *status = GRPC_STATUS_UNAUTHENTICATED;
    if (request->peer_info.peer_cert == NULL || cert_fingerprint(request->peer_info.peer_cert, fingerprint, &err) != STATUS_OK) {
        *text = gpr_strdup("the server's certificate cannot be read");
        return 1;
    }
    remember(pin, request->peer_info.peer_cert);
    bool any = pin->fingerprint[0] == '\0' && pin->alt[0] == '\0';
    bool good = pin->accept != NULL ? pin->accept(pin->ud, fingerprint)
                                    : any || strcmp(fingerprint, pin->fingerprint) == 0 || strcmp(fingerprint, pin->alt) == 0;
    if (good) {
        *status = GRPC_STATUS_OK;
        return 1;
    }
    char *message = xasprintf("the server's certificate has fingerprint %s, not the pinned one", fingerprint);
    *text = gpr_strdup(message);
    free(message);
    return 1;
}

static void verify_cancel(void *user_data, grpc_tls_custom_verification_check_request *request)
{
    (void)user_data; /* verify() answers at once: there is never anything to cancel */
    (void)request;
}

static void verify_destruct(void *user_data)
{
    tls_pin_unref(user_data);
}

struct tls_pin *tls_pin_create(const char *fingerprint, const char *alt_fingerprint)
{
    struct tls_pin *pin = xcalloc(1, sizeof(*pin));
    atomic_init(&pin->refs, 1);
    pthread_mutex_init(&pin->lock, NULL);
    snprintf(pin->fingerprint, sizeof(pin->fingerprint), "%s", fingerprint != NULL ? fingerprint : "");
    snprintf(pin->alt, sizeof(pin->alt), "%s", alt_fingerprint != NULL ? alt_fingerprint : "");
    pin->verifier.user_data = pin;
    pin->verifier.verify = verify;
    pin->verifier.cancel = verify_cancel;
    pin->verifier.destruct = verify_destruct;
    return pin;
}

struct tls_pin *tls_pin_create_asking(bool (*accept)(void *ud, const char *fingerprint), void *ud)
{
    struct tls_pin *pin = tls_pin_create(NULL, NULL);
    pin->accept = accept;
    pin->ud = ud;
    return pin;
}

void tls_pin_unref(struct tls_pin *pin)
{
    if (pin == NULL || atomic_fetch_sub(&pin->refs, 1) != 1)
        return;
    pthread_mutex_destroy(&pin->lock);
    free(pin->seen_pem);
    free(pin);
}

char *tls_pin_cert(struct tls_pin *pin)
{
    pthread_mutex_lock(&pin->lock);
    char *pem = pin->seen_pem != NULL ? xstrdup(pin->seen_pem) : NULL;
    pthread_mutex_unlock(&pin->lock);
    return pem;
}

grpc_channel_credentials *tls_channel_credentials(struct tls_pin *pin, const struct identity *identity)
{
    grpc_tls_credentials_options *options = grpc_tls_credentials_options_create();
    grpc_tls_credentials_options_set_verify_server_cert(options, 0);
    grpc_tls_credentials_options_set_check_call_host(options, 0);
    if (identity != NULL) {
        grpc_tls_identity_pairs *pairs = grpc_tls_identity_pairs_create();
        grpc_tls_identity_pairs_add_pair(pairs, identity->key_pem, identity->cert_pem);
        grpc_tls_certificate_provider *provider = grpc_tls_certificate_provider_static_data_create(NULL, pairs);
        grpc_tls_credentials_options_set_certificate_provider(options, provider);
        grpc_tls_credentials_options_watch_identity_key_cert_pairs(options);
        grpc_tls_certificate_provider_release(provider);
    }
    atomic_fetch_add(&pin->refs, 1);
    grpc_tls_certificate_verifier *verifier = grpc_tls_certificate_verifier_external_create(&pin->verifier);
    grpc_tls_credentials_options_set_certificate_verifier(options, verifier);
    grpc_tls_certificate_verifier_release(verifier);
    return grpc_tls_credentials_create(options);
}
