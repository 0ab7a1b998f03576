/* Filters: `[not] FIELD eq|ne VALUE`, joined by and/or, strictly from left to right. Pure; thread: any. */
#include "filter.h"

#include <ctype.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Expressions come from users: what they may cost is limited. An expression or a match beyond it counts as none. */
enum { REGEX_BYTES_MAX = 1024, REGEX_STEPS_MAX = 20000, REGEX_HEAP_KIB_MAX = 1024 };

struct clause {
    bool or_before, not, ne;
    char *field, *value;
    pcre2_code *regex; /* NULL: the value is not a regular expression */
};
struct filter {
    struct clause clauses[FILTER_CLAUSES_MAX];
    size_t count;
};

/* The next token, malloc'ed; NULL at the end. *bad: a quote that is not closed. */
static char *next_token(const char **at, bool *bad)
{
    const char *p = *at;
    while (isspace((unsigned char)*p)) {
        p++;
    }
    if (*p == '\0') {
        *at = p;
        return NULL;
    }
    const char *from = p, *end;
    if (*p == '"') {
        from = p + 1;
        end = strchr(from, '"');
        *bad = end == NULL;
        end = end != NULL ? end : from + strlen(from);
        p = *end == '"' ? end + 1 : end;
    } else {
        while (*p != '\0' && !isspace((unsigned char)*p)) {
            p++;
        }
        end = p;
    }
    char *token = xmalloc((size_t)(end - from) + 1);
    memcpy(token, from, (size_t)(end - from));
    token[end - from] = '\0';
    *at = p;
    return token;
}

static void compile(struct clause *clause)
{
    bool anchored = strpbrk(clause->value, "^$") != NULL;
    size_t len = strlen(clause->value);
    char *pattern = anchored ? xstrdup(clause->value) : xasprintf("^(?:%s)$", clause->value);
    int why = 0;
    PCRE2_SIZE where = 0;
    if (len <= REGEX_BYTES_MAX) {
        clause->regex = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_CASELESS | PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &why, &where, NULL);
    }
    free(pattern);
}

static bool regex_match(const pcre2_code *regex, const char *text)
{
    pcre2_match_context *limits = pcre2_match_context_create(NULL);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_set_match_limit(limits, REGEX_STEPS_MAX);
    pcre2_set_heap_limit(limits, REGEX_HEAP_KIB_MAX);
    bool match = pcre2_match(regex, (PCRE2_SPTR)text, strlen(text), 0, 0, data, limits) >= 0;
    pcre2_match_data_free(data);
    pcre2_match_context_free(limits);
    return match;
}

static const char *parse_clause(struct clause *clause, const char **at)
{
    bool bad = false;
    char *word = next_token(at, &bad), *operation = NULL;
    if (word != NULL && strcasecmp(word, "not") == 0) {
        clause->not = true;
        free(word);
        word = next_token(at, &bad);
    }
    clause->field = word;
    operation = next_token(at, &bad);
    clause->value = next_token(at, &bad);
    const char *why = clause->field == NULL ? "missing field" : operation == NULL ? "missing operator" : clause->value == NULL ? "missing value" : NULL;
    if (why == NULL && strcmp(operation, "eq") != 0 && strcmp(operation, "ne") != 0) {
        why = "unknown operator";
    }
    why = why == NULL && bad ? "unterminated quote" : why;
    clause->ne = why == NULL && strcmp(operation, "ne") == 0;
    free(operation);
    if (why == NULL) {
        compile(clause);
    }
    return why;
}

int filter_parse(const char *text, struct filter **out, struct error *err)
{
    struct filter *filter = xcalloc(1, sizeof *filter);
    const char *at = text, *why = strlen(text) > FILTER_BYTES_MAX ? "too long" : NULL;
    *out = NULL;
    while (why == NULL) {
        struct clause *clause = &filter->clauses[filter->count];
        bool bad = false, or_next = false;
        if (filter->count > 0) {
            char *join = next_token(&at, &bad);
            if (join == NULL) {
                break;
            }
            or_next = strcmp(join, "or") == 0;
            why = or_next || strcmp(join, "and") == 0 ? NULL : "expected \"and\" or \"or\"";
            free(join);
        }
        if (why == NULL && filter->count == FILTER_CLAUSES_MAX) {
            why = "too many clauses";
        }
        if (why == NULL) {
            filter->count++;
            clause->or_before = or_next;
            why = parse_clause(clause, &at);
        }
    }
    if (why != NULL) {
        filter_free(filter);
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid filter: %s", why);
    }
    *out = filter;
    return STATUS_OK;
}

/* A dotted path; where an object has the whole rest as one key, that counts (maps). */
static const json_t *lookup(const json_t *object, const char *path)
{
    const json_t *whole = json_object_get(object, path);
    const char *dot = strchr(path, '.');
    if (whole != NULL || dot == NULL) {
        return whole;
    }
    char *head = xstrdup(path);
    head[dot - path] = '\0';
    const json_t *inner = json_object_get(object, head);
    free(head);
    return inner != NULL ? lookup(inner, dot + 1) : NULL;
}

static bool clause_match(const struct clause *clause, const json_t *object)
{
    const json_t *value = lookup(object, clause->field);
    bool equal = false;
    if (json_is_string(value)) {
        equal = clause->regex != NULL ? regex_match(clause->regex, json_string_value(value)) : strcasecmp(json_string_value(value), clause->value) == 0;
    } else if (value != NULL) {
        char *literal = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        equal = literal != NULL && strcmp(literal, clause->value) == 0;
        free(literal);
    } else {
        equal = clause->value[0] == '\0';
    }
    return (clause->ne ? !equal : equal) != clause->not;
}

bool filter_match(const struct filter *filter, const json_t *object)
{
    bool result = true;
    for (size_t i = 0; i < filter->count; i++) {
        bool one = clause_match(&filter->clauses[i], object);
        result = i == 0 ? one : filter->clauses[i].or_before ? result || one : result && one;
    }
    return result;
}

bool filter_match_message(const struct filter *filter, const ProtobufCMessage *message)
{
    struct buf json = {0};
    codec_to_json(message, &json);
    json_t *object = json_loads(json.data, 0, NULL);
    bool match = filter_match(filter, object);
    json_decref(object);
    buf_free(&json);
    return match;
}

void filter_free(struct filter *filter)
{
    for (size_t i = 0; filter != NULL && i < filter->count; i++) {
        free(filter->clauses[i].field);
        free(filter->clauses[i].value);
        pcre2_code_free(filter->clauses[i].regex);
    }
    free(filter);
}
