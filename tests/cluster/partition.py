"""Members that do not hear of each other: links are cut and mended, daemons run on."""
import concurrent.futures
import re
import time

from harness import RestError, main, needs_covey, test, wait_until
from namespaces import NetworkCluster, inside

LEADER_SECONDS = 8      # until another member leads; failover itself takes less than a second
REFUSAL_SECONDS = 15    # the limit of 10 seconds, and a loaded machine
NO_LEADER = re.compile("no available.*leader")


def timed(call, *arguments, **options):
    """(outcome, seconds): the value or the RestError."""
    started = time.monotonic()
    try:
        value = call(*arguments, **options)
    except RestError as error:
        value = error
    return value, time.monotonic() - started


def refused_for_want_of_a_leader(*calls):
    """Each of (call, arguments…) at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        for call, future in [(call, pool.submit(timed, *call)) for call in calls]:
            error, seconds = future.result(REFUSAL_SECONDS * 2)
            print(f"{call[1]}: refused after {seconds:.1f} s: {error}")
            assert isinstance(error, RestError) and error.code == 503 and NO_LEADER.search(error.text), (call[1], error)
            assert seconds < REFUSAL_SECONDS, f"refused after {seconds:.1f} s"


def term(member):
    return int(member.status(digest=False)["term"])


def three_voters(cluster):
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")


def profiles(member):
    return {path.rsplit("/", 1)[1] for path in member.rest.get("/1.0/profiles")}


@test(120)
def leader_cut_off():
    """A leader without its majority refuses in time, the majority goes on within seconds, nothing acknowledged is lost, nothing is written twice."""
    needs_covey("its failover takes longer")
    cluster = NetworkCluster(3)
    three_voters(cluster)
    leader = cluster.leader()
    others = [member for member in cluster if member is not leader]
    leader.rest.post("/1.0/profiles", {"name": "before"})
    cluster.cut(leader)
    cut_at = time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(1)
    at_the_cut = pool.submit(timed, leader.rest.post, "/1.0/profiles", {"name": "at-the-cut"})  # still taken for the leader
    acknowledged = []
    for number in range(20):
        wait_until(lambda: others[number % 2].rest.post("/1.0/profiles", {"name": f"majority{number}"}, timeout=20) is not None or True,
                   LEADER_SECONDS * 2, "the majority writes")
        acknowledged.append(f"majority{number}")
        if number == 0:
            print(f"the majority wrote {time.monotonic() - cut_at:.1f} s after the cut")
            assert time.monotonic() - cut_at < LEADER_SECONDS * 2
    refused_for_want_of_a_leader((leader.rest.post, "/1.0/profiles", {"name": "minority"}), (leader.rest.get, "/1.0/profiles"))
    assert leader.rest.get("/1.0")["environment"]["server_clustered"] is True
    error, seconds = at_the_cut.result(REFUSAL_SECONDS)
    print(f"at the cut: {seconds:.1f} s: {error}")
    assert isinstance(error, RestError) and error.code == 503 and NO_LEADER.search(error.text) and seconds < REFUSAL_SECONDS, (error, seconds)
    now = next(one for one in others if cluster.roles(others[0])[""] == one.name)
    cluster.heal()
    wait_until(lambda: cluster.roles(leader)[""] == now.name, 20, "the old leader follows")
    cluster.wait_online()
    for member in cluster:
        seen = profiles(member)
        assert seen >= {"before", *acknowledged}, (member.name, set(acknowledged) - seen)
        assert not seen & {"minority", "at-the-cut"}, member.name
    cluster.assert_equal_state()


@test(120)
def voter_cut_off():
    """A voter that comes back does not disturb the leader: no new term."""
    needs_covey("terms are read by covey's own call")
    cluster = NetworkCluster(3)
    three_voters(cluster)
    leader = cluster.leader()
    voter = next(member for member in cluster if member is not leader)
    before = term(leader)
    for _ in range(2):
        cluster.cut(voter)
        until = time.monotonic() + 4  # many election timeouts
        number = 0
        while time.monotonic() < until:
            leader.rest.patch("/1.0/profiles/default", {"config": {"user.n": str(number)}})
            number += 1
            time.sleep(0.1)
        cluster.heal()
        cluster.wait_online()
        wait_until(lambda: voter.rest.get("/1.0/profiles/default")["config"]["user.n"] == str(number - 1), 15, "it has what it missed")
    assert cluster.leader() is leader and term(leader) == before, (term(leader), before)
    cluster.assert_equal_state()


@test(120)
def member_without_vote_cut_off():
    """§18.14: a member without vote is Offline after the threshold and Online again when it is back."""
    cluster = NetworkCluster(4, config={"cluster.offline_threshold": "11"})
    three_voters(cluster)
    spare = cluster[next(number for number in (1, 2, 3, 4) if cluster.roles()[f"node{number}"] != "voter")]
    leader = cluster.leader()
    cluster.cut(spare)
    cut_at = time.monotonic()
    time.sleep(3)
    assert leader.members()[spare.name]["status"] == "Online", "before the threshold"
    wait_until(lambda: leader.members()[spare.name]["status"] == "Offline", 40, "Offline")
    assert time.monotonic() - cut_at > 8
    assert leader.members()[spare.name]["message"].startswith("No heartbeat for ")
    leader.rest.post("/1.0/profiles", {"name": "without-it"})
    cluster.heal()
    cluster.wait_online()
    assert "without-it" in profiles(spare)


@test(120)
def one_way_cut():
    """A voter that hears the leader but is not heard, then the other way round: the leader stays, writes go on."""
    needs_covey("terms are read by covey's own call")
    cluster = NetworkCluster(3)
    three_voters(cluster)
    leader = cluster.leader()
    voter = next(member for member in cluster if member is not leader)
    for source, target in ((voter, leader), (leader, voter)):
        cluster.cut_one_way(source, target)
        until = time.monotonic() + 4
        while time.monotonic() < until:
            leader.rest.patch("/1.0/profiles/default", {"config": {"user.n": source.name}}, timeout=10)
            time.sleep(0.1)
        cluster.heal()
        cluster.wait_online()
    assert cluster.leader() is leader
    voter.rest.post("/1.0/profiles", {"name": "after"})
    cluster.assert_equal_state()


@test(180)
def no_quorum():
    """Without a majority /1.0 still answers, the database refuses within ten seconds, instances run; it heals by itself."""
    needs_covey("it answers 500")
    cluster = NetworkCluster(3)
    three_voters(cluster)
    cluster.import_image()
    cluster[1].lxc("launch", "busybox", "c1", "--target", "node1")
    pid = cluster[1].rest.get("/1.0/instances/c1/state")["pid"]
    cluster.cut(*cluster)
    time.sleep(1)
    for member in cluster:
        info, seconds = timed(member.rest.get, "/1.0")
        assert info["environment"]["server_name"] == member.name and seconds < 5, (info, seconds)
    refused_for_want_of_a_leader((cluster[2].rest.get, "/1.0/cluster/members"), (cluster[1].rest.post, "/1.0/profiles", {"name": "nobody"}))
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        assert stat.read().rpartition(")")[2].split()[0] in "SR", "the instance runs"
    cluster.heal()
    healed_at = time.monotonic()
    wait_until(lambda: cluster[3].rest.post("/1.0/profiles", {"name": "healed"}, timeout=20) is not None or True, 20, "a write")
    print(f"wrote {time.monotonic() - healed_at:.1f} s after the links were mended")
    cluster.wait_online()
    # The new leader knows what runs from reports; node1's may come a moment after it is online again.
    wait_until(lambda: cluster[2].rest.get("/1.0/instances/c1")["status"] == "Running", 20, "c1 is told to run")
    assert "nobody" not in profiles(cluster[1])
    cluster[1].lxc("delete", "-f", "c1")


@test(90)
def clients_of_both_networks():
    """Members on one network, clients on another; a client of a member that is cut off from the others still reaches it."""
    cluster = NetworkCluster(2, split=True)
    cluster.cut(cluster[2])
    with inside(cluster[2]):
        assert cluster[2].tls().get("/1.0")["auth"] == "untrusted"
    cluster.heal()
    cluster.wait_online()


main()
