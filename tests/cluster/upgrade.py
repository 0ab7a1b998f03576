"""Members of different versions: who serves, who waits, who must not run. A version is made by the environment, which raises the API level (a change
that cannot be shared) or adds schema steps (shared, or not)."""
import os
import time

from harness import Cluster, Member, main, needs_covey, refused, test, wait_until

NEWER = "LXD version is newer than other members"
OLDER = "LXD version is older than other members"
WAITING = "Wait for other cluster nodes to upgrade their versions"
BEHIND = "this node's version is behind, please upgrade"
READY_SECONDS = 30


def version(member, api=0, schema=0, incompatible=False):
    """The version that the member's next start pretends to be."""
    member.extra_environment = {}
    if api:
        member.extra_environment["LXD_ARTIFICIALLY_BUMP_API_EXTENSIONS"] = str(api)
    if schema:
        member.extra_environment["COVEY_TEST_SCHEMA_LEVEL_BUMP"] = str(schema)
    if incompatible:
        member.extra_environment["COVEY_TEST_SCHEMA_INCOMPATIBLE"] = "1"
    return member


def change(member, wait=False, kill=False, **level):
    """Restarts the member as another version."""
    member.kill() if kill else member.stop()
    version(member, **level).start(wait=wait)
    return member


def shown(member, other):
    record = member.members()[other.name]
    return record["status"], record["message"]


def blocked(member, seconds=READY_SECONDS):
    """The member refuses at once, and says why."""
    def said():
        begun = time.monotonic()
        try:
            member.rest.get("/1.0/profiles")
        except Exception as error:  # noqa: BLE001
            text = str(error)
            return WAITING in text and time.monotonic() - begun < 2
        return False
    wait_until(said, seconds, f"{member.name} blocked")


def serves(cluster, *members):
    """They answer, and writes work through each."""
    for member in members:
        def works(one=member):
            one.rest.put("/1.0/profiles/default", one.rest.get("/1.0/profiles/default") | {"description": one.name})
            return one.rest.get("/1.0/profiles/default")["description"] == one.name
        wait_until(works, READY_SECONDS, f"{member.name} serves")


def all_ready(cluster, seconds=READY_SECONDS):
    deadline = time.monotonic() + seconds
    for member in cluster:
        member.wait_ready(max(1, deadline - time.monotonic()))
    for member in cluster:
        for name, record in member.members().items():
            assert record["status"] != "Offline", f"{name}: {record}"
    cluster.wait_online()


def released(cluster, last):
    """Ten seconds after the last one is ready all are, and none is Offline."""
    begun = time.monotonic()
    last.wait_ready()
    ready = time.monotonic()
    all_ready(cluster)
    assert time.monotonic() - ready < 10, f"{time.monotonic() - ready:.1f} s after the last was ready at {ready - begun:.1f} s"


def roll(cluster, order):
    """Upgrades in this order: those before the last wait, the others serve; the last one releases all."""
    order = list(order)
    for count, member in enumerate(order, 1):
        change(member, api=1)
        if count < len(order):
            older = [one for one in cluster if one not in order[:count]]
            blocked(member)
            for one in older:
                wait_until(lambda one=one: shown(one, member) == ("Blocked", NEWER) and shown(one, one) == ("Online", OLDER),
                           READY_SECONDS, f"{one.name} shows {member.name} blocked")
            serves(cluster, *older)
    released(cluster, order[-1])
    serves(cluster, *cluster)


@test(240)
def upgrade():
    """§18.38: two members, then three: who is upgraded first waits, the other one serves and shows it; after the last upgrade all are ready."""
    cluster = Cluster(2, config={"cluster.offline_threshold": "11"})
    first, second = cluster
    change(second, api=1)
    result = second.admin("waitready", "--timeout=5", check=False)
    assert result.returncode == 1 and "LXD still not running after 5s timeout" in result.stderr, result
    serves(cluster, first)
    assert shown(first, second) == ("Blocked", NEWER), shown(first, second)
    assert shown(first, first) == ("Online", OLDER), shown(first, first)
    change(first, api=1)
    all_ready(cluster)
    third = version(Member(3, f"{cluster.prefix}.3"), api=1).start()
    cluster.members.append(third)
    third.join(first)
    cluster.wait_online()
    for member in (third, second):
        change(member, api=2)
        blocked(member)
    serves(cluster, first)
    change(first, api=2)
    all_ready(cluster)


@test(240)
def upgrade_leader_first():
    """The leader goes first: the older members lead and serve meanwhile."""
    cluster = Cluster(3)
    leader = cluster.leader()
    roll(cluster, [leader] + [member for member in cluster if member is not leader])


@test(240)
def upgrade_leader_last():
    cluster = Cluster(3)
    leader = cluster.leader()
    roll(cluster, [member for member in cluster if member is not leader] + [leader])


@test(120)
def upgrade_two_leader_first():
    """The only voter of two is upgraded: the stand-by takes over and serves."""
    cluster = Cluster(2)
    roll(cluster, [cluster[1], cluster[2]])


@test(120)
def upgrade_all_at_once():
    """All stopped, all started newer, in any order."""
    cluster = Cluster(3)
    for member in cluster:
        member.stop()
    for member in reversed(list(cluster)):
        version(member, api=1).start(wait=False)
    all_ready(cluster)
    serves(cluster, *cluster)


@test(120)
def upgrade_with_a_member_down():
    """While one is down the upgraded ones wait for it; its return as the new version releases them."""
    cluster = Cluster(3)
    down = cluster[3].kill()
    for member in (cluster[1], cluster[2]):
        change(member, api=1)
    for member in (cluster[1], cluster[2]):
        blocked(member)
    version(down, api=1).start(wait=False)
    all_ready(cluster)
    serves(cluster, *cluster)


@test(120)
def upgrade_with_a_member_lost():
    """When all others wait for one that will never come back, its row is deleted on a blocked member, and they go on."""
    cluster = Cluster(3)
    cluster[3].kill()
    left = [cluster[1], cluster[2]]
    for member in left:
        change(member, api=1)
    for member in left:
        blocked(member)
    cluster[2].admin("sql", "global", "DELETE FROM nodes WHERE name = 'node3'")
    cluster.members.pop()
    all_ready(cluster)
    serves(cluster, *left)


@test(120)
def downgrade_before_completion():
    """§18.40: back to the old version before the last upgrade is as before; an old one among those that have gone on must not run."""
    cluster = Cluster(3)
    change(cluster[2], api=1)
    blocked(cluster[2])
    change(cluster[2], wait=True)
    cluster.wait_online()
    assert shown(cluster[1], cluster[2]) == ("Online", "Fully operational")
    change(cluster[3], api=1)
    change(cluster[1], kill=True, wait=True)  # an old one that restarts meanwhile serves again
    serves(cluster, cluster[1], cluster[2])
    for member in (cluster[1], cluster[2]):
        change(member, api=1)
    all_ready(cluster)
    old = cluster[2]
    old.stop()
    version(old).start(wait=False)
    old.expected_down = True
    assert old.process.wait(READY_SECONDS) == 1, old.process.returncode
    with open(old.stderr, encoding="utf-8") as file:
        assert BEHIND in file.read().splitlines()[-1]
    serves(cluster, cluster[1], cluster[3])
    version(old, api=1).start()
    cluster.wait_online()


def number(member, query):
    """The one number that a query gives."""
    return int(member.admin("sql", "global", query).stdout.split("\n")[3].strip("| "))


@test(120)
def version_mismatch_refuses_join():
    """§18.41: a joiner of another version is refused with the cluster's numbers, and while members differ nobody can join."""
    cluster = Cluster(2)
    joiner = version(Member(3, f"{cluster.prefix}.3"), api=7).start()
    text = "The joining server version doesn't match (expected "
    api, schema = (number(cluster[1], f"SELECT max({column}) FROM nodes") for column in ("api_extensions", "schema"))
    result = joiner.join(cluster[1], check=False)
    assert result.returncode == 1 and text in result.stderr and f"with API count {api})" in result.stderr, result.stderr
    assert joiner.rest.get("/1.0/cluster")["enabled"] is False
    change(joiner, wait=True, schema=1)
    result = joiner.join(cluster[1], check=False)
    assert result.returncode == 1 and text in result.stderr and f"with DB schema {schema})" in result.stderr, result.stderr
    assert sorted(cluster[1].members()) == ["node1", "node2"]


def schema_rows(member):
    """The book of schema steps as this member's leader has it."""
    return member.admin("sql", "global", "SELECT version FROM schema ORDER BY version").stdout


@test(240)
def schema_update():
    """An additive update keeps all serving and is applied once when the last member knows it; an incompatible one blocks; kill -9 meanwhile; then the
    old code must not run."""
    cluster = Cluster(3)
    before = schema_rows(cluster[1])
    for member in (cluster[1], cluster[2]):
        change(member, wait=True, schema=1)
        serves(cluster, *cluster)
        assert schema_rows(member) == before, "applied though not all know it"
    assert shown(cluster[3], cluster[1]) == ("Online", NEWER) and shown(cluster[1], cluster[3]) == ("Online", OLDER)
    change(cluster[3], wait=True, schema=1)
    after = wait_until(lambda: schema_rows(cluster[1]) != before and schema_rows(cluster[1]), READY_SECONDS, "the update")
    cluster.assert_equal_state()

    change(cluster[1], schema=2, incompatible=True)
    blocked(cluster[1])
    serves(cluster, cluster[2], cluster[3])
    for _ in range(2):
        change(cluster[2], kill=True, schema=2, incompatible=True)
    assert schema_rows(cluster[3]) == after
    for _ in range(3):
        change(cluster[3], kill=True, schema=2, incompatible=True)
        time.sleep(0.3)  # dies in the midst of it, at another step each time
    all_ready(cluster)
    serves(cluster, *cluster)
    assert schema_rows(cluster[1]) not in (before, after)
    assert number(cluster[1], "SELECT count(*) = max(version) FROM schema") == 1, "not every step once"
    cluster.assert_equal_state()

    old = cluster[1]
    old.stop()
    version(old, schema=1).start(wait=False)
    old.expected_down = True
    assert old.process.wait(READY_SECONDS) == 1
    with open(old.stderr, encoding="utf-8") as file:
        assert BEHIND in file.read().splitlines()[-1]
    version(old, schema=2, incompatible=True).start()
    cluster.wait_online()


@test(120)
def blocked_member_keeps_containers():
    """A blocked member keeps its container running, votes, and is asked nothing."""
    cluster = Cluster(3)
    cluster.import_image()
    cluster[3].lxc("launch", "busybox", "c1", "--target", "node3")
    pid = cluster[1].rest.get("/1.0/instances/c1/state")["pid"]
    assert pid > 0
    change(cluster[3], api=1)
    blocked(cluster[3])
    os.kill(pid, 0)
    refused(400, "waits for other members to be upgraded", cluster[1].rest.post, "/1.0/instances?target=node3",
            {"name": "c2", "source": {"type": "image", "alias": "busybox"}})
    refused(400, WAITING, cluster[1].rest.put, "/1.0/instances/c1/state", {"action": "stop", "force": True, "timeout": 5})
    os.kill(pid, 0)
    other = next(member for member in (cluster[1], cluster[2]) if member is not cluster.leader())
    other.kill()
    serves(cluster, cluster.leader())  # two of three voters, one of them blocked
    for member in (cluster[1], cluster[2]):
        change(member, kill=not member.alive(), api=1)
    all_ready(cluster)
    assert cluster[1].rest.get("/1.0/instances/c1/state")["pid"] == pid
    cluster[1].lxc("delete", "-f", "c1")


@test(120)
def update_hook():
    """A member that learns of newer ones runs LXD_CLUSTER_UPDATE once, after at most 29 s."""
    needs_covey("the peer's hook needs its own paths")
    cluster = Cluster(2, formed=False)
    mark = os.path.join(cluster[1].test.dir, "mark")
    program = os.path.join(cluster[1].test.dir, "update")
    with open(program, "w", encoding="ascii") as file:
        file.write(f"#!/bin/sh\necho updated >>{mark}\n")
    os.chmod(program, 0o755)
    cluster[1].stop()
    cluster[1].extra_environment = {"LXD_CLUSTER_UPDATE": program}
    cluster[1].start()
    cluster.form()
    assert not os.path.exists(mark)
    change(cluster[2], api=1)
    wait_until(lambda: os.path.exists(mark), 60, "the hook")
    time.sleep(1)
    with open(mark, encoding="ascii") as file:
        assert file.read() == "updated\n"


@test(300)
def upgrade_large():
    """§18.39: eight members are upgraded from the last to the first: then all are ready within ten seconds, none Offline."""
    cluster = Cluster(8)
    for member in reversed(list(cluster)):
        change(member, api=1)
    released(cluster, cluster[1])


main()
