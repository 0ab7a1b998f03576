/* Renderings against the texts that users know. */
#include "client/cli/cli.h"
#include <setjmp.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *const member_headers[] = {"NAME", "URL", "ROLES", "ARCHITECTURE", "FAILURE DOMAIN", "DESCRIPTION", "STATE", "MESSAGE"};

static void members(struct table *table, const char *separator)
{
    char roles[64];
    snprintf(roles, sizeof(roles), "database-leader%sdatabase", separator);
    table_init(table, member_headers, 8);
    table_add(table, "node2", "https://127.0.0.12:8443", "database", "x86_64", "default", "", "ONLINE", "Fully operational");
    table_add(table, "node1", "https://127.0.0.11:8443", roles, "x86_64", "default", "", "ONLINE", "Fully operational");
    table_sort(table);
}

static void cluster_list(void **state)
{
    static const char expected[] =
        "+-------+-------------------------+-----------------+--------------+----------------+-------------+--------+-------------------+\n"
        "| NAME  |           URL           |      ROLES      | ARCHITECTURE | FAILURE DOMAIN | DESCRIPTION | STATE  |      MESSAGE      |\n"
        "+-------+-------------------------+-----------------+--------------+----------------+-------------+--------+-------------------+\n"
        "| node1 | https://127.0.0.11:8443 | database-leader | x86_64       | default        |             | ONLINE | Fully operational |\n"
        "|       |                         | database        |              |                |             |        |                   |\n"
        "+-------+-------------------------+-----------------+--------------+----------------+-------------+--------+-------------------+\n"
        "| node2 | https://127.0.0.12:8443 | database        | x86_64       | default        |             | ONLINE | Fully operational |\n"
        "+-------+-------------------------+-----------------+--------------+----------------+-------------+--------+-------------------+\n";
    struct table table;
    struct buf out = {0};
    members(&table, "\n");
    table_render(&table, &out);
    assert_string_equal(out.data, expected);
    buf_free(&out);
    table_free(&table);
}

static void csv(void **state)
{
    struct table table;
    struct buf out = {0};
    members(&table, ",");
    table_render_csv(&table, &out);
    assert_string_equal(out.data, "node1,https://127.0.0.11:8443,\"database-leader,database\",x86_64,default,,ONLINE,Fully operational\n"
                                  "node2,https://127.0.0.12:8443,database,x86_64,default,,ONLINE,Fully operational\n");
    buf_free(&out);
    table_free(&table);
    static const char *const headers[] = {"A"};
    table_init(&table, headers, 1);
    table_add(&table, "say \"x\"\nnext");
    table_render_csv(&table, &out);
    assert_string_equal(out.data, "\"say \"\"x\"\"\nnext\"\n");
    buf_free(&out);
    table_free(&table);
}

static void compact(void **state)
{
    static const char *const headers[] = {"NAME", "ROLES"};
    struct table table;
    struct buf out = {0};
    struct error err = ERROR_INIT;
    table_init(&table, headers, 2);
    table_add(&table, "n1", "a\nb");
    table_add(&table, "node2", "c");
    assert_int_equal(table_render_compact(&table, &out, &err), 0);
    assert_null(strchr(out.data, '+'));
    assert_null(strchr(out.data, '|'));
    assert_non_null(strstr(out.data, "NAME   ROLES\n"));
    assert_non_null(strstr(out.data, "node2  c\n"));
    assert_non_null(strstr(out.data, "n1     a\n       b"));
    buf_free(&out);
    table_free(&table);
}

static void wide_and_empty(void **state)
{
    static const char *const headers[] = {"NAME"};
    struct table table;
    struct buf out = {0};
    table_init(&table, headers, 1);
    table_render(&table, &out);
    assert_string_equal(out.data, "+------+\n| NAME |\n+------+\n");
    buf_free(&out);
    if (setlocale(LC_CTYPE, "C.UTF-8")) {
        table_add(&table, "größe");
        table_render(&table, &out);
        assert_string_equal(out.data, "+-------+\n| NAME  |\n+-------+\n| größe |\n+-------+\n");
        buf_free(&out);
    }
    table_free(&table);
}

static void sql(void **state)
{
    json_t *reply = json_loads("{\"text\":\"\",\"results\":[{\"type\":\"select\",\"columns\":[\"id\",\"name\"],\"rows\":["
                               "{\"values\":[{\"integer\":1},{\"text\":\"node1\"}]},{\"values\":[{\"real\":1.5},{\"null\":true}]}]},"
                               "{\"type\":\"exec\",\"rows_affected\":3}]}", 0, NULL);
    struct buf out = {0};
    sql_render(reply, &out);
    assert_string_equal(out.data, "=> Query 0:\n\n"
                                  "+-----+-------+\n"
                                  "| id  | name  |\n"
                                  "+-----+-------+\n"
                                  "| 1   | node1 |\n"
                                  "| 1.5 | <nil> |\n"
                                  "+-----+-------+\n\n"
                                  "=> Query 1:\n\nRows affected: 3\n\n");
    buf_free(&out);
    json_decref(reply);
    reply = json_loads("{\"results\":[{\"type\":\"exec\",\"rows_affected\":0}]}", 0, NULL);
    sql_render(reply, &out);
    assert_string_equal(out.data, "Rows affected: 0\n");
    buf_free(&out);
    json_decref(reply);
    reply = json_loads("{\"text\":\"CREATE TABLE x;\",\"results\":[]}", 0, NULL);
    sql_render(reply, &out);
    assert_string_equal(out.data, "CREATE TABLE x;\n");
    buf_free(&out);
    json_decref(reply);
}

static void yaml(void **state)
{
    json_t *value = json_loads("{\"a\":\"true\",\"b\":true,\"c\":\"12\",\"d\":\"\",\"e\":[\"x\",\"y z\"],\"f\":{},\"g\":[],\"h\":\"l1\\nl2\\n\",\"i\":7,\"j\":null,"
                               "\"k\":\"a: b\",\"l\":\"127.0.0.1:18443\",\"m\":\"12:30\",\"n\":\"0x1f\",\"o\":\"1_0\"}", 0, NULL);
    struct buf out = {0};
    yaml_write(value, &out);
    assert_string_equal(out.data, "a: \"true\"\nb: true\nc: \"12\"\nd: \"\"\ne:\n- x\n- y z\nf: {}\ng: []\nh: |\n  l1\n  l2\ni: 7\nj: null\nk: 'a: b'\nl: 127.0.0.1:18443\n"
                                  "m: \"12:30\"\n\"n\": \"0x1f\"\no: \"1_0\"\n");
    struct error err = ERROR_INIT;
    json_t *back = yaml_parse(out.data, out.len, &err);
    assert_true(json_equal(value, back)); /* what is written is read as the same */
    json_decref(back);
    json_decref(value);
    buf_free(&out);
}

static void completion_script(void **state)
{
    FILE *program = popen(COVEY_PROGRAM " completion bash", "r");
    struct buf made = {0}, kept = {0};
    struct error err = ERROR_INIT;
    assert_non_null(program);
    assert_int_equal(cli_read_all(program, &made, &err), 0);
    assert_int_equal(pclose(program), 0);
    assert_int_equal(file_read(COVEY_SOURCE "/deploy/completion/covey.bash", 1 << 20, &kept, &err), 0);
    assert_string_equal(made.data, kept.data);
    buf_free(&made);
    buf_free(&kept);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(cluster_list), cmocka_unit_test(csv), cmocka_unit_test(compact),
                                       cmocka_unit_test(wide_and_empty), cmocka_unit_test(sql), cmocka_unit_test(yaml),
                                       cmocka_unit_test(completion_script)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
