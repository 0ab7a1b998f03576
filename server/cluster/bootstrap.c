/* Bootstrap: a standalone server becomes the first member of a cluster (spec/cluster.md 3.1). The database stays as it is: row 1 gets a name and an address, the
 * cluster an identity; then the member presents the cluster certificate. An operation that may start again at any step. */
#include "cluster.h"

#include "server/config/keys.h"
#include "server/daemon/identity.h"
#include "server/daemon/listener.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/operations/operations.h"
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct bootstrap {
    const char *name, *address;
    const struct identity *server, *made;
    char *uuid, *cert, *key; /* what the database holds afterwards */
    int64_t epoch;
    char *former; /* for the undo: "TYPE RESTRICTED NAME" of the own certificate, "" = it was not in the trust store */
};

static int trust_self(struct sql *sql, const struct bootstrap *in, struct error *err)
{
    char *name = NULL;
    int64_t type = 0;
    int status = sql_get_int(sql, &type, err, "SELECT type FROM certificates WHERE fingerprint = ?1", "s", in->server->fingerprint);
    if (status == STATUS_NOT_FOUND) {
        return sql_exec(sql, err, "INSERT INTO certificates (fingerprint, type, name, certificate) VALUES (?1, 2, ?2, ?3)", "sss", in->server->fingerprint,
            in->name, in->server->cert_pem);
    }
    if (status == STATUS_OK) {
        status = sql_get_text(sql, &name, err, "SELECT name FROM certificates WHERE fingerprint = ?1", "s", in->server->fingerprint);
    }
    if (status == STATUS_OK && type == 2 && strcmp(name, in->name) != 0) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Existing server certificate with different name \"%s\" already in trust store", name);
    } else if (status == STATUS_OK) {
        status = sql_exec(sql, err, "UPDATE certificates SET type = 2, name = ?2, restricted = 0 WHERE fingerprint = ?1", "ss", in->server->fingerprint, in->name);
    }
    free(name);
    return status;
}

static int remember_former(struct sql *sql, const struct bootstrap *in, struct buf *out, struct error *err)
{
    struct sql_stmt *s = sql_query(sql, "SELECT type, restricted, name FROM certificates WHERE fingerprint = ?1", "s", in->server->fingerprint);
    if (sql_next(s)) {
        buf_printf(out, "%" PRId64 " %" PRId64 " %s", sql_int(s, 0), sql_int(s, 1), sql_text(s, 2));
    }
    return sql_done(s, err);
}

static int bootstrap_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct bootstrap *in = ud;
    int64_t members = 0, clustered = 0;
    char uuid[37];
    int status = sql_get_int(sql, &members, err, "SELECT count(*) FROM nodes", "");
    if (status == STATUS_OK) {
        status = sql_get_int(sql, &clustered, err, "SELECT count(*) FROM cluster", "");
    }
    if (status == STATUS_OK && (members != 1 || clustered != 0)) {
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Inconsistent state: Found leftover entries in cluster members");
    }
    if (status == STATUS_OK) {
        status = sql_exec(sql, err, "UPDATE nodes SET name = ?1, address = ?2, fingerprint = ?3 WHERE id = 1", "sss", in->name, in->address, in->server->fingerprint);
    }
    if (status == STATUS_OK) {
        status = remember_former(sql, in, result, err);
    }
    if (status == STATUS_OK) {
        status = trust_self(sql, in, err);
    }
    if (status == STATUS_OK) {
        uuid_new(uuid);
        status = sql_exec(sql, err, "INSERT INTO cluster (id, uuid, epoch, certificate, key) VALUES (1, ?1, 1, ?2, ?3)", "sss", uuid, in->made->cert_pem, in->made->key_pem);
    }
    return status;
}

static int bootstrap_read(struct sql *sql, void *ud, struct error *err)
{
    struct bootstrap *in = ud;
    int status = sql_get_text(sql, &in->uuid, err, "SELECT uuid FROM cluster WHERE id = 1", "");
    if (status == STATUS_OK) {
        status = sql_get_text(sql, &in->cert, err, "SELECT certificate FROM cluster WHERE id = 1", "");
    }
    if (status == STATUS_OK) {
        status = sql_get_text(sql, &in->key, err, "SELECT key FROM cluster WHERE id = 1", "");
    }
    return status == STATUS_OK ? sql_get_int(sql, &in->epoch, err, "SELECT epoch FROM cluster WHERE id = 1", "") : status;
}

/* Undo of the database's part: the server is standalone and usable again. */
static int bootstrap_undo(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct bootstrap *in = ud;
    int64_t type = 0, restricted = 0;
    int used = 0;
    int status = sql_exec(sql, err, "DELETE FROM cluster", "");
    if (status == STATUS_OK && sscanf(in->former, "%" SCNd64 " %" SCNd64 " %n", &type, &restricted, &used) == 2) {
        status = sql_exec(sql, err, "UPDATE certificates SET type = ?2, restricted = ?3, name = ?4 WHERE fingerprint = ?1", "siis", in->server->fingerprint, type, restricted,
            in->former + used);
    } else if (status == STATUS_OK) {
        status = sql_exec(sql, err, "DELETE FROM certificates WHERE fingerprint = ?1 AND type = 2", "s", in->server->fingerprint);
    }
    return status == STATUS_OK ? sql_exec(sql, err, "UPDATE nodes SET name = 'none', address = '0.0.0.0' WHERE id = 1", "") : status;
}

int cluster_local_state(struct daemon *daemon, const char *name, const char *cluster_id, uint64_t epoch, uint64_t id, struct error *err)
{
    char epoch_text[24], id_text[24];
    snprintf(epoch_text, sizeof epoch_text, "%" PRIu64, epoch);
    snprintf(id_text, sizeof id_text, "%" PRIu64, id);
    const struct local_key keys[] = {
        {"cluster_id", cluster_id}, {"epoch", epoch_text}, {"name", name}, {"member_id", id_text}, {"clustered", str_empty(name) ? NULL : "1"},
        {"moved", NULL},
    };
    return local_state_set_all(daemon->local, keys, sizeof keys / sizeof *keys, err);
}

static atomic_bool forming;

int forming_begin(struct error *err)
{
    return atomic_exchange(&forming, true) ? error_set(err, STATUS_FAILED_PRECONDITION, "This server is forming or joining a cluster already") : STATUS_OK;
}

void forming_end(void)
{
    atomic_store(&forming, false);
}

static int count_clusters(struct sql *sql, void *ud, struct error *err)
{
    return sql_get_int(sql, ud, err, "SELECT count(*) FROM cluster", "");
}

/* What an earlier cluster left: its certificate would be lost. A bootstrap that goes on after a crash has written its own. */
static int check_leftovers(struct daemon *daemon, struct error *err)
{
    static const char *const files[] = {"cluster.crt", "cluster.key", "cluster.ca"};
    int64_t clusters = 0;
    int status = daemon_read(daemon, DB_LINEARIZABLE, count_clusters, &clusters, NULL, err);
    for (size_t i = 0; i < sizeof files / sizeof *files && status == STATUS_OK && clusters == 0; i++) {
        char *path = xasprintf("%s/%s", daemon->dir, files[i]);
        struct stat info;
        if (lstat(path, &info) == 0) {
            status = error_set(err, STATUS_FAILED_PRECONDITION, "Inconsistent state: found leftover cluster certificate");
        }
        free(path);
    }
    return status;
}

/* From the database's rows to a member that acts by them. */
static int take_effect(struct daemon *daemon, const struct bootstrap *in, struct error *err)
{
    int status = identity_set_cluster(daemon, in->cert, in->key, err);
    crash_point("bootstrap:identity");
    status = status == STATUS_OK ? cluster_local_state(daemon, in->name, in->uuid, (uint64_t)in->epoch, 1, err) : status;
    crash_point("bootstrap:placed");
    if (status == STATUS_OK) {
        state_set_identity(daemon, 1, true, in->name);
        status = state_transport() == NULL ? state_start_transport(daemon, err) : STATUS_OK;
    }
    return status;
}

static void undo(struct op *op, struct bootstrap *in)
{
    struct error err = ERROR_INIT;
    if (cluster_local_state(the_daemon, NULL, NULL, 0, 1, &err) != STATUS_OK) {
        log_error("bootstrap.undo", "error=\"%s\"", err.text);
    }
    state_set_identity(the_daemon, 1, false, "");
    identity_drop_cluster(the_daemon);
    if (op_write(op, "undo", bootstrap_undo, in, NULL, &err) != STATUS_OK) {
        log_error("bootstrap.undo", "error=\"%s\"", err.text);
    }
    controller_refresh_view(the_daemon);
}

static int bootstrap_steps(struct op *op, struct error *err)
{
    struct daemon *daemon = the_daemon;
    const Covey__V1__UpdateClusterRequest *request =
        (const Covey__V1__UpdateClusterRequest *)op_request(op, &covey__v1__update_cluster_request__descriptor, err);
    struct identity made = {0};
    if (request == NULL || check_leftovers(daemon, err) != STATUS_OK || identity_create(daemon->hostname, &made, err) != STATUS_OK) {
        return err->code;
    }
    struct bootstrap in = {.name = request->server_name, .address = request->server_address, .server = &daemon->server, .made = &made};
    struct buf former = {0};
    int status = op_write(op, "bootstrap", bootstrap_write, &in, &former, err);
    in.former = buf_take(&former);
    crash_point("bootstrap:written");
    if (status == STATUS_OK) {
        status = daemon_read(daemon, DB_LINEARIZABLE, bootstrap_read, &in, NULL, err);
        status = status == STATUS_OK ? take_effect(daemon, &in, err) : status;
        if (status != STATUS_OK) {
            undo(op, &in);
        }
    }
    if (status == STATUS_OK) {
        controller_refresh_view(daemon);
        char source[128];
        snprintf(source, sizeof source, "/1.0/cluster/%s", in.name);
        events_lifecycle("cluster-enabled", source, "default", op_requestor(op), NULL, NULL);
    }
    identity_free(&made);
    free(in.uuid);
    free(in.cert);
    free(in.key);
    free(in.former);
    return status;
}

static int bootstrap_run(struct op *op, struct error *err)
{
    int status = forming_begin(err);
    if (status == STATUS_OK) {
        status = bootstrap_steps(op, err);
        forming_end();
    }
    return status;
}

static const struct op_kind bootstrap_kind = {.type = 1, .description = "Creating bootstrap node", .class = OP_TASK, .run = bootstrap_run};

void bootstrap_register(void)
{
    op_register(&bootstrap_kind);
}

int bootstrap_start(struct rpc_call *call, const char *name, Covey__V1__Operation **operation, struct error *err)
{
    struct daemon *daemon = the_daemon;
    char core[300], cluster[300], set[300] = "";
    listener_get(core, sizeof core, cluster, sizeof cluster);
    if (cluster[0] != '\0') {
        snprintf(set, sizeof set, "%s", cluster);
    } else if (core[0] != '\0' && !address_wildcard(core)) {
        snprintf(set, sizeof set, "%s", core);
        if (listener_set(daemon, core, set, err) != STATUS_OK || local_config_set(daemon->local, "cluster.https_address", set, err) != STATUS_OK) {
            return err->code;
        }
    } else {
        return error_set(err, STATUS_INVALID_ARGUMENT,
            "Cannot use wildcard core.https_address \"\" for cluster.https_address. Please specify a new cluster.https_address or core.https_address");
    }
    Covey__V1__UpdateClusterRequest request = COVEY__V1__UPDATE_CLUSTER_REQUEST__INIT;
    request.server_name = (char *)name;
    request.server_address = set;
    request.enabled = true;
    struct op_spec spec = {.kind = &bootstrap_kind, .resources_json = "{\"cluster\":null}", .request = &request.base};
    return op_create(call, &spec, operation, err);
}
