"""exec over WebSockets, from every member into a container on one: exit codes, streams, terminals, signals, environment, refusals."""
import json
import os
import time

from harness import Cluster, execute, main, peer_is_lxd, refused, test, wait_until
from rest import Execution, RestError

TIMEOUT_SECONDS = 5  # in which the client must open its streams


@test(180)
def exec_matrix():
    cluster = Cluster(3)
    cluster.import_image()
    cluster[1].rest.post("/1.0/instances?target=node2", {"name": "c1", "source": {"type": "image", "alias": "busybox"},
                                                        "config": {"environment.FROM_CONFIG": "yes"}})
    refused(400, "Instance is not running", cluster[3].rest.post, "/1.0/instances/c1/exec",
            {"command": ["true"], "wait-for-websocket": True})
    cluster[1].rest.put("/1.0/instances/c1/state", {"action": "start", "timeout": 30})
    wait_until(lambda: cluster[1].rest.get("/1.0/instances/c1")["status"] == "Running", 20, "c1 running")
    refused(404, "Instance not found", cluster[3].rest.post, "/1.0/instances/nobody/exec",
            {"command": ["true"], "wait-for-websocket": True})

    megabyte = os.urandom(1 << 20)
    for member in cluster:
        rest = member.rest
        assert execute(rest, "c1", ["sh", "-c", "cat; echo err >&2; exit 7"], b"in\n") == (7, b"in\n", b"err\n")
        assert execute(rest, "c1", ["true"]) == (0, b"", b"")
        code, out, err = execute(rest, "c1", ["cat"], megabyte)
        assert (code, err) == (0, b"") and out == megabyte, (code, len(out), err)
        assert execute(rest, "c1", ["sh", "-c", "pwd; id -u; echo $HOME $USER $FROM_CONFIG $MINE"],
                       environment={"MINE": "own"})[1] == b"/root\n0\n/root root yes own\n"
        assert execute(rest, "c1", ["sh", "-c", "pwd; id -u; id -g"], cwd="/tmp", user=7, group=8)[1] == b"/tmp\n7\n8\n"
        # An image's PATH rules; what cannot be started is told by the code.
        run = Execution(rest, "c1", ["/no/such/program"])
        try:
            assert run.result(20) == 127
        except RestError as error:
            assert "Command not found" in error.text, error
            assert rest.get(run.operation)["metadata"]["return"] == 127
        run.close()

        # Terminal: size, resize, merged output.
        run = Execution(rest, "c1", ["sh", "-c", "stty size; read go; stty size; echo e >&2; exit 3"], interactive=True, width=100, height=30)
        first = b""
        deadline = time.monotonic() + 10
        while b"30 100" not in first:
            assert time.monotonic() < deadline, f"terminal says {first!r}"
            first += run.streams["0"].receive(10)[1]
        run.resize(90, 20)
        time.sleep(0.3)  # the control stream and stream 0 are not ordered against each other
        run.streams["0"].send(b"go\n")
        rest_of_it, _ = run.read_all("0", 20)
        assert b"20 90" in first + rest_of_it and b"e" in rest_of_it, (first, rest_of_it)
        run.streams["0"].close()  # the client answers the end of the stream by closing, as the stock one does
        assert run.result(20) == 3
        run.close()

        # Signals by the control stream; 128 + number.
        for number, code in ((15, 143), (9, 137)):
            run = Execution(rest, "c1", ["sleep", "1000"])
            time.sleep(0.3)  # the process starts after the last stream is open
            run.signal(number)
            assert run.result(20) == code, (number, run.result(1))
            run.close()

    # Without a control stream, as pylxd does.
    run = Execution(cluster[1].rest, "c1", ["echo", "plain"], control=False)
    run.streams["0"].barrier()
    assert run.read_all("1", 20) == (b"plain\n", "barrier") and run.result(20) == 0
    run.close()
    # Each secret is good once; a wrong one never.
    run = Execution(cluster[3].rest, "c1", ["sleep", "5"])
    for secret in (run.fds["1"], "0" * 64):
        try:
            stray = cluster[3].rest.websocket(f"{run.operation}/websocket?secret={secret}")
        except RestError as error:
            assert error.code in (400, 403, 500), error
            continue
        assert peer_is_lxd(), "a used or wrong secret opened a stream"
        try:  # LXD opens before it asks the other member, then closes
            assert stray.receive(10)[0] == 8, "a used or wrong secret reads a stream"
        except (ConnectionError, OSError):
            pass
    if not peer_is_lxd():  # a stray attempt ends its whole session
        run.signal(9)
        assert run.result(20) == 137, run.result(1)
    run.close()
    # The control stream lost: the process does not live on.
    run = Execution(cluster[1].rest, "c1", ["sleep", "1000"])
    time.sleep(0.3)
    run.streams["control"].close()
    assert run.result(20) == 137, run.result(1)
    run.close()
    # All streams lost while the process is being started: the same.
    gone = []
    for _ in range(10):
        run = Execution(cluster[1].rest, "c1", ["sleep", "1000"])
        for stream in run.streams.values():
            stream.sock.close()
        gone.append(run)
    for run in gone:
        try:
            assert run.result(20) == 137, run.result(1)
        except RestError as error:
            assert error.code in (400, 404), error
    # No stream opened: the operation fails by itself.
    envelope = cluster[1].rest.request("POST", "/1.0/instances/c1/exec", {"command": ["true"], "wait-for-websocket": True}).json
    operation = envelope["operation"].split("?")[0]
    assert envelope["operation"] == operation or peer_is_lxd(), envelope["operation"]
    started = time.monotonic()
    error = refused(400, "Timed out waiting for websockets to connect", cluster[1].rest.wait, operation, 20)
    assert 3 < time.monotonic() - started < 12, error

    # Detached and recorded.
    done = cluster[1].rest.post("/1.0/instances/c1/exec", {"command": ["sh", "-c", "exit 4"], "wait-for-websocket": False})
    assert done["metadata"]["return"] == 4, done
    recorded = cluster[3].rest.post("/1.0/instances/c1/exec", {
        "command": ["sh", "-c", "head -c 700000 /dev/zero | tr '\\0' a; echo oops >&2; exit 3"], "wait-for-websocket": False, "record-output": True})
    assert recorded["metadata"]["return"] == 3, recorded
    output = recorded["metadata"]["output"]
    for member in cluster:  # any member gives the files, wherever the container is
        assert set(output.values()) <= set(member.rest.get("/1.0/instances/c1/logs")), output
        reply = member.rest.request("GET", output["1"])
        assert reply.code == 200 and reply.body == b"a" * 700000, (reply.code, len(reply.body))
        assert member.rest.request("GET", output["2"]).body == b"oops\n"
    assert b"lxc.rootfs.path" in cluster[2].rest.request("GET", "/1.0/instances/c1/logs/lxc.conf").body
    refused(404, "Log file not found", cluster[2].rest.get, "/1.0/instances/c1/logs/absent.log")
    refused(404, "Log file not found", cluster[2].rest.get, "/1.0/instances/c1/logs/exec_%2e%2e%2fx.stdout")
    refused(400, "lxc.log and lxc.conf may not be deleted", cluster[2].rest.delete, "/1.0/instances/c1/logs/lxc.log")
    cluster[2].rest.delete(output["1"])
    refused(404, "Log file not found", cluster[1].rest.delete, output["1"])
    assert output["1"] not in cluster[1].rest.get("/1.0/instances/c1/logs")
    assert "Log:" in cluster[1].lxc("info", "c1", "--show-log").stdout
    # Nothing of all this still runs in the container.
    _, out, _ = execute(cluster[1].rest, "c1", ["ps"])
    assert b"sleep" not in out, out
    json.dumps(cluster[1].rest.get("/1.0/operations?recursion=1"))
    cluster[1].rest.put("/1.0/instances/c1/state", {"action": "stop", "timeout": 30, "force": True})
    cluster[1].rest.delete("/1.0/instances/c1")


main()
