/* Disaster recovery (spec/cluster.md 11, 12.4, 14). The epoch of a cluster grows with every recovery and is unique: Raft streams of another epoch are refused
 * (storage/raft_transport.c), so copies that may differ never meet. */
#ifndef COVEY_SERVER_RECOVERY_H
#define COVEY_SERVER_RECOVERY_H

#include "server/cluster/cluster.h"
#include "covey/internal/v1/recovery.pb-c.h"

enum {
    RECOVERY_ASK_MS = 1500,          /* one question to another member */
    EPOCH_WAIT_MS = 10000,           /* how long a start waits for members that neither answer nor refuse the connection */
    EPOCH_AGAIN_MS = 200,            /* between two questions */
    RECOVERY_PATCH_BYTES_MAX = 4 << 20,
    RECOVERY_MEMBERS_MAX = 1024,
};

/* ---- intent.c: changes of a stopped member that survive a kill ---- */
/* Finishes what an interrupted recovery began. Before the database is opened. */
int recovery_resume(struct daemon *daemon, struct error *err);
/* Makes this member the only voter in `epoch`. The database is closed. */
int recovery_sole_voter(struct daemon *daemon, uint64_t epoch, struct error *err);
/* Moves this member's copy away (database/global.discarded) and goes to `epoch` with an empty one. The database is closed. */
int recovery_discard(struct daemon *daemon, uint64_t epoch, struct error *err);
/* Puts database/global.restored in place; see backup.c. */
int recovery_install(struct daemon *daemon, const char *intent_json, struct error *err);
uint64_t recovery_epoch(struct daemon *daemon); /* the member's own */
/* One that nobody else makes, and newer than `than`. */
uint64_t recovery_new_epoch(uint64_t than);
char *recovery_raft_dir(struct daemon *daemon); /* caller frees */

/* ---- patch.c ---- */
/* database/patch.local.sql, before anything reads the local database. */
int patch_local(struct daemon *daemon, struct error *err);
/* database/patch.global.sql, through the leader. UNAVAILABLE, UNKNOWN, DEADLINE_EXCEEDED: try again; others end the start. */
int patch_global(struct daemon *daemon, struct error *err);

/* On the leader: the statements, once per id. */
int patch_execute(struct daemon *daemon, const Covey__Internal__V1__ApplyPatchRequest *request, struct error *err);

/* ---- lead.c ---- */
/* A new leader, before it makes its first view: own patch file, epoch in the database. */
int recovery_lead(struct daemon *daemon, struct error *err);
/* Why this member cannot start; false = nothing. */
bool recovery_failed(struct error *err);

/* ---- epoch.c ---- */
/* At start, before the database is opened: whether the others went on without us. Asks until every member has answered or refused the connection, or one of
 * this member's own epoch knows a leader; at most EPOCH_WAIT_MS and one question longer. */
int epoch_check_start(struct daemon *daemon, struct error *err);
/* While running, by a member that another epoch's leader refused: follows a newer epoch unless its own one has a leader. Blocking. */
void epoch_follow(struct daemon *daemon);

/* ---- position.c ---- */
struct peer_position {
    uint64_t id;
    char *name, *address, *role; /* as the view says */
    int status; /* of the question */
    bool silent; /* neither an answer nor a refused connection: it may be there and slow */
    struct error err;
    Covey__Internal__V1__PositionResponse *position; /* in the arena; NULL unless status is STATUS_OK */
};
/* Asks every other member of the view at once, by Position or (hold_id) Hold. `out` in arena. */
size_t positions_ask(struct daemon *daemon, const char *hold_id, int64_t hold_ms, struct arena *arena, struct peer_position **out);
/* This member's own: from the running database, else from disk. */
int position_own(struct daemon *daemon, struct arena *arena, Covey__Internal__V1__PositionResponse **out, struct error *err);
const char *raft_role_name(int role); /* spec numbering; "" for others */

/* ---- service.c ---- */
void recovery_bind(void);

/* ---- rescue.c ---- */
int rescue_survey(struct daemon *daemon, struct arena *arena, Covey__Internal__V1__SurveyResponse **out, struct error *err);
/* stopped: from offline.c; this member takes part with its folder. */
int rescue_run(struct daemon *daemon, bool stopped, bool accept_loss, struct arena *arena, Covey__Internal__V1__SurveyResponse **out, struct error *err);
int rescue_hold(struct daemon *daemon, const char *hold_id, int64_t hold_ms, struct error *err);
int rescue_promote(struct daemon *daemon, const Covey__Internal__V1__PromoteRequest *request, struct error *err);

/* ---- rules.c: pure ---- */
struct edit_member { uint64_t id; const char *name, *address, *role; };
/* spec/cluster.md 11, in its order. */
int edit_check(const struct edit_member *before, size_t before_count, const struct edit_member *after, size_t after_count, struct error *err);
int edit_role(const char *text); /* spec numbering, -1 = none */
/* What a survey means: fills chosen, refusal, warnings. Texts in arena. */
void survey_judge(Covey__Internal__V1__SurveyResponse *survey, struct arena *arena);
/* What members say about epochs, over all rounds of questions; begins as zeros. */
struct epoch_finding {
    uint64_t newest; /* newer than one's own, with a copy of the database; 0 = none */
    uint64_t leader; /* of one's own epoch; 0 = nobody knows one */
    size_t silent;   /* of the latest round: members that may have more to say */
};
/* Adds a round. Answers of other clusters count as answers that say nothing. */
void epoch_judge(struct epoch_finding *finding, uint64_t own, const char *cluster, const struct peer_position *peers, size_t count);

/* ---- edit.c, backup.c: verbs of offline.c ---- */
int edit_move(struct daemon *daemon, const char *address, struct error *err); /* this member's own address */
int edit_apply(struct daemon *daemon, const char *json, size_t len, bool *invalid, struct error *err);
/* Refuses while another member knows a leader: a second cluster would come up beside it. */
int recovery_check_alone(struct daemon *daemon, struct error *err);
int backup_send(struct rpc_call *call, struct error *err);
int backup_restore(struct daemon *daemon, const char *path, const char *member, const char *address, bool check_only, struct buf *about, struct error *err);

#endif
