/* Files and tree removal: links are not followed, deep trees and mounts do not hurt. */
#include "proto/core/core.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

static char root[64];

static char *in_root(const char *name)
{
    static char paths[4][256];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, 256, "%s/%s", root, name);
    return path;
}

static int setup(void **state)
{
    strcpy(root, "/tmp/covey-file-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) { return dir_remove_all(root, NULL); }

static void put(const char *name, const char *text)
{
    struct error err;
    assert_int_equal(file_write_atomic(in_root(name), text, strlen(text), 0600, &err), STATUS_OK);
}

static void test_read_write(void **state)
{
    struct error err;
    struct buf buf = {0};
    struct stat st;
    put("a", "one");
    put("a", "second");
    assert_int_equal(file_read(in_root("a"), 6, &buf, &err), STATUS_OK);
    assert_string_equal(buf.data, "second");
    assert_int_equal(stat(in_root("a"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(access(in_root("a.tmp"), F_OK), -1);
    buf_free(&buf);
    assert_int_equal(file_read(in_root("a"), 5, &buf, &err), STATUS_RESOURCE_EXHAUSTED);
    buf_free(&buf);
    assert_int_equal(file_read(in_root("none"), 5, &buf, &err), STATUS_NOT_FOUND);
    assert_int_equal(file_write_atomic(in_root("none/a"), "x", 1, 0600, &err), STATUS_NOT_FOUND);
    put("empty", "");
    assert_int_equal(file_read(in_root("empty"), 5, &buf, &err), STATUS_OK);
    assert_string_equal(buf.data, "");
    buf_free(&buf);
}

static void test_make(void **state)
{
    struct error err;
    assert_int_equal(dir_make(in_root("x/y//z/"), 0755, &err), STATUS_OK);
    assert_int_equal(dir_make(in_root("x/y/z"), 0755, &err), STATUS_OK);
    assert_int_equal(access(in_root("x/y/z"), F_OK), 0);
    put("file", "x");
    assert_int_not_equal(dir_make(in_root("file/y"), 0755, &err), STATUS_OK);
}

static void test_links_are_not_followed(void **state)
{
    struct error err;
    assert_int_equal(dir_make(in_root("outside/kept"), 0755, &err), STATUS_OK);
    put("outside/file", "precious");
    assert_int_equal(dir_make(in_root("tree/sub"), 0755, &err), STATUS_OK);
    assert_int_equal(symlink(in_root("outside"), in_root("tree/sub/escape")), 0);
    assert_int_equal(symlink("../../outside/file", in_root("tree/sub/file")), 0);
    assert_int_equal(dir_remove_all(in_root("tree/"), &err), STATUS_OK);
    assert_int_equal(access(in_root("tree"), F_OK), -1);
    assert_int_equal(access(in_root("outside/file"), F_OK), 0);
    assert_int_equal(symlink(in_root("outside"), in_root("link")), 0); /* the tree itself is a link: only the link goes */
    assert_int_equal(dir_remove_all(in_root("link"), &err), STATUS_OK);
    assert_int_equal(access(in_root("outside/kept"), F_OK), 0);
    assert_int_equal(dir_remove_all(in_root("link"), &err), STATUS_OK); /* absent is fine */
    assert_int_equal(dir_remove_all(in_root("no/such/parent"), &err), STATUS_OK);
    const char *bad[] = {"/", "", ".", "..", "/tmp/.."};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        assert_int_equal(dir_remove_all(bad[i], &err), STATUS_INVALID_ARGUMENT);
}

/* Deeper than any process may have descriptors open. */
static void test_deep_tree(void **state)
{
    struct error err;
    assert_int_equal(mkdir(in_root("deep"), 0700), 0);
    int fd = open(in_root("deep"), O_RDONLY | O_DIRECTORY);
    for (int i = 0; i < 3000; i++) {
        assert_int_equal(mkdirat(fd, "d", 0700), 0);
        int file = openat(fd, "f", O_CREAT | O_WRONLY, 0600);
        assert_true(file >= 0);
        close(file);
        int below = openat(fd, "d", O_RDONLY | O_DIRECTORY);
        assert_true(below >= 0);
        close(fd);
        fd = below;
    }
    close(fd);
    assert_int_equal(dir_remove_all(in_root("deep"), &err), STATUS_OK);
    assert_int_equal(access(in_root("deep"), F_OK), -1);
}

static void test_mounts_are_not_crossed(void **state)
{
    struct error err;
    assert_int_equal(dir_make(in_root("pool/mnt"), 0755, &err), STATUS_OK);
    assert_int_equal(dir_make(in_root("data"), 0755, &err), STATUS_OK);
    put("data/precious", "x");
    if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        skip();
    assert_int_equal(mount(in_root("data"), in_root("pool/mnt"), NULL, MS_BIND, NULL), 0); /* same device: only the mount tells */
    assert_int_equal(dir_remove_all(in_root("pool"), &err), STATUS_FAILED_PRECONDITION);
    assert_non_null(strstr(err.text, "mount point"));
    assert_int_equal(access(in_root("data/precious"), F_OK), 0);
    assert_int_equal(dir_remove_all(in_root("pool/mnt"), &err), STATUS_FAILED_PRECONDITION);
    assert_int_equal(umount(in_root("pool/mnt")), 0);
    assert_int_equal(dir_remove_all(in_root("pool"), &err), STATUS_OK);
    assert_int_equal(access(in_root("data/precious"), F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_read_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_make, setup, teardown),
        cmocka_unit_test_setup_teardown(test_links_are_not_followed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deep_tree, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mounts_are_not_crossed, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
