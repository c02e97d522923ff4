-- What has changed on air since a reader looked: the versions of all partitions and, where it is little, what holds each path that
-- changed. All of one moment.
--
-- Only reads, and only on a server that holds all partitions: which keys it reads beside the versions, it learns only from them, so
-- their names are put together from what it is given. A cluster would not have that.
--
-- KEYS 1 ...  the version of each partition
-- ARGV 1  the versions that the reader knows, in the same order, with commas between them; nothing for one that it does not know
--      2  how many changes it is told at most
--      3  how a version's key ends   4  how that of the partition's changes does   5  how that of a slot does, before the path
-- Result: a word, and what belongs to it
--      same
--      changed, {version of each partition, or nothing where it is closed}, {number of a partition, {path, its slot, ...}, ...}
-- A partition with more changes than it may still be told is missing from the last list: the reader has to look by itself.
-- Cost: O(partitions + changes); twice for each request for a list at the most, and shared by all who ask at once.

local known, left, version, changes, slot = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local versions = redis.call('MGET', unpack(KEYS))
local texts = {}
for number = 1, #KEYS do
  texts[number] = versions[number] or ''
end
if table.concat(texts, ',') == known then
  return { 'same' }
end

local told, number = {}, 0
for text in string.gmatch(known .. ',', '([^,]*),') do
  number = number + 1
  local since = tonumber(text) or 0
  local count = (tonumber(texts[number]) or 0) - since
  if count > 0 and count <= left then
    left = left - count
    local beside = string.sub(KEYS[number], 1, -#version - 1)
    local slots = {}
    for _, path in ipairs(redis.call('ZRANGEBYSCORE', beside .. changes, string.format('(%.0f', since), '+inf')) do
      slots[#slots + 1] = path
      slots[#slots + 1] = redis.call('HGETALL', beside .. slot .. path)
    end
    told[#told + 1] = number
    told[#told + 1] = slots
  end
end
return { 'changed', versions, told }
