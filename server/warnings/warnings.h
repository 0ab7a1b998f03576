/* Warnings: what an administrator should look at, one row per (kind, member, project, entity), counted when it happens again (spec/api.md 13,
 * spec/cluster.md 6.1, 15). */
#ifndef COVEY_SERVER_WARNINGS_H
#define COVEY_SERVER_WARNINGS_H

#include "server/daemon/daemon.h"

/* Stored in the database: numbers never change. */
enum warning_kind {
    WARNING_OFFLINE_MEMBER = 1, /* entity: the member */
    WARNING_TIME_SKEW = 2,      /* member: whose clock differs from the leader's */
    WARNING_AUTOSTART = 3,
    WARNING_NETWORK_UNAVAILABLE = 4,
    WARNING_POOL_UNAVAILABLE = 5,
    WARNING_INSTANCE_TYPE = 6,
};
enum warning_status { WARNING_NEW = 1, WARNING_ACKNOWLEDGED = 2, WARNING_RESOLVED = 3 };
enum warning_severity { WARNING_LOW, WARNING_MODERATE, WARNING_HIGH };

/* The identity of a warning, and what is said of it. Borrowed for the call. */
struct warning {
    enum warning_kind kind;
    uint64_t member;     /* 0 = none; the warning goes when the member is removed */
    const char *project; /* NULL = none; an unknown one counts as none */
    uint64_t entity_member; /* the entity is this member (it may be renamed), or 0 and … */
    const char *entity_url; /* … a URL below /1.0, NULL = none */
    const char *message; /* replaces the last one */
};

/* ---- kinds.c: pure ---- */
const char *warning_kind_name(enum warning_kind kind); /* "Offline cluster member" …; "" for a number that this version does not know */
enum warning_severity warning_severity(enum warning_kind kind);
const char *warning_severity_name(enum warning_severity severity);
const char *warning_status_name(enum warning_status status);
int warning_status_parse(const char *text, enum warning_status *out); /* 0 or -1 */

/* ---- store.c: within a write ---- */
/* A new row with count 1; or one more: count, last_seen and message change, a resolved one becomes new again, an acknowledged one stays so. */
int warning_raise(struct sql *sql, const struct warning *warning, int64_t now_ns, struct error *err);
/* Nothing if there is none or it is resolved already. */
int warning_resolve(struct sql *sql, const struct warning *warning, int64_t now_ns, struct error *err);
/* Whether one is there that is not resolved. For reads, too. */
int warning_active(struct sql *sql, const struct warning *warning, bool *active, struct error *err);
/* The same as writes of their own, on the leader; failures are logged. */
void warnings_raise(struct daemon *daemon, const struct warning *warning);
void warnings_resolve(struct daemon *daemon, const struct warning *warning);

/* ---- skew.c: pure ---- */
enum { SKEW_LIMIT_NS_PER_S = 1000000000, SKEW_LIMIT_S = 5, SKEW_PROBE_MS = 5000, SKEW_STEP_NS = 1000000000 };

enum skew_verdict { SKEW_UNKNOWN, SKEW_NONE, SKEW_PROVEN };
/* What is known of one member's clock. Zero-initialise. A report's clock reading was made before it arrived, nobody knows how long before, so it only
 * shows a lower bound of the member's lead. A question puts a bound on the other side: the answer's reading lies between asking and arrival. */
struct skew {
    enum skew_verdict verdict;
    int64_t lead_ns;  /* of the member's clock over this one's, as last seen */
    uint64_t number;  /* of the open question, 0 = none */
    uint64_t numbers; /* given so far */
    int64_t asked_unix_ns, asked_ms;
};
/* A report without an answer: true when a question is needed to decide. */
bool skew_report(struct skew *skew, int64_t clock_ns, int64_t now_unix_ns, int64_t now_ms);
/* Opens a question; its number goes to the member. */
uint64_t skew_ask(struct skew *skew, int64_t now_unix_ns, int64_t now_ms);
/* The answer to a question: may change the verdict. Readings during which this clock itself was set are worth nothing. */
void skew_answer(struct skew *skew, uint64_t number, int64_t clock_ns, int64_t now_unix_ns, int64_t now_ms);

/* ---- service.c ---- */
void warnings_bind(void);

#endif
