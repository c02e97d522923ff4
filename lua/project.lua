-- Brings what Postgres says of a stream key into Redis, and takes its stream off air if the key no longer admits.
--
-- Under races and retries: a projection that is older than the one in place changes nothing, so a slow writer never undoes a
-- revocation. From the moment this returns, no replica admits by a key that is not active. One of the same revision says the
-- same, and is written again all the same: where somebody tampered with what is in place, or Postgres was restored to an older
-- state and counts its changes anew, it says something else. What is revoked stays revoked, even where such a Postgres does not
-- know it any more. Revisions compare only within one memory: what was read from Postgres before Redis lost its memory is not
-- written into the next one, where the revocation that came in between may not be yet.
--
-- KEYS 1-7 as in transition.lua
--      8 key     hash
--      9 memory  hash  see check.lua
-- ARGV 1 now, 2 path, 3 key id, 4 status, 5 expires (ms) or empty, 6 revision, 7 broadcaster id, 8 on_conflict,
--      9 playback, 10 info as JSON, 11 the generation of the partition before Postgres was read
-- Result: written, {record of the stream that this ended} or {} | kept, revision in place | forgotten
-- Cost: O(1).

local key, memory = KEYS[8], KEYS[9]
local key_id, status, expires_ms, revision, broadcaster_id, on_conflict, playback, info =
  ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10]

local opened, closed = unpack(redis.call('HMGET', memory, 'opened', 'closed'), 1, 2)
if (opened or '') .. '/' .. (closed or '') ~= ARGV[11] then
  return { 'forgotten' }
end
local known_revision, known_status = unpack(redis.call('HMGET', key, 'revision', 'status'), 1, 2)
if known_revision then
  local is_newer = tonumber(known_revision) > tonumber(revision)
  if is_newer or (known_status == 'revoked' and status ~= 'revoked') then
    return { 'kept', known_revision }
  end
end
redis.call('HSET', key, 'id', key_id, 'path', path, 'status', status, 'expires_ms', expires_ms, 'revision', revision,
  'broadcaster_id', broadcaster_id, 'on_conflict', on_conflict, 'playback', playback, 'info', info)

local held = redis.call('HMGET', slot, 'key_id', 'deadline_ms', 'key_expires_ms', 'playback')
if held[1] ~= key_id then
  return { 'written', {} }
end
local now = clock_ms()
if status ~= 'active' then
  return { 'written', end_held(now, 'key_' .. status, 'kick', '') }
end
if expires_ms ~= '' and tonumber(expires_ms) <= now then
  return { 'written', end_held(now, 'key_expired', 'kick', '') }
end
if held[3] ~= expires_ms or held[4] ~= playback then
  redis.call('HSET', slot, 'key_expires_ms', expires_ms, 'playback', playback)
  schedule(held[2], expires_ms)
  tell_change('updated', now)
end
return { 'written', {} }
