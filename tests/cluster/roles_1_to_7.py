"""Database roles while a cluster grows from one to seven members: the table of the specification, told alike by every member."""
from harness import Cluster, main, test, wait_until

#        members: (voters, stand-bys, spares)
EXPECTED = {1: (1, 0, 0), 2: (1, 1, 0), 3: (3, 0, 0), 4: (3, 1, 0), 5: (3, 2, 0), 6: (3, 2, 1), 7: (3, 2, 2)}


def counts(cluster, asked):
    told = cluster.roles(asked)
    told.pop("", None)
    kinds = list(told.values())
    return kinds.count("voter"), kinds.count("stand-by"), kinds.count("spare")


@test(240)
def roles_1_to_7():
    cluster = Cluster(1)
    for size in range(1, 8):
        if size > 1:
            # Through the newest member so far, which may be a spare: any member may be the target.
            cluster.add().join(cluster[size - 1], "password" if size % 2 else "token")
        for member in cluster:
            wait_until(lambda: counts(cluster, member) == EXPECTED[size], 40,
                       f"roles {EXPECTED[size]} with {size} members as {member.name} tells")
        records = cluster[size].members()
        for name, record in records.items():
            assert record["database"] == any(role.startswith("database") for role in record["roles"]), (name, record)
        leaders = [name for name, record in records.items() if "database-leader" in record["roles"]]
        assert len(leaders) == 1, leaders


main()
