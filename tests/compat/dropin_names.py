"""covey under the names of what it replaces: the daemon's administration commands as `lxd …`, the client as `lxc …`."""
import os
import subprocess

import harness
from harness import Cluster, Member, main, needs_covey, peer_is_lxd, program, test, to_yaml, wait_until


def compat(name):
    """A link of lib/covey/compat, or the peer's program itself."""
    if peer_is_lxd():
        return name
    path = program(name)
    assert "compat" in path, f"{name} is not among the compatibility links: {path}"
    return path


@test(150)
def dropin_names():
    cluster = Cluster(1, formed=False)
    member = cluster[1]
    lxd = compat("lxd")

    def run(*arguments, **options):
        return member.run([lxd, *arguments], **options)

    assert run("waitready", "--timeout=10").returncode == 0
    assert run("--version").stdout.strip()
    document = {"config": {"core.https_address": member.address, "core.trust_password": "x"},
                "storage_pools": [{"name": "default", "driver": "dir"}],
                "profiles": [{"name": "default", "devices": {"root": {"path": "/", "pool": "default", "type": "disk"}}}],
                "cluster": {"server_name": "node1", "enabled": True}}
    run("init", "--preseed", stdin=to_yaml(document))
    assert member.rest.get("/1.0/cluster")["enabled"] is True
    result = run("init", "--preseed", stdin="nonsense: 1\n", check=False)
    assert result.returncode == 1 and "nonsense" in result.stderr, result
    # A cluster section on a clustered server is skipped, the rest is applied.
    run("init", "--preseed", stdin=to_yaml({"config": {"user.again": "1"}, "cluster": {"server_name": "node1", "enabled": True}}))
    assert member.rest.get("/1.0")["config"]["user.again"] == "1"
    assert "127.0." in run("cluster", "list-database").stdout
    assert "role: voter" in run("cluster", "show").stdout
    said = run("sql", "global", "SELECT name, address FROM nodes").stdout
    assert "node1" in said and member.address in said, said
    assert "core.https_address" in run("sql", "local", "SELECT key FROM config").stdout
    assert "CREATE TABLE" in run("sql", "global", ".schema").stdout.upper()
    member.lxc("profile", "create", "by-sql")
    assert "by-sql" in run("sql", "global", "SELECT name FROM profiles").stdout
    result = run("sql", "global", "SELECT nonsense", check=False)
    assert result.returncode == 1 and result.stderr.startswith("Error:"), result
    result = run("waitready", "--nonsense", check=False)
    assert result.returncode != 0
    member.expected_down = True
    run("shutdown", "--timeout", "60")
    wait_until(lambda: not member.alive(), 20, "the daemon's end")
    result = run("waitready", "--timeout=1", check=False)
    assert result.returncode == 1 and "LXD still not running after 1s timeout" in result.stderr, result


@test(90)
def dropin_daemon():
    """`lxd --logfile F --group G` with LXD_DIR starts a member; the own client as `lxc` talks to it."""
    needs_covey("its own names")
    member = Member(1, f"{harness.free_network(4)}.1")
    with open(member.stderr, "ab") as stderr:
        env = {key: value for key, value in member.environment().items() if key != "COVEY_DIR"}
        member.process = subprocess.Popen([compat("lxd"), "--logfile", member.logfile, "--group", "root", "--debug"], env=env,
                                          stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True)
    member.expected_down = False
    member.wait_ready()
    assert os.path.exists(os.path.join(member.dir, "unix.socket"))
    for name in ("lxc", "incus"):
        said = member.run([compat(name), "profile", "list", "--format", "csv"]).stdout
        assert said.startswith("default,"), said


main()
