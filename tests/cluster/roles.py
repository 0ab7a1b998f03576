"""Database roles: promotion and demotion on join, clean stop, death, return, changed limits and failure domains (spec/cluster.md 5, 18)."""
import signal
import time

from harness import Cluster, main, needs_covey, peer_is_lxd, refused, test, wait_until

THRESHOLD_SECONDS = 11


def counts(cluster, asked=None):
    """(voters, stand-bys, spares) as one member tells."""
    told = cluster.roles(asked)
    told.pop("", None)
    kinds = list(told.values())
    return kinds.count("voter"), kinds.count("stand-by"), kinds.count("spare")


def settled(cluster, expected, seconds=40, asked=None):
    wait_until(lambda: counts(cluster, asked) == expected, seconds, f"roles {expected}")


def database(member, name):
    return member.rest.get(f"/1.0/cluster/members/{name}")["database"]


def write(member, name, seconds=10):
    member.rest.post("/1.0/profiles", {"name": name}, timeout=seconds)


def impatient(count):
    """A cluster that misses a member after THRESHOLD_SECONDS; set when it is formed, since LXD dies of it before."""
    cluster = Cluster(count)
    cluster[1].rest.patch("/1.0", {"config": {"cluster.offline_threshold": str(THRESHOLD_SECONDS)}})
    return cluster


@test(150)
def roles_of_five():
    """§18.12: m4, m5 join, m5 through a member without vote: exactly 3 `database`, 2 `database-standby`; any member answers show/list for any other."""
    cluster = Cluster(3)
    settled(cluster, (3, 0, 0))
    cluster.add().join(cluster[2])
    settled(cluster, (3, 1, 0))
    assert cluster.roles()["node4"] == "stand-by"
    cluster.add().join(cluster[4])
    cluster.wait_online()
    for member in cluster:
        settled(cluster, (3, 2, 0), asked=member)
        names = [one["server_name"] for one in member.rest.get("/1.0/cluster/members?recursion=1")]
        assert names == ["node1", "node2", "node3", "node4", "node5"], names
        for other in cluster:
            shown = member.lxc("cluster", "show", other.name).stdout
            assert f"server_name: {other.name}\n" in shown and f"url: https://{other.address}\n" in shown and "status: Online\n" in shown, shown
    for name, record in cluster[5].members().items():
        expected = {"voter": ["database"], "stand-by": ["database-standby"], "spare": []}[cluster.roles()[name]]
        assert [role for role in record["roles"] if role != "database-leader"] == expected and record["database"], record
    if not peer_is_lxd():
        assert cluster[5].rest.get("/1.0/warnings") == []  # nobody was missed while joining


@test(120)
def roles_stopped_member_goes_offline():
    """§18.14: shut m3 down, wait threshold + 1 s: `show m3` on m2 says `status: Offline`."""
    cluster = impatient(3)
    settled(cluster, (3, 0, 0))
    cluster[3].stop()
    assert "status: Online\n" in cluster[2].lxc("cluster", "show", "node3").stdout  # a stopped member is not Offline at once
    time.sleep(THRESHOLD_SECONDS + 1)
    shown = wait_until(lambda: (lambda text: text if "status: Offline\n" in text else None)(cluster[2].lxc("cluster", "show", "node3").stdout),
                       THRESHOLD_SECONDS if peer_is_lxd() else 3, "node3 Offline")
    assert "message: No heartbeat for " in shown, shown


@test(200)
def roles_handover():
    """§18.25: four members: stop m1 cleanly: m4 voter, m1 `database: false`; stop one more voter: still available; restart both; stop two voters at
    the same time; restart one: quorum returns."""
    cluster = Cluster(4)
    settled(cluster, (3, 1, 0))
    cluster[1].stop()
    # Given away before it is gone: nothing to wait for (LXD's list may lag by a round).
    wait_until(lambda: cluster.roles(cluster[2])["node4"] == "voter" and not database(cluster[2], "node1"), 20 if peer_is_lxd() else 2, "m4 in m1's place")
    roles = cluster.roles(cluster[2])
    assert roles["node1"] == "spare" and [roles[name] for name in ("node2", "node3", "node4")] == ["voter"] * 3, roles
    write(cluster[2], "one-away")
    other = next(member for member in cluster.running() if member.name != roles[""])
    other.stop()
    rest = cluster.running()
    assert len(rest) == 2
    write(rest[0], "two-away", 30)
    cluster[1].start()
    other.start()
    cluster.wait_online(60)
    wait_until(lambda: counts(cluster)[0] == 3, 60, "three voters again")
    voters = [member for member in cluster if cluster.roles()[member.name] == "voter"][:2]
    for member in voters:
        member.expected_down = True
        member.process.send_signal(signal.SIGTERM)
    for member in voters:
        member.stop()
    voters[0].start(wait=False)
    survivor = next(member for member in cluster.running() if member not in voters)
    wait_until(lambda: write(survivor, f"after-{time.monotonic_ns()}") is None, 60, "quorum again")
    voters[1].start()
    if not peer_is_lxd():  # it does not always come so far
        cluster.wait_online(60)
        cluster.assert_equal_state()


@test(150)
def roles_rebalance():
    """§18.26: four members, threshold 11: kill m2; after 15 s m2 Offline and `database: false`, m4 `database`; restart m2: after 12 s Online and
    `database: true`; leader undisturbed."""
    cluster = impatient(4)
    settled(cluster, (3, 1, 0))
    roles = cluster.roles()
    leader, victim = roles[""], next(member for member in cluster.members[1:] if roles[member.name] == "voter")
    standby = next(name for name in ("node2", "node3", "node4") if roles[name] == "stand-by")
    victim.kill()

    def replaced():
        record = cluster[1].members()
        return record[victim.name]["status"] == "Offline" and not record[victim.name]["database"] and "database" in record[standby]["roles"]
    wait_until(replaced, 60 if peer_is_lxd() else 15, f"{standby} in the place of {victim.name}")
    assert cluster.roles()[""] == leader
    victim.start()

    def back():
        record = cluster[1].members()[victim.name]
        return record["status"] == "Online" and record["database"]
    wait_until(back, 60 if peer_is_lxd() else 12, f"{victim.name} back with a role")
    settled(cluster, (3, 1, 0))
    assert cluster.roles()[""] == leader and cluster.roles()[standby] == "voter"
    cluster.assert_equal_state()


@test(150)
def roles_failure_domains():
    """§18.27: six members with domains az1,az2,az3,az1,az2,az3: stop m2 (az2) cleanly; within 3 s m5 (az2) `database: true`, m2 false. Editing domains by
    YAML with `roles: ["database"]`/`roles: []`, `groups: ["default"]` works."""
    cluster = Cluster(6)
    settled(cluster, (3, 2, 1))
    roles = cluster.roles()
    assert [roles[f"node{number}"] for number in (1, 2, 3)] == ["voter"] * 3, roles
    for number in range(1, 7):
        held = '["database"]' if roles[f"node{number}"] == "voter" else "[]"
        text = f'failure_domain: az{(number - 1) % 3 + 1}\nroles: {held}\ngroups: ["default"]\ndescription: ""\nconfig: {{}}\n'
        cluster[1 + number % 6].lxc("cluster", "edit", f"node{number}", stdin=text)
    seen = cluster[4].members()
    assert [seen[f"node{number}"]["failure_domain"] for number in range(1, 7)] == ["az1", "az2", "az3"] * 2, seen
    settled(cluster, (3, 2, 1))
    assert cluster.roles() == roles  # one voter in each domain already: nothing moves
    cluster[2].stop()
    wait_until(lambda: database(cluster[1], "node5") and "database" in cluster[1].members()["node5"]["roles"] and not database(cluster[1], "node2"), 3,
               "node5 in node2's place")
    voters = sorted(name for name, role in cluster.roles(cluster[1]).items() if role == "voter" and name)
    assert voters == ["node1", "node3", "node5"], voters
    write(cluster[6], "domains")


@test(150)
def roles_sizes():
    """§18.28: `max_voters=5`, five or more members: five voters within one round; 4 or 1 refused; `max_standby` 0…5, −1 and 6 refused; lowering counts too."""
    needs_covey("a lower limit acts at once")
    cluster = Cluster(6)
    settled(cluster, (3, 2, 1))
    leader = cluster.roles()[""]
    rest = cluster[4].rest

    def set_key(key, value):
        rest.patch("/1.0", {"config": {key: value}})

    for value, reason in (("4", "Value must be an odd number equal to or higher than 3"), ("1", "Value must be an odd number equal to or higher than 3"),
                          ("-3", "Value must be an odd number equal to or higher than 3"), ("0", "Value must be an odd number equal to or higher than 3"),
                          ("many", "invalid integer")):
        error = refused(400, reason, set_key, "cluster.max_voters", value)
        assert error.text == f"cannot set 'cluster.max_voters' to '{value}': {reason}", error.text
    for value in ("-1", "6"):
        error = refused(400, "Value must be between 0 and 5", set_key, "cluster.max_standby", value)
        assert error.text == f"cannot set 'cluster.max_standby' to '{value}': Value must be between 0 and 5", error.text
    assert counts(cluster) == (3, 2, 1)
    set_key("cluster.max_voters", "5")
    settled(cluster, (5, 1, 0), 10)
    for standbys, expected in (("0", (5, 0, 1)), ("5", (5, 1, 0))):
        set_key("cluster.max_standby", standbys)
        settled(cluster, expected, 10)
    set_key("cluster.max_voters", "3")
    settled(cluster, (3, 3, 0), 15)
    for standbys in ("1", "2", "3", "4"):
        set_key("cluster.max_standby", standbys)
        settled(cluster, (3, min(int(standbys), 3), 3 - min(int(standbys), 3)), 10)
    set_key("cluster.max_voters", "")
    set_key("cluster.max_standby", "")
    settled(cluster, (3, 2, 1), 15)
    for member in cluster:
        assert counts(cluster, member) == (3, 2, 1), member.name
    assert cluster.roles()[""] == leader
    voters = sorted(name for name, role in cluster.roles().items() if name and role == "voter")
    assert voters == ["node1", "node2", "node3"], voters  # the lower ids keep the roles
    cluster.assert_equal_state()


@test(120)
def roles_leader_killed():
    """§18.29: leader killed: a request on another voter succeeds within 10 s, new leader shown; old one Offline after the threshold."""
    cluster = impatient(3)
    settled(cluster, (3, 0, 0))
    old = cluster.leader()
    others = [member for member in cluster if member is not old]
    old.kill()
    killed = time.monotonic()
    write(others[0], "after-the-leader", 10)
    assert time.monotonic() - killed < 10
    roles = cluster.roles(others[1])
    assert roles[""] in [member.name for member in others], roles
    assert others[0].members()[old.name]["status"] == "Online"  # not yet missed
    wait_until(lambda: others[0].members()[old.name]["status"] == "Offline", 3 * THRESHOLD_SECONDS, "the old leader Offline")
    assert time.monotonic() - killed > THRESHOLD_SECONDS / 2 - 1
    assert cluster.roles(others[0])[old.name] == "voter"  # nobody can replace it: it keeps its vote
    old.start()
    cluster.wait_online()
    settled(cluster, (3, 0, 0))
    cluster.assert_equal_state()


@test(150)
def roles_domains_follow_edits():
    """Voters spread over failure domains that are set later; a member that returns takes no role from anybody."""
    needs_covey("LXD evens domains out only when a role is missing")
    cluster = Cluster(5)
    settled(cluster, (3, 2, 0))
    for number, domain in ((1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c")):
        cluster[2].rest.patch(f"/1.0/cluster/members/node{number}", {"failure_domain": domain})

    def voters():
        return sorted(name for name, role in cluster.roles().items() if name and role == "voter")
    wait_until(lambda: len(voters()) == 3 and {"node4", "node5"} < set(voters()) and cluster.roles()[""] in voters(), 20, "a voter in each domain")
    settled(cluster, (3, 2, 0))
    leader = cluster.roles()[""]
    cluster[4].stop()
    wait_until(lambda: not database(cluster[1], "node4"), 5, "node4 gave its role away")
    cluster[4].start()
    wait_until(lambda: "node4" in voters() and counts(cluster) == (3, 2, 0), 30, "domain b has its voter again")
    assert cluster.roles()[""] == leader


main()
