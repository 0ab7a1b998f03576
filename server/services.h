/* Entry points of the nouns' services: each binds its RPCs and registers its operation kinds; called once at start, before any server listens. */
#ifndef COVEY_SERVER_SERVICES_H
#define COVEY_SERVER_SERVICES_H

#include "server/daemon/daemon.h"

void server_service_bind(void); /* covey.v1.Server */
void certificates_bind(void);
void projects_bind(void);
void profiles_bind(void);
void pools_bind(void);
void networks_bind(void);
void images_bind(void);
void instances_bind(void);

/* Instances of this member whose configuration or last state says so are started (asynchronously, through the leader). */
void instances_autostart(struct daemon *daemon);
/* Clean stop of all containers on this member (shutdown): in parallel, bounded, killed after their timeout; works without a leader. */
void instances_stop_all(struct daemon *daemon);
/* Gives leadership and the database role to another member before stopping (spec/cluster.md 5.5); failures are only logged. */
void handover(struct daemon *daemon);

#endif
