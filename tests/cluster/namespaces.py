"""Clusters on a network of their own: every member in a network namespace, all joined by a bridge in one more, so that links can be cut.

`NetworkCluster` is a `Cluster` (harness.py) with cut, cut_one_way, latency and heal. The bridge's namespace drops frames by nftables, which is what a broken
switch looks like: no link goes down, packets just do not arrive. Unix sockets do not know of network namespaces, so `member.rest`, `member.lxc` and the like
work as ever; `inside(member)` is for TCP. Everything is named after the test, and leftovers.py removes namespaces by that name.
"""
import contextlib
import ctypes
import os
import subprocess

import harness
from harness import Cluster, Member, Skip

NETWORK = "10.77.0"  # nobody else sees it
CLIENTS = "10.78.0"  # second addresses, for clients
CLONE_NEWNET = 0x40000000


def _run(*command, stdin=None, check=True):
    result = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    if check and result.returncode:
        raise AssertionError(f"{' '.join(command)}: exit {result.returncode}\n{result.stdout}{result.stderr}{stdin or ''}")
    return result


class NetworkMember(Member):
    """A member in a namespace of its own. Its commands run there, too."""

    def __init__(self, index, host, core_host, namespace):
        super().__init__(index, host, core_host=core_host)
        self.namespace = namespace
        self.launcher = ("nsenter", f"--net=/run/netns/{namespace}", "--")

    def run(self, command, **options):
        return super().run([*self.launcher, *command], **options)


@contextlib.contextmanager
def inside(member):
    """Sockets that this thread makes meanwhile belong to the member's namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path):
        with open(path, "rb") as file:
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter(f"/run/netns/{member.namespace}")
        yield
    finally:
        enter(f"/proc/self/fd/{own}")
        os.close(own)


class NetworkCluster(Cluster):
    member_class = NetworkMember

    def network(self, count):
        test = harness.CURRENT
        self.switch = f"{test.id}-switch"
        self.cuts = set()  # (port from, port to), "*" = any
        self._namespace(self.switch)
        _run("ip", "-n", self.switch, "link", "add", "bridge0", "type", "bridge")
        _run("ip", "-n", self.switch, "link", "set", "bridge0", "up")
        return NETWORK

    @staticmethod
    def _namespace(name):
        harness.CURRENT.record_path()
        harness.CURRENT.note("netns", name)
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")

    def member(self, index, host, core_host):
        name = f"{harness.CURRENT.id}-{index}"
        self._namespace(name)
        _run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", f"port{index}", "netns", self.switch)
        _run("ip", "-n", self.switch, "link", "set", f"port{index}", "master", "bridge0", "up")
        for address in (host, f"{CLIENTS}.{index}"):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        return self.member_class(index, host, f"{CLIENTS}.{index}" if core_host else None, name)

    def add_address(self, member, host):
        """One more address of this host, e.g. for a member that is to move there; it stays when the first one goes."""
        _run("nsenter", f"--net=/run/netns/{member.namespace}", "--", "tee", "/proc/sys/net/ipv4/conf/eth0/promote_secondaries", stdin="1\n")
        _run("ip", "-n", member.namespace, "addr", "add", f"{host}/24", "dev", "eth0")

    def remove_address(self, member, host):
        _run("ip", "-n", member.namespace, "addr", "del", f"{host}/24", "dev", "eth0")

    # --- faults -------------------------------------------------------------------------------------------------------------------

    def _apply(self):
        rules = ["add table bridge cuts", "delete table bridge cuts", "add table bridge cuts",
                 "add chain bridge cuts forward { type filter hook forward priority 0; policy accept; }"]
        for source, target in sorted(self.cuts):
            match = (f'iifname "{source}" ' if source != "*" else "") + (f'oifname "{target}" ' if target != "*" else "")
            rules.append(f"add rule bridge cuts forward {match}drop")
        _run("nsenter", f"--net=/run/netns/{self.switch}", "--", "nft", "-f", "-", stdin="\n".join(rules) + "\n")

    def cut(self, *members):
        """Nothing reaches these members or comes from them, from each other neither."""
        for member in members:
            self.cuts |= {(f"port{member.index}", "*"), ("*", f"port{member.index}")}
        self._apply()

    def cut_one_way(self, source, target):
        """What `source` sends does not reach `target`; the other direction works."""
        self.cuts.add((f"port{source.index}", f"port{target.index}"))
        self._apply()

    def cut_between(self, some, others):
        """Two groups that do not hear of each other."""
        for one in some:
            for other in others:
                self.cuts |= {(f"port{one.index}", f"port{other.index}"), (f"port{other.index}", f"port{one.index}")}
        self._apply()

    def heal(self, *members):
        """Mends what was cut at these members; without any: everything."""
        ports = {f"port{member.index}" for member in members}
        self.cuts = {cut for cut in self.cuts if ports and not ports & set(cut)}
        self._apply()

    def latency(self, member, milliseconds):
        """Delays what the member sends; 0 = no longer. Skips the test where the kernel cannot."""
        action = ("replace", "netem", "delay", f"{milliseconds}ms") if milliseconds else ("del",)
        result = _run("nsenter", f"--net=/run/netns/{member.namespace}", "--", "tc", "qdisc", action[0], "dev", "eth0", "root", *action[1:],
                      check=False)
        if result.returncode and milliseconds:
            raise Skip(f"this kernel has no netem: {result.stderr.strip()}")
