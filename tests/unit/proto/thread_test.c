/* Threads that end by themselves: whole, before the group is joined. */
#include "proto/core/core.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

enum { THREADS = 40, ENDING_US = 20000, LONG_MS = 60000 };

static atomic_int ended;

/* What a library does with what it keeps for each thread. */
static void destructor(void *value)
{
    usleep(ENDING_US);
    atomic_fetch_add(&ended, 1);
}

static void *run(void *ud)
{
    pthread_setspecific(*(pthread_key_t *)ud, &ended);
    return NULL;
}

static void test_ended_whole(void **state)
{
    static struct thread_group group = THREAD_GROUP_INIT;
    pthread_key_t key;
    assert_int_equal(pthread_key_create(&key, destructor), 0);
    for (int round = 1; round <= 2; round++) { /* a group can be used again */
        for (int i = 0; i < THREADS; i++) {
            assert_int_equal(thread_group_start(&group, "test", 0, run, &key), 0);
        }
        assert_true(thread_group_join(&group, -1));
        assert_int_equal(atomic_load(&ended), round * THREADS);
    }
    assert_true(thread_group_join(&group, 0)); /* nobody is left */
    pthread_key_delete(key);
}

static void *wait_for(void *ud)
{
    char byte;
    assert_int_equal(read(*(int *)ud, &byte, 1), 0);
    return NULL;
}

static void test_not_in_time(void **state)
{
    static struct thread_group group = THREAD_GROUP_INIT;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(thread_group_start(&group, "test", 256 * 1024, wait_for, &ends[0]), 0);
    assert_false(thread_group_join(&group, 50));
    close(ends[1]);
    assert_true(thread_group_join(&group, LONG_MS));
    close(ends[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ended_whole), cmocka_unit_test(test_not_in_time)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
