"""Replacement of the cluster certificate: all members or none, whoever dies meanwhile, whoever was away."""
import hashlib
import os
import random
import ssl
import subprocess
import threading
import time

import harness
from harness import Cluster, Member, RestError, client_certificate, free_network, main, needs_covey, refused, test, wait_until


def read(path):
    with open(path, encoding="ascii") as file:
        return file.read()


def make_pair(name):
    """A fresh pair as (certificate, key)."""
    base = client_certificate(name)
    return read(base + ".crt"), read(base + ".key")


def body(pair):
    return {"cluster_certificate": pair[0], "cluster_certificate_key": pair[1]}


def fingerprint(certificate):
    """Of the first one of a chain."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    first = certificate[certificate.index(begin):certificate.index(end)] + end
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()


def installed(member):
    return read(os.path.join(member.dir, "cluster.crt")), read(os.path.join(member.dir, "cluster.key"))


def presented(member):
    host, port = member.core_address.rsplit(":", 1)
    return fingerprint(ssl.get_server_certificate((host, int(port))))


def all_hold(cluster, certificate):
    """Every running member has it in its files, presents it and names it."""
    wanted = fingerprint(certificate)

    def equal():
        return all(fingerprint(installed(one)[0]) == wanted and presented(one) == wanted and
                   one.rest.get("/1.0")["environment"]["certificate_fingerprint"] == wanted for one in cluster.running())
    wait_until(equal, 20, f"all members hold {wanted[:12]}")
    assert len({installed(one) for one in cluster.running()}) == 1


def members_talk(cluster, name):
    """Every member reaches the leader, and new connections between members work."""
    for number, member in enumerate(cluster.running()):
        member.rest.post("/1.0/profiles", {"name": f"{name}-{number}"})
    for member in cluster.running():
        for other in cluster.running():
            config = wait_until(lambda: member.rest.get(f"/1.0?target={other.name}"), 10, f"{member.name} asks {other.name}")
            assert config["environment"]["server_name"] == other.name, config["environment"]


@test(120)
def certificate_replaced_everywhere():
    """§18.43: another pair is in the files of all members, is presented by all, and members go on talking; running connections too."""
    cluster = Cluster(3)
    pair = make_pair("second")
    running = cluster[3].tls(keep_alive=True)
    running.get("/1.0")
    events = cluster[2].events("lifecycle")
    cluster[2].rest.put("/1.0/cluster/certificate", body(pair))
    all_hold(cluster, pair[0])
    seen = events.wait_for(lambda one: one["metadata"].get("action") == "cluster-certificate-updated", 10)
    assert seen["metadata"]["source"] == "/1.0/cluster/certificate", seen
    assert running.get("/1.0")["api_version"] == "1.0", "a running connection"
    for member in cluster:
        assert os.stat(os.path.join(member.dir, "cluster.key")).st_mode & 0o777 == 0o600
        assert not os.path.exists(os.path.join(member.dir, "cluster.crt.staged"))
    members_talk(cluster, "talk")
    # A token made now carries the new fingerprint; a server joins by it; restarts change nothing.
    added = cluster.add()
    added.join(cluster[1], "token")
    cluster.wait_online()
    for member in cluster:
        member.kill()
    for member in cluster:
        member.start(wait=False)
    for member in cluster:
        member.wait_ready()
    cluster.wait_online()
    all_hold(cluster, pair[0])


@test(90)
def certificate_is_checked_first():
    """Bad pairs and servers without a cluster are refused with the texts of LXD before anything changes; doubled newlines are fine."""
    needs_covey("its refusals carry formatting garbage, and it takes a pair that does not match")
    cluster = Cluster(2)
    before = installed(cluster[1])
    one, two = make_pair("one"), make_pair("two")
    put = cluster[2].rest.put
    refused(400, "Certificate must be base64 encoded PEM certificate", put, "/1.0/cluster/certificate", body(("rubbish", one[1])))
    refused(400, "Certificate must be base64 encoded PEM certificate", put, "/1.0/cluster/certificate", {})
    refused(400, "Private key must be base64 encoded PEM key", put, "/1.0/cluster/certificate", body((one[0], "rubbish")))
    refused(400, "does not belong", put, "/1.0/cluster/certificate", body((one[0], two[1])))
    weak = os.path.join(harness.CURRENT.dir, "weak")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:1024", "-nodes", "-days", "3", "-subj", "/CN=weak", "-keyout", weak + ".key",
                    "-out", weak + ".crt"], check=True, capture_output=True)
    refused(400, "too weak", put, "/1.0/cluster/certificate", body((read(weak + ".crt"), read(weak + ".key"))))
    assert installed(cluster[1]) == installed(cluster[2]) == before
    put("/1.0/cluster/certificate", body((one[0].replace("\n", "\n\n"), one[1].replace("\n", "\r\n\r\n"))))
    all_hold(cluster, one[0])
    # Who is joining was given the present pair: not now.
    cluster[1].admin("sql", "global", "INSERT INTO nodes (name, address, schema, api_extensions, state, arch, created_at)"
                     f" VALUES ('node9', '{cluster.prefix}.9:8443', 1, 1, 1, 2, {time.time_ns()})")
    refused(400, "The server node9 is joining the cluster", put, "/1.0/cluster/certificate", body(two))
    cluster[1].admin("sql", "global", "DELETE FROM nodes WHERE name = 'node9'")
    all_hold(cluster, one[0])
    alone = Member(9, f"{free_network(1)}.1")
    alone.start()
    refused(400, "This server is not clustered", alone.rest.put, "/1.0/cluster/certificate", body(one))
    assert not os.path.exists(os.path.join(alone.dir, "cluster.crt"))


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, capture_output=True)


@test(90)
def certificate_of_any_kind():
    """RSA in the old form, EC with its parameters before it, a chain with text around it: clients and members get on, the files are the given ones."""
    cluster = Cluster(2)
    base = os.path.join(harness.CURRENT.dir, "pair-")
    names = ("-subj", "/CN=x", "-addext", "subjectAltName=DNS:x", "-days", "9")
    openssl("genrsa", "-traditional", "-out", base + "rsa.key", "2048")
    openssl("req", "-x509", "-new", "-key", base + "rsa.key", "-out", base + "rsa.crt", *names)
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-out", base + "ec.key")
    openssl("req", "-x509", "-new", "-text", "-key", base + "ec.key", "-out", base + "ec.crt", *names)
    openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", base + "chain.key", "-out", base + "csr", "-subj", "/CN=leaf")
    openssl("x509", "-req", "-in", base + "csr", "-CA", base + "ec.crt", "-CAkey", base + "ec.key", "-CAcreateserial", "-out", base + "leaf.crt")
    with open(base + "chain.crt", "w", encoding="ascii") as file:
        file.write(read(base + "leaf.crt") + read(base + "rsa.crt"))
    for kind in ("rsa", "ec", "chain"):
        pair = read(base + kind + ".crt"), read(base + kind + ".key")
        cluster[1].rest.put("/1.0/cluster/certificate", body(pair))
        all_hold(cluster, pair[0])
        assert installed(cluster[2]) == pair
    cluster[2].restart()  # connections are made anew
    cluster.wait_online()
    members_talk(cluster, "kinds")


@test(90)
def certificate_refused_when_one_is_down():
    """§18.44: one of three members down: refused, the old pair everywhere, the members still talk."""
    needs_covey("5.0 stops half-way")
    cluster = Cluster(3)
    before = installed(cluster[1])
    cluster[3].kill()  # for its peers it is still online
    refused(503, f"peer node {cluster[3].address} is down", cluster[1].rest.put, "/1.0/cluster/certificate", body(make_pair("refused")))
    for member in cluster:
        assert installed(member) == before
        assert not os.path.exists(os.path.join(member.dir, "cluster.key.staged"))
    cluster[3].start()
    cluster.wait_online()
    members_talk(cluster, "after")
    # One that cannot write its files refuses for all.
    os.mkdir(os.path.join(cluster[2].dir, "cluster.crt.staged.tmp"))
    refused((500, 400, 409), "node2 cannot take the certificate", cluster[1].rest.put, "/1.0/cluster/certificate", body(make_pair("unwritable")))
    for member in cluster:
        assert installed(member) == before
    os.rmdir(os.path.join(cluster[2].dir, "cluster.crt.staged.tmp"))
    pair = make_pair("taken")
    cluster[1].rest.put("/1.0/cluster/certificate", body(pair))
    all_hold(cluster, pair[0])


def change_row(member, pair):
    """The committed half of a change that some members never heard of."""
    quoted = [one.replace("'", "''") for one in pair]
    member.admin("sql", "global", f"UPDATE cluster SET certificate = '{quoted[0]}', key = '{quoted[1]}', "
                 "certificate_generation = certificate_generation + 1")


@test(120)
def certificate_changed_while_away():
    """A member that was away while the certificate changed comes back by its peers' server certificates and then holds the new files; also
    when those that have the new pair need its vote."""
    needs_covey("5.0 loses it")
    cluster = Cluster(3)
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    pair = make_pair("missed")
    cluster[3].kill()
    change_row(cluster[1], pair)
    all_hold(cluster, pair[0])
    cluster[3].start()
    cluster.wait_online()
    all_hold(cluster, pair[0])
    with open(cluster[3].logfile, encoding="utf-8") as log:
        assert any("certificate.proof" in line and "good=1" in line for line in log), "it came back in another way"
    members_talk(cluster, "back")
    pair = make_pair("missed-again")
    cluster[3].kill()
    change_row(cluster[1], pair)
    all_hold(cluster, pair[0])
    cluster[1].kill()  # the one that came along has no majority without the one that was away
    cluster[2].kill()
    cluster[3].start(wait=False)
    cluster[2].start(wait=False)
    cluster[2].wait_ready()
    cluster[3].wait_ready()
    all_hold(cluster, pair[0])
    cluster[1].start()
    cluster.wait_online()
    all_hold(cluster, pair[0])


@test(150)
def certificate_change_killed_halfway():
    """The leader or another member dies at some point of the change: afterwards all hold the same pair, the former or the new one."""
    needs_covey("5.0 stops half-way")
    seed = int(os.environ.get("COVEY_SEED", random.randrange(1 << 30)))
    print(f"COVEY_SEED={seed}")
    chance = random.Random(seed)
    cluster = Cluster(3)
    wait_until(lambda: list(cluster.roles().values()).count("voter") == 3, 30, "three voters")
    held = installed(cluster[1])[0]
    for number in range(int(os.environ.get("COVEY_ROUNDS", "4"))):
        pair = make_pair(f"round{number}")
        victim = cluster.leader() if number % 2 == 0 else chance.choice(list(cluster))
        asked = chance.choice([one for one in cluster if one is not victim])
        outcome = []

        def change():
            try:
                asked.rest.put("/1.0/cluster/certificate", body(pair))
                outcome.append("done")
            except (OSError, RestError) as error:
                outcome.append(error)
        thread = threading.Thread(target=change)
        thread.start()
        thread.join(chance.uniform(0, 0.06))
        victim.kill()
        thread.join(60)
        victim.start()
        cluster.wait_online(40)
        now = installed(asked)[0]
        print(f"round {number}: killed {victim.name}, asked {asked.name}: {outcome}, {'new' if now.strip() == pair[0].strip() else 'former'} pair")
        assert fingerprint(now) in (fingerprint(held), fingerprint(pair[0]))
        assert outcome and (outcome[0] != "done" or fingerprint(now) == fingerprint(pair[0])), "acknowledged and lost"
        all_hold(cluster, now)
        members_talk(cluster, f"round{number}")
        held = now


main()
