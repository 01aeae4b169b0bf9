// Tables that sort and filter: those in the page, and that of all models, of which the page shows a part at a time.

import { csv, download } from "./save.js";
import { button, el } from "./dom.js";
import { integer } from "./format.js";

const FILTERED_FROM = 9; // rows, from which on a table has a field to filter
const AT_ONCE = 100; // rows of models that are shown, and shown more

const keyOf = (cell) => cell.dataset.key ?? cell.textContent.trim();

// Numbers by size, words by letters; what is empty comes last.
function compare(one, other, sign) {
  const none = (each) => each === "" || each === "–" || Number.isNaN(each);
  if (none(one) || none(other)) return none(one) - none(other);
  const x = parseFloat(String(one).replaceAll(",", "")), y = parseFloat(String(other).replaceAll(",", ""));
  return sign * (Number.isNaN(x) || Number.isNaN(y) || typeof one !== typeof other ? String(one).localeCompare(String(other), "en", { numeric: true }) : x - y);
}

function sortable(head, sort) {
  for (const header of head.cells) {
    if (!header.querySelector("button")) {
      const words = [...header.childNodes];
      header.append(el("button", { type: "button" }, words));
    }
    header.querySelector("button").addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") === "ascending";
      for (const each of head.cells) each.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sort(header.cellIndex, descending ? -1 : 1);
    });
  }
}

function tools(name, rows, filtered, count) {
  const keep = button("CSV", () => download(`${name}.csv`, "text/csv", csv(...rows())));
  if (count < FILTERED_FROM) return el("div", { className: "tools" }, el("div", { className: "savers" }, "Save ", keep));
  const field = el("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows" });
  const said = el("span", { className: "soft", role: "status" });
  field.addEventListener("input", () => { said.textContent = filtered(field.value.toLowerCase().split(/\s+/).filter(Boolean)); });
  return el("div", { className: "tools" }, field, said, el("div", { className: "savers" }, "Save ", keep));
}

// A table that stands whole in the page.
export function enhance(found, name) {
  const head = found.tHead.rows[0], body = found.tBodies[0];
  sortable(head, (column, sign) => {
    const keyed = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
    body.append(...keyed.sort((a, b) => compare(a[0], b[0], sign)).map(([, row]) => row));
  });
  const all = () => [[...head.cells].map((cell) => cell.textContent), [...body.rows].filter((row) => !row.hidden).map((row) => [...row.cells].map((cell) => cell.textContent))];
  const filtered = (words) => {
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    return words.length ? `${integer(shown)} of ${integer(body.rows.length)}` : "";
  };
  found.parentElement.before(tools(name, all, filtered, body.rows.length));
}

// The table of all models, from the data: columns of {head, cell(model), key(model), number}.
export function modelTable(found, n, columns, press) {
  const head = found.tHead.rows[0], body = found.tBodies[0];
  const all = () => Array.from({ length: n }, (_, model) => columns.map(({ cell }) => cell(model)).join("\n").toLowerCase());
  let text = null;
  let order = Array.from({ length: n }, (_, model) => model), kept = order, shown = AT_ONCE;
  let words = [];
  const more = button("Show more", () => { shown += 5 * AT_ONCE; draw(); });
  const draw = () => {
    body.replaceChildren(...kept.slice(0, shown).map((model) => {
      const row = el("tr", { onclick: () => press(model) }, columns.map(({ cell, number }, place) =>
        el(place ? "td" : "th", { className: number ? "number" : "", ...(place ? {} : { scope: "row" }) }, cell(model))));
      return row;
    }));
    more.hidden = kept.length <= shown;
    more.textContent = `Show more (${integer(Math.max(kept.length - shown, 0))} are left)`;
  };
  const select = () => { if (words.length) text ??= all(); kept = words.length ? order.filter((model) => words.every((word) => text[model].includes(word))) : order; shown = AT_ONCE; draw(); };
  sortable(head, (column, sign) => {
    const keys = Array.from({ length: n }, (_, model) => (columns[column].key ?? columns[column].cell)(model));
    order = order.slice().sort((a, b) => compare(keys[a], keys[b], sign));
    select();
  });
  const filtered = (asked) => { words = asked; select(); return words.length ? `${integer(kept.length)} of ${integer(n)}` : ""; };
  const value = (model) => columns.map(({ key, cell, number }) => (number && key ? key(model) : cell(model)));
  found.parentElement.before(tools("models", () => [columns.map((each) => each.head), kept.map(value)], filtered, n));
  found.parentElement.after(more);
  draw();
}
