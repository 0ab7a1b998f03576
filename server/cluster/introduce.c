/* The leader's side of joining, first and last resort: Introduce makes a server's certificate a member's, Abandon takes that back with everything else that
 * a join left. Both may be repeated. Handlers run on agent worker threads. */
#include "cluster.h"

#include "server/auth/tokens.h"
#include "server/config/keys.h"
#include "server/daemon/state.h"
#include "server/operations/operations.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { CERTIFICATE_TYPE_CLIENT = 1, CERTIFICATE_TYPE_SERVER = 2, MEMBER_STATE_PENDING = 1 };

/* ---- Introduce ---- */

struct introduce {
    const char *name, *pem, *fingerprint, *secret;
    bool password_ok;
    int64_t now_ns;
    char token_uuid[37];
    /* the certificate as it was */
    int64_t type; /* 0 = unknown */
    bool restricted;
    char *known_name;
};

static int load_known(struct sql *sql, struct introduce *in, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT type, restricted, name FROM certificates WHERE fingerprint = ?1", "s", in->fingerprint);
    free(in->known_name);
    in->known_name = NULL;
    in->type = 0;
    if (sql_next(s)) {
        in->type = sql_int(s, 0);
        in->restricted = sql_int(s, 1) != 0;
        in->known_name = xstrdup(sql_text(s, 2));
    }
    return sql_done(s, err);
}

/* Adds the certificate as a member's; the same one under the same name is fine, a client's is converted. */
static int trust_member(struct sql *sql, const struct introduce *in, struct error *err)
{
    if (in->type == 0) {
        return sql_exec(sql, err, "INSERT INTO certificates (fingerprint, type, name, certificate) VALUES (?1, 2, ?2, ?3)", "sss", in->fingerprint, in->name, in->pem);
    }
    if (in->type != CERTIFICATE_TYPE_SERVER) {
        return sql_exec(sql, err, "UPDATE certificates SET type = 2, name = ?2, restricted = 0 WHERE fingerprint = ?1", "ss", in->fingerprint, in->name);
    }
    return strcmp(in->known_name, in->name) == 0
               ? STATUS_OK
               : error_set(err, STATUS_FAILED_PRECONDITION, "Existing server certificate with different name \"%s\" already in trust store", in->known_name);
}

/* STATUS_OK with *refusal empty: the token is good. With a refusal the transaction must be committed: the token is used up. */
static int take_token(struct sql *sql, struct introduce *in, struct buf *refusal, struct error *err)
{
    struct error why = ERROR_INIT;
    char *request = NULL;
    int status = token_take(sql, TOKEN_JOIN, in->name, in->secret, in->now_ns, in->token_uuid, &request, &why);
    free(request);
    if (status == STATUS_NOT_FOUND) {
        return error_set(err, STATUS_PERMISSION_DENIED, "No matching cluster join operation found");
    }
    if (status == STATUS_FAILED_PRECONDITION) {
        buf_puts(refusal, "Failed during search for join token operation: Token has expired");
        return STATUS_OK;
    }
    return status == STATUS_OK ? STATUS_OK : error_set(err, why.code, "%s", why.text);
}

/* The result, also of a repeated call: "R" and the text of a refusal, or "F", the certificate's former type, a space and its former name. */
static int introduce_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct introduce *in = ud;
    struct buf refusal = {0};
    struct error why = ERROR_INIT;
    in->token_uuid[0] = '\0';
    int status = load_known(sql, in, err);
    bool member = in->type == CERTIFICATE_TYPE_SERVER, client = in->type == CERTIFICATE_TYPE_CLIENT && !in->restricted;
    if (status == STATUS_OK && !str_empty(in->secret)) {
        status = take_token(sql, in, &refusal, err);
        if (member && strcmp(in->known_name, in->name) == 0) { /* trusted as what it wants to be: nothing to prove */
            status = status == STATUS_PERMISSION_DENIED ? STATUS_OK : status;
            buf_free(&refusal);
        }
    } else if (status == STATUS_OK && !in->password_ok && !member && !client) {
        status = error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
    }
    if (status == STATUS_OK && refusal.len == 0 && trust_member(sql, in, &why) != STATUS_OK) {
        if (in->token_uuid[0] == '\0' || why.code == STATUS_INTERNAL) {
            status = error_set(err, why.code, "%s", why.text);
        } else { /* a token stays used */
            buf_puts(&refusal, why.text);
        }
    }
    if (status == STATUS_OK && refusal.len > 0) {
        buf_printf(result, "R%s", refusal.data);
    } else if (status == STATUS_OK) {
        buf_printf(result, "F%" PRId64 " %s", in->type, in->known_name != NULL ? in->known_name : "");
    }
    buf_free(&refusal);
    return status;
}

static int read_password(struct sql *sql, void *ud, struct error *err)
{
    int status = sql_get_text(sql, ud, err, "SELECT value FROM config WHERE key = 'core.trust_password'", "");
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

static Covey__Internal__V1__IntroduceResponse *answer(const struct buf *result, struct arena *arena)
{
    Covey__Internal__V1__IntroduceResponse *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__introduce_response__init(out);
    const char *space = strchr(result->data, ' ');
    out->former_type = strtoll(result->data + 1, NULL, 10);
    out->former_name = arena_strdup(arena, space != NULL ? space + 1 : "");
    const struct view *view = view_get();
    out->addresses = arena_alloc(arena, (view->message->n_members + 1) * sizeof *out->addresses);
    for (size_t i = 0; i < view->message->n_members; i++) {
        if (view->message->members[i]->state != MEMBER_STATE_PENDING) {
            out->addresses[out->n_addresses++] = arena_strdup(arena, view->message->members[i]->address);
        }
    }
    view_unref(view);
    return out;
}

static int introduce(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__Internal__V1__IntroduceRequest *request = (const Covey__Internal__V1__IntroduceRequest *)message;
    const struct caller *caller = rpc_caller(call);
    char fingerprint[FINGERPRINT_SIZE];
    if (cert_check_pem(request->certificate, fingerprint, NULL, err) != STATUS_OK) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid certificate");
    }
    if (caller->class != CALLER_LOCAL_ADMIN && strcmp(fingerprint, caller->fingerprint) != 0) {
        return error_set(err, STATUS_PERMISSION_DENIED, "not authorized"); /* only its own: TLS has proved the key */
    }
    if (member_name_check(request->name, err) != STATUS_OK) {
        return err->code;
    }
    struct introduce in = {.name = request->name, .pem = request->certificate, .fingerprint = fingerprint, .secret = request->token_secret, .now_ns = time_unix_ns()};
    if (str_empty(request->token_secret) && !str_empty(request->password)) {
        char *hash = NULL;
        if (daemon_read(the_daemon, DB_LINEARIZABLE, read_password, &hash, NULL, err) != STATUS_OK) {
            return err->code;
        }
        in.password_ok = hash != NULL && password_verify(request->password, hash);
        free(hash);
    }
    struct buf result = {0};
    int status = daemon_write_call(call, "introduce", introduce_write, &in, &result, NULL, err);
    free(in.known_name);
    crash_point("lead:introduced");
    if (status == STATUS_OK && result.len > 0 && result.data[0] == 'R') {
        status = error_set(err, STATUS_PERMISSION_DENIED, "%s", result.data + 1);
    }
    if (in.token_uuid[0] != '\0') {
        op_token_ended(in.token_uuid, OP_SUCCESS);
    }
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        *response = &answer(&result, rpc_arena(call))->base;
    }
    buf_free(&result);
    return status;
}

rpc_handler introduce_handler(void)
{
    return introduce;
}

/* ---- Abandon ---- */

struct abandon {
    const Covey__Internal__V1__AbandonRequest *request;
    const char *fingerprint;
    int64_t id;
};

static int abandon_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct abandon *in = ud;
    const Covey__Internal__V1__AbandonRequest *request = in->request;
    int64_t state = MEMBER_STATE_PENDING;
    bool other = false;
    in->id = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id, state, join_id FROM nodes WHERE fingerprint = ?1", "s", in->fingerprint);
    if (sql_next(s)) {
        in->id = sql_int(s, 0);
        state = sql_int(s, 1);
        other = strcmp(sql_text(s, 2), request->join_id) != 0;
    }
    int status = sql_done(s, err);
    if (status == STATUS_OK && in->id != 0 && state != MEMBER_STATE_PENDING) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "The join is complete already");
    }
    if (status != STATUS_OK || other) { /* a later attempt of the same server has taken its place */
        in->id = 0;
        return status;
    }
    status = sql_exec(sql, err, "DELETE FROM nodes WHERE fingerprint = ?1 AND state = 1", "s", in->fingerprint);
    if (status != STATUS_OK || request->former_type == CERTIFICATE_TYPE_SERVER) {
        return status;
    }
    return request->former_type == CERTIFICATE_TYPE_CLIENT
               ? sql_exec(sql, err, "UPDATE certificates SET type = 1, name = ?2 WHERE fingerprint = ?1 AND type = 2", "ss", in->fingerprint, request->former_name)
               : sql_exec(sql, err, "DELETE FROM certificates WHERE fingerprint = ?1 AND type = 2", "s", in->fingerprint);
}

static int abandon(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct abandon in = {.request = (const Covey__Internal__V1__AbandonRequest *)message, .fingerprint = rpc_caller(call)->fingerprint};
    membership_lock();
    int status = daemon_write_call(call, "abandon", abandon_write, &in, NULL, NULL, err);
    membership_unlock();
    crash_point("lead:abandoned");
    if (status == STATUS_OK) {
        if (in.id > 0) {
            attach_forget((uint64_t)in.id); /* a Raft entry, if it came that far, goes with the next reconciliation */
        }
        view_propagate(the_daemon);
    }
    return status;
}

rpc_handler abandon_handler(void)
{
    return abandon;
}
