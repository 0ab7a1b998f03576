/* The contract at run time: services, methods, messages and options, read once from the embedded FileDescriptorSet.
 *
 * protobuf-c's own descriptors carry neither streaming flags, options, JSON names nor comments; this registry joins both. Immutable after
 * registry_init(); thread: any. All pointers live as long as the process. */
#ifndef COVEY_RPC_REGISTRY_H
#define COVEY_RPC_REGISTRY_H

#include "../core/core.h"

enum rpc_route { RPC_ROUTE_LOCAL, RPC_ROUTE_LEADER, RPC_ROUTE_TARGET, RPC_ROUTE_OPERATION }; /* = covey.v1.Route */
enum rpc_access { RPC_ACCESS_CLOSED, RPC_ACCESS_ANYONE, RPC_ACCESS_AUTHENTICATED, RPC_ACCESS_ADMIN, RPC_ACCESS_MEMBER };
enum rpc_reply { RPC_REPLY_SYNC, RPC_REPLY_EMPTY, RPC_REPLY_CREATED, RPC_REPLY_ASYNC, RPC_REPLY_LIST, RPC_REPLY_AUTO };

struct http_rule {
    const char *verb; /* "GET", "PUT", … */
    const char *path; /* template, e.g. "/1.0/profiles/{name}" */
    bool body;        /* body: "*" */
};

struct method {
    const char *path;    /* "/covey.v1.Profiles/GetProfile" */
    const char *service; /* "covey.v1.Profiles" */
    const char *name;    /* "GetProfile" */
    const ProtobufCMessageDescriptor *input, *output;
    bool client_streaming, server_streaming;
    enum rpc_route route;
    enum rpc_access access;
    bool write, is_long;
    enum rpc_reply reply;
    const char *location, *metadata_field, *special; /* "" when not set */
    const struct http_rule *rules;
    size_t rule_count;
    const char *comment; /* leading comment of the rpc, "" if none */
    unsigned index;      /* dense, 0-based: for per-method tables */
};

enum message_kind { /* messages whose JSON form is not an object of their fields */
    MESSAGE_PLAIN,
    MESSAGE_TIMESTAMP,
    MESSAGE_DURATION,
    MESSAGE_STRUCT,
    MESSAGE_VALUE,
    MESSAGE_LIST_VALUE,
    MESSAGE_FIELD_MASK,
    MESSAGE_WRAPPER, /* google.protobuf.StringValue and its kin */
};

struct message_info { /* per message type */
    const ProtobufCMessageDescriptor *descriptor;
    const struct field_info *fields; /* same order and count as descriptor->fields */
    bool json_list;
    bool json_flatten; /* its fields stand in the object that holds it */
    bool map_entry;
    bool has_maps; /* it, or a message below it, holds a map */
    enum message_kind kind;
    const char *comment;
};

struct field_info {
    const ProtobufCFieldDescriptor *field;
    const char *json_name; /* an explicit json_name, else the name as declared in the .proto (snake_case) */
    const char *header;    /* "" when not set */
    bool omit_empty, secret;
    bool is_map;
    bool explicit_presence; /* proto3 `optional`, or a real oneof */
    const struct message_info *message; /* for message fields (for maps: the entry), else NULL */
    const char *comment;
};

/* Parses the embedded blob; ends the process if it does not fit the linked code (a build mistake). Call once, first thing in main. */
void registry_init(void);
size_t registry_method_count(void);
const struct method *registry_method(unsigned index);
const struct method *registry_method_by_path(const char *path);                       /* NULL if unknown */
const struct method *registry_method_by_name(const char *service, const char *name); /* NULL if unknown */
/* Never NULL for a message of the contract. */
const struct message_info *registry_message(const ProtobufCMessageDescriptor *descriptor);
const struct message_info *registry_message_by_name(const char *full_name); /* NULL if unknown */
/* The serialized FileDescriptorProto that holds the file `name`, or (symbol) the named service, method or message; NULL if unknown. For reflection. */
const uint8_t *registry_file(const char *name, size_t *len);
const uint8_t *registry_file_of_symbol(const char *symbol, size_t *len);
/* Serialized dependencies of a file, itself first; `out` gets names, at most max; returns the count. */
size_t registry_file_dependencies(const char *name, const char **out, size_t max);
size_t registry_service_count(void);
const char *registry_service_name(size_t index);

#endif
