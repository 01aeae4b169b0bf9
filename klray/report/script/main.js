// Takes the page apart and puts it together again: pictures become figures that answer, tables sort and filter.

import { Card } from "./card.js";
import { byGroups } from "./colours.js";
import { prepare, unpack } from "./data.js";
import { choice } from "./dom.js";
import { DEFAULTS, explore } from "./explorer.js";
import { integer, significant, short, withError } from "./format.js";
import { HeatMap } from "./heatmap.js";
import { Lines } from "./lines.js";
import { Choices } from "./link.js";
import { enhance, modelTable } from "./tables.js";
import { Violins } from "./violins.js";

const find = (selector) => document.querySelector(selector);

// Runs of a chart, in the colours that the map gives them.
function lines(data, charts, points) {
  const scale = byGroups(data.models.run, "no run");
  const colour = (name) => { const group = scale.names.indexOf(name); return scale.colour(group < 0 ? scale.names.length : group); };
  return charts.map((run) => ({ name: run.name, colour: () => colour(run.name), points: points(run) })).filter((run) => run.points.length);
}

function consecutive(run) {
  return Array.from(run.step, (step, at) => ({
    x: step, y: run.kl[at], se: run.se[at], usual: run.usual[at] === 1,
    joined: at > 0 && run.usual[at] === 1 && run.usual[at - 1] === 1 && run.previous[at] === run.step[at - 1],
    note: [["steps", `${integer(run.previous[at])} to ${integer(step)}`]], row: [run.previous[at], run.kl[at], run.se[at]],
  })).filter((each) => Number.isFinite(each.y));
}

const exponents = (run) => Array.from(run.start, (step, at) => ({
  x: step, y: run.exponent[at], se: NaN, usual: true, joined: true,
  note: [["window from step", integer(step)], ["R²", significant(run.r_squared[at])]], row: [run.exponent[at], run.r_squared[at]],
}));

async function start() {
  const data = prepare(await unpack(JSON.parse(find('script[type="application/json"]').textContent)));
  const choices = new Choices(DEFAULTS), card = new Card(), charts = [];
  const theme = () => { document.documentElement.dataset.theme = choices.get("theme"); };
  theme();
  const themes = choice("Colours of the page", [["", "Auto"], ["light", "Light"], ["dark", "Dark"]], choices.get("theme"), (value) => choices.set({ theme: value }));
  find(".theme").replaceChildren(themes.element);
  choices.on((changes) => { if ("theme" in changes) { theme(); themes.show(choices.get("theme")); charts.forEach((each) => { each.entries?.(); each.redraw(); }); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => choices.tell({ theme: "" }));

  const place = (name) => find(`[data-chart="${name}"]`);
  const built = place("map") && data.maps.length ? explore(data, choices, card) : null;
  if (built) place("map").replaceChildren(built.element);
  const both = (one, other) => { choices.set({ a: data.models.label[one], b: data.models.label[other] }); find("#model_map").scrollIntoView({ behavior: "smooth" }); };
  const add = (name, make) => { if (place(name)) charts.push(make(place(name))); };
  add("consecutive_kl", (at) => new Lines(at, "consecutive_kl", "KL to the previous checkpoint by training step", card, {
    x: "Training step", y: "KL to previous checkpoint (bits/byte)", short: "KL ± SE", bands: true, log: [true, true],
    columns: ["previous_step", "kl_bits_per_byte", "standard_error"], runs: lines(data, data.consecutive, consecutive) }));
  for (const [name, words, letter] of [["exponents_kl", "Diffusion exponent of KL", "c_q"], ["exponents_weights", "Diffusion exponent of the weights", "c_w"]]) {
    add(name, (at) => new Lines(at, name, `${words} by the step at which a window starts`, card, {
      x: "Training step at the start of the window", y: `Diffusion exponent ${letter}`, short: letter, log: [false, false], line: { y: 1 },
      columns: [letter, "r_squared"], runs: lines(data, data[name], exponents) }));
  }
  if (data.heat) add("kl_heatmap", (at) => new HeatMap(at, "kl", "Heat map of the KL of all pairs", card, data, both));
  if (data.scale) add("scale", (at) => new Violins(at, "scale", "KL of the pairs in each setting of the scale", card, data.scale.settings));

  document.querySelectorAll("main table").forEach((table, at) => { if (table.className !== "models" && table.closest(".scroll")) enhance(table, `table_${at + 1}`); });
  const { models } = data, text = (name) => (model) => models[name][model], number = (name, shown = integer) => ({ cell: (model) => shown(models[name][model]), key: (model) => models[name][model], number: true });
  const known = (name) => ({ cell: (model) => (models[name][model] >= 0 ? integer(models[name][model]) : "–"), key: (model) => (models[name][model] >= 0 ? models[name][model] : NaN), number: true });
  modelTable(find("table.models"), data.n, [
    { head: "repository", cell: text("repository") }, { head: "revision", cell: text("revision") }, { head: "step", ...known("step") },
    { head: "family", cell: text("family") }, { head: "size", cell: text("size") }, { head: "seed", ...known("seed") },
    { head: "parameters", ...number("parameters", short) }, { head: "variant", cell: text("variant") },
    { head: "kl_to_previous", cell: (model) => withError(models.step_kl[model], models.step_se[model]), key: (model) => models.step_kl[model], number: true },
    { head: "c_q", ...number("exponent", significant) }, { head: "excluded", cell: (model) => (models.excluded[model] ? "yes" : "") },
  ], (model) => built?.press(model));
  performance.mark("ready");
  document.documentElement.dataset.ready = "yes";
  globalThis.klray = { data, choices, explorer: built, charts }; // for a reader's console
}

start().catch((error) => {
  console.error(error);
  find(".theme").textContent = `The figures of this page could not be made to answer: ${error.message}`;
});
