-- Which server this is, and the notes in a hash: what comes before the scripts that check and open a partition.
--
-- A server is the same one where its run id is. That it was not demoted and promoted meanwhile, its replication id tells, which is
-- another one after each promotion.
--
-- KEYS 1 none: this part reads no key by itself. What the two that follow keep names a server so: the token of a closed partition is
-- <when, ms>:<promotion>:<server>, and what a partition was opened with ends with :<promotion>
-- Cost: O(1); INFO is most of it, some 8 microseconds.

local server = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
local promotion = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''

-- The version before this one names no promotion: it is taken at its word.
local function is_here(known_server, known_promotion)
  return known_server == server and (not known_promotion or known_promotion == promotion)
end

local function was_closed_here(token)
  return is_here(string.match(token, ':(%w*)$'), string.match(token, ':(%w+):'))
end

-- The fields of a hash whose name begins with a text, by the rest of their name.
local function fields_of(hash, beginning)
  local noted, found = redis.call('HGETALL', hash), {}
  for place = 1, #noted, 2 do
    if string.sub(noted[place], 1, #beginning) == beginning then
      found[string.sub(noted[place], #beginning + 1)] = noted[place + 1]
    end
  end
  return found
end
