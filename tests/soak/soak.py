"""One run: rounds of random events with writers beside them, a check after each round."""
import random
import threading
import time

import actions
import invariants
from world import World

WRITERS = 2
EVENTS_MAX = 5         # of one round
EVENT_SECONDS = 150    # an event that takes longer hangs
PAUSE_SECONDS_MAX = 0.8


def write_until(world, stop, seed):
    source = random.Random(seed)
    while not stop.is_set():
        world.write_something(source)
        time.sleep(0.02)


def one_round(world, table, events):
    stop = threading.Event()
    writers = [threading.Thread(target=world.guarded("writer", write_until, world, stop, f"{world.seed}/{world.number()}")) for _ in range(WRITERS)]
    for writer in writers:
        writer.start()
    running = []
    for _ in range(events):
        event = actions.choose(world, table)
        if event is not None:
            thread = threading.Thread(target=world.guarded("event", event), daemon=True)
            thread.start()
            running.append(thread)
        time.sleep(world.random.random() * PAUSE_SECONDS_MAX)
    deadline = time.monotonic() + EVENT_SECONDS
    for thread in running:
        thread.join(max(0.1, deadline - time.monotonic()))
        if thread.is_alive():
            world.found("an event hangs")
    stop.set()
    for writer in writers:
        writer.join(EVENT_SECONDS)


def run(seed, seconds, members, rounds=1000, calm=False):
    world = World(seed, members)
    world.limit = members + 3
    world.calm = False
    world.cluster.import_image()
    invariants.check(world)
    for number in range(rounds):
        if time.monotonic() - world.begun > seconds:
            break
        quiet = calm or number % 3 == 2
        world.note(f"--- round {number}{' (calm)' if quiet else ''}: {len(world.cluster.members)} members, {len(world.alone)} alone")
        world.calm = quiet
        one_round(world, actions.CALM if quiet else actions.STORMY, world.random.randint(2, EVENTS_MAX))
        invariants.check(world)
    for (what, kind), times in sorted(world.counts.items()):
        print(f"  {times:5} {what}: {kind}")
    for (what, code, text), times in sorted(world.refusals.items()):
        print(f"  {times:5} {what}: {code} {text}")
    return world
