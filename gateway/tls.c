/* TLS of the public port: the certificate that is presented (cluster's, else this server's; looked at again at every handshake) and the one that the
 * client shows. Runs on the TLS server's thread only. */
#include "http.h"
#include "request.h"
#include <errno.h>
#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

enum { TLS_FILE_BYTES_MAX = 256 << 10, TLS_CHAIN_MAX = 8, TLS_PARTS_MAX = 8 };

static struct {
    char *dir;
    struct buf cert, key;
    struct timespec cert_time, key_time;
    ino_t cert_inode;
    const char *name; /* which pair is loaded, NULL = none */
} tls;

void certificates_init(const char *dir)
{
    certificates_free();
    tls.dir = xstrdup(dir);
}

void certificates_free(void)
{
    free(tls.dir);
    buf_free(&tls.cert);
    buf_free(&tls.key);
    memset(&tls, 0, sizeof(tls));
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* Two files cannot change at once: between the two a key stands beside a certificate that it does not belong to. */
static bool belong(const struct buf *cert, const struct buf *key)
{
    struct identity pair = {0};
    struct error err = ERROR_INIT;
    bool good = identity_from_pem(cert->data, key->data, &pair, &err) == STATUS_OK;
    identity_free(&pair);
    if (!good)
        log_info("gateway.certificate", "%s", err.text);
    return good;
}

/* Reads the pair `name` if it exists and changed; false if it does not exist. While its files do not fit, the pair that was read before stays. */
static bool load(const char *name)
{
    struct stat cert_stat, key_stat;
    struct error err = ERROR_INIT;
    char *cert_path = xasprintf("%s/%s.crt", tls.dir, name), *key_path = xasprintf("%s/%s.key", tls.dir, name);
    bool found = stat(cert_path, &cert_stat) == 0 && stat(key_path, &key_stat) == 0;
    bool fresh = found && tls.name == name && same_time(cert_stat.st_mtim, tls.cert_time) && same_time(key_stat.st_mtim, tls.key_time) &&
                 cert_stat.st_ino == tls.cert_inode;
    if (found && !fresh) {
        struct buf cert = {0}, key = {0};
        bool read = file_read(cert_path, TLS_FILE_BYTES_MAX, &cert, &err) == STATUS_OK && file_read(key_path, TLS_FILE_BYTES_MAX, &key, &err) == STATUS_OK;
        if (read && belong(&cert, &key)) {
            buf_free(&tls.cert);
            buf_free(&tls.key);
            tls.cert = cert;
            tls.key = key;
            tls.name = name;
            tls.cert_time = cert_stat.st_mtim;
            tls.key_time = key_stat.st_mtim;
            tls.cert_inode = cert_stat.st_ino;
        } else {
            if (!read)
                log_warn("gateway.certificate", "%s", err.text);
            buf_free(&cert);
            buf_free(&key);
        }
    }
    free(cert_path);
    free(key_path);
    return found;
}

/* gnutls frees what it gets: parsed anew for every handshake (0.1 ms of some 3). */
static int on_certificate(gnutls_session_t session, const struct gnutls_cert_retr_st *info, gnutls_pcert_st **certs, unsigned *count,
                          gnutls_ocsp_data_st **ocsp, unsigned *ocsp_count, gnutls_privkey_t *key, unsigned *flags)
{
    (void)session;
    (void)info;
    if (!load("cluster") && !load("server"))
        log_warn("gateway.certificate", "neither cluster.crt nor server.crt is there");
    if (tls.name == NULL)
        return -1;
    gnutls_datum_t cert_pem = {(unsigned char *)tls.cert.data, (unsigned)tls.cert.len};
    gnutls_datum_t key_pem = {(unsigned char *)tls.key.data, (unsigned)tls.key.len};
    gnutls_pcert_st *list = gnutls_calloc(TLS_CHAIN_MAX, sizeof(*list));
    gnutls_privkey_t private_key = NULL;
    unsigned n = TLS_CHAIN_MAX;
    if (list == NULL)
        core_oom();
    int rc = gnutls_pcert_list_import_x509_raw(list, &n, &cert_pem, GNUTLS_X509_FMT_PEM, 0);
    if (rc >= 0)
        rc = gnutls_privkey_init(&private_key);
    if (rc >= 0)
        rc = gnutls_privkey_import_x509_raw(private_key, &key_pem, GNUTLS_X509_FMT_PEM, NULL, 0);
    if (rc < 0) {
        log_warn("gateway.certificate", "%s.crt: %s", tls.name, gnutls_strerror(rc));
        gnutls_free(list);
        if (private_key != NULL)
            gnutls_privkey_deinit(private_key);
        return -1;
    }
    *certs = list;
    *count = n;
    *ocsp = NULL;
    *ocsp_count = 0;
    *key = private_key;
    *flags = GNUTLS_CERT_RETR_DEINIT_ALL;
    return 0;
}

const void *const certificates_callback = (const void *)on_certificate;

void certificates_request(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    gnutls_session_t session = info != NULL ? info->tls_session : NULL;
    if (session == NULL)
        return;
    /* Asked for, not required, not verified; and without names of authorities, by which Go clients would filter theirs away. */
    gnutls_certificate_server_set_request(session, GNUTLS_CERT_REQUEST);
    gnutls_certificate_send_x509_rdn_sequence(session, 1);
}

/* ---- header and body in one packet ---- */

static ssize_t send_parts(gnutls_transport_ptr_t ptr, const giovec_t *parts, int count)
{
    struct peer *peer = ptr;
    struct iovec out[1 + TLS_PARTS_MAX];
    if (peer->hold_next) {
        ssize_t total = 0;
        peer->hold_next = false;
        for (int i = 0; i < count; i++) {
            buf_add(&peer->held, parts[i].iov_base, parts[i].iov_len);
            total += (ssize_t)parts[i].iov_len;
        }
        return total;
    }
    struct msghdr message = {.msg_iov = out};
    if (peer->held.len > 0)
        out[message.msg_iovlen++] = (struct iovec){peer->held.data, peer->held.len};
    for (int i = 0; i < count && i < TLS_PARTS_MAX; i++)
        out[message.msg_iovlen++] = (struct iovec){parts[i].iov_base, parts[i].iov_len};
    ssize_t sent = sendmsg(peer->fd, &message, MSG_NOSIGNAL);
    if (sent < 0 || peer->held.len == 0)
        return sent;
    if ((size_t)sent <= peer->held.len) { /* nothing of the new parts: as if the socket had been full */
        peer->held.len -= (size_t)sent;
        memmove(peer->held.data, peer->held.data + sent, peer->held.len);
        errno = EAGAIN;
        return -1;
    }
    sent -= (ssize_t)peer->held.len;
    peer->held.len = 0; /* its memory is for the next answer */
    return sent;
}

void tls_join_parts(struct MHD_Connection *connection, struct peer *peer)
{
    const union MHD_ConnectionInfo *tls_info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    gnutls_session_t session = tls_info != NULL ? tls_info->tls_session : NULL;
    const union MHD_ConnectionInfo *fd_info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (session == NULL || fd_info == NULL)
        return;
    peer->fd = fd_info->connect_fd;
    gnutls_transport_set_ptr2(session, (gnutls_transport_ptr_t)(intptr_t)peer->fd, peer);
    gnutls_transport_set_vec_push_function(session, send_parts);
}

void certificates_of_peer(struct MHD_Connection *connection, struct peer *peer)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    unsigned count = 0;
    uint8_t digest[32];
    size_t size = sizeof(digest);
    peer->cert_checked = true;
    if (info == NULL || info->tls_session == NULL)
        return;
    const gnutls_datum_t *list = gnutls_certificate_get_peers(info->tls_session, &count);
    if (list == NULL || count == 0 || gnutls_certificate_type_get(info->tls_session) != GNUTLS_CRT_X509)
        return;
    if (list[0].size > GATEWAY_CERT_DER_BYTES_MAX) {
        peer->cert_too_large = true;
        return;
    }
    if (gnutls_fingerprint(GNUTLS_DIG_SHA256, &list[0], digest, &size) != 0 || size != sizeof(digest))
        return;
    hex_encode(digest, sizeof(digest), peer->fingerprint);
    memcpy(peer->user, peer->fingerprint, sizeof(peer->user));
    peer->cert_base64 = base64_encode(list[0].data, list[0].size);
}
