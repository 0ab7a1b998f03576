/* admin activateifneeded: at boot, wakes a socket-activated daemon when this server has something to run. Reads the files of a stopped daemon only. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A daemon with a network address must be there for others. */
static const char listens[] = "SELECT 1 FROM config WHERE key = 'core.https_address' AND value <> ''";
static const char own_id[] = "SELECT value FROM state WHERE key = 'member_id'";
/* What the last run left of the replicated database: instances of this server that ran, start by themselves or are snapshot on a schedule, by their own
 * configuration or a profile's. */
static const char due[] =
    "WITH settings (instance_id, key, value) AS (SELECT instance_id, key, value FROM instances_config UNION ALL SELECT p.instance_id, c.key, c.value"
    " FROM instances_profiles p JOIN profiles_config c ON c.profile_id = p.profile_id)"
    " SELECT 1 FROM instances i JOIN settings s ON s.instance_id = i.id WHERE i.node_id = %s AND ((s.key = 'volatile.last_state.power' AND s.value = 'RUNNING')"
    " OR (s.key = 'boot.autostart' AND lower(s.value) IN ('true', '1', 'yes', 'on')) OR (s.key = 'snapshots.schedule' AND s.value <> '')) LIMIT 1";

static bool file_exists(const char *dir, const char *name)
{
    struct stat info;
    char *path = xasprintf("%s/database/%s", dir, name);
    bool exists = stat(path, &info) == 0;
    free(path);
    return exists;
}

/* The first value of the first row as text, NULL if there is none; borrowed from *reply. */
static int first_value(const char *dir, const char *file, const char *query, json_t **reply, const char **value, struct error *err)
{
    *value = NULL;
    int status = stopped_database_query(dir, file, query, reply, err);
    if (status)
        return status;
    const json_t *rows = json_object_get(json_array_get(json_object_get(*reply, "results"), 0), "rows");
    if (json_array_size(rows)) {
        const json_t *first = json_array_get(json_object_get(json_array_get(rows, 0), "values"), 0);
        *value = json_string_value(json_object_get(first, "text"));
        *value = *value ? *value : "1";
    }
    return STATUS_OK;
}

int run_admin_activateifneeded(struct cli *cli, struct error *err)
{
    const char *dir = cli_state_dir(cli), *found, *id;
    json_t *reply = NULL, *named = NULL;
    if (geteuid() != 0)
        return error_set(err, STATUS_PERMISSION_DENIED, "This must be run as root");
    if (!file_exists(dir, "local.db"))
        return STATUS_OK; /* never started */
    int status = first_value(dir, "local.db", listens, &reply, &found, err);
    if (!status && !found && file_exists(dir, "global.sqlite")) {
        status = first_value(dir, "local.db", own_id, &named, &id, err);
        char *query = status ? NULL : xasprintf(due, id && strspn(id, "0123456789") == strlen(id) ? id : "1");
        json_decref(reply);
        reply = NULL;
        if (!status)
            status = first_value(dir, "global.sqlite", query, &reply, &found, err);
        free(query);
    }
    json_decref(reply);
    json_decref(named);
    struct covey_client *client;
    return status || !found ? status : cli_local(cli, &client, err); /* the connection starts it */
}
