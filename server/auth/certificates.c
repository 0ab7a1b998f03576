/* covey.v1.Certificates: list, get, update, delete. Runs on the leader; a change is in force on every live member before the answer. */
#include "certificates_private.h"

#include "server/daemon/etag.h"
#include "server/daemon/mask.h"
#include "server/events/events.h"
#include <stdlib.h>
#include <string.h>

static const char *const type_names[] = {"unknown", "client", "server", "metrics"};

enum certificate_type certificate_type_of(const char *name)
{
    for (int i = CERTIFICATE_CLIENT; i <= CERTIFICATE_METRICS; i++) {
        if (strcmp(name, type_names[i]) == 0) {
            return (enum certificate_type)i;
        }
    }
    return 0;
}

const char *certificate_type_name(int64_t type)
{
    return type_names[type >= CERTIFICATE_CLIENT && type <= CERTIFICATE_METRICS ? type : 0];
}

void certificate_event(const char *action, const char *fingerprint, const struct caller *caller)
{
    char source[128];
    snprintf(source, sizeof source, "/1.0/certificates/%s", fingerprint);
    events_lifecycle(action, source, "", caller, NULL, NULL);
}

int certificate_set_projects(struct sql *sql, int64_t id, char *const *projects, size_t count, struct error *err)
{
    int status = sql_exec(sql, err, "DELETE FROM certificates_projects WHERE certificate_id = ?1", "i", id);
    for (size_t i = 0; i < count && status == STATUS_OK; i++) {
        int64_t project = 0;
        status = project_id(sql, projects[i], &project, err);
        if (status == STATUS_OK) { /* named twice is fine */
            int64_t known = 0;
            status = sql_get_int(sql, &known, err, "SELECT count(*) FROM certificates_projects WHERE certificate_id = ?1 AND project_id = ?2", "ii", id, project);
            if (status == STATUS_OK && known == 0) {
                status = sql_exec(sql, err, "INSERT INTO certificates_projects (certificate_id, project_id) VALUES (?1, ?2)", "ii", id, project);
            }
        }
    }
    return status;
}

/* ---- reading ---- */

struct read {
    struct arena *arena;
    const char *prefix; /* NULL = all */
    const char *only;   /* exact fingerprint that the caller may see, NULL = any */
    Covey__V1__Certificate **list;
    size_t count, capacity;
};

static int read_projects(struct sql *sql, struct arena *arena, int64_t id, Covey__V1__Certificate *out, struct error *err)
{
    int64_t count = 0;
    int status = sql_get_int(sql, &count, err, "SELECT count(*) FROM certificates_projects WHERE certificate_id = ?1", "i", id);
    if (status != STATUS_OK) {
        return status;
    }
    out->projects = arena_alloc(arena, ((size_t)count + 1) * sizeof *out->projects);
    struct sql_stmt *s = sql_query(sql,
        "SELECT projects.name FROM certificates_projects JOIN projects ON projects.id = project_id WHERE certificate_id = ?1 ORDER BY 1", "i", id);
    while (sql_next(s) && out->n_projects < (size_t)count) {
        out->projects[out->n_projects++] = arena_strdup(arena, sql_text(s, 0));
    }
    return sql_done(s, err);
}

static int read_certificates(struct sql *sql, void *ud, struct error *err)
{
    struct read *read = ud;
    int status = STATUS_OK;
    read->count = 0;
    struct sql_stmt *s = sql_query(sql,
        "SELECT id, name, type, restricted, certificate, fingerprint FROM certificates WHERE (?1 IS NULL OR substr(fingerprint, 1, length(?1)) = ?1)"
        " AND (?2 IS NULL OR fingerprint = ?2) ORDER BY fingerprint", "ss", read->prefix, read->only);
    while (status == STATUS_OK && sql_next(s)) {
        Covey__V1__Certificate *out = arena_alloc(read->arena, sizeof *out);
        covey__v1__certificate__init(out);
        out->name = arena_strdup(read->arena, sql_text(s, 1));
        out->type = (char *)certificate_type_name(sql_int(s, 2));
        out->restricted = sql_int(s, 3) != 0;
        out->certificate = arena_strdup(read->arena, sql_text(s, 4));
        out->fingerprint = arena_strdup(read->arena, sql_text(s, 5));
        status = read_projects(sql, read->arena, sql_int(s, 0), out, err);
        out->etag = etag_make(read->arena, &out->base, "name,type,restricted,projects,certificate");
        if (read->count == read->capacity) {
            size_t grown = read->capacity != 0 ? 2 * read->capacity : 32;
            Covey__V1__Certificate **list = arena_alloc(read->arena, grown * sizeof *list);
            if (read->count > 0) {
                memcpy(list, read->list, read->count * sizeof *list);
            }
            read->list = list;
            read->capacity = grown;
        }
        read->list[read->count++] = out;
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

/* The one that the prefix names. */
static int pick(const struct read *read, struct error *err)
{
    if (read->count == 0) {
        return error_set(err, STATUS_NOT_FOUND, "Certificate not found");
    }
    return read->count == 1 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "More than one certificate matches \"%.64s\"", read->prefix);
}

static int check_prefix(const char *fingerprint, struct error *err)
{
    size_t len = strlen(fingerprint);
    bool hex = len > 0 && len < FINGERPRINT_SIZE && strspn(fingerprint, "0123456789abcdef") == len;
    return hex ? STATUS_OK : error_set(err, STATUS_NOT_FOUND, "Certificate not found");
}

/* Restricted clients see their own certificate only. */
static const char *visible(const struct rpc_call *call)
{
    const struct caller *caller = rpc_caller(call);
    return caller->restricted ? caller->fingerprint : NULL;
}

static int list(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListCertificatesRequest *request = (const Covey__V1__ListCertificatesRequest *)message;
    struct read read = {.arena = rpc_arena(call), .only = visible(call)};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_certificates, &read, NULL, err);
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__ListCertificatesResponse *out = arena_alloc(read.arena, sizeof *out);
    covey__v1__list_certificates_response__init(out);
    if (request->recursion > 0) {
        out->certificates = read.list;
        out->n_certificates = read.count;
    } else {
        out->urls = arena_alloc(read.arena, (read.count + 1) * sizeof *out->urls);
        for (size_t i = 0; i < read.count; i++) {
            out->urls[out->n_urls++] = arena_printf(read.arena, "/1.0/certificates/%s", read.list[i]->fingerprint);
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static int get(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetCertificateRequest *request = (const Covey__V1__GetCertificateRequest *)message;
    struct read read = {.arena = rpc_arena(call), .prefix = request->fingerprint, .only = visible(call)};
    int status = check_prefix(request->fingerprint, err);
    status = status == STATUS_OK ? daemon_read(the_daemon, DB_LINEARIZABLE, read_certificates, &read, NULL, err) : status;
    status = status == STATUS_OK ? pick(&read, err) : status;
    if (status == STATUS_OK) {
        *response = &read.list[0]->base;
    }
    return status;
}

/* ---- update ---- */

struct update {
    const Covey__V1__UpdateCertificateRequest *request;
    struct arena *arena;
    const char *pem; /* new certificate, NULL = as before */
    const char *new_fingerprint;
};

static int update_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct update *in = ud;
    const Covey__V1__UpdateCertificateRequest *request = in->request;
    struct read read = {.arena = in->arena, .prefix = request->fingerprint};
    int status = read_certificates(sql, &read, err);
    status = status == STATUS_OK ? pick(&read, err) : status;
    status = status == STATUS_OK ? etag_check(request->if_match, read.list[0]->etag, err) : status;
    if (status != STATUS_OK) {
        return status;
    }
    const Covey__V1__Certificate *now = read.list[0];
    const char *type = mask_has(request->update_mask, "type") && !str_empty(request->type) ? request->type : now->type;
    const char *name = mask_has(request->update_mask, "name") && !str_empty(request->name) ? request->name : now->name;
    bool restricted = mask_has(request->update_mask, "restricted") ? request->restricted : now->restricted;
    const char *fingerprint = in->pem != NULL ? in->new_fingerprint : now->fingerprint;
    if (certificate_type_of(type) == 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown certificate type %s", type);
    }
    bool member = strcmp(now->type, "server") == 0;
    if (member != (strcmp(type, "server") == 0) || (member && (strcmp(name, now->name) != 0 || restricted || in->pem != NULL))) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Certificates of cluster members follow their member");
    }
    int64_t id = 0, taken = 0;
    status = sql_get_int(sql, &id, err, "SELECT id FROM certificates WHERE fingerprint = ?1", "s", now->fingerprint);
    status = status == STATUS_OK ? sql_get_int(sql, &taken, err, "SELECT count(*) FROM certificates WHERE fingerprint = ?1 AND id <> ?2", "si", fingerprint, id) : status;
    if (status == STATUS_OK && taken > 0) {
        return error_set(err, STATUS_ALREADY_EXISTS, "Certificate already in trust store");
    }
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "UPDATE certificates SET fingerprint = ?2, type = ?3, name = ?4, restricted = ?5, certificate = ?6 WHERE id = ?1", "isisis", id,
            fingerprint, (int64_t)certificate_type_of(type), name, (int64_t)restricted, in->pem != NULL ? in->pem : now->certificate);
    }
    if (status == STATUS_OK && mask_has(request->update_mask, "projects")) {
        status = certificate_set_projects(sql, id, request->projects, request->n_projects, err);
    }
    if (status == STATUS_OK) {
        buf_puts(result, fingerprint);
    }
    return status;
}

static int update(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__UpdateCertificateRequest *request = (const Covey__V1__UpdateCertificateRequest *)message;
    char fingerprint[FINGERPRINT_SIZE];
    struct update in = {.request = request, .arena = rpc_arena(call)};
    struct buf result = {0};
    if (check_prefix(request->fingerprint, err) != STATUS_OK) {
        return err->code;
    }
    if (mask_has(request->update_mask, "certificate") && !str_empty(request->certificate)) {
        if (cert_check_pem(request->certificate, fingerprint, NULL, err) != STATUS_OK) {
            return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid certificate");
        }
        if (!str_prefix(fingerprint, request->fingerprint)) { /* the same one is sent back by read-modify-write */
            in.pem = request->certificate;
            in.new_fingerprint = fingerprint;
        }
    }
    int status = daemon_write_call(call, "update", update_write, &in, &result, NULL, err);
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        certificate_event("certificate-updated", result.data, rpc_caller(call));
    }
    buf_free(&result);
    return status;
}

/* ---- delete ---- */

static int delete_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct update *in = ud;
    struct read read = {.arena = in->arena, .prefix = in->new_fingerprint};
    int status = read_certificates(sql, &read, err);
    status = status == STATUS_OK ? pick(&read, err) : status;
    int64_t member = 0;
    if (status == STATUS_OK) {
        status = sql_get_int(sql, &member, err, "SELECT count(*) FROM nodes JOIN cluster ON cluster.id = 1 WHERE fingerprint = ?1", "s", read.list[0]->fingerprint);
    }
    if (status == STATUS_OK && member > 0) { /* it would be cut off; members leave by DELETE /1.0/cluster/members/<name> */
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Cannot delete the certificate of cluster member \"%s\"", read.list[0]->name);
    }
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "DELETE FROM certificates WHERE fingerprint = ?1", "s", read.list[0]->fingerprint);
    }
    if (status == STATUS_OK) {
        buf_puts(result, read.list[0]->fingerprint);
    }
    return status;
}

static int delete_handler(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__DeleteCertificateRequest *request = (const Covey__V1__DeleteCertificateRequest *)message;
    struct update in = {.arena = rpc_arena(call), .new_fingerprint = request->fingerprint};
    struct buf result = {0};
    int status = check_prefix(request->fingerprint, err);
    status = status == STATUS_OK ? daemon_write_call(call, "delete", delete_write, &in, &result, NULL, err) : status;
    if (status == STATUS_OK) {
        view_propagate(the_daemon);
        certificate_event("certificate-deleted", result.data, rpc_caller(call));
    }
    buf_free(&result);
    return status;
}

void certificates_bind(void)
{
    static struct rpc_binding bindings[] = {
        {"ListCertificates", list}, {"GetCertificate", get}, {"CreateCertificate", NULL}, {"UpdateCertificate", update}, {"DeleteCertificate", delete_handler},
    };
    bindings[2].handler = certificate_create_handler();
    op_register(certificate_token_kind());
    rpc_bind("covey.v1.Certificates", bindings, sizeof bindings / sizeof *bindings, NULL);
}
