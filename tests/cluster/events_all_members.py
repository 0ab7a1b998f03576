"""An event of any member reaches a stream on every member exactly once, and operations can be followed from anywhere."""
from harness import Cluster, main, needs_covey, test, wait_until


def lifecycle(action, source):
    return lambda event: event["type"] == "lifecycle" and event["metadata"]["action"] == action and \
        event["metadata"]["source"].split("?")[0] == source


@test(120)
def events_all_members():
    cluster = Cluster(3)
    # LXD's members connect to each other's streams with the heartbeat only, so ask until an event of each has passed everywhere.
    streams = {member.name: member.events() for member in cluster}
    attempt = 0

    def connected():
        nonlocal attempt
        attempt += 1
        for member in cluster:
            name = f"warm-{attempt}-{member.name}"
            member.rest.post("/1.0/profiles", {"name": name})
        import time
        time.sleep(0.3)
        return all(stream.matching(lifecycle("profile-created", f"/1.0/profiles/warm-{attempt}-{member.name}"))
                   for member in cluster for stream in streams.values())
    wait_until(connected, 30, "all streams connected")

    for member in cluster:
        name = f"p-{member.name}"
        member.rest.post("/1.0/profiles", {"name": name})
        member.rest.delete(f"/1.0/profiles/{name}")
    for owner in cluster:
        for told, stream in streams.items():
            for action in ("profile-created", "profile-deleted"):
                match = lifecycle(action, f"/1.0/profiles/p-{owner.name}")
                event = stream.wait_for(match, 10, f"{action} of {owner.name} on {told}")
                assert event["metadata"]["requestor"]["protocol"] == "unix", event
                assert event["location"], event
    import time
    time.sleep(1)  # for second copies to arrive
    for owner in cluster:
        for told, stream in streams.items():
            copies = stream.matching(lifecycle("profile-created", f"/1.0/profiles/p-{owner.name}"))
            assert len(copies) == 1, f"{len(copies)} copies on {told}: {copies}"

    # An operation on node3 asked through node1 is seen by all, its end included, and can be read everywhere while it runs.
    cluster.import_image()
    body = {"name": "c1", "source": {"type": "image", "alias": "busybox"}}
    envelope = cluster[1].rest.request("POST", "/1.0/instances?target=node3", body).json
    assert envelope["type"] == "async", envelope
    identity = envelope["metadata"]["id"]
    for member in cluster:
        assert member.rest.get(f"/1.0/operations/{identity}")["id"] == identity
    for told, stream in streams.items():
        done = stream.wait_for(lambda event: event["type"] == "operation" and event["metadata"]["id"] == identity and
                               event["metadata"]["status_code"] >= 200, 30, f"the end of the operation on {told}")
        assert done["metadata"]["status"] == "Success" and done["location"] == "node3", done
        stream.wait_for(lifecycle("instance-created", "/1.0/instances/c1"), 10, f"instance-created on {told}")
    cluster[2].rest.delete("/1.0/instances/c1")


@test(120)
def events_hub_modes():
    """V1: each event once in mesh, hub and mesh-again mode, and `server_event_mode` follows the roles at once; V2: with both hubs away all goes on."""
    needs_covey("LXD drops and repeats events while the mode changes")
    cluster = Cluster(5)
    streams = {number: cluster[number].events("lifecycle") for number in (1, 3, 5)}

    def modes():
        return [member.rest.get("/1.0")["environment"]["server_event_mode"] for member in cluster.running()]

    def once(name):
        for member in cluster.running():
            member.rest.post("/1.0/profiles", {"name": f"{name}-{member.index}"})
        for member in cluster.running():
            match = lifecycle("profile-created", f"/1.0/profiles/{name}-{member.index}")
            for number, stream in streams.items():
                if cluster[number].alive():
                    stream.wait_for(match, 10, f"{name} of {member.name} on node{number}")
        for member in cluster.running():
            for number, stream in streams.items():
                copies = stream.matching(lifecycle("profile-created", f"/1.0/profiles/{name}-{member.index}"))
                assert len(copies) <= 1, copies

    assert modes() == ["full-mesh"] * 5
    once("mesh")
    cluster[2].covey("cluster", "role", "add", "node4", "event-hub")
    assert modes() == ["full-mesh"] * 5  # one is none
    cluster[2].covey("cluster", "role", "add", "node2", "event-hub")
    assert modes() == ["hub-client", "hub-server", "hub-client", "hub-server", "hub-client"]
    once("hub")
    for number in (2, 4):
        cluster[number].stop()
    assert modes() == ["hub-client"] * 3  # hubs that are away count
    once("alone")
    for number in (2, 4):
        cluster[number].start()
    cluster.wait_online()
    for name in ("node2", "node4"):
        cluster[1].covey("cluster", "role", "remove", name, "event-hub")
    assert modes() == ["full-mesh"] * 5
    once("again")


main()
