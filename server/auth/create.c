/* CreateCertificate: an administrator adds a certificate or issues a token; an untrusted caller logs in with a token or the trust password
 * (spec/api.md 2.2). The steps stand in the order of the specification; what a secret was worth is decided in the write's transaction. */
#include "certificates_private.h"

#include "server/config/keys.h"
#include "server/config/server.h"
#include "server/daemon/identity.h"
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 255 };

static const struct op_kind token_kind = {.type = 4, .description = "Executing operation", .class = OP_TOKEN, .may_cancel = true};

const struct op_kind *certificate_token_kind(void)
{
    return &token_kind;
}

static int refuse(struct error *err)
{
    return error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
}

static bool is_admin(const struct caller *caller)
{
    return caller->class != CALLER_NONE && !caller->restricted;
}

/* ---- issuing a token ---- */

struct issue {
    const Covey__V1__CreateCertificateRequest *request;
    const char *secret, *request_json;
    int64_t expires_ns;
};

static int issue_write(struct sql *sql, void *ud, const char *uuid, struct error *err)
{
    const struct issue *in = ud;
    for (size_t i = 0; i < in->request->n_projects; i++) { /* an unknown one shows now, not when the token is used */
        int64_t id = 0;
        if (project_id(sql, in->request->projects[i], &id, err) != STATUS_OK) {
            return err->code;
        }
    }
    return token_insert(sql, uuid, TOKEN_CLIENT, in->request->name, in->secret, in->expires_ns, in->request_json, NULL, err);
}

static json_t *request_to_json(const Covey__V1__CreateCertificateRequest *request)
{
    json_t *projects = json_array();
    for (size_t i = 0; i < request->n_projects; i++) {
        json_array_append_new(projects, json_string(request->projects[i]));
    }
    return json_pack("{s:s, s:s, s:b, s:o, s:s, s:s, s:b}", "name", request->name, "type", request->type, "restricted", (int)request->restricted, "projects", projects,
        "certificate", "", "password", "", "token", 1);
}

/* The certificate will be trusted by all members: what they listen on may follow this member's addresses, which come first. */
static void add_members(json_t *addresses)
{
    enum { MEMBER_PENDING = 1 };
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_members && daemon_clustered(the_daemon); i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        bool known = member->id == daemon_id(the_daemon) || member->state == MEMBER_PENDING || !member_online(the_daemon, member->id);
        for (size_t k = 0; k < json_array_size(addresses) && !known; k++) {
            known = str_eq(json_string_value(json_array_get(addresses, k)), member->address);
        }
        if (!known) {
            json_array_append_new(addresses, json_string(member->address));
        }
    }
    view_unref(view);
}

static int issue_token(struct rpc_call *call, const Covey__V1__CreateCertificateRequest *request, Covey__V1__CreateCertificateResponse *out, struct error *err)
{
    char secret[2 * TOKEN_SECRET_BYTES + 1], fingerprint[FINGERPRINT_SIZE], expiry[64], when[48] = "";
    if (!is_admin(rpc_caller(call))) {
        return refuse(err);
    }
    if (strcmp(request->type, "client") != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Tokens can only be issued for client certificates");
    }
    if (!str_empty(request->certificate)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Can't use certificate if token is requested");
    }
    json_t *addresses = server_addresses();
    if (json_array_size(addresses) == 0) {
        json_decref(addresses);
        return error_set(err, STATUS_INVALID_ARGUMENT, "Can't issue token when server isn't listening on network");
    }
    add_members(addresses);
    struct issue issue = {.request = request, .secret = secret};
    config_text("core.remote_token_expiry", expiry, sizeof expiry);
    if (expiry[0] != '\0' && expiry_add(expiry, time_unix_ns(), &issue.expires_ns) != 0) {
        json_decref(addresses);
        return error_set(err, STATUS_INTERNAL, "core.remote_token_expiry: Invalid expiry expression");
    }
    random_hex(secret, TOKEN_SECRET_BYTES);
    free(identity_presented(fingerprint));
    json_t *inner = request_to_json(request);
    char *inner_text = json_dumps(inner, JSON_COMPACT);
    issue.request_json = inner_text;
    json_t *metadata = json_pack("{s:s, s:s, s:o, s:o}", "secret", secret, "fingerprint", fingerprint, "addresses", addresses, "request", inner);
    if (issue.expires_ns != 0) {
        time_rfc3339(issue.expires_ns, when, sizeof when);
        json_object_set_new(metadata, "expiresAt", json_string(when));
    }
    char *text = json_dumps(metadata, JSON_COMPACT);
    struct op_spec spec = {.kind = &token_kind, .metadata_json = text, .prepare = issue_write, .ud = &issue};
    int status = op_create(call, &spec, &out->operation, err);
    free(text);
    free(inner_text);
    json_decref(metadata);
    return status;
}

/* ---- adding a certificate ---- */

struct add {
    const Covey__V1__CreateCertificateRequest *request;
    const char *secret;        /* of a token; NULL = none presented */
    enum token_kind kind;
    const char *token_name;    /* join token: the member's name */
    bool trusted;              /* administrator, or the password fits */
    int64_t now_ns;
    /* the certificate */
    char *pem, *common_name;
    char fingerprint[FINGERPRINT_SIZE];
    const char *address;       /* of the peer: the name of last resort */
    char uuid[37];             /* of the token that was used */
};

struct rights { /* what the new certificate gets */
    enum certificate_type type;
    const char *name;
    bool restricted;
    char **projects;
    size_t project_count;
};

static int insert_certificate(struct sql *sql, const struct add *in, const struct rights *rights, struct error *err)
{
    int64_t known = 0;
    int status = sql_get_int(sql, &known, err, "SELECT count(*) FROM certificates WHERE fingerprint = ?1", "s", in->fingerprint);
    if (status == STATUS_OK && known > 0) {
        status = error_set(err, STATUS_ALREADY_EXISTS, "Certificate already in trust store");
    }
    const char *name = !str_empty(rights->name) ? rights->name : !str_empty(in->common_name) ? in->common_name : in->address;
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "INSERT INTO certificates (fingerprint, type, name, certificate, restricted) VALUES (?1, ?2, ?3, ?4, ?5)", "sissi", in->fingerprint,
            (int64_t)rights->type, name, in->pem, (int64_t)rights->restricted);
    }
    return status == STATUS_OK ? certificate_set_projects(sql, sql_last_id(sql), rights->projects, rights->project_count, err) : status;
}

/* Name, type and limits are the token's, not the caller's. */
static void rights_of_token(const json_t *request, struct rights *rights)
{
    const json_t *projects = json_object_get(request, "projects");
    rights->type = CERTIFICATE_CLIENT;
    rights->name = json_string_value(json_object_get(request, "name"));
    rights->restricted = json_is_true(json_object_get(request, "restricted"));
    rights->projects = xcalloc(json_array_size(projects) + 1, sizeof *rights->projects);
    for (size_t i = 0; i < json_array_size(projects); i++) {
        rights->projects[rights->project_count++] = (char *)json_string_value(json_array_get(projects, i));
    }
}

static int add_by_token(struct sql *sql, struct add *in, struct buf *result, struct error *err)
{
    struct error refused = ERROR_INIT;
    char *text = NULL;
    int status = token_take(sql, in->kind, in->kind == TOKEN_JOIN ? in->token_name : NULL, in->secret, in->now_ns, in->uuid, &text, &refused);
    if (status == STATUS_NOT_FOUND) {
        in->uuid[0] = '\0';
        return error_set(err, STATUS_PERMISSION_DENIED, in->kind == TOKEN_JOIN ? "No matching cluster join operation found" : "not authorized");
    }
    if (status != STATUS_OK && status != STATUS_FAILED_PRECONDITION) {
        free(text);
        return error_set(err, refused.code, "%s", refused.text);
    }
    json_t *request = str_empty(text) ? NULL : json_loads(text, 0, NULL);
    struct rights rights = {.type = CERTIFICATE_SERVER, .name = in->token_name};
    if (in->kind == TOKEN_CLIENT) {
        rights_of_token(request, &rights);
    }
    if (status == STATUS_FAILED_PRECONDITION) { /* consumed all the same: commit, refuse after */
        buf_printf(result, "%c%s%s", 'A' + STATUS_PERMISSION_DENIED, in->kind == TOKEN_JOIN ? "Failed during search for join token operation: " : "", refused.text);
        status = STATUS_OK;
    } else if ((status = insert_certificate(sql, in, &rights, &refused)) != STATUS_OK) {
        if (refused.code == STATUS_INTERNAL) {
            error_set(err, refused.code, "%s", refused.text);
        } else { /* the token stays used */
            buf_printf(result, "%c%s", 'A' + (int)refused.code, refused.text);
            status = STATUS_OK;
        }
    }
    if (rights.projects != NULL) {
        free(rights.projects);
    }
    json_decref(request);
    free(text);
    return status;
}

/* The result is empty, or a status as a letter and the text of a refusal that must be committed (a token was used up). */
static int add_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct add *in = ud;
    if (in->secret != NULL) {
        return add_by_token(sql, in, result, err);
    }
    if (!in->trusted) {
        return refuse(err);
    }
    const struct rights rights = {.type = certificate_type_of(in->request->type), .name = in->request->name, .restricted = in->request->restricted,
        .projects = in->request->projects, .project_count = in->request->n_projects};
    return insert_certificate(sql, in, &rights, err);
}

static int read_password(struct sql *sql, void *ud, struct error *err)
{
    int status = sql_get_text(sql, ud, err, "SELECT value FROM config WHERE key = 'core.trust_password'", "");
    return status == STATUS_NOT_FOUND ? STATUS_OK : status;
}

/* What the caller's password is: a join token, a client token, or the trust password. */
static int weigh_password(struct add *in, const struct token_text *token, bool is_token, struct error *err)
{
    if (is_token) {
        in->secret = token->secret;
        in->kind = token->join ? TOKEN_JOIN : TOKEN_CLIENT;
        in->token_name = token->name;
        return STATUS_OK;
    }
    char *hash = NULL;
    if (daemon_read(the_daemon, DB_LINEARIZABLE, read_password, &hash, NULL, err) != STATUS_OK) {
        return err->code;
    }
    in->trusted = hash != NULL && hash[0] != '\0' && password_verify(in->request->password, hash);
    free(hash);
    return in->trusted ? STATUS_OK : refuse(err);
}

static int load_certificate(struct add *in, const struct caller *caller, struct error *err)
{
    if (!str_empty(in->request->certificate)) {
        return cert_from_base64_der(in->request->certificate, &in->pem, in->fingerprint, &in->common_name, err) == STATUS_OK
                   ? STATUS_OK
                   : error_set(err, STATUS_INVALID_ARGUMENT, "Invalid certificate");
    }
    if (caller->cert_pem == NULL) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No client certificate provided");
    }
    in->pem = xstrdup(caller->cert_pem);
    return cert_check_pem(in->pem, in->fingerprint, &in->common_name, err);
}

static int check_request(const struct add *in, const struct caller *caller, struct error *err)
{
    const Covey__V1__CreateCertificateRequest *request = in->request;
    bool admin = is_admin(caller);
    enum certificate_type type = certificate_type_of(request->type);
    if (admin && str_empty(request->certificate)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Client is already trusted");
    }
    if (!admin && (str_empty(request->password) || caller->class != CALLER_NONE)) {
        return refuse(err); /* restricted clients, too */
    }
    if (in->secret == NULL && type == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown certificate type %s", request->type);
    }
    if (strlen(request->name) > NAME_MAX_BYTES) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Certificate name is longer than %d bytes", NAME_MAX_BYTES);
    }
    if (in->secret != NULL && in->kind == TOKEN_JOIN && (type != CERTIFICATE_SERVER || strcmp(request->name, in->token_name) != 0)) {
        return refuse(err);
    }
    if (type == CERTIFICATE_SERVER && request->restricted) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Certificates of cluster members cannot be restricted");
    }
    return STATUS_OK;
}

static int store(struct rpc_call *call, struct add *in, struct error *err)
{
    struct buf refused = {0};
    int status = daemon_write_call(call, "create", add_write, in, &refused, NULL, err);
    if (status == STATUS_OK && refused.len > 1) {
        status = error_set(err, (enum status)(refused.data[0] - 'A'), "%s", refused.data + 1);
    }
    buf_free(&refused);
    if (in->uuid[0] != '\0') {
        op_token_ended(in->uuid, OP_SUCCESS);
    }
    return status;
}

static int create(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__CreateCertificateRequest *request = (const Covey__V1__CreateCertificateRequest *)message;
    const struct caller *caller = rpc_caller(call);
    Covey__V1__CreateCertificateResponse *out = arena_alloc(rpc_arena(call), sizeof *out);
    covey__v1__create_certificate_response__init(out);
    *response = &out->base;
    if (request->token) {
        return issue_token(call, request, out, err);
    }
    struct add in = {.request = request, .now_ns = time_unix_ns(), .address = caller->address, .trusted = is_admin(caller)};
    struct token_text token = {0};
    bool is_token = !in.trusted && caller->class == CALLER_NONE && token_decode(request->password, &token);
    int status = STATUS_OK;
    if (!in.trusted && caller->class == CALLER_NONE && !str_empty(request->password)) {
        status = weigh_password(&in, &token, is_token, err);
    }
    status = status == STATUS_OK ? check_request(&in, caller, err) : status;
    status = status == STATUS_OK ? load_certificate(&in, caller, err) : status;
    if (status == STATUS_OK && cert_check_dates(in.pem, err) != STATUS_OK) {
        status = err->code;
    }
    status = status == STATUS_OK ? store(call, &in, err) : status;
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        certificate_event("certificate-created", in.fingerprint, caller);
        out->location = arena_printf(rpc_arena(call), "/1.0/certificates/%s", in.fingerprint);
    }
    token_text_free(&token);
    free(in.pem);
    free(in.common_name);
    return status;
}

rpc_handler certificate_create_handler(void)
{
    return create;
}
