/* See raft_transport.h. A frame goes straight into the peer's gRPC stream; only when that is full, or not open yet, it waits in a queue of ours, which
 * one thread empties. That thread also opens streams, since finding a channel may take locks of others.
 *
 * What a peer has taken is known from RaftAck messages, one for each ACK_EVERY_BYTES received: a snapshot is paced by it, so that heartbeats never
 * wait behind more than a few chunks, whatever gRPC and the kernel buffer. */
#include "raft_transport.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { REFUSAL_LOG_MS = 60000, REFUSAL_TEXT_SIZE = 256 };

enum {
    ACK_EVERY_BYTES = 256 << 10,
    REOPEN_MS = 200,
    RETRY_MS = 5,             /* a full stream is tried again */
    PEERS_MAX = 4096,
    CLOSE_TIMEOUT_MS = 10000, /* streams end soon after they are cancelled */
};

static const char *const service = "covey.internal.v1.Raft";

struct queued { struct queued *next; size_t len; uint8_t data[]; };

struct stream { /* one call to a peer; freed when its reader and its end have been seen */
    struct raft_transport *transport;
    uint64_t peer;
    struct rpc_call *call;
    int refs; /* under transport->mutex */
    uint64_t sent, acked;
};

struct peer {
    uint64_t id;
    struct stream *stream; /* NULL: none */
    bool wanted, opening, flushing, reset;
    int64_t reopen_at_ms;
    struct queued *head, **tail;
    size_t bytes;
};

struct raft_transport {
    struct raft_transport_config config;
    char *cluster_id, *address;
    pthread_mutex_t mutex; /* everything below */
    pthread_cond_t cond;   /* for the thread, and for destroy (streams) */
    pthread_t thread;
    bool stop;
    struct peer **peers;
    size_t peer_count, streams;
};

/* The transport that serves incoming streams. Read-locked while a frame is handed on. */
static pthread_rwlock_t current_lock = PTHREAD_RWLOCK_INITIALIZER;
static struct raft_transport *current;
static uint64_t current_generation;

/* ---- outgoing ---- */

static struct peer *peer_find(struct raft_transport *t, uint64_t id)
{
    for (size_t i = 0; i < t->peer_count; i++) {
        if (t->peers[i]->id == id) {
            return t->peers[i];
        }
    }
    return NULL;
}

static struct peer *peer_get(struct raft_transport *t, uint64_t id)
{
    struct peer *peer = peer_find(t, id);
    if (peer == NULL && t->peer_count < PEERS_MAX) {
        peer = xcalloc(1, sizeof *peer);
        peer->id = id;
        peer->tail = &peer->head;
        t->peers = xrealloc(t->peers, (t->peer_count + 1) * sizeof(struct peer *));
        t->peers[t->peer_count++] = peer;
    }
    return peer;
}

static void queue_clear(struct peer *peer)
{
    while (peer->head != NULL) {
        struct queued *q = peer->head;
        peer->head = q->next;
        free(q);
    }
    peer->tail = &peer->head;
    peer->bytes = 0;
}

static void stream_unref(struct stream *stream)
{
    struct raft_transport *t = stream->transport;
    pthread_mutex_lock(&t->mutex);
    bool last = --stream->refs == 0;
    if (last) {
        t->streams--;
        pthread_cond_broadcast(&t->cond);
    }
    pthread_mutex_unlock(&t->mutex);
    if (last) {
        free(stream);
    }
}

/* [CQ] The stream broke or was closed: what waits is stale by the time it reopens. */
static void stream_done(struct rpc_call *call, void *ud)
{
    struct stream *stream = ud;
    struct raft_transport *t = stream->transport;
    pthread_mutex_lock(&t->mutex);
    struct peer *peer = peer_find(t, stream->peer);
    if (peer != NULL && peer->stream == stream) {
        peer->stream = NULL;
        peer->wanted = false;
        peer->reopen_at_ms = time_mono_ms() + REOPEN_MS;
        queue_clear(peer);
    }
    stream->call = NULL;
    pthread_mutex_unlock(&t->mutex);
    rpc_call_unref(call);
    stream_unref(stream);
}

/* [CQ] An acknowledgement. */
static bool stream_message(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct stream *stream = ud;
    if (message == NULL) {
        stream_unref(stream);
        return true;
    }
    pthread_mutex_lock(&stream->transport->mutex);
    stream->acked += ACK_EVERY_BYTES;
    if (stream->acked > stream->sent) { /* the rest below one unit is never acknowledged */
        stream->acked = stream->sent;
    }
    pthread_mutex_unlock(&stream->transport->mutex);
    return true;
}

static struct rpc_call *call_open(struct raft_transport *t, uint64_t id)
{
    char member[24], epoch[24];
    struct error err = ERROR_INIT;
    struct rpc_channel *channel = t->config.channel(t->config.ud, id);
    if (channel == NULL) {
        return NULL;
    }
    snprintf(member, sizeof member, "%llu", (unsigned long long)t->config.id);
    snprintf(epoch, sizeof epoch, "%llu", (unsigned long long)t->config.epoch);
    const char *const metadata[] = {"covey-cluster-id", t->cluster_id, "covey-epoch", epoch, "covey-member-id", member,
                                    t->address != NULL ? "covey-address" : NULL, t->address, NULL};
    struct rpc_options options = {.timeout_ms = -1, .metadata = metadata};
    struct rpc_call *call = rpc_open(channel, service, "Stream", NULL, &options, &err);
    rpc_channel_unref(channel);
    if (call == NULL) {
        log_error("raft.stream.open", "peer=%llu error=\"%s\"", (unsigned long long)id, err.text);
    }
    return call;
}

/* Called and returns locked. */
static void peer_open(struct raft_transport *t, struct peer *peer)
{
    peer->opening = true;
    peer->reset = false;
    pthread_mutex_unlock(&t->mutex);
    struct rpc_call *call = call_open(t, peer->id);
    struct stream *stream = NULL;
    if (call != NULL) {
        stream = xcalloc(1, sizeof *stream);
        stream->transport = t;
        stream->peer = peer->id;
        stream->call = rpc_call_ref(call);
        stream->refs = 2;
    }
    pthread_mutex_lock(&t->mutex);
    peer->opening = false;
    if (stream == NULL) { /* address unknown as yet */
        peer->wanted = false;
        peer->reopen_at_ms = time_mono_ms() + REOPEN_MS;
        queue_clear(peer);
        return;
    }
    peer->stream = stream;
    t->streams++;
    bool cancel = t->stop || peer->reset;
    pthread_mutex_unlock(&t->mutex);
    rpc_on_message(call, stream_message, stream);
    rpc_call_on_done(call, stream_done, stream); /* drops the stream's reference of the call */
    if (cancel) {
        rpc_cancel(call);
    }
    rpc_call_unref(call);
    pthread_mutex_lock(&t->mutex);
}

/* Called and returns locked. False: the stream is full, or there is none any more. */
static bool stream_send(struct raft_transport *t, struct peer *peer, const ProtobufCMessage *frame, size_t len)
{
    struct error err = ERROR_INIT;
    struct stream *stream = peer->stream;
    if (stream == NULL || stream->call == NULL) {
        return false;
    }
    struct rpc_call *call = rpc_call_ref(stream->call);
    peer->flushing = true; /* others queue behind */
    stream->sent += len;
    stream->refs++;
    pthread_mutex_unlock(&t->mutex);
    int rc = rpc_try_send(call, frame, &err);
    rpc_call_unref(call);
    pthread_mutex_lock(&t->mutex);
    peer->flushing = false;
    if (rc != STATUS_OK) {
        stream->sent -= len;
    }
    bool last = --stream->refs == 0;
    if (last) {
        t->streams--;
        pthread_cond_broadcast(&t->cond);
        free(stream);
    }
    return rc == STATUS_OK;
}

/* Called and returns locked. True: something waits still. */
static bool peer_flush(struct raft_transport *t, struct peer *peer)
{
    while (peer->head != NULL && peer->stream != NULL && !peer->flushing && !t->stop) {
        struct queued *q = peer->head;
        struct stream *stream = peer->stream;
        peer->head = q->next;
        if (peer->head == NULL) {
            peer->tail = &peer->head;
        }
        peer->flushing = true;
        pthread_mutex_unlock(&t->mutex);
        Covey__Internal__V1__RaftFrame *frame = covey__internal__v1__raft_frame__unpack(NULL, q->len, q->data);
        covey_assert(frame != NULL); /* we packed it */
        pthread_mutex_lock(&t->mutex);
        bool sent = peer->stream == stream && stream_send(t, peer, &frame->base, q->len);
        peer->flushing = false;
        pthread_mutex_unlock(&t->mutex);
        covey__internal__v1__raft_frame__free_unpacked(frame, NULL);
        pthread_mutex_lock(&t->mutex);
        if (!sent && peer->stream == stream) { /* full: back to the front */
            q->next = peer->head;
            if (peer->head == NULL) {
                peer->tail = &q->next;
            }
            peer->head = q;
            return true;
        }
        if (peer->bytes >= q->len && peer->stream == stream) {
            peer->bytes -= q->len;
        }
        free(q);
    }
    return peer->head != NULL && peer->stream != NULL;
}

static void wait_until(struct raft_transport *t, int64_t delay_ms)
{
    struct timespec at;
    time_deadline(&at, delay_ms);
    pthread_cond_timedwait(&t->cond, &t->mutex, &at);
}

static void *transport_thread(void *arg)
{
    struct raft_transport *t = arg;
    pthread_setname_np(pthread_self(), "raft-send");
    pthread_mutex_lock(&t->mutex);
    while (!t->stop) {
        bool busy = false, waiting = false;
        for (size_t i = 0; i < t->peer_count && !t->stop; i++) { /* the list only grows */
            struct peer *peer = t->peers[i];
            if (peer->wanted && peer->stream == NULL && time_mono_ms() >= peer->reopen_at_ms) {
                peer_open(t, peer);
            }
            busy |= peer_flush(t, peer);
            waiting |= peer->wanted && peer->stream == NULL;
        }
        if (t->stop) {
            break;
        }
        if (busy) {
            wait_until(t, RETRY_MS);
        } else if (waiting) {
            wait_until(t, REOPEN_MS / 4);
        } else {
            bool more = false;
            for (size_t i = 0; i < t->peer_count; i++) {
                more |= t->peers[i]->head != NULL || (t->peers[i]->wanted && t->peers[i]->stream == NULL);
            }
            if (!more) {
                pthread_cond_wait(&t->cond, &t->mutex);
            }
        }
    }
    pthread_mutex_unlock(&t->mutex);
    return NULL;
}

void raft_transport_send(struct raft_transport *t, uint64_t id, const Covey__Internal__V1__RaftFrame *frame)
{
    size_t len = covey__internal__v1__raft_frame__get_packed_size(frame);
    pthread_mutex_lock(&t->mutex);
    struct peer *peer = t->stop ? NULL : peer_get(t, id);
    if (peer == NULL || (peer->stream == NULL && time_mono_ms() < peer->reopen_at_ms)) {
        pthread_mutex_unlock(&t->mutex); /* dropped: Raft repeats what matters */
        return;
    }
    if (peer->stream != NULL && peer->head == NULL && !peer->flushing && stream_send(t, peer, &frame->base, len)) {
        if (peer->head != NULL) {
            pthread_cond_broadcast(&t->cond); /* queued by another thread meanwhile */
        }
        pthread_mutex_unlock(&t->mutex);
        return;
    }
    if (peer->bytes + len > RAFT_PEER_QUEUE_BYTES_MAX) {
        log_debug("raft.stream.full", "peer=%llu bytes=%zu", (unsigned long long)id, peer->bytes);
    } else {
        struct queued *q = xmalloc(sizeof *q + len);
        q->next = NULL;
        q->len = len;
        covey__internal__v1__raft_frame__pack(frame, q->data);
        *peer->tail = q;
        peer->tail = &q->next;
        peer->bytes += len;
        peer->wanted = true;
        pthread_cond_broadcast(&t->cond);
    }
    pthread_mutex_unlock(&t->mutex);
}

uint64_t raft_transport_queued(struct raft_transport *t, uint64_t id)
{
    pthread_mutex_lock(&t->mutex);
    struct peer *peer = peer_find(t, id);
    uint64_t bytes = 0;
    if (peer != NULL) {
        bytes = peer->bytes + (peer->stream != NULL ? peer->stream->sent - peer->stream->acked : 0);
    }
    pthread_mutex_unlock(&t->mutex);
    return bytes;
}

void raft_transport_reset(struct raft_transport *t, uint64_t id)
{
    struct rpc_call *call = NULL;
    pthread_mutex_lock(&t->mutex);
    struct peer *peer = peer_find(t, id);
    if (peer != NULL) {
        peer->reset = true; /* also for one that is being opened */
        if (peer->stream != NULL && peer->stream->call != NULL) {
            call = rpc_call_ref(peer->stream->call);
        }
    }
    pthread_mutex_unlock(&t->mutex);
    if (call != NULL) {
        rpc_cancel(call);
        rpc_call_unref(call);
    }
}

void raft_transport_moved(uint64_t peer)
{
    pthread_rwlock_rdlock(&current_lock);
    if (current != NULL) {
        raft_transport_reset(current, peer);
    }
    pthread_rwlock_unlock(&current_lock);
}

/* ---- incoming ---- */

struct inbound { uint64_t peer, generation, received; };

/* [CQ] */
static bool inbound_message(struct rpc_call *call, const ProtobufCMessage *message, void *ud)
{
    struct inbound *inbound = ud;
    struct error err = ERROR_INIT;
    if (message == NULL) {
        pthread_rwlock_rdlock(&current_lock);
        if (current != NULL && current_generation == inbound->generation && current->config.lost != NULL) {
            current->config.lost(current->config.ud, inbound->peer);
        }
        pthread_rwlock_unlock(&current_lock);
        rpc_finish(call, NULL, STATUS_OK, NULL);
        rpc_call_unref(call);
        free(inbound);
        return true;
    }
    pthread_rwlock_rdlock(&current_lock);
    bool alive = current != NULL && current_generation == inbound->generation;
    if (alive) {
        current->config.receive(current->config.ud, inbound->peer, (const Covey__Internal__V1__RaftFrame *)message);
    }
    pthread_rwlock_unlock(&current_lock);
    if (!alive) {
        error_set(&err, STATUS_UNAVAILABLE, "the database is not running");
        rpc_finish(call, NULL, err.code, &err);
        return true;
    }
    inbound->received += protobuf_c_message_get_packed_size(message);
    while (inbound->received >= ACK_EVERY_BYTES) {
        Covey__Internal__V1__RaftAck ack = COVEY__INTERNAL__V1__RAFT_ACK__INIT;
        inbound->received -= ACK_EVERY_BYTES;
        if (rpc_try_send(call, &ack.base, &err) != STATUS_OK) {
            log_warn("raft.stream.ack", "peer=%llu error=\"%s\"", (unsigned long long)inbound->peer, err.text);
            rpc_finish(call, NULL, err.code, &err); /* a lost acknowledgement would never be made up for: start anew */
            return true;
        }
    }
    return true;
}

static int metadata_number(const struct rpc_call *call, const char *key, uint64_t *out, struct error *err)
{
    const char *text = rpc_metadata(call, key);
    int64_t number;
    if (text == NULL || parse_i64(text, 0, INT64_MAX, &number) != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "raft stream: metadata %s must be a number", key);
    }
    *out = (uint64_t)number;
    return STATUS_OK;
}

/* Who may stream: a member of this cluster, in this epoch, speaking for itself. Called with current_lock held. */
static int inbound_check(struct rpc_call *call, uint64_t *peer, struct error *err)
{
    uint64_t epoch;
    const char *cluster = rpc_metadata(call, "covey-cluster-id");
    if (current == NULL) {
        return error_set(err, STATUS_UNAVAILABLE, "the database is not running");
    }
    int rc = metadata_number(call, "covey-member-id", peer, err);
    if (rc == STATUS_OK) {
        rc = metadata_number(call, "covey-epoch", &epoch, err);
    }
    if (rc != STATUS_OK) {
        return rc;
    }
    if (!str_eq(cluster, current->cluster_id) || epoch != current->config.epoch) {
        return error_set(err, STATUS_FAILED_PRECONDITION, "raft stream: cluster %s epoch %llu is not this member's cluster and epoch",
                         cluster != NULL ? cluster : "(none)", (unsigned long long)epoch);
    }
    if (*peer == 0 || *peer == current->config.id || !current->config.is_peer(current->config.ud, rpc_caller(call), *peer)) {
        return error_set(err, STATUS_PERMISSION_DENIED, "raft stream: the caller is not member %llu", (unsigned long long)*peer);
    }
    return STATUS_OK;
}

/* A member that is refused comes again several times a second, for as long as it lives. */
static void log_refusal(uint64_t peer, const char *text)
{
    static struct {
        pthread_mutex_t lock;
        uint64_t peer;
        int64_t until_ms;
        char text[REFUSAL_TEXT_SIZE];
    } last = {.lock = PTHREAD_MUTEX_INITIALIZER};
    int64_t now = time_mono_ms();
    pthread_mutex_lock(&last.lock);
    bool again = now < last.until_ms && peer == last.peer && strncmp(text, last.text, sizeof last.text - 1) == 0;
    if (!again) {
        last.peer = peer;
        last.until_ms = now + REFUSAL_LOG_MS;
        snprintf(last.text, sizeof last.text, "%.*s", REFUSAL_TEXT_SIZE - 1, text);
    }
    pthread_mutex_unlock(&last.lock);
    if (!again) {
        log_warn("raft.stream.refused", "peer=%llu error=\"%s\"", (unsigned long long)peer, text);
    }
}

static int handle_stream(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)
{
    uint64_t peer = 0;
    pthread_rwlock_rdlock(&current_lock);
    int rc = inbound_check(call, &peer, err);
    uint64_t generation = current_generation;
    struct raft_transport_config config = current != NULL ? current->config : (struct raft_transport_config){0}; /* for `located` alone */
    pthread_rwlock_unlock(&current_lock);
    if (rc != STATUS_OK) {
        log_refusal(peer, err->text);
        return rc;
    }
    const char *address = rpc_metadata(call, "covey-address");
    if (address != NULL && config.located != NULL) {
        config.located(config.ud, peer, address);
    }
    struct inbound *inbound = xcalloc(1, sizeof *inbound);
    inbound->peer = peer;
    inbound->generation = generation;
    rpc_on_message(call, inbound_message, inbound);
    return RPC_LATER;
}

static void bind_once(void)
{
    static const struct rpc_binding bindings[] = {{"Stream", handle_stream}};
    rpc_bind(service, bindings, 1, NULL);
}

void raft_transport_bind(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, bind_once);
}

/* ---- life ---- */

struct raft_transport *raft_transport_create(const struct raft_transport_config *config)
{
    struct raft_transport *t = xcalloc(1, sizeof *t);
    pthread_condattr_t attr;
    raft_transport_bind();
    t->config = *config;
    t->cluster_id = xstrdup(config->cluster_id);
    t->config.cluster_id = t->cluster_id;
    t->address = config->address != NULL ? xstrdup(config->address) : NULL;
    t->config.address = t->address;
    pthread_mutex_init(&t->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->cond, &attr);
    pthread_condattr_destroy(&attr);
    pthread_rwlock_wrlock(&current_lock);
    covey_assert(current == NULL); /* one at a time */
    current = t;
    current_generation++;
    pthread_rwlock_unlock(&current_lock);
    if (pthread_create(&t->thread, NULL, transport_thread, t) != 0) {
        core_oom();
    }
    return t;
}

void raft_transport_destroy(struct raft_transport *t)
{
    if (t == NULL) {
        return;
    }
    pthread_rwlock_wrlock(&current_lock);
    current = NULL;
    pthread_rwlock_unlock(&current_lock);
    pthread_mutex_lock(&t->mutex);
    t->stop = true;
    pthread_cond_broadcast(&t->cond);
    pthread_mutex_unlock(&t->mutex);
    pthread_join(t->thread, NULL);
    for (size_t i = 0; i < t->peer_count; i++) {
        raft_transport_reset(t, t->peers[i]->id);
    }
    int64_t until = time_mono_ms() + CLOSE_TIMEOUT_MS;
    pthread_mutex_lock(&t->mutex);
    while (t->streams > 0 && time_mono_ms() < until) {
        wait_until(t, CLOSE_TIMEOUT_MS / 100);
    }
    size_t left = t->streams;
    pthread_mutex_unlock(&t->mutex);
    if (left > 0) { /* their callbacks may still come: memory must stay */
        log_error("raft.transport.close", "streams=%zu", left);
        return;
    }
    for (size_t i = 0; i < t->peer_count; i++) {
        queue_clear(t->peers[i]);
        free(t->peers[i]);
    }
    free(t->peers);
    free(t->cluster_id);
    free(t->address);
    pthread_mutex_destroy(&t->mutex);
    pthread_cond_destroy(&t->cond);
    free(t);
}
