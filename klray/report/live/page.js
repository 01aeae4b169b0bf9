// The page: two models are chosen, and what is between them is computed from their rows. Everything that comes from the
// store is shown as text, and as nothing else.

import { openContents } from "./contents.js";
import { differing, divergence } from "./divergence.js";
import { Map as ModelMap } from "./map.js";
import { openStore, verifies } from "./reader.js";
import { bitsPerByte, clipped, kept } from "./rows.js";

const SHOWN = 200, TEXTS = 20, COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999"];
const MAPS = ["map_tsne", "map_pca"];
const told = (name) => document.querySelector(`meta[name="${name}"]`).content;
const at = (id) => document.getElementById(id);
const say = (id, words) => { at(id).textContent = words; };
const state = { chosen: [-1, -1] };

function el(tag, words, ...children) {
  const made = document.createElement(tag);
  made.textContent = words;
  made.append(...children);
  return made;
}

function number(value, digits = 4) {
  return Number.isFinite(value) ? value.toPrecision(digits) : "–";
}

async function begin() {
  const store = await openStore(new URL(told("klray-store"), location.href).href.replace(/\/?$/, "/"));
  const { snapshot, manifest } = store;
  const names = ["model", "key", "sha256", "layer", "family", "text_bytes", "domain"];
  const [labels, keys, hashes, layers, families, bytes, domains] = await Promise.all(names.map((name) => snapshot.array(name)));
  const result = await store.result(told("klray-result"));
  const recipe = result?.attributes.recipe ? JSON.parse(result.attributes.recipe) : null;
  const fits = recipe?.text_set === manifest.text_set && recipe.n_texts === manifest.n_texts;
  Object.assign(state, { store, labels, keys, hashes, layers, families, bytes, domains, recipe: fits ? recipe : null });
  say("about", `Snapshot ${store.id}: ${labels.length.toLocaleString("en")} models, ${bytes.length.toLocaleString("en")} texts (${snapshot.attributes.text_set_name}).`);
  say("left-out", snapshot.attributes.left_out ?? "");
  say("checked", verifies ? "Every array and row is checked against its SHA-256." : "Over plain http nothing is checked against its SHA-256: a browser can do that over https alone.");
  at("recipe-choice").hidden = !state.recipe;
  at("with-recipe").addEventListener("change", () => compare());
  ["a", "b"].forEach((side, which) => picker(side, which));
  if (result) await drawMap(result);
  addEventListener("hashchange", fromHash);
  fromHash();
}

// A field that searches labels, and a list of what it finds.
function picker(side, which) {
  const field = at(`search-${side}`), list = at(`list-${side}`);
  const fill = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    for (let model = 0; model < state.labels.length && found.length < SHOWN; model++) {
      const label = state.labels[model].toLowerCase();
      if (words.every((word) => label.includes(word))) found.push(Object.assign(el("option", state.labels[model]), { value: String(model) }));
    }
    list.replaceChildren(...found);
  };
  field.addEventListener("input", fill);
  list.addEventListener("change", () => choose(which, Number(list.value)));
  fill();
}

function choose(which, model) {
  state.chosen[which] = model;
  const names = state.chosen.map((each) => (each < 0 ? "" : encodeURIComponent(state.labels[each])));
  history.replaceState(null, "", `#${names.join("&")}`);
  compare();
}

function fromHash() {
  const names = location.hash.slice(1).split("&").map((each) => { try { return decodeURIComponent(each); } catch { return ""; } });
  state.chosen = [0, 1].map((which) => (names[which] ? state.labels.indexOf(names[which]) : -1));
  compare();
}

async function drawMap(result) {
  const name = MAPS.find((each) => result.metadata[each]);
  if (!name) return;
  const places = await result.array(name);
  const order = [...new Set(state.families)];
  const colours = state.families.map((family) => COLOURS[order.indexOf(family) % COLOURS.length]);
  at("map").hidden = false;
  state.map = new ModelMap(at("map"), places, colours, {
    hover: (model) => say("hovered", model < 0 ? "" : state.labels[model]),
    pick: (model) => { // the first is A, the second B, the third A again
      if (state.chosen[1] >= 0) state.chosen = [-1, -1];
      choose(state.chosen[0] < 0 ? 0 : 1, model);
    },
  });
}

// The row of a model: with its column's other layers, so that the column's SHA-256 can be looked at.
async function row(model) {
  state.rows ??= {};
  const { keys, store, hashes } = state;
  let first = model, last = model;
  while (first > 0 && keys[first - 1] === keys[model]) first--;
  while (last + 1 < keys.length && keys[last + 1] === keys[model]) last++;
  state.rows[first] ??= store.snapshot.rows(first, last - first + 1, hashes[model]);
  return (await state.rows[first])[model - first];
}

async function compare() {
  const [a, b] = state.chosen;
  ["a", "b"].forEach((side, which) => say(`name-${side}`, state.chosen[which] < 0 ? "none chosen yet" : state.labels[state.chosen[which]]));
  Object.assign(state.map ?? {}, { chosen: [a, b] });
  state.map?.draw();
  at("compared").hidden = true;
  if (a < 0 || b < 0) return;
  say("status", "Reading two rows …");
  try {
    const rows = await Promise.all([row(a), row(b)]);
    const recipe = at("with-recipe").checked ? state.recipe : null;
    const chosen = kept(state.bytes.length, recipe);
    const [one, other] = rows.map((each) => (recipe ? clipped(each, recipe) : each));
    const { kl, se } = divergence(one, other, state.bytes, chosen);
    if (!Number.isFinite(kl)) throw new Error("a row has values that are not finite");
    Object.assign(at("kl").dataset, { kl: String(kl), se: String(se) });
    say("kl", `KL ${number(kl)} ± ${number(se, 2)} bits per byte`);
    say("of", `${chosen.length.toLocaleString("en")} texts, ${recipe ? "clipped, without outlier texts, as the result has them" : "as they were scored"}. Bits per byte: A ${number(bitsPerByte(one, state.bytes, chosen))}, B ${number(bitsPerByte(other, state.bytes, chosen))}.`);
    await texts(one, other, chosen);
    at("compared").hidden = false;
    say("status", "");
  } catch (error) {
    say("status", `This cannot be shown: ${error.message}`);
  }
}

// The texts whose difference is farthest from the mean difference, with the share of the KL that each makes.
async function texts(one, other, chosen) {
  const found = differing(...[one, other].map((row) => chosen.map((at) => row[at])), TEXTS);
  const numbers = found.map(({ text }) => chosen[text]), read = await (state.contents ??= openContents(state.store.files));
  const words = read ? await Promise.all(numbers.map((text) => read(text, state.bytes[text]))) : [];
  at("no-contents").hidden = Boolean(read);
  at("texts").replaceChildren(...found.map(({ nats, share }, rank) => {
    const text = numbers[rank], part = Number.isFinite(share) ? `${(100 * share).toFixed(2)} %` : "–";
    const cells = [text, state.domains[text], state.bytes[text], one[text].toFixed(2), other[text].toFixed(2), nats.toFixed(2), part];
    const about = el("td", "", ...(words[rank] ? [el("details", "", el("summary", "show"), el("pre", words[rank]))] : []));
    return el("tr", "", ...cells.map((cell) => el("td", String(cell))), about);
  }));
}

begin().catch((error) => say("status", `The store cannot be opened: ${error.message}`));
