/* Start and stop of the host agent, its threads, and the way to the helper program. Any thread. */
#include "host_private.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum {
    THREADS_MAX = 2048,
    THREAD_STACK_BYTES = 512 << 10,
    SUBID_FILE_BYTES_MAX = 1 << 20,
    CGROUP2_MAGIC = 0x63677270,
};
#define SUBID_BASE_FALLBACK INT64_C(1000000)     /* the range that systems of this kind use when none is written down for root */
#define SUBID_SIZE_FALLBACK INT64_C(1000000000)
#define SUBID_SIZE_MIN INT64_C(65536)

/* The first entry of `user` that is large enough. */
static bool subid_entry(const char *text, const char *user, int64_t *base, int64_t *size)
{
    size_t len = strlen(user);
    for (const char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        long long b, s;
        if (strncmp(line, user, len) == 0 && line[len] == ':' && sscanf(line + len + 1, "%lld:%lld", &b, &s) == 2 && b > 0 &&
            b <= UINT32_MAX && s >= SUBID_SIZE_MIN && s <= UINT32_MAX - b) {
            *base = b;
            *size = s;
            return true;
        }
    }
    return false;
}

int host__find_idmap(const char *subuid, const char *subgid, struct idmap *map)
{
    static const char *const users[] = {"root", "0", "covey", "lxd"};
    struct buf uids = {0}, gids = {0};
    struct error err = ERROR_INIT;
    if (file_read(subuid, SUBID_FILE_BYTES_MAX, &uids, &err) || file_read(subgid, SUBID_FILE_BYTES_MAX, &gids, &err))
        log_debug("host.subid", "text=\"%s\"", err.text); /* absent files are the normal case of a system without them */
    bool found = false;
    for (size_t i = 0; i < sizeof(users) / sizeof(users[0]) && !found; i++) {
        int64_t uid_size, gid_size;
        found = subid_entry(uids.data, users[i], &map->uid, &uid_size) && subid_entry(gids.data, users[i], &map->gid, &gid_size);
        if (found) {
            map->size = uid_size < gid_size ? uid_size : gid_size;
            map->root_entry = i < 2;
        }
    }
    if (!found)
        *map = (struct idmap){SUBID_BASE_FALLBACK, SUBID_BASE_FALLBACK, SUBID_SIZE_FALLBACK, false};
    buf_free(&uids);
    buf_free(&gids);
    return found ? 0 : -1;
}

bool host__name_ok(const char *name)
{
    size_t len = name ? strlen(name) : 0;
    if (!len || len > HOST_NAME_BYTES_MAX || name[0] == '.' || name[0] == '-')
        return false;
    for (const char *c = name; *c; c++)
        if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '-' || *c == '_' || *c == '.'))
            return false;
    return true;
}

int host__sync_dir(const char *path, struct error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0) {
        error_errno(err, errno, "Failed to write %s to disk", path);
        if (fd >= 0)
            close(fd);
        return err ? (int)err->code : STATUS_INTERNAL;
    }
    close(fd);
    return STATUS_OK;
}

void host__wait(struct host *host, int64_t ms)
{
    struct timespec until;
    time_deadline(&until, ms);
    pthread_cond_timedwait(&host->changed, &host->lock, &until);
}

/* ---- threads ---- */

struct start {
    struct host *host;
    void (*run)(struct host *host, void *arg);
    void *arg;
};

static void *thread_main(void *arg)
{
    struct start start = *(struct start *)arg;
    free(arg);
    start.run(start.host, start.arg);
    pthread_mutex_lock(&start.host->lock);
    start.host->threads--;
    pthread_cond_broadcast(&start.host->changed);
    pthread_mutex_unlock(&start.host->lock);
    return NULL;
}

int host__thread(struct host *host, void (*run)(struct host *host, void *arg), void *arg, struct error *err)
{
    pthread_mutex_lock(&host->lock);
    bool room = host->threads < THREADS_MAX;
    host->threads += room;
    pthread_mutex_unlock(&host->lock);
    if (!room)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "Too many sessions on this member (%d)", THREADS_MAX);
    struct start *start = xmalloc(sizeof(*start));
    *start = (struct start){host, run, arg};
    int rc = thread_group_start(&host->group, "host", THREAD_STACK_BYTES, thread_main, start);
    if (!rc)
        return STATUS_OK;
    free(start);
    pthread_mutex_lock(&host->lock);
    host->threads--;
    pthread_mutex_unlock(&host->lock);
    return error_set(err, STATUS_RESOURCE_EXHAUSTED, "Failed to start a thread: %s", strerror(rc));
}

/* ---- helper ---- */

/* The answer of a helper: its error becomes ours. */
static int helper_answer(const char *command, const struct process_result *result, json_t **out, struct error *err)
{
    json_error_t why;
    json_t *answer = json_loadb(result->out.data, result->out.len, 0, &why);
    if (!json_is_object(answer)) {
        json_decref(answer);
        return error_set(err, STATUS_INTERNAL, "covey-instance %s failed (exit code %d): %.500s", command, result->exit_code, result->err.data);
    }
    const char *text = json_string_value(json_object_get(answer, "error"));
    if (text) {
        json_int_t code = json_integer_value(json_object_get(answer, "code"));
        error_set(err, code > 0 && code <= STATUS_UNAUTHENTICATED ? (enum status)code : STATUS_INTERNAL, "%s", text);
        json_decref(answer);
        return err ? (int)err->code : STATUS_INTERNAL;
    }
    if (out)
        *out = answer;
    else
        json_decref(answer);
    return STATUS_OK;
}

int host__helper(struct host *host, const char *command, json_t *in, int64_t timeout_ms, json_t **out, struct error *err)
{
    static const char *const env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", NULL};
    const char *argv[] = {host->helper, command, NULL};
    struct error local = ERROR_INIT;
    if (out)
        *out = NULL;
    char *input = json_dumps(in, JSON_COMPACT);
    json_decref(in);
    if (!input)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Request of the helper has a text that is not UTF-8");
    struct process_result result;
    int rc = process_run(argv, env, input, HELPER_ANSWER_BYTES_MAX, timeout_ms, &result, &local);
    if (!rc)
        rc = helper_answer(command, &result, out, &local);
    process_result_free(&result);
    free(input);
    if (rc && err)
        *err = local;
    return rc;
}

static bool usable(const char *path)
{
    return path && access(path, X_OK) == 0;
}

/* Installed: <prefix>/bin/coveyd and <prefix>/libexec/covey/. Build tree: libexec/covey/ in its top folder, programs anywhere below it. */
static char *find_helper(const char *given, struct error *err)
{
    if (given) {
        if (!usable(given))
            error_set(err, STATUS_FAILED_PRECONDITION, "The instance helper %s cannot be run: %s", given, strerror(errno));
        return usable(given) ? xstrdup(given) : NULL;
    }
    const char *dir = getenv("COVEY_LIBEXEC");
    char *path = dir && *dir ? xasprintf("%s/covey-instance", dir) : NULL;
    if (usable(path))
        return path;
    free(path);
    char program[4096];
    ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);
    program[n > 0 ? n : 0] = 0;
    for (char *slash = strrchr(program, '/'); slash && slash != program; slash = strrchr(program, '/')) {
        *slash = 0;
        path = xasprintf("%s/libexec/covey/covey-instance", program);
        if (usable(path))
            return path;
        free(path);
    }
    error_set(err, STATUS_FAILED_PRECONDITION, "The instance helper covey-instance was not found (set COVEY_LIBEXEC to its folder)");
    return NULL;
}

/* ---- start, stop ---- */

static int make_dirs(struct host *host, struct error *err)
{
    static const struct {
        const char *name;
        mode_t mode;
    } dirs[] = {{"images", 0700}, {"storage-pools", 0711}, {"containers", 0711}, {"logs", 0700}};
    int rc = STATUS_OK;
    for (size_t i = 0; i < sizeof(dirs) / sizeof(dirs[0]) && !rc; i++) {
        char *path = xasprintf("%s/%s", host->state_dir, dirs[i].name);
        rc = dir_make(path, dirs[i].mode, err);
        if (!rc && chmod(path, dirs[i].mode) < 0)
            rc = error_errno(err, errno, "Failed to set the mode of %s", path);
        free(path);
    }
    return rc;
}

static void look_around(struct host *host)
{
    struct statfs fs;
    host->cgroup2 = statfs("/sys/fs/cgroup", &fs) == 0 && fs.f_type == CGROUP2_MAGIC;
    host->apparmor = access("/sys/kernel/security/apparmor/profiles", F_OK) == 0;
    if (host__find_idmap("/etc/subuid", "/etc/subgid", &host->map) < 0)
        log_warn("host.subid_fallback", "uid=%lld gid=%lld size=%lld text=\"no range for root in /etc/subuid and /etc/subgid\"",
                 (long long)host->map.uid, (long long)host->map.gid, (long long)host->map.size);
    struct stat st;
    if (stat(host->state_dir, &st) == 0 && !(st.st_mode & S_IXOTH))
        log_warn("host.state_dir_mode", "path=%s mode=%o text=\"unprivileged containers need the x bit for others\"", host->state_dir,
                 (unsigned)(st.st_mode & 07777));
}

static int watch_start(struct host *host, struct error *err)
{
    host->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    host->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = host->wake_fd};
    if (host->epoll_fd < 0 || host->wake_fd < 0 || epoll_ctl(host->epoll_fd, EPOLL_CTL_ADD, host->wake_fd, &event) < 0)
        return error_errno(err, errno, "Failed to watch containers");
    return STATUS_OK;
}

static void host_free(struct host *host)
{
    instances__clear(host);
    networks__stop(host);
    if (host->epoll_fd >= 0)
        close(host->epoll_fd);
    if (host->wake_fd >= 0)
        close(host->wake_fd);
    pthread_cond_destroy(&host->changed);
    pthread_mutex_destroy(&host->lock);
    free(host->helper);
    free(host->state_dir);
    free(host);
}

int host_start(const struct host_config *config, struct host **out, struct error *err)
{
    struct error local = ERROR_INIT;
    *out = NULL;
    if (str_empty(config->state_dir) || config->state_dir[0] != '/')
        return error_set(err, STATUS_INVALID_ARGUMENT, "The state directory must be an absolute path");
    struct host *host = xcalloc(1, sizeof(*host));
    host->config = *config;
    host->state_dir = xstrdup(config->state_dir);
    host->config.state_dir = host->state_dir;
    host->epoll_fd = host->wake_fd = -1;
    host->events_tail = &host->events;
    pthread_mutex_init(&host->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&host->changed, &attr);
    pthread_condattr_destroy(&attr);
    host->helper = find_helper(config->helper_path, &local);
    int rc = host->helper ? make_dirs(host, &local) : (int)local.code;
    if (!rc) {
        look_around(host);
        rc = watch_start(host, &local);
    }
    if (!rc)
        rc = images__clean(host, &local);
    if (!rc) {
        pools__clean(host);
        rc = networks__start(host, &local); /* before containers start that are attached to them */
    }
    if (!rc)
        rc = instances__load(host, &local);
    if (!rc && (rc = pthread_create(&host->watcher, NULL, instances__watcher, host)) != 0)
        rc = error_set(&local, STATUS_RESOURCE_EXHAUSTED, "Failed to start a thread: %s", strerror(rc));
    if (rc) {
        host_free(host);
        if (err)
            *err = local;
        return rc;
    }
    host->config.helper_path = host->helper;
    *out = host;
    return STATUS_OK;
}

void host_stop(struct host *host)
{
    if (!host)
        return;
    pthread_mutex_lock(&host->lock);
    host->stopping = true;
    pthread_cond_broadcast(&host->changed);
    pthread_mutex_unlock(&host->lock);
    exec__stop_all(host);
    uint64_t one = 1;
    if (write(host->wake_fd, &one, sizeof(one)) < 0)
        log_warn("host.wake", "errno=%d", errno);
    pthread_join(host->watcher, NULL);
    pthread_mutex_lock(&host->lock);
    while (host->threads) /* each is bounded by the limits of its work */
        host__wait(host, HOST_WAIT_SLICE_MS);
    pthread_mutex_unlock(&host->lock);
    thread_group_join(&host->group, -1);
    exec__tick(host); /* forgets what ended just now */
    service__end_watches(host);
    host_free(host);
}
