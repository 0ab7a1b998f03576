/* Token texts: standard Base64 of a JSON object. The server issues the parts as metadata of an operation (camelCase), the client makes the text
 * (snake_case): spec/cluster.md 4.2, spec/api.md 2.2. Pure. */
#include "client.h"
#include <stdlib.h>
#include <string.h>

static int encode(const json_t *operation, const char *name_key, const char *name, char **token, struct error *err)
{
    *token = NULL;
    const char *prefix = "Failed converting token operation to join token";
    const json_t *metadata = json_object_get(operation, "metadata");
    const char *secret = json_text(metadata, "secret"), *fingerprint = json_text(metadata, "fingerprint");
    json_t *addresses = json_object_get(metadata, "addresses");
    if (!*name)
        return error_set(err, STATUS_INTERNAL, "%s: Operation metadata has no name", prefix);
    if (!*secret)
        return error_set(err, STATUS_INTERNAL, "%s: Operation secret key not found or not a string", prefix);
    if (!*fingerprint)
        return error_set(err, STATUS_INTERNAL, "%s: Operation fingerprint key not found or not a string", prefix);
    if (!json_is_array(addresses))
        return error_set(err, STATUS_INTERNAL, "%s: Operation addresses key not found or not a list", prefix);
    const char *expires = json_text(metadata, "expiresAt");
    json_t *object = json_pack("{s:s,s:s,s:O,s:s,s:s}", name_key, name, "fingerprint", fingerprint, "addresses", addresses, "secret", secret,
                               "expires_at", *expires ? expires : "0001-01-01T00:00:00Z");
    char *text = json_dumps(object, JSON_COMPACT);
    *token = base64_encode(text, strlen(text));
    free(text);
    json_decref(object);
    return STATUS_OK;
}

int token_encode(const json_t *operation, char **token, struct error *err)
{
    return encode(operation, "server_name", json_text(json_object_get(operation, "metadata"), "serverName"), token, err);
}

int token_encode_trust(const json_t *operation, char **token, struct error *err)
{
    const json_t *request = json_object_get(json_object_get(operation, "metadata"), "request");
    return encode(operation, "client_name", json_text(request, "name"), token, err);
}

int covey_token_encode(const char *operation, char **token, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    *token = NULL;
    json_error_t where;
    json_t *json = json_loads(operation, 0, &where);
    if (!json)
        return covey__result(error_set(&e, STATUS_INVALID_ARGUMENT, "the operation is not JSON: %s", where.text), &e, err);
    bool trust = json_is_object(json_object_get(json_object_get(json, "metadata"), "request"));
    int status = trust ? token_encode_trust(json, token, &e) : token_encode(json, token, &e);
    json_decref(json);
    return covey__result(status, &e, err);
}

static json_t *decode(const char *text, const char **problem)
{
    size_t len;
    uint8_t *bytes = base64_decode(text, &len);
    *problem = "illegal base64 data";
    if (!bytes || !len) {
        free(bytes);
        return NULL;
    }
    json_error_t where;
    json_t *object = json_loadb((const char *)bytes, len, 0, &where);
    free(bytes);
    *problem = "not a JSON object";
    if (json_is_object(object))
        return object;
    json_decref(object);
    return NULL;
}

static bool is_text_list(const json_t *list)
{
    size_t index;
    const json_t *item;
    json_array_foreach(list, index, item)
    {
        if (!json_is_string(item) || !*json_string_value(item))
            return false;
    }
    return json_array_size(list) > 0;
}

json_t *token_decode(const char *text, struct error *err)
{
    const char *problem;
    json_t *object = decode(text, &problem);
    if (object) {
        problem = NULL;
        if (!*json_text(object, "server_name"))
            problem = "No server name in join token";
        else if (!is_text_list(json_object_get(object, "addresses")))
            problem = "No cluster member addresses in join token";
        else if (!*json_text(object, "secret"))
            problem = "No secret in join token";
        else if (!*json_text(object, "fingerprint"))
            problem = "No certificate fingerprint in join token";
    }
    if (!problem)
        return object;
    json_decref(object);
    error_set(err, STATUS_INVALID_ARGUMENT, "Invalid cluster join token: %s", problem);
    return NULL;
}

json_t *token_decode_trust(const char *text)
{
    const char *problem;
    json_t *object = decode(text, &problem);
    if (object && *json_text(object, "client_name") && is_text_list(json_object_get(object, "addresses")) && *json_text(object, "secret") &&
        *json_text(object, "fingerprint"))
        return object;
    json_decref(object);
    return NULL;
}

int covey_token_decode(const char *token, char **json, struct covey_error *err)
{
    struct error e = ERROR_INIT;
    json_t *object = token_decode(token, &e);
    *json = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    return covey__result((int)e.code, &e, err);
}
