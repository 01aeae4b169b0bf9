// The models of a snapshot as the report's modules take them (data.js), from arrays of the store. K models.

const WORDS = ["repository", "revision", "run", "family", "size", "base_model", "dtype", "quantization", "lens"];
const NUMBERS = { step: -1, parameters: 0, layer: -1 }; // and what stands for one that is not known
const RUN = ["run", "dtype", "quantization", "lens", "layer"]; // models that are equal in these are of one run

// labels (K,); `maps` are [array, name, short, title, unit]; without a result there are no maps, paths and neighbours.
export async function modelsOf(labels, snapshot, result, maps) {
  const K = labels.length, has = (group, name) => group && name in group.metadata;
  const column = async (name, nothing) => [name, has(snapshot, name) ? await snapshot.array(name) : Array(K).fill(nothing)];
  const columns = [...WORDS.map((name) => [name, ""]), ...Object.entries(NUMBERS)].map(([name, nothing]) => column(name, nothing));
  const models = { label: labels, ...Object.fromEntries(await Promise.all(columns)) };
  models.variant = variants(models, K);
  models.excluded = has(result, "excluded") ? Array.from(await result.array("excluded")) : Array(K).fill(false);
  const previous = has(result, "previous_step") ? await result.array("previous_step") : Array(K).fill(-1);
  const drawn = await Promise.all(maps.filter(([array]) => has(result, array)).map((map) => drawnOf(result, ...map)));
  return { n: K, models, sizes: sizesOf(models), maps: drawn, paths: pathsOf(models, previous), neighbours: has(result, "neighbour") ? await nearOf(result) : null };
}

// What a model was scored with, where that is not the same for all.
function variants({ dtype, quantization, lens, layer }, K) {
  const parts = (at) => [dtype[at], quantization[at], lens[at], layer[at] >= 0 ? `layer ${layer[at]}` : ""];
  const found = Array.from({ length: K }, (_, at) => parts(at).filter((part) => part && part !== "none").join(" "));
  return new Set(found).size > 1 || quantization.some((each) => each && each !== "none") ? found : Array(K).fill("");
}

// Names of sizes by the number of parameters.
function sizesOf({ size, parameters }) {
  const least = new Map();
  size.forEach((name, at) => { if (name) least.set(name, Math.min(parameters[at], least.get(name) ?? Infinity)); });
  return [...least.keys()].sort((a, b) => least.get(a) - least.get(b));
}

async function drawnOf(result, array, name, short, title, unit) {
  const xy = Float32Array.from((await result.array(array)).flatMap(([x, y]) => [x, y]));
  const shares = result.metadata[array].attributes?.explained_variance_ratio;
  const said = (at) => (Array.isArray(shares) && Number.isFinite(shares[at]) ? `, ${Math.round(100 * shares[at])}% of variance` : "");
  const axis = unit ? [0, 1].map((at) => `PC ${at + 1}${said(at)}`) : [`${short} 1`, `${short} 2`];
  return { name, short, title, unit, axis, xy };
}

// Each checkpoint after the one that the result compared it with; a step that two models of a run are at is left out.
function pathsOf(models, previous) {
  const key = (at, step) => JSON.stringify([...RUN.map((name) => models[name][at]), step]), places = new Map();
  models.step.forEach((step, at) => {
    if (step >= 0 && models.run[at]) places.set(key(at, step), places.has(key(at, step)) ? -1 : at);
  });
  const after = new Map();
  previous.forEach((step, at) => {
    const before = step >= 0 ? places.get(key(at, step)) ?? -1 : -1;
    if (before >= 0) after.set(before, at);
  });
  const later = new Set(after.values()), paths = [];
  for (const first of after.keys()) {
    if (later.has(first)) continue;
    const path = [first];
    for (let at = after.get(first); at !== undefined && path.length <= after.size; at = after.get(at)) path.push(at);
    paths.push(path);
  }
  return paths;
}

async function nearOf(result) {
  const [model, kl, se] = await Promise.all(["neighbour", "neighbour_kl", "neighbour_kl_standard_error"].map((name) => result.array(name)));
  const flat = (rows) => rows.flatMap((row) => Array.from(row));
  return { k: model[0]?.length ?? 0, model: flat(model).map((at) => (at < 0 ? model.length : at)), kl: flat(kl), se: flat(se) };
}
