-- Opens a partition that has back all that it must hold: from now on paths are taken in it.
--
-- Under races and retries: the token says which closing was mended. Where memory was lost again meanwhile, or the server is
-- another one, nothing is opened. Opening twice is opening once.
--
-- KEYS 1 version  string
--      2 memory   hash
-- ARGV 1 token, 2 the newest epoch that the history knows, or 0
-- Result: opened | lost_again
-- Cost: O(1), beside lua/server.lua.

local version, memory = KEYS[1], KEYS[2]
local token, epoch_max = ARGV[1], tonumber(ARGV[2])

if redis.call('HGET', memory, 'closed') ~= token or not was_closed_here(token) then
  return { 'lost_again' }
end
-- Far beyond every epoch that was given out and every version that a reader knows, for readers who find a jump read the whole
-- partition: microseconds outrun the changes of a partition by far, also those since the last opening. Where the clock went
-- back, what is known is gone beyond.
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local least = math.max(epoch_max, tonumber(redis.call('HGET', memory, 'version') or '0')) + 1000000
local opened = string.format('%.0f', math.max(now_us, least))
redis.call('SET', version, opened)
redis.call('HSET', memory, 'server', server, 'opened', opened .. ':' .. promotion, 'whole_ms', string.format('%.0f', math.floor(now_us / 1000)))
redis.call('HDEL', memory, 'closed', 'version')
return { 'opened' }
