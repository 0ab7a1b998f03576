/* Commands that are the same for most nouns. Main thread. */
#include "noun.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { METHOD_BYTES = 96 };

static const char *method(const struct noun *noun, const char *verb, char out[METHOD_BYTES])
{
    snprintf(out, METHOD_BYTES, "%s/%s%s", noun->service, verb, noun->type);
    return out;
}

int noun_resolve(struct cli *cli, const struct noun *noun, struct covey_client **client, char **name, struct error *err)
{
    int status = cli_resolve(cli, cli->argv[0], client, name, err);
    if (!status && !**name) {
        free(*name);
        status = error_set(err, STATUS_INVALID_ARGUMENT, "Missing %c%s %s", tolower((unsigned char)noun->label[0]), noun->label + 1, noun->key);
    }
    if (status)
        *name = NULL;
    return status;
}

int noun_get(struct cli *cli, const struct noun *noun, struct covey_client **client, json_t **record, char **etag, struct error *err)
{
    char *name, get[METHOD_BYTES];
    *record = NULL;
    int status = noun_resolve(cli, noun, client, &name, err);
    if (!status)
        status = cli_call_etag(cli, *client, method(noun, "Get", get), json_pack("{s:s}", noun->key, name), record, etag, err);
    free(name);
    return status;
}

int noun_put(struct cli *cli, const struct noun *noun, struct covey_client *client, json_t *record, char *etag, struct error *err)
{
    char update[METHOD_BYTES];
    if (etag)
        json_object_set_new(record, "if_match", json_string(etag));
    free(etag);
    if (noun->check && noun->check(record, err)) {
        json_decref(record);
        return (int)err->code;
    }
    return cli_call(cli, client, method(noun, "Update", update), record, NULL, err);
}

int record_edit(struct cli *cli, const json_t *record, char **etag, json_t **changed, struct error *err)
{
    struct buf text = {0};
    char *edited = NULL;
    yaml_write(record, &text);
    int status = cli_edit(cli, text.data, &edited, err);
    buf_free(&text);
    json_t *parsed = status ? NULL : yaml_parse(edited, strlen(edited), err);
    free(edited);
    if (!status && !json_is_object(parsed)) {
        status = parsed ? error_set(err, STATUS_INVALID_ARGUMENT, "yaml: expected a map") : (int)err->code;
        json_decref(parsed);
        parsed = NULL;
    }
    if (!status && !cli_stdin_is_terminal(cli)) {
        free(*etag);
        *etag = NULL;
    }
    *changed = parsed;
    return status;
}

json_t *record_only(const json_t *record, const char *const *fields)
{
    json_t *out = json_object();
    for (; *fields; fields++)
        if (json_object_get(record, *fields))
            json_object_set(out, *fields, json_object_get(record, *fields));
    return out;
}

int noun_show(struct cli *cli, const struct noun *noun, struct error *err)
{
    struct covey_client *client;
    json_t *record;
    int status = noun_get(cli, noun, &client, &record, NULL, err);
    if (!status)
        status = cli_print_yaml(record);
    json_decref(record);
    return status;
}

int noun_delete(struct cli *cli, const struct noun *noun, struct error *err)
{
    struct covey_client *client;
    char *name, delete[METHOD_BYTES];
    int status = noun_resolve(cli, noun, &client, &name, err);
    if (!status)
        status = cli_call(cli, client, method(noun, "Delete", delete), json_pack("{s:s}", noun->key, name), NULL, err);
    if (!status)
        cli_say(cli, "%s %s deleted\n", noun->label, name);
    free(name);
    return status;
}

int noun_rename(struct cli *cli, const struct noun *noun, struct error *err)
{
    struct covey_client *client;
    char *name, rename[METHOD_BYTES];
    int status = noun_resolve(cli, noun, &client, &name, err);
    if (!status)
        status = cli_call(cli, client, method(noun, "Rename", rename), json_pack("{s:s,s:s}", "old_name", name, "name", cli->argv[1]), NULL, err);
    if (!status)
        cli_say(cli, "%s %s renamed to %s\n", noun->label, name, cli->argv[1]);
    free(name);
    return status;
}

int noun_get_key(struct cli *cli, const struct noun *noun, struct error *err)
{
    struct covey_client *client;
    json_t *record;
    int status = noun_get(cli, noun, &client, &record, NULL, err);
    if (!status)
        printf("%s\n", json_text(json_object_get(record, "config"), cli->argv[1]));
    json_decref(record);
    return status;
}

int noun_set_keys(struct cli *cli, const struct noun *noun, struct error *err)
{
    struct covey_client *client;
    json_t *record;
    char *etag;
    bool two_words = cli->argc == 3 && !strchr(cli->argv[1], '=');
    json_t *changes = two_words ? json_pack("{s:s}", cli->argv[1], cli->argv[2]) : cli_pairs(cli->argv + 1, cli->argc - 1, err);
    if (!changes)
        return (int)err->code;
    int status = noun_get(cli, noun, &client, &record, &etag, err);
    if (!status) {
        json_object_update(json_object_get(record, "config"), changes);
        status = noun_put(cli, noun, client, record, etag, err);
    }
    json_decref(changes);
    return status;
}

int noun_unset_key(struct cli *cli, const struct noun *noun, struct error *err)
{
    struct covey_client *client;
    json_t *record;
    char *etag;
    int status = noun_get(cli, noun, &client, &record, &etag, err);
    if (status)
        return status;
    if (!json_object_del(json_object_get(record, "config"), cli->argv[1]))
        return noun_put(cli, noun, client, record, etag, err);
    free(etag);
    json_decref(record);
    return error_set(err, STATUS_NOT_FOUND, "Can't unset key '%s', it's not currently set", cli->argv[1]);
}

int noun_edit(struct cli *cli, const struct noun *noun, const char *const *fields, struct error *err)
{
    struct covey_client *client;
    json_t *record, *changed = NULL;
    char *etag;
    int status = noun_get(cli, noun, &client, &record, &etag, err);
    if (status)
        return status;
    json_t *shown = fields ? record_only(record, fields) : json_incref(record);
    status = record_edit(cli, shown, &etag, &changed, err);
    if (!status) {
        json_object_set_new(changed, noun->key, json_string(json_text(record, noun->key)));
        status = noun_put(cli, noun, client, changed, etag, err);
    } else {
        free(etag);
    }
    json_decref(shown);
    json_decref(record);
    return status;
}
