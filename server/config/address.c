/* Listen addresses (spec/cluster.md 1.5). Pure but for address_covered with host names, which resolves them. Thread: any. */
#include "keys.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

enum { DEFAULT_PORT = 8443, HOST_MAX = 253 };

static bool is_v6(const char *host)
{
    struct in6_addr addr;
    char plain[HOST_MAX + 1];
    snprintf(plain, sizeof plain, "%s", host);
    plain[strcspn(plain, "%")] = '\0'; /* zone */
    return inet_pton(AF_INET6, plain, &addr) == 1;
}

static bool host_valid(const char *host)
{
    for (const char *c = host; *c != '\0'; c++) {
        if (!isalnum((unsigned char)*c) && *c != '-' && *c != '.' && *c != '_') {
            return false;
        }
    }
    return true;
}

/* Splits; host is without brackets, port may be empty. */
static bool split(const char *text, char host[HOST_MAX + 1], char port[16])
{
    const char *tail;
    size_t len;
    host[0] = port[0] = '\0';
    if (text[0] == '[') {
        const char *close = strchr(text, ']');
        if (close == NULL || (close[1] != '\0' && close[1] != ':')) {
            return false;
        }
        len = (size_t)(close - text - 1);
        text++;
        tail = close[1] == ':' ? close + 2 : close + 1;
    } else {
        const char *first = strchr(text, ':'), *last = strrchr(text, ':');
        if (first != NULL && first != last) { /* bare IPv6 */
            len = strlen(text);
            tail = text + len;
        } else {
            len = first != NULL ? (size_t)(first - text) : strlen(text);
            tail = first != NULL ? first + 1 : text + len;
        }
    }
    if (len > HOST_MAX || strlen(tail) > 5) {
        return false;
    }
    memcpy(host, text, len);
    host[len] = '\0';
    snprintf(port, 16, "%s", tail);
    return true;
}

int address_canonical(const char *text, char *out, size_t size, struct error *err)
{
    char host[HOST_MAX + 1], port[16];
    int64_t number = DEFAULT_PORT;
    if (str_empty(text) || !split(text, host, port) || (port[0] != '\0' && parse_i64(port, 1, 65535, &number) != 0)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid address \"%s\"", text != NULL ? text : "");
    }
    bool v6 = is_v6(host);
    if ((!v6 && !host_valid(host)) || (text[0] == '[' && !v6)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid address \"%s\"", text);
    }
    int len = snprintf(out, size, v6 ? "[%s]:%d" : "%s:%d", host, (int)number);
    return len >= 0 && (size_t)len < size ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid address \"%s\"", text);
}

bool address_wildcard(const char *canonical)
{
    char host[HOST_MAX + 1], port[16];
    if (!split(canonical, host, port)) {
        return false;
    }
    struct in6_addr v6;
    return host[0] == '\0' || strcmp(host, "0.0.0.0") == 0 || (inet_pton(AF_INET6, host, &v6) == 1 && IN6_IS_ADDR_UNSPECIFIED(&v6));
}

static bool same_ip(const struct addrinfo *a, const struct addrinfo *b)
{
    if (a->ai_family != b->ai_family) {
        return false;
    }
    if (a->ai_family == AF_INET) {
        return ((const struct sockaddr_in *)a->ai_addr)->sin_addr.s_addr == ((const struct sockaddr_in *)b->ai_addr)->sin_addr.s_addr;
    }
    return a->ai_family == AF_INET6 && memcmp(&((const struct sockaddr_in6 *)a->ai_addr)->sin6_addr, &((const struct sockaddr_in6 *)b->ai_addr)->sin6_addr, 16) == 0;
}

bool address_covered(const char *a, const char *b)
{
    char host_a[HOST_MAX + 1], port_a[16], host_b[HOST_MAX + 1], port_b[16];
    if (str_empty(a) || str_empty(b) || !split(a, host_a, port_a) || !split(b, host_b, port_b) || strcmp(port_a, port_b) != 0) {
        return false;
    }
    if (strcmp(host_a, host_b) == 0 || address_wildcard(b)) {
        return true;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list_a = NULL, *list_b = NULL;
    bool covered = false;
    if (getaddrinfo(host_a, NULL, &hints, &list_a) == 0 && getaddrinfo(host_b, NULL, &hints, &list_b) == 0) {
        for (const struct addrinfo *x = list_a; x != NULL; x = x->ai_next) {
            for (const struct addrinfo *y = list_b; y != NULL; y = y->ai_next) {
                covered = covered || same_ip(x, y);
            }
        }
    }
    if (list_a != NULL) {
        freeaddrinfo(list_a);
    }
    if (list_b != NULL) {
        freeaddrinfo(list_b);
    }
    return covered;
}

int address_resolves(const char *canonical, struct error *err)
{
    char host[300];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    if (str_empty(canonical) || address_wildcard(canonical)) {
        return STATUS_OK;
    }
    snprintf(host, sizeof host, "%s", canonical[0] == '[' ? canonical + 1 : canonical);
    *(canonical[0] == '[' ? strchr(host, ']') : strrchr(host, ':')) = '\0';
    if (getaddrinfo(host, NULL, &hints, &list) != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Couldn't resolve \"%s\"", host);
    }
    freeaddrinfo(list);
    return STATUS_OK;
}
