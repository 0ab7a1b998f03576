/* Token texts as users paste them into the client. */
#include "client/lib/client.h"
#include "fuzz.h"

static void decode(const char *text)
{
    struct error err = ERROR_INIT;
    json_t *token = token_decode(text, &err);
    if (token == NULL) {
        must_tell(err);
    }
    json_decref(token);
    json_decref(token_decode_trust(text));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = xmalloc(len + 1);
    memcpy(text, data, len);
    text[len] = '\0';
    decode(text);
    free(text);
    text = base64_encode(data, len);
    decode(text);
    free(text);
    return 0;
}
