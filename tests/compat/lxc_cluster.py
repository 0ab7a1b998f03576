"""The cluster commands of the stock `lxc` client of LXD 5.0.2, and the same typed to `covey`."""
import csv
import hashlib
import json
import os
import ssl

import harness
from harness import Cluster, client_certificate, main, needs_covey, test, wait_until


def presented(member):
    host, port = member.core_address.rsplit(":", 1)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))).hexdigest()


def fingerprint_of(base):
    with open(base + ".crt", encoding="ascii") as file:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(file.read())).hexdigest()


def fails(run, text, *arguments):
    result = run(*arguments)
    assert result.returncode == 1 and text in result.stderr, (arguments, result)


def lines(result):
    return list(csv.reader(result.stdout.splitlines()))


def settled(cluster):
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 60, "three voters")


@test(120)
def lxc_cluster_list_and_show():
    """`cluster list` in every format, `ls`, `show`, and what a server that is no cluster says."""
    cluster = Cluster(3)
    settled(cluster)
    lxc = cluster[2].lxc
    rows = lines(lxc("cluster", "list", "--format", "csv"))
    leader = cluster.leader()
    for number, row in enumerate(rows, 1):
        roles = "database-leader,database" if row[0] == leader.name else "database"
        assert row == [f"node{number}", f"https://{cluster[number].address}", roles, "x86_64", "default", "", "ONLINE", "Fully operational"], row
    shown = lxc("cluster", "ls").stdout
    assert shown.splitlines()[1].split("|")[1:-1] == [f" {name:^{len(cell) - 2}} " for name, cell in zip(
        ("NAME", "URL", "ROLES", "ARCHITECTURE", "FAILURE DOMAIN", "DESCRIPTION", "STATE", "MESSAGE"), shown.splitlines()[1].split("|")[1:-1])], shown
    raw = json.loads(lxc("cluster", "list", "--format", "json").stdout)
    assert list(raw[0]) == ["roles", "failure_domain", "description", "config", "groups", "server_name", "url", "database", "status", "message",
                            "architecture"], raw[0]
    assert "server_name: node3" in lxc("cluster", "list", "--format", "yaml").stdout
    assert lxc("cluster", "list", "--format", "compact").stdout.split()[:2] == ["NAME", "URL"]
    fails(lambda *words: lxc(*words, check=False), 'Invalid format "tree"', "cluster", "list", "--format", "tree")
    shown = lxc("cluster", "show", "node3").stdout
    held = "- database-leader\n- database\n" if leader is cluster[3] else "- database\n"
    assert shown == (f"roles:\n{held}failure_domain: default\ndescription: \"\"\nconfig: {{}}\ngroups:\n- default\nserver_name: node3\n"
                     f"url: https://{cluster[3].address}\ndatabase: true\nstatus: Online\nmessage: Fully operational\narchitecture: x86_64\n"), shown
    fails(lambda *words: lxc(*words, check=False), "Cluster member not found", "cluster", "show", "nobody")
    alone = cluster.add()
    for words in (("list",), ("group", "list")):
        fails(lambda *words: alone.lxc(*words, check=False), "LXD server isn't part of a cluster", "cluster", *words)


@test(120)
def lxc_cluster_member_keys():
    """`cluster get`, `set`, `unset`, `edit` (by pipe), `role add`, `role remove`."""
    cluster = Cluster(3)
    settled(cluster)
    lxc = cluster[3].lxc

    def refuses(text, *words, **options):
        result = lxc("cluster", *words, check=False, **options)
        assert result.returncode == 1 and text in result.stderr, (words, result)

    lxc("cluster", "set", "node2", "user.rack=r1", "scheduler.instance=group")
    assert lxc("cluster", "get", "node2", "user.rack").stdout == "r1\n"
    lxc("cluster", "set", "node2", "user.rack", "r2")  # the old form
    assert cluster[1].members()["node2"]["config"] == {"user.rack": "r2", "scheduler.instance": "group"}
    lxc("cluster", "unset", "node2", "user.rack")
    refuses('The key "user.rack" does not exist on cluster member "node2"', "get", "node2", "user.rack")
    refuses('Invalid cluster configuration key "color"', "set", "node2", "color=red")
    refuses('Invalid cluster configuration key "scheduler.instance" value', "set", "node2", "scheduler.instance=never")
    refuses("Cluster member not found", "set", "nobody", "user.x=1")
    # Roles
    lxc("cluster", "role", "add", "node2", "event-hub,ovn-chassis")
    assert cluster[1].members()["node2"]["roles"][:2] == ["event-hub", "ovn-chassis"], cluster[1].members()["node2"]
    refuses('Member "node2" already has role "event-hub"', "role", "add", "node2", "event-hub")
    lxc("cluster", "role", "remove", "node2", "event-hub")
    refuses('Member "node2" does not have role "event-hub"', "role", "remove", "node2", "event-hub")
    refuses('Invalid cluster role "king"', "role", "add", "node2", "king")
    refuses('The "database" role cannot be dropped at this time', "role", "remove", "node2", "database")
    # The whole record by pipe
    text = lxc("cluster", "show", "node2").stdout
    text = text.replace("failure_domain: default", "failure_domain: az1").replace('description: ""', "description: second").replace("- ovn-chassis\n", "")
    lxc("cluster", "edit", "node2", stdin=text)
    record = cluster[1].members()["node2"]
    assert (record["failure_domain"], record["description"], record["config"]) == ("az1", "second", {"scheduler.instance": "group"}), record
    assert "ovn-chassis" not in record["roles"], record
    refuses("Failure domain name can't be empty", "edit", "node2", stdin=text.replace("failure_domain: az1", 'failure_domain: ""'))
    refuses("Cluster members need to belong to at least one group", "edit", "node2", stdin=text.replace("groups:\n- default\n", "groups: []\n"))
    refuses("Cluster group not found", "edit", "node2", stdin=text.replace("- default\n", "- default\n- nope\n"))
    assert cluster[1].members()["node2"] == record
    lxc("cluster", "edit", "node2", stdin=text.replace("failure_domain: az1", "failure_domain: default"))
    assert lines(lxc("cluster", "list", "--format", "csv"))[1][4:6] == ["default", "second"]


@test(120)
def lxc_cluster_groups():
    """Every `cluster group` command, with the lines that scripts read."""
    cluster = Cluster(3)
    settled(cluster)
    lxc = cluster[2].lxc

    def refuses(text, *words, **options):
        result = lxc("cluster", "group", *words, check=False, **options)
        assert result.returncode == 1 and text in result.stderr, (words, result)

    assert lines(lxc("cluster", "group", "list", "--format", "csv")) == [["default", "Default cluster group", "3"]]
    assert lxc("cluster", "group", "create", "blah").stdout == "Cluster group blah created\n"
    refuses("This cluster group already exists", "create", "blah")
    refuses("Cluster group names may not contain underscores", "create", "a_b")
    assert lxc("cluster", "group", "assign", "node1", "default,blah").stdout == "Cluster member node1 added to cluster groups default,blah\n"
    assert lxc("cluster", "group", "show", "blah").stdout == 'description: ""\nmembers:\n- node1\nname: blah\n'
    assert lxc("cluster", "group", "remove", "node1", "default").stdout == "Cluster member node1 removed from group default\n"
    refuses("Cluster group default isn't currently applied to node1", "remove", "node1", "default")
    refuses("Cluster members need to belong to at least one group", "remove", "node1", "blah")
    refuses("Only empty cluster groups can be removed", "delete", "blah")
    assert lxc("cluster", "group", "rename", "blah", "other").stdout == "Cluster group blah renamed to other\n"
    refuses('The "default" group cannot be renamed', "rename", "default", "x")
    refuses("The 'default' cluster group cannot be deleted", "delete", "default")
    refuses("Cluster group not found", "show", "blah")
    lxc("cluster", "group", "create", "foobar")
    lxc("cluster", "group", "edit", "foobar", stdin=lxc("cluster", "group", "show", "other").stdout.replace('description: ""', "description: copied"))
    assert lxc("cluster", "group", "show", "foobar").stdout == "description: copied\nmembers:\n- node1\nname: foobar\n"
    assert [row[0] for row in lines(lxc("cluster", "group", "ls", "--format", "csv"))] == ["default", "foobar", "other"]
    lxc("cluster", "group", "assign", "node1", "default")
    for name in ("foobar", "other"):
        assert lxc("cluster", "group", "delete", name).stdout == f"Cluster group {name} deleted\n"


@test(90)
def update_certificate():
    """`cluster update-certificate` and its alias, with the texts for missing files; a remote must be trusted anew afterwards."""
    needs_covey("its texts are the same, the second half needs two commands")
    cluster = Cluster(2)
    first = cluster[1]
    conf = os.path.join(harness.CURRENT.dir, "remote-conf")
    first.lxc("remote", "add", "many", f"https://{cluster[2].core_address}", "--accept-certificate", "--password", harness.PASSWORD, conf=conf)
    clients = (("lxc", lambda *words: first.run(["lxc", *words], check=False, env={"LXD_CONF": conf})),
               ("covey", lambda *words: first.covey(*words, check=False)))
    for number, (name, run) in enumerate(clients):
        base = client_certificate(f"by-{name}")
        fails(run, f"Could not find certificate file path: {base}.none", "cluster", "update-certificate", base + ".none", base + ".key")
        fails(run, f"Could not find certificate key file path: {base}.none", "cluster", "update-certificate", base + ".crt", base + ".none")
        fails(run, "Private key must be base64 encoded PEM key", "cluster", "update-certificate", base + ".crt", base + ".crt")
        done = run("cluster", ("update-certificate", "update-cert")[number], base + ".crt", base + ".key")
        assert done.returncode == 0 and "Successfully updated cluster certificates for remote local" in done.stdout, done
        wait_until(lambda: {presented(one) for one in cluster} == {fingerprint_of(base)}, 20, "both members present it")
    result = first.run(["lxc", "list", "many:"], check=False, env={"LXD_CONF": conf})
    assert result.returncode == 1 and "x509" in result.stderr, result
    first.lxc("remote", "remove", "many", conf=conf)
    first.lxc("remote", "add", "many", f"https://{cluster[2].core_address}", "--accept-certificate", "--password", harness.PASSWORD, conf=conf)
    first.lxc("list", "many:", conf=conf)
    first.lxc("remote", "set-url", "many", f"https://{first.core_address}", conf=conf)  # §18.13: any member will do
    first.lxc("profile", "create", "many:by-the-other", conf=conf)


@test(90)
def join_tokens():
    """§18.16, §18.17: `cluster add`, `list-tokens` in every format, `revoke-token`; both clients print the same of the same token."""
    needs_covey("it compares two clients")
    cluster = Cluster(2)
    first, second = cluster
    clients = (lambda member, *words, **more: member.lxc(*words, **more), lambda member, *words, **more: member.covey(*words, **more))
    for add in clients:
        said = add(first, "cluster", "add", "node7").stdout.splitlines()
        assert said[0] == "Member node7 join token:" and len(said) == 2, said
        quiet = add(second, "--quiet", "cluster", "add", "local:", "--name", "node8").stdout.splitlines()
        assert len(quiet) == 1, quiet
        for form in ("csv", "json", "yaml", "table", "compact"):
            lists = [read(member, "cluster", "list-tokens", "--format", form).stdout for read in clients for member in cluster]
            assert len(set(" ".join(one.split()) if form == "compact" else one for one in lists)) == 1, lists  # spaces differ there
            assert said[1] in lists[0] and quiet[0] in lists[0], lists[0]
        rows = [row.split(",") for row in first.lxc("cluster", "list-tokens", "--format", "csv").stdout.splitlines()]
        assert [row[0] for row in rows] == ["node7", "node8"] and all(row[2].endswith(" UTC") for row in rows), rows
    for revoke in clients:
        name = "node7" if revoke is clients[0] else "node8"
        assert revoke(second, "cluster", "revoke-token", name).stdout == f"Cluster join token for local:{name} deleted\n"
        again = revoke(first, "cluster", "revoke-token", name, check=False)
        assert again.returncode == 1 and again.stderr.strip().endswith(f"Error: No cluster join token for member {name} on remote: local"), again
    for read in clients:
        assert read(first, "cluster", "list-tokens", "--format", "csv").stdout == ""
    for add in clients:
        refused = add(first, "cluster", "add", "node1", check=False)
        assert refused.returncode == 1 and "Error: The cluster already has a member with name: node1" in refused.stderr, refused


main()
