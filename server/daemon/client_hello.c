/* Reading of a TLS ClientHello as far as its ALPN list; see client_hello.h. Every length is checked against the record's end. Cannot fail otherwise. */
#include "client_hello.h"

#include <string.h>

enum { RECORD_HANDSHAKE = 22, HANDSHAKE_CLIENT_HELLO = 1, EXTENSION_ALPN = 16 };

static unsigned get16(const uint8_t *p)
{
    return (unsigned)p[0] << 8 | p[1];
}

size_t client_hello_wanted(const uint8_t *p, size_t len)
{
    if (p[0] != RECORD_HANDSHAKE) {
        return 1;
    }
    if (len < CLIENT_HELLO_HEADER_BYTES) {
        return CLIENT_HELLO_HEADER_BYTES;
    }
    size_t whole = CLIENT_HELLO_HEADER_BYTES + (size_t)get16(p + 3);
    return whole <= CLIENT_HELLO_BYTES_MAX ? whole : len; /* a longer record is no valid one */
}

/* Whether the ALPN list (its 2-byte length first) offers h2 but not http/1.1. */
static bool alpn_is_grpc(const uint8_t *p, size_t len)
{
    bool h2 = false, http1 = false;
    size_t at = 2;
    while (at < len) {
        size_t n = p[at];
        if (at + 1 + n > len) {
            return false;
        }
        h2 = h2 || (n == 2 && memcmp(p + at + 1, "h2", 2) == 0);
        http1 = http1 || (n == 8 && memcmp(p + at + 1, "http/1.1", 8) == 0);
        at += 1 + n;
    }
    return h2 && !http1;
}

bool client_hello_is_grpc(const uint8_t *p, size_t len)
{
    size_t at = CLIENT_HELLO_HEADER_BYTES + 4 + 2 + 32; /* record, handshake header, version, random */
    if (len < CLIENT_HELLO_HEADER_BYTES) {
        return false;
    }
    size_t record = CLIENT_HELLO_HEADER_BYTES + (size_t)get16(p + 3);
    len = len < record ? len : record;
    if (len < at + 1 || p[0] != RECORD_HANDSHAKE || p[CLIENT_HELLO_HEADER_BYTES] != HANDSHAKE_CLIENT_HELLO) {
        return false;
    }
    at += 1u + p[at]; /* session id */
    if (at + 2 > len) {
        return false;
    }
    at += 2u + get16(p + at); /* cipher suites */
    if (at + 1 > len) {
        return false;
    }
    at += 1u + p[at]; /* compression */
    if (at + 2 > len) {
        return false;
    }
    size_t end = at + 2 + get16(p + at);
    at += 2;
    end = end < len ? end : len;
    while (at + 4 <= end) {
        unsigned type = get16(p + at);
        size_t n = get16(p + at + 2);
        at += 4;
        if (at + n > end) {
            return false;
        }
        if (type == EXTENSION_ALPN && n >= 2) {
            return alpn_is_grpc(p + at, n);
        }
        at += n;
    }
    return false;
}
