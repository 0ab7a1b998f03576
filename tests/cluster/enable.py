"""A standalone server becomes the first member: all combinations of addresses, with its data, and refused attempts that change nothing."""
import os
import socket

from harness import PASSWORD, PORT, Cluster, Member, busybox_image, free_network, main, needs_covey, peer_is_lxd, program, refused, test, wait_until

NO_ADDRESS = ('Cannot use wildcard core.https_address "" for cluster.https_address. '
              "Please specify a new cluster.https_address or core.https_address")


def enable(member, name=None):
    return member.rest.put("/1.0/cluster", {"server_name": name or member.name, "enabled": True})


def servers(count):
    prefix = free_network(2 * count + 2)
    return [Member(index, f"{prefix}.{index}").start() for index in range(1, count + 1)]


def clustered_at(member, address):
    records = member.members()
    assert list(records) == [member.name] and records[member.name]["url"] == f"https://{address}", records
    assert records[member.name]["status"] == "Online" and "database-leader" in records[member.name]["roles"], records


@test(120)
def enable_with_data():
    """§18.1: a running instance, pool and profile stay and are on the new member; enabling again fails."""
    (member,) = servers(1)
    member.rest.patch("/1.0", {"config": {"core.https_address": member.address, "user.colour": "red"}})
    member.preseed({"storage_pools": [{"name": "default", "driver": "dir"}],
                    "profiles": [{"name": "default", "devices": {"root": {"path": "/", "pool": "default", "type": "disk"}}},
                                 {"name": "web", "config": {"user.role": "web"}}]})
    member.lxc("image", "import", busybox_image(), "--alias", "bb")
    member.lxc("launch", "bb", "c1", "--profile", "default", "--profile", "web")
    pid = member.rest.get("/1.0/instances/c1/state")["pid"]
    assert member.rest.get("/1.0/instances/c1")["location"] == "none"
    stream = member.events("lifecycle,operation")
    enable(member)
    clustered_at(member, member.address)
    event = stream.wait_for(lambda one: one["type"] == "lifecycle" and one["metadata"]["action"] == "cluster-enabled", 20)
    assert event["metadata"]["source"] == f"/1.0/cluster/{member.name}", event
    operations = stream.matching(lambda one: one["type"] == "operation" and one["metadata"]["description"] == "Creating bootstrap node")
    assert operations and operations[0]["metadata"]["resources"] == {"cluster": None} and operations[0]["metadata"]["may_cancel"] is False
    instance = member.rest.get("/1.0/instances/c1")
    assert instance["location"] == member.name and instance["status"] == "Running", instance
    assert member.rest.get("/1.0/instances/c1/state")["pid"] == pid
    assert member.lxc("exec", "c1", "--", "echo", "alive").stdout == "alive\n"
    pool = member.rest.get("/1.0/storage-pools/default")
    assert pool["locations"] == [member.name] and pool["status"] == "Created", pool
    assert member.rest.get("/1.0/profiles/web")["config"] == {"user.role": "web"}
    assert member.rest.get("/1.0")["config"]["user.colour"] == "red"
    info = member.rest.get("/1.0/cluster")
    assert [(one["entity"], one["name"], one["key"], one["value"]) for one in info["member_config"]] == [
        ("storage-pool", "default", "source", "")], info
    if not peer_is_lxd():  # it accepts the request and breaks the server
        refused(400, "This server is already clustered", enable, member, "other")
    result = member.lxc("cluster", "enable", "other", check=False)
    assert result.returncode == 1 and result.stderr == "Error: This LXD server is already clustered\n", result.stderr
    if not peer_is_lxd():
        result = member.covey("cluster", "enable", "other", check=False)
        assert result.returncode == 1 and result.stderr == "Error: This LXD server is already clustered\n", result.stderr
    clustered_at(member, member.address)
    member.kill()
    member.start()  # everything is on disk
    clustered_at(member, member.address)
    assert member.rest.get("/1.0/instances/c1")["location"] == member.name
    member.lxc("delete", "c1", "--force")


@test(90)
def enable_needs_an_address():
    """§18.2: a wildcard core address alone is refused. §18.5: so is none. The server stays as it was, and can be enabled after."""
    (member,) = servers(1)
    refused((400, 500), NO_ADDRESS, enable, member)
    if not peer_is_lxd():
        result = member.covey("cluster", "enable", member.name, check=False)
        assert result.returncode == 1 and result.stderr == f"Error: Failed to configure cluster: {NO_ADDRESS}\n", result.stderr
    result = member.lxc("cluster", "enable", member.name, check=False)
    assert result.returncode == 1 and f"Failed to configure cluster: {NO_ADDRESS}" in result.stderr, result.stderr
    port = free_port()
    member.rest.patch("/1.0", {"config": {"core.https_address": f"[::]:{port}"}})
    refused((400, 500), NO_ADDRESS, enable, member)
    assert member.rest.get("/1.0/cluster") == {"server_name": "", "enabled": False, "member_config": []}
    assert "cluster.https_address" not in member.rest.get("/1.0")["config"]
    # §18.4: a concrete cluster address beside the wildcard works.
    member.rest.patch("/1.0", {"config": {"cluster.https_address": f"{member.host}:{port}"}})
    assert member.lxc("cluster", "enable", member.name).stdout == "Clustering enabled\n"
    clustered_at(member, f"{member.host}:{port}")


def free_port():
    """One that is free on all addresses: a wildcard needs it."""
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", 0))
        return sock.getsockname()[1]


@test(90)
def enable_addresses():
    """§18.3: a core address without port gets 8443. §18.6: only the cluster address. §18.7: that without port. §18.8: both equal."""
    combinations = [
        lambda one: {"core.https_address": one.host},
        lambda one: {"cluster.https_address": one.address},
        lambda one: {"cluster.https_address": one.host},
        lambda one: {"core.https_address": one.address, "cluster.https_address": one.address},
    ]
    for member, config in zip(servers(len(combinations)), combinations):
        member.rest.patch("/1.0", {"config": config(member)})
        enabling = member.lxc if peer_is_lxd() else member.covey
        assert enabling("cluster", "enable", member.name).stdout == "Clustering enabled\n"
        clustered_at(member, f"{member.host}:{PORT}")
        shown = member.rest.get("/1.0")["config"]
        assert shown["cluster.https_address"] in (member.address, *([member.host] if peer_is_lxd() else [])), shown
        assert ("core.https_address" in shown) == ("core.https_address" in config(member)), shown


@test(60)
def enable_after_a_hard_kill():
    """§18.9: the cluster address is set, the daemon is killed hard and started again, then it is enabled."""
    (member,) = servers(1)
    member.rest.patch("/1.0", {"config": {"cluster.https_address": member.address}})
    member.kill()
    member.start()
    enable(member)
    clustered_at(member, member.address)


@test(90)
def enable_refusals():
    """Each leaves a standalone server that works, also what fails inside of the operation."""
    (member,) = servers(1)
    put = member.rest.put
    refused(400, "ServerName is required when enabling clustering", put, "/1.0/cluster", {"enabled": True})
    refused(400, "ServerName must be empty when disabling clustering", put, "/1.0/cluster", {"server_name": "a", "enabled": False})
    refused(400, 'ServerName may not start with "@"', put, "/1.0/cluster", {"server_name": "@a", "enabled": True})
    reply = member.rest.request("PUT", "/1.0/cluster", b"{nonsense")
    assert reply.code == 400 and reply.json["error"], reply.body
    member.rest.patch("/1.0", {"config": {"core.https_address": member.address, "core.trust_password": PASSWORD}})
    if not peer_is_lxd():
        refused(400, 'ServerName cannot be "none"', put, "/1.0/cluster", {"server_name": "none", "enabled": True})
    for name in ("cluster.crt", "cluster.key", "cluster.ca"):
        path = os.path.join(member.dir, name)
        with open(path, "w", encoding="ascii") as file:
            file.write("left over")
        refused((400, 500), "Inconsistent state: found leftover cluster certificate", enable, member)
        with open(path, encoding="ascii") as file:
            assert file.read() == "left over"
        if not peer_is_lxd():  # a restart with it neither fails nor presents it
            member.kill()
            member.start()
        os.unlink(path)
        assert member.rest.get("/1.0/cluster")["enabled"] is False
    assert member.rest.get("/1.0/certificates") == []
    member.rest.post("/1.0/profiles", {"name": "after"})  # still usable
    if not peer_is_lxd():
        # The own certificate is known as another member's; as a client's it is converted.
        own = open(os.path.join(member.dir, "server.crt"), encoding="ascii").read()
        body = "".join(line for line in own.splitlines() if not line.startswith("-----"))
        member.rest.post("/1.0/certificates", {"type": "server", "name": "someone", "certificate": body})
        refused((400, 500), 'Existing server certificate with different name "someone" already in trust store', enable, member)
        assert member.rest.get("/1.0/cluster")["enabled"] is False
        assert [one["name"] for one in member.rest.get("/1.0/certificates?recursion=1")] == ["someone"]
        member.rest.delete(member.rest.get("/1.0/certificates")[0])
        member.rest.post("/1.0/certificates", {"type": "client", "name": "someone", "certificate": body})
    enable(member)
    clustered_at(member, member.address)
    trusted = member.rest.get("/1.0/certificates?recursion=1")
    assert [(one["name"], one["type"]) for one in trusted] == [(member.name, "server")], trusted


@test(60)
def enable_fails_halfway():
    """The certificate cannot be written: everything is put back, the server works, and the next attempt succeeds."""
    needs_covey("there a failed bootstrap is not undone")
    (member,) = servers(1)
    member.rest.patch("/1.0", {"config": {"core.https_address": member.address}})
    before = {path: member.rest.get(path) for path in ("/1.0/cluster", "/1.0/certificates", "/1.0/profiles?recursion=1")}
    blocks = [os.path.join(member.dir, name) for name in ("cluster.crt.staged.tmp", "cluster.key.staged.tmp")]
    for path in blocks:
        os.mkdir(path)
    refused((400, 500), "", enable, member)
    for path, value in before.items():
        assert member.rest.get(path) == value, path
    member.rest.post("/1.0/profiles", {"name": "after"})
    member.kill()
    member.start()
    assert member.rest.get("/1.0/cluster")["enabled"] is False
    for path in blocks:
        os.rmdir(path)
    enable(member)
    clustered_at(member, member.address)


@test(90)
def standalone_says_so():
    """What a server that is not clustered answers (spec/cluster.md 1.1)."""
    (member,) = servers(1)
    get = member.rest.get
    for path in ("members", "members?recursion=1", "members/x"):
        refused((400, 500), "Server is not clustered", get, f"/1.0/cluster/{path}")
    refused(400, "This server is not clustered", member.rest.post, "/1.0/cluster/members", {"server_name": "x"})
    for arguments in (("list",), ("list-tokens",), ("revoke-token", "x")):
        for client in (member.lxc, member.covey):
            result = client("cluster", *arguments, check=False)
            assert result.returncode == 1 and result.stderr.strip().endswith("Error: LXD server isn't part of a cluster"), result.stderr
    server = get("/1.0")["environment"]
    assert server["server_clustered"] is False and server["server_name"], server


@test(120)
def preseed_everywhere():
    """§18.10 (without networks): bootstrap and join by preseed; a global key that is set on the second member is visible on both."""
    cluster = Cluster(2)
    cluster[2].rest.patch("/1.0", {"config": {"user.shape": "round"}})
    for member in cluster:
        wait_until(lambda: member.rest.get("/1.0")["config"].get("user.shape") == "round", 10, f"the key on {member.name}")
    # A cluster section on a clustered server is skipped, the rest is applied.
    cluster[2].preseed({"config": {"user.shape": "square"}, "profiles": [{"name": "late", "description": "d"}],
                        "cluster": {"server_name": "elsewhere", "enabled": True}})
    assert cluster[1].rest.get("/1.0")["config"]["user.shape"] == "square"
    assert cluster[1].rest.get("/1.0/profiles/late")["description"] == "d"
    assert sorted(cluster[1].members()) == ["node1", "node2"]


@test(120)
def preseed_spellings():
    """Both ways to write the certificate, its path, the token; by the name of the program that covey stands in for; member keys are taken."""
    needs_covey("its own programs")
    cluster = Cluster(1)
    first, lxd = cluster[1], program("lxd")
    pem = first.certificate().strip()
    path = os.path.join(first.test.dir, "cluster.pem")
    with open(path, "w", encoding="ascii") as file:
        file.write(pem + "\n")
    doubled = pem.replace("\n", "\n\n    ")
    certificates = [f'  cluster_certificate: "{doubled}\n\n    "\n', "  cluster_certificate: |\n    " + pem.replace("\n", "\n    ") + "\n",
                    f"  cluster_certificate_path: {path}\n"]
    for number, certificate in enumerate(certificates):
        joiner = cluster.add()
        source = os.path.join(first.test.dir, f"source{number}")
        os.mkdir(source)
        joiner.run([lxd, "init", "--preseed"], stdin=f"cluster:\n  enabled: true\n  server_name: {joiner.name}\n  server_address: {joiner.host}\n"
                   f"  cluster_address: {first.host}\n  cluster_password: {PASSWORD}\n{certificate}"
                   f"  member_config:\n  - entity: storage-pool\n    name: default\n    key: source\n    value: {source}\n"
                   "config:\n  user.ignored: yes\n")
        assert first.rest.get(f"/1.0/storage-pools/default?target={joiner.name}")["config"]["source"] == source
        assert os.path.exists(os.path.join(source, "containers"))
    joiner = cluster.add()
    joiner.run([lxd, "init", "--preseed"], stdin=f"cluster:\n  enabled: true\n  server_address: {joiner.host}\n  cluster_token: {first.token(joiner.name)}\n")
    cluster.wait_online()
    assert "user.ignored" not in first.rest.get("/1.0")["config"]
    assert len(first.rest.get("/1.0/cluster")["member_config"]) == 1


@test(120)
def preseed_rolls_back():
    """A preseed is applied completely or not at all, and says which step failed."""
    (member,) = servers(1)
    before = {path: member.rest.get(path) for path in ("/1.0/profiles?recursion=1", "/1.0/storage-pools?recursion=1")}
    config = member.rest.get("/1.0")["config"]

    def attempt(text, document):
        result = member.preseed(document, check=False)
        assert result.returncode == 1 and result.stderr.startswith(f"Error: {text}"), result.stdout + result.stderr
        for path, value in before.items():
            assert member.rest.get(path) == value, path
        assert member.rest.get("/1.0")["config"] == config
        assert member.rest.get("/1.0/cluster")["enabled"] is False

    good = {"config": {"user.a": 1}, "storage_pools": [{"name": "data", "driver": "dir"}], "profiles": [{"name": "p", "config": {"user.b": True}}]}
    attempt("Failed to parse the preseed: yaml: unmarshal errors: ", good | {"clusters": {}})
    attempt("Failed to update server configuration: ", good | {"config": {"no.such": "x"}})
    attempt('Failed to create storage pool "none": ', good | {"storage_pools": [{"name": "data", "driver": "dir"}, {"name": "none", "driver": "nope"}]})
    attempt('Failed to create profile "bad": ', good | {"profiles": [{"name": "p"}, {"name": "bad", "config": {"no.such": "x"}}]})
    attempt('Failed to update profile "default": ', good | {"profiles": [{"name": "p"}, {"name": "default", "config": {"no.such": "x"}}]})
    attempt("Failed to configure cluster: ", good | {"cluster": {"server_name": "a", "enabled": True}})
    missing = {"cluster": {"enabled": True, "server_name": "a", "server_address": member.address, "cluster_address": f"{member.host}9:1",
                           "cluster_certificate_path": "/no/such/file"}}
    attempt("Path /no/such/file doesn't exist" if not peer_is_lxd() else "", missing)
    member.preseed(good | {"cluster": {"enabled": False, "server_name": "ignored"}})
    assert member.rest.get("/1.0/profiles/p")["config"] == {"user.b": "true"}
    member.preseed({"storage_pools": [{"name": "data", "driver": "dir", "description": "seen twice"}]})  # an existing one is overlaid
    assert member.rest.get("/1.0/storage-pools/data")["description"] == "seen twice"
    result = member.preseed({"storage_pools": [{"name": "data", "driver": "btrfs"}]}, check=False)
    assert 'Storage pool "data" is of type "dir" instead of "btrfs"' in result.stderr, result.stderr


@test(90)
def init_without_questions():
    """--auto, --minimal and --dump, and the flags that do not go together. In namespaces: each server makes itself a bridge."""
    from networks import HostCluster
    members = HostCluster(2, formed=False).members
    for arguments, text in (
            (("--auto", "--preseed"), "Can't use --auto and --preseed together"),
            (("--minimal", "--preseed"), "Can't use --minimal and --preseed together"),
            (("--minimal", "--auto"), "Can't use --minimal and --auto together"),
            (("--storage-backend", "dir"), "Configuration flags require --auto"),
            (("--dump", "--auto"), "Can't use --dump with other flags")):
        result = members[0].admin("init", *arguments, check=False)
        assert result.returncode == 1 and text in result.stderr, result.stderr
    members[0].admin("init", "--auto", "--network-address", members[0].host, "--network-port", str(PORT), "--trust-password", PASSWORD,
                     "--storage-backend", "dir")
    assert members[0].rest.get("/1.0")["config"]["core.https_address"] == members[0].address
    members[1].admin("init", "--minimal")
    for member in members:
        assert member.rest.get("/1.0/storage-pools/default")["driver"] == "dir"
        devices = member.rest.get("/1.0/profiles/default")["devices"]
        assert devices["root"] == {"path": "/", "pool": "default", "type": "disk"}
        assert devices["eth0"] == {"type": "nic", "name": "eth0", "network": "lxdbr0"}, devices
        assert member.rest.get("/1.0/networks/lxdbr0")["status"] == "Created" and len(member.addresses("lxdbr0")) == 2
    members[1].admin("init", "--minimal")
    assert [one["name"] for one in members[1].rest.get("/1.0/networks?recursion=1") if one["managed"]] == ["lxdbr0"]
    dump = members[0].admin("init", "--dump").stdout
    for text in ("config:", "storage_pools:", "  driver: dir", "profiles:", "projects:", "networks:", "name: lxdbr0"):
        assert text in dump, dump


if __name__ == "__main__":
    main()
