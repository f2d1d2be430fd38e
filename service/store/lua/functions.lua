-- The functions that can be called.

-- Replies with the time. The function writes nothing, but it does not have the flag no-writes. So Redis refuses it whenever it would
-- refuse a write.
local function probe() return redis.call('TIME') end

redis.register_function('m3tr_probe_@TAG@', probe)
redis.register_function('m3tr_apply_@TAG@', apply)
redis.register_function('m3tr_correct_@TAG@', correct)
redis.register_function{function_name = 'm3tr_read_@TAG@', callback = read, flags = {'no-writes'}}
-- This function is also allowed at maxmemory, because it frees memory.
redis.register_function{function_name = 'm3tr_forget_@TAG@', callback = forget, flags = {'allow-oom'}}
