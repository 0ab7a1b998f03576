"""An image that only one member stores can be launched on another, which fetches it; a deleted image is gone for all."""
from harness import Cluster, main, refused, test, wait_until


@test(150)
def image_fetch():
    cluster = Cluster(3, config={"cluster.images_minimal_replica": "1"})
    fingerprint = cluster.import_image()
    for member in cluster:
        image = member.rest.get(f"/1.0/images/{fingerprint}")
        assert image["fingerprint"] == fingerprint and image["size"] > 0, image
        assert member.rest.get("/1.0/images/aliases/busybox")["target"] == fingerprint
    body = {"source": {"type": "image", "alias": "busybox"}}
    cluster[2].rest.post("/1.0/instances?target=node3", body | {"name": "c3"})
    assert cluster[1].rest.get("/1.0/instances/c3")["location"] == "node3"
    # Now node3 has the image: without node1 it still works.
    cluster[1].stop()
    wait_until(lambda: cluster[3].members(), 30, "answers without node1")
    wait_until(lambda: cluster[3].rest.post("/1.0/instances?target=node3", body | {"name": "c4"}), 30, "a launch without node1")
    cluster[1].start()
    cluster.wait_online(40)
    # The same file again: no second copy, the text says so.
    second = cluster[2].lxc("image", "import", __import__("harness").busybox_image(), check=False)
    assert second.returncode == 1 and "already exists" in second.stderr, second.stderr
    for name in ("c3", "c4"):
        cluster[2].rest.delete(f"/1.0/instances/{name}")
    cluster[2].rest.delete(f"/1.0/images/{fingerprint}")
    for member in cluster:
        refused(404, "not found", member.rest.get, f"/1.0/images/{fingerprint}")
        refused(404, "not found", member.rest.get, "/1.0/images/aliases/busybox")


main()
