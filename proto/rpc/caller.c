/* Who calls: built from the socket or the TLS certificate, and from the claims of those who may speak for others (the gateway on the local
 * socket, members that forward); the access column; the same facts written as metadata for the next member.
 *
 * Thread: queue threads (build) and any (the rest); nothing blocks. What may fail: claims that make no sense are refused, never guessed. */
#include "rpc_private.h"
#include <grpc/support/alloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CERT_BASE64_MAX = 8 * 1024, PROJECTS_TEXT_MAX = 8 * 1024 };

static const char *const class_names[] = {
    [CALLER_NONE] = "none", [CALLER_LOCAL_ADMIN] = "local", [CALLER_CLIENT] = "client", [CALLER_MEMBER] = "member",
};

/* ---- building ---- */

/* "ipv4:10.0.0.1:4711" -> "10.0.0.1:4711", "ipv6:%5B::1%5D:4711" -> "[::1]:4711" */
static void peer_address(grpc_call *call, char *out, size_t size)
{
    char *peer = grpc_call_get_peer(call);
    const char *from = strchr(peer, ':');
    size_t n = 0;
    from = from != NULL ? from + 1 : peer;
    while (*from != '\0' && n + 1 < size) {
        uint8_t byte;
        char pair[3] = {from[0], from[0] != '\0' ? from[1] : '\0', '\0'};
        if (*from == '%' && from[1] != '\0' && from[2] != '\0') {
            pair[0] = from[1];
            pair[1] = from[2];
            if (hex_decode(pair, &byte, 1) == 0) {
                out[n++] = (char)byte;
                from += 3;
                continue;
            }
        }
        out[n++] = *from++;
    }
    out[n] = '\0';
    gpr_free(peer);
}

static void classify(struct rpc_call *call, struct caller *caller)
{
    caller->arena = &call->arena;
    caller->class = CALLER_NONE;
    if (caller->fingerprint[0] != '\0' && rpc__policy.classify != NULL)
        rpc__policy.classify(rpc__policy.ud, caller);
}

static void from_certificate(struct rpc_call *call)
{
    struct caller *caller = &call->caller;

    snprintf(caller->protocol, sizeof(caller->protocol), "tls");
    peer_address(call->call, caller->address, sizeof(caller->address));
    call->auth = grpc_call_auth_context(call->call);
    if (call->auth == NULL)
        return;
    grpc_auth_property_iterator it = grpc_auth_context_find_properties_by_name(call->auth, GRPC_X509_PEM_CERT_PROPERTY_NAME);
    const grpc_auth_property *property = grpc_auth_property_iterator_next(&it);
    if (property == NULL || cert_fingerprint(property->value, caller->fingerprint, NULL) != STATUS_OK)
        return;
    caller->cert_pem = property->value; /* lives as long as call->auth */
    memcpy(caller->username, caller->fingerprint, sizeof(caller->username));
    classify(call, caller);
    if (caller->class == CALLER_MEMBER)
        snprintf(caller->protocol, sizeof(caller->protocol), "cluster");
}

/* base64 DER to PEM; the body is only checked as far as the fingerprint needs (handlers that store it parse it fully). */
static int claim_cert(struct rpc_call *call, struct caller *caller, struct error *err)
{
    char *base64 = arena_alloc(&call->arena, CERT_BASE64_MAX);
    char fingerprint[FINGERPRINT_SIZE];
    if (!md_has(&call->metadata, "covey-caller-cert"))
        return STATUS_OK;
    if (!md_get(&call->metadata, "covey-caller-cert", base64, CERT_BASE64_MAX))
        return error_set(err, STATUS_INVALID_ARGUMENT, "covey-caller-cert is larger than %d bytes", CERT_BASE64_MAX);
    size_t len = strlen(base64), n = 0;
    char *pem = arena_alloc(&call->arena, len + len / 64 + 64);
    n += (size_t)sprintf(pem, "-----BEGIN CERTIFICATE-----\n");
    for (size_t i = 0; i < len; i += 64)
        n += (size_t)sprintf(pem + n, "%.64s\n", base64 + i);
    sprintf(pem + n, "-----END CERTIFICATE-----\n");
    if (cert_fingerprint(pem, fingerprint, err) != STATUS_OK)
        return error_prefix(err, "covey-caller-cert");
    if (caller->fingerprint[0] != '\0' && strcmp(caller->fingerprint, fingerprint) != 0)
        return error_set(err, STATUS_INVALID_ARGUMENT, "covey-caller-fingerprint does not belong to covey-caller-cert");
    memcpy(caller->fingerprint, fingerprint, sizeof(fingerprint));
    caller->cert_pem = pem;
    return STATUS_OK;
}

static int claim_fingerprint(struct rpc_call *call, struct caller *caller, struct error *err)
{
    uint8_t raw[32];
    if (!md_has(&call->metadata, "covey-caller-fingerprint"))
        return STATUS_OK;
    if (!md_get(&call->metadata, "covey-caller-fingerprint", caller->fingerprint, sizeof(caller->fingerprint)) ||
        (caller->fingerprint[0] != '\0' && hex_decode(caller->fingerprint, raw, sizeof(raw)) != 0))
        return error_set(err, STATUS_INVALID_ARGUMENT, "covey-caller-fingerprint is not a SHA-256 fingerprint");
    return STATUS_OK;
}

/* Names separated by commas, each escaped by percent signs. */
static char **parse_projects(struct arena *arena, char *text)
{
    size_t count = text[0] != '\0';
    for (const char *p = text; *p != '\0'; p++)
        count += *p == ',';
    char **projects = arena_alloc(arena, (count + 1) * sizeof(*projects));
    size_t n = 0;
    for (char *save = NULL, *name = strtok_r(text, ",", &save); name != NULL; name = strtok_r(NULL, ",", &save)) {
        char *out = arena_alloc(arena, strlen(name) + 1);
        projects[n++] = out;
        while (*name != '\0') {
            uint8_t byte;
            char pair[3] = "";
            if (name[0] == '%' && name[1] != '\0' && name[2] != '\0')
                memcpy(pair, name + 1, 2);
            if (pair[0] != '\0' && hex_decode(pair, &byte, 1) == 0) {
                *out++ = (char)byte;
                name += 3;
            } else {
                *out++ = *name++;
            }
        }
    }
    return projects;
}

/* A member forwards: the caller is as that member saw it. */
static int claim_all(struct rpc_call *call, struct error *err)
{
    struct caller claimed = {0};
    char class[16], text[8];
    char *projects = arena_alloc(&call->arena, PROJECTS_TEXT_MAX);

    if (!md_get(&call->metadata, "covey-caller-class", class, sizeof(class)))
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid covey-caller-class");
    size_t i = 0;
    while (i < sizeof(class_names) / sizeof(class_names[0]) && strcmp(class_names[i], class) != 0)
        i++;
    if (i == sizeof(class_names) / sizeof(class_names[0]))
        return error_set(err, STATUS_INVALID_ARGUMENT, "invalid covey-caller-class");
    claimed.class = (enum caller_class)i;
    claimed.restricted = md_get(&call->metadata, "covey-caller-restricted", text, sizeof(text)) && strcmp(text, "1") == 0;
    if (claimed.restricted) {
        if (!md_get(&call->metadata, "covey-caller-projects", projects, PROJECTS_TEXT_MAX))
            return error_set(err, STATUS_INVALID_ARGUMENT, "covey-caller-projects is missing or larger than %d bytes", PROJECTS_TEXT_MAX);
        claimed.projects = parse_projects(&call->arena, projects);
    }
    md_get(&call->metadata, "covey-caller-protocol", claimed.protocol, sizeof(claimed.protocol));
    md_get(&call->metadata, "covey-caller-user", claimed.username, sizeof(claimed.username));
    md_get(&call->metadata, "covey-caller-address", claimed.address, sizeof(claimed.address));
    if (claim_fingerprint(call, &claimed, err) != STATUS_OK || claim_cert(call, &claimed, err) != STATUS_OK)
        return STATUS_INVALID_ARGUMENT;
    call->caller = claimed;
    return STATUS_OK;
}

/* The gateway on the local socket speaks for its client: what that may do is decided here, from its certificate. */
static int claim_gateway(struct rpc_call *call, struct error *err)
{
    struct caller claimed = {0};

    if (!md_get(&call->metadata, "covey-caller-protocol", claimed.protocol, sizeof(claimed.protocol)))
        return error_set(err, STATUS_INVALID_ARGUMENT, "covey-caller-protocol is missing");
    md_get(&call->metadata, "covey-caller-address", claimed.address, sizeof(claimed.address));
    if (strcmp(claimed.protocol, "unix") == 0) {
        claimed.class = CALLER_LOCAL_ADMIN;
        if (!md_get(&call->metadata, "covey-caller-user", claimed.username, sizeof(claimed.username)))
            snprintf(claimed.username, sizeof(claimed.username), "%s", call->caller.username);
        if (claimed.address[0] == '\0')
            snprintf(claimed.address, sizeof(claimed.address), "@");
    } else if (strcmp(claimed.protocol, "tls") == 0) {
        if (claim_fingerprint(call, &claimed, err) != STATUS_OK || claim_cert(call, &claimed, err) != STATUS_OK)
            return STATUS_INVALID_ARGUMENT;
        memcpy(claimed.username, claimed.fingerprint, sizeof(claimed.username));
        classify(call, &claimed);
    } else {
        return error_set(err, STATUS_INVALID_ARGUMENT, "covey-caller-protocol must be \"unix\" or \"tls\"");
    }
    call->caller = claimed;
    return STATUS_OK;
}

static bool has_claims(const grpc_metadata_array *metadata)
{
    static const char prefix[] = "covey-caller-";
    for (size_t i = 0; i < metadata->count; i++) {
        const grpc_slice *key = &metadata->metadata[i].key;
        if (GRPC_SLICE_LENGTH(*key) >= sizeof(prefix) - 1 && memcmp(GRPC_SLICE_START_PTR(*key), prefix, sizeof(prefix) - 1) == 0)
            return true;
    }
    return false;
}

static bool may_claim(const struct rpc_call *call)
{
    return call->from_unix || call->peer_member;
}

int caller__build(struct rpc_call *call, struct error *err)
{
    struct caller *caller = &call->caller;
    char text[40];
    int64_t count;

    call->from_unix = call->endpoint->is_unix;
    if (call->from_unix) {
        caller->class = CALLER_LOCAL_ADMIN;
        snprintf(caller->protocol, sizeof(caller->protocol), "unix");
        snprintf(caller->username, sizeof(caller->username), "%s", call->endpoint->username);
        snprintf(caller->address, sizeof(caller->address), "@");
    } else {
        from_certificate(call);
        call->peer_member = caller->class == CALLER_MEMBER;
    }
    if (!md_has(&call->metadata, "covey-request-id")) {
        if (call->method->write) /* others get one when somebody asks for it */
            uuid_new(call->request_id);
    } else if (!md_get(&call->metadata, "covey-request-id", call->request_id, sizeof(call->request_id)) || !uuid_valid(call->request_id))
        return error_set(err, STATUS_INVALID_ARGUMENT, "covey-request-id must be a UUID");
    if (!may_claim(call))
        return STATUS_OK; /* whatever it claims is not heard */
    if (md_has(&call->metadata, "covey-forwarded")) {
        if (!md_get(&call->metadata, "covey-forwarded", text, sizeof(text)) || parse_i64(text, 0, 1000, &count) != 0)
            return error_set(err, STATUS_INVALID_ARGUMENT, "covey-forwarded must be a number");
        call->forwarded = (unsigned)count;
    }
    if (!has_claims(&call->metadata))
        return STATUS_OK;
    call->claimed = true;
    if (md_has(&call->metadata, "covey-caller-class"))
        return claim_all(call, err);
    if (call->from_unix)
        return claim_gateway(call, err);
    return error_set(err, STATUS_INVALID_ARGUMENT, "covey-caller-class is missing");
}

/* ---- the access column ---- */

bool caller__may(const struct rpc_call *call)
{
    const struct caller *caller = &call->caller;

    switch (rpc__is_grpc_service(call->method) ? RPC_ACCESS_ANYONE : call->method->access) {
    case RPC_ACCESS_ANYONE:
        return true;
    case RPC_ACCESS_AUTHENTICATED:
        return caller->class != CALLER_NONE;
    case RPC_ACCESS_ADMIN:
        return caller->class == CALLER_LOCAL_ADMIN || caller->class == CALLER_MEMBER || (caller->class == CALLER_CLIENT && !caller->restricted);
    case RPC_ACCESS_MEMBER:
        /* The peer itself counts: a member may act for a client here (it names the caller's class), the daemon towards itself as well; the gateway,
         * which names a protocol only, never may. */
        return call->peer_member || (call->from_unix && (!call->claimed || md_has(&call->metadata, "covey-caller-class")));
    case RPC_ACCESS_CLOSED:
        break;
    }
    return false;
}

/* ---- the way out ---- */

static void projects_text(char *const *projects, struct buf *out)
{
    for (size_t i = 0; projects[i] != NULL; i++) {
        if (i > 0)
            buf_puts(out, ",");
        for (const char *p = projects[i]; *p != '\0'; p++) {
            if (*p == '%' || *p == ',' || *p <= ' ' || *p >= 0x7f)
                buf_printf(out, "%%%02x", (unsigned)(uint8_t)*p);
            else
                buf_add(out, p, 1);
        }
    }
}

/* Values that are no legal headers (user names may be anything) are left out: they only inform. */
static void add_info(struct md_list *list, const char *key, const char *value)
{
    if (value[0] != '\0' && !md_add(list, key, value))
        log_debug("rpc.metadata", "key=%s text=\"left out: not a legal header\"", key);
}

void caller__to_md(const struct rpc_call *call, struct md_list *list)
{
    if (!call->is_server)
        return;
    const struct caller *caller = &call->caller;
    covey_assert(md_add(list, "covey-caller-class", class_names[caller->class]));
    if (caller->restricted) {
        struct buf text = {0};
        if (caller->projects != NULL)
            projects_text(caller->projects, &text);
        covey_assert(md_add(list, "covey-caller-restricted", "1"));
        covey_assert(md_add(list, "covey-caller-projects", text.data != NULL ? text.data : ""));
        buf_free(&text);
    }
    add_info(list, "covey-caller-protocol", caller->protocol);
    add_info(list, "covey-caller-user", caller->username);
    add_info(list, "covey-caller-address", caller->address);
    add_info(list, "covey-caller-fingerprint", caller->fingerprint);
    /* Only methods that are open to anyone look at the certificate itself (to trust it): spare the others a kilobyte a call. */
    if (caller->cert_pem != NULL && call->method->access == RPC_ACCESS_ANYONE) {
        char *base64 = cert_pem_to_base64_der(caller->cert_pem);
        if (base64 != NULL)
            add_info(list, "covey-caller-cert", base64);
        free(base64);
    }
}

/* ---- what handlers see ---- */

const struct caller *rpc_caller(const struct rpc_call *call)
{
    return &call->caller;
}

const char *rpc_request_id(const struct rpc_call *call)
{
    if (call->request_id[0] == '\0')
        uuid_new(((struct rpc_call *)call)->request_id);
    return call->request_id;
}

struct arena *rpc_arena(struct rpc_call *call)
{
    return &call->arena;
}

const char *rpc_metadata(const struct rpc_call *call, const char *key)
{
    size_t len = strlen(key);
    if (str_prefix(key, "covey-") && !may_claim(call))
        return NULL;
    for (size_t i = 0; i < call->metadata.count; i++) {
        const grpc_metadata *item = &call->metadata.metadata[i];
        if (GRPC_SLICE_LENGTH(item->key) == len && memcmp(GRPC_SLICE_START_PTR(item->key), key, len) == 0)
            return arena_strndup((struct arena *)&call->arena, (const char *)GRPC_SLICE_START_PTR(item->value), GRPC_SLICE_LENGTH(item->value));
    }
    return NULL;
}
