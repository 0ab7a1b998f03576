-- incompatible: every removal writes the table
-- Members that were removed cleanly (their rows are gone) and have not been told to leave yet (server/cluster/remove.c).

CREATE TABLE departures (
  node_id INTEGER PRIMARY KEY,                      -- the former nodes.id
  name TEXT NOT NULL, address TEXT NOT NULL, fingerprint TEXT NOT NULL,
  removed_at INTEGER NOT NULL,
  request BLOB NOT NULL                             -- covey.internal.v1.LeaveRequest
);
