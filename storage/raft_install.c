/* See raft_install.h. A lost chunk is found by its offset at the receiver, which then waits for the next transfer; the leader starts one when its
 * peer stays behind for RAFT_INSTALL_QUIET_MS after the last chunk (raft.md N8: sooner would send the same snapshot again and again). */
#include "raft_install.h"
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

void raft_install_init(struct raft_install *install, const struct raft_install_hooks *hooks)
{
    memset(install, 0, sizeof *install);
    install->hooks = *hooks;
}

static void *digest_new(void)
{
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    if (digest == NULL || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) != 1) {
        core_oom();
    }
    return digest;
}

static void in_reset(struct raft_install_in *in)
{
    raft_free(in->data);
    EVP_MD_CTX_free(in->digest);
    memset(in, 0, sizeof *in);
}

/* ---- outgoing ---- */

static struct raft_install_out *out_find(const struct raft_install *install, uint64_t peer)
{
    for (int i = 0; i < RAFT_INSTALL_PEERS_MAX; i++) {
        if (install->out[i].peer == peer) {
            return (struct raft_install_out *)&install->out[i];
        }
    }
    return NULL;
}

static void out_stop(struct raft_install *install, struct raft_install_out *out, int status)
{
    if (out->sending) {
        struct raft_io_send *request = out->request;
        raft_io_send_cb done = out->done;
        out->sending = false;
        out->moved_ms = install->hooks.now(install->hooks.ud);
        out->message = NULL;
        out->request = NULL;
        EVP_MD_CTX_free(out->digest);
        out->digest = NULL;
        if (done != NULL) {
            done(request, status); /* frees the message and its data */
        }
    }
}

static void out_free(struct raft_install *install, struct raft_install_out *out, int status)
{
    out_stop(install, out, status);
    memset(out, 0, sizeof *out);
}

/* A free slot, or the one that ended longest ago. */
static struct raft_install_out *out_slot(struct raft_install *install)
{
    struct raft_install_out *oldest = NULL;
    for (int i = 0; i < RAFT_INSTALL_PEERS_MAX; i++) {
        struct raft_install_out *out = &install->out[i];
        if (out->peer == 0) {
            return out;
        }
        if (!out->sending && (oldest == NULL || out->moved_ms < oldest->moved_ms)) {
            oldest = out;
        }
    }
    return oldest;
}

void raft_install_send(struct raft_install *install, const struct raft_message *message, uint64_t last_term, struct raft_io_send *request,
                       raft_io_send_cb done)
{
    uint64_t now = install->hooks.now(install->hooks.ud);
    const struct raft_install_snapshot *args = &message->install_snapshot;
    struct raft_install_out *out = out_find(install, message->server_id);
    const char *why = NULL;
    if (args->data.len == 0 || args->data.len % 8 != 0 || args->data.len > RAFT_WIRE_SNAPSHOT_BYTES_MAX) {
        log_error("raft.install.refused", "peer=%llu index=%llu bytes=%zu limit=%llu", message->server_id, args->last_index, args->data.len,
                  (unsigned long long)RAFT_WIRE_SNAPSHOT_BYTES_MAX);
        why = "size";
    } else if (out != NULL && out->sending) {
        why = "sending";
    } else if (out != NULL && out->index == args->last_index && now - out->moved_ms < RAFT_INSTALL_QUIET_MS) {
        why = "just sent";
    } else if (out == NULL && (out = out_slot(install)) == NULL) {
        why = "too many";
    }
    if (why != NULL) {
        log_debug("raft.install.skipped", "peer=%llu index=%llu reason=\"%s\"", message->server_id, args->last_index, why);
        if (done != NULL) {
            done(request, RAFT_BUSY);
        }
        return;
    }
    memset(out, 0, sizeof *out);
    out->peer = message->server_id;
    out->index = args->last_index;
    out->last_term = last_term;
    out->sending = true;
    out->moved_ms = now;
    out->message = message;
    out->request = request;
    out->done = done;
    out->digest = digest_new();
    log_info("raft.install.send", "peer=%llu index=%llu bytes=%zu", message->server_id, args->last_index, args->data.len);
}

static void out_send_chunk(struct raft_install *install, struct raft_install_out *out)
{
    const struct raft_install_snapshot *args = &out->message->install_snapshot;
    size_t len = args->data.len - out->offset;
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__InstallSnapshot body = COVEY__INTERNAL__V1__INSTALL_SNAPSHOT__INIT;
    Covey__Internal__V1__Server *servers = NULL, **pointers = NULL;
    uint8_t sha256[EVP_MAX_MD_SIZE];
    if (len > RAFT_SNAPSHOT_CHUNK_BYTES) {
        len = RAFT_SNAPSHOT_CHUNK_BYTES;
    }
    body.version = args->version;
    body.term = args->term;
    body.last_index = args->last_index;
    body.last_term = out->last_term;
    body.configuration_index = args->conf_index;
    body.offset = out->offset;
    body.size = args->data.len;
    body.data.data = (uint8_t *)args->data.base + out->offset;
    body.data.len = len;
    if (EVP_DigestUpdate(out->digest, body.data.data, len) != 1) {
        core_panic(__FILE__, __LINE__, "sha256 failed");
    }
    out->offset += len;
    if (out->offset == args->data.len) {
        if (EVP_DigestFinal_ex(out->digest, sha256, NULL) != 1) {
            core_panic(__FILE__, __LINE__, "sha256 failed");
        }
        body.sha256.data = sha256;
        body.sha256.len = RAFT_WIRE_SHA256_BYTES;
        servers = xcalloc(args->conf.n + 1, sizeof *servers);
        pointers = xcalloc(args->conf.n + 1, sizeof *pointers);
        for (unsigned i = 0; i < args->conf.n; i++) {
            covey__internal__v1__server__init(&servers[i]);
            servers[i].id = args->conf.servers[i].id;
            servers[i].address = args->conf.servers[i].address;
            servers[i].role = (uint32_t)args->conf.servers[i].role;
            pointers[i] = &servers[i];
        }
        body.n_configuration = args->conf.n;
        body.configuration = pointers;
    }
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_INSTALL_SNAPSHOT;
    frame.install_snapshot = &body;
    install->hooks.send(install->hooks.ud, out->peer, &frame);
    free(servers);
    free(pointers);
}

static void out_run(struct raft_install *install, struct raft_install_out *out, uint64_t now)
{
    for (int sent = 0; sent < RAFT_INSTALL_AHEAD_CHUNKS; sent++) {
        bool paced = install->hooks.queued == NULL;
        if (!paced) {
            uint64_t queued = install->hooks.queued(install->hooks.ud, out->peer);
            if (queued > (RAFT_INSTALL_AHEAD_CHUNKS - 1) * (uint64_t)RAFT_SNAPSHOT_CHUNK_BYTES) {
                break;
            }
        }
        out_send_chunk(install, out);
        out->moved_ms = now;
        if (out->offset == out->message->install_snapshot.data.len) {
            log_info("raft.install.sent", "peer=%llu index=%llu", (unsigned long long)out->peer, (unsigned long long)out->index);
            out_stop(install, out, 0);
            return;
        }
        if (paced) {
            break;
        }
    }
    if (now - out->moved_ms >= RAFT_INSTALL_STALL_MS) {
        log_warn("raft.install.stalled", "peer=%llu index=%llu offset=%llu", (unsigned long long)out->peer, (unsigned long long)out->index,
                 (unsigned long long)out->offset);
        out_free(install, out, RAFT_NOCONNECTION);
    }
}

bool raft_install_run(struct raft_install *install)
{
    uint64_t now = install->hooks.now(install->hooks.ud);
    bool sending = false;
    for (int i = 0; i < RAFT_INSTALL_PEERS_MAX; i++) {
        struct raft_install_out *out = &install->out[i];
        if (out->peer != 0 && out->sending) {
            out_run(install, out, now);
        } else if (out->peer != 0 && now - out->moved_ms >= RAFT_INSTALL_QUIET_MS) {
            out_free(install, out, 0);
        }
        sending |= out->sending;
    }
    struct raft_install_in *in = &install->in;
    if (in->data != NULL && now - in->moved_ms >= RAFT_INSTALL_STALL_MS) {
        log_warn("raft.install.abandoned", "peer=%llu index=%llu offset=%llu", (unsigned long long)in->peer,
                 (unsigned long long)in->last_index, (unsigned long long)in->offset);
        in_reset(in);
    }
    return sending;
}

bool raft_install_busy(const struct raft_install *install, uint64_t peer)
{
    return out_find(install, peer) != NULL;
}

void raft_install_confirmed(struct raft_install *install, uint64_t peer, uint64_t index)
{
    struct raft_install_out *out = out_find(install, peer);
    if (out != NULL && index >= out->index) {
        out_free(install, out, 0);
    }
}

/* ---- incoming ---- */

void raft_install_abort(struct raft_install *install)
{
    for (int i = 0; i < RAFT_INSTALL_PEERS_MAX; i++) {
        out_free(install, &install->out[i], RAFT_CANCELED);
    }
}

void raft_install_close(struct raft_install *install)
{
    raft_install_abort(install);
    in_reset(&install->in);
}

/* Starts over at offset 0, else the chunk must continue what is there. */
static bool in_accept(struct raft_install_in *in, uint64_t peer, const struct raft_wire_chunk *chunk)
{
    if (chunk->offset == 0) {
        in_reset(in);
        in->data = raft_malloc(chunk->size);
        if (in->data == NULL) {
            core_oom();
        }
        in->digest = digest_new();
        in->peer = peer;
        in->term = chunk->term;
        in->last_index = chunk->last_index;
        in->last_term = chunk->last_term;
        in->size = chunk->size;
        return true;
    }
    return in->data != NULL && in->peer == peer && in->term == chunk->term && in->last_index == chunk->last_index &&
           in->last_term == chunk->last_term && in->size == chunk->size && in->offset == chunk->offset;
}

bool raft_install_receive(struct raft_install *install, uint64_t peer, struct raft_wire_chunk *chunk, struct raft_message *message)
{
    struct raft_install_in *in = &install->in;
    uint8_t sha256[EVP_MAX_MD_SIZE];
    if (!in_accept(in, peer, chunk)) {
        if (in->data != NULL) {
            log_warn("raft.install.gap", "peer=%llu index=%llu expected=%llu got=%llu", (unsigned long long)peer,
                     (unsigned long long)chunk->last_index, (unsigned long long)in->offset, (unsigned long long)chunk->offset);
        }
        in_reset(in);
        return false;
    }
    memcpy(in->data + in->offset, chunk->data, chunk->len);
    if (EVP_DigestUpdate(in->digest, chunk->data, chunk->len) != 1) {
        core_panic(__FILE__, __LINE__, "sha256 failed");
    }
    in->offset += chunk->len;
    in->moved_ms = install->hooks.now(install->hooks.ud);
    if (!chunk->last) {
        return false;
    }
    if (EVP_DigestFinal_ex(in->digest, sha256, NULL) != 1) {
        core_panic(__FILE__, __LINE__, "sha256 failed");
    }
    if (memcmp(sha256, chunk->sha256, RAFT_WIRE_SHA256_BYTES) != 0) {
        log_error("raft.install.corrupt", "peer=%llu index=%llu", (unsigned long long)peer, (unsigned long long)chunk->last_index);
        in_reset(in);
        return false;
    }
    memset(message, 0, sizeof *message);
    message->type = RAFT_INSTALL_SNAPSHOT;
    message->server_id = peer;
    message->install_snapshot.version = (unsigned char)chunk->version;
    message->install_snapshot.term = chunk->term;
    message->install_snapshot.last_index = chunk->last_index;
    message->install_snapshot.last_term = chunk->last_term;
    message->install_snapshot.conf_index = chunk->configuration_index;
    message->install_snapshot.conf = chunk->configuration; /* passes on */
    raft_configuration_init(&chunk->configuration);
    message->install_snapshot.data.base = in->data;
    message->install_snapshot.data.len = in->size;
    in->data = NULL;
    in_reset(in);
    return true;
}
