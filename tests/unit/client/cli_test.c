/* The program itself, run as a user runs it, against a fake daemon in this process. */
#include "fake_daemon.h"

enum { RUN_MS = 30 * 1000, OUT_MAX = 1 << 20 };

static struct rpc_server *server;

struct run {
    int code;
    char *out, *err;
};

static struct run run_input(const char *input, const char *shell)
{
    struct error err = ERROR_INIT;
    struct process_result result = {0};
    char *dir = xasprintf("COVEY_DIR=%s", fake.dir), *conf = xasprintf("COVEY_CONF=%s/conf", fake.dir), *home = xasprintf("HOME=%s", fake.dir);
    char *lxd = xasprintf("LXD_DIR=%s", fake.dir), *tmp = xasprintf("T=%s", fake.dir);
    const char *const argv[] = {"/bin/sh", "-c", shell, NULL};
    /* The instrumented program needs the same options as this one. */
    char *tsan = xasprintf("TSAN_OPTIONS=%s", getenv("TSAN_OPTIONS") ? getenv("TSAN_OPTIONS") : "");
    char *asan = xasprintf("ASAN_OPTIONS=%s", getenv("ASAN_OPTIONS") ? getenv("ASAN_OPTIONS") : "");
    const char *const envp[] = {dir,  conf, home, lxd, tmp, "C=" COVEY_PROGRAM, "COMPAT=" COVEY_COMPAT, "PATH=/usr/bin:/bin", "TERM=dumb", "LC_ALL=C.UTF-8", tsan,
                                asan, NULL};
    if (process_run(argv, envp, input, OUT_MAX, RUN_MS, &result, &err))
        fail_msg("%s: %s", shell, err.text);
    struct run run = {result.exit_code, buf_take(&result.out), buf_take(&result.err)};
    free(dir);
    free(conf);
    free(home);
    free(lxd);
    free(tmp);
    free(tsan);
    free(asan);
    return run;
}

static void expect(struct run run, int code, const char *out, const char *err)
{
    if (run.code != code || (out && strcmp(run.out, out) != 0) || (err && strcmp(run.err, err) != 0))
        fail_msg("code %d (wanted %d)\nout: %s\nerr: %s", run.code, code, run.out, run.err);
    free(run.out);
    free(run.err);
}

static void expect_in(struct run run, int code, const char *out, const char *err)
{
    if (run.code != code || !strstr(run.out, out) || !strstr(run.err, err))
        fail_msg("code %d (wanted %d)\nout: %s\nerr: %s", run.code, code, run.out, run.err);
    free(run.out);
    free(run.err);
}

static void logged(const char *expected)
{
    char *log = fake_log();
    if (!strstr(log, expected))
        fail_msg("calls:\n%s\nlack: %s", log, expected);
    free(log);
}

#define SERVER "{\"auth\":\"trusted\",\"config\":{\"core.https_address\":\"a:1\",\"core.trust_password\":true},\"environment\":{\"server_clustered\":true,\"server_version\":\"0.1\"}}"

static void simple_calls(void **state)
{
    fake_set("GetServer", 0, SERVER);
    expect(run_input(NULL, "$C config get core.https_address"), 0, "a:1\n", "");
    expect(run_input(NULL, "$C config get core.trust_password"), 0, "true\n", "");
    expect(run_input(NULL, "$C config show"), 0, "config:\n  core.https_address: a:1\n  core.trust_password: true\n", "");
    expect(run_input(NULL, "$C version"), 0, "Client version: 0.1.0\nServer version: 0.1\n", "");
    fake_set("UpdateServer", 0, "{}");
    free(fake_log());
    expect(run_input(NULL, "$C config set a.b c --target node2"), 0, "", "");
    logged("UpdateServer {\"config\":{\"a.b\":\"c\"},\"target\":\"node2\"}");
    fake_set("GetProfile", STATUS_NOT_FOUND, "Profile not found");
    expect(run_input(NULL, "$C profile show nope"), 1, "", "Error: Profile not found\n");
    expect(run_input(NULL, "COVEY_DIR=/nonexistent $C list"), 1, "",
           "Error: Cannot connect to the daemon at /nonexistent/grpc.socket: No such file or directory (is it running?)\n");
    expect_in(run_input(NULL, "$C rpc Profiles/GetProfil '{}'"), 1, "", "Error: There is no method \"Profiles/GetProfil\"");
    expect_in(run_input(NULL, "$C rpc Server/GetServer | python3 -c 'import json,sys; print(json.load(sys.stdin)[\"auth\"])'"), 0, "trusted\n", "");
}

static void instance_list(void **state)
{
    fake_set("GetServer", 0, SERVER);
    fake_set("ListInstances", 0,
             "{\"instances\":[{\"name\":\"c2\",\"status\":\"Stopped\",\"type\":\"container\",\"location\":\"node2\"},"
             "{\"name\":\"c1\",\"status\":\"Running\",\"type\":\"container\",\"location\":\"node1\",\"created_at\":\"2026-11-21T15:55:31.9Z\",\"last_used_at\":\"1970-01-01T00:00:00Z\"}]}");
    expect(run_input(NULL, "$C list"), 0,
           "+------+---------+------+------+-----------+-----------+----------+\n"
           "| NAME |  STATE  | IPV4 | IPV6 |   TYPE    | SNAPSHOTS | LOCATION |\n"
           "+------+---------+------+------+-----------+-----------+----------+\n"
           "| c1   | RUNNING |      |      | CONTAINER | 0         | node1    |\n"
           "+------+---------+------+------+-----------+-----------+----------+\n"
           "| c2   | STOPPED |      |      | CONTAINER | 0         | node2    |\n"
           "+------+---------+------+------+-----------+-----------+----------+\n", "");
    expect(run_input(NULL, "$C list -f csv -c n,s c2"), 0, "c2,STOPPED\n", "");
    expect(run_input(NULL, "$C list -f csv -c ncl c1"), 0, "c1,2026/11/21 15:55 UTC,\n", "");
    expect(run_input(NULL, "$C list -f xml"), 1, "", "Error: Invalid format \"xml\"\n");
    expect(run_input(NULL, "$COMPAT/lxc list local: status=running -f csv -c nL"), 0, "c1,node1\n", "");
}

static void members_and_tokens(void **state)
{
    fake_set("GetCluster", 0, "{\"enabled\":true,\"server_name\":\"node1\"}");
    fake_set("ListMembers", 0, "{\"members\":[{\"server_name\":\"node1\",\"url\":\"https://a:1\",\"roles\":[\"database-leader\",\"database\"],"
                               "\"architecture\":\"x86_64\",\"failure_domain\":\"default\",\"status\":\"Online\",\"message\":\"Fully operational\"}]}");
    expect(run_input(NULL, "$C cluster list -f csv"), 0, "node1,https://a:1,\"database-leader,database\",x86_64,default,,ONLINE,Fully operational\n", "");
    static const char metadata[] = "\"metadata\":{\"serverName\":\"n2\",\"secret\":\"s\",\"fingerprint\":\"f\",\"addresses\":[\"a:1\"],\"expiresAt\":\"2026-11-21T11:42:00Z\"}";
    char *token = xasprintf("{\"id\":\"tok\",\"class\":\"token\",\"status_code\":103,%s}", metadata);
    fake_set("CreateJoinToken", 0, token);
    expect_in(run_input(NULL, "$C cluster add n2"), 0, "Member n2 join token:\neyJ", "");
    expect_in(run_input(NULL, "$C -q cluster add n2 | base64 -d"), 0, "{\"server_name\":\"n2\",\"fingerprint\":\"f\"", "");
    char *list = xasprintf("{\"operations\":{\"running\":[%s]}}", token);
    fake_set("ListOperations", 0, list);
    expect_in(run_input(NULL, "$C cluster list-tokens -f csv"), 0, ",2026/11/21 11:42 UTC\n", "");
    fake_set("CancelOperation", 0, "{}");
    expect(run_input(NULL, "$C cluster revoke-token n2"), 0, "Cluster join token for local:n2 deleted\n", "");
    logged("CancelOperation {\"id\":\"tok\"}");
    expect(run_input(NULL, "$C cluster revoke-token n3"), 1, "", "Error: No cluster join token for member n3 on remote: local\n");
    free(list);
    free(token);
    fake_set("RemoveMember", 0, "{}");
    expect_in(run_input("no\n", "$C cluster remove n2 --force"), 1, "Remove n2 by force?", "Error: User aborted delete operation\n");
    expect(run_input(NULL, "$C cluster remove n2 --force --yes"), 0, "Member n2 removed\n", "");
}

static void operations(void **state)
{
    fake_set("UpdateInstanceState", 0, "{\"id\":\"op1\",\"status_code\":103}");
    fake_set("WaitOperation", 0, "{\"id\":\"op1\",\"status\":\"Success\",\"status_code\":200}");
    fake_wait_times(2);
    expect(run_input(NULL, "$C stop c1 --timeout 5"), 0, "", "");
    logged("UpdateInstanceState {\"name\":\"c1\",\"project\":\"\",\"action\":\"stop\",\"timeout\":5,\"force\":false");
    fake_set("WaitOperation", 0, "{\"id\":\"op1\",\"status\":\"Failure\",\"status_code\":400,\"err\":\"The instance is already stopped\"}");
    expect(run_input(NULL, "$C stop c1"), 1, "", "Error: The instance is already stopped\n");
    /* the first interrupt cancels on the server */
    fake_set("WaitOperation", 0, "{\"id\":\"op1\",\"status\":\"Cancelled\",\"status_code\":401}");
    fake_wait_times(1000000);
    fake_set("CancelOperation", 0, "{}");
    free(fake_log());
    struct run run = run_input(NULL, "$C stop c1 & p=$!; sleep 0.5; kill -TERM $p; for i in 1 2 3 4 5 6; do sleep 0.2; kill -0 $p 2>/dev/null || break; done; kill -TERM $p; wait $p; echo $?");
    fake_wait_times(0);
    assert_string_equal(run.out, "143\n"); /* the second one leaves */
    free(run.out);
    free(run.err);
    logged("CancelOperation {\"id\":\"op1\"}");
}

static void exec(void **state)
{
    free(fake_log());
    expect(run_input("hello\n", "$C exec c1 --env A=b --cwd /x -- cat -n"), 7, "out:hello\n", "err\n");
    logged("\"command\":[\"cat\",\"-n\"],\"wait-for-websocket\":true,\"interactive\":false,\"environment\":{\"A\":\"b\"}");
    expect(run_input(NULL, "$C exec c1 -n -- true"), 7, "out:", "err\n");
    expect(run_input(NULL, "$C exec c1 -t -T -- true"), 1, "", "Error: You can't pass -t and -T at the same time\n");
    fake_set("WaitOperation", 0, "{}");
}

static void exec_terminal(void **state)
{
    free(fake_log());
    /* a terminal of 40x30 that becomes 30x100 while the command runs */
    static const char script[] =
        "import os,pty,sys,fcntl,termios,struct,time,select\n"
        "pid,fd=pty.fork()\n"
        "if pid==0: time.sleep(0.3); os.execv(os.environ['C'],['covey','exec','c1','--','sh'])\n"
        "fcntl.ioctl(fd,termios.TIOCSWINSZ,struct.pack('HHHH',30,40,0,0))\n"
        "def until(want):\n"
        "    data=b''\n"
        "    end=time.time()+10\n"
        "    while want not in data and time.time()<end:\n"
        "        if select.select([fd],[],[],0.2)[0]:\n"
        "            try: data+=os.read(fd,1000)\n"
        "            except OSError: break\n"
        "    return data\n"
        "time.sleep(1)\n"
        "os.write(fd,b'x')\n"
        "sys.stdout.write(repr(until(b'pty:echo\\r\\n'))+'\\n')\n"
        "fcntl.ioctl(fd,termios.TIOCSWINSZ,struct.pack('HHHH',30,100,0,0))\n"
        "time.sleep(0.5)\n"
        "os.write(fd,b'\\x03'); until(b'pty:echo\\r\\n')\n"
        "os.write(fd,b'q')\n"
        "_,status=os.waitpid(pid,0)\n"
        "print(os.WEXITSTATUS(status))\n";
    char *path = xasprintf("%s/terminal.py", fake.dir);
    struct error err = ERROR_INIT;
    assert_int_equal(file_write_atomic(path, script, strlen(script), 0600, &err), 0);
    expect(run_input(NULL, "exec python3 $T/terminal.py"), 0, "b'pty:echo\\r\\n'\n7\n", "");
    free(path);
    char *log = fake_log();
    assert_non_null(strstr(log, "\"interactive\":true,\"environment\":{\"TERM\":\"dumb\"},\"width\":40,\"height\":30"));
    assert_non_null(strstr(log, "control {\"command\":\"window-resize\",\"args\":{\"width\":\"100\",\"height\":\"30\"}}"));
    assert_non_null(strchr(fake.controls.data, 3)); /* raw: ^C is data */
    free(log);
}

static void exec_signal(void **state)
{
    free(fake_log());
    /* a signal to the client goes to the command; the command ends when its input does */
    expect(run_input(NULL, "mkfifo $T/in; $C exec c1 -- cat <$T/in >$T/out 2>/dev/null & p=$!; exec 3>$T/in; sleep 1; kill -TERM $p; sleep 0.5; exec 3>&-; wait $p; echo $?"), 0,
           "7\n", "");
    logged("control {\"command\":\"signal\",\"signal\":15}");
}

static void images(void **state)
{
    fake_set("WaitOperation", 0, "{\"id\":\"op1\",\"status\":\"Success\",\"status_code\":200,\"metadata\":{\"fingerprint\":\"abc\"}}");
    fake_set("GetImageAlias", STATUS_NOT_FOUND, "Image alias not found");
    fake_set("CreateImageAlias", 0, "{}");
    free(fake_log());
    expect(run_input(NULL, "head -c 600000 /dev/zero >$T/image.tar && $C image import $T/image.tar --alias a1 os=x"), 0, "Image imported with fingerprint: abc\n", "");
    assert_int_equal(fake_uploaded(), 600000);
    logged("CreateImageAlias {\"name\":\"a1\"");
    expect(run_input(NULL, "cp $T/image.tar $T/refused.tar; $C image import $T/refused.tar"), 1, "", "Error: Image refused\n");
    expect(run_input(NULL, "$C image import $T/absent.tar"), 1, "", NULL);
    expect(run_input(NULL, "cd $T && $C -q image export abc && cat image.tar.xz"), 0, "bytes", "");
    expect(run_input(NULL, "cd $T && rm -f x.tar.xz; $C image export short x; ls x*"), 2, "", NULL);
    expect_in(run_input(NULL, "$C image export evil"), 1, "", "file name that is no name");
}

static void trust_add(void **state)
{
    static const char make[] = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x -keyout $T/x.key -out $T/x.crt 2>/dev/null; ";
    fake_set("CreateCertificate", 0, "{}");
    free(fake_log());
    char *command = xasprintf("%s$C config trust add $T/x.crt --name laptop", make);
    expect(run_input(NULL, command), 0, "", "");
    free(command);
    logged("CreateCertificate {\"type\":\"client\",\"name\":\"laptop\"");
    expect(run_input(NULL, "$C config trust add $T/x.key"), 1, "", "Error: Certificate must be base64 encoded PEM certificate\n");
    expect(run_input(NULL, "$C config trust add $T/absent.crt"), 1, "", NULL);
}

static void preseed(void **state)
{
    fake_set("GetServer", 0, SERVER);
    fake_set("UpdateServer", 0, "{}");
    fake_set("GetStoragePool", STATUS_NOT_FOUND, "Storage pool not found");
    fake_set("CreateStoragePool", 0, "{}");
    fake_set("DeleteStoragePool", 0, "{}");
    fake_set("GetProfile", 0, "{\"name\":\"default\",\"config\":{\"a\":\"1\"},\"devices\":{\"eth0\":{\"type\":\"nic\"}}}");
    fake_set("UpdateProfile", 0, "{}");
    fake_set("GetCluster", 0, "{\"enabled\":false}");
    fake_set("UpdateCluster", 0, "{\"operation\":{\"id\":\"op1\",\"status_code\":103}}");
    fake_set("WaitOperation", 0, "{\"id\":\"op1\",\"status\":\"Success\",\"status_code\":200}");
    free(fake_log());
    static const char text[] = "config:\n  core.https_address: 10.0.0.1:8443\nstorage_pools:\n- name: data\n  driver: dir\n"
                               "profiles:\n- name: default\n  devices:\n    root: {type: disk, path: /, pool: data}\n    eth0: {parent: br0}\n"
                               "cluster:\n  enabled: true\n  server_name: node1\n";
    expect(run_input(text, "$COMPAT/lxd init --preseed"), 0, "", "");
    char *log = fake_log();
    const char *const steps[] = {"UpdateServer {\"config\":{\"cluster.https_address\":\"10.0.0.1:8443\",\"core.https_address\":\"10.0.0.1:8443\"}",
                                 "CreateStoragePool {\"name\":\"data\",\"driver\":\"dir\"",
                                 "\"devices\":{\"eth0\":{\"parent\":\"br0\",\"type\":\"nic\"},\"root\":{\"path\":\"/\",\"pool\":\"data\",\"type\":\"disk\"}}",
                                 "UpdateCluster {\"server_name\":\"node1\",\"enabled\":true"};
    const char *at = log;
    for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) { /* in this order */
        at = at ? strstr(at, steps[i]) : NULL;
        if (!at)
            fail_msg("missing or out of order: %s\n%s", steps[i], log);
    }
    free(log);
    /* a failure undoes what was done, last first */
    fake_set("UpdateCluster", STATUS_FAILED_PRECONDITION, "no");
    expect(run_input(text, "$C admin init --preseed"), 1, "", "Error: Failed to configure cluster: no\n");
    log = fake_log();
    const char *undone = strstr(log, "UpdateCluster");
    const char *profile = strstr(undone, "UpdateProfile"), *pool = strstr(undone, "DeleteStoragePool {\"name\":\"data\"}");
    assert_true(profile && pool && profile < pool && strstr(pool, "UpdateServer"));
    free(log);
    fake_set("GetStoragePool", 0, "{\"name\":\"data\",\"driver\":\"btrfs\"}");
    expect(run_input(text, "$C admin init --preseed"), 1, "", "Error: Storage pool \"data\" is of type \"btrfs\" instead of \"dir\"\n");
    free(fake_log());
    expect_in(run_input("clster: {}\n", "$C admin init --preseed"), 1, "", "Error: Failed to parse the preseed: yaml: unmarshal errors: field clster not found");
    log = fake_log();
    assert_null(strstr(log, "Update"));
    free(log);
    expect(run_input(text, "$C admin init --preseed --auto"), 1, "", "Error: Can't use --auto and --preseed together\n");
    expect(run_input(text, "$C admin init --network-port 1"), 1, "", "Error: Configuration flags require --auto\n");
}

static void dialogue(void **state)
{
    fake_set("GetServer", 0, SERVER);
    fake_set("UpdateServer", 0, "{}");
    fake_set("GetStoragePool", STATUS_NOT_FOUND, "Storage pool not found");
    fake_set("CreateStoragePool", 0, "{}");
    fake_set("GetProfile", 0, "{\"name\":\"default\",\"config\":{},\"devices\":{}}");
    fake_set("UpdateProfile", 0, "{}");
    fake_set("GetCluster", 0, "{\"enabled\":false}");
    fake_set("UpdateCluster", 0, "{\"operation\":{\"id\":\"op1\",\"status_code\":200}}");
    free(fake_log());
    /* a new cluster; wrong answers are asked again; passwords must agree */
    struct run run = run_input("maybe\nyes\n0.0.0.0\n127.0.0.1:0\nno\nnode1\ny\none\ntwo\npw\npw\n\n\nyes\nno\nno\nyes\n", "$C admin init");
    if (run.code)
        fail_msg("%s%s", run.out, run.err);
    assert_non_null(strstr(run.out, "Would you like to use LXD clustering? (yes/no) [default=no]: "));
    assert_non_null(strstr(run.out, "What member name should be used to identify this server in the cluster? [default="));
    assert_non_null(strstr(run.out, "Would you like a YAML \"lxd init\" preseed to be printed? (yes/no) [default=no]: config:\n"));
    assert_non_null(strstr(run.err, "Invalid input: Invalid IP address or DNS name\n"));
    free(run.out);
    free(run.err);
    char *log = fake_log();
    assert_non_null(strstr(log, "\"core.trust_password\":\"pw\""));
    assert_non_null(strstr(log, "\"images.auto_update_interval\":\"0\""));
    assert_non_null(strstr(log, "CreateStoragePool {\"name\":\"local\",\"driver\":\"dir\""));
    assert_non_null(strstr(log, "\"root\":{\"path\":\"/\",\"pool\":\"local\",\"type\":\"disk\"}"));
    assert_non_null(strstr(log, "UpdateCluster {\"server_name\":\"node1\",\"enabled\":true"));
    free(log);
    /* standalone, all defaults but the network */
    expect_in(run_input("\n\n\n\n\nyes\n\n\npw\npw\n\n\n", "$C admin init"), 0, "Name of the new storage pool [default=default]: ", "");
    logged("\"core.https_address\":\"[::]:8443\"");
    /* the end of the input is no answer */
    expect_in(run_input("yes\n", "$C admin init"), 1, "", "Error: EOF\n");
    log = fake_log();
    assert_null(strstr(log, "Update"));
    free(log);
}

static void joining_dialogue(void **state)
{
    struct identity identity, own;
    struct error err = ERROR_INIT;
    if (geteuid() != 0) {
        expect_in(run_input("yes\n127.0.0.1:0\nyes\n", "$C admin init"), 1, "", "Error: Joining an existing cluster requires root privileges\n");
        return;
    }
    assert_int_equal(identity_create("cluster", &identity, &err), 0);
    char *cert = xasprintf("%s/server.crt", fake.dir), *key = xasprintf("%s/server.key", fake.dir);
    assert_int_equal(identity_load_or_create(cert, key, "n2", &own, &err), 0);
    struct rpc_server *tls = rpc_server_listen_tls("127.0.0.1:0", &identity, &err);
    assert_non_null(tls);
    char *json = xasprintf("{\"server_name\":\"n2\",\"fingerprint\":\"%s\",\"addresses\":[\"127.0.0.1:%d\"],\"secret\":\"s\"}", identity.fingerprint, rpc_server_port(tls));
    char *token = base64_encode(json, strlen(json));
    fake_set("CreateCertificate", 0, "{\"location\":\"x\"}");
    fake_set("GetCluster", 0, "{\"enabled\":true,\"member_config\":[{\"entity\":\"storage-pool\",\"name\":\"data\",\"key\":\"source\",\"description\":"
                              "\"\\\"source\\\" property for storage pool \\\"data\\\"\"}]}");
    free(fake_log());
    char *input = xasprintf("yes\n127.0.0.1:0\nyes\nbad\n%s\nyes\n/srv\nno\n", token);
    expect_in(run_input(input, "$C admin init"), 0, "Choose \"source\" property for storage pool \"data\": ", "Invalid input: Not yes/no, or invalid join token\n");
    char *log = fake_log();
    assert_non_null(strstr(log, "CreateCertificate {\"type\":\"server\",\"name\":\"n2\""));
    assert_non_null(strstr(log, "\"key\":\"source\",\"value\":\"/srv\""));
    assert_non_null(strstr(log, "UpdateCluster {\"server_name\":\"n2\",\"enabled\":true"));
    free(log);
    free(input);
    input = xasprintf("yes\n127.0.0.1:0\nyes\n%s\nno\n", token);
    expect_in(run_input(input, "$C admin init"), 1, "All existing data is lost", "Error: User aborted configuration\n");
    free(input);
    free(token);
    free(json);
    free(cert);
    free(key);
    rpc_server_destroy(tls, 0);
    identity_free(&identity);
    identity_free(&own);
}

static void becomes_daemon(void **state)
{
    expect(run_input(NULL, "mkdir -p $T/bin $T/lib/covey/compat && cp $C $T/bin/covey && ln -sf ../../../bin/covey $T/lib/covey/compat/lxd && "
                           "printf '#!/bin/sh\\necho \"$@\"\\n' >$T/bin/coveyd && chmod +x $T/bin/coveyd && LXD_DIR=/d $T/lib/covey/compat/lxd --logfile f --group g --debug"),
           0, "--dir /d --logfile f --group g --debug\n", "");
    expect(run_input(NULL, "rm $T/bin/coveyd; $T/lib/covey/compat/lxd"), 1, "", "Error: cannot find coveyd beside this program\n");
}

static void remote_and_join(void **state)
{
    struct identity identity;
    struct error err = ERROR_INIT;
    assert_int_equal(identity_create("node1", &identity, &err), 0);
    struct rpc_server *tls = rpc_server_listen_tls("127.0.0.1:0", &identity, &err);
    assert_non_null(tls);
    char *address = xasprintf("127.0.0.1:%d", rpc_server_port(tls));
    fake_set("GetServer", 0, SERVER);
    fake_set("CreateCertificate", 0, "{\"location\":\"/1.0/certificates/x\"}");
    free(fake_log());
    char *shell = xasprintf("$C remote add there %s --password pw --accept-certificate", address);
    char *shown = xasprintf("Certificate fingerprint: %s\nClient certificate now trusted by server: there\n", identity.fingerprint);
    expect(run_input(NULL, shell), 0, shown, "");
    free(shell);
    free(shown);
    logged("CreateCertificate {\"type\":\"client\",\"name\":\"\",\"certificate\":\"\",\"password\":\"pw\"");
    expect(run_input(NULL, "$C config get there: core.https_address && $C remote set-default there && $C config get core.https_address"), 0, "a:1\na:1\n", "");
    expect(run_input(NULL, "$C remote remove there"), 1, "", "Error: Can't remove the default remote\n");
    expect_in(run_input(NULL, "$C remote list"), 0, "| there (current) |", "");
    expect(run_input(NULL, "$C remote set-default local && $C remote remove there && $C config get there: x.y"), 1, "", "Error: The remote \"there\" doesn't exist\n");
    char *refused = xasprintf("$C remote add other %s", address);
    expect_in(run_input("n\n", refused), 1, "", "Error: Server certificate NACKed by user\n");
    free(refused);

    /* joins: the certificate comes from the member and must be the token's */
    fake_set("UpdateCluster", 0, "{\"operation\":{\"id\":\"op1\",\"status_code\":103}}");
    fake_set("WaitOperation", 0, "{\"id\":\"op1\",\"status\":\"Success\",\"status_code\":200}");
    free(fake_log());
    for (int right = 1; right >= 0; right--) {
        char *json = xasprintf("{\"server_name\":\"n2\",\"fingerprint\":\"%s\",\"addresses\":[\"127.0.0.1:1\",\"%s\"],\"secret\":\"s\"}", right ? identity.fingerprint : "00", address);
        char *token = base64_encode(json, strlen(json));
        char *text = xasprintf("cluster:\n  enabled: true\n  server_address: 127.0.0.2\n  cluster_token: %s\n", token);
        char *mismatch = xasprintf("Error: Certificate fingerprint mismatch between join token and cluster member \"%s\"\n", address);
        expect_in(run_input(text, "$C admin init --preseed"), right ? 0 : 1, "", right ? "Error connecting to existing cluster member \"127.0.0.1:1\": " : mismatch);
        char *log = fake_log(), *password = xasprintf("\"cluster_password\":\"%s\"", token);
        assert_true(!right == !strstr(log, "UpdateCluster {\"server_name\":\"n2\",\"enabled\":true"));
        if (right)
            assert_true(strstr(log, password) && strstr(log, "\"server_address\":\"127.0.0.2:8443\"") && strstr(log, "BEGIN CERTIFICATE"));
        free(password);
        free(log);
        free(mismatch);
        free(text);
        free(token);
        free(json);
    }
    rpc_server_destroy(tls, 0);
    free(address);
    identity_free(&identity);
}

static void administration(void **state)
{
    fake_set("Ready", STATUS_UNAVAILABLE, "not yet");
    expect(run_input(NULL, "$COMPAT/lxd waitready -t 1"), 1, "", "Error: LXD still not running after 1s timeout (not yet)\n");
    fake_set("Ready", 0, "{}");
    expect(run_input(NULL, "$COMPAT/lxd waitready -t 5"), 0, "", "");
    fake_set("SqlLocal", 0, "{\"results\":[{\"type\":\"select\",\"columns\":[\"id\",\"name\",\"address\",\"role\"],\"rows\":["
                            "{\"values\":[{\"integer\":1},{\"text\":\"n1\"},{\"text\":\"a:1\"},{\"integer\":0}]},"
                            "{\"values\":[{\"integer\":2},{\"text\":\"n2\"},{\"text\":\"b:1\"},{\"integer\":2}]}]}]}");
    fake_set("Status", 0, "{\"last_index\":233}");
    expect(run_input(NULL, "$COMPAT/lxd cluster list-database"), 0, "+---------+\n| ADDRESS |\n+---------+\n| a:1     |\n+---------+\n", "");
    expect(run_input(NULL, "$C admin cluster show"), 0,
           "# Latest dqlite segment ID: 233\n\nmembers:\n- id: 1\n  name: n1\n  address: a:1\n  role: voter\n- id: 2\n  name: n2\n  address: b:1\n  role: spare\n", "");
    expect(run_input("SELECT 1", "$COMPAT/lxd sql local - | head -2"), 0, "+----+------+---------+------+\n| id | name | address | role |\n", "");
    expect(run_input(NULL, "$C admin sql local ' ; '"), 1, "", "Error: No query provided\n");
    expect_in(run_input(NULL, "$COMPAT/lxd sql remote x"), 1, "", "Error: Invalid database type\n");
    for (int i = 0; i < 3; i++) { /* somebody listens: no daemon is asked, nothing waits */
        static const char *const commands[] = {"$C admin cluster edit", "$COMPAT/lxd cluster recover-from-quorum-loss -q", "$C admin cluster restore -q /etc/hostname"};
        expect(run_input("members: []\n", commands[i]), 1, "", "Error: The LXD daemon is running, please stop it first.\n");
    }
    expect_in(run_input("no\n", "$COMPAT/lxd cluster remove-raft-node 10.0.0.1"), 1, "(yes/no): ", "Error: Remove raft node operation aborted\n");
    expect_in(run_input(NULL, "$COMPAT/lxd cluster remove-raft-node"), 1, "", "Error: Missing required arguments\n");
    /* a member beside a working majority of the epoch that it left */
    fake_set("Survey", 0, "{\"epoch\":2,\"refusal\":\"no\",\"members\":["
                          "{\"name\":\"n1\",\"reachable\":true,\"chosen\":true,\"position\":{\"epoch\":2,\"last_term\":3,\"last_index\":9,\"leader_id\":1}},"
                          "{\"name\":\"n2\",\"reachable\":true,\"position\":{\"epoch\":1,\"last_term\":2,\"last_index\":8,\"leader_id\":2}},"
                          "{\"name\":\"n3\",\"reachable\":true,\"position\":{\"epoch\":1,\"last_term\":2,\"last_index\":7}}]}");
    expect_in(run_input(NULL, "$C admin cluster rescue -q | grep n2"), 0, "works in an earlier epoch, does not follow", "");
    expect_in(run_input(NULL, "$C admin cluster rescue -q | grep n3"), 0, "of an earlier epoch, will take a fresh copy", "");
    /* stopped: straight from the file */
    expect(run_input(NULL, "mkdir -p $T/stopped/database && python3 -c \"import sqlite3,os; d=sqlite3.connect(os.environ['T']+'/stopped/database/local.db'); "
                           "d.execute('create table raft_nodes(id integer primary key, address text, role integer, name text)'); "
                           "d.execute(\\\"insert into raft_nodes values(1,'c:1',0,'n')\\\"); d.commit()\" && LXD_DIR=$T/stopped $COMPAT/lxd cluster ls -f csv"), 0, "c:1\n", "");
}

static void watch(void **state)
{
    expect(run_input(NULL, "$C monitor -f json"), 1,
           "{\"type\":\"lifecycle\",\"timestamp\":\"0001-01-01T00:00:00Z\",\"metadata\":{\"action\":\"instance-started\"},\"location\":\"node1\"}\n", "Error: events were lost\n");
}

static int start(void **state)
{
    server = fake_start();
    return 0;
}

static int stop(void **state)
{
    struct error err = ERROR_INIT;
    rpc_server_destroy(server, 0);
    covey_end();
    return dir_remove_all(fake.dir, &err);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(simple_calls), cmocka_unit_test(instance_list), cmocka_unit_test(members_and_tokens), cmocka_unit_test(operations),
        cmocka_unit_test(exec),         cmocka_unit_test(exec_terminal), cmocka_unit_test(exec_signal),        cmocka_unit_test(images),
        cmocka_unit_test(trust_add), cmocka_unit_test(preseed),      cmocka_unit_test(remote_and_join), cmocka_unit_test(administration),   cmocka_unit_test(watch),
        cmocka_unit_test(dialogue),     cmocka_unit_test(joining_dialogue), cmocka_unit_test(becomes_daemon),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
