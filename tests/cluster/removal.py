"""Members leave: cleanly, by force, the leader itself, the last but one; and nothing is half done when somebody dies meanwhile."""
import os
import random
import shutil
import threading
import time

from namespaces import NetworkCluster
from harness import Cluster, RestError, main, needs_covey, peer_is_lxd, refused, test, wait_until

CLUSTER_FILES = ("cluster.crt", "cluster.key", "cluster.ca")


def fingerprints(member):
    return {one["name"]: one["fingerprint"] for one in member.rest.get("/1.0/certificates?recursion=1") if one["type"] == "server"}


def standalone(member, pid=None, seconds=40):
    """Waits until the member is what a cleanly removed one is (spec/cluster.md 8.5), in the same process."""
    def left():
        info = member.rest.get("/1.0/cluster")
        return not info["enabled"] and info["server_name"] == "" and member.rest.get("/1.0")["auth"] == "trusted"
    wait_until(left, seconds, f"{member.name} standalone")
    assert member.alive(), f"{member.name} ended with {member.process.returncode}"
    if pid:
        assert member.rest.get("/1.0")["environment"]["server_pid"] == pid
    for path in ("/1.0/storage-pools", "/1.0/certificates", "/1.0/instances", "/1.0/images"):
        assert member.rest.get(path) == [], (path, member.rest.get(path))
    assert member.rest.get("/1.0/profiles") == ["/1.0/profiles/default"] and member.rest.get("/1.0/projects") == ["/1.0/projects/default"]
    config = member.rest.get("/1.0")["config"]
    assert config == {"core.https_address": member.core_address, "cluster.https_address": member.address}, config
    assert not [one for one in CLUSTER_FILES if os.path.exists(os.path.join(member.dir, one))]
    member.admin("waitready", "--timeout=20")


def three_voters(cluster):
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")


def gone(cluster, name, asked=None):
    """Every remaining member of the cluster says the same: `name` is not in it."""
    for member in asked or cluster.members:
        assert name not in member.members(), f"{member.name} still lists {name}"


def servers(member):
    """Raft's configuration as this member knows it: id -> role."""
    return {int(one["id"]): one["role"] for one in member.status(digest=False)["servers"]}


def node_ids(member, where="1"):
    """Ids of the members in the database."""
    lines = member.admin("sql", "global", f"SELECT id FROM nodes WHERE {where}").stdout.splitlines()
    return {int(line.strip("| ")) for line in lines if line.strip("| ").isdigit()}


def pid_of(member):
    return member.rest.get("/1.0")["environment"]["server_pid"]


@test(150)
def clean_removal_and_rejoin():
    """§18.15: a member removed cleanly is gone everywhere, its certificate too; it is standalone in the same process and joins again with a new id."""
    cluster = Cluster(4)
    first, leaver = cluster[1], cluster[4]
    asked = next(one for one in cluster.members[:3] if one is not cluster.leader())
    mine, pid = fingerprints(first)[leaver.name], pid_of(leaver)
    pool = os.path.join(leaver.dir, "storage-pools", "default")
    stream = first.events("lifecycle")
    said = asked.lxc("cluster", "remove", leaver.name)
    assert said.stdout == f"Member {leaver.name} removed\n", said
    cluster.members.remove(leaver)
    gone(cluster, leaver.name)
    for member in cluster:
        assert mine not in fingerprints(member).values()
        assert mine not in {one["fingerprint"] for one in member.rest.get("/1.0/certificates?recursion=1")}
    event = stream.wait_for(lambda one: one["metadata"]["action"] == "cluster-member-removed", 20)
    assert event["metadata"]["source"] == f"/1.0/cluster/members/{leaver.name}"
    result = leaver.lxc("cluster", "list", check=False)
    assert result.returncode == 1, result
    standalone(leaver, pid)
    assert "LXD server isn't part of a cluster" in leaver.lxc("cluster", "list", check=False).stderr
    three_voters(cluster)
    if not peer_is_lxd():
        assert not os.path.exists(pool), "the local part of the pool is still there"
        assert sorted(servers(first)) == [1, 2, 3], servers(first)
        left = first.admin("sql", "global", "SELECT (SELECT count(*) FROM departures), (SELECT count(*) FROM nodes)").stdout
        assert "| 0" in left and "| 3" in left, left
    leaver.join(first)
    cluster.members.append(leaver)
    cluster.wait_online()
    assert node_ids(first, f"name = '{leaver.name}'") == {5}
    cluster.assert_equal_state()


@test(150)
def removal_refused():
    """§18.23: refused with instances, then with a custom volume, then done; unknown members, and nothing has changed by a refusal."""
    cluster = Cluster(2)
    first, second = cluster
    second_id = 2
    refused(404, "Cluster member not found", first.rest.delete, "/1.0/cluster/members/node9")
    first.rest.post("/1.0/instances?target=node2", {"name": "c1", "source": {"type": "none"}})
    first.rest.post("/1.0/instances?target=node2", {"name": "c2", "source": {"type": "none"}})
    text = "Node still has the following containers: c1, c2"
    for asked in cluster:
        refused((400, 500), text, asked.rest.delete, "/1.0/cluster/members/node2")
    result = first.lxc("cluster", "remove", "node2", check=False)
    assert result.returncode == 1 and text in result.stderr, result
    first.rest.delete("/1.0/instances/c1")
    first.rest.delete("/1.0/instances/c2")
    if peer_is_lxd():
        first.rest.post("/1.0/storage-pools/default/volumes/custom?target=node2", {"name": "v1"})
    else:  # a row is what the check sees
        first.admin("sql", "global", "INSERT INTO storage_volumes (storage_pool_id, node_id, project_id, type, name) VALUES (1, 2, 1, 2, 'v1')")
    refused((400, 500), "Node still has the following custom volumes: v1", first.rest.delete, "/1.0/cluster/members/node2")
    members = first.members()
    assert members["node2"]["status"] == "Online" and second.rest.get("/1.0/cluster")["enabled"], members
    assert peer_is_lxd() or sorted(servers(first)) == [1, 2]
    if peer_is_lxd():
        first.rest.delete("/1.0/storage-pools/default/volumes/custom/v1?target=node2")
    else:
        first.admin("sql", "global", f"DELETE FROM storage_volumes WHERE name = 'v1' AND node_id = {second_id}")
    first.rest.delete("/1.0/cluster/members/node2")
    gone(cluster, "node2", [first])
    standalone(second)
    for force in () if peer_is_lxd() else ("", "?force=1"):  # there its list of members is old, and force destroys it
        refused(400, "Member is the only member in the cluster", first.rest.delete, "/1.0/cluster/members/node1" + force)
    first.rest.post("/1.0/profiles", {"name": "alive"})


@test(150)
def leader_removed_from_two():
    """§18.20: of two members the leader is removed through the stand-by, which remains and leads; a third joins it and removes itself without an error."""
    cluster = Cluster(2)
    leader = cluster.leader()
    other = next(one for one in cluster if one is not leader)
    pid = pid_of(leader)
    leader.rest.post("/1.0/profiles", {"name": "before"})
    other.rest.delete(f"/1.0/cluster/members/{leader.name}")
    gone(cluster, leader.name, [other])
    assert "database-leader" in other.members()[other.name]["roles"]
    assert "/1.0/profiles/before" in other.rest.get("/1.0/profiles")
    other.rest.post("/1.0/profiles", {"name": "after"})
    standalone(leader, pid)
    third = cluster.add()
    third.join(other)
    cluster.members.remove(leader)
    cluster.wait_online()
    pid = pid_of(third)
    said = third.lxc("cluster", "remove", third.name)  # itself: answered before it restarts
    assert said.stdout == f"Member {third.name} removed\n", said
    standalone(third, pid)
    assert sorted(other.members()) == [other.name]
    other.rest.post("/1.0/profiles", {"name": "alone"})
    if not peer_is_lxd():
        refused(400, "Member is the only member in the cluster", other.rest.delete, f"/1.0/cluster/members/{other.name}")


@test(150)
def leader_removes_itself():
    """§18.20: a leader asked to remove itself hands over, answers without an error, and is standalone afterwards; three, two, then one remain."""
    needs_covey("a leader that removes itself from two breaks the cluster there")
    cluster = Cluster(3)
    cluster[1].rest.post("/1.0/profiles", {"name": "kept"})
    while len(cluster.members) > 1:
        leader = cluster.leader()
        pid = pid_of(leader)
        result = leader.covey("cluster", "rm", leader.name)
        assert result.stdout == f"Member {leader.name} removed\n", result
        cluster.members.remove(leader)
        gone(cluster, leader.name)
        standalone(leader, pid)
        for member in cluster:
            assert "/1.0/profiles/kept" in member.rest.get("/1.0/profiles")
        cluster[1].rest.post("/1.0/profiles", {"name": f"p{len(cluster.members)}"})
    wait_until(lambda: list(servers(cluster[1]).values()) == ["voter"], 20, "the only voter")


@test(150)
def shrunk_to_two_leader_removed():
    """§18.21: three members shrunk to two, then the leader removed: the survivor keeps working."""
    needs_covey("it loses its quorum there")
    cluster = Cluster(3)
    leader = cluster.leader()
    victim = next(one for one in cluster if one is not leader)
    leader.rest.delete(f"/1.0/cluster/members/{victim.name}")
    cluster.members.remove(victim)
    gone(cluster, victim.name)
    wait_until(lambda: sorted(value for key, value in cluster.roles().items() if key) == ["stand-by", "voter"], 20, "a voter and a stand-by")
    leader = cluster.leader()
    survivor = next(one for one in cluster if one is not leader)
    leader.rest.delete(f"/1.0/cluster/members/{leader.name}")
    cluster.members.remove(leader)
    gone(cluster, leader.name)
    survivor.rest.post("/1.0/profiles", {"name": "alive"})
    assert "database-leader" in survivor.members()[survivor.name]["roles"]
    survivor.restart()
    assert "/1.0/profiles/alive" in survivor.rest.get("/1.0/profiles")


@test(180)
def forced_removal_of_dead_member():
    """§18.22: a dead member with instances is refused without force and changes nothing; forced it is gone with its instances; restarted it gets refusals only."""
    cluster = Cluster(3)
    three_voters(cluster)
    first = cluster[1]
    dead = next(one for one in cluster if one is not cluster.leader() and one is not first)
    first.rest.post(f"/1.0/instances?target={dead.name}", {"name": "c1", "source": {"type": "none"}})
    dead.kill()
    if not peer_is_lxd():  # there half of it is done before it fails
        refused(503, f"Cluster member {dead.name} ", first.rest.delete, f"/1.0/cluster/members/{dead.name}")
        assert dead.name in first.members() and len(servers(first)) == 3
    result = first.lxc("cluster", "remove", "--force", dead.name, stdin="no\n", check=False)
    assert result.returncode == 1 and "User aborted delete operation" in result.stderr, result
    first.lxc("cluster", "remove", "--force", "--yes", dead.name)
    cluster.members.remove(dead)
    gone(cluster, dead.name)
    assert first.rest.get("/1.0/instances") == []
    assert dead.name not in fingerprints(first)
    first.rest.post("/1.0/profiles", {"name": "p1"})
    if peer_is_lxd():
        return
    term = first.status()["term"]
    dead.start(wait=False)
    wait_until(lambda: "member.removed" in open(dead.logfile, encoding="utf-8").read(), 30, "what to do in its log")
    assert dead.admin("waitready", "--timeout=2", check=False).returncode == 1
    refused((403, 503), "", dead.rest.get, "/1.0/cluster/members")
    for number in range(5):
        first.rest.post("/1.0/profiles", {"name": f"q{number}"})
    assert sorted(first.members()) == sorted(one.name for one in cluster) and first.status()["term"] == term
    # Wiped, it joins like any new server.
    dead.stop()
    shutil.rmtree(dead.dir)
    os.makedirs(dead.dir, mode=0o711)
    dead.start().join(first)
    cluster.members.append(dead)
    cluster.wait_online()
    assert node_ids(first, f"name = '{dead.name}'") == {4}


@test(120)
def forced_removal_of_live_member():
    """A member that is removed by force while it runs is out at once, gets refusals, and the cluster goes on; so does one of the leader."""
    needs_covey("texts of its own")
    cluster = Cluster(3)
    three_voters(cluster)
    leader = cluster.leader()
    victim = next(one for one in cluster if one is not leader)
    victim.covey("cluster", "remove", "--force", "--yes", victim.name)
    cluster.members.remove(victim)
    gone(cluster, victim.name)
    refused(403, "not authorized", victim.rest.get, "/1.0/profiles")
    wait_until(lambda: "member.removed" in open(victim.logfile, encoding="utf-8").read(), 30, "what to do in its log")
    leader.rest.delete(f"/1.0/cluster/members/{leader.name}?force=1")
    cluster.members.remove(leader)
    assert sorted(cluster[1].members()) == [cluster[1].name]
    cluster[1].rest.post("/1.0/profiles", {"name": "alive"})


@test(120)
def images_are_kept():
    """An image that only the leaver holds is copied first; with one copy wanted it is refused and stays."""
    cluster = Cluster(2)
    first, second = cluster
    first.rest.patch("/1.0", {"config": {"cluster.images_minimal_replica": "1"}})
    image = cluster.import_image("bb", second)
    assert node_ids(first, "id IN (SELECT node_id FROM images_nodes)") == {2}
    refused((400, 500), f"Node still has the following images: {image}", first.rest.delete, "/1.0/cluster/members/node2")
    first.rest.patch("/1.0", {"config": {"cluster.images_minimal_replica": "3"}})
    first.rest.delete("/1.0/cluster/members/node2")
    assert first.rest.get("/1.0/images") == [f"/1.0/images/{image}"]
    assert os.path.exists(os.path.join(first.dir, "images", image))
    standalone(second)
    if not peer_is_lxd():
        assert os.listdir(os.path.join(second.dir, "images")) == []


@test(150)
def networks_are_given_up():
    """A member that leaves removes its part of managed networks; the others keep theirs. Cut off, it cannot be removed cleanly and nothing changes."""
    cluster = NetworkCluster(3)
    three_voters(cluster)
    first = cluster[1]
    for member in cluster:
        first.rest.post(f"/1.0/networks?target={member.name}", {"name": "br0", "type": "bridge"})
    first.rest.post("/1.0/networks", {"name": "br0", "type": "bridge", "config": {"ipv4.address": "10.88.0.1/24", "ipv6.address": "none"}})
    leaver = next(one for one in cluster if one is not cluster.leader() and one is not first)

    def bridge(member):
        return member.run(["ip", "link", "show", "br0"], check=False).returncode == 0
    assert all(bridge(member) for member in cluster)
    if not peer_is_lxd():
        cluster.cut(leaver)
        refused(503, f"Cluster member {leaver.name} ", first.rest.delete, f"/1.0/cluster/members/{leaver.name}", timeout=60)
        assert leaver.name in first.members() and len(servers(first)) == 3
        cluster.heal()
    wait_until(lambda: first.rest.delete(f"/1.0/cluster/members/{leaver.name}") is not None, 30, "its removal")
    cluster.members.remove(leaver)
    gone(cluster, leaver.name)
    standalone(leaver)
    assert not bridge(leaver) and bridge(first)
    assert first.rest.get("/1.0/networks/br0")["locations"] == [one.name for one in cluster]


@test(120)
def disable_rules():
    """PUT /1.0/cluster with enabled=false: refused on a member of two, on a standalone server and with a name; done on a cluster of one."""
    needs_covey("it wipes members of larger clusters there")
    cluster = Cluster(2)
    first, second = cluster
    refused(400, "member of a cluster of 2", second.rest.put, "/1.0/cluster", {"enabled": False})
    refused(400, "ServerName must be empty when disabling clustering", second.rest.put, "/1.0/cluster", {"enabled": False, "server_name": "x"})
    first.rest.delete("/1.0/cluster/members/node2")
    standalone(second)
    refused(400, "This server is not clustered", second.rest.put, "/1.0/cluster", {"enabled": False})
    pid = pid_of(first)
    stream = first.events("lifecycle")
    answer = first.rest.request("PUT", "/1.0/cluster", {"enabled": False})
    assert answer.code == 200 and answer.json["type"] == "sync" and answer.json["metadata"] == {}, answer.json
    stream.wait_for(lambda one: one["metadata"]["action"] == "cluster-disabled", 10)
    standalone(first, pid)
    first.bootstrap(pool=False)
    assert first.rest.get("/1.0/cluster")["enabled"]


@test(120)
def farewell_is_repeated():
    """A member that missed its farewell, because the leader died after the decision, gets it from the next leader and becomes standalone in the same process."""
    needs_covey("there nobody tells it any more")
    cluster = Cluster(3)
    three_voters(cluster)
    first = cluster.leader()
    victim = next(one for one in cluster if one is not first)
    pid, number = pid_of(victim), next(iter(node_ids(first, f"name = '{victim.name}'")))
    uuid = next(line.strip("| ") for line in first.admin("sql", "global", "SELECT uuid FROM cluster").stdout.splitlines() if line.count("-") == 4)
    mine = fingerprints(first)[victim.name]
    # The state in which that leader leaves things: out by the decision, and a farewell owed. Force does the first half, a row is the second.
    first.rest.delete(f"/1.0/cluster/members/{victim.name}?force=1")
    cluster.members.remove(victim)
    request = bytes([8, number, 18, len(uuid)]) + uuid.encode()  # covey.internal.v1.LeaveRequest
    first.admin("sql", "global", "INSERT INTO departures (node_id, name, address, fingerprint, removed_at, request) VALUES "
                f"({number}, '{victim.name}', '{victim.address}', '{mine}', {time.time_ns()}, x'{request.hex()}')")
    refused((403, 503), "", victim.rest.get, "/1.0/profiles")
    first.restart()
    standalone(victim, pid)
    wait_until(lambda: "| 0" in first.admin("sql", "global", "SELECT count(*) FROM departures").stdout, 30, "no farewell owed")
    victim.join(first)
    cluster.members.append(victim)
    cluster.wait_online()


@test(120)
def member_without_raft_entry_returns():
    """A member that lost its Raft entry is added again as a spare by the leader's next round, gets its role back and keeps answering (spec/cluster.md 5.6)."""
    needs_covey("its own command")
    cluster = Cluster(3)
    three_voters(cluster)
    leader = cluster.leader()
    victim = next(one for one in cluster if one is not leader)
    number = next(iter(node_ids(leader, f"name = '{victim.name}'")))
    leader.admin("cluster", "remove-raft-node", "-q", victim.address)
    wait_until(lambda: f"roles.add member={number}" in open(leader.logfile, encoding="utf-8").read(), 30, "added again")
    three_voters(cluster)
    victim.rest.post("/1.0/profiles", {"name": "alive"})
    cluster.wait_online()
    cluster.assert_equal_state()


class Writer(threading.Thread):
    """Makes profiles through one member after another; remembers what was acknowledged."""

    def __init__(self, members):
        super().__init__(daemon=True)
        self.members, self.done, self.acknowledged, self.errors = list(members), False, [], []

    def run(self):
        number = 0
        while not self.done:
            name = f"w{number}"
            number += 1
            try:
                self.members[number % len(self.members)].rest.post("/1.0/profiles", {"name": name})
                self.acknowledged.append(name)
            except (OSError, RestError, ValueError) as error:
                self.errors.append(str(error))

    def finish(self):
        self.done = True
        self.join(60)


@test(180)
def removal_while_writing():
    """No acknowledged write is lost while members, the leader among them, are removed and join again."""
    needs_covey("the leader cannot be removed safely there")
    cluster = Cluster(4)
    for turn in range(3):
        leader = cluster.leader()
        victim = leader if turn != 1 else next(one for one in cluster if one is not leader)
        rest = [one for one in cluster if one is not victim]
        writer = Writer(rest)
        writer.start()
        time.sleep(0.3)
        rest[turn % len(rest)].rest.delete(f"/1.0/cluster/members/{victim.name}")
        time.sleep(0.3)
        writer.finish()
        assert len(writer.acknowledged) > 20 and not writer.errors, (len(writer.acknowledged), writer.errors[:3])
        for member in rest:
            have = set(member.rest.get("/1.0/profiles"))
            lost = [name for name in writer.acknowledged if f"/1.0/profiles/{name}" not in have]
            assert not lost, f"{member.name} lost {lost[:5]}"
        for name in writer.acknowledged:
            rest[0].rest.delete(f"/1.0/profiles/{name}")
        standalone(victim)
        victim.join(rest[0])
        cluster.wait_online()
    cluster.assert_equal_state()


def raft_servers(cluster, asked):
    leader = cluster.roles(asked[0])[""]
    return set(servers(next(one for one in asked if one.name == leader))) if leader in [one.name for one in asked] else None


def settled(cluster, victim):
    """'in' or 'out' when everybody agrees: the cluster's lists, Raft's, the member itself; None while not."""
    rest = [one for one in cluster.running() if one is not victim]
    lists = [set(one.members()) for one in rest]
    if any(one != lists[0] for one in lists) or raft_servers(cluster, rest) != node_ids(rest[0]):
        return None
    info = victim.rest.get("/1.0/cluster")
    if victim.name in lists[0]:
        return "in" if info["enabled"] and all(one.members()[victim.name]["status"] == "Online" for one in rest) else None
    return "out" if not info["enabled"] and victim.rest.get("/1.0/storage-pools") == [] else None


@test(300)
def killed_during_removal():
    """The leader, or the member that goes, is killed in the middle of a removal: afterwards the member is fully in or fully out, and can be removed or join."""
    needs_covey("a removal that dies half-way leaves residue there")
    seed = int(os.environ.get("COVEY_SEED", random.randrange(1 << 30)))
    print(f"COVEY_SEED={seed}")
    chance = random.Random(seed)
    cluster = Cluster(4, config={"cluster.offline_threshold": "11"})
    for number in range(int(os.environ.get("COVEY_ROUNDS", "6"))):
        three_voters(cluster)
        leader = cluster.leader()
        leaver = chance.choice([one for one in cluster if one is not leader] + [leader])
        asked = chance.choice([one for one in cluster if one not in (leader, leaver)])
        killed = chance.choice([leader, leaver])
        said = []

        def remove():
            try:
                asked.rest.delete(f"/1.0/cluster/members/{leaver.name}", timeout=60)
                said.append("done")
            except (OSError, RestError, ValueError) as error:
                said.append(str(error))
        thread = threading.Thread(target=remove, daemon=True)
        thread.start()
        delay = chance.random() ** 2 * 0.2  # most of them within the short time that a removal takes
        time.sleep(delay)
        killed.kill()
        thread.join(90)
        assert said, "the request hangs"
        killed.start(wait=False)
        print(f"round {number}: removing {leaver.name} (leader {leader.name}), killed {killed.name} after {delay:.2f} s: {said[0]}")
        outcome = wait_until(lambda: settled(cluster, leaver), 60, f"in or out (round {number})")
        print(f"  {outcome}")
        assert said[0] != "done" or outcome == "out", "acknowledged, but still in"
        killed.wait_ready()
        if outcome == "in":
            asked.rest.delete(f"/1.0/cluster/members/{leaver.name}")
        standalone(leaver)
        leaver.join(asked)
        cluster.wait_online()
    cluster.assert_equal_state()


main()
