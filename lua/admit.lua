-- Decides whether a source may publish on a path, and takes the path for it.
--
-- Under races and retries: one script runs at a time, so of any number of callers one takes a free path. The same source
-- asking again is admitted again and changes nothing. A dead holder is ended in the same step in which the newcomer takes
-- its place, so a path never has two streams. A server that was started or promoted since the partition was opened may lack
-- the last of what its predecessor knew: it admits nobody, whoever asks and however its connection came about.
--
-- KEYS 1-7 as in transition.lua
--      8 key       hash    what admission must know of the stream key
--      9 cooldown  string  until when (ms) the path is closed after a stop; expires by itself
--      10 memory   hash    see check.lua
-- ARGV 1 now, 2 path
--      3 node   4 source id, or empty: only check, claim nothing   5 publisher: protocol, address, user agent as JSON
--      6 stream id for a new stream   7 connecting timeout (ms)   8 what INFO says of the replication, from each.lua alone
-- Result: a word, the key's id, and what belongs to the word
--      admitted, key id, stream id, epoch, {ended stream's record} or {}
--      admitted_again, key id, stream id, epoch
--      checked, key id
--      key_absent                    Redis does not hold the key: this is no refusal yet
--      closed                        the partition does not hold all that it must: nothing can be said, nothing was changed
--      path_mismatch | key_revoked | key_disabled, key id
--      key_expired, key id, since (ms)
--      cooling_down, key id, until (ms), now (ms)
--      key_in_use, key id, holder's admission (ms)
-- Cost: O(1); twelve commands. MediaMTX waits for this one, so what needs no doing is left undone: no field without a value, and
-- the epoch is the version that the admission makes.

local key, cooldown, memory = KEYS[8], KEYS[9], KEYS[10]
local node, source_id, publisher, stream_id, connecting_timeout_ms = ARGV[3], ARGV[4], ARGV[5], ARGV[6], tonumber(ARGV[7])

-- Whether this server was not started, nor promoted, since the partition was opened.
local function is_whole()
  local opened, server = unpack(redis.call('HMGET', memory, 'opened', 'server'), 1, 2)
  local promotion = string.match(opened or '', ':(%w+)$')
  if promotion then
    return string.find(ARGV[8] or redis.call('INFO', 'replication'), 'master_replid:' .. promotion, 1, true)
  end
  -- The version before this one names no promotion.
  return server and string.find(redis.call('INFO', 'server'), 'run_id:' .. server, 1, true)
end

local known = redis.call('HMGET', key, 'id', 'path', 'status', 'expires_ms', 'broadcaster_id', 'on_conflict', 'playback', 'info')
local key_id, key_path, status, expires_ms, broadcaster_id, on_conflict, playback, info = unpack(known, 1, 8)

if not key_id then
  return { is_closed() and 'closed' or 'key_absent' }
end
if status ~= 'active' then
  return { 'key_' .. status, key_id }
end
local now = clock_ms()
if expires_ms ~= '' and tonumber(expires_ms) <= now then
  return { 'key_expired', key_id, expires_ms }
end
if key_path ~= path then
  return { 'path_mismatch', key_id }
end

local held = redis.call('HMGET', slot, 'id', 'epoch', 'source_id', 'node', 'state', 'deadline_ms', 'stalled_ms', 'stale_ms', 'admitted_ms')
local held_id, held_epoch, held_source, held_node, held_state, deadline_ms, stalled_ms, stale_ms, admitted_ms = unpack(held, 1, 9)

if held_id and held_source == source_id and held_node == node then
  return { 'admitted_again', key_id, held_id, held_epoch }
end

local closed_until = redis.call('GET', cooldown)
if closed_until and tonumber(closed_until) > now then
  return { 'cooling_down', key_id, closed_until, integer(now) }
end
if source_id == '' then
  if is_closed() or not is_whole() then
    return { 'closed' }
  end
  return { 'checked', key_id }
end

local reason
if held_id then
  if held_state == 'connecting' and tonumber(deadline_ms) <= now then
    reason = 'never_online'
  elseif is_set(stale_ms) then
    reason = 'node_unreachable'
  elseif is_set(stalled_ms) then
    reason = 'stalled'
  elseif on_conflict == 'take_over' then
    reason = 'taken_over'
  else
    return { 'key_in_use', key_id, admitted_ms }
  end
end

local version_now = is_whole() and bump_version()
if not version_now then
  return { 'closed' }
end
local epoch = integer(version_now)
local ended = {}
if reason then
  ended = end_held(now, reason, 'kick', '')
end
local now_text, deadline = integer(now), integer(now + connecting_timeout_ms)
local record = {
  'id', stream_id, 'path', path, 'epoch', epoch, 'revision', '1', 'state', 'connecting',
  'key_id', key_id, 'broadcaster_id', broadcaster_id, 'node', node, 'source_id', source_id, 'publisher', publisher,
  'admitted_ms', now_text, 'deadline_ms', deadline, 'key_expires_ms', expires_ms, 'playback', playback, 'info', info,
}
redis.call('HSET', slot, unpack(record))
redis.call('ZADD', live, epoch, path)
schedule(deadline, expires_ms)
tell('admitted', now, record)
return { 'admitted', key_id, stream_id, epoch, ended }
