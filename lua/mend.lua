-- Makes the lists of a partition agree with what holds a path: for what no transition can have brought about.
--
-- Under races and retries: it writes what follows from the slot, so doing it twice is doing it once.
--
-- KEYS 1-7 as in transition.lua
-- ARGV 1 now, 2 path, 3 the least revision that the history takes for news, where it has to be told, or empty
-- Result: held | not_held
-- Cost: O(1).

local held = redis.call('HMGET', slot, 'epoch', 'deadline_ms', 'key_expires_ms', 'revision')
if held[1] then
  redis.call('ZADD', live, held[1], path)
  schedule(held[2], held[3])
  if ARGV[3] ~= '' then
    redis.call('HSET', slot, 'revision', integer(math.max(tonumber(held[4]), tonumber(ARGV[3]))))
    tell('updated', clock_ms(), redis.call('HGETALL', slot))
  end
else
  redis.call('ZREM', live, path)
  redis.call('ZREM', deadlines, path)
end
bump_version()
return { held[1] and 'held' or 'not_held' }
