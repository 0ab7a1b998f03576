/* Members of a former epoch. After a recovery from loss of quorum or a restored backup, the cluster goes on in a newer epoch; whoever was left behind may hold
 * entries that the cluster does not have. It must never vote with them: it moves its copy away and comes back as a spare with a fresh one.
 *
 * A member asks the others before it opens its database, and when a leader of another epoch refuses it. It follows a newer epoch only while nobody of its own
 * epoch knows a leader: a member that was recovered by mistake beside a working majority does not drag the majority after it. Thread: main, attach's. */
#include "recovery.h"

#include "server/daemon/state.h"
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

static void ask_round(struct daemon *daemon, uint64_t own, struct epoch_finding *finding)
{
    struct arena arena;
    struct peer_position *peers;
    char *cluster = local_state_get(daemon->local, "cluster_id");
    arena_init(&arena);
    size_t count = positions_ask(daemon, NULL, 0, &arena, &peers);
    epoch_judge(finding, own, cluster, peers, count);
    free(cluster);
    arena_clear(&arena);
}

/* The newest epoch to follow; 0 = none. Members that are silent are asked again for wait_ms: two former voters that both miss the recovered member's answer would
 * form the former cluster again beside it. Once a leader of the own epoch is known, nothing that others say changes the outcome. */
static uint64_t newer_epoch(struct daemon *daemon, int64_t wait_ms)
{
    struct epoch_finding finding = {0};
    uint64_t own = recovery_epoch(daemon);
    int64_t until = time_mono_ms() + wait_ms;
    bool told = false;
    ask_round(daemon, own, &finding);
    while (finding.silent > 0 && finding.leader == 0 && time_mono_ms() < until) {
        if (!told) {
            log_info("epoch.ask-again", "silent=%zu", finding.silent);
            told = true;
        }
        usleep(EPOCH_AGAIN_MS * 1000);
        ask_round(daemon, own, &finding);
    }
    if (told) {
        log_info("epoch.asked", "silent=%zu newest=%" PRIu64 " leader=%" PRIu64, finding.silent, finding.newest, finding.leader);
    }
    if (finding.newest != 0 && finding.leader != 0) {
        log_error("epoch.split", "own=%" PRIu64 " other=%" PRIu64 " leader=%" PRIu64 " error=\"another member was recovered as a cluster of its own while this one works: stop it"
            " and wipe it\"", own, finding.newest, finding.leader);
        return 0;
    }
    return finding.newest;
}

int epoch_check_start(struct daemon *daemon, struct error *err)
{
    uint64_t newest = daemon_clustered(daemon) ? newer_epoch(daemon, EPOCH_WAIT_MS) : 0;
    if (newest == 0) {
        return STATUS_OK;
    }
    log_warn("epoch.follow", "from=%" PRIu64 " to=%" PRIu64, recovery_epoch(daemon), newest);
    return recovery_discard(daemon, newest, err);
}

void epoch_follow(struct daemon *daemon)
{
    struct error err = ERROR_INIT;
    if (daemon_leader_id(daemon) != 0 || forming_begin(&err) != STATUS_OK) {
        return;
    }
    uint64_t newest = newer_epoch(daemon, 0); /* asked again at the next refusal */
    if (newest != 0 && daemon_leader_id(daemon) == 0) {
        log_warn("epoch.follow", "from=%" PRIu64 " to=%" PRIu64, recovery_epoch(daemon), newest);
        state_close_database(daemon);
        members_forget_channels();
        int status = recovery_discard(daemon, newest, &err);
        view_rebase(daemon);
        status = status == STATUS_OK ? state_open_database(daemon, &err) : status;
        if (status != STATUS_OK) {
            core_panic(__FILE__, __LINE__, "cannot follow epoch %" PRIu64 ": %s", newest, err.text); /* the next start tries again */
        }
    }
    forming_end();
}
