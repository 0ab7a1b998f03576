/* Raft folders while no member runs on them: first configuration, recovery from quorum loss, a look at what is there; and the null transport.
 * Thread: any, blocking. */
#include "raft_node_private.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- null transport ---- */

static int null_init(struct raft_uv_transport *transport, raft_id id, const char *address)
{
    return 0;
}

static int null_listen(struct raft_uv_transport *transport, raft_uv_accept_cb cb)
{
    return 0;
}

static int null_connect(struct raft_uv_transport *transport, struct raft_uv_connect *req, raft_id id, const char *address, raft_uv_connect_cb cb)
{
    return RAFT_NOCONNECTION;
}

static void null_close(struct raft_uv_transport *transport, raft_uv_transport_close_cb cb)
{
    cb(transport);
}

void node__null_transport(struct raft_uv_transport *transport)
{
    memset(transport, 0, sizeof *transport);
    transport->version = 1;
    transport->init = null_init;
    transport->listen = null_listen;
    transport->connect = null_connect;
    transport->close = null_close;
}

/* ---- a raft object without a node ---- */

struct offline {
    uv_loop_t loop;
    struct raft raft;
    struct raft_io io;
    struct raft_fsm fsm;
    struct raft_uv_transport transport;
    bool closed;
};

static int no_apply(struct raft_fsm *fsm, const struct raft_buffer *buf, void **result)
{
    return RAFT_INVALID;
}

static int no_snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[], unsigned *n_bufs)
{
    return RAFT_INVALID;
}

static int no_restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    return RAFT_INVALID;
}

static void offline_closed(struct raft *raft)
{
    struct offline *offline = raft->data;
    offline->closed = true;
}

static int offline_error(struct offline *offline, const char *dir, int rv, struct error *err)
{
    const char *detail = offline->io.errmsg[0] != '\0' ? offline->io.errmsg : raft_strerror(rv);
    return error_set(err, rv == RAFT_CANTBOOTSTRAP ? STATUS_FAILED_PRECONDITION : rv == RAFT_CORRUPT ? STATUS_DATA_LOSS : STATUS_INTERNAL,
                     "raft folder %s: %s", dir, rv == RAFT_CANTBOOTSTRAP ? "has a log already" : detail);
}

static int offline_run(const char *dir, uint64_t id, int (*fn)(struct offline *offline, void *ud), void *ud, struct error *err)
{
    struct offline *offline = xcalloc(1, sizeof *offline);
    char address[32];
    int rc = STATUS_OK;
    node__address(id, address);
    node__null_transport(&offline->transport);
    offline->fsm = (struct raft_fsm){.version = 1, .apply = no_apply, .snapshot = no_snapshot, .restore = no_restore};
    if (uv_loop_init(&offline->loop) != 0) {
        core_oom();
    }
    int rv = raft_uv_init(&offline->io, &offline->loop, dir, &offline->transport);
    if (rv == 0) {
        raft_uv_set_auto_recovery(&offline->io, false);
        rv = raft_init(&offline->raft, &offline->io, &offline->fsm, id, address);
        if (rv == 0) {
            offline->raft.tracer = NULL;
            offline->raft.data = offline;
            rv = fn(offline, ud);
            if (rv != 0) {
                rc = offline_error(offline, dir, rv, err);
            }
            raft_close(&offline->raft, offline_closed);
            while (!offline->closed) {
                uv_run(&offline->loop, UV_RUN_ONCE);
            }
        } else {
            rc = offline_error(offline, dir, rv, err);
        }
        raft_uv_close(&offline->io);
    } else {
        rc = offline_error(offline, dir, rv, err);
    }
    while (uv_run(&offline->loop, UV_RUN_DEFAULT) != 0) {
    }
    int closed = uv_loop_close(&offline->loop);
    covey_assert(closed == 0);
    free(offline);
    return rc;
}

static int only_voter(struct raft_configuration *configuration, uint64_t id)
{
    char address[32];
    node__address(id, address);
    raft_configuration_init(configuration);
    return raft_configuration_add(configuration, id, address, RAFT_VOTER);
}

static int bootstrap_fn(struct offline *offline, void *ud)
{
    struct raft_configuration configuration;
    int rv = only_voter(&configuration, offline->raft.id);
    if (rv == 0) {
        rv = raft_bootstrap(&offline->raft, &configuration);
    }
    raft_configuration_close(&configuration);
    return rv;
}

static int check_id(uint64_t id, struct error *err)
{
    return id == 0 || id >= RAFT_WIRE_NUMBER_MAX ? error_set(err, STATUS_INVALID_ARGUMENT, "raft: member id is out of range") : STATUS_OK;
}

int raft_node_bootstrap(const char *dir, uint64_t id, struct error *err)
{
    int rc = check_id(id, err);
    if (rc == STATUS_OK) {
        rc = dir_make(dir, 0700, err);
    }
    return rc != STATUS_OK ? rc : offline_run(dir, id, bootstrap_fn, NULL, err);
}

/* ---- look ---- */

struct look { uint64_t term, last_term, last_index, snapshot_index; };

static int look_fn(struct offline *offline, void *ud)
{
    struct look *look = ud;
    struct raft_snapshot *snapshot = NULL;
    struct raft_entry *entries = NULL;
    raft_term term = 0;
    raft_id vote = 0;
    raft_index start = 1;
    size_t count = 0;
    int rv = offline->io.load(&offline->io, &term, &vote, &snapshot, &start, &entries, &count);
    if (rv != 0) {
        return rv;
    }
    look->term = term;
    look->last_index = start + count - 1;
    look->last_term = count > 0 ? entries[count - 1].term : 0;
    if (snapshot != NULL) {
        look->snapshot_index = snapshot->index;
        if (look->last_index <= snapshot->index) {
            look->last_index = snapshot->index;
            look->last_term = snapshot->term;
        }
        raft_configuration_close(&snapshot->configuration);
        for (unsigned i = 0; i < snapshot->n_bufs; i++) {
            raft_free(snapshot->bufs[i].base);
        }
        raft_free(snapshot->bufs);
        raft_free(snapshot);
    }
    void *batch = NULL;
    for (size_t i = 0; i < count; i++) { /* entries of a batch follow each other */
        if (entries[i].batch != batch) {
            batch = entries[i].batch;
            raft_free(batch);
        }
    }
    raft_free(entries);
    return 0;
}

static int copy_file(int from_dir, int to_dir, const char *name, struct error *err)
{
    int from = openat(from_dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    int to = openat(to_dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t n = from < 0 || to < 0 ? -1 : 1;
    while (n > 0) {
        n = copy_file_range(from, NULL, to, NULL, 1 << 30, 0);
        if (n < 0 && errno == EINTR) {
            n = 1;
        }
    }
    int rc = n < 0 ? error_set(err, STATUS_INTERNAL, "copy raft file %s: %s", name, strerror(errno)) : STATUS_OK;
    if (from >= 0) {
        close(from);
    }
    if (to >= 0 && close(to) != 0 && rc == STATUS_OK) {
        rc = error_set(err, STATUS_INTERNAL, "copy raft file %s: %s", name, strerror(errno));
    }
    return rc;
}

static int copy_dir(const char *from, const char *to, struct error *err)
{
    DIR *dir = opendir(from);
    int to_fd = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = STATUS_OK;
    struct dirent *entry;
    if (dir == NULL || to_fd < 0) {
        rc = error_set(err, errno == ENOENT ? STATUS_NOT_FOUND : STATUS_INTERNAL, "raft folder %s: %s", dir == NULL ? from : to, strerror(errno));
    }
    while (rc == STATUS_OK && (entry = readdir(dir)) != NULL) {
        struct stat st;
        if (fstatat(dirfd(dir), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode)) {
            rc = copy_file(dirfd(dir), to_fd, entry->d_name, err);
        }
    }
    if (dir != NULL) {
        closedir(dir);
    }
    if (to_fd >= 0) {
        close(to_fd);
    }
    return rc;
}

/* raft_uv closes open segments while it loads, so a copy beside the folder is loaded. */
int raft_node_examine(const char *dir, struct raft_node_position *out, struct error *err)
{
    struct look look = {0};
    struct error ignored = ERROR_INIT;
    char *copy = xasprintf("%s.peek-XXXXXX", dir);
    *out = (struct raft_node_position){0};
    if (mkdtemp(copy) == NULL) {
        int rc = error_set(err, STATUS_INTERNAL, "%s: %s", copy, strerror(errno));
        free(copy);
        return rc;
    }
    int rc = copy_dir(dir, copy, err);
    if (rc == STATUS_OK) {
        rc = offline_run(copy, 1, look_fn, &look, err);
    }
    if (dir_remove_all(copy, &ignored) != STATUS_OK) {
        log_warn("raft.peek.leftover", "dir=%s error=\"%s\"", copy, ignored.text);
    }
    free(copy);
    *out = (struct raft_node_position){look.term, look.last_term, look.last_index, look.snapshot_index};
    return rc;
}

int raft_node_peek(const char *dir, uint64_t *term, uint64_t *last_index, uint64_t *snapshot_index, struct error *err)
{
    struct raft_node_position position;
    int rc = raft_node_examine(dir, &position, err);
    *term = position.term;
    *last_index = position.last_index;
    *snapshot_index = position.snapshot_index;
    return rc;
}

/* ---- recovery ---- */

/* G11: raft_recover alone would let this member lead again in a term that another leader had. */
static int recover_fn(struct offline *offline, void *ud)
{
    struct look *look = ud;
    struct raft_configuration configuration;
    int rv = offline->io.set_term(&offline->io, look->term + 1);
    if (rv != 0) {
        return rv;
    }
    rv = only_voter(&configuration, offline->raft.id);
    if (rv == 0) {
        rv = raft_recover(&offline->raft, &configuration);
    }
    raft_configuration_close(&configuration);
    return rv;
}

int raft_node_recover(const char *dir, uint64_t id, struct error *err)
{
    struct look look = {0};
    int rc = check_id(id, err);
    if (rc == STATUS_OK) {
        rc = offline_run(dir, id, look_fn, &look, err);
    }
    if (rc == STATUS_OK && look.last_index == 0) {
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "raft folder %s: has no log to recover", dir);
    }
    return rc != STATUS_OK ? rc : offline_run(dir, id, recover_fn, &look, err);
}

/* ---- another configuration ---- */

/* Terms far above any that elections reach between two edits: members whose terms differ a little get the same one. */
enum { EDIT_TERM_STEP = 1 << 20 };

struct reconfigure {
    const struct raft_node_server *servers;
    size_t count;
    uint64_t term;
};

static int reconfigure_fn(struct offline *offline, void *ud)
{
    const struct reconfigure *in = ud;
    struct raft_configuration configuration;
    int rv = offline->io.set_term(&offline->io, in->term);
    raft_configuration_init(&configuration);
    for (size_t i = 0; rv == 0 && i < in->count; i++) {
        char address[32];
        node__address(in->servers[i].id, address);
        rv = raft_configuration_add(&configuration, in->servers[i].id, address, (int)in->servers[i].role);
    }
    rv = rv == 0 ? raft_recover(&offline->raft, &configuration) : rv;
    raft_configuration_close(&configuration);
    return rv;
}

/* raft_uv's checksum of segments: polynomial 0x04C11DB7, highest bit first, nothing inverted. */
static uint32_t crc32_of(const uint8_t *data, size_t len)
{
    uint32_t crc = 0;
    for (size_t i = 0; i < len; i++) {
        crc ^= (uint32_t)data[i] << 24;
        for (int bit = 0; bit < 8; bit++) {
            crc = crc << 1 ^ (0x04C11DB7u & (0u - (crc >> 31)));
        }
    }
    return crc;
}

/* raft_recover gives its entry the term of the entry before. But on members whose logs differ in length the same index may hold another entry of that
 * term, and Raft takes two entries with one index and term for the same: replicas would differ without notice. So the entry gets the new term, which no other
 * entry has. Layout of a closed segment: format u64 | CRC of the batch header u32, CRC of the data u32 | count u64, then term u64, type u8[4], length u32. */
static int set_entry_term(const char *dir, uint64_t index, uint64_t term, struct error *err)
{
    enum { CRC_AT = 8, HEADER_AT = 16, TERM_AT = 24, HEADER_BYTES = 24, END = 40 };
    char *path = xasprintf("%s/%016llu-%016llu", dir, (unsigned long long)index, (unsigned long long)index);
    uint8_t head[END];
    uint32_t crc;
    uint64_t number[2];
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    int rc = STATUS_OK;
    if (fd < 0 || pread(fd, head, sizeof head, 0) != (ssize_t)sizeof head) {
        rc = error_set(err, STATUS_INTERNAL, "raft segment %s: %s", path, fd < 0 ? strerror(errno) : "too short");
    } else {
        memcpy(&number[0], head, sizeof number[0]);
        memcpy(&number[1], head + HEADER_AT, sizeof number[1]);
        memcpy(&crc, head + CRC_AT, sizeof crc);
        if (number[0] != 1 || number[1] != 1 || crc != crc32_of(head + HEADER_AT, HEADER_BYTES)) {
            rc = error_set(err, STATUS_INTERNAL, "raft segment %s: unknown layout", path);
        }
    }
    if (rc == STATUS_OK) {
        memcpy(head + TERM_AT, &term, sizeof term); /* little endian, as the file is: libraft runs on nothing else here */
        crc = crc32_of(head + HEADER_AT, HEADER_BYTES);
        memcpy(head + CRC_AT, &crc, sizeof crc);
        if (pwrite(fd, head, sizeof head, 0) != (ssize_t)sizeof head || fsync(fd) != 0) {
            rc = error_set(err, STATUS_INTERNAL, "raft segment %s: %s", path, strerror(errno));
        }
    }
    if (fd >= 0) {
        close(fd);
    }
    free(path);
    return rc;
}

static int sync_dir(const char *path, struct error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || syncfs(fd) != 0 ? error_set(err, STATUS_INTERNAL, "raft folder %s: %s", path, strerror(errno)) : STATUS_OK;
    if (fd >= 0) {
        close(fd);
    }
    return rc;
}

int raft_node_reconfigure(const char *dir, uint64_t id, const struct raft_node_server *servers, size_t count, struct error *err)
{
    char *copy = xasprintf("%s.edit", dir);
    struct look look = {0};
    struct error ignored = ERROR_INIT;
    int rc = check_id(id, err);
    rc = rc == STATUS_OK ? dir_remove_all(copy, err) : rc; /* of an attempt that was killed */
    rc = rc == STATUS_OK ? dir_make(copy, 0700, err) : rc;
    rc = rc == STATUS_OK ? copy_dir(dir, copy, err) : rc;
    rc = rc == STATUS_OK ? offline_run(copy, id, look_fn, &look, err) : rc;
    if (rc == STATUS_OK && look.last_index == 0) {
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "raft folder %s: has no log", dir);
    }
    struct reconfigure in = {servers, count, (look.term / EDIT_TERM_STEP + 1) * EDIT_TERM_STEP};
    rc = rc == STATUS_OK ? offline_run(copy, id, reconfigure_fn, &in, err) : rc;
    rc = rc == STATUS_OK ? set_entry_term(copy, look.last_index + 1, in.term, err) : rc;
    struct look check = {0};
    rc = rc == STATUS_OK ? offline_run(copy, id, look_fn, &check, err) : rc;
    if (rc == STATUS_OK && (check.last_index != look.last_index + 1 || check.last_term != in.term)) {
        rc = error_set(err, STATUS_INTERNAL, "raft folder %s: the new configuration was not written", dir);
    }
    rc = rc == STATUS_OK ? sync_dir(copy, err) : rc;
    if (rc == STATUS_OK && renameat2(AT_FDCWD, copy, AT_FDCWD, dir, RENAME_EXCHANGE) != 0) {
        rc = error_set(err, STATUS_INTERNAL, "raft folder %s: %s", dir, strerror(errno));
    }
    if (rc == STATUS_OK) {
        rc = sync_dir(dir, err);
    }
    if (dir_remove_all(copy, &ignored) != STATUS_OK) {
        log_warn("raft.edit.leftover", "dir=%s error=\"%s\"", copy, ignored.text);
    }
    free(copy);
    return rc;
}
