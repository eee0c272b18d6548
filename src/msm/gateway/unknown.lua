-- Runs only for requests without a route: the tables of all services switch this filter off. The name is kept for the
-- node process, which answers with the names that are near it.
function envoy_on_request(handle)
  local headers = handle:headers()
  local name = headers:get("x-msm-service")
  if not name then return end -- nothing was extracted: Envoy's own 404
  headers:replace("x-msm-unknown", name)
  headers:replace("x-msm-scope", "///~unknown")
end
