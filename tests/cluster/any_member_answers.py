"""Whatever member is asked, the answer is the same, at once: reads after writes through another member, trust, ETags, errors."""
from harness import PASSWORD, Cluster, certificate_body, client_certificate, main, refused, test


@test(120)
def any_member_answers():
    cluster = Cluster(4)  # the fourth has no vote
    for number, writer in enumerate(cluster):
        name = f"p{number}"
        writer.rest.post("/1.0/profiles", {"name": name, "description": f"by {writer.name}", "config": {"user.n": str(number)}})
        writer.rest.patch("/1.0", {"config": {f"user.from{number}": writer.name}})
        for reader in cluster:  # no waiting: reads are linearizable
            assert reader.rest.get(f"/1.0/profiles/{name}")["config"] == {"user.n": str(number)}
            assert reader.rest.get("/1.0")["config"][f"user.from{number}"] == writer.name
    for reader in cluster:
        for other in cluster:
            record = reader.rest.get(f"/1.0/cluster/members/{other.name}")
            assert record["server_name"] == other.name and record["status"] == "Online", record
            assert reader.rest.get(f"/1.0?target={other.name}")["environment"]["server_name"] == other.name
        refused(404, "Cluster member not found", reader.rest.get, "/1.0/cluster/members/nobody")
        refused(404, "not found", reader.rest.get, "/1.0/profiles/nobody")

    # An ETag from one member is good on another; a stale one is refused there.
    reply = cluster[1].rest.request("GET", "/1.0/profiles/p0")
    etag = reply.headers["ETag"]
    assert cluster[4].rest.request("GET", "/1.0/profiles/p0").headers["ETag"] == etag
    body = {"description": "changed", "config": {"user.n": "9"}, "devices": {}}
    cluster[4].rest.put("/1.0/profiles/p0", body, headers={"If-Match": etag})
    refused(412, "ETag doesn't match", cluster[2].rest.put, "/1.0/profiles/p0", body, headers={"If-Match": etag})

    # A client that one member trusts is trusted by all, and sees one certificate.
    certificate = client_certificate()
    refused(403, "not authorized", cluster[1].tls(certificate).get, "/1.0/profiles")
    assert cluster[1].tls().get("/1.0")["auth"] == "untrusted"
    body = {"type": "client", "name": "c", "password": "wrong", "certificate": certificate_body(certificate)}
    refused(403, "not authorized", cluster[3].tls(certificate).post, "/1.0/certificates", body)
    cluster[3].tls(certificate).post("/1.0/certificates", body | {"password": PASSWORD})
    fingerprint = cluster[1].rest.get("/1.0")["environment"]["certificate_fingerprint"]
    for member in cluster:
        client = member.tls(certificate, fingerprint)
        assert client.get("/1.0")["auth"] == "trusted"
        assert len(client.get("/1.0/profiles")) == 5
    # Two requests on one connection.
    client = cluster[2].tls(certificate, fingerprint, keep_alive=True)
    assert client.get("/1.0/profiles/p1")["name"] == "p1"
    assert client.get("/1.0/profiles/p2")["name"] == "p2"
    client.close()

    # What one removes is gone for all.
    for number, member in enumerate(cluster):
        member.rest.delete(f"/1.0/profiles/p{number}")
        for reader in cluster:
            refused(404, "not found", reader.rest.get, f"/1.0/profiles/p{number}")
    cluster.assert_equal_state()


main()
