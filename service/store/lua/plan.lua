-- A plan collects what rows change about one video. It is checked as a whole before anything is written.

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

-- Adds a reading of a signal to the plan. The newest reading of a bin stands. Of readings with the same time, the largest stands.
local function add_reading(plan, time, bin, name, value)
  local state = state_of(plan, SIGNALS)
  state.mode = READINGS
  if not state.readings then state.readings = {} end
  local field = string.format('%.0f:%s', bin, name)
  local cell = state.readings[field]
  if not cell then
    cell = {bin = bin, time = -1}
    local stored = redis.call('HGET', block_key(plan.prefix, SIGNALS, bin), field)
    if stored then
      local at, reading = string.match(stored, '^(%d+) (%S+)$')
      cell.time, cell.value = tonumber(at), tonumber(reading)
      if not cell.value then damaged('a reading of ' .. name .. ' is not a time and a number') end
    end
    state.readings[field] = cell
  end
  if time > cell.time or (time == cell.time and value > cell.value) then
    cell.time, cell.value, cell.changed = time, value, true
  end
end

-- Adds a cumulative counter to the plan. Returns whether it is below the total and not older than the largest value.
local function raise_counter(plan, time, bin, kind, value)
  local state = state_of(plan, kind)
  state.mode = CUMULATIVE
  if not state.raised then state.raised = {} end
  local cell = state.raised[bin]
  if not cell then
    local old = tonumber(redis.call('HGET', block_key(plan.prefix, kind, bin), bin) or '-1')
    cell = {value = old, old = old}
    state.raised[bin] = cell
  end
  if value > cell.value then cell.value = value end
  local corrected = value < state.total and time >= state.top
  if value > state.total or state.top < 0 then
    state.total = math.max(state.total, value)
    state.top = time
  end
  return corrected
end

-- Adds a row of cumulative counters to the plan. If the row is refused, returns the reason and the subject. The third value is the
-- number of its counters that are below the total and not older than the largest value.
local function raise_counters(plan, time, cells)
  for i = 1, #cells, 2 do
    local signal = string.byte(cells[i]) == TILDE
    if not signal and state_of(plan, cells[i]).mode == EVENTS then return 'mode_conflict', cells[i] end
  end
  local bin = bin_of(time - plan.meta[PUBLISHED])
  local corrected = 0
  for i = 1, #cells, 2 do
    if string.byte(cells[i]) == TILDE then
      add_reading(plan, time, bin, string.sub(cells[i], 2), cells[i + 1])
    elseif raise_counter(plan, time, bin, cells[i], cells[i + 1]) then
      corrected = corrected + 1
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
    for field, cell in pairs(state.readings or {}) do
      if cell.changed then
        changed = true
        redis.call('HSET', block_key(prefix, SIGNALS, cell.bin), field, string.format('%.0f %.17g', cell.time, cell.value))
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
