-- Stands before the scripts that know allowances. All of them have the same keys:
--
-- KEYS[1]  fields: of each field F what is spent; Fh, what is held; Ff, "token since before" while it is being filled
--          (before: what was spent then, - for a new field); Fa, what was posted to a new one since; #, the epoch; and ^,
--          the latest time at which fields were forgotten: a clock may be set back. And of a field without its start,
--          followed by z, "low high": windows that begin from low up to and without high are filled, with 0 where there
--          is no F. So what rolls in 25 slots is one field, and those in which something was spent
-- KEYS[2]  holds: "unix time of the admission field=amount field=amount ..."
-- KEYS[3]  holds by the unix time at which they end
-- KEYS[4]  known allowances: "since keeps"
-- KEYS[5]  fields by the unix time at which they are forgotten
-- KEYS[6]  positions of journals; and #, the epoch: where these differ, one of both was lost. An epoch is a token, an @
--          and the unix time at which it began
--
-- A field is 24 characters, of which the first 8 are of its allowance, a colon and the start of its window.

local time = redis.call('TIME')
local now = tonumber(time[1]) + time[2] / 1000000

local FIELDS, HOLDS = 2000000, 1000000

-- Whether one more field would be too many. What holds add to those that are there (Fh) is bounded by their number. there:
-- of those that are filled with 0, which were no fields up to now, and have a quarter more.
local function is_full(there)
  return redis.call('HLEN', KEYS[1]) >= FIELDS * (there and 1.25 or 1)
end

-- Nothing of this hold is held any more.
local function release(id)
  local hold = redis.call('HGET', KEYS[2], id)
  if hold then
    for field, amount in string.gmatch(hold, ' ([^ =]+)=(%d+)') do
      if redis.call('HINCRBY', KEYS[1], field .. 'h', '-' .. amount) <= 0 then
        redis.call('HDEL', KEYS[1], field .. 'h')
      end
    end
    redis.call('HDEL', KEYS[2], id)
    redis.call('ZREM', KEYS[3], id)
  end
  return hold
end

-- End some of the holds that have lapsed.
local function sweep(most)
  local lapsed = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.3f', now), 'LIMIT', 0, most)
  for _, id in ipairs(lapsed) do
    if not release(id) then
      redis.call('ZREM', KEYS[3], id)
    end
  end
end

local knows = {}
-- Since when all nodes know the allowance of a field, and for how long its fields are kept.
local function known(field)
  local name = string.sub(field, 1, 8)
  if knows[name] == nil then
    knows[name] = redis.call('HGET', KEYS[4], name)
  end
  if not knows[name] then
    return nil
  end
  local since, keeps = string.match(knows[name], '^(%S+) (%S+)$')
  return tonumber(since), tonumber(keeps)
end

-- Whether nothing was spent from a field that is not there.
local function begins_at_0(field, epoch, forgotten)
  local since, keeps
  if epoch then
    since, keeps = known(field)
  end
  local start = tonumber(string.sub(field, 26))
  return since and since <= start and (keeps == 0 or start + keeps > tonumber(forgotten or 0))
end

-- Whether this field is there though it is not listed. zeros: what is at its z, if anything is.
local function says_0(field, zeros)
  if not zeros then
    return false
  end
  local start = tonumber(string.sub(field, 26))
  local low, high = string.match(zeros, '^(%d+) (%d+)$')
  return start >= tonumber(low) and start < tonumber(high)
end

local function zeros_of(field)
  return string.sub(field, 1, 25) .. 'z'
end

-- The epoch, if there is one: what is of another one is forgotten.
local function begun()
  local one, other = redis.call('HGET', KEYS[1], '#'), redis.call('HGET', KEYS[6], '#')
  if one ~= other then
    redis.call('DEL', KEYS[1], KEYS[4], KEYS[5], KEYS[6])
    return false
  end
  return one
end
