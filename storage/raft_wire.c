/* See raft_wire.h. Memory that passes to libraft comes from raft_malloc. */
#include "raft_wire.h"
#include <endian.h>
#include <stdlib.h>
#include <string.h>

typedef Covey__Internal__V1__RaftFrame frame_t;

void raft_wire_out_clear(struct raft_wire_out *out)
{
    free(out->entries);
    free(out->entry_pointers);
    out->entries = NULL;
    out->entry_pointers = NULL;
}

static void out_append_entries(struct raft_wire_out *out, const struct raft_append_entries *args)
{
    Covey__Internal__V1__AppendEntries *body = &out->body.append_entries;
    covey__internal__v1__append_entries__init(body);
    body->version = args->version;
    body->term = args->term;
    body->prev_log_index = args->prev_log_index;
    body->prev_log_term = args->prev_log_term;
    body->leader_commit = args->leader_commit;
    if (args->n_entries > 0) {
        out->entries = xcalloc(args->n_entries, sizeof *out->entries);
        out->entry_pointers = xcalloc(args->n_entries, sizeof *out->entry_pointers);
    }
    for (unsigned i = 0; i < args->n_entries; i++) {
        covey__internal__v1__entry__init(&out->entries[i]);
        out->entries[i].term = args->entries[i].term;
        out->entries[i].type = (uint32_t)args->entries[i].type;
        out->entries[i].data.data = args->entries[i].buf.base;
        out->entries[i].data.len = args->entries[i].buf.len;
        out->entry_pointers[i] = &out->entries[i];
    }
    body->n_entries = args->n_entries;
    body->entries = out->entry_pointers;
    out->frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES;
    out->frame.append_entries = body;
}

static void out_vote(struct raft_wire_out *out, const struct raft_request_vote *args)
{
    Covey__Internal__V1__RequestVote *body = &out->body.request_vote;
    covey__internal__v1__request_vote__init(body);
    body->version = args->version;
    body->term = args->term;
    body->candidate_id = args->candidate_id;
    body->last_log_index = args->last_log_index;
    body->last_log_term = args->last_log_term;
    body->disrupt_leader = args->disrupt_leader;
    body->pre_vote = args->pre_vote;
    out->frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_REQUEST_VOTE;
    out->frame.request_vote = body;
}

static void out_vote_result(struct raft_wire_out *out, const struct raft_request_vote_result *args)
{
    Covey__Internal__V1__RequestVoteResult *body = &out->body.request_vote_result;
    covey__internal__v1__request_vote_result__init(body);
    body->version = args->version;
    body->term = args->term;
    body->vote_granted = args->vote_granted;
    body->pre_vote = args->pre_vote;
    body->features = args->features;
    body->capacity = args->capacity;
    out->frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_REQUEST_VOTE_RESULT;
    out->frame.request_vote_result = body;
}

static void out_append_result(struct raft_wire_out *out, const struct raft_append_entries_result *args)
{
    Covey__Internal__V1__AppendEntriesResult *body = &out->body.append_entries_result;
    covey__internal__v1__append_entries_result__init(body);
    body->version = args->version;
    body->term = args->term;
    body->rejected = args->rejected;
    body->last_log_index = args->last_log_index;
    body->features = args->features;
    body->capacity = args->capacity;
    out->frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES_RESULT;
    out->frame.append_entries_result = body;
}

static void out_timeout_now(struct raft_wire_out *out, const struct raft_timeout_now *args)
{
    Covey__Internal__V1__TimeoutNow *body = &out->body.timeout_now;
    covey__internal__v1__timeout_now__init(body);
    body->version = args->version;
    body->term = args->term;
    body->last_log_index = args->last_log_index;
    body->last_log_term = args->last_log_term;
    out->frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_TIMEOUT_NOW;
    out->frame.timeout_now = body;
}

void raft_wire_out_set(struct raft_wire_out *out, const struct raft_message *message)
{
    memset(out, 0, sizeof *out);
    covey__internal__v1__raft_frame__init(&out->frame);
    switch (message->type) {
    case RAFT_REQUEST_VOTE: out_vote(out, &message->request_vote); break;
    case RAFT_REQUEST_VOTE_RESULT: out_vote_result(out, &message->request_vote_result); break;
    case RAFT_APPEND_ENTRIES: out_append_entries(out, &message->append_entries); break;
    case RAFT_APPEND_ENTRIES_RESULT: out_append_result(out, &message->append_entries_result); break;
    case RAFT_TIMEOUT_NOW: out_timeout_now(out, &message->timeout_now); break;
    case RAFT_INSTALL_SNAPSHOT: /* fallthrough: travels in chunks */
    default: core_panic(__FILE__, __LINE__, "message type %d has no frame", (int)message->type);
    }
}

/* ---- incoming ---- */

static int bad(struct error *err, const char *field, const char *rule)
{
    return error_set(err, STATUS_INVALID_ARGUMENT, "raft frame: %s %s", field, rule);
}

static bool in_range(uint64_t value)
{
    return value < RAFT_WIRE_NUMBER_MAX;
}

/* Whether libraft can decode these bytes: it reads a server's numbers without looking where the buffer ends. Its layout: format u8, count u64; for each
 * server id u64, address with its NUL, role u8; padding. */
static bool configuration_is_whole(const uint8_t *data, size_t len)
{
    enum { FORMAT = 1, HEADER_BYTES = 1 + 8 };
    uint64_t count;
    if (len < HEADER_BYTES || data[0] != FORMAT) {
        return false;
    }
    memcpy(&count, data + 1, sizeof count);
    count = le64toh(count);
    if (count > RAFT_WIRE_SERVERS_MAX) {
        return false;
    }
    size_t at = HEADER_BYTES;
    for (uint64_t i = 0; i < count; i++) {
        if (len - at < sizeof(raft_id)) {
            return false;
        }
        at += sizeof(raft_id);
        const uint8_t *end = memchr(data + at, '\0', len - at);
        if (end == NULL || end + 1 == data + len || end[1] > RAFT_SPARE) {
            return false;
        }
        at = (size_t)(end - data) + 2;
    }
    return true;
}

static int check_entries(const Covey__Internal__V1__AppendEntries *body, size_t *bytes, struct error *err)
{
    if (body->n_entries > RAFT_WIRE_ENTRIES_MAX) {
        return bad(err, "entries", "are too many");
    }
    *bytes = 0;
    for (size_t i = 0; i < body->n_entries; i++) {
        const Covey__Internal__V1__Entry *entry = body->entries[i];
        if (entry->type != RAFT_COMMAND && entry->type != RAFT_BARRIER && entry->type != RAFT_CHANGE) {
            return bad(err, "entries.type", "is unknown");
        }
        if (entry->term == 0 || entry->term > body->term || (i > 0 && entry->term < body->entries[i - 1]->term)) {
            return bad(err, "entries.term", "must be positive, in order and not beyond the message's");
        }
        if (entry->data.len == 0 || entry->data.len % 8 != 0 || entry->data.len > RAFT_ENTRY_BYTES_MAX) {
            return bad(err, "entries.data", "must have a length that is a positive multiple of 8 within the limit"); /* R5 */
        }
        if (entry->type == RAFT_CHANGE) {
            struct raft_buffer buf = {entry->data.data, entry->data.len};
            struct raft_configuration configuration;
            if (i > 0) {
                return bad(err, "entries", "may have a configuration change only at the front"); /* N1 */
            }
            raft_configuration_init(&configuration);
            if (!configuration_is_whole(entry->data.data, entry->data.len) || raft_configuration_decode(&buf, &configuration) != 0) {
                return bad(err, "entries.data", "is not a configuration");
            }
            raft_configuration_close(&configuration);
        }
        *bytes += entry->data.len;
    }
    return STATUS_OK;
}

static int in_append_entries(struct raft_wire_in *in, const Covey__Internal__V1__AppendEntries *body, struct error *err)
{
    struct raft_append_entries *args = &in->message.append_entries;
    size_t bytes = 0;
    int rc = check_entries(body, &bytes, err);
    if (rc != STATUS_OK) {
        return rc;
    }
    if (body->term == 0 || !in_range(body->term) || !in_range(body->prev_log_index) || !in_range(body->leader_commit)) {
        return bad(err, "append_entries", "has a term or index out of range");
    }
    if ((body->prev_log_index == 0) != (body->prev_log_term == 0) || body->prev_log_term > body->term) {
        return bad(err, "prev_log_term", "does not fit prev_log_index");
    }
    in->message.type = RAFT_APPEND_ENTRIES;
    args->version = (unsigned char)body->version;
    args->term = body->term;
    args->prev_log_index = body->prev_log_index;
    args->prev_log_term = body->prev_log_term;
    args->leader_commit = body->leader_commit;
    if (body->n_entries > 0) {
        uint8_t *batch = raft_malloc(bytes);
        args->entries = raft_calloc(body->n_entries, sizeof *args->entries);
        if (batch == NULL || args->entries == NULL) {
            core_oom();
        }
        args->n_entries = (unsigned)body->n_entries;
        for (size_t i = 0, offset = 0; i < body->n_entries; i++) {
            const Covey__Internal__V1__Entry *entry = body->entries[i];
            memcpy(batch + offset, entry->data.data, entry->data.len);
            args->entries[i].term = entry->term;
            args->entries[i].type = (enum raft_entry_type)entry->type;
            args->entries[i].buf.base = batch + offset;
            args->entries[i].buf.len = entry->data.len;
            args->entries[i].batch = batch;
            offset += entry->data.len;
        }
    }
    in->bytes += bytes;
    return STATUS_OK;
}

static int in_votes(struct raft_wire_in *in, uint64_t peer, const frame_t *frame, struct error *err)
{
    if (frame->kind_case == COVEY__INTERNAL__V1__RAFT_FRAME__KIND_REQUEST_VOTE) {
        const Covey__Internal__V1__RequestVote *body = frame->request_vote;
        struct raft_request_vote *args = &in->message.request_vote;
        if (body->term == 0 || !in_range(body->term) || !in_range(body->last_log_index) || !in_range(body->last_log_term)) {
            return bad(err, "request_vote", "has a term or index out of range");
        }
        if (body->candidate_id != peer) {
            return bad(err, "candidate_id", "is not the sender");
        }
        in->message.type = RAFT_REQUEST_VOTE;
        args->version = (unsigned char)body->version;
        args->term = body->term;
        args->candidate_id = body->candidate_id;
        args->last_log_index = body->last_log_index;
        args->last_log_term = body->last_log_term;
        args->disrupt_leader = body->disrupt_leader;
        args->pre_vote = body->pre_vote;
        return STATUS_OK;
    }
    const Covey__Internal__V1__RequestVoteResult *body = frame->request_vote_result;
    struct raft_request_vote_result *args = &in->message.request_vote_result;
    if (body->version < 2) {
        return bad(err, "request_vote_result.version", "must be at least 2"); /* older: a pre-vote would count as a vote */
    }
    if (!in_range(body->term) || body->features > UINT16_MAX || body->capacity > UINT16_MAX) {
        return bad(err, "request_vote_result", "has a number out of range");
    }
    in->message.type = RAFT_REQUEST_VOTE_RESULT;
    args->version = (unsigned char)body->version;
    args->term = body->term;
    args->vote_granted = body->vote_granted;
    args->pre_vote = body->pre_vote;
    args->features = (unsigned short)body->features;
    args->capacity = (unsigned short)body->capacity;
    return STATUS_OK;
}

static int in_append_result(struct raft_wire_in *in, const Covey__Internal__V1__AppendEntriesResult *body, struct error *err)
{
    struct raft_append_entries_result *args = &in->message.append_entries_result;
    if (!in_range(body->term) || !in_range(body->rejected) || !in_range(body->last_log_index) || body->features > UINT16_MAX ||
        body->capacity > UINT16_MAX) {
        return bad(err, "append_entries_result", "has a number out of range");
    }
    if (body->rejected > 0 && body->last_log_index >= body->rejected) {
        return bad(err, "last_log_index", "must be below the rejected index");
    }
    in->message.type = RAFT_APPEND_ENTRIES_RESULT;
    args->version = (unsigned char)body->version;
    args->term = body->term;
    args->rejected = body->rejected;
    args->last_log_index = body->last_log_index;
    args->features = (unsigned short)body->features;
    args->capacity = (unsigned short)body->capacity;
    return STATUS_OK;
}

static int in_timeout_now(struct raft_wire_in *in, const Covey__Internal__V1__TimeoutNow *body, struct error *err)
{
    struct raft_timeout_now *args = &in->message.timeout_now;
    if (body->term == 0 || !in_range(body->term) || !in_range(body->last_log_index) || !in_range(body->last_log_term)) {
        return bad(err, "timeout_now", "has a term or index out of range");
    }
    in->message.type = RAFT_TIMEOUT_NOW;
    args->version = (unsigned char)body->version;
    args->term = body->term;
    args->last_log_index = body->last_log_index;
    args->last_log_term = body->last_log_term;
    return STATUS_OK;
}

static int in_configuration(struct raft_configuration *out, const Covey__Internal__V1__InstallSnapshot *body, struct error *err)
{
    raft_configuration_init(out);
    for (size_t i = 0; i < body->n_configuration; i++) {
        const Covey__Internal__V1__Server *server = body->configuration[i];
        if (server->id == 0 || !in_range(server->id) || server->role > RAFT_SPARE || str_empty(server->address) ||
            raft_configuration_add(out, server->id, server->address, (int)server->role) != 0) {
            raft_configuration_close(out);
            return bad(err, "configuration", "has a server with a wrong or repeated id, address or role");
        }
    }
    return STATUS_OK;
}

static int in_chunk(struct raft_wire_in *in, const Covey__Internal__V1__InstallSnapshot *body, struct error *err)
{
    struct raft_wire_chunk *chunk = &in->chunk;
    if (body->term == 0 || !in_range(body->term) || body->last_index == 0 || !in_range(body->last_index) || body->last_term == 0 ||
        body->last_term > body->term || body->configuration_index == 0 || body->configuration_index > body->last_index) {
        return bad(err, "install_snapshot", "has a term or index out of range");
    }
    if (body->size == 0 || body->size % 8 != 0 || body->size > RAFT_WIRE_SNAPSHOT_BYTES_MAX) {
        return bad(err, "size", "must be a positive multiple of 8 within the limit");
    }
    if (body->data.len == 0 || body->data.len > RAFT_SNAPSHOT_CHUNK_BYTES || body->offset >= body->size ||
        body->data.len > body->size - body->offset) {
        return bad(err, "data", "does not fit offset and size");
    }
    bool last = body->offset + body->data.len == body->size;
    if (last && (body->sha256.len != RAFT_WIRE_SHA256_BYTES || body->n_configuration == 0 ||
                 body->n_configuration > RAFT_WIRE_SERVERS_MAX)) {
        return bad(err, "the last chunk", "must carry sha256 and configuration");
    }
    if (last) {
        int rc = in_configuration(&chunk->configuration, body, err);
        if (rc != STATUS_OK) {
            return rc;
        }
        memcpy(chunk->sha256, body->sha256.data, RAFT_WIRE_SHA256_BYTES);
    }
    in->kind = RAFT_WIRE_CHUNK;
    chunk->version = body->version;
    chunk->term = body->term;
    chunk->last_index = body->last_index;
    chunk->last_term = body->last_term;
    chunk->configuration_index = body->configuration_index;
    chunk->offset = body->offset;
    chunk->size = body->size;
    chunk->last = last;
    chunk->len = body->data.len;
    chunk->data = xmalloc(chunk->len);
    memcpy(chunk->data, body->data.data, chunk->len);
    in->bytes += chunk->len;
    return STATUS_OK;
}

int raft_wire_in_set(struct raft_wire_in *in, uint64_t peer, const frame_t *frame, struct error *err)
{
    memset(in, 0, sizeof *in);
    in->bytes = sizeof *in;
    if (peer == 0 || !in_range(peer)) {
        return bad(err, "sender", "has an id out of range");
    }
    in->kind = RAFT_WIRE_MESSAGE;
    switch (frame->kind_case) {
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND_REQUEST_VOTE: /* fallthrough */
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND_REQUEST_VOTE_RESULT: in->message.server_id = peer; return in_votes(in, peer, frame, err);
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES:
        in->message.server_id = peer;
        return in_append_entries(in, frame->append_entries, err);
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES_RESULT:
        in->message.server_id = peer;
        return in_append_result(in, frame->append_entries_result, err);
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND_TIMEOUT_NOW:
        in->message.server_id = peer;
        return in_timeout_now(in, frame->timeout_now, err);
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND_INSTALL_SNAPSHOT: return in_chunk(in, frame->install_snapshot, err);
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND_READ_PROBE:
        in->kind = RAFT_WIRE_PROBE;
        in->probe.term = frame->read_probe->term;
        in->probe.round = frame->read_probe->round;
        return STATUS_OK;
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND_READ_PROBE_RESULT:
        in->kind = RAFT_WIRE_PROBE_RESULT;
        in->probe.term = frame->read_probe_result->term;
        in->probe.round = frame->read_probe_result->round;
        in->probe.ok = frame->read_probe_result->ok;
        return STATUS_OK;
    case COVEY__INTERNAL__V1__RAFT_FRAME__KIND__NOT_SET: /* fallthrough */
    default: return bad(err, "kind", "is unknown");
    }
}

void raft_wire_in_clear(struct raft_wire_in *in)
{
    if (in->kind == RAFT_WIRE_CHUNK) {
        free(in->chunk.data);
        if (in->chunk.last) {
            raft_configuration_close(&in->chunk.configuration);
        }
    } else if (in->kind == RAFT_WIRE_MESSAGE && in->message.type == RAFT_APPEND_ENTRIES) {
        if (in->message.append_entries.n_entries > 0) {
            raft_free(in->message.append_entries.entries[0].batch);
            raft_free(in->message.append_entries.entries);
        }
    }
    memset(in, 0, sizeof *in);
}
