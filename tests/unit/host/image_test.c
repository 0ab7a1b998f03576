/* Image files: receiving, checks of metadata.yaml, split images, transfer between members, hostile tarballs. */
#include "world.h"
#include "server/host/host_private.h"
#include <archive.h>
#include <archive_entry.h>

static const char good_yaml[] = "architecture: amd64\ncreation_date: 1700000000\nexpiry_date: 1900000000\nproperties:\n  os: busybox\n  num: 7\n";

/* Writes a tarball; entries are added by the caller. */
static struct archive *tar_begin(const char *path)
{
    struct archive *a = archive_write_new();
    archive_write_add_filter_gzip(a);
    archive_write_set_format_pax_restricted(a);
    assert_int_equal(archive_write_open_filename(a, path), ARCHIVE_OK);
    return a;
}

static void tar_add(struct archive *a, const char *name, unsigned type, const char *link, const char *data, int64_t size)
{
    struct archive_entry *entry = archive_entry_new();
    archive_entry_set_pathname(entry, name);
    archive_entry_set_perm(entry, type == AE_IFDIR ? 0755 : 04755);
    if (type)
        archive_entry_set_filetype(entry, type);
    if (type == AE_IFLNK)
        archive_entry_set_symlink(entry, link);
    else if (link)
        archive_entry_set_hardlink(entry, link);
    if (type == AE_IFCHR || type == AE_IFBLK)
        archive_entry_set_rdev(entry, 0x103);
    archive_entry_set_size(entry, size);
    assert_true(archive_write_header(a, entry) >= ARCHIVE_WARN);
    if (data)
        assert_int_equal(archive_write_data(a, data, strlen(data)), (int)strlen(data));
    archive_entry_free(entry);
}

static void tar_end(struct archive *a)
{
    assert_int_equal(archive_write_close(a), ARCHIVE_OK);
    archive_write_free(a);
}

static const char *tar_path(void)
{
    return arena_printf(&w.arena, "%s/x.tar.gz", w.dir);
}

static void tar_simple(const char *yaml)
{
    struct archive *a = tar_begin(tar_path());
    if (yaml)
        tar_add(a, "metadata.yaml", AE_IFREG, NULL, yaml, (int64_t)strlen(yaml));
    tar_add(a, "rootfs", AE_IFDIR, NULL, NULL, 0);
    tar_end(a);
}

static unsigned count_files(const char *dir)
{
    struct process_result result;
    const char *argv[] = {"/bin/sh", "-c", arena_printf(&w.arena, "ls -A %s/%s | wc -l", w.dir, dir), NULL};
    OK(process_run(argv, NULL, NULL, 1000, 5000, &result, &w.err));
    unsigned n = (unsigned)strtoul(result.out.data, NULL, 10);
    process_result_free(&result);
    return n;
}

static void test_receive(void **state)
{
    NEEDS_ROOT();
    struct host_image_info info;
    tar_simple(good_yaml);
    unsigned before = count_files("images");
    FAILS(STATUS_INVALID_ARGUMENT, "fingerprints don't match, got ", upload(tar_path(), NULL, "1234", &info));
    assert_int_equal(count_files("images"), before);
    OK(upload(tar_path(), NULL, NULL, &info));
    assert_string_equal(info.architecture, "x86_64");
    assert_int_equal(info.creation_date, 1700000000);
    assert_int_equal(info.expiry_date, 1900000000);
    assert_int_equal(info.property_count, 2);
    assert_string_equal(info.properties[1].key, "num");
    assert_string_equal(info.properties[1].value, "7");
    assert_string_equal(strchr(info.filename, '.'), ".tar.gz");
    assert_true(host_image_has(w.host, info.fingerprint));
    char fingerprint[FINGERPRINT_SIZE];
    snprintf(fingerprint, sizeof(fingerprint), "%s", info.fingerprint);
    host_image_info_free(&info);
    OK(upload(tar_path(), NULL, fingerprint, &info)); /* again: fine */
    host_image_info_free(&info);
    struct buf data = {0};
    char hex[65];
    OK(file_read(tar_path(), 1 << 20, &data, &w.err));
    sha256_hex(data.data, data.len, hex);
    buf_free(&data);
    assert_string_equal(hex, fingerprint);
    OK(host_image_delete(w.host, fingerprint, &w.err));
    OK(host_image_delete(w.host, fingerprint, &w.err));
    assert_false(host_image_has(w.host, fingerprint));
    assert_false(host_image_has(w.host, "../../etc/passwd"));
}

static void test_metadata(void **state)
{
    NEEDS_ROOT();
    static const struct {
        const char *yaml, *why;
    } cases[] = {
        {NULL, "Metadata tarball is missing metadata.yaml"},
        {"architecture: x86_64\n", "Missing creation date"},
        {"creation_date: 1\n", "Missing architecture"},
        {"architecture: pdp11\ncreation_date: 1\n", "Architecture isn't supported: pdp11"},
        {"architecture: x86_64\ncreation_date: soon\n", "creation_date is not a number"},
        {"- a\n- b\n", "it is not a map"},
        {"a: &x [1]\nb: *x\n", "aliases are not allowed"},
        {"a: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n", "nested deeper"},
        {"architecture: x86_64\ncreation_date: 1\nproperties: [a]\n", "properties is not a map"},
        {"architecture: \"x86_64\n", "Could not parse metadata.yaml"},
    };
    struct host_image_info info;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        tar_simple(cases[i].yaml);
        w.err = (struct error)ERROR_INIT;
        int rc = upload(tar_path(), NULL, NULL, &info);
        if (rc == STATUS_OK || !strstr(w.err.text, cases[i].why))
            fail_msg("case %zu: %d \"%s\" lacks \"%s\"", i, rc, w.err.text, cases[i].why);
    }
    OK(file_write_atomic(tar_path(), "#!/bin/sh\n", 10, 0600, &w.err));
    FAILS(STATUS_INVALID_ARGUMENT, "Unsupported compression", upload(tar_path(), NULL, NULL, &info));
    char *big = arena_alloc(&w.arena, (2 << 20) + 1);
    memset(big, '#', 2 << 20);
    tar_simple(big);
    FAILS(STATUS_RESOURCE_EXHAUSTED, "metadata.yaml is larger than", upload(tar_path(), NULL, NULL, &info));
}

static void test_split(void **state)
{
    NEEDS_ROOT();
    struct host_image_info info;
    OK(upload(w.split_meta, w.split_root, NULL, &info));
    assert_true(info.split);
    assert_non_null(info.rootfs_filename);
    struct buf data = {0};
    char hex[65];
    OK(file_read(w.split_meta, 1 << 20, &data, &w.err));
    OK(file_read(w.split_root, 64 << 20, &data, &w.err));
    sha256_hex(data.data, data.len, hex);
    assert_string_equal(hex, info.fingerprint);
    assert_int_equal(info.size, (int64_t)data.len);
    buf_free(&data);
    Spec *spec = spec_of("default", "s1");
    OK(create(spec, info.fingerprint));
    OK(start(spec, NULL));
    OK(stop(spec, true, -1));
    OK(world_call("DeleteInstance", &spec->base, NULL));
    host_image_info_free(&info);
    struct host_image_upload *to = NULL; /* order of the files */
    OK(host_image_begin(w.host, true, &to, &w.err));
    OK(host_image_write(to, HOST_IMAGE_ROOTFS, "x", 1, &w.err));
    FAILS(STATUS_INVALID_ARGUMENT, "comes before", host_image_write(to, HOST_IMAGE_METADATA, "x", 1, &w.err));
    host_image_abort(to);
}

/* A second host pulls from the first one; a damaged source is found out and the next one is tried. */
static void test_pull(void **state)
{
    NEEDS_ROOT();
    char *addresses[] = {"gone", "self"}, dir[] = "/tmp/covey-host-test-XXXXXX";
    Covey__Internal__V1__PullImageRequest request = COVEY__INTERNAL__V1__PULL_IMAGE_REQUEST__INIT;
    request.fingerprint = w.image;
    OK(world_call("PullImage", &request.base, NULL)); /* held: nothing to do */
    request.fingerprint = (char *)(uintptr_t) "0000000000000000000000000000000000000000000000000000000000000000";
    request.addresses = addresses;
    request.n_addresses = 1;
    FAILS(STATUS_NOT_FOUND, "Image not available on any online node", world_call("PullImage", &request.base, NULL));
    request.n_addresses = 2;
    FAILS(STATUS_NOT_FOUND, "Image not found", world_call("PullImage", &request.base, NULL));
    struct host_config config = {.state_dir = dir, .channel = world_channel};
    struct host *second = NULL;
    struct host_image_info info;
    assert_non_null(mkdtemp(dir));
    OK(host_start(&config, &second, &w.err));
    request.fingerprint = w.image;
    OK(images__pull(second, &request, NULL, &w.err));
    OK(host_image_read_info(second, w.image, &info, &w.err));
    assert_string_equal(info.fingerprint, w.image);
    assert_int_equal(info.property_count, 4);
    host_image_info_free(&info);
    OK(host_image_delete(second, w.image, &w.err));
    OK(upload(w.split_meta, w.split_root, NULL, &info)); /* both files of a split one */
    request.fingerprint = info.fingerprint;
    OK(images__pull(second, &request, NULL, &w.err));
    shell(arena_printf(&w.arena, "echo x >>%s/images/%s.rootfs", w.dir, info.fingerprint));
    OK(host_image_delete(second, info.fingerprint, &w.err));
    FAILS(STATUS_INVALID_ARGUMENT, "fingerprints don't match", images__pull(second, &request, NULL, &w.err));
    assert_false(host_image_has(second, info.fingerprint));
    host_image_info_free(&info);
    host_stop(second);
    OK(dir_remove_all(dir, &w.err));
}

struct hostile {
    const char *why; /* "" = unpacks, with what is dangerous left out */
    const char *name;
    unsigned type;
    const char *link;
    const char *then; /* a second file entry with this name */
};

static void test_hostile(void **state)
{
    NEEDS_ROOT();
    const char *victim = arena_printf(&w.arena, "%s/victim", w.dir);
    static const struct hostile cases[] = {
        {"absolute path", "/tmp/evil", AE_IFREG, NULL, NULL},
        {"path with \"..\"", "rootfs/../../../evil", AE_IFREG, NULL, NULL},
        {"path with \"..\"", "../evil", AE_IFREG, NULL, NULL},
        {"Failed to unpack", "rootfs/out", AE_IFLNK, "/tmp", "rootfs/out/evil"},
        {"Failed to unpack", "rootfs/out", AE_IFLNK, "../../../../../..", "rootfs/out/tmp/evil"},
        {"absolute path", "rootfs/hard", AE_IFREG, "/etc/passwd", NULL},
        {"path with \"..\"", "rootfs/hard", AE_IFREG, "rootfs/../../../../etc/passwd", NULL},
        {"outside of it", "rootfs/hard", AE_IFREG, "etc/passwd", NULL},
        {"", "rootfs/dev-sda", AE_IFBLK, NULL, NULL},
        {"", "rootfs/dev-null", AE_IFCHR, NULL, NULL},
        {"", "evil-beside", AE_IFREG, NULL, NULL},
    };
    OK(file_write_atomic(victim, "safe", 4, 0600, &w.err));
    unsigned volumes = count_files("storage-pools/default/containers");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct hostile *h = &cases[i];
        struct archive *a = tar_begin(tar_path());
        struct host_image_info info;
        tar_add(a, "metadata.yaml", AE_IFREG, NULL, good_yaml, sizeof(good_yaml) - 1);
        tar_add(a, "rootfs", AE_IFDIR, NULL, NULL, 0);
        tar_add(a, h->name, h->type, h->link, h->type == AE_IFREG && !h->link ? "evil" : NULL, h->type == AE_IFREG && !h->link ? 4 : 0);
        if (h->then)
            tar_add(a, h->then, AE_IFREG, NULL, "evil", 4);
        tar_end(a);
        OK(upload(tar_path(), NULL, NULL, &info));
        Spec *spec = spec_of("default", "evil");
        w.err = (struct error)ERROR_INIT;
        int rc = create(spec, info.fingerprint);
        if (*h->why ? rc == STATUS_OK || !strstr(w.err.text, h->why) : rc != STATUS_OK)
            fail_msg("case %zu: %d \"%s\"", i, rc, w.err.text);
        assert_int_equal(access("/tmp/evil", F_OK), -1);
        if (!rc) {
            const char *root = arena_printf(&w.arena, "%s/storage-pools/default/containers/evil", w.dir);
            struct stat st;
            assert_int_equal(lstat(arena_printf(&w.arena, "%s/%s", root, h->name), &st), -1); /* nodes and strangers are left out */
            OK(world_call("DeleteInstance", &spec->base, NULL));
        }
        assert_int_equal(count_files("storage-pools/default/containers"), volumes); /* all or nothing */
        host_image_info_free(&info);
    }
    struct stat st;
    assert_int_equal(stat(victim, &st), 0);
    assert_int_equal(st.st_size, 4);
}

static int helper_unpack(const char *limits, struct process_result *result)
{
    const char *target = arena_printf(&w.arena, "%s/target", w.dir);
    const char *argv[] = {w.host->helper, "unpack", NULL};
    OK(dir_remove_all(target, &w.err));
    OK(dir_make(target, 0700, &w.err));
    char *in = arena_printf(&w.arena, "{\"image\":\"%s\",\"target\":\"%s\",\"uid\":1000000,\"gid\":1000000,\"size\":65536,%s}", tar_path(), target, limits);
    return process_run(argv, NULL, in, 1 << 20, 20000, result, &w.err);
}

static void test_bombs(void **state)
{
    NEEDS_ROOT();
    struct process_result result;
    struct archive *a = tar_begin(tar_path());
    tar_add(a, "metadata.yaml", AE_IFREG, NULL, good_yaml, sizeof(good_yaml) - 1);
    tar_add(a, "rootfs", AE_IFDIR, NULL, NULL, 0);
    for (int i = 0; i < 50; i++)
        tar_add(a, arena_printf(&w.arena, "rootfs/f%d", i), AE_IFREG, NULL, "0123456789", 10);
    tar_end(a);
    OK(helper_unpack("\"entries_max\":1000", &result));
    assert_non_null(strstr(result.out.data, "\"ok\":true"));
    process_result_free(&result);
    OK(helper_unpack("\"entries_max\":20", &result));
    assert_non_null(strstr(result.out.data, "Image has more than 20 entries"));
    process_result_free(&result);
    OK(helper_unpack("\"bytes_max\":300", &result));
    assert_non_null(strstr(result.out.data, "Image is larger than 300 bytes"));
    process_result_free(&result);
}

static void test_pools(void **state)
{
    NEEDS_ROOT();
    Covey__Internal__V1__PoolSpec *pool = pool_spec("p2", "foo", NULL);
    FAILS(STATUS_INVALID_ARGUMENT, "Unknown driver", world_call("CreatePool", &pool->base, NULL));
    pool = pool_spec("p2", "zfs", NULL);
    FAILS(STATUS_FAILED_PRECONDITION, "Storage driver \"zfs\" is not supported yet", world_call("CreatePool", &pool->base, NULL));
    pool = pool_spec("../x", "dir", NULL);
    FAILS(STATUS_INVALID_ARGUMENT, "Invalid storage pool name", world_call("CreatePool", &pool->base, NULL));
    pool = pool_spec("p2", "dir", "/nonexistent-covey");
    FAILS(STATUS_INVALID_ARGUMENT, "doesn't exist", world_call("CreatePool", &pool->base, NULL));
    pool = pool_spec("p2", "dir", arena_printf(&w.arena, "%s/images", w.dir));
    FAILS(STATUS_INVALID_ARGUMENT, "inside of the server's state directory", world_call("CreatePool", &pool->base, NULL));
    char outside[] = "/tmp/covey-host-pool-XXXXXX";
    assert_non_null(mkdtemp(outside));
    char *file = arena_printf(&w.arena, "%s/file", outside);
    OK(file_write_atomic(file, "x", 1, 0600, &w.err));
    pool = pool_spec("p2", "dir", outside);
    FAILS(STATUS_FAILED_PRECONDITION, "isn't empty", world_call("CreatePool", &pool->base, NULL));
    assert_int_equal(unlink(file), 0);
    ProtobufCMessage *response = NULL;
    OK(world_call("CreatePool", &pool->base, &response));
    assert_string_equal(((Covey__Internal__V1__PoolResponse *)response)->config[0]->value, outside);
    OK(world_call("CreatePool", &pool->base, NULL)); /* ours: fine again */
    Covey__Internal__V1__PoolSpec *other = pool_spec("p3", "dir", outside);
    FAILS(STATUS_ALREADY_EXISTS, "is used by storage pool \"p2\"", world_call("CreatePool", &other->base, NULL));
    OK(world_call("GetPoolResources", &pool->base, &response));
    assert_true(((Covey__V1__StoragePoolResources *)response)->space->total > 0);
    Spec *spec = spec_of("default", "p1");
    spec->pool = pool;
    OK(create(spec, w.image));
    FAILS(STATUS_FAILED_PRECONDITION, "still has volumes", world_call("DeletePool", &pool->base, NULL));
    OK(start(spec, NULL));
    OK(stop(spec, true, -1));
    OK(world_call("DeleteInstance", &spec->base, NULL));
    OK(world_call("DeletePool", &pool->base, NULL));
    OK(world_call("DeletePool", &pool->base, NULL));
    assert_int_equal(rmdir(outside), 0); /* given back empty */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_receive), cmocka_unit_test(test_metadata), cmocka_unit_test(test_split), cmocka_unit_test(test_pull),
        cmocka_unit_test(test_hostile), cmocka_unit_test(test_bombs), cmocka_unit_test(test_pools),
    };
    return cmocka_run_group_tests(tests, world_setup, world_teardown);
}
