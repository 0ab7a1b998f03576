/* warning …: what needs attention. */
#include "noun.h"
#include <stdlib.h>
#include <string.h>

int run_warning_list(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    json_t *reply = NULL, *server = NULL;
    int status = cli_check_format(cli, err);
    if (!status)
        status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, NULL, err);
    if (!status)
        status = cli_call(cli, client, "Server/GetServer", NULL, &server, err);
    if (!status)
        status = cli_call(cli, client, "Warnings/ListWarnings", json_pack("{s:i}", "recursion", 1), &reply, err);
    bool clustered = json_is_true(json_object_get(json_object_get(server, "environment"), "server_clustered"));
    json_decref(server);
    if (status)
        return status;
    const char *const headers[] = {"UUID", "TYPE", "STATUS", "SEVERITY", "COUNT", "PROJECT", clustered ? "LOCATION" : "LAST SEEN", "LAST SEEN"};
    struct table table;
    table_init(&table, headers, clustered ? 8 : 7);
    json_t *shown = json_array(), *warning;
    size_t index;
    json_array_foreach(json_object_get(reply, "warnings"), index, warning)
    {
        char last[CLI_SHORT_TIME_SIZE], *count = xasprintf("%lld", (long long)json_integer_value(json_object_get(warning, "count")));
        const char *state = json_text(warning, "status");
        cli_short_time(json_text(warning, "last_seen_at"), last);
        if (cli_switch(cli, "all-warnings") || strcmp(state, "new") == 0) { /* what was seen or is over is hidden */
            char *shown_state = text_upper(state), *severity = text_upper(json_text(warning, "severity"));
            const char *cells[] = {json_text(warning, "uuid"), json_text(warning, "type"), shown_state, severity, count, json_text(warning, "project"),
                                   clustered ? json_text(warning, "location") : last, last};
            table_add_row(&table, cells);
            free(shown_state);
            free(severity);
            json_array_append(shown, warning);
        }
        free(count);
    }
    table_sort(&table);
    status = cli_print(cli, &table, shown, err);
    table_free(&table);
    json_decref(shown);
    json_decref(reply);
    return status;
}

static const struct noun warnings = {.service = "Warnings", .type = "Warning", .key = "uuid", .label = "Warning"};

int run_warning_show(struct cli *cli, struct error *err) { return noun_show(cli, &warnings, err); }

int run_warning_ack(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *uuid;
    int status = cli_resolve(cli, cli->argv[0], &client, &uuid, err);
    if (!status)
        status = cli_call(cli, client, "Warnings/UpdateWarning", json_pack("{s:s,s:s}", "uuid", uuid, "status", "acknowledged"), NULL, err);
    free(uuid);
    return status;
}

int run_warning_delete(struct cli *cli, struct error *err)
{
    struct covey_client *client;
    char *uuid = NULL;
    json_t *reply = NULL, *warning;
    bool all = cli_switch(cli, "all-warnings");
    int status = cli_resolve(cli, cli->argc ? cli->argv[0] : NULL, &client, &uuid, err);
    if (!status && !all && (!uuid || !*uuid))
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Specify a warning UUID or use --all");
    if (!status && !all)
        status = cli_call(cli, client, "Warnings/DeleteWarning", json_pack("{s:s}", "uuid", uuid), NULL, err);
    if (!status && all)
        status = cli_call(cli, client, "Warnings/ListWarnings", json_pack("{s:i}", "recursion", 1), &reply, err);
    size_t index;
    json_array_foreach(json_object_get(reply, "warnings"), index, warning)
    {
        if (!status)
            status = cli_call(cli, client, "Warnings/DeleteWarning", json_pack("{s:s}", "uuid", json_text(warning, "uuid")), NULL, err);
    }
    json_decref(reply);
    free(uuid);
    return status;
}
