-- Each second of each worker: that it is there, what it knows; and forget what has lapsed.
--
-- KEYS[7]  workers by the unix time at which they were heard last
-- ARGV[1]  the worker; ARGV[2]: seconds until an allowance that is new counts as known by all
-- ARGV[3]  1 where it says what it knows: of each allowance the first characters of its fields, and for how long these
--          are kept, 0 for ever
--
-- Returns how many workers there were in the last ten minutes.

redis.call('ZADD', KEYS[7], string.format('%.3f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', string.format('(%.3f', now - 600))
redis.call('EXPIRE', KEYS[7], '1200')
if begun() then
  local mine = {}
  for i = 4, #ARGV, 2 do
    mine[ARGV[i]] = ARGV[i + 1]
  end
  local all = ARGV[3] == '1' and redis.call('HGETALL', KEYS[4]) or {}
  for i = 1, #all, 2 do
    local name = all[i]
    if not mine[name] then
      redis.call('HDEL', KEYS[4], name) -- calls of this worker are not drawn on it
    else
      local since, keeps = string.match(all[i + 1], '^(%S+) (%S+)$')
      if keeps ~= mine[name] then
        redis.call('HSET', KEYS[4], name, since .. ' ' .. mine[name])
      end
      mine[name] = nil
    end
  end
  for name, keeps in pairs(mine) do
    redis.call('HSET', KEYS[4], name, string.format('%.3f ', now + tonumber(ARGV[2])) .. keeps)
  end
  if now > tonumber(redis.call('HGET', KEYS[1], '^') or 0) then
    redis.call('HSET', KEYS[1], '^', string.format('%.0f', now))
  end
  for _, field in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', string.format('%.3f', now), 'LIMIT', 0, 500)) do
    redis.call('HDEL', KEYS[1], field, field .. 'h', field .. 'f', field .. 'a')
    redis.call('ZREM', KEYS[5], field)
  end
end
sweep(200)
-- All that counts is over by then, if no worker comes again.
for i = 1, 6 do
  redis.call('EXPIRE', KEYS[i], '34560000')
end
return redis.call('ZCARD', KEYS[7])
