/* Between attach.c and attach_member.c only. Each half has a state and a lock of its own and takes the other's lock never while it holds its own. */
#ifndef COVEY_SERVER_CLUSTER_ATTACH_H
#define COVEY_SERVER_CLUSTER_ATTACH_H

#include "cluster.h"
#include <pthread.h>

void attach_member__init(struct daemon *daemon); /* borrowed for the life of the process */
void attach_member__start(void);
void attach_member__stop(void); /* waits for the thread: up to what one report or one question to a voter takes */
/* A container of this member changed: on the leader that is known without a report. */
void attach__own_instance(const Covey__Internal__V1__InstanceStatus *status);
/* A condition whose timed waits go by the monotonic clock. */
void attach__cond_init(pthread_cond_t *cond);

#endif
