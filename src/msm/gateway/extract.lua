-- Finds the service and the version that a request is for and tells them to the router: the scope in x-msm-scope
-- (its fourth element, as in a path), the names in x-msm-service and x-msm-version. It is the only reader of bodies in
-- the mesh, and of paths but for the plain request of a warm service, for which it is switched off. What clients send
-- under x-msm-* was removed before any filter runs. Scopes of the mesh itself begin with "~", which no model's name can.

local find, sub, byte, match, gsub, lower = string.find, string.sub, string.byte, string.match, string.gsub, string.lower

local BODY_LIMIT = @BODY_LIMIT@
local NAME_RULE = "@NAME_RULE@"
local GRPC = "^/inference%.GRPCInferenceService/(%w+)$"
-- Calls whose first field is the model's name; all are unary or have one message, so the body ends by itself.
local NAMED_IN_BODY = {ModelInfer = true, ModelReady = true, ModelMetadata = true, ModelConfig = true,
                       ModelStatistics = true, Generate = true}
local NAMED_IN_HEADER = {ModelStreamInfer = true}
local OF_SERVER = {ServerLive = true, ServerReady = true, ServerMetadata = true}
local OPENAI = {["/v1/completions"] = true, ["/v1/chat/completions"] = true, ["/v1/embeddings"] = true}
-- Calls that last as long as a model generates. The worker bounds each step of them; here only the longest stream ends.
local GENERATES = {["/v1/completions"] = true, ["/v1/chat/completions"] = true,
                   ["/inference.GRPCInferenceService/ModelStreamInfer"] = true}
local LONGEST_MS = "3600000"

local function is_name(text)
  return #text <= 63 and find(text, "^[a-z0-9][a-z0-9._-]*$") ~= nil and not find(text, "..", 1, true)
end

-- Text of a client that is safe inside a message, JSON string or header.
local function shown(text)
  return gsub(sub(text, 1, 64), "[^%w%%%._~:/-]", "?")
end

local function is_grpc(headers)
  return find(headers:get("content-type") or "", "^application/grpc") ~= nil
end

local function refuse(handle, grpc, status, grpc_status, code, message)
  if handle:headers():get("x-msm-dialect") == "openai" then
    handle:respond({[":status"] = status, ["content-type"] = "application/json"},
                   '{"error":{"message":"' .. gsub(message, '"', '\\"') ..
                   '","type":"invalid_request_error","param":null,"code":"' .. code .. '"}}\n')
  elseif grpc then
    handle:respond({[":status"] = "200", ["content-type"] = "application/grpc",
                    ["grpc-status"] = grpc_status, ["grpc-message"] = gsub(message, "%%", "%%25")}, "")
  else
    handle:respond({[":status"] = status, ["content-type"] = "application/json"},
                   '{"error":"' .. gsub(message, '"', '\\"') .. '","code":"' .. code .. '"}\n')
  end
end

local function bad(handle, grpc, message)
  return refuse(handle, grpc, "400", "3", "invalid_input", message)
end

local function bad_name(handle, grpc, what)
  return refuse(handle, grpc, "400", "3", "invalid_name", "the " .. what .. " is not allowed: " .. NAME_RULE)
end

local function varint(text, at)
  local value, unit = 0, 1
  for _ = 1, 5 do
    local b = byte(text, at)
    if not b then return nil end
    at = at + 1
    if b < 128 then return value + b * unit, at end
    value = value + (b - 128) * unit
    unit = unit * 128
  end
end

local function text_field(text, at, tag)
  if byte(text, at) ~= tag then return nil, at end
  local length, start = varint(text, at + 1)
  if not length or start + length - 1 > #text then return nil, at end
  return sub(text, start, start + length - 1), start + length
end

-- Name and version of a gRPC message: fields 1 and 2, behind the five bytes of the frame.
local function named_in_message(handle)
  local body = handle:body()
  local length = body and body:length() or 0
  if length < 5 then return nil end
  local text = body:getBytes(0, length < 512 and length or 512)
  if byte(text, 1) ~= 0 then return nil end
  local name, at = text_field(text, 6, 10)
  local version = text_field(text, at, 18)
  return name, version ~= "" and version or nil
end

-- The value of the top-level "model" of a JSON object. Walks strings and nesting; a name with an escape, a second
-- "model" and anything that isn't an object give nil: never a guess.
local function model_of_json(text)
  local at, depth, found, key, seen = find(text, "[^ \t\r\n]") or 1, 0, nil, nil, false
  if byte(text, at) ~= 123 then return nil end
  local last = 0 -- the last significant byte: tells a key from a value
  while true do
    at = find(text, '["{}%[%],:]', at)
    if not at then return nil end
    local b = byte(text, at)
    if b == 34 then
      local stop, escaped = at + 1, false
      while true do
        stop = find(text, '["\\]', stop)
        if not stop then return nil end
        if byte(text, stop) == 34 then break end
        escaped, stop = true, stop + 2
      end
      if depth == 1 then
        local value = not escaped and sub(text, at + 1, stop - 1) or nil
        if last == 58 then
          if key == "model" then
            if not value then return nil end
            found = value
          end
        else
          if escaped and find(sub(text, at, stop), "\\u", 1, true) then return nil end
          if value == "model" then
            if seen then return nil end
            seen = true
          end
          key = value
        end
      end
      at, last = stop, 34
    elseif b == 123 or b == 91 then
      if depth == 1 and last == 58 and key == "model" then return nil end
      depth, last = depth + 1, b
    elseif b == 125 or b == 93 then
      depth, last = depth - 1, b
      if depth == 0 then return found end
    else
      last = b
    end
    at = at + 1
  end
end

-- Name, version and what is wrong, of a path that names a model.
local function named_in_path(path)
  local name, rest = match(path, "^/v2/models/([^/]+)(.*)$")
  if name then
    return name, rest ~= "" and match(rest, "^/versions/([^/]+)") or nil
  end
  name = match(path, "^/v1/models/([^/]+)$")
  if not name then return nil end
  return match(name, "^(.+):predict$") or match(name, "^(.+):explain$") or name
end

local function internal_scope(path, grpc_call, method)
  if OF_SERVER[grpc_call] or path == "/v2" or path == "/v2/" or find(path, "^/v2/health/") then return "~server" end
  if find(path, "^/v2/repository/") then return "~api" end
  if method == "GET" and find(path, "^/v1/models/?[^/]*$") and not find(path, ":predict$") then return "~api" end
end

local function finish(handle, name, version, namespace)
  local headers = handle:headers() -- anew: what was taken before a body was read is dead
  local grpc = is_grpc(headers)
  if not version then
    local head, tail = match(name, "^([^:]+):(.+)$")
    if head then name, version = head, tail end
  end
  if not is_name(name) then
    return bad_name(handle, grpc, 'model name "' .. shown(name) .. '"')
  end
  if version and not is_name(version) then
    return bad_name(handle, grpc, 'version "' .. shown(version) .. '" of model "' .. name .. '"')
  end
  local scope = name
  if namespace and namespace ~= "default" then
    if not is_name(namespace) then
      return bad_name(handle, grpc, 'namespace "' .. shown(namespace) .. '"')
    end
    name, scope = namespace .. "/" .. name, namespace .. "~" .. name
  end
  if version then headers:replace("x-msm-version", version) end
  headers:replace("x-msm-service", name)
  headers:replace("x-msm-scope", "///" .. scope)
end

local function from_body(handle, grpc_call, namespace)
  if grpc_call then
    if NAMED_IN_HEADER[grpc_call] then
      return bad(handle, true, grpc_call .. " is a stream and names its model in a header: send mm-model-id")
    elseif not NAMED_IN_BODY[grpc_call] then
      return refuse(handle, true, "404", "12", "unsupported", "there is no call " .. shown(grpc_call))
    end
    local name, version = named_in_message(handle)
    if not name or name == "" then
      return bad(handle, true, "the model name is missing, or the message is compressed: send it plain, or the header mm-model-id")
    end
    return finish(handle, name, version, namespace)
  end
  local body = handle:body()
  local length = body and body:length() or 0
  local name = length > 0 and model_of_json(body:getBytes(0, length)) or nil
  if not name or name == "" then
    return bad(handle, false, 'the body is not a JSON object with one plain text "model"')
  end
  return finish(handle, name, nil, namespace)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = match(headers:get(":path") or "/", "^[^?#]*")
  if OPENAI[path] then headers:replace("x-msm-dialect", "openai") end
  local length = tonumber(headers:get("content-length") or "")
  if length and length > BODY_LIMIT then
    return refuse(handle, is_grpc(headers), "413", "8", "too_large",
                  "the body has " .. length .. " bytes; at most " .. BODY_LIMIT .. " are allowed")
  end
  if headers:get("upgrade") then
    return refuse(handle, is_grpc(headers), "403", "12", "unsupported", "this gateway offers no upgrade to another protocol")
  end
  if find(headers:get(":authority") or "", ",", 1, true) then -- Envoy joins several with commas
    return bad(handle, is_grpc(headers), "several Host headers were sent; one is needed")
  end
  if GENERATES[path] or find(path, "^/v2/models/.*/generate$") or find(path, "^/v2/models/.*/generate_stream$") then
    headers:replace("x-msm-open-ended", "true")
    headers:replace("x-envoy-upstream-rq-timeout-ms", LONGEST_MS)
  end
  local namespace = headers:get("msm-namespace")
  local grpc_call = match(path, GRPC)
  local scope = internal_scope(path, grpc_call, headers:get(":method"))
  if scope then return headers:replace("x-msm-scope", "///" .. scope) end
  local name, version = named_in_path(path)
  if name then return finish(handle, name, version, namespace) end
  name = headers:get("mm-vmodel-id") or headers:get("mm-model-id")
  if name then return finish(handle, name, nil, namespace) end
  if grpc_call or OPENAI[path] then return from_body(handle, grpc_call, namespace) end
  local grpc = is_grpc(headers)
  return refuse(handle, grpc, "404", "12", "not_found", 'there is no path "' .. shown(path) .. '"')
end
