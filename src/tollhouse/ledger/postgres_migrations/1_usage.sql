-- Usage. Times are microseconds since 1970, UTC. What many calls have in common, the labels, is stored once and named by
-- a number; a call's row is that number and what is its own.

CREATE TABLE journals (
  number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  journal text NOT NULL UNIQUE,
  seq bigint NOT NULL DEFAULT 0,   -- the last one stored; 0: the journal is shipped whole
  last bigint NOT NULL DEFAULT 0,  -- the last one ever stored
  last_at bigint NOT NULL DEFAULT 0 -- when that was
);

CREATE TABLE usage_labels (
  labels bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  digest bytea NOT NULL UNIQUE,
  outcome text NOT NULL, reason text NOT NULL, status bigint NOT NULL, attempt bigint NOT NULL,
  org text NOT NULL, team text NOT NULL, "user" text NOT NULL, key text NOT NULL, agent text NOT NULL,
  route text NOT NULL, dialect text NOT NULL, operation text NOT NULL,
  model_asked text NOT NULL, model_answered text NOT NULL, provider text NOT NULL, backend text NOT NULL,
  server text NOT NULL, tool text NOT NULL, estimated smallint NOT NULL, stream smallint NOT NULL,
  tags text NOT NULL, guard text NOT NULL, cached text NOT NULL
);

-- By month of admission, so that old ones go as a whole. What has no month of its own is in usage_facts_default.
CREATE TABLE usage_facts (
  journal bigint NOT NULL, seq bigint NOT NULL, labels bigint NOT NULL,
  admitted_at bigint NOT NULL, ended_at bigint NOT NULL, request_id text NOT NULL,
  input bigint NOT NULL DEFAULT 0, output bigint NOT NULL DEFAULT 0,
  cache_read bigint NOT NULL DEFAULT 0, cache_write bigint NOT NULL DEFAULT 0, reasoning bigint NOT NULL DEFAULT 0,
  cost_nano bigint,
  ttft_us bigint NOT NULL DEFAULT 0, total_us bigint NOT NULL DEFAULT 0, upstream_us bigint NOT NULL DEFAULT 0,
  bytes_in bigint NOT NULL DEFAULT 0, bytes_out bigint NOT NULL DEFAULT 0,
  cache_write_1h bigint NOT NULL DEFAULT 0, audio_input bigint NOT NULL DEFAULT 0,
  audio_output bigint NOT NULL DEFAULT 0, image_input bigint NOT NULL DEFAULT 0, image_output bigint NOT NULL DEFAULT 0,
  run_id text NOT NULL DEFAULT '', parent_id text NOT NULL DEFAULT '', hold text NOT NULL DEFAULT '',
  held_nano bigint NOT NULL DEFAULT 0, saved_nano bigint NOT NULL DEFAULT 0, withheld_tokens bigint NOT NULL DEFAULT 0,
  adjust_of text NOT NULL DEFAULT '', repriced smallint NOT NULL DEFAULT 0,
  PRIMARY KEY (admitted_at, journal, seq)
) PARTITION BY RANGE (admitted_at);
CREATE INDEX usage_runs ON usage_facts (run_id) WHERE run_id <> '';
CREATE INDEX usage_adjusts ON usage_facts (adjust_of) WHERE adjust_of <> '';
CREATE TABLE usage_facts_default PARTITION OF usage_facts DEFAULT;

-- What records drew on allowances.
CREATE TABLE usage_draws (
  field text COLLATE "C" NOT NULL, journal bigint NOT NULL, seq bigint NOT NULL, admitted_at bigint NOT NULL,
  amount bigint NOT NULL,
  PRIMARY KEY (field, journal, seq, admitted_at)
) PARTITION BY RANGE (admitted_at);
CREATE INDEX usage_draws_in_order ON usage_draws (journal, seq);
CREATE TABLE usage_draws_default PARTITION OF usage_draws DEFAULT;

-- Sums by hour (hours since 1970) and labels.
CREATE TABLE usage_sums (
  hour bigint NOT NULL, labels bigint NOT NULL,
  requests bigint NOT NULL, input bigint NOT NULL, output bigint NOT NULL, cache_read bigint NOT NULL,
  cache_write bigint NOT NULL, reasoning bigint NOT NULL, cost_nano bigint NOT NULL, unpriced bigint NOT NULL,
  cache_write_1h bigint NOT NULL, audio_input bigint NOT NULL, audio_output bigint NOT NULL,
  image_input bigint NOT NULL, image_output bigint NOT NULL, saved_nano bigint NOT NULL, withheld bigint NOT NULL,
  PRIMARY KEY (hour, labels)
) WITH (fillfactor = 60);

CREATE TABLE rejected (
  journal text NOT NULL, seq bigint NOT NULL, kind integer NOT NULL, body bytea NOT NULL, why text NOT NULL,
  at bigint NOT NULL,
  PRIMARY KEY (journal, seq)
);

CREATE VIEW usage AS SELECT
  lpad(to_hex(f.admitted_at / 1000 >> 16), 8, '0') || '-' || lpad(to_hex(f.admitted_at / 1000 & 65535), 4, '0')
    || '-7' || lpad(to_hex(f.seq >> 22 & 4095), 3, '0') || '-' || lpad(to_hex(32768 | (f.seq >> 8 & 16383)), 4, '0')
    || '-' || lpad(to_hex(f.seq & 255), 2, '0') || substr(j.journal, 1, 10) AS id,
  j.journal, f.seq, f.admitted_at, f.ended_at, f.request_id,
  f.input, f.output, f.cache_read, f.cache_write, f.reasoning, f.cost_nano,
  f.ttft_us, f.total_us, f.upstream_us, f.bytes_in, f.bytes_out,
  f.cache_write_1h, f.audio_input, f.audio_output, f.image_input, f.image_output,
  f.run_id, f.parent_id, f.hold, f.held_nano, f.saved_nano, f.withheld_tokens,
  coalesce((SELECT json_agg(json_build_array(d.field, d.amount) ORDER BY d.field)::text FROM usage_draws d
    WHERE d.journal = f.journal AND d.seq = f.seq AND d.admitted_at = f.admitted_at), '[]') AS draws,
  f.adjust_of, f.repriced,
  l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l."user", l.key, l.agent, l.route, l.dialect, l.operation,
  l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream,
  l.tags, l.guard, l.cached
  FROM usage_facts f JOIN usage_labels l ON l.labels = f.labels JOIN journals j ON j.number = f.journal;

CREATE VIEW usage_hour AS SELECT
  s.hour, l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l."user", l.key, l.agent, l.route, l.dialect,
  l.operation, l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream,
  l.tags, l.guard, l.cached,
  s.requests, s.input, s.output, s.cache_read, s.cache_write, s.reasoning, s.cost_nano, s.unpriced,
  s.cache_write_1h, s.audio_input, s.audio_output, s.image_input, s.image_output, s.saved_nano, s.withheld
  FROM usage_sums s JOIN usage_labels l ON l.labels = s.labels;

CREATE VIEW draws AS SELECT d.field, j.journal, d.seq, d.amount,
  CASE WHEN f.adjust_of = '' THEN coalesce(nullif(f.hold, ''), f.request_id) ELSE '' END AS hold
  FROM usage_draws d JOIN journals j ON j.number = d.journal
  LEFT JOIN usage_facts f ON f.admitted_at = d.admitted_at AND f.journal = d.journal AND f.seq = d.seq;
