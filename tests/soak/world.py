"""What a run of random events knows: the cluster under test, what was acknowledged, what was found.

Every call of a run goes through `World.ask`, which judges it: answered within its bound, and if refused then with a code that tells the caller
what to do. A call may be lost without an answer only if the asked member was disturbed meanwhile.
"""
import collections
import http.client
import random
import re
import threading
import time
import traceback

from harness import Cluster, Member, RestError

BOUND_SECONDS = 30         # no call takes longer
GIVE_UP_SECONDS = 75       # the client's own limit, so that a slow call is seen as slow and not as lost
SETTLE_SECONDS = 60        # after the last disturbance everything is well again
FINE_CODES = (400, 403, 404, 409, 412, 503)
MEMBERS_MAX = 9
KEYS = 24


class World:
    def __init__(self, seed, count, say=print):
        self.seed = seed
        self.random = random.Random(seed)
        self.say = say
        self.lock = threading.Lock()
        self.findings = []
        self.refusals = collections.Counter()  # (what, code, text without names) -> times
        self.counts = collections.Counter()
        self.written = {}    # profile -> set of values that it may have; None = absent
        self.instances = {}  # name -> set of True, False: whether it may be there
        self.serial = 0
        self.begun = time.monotonic()
        self.cluster = Cluster(count, config={"cluster.offline_threshold": "10"})
        self.last_index = count
        self.alone = []      # servers that are in no cluster and may join
        self.unclear = []    # servers whose join or removal ended without an answer
        self.gone = []       # removed by force
        for member in self.cluster:
            prepare(member)

    # --- saying and finding ---

    def note(self, text):
        self.say(f"{time.monotonic() - self.begun:6.1f} {text}", flush=True)

    def found(self, text):
        with self.lock:
            self.findings.append(text)
        self.note(f"FINDING {text}")

    def number(self):
        with self.lock:
            self.serial += 1
            return self.serial

    # --- members ---

    def running(self):
        """Members of the cluster that nothing is being done to."""
        return [one for one in self.cluster.members if one.alive() and not one.down and one.inside]

    def pick(self, random_source=None):
        return (random_source or self.random).choice(self.running() or self.cluster.members)

    def new_server(self):
        """A started server that is in no cluster."""
        with self.lock:
            if self.alone:
                return self.alone.pop(0)
            self.last_index += 1
            member = Member(self.last_index, f"{self.cluster.prefix}.{self.last_index}")
            prepare(member)
            member.inside = False
        member.start()
        return member

    def everybody(self):
        return self.cluster.members + self.alone + self.unclear + self.gone

    # --- calls ---

    def ask(self, what, member, method, path, body=None, codes=FINE_CODES, bound=BOUND_SECONDS, **options):
        """("ok", answer), ("refused", RestError) or ("lost", error)."""
        before, begin = member.disturbed, time.monotonic()
        was_down = member.down
        try:
            outcome = ("ok", member.rest.call(method, path, body, timeout=GIVE_UP_SECONDS, **options))
        except RestError as error:
            outcome = ("refused", error)
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome = ("lost", error)
        took = time.monotonic() - begin
        disturbed = was_down or member.down or member.disturbed != before
        kind, value = outcome
        self.counts[(what, kind)] += 1
        if kind == "refused":
            plain = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{64}", "<id>", str(value.text))
            plain = re.sub(r"\b(node|m|w|c|g|r|t)\d+\b|127\.0\.\d+\.\d+(:\d+)?", "<n>", plain)
            self.refusals[(what, value.code, plain[:230])] += 1
            if value.code not in codes:
                self.found(f"{what} through {member.name}: {method} {path}: {value.code} {value.text}")
        if kind == "lost" and not disturbed:
            self.found(f"{what} through {member.name}: {method} {path} was lost after {took:.1f} s: {value!r}")
        if took > bound and not disturbed:
            self.found(f"{what} through {member.name}: {method} {path} took {took:.1f} s")
        return outcome

    # --- acknowledged writes ---

    def write_something(self, source):
        """One write of a profile through a random member, and its reading back through another. Each key has one writer at a time."""
        key = f"w{source.randrange(KEYS)}-{threading.get_ident() % 1000}"
        member, value = self.pick(source), f"v{self.number()}"
        known = self.written.get(key, {None})
        delete = None not in known and source.random() < 0.15
        body = {"config": {"user.v": value}, "description": "", "devices": {}}
        path = f"/1.0/profiles/{key}"
        epoch = member.left
        if delete:
            kind, answer = self.ask("profile delete", member, "DELETE", path)
        elif known == {None}:
            kind, answer = self.ask("profile create", member, "POST", "/1.0/profiles", {"name": key, **body})
        else:
            kind, answer = self.ask("profile write", member, "PUT", path, body)
        value = None if delete else value
        if member.left != epoch or not member.inside:
            self.written[key] = known | {value}  # it may have been a server of its own by then
            return
        if kind == "ok":
            self.written[key] = {value}
        elif kind == "refused" and answer.code not in (503, 404, 409):
            self.found(f"write of {key} through {member.name}: {answer}")
        else:
            if kind == "refused" and answer.code == 404 and None not in known:
                self.found(f"{key} is missing through {member.name}: {answer}")
            if kind == "refused" and answer.code == 409 and known == {None}:
                self.found(f"{key} exists through {member.name}, but never did: {answer}")
            self.written[key] = known | {value}
        other = self.pick(source)
        epoch = other.left
        kind, answer = self.ask("profile read", other, "GET", path)
        seen = answer["config"].get("user.v") if kind == "ok" else None
        if other.left != epoch or not other.inside:
            return
        if kind == "ok" or (kind == "refused" and answer.code == 404):
            if seen not in self.written[key]:
                self.found(f"read of {key} through {other.name} right after {member.name}: {seen}, expected one of {self.written[key]}")

    def guarded(self, what, function, *arguments):
        """A thread's body whose failure is a finding."""
        def run():
            try:
                function(*arguments)
            except Exception:  # a broken expectation of the run itself is one, too
                self.found(f"{what}: {traceback.format_exc()}")
        return run


def prepare(member):
    member.disturbed = 0   # counts what was done to its process
    member.left = 0        # counts its leaving and joining
    member.down = False    # killed or stopped, until it is started again
    member.inside = True   # a member of the cluster as far as known


def private_kib(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


def listing(member):
    """Address -> record of every member, as one member tells."""
    return {one["url"].removeprefix("https://"): one for one in member.rest.get("/1.0/cluster/members?recursion=1")}
