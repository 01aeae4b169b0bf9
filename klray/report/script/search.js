// Finds models by any part of their names; every word must be in it.

import { nameOf } from "./data.js";
import { el } from "./dom.js";

const FOUND_AT_ONCE = 8;

// A field with a list of what is found; `choose(model)` and `point(model)` are told.
export function search(data, label, choose, point = () => {}) {
  const id = `found-${label.replace(/\W/g, "")}`;
  const list = el("ul", { id, role: "listbox", hidden: true, "aria-label": `${label}: found` });
  const field = el("input", { type: "search", placeholder: label, autocomplete: "off", role: "combobox", "aria-label": label, "aria-controls": id, "aria-expanded": "false" });
  let found = [], at = -1;

  const show = () => {
    const lower = (data.lower ??= Array.from({ length: data.n }, (_, model) => nameOf(data, model).toLowerCase()));
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = words.length ? lower.reduce((kept, name, model) => (words.every((word) => name.includes(word)) && kept.push(model), kept), []) : [];
    found = all.slice(0, FOUND_AT_ONCE);
    at = found.length ? 0 : -1;
    const rest = all.length - found.length;
    list.replaceChildren(
      ...found.map((model, place) => el("li", { role: "option", "aria-selected": String(place === at), onpointerdown: (event) => { event.preventDefault(); take(model); }, onpointerenter: () => point(model) }, nameOf(data, model))),
      ...(rest ? [el("li", { className: "soft" }, `and ${rest.toLocaleString("en-US")} more`)] : []),
      ...(words.length && !all.length ? [el("li", { className: "soft" }, "No model has these words in its name.")] : []),
    );
    list.hidden = !words.length;
    field.setAttribute("aria-expanded", String(!list.hidden));
    point(at >= 0 ? found[at] : -1);
  };
  const close = () => { list.hidden = true; field.setAttribute("aria-expanded", "false"); };
  const take = (model) => { field.value = ""; close(); choose(model); };
  field.addEventListener("input", show);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { field.value = ""; close(); point(-1); }
    if (event.key === "Enter" && at >= 0) take(found[at]);
    if (!["ArrowDown", "ArrowUp"].includes(event.key) || !found.length) return;
    event.preventDefault();
    at = (at + (event.key === "ArrowDown" ? 1 : found.length - 1)) % found.length;
    [...list.children].forEach((each, place) => each.setAttribute("aria-selected", String(place === at)));
    point(found[at]);
  });
  return el("div", { className: "search" }, field, list);
}
