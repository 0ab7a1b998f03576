"""One member after another gets another address while the rest of the cluster works: `admin cluster set-address`."""
import threading
import time

from harness import PORT, Cluster, RestError, main, needs_covey, test, wait_until
from namespaces import NETWORK, NetworkCluster

OUTAGE_SECONDS_MAX = 8  # a stop hands leadership over; an election on a loaded machine
WRITE_SECONDS = 20


class Writer(threading.Thread):
    """Writes one key after another through a member that stays up; no write may fail for good, none may be lost."""

    def __init__(self):
        super().__init__(daemon=True)
        self.member = None
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.written, self.worst, self.errors = 0, 0.0, []

    def through(self, member):
        with self.lock:
            self.member = member

    def run(self):
        while not self.stopping.is_set():
            with self.lock:
                started = time.monotonic()
                try:
                    self.member.rest.patch("/1.0/profiles/w", {"config": {f"user.k{self.written}": "x"}}, timeout=WRITE_SECONDS)
                    self.written += 1
                except (OSError, ValueError, RestError) as error:
                    self.errors.append(str(error)[:200])
                self.worst = max(self.worst, time.monotonic() - started)
            time.sleep(0.05)


def move(member, address, check=True):
    return member.admin("cluster", "set-address", address, check=check)


def told(members, member):
    """What all these members say of the member's address."""
    return {one.members()[member.name]["url"] for one in members}


@test(240)
def members_move_one_by_one():
    """Three voters on hosts of their own get other addresses in turn, the leader among them. A writer through another member meets no error and waits no longer than
    for an ordinary change of leader. Afterwards all know each other only by the new addresses, also after a restart of all at once."""
    needs_covey("LXD needs all members stopped for this")
    cluster = NetworkCluster(3, config={"cluster.offline_threshold": "11"})
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    cluster[1].rest.post("/1.0/profiles", {"name": "w"})
    writer = Writer()
    writer.through(cluster[2])
    writer.start()
    moved_leader = False
    for member in cluster:
        others = [one for one in cluster if one is not member]
        writer.through(others[0])
        moved_leader = moved_leader or cluster.leader() is member
        new = f"{NETWORK}.{100 + member.index}"
        cluster.add_address(member, new)
        member.stop()
        cluster.remove_address(member, member.host)
        move(member, new)
        member.address = f"{new}:{PORT}"
        member.start()
        wait_until(lambda: told(cluster, member) == {f"https://{member.address}"}, 30, f"the new address of {member.name} everywhere")
        cluster.wait_online(60)
        for one in others:  # both ways, not only from the moved member
            assert one.rest.get(f"/1.0?target={member.name}")["environment"]["server_name"] == member.name
            assert member.rest.get(f"/1.0?target={one.name}")["environment"]["server_name"] == one.name
        wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters again")
    writer.stopping.set()
    writer.join(WRITE_SECONDS + 10)
    print(f"{writer.written} writes, the slowest {writer.worst:.2f} s")
    assert not writer.errors, writer.errors
    assert writer.worst < OUTAGE_SECONDS_MAX and writer.written > 50, (writer.worst, writer.written)
    assert len(cluster[1].rest.get("/1.0/profiles/w")["config"]) == writer.written
    for member in cluster:
        assert member.admin("cluster", "show").stdout.count(f"address: {NETWORK}.10") == 3
        assert member.rest.get("/1.0")["config"]["cluster.https_address"] == member.address
        member.kill()
    for member in cluster:
        member.start(wait=False)
    cluster.wait_online(60)
    cluster.assert_equal_state()
    if not moved_leader:
        raise AssertionError("no leader was moved")


@test(150)
def moved_voter_without_which_there_is_no_leader():
    """One of three voters is away while the second is moved: the third cannot reach it by what it knows, and neither leads without the other. The one that was away
    comes back when the third is gone, and finds the moved one as well. The moved one is killed between the steps."""
    needs_covey("LXD needs all members stopped for this")
    cluster = Cluster(3, config={"cluster.offline_threshold": "11"})
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    one, two, three = cluster
    cluster[1].rest.post("/1.0/profiles", {"name": "before"})
    for member in (three, two, one):
        member.kill()
    move(two, f"{two.host}:9443")
    two.address = f"{two.host}:9443"
    two.start(wait=False)
    time.sleep(0.5)
    two.kill()  # before anybody heard
    two.start(wait=False)
    one.start(wait=False)
    for member in (one, two):
        member.wait_ready(60)
    wait_until(lambda: told([one, two], two) == {f"https://{two.address}"}, 30, "the new address")
    one.rest.post("/1.0/profiles", {"name": "between"})
    one.kill()
    two.kill()
    three.start(wait=False)  # knows the old address
    two.start(wait=False)
    for member in (two, three):
        member.wait_ready(60)
    wait_until(lambda: told([two, three], two) == {f"https://{two.address}"}, 30, "the new address, also at the member that was away")
    three.rest.post("/1.0/profiles", {"name": "after"})
    one.start()
    cluster.wait_online(60)
    cluster.assert_equal_state()


@test(120)
def two_members_and_edit_of_one():
    """A cluster of two: its only voter moves by `cluster edit` of its own line, then the other by set-address."""
    needs_covey("LXD needs all members stopped for this")
    cluster = Cluster(2, config={"cluster.offline_threshold": "11"})
    leader = cluster.leader()
    other = cluster[1] if leader is cluster[2] else cluster[2]
    for member, command in ((leader, "edit"), (other, "set-address")):
        new = f"{member.host}:9443"
        member.stop()
        if command == "edit":
            shown = member.admin("cluster", "show").stdout
            member.admin("cluster", "edit", stdin=shown.replace(member.address, new))
        else:
            move(member, new)
        member.address = new
        member.start(wait=False)
        member.wait_ready(60)
        wait_until(lambda: told(cluster, member) == {f"https://{new}"}, 30, "the new address everywhere")
        cluster.wait_online(60)
    other.rest.post("/1.0/profiles", {"name": "after"})
    cluster.assert_equal_state()


@test(120)
def refused_addresses():
    """set-address: wants a stopped member of a cluster and a free, concrete address; otherwise nothing changes."""
    needs_covey("LXD has no such command")
    cluster = Cluster(3, config={"cluster.offline_threshold": "11"})
    first, second, third = cluster
    result = move(third, f"{third.host}:9443", check=False)
    assert result.returncode == 1 and "The LXD daemon is running, please stop it first." in result.stderr, result
    third.stop()
    before = third.admin("cluster", "show").stdout
    for address, text in ((second.address, f'The address "{second.address}" belongs to member "{second.name}"'), ("0.0.0.0:8443", "Wildcard addresses aren't allowed"),
                          ("[::]:8443", "Wildcard addresses aren't allowed"), ("nowhere.invalid", 'Couldn\'t resolve "nowhere.invalid"'), ("a:b:c", "a:b:c")):
        result = move(third, address, check=False)
        assert result.returncode == 1 and text in result.stderr, (address, result)
        assert third.admin("cluster", "show").stdout == before
    third.start()
    cluster.wait_online(60)
    standalone = cluster.add()
    standalone.stop()
    result = move(standalone, "127.0.0.1:9443", check=False)
    assert result.returncode == 1 and "This LXD instance is not clustered" in result.stderr, result


@test(180)
def address_given_away_meanwhile():
    """A member takes the address that another one got while it was stopped: only the leader knows. The member ends with the reason, no row changes, and it comes back with
    an address of its own."""
    needs_covey("LXD has no such command")
    cluster = NetworkCluster(4, config={"cluster.offline_threshold": "11"})
    first, second, third, fourth = cluster
    third.stop()
    taken = f"{NETWORK}.101"
    cluster.add_address(first, taken)
    first.stop()
    move(first, taken)
    first.address = f"{taken}:{PORT}"
    first.start()
    wait_until(lambda: told([first, second, fourth], first) == {f"https://{first.address}"}, 30, "the first member's new address")
    assert taken not in third.admin("cluster", "show").stdout
    first.stop()
    cluster.remove_address(first, taken)
    cluster.add_address(third, taken)
    move(third, taken)
    third.start(wait=False)
    wait_until(lambda: not third.alive(), 60, "the end of the refused member")
    assert f'The address "{first.address}" belongs to member "{first.name}"' in third.log_tail(60)
    members = second.members()
    assert (members[first.name]["url"], members[third.name]["url"]) == (f"https://{first.address}", f"https://{third.address}"), members
    cluster.remove_address(third, taken)
    cluster.add_address(first, taken)
    move(third, third.address)
    first.start(wait=False)
    third.start()
    cluster.wait_online(60)
    assert told(cluster, third) == {f"https://{third.address}"}


main()
