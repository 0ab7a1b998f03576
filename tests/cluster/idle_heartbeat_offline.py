"""A dead member shows OFFLINE after the threshold and ONLINE on return; an idle cluster writes nothing."""
import time

from harness import Cluster, main, peer_is_lxd, refused, test, wait_until

THRESHOLD_SECONDS = 11 if peer_is_lxd() else 10  # LXD takes only more than ten


@test(180)
def idle_heartbeat_offline():
    cluster = Cluster(3)
    first, victim = cluster[1], cluster[3]
    refused(400, "Value must be greater than", first.rest.patch, "/1.0", {"config": {"cluster.offline_threshold": "5"}})
    first.rest.patch("/1.0", {"config": {"cluster.offline_threshold": str(THRESHOLD_SECONDS)}})
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    if not peer_is_lxd():
        time.sleep(8)  # let the joins' own work end: finished operations are removed after five seconds
        before = first.status(digest=False)["last_index"]
        time.sleep(5)  # the measured span
        after = first.status(digest=False)["last_index"]
        assert before == after, f"an idle cluster wrote {int(after) - int(before)} entries in 5 s"
    victim.kill()
    killed = time.monotonic()
    record = wait_until(lambda: next((one for one in [first.members()["node3"]] if one["status"] == "Offline"), None),
                        3 * THRESHOLD_SECONDS, "node3 offline")
    took = time.monotonic() - killed
    # The last sign of life is at most one round (half the threshold) older than the death.
    assert took > THRESHOLD_SECONDS / 2 - 1, f"offline after {took:.1f} s only"
    assert record["message"].startswith("No heartbeat for "), record
    table = first.lxc("cluster", "list", "--format", "csv").stdout
    assert any(line.startswith("node3,") and ",OFFLINE," in line for line in table.splitlines()), table
    # Writes go on; the other member agrees.
    cluster[2].rest.post("/1.0/profiles", {"name": "meanwhile"})
    wait_until(lambda: cluster[2].members()["node3"]["status"] == "Offline", 10, "node2 sees node3 offline")
    victim.start()
    cluster.wait_online(3 * THRESHOLD_SECONDS)
    assert victim.rest.get("/1.0/profiles/meanwhile")["name"] == "meanwhile"
    cluster.assert_equal_state()


main()
