/* The promises that GET /1.0 makes to clients, one name each (spec/api.md 3.2). A name stands here only when all that it names is true now; what clients do
 * without it is in 3.2.2. Left out until built: clustering_evacuation, console,
 * container_backup, directory_manipulation, file_*, projects, project_usage, resources*, snapshots, cluster_internal_copy. */
#include "server.h"

static const char *const names[] = {
    "api_filtering",
    "certificate_token",
    "cluster_join_token_expiry",
    "cluster_ovn_chassis",
    "clustering",
    "clustering_architecture",
    "clustering_config",
    "clustering_description",
    "clustering_edit_roles",
    "clustering_failure_domains",
    "clustering_groups",
    "clustering_image_replication",
    "clustering_join",
    "clustering_join_token",
    "clustering_roles",
    "clustering_server_address",
    "clustering_sizing",
    "clustering_update_cert",
    "container_exec_recording",
    "container_exec_user_group_cwd",
    "container_full",
    "database_leader",
    "entity_description",
    "etag",
    "event_hub",
    "event_lifecycle",
    "event_location",
    "event_project",
    "init_preseed",
    "instance_all_projects",
    "instance_bulk_state_change",
    "instance_get_full",
    "instance_nic_network",
    "instances",
    "network",
    "network_leases",
    "network_leases_location",
    "network_state",
    "operation_description",
    "patch",
    "profile_usedby",
    "remote_token_expiry",
    "server_supported_storage_drivers",
    "storage",
    "warnings",
};

const char *const *api_extensions(size_t *count)
{
    *count = sizeof names / sizeof *names;
    return names;
}
