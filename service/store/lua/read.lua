-- Reads and deletes videos.

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
