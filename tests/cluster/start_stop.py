"""How a member starts and stops: what it answers before it is ready, what each signal does, the commands around it, without a majority too."""
import os
import signal
import socket
import subprocess
import time

from harness import Cluster, execute, main, program, refused, test, wait_until

QUICK_SECONDS = 10  # what "at once" or "within seconds" may take on a loaded machine


def fast(call, *arguments, **options):
    begun = time.monotonic()
    value = call(*arguments, **options)
    taken = time.monotonic() - begun
    assert taken < 3, f"{taken:.1f} s"
    return value


def ended(member, seconds):
    return member.process.wait(seconds)


def launch(member, name, target=None):
    member.rest.post("/1.0/instances" + (f"?target={target}" if target else ""), {"name": name, "source": {"type": "image", "alias": "busybox"}})
    member.rest.put(f"/1.0/instances/{name}/state", {"action": "start", "timeout": 30})
    return wait_until(lambda: member.rest.get(f"/1.0/instances/{name}/state")["pid"], 20, f"{name} running")


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def long_command(member, name, seconds):
    """A command that runs so long in a container; returns its operation."""
    return member.rest.post(f"/1.0/instances/{name}/exec", {"command": ["sleep", str(seconds)], "wait-for-websocket": False,
                                                             "interactive": False}, wait=False)


def standalone(config=None):
    """One standalone server with the image and a pool."""
    cluster = Cluster(1, formed=False)
    one = cluster[1]
    one.preseed({"config": config or {}, "storage_pools": [{"name": "default", "driver": "dir"}],
                 "profiles": [{"name": "default", "devices": {"root": {"path": "/", "pool": "default", "type": "disk"}}}]})
    cluster.import_image()
    return one


@test(120)
def before_ready():
    """Without a majority a member is not ready: it says so at once, its local database answers, and it stops at once."""
    cluster = Cluster(3)
    for member in cluster:
        member.stop()
    one = cluster[2].start(wait=False)
    wait_until(lambda: os.path.exists(os.path.join(one.dir, "unix.socket")), 20, "the socket")

    def said():
        error = refused(503, "LXD daemon setup in progress", fast, one.rest.get, "/1.0/profiles")
        return error
    wait_until(said, 20, "the refusal")
    refused(503, "LXD daemon setup in progress", fast, one.rest.get, "/1.0")
    refused(503, "LXD daemon setup in progress", fast, one.rest.put, "/1.0/profiles/default", {})
    refused(503, "LXD daemon not ready yet", fast, one.rest.get, "/internal/ready")
    assert cluster[2].name in one.admin("sql", "local", "SELECT name FROM raft_nodes").stdout
    result = one.admin("waitready", "-t", "2", check=False)
    assert result.returncode == 1 and "LXD still not running after 2s timeout (LXD daemon not ready yet)" in result.stderr, result
    begun = time.monotonic()
    one.stop(seconds=QUICK_SECONDS)
    assert one.process.returncode == 0 and time.monotonic() - begun < QUICK_SECONDS
    result = one.admin("waitready", "--timeout=1", check=False)
    assert result.returncode == 1 and "LXD still not running after 1s timeout (" in result.stderr, result


@test(120)
def shutdown_without_quorum():
    """§18.32: of three members two are gone: lists fail within patience, and `shutdown` on the third ends and stops its instances."""
    cluster = Cluster(3, config={"cluster.offline_threshold": "11"})
    cluster.import_image()
    pid = launch(cluster[1], "c1", "node3")
    last = cluster[3]
    cluster[1].stop()
    cluster[2].kill()
    begun = time.monotonic()
    refused(503, "no available", last.rest.get, "/1.0/cluster/members?recursion=1", timeout=30)
    assert time.monotonic() - begun < 20
    assert alive(pid)
    begun = time.monotonic()
    last.expected_down = True
    result = last.admin("shutdown", seconds=60)
    assert result.returncode == 0 and not last.alive() or ended(last, 5) == 0
    assert time.monotonic() - begun < 45, f"{time.monotonic() - begun:.1f} s"  # 30 s of them for an init that does not listen
    assert not alive(pid)


@test(180)
def sigterm_waits_for_operations():
    """SIGTERM: no new changes, what is under way may end, instances go on; a second signal changes nothing."""
    cluster = Cluster(3)
    cluster.import_image()
    one = cluster[3]
    pid = launch(cluster[1], "c1", one.name)
    operation = long_command(cluster[1], "c1", 6)
    wait_until(lambda: execute(cluster[1].rest, "c1", ["pidof", "sleep"])[0] == 0, 20, "the command")
    one.expected_down = True
    one.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refused(503, "LXD is shutting down", one.rest.put, "/1.0/profiles/default", {"description": "x"}), QUICK_SECONDS, "refusal")
    one.process.send_signal(signal.SIGTERM)
    refused(503, "LXD is shutting down", one.rest.post, "/1.0/profiles", {"name": "p"})
    assert one.rest.get("/1.0")["api_version"] == "1.0"
    assert any(entry["id"] == operation["id"] for entry in one.rest.get("/1.0/operations?recursion=1").get("running", []))
    refused(404, "not found", one.rest.delete, "/1.0/operations/00000000-0000-4000-8000-000000000000")
    assert one.alive()
    result = one.admin("shutdown", check=False)
    assert result.returncode == 1 and "Shutdown already in progress" in result.stderr, result
    assert ended(one, 30) == 0
    done = cluster[1].rest.get(f"/1.0/operations/{operation['id']}/wait?timeout=20")
    assert done["status"] == "Success", done
    assert alive(pid)
    cluster[1].rest.put("/1.0/profiles/default", cluster[1].rest.get("/1.0/profiles/default") | {"description": "others serve"})
    one.start()


@test(180)
def other_signals():
    """SIGHUP does nothing; SIGINT and SIGQUIT do not wait; SIGPWR stops the instances, and the next start brings them back."""
    one = standalone()
    pid = launch(one, "c1")
    one.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    one.rest.get("/1.0/profiles")
    for number in (signal.SIGINT, signal.SIGQUIT):
        long_command(one, "c1", 60)
        wait_until(lambda: execute(one.rest, "c1", ["pidof", "sleep"])[0] == 0, 20, "the command")
        one.stop(number, seconds=QUICK_SECONDS)
        assert one.process.returncode == 0 and alive(pid)
        one.start()
        execute(one.rest, "c1", ["killall", "sleep"])
    one.stop(signal.SIGPWR)
    assert one.process.returncode == 0 and not alive(pid)
    one.start()
    wait_until(lambda: one.rest.get("/1.0/instances/c1")["status"] == "Running", 30, "c1 back")


@test(180)
def shutdown_command():
    """`shutdown -t` gives up waiting and says so while the shutdown goes on; core.shutdown_timeout bounds it; `-f` does not wait; a second one is refused."""
    one = standalone({"core.shutdown_timeout": "1"})
    launch(one, "c1")
    long_command(one, "c1", 100)
    one.expected_down = True
    result = one.admin("shutdown", "-t", "2", check=False)
    assert result.returncode == 1 and "LXD still running after 2s timeout" in result.stderr, result
    assert one.alive()
    result = one.admin("shutdown", check=False)
    assert result.returncode == 1 and "Shutdown already in progress" in result.stderr, result
    one.kill()
    one.start()
    execute(one.rest, "c1", ["killall", "sleep"])
    long_command(one, "c1", 100)
    one.rest.patch("/1.0", {"config": {"core.shutdown_timeout": "0"}})
    one.expected_down = True
    begun = time.monotonic()
    one.admin("shutdown")
    assert ended(one, 5) == 0 and time.monotonic() - begun < 50
    one.start()
    one.rest.patch("/1.0", {"config": {"core.shutdown_timeout": "5"}})
    wait_until(lambda: one.rest.get("/1.0/instances/c1")["status"] == "Running", 30, "c1 back")
    long_command(one, "c1", 100)
    one.expected_down = True
    begun = time.monotonic()
    one.admin("shutdown", "--force")
    assert ended(one, 5) == 0 and time.monotonic() - begun < 50


@test(120)
def activate_if_needed():
    """`activateifneeded` prints nothing and connects only to a server that has something to do."""
    one = standalone()

    def asked(socket_there):
        """True if the command wanted the daemon: without one that is an error."""
        result = one.admin("activateifneeded", check=False)
        assert result.stdout == "" and (result.returncode == 0) == (result.stderr == ""), result
        return result.returncode != 0

    launch(one, "c1")
    assert not asked(True)  # it runs: connected
    one.stop()
    assert asked(False)  # c1 ran
    one.start()
    one.rest.put("/1.0/instances/c1/state", {"action": "stop", "force": True, "timeout": 5})
    one.stop()
    assert not asked(False)
    one.start()
    one.rest.patch("/1.0/instances/c1", {"config": {"boot.autostart": "true"}})
    one.stop()
    assert asked(False)
    one.start()
    one.rest.patch("/1.0/instances/c1", {"config": {"boot.autostart": "false"}})
    one.rest.patch("/1.0", {"config": {"core.https_address": one.address}})
    one.stop()
    assert asked(False)
    never = os.path.join(one.test.dir, "never")
    os.mkdir(never)
    result = one.admin("activateifneeded", env={"COVEY_DIR": never, "LXD_DIR": never})
    assert result.stdout + result.stderr == ""
    if os.path.exists("/usr/bin/setpriv"):
        result = one.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program("covey"), "admin", "activateifneeded"], check=False)
        assert result.returncode == 1 and "This must be run as root" in result.stderr, result


@test(120)
def socket_activation():
    """The daemon takes the listening socket that a service manager opened for it, and leaves its file there."""
    one = Cluster(1, formed=False)[1]
    one.rest.get("/internal/ready")
    one.stop()
    path = os.path.join(one.dir, "grpc.socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(8)
        inode = os.stat(path).st_ino
        waiting = subprocess.Popen([program("covey"), "admin", "waitready", "-t", "30"], env=one.environment())  # already in its queue
        with open(one.stderr, "ab") as stderr:
            one.process = subprocess.Popen(["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", program("coveyd"), "--dir", one.dir],
                                           env=one.environment() | {"LISTEN_FDS": "1"}, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                                           pass_fds=(3,), preexec_fn=lambda: os.dup2(listening.fileno(), 3, inheritable=True))
    one.expected_down = False
    assert waiting.wait(40) == 0
    one.wait_ready()
    one.stop()
    assert os.stat(path).st_ino == inode
    one.start()  # without a manager the stale file is replaced
    one.admin("sql", "local", "SELECT 1")


@test(120)
def removed_member_does_not_start():
    """A member whose row is gone never becomes ready; it says why, on stderr when it ends or in its log when it waits for the leader's word."""
    cluster = Cluster(3)
    one = cluster[3].stop()
    cluster[1].admin("sql", "global", f"DELETE FROM nodes WHERE address = '{one.address}'")
    wait_until(lambda: one.name not in cluster[1].members(), 20, "the row gone")
    one.start(wait=False)
    one.expected_down = True

    def told():
        with open(one.stderr, encoding="utf-8") as stderr, open(one.logfile, encoding="utf-8") as log:
            return f"No node registered with address {one.address}" in stderr.read() if not one.alive() else "member.removed" in log.read()
    wait_until(told, 40, "why it does not start")
    assert one.admin("waitready", "--timeout=1", check=False).returncode == 1
    assert sorted(cluster[1].members()) == ["node1", "node2"]


@test(180)
def powered_off_stays_off():
    """A container that powers itself off is not started again with its daemon; one that was stopped with its daemon is."""
    cluster = Cluster(2)
    cluster.import_image()
    for name in ("c1", "c2"):
        launch(cluster[1], name, "node2")

    def power(name):
        return cluster[1].rest.get(f"/1.0/instances/{name}")["config"]["volatile.last_state.power"]
    execute(cluster[1].rest, "c1", ["sh", "-c", "(sleep 0.3; kill -9 -1; poweroff -f) >/dev/null 2>&1 &"])
    wait_until(lambda: power("c1") == "STOPPED", 40, "the end of c1 written down")
    cluster[2].stop(signal.SIGPWR)
    cluster[2].start()
    wait_until(lambda: cluster[1].rest.get("/1.0/instances/c2")["status"] == "Running", 40, "c2 back")
    time.sleep(2)
    assert cluster[1].rest.get("/1.0/instances/c1")["status"] == "Stopped"
    assert power("c2") == "RUNNING"


@test(180)
def patient_stop():
    """A stop without a time limit waits, can be cancelled, lets a forced one through, and ends when the container does."""
    cluster = Cluster(2)
    cluster.import_image()
    pid = launch(cluster[1], "c1", "node2")
    stop = {"action": "stop", "timeout": -1, "force": False}
    os.kill(pid, signal.SIGSTOP)  # an init that does not listen

    def begin():
        operation = cluster[1].rest.put("/1.0/instances/c1/state", stop, wait=False)
        assert operation["may_cancel"] is True and operation["description"] == "Stopping instance", operation
        time.sleep(4)  # longer than its member waits for it
        assert cluster[1].rest.get(f"/1.0/operations/{operation['id']}")["status"] == "Running"
        return f"/1.0/operations/{operation['id']}"
    operation = begin()
    cluster[2].rest.delete(operation)
    assert cluster[1].rest.get(f"{operation}/wait?timeout=20")["status"] == "Cancelled"
    assert alive(pid)
    operation = begin()
    cluster[2].rest.put("/1.0/instances/c1/state", {"action": "stop", "timeout": 5, "force": True})
    assert cluster[1].rest.get(f"{operation}/wait?timeout=20")["status"] == "Success"
    assert cluster[1].rest.get("/1.0/instances/c1")["status"] == "Stopped"
    cluster[1].rest.put("/1.0/instances/c1/state", {"action": "start", "timeout": 30})
    cluster[1].rest.put("/1.0/instances/c1/state", stop)


main()
