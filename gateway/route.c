/* The route tree: one level per path segment, literal children before the variable one. Built once; thread: any. A rule of the contract that
 * cannot be read ends the process: it is our own mistake. */
#include "route.h"
#include "request.h"
#include <stdlib.h>
#include <string.h>

struct node {
    char *literal; /* NULL for the variable child */
    struct node *children;
    size_t child_count;
    struct node *variable;
    struct route *routes;
    size_t route_count;
};

static struct node root;

static struct node *child_literal(const struct node *node, const char *text, size_t len)
{
    for (size_t i = 0; i < node->child_count; i++) {
        struct node *child = &node->children[i];
        if (strncmp(child->literal, text, len) == 0 && child->literal[len] == '\0')
            return child;
    }
    return NULL;
}

static struct node *child_make(struct node *node, const char *text, size_t len)
{
    if (text[0] == '{') {
        if (node->variable == NULL)
            node->variable = xcalloc(1, sizeof(*node->variable));
        return node->variable;
    }
    struct node *child = child_literal(node, text, len);
    if (child != NULL)
        return child;
    node->children = xrealloc(node->children, (node->child_count + 1) * sizeof(*node->children));
    child = &node->children[node->child_count++];
    memset(child, 0, sizeof(*child));
    child->literal = xasprintf("%.*s", (int)len, text);
    return child;
}

static void rule_add(const struct method *method, const struct http_rule *rule)
{
    struct node *node = &root;
    struct route route = {.method = method, .rule = rule};
    const char *p = rule->path;
    size_t n = 0;
    covey_assert(*p == '/');
    p++;
    while (*p != '\0') {
        size_t len = strcspn(p, "/");
        covey_assert(n < GATEWAY_SEGMENTS_MAX && len > 0);
        if (*p == '{') {
            covey_assert(p[len - 1] == '}');
            char *field = xasprintf("%.*s", (int)len - 2, p + 1);
            covey_assert(codec_has_field(method->input, field) || method->client_streaming);
            route.fields[n] = field;
        }
        node = child_make(node, p, len);
        n++;
        p += len;
        if (*p == '/')
            p++;
    }
    for (size_t i = 0; i < node->route_count; i++)
        covey_assert(strcmp(node->routes[i].rule->verb, rule->verb) != 0); /* two RPCs for one verb and path */
    node->routes = xrealloc(node->routes, (node->route_count + 1) * sizeof(*node->routes));
    node->routes[node->route_count++] = route;
}

void routes_init(void)
{
    if (root.route_count > 0 || root.child_count > 0)
        return;
    for (unsigned i = 0; i < registry_method_count(); i++) {
        const struct method *method = registry_method(i);
        for (size_t j = 0; j < method->rule_count; j++)
            rule_add(method, &method->rules[j]);
    }
}

struct segment {
    const char *text;
    size_t len;
};

/* Literals first, at every level; falls back to the variable when the literal leads nowhere. */
static const struct node *walk(const struct node *node, const struct segment *segments, size_t count)
{
    if (count == 0)
        return node->route_count > 0 ? node : NULL;
    const struct node *child = child_literal(node, segments->text, segments->len);
    const struct node *found = child != NULL ? walk(child, segments + 1, count - 1) : NULL;
    if (found == NULL && node->variable != NULL && segments->len > 0)
        found = walk(node->variable, segments + 1, count - 1);
    return found;
}

int route_find(const char *path, size_t len, struct arena *arena, struct route_match *out, struct error *err)
{
    struct segment segments[GATEWAY_SEGMENTS_MAX] = {0};
    size_t count = 0;
    const char *end = path + len;

    memset(out, 0, sizeof(*out));
    if (len == 0 || *path != '/')
        return error_set(err, STATUS_NOT_FOUND, "not found");
    if (len > 1) {
        const char *p = path + 1;
        for (;;) {
            const char *slash = memchr(p, '/', (size_t)(end - p));
            size_t n = (size_t)((slash != NULL ? slash : end) - p);
            if (count == GATEWAY_SEGMENTS_MAX)
                return error_set(err, STATUS_NOT_FOUND, "not found");
            segments[count++] = (struct segment){p, n};
            if (slash == NULL)
                break;
            p = slash + 1;
        }
    }
    if (count >= 2 && segments[1].len == 10 && memcmp(segments[1].text, "containers", 10) == 0) {
        segments[1] = (struct segment){"instances", 9};
        out->containers = true;
    }
    const struct node *node = walk(&root, segments, count);
    if (node == NULL)
        return error_set(err, STATUS_NOT_FOUND, "not found");
    for (size_t i = 0; i < count; i++) {
        out->segments[i] = text_decode(arena, segments[i].text, segments[i].len, false);
        if (out->segments[i] == NULL)
            return error_set(err, STATUS_INVALID_ARGUMENT, "invalid escape in the path");
    }
    out->segment_count = count;
    out->routes = node->routes;
    out->route_count = node->route_count;
    return STATUS_OK;
}

bool route_verb(struct route_match *match, const char *verb)
{
    for (size_t i = 0; i < match->route_count; i++) {
        if (strcmp(match->routes[i].rule->verb, verb) == 0) {
            match->route = &match->routes[i];
            return true;
        }
    }
    return false;
}
