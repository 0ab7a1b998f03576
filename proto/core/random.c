/* Random bytes from the kernel, UUIDs, SHA-256. Thread: any. Lack of randomness ends the process: nothing could go on safely. */
#include "core.h"
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/random.h>

void random_bytes(void *out, size_t len)
{
    for (char *p = out; len;) {
        ssize_t n = getrandom(p, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        covey_assert(n > 0);
        p += n;
        len -= (size_t)n;
    }
}

void random_hex(char *out, size_t bytes)
{
    uint8_t chunk[64];
    while (bytes) {
        size_t n = bytes < sizeof(chunk) ? bytes : sizeof(chunk);
        random_bytes(chunk, n);
        hex_encode(chunk, n, out);
        out += 2 * n;
        bytes -= n;
    }
    *out = 0;
}

void uuid_new(char out[37])
{
    uint8_t b[16];
    char hex[33];
    random_bytes(b, sizeof(b));
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    hex_encode(b, sizeof(b), hex);
    const char *from = hex;
    for (int i = 0; i < 36; i++)
        out[i] = i == 8 || i == 13 || i == 18 || i == 23 ? '-' : *from++;
    out[36] = 0;
}

bool uuid_valid(const char *text)
{
    if (!text || strlen(text) != 36)
        return false;
    for (int i = 0; i < 36; i++) {
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (dash ? text[i] != '-' : !strchr("0123456789abcdefABCDEF", text[i]))
            return false;
    }
    return true;
}

void sha256_hex(const void *data, size_t len, char out[65])
{
    uint8_t digest[32];
    unsigned size = sizeof(digest);
    covey_assert(EVP_Digest(data, len, digest, &size, EVP_sha256(), NULL) == 1);
    hex_encode(digest, sizeof(digest), out);
}
