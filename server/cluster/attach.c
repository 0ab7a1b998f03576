/* Attach, the leader's side: what every member reports on its stream (liveness each second or two, statuses of containers, the view it acts by), and the
 * view and events on their way down. The member's side is attach_member.c.
 *
 * Reports arrive on completion-queue threads and only touch the table under `lock`; one sender thread writes to all streams without blocking (a stream
 * whose queue is full is cut; it comes back and goes on from its last event). Silence is measured by the monotonic clock; after a change of leader every
 * member has one full threshold of grace. */
#include "attach.h"

#include "server/config/keys.h"
#include "server/daemon/route.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "upgrade.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

enum { INSTANCE_KEY_BYTES = 512 }; /* project, slash, name */

struct instance_entry {
    char *key; /* project/name */
    int64_t status, pid;
    UT_hash_handle hh;
};

struct peer { /* `lock` */
    uint64_t id;
    struct rpc_call *call; /* its stream, NULL when there is none */
    int64_t last_seen_ms, last_seen_unix_ns;
    uint64_t view_revision, sequence;
    uint64_t events_sent;
    uint64_t view_sent;
    bool stopping;
    struct skew skew;
    bool question_due;              /* its clock is to be asked for */
    enum skew_verdict skew_written; /* in the database */
    bool claimed;                   /* … what it announces: */
    struct level_claim claim;
    char address[ADDRESS_MAX];      /* where it was moved to, "" = nothing told */
    bool told; /* it has reported all its instances to this leadership: what is not among them is stopped, before that unknown */
    struct instance_entry *instances;
    UT_hash_handle hh;
};

static struct {
    struct daemon *daemon;
    pthread_mutex_t lock;
    pthread_cond_t changed;  /* something to send, or the end */
    pthread_cond_t reported; /* a member acts by another view, or is gone */
    bool leading, stop;
    uint64_t generation; /* something to send */
    struct peer *peers;
    pthread_t sender;
    bool started;
    struct attach_halted halted[ATTACH_HALTED_MAX]; /* not taken yet; more are forgotten */
    size_t halted_count;
} attach = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct peer *peer_find(uint64_t id)
{
    struct peer *peer = NULL;
    HASH_FIND(hh, attach.peers, &id, sizeof id, peer);
    return peer;
}

static struct peer *peer_get(uint64_t id)
{
    struct peer *peer = peer_find(id);
    if (peer == NULL) {
        peer = xcalloc(1, sizeof *peer);
        peer->id = id;
        peer->last_seen_ms = time_mono_ms();
        peer->last_seen_unix_ns = time_unix_ns();
        HASH_ADD(hh, attach.peers, id, sizeof peer->id, peer);
    }
    return peer;
}

static void instances_clear(struct peer *peer)
{
    struct instance_entry *entry, *next;
    HASH_ITER(hh, peer->instances, entry, next) {
        HASH_DEL(peer->instances, entry);
        free(entry->key);
        free(entry);
    }
}

enum { CODE_STOPPED = 102, CODE_RUNNING = 103, CODE_FROZEN = 110, CODE_ERROR = 112 };

/* Under attach.lock. An instance that ran has stopped, as its running member says: somebody may want to know why. */
static void note_halt(const struct peer *peer, const struct instance_entry *before, const Covey__Internal__V1__InstanceStatus *now)
{
    bool ran = before != NULL && (before->status == CODE_RUNNING || before->status == CODE_FROZEN);
    bool halts = now->status_code == 0 || now->status_code == CODE_STOPPED;
    bool stopping = peer->stopping || (peer->id == daemon_id(attach.daemon) && daemon_phase() == DAEMON_STOPPING);
    if (!ran || !halts || stopping || attach.halted_count == ATTACH_HALTED_MAX) {
        return;
    }
    struct attach_halted *halted = &attach.halted[attach.halted_count++];
    snprintf(halted->project, sizeof halted->project, "%s", now->project);
    snprintf(halted->name, sizeof halted->name, "%s", now->name);
}

size_t attach_take_halted(struct attach_halted *out)
{
    pthread_mutex_lock(&attach.lock);
    size_t count = attach.halted_count;
    if (count > 0) {
        memcpy(out, attach.halted, count * sizeof *out);
    }
    attach.halted_count = 0;
    pthread_mutex_unlock(&attach.lock);
    return count;
}

static void instance_put(struct peer *peer, const Covey__Internal__V1__InstanceStatus *status)
{
    char key[INSTANCE_KEY_BYTES];
    snprintf(key, sizeof key, "%s/%s", status->project, status->name);
    struct instance_entry *entry = NULL;
    HASH_FIND_STR(peer->instances, key, entry);
    note_halt(peer, entry, status);
    if (status->status_code == 0) { /* gone from the host */
        if (entry != NULL) {
            HASH_DEL(peer->instances, entry);
            free(entry->key);
            free(entry);
        }
        return;
    }
    if (entry == NULL) {
        entry = xcalloc(1, sizeof *entry);
        entry->key = xstrdup(key);
        HASH_ADD_KEYPTR(hh, peer->instances, entry->key, strlen(entry->key), entry);
    }
    entry->status = status->status_code;
    entry->pid = status->pid;
}

static void peer_free(struct peer *peer)
{
    HASH_DEL(attach.peers, peer);
    if (peer->call != NULL) {
        struct error gone = ERROR_INIT;
        error_not_leader(&gone, 0);
        rpc_finish(peer->call, NULL, gone.code, &gone);
        rpc_call_unref(peer->call);
    }
    instances_clear(peer);
    free(peer);
}

/* Under attach.lock. The first report of a stream says whose it is; the caller's certificate must be that member's. */
static int stream_begins(struct rpc_call *call, const Covey__Internal__V1__MemberReport *report, struct peer **out, struct error *err)
{
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, report->id);
    bool ok = member != NULL && strcmp(member->fingerprint, rpc_caller(call)->fingerprint) == 0;
    view_unref(view);
    if (!ok) {
        return error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
    }
    struct peer *peer = peer_get(report->id);
    struct rpc_call *old = peer->call;
    peer->call = rpc_call_ref(call);
    peer->events_sent = report->event_number;
    peer->view_sent = 0;
    peer->stopping = false;
    peer->question_due = false;
    peer->skew.number = 0; /* an answer to it went with the old stream */
    if (old != NULL) {
        rpc_finish(old, NULL, STATUS_CANCELLED, NULL);
        rpc_call_unref(old);
    }
    if (report->event_number == 0 || report->event_number > events_last()) {
        peer->events_sent = events_last(); /* a fresh member: from now on */
    }
    attach.generation++;
    pthread_cond_broadcast(&attach.changed);
    log_info("attach.member", "member=%" PRIu64, report->id);
    *out = peer;
    return STATUS_OK;
}

static int digest_check(const Covey__Internal__V1__MemberReport *report, struct error *err)
{
    uint64_t own_revision = 0;
    char own_digest[65] = "";
    state_digest(&own_revision, own_digest);
    if (own_revision == 0 || report->digest_revision != own_revision || strcmp(report->digest, own_digest) == 0) {
        return STATUS_OK;
    }
    log_error("digest.differs", "member=%" PRIu64 " revision=%" PRIu64, report->id, own_revision);
    return error_set(err, STATUS_DATA_LOSS, "the replica of member %" PRIu64 " differs from the leader's at revision %" PRIu64, report->id, own_revision);
}

static int epoch_check(const Covey__Internal__V1__MemberReport *report, struct error *err)
{
    uint64_t epoch = state_epoch();
    if (report->epoch == 0 || epoch == 0 || report->epoch == epoch) {
        return STATUS_OK;
    }
    error_set(err, STATUS_FAILED_PRECONDITION, "member %" PRIu64 " is in epoch %" PRIu64 " and the leader in %" PRIu64, report->id, report->epoch, epoch);
    log_warn("attach.epoch", "error=\"%s\"", err->text);
    return err->code;
}

/* Where the member says that it is now, in canonical form in `out`; "" = where the view has it. */
static int moved_check(const Covey__Internal__V1__MemberReport *report, char out[ADDRESS_MAX], struct error *err)
{
    out[0] = '\0';
    if (str_empty(report->address)) {
        return STATUS_OK;
    }
    int status = address_canonical(report->address, out, ADDRESS_MAX, err);
    if (status == STATUS_OK && address_wildcard(out)) {
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Wildcard addresses aren't allowed");
    }
    if (status == STATUS_OK) {
        const struct view *view = view_get();
        status = address_check(view, report->id, out, err);
        view_unref(view);
    }
    if (status != STATUS_OK) {
        log_warn("attach.address", "member=%" PRIu64 " error=\"%s\"", report->id, err->text);
    }
    return status;
}

/* Under attach.lock. What the report says of the member's clock. */
static void clock_take(struct peer *peer, const Covey__Internal__V1__MemberReport *report)
{
    if (report->clock_answer != 0) {
        skew_answer(&peer->skew, report->clock_answer, report->clock_ns, peer->last_seen_unix_ns, peer->last_seen_ms);
    } else if (report->clock_ns != 0 && !peer->question_due && skew_report(&peer->skew, report->clock_ns, peer->last_seen_unix_ns, peer->last_seen_ms)) {
        peer->question_due = true;
        attach.generation++;
    }
}

/* Under attach.lock; *announced says that levels or address are new. */
static void report_take(struct peer *peer, const Covey__Internal__V1__MemberReport *report, const char moved[ADDRESS_MAX], bool *announced)
{
    peer->last_seen_ms = time_mono_ms();
    peer->last_seen_unix_ns = time_unix_ns();
    clock_take(peer, report);
    peer->sequence = report->sequence;
    if (report->view_revision > peer->view_revision || report->sequence <= 1) {
        peer->view_revision = report->view_revision;
        pthread_cond_broadcast(&attach.reported);
    }
    peer->stopping = peer->stopping || report->stopping;
    struct level_claim claim = {{report->schema, report->api_extensions}, {report->schema_floor, report->api_floor}};
    *announced = !peer->claimed || !level_claim_equal(claim, peer->claim) || (moved[0] != '\0' && strcmp(moved, peer->address) != 0);
    peer->claimed = true;
    peer->claim = claim;
    memcpy(peer->address, moved, sizeof peer->address);
    if (report->instances_complete) {
        instances_clear(peer);
        peer->told = true;
    }
    for (size_t i = 0; i < report->n_instances; i++) {
        instance_put(peer, report->instances[i]);
    }
}

static bool on_report(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    const Covey__Internal__V1__MemberReport *report = (const Covey__Internal__V1__MemberReport *)message;
    struct error err = ERROR_INIT;
    bool announced = false;
    char moved[ADDRESS_MAX];
    if (message == NULL) {
        return true;
    }
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = attach.leading ? peer_find(report->id) : NULL;
    int status = epoch_check(report, &err);
    if (status == STATUS_OK && !attach.leading) {
        status = error_not_leader(&err, daemon_leader_id(attach.daemon));
    }
    status = status == STATUS_OK ? moved_check(report, moved, &err) : status;
    if (status == STATUS_OK && (peer == NULL || peer->call != call)) {
        status = stream_begins(call, report, &peer, &err);
    }
    if (status == STATUS_OK) {
        status = digest_check(report, &err);
    }
    if (status == STATUS_OK) {
        report_take(peer, report, moved, &announced);
    }
    pthread_mutex_unlock(&attach.lock);
    if (status != STATUS_OK) {
        rpc_finish(call, NULL, err.code, &err);
        return false;
    }
    if (announced) {
        controller_wake(false); /* writes it down */
    }
    return true;
}

static void on_stream_done(struct rpc_call *call, void *ud)
{
    pthread_mutex_lock(&attach.lock);
    struct peer *peer, *next;
    HASH_ITER(hh, attach.peers, peer, next) {
        if (peer->call == call) {
            peer->call = NULL;
            rpc_call_unref(call);
            log_info("attach.lost", "member=%" PRIu64, peer->id);
        }
    }
    pthread_cond_broadcast(&attach.reported);
    pthread_mutex_unlock(&attach.lock);
    rpc_call_unref(call); /* the handler's; the hook runs once for every stream */
}

static int serve_attach(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    if (!daemon_leads(attach.daemon)) {
        return error_not_leader(err, daemon_leader_id(attach.daemon));
    }
    rpc_call_ref(call); /* the hook may run at once */
    rpc_call_on_done(call, on_stream_done, NULL);
    rpc_on_message(call, on_report, NULL);
    rpc_call_unref(call);
    return RPC_LATER;
}

/* Sends view and events to one stream; false when its queue is full (the stream is cut). */
static bool feed(struct peer *peer, const struct view *view, uint64_t last_event)
{
    struct arena arena;
    arena_init(&arena);
    Covey__Internal__V1__LeaderReport report = COVEY__INTERNAL__V1__LEADER_REPORT__INIT;
    bool due = false, ok = true;
    uint64_t revision = view->message->revision;
    if (revision > peer->view_sent) {
        report.view = view->message;
        due = true;
    }
    if (last_event > peer->events_sent) {
        if (events_after(peer->events_sent, &arena, &report.events, &report.n_events)) {
            due = due || report.n_events > 0;
        } else {
            ok = false; /* it missed events that are not kept: cut, so that its watchers end instead of skipping */
        }
    }
    if (ok && peer->question_due) {
        peer->question_due = false;
        report.clock_question = skew_ask(&peer->skew, time_unix_ns(), time_mono_ms());
        due = true;
    }
    if (ok && due) {
        report.sequence = peer->sequence;
        report.term = view->message->term;
        ok = rpc_try_send(peer->call, &report.base, NULL) == STATUS_OK;
        if (ok) {
            peer->view_sent = revision > peer->view_sent ? revision : peer->view_sent;
            peer->events_sent = report.n_events > 0 ? report.events[report.n_events - 1]->number : peer->events_sent;
        }
    }
    arena_clear(&arena);
    return ok;
}

static void *sender_main(void *ud)
{
    uint64_t seen = 0;
    pthread_mutex_lock(&attach.lock);
    while (!attach.stop) {
        if (attach.generation == seen) {
            pthread_cond_wait(&attach.changed, &attach.lock);
            continue;
        }
        seen = attach.generation;
        if (!attach.leading) {
            continue;
        }
        pthread_mutex_unlock(&attach.lock);
        const struct view *view = view_get();
        uint64_t last = events_last();
        pthread_mutex_lock(&attach.lock);
        struct peer *peer, *next;
        HASH_ITER(hh, attach.peers, peer, next) {
            if (peer->call != NULL && view->message->leader_id == daemon_id(attach.daemon) && !feed(peer, view, last)) {
                log_warn("attach.cut", "member=%" PRIu64 " reason=\"cannot keep up\"", peer->id);
                struct rpc_call *call = peer->call;
                peer->call = NULL;
                rpc_finish(call, NULL, STATUS_RESOURCE_EXHAUSTED, NULL);
                rpc_call_unref(call);
            }
        }
        pthread_mutex_unlock(&attach.lock);
        view_unref(view);
        pthread_mutex_lock(&attach.lock);
    }
    pthread_mutex_unlock(&attach.lock);
    return NULL;
}

static void something_to_send(void *ud)
{
    pthread_mutex_lock(&attach.lock);
    attach.generation++;
    pthread_cond_broadcast(&attach.changed);
    pthread_mutex_unlock(&attach.lock);
}

void attach_view_changed(void)
{
    something_to_send(NULL);
}

void attach_expect(uint64_t member)
{
    pthread_mutex_lock(&attach.lock);
    if (attach.leading) {
        peer_get(member);
    }
    pthread_mutex_unlock(&attach.lock);
}

/* Whoever was there has one threshold of grace to find the new leader; whoever was missed stays so until it is heard. */
static void take_over(const Covey__Internal__V1__ViewMember *member)
{
    struct peer *peer = peer_get(member->id);
    if (!member->online) {
        int64_t threshold_ms = config_int("cluster.offline_threshold") * 1000, shown_ms = (peer->last_seen_unix_ns - member->heartbeat_ns) / 1000000;
        peer->last_seen_ms -= shown_ms > threshold_ms ? shown_ms : threshold_ms; /* the wall clock for the display, never for the decision */
        peer->last_seen_unix_ns = member->heartbeat_ns;
    }
}

void attach_lead(struct daemon *daemon, bool leader)
{
    const struct view *view = view_get();
    struct arena arena;
    arena_init(&arena);
    Covey__Internal__V1__InstanceStatus **own = NULL;
    size_t own_count = 0;
    host_instances(daemon->host, &arena, &own, &own_count);
    pthread_mutex_lock(&attach.lock);
    struct peer *peer, *next;
    HASH_ITER(hh, attach.peers, peer, next) {
        peer_free(peer);
    }
    attach.leading = leader;
    if (leader) {
        for (size_t i = 0; i < view->message->n_members; i++) {
            take_over(view->message->members[i]);
        }
        struct peer *self = peer_get(daemon_id(daemon));
        self->told = true;
        self->skew.verdict = SKEW_NONE; /* against itself; it may have differed from a former leader */
        for (size_t i = 0; i < own_count; i++) {
            instance_put(self, own[i]);
        }
    }
    attach.generation++;
    pthread_cond_broadcast(&attach.changed);
    pthread_cond_broadcast(&attach.reported);
    pthread_mutex_unlock(&attach.lock);
    arena_clear(&arena);
    view_unref(view);
}

size_t attach_clocks(struct attach_clock *out, size_t max)
{
    size_t count = 0;
    pthread_mutex_lock(&attach.lock);
    struct peer *peer, *next;
    HASH_ITER(hh, attach.peers, peer, next) {
        if (count < max && peer->skew.verdict != peer->skew_written) {
            out[count++] = (struct attach_clock){peer->id, peer->skew.verdict, peer->skew.lead_ns};
        }
    }
    pthread_mutex_unlock(&attach.lock);
    return count;
}

void attach_clock_written(uint64_t member, enum skew_verdict verdict)
{
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    if (peer != NULL) {
        peer->skew_written = verdict;
    }
    pthread_mutex_unlock(&attach.lock);
}

void attach_forget(uint64_t member)
{
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    if (peer != NULL) {
        peer_free(peer);
        pthread_cond_broadcast(&attach.reported);
    }
    pthread_mutex_unlock(&attach.lock);
}

int64_t attach_silence_ms(uint64_t member, int64_t *last_seen_unix_ns)
{
    int64_t silence = -1;
    if (member == daemon_id(attach.daemon)) {
        *last_seen_unix_ns = time_unix_ns();
        return 0;
    }
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    if (peer != NULL) {
        silence = time_mono_ms() - peer->last_seen_ms;
        *last_seen_unix_ns = peer->last_seen_unix_ns;
    }
    pthread_mutex_unlock(&attach.lock);
    return silence;
}

bool attach_claim(uint64_t member, struct level_claim *out)
{
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    bool known = peer != NULL && peer->claimed;
    if (known) {
        *out = peer->claim;
    }
    pthread_mutex_unlock(&attach.lock);
    return known;
}

void attach_address(uint64_t member, char out[ADDRESS_MAX])
{
    out[0] = '\0';
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    if (peer != NULL) {
        memcpy(out, peer->address, sizeof peer->address);
    }
    pthread_mutex_unlock(&attach.lock);
}

bool attach_told(uint64_t member)
{
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    bool told = peer != NULL && peer->told;
    pthread_mutex_unlock(&attach.lock);
    return told;
}

bool attach_heard(uint64_t member)
{
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    bool heard = peer != NULL && peer->sequence > 0;
    pthread_mutex_unlock(&attach.lock);
    return heard;
}

bool attach_member_stopping(uint64_t member)
{
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    bool stopping = peer != NULL && peer->stopping;
    pthread_mutex_unlock(&attach.lock);
    return stopping;
}

bool attach_note_stopping(uint64_t member)
{
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = attach.leading ? peer_find(member) : NULL;
    bool known = peer != NULL;
    if (known) {
        peer->stopping = true;
    }
    pthread_mutex_unlock(&attach.lock);
    return known;
}

bool attach_member_ready(uint64_t member)
{
    if (member == daemon_id(attach.daemon)) {
        return true;
    }
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    bool ready = peer != NULL && peer->call != NULL && !peer->stopping && time_mono_ms() - peer->last_seen_ms < REPORT_FRESH_MS;
    pthread_mutex_unlock(&attach.lock);
    return ready;
}

bool member_online(struct daemon *daemon, uint64_t id)
{
    if (id == daemon_id(daemon)) {
        return true;
    }
    pthread_mutex_lock(&attach.lock);
    bool listening = attach.leading; /* a moment later than Raft says so: until then nobody has been heard */
    pthread_mutex_unlock(&attach.lock);
    if (!listening || !daemon_leads(daemon)) {
        const struct view *view = view_get();
        const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, id);
        bool online = member != NULL && member->online;
        view_unref(view);
        return online;
    }
    int64_t seen;
    int64_t silence = attach_silence_ms(id, &seen);
    return silence >= 0 && silence < config_int("cluster.offline_threshold") * 1000;
}

int64_t instance_status(struct daemon *daemon, uint64_t member, const char *project, const char *name, int64_t *pid)
{
    if (pid != NULL) {
        *pid = 0;
    }
    if (!member_online(daemon, member)) {
        return CODE_ERROR;
    }
    char key[INSTANCE_KEY_BYTES];
    snprintf(key, sizeof key, "%s/%s", project, name);
    int64_t status = CODE_STOPPED;
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    struct instance_entry *entry = NULL;
    if (peer != NULL) {
        HASH_FIND_STR(peer->instances, key, entry);
    }
    if (entry == NULL && peer != NULL && !peer->told) {
        status = CODE_ERROR;
    }
    if (entry != NULL) {
        status = entry->status;
        if (pid != NULL) {
            *pid = entry->pid;
        }
    }
    pthread_mutex_unlock(&attach.lock);
    return status;
}

void instance_status_note(struct daemon *daemon, uint64_t member, const char *project, const char *name, int64_t status_code)
{
    Covey__Internal__V1__InstanceStatus status = COVEY__INTERNAL__V1__INSTANCE_STATUS__INIT;
    status.project = (char *)project;
    status.name = (char *)name;
    status.status_code = status_code;
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = attach.leading ? peer_find(member) : NULL;
    if (peer != NULL) {
        instance_put(peer, &status);
    }
    pthread_mutex_unlock(&attach.lock);
}

void attach_wait_view(uint64_t revision, int64_t ms)
{
    int64_t end = time_mono_ms() + ms;
    pthread_mutex_lock(&attach.lock);
    for (;;) {
        bool behind = false;
        struct peer *peer, *next;
        HASH_ITER(hh, attach.peers, peer, next) {
            behind = behind || (peer->call != NULL && peer->view_revision < revision);
        }
        int64_t left = end - time_mono_ms();
        if (!behind || left <= 0 || !attach.leading) {
            break;
        }
        struct timespec ts;
        time_deadline(&ts, left);
        pthread_cond_timedwait(&attach.reported, &attach.lock, &ts);
    }
    pthread_mutex_unlock(&attach.lock);
}

void attach__own_instance(const Covey__Internal__V1__InstanceStatus *status)
{
    pthread_mutex_lock(&attach.lock);
    if (attach.leading) {
        instance_put(peer_get(daemon_id(attach.daemon)), status);
    }
    pthread_mutex_unlock(&attach.lock);
}

void attach__cond_init(pthread_cond_t *one)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(one, &attr);
    pthread_condattr_destroy(&attr);
}

void attach_init(struct daemon *daemon)
{
    attach.daemon = daemon;
    attach__cond_init(&attach.changed);
    attach__cond_init(&attach.reported);
    events_on_publish(something_to_send, NULL);
    attach_member__init(daemon);
}

rpc_handler attach_handler(void)
{
    return serve_attach;
}

void attach_start(struct daemon *daemon)
{
    covey_assert(pthread_create(&attach.sender, NULL, sender_main, daemon) == 0);
    attach.started = true;
    attach_member__start();
}

void attach_stop(void)
{
    if (!attach.started) {
        return;
    }
    pthread_mutex_lock(&attach.lock);
    attach.stop = true;
    attach.generation++;
    pthread_cond_broadcast(&attach.changed);
    pthread_cond_broadcast(&attach.reported);
    pthread_mutex_unlock(&attach.lock);
    attach_member__stop();
    pthread_join(attach.sender, NULL);
    pthread_mutex_lock(&attach.lock);
    struct peer *peer, *next;
    HASH_ITER(hh, attach.peers, peer, next) {
        peer_free(peer);
    }
    pthread_mutex_unlock(&attach.lock);
}
