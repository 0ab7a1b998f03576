"""Members that lose their part in the database: Raft tells them nothing any more, and yet they follow the next leader and ask for no votes."""
from harness import Cluster, main, needs_covey, test, wait_until


def counts(cluster):
    told = [role for name, role in cluster.roles().items() if name]
    return tuple(told.count(one) for one in ("voter", "stand-by", "spare"))


@test(120)
def former_standbys_follow_the_next_leader():
    """Stand-bys that became spares serve and are Online under the next leader, though the one that they knew is dead."""
    needs_covey("max_standby acts at once here")
    cluster = Cluster(5, config={"cluster.offline_threshold": "10"})
    wait_until(lambda: counts(cluster) == (3, 2, 0), 30, "two stand-bys")
    standbys = [one for one in cluster if cluster.roles()[one.name] == "stand-by"]
    cluster[1].rest.patch("/1.0", {"config": {"cluster.max_standby": "0"}})
    wait_until(lambda: counts(cluster) == (3, 0, 2), 20, "no stand-by")
    cluster.leader().kill()
    for member in standbys:
        wait_until(lambda: member.rest.request("PUT", "/1.0/profiles/default", {"description": f"by {member.name}"}).code == 200, 20, f"a write through {member.name}")
    other = next(one for one in cluster.running() if one not in standbys)
    wait_until(lambda: list(one["status"] for one in other.members().values()).count("Offline") == 1, 40, "the dead one noticed")
    for member in standbys:
        assert other.members()[member.name]["status"] == "Online", other.members()[member.name]


@test(120)
def former_leader_is_a_spare():
    """A leader that was away while its role was given to another is a spare on its return, to itself too: it asks for no votes and claims no replica."""
    needs_covey("it shows the inside")
    cluster = Cluster(6)
    wait_until(lambda: counts(cluster) == (3, 2, 1), 30, "roles")
    leader = cluster.leader()
    leader.restart()
    wait_until(lambda: cluster.roles()[leader.name] == "spare" and counts(cluster) == (3, 2, 1), 30, "another voter")

    def role():
        status = leader.status(digest=False)
        return next(one["role"] for one in status["servers"] if str(one["id"]) == str(status["id"]))
    wait_until(lambda: role() == "spare", 20, "it knows")
    cluster.assert_equal_state()
    # It may become a voter again at once.
    names = [one for one in cluster if cluster.roles()[one.name] == "stand-by"]
    for one in names:
        one.stop()
    wait_until(lambda: cluster.roles(cluster.leader())[leader.name] == "stand-by", 60, "a stand-by again")
    wait_until(lambda: role() == "stand-by", 20, "it knows")


main()
