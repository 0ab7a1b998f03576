/* covey.v1.Instances: the bindings and what its handlers share. Handlers run on the leader, on worker threads. */
#include "instance.h"

#include "server/cluster/cluster.h"
#include "server/services.h"
#include <string.h>

bool caller_sees(const struct caller *caller, const char *project)
{
    for (size_t i = 0; caller->restricted && caller->projects != NULL && caller->projects[i] != NULL; i++) {
        if (strcmp(caller->projects[i], project) == 0) {
            return true;
        }
    }
    return !caller->restricted;
}

int instance_allowed(const struct rpc_call *call, const char *project, struct error *err)
{
    return caller_sees(rpc_caller(call), project) ? STATUS_OK : error_set(err, STATUS_PERMISSION_DENIED, "not authorized");
}

char *instance_url(struct arena *arena, const char *noun, const char *project, const char *name)
{
    return strcmp(project, "default") == 0 ? arena_printf(arena, "/1.0/%s/%s", noun, name) : arena_printf(arena, "/1.0/%s/%s?project=%s", noun, name, project);
}

char *instance_resources(struct arena *arena, const char *project, const char *name)
{
    struct buf text = {0};
    buf_puts(&text, "{\"instances\":[");
    buf_json_string(&text, instance_url(arena, "instances", project, name));
    buf_puts(&text, "],\"containers\":[");
    buf_json_string(&text, instance_url(arena, "containers", project, name));
    buf_puts(&text, "]}");
    char *out = arena_strdup(arena, text.data);
    buf_free(&text);
    return out;
}

int instance_reachable(const struct instance *instance, struct error *err)
{
    return member_online(the_daemon, instance->member) ? STATUS_OK
                                                        : error_set(err, STATUS_UNAVAILABLE, "Cluster member %s is offline", instance->member_name);
}

bool code_alive(int64_t code)
{
    return code != CODE_STOPPED && code != CODE_ERROR && code != 0;
}

int64_t instance_live_status(const struct instance *instance, const Covey__Internal__V1__InstanceSpec *spec, struct arena *arena)
{
    int64_t code = instance_status(the_daemon, instance->member, instance->project, instance->name, NULL);
    if (code == CODE_STOPPED || code == CODE_ERROR) { /* stopped, or unknown to a new leader */
        ProtobufCMessage *state = NULL;
        struct error err = ERROR_INIT;
        if (agent_call(the_daemon, instance->member, "GetInstanceState", &spec->base, &state, arena, INSTANCE_STATE_WAIT_MS, &err) == STATUS_OK && state != NULL) {
            code = ((const Covey__V1__InstanceState *)state)->status_code;
        }
    }
    return code;
}

struct seen {
    const char *key;
    int64_t found;
};

static int read_seen(struct sql *sql, void *ud, struct error *err)
{
    struct seen *seen = ud;
    return sql_get_int(sql, &seen->found, err, "SELECT count(*) FROM requests WHERE key = ?1", "s", seen->key);
}

int instance_op(struct rpc_call *call, const struct op_spec *spec, int checks, Covey__V1__Operation **out, struct error *err)
{
    if (checks != STATUS_OK) { /* a repetition meets what its first try has changed already: it gets the operation, not the refusal */
        struct error ignored = ERROR_INIT;
        struct seen seen = {.key = arena_printf(rpc_arena(call), "%s/op", rpc_request_id(call))};
        if (daemon_read(the_daemon, DB_LINEARIZABLE, read_seen, &seen, NULL, &ignored) != STATUS_OK || seen.found == 0) {
            return checks;
        }
    }
    return op_create(call, spec, out, err);
}

void instance_event(const char *action, const struct instance *instance, const struct caller *requestor, const char *context_json)
{
    struct arena arena;
    arena_init(&arena);
    events_lifecycle(action, instance_url(&arena, "instances", instance->project, instance->name), instance->project, requestor, context_json, instance->member_name);
    arena_clear(&arena);
}

static const struct rpc_binding bindings[] = {
    {"ListInstances", list_instances},
    {"GetInstance", get_instance},
    {"CreateInstance", create_instance},
    {"UpdateInstance", update_instance},
    {"DeleteInstance", delete_instance},
    {"GetInstanceState", get_instance_state},
    {"UpdateInstanceState", update_instance_state},
    {"UpdateInstancesState", update_instances_state},
    {"ExecInstance", exec_instance},
    {"ListInstanceLogs", list_instance_logs},
    {"GetInstanceLog", get_instance_log},
    {"DeleteInstanceLog", delete_instance_log},
};

void instances_bind(void)
{
    create_register();
    update_register();
    lifecycle_register();
    exec_register();
    rpc_bind("covey.v1.Instances", bindings, sizeof bindings / sizeof *bindings, NULL);
}
