"""`lxd cluster …` and `lxd sql …` by the drop-in names: the steps of the reference's own recovery and configuration recipes."""
import harness
from harness import Cluster, main, peer_is_lxd, program, test, wait_until


def lxd():
    return "lxd" if peer_is_lxd() else program("lxd")


def run(member, *arguments, **options):
    return member.run([lxd(), *arguments], **options)


@test(200)
def dropin_cluster():
    cluster = Cluster(3, config={"cluster.offline_threshold": "11"})
    one = cluster[1]
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 60, "three voters")
    one.lxc("profile", "create", "kept")
    for name in ("list-database", "ls"):
        listed = run(one, "cluster", name).stdout
        assert "ADDRESS" in listed and listed.count(":8443") == 3, listed
    shown = run(one, "cluster", "show").stdout
    assert shown.startswith("# Latest dqlite segment ID: ") and shown.count("role: voter") == 3, shown
    assert "node2" in run(one, "sql", "global", "SELECT name FROM nodes").stdout
    assert one.address in run(one, "sql", "local", "SELECT * FROM raft_nodes").stdout
    assert run(one, "sql", "global", "-", stdin="UPDATE profiles SET description='d' WHERE name='kept'").stdout == "Rows affected: 1\n"
    for command in (("edit",), ("recover-from-quorum-loss", "-q")):
        result = run(one, "cluster", *command, stdin="members: []\n", check=False)
        assert result.returncode == 1 and "The LXD daemon is running, please stop it first." in result.stderr, result
    result = run(one, "cluster", "remove-raft-node", check=False)
    assert "Missing required arguments" in result.stderr, result
    for member in cluster:
        member.kill()
    assert run(one, "cluster", "show").stdout.count("role: voter") == 3
    # Another port for all, as the documented recipe does it.
    for member in cluster:
        text = run(member, "cluster", "show").stdout.replace(":8443", ":9443")
        run(member, "cluster", "edit", stdin=text)
    for member in cluster:
        member.address = f"{member.host}:9443"
        member.start(wait=False)
    for member in cluster:
        member.wait_ready()
    wait_until(lambda: one.lxc("cluster", "list").stdout.count(":9443") == 3, 30, "the new addresses")
    # Two are lost.
    for member in cluster:
        member.kill()
    run(one, "cluster", "recover-from-quorum-loss", "-q")
    assert run(one, "cluster", "list-database").stdout.count(":9443") == 1
    one.start()
    assert "kept" in one.lxc("profile", "list").stdout
    assert "node3" in one.lxc("cluster", "list").stdout


@test(60)
def dropin_incus_names():
    """The same commands as `incus admin cluster …`."""
    harness.needs_covey("its own names")
    cluster = Cluster(1)
    incus = program("incus")
    assert cluster[1].address in cluster[1].run([incus, "admin", "cluster", "list-database"]).stdout
    assert "node1" in cluster[1].run([incus, "admin", "sql", "global", "SELECT name FROM nodes"]).stdout


main()
