-- Say which fields are to be filled, and that somebody does it now.
--
-- ARGV[1]  a token; ARGV[2]: 1 for those that are filled too; ARGV[3]: seconds in which whoever began is to have done it
-- ARGV[4]  the number of fields; then of each its name and the unix time until which it is kept, or nothing
-- then of each journal its name and where the ledger is with it: where a store that was empty begins
--
-- Returns the numbers of the fields, from 0, with spaces between; the seconds since the epoch began; then each journal and
-- its position.

local epoch = begun()
local fields = tonumber(ARGV[4])
if not epoch then
  epoch = ARGV[1] .. string.format('@%.3f', now)
  redis.call('HSET', KEYS[1], '#', epoch)
  redis.call('HSET', KEYS[6], '#', epoch)
  local next = 5 + 2 * fields
  while ARGV[next] do
    redis.call('HSETNX', KEYS[6], ARGV[next], ARGV[next + 1])
    next = next + 2
  end
end
local forgotten = redis.call('HGET', KEYS[1], '^')
local full = is_full()
local opened = {}
for i = 1, fields do
  local field, till = ARGV[3 + 2 * i], ARGV[4 + 2 * i]
  local have = redis.call('HMGET', KEYS[1], field, field .. 'f', zeros_of(field))
  local there = have[1] or says_0(field, have[3]) and '0'
  local is_due = there and ARGV[2] == '1' or not there and not begins_at_0(field, epoch, forgotten)
  if is_due and have[2] then
    local token, since = string.match(have[2], '^(%S+) (%S+) ')
    since = tonumber(since)
    is_due = token == ARGV[1] or now < since or now - since >= tonumber(ARGV[3])
  end
  if is_due then
    if full and not there and not have[2] then
      return redis.error_reply('FULL there are more allowances than are kept')
    end
    redis.call('HSET', KEYS[1], field .. 'f', ARGV[1] .. string.format(' %.3f ', now) .. (there or '-'))
    if not there then
      redis.call('HSET', KEYS[1], field .. 'a', '0')
    end
    if not have[1] and till ~= '' then
      redis.call('ZADD', KEYS[5], till, field)
    end
    opened[#opened + 1] = tostring(i - 1)
  end
end
local answer = redis.call('HGETALL', KEYS[6])
table.insert(answer, 1, table.concat(opened, ' '))
table.insert(answer, 2, string.format('%.3f', now - tonumber(string.match(epoch, '@(.*)$') or 0)))
return answer
