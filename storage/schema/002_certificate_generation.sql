-- additive: a column with a default; it is read once the step is applied, and the certificate is not changed before
-- Orders the certificates that the cluster had, so that a member never takes an older one for the present one.

ALTER TABLE cluster ADD COLUMN certificate_generation INTEGER NOT NULL DEFAULT 1;
