"""Warnings: raised at a transition, counted, resolved; clocks that differ; the REST API, our own command line and the stock client."""
import time

from harness import Cluster, main, needs_covey, refused, test, wait_until

THRESHOLD_SECONDS = 10
OFFLINE = "Offline cluster member"
SKEW = "Time skew detected between leader and local"
HOUR = 3600


def warnings(member, kind=None):
    return [one for one in member.rest.get("/1.0/warnings?recursion=1") if kind in (None, one["type"])]


def one_with(member, kind, status, seconds=30):
    """The only warning of a kind, once it has this status."""
    def find():
        found = warnings(member, kind)
        return found[0] if len(found) == 1 and found[0]["status"] == status else None
    return wait_until(find, seconds, f"{kind!r} {status}")


def set_clock(member, seconds):
    """Restarts a daemon with a wall clock that is wrong by so many seconds (0: right)."""
    environment = type(member).environment
    member.environment = lambda: dict(environment(member), COVEY_TEST_CLOCK_OFFSET_S=str(seconds))
    member.restart()


@test(180)
def warnings_offline_member():
    """§6.1: raised when a member goes Offline, counted when it happens again, resolved on its return; an idle cluster writes nothing meanwhile."""
    needs_covey("LXD counts every missed round, and takes no threshold of ten")
    cluster = Cluster(3, config={"cluster.offline_threshold": str(THRESHOLD_SECONDS)})
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    assert warnings(cluster[2]) == []
    victim = cluster[3]
    for count in (1, 2):
        victim.kill()
        raised = one_with(cluster[2], OFFLINE, "new", 3 * THRESHOLD_SECONDS)
        assert raised["count"] == count and raised["severity"] == "low" and raised["location"] == "node3", raised
        assert raised["entity_url"] == "/1.0/cluster/members/node3" and raised["last_message"].startswith("No heartbeat for 1"), raised
        assert raised["first_seen_at"] <= raised["last_seen_at"], raised
        if count == 1:
            time.sleep(7)  # finished operations are removed after five seconds
            before = cluster[1].status(digest=False)["last_index"]
            time.sleep(4)  # the measured span
            assert cluster[1].status(digest=False)["last_index"] == before, "a cluster with a warning wrote"
        victim.start()
        resolved = one_with(cluster[1], OFFLINE, "resolved", 20)
        assert resolved["uuid"] == raised["uuid"] and resolved["count"] == count, resolved
    cluster.assert_equal_state()


@test(150)
def warnings_outlive_the_leader():
    """A member that is Offline stays so under the next leader, and is not counted again; it is resolved under that leader, too."""
    needs_covey("LXD has a warning for each leader")
    cluster = Cluster(4, config={"cluster.offline_threshold": str(THRESHOLD_SECONDS)})
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    leader = cluster.leader()
    victim = next(member for member in cluster if member is not leader)
    asked = next(member for member in cluster if member not in (leader, victim))
    victim.kill()
    raised = one_with(asked, OFFLINE, "new", 3 * THRESHOLD_SECONDS)
    message = asked.members()[victim.name]["message"]
    leader.stop()
    assert cluster.leader() is not leader
    for _ in range(10):
        seen = asked.members()[victim.name]
        # The same last sign of life, and a longer silence
        assert seen["status"] == "Offline" and seen["message"].split("(")[1][:19] == message.split("(")[1][:19], (seen, message)
        time.sleep(0.2)
    leader.start()
    assert warnings(asked, OFFLINE) == [raised]
    victim.start()
    resolved = one_with(asked, OFFLINE, "resolved", 20)
    assert resolved["uuid"] == raised["uuid"] and resolved["count"] == 1, resolved
    cluster.wait_online()


@test(150)
def warnings_clock_skew():
    """A member's clock that is wrong by an hour, either way, is a warning and changes nothing else; resolved when the clock is right."""
    needs_covey("the wrong clock is a hook of our daemon")
    cluster = Cluster(3, config={"cluster.offline_threshold": str(THRESHOLD_SECONDS)})
    cluster.import_image()
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    leader = cluster.leader()
    follower = next(member for member in cluster if member is not leader)
    raised = None
    for number, seconds in enumerate((HOUR, -HOUR)):
        set_clock(follower, seconds)
        raised = one_with(cluster[2], SKEW, "new")
        assert raised["location"] == follower.name and raised["severity"] == "moderate" and raised["count"] == number + 1, raised
        assert raised["entity_url"] == "" and ("ahead of" if seconds > 0 else "behind") in raised["last_message"], raised
        # Nothing else: roles, liveness, writes and reads by every member, operations, tokens, joins.
        time.sleep(THRESHOLD_SECONDS / 2)
        assert cluster.leader() is leader
        for member in cluster:
            assert all(one["status"] == "Online" for one in member.members().values()), member.name
            member.rest.post("/1.0/profiles", {"name": f"p{number}-{member.name}"})
        follower.rest.post("/1.0/instances?target=" + follower.name, {"name": f"c{number}", "source": {"type": "image", "alias": "busybox"}})
        leader.rest.delete(f"/1.0/instances/c{number}")
        follower.rest.delete(f"/1.0/profiles/p{number}-{follower.name}")
        assert warnings(cluster[1], OFFLINE) == []
        set_clock(follower, 0)
        one_with(cluster[3], SKEW, "resolved")
    assert list(cluster.roles().values()).count("voter") == 3
    cluster.assert_equal_state()


@test(150)
def warnings_clock_of_the_leader():
    """The leader's own clock is wrong by an hour: the others are warned of, and a member joins and works; another leader finds the former one wrong."""
    needs_covey("the wrong clock is a hook of our daemon")
    cluster = Cluster(3, config={"cluster.offline_threshold": str(THRESHOLD_SECONDS)})
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    wrong = cluster[1]

    def make_leader():
        """Others that lead are restarted, until it has come round."""
        for _ in range(10):
            leader = cluster.leader()
            if leader is wrong:
                return
            leader.restart()
            cluster.wait_online()
        raise AssertionError(f"{wrong.name} never leads")
    for seconds in (HOUR, -HOUR):
        set_clock(wrong, seconds)
        cluster.wait_online()
        make_leader()
        others = {member.name for member in cluster if member is not wrong}
        wait_until(lambda: {one["location"] for one in warnings(wrong, SKEW) if one["status"] == "new"} == others, 30, f"warnings of {others}")
        newcomer = cluster.add()
        newcomer.join(cluster[2], "token")  # its token is issued and judged by the wrong clock
        cluster.wait_online()
        newcomer.rest.post("/1.0/profiles", {"name": f"by-{newcomer.name}"})
    wrong.restart()
    new = cluster.leader()
    assert new is not wrong
    wait_until(lambda: [one["location"] for one in warnings(new, SKEW) if one["status"] == "new"] == [wrong.name], 30, "only the former leader is wrong")
    cluster.wait_online()
    cluster.assert_equal_state()


@test(150)
def warnings_api():
    """GET, PUT, PATCH, DELETE of warnings; the stock client and our own; a warning goes with its member."""
    needs_covey("no threshold of ten")
    cluster = Cluster(3, config={"cluster.offline_threshold": str(THRESHOLD_SECONDS)})
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    rest = cluster[2].rest
    events = cluster[1].events("lifecycle")
    assert "warnings" in rest.get("/1.0")["api_extensions"]
    assert rest.get("/1.0/warnings") == [] and rest.get("/1.0/warnings?recursion=1") == []
    cluster[3].kill()
    uuid = one_with(cluster[2], OFFLINE, "new", 3 * THRESHOLD_SECONDS)["uuid"]
    path = f"/1.0/warnings/{uuid}"
    assert rest.get("/1.0/warnings") == [path]
    shown = rest.get(path)
    assert list(shown) == ["status", "uuid", "location", "project", "type", "count", "first_seen_at", "last_seen_at", "last_message", "severity", "entity_url"], shown
    assert rest.get("/1.0/warnings?project=default") == [] and shown["project"] == ""
    assert rest.get("/1.0/warnings?filter=severity%20eq%20low") == [path] and rest.get("/1.0/warnings?filter=severity%20eq%20high") == []
    tag = rest.request("GET", path).headers["ETag"]
    for status in ("resolved", "", "acknowledge", "gone"):
        refused(403, "may only be set to", rest.put, path, {"status": status})
    rest.put(path, {"status": "acknowledged"}, headers={"If-Match": tag})
    assert rest.get(path)["status"] == "acknowledged"
    assert rest.request("PUT", path, {"status": "new"}, headers={"If-Match": tag}).code == 412
    rest.patch(path, {"status": "new"})
    assert rest.get(path)["status"] == "new"
    for verb, body in (("GET", None), ("PUT", {"status": "new"}), ("DELETE", None)):
        refused(404, "Warning not found", rest.call, verb, "/1.0/warnings/00000000-0000-0000-0000-000000000000", body)
    # The stock client
    line = cluster[1].lxc("warning", "list", "--format", "csv").stdout.strip().split(",")
    assert line[0] == uuid and line[1] == OFFLINE and "NEW" in [cell.upper() for cell in line] and "node3" in line, line
    assert f"type: {OFFLINE}" in cluster[1].lxc("warning", "show", uuid).stdout
    cluster[1].lxc("warning", "acknowledge", uuid)
    assert cluster[1].lxc("warning", "list", "--format", "csv").stdout == ""
    assert uuid in cluster[1].lxc("warning", "list", "--all", "--format", "csv").stdout
    # Our own
    covey = cluster[2].covey
    assert covey("warning", "list", "-f", "csv").stdout == ""
    assert covey("warning", "list", "--all", "-f", "csv").stdout.startswith(f"{uuid},{OFFLINE},ACKNOWLEDGED,LOW,1,,node3,")
    rest.put(path, {"status": "new"})
    for form in ("csv", "table"):
        assert covey("warning", "list", "-f", form).stdout == cluster[1].lxc("warning", "list", "--format", form).stdout != "", form
    assert f"uuid: {uuid}\n" in covey("warning", "show", uuid).stdout
    covey("warning", "ack", uuid)
    assert rest.get(path)["status"] == "acknowledged"
    # Acknowledged stays so when it happens again; deleted, then raised as a new one.
    cluster[1].lxc("warning", "delete", uuid)
    assert rest.get("/1.0/warnings") == []
    refused(404, "Warning not found", rest.delete, path)
    actions = [one["metadata"]["action"] for one in events.events if one["metadata"]["source"] == path]
    wait_until(lambda: [one["metadata"]["action"] for one in events.events if one["metadata"]["source"] == path][-1:] == ["warning-deleted"], 10, "the event")
    assert actions[:2] == ["warning-acknowledged", "warning-reset"], actions
    cluster[3].start()
    cluster.wait_online()
    assert covey("warning", "list", "--all", "-f", "csv").stdout == ""
    result = covey("warning", "delete", check=False)
    assert result.returncode == 1 and "Specify a warning UUID or use --all" in result.stderr, result
    covey("warning", "delete", "--all")


main()
