"""Managed networks. Every member runs in a network namespace of its own, so that bridges of one name do not meet."""
import json
import os
import subprocess

import harness
from harness import busybox_image, main, needs_covey, refused, test, wait_until
from namespaces import NetworkCluster, NetworkMember

# /sys shows the interfaces of the namespace that mounted it; the control groups below it must stay. What other tests have mounted must not: processes
# that see their mounts count as theirs (leftovers.py).
ENTER = ("set -e; mkdir -p $0; mount --rbind /sys/fs/cgroup $0; mount -t sysfs sysfs /sys; mount --rbind $0 /sys/fs/cgroup; umount -l $0; "
         "grep coveytest- /proc/self/mountinfo | grep -v $COVEY_TEST_ID | while read -r a b c d point rest; do umount -l $point; done; exec \"$@\"")


class HostMember(NetworkMember):
    """A member whose whole view of the network is that of its namespace, so that containers can be attached there."""

    def __init__(self, index, host, core_host, namespace):
        super().__init__(index, host, core_host, namespace)
        self.inside = self.launcher
        self.launcher = (*self.launcher, "unshare", "-m", "--propagation", "private", "sh", "-c", ENTER, f"{self.test.dir}/cgroups")

    def environment(self):
        return super().environment() | {"COVEY_TEST_CRASH_AT": f"@{self.dir}/crash"}

    def crash_at(self, point):
        """It dies the next time it comes there."""
        with open(f"{self.dir}/crash", "w", encoding="utf-8") as file:
            file.write(point)
        self.expected_down = True

    def revive(self):
        wait_until(lambda: not self.alive(), 30, f"the end of {self.name}")
        return self.start()

    def shell(self, *command):
        return subprocess.run([*self.inside, *command], check=True, capture_output=True, text=True).stdout

    def interfaces(self):
        return {one["ifname"] for one in json.loads(self.shell("ip", "-j", "link"))}

    def addresses(self, name):
        links = json.loads(self.shell("ip", "-j", "addr", "show", "dev", name))
        return [f"{one['local']}/{one['prefixlen']}" for one in links[0]["addr_info"] if one["scope"] == "global"]

    def tables(self):
        return self.shell("nft", "list", "tables")

    def dns(self, network):
        """Pid of the running DHCP server of a network, None without."""
        for pid in os.listdir("/proc"):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if f"--pid-file={self.dir}/networks/{network}/dnsmasq.pid\0".encode() in file.read():
                        return int(pid)
            except OSError:
                pass
        return None


class HostCluster(NetworkCluster):
    member_class = HostMember

    def network(self, count):
        needs_covey("members run in namespaces that are made for coveyd")
        return super().network(count)


def create(member, name, target=None, **body):
    return member.rest.post(f"/1.0/networks{'?target=' + target if target else ''}", {"name": name, **body})


def network(member, name, query=""):
    return member.rest.get(f"/1.0/networks/{name}{query}")


def lease(member, name, kind, hostname=None):
    return [one for one in member.rest.get(f"/1.0/networks/{name}/leases")
            if one["type"] == kind and hostname in (None, one["hostname"])]


@test(180)
def network_bridge_serves_containers():
    """A container gets its address by DHCP; the bridge, its server and its rules outlive the daemon, and go with the network."""
    member = HostCluster(1, formed=False)[1]
    create(member, "br0", description="first")
    shown = network(member, "br0")
    config = shown["config"]
    assert shown["status"] == "Created" and shown["managed"] and shown["type"] == "bridge", shown
    assert config["ipv4.nat"] == config["ipv6.nat"] == "true" and config["ipv4.address"].startswith("10."), config
    assert set(member.addresses("br0")) == {config["ipv4.address"], config["ipv6.address"]}
    gateway = config["ipv4.address"].split("/")[0]
    state = member.rest.get("/1.0/networks/br0/state")
    assert state["state"] == "up" and state["mtu"] == 1500 and state["bridge"]["id"].startswith("8000."), state
    assert "inet covey_br0" in member.tables() and member.dns("br0")
    assert {"eth0", "lo", "br0"} <= {one["name"] for one in member.rest.get("/1.0/networks?recursion=1")}
    # Devices
    member.rest.post("/1.0/storage-pools", {"name": "default", "driver": "dir"})
    refused(400, "Network not found", member.rest.patch, "/1.0/profiles/default",
            {"devices": {"eth0": {"type": "nic", "name": "eth0", "network": "nope"}}})
    member.rest.patch("/1.0/profiles/default", {"devices": {
        "root": {"type": "disk", "path": "/", "pool": "default"}, "eth0": {"type": "nic", "name": "eth0", "network": "br0"}}})
    member.lxc("image", "import", busybox_image(), "--alias", "bb")
    member.lxc("launch", "bb", "c1")
    dynamic = wait_until(lambda: lease(member, "br0", "dynamic", "c1"), 60, "a lease of c1")[0]
    assert dynamic["hwaddr"].startswith("00:16:3e:") and dynamic["location"] == "none", dynamic

    def address(name):
        found = member.rest.get(f"/1.0/instances/{name}/state")["network"]["eth0"]["addresses"]
        return next((one["address"] for one in found if one["family"] == "inet" and one["scope"] == "global"), None)
    assert wait_until(lambda: address("c1"), 60, "an address of c1") == dynamic["address"]
    fixed = gateway.rsplit(".", 1)[0] + ".77"
    static = {"type": "nic", "name": "eth0", "network": "br0", "ipv4.address": fixed}
    refused(400, "not within network", member.rest.post, "/1.0/instances", {
        "name": "c3", "source": {"type": "image", "alias": "bb"}, "devices": {"eth0": static | {"ipv4.address": "192.0.2.1"}}})
    member.lxc("launch", "bb", "c2", "-d", f"eth0,ipv4.address={fixed}")
    wait_until(lambda: address("c2") == fixed, 60, "the fixed address of c2")
    assert lease(member, "br0", "static", "c2")[0]["address"] == fixed
    assert lease(member, "br0", "gateway")[0]["address"] == gateway
    assert network(member, "br0")["used_by"] == ["/1.0/profiles/default", "/1.0/instances/c1", "/1.0/instances/c2"]
    refused(400, "The network is currently in use", member.rest.delete, "/1.0/networks/br0")
    refused(400, "The network is currently in use", member.rest.post, "/1.0/networks/br0", {"name": "br1"})

    def ping():
        member.lxc("exec", "c1", "--", "ping", "-c", "1", "-W", "5", fixed)
    ping()
    # The daemon dies: everything goes on; its next start takes over what runs.
    server = member.dns("br0")
    member.kill()
    assert member.dns("br0") == server and "br0" in member.interfaces() and "inet covey_br0" in member.tables()
    member.start()
    wait_until(lambda: address("c1") == dynamic["address"], 30, "c1 after the restart")
    ping()
    assert member.dns("br0") == server, "the server was replaced without need"
    # What was taken away while it was down comes back, and a server that ends by itself, too.
    member.stop()
    os.kill(server, 9)
    member.shell("nft", "delete", "table", "inet", "covey_br0")
    member.shell("ip", "addr", "del", config["ipv4.address"], "dev", "br0")
    member.start()
    assert "inet covey_br0" in member.tables() and config["ipv4.address"] in member.addresses("br0")
    server = wait_until(lambda: member.dns("br0"), 20, "a new server")
    os.kill(server, 9)
    wait_until(lambda: member.dns("br0") not in (None, server), 30, "the server's return")
    ping()
    for name in ("c1", "c2"):
        member.lxc("delete", "--force", name)
    assert not lease(member, "br0", "static")
    member.rest.patch("/1.0/profiles/default", {"devices": {"eth0": {"type": "none"}}})
    events = member.events("lifecycle")
    member.rest.delete("/1.0/networks/br0")
    assert "br0" not in member.interfaces() and "covey_br0" not in member.tables() and not member.dns("br0")
    assert not os.path.exists(f"{member.dir}/networks/br0")
    refused(404, "Network not found", member.rest.get, "/1.0/networks/br0")
    create(member, "br0")
    member.rest.delete("/1.0/networks/br0")
    for action in ("network-deleted", "network-created"):
        events.wait_for(lambda one, wanted=action: one["metadata"].get("action") == wanted and one["metadata"]["source"] == "/1.0/networks/br0", 10, action)


@test(120)
def network_keys_and_names():
    """Bad names, keys and values are refused by name and change nothing; ETags guard; a standalone server may rename."""
    member = HostCluster(1, formed=False)[1]
    for name, text in (("sixteencharacter", "Network interface is too long (maximum 15 characters)"), ("x", "too short"),
                       ("a b", "invalid characters"), ("", "No name provided"), ("eth0", "already exists")):
        refused((400, 409), text, create, member, name)
    for kind, code, text in (("ovn", 501, "not implemented"), ("sriov", 501, "not implemented"), ("wire", 400, "Unrecognised network type")):
        refused(code, text, create, member, "n1", type=kind)
    for config, text in (({"nope": "1"}, 'Invalid option for network "n1" option "nope"'),
                         ({"tunnel.a.protocol": "vxlan"}, 'Config key "tunnel.a.protocol" of network "n1" is not supported'),
                         ({"ipv4.address": "10.0.0.0/24"}, "ipv4.address"), ({"ipv4.address": "10.0.0.1"}, "ipv4.address"),
                         ({"ipv4.nat": "perhaps"}, "ipv4.nat"), ({"bridge.mtu": "1"}, "bridge.mtu"), ({"dns.mode": "x"}, "dns.mode"),
                         ({"ipv4.address": "10.9.0.1/24", "ipv4.dhcp.ranges": "10.8.0.1-10.8.0.2"}, "10.8.0.1-10.8.0.2"),
                         ({"bridge.hwaddr": "01:16:3e:00:00:01"}, "bridge.hwaddr"), ({"bridge.mtu": "1000"}, "minimum MTU")):
        refused(400, text, create, member, "n1", config=config)
    assert {one["name"] for one in member.rest.get("/1.0/networks?recursion=1")} == {"lo", "eth0"}
    refused(400, 'Parent interface "eth9" not found', create, member, "n1", type="macvlan", config={"parent": "eth9"})
    refused(400, "parent", create, member, "n1", type="macvlan")
    create(member, "n1", type="macvlan", config={"parent": "eth0"})
    assert network(member, "n1")["config"] == {"parent": "eth0"}
    member.rest.delete("/1.0/networks/n1")
    create(member, "n1", config={"ipv4.address": "10.9.0.1/24", "ipv6.address": "none", "bridge.external_interfaces": "nowhere", "user.a": "b"})
    refused(400, "The network is already created", create, member, "n1")
    # ETags
    etag = member.rest.request("GET", "/1.0/networks/n1").headers["ETag"]
    refused(412, "ETag", member.rest.put, "/1.0/networks/n1", {"config": {}}, headers={"If-Match": '"bad"'})
    member.rest.patch("/1.0/networks/n1", {"description": "d"}, headers={"If-Match": etag})
    refused(412, "ETag", member.rest.patch, "/1.0/networks/n1", {"description": "e"}, headers={"If-Match": etag})
    member.rest.patch("/1.0/networks/n1", {"config": {"ipv4.address": "10.9.1.1/24", "ipv4.dhcp.ranges": "10.9.1.10-10.9.1.20", "user.a": ""}})
    assert member.addresses("n1") == ["10.9.1.1/24"] and "user.a" not in network(member, "n1")["config"]
    refused(400, "ipv4.dhcp.ranges", member.rest.patch, "/1.0/networks/n1", {"config": {"ipv4.address": "none"}})
    assert member.addresses("n1") == ["10.9.1.1/24"], "a refused change left traces"
    before = network(member, "n1")["config"]
    member.rest.put("/1.0/networks/n1", {"config": {"ipv4.address": "none"}, "description": "bare"})
    assert network(member, "n1")["config"] == {"ipv4.address": "none"} != before and member.addresses("n1") == []
    wait_until(lambda: not member.dns("n1"), 10, "no server without addresses")
    member.rest.post("/1.0/networks/n1", {"name": "n2"})
    assert "n2" in member.interfaces() and "n1" not in member.interfaces() and network(member, "n2")["description"] == "bare"
    member.restart()
    assert "n2" in member.interfaces()
    member.rest.delete("/1.0/networks/n2")


@test(180)
def network_two_phases():
    """§18.45 (networks): define per member, then create; a failed creation is Errored and can be repeated; only member keys with a target."""
    cluster = HostCluster(3)
    first = cluster[1]
    refused(400, "Network not pending on any node (use --target <node> first)", create, first, "br0")
    refused(404, "Cluster member not found", create, first, "br0", target="nobody")
    create(first, "br0", target="node1")
    refused(400, 'The network is already defined on member "node1"', create, cluster[2], "br0", target="node1")
    refused(400, 'Config key "ipv4.nat" may not be used as member-specific key', create, first, "br0", target="node2", config={"ipv4.nat": "true"})
    assert network(cluster[2], "br0")["status"] == "Pending"
    refused(400, "Cannot update network global config when not in created state", first.rest.patch, "/1.0/networks/br0", {"config": {"user.a": "1"}})
    refused(400, "Network not defined on nodes: node2, node3", create, first, "br0")
    create(first, "br0", target="node2", config={"bridge.external_interfaces": "absent0"})
    create(first, "br0", target="node3")
    refused(400, 'Invalid option for network "br0" option "parent"', create, first, "br0", config={"parent": "eth0"})
    refused(400, 'Config key "bridge.external_interfaces" is cluster member specific', create, first, "br0", config={"bridge.external_interfaces": "a"})
    # One host refuses: Errored, mended, repeated without configuration.
    cluster[3].shell("ip", "link", "add", "name", "br0", "type", "bridge")
    refused((400, 409), 'Network interface "br0" already exists', create, cluster[2], "br0", config={"ipv4.address": "10.9.0.1/24", "ipv6.address": "none"})
    assert network(first, "br0")["status"] == "Errored"
    refused(400, "Network already partially created", create, first, "br0", config={"ipv4.nat": "true"})
    cluster[3].shell("ip", "link", "del", "dev", "br0")
    create(cluster[3], "br0")
    for member in cluster:
        shown = network(member, "br0")
        assert shown["status"] == "Created" and shown["locations"] == ["node1", "node2", "node3"], shown
        assert shown["config"] == {"ipv4.address": "10.9.0.1/24", "ipv6.address": "none"}
        assert member.addresses("br0") == ["10.9.0.1/24"] and member.dns("br0")
    refused(400, "The network is already created", create, first, "br0")
    assert network(first, "br0", "?target=node2")["config"]["bridge.external_interfaces"] == "absent0"
    refused(400, "Renaming clustered network not supported", first.rest.post, "/1.0/networks/br0", {"name": "br1"})
    # Changes: global ones reach every host, member-specific ones that host alone.
    cluster[2].rest.patch("/1.0/networks/br0", {"config": {"bridge.mtu": "1400"}})
    for member in cluster:
        assert member.rest.get("/1.0/networks/br0/state")["mtu"] == 1400
    refused(400, "is cluster member specific", first.rest.patch, "/1.0/networks/br0", {"config": {"bridge.external_interfaces": "x0"}})
    refused(400, "may not be used as cluster member specific key", first.rest.patch, "/1.0/networks/br0?target=node3", {"config": {"bridge.mtu": "1300"}})
    cluster[3].shell("ip", "link", "add", "name", "ext0", "type", "veth", "peer", "name", "ext1")
    first.rest.patch("/1.0/networks/br0?target=node3", {"config": {"bridge.external_interfaces": "ext0"}})
    assert first.rest.get("/1.0/networks/br0/state?target=node3")["bridge"]["upper_devices"] == ["ext0"]
    asked = {(one["name"], one["key"]) for one in first.rest.get("/1.0/cluster")["member_config"] if one["entity"] == "network"}
    assert asked == {("br0", "bridge.external_interfaces")}, asked
    first.rest.delete("/1.0/networks/br0")
    for member in cluster:
        assert "br0" not in member.interfaces() and "covey_br0" not in member.tables() and not member.dns("br0")
    assert "ext0" in cluster[3].interfaces()


@test(150)
def network_member_away():
    """A member that is down: definition works, creation, change and deletion name it; it is mended when it comes back."""
    cluster = HostCluster(3)
    cluster[1].rest.patch("/1.0", {"config": {"cluster.offline_threshold": "11"}})
    quiet = {"ipv6.address": "none"}
    for number in (1, 2, 3):
        create(cluster[1], "old", target=f"node{number}")
    create(cluster[1], "old", config=quiet | {"ipv4.address": "10.9.0.1/24"})
    away = next(member for member in (cluster[3], cluster[2]) if member is not cluster.leader())
    asked = cluster[1]
    away.kill()
    wait_until(lambda: asked.members()[away.name]["status"] == "Offline", 40, "offline")
    for number in (1, 2, 3):
        create(asked, "new", target=f"node{number}")
    refused((500, 503), f"peer node {away.address} is down", create, asked, "new", config=quiet | {"ipv4.address": "10.9.1.1/24"})
    assert network(asked, "new")["status"] == "Errored"
    refused((500, 503), "is down", asked.rest.patch, "/1.0/networks/old", {"config": {"user.a": "1"}})
    refused((500, 503), "is down", asked.rest.delete, "/1.0/networks/old")
    assert "user.a" not in network(asked, "old")["config"]
    assert {"old", "new"} <= {one["name"] for one in asked.rest.get("/1.0/networks?recursion=1")}
    away.start()
    cluster.wait_online(60)
    assert away.addresses("old") == ["10.9.0.1/24"]
    create(asked, "new")
    assert network(away, "new")["status"] == "Created" and away.addresses("new") == ["10.9.1.1/24"]
    for name in ("old", "new"):
        away.rest.delete(f"/1.0/networks/{name}")


@test(240)
def network_work_outlives_its_leader():
    """The leader, or a member's daemon, is killed at a step of a creation, change or deletion: it is finished, or can be repeated, and hosts and database agree."""
    cluster = HostCluster(3)
    quiet = {"ipv6.address": "none"}

    def asked():
        leader = cluster.leader()
        return leader, next(member for member in cluster if member is not leader)

    def attempt(call, *arguments, **options):
        try:
            return call(*arguments, **options)
        except (harness.RestError, OSError) as error:
            print(f"  interrupted: {error}")
            return error

    def agree(name, config):
        def same():
            shown = network(cluster[1], name)
            return shown["status"] == "Created" and all(member.addresses(name) == [config["ipv4.address"]] for member in cluster)
        wait_until(same, 30, f"{name} everywhere with {config}")
    for number, point in enumerate(("network:begun", "network:made")):
        name, config = f"cr{number}", quiet | {"ipv4.address": f"10.9.{number}.1/24"}
        for index in (1, 2, 3):
            create(cluster[1], name, target=f"node{index}")
        leader, other = asked()
        leader.crash_at(point)
        attempt(create, other, name, config=config)
        leader.revive()
        cluster.wait_online()
        if network(other, name)["status"] != "Created":
            create(other, name)
        agree(name, config)
    # A member's daemon dies when it has begun.
    for index in (1, 2, 3):
        create(cluster[1], "cr9", target=f"node{index}")
    leader, other = asked()
    other.crash_at("host:network_record")
    config = quiet | {"ipv4.address": "10.9.9.1/24"}
    attempt(create, leader, "cr9", config=config)
    other.revive()
    cluster.wait_online()
    if network(leader, "cr9")["status"] != "Created":
        create(leader, "cr9")
    agree("cr9", config)
    # A change that reached the hosts and not the database: done again by the caller's own retry, or taken back.
    leader, other = asked()
    leader.crash_at("network:changed")
    attempt(other.rest.patch, "/1.0/networks/cr9", {"config": {"ipv4.address": "10.9.10.1/24"}})
    leader.revive()
    cluster.wait_online()
    agree("cr9", network(other, "cr9")["config"])
    leader, other = asked()
    leader.crash_at("network:removed")
    attempt(other.rest.delete, "/1.0/networks/cr9")
    leader.revive()
    cluster.wait_online()
    if "cr9" in {one["name"] for one in other.rest.get("/1.0/networks?recursion=1") if one["managed"]}:
        other.rest.delete("/1.0/networks/cr9")
    wait_until(lambda: not any("cr9" in member.interfaces() for member in cluster), 30, "cr9 is gone")


def preseed_first(member, networks):
    member.preseed({"config": {"core.https_address": member.address, "core.trust_password": harness.PASSWORD},
                    "storage_pools": [{"name": "default", "driver": "dir"}], "networks": networks,
                    "profiles": [{"name": "default", "devices": {"root": {"path": "/", "pool": "default", "type": "disk"},
                                                                  "eth0": {"type": "nic", "name": "eth0", "network": "lxdbr0"}}}],
                    "cluster": {"server_name": member.name, "enabled": True}})


@test(120)
def network_preseeded_bridge_on_both():
    """§18.10: preseed-bootstrap m1, preseed-join m2: the preseeded bridge exists on both hosts; a global key set on m2 is visible on both."""
    cluster = HostCluster(2, formed=False)
    preseed_first(cluster[1], [{"name": "lxdbr0", "type": "bridge", "config": {"ipv4.address": "10.9.3.1/24", "ipv6.address": "none"}}])
    cluster[2].join(cluster[1])
    cluster.wait_online()
    for member in cluster:
        assert member.addresses("lxdbr0") == ["10.9.3.1/24"] and member.dns("lxdbr0")
        assert network(member, "lxdbr0")["locations"] == ["node1", "node2"]
    cluster[2].rest.patch("/1.0", {"config": {"user.colour": "red"}})
    wait_until(lambda: all(member.rest.get("/1.0")["config"].get("user.colour") == "red" for member in cluster), 10, "the key on both")


@test(180)
def network_pending_does_not_stop_joins():
    """§18.11: a pending network for m2 only (and a pending pool for m1 only) do not stop m3 from joining through m2."""
    cluster = HostCluster(2)
    create(cluster[1], "brp", target="node2")
    cluster[1].rest.post("/1.0/storage-pools?target=node1", {"name": "pp", "driver": "dir"})
    third = cluster.add()
    through = next(member for member in cluster.members[:2] if member is not cluster.leader())
    third.join(through)
    cluster.wait_online()
    assert network(third, "brp")["locations"] == ["node2"] and network(third, "brp")["status"] == "Pending"
    assert "brp" not in third.interfaces()
    refused(400, "Network not defined on nodes: node1, node3", create, third, "brp")
    third.rest.delete("/1.0/networks/brp")


@test(180)
def network_joiner_must_fit():
    """§19.13 and the checks of §4.4: an interface or another network of the name makes the join fail and leaves the joiner as it was."""
    cluster = HostCluster(2, formed=False)
    first, joiner = cluster
    preseed_first(first, [{"name": "lxdbr0", "config": {"ipv4.address": "10.9.3.1/24", "ipv6.address": "none"}}])
    create(first, "up", type="macvlan", config={"parent": "eth0"})
    joiner.shell("ip", "link", "add", "name", "lxdbr0", "type", "bridge")
    answers = [{"entity": "network", "name": "up", "key": "parent", "value": "eth0"}]

    def fails(text):
        said = joiner.join(first, check=False, member_config=answers)
        assert said.returncode == 1 and text in said.stderr, said.stdout + said.stderr
        assert not joiner.rest.get("/1.0/cluster")["enabled"] and set(first.members()) == {"node1"}
    fails('Failed to initialize member: Failed to initialize storage pools and networks: Failed to update local member network "lxdbr0" in project "default"')
    assert "lxdbr0" in joiner.interfaces()
    joiner.shell("ip", "link", "del", "dev", "lxdbr0")
    create(joiner, "lxdbr0", config={"ipv4.address": "10.9.4.1/24", "ipv6.address": "none", "user.x": "1"})
    fails('Mismatching config for network "lxdbr0" in project "default": different values for keys: ipv4.address, user.x')
    joiner.rest.delete("/1.0/networks/lxdbr0")
    create(joiner, "lxdbr0", type="macvlan", config={"parent": "eth0"})
    fails('Mismatching type for network "lxdbr0" in project "default"')
    joiner.rest.delete("/1.0/networks/lxdbr0")
    create(joiner, "mine", config={"ipv4.address": "10.9.5.1/24", "ipv6.address": "none"})
    answers[0]["value"] = "eth9"
    fails('Parent interface "eth9" not found')
    assert "lxdbr0" not in joiner.interfaces(), "made for the join that failed"
    assert joiner.addresses("mine") == ["10.9.5.1/24"]
    answers[0]["value"] = "eth0"
    joiner.join(first, member_config=answers)
    cluster.wait_online()
    assert joiner.addresses("lxdbr0") == ["10.9.3.1/24"]
    assert network(joiner, "up", "?target=node2")["config"]["parent"] == "eth0"
    wait_until(lambda: "mine" not in joiner.interfaces(), 20, "a network of the former server is gone")


if __name__ == "__main__":
    main()
