/* Completion: words of the command table, and names asked from the server (briefly; silence when it does not answer). */
#include "cli.h"
#include <stdlib.h>
#include <string.h>

/* Where names for <word> come from: method, its list field, and the key of a name. */
struct source {
    const char *word, *method, *list, *key;
};
static const struct source sources[] = {
    {"<instance>", "Instances/ListInstances", "instances", "name"}, {"<member>", "Cluster/ListMembers", "members", "server_name"},
    {"<group>", "ClusterGroups/ListClusterGroups", "groups", "name"},
    {"<warning>", "Warnings/ListWarnings", "warnings", "uuid"},
    {"<image>", "Images/ListImageAliases", "aliases", "name"},      {"<alias>", "Images/ListImageAliases", "aliases", "name"},
    {"<profile>", "Profiles/ListProfiles", "profiles", "name"},     {"<pool>", "StoragePools/ListStoragePools", "pools", "name"},
    {"<network>", "Networks/ListNetworks", "networks", "name"},
    {"<project>", "Projects/ListProjects", "projects", "name"},
};

static void offer(const char *word, const char *typed, FILE *out)
{
    if (str_prefix(word, typed))
        fprintf(out, "%s\n", word);
}

static void offer_names(struct cli *cli, const char *placeholder, const char *typed, FILE *out)
{
    size_t index;
    json_t *item;
    if (strstr(placeholder, "<remote>") == placeholder) {
        json_t *names = remote_names(cli);
        json_array_foreach(names, index, item) offer(json_string_value(item), typed, out);
        json_decref(names);
        return;
    }
    const struct source *source = NULL;
    for (size_t i = 0; i < sizeof(sources) / sizeof(*sources); i++)
        if (strstr(placeholder, sources[i].word))
            source = &sources[i];
    struct covey_client *client;
    struct error e = ERROR_INIT;
    if (!source || cli_resolve(cli, strchr(typed, ':') ? typed : NULL, &client, NULL, &e))
        return;
    json_t *reply = NULL;
    const struct covey_options options = {.timeout_ms = CLI_COMPLETION_TIMEOUT_MS};
    if (client_call_options(client, source->method, json_pack("{s:i}", "recursion", 1), &reply, NULL, &options, &e))
        return;
    json_array_foreach(json_object_get(reply, source->list), index, item) offer(json_text(item, source->key), typed, out);
    json_decref(reply);
}

/* The n-th word of the usage line's arguments; the last one repeats when it ends with "...". */
static char *placeholder_at(const char *args, int n)
{
    const char *last = "";
    while (*args) {
        last = args;
        size_t len = strcspn(args, " ");
        if (n-- == 0)
            return xasprintf("%.*s", (int)len, args);
        args += len + strspn(args + len, " ");
    }
    return xstrdup(strstr(last, "...") ? last : "");
}

/* The value of the flag that the word before is. */
static void offer_value(struct cli *cli, int count, char **words, FILE *out)
{
    static const char *const formats[] = {"csv", "json", "table", "yaml", "compact"};
    struct cli parsed = {.program = cli->program, .daemon_grammar = cli->daemon_grammar};
    const char *word = words[count - 2], *typed = words[count - 1], *where = "";
    struct error e = ERROR_INIT;
    command_parse(&parsed, count - 2, words, &where, &e); /* arguments may still be missing */
    const struct command *command = parsed.command;
    for (size_t i = 0; i < flag_table_count; i++) {
        const struct flag *flag = &flag_table[i];
        bool same = word[1] == '-' ? strcmp(word + 2, flag->name) == 0 : flag->letter && word[strlen(word) - 1] == flag->letter;
        if (!same || !flag->value || !command_has_flag(command, flag->id))
            continue;
        if (strcmp(flag->id, "format") == 0) {
            for (size_t f = 0; f < sizeof(formats) / sizeof(*formats); f++)
                offer(formats[f], typed, out);
        } else {
            char *placeholder = xasprintf("<%s>", flag->value);
            offer_names(cli, placeholder, typed, out);
            free(placeholder);
        }
    }
    free(parsed.flags);
    free(parsed.argv);
}

void complete_words(struct cli *cli, int count, char **words, FILE *out)
{
    struct cli parsed = {.program = cli->program, .daemon_grammar = cli->daemon_grammar};
    const char *typed = count ? words[count - 1] : "", *where = "";
    struct error e = ERROR_INIT;
    int bad = command_parse(&parsed, count ? count - 1 : 0, words, &where, &e);
    bool short_of_arguments = bad && strcmp(e.text, "Missing required arguments") == 0;
    const struct command *command = parsed.command;
    if (command && command->run == run_daemon) /* no word yet */
        command = NULL;
    if (bad && !short_of_arguments) {
        if (count >= 2 && str_prefix(e.text, "flag needs an argument"))
            offer_value(cli, count, words, out);
        free(parsed.flags);
        free(parsed.argv);
        return;
    }
    if (*typed == '-') {
        for (size_t i = 0; i < flag_table_count; i++) {
            char *name = xasprintf("--%s", flag_table[i].name);
            if (command_has_flag(command, flag_table[i].id))
                offer(name, typed, out);
            free(name);
        }
    } else if (!command || !command->run) {
        const char *group = cli->daemon_grammar && !command ? "admin" : where;
        size_t depth = strlen(group);
        for (size_t i = 0; i < command_count; i++) {
            const char *path = command_table[i].path;
            if (depth && (strncmp(path, group, depth) != 0 || path[depth] != ' '))
                continue;
            const char *last = depth ? path + depth + 1 : path;
            if (!strchr(last, ' ') && !str_prefix(last, "__"))
                offer(last, typed, out);
        }
    } else {
        char *placeholder = placeholder_at(command->args, parsed.argc);
        if (*placeholder && strcmp(command->path, "completion") == 0)
            offer("bash", typed, out);
        else if (*placeholder)
            offer_names(cli, str_prefix(placeholder, "[<remote>:]<") ? placeholder + 11 : placeholder, typed, out);
        free(placeholder);
    }
    free(parsed.flags);
    free(parsed.argv);
}

int run_complete(struct cli *cli, struct error *err)
{
    complete_words(cli, cli->argc, cli->argv, stdout);
    return STATUS_OK;
}

int run_completion(struct cli *cli, struct error *err)
{
    if (strcmp(cli->argv[0], "bash") != 0)
        return error_set(err, STATUS_UNIMPLEMENTED, "not implemented: completion for \"%s\" (only bash)", cli->argv[0]);
    fputs("# bash completion for covey; the candidates come from the program's own command table.\n"
          "_covey() {\n"
          "    local current word line=()\n"
          "    current=${COMP_WORDS[COMP_CWORD]}\n"
          "    mapfile -t line < <(\"${COMP_WORDS[0]}\" __complete -- \"${COMP_WORDS[@]:1:COMP_CWORD-1}\" \"$current\" 2>/dev/null)\n"
          "    COMPREPLY=()\n"
          "    for word in \"${line[@]}\"; do\n"
          "        COMPREPLY+=(\"$word\")\n"
          "    done\n"
          "}\n"
          "complete -o default -F _covey covey\n",
          stdout);
    return STATUS_OK;
}
