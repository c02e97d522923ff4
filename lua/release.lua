-- Gives a lease back before its time, so that another replica need not wait for it.
--
-- Under races and retries: only the holder's own lease is removed.
--
-- KEYS 1 lease  hash
-- ARGV 1 holder
-- Result: released | other
-- Cost: O(1).

if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then
  return { 'other' }
end
redis.call('DEL', KEYS[1])
return { 'released' }
