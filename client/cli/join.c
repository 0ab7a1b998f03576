/* What a join needs and the user has not given: name, address and certificate from a token, the certificate from a file; canonical addresses. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

enum { JOIN_CONNECT_MS = 10 * 1000, CERTIFICATE_BYTES_MAX = 1 << 20 };
static const char *const default_port = "8443";

/* spec/cluster.md 1.5: a bare host gets the port, bare IPv6 brackets, a trailing colon the port. */
char *address_canonical(const char *address)
{
    const char *colon = strrchr(address, ':');
    size_t len = strlen(address);
    if (!len)
        return xstrdup("");
    if (address[0] == '[') {
        const char *end = strchr(address, ']');
        if (end && !end[1])
            return xasprintf("%s:%s", address, default_port);
        return end && strcmp(end, "]:") == 0 ? xasprintf("%s%s", address, default_port) : xstrdup(address);
    }
    if (!colon)
        return xasprintf("%s:%s", address, default_port);
    if (strchr(address, ':') != colon)
        return xasprintf("[%s]:%s", address, default_port);
    return colon[1] ? xstrdup(address) : xasprintf("%s%s", address, default_port);
}

/* Asks the token's addresses in turn for the certificate that the token names. */
static int complete_from_token(json_t *cluster, const json_t *token, struct error *err)
{
    size_t index;
    const json_t *item;
    json_array_foreach(json_object_get(token, "addresses"), index, item)
    {
        const char *given = json_string_value(item);
        char *address = address_canonical(given), *pem;
        char fingerprint[FINGERPRINT_SIZE];
        struct error e = ERROR_INIT;
        int status = client_server_certificate(address, JOIN_CONNECT_MS, &pem, fingerprint, &e);
        if (status) {
            fprintf(stderr, "Error connecting to existing cluster member \"%s\": %s\n", given, e.text);
            free(address);
            continue;
        }
        bool same = strcasecmp(fingerprint, json_text(token, "fingerprint")) == 0;
        if (same) {
            json_object_set_new(cluster, "cluster_address", json_string(address));
            json_object_set_new(cluster, "cluster_certificate", json_string(pem));
        }
        free(pem);
        free(address);
        return same ? STATUS_OK
                    : error_set(err, STATUS_FAILED_PRECONDITION, "Certificate fingerprint mismatch between join token and cluster member \"%s\"", given);
    }
    return error_set(err, STATUS_UNAVAILABLE, "Unable to connect to any of the cluster members specified in join token");
}

int join_complete(json_t *cluster, struct error *err)
{
    const char *path = json_text(cluster, "cluster_certificate_path"), *text = json_text(cluster, "cluster_token");
    if (*path) {
        struct buf pem = {0};
        struct error e = ERROR_INIT;
        int status = file_read(path, CERTIFICATE_BYTES_MAX, &pem, &e);
        if (status == STATUS_NOT_FOUND)
            return error_set(err, STATUS_NOT_FOUND, "Path %s doesn't exist", path);
        if (!status && json_object_set_new(cluster, "cluster_certificate", json_stringn(pem.data ? pem.data : "", pem.len)))
            status = error_set(&e, STATUS_INVALID_ARGUMENT, "%s is not a PEM certificate", path);
        buf_free(&pem);
        if (status) {
            *err = e;
            return status;
        }
    }
    if (!*text)
        return STATUS_OK;
    json_t *token = token_decode(text, err);
    if (!token)
        return (int)err->code;
    json_object_set(cluster, "server_name", json_object_get(token, "server_name"));
    json_object_set(cluster, "cluster_password", json_object_get(cluster, "cluster_token"));
    int status = complete_from_token(cluster, token, err);
    json_decref(token);
    return status;
}
