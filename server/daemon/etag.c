/* ETags over the writable part of an object. */
#include "etag.h"

#include <string.h>

char *etag_make(struct arena *arena, const ProtobufCMessage *message, const char *fields)
{
    struct buf text = {0};
    char hex[65], *copy = arena_strdup(arena, fields), *save = NULL;
    for (char *field = strtok_r(copy, ",", &save); field != NULL; field = strtok_r(NULL, ",", &save)) {
        codec_field_to_json(message, field, &text);
        buf_puts(&text, "\n");
    }
    sha256_hex(text.data, text.len, hex);
    buf_free(&text);
    return arena_strdup(arena, hex);
}

int etag_check(const char *if_match, const char *etag, struct error *err)
{
    size_t len = if_match != NULL ? strlen(if_match) : 0;
    if (len == 0) {
        return STATUS_OK;
    }
    if (len >= 2 && if_match[0] == '"' && if_match[len - 1] == '"') {
        if_match++;
        len -= 2;
    }
    if (strlen(etag) == len && strncmp(etag, if_match, len) == 0) {
        return STATUS_OK;
    }
    return error_set(err, STATUS_ABORTED, "ETag doesn't match: %s vs %.*s", etag, (int)len, if_match);
}
