-- Notes what the poller saw of a stream when it changed: stalled or delivering again, node unreachable or back, tracks,
-- the source's exact type. No transition, so no event; but the list shows it, so the version moves.
--
-- Under races and retries: only about the source that holds the path. Writing the same twice changes nothing. A poller that
-- slept through its lease is told from its successor by the fencing token: once that has written, it writes nothing.
--
-- KEYS 1-7 as in transition.lua
-- ARGV 1 now, 2 path, 3 node, 4 source id, 5 fencing token of the node's lease
--      6.. field, value, field, value ... of stalled_ms, stale_ms, tracks, source_type
-- Result: written | other_source | not_held | fenced
-- Cost: O(fields), at most four.

local node, source_id, token = ARGV[3], ARGV[4], ARGV[5]

local held = redis.call('HMGET', slot, 'source_id', 'node', 'watch_token')
if not held[1] then
  return { 'not_held' }
end
if held[1] ~= source_id or held[2] ~= node then
  return { 'other_source' }
end
if held[3] and tonumber(held[3]) > tonumber(token) then
  return { 'fenced' }
end
redis.call('HSET', slot, 'watch_token', token, unpack(ARGV, 6))
bump_version()
return { 'written' }
