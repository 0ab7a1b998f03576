/* list: the instances as a table. Filters: "key=value" over the instance's own fields and configuration, anything else a beginning of the name. */
#include "cli.h"
#include <regex.h>
#include <stdlib.h>
#include <string.h>

enum { LIST_COLUMNS_MAX = 16 };

struct column {
    char letter;
    const char *header;
    char *(*text)(const json_t *instance);
    bool state; /* needs the full form */
};

static char *upper(const char *text)
{
    char *copy = xstrdup(text);
    for (char *c = copy; *c; c++)
        *c = (char)(*c >= 'a' && *c <= 'z' ? *c - 32 : *c);
    return copy;
}

static char *col_name(const json_t *i) { return xstrdup(json_text(i, "name")); }
static char *col_state(const json_t *i) { return upper(json_text(i, "status")); }
static char *col_location(const json_t *i) { return xstrdup(json_text(i, "location")); }
static char *col_architecture(const json_t *i) { return xstrdup(json_text(i, "architecture")); }
static char *col_description(const json_t *i) { return xstrdup(json_text(i, "description")); }
static char *col_project(const json_t *i) { return xstrdup(json_text(i, "project")); }
static char *minute_of(const json_t *i, const char *key)
{
    char text[CLI_SHORT_TIME_SIZE];
    cli_minute_time(json_text(i, key), text);
    return xstrdup(text);
}
static char *col_created(const json_t *i) { return minute_of(i, "created_at"); }
static char *col_used(const json_t *i) { return minute_of(i, "last_used_at"); }
static char *col_snapshots(const json_t *i) { return xasprintf("%zu", json_array_size(json_object_get(i, "snapshots"))); }

static char *col_type(const json_t *i)
{
    char *type = upper(json_text(i, "type"));
    if (json_is_true(json_object_get(i, "ephemeral"))) {
        char *both = xasprintf("%s (EPHEMERAL)", type);
        free(type);
        return both;
    }
    return type;
}

static char *col_pid(const json_t *i)
{
    int64_t pid = json_integer_value(json_object_get(json_object_get(i, "state"), "pid"));
    return pid > 0 ? xasprintf("%lld", (long long)pid) : xstrdup("");
}

static char *col_profiles(const json_t *i)
{
    struct buf text = {0};
    size_t index;
    const json_t *profile;
    json_array_foreach(json_object_get(i, "profiles"), index, profile) buf_printf(&text, "%s%s", index ? "\n" : "", json_string_value(profile));
    return buf_take(&text);
}

static int compare_lines(const void *a, const void *b) { return -strcmp(*(char *const *)a, *(char *const *)b); }

/* "10.0.0.9 (eth0)" for each global address, one per line; sorted backwards, as lxc does. */
static char *addresses(const json_t *instance, const char *family)
{
    char *lines[256];
    size_t count = 0, index;
    const char *name;
    json_t *nic;
    const json_t *address;
    json_object_foreach(json_object_get(json_object_get(instance, "state"), "network"), name, nic)
    {
        if (strcmp(json_text(nic, "type"), "loopback") == 0)
            continue;
        json_array_foreach(json_object_get(nic, "addresses"), index, address)
        {
            const char *scope = json_text(address, "scope");
            if (strcmp(scope, "link") == 0 || strcmp(scope, "local") == 0 || strcmp(json_text(address, "family"), family) != 0)
                continue;
            if (count < sizeof(lines) / sizeof(*lines) - 1)
                lines[count++] = xasprintf("%s (%s)", json_text(address, "address"), name);
            else if (count == sizeof(lines) / sizeof(*lines) - 1)
                lines[count++] = xstrdup("...");
        }
    }
    qsort(lines, count, sizeof(*lines), compare_lines);
    struct buf text = {0};
    for (size_t i = 0; i < count; i++) {
        buf_printf(&text, "%s%s", i ? "\n" : "", lines[i]);
        free(lines[i]);
    }
    return buf_take(&text);
}

static char *col_ipv4(const json_t *i) { return addresses(i, "inet"); }
static char *col_ipv6(const json_t *i) { return addresses(i, "inet6"); }

static const struct column columns[] = {
    {'n', "NAME", col_name, false},
    {'s', "STATE", col_state, false},
    {'4', "IPV4", col_ipv4, true},
    {'6', "IPV6", col_ipv6, true},
    {'t', "TYPE", col_type, false},
    {'S', "SNAPSHOTS", col_snapshots, true},
    {'L', "LOCATION", col_location, false},
    {'a', "ARCHITECTURE", col_architecture, false},
    {'c', "CREATED AT", col_created, false},
    {'d', "DESCRIPTION", col_description, false},
    {'e', "PROJECT", col_project, false},
    {'l', "LAST USED AT", col_used, false},
    {'p', "PID", col_pid, true},
    {'P', "PROFILES", col_profiles, false},
};

static int choose_columns(const char *letters, const struct column **chosen, size_t *count, struct error *err)
{
    *count = 0;
    for (; *letters; letters++) {
        if (*letters == ',')
            continue;
        const struct column *found = NULL;
        for (size_t i = 0; i < sizeof(columns) / sizeof(*columns); i++)
            if (columns[i].letter == *letters)
                found = &columns[i];
        if (!found)
            return error_set(err, STATUS_INVALID_ARGUMENT, "Unknown column shorthand char '%c' in '%s'", *letters, letters);
        if (*count == LIST_COLUMNS_MAX)
            return error_set(err, STATUS_INVALID_ARGUMENT, "more than %d columns", LIST_COLUMNS_MAX);
        chosen[(*count)++] = found;
    }
    return *count ? STATUS_OK : error_set(err, STATUS_INVALID_ARGUMENT, "no columns");
}

static bool regex_matches(const char *pattern, const char *text)
{
    char *anchored = xasprintf("^(%s)$", pattern);
    regex_t regex;
    bool match = strcmp(pattern, text) == 0;
    if (!regcomp(&regex, anchored, REG_EXTENDED | REG_NOSUB)) {
        match = match || !regexec(&regex, text, 0, NULL, 0);
        regfree(&regex);
    }
    free(anchored);
    return match;
}

static bool matches(const json_t *instance, char **filters, int count)
{
    for (int i = 0; i < count; i++) {
        const char *filter = filters[i], *equal = strchr(filter, '=');
        bool match;
        if (equal) {
            char *key = xasprintf("%.*s", (int)(equal - filter), filter);
            const char *value = json_text(instance, key);
            if (!*value)
                value = json_text(json_object_get(instance, "expanded_config"), key);
            match = strcasecmp(value, equal + 1) == 0 || regex_matches(equal + 1, value);
            free(key);
        } else {
            match = str_prefix(json_text(instance, "name"), filter) || regex_matches(filter, json_text(instance, "name"));
        }
        if (!match)
            return false;
    }
    return true;
}

static int default_columns(struct cli *cli, struct covey_client *client, char out[32], struct error *err)
{
    json_t *server;
    int status = cli_call(cli, client, "Server/GetServer", NULL, &server, err);
    if (status)
        return status;
    bool clustered = json_is_true(json_object_get(json_object_get(server, "environment"), "server_clustered"));
    json_decref(server);
    snprintf(out, 32, "%s%s%s", cli_switch(cli, "all-projects") ? "e" : "", cli_switch(cli, "fast") ? "nsacPt" : "ns46tS", clustered ? "L" : "");
    return STATUS_OK;
}

int run_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    size_t len = cli->argc ? strlen(cli->argv[0]) : 0, count = 0;
    char *colon = len ? strchr(cli->argv[0], ':') : NULL, *rest = NULL;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, colon ? cli->argv[0] : NULL, &client, colon ? &rest : NULL, err);
    if (!status && colon) /* "remote:" or "remote:filter"; the empty beginning matches every name */
        cli->argv[0] = rest;
    char letters[32];
    const struct column *chosen[LIST_COLUMNS_MAX];
    if (!status && !cli_flag(cli, "columns"))
        status = default_columns(cli, client, letters, err);
    if (!status)
        status = choose_columns(cli_flag(cli, "columns") ? cli_flag(cli, "columns") : letters, chosen, &count, err);
    const char *format = cli_flag(cli, "format");
    bool full = str_eq(format, "json") || str_eq(format, "yaml");
    const char *headers[LIST_COLUMNS_MAX];
    for (size_t i = 0; i < count; i++) {
        headers[i] = chosen[i]->header;
        full = full || chosen[i]->state;
    }
    json_t *reply = NULL, *raw = json_array(), *instance;
    if (!status)
        status = cli_call(cli, client, "Instances/ListInstances", json_pack("{s:i}", "recursion", full ? 2 : 1), &reply, err);
    struct table table;
    table_init(&table, headers, count);
    size_t index;
    json_array_foreach(json_object_get(reply, "instances"), index, instance)
    {
        if (!matches(instance, cli->argv, cli->argc))
            continue;
        char *cells[LIST_COLUMNS_MAX];
        for (size_t i = 0; i < count; i++)
            cells[i] = chosen[i]->text(instance);
        table_add_row(&table, (const char *const *)cells);
        for (size_t i = 0; i < count; i++)
            free(cells[i]);
        json_array_append(raw, instance);
    }
    table_sort(&table);
    if (!status)
        status = cli_print(cli, &table, raw, err);
    table_free(&table);
    json_decref(raw);
    json_decref(reply);
    free(rest);
    return status;
}
