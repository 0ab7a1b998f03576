/* libcovey inside: the same calls with jansson values and the project's own error type. For the library's files and the command line. */
#ifndef COVEY_CLIENT_CLIENT_H
#define COVEY_CLIENT_CLIENT_H

#include "client/include/covey/covey.h"
#include "proto/rpc/rpc.h"

enum {
    CLIENT_TIMEOUT_MS = 60 * 1000,            /* one call */
    CLIENT_LONG_TIMEOUT_MS = 10 * 60 * 1000,  /* one call of a method declared long */
    CLIENT_WAIT_SLICE_S = 1,                  /* one WaitOperation: bounds the delay of progress and of an interruption */
    CLIENT_WAIT_GRACE_MS = 15 * 1000,         /* over the slice, before a WaitOperation without an answer is given up */
    CLIENT_WAIT_RETRIES_MAX = 120,            /* consecutive failures to reach the server while waiting (the daemon may restart in a join) */
    CLIENT_CHUNK_BYTES = 32 * 1024,           /* data in one frame of an exec stream */
};

struct covey_client {
    struct rpc_channel *channel;
    char *name; /* path or address, for texts */
};

struct covey_stream {
    struct rpc_call *call;
    const struct method *method;
    struct arena arena; /* of the message received last */
    bool ended;         /* data streams: the peer's end of data has been seen */
};

int client_connect_local(const char *dir, struct covey_client **client, struct error *err);
/* fingerprint "" accepts any certificate: only to learn it. identity may be NULL. */
struct covey_client *client_connect_tls(const char *address, const char *fingerprint, const struct identity *identity);
int client_server_certificate(const char *address, int64_t timeout_ms, char **pem, char fingerprint[FINGERPRINT_SIZE], struct error *err);
/* "Profiles/GetProfile", "covey.v1.Profiles/GetProfile", "covey.v1.Profiles.GetProfile"; NULL and err if there is no such method. */
const struct method *client_method(const char *name, struct error *err);
/* Consumes `request` (NULL = {}). *response may be NULL if not wanted; *etag (may be NULL) is malloc'ed or NULL. */
int client_call(struct covey_client *client, const char *method, json_t *request, json_t **response, struct error *err);
int client_call_etag(struct covey_client *client, const char *method, json_t *request, json_t **response, char **etag, struct error *err);
int client_call_options(struct covey_client *client, const char *method, json_t *request, json_t **response, char **etag,
                        const struct covey_options *options, struct error *err);
/* A message from JSON with the keys update_mask and if_match (they have no JSON form of their own). `request` is borrowed. */
ProtobufCMessage *client_message(const struct method *method, const json_t *request, struct arena *arena, struct error *err);
json_t *client_json(const ProtobufCMessage *message, struct error *err);

int client_stream_open(struct covey_client *client, const char *method, json_t *request, int64_t timeout_ms, struct covey_stream **stream,
                       struct error *err);
int client_stream_send(struct covey_stream *stream, json_t *message, struct error *err); /* consumes message */
int client_stream_receive(struct covey_stream *stream, ProtobufCMessage **message, struct error *err); /* valid until the next receive */
int client_attach(struct covey_client *client, const char *operation, const char *secret, struct covey_stream **stream, struct error *err);
int client_attach_write(struct covey_stream *stream, const void *data, size_t len, struct error *err);
int client_attach_end(struct covey_stream *stream, struct error *err);
int client_attach_control(struct covey_stream *stream, const char *command, struct error *err);
/* Data in *data (valid until the next read); STATUS_OUT_OF_RANGE at the end. */
int client_attach_read(struct covey_stream *stream, const uint8_t **data, size_t *len, struct error *err);

typedef bool (*client_progress)(const json_t *operation, void *ud);
int client_wait(struct covey_client *client, const char *id, int64_t timeout_ms, client_progress progress, void *ud, json_t **operation,
                struct error *err);
/* The outcome of an operation that is final already: true, with *status and err set; false while it runs. */
bool client_final(const json_t *operation, int *status, struct error *err);
int client_cancel(struct covey_client *client, const char *id, struct error *err);

/* Token texts. `operation` borrowed; *token malloc'ed. */
int token_encode(const json_t *operation, char **token, struct error *err);
int token_encode_trust(const json_t *operation, char **token, struct error *err);
/* A new reference; errors carry the prefix "Invalid cluster join token: ". */
json_t *token_decode(const char *text, struct error *err);
/* Whether the text is a client certificate token; gives its JSON. */
json_t *token_decode_trust(const char *text);

/* A string member of a JSON object, "" if missing. */
const char *json_text(const json_t *object, const char *key);
int covey__result(int status, const struct error *from, struct covey_error *to);

#endif
