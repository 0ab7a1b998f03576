/* The guards around libraft 0.22.1, one place for all of them; see raft_shim.h. "Why" is given with each number. */
#include "raft_shim.h"
#include <stdlib.h>
#include <string.h>

#define PANIC(...) core_panic(__FILE__, __LINE__, __VA_ARGS__)

static struct raft_shim *shim_of(struct raft_io *io)
{
    struct raft *raft = io->data;
    return raft->data;
}

static uint64_t shim_now(void *ud)
{
    struct raft_shim *shim = ud;
    return shim->original.time(shim->io);
}

/* ---- log positions ---- */

/* libraft keeps terms as runs: records[i].index is the last index of a term, in a ring [front, back). */
raft_index raft_shim_last_index(const struct raft *raft)
{
    const struct raft_trail *trail = &raft->trail;
    if (trail->front == trail->back) {
        return trail->snapshot.index > trail->offset ? trail->snapshot.index : trail->offset;
    }
    return trail->records[(trail->back + trail->size - 1) % trail->size].index;
}

raft_term raft_shim_term_of(const struct raft *raft, raft_index index)
{
    const struct raft_trail *trail = &raft->trail;
    if (index > trail->offset) {
        for (unsigned i = trail->front; i != trail->back; i = (i + 1) % trail->size) {
            if (index <= trail->records[i].index) {
                return trail->records[i].term;
            }
        }
    }
    return index != 0 && index == trail->snapshot.index ? trail->snapshot.term : 0;
}

/* ---- sizes of entries ---- */

static void sizes_push(struct raft_shim_sizes *sizes, size_t bytes)
{
    if (sizes->count == sizes->cap) {
        size_t cap = sizes->cap == 0 ? 1024 : sizes->cap * 2;
        uint32_t *ring = xmalloc(cap * sizeof *ring);
        for (size_t i = 0; i < sizes->count; i++) {
            ring[i] = sizes->bytes[(sizes->front + i) % sizes->cap];
        }
        free(sizes->bytes);
        sizes->bytes = ring;
        sizes->cap = cap;
        sizes->front = 0;
    }
    sizes->bytes[(sizes->front + sizes->count) % sizes->cap] = (uint32_t)bytes;
    sizes->count++;
    sizes->total += bytes;
}

static uint32_t sizes_at(const struct raft_shim_sizes *sizes, uint64_t index)
{
    return sizes->bytes[(sizes->front + (size_t)(index - sizes->first)) % sizes->cap];
}

static void sizes_cut_back(struct raft_shim_sizes *sizes, uint64_t index)
{
    while (sizes->count > 0 && sizes->first + sizes->count > index) {
        sizes->total -= sizes_at(sizes, sizes->first + sizes->count - 1);
        sizes->count--;
    }
    if (sizes->count == 0) {
        sizes->first = index;
    }
}

static void sizes_cut_front(struct raft_shim_sizes *sizes, uint64_t first)
{
    while (sizes->count > 0 && sizes->first < first) {
        sizes->total -= sizes_at(sizes, sizes->first);
        sizes->front = (sizes->front + 1) % sizes->cap;
        sizes->first++;
        sizes->count--;
    }
    if (sizes->count == 0 && sizes->first < first) {
        sizes->first = first;
    }
}

/* ---- S1: errors that libraft swallows end the process ---- */

/* G17, N4: a conflict with a committed entry is only traced, then memory is freed twice. The trace comes first. */
static void core_trace(struct raft_tracer *tracer, int type, const void *info)
{
    const struct raft_tracer_info *trace = info;
    if (type == RAFT_TRACER_DIAGNOSTIC && strstr(trace->diagnostic.message, "shutdown") != NULL) {
        PANIC("raft: %s", trace->diagnostic.message);
    }
}

/* N5: after a failed write raft_uv arms its retry on a foreign timer. */
static void uv_trace(struct raft_tracer *tracer, int type, const void *info)
{
    const struct raft_tracer_info *trace = info;
    if (type == RAFT_TRACER_DIAGNOSTIC && strstr(trace->diagnostic.message, "retry failed write") != NULL) {
        PANIC("raft log: %s", trace->diagnostic.message);
    }
}

struct shim_append {
    struct raft_io_append request; /* ours; data = this */
    struct raft_shim *shim;
    struct raft_io_append *original;
    raft_io_append_cb done;
};

static void append_done(struct raft_io_append *request, int status)
{
    struct shim_append *append = request->data;
    if (status != 0 && !append->shim->closing) { /* N5 */
        PANIC("raft log: write failed: %s: %s", raft_strerror(status), append->shim->io->errmsg);
    }
    append->done(append->original, status);
    free(append);
}

/* N4: libraft frees entries twice, or its caches diverge, when append or truncate fail at once. */
static int shim_append(struct raft_io *io, struct raft_io_append *request, const struct raft_entry entries[], unsigned n, raft_io_append_cb done)
{
    struct raft_shim *shim = shim_of(io);
    struct shim_append *append = xcalloc(1, sizeof *append);
    append->request.data = append;
    append->shim = shim;
    append->original = request;
    append->done = done;
    for (unsigned i = 0; i < n; i++) {
        covey_assert(entries[i].buf.len % 8 == 0); /* R5: refused before it can get here */
        sizes_push(&shim->sizes, entries[i].buf.len);
    }
    int rv = shim->original.append(io, &append->request, entries, n, append_done);
    if (rv != 0) {
        PANIC("raft log: append failed: %s: %s", raft_strerror(rv), io->errmsg);
    }
    return 0;
}

static int shim_truncate(struct raft_io *io, raft_index index)
{
    struct raft_shim *shim = shim_of(io);
    int rv = shim->original.truncate(io, index);
    if (rv != 0) {
        PANIC("raft log: truncate failed: %s: %s", raft_strerror(rv), io->errmsg);
    }
    sizes_cut_back(&shim->sizes, index); /* called right before every append, too */
    return 0;
}

/* G7: writing the term clears the vote on disk until the vote is written: nothing to do when the term is there already. */
static int shim_set_term(struct raft_io *io, raft_term term)
{
    struct raft_shim *shim = shim_of(io);
    if (shim->disk_term_known && shim->disk_term == term) {
        return 0;
    }
    int rv = shim->original.set_term(io, term);
    if (rv != 0) { /* N4 */
        PANIC("raft metadata: term %llu not written: %s: %s", term, raft_strerror(rv), io->errmsg);
    }
    shim->disk_term = term;
    shim->disk_term_known = true;
    return 0;
}

static int shim_set_vote(struct raft_io *io, raft_id id)
{
    int rv = shim_of(io)->original.set_vote(io, id);
    if (rv != 0) { /* N4 */
        PANIC("raft metadata: vote not written: %s: %s", raft_strerror(rv), io->errmsg);
    }
    return 0;
}

static bool only_voter_is(const struct raft_configuration *configuration, raft_id id)
{
    bool found = false;
    for (unsigned i = 0; i < configuration->n; i++) {
        if (configuration->servers[i].role == RAFT_VOTER) {
            if (configuration->servers[i].id != id) {
                return false;
            }
            found = true;
        }
    }
    return found;
}

/* Whether the last configuration on disk has this member as its only voter. */
static bool loads_alone(raft_id id, const struct raft_snapshot *snapshot, const struct raft_entry *entries, size_t n)
{
    for (size_t i = n; i > 0; i--) {
        if (entries[i - 1].type == RAFT_CHANGE) {
            struct raft_configuration configuration;
            raft_configuration_init(&configuration);
            bool alone = raft_configuration_decode(&entries[i - 1].buf, &configuration) == 0 && only_voter_is(&configuration, id);
            raft_configuration_close(&configuration);
            return alone;
        }
    }
    return snapshot != NULL && only_voter_is(&snapshot->configuration, id);
}

/* G11: an only voter leads at once in the term that it finds on disk, which it, or a lost leader, has led before. What was sent to stand-bys in that
 * term and is not on this disk would be written again, different, under the same index and term. So it starts in a new term. */
static int load_new_term(struct raft_shim *shim, raft_term *term, raft_id *voted_for)
{
    int rv = shim->original.set_term(shim->io, *term + 1);
    if (rv == 0) {
        *term += 1;
        *voted_for = 0;
    }
    return rv;
}

static int shim_load(struct raft_io *io, raft_term *term, raft_id *voted_for, struct raft_snapshot **snapshot, raft_index *start_index,
                     struct raft_entry *entries[], size_t *n_entries)
{
    struct raft_shim *shim = shim_of(io);
    int rv = shim->original.load(io, term, voted_for, snapshot, start_index, entries, n_entries);
    if (rv == 0 && loads_alone(shim->raft->id, *snapshot, *entries, *n_entries)) {
        rv = load_new_term(shim, term, voted_for);
        if (rv != 0) { /* what was loaded is lost with the process */
            PANIC("raft metadata: term not written: %s: %s", raft_strerror(rv), io->errmsg);
        }
    }
    if (rv == 0) {
        shim->disk_term = *term;
        shim->disk_term_known = true;
        sizes_cut_back(&shim->sizes, *start_index);
        for (size_t i = 0; i < *n_entries; i++) {
            sizes_push(&shim->sizes, (*entries)[i].buf.len);
        }
        if (*snapshot != NULL && (*snapshot)->n_bufs == 1) {
            shim->last_snapshot_bytes = (*snapshot)->bufs[0].len;
            shim->restore_index = (*snapshot)->index;
        }
    }
    return rv;
}

/* ---- S3: send ---- */

static void send_message(struct raft_shim *shim, const struct raft_message *message)
{
    struct raft_wire_out out;
    raft_wire_out_set(&out, message);
    shim->hooks.send(shim->hooks.ud, message->server_id, &out.frame);
    raft_wire_out_clear(&out);
}

/* Rule 5: parts of at most RAFT_MESSAGE_BYTES_MAX. N1: the receiver books a configuration change under the index of the message's first new entry, so
 * each change starts a message of its own. */
static void send_entries(struct raft_shim *shim, const struct raft_message *message)
{
    const struct raft_append_entries *args = &message->append_entries;
    struct raft_message part = *message;
    unsigned start = 0;
    do {
        unsigned end = start;
        size_t bytes = 0;
        while (end < args->n_entries && (end == start || (bytes + args->entries[end].buf.len <= RAFT_MESSAGE_BYTES_MAX &&
                                                          args->entries[end].type != RAFT_CHANGE))) {
            bytes += args->entries[end].buf.len;
            end++;
        }
        part.append_entries.entries = args->n_entries > 0 ? &args->entries[start] : NULL;
        part.append_entries.n_entries = end - start;
        part.append_entries.prev_log_index = args->prev_log_index + start;
        part.append_entries.prev_log_term = start > 0 ? args->entries[start - 1].term : args->prev_log_term;
        send_message(shim, &part);
        start = end;
    } while (start < args->n_entries);
}

/* Rule 1: never an error (libraft would skip the rest of its step). Rule 4: everything is serialised before the return, peers are known by id only.
 * Rule 7: the hook drops what a full queue cannot take. Calling `done` at once is fine in this version. */
static int shim_send(struct raft_io *io, struct raft_io_send *request, const struct raft_message *message, raft_io_send_cb done)
{
    struct raft_shim *shim = shim_of(io);
    if (!shim->closing && message->type == RAFT_INSTALL_SNAPSHOT) {
        raft_term term = message->install_snapshot.last_term;
        if (message->install_snapshot.last_index == shim->loaded_index) { /* N7: a newer snapshot was loaded than asked for */
            term = shim->loaded_term;
        }
        raft_install_send(&shim->install, message, term, request, done); /* rule 6 */
        return 0;
    }
    if (!shim->closing) {
        if (message->type == RAFT_APPEND_ENTRIES) {
            send_entries(shim, message);
        } else {
            send_message(shim, message);
        }
    }
    if (done != NULL) {
        done(request, shim->closing ? RAFT_CANCELED : 0); /* rule 8 */
    }
    return 0;
}

struct shim_get {
    struct raft_io_snapshot_get request; /* ours; data = this */
    struct raft_shim *shim;
    struct raft_io_snapshot_get *original;
    raft_io_snapshot_get_cb done;
};

/* N7: libraft's error path frees memory that was never set. The error stays here (with its small request, which only libraft could free); the leader
 * asks again after its install timeout. */
static void get_done(struct raft_io_snapshot_get *request, struct raft_snapshot *snapshot, int status)
{
    struct shim_get *get = request->data;
    struct raft_shim *shim = get->shim;
    shim->loads--;
    if (status != 0) {
        log_error("raft.snapshot.load", "error=\"%s\"", raft_strerror(status));
    } else {
        shim->loaded_index = snapshot->index;
        shim->loaded_term = snapshot->term;
        get->done(get->original, snapshot, status);
    }
    free(get);
}

static int shim_snapshot_get(struct raft_io *io, struct raft_io_snapshot_get *request, raft_io_snapshot_get_cb done)
{
    struct raft_shim *shim = shim_of(io);
    struct shim_get *get = xcalloc(1, sizeof *get);
    get->request.data = get;
    get->shim = shim;
    get->original = request;
    get->done = done;
    shim->loads++;
    int rv = shim->original.snapshot_get(io, &get->request, get_done);
    if (rv != 0) {
        log_error("raft.snapshot.load", "error=\"%s\"", raft_strerror(rv));
        shim->loads--;
        free(get);
    }
    return 0; /* N7, rule 1 */
}

/* ---- S5: snapshots ---- */

static void taking_finish(struct raft_shim *shim, int status)
{
    struct raft_io_snapshot_put *request = shim->taking.request;
    raft_io_snapshot_put_cb done = shim->taking.done;
    raft_index index = shim->taking.index;
    unsigned trailing = shim->taking.trailing;
    size_t bytes = shim->taking.bufs[0].len;
    memset(&shim->taking, 0, sizeof shim->taking);
    if (status == 0) {
        shim->last_snapshot_bytes = bytes;
        sizes_cut_front(&shim->sizes, index > trailing ? index - trailing + 1 : 1);
        log_info("raft.snapshot.taken", "index=%llu bytes=%zu trailing=%u", index, bytes, trailing);
    } else if (!shim->closing) {
        shim->snapshot_retry_at = shim_now(shim) + RAFT_SHIM_SNAPSHOT_RETRY_MS;
        log_error("raft.snapshot.failed", "index=%llu error=\"%s\"", index, raft_strerror(status));
    }
    done(request, status);
    if (shim->hooks.snapshot_done != NULL) {
        shim->hooks.snapshot_done(shim->hooks.ud, status == 0);
    }
}

static void taking_put_done(struct raft_io_snapshot_put *request, int status)
{
    taking_finish(request->data, status);
}

static void taking_work(uv_work_t *work)
{
    struct raft_shim *shim = work->data;
    void *data = NULL;
    size_t len = 0;
    int rc = shim->hooks.snapshot_write(shim->hooks.ud, shim->taking.snapshot, &data, &len, &shim->taking.err);
    if (rc == STATUS_OK && (len == 0 || len % 8 != 0 || len > RAFT_WIRE_SNAPSHOT_BYTES_MAX)) {
        rc = error_set(&shim->taking.err, STATUS_INTERNAL, "snapshot of %zu bytes: must be a positive multiple of 8, at most %llu", len,
                       (unsigned long long)RAFT_WIRE_SNAPSHOT_BYTES_MAX);
        free(data);
    }
    shim->taking.status = rc;
    if (rc == STATUS_OK) {
        shim->taking.bufs[0].base = data;
        shim->taking.bufs[0].len = len;
    }
}

static void taking_work_done(uv_work_t *work, int status)
{
    struct raft_shim *shim = work->data;
    int rv = RAFT_CANCELED;
    shim->taking.writing = false;
    if (status != 0 || shim->taking.status != STATUS_OK) {
        log_error("raft.snapshot.write", "error=\"%s\"", shim->taking.err.text);
        rv = RAFT_IOERR;
    } else if (!shim->closing) {
        shim->taking.put.data = shim;
        rv = shim->original.snapshot_put(shim->io, shim->taking.trailing, &shim->taking.put, shim->taking.target, taking_put_done);
    }
    if (rv != 0) {
        taking_finish(shim, rv);
    }
    if (shim->closing && shim->stopped != NULL) {
        void (*stopped)(void *ud) = shim->stopped;
        shim->stopped = NULL;
        stopped(shim->stopped_ud);
    }
}

void raft_shim_snapshot(struct raft_shim *shim, void *snapshot, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    covey_assert(!shim->taking.active);
    *bufs = raft_calloc(1, sizeof **bufs);
    if (*bufs == NULL) {
        core_oom();
    }
    *n_bufs = 1;
    shim->taking.active = true;
    shim->taking.snapshot = snapshot;
    shim->taking.bufs = *bufs;
    raft_set_snapshot_threshold(shim->raft, UINT32_MAX);
}

void raft_shim_snapshot_failed(struct raft_shim *shim)
{
    shim->snapshot_retry_at = shim_now(shim) + RAFT_SHIM_SNAPSHOT_RETRY_MS;
    raft_set_snapshot_threshold(shim->raft, UINT32_MAX);
}

static void install_put_done(struct raft_io_snapshot_put *request, int status)
{
    struct raft_shim *shim = request->data;
    struct raft_io_snapshot_put *original = shim->installing.request;
    if (status != 0 && !shim->closing) { /* N6: the member would ignore entries and snapshots for ever */
        PANIC("raft snapshot: install failed: %s: %s", raft_strerror(status), shim->io->errmsg);
    }
    shim->installing.request = NULL;
    shim->installing.done(original, status);
}

/* A snapshot that is taken: a worker writes the data while the loop goes on, then raft_uv stores it. One that is installed goes straight on. */
static int shim_snapshot_put(struct raft_io *io, unsigned trailing, struct raft_io_snapshot_put *request, const struct raft_snapshot *snapshot,
                             raft_io_snapshot_put_cb done)
{
    struct raft_shim *shim = shim_of(io);
    int rv;
    if (shim->taking.active && shim->taking.request == NULL && snapshot->bufs == shim->taking.bufs) {
        shim->taking.request = request;
        shim->taking.done = done;
        shim->taking.target = snapshot;
        shim->taking.trailing = trailing > 0 ? trailing : 1; /* 0 means "install" to raft_uv */
        shim->taking.index = snapshot->index;
        shim->taking.work.data = shim;
        shim->taking.writing = true;
        rv = uv_queue_work(shim->loop, &shim->taking.work, taking_work, taking_work_done);
        covey_assert(rv == 0);
        return 0;
    }
    covey_assert(shim->installing.request == NULL && !shim->taking.active); /* N2 sees to it */
    shim->installing.request = request;
    shim->installing.done = done;
    shim->installing.put.data = shim;
    shim->last_snapshot_bytes = snapshot->bufs[0].len;
    shim->restore_index = snapshot->index;
    sizes_cut_back(&shim->sizes, 1);
    shim->sizes.first = snapshot->index + 1;
    rv = shim->original.snapshot_put(io, trailing, &shim->installing.put, snapshot, install_put_done);
    if (rv != 0) { /* N6 */
        PANIC("raft snapshot: install failed: %s: %s", raft_strerror(rv), io->errmsg);
    }
    return 0;
}

/* Bytes of the entries that were applied since the last snapshot; those never change any more. */
static void applied_count(struct raft_shim *shim)
{
    raft_index since = shim->raft->trail.snapshot.index;
    if (shim->applied.since != since) {
        shim->applied.since = shim->applied.index = since;
        shim->applied.bytes = 0;
    }
    while (shim->applied.index < shim->raft->last_applied) {
        uint64_t index = ++shim->applied.index;
        if (index >= shim->sizes.first && index < shim->sizes.first + shim->sizes.count) {
            shim->applied.bytes += sizes_at(&shim->sizes, index);
        }
    }
}

/* The threshold of libraft counts entries; what matters is memory. So it is opened for one snapshot when bytes or entries say so. */
static void snapshot_decide(struct raft_shim *shim)
{
    struct raft *raft = shim->raft;
    uint64_t limit = shim->snapshot_bytes > shim->last_snapshot_bytes / 2 ? shim->snapshot_bytes : shim->last_snapshot_bytes / 2;
    raft_index since = raft->trail.snapshot.index;
    uint64_t now = shim_now(shim), kept = 0;
    unsigned trailing = 0;
    applied_count(shim);
    if (shim->taking.active || raft->snapshot.installing || shim->closing || now < shim->snapshot_retry_at || raft->last_applied <= since) {
        return;
    }
    if (raft->last_applied - since < shim->snapshot_entries && shim->applied.bytes < limit) {
        return;
    }
    for (uint64_t i = raft->last_applied; i >= shim->sizes.first && i < shim->sizes.first + shim->sizes.count; i--) {
        kept += sizes_at(&shim->sizes, i);
        if (trailing >= RAFT_SHIM_TRAILING_MAX || kept > shim->snapshot_bytes / 2) {
            break;
        }
        trailing++;
    }
    raft_set_snapshot_trailing(raft, trailing > 0 ? trailing : 1);
    raft_set_snapshot_threshold(raft, 1);
}

/* ---- S4: receive ---- */

static void message_free(struct raft_message *message)
{
    if (message->type == RAFT_INSTALL_SNAPSHOT) {
        raft_configuration_close(&message->install_snapshot.conf);
        raft_free(message->install_snapshot.data.base);
    } else if (message->type == RAFT_APPEND_ENTRIES && message->append_entries.n_entries > 0) {
        raft_free(message->append_entries.entries[0].batch);
        raft_free(message->append_entries.entries);
    }
}

/* N3: libraft answers a message of an older term with uninitialised numbers, which can pass for a success. */
static void answer_older_term(struct raft_shim *shim, uint64_t peer, raft_index prev)
{
    struct raft_message answer = {.type = RAFT_APPEND_ENTRIES_RESULT, .server_id = peer};
    answer.append_entries_result.version = 1;
    answer.append_entries_result.term = raft_current_term(shim->raft);
    answer.append_entries_result.rejected = prev > 0 ? prev : 1;
    send_message(shim, &answer);
}

/* R4: libraft would write follower fields over its leader fields. It takes two leaders of one term, so it is worth a line. */
static bool is_from_second_leader(struct raft_shim *shim, uint64_t peer, raft_term term)
{
    if (shim->raft->state == RAFT_LEADER && term == raft_current_term(shim->raft)) {
        log_error("raft.second_leader", "peer=%llu term=%llu", (unsigned long long)peer, term);
        return true;
    }
    return false;
}

/* N13, found by tests/sim: a message that ends below what is committed here, sent by a leader that has committed more, sets the commit index back.
 * A snapshot taken then would carry that lower index with the newer state, and entries would be applied twice after a restart. */
static void keep_commit(struct raft_shim *shim, struct raft_append_entries *args)
{
    raft_index commit = shim->raft->commit_index;
    if (args->leader_commit > shim->heard_commit) {
        shim->heard_commit = args->leader_commit;
    }
    if (args->leader_commit > commit && args->prev_log_index + args->n_entries < commit) {
        args->leader_commit = commit;
    }
}

static void pass_on(struct raft_shim *shim, struct raft_message *message)
{
    char address[32];
    snprintf(address, sizeof address, "member-%llu", message->server_id);
    message->server_address = address; /* copied by libraft where it keeps it; must not be NULL */
    shim->recv(shim->io, message);
}

/* N2: an install that arrives while a snapshot is being taken ends in a NULL pointer; N8: one that arrives while another is installed leaks.
 * The last one is kept and delivered when that is over. */
static void pass_install(struct raft_shim *shim, struct raft_message *message)
{
    struct raft *raft = shim->raft;
    const struct raft_install_snapshot *args = &message->install_snapshot;
    if (args->term < raft_current_term(raft)) {
        answer_older_term(shim, message->server_id, args->last_index);
        message_free(message);
    } else if (is_from_second_leader(shim, message->server_id, args->term)) {
        message_free(message);
    } else if (raft->snapshot.installing && args->last_index <= raft->trail.snapshot.index) {
        message_free(message); /* the same again */
    } else if (raft->legacy.snapshot_taking || shim->taking.active || raft->snapshot.installing) {
        log_info("raft.install.deferred", "peer=%llu index=%llu", message->server_id, args->last_index);
        if (shim->deferred) {
            message_free(&shim->deferred_message);
        }
        shim->deferred_message = *message;
        shim->deferred = true;
    } else {
        pass_on(shim, message);
    }
}

/* N8: while a snapshot is on its way, heartbeats that overtake it are rejected at its index; each rejection would load and send it again. Such a
 * result only counts as a sign of life. */
static void calm_result(struct raft_shim *shim, uint64_t peer, struct raft_append_entries_result *result)
{
    if (shim->raft->state != RAFT_LEADER || result->term != raft_current_term(shim->raft)) {
        return;
    }
    raft_index match = 0;
    if (result->rejected == 0) {
        raft_install_confirmed(&shim->install, peer, result->last_log_index);
    } else if (raft_match_index(shim->raft, peer, &match) == 0 && result->rejected <= match) {
        /* N14, found by tests/sim: a late rejection of what the peer has confirmed since sets the next index to the match index, and libraft then
         * counts 2^32 - 1 entries in flight: the peer gets nothing any more. */
        result->rejected = 0;
        result->last_log_index = 0;
    } else if (result->rejected == shim->raft->trail.snapshot.index && (shim->loads > 0 || raft_install_busy(&shim->install, peer))) {
        result->rejected = 0;
        result->last_log_index = 0;
    }
}

static void receive_chunk(struct raft_shim *shim, uint64_t peer, struct raft_wire_chunk *chunk)
{
    struct raft_message message;
    if (chunk->term < raft_current_term(shim->raft)) {
        if (chunk->offset == 0) {
            answer_older_term(shim, peer, chunk->last_index); /* N3, once per transfer */
        }
    } else if (!is_from_second_leader(shim, peer, chunk->term) && raft_install_receive(&shim->install, peer, chunk, &message)) {
        pass_install(shim, &message);
    }
}

void raft_shim_receive(struct raft_shim *shim, uint64_t peer, struct raft_wire_in *in)
{
    if (shim->recv == NULL || shim->closing || peer == shim->raft->id) {
        raft_wire_in_clear(in);
        return;
    }
    if (in->kind == RAFT_WIRE_CHUNK) {
        receive_chunk(shim, peer, &in->chunk);
        raft_wire_in_clear(in);
        return;
    }
    if (in->kind != RAFT_WIRE_MESSAGE) {
        raft_wire_in_clear(in);
        return;
    }
    struct raft_message *message = &in->message;
    switch (message->type) {
    case RAFT_APPEND_ENTRIES:
        if (message->append_entries.term < raft_current_term(shim->raft)) {
            answer_older_term(shim, peer, message->append_entries.prev_log_index);
            raft_wire_in_clear(in);
            return;
        }
        if (is_from_second_leader(shim, peer, message->append_entries.term)) {
            raft_wire_in_clear(in);
            return;
        }
        keep_commit(shim, &message->append_entries);
        break;
    case RAFT_APPEND_ENTRIES_RESULT: calm_result(shim, peer, &message->append_entries_result); break;
    case RAFT_REQUEST_VOTE:
    case RAFT_REQUEST_VOTE_RESULT:
    case RAFT_INSTALL_SNAPSHOT:
    case RAFT_TIMEOUT_NOW:
    default: break;
    }
    pass_on(shim, message); /* its memory passes to libraft */
}

/* ---- S6: time ---- */

/* N9: libraft clears "heard from" at every leader tick, so a follower that needs longer than one tick to answer is taken for unreachable. Half an
 * election timeout of memory is given back; a leader without a majority still steps down after one election timeout. */
static void shim_tick(struct raft_io *io)
{
    struct raft_shim *shim = shim_of(io);
    struct raft *raft = shim->raft;
    bool led = raft->state == RAFT_LEADER;
    raft_time start = raft->election_timer_start;
    if (shim->closing) {
        return;
    }
    shim->tick(io);
    if (led && raft->state == RAFT_LEADER && raft->election_timer_start != start && raft->election_timer_start == raft->now) {
        raft->election_timer_start -= raft->election_timeout / 2;
    }
}

static void shim_recv_unused(struct raft_io *io, struct raft_message *message)
{
    message_free(message); /* the null transport delivers nothing */
}

static int shim_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick, raft_io_recv_cb recv)
{
    struct raft_shim *shim = shim_of(io);
    shim->tick = tick;
    shim->recv = recv;
    return shim->original.start(io, RAFT_SHIM_TICK_MS, shim_tick, shim_recv_unused);
}

static bool votes(const struct raft *raft)
{
    for (unsigned i = 0; i < raft->configuration.n; i++) {
        if (raft->configuration.servers[i].id == raft->id) {
            return raft->configuration.servers[i].role == RAFT_VOTER;
        }
    }
    return false;
}

static unsigned *random_timeout(struct raft *raft)
{
    return raft->state == RAFT_FOLLOWER    ? &raft->follower_state.randomized_election_timeout
           : raft->state == RAFT_CANDIDATE ? &raft->candidate_state.randomized_election_timeout
                                           : NULL;
}

void raft_shim_tick(struct raft_shim *shim, unsigned heartbeat_ms)
{
    if (shim->recv != NULL) {
        raft_set_heartbeat_timeout(shim->raft, heartbeat_ms - heartbeat_ms / 10); /* the timer's grain must not cost a whole interval */
        shim_tick(shim->io);
    }
}

uint64_t raft_shim_due(const struct raft_shim *shim)
{
    struct raft *raft = shim->raft;
    const unsigned *timeout = random_timeout(raft);
    uint64_t now = shim_now((void *)shim), rest = now + RAFT_SHIM_REST_MS;
    if (timeout == NULL || !votes(raft)) {
        return rest;
    }
    uint64_t due = raft->election_timer_start + *timeout;
    return due < rest ? due : rest;
}

void raft_shim_lost(struct raft_shim *shim, uint64_t peer)
{
    struct raft *raft = shim->raft;
    const unsigned *timeout = random_timeout(raft);
    unsigned delay = RAFT_LOST_DELAY_MS;
    if (shim->closing || raft->state != RAFT_FOLLOWER || raft->follower_state.current_leader.id != peer || !votes(raft)) {
        return;
    }
    for (unsigned i = 0; i < raft->configuration.n; i++) {
        const struct raft_server *server = &raft->configuration.servers[i];
        delay += server->role == RAFT_VOTER && server->id != peer && server->id < raft->id ? RAFT_LOST_STAGGER_MS : 0;
    }
    raft->follower_state.current_leader.id = 0; /* else it would refuse its vote to the others; the address is libraft's to free */
    uint64_t now = shim_now(shim), due = raft->election_timer_start + *timeout;
    if (now + delay < due && now + delay > *timeout) {
        raft->election_timer_start = now + delay - *timeout;
    }
    log_info("raft.leader.lost", "leader=%llu delay_ms=%u", (unsigned long long)peer, delay);
}

/* Libraft spreads elections over once to twice the timeout; half of that is spread enough for a few voters, and the time without a leader shorter. */
static void timeout_narrow(struct raft_shim *shim)
{
    unsigned *timeout = random_timeout(shim->raft), least = shim->raft->election_timeout;
    if (timeout != NULL && *timeout != shim->timeout_seen) {
        *timeout = *timeout > least ? least + (*timeout - least) / 2 : *timeout;
        shim->timeout_seen = *timeout;
    }
}

/* ---- life ---- */

static void install_hook_send(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame)
{
    struct raft_shim *shim = ud;
    shim->hooks.send(shim->hooks.ud, peer, frame);
}

static uint64_t install_hook_queued(void *ud, uint64_t peer)
{
    struct raft_shim *shim = ud;
    return shim->hooks.queued(shim->hooks.ud, peer);
}

void raft_shim_attach(struct raft_shim *shim, struct raft *raft, struct raft_io *io, uv_loop_t *loop, const struct raft_shim_hooks *hooks,
                      uint64_t snapshot_bytes, unsigned snapshot_entries)
{
    memset(shim, 0, sizeof *shim);
    shim->raft = raft;
    shim->io = io;
    shim->loop = loop;
    shim->hooks = *hooks;
    shim->original = *io;
    shim->snapshot_bytes = snapshot_bytes;
    shim->snapshot_entries = snapshot_entries;
    shim->sizes.first = 1;
    raft->data = shim;
    shim->core_tracer.version = shim->uv_tracer.version = 2;
    shim->core_tracer.emit = core_trace;
    shim->uv_tracer.emit = uv_trace;
    raft_install_init(&shim->install, &(struct raft_install_hooks){shim, install_hook_send,
                                                                   hooks->queued != NULL ? install_hook_queued : NULL, shim_now});
    io->load = shim_load;
    io->start = shim_start;
    io->set_term = shim_set_term;
    io->set_vote = shim_set_vote;
    io->send = shim_send;
    io->append = shim_append;
    io->truncate = shim_truncate;
    io->snapshot_put = shim_snapshot_put;
    io->snapshot_get = shim_snapshot_get;
}

void raft_shim_configure(struct raft_shim *shim)
{
    struct raft *raft = shim->raft;
    raft->data = shim;
    raft->tracer = &shim->core_tracer;
    raft_set_pre_vote(raft, true);
    raft_set_heartbeat_timeout(raft, RAFT_HEARTBEAT_MS);
    raft_set_election_timeout(raft, RAFT_ELECTION_TIMEOUT_MS);
    raft_set_max_inflight_entries(raft, RAFT_INFLIGHT_ENTRIES_MAX);
    raft_set_max_catch_up_round_duration(raft, RAFT_CHANGE_TIMEOUT_MS); /* a round may need a snapshot */
    raft_set_snapshot_threshold(raft, UINT32_MAX);
    raft_set_snapshot_trailing(raft, RAFT_SHIM_TRAILING_MAX);
}

void raft_shim_poll(struct raft_shim *shim)
{
    struct raft *raft = shim->raft;
    if (shim->closing || shim->recv == NULL) {
        return;
    }
    if (raft->state != RAFT_LEADER) { /* transfers of a term that is over */
        for (int i = 0; i < RAFT_INSTALL_PEERS_MAX; i++) {
            if (shim->install.out[i].sending) {
                raft_install_abort(&shim->install);
                break;
            }
        }
    }
    if (shim->deferred && !raft->legacy.snapshot_taking && !shim->taking.active && !raft->snapshot.installing) {
        struct raft_message message = shim->deferred_message;
        shim->deferred = false;
        pass_install(shim, &message);
    }
    timeout_narrow(shim);
    snapshot_decide(shim);
}

bool raft_shim_transfer(struct raft_shim *shim)
{
    return !shim->closing && raft_install_run(&shim->install);
}

void raft_shim_stop(struct raft_shim *shim, void (*fn)(void *ud), void *ud)
{
    shim->closing = true;
    raft_install_close(&shim->install);
    if (shim->deferred) {
        shim->deferred = false;
        message_free(&shim->deferred_message);
    }
    if (shim->taking.writing) { /* raft_uv must not be closed under a worker that will call it */
        shim->stopped = fn;
        shim->stopped_ud = ud;
    } else {
        fn(ud);
    }
}

void raft_shim_free(struct raft_shim *shim)
{
    free(shim->sizes.bytes);
    shim->sizes.bytes = NULL;
}

/* ---- S2: submit ---- */

/* R5: raft_uv refuses other lengths after libraft has booked the entry; the next one crashes. n = 1: more buffers are lost silently. */
int raft_shim_apply(struct raft *raft, struct raft_apply *request, const void *data, size_t len, raft_apply_cb done)
{
    struct raft_buffer buf = {NULL, len};
    if (len == 0 || len % 8 != 0 || len > RAFT_ENTRY_BYTES_MAX) {
        return RAFT_INVALID;
    }
    buf.base = raft_malloc(len);
    if (buf.base == NULL) {
        core_oom();
    }
    memcpy(buf.base, data, len);
    int rv = raft_apply(raft, request, &buf, 1, done);
    if (rv != 0) {
        raft_free(buf.base);
    }
    return rv;
}

/* N10: a change that fails at once stays booked and would be completed, and freed, later. */
static int change_result(struct raft *raft, struct raft_change *request, int rv)
{
    if (rv != 0 && raft->legacy.change == request) {
        raft->legacy.change = NULL;
    }
    return rv;
}

int raft_shim_add(struct raft *raft, struct raft_change *request, raft_id id, const char *address, raft_change_cb done)
{
    return raft->legacy.change != NULL ? RAFT_CANTCHANGE : change_result(raft, request, raft_add(raft, request, id, address, done));
}

int raft_shim_assign(struct raft *raft, struct raft_change *request, raft_id id, int role, raft_change_cb done)
{
    return raft->legacy.change != NULL ? RAFT_CANTCHANGE : change_result(raft, request, raft_assign(raft, request, id, role, done));
}

int raft_shim_remove(struct raft *raft, struct raft_change *request, raft_id id, raft_change_cb done)
{
    return raft->legacy.change != NULL ? RAFT_CANTCHANGE : change_result(raft, request, raft_remove(raft, request, id, done));
}
