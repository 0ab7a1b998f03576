/* Events: lifecycle, operation and logging messages, numbered in the whole cluster, to every watcher exactly once.
 *
 * Everything starts on the leader (controllers run there) and reaches the other members on their Attach streams; each member keeps the last
 * EVENTS_KEPT_MAX events and serves its own watchers. A watcher that cannot keep up is ended, never skipped. Thread: any. */
#ifndef COVEY_SERVER_EVENTS_H
#define COVEY_SERVER_EVENTS_H

#include "covey/v1/event.pb-c.h"
#include "covey/v1/operation.pb-c.h"
#include "server/daemon/daemon.h"

enum { EVENTS_KEPT_MAX = 4096, EVENTS_WATCHERS_MAX = 4096 };

void events_init(struct daemon *daemon); /* binds covey.v1.Events */

/* A lifecycle event. context_json: an object or NULL. requestor: the call's caller or NULL. location: member name, NULL = this member. */
void events_lifecycle(const char *action, const char *source, const char *project, const struct caller *requestor, const char *context_json, const char *location);
/* The state of an operation changed. */
void events_operation(const Covey__V1__Operation *operation, const char *project);

/* Delivers events to local watchers; on the leader also to attached members. Numbers are given here when 0. Events whose number was seen already are
 * dropped (a repeated delivery after a new Attach). */
void events_publish(Covey__V1__Event *const *events, size_t count);
/* Last number delivered here. */
uint64_t events_last(void);
/* For the leader's Attach streams: kept events after `number`, packed copies in arena; false when some of them are not kept any more. */
bool events_after(uint64_t number, struct arena *arena, Covey__V1__Event ***events, size_t *count);
/* On a member whose Attach stream was cut because events it needs are not kept any more: ends all its watchers with an error (they would skip
 * otherwise) and forgets the ring, so that events_last() is 0 and the next Attach starts from now. */
void events_gap(void);
/* Called (any thread, must not block) whenever an event was published on this member; at most 8 hooks, set at start. */
void events_on_publish(void (*fn)(void *ud), void *ud);

#endif
