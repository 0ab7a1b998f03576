"""Data outlives restarts of one member, of all at once, clean and by kill -9."""
from harness import Cluster, client_certificate, certificate_body, main, test, wait_until


def write(cluster, mark):
    member = cluster.running()[0]
    member.rest.post("/1.0/profiles", {"name": f"profile-{mark}", "config": {"user.mark": mark}})
    member.rest.patch("/1.0", {"config": {f"user.{mark}": mark}})


def check(cluster, marks):
    for member in cluster.running():
        for mark in marks:
            assert member.rest.get(f"/1.0/profiles/profile-{mark}")["config"]["user.mark"] == mark
            assert member.rest.get("/1.0")["config"][f"user.{mark}"] == mark


@test(240)
def restart_keeps_data():
    cluster = Cluster(3)
    certificate = client_certificate()
    cluster[1].rest.post("/1.0/certificates", {"type": "client", "name": "c", "certificate": certificate_body(certificate)})
    marks = ["first"]
    write(cluster, "first")
    check(cluster, marks)

    # One after another, clean; the rest keeps answering.
    for member in cluster:
        member.stop()
        mark = f"without-{member.name}"
        wait_until(lambda: cluster.running()[0].members(), 20, "answers with one member off")
        write(cluster, mark)
        marks.append(mark)
        member.start()
        cluster.wait_online()
        check(cluster, marks)

    for ending in ("stop", "kill"):
        write(cluster, ending)
        marks.append(ending)
        for member in cluster:
            getattr(member, ending)()
        for member in reversed(list(cluster)):
            member.start(wait=False)
        for member in cluster:
            member.wait_ready()
        cluster.wait_online()
        check(cluster, marks)
        for member in cluster:
            assert member.tls(certificate).get("/1.0")["auth"] == "trusted"
    cluster.assert_equal_state()


main()
