"""What callers must not reach or cause: other projects' profiles, a busy daemon, a torn join; and filters that images promise."""
import socket
import ssl
import threading
import time

from harness import PORT, Cluster, certificate_body, client_certificate, main, needs_covey, refused, test, wait_until
from rest import RestError


def ticks(pid):
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


@test(60)
def peer_that_never_closes():
    """It offers h2, breaks the handshake and leaves its side open: the daemon must rest."""
    needs_covey("one port for two protocols")
    member = Cluster(1)[1]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    sent = ssl.MemoryBIO()
    hello = context.wrap_bio(ssl.MemoryBIO(), sent)
    try:
        hello.do_handshake()
    except ssl.SSLWantReadError:
        pass
    with socket.create_connection((member.address.split(":")[0], PORT), 10) as peer:
        peer.sendall(sent.read())
        peer.sendall(b"no TLS record" * 50)
        peer.settimeout(20)
        while peer.recv(65536):  # an alert perhaps, then the end
            pass
        before, span = ticks(member.process.pid), 2
        time.sleep(span)  # what is measured
        used = ticks(member.process.pid) - before
    assert used < 40, f"{used} ticks of CPU in {span} s"


@test(90)
def restricted_profiles():
    member = Cluster(1)[1]
    clients = {}
    for name, projects in (("inside", ["default"]), ("outside", [])):
        certificate = client_certificate(name)
        member.rest.post("/1.0/certificates", {"type": "client", "name": name, "restricted": True, "projects": projects,
                                               "certificate": certificate_body(certificate)})
        clients[name] = member.tls(cert=certificate)
    assert clients["inside"].get("/1.0/profiles") == ["/1.0/profiles/default"]
    assert clients["inside"].get("/1.0/profiles/default")["name"] == "default"
    for path in ("/1.0/profiles", "/1.0/profiles?recursion=1", "/1.0/profiles/default"):
        refused(403, "not authorized", clients["outside"].get, path)


@test(90)
def image_filter():
    cluster = Cluster(1)
    member, fingerprint = cluster[1], cluster.import_image()
    found = member.rest.get(f"/1.0/images?recursion=1&filter=fingerprint%20eq%20{fingerprint}")
    assert [one["fingerprint"] for one in found] == [fingerprint], found
    assert member.rest.get(f"/1.0/images?filter=fingerprint%20eq%20{fingerprint}") == [f"/1.0/images/{fingerprint}"]
    assert member.rest.get("/1.0/images?recursion=1&filter=public%20eq%20true") == []
    refused((400, 500), "Invalid filter", member.rest.get, "/1.0/images?filter=fingerprint")


@test(120)
def two_joins_at_once():
    needs_covey("the peer lets them run into each other")
    cluster = Cluster(2, formed=False)
    cluster[1].bootstrap()
    body = cluster[2].join_document(cluster[1])["cluster"]
    results = []

    def join():
        try:
            cluster[2].rest.put("/1.0/cluster", body)
            results.append("")
        except RestError as error:
            results.append(error.text)

    threads = [threading.Thread(target=join) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert results.count("") == 1 and len(results) == 4, results
    cluster.wait_online()
    assert set(cluster[1].members()) == {"node1", "node2"}
    wait_until(lambda: cluster[2].members().keys() == {"node1", "node2"}, 20, "the joiner's view")


main()
