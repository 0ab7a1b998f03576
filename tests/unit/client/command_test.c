/* The command table: sound in itself, parsed as written, completed. */
#include "client/cli/cli.h"
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

struct line {
    struct cli cli;
    struct error err;
    const char *where;
    int status;
};

static struct line parse(const char *program, const char *text)
{
    static char copy[1024];
    static char *argv[64];
    int argc = 0;
    struct line line = {.cli = {.program = program}, .err = ERROR_INIT};
    line.cli.daemon_grammar = strcmp(program, "lxd") == 0;
    snprintf(copy, sizeof(copy), "%s", text);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    line.status = command_parse(&line.cli, argc, argv, &line.where, &line.err);
    return line;
}

static void done(struct line *line)
{
    free(line->cli.flags);
    free(line->cli.argv);
}

static void table_is_sound(void **state)
{
    for (size_t i = 0; i < command_count; i++) {
        const struct command *command = &command_table[i];
        const struct flag *seen[64];
        size_t count = 0;
        assert_ptr_equal(command_find(command->path), command); /* unique */
        const char *space = strrchr(command->path, ' ');
        if (space) { /* its group stands in the table */
            char *group = strndup(command->path, (size_t)(space - command->path));
            assert_non_null(command_find(group));
            free(group);
        }
        for (size_t f = 0; f < flag_table_count; f++)
            if (command_has_flag(command, flag_table[f].id))
                seen[count++] = &flag_table[f];
        for (size_t a = 0; a < count; a++)
            for (size_t b = a + 1; b < count; b++) {
                if (strcmp(seen[a]->name, seen[b]->name) == 0 || (seen[a]->letter && seen[a]->letter == seen[b]->letter))
                    fail_msg("%s: flags %s and %s collide", command->path, seen[a]->id, seen[b]->id);
            }
        for (const char *id = command->flags; *id; id += strcspn(id, ",") + (id[strcspn(id, ",")] == ',')) {
            char *one = strndup(id, strcspn(id, ","));
            if (!flag_find(one))
                fail_msg("%s: there is no flag \"%s\"", command->path, one);
            free(one);
        }
    }
}

static void parses(void **state)
{
    struct line line = parse("covey", "cluster ls -f csv r:");
    assert_int_equal(line.status, 0);
    assert_string_equal(line.cli.command->path, "cluster list");
    assert_string_equal(cli_flag(&line.cli, "format"), "csv");
    assert_int_equal(line.cli.argc, 1);
    done(&line);

    line = parse("covey", "launch img c1 -c a=1 --config=b=2 -pdefault -ed root,size=1 --target=m1");
    const char *values[4];
    assert_int_equal(line.status, 0);
    assert_int_equal(cli_flag_list(&line.cli, "config", values, 4), 2);
    assert_string_equal(values[1], "b=2");
    assert_string_equal(cli_flag(&line.cli, "profile"), "default");
    assert_true(cli_switch(&line.cli, "ephemeral"));
    assert_string_equal(cli_flag(&line.cli, "device"), "root,size=1");
    assert_string_equal(cli_flag(&line.cli, "target"), "m1");
    done(&line);

    line = parse("lxc", "exec c1 -T --env A=b -- ls -l --color");
    assert_int_equal(line.status, 0);
    assert_int_equal(line.cli.argc, 4);
    assert_string_equal(line.cli.argv[3], "--color");
    assert_true(cli_switch(&line.cli, "no-tty"));
    done(&line);

    line = parse("covey", "--project p profile device add x eth0 nic");
    assert_int_equal(line.status, 0);
    assert_string_equal(line.cli.command->path, "profile device add");
    assert_string_equal(cli_flag(&line.cli, "project"), "p");
    done(&line);
}

static void refuses(void **state)
{
    static const struct {
        const char *text, *error, *where;
    } cases[] = {
        {"clus", "unknown command \"clus\" for \"covey\"", ""},
        {"cluster lst", "unknown command \"lst\" for \"covey cluster\"", "cluster"},
        {"list --foo", "unknown flag: --foo", "list"},
        {"list -Z", "unknown shorthand flag: 'Z' in -Z", "list"},
        {"list --format", "flag needs an argument: --format", "list"},
        {"rename a", "Missing required arguments", "rename"},
        {"rename a b c", "Invalid number of arguments", "rename"},
        {"delete a --force=maybe", "invalid argument \"maybe\" for \"--force\": expected true or false", "delete"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        struct line line = parse("covey", cases[i].text);
        assert_int_equal(line.status, STATUS_INVALID_ARGUMENT);
        assert_string_equal(line.err.text, cases[i].error);
        assert_string_equal(line.where, cases[i].where);
        done(&line);
    }
}

static void daemon_grammar(void **state)
{
    struct line line = parse("lxd", "--logfile f --group g --debug");
    assert_int_equal(line.status, 0);
    assert_string_equal(line.cli.command->path, "__daemon");
    assert_string_equal(cli_flag(&line.cli, "daemon-group"), "g");
    done(&line);
    line = parse("lxd", "waitready -t 5");
    assert_int_equal(line.status, 0);
    assert_string_equal(line.cli.command->path, "admin waitready");
    assert_string_equal(cli_flag(&line.cli, "timeout-t"), "5");
    done(&line);
    line = parse("lxd", "cluster list-database");
    assert_string_equal(line.cli.command->path, "admin cluster list-database");
    done(&line);
    line = parse("lxd", "launch x");
    assert_int_equal(line.status, STATUS_INVALID_ARGUMENT);
    done(&line);
}

static void complete(const char *program, char **words, int count, const char *expected)
{
    struct cli cli = {.program = program, .daemon_grammar = strcmp(program, "lxd") == 0};
    char *text;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    complete_words(&cli, count, words, out);
    fclose(out);
    assert_string_equal(text, expected);
    free(text);
}

static void completes(void **state)
{
    complete("covey", (char *[]){"clu"}, 1, "cluster\n");
    complete("covey", (char *[]){"cluster", "re"}, 2, "revoke-token\nremove\nrename\n");
    complete("covey", (char *[]){"list", "--fo"}, 2, "--force-local\n--format\n");
    complete("covey", (char *[]){"completion", ""}, 2, "bash\n");
    complete("covey", (char *[]){"list", "--format", "c"}, 3, "csv\ncompact\n");
    complete("covey", (char *[]){"cluster", "list", "-f", ""}, 4, "csv\njson\ntable\nyaml\ncompact\n");
    complete("covey", (char *[]){"exec", "c1", "--", "sh", "-f", ""}, 6, "");
    complete("lxd", (char *[]){"wa"}, 1, "waitready\n");
    complete("covey", (char *[]){"nothing", ""}, 2, "");
}

int main(void)
{
    registry_init();
    const struct CMUnitTest tests[] = {cmocka_unit_test(table_is_sound), cmocka_unit_test(parses), cmocka_unit_test(refuses),
                                       cmocka_unit_test(daemon_grammar), cmocka_unit_test(completes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
