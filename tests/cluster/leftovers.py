"""Finds and removes what a test left behind: processes, mounts, control groups, namespaces, links, folders.

A test is known by an id that no other run uses. It stands in the name of its folder and in the environment of every process it
starts, so nothing here ever goes by a program's name. Also a program: `leftovers.py ID RECORD` cleans after a test that was killed.
"""
import os
import shutil
import signal
import subprocess
import sys
import time

GONE_SECONDS = 10  # how long a killed process may take to vanish


def _read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _parent(pid):
    stat = _read(f"/proc/{pid}/stat")
    fields = stat[stat.rfind(b")") + 2:].split()
    return int(fields[1]) if len(fields) > 1 else 0


def processes(test_id):
    """Pids of living processes of the test: by environment, by command line, by a mount of their own namespace, and descendants."""
    mark = test_id.encode()
    own_mounts = _read("/proc/self/mountinfo")
    skip = set()
    pid = os.getpid()
    while pid > 0:
        skip.add(pid)
        pid = _parent(pid)
    found, parents = set(), {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in skip:
            continue
        pid = int(name)
        parents[pid] = _parent(pid)
        if _read(f"/proc/{pid}/stat")[:400].rpartition(b")")[2][1:2] in (b"Z", b"X", b""):
            continue
        environment = _read(f"/proc/{pid}/environ")
        if mark in environment or mark in _read(f"/proc/{pid}/cmdline"):
            found.add(pid)
            continue
        if b"COVEY_TEST_ID=" in environment:
            continue  # another test's, which may have inherited our mounts with its own mount namespace
        mounts = _read(f"/proc/{pid}/mountinfo")
        if mounts != own_mounts and mark in mounts and \
                os.stat(f"/proc/{pid}/ns/mnt").st_ino != os.stat("/proc/self/ns/mnt").st_ino:
            found.add(pid)
    grown = True
    while grown:  # children of found ones (a container's processes have neither our environment nor our command line)
        more = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        grown = bool(more)
        found |= more
    return found


def _cgroups(pid):
    """Folders of the process's control groups in every mounted hierarchy."""
    mounts = []
    for line in _read("/proc/self/mountinfo").decode(errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        kind = right.split()[0] if right else ""
        if kind in ("cgroup", "cgroup2"):
            mounts.append((kind, left.split()[4], right.split()[2] if len(right.split()) > 2 else ""))
    folders = set()
    for line in _read(f"/proc/{pid}/cgroup").decode(errors="replace").splitlines():
        _, controllers, path = line.split(":", 2)
        if path == "/":
            continue
        for kind, mount, options in mounts:
            mine = (kind == "cgroup2") if not controllers else \
                (kind == "cgroup" and all(one in options.split(",") for one in controllers.split(",")))
            if mine:
                folders.add(mount + path)
    return folders


def _remove_cgroup(folder):
    """Removes an empty group and the empty groups above it that belong to containers."""
    while os.path.basename(folder).startswith(("lxc.", "covey")) or "/lxc." in folder or "/covey" in folder:
        if not folder.startswith("/sys/fs/cgroup/") and "cgroup" not in folder:
            return
        try:
            for root, names, _ in os.walk(folder, topdown=False):
                for name in names:
                    os.rmdir(os.path.join(root, name))
            os.rmdir(folder)
        except OSError:
            return
        folder = os.path.dirname(folder)


def mounts(test_id):
    """Mount points of this namespace that lie in the test's folder, innermost first."""
    points = []
    for line in _read("/proc/self/mountinfo").decode(errors="replace").splitlines():
        fields = line.split()
        if test_id in fields[4] or test_id in fields[3]:
            points.append(fields[4].encode().decode("unicode_escape"))
    return points[::-1]


def kill_all(test_id):
    """Ends every process of the test; returns their pids."""
    killed, groups = set(), set()
    for _ in range(5):  # a process may be forking while we look
        found = processes(test_id)
        if not found:
            break
        for pid in found:
            groups |= _cgroups(pid)
        for number in (signal.SIGKILL, signal.SIGCONT):
            for pid in found:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
        killed |= found
        deadline = time.monotonic() + GONE_SECONDS
        while time.monotonic() < deadline and any(_alive(pid) for pid in found):
            time.sleep(0.02)
    for folder in groups:
        _remove_cgroup(folder)
    return killed


def _alive(pid):
    state = _read(f"/proc/{pid}/stat").rpartition(b")")[2][1:2]
    return state not in (b"", b"Z", b"X")


def clean(test_id, record=None, keep=False):
    """Removes everything of the test; says what was left, one line each. `record` has lines "netns NAME", "link NAME", "dir PATH"."""
    said = []
    killed = kill_all(test_id)
    if killed:
        said.append(f"{len(killed)} processes")
    points = mounts(test_id)
    for point in points:
        subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL, check=False)
    if points:
        said.append(f"{len(points)} mounts")
    if os.path.isdir("/run/netns"):
        for name in os.listdir("/run/netns"):
            if name.startswith(test_id) and subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False).returncode == 0:
                said.append(f"netns {name}")
    folders = []
    for line in _read(record).decode().splitlines() if record else []:
        kind, _, name = line.partition(" ")
        if kind == "dir":
            folders.append(name)
        elif kind in ("netns", "link"):
            command = ["ip", "netns", "del", name] if kind == "netns" else ["ip", "link", "del", name]
            if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                said.append(f"{kind} {name}")
    for folder in folders:
        if not keep and test_id in folder and not mounts(test_id):
            shutil.rmtree(folder, ignore_errors=True)
    return said


if __name__ == "__main__":
    print(*clean(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None), sep="\n")
