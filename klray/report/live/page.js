// The page: the report's explorer over a store, read in the browser. What is between two models is computed from their
// rows. Everything that comes from the store is shown as text, and as nothing else.

import { Card } from "./card.js";
import { answerOf, slotsOf } from "./compare.js";
import { openContents } from "./contents.js";
import { unpack } from "./data.js";
import { divergence } from "./divergence.js";
import { el } from "./dom.js";
import { compared, DEFAULTS, explore } from "./explorer.js";
import { counted, significant } from "./format.js";
import { Choices } from "./link.js";
import { modelsOf } from "./models.js";
import { openStore, verifies } from "./reader.js";
import { bitsPerByte, clipped, kept } from "./rows.js";

const at = (id) => document.getElementById(id);
const say = (id, words) => { at(id).textContent = words; };

async function begin() {
  const told = await unpack(JSON.parse(at("told").textContent));
  const store = await openStore(new URL(told.store, location.href).href.replace(/\/?$/, "/"));
  const { snapshot, manifest } = store;
  const [labels, keys, hashes, bytes, domains] = await Promise.all(["model", "key", "sha256", "text_bytes", "domain"].map((name) => snapshot.array(name)));
  const result = await store.result(told.result);
  const recipe = result?.attributes.recipe ? JSON.parse(result.attributes.recipe) : null;
  const fits = recipe?.text_set === manifest.text_set && recipe.n_texts === manifest.n_texts;
  const data = await modelsOf(labels, snapshot, result, told.maps);
  const page = { store, keys, hashes, bytes, domains, recipe: fits ? recipe : null, raw: false, read: {}, data: { ...data, scale: told.scale } };
  say("about", `Snapshot ${store.id}: ${counted(labels.length, "model")}, ${counted(bytes.length, "text")} (${snapshot.attributes.text_set_name}).`);
  say("left-out", snapshot.attributes.left_out ?? "");
  say("checked", verifies ? "Every array and row is checked against its SHA-256." : "Over plain http nothing is checked against its SHA-256: a browser can do that over https alone.");
  const choices = new Choices(DEFAULTS), compare = (_, pair, pick) => between(page, pair, pick);
  const explorer = data.maps.length ? explore(page.data, choices, new Card(), compare) : compared(page.data, choices, compare);
  at("explorer").replaceChildren(explorer.element);
  globalThis.klray = { data: page.data, choices, explorer }; // for a reader's console
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => choices.tell({ theme: "" }));
  say("status", "");
}

// The row of a model: with its column's other layers, so that the column's SHA-256 can be looked at.
async function row({ keys, read, store, hashes }, model) {
  let first = model, last = model;
  while (first > 0 && keys[first - 1] === keys[model]) first--;
  while (last + 1 < keys.length && keys[last + 1] === keys[model]) last++;
  read[first] ??= store.snapshot.rows(first, last - first + 1, hashes[model]);
  return (await read[first])[model - first];
}

// What the explorer shows of two models: at once which they are, and what is computed of them when it is there.
function between(page, pair, pick) {
  const slots = slotsOf(page.data, pair, pick);
  if (pair.includes(undefined)) return [slots];
  const shown = el("div", { role: "status" }, "Reading two rows …");
  const show = async () => {
    const asked = page.raw, all = await answer(page, pair).catch((error) => [`This cannot be shown: ${error.message}`]);
    if (asked === page.raw) shown.replaceChildren(...all);
  };
  const raw = el("input", { type: "checkbox", checked: !page.raw, onchange: () => { page.raw = !raw.checked; show(); } });
  show();
  return [slots, page.recipe ? el("label", { className: "soft" }, raw, " as the result has them: clipped, without outlier texts") : null, shown].filter(Boolean);
}

async function answer(page, pair) {
  const { bytes, domains, store } = page, recipe = page.raw ? null : page.recipe;
  const rows = await Promise.all(pair.map((model) => row(page, model)));
  const chosen = kept(bytes.length, recipe), cut = rows.map((each) => (recipe ? clipped(each, recipe) : each));
  const found = divergence(...cut, bytes, chosen);
  if (!Number.isFinite(found.kl)) throw new Error("a row has values that are not finite");
  const place = new Int32Array(page.data.n).fill(-1), values = new Float32Array(2 * chosen.length);
  pair.forEach((model, which) => {
    place[model] = pair.indexOf(model); // a model beside itself is one row
    chosen.forEach((text, to) => { values[which * chosen.length + to] = cut[which][text]; });
  });
  const contents = await (page.contents ??= openContents(store.files));
  const content = contents && ((text) => contents(text, bytes[text]));
  const of = (list) => chosen.map((text) => list[text]);
  const carried = { place, values, bytes: of(bytes), domain: of(domains), text: chosen, content };
  const [a, b] = cut.map((each) => significant(bitsPerByte(each, bytes, chosen), 4));
  const note = `${counted(chosen.length, "text")}, ${recipe ? "clipped, without outlier texts, as the result has them" : "as they were scored"}. Bits per byte: A ${a}, B ${b}.`;
  return [answerOf({ ...page.data, rows: carried }, pair, found), el("p", { className: "soft of" }, note, contents ? "" : " The texts themselves are not in this store.")];
}

begin().catch((error) => say("status", `The store cannot be opened: ${error.message}`));
