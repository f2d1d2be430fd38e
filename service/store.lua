#!lua name=m3tr_@TAG@
-- The event store's semantics: each function does everything to one video, atomically.
-- KEYS of every function: meta, bins, parked, parked ids, prefix of the id sets (all of one hash tag).
--
-- meta   hash: metadata (JSON), published_us, registered_us, version, newest_us, ids_from (hour of the first id),
--              mode:<type> = events | counters, total:<type> (sum, or largest value), top:<type> (time of that value)
-- bins   hash: "<bin>:<type>" -> increment sum (events) or largest value (counters); "<bin>:reach" -> audience sum
-- parked list: rows of an unregistered video as they came (MessagePack), bounded; parked ids: the ids among them
-- ids:<hour> set: event ids by hour of arrival, each set expires dedup_ttl_s after its hour has ended
--
-- A row is an array: time_us, id or false, reach, "events" | "counters", then type, value, type, value, ...
-- Every decision is taken before the first write, so a refusal leaves nothing behind.
-- Numbers are doubles: exact up to MAX, and no count, sum or audience is let past it.

local EDGES = {@EDGES@}
local MAX = 9007199254740991
local CHUNK = 1000

local function whole(number) return string.format('%.0f', number) end

local function bin_of(age)
  local low, high = 1, #EDGES
  while low < high do
    local middle = math.floor((low + high + 1) / 2)
    if EDGES[middle] <= age then low = middle else high = middle - 1 end
  end
  return math.min(low - 1, #EDGES - 2)
end

local function pairs_of(flat)
  local map = {}
  for i = 1, #flat, 2 do map[flat[i]] = flat[i + 1] end
  return map
end

local function in_chunks(command, key, items, each)
  for from = 1, #items, CHUNK do
    local to = math.min(from + CHUNK - 1, #items)
    local reply = redis.call(command, key, unpack(items, from, to))
    if each then each(from, reply) end
  end
end

-- Ids of `ids` that arrived within the de-duplication window, as a set.
local function ids_seen(prefix, ids, first_hour, last_hour)
  local seen = {}
  if #ids == 0 then return seen end
  for hour = first_hour, last_hour do
    in_chunks('SMISMEMBER', prefix .. whole(hour), ids, function(from, reply)
      for i = 1, #reply do
        if reply[i] == 1 then seen[ids[from + i - 1]] = true end
      end
    end)
  end
  return seen
end

-- Oldest hour whose id set can still exist.
local function first_id_hour(ids_from, hour, dedup_ttl_s)
  return math.max(tonumber(ids_from), hour - math.ceil(dedup_ttl_s / 3600) - 1)
end

local function ids_of(rows)
  local ids = {}
  for _, row in ipairs(rows) do
    if row[2] then ids[#ids + 1] = row[2] end
  end
  return ids
end

-- A row for a video nobody has registered yet: kept as it is, within the limits.
local function park(keys, request)
  local rows, duplicates, rejected, kept, new_ids = request.rows, {}, {}, {}, {}
  local seen = {}
  local ids = ids_of(rows)
  in_chunks('SMISMEMBER', keys[4], ids, function(from, reply)
    for i = 1, #reply do
      if reply[i] == 1 then seen[ids[from + i - 1]] = true end
    end
  end)
  local room = request.park_rows - redis.call('LLEN', keys[3])
  for i, row in ipairs(rows) do
    if row[2] and seen[row[2]] then
      duplicates[#duplicates + 1] = i - 1
    elseif #kept >= room then
      rejected[#rejected + 1] = {i - 1, 'parking_full', ''}
    else
      kept[#kept + 1] = cmsgpack.pack(row)
      if row[2] then
        seen[row[2]] = true
        new_ids[#new_ids + 1] = row[2]
      end
    end
  end
  if #kept > 0 then
    in_chunks('RPUSH', keys[3], kept)
    in_chunks('SADD', keys[4], new_ids)
    redis.call('EXPIRE', keys[3], request.park_ttl_s)
    redis.call('EXPIRE', keys[4], request.park_ttl_s)
  end
  return {'parked', #kept, duplicates, rejected}
end

-- What a set of rows would change: filled row by row, written at the end.
local function new_plan(meta, bins_key, published)
  return {meta = meta, bins_key = bins_key, published = published, newest = tonumber(meta.newest_us), modes = {}, totals = {}, tops = {},
    adds = {}, maxima = {}, new_ids = {}, seen = {}, corrected = 0, applied = 0}
end

local function total_of(plan, kind)
  return plan.totals[kind] or tonumber(plan.meta['total:' .. kind] or '0')
end

-- Why a row cannot be applied: reason and field, or nothing.
local function refusal(plan, row)
  if row[1] < plan.published then return 'before_publication', 'time' end
  for j = 5, #row, 2 do
    local kind = row[j]
    local mode = plan.modes[kind] or plan.meta['mode:' .. kind]
    if mode and mode ~= row[4] then return 'mode_conflict', kind end
    if row[4] == 'events' and total_of(plan, kind) + row[j + 1] > MAX then return 'overflow', kind end
  end
  if total_of(plan, 'reach') + row[3] > MAX then return 'overflow', 'reach' end
end

local function apply_row(plan, row)
  local bin = whole(bin_of(row[1] - plan.published))
  for j = 5, #row, 2 do
    local kind, value = row[j], row[j + 1]
    local field = bin .. ':' .. kind
    if not plan.meta['mode:' .. kind] then plan.modes[kind] = row[4] end
    local total = total_of(plan, kind)
    if row[4] == 'events' then
      plan.adds[field] = (plan.adds[field] or 0) + value
      plan.totals[kind] = total + value
    else
      local stored = plan.maxima[field]
      if not stored then
        local old = redis.call('HGET', plan.bins_key, field)
        stored = {value = old and tonumber(old) or -1, old = old and tonumber(old) or -1}
        plan.maxima[field] = stored
      end
      if value > stored.value then stored.value = value end
      local top = plan.tops[kind] or tonumber(plan.meta['top:' .. kind] or '-1')
      if value < total and row[1] >= top then plan.corrected = plan.corrected + 1 end
      if value > total or top < 0 then
        plan.totals[kind] = math.max(total, value)
        plan.tops[kind] = row[1]
      end
    end
  end
  if row[3] > 0 then
    local field = bin .. ':reach'
    plan.adds[field] = (plan.adds[field] or 0) + row[3]
    plan.totals.reach = total_of(plan, 'reach') + row[3]
  end
  if row[2] then
    plan.seen[row[2]] = true
    plan.new_ids[#plan.new_ids + 1] = row[2]
  end
  if not plan.newest or row[1] > plan.newest then
    plan.newest = row[1]
    plan.changed = true
  end
  plan.applied = plan.applied + 1
end

-- Takes each row: a duplicate, refused, or into the plan. Indices are those of `rows`, from 0.
local function take(plan, rows)
  local duplicates, rejected = {}, {}
  for i, row in ipairs(rows) do
    if row[2] and plan.seen[row[2]] then
      duplicates[#duplicates + 1] = i - 1
    else
      local reason, field = refusal(plan, row)
      if reason then rejected[#rejected + 1] = {i - 1, reason, field} else apply_row(plan, row) end
    end
  end
  return duplicates, rejected
end

local function write_plan(keys, plan, hour, dedup_ttl_s)
  local changed = plan.changed
  for field, value in pairs(plan.adds) do
    if value > 0 then
      redis.call('HINCRBY', keys[2], field, whole(value))
      changed = true
    end
  end
  for field, cell in pairs(plan.maxima) do
    if cell.value > cell.old then
      redis.call('HSET', keys[2], field, whole(cell.value))
      changed = true
    end
  end
  local fields = {}
  local function set(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  for kind, mode in pairs(plan.modes) do set('mode:' .. kind, mode) end
  for kind, total in pairs(plan.totals) do set('total:' .. kind, whole(total)) end
  for kind, top in pairs(plan.tops) do set('top:' .. kind, whole(top)) end
  if plan.newest then set('newest_us', whole(plan.newest)) end
  if #plan.new_ids > 0 then
    local key = keys[5] .. whole(hour)
    in_chunks('SADD', key, plan.new_ids)
    redis.call('EXPIREAT', key, whole((hour + 1) * 3600 + dedup_ttl_s))
    if not plan.meta.ids_from then set('ids_from', whole(hour)) end
  end
  if #fields > 0 then redis.call('HSET', keys[1], unpack(fields)) end
  return changed
end

-- Registers a video (when asked), applies its parked rows, then the request's rows.
-- request: rows; register {published_us, metadata} or nil; expected_us: the published_us the caller merged rows by, or nil;
-- strict: all rows or none; dedup_ttl_s, park_rows, park_ttl_s.
-- Answers {'parked', kept, duplicates, rejected}, {'stale', published_us}, {'conflict', published_us}, {'refused', rejected, published_us} or
-- {'ok', version, changed, published_us, duplicates, rejected, corrected, parked applied, parked rejected}.
local function apply(keys, args)
  local request = cmsgpack.unpack(args[1])
  local register = request.register
  local clock = redis.call('TIME')
  local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
  local hour = math.floor(tonumber(clock[1]) / 3600)
  local meta = pairs_of(redis.call('HGETALL', keys[1]))
  local published = tonumber(meta.published_us)
  if register then
    if published and published ~= register.published_us and meta.newest_us then return {'conflict', meta.published_us} end
    published = register.published_us
  elseif request.expected_us and request.expected_us ~= published then
    return {'stale', meta.published_us or ''}
  elseif not published then
    return park(keys, request)
  end

  local plan = new_plan(meta, keys[2], published)
  local parked = {}
  if register and not meta.published_us then
    for i, packed in ipairs(redis.call('LRANGE', keys[3], 0, -1)) do parked[i] = cmsgpack.unpack(packed) end
  end
  local _, parked_rejected = take(plan, parked)
  local parked_applied = plan.applied
  if meta.ids_from then
    local seen = ids_seen(keys[5], ids_of(request.rows), first_id_hour(meta.ids_from, hour, request.dedup_ttl_s), hour)
    for id in pairs(seen) do plan.seen[id] = true end
  end
  local duplicates, rejected = take(plan, request.rows)
  if request.strict and #rejected > 0 then return {'refused', rejected, whole(published)} end

  local changed = write_plan(keys, plan, hour, request.dedup_ttl_s)
  if register then
    if meta.metadata ~= register.metadata or meta.published_us ~= whole(published) then
      redis.call('HSET', keys[1], 'metadata', register.metadata, 'published_us', whole(published),
        'registered_us', meta.registered_us or whole(now_us))
      changed = true
    end
    if #parked > 0 then redis.call('DEL', keys[3], keys[4]) end
  end
  -- Versions follow the clock: they never repeat, not after a deletion, not after a crash that lost the newest changes.
  local version = tonumber(meta.version or '0')
  if changed then
    version = math.max(version + 1, now_us)
    redis.call('HSET', keys[1], 'version', whole(version))
  end
  return {'ok', whole(version), changed and 1 or 0, whole(published), duplicates, rejected, plan.corrected,
    parked_applied, #parked_rejected}
end

-- The whole video, or only its version where the caller already has it: {}, {version} or {version, meta, bins}.
local function read(keys, args)
  local version = redis.call('HGET', keys[1], 'version')
  if not version then return {} end
  if version == args[1] then return {version} end
  return {version, redis.call('HGETALL', keys[1]), redis.call('HGETALL', keys[2])}
end

-- Everything about a video, parked rows included: 1 when there was something.
local function forget(keys, args)
  local ids_from = redis.call('HGET', keys[1], 'ids_from')
  local gone = redis.call('DEL', keys[1], keys[2], keys[3], keys[4])
  if ids_from then
    local hour = math.floor(tonumber(redis.call('TIME')[1]) / 3600)
    for each = first_id_hour(ids_from, hour, tonumber(args[1])), hour do redis.call('DEL', keys[5] .. whole(each)) end
  end
  return gone > 0 and 1 or 0
end

redis.register_function('m3tr_apply_@TAG@', apply)
redis.register_function{function_name = 'm3tr_read_@TAG@', callback = read, flags = {'no-writes'}}
redis.register_function('m3tr_forget_@TAG@', forget)
