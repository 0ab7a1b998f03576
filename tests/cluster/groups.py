"""Cluster groups: REST and command line with their exact texts, and placement by them (spec/placement.md 2-4, G1-G4)."""

from urllib.parse import quote

from harness import Cluster, main, needs_covey, peer_is_lxd, refused, test, wait_until


def writable(member, name):
    """The fields of a member that a PUT sends."""
    record = member.members()[name]
    return {key: record[key] for key in ("roles", "failure_domain", "description", "config", "groups")}


@test(120)
def groups_rest():
    """§2.2 row by row, through a member that does not lead; every change is an event."""
    needs_covey("LXD answers some of these refusals with 500")
    cluster = Cluster(3)
    rest = cluster[2].rest
    events = cluster[3].events("lifecycle")
    assert rest.get("/1.0/cluster/groups") == ["/1.0/cluster/groups/default"]
    assert rest.get("/1.0/cluster/groups/default") == {
        "description": "Default cluster group", "members": ["node1", "node2", "node3"], "name": "default"}
    # Names
    for name, text in (("", "No name provided"), ("a/b", "Cluster group names may not contain slashes"),
                       ("a b", "Cluster group names may not contain spaces"), ("a_b", "Cluster group names may not contain underscores"),
                       ("a'b", "Cluster group names may not contain quotes"), ('a"b', "Cluster group names may not contain quotes"),
                       ("*", "Reserved cluster group name"), (".", 'Invalid cluster group name "."'), ("..", 'Invalid cluster group name ".."'),
                       ("x" * 256, "longer than 255 bytes")):
        refused(400, text, rest.post, "/1.0/cluster/groups", {"name": name})
    # Create
    reply = rest.request("POST", "/1.0/cluster/groups", {"name": "gpu", "description": "with cards", "members": ["node3", "node1"]})
    assert reply.code == 201 and reply.headers["Location"] == "/1.0/cluster/groups/gpu", (reply.code, reply.headers["Location"])
    refused(409, "This cluster group already exists", rest.post, "/1.0/cluster/groups", {"name": "gpu"})
    refused(404, "Cluster member not found", rest.post, "/1.0/cluster/groups", {"name": "other", "members": ["node1", "node9"]})
    assert rest.get("/1.0/cluster/groups") == ["/1.0/cluster/groups/default", "/1.0/cluster/groups/gpu"]  # nothing of "other"
    rest.post("/1.0/cluster/groups", {"name": "empty"})
    assert rest.get("/1.0/cluster/groups?recursion=1")[1] == {"description": "", "members": [], "name": "empty"}
    assert rest.get("/1.0/cluster/groups/gpu") == {"description": "with cards", "members": ["node1", "node3"], "name": "gpu"}
    assert cluster[1].members()["node3"]["groups"] == ["default", "gpu"]
    # PUT, PATCH, ETag
    tag = rest.request("GET", "/1.0/cluster/groups/gpu").headers["ETag"]
    rest.put("/1.0/cluster/groups/gpu", {"description": "cards", "members": ["node2"]}, headers={"If-Match": tag})
    assert rest.get("/1.0/cluster/groups/gpu") == {"description": "cards", "members": ["node2"], "name": "gpu"}
    for verb in ("PUT", "PATCH"):
        reply = rest.request(verb, "/1.0/cluster/groups/gpu", {"description": "late", "members": []}, headers={"If-Match": tag})
        assert reply.code == 412 and "ETag doesn't match" in reply.json["error"], reply.body
    tag = rest.request("GET", "/1.0/cluster/groups/gpu").headers["ETag"]
    rest.patch("/1.0/cluster/groups/gpu", {"description": "patched"}, headers={"If-Match": tag})
    rest.patch("/1.0/cluster/groups/gpu", {"members": None})
    assert rest.get("/1.0/cluster/groups/gpu") == {"description": "patched", "members": ["node2"], "name": "gpu"}
    rest.patch("/1.0/cluster/groups/gpu", {"members": ["node2", "node1"]})
    assert rest.get("/1.0/cluster/groups/gpu")["members"] == ["node1", "node2"]
    refused(404, "Cluster member not found", rest.put, "/1.0/cluster/groups/gpu", {"members": ["nobody"]})
    refused(404, "Cluster group not found", rest.put, "/1.0/cluster/groups/nope", {"members": []})
    refused(404, "Cluster group not found", rest.get, "/1.0/cluster/groups/nope")
    # A member is never left without a group.
    for verb in (rest.put, rest.patch):
        refused(400, "Cannot remove node3 from group as member needs to belong to at least one group", verb, "/1.0/cluster/groups/default",
                {"description": "x", "members": ["node1", "node2"]})
    assert rest.get("/1.0/cluster/groups/default")["description"] == "Default cluster group"  # all or nothing
    rest.put("/1.0/cluster/groups/default", {"description": "less", "members": ["node2", "node3"]})
    assert cluster[1].members()["node1"]["groups"] == ["gpu"]
    refused(400, "Cluster members need to belong to at least one group", rest.put, "/1.0/cluster/members/node1",
            writable(cluster[1], "node1") | {"groups": []})
    # Rename
    refused(403, 'The "default" group cannot be renamed', rest.post, "/1.0/cluster/groups/default", {"name": "other"})
    refused(404, "Cluster group not found", rest.post, "/1.0/cluster/groups/nope", {"name": "other"})
    refused(409, 'Name "empty" already in use', rest.post, "/1.0/cluster/groups/gpu", {"name": "empty"})
    refused(400, "may not contain spaces", rest.post, "/1.0/cluster/groups/gpu", {"name": "a b"})
    reply = rest.request("POST", "/1.0/cluster/groups/gpu", {"name": "cards"})
    assert reply.code == 201 and reply.headers["Location"] == "/1.0/cluster/groups/cards", reply.body
    assert cluster[3].members()["node1"]["groups"] == ["cards"]
    # Delete
    refused(403, "The 'default' cluster group cannot be deleted", rest.delete, "/1.0/cluster/groups/default")
    refused(400, "Only empty cluster groups can be removed", rest.delete, "/1.0/cluster/groups/cards")
    refused(404, "Cluster group not found", rest.delete, "/1.0/cluster/groups/gpu")
    rest.delete("/1.0/cluster/groups/empty")
    assert rest.get("/1.0/cluster/groups") == ["/1.0/cluster/groups/cards", "/1.0/cluster/groups/default"]
    # Events, on another member
    events.wait_for(lambda one: one["metadata"]["action"] == "cluster-group-deleted", 10)
    seen = [(one["metadata"]["action"], one["metadata"]["source"]) for one in events.events if one["metadata"]["action"].startswith("cluster-group")]
    assert seen[0] == ("cluster-group-created", "/1.0/cluster/groups/gpu") and seen[-1] == ("cluster-group-deleted", "/1.0/cluster/groups/empty"), seen
    renamed = next(one for one in events.events if one["metadata"]["action"] == "cluster-group-renamed")
    assert renamed["metadata"]["context"] == {"old_name": "gpu"} and renamed["project"] == "default", renamed
    updated = next(one for one in events.events if one["metadata"]["action"] == "cluster-group-updated")
    assert updated["metadata"]["context"] == {"description": "cards", "members": ["node2"]}, updated
    cluster.assert_equal_state()


@test(120)
def groups_standalone_refused():
    """Every call about groups on a server that is not clustered: 400 `This server is not clustered`."""
    server = Cluster(1, formed=False)[1]
    for verb, path, body in (("GET", "", None), ("POST", "", {"name": "g"}), ("GET", "/g", None), ("PUT", "/g", {}), ("PATCH", "/g", {}),
                             ("POST", "/g", {"name": "h"}), ("DELETE", "/g", None)):
        if not (peer_is_lxd() and verb == "DELETE"):
            refused(400, "This server is not clustered", server.rest.call, verb, "/1.0/cluster/groups" + path, body)
    result = server.lxc("cluster", "group", "list", check=False)
    assert result.returncode == 1 and "LXD server isn't part of a cluster" in result.stderr, result


@test(120)
def groups_command_line():
    """G1, G2, G3: our own command line says and does what the stock client does."""
    needs_covey("our own program")
    cluster = Cluster(3)
    covey = cluster[2].covey

    def fails(text, *arguments, **options):
        result = covey(*arguments, check=False, **options)
        assert result.returncode == 1 and text in result.stderr, (arguments, result.stderr)

    assert covey("cluster", "group", "list", "-f", "csv").stdout == "default,Default cluster group,3\n"
    fails('The "default" group cannot be renamed', "cluster", "group", "rename", "default", "other")
    fails("The 'default' cluster group cannot be deleted", "cluster", "group", "delete", "default")
    fails("Cluster members need to belong to at least one group", "cluster", "group", "remove", "node1", "default")
    assert covey("cluster", "group", "create", "blah", stdin="").stdout == "Cluster group blah created\n"
    assert covey("cluster", "group", "create", "foobar", stdin="description: from YAML\nmembers:\n- node3\n").stdout == "Cluster group foobar created\n"
    assert covey("cluster", "group", "show", "foobar").stdout == "description: from YAML\nmembers:\n- node3\nname: foobar\n"
    shown = covey("cluster", "group", "show", "default").stdout
    covey("cluster", "group", "edit", "foobar", stdin=shown)
    assert covey("cluster", "group", "show", "foobar").stdout == shown.replace("name: default", "name: foobar")
    assert covey("cluster", "group", "assign", "node1", "blah,default").stdout == "Cluster member node1 added to cluster groups blah,default\n"
    assert cluster[1].members()["node1"]["groups"] == ["blah", "default"]
    assert covey("cluster", "group", "add", "node2", "blah").stdout == "Cluster member node2 added to group blah\n"
    fails("Cluster member node2 is already in group blah", "cluster", "group", "add", "node2", "blah")
    assert covey("cluster", "group", "remove", "node1", "default").stdout == "Cluster member node1 removed from group default\n"
    fails("Cluster group default isn't currently applied to node1", "cluster", "group", "remove", "node1", "default")
    fails("Cluster group not found", "cluster", "group", "add", "node1", "nope")
    fails("Cluster members need to belong to at least one group", "cluster", "group", "assign", "node1", "")
    fails("Missing cluster group name", "cluster", "group", "show", "")
    fails("Missing cluster member name", "cluster", "group", "assign", "", "default")
    fails("Only empty cluster groups can be removed", "cluster", "group", "delete", "blah")
    assert covey("cluster", "group", "rename", "blah", "other").stdout == "Cluster group blah renamed to other\n"
    assert cluster[1].members()["node1"]["groups"] == ["other"]
    covey("cluster", "group", "assign", "node1", "default")
    covey("cluster", "group", "remove", "node2", "other")
    assert covey("--quiet", "cluster", "group", "delete", "other").stdout == ""
    # Members: edit, roles, keys
    record = covey("cluster", "show", "node2").stdout
    covey("cluster", "edit", "node2", stdin=record.replace('description: ""', "description: rack 2"))
    assert cluster[1].members()["node2"]["description"] == "rack 2"
    covey("cluster", "role", "add", "node2", "ovn-chassis,event-hub")
    assert cluster[1].members()["node2"]["roles"] == ["ovn-chassis", "event-hub", "database"]
    fails('Member "node2" already has role "event-hub"', "cluster", "role", "add", "node2", "event-hub")
    covey("cluster", "role", "remove", "node2", "ovn-chassis")
    fails('Member "node2" does not have role "ovn-chassis"', "cluster", "role", "remove", "node2", "ovn-chassis")
    fails('Update roles: Invalid cluster role "king"', "cluster", "role", "add", "node2", "king")
    covey("cluster", "set", "node2", "user.rack=2")
    covey("cluster", "set", "node2", "scheduler.instance", "manual")
    assert covey("cluster", "get", "node2", "scheduler.instance").stdout == "manual\n"
    covey("cluster", "unset", "node2", "user.rack")
    for verb in ("get", "unset"):
        fails('The key "user.rack" does not exist on cluster member "node2"', "cluster", verb, "node2", "user.rack")
    words = covey("__complete", "--", "cluster", "group", "show", "d").stdout
    assert words == "default\n", words


def create(member, name, target=None):
    body = {"name": name, "source": {"type": "image", "alias": "busybox"}}
    member.rest.post("/1.0/instances" + (f"?target={target}" if target else ""), body)
    return member.rest.get(f"/1.0/instances/{name}")["location"]


@test(180)
def groups_place_instances():
    """G4: n1 `all`, n2 `group` in blah, n3 `manual`: who takes what, and the refusals of targets."""
    cluster = Cluster(3)
    cluster.import_image()
    rest = cluster[1].rest
    rest.post("/1.0/cluster/groups", {"name": "blah", "members": ["node2"]})
    rest.post("/1.0/cluster/groups", {"name": "none"})
    rest.put("/1.0/cluster/members/node2", writable(cluster[1], "node2") | {"config": {"scheduler.instance": "group"}})
    rest.put("/1.0/cluster/members/node3", writable(cluster[1], "node3") | {"config": {"scheduler.instance": "manual"}})
    assert [create(cluster[2], f"u{n}") for n in range(2)] == ["node1", "node1"]
    assert [create(cluster[3], f"g{n}", "@blah") for n in range(2)] == ["node2", "node2"]
    assert create(cluster[1], "t2", "node2") == "node2"
    cluster[3].lxc("init", "busybox", "l1", "--target", "@blah")
    assert cluster[1].rest.get("/1.0/instances/l1")["location"] == "node2"
    assert create(cluster[1], "t3", "node3") == "node3"
    refused(400, 'Cluster group "nope" doesn\'t exist', create, cluster[1], "x", "@nope")
    refused((400, 404, 500), "No suitable cluster member could be found", create, cluster[1], "x", "@none")
    refused(404, "ound", create, cluster[1], "x", "node9")
    # The manual member takes nothing by a group either; a group with a free member does.
    rest.patch("/1.0/cluster/groups/none", {"members": ["node3"]})
    refused((400, 404, 500), "No suitable cluster member could be found", create, cluster[1], "x", "@none")
    rest.put("/1.0/cluster/groups/none", {"members": ["node3", "node1"]})
    assert create(cluster[2], "n1", "@none") == "node1"
    for name in ("u0", "u1", "g0", "g1", "t2", "l1", "t3", "n1"):
        cluster[2].rest.delete(f"/1.0/instances/{name}")


@test(150)
def groups_joining_and_offline():
    """A new member is put into `default`; a group whose only member is away has no candidate; filters over members."""
    needs_covey("filters on members")
    cluster = Cluster(2, config={"cluster.offline_threshold": "10"})
    cluster.import_image()
    rest = cluster[1].rest
    rest.post("/1.0/cluster/groups", {"name": "away"})
    cluster.add().join(cluster[2])
    cluster.wait_online()
    assert cluster[2].members()["node3"]["groups"] == ["default"]
    rest.patch("/1.0/cluster/members/node3", {"groups": ["away", "default"], "config": {"user.rack": "b 2"}})

    def names(expression, recursion=1, asked=cluster[2]):
        found = asked.rest.get(f"/1.0/cluster/members?recursion={recursion}&filter={quote(expression)}")
        return [one["server_name"] for one in found] if recursion else found

    assert names("server_name eq node.*") == ["node1", "node2", "node3"]
    assert names('config.user.rack eq "b 2"') == ["node3"]
    assert names("status eq online and not server_name eq node1") == ["node2", "node3"]
    assert names("database eq true and server_name ne node2") == ["node1", "node3"]
    assert names("server_name eq node3", 0) == ["/1.0/cluster/members/node3"]
    refused(400, "Invalid filter: ", names, "server_name is node3")
    cluster[3].kill()
    wait_until(lambda: cluster[1].members()["node3"]["status"] == "Offline", 40, "node3 offline")
    refused(400, "No suitable cluster member could be found", create, cluster[2], "x", "@away")
    refused(400, "Target cluster member is offline", create, cluster[2], "x", "node3")
    assert create(cluster[2], "x", "@default") in ("node1", "node2")
    assert names("status eq offline") == ["node3"]
    cluster[2].rest.delete("/1.0/instances/x")


main()
