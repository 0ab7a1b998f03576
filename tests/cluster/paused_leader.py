"""A leader that stands still (SIGSTOP) is replaced; woken up, it does not believe to lead any more and has the others' writes."""
from harness import Cluster, main, test, wait_until


@test(150)
def paused_leader():
    cluster = Cluster(3)
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    for number in range(3):
        old = cluster.leader()
        others = [member for member in cluster if member is not old]
        old.rest.post("/1.0/profiles", {"name": f"before{number}"})
        old.pause()
        try:
            def write():
                others[0].rest.put("/1.0/profiles/default", {"description": f"round {number}", "config": {}, "devices": {}}, timeout=10)
                return others[1].rest.get("/1.0/profiles/default", timeout=10)["description"] == f"round {number}"
            wait_until(write, 40, f"a write while {old.name} stands still")
        finally:
            old.resume()
        # What it answers now is the others' state, never its own old one.
        assert wait_until(lambda: old.rest.get("/1.0/profiles/default"), 30, f"{old.name} answers again")["description"] == f"round {number}"
        assert old.rest.get(f"/1.0/profiles/before{number}")["name"] == f"before{number}"
        wait_until(lambda: len({cluster.roles(member)[""] for member in cluster}) == 1, 30, "one leader, told alike by all")
    cluster.wait_online(40)
    cluster.assert_equal_state()


main()
