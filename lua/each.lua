-- Runs what stands before it, as the function `of_one`, for each of several callers in turn. It is put behind a script when the
-- program is built; it is no script itself.
--
-- KEYS 1 ...  the first caller's, then the second's, and so on: as many for each
-- ARGV 1 ...  the same, and behind them all how many callers there are
-- Result: what each was answered, in their order
-- Cost: that of each, but for TIME and INFO, which are fetched once: the time fills each caller's first argument where that is empty, and
-- INFO's text about the replication is appended as its last.
--
-- Where it fails for one caller, Redis says only that: those before it were served, those behind it were not. Whoever asks
-- has to ask again.

local callers = tonumber(ARGV[#ARGV])
local keys_each, arguments_each = #KEYS / callers, (#ARGV - 1) / callers
local time, replication = redis.call('TIME'), redis.call('INFO', 'replication')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local answers = {}
for caller = 1, callers do
  local keys_before, arguments_before = (caller - 1) * keys_each, (caller - 1) * arguments_each
  local arguments = { unpack(ARGV, arguments_before + 1, arguments_before + arguments_each) }
  if arguments[1] == '' then
    arguments[1] = now
  end
  arguments[arguments_each + 1] = replication
  answers[caller] = of_one({ unpack(KEYS, keys_before + 1, keys_before + keys_each) }, arguments)
end
return answers
