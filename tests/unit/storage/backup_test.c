/* Backup files: what is written reads back; whatever is damaged is refused with a reason. A Raft folder made from an image begins with its state. */
#include "storage/backup.h"
#include "storage/db.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static const struct backup_info info = {.cluster_id = "01234567-89ab-cdef-0123-456789abcdef", .epoch = 7, .revision = 1234, .time_ns = 99, .schema = 2};

static void make(struct buf *file, size_t len)
{
    uint8_t *image = xcalloc(1, len);
    for (size_t i = 0; i < len; i++) {
        image[i] = (uint8_t)(i * 7);
    }
    assert_int_equal(backup_encode(&info, image, len, file, NULL), STATUS_OK);
    free(image);
}

static void reads_back(void **state)
{
    struct buf file = {0};
    struct backup_info out;
    const uint8_t *image;
    size_t len;
    make(&file, 5000);
    assert_int_equal(backup_decode(file.data, file.len, &out, &image, &len, NULL), STATUS_OK);
    assert_string_equal(out.cluster_id, info.cluster_id);
    assert_true(out.epoch == 7 && out.revision == 1234 && out.time_ns == 99 && out.schema == 2);
    assert_int_equal(len, 5000);
    assert_int_equal(image[4999], (uint8_t)(4999 * 7));
    buf_free(&file);
}

static void every_cut_and_every_flip_is_refused(void **state)
{
    struct buf file = {0};
    struct backup_info out;
    const uint8_t *image;
    size_t len;
    make(&file, 200);
    for (size_t cut = 0; cut < file.len; cut++) {
        struct error err = ERROR_INIT;
        assert_int_not_equal(backup_decode(file.data, cut, &out, &image, &len, &err), STATUS_OK);
        assert_true(err.text[0] != '\0' && image == NULL);
    }
    for (size_t at = 0; at < file.len; at++) {
        struct error err = ERROR_INIT;
        file.data[at] ^= 0x10;
        assert_int_not_equal(backup_decode(file.data, file.len, &out, &image, &len, &err), STATUS_OK);
        file.data[at] ^= 0x10;
    }
    buf_add(&file, "x", 1);
    assert_int_equal(backup_decode(file.data, file.len, &out, &image, &len, NULL), STATUS_DATA_LOSS);
    buf_free(&file);
}

static int read_mark(struct sql *sql, void *ud, struct error *err)
{
    return sql_get_text(sql, ud, err, "SELECT value FROM config WHERE key = 'user.mark'", "");
}

static int write_mark(struct sql *sql, void *ud, struct buf *result, struct error *err)
{
    return sql_exec(sql, err, "INSERT INTO config (key, value) VALUES ('user.mark', ?1) ON CONFLICT (key) DO UPDATE SET value = ?1", "s", (const char *)ud);
}

static struct db *open_db(const char *dir)
{
    struct db *db = NULL;
    struct error err = ERROR_INIT;
    const struct db_config config = {.dir = dir, .id = 5};
    if (db_open(&config, &db, &err) != STATUS_OK) {
        fail_msg("%s", err.text);
    }
    return db;
}

static int write_until_leads(struct db *db, const char *mark)
{
    int status = STATUS_UNAVAILABLE;
    for (int tries = 0; tries < 200 && status == STATUS_UNAVAILABLE; tries++) { /* the schema is written by the leader first */
        status = db_write(db, NULL, write_mark, (void *)(uintptr_t)mark, NULL, NULL, NULL, NULL);
        if (status == STATUS_UNAVAILABLE) {
            usleep(20000);
        }
    }
    return status;
}

static void seed_begins_with_the_image(void **state)
{
    char dir[] = "/tmp/covey-seed-XXXXXX";
    struct error err = ERROR_INIT;
    struct buf image = {0};
    uint64_t revision = 0;
    char *mark = NULL;
    assert_non_null(mkdtemp(dir));
    char *first = xasprintf("%s/first", dir), *second = xasprintf("%s/second", dir), *raft = xasprintf("%s/second/global", dir);
    assert_int_equal(db_bootstrap(first, 5, &err), STATUS_OK);
    struct db *db = open_db(first);
    int status = STATUS_INTERNAL;
    for (int tries = 0; tries < 200 && status != STATUS_OK; tries++) {
        status = db_write(db, NULL, write_mark, "one", NULL, NULL, NULL, &err);
        usleep(status == STATUS_OK ? 0 : 20000);
    }
    assert_int_equal(status, STATUS_OK);
    assert_int_equal(db_image(db, DB_LINEARIZABLE, &image, &revision, &err), STATUS_OK);
    assert_true(revision > 0);
    db_close(db);
    /* As a restore does: the log begins anew. */
    sqlite3 *memory = NULL;
    sqlite3_int64 size = 0;
    assert_int_equal(sqlite3_open(":memory:", &memory), SQLITE_OK);
    assert_int_equal(sqlite3_deserialize(memory, "main", (unsigned char *)image.data, (sqlite3_int64)image.len, (sqlite3_int64)image.len, 0), SQLITE_OK);
    assert_int_equal(sqlite3_exec(memory, "UPDATE applied SET revision = 0", NULL, NULL, NULL), SQLITE_OK);
    unsigned char *pages = sqlite3_serialize(memory, "main", &size, 0);
    assert_int_equal(dir_make(second, 0700, &err), STATUS_OK);
    assert_int_equal(db_seed(raft, 5, pages, (size_t)size, &err), STATUS_OK);
    sqlite3_free(pages);
    sqlite3_close(memory);
    for (int round = 0; round < 2; round++) { /* and again after a restart */
        db = open_db(second);
        assert_int_equal(db_read(db, DB_LOCAL, read_mark, &mark, NULL, &err), STATUS_OK);
        assert_string_equal(mark, round == 0 ? "one" : "two");
        free(mark);
        assert_int_equal(write_until_leads(db, "two"), STATUS_OK);
        db_close(db);
    }
    dir_remove_all(dir, NULL);
    buf_free(&image);
    free(first);
    free(second);
    free(raft);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_back), cmocka_unit_test(every_cut_and_every_flip_is_refused), cmocka_unit_test(seed_begins_with_the_image),
    };
    log_init("backup_test", LOG_LEVEL_WARN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
