-- Sends one kind of request, by KIND: "random" and "ordered" create orders with ids that were
-- never used, UUIDs of version 4 or of version 7; "get" reads orders drawn at random from the file of
-- ids that IDS names, 36 characters a line; "live" sends GET /livez.

local kind = os.getenv("KIND")
local now = tonumber(os.getenv("NOW"))
local number = 0

-- Ids in one millisecond, about as many as are created in one.
local PER_MILLISECOND = 32

local ids, count
if kind == "get" then
    local file = assert(io.open(os.getenv("IDS")))
    ids = file:read("*a")
    file:close()
    count = #ids / 37
end

function init()
    math.randomseed(tonumber(os.getenv("SEED")))
end

local function id()
    local random = math.random
    local variant = random(0x8000, 0xbfff)
    local low, high = random(0, 0xffff), random(0, 0xffffffff)
    if kind == "ordered" then
        local at = now + math.floor(number / PER_MILLISECOND)
        local count = number % PER_MILLISECOND
        number = number + 1
        return string.format("%08x-%04x-7%03x-%04x-%04x%08x",
            math.floor(at / 65536), at % 65536, count, variant, low, high)
    end
    return string.format("%08x-%04x-4%03x-%04x-%04x%08x",
        random(0, 0xffffffff), random(0, 0xffff), random(0, 0xfff), variant, low, high)
end

local function get(path)
    return "GET " .. path .. " HTTP/1.1\r\nHost: localhost\r\n\r\n"
end

function request()
    if kind == "live" then
        return get("/livez")
    end
    if kind == "get" then
        local at = math.random(0, count - 1) * 37
        return get("/order/" .. ids:sub(at + 1, at + 36))
    end
    return "POST /order HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        .. "Content-Length: 45\r\n\r\n{\"id\":\"" .. id() .. "\"}"
end

function done(summary)
    local errors = summary.errors
    print(string.format("result: %d %d %d %d", summary.requests, summary.duration, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
