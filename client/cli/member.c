/* cluster edit, cluster role …, cluster group …: the writable part of members, and named sets of them. Reads, changes and writes back whole records,
 * guarded by their ETag unless they come by pipe. */
#include "noun.h"
#include <stdlib.h>
#include <string.h>

static int put_record(struct cli *cli, struct covey_client *client, const char *method, const char *name, json_t *record, const char *etag, struct error *err)
{
    json_object_set_new(record, "name", json_string(name));
    if (etag)
        json_object_set_new(record, "if_match", json_string(etag));
    return cli_call(cli, client, method, record, NULL, err);
}

/* ---- members ---- */

static const char *const member_keys[] = {"roles", "failure_domain", "description", "config", "groups", NULL};

int run_cluster_edit(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *member = NULL, *changed = NULL;
    char *etag = NULL;
    int status = cluster_member_get(cli, &client, &member, &etag, err);
    if (status)
        return status;
    json_t *writable = record_only(member, member_keys);
    status = record_edit(cli, writable, &etag, &changed, err);
    if (!status)
        status = put_record(cli, client, "Cluster/UpdateMember", json_text(member, "server_name"), changed, etag, err);
    json_decref(writable);
    json_decref(member);
    free(etag);
    return status;
}

static bool list_has(const json_t *list, const char *text)
{
    size_t index;
    const json_t *item;
    json_array_foreach(list, index, item) if (str_eq(json_string_value(item), text)) return true;
    return false;
}

static json_t *list_without(const json_t *list, const char *text)
{
    json_t *out = json_array(), *item;
    size_t index;
    json_array_foreach((json_t *)list, index, item) if (!str_eq(json_string_value(item), text)) json_array_append(out, item);
    return out;
}

/* "a,b" as a new list; empty words are left out. */
static json_t *split(const char *words)
{
    json_t *out = json_array();
    while (*words) {
        size_t len = strcspn(words, ",");
        if (len)
            json_array_append_new(out, json_stringn(words, len));
        words += len + (words[len] == ',');
    }
    return out;
}

static int change_roles(struct cli *cli, bool add, struct error *err)
{
    struct covey_client *client;
    json_t *member = NULL, *roles = split(cli->argv[1]), *role;
    char *etag = NULL;
    int status = cluster_member_get(cli, &client, &member, &etag, err);
    size_t index;
    json_array_foreach(roles, index, role)
    {
        json_t *now = json_object_get(member, "roles");
        const char *name = json_string_value(role);
        if (status)
            break;
        if (list_has(now, name) == add)
            status = error_set(err, STATUS_FAILED_PRECONDITION, "Member \"%s\" %s role \"%s\"", cli->argv[0], add ? "already has" : "does not have", name);
        else if (add)
            json_array_append(now, role);
        else
            json_object_set_new(member, "roles", list_without(now, name));
    }
    if (!status)
        status = put_record(cli, client, "Cluster/UpdateMember", json_text(member, "server_name"), json_incref(member), etag, err);
    json_decref(roles);
    json_decref(member);
    free(etag);
    return status;
}

int run_cluster_role_add(struct cli *cli, struct error *err) { return change_roles(cli, true, err); }
int run_cluster_role_remove(struct cli *cli, struct error *err) { return change_roles(cli, false, err); }

/* ---- a member's groups ---- */

/* Gives a member exactly these groups. Consumes the list. */
static int put_groups(struct cli *cli, struct covey_client *client, json_t *member, json_t *groups, const char *etag, struct error *err)
{
    json_object_set_new(member, "groups", groups);
    return put_record(cli, client, "Cluster/UpdateMember", json_text(member, "server_name"), json_incref(member), etag, err);
}

int run_cluster_group_assign(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *member = NULL;
    char *etag = NULL;
    int status = cluster_member_get(cli, &client, &member, &etag, err);
    if (!status)
        status = put_groups(cli, client, member, split(cli->argv[1]), etag, err);
    if (!status)
        cli_say(cli, "Cluster member %s added to cluster groups %s\n", json_text(member, "server_name"), cli->argv[1]);
    json_decref(member);
    free(etag);
    return status;
}

int run_cluster_group_add(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *member = NULL;
    char *etag = NULL;
    const char *group = cli->argv[1];
    int status = cluster_member_get(cli, &client, &member, &etag, err);
    json_t *groups = json_object_get(member, "groups");
    if (!status && list_has(groups, group))
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Cluster member %s is already in group %s", json_text(member, "server_name"), group);
    if (!status) {
        json_t *more = json_deep_copy(groups);
        json_array_append_new(more, json_string(group));
        status = put_groups(cli, client, member, more, etag, err);
    }
    if (!status)
        cli_say(cli, "Cluster member %s added to group %s\n", json_text(member, "server_name"), group);
    json_decref(member);
    free(etag);
    return status;
}

int run_cluster_group_remove(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *member = NULL;
    char *etag = NULL;
    const char *group = cli->argv[1];
    int status = cluster_member_get(cli, &client, &member, &etag, err);
    const json_t *groups = json_object_get(member, "groups");
    if (!status && !list_has(groups, group))
        status = error_set(err, STATUS_FAILED_PRECONDITION, "Cluster group %s isn't currently applied to %s", group, json_text(member, "server_name"));
    if (!status)
        status = put_groups(cli, client, member, list_without(groups, group), etag, err);
    if (!status)
        cli_say(cli, "Cluster member %s removed from group %s\n", json_text(member, "server_name"), group);
    json_decref(member);
    free(etag);
    return status;
}

/* ---- groups ---- */

static const char *const group_keys[] = {"description", "members", NULL};
static const struct noun cluster_groups = {.service = "ClusterGroups", .type = "ClusterGroup", .key = "name", .label = "Cluster group"};

int run_cluster_group_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply = NULL;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cluster_needed(cli, client, err);
    if (!status)
        status = cli_call(cli, client, "ClusterGroups/ListClusterGroups", json_pack("{s:i}", "recursion", 1), &reply, err);
    if (status)
        return status;
    static const char *const headers[] = {"NAME", "DESCRIPTION", "MEMBERS"};
    struct table table;
    table_init(&table, headers, 3);
    const json_t *groups = json_object_get(reply, "groups"), *group;
    size_t index;
    json_array_foreach(groups, index, group)
    {
        char *count = xasprintf("%zu", json_array_size(json_object_get(group, "members")));
        table_add(&table, json_text(group, "name"), json_text(group, "description"), count);
        free(count);
    }
    table_sort(&table);
    status = cli_print(cli, &table, groups, err);
    table_free(&table);
    json_decref(reply);
    return status;
}

int run_cluster_group_show(struct cli *cli, struct error *err) { return noun_show(cli, &cluster_groups, err); }

int run_cluster_group_create(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *name;
    json_t *request = NULL, *given = NULL;
    int status = noun_resolve(cli, &cluster_groups, &client, &name, err);
    if (!status && !cli_stdin_is_terminal(cli)) { /* description and members may come by pipe */
        struct buf text = {0};
        status = cli_read_all(cli->in, &text, err);
        if (!status && text.len) {
            given = yaml_parse(text.data, text.len, err);
            status = given ? STATUS_OK : (int)err->code;
        }
        buf_free(&text);
    }
    if (!status) {
        request = record_only(given, group_keys);
        json_object_set_new(request, "name", json_string(name));
        status = cli_call(cli, client, "ClusterGroups/CreateClusterGroup", request, NULL, err);
    }
    if (!status)
        cli_say(cli, "Cluster group %s created\n", name);
    json_decref(given);
    free(name);
    return status;
}

int run_cluster_group_delete(struct cli *cli, struct error *err) { return noun_delete(cli, &cluster_groups, err); }
int run_cluster_group_rename(struct cli *cli, struct error *err) { return noun_rename(cli, &cluster_groups, err); }
int run_cluster_group_edit(struct cli *cli, struct error *err) { return noun_edit(cli, &cluster_groups, group_keys, err); }
