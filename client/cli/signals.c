/* Signals go to one thread: main blocks them before any other thread exists, so that gRPC's threads never get one. Without a handler an interrupt
 * ends the program as usual, with the terminal put back in order. */
#include "cli.h"
#include <pthread.h>
#include <signal.h>
#include <termios.h>
#include <unistd.h>

static const int handled[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* handler, handler_ud, saved, saved_fd; held while a handler runs */
static void (*handler)(int signal_number, void *ud);
static void *handler_ud;
static struct termios saved;
static int saved_fd = -1;

static void fill(sigset_t *set)
{
    sigemptyset(set);
    for (size_t i = 0; i < sizeof(handled) / sizeof(*handled); i++)
        sigaddset(set, handled[i]);
}

static void *wait_for_signals(void *ud)
{
    (void)ud;
    sigset_t set;
    fill(&set);
    for (;;) {
        int number;
        if (sigwait(&set, &number))
            continue;
        pthread_mutex_lock(&lock);
        if (handler)
            handler(number, handler_ud);
        else if (number != SIGWINCH && number != SIGCONT) {
            if (saved_fd >= 0)
                tcsetattr(saved_fd, TCSANOW, &saved);
            _exit(128 + number);
        }
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

int signals_start(struct error *err)
{
    sigset_t set;
    fill(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_for_signals, NULL))
        return error_set(err, STATUS_RESOURCE_EXHAUSTED, "cannot start a thread");
    pthread_detach(thread);
    return STATUS_OK;
}

void signals_handle(void (*fn)(int signal_number, void *ud), void *ud)
{
    pthread_mutex_lock(&lock);
    handler = fn;
    handler_ud = ud;
    pthread_mutex_unlock(&lock);
}

void signals_save_terminal(int fd, const struct termios *settings)
{
    pthread_mutex_lock(&lock);
    saved_fd = fd;
    if (settings)
        saved = *settings;
    pthread_mutex_unlock(&lock);
}
