/* covey-gateway: command line, signals, life. Main thread; everything else runs in threads of gateway/ and proto/rpc. */
#include "gateway.h"
#include <errno.h>
#include <getopt.h>
#include <grp.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { MAIN_ARENAS = 2, MAIN_TRIM_BYTES = 256 << 10 };

static const char usage[] =
    "usage: covey-gateway --dir STATE_DIR [--group NAME] [--supervised]\n"
    "Serves the REST API /1.0 on STATE_DIR/unix.socket and on the connections that the daemon hands over.\n"
    "  --dir STATE_DIR  the daemon's state directory\n"
    "  --group NAME     this group may use unix.socket, besides root\n"
    "  --supervised     stdin is a pipe from the daemon: leave when it closes\n";

/* Every connection is a descriptor: take what the system gives. */
static void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        log_warn("gateway.limit", "open files stay at the default: %s", strerror(errno));
}

/* Until a signal to stop (true) or, supervised, the end of stdin (false). */
static bool wait_for_end(int signal_fd, bool supervised)
{
    for (;;) {
        struct pollfd fds[2] = {{.fd = signal_fd, .events = POLLIN}, {.fd = supervised ? STDIN_FILENO : -1, .events = POLLIN}};
        char ignored[64];
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return false;
        if (fds[0].revents != 0)
            return true;
        if (fds[1].revents != 0) {
            ssize_t n = read(STDIN_FILENO, ignored, sizeof(ignored));
            if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN))
                return false;
        }
    }
}

static bool parse(int argc, char **argv, struct gateway_options *options, bool *supervised)
{
    static const struct option longs[] = {
        {"dir", required_argument, NULL, 'd'}, {"group", required_argument, NULL, 'g'}, {"supervised", no_argument, NULL, 's'}, {"help", no_argument, NULL, 'h'}, {0}};
    int c;
    *options = (struct gateway_options){.group = -1};
    while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        struct group *group;
        switch (c) {
        case 'd':
            options->dir = optarg;
            break;
        case 'g':
            group = getgrnam(optarg);
            if (group == NULL) {
                fprintf(stderr, "covey-gateway: there is no group \"%s\"\n", optarg);
                return false;
            }
            options->group = group->gr_gid;
            break;
        case 's':
            *supervised = true;
            break;
        case 'h':
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            return false;
        }
    }
    if (options->dir == NULL || optind != argc) {
        fputs(usage, stderr);
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    struct gateway_options options;
    struct error err = ERROR_INIT;
    bool supervised = false;
    sigset_t signals;

    mallopt(M_ARENA_MAX, MAIN_ARENAS);
    mallopt(M_TRIM_THRESHOLD, MAIN_TRIM_BYTES);
    log_init("covey-gateway", LOG_LEVEL_INFO);
    if (!parse(argc, argv, &options, &supervised))
        return 2;
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before any thread, so that all inherit it */
    int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
    if (signal_fd < 0) {
        log_error("gateway.start", "signalfd: %s", strerror(errno));
        return 1;
    }
    raise_file_limit();
    registry_init();
    rpc_init();
    if (gateway_start(&options, &err) != STATUS_OK) {
        log_error("gateway.start", "error=\"%s\"", err.text);
        return 1;
    }
    log_info("gateway.ready", "dir=%s", options.dir);
    if (!wait_for_end(signal_fd, supervised))
        _exit(0); /* the daemon is gone: nothing could be answered any more */
    if (!gateway_stop()) {
        log_warn("gateway.stop", "some requests did not end in time");
        _exit(0);
    }
    rpc_shutdown();
    return 0;
}
