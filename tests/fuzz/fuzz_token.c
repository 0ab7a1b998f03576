/* Token texts as clients and joining members present them to the daemon. */
#include "fuzz.h"
#include "server/auth/tokens.h"

struct daemon *the_daemon; /* main.c is not linked */

static void decode(const char *text)
{
    struct token_text token;
    if (token_decode(text, &token)) {
        must(token.name != NULL && token.fingerprint != NULL && token.secret != NULL && token.secret[0] != '\0' && token.addresses != NULL);
        must(!token.join || token.name[0] != '\0');
        token_text_free(&token);
    } else {
        must(token.name == NULL && token.addresses == NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = xmalloc(len + 1); /* as it is … */
    memcpy(text, data, len);
    text[len] = '\0';
    decode(text);
    free(text);
    text = base64_encode(data, len); /* … and as the JSON inside */
    decode(text);
    free(text);
    return 0;
}
