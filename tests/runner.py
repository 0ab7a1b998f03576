"""Runs tests, COVEY_TEST_JOBS at a time (default: see default_jobs), and reports: `ok NAME SECONDS`, `skip NAME: WHY` or `FAIL NAME SECONDS` with the end of its output.

Usage: runner.py BUILD_FOLDER [PREFIX…]. Called by tests/run, which builds first. Names are unit/<folder>/<noun> (ctest),
cluster/<test> and compat/<test>. Each test has its own process, time limit and folder; what it leaves behind is removed by its id.
Up to AGAIN_MAX failed tests are tried again, alone; "passed only at the second try" names them. Exit 0 only if at least one test passed and none failed.
"""
import concurrent.futures
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "cluster"))
import leftovers  # noqa: E402

UNIT_SECONDS = 180
AGAIN_MAX = 5  # failed tests that are tried again
OUTPUT_HEAD_LINES = 40
OUTPUT_TAIL_LINES = 80
SLOWER = {"asan": 4, "tsan": 8}  # time limits of instrumented builds, as a factor


def unit_tests(build):
    """(name, seconds, command, folder, alone) of what ctest knows."""
    import json
    listing = subprocess.run(["ctest", "--test-dir", build, "--show-only=json-v1"], capture_output=True, text=True, check=False)
    if listing.returncode:
        sys.exit(f"runner: ctest cannot list the unit tests:\n{listing.stdout}{listing.stderr}")
    tests = []
    for one in json.loads(listing.stdout)["tests"]:
        folder = next((item["value"] for item in one.get("properties", []) if item["name"] == "WORKING_DIRECTORY"), build)
        seconds = next((item["value"] for item in one.get("properties", []) if item["name"] == "TIMEOUT"), UNIT_SECONDS)
        command = one.get("command")  # absent: the program was not built, which the run then reports
        tests.append((f"unit/{one['name']}", seconds, command or ["/nonexistent/not-built"], folder, False))
    return tests


def scenario_tests(folder):
    tests = []
    for path in sorted(glob.glob(os.path.join(HERE, folder, "*.py"))):
        if os.path.basename(path) in ("harness.py", "rest.py", "leftovers.py", "namespaces.py"):
            continue
        listing = subprocess.run([sys.executable, path, "--list"], capture_output=True, text=True, check=False,
                                 env=environment(), timeout=60)
        if listing.returncode:
            tests.append((f"{folder}/{os.path.basename(path)[:-3]}", 10, [sys.executable, path, "--list"], HERE, False))
            continue
        for line in listing.stdout.splitlines():
            name, seconds, *alone = line.split()
            tests.append((f"{folder}/{name}", float(seconds), [sys.executable, path, name], HERE, bool(alone)))
    return tests


def environment(**more):
    path = os.path.join(HERE, "cluster")
    options = {"TSAN_OPTIONS": f"suppressions={os.path.join(HERE, 'tsan.supp')}:second_deadlock_stack=1:ignore_noninstrumented_modules=1", "LSAN_OPTIONS": "print_suppressions=0"}
    return dict(options | dict(os.environ), PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1", **more)


LIVE = set()  # processes of tests that run now
STOPPING = threading.Event()


def interrupted(number, _):
    """Ends the running tests, which clean up, and starts no more."""
    STOPPING.set()
    for process in list(LIVE):
        process.send_signal(signal.SIGTERM)
    sys.exit(128 + number)


def run(name, seconds, command, folder):
    """Runs one test; returns (exit code or None after the time limit, output, seconds, what it left behind)."""
    if STOPPING.is_set():
        return None, "not started\n", 0, []
    test_id = f"coveytest-{os.getpid()}-{os.urandom(4).hex()}"
    record = tempfile.NamedTemporaryFile(prefix=f"{test_id}-record", delete=False).name
    started = time.monotonic()
    code, left = None, []
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                       start_new_session=True, env=environment(COVEY_TEST_ID=test_id, COVEY_TEST_RECORD=record))
        except OSError as error:
            os.unlink(record)
            return 127, f"cannot run {command[0]}: {error}\n", 0, []
        LIVE.add(process)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        finally:
            LIVE.discard(process)
            spent = time.monotonic() - started
            left = leftovers.clean(test_id, record, keep=True)
            os.unlink(record)
        output.seek(0)
        text = output.read().decode(errors="replace")
    return code, text, spent, left


def default_jobs(build):
    """Most of a scenario is waiting, so two at a time share two cores well; instrumented programs need a core each."""
    return 1 if os.path.basename(build) in SLOWER else min(2, os.cpu_count() or 1)


def run_all(tests, factor, jobs):
    """Yields (test, result of run) as they end."""
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(run, name, seconds * factor, command, folder): (name, seconds, command, folder) for name, seconds, command, folder in tests}
        for one in concurrent.futures.as_completed(started):
            yield started[one], one.result()


def main():
    build, prefixes = sys.argv[1], sys.argv[2:] or [""]
    factor = SLOWER.get(os.path.basename(build), 1)
    tests = []
    if any(prefix.startswith("unit") or "unit/".startswith(prefix) for prefix in prefixes):
        tests += unit_tests(build)
    for folder in ("cluster", "compat"):
        if any(prefix.startswith(folder) or folder.startswith(prefix.rstrip("/")) for prefix in prefixes):
            tests += scenario_tests(folder)
    tests = [one for one in tests if any(one[0].startswith(prefix) for prefix in prefixes)]
    jobs = int(os.environ.get("COVEY_TEST_JOBS") or default_jobs(build))
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGINT, interrupted)
    count = {"ok": 0, "skip": 0}
    failed = []

    def take(test, code, text, spent, left):
        name, seconds = test[:2]
        if code == 0 and left:
            code, text = 1, text + f"left behind: {', '.join(left)}\n"
        if code == 0:
            count["ok"] += 1
            print(f"ok   {name} {spent:.1f}", flush=True)
        elif code == 77:
            count["skip"] += 1
            why = re.search(r"skipped: (.*)", text)
            print(f"skip {name}: {why.group(1) if why else 'no reason given'}", flush=True)
        else:
            failed.append(test)
            print(f"FAIL {name} {spent:.1f}" + ("" if code is not None else f" (time limit of {seconds * factor:.0f} s)"))
            lines = text.splitlines()
            if len(lines) > OUTPUT_HEAD_LINES + OUTPUT_TAIL_LINES:
                lines = lines[:OUTPUT_HEAD_LINES] + ["…"] + lines[-OUTPUT_TAIL_LINES:]
            for line in lines:
                print(f"  | {line}")
            sys.stdout.flush()

    for alone in (False, True):
        for test, result in run_all([one[:4] for one in tests if one[4] == alone], factor, 1 if alone else jobs):
            take(test, *result)
    unsteady = []
    if len(tests) > AGAIN_MAX >= len(failed):
        # Daemons on a busy machine: a few failures among many tests are looked at once more, with nothing beside them, and named either way.
        again, failed[:] = list(failed), []
        for test, result in run_all(again, factor, 1):
            print(f"again {test[0]}")
            take(test, *result)
        unsteady = [one[0] for one in again if one not in failed]
    if unsteady:
        print("passed only at the second try:", *unsteady)
    if failed:
        print("failed:", *(one[0] for one in failed))
    print(f"{count['ok']} passed, {len(failed)} failed")
    sys.exit(0 if count["ok"] and not failed else 1)


if __name__ == "__main__":
    if shutil.which("ip") is None:
        sys.exit("runner: iproute2 is missing")
    main()
