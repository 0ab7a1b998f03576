"""The stock `lxc` client of LXD 5.0.2 against a cluster of three: over the local socket, and as a remote over TLS."""
import json
import os
import subprocess
import time

import harness
from harness import PASSWORD, Cluster, busybox_image, main, peer_is_lxd, test, wait_until


def table(text):
    """Cells of a csv listing."""
    import csv
    return list(csv.reader(text.splitlines()))


def commands(lxc, remote):
    """Every command of the list, by `lxc(*arguments)`; `remote` is "" or "name:"."""
    # Cluster
    rows = table(lxc("cluster", "list", remote or "local:", "--format", "csv"))
    assert [row[0] for row in rows] == ["node1", "node2", "node3"], rows
    assert all(row[6:] == ["ONLINE", "Fully operational"] for row in rows), rows
    assert sum("database-leader" in row[2] for row in rows) == 1, rows
    assert "| node1 |" in lxc("cluster", "list", remote or "local:")
    shown = lxc("cluster", "show", f"{remote}node2")
    assert "server_name: node2" in shown and "status: Online" in shown and "groups:\n- default" in shown, shown
    # Server
    assert "server_clustered: true" in lxc("info", *([remote] if remote else []))
    lxc("config", "set", *([remote] if remote else []), "user.colour", "red")
    assert lxc("config", "get", *([remote] if remote else []), "user.colour") == "red\n"
    shown = lxc("config", "show", *([remote] if remote else []))
    assert "user.colour: red" in shown, shown
    # LXD drops the hidden key when a whole configuration is sent back to another member than the one that set it.
    assert "core.trust_password: true" in shown or peer_is_lxd(), shown
    lxc("config", "unset", *([remote] if remote else []), "user.colour")
    assert "colour" not in lxc("config", "show", *([remote] if remote else []))
    # Images
    lxc("image", "import", busybox_image(), *([remote] if remote else []), "--alias", "bb")
    rows = table(lxc("image", "list", *([remote] if remote else []), "--format", "csv"))
    assert rows[0][0] == "bb" and rows[0][5] == "CONTAINER", rows
    info = lxc("image", "info", f"{remote}bb")
    assert "Fingerprint:" in info and "Alias" in info.title(), info
    # Profiles
    lxc("profile", "create", f"{remote}web")
    lxc("profile", "device", "add", f"{remote}web", "root", "disk", "path=/", "pool=default")
    lxc("profile", "set", f"{remote}web", "user.role", "web")
    assert "pool: default" in lxc("profile", "show", f"{remote}web")
    assert {"default", "web"} == {row[0] for row in table(lxc("profile", "list", *([remote] if remote else []), "--format", "csv"))}
    # Storage: defined per member, then created
    for member in ("node1", "node2", "node3"):
        lxc("storage", "create", f"{remote}extra", "dir", "--target", member)
    lxc("storage", "create", f"{remote}extra", "dir")
    shown = lxc("storage", "show", f"{remote}extra")
    assert "status: Created" in shown and "- node3" in shown, shown
    rows = table(lxc("storage", "list", *([remote] if remote else []), "--format", "csv"))
    assert {row[0]: row[1] for row in rows} == {"default": "dir", "extra": "dir"}, rows
    lxc("storage", "delete", f"{remote}extra")
    # Instances
    lxc("launch", f"{remote}bb", f"{remote}c1", "--target", "node3")
    lxc("init", f"{remote}bb", f"{remote}c2", "--target", "node1", "--profile", "web", "--config", "user.x=1")
    rows = table(lxc("list", *([remote] if remote else []), "--format", "csv"))
    assert [(row[0], row[1], row[6]) for row in rows] == [("c1", "RUNNING", "node3"), ("c2", "STOPPED", "node1")], rows
    assert "Location: node3" in lxc("info", f"{remote}c1")
    assert "user.x: \"1\"" in lxc("config", "show", f"{remote}c2")
    assert lxc("exec", f"{remote}c1", "--", "sh", "-c", "echo out; cat", stdin="typed") == "out\ntyped"
    lxc("exec", f"{remote}c1", "--", "sh", "-c", "exit 7", code=7)
    lxc("exec", f"{remote}c1", "--", "/no/such", code=127)
    lxc("start", f"{remote}c2")
    before = lxc("exec", f"{remote}c2", "--", "cat", "/proc/sys/kernel/random/boot_id")  # also: c2 runs
    assert before
    lxc("restart", f"{remote}c1", "--force")
    lxc("stop", f"{remote}c1", "--force")
    rows = table(lxc("list", *([remote] if remote else []), "--format", "csv", "--columns", "nsL"))
    assert rows == [["c1", "STOPPED", "node3"], ["c2", "RUNNING", "node1"]], rows
    lxc("start", f"{remote}c1")
    lxc("delete", f"{remote}c1", code=1)  # it runs
    lxc("delete", f"{remote}c1", "--force")
    lxc("delete", f"{remote}c2", "--force")
    assert table(lxc("list", *([remote] if remote else []), "--format", "csv")) == []
    # Raw requests, operations
    assert json.loads(lxc("query", f"{remote}/1.0/profiles")) == ["/1.0/profiles/default", "/1.0/profiles/web"]
    lxc("query", "-X", "PATCH", "-d", '{"config": {"user.q": "1"}}', f"{remote}/1.0/profiles/web")
    assert "user.q: \"1\"" in lxc("profile", "show", f"{remote}web")
    lxc("operation", "list", *([remote] if remote else []))
    # The end
    lxc("profile", "delete", f"{remote}web")
    lxc("image", "delete", f"{remote}bb")
    assert table(lxc("image", "list", *([remote] if remote else []), "--format", "csv")) == []


def runner(member, conf):
    def lxc(*arguments, stdin=None, code=0):
        result = member.lxc(*arguments, stdin=stdin, check=False, conf=conf)
        assert result.returncode == code, f"lxc {' '.join(arguments)}: exit {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout
    return lxc


@test(240)
def lxc_stock_local():
    cluster = Cluster(3)
    conf = os.path.join(harness.CURRENT.dir, "conf")
    for member in (cluster[1], cluster[3]):  # the leader, and not
        commands(runner(member, conf), "")


@test(240)
def lxc_stock_remote():
    cluster = Cluster(3)
    conf = os.path.join(harness.CURRENT.dir, "conf")
    lxc = runner(cluster[1], conf)
    lxc("remote", "add", "bad", cluster[2].core_address, "--password", "wrong", "--accept-certificate", code=1)
    lxc("remote", "add", "c", cluster[2].core_address, "--password", PASSWORD, "--accept-certificate")
    rows = table(lxc("remote", "list", "--format", "csv"))
    assert any(row[0] == "c" and row[1] == f"https://{cluster[2].core_address}" for row in rows), rows
    commands(lxc, "c:")
    # Trusted by one, trusted by all: the same remote by another member.
    lxc("remote", "set-url", "c", f"https://{cluster[3].core_address}")
    assert len(table(lxc("cluster", "list", "c:", "--format", "csv"))) == 3
    # Trust: list, add by file, add by token, remove.
    before = len(table(lxc("config", "trust", "list", "c:", "--format", "csv")))
    base = harness.client_certificate("second")
    lxc("config", "trust", "add", "c:", base + ".crt", "--name", "second")
    rows = table(lxc("config", "trust", "list", "c:", "--format", "csv"))
    assert len(rows) == before + 1 and any("second" in row for row in rows), rows
    assert cluster[1].tls(base).get("/1.0")["auth"] == "trusted"
    token = lxc("config", "trust", "add", "--name", "third").strip().splitlines()[-1]
    other = os.path.join(harness.CURRENT.dir, "conf2")
    third = runner(cluster[1], other)
    third("remote", "add", "c", token)
    assert len(table(third("cluster", "list", "c:", "--format", "csv"))) == 3
    third("remote", "rename", "c", "d")
    runner(cluster[1], os.path.join(harness.CURRENT.dir, "conf3"))("remote", "add", "c", token, code=1)  # good once
    fingerprint = next(row for row in rows if "second" in row)
    name = next(cell for cell in fingerprint if len(cell) == 12 and all(one in "0123456789abcdef" for one in cell))
    lxc("config", "trust", "remove", f"c:{name}")
    assert cluster[1].tls(base).get("/1.0")["auth"] == "untrusted"


@test(120)
def lxc_stock_monitor():
    """`lxc monitor` through one member shows what happens on another."""
    cluster = Cluster(3)
    member = cluster[1]
    output = os.path.join(harness.CURRENT.dir, "monitor.json")
    with open(output, "wb") as file:
        process = subprocess.Popen(["lxc", "monitor", "--type", "lifecycle", "--format", "json"], stdout=file, stdin=subprocess.DEVNULL,
                                   env=dict(member.environment(), LXD_CONF=os.path.join(harness.CURRENT.dir, "conf")))
    try:
        attempt = 0

        def seen():
            nonlocal attempt
            attempt += 1
            cluster[3].rest.post("/1.0/profiles", {"name": f"p{attempt}"})
            time.sleep(0.2)
            with open(output, encoding="utf-8") as file:
                events = [json.loads(line) for line in file if line.strip()]
            return [event for event in events if event["metadata"].get("action") == "profile-created"]
        events = wait_until(seen, 30, "events in lxc monitor", every=0.5)
        assert events[0]["metadata"]["source"].startswith("/1.0/profiles/p"), events
    finally:
        process.terminate()
        process.wait(10)


@test(180)
def lxc_stock_members():
    """Members are added with tokens that the stock client issues, lists and revokes."""
    cluster = Cluster(3)
    joiner = cluster.add()
    lxc = runner(cluster[2], os.path.join(harness.CURRENT.dir, "conf"))
    said = lxc("cluster", "add", "node4")
    assert said.startswith("Member node4 join token:"), said
    token = said.strip().splitlines()[-1]
    rows = table(lxc("cluster", "list-tokens", "--format", "csv"))
    assert [row[0] for row in rows] == ["node4"] and rows[0][1] == token, rows
    joiner.preseed({"cluster": {"enabled": True, "server_address": joiner.address, "cluster_token": token}})
    cluster.wait_online()
    assert table(lxc("cluster", "list-tokens", "--format", "csv")) == []
    lxc("cluster", "add", "node5")
    assert "deleted" in lxc("cluster", "revoke-token", "node5")


main()
