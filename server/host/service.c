/* The RPC handlers of covey.internal.v1.Agent, thin. They run on agent worker threads, which may block. */
#include "host_private.h"
#include <stdlib.h>
#include <string.h>

#define HANDLER(name) \
    static int name(struct rpc_call *call, const ProtobufCMessage *request, ProtobufCMessage **response, struct error *err, void *ud)

typedef Covey__Internal__V1__ListInstancesResponse ListResponse;

HANDLER(create_instance)
{
    const Covey__Internal__V1__CreateInstanceRequest *in = (const void *)request;
    return instances__create(ud, in, err);
}

HANDLER(delete_instance)
{
    return instances__delete(ud, (const InstanceSpec *)request, err);
}

HANDLER(start_instance)
{
    Covey__Internal__V1__StartInstanceResponse *out = NULL;
    int rc = instances__start(ud, (const InstanceSpec *)request, rpc_arena(call), &out, err);
    *response = out ? &out->base : NULL;
    return rc;
}

HANDLER(stop_instance)
{
    return instances__stop(ud, (const void *)request, call, err);
}

HANDLER(freeze_instance)
{
    const Covey__Internal__V1__FreezeInstanceRequest *in = (const void *)request;
    return instances__freeze(ud, in->spec, in->unfreeze, err);
}

HANDLER(get_instance_state)
{
    Covey__V1__InstanceState *out = NULL;
    int rc = state__get(ud, (const InstanceSpec *)request, rpc_arena(call), &out, err);
    *response = out ? &out->base : NULL;
    return rc;
}

HANDLER(list_instances)
{
    ListResponse *out = arena_alloc(rpc_arena(call), sizeof(*out));
    covey__internal__v1__list_instances_response__init(out);
    host_instances(ud, rpc_arena(call), &out->instances, &out->n_instances);
    *response = &out->base;
    return STATUS_OK;
}

/* ---- WatchInstances ---- */

static void watch_gone(struct rpc_call *call, void *ud)
{
    struct host *host = ud;
    pthread_mutex_lock(&host->lock);
    for (struct watch *one = host->watches; one; one = one->next)
        if (one->call == call)
            one->gone = true;
    pthread_mutex_unlock(&host->lock);
}

HANDLER(watch_instances)
{
    struct host *host = ud;
    unsigned count = 0;
    pthread_mutex_lock(&host->lock);
    for (struct watch *one = host->watches; one; one = one->next)
        count++;
    if (count >= HOST_WATCHERS_MAX || host->stopping) {
        pthread_mutex_unlock(&host->lock);
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "More than %d watchers of instances", HOST_WATCHERS_MAX);
    }
    struct watch *watch = xcalloc(1, sizeof(*watch));
    *watch = (struct watch){host->watches, call, true, false};
    host->watches = watch;
    pthread_mutex_unlock(&host->lock);
    rpc_call_on_done(call, watch_gone, host); /* the watcher thread sends the first message at its next round */
    return RPC_LATER;
}

static int send_list(struct host *host, struct watch *watch, const struct status_event *event)
{
    struct arena arena;
    ListResponse list = COVEY__INTERNAL__V1__LIST_INSTANCES_RESPONSE__INIT;
    InstanceStatus status = COVEY__INTERNAL__V1__INSTANCE_STATUS__INIT, *one = &status;
    arena_init(&arena);
    if (watch->fresh) {
        host_instances(host, &arena, &list.instances, &list.n_instances);
    } else {
        status.project = event->project;
        status.name = event->name;
        status.status_code = event->status;
        status.pid = event->pid;
        status.changed_at = event->changed_at;
        list.instances = &one;
        list.n_instances = 1;
    }
    watch->fresh = false;
    int rc = rpc_try_send(watch->call, &list.base, NULL);
    arena_clear(&arena);
    return rc;
}

/* Watcher thread only (which alone removes entries, so the list can be walked without the lock while it sends). */
void service__tell(struct host *host, const struct status_event *event)
{
    pthread_mutex_lock(&host->lock);
    struct watch *first = host->watches;
    pthread_mutex_unlock(&host->lock);
    for (struct watch *one = first; one; one = one->next) {
        if (one->gone || (!event && !one->fresh))
            continue;
        if (send_list(host, one, event)) { /* too slow or gone: it may come again and gets the whole */
            struct error err = ERROR_INIT;
            error_set(&err, STATUS_RESOURCE_EXHAUSTED, "The watcher is too slow");
            rpc_finish(one->call, NULL, err.code, &err);
            one->gone = true;
        }
    }
    struct watch *dead = NULL;
    pthread_mutex_lock(&host->lock);
    for (struct watch **at = &host->watches; *at;) {
        struct watch *one = *at;
        if (!one->gone) {
            at = &one->next;
            continue;
        }
        *at = one->next;
        one->next = dead;
        dead = one;
    }
    pthread_mutex_unlock(&host->lock);
    while (dead) {
        struct watch *one = dead;
        dead = one->next;
        rpc_finish(one->call, NULL, STATUS_CANCELLED, NULL);
        rpc_call_unref(one->call);
        free(one);
    }
}

void service__end_watches(struct host *host)
{
    pthread_mutex_lock(&host->lock);
    struct watch *one = host->watches;
    host->watches = NULL;
    pthread_mutex_unlock(&host->lock);
    while (one) {
        struct watch *next = one->next;
        struct error err = ERROR_INIT;
        error_set(&err, STATUS_UNAVAILABLE, "This member is shutting down");
        rpc_finish(one->call, NULL, err.code, &err);
        rpc_call_unref(one->call);
        free(one);
        one = next;
    }
}

/* ---- exec, images, pools ---- */

HANDLER(cancel_exec)
{
    const Covey__Internal__V1__CancelExecRequest *in = (const void *)request;
    return exec__cancel(ud, in->operation, err);
}

HANDLER(fetch_image)
{
    const Covey__Internal__V1__FetchImageRequest *in = (const void *)request;
    return images__fetch(ud, in->fingerprint, call, err);
}

HANDLER(pull_image)
{
    return images__pull(ud, (const void *)request, call, err);
}

HANDLER(delete_image)
{
    const Covey__Internal__V1__DeleteImageRequest *in = (const void *)request;
    return host_image_delete(ud, in->fingerprint, err);
}

HANDLER(list_logs)
{
    const Covey__Internal__V1__LogRequest *in = (const void *)request;
    Covey__Internal__V1__ListLogsResponse *out = arena_alloc(rpc_arena(call), sizeof(*out));
    covey__internal__v1__list_logs_response__init(out);
    *response = &out->base;
    return logs__list(ud, in->spec, rpc_arena(call), &out->names, &out->n_names, err);
}

HANDLER(read_log)
{
    const Covey__Internal__V1__LogRequest *in = (const void *)request;
    Covey__Internal__V1__ReadLogResponse *out = arena_alloc(rpc_arena(call), sizeof(*out));
    covey__internal__v1__read_log_response__init(out);
    *response = &out->base;
    return logs__read(ud, in->spec, in->file, in->offset, rpc_arena(call), &out->data, &out->size, err);
}

HANDLER(delete_log)
{
    const Covey__Internal__V1__LogRequest *in = (const void *)request;
    return logs__delete(ud, in->spec, in->file, err);
}

HANDLER(create_pool)
{
    Covey__Internal__V1__PoolResponse *out = NULL;
    int rc = pools__create(ud, (const PoolSpec *)request, rpc_arena(call), &out, err);
    *response = out ? &out->base : NULL;
    return rc;
}

HANDLER(delete_pool)
{
    return pools__delete(ud, (const PoolSpec *)request, err);
}

HANDLER(get_pool_resources)
{
    Covey__V1__StoragePoolResources *out = NULL;
    int rc = pools__resources(ud, (const PoolSpec *)request, rpc_arena(call), &out, err);
    *response = out ? &out->base : NULL;
    return rc;
}

/* ---- networks ---- */

HANDLER(apply_network)
{
    return networks__apply(ud, (const NetworkSpec *)request, err);
}

HANDLER(remove_network)
{
    return networks__remove(ud, (const NetworkSpec *)request, err);
}

HANDLER(get_network_leases)
{
    Covey__V1__ListNetworkLeasesResponse *out = NULL;
    int rc = networks__leases(ud, (const NetworkSpec *)request, rpc_arena(call), &out, err);
    *response = out ? &out->base : NULL;
    return rc;
}

HANDLER(list_host_networks)
{
    Covey__Internal__V1__HostNetworks *out = arena_alloc(rpc_arena(call), sizeof(*out));
    covey__internal__v1__host_networks__init(out);
    networks__list(ud, rpc_arena(call), out);
    *response = &out->base;
    const Covey__Internal__V1__ListHostNetworksRequest *in = (const void *)request;
    return in->subnets ? interfaces__subnets(rpc_arena(call), &out->subnets, &out->n_subnets, err) : STATUS_OK;
}

static const struct rpc_binding bindings[] = {
    {"CreateInstance", create_instance}, {"DeleteInstance", delete_instance}, {"StartInstance", start_instance}, {"StopInstance", stop_instance},
    {"FreezeInstance", freeze_instance}, {"GetInstanceState", get_instance_state}, {"ListInstances", list_instances},
    {"WatchInstances", watch_instances}, {"Exec", exec__handle}, {"CancelExec", cancel_exec}, {"Connect", exec__connect},
    {"FetchImage", fetch_image}, {"PullImage", pull_image}, {"DeleteImage", delete_image}, {"CreatePool", create_pool},
    {"ListLogs", list_logs}, {"ReadLog", read_log}, {"DeleteLog", delete_log},
    {"DeletePool", delete_pool}, {"GetPoolResources", get_pool_resources}, {"ApplyNetwork", apply_network}, {"RemoveNetwork", remove_network},
    {"GetNetworkLeases", get_network_leases}, {"ListHostNetworks", list_host_networks},
};

void host_bind(struct host *host)
{
    rpc_bind("covey.internal.v1.Agent", bindings, sizeof(bindings) / sizeof(bindings[0]), host);
}

const char *host_helper_path(const struct host *host)
{
    return host->helper;
}
