"""A short run of tests/soak: random events with a fixed seed, or that of COVEY_CHAOS_SEED."""
import os
import sys

from harness import ROOT, main, needs_covey, test

SECONDS = 20  # no round begins later
MEMBERS = 5
SEED = 3


@test(240)
def chaos():
    """Members die, pause, join, leave and get new names while others write: no acknowledged write is lost, everybody agrees, nothing is left over."""
    needs_covey("it loses members and writes there")
    sys.path.insert(0, os.path.join(ROOT, "tests", "soak"))
    import soak
    seed = int(os.environ.get("COVEY_CHAOS_SEED", SEED))
    world = soak.run(seed, SECONDS, MEMBERS)
    assert not world.findings, f"COVEY_CHAOS_SEED={seed}: {len(world.findings)} findings:\n" + "\n".join(world.findings)


main()
