/* covey: the command line. The name it is called by decides the grammar: lxd and incusd the daemon's administration, lxc, incus and covey the
 * client's. Exit codes: 0 done, 1 any error (wrong usage too, as with lxc), exec: the command's own. */
#include "cli.h"
#include <locale.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_error(const struct error *err) { fprintf(stderr, "Error: %s\n", *err->text ? err->text : status_name(err->code)); }

/* Wrong usage: the error, and where help is. */
static int usage_error(const struct cli *cli, const char *where, const struct error *err)
{
    if (strcmp(err->text, "Missing required arguments") == 0 || strcmp(err->text, "Invalid number of arguments") == 0) {
        command_help(cli, where, stderr);
        fputc('\n', stderr);
    }
    print_error(err);
    if (cli->daemon_grammar && str_prefix(where, "admin "))
        where += 6;
    fprintf(stderr, "See \"%s%s%s --help\"\n", cli->program, *where ? " " : "", where);
    return 1;
}

static int run(struct cli *cli)
{
    struct error err = ERROR_INIT;
    int status = STATUS_OK;
    if (cli->command->run != run_daemon) /* that one becomes the daemon, with signals as they came */
        status = signals_start(&err);
    if (!status)
        status = cli->command->run(cli, &err);
    if (fflush(stdout) && !status)
        status = error_set(&err, STATUS_INTERNAL, "cannot write to standard output");
    if (status)
        print_error(&err);
    return status ? 1 : cli->exit_code;
}

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, "");
    signal(SIGPIPE, SIG_IGN);
    registry_init();
    if (str_empty(getenv("GRPC_VERBOSITY")))
        setenv("GRPC_VERBOSITY", "NONE", 1); /* gRPC's own messages mean nothing to a user */
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    struct cli cli = {.program = argc ? slash ? slash + 1 : argv[0] : "covey", .in = stdin};
    cli.daemon_grammar = strcmp(cli.program, "lxd") == 0 || strcmp(cli.program, "incusd") == 0;
    struct error err = ERROR_INIT;
    const char *where;
    int code;
    for (int i = 1; i < argc; i++)
        if (!utf8_valid(argv[i], strlen(argv[i]))) {
            fprintf(stderr, "Error: argument %d is not UTF-8\n", i);
            return 1;
        }
    if (argc && command_parse(&cli, argc - 1, argv + 1, &where, &err)) {
        code = usage_error(&cli, where, &err);
    } else if (cli_switch(&cli, "version")) {
        printf("%s\n", COVEY_VERSION);
        code = 0;
    } else if (cli_switch(&cli, "help") || !cli.command || !cli.command->run) {
        command_help(&cli, where, stdout);
        code = 0;
    } else {
        log_init("covey", cli_switch(&cli, "debug") ? LOG_LEVEL_DEBUG : cli_switch(&cli, "verbose") ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR);
        code = run(&cli);
    }
    bool connected = cli.connection_count > 0;
    cli_close(&cli);
    if (connected)
        covey_end();
    return code;
}
