// What the state of a model means to a person. Pure: the state in, words out.

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** A word, and how it is to be taken: good, busy, idle or bad. */
export function standing(model) {
  const wanted = model.desired ?? model.backends.length;
  if (model.ready > 0) {
    if (model.ready >= wanted) return { word: "Serving", mood: "good" };
    return { word: "Serving in part", mood: "busy" };
  }
  if (model.loading > 0) return { word: "Loading", mood: "busy" };
  if (model.desired === 0) return { word: "At zero", mood: "idle" };
  return model.backends.length === 0 ? { word: "No engine", mood: "idle" } : { word: "Unavailable", mood: "bad" };
}

export function replicas(model) {
  return `${model.ready} of ${model.desired ?? model.backends.length + missing(model)}`;
}

/** Replicas that are being started, and have no address yet. */
function missing(model) {
  return Math.max(0, model.loading - model.backends.filter((backend) => backend.state === "loading").length);
}

/** What the engines of a model say of themselves, together; null where none says anything. */
export function inEngines(model) {
  const said = model.backends.map((backend) => backend.reported).filter((reported) => reported);
  if (said.length === 0) return { running: null, waiting: null, kvUsage: null };
  return {
    running: sum(said.map((each) => each.running)),
    waiting: sum(said.map((each) => each.waiting)),
    kvUsage: sum(said.map((each) => each.kv_usage)) / said.length,
  };
}

/** Requests without an engine's attention: held in the router, and waiting in engines. */
export function queued(model) {
  return model.held + (inEngines(model).waiting ?? 0);
}

export function summary(models) {
  const ready = sum(models.map((model) => model.ready));
  const name = models.length === 1 ? "model" : "models";
  return `${models.length} ${name}, ${ready} ${ready === 1 ? "replica" : "replicas"} ready`;
}

/** What has changed between two states that is worth being said aloud. */
export function news(before, after) {
  if (before === null) return [];
  const known = new Map(before.models.map((model) => [model.name, model]));
  const said = [];
  for (const model of after.models) {
    const old = known.get(model.name);
    known.delete(model.name);
    if (!old) said.push(`${model.name} is new`);
    else if (standing(old).word !== standing(model).word || replicas(old) !== replicas(model))
      said.push(`${model.name}: ${standing(model).word}, ${replicas(model)} replicas ready`);
  }
  for (const name of known.keys()) said.push(`${name} is gone`);
  return said;
}
