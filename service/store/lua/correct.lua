-- Lowers counts that were too high.

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
