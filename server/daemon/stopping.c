/* See stopping.h. Work on this host is what its agent was called for and has not answered yet, whichever member leads; besides, the operations that run on
 * this member's workers, which a leader without a successor could not hand over. */
#include "stopping.h"

#include "server/config/keys.h"
#include "server/operations/operations.h"
#include "route.h"
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { POLL_MS = 50, TELL_MS = 10000, MINUTE_MS = 60000, WAIT_MINUTES_MAX = 24 * 60 };

static atomic_uint working;
static atomic_bool asked, asked_force, asked_keep;

struct stop_manner stop_manner(int signal)
{
    struct stop_manner how = {.wait = signal == SIGTERM || signal == SIGPWR, .instances = signal == SIGPWR};
    if (atomic_exchange(&asked, true) && signal == SIGTERM) { /* this signal comes from a client */
        how.wait = !atomic_load(&asked_force);
        how.instances = !atomic_load(&asked_keep);
    }
    return how;
}

int stop_ask(bool force, bool keep_instances, struct error *err)
{
    if (atomic_exchange(&asked, true)) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "Shutdown already in progress");
    }
    atomic_store(&asked_force, force);
    atomic_store(&asked_keep, keep_instances);
    return STATUS_OK;
}

static void worked(struct rpc_call *call, void *ud)
{
    atomic_fetch_sub(&working, 1);
}

void stop_count(struct rpc_call *call)
{
    const struct method *method = rpc_call_method(call);
    if (method->write && strcmp(method->service, "covey.internal.v1.Agent") == 0) {
        atomic_fetch_add(&working, 1);
        rpc_call_on_done(call, worked, NULL);
    }
}

void stop_wait(struct daemon *daemon)
{
    int64_t minutes = config_int("core.shutdown_timeout"), tell = time_mono_ms() + TELL_MS;
    int64_t end = time_mono_ms() + (minutes < WAIT_MINUTES_MAX ? minutes : WAIT_MINUTES_MAX) * MINUTE_MS;
    for (;; usleep(POLL_MS * 1000)) {
        unsigned calls = atomic_load(&working);
        size_t operations = operations_running();
        if (calls == 0 && operations == 0) {
            return;
        }
        if (time_mono_ms() >= end) {
            log_warn("daemon.stopping", "text=\"not waiting any longer\" calls=%u operations=%zu", calls, operations);
            return;
        }
        if (time_mono_ms() >= tell) {
            tell = time_mono_ms() + TELL_MS;
            log_info("daemon.stopping", "text=\"waiting for operations\" calls=%u operations=%zu", calls, operations);
        }
    }
}
