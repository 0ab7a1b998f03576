"""§18.24: every refused join says the text that scripts match, leaves the joiner a usable standalone server and the cluster as it was."""
import base64
import json

from harness import PASSWORD, Cluster, Member, main, peer_is_lxd, refused, test, wait_until


def forged(token, **changes):
    data = json.loads(base64.b64decode(token)) | changes
    return base64.b64encode(json.dumps(data).encode()).decode()


@test(180)
def join_refusals():
    cluster = Cluster(2)
    first = cluster[1]
    joiner = Member(3, f"{cluster.prefix}.3").start()

    def attempt(text, document):
        result = joiner.preseed(document, check=False)
        said = result.stdout + result.stderr
        assert result.returncode == 1, f"exit {result.returncode}: {said}"
        assert result.stderr.splitlines()[-1] == "Error: " + text, f"expected {text!r}, said {said!r}"
        info = joiner.rest.get("/1.0/cluster")
        assert info["enabled"] is False and info["server_name"] == "", info
        joiner.rest.get("/1.0/profiles?recursion=1")
        assert sorted(first.members()) == ["node1", "node2"]
        return said

    password = joiner.join_document(first, "password")["cluster"]
    prefix = "Failed to join cluster: "
    setup = prefix + "Failed to setup cluster trust: Failed to add server cert to cluster: "
    attempt(setup + "not authorized", {"cluster": password | {"cluster_password": "wrong"}})
    attempt(prefix + "Failed to update cluster trust: Failed getting existing certificate: not authorized",
            {"cluster": {key: value for key, value in password.items() if key != "cluster_password"}})
    attempt(prefix + f'Cannot listen on cluster HTTPS socket "{first.address}": listen tcp {first.address}: bind: address already in use',
            {"cluster": password | {"server_address": first.address}})

    token = first.token("node3")
    attempt('Certificate fingerprint mismatch between join token and cluster member "' + first.address + '"',
            joiner.join_document(first, "given", cluster_token=forged(token, fingerprint="00" * 32)))
    nobody = [f"{cluster.prefix}.9:8443", f"{cluster.prefix}.10:8443"]
    said = attempt("Unable to connect to any of the cluster members specified in join token",
                   joiner.join_document(first, "given", cluster_token=forged(token, addresses=nobody)))
    for address in nobody:
        assert f'Error connecting to existing cluster member "{address}": ' in said, said
    attempt(setup + "No matching cluster join operation found",
            joiner.join_document(first, "given", cluster_token=forged(token, secret="ab" * 32)))
    for operation in first.rest.get("/1.0/operations?recursion=1").get("running", []):
        if operation["class"] == "token":
            first.rest.delete(f"/1.0/operations/{operation['id']}")
    attempt(setup + "No matching cluster join operation found", joiner.join_document(first, "given", cluster_token=token))

    first.rest.patch("/1.0", {"config": {"cluster.join_token_expiry": "1S"}})
    token = first.token("node3")
    import time
    time.sleep(1.2)  # the life of the token itself
    attempt(setup + "Failed during search for join token operation: Token has expired",
            joiner.join_document(first, "given", cluster_token=token))
    first.rest.patch("/1.0", {"config": {"cluster.join_token_expiry": ""}})

    attempt(prefix + "Failed request to add member: The cluster already has a member with name: node1",
            {"cluster": password | {"server_name": "node1"}})
    if peer_is_lxd():  # it keeps the certificate of the refused joiner, which blocks the next name
        own = joiner.certificate().strip()
        for entry in first.rest.get("/1.0/certificates?recursion=1"):
            if entry["certificate"].strip() == own:
                first.rest.delete(f"/1.0/certificates/{entry['fingerprint']}")

    # What the trust store knew of the joiner before is what it knows after.
    def known():
        return [(one["name"], one["type"]) for one in first.rest.get("/1.0/certificates?recursion=1") if one["name"] not in ("node1", "node2")]

    body = "".join(line for line in joiner.certificate().splitlines() if not line.startswith("-----"))
    first.rest.post("/1.0/certificates", {"type": "server", "name": "other", "certificate": body})
    different = prefix + 'Failed to update cluster trust: Existing server certificate with different name "other" already in trust store'
    attempt(different, {"cluster": password})
    assert known() == [("other", "server")], known()
    first.rest.delete(f"/1.0/certificates/{joiner.rest.get('/1.0')['environment']['certificate_fingerprint']}")
    if not peer_is_lxd():
        first.rest.post("/1.0/certificates", {"type": "client", "name": "laptop", "certificate": body})
        attempt(prefix + "Failed request to add member: The cluster already has a member with name: node1",
                {"cluster": password | {"server_name": "node1", "cluster_password": ""}})  # a trusted client needs no password
        assert known() == [("laptop", "client")], known()
        first.rest.delete(f"/1.0/certificates/{joiner.rest.get('/1.0')['environment']['certificate_fingerprint']}")

    # Refused members are clustered already.
    refused(400, "This server is already clustered", cluster[2].rest.put, "/1.0/cluster",
            {"server_name": "node9", "enabled": True, "server_address": cluster[2].address, "cluster_address": first.address,
             "cluster_certificate": first.certificate(), "cluster_password": PASSWORD})
    refused(400, "ServerName is required when enabling clustering", joiner.rest.put, "/1.0/cluster", {"enabled": True})

    # After all that the same server joins.
    joiner.join(first, "token")
    cluster.members.append(joiner)
    cluster.wait_online()
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")


main()
