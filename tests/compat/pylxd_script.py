"""pylxd: create with a target, start, execute, stop, delete; profiles and cluster members."""
import os

from harness import PASSWORD, Cluster, client_certificate, main, test, wait_until

try:
    import pylxd
except ImportError:
    pylxd = None


def script(client, cluster, target):
    assert sorted(member.server_name for member in client.cluster.members.all()) == ["node1", "node2", "node3"]
    config = {"name": "py1", "source": {"type": "image", "alias": "busybox"}}
    instance = client.containers.create(config, wait=True, target=target)
    assert instance.location == target and instance.status == "Stopped"
    instance.start(wait=True)
    instance.sync()
    assert instance.status == "Running"
    result = instance.execute(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n"), result
    assert instance.execute(["cat"], stdin_payload="typed").stdout == "typed"
    instance.description = "changed by pylxd"
    instance.save(wait=True)
    assert cluster[1].rest.get("/1.0/instances/py1")["description"] == "changed by pylxd"
    assert [one.name for one in client.containers.all()] == ["py1"]
    instance.stop(force=True, wait=True)
    wait_until(lambda: client.containers.get("py1").status == "Stopped", 20, "py1 stopped")
    client.containers.get("py1").delete(wait=True)
    assert not client.containers.exists("py1")
    profile = client.profiles.create("pyprofile", config={"user.a": "1"}, devices={})
    profile.config["user.b"] = "2"
    profile.save()
    assert cluster[2].rest.get("/1.0/profiles/pyprofile")["config"] == {"user.a": "1", "user.b": "2"}
    profile.delete()
    assert not client.profiles.exists("pyprofile")
    assert client.images.get_by_alias("busybox").fingerprint


@test(150)
def pylxd_script():
    assert pylxd, "python3-pylxd is not installed"
    cluster = Cluster(3)
    cluster.import_image()
    os.environ["LXD_DIR"] = cluster[1].dir
    script(pylxd.Client(), cluster, "node2")
    base = client_certificate()
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # would override verify=False
        os.environ.pop(name, None)
    client = pylxd.Client(endpoint=f"https://{cluster[3].core_address}", cert=(base + ".crt", base + ".key"), verify=False)
    assert not client.trusted
    client.authenticate(PASSWORD)
    assert client.trusted
    script(client, cluster, "node1")


main()
