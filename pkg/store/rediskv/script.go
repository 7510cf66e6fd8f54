package rediskv

import (
	"crypto/sha1"
	"encoding/hex"
)

// How it lies in Redis. Everything of a partition begins with prefix{partition}, so that it lies on one slot:
//
//	…}k:name  string: revision and time of writing in µs (8 bytes each, big endian), the transaction's nonce (8 bytes), the value
//	…}z:set   ordered set, all scores 0: score as 8 bytes that sort as the number does, then the member. Redis keeps scores as doubles,
//	          which are exact to 2^53 only; members that sort by themselves are exact to the last bit.
//	…}s:set   hash of member to the 8 bytes of its score, to find the old element when a member moves
//	…}r       the partition's last revision
//	…}w       there while somebody watches the partition; also the name of the channel
//	…}x       ordered set of the keys that will expire, by the time in ms; kept only while somebody watches
//
// A revision is the server's time in µs, or one more than the last where the clock has not moved on. So it also grows when the
// counter is lost: to a flush, an eviction, a failover to a replica that lags.
//
// A transaction that is sent twice, because the client lost the first reply, finds its own nonce where its condition fails and
// answers as it did the first time.
//
// Redis has no rollback. A script that fails at its first write has done nothing, and nothing that can fail comes after it: out of
// memory is refused at the first write only. Therefore a transaction that only deletes writes the counter last: a full Redis takes it.

// luaSwap is the transaction that almost all are: at most one condition, one put, at most that same key to read. It does several,
// each by itself, which share what they cost together: a job's claim or outcome is one of them. Where the store lies beside a stream
// whose entry the transaction ends, the entry's result is published with it, and all such entries are settled at last. What cannot be
// published is left to the caller, who then sees why.
// KEYS: counter, watch, expiries; with endings the stream, that of results and the hash that counts what is settled; the keys. ARGV: ttl in ms; 1 to read; the stream's
// group, "" without endings; for each key: revision wanted, "" for absent, "*" for any; nonce and value; with endings the entry's id, and
// what to give XADD behind the stream as a MessagePack list, "" for nothing.
// Returns a letter for each key, 16 bytes for each key, and what the letters call for. c: the condition fails; v: so it does, and here
// is the value; d: done; o: done, and here is the old value; a: done, published and settled; e: the key is another program's, and here
// is the error. The bytes are revision and time of what was done, else 0 and the time now.
const luaSwap = `
local px, read, group = ARGV[1], ARGV[2] == '1', ARGV[3]
local first, width = 3, 2
if group ~= '' then first, width = 6, 4 end
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local has = redis.call('MGET', KEYS[1], KEYS[2])
local rev = now - 1
if has[1] and tonumber(has[1]) > rev then rev = tonumber(has[1]) end
local watched = has[2]
local wrote = false
local states, heads, out, ids = {}, {}, {'', ''}, {}
for i = 1, #KEYS - first do
  local key, a = KEYS[first + i], 3 + width * (i - 1)
  local want, load = ARGV[a + 1], ARGV[a + 2]
  local cur, done, old, expired = '', false, false, false
  if want ~= '' then cur = redis.pcall('GETRANGE', key, 0, 23) end
  if type(cur) == 'string' and (want == '' or want == '*' or string.sub(cur, 1, 8) == want) then
    if read and cur ~= '' then old = redis.call('GET', key) end
    if watched and cur == '' and redis.call('EXISTS', key) == 0 and redis.call('ZSCORE', KEYS[3], key) then expired = true end
    local mine = rev + 1
    if expired then mine = mine + 1 end
    local head = struct.pack('>I8I8', mine, now)
    if want == '' then
      if px == '0' then done = redis.call('SET', key, head .. load, 'NX')
      else done = redis.call('SET', key, head .. load, 'NX', 'PX', px) end
    elseif px == '0' then done = redis.call('SET', key, head .. load)
    else done = redis.call('SET', key, head .. load, 'PX', px) end
    if done then
      wrote, rev = true, mine
      if watched then
        if expired then
          redis.call('PUBLISH', KEYS[2], 'd' .. struct.pack('>I8I8I2', rev - 1, now, #key) .. key)
        end
        redis.call('PUBLISH', KEYS[2], 'p' .. head .. struct.pack('>I2', #key) .. key .. string.sub(load, 9))
        if px == '0' then redis.call('ZREM', KEYS[3], key)
        else redis.call('ZADD', KEYS[3], math.floor(now / 1000) + px, key) end
      end
      states[i], heads[i] = 'd', head
      if old then
        states[i], out[#out + 1] = 'o', old
      elseif width == 4 then
        local add = ARGV[a + 4]
        if add == '' or type(redis.pcall('XADD', KEYS[5], unpack(cmsgpack.unpack(add)))) == 'string' then
          states[i], ids[#ids + 1] = 'a', ARGV[a + 3]
        end
      end
    else
      cur = redis.pcall('GETRANGE', key, 0, 23)
    end
  end
  if not done then
    states[i], heads[i] = 'c', struct.pack('>I8I8', 0, now)
    if type(cur) ~= 'string' then states[i], out[#out + 1] = 'e', cur.err
    elseif string.sub(cur, 17, 24) == string.sub(load, 1, 8) then states[i], heads[i] = 'd', string.sub(cur, 1, 16)
    elseif read then
      local value = redis.call('GET', key)
      if value then states[i], out[#out + 1] = 'v', value end
    end
  end
end
if wrote then redis.call('SET', KEYS[1], rev) end
out[1], out[2] = table.concat(states), table.concat(heads)
if #ids > 0 then
  local n = redis.pcall('XACK', KEYS[4], group, unpack(ids))
  local ok = type(n) == 'number'
  if not ok or type(redis.pcall('XDEL', KEYS[4], unpack(ids))) ~= 'number' then out[1] = string.gsub(out[1], 'a', 'd') end
  if ok and n > 0 then redis.pcall('HINCRBY', KEYS[6], 'settled:' .. group, n) end
end
return out`

// luaTxn is any transaction.
// KEYS: counter, watch, expiries, the conditions' keys, the keys to read, and for each operation its key, or the set's two.
// ARGV: nonce; number of conditions, of reads, of operations; 1 if something is put or added; the revisions wanted; for each operation
// its kind and what it needs.
// Returns an array: 1 done, 0 refused, 2 done before; revision and time, 16 bytes; the values read.
const luaTxn = `
local nif, nread, nop = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local ok = true
for i = 1, nif do
  if redis.call('GETRANGE', KEYS[3 + i], 0, 7) ~= ARGV[5 + i] then ok = false break end
end
local out = {'1', ''}
for i = 1, nread do out[2 + i] = redis.call('GET', KEYS[3 + nif + i]) end
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
if not ok then
  local k, a = 3 + nif + nread, 5 + nif
  for i = 1, nop do
    local kind = ARGV[a + 1]
    if kind == 'p' then
      local cur = redis.call('GETRANGE', KEYS[k + 1], 0, 23)
      if string.sub(cur, 17, 24) == ARGV[1] then
        out[1], out[2] = '2', string.sub(cur, 1, 16)
        return out
      end
    end
    if kind == 'p' then k, a = k + 1, a + 3 elseif kind == 'd' then k, a = k + 1, a + 1 elseif kind == 'a' then k, a = k + 2, a + 3 else k, a = k + 2, a + 2 end
  end
  out[1], out[2] = '0', struct.pack('>I8I8', 0, now)
  return out
end
if nop == 0 then
  out[2] = struct.pack('>I8I8', 0, now)
  return out
end
local has = redis.call('MGET', KEYS[1], KEYS[2])
local rev = now
if has[1] and tonumber(has[1]) >= rev then rev = tonumber(has[1]) + 1 end
if has[2] then
  local k, a = 3 + nif + nread, 5 + nif
  for i = 1, nop do
    local kind, key = ARGV[a + 1], KEYS[k + 1]
    if (kind == 'p' or kind == 'd') and redis.call('EXISTS', key) == 0 and redis.call('ZREM', KEYS[3], key) == 1 then
      redis.call('PUBLISH', KEYS[2], 'd' .. struct.pack('>I8I8I2', rev, now, #key) .. key)
      rev = rev + 1
    end
    if kind == 'p' then k, a = k + 1, a + 3 elseif kind == 'd' then k, a = k + 1, a + 1 elseif kind == 'a' then k, a = k + 2, a + 3 else k, a = k + 2, a + 2 end
  end
end
if ARGV[5] == '1' then redis.call('SET', KEYS[1], rev) end
local head = struct.pack('>I8I8', rev, now)
local k, a = 3 + nif + nread, 5 + nif
for i = 1, nop do
  local kind, key = ARGV[a + 1], KEYS[k + 1]
  if kind == 'p' then
    local px, value = ARGV[a + 2], ARGV[a + 3]
    if px == '0' then redis.call('SET', key, head .. ARGV[1] .. value)
    else redis.call('SET', key, head .. ARGV[1] .. value, 'PX', px) end
    if has[2] then
      redis.call('PUBLISH', KEYS[2], 'p' .. head .. struct.pack('>I2', #key) .. key .. value)
      if px == '0' then redis.call('ZREM', KEYS[3], key)
      else redis.call('ZADD', KEYS[3], math.floor(now / 1000) + px, key) end
    end
    k, a = k + 1, a + 3
  elseif kind == 'd' then
    if redis.call('DEL', key) == 1 and has[2] then
      redis.call('PUBLISH', KEYS[2], 'd' .. head .. struct.pack('>I2', #key) .. key)
      redis.call('ZREM', KEYS[3], key)
    end
    k, a = k + 1, a + 1
  elseif kind == 'a' then
    local score, member = ARGV[a + 2], ARGV[a + 3]
    local old = redis.call('HGET', KEYS[k + 2], member)
    if old ~= score then
      if old then redis.call('ZREM', key, old .. member) end
      redis.call('HSET', KEYS[k + 2], member, score)
      redis.call('ZADD', key, 0, score .. member)
    end
    k, a = k + 2, a + 3
  else
    local member = ARGV[a + 2]
    local old = redis.call('HGET', KEYS[k + 2], member)
    if old then
      redis.call('HDEL', KEYS[k + 2], member)
      redis.call('ZREM', key, old .. member)
    end
    k, a = k + 2, a + 2
  end
end
if ARGV[5] ~= '1' then redis.call('SET', KEYS[1], rev) end
out[2] = head
return out`

// luaWatch says that somebody watches, if nobody said so yet; what expires has then to be looked for.
// KEYS: watch, expiries. ARGV: how long it is valid, in ms. Returns 1 when the expiries are known, 0 when they have to be gathered.
const luaWatch = `
local state = redis.call('GET', KEYS[1])
if state == '1' then
  redis.call('PEXPIRE', KEYS[1], ARGV[1])
  return 1
end
if not state then redis.call('DEL', KEYS[2]) end
redis.call('SET', KEYS[1], '0', 'PX', ARGV[1])
return 0`

// luaGather notes when keys will expire. KEYS: expiries, keys.
const luaGather = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 2, #KEYS do
  local left = redis.call('PTTL', KEYS[i])
  if left >= 0 then redis.call('ZADD', KEYS[1], now + left, KEYS[i]) end
end
return #KEYS - 1`

// luaSweep tells of the keys that have expired and says again that somebody watches. It reads keys that it finds, not only those
// it is given; they lie in the same slot.
// KEYS: counter, watch, expiries. ARGV: how many at most; how long the watch is valid, in ms. Returns how many, or -1 if the watch was lost.
const luaSweep = `
if redis.call('PEXPIRE', KEYS[2], ARGV[2]) == 0 then return -1 end
redis.call('PEXPIRE', KEYS[3], ARGV[2] * 2)
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', math.floor(now / 1000), 'LIMIT', 0, ARGV[1])
if #due == 0 then return 0 end
local rev = now
local last = redis.call('GET', KEYS[1])
if last and tonumber(last) >= rev then rev = tonumber(last) + 1 end
for i = 1, #due do
  local key = due[i]
  local left = redis.call('PTTL', key)
  if left >= 0 then
    redis.call('ZADD', KEYS[3], math.floor(now / 1000) + left + 1, key)
  else
    redis.call('ZREM', KEYS[3], key)
    if left == -2 then
      redis.call('PUBLISH', KEYS[2], 'd' .. struct.pack('>I8I8I2', rev, now, #key) .. key)
      rev = rev + 1
    end
  end
end
redis.call('SET', KEYS[1], rev)
return #due`

// script is a Lua script with its digest, by which Redis knows it.
type script struct {
	source string
	sha    string
}

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source))
	return &script{source: source, sha: hex.EncodeToString(sum[:])}
}

// scripts are those of a store.
type scripts struct {
	swap, txn, watch, gather, sweep *script
}

func newScripts() scripts {
	return scripts{
		swap: newScript(luaSwap), txn: newScript(luaTxn), watch: newScript(luaWatch),
		gather: newScript(luaGather), sweep: newScript(luaSweep),
	}
}
