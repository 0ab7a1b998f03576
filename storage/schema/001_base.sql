-- Step 1: the base schema. Table and column names that users and recovery recipes read follow spec/cluster.md 12.2.
-- Rows are replicated by primary key or rowid; times are unix nanoseconds (integer) unless a column says otherwise.

CREATE TABLE config (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL);

CREATE TABLE nodes_failure_domains (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE nodes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  description TEXT NOT NULL DEFAULT '',
  address TEXT NOT NULL UNIQUE,
  schema INTEGER NOT NULL,
  api_extensions INTEGER NOT NULL,                 -- the API level, docs/design/upgrade.md
  schema_floor INTEGER NOT NULL DEFAULT 0,         -- the lowest levels of other members beside which this one can serve
  api_floor INTEGER NOT NULL DEFAULT 0,
  heartbeat INTEGER NOT NULL DEFAULT 0,            -- last transition seen by a leader; liveness itself is memory on the leader
  online INTEGER NOT NULL DEFAULT 1,               -- last written transition
  state INTEGER NOT NULL DEFAULT 0,                -- 0 created, 1 pending (accepted, not yet joined), 2 evacuated
  arch INTEGER NOT NULL CHECK (arch > 0),
  failure_domain_id INTEGER REFERENCES nodes_failure_domains (id) ON DELETE SET NULL,
  fingerprint TEXT NOT NULL DEFAULT '',            -- of the member's server certificate
  join_id TEXT NOT NULL DEFAULT '',                -- made by the joiner: the same id resumes an interrupted join
  created_at INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE nodes_config (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (node_id, key)
);
CREATE TABLE nodes_roles (
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  role INTEGER NOT NULL, UNIQUE (node_id, role)
);
CREATE TABLE cluster_groups (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, description TEXT NOT NULL DEFAULT '');
CREATE TABLE nodes_cluster_groups (
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  group_id INTEGER NOT NULL REFERENCES cluster_groups (id) ON DELETE CASCADE, UNIQUE (node_id, group_id)
);

CREATE TABLE certificates (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  fingerprint TEXT NOT NULL UNIQUE,
  type INTEGER NOT NULL,                            -- 1 client, 2 server, 3 metrics
  name TEXT NOT NULL,
  certificate TEXT NOT NULL,                        -- PEM
  restricted INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE certificates_projects (
  certificate_id INTEGER NOT NULL REFERENCES certificates (id) ON DELETE CASCADE,
  project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE, UNIQUE (certificate_id, project_id)
);
-- One-time tokens; the row goes away when the token is presented, revoked or expired. The token's operation has the same uuid.
CREATE TABLE tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  uuid TEXT NOT NULL UNIQUE,
  kind INTEGER NOT NULL,                            -- 1 join, 2 client certificate
  name TEXT NOT NULL,
  secret_sha256 TEXT NOT NULL,
  expires_at INTEGER NOT NULL DEFAULT 0,            -- 0 = never
  request TEXT NOT NULL DEFAULT ''                  -- JSON of the certificate request
);

CREATE TABLE projects (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, description TEXT NOT NULL DEFAULT '');
CREATE TABLE projects_config (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (project_id, key)
);

CREATE TABLE profiles (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  description TEXT NOT NULL DEFAULT '',
  UNIQUE (project_id, name)
);
CREATE TABLE profiles_config (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  profile_id INTEGER NOT NULL REFERENCES profiles (id) ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (profile_id, key)
);
CREATE TABLE profiles_devices (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  profile_id INTEGER NOT NULL REFERENCES profiles (id) ON DELETE CASCADE,
  name TEXT NOT NULL, UNIQUE (profile_id, name)
);
CREATE TABLE profiles_devices_config (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  profile_device_id INTEGER NOT NULL REFERENCES profiles_devices (id) ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (profile_device_id, key)
);

CREATE TABLE storage_pools (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE, driver TEXT NOT NULL, description TEXT NOT NULL DEFAULT '',
  state INTEGER NOT NULL DEFAULT 0                  -- 0 pending, 1 created, 2 errored
);
CREATE TABLE storage_pools_nodes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  storage_pool_id INTEGER NOT NULL REFERENCES storage_pools (id) ON DELETE CASCADE,
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  state INTEGER NOT NULL DEFAULT 0, UNIQUE (storage_pool_id, node_id)
);
CREATE TABLE storage_pools_config (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  storage_pool_id INTEGER NOT NULL REFERENCES storage_pools (id) ON DELETE CASCADE,
  node_id INTEGER REFERENCES nodes (id) ON DELETE CASCADE,   -- NULL = all members
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (storage_pool_id, node_id, key)
);
CREATE TABLE storage_volumes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  storage_pool_id INTEGER NOT NULL REFERENCES storage_pools (id) ON DELETE CASCADE,
  node_id INTEGER REFERENCES nodes (id) ON DELETE CASCADE,
  project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  type INTEGER NOT NULL,                            -- 0 container, 1 image, 2 custom
  name TEXT NOT NULL, description TEXT NOT NULL DEFAULT '', content_type INTEGER NOT NULL DEFAULT 0, creation_date INTEGER NOT NULL DEFAULT 0,
  UNIQUE (storage_pool_id, node_id, project_id, type, name)
);

CREATE TABLE networks (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  name TEXT NOT NULL, type INTEGER NOT NULL DEFAULT 0, description TEXT NOT NULL DEFAULT '', state INTEGER NOT NULL DEFAULT 0,
  UNIQUE (project_id, name)
);
CREATE TABLE networks_nodes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  network_id INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  state INTEGER NOT NULL DEFAULT 0, UNIQUE (network_id, node_id)
);
CREATE TABLE networks_config (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  network_id INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
  node_id INTEGER REFERENCES nodes (id) ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (network_id, node_id, key)
);

CREATE TABLE images (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  fingerprint TEXT NOT NULL,
  filename TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL, public INTEGER NOT NULL DEFAULT 0, auto_update INTEGER NOT NULL DEFAULT 0,
  cached INTEGER NOT NULL DEFAULT 0, architecture TEXT NOT NULL, type INTEGER NOT NULL DEFAULT 0,
  creation_date INTEGER NOT NULL DEFAULT 0, expiry_date INTEGER NOT NULL DEFAULT 0, upload_date INTEGER NOT NULL DEFAULT 0, last_use_date INTEGER NOT NULL DEFAULT 0,
  UNIQUE (project_id, fingerprint)
);
CREATE TABLE images_properties (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (image_id, key)
);
CREATE TABLE images_profiles (
  image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  profile_id INTEGER NOT NULL REFERENCES profiles (id) ON DELETE CASCADE, UNIQUE (image_id, profile_id)
);
CREATE TABLE images_aliases (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  name TEXT NOT NULL, image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE, description TEXT NOT NULL DEFAULT '',
  UNIQUE (project_id, name)
);
CREATE TABLE images_nodes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE, UNIQUE (image_id, node_id)
);

CREATE TABLE instances (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  node_id INTEGER NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
  project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  architecture INTEGER NOT NULL, type INTEGER NOT NULL DEFAULT 0, ephemeral INTEGER NOT NULL DEFAULT 0, stateful INTEGER NOT NULL DEFAULT 0,
  creation_date INTEGER NOT NULL DEFAULT 0, last_use_date INTEGER NOT NULL DEFAULT 0, description TEXT NOT NULL DEFAULT '',
  storage_pool_id INTEGER REFERENCES storage_pools (id),
  phase INTEGER NOT NULL DEFAULT 0,                 -- 0 created, 1 being created, 2 being deleted
  operation TEXT NOT NULL DEFAULT '',               -- uuid of the operation that creates or deletes it
  UNIQUE (project_id, name)
);
CREATE INDEX instances_node_id ON instances (node_id);
CREATE TABLE instances_config (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  instance_id INTEGER NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (instance_id, key)
);
CREATE TABLE instances_devices (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  instance_id INTEGER NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
  name TEXT NOT NULL, UNIQUE (instance_id, name)
);
CREATE TABLE instances_devices_config (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  instance_device_id INTEGER NOT NULL REFERENCES instances_devices (id) ON DELETE CASCADE,
  key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (instance_device_id, key)
);
CREATE TABLE instances_profiles (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  instance_id INTEGER NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
  profile_id INTEGER NOT NULL REFERENCES profiles (id),
  apply_order INTEGER NOT NULL DEFAULT 0, UNIQUE (instance_id, profile_id)
);
CREATE INDEX instances_profiles_profile_id ON instances_profiles (profile_id);

-- Operations: rows of running ones, and of finished ones for a few seconds. `request` is what a new leader needs to go on.
CREATE TABLE operations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  uuid TEXT NOT NULL UNIQUE,
  node_id INTEGER REFERENCES nodes (id) ON DELETE CASCADE,  -- where it runs (location)
  project_id INTEGER REFERENCES projects (id) ON DELETE CASCADE,
  type INTEGER NOT NULL,                            -- index into the table of operation kinds
  class INTEGER NOT NULL,                           -- 1 task, 2 websocket, 3 token
  status INTEGER NOT NULL,                          -- spec/api.md 1.3
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  resources TEXT NOT NULL DEFAULT '', metadata TEXT NOT NULL DEFAULT '', err TEXT NOT NULL DEFAULT '', err_code INTEGER NOT NULL DEFAULT 0,
  may_cancel INTEGER NOT NULL DEFAULT 0,
  requestor TEXT NOT NULL DEFAULT '',
  request BLOB
);

CREATE TABLE warnings (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  uuid TEXT NOT NULL UNIQUE,
  node_id INTEGER REFERENCES nodes (id) ON DELETE CASCADE,
  project_id INTEGER REFERENCES projects (id) ON DELETE CASCADE,
  type_code INTEGER NOT NULL, status INTEGER NOT NULL DEFAULT 1,
  entity_type TEXT NOT NULL DEFAULT '', entity TEXT NOT NULL DEFAULT '',
  first_seen_date INTEGER NOT NULL, last_seen_date INTEGER NOT NULL, last_message TEXT NOT NULL DEFAULT '', count INTEGER NOT NULL DEFAULT 1
);

-- Request ids of writes with their results, so that a retry after an unknown outcome never does the work twice.
CREATE TABLE requests (key TEXT NOT NULL PRIMARY KEY, done_at INTEGER NOT NULL, result BLOB) WITHOUT ROWID;
CREATE INDEX requests_done_at ON requests (done_at);
-- One row: identity of the cluster, written at bootstrap.
CREATE TABLE cluster (id INTEGER PRIMARY KEY CHECK (id = 1), uuid TEXT NOT NULL, epoch INTEGER NOT NULL DEFAULT 1, certificate TEXT NOT NULL DEFAULT '', key TEXT NOT NULL DEFAULT '',
  schema INTEGER NOT NULL DEFAULT 0, api_extensions INTEGER NOT NULL DEFAULT 0 -- levels that all members have reached: none below them serves any more
);

INSERT INTO projects (id, name, description) VALUES (1, 'default', 'Default LXD project');
INSERT INTO projects_config (project_id, key, value) VALUES
  (1, 'features.images', 'true'), (1, 'features.networks', 'true'), (1, 'features.profiles', 'true'), (1, 'features.storage.volumes', 'true');
INSERT INTO profiles (id, project_id, name, description) VALUES (1, 1, 'default', 'Default LXD profile');
INSERT INTO cluster_groups (id, name, description) VALUES (1, 'default', 'Default cluster group');
