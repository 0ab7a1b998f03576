/* Raft frames over gRPC: one client stream per peer, reopened 200 ms after it breaks, with a bounded queue; and the service that receives them.
 * Thread: any. */
#ifndef COVEY_STORAGE_RAFT_TRANSPORT_H
#define COVEY_STORAGE_RAFT_TRANSPORT_H

#include "proto/rpc/rpc.h"
#include "raft_node.h"

struct raft_transport;

struct raft_transport_config {
    uint64_t id;            /* this member */
    const char *cluster_id; /* copied */
    uint64_t epoch;
    const char *address; /* where others reach this member, told to every peer; copied, NULL = not known */
    void *ud;
    /* A channel to the peer (a reference passes to the caller), NULL while its address is unknown. Any thread. */
    struct rpc_channel *(*channel)(void *ud, uint64_t peer);
    /* A frame arrived from a peer that is authenticated as that member. Any thread. */
    void (*receive)(void *ud, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame);
    /* A peer's stream to this member ended, perhaps because the peer died. Any thread; may be NULL. */
    void (*lost)(void *ud, uint64_t peer);
    /* Whether the caller (a member's certificate) may speak as `peer`. */
    bool (*is_peer)(void *ud, const struct caller *caller, uint64_t peer);
    /* An authenticated peer says where it is reached. Any thread; may be NULL. */
    void (*located)(void *ud, uint64_t peer, const char *address);
};

/* Binds the service covey.internal.v1.Raft on first use (once per process; only one transport lives at a time). */
struct raft_transport *raft_transport_create(const struct raft_transport_config *config);
void raft_transport_send(struct raft_transport *transport, uint64_t peer, const Covey__Internal__V1__RaftFrame *frame);
/* Bytes sent to the peer that it has not taken off its stream (acknowledged by RaftAck messages). */
uint64_t raft_transport_queued(struct raft_transport *transport, uint64_t peer);
/* Closes the stream to a peer (removed, or its address changed): the next send opens a new one. */
void raft_transport_reset(struct raft_transport *transport, uint64_t peer);
/* The same for the transport that lives at the moment, if there is one: the peer's address changed. Not from within a callback of the transport's but `located`. */
void raft_transport_moved(uint64_t peer);
void raft_transport_destroy(struct raft_transport *transport);
/* Must be called once before any server listens. */
void raft_transport_bind(void);

#endif
