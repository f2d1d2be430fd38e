#!lua name=m3tr_@TAG@
-- The functions of the event store. Each function makes its whole change of a video atomically.
-- KEYS of every function: one prefix for each video. The names below are appended to the prefix. All keys of a video contain the
-- same hash tag, so they are on the same node of a cluster.
--
-- meta         string: a MessagePack list, with the positions given below. It is small, and is read and written as a whole.
--              This costs less than a hash with one field for each value.
-- about        string: the metadata as JSON. If the video was registered with an API key, its last field is registered_by, the
--              name of that key. It is separate from meta, so that applying rows need not read it.
-- bins:<type>:<block>  hash from bin to a number. Events: the sum in the bin (the open bin is not in the hash). Counters: the
--              largest value in the bin. Type "reach": the sum of audiences in the bin. A block has BLOCK bins. With so few, Redis
--              stores the hash as a listpack, which takes about 10 bytes for each bin.
--              Type "signals": hash from "<bin>:<signal>" to "<time> <value>", the newest reading of the signal in the bin.
-- parked       list: the rows of an unregistered video as they were sent (MessagePack), up to a limit.
-- parked-ids   set: the event ids of the parked rows.
-- ids:<day>    set: the event ids that arrived from that day on, for dedup_ttl_s rounded up to days. The set expires dedup_ttl_s
--              after that. An id is therefore remembered for at least dedup_ttl_s and at most about twice as long. All ids of a
--              video are in at most two sets.
--
-- Every decision about a video is made before the first write, so a refused call changes nothing.
-- Numbers are doubles, which are exact up to MAX. A count, sum or audience above MAX is refused.

local EDGES = {@EDGES@}
local MAX = 9007199254740991
local CHUNK = 1000
local BLOCK = 128
local DAY_S = 86400
local SECOND_US = 1000000
local LINEAR = 64
local LINEAR_US = LINEAR * SECOND_US
local LAST_BIN = #EDGES - 2
local LOG_RATIO = 0.015504186535965254 -- ln(1 + 1/64), written out because functions load without the math library
local COUNTERS_ROW = 255 -- the type code of a counters row

-- Positions in meta. Times are in microseconds. NEWEST is -1 before the first row. IDS_NOW and IDS_BEFORE are the days of the two
-- id sets, or -1 without a set. From TYPES on, there are FIELDS values for each engagement type:
--   1. name
--   2. mode. The type "signals" has the mode READINGS and no total
--   3. total: the sum of events, or the largest counter value
--   4. top: for counters, the time of the largest value (us), else -1
--   5. open bin: for events and reach, the newest bin, else -1
--   6. the sum in the open bin
-- The newest bin of events is called open. Its sum is kept in meta, because most rows add to it. When a newer bin opens, the old one
-- is moved to its hash.
local PUBLISHED, REGISTERED, VERSION, NEWEST, IDS_NOW, IDS_BEFORE, TYPES, FIELDS = 1, 2, 3, 4, 5, 6, 7, 6
local UNFED, EVENTS, CUMULATIVE, READINGS = 0, 1, 2, 3
local SIGNALS = 'signals'
local TILDE = 126 -- the first character of a signal's name in the cells of a counters row

-- Returns the bin of an age. Next to an edge, the logarithm may give a neighbouring bin, so the edges decide.
local function bin_of(age)
  if age < LINEAR_US then return math.floor(age / SECOND_US) end
  local bin = math.min(LINEAR + math.floor(math.log(age / LINEAR_US) / LOG_RATIO), LAST_BIN)
  while EDGES[bin + 1] > age do bin = bin - 1 end
  while bin < LAST_BIN and EDGES[bin + 2] <= age do bin = bin + 1 end
  return bin
end

-- Raises the error that marks a record as damaged. Functions then reply {'damaged', why} for this video and continue with the others.
local function damaged(why) error('damaged: ' .. why, 0) end

-- Returns the content of meta, unpacked and packed, or nil if there is none. A record of a newer release begins with its format as
-- text. Only cheap checks are made here. Other damage makes the calling function fail before it writes, or Python finds it.
local function meta_of(prefix)
  local packed = redis.call('GET', prefix .. 'meta')
  if not packed then return nil end
  local meta = cmsgpack.unpack(packed)
  if type(meta) ~= 'table' then damaged('meta is not a list') end
  local n = #meta
  if type(meta[PUBLISHED]) ~= 'number' then damaged('meta has the format ' .. string.sub(tostring(meta[PUBLISHED]), 1, 20)) end
  if n < IDS_BEFORE or (n - IDS_BEFORE) % FIELDS ~= 0 then damaged('meta has ' .. n .. ' fields') end
  -- This fails if one of them is not a number.
  local _ = meta[REGISTERED] + meta[VERSION] + meta[NEWEST] + meta[IDS_NOW] + meta[IDS_BEFORE]
  return meta, packed
end

-- Returns the message of an error, shortened.
local function message_of(fault) return string.sub(type(fault) == 'table' and fault.err or tostring(fault), 1, 200) end

local function block_key(prefix, kind, bin) return prefix .. 'bins:' .. kind .. ':' .. math.floor(bin / BLOCK) end

local function in_chunks(command, key, items, first, last, each)
  for from = first, last, CHUNK do
    local to = math.min(from + CHUNK - 1, last)
    local reply = redis.call(command, key, unpack(items, from, to))
    if each then each(from, reply) end
  end
end
