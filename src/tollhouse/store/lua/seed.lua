-- Fill a field: ARGV[1], its name; ARGV[2]: the token of the opening; ARGV[3]: what was spent before that.
-- Returns by how much it had been too high, or nothing where the field does not wait for this.

local field = ARGV[1]
local have = redis.call('HMGET', KEYS[1], field, field .. 'f', field .. 'a')
local token, before = string.match(have[2] or '', '^(%S+) %S+ (%S+)$')
if token ~= ARGV[2] then
  return false
end
local wrong = '0'
if before == '-' then
  redis.call('HSET', KEYS[1], field, ARGV[3])
  redis.call('HINCRBY', KEYS[1], field, have[3] or '0')
else
  wrong = string.format('%.0f', tonumber(before) - tonumber(ARGV[3]))
  redis.call('HINCRBY', KEYS[1], field, ARGV[3])
  redis.call('HINCRBY', KEYS[1], field, string.format('%.0f', 0 - tonumber(before)))
end
redis.call('HDEL', KEYS[1], field .. 'f', field .. 'a')
return wrong
