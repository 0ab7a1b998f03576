/* Attach: one stream from every member to the leader. Upwards: liveness (a report each second), statuses of containers, what view the member acts by.
 * Downwards: the view when it changed, and events.
 *
 * Leader's side: reports arrive on completion-queue threads and only touch the table under `lock`; one sender thread writes to all streams without
 * blocking (a stream whose queue is full is cut; it comes back and goes on from its last event). Member's side: one thread. Silence is measured by the
 * monotonic clock; after a change of leader every member has one full threshold of grace. */
#include "cluster.h"

#include "upgrade.h"
#include "server/config/keys.h"
#include "server/daemon/route.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/networks/networks_member.h"
#include "server/recovery/recovery.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uthash.h>

enum {
    REST_MS = 60 * 1000,     /* nothing to do for this side until the state changes */
    REFUSED_PAUSE_MS = 5000, /* between attempts of a member that the cluster refuses */
};

struct instance_entry {
    char *key; /* project/name */
    int64_t status, pid;
    UT_hash_handle hh;
};

struct peer { /* leader's knowledge of a member; `lock` */
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
    bool claimed;              /* … what it announces: */
    struct level_claim claim;
    bool told; /* it has reported all its instances to this leadership: what is not among them is stopped, before that unknown */
    struct instance_entry *instances;
    UT_hash_handle hh;
};

static struct {
    struct daemon *daemon;
    pthread_mutex_t lock;
    pthread_cond_t changed;  /* something to send or to report, the upstream, the end */
    pthread_cond_t reported; /* a member acts by another view, or is gone */
    bool leading, stop;
    uint64_t generation; /* something to send */
    struct peer *peers;
    /* member's side */
    pthread_t sender, reporter;
    bool started;
    struct rpc_call *upstream; /* the open stream to the leader */
    bool upstream_lost;
    uint64_t acting_revision, acting_term;
    struct arena pending_arena;
    Covey__Internal__V1__InstanceStatus *pending[1024]; /* changes not reported yet; overflow = send all */
    size_t pending_count;
    bool pending_all;
    uint64_t question; /* of the leader, about this clock; not answered yet, 0 = none */
    bool wake;
    struct attach_halted halted[ATTACH_HALTED_MAX]; /* not taken yet; more are forgotten */
    size_t halted_count;
} attach = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void until(struct timespec *ts, int64_t ms)
{
    clock_gettime(CLOCK_MONOTONIC, ts);
    ts->tv_sec += ms / 1000;
    ts->tv_nsec += ms % 1000 * 1000000;
    if (ts->tv_nsec >= 1000000000) {
        ts->tv_sec++;
        ts->tv_nsec -= 1000000000;
    }
}

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

enum { CODE_STOPPED = 102, CODE_RUNNING = 103, CODE_FROZEN = 110 };

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
    char key[512];
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

/* ---- leader's side ---- */

static bool on_report(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    const Covey__Internal__V1__MemberReport *report = (const Covey__Internal__V1__MemberReport *)message;
    struct caller const *caller = rpc_caller(call);
    if (message == NULL) {
        return true;
    }
    uint64_t epoch = state_epoch();
    if (report->epoch != 0 && epoch != 0 && report->epoch != epoch) {
        struct error err = ERROR_INIT;
        error_set(&err, STATUS_FAILED_PRECONDITION, "member %" PRIu64 " is in epoch %" PRIu64 " and the leader in %" PRIu64, report->id, report->epoch, epoch);
        log_warn("attach.epoch", "error=\"%s\"", err.text);
        rpc_finish(call, NULL, err.code, &err);
        return false;
    }
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(report->id);
    if (!attach.leading) {
        pthread_mutex_unlock(&attach.lock);
        struct error err = ERROR_INIT;
        error_not_leader(&err, daemon_leader_id(attach.daemon));
        rpc_finish(call, NULL, err.code, &err);
        return false;
    }
    if (peer == NULL || peer->call != call) { /* first report of this stream */
        const struct view *view = view_get();
        const Covey__Internal__V1__ViewMember *member = view_member_by_id(view, report->id);
        bool ok = member != NULL && strcmp(member->fingerprint, caller->fingerprint) == 0;
        view_unref(view);
        if (!ok) {
            pthread_mutex_unlock(&attach.lock);
            struct error err = ERROR_INIT;
            error_set(&err, STATUS_PERMISSION_DENIED, "not authorized");
            rpc_finish(call, NULL, err.code, &err);
            return false;
        }
        peer = peer_get(report->id);
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
    }
    uint64_t own_revision = 0;
    char own_digest[65] = "";
    state_digest(&own_revision, own_digest);
    if (own_revision != 0 && report->digest_revision == own_revision && strcmp(report->digest, own_digest) != 0) {
        pthread_mutex_unlock(&attach.lock);
        struct error err = ERROR_INIT;
        error_set(&err, STATUS_DATA_LOSS, "the replica of member %" PRIu64 " differs from the leader's at revision %" PRIu64, report->id, own_revision);
        log_error("digest.differs", "member=%" PRIu64 " revision=%" PRIu64, report->id, own_revision);
        rpc_finish(call, NULL, err.code, &err);
        return false;
    }
    peer->last_seen_ms = time_mono_ms();
    peer->last_seen_unix_ns = time_unix_ns();
    if (report->clock_answer != 0) {
        skew_answer(&peer->skew, report->clock_answer, report->clock_ns, peer->last_seen_unix_ns, peer->last_seen_ms);
    } else if (report->clock_ns != 0 && !peer->question_due && skew_report(&peer->skew, report->clock_ns, peer->last_seen_unix_ns, peer->last_seen_ms)) {
        peer->question_due = true;
        attach.generation++;
    }
    peer->sequence = report->sequence;
    if (report->view_revision > peer->view_revision || report->sequence <= 1) {
        peer->view_revision = report->view_revision;
        pthread_cond_broadcast(&attach.reported);
    }
    peer->stopping = peer->stopping || report->stopping;
    struct level_claim claim = {{report->schema, report->api_extensions}, {report->schema_floor, report->api_floor}};
    bool announced = !peer->claimed || !level_claim_equal(claim, peer->claim);
    peer->claimed = true;
    peer->claim = claim;
    if (report->instances_complete) {
        instances_clear(peer);
        peer->told = true;
    }
    for (size_t i = 0; i < report->n_instances; i++) {
        instance_put(peer, report->instances[i]);
    }
    pthread_mutex_unlock(&attach.lock);
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
    enum { STOPPED = 102, ERROR_CODE = 112 };
    if (pid != NULL) {
        *pid = 0;
    }
    if (!member_online(daemon, member)) {
        return ERROR_CODE;
    }
    char key[512];
    snprintf(key, sizeof key, "%s/%s", project, name);
    int64_t status = STOPPED;
    pthread_mutex_lock(&attach.lock);
    struct peer *peer = peer_find(member);
    struct instance_entry *entry = NULL;
    if (peer != NULL) {
        HASH_FIND_STR(peer->instances, key, entry);
    }
    if (entry == NULL && peer != NULL && !peer->told) {
        status = ERROR_CODE;
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
        until(&ts, left);
        pthread_cond_timedwait(&attach.reported, &attach.lock, &ts);
    }
    pthread_mutex_unlock(&attach.lock);
}

/* ---- member's side ---- */

static bool on_leader_report(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    if (message == NULL) {
        pthread_mutex_lock(&attach.lock);
        if (attach.upstream == call) {
            attach.upstream_lost = true;
            pthread_cond_broadcast(&attach.changed);
        }
        pthread_mutex_unlock(&attach.lock);
        return true;
    }
    const Covey__Internal__V1__LeaderReport *report = (const Covey__Internal__V1__LeaderReport *)message;
    if (report->view != NULL) {
        view_install(attach.daemon, report->view);
        upgrade_view_seen();
    }
    if (report->n_events > 0) {
        events_publish(report->events, report->n_events);
    }
    pthread_mutex_lock(&attach.lock);
    if (report->clock_question != 0) {
        attach.question = report->clock_question;
        attach.wake = true;
        pthread_cond_broadcast(&attach.changed);
    }
    if (report->view != NULL) {
        attach.acting_revision = report->view->revision;
        attach.wake = true; /* acknowledge at once: a write may wait for it */
        pthread_cond_broadcast(&attach.changed);
    }
    pthread_mutex_unlock(&attach.lock);
    return true;
}

static void on_upstream_done(struct rpc_call *call, void *ud)
{
    pthread_mutex_lock(&attach.lock);
    if (attach.upstream == call) {
        attach.upstream_lost = true;
        pthread_cond_broadcast(&attach.changed);
    }
    pthread_mutex_unlock(&attach.lock);
}

void attach_instance_changed(void *ud, const Covey__Internal__V1__InstanceStatus *status)
{
    pthread_mutex_lock(&attach.lock);
    if (attach.leading) {
        instance_put(peer_get(daemon_id(attach.daemon)), status);
    }
    if (attach.pending_count < sizeof attach.pending / sizeof *attach.pending) {
        attach.pending[attach.pending_count++] = (Covey__Internal__V1__InstanceStatus *)codec_copy(&status->base, &attach.pending_arena);
    } else {
        attach.pending_all = true;
    }
    attach.wake = true;
    pthread_cond_broadcast(&attach.changed);
    pthread_mutex_unlock(&attach.lock);
}

/* Sends one report; all instances with `first`. */
static int send_report(struct rpc_call *call, uint64_t sequence, bool first, struct error *err)
{
    struct daemon *daemon = attach.daemon;
    struct arena arena;
    arena_init(&arena);
    Covey__Internal__V1__MemberReport report = COVEY__INTERNAL__V1__MEMBER_REPORT__INIT;
    char digest[65] = "";
    state_digest(&report.digest_revision, digest);
    report.digest = digest;
    report.id = daemon_id(daemon);
    report.sequence = sequence;
    struct level_claim claim = upgrade_claim();
    report.schema = claim.level.schema;
    report.api_extensions = claim.level.api;
    report.schema_floor = claim.floor.schema;
    report.api_floor = claim.floor.api;
    report.event_number = events_last();
    report.epoch = state_epoch();
    report.stopping = daemon_phase() == DAEMON_STOPPING; /* gets no role any more */
    pthread_mutex_lock(&attach.lock);
    report.view_revision = attach.acting_revision;
    report.clock_answer = attach.question; /* the clock is read after the question came: see skew.c */
    attach.question = 0;
    report.clock_ns = time_unix_ns();
    bool all = first || attach.pending_all;
    report.instances = arena_alloc(&arena, (attach.pending_count + 1) * sizeof *report.instances);
    if (!all) {
        for (size_t i = 0; i < attach.pending_count; i++) {
            report.instances[report.n_instances++] = (Covey__Internal__V1__InstanceStatus *)codec_copy(&attach.pending[i]->base, &arena);
        }
    }
    attach.pending_count = 0;
    attach.pending_all = false;
    arena_clear(&attach.pending_arena);
    pthread_mutex_unlock(&attach.lock);
    if (all) {
        report.instances_complete = true;
        host_instances(daemon->host, &arena, &report.instances, &report.n_instances);
    }
    int status = rpc_try_send(call, &report.base, err);
    arena_clear(&arena);
    return status;
}

/* Asks one kind of members. */
static uint64_t ask_leader(struct daemon *daemon, const struct view *view, bool voters)
{
    uint64_t leader = 0, self = daemon_id(daemon), epoch = state_epoch();
    for (size_t i = 0; i < view->message->n_members && leader == 0; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        bool ask = member->id != self && member->state != 1 && (member->raft_role == ROLE_VOTER) == voters;
        struct rpc_channel *channel = ask ? member_channel(daemon, member->id, NULL) : NULL;
        if (channel == NULL) {
            continue;
        }
        struct arena arena;
        arena_init(&arena);
        Covey__V1__Empty request = COVEY__V1__EMPTY__INIT;
        ProtobufCMessage *response = NULL;
        struct rpc_options options = {.timeout_ms = 500};
        int status = rpc_unary(channel, "covey.internal.v1.Membership", "WhoLeads", &request.base, &response, &arena, &options, NULL);
        if (status == STATUS_OK) {
            const Covey__Internal__V1__WhoLeadsResponse *told = (Covey__Internal__V1__WhoLeadsResponse *)response;
            leader = told->epoch == 0 || told->epoch >= epoch ? told->id : 0; /* a former epoch's leader is none */
        }
        if (status == STATUS_OK || status == STATUS_PERMISSION_DENIED) {
            leave_note_answer(status == STATUS_PERMISSION_DENIED);
        }
        arena_clear(&arena);
        rpc_channel_unref(channel);
    }
    return leader;
}

/* Who leads: Raft knows on replicas; spares ask the others, voters first: after a recovery the leader may have been anything before. 0 = nobody knows. */
static uint64_t find_leader(struct daemon *daemon)
{
    uint64_t leader = daemon_leader_id(daemon);
    if (leader != 0) {
        return leader;
    }
    const struct view *view = view_get();
    leader = ask_leader(daemon, view, true);
    leader = leader != 0 ? leader : ask_leader(daemon, view, false);
    view_unref(view);
    return leader;
}

static uint64_t known_leader; /* of spares: found by asking; under attach.lock */

uint64_t attach_known_leader(void)
{
    pthread_mutex_lock(&attach.lock);
    uint64_t leader = known_leader;
    pthread_mutex_unlock(&attach.lock);
    return leader;
}

static int64_t report_interval_ms(void)
{
    int64_t ms = config_int("cluster.offline_threshold") * 1000 / REPORT_PARTS;
    return ms < REPORT_INTERVAL_MS_MIN ? REPORT_INTERVAL_MS_MIN : ms > REPORT_INTERVAL_MS_MAX ? REPORT_INTERVAL_MS_MAX : ms;
}

static int tell_spare(struct raft_node *raft, void *ud, struct error *err)
{
    raft_node_told_spare(raft, *(bool *)ud);
    return STATUS_OK;
}

/* Raft's leader tells a member nothing any more once it is a spare; the view does. `told` is what Raft knows so far. */
static void follow_role(struct daemon *daemon, bool attached, bool *told)
{
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *self = view_member_by_id(view, daemon_id(daemon));
    bool spare = attached && self != NULL && self->raft_role == ROLE_SPARE;
    view_unref(view);
    if (spare != *told && state_with_raft(daemon, tell_spare, &spare, NULL) == STATUS_OK) {
        *told = spare;
    }
}

/* Keeps one stream until it breaks, the leader changes or we stop. */
static void report_to(struct daemon *daemon, uint64_t leader)
{
    struct error err = ERROR_INIT;
    struct rpc_channel *channel = member_channel(daemon, leader, &err);
    if (channel == NULL) {
        return;
    }
    struct rpc_options options = {.timeout_ms = -1};
    struct rpc_call *call = rpc_open(channel, "covey.internal.v1.Membership", "Attach", NULL, &options, &err);
    if (call == NULL) {
        rpc_channel_unref(channel);
        return;
    }
    pthread_mutex_lock(&attach.lock);
    attach.upstream = call;
    attach.upstream_lost = false;
    attach.question = 0;
    pthread_mutex_unlock(&attach.lock);
    rpc_call_on_done(call, on_upstream_done, NULL);
    rpc_on_message(call, on_leader_report, NULL);
    uint64_t sequence = 1;
    bool told_spare = false;
    bool ok = send_report(call, sequence++, true, &err) == STATUS_OK;
    pthread_mutex_lock(&attach.lock);
    while (ok && !attach.stop && !attach.upstream_lost) {
        struct timespec ts;
        until(&ts, report_interval_ms());
        while (!attach.wake && !attach.stop && !attach.upstream_lost && pthread_cond_timedwait(&attach.changed, &attach.lock, &ts) == 0) {
        }
        attach.wake = false;
        bool over = attach.stop || attach.upstream_lost;
        pthread_mutex_unlock(&attach.lock);
        uint64_t now = daemon_leader_id(daemon);
        if (!over && (now == 0 || now == leader)) {
            certificate_follow(daemon, channel); /* before the report: it says that this member acts by its view */
            ok = send_report(call, sequence++, false, &err) == STATUS_OK;
            view_persist(daemon);
            follow_role(daemon, true, &told_spare);
        } else if (!over) {
            ok = false;
        }
        pthread_mutex_lock(&attach.lock);
    }
    bool lost = attach.upstream_lost;
    attach.upstream = NULL;
    pthread_mutex_unlock(&attach.lock);
    follow_role(daemon, false, &told_spare);
    int why = lost ? rpc_status(call, &err) : STATUS_OK;
    if (why == STATUS_RESOURCE_EXHAUSTED) {
        events_gap(); /* the leader does not keep what was missed: watchers end instead of skipping it */
    } else if (why == STATUS_PERMISSION_DENIED) {
        upgrade_refused(); /* somebody told us who leads, so our certificate is trusted: there is no row */
        leave_note_answer(true);
    } else if (why == STATUS_DATA_LOSS) {
        core_panic(__FILE__, __LINE__, "%s", err.text); /* a wrong replica is worse than a dead one: the restart rebuilds it from the log */
    }
    rpc_cancel(call);
    rpc_call_unref(call);
    rpc_channel_unref(channel);
    if (why == STATUS_FAILED_PRECONDITION) { /* of another epoch */
        epoch_follow(daemon);
    }
}

/* What the former leader left half done on this host is for the new one to settle. */
static void follow_leader(struct daemon *daemon, uint64_t leader)
{
    static uint64_t last; /* reporter thread */
    if (last != 0 && leader != 0 && leader != last) {
        networks_sync(daemon);
    }
    last = leader != 0 ? leader : last;
}

static void *reporter_main(void *ud)
{
    struct daemon *daemon = ud;
    unsigned seen = 0;
    for (;;) {
        pthread_mutex_lock(&attach.lock);
        bool stop = attach.stop;
        pthread_mutex_unlock(&attach.lock);
        if (stop) {
            return NULL;
        }
        follow_leader(daemon, daemon_clustered(daemon) && daemon_leads(daemon) ? daemon_id(daemon) : 0);
        if (!daemon_clustered(daemon) || daemon_leads(daemon)) {
            seen = state_wait_change(seen, REST_MS);
            continue;
        }
        uint64_t leader = find_leader(daemon);
        pthread_mutex_lock(&attach.lock);
        known_leader = leader;
        pthread_mutex_unlock(&attach.lock);
        if (leader != 0 && leader != daemon_id(daemon)) {
            follow_leader(daemon, leader);
            report_to(daemon, leader);
        }
        certificate_seek(daemon);
        seen = state_wait_change(seen, 100); /* also the pause between attempts */
        for (int64_t end = time_mono_ms() + REFUSED_PAUSE_MS; leave_is_refused() && time_mono_ms() < end;) { /* a stranger does not press */
            usleep(100000);
            pthread_mutex_lock(&attach.lock);
            end = attach.stop ? 0 : end;
            pthread_mutex_unlock(&attach.lock);
        }
    }
}

void attach_init(struct daemon *daemon)
{
    attach.daemon = daemon;
    arena_init(&attach.pending_arena);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&attach.changed, &attr);
    pthread_cond_init(&attach.reported, &attr);
    pthread_condattr_destroy(&attr);
    events_on_publish(something_to_send, NULL);
}

rpc_handler attach_handler(void)
{
    return serve_attach;
}

void attach_start(struct daemon *daemon)
{
    covey_assert(pthread_create(&attach.sender, NULL, sender_main, daemon) == 0);
    covey_assert(pthread_create(&attach.reporter, NULL, reporter_main, daemon) == 0);
    attach.started = true;
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
    state_poke();
    pthread_join(attach.sender, NULL);
    pthread_join(attach.reporter, NULL);
    pthread_mutex_lock(&attach.lock);
    struct peer *peer, *next;
    HASH_ITER(hh, attach.peers, peer, next) {
        peer_free(peer);
    }
    pthread_mutex_unlock(&attach.lock);
}
