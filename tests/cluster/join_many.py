"""Joins at the same time, through any member, and as other clients do them."""
import os
import threading
import time

from harness import Cluster, Member, main, needs_covey, peer_is_lxd, refused, test, wait_until

MANY = int(os.environ.get("COVEY_JOINERS", "20"))
BATCH = 5  # daemons started at a time


def at_once(joins):
    """Runs all; returns the texts of those that failed."""
    failed = []

    def run(join):
        result = join()
        if result.returncode:
            failed.append(result.stderr.strip() or str(result.returncode))

    threads = [threading.Thread(target=run, args=(join,)) for join in joins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert not any(thread.is_alive() for thread in threads), "a join hangs"
    return failed


def started(cluster, count):
    """New members beside the cluster's, not joined yet."""
    joiners = []
    for number in range(count):
        index = len(cluster.members) + 1 + number
        joiners.append(Member(index, f"{cluster.prefix}.{index}"))
        if len(joiners) % BATCH == 0 or number == count - 1:
            for one in joiners[-BATCH:]:
                if not one.alive():
                    one.start(wait=False)
            for one in joiners[-BATCH:]:
                one.wait_ready()
    return joiners


@test(300)
def many_join_at_once():
    """Twenty servers join one member at the same moment; all succeed."""
    needs_covey("it needs minutes there")
    cluster = Cluster(1)
    joiners = started(cluster, MANY)
    documents = {one: one.join_document(cluster[1], "token") for one in joiners}
    begin = time.monotonic()
    failed = at_once([lambda one=one: one.preseed(documents[one], check=False) for one in joiners])
    print(f"{MANY} joins in {time.monotonic() - begin:.1f} s")
    assert not failed, failed
    cluster.members += joiners
    cluster.wait_online(60)
    told = wait_until(lambda: (lambda roles: roles if list(roles.values()).count("voter") == 3 and
                               list(roles.values()).count("stand-by") == 2 else None)(cluster.roles()), 60, "three voters, two stand-bys")
    assert len(told) == MANY + 2, told
    cluster.assert_equal_state()


@test(240)
def parallel_joins_while_the_leader_dies():
    """Five servers join through different members; the leader dies meanwhile; all five are members."""
    needs_covey("there a join that loses its leader fails")
    cluster = Cluster(3)
    joiners = started(cluster, 5)
    leader = cluster.leader()
    through = [one for one in cluster if one is not leader] + [leader]
    documents = {one: one.join_document(through[number % 3], "token") for number, one in enumerate(joiners)}
    threading.Timer(0.15, leader.kill).start()
    failed = at_once([lambda one=one: one.preseed(documents[one], check=False) for one in joiners])
    assert not failed, failed
    assert not leader.alive()
    names = {one.name for one in list(cluster) + joiners}
    wait_until(lambda: all(set(one.members()) == names for one in joiners + through[:2]), 30, "all members everywhere")
    leader.start()
    cluster.members += joiners
    cluster.wait_online(60)
    cluster.assert_equal_state()


@test(90)
def join_by_raw_request():
    """§18.19: PUT /1.0/cluster and waiting for the operation; the member is fully operational, and its own events told so in order."""
    cluster = Cluster(1)
    joiner = Member(2, f"{cluster.prefix}.2").start()
    stream = joiner.events("lifecycle,operation")
    body = joiner.join_document(cluster[1], "password")["cluster"]
    operation = joiner.rest.put("/1.0/cluster", body, wait=False)
    assert operation["description"] == "Joining cluster" and operation["class"] == "task", operation
    assert operation["resources"] == {"cluster": None} and operation["may_cancel"] is False, operation
    done = joiner.rest.wait(f"/1.0/operations/{operation['id']}", 60)
    assert done["status_code"] == 200, done
    cluster.members.append(joiner)
    for member in cluster:
        wait_until(lambda: member.members()["node2"]["message"] == "Fully operational", 20, f"the new member as {member.name} tells")

    def told(event):
        data = event["metadata"]
        return data["action"] if event["type"] == "lifecycle" else data["status_code"]

    wait_until(lambda: 200 in [told(one) for one in stream.matching(lambda _: True)], 20, "the end of the operation as an event")
    mine = [one for one in stream.matching(lambda one: one["type"] == "lifecycle" or one["metadata"]["description"] == "Joining cluster")]
    wanted = [105, 103, "storage-pool-created", "project-updated", "cluster-member-added", 200]
    assert [told(one) for one in mine if told(one) in wanted] == wanted, [told(one) for one in mine]
    added = next(one for one in mine if told(one) == "cluster-member-added")
    assert added["location"] == "node2" and added["metadata"]["source"] == "/1.0/cluster/members/node2", added
    # Without what is needed, or again: refused at once.
    refused(400, "This server is already clustered", joiner.rest.put, "/1.0/cluster", body)
    other = Member(3, f"{cluster.prefix}.3").start()
    body |= {"server_name": "node3", "server_address": other.address}
    refused(400, "No target cluster member certificate provided", other.rest.put, "/1.0/cluster", body | {"cluster_certificate": ""})
    refused(400, "No server address provided for this member", other.rest.put, "/1.0/cluster", body | {"server_address": ""})
    if not peer_is_lxd():
        refused(400, "Wildcard addresses aren't allowed", other.rest.put, "/1.0/cluster", body | {"server_address": "0.0.0.0:8443"})
    assert other.rest.get("/1.0/cluster")["enabled"] is False


@test(120)
def join_with_running_instances():
    """Nothing is orphaned: a server whose instances run does not join; stopped ones are dropped with everything else of its own."""
    needs_covey("it joins and orphans them there")
    from harness import busybox_image
    cluster = Cluster(1)
    joiner = Member(2, f"{cluster.prefix}.2").start()
    joiner.preseed({"storage_pools": [{"name": "own", "driver": "dir"}],
                    "profiles": [{"name": "default", "devices": {"root": {"path": "/", "pool": "own", "type": "disk"}}}]})
    joiner.lxc("launch", joiner.lxc("image", "import", busybox_image(), "--alias", "bb") and "bb", "c1")
    body = joiner.join_document(cluster[1], "password")["cluster"]
    refused(400, "Cannot join a cluster while instances are running", joiner.rest.put, "/1.0/cluster", body)
    assert joiner.rest.get("/1.0/instances/c1")["status"] == "Running"
    joiner.lxc("stop", "c1", "--force")
    joiner.rest.put("/1.0/cluster", body)
    cluster.members.append(joiner)
    cluster.wait_online()
    assert joiner.rest.get("/1.0/instances") == [] and joiner.rest.get("/1.0/storage-pools") == ["/1.0/storage-pools/default"]


if __name__ == "__main__":
    main()
