/* The clients' streams of exec sessions: Connect calls. Callbacks run on gRPC queue threads and never block; see exec_private.h for who holds what. */
#include "exec_private.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>


static void link_unref(struct exec_link *link)
{
    if (atomic_fetch_sub(&link->refs, 1) != 1)
        return;
    rpc_call_unref(link->call);
    if (link->session)
        exec__unref(link->session);
    free(link->operation);
    free(link->secret);
    free(link);
}

/* Takes the link off the list of calls that have not told their secret; false if it was not there. */
static bool attempt_end(struct exec_link *link)
{
    bool found = false;
    pthread_mutex_lock(&link->host->lock);
    for (struct exec_link **at = (struct exec_link **)&link->host->attempts; *at; at = &(*at)->next) {
        if (*at != link)
            continue;
        *at = link->next;
        found = true;
        break;
    }
    pthread_mutex_unlock(&link->host->lock);
    return found;
}

static bool same_secret(const char *a, const char *b)
{
    size_t len = strlen(a);
    unsigned char diff = strlen(b) != len;
    for (size_t i = 0; i < len && !diff; i++)
        diff |= (unsigned char)(a[i] ^ b[i]);
    return !diff;
}

static void refuse(struct exec_link *link, enum status code, const char *text)
{
    struct error err = ERROR_INIT;
    error_set(&err, code, "%s", text);
    rpc_finish(link->call, NULL, code, &err);
}

/* Gives the link to the session's stream with this secret, once, or refuses it. Takes the session's reference. */
static void attach_to(struct exec_link *link, struct exec_session *session, const char *secret)
{
    int stream = -1;
    pthread_mutex_lock(&session->lock);
    for (int i = 0; i < EXEC_STREAMS && !str_empty(secret) && !session->finished; i++)
        if (session->streams[i].secret && !session->streams[i].used && same_secret(session->streams[i].secret, secret))
            stream = i;
    if (stream >= 0) {
        session->streams[stream].used = true;
        session->streams[stream].link = link; /* the attempt's reference goes over */
        link->stream = stream;
        link->session = session; /* so does exec__find's */
        Covey__V1__StreamFrame hello = COVEY__V1__STREAM_FRAME__INIT;
        if (rpc_try_send(link->call, &hello.base, NULL))
            session->streams[stream].lost = true;
        pthread_cond_broadcast(&session->changed);
    }
    pthread_mutex_unlock(&session->lock);
    exec__ring(session);
    if (stream >= 0)
        return;
    exec__unref(session);
    refuse(link, STATUS_PERMISSION_DENIED, "not authorized");
    link_unref(link);
}

/* The first frame: which session and stream. Whether reading may go on: also that of a refused call does, to its end, where its reference comes back. */
static bool attach(struct exec_link *link, const Covey__V1__StreamFrame *frame)
{
    struct host *host = link->host;
    if (!attempt_end(link))
        return true; /* it came too late and is being refused */
    struct exec_session *session = exec__find(host, frame->id);
    if (session) {
        attach_to(link, session, frame->secret);
        return true;
    }
    pthread_mutex_lock(&host->lock);
    link->operation = xstrdup(frame->id);
    link->secret = xstrdup(frame->secret);
    link->since_ms = time_mono_ms();
    link->next = (struct exec_link *)host->attempts;
    host->attempts = (struct exec_attempt *)link;
    pthread_mutex_unlock(&host->lock);
    stream__offer(host, frame->id); /* it may have been made just now */
    return false;                   /* stream__offer resumes */
}

void stream__offer(struct host *host, const char *operation)
{
    for (;;) {
        struct exec_link *link = NULL;
        struct exec_session *session = exec__find(host, operation);
        if (!session)
            return;
        pthread_mutex_lock(&host->lock);
        for (struct exec_link **at = (struct exec_link **)&host->attempts; *at && !link; at = *at ? &(*at)->next : at) {
            if (!(*at)->operation || strcmp((*at)->operation, operation) != 0)
                continue;
            link = *at;
            *at = link->next;
            break;
        }
        pthread_mutex_unlock(&host->lock);
        if (!link) {
            exec__unref(session);
            return;
        }
        atomic_fetch_add(&link->refs, 1);
        attach_to(link, session, link->secret);
        rpc_read_resume(link->call);
        link_unref(link);
    }
}

/* What is not understood is dropped, as the stream has no way to answer. */
static void control_command(struct exec_session *session, const char *text)
{
    struct exec_control control;
    if (!exec__control_parse(text, &control)) {
        log_debug("exec.control", "operation=%s text=\"not understood\"", session->operation);
    } else if (control.signal == 0) {
        session->width = control.width;
        session->height = control.height;
    } else if (session->signal_count < sizeof(session->signals) / sizeof(session->signals[0])) {
        session->signals[session->signal_count++] = control.signal;
    }
}

/* Whether reading may go on. */
static bool take_frame(struct exec_link *link, const Covey__V1__StreamFrame *frame)
{
    struct exec_session *session = link->session;
    bool more = true;
    pthread_mutex_lock(&session->lock);
    if (!session->finished && link->stream == EXEC_STDIN && !session->in_end) {
        buf_add(&session->in, frame->data.data ? (const void *)frame->data.data : "", frame->data.len);
        session->in_end = frame->end;
        more = session->in.len < EXEC_STDIN_QUEUE_MAX;
        session->in_paused = !more;
    } else if (!session->finished && link->stream == EXEC_CONTROL && !str_empty(frame->control)) {
        control_command(session, frame->control);
    }
    pthread_mutex_unlock(&session->lock);
    exec__ring(session);
    return more;
}

static bool on_message(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct exec_link *link = ud;
    if (!message) {
        struct exec_session *session = link->session;
        if (session) {
            pthread_mutex_lock(&session->lock);
            if (link->stream == EXEC_STDIN)
                session->in_end = true;
            if (link->stream == EXEC_CONTROL)
                session->streams[EXEC_CONTROL].lost = true;
            pthread_mutex_unlock(&session->lock);
            exec__ring(session);
        } else if (attempt_end(link)) {
            refuse(link, STATUS_PERMISSION_DENIED, "not authorized");
            link_unref(link);
        }
        link_unref(link);
        return false;
    }
    const Covey__V1__StreamFrame *frame = (const void *)message;
    if (!link->session)
        return attach(link, frame);
    return take_frame(link, frame);
}

static void on_done(struct rpc_call *call, void *ud)
{
    struct exec_link *link = ud;
    struct exec_session *session = link->session;
    if (session) {
        pthread_mutex_lock(&session->lock);
        session->streams[link->stream].lost = true;
        if (link->stream == EXEC_STDIN)
            session->in_end = true;
        pthread_cond_broadcast(&session->changed);
        pthread_mutex_unlock(&session->lock);
        exec__ring(session);
    } else if (attempt_end(link)) {
        link_unref(link);
    }
    rpc_finish(call, NULL, STATUS_CANCELLED, NULL); /* ignored when it ended already */
    rpc_read_resume(call);                          /* to the end, which gives on_message's reference back */
    link_unref(link);
}

int exec__connect(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    struct host *host = ud;
    struct exec_link *link = xcalloc(1, sizeof(*link));
    *link = (struct exec_link){.host = host, .call = call, .stream = -1, .since_ms = time_mono_ms()};
    atomic_init(&link->refs, 4); /* list of attempts, on_message, on_done, this function */
    pthread_mutex_lock(&host->lock);
    link->next = (struct exec_link *)host->attempts;
    host->attempts = (struct exec_attempt *)link;
    pthread_mutex_unlock(&host->lock);
    rpc_on_message(call, on_message, link);
    rpc_call_on_done(call, on_done, link);
    link_unref(link);
    return RPC_LATER;
}

int stream__send(struct exec_session *session, int stream, const void *data, size_t len, bool end)
{
    Covey__V1__StreamFrame frame = COVEY__V1__STREAM_FRAME__INIT;
    pthread_mutex_lock(&session->lock);
    struct exec_link *link = session->streams[stream].lost ? NULL : session->streams[stream].link;
    if (link)
        atomic_fetch_add(&link->refs, 1);
    pthread_mutex_unlock(&session->lock);
    if (!link)
        return STATUS_CANCELLED;
    frame.data.data = (uint8_t *)(uintptr_t)data;
    frame.data.len = len;
    frame.end = end;
    int rc = rpc_try_send(link->call, &frame.base, NULL);
    link_unref(link);
    return rc;
}

void stream__resume(struct exec_session *session, int stream)
{
    pthread_mutex_lock(&session->lock);
    struct exec_link *link = session->streams[stream].link;
    if (link)
        atomic_fetch_add(&link->refs, 1);
    pthread_mutex_unlock(&session->lock);
    if (!link)
        return;
    rpc_read_resume(link->call);
    link_unref(link);
}

void stream__finish_all(struct exec_session *session)
{
    for (int i = 0; i < EXEC_STREAMS; i++) {
        pthread_mutex_lock(&session->lock);
        struct exec_link *link = session->streams[i].link;
        session->streams[i].link = NULL;
        pthread_mutex_unlock(&session->lock);
        if (!link)
            continue;
        rpc_finish(link->call, NULL, STATUS_OK, NULL);
        rpc_read_resume(link->call); /* so that its end is told and its reference comes back */
        link_unref(link);
    }
}

/* Refuses calls that keep their secret for too long (all of them at the end). */
void stream__tick(struct host *host, bool all)
{
    for (;;) {
        struct exec_link *late = NULL;
        int64_t now = time_mono_ms();
        pthread_mutex_lock(&host->lock);
        for (struct exec_link **at = (struct exec_link **)&host->attempts; *at && !late; at = *at ? &(*at)->next : at) {
            if (!all && now - (*at)->since_ms < ((*at)->operation ? EXEC_EARLY_STREAM_MS : EXEC_FIRST_FRAME_MS))
                continue;
            late = *at;
            *at = late->next;
            break;
        }
        pthread_mutex_unlock(&host->lock);
        if (!late)
            return;
        if (late->operation)
            refuse(late, STATUS_PERMISSION_DENIED, "not authorized"); /* no such session */
        else
            refuse(late, STATUS_DEADLINE_EXCEEDED, "The stream did not say what it belongs to in time");
        link_unref(late);
    }
}
