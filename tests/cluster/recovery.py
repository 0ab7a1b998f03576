"""Loss of quorum: what still works without a majority, recovery of one member, members that come back, stale Raft entries."""
import os
import sqlite3
import time

from harness import Cluster, main, needs_covey, peer_is_lxd, refused, test, wait_until

FAST = {"cluster.offline_threshold": "11"}


def local_rows(member, query):
    """Rows of the local database of a stopped member."""
    database = sqlite3.connect(f"file:{member.dir}/database/local.db?mode=ro", uri=True)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


@test(120)
def quorum_lost_errors_and_shutdown():
    """§18.32: with two of three members down, listing fails in bounded time and the third still shuts down."""
    cluster = Cluster(3, config=FAST)
    cluster[2].kill()
    cluster[3].kill()

    def fails():
        result = cluster[1].lxc("cluster", "list", check=False, seconds=60)
        return result.returncode != 0 and result
    wait_until(fails, 30, "an error without a majority", every=0.5)
    assert cluster[1].rest.get("/1.0")["environment"]["server_clustered"] is True
    cluster[1].expected_down = True
    cluster[1].admin("shutdown", "--timeout=40")
    wait_until(lambda: not cluster[1].alive(), 10, "the daemon's end")


def recovered():
    """Three voters, all killed, the first of them recovered and started; a profile "before" is from before."""
    cluster = Cluster(3, config=FAST)
    cluster[1].rest.post("/1.0/profiles", {"name": "before"})
    wait_until(lambda: cluster[1].admin("cluster", "list-database").stdout.count(":8443") == 3, 30, "three voters")
    for member in cluster:
        member.kill()
    cluster[1].admin("cluster", "recover-from-quorum-loss", "-q")
    cluster[1].start()
    return cluster


def voters_again(cluster):
    wait_until(lambda: sorted(v for k, v in cluster.roles(cluster[1]).items() if k) == ["voter"] * 3, 60, "three voters again")
    cluster.assert_equal_state()


@test(180)
def recover_from_quorum_loss():
    """§18.33: refused while running; all stopped, the recovered member has everything and is the only one in list-database; the lost ones are removed by force, one of them that starts gets refusals only."""
    cluster = Cluster(3, config=FAST)
    cluster[1].rest.post("/1.0/profiles", {"name": "before"})
    result = cluster[1].admin("cluster", "recover-from-quorum-loss", "-q", check=False)
    assert result.returncode == 1 and "The LXD daemon is running, please stop it first." in result.stderr, result
    wait_until(lambda: cluster[1].admin("cluster", "list-database").stdout.count(":8443") == 3, 30, "three voters")
    for member in cluster:
        member.stop()
    if not peer_is_lxd():
        result = cluster[1].admin("cluster", "recover-from-quorum-loss", stdin="no\n", check=False)
        assert result.returncode == 1 and "Recover operation aborted" in result.stderr, result
        assert "Do you want to proceed? (yes/no): " in result.stdout, result
    cluster[1].admin("cluster", "recover-from-quorum-loss", "-q")
    cluster[1].start()
    assert "before" in {one["name"] for one in cluster[1].rest.get("/1.0/profiles?recursion=1")}
    listed = cluster[1].admin("cluster", "list-database").stdout
    assert cluster[1].address in listed and listed.count(":8443") == 1, listed
    assert set(cluster[1].members()) == {"node1", "node2", "node3"}, "members declared lost stay listed"
    for lost in ("node2", "node3"):
        cluster[1].lxc("cluster", "remove", "--force", "--yes", lost)
        assert lost not in cluster[1].members()
    assert set(cluster[1].members()) == {"node1"}
    if peer_is_lxd():
        return
    lost = cluster[2]
    lost.start(wait=False)
    wait_until(lambda: "member.removed" in open(lost.logfile, encoding="utf-8").read(), 45, "what to do in its log")
    assert lost.admin("waitready", "--timeout=2", check=False).returncode == 1
    refused((403, 503), "", lost.rest.get, "/1.0/cluster/members")
    refused((403, 503), "", lost.rest.post, "/1.0/profiles", {"name": "bad"})
    cluster[1].rest.post("/1.0/profiles", {"name": "after"})
    assert set(cluster[1].members()) == {"node1"}
    assert {one["name"] for one in cluster[1].rest.get("/1.0/profiles?recursion=1")} == {"default", "before", "after"}


@test(240)
def lost_members_come_back_as_spares():
    """Members that were declared lost and start again take fresh copies and roles from the recovered one."""
    needs_covey("a returning member's copy is thrown away")
    cluster = recovered()
    cluster[1].rest.post("/1.0/profiles", {"name": "after"})
    # Both former members together would be a majority of what they remember: they must not form the old cluster again.
    cluster[2].start(wait=False)
    cluster[3].start(wait=False)
    cluster.wait_online(60)
    for member in cluster:
        names = {one["name"] for one in member.rest.get("/1.0/profiles?recursion=1")}
        assert {"before", "after"} <= names, (member.name, names)
    assert os.path.isdir(os.path.join(cluster[2].dir, "database", "global.discarded"))
    voters_again(cluster)


@test(240)
def lost_members_wait_for_a_slow_answer():
    """Both former members start while the recovered one does not answer: they ask it again before they form the old cluster beside it."""
    needs_covey("epochs")
    cluster = recovered()
    cluster[1].rest.post("/1.0/profiles", {"name": "after"})
    cluster[1].pause()
    began = [os.path.getsize(member.logfile) for member in cluster]

    def logged(member, text):
        with open(member.logfile, encoding="utf-8") as file:
            file.seek(began[member.index - 1])
            return text in file.read()
    try:
        for member in cluster.members[1:]:
            member.start(wait=False)
        for member in cluster.members[1:]:
            wait_until(lambda: logged(member, "epoch.ask-again"), 30, f"{member.name} asks again", every=0.05)
        time.sleep(3)  # longer than one attempt to connect has: its failure is no refusal
    finally:
        cluster[1].resume()
    for member in cluster.members[1:]:
        wait_until(lambda: logged(member, "epoch.asked "), 30, f"{member.name} has an answer")
        assert logged(member, "epoch.follow "), member.log_tail()
    cluster.wait_online(60)
    for member in cluster:
        assert "after" in {one["name"] for one in member.rest.get("/1.0/profiles?recursion=1")}, member.name
    voters_again(cluster)


@test(240)
def diverged_member_never_votes():
    """A former member with entries that the recovered cluster lacks throws them away, even when it was the leader and holds the longer log."""
    needs_covey("epochs")
    cluster = Cluster(3, config=FAST)
    wait_until(lambda: sorted(v for k, v in cluster.roles().items() if k) == ["voter"] * 3, 30, "three voters before one is lost")
    leader = cluster.leader()
    behind, other = [member for member in cluster if member is not leader]
    behind.kill()
    for number in range(30):
        leader.rest.post("/1.0/profiles", {"name": f"lost{number}"})
    leader.kill()
    other.kill()
    behind.admin("cluster", "recover-from-quorum-loss", "-q")
    behind.start()
    behind.rest.post("/1.0/profiles", {"name": "new"})
    leader.start(wait=False)
    other.start(wait=False)
    cluster.wait_online(60)
    for member in cluster:
        names = {one["name"] for one in member.rest.get("/1.0/profiles?recursion=1")}
        assert "new" in names and not any(name.startswith("lost") for name in names), (member.name, names)
    wait_until(lambda: sorted(v for k, v in cluster.roles(behind).items() if k) == ["voter"] * 3, 60, "three voters again")
    cluster.assert_equal_state()
    behind.kill()  # the majority is now made of those that had thrown their copies away
    wait_until(lambda: "new" in {one["name"] for one in other.rest.get("/1.0/profiles?recursion=1")}, 30, "answers from the others")


@test(120)
def recover_refusals():
    """Standalone servers and members without a copy are told so, and nothing changes."""
    cluster = Cluster(1, formed=False)
    cluster[1].stop()
    result = cluster[1].admin("cluster", "recover-from-quorum-loss", "-q", check=False)
    assert result.returncode == 1 and ("is not clustered" in result.stderr or "no database role" in result.stderr), result
    cluster[1].start()
    result = cluster[1].admin("cluster", "remove-raft-node", check=False)
    assert "Missing required arguments" in result.stderr, result
    result = cluster[1].admin("cluster", "remove-raft-node", "10.1.1.1", stdin="nope\n", check=False)
    assert result.returncode == 1 and "Remove raft node operation aborted" in result.stderr, result
    if not peer_is_lxd():
        result = cluster[1].admin("cluster", "remove-raft-node", "-q", "10.1.1.1", check=False)
        assert result.returncode == 1 and 'No raft node with address "10.1.1.1:8443"' in result.stderr, result


@test(180)
def remove_raft_node():
    """§18.34: the row of a dead member is deleted by SQL; the Raft entry stays until remove-raft-node, asked of a member that does not lead."""
    cluster = Cluster(4, config=FAST)
    leader = cluster.leader()
    voters = [name for name, role in cluster.roles().items() if name and role == "voter"]
    dead = next(member for member in cluster if member.name in voters and member is not leader)
    asked = next(member for member in cluster if member.name in voters and member not in (leader, dead))
    dead.kill()
    leader.admin("sql", "global", f"DELETE FROM nodes WHERE address = '{dead.address}'")
    wait_until(lambda: dead.name not in asked.members(), 20, "the member is not listed")
    assert dead.address in asked.admin("sql", "local", "SELECT * FROM raft_nodes").stdout
    if peer_is_lxd():
        leader.admin("cluster", "remove-raft-node", "-q", dead.host)
    else:
        asked.admin("cluster", "remove-raft-node", "-q", dead.host)
    wait_until(lambda: dead.address not in leader.admin("sql", "local", "SELECT * FROM raft_nodes").stdout, 20, "the Raft entry is gone")
    wait_until(lambda: sorted(v for k, v in cluster.roles(asked).items() if k) == ["voter"] * 3, 60, "three voters again")
    result = leader.admin("cluster", "remove-raft-node", "-q", dead.host, check=False)
    assert result.returncode == 1 and f'No raft node with address "{dead.address}"' in result.stderr, result


@test(120)
def killed_while_recovering():
    """A recovery that was killed after its intention was written is finished by the next start."""
    needs_covey("its own local state")
    cluster = Cluster(3, config=FAST)
    cluster[1].rest.post("/1.0/profiles", {"name": "kept"})
    for member in cluster:
        member.kill()
    database = sqlite3.connect(f"{cluster[1].dir}/database/local.db")
    database.execute("INSERT INTO state (key, value) VALUES ('recovery', '{\"kind\": \"sole\", \"epoch\": 7000000}')")
    database.commit()
    database.close()
    cluster[1].start()
    assert cluster[1].rest.get("/1.0/profiles/kept")["name"] == "kept"
    assert cluster.roles(cluster[1])["node1"] == "voter"
    cluster[1].stop()
    assert local_rows(cluster[1], "SELECT value FROM state WHERE key IN ('recovery', 'epoch')") == [("7000000",)]
    assert [row[0] for row in local_rows(cluster[1], "SELECT address FROM raft_nodes")] == [cluster[1].address]


main()
