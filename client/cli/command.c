/* Parsing by the table, and help. Pure apart from printing. Fails with INVALID_ARGUMENT and a text for people. */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

static const char *const global_flags = "help,project,quiet,verbose,debug,force-local,dir,version";

static bool in_list(const char *list, const char *word, size_t len)
{
    while (*list) {
        size_t item = strcspn(list, ",");
        if (item == len && strncmp(list, word, len) == 0)
            return true;
        list += item + (list[item] == ',');
    }
    return false;
}

const struct command *command_find(const char *path)
{
    for (size_t i = 0; i < command_count; i++)
        if (strcmp(command_table[i].path, path) == 0)
            return &command_table[i];
    return NULL;
}

const struct flag *flag_find(const char *id)
{
    for (size_t i = 0; i < flag_table_count; i++)
        if (strcmp(flag_table[i].id, id) == 0)
            return &flag_table[i];
    return NULL;
}

bool command_has_flag(const struct command *command, const char *id)
{
    return in_list(global_flags, id, strlen(id)) || (command && in_list(command->flags, id, strlen(id)));
}

/* A flag that this command (NULL: none yet) takes, by long name or by letter. */
static const struct flag *flag_of(const struct command *command, const char *name, size_t len, char letter)
{
    for (size_t i = 0; i < flag_table_count; i++) {
        const struct flag *flag = &flag_table[i];
        bool same = letter ? flag->letter == letter : strlen(flag->name) == len && strncmp(flag->name, name, len) == 0;
        if (same && command_has_flag(command, flag->id))
            return flag;
    }
    return NULL;
}

/* The command below `group` ("" = top) whose last word, or an alias of it, is `word`. */
static const struct command *command_below(const char *group, const char *word)
{
    size_t depth = strlen(group);
    for (size_t i = 0; i < command_count; i++) {
        const char *path = command_table[i].path;
        if (depth && (strncmp(path, group, depth) != 0 || path[depth] != ' '))
            continue;
        const char *last = depth ? path + depth + 1 : path;
        if (strchr(last, ' '))
            continue;
        if (strcmp(last, word) == 0 || in_list(command_table[i].aliases, word, strlen(word)))
            return &command_table[i];
    }
    return NULL;
}

static int add_flag(struct cli *cli, const struct flag *flag, const char *value, struct error *err)
{
    if (cli->flag_count == CLI_FLAGS_MAX)
        return error_set(err, STATUS_INVALID_ARGUMENT, "more than %d flags", CLI_FLAGS_MAX);
    cli->flags[cli->flag_count++] = (struct flag_value){flag, value};
    return STATUS_OK;
}

/* One argument that starts with '-'; *i is advanced over a value that stands apart. */
static int parse_flag(struct cli *cli, const struct command *command, int argc, char **argv, int *i, struct error *err)
{
    const char *arg = argv[*i];
    if (arg[1] == '-') {
        size_t len = strcspn(arg + 2, "=");
        const struct flag *flag = flag_of(command, arg + 2, len, 0);
        if (!flag)
            return error_set(err, STATUS_INVALID_ARGUMENT, "unknown flag: --%.*s", (int)len, arg + 2);
        const char *value = arg[2 + len] == '=' ? arg + 3 + len : NULL;
        bool on;
        if (!flag->value && value && parse_bool(value, &on))
            return error_set(err, STATUS_INVALID_ARGUMENT, "invalid argument \"%s\" for \"--%s\": expected true or false", value, flag->name);
        if (!flag->value)
            return !value || on ? add_flag(cli, flag, "true", err) : STATUS_OK;
        if (!value && *i + 1 >= argc)
            return error_set(err, STATUS_INVALID_ARGUMENT, "flag needs an argument: --%s", flag->name);
        return add_flag(cli, flag, value ? value : argv[++*i], err);
    }
    for (const char *letter = arg + 1; *letter; letter++) {
        const struct flag *flag = flag_of(command, NULL, 0, *letter);
        if (!flag)
            return error_set(err, STATUS_INVALID_ARGUMENT, "unknown shorthand flag: '%c' in %s", *letter, arg);
        if (!flag->value) {
            int status = add_flag(cli, flag, "true", err);
            if (status)
                return status;
            continue;
        }
        if (letter[1])
            return add_flag(cli, flag, letter[1] == '=' ? letter + 2 : letter + 1, err);
        if (*i + 1 >= argc)
            return error_set(err, STATUS_INVALID_ARGUMENT, "flag needs an argument: '%c' in %s", *letter, arg);
        return add_flag(cli, flag, argv[++*i], err);
    }
    return STATUS_OK;
}

static int check_count(const struct cli *cli, struct error *err)
{
    const struct command *command = cli->command;
    if (cli_switch(cli, "help") || cli_switch(cli, "version"))
        return STATUS_OK;
    if (cli->argc < command->args_min)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Missing required arguments");
    if (command->args_max >= 0 && cli->argc > command->args_max)
        return error_set(err, STATUS_INVALID_ARGUMENT, "Invalid number of arguments");
    return STATUS_OK;
}

static const struct command *next_word(struct cli *cli, const char *group, const char *word)
{
    if (cli->daemon_grammar && !*group) { /* lxd: the words of `admin` stand on the top level */
        const struct command *command = command_below("admin", word);
        return command ? command : strcmp(word, "version") == 0 ? command_find("version") : NULL;
    }
    return command_below(group, word);
}

int command_parse(struct cli *cli, int argc, char **argv, const char **where, struct error *err)
{
    const struct command *command = NULL;
    cli->flags = xcalloc(CLI_FLAGS_MAX, sizeof(*cli->flags));
    cli->argv = xcalloc((size_t)argc + 1, sizeof(*cli->argv));
    *where = "";
    const struct command *daemon = cli->daemon_grammar ? command_find("__daemon") : NULL;
    bool words_only = false;
    for (int i = 0; i < argc; i++) {
        const char *arg = argv[i];
        bool resolved = command && command->run;
        if (!words_only && strcmp(arg, "--") == 0) {
            words_only = true;
        } else if (!words_only && arg[0] == '-' && arg[1]) {
            int status = parse_flag(cli, command ? command : daemon, argc, argv, &i, err);
            if (status)
                return status;
        } else if (!resolved) {
            const struct command *next = next_word(cli, *where, arg);
            if (!next)
                return error_set(err, STATUS_INVALID_ARGUMENT, "unknown command \"%s\" for \"%s%s%s\"", arg, cli->program, **where ? " " : "", *where);
            command = next;
            *where = command->path;
        } else {
            cli->argv[cli->argc++] = argv[i];
        }
    }
    if (!command && daemon)
        command = daemon;
    cli->command = command;
    cli->quiet = cli_switch(cli, "quiet");
    return command && command->run ? check_count(cli, err) : STATUS_OK;
}

const char *cli_flag(const struct cli *cli, const char *id)
{
    const char *value = NULL;
    for (size_t i = 0; i < cli->flag_count; i++)
        if (strcmp(cli->flags[i].flag->id, id) == 0)
            value = cli->flags[i].value;
    return value;
}

bool cli_switch(const struct cli *cli, const char *id) { return cli_flag(cli, id) != NULL; }

size_t cli_flag_list(const struct cli *cli, const char *id, const char **values, size_t max)
{
    size_t count = 0;
    for (size_t i = 0; i < cli->flag_count && count < max; i++)
        if (strcmp(cli->flags[i].flag->id, id) == 0)
            values[count++] = cli->flags[i].value;
    return count;
}

static void help_flags(const char *ids, FILE *out)
{
    for (size_t i = 0; i < flag_table_count; i++) {
        const struct flag *flag = &flag_table[i];
        if (!in_list(ids, flag->id, strlen(flag->id)))
            continue;
        char *name = xasprintf("--%s%s%s", flag->name, flag->value ? " " : "", flag->value ? flag->value : "");
        if (flag->letter)
            fprintf(out, "  -%c, %-28s %s\n", flag->letter, name, flag->help);
        else
            fprintf(out, "      %-28s %s\n", name, flag->help);
        free(name);
    }
}

static void help_group(const char *path, FILE *out)
{
    size_t depth = strlen(path);
    fprintf(out, "Commands:\n");
    for (size_t i = 0; i < command_count; i++) {
        const struct command *command = &command_table[i];
        if (depth && (strncmp(command->path, path, depth) != 0 || command->path[depth] != ' '))
            continue;
        const char *last = depth ? command->path + depth + 1 : command->path;
        if (!strchr(last, ' ') && !str_prefix(last, "__"))
            fprintf(out, "  %-26s %s\n", last, command->summary);
    }
}

void command_help(const struct cli *cli, const char *path, FILE *out)
{
    const struct command *command = *path ? command_find(path) : NULL;
    const char *shown = cli->daemon_grammar && str_prefix(path, "admin ") ? path + 6 : strcmp(path, "__daemon") == 0 ? "" : path;
    if (cli->daemon_grammar && !*shown)
        path = "admin";
    if (command && *shown)
        fprintf(out, "%s\n\n", command->summary);
    if (command && command->run && *shown) {
        fprintf(out, "Usage:\n  %s %s %s%s[flags]\n", cli->program, shown, command->args, *command->args ? " " : "");
        if (*command->aliases)
            fprintf(out, "\nAliases: %s\n", command->aliases);
        if (*command->flags) {
            fprintf(out, "\nFlags:\n");
            help_flags(command->flags, out);
        }
    } else {
        fprintf(out, "Usage:\n  %s%s%s <command> [flags]\n\n", cli->program, *shown ? " " : "", shown);
        help_group(path, out);
        if (cli->daemon_grammar && !*shown) {
            fprintf(out, "\nWithout a command: run the daemon.\n");
            help_flags("logfile,daemon-group", out);
        }
    }
    fprintf(out, "\nGlobal flags:\n");
    help_flags(global_flags, out);
}
