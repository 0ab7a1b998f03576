"""kill -9 of the joiner or of the leader at every step of a join, and of a server that becomes the first member: it ends joined, or as before with its
data, and the next join needs no help. The steps are the crash points of server/cluster (proto/core/core.h, crash_point)."""
import os
import subprocess

from harness import PASSWORD, Cluster, Member, main, needs_covey, program, test, to_yaml, wait_until

JOINER = ("asked", "introduced", "accepted", "making", "switching", "closed", "moved", "identity", "placed", "view", "completed", "dropped")
LEADER = ("introduced", "accepted", "added", "completed", "roles")
SETTLE_SECONDS = 90  # a restart, a new leader, a join that goes on


def armed(member):
    """Starts a member that dies where its file says."""
    os.environ["COVEY_TEST_CRASH_AT"] = f"@{member.dir}.crash"
    member.start()
    del os.environ["COVEY_TEST_CRASH_AT"]
    return member


def arm(member, point):
    with open(f"{member.dir}.crash", "w", encoding="ascii") as file:
        file.write(point)


def died(member):
    if member.process.poll() is None:
        return False
    assert member.process.returncode == -9, f"{member.name} ended with {member.process.returncode}\n{member.log_tail()}"
    member.expected_down = True
    return True


def settled(cluster, joiner):
    """'joined', 'before', or None while neither holds."""
    info = joiner.rest.get("/1.0/cluster")
    seen = [member.members() for member in cluster.running()]
    if info["enabled"] and info["server_name"] == joiner.name:
        full = all(joiner.name in records and records[joiner.name]["status"] == "Online" for records in seen)
        return "joined" if full and sorted(joiner.members()) == sorted(seen[0]) else None
    certificates = [one["name"] for one in cluster.running()[0].rest.get("/1.0/certificates?recursion=1")]
    if not info["enabled"] and all(joiner.name not in records for records in seen) and joiner.name not in certificates:
        return "before"
    return None


def no_residue(cluster, joiner):
    """Neither side keeps anything of the failed join."""
    assert joiner.rest.get("/1.0/profiles/mine")["description"] == "own data", "the joiner's own data"
    assert joiner.rest.get("/1.0/storage-pools") == [], "the joiner's pools"
    assert not os.path.exists(os.path.join(joiner.dir, "storage-pools", "default")), "a pool of the cluster stayed on the joiner"
    for name in ("cluster.crt", "cluster.key", "database/global.before"):
        assert not os.path.exists(os.path.join(joiner.dir, name)), f"{name} stayed on the joiner"
    rows = cluster.leader().admin("sql", "global", "SELECT count(*) FROM nodes WHERE state = 1").stdout
    assert "| 0 " in rows, f"pending rows: {rows}"


def client_of(member, *arguments, stdin=""):
    """A running client, which may lose its daemon."""
    client = subprocess.Popen([program("covey"), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              text=True, env=member.environment())
    client.stdin.write(stdin)
    client.stdin.close()
    return client


def run_round(cluster, joiner, victim, point):
    """One join that dies at `point`; returns what became of it."""
    joiner.rest.post("/1.0/profiles", {"name": "mine", "description": "own data"})
    document = to_yaml(joiner.join_document(cluster[1], "token"))
    arm(victim, point)
    client = client_of(joiner, "admin", "init", "--preseed", stdin=document)
    wait_until(lambda: died(victim), 60, f"{victim.name} dies at {point}", every=0.02)
    armed(victim)
    said = client.stdout.read()
    client.wait(120)
    outcome = wait_until(lambda: settled(cluster, joiner), SETTLE_SECONDS, f"joined or as before after {point}")
    print(f"{point} of {victim.name}: {outcome}, client exit {client.returncode}: {said.strip()[-150:]}", flush=True)
    if outcome == "before":
        no_residue(cluster, joiner)
        joiner.join(cluster[1], "password")
        wait_until(lambda: settled(cluster, joiner) == "joined", SETTLE_SECONDS, f"the next join after {point}")
    assert not os.path.exists(os.path.join(joiner.dir, "database", "global.before")), "the former database stayed"
    cluster.members.append(joiner)
    return outcome


def joiner_rounds(points):
    needs_covey("crash points")
    cluster = Cluster(1)
    outcomes = {}
    for number, point in enumerate(points):
        joiner = armed(Member(2 + number, f"{cluster.prefix}.{2 + number}"))
        outcomes[point] = run_round(cluster, joiner, joiner, f"join:{point}")
        cluster.wait_online(60)
    cluster.assert_equal_state()
    return outcomes


@test(240)
def joiner_dies_before_the_exchange():
    outcomes = joiner_rounds(JOINER[:5])
    assert all(outcomes[point] == "before" for point in JOINER[:4]), outcomes


@test(300)
def joiner_dies_in_the_exchange():
    outcomes = joiner_rounds(JOINER[5:])
    assert all(outcome == "joined" for outcome in outcomes.values()), outcomes


@test(300)
def leader_dies():
    """The joiner goes on with the next leader."""
    needs_covey("crash points")
    cluster = Cluster(3, formed=False)
    for member in cluster:
        member.stop()
        armed(member)
    cluster.form()
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    for number, point in enumerate(LEADER):
        joiner = Member(4 + number, f"{cluster.prefix}.{4 + number}").start()
        joiner_victim = cluster.leader()
        run_round(cluster, joiner, joiner_victim, f"lead:{point}")
        cluster.wait_online(60)
    cluster.assert_equal_state()


@test(240)
def refused_join_dies_while_it_is_undone():
    """A join that the leader refuses at its last step puts the former database back, however often it is killed."""
    needs_covey("crash points")
    cluster = Cluster(1)
    for number, point in enumerate(("emptied", "restored")):
        joiner = armed(Member(2 + number, f"{cluster.prefix}.{2 + number}"))
        joiner.rest.post("/1.0/profiles", {"name": "mine", "description": "own data"})
        arm(joiner, "join:closed")  # dies with the exchange begun …
        client = client_of(joiner, "admin", "init", "--preseed", stdin=to_yaml(joiner.join_document(cluster[1])))
        wait_until(lambda: died(joiner), 60, "death before the exchange")
        cluster[1].admin("sql", "global", "DELETE FROM nodes WHERE state = 1")  # … is forgotten by the cluster meanwhile …
        arm(joiner, f"join:{point}")  # … and dies again while it returns
        os.environ["COVEY_TEST_CRASH_AT"] = f"@{joiner.dir}.crash"
        joiner.start(wait=False)
        wait_until(lambda: died(joiner), 60, f"death at {point}")
        joiner.start()
        del os.environ["COVEY_TEST_CRASH_AT"]
        wait_until(lambda: settled(cluster, joiner) == "before", SETTLE_SECONDS, f"as before after {point}")
        client.stdout.read()
        client.wait(120)
        no_residue(cluster, joiner)
        joiner.join(cluster[1])
        cluster.members.append(joiner)
        cluster.wait_online(60)
    cluster.assert_equal_state()


@test(180)
def first_member_dies():
    """A bootstrap goes on after each crash."""
    needs_covey("crash points")
    prefix = Cluster(0, formed=False).prefix
    for number, point in enumerate(("written", "identity", "placed")):
        member = armed(Member(1 + number, f"{prefix}.{1 + number}"))
        member.rest.patch("/1.0", {"config": {"core.https_address": member.address, "core.trust_password": PASSWORD}})
        member.rest.post("/1.0/profiles", {"name": "mine", "description": "own data"})
        arm(member, f"bootstrap:{point}")
        client = client_of(member, "cluster", "enable", member.name)
        wait_until(lambda: died(member), 60, f"death at {point}")
        armed(member)
        client.stdout.read()
        client.wait(120)
        wait_until(lambda: member.rest.get("/1.0/cluster")["server_name"] == member.name, SETTLE_SECONDS, f"clustered after {point}")
        assert list(member.members()) == [member.name]
        assert member.rest.get("/1.0/profiles/mine")["description"] == "own data"
        joiner = Member(11 + number, f"{prefix}.{11 + number}").start()
        joiner.join(member)
        wait_until(lambda: sorted(member.members()) == sorted([member.name, joiner.name]), 30, "a second member")


main()
