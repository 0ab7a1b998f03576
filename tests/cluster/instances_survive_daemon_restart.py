"""Containers keep running while their daemon restarts or dies, and are found again; a shutdown stops them, the next start brings them back."""
from harness import Cluster, execute, main, test, wait_until


def launch(cluster, name, target):
    cluster[1].rest.post(f"/1.0/instances?target={target}", {"name": name, "source": {"type": "image", "alias": "busybox"}})
    cluster[2].rest.put(f"/1.0/instances/{name}/state", {"action": "start", "timeout": 30})


def pid_of(member, name):
    state = member.rest.get(f"/1.0/instances/{name}/state")
    return state["pid"] if state["status"] == "Running" else 0


@test(240)
def instances_survive_daemon_restart():
    cluster = Cluster(3)
    cluster.import_image()
    pids = {}
    for member in cluster:
        name = f"on-{member.name}"
        launch(cluster, name, member.name)
        pids[name] = wait_until(lambda: pid_of(member, name), 20, f"{name} running")
    for ending in ("stop", "kill"):
        for member in cluster:
            name = f"on-{member.name}"
            getattr(member, ending)()
            with open(f"/proc/{pids[name]}/stat", encoding="utf-8") as file:
                assert file.read().rpartition(")")[2].split()[0] != "Z", f"{name} died with its daemon ({ending})"
            member.start()
            asked = cluster[1 if member.index != 1 else 2]
            wait_until(lambda: pid_of(asked, name) == pids[name], 40, f"{name} found again with its pid after {ending}")
            code, out, _ = wait_until(lambda: execute(asked.rest, name, ["echo", "alive"]), 30, f"exec in {name}")
            assert (code, out) == (0, b"alive\n"), (code, out)

    # A stop asked after a restart works: the daemon watches containers that it did not start itself.
    cluster[3].rest.put("/1.0/instances/on-node1/state", {"action": "stop", "timeout": 30, "force": True})
    wait_until(lambda: cluster[2].rest.get("/1.0/instances/on-node1")["status"] == "Stopped", 20, "on-node1 stopped")
    # One that ends by itself is seen, too.
    execute(cluster[1].rest, "on-node2", ["sh", "-c", "(sleep 0.3; kill -9 -1; poweroff -f) >/dev/null 2>&1 &"])
    wait_until(lambda: cluster[1].rest.get("/1.0/instances/on-node2")["status"] == "Stopped", 30, "on-node2 ended by itself")

    member, name = cluster[3], "on-node3"
    member.expected_down = True
    member.admin("shutdown", seconds=90)
    wait_until(lambda: not member.alive(), 30, "the daemon's end after shutdown")
    wait_until(lambda: not running(pids[name]), 10, f"{name} stopped by the shutdown")
    member.start()
    again = wait_until(lambda: pid_of(cluster[1], name), 60, f"{name} started again with its member")
    assert again != pids[name]
    for name in list(pids):
        if pid_of(cluster[1], name):
            cluster[1].rest.put(f"/1.0/instances/{name}/state", {"action": "stop", "timeout": 30, "force": True})
        cluster[1].rest.delete(f"/1.0/instances/{name}")
    assert cluster[2].rest.get("/1.0/instances") == []


def running(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


main()
