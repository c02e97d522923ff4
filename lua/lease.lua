-- Takes or renews the right to do one job, for a limited time.
--
-- Under races and retries: one holder at a time. The fencing token grows with every change of holder, even over a Redis
-- that lost its memory, so that a holder who slept through its lease can be told from its successor.
--
-- KEYS 1 lease  hash  holder, token; expires
-- ARGV 1 holder, 2 for how long (ms)
-- Result: held, token | other, for how long still (ms)
-- Cost: O(1).

local lease = KEYS[1]
local holder, ttl_ms = ARGV[1], ARGV[2]

local current = redis.call('HMGET', lease, 'holder', 'token')
if current[1] and current[1] ~= holder then
  return { 'other', string.format('%.0f', redis.call('PTTL', lease)) }
end
local token = current[2]
if not token then
  local time = redis.call('TIME')
  token = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
end
redis.call('HSET', lease, 'holder', holder, 'token', token)
redis.call('PEXPIRE', lease, ttl_ms)
return { 'held', token }
