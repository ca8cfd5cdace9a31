-- Take every charge, or none: GCRA, on the server's own clock.
--
-- KEYS[1]  the answer to this very admission, while it may be asked for again
-- KEYS[2]  and further: the theoretical arrival time (TAT) of each charge's bucket
-- ARGV[1]  milliseconds that the answer is kept
-- ARGV[2]  and further, two of each charge: the seconds that it takes, and how far ahead of now its TAT may be
--
-- Returns numbers with spaces between: the charge that did not fit, from 0, or -1; then for each how many seconds its
-- TAT is ahead of now.

local said = redis.call('GET', KEYS[1])
if said then
  return said
end
-- Seconds since 2026 UTC: smaller numbers leave more of a double for what is behind the point.
local time = redis.call('TIME')
local now = (time[1] - 1767225600) + time[2] / 1000000

local charges = #KEYS - 1
local tats = redis.call('MGET', unpack(KEYS, 2))
local before, after = {}, {}
local refused = -1
for i = 1, charges do
  local tat = tats[i] and tonumber(tats[i]) or now
  local takes = tonumber(ARGV[2 * i])
  before[i] = math.max(tat - now, 0)
  after[i] = before[i] + takes
  if takes > 0 and after[i] > tonumber(ARGV[2 * i + 1]) + 0.000001 and refused < 0 then
    refused = i - 1
  end
end

local behind = refused < 0 and after or before
local words = {tostring(refused)}
for i = 1, charges do
  words[i + 1] = string.format('%.9f', behind[i])
end
local answer = table.concat(words, ' ')
if refused < 0 then
  for i = 1, charges do
    if after[i] > before[i] then
      local lives = string.format('%.0f', math.ceil(after[i] * 1000) + 1)
      redis.call('SET', KEYS[i + 1], string.format('%.17g', now + after[i]), 'PX', lives)
    end
  end
  redis.call('SET', KEYS[1], answer, 'PX', ARGV[1])
end
return answer
