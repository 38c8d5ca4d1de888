-- What wrk sends: wrk -s load.lua URL -- KIND GROUPS MEMBERS SEED
-- KIND is callback, join, unknown, member, page, or a path to GET. Requests are made before the clock starts, so that
-- making them costs the load generator nothing while it runs.

local thread_count = 0

function setup(thread)
    thread_count = thread_count + 1
    thread:set("number", thread_count)
end

local KINDS = {}
local REQUESTS = 20000
local requests, at = {}, 0

-- Half of the optional fields null, as OpenIM sends them.
local function maybe(json)
    if math.random() < 0.5 then return "null" end
    return json
end

local function callback(command)
    return function(group, user)
        local body = string.format(
            '{"callbackCommand":"%s","groupID":"%d","userID":"%d","nickName":%s,"faceURL":%s,"roleLevel":%s,"ex":%s}\n',
            command, group, user,
            maybe(string.format('"%d"', math.random(100000000, 999999999))),
            maybe('"https://cdn.example.com/avatars/0123456789abcdef.png"'),
            maybe(math.random() < 0.9 and "20" or "60"),
            maybe('"{\\"department\\":\\"sales\\",\\"level\\":3}"'))
        return wrk.format("POST", "/" .. command .. "?contenttype=json", {
            ["Content-Type"] = "application/json; charset=utf-8",
            ["Operationid"] = "imAdmin",
        }, body)
    end
end

KINDS.callback = callback("callbackAfterSetGroupMemberInfoCommand")
KINDS.unknown = callback("callbackNobodyKnowsThisOneCommand")
-- Of users whom nobody knows yet.
KINDS.join = function(group)
    local body = string.format(
        '{"callbackCommand":"callbackAfterJoinGroupCommand","operationID":"imAdmin","groupID":"%d","reqMessage":"","joinSource":3,"inviterUserID":"%d"}\n',
        group, math.random(3000000000, 3999999999))
    return wrk.format("POST", "/callbackAfterJoinGroupCommand", {
        ["Content-Type"] = "application/json; charset=utf-8",
        ["Operationid"] = "imAdmin",
    }, body)
end
KINDS.member = function(group, user)
    return wrk.format("GET", string.format("/groups/%d/members/%d", group, user))
end
KINDS.page = function(group)
    return wrk.format("GET", string.format("/groups/%d/members?limit=100", group))
end

function init(args)
    local make = KINDS[args[1]] or function() return wrk.format("GET", args[1]) end
    local groups, members, seed = tonumber(args[2]), tonumber(args[3]), tonumber(args[4])
    math.randomseed(seed * 1000 + number)
    for i = 1, REQUESTS do
        -- As harness/postgres.py fills the table.
        local group = 1000000000 + math.random(groups)
        local user = 2000000000 + math.random(members)
        requests[i] = make(group, user)
    end
end

function request()
    at = at % REQUESTS + 1
    return requests[at]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        'RESULT {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"refused":%d,"broken":%d}\n',
        summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
        errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
