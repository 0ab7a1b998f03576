"""Join tokens: one per name, used once, seen and revoked everywhere, expiring, and safe from the restart of who issued them."""
import base64
import json
import time

from harness import Cluster, Member, main, needs_covey, refused, test, wait_until

NO_MATCH = "Failed to setup cluster trust: Failed to add server cert to cluster: No matching cluster join operation found"


def issue(member, name):
    """The token as the client prints it."""
    lines = member.covey("cluster", "add", name).stdout.splitlines()
    assert lines[0] == f"Member {name} join token:" and len(lines) == 2, lines
    return lines[1]


def listed(member):
    """name -> token, as `cluster list-tokens` of one member tells."""
    return {row["ServerName"]: row["Token"] for row in json.loads(member.covey("cluster", "list-tokens", "--format", "json").stdout)}


def operations(member):
    running = member.rest.get("/1.0/operations?recursion=1").get("running", [])
    return [one for one in running if one["class"] == "token" and one["status_code"] == 103]


def join_by(joiner, target, token, how="cluster_password"):
    """Joins with the token: as a raw password, or as a token of the preseed."""
    if how == "cluster_password":
        document = joiner.join_document(target, "given", server_name=joiner.name, cluster_address=target.address,
                                        cluster_certificate=target.certificate(), cluster_password=token)
    else:
        document = joiner.join_document(target, "given", cluster_token=token)
    return joiner.preseed(document, check=False)


def refuses(result, text):
    assert result.returncode == 1 and text in result.stderr, result.stdout + result.stderr


@test(120)
def token_listed_elsewhere():
    """§18.16: a token made on one member is listed on another with name and text; joining with it as password works, once; then it is not listed."""
    needs_covey("the scenario uses its client")
    cluster = Cluster(2)
    token = issue(cluster[1], "node3")
    data = json.loads(base64.b64decode(token))
    assert list(data) == ["server_name", "fingerprint", "addresses", "secret", "expires_at"], data
    assert data["addresses"] == [cluster[1].address, cluster[2].address] and len(data["secret"]) == 64, data
    assert data["fingerprint"] == cluster[1].rest.get("/1.0")["environment"]["certificate_fingerprint"]
    (operation,) = operations(cluster[2])
    assert operation["description"] == "Executing operation" and operation["may_cancel"] and operation["location"] == "node1", operation
    assert operation["resources"] == {"cluster": None} and set(operation["metadata"]) == {
        "serverName", "secret", "fingerprint", "addresses", "expiresAt"}, operation
    for member in cluster:
        assert listed(member) == {"node3": token}, listed(member)
        row = member.covey("cluster", "list-tokens", "--format", "csv").stdout.strip().split(",")
        assert row[:2] == ["node3", token] and row[2].endswith(" UTC") and len(row[2]) == len("2026/11/21 11:42 UTC"), row
    joiner = Member(3, f"{cluster.prefix}.3").start()
    assert join_by(joiner, cluster[2], token).returncode == 0
    wait_until(lambda: joiner.members()["node3"]["message"] == "Fully operational", 30, "the new member")
    assert listed(cluster[1]) == {} == listed(cluster[2])
    again = Member(4, f"{cluster.prefix}.4", name="node3").start()
    refuses(join_by(again, cluster[1], token), NO_MATCH)


@test(120)
def token_revoked_elsewhere():
    """§18.17: a token revoked on another member is not listed any more and joins nobody."""
    needs_covey("the scenario uses its client")
    cluster = Cluster(2)
    token = issue(cluster[1], "node7")
    assert cluster[2].covey("cluster", "revoke-token", "node7").stdout == "Cluster join token for local:node7 deleted\n"
    assert listed(cluster[1]) == {} == listed(cluster[2])
    result = cluster[1].covey("cluster", "revoke-token", "node7", check=False)
    assert result.returncode == 1 and result.stderr == "Error: No cluster join token for member node7 on remote: local\n", result.stderr
    joiner = Member(7, f"{cluster.prefix}.7").start()
    refuses(join_by(joiner, cluster[1], token, "token"), NO_MATCH)
    # A new one for the same name ends the earlier one.
    first = issue(cluster[1], "node7")
    second = issue(cluster[2], "node7")
    assert first != second and listed(cluster[1]) == {"node7": second}
    refuses(join_by(joiner, cluster[1], first), NO_MATCH)
    assert join_by(joiner, cluster[1], second, "token").returncode == 0
    cluster.members.append(joiner)
    cluster.wait_online()


@test(120)
def token_expiry():
    """§18.18: with 30S a join in time works; with 5S and a pause it fails; unset there are three hours again."""
    cluster = Cluster(1)
    member = cluster[1]

    def left(expiry):
        member.rest.patch("/1.0", {"config": {"cluster.join_token_expiry": expiry}})
        data = json.loads(base64.b64decode(member.token("node9")))
        text = data["expires_at"][:19]
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S")) - time.timezone - time.time()

    assert 20 <= left("30S") <= 31
    assert 3 * 3600 - 20 <= left("") <= 3 * 3600 + 1
    assert 95 * 60 - 20 <= left("1H 35M") <= 95 * 60 + 1
    for wrong in ("5H30M", "5h", "1H 2H", "soon"):
        refused(400, f"cannot set 'cluster.join_token_expiry' to '{wrong}': Invalid expiry expression", member.rest.patch, "/1.0",
                {"config": {"cluster.join_token_expiry": wrong}})
    member.rest.patch("/1.0", {"config": {"cluster.join_token_expiry": "30S"}})
    in_time = Member(2, f"{cluster.prefix}.2").start()
    assert join_by(in_time, member, member.token("node2"), "token").returncode == 0
    member.rest.patch("/1.0", {"config": {"cluster.join_token_expiry": "5S"}})
    late, token = Member(3, f"{cluster.prefix}.3").start(), member.token("node3")
    time.sleep(6)  # the life of the token
    refuses(join_by(late, member, token, "token"), "Failed during search for join token operation: Token has expired")
    assert "node3" not in [one["metadata"]["serverName"] for one in operations(member)], "consumed all the same"
    assert late.rest.get("/1.0/cluster")["enabled"] is False
    member.rest.patch("/1.0", {"config": {"cluster.join_token_expiry": ""}})
    assert join_by(late, member, member.token("node3"), "token").returncode == 0


@test(120)
def token_survives_its_issuer():
    """It is the cluster's: the issuing member may restart, another one may lead."""
    needs_covey("there tokens live in the memory of the issuer")
    cluster = Cluster(3)
    leader = cluster.leader()
    token = issue(leader, "node4")
    leader.restart()
    cluster.wait_online()
    for member in cluster:
        assert listed(member) == {"node4": token}, member.name
    cluster.leader().kill()
    joiner = Member(4, f"{cluster.prefix}.4").start()
    assert join_by(joiner, cluster[1], token, "token").returncode == 0
    wait_until(lambda: "node4" in cluster.running()[0].members(), 20, "the new member")


@test(90)
def token_refusals():
    """Names that no member may have; each side's texts."""
    needs_covey("names are checked late there")
    cluster = Cluster(1)
    post = cluster[1].rest.post
    refused(400, "The cluster already has a member with name: node1", post, "/1.0/cluster/members", {"server_name": "node1"})
    refused(400, 'Join token name cannot be "none"', post, "/1.0/cluster/members", {"server_name": "none"})
    for name in ("", "@web", "a b", "x" * 64):
        refused(400, "Invalid cluster member name", post, "/1.0/cluster/members", {"server_name": name})
    joiner = Member(2, f"{cluster.prefix}.2").start()
    good = json.loads(base64.b64decode(cluster[1].token("node2")))

    def encoded(data):
        return base64.b64encode(json.dumps(data).encode()).decode()

    for text, why in (("%%%", ""), (base64.b64encode(b"{").decode(), ""),
                      (encoded(good | {"server_name": ""}), "No server name in join token"),
                      (encoded(good | {"addresses": []}), "No cluster member addresses in join token"),
                      (encoded(good | {"secret": ""}), "No secret in join token"),
                      (encoded(good | {"fingerprint": ""}), "No certificate fingerprint in join token")):
        refuses(join_by(joiner, cluster[1], text, "token"), f"Invalid cluster join token: {why}")
    # A token is for the name that it was made for.
    other = Member(3, f"{cluster.prefix}.3").start()
    refuses(join_by(other, cluster[1], encoded(good)), NO_MATCH)
    assert [one["metadata"]["serverName"] for one in operations(cluster[1])] == ["node2"], "not used up by a stranger"
    assert join_by(joiner, cluster[1], encoded(good), "token").returncode == 0


@test(90)
def client_token_names_all_members():
    """A token of `config trust add` may be used at any member that is online."""
    needs_covey("there only the issuing member is named")
    cluster = Cluster(2)
    metadata = cluster[2].rest.post("/1.0/certificates", {"name": "laptop", "type": "client", "token": True}, wait=False)["metadata"]
    assert sorted(metadata["addresses"]) == [one.address for one in cluster], metadata


if __name__ == "__main__":
    main()
