/* The leader's work on image files: recording an uploaded one, copying it to cluster.images_minimal_replica members, synchronizing all, deleting. Operation
 * workers run it and may block on agents. One thread per fingerprint changes rows and files together (names.h); a copy is made without that lock and
 * recorded under it, so that an image deleted meanwhile leaves no file behind. Every step may be repeated by a next leader. */
#include "images.h"

#include "names.h"
#include "server/config/keys.h"
#include "server/events/events.h"
#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define LOCK_NOUN "Image"
enum { KIND_UPLOAD = 40, KIND_DELETE = 41, KIND_SYNC = 42, MEMBER_CREATED = 0, COPY_TIMEOUT_MS = 2 * 60 * 60 * 1000, SYNC_CALL_MS = 20000 };

static atomic_bool sync_again; /* somebody asked while a synchronization ran */

/* ---- holders ---- */

struct holders {
    const char *fingerprint;
    int64_t records; /* image rows of all projects */
    uint64_t members[IMAGE_HOLDERS_MAX];
    size_t count;
};

static int read_holders(struct sql *sql, void *ud, struct error *err)
{
    struct holders *in = ud;
    in->count = 0;
    int status = sql_get_int(sql, &in->records, err, "SELECT count(*) FROM images WHERE fingerprint = ?1", "s", in->fingerprint);
    struct sql_stmt *s = sql_query(sql, "SELECT DISTINCT node_id FROM images_nodes JOIN images ON images.id = image_id WHERE images.fingerprint = ?1 ORDER BY 1", "s", in->fingerprint);
    while (status == STATUS_OK && sql_next(s)) {
        if (in->count == IMAGE_HOLDERS_MAX) {
            status = error_set(err, STATUS_RESOURCE_EXHAUSTED, "more than %d members hold an image", IMAGE_HOLDERS_MAX);
            break;
        }
        in->members[in->count++] = (uint64_t)sql_int(s, 0);
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

static int holders_get(const char *fingerprint, struct holders *out, struct error *err)
{
    out->fingerprint = fingerprint;
    return daemon_read(the_daemon, DB_LINEARIZABLE, read_holders, out, NULL, err);
}

static bool holds(const struct holders *in, uint64_t member)
{
    for (size_t i = 0; i < in->count; i++) {
        if (in->members[i] == member) {
            return true;
        }
    }
    return false;
}

struct hold {
    const char *fingerprint;
    uint64_t member;
};

/* The member holds the file for every project's record. */
static int hold_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct hold *in = ud;
    int64_t records = 0;
    int status = sql_get_int(sql, &records, err, "SELECT count(*) FROM images WHERE fingerprint = ?1", "s", in->fingerprint);
    if (status == STATUS_OK && records == 0) {
        return error_set(err, STATUS_NOT_FOUND, "Image not found");
    }
    return status == STATUS_OK ? sql_exec(sql, err,
                                     "INSERT OR IGNORE INTO images_nodes (image_id, node_id) SELECT images.id, nodes.id FROM images, nodes WHERE images.fingerprint = ?1 AND nodes.id = ?2",
                                     "si", in->fingerprint, in->member)
                               : status;
}

static int remove_file(const char *fingerprint, uint64_t member, struct error *err)
{
    struct arena arena;
    ProtobufCMessage *response = NULL;
    Covey__Internal__V1__DeleteImageRequest request = COVEY__INTERNAL__V1__DELETE_IMAGE_REQUEST__INIT;
    request.fingerprint = (char *)fingerprint;
    arena_init(&arena);
    int status = agent_call(the_daemon, member, "DeleteImage", &request.base, &response, &arena, 0, err);
    arena_clear(&arena);
    return status;
}

/* Records a file that is on a member now; removes it again when the image is gone meanwhile. */
static int record_holder(const char *fingerprint, uint64_t member, struct error *err)
{
    struct hold hold = {.fingerprint = fingerprint, .member = member};
    if (name_lock(LOCK_NOUN, fingerprint, err) != STATUS_OK) {
        return err != NULL ? (int)err->code : STATUS_UNAVAILABLE;
    }
    int status = daemon_write(the_daemon, NULL, hold_write, &hold, NULL, NULL, NULL, err);
    if (status == STATUS_NOT_FOUND) {
        struct error remove = ERROR_INIT;
        if (remove_file(fingerprint, member, &remove) != STATUS_OK) {
            log_warn("image.orphan", "fingerprint=%.12s member=%" PRIu64 " error=\"%s\"", fingerprint, member, remove.text);
        }
    }
    name_unlock(LOCK_NOUN, fingerprint);
    return status;
}

/* ---- copies ---- */

static int pull(const char *fingerprint, uint64_t member, char **addresses, size_t count, struct error *err)
{
    struct arena arena;
    ProtobufCMessage *response = NULL;
    Covey__Internal__V1__PullImageRequest request = COVEY__INTERNAL__V1__PULL_IMAGE_REQUEST__INIT;
    request.fingerprint = (char *)fingerprint;
    request.addresses = addresses;
    request.n_addresses = count;
    arena_init(&arena);
    int status = agent_call(the_daemon, member, "PullImage", &request.base, &response, &arena, COPY_TIMEOUT_MS, err);
    arena_clear(&arena);
    return status;
}

static void shuffle(uint64_t *members, size_t count)
{
    for (size_t i = count; i > 1; i--) {
        uint32_t r;
        random_bytes(&r, sizeof r);
        uint64_t swap = members[i - 1];
        members[i - 1] = members[r % i];
        members[r % i] = swap;
    }
}

/* Addresses of online holders in random order; the texts live in arena. */
static size_t sources(const struct holders *holders, struct arena *arena, char **out)
{
    uint64_t online[IMAGE_HOLDERS_MAX];
    size_t n = 0, count = 0;
    for (size_t i = 0; i < holders->count; i++) {
        if (member_online(the_daemon, holders->members[i])) {
            online[n++] = holders->members[i];
        }
    }
    shuffle(online, n);
    const struct view *view = view_get();
    for (size_t i = 0; i < n; i++) {
        const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, online[i]);
        if (member != NULL) {
            out[count++] = arena_strdup(arena, member->address);
        }
    }
    view_unref(view);
    return count;
}

/* Members that may get a copy: online, not evacuated, without the file; in random order. */
static size_t candidates(const struct holders *holders, uint64_t *out)
{
    size_t n = 0;
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_members && n < IMAGE_HOLDERS_MAX; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        if (member->state == MEMBER_CREATED && member_online(the_daemon, member->id) && !holds(holders, member->id)) {
            out[n++] = member->id;
        }
    }
    view_unref(view);
    shuffle(out, n);
    return n;
}

/* Until min(cluster.images_minimal_replica, usable members) have it (spec/api.md 8.7). A member that dies during its copy is replaced by another one; any
 * other failure is an error, and a copy that was not completed is not recorded. */
static int replicate(const char *fingerprint, struct error *err)
{
    struct holders *holders = xcalloc(1, sizeof *holders);
    uint64_t *targets = xcalloc(IMAGE_HOLDERS_MAX, sizeof *targets);
    int64_t wanted = config_int("cluster.images_minimal_replica");
    int status = holders_get(fingerprint, holders, err);
    size_t n = status == STATUS_OK ? candidates(holders, targets) : 0, have = holders->count;
    for (size_t i = 0; i < n && status == STATUS_OK && (wanted < 0 || have < (uint64_t)wanted); i++) {
        struct arena arena;
        arena_init(&arena);
        char **addresses = arena_alloc(&arena, (IMAGE_HOLDERS_MAX + 1) * sizeof *addresses);
        size_t count = sources(holders, &arena, addresses);
        status = count > 0 ? pull(fingerprint, targets[i], addresses, count, err) : error_set(err, STATUS_UNAVAILABLE, "Image not available on any online node");
        arena_clear(&arena);
        if (status == STATUS_OK) {
            status = record_holder(fingerprint, targets[i], err);
            have += status == STATUS_OK;
        } else if (!member_online(the_daemon, targets[i])) {
            log_warn("image.copy", "fingerprint=%.12s member=%" PRIu64 " error=\"%s\"", fingerprint, targets[i], err->text);
            status = STATUS_OK;
        } else {
            error_prefix(err, "Failed to copy image to another member");
        }
    }
    free(targets);
    free(holders);
    return status;
}

/* ---- upload: record, then copies ---- */

struct record {
    const Covey__Internal__V1__RegisterImageRequest *request;
    int64_t now;
};

static int insert_parts(struct sql *sql, const Covey__Internal__V1__RegisterImageRequest *request, int64_t project, int64_t image, struct error *err)
{
    int64_t own = 0, profile = 0;
    int status = STATUS_OK;
    for (size_t i = 0; i < request->n_properties && status == STATUS_OK; i++) {
        status = image_store_property(sql, image, request->properties[i]->key, request->properties[i]->value, err);
    }
    for (size_t i = 0; i < request->n_aliases && status == STATUS_OK; i++) {
        status = image_alias_insert(sql, project, image, request->aliases[i]->name, request->aliases[i]->description, err);
    }
    status = status == STATUS_OK ? project_id(sql, request->project, &own, err) : status;
    if (status == STATUS_OK) {
        status = sql_get_int(sql, &profile, err, "SELECT id FROM profiles WHERE project_id = ?1 AND name = 'default'", "i", own);
        status = status == STATUS_OK ? sql_exec(sql, err, "INSERT INTO images_profiles (image_id, profile_id) VALUES (?1, ?2)", "ii", image, profile)
                                     : status == STATUS_NOT_FOUND ? STATUS_OK : status;
    }
    return status;
}

static int record_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct record *in = ud;
    const Covey__Internal__V1__RegisterImageRequest *request = in->request;
    int64_t project = 0, taken = 0;
    int status = image_project(sql, request->project, &project, err);
    status = status == STATUS_OK ? sql_get_int(sql, &taken, err, "SELECT count(*) FROM images WHERE project_id = ?1 AND fingerprint = ?2", "is", project, request->fingerprint)
                                 : status;
    if (status == STATUS_OK && taken > 0) {
        return error_set(err, STATUS_ALREADY_EXISTS, "Image with same fingerprint already exists");
    }
    status = status == STATUS_OK ? sql_exec(sql, err,
                                       "INSERT INTO images (project_id, fingerprint, filename, size, public, auto_update, architecture, creation_date, expiry_date, upload_date)"
                                       " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                                       "issioosiii", project, request->fingerprint, request->filename, request->size, request->public_, request->auto_update,
                                       request->architecture, request->created_at, request->expires_at, in->now)
                                 : status;
    status = status == STATUS_OK ? insert_parts(sql, request, project, sql_last_id(sql), err) : status;
    /* Files are shared by projects: who holds one holds it for this record, too. */
    return status == STATUS_OK ? sql_exec(sql, err,
                                     "INSERT OR IGNORE INTO images_nodes (image_id, node_id) SELECT i.id, n.id FROM images AS i, nodes AS n WHERE i.fingerprint = ?1 AND"
                                     " (n.id = ?2 OR n.id IN (SELECT node_id FROM images_nodes JOIN images ON images.id = image_id WHERE images.fingerprint = ?1))",
                                     "si", request->fingerprint, request->member)
                               : status;
}

/* With the lock: row and file together. sql_last_id is of the image because nothing was inserted after it. */
static int record_locked(struct op *op, const Covey__Internal__V1__RegisterImageRequest *request, struct error *err)
{
    struct record in = {.request = request, .now = time_unix_ns()};
    int status = pull(request->fingerprint, request->member, NULL, 0, err); /* still there? A deletion may have been quicker. */
    status = status == STATUS_OK ? op_write(op, "record", record_write, &in, NULL, err) : status;
    if (status == STATUS_OK || status == STATUS_UNAVAILABLE || status == STATUS_UNKNOWN) {
        return status;
    }
    struct error ignored = ERROR_INIT;
    struct holders *holders = xcalloc(1, sizeof *holders);
    if (holders_get(request->fingerprint, holders, &ignored) == STATUS_OK && holders->records == 0) {
        remove_file(request->fingerprint, request->member, &ignored); /* nobody's: a failure is only logged */
    } else if (ignored.code == STATUS_OK && !holds(holders, request->member)) {
        struct hold hold = {.fingerprint = request->fingerprint, .member = request->member}; /* the known image is on one more member now */
        daemon_write(the_daemon, NULL, hold_write, &hold, NULL, NULL, NULL, &ignored);
    }
    if (ignored.code != STATUS_OK) {
        log_warn("image.orphan", "fingerprint=%.12s member=%" PRIu64 " error=\"%s\"", request->fingerprint, request->member, ignored.text);
    }
    free(holders);
    return status;
}

static int upload_run(struct op *op, struct error *err)
{
    const Covey__Internal__V1__RegisterImageRequest *request =
        (const Covey__Internal__V1__RegisterImageRequest *)op_request(op, &covey__internal__v1__register_image_request__descriptor, err);
    if (request == NULL) {
        return err->code;
    }
    char size[24];
    snprintf(size, sizeof size, "%" PRId64, request->size);
    op_set_metadata(op, "fingerprint", json_string(request->fingerprint));
    op_set_metadata(op, "size", json_string(size));
    int status = name_lock(LOCK_NOUN, request->fingerprint, err);
    if (status == STATUS_OK) {
        status = record_locked(op, request, err);
        name_unlock(LOCK_NOUN, request->fingerprint);
    }
    status = status == STATUS_OK ? replicate(request->fingerprint, err) : status;
    if (status == STATUS_OK) {
        const char *project = project_or_default(request->project);
        events_lifecycle("image-created", image_url(op_arena(op), "images", request->fingerprint, project), project, op_requestor(op), "{\"type\":\"container\"}", NULL);
    }
    return status;
}

static const struct op_kind upload_kind = {.type = KIND_UPLOAD, .description = "Downloading image", .class = OP_TASK, .run = upload_run};

static int upload_prepare(struct sql *sql, void *ud, const char *uuid, struct error *err)
{
    int64_t project = 0;
    return image_project(sql, ud, &project, err);
}

int image_register(struct rpc_call *call, const Covey__Internal__V1__RegisterImageRequest *request, Covey__V1__Operation **out, struct error *err)
{
    struct op_spec spec = {.kind = &upload_kind, .project = project_or_default(request->project), .member = request->member, .request = &request->base,
        .prepare = upload_prepare, .ud = (void *)project_or_default(request->project)};
    return op_create(call, &spec, out, err);
}

static int register_image(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    Covey__V1__Operation *operation = NULL;
    int status = image_register(call, (const Covey__Internal__V1__RegisterImageRequest *)message, &operation, err);
    *response = operation != NULL ? &operation->base : NULL;
    return status;
}

/* ---- delete ---- */

struct removal {
    struct arena *arena;
    const char *project, *fingerprint;
    bool last; /* no other project has it */
    Covey__V1__Image *image;
};

static int removal_find(struct sql *sql, struct removal *in, int64_t *id, struct error *err)
{
    int64_t project = 0, records = 0;
    int status = image_project(sql, in->project, &project, err);
    status = status == STATUS_OK ? image_row_find(sql, project, in->fingerprint, false, id, err) : status;
    status = status == STATUS_OK ? image_load(sql, *id, &in->image, in->arena, err) : status;
    status = status == STATUS_OK ? sql_get_int(sql, &records, err, "SELECT count(*) FROM images WHERE fingerprint = ?1", "s", in->image->fingerprint) : status;
    in->last = records == 1;
    return status;
}

static int removal_read(struct sql *sql, void *ud, struct error *err)
{
    int64_t id = 0;
    return removal_find(sql, ud, &id, err);
}

/* The result is the list of members whose files go: a repeated step must know it after the rows went. */
static int removal_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    struct removal *in = ud;
    int64_t id = 0;
    int status = removal_find(sql, in, &id, err);
    struct sql_stmt *s = sql_query(sql, "SELECT node_id FROM images_nodes WHERE image_id = ?1", "i", id);
    while (status == STATUS_OK && in->last && sql_next(s)) {
        buf_printf(result, "%" PRId64 " ", sql_int(s, 0));
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    status = status == STATUS_OK ? done : status;
    return status == STATUS_OK ? sql_exec(sql, err, "DELETE FROM images WHERE id = ?1", "i", id) : status;
}

static int holders_online(const char *fingerprint, struct error *err)
{
    struct holders *holders = xcalloc(1, sizeof *holders);
    int status = holders_get(fingerprint, holders, err);
    const struct view *view = view_get();
    for (size_t i = 0; i < holders->count && status == STATUS_OK; i++) {
        const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, holders->members[i]);
        if (!member_online(the_daemon, holders->members[i])) {
            status = error_set(err, STATUS_UNAVAILABLE, "peer node %s is down", member != NULL ? member->address : "(unknown)");
        }
    }
    view_unref(view);
    free(holders);
    return status;
}

static int delete_locked(struct op *op, struct removal *in, struct error *err)
{
    struct buf members = {0};
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, removal_read, in, NULL, err);
    if (status == STATUS_OK && in->last) {
        status = holders_online(in->fingerprint, err);
    }
    if (status == STATUS_OK || status == STATUS_NOT_FOUND) { /* not found: unless this operation itself removed the rows before */
        status = op_write(op, "delete", removal_write, in, &members, err);
    }
    for (char *at = members.data; status == STATUS_OK && at != NULL && *at != '\0';) {
        uint64_t member = strtoull(at, &at, 10);
        struct holders *now = xcalloc(1, sizeof *now);
        status = holders_get(in->fingerprint, now, err);
        if (status == STATUS_OK && now->records == 0) { /* after an interruption it may have been uploaded again */
            status = remove_file(in->fingerprint, member, err);
        }
        free(now);
        at += strspn(at, " ");
    }
    buf_free(&members);
    return status;
}

static int delete_run(struct op *op, struct error *err)
{
    const Covey__V1__DeleteImageRequest *request = (const Covey__V1__DeleteImageRequest *)op_request(op, &covey__v1__delete_image_request__descriptor, err);
    if (request == NULL) {
        return err->code;
    }
    struct removal in = {.arena = op_arena(op), .project = project_or_default(request->project), .fingerprint = request->fingerprint};
    int status = name_lock(LOCK_NOUN, in.fingerprint, err);
    if (status == STATUS_OK) {
        status = delete_locked(op, &in, err);
        name_unlock(LOCK_NOUN, in.fingerprint);
    }
    if (status == STATUS_OK) {
        events_lifecycle("image-deleted", image_url(in.arena, "images", in.fingerprint, in.project), in.project, op_requestor(op), NULL, NULL);
    }
    return status;
}

static const struct op_kind delete_kind = {.type = KIND_DELETE, .description = "Deleting image", .class = OP_TASK, .run = delete_run};

int image_delete(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__DeleteImageRequest *request = (const Covey__V1__DeleteImageRequest *)message;
    struct removal in = {.arena = rpc_arena(call), .project = project_or_default(request->project), .fingerprint = request->fingerprint};
    if (image_allowed(call, in.project, err) != STATUS_OK) {
        return err->code;
    }
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, removal_read, &in, NULL, err);
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__DeleteImageRequest full = COVEY__V1__DELETE_IMAGE_REQUEST__INIT;
    full.fingerprint = in.image->fingerprint;
    full.project = (char *)in.project;
    char *resources = arena_printf(in.arena, "{\"images\":[\"%s\"]}", image_url(in.arena, "images", full.fingerprint, in.project));
    struct op_spec spec = {.kind = &delete_kind, .project = in.project, .resources_json = resources, .request = &full.base};
    Covey__V1__Operation *operation = NULL;
    status = op_create(call, &spec, &operation, err);
    *response = operation != NULL ? &operation->base : NULL;
    return status;
}

/* ---- synchronization ---- */

struct all {
    struct arena *arena;
    char **fingerprints;
    size_t count;
};

static int read_fingerprints(struct sql *sql, void *ud, struct error *err)
{
    struct all *in = ud;
    int64_t count = 0;
    int status = sql_get_int(sql, &count, err, "SELECT count(DISTINCT fingerprint) FROM images", "");
    in->fingerprints = arena_alloc(in->arena, ((size_t)count + 1) * sizeof *in->fingerprints);
    struct sql_stmt *s = sql_query(sql, "SELECT DISTINCT fingerprint FROM images ORDER BY 1", "");
    while (status == STATUS_OK && sql_next(s) && in->count < (size_t)count) {
        in->fingerprints[in->count++] = arena_strdup(in->arena, sql_text(s, 0));
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

struct secure {
    struct all all;
    uint64_t member;
};

static int read_only_here(struct sql *sql, void *ud, struct error *err)
{
    static const char query[] =
        "SELECT DISTINCT i.fingerprint FROM images AS i JOIN images_nodes AS n ON n.image_id = i.id WHERE n.node_id = ?1 AND NOT EXISTS"
        " (SELECT 1 FROM images AS j JOIN images_nodes AS m ON m.image_id = j.id WHERE j.fingerprint = i.fingerprint AND m.node_id <> ?1) ORDER BY 1";
    struct secure *in = ud;
    int64_t count = 0;
    int status = sql_get_int(sql, &count, err, "SELECT count(*) FROM images_nodes WHERE node_id = ?1", "i", (int64_t)in->member);
    in->all.fingerprints = arena_alloc(in->all.arena, ((size_t)count + 1) * sizeof *in->all.fingerprints);
    struct sql_stmt *s = sql_query(sql, query, "i", (int64_t)in->member);
    while (status == STATUS_OK && sql_next(s) && in->all.count < (size_t)count) {
        in->all.fingerprints[in->all.count++] = arena_strdup(in->all.arena, sql_text(s, 0));
    }
    int done = sql_done(s, status == STATUS_OK ? err : NULL);
    return status == STATUS_OK ? done : status;
}

int images_secure(struct daemon *daemon, uint64_t member, struct error *err)
{
    struct arena arena;
    arena_init(&arena);
    struct secure in = {.all = {.arena = &arena}, .member = member};
    int status = daemon_read(daemon, DB_LINEARIZABLE, read_only_here, &in, NULL, err);
    for (size_t i = 0; i < in.all.count && status == STATUS_OK; i++) {
        status = replicate(in.all.fingerprints[i], err);
        status = status == STATUS_NOT_FOUND ? STATUS_OK : status; /* deleted meanwhile */
    }
    arena_clear(&arena);
    return status;
}

/* One image's failure does not keep the others from being copied; the first one is the operation's. */
static int sync_run(struct op *op, struct error *err)
{
    int status = STATUS_OK;
    do {
        atomic_store(&sync_again, false);
        struct all all = {.arena = op_arena(op)};
        if (daemon_read(the_daemon, DB_LINEARIZABLE, read_fingerprints, &all, NULL, err) != STATUS_OK) {
            return err->code;
        }
        for (size_t i = 0; i < all.count; i++) {
            struct error one = ERROR_INIT;
            int rc = replicate(all.fingerprints[i], &one);
            if (rc != STATUS_OK && rc != STATUS_NOT_FOUND) { /* not found: deleted meanwhile */
                log_warn("image.synchronize", "fingerprint=%.12s error=\"%s\"", all.fingerprints[i], one.text);
                *err = status == STATUS_OK ? one : *err;
                status = rc;
            }
            if (one.not_leader) {
                return rc;
            }
        }
    } while (atomic_load(&sync_again));
    return status == STATUS_OK ? STATUS_OK : (int)err->code;
}

static const struct op_kind sync_kind = {.type = KIND_SYNC, .description = "Synchronizing images", .class = OP_TASK, .run = sync_run};

static int sync_prepare(struct sql *sql, void *ud, const char *uuid, struct error *err)
{
    int64_t running = 0;
    int status = sql_get_int(sql, &running, err, "SELECT count(*) FROM operations WHERE type = ?1 AND status IN (?2, ?3)", "iii", (int64_t)KIND_SYNC, (int64_t)OP_PENDING,
        (int64_t)OP_RUNNING);
    return status == STATUS_OK && running > 0 ? error_set(err, STATUS_ALREADY_EXISTS, "Images are being synchronized already") : status;
}

static int synchronize_images(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct op_spec spec = {.kind = &sync_kind, .prepare = sync_prepare};
    Covey__V1__Operation *operation = NULL;
    atomic_store(&sync_again, true); /* before the look at the running one, which clears it as it begins a round */
    int status = op_create(call, &spec, &operation, err);
    return status == STATUS_ALREADY_EXISTS ? STATUS_OK : status;
}

int images_synchronize(struct daemon *daemon, struct error *err)
{
    struct arena arena;
    ProtobufCMessage *response = NULL;
    Covey__V1__Empty request = COVEY__V1__EMPTY__INIT;
    struct rpc_channel *channel = member_channel(daemon, daemon_id(daemon), err);
    if (channel == NULL) {
        return err != NULL ? (int)err->code : STATUS_UNAVAILABLE;
    }
    struct rpc_options options = {.timeout_ms = SYNC_CALL_MS};
    arena_init(&arena);
    int status = rpc_unary(channel, "covey.internal.v1.Images", "SynchronizeImages", &request.base, &response, &arena, &options, err);
    arena_clear(&arena);
    rpc_channel_unref(channel);
    return status;
}

/* ---- questions of receiving members ---- */

static int read_project(struct sql *sql, void *ud, struct error *err)
{
    int64_t project = 0;
    return image_project(sql, ud, &project, err);
}

static int check_upload(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const char *project = project_or_default(((const Covey__Internal__V1__CheckUploadRequest *)message)->project);
    return daemon_read(the_daemon, DB_LINEARIZABLE, read_project, (void *)project, NULL, err);
}

static int locate_image(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct arena *arena = rpc_arena(call);
    struct holders *holders = arena_alloc(arena, sizeof *holders);
    int status = holders_get(((const Covey__Internal__V1__LocateImageRequest *)message)->fingerprint, holders, err);
    if (status != STATUS_OK) {
        return status;
    }
    Covey__Internal__V1__LocateImageResponse *out = arena_alloc(arena, sizeof *out);
    covey__internal__v1__locate_image_response__init(out);
    out->records = holders->records;
    out->members = arena_alloc(arena, (holders->count + 1) * sizeof *out->members);
    for (size_t i = 0; i < holders->count; i++) {
        if (member_online(the_daemon, holders->members[i])) {
            out->members[out->n_members++] = holders->members[i];
        }
    }
    *response = &out->base;
    return STATUS_OK;
}

static const struct rpc_binding bindings[] = {
    {"CheckUpload", check_upload}, {"RegisterImage", register_image}, {"LocateImage", locate_image}, {"SynchronizeImages", synchronize_images},
};

void image_copies_bind(void)
{
    op_register(&upload_kind);
    op_register(&delete_kind);
    op_register(&sync_kind);
    rpc_bind("covey.internal.v1.Images", bindings, sizeof bindings / sizeof *bindings, NULL);
}
