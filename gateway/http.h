/* The two HTTP servers: unix.socket, and TLS for sockets that the daemon accepted. */
#ifndef COVEY_GATEWAY_HTTP_H
#define COVEY_GATEWAY_HTTP_H

#include "gateway.h"

int http_start(const struct gateway_options *options, struct error *err);
/* Hands a connected TCP socket (taken) over to the TLS server. */
void http_take_tls(int fd, const char *address);
void http_quiesce(void); /* no new connections; removes unix.socket */
unsigned http_requests_active(void);
bool http_wait_idle(int64_t timeout_ms); /* until no request is active */
void http_stop(void);    /* only when no request is suspended */

/* ---- tls.c ---- */
struct MHD_Connection;
void certificates_init(const char *dir);
void certificates_free(void);
/* gnutls's callback for MHD_OPTION_HTTPS_CERT_CALLBACK2. */
extern const void *const certificates_callback;
void certificates_request(struct MHD_Connection *connection);
struct peer;
void certificates_of_peer(struct MHD_Connection *connection, struct peer *peer);
/* At the start of a TLS connection: the next part that is sent waits for the one after it when peer->hold_next says so. */
void tls_join_parts(struct MHD_Connection *connection, struct peer *peer);

/* ---- feed.c ---- */
void feed_start(const char *dir);
void feed_stop(void); /* hub thread must run */

#endif
