/* A member that was moved: `admin cluster set-address` (or `cluster edit` of one's own address alone) changed where it listens while it was stopped. It
 * remembers that in local state "moved" and tells the leader with its reports, until a leader's view has the address; the leader writes the row. Peers that
 * hear the member's Raft stream use the address at once (member_located), because there may be no leader without it. Thread: any; one mutex. */
#include "cluster.h"

#include "server/daemon/state.h"
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MOVES_MAX = 64 }; /* written in one transaction; more wait for the next tick */

static struct {
    pthread_mutex_t lock;
    char pending[ADDRESS_MAX]; /* what is to be told; "" = nothing */
    struct error refused;
} address = {.lock = PTHREAD_MUTEX_INITIALIZER};

void address_load(struct daemon *daemon)
{
    char *moved = daemon_clustered(daemon) ? local_state_get(daemon->local, "moved") : NULL;
    pthread_mutex_lock(&address.lock);
    snprintf(address.pending, sizeof address.pending, "%s", moved != NULL ? moved : "");
    pthread_mutex_unlock(&address.lock);
    free(moved);
}

void address_pending(char out[ADDRESS_MAX])
{
    pthread_mutex_lock(&address.lock);
    memcpy(out, address.pending, ADDRESS_MAX);
    pthread_mutex_unlock(&address.lock);
}

void address_settle(struct daemon *daemon)
{
    char pending[ADDRESS_MAX];
    address_pending(pending);
    if (pending[0] == '\0') {
        return;
    }
    const struct view *view = view_get();
    const Covey__Internal__V1__ViewMember *self = view_member_by_id(view, daemon_id(daemon));
    bool told = view->message->term > 0 && self != NULL && strcmp(self->address, pending) == 0; /* a saved view has no term */
    view_unref(view);
    if (told && local_state_set(daemon->local, "moved", NULL, NULL) == STATUS_OK) {
        log_info("address.moved", "address=%s", pending);
        pthread_mutex_lock(&address.lock);
        address.pending[0] = '\0';
        pthread_mutex_unlock(&address.lock);
    }
}

void address_refuse(const struct error *why)
{
    pthread_mutex_lock(&address.lock);
    address.refused = *why;
    pthread_mutex_unlock(&address.lock);
}

bool address_refused(struct error *err)
{
    pthread_mutex_lock(&address.lock);
    bool refused = address.refused.code != STATUS_OK;
    if (refused) {
        *err = address.refused;
    }
    pthread_mutex_unlock(&address.lock);
    return refused;
}

int address_check(const struct view *view, uint64_t member, const char *text, struct error *err)
{
    for (size_t i = 0; i < view->message->n_members; i++) {
        const Covey__Internal__V1__ViewMember *other = view->message->members[i];
        if (other->id != member && strcmp(other->address, text) == 0) {
            return error_set(err, STATUS_ALREADY_EXISTS, "The address \"%s\" belongs to member \"%s\"", text, other->name);
        }
    }
    return STATUS_OK;
}

/* ---- the leader's part ---- */

struct moves {
    size_t count;
    struct {
        uint64_t id;
        char address[ADDRESS_MAX];
    } moves[MOVES_MAX];
};

static int record_write(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    const struct moves *in = ud;
    int status = STATUS_OK;
    for (size_t i = 0; i < in->count && status == STATUS_OK; i++) { /* one that belongs to somebody by now is refused with the member's next report */
        status = sql_exec(sql, err, "UPDATE nodes SET address = ?2 WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM nodes WHERE address = ?2)", "is",
                          (int64_t)in->moves[i].id, in->moves[i].address);
    }
    return status;
}

void address_record(struct daemon *daemon)
{
    struct moves *in = xcalloc(1, sizeof *in);
    const struct view *view = view_get();
    for (size_t i = 0; i < view->message->n_members && in->count < MOVES_MAX; i++) {
        const Covey__Internal__V1__ViewMember *member = view->message->members[i];
        char *told = in->moves[in->count].address;
        if (member->id == daemon_id(daemon)) {
            address_pending(told);
        } else {
            attach_address(member->id, told);
        }
        struct error err = ERROR_INIT;
        if (told[0] == '\0' || strcmp(told, member->address) == 0) {
            continue;
        }
        if (address_check(view, member->id, told, &err) != STATUS_OK) { /* only its own: others' are refused as they arrive */
            log_warn("address.record", "error=\"%s\"", err.text);
            continue;
        }
        log_info("address.record", "member=%" PRIu64 " address=%s", member->id, told);
        in->moves[in->count++].id = member->id;
    }
    view_unref(view);
    struct error err = ERROR_INIT;
    if (in->count > 0 && daemon_write(daemon, NULL, record_write, in, NULL, NULL, NULL, &err) != STATUS_OK) {
        log_warn("address.record", "error=\"%s\"", err.text); /* tried again at the next tick */
    } else if (in->count > 0) {
        controller_refresh_view(daemon);
    }
    free(in);
    address_settle(daemon);
}
