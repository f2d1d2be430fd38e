-- Registers videos and applies rows.

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
