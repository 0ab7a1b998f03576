/* What a PUT or PATCH of /1.0 asks for: sorts keys into global and local, checks all before anything happens. Pure. */
#include "keys.h"
#include "server.h"

#include <stdlib.h>
#include <string.h>

typedef Google__Protobuf__Value value_t;

static const char *go_kind(const value_t *value)
{
    switch (value->kind_case) {
    case GOOGLE__PROTOBUF__VALUE__KIND_NUMBER_VALUE:
        return "float64";
    case GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE:
        return "bool";
    case GOOGLE__PROTOBUF__VALUE__KIND_STRUCT_VALUE:
        return "map";
    case GOOGLE__PROTOBUF__VALUE__KIND_LIST_VALUE:
        return "slice";
    default:
        return "invalid";
    }
}

/* One key; the whole refusal in err. */
static int read_key(const char *name, const value_t *value, struct config_change *out, struct error *err)
{
    const struct config_key *key = config_key_find(name);
    const char *text = NULL;
    bool null = value == NULL || value->kind_case == GOOGLE__PROTOBUF__VALUE__KIND_NULL_VALUE || value->kind_case == GOOGLE__PROTOBUF__VALUE__KIND__NOT_SET;
    if (null) {
        text = "";
    } else if (value->kind_case == GOOGLE__PROTOBUF__VALUE__KIND_STRING_VALUE) {
        text = value->string_value;
    } else if (value->kind_case == GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE && key != NULL && key->type == KEY_BOOL) {
        text = value->bool_value ? "true" : "false";
    } else if (value->kind_case == GOOGLE__PROTOBUF__VALUE__KIND_BOOL_VALUE && key != NULL && key->hidden && value->bool_value) {
        json_array_append_new(out->keep, json_string(name));
        return STATUS_OK;
    } else if (key != NULL) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "cannot set '%s': invalid type %s", name, go_kind(value));
    }
    if (key == NULL) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "cannot set '%s' to '%s': unknown key", name, text != NULL ? text : "");
    }
    struct error reason = ERROR_INIT;
    if (config_key_check(key, text, &reason) != STATUS_OK) {
        return error_set(err, STATUS_INVALID_ARGUMENT, "cannot set '%s' to '%s': %s", name, key->hidden ? "..." : text, reason.text);
    }
    char canonical[300];
    bool flag = false;
    if (key->type == KEY_ADDRESS && !str_empty(text) && address_canonical(text, canonical, sizeof canonical, &reason) == STATUS_OK) {
        json_object_set_new(out->written, name, json_string(text));
        text = canonical;
    } else if (key->type == KEY_BOOL && !str_empty(text) && parse_bool(text, &flag) == 0) {
        text = flag ? "true" : "false"; /* one spelling, so that it can be compared with the default */
    }
    json_object_set_new(key->local ? out->local : out->global, name, json_string(text));
    return STATUS_OK;
}

int config_change_read(const Google__Protobuf__Struct *config, bool replace, struct config_change *out, struct error *err)
{
    const char *first_name = NULL;
    struct error first = ERROR_INIT;
    size_t more = 0;
    *out = (struct config_change){.global = json_object(), .local = json_object(), .keep = json_array(), .written = json_object(), .replace = replace};
    for (size_t i = 0; config != NULL && i < config->n_fields; i++) {
        struct error one = ERROR_INIT;
        const char *name = config->fields[i]->key;
        if (read_key(name, config->fields[i]->value, out, &one) == STATUS_OK) {
            continue;
        }
        more += first_name != NULL;
        if (first_name == NULL || strcmp(name, first_name) < 0) {
            first_name = name;
            first = one;
        }
    }
    if (first_name == NULL) {
        return STATUS_OK;
    }
    return more == 0 ? error_set(err, STATUS_INVALID_ARGUMENT, "%s", first.text)
                     : error_set(err, STATUS_INVALID_ARGUMENT, "%.900s (and %zu more errors)", first.text, more);
}

void config_change_clear(struct config_change *change)
{
    json_decref(change->global);
    json_decref(change->local);
    json_decref(change->keep);
    json_decref(change->written);
    *change = (struct config_change){0};
}

json_t *server__visible_config(const json_t *global, const json_t *local)
{
    json_t *out = json_object();
    const json_t *const sources[] = {global, local};
    for (size_t i = 0; i < 2; i++) {
        const char *name;
        json_t *value;
        json_object_foreach((json_t *)sources[i], name, value) {
            const struct config_key *key = config_key_find(name);
            const char *text = json_string_value(value);
            if (str_empty(text) || (key != NULL && !key->hidden && strcmp(key->fallback, text) == 0)) {
                continue;
            }
            if (key != NULL && key->hidden) {
                json_object_set_new(out, name, json_true());
            } else {
                json_object_set_new(out, name, json_string(text));
            }
        }
    }
    return out;
}

Google__Protobuf__Struct *server__struct(const json_t *object, struct arena *arena)
{
    char *text = json_dumps(object, JSON_COMPACT);
    struct error err = ERROR_INIT;
    Google__Protobuf__Struct *out = text != NULL ? codec_struct_from_json(text, arena, &err) : NULL;
    free(text);
    covey_assert(out != NULL);
    return out;
}

char *server__config_etag(struct arena *arena, const json_t *visible)
{
    char hex[65], *text = json_dumps(visible, JSON_COMPACT | JSON_SORT_KEYS);
    covey_assert(text != NULL);
    sha256_hex(text, strlen(text), hex);
    free(text);
    return arena_strdup(arena, hex);
}
