-- Creates orders, each with an id that was never used: UUIDs of version 4, or of version 7 if IDS
-- says "ordered". The same script for every server.

local ordered = os.getenv("IDS") == "ordered"
local now = tonumber(os.getenv("NOW"))
local number = 0

-- Ids in one millisecond, about as many as are created in one.
local PER_MILLISECOND = 32

function init()
    math.randomseed(tonumber(os.getenv("SEED")))
end

local function id()
    local random = math.random
    local variant = random(0x8000, 0xbfff)
    local low, high = random(0, 0xffff), random(0, 0xffffffff)
    if ordered then
        local at = now + math.floor(number / PER_MILLISECOND)
        local count = number % PER_MILLISECOND
        number = number + 1
        return string.format("%08x-%04x-7%03x-%04x-%04x%08x",
            math.floor(at / 65536), at % 65536, count, variant, low, high)
    end
    return string.format("%08x-%04x-4%03x-%04x-%04x%08x",
        random(0, 0xffffffff), random(0, 0xffff), random(0, 0xfff), variant, low, high)
end

function request()
    return "POST /order HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        .. "Content-Length: 45\r\n\r\n{\"id\":\"" .. id() .. "\"}"
end

function done(summary)
    local errors = summary.errors
    print(string.format("told: %d %d %d %d", summary.requests, summary.duration, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
