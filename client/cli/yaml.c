/* YAML text <-> JSON values, by libyaml. Reading: one document of the core types; quoted scalars are text, plain ones are null, booleans (YAML 1.1
 * words), decimal integers, else text. Refused: duplicate keys, keys that are no scalars, more than YAML_NODES_MAX values (aliases count each time
 * they are used) and YAML_DEPTH_MAX levels. Writing: block style, text in quotes where it would be read as something else. Pure. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { YAML_NODES_MAX = 100000, YAML_DEPTH_MAX = 64 };

struct reader {
    yaml_document_t document;
    size_t nodes;
    struct error *err;
};

static int plain_bool(const char *text)
{
    static const char *const yes[] = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y"};
    static const char *const no[] = {"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF", "n", "N"};
    for (size_t i = 0; i < sizeof(yes) / sizeof(*yes); i++) {
        if (strcmp(text, yes[i]) == 0)
            return 1;
        if (strcmp(text, no[i]) == 0)
            return 0;
    }
    return -1;
}

static bool plain_null(const char *text)
{
    return !*text || strcmp(text, "~") == 0 || strcmp(text, "null") == 0 || strcmp(text, "Null") == 0 || strcmp(text, "NULL") == 0;
}

static bool plain_integer(const char *text, int64_t *value)
{
    const char *digits = text + (*text == '-');
    if (*digits == '0' && digits[1]) /* 0755: octal to some, text to us */
        return false;
    return *digits >= '0' && *digits <= '9' && parse_i64(text, INT64_MIN, INT64_MAX, value) == 0;
}

static json_t *read_scalar(const yaml_node_t *node)
{
    const char *text = (const char *)node->data.scalar.value;
    if (strlen(text) != node->data.scalar.length) /* "\0" */
        return NULL;
    if (node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE) {
        int64_t value;
        if (plain_null(text))
            return json_null();
        if (plain_bool(text) >= 0)
            return json_boolean(plain_bool(text));
        if (plain_integer(text, &value))
            return json_integer(value);
    }
    return json_stringn(text, node->data.scalar.length);
}

static json_t *read_node(struct reader *reader, const yaml_node_t *node, int depth)
{
    if (!node || ++reader->nodes > YAML_NODES_MAX || depth > YAML_DEPTH_MAX) {
        error_set(reader->err, STATUS_INVALID_ARGUMENT, "yaml: more than %d values or %d levels", YAML_NODES_MAX, YAML_DEPTH_MAX);
        return NULL;
    }
    if (node->type == YAML_SCALAR_NODE) {
        json_t *value = read_scalar(node);
        if (!value)
            error_set(reader->err, STATUS_INVALID_ARGUMENT, "yaml: line %zu: invalid text", node->start_mark.line + 1);
        return value;
    }
    if (node->type == YAML_SEQUENCE_NODE) {
        json_t *list = json_array();
        for (const yaml_node_item_t *item = node->data.sequence.items.start; item < node->data.sequence.items.top; item++) {
            json_t *value = read_node(reader, yaml_document_get_node(&reader->document, *item), depth + 1);
            if (!value || json_array_append_new(list, value)) {
                json_decref(list);
                return NULL;
            }
        }
        return list;
    }
    json_t *object = json_object();
    for (const yaml_node_pair_t *pair = node->data.mapping.pairs.start; pair < node->data.mapping.pairs.top; pair++) {
        const yaml_node_t *key = yaml_document_get_node(&reader->document, pair->key);
        const char *name = key->type == YAML_SCALAR_NODE ? (const char *)key->data.scalar.value : NULL;
        json_t *value = NULL;
        if (name && strlen(name) != key->data.scalar.length)
            error_set(reader->err, STATUS_INVALID_ARGUMENT, "yaml: line %zu: invalid key", key->start_mark.line + 1);
        else if (!name)
            error_set(reader->err, STATUS_INVALID_ARGUMENT, "yaml: line %zu: a key must be a scalar", key->start_mark.line + 1);
        else if (json_object_get(object, name))
            error_set(reader->err, STATUS_INVALID_ARGUMENT, "yaml: unmarshal errors: line %zu: key \"%s\" already set in map", key->start_mark.line + 1, name);
        else
            value = read_node(reader, yaml_document_get_node(&reader->document, pair->value), depth + 1);
        if (value && json_object_set_new(object, name, value)) {
            error_set(reader->err, STATUS_INVALID_ARGUMENT, "yaml: line %zu: invalid key", key->start_mark.line + 1);
            value = NULL;
        }
        if (!value) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

json_t *yaml_parse(const char *text, size_t len, struct error *err)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        core_oom();
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, len);
    struct reader reader = {.err = err};
    json_t *value = NULL;
    if (!yaml_parser_load(&parser, &reader.document)) {
        error_set(err, STATUS_INVALID_ARGUMENT, "yaml: line %zu: %s", parser.problem_mark.line + 1, parser.problem ? parser.problem : "invalid text");
    } else {
        const yaml_node_t *root = yaml_document_get_root_node(&reader.document);
        value = root ? read_node(&reader, root, 0) : json_null();
        yaml_document_delete(&reader.document);
    }
    yaml_parser_delete(&parser);
    return value;
}

/* ---- writing ---- */

static int append(void *ud, unsigned char *data, size_t len)
{
    buf_add(ud, data, len);
    return 1;
}

/* Text that some reader of YAML 1.1 would take for a number: decimal, 0x…, 1_000, or base 60 (12:30). */
static bool looks_like_number(const char *text)
{
    if (!strchr("0123456789+-.", *text))
        return false;
    char *end;
    (void)strtod(text, &end);
    const char *digits = text + (*text == '-' || *text == '+');
    size_t plain = strspn(digits, "0123456789_");
    if (!*end || !digits[plain] || str_prefix(digits, "0b") || str_prefix(digits, "0o"))
        return true;
    bool sixty = plain > 0;
    const char *at = digits + plain;
    while (sixty && *at == ':') {
        size_t len = strspn(at + 1, "0123456789");
        sixty = len == 1 || (len == 2 && at[1] < '6');
        at += len + 1;
    }
    return sixty && (!*at || (*at == '.' && strspn(at + 1, "0123456789_") == strlen(at + 1)));
}

static yaml_scalar_style_t text_style(const char *text)
{
    if (strchr(text, '\n'))
        return YAML_LITERAL_SCALAR_STYLE;
    if (plain_null(text) || plain_bool(text) >= 0 || looks_like_number(text) || strcmp(text, "<<") == 0 || strcmp(text, "=") == 0)
        return YAML_DOUBLE_QUOTED_SCALAR_STYLE;
    return YAML_PLAIN_SCALAR_STYLE;
}

static void emit(yaml_emitter_t *emitter, yaml_event_t *event)
{
    covey_assert(yaml_emitter_emit(emitter, event)); /* our own sequence of events, an output that cannot fail */
}

static void write_scalar(yaml_emitter_t *emitter, const char *text, yaml_scalar_style_t style)
{
    yaml_event_t event;
    yaml_scalar_event_initialize(&event, NULL, NULL, (const unsigned char *)text, (int)strlen(text), 1, 1, style);
    emit(emitter, &event);
}

static void write_value(yaml_emitter_t *emitter, const json_t *value)
{
    yaml_event_t event;
    char number[40];
    switch (json_typeof(value)) {
    case JSON_OBJECT: {
        bool empty = json_object_size(value) == 0;
        yaml_mapping_start_event_initialize(&event, NULL, NULL, 1, empty ? YAML_FLOW_MAPPING_STYLE : YAML_BLOCK_MAPPING_STYLE);
        emit(emitter, &event);
        const char *key;
        json_t *item;
        json_object_foreach((json_t *)value, key, item)
        {
            write_scalar(emitter, key, text_style(key));
            write_value(emitter, item);
        }
        yaml_mapping_end_event_initialize(&event);
        emit(emitter, &event);
        return;
    }
    case JSON_ARRAY: {
        bool empty = json_array_size(value) == 0;
        yaml_sequence_start_event_initialize(&event, NULL, NULL, 1, empty ? YAML_FLOW_SEQUENCE_STYLE : YAML_BLOCK_SEQUENCE_STYLE);
        emit(emitter, &event);
        size_t index;
        json_t *item;
        json_array_foreach(value, index, item) write_value(emitter, item);
        yaml_sequence_end_event_initialize(&event);
        emit(emitter, &event);
        return;
    }
    case JSON_STRING:
        write_scalar(emitter, json_string_value(value), text_style(json_string_value(value)));
        return;
    case JSON_INTEGER:
        snprintf(number, sizeof(number), "%lld", (long long)json_integer_value(value));
        break;
    case JSON_REAL:
        snprintf(number, sizeof(number), "%.17g", json_real_value(value));
        break;
    default:
        snprintf(number, sizeof(number), "%s", json_is_true(value) ? "true" : json_is_false(value) ? "false" : "null");
        break;
    }
    write_scalar(emitter, number, YAML_PLAIN_SCALAR_STYLE);
}

void yaml_write(const json_t *value, struct buf *out)
{
    yaml_emitter_t emitter;
    yaml_event_t event;
    if (!yaml_emitter_initialize(&emitter))
        core_oom();
    yaml_emitter_set_output(&emitter, append, out);
    yaml_emitter_set_width(&emitter, -1);
    yaml_emitter_set_unicode(&emitter, 1);
    yaml_stream_start_event_initialize(&event, YAML_UTF8_ENCODING);
    emit(&emitter, &event);
    yaml_document_start_event_initialize(&event, NULL, NULL, NULL, 1);
    emit(&emitter, &event);
    write_value(&emitter, value);
    yaml_document_end_event_initialize(&event, 1);
    emit(&emitter, &event);
    yaml_stream_end_event_initialize(&event);
    emit(&emitter, &event);
    yaml_emitter_delete(&emitter);
}
