-- Take away what is left of buckets: others have given what came back meanwhile.
--
-- KEYS     the TAT of each bucket
-- ARGV     of each, how far ahead of now its TAT may be: that far it is then
--
-- Returns 1.

local time = redis.call('TIME')
local now = (time[1] - 1767225600) + time[2] / 1000000

local tats = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
  local tat = math.max(tats[i] and tonumber(tats[i]) or now, now + tonumber(ARGV[i]))
  local lives = string.format('%.0f', math.ceil((tat - now) * 1000) + 1)
  redis.call('SET', KEYS[i], string.format('%.17g', tat), 'PX', lives)
end
return 1
