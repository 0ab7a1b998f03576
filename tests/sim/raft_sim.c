/* Deterministic simulation of a Raft cluster on raft_step; see README.md. One thread, no clock, no disk. Exits 1 at the first broken rule.
 * The guards that concern messages (N3, R4, N9, N13, N14 of storage/raft_shim.c) are applied here in the same way. */
#include "proto/core/core.h"
#include <getopt.h>
#include <raft.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MEMBERS_MAX = 7,
    STEP_MS = 5,
    HEARTBEAT_MS = 50,
    ELECTION_MS = 450,
    DELAY_MS_MAX = 30,
    LATE_MS_MAX = 600, /* a few messages come this late: reordering across terms */
    DISK_MS_MAX = 40,
    INFLIGHT_MAX = 64,
    MESSAGES_MAX = 20000,
};

struct entry { uint64_t term, value; int type; };
struct log { struct entry *entries; size_t count, cap; }; /* entries[i] has index i + 1 */
struct write { struct write *next; uint64_t due, index; size_t n; struct entry entries[]; };

struct member {
    bool up, cut;
    struct raft raft;
    struct log memory; /* what libraft believes to have */
    struct log disk;   /* what survives a crash */
    uint64_t disk_term, disk_vote;
    struct write *writes, **writes_tail;
    uint64_t restart_at;
};

struct message { uint64_t due, order; unsigned from, to; struct raft_message message; struct entry *entries; };

static struct {
    uint64_t seed, now, random, order, next_value;
    unsigned count;
    bool verbose, quiet;
    struct member members[MEMBERS_MAX + 1];
    struct message *messages;
    size_t message_count;
    struct log committed;
    uint64_t *leaders; /* by term */
    size_t leader_cap;
    struct raft_buffer configuration;
    unsigned loss_percent;
    uint64_t steps, restarts, elections, submits, dropped;
} sim;

static uint64_t sim_random(uint64_t below)
{
    sim.random ^= sim.random << 13; /* xorshift */
    sim.random ^= sim.random >> 7;
    sim.random ^= sim.random << 17;
    return sim.random % below;
}

static _Noreturn void broken(const char *rule, unsigned member, uint64_t index)
{
    printf("seed %llu: %s (member %u, index %llu, time %llu ms)\n", (unsigned long long)sim.seed, rule, member, (unsigned long long)index,
           (unsigned long long)sim.now);
    exit(1);
}

static void log_cut(struct log *log, uint64_t index)
{
    if (log->count >= index) {
        log->count = index - 1;
    }
}

static void log_add(struct log *log, const struct entry *entry)
{
    if (log->count == log->cap) {
        log->cap = log->cap == 0 ? 256 : log->cap * 2;
        log->entries = xrealloc(log->entries, log->cap * sizeof *log->entries);
    }
    log->entries[log->count++] = *entry;
}

static void member_step(unsigned id, struct raft_event *event);

/* ---- network ---- */

static void send(unsigned from, const struct raft_message *message)
{
    unsigned to = (unsigned)message->server_id;
    bool entries = message->type == RAFT_APPEND_ENTRIES;
    struct member *m = &sim.members[from];
    if (m->cut || sim.members[to].cut || sim_random(100) < sim.loss_percent || sim.message_count == MESSAGES_MAX) {
        sim.dropped++;
        return;
    }
    struct message *out = &sim.messages[sim.message_count++];
    /* libraft finds the place where two logs part one index per round trip: the quiet end needs a fast network to finish. */
    out->due = sim.now + 1 + (sim.quiet ? 0 : sim_random(sim_random(50) == 0 ? LATE_MS_MAX : DELAY_MS_MAX));
    out->order = sim.order++;
    out->from = from;
    out->to = to;
    out->message = *message;
    out->message.server_id = from;
    out->message.server_address = NULL;
    out->entries = NULL;
    if (entries && message->append_entries.n_entries > 0) {
        const struct raft_append_entries *args = &message->append_entries;
        if (args->prev_log_index + args->n_entries > m->memory.count) {
            broken("a leader sends entries that it does not have", from, args->prev_log_index + args->n_entries);
        }
        out->entries = xmalloc(args->n_entries * sizeof *out->entries);
        memcpy(out->entries, &m->memory.entries[args->prev_log_index], args->n_entries * sizeof *out->entries);
    }
}

static void make_entries(struct raft_entry *out, const struct entry *in, size_t n)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
        bytes += in[i].type == RAFT_CHANGE ? sim.configuration.len : 8;
    }
    uint8_t *batch = raft_malloc(bytes > 0 ? bytes : 8), *at = batch;
    for (size_t i = 0; i < n; i++) {
        size_t len = in[i].type == RAFT_CHANGE ? sim.configuration.len : 8;
        memcpy(at, in[i].type == RAFT_CHANGE ? sim.configuration.base : &in[i].value, len);
        out[i] = (struct raft_entry){.term = in[i].term, .type = (enum raft_entry_type)in[i].type, .buf = {at, len}, .batch = batch};
        at += len;
    }
}

static void answer_older_term(unsigned from, unsigned to, uint64_t prev)
{
    struct raft_message answer = {.type = RAFT_APPEND_ENTRIES_RESULT, .server_id = to};
    answer.append_entries_result.version = 1;
    answer.append_entries_result.term = raft_current_term(&sim.members[from].raft);
    answer.append_entries_result.rejected = prev > 0 ? prev : 1;
    send(from, &answer);
}

static void deliver(struct message *in)
{
    struct member *m = &sim.members[in->to];
    struct raft_message *message = &in->message;
    struct raft_event event = {.type = RAFT_RECEIVE};
    struct raft_entry *entries = NULL;
    if (!m->up || m->cut || sim.members[in->from].cut) {
        return;
    }
    message->server_address = "member";
    if (message->type == RAFT_APPEND_ENTRIES) {
        uint64_t term = raft_current_term(&m->raft);
        if (message->append_entries.term < term) { /* N3 */
            answer_older_term(in->to, in->from, message->append_entries.prev_log_index);
            return;
        }
        if (m->raft.state == RAFT_LEADER && message->append_entries.term == term) { /* R4 */
            broken("two leaders in one term", in->to, term);
        }
        uint64_t commit = raft_commit_index(&m->raft);
        if (message->append_entries.leader_commit > commit &&
            message->append_entries.prev_log_index + message->append_entries.n_entries < commit) { /* N13 */
            message->append_entries.leader_commit = commit;
        }
        if (message->append_entries.n_entries > 0) {
            entries = raft_calloc(message->append_entries.n_entries, sizeof *entries);
            make_entries(entries, in->entries, message->append_entries.n_entries);
        }
        message->append_entries.entries = entries;
    }
    if (message->type == RAFT_APPEND_ENTRIES_RESULT && m->raft.state == RAFT_LEADER) { /* N14 */
        struct raft_append_entries_result *result = &message->append_entries_result;
        raft_index match = 0;
        if (result->rejected > 0 && raft_match_index(&m->raft, in->from, &match) == 0 && result->rejected <= match) {
            result->rejected = result->last_log_index = 0;
        }
    }
    event.receive.message = message;
    member_step(in->to, &event);
    raft_free(entries); /* the batch is libraft's or member_step's to free */
}

static void network_run(void)
{
    for (;;) { /* the earliest first; the list is short */
        struct message *next = NULL;
        for (size_t i = 0; i < sim.message_count; i++) {
            struct message *one = &sim.messages[i];
            if (one->due <= sim.now && (next == NULL || one->due < next->due || (one->due == next->due && one->order < next->order))) {
                next = one;
            }
        }
        if (next == NULL) {
            return;
        }
        struct message in = *next;
        *next = sim.messages[--sim.message_count];
        deliver(&in);
        free(in.entries);
    }
}

/* ---- members ---- */

static void check_leader(unsigned id)
{
    struct member *m = &sim.members[id];
    uint64_t term = raft_current_term(&m->raft);
    if (m->raft.state != RAFT_LEADER) {
        return;
    }
    while (term >= sim.leader_cap) {
        sim.leaders = xrealloc(sim.leaders, (sim.leader_cap + 256) * sizeof *sim.leaders);
        memset(sim.leaders + sim.leader_cap, 0, 256 * sizeof *sim.leaders);
        sim.leader_cap += 256;
    }
    if (sim.leaders[term] == id) {
        return;
    }
    if (sim.leaders[term] != 0) {
        broken("two leaders in one term", id, term);
    }
    sim.leaders[term] = id;
    sim.elections++;
    if (sim.verbose) {
        printf("%8llu ms: member %u leads term %llu, log %zu, committed %zu\n", (unsigned long long)sim.now, id, (unsigned long long)term,
               m->memory.count, sim.committed.count);
    }
    for (size_t i = 0; i < sim.committed.count; i++) {
        if (i >= m->memory.count || memcmp(&m->memory.entries[i], &sim.committed.entries[i], sizeof sim.committed.entries[i]) != 0) {
            broken("a leader lacks a committed entry", id, i + 1);
        }
    }
}

static void check_commit(unsigned id, uint64_t from)
{
    struct member *m = &sim.members[id];
    uint64_t commit = raft_commit_index(&m->raft);
    if (commit > m->memory.count) {
        broken("more is committed than the log has", id, commit);
    }
    for (uint64_t index = from > 0 ? from : 1; index <= commit; index++) {
        const struct entry *entry = &m->memory.entries[index - 1];
        if (index > sim.committed.count) {
            log_add(&sim.committed, entry);
        } else if (memcmp(entry, &sim.committed.entries[index - 1], sizeof *entry) != 0) {
            broken("a committed entry differs", id, index);
        }
    }
}

static void persist(unsigned id, uint64_t index, const struct raft_entry *entries, size_t n)
{
    struct member *m = &sim.members[id];
    struct write *write = xcalloc(1, sizeof *write + n * sizeof write->entries[0]);
    write->due = sim.now + 1 + sim_random(DISK_MS_MAX);
    if (m->writes != NULL && m->writes_tail != &m->writes) { /* one disk: in order */
        struct write *last = (struct write *)((char *)m->writes_tail - offsetof(struct write, next));
        write->due = write->due > last->due ? write->due : last->due;
    }
    write->index = index;
    write->n = n;
    log_cut(&m->memory, index);
    if (m->memory.count + 1 != index) {
        broken("a gap in the log", id, index);
    }
    for (size_t i = 0; i < n; i++) {
        write->entries[i].term = entries[i].term;
        write->entries[i].type = (int)entries[i].type;
        if (entries[i].type != RAFT_CHANGE) {
            memcpy(&write->entries[i].value, entries[i].buf.base, 8);
        }
        if (entries[i].type == RAFT_BARRIER) {
            write->entries[i].value = 0;
        }
        log_add(&m->memory, &write->entries[i]);
    }
    *m->writes_tail = write;
    m->writes_tail = &write->next;
}

static void member_step(unsigned id, struct raft_event *event)
{
    struct member *m = &sim.members[id];
    struct raft_update update = {0};
    uint64_t commit = raft_commit_index(&m->raft);
    event->time = sim.now;
    event->capacity = 16384;
    sim.steps++;
    int rv = raft_step(&m->raft, event, &update);
    if (rv != 0) {
        if (event->type == RAFT_SUBMIT && (rv == RAFT_NOTLEADER || rv == RAFT_NOSPACE)) {
            raft_free(event->submit.entries[0].batch);
            return;
        }
        broken(raft_strerror(rv), id, 0);
    }
    if (update.flags & (RAFT_UPDATE_CURRENT_TERM)) {
        m->disk_term = raft_current_term(&m->raft);
    }
    if (update.flags & (RAFT_UPDATE_VOTED_FOR)) {
        m->disk_vote = raft_voted_for(&m->raft);
    }
    if (update.flags & (RAFT_UPDATE_ENTRIES)) {
        persist(id, update.entries.index, update.entries.batch, update.entries.n);
        raft_free(update.entries.batch[0].batch);
    }
    check_leader(id);
    if (update.flags & (RAFT_UPDATE_MESSAGES)) {
        for (unsigned i = 0; i < update.messages.n; i++) {
            send(id, &update.messages.batch[i]);
        }
    }
    if (raft_commit_index(&m->raft) < commit) {
        broken("the commit index goes back", id, commit);
    }
    check_commit(id, commit + 1);
}

static void member_start(unsigned id)
{
    struct member *m = &sim.members[id];
    struct raft_event event = {.type = RAFT_START};
    memset(&m->raft, 0, sizeof m->raft);
    if (raft_init(&m->raft, NULL, NULL, id, "member") != 0) {
        core_oom();
    }
    m->raft.tracer = NULL;
    raft_seed(&m->raft, (unsigned)sim_random(UINT32_MAX));
    raft_set_pre_vote(&m->raft, true);
    raft_set_election_timeout(&m->raft, ELECTION_MS);
    raft_set_heartbeat_timeout(&m->raft, HEARTBEAT_MS);
    raft_set_max_inflight_entries(&m->raft, INFLIGHT_MAX);
    m->up = true;
    m->writes = NULL;
    m->writes_tail = &m->writes;
    m->memory.count = 0;
    for (size_t i = 0; i < m->disk.count; i++) {
        log_add(&m->memory, &m->disk.entries[i]);
    }
    struct raft_entry *entries = raft_calloc(m->disk.count, sizeof *entries);
    make_entries(entries, m->disk.entries, m->disk.count);
    event.start.term = m->disk_term;
    event.start.voted_for = m->disk_vote;
    event.start.start_index = 1;
    event.start.entries = entries;
    event.start.n_entries = (unsigned)m->disk.count;
    void *batch = entries[0].batch;
    member_step(id, &event);
    raft_free(batch);
    raft_free(entries);
}

static void member_stop(unsigned id)
{
    struct member *m = &sim.members[id];
    raft_close(&m->raft, NULL);
    m->up = false;
    while (m->writes != NULL) { /* not on disk yet: lost */
        struct write *write = m->writes;
        m->writes = write->next;
        free(write);
    }
    m->writes_tail = &m->writes;
}

static void disk_run(unsigned id)
{
    struct member *m = &sim.members[id];
    while (m->up && m->writes != NULL && m->writes->due <= sim.now) {
        struct write *write = m->writes;
        struct raft_event event = {.type = RAFT_PERSISTED_ENTRIES};
        m->writes = write->next;
        if (m->writes == NULL) {
            m->writes_tail = &m->writes;
        }
        log_cut(&m->disk, write->index);
        for (size_t i = 0; i < write->n; i++) {
            log_add(&m->disk, &write->entries[i]);
        }
        event.persisted_entries.index = write->index + write->n - 1;
        bool stale = event.persisted_entries.index > m->memory.count ||
                     memcmp(&m->memory.entries[event.persisted_entries.index - 1], &write->entries[write->n - 1], sizeof write->entries[0]) != 0;
        free(write);
        if (!stale) { /* what was cut off meanwhile is not reported: another write of the place follows */
            member_step(id, &event);
        }
    }
}

static void tick(unsigned id)
{
    struct member *m = &sim.members[id];
    struct raft_event event = {.type = RAFT_TIMEOUT};
    bool led = m->raft.state == RAFT_LEADER;
    raft_time start = m->raft.election_timer_start;
    member_step(id, &event);
    if (led && m->raft.state == RAFT_LEADER && m->raft.election_timer_start != start && m->raft.election_timer_start == m->raft.now) {
        m->raft.election_timer_start -= m->raft.election_timeout / 2; /* N9 */
    }
}

static void submit(unsigned id)
{
    struct raft_event event = {.type = RAFT_SUBMIT};
    struct raft_entry entry = {.term = sim.members[id].raft.current_term, .type = RAFT_COMMAND};
    uint64_t *value = raft_malloc(8);
    *value = ++sim.next_value;
    entry.buf.base = entry.batch = value;
    entry.buf.len = 8;
    event.submit.entries = &entry;
    event.submit.n = 1;
    sim.submits++;
    member_step(id, &event);
}

static void faults(void)
{
    unsigned id = 1 + (unsigned)sim_random(sim.count);
    struct member *m = &sim.members[id];
    if (m->up && sim_random(300) == 0) {
        member_stop(id);
        m->restart_at = sim.now + 10 + sim_random(1500);
        sim.restarts++;
    }
    if (sim_random(400) == 0) {
        m->cut = !m->cut;
    }
    if (sim_random(1000) == 0) {
        sim.loss_percent = (unsigned)sim_random(25);
    }
}

static void run(uint64_t seed, unsigned seconds)
{
    struct raft_configuration configuration;
    uint64_t quiet_at = (uint64_t)seconds * 1000, end = quiet_at + 10000;
    size_t before = 0;
    memset(sim.members, 0, sizeof sim.members);
    sim.seed = seed;
    sim.random = seed * 0x9e3779b97f4a7c15ULL | 1;
    sim.now = 1000;
    sim.message_count = sim.committed.count = 0;
    sim.next_value = sim.order = 0;
    sim.loss_percent = 5;
    sim.quiet = false;
    if (sim.leaders != NULL) {
        memset(sim.leaders, 0, sim.leader_cap * sizeof *sim.leaders);
    }
    raft_configuration_init(&configuration);
    for (unsigned id = 1; id <= sim.count; id++) {
        char address[16];
        snprintf(address, sizeof address, "m%u", id);
        if (raft_configuration_add(&configuration, id, address, RAFT_VOTER) != 0) {
            core_oom();
        }
    }
    if (raft_configuration_encode(&configuration, &sim.configuration) != 0) {
        core_oom();
    }
    raft_configuration_close(&configuration);
    for (unsigned id = 1; id <= sim.count; id++) {
        log_add(&sim.members[id].disk, &(struct entry){.term = 1, .type = RAFT_CHANGE});
        sim.members[id].disk_term = 1;
        member_start(id);
    }
    for (; sim.now < end; sim.now += STEP_MS) {
        if (sim.now < quiet_at) {
            faults();
        } else if (sim.now < quiet_at + STEP_MS) { /* then everybody must agree */
            sim.loss_percent = 0;
            sim.quiet = true;
            before = sim.committed.count;
            for (unsigned id = 1; id <= sim.count; id++) {
                sim.members[id].cut = false;
                sim.members[id].restart_at = sim.now;
            }
        }
        network_run();
        for (unsigned id = 1; id <= sim.count; id++) {
            struct member *m = &sim.members[id];
            disk_run(id);
            if (!m->up && sim.now >= m->restart_at) {
                member_start(id);
            }
            if (m->up && sim.now >= raft_timeout(&m->raft)) {
                tick(id);
            }
            if (m->up && m->raft.state == RAFT_LEADER && sim.now < end - 2000 && sim_random(3) == 0) {
                submit(id);
            }
        }
    }
    if (sim.committed.count <= before) {
        broken("nothing is committed any more", 0, before);
    }
    for (unsigned id = 1; id <= sim.count; id++) {
        if (raft_commit_index(&sim.members[id].raft) != sim.committed.count) {
            broken("a member stays behind", id, raft_commit_index(&sim.members[id].raft));
        }
        member_stop(id);
        free(sim.members[id].memory.entries);
        free(sim.members[id].disk.entries);
    }
    for (size_t i = 0; i < sim.message_count; i++) {
        free(sim.messages[i].entries);
    }
    raft_free(sim.configuration.base);
}

static uint64_t number(const char *text, int64_t max)
{
    int64_t value;
    if (parse_i64(text, 1, max, &value) != 0) {
        fprintf(stderr, "covey-sim: %s is not a number from 1 to %lld\n", text, (long long)max);
        exit(2);
    }
    return (uint64_t)value;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"seeds", required_argument, NULL, 'n'},   {"first", required_argument, NULL, 'f'},
                                            {"seconds", required_argument, NULL, 's'}, {"members", required_argument, NULL, 'm'},
                                            {"verbose", no_argument, NULL, 'v'},       {NULL, 0, NULL, 0}};
    uint64_t seeds = 20, first = 1, seconds = 60, committed = 0;
    int option;
    sim.count = 0;
    while ((option = getopt_long(argc, argv, "n:f:s:m:v", options, NULL)) != -1) {
        switch (option) {
        case 'n': seeds = number(optarg, 1000000000); break;
        case 'f': first = number(optarg, INT64_MAX / 2); break;
        case 's': seconds = number(optarg, 100000); break;
        case 'm': sim.count = (unsigned)number(optarg, MEMBERS_MAX); break;
        case 'v': sim.verbose = true; break;
        default: fprintf(stderr, "usage: covey-sim [--seeds N] [--first N] [--seconds N] [--members 1..%d] [--verbose]\n", MEMBERS_MAX); return 2;
        }
    }
    unsigned members = sim.count;
    sim.messages = xcalloc(MESSAGES_MAX, sizeof *sim.messages);
    for (uint64_t seed = first; seed < first + seeds; seed++) {
        sim.count = members != 0 ? members : seed % 2 == 0 ? 3 : 5;
        run(seed, (unsigned)seconds);
        committed += sim.committed.count;
    }
    printf("%llu seeds of %llu s: %llu steps, %llu restarts, %llu elections, %llu submitted, %llu committed, %llu messages lost\n",
           (unsigned long long)seeds, (unsigned long long)seconds, (unsigned long long)sim.steps, (unsigned long long)sim.restarts,
           (unsigned long long)sim.elections, (unsigned long long)sim.submits, (unsigned long long)committed, (unsigned long long)sim.dropped);
    free(sim.messages);
    free(sim.committed.entries);
    free(sim.leaders);
    return 0;
}
