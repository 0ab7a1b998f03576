"""deploy/quickstart: up, up again, status, a killed member, down; nothing is left."""
import os
import socket
import subprocess

import harness
import leftovers
from harness import PORT, ROOT, Skip, main, needs_covey, test


@test(300, alone=True)
def quickstart():
    needs_covey("covey's own script")
    for last in (11, 12, 13):
        with socket.socket() as sock:
            if sock.connect_ex((f"127.0.0.{last}", PORT)) == 0:
                raise Skip(f"127.0.0.{last}:{PORT} is taken, perhaps by a demo that runs already")
    demo = os.path.join(harness.CURRENT.dir, "home", "demo")
    os.makedirs(os.path.dirname(demo), mode=0o700)  # closed to others, as /root is
    os.chmod(os.path.dirname(demo), 0o700)
    env = dict(os.environ, COVEY_DEMO_DIR=demo, COVEY_TEST_ID=harness.CURRENT.id)
    if not env.get("COVEY_PREFIX"):
        env["COVEY_PREFIX"] = os.path.join(ROOT, "build", "release", "stage")

    def run(*arguments, code=0):
        result = subprocess.run([os.path.join(ROOT, "deploy", "quickstart"), *arguments], env=env, capture_output=True, text=True,
                                stdin=subprocess.DEVNULL, timeout=150, check=False)
        assert result.returncode == code, f"quickstart {arguments}: exit {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout

    def pid(number):
        with open(os.path.join(demo, f"{number}.pid"), encoding="ascii") as file:
            return int(file.read())

    before_cgroups = lxc_cgroups()
    said = run()
    for name in ("node1", "node2", "node3"):
        assert name in said, said
    assert said.count("RUNNING") == 3, said
    pids = [pid(number) for number in (1, 2, 3)]
    again = run("up")
    assert again.count("RUNNING") == 3 and [pid(number) for number in (1, 2, 3)] == pids, again
    assert "launched" not in again and "joins" not in again, again
    assert run("status").count("runs (pid") == 3
    os.kill(pids[0], 9)
    assert run("up").count("RUNNING") == 3
    assert pid(1) != pids[0] and pid(2) == pids[1]
    run("down")
    assert not os.path.exists(demo)
    assert not leftovers.processes(harness.CURRENT.id), "processes are left"
    mounts = open("/proc/self/mountinfo", encoding="utf-8").read()
    assert demo not in mounts and "/var/lib/covey-demo-" not in mounts, "mounts are left"
    assert lxc_cgroups() == before_cgroups, lxc_cgroups() - before_cgroups
    run("down")
    run("status", code=3)


def lxc_cgroups():
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found |= {os.path.join(folder, name) for name in names if name.startswith("lxc.")}
    return found


main()
