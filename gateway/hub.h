/* One thread for everything that is not an HTTP request: upgraded sockets, the daemon's socket of accepted connections, delayed work. */
#ifndef COVEY_GATEWAY_HUB_H
#define COVEY_GATEWAY_HUB_H

#include <stdbool.h>
#include <stdint.h>

struct hub_source {
    void (*ready)(struct hub_source *source, uint32_t events); /* EPOLL… bits; hub thread */
};

void hub_start(void);
/* Runs what was posted at once (hub_stopping() is true then) and joins. */
void hub_stop(void);
bool hub_stopping(void);
/* Runs fn on the hub thread after delay_ms. Any thread. */
void hub_post(int64_t delay_ms, void (*fn)(void *ud), void *ud);
/* Hub thread only, so that no event of a removed source is delivered later. `events` of a source that was added before are changed. */
void hub_add(int fd, struct hub_source *source, uint32_t events);
void hub_change(int fd, struct hub_source *source, uint32_t events);
void hub_remove(int fd, struct hub_source *source);

#endif
