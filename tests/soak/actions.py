"""Random events. Each one chooses what it does when it is made, by the run's seed, and does it when it is called, in a thread of its own.

An event that disturbs a process says so (`disturbed`, `down`); what it leaves dead or stopped is mended before the next check.
"""
import json
import os
import signal
import subprocess
import threading
import time

from harness import RestError, client_certificate, execute

JOIN_SECONDS = 90


def disturb(world, member, how, seconds):
    member.disturbed += 1
    member.down = True
    if how == "pause":
        member.pause()
        time.sleep(seconds)
        member.resume()
        member.down = False
        member.disturbed += 1
        return
    if how == "kill":
        member.kill()
    else:
        member.stop()
    time.sleep(seconds)
    if not member.alive():
        member.start(wait=False)
        member.wait_ready()
    member.down = False
    member.disturbed += 1


def process(world):
    member, how = world.pick(), world.random.choice(("kill", "kill", "pause", "stop"))
    seconds = world.random.choice((0, 0.2, 1, 3))
    world.note(f"{how} {member.name} for {seconds} s")
    return lambda: disturb(world, member, how, seconds)


def leader(world):
    how, seconds, delay = world.random.choice(("kill", "kill", "pause", "stop")), world.random.choice((0, 0.5, 2)), world.random.random()

    def run():
        time.sleep(delay)
        try:
            member = world.cluster.leader(10)
        except AssertionError:
            return
        if member.down or not member.inside:
            return
        world.note(f"{how} the leader {member.name} for {seconds} s")
        disturb(world, member, how, seconds)
    return run


def gateway(world):
    member = world.pick()
    world.note(f"kill the gateway of {member.name}")

    def run():
        member.disturbed += 1
        member.down = True
        for pid in member.children("covey-gateway"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(1)
        member.down = False
        member.disturbed += 1
    return run


def quorum_loss(world):
    """All members but one die at once and come back one by one."""
    victims = world.running()[1:]
    world.random.shuffle(victims)
    how = world.random.choice(("kill", "stop"))
    world.note(f"{how} all but one")

    def run():
        threads = [threading.Thread(target=world.guarded("quorum loss", disturb, world, member, how, number * 0.3)) for number, member in enumerate(victims)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return run


# --- membership ---

def join_one(world, member, target, how, kill_after):
    """Joins; what became of it is settled by the next check."""
    member.left += 1
    try:
        document = member.join_document(target, how)
    except (OSError, RestError, AssertionError) as error:
        world.note(f"no join of {member.name} through {target.name}: {error}")
        world.unclear.append(member)
        return
    world.unclear.append(member)
    if kill_after is not None:
        threading.Timer(kill_after, member.kill).start()
    begin = time.monotonic()
    try:
        result = member.admin("init", "--preseed", stdin=json.dumps(document), check=False, seconds=JOIN_SECONDS)
        said = (result.stdout + result.stderr).strip()
        world.note(f"join of {member.name} through {target.name} by {how}: {result.returncode} {said} ({time.monotonic() - begin:.1f} s)")
        world.counts[("join", "ok" if result.returncode == 0 else "failed")] += 1
        if result.returncode == 0:
            member.promised = True
        else:
            world.refusals[("join", result.returncode, said[:230])] += 1
    except subprocess.TimeoutExpired:
        world.found(f"join of {member.name} through {target.name} by {how} does not end")


def joins(world):
    room = world.limit - len(world.cluster.members) - len(world.unclear)
    count = min(max(room, 0), world.random.choice((1, 1, 2, 3)))
    plan = []
    for _ in range(count):
        how = world.random.choice(("token", "password"))
        kill = world.random.random() < 0.25
        plan.append((world.pick(), how, world.random.random() * 0.6 if kill else None))
    same = count > 1 and world.random.random() < 0.2
    world.note(f"{count} servers join{', two by one name' if same else ''}")

    def run():
        threads = []
        names = [f"m{world.number()}" for _ in plan]
        for number, (target, how, kill_after) in enumerate(plan):
            member = world.new_server()
            member.name, member.promised = names[0 if same else number], False
            threads.append(threading.Thread(target=world.guarded("join", join_one, world, member, target, how, kill_after)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return run


def take_out(world, member, asked, force):
    member.disturbed += 1
    member.left += 1
    member.inside = False
    path = f"/1.0/cluster/members/{member.name}" + ("?force=1" if force else "")
    kind, answer = world.ask("forced removal" if force else "removal", asked, "DELETE", path)
    world.note(f"removal of {member.name} through {asked.name}{' by force' if force else ''}: {kind} {'' if kind == 'ok' else answer}")
    with world.lock:
        world.cluster.members.remove(member)
        member.forced = force
        member.removed = kind == "ok"
        world.unclear.append(member)


def removal(world):
    if len(world.running()) < 4:
        return None
    if world.random.random() < 0.4:
        try:
            member = world.cluster.leader(10)
        except AssertionError:
            return None
    else:
        member = world.pick()
    if not member.inside:
        return None
    force = world.random.random() < 0.3
    asked = member if world.random.random() < 0.3 else world.pick()
    member.promised = False
    return lambda: take_out(world, member, asked, force)


def rename(world):
    member, asked, name = world.pick(), world.pick(), f"r{world.number()}"
    old = member.name

    def run():
        kind, answer = world.ask("rename", asked, "POST", f"/1.0/cluster/members/{old}", {"server_name": name})
        world.note(f"rename of {old} to {name} through {asked.name}: {kind} {'' if kind == 'ok' else answer}")
    return run


def member_update(world):
    member, asked = world.pick(), world.pick()
    body = world.random.choice((
        {"description": f"d{world.number()}"}, {"failure_domain": world.random.choice(("default", "rack1", "rack2"))},
        {"config": {"user.x": str(world.number())}}, {"config": {"scheduler.instance": world.random.choice(("all", "manual"))}}))
    name = member.name
    return lambda: world.ask("member update", asked, "PATCH", f"/1.0/cluster/members/{name}", body)


def group(world):
    asked, name, member = world.pick(), f"g{world.random.randrange(4)}", world.pick().name
    how = world.random.choice(("create", "members", "rename", "delete", "empty"))
    calls = {"create": ("POST", "/1.0/cluster/groups", {"name": name, "members": [member]}),
             "members": ("PUT", f"/1.0/cluster/groups/{name}", {"description": "x", "members": [member]}),
             "empty": ("PUT", f"/1.0/cluster/groups/{name}", {"description": "x", "members": []}),
             "rename": ("POST", f"/1.0/cluster/groups/{name}", {"name": f"g{world.random.randrange(4)}"}),
             "delete": ("DELETE", f"/1.0/cluster/groups/{name}", None)}
    return lambda: world.ask(f"group {how}", asked, *calls[how])


def limits(world):
    key, values = world.random.choice((("cluster.max_voters", ("3", "5", "")), ("cluster.max_standby", ("0", "1", "2", "5", "")),
                                       ("cluster.offline_threshold", ("10", "11")), ("cluster.images_minimal_replica", ("1", "3", "-1"))))
    asked, value = world.pick(), world.random.choice(values)
    return lambda: world.ask("configuration", asked, "PATCH", "/1.0", {"config": {key: value}})


def certificate(world):
    asked, name = world.pick(), f"pair{world.number()}"

    def run():
        base = client_certificate(name)
        texts = [open(base + end, encoding="ascii").read() for end in (".crt", ".key")]
        kind, answer = world.ask("certificate", asked, "PUT", "/1.0/cluster/certificate", {"cluster_certificate": texts[0], "cluster_certificate_key": texts[1]})
        world.note(f"new cluster certificate through {asked.name}: {kind} {'' if kind == 'ok' else answer}")
    return run


def tokens(world):
    asked, other, name = world.pick(), world.pick(), f"t{world.number()}"

    def run():
        kind, _ = world.ask("token", asked, "POST", "/1.0/cluster/members", {"server_name": name}, wait=False)
        if kind != "ok":
            return
        kind, answer = world.ask("token list", other, "GET", "/1.0/operations?recursion=1")
        if kind == "ok" and other.inside:
            mine = [one for one in answer.get("running", []) if one["class"] == "token" and one["metadata"].get("serverName") == name]
            if len(mine) != 1:
                world.found(f"token of {name} made by {asked.name} is listed {len(mine)} times by {other.name}")
            for one in mine:
                world.ask("token revoke", other, "DELETE", f"/1.0/operations/{one['id']}")
    return run


# --- instances ---

def instance(world):
    name = f"c{world.number()}"
    asked, target = world.pick(), world.random.choice((None, world.pick().name))
    keep, seed = world.random.random() < 0.3, world.random.random()

    def run():
        world.instances[name] = {True, False}
        path = "/1.0/instances" + (f"?target={target}" if target else "")
        kind, _ = world.ask("instance create", asked, "POST", path, {"name": name, "source": {"type": "image", "alias": "busybox"}})
        if kind != "ok":
            return
        world.instances[name] = {True}
        other = world.pick()
        kind, _ = world.ask("instance start", other, "PUT", f"/1.0/instances/{name}/state", {"action": "start", "timeout": 20})
        if kind == "ok" and seed < 0.7:
            before = other.disturbed
            try:
                code, out, _ = execute(other.rest, name, ["echo", "hello"], seconds=30)
                if (code, out) != (0, b"hello\n"):
                    world.found(f"exec in {name} through {other.name}: {code} {out!r}")
            except (OSError, RestError, AssertionError, ValueError, KeyError) as error:
                world.counts[("exec", "failed")] += 1
                if world.calm and other.disturbed == before:
                    world.found(f"exec in {name} through {other.name}: {error!r}")
        if not keep:
            world.instances[name] = {True, False}
            kind, _ = world.ask("instance stop", world.pick(), "PUT", f"/1.0/instances/{name}/state", {"action": "stop", "force": True, "timeout": 20})
            kind, _ = world.ask("instance delete", world.pick(), "DELETE", f"/1.0/instances/{name}")
            if kind == "ok":
                world.instances[name] = {False}
    return run


# --- the same thing many times at once ---

def at_once(world, what, calls):
    threads = [threading.Thread(target=world.guarded(what, world.ask, what, *call)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def many_renames(world):
    member = world.pick()
    old, names = member.name, [f"r{world.number()}" for _ in range(10)]
    through = [world.pick() for _ in names]
    world.note(f"ten renames of {old} at once")

    def run():
        key = ("ten renames", "ok")
        before = world.counts[key]
        at_once(world, key[0], [(asked, "POST", f"/1.0/cluster/members/{old}", {"server_name": name}) for name, asked in zip(names, through)])
        if world.counts[key] - before > 1:
            world.found(f"{world.counts[key] - before} of ten renames of {old} succeeded")
    return run


def many_removals(world):
    if len(world.running()) < 4:
        return None
    member = world.pick()
    member.promised = False
    through = [world.pick() for _ in range(10)]
    world.note(f"ten removals of {member.name} at once")

    def run():
        member.disturbed += 1
        member.left += 1
        member.inside = False
        # The asked ones may be the member itself, which restarts: no call to it counts as lost.
        member.down = True
        before = world.counts[("ten removals", "ok")]
        at_once(world, "ten removals", [(asked, "DELETE", f"/1.0/cluster/members/{member.name}") for asked in through])
        done = world.counts[("ten removals", "ok")] - before
        world.note(f"{done} of ten removals of {member.name} succeeded")
        with world.lock:
            world.cluster.members.remove(member)
            member.forced, member.removed = False, done > 0
            world.unclear.append(member)
        member.down = False
    return run


def forming_at_once(world):
    """A server is told twice at once to become a cluster, or to become one and to join."""
    both = world.random.random() < 0.5
    target = world.pick()
    world.note("a server bootstraps " + ("and joins at once" if both else "twice at once"))

    def run():
        member = world.new_server()
        member.name, member.promised = f"m{world.number()}", False
        member.left += 1
        boot = {"server_name": member.name, "enabled": True}
        try:
            document = member.join_document(target, "token")["cluster"] if both else None
        except (OSError, RestError):  # the other one was disturbed
            world.unclear.append(member)
            return
        member.rest.patch("/1.0", {"config": {"core.https_address": member.address}})
        results = []

        def form(body):
            results.append(world.ask("forming", member, "PUT", "/1.0/cluster", body, bound=60))

        def join():
            result = member.admin("init", "--preseed", stdin=json.dumps({"cluster": document}), check=False, seconds=JOIN_SECONDS)
            results.append(("ok" if result.returncode == 0 else "refused", result.stderr.strip()))
        bodies = [lambda: form(boot), join if both else lambda: form(boot | {"server_name": member.name + "b"})]
        threads = [threading.Thread(target=world.guarded("forming", one)) for one in bodies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        world.note(f"formed: {results}")
        if sorted(one[0] for one in results) != ["ok", "refused"]:
            world.found(f"of two formings at once: {results}")
        inside = len(member.rest.get("/1.0/cluster/members")) > 1
        if inside:
            member.promised = True
            world.unclear.append(member)
        else:
            member.inside = False
            world.ask("disable", member, "PUT", "/1.0/cluster", {"enabled": False, "server_name": ""})
            member.disturbed += 1
            world.unclear.append(member)
    return run


CALM = ((instance, 6), (limits, 3), (group, 4), (member_update, 4), (tokens, 3), (rename, 3), (certificate, 1), (many_renames, 1))
STORMY = ((process, 6), (leader, 4), (gateway, 2), (quorum_loss, 1), (joins, 5), (removal, 7), (many_removals, 2), (forming_at_once, 2), (instance, 5), (limits, 2), (group, 2),
          (member_update, 2), (tokens, 2), (rename, 3), (certificate, 1))


def choose(world, table):
    return world.random.choices([one for one, _ in table], [weight for _, weight in table])[0](world)
