"""Without a target an instance lands on the member with the fewest; targets, manual members and unknown ones are respected."""
import time

from harness import Cluster, main, peer_is_lxd, refused, test


@test(180)
def placement_spreads():
    cluster = Cluster(3)
    cluster.import_image()

    def create(name, member, target=None):
        body = {"name": name, "source": {"type": "image", "alias": "busybox"}}
        path = "/1.0/instances" + (f"?target={target}" if target else "")
        member.rest.post(path, body)
        return cluster[1].rest.get(f"/1.0/instances/{name}")["location"]

    def spread():
        counts = {member.name: 0 for member in cluster}
        for instance in cluster[2].rest.get("/1.0/instances?recursion=1"):
            counts[instance["location"]] += 1
        return counts

    for number in range(6):  # always through the same member: it must not keep them all
        create(f"c{number}", cluster[1])
    assert spread() == {"node1": 2, "node2": 2, "node3": 2}, spread()
    for instance in cluster[1].rest.get("/1.0/instances?recursion=1"):
        if instance["location"] == "node2":
            cluster[3].rest.delete(f"/1.0/instances/{instance['name']}")
    for number in range(6, 8):
        if peer_is_lxd():
            time.sleep(6)  # it counts creations that ended within five seconds, too
        assert create(f"c{number}", cluster[3]) == "node2"
    # Targets, also through a member that is not it.
    assert create("t1", cluster[1], "node3") == "node3"
    assert create("t2", cluster[2], "node3") == "node3"
    refused(404, "Cluster member not found", create, "t3", cluster[1], "nobody")
    if peer_is_lxd():
        time.sleep(6)
    # node1 and node2 have two, node3 four; manual node1 takes nothing by itself.
    record = cluster[1].members()["node1"]
    fields = {key: record[key] for key in ("roles", "failure_domain", "description", "config", "groups")}
    cluster[1].rest.put("/1.0/cluster/members/node1", fields | {"config": {"scheduler.instance": "manual"}})
    assert create("m1", cluster[1]) == "node2"
    assert create("m2", cluster[1]) == "node2"
    assert create("m3", cluster[1], "node1") == "node1"
    assert spread() == {"node1": 3, "node2": 4, "node3": 4}, spread()
    refused((400, 409, 500), "already", create, "m1", cluster[2])
    assert spread() == {"node1": 3, "node2": 4, "node3": 4}, spread()
    for instance in cluster[1].rest.get("/1.0/instances?recursion=1"):
        cluster[2].rest.delete(f"/1.0/instances/{instance['name']}")
    assert cluster[3].rest.get("/1.0/instances") == []


main()
