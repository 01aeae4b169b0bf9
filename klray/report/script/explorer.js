// The map with its controls: search, colours, legend, steps; what is chosen here is in the address.

import { aboutModel } from "./card.js";
import { byGroups, byNumber } from "./colours.js";
import { comparison } from "./compare.js";
import { nameOf, nearest } from "./data.js";
import { button, choice, el } from "./dom.js";
import { integer } from "./format.js";
import { legend } from "./legend.js";
import { Panel } from "./map.js";
import { savers } from "./save.js";
import { search } from "./search.js";

const SIZES = [[1e8, "below 100M"], [1e9, "100M to 1B"], [3e9, "1B to 3B"], [1e10, "3B to 10B"], [Infinity, "10B and more"]];
const COLOURS = { run: "Run", family: "Family", size: "Size", step: "Step", variant: "Variant", base_model: "Base model" };

export const DEFAULTS = { map: "both", colour: "", hide: "", step: "", a: "", b: "", theme: "" };

// How models are coloured by that column.
function scaleOf(data, column) {
  const { models } = data;
  if (column === "step") return byNumber(models.step, 0);
  if (column !== "size") return byGroups(models[column], { run: "no run", family: "no family", variant: "own output", base_model: "no base model" }[column]);
  const sizes = new Map(data.sizes.map((name, at) => [name, at]));
  if (sizes.size <= 12) return byGroups(models.size, "unknown", (a, b) => (sizes.get(a) ?? 99) - (sizes.get(b) ?? 99));
  const bin = Array.from(models.parameters, (each) => (each > 0 ? SIZES.find(([most]) => each < most)[1] : ""));
  const names = SIZES.map(([, name]) => name);
  return byGroups(bin, "unknown", (a, b) => (names.indexOf(a) + 99) % 99 - (names.indexOf(b) + 99) % 99);
}

// The two models that are chosen, and what `compare(data, [a, b], pick)` says of them: undefined is none, null chooses none.
export function compared(data, choices, compare) {
  const at = new Map(data.models.label.map((label, model) => [label, model]));
  const picks = () => ["a", "b"].map((name) => at.get(choices.get(name)));
  const pick = (place, model) => choices.set({ ["ab"[place]]: model === null ? "" : data.models.label[model] });
  const element = el("section", { className: "compare", "aria-label": "Two models compared", "aria-live": "polite" });
  const show = () => element.replaceChildren(...compare(data, picks(), pick));
  choices.on((changes) => { if ("a" in changes || "b" in changes || "theme" in changes) show(); });
  show();
  return { element, picks, pick };
}

// Map, search, colours, steps; what two models have between them is said by `compare`, of what the page carries itself.
export function explore(data, choices, card, compare = comparison) {
  const { models } = data, pair = compared(data, choices, compare), { picks, pick } = pair;
  const offered = Object.keys(COLOURS).filter((name) => name === "size" ? data.sizes.length > 1 : new Set(models[name]).size > 1);
  const panels = [], look = { state: new Uint8Array(data.n), colour: () => "", line: () => "" };
  const steps = [...new Set(models.step)].filter((step) => step >= 0).sort((a, b) => a - b);
  const colouring = () => (offered.includes(choices.get("colour")) ? choices.get("colour") : offered.find((name) => name !== "step" && new Set(models[name]).size <= 9) ?? offered[0] ?? "run");

  // The first click is A, the second B; a third one takes the place of B.
  const press = (model) => {
    const [one, other] = picks();
    if (model === one || model === other) pick(model === one ? 0 : 1, null);
    else pick(one === undefined ? 0 : 1, model);
  };
  const hover = (model, panel) => {
    for (const each of panels) {
      each.hovered = model;
      each.near = model >= 0 ? nearest(data, model, 5).map((near) => near.model) : [];
      each.mark();
    }
    if (model < 0) { card.hide(); return; }
    const from = panel ?? panels.find((each) => each.places && Number.isFinite(each.at(model)[0]));
    if (!from) return;
    const box = from.canvas.getBoundingClientRect(), [x, y] = from.at(model);
    if (Number.isFinite(x)) card.show(aboutModel(data, model), box.left + x, box.top + y);
  };

  for (const spec of data.maps) panels.push(new Panel(spec, data.paths, { hover, pick: press }));
  for (const panel of panels) panel.look = look;

  const shown = choice("Map", [...data.maps.map((map) => [map.name, map.short]), ...(panels.length > 1 ? [["both", "Both"]] : [])], "", (value) => choices.set({ map: value }));
  const zoom = (factor) => panels.forEach((panel) => { if (factor) panel.view.zoomAt(panel.view.width / 2, panel.view.height / 2, factor); else panel.view.reset(); panel.redraw(); });
  const visible = () => panels.filter((panel) => panel.element.hidden === false);
  const chart = { size: () => visible()[0].size(), draw: (pen) => visible()[0].draw(pen), rows: () => coordinates(data, panels) };
  const select = el("select", { id: "colour", onchange: () => choices.set({ colour: select.value, hide: "" }) }, offered.map((name) => el("option", { value: name }, COLOURS[name])));
  const key = el("div", { className: "legend" });
  const slider = el("input", { type: "range", id: "step", min: 0, max: Math.max(steps.length - 1, 0), step: 1, oninput: () => choices.set({ step: +slider.value === steps.length - 1 ? "" : steps[slider.value] }) });
  const said = el("output", { htmlFor: "step" });
  const side = el("aside", { className: "side" },
    search(data, "Search models", (model) => { hover(model); press(model); }, (model) => hover(model)),
    el("label", {}, "Colour by ", select), key,
    steps.length > 1 ? el("label", { className: "steps" }, el("span", {}, "Up to step ", said), slider) : null);
  const element = el("div", { className: "explorer" },
    el("div", { className: "tools" }, shown.element,
      el("div", { className: "choice", role: "group", "aria-label": "Zoom" }, button("+", () => zoom(1.5), { "aria-label": "Zoom in" }), button("−", () => zoom(1 / 1.5), { "aria-label": "Zoom out" }), button("All", () => zoom(0))),
      el("span", { className: "soft hint" }, "Click two models to compare. Drag to move; wheel to zoom after a click, or with Ctrl."), savers("map", chart)),
    el("div", { className: "field" }, el("div", { className: "panels" }, panels.map((panel) => panel.element)), side),
    pair.element);

  const paint = () => {
    const column = colouring(), scale = scaleOf(data, column), hidden = new Set(choices.list("hide"));
    const limit = choices.get("step") === "" ? Infinity : +choices.get("step");
    for (let model = 0; model < data.n; model++) {
      const late = models.step[model] > limit, dim = scale.names && hidden.has(scale.names[scale.of[model]]);
      look.state[model] = late ? 2 : dim ? 1 : 0;
    }
    const colours = scale.names?.map((_, group) => scale.colour(group));
    look.colour = (model) => (colours ? colours[scale.of[model]] : scale.colour(scale.shares[model]));
    look.line = look.colour;
    select.value = column;
    const toggle = (name) => choices.set({ hide: hidden.has(name) ? [...hidden].filter((each) => each !== name) : [...hidden, name] });
    key.replaceChildren(...legend(scale, hidden, "training step, log scale; grey: none", toggle, () => choices.set({ hide: "" })));
    const place = limit === Infinity ? steps.length - 1 : steps.findLastIndex((step) => step <= limit);
    slider.value = place;
    said.textContent = steps.length ? integer(steps[place] ?? 0) : "";
  };
  const mark = () => panels.forEach((panel) => { panel.picked = picks().map((model) => model ?? -1); });
  const arrange = () => {
    const asked = data.maps.some(({ name }) => name === choices.get("map")) ? choices.get("map") : "both", narrow = matchMedia("(max-width: 46rem)").matches;
    const value = asked === "both" && (narrow || panels.length < 2) ? data.maps[0]?.name : asked;
    shown.show(value);
    if (panels.length > 1) shown.element.lastChild.hidden = narrow;
    panels.forEach((panel) => { panel.element.hidden = value !== "both" && value !== panel.name; });
    panels.forEach((panel) => panel.resize());
  };
  choices.on((changes) => {
    if ("colour" in changes || "hide" in changes || "step" in changes || "theme" in changes) paint();
    if ("a" in changes || "b" in changes) mark();
    if ("map" in changes) arrange();
    panels.forEach((panel) => panel.later());
  });
  paint();
  mark();
  new ResizeObserver(arrange).observe(element);
  return { element, panels, look, press, hover };
}

function coordinates(data, panels) {
  const columns = panels.flatMap(({ name }) => [`${name}_1`, `${name}_2`]);
  const rows = Array.from({ length: data.n }, (_, model) => [nameOf(data, model), data.models.step[model], data.models.run[model],
    ...panels.flatMap(({ xy }) => [xy[2 * model], xy[2 * model + 1]])]);
  return [["model", "step", "run", ...columns], rows];
}
