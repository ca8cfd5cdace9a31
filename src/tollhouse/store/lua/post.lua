-- What calls came to, in the order of their journal.
--
-- ARGV[1]  the journal; ARGV[2]: the position that these come after; ARGV[3]: the one that they lead to
-- ARGV[4]  and further, of each call: its seq, the hold's id, the number of fields; and of each field, its amount
--
-- Returns the position. One below ARGV[2] says that the store has lost something: then nothing was done.

local previous, last = tonumber(ARGV[2]), tonumber(ARGV[3])
local epoch = begun()
local there = redis.call('HGET', KEYS[6], ARGV[1])
local position = tonumber(there or (epoch and '0' or ARGV[2]))
if position < previous then
  if not there then
    redis.call('HSET', KEYS[6], ARGV[1], '0')
  end
  return position
end

local forgotten = redis.call('HGET', KEYS[1], '^')
local next = 4
while ARGV[next] do
  local seq, id, fields = tonumber(ARGV[next]), ARGV[next + 1], tonumber(ARGV[next + 2])
  next = next + 3
  if seq > position then
    if id ~= '' then
      release(id)
    end
    for k = 0, fields - 1 do
      local field, amount = ARGV[next + 2 * k], ARGV[next + 2 * k + 1]
      local have = redis.call('HMGET', KEYS[1], field, field .. 'a', zeros_of(field))
      if have[1] then
        redis.call('HINCRBY', KEYS[1], field, amount)
      elseif have[2] then
        redis.call('HINCRBY', KEYS[1], field .. 'a', amount)
      elseif says_0(field, have[3]) then
        redis.call('HINCRBY', KEYS[1], field, amount)
        local till = redis.call('ZSCORE', KEYS[5], zeros_of(field))
        if till then -- a server that evicts keys may have lost it: an error here would count the amount again and again
          redis.call('ZADD', KEYS[5], till, field)
        end
      elseif begins_at_0(field, epoch, forgotten) then
        local _, keeps = known(field)
        local till = tonumber(string.sub(field, 26)) + keeps
        if keeps == 0 or till > now then
          redis.call('HSET', KEYS[1], field, amount)
          if keeps > 0 then
            redis.call('ZADD', KEYS[5], string.format('%.0f', till), field)
          end
        end
      end
    end
  end
  next = next + 2 * fields
end
if last > position then
  redis.call('HSET', KEYS[6], ARGV[1], ARGV[3])
  position = last
end
return position
