-- wrk -s load.lua URL -- BODY_FILE NAME=VALUE...   Each NAME=VALUE is a header. "@ID@" in the body becomes a number that
-- is new for each request. At the end one line: RESULT and a JSON object; times in microseconds.
local before, after, n = nil, nil, 10000000

function init(args)
  local file = assert(io.open(args[1]))
  local body = file:read("*a")
  file:close()
  for i = 2, #args do
    local name, value = args[i]:match("([^=]+)=(.*)")
    wrk.headers[name] = value
  end
  body = body:gsub("@ID@", tostring(n))
  before = wrk.format("POST", nil, nil, body)
  local first, last = before:find(tostring(n), 1, true)
  if first then
    before, after = before:sub(1, first - 1), before:sub(last + 1)
  end
end

function request()
  if not after then return before end
  n = n + 1
  return before .. n .. after
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('RESULT {"requests": %d, "duration": %d, "p50": %d, "p99": %d, "bytes": %d, "errors": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), summary.bytes,
    e.connect + e.read + e.write + e.status + e.timeout))
end
