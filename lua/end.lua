-- Ends the stream that holds a path, if it is still the one that the caller means.
--
-- Under races and retries: the caller names the source or the stream; a word about another one changes nothing. Ending
-- twice is one event, because after the first time the path is free or another's.
--
-- KEYS 1-7 as in transition.lua
--      8 cooldown  string  closes the path for a while after a stop
-- ARGV 1 now, 2 path
--      3 'source_id' or 'id': what the caller knows   4 its value   5 node, or empty: any
--      6 reason   7 'kick' or 'gone': whether the source may still be connected
--      8 cooldown (ms), 0 for none   9 the poller's last word as JSON, or empty
-- Result: ended, {record} | other_source | not_held
-- Cost: O(1).

local cooldown = KEYS[8]
local field, value, node, reason, after, cooldown_ms, progress =
  ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8]), ARGV[9]

local held = redis.call('HMGET', slot, field, 'node')
if not held[1] then
  return { 'not_held' }
end
if held[1] ~= value or (node ~= '' and held[2] ~= node) then
  return { 'other_source' }
end
local now = clock_ms()
if cooldown_ms > 0 then
  redis.call('SET', cooldown, integer(now + cooldown_ms), 'PX', integer(cooldown_ms))
end
return { 'ended', end_held(now, reason, after, progress) }
