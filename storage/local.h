/* The local database of a member, database/local.db (spec/cluster.md 12.1): plain SQLite, synchronous, own schema. Thread: any (one mutex inside). */
#ifndef COVEY_STORAGE_LOCAL_H
#define COVEY_STORAGE_LOCAL_H

#include "sql.h"

struct local_db;

int local_db_open(const char *dir, struct local_db **out, struct error *err);
void local_db_close(struct local_db *local);

/* Tables `config` (user-visible local keys) and `state` (ours: member_id, cluster_id, epoch, …). NULL or "" removes. get: malloc'ed, NULL if unset. */
char *local_config_get(struct local_db *local, const char *key);
int local_config_set(struct local_db *local, const char *key, const char *value, struct error *err);
char *local_state_get(struct local_db *local, const char *key);
int local_state_set(struct local_db *local, const char *key, const char *value, struct error *err);
/* Several keys of `state` at once: after a crash all of them are set or none. */
struct local_key { const char *key, *value; };
int local_state_set_all(struct local_db *local, const struct local_key *keys, size_t count, struct error *err);

struct local_raft_node { uint64_t id; char *address; int role; char *name; }; /* role: 0 voter, 1 stand-by, 2 spare (spec numbering) */
int local_raft_nodes_get(struct local_db *local, struct local_raft_node **nodes, size_t *count, struct error *err);
int local_raft_nodes_replace(struct local_db *local, const struct local_raft_node *nodes, size_t count, struct error *err); /* one transaction */
void local_raft_nodes_free(struct local_raft_node *nodes, size_t count);

struct local_certificate { char fingerprint[65]; char *name; char *pem; }; /* server-type certificates of the members */
int local_certificates_get(struct local_db *local, struct local_certificate **certs, size_t *count, struct error *err);
int local_certificates_replace(struct local_db *local, const struct local_certificate *certs, size_t count, struct error *err);
void local_certificates_free(struct local_certificate *certs, size_t count);

/* Runs fn in one transaction under the lock: everything or nothing is durable when it returns. */
int local_db_transaction(struct local_db *local, int (*fn)(struct sql *sql, void *ud, struct error *err), void *ud, struct error *err);
/* Inside such a transaction: as local_state_set. */
int local_state_put(struct sql *sql, const char *key, const char *value, struct error *err);
int local_raft_nodes_put(struct sql *sql, const struct local_raft_node *nodes, size_t count, struct error *err);

/* Runs fn with the connection under the lock (admin sql, patches). */
int local_db_with(struct local_db *local, int (*fn)(struct sql *sql, void *ud, struct error *err), void *ud, struct error *err);

#endif
