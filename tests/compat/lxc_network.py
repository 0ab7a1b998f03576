"""`lxc network …` of the stock client, on a server of its own and in a cluster."""
import csv

from harness import busybox_image, main, test, wait_until
from networks import HostCluster


def table(text):
    return list(csv.reader(text.splitlines()))


def fails(member, text, *arguments, stdin=None):
    result = member.lxc(*arguments, stdin=stdin, check=False)
    assert result.returncode == 1 and text in result.stderr, f"lxc {' '.join(arguments)}: {result.returncode} {result.stdout}{result.stderr}"


@test(120)
def lxc_network_standalone():
    member = HostCluster(1, formed=False)[1]

    def lxc(*arguments, **options):
        return member.lxc(*arguments, **options).stdout
    member.shell("ip", "link", "add", "name", "own0", "type", "bridge")
    assert "Network br0 created" in lxc("network", "create", "br0", "ipv4.address=10.9.0.1/24", "ipv4.nat=true", "ipv6.address=none")
    rows = {row[0]: row[1:] for row in table(lxc("network", "list", "--format", "csv"))}
    assert rows["br0"] == ["bridge", "YES", "10.9.0.1/24", "none", "", "0", "CREATED"], rows
    assert rows["own0"][:2] == ["bridge", "NO"] and "lo" not in rows, rows
    assert "managed: true" in lxc("network", "show", "br0")
    info = lxc("network", "info", "br0")
    assert "10.9.0.1/24" in info and "State: up" in info and "Bridge:" in info, info
    assert "State: up" in lxc("network", "info", "eth0")
    lxc("network", "set", "br0", "bridge.mtu=1400", "user.a=b")
    assert lxc("network", "get", "br0", "bridge.mtu") == "1400\n" and "MTU: 1400" in lxc("network", "info", "br0")
    lxc("network", "unset", "br0", "user.a")
    assert "user.a" not in lxc("network", "show", "br0")
    lxc("network", "edit", "br0", stdin=lxc("network", "show", "br0").replace('description: ""', "description: edited"))
    assert "description: edited" in lxc("network", "show", "br0")
    fails(member, "nope", "network", "set", "br0", "nope=1")
    fails(member, "Network interface is too long", "network", "create", "sixteencharacter")
    fails(member, "not found", "network", "show", "absent")
    fails(member, "Only managed networks can be modified", "network", "set", "own0", "user.a=b")
    lxc("network", "rename", "br0", "br1")
    assert "br1" in member.interfaces() and "br0" not in member.interfaces()
    # Profiles, containers, leases
    lxc("storage", "create", "default", "dir")
    lxc("profile", "device", "add", "default", "root", "disk", "path=/", "pool=default")
    lxc("network", "attach-profile", "br1", "default", "eth0", "eth0")
    shown = lxc("profile", "show", "default")
    assert "parent: br1" in shown, shown
    lxc("image", "import", busybox_image(), "--alias", "bb")
    lxc("launch", "bb", "c1")
    lease = wait_until(lambda: [row for row in table(lxc("network", "list-leases", "br1", "--format", "csv")) if row[0] == "c1"], 60, "a lease")[0]
    assert lease[2].startswith("10.9.0.") and lease[3] == "DYNAMIC", lease
    wait_until(lambda: lease[2] in lxc("list", "--format", "csv"), 60, "the address in the list")
    assert "/1.0/instances/c1" in lxc("network", "show", "br1")
    fails(member, "The network is currently in use", "network", "delete", "br1")
    lxc("network", "detach-profile", "br1", "default")
    lxc("stop", "--force", "c1")
    lxc("network", "attach", "br1", "c1", "eth0", "eth0")
    fails(member, "The network is currently in use", "network", "delete", "br1")
    lxc("delete", "--force", "c1")
    lxc("init", "bb", "c2", "--network", "br1")
    assert "network: br1" in lxc("config", "show", "c2")
    lxc("delete", "c2")
    lxc("network", "delete", "br1")
    assert "br1" not in member.interfaces()


@test(120)
def lxc_network_cluster():
    cluster = HostCluster(2)
    first, second = cluster

    def lxc(*arguments, member=first, **options):
        return member.lxc(*arguments, **options).stdout
    fails(first, "Network not pending on any node", "network", "create", "br0")
    assert "Network br0 pending on member node1" in lxc("network", "create", "br0", "--target", "node1")
    fails(first, "may not be used as member-specific key", "network", "create", "br0", "ipv4.nat=true", "--target", "node2")
    fails(first, "Network not defined on nodes: node2", "network", "create", "br0")
    lxc("network", "create", "br0", "--target", "node2", "bridge.external_interfaces=later0")
    rows = {row[0]: row[-1] for row in table(lxc("network", "list", "--format", "csv", member=second))}
    assert rows["br0"] == "PENDING", rows
    assert "Network br0 created" in lxc("network", "create", "br0", "ipv6.address=none", member=second)
    shown = lxc("network", "show", "br0")
    assert "status: Created" in shown and "- node2" in shown and "external" not in shown, shown
    assert "bridge.external_interfaces: later0" in lxc("network", "show", "br0", "--target", "node2")
    address = lxc("network", "get", "br0", "ipv4.address").strip()
    for member in cluster:
        assert member.addresses("br0") == [address]
    lxc("network", "set", "br0", "bridge.external_interfaces=", "--target", "node2")
    assert "external" not in lxc("network", "show", "br0", "--target", "node2")
    fails(first, "cluster member specific", "network", "set", "br0", "bridge.external_interfaces=x0")
    fails(first, "Renaming clustered network not supported", "network", "rename", "br0", "br1")
    assert "Name: br0" in lxc("network", "info", "br0", "--target", "node2")
    assert [row[3] for row in table(lxc("network", "list-leases", "br0", "--format", "csv"))] == ["GATEWAY"]
    fails(first, "not implemented", "network", "create", "ovn0", "--type", "ovn", "--target", "node1")
    lxc("network", "delete", "br0", member=second)
    for member in cluster:
        assert "br0" not in member.interfaces()


main()
