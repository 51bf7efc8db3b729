-- Asks for orders, drawn at random from the file of ids that IDS names: 36 characters a line. The
-- same script for every server.

local file = assert(io.open(os.getenv("IDS")))
local ids = file:read("*a")
file:close()
local count = #ids / 37

function init()
    math.randomseed(tonumber(os.getenv("SEED")))
end

function request()
    local at = math.random(0, count - 1) * 37
    return "GET /order/" .. ids:sub(at + 1, at + 36) .. " HTTP/1.1\r\nHost: bench\r\n\r\n"
end

function done(summary)
    local errors = summary.errors
    print(string.format("told: %d %d %d %d", summary.requests, summary.duration, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout))
end
