"""`cluster edit`: rules and texts, other addresses for a whole stopped cluster, other roles."""
import fcntl
import json
import os
import re
import threading
import time

from harness import Cluster, main, needs_covey, peer_is_lxd, test, wait_until

TOGETHER_SECONDS = 12  # §18.35, after the start of all


def edit(member, text, check=True):
    return member.admin("cluster", "edit", stdin=text, check=check)


@test(240)
def ports_of_six_members_change():
    """§18.35: six members stopped, two of them killed; every one edited; within 12 s of their start all reach each other, none without heartbeat."""
    cluster = Cluster(6, config={"cluster.offline_threshold": "11"})
    cluster[1].rest.post("/1.0/profiles", {"name": "kept"})
    cluster[5].kill()
    cluster[6].kill()
    for member in cluster.members[:4]:
        member.stop()
    for member in cluster:
        shown = member.admin("cluster", "show").stdout
        assert shown.count("role: ") == 6, shown
        edit(member, shown.replace(":8443", ":9393"))
        assert ":9393" in member.admin("cluster", "list-database").stdout
    for member in cluster:
        member.address = f"{member.host}:9393"
        member.start(wait=False)
    began = time.monotonic()
    for member in cluster:
        member.wait_ready()

    def together():
        for member in cluster:
            told = member.lxc("cluster", "list", check=False)
            if told.returncode or "No heartbeat" in told.stdout or told.stdout.count(":9393") != 6:
                return False
        return True
    wait_until(together, max(0, TOGETHER_SECONDS - (time.monotonic() - began)), "every member reaches every other", every=0.2)
    print(f"together after {time.monotonic() - began:.1f} s")
    for number, member in enumerate(cluster):
        member.rest.post("/1.0/profiles", {"name": f"by{number}"})
    assert len(cluster[6].rest.get("/1.0/profiles")) == 8
    assert cluster[2].rest.get("/1.0")["config"]["cluster.https_address"] == cluster[2].address
    cluster.assert_equal_state()


@test(60)
def edit_beside_another_command():
    """`show | edit` runs two commands at once: the later one waits for the other's lock, but not for ever."""
    needs_covey("LXD has no such lock")
    cluster = Cluster(1)
    cluster[1].stop()
    shown = cluster[1].admin("cluster", "show").stdout
    lock = os.open(f"{cluster[1].dir}/coveyd.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Timer(1, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
    edit(cluster[1], shown)
    fcntl.flock(lock, fcntl.LOCK_EX)
    began = time.monotonic()
    refused = edit(cluster[1], shown, check=False)
    assert refused.returncode == 1 and "The LXD daemon is running, please stop it first." in refused.stderr, refused
    assert time.monotonic() - began < 30
    os.close(lock)
    cluster[1].start()


@test(120)
def edit_refusals():
    """§18.36: each rule has its text, piped input ends with EOF and exit code 1, and nothing changes."""
    cluster = Cluster(3)
    result = edit(cluster[1], "members: []\n", check=False)
    assert result.returncode == 1 and "The LXD daemon is running, please stop it first." in result.stderr, result
    for member in cluster:
        member.stop()
    shown = cluster[1].admin("cluster", "show").stdout
    assert re.match(r"# Latest dqlite segment ID: (\d+|none)\n\nmembers:\n- id: 1\n  name: node1\n  address: ", shown), shown
    members = re.split(r"(?m)^(?=- id: )", shown)
    head, one, two, three = members[0], members[1], members[2], members[3]
    cases = [
        (head + one + two, "Removing cluster members is not supported"),
        (shown + three.replace("id: 3", "id: 4").replace("node3", "node4"), "Adding cluster members is not supported"),
        (head + one + three + two, "Changing cluster member ID is not supported"),
        (shown.replace("name: node2", "name: other"), "Changing cluster member name is not supported"),
        (shown.replace("role: voter", "role: king", 1), 'unknown raft role: "king"'),
        (shown.replace("role: voter", "role: spare"), 'Number of "voter" must be 2 or more'),
    ]
    if not peer_is_lxd():
        cases += [
            (shown.replace(cluster[2].address, cluster[1].address), f'Two members have the address "{cluster[1].address}"'),
            (shown.replace(cluster[2].address, "0.0.0.0:8443"), "Wildcard addresses aren't allowed"),
            ("members: [", "yaml: "),
            ("", "Removing cluster members is not supported"),
        ]
    for text, expected in cases:
        result = edit(cluster[1], text, check=False)
        assert result.returncode == 1, (text, result)
        assert f"Config validation error: {expected}" in result.stderr, (text, result)
        assert "Press enter to open the editor again or ctrl+c to abort change" in result.stdout, result
        assert result.stderr.rstrip().endswith("Error: EOF"), result
        assert cluster[1].admin("cluster", "show").stdout == shown
    for member in cluster:
        member.start(wait=False)
    cluster.wait_online(60)


@test(90)
def edit_spare_and_standalone():
    """A spare cannot become a voter; a standalone server has nothing to edit."""
    cluster = Cluster(1, formed=False)
    cluster[1].stop()
    result = edit(cluster[1], "members: []\n", check=False)
    assert result.returncode == 1, result
    assert 'Can\'t edit cluster configuration as server isn\'t clustered (missing "cluster.https_address" config)' in result.stderr, result
    shown = cluster[1].admin("cluster", "show").stdout
    assert shown.strip() == "members: []", shown


@test(240)
def roles_change_on_logs_of_different_length():
    """Two of five voters are gone for good with a third made stand-by: the edit gives the rest a majority, and copies of different length stay one."""
    needs_covey("the same edit in LXD may let replicas differ")
    cluster = Cluster(5, config={"cluster.offline_threshold": "11", "cluster.max_voters": "5"})
    wait_until(lambda: sorted(v for k, v in cluster.roles().items() if k) == ["voter"] * 5, 60, "five voters")
    leader = cluster.leader()
    late, *others = [member for member in cluster if member is not leader]
    late.kill()
    for number in range(20):
        leader.rest.post("/1.0/profiles", {"name": f"p{number}"})
    for member in cluster:
        member.kill()
    gone = others[:3]
    kept = [leader, late]
    for member in kept:
        shown = member.admin("cluster", "show").stdout
        for one in gone:
            shown = re.sub(rf"(name: {one.name}\n  address: \S+\n  role: )voter", r"\1spare", shown)
        assert shown.count("role: voter") == 2, shown
        edit(member, shown)
    late.start(wait=False)
    leader.start(wait=False)
    late.wait_ready()
    leader.wait_ready()
    names = {one["name"] for one in late.rest.get("/1.0/profiles?recursion=1")}
    assert {f"p{number}" for number in range(20)} <= names, names
    late.rest.post("/1.0/profiles", {"name": "after"})
    told = {member.name: json.dumps(member.rest.get("/1.0/profiles?recursion=1"), sort_keys=True) for member in kept}
    assert len(set(told.values())) == 1
    digests = wait_until(lambda: (lambda seen: len(set(seen)) == 1 and seen)(
        [(str(member.status()["digest_revision"]), member.status()["digest"]) for member in kept]), 30, "equal digests")
    assert digests[0][1]


main()
