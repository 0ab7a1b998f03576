/* Containers of this host: the table of what is known, operations on one, and the watcher thread that notices when an init dies, tells of changes in
 * their order, and never asks liblxc itself (a thread per question does, by the helper).
 *
 * One operation at a time works on a container (`busy`); a clean stop gives that up while it waits, so that a forced one can come. */
#include "host_private.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WATCH_EVENTS = 64, WATCH_TICK_MS = 1000, SETTLE_TRIES = 3, START_FILE_BYTES_MAX = 1 << 20 };

const char *instance__status_name(int status)
{
    switch (status) {
    case INSTANCE_STOPPED: return "Stopped";
    case INSTANCE_RUNNING: return "Running";
    case INSTANCE_STARTING: return "Starting";
    case INSTANCE_STOPPING: return "Stopping";
    case INSTANCE_FREEZING: return "Freezing";
    case INSTANCE_FROZEN: return "Frozen";
    default: return "Error";
    }
}

char *instances__key(const char *project, const char *name)
{
    return str_empty(project) || str_eq(project, "default") ? xstrdup(name) : xasprintf("%s_%s", project, name);
}

static const char *project_of(const InstanceSpec *spec)
{
    return str_empty(spec->project) ? "default" : spec->project;
}

/* The rules of spec/api.md 7.3; they also make the name safe as a folder's. */
static int check_name(const char *name, struct error *err)
{
    const char *why = NULL;
    size_t len = name ? strlen(name) : 0;
    if (name && strchr(name, '/'))
        why = "The character \"/\" is reserved for snapshots";
    else if (!len || len > HOST_NAME_BYTES_MAX)
        why = "Name must be 1-63 characters long";
    else if (name[0] >= '0' && name[0] <= '9')
        why = "Name must not start with a number";
    else if (name[0] == '-')
        why = "Name must not start with \"-\" character";
    else if (name[len - 1] == '-')
        why = "Name must not end with \"-\" character";
    for (size_t i = 0; !why && i < len; i++)
        if (!((name[i] >= 'a' && name[i] <= 'z') || (name[i] >= 'A' && name[i] <= 'Z') || (name[i] >= '0' && name[i] <= '9') || name[i] == '-'))
            why = "Name can only contain alphanumeric and hyphen characters";
    return why ? error_set(err, STATUS_INVALID_ARGUMENT, "Invalid instance name: %s", why) : STATUS_OK;
}

int instances__check_spec(const InstanceSpec *spec, struct error *err)
{
    if (!spec)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Request has no instance");
    if (!str_empty(spec->project) && !host__name_ok(spec->project))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid project name");
    for (size_t i = 0; i < spec->n_devices; i++)
        if (!spec->devices[i]->value)
            return error_set(err, STATUS_INVALID_ARGUMENT, "Device \"%s\" has no options", spec->devices[i]->key);
    return check_name(spec->name, err);
}

/* ---- the table; host->lock held ---- */

static struct instance *find(struct host *host, const char *key)
{
    struct instance *one = NULL;
    HASH_FIND_STR(host->instances, key, one);
    return one;
}

static struct instance *add(struct host *host, const char *key, const char *project, const char *name)
{
    struct instance *one = xcalloc(1, sizeof(*one));
    one->key = xstrdup(key);
    one->project = xstrdup(project);
    one->name = xstrdup(name);
    one->status = INSTANCE_STOPPED;
    one->pidfd = -1;
    one->changed_at = time_unix_ns();
    HASH_ADD_KEYPTR(hh, host->instances, one->key, strlen(one->key), one);
    return one;
}

static void forget_started(struct instance *one)
{
    for (size_t i = 0; i < one->started_count; i++) {
        free(one->started[i].key);
        free(one->started[i].value);
    }
    free(one->started);
    one->started = NULL;
    one->started_count = 0;
}

static void unwatch(struct host *host, struct instance *one)
{
    if (one->pidfd < 0)
        return;
    epoll_ctl(host->epoll_fd, EPOLL_CTL_DEL, one->pidfd, NULL);
    close(one->pidfd);
    one->pidfd = -1;
}

static void drop(struct host *host, struct instance *one)
{
    unwatch(host, one);
    HASH_DEL(host->instances, one);
    forget_started(one);
    free(one->key);
    free(one->project);
    free(one->name);
    free(one);
}

static void wake_watcher(struct host *host)
{
    uint64_t count = 1;
    if (write(host->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
        log_warn("host.wake", "errno=%d", errno);
}

/* Sets status and init; the change is told by the watcher thread, in order. */
static void set_status(struct host *host, struct instance *one, int status, int64_t pid)
{
    bool same = one->status == status && one->pid == pid;
    if (pid != one->pid || pid <= 0)
        unwatch(host, one);
    one->status = status;
    one->pid = pid;
    one->generation++;
    one->unsettled = false;
    if (pid > 0 && one->pidfd < 0) {
        one->pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = one->pidfd};
        if (one->pidfd < 0 || epoll_ctl(host->epoll_fd, EPOLL_CTL_ADD, one->pidfd, &event) < 0) {
            one->settle_at = 0;
            one->unsettled = true; /* it ended before we could watch it: the watcher finds out what became of it */
            log_info("host.watch", "instance=%s pid=%lld errno=%d", one->key, (long long)pid, errno);
            wake_watcher(host);
        }
    }
    pthread_cond_broadcast(&host->changed);
    if (same)
        return;
    one->changed_at = time_unix_ns();
    struct status_event *event = xcalloc(1, sizeof(*event));
    *event = (struct status_event){NULL, xstrdup(one->project), xstrdup(one->name), status, pid, one->changed_at};
    *host->events_tail = event;
    host->events_tail = &event->next;
    wake_watcher(host);
}

/* What the container does is not known: the watcher has it asked, not before `after_ms`. */
static void unsettle(struct host *host, struct instance *one, int64_t after_ms)
{
    set_status(host, one, INSTANCE_ERROR, 0);
    one->unsettled = true;
    one->settle_at = time_mono_ms() + after_ms;
    wake_watcher(host);
}

static int take(struct host *host, struct instance *one, struct error *err)
{
    int64_t until = time_mono_ms() + HOST_BUSY_WAIT_MS;
    char *key = xstrdup(one->key);
    while (one && one->busy && time_mono_ms() < until && !host->stopping) {
        host__wait(host, HOST_WAIT_SLICE_MS);
        one = find(host, key); /* a deletion may have ended meanwhile */
    }
    free(key);
    if (!one)
        return error_set(err, STATUS_NOT_FOUND, "Instance not found");
    if (one->busy || host->stopping)
        return error_set(err, STATUS_UNAVAILABLE, "Instance is busy with another operation");
    one->busy = true;
    return STATUS_OK;
}

static void release(struct host *host, struct instance *one)
{
    one->busy = false;
    pthread_cond_broadcast(&host->changed);
}

/* The container for an operation, marked busy; made known if `create`. */
static int enter(struct host *host, const InstanceSpec *spec, bool create, struct instance **out, struct error *err)
{
    char *key = instances__key(spec->project, spec->name);
    pthread_mutex_lock(&host->lock);
    struct instance *one = find(host, key);
    int rc = STATUS_OK;
    if (!one && create && HASH_COUNT(host->instances) >= HOST_INSTANCES_MAX)
        rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "More than %d instances on this member", HOST_INSTANCES_MAX);
    else if (!one && create)
        one = add(host, key, project_of(spec), spec->name);
    if (!rc && !one)
        rc = error_set(err, STATUS_NOT_FOUND, "Instance not found");
    if (!rc)
        rc = take(host, one, err);
    *out = rc ? NULL : find(host, key);
    pthread_mutex_unlock(&host->lock);
    free(key);
    return rc;
}

static void leave(struct host *host, struct instance *one)
{
    pthread_mutex_lock(&host->lock);
    release(host, one);
    pthread_mutex_unlock(&host->lock);
}

static void change(struct host *host, struct instance *one, int status, int64_t pid)
{
    pthread_mutex_lock(&host->lock);
    set_status(host, one, status, pid);
    pthread_mutex_unlock(&host->lock);
}

/* Status and init now: also of a busy container, whose init may die by itself. */
static int look(struct host *host, const struct instance *one, int64_t *pid)
{
    pthread_mutex_lock(&host->lock);
    int status = one->status;
    if (pid)
        *pid = one->pid;
    pthread_mutex_unlock(&host->lock);
    return status;
}

int instances__status(struct host *host, const InstanceSpec *spec, int64_t *pid)
{
    char *key = instances__key(spec->project, spec->name);
    pthread_mutex_lock(&host->lock);
    struct instance *one = find(host, key);
    int status = one ? one->status : INSTANCE_STOPPED;
    if (pid)
        *pid = one ? one->pid : 0;
    pthread_mutex_unlock(&host->lock);
    free(key);
    return status;
}

static bool alive(int status)
{
    return status == INSTANCE_RUNNING || status == INSTANCE_FROZEN || status == INSTANCE_STOPPING || status == INSTANCE_FREEZING;
}

/* ---- questions to liblxc ---- */

static json_t *container_args(struct host *host, const char *key)
{
    char *path = xasprintf("%s/containers", host->state_dir);
    json_t *in = json_pack("{s:s, s:s}", "name", key, "lxcpath", path);
    free(path);
    return in;
}

static int status_of(const json_t *answer, int64_t *pid)
{
    const char *state = json_string_value(json_object_get(answer, "state"));
    *pid = json_integer_value(json_object_get(answer, "pid"));
    if (*pid > 0 && str_eq(state, "FROZEN"))
        return INSTANCE_FROZEN;
    if (*pid > 0 && state && !str_eq(state, "STOPPED") && !str_eq(state, "ABORTING"))
        return INSTANCE_RUNNING;
    *pid = 0;
    return INSTANCE_STOPPED;
}

struct settle {
    char *key;
    int64_t pid;
    uint64_t generation;
};

static bool stopping(struct host *host)
{
    pthread_mutex_lock(&host->lock);
    bool yes = host->stopping;
    pthread_mutex_unlock(&host->lock);
    return yes;
}

/* A thread's work: the init of a container died; is it stopped or did it reboot? A monitor that does not answer is asked again later. */
static void settle_run(struct host *host, void *arg)
{
    struct settle *settle = arg;
    int64_t pid = 0;
    int status = INSTANCE_ERROR;
    for (int i = 0; i < SETTLE_TRIES && status == INSTANCE_ERROR && !stopping(host); i++) {
        json_t *in = container_args(host, settle->key), *answer = NULL;
        struct error err = ERROR_INIT;
        json_object_set_new(in, "pid", json_integer(settle->pid));
        if (host__helper(host, "settle", in, HELPER_SETTLE_MS_MAX, &answer, &err))
            log_warn("host.settle", "instance=%s text=\"%s\"", settle->key, err.text);
        else
            status = status_of(answer, &pid);
        json_decref(answer);
    }
    pthread_mutex_lock(&host->lock);
    struct instance *one = find(host, settle->key);
    if (one && one->generation == settle->generation) { /* else someone knows better meanwhile */
        if (status == INSTANCE_ERROR)
            unsettle(host, one, HOST_SETTLE_AGAIN_MS);
        else
            set_status(host, one, status, pid);
    }
    pthread_mutex_unlock(&host->lock);
    free(settle->key);
    free(settle);
}

/* host->lock held: a container whose init ended: the one behind this descriptor, or (fd -1) one that could not be watched. */
static struct settle *init_died(struct host *host, int fd)
{
    struct instance *one, *next;
    int64_t now = time_mono_ms();
    HASH_ITER(hh, host->instances, one, next)
    {
        if (fd < 0 ? !one->unsettled || one->settle_at > now : one->pidfd != fd)
            continue;
        one->unsettled = false;
        unwatch(host, one);
        struct settle *settle = xcalloc(1, sizeof(*settle));
        *settle = (struct settle){xstrdup(one->key), one->pid, one->generation};
        return settle;
    }
    return NULL;
}

static void tell_events(struct host *host)
{
    for (;;) {
        pthread_mutex_lock(&host->lock);
        struct status_event *event = host->events;
        if (event && !(host->events = event->next))
            host->events_tail = &host->events;
        pthread_mutex_unlock(&host->lock);
        service__tell(host, event); /* also with NULL: new streams get their first message */
        if (!event)
            return;
        if (host->config.status_changed) {
            InstanceStatus status = COVEY__INTERNAL__V1__INSTANCE_STATUS__INIT;
            status.project = event->project;
            status.name = event->name;
            status.status_code = event->status;
            status.pid = event->pid;
            status.changed_at = event->changed_at;
            host->config.status_changed(host->config.ud, &status);
        }
        free(event->project);
        free(event->name);
        free(event);
    }
}

/* Asks what became of the container in a thread of its own; false if there was none to ask for. */
static bool settle_start(struct host *host, int fd)
{
    struct error err = ERROR_INIT;
    pthread_mutex_lock(&host->lock);
    struct settle *settle = host->stopping ? NULL : init_died(host, fd);
    pthread_mutex_unlock(&host->lock);
    if (settle && host__thread(host, settle_run, settle, &err)) {
        log_error("host.settle", "instance=%s text=\"%s\"", settle->key, err.text);
        settle_run(host, settle);
    }
    return settle != NULL;
}

void *instances__watcher(void *arg)
{
    struct host *host = arg;
    for (bool end = false; !end;) {
        struct epoll_event events[WATCH_EVENTS];
        int n = epoll_wait(host->epoll_fd, events, WATCH_EVENTS, WATCH_TICK_MS);
        for (int i = 0; i < n; i++) {
            uint64_t count;
            if (events[i].data.fd == host->wake_fd) {
                if (read(host->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
                    log_warn("host.wake", "errno=%d", errno);
                continue;
            }
            settle_start(host, events[i].data.fd);
        }
        while (settle_start(host, -1))
            ;
        tell_events(host);
        exec__tick(host);
        pthread_mutex_lock(&host->lock);
        end = host->stopping;
        pthread_mutex_unlock(&host->lock);
    }
    tell_events(host);
    return NULL;
}

/* ---- start of the daemon ---- */

static bool key_split(const char *key, char *project, char *name, size_t size)
{
    const char *line = strrchr(key, '_'); /* names of instances have no "_" */
    if (strlen(key) >= size)
        return false;
    snprintf(project, size, "%.*s", line ? (int)(line - key) : (int)strlen("default"), line ? key : "default");
    snprintf(name, size, "%s", line ? line + 1 : key);
    return host__name_ok(project) && check_name(name, NULL) == STATUS_OK;
}

static void load_started(struct host *host, struct instance *one)
{
    char *path = xasprintf("%s/containers/%s/start.json", host->state_dir, one->key);
    struct buf text = {0};
    struct error err = ERROR_INIT;
    json_t *root = file_read(path, START_FILE_BYTES_MAX, &text, &err) ? NULL : json_loadb(text.data, text.len, 0, NULL);
    const char *operation = json_string_value(json_object_get(root, "operation")), *key;
    snprintf(one->operation, sizeof(one->operation), "%s", operation ? operation : "");
    json_t *value;
    json_object_foreach(json_object_get(root, "volatile"), key, value)
    {
        one->started = xrealloc(one->started, (one->started_count + 1) * sizeof(*one->started));
        one->started[one->started_count++] =
            (struct volatile_key){xstrdup(key), xstrdup(json_string_value(value) ? json_string_value(value) : "")};
    }
    json_decref(root);
    buf_free(&text);
    free(path);
}

int instances__load(struct host *host, struct error *err)
{
    char *path = xasprintf("%s/containers", host->state_dir);
    DIR *dir = opendir(path);
    if (!dir) {
        error_errno(err, errno, "Failed to list %s", path);
        free(path);
        return err->code;
    }
    json_t *names = json_array();
    pthread_mutex_lock(&host->lock);
    for (struct dirent *entry; (entry = readdir(dir));) {
        char project[256], name[256];
        if (entry->d_name[0] == '.' || !key_split(entry->d_name, project, name, sizeof(name)))
            continue;
        load_started(host, add(host, entry->d_name, project, name));
        json_array_append_new(names, json_string(entry->d_name));
    }
    pthread_mutex_unlock(&host->lock);
    closedir(dir);
    json_t *answer = NULL, *in = json_pack("{s:s, s:o}", "lxcpath", path, "names", names);
    int64_t limit = HELPER_LOAD_MS_MAX + (int64_t)json_array_size(names) * 100;
    struct error why = ERROR_INIT;
    if (json_array_size(names) && host__helper(host, "list", json_incref(in), limit, &answer, &why))
        log_warn("host.list", "text=\"%s\"", why.text); /* one monitor that hangs must not keep the member from starting */
    json_decref(in);
    free(path);
    size_t i, running = 0;
    const json_t *item;
    pthread_mutex_lock(&host->lock);
    for (struct instance *one = answer ? NULL : host->instances; one; one = one->hh.next)
        unsettle(host, one, 0);
    json_array_foreach(json_object_get(answer, "containers"), i, item)
    {
        struct instance *one = find(host, json_string_value(json_object_get(item, "name")));
        int64_t pid;
        int status = status_of(item, &pid);
        if (one && status == INSTANCE_STOPPED && !str_eq(json_string_value(json_object_get(item, "state")), "STOPPED"))
            unsettle(host, one, 0); /* a start or stop of the daemon before this one is half way */
        else if (one)
            set_status(host, one, status, pid);
        running += status != INSTANCE_STOPPED;
    }
    pthread_mutex_unlock(&host->lock);
    json_decref(answer);
    log_info("host.start", "instances=%u running=%zu cgroup=%s", HASH_COUNT(host->instances), running, host->cgroup2 ? "v2" : "v1");
    return STATUS_OK;
}

void instances__clear(struct host *host)
{
    struct instance *one, *next;
    HASH_ITER(hh, host->instances, one, next) drop(host, one);
    while (host->events) {
        struct status_event *event = host->events;
        host->events = event->next;
        free(event->project);
        free(event->name);
        free(event);
    }
}

void host_instances(struct host *host, struct arena *arena, InstanceStatus ***out, size_t *count)
{
    pthread_mutex_lock(&host->lock);
    *count = 0;
    *out = arena_alloc(arena, (HASH_COUNT(host->instances) + 1) * sizeof(**out));
    struct instance *one, *next;
    HASH_ITER(hh, host->instances, one, next)
    {
        InstanceStatus *status = arena_alloc(arena, sizeof(*status));
        covey__internal__v1__instance_status__init(status);
        status->project = arena_strdup(arena, one->project);
        status->name = arena_strdup(arena, one->name);
        status->status_code = one->status;
        status->pid = one->pid;
        status->changed_at = one->changed_at;
        (*out)[(*count)++] = status;
    }
    pthread_mutex_unlock(&host->lock);
}

/* ---- create, delete ---- */

/* A path below the state folder for this container; caller frees. */
static char *place(struct host *host, const char *folder, const char *key)
{
    return xasprintf("%s/%s/%s", host->state_dir, folder, key);
}

int instances__create(struct host *host, const Covey__Internal__V1__CreateInstanceRequest *request, struct error *err)
{
    const InstanceSpec *spec = request->spec;
    char *image = NULL, *rootfs = NULL;
    int rc = instances__check_spec(spec, err);
    if (rc)
        return rc;
    if (!spec->pool)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Failed getting root disk: No root device could be found");
    if (!str_empty(request->image) && (rc = images__paths(host, request->image, &image, &rootfs, err)))
        return rc;
    struct instance *one = NULL;
    bool known;
    char *key = instances__key(spec->project, spec->name);
    pthread_mutex_lock(&host->lock);
    known = find(host, key) != NULL;
    pthread_mutex_unlock(&host->lock);
    rc = enter(host, spec, true, &one, err);
    char *run = place(host, "containers", key), *logs = place(host, "logs", key);
    if (!rc && alive(look(host, one, NULL))) {
        rc = error_set(err, STATUS_ALREADY_EXISTS, "Instance \"%s\" already exists on this member and is running", spec->name);
    } else if (!rc) {
        rc = pools__volume_create(host, spec->pool, key, spec->uuid, image ? image : "", rootfs ? rootfs : "", config__bool(spec, "security.privileged"), err);
        if (!rc && ((rc = dir_make(run, 0711, err)) || (rc = dir_make(logs, 0700, err))))
            pools__volume_delete(host, spec->pool, key, NULL);
    }
    if (one) {
        pthread_mutex_lock(&host->lock);
        release(host, one);
        if (rc && !known)
            drop(host, one);
        pthread_mutex_unlock(&host->lock);
    }
    free(key);
    free(run);
    free(logs);
    free(image);
    free(rootfs);
    return rc;
}

int instances__delete(struct host *host, const InstanceSpec *spec, struct error *err)
{
    struct instance *one = NULL;
    int rc = instances__check_spec(spec, err);
    if (rc)
        return rc;
    char *key = instances__key(spec->project, spec->name);
    rc = enter(host, spec, true, &one, err); /* what is not known may still have left folders */
    if (!rc && alive(look(host, one, NULL)))
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "Instance is running");
    else if (!rc && look(host, one, NULL) == INSTANCE_ERROR) /* its processes may still use the volume */
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "Instance does not tell whether it runs: stop it by force first");
    else if (!rc && spec->pool)
        rc = pools__volume_delete(host, spec->pool, key, err);
    char *run = place(host, "containers", key), *logs = place(host, "logs", key);
    if (!rc)
        networks__forget_nic(host, key, NULL);
    if (!rc)
        rc = dir_remove_all(run, err);
    if (!rc)
        rc = dir_remove_all(logs, err);
    if (one) {
        pthread_mutex_lock(&host->lock);
        release(host, one);
        if (!rc)
            drop(host, one);
        pthread_mutex_unlock(&host->lock);
    }
    free(key);
    free(run);
    free(logs);
    return rc;
}

/* ---- start ---- */

static int write_file(const char *dir, const char *name, const char *text, struct error *err)
{
    char *path = xasprintf("%s/%s", dir, name);
    int rc = file_write_atomic(path, text, strlen(text), 0600, err);
    free(path);
    return rc;
}

static const char seccomp_policy[] = "2\ndenylist\nreject_force_umount\n[all]\nkexec_load errno 38\nkexec_file_load errno 38\n"
                                     "open_by_handle_at errno 38\ninit_module errno 38\nfinit_module errno 38\ndelete_module errno 38\n";

/* Writes config, seccomp policy and the record of this start. */
static int start_files(struct host *host, const InstanceSpec *spec, const char *key, const char *run, const char *logs, struct volatile_key **keys,
                       size_t *key_count, struct error *err)
{
    char *volume = NULL;
    struct buf text = {0};
    int rc = pools__volume(host, spec->pool, key, &volume, err);
    if (rc)
        return rc;
    char *rootfs = xasprintf("%s/rootfs", volume), *seccomp = xasprintf("%s/seccomp", run), *old = xasprintf("%s/lxc.log.old", logs),
         *log = xasprintf("%s/lxc.log", logs);
    struct config_paths paths = {rootfs, logs, seccomp};
    if (access(rootfs, F_OK) < 0)
        rc = error_errno(err, errno, "Failed to find the root folder of the instance");
    if (!rc && !(rc = dir_make(run, 0711, err)) && !(rc = dir_make(logs, 0700, err)))
        rc = config__build(host, spec, &paths, &text, keys, key_count, err);
    if (!rc)
        rc = networks__remember_nics(host, spec, key, *keys, *key_count, err);
    if (!rc && !(rc = write_file(run, "config", text.data, err)) && !(rc = write_file(logs, "lxc.conf", text.data, err)))
        rc = write_file(run, "seccomp", seccomp_policy, err);
    if (!rc && rename(log, old) < 0 && errno != ENOENT)
        rc = error_errno(err, errno, "Failed to keep the last log");
    json_t *record = json_pack("{s:s, s:{}}", "operation", spec->operation, "volatile");
    for (size_t i = 0; i < *key_count; i++)
        json_object_set_new(json_object_get(record, "volatile"), (*keys)[i].key, json_string((*keys)[i].value));
    char *dump = json_dumps(record, 0);
    if (!rc)
        rc = write_file(run, "start.json", dump ? dump : "{}", err);
    free(dump);
    json_decref(record);
    buf_free(&text);
    free(rootfs);
    free(seccomp);
    free(old);
    free(log);
    free(volume);
    return rc;
}

static void start_answer(const struct instance *one, struct arena *arena, Covey__Internal__V1__StartInstanceResponse **out)
{
    Covey__Internal__V1__StartInstanceResponse *response = arena_alloc(arena, sizeof(*response));
    covey__internal__v1__start_instance_response__init(response);
    response->pid = one->pid;
    response->volatile_ = arena_alloc(arena, (one->started_count + 1) * sizeof(*response->volatile_));
    for (size_t i = 0; i < one->started_count; i++) {
        Covey__Internal__V1__StartInstanceResponse__VolatileEntry *entry = arena_alloc(arena, sizeof(*entry));
        covey__internal__v1__start_instance_response__volatile_entry__init(entry);
        entry->key = arena_strdup(arena, one->started[i].key);
        entry->value = arena_strdup(arena, one->started[i].value);
        response->volatile_[response->n_volatile_++] = entry;
    }
    *out = response;
}

static int start_helper(struct host *host, const char *key, const char *logs, int64_t *pid, struct error *err)
{
    json_t *answer = NULL, *in = container_args(host, key);
    char *log = xasprintf("%s/lxc.log", logs);
    json_object_set_new(in, "log", json_string(log));
    json_object_set_new(in, "without_uidmap_tools", json_boolean(!host->map.root_entry));
    int rc = host__helper(host, "start", in, HELPER_START_MS_MAX, &answer, err);
    if (rc == STATUS_DEADLINE_EXCEEDED) /* its monitor may live on, half way */
        host__helper(host, "stop", container_args(host, key), HELPER_STOP_MS_MAX, NULL, NULL);
    if (!rc)
        *pid = json_integer_value(json_object_get(answer, "pid"));
    json_decref(answer);
    free(log);
    return rc;
}

int instances__start(struct host *host, const InstanceSpec *spec, struct arena *arena, Covey__Internal__V1__StartInstanceResponse **out, struct error *err)
{
    struct instance *one = NULL;
    int rc = instances__check_spec(spec, err);
    if (!rc && !spec->pool)
        rc = error_set(err, STATUS_INVALID_ARGUMENT, "Failed getting root disk: No root device could be found");
    if (!rc)
        rc = enter(host, spec, true, &one, err);
    if (rc)
        return rc;
    int before = look(host, one, NULL);
    if (alive(before)) {
        pthread_mutex_lock(&host->lock);
        if (!str_empty(spec->operation) && str_eq(one->operation, spec->operation))
            start_answer(one, arena, out);
        else
            rc = error_set(err, STATUS_FAILED_PRECONDITION, "The instance is already running");
        release(host, one);
        pthread_mutex_unlock(&host->lock);
        return rc;
    }
    char *run = place(host, "containers", one->key), *logs = place(host, "logs", one->key);
    struct volatile_key *keys = NULL;
    size_t key_count = 0;
    int64_t pid = 0;
    change(host, one, INSTANCE_STARTING, 0);
    rc = start_files(host, spec, one->key, run, logs, &keys, &key_count, err);
    bool unclear = before == INSTANCE_ERROR;
    if (!rc && (rc = start_helper(host, one->key, logs, &pid, err)))
        unclear = unclear || rc == STATUS_FAILED_PRECONDITION || rc == STATUS_DEADLINE_EXCEEDED; /* runs by a former daemon's start; monitor hangs */
    pthread_mutex_lock(&host->lock);
    forget_started(one);
    one->started = keys;
    one->started_count = key_count;
    snprintf(one->operation, sizeof(one->operation), "%s", rc ? "" : spec->operation);
    if (rc && unclear)
        unsettle(host, one, 0);
    else
        set_status(host, one, rc || pid <= 0 ? INSTANCE_STOPPED : INSTANCE_RUNNING, rc || pid <= 0 ? 0 : pid);
    if (!rc)
        start_answer(one, arena, out);
    release(host, one);
    pthread_mutex_unlock(&host->lock);
    free(run);
    free(logs);
    return rc;
}

/* ---- stop, freeze ---- */

static int stop_by_force(struct host *host, struct instance *one, struct error *err)
{
    pthread_mutex_lock(&host->lock);
    set_status(host, one, INSTANCE_STOPPING, one->pid);
    pthread_mutex_unlock(&host->lock);
    int rc = host__helper(host, "stop", container_args(host, one->key), HELPER_STOP_MS_MAX, NULL, err);
    pthread_mutex_lock(&host->lock);
    if (!rc)
        set_status(host, one, INSTANCE_STOPPED, 0);
    else if (one->status == INSTANCE_STOPPING && one->pid > 0)
        set_status(host, one, INSTANCE_RUNNING, one->pid);
    else if (one->status == INSTANCE_STOPPING)
        unsettle(host, one, 0);
    release(host, one);
    pthread_mutex_unlock(&host->lock);
    return rc;
}

/* The init was asked; waits without being busy until it is gone. */
static int wait_stopped(struct host *host, const char *key, int64_t pid, int64_t timeout_ms, struct rpc_call *call, struct error *err)
{
    int64_t until = timeout_ms < 0 ? INT64_MAX : time_mono_ms() + timeout_ms;
    int rc = STATUS_OK;
    pthread_mutex_lock(&host->lock);
    for (;;) {
        struct instance *one = find(host, key);
        if (!one || one->status == INSTANCE_STOPPED)
            break;
        if (one->pid > 0 && one->pid != pid) {
            rc = error_set(err, STATUS_FAILED_PRECONDITION, "The instance restarted instead of stopping");
            break;
        }
        int64_t left = until - time_mono_ms();
        bool gone = call && rpc_call_cancelled(call);
        if (left <= 0 || gone || host->stopping) {
            if (one->status == INSTANCE_STOPPING)
                set_status(host, one, INSTANCE_RUNNING, one->pid);
            rc = gone ? error_set(err, STATUS_CANCELLED, "The stop was cancelled") : host->stopping
                     ? error_set(err, STATUS_UNAVAILABLE, "This member is shutting down")
                     : error_set(err, STATUS_DEADLINE_EXCEEDED, "Failed shutting down instance, it is still running after %lld s",
                                 (long long)((timeout_ms + 999) / 1000));
            break;
        }
        host__wait(host, left < HOST_WAIT_SLICE_MS ? left : HOST_WAIT_SLICE_MS);
    }
    pthread_mutex_unlock(&host->lock);
    return rc;
}

int instances__stop(struct host *host, const Covey__Internal__V1__StopInstanceRequest *request, struct rpc_call *call, struct error *err)
{
    struct instance *one = NULL;
    int rc = instances__check_spec(request->spec, err);
    if (!rc)
        rc = enter(host, request->spec, false, &one, err);
    if (rc == STATUS_NOT_FOUND)
        return STATUS_OK; /* never started here: stopped is what was asked for */
    if (rc)
        return rc;
    int64_t pid = 0;
    int status = look(host, one, &pid);
    if (!alive(status) && status != INSTANCE_ERROR) {
        leave(host, one);
        return STATUS_OK;
    }
    if (request->force || request->timeout_ms == 0)
        return stop_by_force(host, one, err);
    if (status == INSTANCE_FROZEN) {
        leave(host, one);
        return error_set(err, STATUS_FAILED_PRECONDITION, "Instance is frozen");
    }
    char *key = xstrdup(one->key);
    pthread_mutex_lock(&host->lock);
    if (one->pid == pid)
        set_status(host, one, INSTANCE_STOPPING, pid);
    pthread_mutex_unlock(&host->lock);
    rc = host__helper(host, "halt", container_args(host, key), HELPER_QUICK_MS_MAX, NULL, err);
    pthread_mutex_lock(&host->lock);
    if (rc && one->status == INSTANCE_STOPPING)
        set_status(host, one, INSTANCE_RUNNING, one->pid);
    release(host, one);
    pthread_mutex_unlock(&host->lock);
    if (!rc)
        rc = wait_stopped(host, key, pid, request->timeout_ms, call, err);
    free(key);
    return rc;
}

int instances__freeze(struct host *host, const InstanceSpec *spec, bool unfreeze, struct error *err)
{
    struct instance *one = NULL;
    int rc = instances__check_spec(spec, err);
    if (!rc)
        rc = enter(host, spec, false, &one, err);
    if (rc)
        return rc;
    int wanted = unfreeze ? INSTANCE_RUNNING : INSTANCE_FROZEN;
    int64_t pid = 0;
    int before = look(host, one, &pid);
    if (!alive(before)) {
        rc = error_set(err, STATUS_FAILED_PRECONDITION, "The container isn't running");
    } else if (before != wanted) {
        if (!unfreeze)
            change(host, one, INSTANCE_FREEZING, pid);
        rc = host__helper(host, unfreeze ? "unfreeze" : "freeze", container_args(host, one->key), HELPER_QUICK_MS_MAX, NULL, err);
        pthread_mutex_lock(&host->lock);
        if (one->pid == pid && one->status != INSTANCE_STOPPED)
            set_status(host, one, rc ? before : wanted, pid);
        pthread_mutex_unlock(&host->lock);
    }
    leave(host, one);
    return rc;
}
