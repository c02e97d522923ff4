-- Notes that a replica has put back what it remembers, so that nobody waits for it any more, or that it goes.
--
-- Under races and retries: noting twice is noting once. Where the partition was closed anew meanwhile, the note is about what is over,
-- and goes with the next closing or opening.
--
-- KEYS 1 memory  hash  see check.lua
-- ARGV 1 replica, 2 the token of the closing, or empty: it goes
-- Result: noted
-- Cost: O(1); O(replicas) for one that goes.

local memory, replica, token = KEYS[1], ARGV[1], ARGV[2]
if token ~= '' then
  redis.call('HSET', memory, 'awaits:' .. token .. ':' .. replica, 'done')
  return { 'noted' }
end
redis.call('HDEL', memory, 'seen:' .. replica)
local noted, ending = redis.call('HGETALL', memory), ':' .. replica
for place = 1, #noted, 2 do
  local name = noted[place]
  if string.sub(name, 1, 7) == 'awaits:' and string.sub(name, -#ending) == ending then
    redis.call('HDEL', memory, name)
  end
end
return { 'noted' }
