-- Let the holds in ARGV[2] and further live for ARGV[1] seconds. Returns how many are there.

local there = 0
for i = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[3], ARGV[i]) then
    there = there + 1
    redis.call('ZADD', KEYS[3], 'GT', string.format('%.3f', now + tonumber(ARGV[1])), ARGV[i])
  end
end
return there
