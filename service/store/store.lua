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
--   2. mode
--   3. total: the sum of events, or the largest counter value
--   4. top: for counters, the time of the largest value (us), else -1
--   5. open bin: for events and reach, the newest bin, else -1
--   6. the sum in the open bin
-- The newest bin of events is called open. Its sum is kept in meta, because most rows add to it. When a newer bin opens, the old one
-- is moved to its hash.
local PUBLISHED, REGISTERED, VERSION, NEWEST, IDS_NOW, IDS_BEFORE, TYPES, FIELDS = 1, 2, 3, 4, 5, 6, 7, 6
local UNFED, EVENTS, CUMULATIVE = 0, 1, 2

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

-- Rows are passed as columns. Element i of each column belongs to row i:
--   times     in microseconds
--   ids       an event id, or false for none
--   kinds     an event row's type, or a counters row's {type, value, ...}
--   counts    nil if all counts are 1
--   reaches   nil if all are 0

local FORMATS = {d = {}, B = {}, Bc0 = {}}
local STEP = 100

-- Unpacks the n values of a column. Each value is packed as `format`.
local function column(blob, format, n)
  local out, position = {}, 1
  for from = 0, n - 1, STEP do
    local count = math.min(STEP, n - from)
    local known = FORMATS[format][count]
    if not known then
      known = '<' .. string.rep(format, count)
      FORMATS[format][count] = known
    end
    local part = {struct.unpack(known, blob, position)}
    for i = 1, count do out[from + i] = part[i] end
    position = part[count + 1]
  end
  return out
end

-- Unpacks the columns of a call. head.names are the types. head.cells are the cells of the counters rows, in order. The other
-- arguments are packed columns. An empty counts, reaches or ids means that all values are the default.
local function columns_of(head, times, ids, kinds, counts, reaches)
  local n = #kinds
  local rows = {n = n, times = column(times, 'd', n), ids = {}, kinds = column(kinds, 'B', n), with_ids = ids ~= ''}
  if rows.with_ids then
    rows.ids = column(ids, 'Bc0', n)
    for i = 1, n do
      if rows.ids[i] == '' then
        rows.ids[i] = false
        rows.with_ids = false
      end
    end
  end
  if counts ~= '' then rows.counts = column(counts, 'd', n) end
  if reaches ~= '' then rows.reaches = column(reaches, 'd', n) end
  local names, types, cell = head.names, rows.kinds, 0
  for i = 1, n do
    if types[i] == COUNTERS_ROW then
      cell = cell + 1
      types[i] = head.cells[cell]
    else
      types[i] = names[types[i] + 1]
    end
  end
  return rows
end

-- Returns a list with the ids of rows first..last, and the first and last position in it. Rows in `skipped` are left out. `skipped`
-- holds offsets from first.
local function ids_of(rows, first, last, skipped)
  if rows.with_ids and not skipped then return rows.ids, first, last end
  local ids = {}
  for i = first, last do
    if rows.ids[i] and not (skipped and skipped[i - first]) then ids[#ids + 1] = rows.ids[i] end
  end
  return ids, 1, #ids
end

-- Looks up ids first..last of a list in the set `key`. Marks the ids that are in the set as seen by video v.
local function mark_seen(seen, v, key, ids, first, last)
  in_chunks('SMISMEMBER', key, ids, first, last, function(from, reply)
    for i = 1, #reply do
      if reply[i] == 1 then seen[ids[from + i - 1]] = v end
    end
  end)
end

-- Parks rows of an unregistered video, up to the limit.
local function park(prefix, rows, first, last, head)
  -- This case is handled first, because it must be cheap: a client may send very many ids that are not registered.
  if head.park_rows == 0 and not rows.with_ids and last == first and not rows.ids[first] then return {'full'} end
  local duplicates, rejected, kept, new_ids, seen = {}, {}, {}, {}, {}
  mark_seen(seen, true, prefix .. 'parked-ids', ids_of(rows, first, last))
  local free = head.park_rows - redis.call('LLEN', prefix .. 'parked')
  for i = first, last do
    local id = rows.ids[i] or false
    if id and seen[id] then
      duplicates[#duplicates + 1] = i - first
    elseif #kept >= free then
      rejected[#rejected + 1] = {i - first, 'parking_full', ''}
    else
      local count, reach = rows.counts and rows.counts[i] or 1, rows.reaches and rows.reaches[i] or 0
      kept[#kept + 1] = cmsgpack.pack({rows.times[i], id, rows.kinds[i], count, reach})
      if id then
        seen[id] = true
        new_ids[#new_ids + 1] = id
      end
    end
  end
  if #kept > 0 then
    in_chunks('RPUSH', prefix .. 'parked', kept, 1, #kept)
    in_chunks('SADD', prefix .. 'parked-ids', new_ids, 1, #new_ids)
    redis.call('EXPIRE', prefix .. 'parked', head.park_ttl_s)
    redis.call('EXPIRE', prefix .. 'parked-ids', head.park_ttl_s)
  end
  return {'parked', #kept, duplicates, rejected}
end

local function is_row(row)
  return type(row) == 'table' and type(row[1]) == 'number' and (row[2] == false or type(row[2]) == 'string')
    and (type(row[3]) == 'string' or type(row[3]) == 'table') and type(row[4]) == 'number' and type(row[5]) == 'number'
end

-- Returns the parked rows, and the number of entries in the list that are not valid rows.
local function parked_rows(prefix)
  local rows, broken = {n = 0, times = {}, ids = {}, kinds = {}, counts = {}, reaches = {}}, 0
  for _, packed in ipairs(redis.call('LRANGE', prefix .. 'parked', 0, -1)) do
    local read, row = pcall(cmsgpack.unpack, packed)
    if read and is_row(row) then
      local i = rows.n + 1
      rows.times[i], rows.ids[i], rows.kinds[i], rows.counts[i], rows.reaches[i] = row[1], row[2], row[3], row[4], row[5]
      rows.n = i
    else
      broken = broken + 1
    end
  end
  return rows, broken
end

-- Returns the state of one type of a video: its values in meta. Later, `closed` is added to the state. It maps bins that are not open
-- to what the rows add to them.
local function state_of(plan, kind)
  local state = plan.states[kind]
  if not state then
    local meta = plan.meta
    local at = TYPES
    while meta[at] and meta[at] ~= kind do at = at + FIELDS end
    if not meta[at] then
      meta[at], meta[at + 1], meta[at + 2], meta[at + 3], meta[at + 4], meta[at + 5] = kind, UNFED, 0, -1, -1, 0
    end
    state = {at = at, mode = meta[at + 1], total = meta[at + 2], top = meta[at + 3], open = meta[at + 4], sum = meta[at + 5]}
    plan.states[kind] = state
  end
  return state
end

local function add_to_closed(state, bin, count)
  if not state.closed then state.closed = {} end
  state.closed[bin] = (state.closed[bin] or 0) + count
end

local function add_to(state, bin, count)
  state.added = true
  state.total = state.total + count
  if bin == state.open then
    state.sum = state.sum + count
  elseif bin < state.open then
    add_to_closed(state, bin, count)
  else
    if state.open >= 0 then add_to_closed(state, state.open, state.sum) end
    state.open, state.sum = bin, count
  end
end

-- Adds an event row to the plan. If the row is refused, returns the reason and the subject.
local function add_event(plan, age, kind, count, reach)
  local state = state_of(plan, kind)
  if state.mode == CUMULATIVE then return 'mode_conflict', kind end
  if state.total + count > MAX then return 'overflow', kind end
  local bin = bin_of(age)
  if reach > 0 then
    local audience = state_of(plan, 'reach')
    if audience.total + reach > MAX then return 'overflow', 'reach' end
    add_to(audience, bin, reach)
  end
  state.mode = EVENTS
  add_to(state, bin, count)
end

-- Adds a row of cumulative counters to the plan. If the row is refused, returns the reason and the subject. The third value is the
-- number of its counters that are below the total and not older than the largest value.
local function raise_counters(plan, time, cells)
  for i = 1, #cells, 2 do
    if state_of(plan, cells[i]).mode == EVENTS then return 'mode_conflict', cells[i] end
  end
  local bin = bin_of(time - plan.meta[PUBLISHED])
  local corrected = 0
  for i = 1, #cells, 2 do
    local state, value = state_of(plan, cells[i]), cells[i + 1]
    state.mode = CUMULATIVE
    if not state.raised then state.raised = {} end
    local cell = state.raised[bin]
    if not cell then
      local old = tonumber(redis.call('HGET', block_key(plan.prefix, cells[i], bin), bin) or '-1')
      cell = {value = old, old = old}
      state.raised[bin] = cell
    end
    if value > cell.value then cell.value = value end
    if value < state.total and time >= state.top then corrected = corrected + 1 end
    if value > state.total or state.top < 0 then
      state.total = math.max(state.total, value)
      state.top = time
    end
  end
  return nil, nil, corrected
end

-- Adds each row to the plan, unless the row is a duplicate or is refused. Returns three lists: duplicates, rejected rows, corrections.
-- A list is nil if it is empty. Offsets in the lists count from 0.
local function plan_rows(plan, rows, first, last)
  local duplicates, rejected, corrections
  local times, ids, kinds, counts, reaches = rows.times, rows.ids, rows.kinds, rows.counts, rows.reaches
  local seen, v, published, newest = plan.seen, plan.v, plan.meta[PUBLISHED], plan.meta[NEWEST]
  for i = first, last do
    local id, time, kind = ids[i], times[i], kinds[i]
    if id and seen[id] == v then
      duplicates = duplicates or {}
      duplicates[#duplicates + 1] = i - first
    else
      local reason, subject, corrected
      if time < published then
        reason, subject = 'before_publication', 'time'
      elseif type(kind) == 'table' then
        reason, subject, corrected = raise_counters(plan, time, kind)
        for _ = 1, corrected or 0 do
          corrections = corrections or {}
          corrections[#corrections + 1] = i - first
        end
      else
        reason, subject = add_event(plan, time - published, kind, counts and counts[i] or 1, reaches and reaches[i] or 0)
      end
      if reason then
        rejected = rejected or {}
        rejected[#rejected + 1] = {i - first, reason, subject}
      else
        if id then seen[id] = v end
        if time > newest then newest = time end
        plan.applied = plan.applied + 1
      end
    end
  end
  plan.meta[NEWEST] = newest
  return duplicates, rejected, corrections
end

-- Writes the bins of a plan. Also puts the types' new values into the plan's meta, which `write` stores later. Returns whether
-- anything changed.
local function write_bins(plan)
  local changed = false
  local meta, prefix = plan.meta, plan.prefix
  for kind, state in pairs(plan.states) do
    local at = state.at
    meta[at + 1], meta[at + 2], meta[at + 3], meta[at + 4], meta[at + 5] = state.mode, state.total, state.top, state.open, state.sum
    changed = changed or state.added
    for bin, sum in pairs(state.closed or {}) do redis.call('HINCRBY', block_key(prefix, kind, bin), bin, sum) end
    for bin, cell in pairs(state.raised or {}) do
      if cell.value > cell.old then
        changed = true
        redis.call('HSET', block_key(prefix, kind, bin), bin, cell.value)
      end
    end
  end
  return changed
end

local function id_days(dedup_ttl_s) return math.ceil(dedup_ttl_s / DAY_S) end

local function ids_due(meta, day, dedup_ttl_s) return meta[IDS_NOW] < 0 or day >= meta[IDS_NOW] + id_days(dedup_ttl_s) end

-- Adds ids to the newest set. If that set is old enough, starts a new set and adds them there. Returns how many of the ids were new.
local function write_ids(plan, day, dedup_ttl_s, ids, first, last)
  if first > last then return 0 end
  local meta, new_set, added = plan.meta, ids_due(plan.meta, day, dedup_ttl_s), 0
  if new_set then meta[IDS_BEFORE], meta[IDS_NOW] = meta[IDS_NOW], day end
  local key = plan.prefix .. 'ids:' .. meta[IDS_NOW]
  in_chunks('SADD', key, ids, first, last, function(_, reply) added = added + reply end)
  if new_set then redis.call('EXPIREAT', key, (day + id_days(dedup_ttl_s)) * DAY_S + dedup_ttl_s) end
  return added
end

-- Returns the offsets of the rows that were not applied, or nil if all were applied.
local function not_applied(duplicates, rejected)
  if not duplicates and not rejected then return nil end
  local offsets = {}
  for _, offset in ipairs(duplicates or {}) do offsets[offset] = true end
  for _, refused in ipairs(rejected or {}) do offsets[refused[1]] = true end
  return offsets
end

-- Marks the ids of rows first..last that are already in the video's older set. With newest_too, also marks those in the newest set.
local function find_seen(plan, rows, first, last, day, dedup_ttl_s, newest_too)
  local meta = plan.meta
  local ids, from, to = ids_of(rows, first, last)
  if newest_too and meta[IDS_NOW] >= 0 then mark_seen(plan.seen, plan.v, plan.prefix .. 'ids:' .. meta[IDS_NOW], ids, from, to) end
  if meta[IDS_BEFORE] >= 0 and day <= meta[IDS_BEFORE] + 2 * id_days(dedup_ttl_s) then
    mark_seen(plan.seen, plan.v, plan.prefix .. 'ids:' .. meta[IDS_BEFORE], ids, from, to)
  end
end

-- Writes the meta of a plan. If the video changed, gives it the next version.
local function write(plan, changed, now_us)
  local meta = plan.meta
  -- Versions follow the clock, so they never repeat. This also holds after a deletion, or after a crash that lost the newest changes.
  if changed then meta[VERSION] = math.max(meta[VERSION] + 1, now_us) end
  redis.call('SET', plan.prefix .. 'meta', cmsgpack.pack(meta))
end

local function new_plan(prefix, v, seen, meta)
  return {prefix = prefix, v = v, seen = seen, meta = meta, states = {}, applied = 0}
end

-- Deletes the bins and ids of a video whose meta cannot be read. Without meta, it is unknown which keys exist. So every key is deleted
-- that the video may have with one of types[first], types[first + 1], ... Returns the number of deleted keys.
local function purge(prefix, types, first, dedup_ttl_s)
  local deleted = 0
  for i = first, #types do
    for block = 0, math.floor(LAST_BIN / BLOCK) do
      deleted = deleted + redis.call('DEL', prefix .. 'bins:' .. types[i] .. ':' .. block)
    end
  end
  local today = math.floor(tonumber(redis.call('TIME')[1]) / DAY_S)
  for day = today - 2 * id_days(dedup_ttl_s) - 1, today do deleted = deleted + redis.call('DEL', prefix .. 'ids:' .. day) end
  return deleted
end

-- Returns `metadata` with the registrar of the video's present metadata, `about`. The registrar is the API key that first registered
-- the video, and it never changes. Its name is hexadecimal and stands at the end. Quotes within other values are escaped, so no other
-- value can look like it.
local function with_registrar(about, metadata)
  if not about then return metadata end
  local bare = string.gsub(metadata, ',?"registered_by":"%x+"}$', '}')
  local registrar = string.match(about, '"registered_by":"%x+"}$')
  if not registrar then return bare end
  return string.sub(bare, 1, -2) .. (#bare > 2 and ',' or '') .. registrar
end

-- Registers a video, applies its parked rows, and then applies rows first..last.
local function register(prefix, v, seen, rows, first, last, head, now_us, day)
  local wanted = head.register
  local meta, packed = meta_of(prefix)
  local about = redis.call('GET', prefix .. 'about')
  -- Metadata without meta is left over from a damaged record. The old bins of that record must not count in the new one.
  if not meta and about then purge(prefix, head.types, 1, head.dedup_ttl_s) end
  meta = meta or {wanted.published_us, now_us, 0, -1, -1, -1}
  if meta[PUBLISHED] ~= wanted.published_us and meta[NEWEST] >= 0 then return {'conflict', meta[PUBLISHED]} end
  local moved = meta[PUBLISHED] ~= wanted.published_us
  meta[PUBLISHED] = wanted.published_us
  local plan = new_plan(prefix, v, seen, meta)
  local newest = meta[NEWEST]
  local parked, broken = {n = 0}, 0
  if not packed then parked, broken = parked_rows(prefix) end
  local parked_ids, parked_rejected = {}, {}
  if parked.n > 0 then
    local duplicates, rejected = plan_rows(plan, parked, 1, parked.n)
    parked_rejected = rejected or {}
    parked_ids = ids_of(parked, 1, parked.n, not_applied(duplicates, rejected) or {})
  end
  local parked_applied = plan.applied
  find_seen(plan, rows, first, last, day, head.dedup_ttl_s, true)
  local duplicates, rejected, corrections = plan_rows(plan, rows, first, last)
  if head.strict and rejected then return {'refused', meta[PUBLISHED], rejected} end
  local changed = write_bins(plan)
  changed = changed or not packed or moved or meta[NEWEST] > newest
  write_ids(plan, day, head.dedup_ttl_s, parked_ids, 1, #parked_ids)
  write_ids(plan, day, head.dedup_ttl_s, ids_of(rows, first, last, not_applied(duplicates, rejected)))
  local metadata = with_registrar(packed and about, wanted.metadata)
  if about ~= metadata then
    redis.call('SET', prefix .. 'about', metadata)
    changed = true
  end
  if parked.n + broken > 0 then redis.call('DEL', prefix .. 'parked', prefix .. 'parked-ids') end
  write(plan, changed, now_us)
  return {changed and 'changed' or 'unchanged', meta[VERSION], meta[PUBLISHED], duplicates or {}, rejected or {}, corrections or {},
    parked_applied, #parked_rejected + broken, not packed}
end

-- Applies rows first..last to one video.
local function apply_one(prefix, v, seen, rows, first, last, head, expected, now_us, day)
  if head.register then return register(prefix, v, seen, rows, first, last, head, now_us, day) end
  local meta = meta_of(prefix)
  if expected and not (meta and meta[PUBLISHED] == expected) then return {'stale'} end
  if not meta then return park(prefix, rows, first, last, head) end
  local plan = new_plan(prefix, v, seen, meta)
  local version, newest = meta[VERSION], meta[NEWEST]
  -- The reply to adding a single id shows whether the id was new, so it is not looked up first. If it was not new, nothing else is
  -- written.
  local single = first == last and rows.ids[first] and not ids_due(meta, day, head.dedup_ttl_s)
  find_seen(plan, rows, first, last, day, head.dedup_ttl_s, not single)
  local duplicates, rejected, corrections = plan_rows(plan, rows, first, last)
  if single and rejected then
    mark_seen(seen, v, prefix .. 'ids:' .. meta[IDS_NOW], rows.ids, first, last)
    if seen[rows.ids[first]] == v then duplicates, rejected = {0}, nil end
  end
  if head.strict and rejected then return {'refused', meta[PUBLISHED], rejected} end
  local changed = false
  if plan.applied > 0 then
    local added = write_ids(plan, day, head.dedup_ttl_s, ids_of(rows, first, last, not_applied(duplicates, rejected)))
    if single and added == 0 then return {'unchanged', version, meta[PUBLISHED], {0}, {}, {}} end
    changed = write_bins(plan) or meta[NEWEST] > newest
    write(plan, changed, now_us)
  end
  if duplicates or rejected or corrections then
    return {changed and 'changed' or 'unchanged', meta[VERSION], meta[PUBLISHED], duplicates or {}, rejected or {}, corrections or {}}
  end
  return {changed and 'changed' or 'unchanged', meta[VERSION], meta[PUBLISHED]}
end

-- Returns the reply for a video on which a function failed. An error while reading its record, or computing with it, counts as damage.
local DAMAGE = {'^damaged: ', 'WRONGTYPE', 'hash value is not', 'Bad data format', 'attempt to ', 'Missing bytes'}
local function fault_of(fault)
  local message = message_of(fault)
  for _, sign in ipairs(DAMAGE) do
    if string.find(message, sign) then return {'damaged', message} end
  end
  return {'error', message}
end

-- Applies rows to many videos independently. If one video fails, only its own reply says so.
-- ARGV: head, times, ids, kinds, counts, reaches. The last five are packed columns. head is a MessagePack map:
--   lengths    the number of rows of each video. The rows of a video follow one another.
--   names      the list of types. A code in kinds is an index into it.
--   cells      the cells of the counters rows, if there are any
--   expected   for each video, the published_us that its rows were merged with, or 0 if they were not merged. May be absent.
--   register   {published_us, metadata}, only for a call with one video. Absent if the video is not to be registered.
--   types      with register: all types that the video may have
--   strict     whether all rows of a video are refused if one is refused
--   dedup_ttl_s, park_rows, park_ttl_s: see the settings of the same names
-- Replies (MessagePack) with one of these lists for each video. Python decodes them in replies.py.
--   {'changed', version, published_us} or {'unchanged', version, published_us}. If there are any duplicates, rejected or corrected
--     rows, these three lists follow. After register, three more values follow: the number of parked rows applied, the number of
--     parked rows rejected, and whether the video is new.
--   {'parked', kept, duplicates, rejected}
--   {'full'}: the video's only row was refused, because no rows may be parked
--   {'stale'}: the video does not have the expected published_us
--   {'conflict', published_us}
--   {'refused', published_us, rejected}
--   {'damaged', why}
--   {'error', message}
local function apply(keys, args)
  local head = cmsgpack.unpack(args[1])
  local clock = redis.call('TIME')
  local now_us = tonumber(clock[1]) * SECOND_US + tonumber(clock[2])
  local rows = columns_of(head, args[2], args[3], args[4], args[5], args[6])
  local day = math.floor(now_us / SECOND_US / DAY_S)
  local replies, seen, first = {}, {}, 1
  for v, prefix in ipairs(keys) do
    local last = first + head.lengths[v] - 1
    local expected = head.expected and head.expected[v] > 0 and head.expected[v]
    local ok, reply = pcall(apply_one, prefix, v, seen, rows, first, last, head, expected, now_us, day)
    replies[v] = ok and reply or fault_of(reply)
    first = last + 1
  end
  return cmsgpack.pack(replies)
end

-- Calls each(type, key) for every key that may hold bins of a video.
local function each_block(prefix, meta, each)
  if meta[NEWEST] < 0 then return end
  for at = TYPES, #meta, FIELDS do
    for block = 0, math.floor(bin_of(meta[NEWEST] - meta[PUBLISHED]) / BLOCK) do
      each(meta[at], prefix .. 'bins:' .. meta[at] .. ':' .. block)
    end
  end
end

-- Returns one video:
--   {} if it is not registered
--   {version} if the caller already has this version
--   {version, meta, metadata, {type, {bin, value, ...}, ...}} otherwise. A type may occur several times.
local function read_one(prefix, known)
  local meta, packed = meta_of(prefix)
  if not meta then return {} end
  local version = string.format('%.0f', meta[VERSION])
  if version == known then return {version} end
  local cells = {}
  each_block(prefix, meta, function(kind, key)
    local block = redis.call('HGETALL', key)
    if #block > 0 then
      cells[#cells + 1] = kind
      cells[#cells + 1] = block
    end
  end)
  for at = TYPES, #meta, FIELDS do
    if meta[at + 4] >= 0 then
      cells[#cells + 1] = meta[at]
      cells[#cells + 1] = {string.format('%.0f', meta[at + 4]), string.format('%.0f', meta[at + 5])}
    end
  end
  local about = redis.call('GET', prefix .. 'about')
  if not about then damaged('about is missing') end
  return {version, packed, about, cells}
end

-- Reads videos. ARGV: for each video, the version that the caller already has, or ''. Replies with what read_one returns for each
-- video, or with {'damaged', why} for a video that cannot be read.
local function read(keys, args)
  local videos = {}
  for i = 1, #keys do
    local ok, video = pcall(read_one, keys[i], args[i])
    videos[i] = ok and video or {'damaged', message_of(video)}
  end
  return videos
end

-- Deletes everything about a video, including its parked rows. Replies 1 if there was something to delete, else 0.
-- ARGV: dedup_ttl_s, a time (us) or '', then the types that the video may have. With a time, nothing is deleted unless the video's
-- registration and newest row are before that time.
-- If meta cannot be read or is missing, every key is deleted that the video may have.
local function forget(keys, args)
  local prefix, since_us = keys[1], tonumber(args[2])
  local readable, meta = pcall(meta_of, prefix)
  if since_us and not (readable and meta and math.max(meta[NEWEST], meta[REGISTERED]) < since_us) then return 0 end
  local deleted = redis.call('DEL', prefix .. 'meta', prefix .. 'about', prefix .. 'parked', prefix .. 'parked-ids')
  if readable and meta then
    each_block(prefix, meta, function(_, key) redis.call('DEL', key) end)
    redis.call('DEL', prefix .. 'ids:' .. meta[IDS_NOW], prefix .. 'ids:' .. meta[IDS_BEFORE])
  else
    deleted = deleted + purge(prefix, args, 3, tonumber(args[1]))
  end
  return deleted > 0 and 1 or 0
end

-- Returns every bin of a type as a cell {bin, value, key}. The key is that of the bin's hash, or false for the open bin. A cell that
-- must change gets its new value in the field `value`.
local function cells_of(prefix, meta, at)
  local cells = {}
  each_block(prefix, meta, function(kind, key)
    if kind ~= meta[at] then return end
    local block = redis.call('HGETALL', key)
    for i = 1, #block, 2 do cells[#cells + 1] = {tonumber(block[i]), tonumber(block[i + 1]), key} end
  end)
  if meta[at + 4] >= 0 then cells[#cells + 1] = {meta[at + 4], meta[at + 5], false} end
  return cells
end

-- Corrects counters. Without a first bin (-1), readings equal to `replaces` become `value`. With a first bin, all readings from that
-- bin on that are above `value` become `value`.
local function lower_counters(cells, given, first)
  for _, cell in ipairs(cells) do
    if first < 0 and cell[2] == given.replaces or first >= 0 and cell[1] >= first and cell[2] > given.value then
      cell.value = given.value
    end
  end
end

-- Corrects events. Subtracts the excess (`replaces` - `value`) from the largest sums, in the first bin and later ones. Returns how much
-- could not be subtracted.
local function lower_events(cells, given, first)
  local left = given.replaces - given.value
  local largest = {}
  for _, cell in ipairs(cells) do
    if cell[1] >= first then largest[#largest + 1] = cell end
  end
  table.sort(largest, function(a, b) return a[2] > b[2] or (a[2] == b[2] and a[1] > b[1]) end)
  for _, cell in ipairs(largest) do
    local part = math.min(left, cell[2])
    if part > 0 then cell.value = cell[2] - part end
    left = left - part
  end
  return left
end

-- Computes the total of counters and the time of the largest reading from the corrected bins.
local function settle_counters(meta, at, cells)
  local top = cells[1]
  for _, cell in ipairs(cells) do
    local value, best = cell.value or cell[2], top.value or top[2]
    if value > best or (value == best and cell[1] < top[1]) then top = cell end
  end
  meta[at + 2] = top.value or top[2]
  if meta[at + 3] < 0 or bin_of(meta[at + 3] - meta[PUBLISHED]) ~= top[1] then
    meta[at + 3] = top[1] < LAST_BIN and math.min(meta[PUBLISHED] + EDGES[top[1] + 2] - 1, meta[NEWEST]) or meta[NEWEST]
  end
end

-- Restores two rules for events after a correction: the newest bin is the open one, and no bin is empty.
local function settle_events(meta, at, cells, total)
  local newest
  for _, cell in ipairs(cells) do
    if (cell.value or cell[2]) > 0 and (not newest or cell[1] > newest[1]) then newest = cell end
  end
  for _, cell in ipairs(cells) do
    if cell[3] and (cell == newest or cell.value == 0) then redis.call('HDEL', cell[3], cell[1]) end
  end
  meta[at + 2] = total
  meta[at + 4], meta[at + 5] = newest and newest[1] or -1, newest and (newest.value or newest[2]) or 0
end

local function correct_one(prefix, given)
  local meta = meta_of(prefix)
  if not meta then return {'unknown'} end
  local at = TYPES
  while meta[at] and meta[at] ~= given.type do at = at + FIELDS end
  local mode = meta[at] and meta[at + 1] or UNFED
  if mode == UNFED then return {'conflict', 0} end
  if meta[at + 2] ~= given.replaces then return {'conflict', meta[at + 2]} end
  local first = given.from_us >= meta[PUBLISHED] and bin_of(given.from_us - meta[PUBLISHED]) or -1
  if given.from_us >= 0 and first < 0 then first = 0 end
  local cells = cells_of(prefix, meta, at)
  if mode == EVENTS then
    local missing = lower_events(cells, given, first)
    if missing > 0 then return {'missing', missing} end
    for _, cell in ipairs(cells) do
      if cell.value and cell[3] then redis.call('HSET', cell[3], cell[1], string.format('%.0f', cell.value)) end
    end
    settle_events(meta, at, cells, given.value)
  else
    lower_counters(cells, given, first)
    local any = false
    for _, cell in ipairs(cells) do
      if cell.value then
        any = true
        redis.call('HSET', cell[3], cell[1], string.format('%.0f', cell.value))
      end
    end
    if not any then return {'missing', given.replaces - given.value} end
    settle_counters(meta, at, cells)
  end
  local clock = redis.call('TIME')
  write({prefix = prefix, meta = meta}, true, tonumber(clock[1]) * SECOND_US + tonumber(clock[2]))
  return {'corrected', meta[VERSION], meta[at + 2]}
end

-- Lowers a count that was too high. ARGV: a MessagePack map of type, value, replaces and from_us (-1: all times).
-- Replies (MessagePack) with one of:
--   {'corrected', version, total}
--   {'unknown'}: the video is not registered
--   {'conflict', total}: the total is not `replaces`
--   {'missing', amount}: this much of what is to be subtracted was not counted
--   {'damaged', why}
--   {'error', message}
local function correct(keys, args)
  local ok, reply = pcall(correct_one, keys[1], cmsgpack.unpack(args[1]))
  return cmsgpack.pack(ok and reply or fault_of(reply))
end

-- Replies with the time. The function writes nothing, but it does not have the flag no-writes. So Redis refuses it whenever it would
-- refuse a write.
local function probe() return redis.call('TIME') end

redis.register_function('m3tr_probe_@TAG@', probe)
redis.register_function('m3tr_apply_@TAG@', apply)
redis.register_function('m3tr_correct_@TAG@', correct)
redis.register_function{function_name = 'm3tr_read_@TAG@', callback = read, flags = {'no-writes'}}
-- This function is also allowed at maxmemory, because it frees memory.
redis.register_function{function_name = 'm3tr_forget_@TAG@', callback = forget, flags = {'allow-oom'}}
