-- Put ARGV[2] in the place of ARGV[1] at KEYS[1], to live for ARGV[3] milliseconds. Returns 1, or 0 when something else
-- is there.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
