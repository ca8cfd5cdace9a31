-- Virtual API keys, by digest; times in seconds.

CREATE TABLE api_keys (
  id text PRIMARY KEY, digest bytea NOT NULL UNIQUE, name text NOT NULL,
  "user" text NOT NULL, org text NOT NULL, agent text NOT NULL, email text NOT NULL,
  "groups" text NOT NULL, scopes text NOT NULL, metadata text NOT NULL,
  models text, servers text, tools text, routes text,
  created_at bigint NOT NULL, expires_at bigint, revoked_at bigint, changed bigint NOT NULL UNIQUE
);
CREATE INDEX api_keys_name ON api_keys (name);
