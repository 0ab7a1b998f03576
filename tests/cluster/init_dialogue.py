"""`admin init` on a terminal: every question in its order, wrong answers asked again, passwords without echo; what it forms."""
import os
import pty
import select
import subprocess
import time

from harness import PASSWORD, Member, free_network, main, needs_covey, program, test, wait_until

CLUSTERING = "Would you like to use LXD clustering? (yes/no) [default=no]: "
ADDRESS = "What IP address or DNS name should be used to reach this server? [default="
JOINING = "Are you joining an existing cluster? (yes/no) [default=no]: "
NAME = "What member name should be used to identify this server in the cluster? [default="
PRESEED = 'Would you like a YAML "lxd init" preseed to be printed? (yes/no) [default=no]: '
IMAGES = "Would you like stale cached images to be updated automatically? (yes/no) [default=yes]: "
MAAS = "Would you like to connect to a MAAS server? (yes/no) [default=no]: "
BRIDGE = "Would you like to create a new local network bridge? (yes/no) [default=yes]: "
INTERFACE = "Would you like to configure LXD to use an existing bridge or host interface? (yes/no) [default=no]: "
TOKEN = "Do you have a join token? (yes/no/[token]) [default=no]: "
FINGERPRINT = "Is this the correct fingerprint? (yes/no/[fingerprint]) [default=no]: "
LOST = "All existing data is lost when joining a cluster, continue? (yes/no) [default=no] "
ABORTED = "Error: User aborted configuration"


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, member):
        master, slave = pty.openpty()
        self.process = subprocess.Popen([program("covey"), "admin", "init"], stdin=slave, stdout=slave, stderr=slave, env=member.environment(),
                                        start_new_session=True)
        os.close(slave)
        self.fd, self.text, self.at = master, "", 0

    def read(self, seconds):
        ready, _, _ = select.select([self.fd], [], [], seconds)
        try:
            data = os.read(self.fd, 65536) if ready else None
        except OSError:  # the other side has closed
            return False
        if data:
            self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return data != b""

    def expect(self, text, seconds=60):
        """The next thing it says, after anything else, is `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.text[self.at:]:
            assert time.monotonic() < deadline and self.read(0.2), f"no {text!r} after {self.text[self.at:]!r}"
        found = self.text.index(text, self.at)
        before, self.at = self.text[self.at:found], found + len(text)
        return before

    def type(self, answer):
        os.write(self.fd, answer.encode() + b"\n")

    def answer(self, *pairs):
        """(question, answer) in order; nothing but the echo of the last answer and notes may stand between."""
        for question, answer in pairs:
            said = self.expect(question)
            assert "? (" not in said, f"a question before {question!r}: {said!r}"
            if question.endswith("[default="):
                self.expect("]: ")
            self.type(answer)

    def end(self, code=0, seconds=90):
        deadline = time.monotonic() + seconds
        while self.read(0.2):
            assert time.monotonic() < deadline, f"it goes on: {self.text[self.at:]!r}"
            if self.process.poll() is not None:
                while self.read(0.05) and select.select([self.fd], [], [], 0.05)[0]:
                    pass
                break
        self.process.wait(10)
        os.close(self.fd)
        assert self.process.returncode == code, f"exit {self.process.returncode}: {self.text}"
        return self.text[self.at:]


def server(index=1):
    return Member(index, f"{free_network(8)}.{index}").start()


def network_questions(member):
    """As the server can make bridges or not."""
    bridges = "network" in member.rest.get("/1.0")["api_extensions"]
    return ((BRIDGE, "no"), (INTERFACE, "")) if bridges else ((INTERFACE, ""),)


@test(60)
def dialogue_standalone():
    """No cluster: pool, network, listener, password; defaults are taken, wrong answers asked again."""
    needs_covey("its pools and networks are made on this host")
    member = server()
    terminal = Terminal(member)
    terminal.answer((CLUSTERING, "perhaps"))
    terminal.expect("Invalid input, try again.")
    terminal.answer((CLUSTERING, ""), ("Do you want to configure a new storage pool? (yes/no) [default=yes]: ", ""),
                    ("Name of the new storage pool [default=default]: ", "mine"), (MAAS, ""), *network_questions(member),
                    ("Would you like the LXD server to be available over the network? (yes/no) [default=no]: ", "Yes"),
                    ("Address to bind LXD to (not including port) [default=all]: ", member.host),
                    ("Port to bind LXD to [default=8443]: ", ""),
                    ("Trust password for new clients: ", PASSWORD), ("Again: ", "other"))
    terminal.expect("Invalid input, try again.")
    terminal.answer(("Trust password for new clients: ", ""), ("Again: ", ""))  # empty is none
    terminal.expect("Invalid input, try again.")
    terminal.answer(("Trust password for new clients: ", PASSWORD), ("Again: ", PASSWORD), (IMAGES, "no"), (PRESEED, "yes"))
    printed = terminal.end()
    for text in ("config:", f"core.https_address: {member.address}", "networks: []", "- name: mine\n  driver: dir", "profiles:\n- name: default"):
        assert text in printed, printed
    assert PASSWORD not in terminal.text[:terminal.text.index("Would you like stale")], "the password was shown"
    config = member.rest.get("/1.0")["config"]
    assert config["core.https_address"] == member.address and config["images.auto_update_interval"] == "0", config
    assert member.rest.get("/1.0/storage-pools/mine")["driver"] == "dir"
    assert member.rest.get("/1.0/profiles/default")["devices"]["root"]["pool"] == "mine"
    assert member.rest.get("/1.0/cluster")["enabled"] is False


def form(member, *more):
    """A new cluster by dialogue."""
    terminal = Terminal(member)
    terminal.answer((CLUSTERING, "y"), (ADDRESS, "0.0.0.0"))
    terminal.expect("Invalid input: Invalid IP address or DNS name")
    terminal.answer((ADDRESS, "192.0.2.1"))  # not of this host
    terminal.expect('Invalid input: Can\'t bind address "192.0.2.1:8443": ')
    terminal.answer((ADDRESS, member.host), (JOINING, "maybe"))
    terminal.expect("Invalid input, try again.")
    terminal.answer((JOINING, ""), (NAME, member.name), ("Setup password authentication on the cluster? (yes/no) [default=no]: ", "yes"),
                    ("Trust password for new clients: ", PASSWORD), ("Again: ", PASSWORD),
                    ("Do you want to configure a new local storage pool? (yes/no) [default=yes]: ", ""),
                    ("Do you want to configure a new remote storage pool? (yes/no) [default=no]: ", ""), (MAAS, ""), (INTERFACE, "yes"),
                    ("Name of the existing bridge or host interface: ", "no-such-if"))
    terminal.expect("The requested interface doesn't exist. Please choose another one.")
    terminal.answer(("Name of the existing bridge or host interface: ", "lo"), (IMAGES, ""), (PRESEED, ""), *more)
    terminal.end()
    assert list(member.members()) == [member.name]


@test(150)
def dialogue_cluster():
    """A new cluster; a member by token, with its own keys; one by password, whose fingerprint is checked; answers that end it."""
    needs_covey("its texts of refused addresses differ")
    first = server()
    form(first)
    assert first.rest.get("/1.0/storage-pools/local")["driver"] == "dir"
    devices = first.rest.get("/1.0/profiles/default")["devices"]
    assert devices["root"]["pool"] == "local" and devices["eth0"]["nictype"] == "macvlan" and devices["eth0"]["parent"] == "lo", devices
    prefix = first.host.rsplit(".", 1)[0]
    keys = 'Choose "source" property for storage pool "local": '

    by_token = Member(2, f"{prefix}.2").start()
    terminal = Terminal(by_token)
    terminal.answer((CLUSTERING, "yes"), (ADDRESS, by_token.host), (JOINING, "yes"), (TOKEN, "nonsense"))
    terminal.expect("Invalid input: Not yes/no, or invalid join token")
    terminal.answer((TOKEN, "yes"), ("Please provide join token: ", "bad"))
    terminal.expect("Invalid input: ")
    place = os.path.join(first.test.dir, "place")
    os.mkdir(place)
    terminal.answer(("Please provide join token: ", first.token("node2")), (LOST, "yes"), (keys, place), (PRESEED, "yes"))
    printed = terminal.end()
    assert "cluster:" in printed and "server_name: node2" in printed and f"value: {place}" in printed, printed
    assert 'cluster_password: ""' in printed and "config:" not in printed.replace("member_config:", ""), printed
    assert first.rest.get("/1.0/storage-pools/local?target=node2")["config"]["source"] == place
    wait_until(lambda: by_token.members()["node2"]["status"] == "Online", 30, "the member by token")

    by_password = Member(3, f"{prefix}.3").start()
    fingerprint = first.rest.get("/1.0")["environment"]["certificate_fingerprint"]
    begin = ((CLUSTERING, "yes"), (ADDRESS, by_password.host), (JOINING, "yes"), (TOKEN, "no"), (NAME, "node3"))
    target = "IP address or FQDN of an existing cluster member (may include port): "
    for answers, ended in ((((FINGERPRINT, "no"),), ABORTED),
                           (((FINGERPRINT, fingerprint), ("Cluster trust password: ", PASSWORD), (LOST, "")), ABORTED),
                           (((FINGERPRINT, "yes"), ("Cluster trust password: ", "wrong"), (LOST, "yes")),
                            "Error: Failed to setup trust relationship with cluster: not authorized"),
                           (((FINGERPRINT, "yes"), ("Cluster trust password: ", PASSWORD), (LOST, "yes"), (keys, "/no/such/place"), (PRESEED, "")),
                            "Error: Failed to join cluster: Failed to initialize member")):
        terminal = Terminal(by_password)
        terminal.answer(*begin, (target, f"{prefix}.77"))
        terminal.expect(f'Error connecting to existing cluster member "{prefix}.77": ')
        terminal.answer((target, first.host))
        terminal.expect(f"Cluster fingerprint: {fingerprint}\n")
        terminal.answer(*answers)
        terminal.expect(ended)
        terminal.end(code=1)
        assert PASSWORD not in terminal.text
        assert by_password.rest.get("/1.0/cluster")["enabled"] is False
        assert sorted(one["name"] for one in first.rest.get("/1.0/certificates?recursion=1")) == ["node1", "node2"], "trust has stayed"
    terminal = Terminal(by_password)
    terminal.answer(*begin, (target, first.address), (FINGERPRINT, "neither"))
    terminal.expect("Invalid input: Not yes/no or fingerprint")
    terminal.answer((FINGERPRINT, fingerprint.upper()), ("Cluster trust password: ", PASSWORD), (LOST, "yes"), (keys, ""), (PRESEED, ""))
    terminal.end()
    for member in (first, by_token, by_password):
        wait_until(lambda: sorted(member.members()) == ["node1", "node2", "node3"], 30, f"all members at {member.name}")


if __name__ == "__main__":
    main()
