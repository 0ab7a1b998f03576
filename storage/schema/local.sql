-- The local database of a member (spec/cluster.md 12.1). Every statement may run again on an existing file.
CREATE TABLE IF NOT EXISTS schema (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, version INTEGER NOT NULL UNIQUE, updated_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS config (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS patches (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name TEXT NOT NULL UNIQUE, applied_at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS raft_nodes (
  id INTEGER PRIMARY KEY NOT NULL,
  address TEXT NOT NULL UNIQUE,
  role INTEGER NOT NULL,                            -- 0 voter, 1 stand-by, 2 spare
  name TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS certificates (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  fingerprint TEXT NOT NULL UNIQUE,
  type INTEGER NOT NULL,                            -- 2 server
  name TEXT NOT NULL,
  certificate TEXT NOT NULL                         -- PEM
);
-- Ours: member_id, cluster_id, epoch and the like.
CREATE TABLE IF NOT EXISTS state (key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL);
INSERT OR IGNORE INTO schema (version, updated_at) VALUES (1, strftime('%s', 'now'));
