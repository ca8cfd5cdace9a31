-- What is at KEYS[1]. Where nothing is, ARGV[1] is put there, to live for ARGV[2] milliseconds, and nothing is returned;
-- "" where the server is full. What is ARGV[1] already was put there by a call whose answer was lost.

local there = redis.call('GET', KEYS[1])
if there then
  if there == ARGV[1] then
    return false
  end
  return there
end
local put = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if put.err then
  if string.find(put.err, 'OOM', 1, true) then
    return ''
  end
  return put
end
return false
