/* metadata.yaml of an image (spec/api.md 8.3), read by libyaml's events: no aliases, bounded depth and number of events, so that a hostile text costs
 * little. Pure; any thread. */
#include "host_private.h"
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { SCALAR_BYTES_MAX = 64 << 10 };

static const struct {
    const char *name, *canonical;
} architectures[] = {
    {"i686", "i686"}, {"i386", "i686"}, {"i586", "i686"}, {"x86", "i686"}, {"x86_64", "x86_64"}, {"amd64", "x86_64"}, {"x64", "x86_64"},
    {"armv7l", "armv7l"}, {"armhf", "armv7l"}, {"armel", "armv7l"}, {"arm", "armv7l"}, {"armv8l", "armv8l"}, {"aarch64", "aarch64"},
    {"arm64", "aarch64"}, {"ppc", "ppc"}, {"powerpc", "ppc"}, {"ppc64", "ppc64"}, {"powerpc64", "ppc64"}, {"ppc64le", "ppc64le"},
    {"ppc64el", "ppc64le"}, {"s390x", "s390x"}, {"mips", "mips"}, {"mips64", "mips64"}, {"riscv64", "riscv64"}, {"riscv32", "riscv32"},
    {"loongarch64", "loongarch64"}, {"loong64", "loongarch64"},
};

struct reader {
    yaml_parser_t parser;
    unsigned events, depth;
    struct host_image_info *out;
};

/* The next event; the caller deletes it when it is STATUS_OK. */
static int next(struct reader *r, yaml_event_t *event, struct error *err)
{
    if (++r->events > IMAGE_YAML_EVENTS_MAX)
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "metadata.yaml has more than %d elements", IMAGE_YAML_EVENTS_MAX);
    if (!yaml_parser_parse(&r->parser, event))
        return error_set(err, STATUS_INVALID_ARGUMENT, "Could not parse metadata.yaml: line %zu: %.200s", r->parser.problem_mark.line + 1,
                         r->parser.problem ? r->parser.problem : "not YAML");
    int rc = STATUS_OK;
    if (event->type == YAML_ALIAS_EVENT)
        rc = error_set(err, STATUS_INVALID_ARGUMENT, "Could not parse metadata.yaml: aliases are not allowed");
    if ((event->type == YAML_MAPPING_START_EVENT || event->type == YAML_SEQUENCE_START_EVENT) && ++r->depth > IMAGE_YAML_DEPTH_MAX)
        rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "metadata.yaml is nested deeper than %d levels", IMAGE_YAML_DEPTH_MAX);
    if (event->type == YAML_MAPPING_END_EVENT || event->type == YAML_SEQUENCE_END_EVENT)
        r->depth--;
    if (event->type == YAML_SCALAR_EVENT && (event->data.scalar.length > SCALAR_BYTES_MAX ||
                                             !utf8_valid((const char *)event->data.scalar.value, event->data.scalar.length)))
        rc = error_set(err, STATUS_INVALID_ARGUMENT, "Could not parse metadata.yaml: a text is too long or not UTF-8");
    if (rc)
        yaml_event_delete(event);
    return rc;
}

/* Skips the rest of a value whose first event is `event`. */
static int skip(struct reader *r, const yaml_event_t *event, struct error *err)
{
    unsigned level = event->type == YAML_MAPPING_START_EVENT || event->type == YAML_SEQUENCE_START_EVENT;
    while (level) {
        yaml_event_t inner;
        if (next(r, &inner, err))
            return err->code;
        if (inner.type == YAML_MAPPING_START_EVENT || inner.type == YAML_SEQUENCE_START_EVENT)
            level++;
        if (inner.type == YAML_MAPPING_END_EVENT || inner.type == YAML_SEQUENCE_END_EVENT)
            level--;
        yaml_event_delete(&inner);
    }
    return STATUS_OK;
}

static void set_property(struct host_image_info *out, const char *key, const char *value)
{
    for (size_t i = 0; i < out->property_count; i++) {
        if (!str_eq(out->properties[i].key, key))
            continue;
        free(out->properties[i].value); /* the last one wins */
        out->properties[i].value = xstrdup(value);
        return;
    }
    out->properties = xrealloc(out->properties, (out->property_count + 1) * sizeof(*out->properties));
    out->properties[out->property_count++] = (struct host_property){xstrdup(key), xstrdup(value)};
}

/* "properties": a map of scalars; numbers and booleans are taken as they are written. */
static int properties(struct reader *r, const yaml_event_t *start, struct error *err)
{
    if (start->type == YAML_SCALAR_EVENT && (start->data.scalar.length == 0 || str_eq((const char *)start->data.scalar.value, "null") ||
                                             str_eq((const char *)start->data.scalar.value, "~")))
        return STATUS_OK;
    if (start->type != YAML_MAPPING_START_EVENT)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Could not parse metadata.yaml: properties is not a map");
    for (;;) {
        yaml_event_t key, value;
        if (next(r, &key, err))
            return err->code;
        if (key.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&key);
            return STATUS_OK;
        }
        int rc = key.type != YAML_SCALAR_EVENT ? error_set(err, STATUS_INVALID_ARGUMENT, "Could not parse metadata.yaml: a property's name is not a text")
                                               : next(r, &value, err);
        if (!rc) {
            if (value.type != YAML_SCALAR_EVENT)
                rc = error_set(err, STATUS_INVALID_ARGUMENT, "Could not parse metadata.yaml: property \"%.64s\" is not a text", (char *)key.data.scalar.value);
            else if (r->out->property_count >= IMAGE_PROPERTIES_MAX)
                rc = error_set(err, STATUS_RESOURCE_EXHAUSTED, "metadata.yaml has more than %d properties", IMAGE_PROPERTIES_MAX);
            else
                set_property(r->out, (const char *)key.data.scalar.value, (const char *)value.data.scalar.value);
            yaml_event_delete(&value);
        }
        yaml_event_delete(&key);
        if (rc)
            return rc;
    }
}

static int top_value(struct reader *r, const char *key, const yaml_event_t *value, struct error *err)
{
    const char *text = value->type == YAML_SCALAR_EVENT ? (const char *)value->data.scalar.value : NULL;
    int64_t number;
    if (str_eq(key, "properties"))
        return properties(r, value, err);
    if (str_eq(key, "architecture")) {
        for (size_t i = 0; text && i < sizeof(architectures) / sizeof(architectures[0]); i++) {
            if (!str_eq(architectures[i].name, text))
                continue;
            free(r->out->architecture);
            r->out->architecture = xstrdup(architectures[i].canonical);
            return STATUS_OK;
        }
        return error_set(err, STATUS_INVALID_ARGUMENT, "Architecture isn't supported: %.64s", text ? text : "(not a text)");
    }
    if (str_eq(key, "creation_date") || str_eq(key, "expiry_date")) {
        if (!text || parse_i64(text, 0, INT64_MAX / 1000000000, &number))
            return error_set(err, STATUS_INVALID_ARGUMENT, "Could not parse metadata.yaml: %s is not a number of seconds", key);
        if (str_eq(key, "expiry_date"))
            r->out->expiry_date = number;
        else
            r->out->creation_date = number;
        return STATUS_OK;
    }
    return skip(r, value, err);
}

static int document(struct reader *r, struct error *err)
{
    bool in_map = false;
    for (;;) {
        yaml_event_t key, value;
        if (next(r, &key, err))
            return err->code;
        yaml_event_type_t type = key.type;
        int rc = STATUS_OK;
        if (!in_map && type == YAML_MAPPING_START_EVENT) {
            in_map = true;
        } else if (in_map && type == YAML_SCALAR_EVENT) {
            rc = next(r, &value, err);
            if (!rc) {
                rc = top_value(r, (const char *)key.data.scalar.value, &value, err);
                yaml_event_delete(&value);
            }
        } else if (type == YAML_SCALAR_EVENT || type == YAML_SEQUENCE_START_EVENT || (in_map && type == YAML_MAPPING_START_EVENT)) {
            rc = error_set(err, STATUS_INVALID_ARGUMENT, "Could not parse metadata.yaml: it is not a map");
        }
        yaml_event_delete(&key);
        if (rc)
            return rc;
        if (type == YAML_STREAM_END_EVENT || type == YAML_DOCUMENT_END_EVENT)
            return STATUS_OK; /* the first document counts */
    }
}

int metadata__parse(const char *yaml, size_t len, struct host_image_info *out, struct error *err)
{
    struct reader r = {.out = out};
    struct error local = ERROR_INIT;
    int rc = STATUS_OK;
    if (len > IMAGE_METADATA_BYTES_MAX)
        rc = error_set(&local, STATUS_RESOURCE_EXHAUSTED, "metadata.yaml is larger than %d bytes", IMAGE_METADATA_BYTES_MAX);
    if (!rc) {
        if (!yaml_parser_initialize(&r.parser))
            core_oom();
        yaml_parser_set_input_string(&r.parser, (const unsigned char *)yaml, len);
        rc = document(&r, &local);
        yaml_parser_delete(&r.parser);
    }
    if (!rc && !out->architecture)
        rc = error_set(&local, STATUS_INVALID_ARGUMENT, "Missing architecture in metadata.yaml");
    if (!rc && out->creation_date <= 0) /* of a key that occurs twice the last one counts */
        rc = error_set(&local, STATUS_INVALID_ARGUMENT, "Missing creation date");
    if (rc && err)
        *err = local;
    return rc;
}
