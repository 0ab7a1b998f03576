"""`cluster rescue`: after a majority is lost, one command on any survivor brings up the newest copy that can be reached."""
import json
import subprocess
import time

from harness import Cluster, main, needs_covey, program, test, wait_until

CONFIG = {"cluster.offline_threshold": "11", "cluster.max_voters": "5"}


def five_voters():
    needs_covey("rescue")
    cluster = Cluster(5, config=CONFIG)
    wait_until(lambda: sorted(v for k, v in cluster.roles().items() if k) == ["voter"] * 5, 60, "five voters")
    return cluster


def write(member, mark, count=15):
    names = [f"{mark}{number}" for number in range(count)]
    for name in names:
        member.rest.post("/1.0/profiles", {"name": name})
    return set(names)


def names(member):
    return {one["name"] for one in member.rest.get("/1.0/profiles?recursion=1")}


def rescue(member, *flags, check=True, stdin=None):
    return member.admin("cluster", "rescue", *flags, check=check, stdin=stdin, seconds=200)


def lose_three(cluster):
    """Three of five are killed, the leader among them, after one survivor fell behind. Returns (ahead, behind, acknowledged names)."""
    leader = cluster.leader()
    ahead, behind, *lost = [member for member in cluster if member is not leader]
    acknowledged = write(leader, "before")
    wait_until(lambda: behind.status()["last_index"] == leader.status()["last_index"], 20, "equal logs")
    behind.kill()
    acknowledged |= write(leader, "ahead")
    wait_until(lambda: ahead.status()["applied_index"] == leader.status()["applied_index"], 20, "the survivor has everything")
    for member in lost + [leader]:
        member.kill()
    behind.start(wait=False)
    wait_until(lambda: behind.admin("sql", "local", "SELECT 1", check=False).returncode == 0, 20, "the survivor's socket")
    return ahead, behind, acknowledged


@test(240)
def rescue_from_a_survivor_that_is_behind():
    """Three of five are dead; the command runs on the survivor that is behind: the other one's copy counts, nothing acknowledged that it knows is missing."""
    cluster = five_voters()
    ahead, behind, acknowledged = lose_three(cluster)
    result = rescue(behind, stdin="no\n", check=False)
    assert result.returncode == 1 and "Rescue aborted" in result.stderr, result
    assert f"{ahead.name} becomes the only database member" in result.stdout and "entries behind" in result.stdout, result.stdout
    assert result.stdout.count("unreachable") == 3 and "cannot be asked" in result.stdout, result.stdout
    result = rescue(behind, stdin="yes\n")
    assert f"{ahead.name} is the leader" in result.stdout, result.stdout
    behind.wait_ready()
    for member in (ahead, behind):
        wait_until(lambda: acknowledged <= names(member), 20, f"everything on {member.name}")
    acknowledged |= write(behind, "after", 3)
    again = rescue(ahead, "-q", check=False)  # the cluster works: nothing to rescue
    assert again.returncode == 0 or "leader" in again.stderr, again
    # The dead come back as fresh copies.
    for member in cluster:
        if not member.alive():
            member.start(wait=False)
    cluster.wait_online(60)
    for member in cluster:
        assert acknowledged <= names(member), member.name
    wait_until(lambda: sorted(v for k, v in cluster.roles(ahead).items() if k) == ["voter"] * 5, 90, "five voters again")
    cluster.assert_equal_state()


@test(180)
def rescue_on_a_stopped_member():
    """The command works on a member whose daemon is stopped and that holds the newest copy itself; one that once saw a better copy than it can reach refuses."""
    cluster = five_voters()
    ahead, behind, acknowledged = lose_three(cluster)
    assert "Rescue aborted" in rescue(behind, stdin="no\n", check=False).stderr
    ahead.kill()
    result = rescue(behind, "-q", check=False)  # it has seen a better copy, which is not there any more
    assert result.returncode == 1 and "a more advanced member cannot be reached" in result.stderr and "--accept-loss" in result.stderr, result
    assert f"{ahead.name} is the only database member now" in rescue(ahead, stdin="yes\n").stdout
    ahead.start()
    behind.wait_ready()
    assert acknowledged <= names(ahead) and acknowledged <= names(behind)


@test(180)
def rescue_refuses_while_a_majority_works():
    """A cluster with a majority is left alone, by a running member and by a stopped one; so is a standalone server."""
    needs_covey("rescue")
    cluster = Cluster(3, config={"cluster.offline_threshold": "11"})
    result = rescue(cluster[2], "-q", check=False)
    assert result.returncode == 1 and "a majority of the voters works" in result.stderr, result
    cluster[3].kill()
    result = rescue(cluster[3], "-q", check=False)
    assert result.returncode == 1 and "a majority of the voters works" in result.stderr, result
    result = cluster[3].admin("cluster", "recover-from-quorum-loss", "-q", check=False)
    assert result.returncode == 1 and "knows a leader" in result.stderr, result
    write(cluster[1], "still", 2)
    cluster[3].start()
    cluster.wait_online()
    cluster.assert_equal_state()


@test(240)
def rescue_killed_half_way():
    """The command, and the member that is promoted, are killed at many moments; running it again always ends in one cluster with everything."""
    cluster = five_voters()
    ahead, behind, acknowledged = lose_three(cluster)
    # Once seen, the better copy is not given up while its member is down for a moment.
    assert f"{ahead.name} becomes the only database member" in rescue(behind, stdin="no\n", check=False).stdout
    for delay in (0.05, 0.15, 0.3, 0.5, 0.8):
        command = subprocess.Popen([program("covey"), "admin", "cluster", "rescue", "-q"], env=behind.environment(), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        ahead.kill()
        command.kill()
        command.wait()
        ahead.start(wait=False)
        wait_until(lambda: ahead.admin("sql", "local", "SELECT 1", check=False).returncode == 0, 20, "the survivor's socket")

    def rescued():
        return rescue(behind, "-q", check=False).returncode == 0
    wait_until(rescued, 120, "a rescue that ends", every=1)
    ahead.wait_ready()
    behind.wait_ready()
    for member in (ahead, behind):
        assert acknowledged <= names(member), member.name
    write(behind, "after", 2)
    states = {json.dumps(member.rest.get("/1.0/profiles?recursion=1"), sort_keys=True) for member in (ahead, behind)}
    assert len(states) == 1


main()
