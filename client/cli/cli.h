/* What the files of the command line share: the command table's types, parsed arguments, connections, output. One thread, except where a file says
 * otherwise. A command function returns a status and sets `err`; main prints it as "Error: <text>" and exits with 1 (as lxc does, for wrong
 * usage too), or with cli->exit_code. */
#ifndef COVEY_CLIENT_CLI_H
#define COVEY_CLIENT_CLI_H

#include "client/lib/client.h"
#include <stdio.h>

enum {
    CLI_FLAGS_MAX = 512,                 /* flags of one command line */
    CLI_REMOTES_MAX = 64,                /* remotes used by one command */
    CLI_INPUT_BYTES_MAX = 4 << 20,       /* standard input and edited files */
    CLI_COMPLETION_TIMEOUT_MS = 2 * 1000,
    CLI_QUESTION_TRIES_MAX = 100,        /* invalid answers to one question */
};

struct cli;
typedef int (*command_run)(struct cli *cli, struct error *err);

struct flag {
    const char *id; /* how commands name it; differs from `name` where two flags share a name */
    const char *name;
    char letter;       /* 0 = none */
    const char *value; /* name of its value, NULL = a switch */
    const char *help;
};

struct command {
    const char *path;    /* "cluster list-tokens" */
    const char *aliases; /* other spellings of the last word, comma list */
    const char *args;    /* for the usage line; its words tell completion what stands there: <instance>, <member>, <image>, … */
    int args_min, args_max; /* -1 = any number */
    const char *flags;      /* ids, comma list, without the global ones */
    const char *summary;
    command_run run; /* NULL: a group */
};

struct flag_value {
    const struct flag *flag;
    const char *value; /* "true" for a switch */
};

struct cli_connection {
    char *remote;
    struct covey_client *client;
};

struct cli {
    const char *program; /* as which name we were called */
    bool daemon_grammar; /* lxd, incusd */
    const struct command *command;
    char **argv; /* positional arguments */
    int argc;
    struct flag_value *flags;
    size_t flag_count;
    struct cli_connection connections[CLI_REMOTES_MAX];
    size_t connection_count;
    json_t *remotes;     /* configuration, loaded on demand */
    bool quiet;
    int exit_code;
    FILE *in;
};

/* ---- command.c: table and parsing ---- */
extern const struct command command_table[];
extern const size_t command_count;
extern const struct flag flag_table[];
extern const size_t flag_table_count;

const struct command *command_find(const char *path);
const struct flag *flag_find(const char *id);
bool command_has_flag(const struct command *command, const char *id);
/* Fills command, argv and flags. STATUS_OK with command NULL never happens; help is answered by the caller (flag "help"). On error *where is the
 * deepest group reached (NULL = top), for the hint. */
int command_parse(struct cli *cli, int argc, char **argv, const char **where, struct error *err);
/* Help of a command, or of the group `path` ("" = everything). */
void command_help(const struct cli *cli, const char *path, FILE *out);
const char *cli_flag(const struct cli *cli, const char *id); /* the last value, NULL if not given */
bool cli_switch(const struct cli *cli, const char *id);
size_t cli_flag_list(const struct cli *cli, const char *id, const char **values, size_t max); /* every value, in order */

/* ---- complete.c ---- */
int run_completion(struct cli *cli, struct error *err);
/* Prints candidates for the last of `words` (those after the program's name), one per line. */
void complete_words(struct cli *cli, int count, char **words, FILE *out);

/* ---- remote.c ---- */
/* "remote:name" or "name" -> connection and name (malloc'ed). */
int cli_resolve(struct cli *cli, const char *arg, struct covey_client **client, char **name, struct error *err);
int cli_connect(struct cli *cli, const char *remote, struct covey_client **client, struct error *err); /* NULL = the default remote */
int cli_local(struct cli *cli, struct covey_client **client, struct error *err);
const char *cli_remote_name(struct cli *cli, const char *arg);
void cli_close(struct cli *cli);
const char *cli_state_dir(const struct cli *cli);
json_t *remote_names(struct cli *cli); /* new reference */
int remote_identity(struct identity *identity, struct error *err);

/* ---- call.c ---- */
/* A call with --project and --target where the method has such fields. Consumes request. */
int cli_call(struct cli *cli, struct covey_client *client, const char *method, json_t *request, json_t **response, struct error *err);
int cli_call_etag(struct cli *cli, struct covey_client *client, const char *method, json_t *request, json_t **response, char **etag,
                  struct error *err);
/* Waits for an operation with progress on a terminal; ^C cancels it, a second one ends the program. *final may be NULL. */
int cli_wait(struct cli *cli, struct covey_client *client, const json_t *operation, json_t **final, struct error *err);
/* Calls, then waits. */
int cli_call_wait(struct cli *cli, struct covey_client *client, const char *method, json_t *request, json_t **final, struct error *err);
void cli_say(const struct cli *cli, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* nothing with --quiet */
/* Yes/no question on the terminal (or standard input). */
int cli_ask(struct cli *cli, const char *question, const char *default_answer, char **answer, struct error *err);
int cli_ask_bool(struct cli *cli, const char *question, const char *default_answer, bool *answer, struct error *err);
int cli_ask_password(struct cli *cli, const char *question, char **answer, struct error *err);
int cli_read_all(FILE *in, struct buf *out, struct error *err);
/* key=value into an object of strings. */
int cli_pair(json_t *object, const char *text, struct error *err);
json_t *cli_pairs(char **words, int count, struct error *err); /* NULL on error */
int cli_edit(struct cli *cli, const char *initial, char **edited, struct error *err);
bool cli_stdin_is_terminal(const struct cli *cli);

/* ---- signals.c ---- */
struct termios;
int signals_start(struct error *err);
/* fn runs on the signal thread for each signal, instead of the default; NULL = the default again. No fn runs after this has returned. */
void signals_handle(void (*fn)(int signal_number, void *ud), void *ud);
/* Settings to be put back if a signal ends the program; fd -1 = none. */
void signals_save_terminal(int fd, const struct termios *settings);

/* ---- output.c ---- */
enum { CLI_SHORT_TIME_SIZE = 32 };
/* "Nov 21, 2026 at 2:15pm (UTC)", as lxc shows it; "" when the text is no time. */
void cli_short_time(const char *rfc3339, char out[CLI_SHORT_TIME_SIZE]);
/* "2026/11/21 11:42 UTC", the other form that lxc uses; "" for the times before 1971 that stand for never. */
void cli_minute_time(const char *rfc3339, char out[CLI_SHORT_TIME_SIZE]);
struct table {
    size_t columns, rows;
    const char *const *headers;
    char **cells;
    bool row_lines; /* a line below each row, and headers as they are otherwise */
};
void table_init(struct table *table, const char *const *headers, size_t columns);
void table_add(struct table *table, ...); /* as many const char * as columns (copied) */
void table_add_row(struct table *table, const char *const *cells);
void table_sort(struct table *table); /* by the first column */
void table_free(struct table *table);
void table_render(const struct table *table, struct buf *out);
void table_render_csv(const struct table *table, struct buf *out);
int table_render_compact(const struct table *table, struct buf *out, struct error *err);
/* Prints by --format: table, csv, compact from the table; json, yaml from raw. */
int cli_print(struct cli *cli, const struct table *table, const json_t *raw, struct error *err);
int cli_check_format(const struct cli *cli, struct error *err);
int cli_print_yaml(const json_t *value);
char *text_upper(const char *text); /* of ASCII letters; the caller's */
void sql_render(const json_t *reply, struct buf *out); /* an SqlResponse */

/* ---- yaml.c ---- */
json_t *yaml_parse(const char *text, size_t len, struct error *err);
void yaml_write(const json_t *value, struct buf *out);

/* ---- preseed.c ---- */
json_t *preseed_parse(const char *text, size_t len, struct error *err);
int preseed_apply(struct cli *cli, struct covey_client *client, json_t *preseed, struct error *err);
/* For a set-up without questions: a server without any managed network gets a bridge under the first free name lxdbrN, and its default profile a NIC there. */
int preseed_add_bridge(struct covey_client *client, json_t *preseed, struct error *err);
int preseed_dump(struct cli *cli, struct covey_client *client, json_t **preseed, struct error *err);
/* ---- join.c ---- */
int join_complete(json_t *cluster, struct error *err); /* token -> name, address, certificate; path -> certificate */
char *address_canonical(const char *address);
/* ---- dialogue.c ---- */
int init_interactive(struct cli *cli, struct covey_client *client, struct error *err);
json_t *preseed_empty(void);
/* Adds a pool and makes it the default profile's root. config is taken, NULL = none. */
void preseed_add_pool(json_t *preseed, const char *name, const char *driver, json_t *config);
char *driver_list(const json_t *server, const bool *remote);
bool driver_known(const char *list, const char *name);
/* sqlite on the stopped member's file */
int stopped_database_query(const char *dir, const char *file, const char *query, json_t **reply, struct error *err); /* a file below database/ */
int local_database_query(const char *dir, const char *query, json_t **reply, struct error *err);

/* ---- cluster.c ---- */
/* The member that the first word names. *etag may be NULL. */
int cluster_member_get(struct cli *cli, struct covey_client **client, json_t **member, char **etag, struct error *err);
int cluster_needed(struct cli *cli, struct covey_client *client, struct error *err); /* `LXD server isn't part of a cluster` */

/* ---- network.c ---- */
/* The NIC that attaches to a network: by `network` to a managed one, else to the interface as its kind needs. name: inside, NULL = the server's choice. */
int network_nic(struct cli *cli, struct covey_client *client, const char *network, const char *name, json_t **device, struct error *err);

/* ---- commands ---- */
#define COMMANDS(X) \
    X(cluster_list) X(cluster_show) X(cluster_add) X(cluster_list_tokens) X(cluster_revoke_token) X(cluster_enable) X(cluster_remove) \
    X(cluster_rename) X(cluster_get) X(cluster_set) X(cluster_unset) X(cluster_update_certificate) \
    X(cluster_edit) X(cluster_role_add) X(cluster_role_remove) X(cluster_group_assign) X(cluster_group_add) X(cluster_group_remove) \
    X(cluster_group_list) X(cluster_group_show) X(cluster_group_create) X(cluster_group_delete) X(cluster_group_rename) X(cluster_group_edit) \
    X(warning_list) X(warning_show) X(warning_ack) X(warning_delete) \
    X(config_get) X(config_set) X(config_unset) X(config_show) \
    X(trust_add) X(trust_list) X(trust_remove) X(trust_show) X(trust_list_tokens) X(trust_revoke_token) \
    X(image_import) X(image_list) X(image_info) X(image_show) X(image_delete) X(image_export) \
    X(image_alias_list) X(image_alias_create) X(image_alias_delete) X(image_alias_rename) \
    X(profile_list) X(profile_show) X(profile_create) X(profile_delete) X(profile_rename) X(profile_set) X(profile_unset) X(profile_get) \
    X(profile_edit) X(profile_device_add) X(profile_device_remove) X(profile_device_list) X(profile_device_show) \
    X(network_list) X(network_create) X(network_show) X(network_get) X(network_set) X(network_unset) X(network_edit) X(network_delete) \
    X(network_rename) X(network_info) X(network_list_leases) X(network_attach_profile) X(network_detach_profile) \
    X(storage_list) X(storage_create) X(storage_show) X(storage_delete) X(storage_info) X(project_list) X(project_show) \
    X(launch) X(init) X(list) X(info) X(exec) X(stop) X(start) X(restart) X(pause) X(delete) X(rename) \
    X(operation_list) X(operation_show) X(operation_delete) X(monitor) X(rpc) X(version) X(completion) X(complete) \
    X(remote_add) X(remote_list) X(remote_remove) X(remote_set_default) \
    X(admin_init) X(admin_waitready) X(admin_shutdown) X(admin_sql) X(admin_cluster_list_database) X(admin_cluster_show) \
    X(admin_cluster_edit) X(admin_cluster_set_address) X(admin_cluster_recover) X(admin_cluster_remove_raft_node) \
    X(admin_cluster_rescue) X(admin_cluster_backup) X(admin_cluster_restore) \
    X(admin_activateifneeded) X(daemon)
#define DECLARE(name) int run_##name(struct cli *cli, struct error *err);
COMMANDS(DECLARE)
#undef DECLARE

#endif
