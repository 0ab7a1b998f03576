"""Clients on one address, members on another: core.https_address differs from cluster.https_address."""
from harness import PORT, Cluster, main, refused, test


@test(120)
def split_networks():
    cluster = Cluster(2, split=True)
    for member in cluster:
        records = member.members()
        for one in cluster:
            assert records[one.name]["url"] == f"https://{one.address}", records
        config = member.rest.get("/1.0")["config"]
        assert config["core.https_address"] == member.core_address and config["cluster.https_address"] == member.address, config
        assert member.tls().get("/1.0")["auth"] == "untrusted"
        assert member.tls(address=member.address).get("/1.0")["auth"] == "untrusted"
    # The cluster address is frozen, the core address is not.
    first = cluster[1]
    refused((400, 500), "Changing cluster.https_address is currently not supported", first.rest.patch, "/1.0",
            {"config": {"cluster.https_address": f"{cluster.prefix}.50:{PORT}"}})
    moved = f"{cluster.prefix}.60:{PORT}"
    first.rest.patch("/1.0", {"config": {"core.https_address": moved}})
    assert first.tls(address=moved).get("/1.0")["auth"] == "untrusted"
    try:
        first.tls(address=first.core_address).get("/1.0")
        raise AssertionError("the old core address still answers")
    except OSError:
        pass
    cluster.wait_online()
    # Without any core address members still reach each other.
    first.rest.patch("/1.0", {"config": {"core.https_address": ""}})
    cluster.wait_online()
    cluster[2].rest.post("/1.0/profiles", {"name": "after"})
    assert first.rest.get("/1.0/profiles/after")["name"] == "after"
    for member in cluster:
        member.stop()
    for member in cluster:
        member.start(wait=False)
    for member in cluster:
        member.wait_ready()
    cluster.wait_online()


main()
