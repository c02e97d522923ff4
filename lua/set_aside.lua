-- Moves entries from one log of a partition to the end of another: those that this version cannot read out of the way of the
-- others, and back for one that can.
--
-- Under races and retries: an entry is moved once, by whoever comes first.
--
-- KEYS 1 from  stream
--      2 to    stream
-- ARGV the entries' ids
-- Result: moved, how many
-- Cost: O(1) for each entry.

local from, to = KEYS[1], KEYS[2]

local moved = 0
for _, id in ipairs(ARGV) do
  local entry = redis.call('XRANGE', from, id, id)[1]
  if entry then
    redis.call('XADD', to, '*', unpack(entry[2]))
    redis.call('XDEL', from, id)
    moved = moved + 1
  end
end
return { 'moved', string.format('%.0f', moved) }
