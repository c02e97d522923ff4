-- A hook or a poll says that a source is online: its stream goes live.
--
-- Under races and retries: only the source that holds the path is confirmed, so a late word about an older stream
-- changes nothing. Confirming twice is one transition.
--
-- KEYS 1-7 as in transition.lua
-- ARGV 1 now, 2 path, 3 node, 4 source id, 5 source type, 6 tracks as JSON or empty: unknown
-- Result: confirmed | already_live | other_source (another one holds the path) | not_held
-- Cost: O(1).

local node, source_id, source_type, tracks = ARGV[3], ARGV[4], ARGV[5], ARGV[6]

local held = redis.call('HMGET', slot, 'source_id', 'node', 'state', 'key_expires_ms')
if not held[1] then
  return { 'not_held' }
end
if held[1] ~= source_id or held[2] ~= node then
  return { 'other_source' }
end
if held[3] == 'live' then
  return { 'already_live' }
end
local now = clock_ms()
redis.call('HSET', slot, 'state', 'live', 'live_ms', integer(now), 'deadline_ms', '', 'source_type', source_type)
if tracks ~= '' then
  redis.call('HSET', slot, 'tracks', tracks)
end
schedule('', held[4])
tell_change('confirmed', now)
return { 'confirmed' }
