"""What the store itself runs, each as one step that nothing comes between. Only its own clock counts.

A claim has two keys: a sorted set of entries (by the microsecond of their time; places by that of the end of their
lease), and for sums a hash of their amounts, with the sum under "=".
"""

TAKE = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function text(n) return string.format('%.0f', n) end
local entry, lease, pause = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local count = #KEYS / 2
local refused, longest, never = 0, 0, false
local claims = {}
for i = 1, count do
  local at = 4 * i
  local c = {set = KEYS[2 * i - 1], sums = KEYS[2 * i], kind = tonumber(ARGV[at]), limit = tonumber(ARGV[at + 1]),
    window = tonumber(ARGV[at + 2]), amount = tonumber(ARGV[at + 3])}
  claims[i] = c
  local wait = 0
  if c.kind == 0 then
    redis.call('ZREMRANGEBYSCORE', c.set, '-inf', text(now))
    c.used = redis.call('ZCARD', c.set)
    if c.used >= c.limit then wait = pause end
  else
    local oldest = text(now - c.window)
    if c.kind == 2 then
      for _, name in ipairs(redis.call('ZRANGEBYSCORE', c.set, '-inf', oldest)) do
        redis.call('HINCRBY', c.sums, '=', -(tonumber(redis.call('HGET', c.sums, name)) or 0))
        redis.call('HDEL', c.sums, name)
      end
    end
    redis.call('ZREMRANGEBYSCORE', c.set, '-inf', oldest)
    c.used = c.kind == 1 and redis.call('ZCARD', c.set) or tonumber(redis.call('HGET', c.sums, '=')) or 0
    local excess = c.used + c.amount - c.limit
    if c.amount > c.limit then
      wait = -1
    elseif excess > 0 and c.kind == 1 then
      wait = tonumber(redis.call('ZRANGE', c.set, excess - 1, excess - 1, 'WITHSCORES')[2]) + c.window - now
    elseif excess > 0 then
      wait = c.window
      local from = 0
      while excess > 0 do
        local page = redis.call('ZRANGE', c.set, from, from + 99, 'WITHSCORES')
        if #page == 0 then break end
        for j = 1, #page, 2 do
          excess = excess - (tonumber(redis.call('HGET', c.sums, page[j])) or 0)
          if excess <= 0 then wait = tonumber(page[j + 1]) + c.window - now break end
        end
        from = from + 100
      end
    end
  end
  if wait < 0 then
    if not never then never, refused = true, i end
  elseif wait > longest and not never then
    longest, refused = wait, i
  end
end
local answer = {refused, never and '-1' or text(longest)}
for i = 1, count do
  local c = claims[i]
  if refused == 0 then
    if c.kind == 0 then
      redis.call('ZADD', c.set, text(now + lease), entry)
      redis.call('PEXPIRE', c.set, text(lease / 1000 + 1000))
    else
      redis.call('ZADD', c.set, text(now), entry)
      redis.call('PEXPIRE', c.set, text(c.window / 1000 + 1000))
      if c.kind == 2 then
        redis.call('HSET', c.sums, entry, c.amount)
        redis.call('HINCRBY', c.sums, '=', c.amount)
        redis.call('PEXPIRE', c.sums, text(c.window / 1000 + 1000))
      end
    end
    c.used = c.used + c.amount
  end
  local reset = 0
  if c.kind ~= 0 then
    local last = redis.call('ZRANGE', c.set, -1, -1, 'WITHSCORES')[2]
    if last then reset = tonumber(last) + c.window - now end
  end
  answer[#answer + 1] = math.max(0, c.limit - c.used)
  answer[#answer + 1] = text(reset)
end
return answer
"""
"""KEYS: set and sums of each claim. ARGV: entry, lease, pause for a place; kind, limit, window, amount of each claim.

Times are microseconds. Gives the number of the claim that refuses (0 none), the wait (-1 for ever), then what is left
and the time until all is there again, for each claim.
"""

FINISH = """
local entry = ARGV[1]
for i = 1, #KEYS / 2 do
  local set, sums, kind, amount = KEYS[2 * i - 1], KEYS[2 * i], tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  if kind == 2 then
    local before = redis.call('HGET', sums, entry)
    if before then
      redis.call('HINCRBY', sums, '=', math.max(0, amount) - tonumber(before))
      redis.call('HSET', sums, entry, math.max(0, amount))
    end
  elseif kind == 0 or amount < 0 then
    redis.call('ZREM', set, entry)
  end
end
return 1
"""
"""KEYS: set and sums of each claim. ARGV: entry; kind and amount of each claim."""

RENEW = """
local t = redis.call('TIME')
local lease = tonumber(ARGV[1])
local ending = string.format('%.0f', t[1] * 1000000 + t[2] + lease)
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], ending, ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', lease / 1000 + 1000))
return 1
"""
"""KEYS: the set of places. ARGV: lease in microseconds, then the entries that are still there."""
