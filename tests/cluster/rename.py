"""Renaming members: names change at once everywhere, whether the member is there or not, and bad names change nothing."""
from harness import Cluster, main, needs_covey, peer_is_lxd, refused, test, wait_until


@test(120)
def rename_effective_at_once():
    """§18.30: rename; list, server name, operations, certificate and CLI texts follow at once on every member, and the new name can be removed."""
    cluster = Cluster(3)
    first, second, third = cluster
    stream = first.events("lifecycle")
    said = first.lxc("cluster", "rename", "node3", "rack2.db_1").stdout
    assert said == "Member node3 renamed to rack2.db_1\n", said
    for member in cluster:
        assert sorted(member.members()) == ["node1", "node2", "rack2.db_1"]
    event = stream.wait_for(lambda one: one["metadata"]["action"] == "cluster-member-renamed", 20)
    assert event["metadata"]["source"] == "/1.0/cluster/members/rack2.db_1", event
    assert event["metadata"]["context"] == {"old_name": "node3"}, event
    if peer_is_lxd():  # its own name and certificate follow at the next start, or never
        return
    assert third.rest.get("/1.0")["environment"]["server_name"] == "rack2.db_1"
    assert third.rest.get("/1.0/cluster")["server_name"] == "rack2.db_1"
    names = [one["name"] for one in first.rest.get("/1.0/certificates?recursion=1") if one["type"] == "server"]
    assert sorted(names) == ["node1", "node2", "rack2.db_1"], names
    wait_until(lambda: "rack2.db_1" in second.admin("sql", "local", "SELECT name FROM raft_nodes").stdout, 10, "the local table follows")

    # The leader too: what runs on it is there under the new name.
    leader = cluster.leader()
    old = leader.name
    second.covey("cluster", "rename", old, "boss")
    operation = second.rest.post("/1.0/cluster/members", {"server_name": "node9"}, wait=False)["metadata"]
    listed = [one for one in third.rest.get("/1.0/operations?recursion=1")["running"] if one["class"] == "token"]
    assert operation and [one["location"] for one in listed] == ["boss"], listed
    events = [third.events("lifecycle"), first.events("lifecycle")]
    third.rest.post("/1.0/profiles", {"name": "p1"})
    for one in events:
        assert one.wait_for(lambda e: e["metadata"]["action"] == "profile-created", 20)["location"] == "boss"
    refused(404, "Cluster member not found", second.rest.get, f"/1.0/cluster/members/{old}")


@test(120)
def rename_table():
    """§18.30: rows of renaming: unknown member, taken name, invalid names; a refused one changes nothing."""
    cluster = Cluster(2)
    first, second = cluster
    for asked in cluster:
        refused(409, "Conflict", asked.rest.post, "/1.0/cluster/members/node2", {"server_name": "node1"})
        refused((404, 500), "expected to update one row, not 0", asked.rest.post, "/1.0/cluster/members/node9", {"server_name": "node8"})
    if not peer_is_lxd():
        for name in ("", "@gpu", "-a", ".a", "..", "none", "a/b", "a b", "ü", "a" * 64, "a:b"):
            refused(400, "Invalid cluster member name: ", second.rest.post, "/1.0/cluster/members/node2", {"server_name": name})
    assert sorted(first.members()) == ["node1", "node2"]
    result = first.lxc("cluster", "rename", "node9", "node8", check=False)
    assert result.returncode == 1 and "expected to update one row, not 0" in result.stderr, result
    first.rest.post("/1.0/cluster/members/node2", {"server_name": "a" * 63})
    assert sorted(second.members()) == ["a" * 63, "node1"]


@test(150)
def rename_offline_member():
    """§18.30: a stopped member is renamed and has its new name from its return on, also in its own answers."""
    needs_covey("there a member learns its name at its next start only")
    cluster = Cluster(3)
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    victim = next(one for one in cluster if one.name != cluster.leader().name)
    asked = next(one for one in cluster if one is not victim)
    victim.kill()
    asked.rest.post(f"/1.0/cluster/members/{victim.name}", {"server_name": "renamed"})
    assert "renamed" in asked.members()
    victim.start()
    wait_until(lambda: victim.rest.get("/1.0")["environment"]["server_name"] == "renamed", 20, "its new name")
    assert victim.rest.get("/1.0/cluster")["server_name"] == "renamed"
    wait_until(lambda: asked.members()["renamed"]["status"] == "Online", 30, "online under its new name")
    victim.restart()  # and it keeps it
    assert victim.rest.get("/1.0/cluster")["server_name"] == "renamed"
    asked.lxc("cluster", "rename", "renamed", victim.name)
    assert victim.name in asked.members()


main()
