-- Changes what viewers are told about the stream on a path.
--
-- Under races and retries: the caller says which stream and which revision it read; where either has moved on, nothing
-- changes and the caller reads again.
--
-- KEYS 1-7 as in transition.lua
-- ARGV 1 now, 2 path, 3 stream id, 4 revision that the change was made from, 5 info as JSON
-- Result: written, {record} | changed_meanwhile | other_source | not_held
-- Cost: O(1).

local stream_id, revision, info = ARGV[3], ARGV[4], ARGV[5]

local held = redis.call('HMGET', slot, 'id', 'revision')
if not held[1] then
  return { 'not_held' }
end
if held[1] ~= stream_id then
  return { 'other_source' }
end
if held[2] ~= revision then
  return { 'changed_meanwhile' }
end
redis.call('HSET', slot, 'info', info)
tell_change('updated', clock_ms())
return { 'written', redis.call('HGETALL', slot) }
