-- Does what a stream's deadline is about: it never came online, or its key's time is over.
--
-- Under races and retries: whether anything is due is decided here, by the clock of Redis; a caller that comes early, late
-- or twice changes nothing.
--
-- KEYS 1-7 as in transition.lua
-- ARGV 1 now, 2 path
-- Result: ended, {record} | not_due | not_held
-- Cost: O(1).

local held = redis.call('HMGET', slot, 'id', 'state', 'deadline_ms', 'key_expires_ms')
local held_id, state, deadline_ms, key_expires_ms = unpack(held, 1, 4)
if not held_id then
  redis.call('ZREM', deadlines, path)
  return { 'not_held' }
end
local now = clock_ms()
if is_set(key_expires_ms) and tonumber(key_expires_ms) <= now then
  return { 'ended', end_held(now, 'key_expired', 'kick', '') }
end
if state == 'connecting' and tonumber(deadline_ms) <= now then
  return { 'ended', end_held(now, 'never_online', 'kick', '') }
end
schedule(deadline_ms, key_expires_ms)
return { 'not_due' }
