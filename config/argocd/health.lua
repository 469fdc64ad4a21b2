-- What Argo CD shows of an LLMDeployment. It reads what kstatus reads, in the same order: is the status about this spec,
-- Reconciling, Stalled, Ready. Held back by its owner (spec.paused, spec.suspend) is Suspended.
-- The message is the one of our condition. Argo CD runs this without the libraries string and math.
local health = { status = "Progressing", message = "the operator has not looked at it yet" }

if obj.metadata.deletionTimestamp ~= nil then
  health.message = "it is being deleted"
  return health
end
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end

local conditions = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  conditions[condition.type] = condition
end

local function holds(kind)
  return conditions[kind] ~= nil and conditions[kind].status == "True"
end

local function told(kind)
  return conditions[kind].reason .. ": " .. (conditions[kind].message or "")
end

if holds("Reconciling") then
  health.message = told("Reconciling")
elseif holds("Stalled") then
  health.status = conditions["Stalled"].reason == "Paused" and "Suspended" or "Degraded"
  health.message = told("Stalled")
elseif holds("Ready") then
  health.status = conditions["Ready"].reason == "Suspended" and "Suspended" or "Healthy"
  health.message = told("Ready")
end
return health
