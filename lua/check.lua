-- Says whether a partition holds all that it must, and closes it where that is not certain: where it is empty, or where this
-- server is not the one that was last known to be whole, as after a restart or a failover, which may lose the last writes. Which
-- server it is, lua/server.lua says.
--
-- Under races and retries: asking twice is asking once. The token of a closed partition tells when it was closed, the promotion and
-- the server, and is gone with the memory it was written into.
--
-- KEYS 1 version  string  absent while the partition is closed
--      2 memory   hash    server, whole_ms (until when it was whole, give or take ten seconds), version (the least that the next
--                         one may be), closed (the token), opened (the version and the promotion it was opened with). The last two name
--                         the generation: another one after every loss, closing and opening. Beside them,
--                         seen:<replica>: when that replica last found the partition open (ms, give or take five seconds);
--                         awaits:<token>:<replica>: 'no', or 'done' once that replica has put back what it remembers;
--                         awaits:<token>: since when (ms) somebody who is about to open waits for others
-- ARGV 1 the replica that will put back what only it remembers, or empty: nobody who asks will
-- Result: open | closed, token, since (ms ago), whole until (ms) or empty: all that was ever written is lost
-- Cost: O(1), beside lua/server.lua; O(replicas) for a closing, and every five seconds for each replica.

local version, memory, replica = KEYS[1], KEYS[2], ARGV[1]
local SEEN_EVERY_MS, SEEN_WITH_MS, SEEN_MAX_MS = 5000, 10000, 60000

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local now_text = string.format('%.0f', now)

-- When the replicas looked that may be alive, by their name. A note that is as old as this, or as far ahead, says nothing.
local function seen_lately()
  local found = {}
  for name, at_ms in pairs(fields_of(memory, 'seen:')) do
    if math.abs(now - tonumber(at_ms)) > SEEN_MAX_MS then
      redis.call('HDEL', memory, 'seen:' .. name)
    else
      found[name] = tonumber(at_ms)
    end
  end
  return found
end

local known_server, whole_ms, token, opened, seen_ms =
  unpack(redis.call('HMGET', memory, 'server', 'whole_ms', 'closed', 'opened', 'seen:' .. replica), 1, 5)
local last = redis.call('GET', version)
if last and is_here(known_server, string.match(opened or '', ':(%w+)$')) then
  if now - tonumber(whole_ms) >= 10000 then
    redis.call('HSET', memory, 'whole_ms', now_text)
  end
  if replica ~= '' and math.abs(now - tonumber(seen_ms or '0')) >= SEEN_EVERY_MS then
    redis.call('HSET', memory, 'seen:' .. replica, now_text)
    seen_lately()
  end
  return { 'open' }
end

if last then
  redis.call('HSET', memory, 'version', last)
  redis.call('DEL', version)
end
-- A server that took over in the middle of a rebuild may have lost a part of that as well: it begins anew.
if not token or not was_closed_here(token) then
  token = now_text .. ':' .. promotion .. ':' .. server
  redis.call('HSET', memory, 'closed', token)
  for name in pairs(fields_of(memory, 'awaits:')) do
    redis.call('HDEL', memory, 'awaits:' .. name)
  end
  -- Whoever found it open for the last time remembers something, also where its connections take longer than those of others.
  local known, last_ms = seen_lately(), 0
  for _, at_ms in pairs(known) do
    last_ms = math.max(last_ms, at_ms)
  end
  for name, at_ms in pairs(known) do
    if last_ms - at_ms < SEEN_WITH_MS then
      redis.call('HSET', memory, 'awaits:' .. token .. ':' .. name, 'no')
    end
  end
end
if replica ~= '' then
  redis.call('HSETNX', memory, 'awaits:' .. token .. ':' .. replica, 'no')
end
return { 'closed', token, string.format('%.0f', now - tonumber(string.match(token, '^%d+'))), whole_ms or '' }
