/* Reading instances: lists, one instance, live state. Members are asked in parallel and for a bounded time; one that does not answer costs its own
 * instances' state only. Handlers run on the leader, on worker threads. */
#include "instance.h"

#include "server/cluster/cluster.h"
#include "server/daemon/etag.h"
#include "server/daemon/filter.h"
#include <pthread.h>
#include <string.h>

static const char *code_name(int64_t code)
{
    static const struct {
        int64_t code;
        const char *name;
    } names[] = {{102, "Stopped"}, {103, "Running"}, {106, "Starting"}, {107, "Stopping"}, {108, "Aborting"}, {109, "Freezing"}, {110, "Frozen"}, {111, "Thawed"},
        {113, "Ready"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (names[i].code == code) {
            return names[i].name;
        }
    }
    return "Error";
}

static Google__Protobuf__Timestamp *timestamp(int64_t unix_ns, struct arena *arena)
{
    if (unix_ns <= 0) {
        return NULL;
    }
    Google__Protobuf__Timestamp *out = arena_alloc(arena, sizeof *out);
    google__protobuf__timestamp__init(out);
    out->seconds = unix_ns / 1000000000;
    out->nanos = (int32_t)(unix_ns % 1000000000);
    return out;
}

static Covey__V1__Instance *render(const struct instance *one, struct arena *arena)
{
    Covey__V1__Instance *out = arena_alloc(arena, sizeof *out);
    covey__v1__instance__init(out);
    out->architecture = (char *)architecture_name((int)one->architecture);
    out->config = settings_to_map(&one->own.config, &covey__v1__instance__config_entry__descriptor, &out->n_config, arena);
    out->devices = devices_to_map(&one->own.devices, &covey__v1__instance__devices_entry__descriptor, &out->n_devices, arena);
    out->expanded_config = settings_to_map(&one->expanded.config, &covey__v1__instance__expanded_config_entry__descriptor, &out->n_expanded_config, arena);
    out->expanded_devices = devices_to_map(&one->expanded.devices, &covey__v1__instance__expanded_devices_entry__descriptor, &out->n_expanded_devices, arena);
    out->ephemeral = one->ephemeral;
    out->stateful = one->stateful;
    out->profiles = one->profiles;
    out->n_profiles = one->profile_count;
    out->description = (char *)one->description;
    out->created_at = timestamp(one->created_ns, arena);
    out->last_used_at = timestamp(one->used_ns, arena);
    out->type = "container";
    return out;
}

/* What is known without the member: all that is shown of an instance on an unreachable one. */
static void render_place(Covey__V1__Instance *out, const struct instance *one, int64_t code)
{
    out->name = (char *)one->name;
    out->project = (char *)one->project;
    out->location = (char *)one->member_name;
    out->status_code = code;
    out->status = (char *)code_name(code);
}

static Covey__V1__Instance *render_unreachable(const struct instance *one, struct arena *arena)
{
    Covey__V1__Instance *out = arena_alloc(arena, sizeof *out);
    covey__v1__instance__init(out);
    render_place(out, one, CODE_ERROR);
    return out;
}

char *instance_etag(const struct instance *instance, struct arena *arena)
{
    return etag_make(arena, &render(instance, arena)->base, "architecture,config,devices,ephemeral,profiles,description");
}

static Covey__V1__InstanceState *state_stopped(int64_t code, struct arena *arena)
{
    Covey__V1__InstanceState *state = arena_alloc(arena, sizeof *state);
    covey__v1__instance_state__init(state);
    state->status_code = code;
    state->status = (char *)code_name(code);
    state->memory = arena_alloc(arena, sizeof *state->memory);
    covey__v1__memory_state__init(state->memory);
    state->cpu = arena_alloc(arena, sizeof *state->cpu);
    covey__v1__cpu_state__init(state->cpu);
    return state;
}

/* ---- live state of many ---- */

struct question {
    const struct instance *instance;
    Covey__V1__InstanceState *state; /* the answer, NULL = none */
};
struct member_questions {
    uint64_t member;
    int64_t until_ms;
    pthread_mutex_t *lock; /* protects arena, next */
    struct arena *arena;
    struct question **list;
    size_t count, next;
    bool silent; /* one question ran into its time: the others are not asked */
};

static void *ask(void *ud)
{
    struct member_questions *in = ud;
    struct arena arena;
    arena_init(&arena);
    for (;;) {
        pthread_mutex_lock(in->lock);
        struct question *question = in->next < in->count && !in->silent ? in->list[in->next++] : NULL;
        pthread_mutex_unlock(in->lock);
        int64_t left = in->until_ms - time_mono_ms();
        if (question == NULL || left <= 0) {
            break;
        }
        Covey__Internal__V1__InstanceSpec spec = COVEY__INTERNAL__V1__INSTANCE_SPEC__INIT;
        spec.project = (char *)question->instance->project;
        spec.name = (char *)question->instance->name;
        ProtobufCMessage *answer = NULL;
        struct error err = ERROR_INIT;
        int status = agent_call(the_daemon, in->member, "GetInstanceState", &spec.base, &answer, &arena, left, &err);
        pthread_mutex_lock(in->lock);
        if (status == STATUS_OK && answer != NULL) {
            question->state = (Covey__V1__InstanceState *)codec_copy(answer, in->arena);
        } else if (status == STATUS_UNAVAILABLE || status == STATUS_DEADLINE_EXCEEDED) {
            in->silent = true;
        }
        pthread_mutex_unlock(in->lock);
        arena_clear(&arena);
    }
    arena_clear(&arena);
    return NULL;
}

/* Questions are sorted by member into one list each; every list gets a few threads, all ended on return. */
static void ask_all(struct question *questions, size_t count, struct arena *arena)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const struct view *view = view_get();
    size_t member_count = 0, member_max = view->message->n_members + 1, thread_count = 0;
    struct member_questions *members = arena_alloc(arena, member_max * sizeof *members);
    pthread_t *threads = arena_alloc(arena, member_max * INSTANCE_STATE_PARALLEL * sizeof *threads);
    view_unref(view);
    int64_t until_ms = time_mono_ms() + INSTANCE_STATE_WAIT_MS;
    for (size_t i = 0; i < count; i++) {
        size_t m = 0;
        while (m < member_count && members[m].member != questions[i].instance->member) {
            m++;
        }
        if (m == member_max) {
            continue; /* a member that joined after the view was taken: shown as unreachable this time */
        }
        if (m == member_count) {
            members[member_count++] = (struct member_questions){.member = questions[i].instance->member, .until_ms = until_ms, .lock = &lock, .arena = arena,
                .list = arena_alloc(arena, (count - i) * sizeof(struct question *))};
        }
        members[m].list[members[m].count++] = &questions[i];
    }
    struct member_questions *here = NULL;
    for (size_t m = 0; m < member_count; m++) {
        size_t wanted = members[m].count < INSTANCE_STATE_PARALLEL ? members[m].count : INSTANCE_STATE_PARALLEL;
        for (size_t t = 0; t < wanted; t++) {
            if (member_count == 1 && t == 0) { /* this thread helps when there is one member */
                here = &members[m];
            } else if (pthread_create(&threads[thread_count], NULL, ask, &members[m]) == 0) {
                thread_count++;
            }
        }
    }
    if (here != NULL) {
        ask(here);
    }
    for (size_t t = 0; t < thread_count; t++) {
        pthread_join(threads[t], NULL);
    }
}

static void add_full(Covey__V1__Instance *out, Covey__V1__InstanceState *state, struct arena *arena)
{
    out->full = arena_alloc(arena, sizeof *out->full);
    covey__v1__instance_full__init(out->full);
    out->full->state = state;
}

/* Turns loaded instances into messages; `full` with state. */
static Covey__V1__Instance **render_all(struct instance *const *list, size_t count, bool full, struct arena *arena)
{
    Covey__V1__Instance **out = arena_alloc(arena, (count + 1) * sizeof *out);
    struct question *questions = arena_alloc(arena, (count + 1) * sizeof *questions);
    size_t *asked = arena_alloc(arena, (count + 1) * sizeof *asked);
    size_t question_count = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t code = instance_status(the_daemon, list[i]->member, list[i]->project, list[i]->name, NULL);
        if (code == CODE_ERROR && !member_online(the_daemon, list[i]->member)) {
            out[i] = render_unreachable(list[i], arena);
            if (full) {
                add_full(out[i], NULL, arena);
            }
            continue;
        }
        out[i] = render(list[i], arena);
        render_place(out[i], list[i], code);
        if (full && code_alive(code)) {
            asked[question_count] = i;
            questions[question_count++].instance = list[i];
        } else if (full) {
            add_full(out[i], state_stopped(code, arena), arena);
        }
    }
    ask_all(questions, question_count, arena);
    for (size_t q = 0; q < question_count; q++) {
        size_t i = asked[q];
        if (questions[q].state == NULL) {
            out[i] = render_unreachable(list[i], arena);
        }
        add_full(out[i], questions[q].state, arena);
    }
    return out;
}

/* Keeps what matches; the objects are those of recursion 1. */
static int apply_filter(const char *text, struct instance **list, size_t *count, struct arena *arena, struct error *err)
{
    struct filter *filter = NULL;
    int status = filter_parse(text, &filter, err);
    if (status != STATUS_OK) {
        return status;
    }
    Covey__V1__Instance **objects = render_all(list, *count, false, arena);
    size_t kept = 0;
    for (size_t i = 0; i < *count; i++) {
        if (filter_match_message(filter, &objects[i]->base)) {
            list[kept++] = list[i];
        }
    }
    *count = kept;
    filter_free(filter);
    return STATUS_OK;
}

/* ---- handlers ---- */

struct listing {
    struct instance_filter filter;
    bool specs;
    struct arena *arena;
    struct instance *items;
    size_t count;
};

static int read_list(struct sql *sql, void *ud, struct error *err)
{
    struct listing *in = ud;
    return instances_load(sql, &in->filter, in->specs, in->arena, &in->items, &in->count, err);
}

int list_instances(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__ListInstancesRequest *request = (const Covey__V1__ListInstancesRequest *)message;
    struct arena *arena = rpc_arena(call);
    if (request->all_projects && !str_empty(request->project)) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Cannot specify a project when requesting all projects");
    }
    if (!str_empty(request->instance_type) && strcmp(request->instance_type, "container") != 0 && strcmp(request->instance_type, "virtual-machine") != 0) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid instance type");
    }
    struct listing in = {.arena = arena, .specs = request->recursion > 0 || !str_empty(request->filter)};
    in.filter.project = request->all_projects ? NULL : project_or_default(request->project);
    if (in.filter.project != NULL && instance_allowed(call, in.filter.project, err) != STATUS_OK) {
        return err->code;
    }
    Covey__V1__ListInstancesResponse *out = arena_alloc(arena, sizeof *out);
    covey__v1__list_instances_response__init(out);
    *response = &out->base;
    if (str_eq(request->instance_type, "virtual-machine")) {
        return STATUS_OK; /* there are none */
    }
    int status = daemon_read(the_daemon, DB_LINEARIZABLE, read_list, &in, NULL, err);
    if (status != STATUS_OK) {
        return status;
    }
    struct instance **shown = arena_alloc(arena, (in.count + 1) * sizeof *shown);
    size_t count = 0;
    for (size_t i = 0; i < in.count; i++) {
        bool leftover = in.items[i].phase == PHASE_DELETING && in.items[i].operation[0] == '\0'; /* the sweep removes it */
        if (!leftover && caller_sees(rpc_caller(call), in.items[i].project)) {
            shown[count++] = &in.items[i];
        }
    }
    if (!str_empty(request->filter) && (status = apply_filter(request->filter, shown, &count, arena, err)) != STATUS_OK) {
        return status;
    }
    if (request->recursion > 0) {
        out->instances = render_all(shown, count, request->recursion > 1, arena);
        out->n_instances = count;
        return STATUS_OK;
    }
    out->urls = arena_alloc(arena, (count + 1) * sizeof *out->urls);
    for (size_t i = 0; i < count; i++) {
        out->urls[out->n_urls++] = instance_url(arena, "instances", shown[i]->project, shown[i]->name);
    }
    return STATUS_OK;
}

int get_instance(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetInstanceRequest *request = (const Covey__V1__GetInstanceRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct instance *one = NULL;
    const char *project = project_or_default(request->project);
    int status = instance_allowed(call, project, err);
    status = status == STATUS_OK ? instance_find(project, request->name, arena, &one, NULL, err) : status;
    if (status == STATUS_OK && request->recursion == 0) {
        status = instance_reachable(one, err);
    }
    if (status == STATUS_OK) {
        Covey__V1__Instance **out = render_all(&one, 1, request->recursion > 0, arena);
        out[0]->etag = instance_etag(one, arena);
        *response = &out[0]->base;
    }
    return status;
}

int get_instance_state(struct rpc_call *call, const ProtobufCMessage *message, ProtobufCMessage **response, struct error *err, void *ud)
{
    const Covey__V1__GetInstanceStateRequest *request = (const Covey__V1__GetInstanceStateRequest *)message;
    struct arena *arena = rpc_arena(call);
    struct instance *one = NULL;
    Covey__Internal__V1__InstanceSpec *spec = NULL;
    const char *project = project_or_default(request->project);
    int status = instance_allowed(call, project, err);
    status = status == STATUS_OK ? instance_find(project, request->name, arena, &one, &spec, err) : status;
    return status == STATUS_OK ? agent_call(the_daemon, one->member, "GetInstanceState", &spec->base, response, arena, 0, err) : status;
}
