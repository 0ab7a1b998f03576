/* Operations: long work as replicated records, run on the leader, taken up again by the next one.
 *
 * A kind has a `run` function that the leader calls on a worker thread with the stored request. It must be able to start again at any step (the old
 * leader may have died anywhere): every step is idempotent, database steps by op_write's key. While it runs, progress is memory and events; begin and
 * end are rows. A finished operation stays OPERATION_KEEP_MS. */
#ifndef COVEY_SERVER_OPERATIONS_H
#define COVEY_SERVER_OPERATIONS_H

#include "covey/v1/operation.pb-c.h"
#include "server/daemon/daemon.h"
#include <jansson.h>

enum {
    OPERATION_KEEP_MS = 5000,
    OPERATION_RUNNING_MAX = 256, /* worker threads; more operations wait as Pending */
    OPERATION_SESSIONS_MAX = 192, /* of them at most so many run until a user ends them; more are refused: stop and delete must find a worker */
    OPERATION_LIVE_MAX = 10000,
};

enum op_class { OP_TASK = 1, OP_WEBSOCKET = 2, OP_TOKEN = 3 };
enum op_status { OP_PENDING = 105, OP_RUNNING = 103, OP_CANCELLING = 104, OP_SUCCESS = 200, OP_FAILURE = 400, OP_CANCELLED = 401 };

struct op;

/* Each module registers its own kinds; numbers are stored, never reused. */
struct op_kind {
    int type;                /* number stored in the database */
    const char *description; /* spec/api.md 4.1 */
    enum op_class class;
    bool may_cancel;
    bool session;            /* runs until a user ends it */
    int (*run)(struct op *op, struct error *err); /* NULL for tokens: they end when used, cancelled or expired */
};
/* Registers a kind (static storage); at start, before the database opens. */
void op_register(const struct op_kind *kind);

void operations_init(struct daemon *daemon); /* binds covey.v1.Operations */
/* Leadership came or went (from the controller thread): takes up unfinished rows / forgets. */
void operations_lead(bool leader);
size_t operations_running(void); /* that workers of this member have */

struct op_spec {
    const struct op_kind *kind;
    const char *project;          /* NULL or "" = project-less */
    uint64_t member;              /* where the work is done: `location`; 0 = this member */
    const char *resources_json;   /* {"instances":["/1.0/instances/c1"]}, NULL = none */
    const char *metadata_json;    /* initial metadata, NULL = null */
    const ProtobufCMessage *request; /* what run needs; stored packed */
    /* Runs in the same transaction that inserts the row (reservations, checks); NULL = none. May fail: then there is no operation. The uuid is given
     * so that rows can name their operation. It may choose the member: by setting `member` of this spec (through ud) and node_id of the row. */
    int (*prepare)(struct sql *sql, void *ud, const char *uuid, struct error *err);
    void *ud;
};
/* In a handler on the leader: creates the record (once per request id), starts it, and fills *out (in the call's arena) as the 202 answer. */
int op_create(struct rpc_call *call, const struct op_spec *spec, Covey__V1__Operation **out, struct error *err);
/* An operation of this member only, not in the database (joining replaces the database below it). run gets the same struct op. */
int op_create_local(struct rpc_call *call, const struct op_spec *spec, Covey__V1__Operation **out, struct error *err);
bool op_is_local(const char *uuid);

/* The member that runs an operation: asked of the leader's table, or of a local operation. UNAVAILABLE with not_leader elsewhere. */
int op_locate(const char *uuid, uint64_t *member, struct error *err);

/* For run functions. */
const char *op_uuid(const struct op *op);
const char *op_project(const struct op *op);
uint64_t op_member(const struct op *op);
const struct caller *op_requestor(const struct op *op); /* protocol, username, address only */
/* The stored request, unpacked into the operation's arena. */
ProtobufCMessage *op_request(struct op *op, const ProtobufCMessageDescriptor *descriptor, struct error *err);
struct arena *op_arena(struct op *op);
bool op_cancelled(const struct op *op);
/* Runs once when cancellation is asked for (any thread). */
void op_on_cancel(struct op *op, void (*fn)(struct op *op, void *ud), void *ud);
/* Sets one metadata key (JSON value, reference stolen) and sends an event. */
void op_set_metadata(struct op *op, const char *key, json_t *value);
/* Also changes resources (e.g. a name made up later). */
void op_set_resources(struct op *op, const char *resources_json);
/* A database step of this operation: key = "op/" uuid "/" step, which no request id can name. */
int op_write(struct op *op, const char *step, db_write_fn fn, void *ud, struct buf *result, struct error *err);

/* Ends a token operation (class token): status Success when used, Cancelled when revoked. Removes its row in the caller's transaction. */
void op_token_ended(const char *uuid, enum op_status status);
/* On the leader: a member was removed. Its tokens belong to this member from now on, as their rows do. */
void operations_member_left(uint64_t member);

#endif
