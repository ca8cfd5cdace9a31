-- Move buckets by what calls came to in the end, once for each batch of a worker.
--
-- KEYS[1]  the number of the last batch of this worker
-- KEYS[2]  and further: the TAT of each bucket
-- ARGV[1]  the number of this batch; ARGV[2]: milliseconds that it is remembered
-- ARGV[3]  and further: seconds that each TAT is moved by; below 0 is given back
--
-- Returns 1, or 0 for a batch that was settled before.

local last = tonumber(redis.call('GET', KEYS[1]) or '0')
if last >= tonumber(ARGV[1]) then
  return 0
end
local time = redis.call('TIME')
local now = (time[1] - 1767225600) + time[2] / 1000000

local tats = redis.call('MGET', unpack(KEYS, 2))
for i = 1, #KEYS - 1 do
  local tat = tats[i] and tonumber(tats[i]) or now
  local seconds = tonumber(ARGV[i + 2])
  if tat < now then
    tat = now
  end
  local ahead = tat + seconds - now
  if ahead > 0 then
    local lives = string.format('%.0f', math.ceil(ahead * 1000) + 1)
    redis.call('SET', KEYS[i + 1], string.format('%.17g', now + ahead), 'PX', lives)
  elseif tats[i] then
    redis.call('DEL', KEYS[i + 1])
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
