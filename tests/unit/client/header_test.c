/* The public header compiles alone, under the strictest warnings. */
#include "client/include/covey/covey.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

static void compiles_alone(void **state)
{
    (void)state;
    assert_int_equal(system("echo '#include <covey/covey.h>' | " COVEY_CC " -std=c11 -x c -fsyntax-only -Wall -Wextra -Wconversion -Werror "
                            "-I" COVEY_SOURCE "/client/include -"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(compiles_alone)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
