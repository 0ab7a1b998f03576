/* Upgrades: what this member announces, whether it may serve beside the others, and what the leader makes of the announcements (docs/design/upgrade.md). */
#ifndef COVEY_SERVER_CLUSTER_UPGRADE_H
#define COVEY_SERVER_CLUSTER_UPGRADE_H

#include "cluster.h"
#include "levels.h"

/* What this process announces. COVEY_TEST_API_LEVEL_BUMP=<n> or LXD_ARTIFICIALLY_BUMP_API_EXTENSIONS=<n> in the environment raise the API level by n
 * incompatible steps. */
struct level_claim upgrade_claim(void);

enum upgrade_state {
    UPGRADE_UNKNOWN, /* no leader of this run has told the levels yet, or it has not written down this member's */
    UPGRADE_SERVE,
    UPGRADE_BLOCKED, /* another member must be upgraded first, or the schema */
    UPGRADE_FATAL,   /* must not run; `err` says why */
};
enum upgrade_state upgrade_judge(struct daemon *daemon, struct error *err);

/* A view came from a leader in this run; the leader does not know this member though its certificate is trusted. Thread: any. */
void upgrade_view_seen(void);
void upgrade_refused(void);

/* Leader, controller thread: writes down what members announce and lets the schema follow. */
void upgrade_record(struct daemon *daemon);
/* Leader that is blocked, controller thread: hands leadership to a member that serves, if there is one. */
void upgrade_yield(struct daemon *daemon);

/* A thread that runs the program of COVEY_CLUSTER_UPDATE or LXD_CLUSTER_UPDATE once when others turn out to be newer. */
void upgrade_start(struct daemon *daemon);
void upgrade_stop(void);
void upgrade_view_changed(void);

#endif
