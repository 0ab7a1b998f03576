/* The joiner's side (spec/cluster.md 4.3): introduce, be accepted, make the cluster's pools and networks here (join_pools.c, join_networks.c), exchange the database, complete.
 *
 * The state of a join is one JSON object in the local database (key "join"), written before the step that its phase names:
 *   asked, making  the server is as before; a restart undoes what there is and tells the cluster
 *   abandoning     the join has failed, the cluster is still to be told
 *   switching      a restart goes on until the cluster has this member or says that it does not know the join; then everything is put back, the former
 *                  database too (kept as global.before until the join is complete)
 *   joined         only the former database is still to be removed */
#include "join.h"

#include "upgrade.h"

#include "server/auth/tokens.h"
#include "server/config/keys.h"
#include "server/daemon/identity.h"
#include "server/daemon/listener.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/networks/networks_member.h"
#include "server/operations/operations.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

static void join_clear(struct join *join)
{
    json_decref(join->pools);
    json_decref(join->networks);
    arena_clear(&join->arena);
}

void join__add_address(struct join *join, const char *address)
{
    for (size_t i = 0; i < join->address_count; i++) {
        if (strcmp(join->addresses[i], address) == 0) {
            return;
        }
    }
    if (join->address_count < JOIN_ADDRESSES_MAX) {
        join->addresses[join->address_count++] = arena_strdup(&join->arena, address);
    }
}

/* ---- calls to the cluster ---- */

/* Whether trying again, also through another member, may help: nothing is wrong with the request itself. */
static bool worth_repeating(int status)
{
    return status == STATUS_UNAVAILABLE || status == STATUS_UNKNOWN || status == STATUS_DEADLINE_EXCEEDED || status == STATUS_CANCELLED ||
           status == STATUS_RESOURCE_EXHAUSTED;
}

int join__call(struct daemon *daemon, struct join *join, const char *service, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response,
               int64_t total_ms, struct error *err)
{
    char request_id[37];
    uuid_new(request_id);
    int64_t end = time_mono_ms() + total_ms;
    int status = error_set(err, STATUS_UNAVAILABLE, "no cluster member is known");
    for (size_t i = 0; join->address_count > 0; i = (i + 1) % join->address_count) {
        struct rpc_channel *channel = rpc_channel_tls(join->addresses[i], join->fingerprint, NULL, &daemon->server);
        struct rpc_options options = {.timeout_ms = total_ms < JOIN_CALL_MS ? total_ms : JOIN_CALL_MS, .request_id = request_id};
        status = rpc_unary(channel, service, method, request, response, &join->arena, &options, err);
        rpc_channel_unref(channel);
        int64_t now = time_mono_ms();
        bool unknown_yet = status == STATUS_PERMISSION_DENIED && join->introduced && now < join->known_by_ms; /* that member's view is older than our trust */
        if ((!worth_repeating(status) && !unknown_yet) || now >= end) {
            break;
        }
        usleep(JOIN_PAUSE_MS * 1000);
    }
    return status;
}

static int call_membership(struct daemon *daemon, struct join *join, const char *method, const ProtobufCMessage *request, ProtobufCMessage **response, int64_t total_ms,
                           struct error *err)
{
    return join__call(daemon, join, "covey.internal.v1.Membership", method, request, response, total_ms, err);
}

static int introduce_self(struct daemon *daemon, struct join *join, const char *password, struct error *err)
{
    Covey__Internal__V1__IntroduceRequest request = COVEY__INTERNAL__V1__INTRODUCE_REQUEST__INIT;
    struct token_text token = {0};
    bool is_token = token_decode(password, &token) && token.join;
    request.name = join->name;
    request.certificate = daemon->server.cert_pem;
    request.token_secret = is_token ? token.secret : (char *)"";
    request.password = is_token ? (char *)"" : (char *)password;
    ProtobufCMessage *response = NULL;
    int status = call_membership(daemon, join, "Introduce", &request.base, &response, JOIN_CALL_MS, err);
    token_text_free(&token);
    if (status == STATUS_OK) {
        const Covey__Internal__V1__IntroduceResponse *known = (const Covey__Internal__V1__IntroduceResponse *)response;
        join->introduced = true;
        join->known_by_ms = time_mono_ms() + JOIN_TRUST_MS;
        join->former_type = known->former_type;
        join->former_name = known->former_name;
        for (size_t i = 0; i < known->n_addresses; i++) {
            join__add_address(join, known->addresses[i]);
        }
        return status;
    }
    if (worth_repeating(status)) {
        return error_prefix(err, "Failed to setup cluster trust: Failed to connect to target cluster node \"%s\"", join->addresses[0]);
    }
    if (str_prefix(err->text, "Existing server certificate")) {
        return error_prefix(err, "Failed to update cluster trust");
    }
    if (str_empty(password)) {
        return error_prefix(err, "Failed to update cluster trust: Failed getting existing certificate");
    }
    return error_prefix(err, "Failed to setup cluster trust: Failed to add server cert to cluster");
}

static int accept_self(struct daemon *daemon, struct join *join, Covey__Internal__V1__AcceptResponse **out, struct error *err)
{
    struct utsname host;
    uname(&host);
    Covey__Internal__V1__AcceptRequest request = COVEY__INTERNAL__V1__ACCEPT_REQUEST__INIT;
    request.name = join->name;
    request.address = join->address;
    request.schema = upgrade_claim().level.schema;
    request.api_extensions = upgrade_claim().level.api;
    request.architecture = host.machine;
    request.join_id = join->join_id;
    request.pools = join->own;
    request.n_pools = join->own_count;
    request.networks = join->own_networks;
    request.n_networks = join->own_network_count;
    ProtobufCMessage *response = NULL;
    int status = call_membership(daemon, join, "Accept", &request.base, &response, JOIN_STEP_MS, err);
    if (status == STATUS_PERMISSION_DENIED) {
        return error_prefix(err, "Failed to update cluster trust: Failed getting existing certificate");
    }
    if (status == STATUS_FAILED_PRECONDITION && str_prefix(err->text, "Existing server certificate")) {
        return error_prefix(err, "Failed to update cluster trust");
    }
    if (status != STATUS_OK) {
        return error_prefix(err, "Failed request to add member");
    }
    *out = (Covey__Internal__V1__AcceptResponse *)response;
    return STATUS_OK;
}

/* Tells the cluster; true when it knows, or when it need not: it does not trust us. */
static bool abandon_self(struct daemon *daemon, struct join *join)
{
    Covey__Internal__V1__AbandonRequest request = COVEY__INTERNAL__V1__ABANDON_REQUEST__INIT;
    request.join_id = join->join_id;
    request.name = join->name;
    request.former_type = join->former_type;
    request.former_name = (char *)(join->former_name != NULL ? join->former_name : "");
    ProtobufCMessage *response = NULL;
    struct error err = ERROR_INIT;
    int status = call_membership(daemon, join, "Abandon", &request.base, &response, JOIN_ABANDON_MS, &err);
    if (status != STATUS_OK) {
        log_warn("join.abandon", "error=\"%s\"", err.text);
    }
    return !worth_repeating(status);
}

static int complete_self(struct daemon *daemon, struct join *join, struct error *err)
{
    Covey__Internal__V1__CompleteRequest request = COVEY__INTERNAL__V1__COMPLETE_REQUEST__INIT;
    ProtobufCMessage *response = NULL;
    request.id = join->id;
    request.join_id = join->join_id;
    request.pools = join__pools_message(join, &request.n_pools);
    request.networks = join__networks_message(join, &request.n_networks);
    int status = call_membership(daemon, join, "Complete", &request.base, &response, JOIN_COMPLETE_MS, err);
    crash_point("join:completed");
    if (status == STATUS_OK) {
        if (join->view == NULL) { /* after a restart the view may still be the standalone server's, of a higher term */
            view_forget(daemon);
        }
        view_install(daemon, ((Covey__Internal__V1__CompleteResponse *)response)->view);
        view_persist(daemon);
    }
    return status;
}

static atomic_bool exchanging; /* it is not settled whose database this server has */

bool join_exchanging(void)
{
    return atomic_load(&exchanging);
}

/* From "switching" on: exchanges the database and completes, or puts everything back. */
static int finish(struct daemon *daemon, struct join *join, struct error *err)
{
    atomic_store(&exchanging, true);
    int status = join__switch_over(daemon, join, err);
    if (status == STATUS_OK) {
        status = complete_self(daemon, join, err);
        if (status == STATUS_OK) {
            struct error drop = ERROR_INIT;
            if (join__save(daemon, join, "joined", &drop) != STATUS_OK || join__drop_former(daemon, &drop) != STATUS_OK) {
                log_error("join.former", "error=\"%s\"", drop.text); /* the next start tries again */
            }
            networks_sync(daemon); /* those that this server had alone go */
            atomic_store(&exchanging, false);
            log_info("join.done", "member=%s id=%" PRIu64, join->name, join->id);
            return STATUS_OK;
        }
        if (worth_repeating(status)) {
            return error_prefix(err, "Failed to connect to cluster leader"); /* unknown: goes on in the background and at the next start */
        }
        error_prefix(err, "Failed to join cluster");
    }
    struct error back = ERROR_INIT;
    bool told = abandon_self(daemon, join);
    if (join__switch_back(daemon, &back) != STATUS_OK) {
        core_panic(__FILE__, __LINE__, "cannot return to the former database: %s", back.text); /* the next start tries again */
    }
    atomic_store(&exchanging, false);
    join__unmake_networks(daemon, join);
    join__unmake_pools(daemon, join);
    if (told) {
        join__forget(daemon);
    } else if (join__save(daemon, join, "abandoning", &back) != STATUS_OK) {
        log_error("join.state", "error=\"%s\"", back.text);
    }
    return status;
}

/* ---- the steps ---- */

/* Before the exchange nothing has to be put back here but what this join made. */
static void undo(struct daemon *daemon, struct join *join, int status)
{
    struct error err = ERROR_INIT;
    join__unmake_networks(daemon, join);
    join__unmake_pools(daemon, join);
    bool maybe_known = join->introduced || worth_repeating(status);
    if (!maybe_known || abandon_self(daemon, join)) {
        join__forget(daemon);
    } else if (join__save(daemon, join, "abandoning", &err) != STATUS_OK) {
        log_error("join.state", "error=\"%s\"", err.text);
    }
}

/* What an earlier attempt still owes: its pools, and telling its cluster. False when the cluster could not be told. */
static bool settle_earlier(struct daemon *daemon, json_t *object)
{
    struct join earlier = {0};
    arena_init(&earlier.arena);
    join__load(&earlier, object);
    join__unmake_networks(daemon, &earlier);
    join__unmake_pools(daemon, &earlier);
    bool told = abandon_self(daemon, &earlier);
    join_clear(&earlier);
    return told;
}

static int count_dropped(struct sql *sql, void *ud, struct error *err)
{
    static const char *const tables[] = {"instances", "images", "storage_pools", "networks", "profiles", "projects"};
    struct buf *out = ud;
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        char query[64];
        int64_t count = 0;
        snprintf(query, sizeof query, "SELECT count(*) FROM %s", tables[i]);
        if (sql_get_int(sql, &count, err, query, "") != STATUS_OK) {
            return err->code;
        }
        buf_printf(out, "%s%s=%" PRId64, i > 0 ? " " : "", tables[i], count);
    }
    return STATUS_OK;
}

static void log_dropped(struct daemon *daemon)
{
    struct buf text = {0};
    if (daemon_read(daemon, DB_LOCAL, count_dropped, &text, NULL, NULL) == STATUS_OK) {
        log_info("join.dropped", "%s", text.data); /* this server's own objects, which the cluster's replace */
    }
    buf_free(&text);
}

static int join_steps(struct daemon *daemon, struct join *join, const Covey__V1__UpdateClusterRequest *request, const char *password, struct error *err)
{
    json_t *earlier = join__load_object(daemon);
    bool open = join__in_phase(earlier, "switching");
    if (earlier != NULL && !open) {
        settle_earlier(daemon, earlier);
    }
    json_decref(earlier);
    if (open) { /* its outcome decides which database this server has */
        return error_set(err, STATUS_FAILED_PRECONDITION, "This server is forming or joining a cluster already");
    }
    if (join__load_own_pools(daemon, join, err) != STATUS_OK || join__load_own_networks(daemon, join, err) != STATUS_OK || join__save(daemon, join, "asked", err) != STATUS_OK) {
        return err->code;
    }
    crash_point("join:asked");
    Covey__Internal__V1__AcceptResponse *accepted = NULL;
    int status = introduce_self(daemon, join, password, err);
    crash_point("join:introduced");
    status = status == STATUS_OK ? join__save(daemon, join, "asked", err) : status;
    status = status == STATUS_OK ? join__check_pools(daemon, join, err) : status;
    status = status == STATUS_OK ? accept_self(daemon, join, &accepted, err) : status;
    crash_point("join:accepted");
    status = status == STATUS_OK ? join__make_pools(daemon, join, accepted, request, err) : status;
    status = status == STATUS_OK ? join__make_networks(daemon, join, accepted, request, err) : status;
    status = status == STATUS_OK ? cert_fingerprint(accepted->cluster_certificate, join->fingerprint, err) : status;
    if (status == STATUS_OK) {
        join->id = accepted->id;
        join->epoch = accepted->epoch;
        join->cluster_id = accepted->cluster_id;
        join->cluster_cert = accepted->cluster_certificate;
        join->cluster_key = accepted->cluster_key;
        join->view = accepted->view;
        log_dropped(daemon);
        events_lifecycle("project-updated", "/1.0/projects/default", "default", join->requestor, NULL, NULL); /* it becomes the cluster's */
        status = join__save(daemon, join, "switching", err);
    }
    if (status != STATUS_OK) {
        undo(daemon, join, status);
        return status;
    }
    crash_point("join:switching");
    return finish(daemon, join, err);
}

/* ---- the operation ---- */

static int wait_forming(struct error *err)
{
    int64_t end = time_mono_ms() + JOIN_FORMING_WAIT_MS;
    int status;
    while ((status = forming_begin(err)) != STATUS_OK && time_mono_ms() < end) {
        usleep(JOIN_PAUSE_MS * 1000);
    }
    return status;
}

static void add_token_addresses(struct join *join, const char *password)
{
    struct token_text token = {0};
    if (token_decode(password, &token) && token.join) {
        char canonical[300];
        for (size_t i = 0; token.addresses != NULL && token.addresses[i] != NULL; i++) {
            if (address_canonical(token.addresses[i], canonical, sizeof canonical, NULL) == STATUS_OK) {
                join__add_address(join, canonical);
            }
        }
    }
    token_text_free(&token);
}

static int join_run(struct op *op, struct error *err)
{
    struct daemon *daemon = the_daemon;
    const Covey__V1__UpdateClusterRequest *request =
        (const Covey__V1__UpdateClusterRequest *)op_request(op, &covey__v1__update_cluster_request__descriptor, err);
    if (request == NULL) {
        return err->code;
    }
    const char *password = !str_empty(request->cluster_token) ? request->cluster_token : request->cluster_password;
    struct join join = {.requestor = op_requestor(op)};
    arena_init(&join.arena);
    uuid_new(join.join_id);
    snprintf(join.name, sizeof join.name, "%s", request->server_name);
    snprintf(join.address, sizeof join.address, "%s", request->server_address);
    join__add_address(&join, request->cluster_address);
    add_token_addresses(&join, password);
    int status = cert_fingerprint(request->cluster_certificate, join.fingerprint, err);
    status = status == STATUS_OK ? wait_forming(err) : status; /* two requests at once would exchange the database under each other */
    if (status == STATUS_OK) {
        status = daemon_clustered(daemon) ? error_set(err, STATUS_INVALID_ARGUMENT, "This server is already clustered")
                                          : join_steps(daemon, &join, request, password, err);
        forming_end();
        struct error later = ERROR_INIT;
        if (status != STATUS_OK && join_resume(daemon, &later) != STATUS_OK) { /* what is open goes on until it is settled */
            log_error("join.resume", "error=\"%s\"", later.text);
        }
    }
    join_clear(&join);
    return status;
}

static const struct op_kind join_kind = {.type = 2, .description = "Joining cluster", .class = OP_TASK, .run = join_run};

void join_register(void)
{
    op_register(&join_kind);
}

int server_idle_check(struct daemon *daemon, const char *text, struct error *err)
{
    struct arena arena;
    arena_init(&arena);
    Covey__Internal__V1__InstanceStatus **instances = NULL;
    size_t count = 0, running = 0;
    host_instances(daemon->host, &arena, &instances, &count);
    for (size_t i = 0; i < count; i++) {
        running += instances[i]->status_code != 102;
    }
    arena_clear(&arena);
    return running == 0 ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "%s", text);
}

/* Opens the listener for `address` and stores what follows from it (spec/cluster.md 4.1). Kept when the join fails later. */
static int listen_on(struct daemon *daemon, const char *address, struct error *err)
{
    char core[300], cluster[300];
    listener_get(core, sizeof core, cluster, sizeof cluster);
    const char *set_core = core[0] != '\0' ? core : address;
    if (listener_set(daemon, set_core, address, err) != STATUS_OK) {
        static const char network[] = "Cannot listen on network ";
        if (str_prefix(err->text, network)) { /* to the joiner it is its cluster address, whichever socket serves it */
            struct error as = *err;
            error_set(err, as.code, "Cannot listen on cluster %s", as.text + sizeof network - 1);
        }
        return err->code;
    }
    int status = local_config_set(daemon->local, "core.https_address", set_core, err);
    return status == STATUS_OK ? local_config_set(daemon->local, "cluster.https_address", address, err) : status;
}

int join_start(struct rpc_call *call, const ProtobufCMessage *message, Covey__V1__Operation **operation, struct error *err)
{
    struct daemon *daemon = the_daemon;
    Covey__V1__UpdateClusterRequest request = *(const Covey__V1__UpdateClusterRequest *)message;
    char own[300], target[300];
    if (str_empty(request.cluster_certificate)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No target cluster member certificate provided");
    }
    if (daemon_clustered(daemon)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "This server is already clustered");
    }
    if (str_empty(request.server_address)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "No server address provided for this member");
    }
    if (cert_check_pem(request.cluster_certificate, (char[FINGERPRINT_SIZE]){0}, NULL, err) != STATUS_OK) {
        return error_prefix(err, "Invalid cluster_certificate");
    }
    if (address_canonical(request.server_address, own, sizeof own, err) != STATUS_OK) {
        return error_prefix(err, "Invalid server_address");
    }
    if (address_wildcard(own)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid server_address: Wildcard addresses aren't allowed");
    }
    if (address_canonical(request.cluster_address, target, sizeof target, err) != STATUS_OK) {
        return error_prefix(err, "Invalid cluster_address");
    }
    if (server_idle_check(daemon, "Cannot join a cluster while instances are running", err) != STATUS_OK || listen_on(daemon, own, err) != STATUS_OK) {
        return err->code;
    }
    request.server_address = own;
    request.cluster_address = target;
    struct op_spec spec = {.kind = &join_kind, .resources_json = "{\"cluster\":null}", .request = &request.base};
    return op_create_local(call, &spec, operation, err);
}

/* ---- after a restart, or when the outcome is open ---- */

static atomic_bool resuming; /* one thread is enough: it looks again */

struct resume {
    struct daemon *daemon;
    bool begun; /* `forming` is taken already: before the first request can come */
};

static void resume_switching(struct daemon *daemon, json_t *object)
{
    struct join join = {0};
    struct error err = ERROR_INIT;
    arena_init(&join.arena);
    join__load(&join, object);
    log_info("join.resume", "member=%s", join.name);
    while (worth_repeating(finish(daemon, &join, &err))) {
        log_warn("join.resume", "error=\"%s\"", err.text);
        if (!background_pause(1000)) { /* the next start goes on */
            break;
        }
    }
    join_clear(&join);
}

/* Tells the cluster, between other joins of this server, until it knows or has forgotten the join by itself. */
static void resume_abandoning(struct daemon *daemon)
{
    enum { PAUSE_MS = 5000 };
    int64_t end = time_mono_ms() + (int64_t)PENDING_MEMBER_KEEP_S * 1000;
    for (;;) {
        json_t *object = join__load_object(daemon);
        if (object == NULL || join__in_phase(object, "switching") || join__in_phase(object, "joined")) {
            json_decref(object);
            return; /* settled by a later join */
        }
        bool told = settle_earlier(daemon, object);
        json_decref(object);
        if (told || time_mono_ms() >= end) {
            join__forget(daemon);
            return;
        }
        forming_end(); /* others need not wait for this */
        do {
            if (!background_pause(PAUSE_MS)) {
                return; /* the next start goes on */
            }
        } while (forming_begin(NULL) != STATUS_OK);
    }
}

static void *resume_main(void *ud)
{
    struct resume *resume = ud;
    struct daemon *daemon = resume->daemon;
    while (!resume->begun && forming_begin(NULL) != STATUS_OK) { /* an interrupted bootstrap that goes on, too: bounded */
        usleep(JOIN_PAUSE_MS * 1000);
    }
    json_t *object = join__load_object(daemon);
    if (join__in_phase(object, "switching")) {
        resume_switching(daemon, object);
        json_decref(object);
        object = join__load_object(daemon);
    }
    if (object != NULL && !join__in_phase(object, "joined") && !join__in_phase(object, "switching")) {
        resume_abandoning(daemon);
    }
    json_decref(object);
    atomic_store(&resuming, false);
    forming_end();
    free(resume);
    return NULL;
}

int join_resume(struct daemon *daemon, struct error *err)
{
    json_t *object = join__load_object(daemon);
    bool any = object != NULL;
    if (join__in_phase(object, "switching")) { /* before anybody asks */
        atomic_store(&exchanging, true);
    }
    json_decref(object);
    if (!any || atomic_exchange(&resuming, true)) {
        return STATUS_OK;
    }
    struct resume *resume = xcalloc(1, sizeof *resume);
    *resume = (struct resume){daemon, forming_begin(NULL) == STATUS_OK};
    if (background_start("join", resume_main, resume) != 0) {
        if (resume->begun) {
            forming_end();
        }
        atomic_store(&resuming, false);
        free(resume);
        return error_set(err, STATUS_INTERNAL, "cannot start a thread");
    }
    return STATUS_OK;
}
