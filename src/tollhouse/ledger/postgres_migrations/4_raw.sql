-- What a provider told of tokens, where that was not believed.

ALTER TABLE usage_facts ADD COLUMN raw_usage text NOT NULL DEFAULT '';

-- Replaced, so that it keeps its rights, and who uses it: what is new stands at the end.
CREATE OR REPLACE VIEW usage AS SELECT
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
  l.tags, l.guard, l.cached,
  f.raw_usage
  FROM usage_facts f JOIN usage_labels l ON l.labels = f.labels JOIN journals j ON j.number = f.journal;
