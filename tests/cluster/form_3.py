"""Three members form a cluster, by trust password and by token; the result as clients see it."""
from harness import Cluster, main, refused, test, wait_until


def check(cluster):
    for member in cluster:
        seen = member.members()
        assert sorted(seen) == ["node1", "node2", "node3"], sorted(seen)
        for one in cluster:
            record = seen[one.name]
            assert record["url"] == f"https://{one.address}", record
            assert record["message"] == "Fully operational", record
            assert record["groups"] == ["default"] and record["failure_domain"] == "default", record
            assert record["architecture"], record
        server = member.rest.get("/1.0")
        assert server["environment"]["server_clustered"] is True
        assert server["environment"]["server_name"] == member.name
        info = member.rest.get("/1.0/cluster")
        assert info["enabled"] is True and info["server_name"] == member.name, info
    roles = wait_until(lambda: (lambda told: told if list(told.values()).count("voter") == 3 else None)(cluster.roles()), 30,
                       "three voters")
    assert roles[""] in ("node1", "node2", "node3")
    # All members present the same certificate, which no longer is the server's own.
    certificates = {member.certificate() for member in cluster}
    assert len(certificates) == 1
    # The pool and the profile of the first member are everybody's.
    for member in cluster:
        pool = member.rest.get("/1.0/storage-pools/default")
        assert sorted(pool["locations"]) == ["node1", "node2", "node3"] and pool["status"] == "Created", pool
        assert member.rest.get("/1.0/profiles/default")["devices"]["root"]["pool"] == "default"
    # A second bootstrap is refused and changes nothing.
    refused((400, 500), "", cluster[2].rest.call, "PUT", "/1.0/cluster",
            {"server_name": "other", "enabled": True, "cluster_address": cluster[1].address,
             "cluster_certificate": cluster[1].certificate(), "server_address": cluster[2].address})
    assert cluster[2].rest.get("/1.0/cluster")["server_name"] == "node2"


@test(120)
def form_3_password():
    check(Cluster(3))


@test(120)
def form_3_token():
    cluster = Cluster(3, how="token")
    check(cluster)
    # A token is used up by the join: none is left in the list.
    operations = cluster[1].rest.get("/1.0/operations?recursion=1")
    assert not [one for one in operations.get("running", []) if one["class"] == "token"], operations


main()
