/* libcovey: the C client library of covey.
 *
 * A client talks gRPC to one member: over its local socket, or over TLS with a client certificate. Any method of the contract can be called by
 * its name, with JSON (names and forms are those of the REST interface) or with protobuf-c messages. Besides: waiting for operations, streams,
 * events, exec, tokens.
 *
 * Rules that hold everywhere: a function that can fail returns 0 or a gRPC status code (a COVEY_ value) and fills *err (which may be NULL);
 * outputs are NULL after a failure; strings given out are the caller's, to be released by covey_free(). Everything blocks unless said otherwise,
 * each wait has a limit. A client may be used by several threads at once; a stream by one sender and one receiver. Do not fork (without exec)
 * in a process that has called covey_init(). */
#ifndef COVEY_COVEY_H
#define COVEY_COVEY_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum covey_status { /* gRPC's numbers */
    COVEY_OK = 0,
    COVEY_CANCELLED = 1,
    COVEY_UNKNOWN = 2, /* the outcome is not known: repeat with the same request id */
    COVEY_INVALID_ARGUMENT = 3,
    COVEY_DEADLINE_EXCEEDED = 4,
    COVEY_NOT_FOUND = 5,
    COVEY_ALREADY_EXISTS = 6,
    COVEY_PERMISSION_DENIED = 7,
    COVEY_RESOURCE_EXHAUSTED = 8,
    COVEY_FAILED_PRECONDITION = 9,
    COVEY_ABORTED = 10,
    COVEY_OUT_OF_RANGE = 11, /* also: the end of a stream */
    COVEY_UNIMPLEMENTED = 12,
    COVEY_INTERNAL = 13,
    COVEY_UNAVAILABLE = 14,
    COVEY_DATA_LOSS = 15,
    COVEY_UNAUTHENTICATED = 16
};

enum { COVEY_ERROR_TEXT_MAX = 1024, COVEY_FINGERPRINT_SIZE = 65 };

struct covey_error {
    int code; /* enum covey_status */
    char text[COVEY_ERROR_TEXT_MAX];
};

struct covey_client;
struct covey_stream;

/* Starts the library; may be called again. covey_connect_* call it. Signals that the program wants to handle in a thread of its own must be
 * blocked before, since the library's threads inherit the mask. */
void covey_init(void);
/* Ends the library's threads. Every client must be closed and every stream freed before; nothing else may be called afterwards. */
void covey_end(void);
void covey_free(void *p);

/* ---- connections ---- */

/* Connects to the daemon of this machine; dir = its state directory, NULL: $COVEY_DIR, or /var/lib/covey. */
int covey_connect_local(const char *dir, struct covey_client **client, struct covey_error *err);

struct covey_remote {
    const char *address;     /* "host:port" of any member */
    const char *fingerprint; /* SHA-256 of the server's certificate, hex; must not be empty */
    const char *cert_pem;    /* own client certificate and key, PEM; NULL: none */
    const char *key_pem;
};
/* Prepares a connection to a member elsewhere. The first call connects: an unreachable server shows there. */
int covey_connect_remote(const struct covey_remote *remote, struct covey_client **client, struct covey_error *err);
void covey_close(struct covey_client *client); /* NULL is fine; no stream may be open */

/* The certificate that a server presents, whatever it is: to show its fingerprint to somebody who decides whether to trust it. */
int covey_server_certificate(const char *address, int64_t timeout_ms, char **pem, char fingerprint[COVEY_FINGERPRINT_SIZE], struct covey_error *err);

/* ---- calls ---- */

struct covey_options {
    int64_t timeout_ms;     /* 0: one minute, ten for methods that are declared long */
    const char *request_id; /* UUID: the same id is the same write; NULL: a new one */
};

/* Calls a unary method: "covey.v1.Profiles/GetProfile" (package covey.v1 may be left out). request: a JSON object or NULL. Its key "update_mask"
 * (comma list of field names) limits an update to these fields, "if_match" is the ETag that must still hold. options may be NULL. */
int covey_call(struct covey_client *client, const char *method, const char *request, char **response, const struct covey_options *options,
               struct covey_error *err);
/* The same with messages; *response is released by covey_message_free. */
int covey_call_message(struct covey_client *client, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response,
                       const struct covey_options *options, struct covey_error *err);
void covey_message_free(ProtobufCMessage *message);

/* ---- streams ---- */

/* Opens a streaming method; request (JSON) is for methods that only the server streams, NULL for the others. */
int covey_stream_open(struct covey_client *client, const char *method, const char *request, struct covey_stream **stream, struct covey_error *err);
int covey_stream_send(struct covey_stream *stream, const char *message, struct covey_error *err);
int covey_stream_close_send(struct covey_stream *stream); /* nothing more from here */
/* The next message as JSON; COVEY_OUT_OF_RANGE at the end. */
int covey_stream_receive(struct covey_stream *stream, char **message, struct covey_error *err);
/* Waits for the call's final status; messages not read are dropped. */
int covey_stream_status(struct covey_stream *stream, struct covey_error *err);
void covey_stream_cancel(struct covey_stream *stream); /* from any thread */
void covey_stream_free(struct covey_stream *stream);   /* cancels what is not finished; NULL is fine */

/* Attaches one data stream of an operation (exec): returns once the server has confirmed it. */
int covey_attach(struct covey_client *client, const char *operation, const char *secret, struct covey_stream **stream, struct covey_error *err);
int covey_attach_write(struct covey_stream *stream, const void *data, size_t len, struct covey_error *err);
int covey_attach_end(struct covey_stream *stream, struct covey_error *err); /* end of data in this direction; the other one stays open */
int covey_attach_control(struct covey_stream *stream, const char *command, struct covey_error *err); /* JSON, on the control stream */
/* Next data: *data is released by covey_free, *len > 0; COVEY_OUT_OF_RANGE at the end. */
int covey_attach_read(struct covey_stream *stream, void **data, size_t *len, struct covey_error *err);

/* ---- operations and events ---- */

/* Runs after each look at a running operation (about once a second), with its JSON; false stops waiting (COVEY_CANCELLED). */
typedef bool (*covey_progress)(const char *operation, void *ud);
/* Waits until an operation is final, at most timeout_ms (0: no limit). A failed or cancelled operation is an error here with its text;
 * *operation (may be NULL) is its last state whenever that is known. */
int covey_wait(struct covey_client *client, const char *id, int64_t timeout_ms, covey_progress progress, void *ud, char **operation,
               struct covey_error *err);
int covey_cancel(struct covey_client *client, const char *id, struct covey_error *err);

/* Hands each event (JSON) to fn until it returns false or the stream breaks; types: comma list or NULL; from: number after which to resume, or 0. */
int covey_watch(struct covey_client *client, const char *types, const char *project, uint64_t from,
                bool (*fn)(const char *event, uint64_t number, void *ud), void *ud, struct covey_error *err);

/* ---- exec ---- */

struct covey_exec {
    const char *instance, *project;
    const char *const *command;     /* NULL-terminated */
    const char *const *environment; /* "KEY=value", NULL-terminated; may be NULL */
    const char *cwd;
    int64_t user, group;
    const void *input; /* fed to standard input */
    size_t input_len;
    bool (*output)(int fd, const void *data, size_t len, void *ud); /* called for 1 and 2, from two threads; false stops; may be NULL */
    void *ud;
};
/* Runs a command without a terminal and waits for it; *exit_code is the command's. */
int covey_exec(struct covey_client *client, const struct covey_exec *exec, int *exit_code, struct covey_error *err);

/* ---- tokens ---- */

/* The printable join token (or client certificate token) from the operation that issued it (JSON). */
int covey_token_encode(const char *operation, char **token, struct covey_error *err);
/* Checks a join token and gives its JSON: server_name, fingerprint, addresses, secret, expires_at. */
int covey_token_decode(const char *token, char **json, struct covey_error *err);

#ifdef __cplusplus
}
#endif
#endif
