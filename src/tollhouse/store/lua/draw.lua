-- Hold every draw and take every charge, or none.
--
-- KEYS[7]  and further: the TAT of each charge's bucket
-- ARGV[1]  the hold's id; ARGV[2]: seconds that it lives; ARGV[3]: 1 lets a hold have these amounts in all (top up)
-- ARGV[4]  number of charges; ARGV[5]: number of draws
-- ARGV[6]  and further, two of each charge: the seconds that it takes, and how far ahead of now its TAT may be
-- then of each draw: amount; limit or nothing; start and end of the window, 0 for none; 1 where it is kept; the unix
--          time until which, or nothing; its field without the start; the number of earlier slots; and their starts
--
-- Returns words with spaces between: a (admitted), c (that charge does not fit), d (draw), w (window) or o (open);
-- which, from 0; the time of admission; the number of charges, and how many seconds ahead of now each TAT is; and what
-- is spent and held of each draw.

local id, top = ARGV[1], ARGV[3] == '1'
local charges, draws = tonumber(ARGV[4]), tonumber(ARGV[5])
sweep(16)

local at = string.format('%.6f', now)
local mine = {}
local hold = redis.call('HGET', KEYS[2], id)
if hold then
  at = string.match(hold, '^%S+')
  for field, amount in string.gmatch(hold, ' ([^ =]+)=(%d+)') do
    mine[field] = tonumber(amount)
  end
end

local wanted, list = {'#', '^'}, {}
local next = 6 + 2 * charges
for i = 1, draws do
  local base, earlier = ARGV[next + 6], tonumber(ARGV[next + 7])
  local draw = {
    amount = tonumber(ARGV[next]), limit = tonumber(ARGV[next + 1]), start = tonumber(ARGV[next + 2]),
    stop = tonumber(ARGV[next + 3]), kept = ARGV[next + 4] == '1', till = ARGV[next + 5],
    field = base .. ARGV[next + 2],
  }
  if earlier > 0 then
    wanted[#wanted + 1] = base .. 'z'
    draw.zeros = #wanted
  end
  draw.first = #wanted + 1
  for k = 1, earlier do
    local field = base .. ARGV[next + 7 + k]
    wanted[#wanted + 1] = field
    wanted[#wanted + 1] = field .. 'h'
  end
  wanted[#wanted + 1] = draw.field
  wanted[#wanted + 1] = draw.field .. 'h'
  draw.last = #wanted - 1
  list[i] = draw
  next = next + 8 + earlier
end
local have = redis.call('HMGET', KEYS[1], unpack(wanted))

local used, behind = {}, {}
local function answer(what, which)
  local words = {what, which, at, #behind}
  for i = 1, #behind do
    words[#words + 1] = string.format('%.9f', behind[i])
  end
  for i = 1, #used do
    words[#words + 1] = string.format('%.0f', used[i])
  end
  return table.concat(words, ' ')
end

local again = hold and not top
for i, draw in ipairs(list) do
  if not again and not top and draw.stop > 0 and (now < draw.start or now >= draw.stop) then
    used = {}
    return answer('w', i - 1)
  end
  local sum = 0
  for k = draw.first, draw.last, 2 do
    if not have[k] and draw.kept and not again and not says_0(wanted[k], have[draw.zeros])
      and not begins_at_0(wanted[k], have[1], have[2]) then
      if not top or (k == draw.last and not (draw.stop > 0 and draw.stop <= now)) then
        used = {}
        return answer('o', i - 1)
      elseif k == draw.last then
        draw.gone = true
      end
    end
    sum = sum + tonumber(have[k] or 0) + tonumber(have[k + 1] or 0)
  end
  used[i] = sum
end

for i, draw in ipairs(list) do
  draw.more = (again or draw.gone) and 0 or draw.amount - (mine[draw.field] or 0)
  if draw.more > 0 and draw.limit and used[i] + draw.more > draw.limit then
    return answer('d', i - 1)
  end
end

-- What is there goes on being drawn on, however full it is.
local adds, lists = false, false
for _, draw in ipairs(list) do
  if draw.more > 0 and not have[draw.last] then
    if says_0(draw.field, have[draw.zeros]) then
      lists = true
    elseif draw.kept or not have[draw.last + 1] then
      adds = true
    end
  end
end
if not hold and redis.call('HLEN', KEYS[2]) >= HOLDS or adds and is_full() or lists and is_full(true) then
  return redis.error_reply('FULL there are more allowances than are kept')
end

local after = {}
if charges > 0 then
  -- Seconds since 2026 UTC: smaller numbers leave more of a double for what is behind the point.
  local epoch = now - 1767225600
  local tats = redis.call('MGET', unpack(KEYS, 7))
  local refused = -1
  for i = 1, charges do
    local tat = tats[i] and tonumber(tats[i]) or epoch
    local takes = tonumber(ARGV[4 + 2 * i])
    behind[i] = math.max(tat - epoch, 0)
    after[i] = behind[i] + (again and 0 or takes)
    if not again and takes > 0 and after[i] > tonumber(ARGV[5 + 2 * i]) + 0.000001 and refused < 0 then
      refused = i - 1
    end
  end
  if refused >= 0 then
    return answer('c', refused)
  end
  for i = 1, charges do
    if after[i] > behind[i] then
      local lives = string.format('%.0f', math.ceil(after[i] * 1000) + 1)
      redis.call('SET', KEYS[6 + i], string.format('%.17g', epoch + after[i]), 'PX', lives)
    end
  end
  behind = after
end
if again then
  return answer('a', -1)
end

for i, draw in ipairs(list) do
  if draw.more > 0 then
    if draw.kept and not have[draw.last] then
      redis.call('HSET', KEYS[1], draw.field, '0')
      if draw.till ~= '' then
        redis.call('ZADD', KEYS[5], draw.till, draw.field)
        local till = have[draw.zeros] and redis.call('ZSCORE', KEYS[5], zeros_of(draw.field))
        if till and tonumber(till) > tonumber(draw.till) then
          redis.call('ZADD', KEYS[5], till, draw.field) -- or it would be taken for 0 in between
        end
      end
    end
    redis.call('HINCRBY', KEYS[1], draw.field .. 'h', string.format('%.0f', draw.more))
    mine[draw.field] = (mine[draw.field] or 0) + draw.more
    used[i] = used[i] + draw.more
  end
end
local words = {at}
for field, amount in pairs(mine) do
  words[#words + 1] = field .. '=' .. string.format('%.0f', amount)
end
redis.call('HSET', KEYS[2], id, table.concat(words, ' '))
redis.call('ZADD', KEYS[3], hold and 'GT' or 'CH', string.format('%.3f', now + tonumber(ARGV[2])), id)
return answer('a', -1)
