-- Rows: the columns in which they are passed, their ids, and parked rows.

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
