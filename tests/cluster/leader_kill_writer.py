"""Writers go on while daemons (and gateways) die by kill -9: no acknowledged write is lost, replicas end equal."""
import os
import random
import threading
import time

from harness import Cluster, RestError, main, peer_is_lxd, test, wait_until

ROUNDS = int(os.environ.get("COVEY_ROUNDS", "2" if peer_is_lxd() else "8"))
OUTAGE_SECONDS_MAX = 40
WRITE_SECONDS = 5  # limit of one attempt


class Writer(threading.Thread):
    """Adds key after key to one object by PATCH (repeating it is harmless), through one member after another until it is accepted."""

    def __init__(self, cluster, path, prefix):
        super().__init__(daemon=True)
        self.cluster, self.path, self.prefix = cluster, path, prefix
        self.acknowledged = 0
        self.outage = 0.0
        self.stopping = threading.Event()
        self.refusals = {}

    def run(self):
        members = list(self.cluster)
        turn = 0
        while not self.stopping.is_set():
            number = self.acknowledged + 1
            started = time.monotonic()
            while not self.stopping.is_set():
                turn += 1
                try:
                    members[turn % len(members)].rest.patch(self.path, {"config": {f"{self.prefix}{number}": str(number)}},
                                                           timeout=WRITE_SECONDS)
                    self.acknowledged = number
                    break
                except (OSError, ValueError, RestError) as error:
                    text = str(error)[:160]
                    self.refusals[text] = self.refusals.get(text, 0) + 1
                    time.sleep(0.02)
                except Exception as error:  # http.client's own: a reply cut off in the middle
                    self.refusals[repr(error)[:160]] = self.refusals.get(repr(error)[:160], 0) + 1
                    time.sleep(0.02)
            self.outage = max(self.outage, time.monotonic() - started)


@test(300)
def leader_kill_writer():
    seed = int(os.environ.get("COVEY_SEED", random.randrange(1 << 30)))
    print(f"COVEY_SEED={seed}")
    chance = random.Random(seed)
    cluster = Cluster(3)
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    cluster[1].rest.post("/1.0/profiles", {"name": "w"})
    writers = [Writer(cluster, "/1.0/profiles/w", "user.p"), Writer(cluster, "/1.0", "user.c")]
    for writer in writers:
        writer.start()
    for number in range(ROUNDS):
        before = [writer.acknowledged for writer in writers]
        wait_until(lambda: all(writer.acknowledged > count + 3 for writer, count in zip(writers, before)), OUTAGE_SECONDS_MAX,
                   "progress of both writers")
        kind = chance.choice(["leader", "leader", "any", "gateway"])
        victim = cluster.leader() if kind == "leader" else chance.choice(list(cluster))
        if kind == "gateway" and not peer_is_lxd():
            for pid in victim.children("covey-gateway"):
                os.kill(pid, 9)
            wait_until(lambda: victim.rest.get("/1.0"), 15, f"a new gateway of {victim.name}")
            continue
        victim.kill()
        others = [writer.acknowledged for writer in writers]
        wait_until(lambda: all(writer.acknowledged > count for writer, count in zip(writers, others)), OUTAGE_SECONDS_MAX,
                   f"writes after the death of {victim.name} (round {number}, {kind})")
        time.sleep(chance.random())
        victim.start()
    for writer in writers:
        writer.stopping.set()
    for writer in writers:
        writer.join(WRITE_SECONDS + 10)
        assert not writer.is_alive(), "a writer hangs"
    cluster.wait_online()
    for member in cluster:
        profile = member.rest.get("/1.0/profiles/w")["config"]
        server = member.rest.get("/1.0")["config"]
        for writer, config in zip(writers, (profile, server)):
            lost = [number for number in range(1, writer.acknowledged + 1) if config.get(f"{writer.prefix}{number}") != str(number)]
            assert not lost, f"{member.name} lost {len(lost)} of {writer.acknowledged} acknowledged writes: {lost[:10]}"
    cluster.assert_equal_state()
    for writer in writers:
        print(f"{writer.path}: {writer.acknowledged} writes, longest gap {writer.outage:.2f} s, refusals {writer.refusals}")
        assert writer.outage < OUTAGE_SECONDS_MAX


main()
