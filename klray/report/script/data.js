// What the page carries: numbers unpacked, models by position, KL of two models where it is here.

const TYPES = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

// The JSON of the page with every packed array as a typed array and every {words, at} as an array of strings.
export async function unpack(found) {
  if (Array.isArray(found)) return found.some((each) => each && typeof each === "object") ? Promise.all(found.map(unpack)) : found;
  if (found === null || typeof found !== "object") return found;
  if (typeof found.packed === "string") return numbers(found);
  const entries = await Promise.all(Object.entries(found).map(async ([name, each]) => [name, await unpack(each)]));
  const whole = Object.fromEntries(entries);
  return whole.words && whole.at ? Array.from(whole.at, (at) => whole.words[at]) : whole;
}

// Base64 of gzip of the first bytes of all numbers, then the second ones: equal bytes stand together.
async function numbers({ type, packed }) {
  const raw = atob(packed);
  const bytes = Uint8Array.from({ length: raw.length }, (_, at) => raw.charCodeAt(at));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const width = TYPES[type].BYTES_PER_ELEMENT, n = planes.length / width, whole = new Uint8Array(planes.length);
  for (let byte = 0; byte < width; byte++) for (let at = 0; at < n; at++) whole[at * width + byte] = planes[byte * n + at];
  return new TYPES[type](whole.buffer);
}

// KL and standard error of two models, in bits/byte; null where the page does not carry that pair.
export function pairKl(data, one, other) {
  if (one === other) return { kl: 0, se: NaN };
  const { pairs, neighbours } = data;
  if (pairs) {
    const a = pairs.place[one], b = pairs.place[other];
    if (a >= 0 && b >= 0) {
      const at = triangle(Math.min(a, b), Math.max(a, b), pairs.models.length);
      return Number.isFinite(pairs.kl[at]) ? { kl: pairs.kl[at], se: pairs.se[at] } : null;
    }
  }
  for (const [from, to] of [[one, other], [other, one]]) {
    const found = nearest(data, from).find((each) => each.model === to);
    if (found) return found;
    if (data.models.previous?.[from] === to) return { kl: data.models.step_kl[from], se: data.models.step_se[from] };
  }
  return neighbours && null;
}

// Place of the pair (a, b), a < b, in the rows of the upper triangle of n models.
export function triangle(a, b, n) {
  return a * n - (a * (a + 1)) / 2 + b - a - 1;
}

// The nearest models of one in the full space, nearest first: {model, kl, se}.
export function nearest(data, model, most = Infinity) {
  const { neighbours } = data, found = [];
  for (let rank = 0; neighbours && rank < Math.min(most, neighbours.k); rank++) {
    const at = model * neighbours.k + rank;
    if (neighbours.model[at] >= data.n) break;
    found.push({ model: neighbours.model[at], kl: neighbours.kl[at], se: neighbours.se[at] });
  }
  return found;
}

// Models by position in the pairs that are carried, -1 for none; done once.
export function prepare(data) {
  if (data.pairs) {
    data.pairs.place = new Int32Array(data.n).fill(-1);
    data.pairs.models.forEach((model, place) => { data.pairs.place[model] = place; });
  }
  return data;
}

export function nameOf(data, model) {
  const { repository, revision, variant } = data.models;
  return [`${repository[model]}@${revision[model]}`, variant[model]].filter(Boolean).join(" · ");
}
