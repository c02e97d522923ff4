-- Opens a partition that has back all that it must hold: from now on paths are taken in it.
--
-- Under races and retries: the token says which closing was mended. Where memory was lost again meanwhile, or the server is
-- another one, nothing is opened. Opening twice is opening once. Replicas that lua/check.lua knows of and that have not put back what they
-- remember are waited for, but not for long from the first try on: they may have died, or may not be able to.
--
-- KEYS 1 version  string
--      2 memory   hash    see check.lua
-- ARGV 1 token, 2 the newest epoch that the history knows, or 0
--      3 for how long others are waited for (ms)
-- Result: opened | awaited | lost_again
-- Cost: O(replicas), beside lua/server.lua.

local version, memory = KEYS[1], KEYS[2]
local token, epoch_max, patience_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

if redis.call('HGET', memory, 'closed') ~= token or not was_closed_here(token) then
  return { 'lost_again' }
end
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_ms = math.floor(now_us / 1000)

-- All notes are of this closing: the others went with theirs.
local notes, is_awaited = fields_of(memory, 'awaits:'), false
for _, state in pairs(notes) do
  is_awaited = is_awaited or state == 'no'
end
if is_awaited then
  local since = 'awaits:' .. token
  redis.call('HSETNX', memory, since, string.format('%.0f', now_ms))
  if math.abs(now_ms - tonumber(redis.call('HGET', memory, since))) < patience_ms then
    return { 'awaited' }
  end
end
for name in pairs(notes) do
  redis.call('HDEL', memory, 'awaits:' .. name)
end

-- Far beyond every epoch that was given out and every version that a reader knows, for readers who find a jump read the whole
-- partition: microseconds outrun the changes of a partition by far, also those since the last opening. Where the clock went
-- back, what is known is gone beyond.
local least = math.max(epoch_max, tonumber(redis.call('HGET', memory, 'version') or '0')) + 1000000
local opened = string.format('%.0f', math.max(now_us, least))
redis.call('SET', version, opened)
redis.call('HSET', memory, 'server', server, 'opened', opened .. ':' .. promotion, 'whole_ms', string.format('%.0f', now_ms))
redis.call('HDEL', memory, 'closed', 'version')
return { 'opened' }
