-- Puts an open stream that the history or a replica remembers back on its path, after Redis has lost its memory. Where its
-- key no longer admits, it ends here and now, and its source is owed a kick.
--
-- Under races and retries: restoring twice is restoring once. A revocation comes either before, and is found in the key, or
-- after, and finds the stream. In an open partition a held path stays as it is. In a closed one, where nobody is admitted,
-- several replicas bring what they remember, in any order: of two streams the one with the higher epoch stays, of one stream
-- the state with the higher revision.
--
-- KEYS 1-7 as in transition.lua
--      8 key     hash  the stream's key, which has to be there
--      9 memory  hash  see check.lua
-- ARGV 1 now, 2 path, 3 stream id, 4 epoch, 5 revision
--      6 for how long a connecting stream is waited for from now on (ms)
--      7 'history' or 'replica': who remembers it. The history learns what only a replica remembers
--      8.. the slot's fields and values
-- Result: restored | ended, {record} | key_absent | held, stream id, epoch and revision of the holder
-- Cost: O(1).

local key, memory = KEYS[8], KEYS[9]
local id, epoch, revision, connecting_ms, remembered_by = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]

local status, expires_ms, playback = unpack(redis.call('HMGET', key, 'status', 'expires_ms', 'playback'), 1, 3)
if not status then
  return { 'key_absent' }
end

local now = clock_ms()
local held_id, held_epoch, held_revision = unpack(redis.call('HMGET', slot, 'id', 'epoch', 'revision'), 1, 3)
if held_id then
  local is_newer = tonumber(held_epoch) < tonumber(epoch)
  if held_id == id then
    is_newer = tonumber(held_revision) < tonumber(revision)
  end
  if not is_closed() or not is_newer then
    return { 'held', held_id, held_epoch, held_revision }
  end
  if held_id == id then
    redis.call('DEL', slot)
  else
    end_held(now, 'lost', 'kick', '')
  end
end

redis.call('HSET', slot, unpack(ARGV, 8))
-- The key knows better than the stream, whose last change may be lost.
redis.call('HSET', slot, 'key_expires_ms', expires_ms, 'playback', playback)
local deadline_ms = ''
if redis.call('HGET', slot, 'state') == 'connecting' then
  deadline_ms = integer(now + connecting_ms)
  redis.call('HSET', slot, 'deadline_ms', deadline_ms)
end
redis.call('ZADD', live, epoch, path)
schedule(deadline_ms, expires_ms)

-- Later epochs of the partition are versions: they have to be greater than this one.
local bumped = bump_version()
if not bumped then
  local least = math.max(tonumber(epoch), tonumber(redis.call('HGET', memory, 'version') or '0'))
  redis.call('HSET', memory, 'version', integer(least))
elseif bumped < tonumber(epoch) then
  redis.call('SET', version, epoch)
  bump_version()
end

if status ~= 'active' then
  return { 'ended', end_held(now, 'key_' .. status, 'kick', '') }
end
if expires_ms ~= '' and tonumber(expires_ms) <= now then
  return { 'ended', end_held(now, 'key_expired', 'kick', '') }
end
if remembered_by == 'replica' then
  tell('updated', now, redis.call('HGETALL', slot))
end
return { 'restored' }
