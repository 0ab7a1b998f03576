"""Storage pools of a cluster: one step on a single member, member by member in larger ones; what fails half-way is finished later."""
import os

from harness import Cluster, Member, main, needs_covey, refused, test, wait_until


def define(member, name, targets, config=None):
    for target in targets:
        own = (config or {}).get(target.name)
        member.rest.post(f"/1.0/storage-pools?target={target.name}", {"name": name, "driver": "dir", "config": {"source": own} if own else {}})


def create(member, name, **config):
    return member.rest.post("/1.0/storage-pools", {"name": name, "driver": "dir", "config": config})


def status(member, name):
    return member.rest.get(f"/1.0/storage-pools/{name}")["status"]


@test(120)
def pool_phases():
    """§18.45: one step on a single member; per member first in larger ones; only member keys with a target, none of them in the final call."""
    cluster = Cluster(1)
    first = cluster[1]
    create(first, "alone", **{"rsync.bwlimit": "1MB"})
    assert status(first, "alone") == "Created"
    first.rest.delete("/1.0/storage-pools/alone")
    second = cluster.add()
    second.join(first)
    cluster.wait_online()
    post = second.rest.post  # any member answers
    refused((400, 500), "Pool not pending on any node (use --target <node> first)", create, second, "data")
    refused((400, 500), 'Config key "rsync.bwlimit" may not be used as member-specific key', post, "/1.0/storage-pools?target=node1",
            {"name": "data", "driver": "dir", "config": {"rsync.bwlimit": "1MB"}})
    refused(404, "Cluster member not found", post, "/1.0/storage-pools?target=node9", {"name": "data", "driver": "dir", "config": {}})
    define(second, "data", [first])
    assert status(second, "data") == "Pending" and not os.path.exists(os.path.join(first.dir, "storage-pools", "data"))
    refused((400, 500), 'The storage pool already defined on member "node1"', define, second, "data", [first])
    refused((400, 500), "Pool not defined on nodes: node2", create, second, "data")
    define(second, "data", [second])
    refused((400, 500), 'Config key "source" is cluster member specific', create, second, "data", source="/x")
    refused((400, 500), 'doesn\'t match driver in existing database record "dir"', post, "/1.0/storage-pools", {"name": "data", "driver": "btrfs"})
    create(second, "data", **{"rsync.bwlimit": "1MB"})
    for member in cluster:
        pool = member.rest.get("/1.0/storage-pools/data")
        assert pool["status"] == "Created" and sorted(pool["locations"]) == ["node1", "node2"], pool
        assert os.path.exists(os.path.join(member.dir, "storage-pools", "data"))
    refused((400, 500), "The storage pool is already created", create, second, "data")
    # Changing keys follows the same line.
    refused((400, 500), 'Config key "size" is cluster member specific', second.rest.patch, "/1.0/storage-pools/data", {"config": {"size": "1GB"}})
    refused((400, 500), "Pool source cannot be changed when not in pending state", second.rest.patch, "/1.0/storage-pools/data?target=node1",
            {"config": {"source": "/elsewhere"}})


@test(120)
def pool_create_fails_and_is_repeated():
    """§18.45: a failed final create leaves Errored and can be repeated after the fix, without keys."""
    cluster = Cluster(2)
    first, second = cluster
    place = os.path.join(first.test.dir, "not-there-yet")
    define(first, "data", list(cluster), {"node2": place})
    error = refused((400, 500), "", create, first, "data", **{"rsync.bwlimit": "1MB"})
    assert place in error.text, error.text
    for member in cluster:
        assert status(member, "data") == "Errored"
    refused((400, 500), "Please do not specify any global config when re-running create", create, first, "data", **{"rsync.bwlimit": "2MB"})
    refused((400, 500), "Cannot update storage pool global config when not in created state", first.rest.patch, "/1.0/storage-pools/data",
            {"config": {"rsync.bwlimit": "2MB"}})
    os.mkdir(place)
    create(second, "data")
    for member in cluster:
        assert status(member, "data") == "Created"
    assert first.rest.get("/1.0/storage-pools/data")["config"]["rsync.bwlimit"] == "1MB"
    # One that is given up instead goes away everywhere.
    define(first, "given-up", list(cluster), {"node2": os.path.join(first.test.dir, "never-there")})
    refused((400, 500), "", create, first, "given-up")
    first.rest.delete("/1.0/storage-pools/given-up")
    assert first.rest.get("/1.0/storage-pools") == ["/1.0/storage-pools/data", "/1.0/storage-pools/default"]
    assert not os.path.exists(os.path.join(first.dir, "storage-pools", "given-up"))


@test(150)
def pool_with_a_member_away():
    """A member that dies in between: creating and deleting stop half-way and are finished when it is back."""
    needs_covey("a deletion that failed cannot be repeated there")
    cluster = Cluster(3, config={"cluster.offline_threshold": "10"})
    leader = cluster.leader()
    away = next(one for one in cluster if one is not leader)
    here = [one for one in cluster if one is not away]
    define(leader, "data", list(cluster))
    away.kill()  # still counts as online
    refused((400, 500, 503), "", create, leader, "data")
    wait_until(lambda: status(leader, "data") == "Errored", 30, "an errored pool")
    wait_until(lambda: leader.members()[away.name]["status"] == "Offline", 40, "the threshold")
    refused((400, 500, 503), f"peer node {away.address} is down", create, leader, "data")
    away.start()
    cluster.wait_online()
    create(leader, "data")
    assert status(away, "data") == "Created" and os.path.exists(os.path.join(away.dir, "storage-pools", "data"))

    away.kill()
    refused((400, 500, 503), "", leader.rest.delete, "/1.0/storage-pools/data")
    assert status(leader, "data") == "Errored", "it is there until it is gone everywhere"
    for member in here:
        assert not os.path.exists(os.path.join(member.dir, "storage-pools", "data")), member.name
    # Nothing can be put on it meanwhile.
    refused((400, 404, 500), "", leader.rest.post, "/1.0/instances", {"name": "c1", "source": {"type": "none"},
                                                                     "devices": {"root": {"type": "disk", "path": "/", "pool": "data"}}})
    away.start()
    cluster.wait_online()
    leader.rest.delete("/1.0/storage-pools/data")
    assert not os.path.exists(os.path.join(away.dir, "storage-pools", "data"))
    for member in cluster:
        assert member.rest.get("/1.0/storage-pools") == ["/1.0/storage-pools/default"]
    cluster.assert_equal_state()


@test(90)
def pending_pool_stops_no_join():
    """§18.11: a pending pool that is defined for m1 only does not stop m3 from joining through m2, which does not lead."""
    cluster = Cluster(2)
    leader = cluster.leader()
    other = next(one for one in cluster if one is not leader)
    define(other, "pending", [cluster[1]])
    joiner = Member(3, f"{cluster.prefix}.3").start()
    joiner.join(other, "token")
    cluster.members.append(joiner)
    cluster.wait_online()
    assert joiner.rest.get("/1.0/storage-pools/pending")["status"] == "Pending"
    refused((400, 500), "Pool not defined on nodes: node2, node3", create, joiner, "pending")
    define(joiner, "pending", [cluster[2], joiner])
    create(joiner, "pending")
    assert sorted(leader.rest.get("/1.0/storage-pools/pending")["locations"]) == ["node1", "node2", "node3"]


@test(120)
def many_pools_stop_no_join():
    """Eighty pools, one of them with a hundred keys: a joiner makes them all."""
    cluster = Cluster(1)
    for number in range(80):
        create(cluster[1], f"pool{number}", **({f"user.key{key}": "v" for key in range(100)} if number == 0 else {}))
    joiner = cluster.add()
    joiner.join(cluster[1], "token")
    cluster.wait_online()
    pools = joiner.rest.get("/1.0/storage-pools?recursion=1")
    assert len(pools) == 81 and all(sorted(pool["locations"]) == ["node1", "node2"] for pool in pools), len(pools)
    assert all(os.path.isdir(os.path.join(joiner.dir, "storage-pools", f"pool{number}")) for number in range(80))
    assert len(joiner.rest.get("/1.0/storage-pools/pool0")["config"]) >= 100


@test(120)
def joiner_with_pools_of_its_own():
    """A pool of the same name is kept with its place; another driver is refused; member keys asked for are those of all members."""
    needs_covey("questions differ from member to member there")
    cluster = Cluster(2)
    place = os.path.join(cluster[1].test.dir, "place")
    os.mkdir(place)
    for member in cluster:
        asked = [(one["entity"], one["name"], one["key"]) for one in member.rest.get("/1.0/cluster")["member_config"]]
        assert asked == [("storage-pool", "default", "source")], asked
    define(cluster[1], "data", list(cluster))
    cluster[1].rest.patch("/1.0/storage-pools/data?target=node2", {"config": {"size": "1GB"}})
    create(cluster[1], "data")
    wanted = [("storage-pool", "data", "size"), ("storage-pool", "data", "source"), ("storage-pool", "default", "source")]
    for member in cluster:
        asked = [(one["entity"], one["name"], one["key"]) for one in member.rest.get("/1.0/cluster")["member_config"]]
        assert asked == wanted, asked
    joiner = Member(3, f"{cluster.prefix}.3").start()
    joiner.preseed({"storage_pools": [{"name": "default", "driver": "dir", "config": {"source": place}}, {"name": "extra", "driver": "dir"}]})
    # Its database says that it is another driver's: no such driver can be made on every host.
    joiner.admin("sql", "global", "UPDATE storage_pools SET driver = 'btrfs' WHERE name = 'default'")
    result = joiner.join(cluster[1], check=False)
    assert 'Failed to join cluster: Failed to initialize member: Failed to initialize storage pools and networks: Storage pool "default" is of ' \
           'type "btrfs" instead of "dir"' in result.stderr, result.stderr
    assert "node3" not in [one["name"] for one in cluster[1].rest.get("/1.0/certificates?recursion=1")]
    joiner.admin("sql", "global", "UPDATE storage_pools SET driver = 'dir' WHERE name = 'default'")
    # Another place for a pool that it has, and one that cannot be made: refused, nothing stays.
    keys = [{"entity": "storage-pool", "name": "default", "key": "source", "value": place + "2"}]
    result = joiner.join(cluster[1], check=False, member_config=keys)
    assert "Pool source cannot be changed when not in pending state" in result.stderr, result.stderr
    keys = [{"entity": "storage-pool", "name": "data", "key": "source", "value": place + "2"}]
    result = joiner.join(cluster[1], check=False, member_config=keys)
    assert f'Source path "{place}2" doesn\'t exist' in result.stderr, result.stderr
    assert sorted(cluster[1].members()) == ["node1", "node2"] and not joiner.rest.get("/1.0/cluster")["enabled"]
    assert sorted(joiner.rest.get("/1.0/storage-pools")) == ["/1.0/storage-pools/default", "/1.0/storage-pools/extra"]
    assert not os.path.exists(os.path.join(joiner.dir, "storage-pools", "data"))
    joiner.join(cluster[1], member_config=[{"entity": "storage-pool", "name": "data", "key": "size", "value": "2GB"}])
    cluster.members.append(joiner)
    cluster.wait_online()
    assert cluster[1].rest.get("/1.0/storage-pools/default?target=node3")["config"]["source"] == place
    assert cluster[1].rest.get("/1.0/storage-pools/data?target=node3")["config"]["size"] == "2GB"


if __name__ == "__main__":
    main()
