/* Exec sessions: what exec.c (sessions, their thread) and stream.c (the clients' streams) share.
 *
 * One thread per session moves all bytes with poll; the streams' callbacks (gRPC queue threads) only put things into the session under its lock and ring
 * its event descriptor. */
#ifndef COVEY_SERVER_EXEC_PRIVATE_H
#define COVEY_SERVER_EXEC_PRIVATE_H

#include "host_private.h"
#include <stdatomic.h>

enum exec_stream_index { EXEC_STDIN, EXEC_STDOUT, EXEC_STDERR, EXEC_CONTROL, EXEC_STREAMS };

/* One Connect call. References: the list of attempts or the session's stream, on_message until its end, on_done. */
struct exec_link {
    struct exec_link *next; /* host->attempts; host->lock */
    atomic_int refs;
    struct host *host;
    struct rpc_call *call;
    int stream;                           /* valid once session is set */
    struct exec_session *_Atomic session; /* set once, at the first frame; holds a reference */
    int64_t since_ms;
    char *operation, *secret; /* of a first frame that came before its session; host->lock while the link is on the list */
};

struct exec_stream { /* session->lock */
    char *secret;           /* NULL: no such stream */
    struct exec_link *link; /* NULL: not connected (any more) */
    bool used, lost;
};

struct exec_waiter {
    struct exec_waiter *next;
    struct rpc_call *call;
};

struct exec_session {
    struct exec_session *next; /* host->sessions; host->lock */
    atomic_int refs;           /* table, thread, links */
    struct host *host;
    char *operation, *key;
    char *line; /* for the helper */
    bool interactive, wait, record;
    int event_fd;
    pthread_mutex_t lock; /* everything below */
    pthread_cond_t changed;
    struct exec_stream streams[EXEC_STREAMS];
    struct exec_waiter *waiters;
    struct buf in;          /* from the client to the command */
    bool in_end, in_paused;
    int signals[16];        /* waiting to be delivered; more at a time are dropped */
    unsigned signal_count;
    int width, height;      /* of a resize to do; 0: none */
    bool kill, cancelled;
    bool finished;
    int64_t finished_ms;
    int64_t result;
    char error[ERROR_TEXT_MAX];
};

/* One command of the control stream: a new window size (both > 0) or a signal (> 0). */
struct exec_control {
    int width, height;
    int signal;
};
/* False: not a command that we know, or not valid. */
bool exec__control_parse(const char *text, struct exec_control *out);

void exec__unref(struct exec_session *session);
void exec__ring(struct exec_session *session);
struct exec_session *exec__find(struct host *host, const char *operation); /* with a reference; NULL if none */
/* A frame to a connected stream. STATUS_OK, RESOURCE_EXHAUSTED (try again later) or else: lost. */
int stream__send(struct exec_session *session, int stream, const void *data, size_t len, bool end);
/* Ends all streams of a finished session. */
void stream__finish_all(struct exec_session *session);
void stream__resume(struct exec_session *session, int stream);
void stream__tick(struct host *host, bool all);
/* A session exists now: streams that came before it (a client may be quicker than the leader) are attached. */
void stream__offer(struct host *host, const char *operation);

#endif
