"""What a Redis-compatible store runs for holds, each as one step that nothing comes between. Only its own clock counts.

The first key is the prefix of all others (one server, not a cluster): "h:ID" is a hold, "c:NAME" a counter, "g:GROUP"
the counters of a group, "leases" the holds by the end of their lease, "gone" those that were here in the last minutes,
"run" names the life of the server, "epoch" the time at which that was found to have begun: with less than all that it
knew, perhaps with nothing. Fields of a counter: su and st are spent nano-dollars and tokens, hu and ht those that are
held, `seeded` the epoch in which su and st are known; `gen` counts what was charged while they were not, `untold` holds
whose records are not safe yet, `out` is set at the first refusal. Nano-dollars stay below 2^53.
"""

PREFIX = "maestro:budget:{all}:"

_HEAD = """
local P = KEYS[1]
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function text(n) return string.format('%.0f', n) end
local function minus(v) return v == '0' and '0' or '-' .. v end
local function lease_of(id, lease) redis.call('ZADD', P .. 'leases', text(now + lease), id) end
local function epoch_now()
  local epoch = redis.call('GET', P .. 'epoch')
  if not epoch then
    epoch = text(now)
    redis.call('SET', P .. 'epoch', epoch)
  end
  return epoch
end
local function charge(told, c, usd, tok)
  local name = P .. 'c:' .. c
  redis.call('HINCRBY', name, 'untold', 1)
  local v = redis.call('HMGET', name, 'seeded', 'su', 'st')
  if v[1] ~= epoch_now() then redis.call('HINCRBY', name, 'gen', 1) return end
  redis.call('HINCRBY', name, 'su', usd)
  redis.call('HINCRBY', name, 'st', tok)
  for _, x in ipairs({c, v[2], v[3], usd, tok}) do told[#told + 1] = x end
end
local function release(h)
  for i = 1, tonumber(redis.call('HGET', h, 'n')) do
    local v = redis.call('HMGET', h, 'k' .. i, 'u' .. i, 't' .. i)
    local name = P .. 'c:' .. v[1]
    redis.call('HINCRBY', name, 'hu', minus(v[2]))
    redis.call('HINCRBY', name, 'ht', minus(v[3]))
  end
end
local function bury(id)
  redis.call('DEL', P .. 'h:' .. id)
  redis.call('ZREM', P .. 'leases', id)
  redis.call('ZADD', P .. 'gone', text(now), id)
end
"""

BEGIN = (
    _HEAD
    + """
if redis.call('GET', P .. 'run') ~= ARGV[1] then
  redis.call('SET', P .. 'run', ARGV[1])
  redis.call('SET', P .. 'epoch', text(now))
end
return 1
"""
)
"""ARGV: the name of the server's life. In another one than before nothing is known of what was spent."""

RESERVE = (
    _HEAD
    + """
local enter, id, lease, record, grace, count = ARGV[1] == '1', ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]),
  tonumber(ARGV[6])
local h = P .. 'h:' .. id
if redis.call('EXISTS', h) == 1 or redis.call('ZSCORE', P .. 'gone', id) then return {0} end
local claims = {}
for i = 1, count do
  local at = 6 * i + 1
  claims[i] = {name = ARGV[at], usd = tonumber(ARGV[at + 1]), tok = tonumber(ARGV[at + 2]), lu = tonumber(ARGV[at + 3]),
    lt = tonumber(ARGV[at + 4]), ends = ARGV[at + 5]}
end
if not enter then
  local epoch = epoch_now()
  local how, refused, seen = 0, 0, nil
  for i, c in ipairs(claims) do
    local v = redis.call('HMGET', P .. 'c:' .. c.name, 'seeded', 'su', 'st', 'hu', 'ht', 'gen', 'untold')
    if v[1] ~= epoch then
      local busy = (tonumber(v[7]) or 0) > 0 or now - tonumber(epoch) < grace
      return {1, i, v[6] or '0', busy and '1' or '0'}
    end
    local su, st, hu, ht = tonumber(v[2]), tonumber(v[3]), tonumber(v[4]) or 0, tonumber(v[5]) or 0
    if (c.lu >= 0 and su + c.usd > c.lu) or (c.lt >= 0 and st + c.tok > c.lt) then
      if how ~= 2 then how, refused, seen = 2, i, {su, st, hu, ht} end
    elseif (c.lu >= 0 and su + hu + c.usd > c.lu) or (c.lt >= 0 and st + ht + c.tok > c.lt) then
      if how == 0 then how, refused, seen = 3, i, {su, st, hu, ht} end
    end
  end
  if how > 0 then
    local c, first = claims[refused], 0
    if how == 2 and (c.lu < 0 or c.usd <= c.lu) and (c.lt < 0 or c.tok <= c.lt) then
      first = redis.call('HSETNX', P .. 'c:' .. c.name, 'out', 1)
    end
    return {how, refused, text(seen[1]), text(seen[2]), text(seen[3]), text(seen[4]), first}
  end
end
redis.call('HSET', h, 'state', 'o', 'record', record, 'n', count)
for i, c in ipairs(claims) do
  local name = P .. 'c:' .. c.name
  redis.call('HINCRBY', name, 'hu', text(c.usd))
  redis.call('HINCRBY', name, 'ht', text(c.tok))
  redis.call('PEXPIREAT', name, c.ends)
  redis.call('HSET', h, 'k' .. i, c.name, 'u' .. i, text(c.usd), 't' .. i, text(c.tok))
end
lease_of(id, lease)
return {0}
"""
)
"""ARGV: 1 to enter again what was taken before, id, lease, record, grace of an empty store, number of shares; then of
each: counter, nano-dollars, tokens, their limits, Unix milliseconds after which the counter may go.

Gives an `Outcome` and: for UNSEEDED the number of the share, its generation, whether it is busy; for SPENT and HELD the
number of the share, what its counter knows, whether it refuses for the first time. Times are microseconds.
"""

SETTLE = (
    _HEAD
    + """
local id, lease, record, usd, tok, count = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local h = P .. 'h:' .. id
local told = {}
local state = redis.call('HGET', h, 'state')
if state == 's' or state == 'l' or redis.call('ZSCORE', P .. 'gone', id) then return {0, told} end
if state == 'o' then release(h) end
redis.call('HSET', h, 'state', 's', 'record', record, 'n', count)
lease_of(id, lease)
for i = 1, count do
  -- Whoever took it up in another period charges other counters than those that were held.
  redis.call('HSET', h, 'k' .. i, ARGV[5 + 2 * i], 'u' .. i, usd, 't' .. i, tok)
  charge(told, ARGV[5 + 2 * i], usd, tok)
  redis.call('PEXPIREAT', P .. 'c:' .. ARGV[5 + 2 * i], ARGV[6 + 2 * i])
end
return {1, told}
"""
)
"""ARGV: id, lease, record, nano-dollars and tokens used, number of counters; each counter and its end.

Gives 0 when it was ended before, and for each counter that was charged: its name, what was spent before, what was
added.
"""

CLOSE = (
    _HEAD
    + """
local id, lease, record, usd, tok = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local h = P .. 'h:' .. id
local told = {}
if redis.call('HGET', h, 'state') ~= 'o' then return told end
release(h)
redis.call('HSET', h, 'state', 's', 'record', record)
lease_of(id, lease)
for i = 1, tonumber(redis.call('HGET', h, 'n')) do
  redis.call('HSET', h, 'u' .. i, usd, 't' .. i, tok)
  charge(told, redis.call('HGET', h, 'k' .. i), usd, tok)
end
return told
"""
)
"""ARGV: id, lease, record, nano-dollars and tokens used. Gives what was charged, as SETTLE does; nothing unless held.
"""

UNDO = (
    _HEAD
    + """
local h = P .. 'h:' .. ARGV[1]
local state = redis.call('HGET', h, 'state')
if state == 'o' then
  release(h)
  redis.call('DEL', h)
  redis.call('ZREM', P .. 'leases', ARGV[1])
end
return 1
"""
)
"""ARGV: id."""

FORGET = (
    _HEAD
    + """
redis.call('ZREMRANGEBYSCORE', P .. 'gone', '-inf', text(now - 600 * 1000000))
for _, id in ipairs(ARGV) do
  local h = P .. 'h:' .. id
  local state = redis.call('HGET', h, 'state')
  if state == 's' or state == 'l' then
    for i = 1, tonumber(redis.call('HGET', h, 'n')) do
      local name = P .. 'c:' .. redis.call('HGET', h, 'k' .. i)
      if redis.call('EXISTS', name) == 1 then redis.call('HINCRBY', name, 'untold', -1) end
    end
    bury(id)
  end
end
return 1
"""
)
"""ARGV: ids."""

EXTEND = (
    _HEAD
    + """
local unknown = {}
for i = 2, #ARGV do
  if redis.call('EXISTS', P .. 'h:' .. ARGV[i]) == 1 then
    lease_of(ARGV[i], tonumber(ARGV[1]))
  elseif not redis.call('ZSCORE', P .. 'gone', ARGV[i]) then
    unknown[#unknown + 1] = ARGV[i]
  end
end
return unknown
"""
)
"""ARGV: lease, ids. Gives those that the store knows nothing of."""

SEED = (
    _HEAD
    + """
local name = P .. 'c:' .. ARGV[1]
local v = redis.call('HMGET', name, 'seeded', 'gen')
if v[1] == epoch_now() then return 1 end
if (v[2] or '0') ~= ARGV[2] then return 0 end
redis.call('HSET', name, 'su', ARGV[3], 'st', ARGV[4], 'seeded', epoch_now())
redis.call('PEXPIREAT', name, ARGV[5])
local group = P .. 'g:' .. string.match(ARGV[1], '^[^|]*|[^|]*')
redis.call('SADD', group, ARGV[1])
redis.call('PEXPIREAT', group, ARGV[5])
return 1
"""
)
"""ARGV: counter, generation, nano-dollars, tokens, end. Gives 1, or 0 when another generation has begun."""

UNSEED = (
    _HEAD
    + """
local name = P .. 'c:' .. ARGV[1]
if ARGV[2] == '0' and tonumber(redis.call('HGET', name, 'untold') or '0') > 0 then return -1 end
-- Also where nothing is known: whoever has read the ledger already must read it again.
redis.call('HINCRBY', name, 'gen', 1)
if redis.call('PTTL', name) < 0 then redis.call('PEXPIRE', name, 86400000) end
return redis.call('HDEL', name, 'seeded')
"""
)
"""ARGV: counter, whether to do it while ends are not safe. Gives whether it was known what was spent, -1 if it was not
done; what was known is listed until it is told anew.
"""

ORPHANS = (
    _HEAD
    + """
local lease = tonumber(ARGV[1])
local found, told = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', text(now), 'LIMIT', 0, ARGV[2])) do
  local h = P .. 'h:' .. id
  local v = redis.call('HMGET', h, 'state', 'record', 'n')
  local charged = {}
  if not v[1] then
    redis.call('ZREM', P .. 'leases', id)
  elseif v[1] == 'o' and v[2] == '' then
    -- Not buried: whoever takes up the call holds and charges it under the same id.
    release(h)
    redis.call('DEL', h)
    redis.call('ZREM', P .. 'leases', id)
  else
    if v[1] == 'o' then
      release(h)
      redis.call('HSET', h, 'state', 'l')
      for i = 1, tonumber(v[3]) do
        local s = redis.call('HMGET', h, 'k' .. i, 'u' .. i, 't' .. i)
        charge(told, s[1], s[2], s[3])
      end
    end
    if v[1] ~= 's' then
      for i = 1, tonumber(v[3]) do charged[i] = redis.call('HGET', h, 'k' .. i) end
    end
    lease_of(id, lease)
    for _, x in ipairs({id, v[2], charged}) do found[#found + 1] = x end
  end
end
return {found, told}
"""
)
"""ARGV: lease until they come again, most.

Gives id, record and counters of each, these only where the hold was charged as a whole; and what was charged, as SETTLE
does.
"""

BALANCES = (
    _HEAD
    + """
local found = {}
local page = redis.call('SSCAN', P .. 'g:' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3])
for _, c in ipairs(page[2]) do
  local v = redis.call('HMGET', P .. 'c:' .. c, 'su', 'st', 'hu', 'ht')
  if v[1] then
    found[#found + 1] = c
    for j = 1, 4 do found[#found + 1] = v[j] or '0' end
  end
end
return {page[1], found}
"""
)
"""ARGV: group, place, about how many. Gives the next place, "0" after the last one, and of each counter its name, what
was spent, and what is held. One may come twice.
"""

HOLD_SCRIPTS = (RESERVE, SETTLE, CLOSE, UNDO, FORGET, EXTEND, SEED, UNSEED, ORPHANS, BALANCES)
