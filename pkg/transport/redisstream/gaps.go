package redisstream

import (
	"context"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// What was taken off a stream before it was done is lost, and Redis tells nobody. It does count the entries that a stream ever had,
// and so what has left it; beside that, whatever settles entries for the group counts them, in the same script. What has left the stream,
// was not settled and is not worked on any more is lost. Both counts are the server's and move with the stream, so neither a crash
// nor a second sidecar makes a difference.
//
// Entries that lie before all that the group works on or waits for are none of its: it began behind them, or a foreign consumer has
// acknowledged and not deleted them. Trimming takes the oldest first, so nothing that counts is lost while such lie there. Once they are
// gone, their number, where it was known, is no loss.

// lookEvery is how often a source looks whether something was lost.
const lookEvery = 15 * time.Second

// gapScript says how many entries were lost since it was last run for the group, by anyone. Run again with the same call's name it gives
// the same answer.
//
// KEYS stream, counts; ARGV group, name of the call, 1 where the group was just made. Returns the number; -1 where the server does
// not count, which Redis 7 does; -2 where entries may be lost and their number is not known.
var gapScript = redis.NewScript(`
local function fields(list)
  local out = {}
  for i = 1, #list, 2 do out[list[i]] = list[i + 1] end
  return out
end
local function split(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function less(a, b)
  local ams, aseq = split(a)
  local bms, bseq = split(b)
  return ams < bms or ams == bms and aseq < bseq
end
local stream, counts, group = KEYS[1], KEYS[2], ARGV[1]
if redis.call('EXISTS', stream) == 0 then return 0 end
local s = fields(redis.call('XINFO', 'STREAM', stream))
if not s['entries-added'] then return -1 end
local g, shared = nil, false
for _, list in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local x = fields(list)
  if x['name'] == group then g = x
  elseif redis.call('HEXISTS', counts, 'settled:' .. x['name']) == 1 then shared = true end
end
if not g then return 0 end
local names = {'settled:' .. group, 'base:' .. group, 'before:' .. group, 'left:' .. group, 'call:' .. group, 'gap:' .. group}
if ARGV[3] == '1' then redis.call('HDEL', counts, unpack(names)) end
local has = redis.call('HMGET', counts, unpack(names))
local settled, base, before, left = tonumber(has[1] or 0), tonumber(has[2] or nil), has[3], tonumber(has[4] or nil)
if has[5] == ARGV[2] then return tonumber(has[6]) end

local first, given, pending = s['recorded-first-entry-id'], g['last-delivered-id'], g['pending']
local ahead = s['length'] == 0 or less(given, first) -- all that was handed out has left the stream
local gone = 0 -- those of the pending ones that have left it, which are worked on or will be found missing
if ahead then gone = pending
elseif pending > 0 then
  gone = #redis.call('XPENDING', stream, group, '-', '(' .. first, 1000)
  if gone == 1000 then return 0 end -- next time
end
local lost = s['entries-added'] - s['length'] - settled - gone

local now, was, gap = before, before, 0
if not ahead and #redis.call('XPENDING', stream, group, first, first, 1) == 0 then
  if now == given and left and base then left = math.max(0, left - (lost - base)) else left = nil end
  now = given
  if left then -- as before, but for what was trimmed
  elseif given == s['last-generated-id'] then left = s['length'] - pending + gone
  elseif type(g['lag']) == 'number' then left = s['length'] - pending + gone - g['lag'] end
elseif before and (ahead or less(before, first)) then now = false end
if base and not now and not shared and lost > base then
  if not was then gap = lost - base
  elseif left then gap = math.max(0, lost - base - left)
  else gap = -2 end
end
if base ~= lost then redis.call('HSET', counts, names[2], string.format('%.0f', lost)) end
if now then
  redis.call('HSET', counts, names[3], now)
  if left then redis.call('HSET', counts, names[4], string.format('%.0f', left)) else redis.call('HDEL', counts, names[4]) end
elseif was then redis.call('HDEL', counts, names[3], names[4]) end
if gap ~= 0 then redis.call('HSET', counts, names[5], ARGV[2], names[6], string.format('%.0f', gap)) end
return gap
`)

// luaCount begins the scripts that settle entries: count notes how many, in the last of their keys, for the group that is their first
// argument. A Redis without memory takes it too, as a write has gone before.
const luaCount = `
local function count(n)
  if n > 0 then redis.call('HINCRBY', KEYS[#KEYS], 'settled:' .. ARGV[1], n) end
end
`

// look counts and tells what was lost on a stream since anybody looked. fresh says that the group was just made.
func (t *Transport) look(ctx context.Context, stream string, fresh bool) error {
	call := t.callOf(stream)
	k, made := keysOf(stream), 0
	if fresh {
		made = 1
	}
	n, err := gapScript.Run(ctx, t.client, []string{k.stream, k.count}, t.cfg.Group, call, made).Int64()
	if err != nil {
		return fail("look for entries that were trimmed from stream", stream, err)
	}
	t.mu.Lock()
	t.calls[stream] = "" // answered: the next call has another name
	t.mu.Unlock()
	switch {
	case n == -1:
		t.uncounted.Store(true)
	case n == -2:
		t.log.Error("entries were trimmed from a job stream; some may not have been read, and how many is not known. "+
			"Let nobody trim it (XTRIM, XADD with MAXLEN or MINID)", "stream", stream)
	case n > 0:
		t.lost(stream, n)
	}
	return nil
}

// lost counts and tells entries that are gone for good.
func (t *Transport) lost(stream string, n int64) {
	t.gaps.Add(n)
	t.log.Error("entries left a job stream before they were done. Let nobody trim it (XTRIM, XADD with MAXLEN or MINID) or delete from it",
		"stream", stream, "lost", n)
}

// callOf names the next call for a stream: the last one's name while its answer has not come.
func (t *Transport) callOf(stream string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.calls[stream] == "" {
		t.seq++
		t.calls[stream] = t.cfg.Consumer + "-" + strconv.Itoa(t.seq)
	}
	return t.calls[stream]
}

// lookAfter looks when it is time, or when entries were missing, and returns when it will be time again.
func (s *source) lookAfter(ctx context.Context, due time.Time) time.Time {
	now := time.Now()
	if !s.missing.Swap(false) && now.Before(due) {
		return due
	}
	if err := s.t.look(ctx, s.stream, false); err != nil && ctx.Err() == nil {
		s.log.Debug("looking for trimmed entries is delayed", "stream", s.stream, "err", err)
	}
	return now.Add(lookEvery - rand.N(lookEvery/5)) // not all at once when many started together
}
