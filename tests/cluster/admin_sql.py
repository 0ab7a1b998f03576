"""`sql local` and `sql global` in all their forms, without a quorum too; patch files."""
import os
import time

from harness import Cluster, main, needs_covey, peer_is_lxd, test, wait_until


def sql(member, *arguments, **options):
    return member.admin("sql", *arguments, **options)


@test(120)
def sql_forms():
    """§18.37: selects, changes, several statements, NULL, standard input, dumps, errors."""
    cluster = Cluster(2)
    for member in cluster:
        said = sql(member, "global", "SELECT id, name, address FROM nodes ORDER BY id").stdout
        lines = said.splitlines()
        assert [part.strip() for part in lines[1].strip("|").split("|")] == ["id", "name", "address"], said
        assert "node1" in lines[3] and "node2" in lines[4] and len(lines) == 6, said
    assert "<nil>" in sql(cluster[1], "global", "select NULL as x").stdout
    empty = sql(cluster[1], "global", "SELECT name FROM nodes WHERE id = 99").stdout
    assert "name" in empty and "node" not in empty, empty
    changed = "UPDATE profiles SET description = 'it''s; fine' WHERE name = 'default'"
    if peer_is_lxd():
        changed = "UPDATE profiles SET description = 'fine' WHERE name = 'default'"
    assert sql(cluster[2], "global", changed).stdout == "Rows affected: 1\n"
    assert "fine" in cluster[1].rest.get("/1.0/profiles/default")["description"]
    assert sql(cluster[1], "local", "PRAGMA user_version").stdout.startswith("Rows affected: ")
    said = sql(cluster[1], "global", "SELECT 1 AS one; ; UPDATE profiles SET description = '' WHERE name = 'default';").stdout
    assert said.startswith("=> Query 0:\n\n+"), said
    assert "\n\n=> Query 1:\n\nRows affected: 1\n\n" in said, said
    assert "node2" in sql(cluster[1], "global", "-", stdin="SELECT name FROM nodes\n").stdout
    # The first failure stops; what came before stays.
    result = sql(cluster[1], "global", "UPDATE profiles SET description = 'stays' WHERE name = 'default'; SELECT nonsense; DELETE FROM nodes", check=False)
    assert result.returncode == 1 and "Failed to execute query: " in result.stderr, result
    assert cluster[1].rest.get("/1.0/profiles/default")["description"] == "stays"
    result = sql(cluster[1], "local", "DELETE FROM nonsense", check=False)
    assert result.returncode == 1 and "Failed to exec query: " in result.stderr, result
    for name in ("local", "global"):
        dump = sql(cluster[1], name, ".dump").stdout
        assert dump.startswith("PRAGMA foreign_keys=OFF;\nBEGIN TRANSACTION;\n") and dump.rstrip().endswith("COMMIT;"), dump[:200]
        assert "INSERT INTO" in dump and "CREATE TABLE" in dump
        schema = sql(cluster[1], name, ".schema").stdout
        assert "CREATE TABLE" in schema
        if name == "global":
            assert "node1" in dump and "node1" not in schema
    # The REST behind it, over the local socket.
    posted = cluster[1].rest.post("/internal/sql", {"database": "global", "query": "SELECT name, NULL AS x FROM nodes ORDER BY id; UPDATE profiles SET description = '' WHERE name = 'default'"})
    assert posted["metadata"] if "metadata" in posted else posted, posted
    results = posted.get("Results") or posted["metadata"]["Results"]
    assert results[0]["type"] == "select" and results[0]["columns"] == ["name", "x"] and results[0]["rows"] == [["node1", None], ["node2", None]], results
    assert results[1]["type"] == "exec" and results[1]["rows_affected"] == 1 and results[1]["rows"] is None and results[1]["columns"] is None, results
    text = cluster[1].rest.get("/internal/sql?database=local&schema=1")["text"]
    assert "CREATE TABLE" in text and "INSERT" not in text
    assert sql(cluster[1], "global", ".sync").stdout == ""
    assert os.path.exists(f"{cluster[1].dir}/database/global/db.bin")
    assert sql(cluster[1], check=False).returncode == 0
    for arguments, text in ((("local",), "Missing required arguments"), (("other", "SELECT 1"), "Invalid database type"), (("local", ""), "No query provided")):
        result = sql(cluster[1], *arguments, check=False)
        assert result.returncode == 1 and text in result.stderr, (arguments, result)


@test(120)
def sql_without_quorum():
    """§18.37: `local` answers on a member that was restarted without a majority; `global` ends with an error and not a dropped connection."""
    cluster = Cluster(3)
    for member in cluster:
        member.kill()
    cluster[1].start(wait=False)
    wait_until(lambda: sql(cluster[1], "local", "SELECT address FROM raft_nodes", check=False).stdout.count(":8443") == 3, 30, "the local database")
    if not peer_is_lxd():
        began = time.monotonic()
        result = sql(cluster[1], "global", "SELECT name FROM nodes", check=False)
        assert result.returncode == 1 and "no available leader" in result.stderr, result
        assert time.monotonic() - began < 20
        result = cluster[1].admin("cluster", "edit", stdin="", check=False, seconds=10)
        assert "The LXD daemon is running" in result.stderr, result
    cluster[2].start(wait=False)
    cluster[1].wait_ready()
    assert "node1" in sql(cluster[1], "global", "SELECT name FROM nodes").stdout


def write(member, name, text):
    path = f"{member.dir}/database/{name}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


@test(180)
def patch_files():
    """§18.37: patch files run once at the next start and vanish; the global one through the cluster; a broken one stops the start and stays."""
    cluster = Cluster(3)
    quiet = next(member for member in cluster if member is not cluster.leader())
    quiet.stop()
    local = write(quiet, "patch.local.sql", "INSERT INTO config (key, value) VALUES ('user.patched', 'once');\n")
    text = "INSERT INTO profiles (project_id, name, description) VALUES (1, 'patched', '');\nUPDATE profiles SET description = description || 'x' WHERE name = 'patched';\n"
    glob = write(quiet, "patch.global.sql", text)
    quiet.start()
    assert not os.path.exists(local) and not os.path.exists(glob)
    assert "once" in sql(quiet, "local", "SELECT value FROM config WHERE key = 'user.patched'").stdout
    for member in cluster:
        assert member.rest.get("/1.0/profiles/patched")["description"] == "x"
    quiet.restart()
    assert quiet.rest.get("/1.0/profiles/patched")["description"] == "x"
    assert os.path.exists(f"{quiet.dir}/database/local.db.bak" if not peer_is_lxd() else f"{quiet.dir}/database/local.db")
    # Broken ones.
    for name, bad in (("patch.local.sql", "INSERT INTO config (key, value) VALUES ('user.half', '1'); INSERT INTO nonsense VALUES (1);"),
                      ("patch.global.sql", "DELETE FROM profiles; SELECT nonsense FROM nonsense;")):
        quiet.stop()
        path = write(quiet, name, bad)
        quiet.start(wait=False)
        quiet.expected_down = True
        wait_until(lambda: not quiet.alive(), 40, f"the end of a daemon with a broken {name}")
        assert quiet.process.returncode == 1, quiet.process.returncode
        with open(quiet.stderr, encoding="utf-8") as file:
            if not peer_is_lxd():
                assert f"failed to execute queries from {path}: " in file.read()
        with open(path, encoding="utf-8") as file:
            assert file.read() == bad
        os.unlink(path)
        quiet.start()
        assert "half" not in sql(quiet, "local", "SELECT key FROM config").stdout
        assert quiet.rest.get("/1.0/profiles/patched")["name"] == "patched"


@test(120)
def patch_of_a_standalone_server_killed():
    """A global patch file whose daemon is killed again and again runs once."""
    needs_covey("LXD may run it twice")
    cluster = Cluster(1, formed=False)
    member = cluster[1]
    member.rest.post("/1.0/profiles", {"name": "count"})
    member.stop()
    path = write(member, "patch.global.sql", "UPDATE profiles SET description = description || 'x' WHERE name = 'count';\n")
    delay = 0.02
    for _ in range(40):
        member.start(wait=False)
        time.sleep(delay)
        member.kill()
        delay += 0.02
        if not os.path.exists(path):
            break
    member.start()
    assert not os.path.exists(path)
    assert member.rest.get("/1.0/profiles/count")["description"] == "x"


main()
