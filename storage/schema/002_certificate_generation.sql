-- incompatible: every reader of the cluster's certificate names the column
-- Orders the certificates that the cluster had, so that a member never takes an older one for the present one.

ALTER TABLE cluster ADD COLUMN certificate_generation INTEGER NOT NULL DEFAULT 1;
