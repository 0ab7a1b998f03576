/* Paths and query strings of REST requests. */
#include "fuzz.h"
#include "gateway/request.h"
#include "gateway/route.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    registry_init();
    routes_init();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const char *const verbs[] = {"GET", "PUT", "PATCH", "POST", "DELETE"};
    struct arena arena;
    struct route_match match;
    struct param params[GATEWAY_PARAMS_MAX];
    struct error err = ERROR_INIT;
    char *text = xmalloc(len + 1);
    size_t count = 0;
    memcpy(text, data, len);
    text[len] = '\0';
    arena_init(&arena);
    char *query = strchr(text, '?');
    if (query != NULL)
        *query++ = '\0';
    if (route_find(text, strlen(text), &arena, &match, &err) != STATUS_OK) {
        must_tell(err);
    } else {
        must(match.route_count > 0 && match.segment_count > 0 && match.segment_count <= GATEWAY_SEGMENTS_MAX);
        for (size_t i = 0; i < match.segment_count; i++)
            must(match.segments[i] != NULL && utf8_valid(match.segments[i], strlen(match.segments[i])));
        bool any = false;
        for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
            any = route_verb(&match, verbs[i]) || any;
        must(any);
    }
    err = (struct error)ERROR_INIT;
    if (query != NULL) {
        if (params_parse(&arena, query, params, GATEWAY_PARAMS_MAX, &count, &err) != STATUS_OK)
            must_tell(err);
        else
            for (size_t i = 0; i < count; i++)
                must(params[i].name != NULL && params[i].value != NULL);
    }
    arena_clear(&arena);
    free(text);
    return 0;
}
