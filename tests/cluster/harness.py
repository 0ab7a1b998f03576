"""Clusters for tests: members are real daemons on loopback addresses of their own, in a folder of the test's own below /tmp.

A scenario is a function marked @test in a file of tests/cluster or tests/compat; the file ends with `main()`. It raises to fail.
`python3 FILE` runs all its tests, `python3 FILE NAME` one, `python3 FILE --list` prints them. tests/run is the usual way in.

COVEY_PREFIX is the installed tree under test. COVEY_PEER=lxd runs the same scenario against LXD from Debian instead, which shows
whether the test itself is right; scenarios that need what LXD lacks say so by `needs_covey()`.
"""
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import leftovers
from rest import Client, EventStream, RestError, execute  # noqa: F401 (scenarios import them from here)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
START_SECONDS = 60     # a member from exec to ready
STOP_SECONDS = 60      # a member from SIGTERM to gone
COMMAND_SECONDS = 120  # one command of a client
LOG_TAIL_LINES = 20
PORT = 8443
PASSWORD = "covey-test-password"
SANITIZER = re.compile(r"ERROR: (Address|Leak|Memory)Sanitizer|WARNING: ThreadSanitizer|runtime error: |\bpanic\b|"
                       r"Assertion .* failed")


class Skip(Exception):
    """The scenario cannot run here; the text says why."""


def peer_is_lxd():
    return os.environ.get("COVEY_PEER") == "lxd"


def needs_covey(why):
    if peer_is_lxd():
        raise Skip(f"not with lxd: {why}")


def program(name):
    """Path of one of covey's programs: installed below COVEY_PREFIX, or in a build tree."""
    prefix = os.environ.get("COVEY_PREFIX") or os.path.join(ROOT, "build", "release", "stage")
    for folder in ("bin", "sbin", "libexec/covey", "lib/covey", "lib/covey/compat", "client", "server", "gateway"):
        path = os.path.join(prefix, folder, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    for folder, _, files in os.walk(prefix):
        if name in files and os.access(os.path.join(folder, name), os.X_OK):
            return os.path.join(folder, name)
    raise AssertionError(f"program {name} not found below {prefix}")


def wait_until(condition, seconds, what="condition", every=0.1):
    """Polls until condition() is true (returned) or the time is over. Errors of the network and refusals count as "not yet"."""
    deadline = time.monotonic() + seconds
    last = None
    while True:
        try:
            value = condition()
            if value:
                return value
            last = value
        except (OSError, RestError, ConnectionError, ValueError, KeyError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {seconds} s: {what} (last: {last!r})")
        time.sleep(every)


def refused(code, text, call, *arguments, **options):
    """call(...) must end in RestError with this code (one or a tuple) and a text that contains `text`."""
    codes = code if isinstance(code, tuple) else (code,)
    try:
        value = call(*arguments, **options)
    except RestError as error:
        assert error.code in codes and text in error.text, f"expected {codes} {text!r}, got {error.code} {error.text!r}"
        return error
    raise AssertionError(f"accepted, expected {codes} {text!r}: {value!r}")


def to_yaml(value, indent=0):
    """The little YAML that preseed files need: maps, lists, scalars, block text."""
    pad = " " * indent
    if isinstance(value, dict):
        out = ""
        for key, item in value.items():
            if isinstance(item, (dict, list)) and item:
                out += f"{pad}{key}:\n{to_yaml(item, indent + 2)}"
            elif isinstance(item, str) and "\n" in item:
                lines = "".join(f"{pad}  {line}\n" for line in item.rstrip("\n").split("\n"))
                out += f"{pad}{key}: |\n{lines}"
            else:
                out += f"{pad}{key}: {json.dumps(item)}\n"
        return out
    if isinstance(value, list):
        return "".join(f"{pad}- {to_yaml(item, indent + 2).lstrip()}" for item in value)
    return f"{pad}{json.dumps(value)}\n"


class Test:
    """What one running test owns. One per process."""

    def __init__(self, name):
        self.name = name
        self.id = os.environ.get("COVEY_TEST_ID") or f"coveytest-{os.getpid()}-{os.urandom(4).hex()}"
        self.record = os.environ.get("COVEY_TEST_RECORD")
        self.dir = tempfile.mkdtemp(prefix=self.id + "-", dir="/tmp")
        os.chmod(self.dir, 0o711)  # the root user of an unprivileged container must pass
        self.note("dir", self.dir)
        self.members = []
        self.streams = []

    def note(self, kind, name):
        """Writes down what must be cleaned should this process be killed."""
        if self.record:
            with open(self.record, "a", encoding="utf-8") as file:
                file.write(f"{kind} {name}\n")

    def record_path(self):
        if not self.record:
            self.record = os.path.join(self.dir, "record")
        return self.record


CURRENT = None


class Member:
    """One daemon. `name` is its member name, `address` what members and clients use."""

    launcher = ()  # words before the daemon's command, e.g. those that enter a network namespace

    def __init__(self, index, host, name=None, core_host=None):
        self.test = CURRENT
        self.index = index
        self.name = name or f"node{index}"
        self.host = host
        self.address = f"{host}:{PORT}"
        self.core_address = f"{core_host or host}:{PORT}"
        self.dir = os.path.join(self.test.dir, str(index))
        self.logfile = os.path.join(self.test.dir, f"{self.name}-{index}.log")
        self.stderr = os.path.join(self.test.dir, f"{self.name}-{index}.stderr")
        self.process = None
        self.expected_down = True
        self.extra_environment = {}  # of its next start
        os.makedirs(self.dir, mode=0o711, exist_ok=True)
        self.test.members.append(self)

    # --- the process -------------------------------------------------------------------------------------------------------------

    def environment(self):
        env = dict(os.environ, COVEY_TEST_ID=self.test.id, COVEY_DIR=self.dir, LXD_DIR=self.dir)
        env["ASAN_OPTIONS"] = env.get("ASAN_OPTIONS", "detect_leaks=0:abort_on_error=0")
        env["UBSAN_OPTIONS"] = env.get("UBSAN_OPTIONS", "print_stacktrace=1")
        if peer_is_lxd():  # it asks for lists on the internet at start: keep it on this machine
            env |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        return env | self.extra_environment

    def start(self, wait=True, extra=()):
        assert not self.alive(), f"{self.name} runs already"
        if peer_is_lxd():
            command = [shutil.which("lxd"), "--logfile", self.logfile, "--group", "root"]
        else:
            command = [program("coveyd"), "--dir", self.dir, "--group", "root", "--logfile", self.logfile]
        with open(self.stderr, "ab") as stderr:
            self.process = subprocess.Popen([*self.launcher, *command, *extra], env=self.environment(), stdin=subprocess.DEVNULL,
                                            stdout=stderr, stderr=stderr, start_new_session=True)
        self.expected_down = False
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds=START_SECONDS):
        deadline = time.monotonic() + seconds
        while True:
            if not self.alive():
                raise AssertionError(f"daemon of {self.name} ended with {self.process.returncode}\n{self.log_tail()}")
            left = max(1, int(deadline - time.monotonic()))
            result = self.admin("waitready", f"--timeout={min(left, 5)}", check=False)
            if result.returncode == 0:
                return self
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} not ready in {seconds} s: {result.stderr}\n{self.log_tail()}")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def stop(self, number=signal.SIGTERM, seconds=STOP_SECONDS):
        """Clean stop; instances keep running."""
        self.expected_down = True
        if self.alive():
            self.process.send_signal(number)
            self._reap(seconds)
        return self

    def kill(self):
        """Sudden death of the daemon (its gateway ends with it)."""
        self.expected_down = True
        if self.alive():
            self.process.kill()
            self._reap(10)
        return self

    def _reap(self, seconds):
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs {seconds} s after it was told to stop\n{self.log_tail()}") from None

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def restart(self):
        self.stop()
        return self.start()

    def children(self, name):
        """Pids of the daemon's children with this program name."""
        found = []
        for pid in os.listdir("/proc"):
            try:
                with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                    stat = file.read()
            except (OSError, ValueError):
                continue
            comm = stat[stat.find("(") + 1:stat.rfind(")")]
            if int(stat[stat.rfind(")") + 2:].split()[1]) == self.process.pid and comm == name[:15]:
                found.append(int(pid))
        return found

    def gateways_left(self):
        """Gateways of this member that still run though the daemon has ended; they get a second to notice."""
        def find():
            found = []
            for pid in leftovers.processes(self.test.id):
                try:
                    with open(f"/proc/{pid}/comm", encoding="utf-8") as comm, open(f"/proc/{pid}/environ", "rb") as env:
                        if comm.read().strip() == "covey-gateway" and f"COVEY_DIR={self.dir}\0".encode() in env.read():
                            found.append(pid)
                except OSError:
                    pass
            return found
        try:
            wait_until(lambda: not find(), 1, "the gateway's end")
        except AssertionError:
            return find()
        return []

    def log_tail(self, lines=LOG_TAIL_LINES):
        text = ""
        for path in (self.stderr,) if peer_is_lxd() else (self.logfile, self.stderr):
            if os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    tail = file.readlines()[-lines:]
                text += f"--- {os.path.basename(path)}\n" + "".join(tail)
        return text

    def log_defects(self):
        """Lines of the logs that fail a test whatever else happened."""
        found = []
        for path in (self.logfile, self.stderr):
            if os.path.exists(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    found += [f"{os.path.basename(path)}: {line.strip()}" for line in file if SANITIZER.search(line)]
        return found

    # --- commands ----------------------------------------------------------------------------------------------------------------

    def run(self, command, stdin=None, check=True, env=None, seconds=COMMAND_SECONDS):
        result = subprocess.run(command, input=stdin, env=dict(self.environment(), **(env or {})), text=True,
                                capture_output=True, timeout=seconds, check=False)
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command)} on {self.name}: exit {result.returncode}\n{result.stdout}{result.stderr}")
        return result

    def admin(self, *arguments, **options):
        """`covey admin …` (`lxd …` of the peer)."""
        command = ["lxd"] if peer_is_lxd() else [program("covey"), "admin"]
        return self.run(command + list(arguments), **options)

    def covey(self, *arguments, **options):
        return self.run([program("covey"), *arguments], **options)

    def lxc(self, *arguments, stdin=None, check=True, conf=None, **options):
        """The stock client, over this member's local socket unless a remote is named; returns its output."""
        conf = conf or os.path.join(self.test.dir, "lxc-conf")
        os.makedirs(conf, exist_ok=True)
        # As in a terminal-less script: without input the client must not wait for any.
        return self.run(["lxc", *arguments], stdin=stdin or "", check=check, env={"LXD_CONF": conf}, **options)

    def preseed(self, document, check=True):
        text = document if isinstance(document, str) else to_yaml(document)
        return self.admin("init", "--preseed", stdin=text, check=check)

    # --- REST ---------------------------------------------------------------------------------------------------------------------

    @property
    def rest(self):
        return Client(unix=os.path.join(self.dir, "unix.socket"))

    def tls(self, cert=None, fingerprint=None, address=None, **options):
        return Client(address=address or self.core_address, cert=cert, fingerprint=fingerprint, **options)

    def events(self, types="operation,lifecycle", query=""):
        stream = EventStream(self.rest, types, query)
        self.test.streams.append(stream)
        return stream

    def certificate(self):
        return self.rest.get("/1.0")["environment"]["certificate"]

    def members(self):
        """Member records by name, as this member tells."""
        return {one["server_name"]: one for one in self.rest.get("/1.0/cluster/members?recursion=1")}

    def status(self, digest=True):
        """State of the replica (covey only)."""
        text = self.covey("rpc", "covey.internal.v1.Admin/Status", json.dumps({"digest": digest})).stdout
        return json.loads(text)

    # --- forming ------------------------------------------------------------------------------------------------------------------

    def bootstrap(self, config=None, pool=True):
        document = {"config": {"core.https_address": self.core_address, "core.trust_password": PASSWORD, **(config or {})}}
        if self.core_address != self.address:
            document["config"]["cluster.https_address"] = self.address
        if pool:
            document["storage_pools"] = [{"name": "default", "driver": "dir"}]
            document["profiles"] = [{"name": "default", "devices": {"root": {"path": "/", "pool": "default", "type": "disk"}}}]
        document["cluster"] = {"server_name": self.name, "enabled": True}
        self.preseed(document)
        return self

    def token(self, name):
        """A join token for `name` made by this member, as a client builds it from the operation."""
        import base64
        data = self.rest.post("/1.0/cluster/members", {"server_name": name}, wait=False)["metadata"]
        text = {"server_name": data["serverName"], "fingerprint": data["fingerprint"], "addresses": data["addresses"],
                "secret": data["secret"], "expires_at": data["expiresAt"]}
        return base64.b64encode(json.dumps(text).encode()).decode()

    def join_document(self, target, how="password", **changes):
        cluster = {"enabled": True, "server_address": self.address}
        if how == "password":
            cluster |= {"server_name": self.name, "cluster_address": target.address, "cluster_password": PASSWORD,
                        "cluster_certificate": target.certificate()}
        elif how == "token":
            cluster |= {"server_name": self.name, "cluster_token": target.token(self.name)}
        return {"cluster": cluster | changes}

    def join(self, target, how="password", check=True, **changes):
        if self.core_address != self.address and check:
            self.rest.patch("/1.0", {"config": {"core.https_address": self.core_address}})
        return self.preseed(self.join_document(target, how, **changes), check=check)


class Cluster:
    """n started members on 127.0.<k>.1…n, formed into one cluster unless formed=False."""

    def __init__(self, count, formed=True, how="password", config=None, split=False):
        self.prefix = self.network(count)
        self.members = []
        for index in range(1, count + 1):
            self.add(split=split, start=False)
        for member in self.members:
            member.start(wait=False)
        for member in self.members:
            member.wait_ready()
        if formed:
            self.form(how, config)

    def network(self, count):
        """First three numbers of the members' addresses."""
        return free_network(2 * count + 4)

    def member(self, index, host, core_host):
        return Member(index, host, core_host=core_host)

    def __getitem__(self, number):
        """cluster[1] is node1."""
        return self.members[number - 1]

    def __iter__(self):
        return iter(list(self.members))

    def add(self, split=False, start=True):
        index = len(self.members) + 1
        core = f"{self.prefix}.{100 + index}" if split else None
        member = self.member(index, f"{self.prefix}.{index}", core)
        self.members.append(member)
        return member.start() if start else member

    def form(self, how="password", config=None):
        self[1].bootstrap(config)
        for member in self.members[1:]:
            member.join(self[1], how)
        self.wait_online()

    def running(self):
        return [member for member in self.members if member.alive()]

    def wait_online(self, seconds=30, names=None):
        """Every running member says of every member that it is online."""
        names = set(names or [member.name for member in self.members])

        def all_online():
            for member in self.running():
                seen = member.members()
                if set(seen) != names or any(one["status"] != "Online" for one in seen.values()):
                    return False
            return True
        wait_until(all_online, seconds, f"{sorted(names)} online everywhere")

    def leader(self, seconds=30):
        """The running member that the others call the leader."""
        def find():
            for member in self.running():
                for name, record in member.members().items():
                    if "database-leader" in record["roles"]:
                        return next((one for one in self.running() if one.name == name), None)
            return None
        return wait_until(find, seconds, "a leader")

    def roles(self, asked=None):
        """Member name -> automatic role as one member tells: voter, stand-by or spare; and the leader's name under ''."""
        told = {}
        for name, record in (asked or self.running()[0]).members().items():
            roles = record["roles"]
            told[name] = "voter" if "database" in roles else "stand-by" if "database-standby" in roles else "spare"
            if "database-leader" in roles:
                told[""] = name
        return told

    def assert_equal_state(self, seconds=30):
        """All running replicas hold the same state (covey: digests; both: the same lists)."""
        def lists():
            seen = []
            for member in self.running():
                seen.append(json.dumps([member.rest.get(path) for path in (
                    "/1.0/profiles?recursion=1", "/1.0/projects?recursion=1", "/1.0/storage-pools?recursion=1",
                    "/1.0/certificates?recursion=1")], sort_keys=True))
            return len(set(seen)) == 1
        wait_until(lists, seconds, "equal lists on all members")
        if peer_is_lxd():
            return

        def digests():
            seen = {}
            for member in self.running():
                status = member.status()
                servers = status.get("servers") or []
                if not any(str(one.get("id")) == str(status.get("id")) and one.get("role") in ("voter", "stand-by")
                           for one in servers):
                    continue  # a spare has no replica
                seen[member.name] = (str(status.get("digest_revision")), status.get("digest"))
            return seen if seen and all(value[1] for value in seen.values()) and len(set(seen.values())) == 1 else None
        wait_until(digests, seconds, "equal digests at the same revision", every=0.3)

    def import_image(self, alias="busybox", member=None):
        """Imports the small image through one member; returns its fingerprint."""
        member = member or self[1]
        member.lxc("image", "import", busybox_image(), "--alias", alias)
        return member.rest.get(f"/1.0/images/aliases/{alias}")["target"]


HELD = []  # locks on the networks of this process


def free_network(count):
    """A 127.0.<k> whose first addresses have the port free; tests at the same time get different ones, also while nothing listens."""
    start = os.getpid() % 200
    for step in range(200):
        prefix = f"127.0.{20 + (start + step) % 200}"
        sockets = []
        lock = open(f"/tmp/covey-test-{prefix}.lock", "w", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for last in list(range(1, count + 1)) + [100 + one for one in range(1, count + 1)]:
                sock = socket.socket()
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((f"{prefix}.{last}", PORT))
            HELD.append(lock)
            return prefix
        except OSError:
            lock.close()
        finally:
            for sock in sockets:
                sock.close()
    raise AssertionError("no free 127.0.x network")


def client_certificate(name="client"):
    """A fresh client certificate; returns the path without its .crt/.key ending."""
    base = os.path.join(CURRENT.dir, name)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1", "-nodes", "-sha384",
                    "-days", "30", "-subj", f"/O=covey tests/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", base + ".key", "-out", base + ".crt"],
                   check=True, capture_output=True)
    return base


def certificate_body(base):
    """Base64 of the DER inside base.crt, as POST /1.0/certificates wants it."""
    with open(base + ".crt", encoding="ascii") as file:
        return "".join(line.strip() for line in file if not line.startswith("-----"))


def busybox_image():
    """A unified image that starts in milliseconds; made once per test."""
    given = os.environ.get("COVEY_TEST_IMAGE")
    if given:
        return given
    path = os.path.join(CURRENT.dir, "busybox.tar.gz")
    if not os.path.exists(path):
        maker = os.path.join(ROOT, "deploy", "make-busybox-image")
        if not os.path.exists(maker):
            maker = program("make-busybox-image")
        subprocess.run([maker, path], check=True, capture_output=True)
    return path


# --- tests ----------------------------------------------------------------------------------------------------------------------------

TESTS = {}


def test(seconds=120, alone=False):
    """Marks a test and its time limit; `alone`: it takes what others need (a port of all addresses), so that nothing may run beside it."""
    def add(function):
        TESTS[function.__name__] = (function, seconds, alone)
        return function
    return add


def _run_one(name):
    global CURRENT
    function = TESTS[name][0]
    CURRENT = Test(name)
    failure = skipped = None
    try:
        function()
        for member in CURRENT.members:
            if not member.expected_down and not member.alive():
                raise AssertionError(f"daemon of {member.name} ended by itself with {member.process.returncode}")
    except Skip as reason:
        skipped = str(reason)
    except BaseException:
        failure = traceback.format_exc()
    for stream in CURRENT.streams:
        stream.close()
    for member in CURRENT.members:
        try:
            if member.alive():
                member.resume()
                member.process.send_signal(signal.SIGTERM)
        except OSError:
            pass
    for member in CURRENT.members:
        if member.process:
            try:
                member.process.wait(1 if failure else 20)
            except subprocess.TimeoutExpired:
                if not failure:
                    failure = f"{member.name} did not stop in 20 s at the end of the test\n"
    for member in CURRENT.members:
        left = [pid for pid in member.gateways_left() if not failure and not skipped]
        if left:
            failure = f"gateway {left} of {member.name} outlived its daemon\n"
    for member in CURRENT.members:
        defects = member.log_defects()
        if defects and not skipped:
            failure = (failure or "") + "\n".join(["defects in the logs:"] + defects[:20]) + "\n"
    leftovers.clean(CURRENT.id, CURRENT.record, keep=True)
    if failure:
        print(failure)
        for member in CURRENT.members:
            print(member.log_tail(), end="")
        print(f"artefacts: {CURRENT.dir}")
        return 1
    shutil.rmtree(CURRENT.dir, ignore_errors=True)
    if skipped:
        print(f"skipped: {skipped}")
        return 77
    return 0


def main():
    if sys.argv[1:] == ["--list"]:
        for name, (_, seconds, alone) in TESTS.items():
            print(name, seconds, "alone" if alone else "")
        return
    if os.geteuid() != 0:
        sys.exit("these tests need root")
    # Ctrl-C and a time limit of the runner must still clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))
    names = sys.argv[1:] or list(TESTS)
    worst = 0
    for name in names:
        code = _run_one(name)
        if len(names) > 1:
            print(f"{'ok' if code == 0 else 'skip' if code == 77 else 'FAIL'} {name}", flush=True)
        worst = worst or (code if code != 77 or len(names) == 1 else 0)
    sys.exit(worst)
