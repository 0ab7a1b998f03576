/* The process covey-gateway: command line, signals, supervision. */
#include "world.h"
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

static char dir[64];

static pid_t start(int *input, const char *flag)
{
    int pipe_fds[2];
    pid_t pid;
    posix_spawn_file_actions_t actions;
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_fds[0], 0);
    char *const argv[] = {GATEWAY_BINARY, "--dir", dir, (char *)flag, NULL};
    const char *sanitizer = getenv("TSAN_OPTIONS"); /* an instrumented gateway needs the same suppressions as this test */
    char *options = sanitizer != NULL ? xasprintf("TSAN_OPTIONS=%s", sanitizer) : NULL;
    char *const envp[] = {"COVEY_LOG=error", options, NULL};
    assert_int_equal(posix_spawn(&pid, GATEWAY_BINARY, &actions, NULL, argv, envp), 0);
    free(options);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_fds[0]);
    *input = pipe_fds[1];
    return pid;
}

static int end_of(pid_t pid)
{
    int status = -1;
    WAIT_FOR(waitpid(pid, &status, WNOHANG) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static bool is_up(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/unix.socket", dir);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool up = connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0;
    close(fd);
    return up;
}

static void stops_by_signal(void **state)
{
    int input;
    pid_t pid = start(&input, NULL);
    WAIT_FOR(is_up());
    EXPECT("GET", "/1.0", NULL, NULL, 503, NULL); /* no daemon */
    close(input); /* not supervised: nothing happens */
    EXPECT("GET", "/nothing", NULL, NULL, 404, NULL);
    int idle = client_connect(); /* an open connection does not hold it */
    kill(pid, SIGTERM);
    assert_int_equal(end_of(pid), 0);
    assert_false(is_up());
    close(idle);
}

static void ends_with_its_daemon(void **state)
{
    int input;
    pid_t pid = start(&input, "--supervised");
    WAIT_FOR(is_up());
    close(input);
    assert_int_equal(end_of(pid), 0);
}

static void takes_over_a_dead_socket_only(void **state)
{
    int input, other;
    pid_t pid = start(&input, NULL);
    WAIT_FOR(is_up());
    pid_t second = start(&other, NULL);
    assert_int_equal(end_of(second), 1);
    close(other);
    assert_true(is_up());
    kill(pid, SIGKILL);
    assert_int_equal(end_of(pid), 128 + SIGKILL);
    close(input);
    pid = start(&input, NULL);
    WAIT_FOR(is_up());
    kill(pid, SIGTERM);
    assert_int_equal(end_of(pid), 0);
    close(input);
}

static void bad_arguments(void **state)
{
    int input;
    pid_t pid = start(&input, "--nonsense");
    assert_int_equal(end_of(pid), 2);
    close(input);
    pid = start(&input, "--group=no-such-group-here");
    assert_int_equal(end_of(pid), 2);
    close(input);
}

static int setup(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    snprintf(dir, sizeof(dir), "/tmp/covey-gateway-XXXXXX");
    if (mkdtemp(dir) == NULL)
        return -1;
    snprintf(w.dir, sizeof(w.dir), "%s", dir);
    (void)world_setup;
    (void)world_teardown;
    return 0;
}

static int teardown(void **state)
{
    struct error err = ERROR_INIT;
    return dir_remove_all(dir, &err) == STATUS_OK ? 0 : -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stops_by_signal),
        cmocka_unit_test(ends_with_its_daemon),
        cmocka_unit_test(takes_over_a_dead_socket_only),
        cmocka_unit_test(bad_arguments),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
