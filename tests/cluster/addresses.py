"""core.https_address and cluster.https_address: canonical forms, coverage, changes on a clustered server, refused listeners."""
import contextlib
import socket
import ssl
import threading
import time

from harness import PORT, Client, Cluster, certificate_body, client_certificate, main, needs_covey, refused, test, wait_until
from namespaces import NetworkCluster, inside

OTHER_PORT = 8444
THIRD_PORT = 9999
CORE, CLUSTER = "core.https_address", "cluster.https_address"


def listens(member, address):
    """Whether REST answers there; asked from where the member is."""
    host, port = address.rsplit(":", 1)
    with inside(member) if hasattr(member, "namespace") else contextlib.nullcontext():
        try:
            with socket.create_connection((host, int(port)), timeout=2):
                pass
        except OSError:
            return False
        return Client(address=address).get("/1.0")["auth"] == "untrusted"


def config(member):
    return member.rest.get("/1.0")["config"]


def set_core(member, value):
    member.rest.patch("/1.0", {"config": {CORE: value}})
    assert config(member).get(CORE, "") == value, config(member)


@test(120, alone=True)
def cluster_port_differs_from_api_port():
    """§18.42: members on port 8444, clients on 8443; the core address moves to another port, to the wildcard of the cluster's port, back, and away;
    members stay connected all the time. The cluster address is frozen."""
    needs_covey("5.0 cuts a member off when its core address leaves the cluster's port")
    cluster = NetworkCluster(2, formed=False)  # wildcards need a host of their own
    first, second = members = list(cluster)
    for member in members:
        member.address = f"{member.host}:{OTHER_PORT}"
    first.bootstrap()
    second.join(first)
    cluster.wait_online()

    def connected():
        cluster.wait_online()
        for member in members:
            for other in members:
                assert member.rest.get(f"/1.0?target={other.name}")["environment"]["server_name"] == other.name
    for member in members:
        for one in members:
            assert member.members()[one.name]["url"] == f"https://{one.host}:{OTHER_PORT}"
        assert listens(member, f"{member.host}:{PORT}") and listens(member, f"{member.host}:{OTHER_PORT}")
    set_core(first, f"{first.host}:{THIRD_PORT}")
    assert listens(first, f"{first.host}:{THIRD_PORT}") and not listens(first, f"{first.host}:{PORT}")
    connected()
    for value in (f"{first.host}:{PORT}", ""):
        refused(400, "Changing cluster.https_address is currently not supported", first.rest.patch, "/1.0", {"config": {CLUSTER: value}})
    wildcard = f"0.0.0.0:{OTHER_PORT}"
    set_core(first, wildcard)  # takes in the cluster's listener
    assert listens(first, f"{first.host}:{OTHER_PORT}") and not listens(first, f"{first.host}:{THIRD_PORT}")
    connected()
    first.restart()
    connected()
    set_core(first, f"{first.host}:{PORT}")  # and gives it free again
    assert listens(first, f"{first.host}:{PORT}") and listens(first, f"{first.host}:{OTHER_PORT}")
    connected()
    set_core(first, wildcard)
    set_core(first, "")
    assert listens(first, f"{first.host}:{OTHER_PORT}") and not listens(first, f"{first.host}:{PORT}")
    connected()
    # A whole PUT must repeat the cluster's address, in any spelling.
    body = first.rest.get("/1.0")["config"]
    without = {key: value for key, value in body.items() if key != CLUSTER}
    refused(400, "Changing cluster.https_address is currently not supported", first.rest.put, "/1.0", {"config": without})
    first.rest.put("/1.0", {"config": {**without, CLUSTER: f"{first.host}:{OTHER_PORT}", CORE: first.host}})
    assert config(first)[CORE] == f"{first.host}:{PORT}"
    connected()
    for member in members:
        member.stop()
    for member in members:
        member.start(wait=False)
    for member in members:
        member.wait_ready()
    connected()


@test(60)
def refused_listener_changes_nothing():
    """A listener that cannot be had leaves the former value and the former listener, which serves all the while."""
    needs_covey("5.0 keeps the refused value")
    cluster = Cluster(2)
    first = cluster[1]
    taken = socket.socket()
    taken.bind((first.host, THIRD_PORT))
    taken.listen(1)
    before = config(first)
    served, failed, stop = [], [], threading.Event()

    def watch():
        while not stop.is_set():
            (served if listens(first, first.core_address) else failed).append(1)
            time.sleep(0.02)
    thread = threading.Thread(target=watch)
    thread.start()
    address = f"{first.host}:{THIRD_PORT}"
    error = refused(500, f'Cannot listen on network HTTPS socket "{address}": ', first.rest.patch, "/1.0", {"config": {CORE: address}})
    assert "address already in use" in error.text.lower(), error.text
    refused(500, "Cannot listen on network HTTPS socket", first.rest.patch, "/1.0", {"config": {CORE: f"192.0.2.1:{PORT}"}})
    stop.set()
    thread.join(10)
    assert served and not failed, (len(served), len(failed))
    # A wildcard in the place of the listener, when another program has the port elsewhere: the listener is put back.
    other = socket.socket()
    other.bind((f"{cluster.prefix}.99", PORT))
    other.listen(1)
    refused(500, f'Cannot listen on network HTTPS socket "0.0.0.0:{PORT}"', first.rest.patch, "/1.0", {"config": {CORE: f"0.0.0.0:{PORT}"}})
    assert config(first) == before and listens(first, first.core_address)
    taken.close()
    other.close()
    for key, value, text in ((CORE, "no-such-host.invalid", 'Couldn\'t resolve "no-such-host.invalid"'), (CORE, "10.0.0.1:x", "Invalid address"),
                             (CLUSTER, f"0.0.0.0:{PORT}", "Wildcard addresses aren't allowed"), (CLUSTER, "[::]", "Wildcard addresses aren't allowed")):
        error = refused(400, text, first.rest.patch, "/1.0", {"config": {key: value}})
        assert error.text.startswith(f"cannot set '{key}' to '{value}"), error.text
    assert config(first) == before
    cluster.wait_online()


def enable(member, name):
    return member.rest.put("/1.0/cluster", {"server_name": name, "enabled": True})


@test(120, alone=True)
def enable_by_addresses():
    """§18.2 to §18.8: which addresses a standalone server may be clustered with, and what its member then shows."""
    cluster = NetworkCluster(0, formed=False)

    def one(settings):
        member = cluster.add()
        member.rest.patch("/1.0", {"config": {key: value.format(host=member.host) for key, value in settings.items()}})
        return member
    text = "Cannot use wildcard core.https_address"
    refused((400, 500), text, enable, one({CORE: f":{PORT}"}), "m")                                      # 2
    refused((400, 500), text, enable, one({}), "m")                                                      # 5
    for settings, port in (({CORE: "{host}"}, PORT),                                                     # 3
                           ({CORE: f":{PORT}", CLUSTER: f"{{host}}:{OTHER_PORT}"}, OTHER_PORT),          # 4
                           ({CLUSTER: f"{{host}}:{OTHER_PORT}"}, OTHER_PORT),                            # 6
                           ({CORE: "{host}:", CLUSTER: "{host}"}, PORT),                                 # 7, 8
                           ({CORE: f"[::]:{PORT}", CLUSTER: "{host}"}, PORT),
                           ({CORE: f"localhost:{PORT}", CLUSTER: "127.0.0.1"}, PORT)):
        member = one(settings)
        cluster_address = settings.get(CLUSTER, "{host}").format(host=member.host).split(":")[0] + f":{port}"
        if CLUSTER in settings:
            assert listens(member, cluster_address), "before any clustering"
        enable(member, "m")
        assert member.members()["m"]["url"] == f"https://{cluster_address}", (settings, member.members())
        assert config(member)[CLUSTER] == cluster_address
        assert listens(member, cluster_address)
        member.kill()
        member.start()
        assert listens(member, cluster_address)
        member.stop()


@test(60)
def client_moves_between_members():
    """§18.13: a client that is trusted once works with every member, also when members share one name: same port, same certificate."""
    cluster = Cluster(3)
    base = client_certificate()
    cluster[1].rest.post("/1.0/certificates", {"name": "laptop", "type": "client", "certificate": certificate_body(base)})
    fingerprint = cluster[1].rest.get("/1.0")["environment"]["certificate_fingerprint"]
    for number, member in enumerate(cluster):
        client = member.tls(cert=base, fingerprint=fingerprint)
        wait_until(lambda: client.get("/1.0")["auth"] == "trusted", 10, "trusted")
        client.post("/1.0/profiles", {"name": f"by{number}"})
    shared = client_certificate("cloud.example")  # all addresses behind one name: clients that verify it are content with every member
    with open(shared + ".crt", encoding="ascii") as cert, open(shared + ".key", encoding="ascii") as key:
        cluster[3].rest.put("/1.0/cluster/certificate", {"cluster_certificate": cert.read(), "cluster_certificate_key": key.read()})
    context = ssl.create_default_context(cafile=shared + ".crt")
    for member in cluster:
        with socket.create_connection((member.host, PORT), timeout=10) as raw, context.wrap_socket(raw, server_hostname="cloud.example") as tls:
            assert tls.version() == "TLSv1.3"
    assert {f"/1.0/profiles/by{number}" for number in range(3)} <= set(cluster[2].tls(cert=base).get("/1.0/profiles"))


main()
