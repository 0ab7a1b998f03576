"""Changing a member's writable record: PUT, PATCH, ETags, texts and codes (spec/cluster.md 9.2)."""
import threading

from harness import Cluster, RestError, main, needs_covey, refused, test, wait_until

WRITABLE = ("roles", "failure_domain", "description", "config", "groups")


def writable(record, **changes):
    return {key: record[key] for key in WRITABLE} | changes


def path(name):
    return f"/1.0/cluster/members/{name}"


def voters_settled(cluster):
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 40, "three voters")


@test(150)
def member_update_table():
    """§18.30: every row of the table, by PUT and by PATCH where it can occur, and nothing is changed by what is refused."""
    needs_covey("LXD answers some of these refusals with 500, and its PATCH is no merge")
    cluster = Cluster(4)
    voters_settled(cluster)
    wait_until(lambda: cluster.roles().get("node4") == "stand-by", 40, "node4 stand-by")
    rest = cluster[3].rest
    voter, standby = rest.get(path("node2")), rest.get(path("node4"))
    before = rest.get("/1.0/cluster/members?recursion=1")
    assert [one["server_name"] for one in before] == ["node1", "node2", "node3", "node4"]  # by id
    for changes, code, text in (
            ({"roles": []}, 400, 'The "database" role cannot be dropped at this time'),
            ({"roles": ["event-hub"]}, 400, 'The "database" role cannot be dropped at this time'),
            ({"groups": []}, 400, "Cluster members need to belong to at least one group"),
            ({"config": {"user.a": "1", "color": "red"}}, 400, 'Invalid cluster configuration key "color"'),
            ({"config": {"user.": "1"}}, 400, 'Invalid cluster configuration key "user."'),
            ({"config": {"scheduler.instance": "never"}}, 400, 'Invalid cluster configuration key "scheduler.instance" value'),
            ({"roles": ["database", "king"]}, 400, 'Update roles: Invalid cluster role "king"'),
            ({"roles": ["database", "database-client"]}, 400, 'Update roles: Invalid cluster role "database-client"'),
            ({"failure_domain": ""}, 400, "Update failure domain: Failure domain name can't be empty"),
            ({"groups": ["default", "nope"]}, 404,
             "Update cluster groups: Failed to add member to cluster group: Failed to get cluster group ID: Cluster group not found")):
        error = refused(code, text, rest.put, path("node2"), writable(voter, description="changed", **changes))
        assert error.text == text, error.text
        error = refused(code, text, rest.patch, path("node2"), changes | {"description": "changed"})
        assert error.text == text, error.text
    # The first check that fails is the one that is told.
    refused(400, "cannot be dropped", rest.put, path("node2"), {"config": {"color": "1"}, "groups": []})
    refused(400, "at least one group", rest.put, path("node2"), {"roles": ["database", "king"], "config": {"color": "1"}})
    refused(400, '"color"', rest.put, path("node2"), writable(voter, roles=["database", "king"], config={"color": "1"}))
    refused(400, "king", rest.put, path("node2"), writable(voter, roles=["database", "king"], failure_domain=""))
    refused(400, "can't be empty", rest.put, path("node2"), writable(voter, failure_domain="", groups=["nope"]))
    refused(400, 'The "database" role cannot be added at this time', rest.put, path("node4"), writable(standby, roles=["database"]))
    refused(400, 'The "database" role cannot be added at this time', rest.patch, path("node4"), {"roles": ["database"]})
    refused(404, "Cluster member not found", rest.put, path("nobody"), writable(voter))
    refused(404, "Cluster member not found", rest.get, path("nobody"))
    for body in (b"{", b"[1]", b'{"roles": 1}', b'{"config": {"user.a": 1}}', b'{"description": []}'):
        assert rest.request("PUT", path("node2"), body).code == 400, body
    assert rest.get("/1.0/cluster/members?recursion=1") == before
    # Automatic roles other than `database` are ignored, there or not.
    rest.put(path("node4"), writable(standby, roles=[]))
    rest.put(path("node4"), writable(standby, roles=["database-leader", "database-standby"]))
    rest.put(path("node1"), writable(rest.get(path("node1")), roles=["database"]))
    assert rest.get("/1.0/cluster/members?recursion=1") == before


@test(150)
def member_update_etag_and_merge():
    """§18.30: a stale ETag is 412 and changes nothing; PATCH merges; manual roles, domains and groups show at once on every member; events."""
    needs_covey("LXD's PATCH is no merge")
    cluster = Cluster(3)
    voters_settled(cluster)
    rest = cluster[2].rest
    events = cluster[3].events("lifecycle")
    reply = rest.request("GET", path("node2"))
    tag, record = reply.headers["ETag"], reply.metadata
    assert cluster[3].rest.request("GET", path("node2")).headers["ETag"] == tag  # the same by any member
    body = writable(record, roles=["event-hub", "database", "ovn-chassis"], description="rack 1", failure_domain="az1",
                    config={"user.rack": "1", "scheduler.instance": "manual"})
    assert rest.request("PUT", path("node2"), body, headers={"If-Match": tag}).code == 200
    for member in cluster:
        seen = member.rest.get(path("node2"))
        assert seen["roles"] == ["event-hub", "ovn-chassis", "database"], seen
        assert (seen["description"], seen["failure_domain"], seen["config"]) == ("rack 1", "az1", body["config"]), seen
        assert member.lxc("cluster", "list", "--format", "csv").stdout.splitlines()[1].split('"')[1] == "event-hub,ovn-chassis,database"
    event = events.wait_for(lambda one: one["metadata"]["action"] == "cluster-member-updated", 10)
    assert event["metadata"]["source"] == path("node2") and event["project"] == "default", event
    for quoted in (tag, tag.strip('"')):
        for verb in ("PUT", "PATCH"):
            reply = rest.request(verb, path("node2"), writable(record, description="lost"), headers={"If-Match": quoted})
            now = rest.request("GET", path("node2")).headers["ETag"].strip('"')
            assert reply.code == 412 and reply.json["error"] == f"ETag doesn't match: {now} vs {tag.strip(chr(34))}", reply.body
    assert rest.get(path("node2"))["description"] == "rack 1"
    # PATCH: what is absent (or null) stays; configuration is merged, an empty value removes.
    tag = rest.request("GET", path("node2")).headers["ETag"]
    assert rest.request("PATCH", path("node2"), {"config": {"user.rack": "", "user.row": "7"}, "roles": None}, headers={"If-Match": tag}).code == 200
    seen = rest.get(path("node2"))
    assert seen["config"] == {"user.row": "7", "scheduler.instance": "manual"}, seen
    assert (seen["roles"], seen["description"], seen["failure_domain"]) == (["event-hub", "ovn-chassis", "database"], "rack 1", "az1"), seen
    rest.patch(path("node2"), {"roles": ["database", "ovn-chassis"]})
    rest.patch(path("node2"), {"roles": ["database", "event-hub", "ovn-chassis"]})
    assert rest.get(path("node2"))["roles"] == ["ovn-chassis", "event-hub", "database"]  # by insertion
    # PUT replaces the configuration; `default` clears the domain.
    rest.put(path("node2"), writable(rest.get(path("node2")), config={"user.only": "1"}, failure_domain="default", roles=["database"]))
    seen = cluster[1].rest.get(path("node2"))
    assert (seen["config"], seen["failure_domain"], seen["roles"]) == ({"user.only": "1"}, "default", ["database"]), seen
    domains = cluster[1].admin("sql", "global", "SELECT name FROM nodes_failure_domains").stdout
    assert "az1" in domains, domains  # a domain is never deleted
    cluster.assert_equal_state()


@test(120)
def member_update_races():
    """Of many writers with the same ETag exactly one wins."""
    cluster = Cluster(3)
    voters_settled(cluster)
    reply = cluster[1].rest.request("GET", path("node2"))
    won, lost = [], []

    def write(number):
        try:
            cluster[1 + number % 3].rest.put(path("node2"), writable(reply.metadata, description=f"writer {number}"),
                                             headers={"If-Match": reply.headers["ETag"]})
            won.append(number)
        except RestError as error:
            lost.append(error.code)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and lost == [412] * 11, (won, lost)
    assert cluster[2].rest.get(path("node2"))["description"] == f"writer {won[0]}"


main()
