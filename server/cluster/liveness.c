/* What the leader writes down of its members by itself: who is there and whose clock differs. Only transitions are written, each with its warning in one
 * transaction. Judged by the monotonic clock; wall clocks are shown and compared, never acted by. Controller thread. */
#include "cluster.h"

#include "server/warnings/warnings.h"
#include <inttypes.h>
#include <stdlib.h>

enum { CLOCKS_MAX = 64 }; /* changes of one tick; the others wait for the next */

struct transition {
    uint64_t id;
    bool online;
    int64_t seen_ns;
    char message[96];
};

static int write_transition(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct transition *t = ud;
    const struct warning warning = {.kind = WARNING_OFFLINE_MEMBER, .member = t->id, .entity_member = t->id, .message = t->message};
    int status = sql_exec(sql, err, "UPDATE nodes SET online = ?2, heartbeat = ?3 WHERE id = ?1 AND online <> ?2", "iii", (int64_t)t->id, (int64_t)t->online, t->seen_ns);
    if (status != STATUS_OK || sql_changes(sql) == 0) { /* removed, or written already: the view is a moment late */
        return status;
    }
    return t->online ? warning_resolve(sql, &warning, time_unix_ns(), err) : warning_raise(sql, &warning, time_unix_ns(), err);
}

void liveness_check(struct daemon *daemon)
{
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_members; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        int64_t seen_ns;
        if (member->state != 1 && attach_silence_ms(member->id, &seen_ns) < 0) {
            attach_expect(member->id);
        }
        bool online = member_online(daemon, member->id);
        if (member->state == 1 || online == (bool)member->online) {
            continue;
        }
        struct transition t = {member->id, online, 0, ""};
        char silence[64];
        duration_text(attach_silence_ms(member->id, &t.seen_ns) * 1000000, silence, sizeof silence);
        snprintf(t.message, sizeof t.message, "No heartbeat for %s", silence);
        struct error err = ERROR_INIT;
        log_info("member.transition", "member=%s online=%d", member->name, online);
        if (daemon_write(daemon, NULL, write_transition, &t, NULL, NULL, NULL, &err) != STATUS_OK) {
            log_warn("member.transition", "member=%s error=\"%s\"", member->name, err.text);
        }
    }
    view_unref(view);
}

/* ---- clocks ---- */

struct active {
    const struct warning *warning;
    bool active;
};

static int read_active(struct sql *sql, void *ud, struct error *err)
{
    struct active *in = ud;
    return warning_active(sql, in->warning, &in->active, err);
}

void clocks_check(struct daemon *daemon)
{
    struct attach_clock clocks[CLOCKS_MAX];
    size_t count = attach_clocks(clocks, CLOCKS_MAX);
    for (size_t i = 0; i < count; i++) {
        char message[128];
        bool skewed = clocks[i].verdict == SKEW_PROVEN;
        const struct warning warning = {.kind = WARNING_TIME_SKEW, .member = clocks[i].member, .message = message};
        struct active now = {.warning = &warning};
        struct error err = ERROR_INIT;
        snprintf(message, sizeof message, "The clock is %" PRId64 " s %s the leader's", (int64_t)llabs(clocks[i].lead_ns) / 1000000000,
            clocks[i].lead_ns > 0 ? "ahead of" : "behind");
        if (daemon_read(daemon, DB_LOCAL, read_active, &now, NULL, &err) != STATUS_OK) {
            continue; /* again at the next tick */
        }
        if (skewed != now.active) {
            log_warn("member.clock", "member=%" PRIu64 " lead_ms=%" PRId64 " skewed=%d", clocks[i].member, clocks[i].lead_ns / 1000000, skewed);
            skewed ? warnings_raise(daemon, &warning) : warnings_resolve(daemon, &warning);
        }
        attach_clock_written(clocks[i].member, clocks[i].verdict);
    }
}

/* ---- abandoned joins ---- */

enum { PENDING_MAX = 256 };

struct pending {
    uint64_t id;
    int64_t since_ms; /* first seen so here */
};

struct pending_read {
    uint64_t ids[PENDING_MAX];
    size_t count;
};

static int read_pending(struct sql *sql, void *ud, struct error *err)
{
    struct pending_read *in = ud;
    in->count = 0;
    struct sql_stmt *s = sql_query(sql, "SELECT id FROM nodes WHERE state = 1 ORDER BY id LIMIT ?1", "i", (int64_t)PENDING_MAX);
    while (in->count < PENDING_MAX && sql_next(s)) { /* the others follow when these are gone */
        in->ids[in->count++] = (uint64_t)sql_int(s, 0);
    }
    return sql_done(s, err);
}

static int drop_join(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    int64_t id = (int64_t) * (uint64_t *)ud;
    int status = sql_exec(sql, err, "DELETE FROM certificates WHERE type = 2 AND fingerprint IN (SELECT fingerprint FROM nodes WHERE id = ?1 AND state = 1)", "i", id);
    return status != STATUS_OK ? status : sql_exec(sql, err, "DELETE FROM nodes WHERE id = ?1 AND state = 1", "i", id);
}

void joins_sweep(struct daemon *daemon)
{
    static struct pending known[PENDING_MAX];
    static size_t known_count;
    struct pending now[PENDING_MAX];
    struct pending_read *read = xcalloc(1, sizeof *read);
    struct error err = ERROR_INIT;
    int64_t now_ms = time_mono_ms();
    if (daemon_read(daemon, DB_LOCAL, read_pending, read, NULL, &err) != STATUS_OK) {
        free(read);
        return;
    }
    for (size_t i = 0; i < read->count; i++) {
        now[i] = (struct pending){read->ids[i], now_ms};
        for (size_t k = 0; k < known_count; k++) {
            now[i].since_ms = known[k].id == now[i].id ? known[k].since_ms : now[i].since_ms;
        }
        if (now_ms - now[i].since_ms >= (int64_t)PENDING_MEMBER_KEEP_S * 1000 && daemon_write(daemon, NULL, drop_join, &now[i].id, NULL, NULL, NULL, &err) != STATUS_OK) {
            log_warn("join.sweep", "member=%" PRIu64 " error=\"%s\"", now[i].id, err.text);
        }
    }
    known_count = read->count;
    for (size_t i = 0; i < known_count; i++) {
        known[i] = now[i];
    }
    free(read);
}
