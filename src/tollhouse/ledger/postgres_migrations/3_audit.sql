-- Audit: each record as the text that was written, because that is what its hash covers; the columns beside it find it.

CREATE TABLE audit (
  journal bigint NOT NULL, n bigint NOT NULL, at bigint NOT NULL, body text NOT NULL,
  PRIMARY KEY (journal, n)
);
CREATE INDEX audit_at ON audit (at);

-- The last record of each chain, to be named by those that begin later.
CREATE TABLE audit_chains (
  journal bigint PRIMARY KEY, n bigint NOT NULL, hash text NOT NULL, at bigint NOT NULL
);

-- A record's members. PostgreSQL has no NUL in a text, which JSON can have: it is shown as the symbol for it.
CREATE FUNCTION audit_members(body text) RETURNS json LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT CASE WHEN strpos(body, '\u0000') = 0 THEN body
    ELSE regexp_replace(body, '(?<!\\)((?:\\\\)*)\\u0000', '\1␀', 'g') END::json
$$;

CREATE VIEW audit_records AS SELECT j.journal AS chain, a.n, a.at, m.*
  FROM audit a JOIN journals j ON j.number = a.journal
  CROSS JOIN LATERAL (SELECT
    coalesce(r.members ->> 'operation', '') AS operation,
    coalesce(r.members ->> 'request_id', '') AS request_id,
    coalesce(r.members ->> 'principal', '') AS principal,
    coalesce(r.members ->> 'source', '') AS source,
    coalesce(r.members ->> 'user', '') AS "user",
    coalesce(r.members ->> 'org', '') AS org,
    coalesce(r.members ->> 'agent', '') AS agent,
    coalesce(r.members ->> 'client', '') AS client,
    coalesce(r.members ->> 'key', '') AS key,
    coalesce(r.members ->> 'issuer', '') AS issuer,
    coalesce(r.members ->> 'jti', '') AS jti,
    coalesce(r.members ->> 'minted', '') AS minted,
    coalesce(r.members ->> 'session', '') AS session,
    coalesce(r.members ->> 'address', '') AS address,
    coalesce(r.members ->> 'route', '') AS route,
    coalesce(r.members ->> 'server', '') AS server,
    coalesce(r.members ->> 'target', '') AS target,
    coalesce(r.members ->> 'backend', '') AS backend,
    coalesce(r.members ->> 'arguments_hash', '') AS arguments_hash,
    coalesce(r.members ->> 'arguments', '') AS arguments,
    coalesce(r.members ->> 'decision', '') AS decision,
    coalesce(r.members ->> 'rule', '') AS rule,
    coalesce(r.members ->> 'approver', '') AS approver,
    coalesce(r.members ->> 'outcome', '') AS outcome,
    coalesce(r.members ->> 'reason', '') AS reason,
    coalesce(r.members ->> 'subject', '') AS subject,
    coalesce(r.members ->> 'audience', '') AS audience,
    coalesce(r.members ->> 'actors', '[]') AS actors,
    coalesce(r.members ->> 'status', '0')::bigint AS status,
    coalesce(r.members ->> 'took_us', '0')::bigint AS took_us
    FROM (SELECT audit_members(a.body) AS members OFFSET 0) AS r) AS m;
