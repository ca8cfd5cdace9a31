-- Fill a field: ARGV[1], its name; ARGV[2]: the token of the opening; ARGV[3]: what was spent before that; ARGV[4]: where
-- its window ends, where that is a slot of many, or nothing.
-- Returns by how much it had been too high, or nothing where the field does not wait for this.

local field = ARGV[1]
local have = redis.call('HMGET', KEYS[1], field, field .. 'f', field .. 'a')
local token, before = string.match(have[2] or '', '^(%S+) %S+ (%S+)$')
if token ~= ARGV[2] then
  return false
end

-- Whether it is one more window of those that are filled with 0, of the same filling.
local function joins()
  local start, stop, name = tonumber(string.sub(field, 26)), tonumber(ARGV[4]), zeros_of(field)
  local till, zeros = redis.call('ZSCORE', KEYS[5], field), redis.call('HGET', KEYS[1], name)
  if not stop or not till or have[1] or tonumber(ARGV[3]) ~= 0 or tonumber(have[3] or 0) ~= 0 then
    return false
  end
  local low, high = start, stop
  if zeros then
    low, high = string.match(zeros, '^(%d+) (%d+)$')
    low, high = tonumber(low), tonumber(high)
    if redis.call('ZSCORE', KEYS[5], name) ~= till then
      return false
    elseif start == high then
      high = stop
    elseif stop == low then
      low = start
    else
      return false
    end
  end
  redis.call('HSET', KEYS[1], name, string.format('%.0f %.0f', low, high))
  redis.call('ZADD', KEYS[5], till, name)
  redis.call('ZREM', KEYS[5], field)
  return true
end

local wrong = '0'
if before == '-' then
  if not joins() then
    redis.call('HSET', KEYS[1], field, ARGV[3])
    redis.call('HINCRBY', KEYS[1], field, have[3] or '0')
  end
else
  wrong = string.format('%.0f', tonumber(before) - tonumber(ARGV[3]))
  if have[1] or wrong ~= '0' then
    redis.call('HINCRBY', KEYS[1], field, ARGV[3])
    redis.call('HINCRBY', KEYS[1], field, string.format('%.0f', 0 - tonumber(before)))
  else
    redis.call('ZREM', KEYS[5], field)
  end
end
redis.call('HDEL', KEYS[1], field .. 'f', field .. 'a')
return wrong
