"""kill -9 of the joiner or of the leader at a random moment of a join: afterwards it has joined, or all is as before and it can join."""
import os
import random
import subprocess
import time

from harness import Cluster, Member, main, needs_covey, program, test, to_yaml, wait_until

ROUNDS = int(os.environ.get("COVEY_ROUNDS", "6"))
JOIN_SECONDS_TYPICAL = 1.0  # kills fall into this time


def settled(cluster, joiner):
    """'joined', 'before', or None while neither holds."""
    info = joiner.rest.get("/1.0/cluster")
    seen = [member.members() for member in cluster.running()]
    if info["enabled"] and info["server_name"] == joiner.name:
        full = all(joiner.name in records and records[joiner.name]["status"] == "Online" for records in seen)
        return "joined" if full and len(joiner.members()) == len(seen[0]) else None
    if not info["enabled"] and all(joiner.name not in records for records in seen):
        return "before"
    return None


@test(300)
def join_killed_halfway():
    needs_covey("a join that dies half-way leaves residue there")
    seed = int(os.environ.get("COVEY_SEED", random.randrange(1 << 30)))
    print(f"COVEY_SEED={seed}")
    chance = random.Random(seed)
    cluster = Cluster(3)
    for number in range(ROUNDS):
        index = 4 + number
        joiner = Member(index, f"{cluster.prefix}.{index}").start()
        document = to_yaml(joiner.join_document(cluster[1], chance.choice(["password", "token"])))
        client = subprocess.Popen([program("covey"), "admin", "init", "--preseed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True, env=joiner.environment())
        client.stdin.write(document)
        client.stdin.close()
        delay = chance.random() * JOIN_SECONDS_TYPICAL
        time.sleep(delay)
        victim = chance.choice([joiner, cluster.leader()])
        victim.kill()
        said = client.stdout.read()  # ends with the client, which must not hang when its daemon is gone
        client.wait(60)
        victim.start()
        print(f"round {number}: killed {victim.name} after {delay:.2f} s, client exit {client.returncode}: {said.strip()[-200:]}")
        outcome = wait_until(lambda: settled(cluster, joiner), 60, f"joined or as before (round {number})")
        print(f"  {outcome}")
        if outcome == "before":
            joiner.join(cluster[1], "password")
            wait_until(lambda: settled(cluster, joiner) == "joined", 60, f"a second join of {joiner.name}")
        cluster.members.append(joiner)
        cluster.wait_online()
        cluster.assert_equal_state()


main()
