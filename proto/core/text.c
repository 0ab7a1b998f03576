/* Text: hex, base64, UTF-8, JSON strings, numbers. Pure; thread: any. */
#include "core.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char hex_digits[] = "0123456789abcdef";

void hex_encode(const uint8_t *data, size_t len, char *out)
{
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = hex_digits[data[i] >> 4];
        out[2 * i + 1] = hex_digits[data[i] & 15];
    }
    out[2 * len] = 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int hex_decode(const char *hex, uint8_t *out, size_t len)
{
    if (strlen(hex) != 2 * len)
        return -1;
    for (size_t i = 0; i < len; i++) {
        int high = hex_value(hex[2 * i]), low = hex_value(hex[2 * i + 1]);
        if (high < 0 || low < 0)
            return -1;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

static const char base64_digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void base64_write(const uint8_t *in, size_t len, char *out)
{
    for (; len >= 3; in += 3, len -= 3) {
        uint32_t v = (uint32_t)in[0] << 16 | (uint32_t)in[1] << 8 | in[2];
        *out++ = base64_digits[v >> 18];
        *out++ = base64_digits[v >> 12 & 63];
        *out++ = base64_digits[v >> 6 & 63];
        *out++ = base64_digits[v & 63];
    }
    if (len) {
        uint32_t v = (uint32_t)in[0] << 16 | (len == 2 ? (uint32_t)in[1] << 8 : 0);
        *out++ = base64_digits[v >> 18];
        *out++ = base64_digits[v >> 12 & 63];
        *out++ = len == 2 ? base64_digits[v >> 6 & 63] : '=';
        *out++ = '=';
    }
}

char *base64_encode(const void *data, size_t len)
{
    struct buf buf = {0};
    buf_base64(&buf, data, len);
    return buf_take(&buf);
}

void buf_base64(struct buf *buf, const void *data, size_t len) { base64_write(data, len, buf_grow(buf, (len + 2) / 3 * 4)); }

static int base64_value(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Padding is required and must end the text: four digits a group, as in RFC 4648. */
uint8_t *base64_decode(const char *text, size_t *len)
{
    uint8_t *out = xmalloc(strlen(text) / 4 * 3 + 4);
    size_t n = 0;
    uint32_t group = 0;
    unsigned digits = 0, padding = 0;
    for (; *text; text++) {
        if (*text == ' ' || *text == '\n' || *text == '\r' || *text == '\t')
            continue;
        int value = base64_value(*text);
        bool pad = *text == '=' && digits >= 2;
        if ((value < 0 && !pad) || (value >= 0 && padding))
            goto invalid;
        padding += pad;
        group = group << 6 | (pad ? 0 : (uint32_t)value);
        if (++digits < 4)
            continue;
        uint8_t bytes[3] = {(uint8_t)(group >> 16), (uint8_t)(group >> 8), (uint8_t)group};
        memcpy(out + n, bytes, 3 - padding);
        n += 3 - padding;
        digits = 0;
        group = 0;
        if (padding) { /* only white space may follow */
            text++;
            if (text[strspn(text, " \n\r\t")])
                goto invalid;
            break;
        }
    }
    if (digits)
        goto invalid;
    *len = n;
    return out;
invalid:
    free(out);
    *len = 0;
    return NULL;
}

/* Length of the valid UTF-8 sequence at p (shortest form, no surrogates, up to U+10FFFF), 0 if there is none. */
static size_t utf8_sequence(const uint8_t *p, size_t left)
{
    if (p[0] < 0x80)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4)
        return 0;
    size_t n = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (left < n)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

bool utf8_valid(const char *data, size_t len)
{
    const uint8_t *p = (const uint8_t *)data;
    for (size_t i = 0; i < len;) {
        if (p[i] < 0x80) {
            if (!p[i])
                return false;
            i++;
            continue;
        }
        size_t n = utf8_sequence(p + i, len - i);
        if (!n)
            return false;
        i += n;
    }
    return true;
}

/* What stands after the backslash for one byte; 0 = the \u form; 1 = nothing to escape. */
static char json_escape(uint8_t c)
{
    switch (c) {
    case '"':
        return '"';
    case '\\':
        return '\\';
    case '\b':
        return 'b';
    case '\f':
        return 'f';
    case '\n':
        return 'n';
    case '\r':
        return 'r';
    case '\t':
        return 't';
    default:
        return c < 0x20 ? 0 : 1;
    }
}

/* ASCII that stands for itself in a JSON string. */
static const uint8_t json_plain[256] = {[0x20 ... 0x21] = 1, [0x23 ... 0x5b] = 1, [0x5d ... 0x7f] = 1};

void buf_json_string(struct buf *buf, const char *s)
{
    size_t len = 0, start = 0;
    const uint8_t *p = (const uint8_t *)s;
    while (json_plain[p[len]])
        len++;
    if (!p[len]) { /* nearly always: nothing to escape */
        char *at = buf_grow(buf, len + 2);
        *at = '"';
        memcpy(at + 1, s, len);
        at[len + 1] = '"';
        return;
    }
    size_t i = len;
    len += strlen(s + len);
    buf_add(buf, "\"", 1);
    while (i < len) {
        if (json_plain[p[i]]) {
            i++;
            continue;
        }
        if (p[i] >= 0x80) {
            size_t n = utf8_sequence(p + i, len - i);
            if (n) {
                i += n;
                continue;
            }
        }
        buf_add(buf, s + start, i - start);
        if (p[i] >= 0x80) {
            buf_add(buf, "\xef\xbf\xbd", 3);
        } else {
            char escape = json_escape(p[i]);
            char text[6] = {'\\', escape, '0', '0', hex_digits[p[i] >> 4], hex_digits[p[i] & 15]};
            if (!escape)
                text[1] = 'u';
            buf_add(buf, text, escape ? 2 : 6);
        }
        start = ++i;
    }
    buf_add(buf, s + start, len - start);
    buf_add(buf, "\"", 1);
}

bool str_empty(const char *s) { return !s || !*s; }
bool str_eq(const char *a, const char *b) { return strcmp(a ? a : "", b ? b : "") == 0; }
bool str_prefix(const char *s, const char *prefix) { return strncmp(s, prefix, strlen(prefix)) == 0; }

int parse_i64(const char *text, int64_t min, int64_t max, int64_t *out)
{
    if (!text)
        return -1;
    const char *digits = *text == '-' || *text == '+' ? text + 1 : text;
    if (!*digits || digits[strspn(digits, "0123456789")])
        return -1;
    errno = 0;
    long long value = strtoll(text, NULL, 10);
    if (errno || value < min || value > max)
        return -1;
    *out = value;
    return 0;
}

int parse_bool(const char *text, bool *out)
{
    static const struct {
        const char *text;
        bool value;
    } words[] = {{"true", true}, {"false", false}, {"yes", true}, {"no", false}, {"1", true}, {"0", false}, {"on", true}, {"off", false}};
    for (size_t i = 0; text && i < sizeof(words) / sizeof(words[0]); i++) {
        if (strcasecmp(text, words[i].text) == 0) {
            *out = words[i].value;
            return 0;
        }
    }
    return -1;
}
