/* Frames of another member: what raft_wire must refuse before libraft looks at it. */
#include "storage/raft_wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

enum { PEER = 7 };

/* Bytes put right before an unreadable page: a read behind them ends the test. */
static uint8_t *guard(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *map = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mprotect(map + page, page, PROT_NONE), 0);
    return map + page;
}

static void unguard(uint8_t *end)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap(end - page, 2 * page);
}

/* Whether a message with this configuration change passes. */
static bool change_passes(uint8_t *data, size_t len)
{
    Covey__Internal__V1__RaftFrame frame = COVEY__INTERNAL__V1__RAFT_FRAME__INIT;
    Covey__Internal__V1__AppendEntries body = COVEY__INTERNAL__V1__APPEND_ENTRIES__INIT;
    Covey__Internal__V1__Entry entry = COVEY__INTERNAL__V1__ENTRY__INIT, *entries[] = {&entry};
    struct raft_wire_in in;
    struct error err = ERROR_INIT;
    entry.term = 2;
    entry.type = RAFT_CHANGE;
    entry.data.data = data;
    entry.data.len = len;
    body.version = 1;
    body.term = 2;
    body.prev_log_index = 4;
    body.prev_log_term = 1;
    body.entries = entries;
    body.n_entries = 1;
    frame.kind_case = COVEY__INTERNAL__V1__RAFT_FRAME__KIND_APPEND_ENTRIES;
    frame.append_entries = &body;
    if (raft_wire_in_set(&in, PEER, &frame, &err) != STATUS_OK) {
        assert_string_equal(err.text, "raft frame: entries.data is not a configuration");
        return false;
    }
    raft_wire_in_clear(&in);
    return true;
}

static struct raft_buffer encoded(void)
{
    struct raft_configuration configuration;
    struct raft_buffer buf;
    raft_configuration_init(&configuration);
    assert_int_equal(raft_configuration_add(&configuration, 1, "127.0.0.1:8443", RAFT_VOTER), 0);
    assert_int_equal(raft_configuration_add(&configuration, 2, "127.0.0.2:8443", RAFT_STANDBY), 0);
    assert_int_equal(raft_configuration_add(&configuration, 3, "[::1]:8443", RAFT_SPARE), 0);
    assert_int_equal(raft_configuration_encode(&configuration, &buf), 0);
    raft_configuration_close(&configuration);
    return buf;
}

static void configuration_cut_off(void **state)
{
    uint8_t *end = guard();
    struct raft_buffer buf = encoded();
    for (size_t len = 8; len <= buf.len; len += 8) {
        memcpy(end - len, buf.base, len);
        if (change_passes(end - len, len) != (len == buf.len)) {
            fail_msg("%zu of %zu bytes", len, buf.len);
        }
    }
    raft_free(buf.base);
    unguard(end);
}

static void configuration_altered(void **state)
{
    uint8_t *end = guard();
    struct raft_buffer buf = encoded();
    static const uint8_t values[] = {0, 1, 3, 0x7f, 0xff};
    for (size_t at = 0; at < buf.len; at++) {
        for (size_t i = 0; i < sizeof values; i++) {
            uint8_t *data = memcpy(end - buf.len, buf.base, buf.len);
            data[at] = values[i];
            bool passes = change_passes(data, buf.len);
            if (passes && (at < 9 ? data[0] != 1 || data[1] > 3 : false)) {
                fail_msg("byte %zu as %u passes", at, values[i]); /* unknown format, or more servers than there are */
            }
        }
    }
    raft_free(buf.base);
    unguard(end);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(configuration_cut_off), cmocka_unit_test(configuration_altered)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
