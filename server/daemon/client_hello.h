/* What the first TLS record of a connection tells before any TLS is spoken: whether gRPC or REST is wanted. Pure; thread: any. */
#ifndef COVEY_SERVER_DAEMON_CLIENT_HELLO_H
#define COVEY_SERVER_DAEMON_CLIENT_HELLO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CLIENT_HELLO_HEADER_BYTES = 5,
    CLIENT_HELLO_BYTES_MAX = 16384 + CLIENT_HELLO_HEADER_BYTES, /* one TLS record */
};

/* How many bytes from the start of the connection are wanted before client_hello_is_grpc is asked; at most `len` when these are enough: the record is whole, or it
 * cannot become a ClientHello that is understood here. len > 0. */
size_t client_hello_wanted(const uint8_t *p, size_t len);
/* Whether p begins with a ClientHello whose ALPN list offers h2 but not http/1.1. All else, also what is malformed or goes on in a second record, is false. */
bool client_hello_is_grpc(const uint8_t *p, size_t len);

#endif
