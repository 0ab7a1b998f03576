/* The contract at run time: joins the embedded FileDescriptorSet with protobuf-c's descriptors.
 *
 * Everything is built once by registry_init() into one arena that lives as long as the process, and is only read afterwards (any thread).
 * A blob that does not fit the linked code is a build mistake and ends the process. */
#include "registry.h"
#include "covey/v1/options.pb-c.h"
#include "google/api/http.pb-c.h"
#include "google/protobuf/descriptor.pb-c.h"
#include <pthread.h>
#include <stdio.h>
#include <string.h>

extern const unsigned char contract_blob[];
extern const size_t contract_blob_size;
extern const ProtobufCMessageDescriptor *const contract_messages[];
extern const size_t contract_messages_count;
extern const ProtobufCServiceDescriptor *const contract_services[];
extern const size_t contract_services_count;

enum { /* field numbers of our extensions and of google.api.http */
    EXTENSION_RPC = 50901,
    EXTENSION_FIELD = 50902,
    EXTENSION_MESSAGE = 50903,
    EXTENSION_HTTP = 72295728,
    NAME_MAX_BYTES = 512,  /* of a full name */
    MESSAGE_DEPTH_MAX = 16, /* nested message declarations */
};

struct file {
    const char *name;
    const uint8_t *data; /* the serialized FileDescriptorProto, within the blob */
    size_t len;
    const Google__Protobuf__FileDescriptorProto *proto;
};

struct name_entry { /* of a hash table by full name; open addressing */
    const char *name;
    const void *value;
};
struct name_table {
    struct name_entry *entries;
    size_t mask;
};

static struct {
    struct arena arena;
    struct file *files;
    size_t file_count;
    struct message_info *messages; /* same order as contract_messages */
    struct method *methods;
    size_t method_count;
    const char **services; /* names, in the order of the files */
    size_t service_count;
    struct name_table messages_by_name, methods_by_path, symbols;
    const struct message_info **by_descriptor; /* hash table by pointer */
    size_t by_descriptor_mask;
} registry;

/* ---- tables ---- */

static uint32_t name_hash(const char *name)
{
    uint32_t h = 2166136261u;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 16777619u;
    return h ^ h >> 15;
}

static size_t table_size(size_t count)
{
    size_t size = 16;
    while (size < count * 2 + 2)
        size *= 2;
    return size;
}

static void names_init(struct name_table *table, size_t count)
{
    size_t size = table_size(count);
    table->entries = arena_alloc(&registry.arena, size * sizeof(*table->entries));
    table->mask = size - 1;
}

static void names_add(struct name_table *table, const char *name, const void *value)
{
    size_t i = name_hash(name) & table->mask;
    for (; table->entries[i].name; i = (i + 1) & table->mask)
        if (strcmp(table->entries[i].name, name) == 0)
            core_panic(__FILE__, __LINE__, "the contract declares %s twice", name);
    table->entries[i] = (struct name_entry){name, value};
}

static const void *names_find(const struct name_table *table, const char *name)
{
    for (size_t i = name_hash(name) & table->mask; table->entries[i].name; i = (i + 1) & table->mask)
        if (strcmp(table->entries[i].name, name) == 0)
            return table->entries[i].value;
    return NULL;
}

static size_t pointer_slot(const void *p) { return (size_t)(((uintptr_t)p >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 32) & registry.by_descriptor_mask; }

static const char *join(const char *a, const char *b)
{
    return a && *a ? arena_printf(&registry.arena, "%s.%s", a, b) : arena_strdup(&registry.arena, b);
}

/* ---- options ---- */

static size_t varint_read(const uint8_t *data, size_t len, uint64_t *value)
{
    *value = 0;
    for (size_t i = 0; i < len && i < 10; i++) {
        *value |= (uint64_t)(data[i] & 0x7f) << (7 * i);
        if (!(data[i] & 0x80))
            return i + 1;
    }
    return 0;
}

/* Unpacks the extension `tag` of an options message, NULL if it is absent. The compiler may write it in several parts (one for each option
 * statement): joined, they are one message. protobuf-c keeps the length before each payload. */
static void *extension(const ProtobufCMessage *options, uint32_t tag, const ProtobufCMessageDescriptor *descriptor)
{
    struct buf joined = {0};
    bool found = false;
    for (unsigned i = 0; options && i < options->n_unknown_fields; i++) {
        const ProtobufCMessageUnknownField *field = &options->unknown_fields[i];
        if (field->tag != tag || field->wire_type != PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED)
            continue;
        uint64_t len;
        size_t head = varint_read(field->data, field->len, &len);
        covey_assert(head && len == field->len - head);
        buf_add(&joined, field->data + head, (size_t)len);
        found = true;
    }
    void *message = NULL;
    if (found) {
        message = protobuf_c_message_unpack(descriptor, &registry.arena.allocator, joined.len, (const uint8_t *)joined.data);
        covey_assert(message);
    }
    buf_free(&joined);
    return message;
}

static const char *nonnull(const char *s) { return s ? s : ""; }

/* ---- messages ---- */

/* The lowerCamelCase form that protoc gives to every field without an explicit json_name. */
static bool is_default_json_name(const char *declared, const char *json_name)
{
    bool upper = false;
    for (; *declared; declared++) {
        if (*declared == '_') {
            upper = true;
            continue;
        }
        char c = upper && *declared >= 'a' && *declared <= 'z' ? (char)(*declared - 'a' + 'A') : *declared;
        upper = false;
        if (c != *json_name++)
            return false;
    }
    return !*json_name;
}

static enum message_kind kind_of(const char *name)
{
    static const struct {
        const char *name;
        enum message_kind kind;
    } kinds[] = {
        {"Timestamp", MESSAGE_TIMESTAMP}, {"Duration", MESSAGE_DURATION},    {"Struct", MESSAGE_STRUCT},
        {"Value", MESSAGE_VALUE},         {"ListValue", MESSAGE_LIST_VALUE}, {"FieldMask", MESSAGE_FIELD_MASK},
        {"DoubleValue", MESSAGE_WRAPPER}, {"FloatValue", MESSAGE_WRAPPER},   {"Int64Value", MESSAGE_WRAPPER},
        {"UInt64Value", MESSAGE_WRAPPER}, {"Int32Value", MESSAGE_WRAPPER},   {"UInt32Value", MESSAGE_WRAPPER},
        {"BoolValue", MESSAGE_WRAPPER},   {"StringValue", MESSAGE_WRAPPER},  {"BytesValue", MESSAGE_WRAPPER},
    };
    static const char package[] = "google.protobuf.";
    if (!str_prefix(name, package))
        return MESSAGE_PLAIN;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strcmp(name + sizeof(package) - 1, kinds[i].name) == 0)
            return kinds[i].kind;
    return MESSAGE_PLAIN;
}

static struct message_info *message_mutable(const char *name) { return (struct message_info *)names_find(&registry.messages_by_name, name); }

static void field_fill(struct field_info *info, const ProtobufCFieldDescriptor *field, const Google__Protobuf__FieldDescriptorProto *proto)
{
    info->field = field;
    info->json_name = proto->json_name && !is_default_json_name(proto->name, proto->json_name) ? proto->json_name : field->name;
    info->header = info->comment = "";
    info->explicit_presence = proto->has_oneof_index;
    const Covey__V1__Field *options = proto->options ? extension(&proto->options->base, EXTENSION_FIELD, &covey__v1__field__descriptor) : NULL;
    if (options) {
        info->omit_empty = options->omit_empty;
        info->secret = options->secret;
        info->header = nonnull(options->header);
    }
    if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
        const ProtobufCMessageDescriptor *type = field->descriptor;
        info->message = message_mutable(type->name);
        if (!info->message)
            core_panic(__FILE__, __LINE__, "no code is linked for the message %s", type->name);
    }
}

static void message_fill(const char *scope, const Google__Protobuf__DescriptorProto *proto, int depth)
{
    covey_assert(depth < MESSAGE_DEPTH_MAX);
    const char *name = join(scope, proto->name);
    struct message_info *info = message_mutable(name);
    if (!info)
        core_panic(__FILE__, __LINE__, "no code is linked for the message %s", name);
    const ProtobufCMessageDescriptor *descriptor = info->descriptor;
    if (info->fields || descriptor->n_fields != proto->n_field)
        core_panic(__FILE__, __LINE__, "the linked code of %s has other fields than the contract", name);
    struct field_info *fields = arena_alloc(&registry.arena, (proto->n_field + 1) * sizeof(*fields));
    for (size_t i = 0; i < proto->n_field; i++) {
        const Google__Protobuf__FieldDescriptorProto *field = proto->field[i];
        const ProtobufCFieldDescriptor *linked = protobuf_c_message_descriptor_get_field(descriptor, (unsigned)field->number);
        if (!linked || strcmp(linked->name, field->name) != 0)
            core_panic(__FILE__, __LINE__, "the linked code of %s has no field %s", name, field->name);
        field_fill(&fields[linked - descriptor->fields], linked, field);
    }
    info->fields = fields;
    info->kind = kind_of(name);
    info->comment = "";
    if (proto->options) {
        info->map_entry = proto->options->has_map_entry && proto->options->map_entry;
        const Covey__V1__Message *options = extension(&proto->options->base, EXTENSION_MESSAGE, &covey__v1__message__descriptor);
        info->json_list = options && options->json_list;
        info->json_flatten = options && options->json_flatten;
    }
    if (info->json_list && (descriptor->n_fields != 1 || descriptor->fields[0].label != PROTOBUF_C_LABEL_REPEATED))
        core_panic(__FILE__, __LINE__, "%s is a json_list but not one repeated field", name);
    for (size_t i = 0; i < proto->n_nested_type; i++)
        message_fill(name, proto->nested_type[i], depth + 1);
}

/* Which fields are maps is known once every message is filled; which messages hold maps follows by repeating until nothing changes. */
static void maps_find(void)
{
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t m = 0; m < contract_messages_count; m++) {
            struct message_info *info = &registry.messages[m];
            struct field_info *fields = (struct field_info *)info->fields;
            for (unsigned i = 0; i < info->descriptor->n_fields; i++) {
                const struct message_info *below = fields[i].message;
                if (!below)
                    continue;
                fields[i].is_map = below->map_entry;
                if (!info->has_maps && (below->map_entry || below->has_maps)) {
                    info->has_maps = true;
                    changed = true;
                }
            }
        }
    }
}

static void messages_index(void)
{
    registry.messages = arena_alloc(&registry.arena, (contract_messages_count + 1) * sizeof(*registry.messages));
    names_init(&registry.messages_by_name, contract_messages_count);
    size_t slots = table_size(contract_messages_count);
    registry.by_descriptor = arena_alloc(&registry.arena, slots * sizeof(struct message_info *));
    registry.by_descriptor_mask = slots - 1;
    for (size_t i = 0; i < contract_messages_count; i++) {
        struct message_info *info = &registry.messages[i];
        info->descriptor = contract_messages[i];
        names_add(&registry.messages_by_name, info->descriptor->name, info);
        size_t slot = pointer_slot(info->descriptor);
        while (registry.by_descriptor[slot])
            slot = (slot + 1) & registry.by_descriptor_mask;
        registry.by_descriptor[slot] = info;
    }
}

/* ---- methods ---- */

static bool rule_fill(struct http_rule *rule, const Google__Api__HttpRule *http)
{
    static const char *const verbs[] = {"GET", "PUT", "POST", "DELETE", "PATCH"}; /* field numbers 2 to 6 */
    char *const paths[] = {http->get, http->put, http->post, http->delete_, http->patch};
    int which = (int)http->pattern_case - 2;
    if (which < 0 || which >= 5)
        return false;
    *rule = (struct http_rule){verbs[which], paths[which], http->body && strcmp(http->body, "*") == 0};
    return true;
}

static void rules_fill(struct method *method, const Google__Protobuf__MethodOptions *options)
{
    const Google__Api__HttpRule *http = options ? extension(&options->base, EXTENSION_HTTP, &google__api__http_rule__descriptor) : NULL;
    if (!http)
        return;
    struct http_rule *rules = arena_alloc(&registry.arena, (1 + http->n_additional_bindings) * sizeof(*rules));
    size_t count = 0;
    bool known = rule_fill(&rules[count++], http);
    for (size_t i = 0; i < http->n_additional_bindings; i++)
        known = rule_fill(&rules[count++], http->additional_bindings[i]) && known;
    if (!known)
        core_panic(__FILE__, __LINE__, "%s has an HTTP rule without a verb", method->path);
    method->rules = rules;
    method->rule_count = count;
}

static void method_fill(struct method *method, const char *service, const Google__Protobuf__MethodDescriptorProto *proto,
                        const ProtobufCMethodDescriptor *linked)
{
    method->service = service;
    method->name = proto->name;
    method->path = arena_printf(&registry.arena, "/%s/%s", service, proto->name);
    method->input = linked->input;
    method->output = linked->output;
    method->client_streaming = proto->has_client_streaming && proto->client_streaming;
    method->server_streaming = proto->has_server_streaming && proto->server_streaming;
    method->location = method->metadata_field = method->special = method->comment = "";
    const Covey__V1__Rpc *rpc = proto->options ? extension(&proto->options->base, EXTENSION_RPC, &covey__v1__rpc__descriptor) : NULL;
    if (rpc) {
        method->route = (enum rpc_route)rpc->route;
        method->access = (enum rpc_access)rpc->access;
        method->write = rpc->write;
        method->is_long = rpc->long_;
        method->reply = (enum rpc_reply)rpc->reply;
        method->location = nonnull(rpc->location);
        method->metadata_field = nonnull(rpc->metadata_field);
        method->special = nonnull(rpc->special);
    }
    rules_fill(method, proto->options);
}

static const ProtobufCServiceDescriptor *service_linked(const char *name)
{
    for (size_t i = 0; i < contract_services_count; i++)
        if (strcmp(contract_services[i]->name, name) == 0)
            return contract_services[i];
    core_panic(__FILE__, __LINE__, "no code is linked for the service %s", name);
}

static void service_fill(const char *package, const Google__Protobuf__ServiceDescriptorProto *proto)
{
    const char *name = join(package, proto->name);
    const ProtobufCServiceDescriptor *linked = service_linked(name);
    if (linked->n_methods != proto->n_method)
        core_panic(__FILE__, __LINE__, "the linked code of %s has other methods than the contract", name);
    registry.services[registry.service_count++] = name;
    for (size_t i = 0; i < proto->n_method; i++) { /* protobuf-c keeps methods in the order of declaration */
        struct method *method = &registry.methods[registry.method_count];
        covey_assert(strcmp(linked->methods[i].name, proto->method[i]->name) == 0);
        method->index = (unsigned)registry.method_count++;
        method_fill(method, name, proto->method[i], &linked->methods[i]);
        names_add(&registry.methods_by_path, method->path, method);
    }
}

/* ---- comments ---- */

/* The comment without the blank that follows "//" on each line and without the last line's end. */
static const char *comment_clean(const char *leading, const char *trailing)
{
    const char *from = !str_empty(leading) ? leading : nonnull(trailing);
    char *text = arena_alloc(&registry.arena, strlen(from) + 1), *to = text;
    bool start = true;
    for (; *from; from++) {
        if (!(start && *from == ' '))
            *to++ = *from;
        start = *from == '\n';
    }
    while (to > text && (to[-1] == '\n' || to[-1] == ' '))
        to--;
    *to = 0;
    return text;
}

/* Gives a comment to what its path names; paths are field numbers and indexes from the file down (see descriptor.proto). */
static void comment_give(const struct file *file, const Google__Protobuf__SourceCodeInfo__Location *at)
{
    const int32_t *path = at->path;
    size_t n = at->n_path;
    if (n < 2 || (str_empty(at->leading_comments) && str_empty(at->trailing_comments)))
        return;
    const char *package = file->proto->package;
    if (path[0] == 6 && n == 4 && path[2] == 2) { /* service, method */
        const Google__Protobuf__ServiceDescriptorProto *service = file->proto->service[path[1]];
        const char *name = arena_printf(&registry.arena, "/%s%s%s/%s", nonnull(package), str_empty(package) ? "" : ".", service->name,
                                        service->method[path[3]]->name);
        struct method *method = (struct method *)names_find(&registry.methods_by_path, name);
        covey_assert(method);
        method->comment = comment_clean(at->leading_comments, at->trailing_comments);
        return;
    }
    if (path[0] != 4)
        return;
    const Google__Protobuf__DescriptorProto *message = file->proto->message_type[path[1]];
    const char *name = join(package, message->name);
    size_t i = 2;
    for (; i + 1 < n && path[i] == 3; i += 2) {
        message = message->nested_type[path[i + 1]];
        name = join(name, message->name);
    }
    struct message_info *info = message_mutable(name);
    covey_assert(info);
    const char *text = comment_clean(at->leading_comments, at->trailing_comments);
    if (i == n) {
        info->comment = text;
    } else if (i + 2 == n && path[i] == 2) {
        unsigned number = (unsigned)message->field[path[i + 1]]->number;
        const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(info->descriptor, number);
        ((struct field_info *)info->fields)[field - info->descriptor->fields].comment = text;
    }
}

/* ---- files and symbols ---- */

static void symbols_add_messages(const struct file *file, const char *scope, Google__Protobuf__DescriptorProto *const *messages, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const char *name = join(scope, messages[i]->name);
        names_add(&registry.symbols, name, file);
        for (size_t e = 0; e < messages[i]->n_enum_type; e++)
            names_add(&registry.symbols, join(name, messages[i]->enum_type[e]->name), file);
        symbols_add_messages(file, name, messages[i]->nested_type, messages[i]->n_nested_type);
    }
}

static void symbols_add(const struct file *file)
{
    const char *package = file->proto->package;
    symbols_add_messages(file, package, file->proto->message_type, file->proto->n_message_type);
    for (size_t i = 0; i < file->proto->n_enum_type; i++)
        names_add(&registry.symbols, join(package, file->proto->enum_type[i]->name), file);
    for (size_t i = 0; i < file->proto->n_extension; i++)
        names_add(&registry.symbols, join(package, file->proto->extension[i]->name), file);
    for (size_t i = 0; i < file->proto->n_service; i++) {
        const char *name = join(package, file->proto->service[i]->name);
        names_add(&registry.symbols, name, file);
        for (size_t m = 0; m < file->proto->service[i]->n_method; m++)
            names_add(&registry.symbols, join(name, file->proto->service[i]->method[m]->name), file);
    }
}

static size_t count_messages(Google__Protobuf__DescriptorProto *const *messages, size_t count)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++)
        total += 1 + messages[i]->n_enum_type + count_messages(messages[i]->nested_type, messages[i]->n_nested_type);
    return total;
}

static void files_split(const Google__Protobuf__FileDescriptorSet *set)
{
    registry.files = arena_alloc(&registry.arena, (set->n_file + 1) * sizeof(*registry.files));
    const uint8_t *data = contract_blob;
    size_t left = contract_blob_size;
    while (left) { /* the set has one field: 1, a file */
        uint64_t len;
        size_t head = data[0] == 0x0a ? varint_read(data + 1, left - 1, &len) : 0;
        covey_assert(head && len <= left - 1 - head && registry.file_count < set->n_file);
        struct file *file = &registry.files[registry.file_count];
        file->proto = set->file[registry.file_count++];
        file->name = file->proto->name;
        file->data = data + 1 + head;
        file->len = (size_t)len;
        data += 1 + head + len;
        left -= 1 + head + (size_t)len;
    }
    covey_assert(registry.file_count == set->n_file);
}

static void registry_build(void)
{
    arena_init(&registry.arena);
    const Google__Protobuf__FileDescriptorSet *set =
        google__protobuf__file_descriptor_set__unpack(&registry.arena.allocator, contract_blob_size, contract_blob);
    covey_assert(set);
    files_split(set);
    messages_index();
    size_t symbols = 0, methods = 0, services = 0;
    for (size_t i = 0; i < registry.file_count; i++) {
        const Google__Protobuf__FileDescriptorProto *file = registry.files[i].proto;
        symbols += file->n_enum_type + file->n_extension + count_messages(file->message_type, file->n_message_type);
        services += file->n_service;
        for (size_t s = 0; s < file->n_service; s++)
            methods += file->service[s]->n_method;
    }
    names_init(&registry.symbols, symbols + services + methods);
    names_init(&registry.methods_by_path, methods);
    registry.methods = arena_alloc(&registry.arena, (methods + 1) * sizeof(*registry.methods));
    registry.services = arena_alloc(&registry.arena, (services + 1) * sizeof(*registry.services));
    for (size_t i = 0; i < registry.file_count; i++) {
        const Google__Protobuf__FileDescriptorProto *file = registry.files[i].proto;
        for (size_t m = 0; m < file->n_message_type; m++)
            message_fill(file->package, file->message_type[m], 0);
        for (size_t s = 0; s < file->n_service; s++)
            service_fill(file->package, file->service[s]);
        symbols_add(&registry.files[i]);
    }
    for (size_t i = 0; i < contract_messages_count; i++)
        if (!registry.messages[i].fields)
            core_panic(__FILE__, __LINE__, "the contract does not declare the linked message %s", contract_messages[i]->name);
    maps_find();
    for (size_t i = 0; i < registry.file_count; i++) {
        const Google__Protobuf__SourceCodeInfo *info = registry.files[i].proto->source_code_info;
        for (size_t l = 0; info && l < info->n_location; l++)
            comment_give(&registry.files[i], info->location[l]);
    }
}

/* ---- public ---- */

void registry_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT; /* tests of several parts may each call it */
    covey_assert(pthread_once(&once, registry_build) == 0);
}

size_t registry_method_count(void) { return registry.method_count; }

const struct method *registry_method(unsigned index)
{
    covey_assert(index < registry.method_count);
    return &registry.methods[index];
}

const struct method *registry_method_by_path(const char *path) { return names_find(&registry.methods_by_path, path); }

const struct method *registry_method_by_name(const char *service, const char *name)
{
    char path[NAME_MAX_BYTES];
    int n = snprintf(path, sizeof(path), "/%s/%s", service, name);
    return n > 0 && (size_t)n < sizeof(path) ? registry_method_by_path(path) : NULL;
}

const struct message_info *registry_message(const ProtobufCMessageDescriptor *descriptor)
{
    covey_assert(registry.by_descriptor);
    for (size_t slot = pointer_slot(descriptor);; slot = (slot + 1) & registry.by_descriptor_mask) {
        const struct message_info *info = registry.by_descriptor[slot];
        if (!info)
            core_panic(__FILE__, __LINE__, "the message %s is not of the contract", descriptor->name);
        if (info->descriptor == descriptor)
            return info;
    }
}

const struct message_info *registry_message_by_name(const char *full_name) { return names_find(&registry.messages_by_name, full_name); }

static const struct file *file_find(const char *name)
{
    for (size_t i = 0; i < registry.file_count; i++)
        if (strcmp(registry.files[i].name, name) == 0)
            return &registry.files[i];
    return NULL;
}

static const uint8_t *file_data(const struct file *file, size_t *len)
{
    *len = file ? file->len : 0;
    return file ? file->data : NULL;
}

const uint8_t *registry_file(const char *name, size_t *len) { return file_data(file_find(name), len); }
const uint8_t *registry_file_of_symbol(const char *symbol, size_t *len) { return file_data(names_find(&registry.symbols, symbol), len); }

size_t registry_file_dependencies(const char *name, const char **out, size_t max)
{
    const struct file *file = file_find(name);
    if (!file || !max)
        return 0;
    size_t count = 0;
    out[count++] = file->name;
    for (size_t at = 0; at < count; at++) { /* breadth first; each file once */
        const Google__Protobuf__FileDescriptorProto *proto = file_find(out[at])->proto;
        for (size_t i = 0; i < proto->n_dependency && count < max; i++) {
            bool seen = false;
            for (size_t k = 0; k < count && !seen; k++)
                seen = strcmp(out[k], proto->dependency[i]) == 0;
            const struct file *dependency = seen ? NULL : file_find(proto->dependency[i]);
            if (dependency)
                out[count++] = dependency->name;
        }
    }
    return count;
}

size_t registry_service_count(void) { return registry.service_count; }

const char *registry_service_name(size_t index)
{
    covey_assert(index < registry.service_count);
    return registry.services[index];
}
