-- What every transition shares. It is put in front of each script when the program is built; it is no script itself.
--
-- KEYS 1 slot       hash    the stream that holds the path; the key exists exactly while the path is held
--      2 live       zset    the held paths of the partition, scored by epoch
--      3 deadlines  zset    paths whose stream something must happen to, scored by when (ms)
--      4 version    string  bumped by every change of what is on air in the partition; absent while the partition is closed
--      5 events     stream  one entry for every transition: the whole slot, `event` and `at_ms`
--      6 kicks      hash    source id -> JSON: sources that must be off air
--      7 changes    zset    paths scored by the version of their last change; at least the last thousand of them
-- ARGV 1 now        ms since the epoch, or empty: Redis TIME (a test may pass another)
--      2 path
-- All keys share the partition's hash tag. No key is built here: every one comes through KEYS.
--
-- A slot has only the fields that have a value: an absent one and an empty one mean the same.

local slot, live, deadlines, version, events, kicks, changes = unpack(KEYS, 1, 7)
local path = ARGV[2]

local function integer(number)
  return string.format('%.0f', number)
end

local function is_set(value)
  return value and value ~= ''
end

local function redis_clock_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function clock_ms()
  if ARGV[1] ~= '' then
    return tonumber(ARGV[1])
  end
  return redis_clock_ms()
end

-- A partition is closed while Redis may not hold everything that belongs to it: nobody takes a path there. It is opened by
-- open.lua once all is back, and by nothing else. A Redis that lost its memory is closed by that alone.
local function is_closed()
  return redis.call('EXISTS', version) == 0
end

-- Says that what is on air has changed, so that readers read this path again and nothing else. Nothing in a closed partition,
-- which is read as a whole when it opens. Old changes are forgotten now and then, because that is cheaper than each time.
local function bump_version()
  local bumped = redis.call('INCR', version)
  if bumped == 1 then
    redis.call('DEL', version)
    return nil
  end
  redis.call('ZADD', changes, integer(bumped), path)
  if bumped % 64 == 0 then
    redis.call('ZREMRANGEBYRANK', changes, 0, -1065)
  end
  return bumped
end

local function tell(event, now, record)
  redis.call('XADD', events, '*', 'event', event, 'at_ms', integer(now), unpack(record))
end

-- A change of the stream that stays on the path.
local function tell_change(event, now)
  redis.call('HINCRBY', slot, 'revision', 1)
  bump_version()
  tell(event, now, redis.call('HGETALL', slot))
end

-- Ends the stream that holds the path. `after` is 'kick' where its source may still be connected: the kick is owed from
-- this very moment, whatever happens to the caller. `progress` is the poller's last word about it, as JSON, or empty.
-- Returns the whole record as it ended.
local function end_held(now, reason, after, progress)
  redis.call('HINCRBY', slot, 'revision', 1)
  redis.call('HSET', slot, 'state', 'ended', 'ended_ms', integer(now), 'end_reason', reason, 'progress', progress)
  local record = redis.call('HGETALL', slot)
  tell('ended', now, record)
  if after == 'kick' then
    local held = redis.call('HMGET', slot, 'node', 'source_id', 'source_type', 'publisher')
    redis.call('HSET', kicks, held[2], cjson.encode({
      path = path,
      node = held[1],
      source_id = held[2],
      source_type = held[3] or '',
      publisher = held[4],
      reason = reason,
      since_ms = integer(now),
    }))
  end
  redis.call('DEL', slot)
  redis.call('ZREM', live, path)
  redis.call('ZREM', deadlines, path)
  bump_version()
  return record
end

-- The next instant at which something must happen to the stream on the path, or nothing.
local function schedule(deadline_ms, key_expires_ms)
  local due = tonumber(deadline_ms or '') or math.huge
  due = math.min(due, tonumber(key_expires_ms or '') or math.huge)
  if due == math.huge then
    redis.call('ZREM', deadlines, path)
  else
    redis.call('ZADD', deadlines, integer(due), path)
  end
end
