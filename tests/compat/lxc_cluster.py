"""The cluster commands of the stock `lxc` client of LXD 5.0.2, and the same typed to `covey`."""
import hashlib
import os
import ssl

import harness
from harness import Cluster, client_certificate, main, needs_covey, test, wait_until


def presented(member):
    host, port = member.core_address.rsplit(":", 1)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))).hexdigest()


def fingerprint_of(base):
    with open(base + ".crt", encoding="ascii") as file:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(file.read())).hexdigest()


def fails(run, text, *arguments):
    result = run(*arguments)
    assert result.returncode == 1 and text in result.stderr, (arguments, result)


@test(90)
def update_certificate():
    """`cluster update-certificate` and its alias, with the texts for missing files; a remote must be trusted anew afterwards."""
    needs_covey("its texts are the same, the second half needs two commands")
    cluster = Cluster(2)
    first = cluster[1]
    conf = os.path.join(harness.CURRENT.dir, "remote-conf")
    first.lxc("remote", "add", "many", f"https://{cluster[2].core_address}", "--accept-certificate", "--password", harness.PASSWORD, conf=conf)
    clients = (("lxc", lambda *words: first.run(["lxc", *words], check=False, env={"LXD_CONF": conf})),
               ("covey", lambda *words: first.covey(*words, check=False)))
    for number, (name, run) in enumerate(clients):
        base = client_certificate(f"by-{name}")
        fails(run, f"Could not find certificate file path: {base}.none", "cluster", "update-certificate", base + ".none", base + ".key")
        fails(run, f"Could not find certificate key file path: {base}.none", "cluster", "update-certificate", base + ".crt", base + ".none")
        fails(run, "Private key must be base64 encoded PEM key", "cluster", "update-certificate", base + ".crt", base + ".crt")
        done = run("cluster", ("update-certificate", "update-cert")[number], base + ".crt", base + ".key")
        assert done.returncode == 0 and "Successfully updated cluster certificates for remote local" in done.stdout, done
        wait_until(lambda: {presented(one) for one in cluster} == {fingerprint_of(base)}, 20, "both members present it")
    result = first.run(["lxc", "list", "many:"], check=False, env={"LXD_CONF": conf})
    assert result.returncode == 1 and "x509" in result.stderr, result
    first.lxc("remote", "remove", "many", conf=conf)
    first.lxc("remote", "add", "many", f"https://{cluster[2].core_address}", "--accept-certificate", "--password", harness.PASSWORD, conf=conf)
    first.lxc("list", "many:", conf=conf)


main()
