package redisstream

import "github.com/redis/go-redis/v9"

// The scripts below name every key that they touch, all of one stream and so of one slot. They are the only way to ask who
// owns an entry and to act on the answer at one moment.

// holdScript sets the idle time of entries, which keeps them (0) or lets anyone claim them at once (a day).
//
// An entry that nobody holds although the group has given it out was dropped with its consumer; it would never come back, so
// it is taken up again. One that was trimmed is left as it is while it is held: Redis 7 would take it off the group's list. An entry that
// was deleted, taken by another, or not yet given out by a group made anew is lost.
//
// KEYS stream; ARGV group, consumer, idle milliseconds, ids. Returns the ids that are lost.
var holdScript = redis.NewScript(`
local function split(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function given(id)
  for _, g in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local info = {}
    for i = 1, #g, 2 do info[g[i]] = g[i + 1] end
    if info['name'] == ARGV[1] then
      local ms, seq = split(id)
      local lms, lseq = split(info['last-delivered-id'])
      return ms < lms or (ms == lms and seq <= lseq)
    end
  end
  return false
end
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local function trimmed(id)
  if not oldest then return true end
  local ms, seq = split(id)
  local oms, oseq = split(oldest[1])
  return ms < oms or (ms == oms and seq < oseq)
end
local lost = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) > 0 then
    if not trimmed(id) then redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'IDLE', ARGV[3], 'JUSTID') end
  elseif #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1) == 0
      and #redis.call('XRANGE', KEYS[1], id, id) > 0 and given(id) then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'IDLE', ARGV[3], 'FORCE', 'JUSTID')
  else
    lost[#lost + 1] = id
  end
end
return lost
`)

// settleScript acknowledges and deletes entries, whoever holds them.
//
// KEYS stream, counts; ARGV group, ids.
var settleScript = redis.NewScript(luaCount + `
local n = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 2))
redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
count(n)
`)

// discardScript deletes entries, which if the stream is one of jobs are no loss.
//
// KEYS stream, counts; ARGV group, ids.
var discardScript = redis.NewScript(luaCount + `
local n = redis.call('XDEL', KEYS[1], unpack(ARGV, 2))
if redis.call('EXISTS', KEYS[2]) == 1 then count(n) end
`)

// ackScript acknowledges and deletes those entries that the consumer still holds.
//
// KEYS stream, counts; ARGV group, consumer, ids.
var ackScript = redis.NewScript(luaCount + `
local n = 0
for i = 3, #ARGV do
  local id = ARGV[i]
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) > 0 then
    n = n + redis.call('XACK', KEYS[1], ARGV[1], id)
    redis.call('XDEL', KEYS[1], id)
  end
end
count(n)
`)

// moveScript writes a message again, now or later, and settles the entry that it replaces. A call that is repeated because its
// reply was cut off finds the work done.
//
// KEYS stream, due, moved, counts; ARGV group, consumer, id, delay in milliseconds, names and values. Returns 0 when the entry is not
// the consumer's.
var moveScript = redis.NewScript(luaCount + `
local id, after = ARGV[3], tonumber(ARGV[4])
if redis.call('HEXISTS', KEYS[3], id) == 1 then return 1 end
if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2]) == 0 then return 0 end
local fields = {}
for i = 5, #ARGV do fields[i - 4] = ARGV[i] end
if after <= 0 then
  redis.call('XADD', KEYS[1], '*', unpack(fields))
else
  local now = redis.call('TIME')
  redis.call('HSET', KEYS[3], id, cmsgpack.pack(fields))
  redis.call('ZADD', KEYS[2], string.format('%.0f', now[1] * 1000 + math.ceil(now[2] / 1000) + after), id)
end
count(redis.call('XACK', KEYS[1], ARGV[1], id))
redis.call('XDEL', KEYS[1], id)
return 1
`)

// dueScript puts messages whose time has come on their stream, each at one stroke with its removal.
//
// KEYS stream, due, moved; ARGV most messages, most bytes. Returns how many it moved and the milliseconds until the next, -1
// when there is none.
var dueScript = redis.NewScript(`
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local moved, bytes = 0, 0
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])) do
  local packed = redis.call('HGET', KEYS[3], id)
  if packed then
    redis.call('XADD', KEYS[1], '*', unpack(cmsgpack.unpack(packed)))
    bytes = bytes + #packed
  end
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
  moved = moved + 1
  if bytes > tonumber(ARGV[2]) then break end
end
local next = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if #next == 0 then return {moved, -1} end
return {moved, math.max(0, tonumber(next[2]) - now)}
`)

// sweepScript removes consumers that hold nothing: the named one, or all that were not seen for so long. Looking and removing
// are one step, since removing a consumer drops what it holds.
//
// KEYS stream; ARGV group, milliseconds, consumer (” for all). Returns how many it removed.
var sweepScript = redis.NewScript(`
local removed = 0
for _, c in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local info = {}
  for i = 1, #c, 2 do info[c[i]] = c[i + 1] end
  if info['pending'] == 0 and (info['name'] == ARGV[3] or ARGV[3] == '' and info['idle'] > tonumber(ARGV[2])) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], info['name'])
    removed = removed + 1
  end
end
return removed
`)

// maxFields is the largest number of names and values that Lua passes to one command, with room for those in front.
const maxFields = 7900
