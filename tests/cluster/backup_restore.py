"""`cluster backup` and `cluster restore`: one file, a new epoch, fresh copies for everybody else."""
import hashlib
import os
import stat
import subprocess
import time

from harness import Cluster, Member, main, needs_covey, program, test, wait_until

FAST = {"cluster.offline_threshold": "11"}


def names(member):
    return {one["name"] for one in member.rest.get("/1.0/profiles?recursion=1")}


def content(path):
    with open(path, "rb") as file:
        return file.read()


@test(240)
def backup_and_restore():
    """A backup from a member that does not lead; later writes are gone after the restore; the others come back with fresh copies and no former log."""
    needs_covey("backup")
    cluster = Cluster(3, config=FAST)
    file = os.path.join(cluster[1].dir, "cluster.backup")
    asked = next(member for member in cluster if member is not cluster.leader())
    asked.rest.post("/1.0/profiles", {"name": "kept"})
    asked.admin("cluster", "backup", file)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert content(file)[:8] == b"CVYBACKP" and hashlib.sha256(content(file)[:-32]).digest() == content(file)[-32:]
    asked.rest.post("/1.0/profiles", {"name": "later"})
    result = cluster[1].admin("cluster", "restore", file, check=False)
    assert result.returncode == 1 and "The LXD daemon is running, please stop it first." in result.stderr, result
    cluster[1].stop()
    result = cluster[1].admin("cluster", "restore", file, "-q", check=False)
    assert result.returncode == 1 and "knows a leader" in result.stderr, result
    for member in cluster:
        member.kill()
    result = cluster[1].admin("cluster", "restore", file, stdin="no\n", check=False)
    assert result.returncode == 1 and "Restore aborted" in result.stderr, result
    result = cluster[1].admin("cluster", "restore", file, stdin="yes\n")
    assert "becomes member node1" in result.stdout, result.stdout
    cluster[1].start()
    assert "kept" in names(cluster[1]) and "later" not in names(cluster[1])
    cluster[1].rest.post("/1.0/profiles", {"name": "new"})
    cluster[2].start(wait=False)
    cluster[3].start(wait=False)
    cluster.wait_online(60)
    for member in cluster:
        assert {"kept", "new"} <= names(member) and "later" not in names(member), member.name
    wait_until(lambda: sorted(v for k, v in cluster.roles(cluster[1]).items() if k) == ["voter"] * 3, 60, "three voters again")
    cluster.assert_equal_state()
    cluster[1].restart()
    assert "new" in names(cluster[1])


@test(180)
def restore_onto_a_fresh_server():
    """All members are lost; a new server with its own certificate takes the place of one of them, at another address; new members join it."""
    needs_covey("backup")
    cluster = Cluster(2, config=FAST)
    file = os.path.join(cluster[1].dir, "cluster.backup")
    cluster[2].rest.post("/1.0/profiles", {"name": "kept"})
    cluster[2].admin("cluster", "backup", file)
    for member in cluster:
        member.kill()
    fresh = Member(3, f"{cluster.prefix}.3")
    fresh.start()
    fresh.stop()
    result = fresh.admin("cluster", "restore", file, "-q", check=False)
    assert result.returncode == 1 and "--member" in result.stderr and "node1, node2" in result.stderr, result
    result = fresh.admin("cluster", "restore", file, "-q", "--member", "nobody", check=False)
    assert result.returncode == 1 and 'no member "nobody"' in result.stderr, result
    fresh.admin("cluster", "restore", file, "-q", "--member", "node1", "--address", fresh.address)
    fresh.start()
    assert "kept" in names(fresh)
    members = fresh.members()
    assert members["node1"]["url"] == f"https://{fresh.address}" and members["node1"]["status"] == "Online", members
    assert fresh.rest.get("/1.0")["environment"]["server_name"] == "node1"
    other = Member(4, f"{cluster.prefix}.4", name="node9")
    other.start()
    other.join(fresh)
    wait_until(lambda: "kept" in names(other), 20, "the new member answers")


@test(150)
def bad_files_change_nothing():
    """Truncated, damaged, foreign and meaningless files are refused, and the member starts as it was."""
    needs_covey("backup")
    cluster = Cluster(1)
    other = Member(2, f"{cluster.prefix}.2")
    other.start()
    other.bootstrap()
    file, foreign, bad = (os.path.join(cluster[1].dir, name) for name in ("good", "foreign", "bad"))
    cluster[1].rest.post("/1.0/profiles", {"name": "kept"})
    cluster[1].admin("cluster", "backup", file)
    other.admin("cluster", "backup", foreign)
    result = cluster[1].admin("cluster", "backup", "/nonexistent/folder/file", check=False)
    assert result.returncode == 1 and "/nonexistent" in result.stderr, result
    cluster[1].stop()
    good = content(file)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    newer = bytearray(good)
    newer[8] = 9
    for data, text in ((b"", "not a backup"), (b"hello", "not a backup"), (good[:60], "truncated"), (good[:-1], "truncated"), (good + b"x", "damaged"),
                       (bytes(flipped), "checksum"), (bytes(newer), "format version 9"), (content(foreign), "another cluster")):
        with open(bad, "wb") as out:
            out.write(data)
        result = cluster[1].admin("cluster", "restore", "-q", bad, check=False)
        assert result.returncode == 1 and text in result.stderr, (text, result)
        assert not os.path.exists(f"{cluster[1].dir}/database/global.restored")
    result = cluster[1].admin("cluster", "restore", "-q", "/nonexistent", check=False)
    assert result.returncode == 1 and "/nonexistent" in result.stderr, result
    cluster[1].start()
    assert "kept" in names(cluster[1])


@test(180)
def restore_killed_half_way():
    """The program that restores is killed at many moments: the next start has either all of the former state or all of the backup's."""
    needs_covey("backup")
    cluster = Cluster(1, config=FAST)
    member = cluster[1]
    file = os.path.join(member.dir, "cluster.backup")
    member.rest.post("/1.0/profiles", {"name": "kept"})
    member.admin("cluster", "backup", file)
    member.rest.post("/1.0/profiles", {"name": "later"})
    member.stop()
    delay, restored = 0.05, False
    while not restored:
        assert delay < 30, "the restore never ended"
        command = subprocess.Popen([program("coveyd"), "offline", "--dir", member.dir, "restore", file], env=member.environment(),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        restored = command.poll() is not None
        command.kill()
        command.wait()
        member.start()
        seen = names(member)
        assert "kept" in seen, seen
        if "later" not in seen:
            break
        member.stop()
        delay *= 1.3
    member.restart()
    assert "kept" in names(member) and "later" not in names(member)
    assert not os.path.exists(f"{member.dir}/database/global.restored")


@test(120)
def local_backup_without_quorum():
    """Without a majority an ordinary backup fails in bounded time and --local writes what the member has."""
    needs_covey("backup")
    cluster = Cluster(3, config=FAST)
    cluster[1].rest.post("/1.0/profiles", {"name": "kept"})
    wait_until(lambda: cluster[1].status()["applied_index"] == cluster.leader().status()["applied_index"], 20, "an equal copy")
    cluster[2].kill()
    cluster[3].kill()
    file = os.path.join(cluster[1].dir, "cluster.backup")

    def refused():
        return cluster[1].admin("cluster", "backup", file, check=False).returncode == 1
    wait_until(refused, 60, "a refusal")
    assert not os.path.exists(file)
    cluster[1].admin("cluster", "backup", "--local", file)
    cluster[1].kill()
    cluster[1].admin("cluster", "restore", "-q", file)
    cluster[1].start()
    assert "kept" in names(cluster[1])


main()
