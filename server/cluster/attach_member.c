/* Attach, the member's side: one thread keeps one stream to the leader. Upwards go reports (this member lives, which view it acts by, what its containers
 * do, its clock when asked); downwards come views and events, on completion-queue threads. The leader's side is attach.c. */
#include "attach.h"

#include "server/config/keys.h"
#include "server/daemon/route.h"
#include "server/daemon/state.h"
#include "server/events/events.h"
#include "server/networks/networks_member.h"
#include "server/recovery/recovery.h"
#include "upgrade.h"
#include <pthread.h>
#include <unistd.h>

enum {
    PENDING_MAX = 1024,      /* changes of containers kept between two reports; with more the next report tells of all containers */
    REST_MS = 60 * 1000,     /* nothing to do for this side until the state changes */
    RETRY_PAUSE_MS = 100,    /* between attempts to find and reach the leader, unless the state changes before */
    REFUSED_PAUSE_MS = 5000, /* between attempts of a member that the cluster refuses */
    ASK_LEADER_MS = 500,     /* for one voter to say who leads */
};

static struct {
    struct daemon *daemon;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* something to report, the stream, the end */
    pthread_t reporter;
    bool stop;
    struct rpc_call *upstream; /* the open stream to the leader */
    bool upstream_lost;
    uint64_t acting_revision;
    struct arena pending_arena;
    Covey__Internal__V1__InstanceStatus *pending[PENDING_MAX]; /* not reported yet */
    size_t pending_count;
    bool pending_all;
    uint64_t question; /* of the leader, about this clock; not answered yet, 0 = none */
    bool wake;
    uint64_t known_leader; /* of spares: found by asking */
} own = {.lock = PTHREAD_MUTEX_INITIALIZER};

static bool on_leader_report(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    if (message == NULL) {
        pthread_mutex_lock(&own.lock);
        if (own.upstream == call) {
            own.upstream_lost = true;
            pthread_cond_broadcast(&own.changed);
        }
        pthread_mutex_unlock(&own.lock);
        return true;
    }
    const Covey__Internal__V1__LeaderReport *report = (const Covey__Internal__V1__LeaderReport *)message;
    if (report->view != NULL) {
        view_install(own.daemon, report->view);
        upgrade_view_seen();
    }
    if (report->n_events > 0) {
        events_publish(report->events, report->n_events);
    }
    pthread_mutex_lock(&own.lock);
    if (report->clock_question != 0) {
        own.question = report->clock_question;
        own.wake = true;
        pthread_cond_broadcast(&own.changed);
    }
    if (report->view != NULL) {
        own.acting_revision = report->view->revision;
        own.wake = true; /* acknowledge at once: a write may wait for it */
        pthread_cond_broadcast(&own.changed);
    }
    pthread_mutex_unlock(&own.lock);
    return true;
}

static void on_upstream_done(struct rpc_call *call, void *ud)
{
    pthread_mutex_lock(&own.lock);
    if (own.upstream == call) {
        own.upstream_lost = true;
        pthread_cond_broadcast(&own.changed);
    }
    pthread_mutex_unlock(&own.lock);
}

void attach_instance_changed(void *ud, const Covey__Internal__V1__InstanceStatus *status)
{
    attach__own_instance(status);
    pthread_mutex_lock(&own.lock);
    if (own.pending_count < PENDING_MAX) {
        own.pending[own.pending_count++] = (Covey__Internal__V1__InstanceStatus *)codec_copy(&status->base, &own.pending_arena);
    } else {
        own.pending_all = true;
    }
    own.wake = true;
    pthread_cond_broadcast(&own.changed);
    pthread_mutex_unlock(&own.lock);
}

/* Sends one report; all instances with `first`. */
static int send_report(struct rpc_call *call, uint64_t sequence, bool first, struct error *err)
{
    struct daemon *daemon = own.daemon;
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
    char moved[ADDRESS_MAX];
    address_pending(moved);
    report.address = moved;
    report.stopping = daemon_phase() == DAEMON_STOPPING; /* gets no role any more */
    pthread_mutex_lock(&own.lock);
    report.view_revision = own.acting_revision;
    report.clock_answer = own.question; /* the clock is read after the question came: see skew.c */
    own.question = 0;
    report.clock_ns = time_unix_ns();
    bool all = first || own.pending_all;
    report.instances = arena_alloc(&arena, (own.pending_count + 1) * sizeof *report.instances);
    if (!all) {
        for (size_t i = 0; i < own.pending_count; i++) {
            report.instances[report.n_instances++] = (Covey__Internal__V1__InstanceStatus *)codec_copy(&own.pending[i]->base, &arena);
        }
    }
    own.pending_count = 0;
    own.pending_all = false;
    arena_clear(&own.pending_arena);
    pthread_mutex_unlock(&own.lock);
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
        struct rpc_options options = {.timeout_ms = ASK_LEADER_MS};
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

uint64_t attach_known_leader(void)
{
    pthread_mutex_lock(&own.lock);
    uint64_t leader = own.known_leader;
    pthread_mutex_unlock(&own.lock);
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

/* Whether the leader is where it was: a stream to an address that is gone may be silent for long. */
static bool same_channel(struct daemon *daemon, uint64_t leader, const struct rpc_channel *channel)
{
    struct rpc_channel *now = member_channel(daemon, leader, NULL);
    bool same = now == channel;
    if (now != NULL) {
        rpc_channel_unref(now);
    }
    return same;
}

/* Keeps one stream until it breaks, the leader changes or moves, or we stop. */
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
    pthread_mutex_lock(&own.lock);
    own.upstream = call;
    own.upstream_lost = false;
    own.question = 0;
    pthread_mutex_unlock(&own.lock);
    rpc_call_on_done(call, on_upstream_done, NULL);
    rpc_on_message(call, on_leader_report, NULL);
    uint64_t sequence = 1;
    bool told_spare = false;
    bool ok = send_report(call, sequence++, true, &err) == STATUS_OK;
    pthread_mutex_lock(&own.lock);
    while (ok && !own.stop && !own.upstream_lost) {
        struct timespec ts;
        time_deadline(&ts, report_interval_ms());
        while (!own.wake && !own.stop && !own.upstream_lost && pthread_cond_timedwait(&own.changed, &own.lock, &ts) == 0) {
        }
        own.wake = false;
        bool over = own.stop || own.upstream_lost;
        pthread_mutex_unlock(&own.lock);
        uint64_t now = daemon_leader_id(daemon);
        if (!over && (now == 0 || now == leader) && same_channel(daemon, leader, channel)) {
            address_settle(daemon);
            certificate_follow(daemon, channel); /* before the report: it says that this member acts by its view */
            ok = send_report(call, sequence++, false, &err) == STATUS_OK;
            view_persist(daemon);
            follow_role(daemon, true, &told_spare);
        } else if (!over) {
            ok = false;
        }
        pthread_mutex_lock(&own.lock);
    }
    bool lost = own.upstream_lost;
    own.upstream = NULL;
    pthread_mutex_unlock(&own.lock);
    follow_role(daemon, false, &told_spare);
    int why = lost ? rpc_status(call, &err) : STATUS_OK;
    if (why == STATUS_RESOURCE_EXHAUSTED) {
        events_gap(); /* the leader does not keep what was missed: watchers end instead of skipping it */
    } else if (why == STATUS_PERMISSION_DENIED) {
        upgrade_refused(); /* somebody told us who leads, so our certificate is trusted: there is no row */
        leave_note_answer(true);
    } else if (why == STATUS_ALREADY_EXISTS) {
        address_refuse(&err);
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
        pthread_mutex_lock(&own.lock);
        bool stop = own.stop;
        pthread_mutex_unlock(&own.lock);
        if (stop) {
            return NULL;
        }
        follow_leader(daemon, daemon_clustered(daemon) && daemon_leads(daemon) ? daemon_id(daemon) : 0);
        if (!daemon_clustered(daemon) || daemon_leads(daemon)) {
            seen = state_wait_change(seen, REST_MS);
            continue;
        }
        uint64_t leader = find_leader(daemon);
        pthread_mutex_lock(&own.lock);
        own.known_leader = leader;
        pthread_mutex_unlock(&own.lock);
        if (leader != 0 && leader != daemon_id(daemon)) {
            follow_leader(daemon, leader);
            report_to(daemon, leader);
        }
        certificate_seek(daemon);
        seen = state_wait_change(seen, RETRY_PAUSE_MS);
        for (int64_t end = time_mono_ms() + REFUSED_PAUSE_MS; leave_is_refused() && time_mono_ms() < end;) { /* a stranger does not press */
            usleep(100000);
            pthread_mutex_lock(&own.lock);
            end = own.stop ? 0 : end;
            pthread_mutex_unlock(&own.lock);
        }
    }
}

void attach_member__init(struct daemon *daemon)
{
    own.daemon = daemon;
    arena_init(&own.pending_arena);
    attach__cond_init(&own.changed);
}

void attach_member__start(void)
{
    covey_assert(pthread_create(&own.reporter, NULL, reporter_main, own.daemon) == 0);
}

void attach_member__stop(void)
{
    pthread_mutex_lock(&own.lock);
    own.stop = true;
    pthread_cond_broadcast(&own.changed);
    pthread_mutex_unlock(&own.lock);
    state_poke();
    pthread_join(own.reporter, NULL);
}
