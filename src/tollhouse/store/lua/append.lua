-- Append ARGV[1] to the stream KEYS[1], of which about the newest ARGV[3] are kept, for ARGV[2] milliseconds from now on.

redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'v', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
