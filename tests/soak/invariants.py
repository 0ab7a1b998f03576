"""What must hold once everything is running and nothing is under way. Each function says what it finds; none changes anything."""
import json
import os
import re
import time

import leftovers
from harness import RestError, wait_until
from world import SETTLE_SECONDS, listing, private_kib

TEMPORARY = re.compile(r"\.(tmp|new|part|staged|before|upload|old)([-.].*)?$|^tmp|[-.]XXXXXX|~$")


def mend(world):
    """Everything runs again, and every server is a member or is not."""
    for member in world.everybody():
        if member.process and member.process.poll() is None:
            member.resume()
        elif member not in world.gone:
            member.disturbed += 1
            member.start(wait=False)
    for member in list(world.unclear):
        settle(world, member)
    for member in world.cluster.members:
        member.wait_ready()
        member.down = False
    rows = wait_until(lambda: listing(world.cluster.members[0]), 30, "a list of members")
    for member in world.cluster.members:
        if member.address in rows:
            member.name = rows[member.address]["server_name"]
    world.cluster.wait_online(SETTLE_SECONDS)


def settle(world, member):
    """A server of which a join or a removal ended without a clear answer: in, or a server of its own; within a bound."""
    world.unclear.remove(member)
    forced = getattr(member, "forced", False)

    def state():
        rows = listing(world.cluster.members[0])
        listed = member.address in rows
        if forced and not listed:
            return "gone"
        enabled = member.rest.get("/1.0/cluster")["enabled"]
        if enabled and listed and rows[member.address]["status"] == "Online" and len(member.rest.get("/1.0/cluster/members")) == len(rows):
            member.name = rows[member.address]["server_name"]
            return "in"
        if not enabled and not listed:
            member.admin("waitready", "--timeout=20")
            return "out"
        return None
    try:
        became = wait_until(state, SETTLE_SECONDS, f"{member.name} is in or out")
    except AssertionError as error:
        world.found(f"{member.name} ({member.address}) is neither in nor out: {error}")
        world.gone.append(member)
        member.stop()
        return
    promised, removed = getattr(member, "promised", False), getattr(member, "removed", False)
    world.note(f"{member.name} is {became}")
    if promised and became != "in":
        world.found(f"{member.name} joined with success and is {became}")
    if removed and became == "in":
        world.found(f"{member.name} was removed with success and is in")
    member.forced = member.promised = member.removed = False
    member.down = False
    if became == "in":
        member.inside = True
        world.cluster.members.append(member)
    elif became == "out":
        member.inside = False
        world.alone.append(member)
        if member.rest.get("/1.0/instances"):
            world.found(f"{member.name} has instances though it is out")
    else:
        member.inside = False
        member.stop()
        world.gone.append(member)


def rows(member, query):
    out = member.admin("sql", "global", query).stdout.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out if line.startswith("|")]
    return table[1:]


def expected_roles(count, voters, standbys):
    if count == 1:
        return (1, 0, 0)
    if count == 2:
        return (1, min(1, standbys), 1 - min(1, standbys))
    voters = min(count, voters)
    standbys = min(count - voters, standbys)
    return (voters, standbys, count - voters - standbys)


def membership(world):
    members = world.cluster.members
    names, addresses = sorted(one.name for one in members), sorted(one.address for one in members)
    asked = members[0]
    for member in members:
        records = member.rest.get("/1.0/cluster/members?recursion=1")
        if sorted(one["server_name"] for one in records) != names:
            world.found(f"{member.name} lists {sorted(one['server_name'] for one in records)}, expected {names}")
        here = member.rest.get("/1.0")["environment"]["server_name"]
        if here != member.name:
            world.found(f"{member.name} calls itself {here}")
        if member.rest.get("/1.0/cluster")["server_name"] != member.name:
            world.found(f"{member.name} calls itself {member.rest.get('/1.0/cluster')['server_name']} in the cluster")
    nodes = rows(asked, "SELECT id, name, address, state FROM nodes ORDER BY id")
    if sorted(row[2] for row in nodes) != addresses:
        world.found(f"rows of members: {nodes}, expected {addresses}")
    servers = {str(one["id"]): one["role"] for one in asked.status(digest=False)["servers"]}
    if sorted(servers) != sorted(row[0] for row in nodes):
        world.found(f"raft has {servers}, the database {nodes}")
    certificates = sorted(one["name"] for one in asked.rest.get("/1.0/certificates?recursion=1") if one["type"] == "server")
    if certificates != names:
        world.found(f"server certificates of {certificates}, members {names}")
    departures = wait_zero(lambda: rows(asked, "SELECT name, address FROM departures"), 20)
    if departures:
        world.found(f"farewells still owed: {departures}")
    ungrouped = rows(asked, "SELECT name FROM nodes WHERE id NOT IN (SELECT node_id FROM nodes_cluster_groups)")
    if ungrouped:
        world.found(f"members without a group: {ungrouped}")
    for table in ("nodes_cluster_groups", "nodes_config", "nodes_roles", "storage_pools_nodes", "images_nodes", "instances", "operations"):
        stray = wait_zero(lambda: rows(asked, f"SELECT * FROM {table} WHERE node_id IS NOT NULL AND node_id NOT IN (SELECT id FROM nodes)"), 10)
        if stray:
            world.found(f"rows of nobody in {table}: {stray}")
    pools = rows(asked, "SELECT n.name, p.name FROM nodes AS n JOIN storage_pools AS p LEFT JOIN storage_pools_nodes AS s ON s.node_id = n.id AND s.storage_pool_id = p.id"
                        " WHERE s.id IS NULL OR s.state <> 1")
    if pools:
        world.found(f"pools that are not on every member: {pools}")


def wait_zero(query, seconds):
    """The rows that are still there after a while."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            left = query()
        except AssertionError as error:
            left = [str(error)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def roles(world):
    config = world.cluster.members[0].rest.get("/1.0")["config"]
    wanted = expected_roles(len(world.cluster.members), int(config.get("cluster.max_voters", 3)), int(config.get("cluster.max_standby", 2)))

    def counted():
        for member in world.cluster.members:
            told = [role for name, role in world.cluster.roles(member).items() if name]
            if tuple(told.count(one) for one in ("voter", "stand-by", "spare")) != wanted:
                return False
        return True
    try:
        wait_until(counted, SETTLE_SECONDS, "roles")
    except AssertionError:
        world.found(f"roles {[world.cluster.roles(member) for member in world.cluster.members]}, expected {wanted}")


def data(world):
    for member in world.cluster.members:
        profiles = {one["name"]: one["config"].get("user.v") for one in member.rest.get("/1.0/profiles?recursion=1")}
        for key, values in world.written.items():
            if profiles.get(key) not in values:
                world.found(f"{member.name} has {key} = {profiles.get(key)}, expected one of {values}")
    seen = {one["name"]: one["config"].get("user.v") for one in world.cluster.members[0].rest.get("/1.0/profiles?recursion=1")}
    for key in world.written:  # from here on it is known
        world.written[key] = {seen.get(key)}
    try:
        world.cluster.assert_equal_state(40)
    except AssertionError as error:
        world.found(f"states differ: {error}")
    certificates = {open(os.path.join(member.dir, "cluster.crt"), encoding="ascii").read() for member in world.cluster.members}
    if len(certificates) != 1:
        world.found(f"members hold {len(certificates)} different cluster certificates")


def operations(world):
    asked = world.cluster.members[-1]
    def running():
        found = asked.rest.get("/1.0/operations?recursion=1")
        return [f"{one['description']} at {one['location']}" for kind in ("running", "pending", "cancelling") for one in found.get(kind, []) if one["class"] != "token"]
    left = wait_zero(running, 30)
    if left:
        world.found(f"operations still running: {left}")


def instances(world):
    told = None
    for member in world.cluster.members:
        listed = {one["name"]: (one["location"], one["status"]) for one in member.rest.get("/1.0/instances?recursion=1")}
        if told is not None and listed != told and wait_zero(
                lambda: {one["name"]: (one["location"], one["status"]) for one in member.rest.get("/1.0/instances?recursion=1")} != told, 5):
            world.found(f"{member.name} lists {listed}, the first {told}")
        told = told if told is not None else listed
    for name, values in world.instances.items():
        if (name in told) not in values:
            world.found(f"instance {name} is {'there' if name in told else 'missing'}, expected {values}")
        world.instances[name] = {name in told}
    places = {(one.name, one.dir): one for one in world.everybody()}
    for (name, folder), member in places.items():
        def check():
            mine = monitors(folder)
            listed = world.cluster.members[0].rest.get("/1.0/instances?recursion=1")
            wanted = {one["name"] for one in listed if one["location"] == name and member.inside and one["status"] == "Running"}
            return (mine, wanted) if mine != wanted else None
        if member in world.gone:
            continue
        wrong = wait_zero(check, 10)
        if wrong:
            world.found(f"{name} runs {sorted(wrong[0])}, expected {sorted(wrong[1])}")


def monitor(pid):
    """(folder, name) of the container that a process watches, or None."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            line = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    match = re.match(r"\[lxc monitor\] (\S+) (\S+)", line)
    return match.groups() if match else None


def monitors(folder):
    """Names of the containers that run below a member's folder."""
    found = [monitor(pid) for pid in os.listdir("/proc") if pid.isdigit()]
    return {one[1] for one in found if one and one[0].startswith(folder + "/")}


def host(world):
    alive = {one.process.pid: one for one in world.everybody() if one.alive()}
    from harness import CURRENT

    def strangers():
        found = []
        for pid in leftovers.processes(CURRENT.id):
            try:
                comm = open(f"/proc/{pid}/comm", encoding="utf-8").read().strip()
                parent = int(open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace").read().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if pid in alive or (comm == "covey-gateway" and parent in alive):
                continue
            if comm.startswith("covey") and not monitor(pid):
                found.append(f"{comm} {pid} of {parent}")
        return found
    left = wait_zero(strangers, 15)
    if left:
        world.found(f"processes left: {left}")
    for member in alive.values():
        if len(member.children("covey-gateway")) != 1 and wait_zero(lambda: len(member.children("covey-gateway")) != 1, 5):
            world.found(f"{member.name} has {len(member.children('covey-gateway'))} gateways")

        def temporary():
            found = []
            for folder, folders, files in os.walk(member.dir):
                if "rootfs" in folders:
                    folders.remove("rootfs")
                found += [os.path.relpath(os.path.join(folder, one), member.dir) for one in files + folders if TEMPORARY.search(one)]
            return found
        left = wait_zero(temporary, 10)
        if left:
            world.found(f"{member.name} has {left}")
    for member in world.everybody():
        for defect in member.log_defects():
            world.found(f"{member.name}: {defect}")
        if not member.alive() and not member.expected_down:
            world.found(f"{member.name} ended with {member.process.returncode}\n{member.log_tail(40)}")


def sizes(world):
    """Member name -> (pid, private KiB, descriptors, threads)."""
    told = {}
    for member in world.cluster.members:
        pid = member.process.pid
        kib = private_kib(pid) + sum(private_kib(one) for one in member.children("covey-gateway"))
        told[member.address] = (pid, kib, len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))
    return told


def check(world):
    begin = time.monotonic()
    world.calm = False
    mend(world)
    for one in (membership, roles, data, operations, instances, host):
        try:
            one(world)
        except (OSError, RestError, AssertionError, ValueError, KeyError) as error:
            world.found(f"check {one.__name__}: {error!r}")
    world.note(f"checked {len(world.cluster.members)} members in {time.monotonic() - begin:.1f} s; "
               + json.dumps({one: size for one, size in sizes(world).items()}))
