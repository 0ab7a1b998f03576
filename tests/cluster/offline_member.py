"""What works and what is refused while one member is down: before and after the cluster calls it offline."""
import re
import time

from harness import Cluster, RestError, certificate_body, client_certificate, main, needs_covey, refused, test, wait_until

THRESHOLD = "11"
TRANSPORT_WORDS = re.compile(r"all addresses|ipv[46]:|Socket closed|GOAWAY|keepalive|errno|subchannel", re.IGNORECASE)


def no_transport_words(error):
    """Errors are for people who know members, not gRPC's channels."""
    assert not TRANSPORT_WORDS.search(error.text), error.text
    return error


def three_with_a_dead_one():
    """node3 dies with an instance; c1 runs on node1, the image is on all."""
    needs_covey("texts and codes of our own")
    cluster = Cluster(3, config={"cluster.offline_threshold": THRESHOLD})
    cluster.import_image()
    first = cluster[1]
    first.lxc("launch", "busybox", "c1", "--target", "node1")
    first.lxc("launch", "busybox", "c3", "--target", "node3")
    first.lxc("init", "busybox", "c4", "--target", "node3")
    for target in (*(f"?target={member.name}" for member in cluster), ""):
        first.rest.post(f"/1.0/storage-pools{target}", {"name": "there", "driver": "dir"})
    cluster[3].kill()
    wait_until(lambda: cluster.leader(), 20, "a leader")
    return cluster


def try_its_own(cluster):
    """Everything that node3 itself would have to do: refused with its name, within seconds; asked of both others in turn."""
    for number, (verb, *arguments) in enumerate((("put", "/1.0/instances/c3/state", {"action": "stop", "force": True}), ("delete", "/1.0/instances/c4"),
                                                 ("get", "/1.0?target=node3"), ("get", "/1.0/storage-pools/default/resources?target=node3"),
                                                 ("post", "/1.0/instances/c3/exec", {"command": ["true"], "wait-for-websocket": False}),
                                                 ("get", "/1.0?target=node3"), ("delete", "/1.0/instances/c4"))):
        started = time.monotonic()
        try:
            getattr(cluster[1 + number % 2].rest, verb)(*arguments)
            raise AssertionError(f"accepted: {arguments}")
        except RestError as error:
            no_transport_words(error)
            assert error.code in (400, 500, 503) and ("node3" in error.text or "offline" in error.text), (arguments, error)
        assert time.monotonic() - started < 15, arguments


@test(120)
def dead_but_not_yet_offline():
    """§18.29 and before the threshold: calls to the dead member fail with its name, everything else goes on at once; a dead leader is replaced
    and a request on another voter succeeds within ten seconds."""
    cluster = three_with_a_dead_one()
    started = time.monotonic()
    cluster[1].rest.post("/1.0/profiles", {"name": "at-once"})
    assert time.monotonic() - started < 10
    try_its_own(cluster)
    cluster[3].start()
    cluster.wait_online()
    leader = cluster.leader()
    other = next(member for member in cluster if member is not leader)
    leader.kill()
    started = time.monotonic()
    other.rest.post("/1.0/profiles", {"name": "new-leader"}, timeout=30)
    seconds = time.monotonic() - started
    print(f"request answered {seconds:.1f} s after the leader's death")
    assert seconds < 10, seconds
    roles = cluster.roles(other)
    assert roles[""] != leader.name, roles
    wait_until(lambda: other.members()[leader.name]["status"] == "Offline", 40, "the old leader is Offline")
    leader.start()
    cluster.wait_online()


@test(120)
def offline_member_row_by_row():
    """§18.31: the rows of the table with one member offline."""
    cluster = three_with_a_dead_one()
    first, second, third = cluster
    leader = cluster.leader()
    wait_until(lambda: leader.members()["node3"]["status"] == "Offline", 40, "Offline")
    for member in (first, second):
        rest = member.rest
        name = member.name
        # Works: everything that only the database holds.
        rest.patch("/1.0", {"config": {"user.row": name}})
        rest.post("/1.0/profiles", {"name": f"p-{name}"})
        rest.patch(f"/1.0/profiles/p-{name}", {"config": {"user.x": "1"}})
        rest.delete(f"/1.0/profiles/p-{name}")
        rest.patch("/1.0/instances/c1", {"config": {"user.row": name}})
        base = client_certificate(f"client-{name}")
        rest.post("/1.0/certificates", {"name": f"laptop-{name}", "type": "client", "certificate": certificate_body(base)})
        fingerprint = next(one["fingerprint"] for one in rest.get("/1.0/certificates?recursion=1") if one["name"] == f"laptop-{name}")
        rest.delete(f"/1.0/certificates/{fingerprint}")
        token = rest.post("/1.0/cluster/members", {"server_name": f"new-{name}"}, wait=False)["metadata"]
        assert token["addresses"] == [first.address, second.address], token
        # Storage: defining is a row, making it takes everybody; what is missing is said first.
        rest.post("/1.0/storage-pools?target=node3", {"name": f"s-{name}", "driver": "dir"})
        refused(400, "Pool not defined on nodes: node1, node2", rest.post, "/1.0/storage-pools", {"name": f"s-{name}", "driver": "dir"})
        for one in ("node1", "node2"):
            rest.post(f"/1.0/storage-pools?target={one}", {"name": f"s-{name}", "driver": "dir"})
        error = refused((500, 503), f"peer node {third.address} is down", rest.post, "/1.0/storage-pools", {"name": f"s-{name}", "driver": "dir"})
        no_transport_words(error)
        # Networks: the same.
        rest.post("/1.0/networks?target=node3", {"name": f"br{name}", "type": "bridge"})
        refused(400, "Network not defined on nodes: node1, node2", rest.post, "/1.0/networks", {"name": f"br{name}", "type": "bridge"})
        for one in ("node1", "node2"):
            rest.post(f"/1.0/networks?target={one}", {"name": f"br{name}", "type": "bridge"})
        error = refused((500, 503), f"peer node {third.address} is down", rest.post, "/1.0/networks", {"name": f"br{name}", "type": "bridge"})
        no_transport_words(error)
        # What is there already can be neither changed nor removed; a target that is up can be changed.
        for verb, path, *body in (("patch", "/1.0/storage-pools/there", {"config": {"rsync.bwlimit": "1MB"}}), ("delete", "/1.0/storage-pools/there")):
            error = refused((500, 503), f"peer node {third.address} is down", getattr(rest, verb), path, *body)
            no_transport_words(error)
        rest.patch("/1.0/storage-pools/there?target=node1", {"config": {"size": "1GB"}})
        assert rest.get("/1.0/storage-pools/there")["config"] == {}
        image = rest.get("/1.0/images")[0]
        error = refused((400, 503), f"peer node {third.address} is down", rest.delete, image)  # 400: of the operation
        no_transport_words(error)
        # Placement goes elsewhere; its own instances are shown as they are known to be: not.
        seen = {one["name"]: one["status"] for one in rest.get("/1.0/instances?recursion=1")}
        assert seen["c1"] == "Running" and seen["c3"] == seen["c4"] == "Error", seen
        rows = dict(line.split(",")[:2] for line in member.lxc("list", "--format", "csv", "-c", "ns").stdout.splitlines())
        assert rows["c1"] == "RUNNING" and rows["c3"] == rows["c4"] == "ERROR", rows
        refused(404, "Cluster member not found", rest.get, "/1.0?target=nobody")
        error = refused((400, 500, 503), "", rest.post, "/1.0/instances?target=node3",
                        {"name": f"t-{name}", "source": {"type": "image", "alias": "busybox"}})
        no_transport_words(error)
        for number in range(2):
            member.lxc("init", "busybox", f"auto-{name}-{number}")
    assert {one["location"] for one in first.rest.get("/1.0/instances?recursion=1") if one["name"].startswith("auto")} == {"node1", "node2"}
    try_its_own(cluster)
    added = cluster.add()
    added.join(first)
    assert set(second.members()) == {"node1", "node2", "node3", "node4"}
    # It comes back: nothing has to be done, and what was refused can be done.
    third.start()
    cluster.wait_online()
    wait_until(lambda: first.rest.get("/1.0/instances/c3")["status"] == "Running", 20, "c3 still runs")
    third.rest.put("/1.0/instances/c3/state", {"action": "stop", "force": True})
    first.lxc("delete", "-f", "c4", "c3", "c1")
    cluster.assert_equal_state()


@test(90)
def dead_member_without_vote_blocks_nothing():
    """A dead member that holds neither vote nor image nor instance delays and blocks only what it must take part in."""
    cluster = Cluster(4, config={"cluster.offline_threshold": THRESHOLD, "cluster.images_minimal_replica": "1"})
    spare = next(member for member in cluster if cluster.roles()[member.name] != "voter")
    others = [member for member in cluster if member is not spare]
    spare.kill()
    started = time.monotonic()
    for number, member in enumerate(others):
        member.rest.post("/1.0/profiles", {"name": f"p{number}"})
        member.rest.patch("/1.0", {"config": {"user.n": str(number)}})
        member.rest.delete(f"/1.0/profiles/p{number}")
    fingerprint = cluster.import_image(member=others[0])
    others[1].lxc("launch", "busybox", "c1", "--target", others[2].name)
    others[1].lxc("delete", "-f", "c1")
    others[0].rest.delete(f"/1.0/images/{fingerprint}")
    seconds = time.monotonic() - started
    print(f"all done in {seconds:.1f} s")
    assert seconds < 30, seconds
    spare.start()
    cluster.wait_online()


main()
